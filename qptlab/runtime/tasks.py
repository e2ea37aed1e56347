"""Long work in a thread of its own, with progress; it can be cancelled."""

import threading
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int, str], None]
"""Callback `report(done, total, text)` of the progress of work; it raises `Cancelled` if the work was cancelled."""


class Cancelled(Exception):
    """Exception inside work that was cancelled."""


class Task:
    """Work in a background thread.

    Args:
      work: function of one argument, a `Report`, which it calls to report progress; a call ends cancelled work.
      name: name of the thread.

    Attributes:
      share: share of the work that is done, 0 to 1.
      text: description of the present step.
      result: result of the work, once it is done.
      error: exception of the work, if there was one.
    """

    def __init__(self, work: Callable[[Report], Any], name: str):
        self.share, self.text = 0.0, ""
        self.result: Any = None
        self.error: BaseException | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), name=f"qptlab-{name}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while the work is running."""
        return self._thread.is_alive()

    @property
    def is_cancelled(self) -> bool:
        """True if the work was cancelled."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Cancel the work; it ends at its next report."""
        self._cancelled.set()
        self.text = "ending"

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the work has ended."""
        self._thread.join(timeout)

    def _report(self, done: int, total: int, text: str = "") -> None:
        if self._cancelled.is_set():
            raise Cancelled
        self.share, self.text = done / max(total, 1), text

    def _run(self, work: Callable[[Report], Any]) -> None:
        try:
            self.result = work(self._report)
        except Exception as error:  # noqa: BLE001  the caller shows any error of the thread
            self.error = error
