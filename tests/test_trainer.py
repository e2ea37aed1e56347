"""Training in the background, run folders, and going on after a crash."""

import dataclasses
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import cases
import jax
import numpy as np
import pytest

import qptlab as ql
from qptlab.training.run import COLUMNS, Run

METHOD, MODEL, WATER = cases.QUICK_METHOD, cases.QUICK_MODEL, ql.Molecule.from_name("water")
config, wait_until = cases.quick, cases.wait_until


def finished(out):
    """Steps of the checkpoints that are complete."""
    return [int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit()]


def test_a_finished_training_beats_both_baselines_on_geometries_that_it_never_saw(trained):
    last = trained.rows[-1]
    assert trained.status == "finished"
    assert last["step"] == trained.step == 60
    assert 0 < last["validation_mae_mev"] < 0.1 * last["no_network_mae_mev"]
    assert last["validation_mae_mev"] < 0.1 * last["pyscf_stopped_mae_mev"]


@pytest.mark.filterwarnings("ignore:.* is not the molecule")
def test_a_training_starts_from_a_trained_model_and_keeps_the_elements_that_it_knows(tmp_path):
    """Also in a different functional, and after a process that ended before the first update."""
    network = ql.EquivariantConfig("small", iterations=0)
    systems, kinds = ql.make_systems([ql.Molecule.from_name("ethanol")], METHOD, network)
    model = ql.CorrectionModel(network, kinds)
    known = ql.CorrectionPredictor(model, cases.awake(model.init(jax.random.key(0))), systems)
    pbe = ql.Method("pbe", "sto-3g", grid_level=0)
    assert ql.Trainer(WATER, pbe, None, config(2), tmp_path / "a", start=known).method == pbe
    trainer = ql.Trainer(WATER, None, None, config(2), tmp_path / "b", start=known)
    before = known(WATER).energy
    assert trainer.predictor(WATER).energy == pytest.approx(float(before), abs=1e-9)
    again = ql.Trainer.open(tmp_path / "b")
    assert again.step == 0
    assert again.predictor(WATER).energy == pytest.approx(float(before), abs=1e-9)
    again.run()
    assert again.step == 2
    assert "- Start: Equivariant Transformer of ethanol, LDA/sto-3g." in (tmp_path / "b/model-card.md").read_text()
    ql.load(tmp_path / "b").save(tmp_path / "model.h5")
    for path in (tmp_path / "b", tmp_path / "model.h5"):
        assert ql.load(path).model.kinds == known.model.kinds
    trained = ql.load(tmp_path / "model.h5")
    assert abs(float(trained(WATER).energy - before)) > 1e-9
    assert np.isfinite(float(trained(ql.Molecule.from_name("methane")).energy))
    with pytest.raises(ql.InputError, match="got N 1s"):
        ql.Trainer(ql.Molecule.from_name("ammonia"), out=tmp_path / "c", start=known)
    with pytest.raises(ql.InputError, match="Expected the network of the model"):
        ql.Trainer(WATER, model=ql.EquivariantConfig("base"), out=tmp_path / "c", start=known)
    with pytest.raises(ql.InputError, match="whose network is switched off"):
        ql.Trainer(WATER, out=tmp_path / "c", start=known.without_network())


def test_metrics_on_disk_are_those_in_memory_without_gap_or_double(trained):
    rows = Run.open(trained.out).metrics()
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert set(rows[-1]) == set(COLUMNS)
    for ours, theirs in zip(trained.rows, rows, strict=True):
        assert ours["energy_ha"] == theirs["energy_ha"]


def test_the_folder_says_what_was_run_and_with_what(trained):
    record = json.loads((trained.out / "config.json").read_text())
    assert ql.Method(**record["method"]) == cases.QUICK_METHOD
    assert record["train"]["seed"] == 0
    assert {"jax", "pyscf", "python", "qptlab", "qptlab_source_sha256"} <= set(record["versions"])
    assert len(ql.read_xyz(trained.out / "validation.xyz")) == 2
    assert not list(trained.out.rglob("*.pkl"))


def test_the_model_card_has_the_errors_beside_the_baselines(trained):
    card = (trained.out / "model-card.md").read_text()
    for said in ("water (H2O)", "LDA/sto-3g", "60 updates of 4 geometries", "| no network, ", "| PySCF, "):
        assert said in card
    row = next(line for line in card.splitlines() if line.startswith("| QPT"))
    assert float(row.split("|")[2].split("±")[0]) == pytest.approx(trained.rows[-1]["validation_mae_mev"], rel=1e-3)


def test_a_loaded_model_predicts_what_the_trainer_does(trained):
    mol = WATER.with_positions(WATER.positions * 1.02)
    again = ql.load(trained.out)(mol)
    assert float(again.energy) == float(trained.predictor(mol).energy)


def test_events_tell_the_whole_story_to_every_watcher(trained):
    kinds = [event.kind for event in trained.events()]
    assert kinds.count("step") == 60
    assert kinds[0] == "status"
    assert {"compiling", "validation", "checkpoint", "news"} <= set(kinds)
    assert trained.events(since=5) == trained.events()[5:]
    statuses = [event.text for event in trained.events() if event.kind == "status"]
    assert statuses == ["compiling", "running", "finished"]


def test_a_run_goes_on_with_a_larger_budget_where_it_stopped(trained, tmp_path):
    first = ql.Trainer(WATER, METHOD, MODEL, config(8), out=tmp_path / "w").run()
    second = ql.Trainer(WATER, METHOD, MODEL, config(12), out=tmp_path / "w", resume=True).run()
    assert [row["step"] for row in second.rows] == list(range(1, 13))
    assert second.rows[7]["energy_ha"] == first.rows[7]["energy_ha"]
    seconds = [row["seconds"] for row in second.rows]
    assert seconds == sorted(seconds)


def test_pause_halts_resume_goes_on_and_stop_ends(tmp_path):
    trainer = ql.Trainer(WATER, METHOD, MODEL, config(100_000), out=tmp_path / "w")
    assert trainer.status == "ready"
    trainer.start()
    wait_until(lambda: trainer.step >= 3)
    trainer.pause()
    wait_until(lambda: trainer.status == "paused")
    halted = trainer.step
    time.sleep(0.5)
    assert trainer.step == halted
    assert Run.open(trainer.out).restore().step == halted, "a pause writes a checkpoint"
    trainer.resume()
    wait_until(lambda: trainer.step >= halted + 3)
    trainer.stop(timeout=60)
    assert trainer.status == "stopped"
    assert not trainer.is_alive
    assert [row["step"] for row in trainer.rows] == list(range(1, trainer.step + 1))
    assert Run.open(trainer.out).restore().step == trainer.step


def test_stopping_before_the_first_step_leaves_a_folder_that_can_be_resumed(tmp_path):
    trainer = ql.Trainer(WATER, METHOD, MODEL, config(3), out=tmp_path / "w")
    trainer.start().stop(timeout=60)
    assert trainer.status == "stopped"
    again = ql.Trainer(WATER, METHOD, MODEL, config(3), out=tmp_path / "w", resume=True).run()
    assert again.step == 3


def test_a_folder_that_holds_something_is_refused_and_left_alone(trained, tmp_path):
    before = (trained.out / "metrics.csv").read_bytes()
    with pytest.raises(ql.InputError, match="holds another run"):
        ql.Trainer(WATER, METHOD, MODEL, config(3), out=trained.out)
    assert (trained.out / "metrics.csv").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ql.InputError, match="holds other files"):
        ql.Trainer(WATER, METHOD, MODEL, config(3), out=tmp_path)
    with pytest.raises(ql.InputError, match="Expected an output folder that can be written"):
        ql.Trainer(WATER, METHOD, MODEL, config(3), out=tmp_path / "notes.txt" / "run")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("method", "model", "changes", "said"),
    [
        (ql.Method("pbe", "sto-3g", grid_level=0), MODEL, {}, "Expected method"),
        (METHOD, ql.QPTConfig("micro", iterations=1), {}, "Expected model"),
        (METHOD, MODEL, {"seed": 1}, "Expected seed 0, .*, got 1"),
        (METHOD, MODEL, {"averaging": 0.5}, r"Expected averaging 0.98, .*, got 0.5"),
    ],
)
def test_going_on_with_other_settings_is_refused(trained, method, model, changes, said):
    with pytest.raises(ql.InputError, match=said):
        ql.Trainer(WATER, method, model, config(61, **changes), out=trained.out, resume=True)


def test_going_on_with_an_isomer_is_refused(tmp_path):
    ethanol, ether = ql.Molecule.from_name("ethanol"), ql.Molecule.from_smiles("COC")
    ql.Trainer(ethanol, METHOD, MODEL, config(1), out=tmp_path / "w")
    with pytest.raises(ql.InputError, match=r"Expected molecules ethanol, .*, got COC"):
        ql.Trainer(ether, METHOD, MODEL, config(1), out=tmp_path / "w", resume=True)


def test_nothing_is_written_for_what_cannot_be_used(tmp_path):
    with pytest.raises(ql.InputError, match="nonsense"):
        ql.Trainer(WATER, ql.Method("lda", "nonsense"), MODEL, config(3), out=tmp_path / "w")
    frames = dataclasses.replace(config(3), sampling=ql.Sampling("file", path=str(tmp_path / "none.xyz")))
    with pytest.raises(ql.InputError, match=r"none.xyz, which cannot be read"):
        ql.Trainer(WATER, METHOD, MODEL, frames, out=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_network_too_large_for_the_machine_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["qptlab.training.loop"], "device_bytes", lambda: 2**30)
    with pytest.raises(ql.InputError, match=r"trained in 1\.0 GiB on cpu, got .*'medium'.*, which takes 5\.[67] GiB"):
        ql.Trainer(WATER, METHOD, ql.QPTConfig("medium"), config(3), out=tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_training_on_a_file_of_ones_own_and_its_loss_in_the_background(tmp_path):
    path = tmp_path / "mine.xyz"
    path.write_text("".join(WATER.with_positions(WATER.positions * (1 + i / 200)).to_xyz() for i in range(10)))
    frames = dataclasses.replace(config(3), sampling=ql.Sampling("file", path=str(path)))
    assert ql.Trainer(WATER, METHOD, MODEL, frames, out=tmp_path / "w").run().step == 3
    late = ql.Trainer(WATER, METHOD, MODEL, frames, out=tmp_path / "late")
    path.unlink()
    with pytest.raises(ql.InputError, match=r"mine.xyz, which cannot be read"):
        late.run()
    assert late.status == "failed"
    assert late.events()[-2].kind == "error"


@pytest.mark.parametrize("what", ["an empty folder", "a broken configuration", "no checkpoint"])
def test_what_is_no_run_is_not_loaded(tmp_path, what):
    if what == "a broken configuration":
        (tmp_path / "config.json").write_text('{"molecule": {}}')
    if what == "no checkpoint":
        Run.create(tmp_path, ql.make_objective(WATER, METHOD, MODEL), config(3))
    with pytest.raises(ql.InputError, match=tmp_path.name):
        ql.load(tmp_path)


ENDLESS = ("--steps", "1000000")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("moment", ["while compiling", "after a step"])
def test_a_signal_saves_the_training_says_where_and_ends_it_soon(tmp_path, name, moment):
    out = tmp_path / "w"
    process = subprocess.Popen([*cases.QUICK_COMMAND, str(out), *ENDLESS], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (out / "writer.json").exists())
    if moment == "after a step":
        wait_until(lambda: len(Run.open(out).metrics()) > 3)
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - began < 8
    assert "Traceback" not in err
    step = int(re.search(r"stopped at step (\d+), kept in .*; use --resume to continue", " ".join(err.split()))[1])
    assert step == max(finished(out), default=0)
    assert (step > 3) == (moment == "after a step")


def test_a_second_interrupt_ends_a_training_at_once(tmp_path):
    out = tmp_path / "w"
    process = subprocess.Popen([*cases.QUICK_COMMAND, str(out), *ENDLESS], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (out / "events.jsonl").exists() and "compiling" in (out / "events.jsonl").read_text())
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - began < 2
    assert "Traceback" not in err


def contents(folder):
    """Return the bytes and times of all files of a folder."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_looking_at_a_run_changes_nothing_also_while_it_is_trained(tmp_path):
    long = dataclasses.replace(config(1), steps=None, minutes=5.0)
    live = ql.Trainer(WATER, METHOD, MODEL, long, tmp_path / "w").start()
    wait_until(lambda: len(live.rows) > 3)
    live.pause()
    wait_until(lambda: live.status == "paused")
    before = contents(tmp_path / "w")
    seen = ql.Trainer.open(tmp_path / "w")
    seen.make_validation()
    assert seen.step == live.step
    assert len(seen.rows) == len(live.rows)
    assert ql.load(tmp_path / "w")
    assert contents(tmp_path / "w") == before
    said = f"nobody is training, got .*, which process {os.getpid()} on .* since"
    for act in (seen.start, lambda: seen.note("hello"), lambda: ql.Trainer.open(tmp_path / "w").run()):
        with pytest.raises(ql.InputError, match=said):
            act()
    assert contents(tmp_path / "w") == before
    step = live.step
    live.resume()
    wait_until(lambda: len(live.rows) > step + 1)
    live.stop()
    assert not (tmp_path / "w/writer.json").exists()
    with pytest.raises(ql.InputError, match=f"at step {step}, as it was opened, .* of step {live.step}; open it"):
        seen.start()
    again = ql.Trainer.open(tmp_path / "w")
    assert [row["step"] for row in again.rows] == list(range(1, live.step + 1))
    again.note("hello")
    assert Run.open(tmp_path / "w").events()[-1]["text"] == "hello"


def test_a_stale_lock_is_recognised_and_said(tmp_path):
    ql.Trainer(WATER, METHOD, MODEL, config(2), tmp_path / "w").run()
    (tmp_path / "w/writer.json").write_text('{"host": "node7", "process": 12, "since": "2026-01-01"}')
    trainer = ql.Trainer.open(tmp_path / "w", config(3)).run()
    assert trainer.step == 3
    assert any("process 12 on 'node7' since '2026-01-01'" in event.text for event in trainer.events())


def test_a_lock_that_leads_out_of_the_folder_is_refused(tmp_path):
    ql.Trainer(WATER, METHOD, MODEL, config(2), tmp_path / "w").run()
    (tmp_path / "w/.lock").unlink()
    (tmp_path / "precious").write_text("text")
    (tmp_path / "w/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ql.InputError, match="Expected a lock in the run folder, got a link"):
        ql.Trainer.open(tmp_path / "w", config(3)).start()
    assert (tmp_path / "precious").read_text() == "text"


STARTS = int(os.environ.get("QPTLAB_STARTS", "20"))
"""A hundred take minutes: QPTLAB_STARTS=100."""


@pytest.mark.slow
def test_many_starts_and_stops_leave_no_thread_and_no_memory_behind(tmp_path):
    """Every tenth is waited for until it has made a step; the others are stopped wherever they are."""
    water = ql.Molecule.from_name("water")

    def once(index):
        trainer = ql.Trainer(water, cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(50), out=tmp_path / str(index))
        trainer.start()
        if index % 10 == 0:
            wait_until(lambda: trainer.step >= 1 or not trainer.is_alive)
        trainer.stop()
        assert trainer.status in ("stopped", "finished")
        shutil.rmtree(tmp_path / str(index))

    def left():
        gc.collect()
        own = [thread.name for thread in threading.enumerate() if thread.name.startswith("qptlab")]
        return own, sum(array.nbytes for array in jax.live_arrays())

    for index in range(10):  # what is kept for good is made once
        once(index)
    threads, memory = left()
    for index in range(10, 10 + STARTS):
        once(index)
    assert left()[0] == threads == []
    assert left()[1] <= memory + 2**20
