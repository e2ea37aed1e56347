"""Streams of geometries: seeded, endless, and validation apart from training."""

import itertools

import numpy as np
import pytest

import qptlab as ql
from qptlab.geometries import Sampling, sample
from qptlab.units import BOHR_ANGSTROM

WATER = ql.Molecule.from_name("water")


def first(sampling, count=3, seed=0, mol=WATER, **kind):
    return np.array(list(itertools.islice(sample(mol, sampling, seed, **kind), count)))


@pytest.mark.parametrize("sampler", ["md", "perturb"])
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
    with pytest.raises(ql.InputError, match=r"frame 0 of .*frames.xyz is H2O"):
        first(Sampling("file", path=str(frames_file)), mol=ql.Molecule.from_name("methane"))
    few = tmp_path / "few.xyz"
    few.write_text(WATER.to_xyz() * 4)
    with pytest.raises(ql.InputError, match=r"few.xyz holds 4 frames; at least 5"):
        first(Sampling("file", path=str(few)))


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
