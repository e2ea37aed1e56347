"""Map of φ and ψ of alanine dipeptide by a trained model, compared with PySCF's.

    qptlab train "alanine dipeptide" --basis sto-3g --eri fitted -n 2 --sampler torsions --minutes 10 --out runs/ala
    python benchmarks/peptide.py runs/ala [--points 10]

Both angles are turned in full circles; all other internal coordinates stay as in the built-in geometry. Each point
has the energies of converged PySCF, of the model, and of the same DFT iterations without the network, and the
residual of the model. Writes `results/peptide.json`, `.md` and `.png`.
"""

import itertools
import json
import pathlib
from typing import Annotated

import numpy as np
import typer
from scipy.stats import spearmanr

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.system import coordinates
from qptlab.units import HARTREE_MEV, significant

BANDS_EV = (0.5, 1.0, 3.0, np.inf)
"""Bands of energy above the lowest point: reached at 500 K, cost of a rigid turn, reached in collisions only."""


def angles(mol: ql.Molecule) -> tuple[coordinates.Coordinate, coordinates.Coordinate]:
    """Return φ and ψ of the built-in alanine dipeptide."""
    torsions = {torsion.atoms[1:3]: torsion for torsion in coordinates.coordinates(mol) if len(torsion.atoms) == 4}
    phi, psi = torsions[4, 3], torsions[4, 6]
    return phi._replace(atoms=(6, 4, 3, 1), label="φ"), psi._replace(atoms=(3, 4, 6, 8), label="ψ")


def measure(predictor: ql.CorrectionPredictor, points: int) -> list[dict]:
    """Return a row for each point of the map where PySCF converges."""
    mol, plain = predictor.systems[0].molecule, predictor.without_network()
    phi, psi = angles(mol)
    turns, rows = np.linspace(-180, 180, points, endpoint=False), []
    for first, second in itertools.product(turns, turns):
        try:
            turned = coordinates.moved(coordinates.moved(mol, phi, float(first)), psi, float(second))
        except InputError as error:  # atoms on top of each other
            typer.echo(f"φ = {first:g}°, ψ = {second:g}°: {error}", err=True)
            continue
        truth = reference.converged(turned, predictor.method, fitted=True)
        if not truth.converged:
            typer.echo(f"φ = {first:g}°, ψ = {second:g}°: PySCF does not converge.", err=True)
            continue
        prediction, baseline = predictor(turned), plain(turned)
        rows.append({
            "phi": float(first), "psi": float(second), "pyscf_ha": truth.energy,
            "residual": float(prediction.residual),
            "error_mev": (float(prediction.energy) - truth.energy) * HARTREE_MEV,
            "no_network_error_mev": (float(baseline.energy) - truth.energy) * HARTREE_MEV,
        })
        typer.echo(json.dumps(rows[-1]), err=True)
    return rows


def main(
    run: Annotated[pathlib.Path, typer.Argument(help="Run folder.")],
    points: Annotated[int, typer.Option(help="Number of values of each angle.")] = 10,
) -> None:
    """Measure, and write the table and the plot."""
    try:
        predictor, history = ql.load(run), ql.Run.open(run).metrics()
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    if predictor.systems[0].molecule.name != "alanine dipeptide":
        raise typer.BadParameter(f"Expected a run of alanine dipeptide, got {run}; use one.")
    record = {"command": f"python benchmarks/peptide.py {run} --points {points}", "machine": bench.machine(),
              "method": predictor.method.label, "iterations": predictor.model.config.iterations,
              "trained": {key: next((row[key] for row in reversed(history) if key in row), np.nan)
                          for key in ("step", "seconds", "validation_mae_mev", "no_network_mae_mev")},
              "rows": measure(predictor, points)}
    results = pathlib.Path(__file__).parent / "results"
    text = page(record)
    bench.keep(results, "peptide", record, text)
    figure(record["rows"]).savefig(results / "peptide.png", dpi=120)
    typer.echo(text)


def page(record: dict) -> str:
    """Return a table with a row for each band of energy, and its description."""
    rows, trained = record["rows"], record["trained"]
    above, errors, plain, residuals = (
        np.array([row[key] for row in rows])
        for key in ("pyscf_ha", "error_mev", "no_network_error_mev", "residual")
    )
    above = (above - above.min()) * HARTREE_MEV / 1000
    titles = ["above the lowest, eV", "points", "median error, meV", "largest", "no network, median",
              "rank correlation with the residual"]
    lines = []
    for low, high in itertools.pairwise((0.0, *BANDS_EV)):
        inside = (low <= above) & (above < high)
        if inside.sum() > 2:
            sizes = np.abs(errors[inside])
            lines.append([
                f"{low:g} to {high:g}", inside.sum(), significant(np.median(sizes)), significant(sizes.max()),
                significant(np.median(np.abs(plain[inside]))),
                f"{spearmanr(sizes, residuals[inside]).statistic:.2f}",
            ])
    return "\n".join([
        "# Alanine dipeptide: φ and ψ", "", f"    {record['command']}", "", bench.describe(record["machine"]), "",
        f"{record['method']}, {record['iterations']} DFT iterations after the network; {trained['step']:.0f} updates "
        f"in {trained['seconds'] / 60:.0f} min, no labels. Angles are turned rigidly; errors are against PySCF with "
        "the same density fitting. Against exact integrals, the error on unseen geometries of the sampler is "
        f"{significant(trained['validation_mae_mev'])} meV, and without the network "
        f"{significant(trained['no_network_mae_mev'])} meV: that is the error of the fit in this basis.", "",
        tables.table(titles, lines), "", "![map](peptide.png)", "",
    ])


def figure(rows: list[dict]):
    """Return a figure: PySCF's map, the model's error and its residual."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    turns = sorted({row["phi"] for row in rows})
    low = min(row["pyscf_ha"] for row in rows)
    maps = {
        "PySCF, eV": ({"vmin": 0, "vmax": 3}, lambda row: (row["pyscf_ha"] - low) * HARTREE_MEV / 1e3),
        "model's error, meV": ({"norm": LogNorm()}, lambda row: max(abs(row["error_mev"]), 1e-4)),
        "model's residual, hartree": ({"norm": LogNorm()}, lambda row: row["residual"]),
    }
    drawn = Figure(figsize=(13, 4), layout="constrained")
    for axes, (title, (scale, value)) in zip(drawn.subplots(1, 3), maps.items(), strict=True):
        grid = np.full((len(turns), len(turns)), np.nan)
        for row in rows:
            grid[turns.index(row["psi"]), turns.index(row["phi"])] = value(row)
        mesh = axes.pcolormesh(turns, turns, grid, cmap="cividis", **scale)
        axes.set(title=title, xlabel="φ, degrees", ylabel="ψ, degrees", aspect="equal")
        drawn.colorbar(mesh, ax=axes)
    return drawn


if __name__ == "__main__":
    typer.run(main)
