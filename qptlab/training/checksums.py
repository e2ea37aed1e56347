"""Checksums of the files of a run: damage is noticed before anything is read from them.

A JSON record holds the checksum of its own content. Each checkpoint has a file of checksums that is written last; a
checkpoint without it is not complete. It covers the checkpoint, the files of the objective, and the rows of metrics
and events up to it.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

from qptlab import files
from qptlab.errors import shown

CHECKSUMS_FILE = "checksums.json"
"""File in the folder of a checkpoint."""

MAX_FILE_BYTES = 2**33
"""Largest file of a checkpoint that is read."""

MAX_CHECKSUMS_BYTES = 2**24
"""Largest file of checksums that is read."""

_KEY = "sha256"

Fingerprint = list[int | str]
"""Size in bytes, and SHA-256 in hexadecimal digits."""


class DamageError(ValueError):
    """Files that are not as they were written; the message names them."""


def sealed(record: dict) -> str:
    """Return a record as JSON, with the checksum of its content."""
    content = {name: value for name, value in record.items() if name != _KEY}
    return json.dumps(content | {_KEY: _digest_of(content)}, indent=1)


def unsealed(text: str, *, is_sealed: bool = True) -> dict:
    """Return the record of a JSON text without its checksum.

    Args:
      text: text that `sealed` returned.
      is_sealed: if false, a text without a checksum is taken, too.

    Raises:
      DamageError: if the content is not what was written.
      ValueError: if the text is not a JSON object.
    """
    record = files.parsed(text)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    if _KEY not in record and not is_sealed:
        return record
    expected = record.pop(_KEY, None)
    if _digest_of(record) != expected:
        raise DamageError("its content does not have its checksum")
    return record


def fingerprint(path: pathlib.Path, size: int | None = None) -> Fingerprint | None:
    """Return the fingerprint of a file, or of its first `size` bytes; None for what is not a file of that length.

    A link is not followed: a stranger's folder may hold links to devices.
    """
    try:
        if path.is_symlink() or not path.is_file():
            return None
        length = path.stat().st_size
        if not (size or 0) <= length <= MAX_FILE_BYTES:
            return None
        with path.open("rb") as file:
            if size is None:
                return [length, hashlib.file_digest(file, "sha256").hexdigest()]
            return [size, hashlib.sha256(file.read(size)).hexdigest()]
    except OSError:
        return None


def of_checkpoint(folder: pathlib.Path, beside: Iterable[pathlib.Path]) -> str:
    """Return the content of the file of checksums of a checkpoint.

    Args:
      folder: folder of the checkpoint.
      beside: files of the run that belong to it: whole ones, or tables that later rows are appended to.
    """
    written = {str(path.relative_to(folder)): fingerprint(path) for path in _files(folder)}
    return sealed({"files": written, "beside": {path.name: fingerprint(path) for path in beside}})


def check(folder: pathlib.Path) -> dict[str, Fingerprint | None]:
    """Compare the files of a checkpoint with its checksums, and return those of the files beside it.

    Raises:
      DamageError: if a file is missing or changed, or the checkpoint is not complete.
    """
    path = folder / CHECKSUMS_FILE
    try:
        if not os.path.lexists(path):
            raise DamageError("it was not written completely")
        if path.is_symlink():
            raise DamageError(f"{path.name} is a link")
        record = unsealed(files.text(path, "checksums", MAX_CHECKSUMS_BYTES))
        written, beside = _fingerprints(record["files"]), _fingerprints(record["beside"])
    except DamageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DamageError(f"{path.name} is changed") from None
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    for name, expected in written.items():
        if name not in found:
            raise DamageError(f"{shown(name)} is missing or a link")
        if expected is None or found[name].stat().st_size != expected[0] or not begins_as(found[name], expected):
            raise DamageError(f"{name} is changed")
    return beside


def begins_as(path: pathlib.Path, expected: Fingerprint | None) -> bool:
    """Return true if a file begins with the bytes that a fingerprint was made of; more may follow."""
    if expected is None:
        return True
    return fingerprint(path, int(expected[0])) == expected


def _fingerprints(record: dict) -> dict[str, Fingerprint | None]:
    """Return the fingerprints of a record that a stranger may have written."""
    return {str(name): value and [int(value[0]), str(value[1])] for name, value in record.items()}


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of a checkpoint in a fixed order; links are left out."""
    return [
        path for path in sorted(folder.rglob("*"))
        if path.name != CHECKSUMS_FILE and not path.is_symlink() and path.is_file()
    ]


def _digest_of(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
