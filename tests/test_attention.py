"""What heads look at."""

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.gui.attention import attended
from qptlab.models.features import BIASES


@pytest.fixture(scope="module")
def looked():
    predictor = cases.predictor("water", cases.QUICK_METHOD, 0)
    (system,) = predictor.systems
    return attended(predictor, system, system.frame.home)


def test_attention_of_every_row_sums_to_one(looked):
    assert looked.weights.shape == (5, 4, 7, 7)
    np.testing.assert_allclose(looked.weights.sum(axis=-1), 1.0, atol=1e-5)
    between = looked.between_atoms(2, 1)
    assert between.shape == (3, 3)
    np.testing.assert_allclose(between.sum(axis=1), 1.0, atol=1e-5)


def test_the_matrices_and_their_weights_are_those_of_the_model(looked):
    params = cases.parameters("water", cases.QUICK_METHOD, 0)
    (kept,) = [leaf for name, leaf in _named(params) if name.endswith("bias") and leaf.ndim == 3]
    np.testing.assert_array_equal(looked.mixing, kept)
    assert looked.biases.shape == (len(BIASES), 7, 7)
    assert looked.main_bias(0, 0) in BIASES
    assert "Layer 0, head 3" in looked.words(0, 3)


def _named(params):
    return [(name, leaf) for module in params.values() for name, leaf in module.items()]


def test_like_atoms_are_looked_at_alike(looked):
    """The two hydrogens of water are mirror images: what one sends the oxygen, the other does, too, nearly."""
    between = looked.weights.mean(axis=(0, 1))
    assert between[0, 5] == pytest.approx(between[0, 6], rel=0.2)


def test_what_cannot_be_looked_at_is_refused(looked):
    with pytest.raises(ql.InputError, match="head 4 of layer 0 does not exist; 0 to 3 of layers 0 to 4 would do"):
        looked.between_atoms(0, 4)
    plain = cases.predictor("water", cases.QUICK_METHOD, 0).without_network()
    with pytest.raises(ql.InputError, match="switched off"):
        attended(plain, plain.systems[0], plain.systems[0].frame.home)
