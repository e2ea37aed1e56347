"""QPT: a Transformer over atomic orbitals that corrects the Fock matrix of the guess.

After Mathiasen et al. 2024 (arXiv:2402.04030). Attention between orbitals is biased by the
Kohn–Sham matrices of the guess density; the correction is symmetric, may raise and lower levels,
and starts at zero, so that an untrained model is plain DFT iteration.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qptlab.energy import commutator, density_from_fock, kohn_sham, orbitals
from qptlab.energy import energy as total_energy
from qptlab.energy import fock as fock_matrix
from qptlab.errors import InputError
from qptlab.integrals import HostIntegrals, Integrals, Template
from qptlab.models.features import BIASES, Features, ao_kinds, features

PRESETS = {
    "micro": {"width": 128, "layers": 5, "heads": 4},
    "tiny": {"width": 192, "layers": 12, "heads": 6},
}
"""Shapes by name: about 1 M parameters for CPUs, and the paper's smallest, 5 M."""

KEPT_AO_BYTES = 64 * 2**20
"""AO values on the grid up to this size are kept with a geometry while it is trained on."""

WAVELENGTHS_BOHR = tuple(2.0**k for k in range(6, -2, -1))
"""Of the Fourier features of positions: from beyond any molecule here to a thermal displacement."""


@dataclasses.dataclass(frozen=True)
class QPTConfig:
    """The network and the DFT iterations around it.

    Attributes:
      preset: network shape, one of `PRESETS`.
      iterations: n, DFT iterations after the network; n + 1 diagonalisations in all.
    """

    preset: str = "micro"
    iterations: int = 2

    def __post_init__(self):
        """Check what a user can get wrong."""
        if self.preset not in PRESETS:
            raise InputError(
                f"model preset {self.preset!r} is not known; one of {', '.join(PRESETS)} would do."
            )
        if not isinstance(self.iterations, int) or not 0 <= self.iterations <= 16:
            raise InputError(
                f"{self.iterations!r} DFT iterations were asked for; a whole number from 0 to 16 would do."
            )


class Prediction(NamedTuple):
    """What a model says of a geometry.

    Attributes:
      energy: total energy of `dm`, hartree.
      fock: Fock matrix of `dm`, hartree.
      dm: density matrix, electrons per AO pair.
      mo_energy: orbital energies of `fock`, hartree, ascending.
      mo_coeff: orbital coefficients of `fock`, in columns.
      residual: largest element of the commutator FDS − SDF in an orthonormal basis, hartree;
        zero at self-consistency, so it estimates the error without a reference.
      nocc: number of doubly occupied orbitals.
    """

    energy: Float[Array, ""]
    fock: Float[Array, "nao nao"]
    dm: Float[Array, "nao nao"]
    mo_energy: Float[Array, " nmo"]
    mo_coeff: Float[Array, "nao nmo"]
    residual: Float[Array, ""]
    nocc: Int[Array, ""]


class Sample(NamedTuple):
    """One geometry made ready for a model: its integrals and what the network sees."""

    ints: Integrals
    features: Features


Params = hk.MutableParams | dict
"""Haiku's nested dictionary of arrays."""


class QPT:
    """A QPT for one molecule and method: pure functions of parameters and samples.

    Geometries are in the molecule's frame (`frame.ReferenceFrame`). Wherever parameters are asked
    for, `None` stands for the network switched off: plain DFT iteration, the baseline.

    Args:
      template: the molecule and method.
      config: network and iterations.

    Raises:
      InputError: for a molecule with unpaired electrons.
    """

    def __init__(self, template: Template, config: QPTConfig):
        if len(template.occupied) > 1:
            raise InputError(
                f"a QPT is closed-shell, and {template.occupied[0]} + {template.occupied[1]} electrons of "
                "either spin were given; a molecule without unpaired electrons would do."
            )
        self.template = template
        self.config = config
        self._xc = template.method.xc
        kinds, nkinds = ao_kinds(template)
        self._network = hk.without_apply_rng(
            hk.transform(lambda feats: correction(feats, kinds, nkinds, config))
        )

    @functools.cached_property
    def prepare(self):
        """Compiled: what libcint made of a geometry → `Sample`, on the device."""
        return jax.jit(self._prepare)

    def _prepare(self, host: HostIntegrals) -> Sample:
        ints = self.template.complete(host)
        if ints.aos is not None and ints.aos.size * 8 > KEPT_AO_BYTES:
            ints = ints._replace(aos=None)  # made anew when needed: a replay buffer holds many geometries
        return self._sample(ints)

    def _sample(self, ints: Integrals) -> Sample:
        return Sample(ints, features(ints, self.template.ao_atom, self._xc))

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters; with them the model equals plain DFT iteration."""
        nao = self.template.nao
        empty = Features(
            jnp.zeros((nao, nao)), jnp.zeros((len(BIASES), nao, nao)), jnp.zeros((nao, 3))
        )
        return jax.jit(self._network.init)(key, empty)

    def density(self, params: Params | None, sample: Sample) -> Float[Array, "nao nao"]:
        """Predicted density matrix, electrons per AO pair; differentiable in the parameters."""
        ints, feats = sample
        fock = feats.fock_guess
        if params is not None:
            fock = fock + self._network.apply(params, feats)
        dm = density_from_fock(fock, ints)
        for left in reversed(range(self.config.iterations)):
            update = density_from_fock(fock_matrix(dm, ints, self._xc), ints)
            # The paper mixes densities by one half, except in the last iteration.
            dm = update if left == 0 else 0.5 * (dm + update)
        return dm

    def energy(self, params: Params | None, sample: Sample) -> Float[Array, ""]:
        """Energy of the predicted density, hartree: the loss."""
        return total_energy(self.density(params, sample), sample.ints, self._xc)

    @functools.cached_property
    def compiled_predict(self):
        """`predict`, compiled once for all predictors of this model."""
        return jax.jit(self.predict)

    @functools.cached_property
    def compiled_slope(self):
        """Derivative of the predicted energy with respect to positions in the frame, compiled once."""

        def energy_at(positions, params):
            return self.energy(params, self._sample(self.template.integrals(positions)))

        return jax.jit(lambda params, positions: jax.grad(energy_at)(positions, params))

    def predict(self, params: Params | None, sample: Sample) -> Prediction:
        """Everything the predicted density gives; not for differentiation."""
        dm = self.density(params, sample)
        found = kohn_sham(dm, sample.ints, self._xc)
        mo_energy, mo_coeff = orbitals(found.fock, sample.ints)
        residual = jnp.max(jnp.abs(commutator(found.fock, dm, sample.ints)))
        return Prediction(
            found.terms.e_tot, found.fock, dm, mo_energy, mo_coeff, residual, sample.ints.nocc
        )


def correction(
    features: Features, kinds: Int[np.ndarray, " nao"], nkinds: int, config: QPTConfig
) -> Float[Array, "nao nao"]:
    """The network: a symmetric correction to the guess's Fock matrix, hartree (in a Haiku transform).

    Args:
      features: of one geometry in the molecule's frame.
      kinds: each AO's kind, from `features.ao_kinds`.
      nkinds: how many kinds there are.
      config: the shape of the network.
    """
    shape = PRESETS[config.preset]
    biases = jnp.moveaxis(features.biases.astype(jnp.float32), 0, -1)  # [nao, nao, nbias]
    x = _embed(features, biases, kinds, nkinds, shape["width"])  # [nao, width]
    for layer in range(shape["layers"]):
        with hk.experimental.name_scope(f"layer_{layer}"):
            x = x + _attention(_norm(x, "attention_norm"), biases, shape)
            x = x + _mlp(_norm(x, "mlp_norm"), shape["width"])
    return _symmetric_head(_norm(x, "head_norm"), biases).astype(features.fock_guess.dtype)


def _embed(features, biases, kinds, nkinds, width):
    wave = 2 * np.pi / np.array(WAVELENGTHS_BOHR)
    phase = features.positions[:, :, None] * wave  # [nao, 3, nwave]
    fourier = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(len(kinds), -1)
    diagonal = jnp.diagonal(biases).T  # [nao, nbias]
    inputs = jnp.concatenate([fourier.astype(jnp.float32), diagonal], axis=-1)
    return hk.Embed(nkinds, width, name="kind")(kinds) + hk.Linear(width, name="position")(inputs)


def _norm(x, name):
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(x)


def _attention(x, biases, shape):
    heads, width = shape["heads"], shape["width"]
    qkv = hk.Linear(3 * width, with_bias=False, name="qkv")(x)
    query, key, value = jnp.split(qkv.reshape(len(x), heads, -1), 3, axis=-1)
    mixing = hk.Linear(heads, with_bias=False, name="bias", w_init=hk.initializers.RandomNormal(1.0))
    logits = jnp.einsum("ihd,jhd->ijh", query, key) / math.sqrt(width // heads) + mixing(biases)
    attended = jnp.einsum("ijh,jhd->ihd", jax.nn.softmax(logits, axis=1), value)
    return hk.Linear(width, name="out")(attended.reshape(len(x), width))


def _mlp(x, width):
    hidden = jax.nn.gelu(hk.Linear(4 * width, name="mlp_in")(x))
    return hk.Linear(width, name="mlp_out")(hidden)


def _symmetric_head(x, biases):
    """Σ_r s_r·q_ir·q_jr, plus the same weighting each bias matrix; the signed s start at zero."""
    width = x.shape[-1]
    query = hk.Linear(width, with_bias=False, name="head")(x)
    signs = hk.get_parameter("head_scale", (1 + len(BIASES), width), init=jnp.zeros)
    pairs = jnp.einsum("kr,ir,jr->ijk", signs, query, query) / math.sqrt(width)
    return pairs[..., 0] + jnp.sum(pairs[..., 1:] * biases, axis=-1)
