"""Folders that cannot be written: a training pauses, says so, and goes on when it can."""

import resource
import signal
import subprocess
import threading

import cases
import pytest

import qptlab as ql
from qptlab.training.run import Run


def allow(process, size):
    """Limit the size of the files that a process writes, as a full disk would."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of a different process need Linux")
def test_a_full_disk_or_a_folder_that_is_gone_pauses_a_training_and_it_goes_on(tmp_path):
    out, said = tmp_path / "w", []

    def rows():
        return len(Run.open(out).metrics())

    def problems():
        return " ".join("".join(said).split()).count("qptlab: Expected room for")

    command = [*cases.QUICK_COMMAND, str(out), "--steps", "1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    reader = threading.Thread(target=said.extend, args=[process.stderr])
    reader.start()
    try:
        cases.wait_until(lambda: (out / "metrics.csv").exists() and rows() > 3, 300)
        allow(process, (out / "metrics.csv").stat().st_size + 300)
        cases.wait_until(lambda: problems() == 1)
        assert "File too large; make room" in " ".join("".join(said).split())
        before = Run.open(out).metrics()
        assert [row["step"] for row in before] == list(range(1, len(before) + 1)), "no row is cut short"
        allow(process, resource.RLIM_INFINITY)
        cases.wait_until(lambda: rows() > len(before) + 3)

        out.rename(tmp_path / "gone")
        cases.wait_until(lambda: problems() == 2)
        (tmp_path / "gone").rename(out)
        before = rows()
        cases.wait_until(lambda: rows() > before + 3)

        allow(process, (out / "metrics.csv").stat().st_size + 300)
        cases.wait_until(lambda: problems() == 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
    assert "Traceback" not in "".join(said)
    assert "orbax" not in "".join(said).lower()
    trainer = ql.Trainer.open(out)
    assert trainer.step >= 1
    assert [row["step"] for row in trainer.rows] == list(range(1, trainer.step + 1))
