"""Training in a background thread: start, pause, resume, stop.

The trainer knows no widgets. Everything it does is an event: observers call `events(since)` or read `rows` at any
time, and any thread may call its methods.
"""

import atexit
import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import math
import os
import pathlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import psutil

from qptlab.errors import InputError, shown
from qptlab.evaluation.errors import ErrorSummary
from qptlab.models.contract import Model
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig
from qptlab.training.loop import (
    NotFiniteError,
    Objective,
    TrainState,
    Watch,
    check_devices,
    check_memory,
    initial_state,
    train,
)
from qptlab.training.objectives import Data, default_training, make_objective
from qptlab.training.run import FollowedRun, Run
from qptlab.units import significant

KEPT_EVENTS = ("compiling", "checkpoint", "skipped", "note", "error")
"""Kinds of events that are written into the run's folder, to be marked on its curve later."""

VALIDATION_SHARE = 0.1
"""Largest share of the training time that validation may take."""

CHECKPOINT_SECONDS = 15.0

RETRY_SECONDS = 5.0
"""Time after which something that could not be written is tried again."""

PYSCF_NICE = 10
"""Niceness of PySCF's thread during training."""


class Event(NamedTuple):
    """Event of a training.

    Attributes:
      kind: `status`, `compiling`, `step`, `validation`, `checkpoint`, `skipped`, `news`, `note` (a user's),
        `problem` (the run's folder cannot be written, so the training is paused) or `error`.
      text: description for the user.
      row: row of the metrics table, for `step` and `validation`.
      step: number of updates done.
      seconds: training time.
    """

    kind: str
    text: str
    row: dict | None = None
    step: int = 0
    seconds: float = 0.0


class Trainer:
    """Background training with validation, metrics and checkpoints in a run folder, for any kind of model.

    It uses all devices that JAX has, also those of other processes that `jax.distributed.initialize()` has joined:
    run the same script in each, with one folder that all can read; the first process writes it, validates and holds
    the clock.

    Args:
      data: a molecule or several, for a network that learns without labels; the geometry of each is the reference of
        its frame. Or a labelled set from `ql.read_labels`, for an OrbitalGNN.
      method: level of theory, for molecules; labels state their own.
      model: settings of the network: `EquivariantConfig`, `QPTConfig`, those of a registered network, or
        `GNNConfig`.
      train: settings of the training.
      out: the run's folder, new or empty; by default a new one in `runs/`.
      resume: if true, continue the run that `out` holds. Data, method, model and training must be the same; the
        budget (minutes, steps) and the number of validation geometries may differ.
      start: trained model to start from, as in `make_objective`: to continue on a molecule of interest, or in a
        different functional.

    Attributes:
      status: `ready`, `compiling`, `running`, `paused`, `finished`, `stopped` or `failed`.
      error: exception that ended a failed training.
      problem: why the run's folder cannot be written, while it cannot; else empty. The training is paused then, with
        the model in memory, and goes on by itself when the folder can be written.
      validation: validation geometries with their references, once they are computed.
      errors: name and errors of the model and of each baseline at the last validation, the model first.
      executables: compiled functions of a training step, by name, and the time that compiling took, s.

    Raises:
      InputError: if the output folder holds something else, the method cannot treat a molecule, a file of geometries
        cannot be used, or the devices cannot share a batch.

    >>> import qptlab as ql
    >>> trainer = ql.Trainer(ql.Molecule.from_name("water"), ql.Method("pbe", "sto-3g"))  # doctest: +SKIP
    >>> trainer.start()  # doctest: +SKIP
    """

    def __init__(
        self,
        data: Data,
        method: Method | None = None,
        model: Any = None,
        train: TrainConfig | None = None,
        out: str | pathlib.Path | None = None,
        *,
        resume: bool = False,
        start: Model | None = None,
    ):
        self._begin(make_objective(data, method, model, start), train or default_training(data), out, resume)

    @classmethod
    def of(
        cls, objective: Objective, train: TrainConfig, out: str | pathlib.Path | None = None, *, resume: bool = False
    ) -> "Trainer":
        """Return the trainer of an objective; arguments as for the class.

        Raises:
          InputError: if something cannot be used, as for the class.
        """
        trainer = cls.__new__(cls)
        trainer._begin(objective, train, out, resume)
        return trainer

    @classmethod
    def open(cls, path: str | pathlib.Path, train: TrainConfig | None = None) -> "Trainer":
        """Return the trainer of an existing run folder, to look at it or to continue it.

        Args:
          path: the run's folder.
          train: settings with a new budget; by default those of the run.

        Raises:
          InputError: if the folder holds no run, or one of a kind that is not registered.
        """
        run = (FollowedRun if jax.process_index() else Run).open(path)
        trainer = cls.__new__(cls)
        trainer._begin(run.objective, train or run.train_config, path, True, run)
        return trainer

    def _begin(
        self, objective: Objective, train_config: TrainConfig, out: str | pathlib.Path | None, resume: bool,
        run: Run | None = None,
    ) -> None:
        self.train_config = train_config
        self.executables: dict[str, tuple[jax.stages.Compiled, float]] = {}
        self._newest: Callable[[], Molecule] | None = None
        self._log: list[Event] = []
        self._rows: list[dict] = []
        self._going = threading.Event()
        self._going.set()
        self._stopping = threading.Event()
        self._enough = threading.Event()  # nobody will ask for references any more
        self._thread: threading.Thread | None = None
        self.status = "ready"
        self.error: BaseException | None = None
        self.problem = ""
        self._retry = threading.Event()
        self.validation: Any = None
        self.errors: list[tuple[str, ErrorSummary]] = []
        # All errors of the user are found here, before a thread or a folder exists.
        check_memory(objective)
        check_devices(train_config)
        objective.check(train_config)
        folder = pathlib.Path(out) if out else _default_folder(objective.molecules)
        self.run_folder, self._state = self._open(folder, objective, resume, run)
        self._objective = self.run_folder.objective
        if self._state is None and objective.origin:
            # The first checkpoint: the folder has to have the parameters that the training starts from.
            self._state = initial_state(objective, train_config)
            self.run_folder.save(self._state)
        self._validated_at = self._validation_cost = 0.0
        self._validations = 0

    def _open(
        self, out: pathlib.Path, objective: Objective, resume: bool, run: Run | None
    ) -> tuple[Run, TrainState | None]:
        run_class = FollowedRun if jax.process_index() else Run
        if not (resume and (out / "config.json").exists()):
            return run_class.create(out, objective, self.train_config), None
        run = run or run_class.open(out)
        names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in objective.budget]
        settings = ((name, getattr(run.train_config, name), getattr(self.train_config, name)) for name in names)
        different = objective.difference(run.objective) or next(
            (setting for setting in settings if setting[1] != setting[2]), None
        )
        if different:
            name, earlier, requested = different
            raise InputError(
                f"Expected {name} {earlier}, which the run in {out} has, got {requested}; use the same, or a new "
                "output folder."
            )
        state = run.restore()
        if run.damage:
            self._log.append(Event("news", run.damage))
        last = state.step if state else 0  # what came later was lost
        self._rows = [row for row in run.metrics() if row["step"] <= last]
        self._log = [
            Event(event["kind"], event["text"], None, event["step"], event["seconds"])
            for event in run.events() if event["step"] <= last
        ] + self._log
        return run, state

    # Control ---------------------------------------------------------------------------------

    def start(self) -> "Trainer":
        """Start, or continue after a pause; return at once.

        Raises:
          InputError: if the run's folder cannot be written, another process is training it, or it has gone on since
            it was opened.
        """
        if self.status == "paused":
            self.resume()
        elif self._thread is None:
            said = self.run_folder.begin(self.step, self.train_config)
            if said:
                self._emit("news", said)
            self._thread = threading.Thread(target=self._work, name="qptlab-trainer", daemon=True)
            self._thread.start()
            atexit.register(_stop_at_exit, weakref.ref(self))
        return self

    def pause(self) -> "Trainer":
        """Pause after the current step; a checkpoint is written."""
        self._going.clear()
        return self

    def resume(self) -> "Trainer":
        """Continue after a pause."""
        self._going.set()
        self._retry.set()
        return self

    def stop(self, timeout: float | None = None) -> "Trainer":
        """Stop after the current step and write a checkpoint; wait for it, up to `timeout` seconds."""
        self._stopping.set()
        self._going.set()
        self._retry.set()
        return self.wait(timeout)

    def run(self) -> "Trainer":
        """Train in the foreground until the budget is spent.

        Raises:
          InputError: if the source of geometries fails.
          RuntimeError: if training failed; its cause is attached.
        """
        self.start().wait()
        if isinstance(self.error, InputError):
            raise self.error
        if self.error is not None:
            raise RuntimeError(f"training failed: {self.error}") from self.error
        return self

    def save(self) -> None:
        """Write a checkpoint of the last step now, if there is one; a training writes them by itself.

        Raises:
          InputError: if it cannot be written, or another process is training the run.
        """
        with self.run_folder.writing():
            try:
                self._save()
            except OSError as error:
                raise InputError(self._cannot_write(error)) from None

    def note(self, text: str) -> None:
        """Add a note at the present step; it is kept with the run.

        Raises:
          InputError: if the note is empty, or another process is training the run.
        """
        if not text.strip():
            raise InputError("Expected a note of some words, got an empty one; use a short sentence.")
        with self.run_folder.writing():
            self._emit("note", " ".join(text.split()))

    def wait(self, timeout: float | None = None) -> "Trainer":
        """Wait until training has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return self

    # State ----------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """True while the thread is at work, or paused."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def out(self) -> pathlib.Path:
        """The run's folder."""
        return self.run_folder.path

    @property
    def objective(self) -> Objective:
        """Network and data of the training."""
        return self._objective

    @property
    def molecules(self) -> tuple[Molecule, ...]:
        """Molecules that are trained on, at their reference geometries."""
        return self._objective.molecules

    @property
    def method(self) -> Method | None:
        """Level of theory; None for a model that learns from labels."""
        return self._objective.method

    @property
    def model_config(self) -> Any:
        """Settings of the network."""
        return self._objective.model_config

    def events(self, since: int = 0) -> list[Event]:
        """Return the events from the one numbered `since` on; any number of observers may ask."""
        return self._log[since:]

    @property
    def rows(self) -> list[dict]:
        """Metrics so far, a dictionary per step; see `run.COLUMNS`."""
        return list(self._rows)

    @property
    def predictor(self) -> Model:
        """The model as trained so far; before the first step, with the network switched off.

        Raises:
          InputError: for a training on labels before its first step.
        """
        return self._objective.predictor(self._state.average if self._state else None)

    @property
    def step(self) -> int:
        """Number of updates done."""
        return self._state.step if self._state else 0

    @property
    def geometry(self) -> Molecule | None:
        """One geometry of the last batch, a new one if there was one; None before the first step."""
        return self._newest() if self._newest else None

    # Thread ---------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._set_status("compiling")
            with concurrent.futures.ThreadPoolExecutor(1, "qptlab-reference", _stand_back) as pool:
                # Of several processes the first judges for all.
                references = None if jax.process_index() else pool.submit(self.make_validation)
                try:
                    self._loop(references)
                finally:
                    self._enough.set()
            end = "stopped" if self._stopping.is_set() else "finished"
        except concurrent.futures.CancelledError:  # stopped before there was a step to stop after
            end = "stopped"
        except BaseException as error:  # noqa: BLE001  a thread's last words, shown by whoever watches
            self.error = error
            with contextlib.suppress(OSError):  # it may be the disk itself
                self._save()
                if isinstance(error, NotFiniteError):
                    path = self.run_folder.write_geometries(
                        f"not-finite{jax.process_index() or ''}.xyz", error.geometries
                    )
                    self._emit("news", f"the geometries that caused it are in {path}")
            self._emit("error", str(error))
            end = "failed"
        self.run_folder.unlock()
        self._set_status(end)

    def _loop(self, references: concurrent.futures.Future | None) -> None:
        start = self._state or initial_state(self._objective, self.train_config)
        saved = -math.inf if self._state is None else time.perf_counter()
        for state, metrics in train(self._objective, self.train_config, start, _Watch(self)):
            if self.status == "compiling":
                self._set_status("running")
            self._state = state
            row = {**metrics._asdict(), "memory_mib": _memory_mib()}
            if metrics.skipped:
                self._emit("skipped", f"the update of step {state.step} was not finite and was left out")
            if references and self._validation_due(references):
                with contextlib.suppress(concurrent.futures.CancelledError):  # stopped while it waited
                    row |= self._validate(references)
            self._write(functools.partial(self.run_folder.append, row))
            self._rows.append(row)
            self._emit("step", f"step {state.step}", row)
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._write(self._save)
                saved = time.perf_counter()
            if not self._going.is_set():
                self._halt()
        self._write(self._save)

    def _validation_due(self, references: concurrent.futures.Future) -> bool:
        if self._state is None or self._stopping.is_set():
            return False
        if self._budget_spent():
            return True  # the last step is always judged, even if PySCF has to be waited for
        idle = time.perf_counter() - self._validated_at
        return references.done() and self._validation_cost < VALIDATION_SHARE * idle

    def _budget_spent(self) -> bool:
        state = self._state
        return state is not None and self.train_config.progress(state.step, state.seconds) >= 1

    def _write(self, write: Callable[[], Any]) -> None:
        """Write into the run's folder; if that is impossible, pause until it is possible.

        Raises:
          InputError: if the training is stopped meanwhile.
        """
        while True:
            try:
                write()
                break
            except OSError as error:
                problem = self._cannot_write(error)
            if self._stopping.is_set():
                raise InputError(problem)
            if problem != self.problem:
                self.problem = problem
                self._set_status("paused")
                self._emit("problem", problem)
            self._retry.wait(RETRY_SECONDS)
            self._retry.clear()
        if self.problem:
            self.problem = ""
            self._emit("news", f"{self.out} can be written again")
            self._set_status("running")

    def _cannot_write(self, error: OSError) -> str:
        """Return a sentence about a folder that cannot be written."""
        reason = error.strerror or shown(str(error))
        return (
            f"Expected room for step {self.step} in {self.out}, got {reason}; make room, or bring the folder back. "
            "The model is in memory, and the training goes on then."
        )

    def _halt(self) -> None:
        self._write(self._save)
        self._set_status("paused")
        self._going.wait()
        if not self._stopping.is_set():
            self._set_status("running")

    def _save(self) -> None:
        if self._state is not None and self._state.step > 0:
            self.run_folder.save(self._state)
            self._emit("checkpoint", f"checkpoint at step {self._state.step}")

    def _validate(self, references: concurrent.futures.Future) -> dict[str, float | None]:
        """Return errors of the present parameters and of the baselines, as columns of the table."""
        if not references.done():
            self._emit("news", "waiting for the references of the validation geometries")
        validation, state = references.result(), self._state
        if state is None:
            return {}
        began = time.perf_counter()
        self.errors = table = self._objective.validate(validation, state.average)
        self._validated_at = time.perf_counter()
        # The first validation compiles, which does not count as its cost.
        self._validation_cost = self._validated_at - began if self._validations else 0.0
        self._validations += 1
        titles = [(self._objective.baselines.get(name, name), summary) for name, summary in table]
        count = len(self._objective.validation_molecules(validation))
        self._write(lambda: self.run_folder.write_card(state, titles, count))
        (_, summary), *baselines = table  # energies always have an error: a label without one is refused
        row = {"validation_mae_mev": summary.energy_mae_mev, "validation_max_mev": summary.energy_max_mev}
        row |= {f"{name}_mae_mev": baseline.energy_mae_mev for name, baseline in baselines}
        text = f"validation error {significant(summary.energy_mae_mev or 0.0)} meV"
        self._emit("validation", text, {"step": self.step, **row})
        return row

    def make_validation(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Any:
        """Return the validation geometries with references, the same for the same seed; they are kept.

        A training computes them by itself; a run that is only looked at needs them, too.

        Args:
          progress: callback `progress(done, total)`, called after each geometry; an exception ends the work.
        """

        def report(done: int, total: int) -> None:
            progress(done, total)
            self._check_wanted(done, total)

        def drawn(mols: list[Molecule]) -> None:
            if self.is_alive:  # else somebody only looks at the run
                with contextlib.suppress(OSError):  # said where metrics are written
                    self.run_folder.write_geometries("validation.xyz", mols)

        validation = self._objective.make_validation(self.train_config, report, self._threads, drawn)
        self.validation = validation
        return validation

    def _threads(self) -> int | None:
        """Return the number of threads for PySCF: None for all, unless there are steps to do."""
        return 1 if self.is_alive and not self._budget_spent() else None

    def _check_wanted(self, done: int, total: int) -> None:
        if self._enough.is_set() or self._stopping.is_set():
            raise concurrent.futures.CancelledError
        self._emit("news", f"references for validation: {done} of {total}")

    def _set_status(self, status: str) -> None:
        self.status = status
        self._emit("status", status)

    def _emit(self, kind: str, text: str, row: dict | None = None) -> None:
        step, seconds = (self._state.step, self._state.seconds) if self._state else (0, 0.0)
        self._log.append(Event(kind, text, row, step, seconds))
        if kind in KEPT_EVENTS:
            with contextlib.suppress(OSError):  # a full disk is said where metrics are written
                self.run_folder.log(kind, text, step, seconds)


class _Watch(Watch):
    """Callbacks that turn the progress of a training into events of its trainer."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def compiling(self, name: str) -> None:
        self._trainer._emit("compiling", f"compiling the {name}")

    def compiled(self, name: str, executable: jax.stages.Compiled, seconds: float) -> None:
        self._trainer.executables[name] = executable, seconds  # of molecules of several shapes, the last

    def preparing(self, name: str, done: int, total: int) -> None:
        if self._trainer._stopping.is_set():
            raise concurrent.futures.CancelledError
        self._trainer._emit("news", f"preparing {name}: {done} of {total}")

    def drew(self, geometry: Callable[[], Molecule]) -> None:
        self._trainer._newest = geometry

    def is_over(self) -> bool:
        return self._trainer._stopping.is_set()


def _stand_back() -> None:
    """Give the training precedence on the cores.

    XLA's threads wait for each other. With a thread of PySCF that had the same priority on two cores, a step of
    uracil took three times as long.
    """
    if sys.platform == "linux":  # where a priority is a thread's own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PYSCF_NICE)


def _memory_mib() -> float:
    """Return the memory in use, MiB: that of the accelerator, or else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats.get("bytes_in_use") or psutil.Process().memory_info().rss) / 2**20


def _stop_at_exit(trainer: weakref.ref) -> None:
    """End the thread before the interpreter exits: a thread inside XLA would abort the process."""
    if (alive := trainer()) is not None:
        alive.stop(timeout=60)


def _default_folder(mols: Sequence[Molecule]) -> pathlib.Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{len(mols)}-molecules" if len(mols) > 1 else mols[0].name or mols[0].formula
    name = name.replace(" ", "-").replace("/", "-")[:40]
    return pathlib.Path("runs") / f"{name}-{stamp}"
