"""A trained model inside PySCF and ASE."""

import itertools
import pickle
import warnings

import ase
import ase.units
import cases
import numpy as np
import pytest
import tolerances as tol
from ase.calculators.fd import calculate_numerical_forces
from ase.md.verlet import VelocityVerlet
from pyscf import dft, gto, scf
from pyscf.pbc import gto as periodic
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft.response import Response
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM

WATER = ql.Molecule.from_name("water")


@pytest.fixture(scope="module")
def model(trained):
    """A model of water, after a short training."""
    return trained.predictor


def moved(mol, seed=3):
    """Another geometry, turned, shifted, and its atoms in another order."""
    rng = np.random.default_rng(seed)
    positions = mol.positions + 0.02 * rng.normal(size=mol.positions.shape)
    order = rng.permutation(len(mol.symbols))
    positions = Rotation.random(rng=rng).apply(positions) + rng.normal(size=3)
    return ql.Molecule(tuple(np.array(mol.symbols)[order]), positions[order])


def mole(mol, **others):
    atoms = list(zip(mol.symbols, mol.positions.tolist(), strict=True))
    return gto.M(**{"atom": atoms, "unit": "Bohr", "basis": "sto-3g", "verbose": 0, **others})


def mean_field(mol, kind=dft.RKS, **others):
    mf = kind(mole(mol, **others), xc="lda")
    mf.grids.level, mf.conv_tol, mf.conv_tol_grad = 0, 1e-11, 1e-7
    return mf


def test_pyscf_converges_to_the_same_energy_from_the_models_guess_in_fewer_cycles(model):
    mol = moved(WATER)
    usual, ours = mean_field(mol), mean_field(mol)
    usual.kernel()
    ours.kernel(dm0=ql.guess(ours.mol, model))
    assert ours.converged
    assert ours.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)
    assert ours.cycles < usual.cycles
    np.testing.assert_array_equal(ql.guess(mol, model), ql.guess(ours.mol, model))
    np.testing.assert_allclose(ql.guess(mol, model), model(mol).dm, atol=1e-10)


def test_a_guess_has_all_electrons_and_lies_nearer_to_the_answer_than_minao(model):
    mol = moved(WATER)
    mf = mean_field(mol)
    mf.kernel()
    dm = ql.guess(mf.mol, model)
    assert np.sum(dm * mf.get_ovlp()) == pytest.approx(10, abs=1e-10)
    answer = mf.make_rdm1()
    assert np.abs(dm - answer).max() < 0.1 * np.abs(mf.get_init_guess(key="minao") - answer).max()


@pytest.mark.parametrize("kind", [dft.RKS, dft.UKS, dft.ROKS])
def test_a_mean_field_takes_the_guess_for_every_geometry_and_keeps_its_ways(model, kind):
    usual = mean_field(moved(WATER), kind)
    mf = ql.with_guess(mean_field(moved(WATER), kind), model)
    assert isinstance(mf, type(usual))
    # The second has no memory for the integrals, where PySCF adds up differences of densities instead.
    for seed, memory in ((3, mf.max_memory), (4, 0)):
        usual = mean_field(moved(WATER, seed), kind)
        usual.kernel()
        mf.reset(mole(moved(WATER, seed)))
        mf.max_memory = memory
        np.testing.assert_allclose(mf.get_init_guess().reshape(-1, 7, 7).sum(axis=0), ql.guess(usual.mol, model))
        mf.kernel()
        assert mf.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)
        assert mf.cycles < usual.cycles
    fitted = mf.density_fit()
    fitted.kernel()
    assert fitted.converged
    assert fitted.e_tot != pytest.approx(usual.e_tot, abs=1e-7)


def test_a_density_that_is_handed_over_comes_before_the_model(model):
    mf = ql.with_guess(mean_field(WATER), model)
    mf.max_cycle = 1
    mf.kernel(dm0=mean_field(WATER).get_init_guess(key="1e"))
    far = mf.e_tot
    mf.kernel()
    assert mf.e_tot < far - 0.01


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: mole(WATER, basis="6-31g"), "sto-3g with 7 spherical functions, got '6-31g' with 13 functions"),
        (lambda: mole(WATER, atom="ghost-O 0 0 0; H 0 0 1; H 1 0 0"), "without ghost atoms, got atoms GHOST-O"),
        (lambda: mole(WATER, charge=2), "charge"),
        (lambda: mole(ql.Molecule.from_name("ammonia")), "NH3|H3N"),
        (
            lambda: periodic.M(atom="He 0 0 0", a=np.eye(3) * 5, basis="sto-3g", verbose=0),
            "Expected a molecule, got a periodic cell",
        ),
    ],
)
def test_what_the_model_cannot_guess_is_refused_in_a_sentence(model, given, said):
    with pytest.raises(ql.InputError, match=said):
        ql.guess(given(), model)


def test_a_mean_field_of_two_components_is_refused(model):
    with pytest.raises(ql.InputError, match=r"got .*GHF; use RKS, UKS, RHF or UHF"):
        ql.with_guess(scf.GHF(mole(WATER)), model)


@pytest.fixture
def atoms(model):
    found = moved(WATER).to_ase()
    found.calc = ql.ModelCalculator(model)
    return found


def test_ase_has_the_predictions_energy_forces_and_dipole_in_its_own_units(model, atoms):
    mol = moved(WATER)
    found = model(mol)
    assert atoms.get_potential_energy() == pytest.approx(float(found.energy) * ase.units.Ha, rel=1e-8)
    expected = model.forces(mol) * ase.units.Ha / ase.units.Bohr
    np.testing.assert_allclose(atoms.get_forces(), expected, rtol=1e-6, atol=1e-8)
    dipole = ql.dipole_debye(mol, model.method, found.dm) / AU_DEBYE * BOHR_ANGSTROM
    np.testing.assert_allclose(atoms.get_dipole_moment(), dipole, atol=1e-10)
    assert atoms.calc.calculation_required(atoms, ["energy"]) is False
    atoms.rattle(0.01)
    assert atoms.calc.calculation_required(atoms, ["energy"]) is True


def test_ases_own_differences_of_energies_are_the_forces(atoms):
    forces = atoms.get_forces()
    np.testing.assert_allclose(
        forces, calculate_numerical_forces(atoms, eps=0.005), atol=1e-3 * np.abs(forces).max()  # a float32 network
    )


def test_energy_is_conserved_in_dynamics(atoms):
    """In 10 fs, to a fiftieth of what passes between kinetic and potential energy."""
    rng = np.random.default_rng(1)
    kinetic = rng.normal(size=(3, 3)) * np.sqrt(atoms.get_masses() * 300 * ase.units.kB)[:, None]
    atoms.set_momenta(kinetic)
    dynamics = VelocityVerlet(atoms, 0.25 * ase.units.fs)
    totals, potentials = [], []
    for _ in range(40):
        dynamics.run(1)
        totals.append(atoms.get_total_energy())
        potentials.append(atoms.get_potential_energy())
    assert np.ptp(potentials) > 0.05
    assert np.ptp(totals) < 0.02 * np.ptp(potentials)


def test_a_periodic_system_and_another_molecule_are_refused(model, atoms):
    atoms.pbc = True
    with pytest.raises(ql.InputError, match="use pbc=False"):
        atoms.get_potential_energy()
    other = ql.Molecule.from_name("ammonia").to_ase()
    other.calc = ql.ModelCalculator(model)
    with pytest.raises(ql.InputError, match="H3N"):
        other.get_potential_energy()


def test_a_charged_model_needs_no_word_on_the_charge():
    hydroxide = ql.Molecule(("O", "H"), np.array([[0, 0, 0], [0, 0, 1.83]]), -1)
    config = ql.EquivariantConfig("small", iterations=2)
    systems, kinds = ql.make_systems([hydroxide], cases.QUICK_METHOD, config)
    model = ql.CorrectionModel(config, kinds)
    plain = ql.CorrectionPredictor(model, None, systems)
    atoms = ase.Atoms("OH", hydroxide.positions_angstrom, calculator=ql.ModelCalculator(plain))
    assert atoms.get_potential_energy() == pytest.approx(float(plain(hydroxide).energy) * ase.units.Ha, rel=1e-9)


def test_unpaired_electrons_are_no_business_of_a_closed_shells_model_but_may_begin_with_its_density(model):
    triplet = ql.Molecule(WATER.symbols, WATER.positions, spin=2)
    with pytest.raises(ql.InputError, match="2 unpaired electrons"):
        model(triplet)
    np.testing.assert_array_equal(ql.guess(triplet, model), ql.guess(WATER, model))


def test_another_model_takes_the_place_of_the_first(model):
    once = ql.with_guess(mean_field(WATER), model.without_network())
    twice = ql.with_guess(once, model)
    np.testing.assert_array_equal(twice.get_init_guess(), ql.guess(WATER, model))
    np.testing.assert_array_equal(once.get_init_guess(), ql.guess(WATER, model.without_network()))


def test_a_charge_said_later_is_heeded(atoms):
    atoms.get_potential_energy()
    atoms.info["charge"] = 2
    with pytest.raises(ql.InputError, match="charge 2"):
        atoms.get_potential_energy()


def test_a_calculator_is_copied_into_another_process(atoms):
    energy = atoms.get_potential_energy()
    copy = pickle.loads(pickle.dumps(atoms.calc))  # as multiprocessing does
    atoms.calc = copy
    copy.reset()
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)


def test_charges_of_atoms_are_heeded_by_a_calculator(atoms):
    del atoms.info["charge"]  # it has precedence
    atoms.set_initial_charges([1, 1, 0])
    with pytest.raises(ql.InputError, match="charge 2"):
        atoms.get_potential_energy()


# The electrons' response in PySCF -------------------------------------------------------------


CASES = [
    ("water", scf.RHF, {}), ("water", dft.RKS, {"basis": "cc-pvdz"}),
    ("water", dft.RKS, {"basis": "6-31g*", "cart": True}), ("water", dft.RKS, {"basis": "def2-svp", "xc": "wb97x"}),
    ("[O-][O+]=O", dft.RKS, {}), ("[O-][O+]=O", scf.RHF, {"basis": "def2-svp"}), ("[CH3]", dft.UKS, {"spin": 1}),
    ("[NH2]", scf.UHF, {"spin": 1, "basis": "def2-svp"}), ("[NH2]", dft.UKS, {"spin": 1, "xc": "b3lyp"}),
    ("C=O", dft.RKS, {"symmetry": True, "xc": "b3lyp"}), ("C#N", dft.RKS, {"basis": "def2-svp", "xc": "r2scan"}),
    ("CBr", dft.RKS, {"basis": "def2-svp", "xc": "b3lyp"}), ("[H]", dft.UKS, {"spin": 1}),
    ("O=C", dft.UKS, {"basis": "def2-svp", "xc": "b3lyp"}), ("[Na+]", scf.RHF, {}),
    ("water", dft.RKS, {"atom": "O 0 0 0; H 0 .76 .59; H 0 -.76 .59; GHOST-O 0 0 3", "unit": "Angstrom"}),
    ("[Br-]", dft.RKS, {"atom": "I 0 0 0", "basis": "def2-svp", "ecp": "def2-svp"}),
]


def calculation(text, kind, xc="pbe", **options):
    mol = ql.Molecule.parse(text)
    mf = kind(mole(mol, charge=mol.charge, **options))
    mf.conv_tol, mf.conv_tol_grad = 1e-11, 1e-7
    if isinstance(mf, dft.rks.KohnShamDFT):
        mf.xc, mf.grids.level = xc, 0
    return mf


@pytest.mark.parametrize(("text", "kind", "options"), CASES)
def test_the_response_does_not_change_the_result_of_pyscf(text, kind, options):
    usual = calculation(text, kind, **options)
    ours = ql.accelerate(usual)
    usual.kernel()
    ours.kernel()
    assert ours.converged
    assert ours.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)
    np.testing.assert_allclose(ours.make_rdm1(), usual.make_rdm1(), atol=1e-5)
    assert ours.cycles <= usual.cycles


@pytest.mark.parametrize("change", [
    lambda mf: mf.density_fit(), lambda mf: mf.set(level_shift=0.2), lambda mf: mf.set(diis_damp=0.2),
    lambda mf: mf.set(damp=0.5, diis_start_cycle=4), lambda mf: mf.x2c(), lambda mf: mf.set(diis_space=2),
    lambda mf: mf.set(diis_space_rollback=2, diis_space=4),
])
def test_the_options_of_pyscf_stay_in_force(change):
    usual = change(calculation("C=O", dft.RKS, "b3lyp")).run()
    ours = ql.accelerate(change(calculation("C=O", dft.RKS, "b3lyp"))).run()
    assert ours.converged
    assert ours.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)


COINCIDENT = {
    "atom": "H 0 0 0; F 0 0 .95; GHOST-H 0 0 0", "basis": {"default": "6-31g", "GHOST-H": [[0, [0.3, 1.0]]]},
}
NEARLY_DEPENDENT = [
    {"atom": "H 0 0 0; F 0 0 .95; GHOST-H 0 0 0.001", "basis": "6-31g"},
    {"atom": "H 0 0 0; F 0 0 .95; X 0 0 2", "basis": {"default": "6-31g", "X": [[0, [0.3, 1.0]]]}},
    {"atom": "H 0 0 0; F 0 0 .95", "basis": {"F": "6-31g", "H": [[0, [0.122, 1.0]], [0, [0.1222, 1.0]]]}},
]


@pytest.mark.parametrize(("options", "xc"), [
    *itertools.product(NEARLY_DEPENDENT, ["pbe", "hf"]), (COINCIDENT, "hf"),  # PySCF has no grid for it
])
def test_orbitals_that_pyscf_drops_are_dropped(options, xc):
    """Where the basis is nearly linearly dependent, and where a ghost atom has functions."""
    usual = dft.RKS(gto.M(verbose=0, **options), xc=xc)
    usual.conv_tol, usual.grids.level = 1e-11, 0
    ours = ql.accelerate(usual).run()
    usual.run()
    assert ours.converged
    assert ours.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)
    assert ours.cycles <= usual.cycles


@pytest.mark.parametrize("change", [ql.accelerate, lambda mf: ql.with_guess(mf, ql.load("qm9-small"))])
def test_the_original_does_not_notice_its_copy(change):
    def at(distance):
        return gto.M(atom=f"H 0 0 0; F 0 0 {distance}", basis="def2-svp", verbose=0)

    original = dft.RKS(at(0.95), xc="b3lyp")
    original.grids.level = 0
    expected = original.copy().set(grids=original.grids.copy()).run().e_tot
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the molecule is new to the model
        change(original).reset(at(1.6)).kernel()
    assert original.run().e_tot == pytest.approx(expected, abs=1e-8)


def test_large_matrices_stay_in_memory(monkeypatch):
    usual = calculation("C=O", dft.RKS).run()
    monkeypatch.setattr("pyscf.lib.diis.INCORE_SIZE", 2 * usual.mol.nao**2 - 1)
    ours = ql.accelerate(calculation("C=O", dft.RKS)).run()
    assert ours.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)


@pytest.mark.parametrize("xc", ["pbe", "b3lyp", "hf"])
def test_the_response_saves_more_than_half_of_the_cycles(xc):
    """Where electrons move between many atoms, and again at the next geometry."""
    mol = ql.Molecule.from_name("uracil")
    usual = dft.RKS(mole(mol), xc=xc)
    usual.grids.level = 0
    ours = ql.accelerate(usual)
    for geometry in (mol, mol.with_positions(1.01 * mol.positions)):
        for mf in (usual, ours):
            mf.reset(mole(geometry)).kernel()
        assert ours.cycles <= 0.5 * usual.cycles
        assert ours.e_tot == pytest.approx(usual.e_tot, abs=1e-8)


@pytest.mark.parametrize(("text", "kind", "xc", "most"), [
    ("C=O", dft.RKS, "lda,vwn", 0.04), ("C=O", dft.RKS, "pbe", 0.05), ("C=O", dft.RKS, "b3lyp", 0.05),
    ("C=O", scf.RHF, None, 0.05), ("[NH2]", dft.UKS, "b3lyp", 0.15), ("[NH2]", scf.UHF, None, 0.05),
    ("C=O", dft.RKS, "camb3lyp", 0.05), ("[NH2]", dft.UKS, "camb3lyp", 0.15),
])
def test_the_response_is_nearly_self_consistent(text, kind, xc, most):
    """The Fock matrix of the density that it gives differs from the one it returns by little of what it added."""
    spin = int(kind in (dft.UKS, scf.UHF))
    mf = calculation(text, kind, xc, basis="def2-svp", spin=spin)
    answer = mf.run()
    rng = np.random.default_rng(0)
    noise = 0.003 * rng.normal(size=answer.get_fock().shape)
    near = answer.get_fock() + noise + np.swapaxes(noise, -1, -2)
    dm = mf.make_rdm1(mf.eig(near, mf.get_ovlp())[1], mf.mo_occ)
    fock = mf.get_fock(dm=dm)
    found = Response(mf, dm).fock(mf, fock, dm, mf.get_ovlp())
    following = mf.make_rdm1(mf.eig(found, mf.get_ovlp())[1], mf.mo_occ)
    left, added = (np.linalg.norm(a - b) for a, b in ((mf.get_fock(dm=following), found), (found, fock)))
    assert left < most * added


def test_too_little_memory_leaves_pyscfs_own_diis(capsys):
    usual = calculation("C=O", dft.RKS).run()
    ours = ql.accelerate(calculation("C=O", dft.RKS))
    ours.max_memory, ours.verbose = 1, 2
    ours.kernel()
    assert ours.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)
    assert "max_memory" in capsys.readouterr().err


def test_a_model_and_the_response_work_together(model):
    mol = moved(WATER)
    usual = mean_field(mol).run()
    both = ql.with_guess(ql.accelerate(mean_field(mol)), model).run()
    assert both.e_tot == pytest.approx(usual.e_tot, abs=tol.SCF_ENERGY)
    assert both.cycles < usual.cycles


def with_occupations_of_its_own(mf):
    mf.get_occ = lambda *_: np.array([2.0] * 5 + [0.0] * 2)  # as `scf.addons.mom_occ` does
    return mf


@pytest.mark.parametrize("change", [
    lambda mf: scf.addons.smearing(mf, sigma=0.01), scf.hf.SCF.to_ghf, with_occupations_of_its_own,
    lambda mf: mf.set(irrep_nelec={"A1": 6}), scf.hf.SCF.newton, lambda mf: mf.set(diis=False),
    lambda mf: mf.set(DIIS=scf.ADIIS),
])
def test_other_occupations_and_solvers_are_refused(change):
    with pytest.raises(ql.InputError, match="Expected a"):
        ql.accelerate(change(scf.RHF(mole(WATER, symmetry=True))))


def test_occupations_that_are_changed_later_are_refused_by_the_scf():
    with pytest.raises(ql.InputError, match="fills its lowest orbitals"):
        scf.addons.smearing(ql.accelerate(scf.RHF(mole(WATER))), sigma=0.01).kernel()


def test_elements_without_an_auxiliary_basis_are_refused():
    with pytest.raises(ql.InputError, match="Expected elements up to Rn, got U"):
        ql.accelerate(scf.UHF(gto.M(atom="U 0 0 0", basis={"U": [[0, [1.0, 1.0]]]}, spin=4, verbose=0)))
