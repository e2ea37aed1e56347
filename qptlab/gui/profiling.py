"""What a training step spends its time on: operations as XLA runs them, from a trace of the live training.

On an accelerator these are kernels by stream, on a CPU operations by thread. Floating-point operations and bytes are
XLA's own count and known per compiled function only; what it calls from libraries (LAPACK's `eigh` among them) it
counts as nothing, and the body of a loop it counts once. Peaks are measured on the spot.
"""

import contextlib
import pathlib
import re
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qptlab.errors import InputError
from qptlab.training.trainer import Trainer

MAX_TIMELINE = 3000
"""Events of the timeline that are kept, the longest."""

WAIT_SECONDS = 120.0
"""After which a profile ends, whatever the training has done."""

PROFILED = ("compiling", "running")
"""Statuses of a training whose steps can be profiled."""

NOTHING = "no training is running; start one, or go on with one, to look into its steps."
"""Said where there is none."""

MATRIX, VECTOR_BYTES = 1024, 128 * 2**20
"""What peaks are measured with: a product of matrices of this size, and a copy of so many bytes."""


class Operation(NamedTuple):
    """An operation of a compiled function.

    Attributes:
      name: XLA's.
      function: the compiled function of the training step that it belongs to, or XLA's name of another.
      layer: where in the model it comes from, as JAX and Haiku name it; empty where XLA does not say.
      source: file and line in qptlab, or empty.
      calls: how often it ran.
      seconds: summed over calls and threads.
    """

    name: str
    function: str
    layer: str
    source: str
    calls: int
    seconds: float


class Executable(NamedTuple):
    """A compiled function of the training step.

    Attributes:
      name: of the function.
      compile_s: seconds that compiling took; little where it was found in the cache.
      flops: floating-point operations of a call, by XLA's count.
      nbytes: bytes read and written by a call, by XLA's count.
      calls: during the profile.
      seconds: its operations', summed over calls and threads.
      has_loops: so that `flops` and `nbytes` are lower bounds.
    """

    name: str
    compile_s: float
    flops: float
    nbytes: float
    calls: int
    seconds: float
    has_loops: bool


class Span(NamedTuple):
    """An operation on the timeline: thread or stream, name, function, start and length in seconds."""

    lane: str
    name: str
    function: str
    start: float
    length: float


class Profile(NamedTuple):
    """What `profile` found.

    Attributes:
      device: what the training runs on.
      is_accelerator: whether operations are a device's kernels.
      steps: training steps that were profiled.
      seconds: they took.
      traced_s: from the first operation of the trace to the end of the last; a little more or less.
      busy_s: of these, in which at least one operation ran.
      waited_s: of the steps' seconds, in which the training waited for geometries and integrals.
      operations: those that took longest first.
      executables: compiled functions of a step.
      timeline: the longest spans, in the order of their starts.
      peak_flops: products of float64 matrices, floating-point operations per second.
      peak_flops32: the same in float32.
      peak_bytes: copying, bytes per second.
      memory_mib: in use at each step.
      path: of the trace, which Perfetto and XProf open.
    """

    device: str
    is_accelerator: bool
    steps: int
    seconds: float
    traced_s: float
    busy_s: float
    waited_s: float
    operations: list[Operation]
    executables: list[Executable]
    timeline: list[Span]
    peak_flops: float
    peak_flops32: float
    peak_bytes: float
    memory_mib: list[float]
    path: pathlib.Path

    @property
    def named(self) -> float:
        """The share of operations' time whose origin in the model is known."""
        total = sum(each.seconds for each in self.operations)
        return sum(each.seconds for each in self.operations if each.layer) / total if total else 0.0

    @property
    def ridge(self) -> float:
        """Operations per byte above which float64 arithmetic, and not memory, is the limit."""
        return self.peak_flops / self.peak_bytes

    def words(self) -> str:
        """What bounds the step, in plain sentences."""
        waiting, busy = self.waited_s / self.seconds, self.busy_s / self.traced_s
        what = "kernels" if self.is_accelerator else "operations"
        known = [each for each in self.executables if each.seconds and each.nbytes]
        first = (
            f"{self.steps} steps took {self.seconds:.2f} s. In {busy:.0%} of the time {what} ran, and {waiting:.0%} "
            "went into waiting for geometries and their integrals."
        )
        if waiting > 0.2:
            return f"{first} The step is bounded by its data."
        if not known:
            return first
        main = max(known, key=lambda each: each.seconds)
        intensity = main.flops / main.nbytes
        bound = "arithmetic" if intensity > self.ridge else "memory"
        idle = " A good part is spent between operations, in Python and in waiting for threads." if busy < 0.6 else ""
        return (
            f"{first}{idle} Most of {what}' time is {main.name}'s, which does {intensity:.2g} operations per byte; "
            f"from {self.ridge:.2g} on this device is bound by arithmetic, so the step is bounded by {bound}."
        )


def profile(
    trainer: Trainer, steps: int = 5, progress: Callable[[int, int, str], None] = lambda done, total, what: None
) -> Profile:
    """Profile some steps of a training that is under way; it goes on meanwhile, a little slower.

    A training that still compiles is waited for.

    Args:
      trainer: the training.
      steps: how many steps.
      progress: told how many are done, of how many, and what is being done; what it raises ends the work.

    Raises:
      InputError: if the training is not running, ends too soon, or fewer than one step was asked for.
    """
    if steps < 1:
        raise InputError(f"{steps} steps cannot be profiled; 5 would do.")
    if trainer.status not in PROFILED:
        raise InputError(NOTHING)
    while trainer.status in PROFILED and not (trainer.status == "running" and trainer.rows):
        progress(0, steps, "waiting for the first step")
        time.sleep(0.02)
    first = len(trainer.rows)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="profile-", dir=trainer.out))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would bury everything else
    jax.profiler.start_trace(folder, profiler_options=options)
    try:
        _wait_for_steps(trainer, first, steps, progress)
        rows = trainer.rows[first - 1 :]
    finally:
        jax.profiler.stop_trace()
    if len(rows) < 2:
        raise InputError("the training ended before a step was profiled; a longer one would do.")
    progress(steps, steps, "reading the trace")
    spans = _spans(folder)
    if not spans:
        raise InputError("the trace holds no operation; more steps would do.")
    progress(steps, steps, "measuring peaks")
    with _halted(trainer):
        peaks = _peak_flops(jnp.float64), _peak_flops(jnp.float32), _peak_bytes()
    executables = dict(trainer.executables)
    operations, by_function = _operations(spans, executables)
    return Profile(
        device=jax.local_devices()[0].device_kind, is_accelerator=jax.default_backend() != "cpu",
        steps=len(rows) - 1, seconds=rows[-1]["seconds"] - rows[0]["seconds"],
        traced_s=max(span.start + span.length for span in spans), busy_s=_covered(spans),
        waited_s=sum(row["data_wait_s"] for row in rows[1:]), operations=operations,
        executables=[
            _executable(name, *found, *by_function.get(name, (0, 0.0))) for name, found in executables.items()
        ],
        timeline=sorted(sorted(spans, key=lambda s: -s.length)[:MAX_TIMELINE], key=lambda s: s.start),
        peak_flops=peaks[0], peak_flops32=peaks[1], peak_bytes=peaks[2],
        memory_mib=[row["memory_mib"] for row in rows[1:]], path=folder,
    )


def _wait_for_steps(trainer, first, steps, progress):
    end = time.monotonic() + WAIT_SECONDS
    while (done := len(trainer.rows) - first) < steps and trainer.status == "running" and time.monotonic() < end:
        progress(done, steps, f"profiling: {done} of {steps} steps")
        time.sleep(0.02)


@contextlib.contextmanager
def _halted(trainer):
    """A training at rest for a moment, so that nothing else runs."""
    was_running = trainer.status == "running"
    if was_running:
        trainer.pause()
        end = time.monotonic() + WAIT_SECONDS
        while trainer.status == "running" and time.monotonic() < end:
            time.sleep(0.01)
    try:
        yield
    finally:
        if was_running:
            trainer.resume()


def _spans(folder: pathlib.Path) -> list[Span]:
    """All operations of the trace, starts counted from the first."""
    file = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    found.append(Span(
                        f"{plane.name} {line.name}", str(stats["hlo_op"]), str(stats.get("hlo_module", "")),
                        event.start_ns * 1e-9, event.duration_ns * 1e-9,
                    ))
    start = min((span.start for span in found), default=0.0)
    return [span._replace(start=span.start - start) for span in found]


def _covered(spans) -> float:
    """Seconds in which at least one operation ran."""
    total, end = 0.0, -1.0
    for span in sorted(spans, key=lambda s: s.start):
        last = span.start + span.length
        total += max(0.0, last - max(span.start, end))
        end = max(end, last)
    return total


def _operations(spans, executables) -> tuple[list[Operation], dict[str, tuple[int, float]]]:
    """Operations, and of each function how often it ran and for how long."""
    names, origins = {}, {}
    for name, (executable, _) in executables.items():
        text = executable.as_text()
        module = re.match(r"HloModule ([\w.\-]+)", text)
        if module:
            names[module[1]] = name
            origins[module[1]] = _origins(text)
    grouped: dict[tuple[str, str], list[float]] = {}
    for span in spans:
        grouped.setdefault((span.function, span.name), []).append(span.length)
    operations = []
    for (module, name), lengths in grouped.items():
        layer, source = origins.get(module, {}).get(name, ("", ""))
        operations.append(Operation(name, names.get(module, module), layer, source, len(lengths), sum(lengths)))
    by_function = {}
    for function in {each.function for each in operations}:
        own = [each for each in operations if each.function == function]
        # Operations of loops run more often than their function, others exactly once a call.
        by_function[function] = int(np.median([each.calls for each in own])), sum(each.seconds for each in own)
    return sorted(operations, key=lambda each: -each.seconds), by_function


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?metadata=\{([^}]*)\}", re.MULTILINE)
_TABLE = re.compile(r"^(FileNames|FileLocations|StackFrames)\n((?:\d+ .*\n)+)", re.MULTILINE)
_WRAPPERS = re.compile(
    r"(jit|jvp|vmap|transpose|checkpoint)\(.*\)|while|body|closed_call|checkpoint|rematted_computation"
)


def _origins(text: str) -> dict[str, tuple[str, str]]:
    """By the name of an instruction: where in the model it comes from, and the line of the source."""
    frames, found = _frames(text), {}
    for name, metadata in _INSTRUCTION.findall(text):
        layer = re.search(r'op_name="([^"]*)"', metadata)
        frame = re.search(r"stack_frame_id=(\d+)", metadata)
        found[name] = (_shortened(layer[1]) if layer else "", frames.get(int(frame[1]), "") if frame else "")
    return found


def _frames(text: str) -> dict[int, str]:
    """By the number of a stack frame: its innermost line in this package."""
    tables = {name: dict(line.split(" ", 1) for line in lines.splitlines()) for name, lines in _TABLE.findall(text)}
    if len(tables) < 3:
        return {}
    package = str(pathlib.Path(__file__).parents[1])
    lines, parents = {}, {}
    for number, record in tables["FileLocations"].items():
        file = tables["FileNames"][_field(record, "file_name_id")].strip('"')
        inside = file.startswith(package)
        lines[number] = f"{file[len(package) + 1 :]}:{_field(record, 'line')}" if inside else ""
    for number, record in tables["StackFrames"].items():
        parents[number] = _field(record, "file_location_id"), _field(record, "parent_frame_id")
    found = {}
    for start in parents:
        frame, line = start, ""
        for _ in range(len(parents)):
            location, parent = parents[frame]
            line = lines[location]
            if line or parent == frame or parent not in parents:
                break
            frame = parent
        found[int(start)] = line
    return found


def _field(record: str, name: str) -> str:
    match = re.search(rf"\b{name}=(\d+)", record)
    return match[1] if match else ""


def _shortened(op_name: str) -> str:
    """Without the wrappers that JAX writes around a layer's name."""
    return "/".join([part for part in op_name.split("/") if not _WRAPPERS.fullmatch(part)][-3:])


def _executable(name, executable, compile_s, calls, seconds) -> Executable:
    costs = executable.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return Executable(
        name, compile_s, float(costs.get("flops", 0.0)), float(costs.get("bytes accessed", 0.0)), calls, seconds,
        " while(" in executable.as_text(),
    )


def _peak_flops(dtype) -> float:
    matrix = jnp.ones((MATRIX, MATRIX), dtype)
    return 2 * MATRIX**3 / _fastest(jax.jit(lambda x: x @ x), matrix)


def _peak_bytes() -> float:
    add = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: fresh memory would be slower
    vector = add(jnp.zeros(VECTOR_BYTES // 4, jnp.float32))
    found = []
    for _ in range(5):
        began = time.perf_counter()
        vector = jax.block_until_ready(add(vector))
        found.append(time.perf_counter() - began)
    return 2 * VECTOR_BYTES / min(found)


def _fastest(function, given, turns: int = 5) -> float:
    jax.block_until_ready(function(given))
    found = []
    for _ in range(turns):
        began = time.perf_counter()
        jax.block_until_ready(function(given))
        found.append(time.perf_counter() - began)
    return min(found)
