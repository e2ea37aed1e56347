"""Predictions that are worthless say so where they are used, and intervals hold the converged energy."""

import json
import math

import ase
import numpy as np
import pytest

import qptlab as ql
from qptlab.evaluation import labels
from qptlab.models import limits
from qptlab.units import HARTREE_MEV

METHOD = ql.Method("pbe", "sto-3g", grid_level=0)


def stretched(factor):
    """Return water with one bond of a multiple of its length."""
    water = ql.Molecule.from_name("water")
    oxygen, first, second = water.positions
    return water.with_positions(np.array([oxygen, oxygen + factor * (first - oxygen), second]))


@pytest.fixture(scope="module")
def model():
    """Return a network without training: its error is 1.8 meV, at twice a bond's length 7 meV."""
    config = ql.EquivariantConfig("small", iterations=1)
    objective = ql.make_objective(ql.Molecule.from_name("water"), METHOD, config)
    return objective.predictor(objective.init(0))


@pytest.fixture
def strict():
    """Set limits that refuse the prediction at twice a bond's length."""
    with ql.error_limits(warn_mev=3, refuse_mev=5):
        yield


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.3, 1.6, 2.0])
def test_the_interval_holds_the_converged_energy(model, factor):
    prediction, found = model(stretched(factor)), float(ql.scf(stretched(factor), METHOD).energy)
    low, high = prediction.energy_interval
    assert low <= found <= high <= float(prediction.energy) + 1e-7
    assert high - low < 0.5 * (float(prediction.energy) - found)
    assert float(prediction.energy_error) == pytest.approx(float(prediction.energy) - found, rel=0.02)


def test_an_estimate_that_is_no_error_gives_no_lower_end():
    for estimate in (-0.1, math.nan, math.inf):
        prediction = ql.Prediction(np.array(-1.0), energy_error=np.array(estimate))
        assert prediction.energy_interval == (-math.inf, -1.0)
        with pytest.raises(ql.InputError, match="which is no error"):
            limits.check(prediction, "it")
    with pytest.raises(ql.InputError, match="a prediction with an estimated error, got one without"):
        _ = ql.Prediction(np.array(-1.0)).energy_interval


def test_limits_warn_refuse_and_are_restored(model):
    prediction = model(stretched(1.0))
    limits.check(prediction, "water")
    with ql.error_limits(warn_mev=0.1), pytest.warns(UserWarning, match="prediction of water has an estimated error"):
        limits.check(prediction, "water")
    with ql.error_limits(warn_mev=0.1, refuse_mev=1), pytest.raises(ql.InputError, match="at most 1 meV, got"):
        limits.check(prediction, "water")
    broken = model(stretched(2.4))  # its gap closes
    with pytest.raises(ql.InputError, match="meV, which is no error: the gap closes"):
        limits.check(broken, "water")
    with ql.error_limits(math.inf, math.inf), pytest.warns(UserWarning, match="an estimated error of -"):
        limits.check(broken, "water")
    assert (ql.error_limits.current.warn_mev, ql.error_limits.current.refuse_mev) == (43.0, 1000.0)
    with pytest.raises(ql.InputError, match="0 meV or more, got -1"):
        ql.error_limits(-1)


def test_every_consumer_warns_and_refuses(model, strict):
    far = stretched(2.0)
    assert 5 < float(model(far).energy_error) * HARTREE_MEV < 9  # the model itself returns it
    consumers = {
        "relax": lambda: ql.relax(far, model, steps=1),
        "calculator, energy": lambda: with_calculator(far, model).get_potential_energy(),
        "calculator, forces": lambda: with_calculator(far, model).get_forces(),
        "teacher": lambda: labels.from_model(far, model),
    }
    for name, consume in consumers.items():
        with pytest.raises(ql.InputError, match="Expected an estimated error of at most 5 meV, got 6"):
            pytest.fail(f"{name} returned {consume()}")
        with ql.error_limits(1.0), pytest.warns(UserWarning, match="has an estimated error of"):
            consume()


def with_calculator(mol: ql.Molecule, model) -> ase.Atoms:
    """Return atoms with the model's calculator."""
    atoms = mol.to_ase()
    atoms.calc = ql.ModelCalculator(model)
    return atoms


def test_a_relaxed_geometry_has_an_estimate(model):
    found = ql.relax(stretched(1.05), model, fmax=0.3)
    assert found.energy_error == pytest.approx(float(model(found.molecule).energy_error), rel=1e-3)


def test_the_command_line_leaves_refused_predictions_out(model, tmp_path, capsys):
    strict = ["--warn-mev", "3", "--refuse-mev", "5"]
    from qptlab.cli import main

    file, frames, out = tmp_path / "water.h5", tmp_path / "frames.xyz", tmp_path / "out.h5"
    model.save(file)
    frames.write_text(stretched(1.0).to_xyz() + stretched(2.0).to_xyz())
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(file), "--geometries", str(frames), "--out", str(out), "--json", *strict])
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert (ended.value.code, record["n"], list(record["refused"])) == (1, 1, ["1: frames frame 1"])
    assert "1 of 2 predictions were refused" in printed.err
    assert len(ql.read_predictions(out).molecules) == 1

    with pytest.raises(SystemExit) as ended, pytest.warns(UserWarning, match="frames frame 1 has an estimated error"):
        main(["predict", str(file), "--geometries", str(frames), "--warn-mev", "3", "--json"])
    assert not ended.value.code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["n"] == 2
