"""Semilocal exchange–correlation energy and matrix of a density matrix, by quadrature on the grid.

Grid points are processed in chunks, so that memory is bounded. The density on the grid is a linear function of the
density matrix. The transpose of this map turns the functional's derivatives into a matrix (Pople, Gill & Johnson
1992, doi:10.1016/0009-2614(92)85009-Y). The reverse rule is written by hand: the matrix is the derivative of the
energy, so its own derivative is symmetric, and one forward pass in the direction of the cotangent gives it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qptlab.dft import functionals, grid
from qptlab.dft.grid import Basis
from qptlab.dft.integrals import Integrals
from qptlab.system.functional import Functional


class _Points(NamedTuple):
    """Grid in chunks, and everything that its AO values depend on.

    Attributes:
      basis: atomic orbitals.
      positions: nuclear positions, bohr.
      coords: grid points, bohr.
      weights: weights of the grid points, cubic bohr.
      aos: AO values on the grid, and their gradients if the functional reads them; None if they are recomputed.
    """

    basis: Basis
    positions: Float[Array, "natm 3"]
    coords: Float[Array, "nchunk chunk 3"]
    weights: Float[Array, "nchunk chunk"]
    aos: Float[Array, "nchunk nderiv nao chunk"] | None


def exchange_correlation(
    dm: Float[Array, "nspin nao nao"], ints: Integrals
) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
    """Return the semilocal exchange–correlation energy and its derivative by the density matrix, hartree.

    Reverse differentiation works with respect to the density matrix and to the arrays of the integrals.

    Args:
      dm: symmetric density matrices, electrons per AO pair: the total one of a closed shell, or one for each spin.
      ints: integrals of the geometry; they hold the functional.
    """
    if ints.functional.nvar == 0:
        return jnp.zeros(()), jnp.zeros_like(dm)
    chunk = ints.layout.chunk
    points = _Points(
        ints.basis, ints.positions, ints.coords.reshape(-1, chunk, 3), ints.weights.reshape(-1, chunk), ints.aos
    )
    return _energy_and_matrix(0.5 * (dm + jnp.swapaxes(dm, 1, 2)), points, ints.functional)


Matrices = Float[Array, "nspin nao nao"]
"""One matrix over atomic orbitals for each spin."""

Densities = Float[Array, "nchunk nspin nvar chunk"]
"""Rows of the density on all grid points, chunk by chunk."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _energy_and_matrix(dm: Matrices, points: _Points, functional: Functional) -> tuple[Float[Array, ""], Matrices]:
    energy, matrix, _ = _forward(dm, points, functional)
    return energy, matrix


def _forward(
    dm: Matrices, points: _Points, functional: Functional
) -> tuple[Float[Array, ""], Matrices, Densities]:
    nvar = functional.nvar

    def add(total, chunk):
        aos, weights = _aos(points, chunk, nvar), chunk.weights
        density = _to_grid(dm, aos, nvar)
        potential = functionals.potential(density, functional)
        energy, matrix = total
        return (energy + weights @ potential.exc, matrix + _from_grid(weights * potential.v, aos)), density

    start = (jnp.zeros((), dm.dtype), jnp.zeros_like(dm))
    (energy, matrix), densities = jax.lax.scan(add, start, _chunks(points))
    return energy, matrix, densities


def _forward_with_residuals(
    dm: Matrices, points: _Points, functional: Functional
) -> tuple[tuple[Float[Array, ""], Matrices], tuple]:
    energy, matrix, densities = _forward(dm, points, functional)
    return (energy, matrix), (dm, points, matrix, densities)


def _backward(
    functional: Functional,
    residuals: tuple[Matrices, _Points, Matrices, Densities],
    bars: tuple[Float[Array, ""], Matrices],
) -> tuple[Matrices, _Points]:
    dm, points, matrix, densities = residuals
    energy_bar, matrix_bar = bars
    matrix_bar = 0.5 * (matrix_bar + jnp.swapaxes(matrix_bar, 1, 2))
    dm_bar = energy_bar * matrix + _kernel(matrix_bar, points, densities, functional)

    def contracted(points):
        # The derivative of this number with respect to the density matrix is dm_bar, and with respect to the points
        # it is points_bar.
        energy, slope = jax.jvp(lambda d: _energy(d, points, functional), (dm,), (matrix_bar,))
        return energy_bar * energy + slope

    # XLA removes this where no derivative with respect to positions is needed.
    points_bar = jax.grad(contracted, allow_int=True)(points)
    return dm_bar, points_bar


_energy_and_matrix.defvjp(_forward_with_residuals, _backward)


def _kernel(direction: Matrices, points: _Points, densities: Densities, functional: Functional) -> Matrices:
    """Return the derivative of the exchange–correlation matrix along a direction of the density matrix."""
    nvar = functional.nvar

    def add(total, inputs):
        chunk, density = inputs
        aos = _aos(points, chunk, nvar)
        moved = _to_grid(direction, aos, nvar)
        _, v = jax.jvp(lambda d: functionals.potential(d, functional).v, (density,), (moved,))
        return total + _from_grid(chunk.weights * v, aos), None

    return jax.lax.scan(add, jnp.zeros_like(direction), (_chunks(points), densities))[0]


def _energy(dm: Matrices, points: _Points, functional: Functional) -> Float[Array, ""]:
    nvar = functional.nvar

    @jax.checkpoint
    def add(total, chunk):
        density = _to_grid(dm, _aos(points, chunk, nvar), nvar)
        return total + chunk.weights @ functionals.energy_density(density, functional), None

    return jax.lax.scan(add, jnp.zeros((), dm.dtype), _chunks(points))[0]


class _Chunk(NamedTuple):
    coords: Float[Array, "chunk 3"]
    weights: Float[Array, " chunk"]
    aos: Float[Array, "nderiv nao chunk"] | None


def _chunks(points: _Points) -> _Chunk:
    """Return the arrays of all chunks, for `jax.lax.scan`, which hands them over one by one."""
    return _Chunk(points.coords, points.weights, points.aos)


def _aos(points: _Points, chunk: _Chunk, nvar: int) -> Float[Array, "nderiv nao chunk"]:
    if chunk.aos is not None:
        return chunk.aos
    return grid.eval_aos(points.positions, chunk.coords, points.basis, derivatives=nvar > 1)


def _to_grid(dm: Matrices, aos: Float[Array, "nderiv nao chunk"], nvar: int) -> Float[Array, "nspin nvar chunk"]:
    """Return ρ, ∇ρ and τ on points, as far as they are asked for."""
    half = jnp.einsum("sij,jg->sig", dm, aos[0])
    rows = [jnp.sum(half * aos[0], axis=1)]
    if nvar > 1:
        rows += [2 * jnp.sum(half * aos[x], axis=1) for x in (1, 2, 3)]
    if nvar > 4:
        rows.append(0.5 * jnp.sum(jnp.einsum("sij,xjg->sxig", dm, aos[1:]) * aos[1:], axis=(1, 2)))
    return jnp.stack(rows, axis=1)


def _from_grid(v: Float[Array, "nspin nvar chunk"], aos: Float[Array, "nderiv nao chunk"]) -> Matrices:
    """Apply the transpose of `_to_grid`, symmetrised."""
    carrier = 0.5 * v[:, 0, None] * aos[0]
    for x in range(1, min(v.shape[1], 4)):
        carrier += v[:, x, None] * aos[x]
    half = jnp.einsum("ig,sjg->sij", aos[0], carrier)
    if v.shape[1] > 4:
        for x in (1, 2, 3):
            half += jnp.einsum("ig,sjg->sij", aos[x], 0.25 * v[:, 4, None] * aos[x])
    return half + jnp.swapaxes(half, 1, 2)
