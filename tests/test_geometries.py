"""Streams of geometries: seeded, endless, and validation apart from training."""

import itertools

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.models.predictor import energy_and_slope
from qptlab.sampling import geometries
from qptlab.sampling.geometries import Sampling, Walk, sample
from qptlab.units import BOHR_ANGSTROM

WATER = ql.Molecule.from_name("water")


def first(sampling, count=3, seed=0, mol=WATER, **kind):
    return np.array(list(itertools.islice(sample(mol, sampling, seed, **kind), count)))


def _dihedral(places):
    """Of four atoms in a chain, radians."""
    one, two, three = np.diff(places, axis=0)
    left, right = np.cross(one, two), np.cross(two, three)
    return np.arctan2(np.linalg.norm(two) * one @ right, left @ right)


@pytest.mark.parametrize("sampler", ["md", "modes", "conformers", "perturb"])
def test_a_seed_gives_one_stream_and_another_seed_another(sampler):
    sampling = Sampling(sampler)
    np.testing.assert_array_equal(first(sampling), first(sampling))
    assert np.abs(first(sampling) - first(sampling, seed=1)).max() > 1e-3


@pytest.mark.parametrize("sampler", ["md", "perturb"])
def test_validation_geometries_are_never_trained_on(sampler):
    training, held_out = first(Sampling(sampler), 20), first(Sampling(sampler), 20, validation=True)
    distance = np.abs(training[:, None] - held_out).max(axis=(2, 3))
    assert distance.min() > 1e-3


def test_displacements_have_the_spread_asked_for():
    shifts = first(Sampling("perturb", sigma_bohr=0.1), 2000) - WATER.positions
    assert shifts.std() == pytest.approx(0.1, rel=0.03)
    assert abs(shifts.mean()) < 0.005


@pytest.mark.slow
def test_dynamics_has_the_temperature_asked_for():
    """Distances between atoms held by springs spread as the square root of the temperature."""
    def spread(temperature):
        frames = first(Sampling("md", temperature), 400)
        distances = np.linalg.norm(frames[:, [1, 2, 2]] - frames[:, [0, 0, 1]], axis=-1)
        return np.sqrt(distances.var(axis=0).sum())

    assert spread(500.0) / spread(125.0) == pytest.approx(2.0, rel=0.3)


def test_dynamics_keeps_the_molecule_whole_and_at_rest():
    mol = ql.Molecule.from_name("ethanol")
    frames = first(Sampling("md", 1000.0), 60, mol=mol)
    masses = mol.to_ase().get_masses()
    centre = np.einsum("a,fax->fx", masses, frames) / masses.sum()
    bonds = np.linalg.norm(frames[:, 0] - frames[:, 1], axis=-1) * BOHR_ANGSTROM
    assert np.ptp(centre, axis=0).max() < 1e-3
    assert (bonds < 1.9).all()


@pytest.mark.slow
def test_a_walk_visits_the_boltzmann_distribution_of_the_models_energy():
    """Equipartition: the mean of displacement times slope is kT for each of the three vibrations of water."""
    qpt, system = cases.model("water", cases.QUICK_METHOD, 2)
    evaluate = energy_and_slope(qpt, system)
    places, slopes = [], []
    for chain in range(3):
        walk = Walk(qpt, system, Sampling("model", temperature=1000.0), [0, chain])
        for step in range(90):
            place = walk.move(None)
            if step >= 10:
                places.append(place)
                slopes.append(evaluate(place, None)[1])
    displacement = np.array(places) - np.mean(places, axis=0)
    found = np.sum(displacement * slopes, axis=(1, 2)).mean() / (3.1668e-6 * 1000.0)
    assert found == pytest.approx(3.0, rel=0.25)


@pytest.mark.parametrize("sampler", ["modes", "torsions", "conformers"])
def test_other_samplers_keep_the_molecule_and_move_what_they_say(sampler):
    mol = ql.Molecule.from_name("ethanol")
    frames = first(Sampling(sampler), 30, mol=mol)
    assert all(mol.bonds == mol.with_positions(frame).bonds for frame in frames)
    dihedral = [_dihedral(frame[[0, 1, 2, 8]]) for frame in frames]
    spread = np.hypot(np.mean(np.cos(dihedral)), np.mean(np.sin(dihedral)))
    assert spread > 0.9 if sampler == "modes" else spread < 0.9, "torsions turn, vibrations do not"


@pytest.mark.parametrize("sampler", ["md", "modes", "torsions", "conformers", "perturb"])
def test_a_stream_can_be_entered_at_any_place(sampler, monkeypatch):
    """In its second segment, too."""
    monkeypatch.setattr(geometries, "SEGMENT", 3)
    mol = ql.Molecule.from_name("ethanol")
    whole = first(Sampling(sampler), 8, mol=mol)
    np.testing.assert_array_equal(first(Sampling(sampler), 3, mol=mol, start=5), whole[5:])


@pytest.fixture
def frames_file(tmp_path):
    path = tmp_path / "frames.xyz"
    mols = [WATER.with_positions(WATER.positions * (1 + 0.01 * i)) for i in range(10)]
    path.write_text("".join(mol.to_xyz() for mol in mols))
    return path


def test_every_fifth_frame_of_a_file_is_held_out(frames_file):
    sampling = Sampling("file", path=str(frames_file))
    training, held_out = first(sampling, 16), first(sampling, 4, validation=True)
    scale = lambda frames: {round(float(np.linalg.norm(f) / np.linalg.norm(WATER.positions)), 3) for f in frames}  # noqa: E731
    assert scale(training) == {1.0, 1.01, 1.02, 1.03, 1.05, 1.06, 1.07, 1.08}
    assert scale(held_out) == {1.04, 1.09}


def test_a_file_of_another_molecule_or_too_few_frames_is_refused(frames_file, tmp_path):
    with pytest.raises(ql.InputError, match=r"frames.xyz holds 0 frames of CH4; at least 5"):
        first(Sampling("file", path=str(frames_file)), mol=ql.Molecule.from_name("methane"))
    few = tmp_path / "few.xyz"
    few.write_text(WATER.to_xyz() * 4)
    with pytest.raises(ql.InputError, match=r"few.xyz holds 4 frames of H2O; at least 5"):
        first(Sampling("file", path=str(few)))


def test_frames_in_another_order_are_put_in_order_and_isomers_left_out(tmp_path):
    ethanol, ether = ql.Molecule.from_name("ethanol"), ql.Molecule.from_smiles("COC")
    order = np.random.default_rng(0).permutation(9)
    shuffled = ql.Molecule(tuple(np.array(ethanol.symbols)[order].tolist()), ethanol.positions[order])
    path = tmp_path / "both.xyz"
    path.write_text("".join(mol.to_xyz() for mol in [shuffled, ether] * 5))
    for mol in (ethanol, ether):
        frames = first(Sampling("file", path=str(path)), 4, mol=mol)
        assert all(mol.with_positions(frame).bonds == mol.bonds for frame in frames)
    # One hydrogen far away: no geometry of this molecule, and that is said.
    torn = ethanol.positions + np.eye(9)[:, 8:] * np.array([9.0, 0.0, 0.0])
    path.write_text("".join(mol.to_xyz() for mol in [*[ethanol] * 5, ethanol.with_positions(torn)]))
    with pytest.warns(UserWarning, match=r"5 frames of C2H6O .* used. 1 others, frame 5 the first, have other bonds"):
        first(Sampling("file", path=str(path)), mol=ethanol)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"sampler": "dream"}, "'dream'"),
        ({"temperature": 0.0}, "temperature 0.0 K"),
        ({"temperature": float("nan")}, "temperature nan K"),
        ({"sigma_bohr": -1.0}, "-1.0 bohr"),
        ({"sampler": "file"}, "needs the path"),
    ],
)
def test_choices_that_cannot_be_used_are_refused(choice, said):
    with pytest.raises(ql.InputError, match=said):
        Sampling(**choice)
