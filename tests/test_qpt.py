"""Tests of QPT: the untrained model, gradients, forces, symmetries and refused input."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft.energy import energy
from qptlab.dft.grid import ao_rotation
from qptlab.dft.scf import guess_density
from qptlab.training.label_free import loss

METHOD = ql.Method("pbe", "sto-3g", grid_level=0)


def sample(name, iterations, seed=0):
    _, system = cases.model(name, METHOD, iterations)
    rng = np.random.default_rng(seed)
    # Methane is exactly symmetric, so that it has degenerate levels.
    shake = 0.0 if name == "methane" else 0.05
    reference = system.frame.reference_positions
    positions = reference + shake * rng.normal(size=reference.shape)
    return system.sample(system.host_integrals(positions))


@pytest.mark.parametrize("iterations", [cases.slow(0), cases.slow(1), 3])
def test_an_untrained_model_is_plain_dft_iteration(iterations):
    """The iterations are written out here: densities are mixed by one half, except in the last iteration."""
    geometry = sample("water", iterations)
    qpt, _ = cases.model("water", METHOD, iterations)
    ints = geometry.ints
    dm = ql.density_from_fock(ql.fock(ints.dm_guess, ints), ints)
    for remaining in reversed(range(iterations)):
        new = ql.density_from_fock(ql.fock(dm, ints), ints)
        dm = new if remaining == 0 else (dm + new) / 2
    expected = float(energy(dm, ints))
    fresh = qpt.init(jax.random.key(5))
    for params in (None, fresh):
        prediction = qpt.compiled_predict(params, geometry)
        assert float(prediction.energy) == pytest.approx(expected, abs=tol.ENERGY_OF_DENSITY)


@pytest.mark.parametrize(
    ("name", "iterations", "kind"),
    [
        ("water", 0, "energy"), cases.slow("methane", 1, "energy"), cases.slow("water", 2, "energy"),
        cases.slow("methane", 3, "energy"), cases.slow("methane", 0, "self-consistency"),
        cases.slow("water", 1, "self-consistency"),
    ],
)
def test_gradient_of_the_loss_equals_finite_differences(name, iterations, kind):
    """The derivative is along a random direction of all parameters. Methane has triply degenerate levels."""
    kinds = cases.model(name, METHOD, iterations)[0].kinds
    qpt = ql.CorrectionModel(ql.QPTConfig("micro", "float64", iterations=iterations), kinds)
    batch = (sample(name, iterations), sample(name, iterations, seed=1))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), cases.parameters(name, METHOD, iterations))
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.02), params)

    @jax.jit
    def along(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return sum(loss(qpt.correction(moved, geometry.features), geometry, qpt, kind)[0] for geometry in batch)

    slope = float(jax.jit(jax.grad(along))(0.0))
    difference = cases.slope_by_differences(along, 2e-3)
    assert abs(slope) > 1e-6
    assert slope == pytest.approx(difference, rel=tol.LOSS_FINITE_DIFFERENCE)


@pytest.mark.parametrize(
    ("has_network", "rel"),
    [(False, tol.LOSS_FINITE_DIFFERENCE), cases.slow(True, 1e-4)],  # rounding of a float32 network, over the step
)
def test_forces_are_derivatives_of_the_predicted_energy_and_rotate_with_the_molecule(has_network, rel):
    """The density is far from self-consistent, so that every term of the derivative contributes."""
    qpt, system = cases.model("water", METHOD, 1)
    predict = ql.CorrectionPredictor(qpt, cases.parameters("water", METHOD, 1) if has_network else None, [system])
    mol = cases.molecule("water", displaced=0.1)
    direction = np.random.default_rng(6).normal(size=mol.positions.shape)

    def along(step):
        return predict(mol.with_positions(mol.positions + step * direction)).energy

    forces = predict.forces(mol)
    assert -np.sum(forces * direction) == pytest.approx(cases.slope_by_differences(along, 0.01), rel=rel)
    turn = Rotation.random(rng=np.random.default_rng(7))
    turned = predict.forces(mol.with_positions(turn.apply(mol.positions) + 1.0))
    np.testing.assert_allclose(turned, turn.apply(forces), atol=1e-6)


@pytest.mark.parametrize("guess", ["core", "random", "atomic-density", cases.slow("atomic-potential")])
def test_iterations_start_from_every_guess_with_and_without_padding(guess):
    mols = [ql.Molecule.from_name("water"), ql.Molecule.from_name("ammonia")]
    config = ql.QPTConfig("micro", iterations=0, guess=guess)
    (_, padded), kinds = ql.make_systems(mols[::-1], METHOD, config)
    (alone,), _ = ql.make_systems(mols[:1], METHOD, config)
    ints = alone.template.build(alone.frame.reference_positions)
    dm = guess_density(guess, alone.template, ints)
    expected = energy(ql.density_from_fock(ql.fock(dm, ints), ints), ints)
    qpt = ql.CorrectionModel(config, kinds)
    for system in (alone, padded):
        found = ql.CorrectionPredictor(qpt, None, [system]).in_frame(system, alone.frame.reference_positions)
        assert float(found.energy) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("guess", ["minao", "core"])
def test_forces_of_a_prediction_are_finite_where_levels_of_the_overlap_are_degenerate(guess):
    """An exactly linear molecule has pairs of equal π levels; eigenvectors have no derivative there."""
    method = ql.Method("lda", "6-31g*", grid_level=0)
    mol = ql.Molecule(("H", "F"), np.array([[0, 0, 0], [0, 0, 1.8]]))
    config = ql.QPTConfig("micro", "float64", iterations=0, guess=guess)
    systems, kinds = ql.make_systems([mol], method, config)
    qpt = ql.CorrectionModel(config, kinds)
    predict = ql.CorrectionPredictor(qpt, cases.awake(qpt.init(jax.random.key(0))), systems)
    direction = np.array([[0, 0, -0.5], [0, 0, 0.5]])

    def along(step):
        return predict(mol.with_positions(mol.positions + step * direction)).energy

    slope = -np.sum(predict.forces(mol) * direction)
    assert slope == pytest.approx(cases.slope_by_differences(along, 0.01), rel=1e-4)


def test_isomers_are_distinguished_and_new_molecules_give_a_warning():
    """Isomers may have the same order of elements. A stretched bond does not make a different molecule."""
    mols = [ql.Molecule.from_smiles(smiles) for smiles in ("CCCO", "CC(C)O", "O")]
    systems, kinds = ql.make_systems(mols, ql.Method("lda", "sto-3g", grid_level=0), cases.QUICK_MODEL)
    model = ql.CorrectionModel(cases.QUICK_MODEL, kinds)
    predict = ql.CorrectionPredictor(model, None, systems)
    for mol, system in zip(mols, systems, strict=True):
        assert predict.locate(mol)[0] is system
    stretched = mols[2].with_positions(mols[2].positions * 1.5)
    assert predict.locate(stretched)[0] is systems[2]
    for _ in range(2):
        with pytest.warns(UserWarning, match="CH4O is not among the 3 molecules"):
            system = predict.locate(ql.Molecule.from_smiles("CO"))[0]
        assert system not in systems
    assert len(predict.systems) == 3


def test_a_new_molecule_has_the_form_of_integrals_of_the_training_set():
    """`auto` chooses fitted integrals for benzene, but a model of exact integrals uses exact ones."""
    mols = [ql.Molecule.from_name(name) for name in ("water", "methane")]
    systems, kinds = ql.make_systems(mols, ql.Method("pbe", "def2-svp"), cases.QUICK_MODEL)
    model = ql.CorrectionModel(cases.QUICK_MODEL, kinds)
    predict = ql.CorrectionPredictor(model, None, systems)
    with pytest.warns(UserWarning, match="C6H6 is not among"):
        system = predict.locate(ql.Molecule.from_name("benzene"))[0]
    assert system.template.eri == systems[0].template.eri == "exact"


def test_map_gives_the_same_predictions_as_single_calls():
    predict = cases.predictor("water", METHOD, 0)
    mols = [cases.molecule("water", displaced=d) for d in (0.0, 0.05, 0.1)]
    for prediction, mol in zip(predict.map(mols), mols, strict=True):
        np.testing.assert_allclose(prediction.fock, predict(mol).fock, atol=tol.ROUNDING)


def test_open_shells_are_refused():
    with pytest.raises(ql.InputError, match="Expected a closed-shell molecule, got CH3 with 1 unpaired electrons"):
        ql.make_systems([cases.molecule("CH3")], METHOD, cases.QUICK_MODEL)


def test_the_energy_of_a_prediction_is_never_below_the_solution():
    """The variational principle: the converged energy is a lower bound for every correction."""
    geometry = sample("water", 0)
    qpt, _ = cases.model("water", METHOD, 0)
    floor = float(ql.scf(_as_molecule("water", geometry), METHOD).energy)
    for scale in (0.005, 0.02, 0.1):
        found = qpt.compiled_predict(cases.parameters("water", METHOD, 0, scale), geometry)
        assert float(found.energy) > floor - tol.SCF_ENERGY
        assert float(found.residual) > 1e-6


def test_the_correction_is_symmetric_and_can_raise_and_lower_levels():
    qpt, _ = cases.model("water", METHOD, 0)
    delta = np.asarray(qpt.correction(cases.parameters("water", METHOD, 0), sample("water", 0).features))
    np.testing.assert_allclose(delta, delta.T, atol=1e-6)
    levels = np.linalg.eigvalsh(delta)
    assert levels[0] < -1e-4
    assert levels[-1] > 1e-4


@pytest.mark.parametrize("name", ["water", "ammonia", cases.slow("ethanol")])
def test_predictions_are_equivariant_under_rotation_translation_and_exchange_of_like_atoms(name):
    """Energies do not change. Matrices rotate with the AOs and follow the order of the atoms."""
    rng = np.random.default_rng(4)
    predict = cases.predictor(name, METHOD, 1)
    mol = cases.molecule(name, displaced=0.05)
    rotation = Rotation.random(rng=rng)
    symbols = np.array(mol.symbols)
    order = np.arange(len(symbols))
    for symbol in set(symbols.tolist()):
        order[symbols == symbol] = rng.permutation(np.flatnonzero(symbols == symbol))
    moved = (rotation.apply(mol.positions) + rng.normal(size=3) * 4)[order]
    prediction, moved_prediction = predict(mol), predict(mol.with_positions(moved))

    assert float(moved_prediction.energy) == pytest.approx(float(prediction.energy), abs=tol.EQUIVARIANCE)
    template = predict.systems[0].template
    rotate = np.asarray(ao_rotation(jnp.asarray(rotation.as_matrix()), template.basis))
    ao_order = cases.relabelled(template, order.tolist())
    for matrix in ("fock", "dm"):
        expected = (rotate @ getattr(prediction, matrix) @ rotate.T)[np.ix_(ao_order, ao_order)]
        np.testing.assert_allclose(getattr(moved_prediction, matrix), expected, atol=tol.EQUIVARIANCE)
    np.testing.assert_allclose(moved_prediction.mo_energy, prediction.mo_energy, atol=tol.EQUIVARIANCE)


@pytest.mark.slow
def test_atoms_may_be_in_any_order_of_elements():
    predict = cases.predictor("ethanol", METHOD, 1)
    mol = cases.molecule("ethanol", displaced=0.05)
    order = np.random.default_rng(0).permutation(len(mol.symbols))
    other = ql.Molecule(tuple(np.array(mol.symbols)[order].tolist()), mol.positions[order])
    prediction, moved_prediction = predict(mol), predict(other)
    assert float(moved_prediction.energy) == pytest.approx(float(prediction.energy), abs=tol.EQUIVARIANCE)
    # Matrices are over the AOs of the input: in PySCF's order, the density has the right number of electrons.
    overlap = cases.rks(other, METHOD).get_ovlp()
    assert float(np.sum(moved_prediction.dm * overlap)) == pytest.approx(other.nelectron, abs=1e-8)
    mean_field = cases.rks(other, METHOD)
    np.testing.assert_allclose(mean_field.get_hcore().shape, moved_prediction.fock.shape)
    coefficients = moved_prediction.mo_coeff
    np.testing.assert_allclose(coefficients.T @ overlap @ coefficients, np.eye(len(overlap)), atol=1e-8)


def test_predicted_orbitals_diagonalise_the_predicted_fock_matrix():
    predict = cases.predictor("water", METHOD, 0)
    mol = cases.molecule("water", displaced=0.05)
    found = predict(mol)
    overlap = cases.rks(mol, METHOD).get_ovlp()
    left, right = found.fock @ found.mo_coeff, overlap @ found.mo_coeff * found.mo_energy
    np.testing.assert_allclose(left, right, atol=1e-8)


def test_different_geometries_have_different_corrections():
    """The correction depends on the geometry."""
    predict = cases.predictor("water", METHOD, 0)
    mol = ql.Molecule.from_name("water")
    base, moved = predict(mol), predict(mol.with_positions(mol.positions * 1.05))
    assert not np.allclose(base.fock - moved.fock, 0, atol=1e-3)


@pytest.mark.parametrize(
    ("preset", "iterations", "message"),
    [
        ("huge", 1, "Expected one of micro, tiny, small, .* as preset, got 'huge'"),
        ("micro", -1, "0 to 16"),
        ("micro", 17, "17"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(preset, iterations, message):
    with pytest.raises(ql.InputError, match=message):
        ql.QPTConfig(preset, iterations=iterations)


@pytest.mark.parametrize(
    ("preset", "low", "high"), [("micro", 0.8e6, 1.3e6), ("tiny", 4.5e6, 6e6), ("medium", 300e6, 310e6)]
)
def test_presets_have_the_size_that_they_claim(preset, low, high):
    qpt = ql.CorrectionModel(ql.QPTConfig(preset), cases.model("water", METHOD, 0)[0].kinds)
    shapes = jax.eval_shape(qpt.init, jax.random.key(0))
    assert low < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < high


def _as_molecule(name, geometry):
    return ql.Molecule.from_name(name).with_positions(np.asarray(geometry.ints.positions))
