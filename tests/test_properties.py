"""Dipole moments and orbitals in space."""

import ase.io.cube
import cases
import numpy as np
import pytest
from pyscf.dft import numint
from pyscf.lo.orth import lowdin

import qptlab as ql
from qptlab.dft.integrals import template
from qptlab.dft.properties import box, cube_text, density_on_box, orbital_on_box
from qptlab.units import BOHR_ANGSTROM

METHOD = ql.Method("pbe", "def2-svp", grid_level=0)


def points_of(where):
    axes = [where.origin[i] + where.spacing[i] * np.arange(where.shape[i]) for i in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def test_dipole_moment_is_pyscfs():
    mol = cases.molecule("water")
    dm = np.asarray(cases.ints("water", METHOD).dm_guess)
    theirs = cases.rks(mol, METHOD).dip_moment(cases.rks(mol, METHOD).mol, dm, verbose=0)
    np.testing.assert_allclose(ql.dipole_debye(mol, METHOD, dm), theirs, atol=1e-8)


def test_dipole_moment_turns_with_the_molecule():
    result = ql.scf(cases.molecule("water"), METHOD)
    size = np.linalg.norm(ql.dipole_debye(cases.molecule("water"), METHOD, result.dm))
    again = ql.Molecule.from_name("water")
    assert size == pytest.approx(np.linalg.norm(ql.dipole_debye(again, METHOD, ql.scf(again, METHOD).dm)), abs=1e-3)


def test_orbitals_on_a_box_are_normalised_and_orthogonal():
    mol = ql.Molecule.from_name("water")
    result = ql.scf(mol, METHOD)
    where = box(mol, 64)
    homo, lumo = (
        orbital_on_box(mol, template(mol, METHOD), result.mo_coeff[:, i], where) for i in (4, 5)
    )
    volume = np.prod(where.spacing)
    assert float((homo**2).sum() * volume) == pytest.approx(1, abs=2e-3)
    assert float((homo * lumo).sum() * volume) == pytest.approx(0, abs=2e-3)
    assert homo.dtype == np.float32


def test_orbital_values_are_pyscfs():
    mol = cases.molecule("ethanol")
    coefficients = np.random.default_rng(0).normal(size=cases.prepared("ethanol", METHOD).nao)
    where = box(mol, 7)
    ours = orbital_on_box(mol, template(mol, METHOD), coefficients, where)
    points = points_of(where)
    theirs = cases.rks(mol, METHOD).mol.eval_gto("GTOval_sph", points) @ coefficients
    np.testing.assert_allclose(ours.ravel(), theirs, rtol=1e-5, atol=1e-6)


def test_densities_on_a_box_are_pyscfs():
    mol = cases.molecule("water")
    dm = np.asarray(cases.ints("water", METHOD).dm_guess)
    where = box(mol, 9)
    points = points_of(where)
    aos = cases.rks(mol, METHOD).mol.eval_gto("GTOval_sph", points)
    theirs = numint.eval_rho(cases.rks(mol, METHOD).mol, aos, dm)
    ours = density_on_box(mol, template(mol, METHOD), dm, where)
    np.testing.assert_allclose(ours.ravel(), theirs, rtol=1e-5, atol=1e-8)


def test_lowdin_charges_are_populations_of_orthogonalised_orbitals():
    """PySCF's own Löwdin orbitals, S^(−½) in columns: D in their basis has the populations on its diagonal."""
    mol = cases.molecule("formaldehyde")
    dm, overlap = np.asarray(cases.ints("formaldehyde", METHOD).dm_guess), cases.rks(mol, METHOD).get_ovlp()
    orbitals = lowdin(overlap)
    populations = np.diag(orbitals.T @ overlap @ dm @ overlap @ orbitals)
    atoms = [label[0] for label in cases.rks(mol, METHOD).mol.ao_labels(fmt=False)]
    theirs = mol.atomic_numbers - np.bincount(atoms, populations)
    np.testing.assert_allclose(ql.charges(mol, METHOD, dm, "lowdin"), theirs, atol=1e-10)
    with pytest.raises(ql.InputError, match="Expected a known kind of charges, got 'hirshfeld'"):
        ql.charges(mol, METHOD, dm, "hirshfeld")


def test_cube_files_are_read_back_by_ase(tmp_path):
    mol = ql.Molecule.from_name("water")
    where = box(mol, 5)
    values = np.random.default_rng(0).normal(size=(5, 5, 5))
    (tmp_path / "orbital.cube").write_text(cube_text(mol, values, where, "two\nlines"))
    with (tmp_path / "orbital.cube").open() as file:
        read = ase.io.cube.read_cube(file)
    np.testing.assert_allclose(read["data"], values, rtol=1e-5)
    np.testing.assert_allclose(read["atoms"].positions, mol.positions_angstrom, atol=1e-5)
    np.testing.assert_allclose(np.diag(read["spacing"]) / BOHR_ANGSTROM, where.spacing, rtol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        ql.dipole_debye(cases.molecule("water"), METHOD, np.eye(3))
    with pytest.raises(ValueError, match="at least 2 points along each axis of a box, got 1"):
        box(cases.molecule("water"), 1)
