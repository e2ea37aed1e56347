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

if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python) || fail "no Python 3.11 or newer was found${PYTHON:+ as $PYTHON}; install one, or name it: PYTHON=/path/to/python3.11 make $kind"
  echo "Creating the environment $venv with $("$python" --version)."
  "$python" -m venv "$venv" || {
    rm -rf "$venv"
    fail "$python cannot create environments; on Debian and Ubuntu install python3-venv."
  }
fi

stamp="$venv/.installed-$kind"
if [ -f "$stamp" ] && [ -z "$(find pyproject.toml constraints.txt hatch_build.py -newer "$stamp")" ] \
  && [ -f qptlab/widgets/static/3Dmol-min.js ]; then
  exit 0
fi
extra=""
[ "$kind" = test ] && extra="[test]"
echo "Installing qptlab$extra into $venv (a minute or two the first time)."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip \
  || fail "pip could not be upgraded; is the package index in reach?"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extra" \
  || fail "the installation failed; is the package index in reach? pip's message stands above."
touch "$stamp"
[ "$kind" = test ] && touch "$venv/.installed-run"
exit 0
