"""Work that takes more than a moment, in a thread of its own: with progress, and it can be called off."""

import threading
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int, str], None]
"""Tells how much is done, of how much, and what is being done; raises `Cancelled` where the work was called off."""


class Cancelled(Exception):
    """Raised inside work that was called off."""


class Task:
    """One piece of work under way; whoever began it asks for its result.

    Args:
      work: called in the thread with `report`, whose calls `report(done, total, what)` tell how far it is and end
        the work where it was called off.
      name: of the thread.

    Attributes:
      share: done so far, 0 to 1.
      text: what is being done.
      result: of the work, once it is done.
      error: what the work raised, if it did.
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
        """Whether the work is under way."""
        return self._thread.is_alive()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was called off."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Call it off; it ends at its next report."""
        self._cancelled.set()
        self.text = "ending"

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout)

    def _report(self, done: int, total: int, what: str = "") -> None:
        if self._cancelled.is_set():
            raise Cancelled
        self.share, self.text = done / max(total, 1), what

    def _run(self, work) -> None:
        try:
            self.result = work(self._report)
        except Exception as error:  # noqa: BLE001  a thread's last words, shown by whoever began it
            self.error = error
