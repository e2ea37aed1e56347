"""Register of networks that correct a Fock matrix.

Any Haiku function from the features of a geometry to a correction can be a network.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from qptlab.dft.scf import GUESSES
from qptlab.errors import InputError, shown
from qptlab.models.contract import Params, kind_of, register_kind
from qptlab.models.features import FRAMED
from qptlab.models.inputs import Inputs

MAX_ITERATIONS = 16

SCHEMES = ("response", "screened", "mixing")
"""Schemes of the DFT iterations. "response": the guess and each iteration have the approximate response of the
electrons (`dft.fitted_response`), and Fock matrices are combined by DIIS; for networks that are trained without
iterations. "screened": the same with the response of a charge model (`dft.screening`). "mixing": no response;
densities are mixed by one half, as in the paper (arXiv:2402.04030)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """Settings of every network that corrects a Fock matrix; the dataclass of a network's settings inherits from it.

    Attributes:
      iterations: number n of DFT iterations after the network; a prediction builds n + 2 Fock matrices, the first
        for the guess and the last for the energy.
      guess: density from which the first Fock matrix is built, one of `scf.GUESSES`.
      scheme: scheme of the iterations, one of `SCHEMES`.
    """

    iterations: int = 2
    guess: str = "minao"
    scheme: str = "screened"

    def __post_init__(self):
        """Check the fields."""
        for name, allowed in (("guess", GUESSES), ("scheme", SCHEMES)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"Expected one of {', '.join(allowed)} as {name}, got {shown(value)}.")
        check_iterations(self.iterations)


def check_iterations(iterations: int) -> None:
    """Raise an `InputError` for a number of DFT iterations that cannot be used."""
    if not isinstance(iterations, int) or not 0 <= iterations <= MAX_ITERATIONS:
        raise InputError(
            f"Expected 0 to {MAX_ITERATIONS} DFT iterations, got {shown(iterations)}; use 2, for example."
        )


class Attention(NamedTuple):
    """Attention weights of a network's heads.

    Attributes:
      weights: weight of a column's token (atomic orbital or shell) for a row's token.
      mixing: coefficient of each matrix of `features.BIASES` in the logits of a head; None for a network without.
    """

    weights: Float[Array, "layer head ntoken ntoken"]
    mixing: Float[Array, "layer nbias head"] | None


Correction = Callable[[Any, Any, tuple[str, ...]], Float[Array, "nao nao"]]
"""Haiku function from features, settings and vocabulary (names of the kinds of tokens, which the features number) to
a correction of the guess's Fock matrix, hartree."""


class Network(NamedTuple):
    """A registered network; see `register_network`."""

    correction: Correction
    attention: Callable[[Any, Any, tuple[str, ...]], Attention] | None
    inputs: Inputs
    fit: Callable[[Params, Sequence[Any]], Params] | None


_NETWORKS: dict[str, Network] = {}


def network_of(config: CorrectionConfig) -> Network:
    """Return the registered network that settings belong to.

    Raises:
      InputError: if their class is not registered.
    """
    return _NETWORKS[kind_of(config)]


def register_network(
    kind: str,
    config: type[CorrectionConfig],
    correction: Correction,
    attention: Callable[[Any, Any, tuple[str, ...]], Attention] | None = None,
    title: str = "",
    presets: Mapping[str, CorrectionConfig] | None = None,
    *,
    inputs: Inputs = FRAMED,
    fit: Callable[[Params, Sequence[Any]], Params] | None = None,
) -> None:
    """Register a network, so that it can be trained, saved, loaded, evaluated and watched.

    Args:
      kind: name of the network, which run folders carry.
      config: frozen dataclass of its settings, a subclass of `CorrectionConfig`; fields of JSON types only.
      correction: Haiku function `correction(features, config, vocabulary)` that returns a matrix of shape
        [nao, nao], hartree. It is symmetrised, and set to zero for orbitals that only pad the arrays.
      attention: Haiku function of the same arguments and parameters that returns an `Attention`; None for a network
        without attention.
      title: name of the network in tables and plots; by default the same as `kind`.
      presets: settings by name, from which a user of the workbench can choose; by default the default settings.
      inputs: how the network sees a geometry; by default `features.FRAMED`: the paper's matrices over atomic
        orbitals, and positions in the molecule's frame.
      fit: function `fit(params, features)` that returns the initial parameters with statistics of the features of
        some geometries, a module "statistics", which the optimiser leaves alone; None for a network without.

    Raises:
      InputError: if the name is taken by a different class of settings.

    >>> import dataclasses, haiku as hk, jax.numpy as jnp, qptlab as ql
    >>> @dataclasses.dataclass(frozen=True)
    ... class ScaleConfig(ql.CorrectionConfig):
    ...     start: float = 0.0
    >>> def scale(features, config, vocabulary):
    ...     factor = hk.get_parameter("factor", (), init=hk.initializers.Constant(config.start))
    ...     return factor * features.fock_guess
    >>> ql.register_network("scale-example", ScaleConfig, scale)
    """
    if not issubclass(config, CorrectionConfig) or not dataclasses.is_dataclass(config):
        raise InputError(
            f"Expected a dataclass that inherits from ql.CorrectionConfig for network {kind!r}, got "
            f"{config.__name__}; decorate it with @dataclasses.dataclass(frozen=True)."
        )
    register_kind(kind, config, title, presets)
    _NETWORKS[kind] = Network(correction, attention, inputs, fit)
