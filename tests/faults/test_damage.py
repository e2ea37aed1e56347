"""Damaged files of runs and models: every damage is noticed, and the checkpoint before it is used."""

import dataclasses
import json
import os
import pathlib
import shutil
import warnings

import cases
import h5py
import jax
import numpy as np
import pytest

import qptlab as ql
from qptlab.models import files
from qptlab.training import checksums
from qptlab.training.run import Run

FLIPS = 1500 if os.environ.get("QPTLAB_FAULTS") else 150
"""Number of damages of each file; more in the long form, with QPTLAB_FAULTS=1."""

WATER = ql.Molecule.from_name("water")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 4 steps with the checkpoints 1 and 4."""
    out = tmp_path_factory.mktemp("whole") / "w"
    return ql.Trainer(WATER, cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(4), out).run()


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the folder, to damage it."""
    return pathlib.Path(shutil.copytree(whole.out, tmp_path / "w"))


def flip(path, rng):
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def cut(path, rng):
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def zero(path, rng):
    """Overwrite a part of a file with zeros; at least one byte changes."""
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    start = rng.choice(np.flatnonzero(content))
    content[start : start + 512] = 0
    path.write_bytes(content.tobytes())


def lengthen(path, rng):
    """Append bytes to a file."""
    path.write_bytes(path.read_bytes() + rng.bytes(64))


def lose(path, rng):
    """Delete a file."""
    path.unlink()


DAMAGES = (flip, cut, zero, lengthen, lose)


def restored(folder):
    """State that a run is restored to."""
    state = Run.open(folder).restore()
    assert state is not None
    return state


def restored_step(folder):
    return restored(folder).step


def checkpoint_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, copy, tmp_path):
    first = Run.open(copy).path / "checkpoints/1"
    rng = np.random.default_rng(0)
    names = [path.relative_to(copy) for path in checkpoint_files(copy / "checkpoints/4")]
    assert len(names) >= 6
    for number, name in enumerate(names):
        folder = pathlib.Path(shutil.copytree(copy, tmp_path / str(number)))
        DAMAGES[number % len(DAMAGES)](folder / name, rng)
        with pytest.warns(UserWarning, match="the checkpoint of step 4 is damaged .*; that of step 1 is used"):
            assert restored_step(folder) == 1
        for path in checkpoint_files(folder / "checkpoints/1"):
            flip(path, rng)
        with pytest.raises(ql.InputError, match="restore the folder from a copy") as error:
            ql.load(folder)
        assert len(str(error.value)) < 300 + len(str(folder))
    assert first.exists()


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not lengthen])
@pytest.mark.parametrize("name", ["metrics.csv", "events.jsonl"])
def test_damaged_tables_are_said_and_the_model_is_loaded(copy, damage, name):
    damage(copy / name, np.random.default_rng(1))
    with pytest.warns(UserWarning, match=f"{name} is damaged, so its curve may be wrong"):
        trainer = ql.Trainer.open(copy)
    assert trainer.step == 4
    assert any(name in event.text for event in trainer.events())


def test_rows_after_the_checkpoint_are_no_damage(copy):
    run = Run.open(copy)
    run.append({"step": 5, "seconds": 1.0})
    run.log("note", "hello", 4, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restored_step(copy) == 4


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_as_if_nothing_had_been(whole, copy):
    largest = max(checkpoint_files(copy / "checkpoints/4"), key=lambda path: path.stat().st_size)
    flip(largest, np.random.default_rng(2))
    (copy / ".metrics.csv.abc.new").write_text("left by a killed writer")
    (copy / "checkpoints/7.orbax-checkpoint-tmp-1").mkdir()
    with pytest.warns(UserWarning, match="that of step 1 is used"):
        again = ql.Trainer.open(copy)
    assert (copy / "checkpoints/4").exists(), "looking changes nothing"
    again.run()
    assert [row["energy_ha"] for row in again.rows] == [row["energy_ha"] for row in whole.rows]
    states = [jax.tree.leaves(restored(folder).params) for folder in (whole.out, copy)]
    for one, two in zip(*states, strict=True):
        np.testing.assert_array_equal(one, two)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["1", "4"]
    assert not list(copy.glob(".*.new"))
    assert restored_step(copy) == 4


def test_a_checkpoint_whose_writer_was_killed_is_passed_over(copy):
    (copy / "checkpoints/4/checksums.json").unlink()
    with pytest.warns(UserWarning, match="step 4 is damaged .it was not written completely.; that of step 1"):
        assert restored_step(copy) == 1


def test_every_damage_of_the_configuration_is_noticed(copy):
    """Turned bits are refused, or leave what the text means, as in a blank."""
    path = copy / "config.json"
    text, rng = path.read_bytes(), np.random.default_rng(3)
    record = Run.open(copy).record
    refused = 0
    for _ in range(FLIPS):
        path.write_bytes(text)
        flip(path, rng)
        try:
            assert Run.open(copy).record == record
        except ql.InputError:
            refused += 1
    assert refused > 0.7 * FLIPS


def leaves(record, path=()):
    for name, value in record.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def test_a_setting_that_is_missing_is_refused_and_does_not_become_the_default(copy):
    path = copy / "config.json"
    record = json.loads(path.read_text())
    without = ("versions", "created", "sha256")
    places = [place for place in leaves(record) if place[0] not in without]
    assert {("train", "seed"), ("train", "loss"), ("model", "guess"), ("schema",)} < set(places)
    for place in places:
        changed = json.loads(json.dumps(record))
        part = changed
        for name in place[:-1]:
            part = part[name]
        del part[place[-1]]
        path.write_text(json.dumps(changed))
        with pytest.raises(ql.InputError, match=r"config\.json as it was written"):
            Run.open(copy)
        # Without a schema it is one of 0.1.0; a sampler has defaults of its own; folders of schema 1 have no budgets.
        if place[0] not in ("schema", "budgets", "machine") and place[:2] != ("train", "sampling"):
            path.write_text(checksums.sealed(changed))
            with pytest.raises(ql.InputError, match="Expected "):
                ql.load(copy)


def test_a_folder_of_a_newer_schema_is_refused(copy):
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(checksums.sealed(record | {"schema": 3}))
    with pytest.raises(ql.InputError, match="of schema 2 or earlier, got 3; use a newer version of qptlab"):
        Run.open(copy)


def test_a_folder_whose_checksum_was_taken_away_is_refused(copy):
    record = json.loads((copy / "config.json").read_text())
    del record["sha256"]
    (copy / "config.json").write_text(json.dumps(record))
    with pytest.raises(ql.InputError, match="as it was written"):
        Run.open(copy)


def test_every_damage_of_a_model_file_is_noticed(whole, tmp_path):
    path, damaged = tmp_path / "model.h5", tmp_path / "damaged.h5"
    whole.predictor.save(path)
    assert float(ql.load(path)(WATER).energy) == float(whole.predictor(WATER).energy)
    rng = np.random.default_rng(4)
    for number in range(FLIPS):
        shutil.copy(path, damaged)
        DAMAGES[number % 4](damaged, rng)
        with pytest.raises(ql.InputError, match="Expected a model file, got") as error:
            ql.load(damaged)
        assert len(str(error.value)) < 300 + len(str(damaged))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_file_with_parameters_that_are_not_finite_is_refused(whole, tmp_path, value):
    path = tmp_path / "model.h5"
    whole.predictor.save(path)
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        dataset = next(item for item in map(file.get, names) if isinstance(item, h5py.Dataset))
        dataset[(0,) * dataset.ndim] = value
    files.seal(path)
    with pytest.raises(ql.InputError, match="is not finite"):
        ql.load(path)


def test_damaged_labels_and_statistics_are_refused(tmp_path):
    text = ""
    for number in range(3):
        lines = WATER.with_positions(WATER.positions * (1 + 0.01 * number)).to_xyz().splitlines()
        lines[1] = f'Properties=species:S:1:pos:R:3 energy={-2076.3 + 0.1 * number} theory="PBE/def2-svp"'
        text += "\n".join(lines) + "\n"
    (tmp_path / "labels.xyz").write_text(text)
    labelled, out = ql.read_labels(tmp_path / "labels.xyz"), tmp_path / "w"
    training = dataclasses.replace(ql.TrainConfig.supervised(), minutes=None, steps=1, batch=1, validation=1)
    ql.Trainer(labelled, None, ql.GNNConfig(width=8, layers=1, heads=1), training, out).run()
    for name in ("labels.xyz", "statistics.json"):
        content = (out / name).read_bytes()
        for damage in (flip, cut, zero, lose):
            damage(out / name, np.random.default_rng(5))
            with pytest.raises(ql.InputError, match="Expected "):
                ql.load(out)
            (out / name).write_bytes(content)
    assert ql.load(out)
