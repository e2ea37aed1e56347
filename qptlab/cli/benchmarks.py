"""The command that measures."""

import contextlib
import pathlib
import shlex
from typing import Annotated

import typer
from rich.progress import Progress

import qptlab as ql
from qptlab.cli.console import Json, print_json, stderr
from qptlab.errors import InputError
from qptlab.runtime import cluster


def bench(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Default: all of the engine's, which takes over an hour.")
    ] = "",
    molecules: Annotated[str, typer.Option("--molecules", help="Names or SMILES with commas, for its own.")] = "",
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Of each training, for a study; default 1.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="For a study; default 2.")] = None,
    xc: Annotated[str | None, typer.Option("--xc", help="For a study; default pbe.")] = None,
    basis: Annotated[str | None, typer.Option("--basis", help="For a study; default sto-3g.")] = None,
    out: Annotated[pathlib.Path | None, typer.Option("--out", help="Folder for tables and plots.")] = None,
    dask: Annotated[
        str | None, typer.Option("--dask", help="For a study: a scheduler's address; its workers, a machine each.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the DFT engine beside PySCF: scf, fock, tensors, growth, start; or what training depends on.

    The studies of training, for which --minutes, --seeds, --xc and --basis are: iterations, guess, size, molecules,
    losses, labels.
    """
    from qptlab.benchmarking import bench, studies  # load what only benchmarks need

    if out is not None and not out.is_dir():
        raise InputError(f"folder {out} does not exist; an existing folder would do.")
    given = tuple(filter(None, molecules.split(",")))
    if name in studies.STUDIES:
        method, minutes = ql.Method(xc or "pbe", basis or "sto-3g"), 1.0 if minutes is None else minutes
        _study(name, given, method, minutes, 2 if seeds is None else seeds, out, as_json, dask)
        return
    if name and name not in bench.NAMES:
        known = ", ".join((*bench.NAMES, *studies.STUDIES))
        raise InputError(f"benchmark {name!r} is not known; one of {known} would do.")
    for option, value in (("minutes", minutes), ("seeds", seeds), ("xc", xc), ("basis", basis), ("dask", dask)):
        if value is not None:
            raise InputError(
                f"--{option} {value} was given for {name or 'the engine'}, which measures a fixed set; "
                f"one of {', '.join(studies.STUDIES)} would do."
            )
    chosen = {each: bench.benchmark(each, given) for each in ([name] if name else bench.NAMES)}
    found = {each: _measure(each, chosen[each], given, out) for each in chosen}
    if as_json:
        print_json({"machine": bench.machine(), "benchmarks": found})
    else:
        tables = (f"{chosen[each].title}\n\n{bench.table(rows, chosen[each].peer)}" for each, rows in found.items())
        typer.echo("\n\n".join(tables))


def _study(name, molecules, method, minutes, seeds, out, as_json, dask) -> None:
    """Train and compare; what is done is kept when it is stopped."""
    from qptlab.benchmarking import bench, studies

    if seeds < 1:
        raise InputError(f"{seeds} seeds cannot be used; 2 would do.")
    chosen, rows = studies.study(name, molecules), []
    command = ["qptlab", "bench", name, *(["--molecules", ",".join(molecules)] if molecules else []),
               "--minutes", f"{minutes:g}", "--seeds", str(seeds), "--xc", method.xc, "--basis", method.basis]
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(cluster.executor(dask)) if dask else None
        bar = stack.enter_context(Progress(console=stderr))
        task = bar.add_task(name, total=len(chosen.settings) * seeds)
        found = studies.measure(
            chosen, method, minutes, seeds, lambda what: bar.update(task, description=what), executor
        )
        for row in found:
            rows.append(row)
            bar.advance(task)
            if out is not None:
                studies.write(name, chosen, rows, method, out, shlex.join([*command, "--out", str(out)]))
            if not stderr.is_terminal:
                said = f"{row['setting']}, seed {row['seed']}: {row['energy_mae_mev']:.4g} meV"
                stderr.print(said, soft_wrap=True)
    if as_json:
        print_json({"machine": bench.machine(), "study": name, "rows": rows})
    else:
        typer.echo(f"{chosen.title}\n\n{studies.table(rows)}")


def _measure(name, chosen, molecules, out) -> list[dict]:
    """Rows of one benchmark; what is done is kept when it is stopped."""
    from qptlab.benchmarking import bench

    rows = []
    command = ["qptlab", "bench", name, *(["--molecules", ",".join(molecules)] if molecules else [])]
    with Progress(console=stderr) as bar:
        task = bar.add_task(name, total=len(chosen.cases))
        for row in bench.measure(chosen):
            rows.append(row)
            bar.advance(task)
            if out is not None:
                bench.write(name, chosen, rows, out, shlex.join([*command, "--out", str(out)]))
            if not stderr.is_terminal:
                done = f"{name} {len(rows)}/{len(chosen.cases)}: {row['molecule']} {row['xc']}/{row['basis']}"
                stderr.print(f"{done} {row['eri']}", soft_wrap=True)
    return rows
