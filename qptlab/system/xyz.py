"""Frames of XYZ text as programs and people write it, as `ase.Atoms`.

Each frame is brought into the extended XYZ that ASE reads. Beside plain and extended XYZ these are read:

- atomic numbers, labels such as O1, and D and T (as hydrogen, with a warning) instead of element symbols;
- exponents of Fortran (1.2D-01) and of QM9's raw files (1.2*^-1);
- blank lines around a frame, words behind the number of atoms, further columns of numbers, and the three lines with
  which a frame of QM9 ends;
- comments with any words; two whole numbers are charge and multiplicity, with a warning.

Atom types of LAMMPS, and names of proteins' atoms such as CA, are refused.
"""

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import cast

import ase
import ase.data
import ase.io
from ase.io.extxyz import XYZError, key_val_str_to_dict
from ase.io.formats import UnknownFileTypeError

from qptlab.errors import InputError, clipped, shown

EXAMPLE = "the number of atoms, a comment line, and one line per atom: symbol, x, y, z in ångström"

ISOTOPES = {"D": "H", "T": "H"}

AMBIGUOUS = ("CA", "HE", "NE")
"""Symbols in capitals that are names of atoms of other elements in proteins."""

MAX_CHARACTERS = 60
"""Longest number that is read."""

MAX_BLANK_LINES = 1000
"""Largest number of blank lines between two frames."""

MAX_COMMENT_CHARACTERS = 100_000

MAX_ATOMS = 2000
"""Largest number of atoms of a molecule: arrays of pairs of atoms take 100 MB."""

MAX_FRAMES = 500_000
"""Largest number of frames of one text; QM9 has 130,831 molecules."""

_COLUMNS = "Properties=species:S:1:pos:R:3"
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))(?:(?:[eEdDqQ]|\*\^)([-+]?\d+))?$")
_LABEL = re.compile(r"([A-Za-z]{1,2})(?:[_-]?\d+[A-Za-z']*|[_-]\w+)?$")
_KEY = r"(?:total_)?charge|spin|(?:spin_)?mult(?:iplicity)?"
_PAIR = re.compile(rf"(?<![\w-])({_KEY})(?:\s*[=:]\s*([^\s,;]+)|\s+([-+]?\d+)(?![\w.]))", re.IGNORECASE)
_BARE_KEY = re.compile(rf"(?<![\w-])({_KEY})(?![\w-]|\s*[=:])", re.IGNORECASE)


def frames(lines: Iterable[str], title: str) -> Iterator[ase.Atoms]:
    """Yield all frames of XYZ.

    Args:
      lines: lines, of `files.lines` or `text_lines`.
      title: name of the text in messages.

    Raises:
      InputError: if a line cannot be understood, or a frame is not complete; if there are more than `MAX_FRAMES`
        frames, or `MAX_ATOMS` atoms in one.

    Warns:
      UserWarning: if isotopes are read as hydrogen.
    """
    isotopes: set[str] = set()
    info = None
    for frame in _split(_Lines(lines), title, isotopes):
        atoms = _read(frame, title)
        if info is None and "from_numbers" in atoms.info:
            info = atoms.info
        yield atoms
    if info is not None:
        warnings.warn(
            f"The comment \"{info['charge']} {info['multiplicity']}\" in {title} is read as charge and multiplicity.",
            stacklevel=3,
        )
    if isotopes:
        warnings.warn(
            f"Atoms {', '.join(sorted(isotopes))} in {title} are read as hydrogen with its ordinary mass.",
            stacklevel=3,
        )


def text_lines(text: str) -> Iterator[str]:
    """Return the lines of a text; a line ends as in files, and not with other separators of Unicode."""
    return io.StringIO(text.lstrip("\ufeff"), newline=None)


class _Lines:
    """Lines without their ends, one by one, and the number of those that were taken."""

    def __init__(self, lines: Iterable[str]):
        self._lines, self._next, self.taken = iter(lines), None, 0

    def peek(self) -> str | None:
        """Return the next line; None at the end."""
        if self._next is None:
            self._next = next(self._lines, None)
        return None if self._next is None else self._next.removesuffix("\n")

    def take(self, count: int) -> list[str]:
        """Return the next lines, fewer at the end."""
        lines = []
        while len(lines) < count and (line := self.peek()) is not None:
            lines.append(line)
            self._next = None
        self.taken += len(lines)
        return lines


def _split(lines: _Lines, title: str, isotopes: set[str]) -> Iterator[list[str]]:
    """Yield the lines of each frame: number of atoms, comment, atoms. Names of isotopes are added to the set."""
    count, blank = 0, 0
    while lines.peek() is not None:
        (first,), start = lines.take(1), lines.taken
        if not first.strip():
            blank += 1
            if blank > MAX_BLANK_LINES:
                raise InputError(
                    f"Expected at most {MAX_BLANK_LINES} blank lines between frames, got more before line {start} of "
                    f"{title}; remove them."
                )
            continue
        blank = 0
        natm = _count(first, start, count, title)
        if natm > MAX_ATOMS or count == MAX_FRAMES:
            what = f"{MAX_ATOMS} atoms in a frame" if natm > MAX_ATOMS else f"{MAX_FRAMES} frames"
            raise InputError(
                f"Expected at most {what}, got more in line {start} of {title}, which announces {natm} atoms; use "
                "smaller molecules, or a part of the file."
            )
        comments, atoms = lines.take(1), lines.take(natm)
        if not 0 < natm == len(atoms):
            raise InputError(
                f"Expected XYZ whose line {start} announces {natm} atoms, got {len(atoms)} of them and no line "
                f"{start + 2 + len(atoms)} in {title}, which is not complete XYZ; use one line per atom."
            )
        comment = comments[0]
        if len(comment) > MAX_COMMENT_CHARACTERS:
            raise InputError(
                f"Expected a comment of at most {MAX_COMMENT_CHARACTERS} characters, got {len(comment)} in line "
                f"{start + 1} of {title}; use columns for what belongs to atoms."
            )
        if comment.startswith("Atoms. Timestep:"):
            raise InputError(
                f"Expected element symbols, got the atom types of LAMMPS in line {start + 2} of {title}; write them "
                "with `dump_modify element`."
            )
        is_extended = _is_extended(comment)
        isotopes |= {word for line in atoms for word in line.split()[:1] if word in ISOTOPES and not is_extended}
        yield [
            str(natm), comment,
            *(_atom(line, start + 2 + i, title, is_extended=is_extended) for i, line in enumerate(atoms)),
        ]
        count += 1
        if comment.startswith("gdb ") and not (lines.peek() or "1").strip().isdigit():
            lines.take(3)  # frequencies, SMILES, InChI
        if (lines.peek() or "").lstrip().startswith("VEC"):
            raise InputError(
                f"Expected a molecule, got a periodic cell in line {lines.taken + 1} of {title}; remove the lines "
                "VEC."
            )


def _count(line: str, number: int, count: int, title: str) -> int:
    """Return the number of atoms that a line states."""
    words = line.split()
    if re.fullmatch(r"[-+]?\d{1,15}", words[0]) and (len(words) == 1 or not _NUMBER.match(words[1])):
        return int(words[0])
    where = f"line {number}" + (f", after {count} frames," if count else "")
    missing = "the number of atoms"
    if not count and len(words) >= 4 and all(map(_NUMBER.match, words[1:4])):
        missing += " and a comment, before the lines of the atoms"
    raise InputError(
        f"Expected {missing}, got {shown(line.strip())} in {where} of {title}, which is not complete XYZ; "
        f"use {EXAMPLE}."
    )


def _atom(line: str, number: int, title: str, *, is_extended: bool) -> str:
    """Return the line of an atom with a symbol and numbers that ASE reads."""
    words = line.split()
    numbers = [_number(word) for word in words]
    if is_extended:  # its columns are those that the comment names
        return " ".join(word if value is None else value for word, value in zip(words, numbers, strict=True))
    if len(words) < 4 or any(value is None for value in numbers[1:4]):
        raise InputError(
            f"Expected symbol, x, y, z, got {shown(line.strip())} in line {number} of {title}, which is not complete "
            f"XYZ; use {EXAMPLE}."
        )
    if words[0].rstrip("0123456789") in AMBIGUOUS:
        raise InputError(
            f"Expected an element, got {shown(words[0])} in line {number} of {title}, which is also the name of an "
            f"atom in proteins; write {words[0][0]} or {words[0][:2].capitalize()}."
        )
    return " ".join([_symbol(words[0]), *cast(list[str], numbers[1:4])])


def _number(word: str) -> str | None:
    """Return a number as Python writes it; None if the word is none."""
    if word.lower() in ("nan", "inf", "-inf", "+inf"):
        return word
    match = _NUMBER.match(word) if len(word) <= MAX_CHARACTERS else None
    return None if match is None else match[1] + (f"e{match[2]}" if match[2] else "")


def _symbol(word: str) -> str:
    """Return the element of an atom's symbol, number or label; the word itself if it is none of these."""
    if word in ISOTOPES:
        return ISOTOPES[word]
    if word.isascii() and word.isdigit() and len(word) <= 3 and 0 < int(word) < len(ase.data.chemical_symbols):
        return ase.data.chemical_symbols[int(word)]
    match = _LABEL.match(word)
    symbol = match[1].capitalize() if match else word
    return symbol if symbol in ase.data.atomic_numbers else word


def _read(frame: list[str], title: str) -> ase.Atoms:
    natm, comment, *atoms = frame
    attempts = [comment]
    if not _is_extended(comment):
        words = re.sub(r"\bProperties\b", "", comment)
        pairs = " ".join(f"{key}={value or number}" for key, value, number in _PAIR.findall(words))
        needed = f"{_COLUMNS} {pairs or _charge_and_multiplicity(words)}"
        # Further settings, such as an energy, are read if ASE can. A bare word would become a setting that is true.
        settings = _BARE_KEY.sub("", _PAIR.sub("", words))
        attempts = [f"{needed} {settings}", needed] if "=" in settings else [needed]
    reason = ""
    for attempt in attempts:
        try:
            _check_columns(attempt, atoms[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # ASE warns about unusual comments, which are not needed here
                text = io.StringIO("\n".join([natm, attempt, *atoms, ""]))
                return cast(ase.Atoms, ase.io.read(text, format="extxyz"))
        # Exceptions that ASE's reader was observed to raise for texts that are not XYZ.
        except (XYZError, ValueError, KeyError, IndexError, StopIteration, TypeError, RuntimeError,
                AttributeError, OverflowError, UnknownFileTypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
        f"Expected XYZ, got {title}, which is not complete XYZ ({reason}); use frames of {EXAMPLE}."
    )


def _is_extended(comment: str) -> bool:
    """Return True if a comment names the columns."""
    return re.search(r"\bProperties\s*=\s*\S", comment) is not None


def _check_columns(comment: str, line: str) -> None:
    """Raise a `ValueError` if a comment names more columns than a line has; ASE would make room for all of them."""
    if comment == _COLUMNS:
        return
    columns = str(key_val_str_to_dict(comment).get("Properties", "")).split(":")
    named = sum(max(int(number), 0) for number in columns[2::3])
    if named > (present := len(line.split())):
        raise ValueError(f"its comment names {clipped(str(named), 20)} columns, and a line has {present}")


def _charge_and_multiplicity(comment: str) -> str:
    """Return a comment of two whole numbers as charge and multiplicity; else no comment."""
    match = re.fullmatch(r"\s*([-+]?\d{1,2})[\s,]+(\d{1,2})\s*", comment)
    return f"charge={match[1]} multiplicity={match[2]} from_numbers=T" if match else ""
