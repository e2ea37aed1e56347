"""Files of predictions: HDF5, in atomic units. Nothing in them is executed."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import h5py
import numpy as np
from ase.data import chemical_symbols

from qptlab import files
from qptlab.errors import InputError
from qptlab.models.contract import Prediction
from qptlab.system.molecule import Molecule

UNITS = "hartree, bohr"


class PredictedSet(NamedTuple):
    """Geometries with predictions.

    Attributes:
      molecules: geometries.
      predictions: prediction of each geometry.
      label: level of theory that the model predicts.
    """

    molecules: list[Molecule]
    predictions: list[Prediction]
    label: str


def write_predictions(
    path: str | pathlib.Path, mols: Sequence[Molecule], predictions: Iterable[Prediction], label: str = ""
) -> None:
    """Write geometries and their predictions to a new HDF5 file.

    Every property is one array over the geometries. Geometries of different formulas have arrays of different shapes,
    so each formula has a group. The file appears when it is complete.

    Args:
      path: path of the file, which must not exist.
      mols: geometries.
      predictions: prediction of each geometry, such as `model.map(mols)`.
      label: level of theory, such as `model.label`.

    Raises:
      InputError: if the file exists, there are no geometries, or the predictions do not fit the geometries.
    """
    path, answers = pathlib.Path(path), list(predictions)
    if path.exists():
        raise InputError(f"Expected a new file, got {path}, which exists and is not overwritten; use a new name.")
    if not mols or len(answers) != len(mols):
        raise InputError(
            f"Expected one prediction for each geometry, got {len(answers)} for {len(mols)} geometries; use "
            "model.map(mols)."
        )
    names, *others = {tuple(name for name in Prediction._fields if getattr(p, name) is not None) for p in answers}
    if others:
        raise InputError("Expected the same properties in all predictions, got several sets; use those of one model.")
    formulas: dict[str, list[int]] = {}
    for index, mol in enumerate(mols):
        formulas.setdefault(mol.formula, []).append(index)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with h5py.File(partial, "x") as file:
            file.attrs["method"], file.attrs["units"] = label, UNITS
            for formula, members in formulas.items():
                group = file if len(formulas) == 1 else file.create_group(formula)
                group["frame"] = np.array(members)
                for name in ("atomic_numbers", "positions", "charge"):
                    group[name] = np.stack([getattr(mols[index], name) for index in members])
                for name in names:
                    group[name] = np.stack([np.asarray(getattr(answers[index], name)) for index in members])
        path.open("x").close()  # a file that was created meanwhile is not replaced
        os.replace(partial, path)
    except FileExistsError:
        raise InputError(f"Expected a new file, got {path}, which was created meanwhile; use a new name.") from None
    finally:
        partial.unlink(missing_ok=True)


def read_predictions(path: str | pathlib.Path) -> PredictedSet:
    """Read what `write_predictions` or `qptlab predict` has written, in the order of the geometries.

    Raises:
      InputError: if the file cannot be read or is not one of predictions.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    rows: dict[int, tuple[Molecule, Prediction]] = {}
    with files.hdf5(path, "a file of predictions") as file:
        label = files.attribute(file, "method")
        for name, array in files.arrays(file):
            group, _, key = name.rpartition("/")
            groups.setdefault(group, {})[key] = array
        for values in groups.values():
            properties = {name: values[name] for name in Prediction._fields if name in values}
            for row, index in enumerate(values["frame"]):
                symbols = tuple(chemical_symbols[number] for number in values["atomic_numbers"][row])
                mol = Molecule(symbols, values["positions"][row], int(values["charge"][row]))
                rows[int(index)] = mol, Prediction(**{name: value[row] for name, value in properties.items()})
        ordered = [rows[index] for index in range(len(rows) or 1)]
    return PredictedSet([mol for mol, _ in ordered], [prediction for _, prediction in ordered], label)
