"""Self-consistent field in JAX, with DIIS or by direct minimisation of the energy.

DIIS is Pulay's (1982, doi:10.1002/jcc.540030413). Its loop is a `lax.while_loop`: an SCF is one compiled program, and
under `jax.vmap` each geometry stops when it has converged. Charge screening (`dft.screening`) makes DIIS faster: the
next density includes the response of the electrons to their own Coulomb potential. `minimise` treats the energy as a
loss, and descends along its gradient with orbitals that a QR decomposition keeps orthonormal.
"""

import concurrent.futures
import functools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft import integrals, padding
from qptlab.dft.energy import (
    commutator,
    density_from_fock,
    energy,
    filled_orbitals,
    in_orthonormal_basis,
    is_kept,
    kohn_sham,
    orbitals,
)
from qptlab.dft.integrals import Integrals, Template, inverse_root
from qptlab.dft.screening import screened_orbitals, screening
from qptlab.errors import InputError
from qptlab.runtime import memory
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

DIIS_SPACE = 8
"""Number of Fock matrices that DIIS combines."""

ENERGY_TOLERANCE = 1e-10
"""Change of the energy between two cycles at convergence, hartree."""

COMMUTATOR_TOLERANCE = 1e-6
"""Largest element of the commutator at convergence, hartree."""

MAX_CYCLES = 100
"""Cycles after which an SCF ends without convergence."""

LANE_COPIES = 2
"""Memory of one geometry of a batch on an accelerator, as a multiple of that of its integrals."""

GUESSES = ("minao", "core", "random", "atomic-density", "atomic-potential")
"""Initial guesses: PySCF's `minao`; the core Hamiltonian; random orbitals; superpositions of the densities, or of the
screened potentials, of free atoms."""

BROKEN_SYMMETRY = "broken-symmetry"
"""Initial guess of an unrestricted calculation without unpaired electrons: `minao`, with the HOMO and the LUMO of its
Fock matrix mixed in equal parts, with opposite signs in the two spins."""

SOLVERS = ("diis", "screened", "plain", "minimise")
"""Solvers: DIIS; DIIS with charge screening; fixed-point iteration without extrapolation; gradient descent on the
energy."""


class History(NamedTuple):
    """Course of an SCF, cycle by cycle; entries after its end are NaN.

    Attributes:
      energy: total energy after each cycle, hartree. The first entry is the energy of the guess.
      residual: largest element of the commutator FDS − SDF in an orthonormal basis, hartree.
      dm: density matrix after each cycle, electrons per AO pair; None unless it was asked for.
    """

    energy: Float[Array, " ncycles"]
    residual: Float[Array, " ncycles"]
    dm: Float[Array, "ncycles *spin nao nao"] | None = None


class SCFResult(NamedTuple):
    """Result of an SCF, converged or not.

    Matrices of an open shell have a leading axis of two spins.

    Attributes:
      energy: total energy, hartree.
      dm: density matrix, electrons per AO pair.
      fock: Fock matrix of `dm`, hartree.
      mo_energy: orbital energies of `fock`, hartree, ascending.
      mo_coeff: orbital coefficients of `fock`, in columns.
      converged: true if energy and commutator are within their tolerances and the lowest orbitals of `fock` are the
        filled ones. Check it before you use the result.
      cycles: number of Fock matrices after that of the guess, or of steps of the minimiser.
      residual: largest element of the commutator FDS − SDF in an orthonormal basis, hartree.
      nocc: number of filled orbitals; for an open shell, one number for each spin.
      history: energy and residual of every cycle.
      diagonalisations: number of diagonalisations during the search. `cycles` is the same number, except if charges
        are screened.
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
    diagonalisations: Int[Array, ""]

    @property
    def gap(self) -> float:
        """Return the gap from the highest filled to the lowest empty orbital, hartree; NaN if one of them is missing.

        For an open shell, both orbitals may have either spin.
        """
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
    """Converge a Kohn–Sham calculation; it is unrestricted if the molecule has unpaired electrons.

    Args:
      mol: molecule.
      method: level of theory; the default is `Method()`.
      guess: initial guess: minao, core, random, atomic-density or atomic-potential; or broken-symmetry, which makes
        the calculation of a closed shell unrestricted and finds, for example, two separate radicals.
      solver: "diis"; "screened" for DIIS with charge screening, which needs fewer Fock matrices and more
        diagonalisations; "plain" for iteration without extrapolation, with or without damping; or "minimise" for
        gradient descent on the energy.
      level_shift: shift of the virtual levels during the SCF, hartree. It helps if the gap is small.
      damping: share of the previous Fock matrix in the next one, 0 to below 1. It helps against oscillation.
      max_cycles: number of cycles after which the SCF ends without convergence.
      tolerance: largest element of the commutator at convergence, hartree. Dipole moments and forces have errors of a
        few times this number; the error of the energy is much smaller.
      seed: seed of the random guess.
      trace: if true, keep the density matrix of every cycle in the history.

    Raises:
      InputError: if an option is not allowed, or `integrals.template` raises it.

    >>> import qptlab as ql
    >>> result = ql.scf(ql.Molecule.from_name("hydrogen"), ql.Method("lda", "sto-3g", grid_level=0))
    >>> bool(result.converged), round(float(result.energy), 3)
    (True, -1.119)
    """
    method = method or Method()
    _check_options(solver, level_shift, damping, max_cycles, tolerance)
    template = integrals.template(mol, method)
    ints = template.build(mol.positions)
    if guess == BROKEN_SYMMETRY:
        ints, dm = broken_symmetry(ints)
    else:
        dm = guess_density(guess, template, ints, seed)
    if solver == "minimise":
        return minimise(ints, dm, tolerance=tolerance, max_cycles=max_cycles, trace=trace)
    space = 1 if solver == "plain" else DIIS_SPACE
    return solve(
        ints, dm, level_shift, damping, tolerance, max_cycles=max_cycles, space=space, trace=trace,
        is_screened=solver == "screened",
    )


def scf_batch(
    mols: Sequence[Molecule], method: Method | None = None, *, tolerance: float = COMMUTATOR_TOLERANCE
) -> SCFResult:
    """Converge several geometries of one molecule by DIIS from their minao guesses; each stops when it has converged.

    On an accelerator, the geometries are lanes of one program. On a CPU, each core gets one geometry at a time: lanes
    would share the caches of one core, and would all continue until the last one has converged.

    Args:
      mols: geometries of one molecule.
      method: level of theory; the default is `Method()`.
      tolerance: largest element of the commutator at convergence, hartree.

    Returns:
      Results as `scf` returns them, with a leading axis of geometries.

    Raises:
      InputError: if there is no geometry, the molecules differ, or `scf` raises it.
    """
    method = method or Method()
    _check_options("diis", 0.0, 0.0, MAX_CYCLES, tolerance)
    kinds = {(mol.symbols, mol.charge, mol.spin) for mol in mols}
    if len(kinds) != 1:
        raise InputError(
            f"Expected geometries of one molecule, got {len(kinds)} different molecules; use one call for each."
        )
    template = integrals.template(mols[0], method)

    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, template.max_geometries)) as pool:
        if jax.default_backend() != "cpu":
            return converge_in_lanes(template, mols, tolerance, pool, memory.device_bytes())

        def converge(mol):
            ints = template.complete(template.host_integrals(mol.positions))
            return jax.block_until_ready(solve(ints, tolerance=tolerance))

        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *pool.map(converge, mols))


def converge_in_lanes(
    template: Template, mols: Sequence[Molecule], tolerance: float, pool: concurrent.futures.Executor, limit: int
) -> SCFResult:
    """Converge geometries as lanes of one program; see `scf_batch`.

    Args:
      template: template of the molecule.
      mols: geometries.
      tolerance: largest element of the commutator at convergence, hartree.
      pool: threads that compute integrals, those of the next group while the device works.
      limit: memory that the arrays may take, bytes; more geometries are divided into groups.
    """
    lanes = jax.vmap(lambda ints: solve(ints, tolerance=tolerance))
    groups = math.ceil(len(mols) * LANE_COPIES * template.nbytes / limit)
    size = math.ceil(len(mols) / groups)
    results = []
    for start in range(0, len(mols), size):
        group = list(mols[start : start + size])
        group += group[-1:] * (size - len(group))  # one shape, so that nothing is compiled again
        hosts = pool.map(lambda mol: template.host_integrals(mol.positions), group)
        results.append(lanes(jax.vmap(template.complete)(jax.tree.map(lambda *leaves: np.stack(leaves), *hosts))))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: len(mols)], *results)


def _check_options(solver: str, level_shift: float, damping: float, max_cycles: int, tolerance: float) -> None:
    if solver not in SOLVERS:
        raise InputError(f"Expected a known solver, got {solver!r}; use one of {', '.join(SOLVERS)}.")
    if not 0 <= level_shift < np.inf:
        raise InputError(f"Expected a level shift that is not negative, got {level_shift}; use 0 to 1 hartree.")
    if not 0 <= damping < 1:
        raise InputError(f"Expected damping of 0 to below 1, got {damping}; use 0.5 against oscillation.")
    if not isinstance(max_cycles, int) or max_cycles < 1:
        raise InputError(f"Expected a positive whole number of cycles, got {max_cycles!r}; use {MAX_CYCLES}.")
    if not 1e-10 <= tolerance < 1:
        raise InputError(f"Expected a tolerance of 1e-10 to below 1, got {tolerance}; use 1e-10 to 1e-3 hartree.")


def guess_density(name: str, template: Template, ints: Integrals, seed: int = 0) -> Float[Array, "*spin nao nao"]:
    """Return the density matrix of an initial guess, electrons per AO pair.

    Args:
      name: name of the guess, one of `GUESSES`.
      template: molecule.
      ints: integrals of the geometry, from `template`.
      seed: seed of the random guess.

    Raises:
      InputError: if the name is not known, or the guess is for all electrons and the basis has core potentials.
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
        nao = template.nao  # the orbitals that pad a molecule stay empty
        overlap = ints.overlap[:nao, :nao]
        root = overlap @ inverse_root(overlap)
        noise = jax.random.normal(jax.random.key(seed), (nao, nao))
        fock = (padding.ENERGY_HARTREE * jnp.eye(ints.nao)).at[:nao, :nao].set(root @ (noise + noise.T) @ root)
    else:
        raise InputError(
            f"Expected a known guess, got {name!r}; use one of {', '.join((*GUESSES, BROKEN_SYMMETRY))}."
        )
    return density_from_fock(jnp.broadcast_to(fock, (*ints.nocc.shape, *fock.shape)), ints)


def broken_symmetry(ints: Integrals) -> tuple[Integrals, Float[Array, "2 nao nao"]]:
    """Return integrals for an unrestricted calculation of a closed shell, and the guess `BROKEN_SYMMETRY`.

    Args:
      ints: integrals of the geometry, of a closed shell.

    Raises:
      InputError: if the molecule has unpaired electrons, no electrons, or no empty orbital.
    """
    nocc = int(np.max(ints.nocc))
    if ints.nocc.ndim or not 0 < nocc < int(jnp.sum(is_kept(ints.orthogonaliser))):
        raise InputError(
            f"Expected a closed shell with a filled and an empty orbital for the guess {BROKEN_SYMMETRY!r}, got an "
            "open shell, or too small a basis; use the guess 'minao'."
        )
    _, mo_coeff = orbitals(kohn_sham(ints.dm_guess, ints).fock, ints)
    homo, lumo = mo_coeff[:, nocc - 1], mo_coeff[:, nocc]
    inner = mo_coeff[:, : nocc - 1]
    mixed = [(homo + sign * lumo) / math.sqrt(2) for sign in (1, -1)]
    return ints.unrestricted(), jnp.stack([inner @ inner.T + jnp.outer(mix, mix) for mix in mixed])


def start_density(dm: Float[Array, "nao nao"], ints: Integrals) -> Float[Array, "*spin nao nao"]:
    """Return a total density matrix as an SCF needs it: for an open shell, half of it for each spin."""
    return dm if ints.nocc.ndim == 0 else jnp.stack([dm, dm]) / 2


class _Search(NamedTuple):
    """State of the SCF loop.

    Attributes:
      dm: density matrix, electrons per AO pair.
      fock: Fock matrix of `dm`, hartree.
      energy: energy of `dm`, hartree.
      change: change of the energy in the last cycle, hartree.
      residual: largest element of the commutator, hartree.
      focks: Fock matrices that DIIS combines.
      errors: commutators of these Fock matrices.
      dms: density matrices of these Fock matrices; an empty array without screening.
      cycles: number of cycles done.
      diagonalisations: number of diagonalisations done.
      history: energies and residuals so far.
    """

    dm: Float[Array, "*spin nao nao"]
    fock: Float[Array, "*spin nao nao"]
    energy: Float[Array, ""]
    change: Float[Array, ""]
    residual: Float[Array, ""]
    focks: Float[Array, "space *spin nao nao"]
    errors: Float[Array, "space *spin nao nao"]
    dms: Float[Array, "..."]
    cycles: Int[Array, ""]
    diagonalisations: Int[Array, ""]
    history: History


@functools.partial(jax.jit, static_argnames=("max_cycles", "space", "trace", "is_screened"))
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
    is_screened: bool = False,
) -> SCFResult:
    """Converge by DIIS, with the functional of the integrals.

    Args:
      ints: integrals of the geometry.
      dm: initial density matrix, electrons per AO pair; by default the guess that the integrals hold.
      level_shift: shift of the virtual levels during the SCF, hartree.
      damping: share of the previous Fock matrix in the next one, 0 to below 1.
      tolerance: largest element of the commutator at convergence, hartree.
      max_cycles: number of cycles after which the SCF ends without convergence.
      space: number of Fock matrices that are combined; 1 for plain iteration.
      trace: if true, keep the density matrix of every cycle in the history.
      is_screened: if true, the next density is that of `screening.screened`. Density matrices are combined with the
        same weights as Fock matrices.
    """
    dm = start_density(ints.dm_guess, ints) if dm is None else dm
    model = screening(ints) if is_screened else None

    def evaluate(dm, filled):
        state = kohn_sham(dm, ints, filled=filled)
        return state.fock, state.terms.e_tot, commutator(state.fock, dm, ints)

    def cycle(search):
        weights = _weights(search)
        fock = jnp.tensordot(weights, search.focks, axes=1) + level_shift * _virtual_projector(search.dm, ints)
        if model is None:
            filled, count = filled_orbitals(fock, ints), 1
        else:
            filled, count = screened_orbitals(fock, jnp.tensordot(weights, search.dms, axes=1), ints, model)
        dm = filled @ jnp.swapaxes(filled, -1, -2)
        fock, e_tot, error = evaluate(dm, filled)
        following = _remember(search, dm, fock, e_tot, error, damping)
        return following._replace(diagonalisations=search.diagonalisations + count)

    fock, e_tot, error = evaluate(dm, None)
    empty = jnp.zeros((space, *dm.shape))
    residual = jnp.max(jnp.abs(error))
    start = _Search(
        dm, fock, e_tot, jnp.asarray(jnp.inf), residual,
        empty.at[0].set(fock), empty.at[0].set(error), empty.at[0].set(dm) if is_screened else jnp.zeros(0),
        jnp.asarray(0), jnp.asarray(0), _history(max_cycles, e_tot, residual, dm if trace else None),
    )
    end = jax.lax.while_loop(lambda s: ~_is_converged(s, tolerance) & (s.cycles < max_cycles), cycle, start)
    return _result(end, ints, tolerance)


def _result(end: _Search, ints: Integrals, tolerance: float | Array) -> SCFResult:
    mo_energy, mo_coeff = orbitals(end.fock, ints)
    columns = max(ints.layout.nocc)
    is_filled = jnp.arange(columns) < ints.nocc[..., None]
    sc = ints.overlap @ mo_coeff[..., :columns]
    populations = jnp.einsum("...io,...ij,...jo->...o", sc, end.dm, sc)
    # A level shift can hold electrons in orbitals that are not the lowest. That is not a ground state.
    electrons = jnp.sum(ints.nocc) * (2 if ints.nocc.ndim == 0 else 1)
    is_aufbau = jnp.sum(populations * is_filled) > electrons - 1e-3
    return SCFResult(
        end.energy, end.dm, end.fock, mo_energy, mo_coeff,
        _is_converged(end, tolerance) & is_aufbau, end.cycles, end.residual, ints.nocc, end.history,
        end.diagonalisations,
    )


def _is_converged(search: _Search, tolerance: float | Array) -> Bool[Array, ""]:
    return (search.change < ENERGY_TOLERANCE) & (search.residual < tolerance)


def _virtual_projector(dm: Float[Array, "*spin nao nao"], ints: Integrals) -> Float[Array, "*spin nao nao"]:
    """Return S − S·P·S, where P projects on filled orbitals; it raises virtual levels (Saunders & Hillier 1973)."""
    share = 0.5 if dm.ndim == 2 else 1.0
    return ints.overlap - share * ints.overlap @ dm @ ints.overlap


def _remember(
    search: _Search,
    dm: Float[Array, "*spin nao nao"],
    fock: Float[Array, "*spin nao nao"],
    e_tot: Float[Array, ""],
    error: Float[Array, "*spin nao nao"],
    damping: float | Array,
) -> _Search:
    """Return the state after a cycle; the oldest Fock matrix makes room for the new one."""
    cycle, space = search.cycles + 1, len(search.focks)
    slot = cycle % space
    residual = jnp.max(jnp.abs(error))
    history = _extended(search.history, cycle, e_tot, residual, dm)

    def damped(stored, new):
        return stored.at[slot].set((1 - damping) * new + damping * stored[search.cycles % space])

    return _Search(
        dm, fock, e_tot, jnp.abs(e_tot - search.energy), residual, damped(search.focks, fock),
        search.errors.at[slot].set(error), damped(search.dms, dm) if search.dms.size else search.dms, cycle,
        search.diagonalisations, history,
    )


def _history(
    max_cycles: int, e_tot: Float[Array, ""], residual: Float[Array, ""], dm: Float[Array, "*spin nao nao"] | None
) -> History:
    """Return the history of the guess, with room for all cycles; with `dm`, it stores density matrices."""
    empty = jnp.full(max_cycles + 1, jnp.nan)
    dms = None if dm is None else jnp.full((max_cycles + 1, *dm.shape), jnp.nan).at[0].set(dm)
    return History(empty.at[0].set(e_tot), empty.at[0].set(residual), dms)


def _extended(
    history: History,
    cycle: Int[Array, ""],
    e_tot: Float[Array, ""],
    residual: Float[Array, ""],
    dm: Float[Array, "*spin nao nao"],
) -> History:
    dms = None if history.dm is None else history.dm.at[cycle].set(dm)
    return History(history.energy.at[cycle].set(e_tot), history.residual.at[cycle].set(residual), dms)


def _weights(search: _Search) -> Float[Array, " space"]:
    """Return the weights of the combination of the stored Fock matrices whose errors cancel best."""
    space = len(search.focks)
    is_used = jnp.arange(space) <= search.cycles
    flat = search.errors.reshape(space, -1)
    overlap = flat @ flat.T
    is_pair = is_used[:, None] & is_used[None, :]
    scale = jnp.maximum(jnp.max(jnp.where(is_pair, overlap, 0.0)), 1e-300)
    border = is_used.astype(overlap.dtype)
    matrix = jnp.block([
        [jnp.where(is_pair, overlap / scale, jnp.diag(1.0 - border)), border[:, None]],
        [border[None, :], jnp.zeros((1, 1))],
    ])
    target = jnp.zeros(space + 1).at[-1].set(1.0)
    # Nearly parallel errors make the matrix singular close to convergence: least squares, not solve.
    return jnp.linalg.lstsq(matrix, target, rcond=1e-14)[0][:-1]


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
    """Converge by minimising the energy over orthonormal orbitals, with the functional of the integrals.

    No Fock matrix is diagonalised after the guess. The filled orbitals are X·Q, where Q are the orthonormal columns
    of the QR decomposition of free parameters.

    Args:
      ints: integrals of the geometry.
      dm: initial density matrix, electrons per AO pair; by default the guess that the integrals hold. The search
        starts with the orbitals of its Fock matrix.
      optimiser: optimiser from optax; the default is L-BFGS with its line search. `optax.adam` and `optax.sgd` are
        more instructive and slower.
      tolerance: largest element of the commutator at convergence, hartree.
      max_cycles: number of steps after which the search ends without convergence.
      trace: if true, keep the density matrix of every step in the history.
    """
    dm = start_density(ints.dm_guess, ints) if dm is None else dm
    optimiser = optax.with_extra_args_support(optimiser or optax.lbfgs(memory_size=20))
    columns = max(ints.layout.nocc)
    electrons = 2.0 if ints.nocc.ndim == 0 else 1.0
    is_filled = (jnp.arange(columns) < ints.nocc[..., None])[..., None, :]

    def density(free):
        orthonormal, _ = jnp.linalg.qr(free * is_kept(ints.orthogonaliser)[:, None])
        filled = ints.orthogonaliser @ orthonormal * is_filled
        return electrons * filled @ jnp.swapaxes(filled, -1, -2)

    def loss(free):
        return energy(density(free), ints)

    def evaluate(free):
        dm = density(free)
        state = kohn_sham(dm, ints)
        return dm, state.fock, state.terms.e_tot, jnp.max(jnp.abs(commutator(state.fock, dm, ints)))

    def cycle(carry):
        free, state, search = carry
        value, gradient = jax.value_and_grad(loss)(free)
        updates, state = optimiser.update(gradient, state, free, value=value, grad=gradient, value_fn=loss)
        free = optax.apply_updates(free, updates)
        dm, fock, e_tot, residual = evaluate(free)
        steps = search.cycles + 1
        history = _extended(search.history, steps, e_tot, residual, dm)
        change = jnp.abs(e_tot - search.energy)
        return free, state, search._replace(
            dm=dm, fock=fock, energy=e_tot, change=change, residual=residual, cycles=steps, history=history
        )

    # Start with the orbitals of the guess, in the orthonormal basis of X.
    _, vectors = jnp.linalg.eigh(in_orthonormal_basis(kohn_sham(dm, ints).fock, ints.orthogonaliser))
    free = vectors[..., :columns]
    dm, fock, e_tot, residual = evaluate(free)
    unused = jnp.zeros(0)
    start = _Search(
        dm, fock, e_tot, jnp.asarray(jnp.inf), residual, unused, unused, unused, jnp.asarray(0), jnp.asarray(1),
        _history(max_cycles, e_tot, residual, dm if trace else None),
    )
    carry = (free, optimiser.init(free), start)
    *_, end = jax.lax.while_loop(lambda c: ~_is_converged(c[2], tolerance) & (c[2].cycles < max_cycles), cycle, carry)
    return _result(end, ints, tolerance)
