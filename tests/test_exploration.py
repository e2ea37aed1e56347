"""SCF by several algorithms, with every cycle stored."""

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.dft import exploration


@pytest.fixture(scope="module")
def explored():
    return exploration.explore(cases.molecule("water"), ql.Method("pbe", "sto-3g", grid_level=0))


def test_all_algorithms_that_converge_find_pyscfs_ground_state(explored):
    truth = cases.converged("water", explored.method).e_tot
    ends = {algorithm: float(path.energy) for algorithm, path in explored.paths.items() if path.converged}
    assert {"DIIS", "mixed by one half", "gradient descent (L-BFGS)"} <= set(ends)
    assert list(ends.values()) == pytest.approx([truth] * len(ends), abs=1e-7)
    assert explored.lowest == pytest.approx(truth, abs=1e-7)


def test_every_cycle_is_stored(explored):
    """The stored density matrix gives the stored energy, and no energy is below the ground state."""
    for path in explored.paths.values():
        for cycle in (1, 2, int(path.cycles)):
            energy = ql.energy(path.history.dm[cycle], explored.ints)
            assert float(energy) == pytest.approx(float(path.history.energy[cycle]), abs=1e-9)
            assert float(energy) > explored.lowest - 1e-8


def test_plain_iteration_diagonalises_again_and_again(explored):
    dm = explored.ints.dm_guess
    path = explored.paths["plain iteration"]
    for cycle in range(1, 4):
        dm = ql.density_from_fock(ql.fock(dm, explored.ints), explored.ints)
        np.testing.assert_allclose(dm, path.history.dm[cycle], atol=1e-9)


def test_matrices_are_those_of_the_cycle(explored):
    matrices = explored.matrices("DIIS", 10**6)
    np.testing.assert_allclose(matrices["Density matrix D, electrons"], explored.paths["DIIS"].dm)
    np.testing.assert_allclose(matrices["Fock matrix F(D), hartree"], explored.paths["DIIS"].fock, atol=1e-12)
    assert np.sum(matrices["Density matrix D, electrons"] * matrices["Overlap S"]) == pytest.approx(10)
    with pytest.raises(ql.InputError, match="cycle -1 of 'DIIS'"):
        explored.matrices("DIIS", -1)


def test_open_shells_have_one_density_and_the_guess_is_checked():
    radical = exploration.explore(cases.molecule("OH"), cases.QUICK_METHOD, cycles=20)
    matrices = radical.matrices("DIIS", 3)
    assert {matrix.shape for matrix in matrices.values()} == {(6, 6)}
    assert np.sum(matrices["Density matrix D, electrons"] * matrices["Overlap S"]) == pytest.approx(9)
    with pytest.raises(ql.InputError, match="known guess, got 'huckel'"):
        exploration.explore(cases.molecule("water"), cases.QUICK_METHOD, "huckel")
