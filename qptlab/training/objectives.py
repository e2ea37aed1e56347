"""The objective of a training, for each family of models."""

from collections.abc import Callable, Sequence
from typing import Any

from qptlab.errors import InputError
from qptlab.evaluation.labels import LabelledSet
from qptlab.models.contract import Model, config_class
from qptlab.models.equivariant import EquivariantConfig
from qptlab.models.networks import CorrectionConfig
from qptlab.models.orbital_gnn import GNNConfig
from qptlab.models.predictor import CorrectionPredictor
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig
from qptlab.training.label_free import LabelFree
from qptlab.training.loop import Objective
from qptlab.training.supervised import Supervised

Data = Molecule | Sequence[Molecule] | LabelledSet
"""Data of a training: a molecule or several, whose geometries are sampled; or a labelled set."""


def make_objective(
    data: Data, method: Method | None = None, model: Any = None, start: Model | None = None
) -> Objective:
    """Return what is trained: a network on molecules, or on a labelled set.

    Args:
      data: a molecule or several, for a network that corrects a Fock matrix; a `LabelledSet` for an OrbitalGNN.
      method: level of theory, for molecules; by default `Method()`. Labels state their own.
      model: settings of the network; by default `EquivariantConfig()` for molecules and `GNNConfig()` for a
        labelled set.
      start: trained model whose parameters the network starts from, for molecules of its elements. Method and
        settings of the network are those of this model by default.

    Raises:
      InputError: if data, method and network do not fit, or the method cannot treat a molecule.
    """
    if start is not None and (isinstance(data, LabelledSet) or not isinstance(start, CorrectionPredictor)):
        raise InputError(
            f"Expected a model that corrects a Fock matrix and molecules to start from it, got "
            f"{type(start).__name__} and {type(data).__name__}; use ql.load of a model of kind 'equivariant'."
        )
    if isinstance(data, LabelledSet):
        config = GNNConfig() if model is None else model
        if not isinstance(config, GNNConfig):
            raise InputError(
                f"Expected settings of a network that learns from labels, got {type(config).__name__}; use "
                "ql.GNNConfig(), or train on molecules."
            )
        if method is not None:
            raise InputError(
                f"Expected no method for a labelled set, got {method.label}; its labels state their level of theory."
            )
        return Supervised(data, config)
    config = (start.config if start else EquivariantConfig()) if model is None else model
    if not isinstance(config, CorrectionConfig):
        raise InputError(
            f"Expected settings of a network that learns without labels, got {type(config).__name__}; use "
            "ql.EquivariantConfig(), or train on a labelled set from ql.read_labels(path)."
        )
    mols = [data] if isinstance(data, Molecule) else list(data)
    if start is not None:
        return LabelFree.starting_from(start, mols, method or start.method, config)
    return LabelFree.of(mols, method or Method(), config)


def default_training(data: Data) -> TrainConfig:
    """Return the default settings of a training on molecules, or on a labelled set."""
    return TrainConfig.supervised() if isinstance(data, LabelledSet) else TrainConfig()


def objective_from(record: dict, read: Callable[[str], str | None]) -> Objective:
    """Return the objective of a run folder.

    Args:
      record: content of `config.json`.
      read: function that returns the text of a file of the folder; None if there is no such file.

    Raises:
      InputError: if the kind is not registered, or a setting cannot be used.
      KeyError, TypeError: if something is missing or unknown.
    """
    config = model_config(record)
    if isinstance(config, CorrectionConfig):
        return LabelFree.from_record(record, config)
    return Supervised.from_record(record, config, read)


def model_config(record: dict) -> Any:
    """Return the settings of the network of a run folder's `config.json`.

    Raises:
      InputError: if the kind is not registered, or a setting cannot be used.
      KeyError, TypeError: if something is missing or unknown.
    """
    return config_class(record["kind"])(**record["model"])
