"""The command that opens JupyterLab."""

import os
import pathlib
import sys
import urllib.parse
from typing import Annotated

import typer

from qptlab.cli import course
from qptlab.errors import InputError
from qptlab.gui.bounds import VARIABLES, Bounds

DEFAULT_FOLDER = "qptlab-course"


def lab(
    notebook: Annotated[
        pathlib.Path | None, typer.Argument(metavar="[NOTEBOOK]", help="A notebook or a folder; default: the course.")
    ] = None,
    copy: Annotated[
        pathlib.Path | None,
        typer.Option("--copy", metavar="FOLDER", help="Copy the course into this folder first; existing files stay."),
    ] = None,
    start: Annotated[bool, typer.Option("--open/--no-open", help="Open JupyterLab, or only copy.")] = True,
    max_atoms: Annotated[
        int | None, typer.Option("--max-atoms", min=1, help="Largest molecule of the workbench. Default: no bound.")
    ] = None,
    max_orbitals: Annotated[
        int | None,
        typer.Option("--max-orbitals", min=1, help="Largest number of its atomic orbitals. Default: no bound."),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="Longest training of the workbench. Default: no bound.")
    ] = None,
) -> None:
    """Open JupyterLab on a notebook, by default on the first one of the course.

    With a bound, the workbench reads no file outside of the notebook's folder. Cells of a notebook have no bounds.
    """
    for name, value in (("atoms", max_atoms), ("orbitals", max_orbitals), ("minutes", max_minutes)):
        if value is not None:
            os.environ[VARIABLES[name]] = str(value)
    Bounds.of_environment()  # a bound that cannot be used is refused here
    if notebook is not None and copy is not None:
        raise InputError(f"Expected a notebook or --copy, got {notebook} and --copy {copy}; use one of the two.")
    if notebook is not None and not notebook.exists():
        raise InputError(f"Expected a notebook or a folder, got {notebook}, which does not exist; use a path.")
    if notebook is None and copy is None:
        notebook = _first_notebook()
    if notebook is None:
        folder = _ask_for_folder() if copy is None else copy
        _copy_course(folder)
        notebook = folder / course.FIRST
    if start:
        _open(notebook)


def _first_notebook() -> pathlib.Path | None:
    """Return the first notebook of the course in this folder, of a copy in it, or of the clone that is installed."""
    present, clone = pathlib.Path.cwd(), pathlib.Path(course.__file__).parents[2]
    folders = (present / "notebooks", present, present / DEFAULT_FOLDER, clone / "notebooks")
    return next((folder / course.FIRST for folder in folders if (folder / course.FIRST).exists()), None)


def _ask_for_folder() -> pathlib.Path:
    """Ask for the folder that the course is copied into."""
    if not sys.stdin.isatty():
        raise InputError(
            "Expected a notebook or --copy FOLDER, got neither, and the course is not in this folder; "
            f"use qptlab lab --copy {DEFAULT_FOLDER}, or qptlab lab . to open this folder."
        )
    typer.echo("The course is not in this folder. qptlab copies its notebooks into a folder of yours and opens them.")
    return pathlib.Path(typer.prompt("Folder for the copy", default=DEFAULT_FOLDER))


def _copy_course(folder: pathlib.Path) -> None:
    """Copy the course and print what was copied."""
    files = course.installed_files()
    if not files:
        raise InputError("Expected the course's notebooks in this installation, got none; install qptlab again.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected a folder for the course, got the file {folder}; use a new name.")
    copied, different = course.copy(files, folder)
    note = f"; kept {different} file{'s' if different > 1 else ''} of yours" if different else ""
    typer.echo(f"Copied {copied} of the course's {len(files)} files into {folder}{note}.")


def _open(notebook: pathlib.Path) -> None:
    """Replace this process by JupyterLab."""
    command = [sys.executable, "-m", "jupyterlab", str(notebook)]
    if notebook.is_file():
        # Users may copy the printed address instead of having a browser opened; it is relative to the root.
        command += [f"--ServerApp.root_dir={notebook.resolve().parent}",
                    f"--LabApp.default_url=/lab/tree/{urllib.parse.quote(notebook.name)}"]
    if os.geteuid() == 0:
        command.append("--allow-root")  # in containers there is often no other user
    # JupyterLab takes this process's place, so that Ctrl-C reaches it and it can ask, and close its kernels.
    os.execv(sys.executable, command)
