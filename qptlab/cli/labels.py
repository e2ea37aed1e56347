"""The command that labels geometries."""

import contextlib
import functools
import pathlib
from typing import Annotated, Any

import typer
from rich.progress import Progress

import qptlab as ql
from qptlab.cli.console import LIMITS, Dask, Geometries, Json, check_folder, method_options, print_json, stderr
from qptlab.cli.settings import refuse, takes
from qptlab.errors import InputError
from qptlab.evaluation import labels
from qptlab.models.contract import title_of
from qptlab.runtime import cluster

METHOD = method_options({"eri": "fitted"})


@takes(METHOD, LIMITS)
def label(
    geometries: Geometries,
    out: Annotated[
        pathlib.Path, typer.Option("--out", help="Extended XYZ file; one that exists is continued.")
    ],
    teacher: Annotated[
        pathlib.Path | None,
        typer.Option("--teacher", metavar="MODEL", help="Take the labels from this trained model instead of PySCF."),
    ] = None,
    dask: Dask = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Label geometries with energies, forces, dipoles, charges, gaps and eigenvalues of the atoms' densities."""
    if teacher is not None and dask is not None:
        raise InputError(
            f"Expected --teacher or --dask, got both ({teacher}, {dask}); leave out --dask, since a teacher works on "
            "this machine only."
        )
    frames = ql.read_xyz(geometries)
    check_folder(out)
    if teacher is None:
        refuse(settings, LIMITS.fields, "for labels of PySCF")
        method = ql.Method(**METHOD.values(settings))
        maker = functools.partial(labels.from_pyscf, method=method)
        theory = f"{method.label}, {method.eri} integrals, grid level {method.grid_level}"
    else:
        refuse(settings, METHOD.fields, "for labels of a --teacher")
        model = ql.load(teacher)
        maker = functools.partial(labels.from_model, model=model)
        theory = f"{model.label}, by the {title_of(model.kind)} {teacher.resolve().name}"
    reasons: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(ql.error_limits(**LIMITS.values(settings)))
        executor = stack.enter_context(cluster.executor(dask)) if dask else None
        bar = stack.enter_context(Progress(console=stderr))
        task = bar.add_task("labelling", total=len(frames))
        data = labels.label(
            frames, maker, out, lambda done: bar.update(task, completed=done), executor,
            theory=theory, refused=reasons.append,
        )
    record = {"out": str(out), "n": len(data.molecules), "left_out": len(frames) - len(data.molecules)}
    if as_json:
        print_json(record)
    else:
        left_out = f"; {record['left_out']} could not be labelled: {reasons[-1]}" if reasons else ""
        typer.echo(f"{record['n']} labels in {out}{left_out}")
