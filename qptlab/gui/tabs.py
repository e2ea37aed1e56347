"""Register of the workbench's tabs. A tab is one record: a view and its part of the session.

>>> from qptlab.gui.tabs import TABS
>>> list(TABS)
['molecule', 'prediction', 'scf', 'training', 'orbitals', 'comparison', 'attention', 'kernels']
"""

import dataclasses
import pkgutil
from collections.abc import Callable
from typing import Any

from qptlab.errors import InputError
from qptlab.gui.parts import (
    AttentionPart,
    ComparisonPart,
    KernelsPart,
    MoleculePart,
    OrbitalsPart,
    Part,
    PredictionPart,
    SCFPart,
    TrainingPart,
)


@dataclasses.dataclass(frozen=True)
class Tab:
    """Tab of the workbench.

    Attributes:
      name: name by which programs address the tab; messages for its view carry it as their topic.
      title: title on the screen.
      view: class of the view, called with the session; or its name, "module:class", which is imported when the view
        is shown.
      part: class of the tab's part of the session, called with the session and the name.
    """

    name: str
    title: str
    view: Callable[[Any], Any] | str
    part: type[Part] = Part

    def make_view(self, session: Any) -> Any:
        """Return a new view of a session."""
        view: Any = pkgutil.resolve_name(self.view) if isinstance(self.view, str) else self.view
        return view(session)


# A session works without a screen: the modules of the views, which import ipywidgets and plotly, are named only.
TABS: dict[str, Tab] = {
    tab.name: tab
    for tab in (
        Tab("molecule", "Molecule", "qptlab.gui.widgets.picker:MoleculePicker", MoleculePart),
        Tab("prediction", "Prediction", "qptlab.gui.widgets.prediction:PredictionView", PredictionPart),
        Tab("scf", "SCF", "qptlab.gui.widgets.explorer:SCFExplorer", SCFPart),
        Tab("training", "Training", "qptlab.gui.widgets.monitor:TrainingMonitor", TrainingPart),
        Tab("orbitals", "Orbitals", "qptlab.gui.widgets.orbitals:Orbitals", OrbitalsPart),
        Tab("comparison", "Comparison", "qptlab.gui.widgets.comparison:Comparison", ComparisonPart),
        Tab("attention", "Attention", "qptlab.gui.widgets.attention:AttentionView", AttentionPart),
        Tab("kernels", "Kernels", "qptlab.gui.widgets.kernels:KernelInspector", KernelsPart),
    )
}
"""Tabs by name, in the order on the screen; add one with `register_tab`."""


def register_tab(tab: Tab) -> None:
    """Add a tab to every workbench that is shown from now on; a tab of the same name is replaced.

    >>> import ipywidgets
    >>> from qptlab.gui.tabs import Tab, register_tab
    >>> def view(session):
    ...     return ipywidgets.Label(session.molecule.formula)
    >>> register_tab(Tab("formula", "Formula", view))  # doctest: +SKIP
    """
    TABS[tab.name] = tab


def find_tab(name: str) -> Tab:
    """Return the tab of a name.

    Raises:
      InputError: if there is none.
    """
    if name not in TABS:
        raise InputError(f"Expected the name of a tab ({', '.join(TABS)}), got {name!r}.")
    return TABS[name]
