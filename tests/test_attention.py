"""Attention of heads."""

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.gui.attention import attention_heads
from qptlab.models.features import BIASES


@pytest.fixture(scope="module")
def heads():
    predictor = cases.predictor("water", cases.QUICK_METHOD, 0)
    (system,) = predictor.systems
    return attention_heads(predictor, system, system.frame.reference_positions)


def test_attention_of_every_row_sums_to_one(heads):
    assert heads.weights.shape == (5, 4, 7, 7)
    np.testing.assert_allclose(heads.weights.sum(axis=-1), 1.0, atol=1e-5)
    between = heads.between_atoms(2, 1)
    assert between.shape == (3, 3)
    np.testing.assert_allclose(between.sum(axis=1), 1.0, atol=1e-5)


def test_the_coefficients_of_the_matrices_are_those_of_the_model(heads):
    params = cases.parameters("water", cases.QUICK_METHOD, 0)
    (mixing,) = [leaf for name, leaf in _named(params) if name.endswith("bias") and leaf.ndim == 3]
    np.testing.assert_array_equal(heads.mixing, mixing)
    assert heads.biases.shape == (len(BIASES), 7, 7)
    assert heads.main_bias(0, 0) in BIASES
    assert "Layer 0, head 3" in heads.summary(0, 3)


def _named(params):
    return [(name, leaf) for module in params.values() for name, leaf in module.items()]


def test_equivalent_atoms_get_nearly_the_same_attention(heads):
    """The two hydrogens of water are mirror images of each other, nearly."""
    between = heads.weights.mean(axis=(0, 1))
    assert between[0, 5] == pytest.approx(between[0, 6], rel=0.2)


def test_a_missing_head_and_a_switched_off_network_are_refused(heads):
    with pytest.raises(ql.InputError, match="head from 0 to 3, got layer 0, head 4"):
        heads.between_atoms(0, 4)
    plain = cases.predictor("water", cases.QUICK_METHOD, 0).without_network()
    with pytest.raises(ql.InputError, match="switched off"):
        attention_heads(plain, plain.systems[0], plain.systems[0].frame.reference_positions)
