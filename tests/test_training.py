"""The stream of samples and the training loop."""

import dataclasses
import itertools
import sys

import cases
import jax
import numpy as np
import pytest

import qptlab as ql
from qptlab import geometries
from qptlab.stream import Stream
from qptlab.training import MAX_SKIPPED, TrainConfig, initial_state, train

METHOD = ql.Method("lda", "sto-3g", grid_level=0)
QUICK = TrainConfig(
    minutes=None, steps=6, batch=4, reuse=2, warmup_steps=2, sampling=geometries.Sampling("perturb"), validation=2
)


def stream(seed=0, batch=4, reuse=2):
    qpt, frame = cases.model("water", METHOD, 0)
    source = geometries.sample(frame.molecule, geometries.Sampling("perturb"), seed)
    return Stream(qpt, frame, source, batch=batch, reuse=reuse, seed=seed)


def test_batches_are_the_same_for_a_seed_whatever_the_threads_do():
    with stream() as one, stream() as two:
        for ours, theirs in itertools.islice(zip(one, two, strict=True), 5):
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                np.testing.assert_array_equal(a, b)


def test_every_geometry_is_used_as_often_as_asked_on_average():
    with stream(batch=4, reuse=4) as batches:
        for _ in range(40):
            batch = next(batches)
            energies = [float(sample.ints.e_nuc) for sample in batch]
            assert len(set(energies)) == 4
        # 4 to begin with, then one new geometry a batch: each is used four times.
        assert batches.drawn == 4 + 39
        assert batches.waited >= 0


def test_a_fault_in_the_source_reaches_the_one_who_asks():
    qpt, frame = cases.model("water", METHOD, 0)

    def broken():
        yield frame.molecule.positions
        raise ql.InputError("the file is gone.")

    with (
        Stream(qpt, frame, broken(), batch=2, reuse=2, seed=0) as batches,
        pytest.raises(ql.InputError, match="the file is gone"),
    ):
        next(batches)


def test_training_lowers_the_energy_towards_the_solution():
    """The loss is an energy: it falls, and never below the converged mean of what it was shown."""
    qpt, frame = cases.model("water", METHOD, 0)
    config = TrainConfig(
        minutes=None, steps=40, batch=4, reuse=4, warmup_steps=5, sampling=geometries.Sampling("perturb")
    )
    test = qpt.prepare(qpt.template.host_integrals(frame.home))
    floor = float(ql.scf(frame.molecule.with_positions(frame.home), METHOD).energy)
    before = float(qpt.compiled_predict(None, test).energy) - floor
    *_, (state, _) = train(qpt, frame, config)
    after = float(qpt.compiled_predict(state.params, test).energy) - floor
    assert before > 1e-2
    assert -1e-9 < after < 0.02 * before


def test_steps_are_counted_and_repeat_for_a_seed():
    qpt, frame = cases.model("water", METHOD, 0)
    runs = [[metrics for _, metrics in train(qpt, frame, QUICK)] for _ in range(2)]
    for one, two in zip(*runs, strict=True):
        assert one.energy_ha == pytest.approx(two.energy_ha, abs=1e-9)
    assert [metrics.step for metrics in runs[0]] == [1, 2, 3, 4, 5, 6]
    assert runs[0][0].compile_s > 0
    assert all(metrics.compile_s == 0 for metrics in runs[0][1:])
    assert not any(metrics.skipped for metrics in runs[0])
    seconds = [metrics.seconds for metrics in runs[0]]
    assert seconds == sorted(seconds)


def test_updates_that_are_not_finite_are_skipped_then_reported(monkeypatch):
    """A closed gap gives a gradient of NaN: parameters stay as they are, and training says why it ends."""
    qpt, frame = cases.model("water", METHOD, 0)
    # Every gap counts as closed.
    monkeypatch.setattr(sys.modules["qptlab.energy"], "MIN_GAP_HARTREE", 1e6)
    start = initial_state(qpt, QUICK)
    seen = []

    def until_it_gives_up():
        for state, metrics in train(qpt, frame, dataclasses.replace(QUICK, steps=50)):
            seen.append(metrics.skipped)
            for old, new in zip(jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True):
                np.testing.assert_array_equal(old, new)

    with pytest.raises(FloatingPointError, match=f"{MAX_SKIPPED} updates in a row"):
        until_it_gives_up()
    assert seen == [True] * (MAX_SKIPPED - 1)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"minutes": 0.0}, "0.0 minutes"),
        ({"minutes": float("nan")}, "nan minutes"),
        ({"minutes": None}, "neither minutes nor steps"),
        ({"steps": 0}, "steps 0"),
        ({"batch": 0}, "batch 0"),
        ({"seed": -1}, "seed -1"),
        ({"learning_rate": 3.0}, "learning rate 3.0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(choice, said):
    with pytest.raises(ql.InputError, match=said):
        TrainConfig(**choice)
