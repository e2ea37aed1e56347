"""Models that come with qptlab: what they predict for molecules that they never saw, and how they are found."""

import hashlib

import cases
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.evaluation import reference
from qptlab.models.loading import PRETRAINED
from qptlab.units import HARTREE_MEV

NAME = "qm9-small"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.* is not among the")]


@pytest.fixture(scope="module")
def model():
    return ql.load(NAME)


@pytest.mark.parametrize("name", ql.pretrained_models())
def test_a_model_is_small_complete_and_has_a_card(name):
    path = PRETRAINED / f"{name}.h5"
    assert path.stat().st_size < 20e6
    digest, file = path.with_suffix(".sha256").read_text().split()
    assert file == path.name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    title, _, summary, *rest = ql.model_card(name).splitlines()
    assert title == f"# {name}"
    assert "without labels" in summary
    assert any("Licence: MIT" in line for line in rest)


def test_a_molecule_that_it_never_saw_is_predicted_to_half_a_millielectronvolt(model):
    """Methanol is in the validation part of the split."""
    methanol = ql.Molecule.from_smiles("CO")
    assert all(system.molecule.formula != "CH4O" for system in model.systems)
    evaluation = ql.evaluate(model.with_iterations(0), [methanol])
    assert evaluation.errors.energy_mae_mev < 0.5
    assert all(evaluation.errors.energy_mae_mev < other.energy_mae_mev for other in evaluation.baselines.values())
    exact = reference.converged(methanol, model.method, fitted=True)
    estimate, error = evaluation.predictions[0].energy_error, evaluation.predictions[0].energy - exact.energy
    assert estimate == pytest.approx(error, rel=0.2)  # neither has the error of the density fit
    assert float(model(methanol).energy) == pytest.approx(exact.energy, abs=1e-8)


def test_a_mirror_image_that_is_turned_has_the_same_energy(model):
    """Quarter turns only: the grid is fixed in space, so that others change the energy by its error, as in PySCF."""
    methanol = ql.Molecule.from_smiles("CO")
    turn = Rotation.from_euler("xyz", [90, 180, 90], degrees=True).as_matrix()
    image = methanol.with_positions(-methanol.positions @ turn.T + 0.3)
    assert float(model(image).energy) == pytest.approx(float(model(methanol).energy), abs=1e-8)


@pytest.mark.parametrize(("smiles", "reason"), [("CS", "S 1s"), ("[CH3]", "unpaired")])
def test_molecules_that_it_cannot_know_are_refused(model, smiles, reason):
    with pytest.raises(ql.InputError, match=reason):
        model(ql.Molecule.from_smiles(smiles))


def test_a_file_of_the_users_comes_before_a_name_and_a_wrong_name_lists_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases.predictor("water", cases.QUICK_METHOD, 1).save(NAME)
    assert ql.load(NAME).label == cases.QUICK_METHOD.label
    with pytest.raises(ql.InputError, match="one of the models qm9-small, got 'qm9-smal'"):
        ql.load("qm9-smal")
    with pytest.raises(ql.InputError, match=r"one of the models qm9-small, got '\.\./qm9-small'"):
        ql.model_card("../qm9-small")


def test_a_prediction_in_a_session_is_compared_with_pyscf_and_its_model_trained_further(tmp_path):
    from qptlab.gui.session import Session

    session = Session("hydrogen")
    part = session.prediction
    assert part.models()[0] == NAME
    for work in (part.compare, part.train_further):
        work()
        assert "predict first" in session.message.text
    part.predict(NAME)
    part.wait(600)
    assert "was not trained on this molecule" in session.message.text
    before = part.result
    part.compare()
    part.wait(600)
    exact = reference.converged(session.molecule, before.subject.method)
    (title, predicted, true), *_, (_, estimated, error) = part.result.rows()
    assert title == "energy, hartree"
    assert float(true) == pytest.approx(exact.energy, abs=1e-6)
    estimate_mev = float(before.subject.model.energy_error) * HARTREE_MEV
    assert float(estimated.split()[0]) == pytest.approx(estimate_mev, rel=0.05)
    assert float(error.split()[0]) == pytest.approx(abs(float(predicted) - exact.energy) * HARTREE_MEV, abs=0.05)
    assert np.shape(before.rows()) == (5, 2)
    session.minutes, session.sampler, session.out = 0.01, "modes", str(tmp_path / "further")
    part.train_further()
    assert "is trained further" in session.message.text
    session.trainer.wait()
    assert (session.trainer.status, session.trainer.error) == ("finished", None)
    assert session.trainer.step > 0
    assert session.method.label == before.model.label
    assert ql.load(tmp_path / "further").model.kinds == before.model.model.kinds
    assert session.training.is_opened, "Start continues it"
    part.predict("runs/nothing")
    with pytest.raises(ql.InputError, match="got 'runs/nothing'"):
        part.wait(60)
