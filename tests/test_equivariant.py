"""Tests of the equivariant Transformer: symmetries, forces, smoothness, size consistency, padding and statistics."""

import dataclasses
import functools
import warnings

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft import padding
from qptlab.dft.integrals import template
from qptlab.models.equivariant import WINDOWS, EquivariantConfig, spectral_functions
from qptlab.models.systems import make_system, make_systems

HF = ql.Method("hf", "sto-3g", eri="exact")
PBE = ql.Method("pbe", "sto-3g", grid_level=0)
B3LYP = ql.Method("b3lyp", "sto-3g", grid_level=0)
SVP = ql.Method("pbe", "def2-svp", grid_level=0)

MICRO_MEV = 3.7e-11
"""One millionth of a meV, hartree."""

MILLI_MEV = 3.7e-8
"""One thousandth of a meV, hartree."""

CH, HH = 2.06, 1.53  # bohr
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
SYMMETRIC = {
    "ammonia": ql.Molecule(("N", "H", "H", "H"), np.array([
        [0, 0, 0.1], *([HH * np.cos(a), HH * np.sin(a), -0.6] for a in 2 * np.pi / 3 * np.arange(3)),
    ])),
    "methane": ql.Molecule(("C", "H", "H", "H", "H"), np.array([[0, 0, 0], *(CH * TETRAHEDRON)])),
    "acetylene": ql.Molecule(("H", "C", "C", "H"), np.outer([-3.14, -1.14, 1.14, 3.14], [0, 0, 1])),
}
"""Molecules with degenerate levels, symmetric to the last digit."""

NAMES = ("water", "ammonia", "methane", "acetylene")

MIRRORS = [np.diag([1, 1, -1]), np.diag([-1, 1, -1]), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), -np.eye(3)]
"""Operations of the octahedral group, which the integration grid has."""


@functools.cache
def molecule(name: str) -> ql.Molecule:
    """Return a geometry without symmetry."""
    mol = SYMMETRIC[name] if name in SYMMETRIC else cases.molecule(name)
    return moved(mol, 0.1 * np.random.default_rng(len(name)).normal(size=mol.positions.shape))


def moved(mol: ql.Molecule, step: np.ndarray) -> ql.Molecule:
    return mol.with_positions(mol.positions + step)


def turned(mol: ql.Molecule, matrix: np.ndarray, shift: float = 0.0) -> ql.Molecule:
    return mol.with_positions(mol.positions @ matrix.T + shift)


@functools.cache
def predictor(method: ql.Method, iterations: int, names: tuple[str, ...] = NAMES) -> ql.CorrectionPredictor:
    """Return a predictor whose parameters are random: every layer contributes to the correction."""
    config = EquivariantConfig("small", iterations=iterations)
    systems, kinds = make_systems([molecule(name) for name in names], method, config)
    model = ql.CorrectionModel(config, kinds)
    return ql.CorrectionPredictor(model, awake(fitted(method, names, model)), systems)


@functools.cache
def geometries(method: ql.Method, names: tuple[str, ...]):
    systems, _ = make_systems([molecule(name) for name in names], method, EquivariantConfig("small"))
    rng = np.random.default_rng(3)
    shaken = [(s, s.molecule.positions + 0.15 * rng.normal(size=s.molecule.positions.shape)) for s in systems * 3]
    return [system.sample(system.host_integrals(positions)).features for system, positions in shaken]


def fitted(method, names, model):
    return model.fit(model.init(jax.random.key(0)), geometries(method, names))


def awake(params, scale: float = 0.02):
    """Return the parameters plus noise; less of it in the last layers, so that the correction is small."""
    keys = iter(jax.random.split(jax.random.key(1), 100))

    def noise(module, leaf):
        size = 0.02 * scale if module in ("head_out", "head_diagonal") else scale
        return leaf if module == "statistics" else leaf + size * jax.random.normal(next(keys), leaf.shape, leaf.dtype)

    return {module: {name: noise(module, leaf) for name, leaf in leaves.items()} for module, leaves in params.items()}


def sample(predict: ql.CorrectionPredictor, mol: ql.Molecule):
    system, pose = predict.locate(mol)
    return system.sample(system.host_integrals(pose.positions))


def correction(predict: ql.CorrectionPredictor, mol: ql.Molecule) -> np.ndarray:
    """Return the correction of a molecule's guess, without padding."""
    nao = template(mol, predict.method).nao
    return np.asarray(predict.model.correction(predict.params, sample(predict, mol).features))[:nao, :nao]


def jump(energies) -> float:
    """Return a bound of jumps along a path: a jump J gives sixth differences of 10 J, a smooth curve nearly none."""
    return float(np.abs(np.diff(np.asarray(energies, float), 6)).max()) / 10


@pytest.mark.parametrize("iterations", [0, 2])
def test_energy_and_matrices_do_not_change_with_rotation_and_translation(iterations):
    predict, mol = predictor(HF, iterations), molecule("ammonia")
    expected, size = predict(mol), np.abs(correction(predict, mol)).max()
    assert 0.005 < size < 0.1
    assert abs(expected.energy - predict.without_network()(mol).energy) > 1e-7
    for seed in range(3):
        matrix = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
        prediction = predict(turned(mol, matrix, shift=0.7))
        assert prediction.energy == pytest.approx(expected.energy, abs=1e-11)
        np.testing.assert_allclose(prediction.mo_energy, expected.mo_energy, atol=1e-9)
        np.testing.assert_allclose(prediction.dipole, matrix @ expected.dipole, atol=1e-8)


def test_forces_rotate_with_the_molecule():
    predict, mol = predictor(HF, 2), molecule("ammonia")
    matrix = Rotation.random(rng=np.random.default_rng(4)).as_matrix()
    expected = predict.forces(mol) @ matrix.T
    np.testing.assert_allclose(predict.forces(turned(mol, matrix, shift=-0.4)), expected, atol=1e-9)
    np.testing.assert_allclose(np.sum(expected, axis=0), 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "name", "iterations"),
    [(PBE, "ammonia", 2), cases.slow(PBE, "ammonia", 0), cases.slow(SVP, "water", 2), cases.slow(SVP, "water", 0)],
)
def test_energy_does_not_change_where_the_grid_has_the_symmetry(method, name, iterations):
    """Rotations by 90° and reflections; def2-SVP has d functions."""
    predict, mol = predictor(method, iterations, NAMES if method is PBE else ("water",)), molecule(name)
    expected = predict(mol).energy
    assert np.abs(correction(predict, mol)).max() > 0.005
    for matrix in MIRRORS:
        assert predict(turned(mol, matrix)).energy == pytest.approx(expected, abs=MICRO_MEV)


def test_features_are_invariant():
    predict = predictor(HF, 0)
    for name in ("water", "ammonia", "methane"):
        mol = molecule(name)
        matrix = Rotation.random(rng=np.random.default_rng(5)).as_matrix()
        one, two = (sample(predict, geometry).features for geometry in (mol, turned(mol, -matrix, shift=2.0)))
        for field in ("tokens", "pairs", "reach"):
            np.testing.assert_allclose(getattr(one, field), getattr(two, field), atol=1e-6)


@pytest.mark.parametrize("iterations", [0, 2])
def test_any_atoms_may_be_permuted(iterations):
    """Atoms of different elements change places in the first two orders, like atoms in the last one."""
    predict, mol = predictor(HF, iterations), molecule("ammonia")
    expected, delta = predict(mol), correction(predict, mol)
    for order in ([1, 0, 2, 3], [3, 1, 2, 0], [0, 2, 1, 3]):
        permuted = ql.Molecule(tuple(mol.symbols[i] for i in order), mol.positions[order])
        prediction, index = predict(permuted), cases.relabelled(template(mol, HF), order)
        assert prediction.energy == pytest.approx(expected.energy, abs=MICRO_MEV)
        np.testing.assert_allclose(correction(predict, permuted), delta[np.ix_(index, index)], atol=1e-7)
        for field in ("fock", "dm"):
            matrix = getattr(expected, field)[np.ix_(index, index)]
            np.testing.assert_allclose(getattr(prediction, field), matrix, atol=1e-7)
        np.testing.assert_allclose(prediction.charges, expected.charges[order], atol=1e-7)


@pytest.mark.parametrize(
    ("method", "iterations", "name"),
    [
        (PBE, 2, "ammonia"), (HF, 0, "methane"), cases.slow(PBE, 0, "acetylene"), cases.slow(PBE, 2, "acetylene"),
        cases.slow(B3LYP, 2, "methane"),
    ],
)
def test_forces_are_derivatives_of_the_energy(method, iterations, name):
    """A symmetric geometry has degenerate levels, and blocks of matrices that vanish."""
    predict = predictor(method, iterations)
    for mol in (molecule(name), SYMMETRIC[name]):
        forces = predict.forces(mol)
        assert np.isfinite(forces).all()
        for seed in range(2):
            direction = np.random.default_rng(seed).normal(size=mol.positions.shape)
            direction /= np.linalg.norm(direction)
            slope = cases.slope_by_differences(lambda h, d=direction, m=mol: predict(moved(m, h * d)).energy, 2e-3)
            assert np.sum(forces * direction) == pytest.approx(-slope, abs=1e-6)


def test_forces_have_the_symmetry_of_the_molecule():
    predict = predictor(HF, 0)
    forces = predict.forces(SYMMETRIC["methane"])
    np.testing.assert_allclose(forces[0], 0.0, atol=1e-8)
    along = np.sum(forces[1:] * TETRAHEDRON, axis=1)
    np.testing.assert_allclose(forces[1:], along[:, None] * TETRAHEDRON, atol=1e-8)
    np.testing.assert_allclose(along, along[0], atol=1e-8)


def test_forces_are_finite_where_filled_levels_cross_and_the_energy_is_smooth():
    """Methane is stretched along z: one of three equal filled levels crosses the two others, and so do empty ones."""
    mol = SYMMETRIC["methane"]
    for iterations in (0, 2):
        predict = predictor(HF, iterations)
        path = [mol.with_positions(mol.positions * [1, 1, 1 + 0.001 * k]) for k in range(-10, 11)]
        assert jump([predict(point).energy for point in path]) < MILLI_MEV
    assert np.isfinite(predictor(HF, 0).forces(mol)).all()


@pytest.mark.parametrize("iterations", [0, cases.slow(2)])
def test_energy_is_smooth_while_a_bond_is_stretched(iterations):
    predict, mol = predictor(HF, iterations), cases.molecule("water")
    bond = mol.positions[1] - mol.positions[0]
    unit = np.outer([0, 1, 0], bond / np.linalg.norm(bond))
    for centre in (1.755, 2.5, 3.5):  # bohr; at the first one, an element of a matrix changes its sign
        lengths = centre + 0.0025 * np.arange(-8, 9)
        path = [moved(mol, (length - np.linalg.norm(bond)) * unit) for length in lengths]
        assert jump([predict(point).energy for point in path]) < MILLI_MEV


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [0, 2])
def test_energy_is_smooth_while_a_methyl_group_turns(iterations):
    predict, mol = predictor(HF, iterations, ("ethanol",)), ql.Molecule.from_name("ethanol")
    away = np.linalg.norm(mol.positions[:, None] - mol.positions, axis=-1)
    bonds = (away < 2.9) & (away > 0)
    hydrogens = np.array([symbol == "H" for symbol in mol.symbols])
    methyl = next(i for i in range(9) if np.sum(bonds[i] & hydrogens) == 3)
    turning, anchor = np.flatnonzero(bonds[methyl] & hydrogens), np.flatnonzero(bonds[methyl] & ~hydrogens)[0]
    origin = mol.positions[methyl]
    axis = (mol.positions[anchor] - origin) / np.linalg.norm(mol.positions[anchor] - origin)

    def at(degrees):
        positions = mol.positions.copy()
        turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis)
        positions[turning] = origin + turn.apply(positions[turning] - origin)
        return predict(mol.with_positions(positions)).energy

    for centre in (0, 30, 60, 90, 120):
        assert jump([at(centre + 0.25 * k) for k in range(-6, 7)]) < MILLI_MEV
    assert at(60) != pytest.approx(at(0), abs=1e-3)
    assert at(120) == pytest.approx(at(0), abs=1e-4)  # the three hydrogens are nearly equivalent


def test_molecules_far_from_each_other_are_corrected_as_if_alone():
    """The distance is large, because the guess is not neutral in a small basis: its potential decays slowly."""
    predict, one = predictor(HF, 0), SYMMETRIC["methane"]
    far = np.array([1e6, 0.0, 0.0])
    two = turned(molecule("methane"), Rotation.random(rng=np.random.default_rng(6)).as_matrix())
    for other in (one, two):
        pair = ql.Molecule(one.symbols * 2, np.concatenate([one.positions, other.positions + far]))
        with pytest.warns(UserWarning, match="not among"):
            delta = correction(predict, pair)
        with pytest.warns(UserWarning, match="not among"):
            energy = predict(pair).energy
        half = len(delta) // 2
        for block, alone in ((delta[:half, :half], one), (delta[half:, half:], other)):
            np.testing.assert_allclose(block, correction(predict, alone), atol=2e-7)  # float32 network: 5e-8
        np.testing.assert_allclose(delta[half:, :half], 0.0, atol=1e-8)
        assert energy == pytest.approx(predict(one).energy + predict(other).energy, abs=1e-8)


@pytest.mark.parametrize("iterations", [0, 2])
def test_padding_changes_nothing(iterations):
    predict, mol = predictor(HF, iterations), molecule("water")
    kinds, config = predict.model.kinds, predict.config
    alone = make_system(mol, HF, kinds, config)
    shapes = [template(molecule(name), HF, with_kernel=True).shape for name in NAMES]
    large = dataclasses.replace(alone, padding=padding.Padding(padding.union(shapes)._replace(natm=7), nocc=9))
    assert large.template.shape.nao > alone.template.nao
    one, two = (predict.in_frame(system, mol.positions) for system in (alone, large))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-9), one, two)
    samples = [system.sample(system.host_integrals(mol.positions)) for system in (alone, large)]
    small, full = (np.asarray(predict.model.correction(predict.params, each.features)) for each in samples)
    nao = len(small)
    np.testing.assert_allclose(full[:nao, :nao], small, atol=2e-7)  # float32 network: 3e-8
    assert not full[nao:].any()


@pytest.mark.parametrize("iterations", [0, 2])
def test_initial_parameters_change_nothing(iterations):
    predict, mol = predictor(HF, iterations), molecule("water")
    initial = ql.CorrectionPredictor(predict.model, fitted(HF, NAMES, predict.model), predict.systems)
    assert not correction(initial, mol).any()
    assert initial(mol).energy == predict.without_network()(mol).energy


def degenerate_matrix(size: int = 6) -> tuple[np.ndarray, int]:
    """Return a symmetric matrix with degenerate filled and degenerate empty levels, and the number of filled ones."""
    levels = np.array([-2.0, -0.6, -0.6, -0.35, 0.25, 0.25])[:size]
    turn, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(size, size)))
    return (turn * levels) @ turn.T, 4


def test_spectral_functions_are_functions_of_matrices():
    matrix, nocc = degenerate_matrix()
    one = np.eye(len(matrix))
    projector = 0.5 * (one - scipy.linalg.signm(matrix))  # zero is between filled and empty levels
    weights = [np.linalg.inv(one + scipy.linalg.expm((centre * one - matrix) / width)) for centre, width in WINDOWS]
    expected = [projector, projector @ weights[0], (one - projector) @ weights[1], scipy.linalg.tanhm(matrix)]
    np.testing.assert_allclose(spectral_functions(jnp.asarray(matrix), jnp.asarray(nocc)), expected, atol=1e-10)


def test_spectral_functions_have_derivatives_at_degenerate_levels():
    matrix, nocc = degenerate_matrix()
    weights = jnp.asarray(np.random.default_rng(9).normal(size=(4, *matrix.shape)))

    def value(matrix):
        return jnp.sum(weights * spectral_functions(matrix, jnp.asarray(nocc)))

    gradient = jax.grad(value)(jnp.asarray(matrix))
    assert np.isfinite(gradient).all()
    for seed in range(3):
        direction = cases.random_symmetric(len(matrix), seed)
        slope = cases.slope_by_differences(lambda h, d=direction: value(jnp.asarray(matrix + h * d)), 1e-4)
        assert np.sum(gradient * direction) == pytest.approx(slope, abs=1e-7)


def test_standardised_tokens_have_mean_zero_and_spread_of_at_most_one():
    features = geometries(HF, NAMES)
    params = fitted(HF, NAMES, predictor(HF, 0).model)["statistics"]
    rows = [(f.tokens[is_shell], f.kinds[is_shell]) for f in features for is_shell in [np.diagonal(f.reach) > 0]]
    tokens, kinds = (np.concatenate([np.asarray(row[i]) for row in rows]) for i in range(2))
    for kind in np.unique(kinds):
        scaled = (tokens[kinds == kind] - params["token_mean"][kind]) / params["token_spread"][kind]
        np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-3)
        assert scaled.std(axis=0).max() < 1.001
    pairs = np.concatenate([np.asarray(f.pairs)[np.diagonal(f.reach) > 0][:, np.diagonal(f.reach) > 0].reshape(
        -1, f.pairs.shape[-1]) for f in features])
    scaled = (pairs - params["pair_mean"]) / params["pair_spread"]
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-3)
    assert scaled.std(axis=0).max() < 1.001


def test_statistics_of_one_geometry_are_finite():
    """A second geometry is within a few units of the spread, although the first has a spread of zero."""
    predict = predictor(HF, 0)
    initial = predict.model.init(jax.random.key(0))
    params = predict.model.fit(initial, [sample(predict, molecule("water")).features])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert min(np.min(params["statistics"][name]) for name in ("token_spread", "pair_spread")) > 0
    prediction = ql.CorrectionPredictor(predict.model, awake(params), predict.systems)(molecule("water"))
    assert np.isfinite(prediction.energy)


def test_products_of_matrices_keep_all_digits_of_float32_on_any_device():
    """A GPU rounds the factors to 10 bits, unless the compiled function asks for more."""
    model = ql.CorrectionModel(EquivariantConfig("small"), ("H 1s",))
    features = model.network.inputs.blank()
    gradient = jax.grad(lambda params: jnp.sum(model.correction(params, features) ** 2))
    text = jax.jit(gradient).lower(model.init(jax.random.key(0))).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 20
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_an_isomer_with_the_atoms_in_the_same_order_is_not_the_trained_molecule():
    ethanol, ether = cases.molecule("ethanol"), ql.Molecule.from_smiles("COC")
    order = [ether.symbols.index("C"), len(ether.symbols) - 1 - ether.symbols[::-1].index("C")]
    rest = [i for i in range(len(ether.symbols)) if i not in order]
    rest.sort(key=lambda i: ethanol.symbols[2:].index(ether.symbols[i]))
    ether = ql.Molecule(tuple(ether.symbols[i] for i in order + rest), ether.positions[order + rest])
    assert ether.symbols == ethanol.symbols
    config = EquivariantConfig("small", iterations=0)
    systems, kinds = make_systems([ethanol], HF, config)
    predict = ql.CorrectionPredictor(ql.CorrectionModel(config, kinds), None, systems)
    with pytest.warns(UserWarning, match="is not the molecule that the model was trained on"):
        predict.locate(ether)
    stretched = ethanol.positions.copy()
    stretched[list(ethanol.symbols).index("H")] *= 2.5
    broken = ethanol.with_positions(stretched)
    assert broken.bonds < ethanol.bonds
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predict.locate(broken)[0] is systems[0]
