"""Attention of a trained network's heads at one geometry, and the matrices that bias it."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from qptlab.errors import InputError
from qptlab.models.contract import Model, title_of
from qptlab.models.features import BIASES
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.systems import System
from qptlab.system.molecule import Molecule


class AttentionHeads(NamedTuple):
    """Attention of all heads of a network at one geometry, in the molecule's frame.

    Attributes:
      molecule: the geometry.
      ao_labels: names of the atomic orbitals, which are rows and columns.
      ao_atom: atom of each atomic orbital.
      weights: attention of the row's orbital to the column's orbital; each row sums to one.
      mixing: coefficient with which each of `BIASES` biases a head.
      biases: the matrices of `BIASES`, each divided by its largest entry.
    """

    molecule: Molecule
    ao_labels: list[str]
    ao_atom: Int[np.ndarray, " nao"]
    weights: Float[np.ndarray, "layer head nao nao"]
    mixing: Float[np.ndarray, "layer nbias head"]
    biases: Float[np.ndarray, "nbias nao nao"]

    def main_bias(self, layer: int, head: int) -> str:
        """Return the matrix that changes the logits of a head most: standard deviation times coefficient."""
        spread = self.biases.std(axis=(1, 2))
        return BIASES[int(np.argmax(np.abs(self.mixing[layer, :, head]) * spread))]

    def between_atoms(self, layer: int, head: int) -> Float[np.ndarray, "natm natm"]:
        """Return the share of the row atom's attention that goes to the column atom; each row sums to one.

        Raises:
          InputError: if the layer or the head does not exist.
        """
        nlayer, nhead = self.weights.shape[:2]
        if not (0 <= layer < nlayer and 0 <= head < nhead):
            raise InputError(
                f"Expected a layer from 0 to {nlayer - 1} and a head from 0 to {nhead - 1}, got layer {layer}, "
                f"head {head}."
            )
        natm = len(self.molecule.symbols)
        of_atom = np.eye(natm)[self.ao_atom]  # [nao, natm]
        return of_atom.T @ self.weights[layer, head] @ of_atom / of_atom.sum(axis=0)[:, None]

    def summary(self, layer: int, head: int) -> str:
        """Return a sentence that says what a head attends to."""
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
            f"Layer {layer}, head {head}: {same:.0%} of the attention stays on the same atom.{largest} "
            f"The strongest bias is the matrix {self.main_bias(layer, head)}."
        )


def require_attention(model: Model) -> None:
    """Raise an `InputError` if the network of a model has no attention between atomic orbitals."""
    if not getattr(getattr(model, "model", None), "has_attention", False):
        title = title_of(model.kind)
        raise InputError(f"Expected a network with attention between atomic orbitals, got {title}; use a QPT.")


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
    sample = system.sample(system.host_integrals(positions))
    attention = jax.tree.map(np.asarray, predictor.model.compiled_attention(predictor.params, sample.features))
    nao, template = system.template.nao, system.template
    return AttentionHeads(
        system.molecule.with_positions(positions), list(template.ao_labels[:nao]), np.asarray(template.ao_atom)[:nao],
        attention.weights[..., :nao, :nao], attention.mixing, np.asarray(sample.features.biases)[:, :nao, :nao],
    )
