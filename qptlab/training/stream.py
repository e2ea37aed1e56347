"""Samples for training: prepared ahead in threads, and kept on the device in a replay buffer.

The order of the samples depends on the seed, the number of the step and, below 16 GiB, the memory allowed. It does
not depend on the timing of threads. So a resumed training gets the samples that it would have got without
the interruption. The exception is the sampler `model`, whose walks start again.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from qptlab.errors import InputError
from qptlab.models.contract import Params
from qptlab.models.correction import CorrectionModel
from qptlab.models.systems import Sample, System
from qptlab.random_streams import Purpose, generator
from qptlab.runtime.memory import device_bytes
from qptlab.sampling import Sampler
from qptlab.system.molecule import Molecule

LOOK_AHEAD = 16
"""Number of samples that are prepared ahead of the one that is trained on; fewer if they are large."""

REPLAY_BYTES, REPLAY_SHARE = 2 * 2**30, 1 / 4
"""Limits of the replay buffers: a number of bytes on a CPU, and everywhere a share of the memory for arrays. The
smaller one counts; below 16 GiB of allowed memory, that is the share."""

REPLAY_MAX = 1024
"""Largest number of samples in the replay buffer of molecules of one shape."""


CURRICULUM_STEPS = 20
"""Number of batches after which molecules of the next larger shape join. The first batches have the smallest shape:
updates begin before the functions of large shapes are compiled."""

MAX_SOURCES = 512
"""Largest number of sources of geometries of molecules of one shape: those that were used last. A molecule's
trajectory takes memory. One that was dropped starts again at the place where it was left."""


class Drawn(NamedTuple):
    """Sample with the system of its molecule."""

    system: System
    sample: Sample


class Stream:
    """Endless batches of samples for training; a context manager that owns its threads.

    A batch has one lane for each of its geometries. In each batch, `batch / reuse` lanes on average take a new
    geometry, in turn. Every other lane takes one of its earlier geometries, drawn at random from the newest ones that
    fit the memory. So each geometry is used `reuse` times on average. All samples of a batch have one shape;
    molecules of different shapes take turns, in proportion to their number. Larger shapes join one after another (see
    `CURRICULUM_STEPS`).

    Several processes share the lanes, and together have the batches that one process would have. Each process draws
    all geometries, which costs little, and prepares the samples of its lanes only.

    If one of several molecules cannot be sampled, its reference geometry is trained on, with a warning.

    Args:
      systems: molecules.
      sampling: source of the geometries.
      model: model that draws geometries itself, for the sampler `model`.
      batch: number of geometries in a batch.
      reuse: number of times that a geometry is used, on average.
      seed: seed of all random numbers.
      step: number of batches that an earlier, interrupted stream has yielded.
      process: index of this process, and number of processes, which share `batch`.

    Attributes:
      shapes: shapes and types of the samples of each shape of molecules, small ones first.
      waited: time spent in `next` so far, waiting for samples, s.
      drawn: number of new geometries taken so far.
      params: parameters of the model, to be set before each batch if the model draws geometries itself.
    """

    def __init__(
        self,
        systems: Sequence[System],
        sampling: Sampler,
        model: CorrectionModel | None = None,
        *,
        batch: int,
        reuse: int,
        seed: int,
        step: int = 0,
        process: tuple[int, int] = (0, 1),
    ):
        self.waited = 0.0
        self.params: Params | None = None
        grouped: dict[tuple, list[int]] = {}
        for index, system in enumerate(systems):
            grouped.setdefault((system.method, system.sizes), []).append(index)
        grouped = dict(sorted(grouped.items(), key=lambda item: item[0][1].shape.nao))
        turns = _turns([len(members) for members in grouped.values()], batch, reuse, seed)
        past = list(itertools.islice(turns, step))
        drawn = [sum(fresh for bucket, fresh, _ in past if bucket == i) for i in range(len(grouped))]
        self.drawn = sum(drawn)
        memory = replay_bytes() // len(grouped)
        self._buckets = [
            _Bucket(systems, members, sampling, model, seed, memory, batch, before, process)
            for members, before in zip(grouped.values(), drawn, strict=True)
        ]
        self.shapes = [bucket.shapes for bucket in self._buckets]
        self._turns, ahead = itertools.tee(turns)  # samples are requested some turns before they are used
        self._turn = next(self._turns)
        self._wanted = self._order(ahead)
        cores = os.cpu_count() or 2
        # Frames of dynamics come one after another; their integrals are computed in parallel with them.
        self._samplers = concurrent.futures.ThreadPoolExecutor(cores, "qptlab-geometries")
        self._workers = concurrent.futures.ThreadPoolExecutor(max(1, cores - 1), "qptlab-integrals")
        self._ahead: collections.deque[tuple[int, concurrent.futures.Future | None]] = collections.deque()

    def __enter__(self):
        """Start to prepare samples."""
        for _ in range(min(bucket.look_ahead for bucket in self._buckets)):
            self._submit()
        return self

    def __exit__(self, *_):
        """Stop the threads and cancel their work."""
        for pool in (self._samplers, self._workers):
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def turn(self) -> int:
        """Index in `shapes` of the next batch, which need not be ready."""
        return self._turn[0]

    def __iter__(self):
        """Return the stream itself."""
        return self

    def __next__(self) -> tuple[Drawn, ...]:
        """Return the next batch, or this process's share of it; new geometries first.

        Raises:
          InputError: if the source of geometries fails.
        """
        self.refill()
        index, fresh, rng = self._turn
        self._turn, bucket = next(self._turns), self._buckets[index]
        for _ in range(fresh):
            bucket.keep(*self._take())
        self.drawn += fresh
        return bucket.batch(fresh, rng)

    def refill(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Prepare again the samples that an interrupted stream held. If this is not called, `next` does it.

        Args:
          progress: callback `progress(done, total)`, called after each sample; an exception ends the work.

        Raises:
          InputError: if the source of geometries fails.
        """
        total = sum(bucket.missing for bucket in self._buckets)
        done = 0
        for bucket in self._buckets:
            while bucket.missing:
                bucket.keep(*self._take())
                done += 1
                progress(done, total)

    def _order(self, turns: Iterator[tuple[int, int, np.random.Generator]]) -> "Iterator[_Bucket]":
        """Yield the buckets in the order in which they need new geometries."""
        for bucket in self._buckets:
            yield from itertools.repeat(bucket, bucket.missing)
        for index, fresh, _ in turns:
            yield from itertools.repeat(self._buckets[index], fresh)

    def _take(self) -> tuple[int, Drawn | None]:
        """Return the number of the next geometry and its sample; None for a sample of a different process."""
        began = time.perf_counter()
        self._submit()
        number, future = self._ahead.popleft()
        sample = future.result() if future else None
        self.waited += time.perf_counter() - began
        return number, sample

    def _submit(self) -> None:
        bucket = next(self._wanted)
        number, system, geometry = bucket.draw(self._samplers, self.params)
        future = self._workers.submit(bucket.make, system, geometry) if bucket.is_local(number) else None
        self._ahead.append((number, future))


def replay_bytes() -> int:
    """Return the memory that the replay buffers of a training may take, bytes."""
    limit = REPLAY_BYTES if jax.default_backend() == "cpu" else np.inf
    return int(min(limit, REPLAY_SHARE * device_bytes()))


def _turns(
    numbers: Sequence[int], batch: int, reuse: int, seed: int
) -> Iterator[tuple[int, int, np.random.Generator]]:
    """Yield for each step the bucket, the number of new geometries that it needs, and a random number generator."""
    turns = [0] * len(numbers)
    for step in itertools.count():
        rng = generator(Purpose.BATCHES, seed, step)
        joined = np.array(numbers[: 1 + step // CURRICULUM_STEPS])
        bucket = int(rng.choice(len(joined), p=joined / joined.sum()))
        done = turns[bucket]
        # The first step needs a whole batch of new geometries. Later steps need batch / reuse on average; if this is
        # below one, some steps need none.
        yield bucket, batch * (done + 1) // reuse - batch * done // reuse if done else batch, rng
        turns[bucket] += 1


@dataclasses.dataclass
class _Source:
    """Source of the geometries of one chain.

    Attributes:
      draw: function from the model's parameters to the next positions, bohr.
      latest: positions that were requested last.
    """

    draw: Callable[[Params | None], np.ndarray]
    latest: concurrent.futures.Future | None = None


class _Bucket:
    """Molecules of one shape: the sources of their geometries, and the newest samples."""

    def __init__(
        self, systems: Sequence[System], members: Sequence[int], sampling: Sampler, model: CorrectionModel | None,
        seed: int, memory: int, batch: int, drawn: int, process: tuple[int, int],
    ):
        self._systems = [systems[index] for index in members]
        self._has_others = len(systems) > 1
        self._compiles = threading.Lock()
        self._is_compiled = False
        system = self._systems[0]
        self.shapes = system.shapes
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.shapes))
        depth = int(np.clip(memory // size, 2 * batch, max(REPLAY_MAX, 2 * batch))) // batch
        self.look_ahead = int(np.clip(memory // (4 * size), 2, LOOK_AHEAD))
        self._process = process
        self._lanes: list[collections.deque[Drawn]] = [collections.deque(maxlen=depth) for _ in range(batch)]
        self.missing = min(drawn, depth * batch)
        # Geometries are numbered: first by molecule, then by chain.
        self._number = drawn - self.missing
        self._kept = self._number - 1
        self._members, self._sampling, self._model, self._seed = members, sampling, model, seed
        self._sources: collections.OrderedDict[int, _Source] = collections.OrderedDict()

    def draw(
        self, pool: concurrent.futures.Executor, params: Params | None
    ) -> tuple[int, System, concurrent.futures.Future]:
        """Return number, system and future positions of the next geometry; a chain computes one after another."""
        number = self._number
        self._number += 1
        member = number % len(self._systems)
        source = self._source(number)
        positions = pool.submit(_after, source.latest, source.draw, params)
        source.latest = positions
        return number, self._systems[member], positions

    def _source(self, number: int) -> "_Source":
        """Return the source of a geometry; it is created at this geometry if it does not exist any more, or yet."""
        drawn, index = divmod(number, len(self._systems) * self._sampling.chains)
        chain, member = divmod(index, len(self._systems))
        if index not in self._sources:
            seed = [self._seed, self._members[member], chain]
            draw = self._sampling.source(self._systems[member], self._model, seed, drawn)
            if self._has_others:
                draw = functools.partial(_or_reference, draw, self._systems[member].molecule)
            self._sources[index] = _Source(draw)
        self._sources.move_to_end(index)
        if len(self._sources) > MAX_SOURCES:
            self._sources.popitem(last=False)
        return self._sources[index]

    def is_local(self, number: int) -> bool:
        """Return true if the lane of a geometry belongs to this process."""
        return number % len(self._lanes) % self._process[1] == self._process[0]

    def make(self, system: System, geometry: concurrent.futures.Future) -> Drawn:
        """Return the sample of a geometry, on the device."""
        host = system.host_integrals(system.frame.pose(geometry.result()).positions)
        if self._is_compiled:
            return Drawn(system, jax.block_until_ready(system.sample(host)))
        with self._compiles:  # once, not in each thread
            sample = jax.block_until_ready(system.sample(host))
            self._is_compiled = True
            return Drawn(system, sample)

    def keep(self, number: int, drawn: Drawn | None) -> None:
        """Add a sample to its lane, and drop the oldest one. A sample that a different process holds is None."""
        if drawn is not None:
            self._lanes[number % len(self._lanes)].append(drawn)
        self.missing = max(0, self.missing - 1)
        self._kept = number

    def batch(self, fresh: int, rng: np.random.Generator) -> tuple[Drawn, ...]:
        """Return one sample of each lane of this process: first the `fresh` newest geometries, then earlier ones."""
        size = len(self._lanes)
        draws = rng.random(size)  # the same in all processes
        newest = [number % size for number in range(self._kept, self._kept - fresh, -1)]
        older = [lane for lane in range(size) if lane not in newest]
        return (
            *(self._lanes[lane][-1] for lane in newest if self.is_local(lane)),
            *(self._lanes[lane][int(draws[lane] * len(self._lanes[lane]))] for lane in older if self.is_local(lane)),
        )


def _or_reference(
    source: Callable[[Params | None], np.ndarray], mol: Molecule, params: Params | None
) -> np.ndarray:
    """Return the next geometry of a molecule, or its reference geometry if the source fails.

    One of thousands of molecules, such as a zwitterion that GFN2-xTB turns into its neutral form, does not end a
    training.
    """
    try:
        return source(params)
    except (InputError, StopIteration) as error:  # the second after the first
        if isinstance(error, InputError):
            warnings.warn(f"The given geometry of {mol.name or mol.formula} is trained on: {error}", stacklevel=2)
        return mol.positions


def _after(
    previous: concurrent.futures.Future | None, source: Callable[[Params | None], np.ndarray], params: Params | None
) -> np.ndarray:
    """Return the next geometry of a chain, after the previous one is computed."""
    if previous is not None:
        previous.result()
    return source(params)
