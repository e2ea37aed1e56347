"""Padding: molecules of different sizes in arrays of one shape, so that they share compiled functions.

Padding does not change any result; a test checks this. Added orbitals overlap with nothing, and their energy is so
high that they are never filled. Added grid points have no weight. Added nuclei have no charge, and are so far away
that they take no part of the grid. The atoms and orbitals of the molecule come first, in their usual order.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from qptlab.dft import grid, kernel
from qptlab.dft.libcint import HostIntegrals

ENERGY_HARTREE = 1e4
"""Energy of an added orbital; above all orbital energies in a basis for light elements."""

DISTANCE_BOHR = 1e6
"""Distance from one added nucleus to the next."""

MAX_ADDED_SHARE = 0.15
"""Largest share of padding among the orbitals, and among the grid points, of all molecules of a model."""

MAX_GROWTH = 1.3
"""Largest ratio of the number of orbitals after and before padding of a molecule that is added to a model."""


class Shape(NamedTuple):
    """Sizes of the arrays of a molecule.

    Attributes:
      natm: number of nuclei.
      shells: number of shells for each pair of angular momentum and number of primitives.
      ngrids: number of grid points.
      nminao: number of orbitals of the `minao` guess.
      naux: number of auxiliary orbitals; 0 for exact integrals.
      response: number of shells of the auxiliary basis of the response, like `shells`; empty without a kernel.
    """

    natm: int
    shells: "Shells"
    ngrids: int
    nminao: int
    naux: int
    response: "Shells" = ()

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return _functions(self.shells)

    @property
    def nresponse(self) -> int:
        """Number of auxiliary functions of the response."""
        return _functions(self.response)


Shells = tuple[tuple[tuple[int, int], int], ...]
"""Number of shells for each pair of angular momentum and number of primitives."""


def _functions(shells: Shells) -> int:
    """Return the number of functions in shells."""
    return sum((2 * l + 1) * count for (l, _), count in shells)


class Padding(NamedTuple):
    """Sizes that several molecules share.

    Attributes:
      shape: sizes of the arrays, in no respect smaller than those of a molecule.
      nocc: largest number of doubly occupied orbitals of the molecules.
    """

    shape: Shape
    nocc: int


def joined(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of a molecule from the shapes of its atoms."""
    return _reduced(shapes, sum)


def union(shapes: Sequence[Shape]) -> Shape:
    """Return the smallest shape that all given shapes fit into."""
    return _reduced(shapes, max)


def _reduced(shapes: Sequence[Shape], of: Callable[[Iterable[int]], int]) -> Shape:
    """Return the shape whose sizes are the sums, or the largest ones, of those of shapes."""
    def shells(name):
        counts = [dict(getattr(shape, name)) for shape in shapes]
        kinds = sorted(set().union(*counts))
        return tuple((kind, of([count.get(kind, 0) for count in counts])) for kind in kinds)

    numbers = {name: of([getattr(shape, name) for shape in shapes]) for name in ("natm", "ngrids", "nminao", "naux")}
    return Shape(shells=shells("shells"), response=shells("response"), **numbers)


def buckets(shapes: Sequence[Shape]) -> list[list[int]]:
    """Group shapes that are padded to one shape.

    Neighbours in size are joined, those first that add least to the arrays on the grid, as long as the share of
    padding stays below `MAX_ADDED_SHARE`. So rare small molecules share a shape, which takes seconds to compile.

    Returns:
      Indices of the shapes in each group, small molecules first.
    """
    same: dict[Shape, list[int]] = {}
    for index in sorted(range(len(shapes)), key=lambda i: shapes[i].nao):
        same.setdefault(shapes[index], []).append(index)
    groups = list(same.items())
    own = [(shape, len(members)) for shape, members in groups]
    unions = [union([first, second]) for (first, _), (second, _) in itertools.pairwise(groups)]
    while unions:
        added = [
            len(first) * (_on_grid(shared) - _on_grid(smaller)) + len(second) * (_on_grid(shared) - _on_grid(larger))
            for ((smaller, first), (larger, second)), shared in zip(itertools.pairwise(groups), unions, strict=True)
        ]
        k = added.index(min(added))
        proposed = [*groups[:k], (unions[k], groups[k][1] + groups[k + 1][1]), *groups[k + 2 :]]
        if max(_added_share(own, [(shared, len(members)) for shared, members in proposed])) > MAX_ADDED_SHARE:
            break
        groups = proposed
        del unions[k]
        for left in {k - 1, k} & set(range(len(unions))):
            unions[left] = union([groups[left][0], groups[left + 1][0]])
    return [members for _, members in groups]


def _on_grid(shape: Shape) -> int:
    """Return the number of values of atomic orbitals on the grid, which most of the time of a step depends on."""
    return shape.nao * shape.ngrids


def holds(padding: Padding, shape: Shape, nocc: int) -> bool:
    """Return true if a molecule fits into the sizes, and none of its arrays grows by more than `MAX_GROWTH`.

    Args:
      padding: sizes with padding.
      shape: sizes of the molecule.
      nocc: number of its doubly occupied orbitals.
    """
    larger = padding.shape
    return (
        _fit(shape.shells, larger.shells) and _fit(shape.response, larger.response)
        and shape.natm <= larger.natm and shape.ngrids <= larger.ngrids and shape.nminao <= larger.nminao
        and shape.naux <= larger.naux and (shape.naux > 0) == (larger.naux > 0) and nocc <= padding.nocc
        and larger.nao <= MAX_GROWTH * shape.nao
    )


def _fit(shells: Shells, larger: Shells) -> bool:
    """Return true if there are no more shells of any kind than in a larger set."""
    counts = dict(larger)
    return all(count <= counts.get(kind, 0) for kind, count in shells)


def added_share(shapes: Sequence[Shape], paddings: Sequence[Padding]) -> tuple[float, float]:
    """Return the shares of padding among the atomic orbitals and among the grid points of molecules.

    Args:
      shapes: sizes without padding.
      paddings: sizes with padding, in the same order.
    """
    return _added_share(collections.Counter(shapes).items(), collections.Counter(p.shape for p in paddings).items())


def _added_share(own: Iterable[tuple[Shape, int]], padded: Iterable[tuple[Shape, int]]) -> tuple[float, float]:
    """Return the shares of padding from the shapes without and with padding, each with its number of molecules."""
    totals = [
        [sum(getattr(shape, size) * number for shape, number in counts) for size in ("nao", "ngrids")]
        for counts in map(list, (own, padded))
    ]
    orbitals, points = (1 - before / max(1, after) for before, after in zip(*totals, strict=True))
    return orbitals, points


def fill(values: Sequence | np.ndarray, size: int, value: float = 0) -> np.ndarray:
    """Return an array whose first axis is padded to a size.

    Args:
      values: array to pad.
      size: length of the first axis of the result.
      value: value of the added elements.
    """
    array = np.asarray(values)
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1), constant_values=value)


def pad_grid(template: grid.GridTemplate, natm: int, ngrids: int) -> grid.GridTemplate:
    """Add grid points without weight. An offset separates them from the nuclei."""
    missing, atoms = ngrids - len(template.volumes), natm - len(template.size_adjustment)
    return grid.GridTemplate(
        np.concatenate([template.offsets, np.ones((missing, 3))]), np.pad(template.volumes, (0, missing)),
        np.pad(template.owner, (0, missing)), np.pad(template.size_adjustment, (0, atoms)),
    )


def pad_kernel(template: kernel.KernelTemplate | None, shape: Shape) -> kernel.KernelTemplate | None:
    """Add points without weight, and functions without coefficients, if there is a kernel."""
    if template is None:
        return None
    each = len(template.grid.volumes) // len(template.grid.size_adjustment)  # all atoms have the same number
    points = pad_grid(template.grid, shape.natm, each * shape.natm)
    return kernel.KernelTemplate(points, pad_basis(template.basis, shape.response))


def pad_basis(basis: grid.Basis, shells: Shells) -> grid.Basis:
    """Add shells without coefficients. Their functions come after all others."""
    present = {(group.angular, group.exponents.shape[1]): group for group in basis.groups}
    groups, following = [], len(basis.order)
    for (l, nprim), count in shells:
        none = np.zeros((0, nprim))
        empty = grid.ShellGroup(np.zeros(0, int), none, none, np.zeros((0, 2 * l + 1), int))
        group = present.get((l, nprim), empty)
        missing = count - len(group.atom)
        ao = following + np.arange(missing * (2 * l + 1)).reshape(missing, 2 * l + 1)
        following += ao.size
        groups.append(grid.ShellGroup(
            np.pad(group.atom, (0, missing)), np.pad(group.exponents, ((0, missing), (0, 0)), constant_values=1.0),
            np.pad(group.coefficients, ((0, missing), (0, 0))), np.concatenate([group.ao, ao]),
        ))
    return grid.basis_of(tuple(groups))


def pad_host(host: HostIntegrals, shape: Shape) -> HostIntegrals:
    """Add integrals of orbitals, nuclei and auxiliary functions that do not interact with the molecule."""
    natm, (nao, nminao) = len(host.positions), host.minao_overlap.shape
    naux = len(host.eri[1]) if len(host.eri) == 2 else 0
    nresponse = len(host.response[1]) if host.response else shape.nresponse
    sizes = (shape.natm, shape.nao, shape.nminao, shape.naux, shape.nresponse)
    if (natm, nao, nminao, naux, nresponse) == sizes:
        return host
    atoms, orbitals = shape.natm - natm, shape.nao - nao
    overlap, hcore = pad_levels(host.overlap, shape, 1.0), pad_levels(host.hcore, shape, ENERGY_HARTREE)
    far = DISTANCE_BOHR * (1 + np.arange(atoms))[:, None] * np.array([1.0, 0.0, 0.0])
    npair = shape.nao * (shape.nao + 1) // 2
    return HostIntegrals(
        np.concatenate([host.positions, far]), overlap, hcore, _pad_eri(host.eri, shape.naux, npair),
        np.pad(host.minao_overlap, ((0, orbitals), (0, shape.nminao - nminao))), host.e_disp,
        _pad_eri(host.response, shape.nresponse, npair), _pad_eri(host.long_range, shape.naux, npair),
    )


def _pad_eri(eri: tuple[np.ndarray, ...], naux: int, npair: int) -> tuple[np.ndarray, ...]:
    """Pad two-electron integrals, fitted ones with added functions that repel themselves alone."""
    if not eri:
        return ()
    if len(eri) == 1:
        # Pairs of the first orbitals come first, and so do pairs of these pairs. Added elements come last.
        return (np.pad(eri[0], (0, npair * (npair + 1) // 2 - len(eri[0]))),)
    int3c, *metrics = eri
    added = np.arange(len(int3c), naux)
    padded = [np.pad(metric, (0, len(added))) for metric in metrics]
    for metric in padded:
        metric[added, added] = 1.0
    return np.pad(int3c, ((0, len(added)), (0, npair - int3c.shape[1]))), *padded


def pad_levels(matrix: np.ndarray, shape: Shape, value: float) -> np.ndarray:
    """Pad a matrix over atomic orbitals.

    Args:
      matrix: matrix over the molecule's atomic orbitals.
      shape: shape after padding.
      value: diagonal element of each added orbital.
    """
    padded = np.pad(matrix, (0, shape.nao - len(matrix)))
    added = np.arange(len(matrix), shape.nao)
    padded[added, added] = value
    return padded


def shape_of(
    basis: grid.Basis, points: grid.GridTemplate, nminao: int, naux: int, response: grid.Basis | None
) -> Shape:
    """Return the shape of a molecule without padding.

    Args:
      basis: atomic orbitals.
      points: integration grid.
      nminao: number of orbitals of the `minao` guess.
      naux: number of auxiliary orbitals; 0 for exact integrals.
      response: auxiliary functions of the response; None without a kernel.
    """
    shells, auxiliary = (
        tuple(((group.angular, group.exponents.shape[1]), len(group.atom)) for group in functions.groups)
        if functions else () for functions in (basis, response)
    )
    return Shape(len(points.size_adjustment), shells, len(points.volumes), nminao, naux, auxiliary)
