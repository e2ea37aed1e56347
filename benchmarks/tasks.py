"""Which property helps OrbitalGNN's energies? Learned are the energy alone, the energy and one other, and all.

    python benchmarks/tasks.py [--size 120] [--seeds 3] [--steps 600]

After `benchmarks/orbital_gnn.py`, whose labels (in `runs/`) and test molecules it takes. Every way has the same
training molecules, updates and first parameters; weights are those of `TaskWeights`. Writes `results/tasks.json`
and `.md`.
"""

import itertools
import pathlib
from typing import Annotated

import numpy as np
import orbital_gnn
import typer

import qptlab as ql
from qptlab.benchmarking import bench
from qptlab.training.config import TASKS
from qptlab.units import significant

OTHERS = [name for name in TASKS if name != "energy"]
WAYS = {
    "energy alone": ("energy",),
    **{f"energy, {name}": ("energy", name) for name in OTHERS},
    "all": TASKS,
}


def measure(data: ql.LabelledSet, size: int, seeds: int, steps: int) -> list[dict]:
    """Return the errors on the test molecules for each choice of properties and each seed."""
    rows, (model, arrays) = [], orbital_gnn.prepared(data)
    for seed, (way, learned) in itertools.product(range(seeds), WAYS.items()):
        row = orbital_gnn.learn(data, model, arrays, size, seed, steps, ql.TaskWeights.only(*learned))[1]
        rows.append({"seed": seed, "way": way, **row})
        typer.echo(f"seed {seed}, {way}: {rows[-1]['energy_mae_mev']:.1f} meV, {rows[-1]['seconds']:.0f} s", err=True)
    return rows


def main(
    size: Annotated[int, typer.Option(help="Number of training molecules.")] = 120, seeds: int = 3, steps: int = 600,
) -> None:
    """Measure, and write the table."""
    rows = measure(orbital_gnn.labelled(), size, seeds, steps)
    record = {"command": f"python benchmarks/tasks.py --size {size} --seeds {seeds} --steps {steps}",
              "machine": bench.machine(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    text = page(record)
    bench.keep(results, "tasks", record, text)
    typer.echo(text)


def page(record: dict) -> str:
    """The table, in words."""
    rows, names = record["rows"], orbital_gnn.COLUMNS
    alone = {row["seed"]: row["energy_mae_mev"] for row in rows if row["way"] == "energy alone"}
    lines = [f"| learned | {' | '.join(names.values())} | energy error against that alone, %, by seed | time, s |",
             "|---|" + "--:|" * 7]
    for way in WAYS:
        mine = [row for row in rows if row["way"] == way]
        cells = [significant(float(np.mean([row[name] for row in mine]))) for name in names]
        change = ", ".join(f"{100 * (row['energy_mae_mev'] / alone[row['seed']] - 1):+.0f}" for row in mine)
        seconds = np.mean([row["seconds"] for row in mine])
        lines.append(f"| {way} | {' | '.join(cells)} | {change} | {seconds:.0f} |")
    return "\n".join([
        "# OrbitalGNN: what each property adds", "", f"    {record['command']}", "",
        bench.place(record["machine"]), "",
        f"{orbital_gnn.METHOD.label}; mean absolute errors on {orbital_gnn.TEST} unseen molecules, means over "
        f"{len(alone)} seeds. A property that was not learned has the error of GFN1-xTB.", "", *lines, "",
    ])


if __name__ == "__main__":
    typer.run(main)
