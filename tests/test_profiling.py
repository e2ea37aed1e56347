"""Profiles of a live training."""

import cases
import pytest

import qptlab as ql
from qptlab.gui import profiling


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "w"
    water = ql.Molecule.from_name("water")
    trainer = ql.Trainer(water, cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(400), out=out).start()
    found = profiling.profile(trainer, 6)  # which waits until all is compiled
    halted = trainer.status
    trainer.stop()
    return trainer, found, halted


def test_operations_are_named_and_their_time_fits_the_steps(profiled):
    trainer, found, halted = profiled
    assert halted == "running", "the training goes on after its peaks were measured"
    assert found.steps >= 6
    assert 0 < found.busy_s <= found.traced_s
    assert {each.name for each in found.executables} == {"correct", "judge", "pull", "update"}
    assert all(each.calls > 0 and each.seconds > 0 for each in found.executables)
    assert sum(each.seconds for each in found.operations) == pytest.approx(
        sum(span.length for span in found.timeline), rel=0.6
    )
    own = [each for each in found.operations if each.function in ("judge", "correct", "pull")]
    assert sum(bool(each.layer) for each in own) > 0.6 * len(own)
    sources = {each.source.split(":")[0] for each in own if each.source}
    assert "models/qpt.py" in sources
    assert "step" in found.summary()
    assert next(found.path.rglob("*.xplane.pb"), None) is not None
    assert trainer.out in found.path.parents


def test_counted_work_of_the_network_is_what_its_shape_says(profiled):
    """Forwards of a batch: 2 operations for each parameter and token; of the five layers XLA counts one."""
    _, found, _ = profiled
    by_name = {each.name: each for each in found.executables}
    assert by_name["correct"].has_loops
    assert not by_name["update"].has_loops
    layer, tokens = 2 * 12 * 128**2, 4 * 7
    assert layer * tokens < by_name["correct"].flops < 2 * layer * tokens


def test_nothing_to_profile_is_said(profiled):
    trainer, _, _ = profiled
    with pytest.raises(ql.InputError, match="No training is running"):
        profiling.profile(trainer)
    with pytest.raises(ql.InputError, match="at least 1 step to profile, got 0"):
        profiling.profile(trainer, 0)
