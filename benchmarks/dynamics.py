"""Forces of a model in ASE: conservation of energy, cost of a force, and vibrations compared with PySCF's.

    python benchmarks/dynamics.py runs/ethanol [--ps 5] [--fs 0.5] [--kelvin 500]

The drift is the slope of the total energy in NVE dynamics (velocity Verlet), which begin at the reference geometry
with velocities of twice the temperature: half of the kinetic energy becomes potential energy. The table has the range
of each dihedral angle, which is above 120° for a methyl group that turned.
The cost is the time of energy and forces divided by that of a prediction, warm, in turns. Harmonic frequencies of
small molecules come from ASE's finite differences at the model's minimum and from PySCF's analytical Hessian at
PySCF's minimum. Writes `results/dynamics-MOLECULE.json`, `.md` and `.png`.
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
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.dft.properties import forces
from qptlab.evaluation import reference
from qptlab.system import coordinates

TURNS = 7
REPORT_STEPS = 200
"""Number of steps from one message of progress to the next."""
HESSIAN_ATOMS = 3
"""Largest number of atoms for PySCF's Hessian, which takes long on two cores for more."""


def conserve(atoms, torsions: list[tuple[int, ...]], picoseconds: float, femtoseconds: float, kelvin: float) -> dict:
    """Return the total energy along a trajectory, its slope, and the largest change of a dihedral angle, degrees."""
    rng = np.random.default_rng(7)
    kinetic = rng.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses() * ase.units.kB * 2 * kelvin)[:, None]
    atoms.set_momenta(kinetic)
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics, times, totals, potentials = VelocityVerlet(atoms, femtoseconds * ase.units.fs), [], [], []
    temperatures, angles = [], []
    began = time.perf_counter()
    for step in range(round(1000 * picoseconds / femtoseconds)):
        dynamics.run(1)
        times.append((step + 1) * femtoseconds / 1000)
        totals.append(1000 * atoms.get_total_energy())
        potentials.append(1000 * atoms.get_potential_energy())
        temperatures.append(atoms.get_temperature())
        angles.append([atoms.get_dihedral(*torsion) for torsion in torsions])
        if (step + 1) % REPORT_STEPS == 0:
            typer.echo(f"{times[-1]:.2f} ps after {time.perf_counter() - began:.0f} s: total energy "
                       f"{totals[-1] - totals[0]:+.3f} meV from the first", err=True)
    return {
        "ps": times[-1], "step_fs": femtoseconds, "seconds": time.perf_counter() - began,
        "times": times, "total_mev": totals,
        "drift_mev_per_atom_ps": float(np.polyfit(times, totals, 1)[0]) / len(atoms),
        "kelvin": float(np.mean(temperatures)),
        "turns_degrees": np.ptp(np.unwrap(np.array(angles), axis=0, period=360), axis=0).tolist(),
        "spread_mev": float(np.std(totals)), "potential_spread_mev": float(np.std(potentials)),
    }


def cost(model: ql.CorrectionPredictor, mol: ql.Molecule) -> dict:
    """Return the times of a prediction and of energy and forces, s."""
    rng, plain, slopes = np.random.default_rng(3), [], []
    for _ in range(TURNS + 1):
        moved = mol.with_positions(mol.positions + 0.02 * rng.normal(size=mol.positions.shape))
        for seconds, function in ((plain, model), (slopes, model.energy_and_forces)):
            began = time.perf_counter()
            function(moved)
            seconds.append(time.perf_counter() - began)
    ratios = [slope / energy for slope, energy in zip(slopes[1:], plain[1:], strict=True)]
    return {"prediction_s": statistics.median(plain[1:]), "forces_s": statistics.median(slopes[1:]),
            "ratio": statistics.median(ratios)}


def vibrations(model: ql.CorrectionPredictor, mol: ql.Molecule, folder: pathlib.Path) -> dict:
    """Return harmonic frequencies of the model and of PySCF, cm⁻¹, and the bond lengths at both minima, ångström."""
    atoms = mol.to_ase()
    atoms.calc = ql.ModelCalculator(model)
    BFGS(atoms, logfile=None).run(fmax=2e-3, steps=200)
    modes = Vibrations(atoms, name=str(folder / "vibrations"), delta=0.01)
    modes.run()
    frequencies = np.sort(modes.get_frequencies().real)[6:]
    positions = _pyscf_minimum(mol, model.method)
    mf = reference.calculation(mol.with_positions(positions), model.method, fitted=False)
    mf.kernel()
    hessian = mf.Hessian()
    hessian.grid_response = True
    references = thermo.harmonic_analysis(mf.mol, hessian.kernel())["freq_wavenumber"]
    moved = mol.with_positions(atoms.get_positions() / ase.units.Bohr)
    return {"ours": frequencies.tolist(), "pyscf": np.real(references).tolist(),
            "bonds_angstrom": [_bonds(moved), _bonds(mol.with_positions(positions))]}


def _pyscf_minimum(mol: ql.Molecule, method: ql.Method) -> np.ndarray:
    """Return the positions of PySCF's minimum, bohr."""
    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        moved = mol.with_positions(flat.reshape(-1, 3))
        answer = reference.converged(moved, method)
        return answer.energy, -forces(moved, method, answer.fock).ravel()

    return minimize(value, mol.positions.ravel(), jac=True, method="BFGS", options={"gtol": 3e-5}).x.reshape(-1, 3)


def _bonds(mol: ql.Molecule) -> list[float]:
    """Return the bond lengths, ångström."""
    positions = mol.positions_angstrom
    return [float(np.linalg.norm(positions[i] - positions[j])) for i, j in sorted(mol.bonds)]


def main(
    run: Annotated[pathlib.Path, typer.Argument(help="Run folder.")],
    ps: Annotated[float, typer.Option(help="Length of the trajectory, picoseconds.")] = 2.0,
    fs: Annotated[float, typer.Option(help="Time step, femtoseconds.")] = 0.5,
    kelvin: Annotated[float, typer.Option(help="Temperature.")] = 500.0,
) -> None:
    """Measure, and write the table and the plot."""
    model = ql.load(run)
    mol = model.systems[0].molecule
    name = mol.name or mol.formula
    results = pathlib.Path(__file__).parent / "results"
    record = {"command": f"python benchmarks/dynamics.py {run} --ps {ps:g} --fs {fs:g} --kelvin {kelvin:g}",
              "machine": bench.machine(),
              "molecule": name, "method": model.method.label, "iterations": model.model.config.iterations,
              "cost": cost(model, mol)}
    typer.echo(f"{name}: {record['cost']}", err=True)
    if len(mol.symbols) <= HESSIAN_ATOMS:
        record["vibrations"] = vibrations(model, mol, run)
    atoms = mol.to_ase()
    atoms.calc = ql.ModelCalculator(model)
    torsions = [coordinate.atoms for coordinate in coordinates.coordinates(mol) if len(coordinate.atoms) == 4]
    record["nve"] = conserve(atoms, torsions, ps, fs, kelvin)
    text = page(record)
    bench.keep(results, f"dynamics-{name}", record, text)
    figure(record).savefig(results / f"dynamics-{name}.png", dpi=120)
    typer.echo(text)


def page(record: dict) -> str:
    """Return the table and its description."""
    nve, cost, name = record["nve"], record["cost"], record["molecule"]
    cells = [
        ["prediction, s", f"{cost['prediction_s']:.3g}"], ["energy and forces, s", f"{cost['forces_s']:.3g}"],
        ["ratio (target: 4)", f"{cost['ratio']:.2f}"],
        [f"NVE, {nve['ps']:g} ps in steps of {nve['step_fs']:g} fs: mean temperature, K", f"{nve['kelvin']:.0f}"],
        ["range of each dihedral angle, degrees", ", ".join(f"{angle:.0f}" for angle in nve["turns_degrees"])],
        ["drift, meV per atom and ps (target: 0.05)",
         f"{nve['drift_mev_per_atom_ps']:+.4f}"],
        ["standard deviation of the total energy, meV", f"{nve['spread_mev']:.2f}"],
        ["standard deviation of the potential energy, meV", f"{nve['potential_spread_mev']:.0f}"],
    ]
    lines = [
        f"# Forces of a model of {name}", "", f"    {record['command']}", "", bench.describe(record["machine"]), "",
        f"{record['method']}, {record['iterations']} DFT iterations after the network.", "",
        tables.table(["", ""], cells),
    ]
    if "vibrations" in record:
        pairs = zip(*(np.round(record["vibrations"][key], 1) for key in ("ours", "pyscf")), strict=True)
        frequencies = [[f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"] for a, b in pairs]
        lines += ["", "Harmonic frequencies, cm⁻¹:", "",
                  tables.table(["model", "PySCF", "difference"], frequencies, text_columns=0)]
    return "\n".join([*lines, "", f"![total energy](dynamics-{name}.png)", ""])


def figure(record: dict):
    """Return a figure of the total energy against time."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 4), layout="constrained")
    axes, nve = drawn.subplots(), record["nve"]
    total = np.array(nve["total_mev"])
    label = "total energy relative to the first"
    axes.plot(nve["times"], total - total[0], color="#0072B2", linewidth=0.8, label=label)
    axes.set_xlabel("time, ps")
    axes.set_ylabel("meV")
    axes.set_title(f"{record['molecule']}, {record['method']}: NVE with a model's forces, {nve['step_fs']:g} fs")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn


if __name__ == "__main__":
    typer.run(main)
