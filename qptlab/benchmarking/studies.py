"""Studies of training: short trainings in one run, compared on the same unseen geometries.

Each study answers one question. Every setting is trained for the same time with the same seeds. Its error on
geometries that no training uses is compared with those of the same DFT iterations without a network, and of
PySCF's DIIS stopped after as many Fock builds. The time of a setting includes all that it needs, such as labels.

A study can test its trained models on groups of further geometries as well (`TestGroup`): on molecules that were not
trained on, on geometries that are unlike those of the training, or with a different functional or basis.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.resources
import itertools
import pathlib
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

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
from qptlab.models.systems import System, added_share, make_systems
from qptlab.runtime import cluster
from qptlab.sampling import MolecularDynamics, Sampler, Sampling, sample
from qptlab.sampling.bonds import conformer_graph
from qptlab.sampling.dynamics import HELD_OUT_SEGMENT
from qptlab.system import coordinates
from qptlab.system.datasets import read_molecules
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig
from qptlab.training.label_free import LabelFree
from qptlab.training.loop import initial_state, train
from qptlab.units import significant

Row = dict[str, Any]

TEST_SEED = 20_240_204
TEST_GEOMETRIES = 50
TEST_MOLECULES = 4
"""Number of molecules that a study tests on, the first ones of those trained on."""
TEST_STRIDE = 40
"""Frames of dynamics from one test geometry of a rigid molecule to the next: 200 fs. Those of a molecule with
conformers come from trajectories of their own. Other samplers draw independent geometries, and all of them are used.
"""

POINTS, POINT_GEOMETRIES = 8, 12
"""Number of measurements of the error in a training, at times that grow by equal factors, and largest number of test
geometries that they use."""


BASELINES = ("no_network", "pyscf_same_fock_builds")
BASELINE_TITLES = ("no network", "PySCF, same Fock builds")
"""Baselines in tables and figures: keys of `Evaluation.baselines`, and titles."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours that can be told apart by colour-blind readers (Okabe & Ito)."""


class Setting(NamedTuple):
    """Setting of a training that a study compares.

    Attributes:
      label: name in the table.
      model: network and DFT iterations.
      train: settings of the training; the study sets seed and minutes.
      count: number of molecules to train on, the first ones of the study; None for all.
      method: level of theory of the training; None for that of the study.
    """

    label: str
    model: CorrectionConfig = EquivariantConfig()
    train: TrainConfig = TrainConfig()
    count: int | None = None
    method: Method | None = None


@dataclasses.dataclass(frozen=True)
class Stretches(Sampler):
    """The reference geometry with one bond stretched; the bond, outside of rings, and its length are random.

    This sampler is for tests only and is not registered.

    Attributes:
      smallest: smallest factor of the bond length.
      largest: largest factor of the bond length.
    """

    smallest: float = 1.2
    largest: float = 1.5

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Yield geometries with a stretched bond, bohr.

        Raises:
          InputError: if the molecule has no bond outside of rings.
        """
        bonds = _bonds(mol)
        while True:
            bond = bonds[rng.integers(len(bonds))]
            factor = rng.uniform(self.smallest, self.largest)
            yield coordinates.moved(mol, bond, factor * coordinates.value(mol, bond)).positions

    def summary(self) -> str:
        """Return the sampler with its factors for people."""
        return f"one bond {self.smallest:g} to {self.largest:g} times as long"


@dataclasses.dataclass(frozen=True)
class Bends(Sampler):
    """The reference geometry with one angle changed; the angle, the change and its sign are random.

    This sampler is for tests only and is not registered.

    Attributes:
      smallest: smallest change of the angle, degrees.
      largest: largest change of the angle, degrees.
    """

    smallest: float = 15.0
    largest: float = 30.0

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Yield geometries with a changed angle, bohr.

        Raises:
          InputError: if the molecule has no angle with a bond outside of rings.
        """
        angles = [
            (bond, neighbour) for bond in _bonds(mol) for neighbour in _neighbours(mol, bond.atoms[0])
            if neighbour != bond.atoms[1]
        ]
        if not angles:
            raise InputError(f"Expected a molecule with an angle, got {mol.formula}; use one of three atoms or more.")
        while True:
            bond, neighbour = angles[rng.integers(len(angles))]
            change = np.radians(rng.uniform(self.smallest, self.largest)) * rng.choice([-1, 1])
            yield _bent(mol, bond, neighbour, change)

    def summary(self) -> str:
        """Return the sampler with its angles for people."""
        return f"one angle changed by {self.smallest:g}° to {self.largest:g}°"


def _bonds(mol: Molecule) -> list[coordinates.Coordinate]:
    """Return the bonds outside of rings."""
    bonds = [coordinate for coordinate in coordinates.coordinates(mol) if len(coordinate.atoms) == 2]
    if not bonds:
        raise InputError(f"Expected a molecule with a bond outside of rings, got {mol.formula}; use a different one.")
    return bonds


def _neighbours(mol: Molecule, atom: int) -> list[int]:
    """Return the atoms that are bonded to an atom."""
    return sorted(sum(bond) - atom for bond in mol.bonds if atom in bond)


def _bent(
    mol: Molecule, bond: coordinates.Coordinate, neighbour: int, change: float
) -> Float[np.ndarray, "natm 3"]:
    """Return the positions, bohr, after the angle of a bond with a neighbour of its first atom is changed.

    Args:
      mol: the molecule.
      bond: bond whose movers turn about its first atom.
      neighbour: atom at the other end of the angle.
      change: change of the angle, radian.
    """
    positions, movers = mol.positions.copy(), list(bond.movers)
    start, end = positions[list(bond.atoms)]
    axis = np.cross(positions[neighbour] - start, end - start)
    if np.linalg.norm(axis) < 1e-6:  # of a linear angle: any axis that is perpendicular to the bond
        axis = np.cross(end - start, np.eye(3)[np.argmin(np.abs(end - start))])
    rotation = Rotation.from_rotvec(change * axis / np.linalg.norm(axis))
    positions[movers] = rotation.apply(positions[movers] - start) + start
    return positions


class TestGroup(NamedTuple):
    """Geometries that the trained models of all settings are tested on.

    A group differs from the training in its molecules, in the sampler of its geometries, or in its method. The same
    parameters are used. A network knows the kinds of tokens of the molecules and the method that it was trained with,
    such as the shell "O 2p". So a model can be tested in any functional, and in a basis whose kinds its own basis
    has: def2-SVP has all those of STO-3G, and def2-TZVP all those of both. It refuses a larger basis, and the row
    says so. An element that only a group of molecules has keeps its initial parameters.

    Attributes:
      molecules: built-in names or SMILES; none for molecules that the setting was trained on.
      sampling: sampler of the geometries.
      xc: functional; None for that of the training.
      basis: basis set; None for that of the training.
      each: number of geometries of each molecule.
    """

    __test__ = False  # pytest takes classes named Test... for tests

    molecules: tuple[str, ...] = ()
    sampling: Sampler = Sampling("md")
    xc: str | None = None
    basis: str | None = None
    each: int = 2


class Study(NamedTuple):
    """Study: a question, and the settings that are compared to answer it.

    Attributes:
      title: title of table and plot.
      settings: settings to compare.
      molecules: molecules to train and test on: built-in names or SMILES.
      groups: geometries that all settings are tested on as well, by their title.
      geometries: number of test geometries of the molecules that are trained on.
    """

    title: str
    settings: list[Setting]
    molecules: tuple[str, ...] = ("water",)
    groups: Mapping[str, TestGroup] = MappingProxyType({})
    geometries: int = TEST_GEOMETRIES

    @property
    def has_methods(self) -> bool:
        """True if every setting has a method of its own."""
        return all(setting.method for setting in self.settings)


def small_molecules() -> tuple[str, ...]:
    """Return a hundred SMILES for training on many molecules; the last four are for testing."""
    lines = importlib.resources.files("qptlab.benchmarking").joinpath("small-molecules.smi").read_text().splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


NETWORKS = {
    "equivariant": tuple(map(EquivariantConfig, ("small", "base", "large"))),
    "QPT in its frame": tuple(map(QPTConfig, ("micro", "tiny", "small"))),
}
"""Three sizes of both networks, from small to large."""

FUNCTIONALS = {"pbe": "PBE", "b3lyp": "B3LYP", "r2scan": "r2SCAN", "hf": "Hartree–Fock"}
"""Functionals that the study of methods compares, and their titles."""

STUDIES: dict[str, Callable[[], Study]] = {
    "scaling": lambda: Study(
        "Inductive bias, size of the network, and number of molecules",
        [
            Setting(f"{title}, {config.preset}, {count} molecule{'s' if count > 1 else ''}", config, count=count)
            for title, configs in NETWORKS.items()
            for config in configs
            for count in (1, 10, 96)
        ],
        small_molecules()[:-4], {"molecules not trained on": TestGroup(small_molecules()[-4:])},
    ),
    "iterations": lambda: Study(
        "DFT iterations after the network",
        [
            Setting(f"n = {n}, {scheme}, {how}", EquivariantConfig(iterations=n, scheme=scheme),
                    TrainConfig(iterations=trained))
            for scheme in SCHEMES
            for n in (0, 1, 2, 3, 4, 8, 16)
            for how, trained in (("trained through them", None), ("trained without", 0))
            # A step through many iterations takes long, and nothing is learned in a short time. Those of the response
            # have no derivative.
            if trained == 0 or (n in (1, 2, 4) and scheme != "response")
        ],
        ("water", "ethanol", "CC(=O)N", "[O-][O+]=O"),
    ),
    "guess": lambda: Study(
        "Density of the first Fock matrix",
        [
            Setting(guess, EquivariantConfig(iterations=1, guess=guess))
            for guess in ("minao", "atomic-density", "atomic-potential", "core", "random")
        ],
    ),
    "methods": lambda: Study(
        "Functional and basis, and transfer between them",
        [
            Setting(f"{FUNCTIONALS[xc]}, {basis}", method=Method(xc, basis))
            for xc, basis in (*itertools.product(FUNCTIONALS, ("sto-3g", "def2-svp")), ("pbe", "def2-tzvp"))
        ],
        ("water", "CO"),
        {
            **{f"{title}, basis of the training": TestGroup(xc=xc) for xc, title in FUNCTIONALS.items()},
            **{f"{basis}, functional of the training": TestGroup(basis=basis) for basis in ("sto-3g", "def2-svp")},
        },
    ),
    "out-of-distribution": lambda: Study(
        "Geometries unlike those of the training",
        [
            Setting(f"{title}, n = {n}", dataclasses.replace(config, iterations=n))
            for title, config in (("equivariant", EquivariantConfig()), ("QPT in its frame", QPTConfig("micro")))
            for n in (0, 2)
        ],
        ("ethanol", "CC(=O)N"),
        {
            "300 K": TestGroup(sampling=Sampling("md", temperature=300.0), each=4),
            "1000 K": TestGroup(sampling=Sampling("md", temperature=1000.0), each=4),
            "turned torsions": TestGroup(sampling=Sampling("torsions"), each=4),
            "a bond stretched by 20 to 50 %": TestGroup(sampling=Stretches(), each=6),
            "an angle changed by 15° to 30°": TestGroup(sampling=Bends(), each=6),
        },
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
      molecules: built-in names or SMILES; by default those of the study. Groups of other molecules are left out.

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
    groups = {title: group for title, group in selected.groups.items() if not group.molecules}
    return selected._replace(molecules=tuple(molecules), groups=groups, settings=settings)


def measure(
    selected: Study, method: Method, minutes: float, seeds: int,
    progress: Callable[[str], None] = lambda description: None,
    executor: concurrent.futures.Executor | None = None,
) -> Iterator[Row]:
    """Train every setting with every seed, and yield a row after each training.

    Args:
      selected: the study.
      method: level of theory of settings without one.
      minutes: time of each training; compilation, labels and waiting count.
      seeds: number of seeds.
      progress: callback `progress(description)`, called before each training.
      executor: executor of several trainings at a time. They must not share a machine if their times are compared.

    Raises:
      InputError: if a setting cannot be trained, as in `Trainer`.
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
    method = setting.method or method
    mols = read_molecules(selected.molecules)
    others = [mol for group in selected.groups.values() for mol in read_molecules(group.molecules)]
    _, kinds = make_systems([*mols, *others], method, setting.model)
    systems, _ = make_systems(mols[: setting.count], method, setting.model, kinds)
    plain = CorrectionPredictor(CorrectionModel(setting.model, kinds), None, systems)
    tested = systems[:TEST_MOLECULES]
    test = _test_set(plain, tested, Sampling("md"), max(1, selected.geometries // len(tested)))
    groups = {title: _test_group(plain, group, method) for title, group in selected.groups.items()}
    for seed in seeds:
        progress(f"{setting.label}, seed {seed}")
        config = dataclasses.replace(setting.train, minutes=minutes, steps=None, seed=seed)
        row, trained = _train(plain, config, test)
        row["groups"] = {
            title: group and _errors(evaluate(trained, group)) for title, group in groups.items()
        }
        yield {"setting": setting.label, "seed": seed, **row}


def _test_group(plain: CorrectionPredictor, group: TestGroup, method: Method) -> TestSet | None:
    """Return the geometries of a group with PySCF's references; None if the network lacks kinds of its basis."""
    changes = {name: value for name, value in (("xc", group.xc), ("basis", group.basis)) if value is not None}
    systems, changed = plain.systems[:TEST_MOLECULES], dataclasses.replace(method, **changes)
    if group.molecules or changed != method:
        mols = read_molecules(group.molecules) or [system.molecule for system in systems]
        systems, kinds = make_systems(mols, changed, plain.config)
        if not set(kinds) <= set(plain.model.kinds):
            return None
        systems = [system.with_vocabulary(plain.model.kinds) for system in systems]
    return _test_set(CorrectionPredictor(plain.model, None, systems), systems, group.sampling, group.each)


def _train(plain: CorrectionPredictor, config: TrainConfig, test: TestSet) -> tuple[Row, CorrectionPredictor]:
    """Return the row of one training, with the error against time, and the trained model."""
    model, systems = plain.model, plain.systems
    moments = iter(60 * (config.minutes or 0.0) * np.geomspace(1 / 2 ** (POINTS - 1), 1, POINTS)[:-1])
    due, curve, waiting, compiling = next(moments), [], [], []
    metrics, skipped = None, 0
    objective = LabelFree(model, systems)
    state = start = initial_state(objective, config)
    few = test.first(POINT_GEOMETRIES)
    for state, metrics in train(objective, config, start):
        waiting.append(metrics.data_wait_s)
        compiling.append(metrics.compile_s)
        skipped += metrics.skipped
        if metrics.seconds >= due:
            due = next((seconds for seconds in moments if seconds > metrics.seconds), np.inf)
            evaluation = evaluate(CorrectionPredictor(model, state.average, systems), few)
            curve.append([metrics.seconds, evaluation.errors.energy_mae_mev])
    assert metrics is not None  # a training makes one update in any case
    trained = CorrectionPredictor(model, state.average, systems)
    final = evaluate(trained, test)
    row = {
        "curve": [*curve, [state.seconds, final.errors.energy_mae_mev]],
        **_errors(final),
        "steps": state.step, "geometries": metrics.geometries, "seconds": state.seconds, "skipped": skipped,
        "data_wait_s": sum(waiting), "compile_s": sum(compiling), "padding": list(added_share(systems)),
        "seconds_per_geometry": final.seconds_per_geometry,
        "pyscf_seconds_per_geometry": final.pyscf_seconds_per_geometry,
    }
    return row, trained


def _errors(evaluation: Evaluation) -> Row:
    """Return the errors of a model and of the baselines."""
    record = evaluation.to_dict()
    names = (
        "estimated_energy_mae_mev", "estimate_correlation", "baselines", "n", "n_left_out", "same_fit", "grid",
        "finer_grid_level",
    )
    return evaluation.errors.to_dict() | {name: record[name] for name in names}


def _test_set(plain: CorrectionPredictor, systems: Sequence[System], sampling: Sampler, each: int) -> TestSet:
    """Return geometries of an independent stream of each molecule, with PySCF's references."""
    poses = []
    for index, system in enumerate(systems):
        mol = system.molecule
        frames = _test_frames(mol.symbols, mol.positions.tobytes(), mol.charge, sampling, index, each)
        poses += [(system, system.frame.pose(frame).positions) for frame in frames]
    return reference.make_test_set(plain, poses)


@functools.lru_cache
def _test_frames(
    symbols: tuple[str, ...], positions: bytes, charge: int, sampling: Sampler, index: int, count: int
) -> list[Float[np.ndarray, "natm 3"]]:
    """Return test geometries of a molecule, bohr; settings of one study share them."""
    mol = Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge)
    stream = sample(mol, sampling, [TEST_SEED, index])
    stride = 1
    if isinstance(sampling, MolecularDynamics):
        stride = HELD_OUT_SEGMENT if conformer_graph(mol) else TEST_STRIDE
    return list(itertools.islice(stream, 0, count * stride, stride))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown: medians over the seeds, and the range of the energy error.

    A second table follows if the study has groups of further geometries.
    """
    titles = ["setting", "seeds", "energy MAE, meV", "least to largest", "no network", "PySCF, same Fock builds",
              "Fock MAE, µHa", "occupied levels MAE, µHa", "steps", "new geometries", "waiting, %", "prediction, s"]
    settings = _by_setting(rows)
    lines = [_cells(label, members) for label, members in settings.items()]
    further = [
        _group_cells(label, title, [row["groups"][title] for row in members])
        for title in rows[0].get("groups", {}) for label, members in settings.items()
    ]
    if not further:
        return tables.table(titles, lines)
    group_titles = ["tested on", "setting", "energy MAE, meV", "least to largest", "no network",
                    "PySCF, same Fock builds", "Fock MAE, µHa", "geometries"]
    return f"{tables.table(titles, lines)}\n\n{tables.table(group_titles, further, text_columns=2)}"


def _cells(label: str, rows: Sequence[Row]) -> list[str]:
    """Return the cells of a setting, from the rows of its seeds."""
    def median(key: str) -> float:
        return statistics.median(row[key] for row in rows)

    return [
        label, str(len(rows)), *_energy_cells(rows),
        significant(median("fock_mae_uha"), 3), significant(median("mo_energy_mae_uha"), 3),
        f"{median('steps'):.0f}", f"{median('geometries'):.0f}",
        f"{100 * median('data_wait_s') / median('seconds'):.0f}", significant(median("seconds_per_geometry"), 2),
    ]


def _group_cells(label: str, title: str, rows: Sequence[Row | None]) -> list[str]:
    """Return the cells of a setting on a group of geometries, from the errors of its seeds."""
    errors = [row for row in rows if row is not None]
    if not errors:
        return [title, label, "refused", "", "", "", "", ""]
    left_out = f", {errors[0]['n_left_out']} left out" if errors[0]["n_left_out"] else ""
    fock = statistics.median(row["fock_mae_uha"] for row in errors)
    return [title, label, *_energy_cells(errors), significant(fock, 3), f"{errors[0]['n']}{left_out}"]


def _energy_cells(rows: Sequence[Row]) -> list[str]:
    """Return the cells of energy errors: median with its standard error, range over the seeds, and both baselines."""
    errors = [row["energy_mae_mev"] for row in rows]
    middle = statistics.median_low(errors)
    bar = (rows[errors.index(middle)].get("standard_errors") or {}).get("energy_mae_mev")
    return [
        significant(middle, 3) + (f" ± {significant(bar, 1)}" if bar else ""),
        f"{significant(min(errors), 3)} to {significant(max(errors), 3)}",
        *(significant(rows[0]["baselines"][key]["energy_mae_mev"], 3) for key in BASELINES),
    ]


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
    groups = "".join(f"\n- {title}: {_describe(group)}." for title, group in selected.groups.items())
    text = [
        f"# {selected.title}", "", f"    {command}", "",
        f"{names}; {_levels(selected, method)}. Errors against converged PySCF on {selected.geometries} geometries "
        "of GFN2-xTB dynamics at 500 K that no training uses, at the end of the training; medians of the seeds, with "
        f"standard errors over the geometries. {_floors(rows)}",
        *([f"\nThe second table has the errors of the same models on further geometries:\n{groups}"] * bool(groups)),
        "", bench.describe(machine), "", table(rows), "", f"![{selected.title}]({name}.png)", "",
    ]
    bench.keep(folder, name, record, "\n".join(text))
    figure(selected, rows, method).savefig(folder / f"{name}.png", dpi=120)


def _floors(rows: Sequence[Row]) -> str:
    """Return the errors of the references' grid and of density fitting, in sentences."""
    levels: dict[int, list[float]] = {}
    for row in rows:
        if row["grid"]:
            levels.setdefault(row["finer_grid_level"], []).append(row["grid"]["energy_mae_mev"])
    fitted = {
        f"{row['setting']}, seed {row['seed']}": row["same_fit"]["energy_mae_mev"] for row in rows if row["same_fit"]
    }
    return " ".join([
        *(f"The grid's own error is {' to '.join(dict.fromkeys(significant(f(errors), 2) for f in (min, max)))} meV: "
          f"converged PySCF on two geometries in the orientation of each model, compared with level {level}."
          for level, errors in levels.items()),
        *(f"{name}: {significant(error, 3)} meV compared with PySCF with the same density fitting."
          for name, error in fitted.items()),
    ])


def _describe(group: TestGroup) -> str:
    """Return a group for people."""
    names = ", ".join(group.molecules) or "molecules of the training"
    changes = "".join(f", {value}" for value in (group.xc, group.basis) if value)
    return f"{names}{changes}, {group.each} geometries each: {group.sampling.summary()}"


def _levels(selected: Study, method: Method) -> str:
    """Return the level of theory of the settings for people."""
    methods = {setting.method or method for setting in selected.settings}
    label = method.label if methods == {method} else "the method of each setting"
    return f"{label}, grid level {', '.join(str(level) for level in sorted({m.grid_level for m in methods}))}"


def figure(selected: Study, rows: Sequence[Row], method: Method) -> Any:
    """Return a figure: errors of each setting and of the baselines, and the error against training time.

    A panel in the middle has the errors on the groups of further geometries, if the study has any.
    """
    from matplotlib.figure import Figure  # loads only where something is drawn

    settings, titles = _by_setting(rows), list(rows[0].get("groups", {}))
    height = max(5.0, 2.0 + (0.4 + 0.12 * len(titles)) * len(settings))
    drawn = Figure(figsize=(19 if titles else 13, height), layout="constrained")
    bars, *middle, curves = drawn.subplots(1, 3 if titles else 2)
    heights = np.arange(len(settings))
    for y, members in zip(heights, settings.values(), strict=True):
        errors = [row["energy_mae_mev"] for row in members]
        bars.plot(errors, [y] * len(errors), "o", color=COLOURS[0], label=None if y else "trained, each seed")
    for key, name, mark, colour in zip(BASELINES, BASELINE_TITLES, "x|", COLOURS[1:3], strict=True):
        values = [members[0]["baselines"][key]["energy_mae_mev"] for members in settings.values()]
        bars.plot(values, heights, mark, color=colour, markersize=9, label=name)
    bars.set_title("molecules of the training, 500 K")
    bars.set_yticks(heights, [textwrap.fill(label, 40) for label in settings])
    for axes in middle:
        _draw_groups(axes, settings, titles)
    for axes in (bars, *middle):
        axes.set_ylim(len(settings) - 0.5, -0.5)
        axes.set_xlabel("energy MAE, meV")
        axes.set_xscale("log")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.6 / height), ncols=2)
    _draw_curves(curves, settings)
    for axes in (bars, *middle, curves):
        axes.grid(alpha=0.3)
    drawn.suptitle(f"{selected.title} ({', '.join(selected.molecules[:3])}"
                   f"{', …' * (len(selected.molecules) > 3)}; {_levels(selected, method)})")
    return drawn


def _draw_groups(axes: Any, settings: Mapping[str, Sequence[Row]], titles: Sequence[str]) -> None:
    """Draw the errors of all settings on the groups of further geometries."""
    offsets = np.linspace(-0.35, 0.35, len(titles)) if len(titles) > 1 else np.zeros(1)
    for title, offset, colour in zip(titles, offsets, itertools.cycle(COLOURS), strict=False):
        shown = [(y, [row["groups"][title] for row in members]) for y, members in enumerate(settings.values())]
        shown = [(y + offset, errors) for y, errors in shown if errors[0] is not None]
        for mark, key in (("o", None), *zip("x|", BASELINES, strict=True)):
            points = [
                ((row["baselines"][key] if key else row)["energy_mae_mev"], y)
                for y, errors in shown for row in (errors[:1] if key else errors)
            ]
            if points:
                label = None if key else textwrap.fill(title, 34)
                axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=5 if key else 6, label=label)
    for mark, name in zip("x|", BASELINE_TITLES, strict=True):
        axes.plot([], [], mark, color="grey", label=f"{name}, each in its colour")
    axes.set_yticks(range(len(settings)), [""] * len(settings))
    for y in range(1, len(settings)):
        axes.axhline(y - 0.5, color="grey", linewidth=0.5)
    axes.set_title("further geometries")


def _draw_curves(axes: Any, settings: Mapping[str, Sequence[Row]]) -> None:
    """Draw the error of all settings against training time."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    styles = itertools.cycle(itertools.product(("-", "--", ":", "-."), COLOURS))
    for (label, members), (line, colour) in zip(settings.items(), styles, strict=False):
        for index, row in enumerate(members):
            name = None if index else textwrap.fill(label, 28)
            axes.plot(*zip(*row["curve"], strict=True), line, color=colour, label=name)
    axes.set_title("molecules of the training, 500 K")
    axes.set_xlabel("seconds: compilation, data and labels included")
    axes.set_ylabel("energy MAE, meV")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log")
    # The legend is outside of the axes, so that it covers no curve.
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
