"""The workbench without a screen: its state, and what can be done, testable in milliseconds.

Widgets are views of a session. Training is its trainer's thread; the traits here change only on the
thread that calls a method, so that views can observe them.
"""

from typing import NamedTuple

import numpy as np
import traitlets
from jaxtyping import Float

from qptlab import properties
from qptlab.errors import InputError
from qptlab.evaluation import Evaluation, evaluate
from qptlab.geometries import SAMPLERS, Sampling
from qptlab.integrals import template
from qptlab.method import FUNCTIONALS, GRID_LEVELS, Method
from qptlab.models.qpt import PRESETS, QPTConfig
from qptlab.molecule import Molecule
from qptlab.properties import Box
from qptlab.reference import TestSet
from qptlab.trainer import Trainer
from qptlab.training import TrainConfig
from qptlab.units import HARTREE_EV


class OrbitalPair(NamedTuple):
    """One orbital, predicted and PySCF's, at one geometry of the comparison.

    Attributes:
      molecule: the geometry.
      box: where the values are.
      values: predicted and PySCF's orbital, bohr^(−3/2), the same sign.
      captions: what each is, for a title.
      name: of the predicted one, for a file.
    """

    molecule: Molecule
    box: Box
    values: tuple[Float[np.ndarray, "nx ny nz"], Float[np.ndarray, "nx ny nz"]]
    captions: tuple[str, str]
    name: str


class Message(NamedTuple):
    """One sentence for the user.

    Attributes:
      text: the sentence; empty when there is nothing to say.
      topic: the part of the workbench it belongs to: `molecule`, `training`, `orbitals`, `comparison`.
      is_error: whether something could not be done.
    """

    text: str
    topic: str
    is_error: bool


class Session(traitlets.HasTraits):
    """A molecule, a method, a model, a training and a comparison.

    Attributes:
      molecule: what is studied; set it with `choose`.
      message: what there is to say to the user, a `Message`.
      trainer: the present training, or None.
      evaluation: the last comparison with PySCF, or None.
    """

    molecule = traitlets.Instance(Molecule)
    xc = traitlets.Enum(FUNCTIONALS, "pbe")
    basis = traitlets.Unicode("sto-3g")
    grid_level = traitlets.Enum(GRID_LEVELS, 1)
    preset = traitlets.Enum(tuple(PRESETS), "micro")
    iterations = traitlets.Int(1, min=0, max=16)
    minutes = traitlets.Float(1.0)
    sampler = traitlets.Enum(tuple(name for name in SAMPLERS if name != "file"), "md")
    temperature = traitlets.Float(500.0)
    seed = traitlets.Int(0, min=0)
    out = traitlets.Unicode("", help="the run's folder; empty for a new one under runs/")
    message = traitlets.Instance(Message, args=("", "molecule", False))
    # Pyright does not solve traitlets' own overload for None.
    trainer: traitlets.Instance[Trainer | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Trainer, allow_none=True
    )
    evaluation: traitlets.Instance[Evaluation | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Evaluation, allow_none=True
    )

    def __init__(self, molecule: str | Molecule = "water", **choices):
        chosen = Molecule.parse(molecule) if isinstance(molecule, str) else molecule
        super().__init__(molecule=chosen, **choices)
        self._reported: Trainer | None = None

    # Choosing -------------------------------------------------------------------------------

    def choose(self, text: str) -> None:
        """Take a built-in name, a SMILES, the path of an XYZ file or XYZ text as the molecule."""
        with _Told(self, "molecule"):
            self.molecule = Molecule.parse(text)

    @property
    def method(self) -> Method:
        """The method chosen."""
        return Method(self.xc, self.basis, self.grid_level)

    def summary(self) -> str:
        """Formula, electrons, orbitals, how two-electron integrals are held, and the memory of a geometry.

        Raises:
          InputError: if the method cannot treat the molecule.
        """
        chosen = template(self.molecule, self.method)
        size = chosen.nbytes
        memory = f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"
        charge = f"charge {self.molecule.charge:+d}, " if self.molecule.charge else ""
        return (
            f"{self.molecule.formula}, {charge}{self.molecule.nelectron} electrons, "
            f"{chosen.nao} atomic orbitals, {chosen.eri} integrals, {memory} a geometry"
        )

    # Training -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a new training with the present choices, or go on after a pause."""
        with _Told(self, "training"):
            if self.trainer is not None and self.trainer.status == "paused":
                self.trainer.resume()
                return
            if self.is_training:
                raise InputError("a training is under way; stop it first to start another.")
            self.evaluation = None
            self.trainer = Trainer(
                self.molecule,
                self.method,
                QPTConfig(self.preset, self.iterations),
                TrainConfig(
                    minutes=self.minutes, seed=self.seed,
                    sampling=Sampling(self.sampler, self.temperature),
                ),
                out=self.out or None,
            ).start()
            self.tell(f"The run is kept in {self.trainer.out}.", "training")

    def pause(self) -> None:
        """Pause after the current step."""
        if self.trainer is not None:
            self.trainer.pause()

    def stop(self) -> None:
        """Stop after the current step; returns at once."""
        if self.trainer is not None:
            self.trainer.stop(timeout=0)

    @property
    def is_training(self) -> bool:
        """Whether a training is under way or paused."""
        return self.trainer is not None and self.trainer.is_alive

    @property
    def training_status(self) -> str:
        """The trainer's status, or `idle` before there is one."""
        return "idle" if self.trainer is None else self.trainer.status

    def energy_zero(self) -> tuple[float, str]:
        """What the loss is drawn against, hartree, and its name.

        Once PySCF has done the validation geometries, their mean converged energy; before, the
        first step's.
        """
        if self.trainer is None or not self.trainer.rows:
            return 0.0, "E(first step)"
        if self.trainer.validation is None:
            return self.trainer.rows[0]["energy_ha"], "E(first step)"
        energies = [answer.energy for answer in self.trainer.validation.converged]
        return float(np.mean(energies)), "⟨E converged⟩"

    # Comparing ------------------------------------------------------------------------------

    def compare(self) -> None:
        """Compare the model as trained so far with PySCF on the validation geometries."""
        with _Told(self, "comparison"):
            trainer, validation = self._judged()
            self.evaluation = evaluate(trainer.predictor, validation)

    def _judged(self) -> tuple[Trainer, TestSet]:
        if self.trainer is None or self.trainer.step == 0:
            raise InputError("there is no trained model yet; start a training first.")
        if self.trainer.validation is None:
            raise InputError("PySCF is still at work on the validation geometries; try again in a moment.")
        return self.trainer, self.trainer.validation

    # Orbitals -------------------------------------------------------------------------------

    def orbital_choices(self) -> list[tuple[str, int]]:
        """Labels and indices of the orbitals, HOMO and LUMO named; empty before there is a model."""
        trainer = self.trainer
        if trainer is None or trainer.step == 0 or trainer.validation is None:
            return []
        nocc = trainer.molecules[0].nelectron // 2
        names = {nocc - 1: "HOMO", nocc: "LUMO"}
        energies = trainer.validation.converged[0].mo_energy * HARTREE_EV
        return [
            (f"{i + 1}  {names.get(i, 'occupied' if i < nocc else 'empty')}  {energy:.1f} eV", i)
            for i, energy in enumerate(energies)
        ]

    def orbital_pair(self, index: int, geometry: int = 0, points: int = 60) -> OrbitalPair:
        """One orbital of a validation geometry, predicted by the present model and PySCF's, on a box.

        Args:
          index: of the orbital, from 0.
          geometry: of the validation set, from 0.
          points: of the box along each axis.

        Raises:
          InputError: before there is a model, or for an index out of range.
        """
        trainer, validation = self._judged()
        truth = validation.converged[geometry]
        if not 0 <= index < len(truth.mo_energy):
            raise InputError(f"orbital {index} does not exist; 0 to {len(truth.mo_energy) - 1} would do.")
        positions = validation.positions[geometry]
        system = validation.systems[geometry]
        step, model = trainer.step, trainer.predictor.in_frame(system, positions)
        mol = system.molecule.with_positions(positions)
        where, basis = properties.box(mol, points), template(mol, trainer.method)
        predicted = properties.orbital_on_box(mol, basis, model.mo_coeff[:, index], where)
        pyscf = properties.orbital_on_box(mol, basis, truth.mo_coeff[:, index], where)
        # The sign of an orbital means nothing; turned alike, the two can be compared by eye.
        if float(np.sum(predicted * pyscf)) < 0:
            pyscf = -pyscf
        occupation = 2 if index < int(model.nocc) else 0
        qpt, reference = (
            f"{who}: orbital {index + 1}, {found.mo_energy[index] * HARTREE_EV:.3f} eV, "
            f"occupation {occupation}"
            for who, found in ((f"QPT, step {step}", model), ("PySCF", truth))
        )
        name = f"orbital-{index + 1}-geometry-{geometry}-step-{step}"
        return OrbitalPair(mol, where, (predicted, pyscf), (qpt, reference), name)

    # Saying ---------------------------------------------------------------------------------

    def set(self, name: str, value) -> bool:
        """Set a choice; if it cannot be used, say so, leave it as it was and return False."""
        with _Told(self, "molecule"):
            setattr(self, name, value)
            return True
        return False

    def tell(self, sentence: str, topic: str) -> None:
        """Show a sentence about something done."""
        self.message = Message(sentence, topic, False)

    def refuse(self, sentence: str, topic: str) -> None:
        """Show a sentence about something that could not be done."""
        self.message = Message(sentence, topic, True)

    def report(self) -> None:
        """Put into words what the background training has met; for the thread of the kernel."""
        trainer = self.trainer
        if trainer is not None and trainer.error is not None and trainer is not self._reported:
            self._reported = trainer
            self.refuse(f"Training failed: {trainer.error}", "training")


class _Told:
    """Turns an `InputError` into the session's message: a view has no use for a traceback."""

    def __init__(self, session: Session, topic: str):
        self._session, self._topic = session, topic

    def __enter__(self):
        self._session.tell("", self._topic)

    def __exit__(self, kind, error, _):
        if isinstance(error, InputError | traitlets.TraitError):
            self._session.refuse(str(error), self._topic)
            return True
        return False
