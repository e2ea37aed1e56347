"""Charge screening: a self-consistent solution, its derivatives, its symmetries, and what it saves."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft import padding
from qptlab.dft import screening as module
from qptlab.dft.energy import commutator, density_from_fock, filled_orbitals, kohn_sham
from qptlab.dft.integrals import build_integrals, template
from qptlab.dft.scf import start_density
from qptlab.dft.screening import Screened, combination, screened, screened_orbitals, screening
from qptlab.units import HARTREE_MEV

HF = ql.Method("hf", "sto-3g")
SYMMETRIC = {
    "ammonia": "4\n\nN 0 0 0.12\nH 0.94 0 -0.27\nH -0.47 0.8140638797 -0.27\nH -0.47 -0.8140638797 -0.27\n",
    "methane": "5\n\nC 0 0 0\nH 0.63 0.63 0.63\nH -0.63 -0.63 0.63\nH -0.63 0.63 -0.63\nH 0.63 -0.63 -0.63\n",
}
"""Geometries with exactly degenerate levels, ångström."""

DISSOCIATED = "3\n\nO 0 0 0\nH 3.03 2.3 0\nH -3.03 2.3 0\n"
"""Water of four times its size: filled and empty levels cross, and no integer occupation solves the equations."""


def evaluated(ints: ql.Integrals, fock=None) -> tuple[jax.Array, jax.Array, Screened]:
    """Return density and Fock matrix of the guess, and the solution of the charge model."""
    dm = start_density(ints.dm_guess, ints)
    fock = kohn_sham(dm, ints).fock if fock is None else fock
    return dm, fock, jax.jit(screened)(fock, dm, ints, screening(ints))


def guessed(mol: ql.Molecule, method: ql.Method = HF) -> tuple[ql.Integrals, Screened]:
    ints = build_integrals(mol, method)
    return ints, evaluated(ints)[2]


@pytest.mark.parametrize(("name", "xc"), [("water", "hf"), ("ethanol", "pbe"), ("CH3", "hf"), ("OH", "lda")])
def test_populations_are_those_of_the_orbitals_in_their_own_potential(name, xc):
    ints = cases.ints(name, ql.Method(xc, "sto-3g", grid_level=0))
    dm, fock, found = evaluated(ints)
    model = screening(ints)
    levels, vectors = np.linalg.eigh(ints.overlap)
    root = vectors * np.sqrt(levels) @ vectors.T

    def populations(dm):
        total = dm if dm.ndim == 2 else dm.sum(axis=0)
        return np.diagonal(root @ total @ root) @ model.shells

    potential = root @ np.diag(model.shells @ (model.gamma @ (populations(found.dm) - populations(dm)))) @ root
    np.testing.assert_allclose(found.fock, fock + potential, atol=1e-7)
    again = density_from_fock(jnp.asarray(fock + potential), ints)
    np.testing.assert_allclose(populations(again), found.populations, atol=1e-6)
    assert float(found.error) < module.TOLERANCE
    assert float(found.populations.sum()) == pytest.approx(float(np.sum(ints.nocc)) * (2 if dm.ndim == 2 else 1))
    filled, count = screened_orbitals(fock, dm, ints, model)
    np.testing.assert_allclose(filled @ jnp.swapaxes(filled, -1, -2), found.dm, atol=tol.ROUNDING)
    assert filled.shape == filled_orbitals(fock, ints).shape
    assert 2 <= int(count) <= 5


def test_nothing_moves_at_the_ground_state():
    ints = cases.ints("water", HF)
    result = ql.scf(cases.molecule("water"), HF)
    found = screened(result.fock, result.dm, ints, screening(ints))
    np.testing.assert_allclose(found.dm, result.dm, atol=tol.SELF_CONSISTENCY)
    np.testing.assert_allclose(found.shift, 0.0, atol=1e-6)
    assert int(screened_orbitals(result.fock, result.dm, ints, screening(ints))[1]) <= 2


def number(ints: ql.Integrals, fock, dm) -> jax.Array:
    """Return a number that depends on the Fock matrix, the density matrix and the rest of a solution."""
    found = screened(fock, dm, ints, screening(ints))
    weights = jnp.asarray(cases.random_symmetric(ints.nao, 1))
    by_shell = jnp.cos(jnp.arange(len(found.shift)))
    return (
        jnp.sum(weights * found.dm) + jnp.sum(weights * found.dm**2) + 0.3 * jnp.sum(weights**2 * found.fock)
        + by_shell @ (found.populations**2 + found.shift)
    )


@pytest.mark.parametrize("name", ["water", "CH3"])
def test_derivatives_by_the_matrices_are_those_of_the_solution(name, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", 1e-12)
    ints = cases.ints(name, HF)
    dm, fock, _ = evaluated(ints)
    slopes = jax.jit(jax.grad(number, argnums=(1, 2)))(ints, fock, dm)
    value = jax.jit(number)
    shift = jnp.broadcast_to(jnp.asarray(cases.random_symmetric(ints.nao, 2)), dm.shape)
    shift = shift * jnp.asarray([1.0, 0.5])[:, None, None] if dm.ndim == 3 else shift
    by_fock = cases.slope_by_differences(lambda h: float(value(ints, fock + h * shift, dm)), 1e-3)
    by_dm = cases.slope_by_differences(lambda h: float(value(ints, fock, dm + h * shift)), 1e-3)
    assert float(jnp.sum(slopes[0] * shift)) == pytest.approx(by_fock, rel=tol.FINITE_DIFFERENCE)
    assert float(jnp.sum(slopes[1] * shift)) == pytest.approx(by_dm, rel=tol.FINITE_DIFFERENCE)


@pytest.mark.parametrize("name", ["water", "ammonia", "methane"])
def test_derivatives_by_positions_are_slopes_also_with_degenerate_levels(name, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", 1e-12)
    mol = ql.Molecule.from_xyz(SYMMETRIC[name]) if name in SYMMETRIC else cases.molecule(name)
    prepared = template(mol, HF)

    def value(ints):
        dm = ints.dm_guess
        found = screened(kohn_sham(dm, ints).fock, dm, ints, screening(ints))
        by_shell = jnp.cos(jnp.arange(len(found.shift)))
        return kohn_sham(found.dm, ints).terms.e_tot + by_shell @ found.populations + jnp.sum(found.fock * found.dm)

    _, gradient = prepared.value_and_gradient(value)(mol.positions)
    compiled = jax.jit(value)
    direction = np.random.default_rng(5).normal(size=mol.positions.shape)

    def along(step):
        return float(compiled(prepared.build(mol.positions + step * direction)))

    slope = cases.slope_by_differences(along, 2e-3)
    assert np.sum(gradient * direction) == pytest.approx(slope, rel=tol.FINITE_DIFFERENCE, abs=tol.FORCE)


def test_solution_turns_with_the_molecule_and_follows_the_order_of_its_atoms():
    mol = cases.molecule("ammonia", 0.1)
    method = ql.Method("hf", "def2-svp")
    turned = mol.with_positions(Rotation.random(rng=np.random.default_rng(8)).apply(mol.positions))
    order = [2, 0, 3, 1]
    shuffled = ql.Molecule(tuple(mol.symbols[i] for i in order), mol.positions[order])
    (ints, found), (turned_ints, after), (_, other) = (guessed(m, method) for m in (mol, turned, shuffled))
    gammas = [screening(i).gamma for i in (ints, turned_ints)]
    np.testing.assert_allclose(*gammas, atol=tol.ROUNDING)
    np.testing.assert_allclose(after.populations, found.populations, atol=1e-8)
    np.testing.assert_allclose(after.shift, found.shift, atol=1e-8)
    permutation = cases.relabelled(template(mol, method), order)
    np.testing.assert_allclose(other.dm, np.asarray(found.dm)[np.ix_(permutation, permutation)], atol=1e-8)
    np.testing.assert_allclose(other.fock, np.asarray(found.fock)[np.ix_(permutation, permutation)], atol=1e-8)


def test_distant_molecules_repel_as_points_and_do_not_change_each_other():
    water, away = cases.molecule("water"), 1000.0
    both = ql.Molecule(
        water.symbols * 2, np.concatenate([water.positions, water.positions + np.array([away, 0.0, 0.0])])
    )
    ints, pair = guessed(both)
    _, alone = guessed(water)
    gamma = np.asarray(screening(ints).gamma)
    atoms = np.zeros(len(gamma), int)
    atoms[np.asarray(module.shell_index(ints))] = np.asarray(template(both, HF).ao_atom)
    first, second = atoms < 3, atoms >= 3
    distance = np.linalg.norm(both.positions[atoms][:, None] - both.positions[atoms], axis=-1)
    between = np.ix_(first, second)
    np.testing.assert_allclose(gamma[between] * distance[between], module.SCALE, rtol=1e-4)
    # The potential of a distant dipole is of the order of 1e-6.
    for part in (first, second):
        np.testing.assert_allclose(np.sort(pair.populations[part]), np.sort(alone.populations), atol=1e-5)


def test_padding_changes_nothing():
    small, large = (template(cases.molecule(name), HF) for name in ("water", "ammonia"))
    shape = padding.union([small.shape, large.shape])
    positions = cases.molecule("water").positions
    padded = evaluated(small.padded(padding.Padding(shape, large.nocc)).build(positions))[2]
    plain, nao = evaluated(small.build(positions))[2], small.nao
    for name in ("fock", "dm"):
        np.testing.assert_allclose(getattr(padded, name)[:nao, :nao], getattr(plain, name), atol=tol.ROUNDING)
    np.testing.assert_allclose(padded.dm[nao:], 0.0, atol=tol.ROUNDING)


def test_geometries_in_a_batch_are_solved_as_alone():
    alone = [cases.ints("water", HF, displaced=d) for d in (0.0, 0.3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    together = jax.jit(jax.vmap(lambda ints: evaluated(ints)[2]))(batch)
    for index, ints in enumerate(alone):
        np.testing.assert_allclose(together.dm[index], evaluated(ints)[2].dm, atol=tol.ROUNDING)


def test_what_is_not_solved_says_so_and_stays_consistent():
    """The derivative is exact for a constant error of the populations, so it is that of a shifted problem."""
    ints = build_integrals(ql.Molecule.from_xyz(DISSOCIATED), ql.Method("pbe", "sto-3g", grid_level=0))
    dm, fock, found = evaluated(ints)
    assert float(found.error) > module.TOLERANCE
    np.testing.assert_allclose(density_from_fock(found.fock, ints), found.dm, atol=1e-8)
    slope = jax.grad(lambda fock: jnp.sum(screened(fock, dm, ints, screening(ints)).dm ** 2))(fock)
    assert np.isfinite(slope).all()


def test_the_search_goes_back_where_newtons_step_is_too_long():
    """From the core Hamiltonian of lithium fluoride, charge of several electrons moves back."""
    mol = ql.Molecule.from_xyz("2\n\nLi 0 0 0\nF 0 0 2.0\n")
    ints = build_integrals(mol, HF)
    dm = density_from_fock(ints.hcore, ints)
    fock, model = kohn_sham(dm, ints).fock, screening(ints)
    found = screened(fock, dm, ints, model)
    plain = density_from_fock(fock, ints)
    energies = [float(kohn_sham(d, ints).terms.e_tot) for d in (dm, plain, found.dm)]
    assert energies[2] == min(energies)


@functools.cache
def errors(xc: str, with_diis: bool, iterations: int = 3) -> list[float]:
    """Return the errors of the energy of water after each screened iteration from the guess, meV."""
    method = ql.Method(xc, "def2-svp", grid_level=1)
    ints = cases.ints("water", method)
    converged = float(ql.scf(cases.molecule("water"), method).energy)
    model, dm, energies, dms, focks, errors = screening(ints), ints.dm_guess, [], [], [], []
    for _ in range(iterations + 2):
        state = kohn_sham(dm, ints)
        energies.append(float(state.terms.e_tot))
        dms.append(dm)
        focks.append(state.fock)
        errors.append(commutator(state.fock, dm, ints))
        if with_diis:
            weights = combination(jnp.stack(errors))
            fock, mixed = (jnp.tensordot(weights, jnp.stack(m), axes=1) for m in (focks, dms))
        else:
            fock, mixed = state.fock, dm
        dm = jax.jit(screened)(fock, mixed, ints, model).dm
    return [HARTREE_MEV * abs(energy - converged) for energy in energies[1:]]


@pytest.mark.parametrize("with_diis", [False, True])
@pytest.mark.parametrize("xc", ["pbe", "hf", "b3lyp"])
def test_errors_of_water_fall_by_five_in_each_iteration(xc, with_diis):
    found = errors(xc, with_diis)
    assert found[0] < 400
    assert found[1] < found[0] / 5
    assert found[2] < found[1] / 5


def test_errors_of_water_are_those_of_the_documentation():
    np.testing.assert_allclose(errors("pbe", False), [162, 22, 3.6, 0.6], rtol=0.1)
    assert errors("pbe", True)[2] < 0.06


def test_weights_of_the_combination_are_those_of_pulay():
    rng = np.random.default_rng(0)
    matrices = jnp.asarray(rng.normal(size=(3, 4, 4)))
    weights = combination(matrices)
    assert float(weights.sum()) == pytest.approx(1.0)
    products = [float(jnp.sum(m * jnp.tensordot(weights, matrices, axes=1))) for m in matrices]
    np.testing.assert_allclose(products, products[0], rtol=1e-6)  # Pulay's equations
