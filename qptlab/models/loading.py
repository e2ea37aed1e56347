"""Trained models from files and descriptions, whatever their kind; those that come with qptlab have names."""

import functools
import pathlib

from qptlab.errors import InputError, shown
from qptlab.models import files
from qptlab.models.contract import Model, config_class
from qptlab.models.networks import CorrectionConfig
from qptlab.models.orbital_gnn import GNNConfig, GNNPredictor
from qptlab.models.predictor import CorrectionPredictor

PRETRAINED = pathlib.Path(__file__).parents[1] / "pretrained"
"""Folder of the models that come with qptlab: a model file, a card and a checksum for each."""

_PREDICTORS = {CorrectionConfig: CorrectionPredictor, GNNConfig: GNNPredictor}


@functools.cache
def pretrained_models() -> tuple[str, ...]:
    """Return the names of the models that come with qptlab; `qptlab.load` takes them.

    >>> import qptlab as ql
    >>> ql.pretrained_models()
    ('qm9-small',)
    """
    return tuple(sorted(path.stem for path in PRETRAINED.glob("*.h5")))


def model_card(name: str) -> str:
    """Return the card of a model that comes with qptlab: its training, errors and limits, in Markdown.

    Raises:
      InputError: if there is no such model.
    """
    if name not in pretrained_models():
        names = ", ".join(pretrained_models())
        raise InputError(f"Expected one of the models {names}, got {shown(name)}; use one of these.")
    return (PRETRAINED / f"{name}.md").read_text(encoding="utf-8")


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
