"""Molecules: element symbols, positions, charge and spin, from a name, XYZ, SMILES or ASE."""

import dataclasses
import functools
import importlib.resources
import io
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import ase
import ase.data
import ase.io
import numpy as np
from jaxtyping import Float, Int

from qptlab import files
from qptlab.errors import MAX_SHOWN, InputError, clipped, shown
from qptlab.system import xyz
from qptlab.units import BOHR_ANGSTROM

if TYPE_CHECKING:
    import networkx as nx

MAX_ATOMIC_NUMBER = 86
"""Radon: GFN2-xTB and the auxiliary bases end with it."""

MIN_DISTANCE_ANGSTROM = 0.4
"""Smallest distance of two nuclei that is accepted (the shortest bond, H–H, is 0.74 Å long)."""

MAX_PATH_CHARACTERS = 500

MAX_NAME_CHARACTERS = 500
"""Longest name of a molecule; a longer one lacks its middle."""

XYZ_SUFFIXES = (".xyz", ".extxyz")
"""Endings of the names of XYZ files."""

BOND_FACTOR = 1.3
"""Two atoms are bonded if their distance is below this factor times the sum of their covalent radii. At 500 K an X–H
bond stretches by 20 %; the nearest non-bonded pairs have a factor above 1.5."""


@dataclasses.dataclass(frozen=True, eq=False)
class Molecule:
    """Molecule at one geometry.

    Attributes:
      symbols: element symbols, one per atom.
      positions: nuclear positions, bohr.
      charge: total charge, elementary charges.
      name: name on plots and in files; line breaks and other characters that are not printable become spaces.
      spin: number of unpaired electrons (2S, as in PySCF); by default 0 or 1, whichever the electrons allow.
      source: how the geometry was found, if qptlab found it.

    Raises:
      InputError: if an element is unknown, positions are not finite or do not fit the symbols, atoms overlap, or the
        electrons cannot have the charge and spin.

    >>> Molecule.from_name("water").formula
    'H2O'
    """

    symbols: tuple[str, ...]
    positions: Float[np.ndarray, "natm 3"]
    charge: int = 0
    name: str = ""
    spin: int | None = None
    source: str = ""

    def __post_init__(self):
        """Check the record once, where it enters."""
        object.__setattr__(self, "symbols", tuple(self.symbols[: xyz.MAX_ATOMS + 1]))
        positions = np.array(self.positions, dtype=np.float64)
        object.__setattr__(self, "positions", positions)
        if not isinstance(self.name, str):
            raise InputError(f"Expected text as the name of a molecule, got {shown(self.name)}; use a word.")
        object.__setattr__(self, "name", clipped(self.name, MAX_NAME_CHARACTERS).strip())
        _check_elements(self.symbols, self.name[:MAX_SHOWN] or "the molecule")  # a formula has elements
        _check_positions(self.symbols, positions, self._title)
        if self.spin is None:
            object.__setattr__(self, "spin", self.nelectron % 2)
        _check_electrons(self.nelectron, self.charge, cast(int, self.spin), self._title)

    @property
    def _title(self) -> str:
        return self.name[:MAX_SHOWN] or self.formula or "the molecule"

    @property
    def atomic_numbers(self) -> np.ndarray:
        """Nuclear charges, one per atom."""
        return np.array([ase.data.atomic_numbers[symbol] for symbol in self.symbols])

    @property
    def nelectron(self) -> int:
        """Number of electrons, with those of the cores."""
        return int(self.atomic_numbers.sum()) - self.charge

    @property
    def formula(self) -> str:
        """Hill formula, without the charge."""
        return ase.Atoms(self.symbols).get_chemical_formula(mode="hill") if self.symbols else ""

    @property
    def positions_angstrom(self) -> Float[np.ndarray, "natm 3"]:
        """Nuclear positions, ångström."""
        return self.positions * BOHR_ANGSTROM

    @property
    def bonds(self) -> frozenset[tuple[int, int]]:
        """Pairs of atoms that are bonded, by their distance."""
        radii = ase.data.covalent_radii[self.atomic_numbers]
        distance = np.linalg.norm(self.positions_angstrom[:, None] - self.positions_angstrom, axis=-1)
        near = np.triu(distance < BOND_FACTOR * (radii[:, None] + radii), k=1)
        return frozenset((int(i), int(j)) for i, j in np.argwhere(near))

    def orders(self, other: "Molecule", limit: int = 1) -> Int[np.ndarray, "norder natm"]:
        """Return the orders of a second molecule's atoms that match the elements and bonds of this one.

        There is none if the second is a different molecule, or has a different charge or spin.

        Args:
          other: second molecule.
          limit: largest number of orders to return; equivalent atoms can often be exchanged.
        """
        same = (self.charge, self.spin) == (other.charge, other.spin)
        if not same or sorted(self.symbols) != sorted(other.symbols):
            return np.zeros((0, len(self.symbols)), dtype=int)
        if limit == 1 and self.symbols == other.symbols and self.bonds == other.bonds:
            return np.arange(len(self.symbols))[None]
        import networkx as nx  # a tenth of a second; an energy does not need it

        matcher = nx.isomorphism.GraphMatcher(
            self.graph(), other.graph(), node_match=lambda a, b: a["symbol"] == b["symbol"]
        )
        maps = itertools.islice(matcher.isomorphisms_iter(), limit)
        orders = [[mapping[i] for i in range(len(self.symbols))] for mapping in maps]
        return np.array(orders, dtype=int).reshape(-1, len(self.symbols))

    def graph(self) -> "nx.Graph":
        """Return the graph of the bonds, whose nodes are the indices of the atoms, with their element as `symbol`."""
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from((i, {"symbol": symbol}) for i, symbol in enumerate(self.symbols))
        graph.add_edges_from(sorted(self.bonds))
        return graph

    @property
    def is_connected(self) -> bool:
        """True if every atom can be reached from every other one along bonds."""
        from scipy.sparse.csgraph import connected_components

        bonded = np.zeros((len(self.symbols),) * 2, bool)
        bonded[tuple(np.array(sorted(self.bonds), int).reshape(-1, 2).T)] = True
        return connected_components(bonded, directed=False, return_labels=False) == 1

    def with_positions(self, positions: Float[np.ndarray, "natm 3"]) -> "Molecule":
        """Return the molecule at different positions, bohr."""
        return dataclasses.replace(self, positions=positions, source="")

    def to_ase(self) -> ase.Atoms:
        """Return an `ase.Atoms` (ångström), with charge and spin in `info`."""
        info = {"charge": self.charge, "spin": self.spin}
        return ase.Atoms(self.symbols, self.positions_angstrom, info=info)

    def to_xyz(self) -> str:
        """Return one frame of extended XYZ, ångström."""
        text = io.StringIO()
        ase.io.write(text, self.to_ase(), format="extxyz")
        return text.getvalue()

    @classmethod
    def from_name(cls, name: str) -> "Molecule":
        """Return a built-in molecule at its GFN2-xTB minimum; `BUILTIN` lists the names.

        Raises:
          InputError: if no built-in molecule has the name.
        """
        frames = _builtin()
        key = name.strip().lower().replace("-", " ")
        if key not in frames:
            raise InputError(
                f"Expected the name of a built-in molecule, got {shown(name)}; use one of {', '.join(frames)}."
            )
        return frames[key].with_positions(frames[key].positions)  # a copy, which the caller may change

    @classmethod
    def from_xyz(cls, source: str | pathlib.Path) -> "Molecule":
        """Return the first frame of an XYZ file or of XYZ text (ångström).

        Raises:
          InputError: if `read_xyz` refuses it.
        """
        return read_xyz(source)[0]

    @classmethod
    def from_smiles(cls, smiles: str, spin: int | None = None) -> "Molecule":
        """Return a molecule of a SMILES string: RDKit's conformer, relaxed with GFN2-xTB; see `smiles.molecule`.

        Args:
          smiles: SMILES; fragments are placed beside each other.
          spin: number of unpaired electrons; None for that of the SMILES or, for atoms, O2, SO and S2, of the ground
            state.

        Warns:
          UserWarning: if the spin is not that of the Lewis structure, or GFN2-xTB cannot relax it without changing
            its bonds.

        Raises:
          InputError: if the text does not parse or no geometry is found.
        """
        from qptlab.system import smiles as geometries  # it makes molecules

        return geometries.molecule(smiles.strip(), spin)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms, name: str = "") -> "Molecule":
        """Return the molecule of an `ase.Atoms`.

        Charge and spin are those of `info`, under the names of `CHARGES` and `MULTIPLICITIES` as well; or else the
        sums of the initial charges and magnetic moments of the atoms.

        Raises:
          InputError: if it is periodic, charge or spin are stated twice with different values or are no whole
            numbers, or the molecule cannot be used.
        """
        if atoms.pbc.any():
            raise InputError(
                f"Expected a molecule, got {atoms.get_chemical_formula()} in a periodic cell; use pbc=False."
            )
        return cls(
            tuple(atoms.get_chemical_symbols()),
            atoms.get_positions() / BOHR_ANGSTROM,
            stated_charge(atoms) or 0,
            name or str(atoms.info.get("name", "")),
            _spin(atoms),
        )

    @classmethod
    def parse(
        cls, text: str | pathlib.Path, spin: int | None = None, report: Callable[[str], None] = lambda step: None,
        max_atoms: int | None = None,
    ) -> "Molecule":
        """Return the molecule of a user's text: a built-in name, the path of an XYZ file, XYZ text or SMILES.

        Args:
          text: text of the user. A file with another ending than .xyz or .extxyz is read as XYZ, too, if its name is
            no SMILES.
          spin: number of unpaired electrons; None for that of the text, or else the lowest possible.
          report: callback `report(step)`, called before each step of the search for a geometry; an exception ends it.
          max_atoms: largest number of atoms of SMILES, for which a geometry is searched; None for `smiles.MAX_ATOMS`.

        Raises:
          InputError: if the text is none of these, or the electrons cannot have the spin.

        >>> Molecule.parse("CCO").formula
        'C2H6O'
        """
        is_path = isinstance(text, pathlib.Path)
        mol = cls.from_xyz(text) if is_path else cls._parse(text, spin, report, max_atoms)
        return mol if spin in (None, mol.spin) else dataclasses.replace(mol, spin=spin)

    @classmethod
    def _parse(
        cls, text: str, spin: int | None, report: Callable[[str], None], max_atoms: int | None
    ) -> "Molecule":
        stripped = text.strip()
        if stripped.lower().replace("-", " ") in _builtin():
            return cls.from_name(stripped)
        if "\n" in stripped or stripped.lower().endswith(XYZ_SUFFIXES):
            return cls.from_xyz(text if "\n" in stripped else stripped)
        from qptlab.system.smiles import NotSmilesError, molecule  # it makes molecules

        try:
            return molecule(stripped, spin, report, max_atoms)
        except NotSmilesError:
            if is_file(stripped):
                return cls._from_other_file(stripped)
            raise InputError(
                f"Expected a molecule, got {shown(stripped)}, which cannot be read as a molecule; use SMILES such as "
                f"CCO, an .xyz file, or one of {', '.join(_builtin())}."
            ) from None

    @classmethod
    def _from_other_file(cls, path: str) -> "Molecule":
        """Return the molecule of a file with another ending; no message quotes it, as it may be any file."""
        try:
            return cls.from_xyz(path)
        except InputError:
            raise InputError(
                f"Expected a molecule, got the file {shown(path)}, which is no XYZ that can be used; use a name with "
                ".xyz at the end, and the message says which line is wrong."
            ) from None


def is_file(text: str) -> bool:
    """Return True if a text is the path of a file."""
    try:
        return 0 < len(text) < MAX_PATH_CHARACTERS and pathlib.Path(text).is_file()
    except (OSError, ValueError):  # no path at all
        return False


def read_xyz(source: str | pathlib.Path) -> list[Molecule]:
    """Return all frames of an XYZ or extended XYZ file, or of XYZ text (ångström).

    Args:
      source: path, or the text itself: anything with a line break is text.

    Raises:
      InputError: if it cannot be read, is incomplete, or a frame is not a molecule that can be used.
    """
    if isinstance(source, str) and "\n" in source:
        title, name, lines = "the XYZ text", "", xyz.text_lines(source)
    else:
        title, name, lines = files.title(source), pathlib.Path(source).stem, files.lines(source, "an XYZ file")
    mols = [_frame(frame, index, name or title) for index, frame in enumerate(xyz.frames(lines, title))]
    if not mols:
        raise InputError(f"Expected at least one frame in {title}, got none; use a file with a molecule.")
    return mols if len(mols) > 1 else [dataclasses.replace(mols[0], name=name or title)]


def _frame(atoms: ase.Atoms, index: int, title: str) -> Molecule:
    try:
        return Molecule.from_ase(atoms, name=f"{title} frame {index}")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"Expected a molecule in frame {index} of {title}, got one that cannot be used ({error}); correct it."
        ) from None


def _check_elements(symbols: Sequence[str], title: str) -> None:
    if not symbols:
        raise InputError("Expected at least one atom, got a molecule without atoms; use a symbol for each atom.")
    if len(symbols) > xyz.MAX_ATOMS:
        raise InputError(
            f"Expected at most {xyz.MAX_ATOMS} atoms in a molecule, got more in {title}; use a part of it."
        )
    for index, symbol in enumerate(symbols):
        number = ase.data.atomic_numbers.get(symbol, 0)
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            raise InputError(
                f"Expected elements from H to Rn, but atom {index} of {title} is {shown(symbol)}; use an element's "
                "symbol."
            )


CHARGES = ("charge", "total_charge")
MULTIPLICITIES = ("multiplicity", "spin_multiplicity", "mult", "spin_mult")


def stated_charge(atoms: ase.Atoms) -> int | None:
    """Return the charge that an `ase.Atoms` states; None if it states none.

    Raises:
      InputError: if it states two, or no whole number.
    """
    stated = _stated(atoms.info, CHARGES)
    return _sum_of(atoms, "initial_charges", "charge") if stated is None else stated


def _spin(atoms: ase.Atoms) -> int | None:
    """Return the number of unpaired electrons that an `ase.Atoms` states."""
    spin, multiplicity = _stated(atoms.info, ("spin",)), _stated(atoms.info, MULTIPLICITIES)
    if multiplicity is not None and multiplicity < 1:
        raise InputError(f"Expected a multiplicity from 1, got {multiplicity}; use 1 for a closed shell.")
    if spin is not None and multiplicity is not None and spin != multiplicity - 1:
        raise InputError(
            f"Expected one spin, got {spin} unpaired electrons and multiplicity {multiplicity}; remove one of them."
        )
    if spin is None and multiplicity is None:
        total = _sum_of(atoms, "initial_magmoms", "sum of magnetic moments")
        return None if total is None else abs(total)
    return spin if spin is not None else cast(int, multiplicity) - 1


def _stated(info: Mapping, keys: Sequence[str]) -> int | None:
    """Return the whole number under one of several names; they are found in any case."""
    values = {
        str(key): _whole(value, str(key)) for key, value in info.items()
        if str(key).lower() in keys and value is not None
    }
    if len(set(values.values())) > 1:
        texts = " and ".join(f"{key}={value}" for key, value in values.items())
        raise InputError(f"Expected one {keys[0]}, got {texts}; remove one of them.")
    return next(iter(values.values()), None)


def _sum_of(atoms: ase.Atoms, array: str, name: str) -> int | None:
    """Return the sum of numbers of the atoms; None if there are none."""
    if array not in atoms.arrays or not np.any(atoms.arrays[array]):
        return None
    total = float(np.sum(atoms.arrays[array]))
    if abs(total - round(total)) > MAX_ROUNDING:
        raise InputError(
            f"Expected a whole number as {name}, got {total:.3f} from {array} of {atoms.get_chemical_formula()}; use "
            f"info[{'charge' if 'charge' in array else 'spin'!r}]."
        )
    return round(total)


MAX_ROUNDING = 0.01
"""Largest deviation from a whole number of a sum of charges or magnetic moments of atoms, as of rounded ones."""


def _whole(value, key: str) -> int | None:
    try:
        if value is not None and (isinstance(value, bool | np.bool_) or int(value) != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"Expected a whole number as {key}, got {key} {str(value)[:60]}; use 0 or 1.") from None
    return None if value is None else int(value)


def _check_electrons(nelectron: int, charge: int, spin: int, title: str) -> None:
    if nelectron <= 0:
        raise InputError(
            f"Expected a charge that leaves electrons, but {title} has {nelectron} electrons at charge {charge}; use "
            "a smaller charge."
        )
    if not 0 <= spin <= nelectron or (nelectron - spin) % 2:
        raise InputError(
            f"Expected a spin that the electrons allow, but {title} has {nelectron} electrons at charge {charge}, of "
            f"which {spin} cannot be unpaired; use spin {nelectron % 2}."
        )


def _check_positions(symbols: Sequence[str], positions: np.ndarray, title: str) -> None:
    if positions.shape != (len(symbols), 3):
        raise InputError(
            f"Expected positions of shape ({len(symbols)}, 3) for the {len(symbols)} atoms of {title}, got "
            f"{positions.shape}; use one row per atom."
        )
    if not np.isfinite(positions).all():
        atom = int(np.argwhere(~np.isfinite(positions).all(axis=1))[0, 0])
        raise InputError(
            f"Expected finite positions, but atom {atom} ({symbols[atom]}) of {title} has a position that is not a "
            "finite number; correct it."
        )
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1) * BOHR_ANGSTROM
    distance[np.diag_indices(len(symbols))] = np.inf
    if distance.min() < MIN_DISTANCE_ANGSTROM:
        i, j = map(int, np.unravel_index(distance.argmin(), distance.shape))
        raise InputError(
            f"Expected atoms at least {MIN_DISTANCE_ANGSTROM} Å apart, but atoms {i} ({symbols[i]}) and {j} "
            f"({symbols[j]}) of {title} are {distance[i, j]:.3f} Å apart; use positions in ångström."
        )


@functools.cache
def _builtin() -> dict[str, Molecule]:
    text = importlib.resources.files("qptlab.system").joinpath("molecules.xyz").read_text()
    frames = xyz.frames(xyz.text_lines(text), "molecules.xyz")
    return {frame.info["name"]: Molecule.from_ase(frame) for frame in frames}


BUILTIN: tuple[str, ...] = (
    "hydrogen", "water", "ammonia", "methane", "ethanol", "malondialdehyde", "benzene", "uracil",
    "alanine dipeptide",
)
"""Names of the built-in molecules, from small to large."""
