"""Cycles and time that PySCF's SCF needs from the density of a trained model and from PySCF's own guesses.

    qptlab train uracil --xc b3lyp --basis def2-svp -n 2 --train-iterations 0 --minutes 8 --out runs/uracil
    qptlab train ethanol --xc pbe --basis sto-3g -n 2 --minutes 5 --out runs/ethanol
    python benchmarks/pyscf_guess.py runs/uracil runs/ethanol

PySCF runs with its default settings and exact integrals on geometries of dynamics at 500 K that the model was not
trained on. It starts from minao, from atomic densities, from Hückel, from the model with 0 up to its number of DFT
iterations, and from the same iterations without the network. All guesses take turns on each geometry, with all cores.
Time and Fock builds of the prediction count; compilation does not. Writes `results/pyscf-guess.json` and `.md`.
"""

import itertools
import pathlib
import statistics
import time
from typing import Annotated

import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation import reference
from qptlab.units import significant

GEOMETRIES = 6
STRIDE = 40
SEED = 20_240_205
SAME_HARTREE = 1e-7
"""PySCF's default stops when the energy changes by less than 1e-9; results may differ by several times that."""


def starts(predictor: ql.CorrectionPredictor) -> dict:
    """Return the guesses by name: number of Fock builds, and a function of PySCF's calculation."""
    guesses = {name: (0, lambda mf, key=name: mf.get_init_guess(key=key)) for name in ("minao", "atom", "huckel")}
    for n in range(predictor.config.iterations + 1):
        model = predictor.with_iterations(n)
        for label, variant in (("model", model), ("no network", model.without_network())):
            guesses[f"{label}, n = {n}"] = n + 1, lambda mf, variant=variant: ql.guess(mf.mol, variant)
    return guesses


def measure(run: str) -> list[dict]:
    """Return cycles, Fock builds and seconds from every guess on every geometry."""
    predictor = ql.load(run)
    mol, method = predictor.systems[0].molecule, predictor.method
    stream = ql.sample(mol, ql.Sampling("md"), SEED)
    frames = list(itertools.islice(stream, 0, (GEOMETRIES + 1) * STRIDE, STRIDE))
    rows, guesses = [], starts(predictor)  # created once: each compiles its functions on the first geometry
    for index, frame in enumerate(frames):
        energies = []
        for name, (builds, start) in guesses.items():
            mf = reference.calculation(mol.with_positions(frame), method, fitted=False)
            mf.conv_tol = 1e-9  # PySCF's default
            began = time.perf_counter()
            dm = start(mf)
            guessed = time.perf_counter() - began
            mf.kernel(dm0=dm)
            energies.append(mf.e_tot)
            if not mf.converged or abs(mf.e_tot - energies[0]) > SAME_HARTREE:
                raise SystemExit(f"from {name} the SCF ends at {mf.e_tot}, from minao at {energies[0]}.")
            if index:  # the first geometry compiles
                rows.append({
                    "run": run, "molecule": mol.name or mol.formula, "method": method.label, "start": name,
                    "cycles": int(mf.cycles), "fock_builds": int(mf.cycles) + builds, "guess_s": guessed,
                    "seconds": time.perf_counter() - began, "geometry": index,
                })
    return rows


def main(runs: Annotated[list[str], typer.Argument(help="Run folders.")]) -> None:
    """Measure, and write the table."""
    rows = [row for run in runs for row in measure(run)]
    command = f"python benchmarks/pyscf_guess.py {' '.join(runs)}"
    results = pathlib.Path(__file__).parent / "results"
    record = {"command": command, "machine": bench.machine(), "rows": rows}
    bench.keep(results, "pyscf-guess", record, "\n".join([
        "# A model's density as the guess of PySCF's SCF", "", f"    {command}", "",
        bench.describe(record["machine"]), "",
        f"Medians over {GEOMETRIES} geometries. \"Saved\" is the median over geometries of the share that is saved "
        "compared with minao. Every SCF ends at the same energy.", "", *map(_training, runs), "", table(rows), "",
    ]))
    typer.echo(table(rows))


def _training(run: str) -> str:
    """Return a line about the training of a run."""
    rows = ql.Run.open(run).metrics()
    error = next((row["validation_mae_mev"] for row in reversed(rows) if "validation_mae_mev" in row), float("nan"))
    return (f"- {run}: {rows[-1]['step']:.0f} updates in {rows[-1]['seconds'] / 60:.0f} min, "
            f"error {significant(error)} meV on its validation geometries")


def table(rows: list[dict]) -> str:
    """Return a table with a row for each guess of each run."""
    titles = ["molecule, method", "guess", "cycles", "saved, %", "Fock builds, with the model's", "saved, %",
              "time, s", "saved, %"]
    lines = []
    for (run, start), members in _grouped(rows).items():
        usual = {row["geometry"]: row for row in rows if row["run"] == run and row["start"] == "minao"}
        cells = [f"{members[0]['molecule']}, {members[0]['method']}", start]
        for key, form in (("cycles", "{:g}"), ("fock_builds", "{:g}"), ("seconds", "{:.2f}")):
            saved = statistics.median(1 - row[key] / usual[row["geometry"]][key] for row in members)
            cells += [form.format(statistics.median(row[key] for row in members)), f"{100 * saved:.0f}"]
        lines.append(cells)
    return tables.table(titles, lines, text_columns=2)


def _grouped(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Return the rows of each run and guess."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["run"], row["start"]), []).append(row)
    return groups


if __name__ == "__main__":
    typer.run(main)
