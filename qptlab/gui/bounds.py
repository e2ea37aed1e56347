"""Bounds on what visitors of a served workbench can make its kernel do, set by whoever serves it.

The environment of the server states them. A session refuses what is beyond them wherever it comes from, so that it
does not matter which messages a page sends.
"""

import math
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from qptlab.dft.integrals import count_orbitals
from qptlab.errors import InputError, shown
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

VARIABLES = {"atoms": "QPTLAB_MAX_ATOMS", "orbitals": "QPTLAB_MAX_ORBITALS", "minutes": "QPTLAB_MAX_MINUTES"}
"""Environment variables of the bounds."""


class Bounds(NamedTuple):
    """Bounds of a session.

    Attributes:
      atoms: largest number of atoms of a molecule; None for no bound.
      orbitals: largest number of atomic orbitals; None for no bound.
      minutes: largest number of minutes of a training; None for no bound.
      folder: folder that files are read below; None for no bound.
    """

    atoms: int | None = None
    orbitals: int | None = None
    minutes: float | None = None
    folder: pathlib.Path | None = None

    @classmethod
    def of_environment(cls) -> "Bounds":
        """Return the bounds that the environment states; with any of them, files are read below the present folder.

        Raises:
          InputError: if a variable holds no positive number.
        """
        atoms, orbitals, minutes = (_number(VARIABLES[name]) for name in ("atoms", "orbitals", "minutes"))
        is_served = any(bound is not None for bound in (atoms, orbitals, minutes))
        return cls(
            None if atoms is None else int(atoms), None if orbitals is None else int(orbitals), minutes,
            pathlib.Path.cwd().resolve() if is_served else None,
        )

    def check_size(self, mols: Iterable[Molecule], method: Method | None) -> None:
        """Check the sizes of molecules in a method; with None, the numbers of atoms only.

        Raises:
          InputError: if one is too large.
        """
        for mol in mols:
            if self.atoms is not None and len(mol.symbols) > self.atoms:
                raise InputError(
                    f"Expected at most {self.atoms} atoms, which is the bound of this server, got {mol.formula} with "
                    f"{len(mol.symbols)}; use a smaller molecule."
                )
            if self.orbitals is not None and method is not None:
                count = count_orbitals(mol, method)
                if count > self.orbitals:
                    raise InputError(
                        f"Expected at most {self.orbitals} atomic orbitals, which is the bound of this server, got "
                        f"{mol.formula} in {method.basis} with {count}; use a smaller molecule or basis."
                    )

    def check_minutes(self, minutes: float) -> None:
        """Raise an `InputError` for a training that is too long."""
        if self.minutes is not None and not minutes <= self.minutes:
            raise InputError(
                f"Expected at most {self.minutes:g} minutes of training, which is the bound of this server, got "
                f"{minutes:g}; use {self.minutes:g}."
            )

    def check_path(self, path: str | os.PathLike) -> None:
        """Raise an `InputError` for a path that leads out of the folder, by links as well."""
        if self.folder is None:
            return
        try:
            is_inside = pathlib.Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError, RuntimeError):  # no path at all, or links in a circle
            is_inside = False
        if not is_inside:
            raise InputError(
                f"Expected a file or folder below that of the workbench, as this server reads no other, got "
                f"{shown(os.fspath(path))}; use a path without '..' that does not begin with '/'."
            )


def _number(variable: str) -> float | None:
    """Return the number in an environment variable; None if it is not set."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"Expected a positive number in {variable}, got {shown(text)}; use 20, for example.")
    return number
