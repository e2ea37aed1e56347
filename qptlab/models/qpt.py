"""QPT: a Transformer over atomic orbitals that corrects the Fock matrix of the guess.

After Mathiasen et al. 2024 (arXiv:2402.04030). Attention between orbitals is biased by the Kohn–Sham matrices of the
guess density. The correction is symmetric, may raise and lower orbital energies, and is zero for initial parameters,
so that an untrained model is plain DFT iteration.
"""

import dataclasses
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qptlab.errors import InputError, shown
from qptlab.models.features import BIASES, Features
from qptlab.models.networks import Attention, CorrectionConfig, register_network

PRESETS = {
    "micro": {"width": 128, "layers": 5, "heads": 4},
    "tiny": {"width": 192, "layers": 12, "heads": 6},
    "small": {"width": 384, "layers": 12, "heads": 6},
    "base": {"width": 768, "layers": 12, "heads": 12},
    "medium": {"width": 1024, "layers": 24, "heads": 16},
    "large": {"width": 1280, "layers": 36, "heads": 20},
    "xlarge": {"width": 1600, "layers": 48, "heads": 25},
}
"""Network shapes by name: "micro" has about 1 M parameters, for CPUs; the others are the paper's, 5 M to 1.5 G."""

PRECISIONS = ("float32", "bfloat16", "float64")

WAVELENGTHS_BOHR = tuple(2.0**k for k in range(6, -2, -1))
"""Wavelengths of the Fourier features of positions: from more than a molecule's size to a thermal displacement."""

MASKED_LOGIT = -1e9


@dataclasses.dataclass(frozen=True)
class QPTConfig(CorrectionConfig):
    """Settings of the Transformer and of the DFT iterations around it.

    Attributes:
      preset: network shape, one of `PRESETS`.
      precision: precision in which the network multiplies matrices, one of `PRECISIONS`; DFT is always in float64.
      iterations: number n of DFT iterations after the network; there are n + 1 diagonalisations in total.
      guess: density from which the first Fock matrix is built, one of `scf.GUESSES`.
      scheme: scheme of the iterations, one of `networks.SCHEMES`; the paper's is "mixing".
    """

    preset: str = "micro"
    precision: str = "float32"
    scheme: str = dataclasses.field(default="mixing", kw_only=True)

    def __post_init__(self):
        """Check the fields."""
        super().__post_init__()
        for name, allowed in (("preset", tuple(PRESETS)), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"Expected one of {', '.join(allowed)} as {name}, got {shown(value)}.")


def correction(features: Features, config: QPTConfig, vocabulary: tuple[str, ...]) -> Float[Array, "nao nao"]:
    """Return a symmetric correction of the guess's Fock matrix, hartree (in a Haiku transform).

    Args:
      features: features of one geometry in the molecule's frame.
      config: shape and precision of the network.
      vocabulary: names of the kinds of atomic orbitals.
    """
    return _transformer(features, config, len(vocabulary), keep_attention=False)[0]


def attention(features: Features, config: QPTConfig, vocabulary: tuple[str, ...]) -> Attention:
    """Return the attention of all heads while the network evaluates `correction` (in a Haiku transform)."""
    return _transformer(features, config, len(vocabulary), keep_attention=True)[1]


def _transformer(features: Features, config: QPTConfig, nkinds: int, *, keep_attention: bool) -> tuple[Any, Any]:
    shape, precision = PRESETS[config.preset], jnp.dtype(config.precision)
    biases = jnp.moveaxis(features.biases, 0, -1)  # [nao, nao, nbias]
    biases = biases.astype(jnp.promote_types(precision, jnp.float32))
    x = _embed(features, biases, nkinds, shape["width"])  # [nao, width]
    masked = jnp.where(features.mask[:, None], 0.0, MASKED_LOGIT)  # [nao, 1]

    @hk.remat  # the backward pass evaluates a layer again, so that attention matrices are not kept in memory
    def layer(x):
        change, weights = _attention(_norm(x, "attention_norm").astype(precision), biases, masked, shape)
        x = x + change.astype(x.dtype)
        x = x + _mlp(_norm(x, "mlp_norm").astype(precision), shape["width"]).astype(x.dtype)
        return (x, weights) if keep_attention else x

    stacked: Any = hk.layer_stack(shape["layers"], with_per_layer_inputs=keep_attention, name="layers")(layer)
    x, weights = stacked(x) if keep_attention else (stacked(x), None)
    return _symmetric_head(_norm(x, "head_norm"), biases), weights


def _embed(
    features: Features, biases: Float[Array, "nao nao nbias"], nkinds: int, width: int
) -> Float[Array, "nao width"]:
    wave = 2 * np.pi / np.array(WAVELENGTHS_BOHR)
    phase = features.positions[:, :, None] * wave  # [nao, 3, nwave]
    fourier = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(len(phase), -1)
    diagonal = jnp.diagonal(biases).T  # [nao, nbias]
    inputs = jnp.concatenate([fourier.astype(jnp.float32), diagonal], axis=-1)
    return hk.Embed(nkinds, width, name="kind")(features.kinds) + hk.Linear(width, name="position")(inputs)


def _norm(x: Float[Array, "nao width"], name: str) -> Float[Array, "nao width"]:
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(x)


def _linear(x: Float[Array, "nao nin"], width: int, name: str, *, with_bias: bool = True) -> Float[Array, "nao nout"]:
    """Apply a linear layer in the precision of `x`; parameters are float32."""
    scale = hk.initializers.TruncatedNormal(1 / math.sqrt(x.shape[-1]))
    with hk.experimental.name_scope(name):
        out = x @ hk.get_parameter("w", (x.shape[-1], width), init=scale).astype(x.dtype)
        return out + hk.get_parameter("b", (width,), init=jnp.zeros).astype(x.dtype) if with_bias else out


def _attention(
    x: Float[Array, "nao width"], biases: Float[Array, "nao nao nbias"], masked: Float[Array, "nao 1"],
    shape: dict[str, int],
) -> tuple[Float[Array, "nao width"], Attention]:
    heads, width = shape["heads"], shape["width"]
    qkv = _linear(x, 3 * width, "qkv", with_bias=False)
    query, key, value = jnp.split(qkv.reshape(len(x), heads, -1), 3, axis=-1)
    mixing = hk.get_parameter("bias", (len(BIASES), heads), init=hk.initializers.RandomNormal(1.0))
    logits = jnp.einsum("ihd,jhd->ijh", query, key).astype(biases.dtype) / math.sqrt(width // heads)
    weights = jax.nn.softmax(logits + biases @ mixing + masked, axis=1).astype(x.dtype)
    attended = jnp.einsum("ijh,jhd->ihd", weights, value)
    return _linear(attended.reshape(len(x), width), width, "out"), Attention(jnp.moveaxis(weights, -1, 0), mixing)


def _mlp(x: Float[Array, "nao width"], width: int) -> Float[Array, "nao width"]:
    return _linear(jax.nn.gelu(_linear(x, 4 * width, "mlp_in")), width, "mlp_out")


def _symmetric_head(
    x: Float[Array, "nao width"], biases: Float[Array, "nao nao nbias"]
) -> Float[Array, "nao nao"]:
    """Return Σ_r s_r·q_ir·q_jr, plus such a sum for each bias matrix, which it multiplies element by element.

    The signed coefficients s are zero for initial parameters.
    """
    width = x.shape[-1]
    query = _linear(x, width, "head", with_bias=False)
    signs = hk.get_parameter("head_scale", (1 + len(BIASES), width), init=jnp.zeros)
    pairs = jnp.einsum("kr,ir,jr->ijk", signs, query, query) / math.sqrt(width)
    return pairs[..., 0] + jnp.sum(pairs[..., 1:] * biases, axis=-1)


register_network(
    "qpt", QPTConfig, correction, attention, title="QPT", presets={name: QPTConfig(name) for name in PRESETS}
)
