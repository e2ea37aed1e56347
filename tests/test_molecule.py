"""Molecules in and out, and every way to get one wrong."""

import ase.build
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qptlab as ql
from qptlab.system.molecule import read_xyz
from qptlab.units import BOHR_ANGSTROM

WATER = "3\n\nO 0 0 0\nH 0 0.76 0.59\nH 0 -0.76 0.59\n"


def said(action, *arguments):
    """The one sentence with which an action refuses its input."""
    with pytest.raises(ql.InputError) as caught:
        action(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def refusal(action, text):
    """What is said of a text that cannot be used; nothing, if it can."""
    try:
        action(text)
    except ql.InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ql.BUILTIN)
def test_built_in_molecules_are_closed_shells_at_sensible_distances(name):
    mol = ql.Molecule.from_name(name)
    distance = np.linalg.norm(mol.positions_angstrom[:, None] - mol.positions_angstrom, axis=-1)
    nearest = np.where(distance > 0, distance, np.inf).min(axis=1)
    assert mol.name == name
    assert mol.nelectron % 2 == 0
    assert (nearest > 0.7).all()
    assert (nearest < 1.6).all()


def test_names_are_found_in_any_spelling():
    assert ql.Molecule.parse(" Alanine-Dipeptide ").formula == "C6H12N2O2"
    assert ql.Molecule.parse("CCO").formula == "C2H6O"
    assert ql.Molecule.parse(WATER).formula == "H2O"


def test_a_built_in_molecule_that_its_owner_changes_stays_as_it_was_for_others():
    mol = ql.Molecule.from_name("water")
    mol.positions[:] += 1
    assert not np.allclose(ql.Molecule.from_name("water").positions, mol.positions)


def test_malondialdehyde_is_the_dialdehyde():
    mol = ql.Molecule.from_name("malondialdehyde")
    distance = np.linalg.norm(mol.positions_angstrom[:, None] - mol.positions_angstrom, axis=-1)
    oxygen, hydrogen = (np.array(mol.symbols) == "O", np.array(mol.symbols) == "H")
    assert mol.formula == "C3H4O2"
    assert (distance[oxygen][:, hydrogen] > 1.5).all()


def test_ions_carry_their_charge_through_smiles_ase_and_xyz():
    ammonium = ql.Molecule.from_smiles("[NH4+]")
    assert (ammonium.charge, ammonium.nelectron) == (1, 10)
    again = ql.Molecule.from_xyz(ammonium.to_xyz())
    assert again.charge == 1
    np.testing.assert_allclose(again.positions, ammonium.positions, atol=1e-7)


def test_ase_molecules_come_over_in_angstrom():
    mol = ql.Molecule.from_ase(ase.build.molecule("H2O"), "from ASE")
    np.testing.assert_allclose(mol.positions * BOHR_ANGSTROM, ase.build.molecule("H2O").positions, atol=1e-12)


@given(
    st.lists(
        st.lists(st.floats(-30, 30, allow_nan=False, width=32), min_size=3, max_size=3), min_size=2, max_size=2
    )
)
@settings(max_examples=60)
def test_xyz_text_comes_back_as_it_went(shifts):
    positions = np.cumsum(np.abs(shifts), axis=0) + np.arange(2)[:, None]
    mol = ql.Molecule(("He", "He"), positions)
    again = read_xyz(mol.to_xyz() * 3)
    assert len(again) == 3
    assert again[2].symbols == mol.symbols
    np.testing.assert_allclose(again[2].positions, positions, atol=2e-8)


@given(st.text(max_size=200))
@settings(max_examples=150)
def test_no_text_breaks_the_xyz_reader(text):
    """Any text is either read or refused in one sentence."""
    assert "\n" not in refusal(read_xyz, text + "\n")


@given(st.integers(0, len(WATER) - 1), st.characters())
@settings(max_examples=150)
def test_no_typing_error_breaks_the_xyz_reader(place, character):
    assert "\n" not in refusal(read_xyz, WATER[:place] + character + WATER[place + 1 :])


@given(st.integers(0, len(WATER) - 7))
@settings(max_examples=60)
def test_xyz_cut_short_is_refused(length):
    assert said(read_xyz, WATER[:length] + "\n")


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_no_text_breaks_the_parser(text):
    assert "\n" not in refusal(ql.Molecule.parse, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C1CC", "'C1CC'"),
        ("", "cannot be read as a molecule"),
        ("no-such-file.xyz", "no-such-file.xyz, which cannot be read"),
        ("1\n\nXx 0 0 0\n", "'Xx'"),
        ("2\n\nH 0 0 0\nH 0 0 0.1\n", "0.100 Å apart"),
        ("2\n\nH 0 0 0\nH 0 0 nan\n", "not a finite number"),
        ("1\nspin=2\nH 0 0 0\n", "1 electrons at charge 0, of which 2 cannot be unpaired; use spin 1"),
        ("1\nspin=0\nH 0 0 0\n", "of which 0 cannot be unpaired"),
        ("1\n\nU 0 0 0\n", "'U'"),
        ("3\n\nO 0 0 0\nH 0 0 1\n", "not complete XYZ"),
        ("O 0 0 0\nH 0 0 1\n", "not complete XYZ"),
        ("99999999999\n\nO 0 0 0\n", "at most 2000 atoms in a frame, got more in line 1"),
        ("-3\n\nO 0 0 0\n", "announces -3 atoms"),
        ("2\ncharge=0.5\nHe 0 0 0\nHe 0 0 2\n", "charge 0.5"),
    ],
)
def test_bad_molecules_are_refused_and_named(text, expected):
    sentence = said(ql.Molecule.parse, text)
    assert expected in sentence


def test_bad_records_are_refused_where_they_enter():
    assert "(2, 3)" in said(ql.Molecule, ("H", "H"), np.zeros((3, 3)))
    assert "without atoms" in said(ql.Molecule, (), np.zeros((0, 3)))
    assert "-1 electrons" in said(ql.Molecule, ("H",), np.zeros((1, 3)), 2)
    assert "built-in molecule, got 'aspirin'" in said(ql.Molecule.from_name, "aspirin")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "picture.xyz"
    path.write_bytes(bytes(range(256)))
    assert "picture.xyz" in said(read_xyz, path)
    assert "cannot be read" in said(read_xyz, tmp_path)


def test_an_unknown_element_of_a_molecule_without_a_name_is_named():
    assert "atom 1 of the molecule is 'X'" in said(ql.Molecule, ("H", "X"), np.eye(3)[:2])


def test_unpaired_electrons_are_those_given_or_the_fewest_there_can_be():
    assert ql.Molecule.parse("water").spin == 0
    assert ql.Molecule.parse("[OH]").spin == 1
    assert ql.Molecule.parse("O=O", spin=2).spin == 2
    assert ql.Molecule.from_xyz("1\nspin=3\nN 0 0 0\n").spin == 3
    oxygen = ql.Molecule(("O",), np.zeros((1, 3)), spin=2)
    assert ql.template(oxygen, ql.Method("hf", "sto-3g")).occupied == (5, 3)
    assert ql.Molecule.from_ase(oxygen.to_ase()).spin == 2
    assert ql.Molecule.parse(oxygen.to_xyz()).spin == 2


def test_methods_that_are_not_offered_are_refused():
    assert "'m06'" in said(lambda: ql.Method(xc="m06"))
    assert "grid_level 7" in said(lambda: ql.Method(grid_level=7))
    assert "eri 'cholesky'" in said(lambda: ql.Method(eri="cholesky"))
    assert "as basis, got ''" in said(lambda: ql.Method(basis=""))
    assert "with exact integrals" in said(lambda: ql.Method(eri="exact", auxbasis="weigend"))


@pytest.mark.parametrize(("text", "is_one"), [
    ("CCO", True), ("O.O", False), ("[He]", True), ("c1ccccc1", True), ("CCCCCCCC", True), ("[F-].O", False),
])
def test_bonds_connect_the_atoms_of_a_molecule(text, is_one):
    mol = ql.Molecule.parse(text)
    order = np.random.default_rng(1).permutation(len(mol.symbols))
    shuffled = ql.Molecule(tuple(mol.symbols[i] for i in order), mol.positions[order], mol.charge)
    assert mol.is_connected == shuffled.is_connected == is_one
