"""Memory that trainings leave behind in one process.

    python benchmarks/memory.py [--trainings 20] [--steps 5] [--note "..."]

Two series, each in a process of its own: trainings of one molecule, and trainings of a new molecule each time. After
each training the resident memory of the process is measured. Slopes are those of straight lines from the third
training on. Writes `results/memory.json` and `.md`.
"""

import concurrent.futures
import gc
import multiprocessing
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import psutil
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench, studies

WARM_UP = 2
"""Number of trainings before the straight line begins: they load libraries and compile."""

METHOD = ql.Method("pbe", "sto-3g")


def series(molecules: Sequence[str], steps: int) -> list[float]:
    """Return the resident memory after the training of each molecule, MiB."""
    config = ql.TrainConfig(minutes=None, steps=steps, validation=1, sampling=ql.Sampling("perturb"))
    memory = []
    for text in molecules:
        with tempfile.TemporaryDirectory() as folder:
            ql.Trainer(ql.Molecule.parse(text), METHOD, ql.EquivariantConfig("small"), config, f"{folder}/run").run()
        gc.collect()
        memory.append(psutil.Process().memory_info().rss / 2**20)
    return memory


def main(
    trainings: Annotated[int, typer.Option(help="Number of trainings of each series.")] = 20,
    steps: Annotated[int, typer.Option(help="Updates of each training.")] = 5,
    note: Annotated[str, typer.Option(help="What else ran on the machine.")] = "",
) -> None:
    """Measure, and write the table."""
    cases = {"water again and again": ["water"] * trainings,
             "a new molecule each time": studies.small_molecules()[:trainings]}
    rows = []
    for title, molecules in cases.items():
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory = pool.submit(series, molecules, steps).result()
        slope = float(np.polyfit(np.arange(WARM_UP, trainings), memory[WARM_UP:], 1)[0])
        rows.append({"series": title, "molecules": list(molecules), "memory_mib": memory, "slope_mib": slope})
        typer.echo(f"{title}: {slope:.2f} MiB a training")
    record = {"command": f"python benchmarks/memory.py --trainings {trainings} --steps {steps}",
              "machine": bench.machine(), "note": note, "rows": rows}
    lines = [
        [row["series"], *(f"{row['memory_mib'][index]:.0f}" for index in (0, WARM_UP, -1)), f"{row['slope_mib']:.2f}"]
        for row in rows
    ]
    titles = ["trainings", "memory after the first, MiB", "the third", "the last", "slope, MiB a training"]
    text = [
        "# Memory that trainings leave behind", "", f"    {record['command']}", "", bench.describe(record["machine"]),
        "", *([note, ""] if note else []),
        f"{trainings} trainings of {steps} updates in one process, {METHOD.label}; resident memory of the process "
        "after each. A new molecule has functions of its own shape, which are compiled and kept.", "",
        tables.table(titles, lines, text_columns=1), "",
    ]
    bench.keep(pathlib.Path(__file__).parent / "results", "memory", record, "\n".join(text))


if __name__ == "__main__":
    typer.run(main)
