"""SIGKILL at any moment: a training that is killed again and again ends as an undisturbed one, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import cases
import jax
import numpy as np
import pytest

import qptlab as ql
from qptlab.training.run import Run

KILLS = 50 if os.environ.get("QPTLAB_FAULTS") else 3
"""Number of times that the training is killed; more in the long form, with QPTLAB_FAULTS=1."""

OFTEN = "from qptlab.training import trainer; trainer.CHECKPOINT_SECONDS = 0.2; from qptlab.cli import main; main()"
"""Program whose trainings write checkpoints often, so that some kills hit them."""


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    steps, rng = str(6 * KILLS + 6), np.random.default_rng(0)
    settings = [*cases.QUICK_COMMAND[3:-1], "--steps", steps, "--validation", "1"]

    def arguments(name):
        return [sys.executable, "-c", OFTEN, *settings, "--out", str(tmp_path / name)]

    def rows():
        path = tmp_path / "killed/metrics.csv"
        return len(Run.open(path.parent).metrics()) if path.exists() else 0

    subprocess.run(arguments("whole"), check=True, capture_output=True)
    for _ in range(KILLS):
        with subprocess.Popen([*arguments("killed"), "--resume"], stderr=subprocess.DEVNULL) as process:
            goal = rows() + int(rng.integers(1, 5))
            while rows() < goal and process.poll() is None:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        with (tmp_path / "killed/metrics.csv").open("a") as file:
            file.write("123,4.5,-7")  # a crash may cut a row short
    done = subprocess.run([*arguments("killed"), "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    whole, killed = (Run.open(tmp_path / name) for name in ("whole", "killed"))
    assert [row["step"] for row in killed.metrics()] == list(range(1, int(steps) + 1))
    assert [row["energy_ha"] for row in killed.metrics()] == [row["energy_ha"] for row in whole.metrics()]
    states = [run.restore() for run in (whole, killed)]
    assert all(states)
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states if state))
    assert not [path for path in (tmp_path / "killed").rglob("*") if path.name.endswith((".new", "tmp"))]
    assert ql.load(tmp_path / "killed")
