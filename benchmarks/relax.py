"""Minima that a model finds for conformers, compared with those of GFN1-xTB and of DFT.

    python benchmarks/relax.py runs/orbital-gnn.h5 [--molecules 4] [--conformers 2]
    python benchmarks/relax.py runs/ethanol

An OrbitalGNN comes from `benchmarks/orbital_gnn.py`, or from `qptlab train --labels` without the test molecules; it
relaxes the first test molecules with a rotatable bond. A QPT relaxes the molecules of its run, and so do the same DFT
iterations without its network; PySCF stopped early is left out, because it has no forces of its energy. RDKit's
conformers are relaxed by GFN1-xTB, by the model, and by PySCF with the method of the labels or of the run. PySCF
starts from GFN1-xTB's minimum. RMSDs are of all atoms after superposition on PySCF's minimum; energies are PySCF's at
the geometry, relative to its minimum. For two conformers, the energy difference of each method is compared with
PySCF's. Writes `results/relax.json` and `.md`, or `relax-qpt`.
"""

import itertools
import pathlib
import statistics
import time
from typing import Annotated

import numpy as np
import orbital_gnn
import typer
from ase.calculators.calculator import Calculator, all_changes
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcNumRotatableBonds
from scipy.spatial.transform import Rotation
from tblite.ase import TBLite

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation import labels
from qptlab.units import BOHR_ANGSTROM, HARTREE_EV, HARTREE_MEV, significant

FMAX = 0.01
"""Largest force of a relaxed geometry, eV/Å."""


class Dft(Calculator):
    """PySCF's calculation, as for labels."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  as ASE declares them

    def __init__(self, method: ql.Method):
        super().__init__()
        self.method = method

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Compute energy and forces."""
        super().calculate(atoms, list(properties), system_changes)
        label = labels.from_pyscf(ql.Molecule.from_ase(self.atoms), self.method)
        self.results = {"energy": label.energy * HARTREE_EV, "forces": label.forces * HARTREE_EV / BOHR_ANGSTROM}


def molecules_of(model: ql.Model, count: int) -> list[ql.Molecule]:
    """Return the molecules of a QPT, or test molecules of an OrbitalGNN with a rotatable bond."""
    if isinstance(model, ql.CorrectionPredictor):
        return [system.molecule for system in model.systems[:count]]
    unseen = orbital_gnn.smiles()[: orbital_gnn.TEST]
    flexible = [text for text in unseen if CalcNumRotatableBonds(Chem.MolFromSmiles(text), strict=False)]
    return [ql.Molecule.from_smiles(text) for text in flexible[:count]]


def rmsd(first: ql.Molecule, second: ql.Molecule) -> float:
    """Return the root mean square distance of all atoms after superposition, ångström."""
    centred = [mol.positions_angstrom - mol.positions_angstrom.mean(axis=0) for mol in (first, second)]
    return Rotation.align_vectors(*centred)[1] / np.sqrt(len(centred[0]))


def calculators_of(model: ql.Model, method: ql.Method) -> dict:
    """Return the calculators by name; PySCF is the last, because it starts from GFN1-xTB's minimum."""
    models = {"OrbitalGNN": model}
    if isinstance(model, ql.CorrectionPredictor):
        models = {"no network, same iterations": model.without_network(), "QPT": model}
    return {"GFN1-xTB": TBLite(method="GFN1-xTB", verbosity=0), **models, "PySCF": Dft(method)}


def measure(mol: ql.Molecule, start: np.ndarray, calculators: dict, method: ql.Method) -> list[dict]:
    """Relax one conformer with every calculator, and return a row for each."""
    ends, seconds = {}, {}
    for name, calculator in calculators.items():
        began = time.perf_counter()
        geometry = ends["GFN1-xTB"].molecule if name == "PySCF" else mol.with_positions(start)
        ends[name] = ql.relax(geometry, calculator, fmax=FMAX)
        seconds[name] = time.perf_counter() - began
    minimum, rows = ends["PySCF"], []
    for name, end in ends.items():
        above = labels.from_pyscf(end.molecule, method).energy - minimum.energy
        rows.append({
            "molecule": mol.name, "way": name, "rmsd_angstrom": rmsd(end.molecule, minimum.molecule),
            "above_mev": above * HARTREE_MEV, "energy_ha": end.energy, "steps": end.steps,
            "converged": end.converged, "seconds": seconds[name],
        })
    return rows


def main(
    model: Annotated[pathlib.Path, typer.Argument(help="A run folder or a model file.")],
    molecules: Annotated[int, typer.Option(help="Number of molecules.")] = 4,
    conformers: Annotated[int, typer.Option(help="Number of conformers of each molecule.")] = 2,
) -> None:
    """Measure, and write the table."""
    predictor, rows = ql.load(model), []
    is_qpt = isinstance(predictor, ql.CorrectionPredictor)
    method = predictor.method if is_qpt else orbital_gnn.METHOD
    record = {"command": f"python benchmarks/relax.py {model} --molecules {molecules} --conformers {conformers}",
              "machine": bench.machine(), "method": method.to_dict(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    calculators = calculators_of(predictor, method)
    for mol in molecules_of(predictor, molecules):
        starts = itertools.islice(ql.sample(mol, ql.Sampling("conformers"), 11), conformers)
        for number, start in enumerate(starts):
            ends = measure(mol, start, calculators, method)
            rows += [{**row, "conformer": number} for row in ends]
            texts = (f"{row['way']} {row['rmsd_angstrom']:.3f} Å, {row['above_mev']:.1f} meV" for row in ends)
            typer.echo(f"{mol.name}, conformer {number}: {', '.join(texts)}", err=True)
            # Each conformer takes minutes: a run that is stopped keeps its rows.
            bench.keep(results, "relax-qpt" if is_qpt else "relax", record, page(record))
    typer.echo(page(record))


def page(record: dict) -> str:
    """Return the table and its description."""
    rows, lines = record["rows"], []
    titles = ["", "RMSD from PySCF's minimum, Å", "largest", "PySCF's energy above it, meV", "largest",
              "error of conformers' energy difference, meV", "converged", "steps", "time, s"]
    names = list(dict.fromkeys(row["way"] for row in rows))
    for name in names:
        members = [row for row in rows if row["way"] == name]
        cells = [name]
        for key in ("rmsd_angstrom", "above_mev"):
            values = [row[key] for row in members]
            cells += [significant(statistics.median(values)), significant(max(values))]
        gaps = [abs(gap) for gap in _gaps(rows, name)]
        steps, seconds = (statistics.median(row[key] for row in members) for key in ("steps", "seconds"))
        converged = f"{sum(row['converged'] for row in members)} of {len(members)}"
        cells += [significant(statistics.mean(gaps)) if gaps else "", converged, f"{steps:g}", significant(seconds)]
        lines.append(cells)
    molecules = ", ".join(dict.fromkeys(row["molecule"] for row in rows))
    return "\n".join([
        "# Relaxing molecules", "", f"    {record['command']}", "",
        bench.describe(record["machine"]), "",
        f"{molecules}; {len(rows) // len(names)} conformers, {ql.Method(**record['method']).label}; medians, forces "
        f"below {FMAX} eV/Å. PySCF's time begins at GFN1-xTB's minimum.", "", tables.table(titles, lines), "",
    ])


def _gaps(rows: list[dict], name: str) -> list[float]:
    """Return the errors of a method's energy differences between conformers, meV."""
    errors: dict[str, list[float]] = {}
    pairs = zip(*([row for row in rows if row["way"] == key] for key in (name, "PySCF")), strict=True)
    for row, truth in pairs:
        errors.setdefault(row["molecule"], []).append(HARTREE_MEV * (row["energy_ha"] - truth["energy_ha"]))
    return [b - a for values in errors.values() for a, b in itertools.pairwise(values)]


if __name__ == "__main__":
    typer.run(main)
