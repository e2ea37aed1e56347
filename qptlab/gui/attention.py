"""What a trained network's heads look at, and which matrix biased them, for one geometry."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError
from qptlab.models.features import BIASES
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.systems import System
from qptlab.system.molecule import Molecule


class Attended(NamedTuple):
    """All heads of a network at one geometry, in the molecule's frame.

    Attributes:
      molecule: the geometry.
      ao_labels: of rows and columns.
      ao_atom: the atom of each AO.
      weights: how much the AO of a row attends to that of a column; a row sums to one.
      mixing: how strongly each of `BIASES` biases a head.
      biases: the matrices, each scaled by its largest entry.
    """

    molecule: Molecule
    ao_labels: list[str]
    ao_atom: np.ndarray
    weights: Float[np.ndarray, "layer head nao nao"]
    mixing: Float[np.ndarray, "layer nbias head"]
    biases: Float[np.ndarray, "nbias nao nao"]

    def main_bias(self, layer: int, head: int) -> str:
        """The matrix that moves this head's logits most: largest spread of its entries times its weight."""
        spread = self.biases.std(axis=(1, 2))
        return BIASES[int(np.argmax(np.abs(self.mixing[layer, :, head]) * spread))]

    def between_atoms(self, layer: int, head: int) -> Float[np.ndarray, "natm natm"]:
        """The share of an atom's attention that goes to each atom; a row sums to one.

        Raises:
          InputError: for a layer or a head that does not exist.
        """
        nlayer, nhead = self.weights.shape[:2]
        if not (0 <= layer < nlayer and 0 <= head < nhead):
            raise InputError(
                f"head {head} of layer {layer} does not exist; 0 to {nhead - 1} of layers 0 to {nlayer - 1} would do."
            )
        natm = len(self.molecule.symbols)
        of_atom = np.eye(natm)[self.ao_atom]  # [nao, natm]
        return of_atom.T @ self.weights[layer, head] @ of_atom / of_atom.sum(axis=0)[:, None]

    def words(self, layer: int, head: int) -> str:
        """What a head does, in a sentence."""
        between = self.between_atoms(layer, head)
        names = [f"{symbol}{i}" for i, symbol in enumerate(self.molecule.symbols)]
        own = float(np.mean(np.diag(between)))
        apart = between - np.diag(np.diag(between))
        i, j = np.unravel_index(int(apart.argmax()), apart.shape)
        most = f" Most goes from {names[i]} to {names[j]} ({apart[i, j]:.0%})." if len(names) > 1 else ""
        return (
            f"Layer {layer}, head {head}: {own:.0%} of the attention stays on the atom that it comes from.{most} "
            f"It is biased most by the matrix {self.main_bias(layer, head)}."
        )


def attended(predictor: CorrectionPredictor, system: System, positions: Float[np.ndarray, "natm 3"]) -> Attended:
    """What the heads look at, at a geometry (bohr) in the frame of one of the model's molecules.

    Raises:
      InputError: if the network is switched off.
    """
    if predictor.params is None:
        raise InputError("the network is switched off, so that nothing attends; a trained model would do.")
    sample = system.sample(system.host_integrals(positions))
    found = jax.tree.map(np.asarray, predictor.model.compiled_attention(predictor.params, sample.features))
    nao, template = system.template.nao, system.template
    return Attended(
        system.molecule.with_positions(positions), list(template.ao_labels[:nao]), np.asarray(template.ao_atom)[:nao],
        found.weights[..., :nao, :nao], found.mixing, np.asarray(sample.features.biases)[:, :nao, :nao],
    )
