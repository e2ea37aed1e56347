"""The reference answer inside JAX: self-consistent field with DIIS.

Pulay 1982 (doi:10.1002/jcc.540030413). The loop is a `lax.while_loop`, so a whole SCF is one
compiled program; under `jax.vmap` every geometry stops for itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qptlab import integrals
from qptlab.energy import commutator, density_from_fock, kohn_sham, orbitals
from qptlab.integrals import Integrals
from qptlab.method import Method
from qptlab.molecule import Molecule

DIIS_SPACE = 8
ENERGY_TOLERANCE = 1e-10
COMMUTATOR_TOLERANCE = 1e-6
MAX_CYCLES = 100


class SCFResult(NamedTuple):
    """A self-consistent solution, or how far the search for it came.

    Attributes:
      energy: total energy, hartree.
      dm: density matrix, electrons per AO pair.
      fock: Fock matrix of `dm`, hartree.
      mo_energy: orbital energies of `fock`, hartree, ascending.
      mo_coeff: orbital coefficients of `fock`, in columns.
      converged: whether energy and commutator are within their tolerances; look before you use.
      cycles: diagonalisations done.
      residual: largest element of the commutator FDS − SDF in an orthonormal basis, hartree.
      nocc: number of doubly occupied orbitals.
    """

    energy: Float[Array, ""]
    dm: Float[Array, "nao nao"]
    fock: Float[Array, "nao nao"]
    mo_energy: Float[Array, " nmo"]
    mo_coeff: Float[Array, "nao nmo"]
    converged: Bool[Array, ""]
    cycles: Int[Array, ""]
    residual: Float[Array, ""]
    nocc: Int[Array, ""]


def scf(mol: Molecule, method: Method | None = None) -> SCFResult:
    """Converge a closed-shell Kohn–Sham calculation.

    Args:
      mol: the molecule.
      method: the level of theory; by default PBE/def2-SVP, grid level 1.

    Raises:
      InputError: as `integrals.template`.

    >>> import qptlab as ql
    >>> result = ql.scf(ql.Molecule.from_name("hydrogen"), ql.Method("lda", "sto-3g", grid_level=0))
    >>> bool(result.converged), round(float(result.energy), 3)
    (True, -1.119)
    """
    method = method or Method()
    return solve(integrals.build_integrals(mol, method), method.xc)


class _Search(NamedTuple):
    """The state of the loop."""

    dm: Array
    fock: Array
    energy: Array
    change: Array
    residual: Array
    focks: Array
    errors: Array
    cycles: Array


@functools.partial(jax.jit, static_argnames="xc")
def solve(ints: Integrals, xc: str) -> SCFResult:
    """Converge from the guess density held by the integrals; arguments as `energy.kohn_sham`."""
    nao = ints.nao

    def evaluate(dm):
        found = kohn_sham(dm, ints, xc)
        return found.fock, found.terms.e_tot, commutator(found.fock, dm, ints)

    def cycle(search):
        dm = density_from_fock(_extrapolate(search), ints)
        fock, e_tot, error = evaluate(dm)
        slot = search.cycles + 1
        return _remember(search, slot)(dm, fock, e_tot, error)

    fock, e_tot, error = evaluate(ints.dm_guess)
    empty = jnp.zeros((DIIS_SPACE, nao, nao))
    start = _Search(
        ints.dm_guess, fock, e_tot, jnp.asarray(jnp.inf), jnp.max(jnp.abs(error)),
        empty.at[0].set(fock), empty.at[0].set(error), jnp.asarray(0),
    )
    end = jax.lax.while_loop(lambda s: ~_is_converged(s) & (s.cycles < MAX_CYCLES), cycle, start)
    mo_energy, mo_coeff = orbitals(end.fock, ints)
    return SCFResult(
        end.energy, end.dm, end.fock, mo_energy, mo_coeff,
        _is_converged(end), end.cycles, end.residual, ints.nocc,
    )


def _is_converged(search):
    return (search.change < ENERGY_TOLERANCE) & (search.residual < COMMUTATOR_TOLERANCE)


def _remember(search, slot):
    def update(dm, fock, e_tot, error):
        place = slot % DIIS_SPACE
        return _Search(
            dm, fock, e_tot, jnp.abs(e_tot - search.energy), jnp.max(jnp.abs(error)),
            search.focks.at[place].set(fock), search.errors.at[place].set(error), slot,
        )

    return update


def _extrapolate(search):
    """The combination of the remembered Fock matrices whose errors cancel best."""
    used = jnp.arange(DIIS_SPACE) <= search.cycles
    overlap = jnp.einsum("aij,bij->ab", search.errors, search.errors)
    both = used[:, None] & used[None, :]
    scale = jnp.maximum(jnp.max(jnp.where(both, overlap, 0.0)), 1e-300)
    border = used.astype(overlap.dtype)
    matrix = jnp.block([
        [jnp.where(both, overlap / scale, jnp.diag(1.0 - border)), border[:, None]],
        [border[None, :], jnp.zeros((1, 1))],
    ])
    target = jnp.zeros(DIIS_SPACE + 1).at[-1].set(1.0)
    # Nearly parallel errors make the matrix singular towards the end: least squares, not solve.
    weights = jnp.linalg.lstsq(matrix, target, rcond=1e-14)[0][:-1]
    return jnp.einsum("a,aij->ij", weights, search.focks)
