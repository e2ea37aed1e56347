"""Commands that use a trained model of any kind."""

import pathlib
from typing import Annotated, Any

import typer
from rich.progress import Progress

import qptlab as ql
from qptlab.cli.console import Geometries, Json, MoleculeArgument, fail, print_json, refuse_existing, stderr
from qptlab.cli.settings import Options, takes

ModelArgument = Annotated[
    pathlib.Path, typer.Argument(metavar="MODEL", help="A run's folder, or a model file.")
]
RELAXATION = Options(ql.relax, ("fmax", "steps"))


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


def predict(
    run: ModelArgument,
    geometries: Geometries,
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new HDF5 file.")],
    as_json: Json = False,
) -> None:
    """Predict geometries into an HDF5 file, with every property that the model predicts."""
    frames = ql.read_xyz(geometries)
    model = ql.load(run)
    refuse_existing(out)
    with Progress(console=stderr) as bar:
        predictions = list(bar.track(model.map(frames), total=len(frames), description="predicting"))
    ql.write_predictions(out, frames, predictions, model.label)
    record = {"out": str(out), "n": len(frames), "energy_ha": [float(p.energy) for p in predictions]}
    message = f"{len(frames)} predictions written to {out}"
    if "residual" in model.provides:
        residuals = record["residual_ha"] = [float(p.residual) for p in predictions]
        message += f"; residuals from {min(residuals):.2e} to {max(residuals):.2e} hartree"
    if as_json:
        print_json(record)
    else:
        typer.echo(message)


@takes(RELAXATION)
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
    with Progress(console=stderr) as bar:
        task = bar.add_task("relaxing", total=None)
        relaxed = ql.relax(
            mol, model, **RELAXATION.values(settings),
            progress=lambda step, force: bar.update(task, description=f"step {step}: {force:.3g} eV/Å"),
        )
    out.write_text(relaxed.molecule.to_xyz())
    record = {"out": str(out), "energy_ha": relaxed.energy, "fmax_ev_angstrom": relaxed.fmax,
              "steps": relaxed.steps, "converged": relaxed.converged}
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
