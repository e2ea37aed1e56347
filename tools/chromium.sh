#!/usr/bin/env bash
# Installs Chromium for the browser tests, unless there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
as_root=""
if [ "$(id -u)" -ne 0 ]; then as_root="sudo -n"; fi
if command -v apt-get >/dev/null && $as_root true 2>/dev/null; then
  echo "Installing Debian's Chromium for the browser tests."
  if $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends chromium >/dev/null && command -v chromium >/dev/null; then
    exit 0
  fi
fi
echo "Installing Playwright's Chromium for the browser tests."
"$venv/bin/python" -m playwright install chromium || {
  echo "qptlab: Chromium could not be installed; install the package chromium, or put it on PATH." >&2
  exit 1
}
