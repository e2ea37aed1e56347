"""XYZ as programs and people write it: read, or refused with the line."""

import ase
import ase.build
import numpy as np
import pytest

import qptlab as ql
from qptlab.units import BOHR_ANGSTROM

ATOMS = "O 0.0 0.0 0.119262\nH 0.0 0.763239 -0.477047\nH 0.0 -0.763239 -0.477047\n"
WATER = f"3\nwater\n{ATOMS}"
METHANE_OF_QM9 = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""

READ = {
    "exponents of Fortran": WATER.replace("0.119262", "1.19262D-01").replace("0.763239", "7.63239d-1"),
    "exponents of QM9": WATER.replace("0.119262", "1.19262*^-1"),
    "atomic numbers": WATER.replace("O ", "8 ").replace("H ", "1 "),
    "labels": WATER.replace("O ", "O1 ").replace("H ", "H2a "),
    "labels with a line": WATER.replace("O ", "O_w ").replace("H ", "H_1 "),
    "lower case": WATER.replace("O ", "o ").replace("H ", "h "),
    "tabulators": WATER.replace(" ", "\t"),
    "further columns": WATER.replace("262\n", "262 -0.8 0.1\n").replace("047\n", "047 0.4 0.1\n"),
    "blank lines first": f"\n\n{WATER}",
    "blank lines after": f"{WATER}\n \n",
    "words behind the count": WATER.replace("3\n", "3 ! atoms\n", 1),
    "a byte order mark": f"\ufeff{WATER}",
    "line ends of Windows": WATER.replace("\n", "\r\n"),
    "an ellipsis of Windows in the comment": WATER.replace("water", "water\x85 and more\u2028"),
    "an energy and words": WATER.replace("water", "E = -76.4 charge 0 mult 1"),
    "a word that is a setting": WATER.replace("water", "total charge E=-1"),
    "a comment with a property": WATER.replace("water", "Properties of water"),
    "a comment that looks like settings": WATER.replace("water", "E = -76.4 (see = \"x"),
    "a comment with braces": WATER.replace("water", "a={1, 2"),
    "no comment": WATER.replace("water", ""),
    "a number as comment": WATER.replace("water", "-76.4089"),
    "extended": WATER.replace("water", 'Properties=species:S:1:pos:R:3 name="water"'),
    "extended, exponents of Fortran": WATER.replace("water", "Properties=species:S:1:pos:R:3").replace(
        "0.119262", "1.19262D-01"
    ),
}


def refused(function, *arguments):
    with pytest.raises(ql.InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_water_is_read_from_every_dialect(text):
    expected = ql.Molecule.from_xyz(WATER)
    (mol,) = ql.read_xyz(text)
    assert (mol.symbols, mol.charge, mol.spin) == (("O", "H", "H"), 0, 0)
    np.testing.assert_allclose(mol.positions, expected.positions, atol=1e-12)


@pytest.mark.parametrize("between", ["", "\n", "\n \n\n"])
def test_no_frame_is_lost_between_blank_lines(between):
    frames = ql.read_xyz(between.join([WATER, WATER.replace("0.119262", "0.2"), "1\n\nHe 0 0 0\n"]))
    assert [mol.formula for mol in frames] == ["H2O", "H2O", "He"]
    assert frames[1].positions[0, 2] * BOHR_ANGSTROM == pytest.approx(0.2)


def test_raw_files_of_qm9_are_read_one_after_another():
    frames = ql.read_xyz(METHANE_OF_QM9 * 2)
    assert [mol.formula for mol in frames] == ["CH4", "CH4"]
    assert frames[0].positions[2, 2] * BOHR_ANGSTROM == pytest.approx(2.765748e-4)


@pytest.mark.parametrize("symbol", ["D", "T"])
def test_isotopes_are_hydrogen_and_that_is_said(symbol):
    with pytest.warns(UserWarning, match=f"Atoms {symbol} .* read as hydrogen"):
        (mol,) = ql.read_xyz(WATER.replace("H ", f"{symbol} "))
    assert mol.formula == "H2O"


@pytest.mark.parametrize(("comment", "charge", "spin"), [
    ("charge=1 spin=1", 1, 1), ("total_charge=1", 1, 1), ("charge=0 multiplicity=3", 0, 2),
    ("spin_multiplicity=3", 0, 2), ("Multiplicity: 3", 0, 2), ("charge: 1 energy=-76.4", 1, 1), ("mult=3", 0, 2),
    ("charge 1 spin 1", 1, 1), ("charge=-1; multiplicity=2", -1, 1),
    ("Charge = 1", 1, 1), ("charge=0 total_charge=0", 0, 0), ("multiplicity=3 spin=2", 0, 2),
])
def test_charge_and_spin_are_read_under_every_name(comment, charge, spin):
    (mol,) = ql.read_xyz(WATER.replace("water", comment))
    assert (mol.charge, mol.spin) == (charge, spin)


@pytest.mark.parametrize(("comment", "charge", "spin"), [("0 3", 0, 2), ("1 2", 1, 1), ("-1 2", -1, 1)])
def test_two_whole_numbers_are_charge_and_multiplicity_and_that_is_said(comment, charge, spin):
    with pytest.warns(UserWarning, match=f"\"{comment}\" .* charge and multiplicity"):
        (mol,) = ql.read_xyz(WATER.replace("water", comment))
    assert (mol.charge, mol.spin) == (charge, spin)


def test_frames_that_only_look_like_qm9_are_kept():
    frames = ql.read_xyz("".join(f"1\ngdb {number}\n{symbol} 0 0 0\n" for number, symbol in enumerate(["He", "Ne"])))
    assert [mol.formula for mol in frames] == ["He", "Ne"]


@pytest.mark.parametrize(("text", "said"), [
    (ATOMS, "before the lines of the atoms, got 'O 0.0 0.0 0.119262' in line 1"),
    (WATER + "H 0 0 0\n", "got 'H 0 0 0' in line 6, after 1 frames,"),
    (WATER.replace("0.763239", "x", 1), "got 'H 0.0 x -0.477047' in line 4"),
    (WATER.replace("H 0.0 0.763239 -0.477047", "H 0.0 0.763239"), "got 'H 0.0 0.763239' in line 4"),
    (WATER.replace("O ", "Q7 "), "'Q7'"), (WATER.replace("O ", "0 "), "'0'"), (WATER.replace("O ", "999 "), "'999'"),
    (WATER.replace("water", "charge=1 total_charge=0"), "got charge=1 and total_charge=0"),
    (WATER.replace("water", "multiplicity=3 spin=0"), "0 unpaired electrons and multiplicity 3"),
    (WATER.replace("water", "multiplicity=0"), "multiplicity from 1"),
    (WATER.replace("O ", "CA "), "got 'CA' in line 3"), (WATER.replace("H ", "HE1 ", 1), "got 'HE1' in line 4"),
    (WATER.replace("O ", "9" * 5000 + " "), "'99999"),
    (WATER.replace("water", "Atoms. Timestep: 0"), "atom types of LAMMPS in line 3"),
    (WATER.replace("water", "charge=1e400"), "charge"), (WATER.replace("water", "charge=" + "9" * 400), "charge"),
    (WATER.replace("water", "Properties=species:S:99999999999:pos:R:3"), "names 100000000002 columns"),
    (WATER.replace("water", "charge=x"), "charge x"),
    (WATER.replace("water", 'Lattice="5 0 0 0 5 0 0 0 5"'), "periodic cell; use pbc=False"),
    (WATER + "VEC1 1 0 0\n", "periodic cell in line 6"),
])
def test_what_is_not_understood_is_refused_with_the_line(text, said):
    assert said in refused(ql.read_xyz, text)


def test_a_file_does_not_hide_smiles_and_is_not_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CCO").write_text(WATER)
    assert ql.Molecule.parse("CCO").formula == "C2H6O"
    (tmp_path / "secret.txt").write_text("password\n")
    message = refused(ql.Molecule.parse, "secret.txt")
    assert "secret.txt" in message
    assert "password" not in message


@pytest.mark.parametrize("name", ["water.extxyz", "water.txt", "water", "water.XYZ", "water.gz.bak"])
def test_a_file_is_read_whatever_its_ending(tmp_path, name, monkeypatch):
    path = tmp_path / name
    path.write_text(WATER)
    monkeypatch.chdir(tmp_path)
    expected = "H2O"
    assert ql.Molecule.parse(path).formula == expected
    if name != "water":  # the name of a built-in molecule
        assert ql.Molecule.parse(name).formula == expected
        assert [mol.formula for mol in ql.read_molecules([name])] == [expected]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_a_comment_in_any_encoding_is_no_hindrance(tmp_path, encoding):
    path = tmp_path / "water.xyz"
    path.write_bytes(WATER.replace("water", "Wasser für é").encode(encoding))
    assert ql.Molecule.parse(path).formula == "H2O"


def test_charges_and_magnetic_moments_of_atoms_in_ase_are_heeded():
    assert ql.Molecule.from_ase(ase.build.molecule("O2")).spin == 2
    lithium = ase.Atoms("Li")
    lithium.set_initial_charges([1])
    assert ql.Molecule.from_ase(lithium).charge == 1
    lithium.set_initial_charges([0.5])
    assert "Expected a whole number as charge, got 0.500" in refused(ql.Molecule.from_ase, lithium)
    lithium.info["charge"] = 1
    assert ql.Molecule.from_ase(lithium).charge == 1
    cell = ase.Atoms("He", cell=[5, 5, 5], pbc=True)
    assert "periodic" in refused(ql.Molecule.from_ase, cell)
