"""The line in which a view shows what the session has to say to the user."""

import html

import ipywidgets as ipw

from qptlab.gui.session import Session


class MessageLine(ipw.HTML):
    """Shows the session's messages of one topic, the last until the next; announced to screen readers.

    Args:
      session: whose messages.
      topic: one of those of `session.Message`.
    """

    def __init__(self, session: Session, topic: str):
        super().__init__()
        self._topic = topic
        session.observe(self._show, "message")

    def _show(self, change) -> None:
        message = change["new"]
        if message.topic != self._topic:
            return
        text = html.escape(message.text)
        if not text:
            self.value = ""
        elif message.is_error:
            self.value = f'<div role="alert"><b style="color:#D55E00">⚠</b> {text}</div>'
        else:
            self.value = f'<div role="status">{text}</div>'
