"""Molecules: element symbols, positions, charge and spin, from a name, XYZ, SMILES or ASE."""

import dataclasses
import functools
import importlib.resources
import io
import itertools
import pathlib
import warnings
from collections.abc import Sequence
from typing import cast

import ase
import ase.data
import ase.io
import numpy as np
from ase.io.extxyz import XYZError
from ase.io.formats import UnknownFileTypeError
from jaxtyping import Float, Int

from qptlab.errors import MAX_SHOWN, InputError, shown
from qptlab.units import BOHR_ANGSTROM

MAX_ATOMIC_NUMBER = 36
"""Krypton: elements beyond need effective core potentials, which are not implemented."""

MIN_DISTANCE_ANGSTROM = 0.4
"""Nuclei closer than this are taken for a mistake (the shortest bond, H–H, is 0.74 Å long)."""

MAX_XYZ_BYTES = 50_000_000
"""Larger texts are refused before they are parsed: about a million atoms."""

MAX_SMILES_CHARACTERS = 500

BOND_FACTOR = 1.3
"""Atoms nearer than this times the sum of their covalent radii count as bonded. At 500 K an X–H
bond stretches by 20 %; the nearest non-bonded pairs lie beyond 1.5."""


class _NoSmiles(InputError):
    """A text that is no SMILES at all, as against one of a molecule that cannot be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule at one geometry.

    Attributes:
      symbols: element symbols, one per atom.
      positions: nuclear positions, bohr.
      charge: total charge, elementary charges.
      name: what to call it on plots and in files.
      spin: number of unpaired electrons (2S, as in PySCF); by default 0 or 1, whichever there can be.

    Raises:
      InputError: for an unknown element, positions that are not finite or do not fit the symbols,
        overlapping atoms, or a charge and spin that its electrons cannot have.

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
        """Filled orbitals: their number for a closed shell, or that of each spin, the larger first."""
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
        """Orders of the other's atoms in which it is a geometry of this molecule: elements, charge, spin, bonds.

        Args:
          other: a molecule; other than this where no order is found.
          limit: how many orders to look for at most; like atoms can often be exchanged.
        """
        same = (self.charge, self.spin) == (other.charge, other.spin)
        if not same or sorted(self.symbols) != sorted(other.symbols):
            return np.zeros((0, len(self.symbols)), dtype=int)
        if limit == 1 and self.symbols == other.symbols and self.bonds == other.bonds:
            return np.arange(len(self.symbols))[None]
        import networkx as nx  # a tenth of a second; an energy does not need it

        graphs = [nx.Graph(), nx.Graph()]
        for graph, mol in zip(graphs, (self, other), strict=True):
            graph.add_nodes_from((i, {"symbol": symbol}) for i, symbol in enumerate(mol.symbols))
            graph.add_edges_from(sorted(mol.bonds))
        matcher = nx.isomorphism.GraphMatcher(*graphs, node_match=lambda a, b: a["symbol"] == b["symbol"])
        maps = itertools.islice(matcher.isomorphisms_iter(), limit)
        found = [[each[i] for i in range(len(self.symbols))] for each in maps]
        return np.array(found, dtype=int).reshape(-1, len(self.symbols))

    def with_positions(self, positions: Float[np.ndarray, "natm 3"]) -> "Molecule":
        """The same molecule at other positions, bohr."""
        return dataclasses.replace(self, positions=positions)

    def to_ase(self) -> ase.Atoms:
        """An `ase.Atoms` (ångström), with charge and spin in `info`."""
        info = {"charge": self.charge, "spin": self.spin}
        return ase.Atoms(self.symbols, self.positions_angstrom, info=info)

    def to_xyz(self) -> str:
        """One frame of extended XYZ, ångström."""
        text = io.StringIO()
        ase.io.write(text, self.to_ase(), format="extxyz")
        return text.getvalue()

    @classmethod
    def from_name(cls, name: str) -> "Molecule":
        """A built-in molecule at its GFN2-xTB minimum; `BUILTIN` lists the names.

        Raises:
          InputError: if there is no such molecule.
        """
        frames = _builtin()
        key = name.strip().lower().replace("-", " ")
        if key not in frames:
            raise InputError(
                f"{name!r} is no built-in molecule; one of {', '.join(frames)} would do, "
                "or a SMILES string, or the path of an XYZ file."
            )
        return frames[key].with_positions(frames[key].positions)  # a copy: its owner may change it

    @classmethod
    def from_xyz(cls, source: str | pathlib.Path) -> "Molecule":
        """The first frame of an XYZ file or of XYZ text (ångström).

        Raises:
          InputError: as `read_xyz`.
        """
        return read_xyz(source)[0]

    @classmethod
    def from_smiles(cls, smiles: str) -> "Molecule":
        """A conformer of a SMILES string, by RDKit's ETKDG (fixed seed) and MMFF94 or UFF.

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
        hint = "a valid SMILES string of one molecule, such as CCO for ethanol, would do."
        if not text or len(text) > MAX_SMILES_CHARACTERS:
            raise _NoSmiles(f"SMILES of {len(text)} characters cannot be used; {hint}")
        with rdBase.BlockLogs():
            graph = Chem.MolFromSmiles(text)
            if graph is None or graph.GetNumAtoms() == 0:
                raise _NoSmiles(f"SMILES {text!r} does not parse; {hint}")
            graph = Chem.AddHs(graph)
            if EmbedMolecule(graph, randomSeed=7) != 0:
                raise InputError(f"no 3D structure was found for SMILES {text!r}; an XYZ file would do.")
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
        """From an `ase.Atoms`; `info["charge"]` and `info["spin"]` are read where there are such."""
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
        """What a user typed or pasted: a built-in name, the path of an XYZ file, XYZ text or SMILES.

        Args:
          text: what was typed.
          spin: number of unpaired electrons, if it is not what the text says or the lowest there can be.

        Raises:
          InputError: if it is none of them, or cannot have that spin.

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
        except _NoSmiles:
            raise InputError(
                f"{stripped[:60]!r} cannot be read as a molecule; a SMILES such as CCO would do, an .xyz file, "
                f"or one of {', '.join(_builtin())}."
            ) from None


def read_molecules(texts: Sequence[str]) -> list[Molecule]:
    """Different molecules, from all that was named.

    Args:
      texts: each as for `Molecule.parse`; an XYZ file may hold several molecules, of each of which the first
        frame is taken, and a `.smi` file has a SMILES at the beginning of each line. Molecules differ if their
        elements, charges or bonds do, whatever the order of their atoms.

    Raises:
      InputError: if one cannot be read.

    >>> [mol.formula for mol in read_molecules(["water", "CO", "OC", "CCO", "COC"])]
    ['H2O', 'CH4O', 'C2H6O', 'C2H6O']
    """
    found: list[Molecule] = []
    for text in texts:
        for mol in _read_several(text):
            if not any(len(mol.orders(other)) for other in found):
                found.append(mol)
    return found


def _read_several(text: str) -> list[Molecule]:
    suffix = pathlib.Path(text).suffix.lower() if len(text) < MAX_SMILES_CHARACTERS else ""
    if suffix == ".xyz":
        return read_xyz(text)
    if suffix != ".smi":
        return [Molecule.parse(text)]
    try:
        lines = _read_limited(pathlib.Path(text)).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "no text")
        raise InputError(f"{text} cannot be read ({why}); a file with a SMILES per line would do.") from None
    smiles = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if not smiles:
        raise InputError(f"{text} holds no SMILES; one per line would do.")
    return [Molecule.from_smiles(each) for each in smiles]


def read_xyz(source: str | pathlib.Path) -> list[Molecule]:
    """All frames of an XYZ or extended XYZ file, or of XYZ text (ångström).

    Args:
      source: a path, or the text itself (anything with a line break in it is text).

    Raises:
      InputError: if it cannot be read, is cut short, or a frame is no usable molecule.
    """
    if isinstance(source, str) and "\n" in source:
        title, name, path = "the XYZ text", "", None
    else:
        path = pathlib.Path(source)
        title, name = str(source), path.stem
    try:
        text = str(source) if path is None else _read_limited(path)
    except OSError as error:
        raise InputError(f"{title} cannot be read ({error.strerror}); an XYZ file would do.") from None
    except UnicodeDecodeError:
        raise InputError(f"{title} is not text; an XYZ file would do.") from None
    if len(text) > MAX_XYZ_BYTES:
        raise InputError(f"{title} is larger than {MAX_XYZ_BYTES // 10**6} MB; a part of it would do.")
    text = text.lstrip("\ufeff")
    _check_counts(text.split("\n"), title)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ASE warns of unusual comments; the atoms are what counts
            frames = _frames(text)
    # What ASE's reader has been seen to raise on texts that are no XYZ.
    except (XYZError, ValueError, KeyError, IndexError, StopIteration, TypeError, RuntimeError,
            AttributeError, UnknownFileTypeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{title} is not complete XYZ ({why}); each frame needs the number of atoms, a comment line, "
            "and one line per atom: symbol, x, y, z in ångström."
        ) from None
    if not frames:
        raise InputError(f"{title} holds no frame; at least one would do.")
    return [_frame(frame, index, name or title, len(frames)) for index, frame in enumerate(frames)]


def _check_counts(lines: list[str], title: str) -> None:
    """Frames hold as many lines as they announce; ASE would read on until it has counted that far."""
    start = 0
    while start < len(lines) and lines[start].strip():
        try:
            natm = int(lines[start])
        except ValueError:
            return  # ASE says what is wrong
        left = len(lines) - start - 2
        if not 0 < natm <= left:
            raise InputError(
                f"{title} is not complete XYZ (line {start + 1} announces {natm} atoms, and {max(left, 0)} lines "
                "for them follow); one line per atom would do: symbol, x, y, z in ångström."
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
        raise InputError(f"frame {index} of {title} cannot be used ({error}).") from None


def _read_limited(path: pathlib.Path) -> str:
    if path.is_file() and path.stat().st_size > MAX_XYZ_BYTES:
        raise InputError(f"{path} is larger than {MAX_XYZ_BYTES // 10**6} MB; a part of it would do.")
    return path.read_text()


def _check_elements(symbols: Sequence[str], title: str) -> None:
    if not symbols:
        raise InputError("a molecule without atoms was given; at least one atom would do.")
    for index, symbol in enumerate(symbols):
        number = ase.data.atomic_numbers.get(symbol, 0)
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            raise InputError(
                f"atom {index} of {title} is {shown(symbol)}, which is no element that qptlab knows; "
                "a symbol from H to Kr would do."
            )


def _whole(value, key: str) -> int | None:
    try:
        if value is not None and int(value) != value:
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{key} {value} is not a whole number; 0 or 1 would do.") from None
    return None if value is None else int(value)


def _check_electrons(nelectron: int, charge: int, spin: int, title: str) -> None:
    if nelectron <= 0:
        raise InputError(
            f"{title} has {nelectron} electrons at charge {charge}; a charge that leaves a positive number would do."
        )
    if not 0 <= spin <= nelectron or (nelectron - spin) % 2:
        raise InputError(
            f"{title} has {nelectron} electrons at charge {charge}, of which {spin} cannot be unpaired; "
            f"spin {nelectron % 2} would do."
        )


def _check_positions(symbols: Sequence[str], positions: np.ndarray, title: str) -> None:
    if positions.shape != (len(symbols), 3):
        raise InputError(
            f"{title} has {len(symbols)} atoms but positions of shape {positions.shape}; "
            f"({len(symbols)}, 3) would do."
        )
    if not np.isfinite(positions).all():
        atom = int(np.argwhere(~np.isfinite(positions).all(axis=1))[0, 0])
        raise InputError(f"atom {atom} ({symbols[atom]}) of {title} has a position that is not a finite number.")
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1) * BOHR_ANGSTROM
    distance[np.diag_indices(len(symbols))] = np.inf
    if distance.min() < MIN_DISTANCE_ANGSTROM:
        i, j = map(int, np.unravel_index(distance.argmin(), distance.shape))
        raise InputError(
            f"atoms {i} ({symbols[i]}) and {j} ({symbols[j]}) of {title} are {distance[i, j]:.3f} Å apart; "
            f"at least {MIN_DISTANCE_ANGSTROM} Å would do (positions are read in ångström)."
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
"""Names of the built-in molecules, small to large."""
