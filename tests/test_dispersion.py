"""Dispersion corrections D3(BJ) and D4, compared with PySCF's own, and everything that uses their energy."""

import dataclasses
import json
import subprocess
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol
from pyscf import dft, gto
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.cli import main
from qptlab.dft.energy import energy, kohn_sham
from qptlab.dft.functionals import pbe_correlation, pbe_exchange
from qptlab.evaluation import labels, reference
from qptlab.gui.session import Session
from qptlab.gui.widgets import MoleculePicker
from qptlab.system.dispersion import CORRECTIONS, Correction, correction
from qptlab.system.functional import FUNCTIONALS
from qptlab.units import HARTREE_EV

PYSCF_NAMES = {
    "hf": "hf", "pbe": "pbe", "blyp": "blyp", "b3lyp": "b3lyp", "b3lyp5": "b3lyp", "pbe0": "pbe0", "r2scan": "r2scan",
    "cam-b3lyp": "camb3lyp", "lc-blyp": "lc-blyp", "wb97x": "wb97x-2008", "wb97x-v-nonlc": "wb97x-v",
    "wb97m-v-nonlc": "wb97m-v",
}
"""Functionals with parameters, and the names by which PySCF finds them."""

WITHOUT = {("lc-blyp", "d3bj"), ("wb97x", "d3bj")}
"""Those of them that lack one correction."""

KINDS = tuple(CORRECTIONS)
ROUNDING = 1e-13  # hartree, and hartree per bohr: both call the same library

WATER = ql.Molecule.from_name("water")


def mean_field(mol, method):
    """PySCF's calculation with its own names of functional and correction."""
    mf = cases.rks(mol, method)
    if method.functional.name == PYSCF_NAMES[method.functional.name]:
        mf.xc = method.functional.name
    mf.disp = f"{method.dispersion}:{PYSCF_NAMES[method.functional.name]}"
    return mf


@pytest.mark.parametrize(
    ("xc", "kind"), [(xc, kind) for xc in PYSCF_NAMES for kind in KINDS if (xc, kind) not in WITHOUT]
)
def test_energy_and_gradient_are_pyscfs(xc, kind):
    mol = cases.molecule("benzene", displaced=0.1)
    mole = gto.M(atom=list(zip(mol.symbols, mol.positions, strict=True)), unit="Bohr", basis="sto-3g", verbose=0)
    mf = dft.RKS(mole, xc=PYSCF_NAMES[xc])
    mf.disp = kind
    found = ql.Method(xc, dispersion=kind).correction
    assert float(found.energy(mole)) == pytest.approx(float(mf.get_dispersion()), abs=ROUNDING)
    assert float(found.energy(mole)) < -1e-4
    np.testing.assert_allclose(found.gradient(mole), mf.nuc_grad_method().get_dispersion(), atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_two_distant_argon_atoms_have_the_measured_coefficient(kind):
    """E = −C6/R⁶ − s8·C8/R⁸ with C6 = 64.30 hartree bohr⁶ (Kumar & Thakkar 2010, doi:10.1063/1.3315418)."""
    distances = np.array([40.0, 50.0])
    pairs = [gto.M(atom=f"Ar 0 0 0; Ar 0 0 {r}", unit="Bohr", basis="sto-3g", verbose=0) for r in distances]
    scaled = np.array([-float(Correction(kind, "pbe").energy(pair)) for pair in pairs]) * distances**6
    coefficient = np.polyfit(1 / distances**2, scaled, 1)[1]
    assert coefficient == pytest.approx(64.30, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_integrals_have_the_correction_of_an_ion(kind):
    method = ql.Method("hf", "sto-3g", dispersion=kind)
    ion = cases.molecule("hydroxide")
    expected = float(mean_field(ion, method).get_dispersion())
    assert float(ql.build_integrals(ion, method).e_disp) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize(("kind", "name"), [("d3bj", "water dimer"), cases.slow("d4", "CH3")])
def test_scf_and_forces_are_pyscfs(kind, name):
    mol = cases.molecule(name, displaced=0.05)
    method = ql.Method("pbe", "sto-3g", grid_level=0, dispersion=kind)
    mf = mean_field(mol, method).run()
    solved = ql.scf(mol, method, tolerance=1e-7)
    assert float(solved.energy) == pytest.approx(mf.e_tot, abs=tol.SCF_ENERGY)
    assert reference.converged(mol, method).energy == pytest.approx(mf.e_tot, abs=tol.SCF_ENERGY)
    slope = mf.nuc_grad_method()
    slope.grid_response = True
    np.testing.assert_allclose(ql.forces(mol, method, solved.fock), -slope.kernel(), atol=tol.FORCE)
    plain = ql.scf(mol, dataclasses.replace(method, dispersion=None), tolerance=1e-7)
    np.testing.assert_array_equal(solved.fock, plain.fock)
    assert float(solved.energy - plain.energy) == pytest.approx(float(mf.get_dispersion()), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_slope_and_turns_with_the_molecule(kind):
    method = ql.Method("b3lyp", "sto-3g", grid_level=0, dispersion=kind)
    mol = cases.molecule("water dimer", displaced=0.1)
    template = ql.template(mol, method)
    of_geometry = template.value_and_gradient(lambda ints: ints.e_disp)
    value, gradient = of_geometry(mol.positions)
    direction = np.random.default_rng(0).normal(size=mol.positions.shape)
    slope = cases.slope_by_differences(lambda step: float(of_geometry(mol.positions + step * direction)[0]), 1e-3)
    assert np.sum(gradient * direction) == pytest.approx(slope, rel=tol.FINITE_DIFFERENCE)
    np.testing.assert_allclose(gradient.sum(axis=0), 0.0, atol=1e-12)
    turn = Rotation.random(rng=np.random.default_rng(1))
    turned_value, turned = of_geometry(turn.apply(mol.positions) + 1.0)
    assert float(turned_value) == pytest.approx(float(value), abs=1e-13)
    np.testing.assert_allclose(turned, turn.apply(gradient), atol=1e-12)


def test_parts_of_the_energy_sum_to_the_total_and_a_batch_has_one_for_each_geometry():
    method = ql.Method("pbe", "sto-3g", grid_level=0, dispersion="d4")
    batch = [ql.build_integrals(cases.molecule("water", displaced=by), method) for by in (0.0, 0.1)]
    terms = [kohn_sham(ints.dm_guess, ints).terms for ints in batch]
    for part in terms:
        assert float(sum(part)) == pytest.approx(float(part.e_tot), abs=1e-12)
        assert float(part.e_disp) < -1e-5
    together = jax.vmap(lambda ints: energy(ints.dm_guess, ints))(jax.tree.map(lambda *a: jnp.stack(a), *batch))
    np.testing.assert_allclose(together, [part.e_tot for part in terms], atol=1e-11)


@pytest.mark.parametrize(("text", "name", "kind"), [
    ("pbe-d3bj", "pbe", "d3bj"), ("B3LYP-D4", "b3lyp", "d4"), ("PBE0-D3(BJ)", "pbe0", "d3bj"),
    ("pbe,pbe", "pbe", None), ("pbe1pbe - d4", "pbe0", "d4"),
])
def test_joint_names_of_pyscf_are_functional_and_correction(text, name, kind):
    assert ql.Method(text) == ql.Method(name, dispersion=kind)
    assert ql.Method(text, dispersion=kind) == ql.Method(name, dispersion=kind)


def test_the_label_names_the_correction():
    assert ql.Method("pbe", dispersion="d3bj").label == "PBE-D3(BJ)/def2-svp"
    assert ql.Method("b3lyp", dispersion="d4").label == "B3LYP-D4/def2-svp"


@pytest.mark.parametrize(("fields", "message"), [
    ({"dispersion": "d3"}, "Expected a known dispersion, got dispersion 'd3'; use one of None, d3bj, d4"),
    ({"xc": "lda", "dispersion": "d3bj"}, r"parameters of D3\(BJ\), got 'lda'; use one of hf, pbe, blyp, b3lyp"),
    ({"xc": "pw92-d4"}, "parameters of D4, got 'pw92'"),
    ({"xc": "pbe-d3bj", "dispersion": "d4"}, "got functional 'pbe-d3bj' with dispersion 'd4'; use xc='pbe'"),
    ({"xc": "pbe-d3zero"}, "d3bj, d4, got 'd3zero' of functional 'pbe-d3zero'; use xc='pbe' with dispersion='d3bj'"),
    ({"xc": "m06-d4"}, "'m06-d4' is not known"),
])
def test_corrections_that_do_not_exist_are_refused(fields, message):
    with pytest.raises(ql.InputError, match=message) as error:
        ql.Method(**fields)
    assert len(str(error.value)) < 300


def test_all_functionals_with_parameters_are_compared_with_pyscf():
    for kind in KINDS:
        with pytest.raises(ql.InputError) as error:
            correction(FUNCTIONALS["lda"], kind)
        names = [name for name in PYSCF_NAMES if (name, kind) not in WITHOUT]
        assert f"use one of {', '.join(names)}, or no dispersion" in str(error.value)


@pytest.mark.parametrize(("name", "peer"), [("wB97M-D4", "wb97m-d4"), ("wb97x-d3bj", "wb97x-d3bj")])
def test_joint_names_of_functionals_without_nonlocal_correlation_mean_what_they_mean_in_pyscf(name, peer):
    method = ql.Method(name, "sto-3g", grid_level=0)
    mf = dft.RKS(cases.rks(WATER, method).mol, xc=peer)
    mf.grids.level = 0
    assert float(ql.scf(WATER, method).energy) == pytest.approx(mf.kernel(), abs=tol.SCF_ENERGY)


def test_a_users_functional_has_the_parameters_of_its_name(registered):
    def exchange(density):
        return pbe_exchange(density, kappa=1.245)

    revpbe = ql.Functional("revpbe", exchange, pbe_correlation, pyscf_name="revpbe")
    method = ql.Method(revpbe, "sto-3g", grid_level=0, dispersion="d3bj")
    mf = cases.rks(WATER, method)
    mf.disp = "d3bj"
    assert float(ql.scf(WATER, method).energy) == pytest.approx(mf.kernel(), abs=tol.SCF_ENERGY)
    assert ql.Method("revpbe-d4").dispersion == "d4"
    named = dataclasses.replace(revpbe, name="of-mine", pyscf_name="revpbe,pbe", dispersion_name="revpbe")
    assert ql.Method(named, dispersion="d4").correction == Correction("d4", "revpbe")
    for unknown in (None, "revpbe,pbe"):
        record = dataclasses.replace(named, name="other", pyscf_name=unknown, dispersion_name=None)
        with pytest.raises(ql.InputError, match="parameters of D4, got 'other'"):
            ql.Method(record, dispersion="d4")


def test_integrals_keep_the_functional_of_their_correction():
    ints = ql.build_integrals(WATER, ql.Method("pbe", "sto-3g", grid_level=0, dispersion="d4"))
    assert ints.with_functional("pbe").functional.name == "pbe"
    with pytest.raises(ql.InputError, match="for functional 'pbe' lack the dispersion energy for 'blyp'"):
        ints.with_functional("blyp")


def test_a_prediction_has_the_correction_and_nothing_else_changes():
    plain, corrected = (
        cases.predictor("water", ql.Method("pbe", "sto-3g", grid_level=0, dispersion=kind), 0)
        for kind in (None, "d4")
    )
    mol = cases.molecule("water", displaced=0.05)
    before, after = plain(mol), corrected(mol)
    mf = mean_field(mol, corrected.method)
    assert float(after.energy - before.energy) == pytest.approx(float(mf.get_dispersion()), abs=1e-11)
    assert float(after.energy_error) == pytest.approx(float(before.energy_error), rel=1e-6)
    np.testing.assert_allclose(after.fock, before.fock, atol=1e-12)
    slope = mf.nuc_grad_method().get_dispersion()
    np.testing.assert_allclose(corrected.forces(mol) - plain.forces(mol), -slope, atol=1e-9)


def test_padding_changes_no_correction():
    mols = [WATER, cases.molecule("ammonia")]
    method = ql.Method("pbe", "sto-3g", grid_level=0, dispersion="d4")
    systems, _ = ql.make_systems(mols, method, cases.QUICK_MODEL)
    assert len({system.template.shape for system in systems}) == 1
    for system in systems:
        positions = system.frame.reference_positions
        mf = mean_field(system.molecule.with_positions(positions), method)
        found = float(system.sample(system.host_integrals(positions)).ints.e_disp)
        assert found == pytest.approx(float(mf.get_dispersion()), abs=ROUNDING)


def test_a_label_of_pyscf_has_the_correction():
    mol = cases.molecule("water", displaced=0.1)
    method = ql.Method("pbe", "sto-3g", grid_level=0, dispersion="d4")
    solved = ql.scf(mol, method, tolerance=1e-7)
    label = labels.from_pyscf(mol, method)
    assert label.energy == pytest.approx(float(solved.energy), abs=tol.SCF_ENERGY)
    np.testing.assert_allclose(label.forces, ql.forces(mol, method, solved.fock), atol=tol.FORCE)


def test_pyscfs_own_calculation_keeps_its_correction():
    model = cases.predictor("water", ql.Method("pbe", "sto-3g", grid_level=0), 0)
    mf = mean_field(WATER, ql.Method("pbe", "sto-3g", grid_level=0, dispersion="d4"))
    expected = mf.kernel()
    for changed in (ql.accelerate(mf), ql.with_guess(mf, model)):
        assert changed.kernel() == pytest.approx(expected, abs=tol.SCF_ENERGY)


@pytest.mark.slow
def test_a_training_is_stored_with_its_correction_and_loaded(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "water", "--xc", "pbe-d4", "--basis", "sto-3g", "--grid-level", "0", "--model", "qpt",
               "--preset", "micro", "--iterations", "0", "--steps", "5", "--sampler", "perturb", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    stored = json.loads((out / "config.json").read_text())["method"]
    assert (stored["xc"], stored["dispersion"]) == ("pbe", "d4")
    model = ql.load(out)
    assert model.label == "PBE-D4/sto-3g"
    assert "PBE-D4/sto-3g" in (out / "model-card.md").read_text()
    model.save(tmp_path / "model.h5")
    assert ql.load(tmp_path / "model.h5").method == model.method
    (atoms := WATER.to_ase()).calc = ql.ModelCalculator(model)
    with ql.error_limits(warn_mev=1e5, refuse_mev=1e5):
        energy_ev = atoms.get_potential_energy()
    assert energy_ev == pytest.approx(float(model(WATER).energy) * HARTREE_EV, abs=1e-7)
    session = Session(dispersion="d3bj")
    session.training.show(ql.Trainer.open(out))
    assert session.method.dispersion == "d4"
    evaluation = ql.evaluate(model, [WATER])
    assert evaluation.method == "PBE-D4/sto-3g"
    assert evaluation.errors.energy_mae_mev > 0


def test_the_command_line_compares_with_pyscf(capsys):
    printed = []
    for options in (["--dispersion", "d3bj"], []):
        with pytest.raises(SystemExit) as ended:
            main(["energy", "water", "--basis", "sto-3g", "--check", "--json", *options])
        assert not ended.value.code
        printed.append(json.loads(capsys.readouterr().out))
    corrected, plain = printed
    assert abs(corrected["error_mev"]) < 1e-4
    assert corrected["pyscf_energy_ha"] - plain["pyscf_energy_ha"] == pytest.approx(-3.6e-4, abs=2e-5)
    with pytest.raises(SystemExit) as ended:
        main(["energy", "water", "--xc", "lda", "--dispersion", "d4"])
    assert ended.value.code == 2
    assert "parameters of D4, got 'lda'" in capsys.readouterr().err


def test_the_workbench_offers_corrections_and_refuses_what_has_no_parameters():
    picker = MoleculePicker()
    fields = {field.description: field for field in picker._fields.values()}
    fields["Dispersion"].value = "d4"
    assert picker.session.method.label == "PBE-D4/sto-3g"
    fields["Functional"].value = "lda"
    assert "parameters of D4, got &#x27;lda&#x27;" in picker._message.value
    assert fields["Functional"].value == picker.session.xc == "pbe"
    fields["Functional"].value = "b3lyp"
    assert picker.session.method.label == "B3LYP-D4/sto-3g"
    with pytest.raises(ql.InputError, match="got 'lda'"):
        Session(xc="lda", dispersion="d4")


def test_without_the_package_everything_else_works():
    code = """
import sys
sys.modules["pyscf.dispersion"] = None  # as where it is not installed
import qptlab as ql
print(ql.Method("pbe").label)
ql.Method("pbe", dispersion="d4")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "PBE/def2-svp\n"
    assert "Expected the package pyscf-dispersion for dispersion 'd4', got none; install it" in done.stderr


@pytest.mark.parametrize("order", [("xtb", "dispersion"), ("dispersion", "xtb")])
def test_tblite_which_holds_both_corrections_too_changes_nothing(order):
    """Both libraries are loaded in one process, and their symbols stay apart."""
    code = f"""
import numpy as np
from pyscf import gto
def xtb():
    from tblite.interface import Calculator
    calculator = Calculator("GFN2-xTB", np.array([8, 1, 1]), np.array([[0, 0, 0.0], [0, 0, 1.8], [0, 1.8, 0]]))
    calculator.set("verbosity", 0)
    return float(calculator.singlepoint().get("energy"))
def dispersion():
    from pyscf.dispersion import dftd3, dftd4
    mole = gto.M(atom="O 0 0 0; H 0 0 1.8; H 0 1.8 0", unit="B", verbose=0)
    return [float(kind(mole, xc="pbe").get_dispersion()["energy"])
            for kind in (dftd3.DFTD3Dispersion, dftd4.DFTD4Dispersion)]
found = dict((f.__name__, f()) for f in [{', '.join(order)}, {', '.join(order)}])
print(found["xtb"], *found["dispersion"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [-5.06329, -3.59863e-4, -1.99283e-4]  # each alone
    np.testing.assert_allclose([float(word) for word in done.stdout.split()], expected, rtol=1e-5)
