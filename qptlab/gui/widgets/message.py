"""Line in which a view shows messages of the session."""

import html

import ipywidgets as ipw

from qptlab.gui.session import Message, Session


class MessageLine(ipw.HTML):
    """Shows the last message of one topic; screen readers announce it.

    Args:
      session: session whose messages are shown.
      topic: name of the tab; messages of other tabs are not shown.
    """

    def __init__(self, session: Session, topic: str):
        super().__init__()
        self._topic = topic
        session.observe(lambda change: self._show(change["new"]), "message")
        self._show(session.message)

    def _show(self, message: Message) -> None:
        if message.topic != self._topic:
            return
        text = html.escape(message.text)
        if not text:
            self.value = ""
        elif message.is_error:
            self.value = f'<div role="alert"><b style="color:#D55E00">⚠</b> {text}</div>'
        else:
            self.value = f'<div role="status">{text}</div>'
