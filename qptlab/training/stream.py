"""From geometries to samples on the device: made ahead in threads, and kept in a replay buffer.

What comes when is fixed by the seed, the number of the step and, where there is little, the memory allowed, not by
the timing of threads; so a stream that is entered at a later step goes on as it would have done. (Where the model
draws the geometries, it does not: walks then begin anew.)
"""

import collections
import concurrent.futures
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from qptlab.models.contract import Params
from qptlab.models.correction import CorrectionModel
from qptlab.models.systems import Sample, System
from qptlab.runtime.memory import memory_bytes
from qptlab.sampling import geometries
from qptlab.sampling.geometries import Sampling

LOOK_AHEAD = 16
"""Samples that are made ahead of the one being trained on; fewer where they are large."""

REPLAY_BYTES, REPLAY_SHARE = 2 * 2**30, 1 / 4
"""Memory that the replay buffers may take, and the share of what integrals may that is their limit, too: the second
counts where less than 16 GiB are allowed."""

REPLAY_MAX = 1024


class Drawn(NamedTuple):
    """A sample, and the molecule that it is of."""

    system: System
    sample: Sample


class Stream:
    """Batches of samples for training, endless; a context manager that owns its threads.

    A batch has as many lanes as geometries. New ones, `batch / reuse` a batch, go to the lanes in turn; a lane
    without a new one brings one of its earlier ones, drawn at random from the newest that fit the memory, so that
    each is used `reuse` times on average. All samples of a batch have one shape; molecules of another shape have
    their turn as often as there are of them.

    Several processes share the lanes, and together have the batches that one process would have: each draws all
    geometries, which costs little, and makes the samples of its own lanes only.

    Args:
      systems: the molecules.
      sampling: where geometries come from.
      model: draws geometries itself, if they come from the model.
      batch: geometries a batch.
      reuse: how often a geometry is used, on average.
      seed: of everything that is random.
      step: batches that have been taken before, by a stream that ended.
      share: number of this process, and how many there are, to divide `batch`.

    Attributes:
      waited: seconds spent in `next` so far, waiting for samples.
      drawn: new geometries taken so far.
      params: the model's, to be set before each batch where it draws geometries itself.
    """

    def __init__(
        self,
        systems: Sequence[System],
        sampling: Sampling,
        model: CorrectionModel | None = None,
        *,
        batch: int,
        reuse: int,
        seed: int,
        step: int = 0,
        share: tuple[int, int] = (0, 1),
    ):
        self.waited = 0.0
        self.params: Params | None = None
        grouped: dict[tuple, list[int]] = {}
        for index, system in enumerate(systems):
            grouped.setdefault((system.template.shape, system.template.layout), []).append(index)
        turns = _turns([len(members) for members in grouped.values()], batch, reuse, seed)
        past = list(itertools.islice(turns, step))
        drawn = [sum(fresh for bucket, fresh, _ in past if bucket == i) for i in range(len(grouped))]
        self.drawn = sum(drawn)
        memory = int(min(REPLAY_BYTES, REPLAY_SHARE * memory_bytes())) // len(grouped)
        self._buckets = [
            _Bucket(systems, members, sampling, model, seed, memory, batch, before, share)
            for members, before in zip(grouped.values(), drawn, strict=True)
        ]
        self._turns, ahead = itertools.tee(turns)  # samples are asked for some turns before they are used
        self._turn = next(self._turns)
        self._wanted = self._order(ahead)
        cores = os.cpu_count() or 2
        # Dynamics are chains, and their frames' integrals go in parallel with them.
        self._samplers = concurrent.futures.ThreadPoolExecutor(cores, "qptlab-geometries")
        self._workers = concurrent.futures.ThreadPoolExecutor(max(1, cores - 1), "qptlab-integrals")
        self._ahead: collections.deque[tuple[int, concurrent.futures.Future | None]] = collections.deque()

    def __enter__(self):
        """Start making samples."""
        for _ in range(min(bucket.look_ahead for bucket in self._buckets)):
            self._submit()
        return self

    def __exit__(self, *_):
        """Stop the threads, leaving no work behind."""
        for pool in (self._samplers, self._workers):
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def shapes(self) -> Sample:
        """Shapes and types of the samples of the next batch, known before it is."""
        return self._buckets[self._turn[0]].shapes

    def __iter__(self):
        """The stream is its own iterator."""
        return self

    def __next__(self) -> tuple[Drawn, ...]:
        """The next batch, or this process's share of it; new geometries first.

        Raises:
          InputError: what the source of geometries raised.
        """
        self.refill()
        index, fresh, rng = self._turn
        self._turn, bucket = next(self._turns), self._buckets[index]
        for _ in range(fresh):
            bucket.keep(*self._take())
        self.drawn += fresh
        return bucket.batch(fresh, rng)

    def refill(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Find the samples again that a stream entered later would hold; `next` does so, too.

        Args:
          progress: told how many are back, of how many; what it raises ends the work.

        Raises:
          InputError: what the source of geometries raised.
        """
        total = sum(bucket.missing for bucket in self._buckets)
        done = 0
        for bucket in self._buckets:
            while bucket.missing:
                bucket.keep(*self._take())
                done += 1
                progress(done, total)

    def _order(self, turns) -> "Iterator[_Bucket]":
        """Whose geometry is needed next, and next."""
        for bucket in self._buckets:
            yield from itertools.repeat(bucket, bucket.missing)
        for index, fresh, _ in turns:
            yield from itertools.repeat(self._buckets[index], fresh)

    def _take(self) -> tuple[int, Drawn | None]:
        """The next geometry's number and, where it is this process's, its sample."""
        began = time.perf_counter()
        self._submit()
        number, made = self._ahead.popleft()
        found = made.result() if made else None
        self.waited += time.perf_counter() - began
        return number, found

    def _submit(self) -> None:
        bucket = next(self._wanted)
        number, system, geometry = bucket.draw(self._samplers, self.params)
        made = self._workers.submit(bucket.make, system, geometry) if bucket.is_own(number) else None
        self._ahead.append((number, made))


def _turns(numbers, batch, reuse, seed) -> Iterator[tuple[int, int, np.random.Generator]]:
    """For each step: the bucket whose turn it is, how many new geometries it needs, and the step's random numbers."""
    turns = [0] * len(numbers)
    for step in itertools.count():
        rng = np.random.default_rng([2, seed, step])  # 0 and 1 begin the seeds of geometries
        bucket = int(rng.choice(len(numbers), p=np.array(numbers) / sum(numbers)))
        done = turns[bucket]
        # A whole batch first, then batch / reuse on average: none in some steps where that is below one.
        yield bucket, batch * (done + 1) // reuse - batch * done // reuse if done else batch, rng
        turns[bucket] += 1


class _Bucket:
    """Molecules of one shape: where their geometries come from, and the newest samples."""

    def __init__(self, systems, members, sampling, model, seed, memory, batch, drawn, share):
        self._systems = [systems[index] for index in members]
        self._compiles = threading.Lock()
        self._is_compiled = False
        system = self._systems[0]
        self.shapes = system.shapes
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.shapes))
        depth = int(np.clip(memory // size, 2 * batch, max(REPLAY_MAX, 2 * batch))) // batch
        self.look_ahead = int(np.clip(memory // (4 * size), 2, LOOK_AHEAD))
        self._share = share
        self._lanes: list[collections.deque[Drawn]] = [collections.deque(maxlen=depth) for _ in range(batch)]
        self.missing = min(drawn, depth * batch)
        # Geometries are numbered: molecule by molecule, then chain by chain.
        self._number = drawn - self.missing
        self._kept = self._number - 1
        ways = [(member, chain) for chain in range(sampling.chains) for member in range(len(members))]
        self._sources = [
            _source(
                self._systems[member], sampling, model, [seed, members[member], chain],
                max(0, -((way - self._number) // len(ways))),
            )
            for way, (member, chain) in enumerate(ways)
        ]
        self._latest: list[concurrent.futures.Future | None] = [None] * len(ways)

    def draw(self, pool, params) -> tuple[int, System, concurrent.futures.Future]:
        """The next geometry's number, molecule and future positions; those of one chain come one after another."""
        number = self._number
        way = number % len(self._sources)
        self._number += 1
        self._latest[way] = pool.submit(_after, self._latest[way], self._sources[way], params)
        return number, self._systems[number % len(self._systems)], self._latest[way]

    def is_own(self, number: int) -> bool:
        """Whether a geometry is of a lane of this process."""
        return number % len(self._lanes) % self._share[1] == self._share[0]

    def make(self, system: System, geometry: concurrent.futures.Future) -> Drawn:
        """A sample of a geometry, on the device."""
        host = system.host_integrals(system.frame.pose(geometry.result()).positions)
        if self._is_compiled:
            return Drawn(system, jax.block_until_ready(system.sample(host)))
        with self._compiles:  # once, not in each thread
            sample = jax.block_until_ready(system.sample(host))
            self._is_compiled = True
            return Drawn(system, sample)

    def keep(self, number: int, drawn: Drawn | None) -> None:
        """Add a sample to the newest of its lane, in place of the oldest; None if it is another process's."""
        if drawn is not None:
            self._lanes[number % len(self._lanes)].append(drawn)
        self.missing = max(0, self.missing - 1)
        self._kept = number

    def batch(self, fresh: int, rng: np.random.Generator) -> tuple[Drawn, ...]:
        """A sample of each lane of this process; of those that had the last `fresh` geometries, these, and first."""
        size = len(self._lanes)
        places = rng.random(size)  # the same in all processes
        newest = [number % size for number in range(self._kept, self._kept - fresh, -1)]
        older = [lane for lane in range(size) if lane not in newest]
        return (
            *(self._lanes[lane][-1] for lane in newest if self.is_own(lane)),
            *(self._lanes[lane][int(places[lane] * len(self._lanes[lane]))] for lane in older if self.is_own(lane)),
        )


def _source(system, sampling, model, seed, start) -> Callable[[Params], np.ndarray]:
    if sampling.sampler == "model" and model is not None:
        return geometries.Walk(model, system, sampling, seed).move
    stream = geometries.sample(system.molecule, sampling, seed, start=start)
    return lambda params: next(stream)


def _after(before, source, params) -> np.ndarray:
    if before is not None:
        before.result()
    return source(params)
