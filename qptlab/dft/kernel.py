"""Approximate derivative 𝒦 of a closed shell's Fock matrix with respect to the density, on the device.

`dft.response` states what 𝒦 is made of, with the sources. Its arrays here are in single precision: the other
approximations are much larger than rounding errors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qptlab.dft import functionals, grid
from qptlab.dft.response import MIN_DENSITY
from qptlab.system.functional import ClosedShellDensity, Functional

GRID_BLOCK = 2048
"""Number of grid points that are treated together, so that the arrays stay in a processor's cache."""


class KernelTemplate(NamedTuple):
    """Coarse grid and auxiliary functions, which all geometries of a molecule share.

    Attributes:
      grid: coarse point clouds of the atoms.
      basis: auxiliary functions.
    """

    grid: grid.GridTemplate
    basis: grid.Basis


class Kernel(NamedTuple):
    """Derivative 𝒦 at the density of the `minao` guess; a pytree.

    Attributes:
      factors: integrals (P|ij) of the auxiliary functions, made orthonormal for the Coulomb repulsion, over pairs
        i ≥ j, hartree^½.
      matrix: Coulomb and exchange–correlation kernel over these functions; the unit matrix for the Coulomb repulsion
        alone. Exact exchange is not in it.
      exchange: repulsion of these functions in exact exchange, with the functional's share of it at each range; None
        without range separation, where it is the unit matrix times the share.
    """

    factors: Float[Array, "naux npair"]
    matrix: Float[Array, "naux naux"]
    exchange: Float[Array, "naux naux"] | None


def derivative(
    host: tuple[Array, ...], positions: Float[Array, "natm 3"], basis: grid.Basis, template: KernelTemplate,
    guess: Float[Array, "nao n"], functional: Functional,
) -> Kernel:
    """Return the derivative at one geometry.

    Args:
      host: integrals (P|ij) over pairs i ≥ j, (P|Q) and, with range separation, (P|Q) of erf(ωr)/r, from libcint,
        hartree.
      positions: nuclear positions, bohr.
      basis: atomic orbitals.
      template: coarse grid and auxiliary functions.
      guess: orbitals C of the guess density C·Cᵀ.
      functional: functional; its shares of exact exchange, and whether it has a semilocal part, are read.
    """
    int3c, int2c, *long_range = host
    root = jnp.linalg.cholesky(int2c)
    factors = jax.scipy.linalg.solve_triangular(root, int3c, lower=True).astype(jnp.float32)
    matrix, exchange = jnp.eye(len(int2c)), None
    if functional.nvar:
        numeric = _lda_kernel(positions, basis, template, guess, functional).astype(root.dtype)
        matrix += _in_orthonormal_basis(numeric, root)
    if functional.omega:
        added = functional.added_at_long_range * _in_orthonormal_basis(long_range[0], root)
        exchange = (functional.exact_exchange * jnp.eye(len(int2c)) + added).astype(jnp.float32)
    return Kernel(factors, matrix.astype(jnp.float32), exchange)


def _in_orthonormal_basis(
    matrix: Float[Array, "naux naux"], root: Float[Array, "naux naux"]
) -> Float[Array, "naux naux"]:
    """Return L⁻¹·M·L⁻ᵀ of a symmetric matrix over the auxiliary functions."""
    half = jax.scipy.linalg.solve_triangular(root, matrix, lower=True)
    return jax.scipy.linalg.solve_triangular(root, half.T, lower=True)


def _lda_exchange(density: ClosedShellDensity, functional: Functional) -> Float[Array, " points"]:
    """Return the exchange energy per volume of LDA that a functional's exact exchange leaves, hartree per cubic bohr.

    Args:
      density: density on grid points.
      functional: functional; its shares of exact exchange are read.
    """
    whole = functionals.slater_exchange(density)
    if not functional.omega:
        return (1 - functional.exact_exchange) * whole
    short = functionals.short_range(whole, density, functional.omega)
    return (1 - functional.exact_exchange - functional.added_at_long_range) * whole + (
        functional.added_at_long_range * short
    )


def _lda_kernel(
    positions: Float[Array, "natm 3"], basis: grid.Basis, template: KernelTemplate, guess: Float[Array, "nao n"],
    functional: Functional,
) -> Float[Array, "naux naux"]:
    """Return the exchange–correlation kernel of LDA over the auxiliary functions, hartree.

    Args:
      positions: nuclear positions, bohr.
      basis: atomic orbitals.
      template: coarse grid and auxiliary functions.
      guess: orbitals C of the guess density C·Cᵀ.
      functional: functional; its shares of exact exchange are read.
    """
    lda = Functional(
        "lda-response", lambda density: _lda_exchange(density, functional), functionals.vwn5_correlation, "lda"
    )
    coords, weights = grid.whole_chunks(*grid.becke_grid(positions, template.grid), GRID_BLOCK)
    centres, orbitals, basis, auxiliary = _single((positions, guess, basis, template.basis))

    def add(total, block):
        points, volumes = block
        aos, functions = (
            grid.eval_aos(centres, points, functions, derivatives=False)[0] for functions in (basis, auxiliary)
        )
        rho = jnp.sum((orbitals.T @ aos) ** 2, axis=0)
        _, second = jax.jvp(lambda rho: functionals.potential(rho[None, None], lda).v[0, 0], (rho,), (volumes,))
        return total + (functions * jnp.where(rho > MIN_DENSITY, second, 0.0)) @ functions.T, None

    blocks = _single((coords.reshape(-1, GRID_BLOCK, 3), weights.reshape(-1, GRID_BLOCK)))
    start = jnp.zeros((len(auxiliary.order),) * 2, jnp.float32)
    return jax.lax.scan(add, start, blocks)[0]


def _single(tree):
    """Return a pytree whose floating-point arrays are in single precision."""
    def cast(leaf):
        array = jnp.asarray(leaf)
        return array.astype(jnp.float32) if array.dtype == jnp.float64 else array

    return jax.tree.map(cast, tree)
