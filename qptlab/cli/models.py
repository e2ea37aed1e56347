"""Commands that train a QPT, and that use any model."""

import pathlib
import time
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import qptlab as ql
from qptlab.cli.console import (
    XC,
    Basis,
    Eri,
    Frames,
    Geometries,
    GridLevel,
    Json,
    MoleculeArgument,
    Molecules,
    Sampler,
    Seed,
    Temperature,
    fail,
    print_json,
    refuse_existing,
    stderr,
)
from qptlab.dft.scf import GUESSES
from qptlab.models.qpt import PRECISIONS, PRESETS
from qptlab.training.config import LOSSES


def train(
    molecules: Molecules,
    out: Annotated[pathlib.Path, typer.Option("--out", help="The run's folder, new or empty.")],
    xc: XC = "pbe",
    basis: Basis = "def2-svp",
    grid_level: GridLevel = 1,
    eri: Eri = "auto",
    minutes: Annotated[float | None, typer.Option("--minutes", help="Training time; default 5.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Number of updates.")] = None,
    sampler: Sampler = "md",
    temperature: Temperature = 500.0,
    sigma: Annotated[float, typer.Option("--sigma", help="Of perturb, bohr.")] = 0.05,
    frames: Frames = "",
    preset: Annotated[str, typer.Option("--preset", help=f"Network, one of {', '.join(PRESETS)}.")] = "micro",
    precision: Annotated[
        str, typer.Option("--precision", help=f"Of the network, one of {', '.join(PRECISIONS)}.")
    ] = "float32",
    iterations: Annotated[int, typer.Option("-n", "--iterations", help="DFT iterations after the network.")] = 2,
    train_iterations: Annotated[
        int, typer.Option("--train-iterations", help="The same while training; -1 for as many as -n.")
    ] = 0,
    guess: Annotated[str, typer.Option("--guess", help=f"One of {', '.join(GUESSES)}.")] = "minao",
    loss: Annotated[str, typer.Option("--loss", help=f"One of {', '.join(LOSSES)}.")] = "energy",
    batch: Annotated[int, typer.Option("--batch", help="Geometries per update.")] = 4,
    microbatch: Annotated[
        int | None, typer.Option("--microbatch", help="Geometries at a time, to save memory; default all.")
    ] = None,
    reuse: Annotated[int, typer.Option("--reuse", help="How often a geometry is used, on average.")] = 16,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest.")] = 1e-3,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Train a QPT on one molecule or several, without labels."""
    if minutes is None and steps is None:
        minutes = 5.0
    trainer = ql.Trainer(
        ql.read_molecules(molecules),
        ql.Method(xc, basis, grid_level, eri),
        ql.QPTConfig(preset, precision, iterations=iterations, guess=guess),
        ql.TrainConfig(
            minutes=minutes, steps=steps, seed=seed, loss=loss, batch=batch, microbatch=microbatch, reuse=reuse,
            iterations=None if train_iterations < 0 else train_iterations, learning_rate=learning_rate,
            sampling=ql.Sampling(sampler, temperature, sigma, frames),
        ),
        out=out,
        resume=resume,
    )
    try:
        _follow(trainer)
    except KeyboardInterrupt:
        trainer.stop()
        stderr.print(f"qptlab: stopped at step {trainer.step}; --resume goes on from there.")
        raise typer.Exit(1) from None
    trainer.run()  # has ended: raises what went wrong, if anything did
    record = _summary(trainer)
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{record['steps']} steps in {record['seconds']:.0f} s, {record['eri']} integrals, kept in {out}")
        for key in ("validation_mae_mev", "no_network_mae_mev", "pyscf_stopped_mae_mev"):
            if record[key] is not None:
                typer.echo(f"{key:24} {record[key]:.5g}")


def _summary(trainer) -> dict:
    rows = trainer.rows
    judged = next((row for row in reversed(rows) if "validation_mae_mev" in row), {})
    return {
        "out": str(trainer.out),
        "molecules": [mol.formula for mol in trainer.molecules],
        "eri": trainer.predictor.systems[0].template.eri,
        "steps": trainer.step,
        "seconds": rows[-1]["seconds"] if rows else 0.0,
        "energy_ha": rows[-1]["energy_ha"] if rows and trainer.train_config.loss != "labels" else None,
        "validation_mae_mev": judged.get("validation_mae_mev"),
        "no_network_mae_mev": judged.get("no_network_mae_mev"),
        "pyscf_stopped_mae_mev": judged.get("pyscf_stopped_mae_mev"),
        "data_wait_s": sum(row["data_wait_s"] for row in rows),
        "compile_s": sum(row["compile_s"] for row in rows),
    }


def _follow(trainer) -> None:
    """Show the events of a trainer on stderr until it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task("starting", total=1.0)
        seen = len(trainer.events())  # a resumed run brings its earlier ones
        trainer.start()
        alive = True
        while alive:
            alive = trainer.is_alive
            new = trainer.events(seen)
            seen += len(new)
            for event in new:
                if event.kind == "step" and event.row is not None:
                    done = trainer.train_config.progress(event.row["step"], event.row["seconds"])
                    bar.update(task, completed=done)
                elif event.kind == "validation" and event.row is not None:
                    bar.update(task, description=f"step {event.row['step']}: {event.text}")
                    if not stderr.is_terminal:
                        stderr.print(f"step {event.row['step']}: {event.text}")
                elif event.kind in ("compiling", "news"):
                    bar.update(task, description=event.text)
            time.sleep(0.2)


ModelArgument = Annotated[pathlib.Path, typer.Argument(
    metavar="MODEL", help="A run's folder, or the file of an OrbitalGNN."
)]


def evaluate(run: ModelArgument, geometries: Geometries, as_json: Json = False) -> None:
    """Errors of a trained model, beside its baselines: against PySCF, an OrbitalGNN's against the file's labels."""
    model = ql.load(run)
    with Progress(console=stderr) as bar:
        task = bar.add_task("comparing with references", total=None)
        found = ql.evaluate(model, geometries, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))


def predict(
    run: ModelArgument,
    geometries: Geometries,
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new HDF5 file.")],
    as_json: Json = False,
) -> None:
    """Predict geometries into an HDF5 file: a QPT energies, matrices and orbitals; an OrbitalGNN what it learned."""
    import h5py

    frames = ql.read_xyz(geometries)
    model = ql.load(run)
    refuse_existing(out)
    names = [name for name in ql.Prediction._fields if name in model.provides and name != "nocc"]
    with Progress(console=stderr) as bar:
        task = bar.add_task("predicting", total=len(frames))
        predictions = []
        # A wrong molecule is found before anything is written.
        for prediction in model.map(frames):
            predictions.append(prediction)
            bar.advance(task)
    with h5py.File(out, "x") as file:
        file.attrs["method"] = model.label
        file.attrs["units"] = "hartree, bohr"
        formulas: dict[str, list[int]] = {}
        for index, frame in enumerate(frames):
            formulas.setdefault(frame.formula, []).append(index)
        for formula, members in formulas.items():
            # What has one formula has arrays of one shape; several have a group each.
            group = file if len(formulas) == 1 else file.create_group(formula)
            group["frame"] = np.array(members)
            group["atomic_numbers"] = np.stack([frames[i].atomic_numbers for i in members])
            group["positions"] = np.stack([frames[i].positions for i in members])
            group["charge"] = np.array([frames[i].charge for i in members])
            for name in names:
                group[name] = np.stack([getattr(predictions[i], name) for i in members])
    record = {"out": str(out), "n": len(frames), "energy_ha": [float(p.energy) for p in predictions]}
    said = f"{len(frames)} predictions written to {out}"
    if "residual" in model.provides:
        residuals = record["residual_ha"] = [float(p.residual) for p in predictions]
        said += f"; residuals from {min(residuals):.2e} to {max(residuals):.2e} hartree"
    if as_json:
        print_json(record)
    else:
        typer.echo(said)


def relax(
    run: ModelArgument,
    molecule: MoleculeArgument,
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new XYZ file.")],
    fmax: Annotated[float, typer.Option("--fmax", help="Largest force left on an atom, eV/Å.")] = 0.01,
    steps: Annotated[int, typer.Option("--steps", help="At most.")] = 200,
    as_json: Json = False,
) -> None:
    """Move a molecule's atoms to a minimum of a model's energy."""
    mol, model = ql.Molecule.parse(molecule), ql.load(run)
    refuse_existing(out)
    with Progress(console=stderr) as bar:
        task = bar.add_task("relaxing", total=None)
        found = ql.relax(
            mol, model, fmax=fmax, steps=steps,
            progress=lambda step, force: bar.update(task, description=f"step {step}: {force:.3g} eV/Å"),
        )
    out.write_text(found.molecule.to_xyz())
    record = {"out": str(out), "energy_ha": found.energy, "fmax_ev_angstrom": found.fmax, "steps": found.steps,
              "converged": found.converged}
    if as_json:
        print_json(record)
    else:
        typer.echo(f"energy {found.energy:.9f} hartree after {found.steps} steps, largest force "
                   f"{found.fmax:.2g} eV/Å; written to {out}")
    if not found.converged:
        fail(f"{steps} steps did not bring the forces below {fmax:g} eV/Å; more --steps would be worth a try.", 1)
        raise typer.Exit(1)
