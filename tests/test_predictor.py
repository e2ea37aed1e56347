"""A trained equivariant model: any order of atoms, other molecules, model files."""

import warnings

import cases
import jax
import numpy as np
import pytest
import tolerances as tol

import qptlab as ql

METHOD, NETWORK = cases.QUICK_METHOD, cases.SMALL


@pytest.fixture(scope="module")
def predictor():
    """A model of ethanol with fitted statistics; its head has random entries."""
    objective = ql.make_objective(cases.molecule("ethanol"), METHOD, NETWORK)
    params = objective.fit(objective.init(0), cases.quick(1))
    return objective.predictor(cases.awake(params, 0.002))


def permuted(mol: ql.Molecule) -> tuple[ql.Molecule, list[int]]:
    order = np.random.default_rng(1).permutation(len(mol.symbols)).tolist()
    return ql.Molecule(tuple(mol.symbols[atom] for atom in order), mol.positions[order]), order


def test_atoms_in_any_order_give_the_same_prediction_without_a_warning(predictor):
    mol = cases.molecule("ethanol", displaced=0.05)
    other, order = permuted(mol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction, again = predictor(mol), predictor(other)
    plain = predictor.without_network()(mol)
    assert abs(float(prediction.energy) - float(plain.energy)) > 1e-6, "the network changes the prediction"
    assert float(again.energy) == pytest.approx(float(prediction.energy), abs=tol.EQUIVARIANCE)
    aos = cases.relabelled(cases.prepared("ethanol", METHOD), order)
    for name in ("fock", "dm"):
        expected = getattr(prediction, name)[np.ix_(aos, aos)]
        np.testing.assert_allclose(getattr(again, name), expected, atol=tol.EQUIVARIANCE)
    np.testing.assert_allclose(again.charges, prediction.charges[order], atol=tol.EQUIVARIANCE)
    np.testing.assert_allclose(again.dipole, prediction.dipole, atol=tol.EQUIVARIANCE)


def test_a_stretched_bond_does_not_make_a_different_molecule(predictor):
    mol = ql.Molecule.from_name("ethanol")
    system = predictor.systems[0]
    same = ql.Molecule(system.molecule.symbols, system.molecule.positions * 1.02)
    assert predictor.locate(same)[0] is system
    assert sorted(mol.symbols) == sorted(same.symbols)


@pytest.mark.parametrize("smiles", ["O", "CCC=O"])
def test_a_model_of_one_molecule_predicts_others_of_its_elements_with_a_warning(predictor, smiles):
    mol = ql.Molecule.from_smiles(smiles)
    with pytest.warns(UserWarning, match=rf"{mol.formula} is not .* check the estimated error"):
        prediction = predictor(mol)
    overlap = cases.rks(mol, METHOD).get_ovlp()
    assert np.sum(prediction.dm * overlap) == pytest.approx(mol.nelectron, abs=1e-8)
    assert float(prediction.energy) > float(ql.scf(mol, METHOD).energy) - tol.SCF_ENERGY
    with pytest.warns(UserWarning, match="is not"):
        assert predictor.locate(mol)[0] is predictor.locate(mol)[0], "it is prepared once"
    assert len(predictor.systems) == 1


@pytest.mark.parametrize(("smiles", "missing"), [("N", "N 1s, N 2p, N 2s"), ("CF", "F 1s, F 2p, F 2s")])
def test_an_element_that_the_model_does_not_know_is_refused(predictor, smiles, missing):
    with pytest.raises(ql.InputError, match=rf"got {missing}; use a molecule of the elements C, H, O in the same"):
        predictor(ql.Molecule.from_smiles(smiles))


def test_a_model_file_has_the_statistics_and_the_scheme(predictor, tmp_path):
    predictor.save(tmp_path / "model.h5")
    again = ql.load(tmp_path / "model.h5")
    assert (again.kind, again.config) == ("equivariant", NETWORK)
    for one, two in zip(jax.tree.leaves(again.arrays()), jax.tree.leaves(predictor.arrays()), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.ptp(again.arrays()["statistics"]["pair_mean"]) > 0
    mol = cases.molecule("ethanol", displaced=0.05)
    assert float(again(mol).energy) == float(predictor(mol).energy)


@pytest.mark.filterwarnings("ignore:.* is not")
def test_new_molecules_that_are_predicted_together_share_sizes_and_have_the_energies_of_each_alone(predictor):
    mols = [ql.Molecule.from_smiles(smiles) for smiles in ("CCCO", "OCCO", "CC(=O)O")]
    alone = [float(ql.CorrectionPredictor(predictor.model, predictor.params, predictor.systems)(mol).energy)
             for mol in mols]
    together = ql.CorrectionPredictor(predictor.model, predictor.params, predictor.systems)
    energies = [float(prediction.energy) for prediction in together.map([*mols, mols[0]])]
    np.testing.assert_allclose(energies, [*alone, alone[0]], atol=1e-9)
    assert len({together.locate(mol)[0].sizes for mol in mols}) < len(mols)
