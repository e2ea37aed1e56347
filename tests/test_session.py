"""Sessions: the workbench without a screen."""

import csv
import dataclasses
import functools
import importlib.util
import shutil
import time

import cases
import numpy as np
import own_network
import pytest

import qptlab as ql
from qptlab.dft import exploration
from qptlab.evaluation import labels
from qptlab.gui.session import QUICK_BASIS, QUICK_ITERATIONS, QUICK_MINUTES, Session, active_session
from qptlab.models import contract
from qptlab.units import HARTREE_EV

SMALL_GNN = ql.GNNConfig(width=8, layers=1, heads=2, radial=2)


def test_no_public_name_hides_a_module_of_the_package():
    assert [name for name in ql.__all__ if importlib.util.find_spec(f"qptlab.{name}")] == []


@pytest.fixture
def after_training(trained):
    """A session with a finished training."""
    session = Session("water", xc="lda", basis="sto-3g", grid_level=0, iterations=0)
    session.trainer = trained
    return session


def test_a_molecule_is_chosen_by_name_smiles_or_text_and_bad_ones_change_nothing():
    session = Session("water")
    for text, formula in (("benzene", "C6H6"), ("CCO", "C2H6O"), ("2\n\nHe 0 0 0\nHe 0 0 3\n", "He2")):
        session.choose(text)
        cases.settle(session)
        assert session.molecule.formula == formula
        assert session.message.text == ""
    session.choose("C1CC")
    cases.settle(session)
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


def test_the_summary_states_the_size_of_a_calculation():
    assert Session("water", basis="sto-3g").summary() == (
        "H2O, 10 electrons, 7 atomic orbitals, exact integrals, 7.21 MiB per geometry"
    )
    assert "charge +1" in Session("[NH4+]").summary()
    with pytest.raises(ql.InputError, match="nonsense"):
        Session("water", basis="nonsense").summary()


def test_parts_that_need_a_model_say_so_before_there_is_one():
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


def test_zero_minutes_and_a_folder_with_other_files_are_refused_and_nothing_is_written(tmp_path):
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
    assert session.orbitals.subject(1) is session.orbitals.subject(1), "a prediction is kept until it is renewed"
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
    assert latex.count("\\\\") == 5, "a line of titles, three of the model and its baselines, and one of the grid"
    session.comparison.start("nowhere.xyz")
    with pytest.raises(ql.InputError, match=r"nowhere\.xyz"):
        session.comparison.wait()


def test_an_scf_is_explored_in_the_background_and_can_be_cancelled():
    session = Session("water", xc="lda", basis="sto-3g", grid_level=0)
    session.scf.explore(cycles=12)
    session.scf.explore()
    assert "already at work" in session.message.text
    session.scf.wait()
    assert set(session.scf.exploration.paths) == set(exploration.ALGORITHMS)
    assert "DIIS: converged" in session.scf.exploration.summary()
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


def test_the_workbench_shows_a_running_training_again(tmp_path):
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


def test_the_loss_is_relative_to_the_converged_energy_of_the_validation_geometries(after_training, trained):
    zero, name = after_training.training.energy_zero()
    energies = [cases.rks(mol, cases.QUICK_METHOD).kernel() for mol in ql.read_xyz(trained.out / "validation.xyz")]
    assert zero == pytest.approx(np.mean(energies), abs=1e-7)
    assert name == "⟨E converged⟩"


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory):
    """A file of geometries of water with labels by PySCF."""
    water, rng = ql.Molecule.from_name("water"), np.random.default_rng(0)
    mols = [water.with_positions(water.positions + 0.05 * rng.normal(size=(3, 3))) for _ in range(10)]
    path = tmp_path_factory.mktemp("labels") / "labels.xyz"
    labels.label(mols, functools.partial(labels.from_pyscf, method=cases.QUICK_METHOD), path, theory="LDA/sto-3g")
    return path


@pytest.fixture(scope="module")
def gnn(labels_file, tmp_path_factory):
    """A finished training of an OrbitalGNN."""
    train = ql.TrainConfig.supervised(steps=20, batch=4, validation=2, tasks=ql.TaskWeights(forces=0.0))
    out = tmp_path_factory.mktemp("runs") / "gnn"
    return ql.Trainer(ql.read_labels(labels_file), model=SMALL_GNN, train=train, out=out).run()


def test_an_orbital_gnn_is_opened_compared_and_continued(gnn, tmp_path):
    shutil.copytree(gnn.out, tmp_path / "gnn")
    session = Session("ethanol", minutes=0.02)
    session.training.open_run(str(tmp_path / "gnn"))
    session.training.wait()
    assert session.training.is_opened
    assert (session.molecule.formula, session.network) == ("H2O", SMALL_GNN)
    assert len(session.trainer.rows) == 20
    session.comparison.run()
    evaluation = session.comparison.evaluation
    assert evaluation.errors.energy_mae_mev == pytest.approx(gnn.rows[-1]["validation_mae_mev"], rel=1e-3)
    assert list(evaluation.baselines) == ["low_cost"]
    session.training.start()
    session.trainer.wait(60)
    assert session.trainer.step > 20
    assert session.training.status == "finished"


def test_parts_that_need_a_density_say_what_an_orbital_gnn_does_not_predict(gnn):
    session = Session("water")
    session.training.show(gnn)
    with pytest.raises(ql.InputError, match=r"predicts dm, .* got one of kind 'orbital-gnn'"):
        session.orbitals.subject()
    with pytest.raises(ql.InputError, match="attention, got OrbitalGNN; use an Equivariant Transformer or a QPT"):
        session.attention.heads()


def test_an_orbital_gnn_is_trained_paused_and_resumed_from_a_session(labels_file, tmp_path):
    session = Session("water", network=SMALL_GNN, minutes=5.0, out=str(tmp_path / "gnn"))
    session.training.start()
    assert "Expected a file of labels for OrbitalGNN" in session.message.text
    session.labels = str(labels_file)
    session.training.start()
    assert session.message.text.startswith("The run is stored in")
    cases.wait_until(lambda: session.trainer.step >= 2)
    session.training.pause()
    cases.wait_until(lambda: session.training.status == "paused")
    halted = session.trainer.step
    session.training.start()
    cases.wait_until(lambda: session.trainer.step > halted)
    session.training.stop()
    session.trainer.wait(60)
    assert session.training.status == "stopped"


def test_a_users_own_network_is_chosen_trained_and_watched(tmp_path):
    session = Session(
        "water", xc="lda", grid_level=0, iterations=0, sampler="perturb", minutes=0.05, out=str(tmp_path / "own"),
    )
    assert session.network_title == "Equivariant Transformer, base"
    session.network = contract.choices()["pair-mlp"]
    assert session.network_title == "pair-mlp"
    session.network = own_network.PairConfig(width=8)
    assert session.network_title == "pair-mlp, custom"
    session.training.start()
    session.trainer.wait(120)
    assert session.trainer.model_config == own_network.PairConfig(width=8, iterations=0)
    assert session.trainer.step > 0
    session.comparison.run()
    assert session.comparison.evaluation.kind == "pair-mlp"
    assert session.orbitals.scene(points=8).captions[0].startswith("pair-mlp, step")
    with pytest.raises(ql.InputError, match="attention, got pair-mlp; use an Equivariant Transformer or a QPT"):
        session.attention.heads()


def test_settings_of_no_network_are_refused():
    session = Session("water")
    before = session.network
    assert not session.set("network", "micro")
    assert "Expected the settings of a registered network, got str" in session.message.text
    assert session.network == before


def test_defaults_of_a_session_are_those_of_the_package_except_for_quick_ones():
    session, method, train, model = Session(), ql.Method(), ql.TrainConfig(), ql.EquivariantConfig()
    assert session.method == dataclasses.replace(method, basis=QUICK_BASIS)
    assert session.model_config == dataclasses.replace(model, iterations=QUICK_ITERATIONS)
    assert (session.sampler, session.temperature) == (train.sampling.sampler, train.sampling.temperature)
    assert (session.seed, session.minutes) == (train.seed, QUICK_MINUTES)


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


def test_a_run_on_disk_is_opened_drawn_and_continued(trained, tmp_path):
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


def test_a_changed_choice_after_an_opened_run_begins_a_new_training(trained, tmp_path):
    shutil.copytree(trained.out, tmp_path / "w")
    session = Session("ethanol", minutes=0.01, out=str(tmp_path / "new"))
    session.training.open_run(str(tmp_path / "w"))
    session.training.wait()
    for name, value in (("xc", "pbe"), ("basis", "6-31g"), ("network", cases.SMALL), ("iterations", 2), ("seed", 9)):
        old = getattr(session, name)
        setattr(session, name, value)
        assert not session.training.is_opened
        setattr(session, name, old)
        assert session.training.is_opened
    session.choose("hydrogen")
    session.training.start()
    assert "this training is a new one" in session.message.text
    assert session.trainer.out == tmp_path / "new"
    session.trainer.wait(60)
    assert [mol.formula for mol in ql.Trainer.open(tmp_path / "new").molecules] == ["H2"]
    assert ql.Trainer.open(tmp_path / "w").step == trained.step


def test_the_reason_of_a_failed_training_is_shown_and_its_state_is_kept(tmp_path):
    session = Session(
        "water", xc="lda", basis="sto-3g", grid_level=0, iterations=0, sampler="perturb", minutes=5.0,
        out=str(tmp_path / "w"),
    )
    session.training.start()
    cases.wait_until(lambda: session.trainer.step >= 3)
    gone = tmp_path / "gone"
    (tmp_path / "w").rename(gone)
    cases.wait_until(lambda: session.training.status == "paused")
    session.deliver()
    assert session.message.is_error
    assert "bring the folder back" in session.message.text
    gone.rename(tmp_path / "w")
    session.training.start()
    cases.wait_until(lambda: session.training.status == "running")
    session.deliver()
    assert session.message.text == "The training goes on."
    (tmp_path / "w").rename(gone)
    cases.wait_until(lambda: session.training.status == "paused")
    session.training.stop()
    session.trainer.wait(60)
    session.deliver()
    assert session.training.status == "failed"
    assert session.message.topic == "training"
    assert "Training failed" in session.message.text
