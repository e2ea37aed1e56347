"""What training depends on: short trainings beside one another, in one run, on the same unseen geometries.

Each study answers one question. Every setting is trained for the same time with the same seeds, and its error on
geometries of an independent trajectory stands beside those of the same iterations without a network and of PySCF's
DIIS stopped after as many Fock builds. What a setting needs besides (labels, larger matrices) is in its time.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.resources
import itertools
import pathlib
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qptlab.benchmarking import bench
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.evaluation.comparison import Evaluation, evaluate
from qptlab.evaluation.errors import ERROR_COLUMNS
from qptlab.evaluation.reference import TestSet
from qptlab.models.correction import CorrectionModel
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.qpt import QPTConfig
from qptlab.models.systems import System, make_systems
from qptlab.runtime import cluster
from qptlab.sampling import geometries
from qptlab.sampling.geometries import Sampling
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule, read_molecules
from qptlab.training.config import TrainConfig
from qptlab.training.label_free import LabelFree
from qptlab.training.loop import train
from qptlab.units import significant

Row = dict[str, Any]

TEST_SEED = 20_240_204
TEST_GEOMETRIES = 12
TEST_MOLECULES = 4
"""Of many molecules trained on, the first so many are tested on."""
TEST_STRIDE = 40
"""Frames of the test trajectory from one geometry to the next: 200 fs, longer than any memory of a small molecule."""

POINTS = 8
"""Errors are measured so many times in a training, at times that grow by equal factors."""


class Setting(NamedTuple):
    """One way to train.

    Attributes:
      label: what to call it.
      model: network and iterations.
      train: how; its seed and minutes are set by the study.
      count: molecules to train on, the first so many of the study's; None for all.
    """

    label: str
    model: QPTConfig = QPTConfig("micro", iterations=1)
    train: TrainConfig = TrainConfig()
    count: int | None = None


class Study(NamedTuple):
    """A question and the settings that answer it.

    Attributes:
      title: of table and plot.
      settings: what is compared.
      molecules: names or SMILES.
      unseen: molecules that no setting is trained on, but all are tested on besides.
    """

    title: str
    settings: list[Setting]
    molecules: tuple[str, ...] = ("water",)
    unseen: tuple[str, ...] = ()


def _small_molecules():
    """A hundred molecules for training on many: the last four are tested on."""
    lines = importlib.resources.files("qptlab.benchmarking").joinpath("small-molecules.smi").read_text().splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


STUDIES: dict[str, Callable[[], Study]] = {
    "iterations": lambda: Study(
        "DFT iterations after the network",
        [
            Setting(f"n = {n}, {how}", QPTConfig("micro", iterations=n), TrainConfig(iterations=trained))
            for n in (0, 1, 2, 3, 4, 8, 16)
            for how, trained in (("trained through them", None), ("trained without", 0))
            if n or trained is None
        ],
    ),
    "guess": lambda: Study(
        "Density that the first Fock matrix is built of",
        [
            Setting(guess, QPTConfig("micro", iterations=1, guess=guess))
            for guess in ("minao", "atomic-density", "atomic-potential", "core", "random")
        ],
    ),
    "size": lambda: Study(
        "Size of the network",
        [Setting(preset, QPTConfig(preset, iterations=1)) for preset in ("micro", "tiny", "small")],
    ),
    "molecules": lambda: Study(
        "Molecules trained on", [Setting(f"{count} molecules", count=count) for count in (1, 10, 96)],
        _small_molecules()[:-4], _small_molecules()[-4:],
    ),
    "losses": lambda: Study(
        "What is minimised, and where geometries come from",
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
            Setting("QPT: no labels"),
            Setting("labels, each used 16 times", train=TrainConfig(loss="labels")),
            Setting("labels, each used 128 times", train=TrainConfig(loss="labels", reuse=128)),
        ],
    ),
}
"""By name, as `qptlab bench NAME` calls them."""


def study(name: str, molecules: Sequence[str] = ()) -> Study:
    """One of `STUDIES`, of other molecules if any are named.

    Raises:
      InputError: if there is no such study, or too few molecules for it.
    """
    if name not in STUDIES:
        raise InputError(f"study {name!r} is not known; one of {', '.join(STUDIES)} would do.")
    found = STUDIES[name]()
    if not molecules:
        return found
    settings = [setting for setting in found.settings if (setting.count or 0) <= len(molecules)]
    if len(settings) < 2:
        raise InputError(
            f"{len(molecules)} molecules were given for the study {name!r}, which compares trainings on "
            f"{', '.join(str(setting.count) for setting in found.settings)}; "
            f"{found.settings[1].count} would do."
        )
    return found._replace(molecules=tuple(molecules), unseen=(), settings=settings)


def measure(
    chosen: Study, method: Method, minutes: float, seeds: int, progress: Callable[[str], None] = lambda what: None,
    executor: concurrent.futures.Executor | None = None,
) -> Iterator[Row]:
    """Train every setting with every seed; a row as soon as it is done.

    Args:
      chosen: the study.
      method: the level of theory.
      minutes: of each training, compilation, labels and waiting included.
      seeds: how many.
      progress: told what is under way.
      executor: does several trainings at once, which must not share a machine if their times are to be compared.

    Raises:
      InputError: as `train`.
    """
    if executor is None:
        for setting in chosen.settings:
            yield from _rows(chosen, setting, method, minutes, range(seeds), progress)
        return
    jobs = [(setting, seed) for setting in chosen.settings for seed in range(seeds)]
    for _, row in cluster.as_done(executor, functools.partial(_row, chosen, method, minutes), jobs):
        yield row


def _row(chosen, method, minutes, job) -> Row:
    """One training, wherever it is done."""
    setting, seed = job
    return next(_rows(chosen, setting, method, minutes, [seed], lambda what: None))


def _rows(chosen, setting, method, minutes, seeds, progress) -> Iterator[Row]:
    mols, unseen = read_molecules(chosen.molecules), read_molecules(chosen.unseen)
    everything, kinds = make_systems([*mols, *unseen], method, setting.model.guess)
    systems, _ = make_systems(mols[: setting.count], method, setting.model.guess)
    systems = [system.with_vocabulary(kinds) for system in systems]
    plain = CorrectionPredictor(CorrectionModel(setting.model, kinds), None, systems)
    test = _test_set(plain, systems[:TEST_MOLECULES])
    other = _test_set(plain, everything[len(mols) :]) if unseen else None
    for seed in seeds:
        progress(f"{setting.label}, seed {seed}")
        config = dataclasses.replace(setting.train, minutes=minutes, steps=None, seed=seed)
        row, trained = _trained(plain, config, test)
        if other is not None:
            row["unseen_molecules"] = _errors(evaluate(trained, other))
        yield {"setting": setting.label, "seed": seed, **row}


def _trained(plain, config, test) -> tuple[Row, CorrectionPredictor]:
    model, systems = plain.model, plain.systems
    due = iter(60 * config.minutes * np.geomspace(1 / 2 ** (POINTS - 1), 1, POINTS)[:-1])
    goal, curve, waited, rates = next(due), [], [], []
    state, metrics, skipped = None, None, 0
    for state, metrics in train(LabelFree(model, systems), config):
        waited.append(metrics.data_wait_s)
        rates.append(metrics.compile_s)
        skipped += metrics.skipped
        if metrics.seconds >= goal:
            goal = next((time for time in due if time > metrics.seconds), np.inf)
            judged = evaluate(CorrectionPredictor(model, state.average, systems), test)
            curve.append([metrics.seconds, judged.errors.energy_mae_mev])
    if state is None or metrics is None:
        raise InputError(f"{config.minutes} minutes are not enough for a step; more would do.")
    trained = CorrectionPredictor(model, state.average, systems)
    final = evaluate(trained, test)
    row = {
        "curve": [*curve, [state.seconds, final.errors.energy_mae_mev]],
        **_errors(final),
        "steps": state.step, "geometries": metrics.geometries, "seconds": state.seconds, "skipped": skipped,
        "data_wait_s": sum(waited), "compile_s": sum(rates),
        "seconds_per_geometry": final.seconds_per_geometry,
        "pyscf_seconds_per_geometry": final.pyscf_seconds_per_geometry,
    }
    return row, trained


def _errors(final: Evaluation) -> Row:
    record = final.to_dict()
    names = (*ERROR_COLUMNS, "residual_correlation", "baselines")
    return {name: record[name] for name in names}


def _test_set(plain: CorrectionPredictor, systems: Sequence[System]) -> TestSet:
    """Geometries of an independent trajectory of each molecule, with answers."""
    share = max(1, TEST_GEOMETRIES // len(systems))
    places = []
    for index, system in enumerate(systems):
        mol = system.molecule
        frames = _test_frames(mol.symbols, mol.positions.tobytes(), mol.charge, index, share)
        places += [(system, system.frame.pose(frame).positions) for frame in frames]
    return reference.make_test_set(plain, places)


@functools.lru_cache
def _test_frames(symbols, positions, charge, index, count):
    mol = Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge)
    stream = geometries.sample(mol, Sampling("md"), [TEST_SEED, index], validation=True)
    return list(itertools.islice(stream, 0, count * TEST_STRIDE, TEST_STRIDE))


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: medians over the seeds, and the least and largest error."""
    head = ["setting", "seeds", "energy MAE, meV", "least to largest", "no network", "PySCF, same Fock builds",
            "Fock MAE, µHa", "steps", "new geometries", "waiting, %", "prediction, s"]
    if any("unseen_molecules" in row for row in rows):
        head += ["unseen molecules: energy MAE, meV", "no network"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for label, members in _by_setting(rows).items():
        errors = [row["energy_mae_mev"] for row in members]
        baselines = members[0]["baselines"]

        def middle(key, members=members):
            return statistics.median(row[key] for row in members)

        cells = [
            label, str(len(members)), significant(statistics.median(errors), 3),
            f"{significant(min(errors), 3)} to {significant(max(errors), 3)}",
            *(significant(baselines[key]["energy_mae_mev"], 3) for key in ("no_network", "pyscf_same_fock_builds")),
            significant(middle("fock_mae_uha"), 3), f"{middle('steps'):.0f}", f"{middle('geometries'):.0f}",
            f"{100 * middle('data_wait_s') / middle('seconds'):.0f}", significant(middle("seconds_per_geometry"), 2),
        ]
        if "unseen_molecules" in members[0]:
            other = [row["unseen_molecules"] for row in members]
            cells.append(significant(statistics.median(each["energy_mae_mev"] for each in other), 3))
            cells.append(significant(other[0]["baselines"]["no_network"]["energy_mae_mev"], 3))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_setting(rows):
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row)
    return found


def write(
    name: str, chosen: Study, rows: Sequence[Row], method: Method, folder: pathlib.Path, command: str
) -> None:
    """Write NAME.json, NAME.md and NAME.png; `command` is what repeats the measurement."""
    where = bench.machine()
    names = ", ".join(chosen.molecules[:5]) + (" …" if len(chosen.molecules) > 5 else "")
    record = {
        "study": name, "title": chosen.title, "command": command, "machine": where,
        "method": method.to_dict(), "molecules": list(chosen.molecules), "rows": list(rows),
    }
    tested = f"Unseen molecules: {', '.join(chosen.unseen)}. " if chosen.unseen else ""
    text = [
        f"# {chosen.title}", "", f"    {command}", "",
        f"{names}; {method.label}, grid level {method.grid_level}. {tested}Errors against converged PySCF "
        f"on {TEST_GEOMETRIES} geometries of an independent trajectory at 500 K, at the end of the training.", "",
        bench.place(where), "", table(rows), "", f"![{chosen.title}]({name}.png)", "",
    ]
    bench.keep(folder, name, record, "\n".join(text))
    figure(chosen, rows, method).savefig(folder / f"{name}.png", dpi=120)


def figure(chosen: Study, rows: Sequence[Row], method: Method):
    """Error by setting beside the baselines, and error against training time."""
    from matplotlib.figure import Figure  # loads only where something is drawn
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    groups = _by_setting(rows)
    drawn = Figure(figsize=(13, max(5.0, 1.5 + 0.4 * len(groups))), layout="constrained")
    left, right = drawn.subplots(1, 2)
    places = np.arange(len(groups))
    for place, members in zip(places, groups.values(), strict=True):
        errors = [row["energy_mae_mev"] for row in members]
        left.plot(errors, [place] * len(errors), "o", color="#0072B2", label=None if place else "trained, each seed")
    for key, name, mark, colour in (("no_network", "no network", "x", "#D55E00"),
                                    ("pyscf_same_fock_builds", "PySCF, same Fock builds", "|", "#009E73")):
        values = [members[0]["baselines"][key]["energy_mae_mev"] for members in groups.values()]
        left.plot(values, places, mark, color=colour, markersize=9, label=name)
    left.set_yticks(places, [textwrap.fill(label, 40) for label in groups])
    left.invert_yaxis()
    left.set_xlabel("energy MAE, meV")
    left.set_xscale("log")
    styles = itertools.product(("-", "--", ":"), ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"))
    for (label, members), (line, colour) in zip(groups.items(), styles, strict=False):
        for index, row in enumerate(members):
            name = None if index else textwrap.fill(label, 28)
            right.plot(*zip(*row["curve"], strict=True), line, color=colour, label=name)
    right.set_xlabel("seconds: compilation, data and labels included")
    right.set_ylabel("energy MAE, meV")
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_yscale("log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    # Beside points and curves, not over them.
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=3)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawn.suptitle(f"{chosen.title} ({', '.join(chosen.molecules[:3])}, {method.label})")
    return drawn
