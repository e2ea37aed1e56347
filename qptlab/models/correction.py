"""Models that correct the Fock matrix of a guess density with a network, and then run DFT iterations.

Any Haiku function from the features of a geometry to a correction can be the network. It is registered under a kind
with `register_network`. The DFT iterations, the loss and the training are the same for all networks.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qptlab.dft.energy import commutator, density_from_fock, kohn_sham, orbitals
from qptlab.dft.energy import energy as total_energy
from qptlab.dft.energy import fock as fock_matrix
from qptlab.dft.scf import GUESSES
from qptlab.errors import InputError, shown
from qptlab.models.contract import Params, Prediction, kind_of, register_kind
from qptlab.models.features import BIASES, Features
from qptlab.models.systems import Sample

MAX_ITERATIONS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """Settings of every network that corrects a Fock matrix; the dataclass of a network's settings inherits from it.

    Attributes:
      iterations: number n of DFT iterations after the network; there are n + 1 diagonalisations in total.
      guess: density from which the first Fock matrix is built, one of `scf.GUESSES`.
    """

    iterations: int = 2
    guess: str = "minao"

    def __post_init__(self):
        """Check the fields."""
        if self.guess not in GUESSES:
            raise InputError(f"Expected one of {', '.join(GUESSES)} as guess, got {shown(self.guess)}.")
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
      weights: attention weight of a column's atomic orbital for a row's atomic orbital; each row sums to one.
      mixing: coefficient of each matrix of `features.BIASES` in the logits of a head.
    """

    weights: Float[Array, "layer head nao nao"]
    mixing: Float[Array, "layer nbias head"]


Correction = Callable[[Features, Any, tuple[str, ...]], Float[Array, "nao nao"]]
"""Haiku function from features, settings and vocabulary (names of the kinds of atomic orbitals, which
`Features.kinds` numbers) to a correction of the guess's Fock matrix, hartree."""


class _Network(NamedTuple):
    correction: Correction
    attention: Callable[[Features, Any, tuple[str, ...]], Attention] | None


_NETWORKS: dict[str, _Network] = {}


def register_network(
    kind: str,
    config: type[CorrectionConfig],
    correction: Correction,
    attention: Callable[[Features, Any, tuple[str, ...]], Attention] | None = None,
    title: str = "",
    presets: Mapping[str, CorrectionConfig] | None = None,
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
    _NETWORKS[kind] = _Network(correction, attention)


class CorrectionModel:
    """Network and DFT iterations: pure functions of parameters and samples.

    Geometries are in the molecule's frame (`frame.ReferenceFrame`). Parameters may be None: then the network is
    switched off, and the model is plain DFT iteration, the baseline.

    Args:
      config: settings of a registered network.
      kinds: vocabulary of atomic orbitals, from `features.vocabulary`.

    Raises:
      InputError: if the network is not registered.
    """

    def __init__(self, config: CorrectionConfig, kinds: tuple[str, ...]):
        self.kind = kind_of(config)
        self.config = config
        self.kinds = kinds
        network = _NETWORKS[self.kind]
        self.has_attention = network.attention is not None
        self._network = hk.without_apply_rng(hk.transform(lambda feats: network.correction(feats, config, kinds)))
        self._attention = hk.without_apply_rng(
            hk.transform(lambda feats: (network.attention or network.correction)(feats, config, kinds))
        )

    def with_iterations(self, iterations: int) -> "CorrectionModel":
        """Return the same network with a different number of DFT iterations; parameters fit both."""
        return CorrectionModel(dataclasses.replace(self.config, iterations=iterations), self.kinds)

    def init(self, key: PRNGKeyArray) -> Params:
        """Return initial parameters."""
        empty = Features(
            jnp.zeros((1, 1)), jnp.zeros((len(BIASES), 1, 1), jnp.float32), jnp.zeros((1, 3)),
            jnp.zeros(1, int), jnp.ones(1, bool),
        )
        return jax.jit(self._network.init)(key, empty)

    def correction(self, params: Params | None, feats: Features) -> Float[Array, "nao nao"]:
        """Return the network's correction of the guess's Fock matrix, hartree: symmetric, zero for padding."""
        if params is None:
            return jnp.zeros_like(feats.fock_guess)
        delta = self._network.apply(params, feats).astype(feats.fock_guess.dtype)
        mask = feats.mask[:, None] & feats.mask
        return jnp.where(mask, 0.5 * (delta + delta.T), 0.0)

    def attention(self, params: Params, feats: Features) -> Attention:
        """Return the attention of the network's heads.

        Raises:
          InputError: if the network has none.
        """
        if not self.has_attention:
            raise InputError(f"Expected a network with attention, got {self.kind!r}, which has none; use 'qpt'.")
        return self._attention.apply(params, feats)

    def refine(
        self, delta: Float[Array, "nao nao"], sample: Sample
    ) -> tuple[Float[Array, "nao nao"], Float[Array, "nao nao"]]:
        """Run the DFT iterations from a correction of the guess's Fock matrix; differentiable in the correction.

        Args:
          delta: correction, hartree.
          sample: geometry.

        Returns:
          The last Fock matrix that was diagonalised, hartree, and its density matrix, electrons per pair of atomic
          orbitals.
        """
        ints, feats = sample.ints, sample.features
        fock = feats.fock_guess + delta
        dm = density_from_fock(fock, ints)
        for remaining in reversed(range(self.config.iterations)):
            fock = fock_matrix(dm, ints)
            update = density_from_fock(fock, ints)
            # The paper mixes densities by one half, except in the last iteration.
            dm = update if remaining == 0 else 0.5 * (dm + update)
        return fock, dm

    def density(self, params: Params | None, sample: Sample) -> Float[Array, "nao nao"]:
        """Return the predicted density matrix; differentiable in the parameters."""
        return self.refine(self.correction(params, sample.features), sample)[1]

    def energy(self, params: Params | None, sample: Sample) -> Float[Array, ""]:
        """Return the energy of the predicted density, hartree."""
        return total_energy(self.density(params, sample), sample.ints)

    def predict(self, params: Params | None, sample: Sample) -> Prediction:
        """Return the predicted density with its energy, Fock matrix and orbitals; it cannot be differentiated."""
        dm = self.density(params, sample)
        state = kohn_sham(dm, sample.ints)
        mo_energy, mo_coeff = orbitals(state.fock, sample.ints)
        residual = jnp.max(jnp.abs(commutator(state.fock, dm, sample.ints)))
        return Prediction(
            state.terms.e_tot, fock=state.fock, dm=dm, mo_energy=mo_energy, mo_coeff=mo_coeff, residual=residual,
            nocc=sample.ints.nocc,
        )

    @functools.cached_property
    def compiled_predict(self):
        """`predict`, compiled once for all predictors of this model."""
        return jax.jit(self.predict)

    @functools.cached_property
    def compiled_attention(self):
        """`attention`, compiled once."""
        return jax.jit(self.attention)
