"""An OrbitalGNN that learned from a QPT, beside one that learned from PySCF: error, and what the labels cost.

    qptlab train ethanol --xc pbe --basis sto-3g -n 2 --minutes 10 --out runs/ethanol
    python benchmarks/teacher.py runs/ethanol [--sizes 25,100,400]

The QPT was trained without a label, so its student is, too. Both students have the same geometries, of dynamics at
500 K, the same properties and the same number of updates, and are judged by PySCF on geometries of another
trajectory, beside their teacher and GFN1-xTB with a linear fit. Labels are made one after another on all cores, the
first (which compiles) not counted. Writes `results/teacher.json` and `.md`.
"""

import functools
import itertools
import pathlib
import time
from typing import Annotated

import numpy as np
import typer
from orbital_gnn import COLUMNS

import qptlab as ql
from qptlab.benchmarking import bench
from qptlab.evaluation import labels
from qptlab.evaluation.labelled import label_errors, prepare
from qptlab.training.supervised import Supervised, vocabulary
from qptlab.units import HARTREE_MEV, significant

STRIDE, TEST, SEED = 10, 40, 20_240_207
"""Frames of a trajectory between two geometries; test geometries; of their trajectories."""


def frames(mol: ql.Molecule, count: int, *, validation: bool) -> list[ql.Molecule]:
    """Geometries of dynamics at 500 K."""
    stream = ql.sample(mol, ql.Sampling("md"), SEED, validation=validation)
    return [mol.with_positions(frame) for frame in itertools.islice(stream, 0, count * STRIDE, STRIDE)]


def taught(mols: list[ql.Molecule], maker) -> tuple[list[labels.Label], float]:
    """Labels, and the seconds that they took."""
    maker(mols[0])
    began = time.perf_counter()
    return [maker(mol) for mol in mols], time.perf_counter() - began


def measure(predictor: ql.CorrectionPredictor, sizes: list[int], seeds: int, steps: int) -> dict:
    """Errors of students of both teachers, for each size and seed, and the cost of a label."""
    mol, method = predictor.systems[0].molecule, predictor.method
    rest, unseen = frames(mol, max(sizes), validation=False), frames(mol, TEST, validation=True)
    makers = {"QPT": functools.partial(labels.from_model, model=predictor),
              "PySCF": functools.partial(labels.from_pyscf, method=method)}
    made = {name: taught(rest, maker) for name, maker in makers.items()}
    truth, _ = taught(unseen, makers["PySCF"])
    model = vocabulary(rest, ql.GNNConfig())
    test = prepare(model, unseen, truth, forces=True)
    data = {name: prepare(model, rest, known, forces=True) for name, (known, _) in made.items()}
    rows = []
    for name, size, seed in itertools.product(data, sizes, range(seeds)):
        labelled = ql.LabelledSet(rest[:size], made[name][0][:size], method.label)
        began = time.perf_counter()
        # One of the geometries is held out, as every training on labels holds out some.
        objective = Supervised(labelled, ql.GNNConfig(), model=model, prepared=data[name].take(np.arange(size)))
        *_, (state, _) = ql.train(objective, ql.TrainConfig.supervised(steps=steps, seed=seed, validation=1))
        trained = objective.predictor(state.average)
        rows.append({"teacher": name, "size": size, "seed": seed, "seconds": time.perf_counter() - began,
                     **label_errors(trained, test).to_dict(),
                     "baseline": label_errors(trained.without_network(), test).to_dict()})
        typer.echo(f"{name}, {size} geometries, seed {seed}: {rows[-1]['energy_mae_mev']:.2f} meV", err=True)
    own = [float(predictor(each).energy) - label.energy for each, label in zip(unseen, truth, strict=True)]
    return {"rows": rows, "label_s": {name: seconds / len(rest) for name, (_, seconds) in made.items()},
            "teacher_mae_mev": float(np.abs(own).mean()) * HARTREE_MEV}


def main(
    run: Annotated[pathlib.Path, typer.Argument(help="Of a QPT of one molecule.")],
    sizes: Annotated[str, typer.Option(help="Numbers of labelled geometries.")] = "25,100,400",
    seeds: int = 2, steps: int = 600,
) -> None:
    """Measure, and write the table."""
    predictor = ql.load(run)
    mol = predictor.systems[0].molecule
    record = {
        "command": f"python benchmarks/teacher.py {run} --sizes {sizes} --seeds {seeds} --steps {steps}",
        "machine": bench.machine(), "molecule": mol.name or mol.formula, "method": predictor.method.label,
        **measure(predictor, [int(size) for size in sizes.split(",")], seeds, steps),
    }
    results = pathlib.Path(__file__).parent / "results"
    text = page(record)
    bench.keep(results, "teacher", record, text)
    typer.echo(text)


def page(record: dict) -> str:
    """The table, in words."""
    rows, names = record["rows"], COLUMNS
    lines = [f"| geometries | taught by | {' | '.join(names.values())} | labels, s |", "|--:|---|" + "--:|" * 6]
    for size in sorted({row["size"] for row in rows}):
        for teacher, seconds in record["label_s"].items():
            mine = [row for row in rows if (row["size"], row["teacher"]) == (size, teacher)]
            cells = [significant(float(np.mean([row[name] for row in mine]))) for name in names]
            lines.append(f"| {size} | {teacher} | {' | '.join(cells)} | {significant(size * seconds)} |")
    plain = [significant(float(np.mean([row["baseline"][name] for row in rows]))) for name in names]
    lines.append(f"| | GFN1-xTB and a linear fit | {' | '.join(plain)} | |")
    return "\n".join([
        "# An OrbitalGNN taught by a QPT", "", f"    {record['command']}", "", bench.place(record["machine"]), "",
        f"{record['molecule']}, {record['method']}. The teacher's own error: "
        f"{significant(record['teacher_mae_mev'])} meV. Mean absolute errors against PySCF on {TEST} unseen "
        f"geometries, means over {1 + max(row['seed'] for row in rows)} seeds.",
        "", *lines, "",
    ])


if __name__ == "__main__":
    typer.run(main)
