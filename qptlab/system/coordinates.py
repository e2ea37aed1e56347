"""Internal coordinates: bond lengths and torsions of a molecule, which can be read and changed."""

from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.spatial.transform import Rotation

from qptlab.errors import InputError
from qptlab.system.molecule import Molecule
from qptlab.units import BOHR_ANGSTROM

BOND_ANGSTROM = (0.5, 4.0)
"""Range of bond lengths that can be set: from somewhat below that of H2 to a broken bond."""


class Coordinate(NamedTuple):
    """Internal coordinate: a bond length or a torsion.

    Attributes:
      atoms: indices of the two atoms of a bond, or of the four atoms of a torsion about the bond of the second and
        the third.
      movers: indices of the atoms that move with the last one; all others stay.
      label: name for the user, such as "bond C0–O2".
    """

    atoms: tuple[int, ...]
    movers: tuple[int, ...]
    label: str

    @property
    def unit(self) -> str:
        """Unit of the values: `Å` or `°`."""
        return "Å" if len(self.atoms) == 2 else "°"


def coordinates(mol: Molecule) -> list[Coordinate]:
    """Return the bonds outside of rings, and one torsion about each such bond with neighbours at both ends."""
    graph = nx.Graph(sorted(mol.bonds))
    graph.add_nodes_from(range(len(mol.symbols)))
    result = []
    for i, j in sorted(nx.bridges(graph)):  # pyright: ignore[reportGeneralTypeIssues]
        cut = graph.copy()
        cut.remove_edge(i, j)
        sides = [(sorted(nx.node_connected_component(cut, end)), end) for end in (i, j)]
        (movers, end), (_, start) = sorted(sides, key=lambda side: len(side[0]))  # the smaller one moves
        result.append(Coordinate((start, end), tuple(movers), f"bond {_label(mol, (start, end))}"))
        before = [atom for atom in sorted(graph[start]) if atom != end]
        after = [atom for atom in sorted(graph[end]) if atom != start]
        if before and after:
            atoms = (before[0], start, end, after[0])
            result.append(Coordinate(atoms, tuple(movers), f"torsion {_label(mol, atoms)}"))
    return sorted(result, key=lambda coordinate: (len(coordinate.atoms), coordinate.atoms))


def value(mol: Molecule, coordinate: Coordinate) -> float:
    """Return the value of a coordinate: a bond length in ångström, or a torsion in degrees from −180 to 180."""
    positions = mol.positions[list(coordinate.atoms)]
    if len(positions) == 2:
        return float(np.linalg.norm(positions[1] - positions[0])) * BOHR_ANGSTROM
    first, axis, last = np.diff(positions, axis=0)
    normal_first, normal_last = np.cross(first, axis), np.cross(axis, last)
    return float(np.degrees(np.arctan2(np.linalg.norm(axis) * first @ normal_last, normal_first @ normal_last)))


def moved(mol: Molecule, coordinate: Coordinate, wanted: float) -> Molecule:
    """Return the molecule with a different bond length (ångström) or torsion (degrees).

    Raises:
      InputError: if the length is outside of `BOND_ANGSTROM`, or atoms would overlap.
    """
    positions, movers = mol.positions.copy(), list(coordinate.movers)
    if len(coordinate.atoms) == 2:
        low, high = BOND_ANGSTROM
        if not low <= wanted <= high:
            raise InputError(f"Expected a bond length of {low} to {high} Å, got {wanted:g} Å; use 1.5, for example.")
        start, end = positions[list(coordinate.atoms)]
        direction = (end - start) / np.linalg.norm(end - start)
        positions[movers] += direction * (wanted - value(mol, coordinate)) / BOHR_ANGSTROM
    else:
        if not np.isfinite(wanted):
            raise InputError(f"Expected a torsion of −180° to 180°, got {wanted}; use 180, for example.")
        start, end = positions[list(coordinate.atoms[1:3])]
        axis = (end - start) / np.linalg.norm(end - start)
        rotation = Rotation.from_rotvec(axis * np.radians(wanted - value(mol, coordinate)))
        positions[movers] = rotation.apply(positions[movers] - end) + end
    return mol.with_positions(positions)


def _label(mol: Molecule, atoms: tuple[int, ...]) -> str:
    return "–".join(f"{mol.symbols[atom]}{atom}" for atom in atoms)
