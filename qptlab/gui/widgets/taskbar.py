"""Button that starts work in the background, and the progress of such work with a button that cancels it."""

from collections.abc import Callable

import ipywidgets as ipw

from qptlab.gui.parts import Part
from qptlab.gui.widgets.message import MessageLine


class Progress(ipw.HBox):
    """Shows the progress of the work of one part of a session, with a button that cancels it; hidden without work.

    Args:
      part: part of the session.
    """

    def __init__(self, part: Part):
        self._part = part
        self._cancel = ipw.Button(description="Cancel", icon="times", layout={"width": "90px"})
        self._bar = ipw.FloatProgress(min=0, max=1, layout={"width": "140px"})
        self._text = ipw.Label()
        super().__init__([self._cancel, self._bar, self._text])
        self._cancel.on_click(lambda _: self._stop())
        self.refresh()

    def _stop(self) -> None:
        if self._part.task is not None:
            self._part.task.cancel()
        self.refresh()

    def refresh(self) -> None:
        """Show the progress of the work, and deliver its result."""
        self._part.deliver()
        task = self._part.task
        self.layout.display = "none" if task is None else "flex"
        if task is not None:
            self._bar.value, self._text.value = task.share, task.text
            self._cancel.disabled = task.is_cancelled


class TaskBar(ipw.HBox):
    """Starts the work of one part of a session.

    Args:
      part: part of the session; its messages are shown.
      label: text of the button.
      icon: icon of the button, a name of Font Awesome.
      begin: function that starts the work.
      why_not: function that returns the reason why the work cannot be started, or an empty text if it can.
      with_message: if true, show the messages of the part; if false, they are shown elsewhere.
    """

    def __init__(
        self, part: Part, label: str, icon: str, begin: Callable[[], None],
        why_not: Callable[[], str] = lambda: "", *, with_message: bool = True,
    ):
        self._part, self._label, self._why_not = part, label, why_not
        self._begin = ipw.Button(description=label, icon=icon, layout={"flex": "0 0 auto", "width": "auto"},
                                 button_style="primary")
        self._progress = Progress(part)
        messages = [MessageLine(part.session, part.name)] if with_message else []
        super().__init__([self._begin, self._progress, *messages])
        self._begin.on_click(lambda _: self._start(begin))
        self.refresh()

    def _start(self, begin: Callable[[], None]) -> None:
        begin()
        self.refresh()

    def refresh(self) -> None:
        """Show the progress of the work, and deliver its result."""
        self._progress.refresh()
        reason = self._why_not() if self._part.task is None else "The work is running"
        self._begin.disabled = bool(reason)
        self._begin.tooltip = reason or self._label
