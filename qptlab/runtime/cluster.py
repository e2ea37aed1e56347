"""Work on several machines at a time, by Dask, or on the cores of this machine."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from typing import TypeVar

from qptlab.errors import InputError

Job, Result = TypeVar("Job"), TypeVar("Result")

LOCAL = "local"
"""Address that stands for this machine: one worker for each of its cores."""


@contextlib.contextmanager
def executor(address: str) -> Iterator[Executor]:
    """Return an executor whose jobs run in Dask's workers.

    Args:
      address: address of a running scheduler, such as "tcp://head:8786", or `LOCAL`. The workers need the same
        versions of qptlab and of its dependencies.

    Raises:
      InputError: if Dask is not installed, or no scheduler answers at the address.

    >>> with executor("nowhere"):  # doctest: +SKIP
    ...     pass
    """
    try:
        import distributed
    except ImportError:
        raise InputError('Expected Dask, which is not installed; use pip install "qptlab[cluster]".') from None
    with contextlib.ExitStack() as stack:
        # One thread per worker: PySCF and XLA use as many threads as they may.
        target = address if address != LOCAL else stack.enter_context(distributed.LocalCluster(
            n_workers=os.cpu_count(), threads_per_worker=1, dashboard_address=":0"
        ))
        try:
            client = stack.enter_context(distributed.Client(target, timeout=10))
        except (OSError, ValueError) as error:
            raise InputError(
                f"Expected a Dask scheduler at {address}, got no answer ({error}); use the address of a running "
                f"scheduler, or {LOCAL}."
            ) from None
        yield client.get_executor()


def as_done(
    executor: Executor, function: Callable[[Job], Result], jobs: Sequence[Job]
) -> Iterator[tuple[Job, Result]]:
    """Yield each job with its result, as they finish; if the caller stops, jobs that have not begun are cancelled."""
    waiting = {executor.submit(function, job): job for job in jobs}
    try:
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        for future in waiting:
            future.cancel()
