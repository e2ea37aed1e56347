"""Energies of random molecules, compared with PySCF with the same settings.

    python benchmarks/random_molecules.py [--count 300] [--seed 0] [--note "..."]

Each case is drawn at random: a molecule, ion or radical; functional, dispersion correction, basis, grid, form of the
two-electron integrals; one case in six has a heavy element, mostly in a basis with a core potential; in half of the
cases all distances are scaled by 0.85 to 1.5. Both programs start from minao and have their default
DIIS. In each case PySCF also evaluates the energy of our density. Two converged energies may differ because there are
several self-consistent states: then PySCF goes on from our density, and has to stay there. What is left is a
difference of the engines. Writes `results/random-molecules.json` and `.md` after each case; if they exist already for
the same command, it goes on from there.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
import warnings
from typing import Annotated, Any

import jax
import numpy as np
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation import reference

SAME_HARTREE = 1e-6

MOLECULES = (
    "O", "N", "C", "F", "Cl", "S", "P", "[H][H]", "N#N", "[C-]#[O+]", "O=C=O", "C#N", "C=O", "CO", "CN", "CF",
    "CCl", "CS", "C#C", "C=C", "CC", "OO", "NO", "FF", "ClCl", "O=S=O", "S=C=S", "O=C=S", "[O-][O+]=O",
    "[N-]=[N+]=O", "B", "B(F)(F)F", "[SiH4]", "CC=O", "CC#N", "OC=O", "NC=O", "CCO", "C1CC1", "C1CO1", "C=C=C",
    "N=[N+]=[N-]", "[LiH]", "[Li]F", "[Na]F", "[BeH2]", "[AlH3]", "[He]", "[Ne]", "[Ar]", "Br", "CBr", "[OH-]",
    "[F-]", "[Cl-]", "[C-]#N", "[O-]N=O", "[NH2-]", "C[O-]", "OC([O-])=O", "[NH4+]", "[OH3+]", "[Li+]", "[Na+]",
    "[H][H].[H][H]", "O.O", "[F-].O", "[CH3]", "[OH]", "[NH2]", "[CH2]", "[N]=O", "[O]N=O", "[O][O]", "C[CH2]",
    "O=[CH]", "[CH3+]", "[H]", "[N]", "[O]",
)
HEAVY_MOLECULES = (
    "[Xe]", "I", "CI", "II", "ICl", "[I-]", "[I]", "[Kr]", "[SnH4]", "[TeH2]", "[Rb+]", "[SbH3]", "[Ag]", "[Au]",
    "[Hg]", "[PbH4]", "[PoH2]", "[Rn]", "[Cs+]", "[AsH3]", "[SeH2]",
)
BASES = ("sto-3g", "6-31g*", "6-31++g**", "def2-svp", "cc-pvdz", "def2-tzvp")
HEAVY_BASES = ("def2-svp", "def2-tzvp", "lanl2dz", "sto-3g")
SCALES = (0.85, 1.5)


@dataclasses.dataclass(frozen=True)
class Case:
    """Molecule and level of theory."""

    name: str
    scale: float
    mol: ql.Molecule
    method: ql.Method


def draw(seed: int, number: int) -> Case:
    """Return a case; the same for the same numbers."""
    rng = np.random.default_rng([seed, number])
    is_heavy = rng.random() < 1 / 6
    name = str(rng.choice(HEAVY_MOLECULES if is_heavy else MOLECULES))
    mol = ql.Molecule.parse(name)
    scale = float(rng.uniform(*SCALES)) if rng.random() < 0.5 else 1.0
    centre = mol.positions.mean(axis=0)
    mol = mol.with_positions(centre + scale * (mol.positions - centre))
    basis = str(rng.choice(HEAVY_BASES if is_heavy else BASES[:-1] if len(mol.symbols) > 4 else BASES))
    xc, level, form = rng.choice(sorted(ql.FUNCTIONALS)), rng.integers(0, 3), rng.choice(["exact", "fitted"])
    method = ql.Method(str(xc), basis, int(level), eri=str(form))
    if (kind := rng.choice(["", "", "d3bj", "d4"])) != "":
        with contextlib.suppress(ql.InputError):  # a functional without parameters
            method = dataclasses.replace(method, dispersion=str(kind))
    return Case(name, scale, mol, method)


def compare(case: Case) -> dict[str, Any]:
    """Return the outcome of a case, with both energies, hartree."""
    mol, method = case.mol, case.method
    row: dict[str, Any] = {
        "molecule": case.name, "scale": round(case.scale, 3), "charge": mol.charge, "spin": mol.spin,
        "method": f"{method.label}, grid level {method.grid_level}, {method.eri}", "reason": "",
    }
    try:
        ours = ql.scf(mol, method)
    except ql.InputError as error:
        return row | {"outcome": "refused", "reason": str(error)}
    mf = reference.calculation(mol, method, fitted=method.eri == "fitted")
    mf.verbose, mf.max_cycle = 0, reference.MAX_CYCLES
    energy, dm = mf.kernel(), np.asarray(ours.dm)
    row |= {"energy_ha": float(ours.energy), "pyscf_energy_ha": float(energy), "cycles": int(ours.cycles),
            "functional_ha": float(ours.energy) - float(mf.energy_tot(dm=dm))}
    difference = float(ours.energy) - energy
    if abs(row["functional_ha"]) > SAME_HARTREE:
        outcome = "DIFFERENT ENERGY OF ONE DENSITY"
    elif not ours.converged:
        outcome = "not converged, and said" if mf.converged else "neither converges, and said"
    elif not mf.converged:
        outcome = "PySCF does not converge"
    elif abs(difference) <= SAME_HARTREE:
        outcome = "equal"
    else:
        there = mf.kernel(dm0=dm)
        is_state = bool(mf.converged) and abs(there - float(ours.energy)) <= SAME_HARTREE
        outcome = f"another state, {'lower' if difference < 0 else 'higher'}" if is_state else "DIFFERENT"
    return row | {"outcome": outcome}


def page(record: dict) -> str:
    """Return the counts, and the cases that are not equal."""
    rows = record["rows"]
    counts = collections.Counter(row["outcome"] for row in rows)
    equal = [row for row in rows if row["outcome"] == "equal"]
    largest = max((abs(row["energy_ha"] - row["pyscf_energy_ha"]) for row in equal), default=0.0)
    density = max((abs(row["functional_ha"]) for row in rows if "functional_ha" in row), default=0.0)
    others = [
        [f"`{row['molecule']}`", row["scale"], row["spin"], row["method"], row["outcome"],
         f"{row['energy_ha'] - row['pyscf_energy_ha']:.1e}" if "energy_ha" in row else row["reason"]]
        for row in rows if row["outcome"] != "equal"
    ]
    return "\n".join([
        "# Random molecules", "", f"    {record['command']}", "", bench.describe(record["machine"]), "",
        *([record["note"], ""] if record["note"] else []),
        f"{len(rows)} cases, compared with PySCF with the same settings. Equal means {SAME_HARTREE:g} hartree; the "
        f"largest difference among the equal ones is {largest:.0e}. PySCF's energy of our density differs by "
        f"{density:.0e} at most, in all cases. Another state is a second self-consistent state, in which PySCF stays "
        "as well.", "",
        tables.table(["outcome", "cases"], [[name, count] for name, count in counts.most_common()]), "",
        tables.table(
            ["molecule", "scale", "spin", "method", "outcome", "difference, hartree"], others, text_columns=6
        ), "",
    ])


def main(
    count: Annotated[int, typer.Option(help="Number of cases.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the cases.")] = 0,
    note: Annotated[str, typer.Option(help="What else ran on the machine.")] = "",
) -> None:
    """Compare, and write the counts."""
    warnings.filterwarnings("ignore", message=".* is read with .* unpaired electrons")
    warnings.filterwarnings("ignore", category=UserWarning, module="pyscf")
    command = f"python benchmarks/random_molecules.py --count {count} --seed {seed}"
    results = pathlib.Path(__file__).parent / "results"
    path = results / "random-molecules.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    rows: list[dict] = earlier["rows"] if earlier.get("command") == command else []
    for number in range(len(rows), count):
        rows.append(compare(draw(seed, number)))
        record = {"command": command, "machine": bench.machine(), "note": note, "rows": rows}
        bench.keep(results, "random-molecules", record, page(record))
        jax.clear_caches()  # each compiled function takes some hundred of the mappings that Linux allows
        typer.echo(f"{number}: {rows[-1]['molecule']}, {rows[-1]['method']}: {rows[-1]['outcome']}")


if __name__ == "__main__":
    typer.run(main)
