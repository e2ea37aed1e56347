"""Molecules of different size in arrays of one shape, so that they share what is compiled.

What is added changes nothing (a test holds results equal): orbitals that overlap with nothing and lie so high that
they are never filled, grid points of no weight, nuclei of no charge so far away that they take no share of the grid.
Real atoms and orbitals come first, in their usual order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qptlab.dft import grid
from qptlab.dft.libcint import HostIntegrals

ENERGY_HARTREE = 1e4
"""Of an orbital that is added; above any that a basis for light elements has."""

DISTANCE_BOHR = 1e6
"""From one nucleus that is added to the next."""

MOST_ORBITALS_ADDED = 1.3
"""A molecule is padded at most to so many times its number of orbitals."""


class Shape(NamedTuple):
    """Sizes of the arrays of a molecule.

    Attributes:
      natm: nuclei.
      shells: for each angular momentum and number of primitives, how many shells.
      ngrids: grid points.
      nminao: orbitals of the `minao` guess.
      naux: auxiliary orbitals; 0 for exact integrals.
    """

    natm: int
    shells: tuple[tuple[tuple[int, int], int], ...]
    ngrids: int
    nminao: int
    naux: int

    @property
    def nao(self) -> int:
        """Atomic orbitals."""
        return sum((2 * l + 1) * count for (l, _), count in self.shells)


def union(shapes: Sequence[Shape]) -> Shape:
    """The smallest shape that all of these fit in."""
    kinds = sorted({kind for shape in shapes for kind, _ in shape.shells})
    most = tuple((kind, max(dict(shape.shells).get(kind, 0) for shape in shapes)) for kind in kinds)
    return Shape(
        max(shape.natm for shape in shapes), most, max(shape.ngrids for shape in shapes),
        max(shape.nminao for shape in shapes), max(shape.naux for shape in shapes),
    )


def buckets(shapes: Sequence[Shape]) -> list[list[int]]:
    """Which shapes to pad to one, so that none grows by more than `MOST_ORBITALS_ADDED`.

    Returns:
      Indices, bucket by bucket, small molecules first.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(shapes)), key=lambda i: shapes[i].nao):
        members = [*(found[-1] if found else []), index]
        nao = union([shapes[i] for i in members]).nao
        if found and all(nao <= MOST_ORBITALS_ADDED * shapes[i].nao for i in members):
            found[-1].append(index)
        else:
            found.append([index])
    return found


def fill(values: Sequence | np.ndarray, size: int, value: float = 0) -> np.ndarray:
    """An array whose first axis is filled up to a size."""
    array = np.asarray(values)
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1), constant_values=value)


def pad_grid(given: grid.GridTemplate, shape: Shape) -> grid.GridTemplate:
    """Points of no weight; an offset keeps them off the nuclei."""
    missing, atoms = shape.ngrids - len(given.volumes), shape.natm - len(given.size_adjustment)
    return grid.GridTemplate(
        np.concatenate([given.offsets, np.ones((missing, 3))]), np.pad(given.volumes, (0, missing)),
        np.pad(given.owner, (0, missing)), np.pad(given.size_adjustment, (0, atoms)),
    )


def pad_basis(given: grid.Basis, shape: Shape) -> grid.Basis:
    """Shells without coefficients, whose functions stand behind all others."""
    have = {(group.angular, group.exponents.shape[1]): group for group in given.groups}
    groups, following = [], len(given.order)
    for (l, nprim), count in shape.shells:
        none = np.zeros((0, nprim))
        empty = grid.ShellGroup(np.zeros(0, int), none, none, np.zeros((0, 2 * l + 1), int))
        group = have.get((l, nprim), empty)
        missing = count - len(group.atom)
        ao = following + np.arange(missing * (2 * l + 1)).reshape(missing, 2 * l + 1)
        following += ao.size
        groups.append(grid.ShellGroup(
            np.pad(group.atom, (0, missing)), np.pad(group.exponents, ((0, missing), (0, 0)), constant_values=1.0),
            np.pad(group.coefficients, ((0, missing), (0, 0))), np.concatenate([group.ao, ao]),
        ))
    return grid.basis_of(tuple(groups))


def pad_host(host: HostIntegrals, shape: Shape) -> HostIntegrals:
    """Integrals of orbitals, nuclei and auxiliary functions that meet nothing."""
    natm, (nao, nminao) = len(host.positions), host.minao_overlap.shape
    naux = len(host.eri[1]) if len(host.eri) == 2 else 0
    if (natm, nao, nminao, naux) == (shape.natm, shape.nao, shape.nminao, shape.naux):
        return host
    atoms, orbitals = shape.natm - natm, shape.nao - nao
    overlap, hcore = pad_levels(host.overlap, shape, 1.0), pad_levels(host.hcore, shape, ENERGY_HARTREE)
    far = DISTANCE_BOHR * (1 + np.arange(atoms))[:, None] * np.array([1.0, 0.0, 0.0])
    npair = shape.nao * (shape.nao + 1) // 2
    # Pairs are numbered so that those of the first orbitals come first, and so are pairs of pairs.
    if len(host.eri) == 1:
        eri = (np.pad(host.eri[0], (0, npair * (npair + 1) // 2 - len(host.eri[0]))),)
    else:
        int3c, int2c = host.eri
        auxiliary = shape.naux - len(int2c)
        metric = np.pad(int2c, (0, auxiliary))
        metric[np.arange(len(int2c), shape.naux), np.arange(len(int2c), shape.naux)] = 1.0
        eri = (np.pad(int3c, ((0, auxiliary), (0, npair - int3c.shape[1]))), metric)
    return HostIntegrals(
        np.concatenate([host.positions, far]), overlap, hcore, eri,
        np.pad(host.minao_overlap, ((0, orbitals), (0, shape.nminao - nminao))),
    )


def pad_levels(matrix: np.ndarray, shape: Shape, value: float) -> np.ndarray:
    """A matrix over atomic orbitals, with a value on the diagonal for each that is added."""
    padded = np.pad(matrix, (0, shape.nao - len(matrix)))
    added = np.arange(len(matrix), shape.nao)
    padded[added, added] = value
    return padded


def shape_of(basis: grid.Basis, points: grid.GridTemplate, nminao: int, naux: int) -> Shape:
    """The shape of a molecule as it comes."""
    shells = tuple(((group.angular, group.exponents.shape[1]), len(group.atom)) for group in basis.groups)
    return Shape(len(points.size_adjustment), shells, len(points.volumes), nminao, naux)
