"""Integrals: what libcint makes and what the device adds."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol

import qptlab as ql
from qptlab.energy import coulomb
from qptlab.integrals import MAX_ERI_BYTES, build_integrals, eri_bytes, template


@pytest.mark.parametrize(
    ("name", "basis"), [("water", "def2-svp"), ("ethanol", "sto-3g"), ("ethanol", "def2-svp"), ("benzene", "sto-3g")]
)
def test_guess_density_is_pyscfs_minao(name, basis):
    method = ql.Method("pbe", basis)
    mf = cases.rks(cases.molecule(name), method)
    np.testing.assert_allclose(cases.ints(name, method).dm_guess, mf.get_init_guess(), atol=tol.ROUNDING)


def test_guess_covers_metals_and_heavier_elements():
    for symbol, basis in (("Zn", "def2-svp"), ("Ar", "sto-3g"), ("Kr", "def2-svp")):
        atom = ql.Molecule((symbol,), np.zeros((1, 3)))
        method = ql.Method("lda", basis, grid_level=0)
        found = build_integrals(atom, method)
        np.testing.assert_allclose(found.dm_guess, cases.rks(atom, method).get_init_guess(), atol=1e-8)


def test_packed_repulsion_integrals_give_pyscfs_coulomb_matrix():
    method = ql.Method("pbe", "def2-svp", grid_level=0)
    mol, ints = cases.molecule("water"), cases.ints("water", method)
    dm = cases.random_density(mol, method)
    theirs = cases.rks(mol, method).get_j(dm=dm)
    np.testing.assert_allclose(coulomb(jnp.asarray(dm), ints), theirs, atol=tol.FOCK_OF_DENSITY)


def test_one_template_serves_every_geometry_of_its_molecule():
    method = ql.Method("pbe", "sto-3g", grid_level=0)
    moved = cases.molecule("ethanol", displaced=0.1)
    shared = cases.prepared("ethanol", method).build(moved.positions)
    own = build_integrals(moved, method)
    for name in ("overlap", "hcore", "eri", "dm_guess", "aos", "weights", "e_nuc"):
        np.testing.assert_allclose(getattr(shared, name), getattr(own, name), atol=tol.ROUNDING, err_msg=name)


def test_orthogonaliser_makes_orbitals_orthonormal():
    ints = cases.ints("water", ql.Method("pbe", "def2-svp", grid_level=0))
    x = np.asarray(ints.orthogonaliser)
    np.testing.assert_allclose(x.T @ np.asarray(ints.overlap) @ x, np.eye(ints.nao), atol=tol.ROUNDING)


@pytest.mark.parametrize(
    ("name", "basis", "said"),
    [
        ("water", "no-such-basis", "'no-such-basis' is not in PySCF's library for element H"),
        ("water", "cc-pvqz", "beyond f"),
        ("Cl", "lanl2dz", "effective core potential for element Cl"),
        ("alanine dipeptide", "def2-tzvp", "GiB, more than 4"),
    ],
)
def test_unusable_bases_are_refused_with_one_sentence(name, basis, said):
    with pytest.raises(ql.InputError, match=said) as caught:
        template(ql.Molecule.parse(name), ql.Method("pbe", basis))
    assert "\n" not in str(caught.value)


def test_refusal_by_size_comes_before_the_memory_is_taken():
    assert eri_bytes(400) > MAX_ERI_BYTES
    assert eri_bytes(100) == 8 * (100 * 101 // 2) ** 2


def test_positions_of_another_molecule_are_refused():
    prepared = cases.prepared("water", ql.Method("pbe", "sto-3g", grid_level=0))
    with pytest.raises(ql.InputError, match=r"\(4, 3\)"):
        prepared.host_integrals(np.zeros((4, 3)))
