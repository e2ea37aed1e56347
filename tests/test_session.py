"""The workbench without a screen."""

import csv
import importlib.util
import shutil
import time

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.dft import exploration
from qptlab.gui.session import Session, active_session
from qptlab.units import HARTREE_EV


def test_no_public_name_hides_a_module_of_the_package():
    assert [name for name in ql.__all__ if importlib.util.find_spec(f"qptlab.{name}")] == []


@pytest.fixture
def after_training(trained):
    """A session whose training is done."""
    session = Session("water", xc="lda", basis="sto-3g", grid_level=0, iterations=0)
    session.trainer = trained
    return session


def test_a_molecule_is_chosen_by_name_smiles_or_text_and_bad_ones_change_nothing():
    session = Session("water")
    for text, formula in (("benzene", "C6H6"), ("CCO", "C2H6O"), ("2\n\nHe 0 0 0\nHe 0 0 3\n", "He2")):
        session.choose(text)
        assert session.molecule.formula == formula
        assert session.message.text == ""
    session.choose("C1CC")
    assert session.molecule.formula == "He2"
    assert session.message.is_error
    assert session.message.topic == "molecule"
    assert "'C1CC'" in session.message.text


@pytest.mark.parametrize(
    ("name", "value"), [("xc", "m06"), ("grid_level", 9), ("iterations", -1), ("minutes", "soon"), ("seed", -1)]
)
def test_choices_that_cannot_be_used_are_refused_with_a_sentence(name, value):
    session = Session("water")
    before = getattr(session, name)
    assert not session.set(name, value)
    assert getattr(session, name) == before
    assert session.message.is_error


def test_the_summary_says_what_a_molecule_will_cost():
    assert Session("water", basis="sto-3g").summary() == (
        "H2O, 10 electrons, 7 atomic orbitals, exact integrals, 2.17 MiB per geometry"
    )
    assert "charge +1" in Session("[NH4+]").summary()
    with pytest.raises(ql.InputError, match="nonsense"):
        Session("water", basis="nonsense").summary()


def test_what_needs_a_model_says_so_before_there_is_one():
    session = Session("water")
    session.comparison.run()
    assert session.message == ("There is no trained model yet; start a training first.", "comparison", True)
    assert not session.training.has_references
    assert session.training.status == "idle"
    for ask in (session.orbitals.scene, session.attention.heads):
        with pytest.raises(ql.InputError, match="no trained model"):
            ask()
    session.kernels.inspect()
    assert session.message.topic == "kernels"
    assert "No training is running" in session.message.text
    session.comparison.save()
    assert "no comparison to save" in session.message.text


def test_zero_minutes_and_a_taken_folder_are_refused_and_nothing_is_written(tmp_path):
    session = Session("water", minutes=0.0, out=str(tmp_path / "w"))
    session.training.start()
    assert session.message.topic == "training"
    assert "minutes, got 0.0" in session.message.text
    (tmp_path / "notes.txt").write_text("mine")
    session.minutes, session.out = 1.0, str(tmp_path)
    session.training.start()
    assert "holds other files" in session.message.text
    assert session.trainer is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_comparison_and_orbitals_of_a_trained_model(after_training):
    session = after_training
    session.comparison.run()
    assert session.message.text == ""
    assert session.comparison.evaluation.n == 2
    labels = session.orbitals.subject().orbital_labels()
    assert len(labels) == 7
    assert "HOMO" in labels[4]
    assert "LUMO" in labels[5]
    assert session.orbitals.scene(geometry=1, points=8).captions[0].startswith("QPT, step 60: orbital 5")
    assert session.orbitals.subject(1) is session.orbitals.subject(1), "kept until a different one is asked for"
    with pytest.raises(ql.InputError, match="Expected a geometry from 0 to 1, got 2"):
        session.orbitals.subject(2)


def test_a_comparison_is_saved_as_csv_with_a_line_for_each_geometry_and_as_latex(after_training, trained):
    session = after_training
    session.comparison.start(str(trained.out / "validation.xyz"))
    session.comparison.wait()
    session.comparison.save()
    (table,) = trained.out.glob("comparison-*.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["energy_error_mev"]) for row in rows] == pytest.approx(
        session.comparison.evaluation.energy_errors_mev
    )
    gaps = [float(row["pyscf_gap_ev"]) for row in rows]
    assert gaps == pytest.approx(
        [(a.mo_energy[5] - a.mo_energy[4]) * HARTREE_EV for a in session.comparison.evaluation.test_set.converged]
    )
    latex = table.with_suffix(".tex").read_text()
    assert latex.count("\\\\") == 4, "a line of titles and three of numbers"
    session.comparison.start("nowhere.xyz")
    assert "nowhere.xyz" in session.message.text


def test_an_scf_is_explored_in_the_background_and_can_be_cancelled():
    session = Session("water", xc="lda", basis="sto-3g", grid_level=0)
    session.scf.explore(cycles=12)
    session.scf.explore()
    assert "already at work" in session.message.text
    session.scf.wait()
    assert set(session.scf.exploration.paths) == set(exploration.WAYS)
    assert "DIIS: converged" in session.scf.exploration.words()
    before = session.scf.exploration
    session.scf.begin(_endless, print)
    session.scf.task.cancel()
    session.scf.wait(60)
    assert session.scf.exploration is before
    assert session.message.text == "Cancelled."
    session.scf.explore(guess="nonsense")
    with pytest.raises(ql.InputError, match="nonsense"):
        session.scf.wait()
    assert session.message.is_error
    assert "nonsense" in session.message.text


def _endless(report):
    while True:
        report(0, 1, "endless")
        time.sleep(0.01)


def test_the_training_of_a_session_is_found_again(tmp_path):
    session = Session(
        "water", xc="lda", basis="sto-3g", grid_level=0, iterations=0, sampler="perturb", minutes=5.0,
        out=str(tmp_path / "w"),
    )
    assert active_session() is None
    session.training.start()
    try:
        app = ql.workbench(molecule="ethanol")
        assert app.session is session
        assert "already running when the cell was run again" in session.message.text
    finally:
        session.training.stop()
        session.trainer.wait(60)
    assert active_session() is None


def test_the_loss_is_drawn_against_the_converged_energy_of_the_validation_geometries(after_training, trained):
    zero, name = after_training.training.energy_zero()
    energies = [cases.rks(mol, cases.QUICK_METHOD).kernel() for mol in ql.read_xyz(trained.out / "validation.xyz")]
    assert zero == pytest.approx(np.mean(energies), abs=1e-7)
    assert name == "⟨E converged⟩"


def test_start_pause_resume_and_stop_from_a_session(tmp_path):
    session = Session(
        "water", xc="lda", basis="sto-3g", grid_level=0, iterations=0, sampler="perturb", minutes=5.0,
        out=str(tmp_path / "w"),
    )
    session.training.start()
    cases.wait_until(lambda: session.trainer.step >= 2)
    session.training.start()
    assert "A training is running" in session.message.text
    session.training.pause()
    cases.wait_until(lambda: session.training.status == "paused")
    halted = session.trainer.step
    session.training.start()  # the button is called Resume now
    cases.wait_until(lambda: session.trainer.step > halted)
    session.training.stop()
    session.trainer.wait(60)
    assert session.training.status == "stopped"
    assert session.trainer.step > halted


def test_a_run_on_disk_is_opened_looked_at_and_continued(trained, tmp_path):
    shutil.copytree(trained.out, tmp_path / "w")
    session = Session("ethanol", minutes=0.02)
    session.training.open_run(str(tmp_path / "none"))
    assert "Expected a run folder" in session.message.text
    session.training.open_run(str(tmp_path / "w"))
    session.training.wait()
    assert session.training.is_opened
    assert (session.molecule.formula, session.method) == ("H2O", trained.method)
    scene = session.orbitals.scene(points=8)
    after = trained.validation
    np.testing.assert_allclose(session.trainer.validation.positions, after.positions)
    assert scene.captions[0].startswith("QPT, step 60")
    session.comparison.run()
    assert session.comparison.evaluation.errors.energy_mae_mev == pytest.approx(
        ql.evaluate(trained.predictor, after).errors.energy_mae_mev, rel=1e-6
    )
    session.training.start()
    session.trainer.wait(60)
    assert session.trainer.step > 60
    assert session.training.status == "finished"


def test_what_ends_a_training_is_shown_and_its_state_is_kept(tmp_path):
    session = Session(
        "water", xc="lda", basis="sto-3g", grid_level=0, iterations=0, sampler="perturb", minutes=5.0,
        out=str(tmp_path / "w"),
    )
    session.training.start()
    cases.wait_until(lambda: session.trainer.step >= 3)
    (tmp_path / "w" / "metrics.csv").unlink()
    (tmp_path / "w" / "metrics.csv").mkdir()  # as if the disk were gone
    session.trainer.wait(60)
    session.deliver()
    assert session.training.status == "failed"
    assert session.message.topic == "training"
    assert "Training failed" in session.message.text
