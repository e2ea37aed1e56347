"""The molecule's own frame: which way a geometry is turned, and which like atom is which.

A network is neither rotation- nor permutation-equivariant by itself. Here a geometry is brought to
one standard pose before anything is computed: the order of like atoms and the rotation that lie
nearest to a reference geometry (mass-weighted; Kabsch 1976, doi:10.1107/S0567739476001873). All of
QPT, the integration grid included, works in that pose, and results are turned back, so that a
prediction is equivariant under rotation, translation and permutation to rounding.
"""

import dataclasses
import functools

import ase.data
import numpy as np
from jaxtyping import Float, Int

from qptlab.errors import InputError
from qptlab.system.molecule import Molecule

SYMMETRY_BREAKING_BOHR = 0.1
"""The reference is displaced by this much. In a symmetric reference two orders of like atoms fit
any geometry equally well, and rounding would choose between them."""

MAX_AUTOMORPHISMS = 50_000


@dataclasses.dataclass(frozen=True, eq=False)
class Pose:
    """How a geometry lies in the molecule's frame: frame = (given[order] − centre)·rotationᵀ.

    Attributes:
      positions: in the frame, bohr.
      rotation: a proper rotation.
      order: atom `i` of the frame is atom `order[i]` of the given geometry.
    """

    positions: Float[np.ndarray, "natm 3"]
    rotation: Float[np.ndarray, "3 3"]
    order: Int[np.ndarray, " natm"]


def standard_orientation(mol: Molecule) -> Molecule:
    """A molecule turned so that its principal axes of inertia are x, y and z, the longest first.

    So that different molecules lie alike. The sense of each axis is that in which the cubes of the coordinates,
    weighted with the masses, sum to a positive number; where axes or senses are equivalent, any may be taken. So a
    geometry that is oriented stays as it is, to the last digit.
    """
    masses = ase.data.atomic_masses[mol.atomic_numbers]
    centred = mol.positions - masses @ mol.positions / masses.sum()
    moments = centred.T @ (masses[:, None] * centred)
    lengths, noise = np.diag(moments), 1e-9 * max(np.trace(moments), 1.0)
    is_diagonal = np.abs(moments - np.diag(lengths)).max() < noise and (np.diff(lengths) < noise).all()
    if is_diagonal and (masses @ centred[:, :2] ** 3 > -noise).all() and np.abs(centred - mol.positions).max() < 1e-9:
        return mol
    _, axes = np.linalg.eigh(moments)
    along = centred @ axes[:, ::-1]
    along = along * np.where(masses @ along**3 < 0, -1.0, 1.0)
    if np.linalg.det(np.linalg.lstsq(centred, along, rcond=None)[0]) < 0:  # no mirror image
        along[:, 2] *= -1
    return mol.with_positions(along)


class ReferenceFrame:
    """The frame defined by a reference geometry.

    Args:
      reference: the molecule; its bonds say which like atoms may be exchanged.

    Raises:
      InputError: if its bonds have too many symmetries to try.
    """

    def __init__(self, reference: Molecule):
        self.molecule = reference
        self._masses = ase.data.atomic_masses[reference.atomic_numbers]
        self._automorphisms = reference.orders(reference, MAX_AUTOMORPHISMS + 1)
        if len(self._automorphisms) > MAX_AUTOMORPHISMS:
            raise InputError(
                f"{reference.formula} has more than {MAX_AUTOMORPHISMS} ways to exchange like atoms; "
                "a molecule with fewer equivalent groups would do."
            )
        noise = np.random.default_rng(0).normal(size=reference.positions.shape)
        self._target = self._centred(reference.positions + SYMMETRY_BREAKING_BOHR * noise)

    @functools.cached_property
    def home(self) -> Float[np.ndarray, "natm 3"]:
        """The reference geometry itself in the frame, bohr."""
        return self.pose(self.molecule.positions).positions

    def pose(self, positions: Float[np.ndarray, "natm 3"]) -> Pose:
        """Bring a geometry whose atoms are in the reference's order into the frame."""
        centred = self._centred(positions)
        # Every exchange of like atoms at once: covariances [nperm, 3, 3], their best rotations.
        weighted = self._masses[:, None] * self._target
        covariance = np.einsum("pax,ay->pxy", centred[self._automorphisms], weighted)
        u, singular, vt = np.linalg.svd(covariance)
        handedness = np.sign(np.linalg.det(u) * np.linalg.det(vt))
        overlap = singular[:, 0] + singular[:, 1] + handedness * singular[:, 2]
        best = int(np.argmax(overlap))
        flip = np.diag([1.0, 1.0, handedness[best]])
        rotation = vt[best].T @ flip @ u[best].T
        order = self._automorphisms[best]
        return Pose(centred[order] @ rotation.T, rotation, order)

    def pull_back(self, pose: Pose, slope: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "natm 3"]:
        """Derivative with respect to the geometry as given, from that with respect to positions in the frame.

        The rotation follows the atoms: with A the rotated covariance, which is symmetric, a displacement turns it
        by ω, where (tr A − A)·ω is the sum of w·(displacement × target); singular only where the frame is.

        Args:
          pose: where the geometry lies.
          slope: derivative with respect to `pose.positions`.
        """
        weighted = self._masses[:, None] * self._target
        alignment = pose.positions.T @ weighted
        torque = np.cross(pose.positions, slope).sum(axis=0)
        turn = np.linalg.pinv(np.trace(alignment) * np.eye(3) - 0.5 * (alignment + alignment.T)) @ torque
        turned = (slope + np.cross(weighted, turn)) @ pose.rotation
        given = np.empty_like(turned)
        given[pose.order] = turned
        masses = np.empty_like(self._masses)
        masses[pose.order] = self._masses
        return given - masses[:, None] / masses.sum() * given.sum(axis=0)

    def pose_molecule(self, mol: Molecule) -> Pose:
        """Bring a molecule whose atoms are in any order into the frame.

        Raises:
          InputError: if it is not the molecule of this frame.
        """
        base = self._matching_order(mol)
        pose = self.pose(mol.positions[base])
        return dataclasses.replace(pose, order=base[pose.order])

    def _matching_order(self, mol: Molecule) -> np.ndarray:
        ours, theirs = self.molecule, mol
        if sorted(ours.symbols) != sorted(theirs.symbols) or (ours.charge, ours.spin) != (theirs.charge, theirs.spin):
            given, own = (
                f"{each.formula} (charge {each.charge}, {each.spin} unpaired electrons)" for each in (theirs, ours)
            )
            raise InputError(f"{given} was given to a model of {own}; a geometry of {ours.formula} would do.")
        found = ours.orders(theirs)
        if len(found):
            return found[0]
        if ours.symbols == theirs.symbols:
            return np.arange(len(ours.symbols))  # a bond is broken or made: trust the order given
        raise InputError(
            f"the bonds of the {mol.formula} given are not those of the model's molecule; "
            "its atoms in the model's order would do."
        )

    def _centred(self, positions):
        return positions - self._masses @ positions / self._masses.sum()

