"""Commands that make labels, and train an OrbitalGNN on them."""

import contextlib
import functools
import pathlib
from typing import Annotated

import typer
from rich.progress import Progress

import qptlab as ql
from qptlab.cli.console import (
    XC,
    Basis,
    Dask,
    Eri,
    Geometries,
    GridLevel,
    Json,
    Seed,
    check_folder,
    print_json,
    stderr,
)
from qptlab.errors import InputError
from qptlab.evaluation import labels
from qptlab.models.operators import SOURCES
from qptlab.runtime import cluster
from qptlab.training.config import TASKS


def label(
    geometries: Geometries,
    out: Annotated[pathlib.Path, typer.Option("--out", help="Extended XYZ; one begun before is gone on with.")],
    xc: XC = "pbe",
    basis: Basis = "def2-svp",
    grid_level: GridLevel = 1,
    eri: Eri = "fitted",
    teacher: Annotated[
        pathlib.Path | None, typer.Option("--teacher", help="A run whose QPT says the labels, instead of PySCF.")
    ] = None,
    dask: Dask = None,
    as_json: Json = False,
) -> None:
    """Label geometries: energies, forces, dipoles, charges, gaps and the density's eigenvalues, atom by atom."""
    if teacher is not None and dask is not None:
        raise InputError("--teacher and --dask were given; a teacher works on this machine: one of the two would do.")
    frames = ql.read_xyz(geometries)
    check_folder(out)
    if teacher is None:
        method = ql.Method(xc, basis, grid_level, eri)
        maker = functools.partial(labels.from_pyscf, method=method)
        theory = f"{method.label}, {eri} integrals, grid level {grid_level}"
    else:
        model = ql.load(teacher)
        maker = functools.partial(labels.from_model, model=model)
        theory = f"{model.label}, by the QPT {teacher.resolve().name}"
    refused: list[str] = []
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(cluster.executor(dask)) if dask else None
        bar = stack.enter_context(Progress(console=stderr))
        task = bar.add_task("labelling", total=len(frames))
        found = labels.label(
            frames, maker, out, lambda done: bar.update(task, completed=done), executor,
            theory=theory, refused=refused.append,
        )
    record = {"out": str(out), "n": len(found.molecules), "left_out": len(frames) - len(found.molecules)}
    if as_json:
        print_json(record)
    else:
        left = f"; {record['left_out']} could not be labelled: {refused[-1]}" if refused else ""
        typer.echo(f"{len(found.molecules)} labels in {out}{left}")


def train_gnn(
    data: Annotated[pathlib.Path, typer.Argument(metavar="LABELS", help="Extended XYZ, of `qptlab label` or yours.")],
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new HDF5 file.")],
    source: Annotated[str, typer.Option("--source", help=f"Of operators, one of {', '.join(SOURCES)}.")] = "gfn1",
    tasks: Annotated[
        str, typer.Option("--tasks", help="What to learn, with commas, each with its usual weight.")
    ] = ",".join(TASKS),
    steps: Annotated[int, typer.Option("--steps", help="Number of updates.")] = 1500,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of the frames to judge by.")] = 0.2,
    theory: Annotated[str, typer.Option("--theory", help="What the labels are, in words, to be kept.")] = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train an OrbitalGNN on labels, on several properties at once."""
    trainer = ql.Trainer(
        ql.read_labels(data), model=ql.GNNConfig(source),
        train=ql.TrainConfig.supervised(
            steps=steps, seed=seed, tasks=ql.TaskWeights.only(*(task.strip() for task in tasks.split(","))),
            validation=max(1, round(held_out * len(ql.read_labels(data).molecules))),
        ), out=out,
    )
    trainer.run()
    errors = trainer.objective.validate(trainer.validation, trainer._state.average)
    record = {"out": str(out), "n": len(trainer.validation[0].molecules), **errors[0][1].to_dict(),
              "baselines": {"low_cost": errors[1][1].to_dict()}}
    if as_json:
        print_json(record)
    else:
        typer.echo(str(ql.evaluate(trainer.predictor, trainer.validation[0])) + f"\nkept in {out}")
