"""Options that several commands share, and their output."""

import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

import qptlab as ql
from qptlab.cli.settings import Options
from qptlab.errors import InputError
from qptlab.sampling.geometries import SAMPLERS

stderr = Console(stderr=True, highlight=False)

MoleculeArgument = Annotated[
    str, typer.Argument(metavar="MOLECULE", help="A built-in name, a SMILES or an XYZ file (ångström).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Sampler = Annotated[
    str | None, typer.Option("--sampler", help=f"Source of geometries, one of {', '.join(SAMPLERS)}. Default: md.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Temperature, K; for md, modes and model.")]
Sigma = Annotated[
    float | None, typer.Option("--sigma", help="Standard deviation of displacements, bohr; for perturb.")
]
Frames = Annotated[str | None, typer.Option("--frames", help="XYZ file of frames, for --sampler file.")]
Geometries = Annotated[
    pathlib.Path, typer.Option("--geometries", help="XYZ file with one or more frames, ångström.")
]
Dask = Annotated[
    str | None,
    typer.Option("--dask", help="Spread the work: a scheduler's address, or `local` for all cores of this machine."),
]


def method_options(defaults: Mapping[str, Any] | None = None) -> Options:
    """Return the options of a Kohn–Sham method.

    Args:
      defaults: defaults that differ from those of `Method`.
    """
    xc = f"Functional, one of {', '.join(ql.FUNCTIONALS)}."
    return Options(ql.Method, panel="Method", defaults=defaults or {}, help={"xc": xc})


METHOD = method_options()
"""Options of a Kohn–Sham method."""


def sampling(
    sampler: str | None = None,
    temperature: float | None = None,
    sigma: float | None = None,
    frames: str | None = None,
) -> ql.Sampling:
    """Return the sampler that the options of a command describe."""
    values = {"sampler": sampler, "temperature": temperature, "sigma_bohr": sigma, "path": frames}
    return ql.Sampling(**{name: value for name, value in values.items() if value is not None})


def print_json(record: dict[str, Any]) -> None:
    """Print one object, alone on stdout."""
    typer.echo(json.dumps(record))


def fail(message: str, status: int) -> int:
    """Print an error in one line on stderr, and return the exit status."""
    stderr.print("qptlab: " + " ".join(message.split()), markup=False, soft_wrap=True)
    return status


def refuse_existing(path: pathlib.Path) -> None:
    """Check the path of a new file.

    Raises:
      InputError: if the file exists, or its folder does not.
    """
    if path.exists():
        raise InputError(f"Expected a new file, got {path}, which exists and is not overwritten; use a new name.")
    check_folder(path)


def check_folder(path: pathlib.Path) -> None:
    """Raise an `InputError` if the folder of a file that will be written does not exist."""
    if not path.parent.is_dir():
        raise InputError(f"Expected an existing folder, got {path.parent}, which does not exist; create it first.")
