"""Benefit of each property for OrbitalGNN's energies: trainings on the energy, on two properties, and on all.

    python benchmarks/tasks.py [--size 120] [--seeds 3] [--steps 600]

Run `benchmarks/orbital_gnn.py` first: its labels (in `runs/`) and its test molecules are used. All trainings have the
same molecules, updates and initial parameters; weights are the defaults of `TaskWeights`. Writes `results/tasks.json`
and `.md`.
"""

import itertools
import pathlib
from typing import Annotated

import numpy as np
import orbital_gnn
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation.labelled import Prepared, prepare
from qptlab.training.config import TASKS
from qptlab.training.supervised import vocabulary
from qptlab.units import significant

LEARNED = {
    "energy alone": ("energy",),
    **{f"energy, {name}": ("energy", name) for name in TASKS if name != "energy"},
    "all": TASKS,
}


def measure(
    data: ql.LabelledSet, prepared: Prepared, model: ql.OrbitalGNN, size: int, seeds: int, steps: int
) -> list[dict]:
    """Return the errors on the test molecules for each seed and choice of properties."""
    rows = []
    for seed, (name, learned) in itertools.product(range(seeds), LEARNED.items()):
        row = orbital_gnn.learn(data, prepared, model, size, seed, steps, ql.TaskWeights.only(*learned))[1]
        rows.append({"seed": seed, "way": name, **row})
        typer.echo(f"seed {seed}, {name}: {row['energy_mae_mev']:.1f} meV, {row['seconds']:.0f} s", err=True)
    return rows


def main(
    size: Annotated[int, typer.Option(help="Number of training molecules.")] = 120, seeds: int = 3, steps: int = 600,
) -> None:
    """Measure, and write the table."""
    data = orbital_gnn.labelled()
    model = vocabulary(data.molecules, ql.GNNConfig())
    prepared = prepare(model, data.molecules, data.labels, forces=True)
    rows = measure(data, prepared, model, size, seeds, steps)
    record = {"command": f"python benchmarks/tasks.py --size {size} --seeds {seeds} --steps {steps}",
              "machine": bench.machine(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    text = page(record)
    bench.keep(results, "tasks", record, text)
    typer.echo(text)


def page(record: dict) -> str:
    """Return the table and its description."""
    rows, names = record["rows"], orbital_gnn.NAMES
    alone = {row["seed"]: row["energy_mae_mev"] for row in rows if row["way"] == "energy alone"}
    lines = []
    for learned in LEARNED:
        members = [row for row in rows if row["way"] == learned]
        cells = [significant(float(np.mean([row[name] for row in members]))) for name in names]
        change = ", ".join(f"{100 * (row['energy_mae_mev'] / alone[row['seed']] - 1):+.0f}" for row in members)
        lines.append([learned, *cells, change, f"{np.mean([row['seconds'] for row in members]):.0f}"])
    titles = ["learned", *orbital_gnn.TITLES, "energy error compared with energy alone, %, each seed", "time, s"]
    return "\n".join([
        "# OrbitalGNN: benefit of each property", "", f"    {record['command']}", "",
        bench.describe(record["machine"]), "",
        f"{orbital_gnn.METHOD.label}; mean absolute errors on {orbital_gnn.TEST} unseen molecules, means over "
        f"{len(alone)} seeds. A property that was not learned has the error of GFN1-xTB.", "",
        tables.table(titles, lines), "",
    ])


if __name__ == "__main__":
    typer.run(main)
