"""Molecules and methods as chemists write them: each is right to PySCF's last digits, or refused in one sentence.

One table. `Right` compares the energy of the command line with PySCF's for the molecule that is meant; `Refused`
holds words of the message. Both kinds come from reports of users of other programs.
"""

import functools
import json
import re
import warnings
from typing import NamedTuple

import pytest
from pyscf import dft, gto, scf

from qptlab.cli import main

WATER = "O 0 0 0.119262\nH 0 0.763239 -0.477047\nH 0 -0.763239 -0.477047"
HYDROGEN = "H 0 0 0\nH 0 0 0.74"
CHAIN = "\n".join(f"H 0 0 {0.45 * index:.2f}" for index in range(8))
OH, OXYGEN, LITHIUM = "O 0 0 0\nH 0 0 0.97", "O 0 0 0\nO 0 0 1.21", "Li 0 0 0"
STO = ("--basis", "sto-3g", "--xc", "hf")


class Right(NamedTuple):
    """What is meant: atoms (ångström), charge, unpaired electrons, PySCF's functional and basis; what is said."""

    atoms: str = WATER
    charge: int = 0
    spin: int = 0
    xc: str = "hf"
    basis: str = "sto-3g"
    said: str = ""


class Refused(NamedTuple):
    """Words of the sentence."""

    said: str


def xyz(atoms: str = WATER, comment: str = "", count: int | None = None) -> str:
    return f"{len(atoms.splitlines()) if count is None else count}\n{comment}\n{atoms}\n"


def changed(old: str, new: str) -> str:
    return xyz(WATER.replace(old, new))


FILES = {
    # Numbers and symbols
    "exponents of Fortran": (changed("0.119262", "1.19262D-01"), STO, Right()),
    "exponents of QM9": (changed("0.763239", "7.63239*^-1"), STO, Right()),
    "numbers without a leading zero": (changed("0.", "."), STO, Right()),
    "numbers with a plus": (changed(" 0.7", " +0.7"), STO, Right()),
    "atomic numbers": (xyz(WATER.replace("O", "8").replace("H", "1")), STO, Right()),
    "labels with numbers": (xyz(WATER.replace("O", "O1").replace("H 0 0", "H2 0 0")), STO, Right()),
    "deuterium": (xyz(WATER.replace("H", "D")), STO, Right(said="hydrogen")),
    "tritium": (xyz(WATER.replace("H", "T")), STO, Right(said="hydrogen")),
    "lower case": (xyz(WATER.lower()), STO, Right()),
    "upper case": (xyz("LI 0 0 0\nH 0 0 1.6"), STO, Right("Li 0 0 0\nH 0 0 1.6")),
    "a decimal comma": (changed("0.119262", "0,119262"), STO, Refused("0,119262' in line 3")),
    "a ghost atom": (changed("O ", "X "), STO, Refused("line 3|X")),
    "an element that does not exist": (changed("O ", "Qq "), STO, Refused("line 3.*Qq|Qq")),
    "a number that is not finite": (changed("0.119262", "nan"), STO, Refused("nan|finite")),
    "two atoms in one place": (xyz("H 0 0 0\nH 0 0 0"), STO, Refused("atoms? .*(close|same|distance|apart)")),
    # Lines
    "a blank line first": (f"\n{xyz()}", STO, Right()),
    "blank lines last": (f"{xyz()}\n \n\n", STO, Right()),
    "line ends of Windows": (xyz().replace("\n", "\r\n"), STO, Right()),
    "tabulators": (xyz().replace(" ", "\t"), STO, Right()),
    "a comment that looks like settings": (xyz(comment="Properties of water = good"), STO, Right()),
    "a comment in Latin-1": (xyz(comment="é å").encode("latin-1"), STO, Right()),
    "further columns": (xyz(WATER.replace("262", "262 -0.8 ok")), STO, Right()),
    "a count that is too large": (xyz(count=4), STO, Refused("line 6")),
    "a count that is too small": (xyz(count=2), STO, Refused("line 5|frame")),
    "an empty file": ("", STO, Refused("at least one frame")),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", STO, Refused("molecule|text|atoms")),
    # Charge and spin
    "charge": (xyz(LITHIUM, "charge=1"), STO, Right(LITHIUM, 1)),
    "total_charge": (xyz(LITHIUM, "total_charge=1"), STO, Right(LITHIUM, 1)),
    "multiplicity": (xyz(OXYGEN, "multiplicity=3"), STO, Right(OXYGEN, 0, 2)),
    "spin_multiplicity": (xyz(OXYGEN, "spin_multiplicity=3"), STO, Right(OXYGEN, 0, 2)),
    "charge and multiplicity as numbers": (xyz(OH, "-1 1"), STO, Right(OH, -1, 0, said="charge")),
    "spin": (xyz(OXYGEN, "spin=2"), STO, Right(OXYGEN, 0, 2)),
    "a spin that cannot be": (xyz(OXYGEN, "spin=1"), STO, Refused("unpaired|spin")),
    "a multiplicity that cannot be": (xyz(OXYGEN, "multiplicity=2"), STO, Refused("unpaired|spin|multiplicity")),
    "a charge in words": (xyz(LITHIUM, "charge=one"), STO, Refused("charge.*one|one")),
    "half a charge": (xyz(LITHIUM, "charge=0.5"), STO, Refused("0.5")),
    "a crystal": (xyz(comment='Lattice="5 0 0 0 5 0 0 0 5" pbc="T T T"'), STO, Refused("eriodic")),
    # Methods
    "a functional in capitals": (xyz(), ("--basis", "sto-3g", "--xc", "PBE"), Right(xc="pbe")),
    "a functional as PySCF writes it": (xyz(), ("--basis", "sto-3g", "--xc", "pbe,pbe"), Right(xc="pbe,pbe")),
    "svwn": (xyz(), ("--basis", "sto-3g", "--xc", "SVWN"), Right(xc="svwn")),
    "a basis in capitals": (xyz(), ("--basis", "STO-3G", "--xc", "hf"), Right()),
    "a basis with brackets": (
        xyz(HYDROGEN), ("--basis", "6-31G(d,p)", "--xc", "hf"), Right(HYDROGEN, basis="6-31g**"),
    ),
    "a basis that is cut": (xyz(), ("--basis", "cc-pvdz@2s1p", "--xc", "hf"), Right(basis="cc-pvdz@2s1p")),
    "a cut that is no contraction": (xyz(), ("--basis", "6-31g(d)@3s", "--xc", "hf"), Refused("3s|6-31g")),
    "a basis for a pseudopotential": (xyz(), ("--basis", "gth-szv", "--xc", "hf"), Refused("gth-szv")),
    "a basis without the core": (xyz(), ("--basis", "bfd-vdz", "--xc", "hf"), Refused("bfd-vdz")),
    "a basis for density fitting": (xyz(), ("--basis", "weigend", "--xc", "hf"), Refused("weigend")),
    "a basis that is linearly dependent": (
        xyz(CHAIN), ("--basis", "6-31++g", "--xc", "hf"),
        Right(CHAIN, basis="6-31++g"),
    ),
    "a functional that is not offered": (xyz(), ("--basis", "sto-3g", "--xc", "m06-2x"), Refused("m06-2x.*pbe")),
    "a file as basis": (xyz(), ("--basis", "./basis.nw", "--xc", "hf"), Refused("basis.nw")),
    "code as basis": (xyz(), ("--basis", "H S\n 1.0 __import__('os')", "--xc", "hf"), Refused("basis")),
}


@functools.cache
def expected(meant: Right) -> float:
    """Return PySCF's energy, hartree."""
    mol = gto.M(atom=meant.atoms, basis=meant.basis, charge=meant.charge, spin=meant.spin, verbose=0)
    if meant.xc == "hf":
        mf = scf.UHF(mol) if meant.spin else scf.RHF(mol)
    else:
        mf = dft.RKS(mol, xc=meant.xc)
        mf.grids.level = 3
    mf.conv_tol = 1e-11
    return float(mf.kernel())


@pytest.mark.parametrize(("content", "options", "found"), FILES.values(), ids=FILES)
def test_a_situation_is_right_or_refused(content, options, found, tmp_path, capsys):
    path = tmp_path / "input.xyz"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = found.said if isinstance(found, Right) else ""
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the command line prints them
        with pytest.raises(SystemExit) as ended:
            main(["energy", str(path), *options, "--json"])
    out, err = capsys.readouterr()
    if isinstance(found, Refused):
        assert (ended.value.code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1
        assert len(err) < 400
        assert re.search(found.said, err)
        return
    assert ended.value.code == 0, err
    assert said in err
    assert bool(said) == bool(err)
    assert json.loads(out)["energy_ha"] == pytest.approx(expected(found), abs=1e-7)
