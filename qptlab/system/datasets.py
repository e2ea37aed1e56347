"""Sets of molecules: files and texts of a user, and QM9, of which a molecule is read when it is asked for.

    >>> from qptlab.system import datasets
    >>> train = datasets.qm9().select(max_heavy=4).split("random").train  # doctest: +SKIP
    >>> same = datasets.read_molecules(["qm9:max_heavy=4,split=random-train"])  # doctest: +SKIP

QM9 (Ramakrishnan et al. 2014, doi:10.1038/sdata.2014.22) comes with the package qm9pack, ``pip install
'qptlab[qm9]'``. Geometries and SMILES are read from its files; its labels are not, and its code is not run.
"""

import csv
import functools
import importlib.util
import itertools
import pathlib
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast, overload

import numpy as np
from jaxtyping import Int

from qptlab import files
from qptlab.errors import InputError, shown
from qptlab.random_streams import Purpose, generator
from qptlab.system.molecule import (
    MAX_PATH_CHARACTERS,
    XYZ_SUFFIXES,
    Molecule,
    is_file,
    read_xyz,
)
from qptlab.units import BOHR_ANGSTROM

SPLITS = ("random", "size")
"""Names of the splits of QH9 (Yu et al. 2023, arXiv:2306.09549): "random" has shares of 80, 10 and 10 % for training,
validation and test; "size" trains on up to 20 atoms, validates on 21 and 22 and tests on more."""

MAX_SMILES = 200_000
"""Largest number of SMILES of one file; each takes a tenth of a second."""

SPLIT_SEED = 43
"""Seed of QH9's random split."""

_ELEMENTS = ("H", "C", "N", "O", "F")  # the order of QM9's column of numbers of atoms

_COUNTS = re.compile(rb'"\[(\d+),(\d+),(\d+),(\d+),(\d+)\]"')


class Split(NamedTuple):
    """Division of a data set.

    Attributes:
      train: molecules for training.
      validation: molecules for decisions during training.
      test: molecules for the final errors.
    """

    train: "QM9"
    validation: "QM9"
    test: "QM9"


class _File(NamedTuple):
    """Molecules in one file: where each row begins, and how many atoms of each element it has."""

    path: pathlib.Path
    offsets: Int[np.ndarray, " n"]
    counts: Int[np.ndarray, "n 5"]


class QM9(Sequence[Molecule]):
    """Molecules of QM9, or some of them; each is read from disk when it is asked for.

    Args:
      files: files of the data set.
      indices: positions of the molecules in the whole data set.

    Attributes:
      indices: positions of the molecules in the whole data set, which QH9 counts in the same way.
    """

    def __init__(self, files: Sequence[_File], indices: Int[np.ndarray, " n"]):
        self._files, self.indices = tuple(files), np.asarray(indices, int)
        self._first = np.cumsum([0, *(len(file.offsets) for file in files)])

    @property
    def counts(self) -> Int[np.ndarray, "n 5"]:
        """Numbers of atoms of H, C, N, O and F in each molecule."""
        return np.concatenate([file.counts for file in self._files])[self.indices]

    @property
    def sizes(self) -> Int[np.ndarray, " n"]:
        """Number of atoms of each molecule."""
        return self.counts.sum(axis=1)

    @property
    def heavy(self) -> Int[np.ndarray, " n"]:
        """Number of atoms of each molecule that are not hydrogen."""
        return self.counts[:, 1:].sum(axis=1)

    def __len__(self) -> int:
        """Return the number of molecules."""
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Molecule: ...

    @overload
    def __getitem__(self, index: slice) -> "QM9": ...

    def __getitem__(self, index: int | slice) -> "Molecule | QM9":
        """Return one molecule at its geometry in QM9, named by its SMILES; for a slice, a part of the data set."""
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        number = self.indices[index]
        file = int(np.searchsorted(self._first, number, side="right")) - 1
        with self._files[file].path.open("rb") as stream:
            stream.seek(int(self._files[file].offsets[number - self._first[file]]))
            return _molecule(next(csv.DictReader([stream.readline().decode()], _columns(self._files[file].path))))

    def __repr__(self) -> str:
        """Return the number of molecules and their sizes."""
        span = f", {self.sizes.min()} to {self.sizes.max()} atoms" if len(self) else ""
        return f"QM9({len(self)} molecules{span})"

    def take(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> "QM9":
        """Return the molecules at some positions of this data set, in the given order."""
        return QM9(self._files, self.indices[np.asarray(indices, int)])

    def select(
        self, *, min_heavy: int = 0, max_heavy: int | None = None, min_atoms: int = 0, max_atoms: int | None = None,
        elements: Iterable[str] = _ELEMENTS,
    ) -> "QM9":
        """Return the molecules within some limits, in their order.

        Args:
          min_heavy: smallest number of atoms that are not hydrogen.
          max_heavy: largest number of atoms that are not hydrogen; None for no limit.
          min_atoms: smallest number of atoms.
          max_atoms: largest number of atoms; None for no limit.
          elements: elements that a molecule may have.

        Raises:
          InputError: if an element does not occur in QM9.
        """
        allowed = set(elements)
        if unknown := sorted(allowed - set(_ELEMENTS)):
            raise InputError(f"Expected elements of QM9 ({', '.join(_ELEMENTS)}), got {shown(unknown[0])}.")
        excluded = [index for index, symbol in enumerate(_ELEMENTS) if symbol not in allowed]
        sizes, heavy = self.sizes, self.heavy
        is_selected = (self.counts[:, excluded].sum(axis=1) == 0) & (heavy >= min_heavy) & (sizes >= min_atoms)
        for numbers, largest in ((heavy, max_heavy), (sizes, max_atoms)):
            if largest is not None:
                is_selected &= numbers <= largest
        return self.take(np.flatnonzero(is_selected))

    def draw(self, count: int, seed: int = 0) -> "QM9":
        """Return some of the molecules, drawn at random, in their order in the data set.

        Args:
          count: number of molecules.
          seed: seed of the random numbers.

        Raises:
          InputError: if there are fewer molecules.
        """
        if not 0 < count <= len(self):
            raise InputError(
                f"Expected 1 to {len(self)} molecules to draw, got {count}; use a smaller number or a larger part of "
                "QM9."
            )
        drawn = generator(Purpose.SELECTION, seed).choice(len(self), count, replace=False)
        return self.take(np.sort(drawn))

    def split(self, name: str) -> Split:
        """Return the molecules of this data set in the parts of a split of the whole QM9.

        So a selection of the training part has no molecule of the test part, whatever was selected first.

        Args:
          name: one of `SPLITS`.

        Raises:
          InputError: if the name is not one of `SPLITS`.
        """
        if name not in SPLITS:
            raise InputError(f"Expected a split ({', '.join(SPLITS)}), got {shown(name)}; use one of these.")
        if name == "size":
            sizes = self.sizes
            members = [sizes <= 20, (sizes > 20) & (sizes <= 22), sizes > 22]
        else:
            total = int(self._first[-1])
            order = np.random.RandomState(SPLIT_SEED).permutation(total)
            first, second = int(0.8 * total), int(0.8 * total) + int(0.1 * total)
            members = [np.isin(self.indices, part) for part in np.split(order, [first, second])]
        return Split(*(self.take(np.flatnonzero(member)) for member in members))


def qm9() -> QM9:
    """Return QM9: 130,831 molecules of up to nine atoms of C, N, O and F, and hydrogen.

    The first call of a process searches all files for the molecules.

    Raises:
      InputError: if the package qm9pack is not installed.
    """
    package = importlib.util.find_spec("qm9pack")  # its code is not run
    if package is None or package.submodule_search_locations is None:
        raise InputError(
            "Expected the package qm9pack, which holds QM9, got none; use `pip install 'qptlab[qm9]'` to install it."
        )
    folder = pathlib.Path(package.submodule_search_locations[0]) / "data"
    files = [_index(folder / f"qm9_part{part}.csv") for part in (1, 2, 3)]
    return QM9(files, np.arange(sum(len(file.offsets) for file in files)))


def read_molecules(texts: Sequence[str], *, skip_bad: bool = False) -> list[Molecule]:
    """Return the different molecules of several texts.

    Molecules are different if their elements, charges, spins or bonds differ, whatever the order of their atoms.

    Args:
      texts: texts as for `Molecule.parse`. An XYZ file may hold several molecules: the first frame of each is taken.
        A `.smi` file has SMILES at the beginning of each line. "qm9" is the whole of QM9, and "qm9:max_heavy=4" a
        part, see `read_qm9`.
      skip_bad: if true, lines of a `.smi` file that cannot be used are left out with a warning, such as a header or a
        salt; else they are an error.

    Warns:
      UserWarning: for each line that is left out.

    Raises:
      InputError: if a text cannot be read, or nothing can be used.

    >>> [mol.formula for mol in read_molecules(["water", "CO", "OC", "CCO", "COC"])]
    ['H2O', 'CH4O', 'C2H6O', 'C2H6O']
    """
    return different(itertools.chain.from_iterable(_read_several(text, skip_bad=skip_bad) for text in texts))


def different(mols: Iterable[Molecule]) -> list[Molecule]:
    """Return the different molecules of several, in their order; the order of their atoms does not matter."""
    chosen: list[Molecule] = []
    isomers: dict[tuple, dict[str, list[Molecule]]] = {}
    for mol in mols:
        alike = isomers.setdefault((tuple(sorted(mol.symbols)), mol.charge, mol.spin), {})
        # With thousands of isomers, comparing each with each would take hours.
        earlier = alike.setdefault(_hash_of_bonds(mol), [])
        if not any(len(mol.orders(other)) for other in earlier):
            earlier.append(mol)
            chosen.append(mol)
    return chosen


def _hash_of_bonds(mol: Molecule) -> str:
    """Return a text that is equal for molecules with the same bonds, and different for most others."""
    import networkx as nx  # a tenth of a second; an energy does not need it

    return nx.weisfeiler_lehman_graph_hash(mol.graph(), node_attr="symbol")


def _read_several(text: str, *, skip_bad: bool) -> Iterable[Molecule]:
    suffix = pathlib.Path(text).suffix.lower() if len(text) < MAX_PATH_CHARACTERS else ""
    if text.partition(":")[0] == "qm9":
        return read_qm9(text)
    if suffix in XYZ_SUFFIXES or (suffix and suffix != ".smi" and is_file(text)):
        return read_xyz(text)
    if suffix != ".smi":
        return [Molecule.parse(text)]
    mols, tried, title = [], 0, files.title(text)
    for number, line in enumerate(files.lines(text, "a file of SMILES"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        tried += 1
        if tried > MAX_SMILES:
            raise InputError(f"Expected at most {MAX_SMILES} SMILES, got more in {title}; use a part of the file.")
        try:
            mols.append(Molecule.from_smiles(line.split(maxsplit=1)[0]))
        except InputError as error:
            if not skip_bad:
                raise InputError(f"Line {number} of {title}: {error}") from None
            warnings.warn(f"Line {number} of {title} is left out: {error}", stacklevel=3)
    if not mols:
        raise InputError(
            f"Expected SMILES on each line of {title}, got {'none that can be used' if tried else 'none'}; use "
            "lines such as CCO."
        )
    return mols


def read_qm9(text: str) -> QM9:
    """Return the molecules of QM9 that a text describes.

    Args:
      text: "qm9", or with options "qm9:NAME=VALUE,NAME=VALUE…". The options are the limits of `QM9.select`;
        `split`, one of `SPLITS` and a part, such as "random-train"; and `count`, a number of molecules that are drawn
        at random.

    Raises:
      InputError: if the text cannot be read, or QM9 is not installed.

    >>> read_qm9("qm9:max_heavy=4,elements=HCO,split=size-train,count=20")  # doctest: +SKIP
    QM9(20 molecules, 5 to 14 atoms)
    """
    options = [option.strip().partition("=") for option in filter(None, text.partition(":")[2].split(","))]
    given = {name.strip(): value.strip() for name, _, value in options}
    numbers = ("min_heavy", "max_heavy", "min_atoms", "max_atoms", "count")
    accepted = {
        **dict.fromkeys(numbers, r"\d{1,6}"), "elements": "[A-Z]+",
        "split": f"({'|'.join(SPLITS)})-({'|'.join(Split._fields)})",
    }
    for name, value in given.items():
        if name not in accepted or not re.fullmatch(accepted[name], value, re.ASCII):
            raise InputError(
                f"Expected options of qm9 ({', '.join(accepted)}), got {shown(f'{name}={value}')}; use "
                "qm9:max_heavy=4,split=random-train,count=100, for example."
            )
    limits: dict[str, Any] = {name: int(given[name]) for name in numbers[:-1] if name in given}
    chosen = qm9().select(**limits, elements=given.get("elements", _ELEMENTS))
    if "split" in given:
        split, part = given["split"].split("-")
        chosen = getattr(chosen.split(split), part)
    return chosen.draw(int(given["count"])) if "count" in given else chosen


@functools.cache
def _index(path: pathlib.Path) -> _File:
    """Return where the rows of a file begin, and the numbers of atoms in each; the file is read once."""
    offsets, counts = [], []
    with path.open("rb") as stream:
        position = len(stream.readline())
        for line in stream:
            # A search is several times faster than reading the whole row as CSV.
            numbers = cast(re.Match, _COUNTS.search(line))
            offsets.append(position)
            counts.append([int(number) for number in numbers.groups()])
            position += len(line)
    return _File(path, np.array(offsets), np.array(counts, dtype=np.int8))


@functools.cache
def _columns(path: pathlib.Path) -> list[str]:
    """Return the titles of the columns of a file."""
    with path.open(newline="") as stream:
        return next(csv.reader(stream))


def _molecule(row: dict[str, str]) -> Molecule:
    symbols = row["Elements"].translate(str.maketrans("", "", "[]' ")).split(",")
    numbers = row["XYZ_Ang"].translate(str.maketrans("", "", "[] ")).split(",")
    positions = np.array(numbers, float).reshape(-1, 3) / BOHR_ANGSTROM
    return Molecule(tuple(symbols), positions, name=row["SMILES"])
