"""Models that correct the Fock matrix of a guess density with a network, and then run DFT iterations.

The DFT iterations, the loss and the training are the same for all networks that `networks.register_network` knows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qptlab.dft.energy import commutator, density_from_fock, kohn_sham, orbitals
from qptlab.dft.energy import energy as total_energy
from qptlab.dft.energy import fock as fock_matrix
from qptlab.dft.screening import combination, screened
from qptlab.errors import InputError
from qptlab.models.contract import Params, Prediction, kind_of
from qptlab.models.networks import Attention, CorrectionConfig, network_of
from qptlab.models.systems import Sample


class CorrectionModel:
    """Network and DFT iterations: pure functions of parameters and samples.

    Parameters may be None: then the network is switched off, and the model is DFT iteration from the guess, the
    baseline.

    Args:
      config: settings of a registered network.
      kinds: vocabulary of the network's tokens, from `networks.Inputs.vocabulary`.

    Raises:
      InputError: if the network is not registered.
    """

    def __init__(self, config: CorrectionConfig, kinds: tuple[str, ...]):
        self.kind = kind_of(config)
        self.config = config
        self.kinds = kinds
        self.network = network = network_of(config)
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
        return jax.jit(self._network.init)(key, self.network.inputs.blank())

    def fit(self, params: Params, feats: Sequence[Any]) -> Params:
        """Return initial parameters with statistics of the features of some geometries, if the network has any."""
        return params if self.network.fit is None else self.network.fit(params, feats)

    def correction(self, params: Params | None, feats: Any) -> Float[Array, "nao nao"]:
        """Return the network's correction of the guess's Fock matrix, hartree: symmetric, zero for padding."""
        if params is None:
            return jnp.zeros_like(feats.fock_guess)
        delta = self._network.apply(params, feats).astype(feats.fock_guess.dtype)
        mask = feats.mask[:, None] & feats.mask
        return jnp.where(mask, 0.5 * (delta + delta.T), 0.0)

    def attention(self, params: Params, feats: Any) -> Attention:
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
        ints, guess = sample.ints, sample.guess
        fock = sample.features.fock_guess + delta
        dm = density_from_fock(fock, ints)
        if guess is None:
            for remaining in reversed(range(self.config.iterations)):
                fock = fock_matrix(dm, ints)
                update = density_from_fock(fock, ints)
                # The paper mixes densities by one half, except in the last iteration.
                dm = update if remaining == 0 else 0.5 * (dm + update)
            return fock, dm
        dms, focks, errors = [ints.dm_guess], [guess.fock], []
        for _ in range(self.config.iterations):
            dms.append(dm)
            focks.append(fock_matrix(dm, ints))
            errors = [commutator(f, d, ints) for f, d in zip(focks, dms, strict=True)]
            weights = combination(jnp.stack(errors))
            fock, dm = (jnp.tensordot(weights, jnp.stack(matrices), axes=1) for matrices in (focks, dms))
            fock, dm = screened(fock, dm, ints, guess.screening)[:2]
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
