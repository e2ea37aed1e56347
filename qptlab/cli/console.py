"""Options that several commands share, and functions that print results and errors."""

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

import qptlab as ql
from qptlab import files
from qptlab.cli.settings import Options
from qptlab.errors import MAX_CHARACTERS, InputError, clipped
from qptlab.sampling import Sampler as SamplerRecord
from qptlab.sampling import Sampling, parameters, parameters_from_text, samplers

stderr = Console(stderr=True, highlight=False)


def _samplers_with(parameter: str) -> str:
    """Return the names of the samplers that have the given parameter."""
    return ", ".join(name for name in samplers() if parameter in parameters(name))


def _given(text: str) -> str:
    """Return the text of a molecule, from the standard input for "-"."""
    if text != "-":
        return text
    return files.piped(sys.stdin.buffer, "XYZ or SMILES", "the standard input") + "\n"


MoleculeArgument = Annotated[
    str,
    typer.Argument(
        metavar="MOLECULE", callback=_given,
        help="A built-in name, a SMILES or an XYZ file (ångström); - for XYZ or SMILES from the standard input.",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out lines of a .smi file that cannot be used, instead of an error.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Sampler = Annotated[
    str | None,
    typer.Option("--sampler", help=f"Sampler of the geometries, one of {', '.join(samplers())}. Default: md."),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", help=f"Temperature, K; for the samplers {_samplers_with('temperature')}."),
]
Sigma = Annotated[
    float | None,
    typer.Option(
        "--sigma", help=f"Standard deviation of displacements, bohr; for the samplers {_samplers_with('sigma_bohr')}."
    ),
]
Frames = Annotated[
    str | None, typer.Option("--frames", help=f"XYZ file of frames; for the sampler {_samplers_with('path')}.")
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option("--sampler-option", metavar="NAME=VALUE", help="Parameter of the sampler; may be repeated."),
]
Geometries = Annotated[
    pathlib.Path, typer.Option("--geometries", help="XYZ file with one or more frames, ångström.")
]
Dask = Annotated[
    str | None,
    typer.Option("--dask", help="Distribute the work: address of a Dask scheduler, or `local` for all cores."),
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

LIMITS = Options(ql.error_limits, ("warn_mev", "refuse_mev"), panel="Limits")
"""Options of commands that use predictions."""


def sampling(
    sampler: str | None = None,
    temperature: float | None = None,
    sigma: float | None = None,
    frames: str | None = None,
    options: list[str] | None = None,
) -> SamplerRecord:
    """Return the sampler that the options of a command describe.

    Raises:
      InputError: if the sampler is unknown, an option is not NAME=VALUE, or a parameter is unknown, missing or out of
        range.
    """
    named = {"temperature": temperature, "sigma_bohr": sigma, "path": frames}
    values = {name: value for name, value in named.items() if value is not None}
    name = sampler or "md"
    return Sampling(name, **(values | parameters_from_text(name, options or [])))


def print_json(record: dict[str, Any]) -> None:
    """Print one object, alone on stdout."""
    typer.echo(json.dumps(record))


def fail(message: str, status: int) -> int:
    """Print an error or a warning in one line on stderr, and return the exit status."""
    stderr.print("qptlab: " + clipped(" ".join(message.split()), MAX_CHARACTERS), markup=False, soft_wrap=True)
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
