"""What can be drawn around a molecule: orbitals, densities, where a model is wrong, and potentials, on a box.

A scene has two panels that are to be compared: the model's beside PySCF's, or the model's error beside that of the
same iterations without a network.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

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
"""Of the isovalue; a potential is drawn on a surface of the density."""

ISOVALUES = {"orbital": 0.05, "density": 0.02, "electrostatic potential": 0.004}
"""Where a view starts; of a difference see `Scene.isovalue`."""

SHELL = 2.5
"""A potential is worked out where the density lies within this factor of the isovalue."""


class Subject(NamedTuple):
    """A geometry with what is known of it, all in one frame.

    Attributes:
      molecule: the geometry.
      method: the level of theory.
      step: updates that the model has seen.
      model: its prediction.
      no_network: that of the same iterations without a network.
      truth: PySCF's answer.
      geometry: its number in the set that it is from.
    """

    molecule: Molecule
    method: Method
    step: int
    model: Prediction
    no_network: Prediction
    truth: Reference
    geometry: int = 0

    def orbital_labels(self) -> list[str]:
        """Number, place and energy of every orbital, PySCF's; HOMO and LUMO named."""
        nocc = self.truth.nocc
        names = {nocc - 1: "HOMO", nocc: "LUMO"}
        return [
            f"{i + 1}  {names.get(i, 'occupied' if i < nocc else 'empty')}  {energy * HARTREE_EV:.1f} eV"
            for i, energy in enumerate(self.truth.mo_energy)
        ]


class Scene(NamedTuple):
    """Two volumes around a molecule, of a panel each.

    Attributes:
      kind: one of `KINDS`.
      molecule: the geometry.
      box: where the values are.
      values: of each panel, in the unit of `UNITS`.
      potentials: of each panel, hartree per elementary charge, where the surfaces are coloured by them; else empty.
      captions: what each is, for a title.
      isovalue: that shows something.
      name: of the first, for a file.
      words: the scene in a sentence.
    """

    kind: str
    molecule: Molecule
    box: Box
    values: tuple[Float[np.ndarray, "nx ny nz"], ...]
    potentials: tuple[Float[np.ndarray, "nx ny nz"], ...]
    captions: tuple[str, ...]
    isovalue: float
    name: str
    words: str


def draw(
    kind: str, subject: Subject, index: int | None = None, *, points: int = 60, isovalue: float | None = None
) -> Scene:
    """Work out a scene.

    Args:
      kind: one of `KINDS`.
      subject: what is drawn.
      index: of the orbital, from 0; the HOMO by default.
      points: of the box along each axis.
      isovalue: of the surfaces, in the unit of `UNITS`; by default one that shows something.

    Raises:
      InputError: for another kind, an orbital that does not exist, or an isovalue that is not positive.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r} cannot be drawn; one of {', '.join(KINDS)} would do.")
    if isovalue is not None and not isovalue > 0:
        raise InputError(f"isovalue {isovalue} cannot be drawn; a positive number would do.")
    where = properties.box(subject.molecule, points)
    index = int(subject.model.nocc) - 1 if index is None else index
    scene = _WAYS[kind](subject, where, index, isovalue or ISOVALUES.get(kind))
    return scene._replace(name=f"{scene.name}-geometry-{subject.geometry}")


def _orbital(subject: Subject, where: Box, index: int, isovalue: float) -> Scene:
    model, truth, mol = subject.model, subject.truth, subject.molecule
    if not 0 <= index < len(truth.mo_energy):
        raise InputError(f"orbital {index} does not exist; 0 to {len(truth.mo_energy) - 1} would do.")
    basis = template(mol, subject.method)
    both = np.stack([each.mo_coeff[:, index] for each in (model, truth)], axis=1)
    ours, theirs = properties.orbital_on_box(mol, basis, both, where)
    # The sign of an orbital means nothing; turned alike, the two can be compared by eye.
    alike = float(np.sum(ours * theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
    if alike < 0:
        theirs = -theirs
    occupation = 2 if index < int(model.nocc) else 0
    captions = tuple(
        f"{who}: orbital {index + 1}, {each.mo_energy[index] * HARTREE_EV:.3f} eV, occupation {occupation}"
        for who, each in ((f"QPT, step {subject.step}", model), ("PySCF", truth))
    )
    return Scene(
        "orbital", mol, where, (ours, theirs), (), captions, isovalue, f"orbital-{index + 1}",
        f"Orbital {index + 1} of {mol.formula}: {captions[0]}; {captions[1]}. "
        f"Overlap of the two: {min(abs(alike), 1):.5f}.",
    )


def _density(subject: Subject, where: Box, index: int, isovalue: float) -> Scene:
    ours, theirs = _densities(subject, where, subject.model.dm, subject.truth.dm)
    captions = (f"QPT, step {subject.step}: electron density", "PySCF: electron density")
    return Scene(
        "density", subject.molecule, where, (ours, theirs), (), captions, isovalue, "density",
        f"Electron density of {subject.molecule.formula}, as predicted and PySCF's.",
    )


def _difference(subject: Subject, where: Box, index: int, isovalue: float | None) -> Scene:
    mol, truth = subject.molecule, subject.truth
    deviations = [each.dm - truth.dm for each in (subject.model, subject.no_network)]
    ours, plain = _densities(subject, where, *deviations)
    volume = float(np.prod(where.spacing))
    moved = [float(np.abs(each).sum() * volume / 2) for each in (ours, plain)]
    # A round number that the model's own error reaches; the same in both panels.
    largest = float(np.abs(ours).max()) or 1e-6
    isovalue = isovalue or float(f"{0.2 * largest:.0e}")
    captions = (
        f"QPT, step {subject.step}, minus PySCF: {moved[0]:.2g} electrons misplaced",
        f"no network minus PySCF: {moved[1]:.2g} electrons misplaced",
    )
    return Scene(
        "density difference", mol, where, (ours, plain), (), captions, isovalue, "density-difference",
        f"Where the density of {mol.formula} is wrong (blue: too many electrons; orange: too few). {captions[0]}; "
        f"{captions[1]}.",
    )


def _potential(subject: Subject, where: Box, index: int, isovalue: float) -> Scene:
    mol = subject.molecule
    values = _densities(subject, where, subject.model.dm, subject.truth.dm)
    potentials = tuple(
        properties.potential_on_box(
            mol, subject.method, each.dm, where, (value > isovalue / SHELL) & (value < isovalue * SHELL)
        )
        for each, value in zip((subject.model, subject.truth), values, strict=True)
    )
    captions = tuple(
        f"{who}: potential on the density" for who in (f"QPT, step {subject.step}", "PySCF")
    )
    ends = [float(f(potential)) for potential in potentials for f in (np.min, np.max)]
    return Scene(
        "electrostatic potential", mol, where, values, potentials, captions, isovalue, "potential",
        f"Electrostatic potential of {mol.formula} on a surface of its density, hartree per elementary charge: "
        f"predicted {ends[0]:.3f} (red) to {ends[1]:.3f} (blue), PySCF's {ends[2]:.3f} to {ends[3]:.3f}.",
    )


def _densities(subject, where, *matrices):
    mol = subject.molecule
    basis = template(mol, subject.method)
    return tuple(properties.density_on_box(mol, basis, dm, where) for dm in matrices)


_WAYS: dict[str, Callable[..., Scene]] = dict(
    zip(KINDS, (_orbital, _density, _difference, _potential), strict=True)
)
