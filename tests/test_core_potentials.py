"""Effective core potentials: compared with PySCF, and what they change in charges, guesses and models."""

import dataclasses

import cases
import jax
import numpy as np
import pytest
import tolerances as tol
from pyscf import dft, gto

import qptlab as ql
from qptlab.dft import libcint, padding
from qptlab.dft.integrals import template
from qptlab.dft.padding import Padding
from qptlab.evaluation import labels, reference

QUICK = ql.Method("lda", "lanl2dz", grid_level=0)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("HI", ql.Method("pbe", "def2-svp", grid_level=0)),
        ("Xe", ql.Method("hf", "def2-svp")),
        ("AgH", ql.Method("hf", "def2-svp", eri="fitted")),
        ("CH2I", ql.Method("b3lyp", "lanl2dz", grid_level=0, eri="fitted")),
        cases.slow("HI", ql.Method("r2scan", "def2-tzvp", eri="fitted")),
        cases.slow("AuH", ql.Method("pbe0", "def2-svp")),
    ],
)
def test_guess_energy_dipole_and_charges_are_those_of_pyscf(name, method):
    mol, mf = cases.molecule(name), cases.converged(name, method)
    np.testing.assert_allclose(cases.ints(name, method).dm_guess, _total(mf.get_init_guess()), atol=1e-8)
    found = cases.solved(name, method)
    assert found.converged
    assert float(found.energy) == pytest.approx(mf.e_tot, abs=tol.SCF_ENERGY)
    np.testing.assert_allclose(ql.dipole_debye(mol, method, found.dm), mf.dip_moment(verbose=0), atol=tol.DIPOLE)
    _, mulliken = mf.mulliken_pop(verbose=0)
    np.testing.assert_allclose(ql.charges(mol, method, found.dm), mulliken, atol=tol.CHARGE)
    assert reference.converged(mol, method, fitted=method.eri == "fitted").energy == pytest.approx(mf.e_tot, abs=1e-8)


def _total(dm):
    return dm.sum(axis=0) if dm.ndim == 3 else dm


@pytest.mark.parametrize("symbol", ["Rb", "Ag", "I", "Cs", "La", "Au", "Rn"])
def test_guess_of_heavy_atoms_is_pyscfs_and_has_all_electrons_outside_of_the_core(symbol):
    atom, method = ql.Molecule((symbol,), np.zeros((1, 3))), ql.Method("hf", "def2-svp")
    built = template(atom, method)
    mf = cases.rks(atom, method)
    np.testing.assert_allclose(built.build(atom.positions).dm_guess, _total(mf.get_init_guess()), atol=1e-8)
    assert np.sum(built.constants.minao_occupation) == pytest.approx(mf.mol.nelectron)
    assert built.core_electrons == mf.mol.atom_nelec_core(0)
    assert built.occupied == mf.mol.nelec[: 1 + (atom.spin > 0)]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("AgH", ql.Method("hf", "def2-svp", eri="fitted")),
        cases.slow("HI", ql.Method("pbe", "def2-svp", grid_level=0)),
    ],
)
def test_forces_are_those_of_pyscf(name, method):
    gradient = cases.converged(name, method).nuc_grad_method()
    gradient.grid_response = method.xc != "hf"
    found = ql.forces(cases.molecule(name), method, cases.solved(name, method).fock)
    np.testing.assert_allclose(found, -gradient.kernel(), atol=tol.FORCE)


@pytest.mark.parametrize("name", ["AuH", cases.slow("CH2I")])
def test_forces_are_the_slope_of_converged_energies(name):
    """For AuH they are not those of PySCF, whose response of the grid takes the radius of a different element."""
    mol = cases.molecule(name)
    direction = np.random.default_rng(4).normal(size=mol.positions.shape)

    def along(step):
        return float(ql.scf(mol.with_positions(mol.positions + step * direction), QUICK, tolerance=1e-7).energy)

    slope = np.sum(ql.forces(mol, QUICK, cases.solved(name, QUICK).fock) * direction)
    assert slope == pytest.approx(-cases.slope_by_differences(along, 2e-3), abs=tol.FORCE)


def test_a_distant_charge_feels_the_charge_of_the_ion():
    ion, method = ql.Molecule(("Ag",), np.zeros((1, 3)), charge=1), ql.Method("hf", "def2-svp")
    dm = np.asarray(ql.scf(ion, method).dm)
    potential = libcint.electrostatic_potential(ion, method, dm, np.array([[0.0, 0.0, 50.0]]))
    assert potential[0] == pytest.approx(1 / 50, rel=0.01)


def test_fits_of_all_electrons_have_functions_for_the_core():
    ion = ql.Molecule(("Rb",), np.zeros((1, 3)), charge=1)
    exact, fitted = (float(ql.scf(ion, ql.Method("hf", "sto-3g", eri=eri)).energy) for eri in ("exact", "fitted"))
    assert fitted == pytest.approx(exact, abs=0.01)
    with pytest.raises(ql.InputError, match="for the core orbitals of Rb, got 'def2-universal-jkfit'"):
        template(ion, ql.Method("hf", "sto-3g", auxbasis="def2-universal-jkfit"))


@pytest.mark.parametrize("options", [{"guess": "core"}, {"guess": "atomic-density"}, {"solver": "screened"}])
def test_guesses_and_solvers_lead_to_one_energy(options):
    result = ql.scf(cases.molecule("HI"), QUICK, **options)
    assert result.converged
    assert float(result.energy) == pytest.approx(float(cases.solved("HI", QUICK).energy), abs=1e-8)


def test_the_atomic_potentials_of_all_electrons_are_refused():
    with pytest.raises(ql.InputError, match="core potentials for I; use 'minao' or 'atomic-density'"):
        ql.scf(cases.molecule("HI"), QUICK, guess="atomic-potential")


@pytest.mark.parametrize(("symbol", "charge", "spin", "left"), [("Na", 1, 0, 0), ("Xe", 0, 10, 8)])
def test_charges_and_spins_that_would_need_the_core_are_refused(symbol, charge, spin, left):
    atom = ql.Molecule((symbol,), np.zeros((1, 3)), charge, spin=spin)
    with pytest.raises(ql.InputError, match=f"core potentials of 'lanl2dz' leave {left}; use a smaller"):
        template(atom, QUICK)


@pytest.mark.parametrize("scheme", ["response", cases.slow("screened")])
def test_models_treat_molecules_with_and_without_core_potentials_in_arrays_of_one_shape(scheme):
    method = ql.Method("lda", "def2-svp", grid_level=0)
    config = ql.EquivariantConfig("small", iterations=0, scheme=scheme)
    mols = [cases.molecule(name) for name in ("HI", "HF")]
    plain, kinds = ql.make_systems(mols, method, config)
    shared = Padding(padding.union([system.sizes.shape for system in plain]), 13)
    systems = [dataclasses.replace(system, padding=shared) for system in plain]
    model = ql.CorrectionModel(config, kinds)
    params = cases.awake(model.init(jax.random.key(0)), 1e-4)
    together = ql.CorrectionPredictor(model, params, systems)
    for mol, system in zip(mols, systems, strict=True):
        ours = together(mol)
        assert np.sum(ours.dm * system.template.overlap(mol.positions)) == pytest.approx(2 * system.template.nocc)
        assert float(ours.energy) > float(ql.scf(mol, method).energy)
    alone = ql.CorrectionPredictor(model, params, [systems[0].unpadded()])(mols[0])
    np.testing.assert_allclose(together(mols[0]).energy, alone.energy, atol=1e-6)  # the response is in float32


def test_batches_of_geometries_have_the_energies_of_single_ones():
    mols = [cases.molecule("HI", displaced) for displaced in (0.0, 0.1)]
    single = [float(ql.scf(mol, QUICK).energy) for mol in mols]
    np.testing.assert_allclose(ql.scf_batch(mols, QUICK).energy, single, atol=tol.SCF_ENERGY)


def test_guesses_for_pyscf_need_the_same_core_potentials():
    config = ql.EquivariantConfig("small", iterations=0)
    mol = cases.molecule("HI")
    systems, kinds = ql.make_systems([mol], QUICK, config)
    model = ql.CorrectionModel(config, kinds)
    predictor = ql.CorrectionPredictor(model, model.init(jax.random.key(0)), systems)
    mf = cases.rks(mol, QUICK)
    start = mf.energy_tot(dm=ql.guess(mf.mol, predictor))
    assert start == pytest.approx(cases.converged("HI", QUICK).e_tot, abs=0.1)
    plain = gto.M(atom=mf.mol._atom, unit="Bohr", basis="lanl2dz", ecp={}, verbose=0)
    with pytest.raises(ql.InputError, match="core potentials of the model's basis, got nuclei of charges"):
        ql.guess(dft.RKS(plain).mol, predictor)


def test_labels_with_forces_of_pyscf_are_refused():
    salt = ql.Molecule.from_xyz("2\n\nNa 0 0 0\nCl 0 0 2.4\n")
    with pytest.raises(ql.InputError, match="got core potentials of 'lanl2dz' for Cl, Na; use def2-svp"):
        labels.from_pyscf(salt, QUICK)
