"""A run on disk: a folder that says what was trained, how it went, and where to go on.

    config.json      molecules, method, model, training, seed, versions
    metrics.csv      a row per update, appended
    events.jsonl     what happened besides: checkpoints, skipped updates, compilations, notes
    checkpoints/     Orbax, written atomically, the last two kept
    validation.xyz   the geometries on which errors were measured
    model-card.md    what was trained, how well it does, and where it ends; for people
    not-finite.xyz   geometries at which training gave up, if it did

Nothing in it is a pickle.
"""

import contextlib
import csv
import dataclasses
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qptlab.errors import InputError
from qptlab.evaluation.reference import ERROR_COLUMNS, ErrorSummary
from qptlab.models import orbital_gnn
from qptlab.models.frame import standard_orientation
from qptlab.models.orbital_gnn import GNNPredictor
from qptlab.models.predictor import Predictor
from qptlab.models.qpt import QPT, QPTConfig
from qptlab.models.systems import System, make_systems
from qptlab.sampling.geometries import Sampling
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.loop import TrainConfig, TrainState, initial_state

COLUMNS = (
    "step", "seconds", "energy_ha", "loss", "grad_norm", "learning_rate", "skipped", "data_wait_s",
    "compile_s", "geometries", "memory_mib", "validation_mae_mev", "validation_max_mev",
    "no_network_mae_mev", "pyscf_stopped_mae_mev",
)
"""Of metrics.csv; the validation's are empty where none was done."""

LIBRARIES = ("jax", "jaxlib", "dm-haiku", "optax", "orbax-checkpoint", "numpy", "pyscf", "tblite", "ase")


class Run:
    """A run's folder. Make one with `Run.create`, reopen it with `Run.open`.

    Attributes:
      path: the folder.
      molecules: those trained on, at their reference geometries.
      method: the level of theory.
      model_config: the network.
      train_config: the training.
    """

    def __init__(self, path: pathlib.Path, config: dict):
        self.path = path
        try:
            self.molecules = tuple(map(_molecule_from, config["molecules"]))
            self.method = Method(**config["method"])
            self.model_config = QPTConfig(**config["model"])
            train = dict(config["train"])
            self.train_config = TrainConfig(**{**train, "sampling": Sampling(**train["sampling"])})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path / 'config.json'} is not a run's configuration ({error}); a folder made by "
                "`qptlab train` would do."
            ) from None

    @classmethod
    def create(
        cls,
        path: str | pathlib.Path,
        mols: Sequence[Molecule],
        method: Method,
        model: QPTConfig,
        train: TrainConfig,
    ) -> "Run":
        """A new folder; an existing one is used only if it is empty.

        Raises:
          InputError: if the folder holds anything, or cannot be made.
        """
        path = pathlib.Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "another run" if (path / "config.json").exists() else "other files"
            raise InputError(
                f"output folder {path} holds {what}; a new folder would do, or --resume to go on "
                "with the run in it."
            )
        config = _described(mols, method, model, train)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write_atomically(path / "config.json", json.dumps(config, indent=1))
        except OSError as error:
            raise InputError(
                f"output folder {path} cannot be written ({error.strerror}); another would do."
            ) from None
        run = cls(path, config)
        run._rewrite([])
        return run

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "Run":
        """An existing run.

        Raises:
          InputError: if the folder holds none.
        """
        path = pathlib.Path(path)
        try:
            config = json.loads((path / "config.json").read_text())
        except (OSError, ValueError):
            raise InputError(
                f"{path} holds no run (no readable config.json); a folder made by `qptlab train` would do."
            ) from None
        return cls(path, config)

    def extend(self, train: TrainConfig) -> None:
        """Set a new budget for a resumed run; what was drawn and learned so far stands."""
        config = json.loads((self.path / "config.json").read_text())
        config["train"] = dataclasses.asdict(train)
        self.train_config = train
        _write_atomically(self.path / "config.json", json.dumps(config, indent=1))

    def append(self, row: dict) -> None:
        """Add a row of metrics; columns that are missing stay empty."""
        with (self.path / "metrics.csv").open("a", newline="") as file:
            csv.writer(file).writerow(_cells(row))

    def metrics(self) -> list[dict[str, float]]:
        """The rows of the table so far, numbers parsed; a row cut short by a crash is left out."""
        try:
            with (self.path / "metrics.csv").open(newline="") as file:
                rows = list(csv.reader(file))
        except OSError:
            return []
        head = rows[0] if rows else []  # the file's own: earlier versions had fewer columns
        return [
            {name: float(cell) for name, cell in zip(head, row, strict=True) if cell}
            for row in rows[1:]
            if len(row) == len(head)
        ]

    def log(self, kind: str, text: str, step: int, seconds: float) -> None:
        """Add an event to those of the run: what happened, at which step and training time."""
        with (self.path / "events.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, "text": text, "step": step, "seconds": seconds}) + "\n")

    def events(self) -> list[dict]:
        """The events so far; a line cut short by a crash is left out."""
        try:
            lines = (self.path / "events.jsonl").read_text().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def save(self, state: TrainState) -> None:
        """Write a checkpoint; rows of metrics up to it are on disk before it is."""
        with (self.path / "metrics.csv").open("a") as file:
            os.fsync(file.fileno())
        with self._checkpoints() as manager:
            if state.step not in manager.all_steps():
                manager.save(state.step, args=_orbax().args.StandardSave(_on_host(state)))

    def write_card(self, state: TrainState, table: Sequence[tuple[str, ErrorSummary]], n: int) -> None:
        """Say in `model-card.md` what was trained on what, its errors beside the baselines', and its limits.

        Args:
          state: the training as it stands.
          table: names and errors, the model's first.
          n: number of validation geometries.
        """
        train, model = self.train_config, self.model_config
        formulas = sorted({f"{mol.name or mol.formula} ({mol.formula})" for mol in self.molecules})
        elements = sorted({symbol for mol in self.molecules for symbol in mol.symbols})
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        source = {"md": f"GFN2-xTB dynamics at {train.sampling.temperature:g} K", "file": train.sampling.path}
        titles = ["", *ERROR_COLUMNS.values()]
        lines = [
            f"# QPT for {', '.join(formulas[:5])}{f' and {len(formulas) - 5} more' if len(formulas) > 5 else ''}",
            "",
            f"- Method: {self.method.label}, grid level {self.method.grid_level}.",
            f"- Network: {model.preset}, {size / 1e6:.3g} M parameters, {model.precision}; {model.iterations} DFT "
            "iterations after it.",
            f"- Training: loss {train.loss}, {state.step} updates of {train.batch} geometries in {state.seconds:.0f}"
            f" s, seed {train.seed}; geometries from {source.get(train.sampling.sampler, train.sampling.sampler)}.",
            "",
            f"Errors on {n} geometries that were not trained on, against converged PySCF:",
            "",
            f"| {' | '.join(titles)} |",
            f"|{'---|' * len(titles)}",
            *(f"| {name} | {' | '.join(summary.cells())} |" for name, summary in table),
            "",
            "Limits: closed shells; geometries like those trained on; "
            + (f"molecules of {', '.join(elements)} like those trained on; others are predicted with a warning."
               if len(self.molecules) > 1 else "no other molecule."),
            "Look at a prediction's residual (hartree; zero at self-consistency) before you use it.",
            "",
        ]
        _write_atomically(self.path / "model-card.md", "\n".join(lines))

    def restore(self) -> TrainState | None:
        """The last checkpoint, or None where there is none."""
        model = self.model()[0]
        blank = initial_state(model, self.train_config)
        with self._checkpoints() as manager:
            step = manager.latest_step()
            if step is None:
                return None
            tree = manager.restore(step, args=_orbax().args.StandardRestore(_on_host(blank)))
        tree = jax.tree.map(jnp.asarray, tree) | {"step": int(tree["step"]), "seconds": float(tree["seconds"])}
        return TrainState(**tree)

    def predictor(self) -> Predictor:
        """The trained model.

        Raises:
          InputError: if there is no checkpoint yet.
        """
        state = self.restore()
        if state is None:
            raise InputError(f"{self.path} has no checkpoint yet; a run that trained for some seconds would do.")
        model, systems = self.model()
        return Predictor(model, state.average, systems)

    def resume(self) -> TrainState | None:
        """The last checkpoint, with the metrics and events of later, lost steps forgotten."""
        state = self.restore()
        last = state.step if state else 0
        self._rewrite(row for row in self.metrics() if row["step"] <= last)
        lines = (json.dumps(event) + "\n" for event in self.events() if event["step"] <= last)
        _write_atomically(self.path / "events.jsonl", "".join(lines))
        return state

    def model(self) -> tuple[QPT, list[System]]:
        """The model of this run, without parameters, and its molecules made ready."""
        systems, kinds = make_systems(self.molecules, self.method, self.model_config.guess)
        return QPT(self.model_config, self.method.xc, kinds), systems

    def _rewrite(self, rows: Iterable[dict]) -> None:
        table = io.StringIO(newline="")
        csv.writer(table).writerows([COLUMNS, *map(_cells, rows)])
        _write_atomically(self.path / "metrics.csv", table.getvalue())

    def _checkpoints(self):
        orbax = _orbax()
        # Each process for itself: only the first writes.
        alone = orbax.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process-{jax.process_index()}",
        )
        options = orbax.CheckpointManagerOptions(
            max_to_keep=2, create=False, enable_async_checkpointing=False, multiprocessing_options=alone
        )
        folder = (self.path / "checkpoints").absolute()
        folder.mkdir(exist_ok=True)
        return orbax.CheckpointManager(folder, options=options)


class FollowedRun(Run):
    """A run as processes other than the first have it: they read its checkpoints, and write nothing."""

    @classmethod
    def create(cls, path, mols, method, model, train) -> "FollowedRun":
        """The run that the first process makes."""
        return cls(pathlib.Path(path), _described(mols, method, model, train))

    def extend(self, train: TrainConfig) -> None:
        """Set a new budget."""
        self.train_config = train

    def resume(self) -> TrainState | None:
        """The last checkpoint."""
        return self.restore()

    def append(self, row: dict) -> None:
        """Nothing: the first process writes."""

    def log(self, kind: str, text: str, step: int, seconds: float) -> None:
        """Nothing."""

    def save(self, state: TrainState) -> None:
        """Nothing."""

    def write_card(self, state: TrainState, table: Sequence[tuple[str, ErrorSummary]], n: int) -> None:
        """Nothing."""


def find_runs(folder: str | pathlib.Path = "runs") -> list[pathlib.Path]:
    """The runs below a folder, newest first; none where there is no such folder."""
    found = [path.parent for path in pathlib.Path(folder).glob("*/config.json")]
    return sorted(found, key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)


def load(path: str | pathlib.Path) -> Predictor | GNNPredictor:
    """A trained model, ready to predict: the QPT of a run's folder, or the OrbitalGNN of a file.

    Args:
      path: a folder made by `Trainer` or `qptlab train`, or a file made by `GNNPredictor.save` or `qptlab train-gnn`.

    Raises:
      InputError: if it holds neither, or no checkpoint yet.
    """
    return orbital_gnn.load(path) if pathlib.Path(path).is_file() else Run.open(path).predictor()


def _on_host(state: TrainState) -> dict:
    """What Orbax writes of one process of several, too: no arrays that lie on its devices."""
    return jax.tree.map(np.asarray, state._asdict())


def _described(mols, method, model, train) -> dict:
    """What `config.json` holds."""
    return {
        "molecules": [
            {
                "symbols": list(mol.symbols), "positions_bohr": mol.positions.tolist(),
                "charge": mol.charge, "name": mol.name,
            }
            for mol in map(standard_orientation, mols)  # so that nothing is left to the next machine's rounding
        ],
        "method": dataclasses.asdict(method),
        "model": dataclasses.asdict(model),
        "train": dataclasses.asdict(train),
        "versions": _versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _orbax():
    import orbax.checkpoint  # takes a second to import, and most uses of the package never need it

    return orbax.checkpoint


def _cells(row: dict) -> list[str]:
    """Every digit of every number, so that what is read back is what was written."""
    numbers = [row.get(name) for name in COLUMNS]
    return ["" if x is None else repr(int(x) if float(x).is_integer() else float(x)) for x in numbers]


def _molecule_from(record: dict) -> Molecule:
    return Molecule(
        tuple(record["symbols"]), np.array(record["positions_bohr"]), record["charge"], record["name"],
        0,  # a QPT is of a closed shell
    )


def _write_atomically(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".new")
    with temporary.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    versions["python"] = platform.python_version()
    versions["qptlab"] = importlib.metadata.version("qptlab")
    # The exact code, also where it is edited between releases.
    code = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    versions["qptlab_source_sha256"] = code.hexdigest()
    return versions
