"""Grids, atomic orbitals and their rotation against PySCF and geometry."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol
from pyscf import dft
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft.grid import ao_rotation, becke_grid, eval_aos, solid_harmonics


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4, 5])
def test_points_and_weights_are_pyscfs_level_for_level(level):
    method = ql.Method("pbe", "sto-3g", grid_level=level)
    mol, template = cases.molecule("ethanol"), cases.prepared("ethanol", method)
    coords, weights = becke_grid(jnp.asarray(mol.positions), template.constants.grid)
    grids = dft.gen_grid.Grids(cases.rks(mol, method).mol)
    grids.level = level
    grids.build(with_non0tab=False, sort_grids=False)
    # PySCF drops points of no weight; both are compared where it has kept them.
    count = len(weights)
    theirs = np.concatenate([grids.coords, grids.weights[:, None]], axis=1)[: count]
    ours = np.concatenate([coords, weights[:, None]], axis=1)
    key = lambda rows: rows[np.lexsort(np.round(rows[:, :3], 6).T)]  # noqa: E731
    ours, theirs = key(ours[np.abs(ours[:, 3]) > 1e-12]), key(theirs[np.abs(theirs[:, 3]) > 1e-12])
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=tol.GRID)


@pytest.mark.parametrize("basis", ["sto-3g", "def2-svp", "def2-tzvp"])
def test_atomic_orbitals_and_their_gradients_are_pyscfs(basis):
    method = ql.Method("pbe", basis, grid_level=0)
    mol, template = cases.molecule("water"), cases.prepared("water", method)
    points = np.random.default_rng(1).normal(size=(50, 3)) * 2
    ours = eval_aos(jnp.asarray(mol.positions), jnp.asarray(points), template.basis, derivatives=True)
    theirs = cases.rks(mol, method).mol.eval_gto("GTOval_sph_deriv1", points)
    np.testing.assert_allclose(np.swapaxes(ours, 1, 2), theirs, atol=tol.AO_VALUES)
    plain = eval_aos(jnp.asarray(mol.positions), jnp.asarray(points), template.basis, derivatives=False)
    np.testing.assert_array_equal(plain[0], ours[0])


def test_rotated_molecule_has_rotated_orbitals():
    """For shells up to f: the overlap of the turned molecule is U·S·Uᵀ, and U is orthogonal."""
    method = ql.Method("pbe", "def2-tzvp", grid_level=0)
    mol, template = cases.molecule("water"), cases.prepared("water", method)
    rotation = Rotation.random(rng=5).as_matrix()
    turned = mol.with_positions(mol.positions @ rotation.T)
    u = np.asarray(ao_rotation(jnp.asarray(rotation), template.basis))
    np.testing.assert_allclose(u @ u.T, np.eye(template.nao), atol=tol.ROUNDING)
    before, after = (template.host_integrals(m.positions) for m in (mol, turned))
    for name in ("overlap", "hcore"):
        np.testing.assert_allclose(
            u @ getattr(before, name) @ u.T, getattr(after, name), atol=tol.ROUNDING
        )


def test_shells_beyond_f_are_refused():
    with pytest.raises(ValueError, match="angular momentum of 0 to 3, got 4"):
        solid_harmonics(jnp.ones((2, 3)), 4)
