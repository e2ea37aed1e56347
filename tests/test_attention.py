"""Attention of heads."""

import cases
import jax
import numpy as np
import pytest

import qptlab as ql
from qptlab.gui.attention import attention_heads
from qptlab.models.equivariant import MATRICES, SMOOTHING
from qptlab.models.features import BIASES


def predictor_of(config):
    """Return an untrained model of water."""
    systems, kinds = ql.make_systems([ql.Molecule.from_name("water")], cases.QUICK_METHOD, config)
    model = ql.CorrectionModel(config, kinds)
    return ql.CorrectionPredictor(model, model.init(jax.random.key(0)), systems)


@pytest.fixture(scope="module")
def qpt():
    return predictor_of(ql.QPTConfig("micro", iterations=0))


@pytest.fixture(scope="module")
def heads(qpt):
    (system,) = qpt.systems
    return attention_heads(qpt, system, system.frame.reference_positions)


@pytest.fixture(scope="module")
def equivariant():
    return predictor_of(ql.EquivariantConfig("small", iterations=0))


@pytest.fixture(scope="module")
def shells(equivariant):
    (system,) = equivariant.systems
    return attention_heads(equivariant, system, system.frame.reference_positions)


def test_attention_of_every_row_of_qpt_sums_to_one(heads):
    assert heads.weights.shape == (5, 4, 7, 7)
    np.testing.assert_allclose(heads.weights.sum(axis=-1), 1.0, atol=1e-5)
    between = heads.between_atoms(2, 1)
    assert between.shape == (3, 3)
    np.testing.assert_allclose(between.sum(axis=1), 1.0, atol=1e-5)


def test_the_coefficients_of_the_matrices_are_those_of_the_model(heads, qpt):
    (mixing,) = [leaf for name, leaf in _named(qpt.params) if name.endswith("bias") and leaf.ndim == 3]
    np.testing.assert_array_equal(heads.mixing, mixing)
    assert heads.names == BIASES
    assert heads.matrices.shape == (len(BIASES), 7, 7)
    assert heads.main_matrix(0, 0) in BIASES
    assert "Layer 0, head 3" in heads.summary(0, 3)
    assert "The strongest bias is the matrix" in heads.summary(0, 3)


def _named(params):
    return [(name, leaf) for module in params.values() for name, leaf in module.items()]


def test_equivalent_atoms_get_nearly_the_same_attention(heads):
    """The two hydrogens of water are mirror images of each other, nearly."""
    between = heads.weights.mean(axis=(0, 1))
    assert between[0, 5] == pytest.approx(between[0, 6], rel=0.2)


def test_a_missing_head_and_a_switched_off_network_are_refused(heads, qpt):
    with pytest.raises(ql.InputError, match="head from 0 to 3, got layer 0, head 4"):
        heads.between_atoms(0, 4)
    plain = qpt.without_network()
    with pytest.raises(ql.InputError, match="switched off"):
        attention_heads(plain, plain.systems[0], plain.systems[0].frame.reference_positions)


def test_attention_between_shells_is_a_sum_of_which_each_atom_gets_a_share(shells):
    assert shells.labels == ["0 O 1s", "0 O 2s", "0 O 2p", "1 H 1s", "2 H 1s"]
    assert shells.atoms.tolist() == [0, 0, 0, 1, 2]
    assert shells.weights.shape == (2, 4, 5, 5)
    assert shells.weights.min() > 0
    assert shells.weights.max() < 0.5
    np.testing.assert_allclose(shells.between_atoms(1, 3).sum(axis=1), 1.0, atol=1e-5)


def test_equivalent_shells_have_the_same_attention(equivariant):
    """The two hydrogens of water are mirror images of each other."""
    (system,) = equivariant.systems
    mol = ql.Molecule.from_xyz("3\n\nO 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692\n")
    heads = attention_heads(equivariant, system, mol.positions)
    np.testing.assert_allclose(heads.weights[..., 0, 3], heads.weights[..., 0, 4], rtol=1e-4)


def test_the_matrix_of_a_head_is_the_one_whose_norms_correlate_most(shells):
    assert shells.mixing is None
    assert shells.names == MATRICES
    pairs = [np.corrcoef(shells.weights[1, 2].ravel(), matrix.ravel())[0, 1] for matrix in shells.matrices]
    np.testing.assert_allclose(shells.influence(1, 2), pairs, atol=1e-6)
    main = shells.main_matrix(1, 2)
    assert main == MATRICES[int(np.argmax(np.abs(pairs)))]
    assert f"logarithms of the norms of the blocks of {main} (" in shells.summary(1, 2)


def test_norms_are_those_of_the_blocks(equivariant, shells):
    (system,) = equivariant.systems
    feats = system.sample(system.host_integrals(system.frame.reference_positions)).features
    of_shell = np.asarray(feats.shells)
    rows, columns = (np.flatnonzero(of_shell == index) for index in (of_shell[2], of_shell[5]))  # O 2p and H 1s
    blocks = np.asarray(feats.matrices)[:, rows[:, None], columns]
    norms = np.sqrt(np.sum(blocks**2, axis=(1, 2)) + SMOOTHING)
    np.testing.assert_allclose(10 ** shells.matrices[:, 2, 3], norms, rtol=1e-4)


def test_a_molecule_that_is_padded_has_the_attention_of_its_own_shells(equivariant, shells):
    water, methane = (ql.Molecule.from_name(name) for name in ("water", "methane"))
    systems, kinds = ql.make_systems([methane, water], cases.QUICK_METHOD, equivariant.config)
    model = ql.CorrectionModel(equivariant.config, kinds)
    both = ql.CorrectionPredictor(model, model.init(jax.random.key(0)), systems)
    heads = attention_heads(both, systems[1], water.positions)
    assert heads.labels == shells.labels
    np.testing.assert_allclose(heads.matrices, shells.matrices, atol=1e-5)
