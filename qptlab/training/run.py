"""A run on disk: a folder that states what was trained and how, and holds what is needed to continue.

    config.json      kind of model, molecules or labels, method, network, training, seed, versions
    metrics.csv      one row per update, appended
    events.jsonl     other events: checkpoints, skipped updates, compilations, notes
    checkpoints/     Orbax, written atomically, the last two kept
    validation.xyz   geometries on which errors were measured
    model-card.md    what was trained, its errors and limits; for people
    not-finite.xyz   geometries at which training failed, if it did
    labels.xyz       labels that were learned from, and
    statistics.json  statistics that were fitted to them; of networks that learn from labels
    writer.json      process that is training, while there is one; it holds the lock on `.lock`

Opening a run reads only. Whoever trains it locks the folder first. Nothing in it is a pickle, and nothing in it is
executed.
"""

import collections
import contextlib
import csv
import dataclasses
import datetime
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
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from qptlab import files
from qptlab.errors import InputError, shown
from qptlab.evaluation.errors import ErrorSummary, error_table
from qptlab.models.contract import Model
from qptlab.models.loading import PRETRAINED, load_file, pretrained_models
from qptlab.runtime.versions import versions
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig
from qptlab.training.loop import Objective, TrainState, blank_state
from qptlab.training.objectives import model_config, objective_from

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

EVENT = {"kind": str, "text": str, "step": int, "seconds": int | float}
"""Entries of an event, and their types."""

LOCK_FILE, WRITER_FILE = ".lock", "writer.json"

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
    """

    def __init__(self, path: pathlib.Path, record: dict, objective: Objective | None = None):
        self.path, self.record = path, record
        self._lock: filelock.BaseFileLock | None = None
        self._saving = threading.Lock()
        if objective is not None:
            self.objective = objective
        with self._checking():
            self.kind = str(record.get("kind", "qpt"))
            self.model_config = model_config(record)
            self.train_config = TrainConfig.from_record(record["train"])

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
            _write_atomically(path / "config.json", json.dumps(record, indent=1))
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
            record = files.parsed(files.text(path / "config.json", "a run's config.json"))
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InputError(
                f"Expected a run folder, got {path}, which has no readable config.json; use a folder that "
                "`qptlab train` created."
            )
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
        newest = self._newest_step() or 0
        if newest != last:
            self.unlock()
            raise InputError(
                f"Expected a run at step {last}, as it was opened, got {self.path}, which has a checkpoint of step "
                f"{newest}; open it again."
            )
        self._rewrite(row for row in self._rows() if row["step"] <= last)
        lines = (json.dumps(event) + "\n" for event in self.events() if event["step"] <= last)
        _write_atomically(self.path / "events.jsonl", "".join(lines))
        self.record["train"] = dataclasses.asdict(train)
        self.train_config = train
        _write_atomically(self.path / "config.json", json.dumps(self.record, indent=1))
        return said

    def append(self, row: dict) -> None:
        """Add a row of metrics; missing columns stay empty."""
        with _open_to_append(self.path / "metrics.csv") as file:
            csv.writer(file).writerow(_cells(row))

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows of the table so far, numbers parsed; a row cut short by a crash is left out.

        A table of more than `MAX_ROWS` rows is thinned out: a row is the last of several, with the sums of their
        times and the last validation among them.
        """
        count = sum(1 for _ in self._lines("metrics.csv")) - 1
        return list(self._rows(max(-(-count // MAX_ROWS), 1)))

    def _rows(self, stride: int = 1) -> Iterator[dict[str, float]]:
        """Yield the rows of the table, each for several steps."""
        lines = self._lines("metrics.csv")
        names = next(lines, "").rstrip().split(",")  # the file's own: earlier versions had fewer columns
        while "step" in names and (group := list(itertools.islice(lines, stride))):
            rows = [cells for line in group if len(cells := line.rstrip().split(",")) == len(names)]
            with contextlib.suppress(ValueError):  # a cell that is no number
                yield from _joined(names, rows)

    def log(self, kind: str, text: str, step: int, seconds: float) -> None:
        """Add an event to those of the run, with its step and training time."""
        with _open_to_append(self.path / "events.jsonl") as file:
            file.write(json.dumps({"kind": kind, "text": text, "step": step, "seconds": seconds}) + "\n")

    def events(self) -> list[dict]:
        """Return the events so far, the last `MAX_EVENTS`; a line cut short by a crash is left out."""
        events = collections.deque(maxlen=MAX_EVENTS)
        for line in self._lines("events.jsonl"):
            with contextlib.suppress(ValueError):
                event = files.parsed(line)
                if isinstance(event, dict) and all(isinstance(event.get(name), kind) for name, kind in EVENT.items()):
                    events.append(event)
        return list(events)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint; rows of metrics up to it are on disk before it is."""
        self._write_objective()
        with _open_to_append(self.path / "metrics.csv") as file:
            os.fsync(file.fileno())
        with self._saving, self._checkpoints() as manager:
            if state.step not in manager.all_steps():
                manager.save(state.step, args=_orbax().args.StandardSave(_on_host(state)))

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

    def restore(self) -> TrainState | None:
        """Return the state of the last checkpoint; None if there is none."""
        if not (self.path / "checkpoints").is_dir():
            return None
        with self._checkpoints(read_only=True) as manager:
            step = manager.latest_step()
            if step is None:
                return None
            blank = blank_state(self.objective, self.train_config)
            tree = manager.restore(step, args=_orbax().args.StandardRestore(_on_host(blank)))
        tree = jax.tree.map(jnp.asarray, tree) | {"step": int(tree["step"]), "seconds": float(tree["seconds"])}
        return TrainState(**tree)

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

    def _newest_step(self) -> int | None:
        if not (self.path / "checkpoints").is_dir():
            return None
        with self._checkpoints(read_only=True) as manager:
            return manager.latest_step()

    def _read(self, name: str) -> str | None:
        path = self.path / name
        return files.text(path, f"{name} of a run") if os.path.lexists(path) else None

    def _lines(self, name: str) -> Iterator[str]:
        path = self.path / name
        return files.lines(path, f"{name} of a run") if os.path.lexists(path) else iter(())

    def _write_objective(self) -> None:
        for name, text in self.objective.files().items():
            if not (self.path / name).exists():
                _write_atomically(self.path / name, text)

    def _rewrite(self, rows: Iterable[dict]) -> None:
        table = io.StringIO(newline="")
        csv.writer(table).writerows([COLUMNS, *map(_cells, rows)])
        _write_atomically(self.path / "metrics.csv", table.getvalue())

    def _checkpoints(self, *, read_only: bool = False):
        orbax = _orbax()
        # Each process acts for itself: only the first writes.
        multiprocessing = orbax.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process-{jax.process_index()}",
        )
        options = orbax.CheckpointManagerOptions(
            max_to_keep=2, create=False, enable_async_checkpointing=False, multiprocessing_options=multiprocessing,
            read_only=read_only,
        )
        folder = (self.path / "checkpoints").absolute()
        if folder.is_symlink():
            raise InputError(f"Expected checkpoints in the run folder, got a link, {folder}; copy the whole folder.")
        if not read_only:
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
        **objective.record(),
        "train": dataclasses.asdict(train),
        "versions": _versions(),
        "created": _now(),
    }


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
    yield row


def _cells(row: dict) -> list[str]:
    """Return all digits of every number, so that the same number is read back."""
    numbers = [row.get(name) for name in COLUMNS]
    return ["" if x is None else repr(int(x) if float(x).is_integer() else float(x)) for x in numbers]


def _write_atomically(path: pathlib.Path, text: str) -> None:
    # A new file of a random name: a stranger's folder may hold links that lead out of it.
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", newline="", encoding="utf-8", delete=False
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


def _open_to_append(path: pathlib.Path) -> IO[str]:
    """Open a file of the folder to append to it; a link is refused, because it may lead out of the folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    return os.fdopen(descriptor, "a", newline="", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = versions((*LIBRARIES, "qptlab")) | {"python": platform.python_version()}
    # The exact code, also where it is edited between releases.
    code = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return found | {"qptlab_source_sha256": code.hexdigest()}
