"""A plotly figure on the page."""

import base64
from collections.abc import Callable, Sequence

import plotly.graph_objects as go
import traitlets

from qptlab.gui import pictures, plots
from qptlab.gui.widgets.library import LibraryWidget, module


class Plot(LibraryWidget):
    """Shows a figure; after a change of it, `refresh` shows that.

    plotly's own `FigureWidget` sends four megabytes of JavaScript with every figure; where a page holds many, some of
    them are not drawn when it is loaded again.

    Args:
      figure: what is shown.

    Attributes:
      figure: what is shown; call `refresh` after a change.
      label: what it shows, in words, for screen readers.
      name: of pictures that are saved.
    """

    _esm = module("plot.js")

    figure_json = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode("plot").tag(sync=True)
    name = traitlets.Unicode("qptlab").tag(sync=True)

    def __init__(self, figure: go.Figure):
        self.figure = figure
        self._clicked: Callable[[int, int], None] | None = None
        super().__init__("plotly", figure_json=_json(figure))
        self.on_msg(self._hear)

    def refresh(self) -> None:
        """Show the figure as it is now."""
        self.figure_json = _json(self.figure)

    def fill(self, traces: Sequence[tuple]) -> None:
        """Put new numbers into the figure and show it; see `plots.fill`."""
        plots.fill(self.figure, traces)
        self.refresh()

    def on_click(self, clicked: Callable[[int, int], None]) -> None:
        """Call this with the numbers of trace and point when a point is clicked."""
        self._clicked = clicked

    def _hear(self, _, message: dict, __) -> None:
        if "click" in message and self._clicked is not None:
            self._clicked(*map(int, message["click"]))

    def _repr_mimebundle_(self, **options):
        """With a picture, for pages that run no widgets."""
        bundle = super()._repr_mimebundle_(**options)
        if bundle is not None:
            bundle[0]["image/png"] = base64.b64encode(pictures.png(self.figure)).decode()
        return bundle


def _json(figure: go.Figure) -> str:
    return str(figure.to_json())
