"""Profiles of a running training."""

import pathlib

import cases
import pytest

import qptlab as ql
from qptlab.gui import profiling


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "w"
    water = ql.Molecule.from_name("water")
    trainer = ql.Trainer(water, cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(400), out=out).start()
    profile = profiling.profile(trainer, 6)  # it waits until all functions are compiled
    status = trainer.status
    trainer.stop()
    return trainer, profile, status


def test_operations_are_named_and_their_time_fits_the_steps(profiled):
    trainer, profile, status = profiled
    assert status == "running", "the training continues after the peaks were measured"
    assert profile.steps >= 6
    assert 0 < profile.busy_s <= profile.traced_s
    assert {executable.name for executable in profile.executables} == {"correct", "judge", "pull", "update"}
    assert all(executable.calls > 0 and executable.seconds > 0 for executable in profile.executables)
    assert not any("callback" in compiled.as_text() for compiled, _ in trainer.executables.values()), "the host waits"
    assert sum(operation.seconds for operation in profile.operations) == pytest.approx(
        sum(span.length for span in profile.timeline), rel=0.6
    )
    operations = [operation for operation in profile.operations if operation.function in ("judge", "correct", "pull")]
    assert sum(bool(operation.layer) for operation in operations) > 0.6 * len(operations)
    sources = {operation.source.split(":")[0] for operation in operations if operation.source}
    assert "models/qpt.py" in sources
    assert "step" in profile.summary()
    assert next(profile.path.rglob("*.xplane.pb"), None) is not None
    assert trainer.out in profile.path.parents


def test_sources_are_known_for_a_function_from_the_cache_of_another_installation(profiled):
    """The text of a function from the cache has the paths of the installation that compiled it."""
    text = profiled[0].executables["pull"][0].as_text()
    folder = str(pathlib.Path(ql.__file__).parent)
    assert f"{folder}/models/qpt.py" in text
    origins = profiling._origins(text.replace(folder, "/opt/qptlab/lib/python3.12/site-packages/qptlab"))
    assert origins == profiling._origins(text)
    assert not any(source for _, source in profiling._origins(text.replace(folder, "/opt/haiku")).values())


def test_counted_operations_of_the_network_agree_with_its_shape(profiled):
    """A forward pass of a batch takes 2 operations per parameter and token; XLA counts one of the five layers."""
    _, profile, _ = profiled
    by_name = {executable.name: executable for executable in profile.executables}
    assert by_name["correct"].has_loops
    assert not by_name["update"].has_loops
    layer, tokens = 2 * 12 * 128**2, 4 * 7
    assert layer * tokens < by_name["correct"].flops < 2 * layer * tokens


def test_without_a_running_training_there_is_a_message(profiled):
    trainer, _, _ = profiled
    with pytest.raises(ql.InputError, match="No training is running"):
        profiling.profile(trainer)
    with pytest.raises(ql.InputError, match="at least 1 step to profile, got 0"):
        profiling.profile(trainer, 0)
