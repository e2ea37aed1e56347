"""Commands that use a trained model of any kind."""

import pathlib
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

import qptlab as ql
from qptlab.cli.console import (
    LIMITS,
    Geometries,
    Json,
    MoleculeArgument,
    SkipBad,
    fail,
    print_json,
    refuse_existing,
    stderr,
)
from qptlab.cli.settings import Options, takes
from qptlab.models import limits
from qptlab.tables import table
from qptlab.units import AU_DEBYE, HARTREE_EV, HARTREE_MEV, significant

ModelArgument = Annotated[
    pathlib.Path,
    typer.Argument(metavar="MODEL", help="A run's folder, a model file, or a name that `qptlab models` lists."),
]
COLUMNS = {
    "energy_ha": ("energy", "energy, hartree", 1.0),
    "energy_error_mev": ("energy_error", "estimated error, meV", HARTREE_MEV),
    "residual_ha": ("residual", "residual, hartree", 1.0),
    "dipole_debye": ("dipole", "dipole moment, debye", AU_DEBYE),
    "gap_ev": ("gap", "gap, eV", HARTREE_EV),
}
"""Numbers that `predict` reports: property of a prediction, title and unit."""

RELAXATION = Options(ql.relax, ("fmax", "steps"))


def models(
    name: Annotated[str | None, typer.Argument(help="Name of a model, to print its card.")] = None,
    as_json: Json = False,
) -> None:
    """List the models that come with qptlab, or print the card of one: its training, errors and limits."""
    if name is not None:
        card = ql.model_card(name)
        print_json({"name": name, "card": card}) if as_json else typer.echo(card)
        return
    found = {name: ql.model_card(name).splitlines()[2] for name in ql.pretrained_models()}
    if as_json:
        print_json(found)
    else:
        typer.echo(table(["model", "trained on"], [[*line] for line in found.items()], "text"))


def evaluate(run: ModelArgument, geometries: Geometries, as_json: Json = False) -> None:
    """Measure the errors of a model and of its baselines, against PySCF or, for an OrbitalGNN, the file's labels."""
    frames = ql.read_xyz(geometries)  # before the model, which takes longer
    model = ql.load(run)
    data = frames if "dm" in model.provides else ql.read_labels(geometries)
    with Progress(console=stderr) as bar:
        task = bar.add_task("comparing with references", total=len(frames))
        evaluation = ql.evaluate(model, data, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        print_json(evaluation.to_dict())
    else:
        typer.echo(str(evaluation))


@takes(LIMITS)
def predict(
    run: ModelArgument,
    molecules: Annotated[
        list[str] | None,
        typer.Argument(metavar="MOLECULES", help="Built-in names, SMILES, XYZ files (ångström) or .smi files."),
    ] = None,
    geometries: Annotated[
        pathlib.Path | None, typer.Option(help="XYZ file with any number of frames, instead of MOLECULES.")
    ] = None,
    out: Annotated[
        pathlib.Path | None, typer.Option("--out", help="A new HDF5 file for all properties. Default: print a table.")
    ] = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Predict molecules, or the geometries of a file: a table, or every property in an HDF5 file.

    Predictions with an estimated error above --refuse-mev are left out.
    """
    if (geometries is None) == (not molecules):
        given = "both" if molecules else "neither"
        raise ql.InputError(f"Expected MOLECULES or --geometries, got {given}; use one of them.")
    frames = ql.read_xyz(geometries) if geometries else ql.read_molecules(molecules or [], skip_bad=skip_bad)
    model = ql.load(run)
    if out is not None:
        refuse_existing(out)
    with Progress(console=stderr) as bar:
        predictions = list(bar.track(model.map(frames), total=len(frames), description="predicting"))
    frames, predictions, refused = _accepted(frames, predictions, LIMITS.values(settings))
    if out is not None:
        ql.write_predictions(out, frames, predictions, model.label)
    columns = {key: (title, scale) for key, (name, title, scale) in COLUMNS.items() if name in model.provides}
    values = {
        key: [_number(getattr(p, COLUMNS[key][0])) * scale for p in predictions]
        for key, (_, scale) in columns.items() if key != "energy_ha"
    }
    record = {"out": out and str(out), "n": len(frames), "molecules": [mol.name or mol.formula for mol in frames],
              "method": model.label, "energy_ha": [float(p.energy) for p in predictions], **values,
              "refused": refused}
    if as_json:
        print_json(record)
    elif out is not None:
        errors = values.get("energy_error_mev")
        estimate = f"; estimated errors from {min(errors):.2g} to {max(errors):.2g} meV" if errors else ""
        typer.echo(f"{len(frames)} predictions written to {out}{estimate}")
    else:
        rows = zip(record["molecules"], *(record[key] for key in columns), strict=True)
        lines = [[name, f"{energy:.6f}", *(significant(value) for value in others)] for name, energy, *others in rows]
        typer.echo(table(["molecule", *(title for title, _ in columns.values())], lines, "text"))
        typer.echo(model.label)
    if refused:
        count = len(frames) + len(refused)
        fail(f"{len(refused)} of {count} predictions were refused. {next(iter(refused.values()))}", 1)
        raise typer.Exit(1)


def _accepted(
    frames: list[ql.Molecule], predictions: list[ql.Prediction], given: dict[str, float]
) -> tuple[list[ql.Molecule], list[ql.Prediction], dict[str, str]]:
    """Return the predictions within the limits of the estimated error, and the reasons for refusing the others."""
    accepted, kept, refused = [], [], {}
    with ql.error_limits(**given):
        for index, (mol, prediction) in enumerate(zip(frames, predictions, strict=True)):
            title = mol.name or mol.formula
            try:
                limits.check(prediction, title)
            except ql.InputError as error:
                refused[f"{index}: {title}"] = str(error)
            else:
                accepted.append(mol)
                kept.append(prediction)
    if not accepted:
        raise ql.InputError(next(iter(refused.values())))
    return accepted, kept, refused


def _number(value: Any) -> float:
    """Return a number with its sign (a negative estimated error is an alarm), and the length of a vector.

    >>> _number(-0.5), _number(np.array([3.0, 4.0]))
    (-0.5, 5.0)
    """
    return float(value) if np.ndim(value) == 0 else float(np.linalg.norm(value))


@takes(RELAXATION, LIMITS)
def relax(
    run: ModelArgument,
    molecule: MoleculeArgument,
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new XYZ file.")],
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Move a molecule's atoms to a minimum of a model's energy."""
    mol, model = ql.Molecule.parse(molecule), ql.load(run)
    refuse_existing(out)
    with ql.error_limits(**LIMITS.values(settings)), Progress(console=stderr) as bar:
        task = bar.add_task("relaxing", total=None)
        relaxed = ql.relax(
            mol, model, **RELAXATION.values(settings),
            progress=lambda step, force: bar.update(task, description=f"step {step}: {force:.3g} eV/Å"),
        )
    out.write_text(relaxed.molecule.to_xyz())
    record = {"out": str(out), "energy_ha": relaxed.energy, "fmax_ev_angstrom": relaxed.fmax,
              "steps": relaxed.steps, "converged": relaxed.converged, "energy_error_mev": None}
    if relaxed.energy_error is not None:
        record["energy_error_mev"] = relaxed.energy_error * HARTREE_MEV
    if as_json:
        print_json(record)
    else:
        typer.echo(f"energy {relaxed.energy:.9f} hartree after {relaxed.steps} steps, largest force "
                   f"{relaxed.fmax:.2g} eV/Å; written to {out}")
    if not relaxed.converged:
        fmax = settings["fmax"] or RELAXATION.fields["fmax"].default
        fail(
            f"Expected forces below {fmax:g} eV/Å after {relaxed.steps} steps, got {relaxed.fmax:.2g} eV/Å; use more "
            "--steps.", 1
        )
        raise typer.Exit(1)
