"""Tests of OrbitalGNN: symmetries, forces, labels and training."""

import dataclasses
import functools
import itertools

import ase.units
import jax
import numpy as np
import pytest
import tolerances as tol
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.evaluation import labels
from qptlab.evaluation.labelled import label_errors, prepare
from qptlab.models import operators, orbital_gnn
from qptlab.training.loop import NotFiniteError
from qptlab.training.supervised import Supervised, fit, vocabulary
from qptlab.units import BOHR_ANGSTROM, HARTREE_MEV

METHOD = ql.Method("lda", "sto-3g", grid_level=0, eri="fitted")
GRIDLESS = ql.Method("hf", "sto-3g", eri="fitted")
"""A method without a grid. A coarse grid does not rotate with the molecule, which changes the fifth digit."""

CONFIG = orbital_gnn.GNNConfig(width=16, layers=2, heads=2, radial=3)
NAMES = ("water", "ammonia", "methane")


def displaced(name, seed, sigma=0.05):
    mol = ql.Molecule.from_name(name)
    rng = np.random.default_rng([seed, *name.encode()])
    return mol.with_positions(mol.positions + sigma * rng.normal(size=mol.positions.shape))


def moved(mol, seed=3):
    """Return a rotated, translated molecule with its atoms in a different order, the rotation, and the order."""
    rng = np.random.default_rng(seed)
    order, turn = rng.permutation(len(mol.symbols)), Rotation.random(rng=rng)
    positions = (turn.apply(mol.positions) + rng.normal(size=3))[order]
    return ql.Molecule(tuple(np.array(mol.symbols)[order]), positions), turn, order


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Geometries of three molecules with labels by PySCF."""
    mols = [displaced(name, seed) for seed in range(4) for name in NAMES]
    path = tmp_path_factory.mktemp("labels") / "labels.xyz"
    return labels.label(mols, functools.partial(labels.from_pyscf, method=METHOD), path)


def train(data, config, prepared=None):
    """Train on labels; return the model, the objective and the loss of each update."""
    objective = Supervised(data, CONFIG, prepared=prepared)
    updates = list(ql.train(objective, config))
    return objective.predictor(updates[-1][0].average), objective, [metrics.loss for _, metrics in updates]


def random_model(source, mols):
    """Return a model with random parameters, so that every part of the network contributes."""
    model = vocabulary(mols, dataclasses.replace(CONFIG, source=source))
    data = prepare(model, mols, [unknown(mol) for mol in mols], forces=False)
    scales = fit(model, data)
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x) + 0.2 * rng.normal(size=x.shape), params)
    scales = scales._replace(energy=np.array(0.1), dipole=np.array(0.1), gap=np.array(0.1), charge=np.array(0.1))
    return orbital_gnn.GNNPredictor(model, params, scales, "nothing")


def unknown(mol):
    natm = len(mol.symbols)
    nan = np.full((natm, 2 * orbital_gnn.VALENCE), np.nan)
    return labels.Label(0.0, nan[:, :3], nan[0, :3], nan[:, 0], np.nan, nan)


@pytest.fixture(scope="module", params=list(operators.SOURCES))
def random_predictor(request):
    return random_model(request.param, [ql.Molecule.from_name(name) for name in NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_invariant_under_rotation_translation_and_order_of_atoms(
    random_predictor, name
):
    for mol in (ql.Molecule.from_name(name), displaced(name, 1)):  # methane's p levels are degenerate
        other, turn, order = moved(mol)
        here, there = random_predictor(mol), random_predictor(other)
        assert float(there.energy) == pytest.approx(float(here.energy), abs=1e-8)
        assert float(there.gap) == pytest.approx(float(here.gap), abs=1e-8)
        np.testing.assert_allclose(there.charges, here.charges[order], atol=1e-8)
        np.testing.assert_allclose(there.valence, here.valence[order], atol=1e-8)
        np.testing.assert_allclose(there.dipole, turn.apply(here.dipole), atol=1e-7)
        assert np.sum(there.charges) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_forces_are_derivatives_of_the_predicted_energy(random_predictor, name):
    mol = displaced(name, 2) if name != "methane" else ql.Molecule.from_name(name)
    energy, forces = random_predictor.energy_and_forces(mol)
    assert energy == pytest.approx(float(random_predictor(mol).energy), abs=1e-9)
    direction = np.random.default_rng(4).normal(size=forces.shape)

    def at(step):
        return float(random_predictor(mol.with_positions(mol.positions + step * direction)).energy)

    h = 3e-5  # a network of random numbers bends sharply
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    # With GFN1-xTB the operators' derivatives are differences themselves.
    bound = 1e-6 if random_predictor.model.config.source == "guess" else 1e-3
    assert -np.sum(forces * direction) == pytest.approx(slope, abs=bound * np.abs(forces).max() * direction.size)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-5)


def test_xtbs_fock_matrix_has_its_levels_and_its_density_its_electrons():
    mol = displaced("ethanol", 0)
    found = operators.operators(mol, "gfn1")
    fock, dm, overlap, _ = found.matrices
    values, vectors = np.linalg.eigh(overlap)
    root = vectors / np.sqrt(values) @ vectors.T
    levels = np.linalg.eigvalsh(root @ fock @ root)
    assert levels[10] - levels[9] == pytest.approx(float(found.gap), abs=1e-10)
    assert np.sum(dm * overlap) == pytest.approx(20, abs=1e-6)


def test_the_guess_is_hartree_fock_after_one_diagonalisation():
    mol = displaced("water", 0)
    found = operators.operators(mol, "guess")
    converged = ql.scf(mol, operators.GUESS_METHOD)
    assert 0 < float(found.energy) - float(converged.energy) < 0.3
    np.testing.assert_allclose(found.matrices[2], ql.build_integrals(mol, operators.GUESS_METHOD).overlap, atol=1e-12)


def test_features_are_smooth_where_eigenvalues_of_a_p_shell_cross():
    """Near the symmetric geometry, second differences of the features scale with the square of the step."""
    mol = ql.Molecule.from_name("methane")
    direction = np.random.default_rng(1).normal(size=mol.positions.shape)
    model = vocabulary([mol], CONFIG)

    def features(step):
        return model.graph(mol.with_positions(mol.positions + step * direction)).features

    for size in (1e-3, 1e-4):
        ahead, here, back = (np.asarray(features(k * size).pair) for k in (1, 0, -1))
        assert np.abs(ahead - 2 * here + back).max() < 20 * size**2


def test_labels_are_pyscfs_and_come_back_from_a_file(labelled, tmp_path):
    mols, known, _ = labelled
    for mol, label in itertools.islice(zip(mols, known, strict=True), 3):
        ours = ql.scf(mol, METHOD)
        assert label.energy == pytest.approx(float(ours.energy), abs=tol.SCF_ENERGY)
        np.testing.assert_allclose(label.forces, ql.forces(mol, METHOD, ours.fock), atol=tol.FORCE)
        assert label.charges.sum() == pytest.approx(0, abs=1e-9)
        valence = label.valence.reshape(len(mol.symbols), 2, -1)
        assert (valence > -1e-9).all()
        assert (valence < 2 + 1e-9).all()
        assert (np.diff(valence, axis=-1) < 1e-9).all()
        other, turn, order = moved(mol)
        here, there = (labels.from_pyscf(each, GRIDLESS) for each in (mol, other))
        np.testing.assert_allclose(there.valence, here.valence[order], atol=1e-5)
        np.testing.assert_allclose(there.dipole, turn.apply(here.dipole), atol=1e-4)
    path = tmp_path / "labels.xyz"
    labels.write(path, ql.LabelledSet(mols, known))
    back, read, _ = labels.read(path)
    assert [mol.symbols for mol in back] == [mol.symbols for mol in mols]
    for a, b in zip(known, read, strict=True):
        for mine, theirs in zip(a, b, strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-6)


def test_labelling_continues_where_it_was_stopped(labelled, tmp_path):
    mols, known, _ = labelled
    path, made = tmp_path / "labels.xyz", []

    def maker(mol):
        made.append(mol)
        return known[next(i for i, each in enumerate(mols) if each is mol)]

    labels.label(mols[:6], maker, path)
    found, again, _ = labels.label(mols, maker, path)
    assert len(made) == len(found) == len(again) == len(mols)


def test_a_label_by_a_model_holds_its_prediction(trained):
    mol = displaced("water", 5, 0.02)
    found = labels.from_model(mol, trained.predictor)
    truth = labels.from_pyscf(mol, trained.predictor.method)
    assert found.energy == pytest.approx(float(trained.predictor(mol).energy), abs=1e-12)
    assert found.energy == pytest.approx(truth.energy, abs=0.05)
    np.testing.assert_allclose(found.valence, truth.valence, atol=0.05)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n\nH 0 0 0\n", "Expected an energy in frame 0"),
        ("nonsense", "Expected the number of atoms, got .nonsense. in line 1"),
        ("", "Expected frames with energies"),
    ],
)
def test_files_without_labels_are_refused(tmp_path, text, expected):
    path = tmp_path / "mine.xyz"
    path.write_text(text)
    with pytest.raises(ql.InputError, match=expected):
        labels.read(path)


FRAME = '2\nProperties=species:S:1:pos:R:3{} energy=-31.0 {} pbc="{}"\nH 0 0 0 {}\nH 0 0 0.74 {}\n'
"""Frame as different programs write it: further columns, further properties, periodic or not."""


@pytest.mark.parametrize(
    ("columns", "said", "pbc", "values", "expected"),
    [
        ("", "dipole=1.8", "F F F", "", r"Expected 3 numbers as dipole of frame 0 of .*, got an array of shape \(\)"),
        ("", 'dipole="1 2"', "F F F", "", "dipole of frame 0"),
        ("", "gap_ev=wide", "F F F", "", "Expected one number as gap_ev of frame 0"),
        (":valence:R:1", "", "F F F", "1.0", "Expected 2 × 18 numbers as valence of frame 0"),
        ("", "", "T T T", "", "Expected a molecule in frame 0 of .*, got a periodic system"),
    ],
)
def test_labels_of_another_shape_are_refused(tmp_path, columns, said, pbc, values, expected):
    path = tmp_path / "mine.xyz"
    path.write_text(FRAME.format(columns, said, pbc, values, values))
    with pytest.raises(ql.InputError, match=expected):
        labels.read(path)


def test_a_file_is_continued_only_with_labels_of_the_same_theory(labelled, tmp_path):
    mols, known = ([each[0]] * 2 for each in labelled[:2])
    path = tmp_path / "labels.xyz"
    labels.write(path, ql.LabelledSet(mols[:1], known[:1], "PBE/def2-svp"))
    with pytest.raises(ql.InputError, match=r"Expected labels of LDA/sto-3g in .*, got labels of PBE/def2-svp"):
        labels.label(mols, lambda mol: known[0], path, theory="LDA/sto-3g")
    labels.write(path, ql.LabelledSet(mols[:1], known[:1]))
    with pytest.raises(ql.InputError, match="got labels of an unnamed theory"):
        labels.label(mols, lambda mol: known[0], path, theory="LDA/sto-3g")


@pytest.mark.parametrize("name", ["", "two\nlines", "water 3"])
def test_labels_of_molecules_with_any_name_are_read_back(labelled, tmp_path, name):
    mol, label = dataclasses.replace(labelled[0][0], name=name), labelled[1][0]
    path = tmp_path / "labels.xyz"
    labels.write(path, ql.LabelledSet([mol], [label]))
    path.write_text(path.read_text().rstrip("\n"))
    labels.write(path, ql.LabelledSet([mol], [label]), append=True)
    mols, known, _ = labels.read(path)
    assert [each.name for each in mols] == [" ".join(name.split())] * 2
    for each, found in zip(mols, known, strict=True):
        np.testing.assert_allclose(each.positions, mol.positions, atol=1e-7)
        assert found.energy == pytest.approx(label.energy, abs=1e-7)


def test_a_reason_is_given_where_nothing_could_be_labelled(tmp_path):
    maker, told = functools.partial(labels.from_pyscf, method=METHOD), []
    radical, path = ql.Molecule.parse("[CH3]"), tmp_path / "labels.xyz"
    with pytest.raises(ql.InputError, match=r"None of the 1 geometries can be labelled: .*, got CH3 with 1 unpaired"):
        labels.label([radical], maker, path, refused=told.append)
    assert len(told) == 1
    assert not path.exists()


def test_an_atom_whose_orbitals_are_all_filled_has_no_gap():
    helium = ql.Molecule(("He",), np.zeros((1, 3)))
    assert np.isnan(labels.from_pyscf(helium, METHOD).gap)
    for source in operators.SOURCES:
        with pytest.raises(ql.InputError, match="fills all"):
            operators.operators(helium, source)


def test_a_prediction_of_nan_gives_an_error_of_nan(labelled):
    mols, known, _ = labelled
    predictor = random_model("gfn1", mols[:3])
    data = prepare(predictor.model, mols[:3], known[:3], forces=False)
    spoilt = data._replace(graphs=data.graphs._replace(energy=data.graphs.energy * [np.nan, 1, 1]))
    assert np.isfinite(label_errors(predictor, data).energy_mae_mev)
    assert np.isnan(label_errors(predictor, spoilt).energy_mae_mev)
    whole = prepare(vocabulary(mols, CONFIG), mols, known, forces=False)
    features = whole.graphs.features._replace(pair=whole.graphs.features.pair * np.nan)
    config = ql.TrainConfig.supervised(steps=50, tasks=ql.TaskWeights.only("energy"))
    with pytest.raises(NotFiniteError, match="updates in a row were not finite") as caught:
        train(labelled, config, whole._replace(graphs=whole.graphs._replace(features=features)))
    assert len(caught.value.geometries) == config.batch


def test_missing_labels_are_not_learned(labelled):
    bare = [label._replace(forces=label.forces * np.nan, gap=np.nan) for label in labelled.labels]
    predictor, objective, _ = train(labelled._replace(labels=bare), ql.TrainConfig.supervised(steps=20))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(predictor.params))
    errors = label_errors(predictor, prepare(objective.model, labelled.molecules, bare, forces=True))
    assert errors.gap_mae_ev is None
    assert errors.forces_mae_mev_angstrom is None
    assert np.isfinite(errors.energy_mae_mev)


@pytest.fixture(scope="module")
def learned(labelled):
    """A short training, its data, and its losses."""
    data = prepare(vocabulary(labelled.molecules, CONFIG), labelled.molecules, labelled.labels, forces=True)
    predictor, _, losses = train(labelled, ql.TrainConfig.supervised(steps=400), data)
    return predictor, data, losses


def test_training_brings_every_error_below_that_of_the_low_cost_method(learned):
    predictor, data, losses = learned
    plain, ours = (label_errors(model, data).to_dict() for model in (predictor.without_network(), predictor))
    assert len(losses) == 400
    assert np.mean(losses[-50:]) < 0.3 * np.mean(losses[:50])
    assert {"energy_mae_mev", "forces_mae_mev_angstrom", "dipole_mae_debye", "charge_mae", "gap_mae_ev"} < set(ours)
    for name in set(ours) - {"standard_errors"}:
        assert ours[name] < 0.7 * plain[name], name


def test_a_trained_model_has_the_errors_of_its_training(learned, labelled):
    predictor, data, _ = learned
    for index, mol in enumerate(labelled.molecules[:3]):
        energy, forces = predictor.energy_and_forces(mol)
        one = jax.tree.map(lambda x, index=index: x[index : index + 1], data)
        judged = label_errors(predictor, one)
        label = labelled.labels[index]
        assert judged.energy_mae_mev == pytest.approx(HARTREE_MEV * abs(energy - label.energy), abs=1e-3)
        pulls = np.abs(forces - label.forces).mean() * HARTREE_MEV / BOHR_ANGSTROM
        assert judged.forces_mae_mev_angstrom == pytest.approx(pulls, rel=1e-3, abs=1e-2)


def test_a_saved_model_is_loaded_and_other_files_are_refused(learned, tmp_path):
    predictor, path = learned[0], tmp_path / "model.h5"
    predictor.save(path)
    mol = displaced("ammonia", 9)
    assert float(ql.load(path)(mol).energy) == float(predictor(mol).energy)
    assert [each.name for each in tmp_path.iterdir()] == ["model.h5"]
    other = tmp_path / "other.h5"
    other.write_text("no")
    with pytest.raises(ql.InputError, match="Expected a model file"):
        ql.load(other)


def test_a_model_relaxes_molecules_and_works_in_ase(random_predictor):
    """The minimum that is found is lower than its surroundings."""
    mol = displaced("water", 1)
    model = random_predictor.without_network()
    found = ql.relax(mol, model, fmax=0.01)
    assert found.converged
    assert found.fmax <= 0.01
    assert found.energy == pytest.approx(float(model(found.molecule).energy), abs=1e-9)
    rng = np.random.default_rng(2)
    for _ in range(3):
        other = found.molecule.positions + 0.02 * rng.normal(size=mol.positions.shape)
        assert float(model(mol.with_positions(other)).energy) > found.energy
    atoms = moved(mol)[0].to_ase()
    atoms.calc = ql.ModelCalculator(random_predictor)
    here = random_predictor(mol)
    assert atoms.get_potential_energy() == pytest.approx(float(here.energy) * ase.units.Ha, abs=1e-6)
    length = np.linalg.norm(atoms.get_dipole_moment()) / ase.units.Bohr
    assert length == pytest.approx(np.linalg.norm(here.dipole), abs=1e-6)
    assert atoms.get_forces().shape == (3, 3)


def test_a_search_that_cannot_be_done_or_does_not_end_says_so(random_predictor):
    mol = displaced("water", 1)
    with pytest.raises(ql.InputError, match=r"use 0\.01 and 200"):
        ql.relax(mol, random_predictor, fmax=0)
    assert not ql.relax(mol, random_predictor, steps=1).converged


def test_the_same_seed_gives_the_same_model(labelled):
    config = ql.TrainConfig.supervised(steps=10, tasks=ql.TaskWeights(forces=0.0))
    first, second = (train(labelled, config)[0] for _ in range(2))
    mol = labelled.molecules[0]
    assert float(first(mol).energy) == float(second(mol).energy)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: orbital_gnn.GNNConfig("pm3"), "Expected one of gfn1, guess as source of operators, got 'pm3'"),
        (lambda: orbital_gnn.GNNConfig(width=10), "Expected a width that is a multiple of the 4 heads, got 10"),
        (lambda: ql.TaskWeights(energy=-1.0), "Expected a weight of 0 or more for energy, got -1.0"),
        (lambda: ql.TaskWeights(0, 0, 0, 0, 0, 0), "Expected a positive weight"),
        (lambda: ql.TaskWeights.only("energy", "colour"), "got colour"),
        (lambda: operators.operators(ql.Molecule.parse("[CH3]"), "gfn1"), "1 unpaired electrons"),
        (lambda: labels.from_pyscf(ql.Molecule.parse("[CH3]"), METHOD), "Expected a closed shell of H to Ar"),
    ],
)
def test_unusable_input_is_refused_in_a_sentence(action, said):
    with pytest.raises(ql.InputError, match=said):
        action()


def test_an_element_that_was_not_trained_on_is_refused(random_predictor):
    with pytest.raises(ql.InputError, match=r"trained on \(C, H, N, O\), got F; use"):
        random_predictor(ql.Molecule.from_smiles("CF"))
