"""From geometries to samples on the device: integrals made ahead in threads, and a replay buffer.

The order of everything is fixed by the seed, not by the timing of threads.
"""

import collections
import concurrent.futures
import itertools
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float

from qptlab.frame import ReferenceFrame
from qptlab.integrals import HostIntegrals
from qptlab.models.qpt import QPT, Sample

LOOK_AHEAD = 16
"""Geometries whose integrals are made ahead of the one being trained on."""

REPLAY_BYTES = 2 * 2**30
"""Memory that the replay buffer may take."""

REPLAY_MAX = 1024


class Stream:
    """Batches of samples for training, endless; a context manager that owns its threads.

    Every batch brings `batch / reuse` new geometries and fills up with earlier ones, drawn at
    random from the newest that fit the memory, so that each is used `reuse` times on average.

    Args:
      model: prepares the samples.
      frame: brings geometries into the molecule's frame.
      geometries: positions, bohr.
      batch: geometries a batch.
      reuse: how often a geometry is used, on average.
      seed: of the draws from the replay buffer.

    Attributes:
      waited: seconds spent in `next` so far, waiting for geometries and integrals.
      drawn: new geometries taken so far.
    """

    def __init__(
        self,
        model: QPT,
        frame: ReferenceFrame,
        geometries: Iterator[Float[np.ndarray, "natm 3"]],
        *,
        batch: int,
        reuse: int,
        seed: int | list[int],
    ):
        self.waited = 0.0
        self.drawn = 0
        self._model = model
        self._frame = frame
        self._geometries = geometries
        self._batch = batch
        self._reuse = reuse
        self._rng = np.random.default_rng(seed)
        self._replay: collections.deque[Sample] = collections.deque()
        self._capacity = REPLAY_MAX
        # Dynamics is a chain and has a thread of its own; integrals of its frames go in parallel.
        self._sampler = concurrent.futures.ThreadPoolExecutor(1, "qptlab-geometries")
        self._workers = concurrent.futures.ThreadPoolExecutor(
            max(1, (os.cpu_count() or 2) - 1), "qptlab-integrals"
        )
        self._ahead: collections.deque[concurrent.futures.Future] = collections.deque()

    def __enter__(self):
        """Start making integrals."""
        for _ in range(LOOK_AHEAD):
            self._submit()
        return self

    def __exit__(self, *_):
        """Stop the threads, leaving no work behind."""
        for pool in (self._sampler, self._workers):
            pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self):
        """The stream is its own iterator."""
        return self

    def __next__(self) -> tuple[Sample, ...]:
        """The next batch, newest geometry first.

        Raises:
          InputError: what the source of geometries raised.
        """
        fresh = self._batch if not self._replay else max(1, self._batch // self._reuse)
        for _ in range(fresh):
            self._replay.append(self._take())
        while len(self._replay) > self._capacity:
            self._replay.popleft()
        newest = list(itertools.islice(reversed(self._replay), min(fresh, self._batch)))
        older = len(self._replay) - len(newest)
        rest = self._rng.choice(older, self._batch - len(newest), replace=False)
        return (*newest, *(self._replay[i] for i in rest))

    def _take(self) -> Sample:
        began = time.perf_counter()
        self._submit()
        host = self._ahead.popleft().result()
        self.waited += time.perf_counter() - began
        sample = self._model.prepare(host)
        if self.drawn == 0:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(sample))
            self._capacity = int(np.clip(REPLAY_BYTES // size, 2 * self._batch, REPLAY_MAX))
        self.drawn += 1
        return sample

    def _submit(self) -> None:
        geometry = self._sampler.submit(next, self._geometries)
        self._ahead.append(self._workers.submit(self._integrals, geometry))

    def _integrals(self, geometry: concurrent.futures.Future) -> HostIntegrals:
        return self._model.template.host_integrals(self._frame.pose(geometry.result()).positions)
