#!/usr/bin/env bash
# Creates the environment and installs qptlab into it: tools/setup.sh run|test
# PYTHON names the interpreter to use, VENV the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-run}
venv=${VENV:-.venv}

fail() {
  echo "qptlab: $*" >&2
  exit 1
}

version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

no_python="expected Python 3.11 or newer${PYTHON:+ as $PYTHON}, found none; install it, or name it: PYTHON=/path/to/python3.11 make"
if [ -n "${PYTHON:-}" ] && [ -x "$venv/bin/python" ]; then
  python=$(find_python) || fail "$no_python"
  if [ "$(version "$python")" != "$(version "$venv/bin/python")" ]; then
    [ -f "$venv/pyvenv.cfg" ] || fail "expected an environment in $venv, got a different folder; name a new one: VENV=.venv-new make"
    echo "Replacing the environment $venv, which has a different Python than $PYTHON."
    rm -rf "$venv"
  fi
fi
if [ -L "$venv/bin/python" ] && [ ! -x "$venv/bin/python" ] && [ -f "$venv/pyvenv.cfg" ]; then
  echo "Replacing the environment $venv, whose Python was removed."
  rm -rf "$venv"
fi
if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python) || fail "$no_python"
  echo "Creating the environment $venv with $("$python" --version)."
  if ! message=$("$python" -m venv "$venv" 2>&1); then
    rm -rf "$venv"
    echo "$message" >&2
    fail "$python cannot create environments; on Debian and Ubuntu install python$(version "$python")-venv."
  fi
fi

stamp="$venv/.installed-$kind"
if [ -f "$stamp" ] && [ -z "$(find pyproject.toml constraints.txt hatch_build.py -newer "$stamp")" ]; then
  exit 0
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  # Its creation was interrupted, or a different tool created it without pip.
  "$venv/bin/python" -m ensurepip >/dev/null 2>&1 \
    || fail "expected pip in $venv, found none; remove that folder and run the command again."
fi
extra=""
if [ "$kind" = test ]; then extra="[test]"; fi
echo "Installing qptlab$extra into $venv (a minute or two the first time)."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extra" \
  || fail "the installation failed; pip prints the reason above. If it is the network, run the command again when the package index can be reached."
if [ ! -f qptlab/gui/widgets/static/3Dmol-min.js ]; then
  # pip shows a build's warnings only when the build fails.
  echo "qptlab: 3D views will be missing, because 3Dmol.js could not be fetched from npm; remove $stamp and run the command again when npm's registry can be reached." >&2
fi
if ! "$venv/bin/python" -c "import tblite.interface" 2>/dev/null; then
  echo "qptlab: tblite cannot be loaded, so the sampler md will not run; on Debian and Ubuntu install libgomp1." >&2
fi
touch "$stamp"
if [ "$kind" = test ]; then touch "$venv/.installed-run"; fi
