"""Molecules padded to one shape: nothing changes."""

import functools

import cases
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

import qptlab as ql
from qptlab.dft import integrals, padding
from qptlab.dft.integrals import template
from qptlab.models.systems import System
from qptlab.training.label_free import loss

METHODS = [
    ql.Method("pbe", "sto-3g", grid_level=0, eri="fitted"), cases.slow(ql.Method("cam-b3lyp", "6-31g", grid_level=0)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.xc}-{method.basis}-{method.eri}")
def test_padding_changes_neither_prediction_nor_gradient(method):
    """Water in arrays that ethanol fits, and methane, too: larger in every respect than its own."""
    config = ql.QPTConfig("micro", "float64", iterations=1)
    (plain,), kinds = ql.make_systems([ql.Molecule.from_name("water")], method, config)
    mols = map(ql.Molecule.from_name, ("water", "ethanol", "ammonia"))
    shapes = [integrals.shape(mol, method, with_kernel=True) for mol in mols]
    shape = padding.union(shapes)._replace(natm=11)
    large = System(plain.frame, method, padding.Padding(shape, nocc=16), kinds, config)
    assert large.template.shape.nao > plain.template.nao
    qpt = ql.CorrectionModel(config, kinds)
    params = cases.awake(qpt.init(jax.random.key(0)))
    reference_positions = plain.frame.reference_positions
    place = reference_positions + 0.05 * np.random.default_rng(1).normal(size=reference_positions.shape)

    one, two = (ql.CorrectionPredictor(qpt, params, [system]).in_frame(system, place) for system in (plain, large))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-9), one, two)

    def slope(system, kind):
        sample = system.sample(system.host_integrals(place))
        return jax.jit(jax.grad(lambda p: loss(qpt.correction(p, sample.features), sample, qpt, kind)[0]))(params)

    for kind in ("energy", "self-consistency"):
        leaves = (jax.tree.leaves(slope(system, kind)) for system in (plain, large))
        for ours, theirs in zip(*leaves, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-7)  # parameters are in float32


@pytest.mark.parametrize("method", [
    ql.Method("pbe", "def2-svp", 1), ql.Method("hf", "sto-3g"), ql.Method("b3lyp", "def2-svp", 0, eri="fitted"),
    ql.Method("pbe", "def2-svp", 0, eri="exact"), ql.Method("pbe", "def2-tzvp", 0, auxbasis="def2-universal-jkfit"),
], ids=lambda method: f"{method.xc}-{method.basis}-{method.eri}-{method.auxbasis}")
def test_the_shape_of_a_molecule_is_known_without_its_template(method):
    for name in ("water", "uracil", "malondialdehyde", "methane"):
        mol = ql.Molecule.from_name(name)
        assert integrals.shape(mol, method) == template(mol, method).shape
        assert integrals.eri_form(mol, method) == template(mol, method).eri


def test_the_share_of_padding_counts_orbitals_and_grid_points():
    small, large = (padding.Shape(1, (((0, 3), number),), 10 * number, 1, 0) for number in (3, 5))
    shared = padding.Padding(large, 1)
    assert padding.added_share([small, large], [shared, shared]) == pytest.approx((0.2, 0.2))


@hypothesis.given(strategies.lists(strategies.integers(1, 60), min_size=1, max_size=30))
def test_every_molecule_is_in_one_bucket_and_little_is_added(numbers):
    shapes = [padding.Shape(1, (((0, 3), number),), 10, 1, 0) for number in numbers]
    found = padding.buckets(shapes)
    assert sorted(index for members in found for index in members) == list(range(len(numbers)))
    sizes = [padding.union([shapes[i] for i in members]).nao for members in found]
    assert sizes == sorted(set(sizes)), "one shape for each size, small ones first"
    assert all(size == max(numbers[i] for i in members) for size, members in zip(sizes, found, strict=True))
    assert sum(numbers) >= 0.85 * sum(size * len(members) for size, members in zip(sizes, found, strict=True))


def test_rare_small_molecules_share_a_shape():
    """Ten shapes of one molecule each take longer to compile than they save; the frequent shapes stay as they are."""
    numbers = [*range(2, 12), *[30] * 100, *[60] * 100]
    found = padding.buckets([padding.Shape(1, (((0, 3), number),), number, 1, 0) for number in numbers])
    assert [len(members) for members in found] == [110, 100]


def test_molecules_of_one_model_share_shapes():
    mols = ql.read_molecules(["water", "ammonia", "ethanol", "COC"])
    systems, kinds = ql.make_systems(mols, ql.Method("lda", "sto-3g", grid_level=0), cases.QUICK_MODEL)
    shapes = [system.template.shape for system in systems]
    assert shapes[0] == shapes[1] != shapes[2] == shapes[3]
    assert systems[0].template.layout == systems[1].template.layout
    assert "H 1s" in kinds


@pytest.mark.filterwarnings("ignore:.*is not among the")
def test_a_new_molecule_shares_the_shape_of_those_that_a_model_was_trained_on():
    """Nothing is compiled for it, and the prediction is that without padding. A larger molecule has its own shape."""
    mols = ql.read_molecules(["water", "ammonia", "methane", "ethanol"])
    config = ql.EquivariantConfig("small")
    systems, kinds = ql.make_systems(mols, ql.Method("lda", "sto-3g", grid_level=0), config)
    model = ql.CorrectionModel(config, kinds)
    predict = ql.CorrectionPredictor(model, cases.awake(model.init(jax.random.key(0))), systems)
    ether, peroxide, pentane = (ql.Molecule.parse(text) for text in ("COC", "OO", "CCCCC"))
    system, pose = predict.locate(ether)
    assert system.sizes == systems[3].sizes
    alone = predict.in_frame(system.unpadded(), pose.positions)
    assert predict(ether).energy == pytest.approx(alone.energy, abs=1e-9)
    np.testing.assert_allclose(predict(ether).fock, alone.fock, atol=1e-7)
    assert predict.locate(peroxide)[0].padding is None, "it would grow too much"
    assert predict.locate(pentane)[0].padding is None, "it is too large"
