"""Bonds of a molecule as RDKit sees them, and its conformers, for the samplers `torsions`, `conformers` and `md`."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError
from qptlab.system.molecule import Molecule
from qptlab.units import BOHR_ANGSTROM

if TYPE_CHECKING:
    from rdkit import Chem

CLASH = 0.6
"""Smallest accepted distance of two atoms that are at least three bonds apart, in units of the sum of their van der
Waals radii."""


CONFORMERS = 10
"""Number of conformers that are embedded at a time."""


def bonded_graph(mol: Molecule) -> "Chem.Mol":
    """Return RDKit's molecule with bonds, which it determines from the distances.

    Raises:
      InputError: if RDKit cannot determine the bonds.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdDetermineBonds import DetermineBonds

    lines = (f"{s} {x:.8f} {y:.8f} {z:.8f}" for s, (x, y, z) in zip(mol.symbols, mol.positions_angstrom, strict=True))
    with rdBase.BlockLogs():
        graph = Chem.MolFromXYZBlock("\n".join([str(len(mol.symbols)), "", *lines]))
        try:
            DetermineBonds(graph, charge=mol.charge)
        except ValueError:
            raise InputError(
                f"Expected a molecule whose bonds RDKit can determine, got {mol.formula}; use the sampler md, modes "
                "or perturb."
            ) from None
    return graph


def rotatable_bonds(graph: "Chem.Mol") -> list[tuple[int, int]]:
    """Return the rotatable bonds as pairs of atoms.

    These are single bonds outside rings between atoms that have further neighbours and are not linear. Amide bonds
    are left out and stay planar.
    """
    from rdkit import Chem

    matches = graph.GetSubstructMatches(Chem.MolFromSmarts("[CX3](=O)-[NX3]"))
    amides = {frozenset((carbon, nitrogen)) for carbon, _, nitrogen in matches}
    bonds = graph.GetSubstructMatches(Chem.MolFromSmarts("[!D1;!$(*#*)]-&!@[!D1;!$(*#*)]"))
    return [bond for bond in bonds if frozenset(bond) not in amides]


@functools.lru_cache(maxsize=32)
def _conformer_graph(symbols: tuple[str, ...], positions: bytes, charge: int) -> "Chem.Mol | None":
    from rdkit import Chem

    try:
        graph = bonded_graph(Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge))
    except InputError:
        return None
    rings = graph.GetSubstructMatches(Chem.MolFromSmarts("[A;R;!r3;!r4;X4]"))
    return graph if rings or rotatable_bonds(graph) else None


def conformer_graph(mol: Molecule) -> "Chem.Mol | None":
    """Return `bonded_graph` of a molecule with rotatable bonds or saturated rings; None for any other molecule."""
    return _conformer_graph(mol.symbols, mol.positions.tobytes(), mol.charge)


def embedded(graph: "Chem.Mol", rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
    """Yield conformers by RDKit's distance geometry, bohr; the stream ends if RDKit finds none."""
    from rdkit import Chem
    from rdkit.Chem.rdDistGeom import EmbedMultipleConfs

    copy = Chem.Mol(graph)  # other threads may embed the same molecule
    while EmbedMultipleConfs(copy, CONFORMERS, randomSeed=int(rng.integers(2**31 - 1))):
        # All conformers are read first: the next embedding replaces them.
        yield from [conformer.GetPositions() / BOHR_ANGSTROM for conformer in copy.GetConformers()]


def dihedral(graph: "Chem.Mol", bond: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return four atoms whose dihedral angle describes the rotation about a bond."""
    first, second = bond
    return _neighbour(graph, first, second), first, second, _neighbour(graph, second, first)


def _neighbour(graph: "Chem.Mol", atom: int, excluded: int) -> int:
    """Return the first neighbour of an atom that is not the excluded one."""
    neighbours = (neighbour.GetIdx() for neighbour in graph.GetAtomWithIdx(atom).GetNeighbors())
    return next(index for index in neighbours if index != excluded)


def clash_distances(graph: "Chem.Mol") -> Float[np.ndarray, "natm natm"]:
    """Return the smallest accepted distances, bohr; zero for atoms that are fewer than three bonds apart."""
    from rdkit import Chem

    radii = np.array([Chem.GetPeriodicTable().GetRvdw(atom.GetAtomicNum()) for atom in graph.GetAtoms()])
    distant = Chem.GetDistanceMatrix(graph) >= 3
    return np.where(distant, CLASH * (radii[:, None] + radii), 0.0) / BOHR_ANGSTROM
