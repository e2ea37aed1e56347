"""Geometries that a model relaxes, beside GFN1-xTB's and DFT's, on conformers.

    python benchmarks/relax.py runs/orbital-gnn.h5 [--molecules 4] [--conformers 2]
    python benchmarks/relax.py runs/ethanol

An OrbitalGNN is that of `benchmarks/orbital_gnn.py`, or another of `qptlab train-gnn` that has learned none of the
test molecules: the first of these with a rotatable bond are relaxed. A QPT relaxes the molecules of its run, as do
the same iterations without its network; PySCF stopped early has no forces of its energy. Each conformer of RDKit's is
relaxed by GFN1-xTB, by the model, and by PySCF (as the labels, or as the run), which starts from GFN1-xTB's end.
RMSDs are of all atoms after superposition with PySCF's; the energy is PySCF's at the geometry, above its own minimum;
of two conformers the difference of energies that each method finds stands beside PySCF's. Writes `results/relax.json`
and `.md`, or `relax-qpt`.
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
from qptlab.benchmarking import bench
from qptlab.evaluation import labels
from qptlab.units import BOHR_ANGSTROM, HARTREE_EV, HARTREE_MEV, significant

FMAX = 0.01
"""eV/Å."""


class Dft(Calculator):
    """PySCF, as labels have it."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  as ASE declares them

    def __init__(self, method: ql.Method):
        super().__init__()
        self.method = method

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Energy and forces."""
        super().calculate(atoms, list(properties), system_changes)
        found = labels.from_pyscf(ql.Molecule.from_ase(self.atoms), self.method)
        self.results = {"energy": found.energy * HARTREE_EV, "forces": found.forces * HARTREE_EV / BOHR_ANGSTROM}


def chosen(model: ql.CorrectionPredictor | ql.GNNPredictor, count: int) -> list[ql.Molecule]:
    """Of a QPT its own molecules, of an OrbitalGNN test molecules with a rotatable bond."""
    if isinstance(model, ql.CorrectionPredictor):
        return [system.molecule for system in model.systems[:count]]
    unseen = orbital_gnn.smiles()[: orbital_gnn.TEST]
    found = [text for text in unseen if CalcNumRotatableBonds(Chem.MolFromSmiles(text), strict=False)]
    return [ql.Molecule.from_smiles(text) for text in found[:count]]


def rmsd(one: ql.Molecule, two: ql.Molecule) -> float:
    """Of all atoms, ångström, superposed."""
    places = [each.positions_angstrom - each.positions_angstrom.mean(axis=0) for each in (one, two)]
    return Rotation.align_vectors(*places)[1] / np.sqrt(len(places[0]))


def ways(model: ql.CorrectionPredictor | ql.GNNPredictor, method: ql.Method) -> dict:
    """What relaxes; PySCF at the end, because it starts from GFN1-xTB's minimum."""
    isqpt = isinstance(model, ql.CorrectionPredictor)
    own = {"no network, same iterations": model.without_network(), "QPT": model} if isqpt else {"OrbitalGNN": model}
    return {"GFN1-xTB": TBLite(method="GFN1-xTB", verbosity=0), **own, "PySCF": Dft(method)}


def measure(mol: ql.Molecule, start, calculators: dict, method: ql.Method) -> list[dict]:
    """The ends of one conformer."""
    ends, seconds = {}, {}
    for way, calculator in calculators.items():
        began = time.perf_counter()
        place = ends["GFN1-xTB"].molecule if way == "PySCF" else mol.with_positions(start)
        ends[way] = ql.relax(place, calculator, fmax=FMAX)
        seconds[way] = time.perf_counter() - began
    truth, rows = ends["PySCF"], []
    for way, end in ends.items():
        above = labels.from_pyscf(end.molecule, method).energy - truth.energy
        rows.append({
            "molecule": mol.name, "way": way, "rmsd_angstrom": rmsd(end.molecule, truth.molecule),
            "above_mev": above * HARTREE_MEV, "energy_ha": end.energy, "steps": end.steps,
            "converged": end.converged, "seconds": seconds[way],
        })
    return rows


def main(
    model: Annotated[pathlib.Path, typer.Argument(help="An OrbitalGNN's file, or a QPT's run.")],
    molecules: Annotated[int, typer.Option(help="How many.")] = 4,
    conformers: Annotated[int, typer.Option(help="Of each.")] = 2,
) -> None:
    """Measure, and write the table."""
    predictor, rows = ql.load(model), []
    isqpt = isinstance(predictor, ql.CorrectionPredictor)
    method = predictor.method if isqpt else orbital_gnn.METHOD
    record = {"command": f"python benchmarks/relax.py {model} --molecules {molecules} --conformers {conformers}",
              "machine": bench.machine(), "method": method.to_dict(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    calculators = ways(predictor, method)
    for mol in chosen(predictor, molecules):
        starts = itertools.islice(ql.sample(mol, ql.Sampling("conformers"), 11), conformers)
        for number, start in enumerate(starts):
            ends = measure(mol, start, calculators, method)
            rows += [{**row, "conformer": number} for row in ends]
            said = (f"{row['way']} {row['rmsd_angstrom']:.3f} Å, {row['above_mev']:.1f} meV" for row in ends)
            typer.echo(f"{mol.name}, conformer {number}: {', '.join(said)}", err=True)
            # Each takes minutes: what is done is kept when it is stopped.
            bench.keep(results, "relax-qpt" if isqpt else "relax", record, page(record))
    typer.echo(page(record))


def page(record: dict) -> str:
    """The table, in words."""
    rows = record["rows"]
    head = ["", "RMSD from PySCF's minimum, Å", "largest", "PySCF's energy above it, meV", "largest",
            "error of conformers' energy difference, meV", "converged", "steps", "time, s"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    found = list(dict.fromkeys(row["way"] for row in rows))
    for way in found:
        mine = [row for row in rows if row["way"] == way]
        cells = [way]
        for key in ("rmsd_angstrom", "above_mev"):
            values = [row[key] for row in mine]
            cells += [significant(statistics.median(values)), significant(max(values))]
        gaps = [abs(gap) for gap in _gaps(rows, way)]
        steps, seconds = (statistics.median(row[key] for row in mine) for key in ("steps", "seconds"))
        ended = f"{sum(row['converged'] for row in mine)} of {len(mine)}"
        cells += [significant(statistics.mean(gaps)) if gaps else "", ended, f"{steps:g}", significant(seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    names = ", ".join(dict.fromkeys(row["molecule"] for row in rows))
    return "\n".join([
        "# Relaxing molecules", "", f"    {record['command']}", "",
        bench.place(record["machine"]), "",
        f"{names}; {len(rows) // len(found)} conformers, {ql.Method(**record['method']).label}; medians, forces "
        f"below {FMAX} eV/Å. PySCF's time is from GFN1-xTB's minimum on.", "", *lines, "",
    ])


def _gaps(rows, way):
    """What a method finds of each two conformers' difference of energies, less what PySCF finds, meV."""
    found: dict[str, list[float]] = {}
    for mine, truth in zip(*([r for r in rows if r["way"] == each] for each in (way, "PySCF")), strict=True):
        found.setdefault(mine["molecule"], []).append(HARTREE_MEV * (mine["energy_ha"] - truth["energy_ha"]))
    return [b - a for values in found.values() for a, b in itertools.pairwise(values)]


if __name__ == "__main__":
    typer.run(main)
