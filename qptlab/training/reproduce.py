"""Repetition of a training from its folder, and the comparison of the two curves.

The samples of an update depend on the seed and on the number of the update, not on the timing of threads (see
`stream`). What depends on the clock is the learning rate of a training with a budget in minutes: a repetition follows
the times in the folder's table instead of its own.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from qptlab.errors import InputError, shown
from qptlab.sampling.walk import ModelWalk
from qptlab.training.loop import TrainState, initial_state, learning_rate, train
from qptlab.training.run import Run, environment

EXACT, ROUNDED = ("grad_norm",), ("energy_ha", "loss")
"""Columns of the table that are compared only bit for bit, and those that may differ by rounding elsewhere."""

COUNTED = ("learning_rate", "skipped", "geometries")
"""Columns that follow from the settings and are the same everywhere."""

TOLERANCE = 1e-6
"""Largest difference of an energy (hartree) or a loss from one machine or version to another, in units of the larger
of 1 and its size. Rounding errors of the network, in float32, grow from update to update."""


class Difference(NamedTuple):
    """First number of a curve that is different.

    Attributes:
      step: number of the update.
      column: column of the table.
      original: number in the folder's table.
      repeated: number of the repetition.
    """

    step: int
    column: str
    original: float | None
    repeated: float | None


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """Comparison of a training with its repetition.

    Attributes:
      steps: number of updates that were compared.
      difference: first number that is different; None if the curves agree.
      is_exact: true if all numbers are the same, bit for bit.
      largest: largest difference of an energy or loss, in units of the larger of 1 and its size.
      elsewhere: versions and properties of the machine that differ, each with the earlier and the present one; if
        there are any, `TOLERANCE` is allowed.
    """

    steps: int
    difference: Difference | None
    is_exact: bool
    largest: float
    elsewhere: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        """Return one sentence."""
        changed = ", ".join(
            f"{name} {shown(now)} instead of {shown(before)}" for name, (before, now) in self.elsewhere.items()
        )
        where = f", with {changed}" if changed else ""
        allowed = f"within {TOLERANCE:g}" if changed else "bit for bit"
        count = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        if self.difference is not None:
            step, column, original, repeated = self.difference
            return (
                f"The curve differs: {column} of step {step} is {repeated} instead of {original}, and {allowed} was "
                f"expected{where}."
            )
        if self.is_exact:
            return f"The curve of {count} is the same, bit for bit{where}."
        return f"The curve of {count} is the same {allowed}: the largest difference is {self.largest:.1g}{where}."

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, with the keys of ``--json``."""
        return {
            "agrees": self.difference is None, "exact": self.is_exact, "steps": self.steps,
            "difference": self.difference._asdict() if self.difference else None,
            "largest_difference": self.largest, "tolerance": TOLERANCE if self.elsewhere else 0.0,
            "elsewhere": {name: list(pair) for name, pair in self.elsewhere.items()},
        }


def reproduce(
    path: str | pathlib.Path, steps: int | None = None, out: str | pathlib.Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reproduction:
    """Repeat a training from its folder, and compare the curves.

    Args:
      path: the run's folder, which is only read.
      steps: number of updates to repeat; by default all that the table has.
      out: folder of the repetition, new or empty; by default nothing is written.
      progress: callback `progress(done, total)`, called after each update.

    Returns:
      The comparison. With the versions and on the machine that the folder states, the curves have to be the same bit
      for bit, elsewhere within `TOLERANCE`.

    Raises:
      InputError: if the folder holds no run, too few updates, or a training that cannot be repeated.
      NotFiniteError: as the training.
    """
    run = Run.open(path)
    rows = run.metrics(None)
    steps = len(rows) if steps is None else steps
    if not 1 <= steps <= len(rows):
        raise InputError(
            f"Expected from 1 to {len(rows)} steps, as the run in {path} has, got {steps}; use "
            f"{'a smaller number' if rows else 'a run that has made a step'}."
        )
    rows = rows[:steps]
    config = dataclasses.replace(run.train_config, minutes=None, steps=steps)
    run.objective.check(config)
    state = _first_state(run, steps)
    rates = {number: _rate(run, rows, number) for number in range(1, steps + 1)}
    copy = None if out is None else Run.create(out, run.objective, config)
    repeated = []
    for state, metrics in train(run.objective, config, state, rates=rates):  # noqa: B020 - from this state on
        repeated.append(metrics._asdict())
        if copy is not None:
            copy.append(metrics._asdict())
        progress(state.step, steps)
    if copy is not None:
        copy.save(state)
    return _compared(rows, repeated, _elsewhere(run.record))


def _first_state(run: Run, steps: int) -> TrainState:
    """Return the state before the first update."""
    if isinstance(run.train_config.sampling, ModelWalk) and any(start < steps for start in run.starts() if start):
        raise InputError(
            f"Expected a training without interruption for the sampler {ModelWalk.sampler}, whose walks start again "
            f"after one, got {run.path}, which was continued after step {max(run.starts())}; use --steps with fewer."
        )
    if not run.objective.origin:
        return initial_state(run.objective, run.train_config)
    state = run.restore(0)
    if state is None:
        raise InputError(
            f"Expected the parameters that the run in {run.path} started from ({run.objective.origin}), got none: "
            "folders of earlier versions did not keep them; train it again to repeat it."
        )
    return state


def _rate(run: Run, rows: list[dict[str, float]], step: int) -> float:
    """Return the learning rate of an update by the settings; where they do not determine it, that of the table."""
    config = run.config_at(step)
    # Before the first update the clock counts statistics, whose time the table does not hold.
    if config is None or (step == 1 and config.minutes):
        return rows[step - 1]["learning_rate"]
    before = rows[step - 2]["seconds"] if step > 1 else 0.0
    return learning_rate(config, step, config.progress(step - 1, before))


def _elsewhere(record: dict) -> dict[str, tuple[Any, Any]]:
    """Return what differs between the surroundings of a run and those of this process: earlier and present values."""
    present = environment()
    pairs = {
        name: (record.get(part, {}).get(name, "unknown"), value)
        for part, values in present.items() for name, value in values.items()
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _compared(
    rows: list[dict[str, float]], repeated: list[dict[str, Any]], elsewhere: dict[str, tuple[Any, Any]]
) -> Reproduction:
    first, is_exact, largest = None, True, 0.0
    for number, (row, again) in enumerate(zip(rows, repeated, strict=True), 1):
        for column in (*COUNTED, *ROUNDED, *EXACT):
            before, now = row.get(column), float(again[column])
            distance = _distance(before, now)
            is_exact &= distance == 0
            largest = max(largest, distance if column in ROUNDED else 0.0)
            limit = 0.0 if not elsewhere else math.inf if column in EXACT else TOLERANCE
            if first is None and not distance <= limit:
                first = Difference(number, column, before, now)
    return Reproduction(len(rows), first, is_exact, largest, elsewhere)


def _distance(before: float | None, now: float) -> float:
    """Return the difference of two numbers in units of the larger of 1 and their size; 0 for two that are NaN."""
    if before is None:
        return math.inf
    if before == now or (math.isnan(before) and math.isnan(now)):
        return 0.0
    distance = abs(before - now) / max(1.0, abs(before))
    return math.inf if math.isnan(distance) else distance
