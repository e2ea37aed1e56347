"""The measurements for a machine with a GPU, rehearsed on the CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu.py"
STAGES = ("right", "uracil", "throughput", "profile", "parts", "sizes", "molecules")


def run(out, *options):
    """Rehearse, and return what was printed and the record of each stage."""
    command = [sys.executable, SCRIPT, "--rehearse", "--out", out, *options]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert not done.returncode, done.stderr
    return done.stdout, {name: json.loads((out / f"{name}.json").read_text()) for name in STAGES
                         if (out / f"{name}.json").exists()}


@pytest.mark.slow
def test_every_stage_is_rehearsed(tmp_path):
    printed, records = run(tmp_path, "--minutes", "20")
    assert tuple(records) == STAGES
    assert {name: record["ended"] for name, record in records.items()} == dict.fromkeys(STAGES, "complete"), printed
    assert all(record["machine"]["precision"] == "float64" for record in records.values())

    largest = {"energy_ha": 1e-9, "fock_ha": 1e-8, "forces_ha_per_bohr": 1e-6, "relative": 1e-6}
    right = records["right"]["rows"]
    assert len(right) == 6
    assert all(row[key] <= largest[key] for row in right for key in largest if key in row)
    assert all(row["per_second"] > 0 for row in records["throughput"]["rows"])
    errors = records["uracil"]["rows"][-1]
    assert errors["fock_mae_uha"] < errors["baselines"]["pyscf_same_fock_builds"]["fock_mae_uha"]
    assert (tmp_path / "trace.xplane.pb.gz").stat().st_size > 0
    assert records["profile"]["rows"][0]["operations"]
    subprocess.run([sys.executable, SCRIPT, "--draw", "--out", tmp_path], check=True)
    assert {path.name for path in tmp_path.glob("*.png")} == {"profile-timeline.png", "profile-roofline.png"}
    assert 0 <= records["molecules"]["rows"][-1]["waiting_share"] < 1


@pytest.mark.slow
def test_a_stage_that_fails_or_takes_too_long_does_not_stop_the_next(tmp_path):
    printed, records = run(
        tmp_path, "--minutes", "5", "--molecules", str(tmp_path / "missing.xyz"),
        *(option for name in ("molecules", "throughput") for option in ("--only", name)),
    )
    assert "molecules: failed" in printed
    assert "missing.xyz" in records["molecules"]["ended"]
    assert records["throughput"]["ended"] == "complete"

    printed, _ = run(tmp_path / "short", "--minutes", "0.01", "--only", "right")
    assert "right: stopped at its time limit" in printed
