"""A run on disk: a folder that states what was trained and how, and holds what is needed to continue.

    config.json      kind of model, molecules or labels, method, network, training, seed, budgets, versions, machine
    metrics.csv      one row per update, appended
    events.jsonl     other events: checkpoints, skipped updates, compilations, notes
    checkpoints/     Orbax, written atomically, each with checksums.json; the last two kept, and the parameters of a
                     model to start from
    validation.xyz   geometries on which errors were measured
    model-card.md    what was trained, its errors and limits; for people
    not-finite.xyz   geometries at which training failed, if it did
    labels.xyz       labels that were learned from, and
    statistics.json  statistics that were fitted to them; of networks that learn from labels
    writer.json      process that is training, while there is one; it holds the lock on `.lock`

Opening a run reads only. Whoever trains it locks the folder first. Nothing in it is a pickle, and nothing in it is
executed. Damage is noticed by checksums: a damaged checkpoint is passed over for the one before.
"""

import collections
import contextlib
import csv
import dataclasses
import datetime
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import platform
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from qptlab import files
from qptlab.errors import InputError, shown
from qptlab.evaluation.errors import ErrorSummary, error_table
from qptlab.models.contract import Model, config_class
from qptlab.models.loading import PRETRAINED, load_file, pretrained_models
from qptlab.models.networks import CorrectionConfig
from qptlab.runtime.versions import processor, versions
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training import checksums
from qptlab.training.config import TaskWeights, TrainConfig
from qptlab.training.loop import Objective, TrainState, blank_state
from qptlab.training.objectives import model_config, objective_from
from qptlab.training.stream import replay_bytes

COLUMNS = (
    "step", "seconds", "energy_ha", "loss", "grad_norm", "learning_rate", "skipped", "data_wait_s",
    "compile_s", "geometries", "memory_mib", "validation_mae_mev", "validation_max_mev",
    "no_network_mae_mev", "pyscf_stopped_mae_mev",
)
"""Columns of metrics.csv; those of the validation are empty in rows without one."""

SUMMED, VALIDATED = {"data_wait_s", "compile_s"}, set(COLUMNS[-4:])
"""Columns that are added, and columns of the validation, where one row stands for several steps."""

MAX_ROWS = 20_000
"""Largest number of rows of metrics that are held; screens have fewer points."""

MAX_EVENTS = 100_000
"""Largest number of events that are held."""

FOREVER = 10**12
"""Period of the checkpoints that are kept: only step 0, the parameters that a training starts from, is one."""

LOCK_FILE, WRITER_FILE = ".lock", "writer.json"

TABLES = ("metrics.csv", "events.jsonl")

SCHEMA = 2
"""Version of what a run folder holds. Folders of schema 1, of version 0.1.0, have no checksums."""

_UNFINISHED = ".new"
"""End of the name of a file that is being written."""

_UMASK = os.umask(0)
os.umask(_UMASK)

LIBRARIES = (
    "jax", "jaxlib", "dm-haiku", "optax", "orbax-checkpoint", "numpy", "pyscf", "pyscf-dispersion", "tblite", "ase",
)


class Run:
    """A run's folder. Create one with `Run.create`, open an existing one with `Run.open`.

    Attributes:
      path: the folder.
      record: content of `config.json`.
      kind: kind of the model.
      model_config: settings of the network.
      train_config: settings of the training.
      damage: what `restore` found damaged, for people; empty if nothing is.
    """

    damage = ""

    def __init__(self, path: pathlib.Path, record: dict, objective: Objective | None = None):
        self.path, self.record = path, record
        self._lock: filelock.BaseFileLock | None = None
        self._saving = threading.Lock()
        if objective is not None:
            self.objective = objective
        with self._checking():
            self.kind = str(record["kind"])
            self.model_config = model_config(record)
            self.train_config = TrainConfig.from_record(record["train"])
            _check_complete(record["model"], type(self.model_config))
            _check_complete(record["train"], TrainConfig)
            _check_complete(record["train"]["tasks"], TaskWeights)
            if "method" in record:
                _check_complete(record["method"], Method)

    @functools.cached_property
    def objective(self) -> Objective:
        """Network and data of the training.

        Raises:
          InputError: if `config.json` holds a setting that cannot be used.
        """
        with self._checking():
            return objective_from(self.record, self._read)

    @property
    def molecules(self) -> tuple[Molecule, ...]:
        """Molecules that the model is trained on, at their reference geometries."""
        return self.objective.molecules

    @property
    def method(self) -> Method | None:
        """Level of theory; None for a model that learns from labels."""
        return self.objective.method

    @contextlib.contextmanager
    def _checking(self):
        try:
            yield
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"Expected the configuration of a run in {self.path / 'config.json'}, got something else "
                f"({shown(str(error))}); use a folder that `qptlab train` created."
            ) from None

    @classmethod
    def create(cls, path: str | pathlib.Path, objective: Objective, train: TrainConfig) -> "Run":
        """Create a folder; an existing one is used only if it is empty.

        Raises:
          InputError: if the folder holds anything, or cannot be created.
        """
        path = pathlib.Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            content = "another run" if (path / "config.json").exists() else "other files"
            raise InputError(
                f"Expected a new or empty output folder, got {path}, which holds {content}; use a new one, or "
                "--resume to continue the run in it."
            )
        record = _record(objective, train)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, record, objective)
            run._write_objective()
            _write_atomically(path / "config.json", checksums.sealed(record))
        except OSError as error:
            raise InputError(
                f"Expected an output folder that can be written, got {path} ({error.strerror}); use a different one."
            ) from None
        run._rewrite([])
        return run

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "Run":
        """Open an existing run.

        Raises:
          InputError: if the folder holds none.
        """
        path = pathlib.Path(path)
        try:
            text = files.text(path / "config.json", "a run's config.json", files.MAX_RECORD_BYTES)
        except InputError:
            text = ""
        try:
            record = _record_from(text)
        except checksums.DamageError:
            raise InputError(
                f"Expected {path / 'config.json'} as it was written, got a changed file; restore it from a copy."
            ) from None
        except InputError:
            raise
        except (ValueError, RecursionError):
            raise InputError(
                f"Expected a run folder, got {path}, which has no readable config.json; use a folder that "
                "`qptlab train` created."
            ) from None
        return cls(path, record)

    def lock(self) -> str:
        """Become the only writer of the folder, until `unlock`; the system unlocks it when the process ends.

        Returns:
          A sentence about an earlier writer that ended without unlocking; empty if there is none.

        Raises:
          InputError: if another process, or another trainer of this one, writes the folder, or it cannot be written.
        """
        if self._lock is not None:
            return ""
        path = self.path / LOCK_FILE
        if path.is_symlink():
            raise InputError(f"Expected a lock in the run folder, got a link, {path}; remove it.")
        lock = filelock.FileLock(path, thread_local=False)  # another thread unlocks than locks
        try:
            lock.acquire(timeout=0)
            earlier = self._writer()
            writer = {"host": platform.node(), "process": os.getpid(), "since": _now()}
            _write_atomically(self.path / WRITER_FILE, json.dumps(writer))
        except filelock.Timeout:
            raise InputError(
                f"Expected a run that nobody is training, got {self.path}, which {self._writer() or 'a process'} is "
                "training; stop that training first, or train in a copy of the folder."
            ) from None
        except OSError as error:
            lock.release()
            raise InputError(
                f"Expected a run folder that can be written, got {self.path} ({error.strerror}); use a copy of it."
            ) from None
        self._lock = lock
        return f"an earlier training ended without a word: {earlier}" if earlier else ""

    def unlock(self) -> None:
        """Let others write the folder."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.path / WRITER_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder inside the block, unless it is locked already.

        Raises:
          InputError: if `lock` raises it.
        """
        is_mine = self._lock is not None
        self.lock()
        try:
            yield
        finally:
            if not is_mine:
                self.unlock()

    def _writer(self) -> str:
        """Return who locked the folder, for people; empty if nobody did."""
        try:
            record = files.parsed(self._read(WRITER_FILE) or "")
            return f"process {int(record['process'])} on {shown(record['host'])} since {shown(record['since'])}"
        except (ValueError, TypeError, KeyError):
            return ""

    def begin(self, last: int, train: TrainConfig) -> str:
        """Lock the folder to continue from step `last`; metrics and events of later, lost updates are removed.

        Args:
          last: step of the checkpoint that was restored; 0 for none.
          train: settings with the new budget.

        Returns:
          As `lock`.

        Raises:
          InputError: if `lock` raises it, or the run has a newer checkpoint.
        """
        said = self.lock()
        try:
            self._cut_off(last, train)
        except OSError as error:
            self.unlock()
            raise InputError(
                f"Expected a run folder that can be written, got {self.path} ({error.strerror}); make room, or use a "
                "copy of it."
            ) from None
        except InputError:
            self.unlock()
            raise
        return said

    def _cut_off(self, last: int, train: TrainConfig) -> None:
        """Remove what is later than the step `last`, and what killed writers left, and keep the new budget."""
        with contextlib.suppress(OSError):
            for path in (*self.path.glob(f".*{_UNFINISHED}"), *self.path.glob(f"*/.*{_UNFINISHED}")):
                path.unlink()  # left by a writer that was killed
        newest = next((step for step, problem, _ in self._checked_steps() if not problem), 0)
        if newest != last:
            raise InputError(
                f"Expected a run at step {last}, as it was opened, got {self.path}, which has a checkpoint of step "
                f"{newest}; open it again."
            )
        self._rewrite(row for row in self._rows() if row["step"] <= last)
        lines = (json.dumps(event) + "\n" for event in self.events() if event["step"] <= last)
        _write_atomically(self.path / "events.jsonl", "".join(lines))
        self.record["train"] = dataclasses.asdict(train)
        budgets = [budget for budget in self.record.get("budgets", []) if budget["step"] < last]
        self.record["budgets"] = [*budgets, {"step": last, "minutes": train.minutes, "steps": train.steps}]
        self.train_config = train
        _write_atomically(self.path / "config.json", checksums.sealed(self.record))
        with self._checkpoints() as manager:
            for step in manager.all_steps():
                if step > last:
                    manager.delete(step)

    def append(self, row: dict) -> None:
        """Add a row of metrics; missing columns stay empty.

        Raises:
          OSError: if it cannot be written; nothing of it is in the table then.
        """
        self._append("metrics.csv", ",".join(_cells(row)) + "\r\n")

    def metrics(self, most: int | None = MAX_ROWS) -> list[dict[str, float]]:
        """Return the rows of the table so far, numbers parsed; a row that is cut short or damaged is left out.

        Args:
          most: largest number of rows. A longer table is thinned out: a row is the last of several, with the sums of
            their times and the last validation among them. None for all rows.
        """
        if most is None:
            return list(self._rows())
        count = sum(1 for _ in self._lines("metrics.csv")) - 1
        return list(self._rows(max(-(-count // most), 1)))

    def _rows(self, stride: int = 1) -> Iterator[dict[str, float]]:
        """Yield the rows of the table, each for several steps."""
        lines = self._lines("metrics.csv")
        names = next(lines, "").rstrip().split(",")  # the file's own: earlier versions had fewer columns
        while group := list(itertools.islice(lines, stride)):
            rows = [cells for line in group if len(cells := line.rstrip().split(",")) == len(names)]
            with contextlib.suppress(ValueError):  # a cell that is no number
                yield from _joined(names, rows)

    def starts(self) -> list[int]:
        """Return the numbers of updates after which the training was begun or continued; none for old folders."""
        with self._checking():
            return [int(budget["step"]) for budget in self.record.get("budgets", [])]

    def config_at(self, step: int) -> TrainConfig | None:
        """Return the settings of an update, with the budget of that time; None if the folder does not state it."""
        with self._checking():
            budgets = [budget for budget in self.record.get("budgets", []) if budget["step"] < step]
            if not budgets:
                return None
            return dataclasses.replace(
                self.train_config, minutes=budgets[-1]["minutes"], steps=budgets[-1]["steps"]
            )

    def log(self, kind: str, text: str, step: int, seconds: float) -> None:
        """Add an event to those of the run, with its step and training time.

        Raises:
          OSError: if it cannot be written.
        """
        event = {"kind": kind, "text": text, "step": step, "seconds": seconds}
        self._append("events.jsonl", json.dumps(event) + "\n")

    def events(self) -> list[dict]:
        """Return the events so far, the last `MAX_EVENTS`; a line cut short by a crash is left out."""
        events = collections.deque(maxlen=MAX_EVENTS)
        for line in self._lines("events.jsonl"):
            with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
                event = files.parsed(line)
                event |= {"step": int(event["step"]), "seconds": float(event["seconds"])}
                event |= {"kind": str(event["kind"]), "text": str(event["text"])}
                events.append(event)
        return list(events)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint; rows of metrics up to it are on disk before it is.

        Raises:
          OSError: if it cannot be written; earlier checkpoints are complete then.
        """
        self._write_objective()
        with self._to_append("metrics.csv") as descriptor:
            os.fsync(descriptor)
        with self._saving, self._checkpoints() as manager:
            folder = self._checkpoint_folder / str(state.step)
            if (folder / checksums.CHECKSUMS_FILE).exists():
                return
            if state.step in manager.all_steps():  # without checksums: not complete
                manager.delete(state.step)
            host = _on_host(state)
            _check_room(self._checkpoint_folder, sum(leaf.nbytes for leaf in jax.tree.leaves(host)))
            try:
                manager.save(state.step, args=_orbax().args.StandardSave(host))
            except Exception as error:  # Orbax has many, and passes those of TensorStore on
                raise OSError(errno.EIO, f"Orbax: {shown(str(error))}") from error
            beside = [self.path / name for name in (*self.objective.files(), *TABLES)]
            _write_atomically(folder / checksums.CHECKSUMS_FILE, checksums.of_checkpoint(folder, beside))

    def write_card(self, state: TrainState, table: Sequence[tuple[str, ErrorSummary]], n: int) -> None:
        """Write `model-card.md`: what was trained on what, its errors and those of the baselines, and its limits.

        Args:
          state: state of the training.
          table: names and errors, those of the model first.
          n: number of validation geometries.
        """
        train = self.train_config
        title, lines, limits = self.objective.card(train)
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        text = [
            f"# {title}",
            "",
            *lines,
            f"- Size: {size / 1e6:.3g} M parameters.",
            f"- Training: loss {train.loss if self.method else 'labels'}, {state.step} updates of {train.batch} "
            f"geometries in {state.seconds:.0f} s, seed {train.seed}.",
            "",
            f"Errors on {n} geometries that were not trained on:",
            "",
            error_table(table),
            "",
            limits,
            "",
        ]
        _write_atomically(self.path / "model-card.md", "\n".join(text))

    def write(self, name: str, text: str) -> pathlib.Path:
        """Write a text file into the folder, and return its path; an existing file or link is replaced."""
        path = self.path / name
        _write_atomically(path, text)
        return path

    def write_geometries(self, name: str, mols: Iterable[Molecule]) -> pathlib.Path:
        """Write geometries as XYZ into the folder, and return the path."""
        return self.write(name, "".join(mol.to_xyz() for mol in mols))

    def restore(self, step: int | None = None) -> TrainState | None:
        """Return the state of the last checkpoint that is not damaged; None if there is none yet.

        Args:
          step: step of the checkpoint to use instead of the last one.

        Raises:
          InputError: if all of these checkpoints are damaged.

        Warns:
          UserWarning: if the last checkpoint or a table is damaged; `damage` has the same sentence.
        """
        problems: list[str] = []
        for number, problem, beside in self._checked_steps(step):
            if not problem:
                try:
                    state = self._restored(number)
                except checksums.DamageError as error:
                    problem = str(error)
                else:
                    if problems:
                        problems.append(f"that of step {number} is used")
                    problems += [
                        f"{name} is damaged, so its curve may be wrong"
                        for name in TABLES if not checksums.begins_as(self.path / name, beside.get(name))
                    ]
                    if problems:
                        self.damage = f"In {self.path}, " + "; ".join(problems) + "."
                        warnings.warn(self.damage, stacklevel=2)
                    return state
            problems.append(f"the checkpoint of step {number} is damaged ({problem})")
        if problems:
            raise InputError(
                f"Expected a checkpoint as it was written, got {self.path}, where {'; '.join(problems)}; restore the "
                "folder from a copy."
            )
        return None

    def _restored(self, step: int) -> TrainState:
        """Return the state of a checkpoint.

        Raises:
          DamageError: if Orbax cannot read it, or its parameters are not those of the network.
        """
        blank = _on_host(blank_state(self.objective, self.train_config))
        folder = self._checkpoint_folder / str(step) / "default"  # Orbax's name for a checkpoint of one part
        try:
            with _orbax().StandardCheckpointer(multiprocessing_options=_one_process()) as checkpointer:
                tree = checkpointer.restore(folder, blank)
        except Exception as error:  # noqa: BLE001  Orbax raises many kinds, of several hundred lines
            raise checksums.DamageError(f"Orbax cannot read it: {shown(str(error))}") from None
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((tree["params"], tree["average"]))):
            raise checksums.DamageError("its parameters are not finite")
        tree = jax.tree.map(jnp.asarray, tree) | {"step": int(tree["step"]), "seconds": float(tree["seconds"])}
        return TrainState(**tree)

    def _checked_steps(
        self, only: int | None = None
    ) -> Iterator[tuple[int, str, dict[str, checksums.Fingerprint | None]]]:
        """Yield the steps of the checkpoints, the last one first, and what is wrong with each; empty if nothing is.

        The third item has the checksums of the files beside the checkpoint, of which the tables are not compared.

        Args:
          only: step of the only checkpoint that is looked at; None for all.

        Raises:
          InputError: if a file that belongs to all of them, such as the labels, is damaged.
        """
        folder = self._checkpoint_folder
        names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        for step in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
            if only not in (None, step):
                continue
            problem, beside = "", {}
            try:
                beside = self._beside(step)
                for name in set(beside) - set(TABLES):
                    if not checksums.begins_as(self.path / name, beside[name]):
                        raise InputError(
                            f"Expected {name} of {self.path} as it was written, got a changed file; restore it from "
                            "a copy."
                        )
            except checksums.DamageError as error:
                problem = str(error)
            yield step, problem, beside

    def _beside(self, step: int) -> dict[str, checksums.Fingerprint | None]:
        """Return the checksums of the files beside a checkpoint, whose own files are checked; none in schema 1.

        Raises:
          DamageError: if the checkpoint is damaged.
        """
        folder = self._checkpoint_folder / str(step)
        if self.record["schema"] == 1 and not (folder / checksums.CHECKSUMS_FILE).exists():
            return {}
        return checksums.check(folder)

    def predictor(self) -> Model:
        """Return the trained model.

        Raises:
          InputError: if there is no checkpoint yet.
        """
        state = self.restore()
        if state is None:
            raise InputError(
                f"Expected a run with a checkpoint, got {self.path} without one; train it for some seconds first."
            )
        return self.objective.predictor(state.average)

    def _read(self, name: str) -> str | None:
        path = self.path / name
        return files.text(path, f"{name} of a run") if os.path.lexists(path) else None

    def _lines(self, name: str) -> Iterator[str]:
        path = self.path / name
        return files.lines(path, f"{name} of a run", strict=False) if os.path.lexists(path) else iter(())

    def _append(self, name: str, text: str) -> None:
        """Append to a file of the folder, wholly or not at all."""
        with self._to_append(name) as descriptor:
            size, data = os.fstat(descriptor).st_size, text.encode()
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
            except OSError:
                os.ftruncate(descriptor, size)
                raise

    @contextlib.contextmanager
    def _to_append(self, name: str) -> Iterator[int]:
        """Open a file of the folder to append to it, and yield its descriptor.

        A link is refused, because it may lead out of the folder; so is a folder that has lost its configuration.
        """
        (self.path / "config.json").stat()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.path / name, flags, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _write_objective(self) -> None:
        for name, text in self.objective.files().items():
            if not (self.path / name).exists():
                _write_atomically(self.path / name, text)

    def _rewrite(self, rows: Iterable[dict]) -> None:
        table = io.StringIO(newline="")
        csv.writer(table).writerows([COLUMNS, *map(_cells, rows)])
        _write_atomically(self.path / "metrics.csv", table.getvalue())

    @property
    def _checkpoint_folder(self) -> pathlib.Path:
        folder = (self.path / "checkpoints").absolute()
        if folder.is_symlink():
            raise InputError(f"Expected checkpoints in the run folder, got a link, {folder}; copy the whole folder.")
        return folder

    def _checkpoints(self):
        """Return Orbax's manager, which writes checkpoints and removes what a killed writer left."""
        orbax, folder = _orbax(), self._checkpoint_folder
        options = orbax.CheckpointManagerOptions(
            max_to_keep=2, keep_period=FOREVER, create=False, enable_async_checkpointing=False,
            cleanup_tmp_directories=True, multiprocessing_options=_one_process(),
        )
        folder.mkdir(exist_ok=True)
        return orbax.CheckpointManager(folder, options=options)


class FollowedRun(Run):
    """Run of the processes other than the first: they read its checkpoints, and write only `not-finite*.xyz`."""

    @classmethod
    def create(cls, path: str | pathlib.Path, objective: Objective, train: TrainConfig) -> "FollowedRun":
        """Return the run that the first process creates."""
        return cls(pathlib.Path(path), _record(objective, train), objective)

    def lock(self) -> str:
        """Do nothing: the first process locks the folder."""
        return ""

    def begin(self, last: int, train: TrainConfig) -> str:
        """Set a new budget."""
        self.train_config = train
        return ""

    def append(self, row: dict) -> None:
        """Do nothing: the first process writes."""

    def log(self, kind: str, text: str, step: int, seconds: float) -> None:
        """Do nothing."""

    def save(self, state: TrainState) -> None:
        """Do nothing."""

    def write_card(self, state: TrainState, table: Sequence[tuple[str, ErrorSummary]], n: int) -> None:
        """Do nothing."""


def find_runs(folder: str | pathlib.Path = "runs") -> list[pathlib.Path]:
    """Return the runs in a folder, newest first; none if there is no such folder."""
    runs = [path.parent for path in pathlib.Path(folder).glob("*/config.json")]
    return sorted(runs, key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)


def load(path: str | pathlib.Path) -> Model:
    """Return a trained model, ready to predict.

    Args:
      path: run folder, created by `Trainer` or `qptlab train`; a file that `model.save` wrote; or one of
        `pretrained_models()`, the names of models that come with qptlab. A folder or file of such a name comes first.

    Raises:
      InputError: if it holds no model, no checkpoint yet, or a model of a kind that is not registered.
    """
    path = pathlib.Path(path)
    if not os.path.lexists(path):
        if str(path) not in pretrained_models():
            raise InputError(
                f"Expected a run's folder, a model file, or one of the models {', '.join(pretrained_models())}, got "
                f"{shown(str(path))}; check the spelling."
            )
        path = PRETRAINED / f"{path}.h5"
    return load_file(path) if path.is_file() else Run.open(path).predictor()


def _on_host(state: TrainState) -> dict:
    """Return arrays that Orbax can write for one process of several, too: none that lie on its devices."""
    return jax.tree.map(np.asarray, state._asdict())


def _record(objective: Objective, train: TrainConfig) -> dict:
    """Return the content of `config.json`."""
    return {
        "schema": SCHEMA,
        **objective.record(),
        "train": dataclasses.asdict(train),
        **environment(),
        "created": _now(),
    }


def _record_from(text: str) -> dict:
    """Return the content of a `config.json`; what folders of schema 1 do not state is added.

    Raises:
      InputError: if it was written by a newer version.
      DamageError: if it is not as it was written.
      ValueError: if it is not a JSON object.
    """
    record = checksums.unsealed(text, is_sealed=False)
    schema = record.setdefault("schema", 1)
    if schema == 1:
        return _completed(record)
    if schema != SCHEMA:
        raise InputError(
            f"Expected a run folder of schema {SCHEMA} or earlier, got {shown(schema)}; use a newer version of "
            "qptlab."
        )
    return checksums.unsealed(text)


def _check_complete(settings: dict, cls: type) -> None:
    """Raise a `KeyError` for a field without a setting: it must not become the default."""
    for field in dataclasses.fields(cls):
        if field.name not in settings:
            raise KeyError(f"{field.name} is missing")


def _completed(record: dict) -> dict:
    """Return a record of schema 1 with what it does not state.

    Version 0.1.0 had one kind, no vocabulary of tokens, no tasks, no dispersion, the paper's iterations, and trained
    on the grid of the method.
    """
    completed = {"kind": "qpt", "kinds": [], "origin": "", **record}
    is_correction = issubclass(config_class(completed["kind"]), CorrectionConfig)
    added = {
        "train": {"grid_level": None, "tasks": dataclasses.asdict(TaskWeights())},
        "method": {"dispersion": None},
        "model": {"scheme": "mixing"} if is_correction else {},
    }
    parts = {name: values | record[name] for name, values in added.items() if isinstance(record.get(name), dict)}
    return completed | parts


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _orbax():
    import orbax.checkpoint  # takes a second to import, and most uses of the package never need it

    return orbax.checkpoint


def _joined(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[dict[str, float]]:
    """Yield one row of the table of metrics for several; none for none."""
    if not rows:
        return
    row = {name: float(cell) for name, cell in zip(names, rows[-1], strict=True) if cell}
    if len(rows) > 1:
        columns = {name: index for index, name in enumerate(names)}
        for name in SUMMED & columns.keys():
            row[name] = sum(float(cells[columns[name]] or 0) for cells in rows)
        validation = columns.get("validation_mae_mev", -1)
        last = next((cells for cells in reversed(rows) if cells[validation]), rows[-1])
        row |= {name: float(last[columns[name]]) for name in VALIDATED & columns.keys() if last[columns[name]]}
    if {"step", "seconds"} <= row.keys():
        yield row


def _check_room(folder: pathlib.Path, size: int) -> None:
    """Raise an `OSError` if a folder has no room for so many bytes; Orbax would leave threads that report it."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=_UNFINISHED) as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _one_process():
    """Return options by which each process acts for itself: only the first writes."""
    index = jax.process_index()
    return _orbax().options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )


def _cells(row: dict) -> list[str]:
    """Return all digits of every number, so that the same number is read back."""
    numbers = [row.get(name) for name in COLUMNS]
    return ["" if x is None else repr(int(x) if float(x).is_integer() else float(x)) for x in numbers]


def _write_atomically(path: pathlib.Path, text: str) -> None:
    # A new file of a random name: a stranger's folder may hold links that lead out of it.
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED, newline="", encoding="utf-8", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_UMASK)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def environment() -> dict[str, dict[str, str]]:
    """Return what the digits of a training depend on apart from its settings: versions, and the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return {
        "versions": _versions(),
        "machine": {
            "processor": processor(), "cores": str(cores), "devices": ", ".join(devices),
            "replay_bytes": str(replay_bytes()), "xla_flags": os.environ.get("XLA_FLAGS", ""),
        },
    }


def _versions() -> dict[str, str]:
    found = versions((*LIBRARIES, "qptlab")) | {"python": platform.python_version()}
    # The exact code, also where it is edited between releases.
    code = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return found | {"qptlab_source_sha256": code.hexdigest()}
