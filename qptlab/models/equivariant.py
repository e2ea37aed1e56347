"""A Transformer over shells that corrects the Fock matrix without a frame: equivariant by construction.

A token is a shell of an atom. The network reads the invariants of the Kohn–Sham matrices of the guess, block by block
in Löwdin's orthogonal basis, and returns one coefficient per matrix and pair of shells, and one number per shell. The
correction is the combination of the matrices with these coefficients, plus the numbers on the diagonal, transformed
back from Löwdin's basis. Each block of a matrix rotates with its two shells, and so does the combination; scalars
suffice as coefficients (Villar et al. 2021, arXiv:2106.06610). So the correction follows rotations, reflections,
translations and permutations of the atoms as exactly as the matrices do: V_xc has the error of the integration grid.
A network can treat any molecule whose kinds of shells it knows. Attention is a sum, not a mean, and decays with the
distance: of two molecules far from each other, each is corrected as if it were alone.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft.energy import MIN_GAP_HARTREE
from qptlab.dft.integrals import Integrals, Template
from qptlab.dft.screening import shell_index
from qptlab.errors import InputError, shown
from qptlab.models.contract import Params
from qptlab.models.inputs import Guess, Inputs, Orbitals, distances, shell_of
from qptlab.models.networks import Attention, CorrectionConfig, register_network

MATRICES = (
    "overlap_root", "hcore_coul", "vxc", "dm", "projector", "fock_dm", "dm_fock_dm", "dm_idempotency", "occupied",
    "virtual", "fock",
)
"""Names of the matrices, in order; all are in Löwdin's basis.

- `overlap_root`: square root of the overlap matrix.
- `hcore_coul`: core Hamiltonian plus Coulomb matrix of the guess density; each alone would grow with the molecule.
- `vxc`: exchange–correlation matrix of the guess density, exact exchange included.
- `dm`: P, half of the guess density matrix; `projector`: projector on the filled orbitals of the guess Fock matrix F.
- `fock_dm`, `dm_fock_dm`, `dm_idempotency`: ½(FP + PF), PFP and PP − P.
- `occupied`, `virtual`: projectors on the filled and the empty orbitals, weighted towards the gap (`WINDOWS`).
- `fock`: tanh F, hartree."""

WINDOWS = ((-0.3, 0.15), (0.2, -0.3))
"""Centre and width, hartree, of the weights 1/(1 + exp((centre − ε)/width)) of filled and of empty orbitals; with
a negative width the weight falls with the energy. They are constants: if they followed the highest occupied orbital,
one part of a system would change the features of a distant part."""

SMOOTHING = 1e-3
"""Added to squared norms of blocks, so that their roots have derivatives where a block vanishes."""

DISTANCES_BOHR = np.linspace(0.0, 14.0, 16)
"""Centres of the Gaussians of the distance of two shells."""

RANGE_BOHR = 6.0
"""Range of attention."""

CLIP = 8.0
"""Largest standardised feature."""

PRESETS = {
    "small": {"width": 64, "pair_width": 32, "layers": 2, "heads": 4},
    "base": {"width": 128, "pair_width": 64, "layers": 3, "heads": 8},
    "large": {"width": 256, "pair_width": 96, "layers": 5, "heads": 8},
}
"""Network shapes by name: about 0.14 M, 0.9 M and 5 M parameters."""


@dataclasses.dataclass(frozen=True)
class EquivariantConfig(CorrectionConfig):
    """Settings of the equivariant Transformer and of the DFT iterations around it.

    Attributes:
      preset: network shape, one of `PRESETS`.
      iterations: number n of DFT iterations after the network; a prediction builds n + 2 Fock matrices.
      guess: density from which the first Fock matrix is built, one of `scf.GUESSES`.
      scheme: scheme of the iterations, one of `networks.SCHEMES`.
    """

    preset: str = "base"

    def __post_init__(self):
        """Check the fields."""
        super().__post_init__()
        if self.preset not in PRESETS:
            raise InputError(f"Expected one of {', '.join(PRESETS)} as preset, got {shown(self.preset)}.")


class ShellFeatures(NamedTuple):
    """Features of one geometry: the input of the network.

    Attributes:
      fock_guess: Fock matrix of the guess, hartree; the network corrects it.
      root: square root of the overlap matrix.
      matrices: matrices in Löwdin's basis, in the order of `MATRICES`.
      shells: index of each AO's shell.
      tokens: invariants of each shell, float64: those of shells of one kind differ by much less than their size.
      pairs: invariants of each pair of shells, float32.
      reach: factor of attention between two shells, which decays with their distance; zero for padding.
      kinds: index of each shell's kind in the vocabulary.
      mask: true for the molecule's AOs, false for AOs that only pad the arrays.
    """

    fock_guess: Float[Array, "nao nao"]
    root: Float[Array, "nao nao"]
    matrices: Float[Array, "nmat nao nao"]
    shells: Int[Array, " nao"]
    tokens: Float[Array, "nshell ntoken"]
    pairs: Float[Array, "nshell nshell npair"]
    reach: Float[Array, "nshell nshell"]
    kinds: Int[Array, " nshell"]
    mask: Bool[Array, " nao"]


NMAT = len(MATRICES)
NTOKEN = NMAT + NMAT * (NMAT + 1) // 2 + 4
NPAIR = NMAT * (NMAT + 1) // 2 + len(DISTANCES_BOHR) + 2


def features(ints: Integrals, guess: Guess, orbitals: Orbitals) -> ShellFeatures:
    """Return the network's input: matrices in Löwdin's basis, and the invariants of their blocks.

    Args:
      ints: integrals of a geometry.
      guess: guess density with its matrices.
      orbitals: kinds of the shells, atoms and mask of the AOs.
    """
    charges, mask = guess.screening, orbitals.ao_mask
    onehot = charges.shells * mask[:, None]  # [nao, nshell]
    count = jnp.maximum(jnp.sum(onehot, axis=0), 1.0)
    matrices = _matrices(ints, guess) * (mask[:, None] & mask)
    is_shell = jnp.any(onehot > 0, axis=0)

    first, second = np.triu_indices(NMAT)
    products = jnp.einsum("iA,kij,jB->kAB", onehot, matrices[first] * matrices[second], onehot)
    norms = jnp.sqrt(jnp.maximum(products[first == second], 0.0) + SMOOTHING)  # [nmat, nshell, nshell]
    is_mixed = first != second
    cosines = products[is_mixed] / (norms[first[is_mixed]] * norms[second[is_mixed]])
    logs = jnp.log(100 * norms) / 3
    invariants = jnp.concatenate([logs, cosines])  # [ninvariant, nshell, nshell]

    traces = jnp.einsum("iA,kii->Ak", onehot, matrices) / count[:, None]
    guess_populations = charges.populations((charges.root @ ints.dm_guess @ charges.root / 2)[None])
    solution = guess.screened
    electrons = jnp.stack([
        guess_populations / count, solution.populations / count, solution.populations - guess_populations,
        10 * solution.shift,
    ], axis=-1)
    tokens = jnp.concatenate([traces, jnp.diagonal(invariants, axis1=1, axis2=2).T, electrons], axis=-1)

    shells = shell_index(ints)
    atoms = jnp.zeros(len(count), int).at[shells].set(orbitals.ao_atom)
    distance = distances(ints.positions, atoms)
    gaussians = jnp.exp(-((distance[..., None] - DISTANCES_BOHR) ** 2))
    flags = jnp.stack([atoms[:, None] == atoms, jnp.eye(len(count), dtype=bool)], axis=-1)
    pairs = jnp.concatenate([jnp.moveaxis(invariants, 0, -1), gaussians, flags], axis=-1)
    both = is_shell[:, None] & is_shell
    return ShellFeatures(
        guess.fock, charges.root, matrices, shells, tokens * is_shell[:, None],
        (pairs * both[..., None]).astype(jnp.float32),
        (both * jnp.exp(-((distance / RANGE_BOHR) ** 2))).astype(jnp.float32), orbitals.kinds, jnp.asarray(mask),
    )


def block_norms(feats: ShellFeatures) -> Float[Array, "nmat nshell nshell"]:
    """Return the smoothed Frobenius norm of each matrix's block of two shells, in the order of `MATRICES`.

    It is the root of the squared norm plus `SMOOTHING`, and 0.01 for shells that only pad the arrays. It does not
    change when the molecule is rotated or reflected.

    Args:
      feats: features of a geometry.
    """
    return jnp.moveaxis(jnp.exp(3 * feats.pairs[..., :NMAT]) / 100, -1, 0)


def _matrices(ints: Integrals, guess: Guess) -> Float[Array, "nmat nao nao"]:
    x, root = guess.screening.inverse_root, guess.screening.root
    coul, vxc, fock = (x @ matrix @ x for matrix in (ints.hcore + guess.state.coul, guess.state.vxc, guess.fock))
    dm = root @ ints.dm_guess @ root / 2
    fock_dm = fock @ dm
    spectral = spectral_functions(fock, ints.nocc)
    return jnp.stack([
        root, coul, vxc, dm, spectral[0], 0.5 * (fock_dm + fock_dm.T), dm @ fock_dm, dm @ dm - dm, *spectral[1:],
    ])


@jax.custom_vjp
def spectral_functions(fock: Float[Array, "nao nao"], nocc: Int[Array, ""]) -> Float[Array, "4 nao nao"]:
    """Return functions of a symmetric matrix: projector, weighted projectors (`WINDOWS`), and hyperbolic tangent.

    The derivative contains divided differences (Daleckii & Krein 1965), which are finite at degenerate levels. It is
    NaN if the gap between filled and empty levels is below `MIN_GAP_HARTREE`.

    Args:
      fock: Fock matrix in an orthonormal basis, hartree.
      nocc: number of filled orbitals.
    """
    return _spectral_forward(fock, nocc)[0]


def _levels(energies: Float[Array, " nao"], is_filled: Bool[Array, " nao"]) -> Float[Array, "4 nao"]:
    filled, empty = (jax.nn.sigmoid((energies - centre) / width) for centre, width in WINDOWS)
    return jnp.stack([
        is_filled.astype(energies.dtype), jnp.where(is_filled, filled, 0.0), jnp.where(is_filled, 0.0, empty),
        jnp.tanh(energies),
    ])


def _spectral_forward(fock, nocc):
    energies, vectors = jnp.linalg.eigh(fock)
    is_filled = jnp.arange(len(fock)) < nocc
    return jnp.einsum("in,kn,jn->kij", vectors, _levels(energies, is_filled), vectors), (energies, vectors, is_filled)


def _spectral_backward(residuals, bar):
    energies, vectors, is_filled = residuals
    values = _levels(energies, is_filled)
    _, slopes = jax.jvp(lambda e: _levels(e, is_filled), (energies,), (jnp.ones_like(energies),))
    gap = energies[:, None] - energies
    crosses = is_filled[:, None] != is_filled
    is_closed = jnp.any(crosses & (jnp.abs(gap) < MIN_GAP_HARTREE))
    is_near = ~crosses & (jnp.abs(gap) < 1e-5)
    mean = 0.5 * (slopes[:, :, None] + slopes[:, None, :])
    quotient = (values[:, :, None] - values[:, None, :]) / jnp.where(is_near | (gap == 0), 1.0, gap)
    divided = jnp.where(is_near, mean, quotient) * jnp.where(is_closed, jnp.nan, 1.0)
    inside = jnp.einsum("in,kij,jm->knm", vectors, 0.5 * (bar + jnp.swapaxes(bar, 1, 2)), vectors)
    return vectors @ jnp.sum(divided * inside, axis=0) @ vectors.T, None


spectral_functions.defvjp(_spectral_forward, _spectral_backward)


def correction(
    feats: ShellFeatures, config: EquivariantConfig, vocabulary: tuple[str, ...]
) -> Float[Array, "nao nao"]:
    """Return a symmetric correction of the guess's Fock matrix, hartree (in a Haiku transform)."""
    return _head(*representations(feats, config, vocabulary), feats)


def attention(feats: ShellFeatures, config: EquivariantConfig, vocabulary: tuple[str, ...]) -> Attention:
    """Return the attention of all heads while the network evaluates `correction` (in a Haiku transform)."""
    return Attention(_layers(feats, config, len(vocabulary), keep_attention=True)[1], None)


def representations(
    feats: ShellFeatures, config: EquivariantConfig, vocabulary: tuple[str, ...]
) -> tuple[Float[Array, "nshell width"], Float[Array, "nshell nshell pair"]]:
    """Return the representations of shells and of pairs of shells after the last layer (in a Haiku transform)."""
    return _layers(feats, config, len(vocabulary), keep_attention=False)[0]


def _layers(
    feats: ShellFeatures, config: EquivariantConfig, nkinds: int, *, keep_attention: bool
) -> tuple[tuple[Any, Any], Any]:
    """Return the representations after the last layer, and the attention of each layer or None."""
    shape = PRESETS[config.preset]
    width, pair_width = shape["width"], shape["pair_width"]
    tokens, pairs = _standardised(feats, nkinds)
    x = hk.Embed(nkinds, width, name="kind")(feats.kinds) + hk.Linear(width, name="token")(tokens)
    z = hk.Linear(pair_width, name="pair")(pairs)

    @hk.remat  # the backward pass evaluates a layer again, so that arrays over pairs are not kept in memory
    def layer(state):
        x, z = state
        z = z + _pair_mlp(x, z, pair_width, pair_width, "pair_mlp")
        change, weights = _attention(_norm(x, "attention_norm"), z, feats.reach, shape)
        x = x + change
        hidden = jax.nn.gelu(hk.Linear(4 * width, name="mlp_in")(_norm(x, "mlp_norm")))
        x = x + hk.Linear(width, name="mlp_out")(hidden)
        return ((x, z), weights) if keep_attention else (x, z)

    stacked: Any = hk.layer_stack(shape["layers"], with_per_layer_inputs=keep_attention, name="layers")(layer)
    return stacked((x, z)) if keep_attention else (stacked((x, z)), None)


def _standardised(
    feats: ShellFeatures, nkinds: int
) -> tuple[Float[Array, "nshell ntoken"], Float[Array, "nshell nshell npair"]]:
    """Return the features minus their mean and over their spread (see `fit`), limited to ±`CLIP`."""
    with hk.experimental.name_scope("statistics"):
        statistics = [
            jax.lax.stop_gradient(hk.get_parameter(name, shape, init=init)) for name, shape, init in (
                ("token_mean", (nkinds, NTOKEN), jnp.zeros), ("token_spread", (nkinds, NTOKEN), jnp.ones),
                ("pair_mean", (NPAIR,), jnp.zeros), ("pair_spread", (NPAIR,), jnp.ones),
            )
        ]
    token_mean, token_spread, pair_mean, pair_spread = statistics
    tokens = ((feats.tokens - token_mean[feats.kinds]) / token_spread[feats.kinds]).astype(jnp.float32)
    pairs = (feats.pairs - pair_mean) / pair_spread
    return CLIP * jnp.tanh(tokens / CLIP), CLIP * jnp.tanh(pairs / CLIP)


def _norm(x: Float[Array, "*n width"], name: str) -> Float[Array, "*n width"]:
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(x)


def _pair_mlp(
    x: Float[Array, "nshell width"], z: Float[Array, "nshell nshell pair"], width: int, out: int, name: str,
    init: hk.initializers.Initializer | None = None,
) -> Float[Array, "nshell nshell out"]:
    """Return a function of pairs that is symmetric in the two shells."""
    own = hk.Linear(width, name=f"{name}_token")(_norm(x, f"{name}_token_norm"))
    hidden = hk.Linear(width, name=f"{name}_in")(_norm(z, f"{name}_norm"))
    return hk.Linear(out, w_init=init, name=f"{name}_out")(jax.nn.gelu(hidden + own[:, None] + own))


def _attention(
    x: Float[Array, "nshell width"], z: Float[Array, "nshell nshell pair"], reach: Float[Array, "nshell nshell"],
    shape: dict[str, int],
) -> tuple[Float[Array, "nshell width"], Float[Array, "head nshell nshell"]]:
    heads, width = shape["heads"], shape["width"]
    query, key, value = jnp.split(
        hk.Linear(3 * width, with_bias=False, name="qkv")(x).reshape(len(x), heads, -1), 3, axis=-1
    )
    logits = jnp.einsum("ihd,jhd->hij", query, key) / math.sqrt(width // heads)
    bias = jnp.moveaxis(hk.Linear(heads, name="bias")(z), -1, 0)
    weights = 0.5 * jax.nn.sigmoid(logits + bias - 1.0) * reach
    # Sums over shells are in float64: a different order of the atoms gives the same float32 numbers.
    total = functools.partial(jnp.einsum, preferred_element_type=jnp.float64)
    sums = [total("hij,jhd->ihd", weights, value), total("hij,ijd->ihd", weights, z)]
    combined = jnp.concatenate([part.reshape(len(x), -1) for part in sums], axis=-1).astype(x.dtype)
    return hk.Linear(width, name="out")(combined), weights


def _head(
    x: Float[Array, "nshell width"], z: Float[Array, "nshell nshell pair"], feats: ShellFeatures
) -> Float[Array, "nao nao"]:
    """Return S^½(Σ_k c_k·M_k + d)S^½, with one d per shell on the diagonal; zero for initial parameters."""
    coefficients = _pair_mlp(x, z, z.shape[-1], NMAT, "head", jnp.zeros)
    numbers = hk.Linear(1, w_init=jnp.zeros, name="head_diagonal")(_norm(x, "head_diagonal_norm"))[:, 0]
    dtype = feats.matrices.dtype
    onehot = jax.nn.one_hot(feats.shells, len(x), dtype=dtype)  # products of matrices are faster than gathers
    spread = jnp.einsum("iA,ABk,jB->kij", onehot, coefficients.astype(dtype), onehot)
    inside = jnp.sum(spread * feats.matrices, axis=0) + jnp.diag(onehot @ numbers.astype(dtype))
    return feats.root @ inside @ feats.root


def fit(params: Params, feats: Sequence[ShellFeatures]) -> Params:
    """Return parameters whose statistics are those of the features of some geometries."""
    nkinds = len(params["statistics"]["token_mean"])
    tokens, kinds, pairs = [], [], []
    for geometry in feats:
        is_shell = np.diagonal(geometry.reach) > 0
        tokens.append(np.asarray(geometry.tokens, float)[is_shell])
        kinds.append(np.asarray(geometry.kinds)[is_shell])
        pairs.append(np.asarray(geometry.pairs, float)[np.ix_(is_shell, is_shell)].reshape(-1, NPAIR))
    tokens, kinds, pairs = (np.concatenate(arrays) for arrays in (tokens, kinds, pairs))
    # A feature that hardly varies within a kind gets a floor, relative to its spread over all kinds.
    floor = 0.02 * tokens.std(axis=0) + 1e-3
    mean, spread = np.zeros((nkinds, NTOKEN)), np.ones((nkinds, NTOKEN))
    for kind in range(nkinds):
        rows = tokens[kinds == kind] if np.any(kinds == kind) else tokens
        mean[kind], spread[kind] = rows.mean(axis=0), np.maximum(rows.std(axis=0), floor)
    statistics = {
        "token_mean": mean, "token_spread": spread, "pair_mean": pairs.mean(axis=0),
        "pair_spread": np.maximum(pairs.std(axis=0), 1e-3),
    }
    return {**params, "statistics": {name: jnp.asarray(value, jnp.float32) for name, value in statistics.items()}}


def shell_labels(template: Template) -> list[tuple[str, int]]:
    """Return name and atom of each shell of a template without padding, such as ("0 O 2p", 0)."""
    return [(f"{atom} {kind}", atom) for atom, kind in atoms_and_kinds(template) if kind]


def shell_kinds(template: Template) -> list[str]:
    """Return the kind of each shell of a template without padding: element and shell, such as "O 2p"."""
    return [kind for _, kind in atoms_and_kinds(template) if kind]


def _indices(template: Template, vocabulary: tuple[str, ...]) -> Int[np.ndarray, " nshell"]:
    """Return the index of each shell's kind; zero for padding."""
    return np.array([vocabulary.index(kind) if kind else 0 for _, kind in atoms_and_kinds(template)])


def atoms_and_kinds(template: Template) -> list[tuple[int, str]]:
    """Return atom and kind of each shell, in the order of `screening.shell_index`; no kind for padding."""
    first = np.concatenate([np.asarray(group.ao)[:, 0] for group in template.basis.groups])
    return [shell_of(template.ao_labels[ao]) if ao < template.nao else (0, "") for ao in first]


def _blank() -> ShellFeatures:
    zero = jnp.zeros((1, 1))
    return ShellFeatures(
        zero, zero, jnp.zeros((NMAT, 1, 1)), jnp.zeros(1, int), jnp.zeros((1, NTOKEN)),
        jnp.zeros((1, 1, NPAIR), jnp.float32), jnp.ones((1, 1), jnp.float32), jnp.zeros(1, int), jnp.ones(1, bool),
    )


INPUTS = Inputs(features, shell_kinds, _indices, shell_labels, _blank, framed=False)

register_network(
    "equivariant", EquivariantConfig, correction, attention, title="Equivariant Transformer",
    presets={name: EquivariantConfig(name) for name in PRESETS}, inputs=INPUTS, fit=fit,
)
