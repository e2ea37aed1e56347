"""The response of the electrons on the device: PySCF's form of it, estimated errors, padding, forces, training."""

import dataclasses

import cases
import jax
import numpy as np
import pytest
from pyscf import dft
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft import integrals, libcint, padding
from qptlab.dft.energy import density_from_fock, energy, kohn_sham
from qptlab.dft.fitted_response import responded
from qptlab.dft.response import Response
from qptlab.models.systems import System

METHOD = ql.Method("b3lyp", "def2-svp", grid_level=1)
STRETCHED = "2\n\nF 0 0 0\nF 0 0 2.6\n"
"""Fluorine with a gap so small that the energy has no minimum with the full kernel."""


def guessed(mol: ql.Molecule, method: ql.Method) -> tuple[ql.Integrals, jax.Array]:
    """Return integrals with a kernel, and the Fock matrix of the guess."""
    ints = integrals.template(mol, method, with_kernel=True).build(mol.positions)
    return ints, kohn_sham(ints.dm_guess, ints).fock


def untrained(
    mols: list[ql.Molecule], method: ql.Method = METHOD, scheme: str = "response", iterations: int = 0
) -> ql.CorrectionPredictor:
    """Return the guess and the iterations of the scheme, without a network."""
    config = ql.EquivariantConfig(scheme=scheme, iterations=iterations)
    systems, kinds = ql.make_systems(mols, method, config)
    return ql.CorrectionPredictor(ql.CorrectionModel(config, kinds), None, systems)


@pytest.mark.parametrize(("text", "xc"), [
    ("water", "pbe"), ("water", "lda"), ("C=O", "hf"), ("C=O", "b3lyp"), ("[C-]#N", "pbe"),
    cases.slow("uracil", "b3lyp"), ("C=O", "cam-b3lyp"), (STRETCHED, "hf"), cases.slow(STRETCHED, "pbe"),
])
def test_the_device_gives_what_pyscfs_form_gives(text, xc):
    mol = ql.Molecule.parse(text)
    method = dataclasses.replace(METHOD, xc=xc)
    ints, fock = guessed(mol, method)
    mf = dft.RKS(libcint.pyscf_molecule(mol, method), xc=method.functional.pyscf_name)
    dm = np.asarray(ints.dm_guess)
    theirs = Response(mf, dm).fock(mf, np.asarray(fock), dm, np.asarray(ints.overlap))
    ours = responded(fock, ints.dm_guess, ints)
    assert np.abs(theirs - fock).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs - fock).max())


@pytest.mark.parametrize("xc", [cases.slow("pbe"), "b3lyp", "hf", cases.slow("wb97m-v-nonlc")])
def test_the_first_density_is_nearly_self_consistent(xc):
    """The error is a hundredth of that of the lowest orbitals of the guess's Fock matrix."""
    mol, method = ql.Molecule.from_name("ethanol"), dataclasses.replace(METHOD, xc=xc)
    ints, fock = guessed(mol, method)
    converged = ql.scf(mol, method).energy
    plain, ours = (
        float(energy(density_from_fock(matrix, ints), ints) - converged)
        for matrix in (fock, responded(fock, ints.dm_guess, ints))
    )
    assert 0 < ours < 0.01 * plain


WATERS = {"equilibrium": (1.0, 1.0), "one bond x 2": (2.0, 1.0), "both bonds x 1.5": (1.5, 1.5)}
"""Factors of the lengths of the bonds."""


@pytest.mark.parametrize(("theory", "scheme", "iterations"), [
    ("pbe/sto-3g", "mixing", 0), ("pbe/sto-3g", "screened", 2), ("hf/sto-3g", "mixing", 2),
    cases.slow("b3lyp/def2-svp", "screened", 0), cases.slow("b3lyp/def2-svp", "response", 0),
])
def test_the_error_of_a_prediction_is_estimated_within_a_tenth(theory, scheme, iterations):
    """Errors from 0.008 to 14,000 meV, close to the geometries that a model would know and far from them."""
    water, (xc, basis) = ql.Molecule.from_name("water"), theory.split("/")
    method = ql.Method(xc, basis, grid_level=1)
    model = untrained([water], method, scheme, iterations)
    oxygen, *hydrogens = water.positions
    for factors in WATERS.values():
        stretched = [oxygen + f * (h - oxygen) for f, h in zip(factors, hydrogens, strict=True)]
        mol = water.with_positions(np.array([oxygen, *stretched]))
        answer = model(mol)
        error = float(answer.energy - ql.scf(mol, method).energy)
        assert error > 1e-7
        assert float(answer.energy_error) == pytest.approx(error, rel=0.1)


def test_iterations_converge_and_forces_are_those_of_self_consistency():
    mol = cases.molecule("formaldehyde", 0.1)
    predictor = untrained([mol], iterations=2)
    solution = ql.scf(mol, METHOD)
    assert float(predictor(mol).energy) == pytest.approx(float(solution.energy), abs=1e-8)
    np.testing.assert_allclose(predictor.forces(mol), ql.forces(mol, METHOD, solution.fock), atol=1e-5)


@pytest.mark.parametrize("method", [METHOD, cases.slow(ql.Method("cam-b3lyp", "sto-3g", eri="fitted"))])
def test_padding_and_order_change_nothing(method):
    small, large = ql.Molecule.from_name("water"), ql.Molecule.from_name("ethanol")
    model = untrained([small, large], method, iterations=1)
    shape = padding.union([integrals.shape(mol, method, with_kernel=True) for mol in (small, large)])
    shared = padding.Padding(shape._replace(natm=11), nocc=16)
    system = model.systems[0].unpadded()
    padded = System(system.frame, system.method, shared, system.vocabulary, system.config)
    assert padded.template.shape.nresponse > system.template.shape.nresponse
    one, two = (model.in_frame(each, small.positions) for each in (system, padded))
    assert float(one.energy) == pytest.approx(float(two.energy), abs=1e-8)
    np.testing.assert_allclose(one.fock, two.fock, atol=1e-6)


@pytest.mark.slow
def test_an_orientation_changes_the_error_by_a_small_part():
    """The kernel's grid is coarse and does not turn with the molecule."""
    mol = ql.Molecule.from_smiles("OC=O")
    predictor, errors = untrained([mol], iterations=0), []
    for seed in range(3):
        turned = mol.with_positions(mol.positions @ Rotation.random(random_state=seed).as_matrix().T)
        errors.append(float(predictor(turned).energy - ql.scf(turned, METHOD).energy))
    assert np.ptp(errors) < 0.05 * np.mean(errors)


def test_a_network_learns_on_top_of_the_response(tmp_path):
    mol = ql.Molecule.from_name("water")
    method = ql.Method("pbe", "sto-3g", grid_level=0)
    config = ql.TrainConfig(minutes=None, steps=150, sampling=ql.Sampling("perturb", sigma_bohr=0.05), validation=4)
    network = ql.EquivariantConfig("small", scheme="response", iterations=0)
    trainer = ql.Trainer([mol], method, network, config, out=tmp_path / "run")
    trainer.run()
    last = ql.Run.open(tmp_path / "run").metrics()[-1]
    assert last["validation_mae_mev"] < 0.5 * last["no_network_mae_mev"]
    assert last["no_network_mae_mev"] < 0.02 * last["pyscf_stopped_mae_mev"]


def test_iterations_without_a_derivative_are_refused_in_a_training(tmp_path):
    network = ql.EquivariantConfig("small", scheme="response", iterations=2)
    settings = ql.TrainConfig(iterations=None)
    with pytest.raises(ql.InputError, match="Expected 0 DFT iterations in a training"):
        ql.Trainer([ql.Molecule.from_name("water")], METHOD, network, settings, out=tmp_path / "run")


def test_integrals_without_a_kernel_and_open_shells_are_refused():
    ints = integrals.build_integrals(ql.Molecule.from_name("water"), METHOD)
    with pytest.raises(ValueError, match="with a kernel"):
        responded(ints.hcore, ints.dm_guess, ints)
