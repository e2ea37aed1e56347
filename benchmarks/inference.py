"""Time of a prediction, from positions to energy and orbitals, compared with PySCF's SCF on the same cores.

    python benchmarks/inference.py [--run runs/uracil]

Both programs take turns on the same geometries of dynamics at 500 K, with all cores. Functions are compiled before.
The time of a prediction includes integrals, features, network, DFT iterations and the last Fock matrix. It does not
depend on the parameters, so without a run a network with random parameters is timed, and errors are left out. Writes
`results/inference.json` and `.md`.
"""

import itertools
import pathlib
import statistics
import time
from typing import Annotated

import jax
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation import reference

GEOMETRIES = 5
STRIDE = 40
SEED = 20_240_204


def measure(predictor: ql.CorrectionPredictor, mol: ql.Molecule) -> dict:
    """Return the times of a prediction and of PySCF, with exact and with fitted integrals, and the errors."""
    stream = ql.sample(mol, ql.Sampling("md"), SEED)
    frames = itertools.islice(stream, 0, (GEOMETRIES + 1) * STRIDE, STRIDE)
    rows = []
    for frame in frames:
        system, pose = predictor.locate(mol.with_positions(frame))
        began = time.perf_counter()
        prediction = predictor.in_frame(system, pose.positions)
        seconds = time.perf_counter() - began
        posed = mol.with_positions(pose.positions)
        exact = reference.converged(posed, predictor.method)
        fitted = reference.converged(posed, predictor.method, fitted=True)
        rows.append({
            "seconds": seconds, "pyscf_s": exact.seconds, "pyscf_fitted_s": fitted.seconds, "cycles": exact.cycles,
            "threads": exact.threads, "error_mev": reference.energy_errors_mev([prediction], [exact])[0],
            "error_same_fit_mev": reference.energy_errors_mev([prediction], [fitted])[0],
        })
    warm = rows[1:]  # the first geometry compiles
    record = {key: statistics.median(row[key] for row in warm) for key in rows[0]}
    for key in ("pyscf_s", "pyscf_fitted_s"):
        record[f"{key[:-2]}_ratio"] = statistics.median(row[key] / row["seconds"] for row in warm)
    for key in ("error_mev", "error_same_fit_mev"):
        record[key] = statistics.mean(abs(row[key]) for row in warm)
    return record


def fresh(molecule: str, xc: str, iterations: int, eri: str) -> ql.CorrectionPredictor:
    """Return a model with random parameters."""
    config = ql.EquivariantConfig(iterations=iterations)
    systems, kinds = ql.make_systems([ql.Molecule.parse(molecule)], ql.Method(xc, "def2-svp", 1, eri=eri), config)
    model = ql.CorrectionModel(config, kinds)
    return ql.CorrectionPredictor(model, model.init(jax.random.key(0)), systems)


def main(
    run: Annotated[pathlib.Path | None, typer.Option(help="Run folder of a model to time and to compare.")] = None,
    molecules: str = "water,ethanol,uracil",
) -> None:
    """Measure, and write the table."""
    rows = []
    if run is None:
        for molecule, xc, eri, n in itertools.product(
            molecules.split(","), ("pbe", "b3lyp"), ("exact", "fitted"), (0, 2)
        ):
            row = measure(fresh(molecule, xc, n, eri), ql.Molecule.parse(molecule))
            rows.append({"molecule": molecule, "xc": xc, "eri": eri, "iterations": n, "trained": False, **row})
            typer.echo(f"{molecule} {xc} {eri} n = {n}: {row['seconds']:.3g} s, PySCF {row['pyscf_s']:.3g} s")
    else:
        predictor = ql.load(run)
        config = predictor.model.config
        for system in predictor.systems:
            row = measure(predictor, system.molecule)
            rows.append({
                "molecule": system.molecule.name or system.molecule.formula, "xc": predictor.method.functional.name,
                "eri": system.template.eri, "iterations": config.iterations, "trained": True, **row,
            })
    command = "python benchmarks/inference.py" + (f" --run {run}" if run else f" --molecules {molecules}")
    machine = bench.machine()
    folder = pathlib.Path(__file__).parent / "results"
    name = "inference" if run is None else f"inference-{run.name}"
    record = {"command": command, "machine": machine, "rows": rows}
    page = [
        "# Time of a prediction and of PySCF's SCF", "", f"    {command}", "", bench.describe(machine), "",
        f"def2-SVP, grid level 1, the default network; medians of {GEOMETRIES} geometries, PySCF with "
        f"{rows[0]['threads']:.0f} threads; ratios are PySCF's time over ours. Only trained models have errors.",
        "",
        _table(rows), "",
    ]
    bench.keep(folder, name, record, "\n".join(page))


def _table(rows: list[dict]) -> str:
    """Return a table with a row for each molecule and method."""
    titles = ["molecule", "functional", "our integrals", "n", "prediction, s", "PySCF exact, s", "ratio",
            "PySCF fitted, s", "ratio", "PySCF's cycles", "error, meV", "against the same fit, meV"]
    lines = []
    for row in rows:
        errors = [f"{row[key]:.3g}" if row["trained"] else "" for key in ("error_mev", "error_same_fit_mev")]
        cells = [row["molecule"], row["xc"].upper(), row["eri"], row["iterations"], f"{row['seconds']:.3g}",
                 f"{row['pyscf_s']:.3g}", f"{row['pyscf_ratio']:.1f}", f"{row['pyscf_fitted_s']:.3g}",
                 f"{row['pyscf_fitted_ratio']:.1f}", f"{row['cycles']:.0f}", *errors]
        lines.append(cells)
    return tables.table(titles, lines, text_columns=3)


if __name__ == "__main__":
    typer.run(main)
