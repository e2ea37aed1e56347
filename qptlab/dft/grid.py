"""Integration grids, atomic-orbital values and AO rotations, on the device, from positions.

A grid is a fixed template, one cloud of points per atom, that moves with the atoms; only Becke's
partition weights depend on the geometry. Becke 1988 (doi:10.1063/1.454033), with the size
adjustment of Treutler & Ahlrichs 1995 (doi:10.1063/1.469408). Orders and normalisation of the
atomic orbitals are PySCF's: real solid harmonics, p as x, y, z, then m = −l … l.
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
"""On the device, or before they go there."""


class GridTemplate(NamedTuple):
    """Atomic point clouds before the partition; what `becke_grid` moves with the atoms.

    Attributes:
      offsets: points relative to their atom, bohr.
      volumes: quadrature weights before the partition, cubic bohr.
      owner: the atom each point belongs to.
      size_adjustment: a_ij of Treutler & Ahlrichs (their eq. 11 and below), antisymmetric.
    """

    offsets: Float[Numbers, "ngrids 3"]
    volumes: Float[Numbers, " ngrids"]
    owner: Int[Numbers, " ngrids"]
    size_adjustment: Float[Numbers, "natm natm"]


class ShellGroup(NamedTuple):
    """Shells of one angular momentum and one number of primitives: one array axis on the device.

    Attributes:
      atom: the atom of each shell.
      exponents: 1/bohr².
      coefficients: of normalised primitives; zero for a shell that only fills up.
      ao: where each shell's functions stand in PySCF's order.
    """

    atom: Int[Numbers, " nshell"]
    exponents: Float[Numbers, "nshell nprim"]
    coefficients: Float[Numbers, "nshell nprim"]
    ao: Int[Numbers, "nshell nm"]

    @property
    def angular(self) -> int:
        """Angular momentum."""
        return self.ao.shape[1] // 2


class Basis(NamedTuple):
    """The atomic orbitals of a molecule; a pytree, so that molecules of one shape share what is compiled.

    Attributes:
      groups: the shells.
      order: where each AO, in PySCF's order, stands when groups, components and shells are gone through in turn.
    """

    groups: tuple[ShellGroup, ...]
    order: Int[Numbers, " nao"]


def basis_of(groups: tuple[ShellGroup, ...]) -> Basis:
    """A basis from its shells."""
    return Basis(groups, np.argsort(np.concatenate([group.ao.T.ravel() for group in groups])))


def becke_grid(
    positions: Float[Array, "natm 3"], grid: GridTemplate
) -> tuple[Float[Array, "ngrids 3"], Float[Array, " ngrids"]]:
    """Points (bohr) and weights (cubic bohr) of the molecular grid."""
    coords = jnp.asarray(grid.offsets) + positions[jnp.asarray(grid.owner)]
    same = jnp.eye(len(positions), dtype=bool)
    away = coords.T[:, None, :] - positions.T[:, :, None]
    distance = jnp.sqrt(jnp.sum(away**2, axis=0))  # [natm, ngrids]
    between = jnp.sqrt(jnp.sum((positions[:, None] - positions) ** 2, axis=-1) + same)

    @jax.checkpoint  # one atom at a time, backwards too: (natm, ngrids) at once, not (natm, natm, ngrids)
    def cell(i):
        mu = (distance[i] - distance) / between[i][:, None]
        mu = mu + jnp.asarray(grid.size_adjustment)[i][:, None] * (1 - mu**2)
        for _ in range(3):
            mu = 0.5 * mu * (3 - mu**2)
        return jnp.prod(jnp.where(same[i][:, None], 1.0, 0.5 * (1 - mu)), axis=0)

    cells = jax.lax.map(cell, jnp.arange(len(positions)))
    own = jnp.take_along_axis(cells, jnp.asarray(grid.owner)[None], axis=0)[0]
    return coords, jnp.asarray(grid.volumes) * own / jnp.sum(cells, axis=0)


def solid_harmonics(r: Float[Array, "*points 3"], l: int) -> Float[Array, "*points nm"]:
    """Real solid harmonics r^l·Y_lm in PySCF's order, orthonormal on the unit sphere.

    Raises:
      ValueError: for l above `MAX_L`.
    """
    if not 0 <= l <= MAX_L:
        raise ValueError(f"angular momentum {l} is not implemented; 0 to {MAX_L} would do.")
    return jnp.stack(_components(r[..., 0], r[..., 1], r[..., 2], l), axis=-1)


def _components(x, y, z, l):
    root, norm = math.sqrt, 1 / math.sqrt(4 * math.pi)  # not numpy's, which are of double precision
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
    """Atomic orbitals on points, and their gradients.

    Points are the last axis, along which the processor's vector units work; PySCF has them first.

    Args:
      positions: nuclei, bohr.
      coords: points, bohr.
      basis: the orbitals.
      derivatives: whether the gradient is wanted.

    Returns:
      Values, shape (1, nao, ngrids); with `derivatives`, (4, nao, ngrids): value, ∂x, ∂y, ∂z.
    """
    blocks = [_eval_group(positions, coords, group, derivatives) for group in basis.groups]
    return jnp.concatenate(blocks, axis=1)[:, basis.order]


def _eval_group(positions, coords, group, derivatives):
    """[nderiv, components · shells, ngrids]."""
    r = coords.T[:, None, :] - positions[jnp.asarray(group.atom)].T[:, :, None]  # [3, nshell, ngrids]
    r2 = jnp.sum(r * r, axis=0)
    exponents, coefficients = jnp.asarray(group.exponents), jnp.asarray(group.coefficients)
    terms = [c[:, None] * jnp.exp(-a[:, None] * r2) for a, c in zip(exponents.T, coefficients.T, strict=True)]
    radial = sum(terms)
    slope = sum(-2 * a[:, None] * term for a, term in zip(exponents.T, terms, strict=True))
    # Without the barrier XLA evaluates the exponentials anew for every component.
    radial, slope = jax.lax.optimization_barrier((radial, slope))
    angular = _components(r[0], r[1], r[2], group.angular)
    rows = [radial * component for component in angular]
    if derivatives:
        for axis in range(3):
            slopes = _component_slopes(r, group.angular, axis)
            rows += [slope * r[axis] * y + radial * dy for y, dy in zip(angular, slopes, strict=True)]
    return jnp.stack(rows).reshape(4 if derivatives else 1, -1, len(coords))


def _component_slopes(r, l, axis):
    def moved(value):
        x, y, z = (value if i == axis else r[i] for i in range(3))
        return _components(x, y, z, l)

    return jax.jvp(moved, (r[axis],), (jnp.ones_like(r[axis]),))[1]


def ao_rotation(rotation: Float[Array, "3 3"], basis: Basis) -> Float[Array, "nao nao"]:
    """How a rotation of the molecule mixes its atomic orbitals.

    With positions rotated as x → R·x, an orbital's coefficients go to `ao_rotation(R) @ c`, and a
    matrix over AOs (density or Fock) to U·M·Uᵀ. Found by evaluating the solid harmonics
    on rotated points, so it shares their conventions by construction.
    """
    nao = len(basis.order)
    matrix = jnp.zeros((nao, nao))
    for group in basis.groups:
        block = _harmonic_rotation(rotation, group.angular)
        rows = group.ao[:, :, None]
        matrix = matrix.at[rows, group.ao[:, None, :]].set(block)
    return matrix


def _harmonic_rotation(rotation, l):
    points = np.random.default_rng(0).normal(size=(4 * (2 * l + 1), 3))
    here = np.asarray(solid_harmonics_numpy(points, l))
    rotated = solid_harmonics(jnp.asarray(points) @ rotation.T, l)
    # Y(R x) = Y(x)·B, and a function with coefficients c in the rotated molecule takes at R x the
    # value it had at x: Y(R x)·c' = Y(x)·c, so c' = B⁻¹c = Bᵀc.
    return (np.linalg.pinv(here) @ rotated).T


def solid_harmonics_numpy(points: np.ndarray, l: int) -> np.ndarray:
    """`solid_harmonics` evaluated at once, outside any trace."""
    with jax.ensure_compile_time_eval():
        return np.asarray(solid_harmonics(jnp.asarray(points), l))
