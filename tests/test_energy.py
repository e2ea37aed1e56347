"""One Kohn–Sham iteration against PySCF, finite differences and symmetry."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol

import qptlab as ql
from qptlab.dft.energy import density_from_fock, energy, fock, kohn_sham, orbitals
from qptlab.dft.integrals import inverse_root
from qptlab.dft.scf import solve


def hartree(ints):
    """A Fock matrix with the molecule's full symmetry, which an integration grid has not."""
    return ints.hcore + ints.repulsion.coulomb(ints.dm_guess)


LEVELS = [(xc, basis) for xc in ("lda", "pbe") for basis in ("sto-3g", "def2-svp")]


@pytest.mark.parametrize("name", ["water", cases.slow("ethanol")])
@pytest.mark.parametrize(("xc", "basis"), LEVELS)
def test_energy_and_fock_matrix_of_any_density_are_those_of_pyscf(name, xc, basis):
    method = ql.Method(xc, basis)
    mol, ints = cases.molecule(name), cases.ints(name, method)
    dm = cases.random_density(mol, method)
    mf = cases.rks(mol, method)
    found = kohn_sham(jnp.asarray(dm), ints)
    assert float(found.terms.e_tot) == pytest.approx(mf.energy_tot(dm=dm), abs=tol.ENERGY_OF_DENSITY)
    np.testing.assert_allclose(found.fock, mf.get_fock(dm=dm), atol=tol.FOCK_OF_DENSITY, rtol=0)


def test_shells_up_to_f_give_pyscfs_fock_matrix():
    method = ql.Method("pbe", "def2-tzvp", grid_level=0)
    mol, ints = cases.molecule("water"), cases.ints("water", method)
    dm = cases.random_density(mol, method)
    mf = cases.rks(mol, method)
    found = kohn_sham(jnp.asarray(dm), ints)
    assert float(found.terms.e_tot) == pytest.approx(mf.energy_tot(dm=dm), abs=tol.ENERGY_OF_DENSITY)
    np.testing.assert_allclose(found.fock, mf.get_fock(dm=dm), atol=tol.FOCK_OF_DENSITY, rtol=0)


@pytest.mark.parametrize("xc", ["lda", "pbe"])
def test_fock_matrix_is_the_derivative_of_the_energy(xc):
    ints = cases.ints("water", ql.Method(xc, "sto-3g"))
    dm = jnp.asarray(cases.random_density(cases.molecule("water"), ql.Method(xc, "sto-3g")))
    derivative = jax.grad(lambda d: energy(0.5 * (d + d.T), ints))(dm)
    np.testing.assert_allclose(derivative, fock(dm, ints), atol=tol.DERIVATIVE_IDENTITY, rtol=0)


def test_parts_of_the_energy_sum_to_the_total_and_electrons_are_counted():
    ints = cases.ints("water", ql.Method("pbe", "sto-3g"))
    found = kohn_sham(ints.dm_guess, ints)
    terms = found.terms
    assert float(sum(terms)) == float(terms.e_tot)
    dm = density_from_fock(found.fock, ints)
    assert float(jnp.sum(dm * ints.overlap)) == pytest.approx(10, abs=tol.ROUNDING)
    np.testing.assert_allclose(dm @ ints.overlap @ dm, 2 * dm, atol=tol.ROUNDING)


@pytest.mark.parametrize("name", ["water", "methane", "benzene"])
@pytest.mark.parametrize("argument", ["fock", "overlap"])
def test_derivative_of_the_density_equals_finite_differences(name, argument):
    """Methane and benzene have degenerate levels, where a derivative through eigh is not finite."""
    ints = cases.ints(name, ql.Method("lda", "sto-3g", grid_level=0))
    start = hartree(ints)
    weight = jnp.asarray(cases.random_symmetric(ints.nao, seed=1))
    direction = jnp.asarray(cases.random_symmetric(ints.nao, seed=2, scale=0.1))

    @jax.jit
    def along(step):
        if argument == "fock":
            return jnp.sum(weight * density_from_fock(start + step * direction, ints))
        overlap = ints.overlap + 0.1 * step * direction
        chol = jnp.linalg.cholesky(overlap)
        x = jax.scipy.linalg.solve_triangular(chol, jnp.eye(ints.nao), lower=True).T
        moved = ints._replace(overlap=overlap, orthogonaliser=jax.lax.stop_gradient(x))
        return jnp.sum(weight * density_from_fock(start, moved))

    slope = float(jax.grad(along)(0.0))
    difference = cases.slope_by_differences(along, 1e-3)
    assert np.isfinite(slope)
    assert slope == pytest.approx(difference, rel=tol.FINITE_DIFFERENCE)


def test_degenerate_levels_of_methane_and_benzene_are_really_there():
    for name, level in (("methane", 2), ("benzene", 19)):
        ints = cases.ints(name, ql.Method("lda", "sto-3g", grid_level=0))
        mo_energy, _ = orbitals(hartree(ints), ints)
        assert abs(float(mo_energy[level + 1] - mo_energy[level])) < tol.DEGENERATE


def test_a_closed_gap_is_not_differentiated():
    """O₂ as a closed shell: two electrons in two equal π* levels, of which only one is filled."""
    oxygen = ql.Molecule(("O", "O"), np.array([[0.0, 0, 0], [0, 0, 2.3]]))
    ints = ql.build_integrals(oxygen, ql.Method("lda", "sto-3g", grid_level=0))
    start = hartree(ints)
    mo_energy, _ = orbitals(start, ints)
    gap = float(mo_energy[int(ints.nocc)] - mo_energy[int(ints.nocc) - 1])
    weight = cases.random_symmetric(ints.nao)
    derivative = jax.grad(lambda f: jnp.sum(weight * density_from_fock(f, ints)))(start)
    assert abs(gap) < tol.DEGENERATE
    assert np.isnan(derivative).any()


def test_a_matrix_of_another_molecule_is_refused():
    ints = cases.ints("water", ql.Method("pbe", "sto-3g"))
    with pytest.raises(ValueError, match=r"\(6, 6\)"):
        energy(jnp.eye(6), ints)
    with pytest.raises(ValueError, match=r"\(6, 6\)"):
        density_from_fock(jnp.eye(6), ints)


def test_the_inverse_root_of_a_matrix_with_equal_levels_has_its_derivative():
    """By finite differences: all levels equal, two of them, none."""
    direction, weight, noise = (cases.random_symmetric(5, seed) for seed in range(3))
    for matrix in (4.0 * np.eye(5), np.diag([1.0, 2.0, 2.0, 3.0, 5.0]), noise + 8 * np.eye(5)):
        def along(step, matrix=matrix):
            return jnp.sum(weight * inverse_root(jnp.asarray(matrix) + step * direction))

        root = inverse_root(jnp.asarray(matrix))
        np.testing.assert_allclose(root @ matrix @ root, np.eye(5), atol=tol.ROUNDING)
        difference = cases.slope_by_differences(along, 2e-3)
        assert float(jax.grad(along)(0.0)) == pytest.approx(difference, rel=tol.FINITE_DIFFERENCE)


def test_energy_and_fock_matrix_are_those_of_the_integrals_functional():
    """One fact, stated once: no call can name a functional that the integrals were not made for."""
    water = ql.Molecule.from_name("water")
    lda, pbe = (ql.build_integrals(water, ql.Method(xc, "sto-3g", grid_level=0)) for xc in ("lda", "pbe"))
    expected = cases.rks(water, ql.Method("pbe", "sto-3g", grid_level=0)).energy_tot(dm=np.asarray(pbe.dm_guess))
    assert expected == pytest.approx(-75.297, abs=1e-3)
    assert float(energy(lda.dm_guess, pbe)) == pytest.approx(expected, abs=tol.ENERGY_OF_DENSITY)
    for function in (energy, fock, kohn_sham, solve):
        with pytest.raises(TypeError):
            function(lda.dm_guess, lda, "pbe")
    with pytest.raises(TypeError):
        solve(lda, "pbe")
    with pytest.raises(ValueError, match=r"structure|custom node data"):  # newer and older JAX
        jax.tree.map(lambda *leaves: jnp.stack(leaves), lda, pbe)


def test_a_different_functional_on_the_same_integrals_is_that_of_its_own_method():
    water = cases.molecule("water")
    every = ql.build_integrals(water, ql.Method("cam-b3lyp", "sto-3g", grid_level=0))
    for xc in ("lda", "pbe", "hf", "pbe0", "r2scan", "lc-blyp"):
        method = ql.Method(xc, "sto-3g", grid_level=0)
        expected = float(solve(ql.build_integrals(water, method)).energy)
        assert float(solve(every.with_functional(xc)).energy) == pytest.approx(expected, abs=tol.ROUNDING)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), every, every)
    energies = jax.vmap(lambda ints: energy(ints.dm_guess, ints.with_functional("pbe")))(batch)
    single = float(energy(every.dm_guess, every.with_functional("pbe")))
    np.testing.assert_allclose(energies, single, atol=tol.ENERGY_OF_DENSITY, rtol=0)


@pytest.mark.parametrize(
    ("made_for", "wanted", "missing"),
    [
        ("lda", "pbe", "gradients of the atomic orbitals"),
        ("hf", "lda", "grid points"),
        ("pbe", "hf", "integrals for exact exchange"),
        ("lda", "b3lyp", "gradients of the atomic orbitals and integrals for exact exchange"),
        ("b3lyp", "cam-b3lyp", "integrals for long-range exchange with ω = 0.33 per bohr"),
        ("lc-blyp", "wb97x", "integrals for exact exchange and .* exchange with ω = 0.3 per bohr"),
    ],
)
def test_a_functional_that_the_integrals_cannot_serve_is_refused(made_for, wanted, missing):
    ints = cases.ints("water", ql.Method(made_for, "sto-3g", grid_level=0))
    with pytest.raises(ql.InputError, match=f"made for functional '{made_for}' lack {missing} for '{wanted}'"):
        ints.with_functional(wanted)
