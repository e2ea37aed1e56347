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

from qptlab.dft.energy import commutator, density_from_fock, kohn_sham, orbitals
from qptlab.dft.energy import energy as total_energy
from qptlab.dft.energy import fock as fock_matrix
from qptlab.dft.scf import GUESSES
from qptlab.errors import InputError
from qptlab.models.features import BIASES, Features
from qptlab.models.systems import Sample

PRESETS = {
    "micro": {"width": 128, "layers": 5, "heads": 4},
    "tiny": {"width": 192, "layers": 12, "heads": 6},
    "small": {"width": 384, "layers": 12, "heads": 6},
    "base": {"width": 768, "layers": 12, "heads": 12},
    "medium": {"width": 1024, "layers": 24, "heads": 16},
    "large": {"width": 1280, "layers": 36, "heads": 20},
    "xlarge": {"width": 1600, "layers": 48, "heads": 25},
}
"""Shapes by name: about 1 M parameters for CPUs, and the paper's, from 5 M to 1.5 G."""

PRECISIONS = ("float32", "bfloat16", "float64")

MAX_ITERATIONS = 16

WAVELENGTHS_BOHR = tuple(2.0**k for k in range(6, -2, -1))
"""Of the Fourier features of positions: from beyond any molecule here to a thermal displacement."""

MASKED_LOGIT = -1e9


@dataclasses.dataclass(frozen=True)
class QPTConfig:
    """The network and the DFT iterations around it.

    Attributes:
      preset: network shape, one of `PRESETS`.
      iterations: n, DFT iterations after the network; n + 1 diagonalisations in all.
      guess: density that the first Fock matrix is built of, one of `scf.GUESSES`.
      precision: in which the network multiplies matrices, one of `PRECISIONS`; DFT is always in float64.
    """

    preset: str = "micro"
    iterations: int = 2
    precision: str = "float32"
    guess: str = "minao"

    def __post_init__(self):
        """Check what a user can get wrong."""
        for field, allowed in (("preset", tuple(PRESETS)), ("precision", PRECISIONS), ("guess", GUESSES)):
            value = getattr(self, field)
            if value not in allowed:
                raise InputError(f"model {field} {value!r} is not known; one of {', '.join(allowed)} would do.")
        check_iterations(self.iterations)


def check_iterations(given: int) -> None:
    """Raise an `InputError` for a number of DFT iterations that cannot be used."""
    if not isinstance(given, int) or not 0 <= given <= MAX_ITERATIONS:
        raise InputError(
            f"{given!r} DFT iterations were asked for; a whole number from 0 to {MAX_ITERATIONS} would do."
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


class Attention(NamedTuple):
    """What a network's heads look at.

    Attributes:
      weights: how much the AO of a row attends to that of a column; a row sums to one.
      mixing: how strongly each matrix of `features.BIASES` biases a head.
    """

    weights: Float[Array, "layer head nao nao"]
    mixing: Float[Array, "layer nbias head"]


Params = hk.MutableParams | dict
"""Haiku's nested dictionary of arrays."""


class QPT:
    """A QPT: pure functions of parameters and samples.

    Geometries are in the molecule's frame (`frame.ReferenceFrame`). Wherever parameters are asked
    for, `None` stands for the network switched off: plain DFT iteration, the baseline.

    Args:
      config: network and iterations.
      xc: functional.
      kinds: the vocabulary of atomic orbitals, from `features.vocabulary`.
    """

    def __init__(self, config: QPTConfig, xc: str, kinds: tuple[str, ...]):
        self.config = config
        self.xc = xc
        self.kinds = kinds
        self._network = hk.without_apply_rng(hk.transform(lambda feats: correction(feats, len(kinds), config)[0]))
        self._seen = hk.without_apply_rng(
            hk.transform(lambda feats: correction(feats, len(kinds), config, keep_attention=True)[1])
        )

    def with_iterations(self, iterations: int) -> "QPT":
        """The same network with another number of DFT iterations after it; parameters fit both."""
        return QPT(dataclasses.replace(self.config, iterations=iterations), self.xc, self.kinds)

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters; with them the model equals plain DFT iteration."""
        empty = Features(
            jnp.zeros((1, 1)), jnp.zeros((len(BIASES), 1, 1), jnp.float32), jnp.zeros((1, 3)),
            jnp.zeros(1, int), jnp.ones(1, bool),
        )
        return jax.jit(self._network.init)(key, empty)

    def correction(self, params: Params | None, feats: Features) -> Float[Array, "nao nao"]:
        """What the network adds to the guess's Fock matrix, hartree."""
        if params is None:
            return jnp.zeros_like(feats.fock_guess)
        return self._network.apply(params, feats)

    def attention(self, params: Params, feats: Features) -> Attention:
        """What the network's heads look at while it works out `correction`."""
        return self._seen.apply(params, feats)

    def refine(
        self, delta: Float[Array, "nao nao"], sample: Sample
    ) -> tuple[Float[Array, "nao nao"], Float[Array, "nao nao"]]:
        """Iterate from a correction of the guess's Fock matrix; differentiable in the correction.

        Returns:
          The last Fock matrix that was diagonalised, hartree, and its density matrix, electrons per AO pair.
        """
        ints, feats = sample.ints, sample.features
        fock = feats.fock_guess + delta
        dm = density_from_fock(fock, ints)
        for left in reversed(range(self.config.iterations)):
            fock = fock_matrix(dm, ints, self.xc)
            update = density_from_fock(fock, ints)
            # The paper mixes densities by one half, except in the last iteration.
            dm = update if left == 0 else 0.5 * (dm + update)
        return fock, dm

    def density(self, params: Params | None, sample: Sample) -> Float[Array, "nao nao"]:
        """Predicted density matrix, electrons per AO pair; differentiable in the parameters."""
        return self.refine(self.correction(params, sample.features), sample)[1]

    def energy(self, params: Params | None, sample: Sample) -> Float[Array, ""]:
        """Energy of the predicted density, hartree."""
        return total_energy(self.density(params, sample), sample.ints, self.xc)

    def predict(self, params: Params | None, sample: Sample) -> Prediction:
        """Everything the predicted density gives; not for differentiation."""
        dm = self.density(params, sample)
        found = kohn_sham(dm, sample.ints, self.xc)
        mo_energy, mo_coeff = orbitals(found.fock, sample.ints)
        residual = jnp.max(jnp.abs(commutator(found.fock, dm, sample.ints)))
        return Prediction(
            found.terms.e_tot, found.fock, dm, mo_energy, mo_coeff, residual, sample.ints.nocc
        )

    @functools.cached_property
    def compiled_predict(self):
        """`predict`, compiled once for all predictors of this model."""
        return jax.jit(self.predict)

    @functools.cached_property
    def compiled_attention(self):
        """`attention`, compiled once."""
        return jax.jit(self.attention)


def correction(
    features: Features, nkinds: int, config: QPTConfig, *, keep_attention: bool = False
) -> tuple[Float[Array, "nao nao"], Attention | None]:
    """The network: a symmetric correction to the guess's Fock matrix, hartree (in a Haiku transform).

    Args:
      features: of one geometry in the molecule's frame.
      nkinds: how many kinds of AOs there are.
      config: the shape of the network.
      keep_attention: return what the heads look at, too.
    """
    shape, precision = PRESETS[config.preset], jnp.dtype(config.precision)
    biases = jnp.moveaxis(features.biases, 0, -1)  # [nao, nao, nbias]
    biases = biases.astype(jnp.promote_types(precision, jnp.float32))
    x = _embed(features, biases, nkinds, shape["width"])  # [nao, width]
    seen = jnp.where(features.mask[:, None], 0.0, MASKED_LOGIT)  # [nao, 1]

    @hk.remat  # backwards a layer is run again: what is kept does not grow with attention matrices
    def layer(x):
        change, attention = _attention(_norm(x, "attention_norm").astype(precision), biases, seen, shape)
        x = x + change.astype(x.dtype)
        x = x + _mlp(_norm(x, "mlp_norm").astype(precision), shape["width"]).astype(x.dtype)
        return (x, attention) if keep_attention else x

    stacked = hk.layer_stack(shape["layers"], with_per_layer_inputs=keep_attention, name="layers")(layer)
    x, attention = stacked(x) if keep_attention else (stacked(x), None)
    delta = _symmetric_head(_norm(x, "head_norm"), biases)
    both = features.mask[:, None] & features.mask
    return jnp.where(both, delta, 0.0).astype(features.fock_guess.dtype), attention


def _embed(features, biases, nkinds, width):
    wave = 2 * np.pi / np.array(WAVELENGTHS_BOHR)
    phase = features.positions[:, :, None] * wave  # [nao, 3, nwave]
    fourier = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(len(phase), -1)
    diagonal = jnp.diagonal(biases).T  # [nao, nbias]
    inputs = jnp.concatenate([fourier.astype(jnp.float32), diagonal], axis=-1)
    return hk.Embed(nkinds, width, name="kind")(features.kinds) + hk.Linear(width, name="position")(inputs)


def _norm(x, name):
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(x)


def _linear(x, width, name, *, with_bias=True):
    """In the precision of `x`; parameters are float32."""
    scale = hk.initializers.TruncatedNormal(1 / math.sqrt(x.shape[-1]))
    with hk.experimental.name_scope(name):
        out = x @ hk.get_parameter("w", (x.shape[-1], width), init=scale).astype(x.dtype)
        return out + hk.get_parameter("b", (width,), init=jnp.zeros).astype(x.dtype) if with_bias else out


def _attention(x, biases, seen, shape):
    heads, width = shape["heads"], shape["width"]
    qkv = _linear(x, 3 * width, "qkv", with_bias=False)
    query, key, value = jnp.split(qkv.reshape(len(x), heads, -1), 3, axis=-1)
    mixing = hk.get_parameter("bias", (len(BIASES), heads), init=hk.initializers.RandomNormal(1.0))
    logits = jnp.einsum("ihd,jhd->ijh", query, key).astype(biases.dtype) / math.sqrt(width // heads)
    weights = jax.nn.softmax(logits + biases @ mixing + seen, axis=1).astype(x.dtype)
    attended = jnp.einsum("ijh,jhd->ihd", weights, value)
    return _linear(attended.reshape(len(x), width), width, "out"), Attention(jnp.moveaxis(weights, -1, 0), mixing)


def _mlp(x, width):
    return _linear(jax.nn.gelu(_linear(x, 4 * width, "mlp_in")), width, "mlp_out")


def _symmetric_head(x, biases):
    """Σ_r s_r·q_ir·q_jr, plus the same weighting each bias matrix; the signed s start at zero."""
    width = x.shape[-1]
    query = _linear(x, width, "head", with_bias=False)
    signs = hk.get_parameter("head_scale", (1 + len(BIASES), width), init=jnp.zeros)
    pairs = jnp.einsum("kr,ir,jr->ijk", signs, query, query) / math.sqrt(width)
    return pairs[..., 0] + jnp.sum(pairs[..., 1:] * biases, axis=-1)
