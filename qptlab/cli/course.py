"""The course: notebooks and the results that they read.

A wheel holds them in `qptlab/course`; hatch_build.py puts them there and runs this file for it, so that it imports
nothing but the standard library.
"""

import importlib.resources
import pathlib

FIRST = "01-first-light.ipynb"
RESULTS = "benchmarks/results"


def clone_files(clone: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the course's files in a clone of the repository.

    Args:
      clone: the repository's root.

    Returns:
      Source of each file by its path in a copy: the notebooks, and the results whose names they contain.
    """
    notebooks = sorted((clone / "notebooks").glob("*.ipynb"))
    text = "".join(path.read_text(encoding="utf-8") for path in notebooks)
    results = [path for path in sorted((clone / RESULTS).glob("*")) if path.name in text]
    return {path.name: path for path in notebooks} | {f"{RESULTS}/{path.name}": path for path in results}


def installed_files() -> dict[str, pathlib.Path]:
    """Return the course's files in this installation, as `clone_files` does; empty if it has none."""
    package = pathlib.Path(str(importlib.resources.files("qptlab")))
    folder = package / "course"
    if not folder.is_dir():
        return clone_files(package.parent)
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def copy(files: dict[str, pathlib.Path], folder: pathlib.Path) -> tuple[int, int]:
    """Copy files into a folder, which is created if it does not exist. A file that exists is never overwritten.

    Args:
      files: source of each file by its path in the copy.
      folder: target.

    Returns:
      Number of files copied, and number of existing files that differ from the course's and were kept.
    """
    copied = different = 0
    for name, source in files.items():
        target, content = folder / name, source.read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                file.write(content)
            copied += 1
        except FileExistsError:
            different += not target.is_file() or target.read_bytes() != content
    return copied, different
