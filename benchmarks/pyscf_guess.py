"""How much of PySCF's SCF a trained model saves, as its initial guess, beside PySCF's own guesses.

    qptlab train uracil --xc b3lyp --basis def2-svp -n 2 --train-iterations 0 --minutes 8 --out runs/uracil
    qptlab train ethanol --xc pbe --basis sto-3g -n 2 --minutes 5 --out runs/ethanol
    python benchmarks/pyscf_guess.py runs/uracil runs/ethanol

For each run, on geometries of dynamics at 500 K that it was not trained on: PySCF with its default settings and exact
integrals begins with minao, atomic densities, Hückel, the model with 0 up to its own number of DFT iterations, and
the same iterations with the network switched off. They take turns on each geometry, all with all cores. Seconds and
Fock builds of the prediction are in those of the SCF; compilation is not. Writes
`results/pyscf-guess.json` and `.md`.
"""

import itertools
import pathlib
import statistics
import time
from typing import Annotated

import typer

import qptlab as ql
from qptlab.benchmarking import bench
from qptlab.evaluation import reference
from qptlab.units import significant

GEOMETRIES = 6
STRIDE = 40
SEED = 20_240_205
SAME_HARTREE = 1e-7
"""PySCF's default stops when an energy changes by less than 1e-9; starts may differ by some times that."""


def starts(predictor: ql.CorrectionPredictor) -> dict:
    """What an SCF may begin with: by name, its Fock builds and a function of a PySCF molecule."""
    found = {name: (0, lambda mf, key=name: mf.get_init_guess(key=key)) for name in ("minao", "atom", "huckel")}
    model = predictor.model
    for n in range(model.config.iterations + 1):
        for label, params in (("model", predictor.params), ("no network", None)):
            own = ql.CorrectionPredictor(model.with_iterations(n), params, predictor.systems)
            found[f"{label}, n = {n}"] = n + 1, lambda mf, own=own: ql.guess(mf.mol, own)
    return found


def measure(run: str) -> list[dict]:
    """Cycles, Fock builds and seconds from every start, on every geometry."""
    predictor = ql.load(run)
    mol, method = predictor.systems[0].molecule, predictor.method
    stream = ql.sample(mol, ql.Sampling("md"), SEED, validation=True)
    frames = list(itertools.islice(stream, 0, (GEOMETRIES + 1) * STRIDE, STRIDE))
    rows, ways = [], starts(predictor)  # made once: each compiles what it needs on the first geometry
    for index, frame in enumerate(frames):
        energies = []
        for name, (builds, start) in ways.items():
            mf = reference.calculation(mol.with_positions(frame), method, fitted=False)
            mf.conv_tol = 1e-9  # PySCF's default
            began = time.perf_counter()
            dm = start(mf)
            guessed = time.perf_counter() - began
            mf.kernel(dm0=dm)
            energies.append(mf.e_tot)
            if not mf.converged or abs(mf.e_tot - energies[0]) > SAME_HARTREE:
                raise SystemExit(f"from {name} the SCF ends at {mf.e_tot}, from minao at {energies[0]}.")
            if index:  # the first compiles
                rows.append({
                    "run": run, "molecule": mol.name or mol.formula, "method": method.label, "start": name,
                    "cycles": int(mf.cycles), "fock_builds": int(mf.cycles) + builds, "guess_s": guessed,
                    "seconds": time.perf_counter() - began, "geometry": index,
                })
    return rows


def main(runs: Annotated[list[str], typer.Argument(help="Folders of runs.")]) -> None:
    """Measure, and write the table."""
    rows = [row for run in runs for row in measure(run)]
    command = f"python benchmarks/pyscf_guess.py {' '.join(runs)}"
    results = pathlib.Path(__file__).parent / "results"
    record = {"command": command, "machine": bench.machine(), "rows": rows}
    bench.keep(results, "pyscf-guess", record, "\n".join([
        "# A model's density where PySCF's SCF begins", "", f"    {command}", "", bench.place(record["machine"]), "",
        f"Medians over {GEOMETRIES} geometries; saved is the median of each geometry's share. Every SCF ends at the "
        "same energy.", "", *map(_trained, runs), "", table(rows), "",
    ]))
    typer.echo(table(rows))


def _trained(run):
    rows = ql.Run.open(run).metrics()
    error = next((row["validation_mae_mev"] for row in reversed(rows) if "validation_mae_mev" in row), float("nan"))
    return (f"- {run}: {rows[-1]['step']:.0f} updates in {rows[-1]['seconds'] / 60:.0f} min, "
            f"error {significant(error)} meV on its own validation geometries")


def table(rows: list[dict]) -> str:
    """A line for each start of each run."""
    head = ["molecule, method", "begins with", "cycles", "saved, %", "Fock builds, the model's too", "saved, %",
            "time, s", "saved, %"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "--:|" * (len(head) - 2)]
    for (run, start), members in _grouped(rows).items():
        usual = {row["geometry"]: row for row in rows if row["run"] == run and row["start"] == "minao"}
        cells = [f"{members[0]['molecule']}, {members[0]['method']}", start]
        for key, form in (("cycles", "{:g}"), ("fock_builds", "{:g}"), ("seconds", "{:.2f}")):
            saved = statistics.median(1 - row[key] / usual[row["geometry"]][key] for row in members)
            cells += [form.format(statistics.median(row[key] for row in members)), f"{100 * saved:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _grouped(rows):
    found: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        found.setdefault((row["run"], row["start"]), []).append(row)
    return found


if __name__ == "__main__":
    typer.run(main)
