"""Files from outside: only regular files are opened, and what they unpack to has limits.

A few bytes can state any number of atoms or unpack to any size, and a device or a pipe never ends. Every reader of
the package opens its files here: text with `text` or `lines`, HDF5 with `hdf5` and `arrays`.
"""

import codecs
import contextlib
import gzip
import io
import json
import math
import os
import pathlib
import stat
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import h5py

from qptlab.errors import MAX_SHOWN, InputError, clipped, shown

MAX_BYTES = 2**31
"""Largest file, and largest text that a compressed file unpacks to; the labels of QM9 take 150 MB."""

MAX_RECORD_BYTES = 2**28
"""Largest JSON text: some hundred thousand molecules of a run."""

MAX_PIPED_BYTES = 50_000_000
"""Largest text from the standard input."""

MAX_RATIO = 200
"""Largest ratio of unpacked to packed bytes. Geometries shrink to a third, repeated ones to a fiftieth."""

MAX_LINE_CHARACTERS = 1_000_000

MAX_LINES = 20_000_000
"""Largest number of lines of a file; the labels of QM9 have 2.6 million."""

MAX_PATH_SHOWN = 120
"""Characters of a path that a message shows."""

MAX_ARRAY_BYTES = 2**33
"""Largest size of all arrays of an HDF5 file."""

MAX_ARRAYS = 100_000
"""Largest number of groups and arrays of an HDF5 file."""

_MARGIN_BYTES = 2**20  # small files may be empty arrays or repeated lines
_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def text(path: str | pathlib.Path, kind: str, limit: int = MAX_BYTES) -> str:
    """Return the text of a file in UTF-8, UTF-16 with a byte order mark, or Latin-1; it may be packed with gzip.

    Args:
      path: the file.
      kind: what the file should be, for messages, such as "an XYZ file".
      limit: largest size, also after unpacking, bytes.

    Raises:
      InputError: if it is not a regular file, is too large, cannot be read or is not text.
    """
    with _opened(path, kind, limit) as file:
        return decoded(file.read(), kind, title(path))


def lines(
    path: str | pathlib.Path, kind: str, limit: int = MAX_BYTES, *, strict: bool = True
) -> Iterator[str]:
    r"""Yield the lines of a file as `text` would return them, without holding all; every line end is "\n".

    Args:
      path: the file.
      kind: what the file should be, for messages.
      limit: largest size, also after unpacking, bytes.
      strict: if false, lines may have characters that no text has: of a table that may be damaged.

    Raises:
      InputError: if `text` would refuse the file, or a line is longer than `MAX_LINE_CHARACTERS`.
    """
    name = title(path)
    with _opened(path, kind, limit) as file:
        begin = file.peek(2)[:2]
        encoding = "utf-16" if begin in _UTF16 else "utf-8-sig"
        # Bytes that are not UTF-8 become surrogates; their line is read as Latin-1: a comment in an older encoding.
        stream = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline=None)
        for _ in range(MAX_LINES):
            try:
                line = stream.readline(MAX_LINE_CHARACTERS)
            except UnicodeError:
                raise _not_text(kind, name) from None
            if not line:
                return
            if len(line) == MAX_LINE_CHARACTERS and line[-1] != "\n":
                raise InputError(
                    f"Expected {kind} with lines of at most {MAX_LINE_CHARACTERS} characters, got a longer one in "
                    f"{name}; use a different file."
                )
            if strict and "\0" in line:
                raise _not_text(kind, name)
            yield line if line.isascii() else _valid(line)
    raise InputError(f"Expected {kind} of at most {MAX_LINES} lines, got more in {name}; use a part of it.")


def _valid(line: str) -> str:
    """Return a line, read as Latin-1 if it has bytes that are not UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return line.encode("utf-8", "surrogateescape").decode("latin-1")
    return line


def title(path: str | pathlib.Path) -> str:
    """Return a path as messages show it: without its middle if it is long."""
    return clipped(str(path), MAX_PATH_SHOWN)


def piped(stream: BinaryIO, kind: str, name: str) -> str:
    """Return the text of the standard input.

    Raises:
      InputError: if it is larger than `MAX_PIPED_BYTES`, or is not text.
    """
    content = stream.read(MAX_PIPED_BYTES + 1)
    if len(content) > MAX_PIPED_BYTES:
        raise _too_large(kind, name, MAX_PIPED_BYTES)
    return decoded(content, kind, name)


def decoded(content: bytes, kind: str, name: str) -> str:
    """Return the text of bytes in UTF-8, UTF-16 with a byte order mark, or Latin-1.

    Raises:
      InputError: if they are not text.
    """
    try:
        if content.startswith(_UTF16):
            return content.decode("utf-16")
        if b"\0" in content:
            raise _not_text(kind, name)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if content.startswith(_UTF16):
            raise _not_text(kind, name) from None
        return content.decode("latin-1")


def parsed(words: str | bytes) -> Any:
    """Return the value of JSON text.

    Raises:
      ValueError: if it is not JSON, is larger than `MAX_RECORD_BYTES`, or lists are nested too deeply.
    """
    if len(words) > MAX_RECORD_BYTES:
        raise ValueError(f"JSON text of more than {MAX_RECORD_BYTES // 2**20} MiB")
    try:
        return json.loads(words)
    except RecursionError:
        raise ValueError("lists in lists, too deep") from None


@contextlib.contextmanager
def hdf5(path: str | pathlib.Path, kind: str) -> Iterator[h5py.File]:
    """Open an HDF5 file to read it inside a block; use `arrays` to read its arrays.

    Args:
      path: the file.
      kind: what the file should be, for messages.

    Raises:
      InputError: if it is not a regular file, or the block raises what h5py raises for damaged files.
    """
    check(path, kind, MAX_ARRAY_BYTES)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except (
        OSError, KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, OverflowError
    ) as error:
        raise InputError(
            f"Expected {kind}, got {title(path)} ({shown(str(error))}); use a file that qptlab wrote."
        ) from None


def arrays(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of numbers of an HDF5 file, with their paths in it.

    External and soft links are not followed: a file must not read from outside of itself.

    Raises:
      ValueError: if the arrays lie in different files, are not numbers, or are larger than the size of the file
        allows: an array of any size that nobody has written takes a few bytes.
    """
    size = os.stat(file.filename).st_size
    rest = min(MAX_ARRAY_BYTES, MAX_RATIO * size + _MARGIN_BYTES)
    for name, dataset in _datasets(file):
        if dataset.external or dataset.is_virtual:
            raise ValueError(f"its array {clipped(name, MAX_SHOWN)} lies in a different file")
        if dataset.dtype.kind not in "biuf" or dataset.shape is None:
            raise ValueError(f"its array {clipped(name, MAX_SHOWN)} does not hold numbers")
        chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize  # is read as a whole
        rest -= max(dataset.nbytes, chunk)
        if rest < 0:
            raise ValueError(f"its arrays are larger than its {size} bytes allow")
        yield name, dataset[()]


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the arrays of all groups; groups may hold each other."""
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    found, number = {file["/"]}, 0
    while groups:
        prefix, group = groups.pop()
        for name in group:
            number += 1
            if number > MAX_ARRAYS:
                raise ValueError(f"more than {MAX_ARRAYS} groups and arrays")
            item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
            if isinstance(item, h5py.Dataset):
                yield f"{prefix}{name}", item
            elif isinstance(item, h5py.Group) and item not in found:
                found.add(item)
                groups.append((f"{prefix}{name}/", item))


def attribute(file: h5py.File, name: str) -> str:
    """Return the text of an attribute of an HDF5 file.

    Raises:
      KeyError, ValueError: if there is none, or it is not one text.
    """
    if file.attrs.get_id(name).shape != ():
        raise ValueError(f"its attribute {name} is not one text")
    return str(file.attrs[name])


class _Limited(io.RawIOBase):
    """Stream that refuses to deliver more than a number of bytes."""

    def __init__(self, file: Any, limit: int, refusal: InputError):
        self._file, self._rest, self._refusal = file, limit, refusal

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._rest -= count
        if self._rest < 0:
            raise self._refusal
        return count


@contextlib.contextmanager
def _opened(path: str | pathlib.Path, kind: str, limit: int) -> Iterator[io.BufferedReader]:
    """Open a regular file, unpacked if it is packed with gzip."""
    size, name = check(path, kind, limit), title(path)
    try:
        with open(path, "rb") as packed:
            refusal = _too_large(kind, name, limit)
            if packed.peek(2)[:2] != _GZIP:
                yield io.BufferedReader(_Limited(packed, limit, refusal))
                return
            most = MAX_RATIO * size + _MARGIN_BYTES
            if most < limit:
                limit, refusal = most, InputError(
                    f"Expected {kind}, got {name}, which unpacks to more than {MAX_RATIO} times its size; unpack it "
                    "and use a part of it."
                )
            with gzip.open(packed) as unpacked:
                yield io.BufferedReader(_Limited(unpacked, limit, refusal))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(kind, name, error) from None


def check(path: str | pathlib.Path, kind: str, limit: int) -> int:
    """Return the size of a file, bytes; it is not opened.

    Raises:
      InputError: if it is not a regular file, or is larger than the limit.
    """
    name = title(path)
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unreadable(kind, name, error) from None
    except ValueError:
        raise InputError(f"Expected {kind}, got {name}, which is not a path; use an existing file.") from None
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
        raise InputError(f"Expected {kind}, got {name}, which cannot be read (it is {what}); use a regular file.")
    if found.st_size > limit:
        raise _too_large(kind, name, limit)
    return found.st_size


def _unreadable(kind: str, name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"Expected {kind}, got {name}, which cannot be read ({reason}); use an existing file.")


def _too_large(kind: str, name: str, limit: int) -> InputError:
    return InputError(
        f"Expected {kind} of at most {limit // 10**6} MB, got {name}, which is larger; use a part of it."
    )


def _not_text(kind: str, name: str) -> InputError:
    return InputError(f"Expected {kind}, got {name}, which is not text; use a text file.")
