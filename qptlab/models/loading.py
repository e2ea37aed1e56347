"""Trained models from files and descriptions, whatever their kind."""

import pathlib

from qptlab.errors import InputError, shown
from qptlab.models import files
from qptlab.models.contract import Model, config_class
from qptlab.models.networks import CorrectionConfig
from qptlab.models.orbital_gnn import GNNConfig, GNNPredictor
from qptlab.models.predictor import CorrectionPredictor

_PREDICTORS = {CorrectionConfig: CorrectionPredictor, GNNConfig: GNNPredictor}


def load_file(path: str | pathlib.Path) -> Model:
    """Return the model of a file that `Model.save` wrote.

    Raises:
      InputError: if the file is not a model, or its kind is not registered.
    """
    description, arrays = files.read(path)
    config = config_class(description["kind"])
    predictor = next((predictor for base, predictor in _PREDICTORS.items() if issubclass(config, base)), None)
    if predictor is None:
        kind = description["kind"]
        raise InputError(f"Expected a kind of model that can be loaded from a file, got {kind!r}; use 'equivariant'.")
    try:
        return predictor.rebuild(description, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        message = f"Expected a model file, got {path} ({shown(str(error))}); use a file that model.save wrote."
        raise InputError(message) from None
