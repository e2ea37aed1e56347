"""A model's forces at work in ASE: energy conservation, what a force costs, and vibrations beside PySCF's.

    python benchmarks/dynamics.py runs/ethanol [--ps 2] [--fs 0.5]

NVE dynamics (velocity Verlet) from a geometry and velocities at 300 K: the slope of the total energy is the
drift. The time of energy and forces over that of a prediction, warm, in turns. Harmonic frequencies at the model's
own minimum, by ASE's differences of forces, beside PySCF's analytical Hessian at its own minimum, of small molecules.
Writes `results/dynamics-MOLECULE.json`, `.md` and `.png`.
"""

import pathlib
import statistics
import time
from typing import Annotated

import ase.units
import numpy as np
import typer
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from pyscf.hessian import thermo
from scipy.optimize import minimize

import qptlab as ql
from qptlab.benchmarking import bench
from qptlab.dft.properties import forces
from qptlab.evaluation import reference

TEMPERATURE = 300.0
TURNS = 7
TOLD = 200
"""Steps from one word of progress to the next."""
HESSIAN_ATOMS = 3
"""PySCF's Hessian of more takes long on two cores."""


def conserve(atoms, picoseconds: float, femtoseconds: float) -> dict:
    """Total energy along a trajectory, and its slope."""
    rng = np.random.default_rng(7)
    kinetic = rng.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses() * ase.units.kB * TEMPERATURE)[:, None]
    atoms.set_momenta(kinetic)
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics, times, totals, potentials = VelocityVerlet(atoms, femtoseconds * ase.units.fs), [], [], []
    began = time.perf_counter()
    for step in range(round(1000 * picoseconds / femtoseconds)):
        dynamics.run(1)
        times.append((step + 1) * femtoseconds / 1000)
        totals.append(1000 * atoms.get_total_energy())
        potentials.append(1000 * atoms.get_potential_energy())
        if (step + 1) % TOLD == 0:
            typer.echo(f"{times[-1]:.2f} ps after {time.perf_counter() - began:.0f} s: total energy "
                       f"{totals[-1] - totals[0]:+.3f} meV from the first", err=True)
    return {
        "ps": times[-1], "step_fs": femtoseconds, "seconds": time.perf_counter() - began,
        "times": times, "total_mev": totals,
        "drift_mev_per_atom_ps": float(np.polyfit(times, totals, 1)[0]) / len(atoms),
        "spread_mev": float(np.std(totals)), "potential_spread_mev": float(np.std(potentials)),
    }


def cost(model: ql.CorrectionPredictor, mol: ql.Molecule) -> dict:
    """Seconds of a prediction, and of energy and forces."""
    rng, plain, slopes = np.random.default_rng(3), [], []
    for _ in range(TURNS + 1):
        moved = mol.with_positions(mol.positions + 0.02 * rng.normal(size=mol.positions.shape))
        for seconds, what in ((plain, model), (slopes, model.energy_and_forces)):
            began = time.perf_counter()
            what(moved)
            seconds.append(time.perf_counter() - began)
    ratios = [slope / energy for slope, energy in zip(slopes[1:], plain[1:], strict=True)]
    return {"prediction_s": statistics.median(plain[1:]), "forces_s": statistics.median(slopes[1:]),
            "ratio": statistics.median(ratios)}


def vibrations(model: ql.CorrectionPredictor, mol: ql.Molecule, folder: pathlib.Path) -> dict:
    """Harmonic frequencies, cm⁻¹: the model's, and PySCF's."""
    atoms = mol.to_ase()
    atoms.calc = ql.ModelCalculator(model)
    BFGS(atoms, logfile=None).run(fmax=2e-3, steps=200)
    found = Vibrations(atoms, name=str(folder / "vibrations"), delta=0.01)
    found.run()
    ours = np.sort(found.get_frequencies().real)[6:]
    place = _pyscf_minimum(mol, model.method)
    mf = reference.calculation(mol.with_positions(place), model.method, fitted=False)
    mf.kernel()
    hessian = mf.Hessian()
    hessian.grid_response = True
    theirs = thermo.harmonic_analysis(mf.mol, hessian.kernel())["freq_wavenumber"]
    moved = mol.with_positions(atoms.get_positions() / ase.units.Bohr)
    return {"ours": ours.tolist(), "pyscf": np.real(theirs).tolist(),
            "bonds_angstrom": [_bonds(moved), _bonds(mol.with_positions(place))]}


def _pyscf_minimum(mol, method):
    def value(flat):
        placed = mol.with_positions(flat.reshape(-1, 3))
        answer = reference.converged(placed, method)
        return answer.energy, -forces(placed, method, answer.fock).ravel()

    return minimize(value, mol.positions.ravel(), jac=True, method="BFGS", options={"gtol": 3e-5}).x.reshape(-1, 3)


def _bonds(mol):
    places = mol.positions_angstrom
    return [float(np.linalg.norm(places[i] - places[j])) for i, j in sorted(mol.bonds)]


def main(
    run: Annotated[pathlib.Path, typer.Argument(help="A run's folder.")],
    ps: Annotated[float, typer.Option(help="Length of the trajectory, picoseconds.")] = 2.0,
    fs: Annotated[float, typer.Option(help="Its time step, femtoseconds.")] = 0.5,
) -> None:
    """Measure, and write the table and the plot."""
    model = ql.load(run)
    mol = model.systems[0].molecule
    name = mol.name or mol.formula
    results = pathlib.Path(__file__).parent / "results"
    record = {"command": f"python benchmarks/dynamics.py {run} --ps {ps:g} --fs {fs:g}", "machine": bench.machine(),
              "molecule": name, "method": model.method.label, "iterations": model.model.config.iterations,
              "cost": cost(model, mol)}
    typer.echo(f"{name}: {record['cost']}", err=True)
    if len(mol.symbols) <= HESSIAN_ATOMS:
        record["vibrations"] = vibrations(model, mol, run)
    atoms = mol.to_ase()
    atoms.calc = ql.ModelCalculator(model)
    record["nve"] = conserve(atoms, ps, fs)
    text = page(record)
    bench.keep(results, f"dynamics-{name}", record, text)
    figure(record).savefig(results / f"dynamics-{name}.png", dpi=120)
    typer.echo(text)


def page(record: dict) -> str:
    """What was measured, in words and a table."""
    nve, cost, name = record["nve"], record["cost"], record["molecule"]
    lines = [
        f"# Forces of a model of {name}", "", f"    {record['command']}", "", bench.place(record["machine"]), "",
        f"{record['method']}, {record['iterations']} DFT iterations after the network.", "", "| | |", "|---|--:|",
        f"| prediction, s | {cost['prediction_s']:.3g} |", f"| energy and forces, s | {cost['forces_s']:.3g} |",
        f"| ratio (to reach: 4) | {cost['ratio']:.2f} |",
        f"| NVE, {nve['ps']:g} ps in steps of {nve['step_fs']:g} fs: drift, meV per atom and ps (to reach: 1) "
        f"| {nve['drift_mev_per_atom_ps']:+.3f} |",
        f"| standard deviation of the total energy, meV | {nve['spread_mev']:.2f} |",
        f"| of the potential energy, meV | {nve['potential_spread_mev']:.0f} |",
    ]
    if "vibrations" in record:
        ours, theirs = (np.round(record["vibrations"][key], 1) for key in ("ours", "pyscf"))
        lines += ["", "Harmonic frequencies, cm⁻¹:", "", "| model | PySCF | difference |", "|--:|--:|--:|"]
        lines += [f"| {a:.1f} | {b:.1f} | {a - b:+.1f} |" for a, b in zip(ours, theirs, strict=True)]
    return "\n".join([*lines, "", f"![total energy](dynamics-{name}.png)", ""])


def figure(record: dict):
    """The total energy against time."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 4), layout="constrained")
    axes, nve = drawn.subplots(), record["nve"]
    total = np.array(nve["total_mev"])
    axes.plot(nve["times"], total - total[0], color="#0072B2", linewidth=0.8, label="total energy above the first")
    axes.set_xlabel("time, ps")
    axes.set_ylabel("meV")
    axes.set_title(f"{record['molecule']}, {record['method']}: NVE with a model's forces, {nve['step_fs']:g} fs")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn


if __name__ == "__main__":
    typer.run(main)
