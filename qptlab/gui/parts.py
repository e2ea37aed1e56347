"""Parts of a session: the state of one tab, what it can do, and its work in the background, without widgets.

`tabs.TABS` says which part belongs to which tab.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import traitlets

from qptlab.dft import exploration
from qptlab.dft.exploration import CYCLES, Exploration
from qptlab.dft.properties import cube_text, dipole_debye
from qptlab.dft.scf import GUESSES
from qptlab.errors import InputError, shown
from qptlab.evaluation import labels
from qptlab.evaluation.comparison import Evaluation, evaluate
from qptlab.evaluation.labels import LabelledSet
from qptlab.evaluation.reference import TestSet, converged
from qptlab.gui import attention, profiling, scenes
from qptlab.gui.attention import AttentionHeads
from qptlab.gui.profiling import Profile
from qptlab.gui.scenes import Scene, Subject
from qptlab.models.contract import Model, require, title_of
from qptlab.models.loading import pretrained_models
from qptlab.models.networks import CorrectionConfig
from qptlab.models.predictor import CorrectionPredictor
from qptlab.runtime.tasks import Cancelled, Report, Task
from qptlab.sampling import samplers_without_required
from qptlab.system.molecule import Molecule, read_xyz
from qptlab.training import run
from qptlab.training.config import TrainConfig
from qptlab.training.supervised import LABELS_FILE
from qptlab.training.trainer import Trainer
from qptlab.units import HARTREE_EV, HARTREE_MEV, significant

if TYPE_CHECKING:
    import qptlab.gui.session

MAX_CYCLES, MAX_PROFILED = 200, 50
"""Largest numbers of SCF iterations that are explored, and of training steps that are profiled."""


class Part(traitlets.HasTraits):
    """Part of a session: the state of one tab, its messages and its work in the background.

    A subclass adds the state as traits, which views observe. Traits change only on the thread that calls a method;
    work in the background hands over its result through `deliver`.

    Args:
      session: session that the part belongs to.
      name: name of the tab.

    Attributes:
      session: session that the part belongs to.
      name: name of the tab; messages of the part carry it.
    """

    def __init__(self, session: "qptlab.gui.session.Session", name: str):
        super().__init__()
        self.session, self.name = session, name
        self._running: tuple[Task, Callable[[Any], None]] | None = None

    # Messages -------------------------------------------------------------------------------

    def tell(self, sentence: str) -> None:
        """Show a sentence about something that was done."""
        self.session.tell(sentence, self.name)

    def refuse(self, sentence: str) -> None:
        """Show a sentence about something that could not be done."""
        self.session.refuse(sentence, self.name)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Clear the last message, and show an error of the input in the block as a message, without a traceback."""
        self.tell("")
        try:
            yield
        except (InputError, traitlets.TraitError) as error:
            self.refuse(str(error))

    # Work in the background -----------------------------------------------------------------

    @property
    def task(self) -> Task | None:
        """Work in the background whose result `deliver` has not handed over; None if there is none."""
        return self._running[0] if self._running else None

    def begin(self, work: Callable[[Report], Any], done: Callable[[Any], None], patience: float = 0.0) -> None:
        """Start work in a thread; a part has one piece of work at a time.

        Args:
          work: function that is called in the thread with a `report`, see `tasks.Task`.
          done: function that `deliver` calls with the result, on the thread that calls `deliver`.
          patience: time to wait for the work, s; the result of work that ends within it is delivered at once.
        """
        if self._running:
            self.refuse("This part of the workbench is already at work; wait until it has finished, or cancel it.")
            return
        self.tell("")
        self._running = Task(work, self.name), done
        if patience:
            self._running[0].wait(patience)
            self.deliver()

    def deliver(self) -> None:
        """Hand over the result of work that has finished, or show why it failed; views call it regularly."""
        if self._running is None or self._running[0].is_alive:
            return
        (task, done), self._running = self._running, None
        if isinstance(task.error, Cancelled):
            self.tell("Cancelled.")
        elif task.error is not None:
            self.refuse(str(task.error) or type(task.error).__name__)
        else:
            try:
                done(task.result)
            except (InputError, traitlets.TraitError) as error:  # such as a molecule beyond the bounds of a server
                self.refuse(str(error))

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the work in the background and deliver its result; for cells and scripts.

        Args:
          timeout: longest time to wait, s; None to wait until the work has finished.

        Raises:
          InputError: if the last message of the session is an error of this part; it has the text of the message.
        """
        if self.task is not None:
            self.task.wait(timeout)
        self.deliver()
        message = self.session.message
        if message.is_error and message.topic == self.name:
            raise InputError(message.text)


PATIENCE_SECONDS = 1.0
"""Time for which work that is mostly short may hold the kernel."""


class MoleculePart(Part):
    """Choice of the session's molecule."""

    def choose(self, text: str) -> None:
        """Take a molecule; the search for the geometry of a SMILES continues in the background if it takes longer.

        Args:
          text: text as for `Molecule.parse`.
        """
        bounds = self.session.bounds

        def work(report: Report) -> Molecule:
            if "\n" not in text.strip():  # it may be a path; SMILES and names are paths inside
                bounds.check_path(text.strip())
            return Molecule.parse(text, report=lambda step: report(0, 1, step), max_atoms=bounds.atoms)

        def done(mol: Molecule) -> None:
            self.session.molecule = mol

        self.begin(work, done, PATIENCE_SECONDS)


class Predicted(NamedTuple):
    """Prediction of a molecule by a trained model.

    Attributes:
      model: the model.
      subject: the molecule with its prediction and, after a comparison, PySCF's calculation.
      seconds: time of the prediction, s; with compilation if it was the first of its size.
    """

    model: CorrectionPredictor
    subject: Subject
    seconds: float

    def rows(self) -> list[list[str]]:
        """Return name and unit, predicted value and PySCF's value of each property, for a table."""
        mol, method, _, _, model, _, reference, _ = self.subject
        answers = [model] if reference is None else [model, reference]
        columns = []
        for answer in answers:
            nocc, levels = int(answer.nocc), answer.mo_energy
            dipole = float(np.linalg.norm(dipole_debye(mol, method, answer.dm)))
            gap = float(levels[nocc] - levels[nocc - 1]) * HARTREE_EV if nocc < len(levels) else np.nan
            columns.append([f"{float(answer.energy):.6f}", f"{gap:.3f}", f"{dipole:.3f}"])
        estimate = f"{significant(float(model.energy_error) * HARTREE_MEV)} (estimated)"
        columns[0] += [significant(self.seconds), estimate]
        if reference is not None:
            error = abs(float(model.energy) - float(reference.energy)) * HARTREE_MEV
            columns[1] += [significant(float(reference.seconds)), f"{significant(error)} (true)"]
        titles = [
            "energy, hartree", "gap, eV", "dipole moment, debye", "time, s; the first prediction compiles",
            "error of the energy, meV",
        ]
        return [list(row) for row in zip(titles, *columns, strict=True)]


class PredictionPart(Part):
    """Prediction of the session's molecule by a trained model: one that comes with qptlab, or one of the runs.

    Attributes:
      result: last prediction; None before the first.
    """

    result: traitlets.Instance[Predicted | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Predicted, allow_none=True
    )

    def __init__(self, session: "qptlab.gui.session.Session", name: str):
        super().__init__(session, name)
        self._loaded: dict[str, Model] = {}

    def models(self) -> list[str]:
        """Return what `predict` takes: names of the models that come with qptlab, and folders of runs."""
        return [*pretrained_models(), *map(str, run.find_runs())]

    def predict(self, name: str) -> None:
        """Predict the session's molecule, in the background.

        Args:
          name: name or path of a model, as `qptlab.load` takes it.
        """
        mol, bounds = self.session.molecule, self.session.bounds

        def work(report: Report) -> Predicted:
            report(0, 3, f"loading {name}")
            bounds.check_path(name)
            model = self._loaded.get(name) or require(run.load(name), "dm", "mo_coeff", "energy_error")
            bounds.check_size([mol], model.method)
            if name in pretrained_models():  # a run may be trained further
                self._loaded[name] = model
            return self._predicted(model, name, mol, report)

        def done(result: Predicted) -> None:
            self.result = result
            if not result.model.was_trained_on(mol):
                self.tell(f"{name} was not trained on this molecule: look at the estimated error of its energy.")

        self.begin(work, done)

    def _predicted(self, model: Any, name: str, mol: Any, report: Report) -> Predicted:
        report(1, 3, "predicting; the first prediction of a size is compiled")
        began = time.perf_counter()
        prediction = model(mol)
        seconds = time.perf_counter() - began
        report(2, 3, "predicted")
        return Predicted(model, Subject(mol, model.method, name, None, prediction), seconds)

    def last(self) -> Predicted:
        """Return the last prediction.

        Raises:
          InputError: if there is none.
        """
        if self.result is None:
            raise InputError("There is no prediction yet; predict first.")
        return self.result

    def why_not_further(self) -> str:
        """Return the reason why `train_further` cannot be used now; an empty text if it can."""
        if self.result is None:
            return "There is no prediction yet; predict first."
        if self.session.training.is_active:
            return "A training is running; stop it before you start a different one."
        if self.session.molecule is not self.result.subject.molecule:
            return "The chosen molecule is not the predicted one; predict it first."
        return ""

    def train_further(self) -> None:
        """Train the model of the last prediction on its molecule, with the session's sampler, seed and minutes."""
        with self.reporting():
            if reason := self.why_not_further():
                raise InputError(reason)
            last = self.last()
            out = self.session.training.start_from(last.model)
            self.tell(f"{last.subject.model_title} is trained further in {out}; see the tab Training.")

    def compare(self) -> None:
        """Calculate the molecule of the last prediction with PySCF, in the background."""
        with self.reporting():
            last = self.last()
            subject = last.subject

            def work(report: Report) -> Predicted:
                report(0, 1, "SCF of PySCF")
                reference = converged(subject.molecule, subject.method)
                report(1, 1, "converged")
                if not reference.converged:
                    raise InputError(f"PySCF's SCF of {subject.molecule.formula} did not converge.")
                return last._replace(subject=subject._replace(reference=reference))

            def done(result: Predicted) -> None:
                self.result = result

            self.begin(work, done)


class SCFPart(Part):
    """Self-consistent field iterations of the session's molecule.

    Attributes:
      exploration: last exploration of the iterations; None before the first.
    """

    # Pyright cannot resolve the overload of `traitlets.Instance` for None; hence the comments here and below.
    exploration: traitlets.Instance[Exploration | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Exploration, allow_none=True
    )

    def explore(self, guess: str = GUESSES[0], cycles: int = CYCLES) -> None:
        """Search for the ground state with several algorithms, in the background.

        Args:
          guess: initial density, one of `scf.GUESSES`.
          cycles: largest number of iterations of each algorithm, 1 to `MAX_CYCLES`.
        """
        mol, method = self.session.molecule, self.session.method

        def done(result: Exploration) -> None:
            self.exploration = result
            self.tell("Finished.")

        with self.reporting():
            _check_count(cycles, MAX_CYCLES, "iterations")
            self.begin(lambda report: exploration.explore(mol, method, guess, cycles, report), done)


class TrainingPart(Part):
    """Training of the session: `Session.trainer` and what steers it.

    Attributes:
      compared: folders of the runs whose curves are drawn together with that of the present training.
    """

    compared = traitlets.List(traitlets.Unicode())

    def __init__(self, session: "qptlab.gui.session.Session", name: str):
        super().__init__(session, name)
        self._reported: Trainer | None = None
        self._problem = ""
        self._opened: Trainer | None = None
        self._shown_choices: tuple[Any, ...] = ()

    @property
    def status(self) -> str:
        """Status of the trainer; `idle` before there is one."""
        return "idle" if self.session.trainer is None else self.session.trainer.status

    @property
    def is_active(self) -> bool:
        """True while a training runs or is paused."""
        return self.session.trainer is not None and self.session.trainer.is_alive

    @property
    def is_opened(self) -> bool:
        """True if `start` continues a run that `open_run` opened, because no choice was changed since."""
        is_present = self.session.trainer is not None and self.session.trainer is self._opened
        return is_present and self._choices() == self._shown_choices

    def _choices(self) -> tuple[Any, ...]:
        """Return the session's choices that describe a training; a molecule equals itself only."""
        session = self.session
        if session.learns_from_labels:
            return session.model_config, session.labels, session.seed
        return session.molecule, session.method, session.model_config, session.sampling, session.seed

    @property
    def has_references(self) -> bool:
        """True once there are a trained model and references for its validation geometries."""
        trainer = self.session.trainer
        return trainer is not None and trainer.step > 0 and trainer.validation is not None

    def trained(self) -> Trainer:
        """Return the trainer of a model that has been trained for at least one step.

        Raises:
          InputError: if there is none.
        """
        if self.session.trainer is None or self.session.trainer.step == 0:
            raise InputError("There is no trained model yet; start a training first.")
        return self.session.trainer

    def validated(self) -> tuple[Trainer, TestSet | LabelledSet]:
        """Return the trainer of a trained model, and its validation geometries with references or labels.

        Raises:
          InputError: if one of them is missing.
        """
        trainer = self.trained()
        if trainer.validation is None:
            raise InputError(
                "The references of the validation set are not calculated yet; wait until they are or, if the "
                "training was stopped before, open its run again."
            )
        is_test_set = isinstance(trainer.validation, TestSet)
        return trainer, trainer.validation if is_test_set else trainer.validation[0]

    def with_references(self, geometry: int, *properties: str) -> tuple[Trainer, Any, TestSet]:
        """Return the trainer, its model, and PySCF's references of the validation set.

        Args:
          geometry: number of a validation geometry, from 0.
          *properties: names as in `contract.Model.provides`.

        Raises:
          InputError: if the model or the references are missing, if the model does not predict one of the properties,
            or if there is no such geometry.
        """
        trainer, validation = self.validated()
        predictor = require(trainer.predictor, *properties)
        if not isinstance(validation, TestSet):
            raise InputError("Expected references of PySCF, got labels; use a network that learns without labels.")
        last = len(validation.positions) - 1
        if not 0 <= geometry <= last:
            raise InputError(f"Expected a geometry from 0 to {last}, got {geometry}.")
        return trainer, predictor, validation

    @property
    def geometries(self) -> int:
        """Number of validation geometries; 0 before they are known."""
        trainer = self.session.trainer
        if trainer is None or trainer.validation is None:
            return 0
        return len(trainer.objective.validation_molecules(trainer.validation))

    def start(self) -> None:
        """Start a training with the choices of the session, or continue one that is paused or was opened.

        After a choice was changed, an opened run is not continued: a new training starts.
        """
        session = self.session
        with self.reporting():
            if session.trainer is not None and session.trainer.status == "paused":
                session.trainer.resume()
                return
            if self.is_active:
                raise InputError("A training is running; stop it before you start a different one.")
            if self.is_opened:
                self._continue()
                return
            reason = ""
            if session.trainer is not None and session.trainer.status == "ready":
                if self._choices() == self._shown_choices:
                    session.trainer.start()
                    return
                reason = f"A choice differs from the run in {session.trainer.out}, so this training is a new one. "
            if session.learns_from_labels:
                path = self._path_of_labels()
                self.begin(lambda _: labels.read(path), lambda data: self._start_new(data, reason), PATIENCE_SECONDS)
            else:
                self._start_new(session.molecule, reason)

    def _start_new(self, data: Molecule | LabelledSet, reason: str) -> None:
        """Start a new training on a molecule or on labels."""
        session = self.session
        with self.reporting():
            session.comparison.evaluation = None
            session.trainer = self._new_trainer(data).start()
            self.tell(f"{reason}The run is stored in {session.trainer.out}.")

    def _path_of_labels(self) -> str:
        if path := self.session.labels.strip():
            self.session.bounds.check_path(path)
            return path
        raise InputError(
            f"Expected a file of labels for {self.session.network_title}, got none; enter the path of one that "
            "`qptlab label` wrote."
        )

    def start_from(self, model: Model) -> pathlib.Path:
        """Start to train a model further on the session's molecule, and return the folder of the run.

        The session's choices become those of the model. `start` continues this training when it has ended.

        Args:
          model: trained model of a network that learns without labels.

        Raises:
          InputError: if a training is running, or the model cannot be trained on the molecule.
        """
        session = self.session
        if self.is_active:
            raise InputError("A training is running; stop it before you start a different one.")
        train = TrainConfig(minutes=session.minutes, seed=session.seed, sampling=session.sampling)
        trainer = Trainer(session.molecule, train=train, out=session.out or None, start=model)
        self._opened = trainer
        self.show(trainer)
        trainer.start()
        return trainer.out

    def _new_trainer(self, data: Molecule | LabelledSet) -> Trainer:
        session = self.session
        out = session.out or None
        if isinstance(data, LabelledSet):
            train = TrainConfig.supervised(minutes=session.minutes, steps=None, seed=session.seed)
            session.bounds.check_size(data.molecules, None)
            return Trainer(data, model=session.model_config, train=train, out=out)
        train = TrainConfig(minutes=session.minutes, seed=session.seed, sampling=session.sampling)
        return Trainer(data, session.method, session.model_config, train, out=out)

    def pause(self) -> None:
        """Pause after the current step."""
        if self.session.trainer is not None:
            self.session.trainer.pause()

    def stop(self) -> None:
        """Stop after the current step; return at once."""
        if self.session.trainer is not None:
            self.session.trainer.stop(timeout=0)

    def open_run(self, path: str) -> None:
        """Open a run on disk as the present training, to look at it or to continue it.

        The references of its validation geometries are calculated in the background.

        Args:
          path: folder of the run.
        """
        with self.reporting():
            if self.is_active:
                raise InputError("A training is running; stop it before you open a run.")
            self.session.bounds.check_path(path)

            def work(report: Report) -> Trainer:
                report(0, 1, "opening")
                trainer = Trainer.open(path)
                self.session.bounds.check_size(trainer.molecules, trainer.method)
                _make_references(trainer, report)
                return trainer

            def done(trainer: Trainer) -> None:
                self._opened = trainer
                self.show(trainer)
                opened = f"{trainer.out} is open; Start continues its training for the chosen minutes."
                self.tell(f"{opened} {trainer.run_folder.damage}".strip())

            self.begin(work, done, PATIENCE_SECONDS)

    def show(self, trainer: Trainer) -> None:
        """Make a trainer the present one, and set the session's choices to its settings.

        Minutes and folder of the session stay as they are, and so do choices that the workbench does not offer.
        References that a trained model lacks are calculated in the background.
        """
        session, method, sampling = self.session, trainer.method, trainer.train_config.sampling
        with session.hold_trait_notifications():
            session.molecule, session.network = trainer.molecules[0], trainer.model_config
            session.seed = trainer.train_config.seed
            if isinstance(trainer.model_config, CorrectionConfig) and method is not None:
                session.iterations = trainer.model_config.iterations
                session.xc, session.dispersion = method.functional.name, method.dispersion
                session.basis, session.grid_level = method.basis, method.grid_level
                if sampling.sampler in samplers_without_required():
                    session.sampler = sampling.sampler
                    session.temperature = getattr(sampling, "temperature", session.temperature)
            else:
                session.labels = str(trainer.out / LABELS_FILE)
        session.comparison.evaluation, session.trainer = None, trainer
        self._shown_choices = self._choices()
        if trainer.step > 0 and trainer.validation is None and not trainer.is_alive:
            self.begin(lambda report: _make_references(trainer, report), lambda _: None)

    def _continue(self) -> None:
        """Continue the training of an opened run."""
        opened = self._opened
        if opened is None:
            return
        spent = opened.rows[-1]["seconds"] / 60 if opened.rows else 0.0
        config = dataclasses.replace(opened.train_config, minutes=spent + self.session.minutes, steps=None)
        self.session.trainer = Trainer.open(opened.out, config).start()

    def energy_zero(self) -> tuple[float, str]:
        """Return the energy that is subtracted from the predicted energies in plots, hartree, and its name.

        Until PySCF has calculated the references, it is the energy of the first step; after that, the mean converged
        energy of the validation geometries.
        """
        trainer = self.session.trainer
        if trainer is None or not trainer.rows:
            return 0.0, "E(first step)"
        if not isinstance(trainer.validation, TestSet):
            return trainer.rows[0]["energy_ha"], "E(first step)"
        energies = [answer.energy for answer in trainer.validation.converged]
        return float(np.mean(energies)), "⟨E converged⟩"

    def deliver(self) -> None:
        """Hand over an opened run, and show why a training failed."""
        super().deliver()
        trainer = self.session.trainer
        if trainer is not None and trainer.error is not None and trainer is not self._reported:
            self._reported = trainer
            self.refuse(f"Training failed: {trainer.error}")
        problem = trainer.problem if trainer is not None and trainer.error is None else ""
        if problem != self._problem:
            self._problem = problem
            if problem:
                self.refuse(problem)
            else:
                self.tell("The training goes on.")


def _check_count(count: int, largest: int, what: str) -> None:
    """Raise an `InputError` for a number beyond its limits: a page may send any."""
    if not 1 <= count <= largest:
        raise InputError(f"Expected 1 to {largest} {what}, got {shown(count)}; use a number between them.")


def _make_references(trainer: Trainer, report: Report) -> None:
    """Calculate the references of the validation geometries."""
    report(0, 1, "references")
    trainer.make_validation(lambda done, total: report(done, total, f"references: {done} of {total}"))


class ComparisonPart(Part):
    """Comparison of the present model with PySCF or, for a model that learned from labels, with labels.

    Attributes:
      evaluation: last comparison of the present training; None before the first.
    """

    evaluation: traitlets.Instance[Evaluation | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Evaluation, allow_none=True
    )

    def __init__(self, session: "qptlab.gui.session.Session", name: str):
        super().__init__(session, name)
        self._step = 0  # of the training, when the last comparison began

    def run(self) -> None:
        """Compare the model as trained so far with the references of the validation geometries, and wait."""
        with self.reporting():
            trainer, validation = self.session.training.validated()
            self._step = trainer.step
            self.evaluation = evaluate(trainer.predictor, validation)

    def start(self, geometries: str = "") -> None:
        """Compare in the background.

        Args:
          geometries: path of an XYZ file, or of a file of labels for a model that learned from labels; empty for the
            validation geometries.
        """
        with self.reporting():
            path, data = geometries.strip(), None
            if path:
                trainer = self.session.training.trained()
                self.session.bounds.check_path(path)
            else:
                trainer, data = self.session.training.validated()
            predictor, step = trainer.predictor, trainer.step

            def work(report: Report) -> Evaluation:
                report(0, 1, "predicting")
                given: Any = self._read(path, trainer) if path else data
                return evaluate(predictor, given, lambda done, total: report(done, total, "references"))

            def done(result: Evaluation) -> None:
                self.evaluation, self._step = result, step

            self.begin(work, done)

    def _read(self, path: str, trainer: Trainer) -> Any:
        """Return the geometries or labels of a file, which have to be within the bounds of the server."""
        if "dm" not in trainer.predictor.provides:
            data = labels.read(path)
            self.session.bounds.check_size(data.molecules, None)
            return data
        mols = read_xyz(path)
        self.session.bounds.check_size(mols, trainer.method)
        return mols

    def save(self) -> None:
        """Write the last comparison into the run's folder: each geometry as CSV, the summary as LaTeX."""
        with self.reporting():
            trainer, evaluation = self.session.trainer, self.evaluation
            if trainer is None or evaluation is None:
                raise InputError("There is no comparison to save yet; compare first.")
            stem = f"comparison-step-{self._step}"
            table = trainer.run_folder.write(f"{stem}.csv", evaluation.to_csv())
            summary = trainer.run_folder.write(f"{stem}.tex", evaluation.to_latex())
            self.tell(f"Saved {table} and {summary}.")


class OrbitalsPart(Part):
    """Orbitals, densities and potentials of the validation geometries, predicted and from PySCF."""

    def __init__(self, session: "qptlab.gui.session.Session", name: str):
        super().__init__(session, name)
        self._subject: tuple[tuple, Subject] | None = None

    def subject(self, geometry: int = 0, *, renew: bool = False) -> Subject:
        """Return the predictions and the reference for a validation geometry.

        Args:
          geometry: number of the validation geometry, from 0.
          renew: if true, predict with the present parameters; if false, return the last prediction if it was for
            this geometry.

        Raises:
          InputError: if there is no trained model, if its references are missing, if it does not predict densities,
            or if there is no such geometry.
        """
        trainer, predictor, validation = self.session.training.with_references(
            geometry, "dm", "fock", "mo_coeff"
        )
        key = id(trainer), geometry
        if self._subject is None or self._subject[0] != key or renew:
            system, positions = validation.systems[geometry], validation.positions[geometry]
            mol = system.molecule.with_positions(positions)
            self._subject = key, Subject(
                mol, predictor.method, title_of(predictor.kind), trainer.step, predictor.in_frame(system, positions),
                validation.no_network[geometry], validation.converged[geometry], geometry,
            )
        return self._subject[1]

    def scene(
        self, kind: str = "orbital", index: int | None = None, geometry: int = 0, *, points: int = scenes.POINTS,
        isovalue: float | None = None, renew: bool = False,
    ) -> Scene:
        """Return what is drawn of a validation geometry; see `scenes.draw` and `subject` for the arguments.

        Raises:
          InputError: if there is no trained model, or nothing to draw for these arguments.
        """
        return scenes.draw(kind, self.subject(geometry, renew=renew), index, points=points, isovalue=isovalue)

    def save(self, scene: Scene) -> pathlib.Path:
        """Write the first volume of a scene as a cube file into the run's folder, and return its path."""
        trainer = self.session.training.trained()
        text = cube_text(scene.molecule, scene.values[0], scene.box, scene.captions[0])
        return trainer.run_folder.write(f"{scene.name}.cube", text)


class AttentionPart(Part):
    """Attention of the network's heads at the validation geometries."""

    def __init__(self, session: "qptlab.gui.session.Session", name: str):
        super().__init__(session, name)
        self._heads: tuple[tuple, AttentionHeads] | None = None

    def heads(self, geometry: int = 0, *, renew: bool = False) -> AttentionHeads:
        """Return the attention of all heads at a validation geometry; see `OrbitalsPart.subject` for the arguments.

        Raises:
          InputError: if there is no trained model, if its references are missing, if it has no attention, or if there
            is no such geometry.
        """
        attention.require_attention(self.session.training.trained().predictor)
        trainer, predictor, validation = self.session.training.with_references(geometry)
        key = id(trainer), geometry
        if self._heads is None or self._heads[0] != key or renew:
            system, positions = validation.systems[geometry], validation.positions[geometry]
            self._heads = key, attention.attention_heads(predictor, system, positions)
        return self._heads[1]


class KernelsPart(Part):
    """Profile of training steps.

    Attributes:
      profile: last profile; None before the first.
    """

    profile: traitlets.Instance[Profile | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Profile, allow_none=True
    )

    def inspect(self, steps: int = profiling.STEPS) -> None:
        """Profile some steps of the running training, in the background.

        Args:
          steps: number of training steps, 1 to `MAX_PROFILED`.
        """
        with self.reporting():
            _check_count(steps, MAX_PROFILED, "steps")
            trainer = self.session.trainer
            if trainer is None or trainer.status not in profiling.PROFILED:
                raise InputError(profiling.NOTHING)

            def done(result: Profile) -> None:
                self.profile = result

            self.begin(lambda report: profiling.profile(trainer, steps, report), done)
