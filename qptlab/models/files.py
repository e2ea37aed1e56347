"""Files of trained models: one HDF5 file with a JSON description and named arrays. Nothing in it is executed.

The file begins with a checksum of the rest, in the block that HDF5 leaves to its users, so damage is noticed before
HDF5 reads anything.
"""

import hashlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Callable

import h5py
import jax
import numpy as np

from qptlab import files
from qptlab.errors import InputError, shown
from qptlab.system.molecule import Molecule

FORMAT, KIND = "qptlab-model", "a model file"

HEADER_BYTES = 512
"""Bytes before the HDF5 file; the smallest number that HDF5 allows."""


def write(path: str | pathlib.Path, description: dict, arrays: dict) -> None:
    """Write a model to a file; an existing file is replaced only when the new one is complete.

    Args:
      path: path of the file.
      description: settings, of JSON types.
      arrays: nested dictionaries of arrays, two levels deep.

    Raises:
      OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory(dir=path.resolve().parent) as folder:
        complete = pathlib.Path(folder) / "model.h5"
        with h5py.File(complete, "w", userblock_size=HEADER_BYTES) as file:
            file.attrs["format"] = FORMAT
            file.attrs["description"] = json.dumps(description)
            for group, members in arrays.items():
                # Names of Haiku modules hold slashes, which HDF5 takes for groups.
                for name, value in members.items():
                    file[f"{group}/{name}"] = np.asarray(value)
        seal(complete)
        os.replace(complete, path)


def seal(path: str | pathlib.Path) -> None:
    """Write the checksum of a complete file into its header."""
    with open(path, "r+b") as file:
        header = _header(file)
        file.seek(0)
        file.write(header)


def _header(file: io.BufferedReader | io.BufferedRandom) -> bytes:
    """Return the header that belongs to the rest of a file."""
    file.seek(HEADER_BYTES)
    return f"{FORMAT}\nsha256 {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode().ljust(HEADER_BYTES, b"\0")


def _check_header(path: str | pathlib.Path) -> None:
    """Raise an `InputError` for a file that is not a model, or not as it was written, before HDF5 reads it."""
    files.check(path, KIND, files.MAX_ARRAY_BYTES)
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            if header.startswith(FORMAT.encode()) and header == _header(file):
                return
        begins = header.startswith(FORMAT.encode())
        why = "it is not as it was written; restore it from a copy" if begins else "it does not begin as one"
    except OSError as error:
        why = str(error.strerror)
    raise InputError(f"Expected {KIND}, got {files.title(path)} ({why}); use a file that model.save wrote.")


def read(path: str | pathlib.Path) -> tuple[dict, dict]:
    """Read the description and the arrays of a model from a file.

    Raises:
      InputError: if the file is not a model.
    """
    arrays: dict[str, dict] = {}
    _check_header(path)
    with files.hdf5(path, KIND) as file:
        if files.attribute(file, "format") != FORMAT:
            raise ValueError("it does not say that it is one")
        description = files.parsed(files.attribute(file, "description"))
        for name, array in files.arrays(file):
            group, key = name.rsplit("/", 1)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"its array {shown(name)} is not finite")
            arrays.setdefault(group, {})[key] = array
    if not isinstance(description, dict) or not isinstance(description.get("kind"), str):
        raise InputError(f"Expected a model file, got {files.title(path)}, whose description names no kind of model; "
                         "use a file that model.save wrote.")
    return description, arrays


def same_shapes(params: dict, init: Callable) -> bool:
    """Return true if parameters have the names and shapes of those that a network's `init` returns.

    Args:
      params: parameters from a file.
      init: function from a random key to initial parameters; it is not executed.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    expected, loaded = (
        {(module, name): np.shape(value) for module, group in tree.items() for name, value in group.items()}
        for tree in (shapes, params)
    )
    return expected == loaded


def molecule_record(mol: Molecule) -> dict:
    """Return a molecule as JSON types."""
    return {
        "symbols": list(mol.symbols), "positions_bohr": mol.positions.tolist(), "charge": mol.charge,
        "name": mol.name,
    }


def molecule_from(record: dict) -> Molecule:
    """Return the molecule of a `molecule_record`; a closed shell.

    Raises:
      InputError: if the molecule cannot be used.
    """
    return Molecule(
        tuple(record["symbols"]), np.array(record["positions_bohr"]), record["charge"], record["name"], 0
    )
