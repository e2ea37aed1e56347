"""A button that begins work in the background, with its progress, and another that calls it off."""

from collections.abc import Callable

import ipywidgets as ipw

from qptlab.gui.session import Session
from qptlab.gui.widgets.message import MessageLine


class TaskBar(ipw.HBox):
    """Begins one kind of work of a session.

    Args:
      session: that does it.
      topic: the part of the workbench it belongs to; its messages are shown here.
      label: of the button.
      icon: of the button.
      begin: begins the work.
      why_not: what stands in the way of beginning, in a sentence; empty if nothing does.
      with_message: whether messages are shown, or somewhere else already.
    """

    def __init__(
        self, session: Session, topic: str, label: str, icon: str, begin: Callable[[], None],
        why_not: Callable[[], str] = lambda: "", *, with_message: bool = True,
    ):
        self._session, self._topic, self._label, self._why_not = session, topic, label, why_not
        self._begin = ipw.Button(description=label, icon=icon, layout={"flex": "0 0 auto", "width": "auto"},
                                 button_style="primary")
        self._cancel = ipw.Button(description="Cancel", icon="times", layout={"width": "90px"})
        self._bar = ipw.FloatProgress(min=0, max=1, layout={"width": "140px"})
        self._text = ipw.Label()
        self._busy = ipw.HBox([self._cancel, self._bar, self._text])
        super().__init__([self._begin, self._busy, *([MessageLine(session, topic)] if with_message else [])])
        self._begin.on_click(lambda _: self._start(begin))
        self._cancel.on_click(lambda _: self._stop())
        self.refresh()

    def _start(self, begin) -> None:
        begin()
        self.refresh()

    def _stop(self) -> None:
        task = self._session.task(self._topic)
        if task is not None:
            task.cancel()
        self.refresh()

    def refresh(self) -> None:
        """Show how far the work is."""
        self._session.deliver()
        task = self._session.task(self._topic)
        reason = "This is under way." if task is not None else self._why_not()
        self._begin.disabled = bool(reason)
        self._begin.tooltip = reason or self._label
        self._busy.layout.display = "none" if task is None else "flex"
        if task is not None:
            self._bar.value, self._text.value = task.share, task.text
            self._cancel.disabled = task.is_cancelled
