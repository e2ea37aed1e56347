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
from collections.abc import Iterator
from typing import cast

import ase
import ase.data
import ase.io
from ase.io.extxyz import XYZError
from ase.io.formats import UnknownFileTypeError

from qptlab.errors import InputError, shown

EXAMPLE = "the number of atoms, a comment line, and one line per atom: symbol, x, y, z in ångström"

ISOTOPES = {"D": "H", "T": "H"}

AMBIGUOUS = ("CA", "HE", "NE")
"""Symbols in capitals that are names of atoms of other elements in proteins."""

MAX_CHARACTERS = 60
"""Longest number that is read."""

_LINE_END = re.compile(r"\r\n|\r|\n")
_COLUMNS = "Properties=species:S:1:pos:R:3"
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))(?:(?:[eEdDqQ]|\*\^)([-+]?\d+))?$")
_LABEL = re.compile(r"([A-Za-z]{1,2})(?:[_-]?\d+[A-Za-z']*|[_-]\w+)?$")
_KEY = r"(?:total_)?charge|spin|(?:spin_)?mult(?:iplicity)?"
_PAIR = re.compile(rf"(?<![\w-])({_KEY})(?:\s*[=:]\s*([^\s,;]+)|\s+([-+]?\d+)(?![\w.]))", re.IGNORECASE)
_BARE_KEY = re.compile(rf"(?<![\w-])({_KEY})(?![\w-]|\s*[=:])", re.IGNORECASE)


def frames(text: str, title: str) -> list[ase.Atoms]:
    """Return all frames of XYZ text.

    Args:
      text: the text.
      title: name of the text in messages.

    Raises:
      InputError: if a line cannot be understood, or a frame is not complete.

    Warns:
      UserWarning: if isotopes are read as hydrogen.
    """
    isotopes: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE warns about unusual comments, which are not needed here
        found = [_read(frame, title) for frame in _split(_LINE_END.split(text.lstrip("\ufeff")), title, isotopes)]
    counted = [frame for frame in found if "from_numbers" in frame.info]
    if counted:
        info = counted[0].info
        warnings.warn(
            f"The comment \"{info['charge']} {info['multiplicity']}\" in {title} is read as charge and multiplicity.",
            stacklevel=3,
        )
    if isotopes:
        warnings.warn(
            f"Atoms {', '.join(sorted(isotopes))} in {title} are read as hydrogen with its ordinary mass.",
            stacklevel=3,
        )
    return found


def _split(lines: list[str], title: str, isotopes: set[str]) -> Iterator[list[str]]:
    """Yield the lines of each frame: number of atoms, comment, atoms. Names of isotopes are added to the set."""
    start, count = 0, 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        natm = _count(lines, start, count, title)
        following = len(lines) - start - 2
        if not 0 < natm <= following:
            raise InputError(
                f"Expected XYZ, got {title}, which is not complete XYZ (line {start + 1} announces {natm} atoms, and "
                f"{max(following, 0)} lines for them follow); use {EXAMPLE}."
            )
        comment, atoms = lines[start + 1], lines[start + 2 : start + 2 + natm]
        if comment.startswith("Atoms. Timestep:"):
            raise InputError(
                f"Expected element symbols, got the atom types of LAMMPS in line {start + 3} of {title}; write them "
                "with `dump_modify element`."
            )
        is_extended = _is_extended(comment)
        isotopes |= {word for line in atoms for word in line.split()[:1] if word in ISOTOPES and not is_extended}
        yield [
            str(natm), comment,
            *(_atom(line, start + 3 + i, title, is_extended=is_extended) for i, line in enumerate(atoms)),
        ]
        count += 1
        start += 2 + natm
        if comment.startswith("gdb ") and start < len(lines) and not lines[start].strip().isdigit():
            start += 3  # frequencies, SMILES, InChI
        if start < len(lines) and lines[start].lstrip().startswith("VEC"):
            raise InputError(
                f"Expected a molecule, got a periodic cell in line {start + 1} of {title}; remove the lines VEC."
            )


def _count(lines: list[str], start: int, count: int, title: str) -> int:
    """Return the number of atoms that a line states."""
    words = lines[start].split()
    if re.fullmatch(r"[-+]?\d{1,15}", words[0]) and (len(words) == 1 or not _NUMBER.match(words[1])):
        return int(words[0])
    where = f"line {start + 1}" + (f", after {count} frames," if count else "")
    missing = "the number of atoms"
    if not count and len(words) >= 4 and all(map(_NUMBER.match, words[1:4])):
        missing += " and a comment, before the lines of the atoms"
    raise InputError(
        f"Expected {missing}, got {shown(lines[start].strip())} in {where} of {title}, which is not complete XYZ; "
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
            return cast(ase.Atoms, ase.io.read(io.StringIO("\n".join([natm, attempt, *atoms, ""])), format="extxyz"))
        # Exceptions that ASE's reader was observed to raise for texts that are not XYZ.
        except (XYZError, ValueError, KeyError, IndexError, StopIteration, TypeError, RuntimeError,
                AttributeError, OverflowError, UnknownFileTypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
        f"Expected XYZ, got {title}, which is not complete XYZ ({reason}); use frames of {EXAMPLE}."
    )


def _is_extended(comment: str) -> bool:
    """Return True if a comment names the columns.

    Raises:
      InputError: if it names more columns than a line can have; ASE would make room for all of them.
    """
    match = re.search(r"\bProperties\s*=\s*(\S+)", comment)
    if match and any(len(number) > 4 for number in re.findall(r":(\d+)", match[1])):
        raise InputError(
            f"Expected up to 9999 columns of a property, got {shown(match[1])}; use Properties=… as ASE writes it."
        )
    return match is not None


def _charge_and_multiplicity(comment: str) -> str:
    """Return a comment of two whole numbers as charge and multiplicity; else no comment."""
    match = re.fullmatch(r"\s*([-+]?\d{1,2})[\s,]+(\d{1,2})\s*", comment)
    return f"charge={match[1]} multiplicity={match[2]} from_numbers=T" if match else ""
