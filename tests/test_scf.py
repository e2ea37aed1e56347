"""Converged energies against PySCF."""

import sys

import cases
import jax
import numpy as np
import pytest
import tolerances as tol

import qptlab as ql
from qptlab.scf import solve

LEVELS = [(xc, basis) for xc in ("lda", "pbe") for basis in ("sto-3g", "def2-svp")]


@pytest.mark.parametrize("name", ["water", "ethanol", pytest.param("benzene", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("xc", "basis"), LEVELS)
def test_converged_energy_is_that_of_pyscf(name, xc, basis):
    method = ql.Method(xc, basis)
    found = ql.scf(cases.molecule(name), method)
    mf = cases.converged(name, method)
    assert found.converged
    assert float(found.energy) == pytest.approx(mf.e_tot, abs=tol.SCF_ENERGY)
    nocc = int(found.nocc)
    np.testing.assert_allclose(found.mo_energy[:nocc], mf.mo_energy[:nocc], atol=tol.MO_ENERGY)


def test_solution_does_not_move_under_another_iteration():
    method = ql.Method("pbe", "sto-3g")
    ints = cases.ints("methane", method)
    found = solve(ints, "pbe")
    again = ql.density_from_fock(ql.fock(found.dm, ints, "pbe"), ints)
    np.testing.assert_allclose(again, found.dm, atol=tol.SELF_CONSISTENCY)


def test_geometries_in_a_batch_converge_as_they_do_alone():
    method = ql.Method("lda", "sto-3g")
    alone = [cases.ints("water", method), cases.ints("water", method, displaced=0.1)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    together = jax.vmap(lambda ints: solve(ints, "lda"))(batch)
    for index, ints in enumerate(alone):
        single = solve(ints, "lda")
        assert together.converged[index]
        assert int(together.cycles[index]) == int(single.cycles)
        assert float(together.energy[index]) == pytest.approx(float(single.energy), abs=tol.SCF_ENERGY)


def test_what_has_not_converged_says_so(monkeypatch):
    """Stopped after three cycles, the result is there and is marked."""
    # The package's attribute `scf` is the function; the module is found by its name.
    monkeypatch.setattr(sys.modules["qptlab.scf"], "MAX_CYCLES", 3)
    fresh = jax.jit(lambda ints: solve.__wrapped__(ints, "lda"))
    found = fresh(cases.ints("water", ql.Method("lda", "sto-3g")))
    assert not found.converged
    assert int(found.cycles) == 3
    assert float(found.residual) > 1e-6
