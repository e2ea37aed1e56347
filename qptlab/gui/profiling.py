"""Profile of training steps: the operations that XLA runs, from a trace of the running training.

On an accelerator an operation is a kernel in a stream, on a CPU it runs in a thread. XLA counts floating-point
operations and bytes for each compiled function. It does not count calls of libraries (such as LAPACK's `eigh`), and
it counts the body of a loop once. The peaks of the device are measured.
"""

import contextlib
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qptlab.errors import InputError
from qptlab.training.trainer import Trainer

MAX_TIMELINE = 3000
"""Largest number of operations on the timeline; the longest are kept."""

STEPS = 5
"""Default number of training steps that are profiled."""

WAIT_SECONDS = 120.0
"""Longest time of a profile, s, even if the training does no step."""

PROFILED = ("compiling", "running")
"""Statuses of a training whose steps can be profiled."""

NOTHING = "No training is running; start or resume one to profile its steps."
"""Message if there is no running training."""

MATRIX, VECTOR_BYTES = 1024, 128 * 2**20
"""Size of the matrices whose product measures arithmetic, and of the vector whose copy measures memory, bytes."""


class Operation(NamedTuple):
    """Operation of a compiled function.

    Attributes:
      name: name that XLA gives it.
      function: compiled function of the training step; for other functions the name that XLA gives them.
      layer: layer of the model, as JAX and Haiku name it; empty if XLA does not know it.
      source: file and line in qptlab; empty if unknown.
      calls: number of calls.
      seconds: time, summed over calls and threads, s.
    """

    name: str
    function: str
    layer: str
    source: str
    calls: int
    seconds: float


class Executable(NamedTuple):
    """Compiled function of the training step.

    Attributes:
      name: name of the function.
      compile_s: compilation time, s; short if the function was in the cache.
      flops: floating-point operations per call, counted by XLA.
      nbytes: bytes read and written per call, counted by XLA.
      calls: number of calls during the profile.
      seconds: time of its operations, summed over calls and threads, s.
      has_loops: if true, `flops` and `nbytes` are lower bounds.
    """

    name: str
    compile_s: float
    flops: float
    nbytes: float
    calls: int
    seconds: float
    has_loops: bool


class Span(NamedTuple):
    """One call of an operation on the timeline.

    Attributes:
      lane: thread or stream.
      name: name of the operation.
      function: compiled function, as XLA names it.
      start: start, counted from the first operation, s.
      length: duration, s.
    """

    lane: str
    name: str
    function: str
    start: float
    length: float


class Profile(NamedTuple):
    """Result of `profile`.

    Attributes:
      device: device of the training.
      is_accelerator: true if operations are kernels of an accelerator.
      steps: number of training steps that were profiled.
      seconds: time of these steps, s.
      traced_s: time from the start of the first operation to the end of the last, s; it can differ a little from
        `seconds`.
      busy_s: part of `traced_s` in which at least one operation ran, s.
      waited_s: part of `seconds` in which the training waited for geometries and integrals, s.
      operations: operations, the longest first.
      executables: compiled functions of a step.
      timeline: longest calls of operations, in the order of their starts.
      peak_flops: peak of products of float64 matrices, floating-point operations per second.
      peak_flops32: peak of products of float32 matrices, floating-point operations per second.
      peak_bytes: peak of copying, bytes per second.
      memory_mib: memory in use after each step, MiB.
      path: folder of the trace, which Perfetto and XProf open.
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
        """Share of the operations' time whose layer of the model is known."""
        total = sum(operation.seconds for operation in self.operations)
        return sum(operation.seconds for operation in self.operations if operation.layer) / total if total else 0.0

    @property
    def ridge(self) -> float:
        """Intensity, operations per byte, above which float64 arithmetic is the limit, and below which memory is."""
        return self.peak_flops / self.peak_bytes

    def summary(self) -> str:
        """Return sentences that say what limits the speed of a step."""
        waiting, busy = self.waited_s / self.seconds, self.busy_s / self.traced_s
        kind = "kernel" if self.is_accelerator else "operation"
        counted = [executable for executable in self.executables if executable.seconds and executable.nbytes]
        first = (
            f"{self.steps} steps took {self.seconds:.2f} s. During {busy:.0%} of the time at least one {kind} ran; "
            f"during {waiting:.0%} the training waited for geometries and their integrals."
        )
        if waiting > 0.2:
            return f"{first} The data limit the speed of a step."
        if not counted:
            return first
        longest = max(counted, key=lambda executable: executable.seconds)
        intensity = longest.flops / longest.nbytes
        limit = "arithmetic" if intensity > self.ridge else "memory"
        idle = " Much of the time passes between operations, in Python or waiting for threads." if busy < 0.6 else ""
        return (
            f"{first}{idle} The function “{longest.name}” takes most of the {kind}s' time. It does {intensity:.2g} "
            f"operations per byte; arithmetic limits this device above {self.ridge:.2g}, and memory below. So "
            f"{limit} limits the speed of a step."
        )


def profile(
    trainer: Trainer, steps: int = STEPS, progress: Callable[[int, int, str], None] = lambda done, total, text: None
) -> Profile:
    """Profile some steps of a running training; it continues meanwhile, a little slower.

    If the training still compiles, its first step is awaited.

    Args:
      trainer: the training.
      steps: number of training steps.
      progress: callback ``progress(done, total, text)``; an exception that it raises ends the profile.

    Raises:
      InputError: if the training is not running, ends too early, or `steps` is smaller than one.
    """
    if steps < 1:
        raise InputError(f"Expected at least 1 step to profile, got {steps}; use {STEPS}, for example.")
    if trainer.status not in PROFILED:
        raise InputError(NOTHING)
    while trainer.status in PROFILED and not (trainer.status == "running" and trainer.rows):
        progress(0, steps, "waiting for the first step")
        time.sleep(0.02)
    first = len(trainer.rows)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="profile-", dir=trainer.out))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would hide everything else
    jax.profiler.start_trace(folder, profiler_options=options)
    try:
        _wait_for_steps(trainer, first, steps, progress)
        rows = trainer.rows[first - 1 :]
    finally:
        jax.profiler.stop_trace()
    if len(rows) < 2:
        raise InputError("The training ended before a step was profiled; start a longer one.")
    progress(steps, steps, "reading the trace")
    spans = _read_spans(folder)
    if not spans:
        raise InputError("The trace holds no operation; profile more steps.")
    progress(steps, steps, "measuring peaks")
    with _paused(trainer):
        peaks = _peak_flops(jnp.float64), _peak_flops(jnp.float32), _peak_bytes()
    compiled = dict(trainer.executables)
    operations, totals = _operations(spans, compiled)
    return Profile(
        device=jax.local_devices()[0].device_kind, is_accelerator=jax.default_backend() != "cpu",
        steps=len(rows) - 1, seconds=rows[-1]["seconds"] - rows[0]["seconds"],
        traced_s=max(span.start + span.length for span in spans), busy_s=_covered(spans),
        waited_s=sum(row["data_wait_s"] for row in rows[1:]), operations=operations,
        executables=[
            _executable(name, executable, compile_s, *totals.get(name, (0, 0.0)))
            for name, (executable, compile_s) in compiled.items()
        ],
        timeline=sorted(sorted(spans, key=lambda s: -s.length)[:MAX_TIMELINE], key=lambda s: s.start),
        peak_flops=peaks[0], peak_flops32=peaks[1], peak_bytes=peaks[2],
        memory_mib=[row["memory_mib"] for row in rows[1:]], path=folder,
    )


def _wait_for_steps(trainer: Trainer, first: int, steps: int, progress: Callable[[int, int, str], None]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while (done := len(trainer.rows) - first) < steps and trainer.status == "running" and time.monotonic() < end:
        progress(done, steps, f"profiling: {done} of {steps} steps")
        time.sleep(0.02)


@contextlib.contextmanager
def _paused(trainer: Trainer) -> Iterator[None]:
    """Pause a running training inside the block, so that nothing else runs."""
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


def _read_spans(folder: pathlib.Path) -> list[Span]:
    """Return all operations of the trace, with starts counted from the first."""
    file = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    spans = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    spans.append(Span(
                        f"{plane.name} {line.name}", str(stats["hlo_op"]), str(stats.get("hlo_module", "")),
                        event.start_ns * 1e-9, event.duration_ns * 1e-9,
                    ))
    start = min((span.start for span in spans), default=0.0)
    return [span._replace(start=span.start - start) for span in spans]


def _covered(spans: Sequence[Span]) -> float:
    """Return the time in which at least one operation ran, s."""
    total, end = 0.0, -1.0
    for span in sorted(spans, key=lambda s: s.start):
        last = span.start + span.length
        total += max(0.0, last - max(span.start, end))
        end = max(end, last)
    return total


def _operations(
    spans: Sequence[Span], compiled: Mapping[str, tuple[Any, float]]
) -> tuple[list[Operation], dict[str, tuple[int, float]]]:
    """Return the operations, and for each function its number of calls and its time, s."""
    names, origins = {}, {}
    for name, (executable, _) in compiled.items():
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
    totals = {}
    for function in {operation.function for operation in operations}:
        members = [operation for operation in operations if operation.function == function]
        # Operations inside loops run more often than their function, all others exactly once per call.
        calls = int(np.median([operation.calls for operation in members]))
        totals[function] = calls, sum(operation.seconds for operation in members)
    return sorted(operations, key=lambda operation: -operation.seconds), totals


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?metadata=\{([^}]*)\}", re.MULTILINE)
_TABLE = re.compile(r"^(FileNames|FileLocations|StackFrames)\n((?:\d+ .*\n)+)", re.MULTILINE)
_WRAPPERS = re.compile(
    r"(jit|jvp|vmap|transpose|checkpoint)\(.*\)|while|body|closed_call|checkpoint|rematted_computation"
)


def _origins(text: str) -> dict[str, tuple[str, str]]:
    """Return the layer of the model and the line of the source for each instruction of a compiled function's text."""
    frames, origins = _frames(text), {}
    for name, metadata in _INSTRUCTION.findall(text):
        layer = re.search(r'op_name="([^"]*)"', metadata)
        frame = re.search(r"stack_frame_id=(\d+)", metadata)
        origins[name] = (_shortened(layer[1]) if layer else "", frames.get(int(frame[1]), "") if frame else "")
    return origins


def _frames(text: str) -> dict[int, str]:
    """Return the innermost line in this package for each stack frame of a compiled function's text."""
    tables = {name: dict(line.split(" ", 1) for line in lines.splitlines()) for name, lines in _TABLE.findall(text)}
    if len(tables) < 3:
        return {}
    files = {number: _inside_package(name.strip('"')) for number, name in tables["FileNames"].items()}
    lines, parents = {}, {}
    for number, record in tables["FileLocations"].items():
        file = files[_field(record, "file_name_id")]
        lines[number] = f"{file}:{_field(record, 'line')}" if file else ""
    for number, record in tables["StackFrames"].items():
        parents[number] = _field(record, "file_location_id"), _field(record, "parent_frame_id")
    innermost = {}
    for start in parents:
        frame, line = start, ""
        for _ in range(len(parents)):
            location, parent = parents[frame]
            line = lines[location]
            if line or parent == frame or parent not in parents:
                break
            frame = parent
        innermost[int(start)] = line
    return innermost


def _inside_package(file: str) -> str:
    """Return the path of a source file relative to this package; an empty text for a file of another package.

    A function from the compilation cache names the files of the installation that compiled it.
    """
    package = pathlib.Path(__file__).parents[1]
    _, separator, path = file.rpartition(f"/{package.name}/")
    return path if separator and (package / path).is_file() else ""


def _field(record: str, name: str) -> str:
    match = re.search(rf"\b{name}=(\d+)", record)
    return match[1] if match else ""


def _shortened(op_name: str) -> str:
    """Return a layer's name without the wrappers that JAX writes around it."""
    return "/".join([part for part in op_name.split("/") if not _WRAPPERS.fullmatch(part)][-3:])


def _executable(name: str, executable: Any, compile_s: float, calls: int, seconds: float) -> Executable:
    costs = executable.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return Executable(
        name, compile_s, float(costs.get("flops", 0.0)), float(costs.get("bytes accessed", 0.0)), calls, seconds,
        " while(" in executable.as_text(),
    )


def _peak_flops(dtype: Any) -> float:
    matrix = jnp.ones((MATRIX, MATRIX), dtype)
    multiply = jax.jit(lambda x: x @ x)
    return 2 * MATRIX**3 / _shortest(lambda: multiply(matrix))


def _peak_bytes() -> float:
    add = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: fresh memory would be slower
    vector = add(jnp.zeros(VECTOR_BYTES // 4, jnp.float32))

    def turn() -> jax.Array:
        nonlocal vector
        vector = add(vector)
        return vector

    return 2 * VECTOR_BYTES / _shortest(turn)


def _shortest(function: Callable[[], Any], turns: int = 5) -> float:
    """Return the shortest time of several calls, s; a first call is not counted."""
    jax.block_until_ready(function())
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times)
