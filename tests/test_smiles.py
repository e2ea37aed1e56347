"""Geometries of SMILES against measured bond lengths, and what is done where none is found."""

import warnings

import numpy as np
import pytest

import qptlab as ql


def distances(mol):
    positions = np.asarray(mol.positions_angstrom)
    matrix = np.linalg.norm(positions[:, None] - positions, axis=-1)
    return matrix + 99 * np.eye(len(matrix))


@pytest.mark.parametrize(
    ("smiles", "atoms", "angstrom"),
    [  # re or r0, Å: NIST CCCBDB; the anions and PF6−: CCSD(T) or crystals
        ("N#N", (0, 1), 1.098), ("O=C=O", (0, 1), 1.162), ("[C-]#N", (0, 1), 1.177), ("S=C=S", (0, 1), 1.553),
        ("O=S=O", (0, 1), 1.432), ("[N]=O", (0, 1), 1.151), ("[N-]=[N+]=[N-]", (0, 1), 1.19),
        ("C#[N+]C", (0, 1), 1.13), ("F[P-](F)(F)(F)(F)F", (0, 1), 1.60), ("[C-]#[O+]", (0, 1), 1.128),
        ("C#C", (0, 1), 1.203), ("FF", (0, 1), 1.412), ("ClCl", (0, 1), 1.988), ("O=O", (0, 1), 1.208),
        ("[O-][O+]=O", (0, 1), 1.272), ("[N-]=[N+]=O", (1, 2), 1.184), ("C=C=C", (0, 1), 1.308),
        ("C#N", (0, 1), 1.153), ("CC#N", (1, 2), 1.157), ("N=[N+]=[N-]", (1, 2), 1.134), ("S", (0, 1), 1.336),
        ("Br", (0, 1), 1.414), ("O=C=S", (0, 1), 1.157), ("C=[N+]=[N-]", (1, 2), 1.139), ("B(F)(F)F", (0, 1), 1.307),
        ("FS(F)(F)(F)(F)F", (0, 1), 1.561), ("[O-]Cl(=O)(=O)=O", (0, 1), 1.45), ("c1ccccc1", (0, 1), 1.397),
        ("[O][O]", (0, 1), 1.208), ("N#CC#N", (0, 1), 1.154),
    ],
)
@pytest.mark.filterwarnings("ignore:O=O is read")
def test_bonds_are_as_long_as_measured(smiles, atoms, angstrom):
    mol = ql.Molecule.parse(smiles)
    assert distances(mol)[atoms] == pytest.approx(angstrom, abs=0.045)
    assert "relaxed with GFN2-xTB" in mol.source
    assert mol.with_positions(mol.positions + 1.0).source == ""  # which qptlab did not find


def test_ligands_do_not_overlap():
    fluorides = distances(ql.Molecule.parse("F[P-](F)(F)(F)(F)F"))
    assert np.sort(fluorides[0, 2:])[0] > 2.1  # √2 times the bond length


@pytest.mark.parametrize(
    ("smiles", "formula", "charge"),
    [("O.O", "H4O2", 0), ("[Na+].[Cl-]", "ClNa", 0), ("CN.Cl", "CH6ClN", 0), ("[F-].O", "H2FO", -1),
     ("[H][H].[H][H].[He]", "H4He", 0)],
)
def test_fragments_are_placed_beside_each_other(smiles, formula, charge):
    mol = ql.Molecule.parse(smiles)
    assert (mol.formula, mol.charge, mol.spin) == (formula, charge, 0)
    assert distances(mol).min() > 0.7
    assert distances(mol).min(axis=1).max() < 5.0  # and not far from each other


@pytest.mark.parametrize(
    ("smiles", "spin", "closed"), [("O=O", 2, 0), ("S=S", 2, 0), ("S=O", 2, 0), ("[C]", 2, 4), ("[B]", 1, 3)]
)
def test_ground_states_that_no_lewis_structure_shows_are_said(smiles, spin, closed):
    with pytest.warns(UserWarning, match=f"{spin} unpaired electrons, its ground state; use spin {closed} otherwise"):
        assert ql.Molecule.parse(smiles).spin == spin
    assert ql.Molecule.parse(smiles, spin=closed).spin == closed  # without a warning


@pytest.mark.parametrize(("smiles", "spin"), [("[O][O]", 2), ("[CH2]", 2), ("[OH]", 1), ("[N]", 3), ("[He]", 0)])
def test_spins_of_radicals(smiles, spin):
    assert ql.Molecule.parse(smiles).spin == spin


@pytest.mark.parametrize("smiles", ["[NH3+]CC(=O)[O-]", "[NH4+].[OH-]"])
def test_a_molecule_that_would_change_keeps_its_bonds_and_says_so(smiles):
    """In the gas phase the proton of a zwitterion moves."""
    with pytest.warns(UserWarning, match="not relaxed with GFN2-xTB: .*; check it"):
        mol = ql.Molecule.parse(smiles)
    nitrogen = mol.symbols.index("N")
    assert np.sum((distances(mol)[nitrogen] < 1.15) & (np.array(mol.symbols) == "H")) >= 3
    assert mol.source == "RDKit's conformer (MMFF94)"
    with pytest.warns(UserWarning, match="check it"):  # each time, though the geometry is kept
        ql.Molecule.parse(smiles)


def test_the_same_smiles_has_the_same_geometry():
    from qptlab.system import smiles

    first = ql.Molecule.parse("CCO").positions
    smiles._known.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        np.testing.assert_array_equal(first, ql.Molecule.parse("CCO").positions)
