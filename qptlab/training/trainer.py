"""Training in a background thread: start, pause, resume, stop; everything it does is an event.

The trainer never touches a widget. Whoever watches asks for `events(since)` or reads `rows` when it
likes; whoever steers calls a method from any thread.
"""

import atexit
import concurrent.futures
import contextlib
import dataclasses
import datetime
import itertools
import os
import pathlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import psutil

from qptlab.errors import InputError
from qptlab.evaluation.reference import ErrorSummary, TestSet, errors, make_test_set, taught
from qptlab.models.predictor import Predictor
from qptlab.models.qpt import QPT, QPTConfig
from qptlab.models.systems import make_systems
from qptlab.sampling import geometries
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.loop import (
    NotFiniteError,
    TrainConfig,
    TrainState,
    Watch,
    check_devices,
    check_memory,
    initial_state,
    train,
)
from qptlab.training.run import FollowedRun, Run
from qptlab.training.stream import Drawn
from qptlab.units import significant

BUDGET = ("minutes", "steps", "validation")
"""What a resumed training may have otherwise."""

KEPT_EVENTS = ("compiling", "checkpoint", "skipped", "note", "error")
"""Kinds that are written into the run's folder, to be marked on its curve later."""

VALIDATION_STRIDE = 8
"""Frames of the validation trajectory from one geometry to the next (40 fs): nearly independent."""

VALIDATION_SHARE = 0.1
"""Validation may take this much of the time between two of them."""

CHECKPOINT_SECONDS = 15.0

PYSCF_NICE = 10
"""Priority of PySCF beside a training, as of `nice`."""


class Event(NamedTuple):
    """Something that happened.

    Attributes:
      kind: `status`, `compiling`, `step`, `validation`, `checkpoint`, `skipped`, `news`, `note` (a user's) or
        `error`.
      text: for people.
      row: of the metrics table, with `step` and `validation`.
      step: updates done when it happened.
      seconds: training time then.
    """

    kind: str
    text: str
    row: dict | None = None
    step: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains a QPT on one molecule or several, with validation, metrics and checkpoints in a run folder.

    On all devices that JAX has, also those of other processes that `jax.distributed.initialize()` has joined: run
    the same script in each, with one folder that all can read; the first process writes it, validates and holds the
    clock.

    Args:
      mol: the molecule, or several; its geometry is the reference of its frame.
      method: the level of theory.
      model: the network and DFT iterations.
      train: the training.
      out: the run's folder, new or empty; by default a new one under `runs/`.
      resume: go on with the run that `out` holds. Molecules, method, model and training must be the same; the
        budget (minutes, steps) and the number of validation geometries may be others.

    Attributes:
      status: `ready`, `compiling`, `running`, `paused`, `finished`, `stopped` or `failed`.
      error: what ended a training that failed.
      validation: the validation geometries with PySCF's answers, once there are any.
      executables: the compiled functions of a training step, by name, and the seconds that compiling each took.

    Raises:
      InputError: for an output folder that holds something else, a molecule that the method cannot treat, a file of
        geometries that cannot be used, or a batch that the devices cannot share.

    >>> import qptlab as ql
    >>> trainer = ql.Trainer(ql.Molecule.from_name("water"), ql.Method("pbe", "sto-3g"))  # doctest: +SKIP
    >>> trainer.start()  # doctest: +SKIP
    """

    def __init__(
        self,
        mol: Molecule | Sequence[Molecule],
        method: Method | None = None,
        model: QPTConfig | None = None,
        train: TrainConfig | None = None,
        out: str | pathlib.Path | None = None,
        *,
        resume: bool = False,
    ):
        self.molecules = (mol,) if isinstance(mol, Molecule) else tuple(mol)
        self.method = method or Method()
        self.model_config = model or QPTConfig()
        self.train_config = train or TrainConfig()
        self.executables: dict[str, tuple[jax.stages.Compiled, float]] = {}
        self._batch: Sequence[Drawn] = ()
        self._log: list[Event] = []
        self._rows: list[dict] = []
        self._going = threading.Event()
        self._going.set()
        self._stopping = threading.Event()
        self._enough = threading.Event()  # nobody will ask for references any more
        self._thread: threading.Thread | None = None
        self.status = "ready"
        self.error: BaseException | None = None
        self.validation: TestSet | None = None
        self._baselines: tuple[ErrorSummary, ErrorSummary] | None = None
        # Everything a user can get wrong is found here, before a thread or a folder exists.
        self._systems, kinds = make_systems(self.molecules, self.method, self.model_config.guess)
        check_memory(QPT(self.model_config, self.method.xc, kinds))
        check_devices(self.train_config)
        self._check_sampling()
        out = pathlib.Path(out) if out else _default_folder(self.molecules)
        self.run_folder, self._state = self._open(out, resume)
        self._model, self._systems = self.run_folder.model()
        self._validated_at = self._validation_cost = 0.0

    def _check_sampling(self) -> None:
        sampling = self.train_config.sampling
        if sampling.sampler in ("file", "torsions", "conformers"):
            for each in self.molecules:
                next(geometries.sample(each, sampling, 0))
        if sampling.sampler == "model":
            for system in self._systems:
                system.check_derivative()

    def _open(self, out, resume) -> tuple[Run, TrainState | None]:
        kind = FollowedRun if jax.process_index() else Run
        if not (resume and (out / "config.json").exists()):
            run = kind.create(out, self.molecules, self.method, self.model_config, self.train_config)
            return run, None
        run = kind.open(out)
        names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in BUDGET]
        kept = zip(run.molecules, self.molecules, strict=False)
        is_same = len(run.molecules) == len(self.molecules) and all(len(old.orders(new)) for old, new in kept)
        for what, old, new in (
            ("method", run.method, self.method),
            ("model", run.model_config, self.model_config),
            *((name, getattr(run.train_config, name), getattr(self.train_config, name)) for name in names),
            ("molecules", *(", ".join(map(_called, each.molecules)) for each in (run, self))),
        ):
            if (not is_same) if what == "molecules" else old != new:
                raise InputError(
                    f"the run in {out} has {what} {old}, but {new} was asked for; "
                    "the same, or a new output folder, would do."
                )
        state = run.resume()
        run.extend(self.train_config)
        self.molecules = run.molecules  # their geometries define the frames
        self._rows = run.metrics()
        self._log = [
            Event(each["kind"], each["text"], None, int(each["step"]), each["seconds"]) for each in run.events()
        ]
        return run, state

    # Steering -------------------------------------------------------------------------------

    def start(self) -> "Trainer":
        """Begin, or go on after a pause; returns at once."""
        if self.status == "paused":
            self._going.set()
        elif self._thread is None:
            self._thread = threading.Thread(target=self._work, name="qptlab-trainer", daemon=True)
            self._thread.start()
            atexit.register(_stop_at_exit, weakref.ref(self))
        return self

    def pause(self) -> "Trainer":
        """Halt after the current step; a checkpoint is written."""
        self._going.clear()
        return self

    def resume(self) -> "Trainer":
        """Go on after a pause."""
        self._going.set()
        return self

    def stop(self, timeout: float | None = None) -> "Trainer":
        """End after the current step and write a checkpoint; waits up to `timeout` seconds for it."""
        self._stopping.set()
        self._going.set()
        return self.wait(timeout)

    def run(self) -> "Trainer":
        """Train in the foreground until the budget is spent.

        Raises:
          InputError: what the source of geometries raised.
          RuntimeError: if training failed; its cause is attached.
        """
        self.start().wait()
        if isinstance(self.error, InputError):
            raise self.error
        if self.error is not None:
            raise RuntimeError(f"training failed: {self.error}") from self.error
        return self

    def note(self, text: str) -> None:
        """Write a remark down at the present step; it is kept with the run.

        Raises:
          InputError: for an empty one.
        """
        if not text.strip():
            raise InputError("an empty note was given; a few words would do.")
        self._emit("note", " ".join(text.split()))

    def wait(self, timeout: float | None = None) -> "Trainer":
        """Wait until training has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return self

    # Watching -------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """Whether the thread is at work, or paused."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def out(self) -> pathlib.Path:
        """The run's folder."""
        return self.run_folder.path

    def events(self, since: int = 0) -> list[Event]:
        """What happened, from the event numbered `since` on; any number of watchers may ask."""
        return self._log[since:]

    @property
    def rows(self) -> list[dict]:
        """The metrics so far, a dictionary per step; see `run.COLUMNS`."""
        return list(self._rows)

    @property
    def predictor(self) -> Predictor:
        """The model as trained so far; before the first step, with the network switched off."""
        state = self._state
        return Predictor(self._model, state.average if state else None, self._systems)

    @property
    def step(self) -> int:
        """Updates done."""
        return self._state.step if self._state else 0

    @property
    def geometry(self) -> Molecule | None:
        """The newest geometry trained on, in its frame; None before the first step."""
        for drawn in self._batch:
            mol = drawn.system.molecule
            return mol.with_positions(np.asarray(drawn.sample.ints.positions)[: len(mol.symbols)])
        return None

    # The thread -----------------------------------------------------------------------------

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
            self._set_status("stopped" if self._stopping.is_set() else "finished")
        except concurrent.futures.CancelledError:  # stopped before there was a step to stop after
            self._set_status("stopped")
        except Exception as error:  # noqa: BLE001  a thread's last words, shown by whoever watches
            self.error = error
            with contextlib.suppress(OSError):  # it may be the disk itself
                self._save()
            if isinstance(error, NotFiniteError):
                frames = "".join(mol.to_xyz() for mol in error.geometries)
                path = self.out / f"not-finite{jax.process_index() or ''}.xyz"
                path.write_text(frames)
                self._emit("news", f"the geometries at fault are kept in {path}")
            self._emit("error", str(error))
            self._set_status("failed")

    def _loop(self, references: concurrent.futures.Future | None) -> None:
        start = self._state or initial_state(self._model, self.train_config)
        saved = time.perf_counter()
        for state, metrics in train(
            self._model, taught(self._systems, self.train_config.loss), self.train_config, start,
            _Watch(self),
        ):
            if self.status == "compiling":
                self._set_status("running")
            self._state = state
            row = {**metrics._asdict(), "memory_mib": _memory_mib()}
            if metrics.skipped:
                self._emit("skipped", f"the update of step {state.step} was not finite and was left out")
            if references and self._validation_due(references):
                with contextlib.suppress(concurrent.futures.CancelledError):  # stopped while it waited
                    row |= self._validate(references)
            self.run_folder.append(row)
            self._rows.append(row)
            self._emit("step", f"step {state.step}", row)
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()
            if not self._going.is_set():
                self._halt()
        self._save()

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

    def _halt(self) -> None:
        self._save()
        self._set_status("paused")
        self._going.wait()
        if not self._stopping.is_set():
            self._set_status("running")

    def _save(self) -> None:
        if self._state is not None and self._state.step > 0:
            self.run_folder.save(self._state)
            self._emit("checkpoint", f"checkpoint at step {self._state.step}")

    def _validate(self, references: concurrent.futures.Future) -> dict[str, float]:
        """Errors of the present parameters and of both baselines, as columns of the table."""
        if not references.done():
            self._emit("news", "waiting for PySCF's answers on the validation geometries")
        found = references.result()
        predictor, places = self.predictor, list(zip(found.systems, found.positions, strict=True))
        if self._baselines is None:
            self._baselines = errors(found.no_network, found.converged), errors(found.stopped, found.converged)
            for place in {id(place[0]): place for place in places}.values():
                predictor.in_frame(*place)  # compiles, once, and is no part of the cost
        began = time.perf_counter()
        predictions = [predictor.in_frame(*place) for place in places]
        summary = errors(predictions, found.converged)
        names = ("QPT", "no network, same iterations", "PySCF, same Fock builds")
        if self._state is not None:
            table = list(zip(names, (summary, *self._baselines), strict=True))
            self.run_folder.write_card(self._state, table, len(predictions))
        self._validated_at = time.perf_counter()
        self._validation_cost = self._validated_at - began
        row = {
            "validation_mae_mev": summary.energy_mae_mev,
            "validation_max_mev": summary.energy_max_mev,
            "no_network_mae_mev": self._baselines[0].energy_mae_mev,
            "pyscf_stopped_mae_mev": self._baselines[1].energy_mae_mev,
        }
        text = f"validation error {significant(summary.energy_mae_mev)} meV"
        self._emit("validation", text, {"step": self.step, **row})
        return row

    def make_validation(self, progress: Callable[[int, int], None] = lambda done, total: None) -> TestSet:
        """Draw the validation geometries, the same for the same seed, and have PySCF do them, beside the training.

        A training does this by itself; a run that is only looked at needs it, too.

        Args:
          progress: told how many are done, of how many; what it raises ends the work.
        """
        config, systems = self.train_config, self._systems
        count = config.validation
        chosen = systems[:: max(1, len(systems) // count)][:count]  # of many molecules some
        places = []
        for index, system in enumerate(chosen):
            stream = geometries.sample(system.molecule, config.sampling, [config.seed, index], validation=True)
            share = len(range(index, count, len(chosen)))
            frames = itertools.islice(stream, 0, share * VALIDATION_STRIDE, VALIDATION_STRIDE)
            places += [(system, system.frame.pose(frame).positions) for frame in frames]
        frames = (system.molecule.with_positions(positions).to_xyz() for system, positions in places)
        (self.out / "validation.xyz").write_text("".join(frames))
        plain = Predictor(self._model, None, systems)

        def report(done, total):
            progress(done, total)
            self._check_wanted(done, total)

        self.validation = make_test_set(plain, places, report, threads=self._threads)
        return self.validation

    def _threads(self) -> int | None:
        """For PySCF: all, unless there are steps to be done."""
        return 1 if self.is_alive and not self._budget_spent() else None

    def _check_wanted(self, done: int, total: int) -> None:
        if self._enough.is_set() or self._stopping.is_set():
            raise concurrent.futures.CancelledError
        self._emit("news", f"PySCF's answers for validation: {done} of {total}")

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
    """Turns what a training tells into its trainer's events."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def compiling(self, what: str) -> None:
        self._trainer._emit("compiling", f"compiling the {what}")

    def compiled(self, name: str, executable: jax.stages.Compiled, seconds: float) -> None:
        self._trainer.executables[name] = executable, seconds  # of molecules of several shapes, the last

    def refilled(self, done: int, total: int) -> None:
        if self._trainer._stopping.is_set():
            raise concurrent.futures.CancelledError
        self._trainer._emit("news", f"earlier geometries made again: {done} of {total}")

    def drew(self, batch: Sequence[Drawn]) -> None:
        self._trainer._batch = batch

    def is_over(self) -> bool:
        return self._trainer._stopping.is_set()


def _stand_back() -> None:
    """Let the training have the cores first.

    XLA's threads wait for each other: with one of PySCF's beside them that had the same right to two cores, a step
    of uracil took three times as long.
    """
    if sys.platform == "linux":  # where a priority is a thread's own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PYSCF_NICE)


def _memory_mib() -> float:
    """In use: on an accelerator its own memory, else this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats.get("bytes_in_use") or psutil.Process().memory_info().rss) / 2**20


def _stop_at_exit(trainer: weakref.ref) -> None:
    """End the thread before the interpreter goes: one caught inside XLA aborts the process."""
    if (alive := trainer()) is not None:
        alive.stop(timeout=60)


def _called(mol: Molecule) -> str:
    return mol.name or mol.formula


def _default_folder(mols: Sequence[Molecule]) -> pathlib.Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{len(mols)}-molecules" if len(mols) > 1 else mols[0].name or mols[0].formula
    name = name.replace(" ", "-").replace("/", "-")[:40]
    return pathlib.Path("runs") / f"{name}-{stamp}"
