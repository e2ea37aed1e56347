"""All tabs of the workbench around one session."""

from typing import Any

import ipywidgets as ipw

from qptlab.gui.session import Session, active_session
from qptlab.gui.tabs import TABS, find_tab
from qptlab.gui.widgets.view import View
from qptlab.training.trainer import Trainer


class Workbench(View):
    """Tabs to choose a molecule, explore its SCF, train a network, look at orbitals, and more: those of `tabs.TABS`.

    Args:
      session: session that is shown; by default a new one.
      **choices: attributes of a new session, such as `molecule="ethanol"` or `minutes=2`.

    Attributes:
      session: session that is shown.
      views: view of each tab, by the name of the tab.
    """

    def __init__(self, session: Session | None = None, **choices: Any):
        self.session = session or Session(**choices)
        self.views = {tab.name: tab.make_view(self.session) for tab in TABS.values()}
        self._tabs = ipw.Tab(list(self.views.values()), titles=[TABS[name].title for name in self.views])
        super().__init__([self._tabs])

    def select(self, name: str) -> "Workbench":
        """Turn to the tab of this name.

        Raises:
          InputError: if there is no such tab.
        """
        self._tabs.selected_index = list(self.views).index(find_tab(name).name)
        return self


def workbench(trainer: Trainer | None = None, **choices: Any) -> Workbench:
    """Return the workbench, to be shown by a notebook cell; see `qptlab.workbench`.

    Args:
      trainer: a trainer that a script has created, to be shown; by default a new session is shown.
      **choices: attributes of a new session.
    """
    session = active_session(trainer)
    if session is not None:
        if trainer is None:
            session.training.tell("This training was already running when the cell was run again.")
        return Workbench(session).select("training")
    app = Workbench(**choices)
    if trainer is not None:
        app.session.training.show(trainer)
        app.select("training")
    return app
