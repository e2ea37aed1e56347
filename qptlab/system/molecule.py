"""Molecules: element symbols, positions, charge and spin, from a name, XYZ, SMILES or ASE."""

import dataclasses
import functools
import importlib.resources
import io
import itertools
import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import ase
import ase.data
import ase.io
import numpy as np
from ase.io.extxyz import XYZError
from ase.io.formats import UnknownFileTypeError
from jaxtyping import Float, Int

from qptlab.errors import MAX_SHOWN, InputError, shown
from qptlab.units import BOHR_ANGSTROM

if TYPE_CHECKING:
    import networkx as nx

MAX_ATOMIC_NUMBER = 36
"""Krypton: heavier elements need effective core potentials, which are not implemented."""

MIN_DISTANCE_ANGSTROM = 0.4
"""Smallest distance of two nuclei that is accepted (the shortest bond, H–H, is 0.74 Å long)."""

MAX_XYZ_BYTES = 50_000_000
"""Largest text that is parsed: about a million atoms."""

MAX_SMILES_CHARACTERS = 500

BOND_FACTOR = 1.3
"""Two atoms are bonded if their distance is below this factor times the sum of their covalent radii. At 500 K an X–H
bond stretches by 20 %; the nearest non-bonded pairs have a factor above 1.5."""


class _NotSmilesError(InputError):
    """Error for a text that is not SMILES at all, unlike SMILES of a molecule that cannot be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Molecule:
    """Molecule at one geometry.

    Attributes:
      symbols: element symbols, one per atom.
      positions: nuclear positions, bohr.
      charge: total charge, elementary charges.
      name: name on plots and in files.
      spin: number of unpaired electrons (2S, as in PySCF); by default 0 or 1, whichever the electrons allow.

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

    def __post_init__(self):
        """Check the record once, where it enters."""
        object.__setattr__(self, "symbols", tuple(self.symbols))
        positions = np.array(self.positions, dtype=np.float64)
        object.__setattr__(self, "positions", positions)
        if not isinstance(self.name, str):
            raise InputError(f"Expected text as the name of a molecule, got {shown(self.name)}; use a word.")
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
        """Number of electrons."""
        return int(self.atomic_numbers.sum()) - self.charge

    @property
    def occupied(self) -> tuple[int, ...]:
        """Number of occupied orbitals: one number for a closed shell, else one for each spin, the larger first."""
        spin = cast(int, self.spin)  # known once the record is made
        return ((self.nelectron + spin) // 2, (self.nelectron - spin) // 2)[: 2 if spin else 1]

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

    def with_positions(self, positions: Float[np.ndarray, "natm 3"]) -> "Molecule":
        """Return the molecule at different positions, bohr."""
        return dataclasses.replace(self, positions=positions)

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
    def from_smiles(cls, smiles: str) -> "Molecule":
        """Return a conformer of a SMILES string, by RDKit's ETKDG (fixed seed) and MMFF94 or UFF.

        Raises:
          InputError: if the text does not parse or no conformer is found.
        """
        from rdkit import Chem, rdBase
        from rdkit.Chem.rdDistGeom import EmbedMolecule
        from rdkit.Chem.rdForceFieldHelpers import (
            MMFFHasAllMoleculeParams,
            MMFFOptimizeMolecule,
            UFFHasAllMoleculeParams,
            UFFOptimizeMolecule,
        )

        text = smiles.strip()
        hint = "use SMILES such as CCO for ethanol."
        if not text or len(text) > MAX_SMILES_CHARACTERS:
            raise _NotSmilesError(
                f"Expected SMILES of 1 to {MAX_SMILES_CHARACTERS} characters, got {len(text)}; {hint}"
            )
        with rdBase.BlockLogs():
            graph = Chem.MolFromSmiles(text)
            if graph is None or graph.GetNumAtoms() == 0:
                raise _NotSmilesError(
                    f"Expected SMILES of one molecule, got {shown(text)}, which does not parse; {hint}"
                )
            graph = Chem.AddHs(graph)
            if EmbedMolecule(graph, randomSeed=7) != 0:
                raise InputError(
                    f"Expected SMILES for which RDKit finds a 3D structure, got {shown(text)}; use an XYZ file."
                )
            if MMFFHasAllMoleculeParams(graph):
                MMFFOptimizeMolecule(graph)
            elif UFFHasAllMoleculeParams(graph):
                UFFOptimizeMolecule(graph)
        symbols = tuple(atom.GetSymbol() for atom in graph.GetAtoms())
        positions = graph.GetConformer().GetPositions() / BOHR_ANGSTROM
        unpaired = sum(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms())
        return cls(symbols, positions, Chem.GetFormalCharge(graph), text, unpaired)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms, name: str = "") -> "Molecule":
        """Return the molecule of an `ase.Atoms`; charge and spin are read from `info`, if they are there."""
        charge, spin = (_whole(atoms.info.get(key), key) for key in ("charge", "spin"))
        return cls(
            tuple(atoms.get_chemical_symbols()),
            atoms.get_positions() / BOHR_ANGSTROM,
            charge or 0,
            name or str(atoms.info.get("name", "")),
            spin,
        )

    @classmethod
    def parse(cls, text: str, spin: int | None = None) -> "Molecule":
        """Return the molecule of a user's text: a built-in name, the path of an XYZ file, XYZ text or SMILES.

        Args:
          text: text of the user.
          spin: number of unpaired electrons; None for that of the text, or else the lowest possible.

        Raises:
          InputError: if the text is none of these, or the electrons cannot have the spin.

        >>> Molecule.parse("CCO").formula
        'C2H6O'
        """
        mol = cls._parse(text)
        return mol if spin is None else dataclasses.replace(mol, spin=spin)

    @classmethod
    def _parse(cls, text: str) -> "Molecule":
        stripped = text.strip()
        if stripped.lower().replace("-", " ") in _builtin():
            return cls.from_name(stripped)
        if "\n" in stripped or stripped.lower().endswith(".xyz"):
            return cls.from_xyz(text if "\n" in stripped else stripped)
        try:
            return cls.from_smiles(stripped)
        except _NotSmilesError:
            raise InputError(
                f"Expected a molecule, got {shown(stripped)}, which cannot be read as a molecule; use SMILES such as "
                f"CCO, an .xyz file, or one of {', '.join(_builtin())}."
            ) from None


def read_xyz(source: str | pathlib.Path) -> list[Molecule]:
    """Return all frames of an XYZ or extended XYZ file, or of XYZ text (ångström).

    Args:
      source: path, or the text itself: anything with a line break is text.

    Raises:
      InputError: if it cannot be read, is incomplete, or a frame is not a molecule that can be used.
    """
    if isinstance(source, str) and "\n" in source:
        title, name, path = "the XYZ text", "", None
    else:
        path = pathlib.Path(source)
        title, name = str(source), path.stem
    try:
        text = str(source) if path is None else read_limited(path)
    except OSError as error:
        raise InputError(
            f"Expected an XYZ file, got {title}, which cannot be read ({error.strerror}); use an existing file."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"Expected an XYZ file, got {title}, which is not text; use a text file.") from None
    if len(text) > MAX_XYZ_BYTES:
        raise InputError(_too_large(title))
    text = text.lstrip("\ufeff")
    _check_counts(text.split("\n"), title)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ASE warns about unusual comments, which are not needed here
            frames = _frames(text)
    # Exceptions that ASE's reader was observed to raise for texts that are not XYZ.
    except (XYZError, ValueError, KeyError, IndexError, StopIteration, TypeError, RuntimeError,
            AttributeError, UnknownFileTypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"Expected XYZ, got {title}, which is not complete XYZ ({reason}); use frames of the number of atoms, a "
            "comment line, and one line per atom: symbol, x, y, z in ångström."
        ) from None
    if not frames:
        raise InputError(f"Expected at least one frame in {title}, got none; use a file with a molecule.")
    return [_frame(frame, index, name or title, len(frames)) for index, frame in enumerate(frames)]


def _check_counts(lines: list[str], title: str) -> None:
    """Raise an `InputError` if a frame has fewer lines than it announces: ASE would read beyond the end."""
    start = 0
    while start < len(lines) and lines[start].strip():
        try:
            natm = int(lines[start])
        except ValueError:
            return  # ASE's message says what is wrong
        remaining = len(lines) - start - 2
        if not 0 < natm <= remaining:
            raise InputError(
                f"Expected XYZ, got {title}, which is not complete XYZ (line {start + 1} announces {natm} atoms, and "
                f"{max(remaining, 0)} lines for them follow); use one line per atom: symbol, x, y, z in ångström."
            )
        start += 2 + natm
        while start < len(lines) and lines[start].lstrip().startswith("VEC"):
            start += 1


def _frames(text: str) -> list[ase.Atoms]:
    return cast(list[ase.Atoms], ase.io.read(io.StringIO(text), index=":", format="extxyz"))


def _frame(atoms: ase.Atoms, index: int, title: str, nframes: int) -> Molecule:
    try:
        return Molecule.from_ase(atoms, name=title if nframes == 1 else f"{title} frame {index}")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"Expected a molecule in frame {index} of {title}, got one that cannot be used ({error}); correct it."
        ) from None


def _too_large(title: str) -> str:
    return f"Expected a file of at most {MAX_XYZ_BYTES // 10**6} MB, got {title}, which is larger; use a part of it."


def read_limited(path: pathlib.Path) -> str:
    """Return the text of a file.

    Raises:
      InputError: if the file is too large.
    """
    if path.is_file() and path.stat().st_size > MAX_XYZ_BYTES:
        raise InputError(_too_large(str(path)))
    return path.read_text()


def _check_elements(symbols: Sequence[str], title: str) -> None:
    if not symbols:
        raise InputError("Expected at least one atom, got a molecule without atoms; use a symbol for each atom.")
    for index, symbol in enumerate(symbols):
        number = ase.data.atomic_numbers.get(symbol, 0)
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            raise InputError(
                f"Expected elements from H to Kr, but atom {index} of {title} is {shown(symbol)}; use an element's "
                "symbol."
            )


def _whole(value, key: str) -> int | None:
    try:
        if value is not None and int(value) != value:
            raise ValueError
    except (TypeError, ValueError):
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
    frames = _frames(text)
    return {frame.info["name"]: Molecule.from_ase(frame) for frame in frames}


BUILTIN: tuple[str, ...] = (
    "hydrogen", "water", "ammonia", "methane", "ethanol", "malondialdehyde", "benzene", "uracil",
    "alanine dipeptide",
)
"""Names of the built-in molecules, from small to large."""
