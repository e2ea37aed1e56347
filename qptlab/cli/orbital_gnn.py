"""Commands that make labels, and train an OrbitalGNN on them."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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
    refuse_existing,
    stderr,
)
from qptlab.errors import InputError
from qptlab.evaluation import labels
from qptlab.models.operators import SOURCES
from qptlab.models.orbital_gnn import GNNPredictor
from qptlab.runtime import cluster
from qptlab.training import supervised as multitask
from qptlab.units import significant


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
        model = ql.Run.open(teacher).predictor()
        maker = functools.partial(labels.from_model, model=model)
        theory = f"{model.method.label}, by the QPT {teacher.resolve().name}"
    refused: list[str] = []
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(cluster.executor(dask)) if dask else None
        bar = stack.enter_context(Progress(console=stderr))
        task = bar.add_task("labelling", total=len(frames))
        found, _ = labels.label(
            frames, maker, out, lambda done: bar.update(task, completed=done), executor,
            theory=theory, refused=refused.append,
        )
    record = {"out": str(out), "n": len(found), "left_out": len(frames) - len(found)}
    if as_json:
        print_json(record)
    else:
        left = f"; {record['left_out']} could not be labelled: {refused[-1]}" if refused else ""
        typer.echo(f"{len(found)} labels in {out}{left}")


def train_gnn(
    data: Annotated[pathlib.Path, typer.Argument(metavar="LABELS", help="Extended XYZ, of `qptlab label` or yours.")],
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new HDF5 file.")],
    source: Annotated[str, typer.Option("--source", help=f"Of operators, one of {', '.join(SOURCES)}.")] = "gfn1",
    tasks: Annotated[
        str, typer.Option("--tasks", help="What to learn, with commas, each with its usual weight.")
    ] = ",".join(multitask.TASKS),
    steps: Annotated[int, typer.Option("--steps", help="Number of updates.")] = 1500,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of the frames to judge by.")] = 0.2,
    theory: Annotated[str, typer.Option("--theory", help="What the labels are, in words, to be kept.")] = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train an OrbitalGNN on labels, on several properties at once."""
    refuse_existing(out)
    config = _config(tasks, ql.GNNConfig(source), steps, seed)
    mols, known = labels.read(data)
    held = round(held_out * len(mols)) if 0 < held_out < 1 else 0
    order = np.random.default_rng([7, seed]).permutation(len(mols)).tolist()
    learned = {symbol for index in order[held:] for symbol in mols[index].symbols}
    # A frame with an element that none of the others has is learned from: there is nothing to judge by it.
    unseen = [index for index in order[:held] if learned.issuperset(mols[index].symbols)]
    rest = sorted(set(order) - set(unseen), key=order.index)
    if not unseen or not rest:
        raise InputError(f"a share of {held_out:g} of {len(mols)} frames leaves none to learn or to judge by; "
                         "0.2 of five or more would do.")
    model = multitask.vocabulary(mols, config.network)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=stderr) as bar:
        task = bar.add_task("low-cost method", total=len(mols))
        prepared = multitask.prepare(
            model, mols, known, forces=bool(config.forces), progress=lambda done, _: bar.update(task, completed=done)
        )
        bar.reset(task, total=steps)
        trained = multitask.train_gnn(
            model, prepared.take(rest), config, theory or f"labels of {data.name}",
            lambda step, loss: bar.update(task, completed=step, description=f"loss {loss:.3g}"),
        )
    trained.save(out)
    record = {"out": str(out), **_errors(trained, prepared.take(unseen))}
    if as_json:
        print_json(record)
    else:
        typer.echo(error_table(record) + f"\nkept in {out}")


def _config(tasks, network, steps, seed):
    chosen = [task.strip() for task in tasks.split(",")]
    strange = sorted(set(chosen) - set(multitask.TASKS))
    if strange:
        raise InputError(f"tasks {', '.join(strange)} are not known; some of {', '.join(multitask.TASKS)} would do.")
    left_out = {task: 0.0 for task in multitask.TASKS if task not in chosen}
    return dataclasses.replace(ql.MultitaskConfig(steps=steps, seed=seed, network=network), **left_out)


def gnn_errors(model: GNNPredictor, mols: list[ql.Molecule], known: list[labels.Label]) -> dict:
    """Errors of an OrbitalGNN on labels, and of its low-cost method with the linear fit; forces where known."""
    forces = any(np.isfinite(each.forces).any() for each in known)
    with Progress(console=stderr) as bar:
        task = bar.add_task("estimating", total=len(mols))
        prepared = multitask.prepare(
            model.model, mols, known, forces=forces, progress=lambda done, _: bar.update(task, completed=done)
        )
    return _errors(model, prepared)


def _errors(model, prepared):
    def numbers(judged):
        return {name: None if math.isnan(value) else value for name, value in judged._asdict().items()}

    return {
        "n": len(prepared.labels.energy), **numbers(multitask.judge(model, prepared)),
        "baselines": {"low_cost": numbers(multitask.judge(model.without_network(), prepared))},
    }


def error_table(record: dict) -> str:
    """Mean absolute errors beside the baseline's, for people."""
    lines = [f"mean absolute errors on {record['n']} geometries", f"{'':16}{'OrbitalGNN':>14}{'without it':>14}"]
    for key, name in multitask.ERROR_COLUMNS.items():
        if record[key] is not None:
            plain = record["baselines"]["low_cost"][key]
            lines.append(f"{name:16}{significant(record[key]):>14}{significant(plain):>14}")
    return "\n".join(lines)
