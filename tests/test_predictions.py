"""Files of predictions: written once, and read again without loss."""

import h5py
import numpy as np
import pytest

import qptlab as ql


@pytest.fixture
def mols():
    water = ql.Molecule.from_name("water")
    return [water, ql.Molecule.from_name("ammonia"), water.with_positions(1.02 * water.positions)]


def predictions(mols):
    rng = np.random.default_rng(0)
    return [
        ql.Prediction(rng.normal(), charges=rng.normal(size=len(mol.symbols)), gap=rng.normal()) for mol in mols
    ]


def test_predictions_are_read_in_the_order_of_the_geometries(mols, tmp_path):
    expected = predictions(mols)
    ql.write_predictions(tmp_path / "p.h5", mols, iter(expected), "PBE/sto-3g")
    answers = ql.read_predictions(tmp_path / "p.h5")
    assert answers.label == "PBE/sto-3g"
    for mol, again in zip(mols, answers.molecules, strict=True):
        assert (again.symbols, again.charge) == (mol.symbols, mol.charge)
        np.testing.assert_array_equal(again.positions, mol.positions)
    for prediction, again in zip(expected, answers.predictions, strict=True):
        assert (again.energy, again.gap, again.fock) == (prediction.energy, prediction.gap, None)
        np.testing.assert_array_equal(again.charges, prediction.charges)
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5"]


def test_a_models_predictions_are_read_again(trained, tmp_path):
    water = ql.Molecule.from_name("water")
    ql.write_predictions(tmp_path / "p.h5", [water], trained.predictor.map([water]), trained.predictor.label)
    (again,), prediction = ql.read_predictions(tmp_path / "p.h5").predictions, trained.predictor(water)
    for name in ql.Prediction._fields:
        if (value := getattr(prediction, name)) is not None:
            np.testing.assert_array_equal(getattr(again, name), value)


def test_a_file_is_never_overwritten_and_nothing_is_left_of_a_failure(mols, tmp_path):
    (tmp_path / "p.h5").write_text("mine")
    with pytest.raises(ql.InputError, match="is not overwritten"):
        ql.write_predictions(tmp_path / "p.h5", mols, predictions(mols))
    with pytest.raises(ql.InputError, match="got 1 for 3 geometries"):
        ql.write_predictions(tmp_path / "q.h5", mols, predictions(mols[:1]))
    different = [*predictions(mols)[:2], ql.Prediction(0.0)]
    with pytest.raises(ql.InputError, match="the same properties"):
        ql.write_predictions(tmp_path / "q.h5", mols, different)
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5"]


def test_a_different_file_is_refused_and_links_are_not_followed(mols, tmp_path):
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file.attrs["method"] = "PBE"
        file["frame"] = h5py.ExternalLink("p.h5", "frame")
    (tmp_path / "text.h5").write_text("no HDF5")
    ql.write_predictions(tmp_path / "p.h5", mols, predictions(mols))
    for name in ("text.h5", "links.h5", "none.h5"):
        with pytest.raises(ql.InputError, match="Expected a file of predictions"):
            ql.read_predictions(tmp_path / name)
