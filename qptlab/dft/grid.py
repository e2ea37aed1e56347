"""Integration grid, values of atomic orbitals, and rotations of atomic orbitals: functions of the positions in JAX.

A grid is a fixed template, one cloud of points per atom, that moves with the atoms. Only Becke's partition weights
depend on the geometry (Becke 1988, doi:10.1063/1.454033), with the size adjustment of Treutler & Ahlrichs 1995
(doi:10.1063/1.469408). The order and the normalisation of the atomic orbitals are PySCF's: real solid harmonics, p as
x, y, z, all others as m = −l … l.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MAX_L = 3
"""Highest angular momentum of a shell: f."""

Numbers = Array | np.ndarray
"""An array on the device, or on the host before it is copied there."""


class GridTemplate(NamedTuple):
    """Point clouds of the atoms before the partition; `becke_grid` places them on a geometry.

    Attributes:
      offsets: points relative to their atom, bohr.
      volumes: quadrature weights before the partition, cubic bohr.
      owner: index of the atom that each point belongs to.
      size_adjustment: antisymmetric parameters a_ij of Treutler & Ahlrichs (their eq. 11 and below).
    """

    offsets: Float[Numbers, "ngrids 3"]
    volumes: Float[Numbers, " ngrids"]
    owner: Int[Numbers, " ngrids"]
    size_adjustment: Float[Numbers, "natm natm"]


class ShellGroup(NamedTuple):
    """Shells with the same angular momentum and the same number of primitives, stored in common arrays.

    Attributes:
      atom: index of the atom of each shell.
      exponents: exponents of the primitives, 1/bohr².
      coefficients: coefficients of the normalised primitives; zero for a shell that pads a molecule.
      ao: indices of each shell's functions in PySCF's order of the atomic orbitals.
    """

    atom: Int[Numbers, " nshell"]
    exponents: Float[Numbers, "nshell nprim"]
    coefficients: Float[Numbers, "nshell nprim"]
    ao: Int[Numbers, "nshell nm"]

    @property
    def angular(self) -> int:
        """Return the angular momentum."""
        return self.ao.shape[1] // 2


class Basis(NamedTuple):
    """Atomic orbitals of a molecule; a pytree, so that molecules of one shape share compiled functions.

    Attributes:
      groups: groups of shells.
      order: index of each AO, in PySCF's order, in the array that holds the functions by group, component and shell.
    """

    groups: tuple[ShellGroup, ...]
    order: Int[Numbers, " nao"]


def basis_of(groups: tuple[ShellGroup, ...]) -> Basis:
    """Return the basis of groups of shells."""
    return Basis(groups, np.argsort(np.concatenate([group.ao.T.ravel() for group in groups])))


def becke_grid(
    positions: Float[Array, "natm 3"], grid: GridTemplate
) -> tuple[Float[Array, "ngrids 3"], Float[Array, " ngrids"]]:
    """Return the points (bohr) and the weights (cubic bohr) of the molecular grid.

    Args:
      positions: nuclear positions, bohr.
      grid: point clouds of the atoms.
    """
    coords = jnp.asarray(grid.offsets) + positions[jnp.asarray(grid.owner)]
    same = jnp.eye(len(positions), dtype=bool)
    away = coords.T[:, None, :] - positions.T[:, :, None]
    distance = jnp.sqrt(jnp.sum(away**2, axis=0))  # [natm, ngrids]
    between = jnp.sqrt(jnp.sum((positions[:, None] - positions) ** 2, axis=-1) + same)

    # One atom at a time, also in the reverse pass: memory for (natm, ngrids), not for (natm, natm, ngrids).
    @jax.checkpoint
    def cell(i):
        mu = (distance[i] - distance) / between[i][:, None]
        mu = mu + jnp.asarray(grid.size_adjustment)[i][:, None] * (1 - mu**2)
        for _ in range(3):
            mu = 0.5 * mu * (3 - mu**2)
        return jnp.prod(jnp.where(same[i][:, None], 1.0, 0.5 * (1 - mu)), axis=0)

    cells = jax.lax.map(cell, jnp.arange(len(positions)))
    owner_cell = jnp.take_along_axis(cells, jnp.asarray(grid.owner)[None], axis=0)[0]
    return coords, jnp.asarray(grid.volumes) * owner_cell / jnp.sum(cells, axis=0)


def whole_chunks(
    coords: Float[Array, "ngrids 3"], weights: Float[Array, " ngrids"], chunk: int
) -> tuple[Float[Array, "npoints 3"], Float[Array, " npoints"]]:
    """Return points and weights with copies of the first point, without weight, that complete the last chunk.

    Args:
      coords: grid points, bohr.
      weights: weights of the grid points, cubic bohr.
      chunk: number of points in a chunk.
    """
    missing = -len(weights) % chunk
    return jnp.concatenate([coords, coords[:1].repeat(missing, axis=0)]), jnp.pad(weights, (0, missing))


def solid_harmonics(r: Float[Array, "*points 3"], l: int) -> Float[Array, "*points nm"]:
    """Return the real solid harmonics r^l·Y_lm in PySCF's order, orthonormal on the unit sphere.

    Args:
      r: positions relative to the centre, bohr.
      l: angular momentum.

    Raises:
      ValueError: if l is above `MAX_L`.
    """
    if not 0 <= l <= MAX_L:
        raise ValueError(f"Expected an angular momentum of 0 to {MAX_L}, got {l}; use a basis with smaller shells.")
    return jnp.stack(_components(r[..., 0], r[..., 1], r[..., 2], l), axis=-1)


def _components(
    x: Float[Array, "*points"], y: Float[Array, "*points"], z: Float[Array, "*points"], l: int
) -> list[Float[Array, "*points"]]:
    """Return the real solid harmonics of one angular momentum, one array for each m."""
    root, norm = math.sqrt, 1 / math.sqrt(4 * math.pi)  # NumPy's numbers would turn float32 into float64
    if l == 0:
        functions = [jnp.ones_like(x)]
    elif l == 1:
        functions = [root(3) * x, root(3) * y, root(3) * z]
    elif l == 2:
        functions = [
            root(15) * x * y, root(15) * y * z, root(5) / 2 * (2 * z * z - x * x - y * y),
            root(15) * x * z, root(15) / 2 * (x * x - y * y),
        ]
    else:
        functions = [
            root(35 / 8) * y * (3 * x * x - y * y), root(105) * x * y * z,
            root(21 / 8) * y * (4 * z * z - x * x - y * y),
            root(7) / 2 * z * (2 * z * z - 3 * x * x - 3 * y * y),
            root(21 / 8) * x * (4 * z * z - x * x - y * y), root(105) / 2 * z * (x * x - y * y),
            root(35 / 8) * x * (x * x - 3 * y * y),
        ]
    return [norm * f for f in functions]


def eval_aos(
    positions: Float[Array, "natm 3"],
    coords: Float[Array, "ngrids 3"],
    basis: Basis,
    *,
    derivatives: bool,
) -> Float[Array, "nderiv nao ngrids"]:
    """Return the values of the atomic orbitals on points, and their gradients.

    Points are the last axis, along which the vector units of a processor work. (In PySCF, points are the first axis.)

    Args:
      positions: nuclear positions, bohr.
      coords: points, bohr.
      basis: atomic orbitals.
      derivatives: if true, return the gradients as well.

    Returns:
      Values, shape (1, nao, ngrids). With `derivatives`, shape (4, nao, ngrids): value, ∂x, ∂y, ∂z.
    """
    blocks = [_eval_group(positions, coords, group, derivatives) for group in basis.groups]
    return jnp.concatenate(blocks, axis=1)[:, basis.order]


def _eval_group(
    positions: Float[Array, "natm 3"], coords: Float[Array, "ngrids 3"], group: ShellGroup, derivatives: bool
) -> Float[Array, "nderiv functions ngrids"]:
    """Return the functions of one group of shells; components change more slowly than shells."""
    r = coords.T[:, None, :] - positions[jnp.asarray(group.atom)].T[:, :, None]  # [3, nshell, ngrids]
    r2 = jnp.sum(r * r, axis=0)
    exponents, coefficients = jnp.asarray(group.exponents), jnp.asarray(group.coefficients)
    terms = [c[:, None] * jnp.exp(-a[:, None] * r2) for a, c in zip(exponents.T, coefficients.T, strict=True)]
    radial = sum(terms)
    slope = sum(-2 * a[:, None] * term for a, term in zip(exponents.T, terms, strict=True))
    # Without the barrier, XLA evaluates the exponentials again for every component.
    radial, slope = jax.lax.optimization_barrier((radial, slope))
    angular = _components(r[0], r[1], r[2], group.angular)
    rows = [radial * component for component in angular]
    if derivatives:
        for axis in range(3):
            slopes = _component_slopes(r, group.angular, axis)
            rows += [slope * r[axis] * y + radial * dy for y, dy in zip(angular, slopes, strict=True)]
    return jnp.stack(rows).reshape(4 if derivatives else 1, -1, len(coords))


def _component_slopes(r: Float[Array, "3 nshell ngrids"], l: int, axis: int) -> list[Float[Array, "nshell ngrids"]]:
    """Return the derivatives of the solid harmonics along one axis."""
    def components(value):
        x, y, z = (value if i == axis else r[i] for i in range(3))
        return _components(x, y, z, l)

    return jax.jvp(components, (r[axis],), (jnp.ones_like(r[axis]),))[1]


def ao_rotation(rotation: Float[Array, "3 3"], basis: Basis) -> Float[Array, "nao nao"]:
    """Return the matrix U that rotates the coefficients of atomic orbitals with the molecule.

    If positions rotate as x → R·x, the coefficients of an orbital become U·c, and a matrix over atomic orbitals
    (density or Fock matrix) becomes U·M·Uᵀ. U is computed from the solid harmonics on rotated points, so it has their
    conventions by construction.

    Args:
      rotation: rotation matrix R.
      basis: atomic orbitals.
    """
    nao = len(basis.order)
    matrix = jnp.zeros((nao, nao))
    for group in basis.groups:
        block = _harmonic_rotation(rotation, group.angular)
        rows = group.ao[:, :, None]
        matrix = matrix.at[rows, group.ao[:, None, :]].set(block)
    return matrix


def _harmonic_rotation(rotation: Float[Array, "3 3"], l: int) -> Float[Array, "nm nm"]:
    """Return the rotation matrix of the solid harmonics of one angular momentum."""
    points = np.random.default_rng(0).normal(size=(4 * (2 * l + 1), 3))
    original = np.asarray(solid_harmonics_numpy(points, l))
    rotated = solid_harmonics(jnp.asarray(points) @ rotation.T, l)
    # Y(R x) = Y(x)·B. A function with coefficients c' in the rotated molecule has at R x the value that the function
    # with coefficients c had at x: Y(R x)·c' = Y(x)·c, so c' = B⁻¹c = Bᵀc.
    return jnp.asarray(np.linalg.pinv(original) @ rotated).T


def solid_harmonics_numpy(points: Float[np.ndarray, "npoint 3"], l: int) -> Float[np.ndarray, "npoint nm"]:
    """Return `solid_harmonics` as a NumPy array, evaluated outside any trace."""
    with jax.ensure_compile_time_eval():
        return np.asarray(solid_harmonics(jnp.asarray(points), l))
