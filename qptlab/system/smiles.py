"""Geometries of SMILES: RDKit's conformer, relaxed with GFN2-xTB and checked against the bonds of the SMILES."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import ase
import ase.data
import numpy as np
from jaxtyping import Float

from qptlab import xtb
from qptlab.errors import MAX_SHOWN, InputError, clipped, shown
from qptlab.system.molecule import BOND_FACTOR, Molecule
from qptlab.units import BOHR_ANGSTROM

if TYPE_CHECKING:
    from rdkit import Chem

MAX_CHARACTERS = 500

MAX_ATOMS = 200
"""Largest number of atoms, with hydrogen: RDKit finds no structure of many larger ones, after minutes."""

MAX_EMBEDDING_SECONDS = 10
"""Longest time of RDKit's search for a structure of each fragment; that of a molecule takes less than a second."""

MAX_RELAXED_ATOMS = 100
"""Larger molecules keep the force field's geometry: GFN2-xTB would take a minute."""

MAX_RELAXING_SECONDS = 60
"""Longest time of GFN2-xTB's relaxation; that of a molecule takes seconds, that of many ions hours."""

FMAX_EV_ANGSTROM, MAX_STEPS = 0.05, 300
"""Largest force on an atom at the end of GFN2-xTB's relaxation, and largest number of its steps."""

GAP_ANGSTROM = 3.0
"""Gap between two fragments, before they are relaxed together."""

SHORTEST, NEW_BOND = 0.65, 1.15
"""Distances of two atoms, as multiples of the sum of their covalent radii: below the first the geometry is wrong
(N≡N has 0.77); below the second two atoms have a bond, and if the SMILES has none, the molecule has changed."""

TRIPLETS = (("O", "O"), ("O", "S"), ("S", "S"))
"""Diatomic molecules whose ground state has two unpaired electrons, which no Lewis structure shows."""


class NotSmilesError(InputError):
    """Error for a text that is not SMILES at all, unlike SMILES of a molecule that cannot be used."""


def molecule(
    smiles: str, spin: int | None = None, report: Callable[[str], None] = lambda step: None,
    max_atoms: int | None = None,
) -> Molecule:
    """Return a molecule with a conformer by RDKit's ETKDG (fixed seed) and MMFF94 or UFF, relaxed with GFN2-xTB.

    Fragments are placed beside each other before the relaxation. `Molecule.source` says what was done.

    Args:
      smiles: SMILES of a molecule or of several fragments.
      spin: number of unpaired electrons; None for that of the SMILES or, for atoms, O2, SO and S2, of the ground
        state.
      report: callback `report(step)`, called before each step; an exception ends the work.
      max_atoms: largest number of atoms; None for `MAX_ATOMS`, which is never exceeded.

    Warns:
      UserWarning: if the spin is not that of the Lewis structure, or GFN2-xTB cannot relax it without changing its
        bonds.

    Raises:
      InputError: if the text does not parse, has more atoms, or no geometry is found.
    """
    key = smiles, spin
    if (known := _known.get(key)) is None:
        known = _known[key] = _molecule(smiles, spin, report, min(max_atoms or MAX_ATOMS, MAX_ATOMS))
        while len(_known) > MAX_KNOWN:
            _known.pop(next(iter(_known)), None)
    mol, remarks = known
    for remark in remarks:
        warnings.warn(remark, stacklevel=5)
    return mol


MAX_KNOWN = 256
_known: dict[tuple[str, int | None], tuple[Molecule, tuple[str, ...]]] = {}
"""Molecules that were asked for before, as `_molecule` returns them."""


def _molecule(
    smiles: str, spin: int | None, report: Callable[[str], None], max_atoms: int
) -> tuple[Molecule, tuple[str, ...]]:
    """Return a molecule, and what its user has to know."""
    from rdkit import Chem

    graph = _graph(smiles, max_atoms)
    symbols = tuple(atom.GetSymbol() for atom in graph.GetAtoms())
    charge, remarks = Chem.GetFormalCharge(graph), []
    if spin is None:
        spin = sum(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms())
        ground = _unpaired_in_ground_state(symbols) if not charge else None
        if ground is not None and ground != spin:
            remarks.append(
                f"{clipped(smiles, MAX_SHOWN)} is read with {ground} unpaired electrons, its ground state; use spin "
                f"{spin} otherwise."
            )
            spin = ground
    # Elements and electrons are checked before RDKit and GFN2-xTB see them; the positions of the force field may be
    # too close.
    apart = 30.0 * np.arange(3 * len(symbols)).reshape(-1, 3)
    mol = Molecule(symbols, apart, charge, smiles, spin)
    positions, field = _embedded(graph, smiles, report)
    positions, source, remark = _relaxed(mol, graph, positions, field, report)
    mol = dataclasses.replace(mol, positions=positions / BOHR_ANGSTROM, source=source)
    return mol, (*remarks, *([remark] if remark else []))


def _graph(smiles: str, max_atoms: int) -> "Chem.Mol":
    """Return the graph of SMILES, with hydrogen."""
    from rdkit import Chem, rdBase

    hint = "use SMILES such as CCO for ethanol."
    if not smiles or len(smiles) > MAX_CHARACTERS:
        raise NotSmilesError(f"Expected SMILES of 1 to {MAX_CHARACTERS} characters, got {len(smiles)}; {hint}")
    with rdBase.BlockLogs():
        graph = Chem.MolFromSmiles(smiles) if smiles.isprintable() else None  # RDKit stops at a NUL
        if graph is None or graph.GetNumAtoms() == 0:
            raise NotSmilesError(f"Expected SMILES of a molecule, got {shown(smiles)}, which does not parse; {hint}")
        graph = Chem.AddHs(graph)
    if any(atom.GetAtomicNum() == 0 for atom in graph.GetAtoms()):
        raise InputError(
            f"Expected SMILES of elements, got {shown(smiles)}, which has the placeholder *; use an element's symbol."
        )
    if graph.GetNumAtoms() > max_atoms:
        remedy = "an XYZ file for a larger molecule" if max_atoms == MAX_ATOMS else "a smaller molecule"
        raise InputError(
            f"Expected SMILES of at most {max_atoms} atoms, got {graph.GetNumAtoms()} in {shown(smiles)}; use "
            f"{remedy}."
        )
    return graph


def _unpaired_in_ground_state(symbols: tuple[str, ...]) -> int | None:
    """Return the number of unpaired electrons of a neutral atom or of O2, SO or S2; None for any other molecule."""
    if len(symbols) == 1:
        return round(ase.data.ground_state_magnetic_moments[ase.data.atomic_numbers[symbols[0]]])
    return 2 if tuple(sorted(symbols)) in TRIPLETS else None


def _embedded(
    graph: "Chem.Mol", smiles: str, report: Callable[[str], None]
) -> tuple[Float[np.ndarray, "natm 3"], str]:
    """Return positions (ångström) of all fragments beside each other, and the name of the force field."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdDistGeom import EmbedMolecule, ETKDGv3
    from rdkit.Chem.rdForceFieldHelpers import (
        MMFFHasAllMoleculeParams,
        MMFFOptimizeMolecule,
        UFFHasAllMoleculeParams,
        UFFOptimizeMolecule,
    )

    members: list[tuple[int, ...]] = []
    fragments = Chem.GetMolFrags(graph, asMols=True, fragsMolAtomMapping=members)
    positions, end, fields = np.zeros((graph.GetNumAtoms(), 3)), 0.0, set()
    for atoms, fragment in zip(members, fragments, strict=True):
        report("RDKit's conformer")
        settings = ETKDGv3()
        settings.randomSeed, settings.timeout = 7, MAX_EMBEDDING_SECONDS
        with rdBase.BlockLogs():
            try:
                is_embedded = EmbedMolecule(fragment, settings) == 0
                if not is_embedded:
                    pass
                elif MMFFHasAllMoleculeParams(fragment):
                    MMFFOptimizeMolecule(fragment)
                    fields.add("MMFF94")
                elif UFFHasAllMoleculeParams(fragment):
                    UFFOptimizeMolecule(fragment)
                    fields.add("UFF")
            except RuntimeError:  # a violated condition inside RDKit
                is_embedded = False
        if not is_embedded:
            raise InputError(
                f"Expected SMILES for which RDKit finds a 3D structure, got {shown(smiles)}; use an XYZ file."
            )
        placed = fragment.GetConformer().GetPositions()
        if len(fragments) > 1:  # a single molecule stays where it is
            placed[:, 0] += end - placed[:, 0].min()
            end = placed[:, 0].max() + GAP_ANGSTROM
        positions[list(atoms)] = placed
    return positions, " and ".join(sorted(fields)) or "no force field"


def _relaxed(
    mol: Molecule, graph: "Chem.Mol", positions: Float[np.ndarray, "natm 3"], field: str,
    report: Callable[[str], None],
) -> tuple[Float[np.ndarray, "natm 3"], str, str]:
    """Return positions (ångström) that have the bonds of a graph, how they were found, and a remark, if any."""
    conformer, why = f"RDKit's conformer ({field})", ""
    if len(mol.symbols) == 1:
        return positions, "", ""
    if len(mol.symbols) <= MAX_RELAXED_ATOMS:
        atoms = ase.Atoms(mol.symbols, positions, info={"charge": mol.charge, "spin": mol.spin})
        try:
            found = xtb.relaxed(
                atoms, FMAX_EV_ANGSTROM, MAX_STEPS, MAX_RELAXING_SECONDS, lambda: report("relaxing with GFN2-xTB")
            ).get_positions()
        except TimeoutError:
            why = f"it takes longer than {MAX_RELAXING_SECONDS} s"
        except InputError:
            why = "its SCF does not converge"
        except ImportError:
            why = "tblite, which is missing a library, cannot be loaded"
        else:
            why = _difference(mol.symbols, found, graph)
            if not why:
                return found, f"{conformer}, relaxed with GFN2-xTB", ""
    if wrong := _difference(mol.symbols, positions, graph):
        raise InputError(
            f"Expected SMILES for which a geometry is found, got {shown(mol.name)}: {why or wrong}; use an XYZ file."
        )
    if not why:
        return positions, conformer, ""
    name = clipped(mol.name, MAX_SHOWN)
    remark = f"{name} has the geometry of {conformer}, not relaxed with GFN2-xTB: {why}; check it."
    return positions, conformer, remark


def _difference(symbols: tuple[str, ...], positions: Float[np.ndarray, "natm 3"], graph: "Chem.Mol") -> str:
    """Return how the bonds at a geometry (ångström) differ from those of a graph; empty if they do not."""
    from rdkit import Chem

    radii = ase.data.covalent_radii[[ase.data.atomic_numbers[symbol] for symbol in symbols]]
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1)
    ratio = distance / (radii[:, None] + radii)
    fragment = np.zeros(len(symbols), int)
    for index, members in enumerate(Chem.GetMolFrags(graph)):
        fragment[list(members)] = index
    bonded = Chem.GetAdjacencyMatrix(graph).astype(bool)
    kinds = (
        (bonded & (ratio > BOND_FACTOR), "which are bonded"),
        # Fragments may form a bond, as of a base and an acid.
        (~bonded & (fragment[:, None] == fragment) & (ratio < NEW_BOND), "which are not bonded"),
        (ratio < SHORTEST, "too close"),
    )
    for is_wrong, text in kinds:
        for i, j in np.argwhere(np.triu(is_wrong, k=1)):
            return f"atoms {i} ({symbols[i]}) and {j} ({symbols[j]}), {text}, come to be {distance[i, j]:.2f} Å apart"
    return ""
