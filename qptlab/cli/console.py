"""What the commands share: options, and how they speak."""

import json
import pathlib
from typing import Annotated

import typer
from rich.console import Console

from qptlab.errors import InputError
from qptlab.sampling.geometries import SAMPLERS
from qptlab.system.functional import FUNCTIONALS
from qptlab.system.method import ERI_FORMS

stderr = Console(stderr=True, highlight=False)

MoleculeArgument = Annotated[
    str, typer.Argument(metavar="MOLECULE", help="A built-in name, a SMILES or an XYZ file (ångström).")
]
XC = Annotated[str, typer.Option("--xc", help=f"Functional, one of {', '.join(FUNCTIONALS)}.")]
Basis = Annotated[str, typer.Option("--basis", help="A basis set by PySCF's name.")]
GridLevel = Annotated[int, typer.Option("--grid-level", help="PySCF's grid level, 0 to 5.")]
Eri = Annotated[str, typer.Option("--eri", help=f"Two-electron integrals, one of {', '.join(ERI_FORMS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is random.")]
Sampler = Annotated[str, typer.Option("--sampler", help=f"One of {', '.join(SAMPLERS)}.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Of md, kelvin.")]
Frames = Annotated[str, typer.Option("--frames", help="XYZ file of the user's frames, for --sampler file.")]
Molecules = Annotated[
    list[str],
    typer.Argument(metavar="MOLECULE...", help="As elsewhere; an XYZ file of several, or a .smi file, too."),
]
Geometries = Annotated[
    pathlib.Path, typer.Option("--geometries", help="(Multi-frame) XYZ file, ångström.")
]
Dask = Annotated[
    str | None,
    typer.Option("--dask", help="Spread the work: a scheduler's address, or `local` for all cores of this machine."),
]


def print_json(record: dict) -> None:
    """One object, alone on stdout."""
    typer.echo(json.dumps(record))


def fail(message: str, status: int) -> int:
    """Say what is wrong in one line on stderr; returns the exit status."""
    stderr.print("qptlab: " + " ".join(message.split()), markup=False, soft_wrap=True)
    return status


def refuse_existing(path: pathlib.Path) -> None:
    """Check a file that is to be made.

    Raises:
      InputError: if it is there, or its folder is not.
    """
    if path.exists():
        raise InputError(f"{path} exists and is not overwritten; a new name would do.")
    check_folder(path)


def check_folder(path: pathlib.Path) -> None:
    """Raise an `InputError` if the folder of a file that is to be written is not there."""
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist; an existing folder would do.")
