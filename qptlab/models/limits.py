"""Limits of the estimated error of a prediction: above one of them there is a warning, above the other a refusal.

They count where predictions are used: `qptlab predict`, `relax`, ASE's calculator, guesses for PySCF, and labels of a
teacher. `model(mol)` itself returns every prediction, with its estimate.
"""

import math
import warnings

import numpy as np

from qptlab.errors import InputError
from qptlab.models.contract import Prediction
from qptlab.units import HARTREE_MEV, significant

WARN_MEV, REFUSE_MEV = 43.0, 1000.0
"""Default limits, meV: chemical accuracy (1 kcal/mol), and an error of the size of a reaction energy."""

NEGATIVE_MEV = 1.0
"""An energy cannot be this far below that of self-consistency: the estimate is wrong, as where the gap closes."""


class error_limits:
    """Set the limits of estimated errors for all threads; as a context manager, restore the earlier ones at its end.

    Args:
      warn_mev: estimated error above which a prediction that is used gives a warning, meV.
      refuse_mev: estimated error above which it is refused, meV; inf refuses nothing.

    Raises:
      InputError: if a limit is negative or not a number.

    >>> import qptlab as ql
    >>> with ql.error_limits(warn_mev=5.0, refuse_mev=50.0) as limits:
    ...     limits.warn_mev
    5.0
    """

    current: "error_limits"

    def __init__(self, warn_mev: float = WARN_MEV, refuse_mev: float = REFUSE_MEV):
        if not (warn_mev >= 0 and refuse_mev >= 0):
            raise InputError(
                f"Expected limits of the estimated error of 0 meV or more, got {warn_mev} and {refuse_mev}; use "
                f"{WARN_MEV:g} and {REFUSE_MEV:g}."
            )
        self.warn_mev, self.refuse_mev = warn_mev, refuse_mev
        self._before = getattr(error_limits, "current", self)
        error_limits.current = self

    def __enter__(self) -> "error_limits":
        """Return the limits."""
        return self

    def __exit__(self, *_) -> None:
        """Restore the earlier limits."""
        error_limits.current = self._before


error_limits()


def check(prediction: Prediction, title: str, stacklevel: int = 2) -> None:
    """Compare the estimated error of a prediction that is used with the limits; without an estimate, do nothing.

    Args:
      prediction: prediction.
      title: name of the molecule.
      stacklevel: stack level of the warning, counted from the caller.

    Warns:
      UserWarning: if the estimated error is above the first limit.

    Raises:
      InputError: if it is above the second limit.
    """
    if prediction.energy_error is None:
        return
    limits, estimate = error_limits.current, float(np.asarray(prediction.energy_error)) * HARTREE_MEV
    is_wrong = not math.isfinite(estimate) or estimate < -NEGATIVE_MEV
    if is_wrong and math.isfinite(limits.refuse_mev):
        raise InputError(
            f"Expected a prediction of {title} with an estimated error, got {estimate:.3g} meV, which is no error: "
            "the gap closes, or the geometry is far from those trained on; use PySCF, or ql.error_limits to go on."
        )
    if estimate > limits.refuse_mev:
        raise InputError(
            f"Expected an estimated error of at most {limits.refuse_mev:g} meV, got {significant(estimate)} meV for "
            f"{title}; use PySCF, more DFT iterations, a model for such geometries, or a larger limit "
            "(ql.error_limits)."
        )
    if is_wrong or estimate > limits.warn_mev:
        why = "which is no error: the gap closes" if is_wrong else f"more than {limits.warn_mev:g}"
        warnings.warn(
            f"The prediction of {title} has an estimated error of {significant(estimate)} meV, {why}; use more DFT "
            "iterations, or check it with PySCF.", stacklevel=stacklevel + 1,
        )
