"""Response of a closed shell on the device: the equations of `dft.response`, in JAX.

The lowest orbitals of a Fock matrix F[D] have a density other than D. `responded` adds the potential 𝒦·M of the
electrons that move, so that D + M is the density of the lowest orbitals of F[D] + 𝒦·M. `dft.response` states the
equations, the approximations of 𝒦, and their sources. Here arrays can be padded, and 𝒦 belongs to the integrals of a
geometry. Nothing here has a derivative.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qptlab.dft import repulsion
from qptlab.dft.energy import density_from_fock, orbitals
from qptlab.dft.integrals import Integrals
from qptlab.dft.response import (
    EXCHANGE_TOLERANCE,
    MAX_EXCHANGE_STEPS,
    MAX_STEPS,
    MIN_GAP_HARTREE,
    MIN_STIFFNESS,
    ROUNDING,
    SMALL_HARTREE,
    SUFFICIENT_DECREASE,
)


class _Levels(NamedTuple):
    """Orbitals, and fitted integrals of their pairs; zero for pairs that are not one filled and one empty orbital.

    Attributes:
      filled: filled orbitals; columns of orbitals that are not filled are zero.
      coefficients: all orbitals.
      inverse_gap: 1/(ε_a − ε_i), per hartree.
      half: fitted integrals of an atomic orbital and a filled one.
      pairs: fitted integrals of a filled and an empty orbital.
    """

    filled: Float[Array, "nao nocc"]
    coefficients: Float[Array, "nao nao"]
    inverse_gap: Float[Array, "nocc nao"]
    half: Float[Array, "naux nao nocc"]
    pairs: Float[Array, "naux nocc nao"]


class _Moved(NamedTuple):
    """Change of the density, and what its potential is computed from.

    Attributes:
      dm: change of the density matrix, electrons per AO pair.
      fitted: its coefficients over the auxiliary functions.
      exchange: its exact exchange, hartree.
    """

    dm: Float[Array, "nao nao"]
    fitted: Float[Array, " naux"]
    exchange: Float[Array, "nao nao"]

    def plus(self, other: "_Moved", factor: Any = 1.0) -> "_Moved":
        """Return the sum of this change and a multiple of another."""
        return jax.tree.map(lambda mine, theirs: mine + factor * theirs, self, other)


class _Search(NamedTuple):
    """State of Newton's method.

    Attributes:
      count: number of diagonalisations.
      moved: change of the density that is tried next.
      accepted: best change so far.
      update: step from `accepted`.
      best: Coulomb energy of the density that is missing in `accepted`, hartree.
      length: part of the step that is taken.
      matrix: kernel.
      is_small: true if `moved` is the last step, which needs no diagonalisation.
    """

    count: Any
    moved: _Moved
    accepted: _Moved
    update: _Moved
    best: Any
    length: Any
    matrix: Float[Array, "naux naux"]
    is_small: Bool[Array, ""]


def responded(fock: Float[Array, "nao nao"], dm: Float[Array, "nao nao"], ints: Integrals) -> Float[Array, "nao nao"]:
    """Return the Fock matrix with the potential of the electrons that move when it is diagonalised.

    If Newton's method finds no better density, the Fock matrix is returned as it is. The result has no derivative.

    Args:
      fock: symmetric Fock matrix of `dm`, hartree.
      dm: density matrix, electrons per AO pair; it need not be idempotent.
      ints: integrals of the geometry, with a kernel.

    Raises:
      ValueError: if the integrals have no kernel, or the shell is open.
    """
    fock, dm, ints = jax.lax.stop_gradient((fock, dm, ints))
    equations = _Equations(ints)
    matrix = equations.kernel.matrix
    none = _Moved(jnp.zeros_like(fock), jnp.zeros_like(matrix[0]), jnp.zeros_like(fock, jnp.float32))

    def step(search: _Search) -> _Search:
        levels = equations.levels(fock + equations.potential(search.moved, search.matrix))
        missing = 2 * levels.filled @ levels.filled.T - dm - search.moved.dm
        fitted = equations.fitted(missing)
        size = 0.5 * jnp.sum(fitted**2)
        is_better = size < SUFFICIENT_DECREASE * search.best
        update, matrix = jax.lax.cond(
            is_better,
            lambda: equations.step(levels, _Moved(missing, fitted, none.exchange), search.moved, dm, size),
            lambda: (search.update, search.matrix),
        )
        accepted = _where(is_better, search.moved, search.accepted)
        length = jnp.where(is_better, 1.0, 0.5 * search.length).astype(jnp.float32)
        best = jnp.where(is_better, size, search.best)
        moved = accepted.plus(update, length)
        return _Search(search.count + 1, moved, accepted, update, best, length, matrix, size < SMALL_HARTREE)

    start = _Search(0, none, none, none, jnp.float32(jnp.inf), jnp.float32(1.0), matrix, jnp.asarray(False))
    end = jax.lax.while_loop(lambda search: (search.count < MAX_STEPS) & ~search.is_small, step, start)
    return fock + equations.potential(_where(end.is_small, end.moved, end.accepted), end.matrix)


def estimated_error(
    fock: Float[Array, "nao nao"], dm: Float[Array, "nao nao"], ints: Integrals
) -> Float[Array, ""]:
    """Return the estimated energy of a density above that of the self-consistent density, hartree.

    From D to the density D' of the lowest orbitals of `responded`, the energy changes by Tr F[D]·(D' − D) +
    ½·Tr (D' − D)·𝒦·(D' − D) to second order in D' − D. It is no bound. It has no derivative.

    Args:
      fock: Fock matrix of `dm`, hartree.
      dm: density matrix, electrons per AO pair.
      ints: integrals of the geometry, with a kernel.
    """
    fock, dm, ints = jax.lax.stop_gradient((fock, dm, ints))
    equations = _Equations(ints)
    moved = density_from_fock(responded(fock, dm, ints), ints) - dm
    potential = equations.potential(
        _Moved(moved, equations.fitted(moved), equations.exchange(moved)), equations.kernel.matrix
    )
    return -jnp.sum(fock * moved) - 0.5 * jnp.sum(moved * potential)


def _where(condition: Bool[Array, ""], first: _Moved, second: _Moved) -> _Moved:
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), first, second)


class _Equations:
    """The equations of one geometry."""

    def __init__(self, ints: Integrals):
        if ints.kernel is None or ints.nocc.ndim:
            raise ValueError("Expected integrals of a closed shell with a kernel; use template(…, with_kernel=True).")
        self.ints, self.kernel = ints, ints.kernel
        self.is_hybrid = ints.functional.is_hybrid
        self.square = repulsion.unpack(ints.kernel.factors)  # [naux, nao, nao]

    def potential(self, moved: _Moved, matrix: Float[Array, "naux naux"]) -> Float[Array, "nao nao"]:
        """Return 𝒦·M, hartree."""
        return repulsion.unpack((matrix @ moved.fitted) @ self.kernel.factors) + moved.exchange

    def fitted(self, dm: Float[Array, "nao nao"]) -> Float[Array, " naux"]:
        """Return the coefficients of a symmetric density matrix over the auxiliary functions."""
        return self.kernel.factors @ repulsion.pack_density(dm).astype(jnp.float32)

    def levels(self, fock: Float[Array, "nao nao"]) -> _Levels:
        """Return the orbitals of a Fock matrix."""
        energies, coefficients = orbitals(fock, self.ints)
        level, columns = jnp.arange(len(energies)), max(self.ints.layout.nocc)
        is_filled, is_empty = level[:columns] < self.ints.nocc, level >= self.ints.nocc
        gap = jnp.maximum(energies - energies[:columns, None], MIN_GAP_HARTREE)
        is_pair = is_filled[:, None] & is_empty
        filled = coefficients[:, :columns] * is_filled
        half = self._half(filled)
        pairs = jnp.einsum("pmi,ma->pia", half, coefficients.astype(jnp.float32)) * is_pair
        return _Levels(filled, coefficients, jnp.where(is_pair, 1 / gap, 0.0).astype(jnp.float32), half, pairs)

    def _half(self, orbitals: Float[Array, "nao n"]) -> Float[Array, "naux nao n"]:
        """Return fitted integrals of an atomic orbital and each of some orbitals."""
        return self.square @ orbitals.astype(jnp.float32)

    def exchange(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        """Return the exact exchange of a symmetric density matrix, hartree."""
        if not self.is_hybrid:
            return jnp.zeros_like(dm, jnp.float32)
        return -0.5 * jnp.einsum("pij,pkj->ik", self._weighted(self._half(dm)), self.square)

    def _weighted(self, half: Float[Array, "naux nao n"]) -> Float[Array, "naux nao n"]:
        """Apply the repulsion of the auxiliary functions in exact exchange."""
        if self.kernel.exchange is None:
            return self.ints.functional.exact_exchange * half
        return jnp.einsum("pq,qmi->pmi", self.kernel.exchange, half)

    def step(
        self, levels: _Levels, missing: _Moved, moved: _Moved, dm: Float[Array, "nao nao"], size: Float[Array, ""]
    ) -> tuple[_Moved, Float[Array, "naux naux"]]:
        """Return the step of Newton's method, and the kernel that is used.

        The step is the missing density R, and the response δ to the potential of R + δ. The response is that of
        pairs of filled and empty orbitals: X = −(potential)/gap for each pair.

        Args:
          levels: orbitals at the present M.
          missing: R, without its exchange.
          moved: M.
          dm: D, electrons per AO pair.
          size: Coulomb energy of R, hartree.
        """
        inverse_gap, pairs = levels.inverse_gap, levels.pairs
        naux = len(self.kernel.matrix)
        weighted = (pairs * jnp.sqrt(inverse_gap)).reshape(naux, -1)
        response = -4 * weighted @ weighted.T
        matrix = jax.lax.cond(
            self._is_stable(response), lambda: self.kernel.matrix, lambda: _positive(self.kernel.matrix)
        )
        screening = jax.scipy.linalg.lu_factor(jnp.eye(naux, dtype=matrix.dtype) - response @ matrix)

        def screened(x):
            """Return the solution for potentials of which `x` is the response, without exact exchange."""
            potential = matrix @ jax.scipy.linalg.lu_solve(screening, 4 * jnp.einsum("pia,ia->p", pairs, x))
            return x - jnp.einsum("p,pia->ia", potential, pairs) * inverse_gap

        def answer(potential):
            crossing = levels.filled.T @ potential @ levels.coefficients
            return (-crossing * inverse_gap).astype(jnp.float32)

        def density(x):
            half = levels.filled @ x @ levels.coefficients.T
            return 2 * (half + half.T)

        if not self.is_hybrid:
            delta = density(screened(answer(self.potential(missing, matrix))))
            return missing.plus(_Moved(delta, self.fitted(delta), missing.exchange)), matrix

        weighted_half = self._weighted(levels.half)

        def exchange(x):
            """Return the exchange of `density(x)`."""
            other = self._half(levels.coefficients @ x.T)
            half = jnp.einsum("pmi,pni->mn", weighted_half, other)
            return -(half + half.T)

        def of_pairs_alone():  # nearly all of R is in the pairs
            overlap = self.ints.overlap
            crossing = levels.filled.T @ overlap @ missing.dm @ overlap @ levels.coefficients / 2
            return exchange((crossing * (inverse_gap > 0)).astype(jnp.float32))

        def of_all():
            of_filled = -jnp.einsum("pmi,pni->mn", weighted_half, levels.half)
            return of_filled - self.exchange(dm) - moved.exchange

        of_missing = jax.lax.cond(size > SMALL_HARTREE, of_all, of_pairs_alone)
        start = answer(self.potential(missing._replace(exchange=of_missing), matrix))
        first = screened(start)

        def iterate(carry):
            count, x, change, of_x, _ = carry
            following = screened(start + answer(of_x))
            norm = jnp.sum((following - x) ** 2)
            is_better = norm <= change
            x = jnp.where(is_better, following, x)
            of_x = jax.lax.cond(is_better, lambda: exchange(following), lambda: of_x)
            return count + 1, x, norm, of_x, ~is_better | (norm < EXCHANGE_TOLERANCE * jnp.sum(x**2))

        carry = (0, first, jnp.float32(jnp.inf), exchange(first), jnp.asarray(False))
        _, x, _, of_pairs, _ = jax.lax.while_loop(
            lambda carry: (carry[0] < MAX_EXCHANGE_STEPS) & ~carry[-1], iterate, carry
        )
        delta = density(x)
        return missing.plus(_Moved(delta, self.fitted(delta), of_missing + of_pairs)), matrix

    def _is_stable(self, response: Float[Array, "naux naux"]) -> Bool[Array, ""]:
        """Return true if the energy has a minimum for the density, with the kernel and independent electrons."""
        identity = jnp.eye(len(response))
        response, matrix = response.astype(identity.dtype), self.kernel.matrix.astype(identity.dtype)
        root = jnp.linalg.cholesky(ROUNDING * jnp.max(jnp.abs(response)) * identity - response)
        stiffness = jnp.linalg.cholesky((1 - MIN_STIFFNESS) * identity + root.T @ matrix @ root)
        return jnp.all(jnp.isfinite(stiffness))  # JAX's factor of an indefinite matrix is NaN


def _positive(matrix: Float[Array, "naux naux"]) -> Float[Array, "naux naux"]:
    """Return a symmetric matrix without the part of its negative eigenvalues."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0.0)) @ vectors.T
