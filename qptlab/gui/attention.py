"""Attention of a trained network's heads at one geometry, and matrices to compare it with."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from qptlab.errors import InputError
from qptlab.models.contract import Model, title_of
from qptlab.models.equivariant import MATRICES, ShellFeatures, block_norms
from qptlab.models.features import BIASES, Features
from qptlab.models.networks import network_of
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.systems import System
from qptlab.system.molecule import Molecule


class AttentionHeads(NamedTuple):
    """Attention of all heads of a network at one geometry.

    Rows and columns are the network's tokens, sorted by atoms: shells for the equivariant Transformer, atomic
    orbitals for QPT.

    Attributes:
      molecule: the geometry; in the molecule's frame if the network needs one.
      labels: names of the tokens.
      atoms: atom of each token.
      weights: attention of the row's token to the column's token. QPT averages: each row sums to one. The equivariant
        Transformer adds: a row has no fixed sum.
      mixing: coefficient with which each of the matrices biases a head; None for a network without such coefficients.
      names: names of the matrices.
      matrices: the matrices to compare with. QPT: those of `features.BIASES`, each divided by its largest entry.
        Equivariant Transformer: decimal logarithms of the norms of the blocks of `equivariant.MATRICES`, in hartree
        or electrons.
    """

    molecule: Molecule
    labels: list[str]
    atoms: Int[np.ndarray, " ntoken"]
    weights: Float[np.ndarray, "layer head ntoken ntoken"]
    mixing: Float[np.ndarray, "layer nmatrix head"] | None
    names: tuple[str, ...]
    matrices: Float[np.ndarray, "nmatrix ntoken ntoken"]

    @property
    def is_signed(self) -> bool:
        """True if the matrices have entries of both signs, false if they are logarithms of norms."""
        return self.names != MATRICES

    def influence(self, layer: int, head: int) -> Float[np.ndarray, " nmatrix"]:
        """Return how strongly each matrix and a head belong together.

        With `mixing`: the coefficient in the logits times the standard deviation of the matrix. Without: the
        correlation of the matrix with the head's weights, over all pairs of tokens.
        """
        if self.mixing is not None:
            return self.mixing[layer, :, head] * self.matrices.std(axis=(1, 2))
        weights = self.weights[layer, head] - self.weights[layer, head].mean()
        centred = self.matrices - self.matrices.mean(axis=(1, 2), keepdims=True)
        lengths = np.linalg.norm(centred, axis=(1, 2)) * np.linalg.norm(weights)
        return np.sum(centred * weights, axis=(1, 2)) / np.maximum(lengths, 1e-12)

    def main_matrix(self, layer: int, head: int) -> str:
        """Return the name of the matrix with the largest absolute `influence`; empty if there is no matrix."""
        return self.names[int(np.argmax(np.abs(self.influence(layer, head))))] if self.names else ""

    def between_atoms(self, layer: int, head: int) -> Float[np.ndarray, "natm natm"]:
        """Return the share of the row atom's total attention that goes to the column atom; each row sums to one.

        Raises:
          InputError: if the layer or the head does not exist.
        """
        nlayer, nhead = self.weights.shape[:2]
        if not (0 <= layer < nlayer and 0 <= head < nhead):
            raise InputError(
                f"Expected a layer from 0 to {nlayer - 1} and a head from 0 to {nhead - 1}, got layer {layer}, "
                f"head {head}."
            )
        of_atom = np.eye(len(self.molecule.symbols))[self.atoms]  # [ntoken, natm]
        sums = of_atom.T @ self.weights[layer, head] @ of_atom
        return sums / sums.sum(axis=1, keepdims=True)

    def summary(self, layer: int, head: int) -> str:
        """Return sentences that say what a head attends to."""
        between = self.between_atoms(layer, head)
        names = [f"{symbol}{i}" for i, symbol in enumerate(self.molecule.symbols)]
        same = float(np.mean(np.diag(between)))
        off_diagonal = between - np.diag(np.diag(between))
        i, j = np.unravel_index(int(off_diagonal.argmax()), off_diagonal.shape)
        largest = (
            f" The largest attention between two atoms goes from {names[i]} to {names[j]} ({off_diagonal[i, j]:.0%})."
            if len(names) > 1 else ""
        )
        return (
            f"Layer {layer}, head {head}: {same:.0%} of the attention stays on the same atom.{largest}"
            f"{self._main_sentence(layer, head)}"
        )

    def _main_sentence(self, layer: int, head: int) -> str:
        name = self.main_matrix(layer, head)
        if not name:
            return ""
        if self.mixing is not None:
            return f" The strongest bias is the matrix {name}."
        correlation = self.influence(layer, head)[self.names.index(name)]
        compared = f"the matrix {name}" if self.is_signed else f"the logarithms of the norms of the blocks of {name}"
        return f" The weights correlate most with {compared} ({correlation:+.2f})."


def require_attention(model: Model) -> None:
    """Raise an `InputError` if the network of a model has no attention."""
    if not getattr(getattr(model, "model", None), "has_attention", False):
        raise InputError(
            f"Expected a network with attention, got {title_of(model.kind)}; use an {title_of('equivariant')} or a "
            f"{title_of('qpt')}."
        )


def attention_heads(
    predictor: CorrectionPredictor, system: System, positions: Float[np.ndarray, "natm 3"]
) -> AttentionHeads:
    """Return the attention of all heads at a geometry.

    Args:
      predictor: the model.
      system: one of the model's molecules.
      positions: nuclear positions in the frame of the molecule, bohr.

    Raises:
      InputError: if the network is switched off, or has no attention.
    """
    require_attention(predictor)
    if predictor.params is None:
        raise InputError("Expected a trained model, got one whose network is switched off.")
    system = system.unpadded()
    feats = system.sample(system.host_integrals(positions)).features
    attention = predictor.model.compiled_attention(predictor.params, feats)
    weights, mixing = jax.tree.map(np.asarray, (attention.weights, attention.mixing))
    labels = network_of(system.config).inputs.labels(system.template)
    order = np.argsort([atom for _, atom in labels], kind="stable")
    names, matrices = _matrices(feats, len(labels))
    return AttentionHeads(
        system.molecule.with_positions(positions), [labels[i][0] for i in order],
        np.array([labels[i][1] for i in order]), weights[..., order[:, None], order], mixing, names,
        matrices[:, order[:, None], order],
    )


def _matrices(feats: Any, ntoken: int) -> tuple[tuple[str, ...], Float[np.ndarray, "nmatrix ntoken ntoken"]]:
    """Return names and matrices to compare attention with; none for features of a user's own kind."""
    if isinstance(feats, ShellFeatures):
        return MATRICES, np.log10(np.asarray(block_norms(feats)))
    if isinstance(feats, Features):
        return BIASES, np.asarray(feats.biases)
    return (), np.zeros((0, ntoken, ntoken))
