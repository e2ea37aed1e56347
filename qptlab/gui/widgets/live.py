"""Refreshing of views: one task in the kernel's own event loop asks every view several times a second.

Trainers run in threads and never touch a widget; this task shows their state. The loop runs between two cells, and
while a cell awaits; while a cell computes, views are not refreshed.

A page that is loaded again asks the kernel for the state of all widgets, and ipywidgets loses what changes until the
page has built its models. Therefore the state of a widget is sent once more after it has settled.
"""

import asyncio
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import ipywidgets as ipw

INTERVAL_SECONDS = 0.25

REPEAT_SECONDS = 5.0
"""Time after which a changed state that has since settled is sent once more: longer than a page takes to load."""

_INPUTS = {"value", "index"}
"""Traits that a user may be changing, and which are not sent again."""

_OUTPUTS = ipw.HTML, ipw.Label, ipw.FloatProgress, ipw.IntProgress


@runtime_checkable
class Refreshable(Protocol):
    """View that can be kept fresh."""

    def refresh(self) -> None:
        """Show the present state; it is called often, so it does nothing when nothing has changed."""


class _Repeater:
    """Sends the states of settled widgets once more."""

    def __init__(self) -> None:
        self._last: weakref.WeakKeyDictionary[ipw.Widget, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._changed: weakref.WeakSet[ipw.Widget] = weakref.WeakSet()

    def repeat(self, views: Iterable[Any]) -> None:
        """Send the states that have changed between the two calls before this one, and not since.

        Args:
          views: widgets; they, their layouts and styles, and all widgets in them are looked at.
        """
        for widget in {part for view in views if isinstance(view, ipw.Widget) for part in _parts(view)}:
            state = _state(widget)
            is_changed = self._last.get(widget, state) != state
            self._last[widget] = state
            if is_changed:
                self._changed.add(widget)
            elif widget in self._changed:
                self._changed.discard(widget)
                widget.send_state(list(state))


def _parts(view: ipw.Widget) -> Iterator[ipw.Widget]:
    yield view
    for name in ("layout", "style", "children"):
        held = getattr(view, name, ())
        for part in held if isinstance(held, tuple) else (held,):
            if isinstance(part, ipw.Widget):
                yield from _parts(part)


def _state(widget: ipw.Widget) -> dict[str, Any]:
    inputs = set() if isinstance(widget, _OUTPUTS) else _INPUTS
    return widget.get_state([key for key in widget.keys if not key.startswith("_") and key not in inputs])


_views: weakref.WeakSet = weakref.WeakSet()
_repeater = _Repeater()
_task: asyncio.Task | None = None


def keep_fresh(view: Refreshable) -> None:
    """Refresh a view from now on, until it is closed. Outside an event loop nothing happens."""
    global _task
    _views.add(view)
    _repeater.repeat([view])
    if _task is None or _task.done():
        try:
            _task = asyncio.get_running_loop().create_task(_tick(), name="qptlab-views")
        except RuntimeError:
            _task = None  # plain Python: the caller refreshes the view


async def _tick() -> None:
    last = time.monotonic()
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
        if time.monotonic() - last > REPEAT_SECONDS:
            _repeater.repeat(_views)
            last = time.monotonic()
        await asyncio.sleep(INTERVAL_SECONDS)
