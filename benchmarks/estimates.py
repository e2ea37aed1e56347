"""Estimated errors and intervals of predictions, compared with converged energies, also of unusual geometries.

    python benchmarks/estimates.py [--frames 10] [--minutes 2] [--note "..."]

Models are `qm9-small` without DFT iterations, and a network that is trained here on ethanol for some minutes, without
and with two DFT iterations. Half of the frames are from GFN2-xTB dynamics at 500 K; in the others, one bond is
stretched by 15 to 100 % as well. Energies are compared with those that the engine converges in the same integrals and
grid from the same minao guess: the estimate contains neither the error of density fitting nor that of the grid.
Writes `results/estimates.json` and `.md` after each molecule.
"""

import itertools
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.models.limits import REFUSE_MEV, WARN_MEV
from qptlab.system import coordinates
from qptlab.units import HARTREE_MEV, significant

MOLECULES = ("O", "CCO", "C=CC=O", "CNC=O", "CC#N")
STRETCH = (1.15, 2.0)
SEED = 5


def frames(mol: ql.Molecule, count: int) -> Iterator[tuple[ql.Molecule, str]]:
    """Yield frames of dynamics, and as many with a stretched bond."""
    rng = np.random.default_rng(SEED)
    drawn = itertools.islice(ql.sample(mol, ql.Sampling("md"), SEED), 0, None, 8)
    bonds = [coordinate for coordinate in coordinates.coordinates(mol) if coordinate.unit == "Å"]
    for index, positions in enumerate(itertools.islice(drawn, 2 * count)):
        frame = mol.with_positions(positions)
        if index % 2:
            bond = bonds[int(rng.integers(len(bonds)))]
            length = coordinates.value(mol, bond) * rng.uniform(*STRETCH)
            yield coordinates.moved(frame, bond, length), "stretched"
        else:
            yield frame, "dynamics"


def measure(model: ql.CorrectionPredictor, mol: ql.Molecule, count: int) -> list[dict]:
    """Return the estimate, the interval and the error of each frame."""
    rows = []
    for frame, kind in frames(mol, count):
        prediction = model(frame)
        found = ql.scf(frame, model.method, solver="screened")
        low, high = prediction.energy_interval
        rows.append({
            "molecule": mol.name, "frame": kind, "converged": bool(found.converged),
            "error_mev": (float(prediction.energy) - float(found.energy)) * HARTREE_MEV,
            "estimate_mev": float(prediction.energy_error) * HARTREE_MEV,
            "is_inside": bool(low <= float(found.energy) <= high), "width_mev": (high - low) * HARTREE_MEV,
        })
    return rows


def table(rows: list[dict]) -> str:
    """Return a row for each model and kind of frames."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        for kind in ("dynamics", "stretched"):
            found = [row for row in rows if (row["model"], row["frame"]) == (name, kind) and row["converged"]]
            error, estimate, width = (np.array([row[key] for row in found]) for key in
                                      ("error_mev", "estimate_mev", "width_mev"))
            is_usual = np.isfinite(estimate) & (estimate > 1e-3)
            ratio = error[is_usual] / estimate[is_usual]
            refused = (estimate > REFUSE_MEV) | ~np.isfinite(width)
            spread = np.percentile(ratio, [2.5, 50, 97.5]) if len(ratio) else [np.nan] * 3
            lines.append([
                name, kind, len(found), f"{significant(np.median(error))} ({significant(error.max())})",
                *(f"{value:.3f}" for value in spread), f"{np.mean([row['is_inside'] for row in found]):.0%}",
                significant(float(np.median(width / np.maximum(np.abs(error), 1e-9)))),
                int(np.sum((estimate > WARN_MEV) & ~refused)), int(refused.sum()),
            ])
    titles = ["model", "frames", "number", "error, meV: median (largest)", "error / estimate: 2.5 %", "median",
              "97.5 %", "inside the interval", "width / error, median", "warnings", "refused"]
    return tables.table(titles, lines, text_columns=2)


def main(
    count: Annotated[int, typer.Option("--frames", help="Frames of each kind and molecule of qm9-small.")] = 10,
    minutes: Annotated[float, typer.Option(help="Time of the training on ethanol.")] = 2.0,
    note: Annotated[str, typer.Option(help="What else ran on the machine.")] = "",
) -> None:
    """Measure, and write the table."""
    warnings.filterwarnings("ignore", message=".* that the model was trained on.*")
    command = f"python benchmarks/estimates.py --frames {count} --minutes {minutes:g}"
    rows: list[dict] = []

    def keep(model: str, found: list[dict]) -> None:
        rows.extend({"model": model, **row} for row in found)
        record = {"command": command, "machine": bench.machine(), "note": note, "rows": rows}
        left_out = sum(not row["converged"] for row in rows)
        page = [
            "# Estimated errors of predictions", "", f"    {command}", "", bench.describe(record["machine"]), "",
            *([note, ""] if note else []),
            "Errors are distances of predicted energies from those that the engine converges in the same integrals "
            f"and grid. Stretched: one bond by 15 to 100 %. {left_out} frames are left out, whose SCF does not "
            f"converge. A prediction with an estimated error above {WARN_MEV:g} meV gives a warning; above "
            f"{REFUSE_MEV:g} meV, or with one that is negative, it is refused.", "", table(rows), "",
        ]
        bench.keep(pathlib.Path(__file__).parent / "results", "estimates", record, "\n".join(page))
        typer.echo(f"{model}: {found[0]['molecule']}")

    shipped = ql.load("qm9-small").with_iterations(0)
    for text in MOLECULES:
        keep("qm9-small, n = 0", measure(shipped, ql.Molecule.parse(text), count))
    mol = ql.Molecule.from_name("ethanol")
    with tempfile.TemporaryDirectory() as folder:
        config = ql.TrainConfig(minutes=minutes, validation=1)
        method, network = ql.Method("pbe", "sto-3g"), ql.EquivariantConfig(iterations=2)
        trainer = ql.Trainer(mol, method, network, config, out=pathlib.Path(folder) / "run")
        trainer.run()
        for n in (0, 2):
            name = f"ethanol, {minutes:g} min, n = {n}"
            keep(name, measure(trainer.predictor.with_iterations(n), mol, len(MOLECULES) * count // 2))


if __name__ == "__main__":
    typer.run(main)
