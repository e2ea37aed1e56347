"""Models that correct the Fock matrix of a guess density with a network, and then run DFT iterations.

The DFT iterations, the loss and the training are the same for all networks that `networks.register_network` knows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qptlab.dft.energy import commutator, density_from_fock, filled_orbitals, kohn_sham, orbitals
from qptlab.dft.energy import energy as total_energy
from qptlab.dft.energy import fock as fock_matrix
from qptlab.dft.fitted_response import estimated_error, responded
from qptlab.dft.integrals import Integrals, inverse_root
from qptlab.dft.screening import combination, screened
from qptlab.errors import InputError
from qptlab.models.contract import Params, Prediction, kind_of
from qptlab.models.networks import Attention, CorrectionConfig, network_of
from qptlab.models.systems import Sample


class Refined(NamedTuple):
    """State after the DFT iterations.

    Attributes:
      fock: last Fock matrix that was diagonalised, hartree.
      dm: its density matrix, electrons per pair of atomic orbitals.
      filled: its filled orbitals C with dm = C·Cᵀ, without a derivative; None for a mixed density.
    """

    fock: Float[Array, "nao nao"]
    dm: Float[Array, "nao nao"]
    filled: Float[Array, "nao nocc"] | None


def _diagonalised(fock: Float[Array, "nao nao"], ints: Integrals) -> Refined:
    return Refined(fock, density_from_fock(fock, ints), jax.lax.stop_gradient(filled_orbitals(fock, ints)))


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
            raise InputError(
                f"Expected a network with attention, got {self.kind!r}, which has none; use 'equivariant' or 'qpt'."
            )
        return self._attention.apply(params, feats)

    def refine(self, delta: Float[Array, "nao nao"], sample: Sample) -> Refined:
        """Run the DFT iterations from a correction of the guess's Fock matrix; differentiable in the correction.

        Args:
          delta: correction, hartree.
          sample: geometry.
        """
        ints, start = sample.ints, sample.start
        state = _diagonalised(sample.features.fock_guess + delta, ints)
        dms, focks = [ints.dm_guess], [] if start is None else [start.fock]
        for remaining in reversed(range(self.config.iterations)):
            fock = fock_matrix(state.dm, ints, filled=state.filled)
            if start is None:
                update = _diagonalised(fock, ints)
                # The paper mixes densities by one half, except in the last iteration.
                mixed = Refined(fock, 0.5 * (state.dm + update.dm), None)
                state = update if remaining == 0 else mixed
                continue
            dms.append(state.dm)
            focks.append(fock)
            errors = [commutator(fock, dm, ints) for fock, dm in zip(focks, dms, strict=True)]
            weights = combination(jnp.stack(errors))
            fock, dm = (jnp.tensordot(weights, jnp.stack(matrices), axes=1) for matrices in (focks, dms))
            is_screened = self.config.scheme == "screened"
            fock = screened(fock, dm, ints, start.screening).fock if is_screened else responded(fock, dm, ints)
            state = _diagonalised(fock, ints)
        return state

    def energy(self, params: Params | None, sample: Sample) -> Float[Array, ""]:
        """Return the energy of the predicted density, hartree; differentiable in parameters and sample."""
        state = self.refine(self.correction(params, sample.features), sample)
        return total_energy(state.dm, sample.ints, filled=state.filled)

    def energy_of_fixed_orbitals(self, params: Params | None, sample: Sample) -> Float[Array, ""]:
        """Return the energy, with a derivative at fixed orbitals in Löwdin's basis.

        In the scheme "response" the way to the density has no derivative. For a self-consistent density it does not
        matter. Otherwise the error of the gradient is of first order in the residual of the prediction.

        Args:
          params: parameters; None switches the network off.
          sample: geometry.
        """
        fixed = jax.lax.stop_gradient(sample)
        state = self.refine(self.correction(jax.lax.stop_gradient(params), fixed.features), fixed)
        moving = inverse_root(sample.ints.overlap)
        root = jax.lax.stop_gradient(sample.ints.overlap @ moving)
        return total_energy(moving @ (root @ state.dm @ root) @ moving, sample.ints, filled=state.filled)

    def density(self, params: Params | None, sample: Sample) -> Float[Array, "nao nao"]:
        """Return the predicted density matrix alone, without the Fock matrix and the energy that belong to it."""
        return self.refine(self.correction(params, sample.features), sample).dm

    def predict(self, params: Params | None, sample: Sample) -> Prediction:
        """Return the predicted density with its energy, Fock matrix and orbitals; it cannot be differentiated."""
        _, dm, filled = self.refine(self.correction(params, sample.features), sample)
        state = kohn_sham(dm, sample.ints, filled=filled)
        mo_energy, mo_coeff = orbitals(state.fock, sample.ints)
        residual = jnp.max(jnp.abs(commutator(state.fock, dm, sample.ints)))
        return Prediction(
            state.terms.e_tot, fock=state.fock, dm=dm, mo_energy=mo_energy, mo_coeff=mo_coeff, residual=residual,
            energy_error=estimated_error(state.fock, dm, sample.ints), nocc=sample.ints.nocc,
        )

    @functools.cached_property
    def compiled_predict(self):
        """`predict`, compiled once for all predictors of this model."""
        return jax.jit(self.predict)

    @functools.cached_property
    def compiled_density(self):
        """`density`, compiled once."""
        return jax.jit(self.density)

    @functools.cached_property
    def compiled_attention(self):
        """`attention`, compiled once."""
        return jax.jit(self.attention)
