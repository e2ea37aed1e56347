"""Charge screening: the response of the electrons to their own Coulomb potential, without a Fock build.

A density that one diagonalisation of a Fock matrix gives overshoots: charge flows between atoms, and its Coulomb
potential, which would drive it back, is missing in that matrix. A charge model supplies this potential. After a Fock
build F[D], the Löwdin populations q of the shells are those that solve

    q = populations of the lowest orbitals of  F[D] + S^½·diag(γ·(q − q[D]))·S^½.

γ is `SCALE` times the average repulsion (aa|bb) of the orbitals of two shells, from the integrals at hand; so it is
invariant and needs no table. `SCALE` is below one because exchange and correlation weaken the repulsion. The
equations have one unknown per shell, and cost diagonalisations only. The idea is that of self-consistent-charge tight
binding (Elstner et al. 1998, doi:10.1103/PhysRevB.58.7260).

The function Φ is largest for the moved charges m = q − q[D]:

    Φ(m) = band energy of F[D] + S^½·diag(γ·m)·S^½  −  q[D]·γ·m  −  ½·m·γ·m.

The band energy, the sum of the energies of the filled orbitals, is concave in the potential, and γ is a positive
matrix. So Φ is concave, the solution is unique, and Newton's method with a line search finds it, unless the gap
closes on the way: where a filled and an empty level cross, Φ has a kink, and it is possible that no integer
occupation solves the equations.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft.energy import DROPPED_HARTREE, MIN_GAP_HARTREE, is_kept
from qptlab.dft.integrals import Integrals, inverse_root

SCALE = 0.9
"""Factor of the average repulsion of shells: exchange and correlation weaken the response."""

MAX_STEPS = 12
"""Largest number of diagonalisations for the populations of one Fock matrix; three to five are usual."""

TOLERANCE = 1e-7
"""Largest error of the shells' potentials at which the populations are accepted, hartree."""

NOISE = 1e-9
"""Largest decrease of the functional that counts as a rounding error, hartree."""


class Screening(NamedTuple):
    """Charge model of one geometry; a pytree.

    Attributes:
      root: square root S^½ of the overlap matrix.
      inverse_root: inverse square root S^-½.
      shells: one-hot matrix that assigns each atomic orbital to its shell.
      gamma: repulsion of two shells, hartree.
    """

    root: Float[Array, "nao nao"]
    inverse_root: Float[Array, "nao nao"]
    shells: Float[Array, "nao nshell"]
    gamma: Float[Array, "nshell nshell"]

    def populations(self, projector: Float[Array, "nspin nao nao"]) -> Float[Array, " nshell"]:
        """Return the number of electrons in each shell.

        Args:
          projector: density matrices in Löwdin's basis, with electrons per orbital of one: one matrix for a closed
            shell, two for an open one. For filled orbitals they are projectors.
        """
        electrons = 2.0 / len(projector)
        return electrons * jnp.sum(jnp.diagonal(projector, axis1=1, axis2=2), axis=0) @ self.shells


class Screened(NamedTuple):
    """Self-consistent solution of the charge model.

    Attributes:
      fock: Fock matrix with the potential of the moved charges, hartree.
      dm: density matrix of its lowest orbitals, electrons per AO pair.
      populations: electrons in each shell.
      shift: potential of the moved charges at each shell, hartree.
      error: largest error of `shift`, hartree; above `TOLERANCE` if the equations are not solved.
    """

    fock: Float[Array, "*spin nao nao"]
    dm: Float[Array, "*spin nao nao"]
    populations: Float[Array, " nshell"]
    shift: Float[Array, " nshell"]
    error: Float[Array, ""]


def screening(ints: Integrals) -> Screening:
    """Return the charge model of a geometry; differentiable.

    Args:
      ints: integrals of the geometry.
    """
    inverse = inverse_root(ints.overlap)
    shells = shell_matrix(ints)
    mean = shells / jnp.sum(shells, axis=0)
    gamma = SCALE * mean.T @ ints.repulsion.diagonal(ints.nao) @ mean
    return Screening(ints.overlap @ inverse, inverse, shells, gamma)


def shell_index(ints: Integrals) -> Int[Array, " nao"]:
    """Return the index of each atomic orbital's shell."""
    index, first = jnp.zeros(ints.nao, int), 0
    for group in ints.basis.groups:
        count = len(group.ao)
        index = index.at[group.ao].set((first + jnp.arange(count))[:, None])
        first += count
    return index


def shell_matrix(ints: Integrals) -> Float[Array, "nao nshell"]:
    """Return the one-hot matrix that assigns each atomic orbital to its shell."""
    nshell = sum(len(group.ao) for group in ints.basis.groups)
    return jax.nn.one_hot(shell_index(ints), nshell, dtype=ints.overlap.dtype)


def screened(
    fock: Float[Array, "*spin nao nao"], dm: Float[Array, "*spin nao nao"], ints: Integrals, model: Screening
) -> Screened:
    """Solve the charge model for a Fock matrix; differentiable in all arguments.

    The derivative is that of the solution: one linear system with as many unknowns as there are shells. It is not the
    derivative of the steps that led there. It is NaN if the gap of the solution is below `MIN_GAP_HARTREE`.

    In any case, the density is that of the lowest orbitals of the returned Fock matrix. If no solution is found
    within `MAX_STEPS` diagonalisations, the best potential so far is used. Then `error` is above `TOLERANCE`, and the
    derivative treats the remaining error of the populations as a constant.

    Args:
      fock: symmetric Fock matrix of `dm`, hartree; for an open shell, one for each spin.
      dm: density matrix from which charges are counted, electrons per AO pair; it need not be idempotent.
      ints: integrals of the geometry; the numbers of filled orbitals are read.
      model: charge model of the geometry.
    """
    x, root = model.inverse_root, model.root
    focks, charges, nocc, electrons = _in_lowdins_basis(fock, dm, ints, model)
    solution: Any = _solution(max(ints.layout.nocc), focks, charges, model.gamma, model.shells, nocc)
    projector, remainder = solution[0], jax.lax.stop_gradient(solution[1])
    populations = model.populations(projector)
    shift = model.gamma @ (populations - charges - remainder)
    potential = root @ (root * (model.shells @ shift)[:, None])
    return Screened(
        fock + potential, ((electrons * x) @ projector @ x).reshape(dm.shape), populations, shift,
        jnp.max(jnp.abs(model.gamma @ remainder)),
    )


def screened_orbitals(
    fock: Float[Array, "*spin nao nao"], dm: Float[Array, "*spin nao nao"], ints: Integrals, model: Screening
) -> tuple[Float[Array, "*spin nao nocc"], Int[Array, ""]]:
    """Return the filled orbitals at the solution of the charge model, and the number of diagonalisations.

    The orbitals are those of `energy.filled_orbitals` for the Fock matrix of `screened`. They have no derivative.

    Args:
      fock: symmetric Fock matrix of `dm`, hartree; for an open shell, one for each spin.
      dm: density matrix from which charges are counted, electrons per AO pair; it need not be idempotent.
      ints: integrals of the geometry; the numbers of filled orbitals are read.
      model: charge model of the geometry.
    """
    focks, charges, nocc, electrons = _in_lowdins_basis(fock, dm, ints, model)
    point, count = _newton(max(ints.layout.nocc), focks, charges, model.gamma, model.shells, nocc)
    filled = jnp.sqrt(electrons) * model.inverse_root @ point.orbitals.filled
    return filled.reshape(*dm.shape[:-1], -1), count


def _in_lowdins_basis(
    fock: Float[Array, "*spin nao nao"], dm: Float[Array, "*spin nao nao"], ints: Integrals, model: Screening
) -> tuple[Float[Array, "nspin nao nao"], Float[Array, " nshell"], Int[Array, " nspin"], float]:
    """Return Fock matrices, populations of the density, numbers of filled orbitals, and electrons per orbital."""
    x, root = model.inverse_root, model.root
    focks, dms = (matrix.reshape(-1, *matrix.shape[-2:]) for matrix in (fock, dm))
    electrons = 2.0 / len(dms)
    charges = model.populations(root @ dms @ root / electrons)
    dropped = jax.lax.stop_gradient(jnp.eye(len(x)) - root @ x)  # projector on what a dependent basis lacks
    shift = jnp.where(jnp.all(is_kept(ints.orthogonaliser)), 0.0, DROPPED_HARTREE) * dropped
    return x @ focks @ x + shift, charges, jnp.atleast_1d(ints.nocc), electrons


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _solution(
    columns: int,
    focks: Float[Array, "nspin nao nao"],
    charges: Float[Array, " nshell"],
    gamma: Float[Array, "nshell nshell"],
    shells: Float[Array, "nao nshell"],
    nocc: Int[Array, " nspin"],
) -> tuple[Float[Array, "nspin nao nao"], Float[Array, " nshell"]]:
    """Return the projectors on the filled orbitals at the solution, in Löwdin's basis, and the remainder.

    The remainder is populations minus initial populations minus moved charges, zero at the exact solution. The
    derivative treats it as a constant.
    """
    return _solution_forward(columns, focks, charges, gamma, shells, nocc)[0]


class _Orbitals(NamedTuple):
    """Orbitals of a Fock matrix in Löwdin's basis, and the susceptibility of the shells' populations.

    Attributes:
      filled: filled orbitals; columns of orbitals that are not filled are zero.
      vectors: all orbitals.
      inverse_gap: 1/(ε_i − ε_a) for filled i and empty a, with gaps of `MIN_GAP_HARTREE` or more; else zero.
      has_gap: false if a gap between filled and empty orbitals is below `MIN_GAP_HARTREE`.
      response: derivative of the shells' populations with respect to potentials at the shells.
      band_energy: sum of the energies of the electrons, hartree.
    """

    filled: Float[Array, "nspin nao nocc"]
    vectors: Float[Array, "nspin nao nao"]
    inverse_gap: Float[Array, "nspin nocc nao"]
    has_gap: Bool[Array, ""]
    response: Float[Array, "nshell nshell"]
    band_energy: Float[Array, ""]


def _orbitals(
    columns: int, focks: Float[Array, "nspin nao nao"], shells: Float[Array, "nao nshell"], nocc: Int[Array, " nspin"]
) -> _Orbitals:
    energies, vectors = jnp.linalg.eigh(focks)
    levels = jnp.arange(focks.shape[-1])
    is_filled, is_empty = levels[:columns] < nocc[:, None], levels >= nocc[:, None]
    gap = energies[:, :columns, None] - energies[:, None, :]
    is_pair = is_filled[:, :, None] & is_empty[:, None, :]
    has_gap = ~jnp.any(is_pair & (gap > -MIN_GAP_HARTREE))
    inverse_gap = jnp.where(is_pair, 1 / jnp.where(is_pair, jnp.minimum(gap, -MIN_GAP_HARTREE), 1.0), 0.0)
    filled = vectors[:, :, :columns] * is_filled[:, None, :]
    transition = jnp.einsum("smi,sma,mA->siaA", filled, vectors, shells)  # [nspin, nocc, nao, nshell]
    electrons = 2.0 / len(focks)
    response = 2 * electrons * jnp.einsum("siaA,sia,siaB->AB", transition, inverse_gap, transition)
    band_energy = electrons * jnp.sum(energies[:, :columns] * is_filled)
    return _Orbitals(filled, vectors, inverse_gap, has_gap, response, band_energy)


class _Point(NamedTuple):
    """Point of Newton's method.

    Attributes:
      moved: charge that has moved to each shell, electrons; the unknowns.
      orbitals: orbitals in the potential of these charges.
      remainder: error of the equations: populations minus initial populations minus `moved`.
      value: value of the concave functional Φ, hartree.
    """

    moved: Float[Array, " nshell"]
    orbitals: _Orbitals
    remainder: Float[Array, " nshell"]
    value: Float[Array, ""]


def _newton(
    columns: int,
    focks: Float[Array, "nspin nao nao"],
    charges: Float[Array, " nshell"],
    gamma: Float[Array, "nshell nshell"],
    shells: Float[Array, "nao nshell"],
    nocc: Int[Array, " nspin"],
) -> tuple[_Point, Int[Array, ""]]:
    """Return the solution, or the best point that was found, and the number of diagonalisations."""
    electrons = 2.0 / len(focks)

    def at(moved):
        shift = gamma @ moved
        state = _orbitals(columns, focks + jnp.diag(shells @ shift), shells, nocc)
        populations = electrons * jnp.sum(state.filled**2, axis=(0, 2)) @ shells
        value = state.band_energy - jnp.dot(charges + 0.5 * moved, shift)
        return _Point(moved, state, populations - charges - moved, value)

    def direction(point):
        return jnp.linalg.solve(jnp.eye(len(gamma)) - point.orbitals.response @ gamma, point.remainder)

    def step(carry):
        count, point, length = carry
        towards = direction(point)
        trial = at(point.moved + length * towards)
        is_better = trial.value > point.value - NOISE
        # Where the slope of Φ along the line would vanish, if it changed linearly.
        slope, next_slope = (towards @ gamma @ p.remainder for p in (point, trial))
        shorter = length * jnp.clip(slope / jnp.maximum(slope - next_slope, 1e-300), 0.1, 0.5)
        point = jax.tree.map(lambda new, old: jnp.where(is_better, new, old), trial, point)
        return count + 1, point, jnp.where(is_better, 1.0, shorter)

    def is_open(carry):
        count, point, _ = carry
        return (count < MAX_STEPS) & (jnp.max(jnp.abs(gamma @ point.remainder)) > TOLERANCE)

    start = (jnp.asarray(1), at(jnp.zeros_like(charges)), jnp.ones_like(charges[0]))
    count, point, _ = jax.lax.while_loop(is_open, step, start)
    return point, count


def _solution_forward(columns, focks, charges, gamma, shells, nocc):
    point, _ = _newton(columns, focks, charges, gamma, shells, nocc)
    filled = point.orbitals.filled
    return (filled @ jnp.swapaxes(filled, -1, -2), point.remainder), (point.orbitals, point.moved, gamma, shells)


def _solution_backward(columns, residuals, bars):
    state, moved, gamma, shells = residuals
    bar, _ = bars
    electrons = 2.0 / len(bar)
    inverse_gap = jnp.where(state.has_gap, state.inverse_gap, jnp.nan)

    def respond(bar):
        """Return the cotangent of the Fock matrices for a cotangent of the projectors."""
        crossing = jnp.einsum("smi,smn,sna->sia", state.filled, bar + jnp.swapaxes(bar, -1, -2), state.vectors)
        half = jnp.einsum("smi,sia,sna->smn", state.filled, 0.5 * crossing * inverse_gap, state.vectors)
        return half + jnp.swapaxes(half, -1, -2)

    fock_bar = respond(bar)
    at_shells = jnp.sum(jnp.diagonal(fock_bar, axis1=1, axis2=2), axis=0) @ shells
    shift_bar = jnp.linalg.solve(jnp.eye(len(gamma)) - state.response @ gamma, at_shells)
    charge_bar = gamma @ shift_bar
    fock_bar = fock_bar + respond(jnp.broadcast_to(electrons * jnp.diag(shells @ charge_bar), bar.shape))
    return fock_bar, -charge_bar, jnp.outer(shift_bar, moved), None, None


_solution.defvjp(_solution_forward, _solution_backward)


def combination(errors: Float[Array, "n *spin nao nao"]) -> Float[Array, " n"]:
    """Return the weights, with sum one, of the combination of Fock matrices whose commutators cancel best.

    Unlike a least-squares solution of Pulay's equations (1982, doi:10.1002/jcc.540030413), the weights are
    differentiable also close to convergence, where the commutators are nearly parallel.

    Args:
      errors: commutators of the Fock matrices.
    """
    flat = errors.reshape(len(errors), -1)
    lengths = jnp.sqrt(jnp.sum(flat**2, axis=1) + 1e-24)
    unit = flat / lengths[:, None]
    cosines = unit @ unit.T + 1e-10 * jnp.eye(len(flat))
    # The shortest of the errors sets the scale, so that nothing overflows.
    shares = jnp.linalg.solve(cosines, jnp.min(lengths) / lengths)
    weights = shares * jnp.min(lengths) / lengths
    return weights / jnp.sum(weights)
