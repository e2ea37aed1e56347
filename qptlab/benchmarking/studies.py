"""Studies of training: short trainings in one run, compared on the same unseen geometries.

Each study answers one question. Every setting is trained for the same time with the same seeds. Its error on
geometries of an independent trajectory is compared with those of the same DFT iterations without a network, and of
PySCF's DIIS stopped after as many Fock builds. The time of a setting includes all that it needs, such as labels.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.resources
import itertools
import pathlib
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.evaluation.comparison import Evaluation, evaluate
from qptlab.evaluation.reference import TestSet
from qptlab.models.correction import CorrectionModel
from qptlab.models.equivariant import EquivariantConfig
from qptlab.models.networks import SCHEMES, CorrectionConfig
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.qpt import QPTConfig
from qptlab.models.systems import System, make_systems
from qptlab.runtime import cluster
from qptlab.sampling import Sampling, sample
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule, read_molecules
from qptlab.training.config import TrainConfig
from qptlab.training.label_free import LabelFree
from qptlab.training.loop import initial_state, train
from qptlab.units import significant

Row = dict[str, Any]

TEST_SEED = 20_240_204
TEST_GEOMETRIES = 12
TEST_MOLECULES = 4
"""Number of molecules that a study tests on, the first ones of those trained on."""
TEST_STRIDE = 40
"""Frames from one test geometry to the next. In 200 fs, a small molecule loses all memory of its positions."""

POINTS = 8
"""Number of measurements of the error in a training, at times that grow by equal factors."""


class Setting(NamedTuple):
    """Setting of a training that a study compares.

    Attributes:
      label: name in the table.
      model: network and DFT iterations.
      train: settings of the training; the study sets seed and minutes.
      count: number of molecules to train on, the first ones of the study; None for all.
    """

    label: str
    model: CorrectionConfig = EquivariantConfig()
    train: TrainConfig = TrainConfig()
    count: int | None = None


class Study(NamedTuple):
    """Study: a question, and the settings that are compared to answer it.

    Attributes:
      title: title of table and plot.
      settings: settings to compare.
      molecules: molecules to train and test on: built-in names or SMILES.
      unseen: groups of molecules that all settings are tested on, but none is trained on, by their title.
      geometries: number of test geometries of the molecules that are trained on.
    """

    title: str
    settings: list[Setting]
    molecules: tuple[str, ...] = ("water",)
    unseen: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    geometries: int = TEST_GEOMETRIES


def small_molecules() -> tuple[str, ...]:
    """Return a hundred SMILES for training on many molecules; the last four are for testing."""
    lines = importlib.resources.files("qptlab.benchmarking").joinpath("small-molecules.smi").read_text().splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


STUDIES: dict[str, Callable[[], Study]] = {
    "iterations": lambda: Study(
        "DFT iterations after the network",
        [
            Setting(f"n = {n}, {scheme}, {how}", EquivariantConfig(iterations=n, scheme=scheme),
                    TrainConfig(iterations=trained))
            for scheme in SCHEMES
            for n in (0, 1, 2, 3, 4, 8, 16)
            for how, trained in (("trained through them", None), ("trained without", 0))
            if n or trained is None
        ],
    ),
    "guess": lambda: Study(
        "Density of the first Fock matrix",
        [
            Setting(guess, EquivariantConfig(iterations=1, guess=guess))
            for guess in ("minao", "atomic-density", "atomic-potential", "core", "random")
        ],
    ),
    "size": lambda: Study(
        "Size of the network",
        [
            *(Setting(f"equivariant, {preset}", EquivariantConfig(preset)) for preset in ("small", "base", "large")),
            *(Setting(f"QPT in its frame, {preset}", QPTConfig(preset)) for preset in ("micro", "tiny", "small")),
        ],
    ),
    "molecules": lambda: Study(
        "Molecules trained on",
        [
            Setting(f"{title}, {count} molecules", config, count=count)
            for count in (1, 10, 96)
            for title, config in (("equivariant", EquivariantConfig()), ("QPT in its frame", QPTConfig("micro")))
        ],
        small_molecules()[:-4], {"Unseen molecules": small_molecules()[-4:]},
    ),
    "losses": lambda: Study(
        "Loss and source of the geometries",
        [
            Setting("energy, dynamics"),
            Setting("self-consistency, dynamics", train=TrainConfig(loss="self-consistency")),
            Setting("energy, normal modes", train=TrainConfig(sampling=Sampling("modes"))),
            Setting("energy, the model's own geometries", train=TrainConfig(sampling=Sampling("model"))),
            Setting("energy, displacements", train=TrainConfig(sampling=Sampling("perturb"))),
        ],
    ),
    "labels": lambda: Study(
        "Labels or loss",
        [
            Setting("no labels"),
            Setting("labels, each used 16 times", train=TrainConfig(loss="labels")),
            Setting("labels, each used 128 times", train=TrainConfig(loss="labels", reuse=128)),
        ],
    ),
}
"""Studies by the name that `qptlab bench NAME` takes."""


def study(name: str, molecules: Sequence[str] = ()) -> Study:
    """Return a study.

    Args:
      name: one of `STUDIES`.
      molecules: built-in names or SMILES; by default those of the study.

    Raises:
      InputError: if there is no such study, or there are too few molecules for it.
    """
    if name not in STUDIES:
        raise InputError(f"Expected a study ({', '.join(STUDIES)}), got {name!r}; use one of these.")
    selected = STUDIES[name]()
    if not molecules:
        return selected
    settings = [setting for setting in selected.settings if (setting.count or 0) <= len(molecules)]
    counts = sorted({setting.count for setting in selected.settings if setting.count})
    if counts and len(molecules) < counts[1]:
        raise InputError(
            f"Expected at least {counts[1]} molecules for the study {name!r}, which compares trainings on "
            f"{', '.join(map(str, counts))}, got {len(molecules)}; use more."
        )
    return selected._replace(molecules=tuple(molecules), unseen={}, settings=settings)


def measure(
    selected: Study, method: Method, minutes: float, seeds: int,
    progress: Callable[[str], None] = lambda description: None,
    executor: concurrent.futures.Executor | None = None,
) -> Iterator[Row]:
    """Train every setting with every seed, and yield a row after each training.

    Args:
      selected: the study.
      method: level of theory.
      minutes: time of each training; compilation, labels and waiting count.
      seeds: number of seeds.
      progress: callback `progress(description)`, called before each training.
      executor: executor of several trainings at a time. They must not share a machine if their times are compared.

    Raises:
      InputError: if a setting cannot be trained, as in `Trainer`, or the time is too short for one step.
    """
    if executor is None:
        for setting in selected.settings:
            yield from _rows(selected, setting, method, minutes, range(seeds), progress)
        return
    jobs = [(setting, seed) for setting in selected.settings for seed in range(seeds)]
    for _, row in cluster.as_done(executor, functools.partial(_row, selected, method, minutes), jobs):
        yield row


def _row(selected: Study, method: Method, minutes: float, job: tuple[Setting, int]) -> Row:
    """Return the row of one training, in the process that does it."""
    setting, seed = job
    return next(_rows(selected, setting, method, minutes, [seed], lambda description: None))


def _rows(
    selected: Study, setting: Setting, method: Method, minutes: float, seeds: Iterable[int],
    progress: Callable[[str], None],
) -> Iterator[Row]:
    """Train a setting with each seed, and yield the rows."""
    mols = read_molecules(selected.molecules)
    unseen = {title: read_molecules(names) for title, names in selected.unseen.items()}
    everything, kinds = make_systems([*mols, *itertools.chain(*unseen.values())], method, setting.model)
    systems, _ = make_systems(mols[: setting.count], method, setting.model)
    systems = [system.with_vocabulary(kinds) for system in systems]
    plain = CorrectionPredictor(CorrectionModel(setting.model, kinds), None, systems)
    test = _test_set(plain, systems[:TEST_MOLECULES], selected.geometries)
    others = iter(everything[len(mols) :])
    groups = {
        title: _test_set(plain, list(itertools.islice(others, len(group))), 2 * len(group))
        for title, group in unseen.items()
    }
    for seed in seeds:
        progress(f"{setting.label}, seed {seed}")
        config = dataclasses.replace(setting.train, minutes=minutes, steps=None, seed=seed)
        row, trained = _train(plain, config, test)
        row["unseen"] = {title: _errors(evaluate(trained, group)) for title, group in groups.items()}
        yield {"setting": setting.label, "seed": seed, **row}


def _train(plain: CorrectionPredictor, config: TrainConfig, test: TestSet) -> tuple[Row, CorrectionPredictor]:
    """Return the row of one training, with the error against time, and the trained model."""
    model, systems = plain.model, plain.systems
    moments = iter(60 * (config.minutes or 0.0) * np.geomspace(1 / 2 ** (POINTS - 1), 1, POINTS)[:-1])
    due, curve, waiting, compiling = next(moments), [], [], []
    metrics, skipped = None, 0
    began = time.perf_counter()
    objective = LabelFree(model, systems)
    state = start = initial_state(objective, config)
    start = start._replace(seconds=time.perf_counter() - began)  # statistics of features count as training time
    for state, metrics in train(objective, config, start):
        waiting.append(metrics.data_wait_s)
        compiling.append(metrics.compile_s)
        skipped += metrics.skipped
        if metrics.seconds >= due:
            due = next((seconds for seconds in moments if seconds > metrics.seconds), np.inf)
            evaluation = evaluate(CorrectionPredictor(model, state.average, systems), test)
            curve.append([metrics.seconds, evaluation.errors.energy_mae_mev])
    if metrics is None:
        raise InputError(f"Expected enough minutes for a training step, got {config.minutes}; use more.")
    trained = CorrectionPredictor(model, state.average, systems)
    final = evaluate(trained, test)
    row = {
        "curve": [*curve, [state.seconds, final.errors.energy_mae_mev]],
        **_errors(final),
        "steps": state.step, "geometries": metrics.geometries, "seconds": state.seconds, "skipped": skipped,
        "data_wait_s": sum(waiting), "compile_s": sum(compiling),
        "seconds_per_geometry": final.seconds_per_geometry,
        "pyscf_seconds_per_geometry": final.pyscf_seconds_per_geometry,
    }
    return row, trained


def _errors(evaluation: Evaluation) -> Row:
    """Return the errors of a model and of the baselines."""
    record = evaluation.to_dict()
    return evaluation.errors.to_dict() | {name: record[name] for name in ("residual_correlation", "baselines")}


def _test_set(plain: CorrectionPredictor, systems: Sequence[System], count: int) -> TestSet:
    """Return geometries of an independent trajectory of each molecule, with PySCF's references."""
    share = max(1, count // len(systems))
    poses = []
    for index, system in enumerate(systems):
        mol = system.molecule
        frames = _test_frames(mol.symbols, mol.positions.tobytes(), mol.charge, index, share)
        poses += [(system, system.frame.pose(frame).positions) for frame in frames]
    return reference.make_test_set(plain, poses)


@functools.lru_cache
def _test_frames(
    symbols: tuple[str, ...], positions: bytes, charge: int, index: int, count: int
) -> list[Float[np.ndarray, "natm 3"]]:
    """Return test geometries of a molecule, bohr; settings of one study share them."""
    mol = Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge)
    stream = sample(mol, Sampling("md"), [TEST_SEED, index], validation=True)
    return list(itertools.islice(stream, 0, count * TEST_STRIDE, TEST_STRIDE))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table: medians over the seeds, and the range of the energy error."""
    titles = ["setting", "seeds", "energy MAE, meV", "least to largest", "no network", "PySCF, same Fock builds",
              "Fock MAE, µHa", "occupied levels MAE, µHa", "steps", "new geometries", "waiting, %", "prediction, s"]
    for title in rows[0].get("unseen", {}):
        titles += [f"{title}: energy MAE, meV", "no network", "PySCF, same Fock builds"]
    lines = [_cells(label, members) for label, members in _by_setting(rows).items()]
    return tables.table(titles, lines)


def _cells(label: str, rows: Sequence[Row]) -> list[str]:
    """Return the cells of a setting, from the rows of its seeds."""
    def median(key: str) -> float:
        return statistics.median(row[key] for row in rows)

    errors = [row["energy_mae_mev"] for row in rows]
    cells = [
        label, str(len(rows)), significant(median("energy_mae_mev"), 3),
        f"{significant(min(errors), 3)} to {significant(max(errors), 3)}",
        *(significant(rows[0]["baselines"][key]["energy_mae_mev"], 3)
          for key in ("no_network", "pyscf_same_fock_builds")),
        significant(median("fock_mae_uha"), 3), significant(median("mo_energy_mae_uha"), 3),
        f"{median('steps'):.0f}", f"{median('geometries'):.0f}",
        f"{100 * median('data_wait_s') / median('seconds'):.0f}", significant(median("seconds_per_geometry"), 2),
    ]
    for title in rows[0].get("unseen", {}):
        unseen = [row["unseen"][title] for row in rows]
        cells.append(significant(statistics.median(row["energy_mae_mev"] for row in unseen), 3))
        cells += [
            significant(unseen[0]["baselines"][key]["energy_mae_mev"], 3)
            for key in ("no_network", "pyscf_same_fock_builds")
        ]
    return cells


def _by_setting(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each setting."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["setting"], []).append(row)
    return groups


def write(
    name: str, selected: Study, rows: Sequence[Row], method: Method, folder: pathlib.Path, command: str
) -> None:
    """Write NAME.json, NAME.md and NAME.png.

    Args:
      name: name of the files.
      selected: the study.
      rows: rows that were measured.
      method: level of theory.
      folder: an existing folder.
      command: command that repeats the measurement.
    """
    machine = bench.machine()
    names = ", ".join(selected.molecules[:5]) + (" …" if len(selected.molecules) > 5 else "")
    record = {
        "study": name, "title": selected.title, "command": command, "machine": machine,
        "method": method.to_dict(), "molecules": list(selected.molecules), "rows": list(rows),
    }
    unseen = "".join(f"{title}: {', '.join(names)}. " for title, names in selected.unseen.items())
    text = [
        f"# {selected.title}", "", f"    {command}", "",
        f"{names}; {method.label}, grid level {method.grid_level}. {unseen}Errors against converged PySCF "
        f"on {selected.geometries} geometries of an independent trajectory at 500 K, at the end of the training.", "",
        bench.describe(machine), "", table(rows), "", f"![{selected.title}]({name}.png)", "",
    ]
    bench.keep(folder, name, record, "\n".join(text))
    figure(selected, rows, method).savefig(folder / f"{name}.png", dpi=120)


def figure(selected: Study, rows: Sequence[Row], method: Method) -> Any:
    """Return a figure: the error of each setting and of the baselines, and the error against training time."""
    from matplotlib.figure import Figure  # loads only where something is drawn
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    groups = _by_setting(rows)
    drawn = Figure(figsize=(13, max(5.0, 1.5 + 0.4 * len(groups))), layout="constrained")
    bars, curves = drawn.subplots(1, 2)
    heights = np.arange(len(groups))
    for y, members in zip(heights, groups.values(), strict=True):
        errors = [row["energy_mae_mev"] for row in members]
        bars.plot(errors, [y] * len(errors), "o", color="#0072B2", label=None if y else "trained, each seed")
    for key, name, mark, colour in (("no_network", "no network", "x", "#D55E00"),
                                    ("pyscf_same_fock_builds", "PySCF, same Fock builds", "|", "#009E73")):
        values = [members[0]["baselines"][key]["energy_mae_mev"] for members in groups.values()]
        bars.plot(values, heights, mark, color=colour, markersize=9, label=name)
    bars.set_yticks(heights, [textwrap.fill(label, 40) for label in groups])
    bars.invert_yaxis()
    bars.set_xlabel("energy MAE, meV")
    bars.set_xscale("log")
    styles = itertools.product(("-", "--", ":"), ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"))
    for (label, members), (line, colour) in zip(groups.items(), styles, strict=False):
        for index, row in enumerate(members):
            name = None if index else textwrap.fill(label, 28)
            curves.plot(*zip(*row["curve"], strict=True), line, color=colour, label=name)
    curves.set_xlabel("seconds: compilation, data and labels included")
    curves.set_ylabel("energy MAE, meV")
    curves.set_xscale("log")
    curves.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    curves.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    curves.xaxis.set_minor_formatter(NullFormatter())
    curves.set_yscale("log")
    for axes in (bars, curves):
        axes.grid(alpha=0.3)
    # Legends are outside of the axes, so that they cover neither points nor curves.
    bars.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=3)
    curves.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawn.suptitle(f"{selected.title} ({', '.join(selected.molecules[:3])}, {method.label})")
    return drawn
