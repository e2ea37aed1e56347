"""Widget that shows a plotly figure."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
import traitlets

from qptlab.gui import pictures, plots
from qptlab.gui.widgets.library import LibraryWidget, module


class Plot(LibraryWidget):
    """Shows a figure; call `refresh` after a change of the figure.

    plotly's own `FigureWidget` sends four megabytes of JavaScript with every figure. If a page holds many figures,
    some of them are not drawn when the page is loaded again.

    Args:
      figure: figure that is shown.

    Attributes:
      figure: figure that is shown.
      label: description of the figure for screen readers.
      name: file name of saved pictures.
    """

    _esm = module("plot.js")

    figure_json = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode("plot").tag(sync=True)
    name = traitlets.Unicode("qptlab").tag(sync=True)

    def __init__(self, figure: go.Figure):
        self.figure = figure
        self._clicked: Callable[[int, int], None] | None = None
        super().__init__("plotly", figure_json=_json(figure))
        self.on_msg(self._receive)

    def refresh(self) -> None:
        """Show the figure with all changes."""
        self.figure_json = _json(self.figure)

    def fill(self, traces: Sequence[tuple]) -> None:
        """Set the numbers of the figure and show it; see `plots.fill`."""
        plots.fill(self.figure, traces)
        self.refresh()

    def on_click(self, clicked: Callable[[int, int], None]) -> None:
        """Set the function that is called when a point is clicked, with the numbers of its trace and of the point."""
        self._clicked = clicked

    def _receive(self, _: Any, message: dict, __: Any) -> None:
        if "click" in message and self._clicked is not None:
            self._clicked(*map(int, message["click"]))

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return the widget, with a picture for pages that run no widgets."""
        bundle = super()._repr_mimebundle_(**options)
        if bundle is not None:
            bundle[0]["image/png"] = base64.b64encode(pictures.png(self.figure)).decode()
        return bundle


def _json(figure: go.Figure) -> str:
    return str(figure.to_json())
