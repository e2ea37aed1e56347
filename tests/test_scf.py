"""Converged calculations against PySCF: energies, orbitals, dipoles, forces; and what a search does on its way."""

import concurrent.futures
import importlib
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tolerances as tol

import qptlab as ql
from qptlab.dft.scf import GUESSES, LANE_COPIES, converge_in_lanes, minimise, solve
from qptlab.evaluation import reference

# A covering set: every molecule, every functional, every basis and both forms of the integrals, not their product.
COVERING = [
    ("hydrogen", "hf", "cc-pvdz", "exact"),
    ("HF", "b3lyp5", "6-31g*", "exact"),
    ("N2", "pw92", "def2-svp", "fitted"),
    ("water", "b3lyp", "def2-svp", "exact"),
    ("water", "r2scan", "def2-svp", "fitted"),
    ("ammonia", "blyp", "cc-pvdz", "exact"),
    ("methane", "pbe0", "def2-svp", "exact"),
    cases.slow("formaldehyde", "pbe", "def2-tzvp", "fitted"),
    ("SO2", "lda", "6-31g*", "exact"),
    ("ethanol", "pbe", "sto-3g", "exact"),
    cases.slow("ethanol", "b3lyp", "sto-3g", "fitted"),
    cases.slow("ethanol", "pbe", "def2-svp", "exact"),
    cases.slow("benzene", "lda", "def2-svp", "exact"),
    cases.slow("uracil", "pbe", "def2-svp", "fitted"),
    cases.slow("uracil", "b3lyp", "sto-3g", "exact"),
    cases.slow("O2", "pbe", "def2-svp", "exact"),
    ("O2", "b3lyp", "sto-3g", "fitted"),
    cases.slow("CH3", "r2scan", "6-31g*", "exact"),
    ("CH3", "lda", "def2-svp", "exact"),
    ("OH", "hf", "cc-pvdz", "exact"),
    ("water", "cam-b3lyp", "def2-svp", "exact"),
    ("CH3", "wb97m-v-nonlc", "6-31g*", "fitted"),
    cases.slow("CH3", "cam-b3lyp", "sto-3g", "exact"),
    cases.slow("HF", "wb97x-v-nonlc", "6-31g*", "fitted"),
    cases.slow("N2", "lc-blyp", "def2-svp", "fitted"),
    cases.slow("methane", "wb97x", "sto-3g", "exact"),
]


DEPENDENT = {
    "diacetylene": ("C#CC#C", "pbe", "6-31++g**"), "hexatriyne": ("C#CC#CC#C", "lda", "6-31++g"),
    "chain": ("10\n\n" + "".join(f"H 0 0 {0.529177 * i}\n" for i in range(10)), "hf", "cc-pvdz"),
    "near": ("6\nspin=2\n" + "".join(f"H 0 0 {0.423 * i}\n" for i in range(6)), "hf", "aug-cc-pvdz"),
}
"""Bases with eigenvalues of the overlap below 1e-6, down to 7e-11."""


@pytest.mark.parametrize("name", ["chain", "near", cases.slow("diacetylene"), cases.slow("hexatriyne")])
def test_orbitals_of_a_nearly_dependent_basis_are_dropped_as_in_pyscf(name):
    text, xc, basis = DEPENDENT[name]
    mol, method = ql.Molecule.parse(text), ql.Method(xc, basis, grid_level=0)
    reference = cases.rks(mol, method)
    reference.conv_tol = 1e-11
    reference.kernel()
    dropped = reference.mol.nao - reference.mo_coeff.shape[-1]
    assert dropped > 0
    for solver in ("diis", "screened"):
        result = ql.scf(mol, method, solver=solver)
        assert float(result.energy) == pytest.approx(reference.e_tot, abs=1e-8)
        assert (np.asarray(result.mo_energy)[..., -dropped:] > 1000).all()
    forces = ql.forces(mol, method, result.fock)
    gradient = reference.nuc_grad_method()
    if xc != "hf":
        gradient.grid_response = True
    np.testing.assert_allclose(forces, -gradient.kernel(), atol=1e-5)


@pytest.mark.parametrize(("name", "xc", "basis", "eri"), COVERING)
def test_energy_fock_matrix_orbitals_dipole_and_charges_are_those_of_pyscf(name, xc, basis, eri):
    method = ql.Method(xc, basis, eri=eri)
    mol = cases.molecule(name)
    found, mf = cases.solved(name, method), cases.converged(name, method)
    assert found.converged
    assert float(found.energy) == pytest.approx(mf.e_tot, abs=tol.SCF_ENERGY)
    for ours, theirs, nocc in zip(
        *map(np.atleast_2d, (found.mo_energy, mf.mo_energy)), np.atleast_1d(found.nocc), strict=True
    ):
        np.testing.assert_allclose(ours[:nocc], theirs[:nocc], atol=tol.MO_ENERGY)
    theirs = mf.get_fock(dm=np.asarray(found.dm))
    np.testing.assert_allclose(found.fock, theirs, atol=10 * tol.FOCK_OF_DENSITY)
    dipole = mf.dip_moment(verbose=0)
    np.testing.assert_allclose(ql.dipole_debye(mol, method, found.dm), dipole, atol=tol.DIPOLE)
    _, mulliken = mf.mulliken_pop(verbose=0)
    np.testing.assert_allclose(ql.charges(mol, method, found.dm), mulliken, atol=tol.CHARGE)


@pytest.mark.parametrize(
    ("name", "xc", "basis", "eri"),
    [
        ("hydrogen", "hf", "cc-pvdz", "exact"),
        cases.slow("HF", "b3lyp5", "6-31g*", "exact"),
        cases.slow("N2", "pw92", "def2-svp", "fitted"),
        cases.slow("water", "r2scan", "def2-svp", "fitted"),
        cases.slow("ammonia", "blyp", "cc-pvdz", "exact"),
        cases.slow("methane", "pbe0", "def2-svp", "exact"),
        cases.slow("formaldehyde", "pbe", "def2-tzvp", "fitted"),
        cases.slow("SO2", "lda", "6-31g*", "exact"),
        cases.slow("O2", "pbe", "def2-svp", "exact"),
        cases.slow("OH", "hf", "cc-pvdz", "exact"),
        cases.slow("ethanol", "b3lyp", "sto-3g", "fitted"),
        cases.slow("uracil", "pbe", "def2-svp", "fitted"),
        ("water", "cam-b3lyp", "def2-svp", "exact"),
        cases.slow("CH3", "wb97m-v-nonlc", "6-31g*", "fitted"),
        cases.slow("N2", "lc-blyp", "def2-svp", "fitted"),
    ],
)
def test_forces_are_those_of_pyscf_with_its_grid_response(name, xc, basis, eri):
    method = ql.Method(xc, basis, eri=eri)
    mol = cases.molecule(name)
    gradient = cases.converged(name, method).nuc_grad_method()
    gradient.grid_response = xc != "hf"  # there is no grid then, and PySCF's code for two spins stumbles
    found = ql.forces(mol, method, cases.solved(name, method).fock)
    np.testing.assert_allclose(found, -gradient.kernel(), atol=tol.FORCE)
    np.testing.assert_allclose(found.sum(axis=0), 0.0, atol=tol.ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "xc", "eri"), [
    ("water", "b3lyp", "exact"), ("CH3", "r2scan", "exact"), ("water", "cam-b3lyp", "fitted"),
])
def test_forces_are_the_slope_of_converged_energies(name, xc, eri):
    method = ql.Method(xc, "6-31g*", grid_level=0, eri=eri)
    mol = cases.molecule(name, displaced=0.1)
    direction = np.random.default_rng(4).normal(size=mol.positions.shape)

    def along(step):
        return float(ql.scf(mol.with_positions(mol.positions + step * direction), method).energy)

    forces = ql.forces(mol, method, ql.scf(mol, method, tolerance=1e-7).fock)
    slope = cases.slope_by_differences(along, 3e-3)
    assert -np.sum(forces * direction) == pytest.approx(slope, abs=tol.FORCE)


def test_solution_does_not_move_under_another_iteration():
    method = ql.Method("pbe", "sto-3g")
    ints = cases.ints("methane", method)
    found = solve(ints)
    again = ql.density_from_fock(ql.fock(found.dm, ints), ints)
    np.testing.assert_allclose(again, found.dm, atol=tol.SELF_CONSISTENCY)


@pytest.mark.parametrize(("xc", "eri"), [("lda", "exact"), cases.slow("b3lyp", "fitted")])
def test_geometries_in_a_batch_converge_as_they_do_alone(xc, eri):
    method = ql.Method(xc, "sto-3g", eri=eri)
    alone = [cases.ints("water", method, displaced=d) for d in (0.0, 0.1, 0.2)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    together = jax.vmap(lambda ints: solve(ints))(batch)
    for index, ints in enumerate(alone):
        single = solve(ints)
        assert together.converged[index]
        assert int(together.cycles[index]) == int(single.cycles)
        assert float(together.energy[index]) == pytest.approx(float(single.energy), abs=tol.SCF_ENERGY)


@pytest.mark.parametrize(("name", "guess"), [*(("water", guess) for guess in GUESSES), cases.slow("CH3", "core")])
def test_every_guess_leads_to_the_same_ground_state(name, guess):
    """Of open shells not every guess does: O2's Hartree–Fock equations have several solutions."""
    method = ql.Method("pbe", "sto-3g")
    found = ql.scf(cases.molecule(name), method, guess=guess)
    assert found.converged
    assert float(found.energy) == pytest.approx(cases.converged(name, method).e_tot, abs=tol.SCF_ENERGY)


@pytest.mark.filterwarnings("ignore:remove_linear_dep_:DeprecationWarning")  # raised by PySCF in its own call
def test_guesses_of_atoms_are_pyscfs():
    method = ql.Method("pbe", "def2-svp")
    mf, prepared = cases.rks(cases.molecule("water"), method), cases.prepared("water", method)
    positions = cases.molecule("water").positions
    # PySCF's atoms converge to six decimals or so, ours to their own.
    np.testing.assert_allclose(prepared.atomic_density(positions), mf.init_guess_by_atom(), atol=1e-5)
    ints = cases.ints("water", method)
    mf.grids.level = 1
    fock = prepared.atomic_potential(positions)
    np.testing.assert_allclose(ql.density_from_fock(jnp.asarray(fock), ints), mf.init_guess_by_vsap(), atol=1e-8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("water", {"level_shift": 0.5}), ("water", {"solver": "minimise"}), ("CH3", {"damping": 0.5}),
        cases.slow("CH3", {"solver": "minimise"}),
    ],
)
def test_other_ways_of_searching_find_the_same_minimum(name, options):
    method = ql.Method("lda", "sto-3g")
    found = ql.scf(cases.molecule(name), method, **options)
    assert found.converged
    assert float(found.energy) == pytest.approx(cases.converged(name, method).e_tot, abs=tol.SCF_ENERGY)


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("water", ql.Method("pbe", "def2-svp", grid_level=0), {}),
        ("CH3", ql.Method("lda", "sto-3g", grid_level=0), {}),
        cases.slow("OH", ql.Method("hf", "cc-pvdz", eri="exact"), {}),
        cases.slow("ethanol", ql.Method("b3lyp", "sto-3g", eri="fitted"), {}),
        ("water", ql.Method("lda", "sto-3g"), {"level_shift": 0.3, "damping": 0.3}),
    ],
)
def test_screening_leads_to_the_same_energy_with_no_more_fock_matrices(name, method, options):
    mol = cases.molecule(name)
    screened, usual = (ql.scf(mol, method, solver=solver, **options) for solver in ("screened", "diis"))
    assert screened.converged
    assert float(screened.energy) == pytest.approx(float(usual.energy), abs=tol.SCF_ENERGY)
    assert float(screened.energy) == pytest.approx(cases.converged(name, method).e_tot, abs=tol.SCF_ENERGY)
    assert screened.diagonalisations > screened.cycles
    assert usual.diagonalisations == usual.cycles
    if not options:
        assert screened.cycles <= usual.cycles


def test_gradient_descent_falls_at_every_step_and_its_history_is_kept():
    ints = cases.ints("hydrogen", ql.Method("lda", "sto-3g", grid_level=0))
    start = ql.density_from_fock(jnp.asarray([[0.0, 0.5], [0.5, 0.3]]), ints)
    found = minimise(ints, start, optimiser=optax.sgd(0.2), max_cycles=30)
    energies = np.asarray(found.history.energy)[: int(found.cycles) + 1]
    assert np.all(np.diff(energies) <= tol.ROUNDING)
    assert energies[-1] == float(found.energy) < energies[0]


def test_history_tells_every_cycle_and_ends_at_the_result():
    found = cases.solved("water", ql.Method("b3lyp", "def2-svp", eri="exact"))
    cycles = int(found.cycles)
    assert float(found.history.energy[cycles]) == float(found.energy)
    assert float(found.history.residual[cycles]) == float(found.residual)
    assert np.isnan(found.history.energy[cycles + 1 :]).all()
    assert np.isfinite(found.history.energy[: cycles + 1]).all()


def test_gap_is_between_the_frontier_levels_of_either_spin():
    for name in ("water", "O2"):
        method = ql.Method("pbe", "def2-svp", eri="exact")
        mf = cases.converged(name, method)
        filled = np.asarray(mf.mo_occ) > 0
        expected = np.asarray(mf.mo_energy)[~filled].min() - np.asarray(mf.mo_energy)[filled].max()
        assert ql.scf(cases.molecule(name), method).gap == pytest.approx(expected, abs=10 * tol.MO_ENERGY)
    helium = ql.scf(ql.Molecule(("He",), np.zeros((1, 3))), ql.Method("hf", "sto-3g"))
    assert np.isnan(helium.gap)


def test_one_electron_has_no_self_interaction_in_hartree_fock():
    """The hydrogen atom: −½ hartree in a complete basis, and never below."""
    found = ql.scf(ql.Molecule(("H",), np.zeros((1, 3))), ql.Method("hf", "def2-tzvp"))
    assert found.converged
    assert -0.5 <= float(found.energy) < -0.4995


def test_several_geometries_of_a_molecule_at_once_are_each_as_alone():
    method = ql.Method("pbe", "sto-3g", grid_level=0)
    mols = [cases.molecule("water", displaced=d) for d in (0.0, 0.1, 0.2)]
    together = ql.scf_batch(mols, method)
    assert together.converged.all()
    for energy, mol in zip(together.energy, mols, strict=True):
        assert float(energy) == pytest.approx(float(ql.scf(mol, method).energy), abs=tol.SCF_ENERGY)
    for wrong, said in (([], "0 different molecules"), ([mols[0], cases.molecule("ammonia")], "2 different")):
        with pytest.raises(ql.InputError, match=said):
            ql.scf_batch(wrong, method)


@pytest.mark.parametrize("eri", ["exact", "fitted"])
def test_lanes_of_one_program_as_on_an_accelerator_are_each_as_alone(eri):
    method = ql.Method("pbe", "sto-3g", grid_level=0, eri=eri)
    mols = [cases.molecule("water", displaced=d) for d in (0.0, 0.1, 0.2, 0.3, 0.4)]
    template = ql.template(mols[0], method)
    alone = [float(ql.scf(mol, method).energy) for mol in mols]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for lanes in (5, 2, 0.5):  # one group, three of which the last is not full, and one for each geometry
            found = converge_in_lanes(template, mols, 1e-6, pool, int(lanes * LANE_COPIES * template.nbytes))
            assert found.converged.all()
            np.testing.assert_allclose(found.energy, alone, rtol=0, atol=tol.SCF_ENERGY)


def test_what_has_not_converged_says_so():
    found = solve(cases.ints("water", ql.Method("lda", "sto-3g")), max_cycles=3)
    assert not found.converged
    assert int(found.cycles) == 3
    assert float(found.residual) > 1e-6


def test_a_stationary_state_that_is_not_the_lowest_is_not_called_converged():
    """Two electrons in the antibonding orbital of H2, held there by a level shift."""
    ints = cases.ints("hydrogen", ql.Method("hf", "sto-3g"))
    upper = ql.density_from_fock(-ints.hcore, ints)
    found = solve(ints, upper, 50.0)
    assert float(found.residual) < 1e-6
    assert not found.converged


def test_options_that_make_no_sense_are_refused():
    water, method = cases.molecule("water"), ql.Method("lda", "sto-3g")
    for options, said in (
        ({"guess": "huckel"}, "known guess, got 'huckel'; use one of minao"),
        ({"solver": "newton"}, "known solver, got 'newton'"),
        ({"damping": 1.0}, "Expected damping of 0 to below 1, got 1.0"),
        ({"level_shift": -1.0}, "level shift that is not negative, got -1.0"),
        ({"max_cycles": 0}, "whole number of cycles, got 0"),
        ({"tolerance": 0.0}, "a tolerance of 1e-10 to below 1, got 0.0"),
    ):
        with pytest.raises(ql.InputError, match=said):
            ql.scf(water, method, **options)


def test_functions_of_the_public_face_hide_no_module():
    for name in ("energy", "scf"):
        module = importlib.import_module(f"qptlab.dft.{name}")
        assert getattr(module, name) is getattr(ql, name)
        assert getattr(sys.modules["qptlab.dft"], name) is module


@pytest.mark.parametrize(("xc", "eri"), [("hf", "exact"), ("pbe", "fitted")])
def test_a_broken_symmetry_is_two_radicals_and_has_forces(xc, eri):
    """H2 at 5 bohr: PySCF agrees, the state is stable, and each atom has one electron."""
    mol = ql.Molecule(("H", "H"), np.array([[0.0, 0, 0], [0, 0, 5]]))
    method = ql.Method(xc, "sto-3g", 0, eri=eri)
    closed, found = ql.scf(mol, method), ql.scf(mol, method, guess="broken-symmetry")
    assert found.converged
    assert found.energy < closed.energy - 0.05
    peer = reference.converged_from(mol, method, np.asarray(found.dm), fitted=eri == "fitted")
    assert found.energy == pytest.approx(peer.energy, abs=1e-8)
    assert ql.stability(mol, method, found).internal
    np.testing.assert_allclose(np.diagonal(found.dm, axis1=1, axis2=2).round() @ np.eye(2), [[1, 0], [0, 1]])

    def energy(shift):
        moved = mol.with_positions(mol.positions + np.array([[0, 0, 0], [0, 0, shift]]))
        return float(ql.scf(moved, method, guess="broken-symmetry").energy)

    slope = (energy(1e-3) - energy(-1e-3)) / 2e-3
    assert ql.forces(mol, method, found.fock)[1, 2] == pytest.approx(-slope, abs=1e-6)


def test_a_broken_symmetry_needs_a_closed_shell_with_an_empty_orbital():
    for mol in (ql.Molecule(("H",), np.zeros((1, 3))), ql.Molecule(("He",), np.zeros((1, 3)))):
        with pytest.raises(ql.InputError, match="Expected a closed shell with a filled and an empty orbital"):
            ql.scf(mol, ql.Method("hf", "sto-3g"), guess="broken-symmetry")
