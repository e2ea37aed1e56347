"""Tests of the molecule's frame: a geometry has one pose, for any position, orientation and order of its atoms."""

import cases
import numpy as np
import pytest
import tolerances as tol
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.models.frame import ReferenceFrame, standard_orientation

NAMES = ["hydrogen", "water", "ammonia", "methane", "ethanol", "benzene", "alanine dipeptide"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [1, 2])
def test_rotated_translated_and_relabelled_geometries_have_one_pose(name, seed):
    rng = np.random.default_rng(seed)
    frame = ReferenceFrame(ql.Molecule.from_name(name))
    mol = cases.molecule(name, displaced=0.05)
    symbols = np.array(mol.symbols)
    order = np.concatenate([rng.permutation(np.flatnonzero(symbols == s)) for s in sorted(set(mol.symbols))])
    moved = Rotation.random(rng=rng).apply(mol.positions) + rng.normal(size=3) * 5
    other = ql.Molecule(tuple(symbols[order].tolist()), moved[order])
    pose, other_pose = frame.pose_molecule(mol), frame.pose_molecule(other)
    np.testing.assert_allclose(other_pose.positions, pose.positions, atol=tol.ROUNDING)
    np.testing.assert_allclose(np.linalg.det(other_pose.rotation), 1, atol=tol.ROUNDING)
    np.testing.assert_allclose(
        (other.positions[other_pose.order] - other.positions[other_pose.order].mean(0)) @ other_pose.rotation.T,
        other_pose.positions - other_pose.positions.mean(0), atol=tol.ROUNDING,
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_oriented_geometry_stays_as_it_is(name):
    """An oriented geometry does not change in any digit, so a model has the same frame on every machine.

    This also holds for molecules with equivalent axes.
    """
    for mol in (ql.Molecule.from_name(name), cases.molecule(name, displaced=0.05)):
        once = standard_orientation(mol)
        np.testing.assert_array_equal(standard_orientation(once).positions, once.positions)
        np.testing.assert_allclose(*(
            np.linalg.norm(each.positions[:, None] - each.positions, axis=-1) for each in (mol, once)
        ), atol=tol.ROUNDING)
        assert len(mol.symbols) < 4 or np.sign(_handedness(mol)) == np.sign(_handedness(once)), "no mirror image"


def _handedness(mol):
    centred = mol.positions - mol.positions[0]
    return round(np.linalg.det(centred[1:4]), 9)


def test_the_pose_moves_smoothly_with_the_geometry():
    """The pose is continuous along a vibration that passes through a symmetric geometry."""
    frame = ReferenceFrame(ql.Molecule.from_name("water"))
    mol = ql.Molecule.from_name("water")
    swing = np.random.default_rng(0).normal(size=mol.positions.shape)
    poses = [frame.pose(mol.positions + 0.02 * np.sin(t) * swing).positions for t in np.linspace(-1, 1, 41)]
    assert np.abs(np.diff(poses, axis=0)).max() < 0.02


def test_a_mirror_image_is_not_taken_for_the_molecule():
    """A chiral geometry and its mirror image are different geometries. The frame removes rotations only."""
    frame = ReferenceFrame(ql.Molecule.from_name("alanine dipeptide"))
    mol = cases.molecule("alanine dipeptide", displaced=0.05)
    mirrored = mol.positions * np.array([1, 1, -1])
    assert np.abs(frame.pose(mirrored).positions - frame.pose(mol.positions).positions).max() > 0.1


@pytest.mark.parametrize("other", ["methane", "ethanol", "[NH4+]"])
def test_a_different_molecule_is_refused(other):
    frame = ReferenceFrame(ql.Molecule.from_name("ammonia"))
    with pytest.raises(ql.InputError, match=r"Expected a geometry of H3N \(charge 0, 0 unpaired electrons\), got"):
        frame.pose_molecule(ql.Molecule.parse(other))


def test_an_isomer_is_refused():
    """Dimethyl ether has the formula of ethanol, but different bonds."""
    with pytest.raises(ql.InputError, match="bonds"):
        ReferenceFrame(ql.Molecule.from_name("ethanol")).pose_molecule(ql.Molecule.parse("COC"))
