"""The workbench without a screen: its state, and what can be done, testable in milliseconds.

Widgets are views of a session. Training is its trainer's thread; the traits here change only on the
thread that calls a method, so that views can observe them.
"""

import dataclasses
import pathlib
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import traitlets

from qptlab.dft import estimates, exploration
from qptlab.dft.exploration import CYCLES, Exploration
from qptlab.dft.integrals import template
from qptlab.dft.properties import cube_text
from qptlab.errors import InputError
from qptlab.evaluation.comparison import Evaluation, evaluate
from qptlab.evaluation.reference import TestSet
from qptlab.models.qpt import PRESETS, QPTConfig
from qptlab.runtime.tasks import Cancelled, Report, Task
from qptlab.sampling.geometries import SAMPLERS, Sampling
from qptlab.system import coordinates
from qptlab.system.coordinates import Coordinate
from qptlab.system.functional import FUNCTIONALS
from qptlab.system.method import GRID_LEVELS, Method
from qptlab.system.molecule import Molecule, read_xyz
from qptlab.training.config import TrainConfig
from qptlab.training.trainer import Trainer
from qptlab.units import significant
from qptlab.gui import attention, profiling, scenes
from qptlab.gui.attention import Attended
from qptlab.gui.profiling import Profile
from qptlab.gui.scenes import Scene, Subject

TOPICS = ("molecule", "exploration", "training", "orbitals", "comparison", "attention", "kernels")
"""The parts of the workbench, in order."""


class Message(NamedTuple):
    """One sentence for the user.

    Attributes:
      text: the sentence; empty when there is nothing to say.
      topic: the part of the workbench it belongs to, one of `TOPICS`.
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
      exploration: the last SCF looked into, or None.
      trainer: the present training, or None.
      evaluation: the last comparison with PySCF, or None.
      profile: the last profile of training steps, or None.
      compared: folders of runs that are drawn beside the present one.
    """

    molecule = traitlets.Instance(Molecule)
    # A live register: functionals of the user's own count.
    xc: traitlets.Enum[str] = traitlets.Enum(FUNCTIONALS, "pbe")  # pyright: ignore[reportArgumentType, reportCallIssue]
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

    exploration: traitlets.Instance[Exploration | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Exploration, allow_none=True
    )
    profile: traitlets.Instance[Profile | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Profile, allow_none=True
    )
    compared = traitlets.List(traitlets.Unicode())

    def __init__(self, molecule: str | Molecule = "water", **choices):
        chosen = Molecule.parse(molecule) if isinstance(molecule, str) else molecule
        super().__init__(molecule=chosen, **choices)
        self._reported: Trainer | None = None
        self._tasks: dict[str, tuple[Task, Callable[[Any], None]]] = {}
        self._subject: tuple[tuple, Subject] | None = None
        self._attended: tuple[tuple, Attended] | None = None
        _sessions.add(self)

    # Choosing -------------------------------------------------------------------------------

    def choose(self, text: str) -> None:
        """Take a built-in name, a SMILES, the path of an XYZ file or XYZ text as the molecule."""
        with _Told(self, "molecule"):
            self.molecule = Molecule.parse(text)

    def move(self, coordinate: Coordinate, value: float) -> None:
        """Give a bond length (ångström) or a torsion (degrees) of the molecule another value."""
        with _Told(self, "molecule"):
            self.molecule = coordinates.moved(self.molecule, coordinate, value)

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

    def estimate(self) -> str:
        """How long an SCF of the molecule will take, in a sentence; measures how fast this machine is, once.

        Raises:
          InputError: if the method cannot treat the molecule.
        """
        seconds = estimates.scf_seconds(template(self.molecule, self.method))
        about = significant(max(seconds, 0.01), 1)
        return f"An SCF will take about {about} s here, and some seconds to compile once."

    # Training -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a new training with the present choices, or go on after a pause."""
        with _Told(self, "training"):
            if self.trainer is not None and self.trainer.status == "paused":
                self.trainer.resume()
                return
            if self.is_training:
                raise InputError("a training is under way; stop it first to start another.")
            if self.is_opened:
                self._go_on()
                return
            self.evaluation = None
            self.trainer = Trainer(
                self.molecule,
                self.method,
                QPTConfig(self.preset, iterations=self.iterations),
                TrainConfig(
                    minutes=self.minutes, seed=self.seed,
                    sampling=Sampling(self.sampler, self.temperature),
                ),
                out=self.out or None,
            ).start()
            self.tell(f"The run is kept in {self.trainer.out}.", "training")

    def open_run(self, path: str) -> None:
        """Take a run on disk as the present training, to look at it or to go on with it; in the background."""
        with _Told(self, "training"):
            if self.is_training:
                raise InputError("a training is under way; stop it first to open another run.")
            trainer = Trainer.open(path)

            def work(report) -> Trainer:
                report(0, 1, "PySCF's answers")
                trainer.make_validation(lambda done, total: report(done, total, f"PySCF: {done} of {total}"))
                return trainer

            self.begin("training", work, self._take_run)

    def _take_run(self, trainer: Trainer) -> None:
        run = trainer.run_folder
        with self.hold_trait_notifications():
            self.molecule = run.molecules[0]
            self.xc = run.method.functional.name
            self.basis, self.grid_level = run.method.basis, run.method.grid_level
            self.preset, self.iterations = run.model_config.preset, run.model_config.iterations
            sampling = run.train_config.sampling
            if sampling.sampler != "file":
                self.sampler, self.temperature = sampling.sampler, sampling.temperature
            self.seed = run.train_config.seed
        self.evaluation, self.trainer = None, trainer
        self.tell(f"{trainer.out} is open; Start goes on with it for the minutes that are chosen.", "training")

    def _go_on(self) -> None:
        """Train an opened run further."""
        opened = self.trainer
        if opened is None:
            return
        spent = opened.rows[-1]["seconds"] / 60 if opened.rows else 0.0
        config = dataclasses.replace(opened.train_config, minutes=spent + self.minutes, steps=None)
        self.trainer = Trainer.open(opened.out, config).start()

    @property
    def is_opened(self) -> bool:
        """Whether the present training is a run from disk that has not gone on."""
        return self.trainer is not None and self.trainer.status == "ready"

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

    # Looking into the SCF ------------------------------------------------------------------

    def explore(self, guess: str = "minao", cycles: int = CYCLES) -> None:
        """Search the present molecule's ground state in several ways, in the background."""
        mol, method = self.molecule, self.method

        def done(found: Exploration) -> None:
            self.exploration = found
            self.tell("done.", "exploration")

        self.begin("exploration", lambda report: exploration.explore(mol, method, guess, cycles, report), done)

    # Comparing ------------------------------------------------------------------------------

    def compare(self) -> None:
        """Compare the model as trained so far with PySCF on the validation geometries."""
        with _Told(self, "comparison"):
            trainer, validation = self._judged()
            self.evaluation = evaluate(trainer.predictor, validation)

    def compare_with(self, geometries: str = "") -> None:
        """Compare in the background, on the validation geometries or on those of an XYZ file."""
        with _Told(self, "comparison"):
            if geometries.strip():
                trainer, given = self._trained(), read_xyz(geometries.strip())
            else:
                trainer, given = self._judged()
            predictor = trainer.predictor

            def work(report) -> Evaluation:
                report(0, 1, "predicting")
                return evaluate(predictor, given, lambda done, total: report(done, total, "PySCF's answers"))

            def done(found: Evaluation) -> None:
                self.evaluation = found

            self.begin("comparison", work, done)

    def save_comparison(self) -> None:
        """Write the last comparison into the run's folder: every geometry as CSV, the summary as LaTeX."""
        with _Told(self, "comparison"):
            trainer, found = self.trainer, self.evaluation
            if trainer is None or found is None:
                raise InputError("there is no comparison to save yet; compare with PySCF first.")
            stem = trainer.out / f"comparison-step-{trainer.step}"
            stem.with_suffix(".csv").write_text(found.to_csv())
            stem.with_suffix(".tex").write_text(found.to_latex())
            self.tell(f"saved {stem}.csv and {stem}.tex.", "comparison")

    def _trained(self) -> Trainer:
        if self.trainer is None or self.trainer.step == 0:
            raise InputError("there is no trained model yet; start a training first.")
        return self.trainer

    def _judged(self) -> tuple[Trainer, TestSet]:
        trainer = self._trained()
        if trainer.validation is None:
            raise InputError("PySCF is still at work on the validation geometries; try again in a moment.")
        return trainer, trainer.validation

    # Orbitals and attention ------------------------------------------------------------------

    @property
    def can_draw(self) -> bool:
        """Whether there is a model and PySCF's answers to draw beside it."""
        return self.trainer is not None and self.trainer.step > 0 and self.trainer.validation is not None

    def subject(self, geometry: int = 0, *, anew: bool = False) -> Subject:
        """A validation geometry as the model sees it, with PySCF's answer.

        Args:
          geometry: of the validation set, from 0.
          anew: predict with the present parameters; else what was last predicted for it is kept.

        Raises:
          InputError: before there is a model, or for a geometry that does not exist.
        """
        trainer, validation = self._judged()
        if not 0 <= geometry < len(validation.positions):
            raise InputError(f"geometry {geometry} does not exist; 0 to {len(validation.positions) - 1} would do.")
        key = id(trainer), geometry
        if self._subject is None or self._subject[0] != key or anew:
            system, positions = validation.systems[geometry], validation.positions[geometry]
            step, model = trainer.step, trainer.predictor.in_frame(system, positions)
            mol = system.molecule.with_positions(positions)
            self._subject = key, Subject(
                mol, trainer.method, step, model, validation.no_network[geometry], validation.converged[geometry],
                geometry,
            )
        return self._subject[1]

    def scene(
        self, kind: str = "orbital", index: int | None = None, geometry: int = 0, *, points: int = 60,
        isovalue: float | None = None, anew: bool = False,
    ) -> Scene:
        """What to draw of a validation geometry; arguments as `scenes.draw` and `subject`.

        Raises:
          InputError: as they do.
        """
        return scenes.draw(kind, self.subject(geometry, anew=anew), index, points=points, isovalue=isovalue)

    def save_scene(self, scene: Scene) -> pathlib.Path:
        """Write the first volume of a scene as a cube file into the run's folder; returns the path."""
        trainer = self._trained()
        path = trainer.out / f"{scene.name}-step-{trainer.step}.cube"
        path.write_text(cube_text(scene.molecule, scene.values[0], scene.box, scene.captions[0]))
        return path

    def attended(self, geometry: int = 0, *, anew: bool = False) -> Attended:
        """What the network's heads look at, at a validation geometry; arguments as `subject`.

        Raises:
          InputError: as `subject`.
        """
        trainer, validation = self._judged()
        if not 0 <= geometry < len(validation.positions):
            raise InputError(f"geometry {geometry} does not exist; 0 to {len(validation.positions) - 1} would do.")
        key = id(trainer), geometry
        if self._attended is None or self._attended[0] != key or anew:
            place = validation.systems[geometry], validation.positions[geometry]
            self._attended = key, attention.attended(trainer.predictor, *place)
        return self._attended[1]

    # Kernels ---------------------------------------------------------------------------------

    def inspect(self, steps: int = 5) -> None:
        """Profile some steps of the training that is under way, in the background."""
        with _Told(self, "kernels"):
            trainer = self.trainer
            if trainer is None or trainer.status not in profiling.PROFILED:
                raise InputError(profiling.NOTHING)

            def done(found: Profile) -> None:
                self.profile = found

            self.begin("kernels", lambda report: profiling.profile(trainer, steps, report), done)

    # Work in the background ------------------------------------------------------------------

    def begin(self, topic: str, work: Callable[[Report], Any], done: Callable[[Any], None]) -> None:
        """Start work in a thread; `deliver` hands its result to `done` later.

        Args:
          topic: one of `TOPICS`, of which each has one thing under way at a time.
          work: called in the thread with a `report`, see `tasks.Task`.
          done: called with what the work returned, on the thread of the kernel.
        """
        if topic in self._tasks:
            self.refuse("this is under way already; wait for it, or call it off.", topic)
            return
        self.tell("", topic)
        self._tasks[topic] = Task(work, topic), done

    def task(self, topic: str) -> Task | None:
        """What is under way in a part of the workbench."""
        return self._tasks[topic][0] if topic in self._tasks else None

    def deliver(self) -> None:
        """Hand over what has been done in the background, and say what went wrong; for the thread of the kernel."""
        for topic, (task, done) in list(self._tasks.items()):
            if task.is_alive:
                continue
            del self._tasks[topic]
            if isinstance(task.error, Cancelled):
                self.tell("called off.", topic)
            elif task.error is not None:
                self.refuse(str(task.error) or type(task.error).__name__, topic)
            else:
                done(task.result)
        self._report_training()

    def wait(self, topic: str, timeout: float | None = None) -> None:
        """Wait for what is under way in a part of the workbench, and have it delivered; for cells and scripts.

        Raises:
          InputError: what the message says, if the last thing asked for there could not be done.
        """
        task = self.task(topic)
        if task is not None:
            task.wait(timeout)
        self.deliver()
        if self.message.is_error and self.message.topic == topic:
            raise InputError(self.message.text)

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

    def _report_training(self) -> None:
        trainer = self.trainer
        if trainer is not None and trainer.error is not None and trainer is not self._reported:
            self._reported = trainer
            self.refuse(f"Training failed: {trainer.error}", "training")


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def training_session() -> Session | None:
    """The session of this process whose training is under way, if there is one: a cell that is run again finds it."""
    return next((session for session in _sessions if session.is_training), None)


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
