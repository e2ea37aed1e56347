#!/usr/bin/env bash
# Runs the steps of Binder's image without Docker: a new environment from binder/, then its postBuild.
# usage: tools/binder.sh [FOLDER]; the folder is removed afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-$(mktemp -d)/binder}
version=$(sed 's/^python-//' binder/runtime.txt)

python=$(command -v "python$version" || true)
if [ -z "$python" ]; then
  echo "qptlab: expected Python $version, as in binder/runtime.txt, found none; install it, or change that file." >&2
  exit 1
fi
echo "Installing binder/requirements.txt into $folder."
"$python" -m venv "$folder"
trap 'rm -rf "$folder"' EXIT
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r binder/requirements.txt
echo "Running binder/postBuild with one of the notebooks; the tests execute all of them."
QPTLAB_NOTEBOOKS="02-*.ipynb" PATH="$(cd "$folder/bin" && pwd):$PATH" XDG_CACHE_HOME="$folder/cache" bash binder/postBuild
missing=$(comm -23 <(ls notebooks/*.ipynb | sort) <(git ls-files 'notebooks/*.ipynb' | sort))
if [ -n "$missing" ]; then
  echo "qptlab: these notebooks are missing in Binder's image, because they are not in git: $missing; add them." >&2
  exit 1
fi
echo "Binder's steps are done."
