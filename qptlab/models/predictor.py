"""A trained model, ready to use on any pose of its molecule."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qptlab import grid
from qptlab.frame import Pose, ReferenceFrame
from qptlab.models.qpt import QPT, Params, Prediction
from qptlab.molecule import Molecule


class Predictor:
    """Calls a model on geometries as they come: any rotation, translation and order of like atoms.

    Args:
      model: the model.
      params: its parameters, or None for the network switched off.
      frame: the molecule's frame, that of training.

    >>> import qptlab as ql
    >>> predictor = ql.load("runs/water")  # doctest: +SKIP
    >>> predictor(ql.Molecule.from_name("water")).energy  # doctest: +SKIP
    """

    def __init__(self, model: QPT, params: Params | None, frame: ReferenceFrame):
        self.model = model
        self.params = params
        self.frame = frame

    def __call__(self, mol: Molecule) -> Prediction:
        """Predict a geometry; matrices are over the AOs of `mol` as given, in PySCF's order.

        Raises:
          InputError: if it is not the molecule that the model was trained on.
        """
        pose = self.frame.pose_molecule(mol)
        return self.turn_back(self.in_frame(pose.positions), pose)

    def forces(self, mol: Molecule) -> Float[np.ndarray, "natm 3"]:
        """Minus the derivative of the predicted energy with respect to positions, hartree per bohr.

        Through the network, the DFT iterations, the integrals and the molecule's frame: it agrees with finite
        differences of predicted energies whether or not the prediction is self-consistent.

        Raises:
          InputError: if it is not the molecule that the model was trained on.
        """
        pose = self.frame.pose_molecule(mol)
        slope = np.asarray(self.model.compiled_slope(self.params, jnp.asarray(pose.positions)))
        return -self.frame.pull_back(pose, slope)

    def in_frame(self, positions: np.ndarray) -> Prediction:
        """Predict a geometry (bohr) that already lies in the molecule's frame, and leave it there."""
        sample = self.model.prepare(self.model.template.host_integrals(positions))
        return jax.tree.map(np.asarray, self.model.compiled_predict(self.params, sample))

    def turn_back(self, prediction: Prediction, pose: Pose) -> Prediction:
        """Express a prediction made in the frame over the AOs of the geometry the pose came from."""
        turn = np.asarray(grid.ao_rotation(jnp.asarray(pose.rotation), self.model.template.shells))
        place = self._given_ao(pose.order)
        inverse = np.argsort(place)

        def matrix(m):
            return (turn.T @ m @ turn)[np.ix_(inverse, inverse)]

        return prediction._replace(
            fock=matrix(prediction.fock),
            dm=matrix(prediction.dm),
            mo_coeff=(turn.T @ prediction.mo_coeff)[inverse],
        )

    def _given_ao(self, order: np.ndarray) -> np.ndarray:
        """Where each AO of the frame stands in the given geometry."""
        counts = np.bincount(self.model.template.ao_atom)  # per atom of the frame
        given_counts = np.empty_like(counts)
        given_counts[order] = counts
        starts = np.concatenate([[0], np.cumsum(given_counts)[:-1]])
        return np.concatenate(
            [starts[atom] + np.arange(count) for atom, count in zip(order, counts, strict=True)]
        )
