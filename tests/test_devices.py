"""Several devices and several processes do what one device does."""

import os
import pathlib
import socket
import subprocess
import sys

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.runtime import devices
from qptlab.training.config import TrainConfig

STEPS = 20


def run(folder, count=1, way="run", **environment):
    """Train in so many processes; their words where one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    script = str(pathlib.Path(__file__).with_name("share_out.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(folder), address, str(count), str(index), str(STEPS), way],
            env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(count)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(said)
    return ql.Run.open(folder).metrics()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The metrics of a training on one device."""
    water = ql.Molecule.from_name("water")
    out = tmp_path_factory.mktemp("runs") / "alone"
    ql.Trainer(water, cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(STEPS), out=out).run()
    return ql.Run.open(out).metrics()


def check(found, alone):
    """The same curve, to the rounding of a float32 network's gradients."""
    assert len(found) == len(alone)
    for name in ("energy_ha", "learning_rate", "geometries"):
        np.testing.assert_allclose([row[name] for row in found], [row[name] for row in alone], rtol=0, atol=1e-6)
    assert found[-1]["validation_mae_mev"] == pytest.approx(alone[-1]["validation_mae_mev"], rel=1e-3)


def test_two_devices_share_a_training(alone, tmp_path):
    check(run(tmp_path / "run", XLA_FLAGS="--xla_force_host_platform_device_count=2"), alone)


def test_two_processes_share_a_training_and_go_on_with_it(alone, tmp_path):
    halfway = run(tmp_path / "run", 2, "stop")
    assert 3 <= len(halfway) < STEPS
    check(run(tmp_path / "run", 2, "resume"), alone)
    assert (tmp_path / "run" / "model-card.md").exists()
    assert np.isfinite(ql.load(tmp_path / "run")(ql.Molecule.from_name("water")).energy)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(devices.Devices, "count", 3)
    with pytest.raises(ql.InputError, match="Expected a batch that can be divided among 3 devices, got 4 geometries"):
        ql.Trainer(ql.Molecule.from_name("water"), cases.QUICK_METHOD, train=TrainConfig(batch=4))
