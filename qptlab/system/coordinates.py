"""Bond lengths and torsions of a molecule, to be read and changed."""

from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.spatial.transform import Rotation

from qptlab.errors import InputError
from qptlab.system.molecule import Molecule
from qptlab.units import BOHR_ANGSTROM

BOND_ANGSTROM = (0.5, 4.0)
"""Lengths that a bond may be given: from a little below hydrogen's to where it is broken."""


class Coordinate(NamedTuple):
    """One degree of freedom.

    Attributes:
      atoms: two, of a bond, or four, of a torsion about the bond of the second and the third.
      movers: the atoms that move with the last; the others stay.
      label: for people, such as "bond C0–O2".
    """

    atoms: tuple[int, ...]
    movers: tuple[int, ...]
    label: str

    @property
    def unit(self) -> str:
        """Of its values: `Å` or `°`."""
        return "Å" if len(self.atoms) == 2 else "°"


def coordinates(mol: Molecule) -> list[Coordinate]:
    """Bonds that are in no ring, and a torsion about each of them that has neighbours at both ends."""
    graph = nx.Graph(sorted(mol.bonds))
    graph.add_nodes_from(range(len(mol.symbols)))
    found = []
    for i, j in sorted(nx.bridges(graph)):  # pyright: ignore[reportGeneralTypeIssues]
        cut = graph.copy()
        cut.remove_edge(i, j)
        sides = [(sorted(nx.node_connected_component(cut, end)), end) for end in (i, j)]
        (movers, end), (_, start) = sorted(sides, key=lambda side: len(side[0]))  # the smaller one moves
        found.append(Coordinate((start, end), tuple(movers), f"bond {_named(mol, (start, end))}"))
        before = [atom for atom in sorted(graph[start]) if atom != end]
        after = [atom for atom in sorted(graph[end]) if atom != start]
        if before and after:
            atoms = (before[0], start, end, after[0])
            found.append(Coordinate(atoms, tuple(movers), f"torsion {_named(mol, atoms)}"))
    return sorted(found, key=lambda each: (len(each.atoms), each.atoms))


def value(mol: Molecule, coordinate: Coordinate) -> float:
    """Of a bond in ångström, of a torsion in degrees from −180 to 180."""
    places = mol.positions[list(coordinate.atoms)]
    if len(places) == 2:
        return float(np.linalg.norm(places[1] - places[0])) * BOHR_ANGSTROM
    first, axis, last = np.diff(places, axis=0)
    one, two = np.cross(first, axis), np.cross(axis, last)
    return float(np.degrees(np.arctan2(np.linalg.norm(axis) * first @ two, one @ two)))


def moved(mol: Molecule, coordinate: Coordinate, wanted: float) -> Molecule:
    """The molecule with another bond length (ångström) or torsion (degrees).

    Raises:
      InputError: for a length that no bond has, or where atoms would meet.
    """
    positions, movers = mol.positions.copy(), list(coordinate.movers)
    if len(coordinate.atoms) == 2:
        low, high = BOND_ANGSTROM
        if not low <= wanted <= high:
            raise InputError(f"a bond of {wanted:g} Å was asked for; {low} to {high} would do.")
        start, end = positions[list(coordinate.atoms)]
        away = (end - start) / np.linalg.norm(end - start)
        positions[movers] += away * (wanted - value(mol, coordinate)) / BOHR_ANGSTROM
    else:
        if not np.isfinite(wanted):
            raise InputError(f"a torsion of {wanted}° was asked for; −180 to 180 would do.")
        start, end = positions[list(coordinate.atoms[1:3])]
        axis = (end - start) / np.linalg.norm(end - start)
        turn = Rotation.from_rotvec(axis * np.radians(wanted - value(mol, coordinate)))
        positions[movers] = turn.apply(positions[movers] - end) + end
    return mol.with_positions(positions)


def _named(mol, atoms):
    return "–".join(f"{mol.symbols[atom]}{atom}" for atom in atoms)
