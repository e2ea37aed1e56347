"""Scenes: volumes around a molecule."""

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.dft import libcint, properties
from qptlab.evaluation import reference
from qptlab.gui import scenes
from qptlab.gui.scenes import KINDS, Subject


@pytest.fixture(scope="module")
def subject():
    model, system = cases.model("water", cases.QUICK_METHOD, 1)
    positions = system.frame.reference_positions
    mol = system.molecule.with_positions(positions)
    predictor = cases.predictor("water", cases.QUICK_METHOD, 1)
    return Subject(
        mol, cases.QUICK_METHOD, "QPT", 7, predictor.in_frame(system, positions),
        ql.CorrectionPredictor(model, None, [system]).in_frame(system, positions),
        reference.converged(mol, cases.QUICK_METHOD),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_two_panels_captions_and_a_summary(subject, kind):
    scene = scenes.draw(kind, subject, points=20)
    assert [values.shape for values in scene.values] == [(20, 20, 20)] * 2
    assert len(scene.captions) == 2
    assert "H2O" in scene.summary
    assert all(np.abs(values).max() > scene.isovalue for values in scene.values), "something to see"


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_reference_there_is_the_panel_of_the_prediction(subject, kind):
    alone = subject._replace(reference=None, no_network=None, step=None)
    if kind == "density difference":
        with pytest.raises(ql.InputError, match="a calculation of PySCF"):
            scenes.draw(kind, alone, points=8)
        return
    scene, both = scenes.draw(kind, alone, points=20), scenes.draw(kind, subject, points=20)
    assert len(scene.captions) == len(scene.values) == 1
    np.testing.assert_allclose(scene.values[0], both.values[0], atol=1e-6)
    assert "PySCF" not in scene.summary
    assert "step" not in scene.name


def test_orbitals_have_the_same_sign_and_a_name(subject):
    scene = scenes.draw("orbital", subject, 4, points=24)
    predicted, reference = scene.values
    assert np.sum(predicted * reference) > 0
    assert "orbital 5" in scene.captions[0]
    assert "occupation 2" in scene.captions[1]
    assert "occupation 0" in scenes.draw("orbital", subject, 5, points=8).captions[0]
    with pytest.raises(ql.InputError, match="an orbital from 0 to 6, got 7"):
        scenes.draw("orbital", subject, 7)
    with pytest.raises(ql.InputError, match=r"one of orbital, .* to draw, got 'spin'"):
        scenes.draw("spin", subject)
    with pytest.raises(ql.InputError, match="positive isovalue, got -1"):
        scenes.draw("density", subject, isovalue=-1)


def test_densities_integrate_to_the_electrons_and_differences_to_zero(subject):
    """A box of 5 bohr around water holds all ten electrons, and both densities have ten."""
    scene = scenes.draw("density", subject, points=70)
    volume = np.prod(scene.box.spacing)
    assert scene.values[1].sum() * volume == pytest.approx(10, abs=0.15)  # nuclei fall between points
    difference = scenes.draw("density difference", subject, points=70)
    assert difference.values[0].sum() * volume == pytest.approx(0, abs=0.01)


def test_the_potential_agrees_with_exact_integrals(subject):
    """The error of the auxiliary basis is a few millihartree, also close to the nuclei."""
    mol, dm = subject.molecule, subject.reference.dm
    points = np.random.default_rng(1).normal(scale=4.0, size=(40, 3))
    built = libcint.pyscf_molecule(mol, cases.QUICK_METHOD)
    exact = []
    for point in points:
        with built.with_rinv_origin(point):
            electrons = np.sum(built.intor("int1e_rinv") * dm)
        exact.append(np.sum(built.atom_charges() / np.linalg.norm(built.atom_coords() - point, axis=1)) - electrons)
    potential = libcint.electrostatic_potential(mol, cases.QUICK_METHOD, dm, points)
    np.testing.assert_allclose(potential, exact, atol=2e-3)


def test_the_potential_of_water_is_negative_at_its_oxygen_and_positive_at_its_hydrogens(subject):
    scene = scenes.draw("electrostatic potential", subject, points=40)
    potential, points = scene.potentials[1], properties.points(scene.box)
    for atom, sign in ((0, -1), (1, 1), (2, 1)):
        outwards = subject.molecule.positions[atom] - subject.molecule.positions.mean(axis=0)
        is_outside = (points @ outwards > 0.95 * np.linalg.norm(points, axis=1) * np.linalg.norm(outwards))
        near = potential.ravel()[is_outside & (potential.ravel() != 0)]
        assert np.sign(near.mean()) == sign
