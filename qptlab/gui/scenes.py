"""Scenes around a molecule on a box of points: orbitals, densities, errors of densities, and potentials.

A scene has two panels to compare: prediction and PySCF, or the error of the model and the error of the same DFT
iterations without a network. Without a reference it has the panel of the prediction alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from qptlab.dft import properties
from qptlab.dft.integrals import template
from qptlab.dft.properties import Box
from qptlab.errors import InputError
from qptlab.evaluation.reference import Reference
from qptlab.models.contract import Prediction
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import HARTREE_EV

KINDS = ("orbital", "density", "density difference", "electrostatic potential")

UNITS = {
    "orbital": "bohr^(−3/2)", "density": "electrons/bohr³", "density difference": "electrons/bohr³",
    "electrostatic potential": "electrons/bohr³",
}
"""Unit of the isovalue of each kind; a potential is drawn on a surface of the density."""

ISOVALUES = {"orbital": 0.05, "density": 0.02, "electrostatic potential": 0.004}
"""Default isovalues; for a density difference the default depends on the difference, see `Scene.isovalue`."""

POINTS = 60
"""Default number of points of the box along each axis."""

SHELL = 2.5
"""The potential is calculated at points whose density differs from the isovalue by at most this factor."""


class Subject(NamedTuple):
    """A geometry with its predictions and its reference, all in one frame.

    Attributes:
      molecule: the geometry.
      method: level of theory.
      model_title: name of the model, or of its kind.
      step: number of updates that the model has been trained for; None if the model does not say.
      model: prediction of the model.
      no_network: prediction of the same DFT iterations without a network; None if there is none.
      reference: converged calculation of PySCF; None if there is none.
      geometry: number of the geometry in its set.
    """

    molecule: Molecule
    method: Method
    model_title: str
    step: int | None
    model: Prediction
    no_network: Prediction | None = None
    reference: Reference | None = None
    geometry: int = 0

    @property
    def source(self) -> str:
        """Name of the model and number of its updates, for captions."""
        return self.model_title if self.step is None else f"{self.model_title}, step {self.step}"

    @property
    def answers(self) -> dict[str, Prediction | Reference]:
        """The prediction and, if there is one, the reference, by the names of their sources."""
        reference = {} if self.reference is None else {"PySCF": self.reference}
        return {self.source: self.model, **reference}

    def orbital_labels(self) -> list[str]:
        """Return number, occupation and energy of every orbital; HOMO and LUMO are named.

        Energies are PySCF's if there is a reference, else predicted.
        """
        answer = self.reference or self.model
        nocc = int(answer.nocc)
        names = {nocc - 1: "HOMO", nocc: "LUMO"}
        return [
            f"{i + 1}  {names.get(i, 'occupied' if i < nocc else 'empty')}  {energy * HARTREE_EV:.1f} eV"
            for i, energy in enumerate(answer.mo_energy)
        ]


class Scene(NamedTuple):
    """Volumes around a molecule, one per panel.

    Attributes:
      kind: one of `KINDS`.
      molecule: the geometry.
      box: points at which the values are given.
      values: values of each panel, in the unit of `UNITS`.
      potentials: potential of each panel, hartree per elementary charge, which colours the surface; empty for other
        kinds.
      captions: caption of each panel.
      isovalue: value on the surfaces, in the unit of `UNITS`.
      name: file name of the first panel, with the geometry and the step of the training.
      summary: sentence that describes the scene.
    """

    kind: str
    molecule: Molecule
    box: Box
    values: tuple[Float[np.ndarray, "nx ny nz"], ...]
    potentials: tuple[Float[np.ndarray, "nx ny nz"], ...]
    captions: tuple[str, ...]
    isovalue: float
    name: str
    summary: str


def draw(
    kind: str, subject: Subject, index: int | None = None, *, points: int = POINTS, isovalue: float | None = None
) -> Scene:
    """Calculate a scene.

    Args:
      kind: one of `KINDS`.
      subject: geometry with its predictions.
      index: number of the orbital, from 0; by default the HOMO.
      points: number of points of the box along each axis.
      isovalue: value on the surfaces, in the unit of `UNITS`; by default one that shows something.

    Raises:
      InputError: if there is no such kind or orbital, if the isovalue is not positive, or if the kind needs a
        reference that is missing.
    """
    if kind not in KINDS:
        raise InputError(f"Expected one of {', '.join(KINDS)} to draw, got {kind!r}.")
    if isovalue is not None and not isovalue > 0:
        example = ISOVALUES.get(kind, 1e-4)
        raise InputError(f"Expected a positive isovalue, got {isovalue}; use {example}, for example.")
    box = properties.box(subject.molecule, points)
    index = int(subject.model.nocc) - 1 if index is None else index
    scene = _DRAWERS[kind](subject, box, index, isovalue or ISOVALUES.get(kind))
    step = "" if subject.step is None else f"-step-{subject.step}"
    return scene._replace(name=f"{scene.name}-geometry-{subject.geometry}{step}")


def _orbital(subject: Subject, box: Box, index: int, isovalue: float) -> Scene:
    mol, answers = subject.molecule, subject.answers
    last = len(subject.model.mo_energy) - 1
    if not 0 <= index <= last:
        raise InputError(f"Expected an orbital from 0 to {last}, got {index}.")
    coefficients = np.stack([answer.mo_coeff[:, index] for answer in answers.values()], axis=1)
    predicted, *exact = properties.orbital_on_box(mol, template(mol, subject.method), coefficients, box)
    occupation = 2 if index < int(subject.model.nocc) else 0
    captions = tuple(
        f"{source}: orbital {index + 1}, {answer.mo_energy[index] * HARTREE_EV:.3f} eV, occupation {occupation}"
        for source, answer in answers.items()
    )
    comparison = ""
    if exact:
        # The sign of an orbital has no meaning; with equal signs the two can be compared by eye.
        overlap = float(np.sum(predicted * exact[0]) / (np.linalg.norm(predicted) * np.linalg.norm(exact[0])))
        exact = [-exact[0] if overlap < 0 else exact[0]]
        comparison = f" The overlap of the two is {min(abs(overlap), 1):.5f}."
    return Scene(
        "orbital", mol, box, (predicted, *exact), (), captions, isovalue, f"orbital-{index + 1}",
        f"Orbital {index + 1} of {mol.formula}. {'. '.join(captions)}.{comparison}",
    )


def _density(subject: Subject, box: Box, index: int, isovalue: float) -> Scene:
    values = _densities(subject, box, *(answer.dm for answer in subject.answers.values()))
    captions = tuple(f"{source}: electron density" for source in subject.answers)
    return Scene(
        "density", subject.molecule, box, values, (), captions, isovalue, "density",
        f"Electron density of {subject.molecule.formula}, from {' and '.join(subject.answers)}.",
    )


def _difference(subject: Subject, box: Box, index: int, isovalue: float | None) -> Scene:
    mol = subject.molecule
    if subject.reference is None or subject.no_network is None:
        missing = "a calculation of PySCF" if subject.reference is None else "a prediction without the network"
        raise InputError(f"Expected {missing} to compare the density with, got none; draw the density instead.")
    exact = subject.reference.dm
    values = _densities(subject, box, subject.model.dm - exact, subject.no_network.dm - exact)
    volume = float(np.prod(box.spacing))
    misplaced = [float(np.abs(difference).sum() * volume / 2) for difference in values]
    # A round number that the model's own error reaches; the same in both panels.
    largest = float(np.abs(values[0]).max()) or 1e-6
    isovalue = isovalue or float(f"{0.2 * largest:.0e}")
    captions = (
        f"{subject.source}, minus PySCF: {misplaced[0]:.2g} electrons misplaced",
        f"no network minus PySCF: {misplaced[1]:.2g} electrons misplaced",
    )
    return Scene(
        "density difference", mol, box, values, (), captions, isovalue, "density-difference",
        f"Error of the density of {mol.formula} (blue: too many electrons; orange: too few). {captions[0]}; "
        f"{captions[1]}.",
    )


def _potential(subject: Subject, box: Box, index: int, isovalue: float) -> Scene:
    mol, matrices = subject.molecule, [answer.dm for answer in subject.answers.values()]
    values = _densities(subject, box, *matrices)
    potentials = tuple(
        properties.potential_on_box(
            mol, subject.method, dm, box, (density > isovalue / SHELL) & (density < isovalue * SHELL)
        )
        for dm, density in zip(matrices, values, strict=True)
    )
    captions = tuple(f"{source}: potential on the density" for source in subject.answers)
    limits = [
        f"{potential.min():.3f} (red) to {potential.max():.3f} (blue) from {source}"
        for source, potential in zip(subject.answers, potentials, strict=True)
    ]
    return Scene(
        "electrostatic potential", mol, box, values, potentials, captions, isovalue, "potential",
        f"Electrostatic potential of {mol.formula} on a surface of its density, hartree per elementary charge: "
        f"{'; '.join(limits)}.",
    )


def _densities(
    subject: Subject, box: Box, *matrices: Float[Array | np.ndarray, "nao nao"]
) -> tuple[Float[np.ndarray, "nx ny nz"], ...]:
    mol = subject.molecule
    basis = template(mol, subject.method)
    return tuple(properties.density_on_box(mol, basis, dm, box) for dm in matrices)


_DRAWERS: dict[str, Callable[..., Scene]] = dict(
    zip(KINDS, (_orbital, _density, _difference, _potential), strict=True)
)
