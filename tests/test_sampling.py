"""Samplers: the register, and streams of geometries that are seeded, endless and separate for validation."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import cases
import jax
import numpy as np
import pytest
import scipy.constants
import traitlets

import qptlab as ql
from qptlab.gui.session import Session
from qptlab.gui.widgets import MoleculePicker
from qptlab.models.predictor import energy_and_gradient
from qptlab.random_streams import Purpose, generator
from qptlab.sampling import (
    Walk,
    modes,
    parameters,
    parameters_from_text,
    register,
    samplers,
    samplers_without_required,
    sampling_from_json,
)
from qptlab.sampling.bonds import conformer_graph
from qptlab.units import BOHR_ANGSTROM

WATER = ql.Molecule.from_name("water")

PACKAGE = pathlib.Path(ql.__file__).parent
RUN_0_1_0 = pathlib.Path(__file__).parent / "data/run-0.1.0"

BOLTZMANN_HARTREE = scipy.constants.k / scipy.constants.value("Hartree energy")
"""Boltzmann's constant, hartree per kelvin."""


def first(sampling, count=3, seed=0, mol=WATER, **options):
    """Return the first geometries of a stream [count, natm, 3]."""
    return np.array(list(itertools.islice(ql.sample(mol, sampling, seed, **options), count)))


def _dihedral(positions):
    """Return the dihedral angle of a chain of four atoms, radians."""
    first_bond, second_bond, third_bond = np.diff(positions, axis=0)
    normal, next_normal = np.cross(first_bond, second_bond), np.cross(second_bond, third_bond)
    return np.arctan2(np.linalg.norm(second_bond) * first_bond @ next_normal, normal @ next_normal)


# Streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["md", "modes", "conformers", "perturb"])
def test_a_seed_gives_one_stream_and_another_seed_another(sampler):
    sampling = ql.Sampling(sampler)
    np.testing.assert_array_equal(first(sampling), first(sampling))
    assert np.abs(first(sampling) - first(sampling, seed=1)).max() > 1e-3


@pytest.mark.parametrize("sampler", ["md", "perturb"])
def test_geometries_of_training_validation_and_tests_differ(sampler):
    sampling = ql.Sampling(sampler)
    streams = [first(sampling, 20, seed, purpose=purpose) for purpose, seed in (
        (Purpose.TRAINING_GEOMETRIES, [0, 0, 0]), (Purpose.VALIDATION_GEOMETRIES, [0, 0]),
        (Purpose.TEST_GEOMETRIES, 0), (Purpose.TEST_GEOMETRIES, 1),
    )]
    for stream, other in itertools.combinations(streams, 2):
        assert np.abs(stream[:, None] - other).max(axis=(2, 3)).min() > 1e-3


def test_displacements_have_the_spread_asked_for():
    shifts = first(ql.Sampling("perturb", sigma_bohr=0.1), 2000) - WATER.positions
    assert shifts.std() == pytest.approx(0.1, rel=0.03)
    assert abs(shifts.mean()) < 0.005


@pytest.mark.slow
def test_dynamics_has_the_temperature_asked_for():
    """Distances between atoms held by springs spread as the square root of the temperature."""
    def spread(temperature):
        frames = first(ql.Sampling("md", temperature=temperature), 400)
        distances = np.linalg.norm(frames[:, [1, 2, 2]] - frames[:, [0, 0, 1]], axis=-1)
        return np.sqrt(distances.var(axis=0).sum())

    assert spread(500.0) / spread(125.0) == pytest.approx(2.0, rel=0.3)


def test_trajectories_of_a_flexible_molecule_start_from_its_conformers():
    """Butane: 500 K frames for tests are trans and gauche, whichever RDKit finds first. Water has one start."""
    butane = ql.Molecule.from_smiles("CCCC")
    frames = first(ql.Sampling("md"), 6 * 8, mol=butane)[::8]
    angles = np.degrees([_dihedral(frame[:4]) for frame in frames])
    assert angles.min() < 100
    assert angles.max() > 150
    assert conformer_graph(butane)
    assert not conformer_graph(WATER)


def test_dynamics_keeps_the_molecule_whole_and_at_rest():
    mol = ql.Molecule.from_name("ethanol")
    frames = first(ql.Sampling("md", temperature=1000.0), 60, mol=mol)
    masses = mol.to_ase().get_masses()
    centre = np.einsum("a,fax->fx", masses, frames) / masses.sum()
    bonds = np.linalg.norm(frames[:, 0] - frames[:, 1], axis=-1) * BOHR_ANGSTROM
    assert np.ptp(centre, axis=0).max() < 1e-3
    assert (bonds < 1.9).all()


@pytest.mark.slow
def test_a_walk_visits_the_boltzmann_distribution_of_the_models_energy():
    """Equipartition: the mean of displacement times slope is kT for each of the three vibrations of water."""
    qpt, system = cases.model("water", cases.QUICK_METHOD, 2)
    evaluate = energy_and_gradient(qpt, system)
    geometries, slopes = [], []
    for chain in range(3):
        walk = Walk(qpt, system, 1000.0, [0, chain])
        for step in range(90):
            positions = walk.move(None)
            if step >= 10:
                geometries.append(positions)
                slopes.append(evaluate(positions, None)[1])
    displacement = np.array(geometries) - np.mean(geometries, axis=0)
    vibrations = np.sum(displacement * slopes, axis=(1, 2)).mean() / (BOLTZMANN_HARTREE * 1000.0)
    assert vibrations == pytest.approx(3.0, rel=0.25)


@pytest.mark.parametrize("sampler", ["modes", "torsions", "conformers"])
def test_other_samplers_keep_the_molecule_and_move_what_they_say(sampler):
    mol = ql.Molecule.from_name("ethanol")
    frames = first(ql.Sampling(sampler), 30, mol=mol)
    assert all(mol.bonds == mol.with_positions(frame).bonds for frame in frames)
    dihedral = [_dihedral(frame[[0, 1, 2, 8]]) for frame in frames]
    spread = np.hypot(np.mean(np.cos(dihedral)), np.mean(np.sin(dihedral)))
    assert spread > 0.9 if sampler == "modes" else spread < 0.9, "torsions turn, vibrations do not"


@pytest.mark.parametrize("sampler", ["md", "modes", "torsions", "conformers", "perturb"])
def test_a_stream_can_be_entered_at_any_place(sampler, monkeypatch):
    """The test enters the second segment."""
    monkeypatch.setattr(register, "SEGMENT", 3)
    monkeypatch.setattr(modes, "SEGMENT", 3)
    mol = ql.Molecule.from_name("ethanol")
    stream = first(ql.Sampling(sampler), 8, mol=mol)
    np.testing.assert_array_equal(first(ql.Sampling(sampler), 3, mol=mol, start=5), stream[5:])


@pytest.fixture
def frames_file(tmp_path):
    path = tmp_path / "frames.xyz"
    mols = [WATER.with_positions(WATER.positions * (1 + 0.01 * i)) for i in range(10)]
    path.write_text("".join(mol.to_xyz() for mol in mols))
    return path


def test_every_fifth_frame_of_a_file_is_held_out(frames_file):
    sampling = ql.Sampling("file", path=str(frames_file))
    training, held_out = first(sampling, 16, purpose=Purpose.TRAINING_GEOMETRIES), first(sampling, 4)
    scale = lambda frames: {round(float(np.linalg.norm(f) / np.linalg.norm(WATER.positions)), 3) for f in frames}  # noqa: E731
    assert scale(training) == {1.0, 1.01, 1.02, 1.03, 1.05, 1.06, 1.07, 1.08}
    assert scale(held_out) == {1.04, 1.09}


def test_a_file_of_another_molecule_or_too_few_frames_is_refused(frames_file, tmp_path):
    with pytest.raises(ql.InputError, match=r"at least 5 frames of CH4.*got 0 in .*frames.xyz"):
        first(ql.Sampling("file", path=str(frames_file)), mol=ql.Molecule.from_name("methane"))
    few = tmp_path / "few.xyz"
    few.write_text(WATER.to_xyz() * 4)
    with pytest.raises(ql.InputError, match=r"at least 5 frames of H2O.*got 4 in .*few.xyz"):
        first(ql.Sampling("file", path=str(few)))


def test_frames_in_another_order_are_put_in_order_and_isomers_left_out(tmp_path):
    ethanol, ether = ql.Molecule.from_name("ethanol"), ql.Molecule.from_smiles("COC")
    order = np.random.default_rng(0).permutation(9)
    shuffled = ql.Molecule(tuple(np.array(ethanol.symbols)[order].tolist()), ethanol.positions[order])
    path = tmp_path / "isomers.xyz"
    path.write_text("".join(mol.to_xyz() for mol in [shuffled, ether] * 5))
    for mol in (ethanol, ether):
        frames = first(ql.Sampling("file", path=str(path)), 4, mol=mol)
        assert all(mol.with_positions(frame).bonds == mol.bonds for frame in frames)
    # With one hydrogen far away the frame is not a geometry of this molecule, and a warning says so.
    torn = ethanol.positions + np.eye(9)[:, 8:] * np.array([9.0, 0.0, 0.0])
    path.write_text("".join(mol.to_xyz() for mol in [*[ethanol] * 5, ethanol.with_positions(torn)]))
    with pytest.warns(UserWarning, match=r"5 frames of C2H6O .* used. Frames with other bonds: 1, first frame 5"):
        first(ql.Sampling("file", path=str(path)), mol=ethanol)


# Random streams ------------------------------------------------------------------------------


def test_the_numbers_of_the_purposes_never_change():
    """A resumed training draws what it would have drawn with version 0.1.0."""
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "TRAINING_GEOMETRIES": 0, "VALIDATION_GEOMETRIES": 1, "BATCHES": 2, "WALK": 4, "LABELLED_BATCHES": 5,
        "SPLIT": 7, "STATISTICS": 8, "SELECTION": 9, "TEST_GEOMETRIES": 10,
    }
    for purpose in Purpose:
        expected = np.random.default_rng([int(purpose), 3, 1, 8]).normal(size=4)
        np.testing.assert_array_equal(generator(purpose, [3, 1], 8).normal(size=4), expected)
    # The first displacement of version 0.1.0, with seed 5: its training, its validation, its third segment.
    training, validation = Purpose.TRAINING_GEOMETRIES, Purpose.VALIDATION_GEOMETRIES
    for purpose, start, seed in ((training, 0, [0, 5, 0]), (validation, 0, [1, 5, 0]), (training, 400, [0, 5, 2])):
        expected = WATER.positions + 0.05 * np.random.default_rng(seed).normal(size=(3, 3))
        found = first(ql.Sampling("perturb"), 1, 5, purpose=purpose, start=start)[0]
        np.testing.assert_array_equal(found, expected)


def test_no_module_draws_seeded_numbers_outside_the_register():
    """The exceptions are fixed random points, which no seed of the user changes."""
    root = PACKAGE
    lines = {
        str(path.relative_to(root)): re.findall(r"default_rng\((.*?)\)", path.read_text())
        for path in root.rglob("*.py") if path.name != "random_streams.py"
    }
    assert {seed for seeds in lines.values() for seed in seeds} == {"0"}


# The register --------------------------------------------------------------------------------


@pytest.fixture
def stretch(monkeypatch):
    """A user's own sampler with a parameter; forgotten after the test."""
    monkeypatch.setattr(register, "_SAMPLERS", dict(register._SAMPLERS))

    @ql.register_sampler("stretch")
    @dataclasses.dataclass(frozen=True)
    class Stretch(ql.Sampler):
        """All distances stretched by one random factor.

        Attributes:
          amplitude_bohr: standard deviation of the displacement of an atom at 1 bohr from the origin.
        """

        amplitude_bohr: float = 0.1

        def draw(self, mol, rng):
            while True:
                yield mol.positions * (1 + self.amplitude_bohr * rng.normal())

    return Stretch


def test_a_sampler_of_ones_own_is_trained_with_saved_and_resumed(stretch, tmp_path):
    """A training that is stopped and resumed ends bit for bit where one without interruption ends."""
    def trainer(folder, resume=False):
        config = dataclasses.replace(cases.quick(12), sampling=ql.Sampling("stretch", amplitude_bohr=0.02))
        return ql.Trainer(
            WATER, cases.QUICK_METHOD, cases.QUICK_MODEL, config, out=tmp_path / folder, resume=resume
        )

    whole = trainer("whole").run()
    stopped = trainer("parts").start()
    cases.wait_until(lambda: stopped.step >= 3)
    stopped.stop(timeout=60)
    parts = trainer("parts", resume=True).run()
    leaves = zip(*(jax.tree.leaves(run.run_folder.restore().params) for run in (whole, parts)), strict=True)
    assert all(np.array_equal(left, right) for left, right in leaves)
    assert [row["loss"] for row in whole.rows] == [row["loss"] for row in parts.rows]
    record = json.loads((parts.out / "config.json").read_text())["train"]["sampling"]
    assert record == {"sampler": "stretch", "amplitude_bohr": 0.02}
    assert ql.Run.open(parts.out).train_config.sampling == stretch(0.02)
    assert "Geometries: stretch (amplitude_bohr 0.02)" in (parts.out / "model-card.md").read_text()
    del register._SAMPLERS["stretch"]
    with pytest.raises(ql.InputError, match=r"got 'stretch'; use one of these, or register your sampler"):
        ql.Run.open(parts.out)


def test_every_list_of_samplers_follows_the_register(stretch):
    assert list(samplers()) == ["md", "modes", "torsions", "conformers", "perturb", "file", "model", "stretch"]
    assert samplers()["stretch"] == "All distances stretched by one random factor."
    assert all(text.endswith(".") for text in samplers().values())
    picker = MoleculePicker(Session())
    (menu,) = (widget for widget in _descendants(picker) if getattr(widget, "description", "") == "Sampler")
    options = menu.options
    assert options == samplers_without_required() == tuple(name for name in samplers() if name != "file")
    session = Session()
    session.sampler = "stretch"
    with pytest.raises(traitlets.TraitError, match=r"got 'dream'; use one of md, .*stretch"):
        session.sampler = "dream"


def _descendants(widget):
    """Yield a widget and all widgets in it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _descendants(child)


SCRIPT = '''
import dataclasses
import qptlab as ql

@ql.register_sampler("stretch")
@dataclasses.dataclass(frozen=True)
class Stretch(ql.Sampler):
    amplitude_bohr: float = 0.1

    def draw(self, mol, rng):
        while True:
            yield mol.positions * (1 + self.amplitude_bohr * rng.normal())

from qptlab.cli import main
main()
'''


def test_the_command_line_lists_and_uses_a_sampler_of_ones_own(tmp_path):
    script = tmp_path / "stretch.py"
    script.write_text(SCRIPT)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        )

    text = " ".join(run("train", "--help").stdout.split())
    assert f"one of {', '.join([*samplers(), 'stretch'])}." in text.replace(" │ │ ", " ")
    out = tmp_path / "s.xyz"
    options = ("--sampler", "stretch", "--sampler-option", "amplitude_bohr=0.5")
    done = run("sample", "water", *options, "--n", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    factor = 1 + 0.5 * generator(Purpose.TEST_GEOMETRIES, 0, 0).normal()
    (frame,) = ql.read_xyz(out)
    np.testing.assert_allclose(frame.positions, factor * WATER.positions, atol=1e-7)
    wrong = run("sample", "water", "--sampler", "stretch", "--temperature", "300", "--out", tmp_path / "t.xyz")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "qptlab: Expected amplitude_bohr for the sampler stretch, got temperature; use amplitude_bohr=0.1.\n"
    )


def test_a_sampler_holds_its_own_parameters_only():
    assert {name: parameters(name) for name in samplers()} == {
        "md": {"temperature": 500.0}, "modes": {"temperature": 500.0}, "torsions": {"sigma_bohr": 0.05},
        "conformers": {"sigma_bohr": 0.05}, "perturb": {"sigma_bohr": 0.05}, "file": {"path": dataclasses.MISSING},
        "model": {"temperature": 500.0},
    }
    for sampling in (ql.Sampling(), ql.Sampling("perturb", sigma_bohr=0.02), ql.Sampling("file", path="x.xyz")):
        record = dataclasses.asdict(sampling)
        assert set(record) == {"sampler", *parameters(sampling.sampler)}
        assert sampling_from_json(json.loads(json.dumps(record))) == sampling


def test_a_record_of_version_0_1_0_is_read():
    """It held the parameters of all samplers."""
    old = {"temperature": 300.0, "sigma_bohr": 0.02, "path": ""}
    assert sampling_from_json({"sampler": "md", **old}) == ql.Sampling("md", temperature=300.0)
    assert sampling_from_json({"sampler": "perturb", **old}) == ql.Sampling("perturb", sigma_bohr=0.02)
    run = ql.Run.open(RUN_0_1_0)
    assert run.train_config.sampling == ql.Sampling("perturb", sigma_bohr=0.05)


def test_options_of_the_command_line_have_the_types_of_the_parameters(stretch):
    assert parameters_from_text("stretch", ["amplitude_bohr=1"]) == {"amplitude_bohr": 1.0}
    assert type(parameters_from_text("stretch", [" amplitude_bohr = 1 "])["amplitude_bohr"]) is float
    assert parameters_from_text("file", ["path=2=3.xyz"]) == {"path": "2=3.xyz"}
    assert parameters_from_text("file", ["path=12"]) == {"path": "12"}
    for option in ("amplitude_bohr", "=0.1"):
        with pytest.raises(ql.InputError, match=rf"Expected NAME=VALUE .* got '{option}'"):
            parameters_from_text("stretch", [option])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"sampler": "dream"}, "Expected one of the samplers md, modes, .*, got 'dream'"),
        ({"temperature": 0.0}, "temperature above 0, up to 5000 K, for the sampler md, got 0.0; use 500"),
        ({"temperature": float("nan")}, "temperature above 0.* got nan"),
        ({"sampler": "perturb", "sigma_bohr": -1.0}, "sigma_bohr above 0, up to 0.5 bohr.* got -1.0; use 0.05"),
        ({"sampler": "file"}, "Expected path for the sampler file, got no parameter; use path=…"),
        ({"sampler": "file", "path": ""}, "Expected the path of an XYZ file .* got ''"),
        ({"sigma_bohr": 0.1}, "Expected temperature for the sampler md, got sigma_bohr; use temperature=500.0"),
        ({"sampler": "torsions", "colour": 1}, "Expected sigma_bohr for the sampler torsions, got colour"),
    ],
)
def test_choices_that_cannot_be_used_are_refused(choice, message):
    with pytest.raises(ql.InputError, match=message):
        ql.Sampling(**choice)


def test_a_class_that_is_not_a_sampler_is_not_registered(stretch, tmp_path):
    with pytest.raises(ql.InputError, match="Expected a dataclass derived from Sampler for 'bare'"):
        ql.register_sampler("bare")(type("Bare", (ql.Sampler,), {}))
    with pytest.raises(ql.InputError, match=r"got .md., which is the name of qptlab.sampling.dynamics"):
        ql.register_sampler("md")(stretch)
    with pytest.raises(ql.InputError, match="without spaces, got 'a b'"):
        ql.register_sampler("a b")(stretch)
    assert ql.register_sampler("stretch")(stretch) is stretch  # a cell of a notebook, run twice
    unregistered = dataclasses.dataclass(frozen=True)(type("Longer", (stretch,), {}))
    config = dataclasses.replace(cases.quick(1), sampling=unregistered())
    with pytest.raises(ql.InputError, match="Expected a registered sampler, got Longer"):
        ql.Trainer(WATER, cases.QUICK_METHOD, cases.QUICK_MODEL, config, out=tmp_path / "w")
    assert not (tmp_path / "w").exists()
