"""Refreshing of views: one task in the kernel's own event loop asks every view several times a second.

Trainers run in threads and never touch a widget; this task shows their state. The loop runs between two cells, and
while a cell awaits; while a cell computes, views are not refreshed.
"""

import asyncio
import weakref
from typing import Protocol, runtime_checkable

INTERVAL_SECONDS = 0.25


@runtime_checkable
class Refreshable(Protocol):
    """View that can be kept fresh."""

    def refresh(self) -> None:
        """Show the present state; it is called often, so it does nothing when nothing has changed."""


_views: weakref.WeakSet = weakref.WeakSet()
_task: asyncio.Task | None = None


def keep_fresh(view: Refreshable) -> None:
    """Refresh a view from now on, until it is closed. Outside an event loop nothing happens."""
    global _task
    _views.add(view)
    if _task is None or _task.done():
        try:
            _task = asyncio.get_running_loop().create_task(_tick(), name="qptlab-views")
        except RuntimeError:
            _task = None  # plain Python: the caller refreshes the view


async def _tick() -> None:
    while _views:
        for view in list(_views):
            if getattr(view, "comm", None) is None:  # closed
                _views.discard(view)
                continue
            try:
                view.refresh()
            except Exception as error:  # noqa: BLE001  one broken view must not freeze the others
                _views.discard(view)
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"qptlab: {type(view).__name__} failed and is no longer refreshed",
                     "exception": error}
                )
            await asyncio.sleep(0)  # a cell that waits gets its turn between two views
        await asyncio.sleep(INTERVAL_SECONDS)
