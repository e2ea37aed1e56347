"""The exchange–correlation energy and matrix of a density, by quadrature on the grid.

Grid points are dealt with in chunks, so that memory is bounded. From a density matrix to the density on the grid
is a linear map; its transpose takes the functional's derivatives back to a matrix (Pople, Gill & Johnson 1992,
doi:10.1016/0009-2614(92)85009-Y). The reverse rule is written by hand: the matrix is itself a derivative of the
energy, so its derivative is symmetric, and one pass forwards in the direction of the cotangent gives it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qptlab.dft import functionals, grid
from qptlab.dft.grid import Basis
from qptlab.dft.integrals import Integrals


class _Points(NamedTuple):
    """The grid, chunk by chunk, and what its AO values follow from."""

    basis: Basis
    positions: Array
    coords: Array  # [nchunk, chunk, 3]
    weights: Array  # [nchunk, chunk]
    aos: Array | None  # [nchunk, nderiv, nao, chunk]


def exchange_correlation(
    dm: Float[Array, "nspin nao nao"], ints: Integrals
) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
    """Semilocal exchange–correlation energy (hartree), and its derivative with respect to the density matrix.

    Differentiable in reverse, with respect to the density matrix and to what the integrals hold.

    Args:
      dm: symmetric; the total density of a closed shell, or one of each spin.
      ints: integrals of the geometry; they hold the functional.
    """
    if ints.functional.nvar == 0:
        return jnp.zeros(()), jnp.zeros_like(dm)
    chunk = ints.layout.chunk
    points = _Points(
        ints.basis, ints.positions, ints.coords.reshape(-1, chunk, 3), ints.weights.reshape(-1, chunk), ints.aos
    )
    return _energy_and_matrix(0.5 * (dm + jnp.swapaxes(dm, 1, 2)), points, ints.functional)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _energy_and_matrix(dm, points, functional):
    energy, matrix, _ = _forward(dm, points, functional)
    return energy, matrix


def _forward(dm, points, functional):
    nvar = functional.nvar

    def add(total, chunk):
        aos, weights = _aos(points, chunk, nvar), chunk.weights
        density = _to_grid(dm, aos, nvar)
        found = functionals.potential(density, functional)
        energy, matrix = total
        return (energy + weights @ found.exc, matrix + _from_grid(weights * found.v, aos)), density

    start = (jnp.zeros((), dm.dtype), jnp.zeros_like(dm))
    (energy, matrix), densities = jax.lax.scan(add, start, _chunks(points))
    return energy, matrix, densities


def _remember(dm, points, functional):
    energy, matrix, densities = _forward(dm, points, functional)
    return (energy, matrix), (dm, points, matrix, densities)


def _backward(functional, residuals, bars):
    dm, points, matrix, densities = residuals
    energy_bar, matrix_bar = bars
    matrix_bar = 0.5 * (matrix_bar + jnp.swapaxes(matrix_bar, 1, 2))
    dm_bar = energy_bar * matrix + _kernel(matrix_bar, points, densities, functional)

    def along(points):
        # Its derivative with respect to the density matrix is dm_bar, and with respect to the points what is missing.
        energy, slope = jax.jvp(lambda d: _energy(d, points, functional), (dm,), (matrix_bar,))
        return energy_bar * energy + slope

    # Compiled away where nobody asks for derivatives with respect to positions.
    points_bar = jax.grad(along, allow_int=True)(points)
    return dm_bar, points_bar


_energy_and_matrix.defvjp(_remember, _backward)


def _kernel(direction, points, densities, functional):
    """Derivative of the matrix when the density matrix moves in a direction."""
    nvar = functional.nvar

    def add(total, given):
        chunk, density = given
        aos = _aos(points, chunk, nvar)
        moved = _to_grid(direction, aos, nvar)
        _, v = jax.jvp(lambda d: functionals.potential(d, functional).v, (density,), (moved,))
        return total + _from_grid(chunk.weights * v, aos), None

    return jax.lax.scan(add, jnp.zeros_like(direction), (_chunks(points), densities))[0]


def _energy(dm, points, functional):
    nvar = functional.nvar

    @jax.checkpoint
    def add(total, chunk):
        density = _to_grid(dm, _aos(points, chunk, nvar), nvar)
        return total + chunk.weights @ functionals.energy_density(density, functional), None

    return jax.lax.scan(add, jnp.zeros((), dm.dtype), _chunks(points))[0]


class _Chunk(NamedTuple):
    coords: Array
    weights: Array
    aos: Array | None


def _chunks(points):
    return _Chunk(points.coords, points.weights, points.aos)


def _aos(points, chunk, nvar):
    if chunk.aos is not None:
        return chunk.aos
    return grid.eval_aos(points.positions, chunk.coords, points.basis, derivatives=nvar > 1)


def _to_grid(dm, aos, nvar):
    """ρ, ∇ρ and τ on points: [nspin, nvar, points]."""
    half = jnp.einsum("sij,jg->sig", dm, aos[0])
    rows = [jnp.sum(half * aos[0], axis=1)]
    if nvar > 1:
        rows += [2 * jnp.sum(half * aos[x], axis=1) for x in (1, 2, 3)]
    if nvar > 4:
        rows.append(0.5 * jnp.sum(jnp.einsum("sij,xjg->sxig", dm, aos[1:]) * aos[1:], axis=(1, 2)))
    return jnp.stack(rows, axis=1)


def _from_grid(v, aos):
    """The transpose of `_to_grid`, symmetrised."""
    carrier = 0.5 * v[:, 0, None] * aos[0]
    for x in range(1, min(v.shape[1], 4)):
        carrier += v[:, x, None] * aos[x]
    half = jnp.einsum("ig,sjg->sij", aos[0], carrier)
    if v.shape[1] > 4:
        for x in (1, 2, 3):
            half += jnp.einsum("ig,sjg->sij", aos[x], 0.25 * v[:, 4, None] * aos[x])
    return half + jnp.swapaxes(half, 1, 2)
