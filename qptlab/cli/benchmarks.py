"""The command that runs benchmarks."""

import contextlib
import pathlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

import qptlab as ql
from qptlab.cli.console import Json, print_json, stderr
from qptlab.errors import InputError
from qptlab.runtime import cluster

if TYPE_CHECKING:
    from qptlab.benchmarking.bench import Benchmark

MINUTES, SEEDS, XC, BASIS = 1.0, 2, "pbe", "sto-3g"
"""Defaults of a study."""


def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="A benchmark or a study. Default: all benchmarks of the engine, over an hour."
        ),
    ] = "",
    molecules: Annotated[str, typer.Option("--molecules", help="Names or SMILES, with commas.")] = "",
    minutes: Annotated[
        float | None, typer.Option("--minutes", help=f"Time of each training of a study. Default: {MINUTES:g}.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help=f"Seeds of a study. Default: {SEEDS}.")] = None,
    xc: Annotated[str | None, typer.Option("--xc", help=f"Functional of a study. Default: {XC}.")] = None,
    basis: Annotated[str | None, typer.Option("--basis", help=f"Basis set of a study. Default: {BASIS}.")] = None,
    dispersion: Annotated[
        str | None, typer.Option("--dispersion", help="Dispersion correction of a study. Default: none.")
    ] = None,
    out: Annotated[pathlib.Path | None, typer.Option("--out", help="Existing folder for tables and plots.")] = None,
    dask: Annotated[
        str | None, typer.Option("--dask", help="Scheduler of a study, with one worker on each machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the DFT engine with PySCF, or study what training depends on.

    Benchmarks of the engine: scf, fock, tensors, growth, start. Studies of training, which take --minutes, --seeds,
    --xc, --basis and --dispersion: scaling, iterations, guess, methods (with functionals and bases of its own),
    out-of-distribution, losses, labels.
    """
    from qptlab.benchmarking import bench, studies  # load what only benchmarks need

    if out is not None and not out.is_dir():
        raise InputError(f"Expected an existing folder, got {out}, which does not exist; create it first.")
    names = tuple(filter(None, molecules.split(",")))
    if name in studies.STUDIES:
        if studies.STUDIES[name]().has_methods and (xc or basis or dispersion):
            raise InputError(
                f"Expected no --xc, --basis and --dispersion for {name}, which compares its own, got "
                f"{xc or basis or dispersion}; use a different study."
            )
        method = ql.Method(xc or XC, basis or BASIS, dispersion=dispersion)
        minutes, seeds = MINUTES if minutes is None else minutes, SEEDS if seeds is None else seeds
        _study(name, names, method, minutes, seeds, out, as_json, dask)
        return
    if name and name not in bench.NAMES:
        every = ", ".join((*bench.NAMES, *studies.STUDIES))
        raise InputError(f"Expected a benchmark or a study ({every}), got {name!r}; use one of these.")
    given = {"minutes": minutes, "seeds": seeds, "xc": xc, "basis": basis, "dispersion": dispersion, "dask": dask}
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"Expected no --{option} for {name or 'the engine'}, which measures a fixed set, got --{option} "
                f"{value}; use one of the studies ({', '.join(studies.STUDIES)})."
            )
    selected = {key: bench.benchmark(key, names) for key in ([name] if name else bench.NAMES)}
    rows = {key: _measure(key, benchmark, names, out) for key, benchmark in selected.items()}
    if as_json:
        print_json({"machine": bench.machine(), "benchmarks": rows})
    else:
        pages = (f"{selected[key].title}\n\n{bench.table(rows[key], selected[key].peer)}" for key in rows)
        typer.echo("\n\n".join(pages))


def _study(
    name: str, molecules: Sequence[str], method: ql.Method, minutes: float, seeds: int, out: pathlib.Path | None,
    as_json: bool, dask: str | None,
) -> None:
    """Run a study. A study that is stopped keeps its rows."""
    from qptlab.benchmarking import bench, studies

    if seeds < 1:
        raise InputError(f"Expected one or more seeds, got {seeds} seeds; use {SEEDS}.")
    selected, rows = studies.study(name, molecules), []
    corrected = ["--dispersion", method.dispersion] if method.dispersion else []
    level = [] if selected.has_methods else ["--xc", str(method.xc), "--basis", method.basis, *corrected]
    command = ["qptlab", "bench", name, *(["--molecules", ",".join(molecules)] if molecules else []),
               "--minutes", f"{minutes:g}", "--seeds", str(seeds), *level]
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(cluster.executor(dask)) if dask else None
        bar = stack.enter_context(Progress(console=stderr))
        task = bar.add_task(name, total=len(selected.settings) * seeds)
        for row in studies.measure(
            selected, method, minutes, seeds, lambda text: bar.update(task, description=text), executor
        ):
            rows.append(row)
            bar.advance(task)
            if out is not None:
                studies.write(name, selected, rows, method, out, shlex.join([*command, "--out", str(out)]))
            if not stderr.is_terminal:
                error = f"{row['setting']}, seed {row['seed']}: {row['energy_mae_mev']:.4g} meV"
                stderr.print(error, soft_wrap=True)
    if as_json:
        print_json({"machine": bench.machine(), "study": name, "rows": rows})
    else:
        typer.echo(f"{selected.title}\n\n{studies.table(rows)}")


def _measure(
    name: str, selected: "Benchmark", molecules: Sequence[str], out: pathlib.Path | None
) -> list[dict[str, Any]]:
    """Return the rows of a benchmark. A benchmark that is stopped keeps its rows."""
    from qptlab.benchmarking import bench

    rows = []
    command = ["qptlab", "bench", name, *(["--molecules", ",".join(molecules)] if molecules else [])]
    with Progress(console=stderr) as bar:
        task = bar.add_task(name, total=len(selected.cases))
        for row in bench.measure(selected):
            rows.append(row)
            bar.advance(task)
            if out is not None:
                bench.write(name, selected, rows, out, shlex.join([*command, "--out", str(out)]))
            if not stderr.is_terminal:
                done = f"{name} {len(rows)}/{len(selected.cases)}: {row['molecule']} {row['xc']}/{row['basis']}"
                stderr.print(f"{done} {row['eri']}", soft_wrap=True)
    return rows
