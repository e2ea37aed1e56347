"""Work on many machines at once, by Dask; on this one's cores where no cluster is named."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from typing import TypeVar

from qptlab.errors import InputError

Job, Result = TypeVar("Job"), TypeVar("Result")

LOCAL = "local"
"""In place of an address: a worker for each core of this machine."""


@contextlib.contextmanager
def executor(address: str) -> Iterator[Executor]:
    """An executor whose jobs run in Dask's workers.

    Args:
      address: of a running scheduler, such as "tcp://head:8786", or `LOCAL`. A scheduler's workers need the same
        versions of qptlab and of what it is made of.

    Raises:
      InputError: if Dask is not installed, or there is no scheduler at the address.

    >>> with executor("nowhere"):  # doctest: +SKIP
    ...     pass
    """
    try:
        import distributed
    except ImportError:
        raise InputError('Dask is not installed; pip install "qptlab[cluster]" would do.') from None
    with contextlib.ExitStack() as stack:
        # One thread each: what runs in a worker, PySCF or XLA, takes as many as it is given.
        place = address if address != LOCAL else stack.enter_context(distributed.LocalCluster(
            n_workers=os.cpu_count(), threads_per_worker=1, dashboard_address=":0"
        ))
        try:
            client = stack.enter_context(distributed.Client(place, timeout=10))
        except (OSError, ValueError) as error:
            raise InputError(
                f"no scheduler of Dask's answers at {address} ({error}); the address of a running one, or {LOCAL}, "
                "would do."
            ) from None
        yield client.get_executor()


def as_done(
    executor: Executor, function: Callable[[Job], Result], jobs: Sequence[Job]
) -> Iterator[tuple[Job, Result]]:
    """Jobs with their results, as these are finished; what has not begun is called off when the caller stops."""
    waiting = {executor.submit(function, job): job for job in jobs}
    try:
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        for future in waiting:
            future.cancel()
