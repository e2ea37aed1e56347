"""OrbitalGNNs that learn from a QPT or from PySCF: their errors, and the cost of the labels.

    qptlab train ethanol --xc pbe --basis sto-3g -n 2 --minutes 10 --out runs/ethanol
    python benchmarks/teacher.py runs/ethanol [--sizes 25,100,400]

The QPT was trained without labels, so its student needs no label from PySCF. Both students have the same geometries
from dynamics at 500 K, the same properties and the same number of updates. Their errors, those of the teacher, and
those of GFN1-xTB with a linear fit are measured against PySCF on geometries of an independent trajectory. Labels are
computed one after another on all cores; the first one, which compiles, does not count. Writes `results/teacher.json`
and `.md`.
"""

import functools
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import orbital_gnn
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation import labels
from qptlab.evaluation.labelled import label_errors, prepare
from qptlab.random_streams import Purpose
from qptlab.training.supervised import vocabulary
from qptlab.units import HARTREE_MEV, significant

STRIDE, TEST, SEED = 10, 40, 20_240_207
"""Frames of a trajectory from one geometry to the next; number of test geometries; seed of the trajectories."""


def frames(mol: ql.Molecule, count: int, purpose: Purpose) -> list[ql.Molecule]:
    """Return geometries of dynamics at 500 K."""
    stream = ql.sample(mol, ql.Sampling("md"), SEED, purpose=purpose)
    return [mol.with_positions(frame) for frame in itertools.islice(stream, 0, count * STRIDE, STRIDE)]


def label(mols: list[ql.Molecule], maker: Callable[[ql.Molecule], labels.Label]) -> tuple[list[labels.Label], float]:
    """Return the labels, and the time that they took, s."""
    maker(mols[0])
    began = time.perf_counter()
    return [maker(mol) for mol in mols], time.perf_counter() - began


def measure(teacher: ql.CorrectionPredictor, sizes: list[int], seeds: int, steps: int) -> dict:
    """Return the errors of students of both teachers for each size and seed, and the time of a label."""
    mol, method = teacher.systems[0].molecule, teacher.method
    # One more than is trained on: each training holds one geometry out.
    training = frames(mol, max(sizes) + 1, Purpose.TRAINING_GEOMETRIES)
    unseen = frames(mol, TEST, Purpose.TEST_GEOMETRIES)
    makers = {"QPT": functools.partial(labels.from_model, model=teacher),
              "PySCF": functools.partial(labels.from_pyscf, method=method)}
    labelled = {name: label(training, maker) for name, maker in makers.items()}
    references, _ = label(unseen, makers["PySCF"])
    model = vocabulary(training, ql.GNNConfig())
    test = prepare(model, unseen, references, forces=True)
    prepared = {name: prepare(model, training, answers, forces=True) for name, (answers, _) in labelled.items()}
    rows = []
    for name, size, seed in itertools.product(labelled, sizes, range(seeds)):
        part = range(size + 1)
        data = ql.LabelledSet(training, labelled[name][0], method.label).take(part)
        student, seconds = orbital_gnn.train(data, prepared[name].take(part), model, steps, seed, ql.TaskWeights())
        rows.append({"teacher": name, "size": size, "seed": seed, "seconds": seconds,
                     **label_errors(student, test).to_dict(),
                     "baseline": label_errors(student.without_network(), test).to_dict()})
        typer.echo(f"{name}, {size} geometries, seed {seed}: {rows[-1]['energy_mae_mev']:.2f} meV", err=True)
    errors = [float(teacher(mol).energy) - answer.energy for mol, answer in zip(unseen, references, strict=True)]
    return {"rows": rows, "label_s": {name: seconds / len(training) for name, (_, seconds) in labelled.items()},
            "teacher_mae_mev": float(np.abs(errors).mean()) * HARTREE_MEV}


def main(
    run: Annotated[pathlib.Path, typer.Argument(help="Run folder of a QPT of one molecule.")],
    sizes: Annotated[str, typer.Option(help="Numbers of labelled geometries.")] = "25,100,400",
    seeds: int = 2, steps: int = 600,
) -> None:
    """Measure, and write the table."""
    teacher = ql.load(run)
    mol = teacher.systems[0].molecule
    record = {
        "command": f"python benchmarks/teacher.py {run} --sizes {sizes} --seeds {seeds} --steps {steps}",
        "machine": bench.machine(), "molecule": mol.name or mol.formula, "method": teacher.label,
        **measure(teacher, [int(size) for size in sizes.split(",")], seeds, steps),
    }
    results = pathlib.Path(__file__).parent / "results"
    text = page(record)
    bench.keep(results, "teacher", record, text)
    typer.echo(text)


def page(record: dict) -> str:
    """Return the table and its description."""
    rows, names, lines = record["rows"], orbital_gnn.NAMES, []
    for size in sorted({row["size"] for row in rows}):
        for teacher, seconds in record["label_s"].items():
            members = [row for row in rows if (row["size"], row["teacher"]) == (size, teacher)]
            cells = [significant(float(np.mean([row[name] for row in members]))) for name in names]
            lines.append([size, teacher, *cells, significant(size * seconds)])
    plain = [significant(float(np.mean([row["baseline"][name] for row in rows]))) for name in names]
    lines.append(["", "GFN1-xTB and a linear fit", *plain, ""])
    return "\n".join([
        "# An OrbitalGNN that learns from a QPT", "", f"    {record['command']}", "",
        bench.describe(record["machine"]), "",
        f"{record['molecule']}, {record['method']}. Error of the teacher: "
        f"{significant(record['teacher_mae_mev'])} meV. Mean absolute errors against PySCF on {TEST} unseen "
        f"geometries, means over {1 + max(row['seed'] for row in rows)} seeds.", "",
        tables.table(["geometries", "labels from", *orbital_gnn.TITLES, "labels, s"], lines, text_columns=2), "",
    ])


if __name__ == "__main__":
    typer.run(main)
