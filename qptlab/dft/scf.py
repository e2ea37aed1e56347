"""The reference answer inside JAX: self-consistent field with DIIS, and direct minimisation.

DIIS is Pulay's (1982, doi:10.1002/jcc.540030413); its loop is a `lax.while_loop`, so a whole SCF is one
compiled program, and under `jax.vmap` every geometry stops for itself. `minimise` treats the energy as a loss:
gradient descent over orbitals that a QR decomposition keeps orthonormal.
"""

import concurrent.futures
import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft import integrals, padding
from qptlab.dft.energy import commutator, density_from_fock, energy, filled_orbitals, kohn_sham, orbitals
from qptlab.dft.integrals import Integrals, Template
from qptlab.errors import InputError
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

DIIS_SPACE = 8
ENERGY_TOLERANCE = 1e-10
COMMUTATOR_TOLERANCE = 1e-6
MAX_CYCLES = 100

GUESSES = ("minao", "core", "random", "atomic-density", "atomic-potential")
"""Where a search may start: PySCF's `minao`; the bare core Hamiltonian; orbitals at random; superpositions of the
densities, or of the screened potentials, of free atoms."""

SOLVERS = ("diis", "plain", "minimise")


class History(NamedTuple):
    """How a search went, for plots; entries after its end are NaN.

    Attributes:
      energy: total energy after each cycle, hartree, that of the guess first.
      residual: largest element of the commutator FDS − SDF in an orthonormal basis, hartree.
      dm: density matrix after each cycle, if it was to be kept.
    """

    energy: Float[Array, " ncycles"]
    residual: Float[Array, " ncycles"]
    dm: Float[Array, "ncycles *spin nao nao"] | None = None


class SCFResult(NamedTuple):
    """A self-consistent solution, or how far the search for it came.

    Matrices of an open shell have a leading axis of two spins.

    Attributes:
      energy: total energy, hartree.
      dm: density matrix, electrons per AO pair.
      fock: Fock matrix of `dm`, hartree.
      mo_energy: orbital energies of `fock`, hartree, ascending.
      mo_coeff: orbital coefficients of `fock`, in columns.
      converged: whether energy and commutator are within their tolerances and the lowest orbitals of
        `fock` are the filled ones; look before you use.
      cycles: diagonalisations, or steps of the minimiser, done.
      residual: largest element of the commutator FDS − SDF in an orthonormal basis, hartree.
      nocc: number of filled orbitals; for an open shell of each spin.
      history: energy and residual of every cycle.
    """

    energy: Float[Array, ""]
    dm: Float[Array, "*spin nao nao"]
    fock: Float[Array, "*spin nao nao"]
    mo_energy: Float[Array, "*spin nmo"]
    mo_coeff: Float[Array, "*spin nao nmo"]
    converged: Bool[Array, ""]
    cycles: Int[Array, ""]
    residual: Float[Array, ""]
    nocc: Int[Array, "*spin"]
    history: History

    @property
    def gap(self) -> float:
        """From the highest filled to the lowest empty orbital, hartree; NaN where none is empty or none filled."""
        energies, filled = np.atleast_2d(self.mo_energy), np.atleast_1d(self.nocc)
        homo = [levels[n - 1] for levels, n in zip(energies, filled, strict=True) if n > 0]
        lumo = [levels[n] for levels, n in zip(energies, filled, strict=True) if n < len(levels)]
        return float(min(lumo) - max(homo)) if homo and lumo else float("nan")


def scf(
    mol: Molecule,
    method: Method | None = None,
    *,
    guess: str = "minao",
    solver: str = "diis",
    level_shift: float = 0.0,
    damping: float = 0.0,
    max_cycles: int = MAX_CYCLES,
    tolerance: float = COMMUTATOR_TOLERANCE,
    seed: int = 0,
    trace: bool = False,
) -> SCFResult:
    """Converge a Kohn–Sham calculation; unrestricted where the molecule has unpaired electrons.

    Args:
      mol: the molecule.
      method: the level of theory; by default PBE/def2-SVP, grid level 1.
      guess: where to start, one of `GUESSES`.
      solver: "diis"; "plain" for iteration without extrapolation, damped or not; or "minimise" for gradient descent
        on the energy.
      level_shift: added to virtual levels while searching, hartree; helps where the gap is small.
      damping: share of the last Fock matrix that is kept, 0 to below 1; helps against oscillation.
      max_cycles: after which the search ends without having converged.
      tolerance: largest element of the commutator at convergence, hartree; dipoles and forces are as far off as
        a few times this, the energy far less.
      seed: of the random guess.
      trace: keep the density matrix of every cycle in the history.

    Raises:
      InputError: as `integrals.template`, or for an option that is not one of those named.

    >>> import qptlab as ql
    >>> result = ql.scf(ql.Molecule.from_name("hydrogen"), ql.Method("lda", "sto-3g", grid_level=0))
    >>> bool(result.converged), round(float(result.energy), 3)
    (True, -1.119)
    """
    method = method or Method()
    _check_options(solver, level_shift, damping, max_cycles, tolerance)
    template = integrals.template(mol, method)
    ints = template.build(mol.positions)
    dm = guess_density(guess, template, ints, seed)
    if solver == "minimise":
        return minimise(ints, dm, tolerance=tolerance, max_cycles=max_cycles, trace=trace)
    space = DIIS_SPACE if solver == "diis" else 1
    return solve(
        ints, dm, level_shift, damping, tolerance, max_cycles=max_cycles, space=space, trace=trace
    )


def scf_batch(
    mols: Sequence[Molecule], method: Method | None = None, *, tolerance: float = COMMUTATOR_TOLERANCE
) -> SCFResult:
    """Converge many geometries of one molecule by DIIS, from their minao guesses; each stops for itself.

    On an accelerator they are lanes of one program. On a CPU each core has a geometry of its own: lanes would share
    one core's caches, and go on together until the last has converged.

    Args:
      mols: geometries of one molecule.
      method: as `scf`.
      tolerance: as `scf`.

    Returns:
      As `scf`, with a leading axis of geometries.

    Raises:
      InputError: for none, or for different molecules; else as `scf`.
    """
    method = method or Method()
    _check_options("diis", 0.0, 0.0, MAX_CYCLES, tolerance)
    kinds = {(mol.symbols, mol.charge, mol.spin) for mol in mols}
    if len(kinds) != 1:
        raise InputError(f"{len(kinds)} different molecules were given; geometries of one molecule would do.")
    template = integrals.template(mols[0], method)

    def host(mol):
        return template.host_integrals(mol.positions)

    def one(mol):
        return jax.block_until_ready(solve(template.complete(host(mol)), tolerance=tolerance))

    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, template.most_at_once)) as pool:
        if jax.default_backend() == "cpu":
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *pool.map(one, mols))
        hosts = jax.tree.map(lambda *leaves: np.stack(leaves), *pool.map(host, mols))
        lanes = jax.vmap(lambda ints: solve(ints, tolerance=tolerance))
        return lanes(jax.vmap(template.complete)(hosts))


def _check_options(solver, level_shift, damping, max_cycles, tolerance):
    if solver not in SOLVERS:
        raise InputError(f"solver {solver!r} is not known; one of {', '.join(SOLVERS)} would do.")
    if not 0 <= level_shift < np.inf:
        raise InputError(f"level shift {level_shift} cannot be used; 0 to 1 hartree would do.")
    if not 0 <= damping < 1:
        raise InputError(f"damping {damping} cannot be used; 0 to below 1 would do.")
    if not isinstance(max_cycles, int) or max_cycles < 1:
        raise InputError(f"{max_cycles!r} cycles cannot be done; a whole number from 1 would do.")
    if not 1e-10 <= tolerance < 1:
        raise InputError(f"tolerance {tolerance} cannot be reached; 1e-10 to 1e-3 hartree would do.")


def guess_density(name: str, template: Template, ints: Integrals, seed: int = 0) -> Float[Array, "*spin nao nao"]:
    """A density matrix to start from, electrons per AO pair.

    Args:
      name: one of `GUESSES`.
      template: the molecule.
      ints: the geometry.
      seed: of the random guess.

    Raises:
      InputError: if there is no such guess.
    """
    if name == "minao":
        return start_density(ints.dm_guess, ints)
    if name == "atomic-density":
        return start_density(jnp.asarray(template.atomic_density(np.asarray(ints.positions))), ints)
    if name == "core":
        fock = ints.hcore
    elif name == "atomic-potential":
        fock = jnp.asarray(template.atomic_potential(np.asarray(ints.positions)))
    elif name == "random":
        own = template.nao  # what fills up a padded molecule stays empty
        half = jnp.linalg.inv(ints.orthogonaliser[:own, :own])  # its transpose times itself is the overlap
        noise = jax.random.normal(jax.random.key(seed), (own, own))
        fock = (padding.ENERGY_HARTREE * jnp.eye(ints.nao)).at[:own, :own].set(half.T @ (noise + noise.T) @ half)
    else:
        raise InputError(f"guess {name!r} is not known; one of {', '.join(GUESSES)} would do.")
    return density_from_fock(jnp.broadcast_to(fock, (*ints.nocc.shape, *fock.shape)), ints)


def start_density(dm: Float[Array, "nao nao"], ints: Integrals) -> Float[Array, "*spin nao nao"]:
    """A total density matrix as a search wants it: of an open shell, one half for each spin."""
    return dm if ints.nocc.ndim == 0 else jnp.stack([dm, dm]) / 2


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
    history: History


@functools.partial(jax.jit, static_argnames=("max_cycles", "space", "trace"))
def solve(
    ints: Integrals,
    dm: Float[Array, "*spin nao nao"] | None = None,
    level_shift: float | Array = 0.0,
    damping: float | Array = 0.0,
    tolerance: float | Array = COMMUTATOR_TOLERANCE,
    *,
    max_cycles: int = MAX_CYCLES,
    space: int = DIIS_SPACE,
    trace: bool = False,
) -> SCFResult:
    """Converge by DIIS from a density matrix, by default the guess that the integrals hold.

    Other arguments as `scf`; `space` is the number of Fock matrices that are combined, 1 for plain iteration.
    """
    dm = start_density(ints.dm_guess, ints) if dm is None else dm

    def evaluate(dm, filled):
        found = kohn_sham(dm, ints, filled=filled)
        return found.fock, found.terms.e_tot, commutator(found.fock, dm, ints)

    def cycle(search):
        fock = _extrapolate(search) + level_shift * _virtual_projector(search.dm, ints)
        filled = filled_orbitals(fock, ints)
        dm = filled @ jnp.swapaxes(filled, -1, -2)
        fock, e_tot, error = evaluate(dm, filled)
        return _remember(search, dm, fock, e_tot, error, damping)

    fock, e_tot, error = evaluate(dm, None)
    empty = jnp.zeros((space, *dm.shape))
    residual = jnp.max(jnp.abs(error))
    start = _Search(
        dm, fock, e_tot, jnp.asarray(jnp.inf), residual,
        empty.at[0].set(fock), empty.at[0].set(error), jnp.asarray(0),
        _history(max_cycles, e_tot, residual, dm if trace else None),
    )
    end = jax.lax.while_loop(lambda s: ~_is_converged(s, tolerance) & (s.cycles < max_cycles), cycle, start)
    return _result(end, ints, tolerance)


def _result(end, ints, tolerance):
    mo_energy, mo_coeff = orbitals(end.fock, ints)
    most = max(ints.layout.nocc)
    occupied = jnp.arange(most) < ints.nocc[..., None]
    sc = ints.overlap @ mo_coeff[..., :most]
    inside = jnp.einsum("...io,...ij,...jo->...o", sc, end.dm, sc)
    # A level shift can hold electrons in orbitals that are not the lowest; that is no ground state.
    electrons = jnp.sum(ints.nocc) * (2 if ints.nocc.ndim == 0 else 1)
    is_aufbau = jnp.sum(inside * occupied) > electrons - 1e-3
    return SCFResult(
        end.energy, end.dm, end.fock, mo_energy, mo_coeff,
        _is_converged(end, tolerance) & is_aufbau, end.cycles, end.residual, ints.nocc, end.history,
    )


def _is_converged(search, tolerance):
    return (search.change < ENERGY_TOLERANCE) & (search.residual < tolerance)


def _virtual_projector(dm, ints):
    """S − S·P·S, which raises virtual levels (Saunders & Hillier 1973)."""
    share = 0.5 if dm.ndim == 2 else 1.0
    return ints.overlap - share * ints.overlap @ dm @ ints.overlap


def _remember(search, dm, fock, e_tot, error, damping):
    slot, space = search.cycles + 1, len(search.focks)
    place = slot % space
    last = search.focks[search.cycles % space]
    residual = jnp.max(jnp.abs(error))
    history = _entered(search.history, slot, e_tot, residual, dm)
    return _Search(
        dm, fock, e_tot, jnp.abs(e_tot - search.energy), residual,
        search.focks.at[place].set((1 - damping) * fock + damping * last),
        search.errors.at[place].set(error), slot, history,
    )


def _history(max_cycles, e_tot, residual, dm) -> History:
    """That of a search which has not begun; with `dm` density matrices are kept."""
    nothing = jnp.full(max_cycles + 1, jnp.nan)
    kept = None if dm is None else jnp.full((max_cycles + 1, *dm.shape), jnp.nan).at[0].set(dm)
    return History(nothing.at[0].set(e_tot), nothing.at[0].set(residual), kept)


def _entered(history, slot, e_tot, residual, dm) -> History:
    kept = None if history.dm is None else history.dm.at[slot].set(dm)
    return History(history.energy.at[slot].set(e_tot), history.residual.at[slot].set(residual), kept)


def _extrapolate(search):
    """The combination of the remembered Fock matrices whose errors cancel best."""
    space = len(search.focks)
    used = jnp.arange(space) <= search.cycles
    flat = search.errors.reshape(space, -1)
    overlap = flat @ flat.T
    both = used[:, None] & used[None, :]
    scale = jnp.maximum(jnp.max(jnp.where(both, overlap, 0.0)), 1e-300)
    border = used.astype(overlap.dtype)
    matrix = jnp.block([
        [jnp.where(both, overlap / scale, jnp.diag(1.0 - border)), border[:, None]],
        [border[None, :], jnp.zeros((1, 1))],
    ])
    target = jnp.zeros(space + 1).at[-1].set(1.0)
    # Nearly parallel errors make the matrix singular towards the end: least squares, not solve.
    weights = jnp.linalg.lstsq(matrix, target, rcond=1e-14)[0][:-1]
    return jnp.tensordot(weights, search.focks, axes=1)


@functools.partial(jax.jit, static_argnames=("optimiser", "max_cycles", "trace"))
def minimise(
    ints: Integrals,
    dm: Float[Array, "*spin nao nao"] | None = None,
    *,
    optimiser: optax.GradientTransformationExtraArgs | optax.GradientTransformation | None = None,
    tolerance: float | Array = COMMUTATOR_TOLERANCE,
    max_cycles: int = MAX_CYCLES,
    trace: bool = False,
) -> SCFResult:
    """Converge by minimising the energy over orthonormal orbitals, without ever diagonalising a Fock matrix.

    The filled orbitals are X·Q with Q orthonormal columns from the QR decomposition of free parameters.

    Args:
      ints: the geometry.
      dm: where to start, by default the guess that the integrals hold; its Fock matrix's orbitals are taken.
      optimiser: of optax, by default L-BFGS with its line search; adam or sgd teach more and take longer.
      tolerance: as `scf`.
      max_cycles: steps after which the search ends without having converged.
      trace: as `scf`.
    """
    dm = start_density(ints.dm_guess, ints) if dm is None else dm
    optimiser = optax.with_extra_args_support(optimiser or optax.lbfgs(memory_size=20))
    most = max(ints.layout.nocc)
    electrons = 2.0 if ints.nocc.ndim == 0 else 1.0
    occupied = (jnp.arange(most) < ints.nocc[..., None])[..., None, :]

    def density(free):
        columns, _ = jnp.linalg.qr(free)
        filled = ints.orthogonaliser @ columns * occupied
        return electrons * filled @ jnp.swapaxes(filled, -1, -2)

    def loss(free):
        return energy(density(free), ints)

    def evaluate(free):
        dm = density(free)
        found = kohn_sham(dm, ints)
        return dm, found.fock, found.terms.e_tot, jnp.max(jnp.abs(commutator(found.fock, dm, ints)))

    def cycle(carry):
        free, state, search = carry
        value, gradient = jax.value_and_grad(loss)(free)
        updates, state = optimiser.update(gradient, state, free, value=value, grad=gradient, value_fn=loss)
        free = optax.apply_updates(free, updates)
        dm, fock, e_tot, residual = evaluate(free)
        slot = search.cycles + 1
        history = _entered(search.history, slot, e_tot, residual, dm)
        change = jnp.abs(e_tot - search.energy)
        return free, state, search._replace(
            dm=dm, fock=fock, energy=e_tot, change=change, residual=residual, cycles=slot, history=history
        )

    # The guess's own orbitals, in the orthonormal basis of X.
    x = ints.orthogonaliser
    _, vectors = jnp.linalg.eigh(x.T @ kohn_sham(dm, ints).fock @ x)
    free = vectors[..., :most]
    dm, fock, e_tot, residual = evaluate(free)
    unused = jnp.zeros(0)
    start = _Search(
        dm, fock, e_tot, jnp.asarray(jnp.inf), residual, unused, unused, jnp.asarray(0),
        _history(max_cycles, e_tot, residual, dm if trace else None),
    )
    carry = (free, optimiser.init(free), start)
    *_, end = jax.lax.while_loop(lambda c: ~_is_converged(c[2], tolerance) & (c[2].cycles < max_cycles), cycle, carry)
    return _result(end, ints, tolerance)
