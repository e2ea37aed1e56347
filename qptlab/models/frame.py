"""The molecule's frame: a standard position, orientation and order of atoms for every geometry of one molecule.

A network is neither rotation- nor permutation-equivariant by itself. Therefore each geometry is transformed to a
standard pose before anything is computed. The pose has the rotation, and the order of like atoms, that bring the
geometry nearest to a reference geometry (mass-weighted; Kabsch 1976, doi:10.1107/S0567739476001873). Everything
that QPT computes, the integration grid included, is computed in this pose, and the results are rotated back. So
predictions are equivariant under rotation, translation and permutation of like atoms, up to rounding.
"""

import abc
import dataclasses
import functools

import ase.data
import numpy as np
from jaxtyping import Float, Int

from qptlab.errors import InputError
from qptlab.system.molecule import Molecule

SYMMETRY_BREAKING_BOHR = 0.1
"""Standard deviation of the random displacements that are added to the reference, bohr. In a symmetric reference
two orders of like atoms fit any geometry equally well, and rounding would choose between them."""

MAX_AUTOMORPHISMS = 50_000
"""Largest number of permutations of like atoms that keep the bonds. All of them are tried for each geometry."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pose:
    """Pose of a geometry in the molecule's frame: positions = (input[order] − centre of mass)·rotationᵀ.

    Attributes:
      positions: nuclear positions in the frame, bohr.
      rotation: proper rotation from the input to the frame.
      order: index in the input of each atom of the frame.
    """

    positions: Float[np.ndarray, "natm 3"]
    rotation: Float[np.ndarray, "3 3"]
    order: Int[np.ndarray, " natm"]


def standard_orientation(mol: Molecule) -> Molecule:
    """Return the molecule with its principal axes of inertia along x, y and z, the longest axis first.

    This gives different molecules similar orientations. An axis points to the side where the sum of the cubed
    coordinates, weighted with the masses, is positive. If two axes or directions are equivalent, any of them is
    used. A molecule that is already oriented is returned without any change, to the last digit.
    """
    masses = ase.data.atomic_masses[mol.atomic_numbers]
    centred = mol.positions - masses @ mol.positions / masses.sum()
    moments = centred.T @ (masses[:, None] * centred)
    lengths, noise = np.diag(moments), 1e-9 * max(np.trace(moments), 1.0)
    is_diagonal = np.abs(moments - np.diag(lengths)).max() < noise and (np.diff(lengths) < noise).all()
    if is_diagonal and (masses @ centred[:, :2] ** 3 > -noise).all() and np.abs(centred - mol.positions).max() < 1e-9:
        return mol
    _, axes = np.linalg.eigh(moments)
    oriented = centred @ axes[:, ::-1]
    oriented = oriented * np.where(masses @ oriented**3 < 0, -1.0, 1.0)
    if np.linalg.det(np.linalg.lstsq(centred, oriented, rcond=None)[0]) < 0:  # a mirror image: reflect it back
        oriented[:, 2] *= -1
    return mol.with_positions(oriented)


class Frame(abc.ABC):
    """Standard pose of every geometry of one molecule.

    Attributes:
      molecule: molecule at its reference geometry.
    """

    molecule: Molecule

    @property
    @abc.abstractmethod
    def reference_positions(self) -> Float[np.ndarray, "natm 3"]:
        """Positions of the reference geometry in the frame, bohr."""

    @abc.abstractmethod
    def pose(self, positions: Float[np.ndarray, "natm 3"]) -> Pose:
        """Return the pose of a geometry whose atoms are in the reference's order.

        Args:
          positions: nuclear positions, bohr.
        """

    @abc.abstractmethod
    def pull_back(self, pose: Pose, gradient: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "natm 3"]:
        """Return the gradient with respect to the input positions, for a gradient with respect to those in the frame.

        Args:
          pose: pose of the geometry.
          gradient: derivative of a function with respect to `pose.positions`.
        """

    @abc.abstractmethod
    def pose_molecule(self, mol: Molecule) -> Pose:
        """Return the pose of a molecule.

        Raises:
          InputError: if it is a different molecule.
        """


class LaboratoryFrame(Frame):
    """The frame of the input: an equivariant network takes geometries as they are.

    Args:
      molecule: molecule at its reference geometry.
    """

    def __init__(self, molecule: Molecule):
        self.molecule = molecule

    @property
    def reference_positions(self) -> Float[np.ndarray, "natm 3"]:
        """Positions of the reference geometry, bohr."""
        return self.molecule.positions

    def pose(self, positions: Float[np.ndarray, "natm 3"]) -> Pose:
        """Return the positions unchanged."""
        return Pose(np.asarray(positions), np.eye(3), np.arange(len(positions)))

    def pull_back(self, pose: Pose, gradient: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "natm 3"]:
        """Return the gradient unchanged."""
        return gradient

    def is_frame_of(self, mol: Molecule) -> bool:
        """Return true for a molecule with the same atoms in the same order, whatever its bonds."""
        return all(
            getattr(self.molecule, name) == getattr(mol, name) for name in ("symbols", "charge", "spin")
        )

    def pose_molecule(self, mol: Molecule) -> Pose:
        """Return the positions of a molecule unchanged.

        Raises:
          InputError: if its atoms, their order, its charge or its unpaired electrons differ.
        """
        if not self.is_frame_of(mol):
            raise InputError(
                f"Expected the atoms of {self.molecule.formula} in the model's order, got {mol.formula}; use the "
                "model itself, which takes atoms in any order."
            )
        return self.pose(mol.positions)


class ReferenceFrame(Frame):
    """Frame that is defined by a reference geometry of a molecule.

    Args:
      reference: reference geometry. Like atoms may be exchanged if this keeps its bonds.

    Raises:
      InputError: if more than `MAX_AUTOMORPHISMS` permutations of like atoms keep the bonds.
    """

    def __init__(self, reference: Molecule):
        self.molecule = reference
        self._masses = ase.data.atomic_masses[reference.atomic_numbers]
        self._automorphisms = reference.orders(reference, MAX_AUTOMORPHISMS + 1)
        if len(self._automorphisms) > MAX_AUTOMORPHISMS:
            raise InputError(
                f"Expected a molecule with at most {MAX_AUTOMORPHISMS} permutations of like atoms that keep its "
                f"bonds, got {reference.formula} with more; use a molecule with fewer equivalent groups."
            )
        noise = np.random.default_rng(0).normal(size=reference.positions.shape)
        self._target = self._centred(reference.positions + SYMMETRY_BREAKING_BOHR * noise)

    @functools.cached_property
    def reference_positions(self) -> Float[np.ndarray, "natm 3"]:
        """Positions of the reference geometry in the frame, bohr."""
        return self.pose(self.molecule.positions).positions

    def pose(self, positions: Float[np.ndarray, "natm 3"]) -> Pose:
        """Return the pose of a geometry whose atoms are in the reference's order.

        Args:
          positions: nuclear positions, bohr.
        """
        centred = self._centred(positions)
        # All permutations of like atoms at once: covariances [nperm, 3, 3] and the best rotation for each.
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

    def pull_back(self, pose: Pose, gradient: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "natm 3"]:
        """Return the gradient with respect to the input positions, for a gradient with respect to those in the frame.

        The rotation depends on the positions and contributes to the derivative. Let A be the covariance of the
        positions in the frame with the mass-weighted target; for the optimal rotation A is symmetric. When the atoms
        are displaced by d, the frame rotates by the small vector ω with (tr A − A)·ω = Σ m·(d × target). This
        equation is singular only where the optimal rotation is not unique.

        Args:
          pose: pose of the geometry.
          gradient: derivative of a function with respect to `pose.positions`.
        """
        weighted = self._masses[:, None] * self._target
        alignment = pose.positions.T @ weighted
        torque = np.cross(pose.positions, gradient).sum(axis=0)
        turn = np.linalg.pinv(np.trace(alignment) * np.eye(3) - 0.5 * (alignment + alignment.T)) @ torque
        rotated = (gradient + np.cross(weighted, turn)) @ pose.rotation
        input_gradient = np.empty_like(rotated)
        input_gradient[pose.order] = rotated
        masses = np.empty_like(self._masses)
        masses[pose.order] = self._masses
        return input_gradient - masses[:, None] / masses.sum() * input_gradient.sum(axis=0)

    def pose_molecule(self, mol: Molecule) -> Pose:
        """Return the pose of a molecule whose atoms are in any order.

        Raises:
          InputError: if its elements, charge, unpaired electrons or bonds differ from the reference's. Different
            bonds are accepted if the atoms are in the reference's order, because a bond may break or form.
        """
        input_order = self._matching_order(mol)
        pose = self.pose(mol.positions[input_order])
        return dataclasses.replace(pose, order=input_order[pose.order])

    def _matching_order(self, mol: Molecule) -> Int[np.ndarray, " natm"]:
        """Return the index in `mol` of each atom of the reference."""
        reference = self.molecule
        (elements, label), (input_elements, input_label) = (
            (sorted(m.symbols), f"{m.formula} (charge {m.charge}, {m.spin} unpaired electrons)")
            for m in (reference, mol)
        )
        if elements != input_elements or (reference.charge, reference.spin) != (mol.charge, mol.spin):
            raise InputError(
                f"Expected a geometry of {label}, got {input_label}; use a model that was trained on {mol.formula}."
            )
        orders = reference.orders(mol)
        if len(orders):
            return orders[0]
        if reference.symbols == mol.symbols:
            return np.arange(len(reference.symbols))  # a bond is broken or formed: trust the input's order
        raise InputError(
            f"Expected a geometry of {mol.formula} with the bonds of the model's molecule, got one with different "
            "bonds; use the same isomer, or put the atoms in the model's order if a bond breaks or forms."
        )

    def _centred(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "natm 3"]:
        return positions - self._masses @ positions / self._masses.sum()
