"""A plot with a sentence about it and its numbers as a table, also for screen readers."""

import html
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go

from qptlab.gui.widgets.plot import Plot

STYLE = """<style>
.qptlab-table table { border-collapse: collapse; }
.qptlab-table caption { color: inherit; text-align: left; padding: 2px 0 6px; }
.qptlab-table th, .qptlab-table td { padding: 2px 10px; text-align: right; border-bottom: 1px solid #8884; }
.qptlab-table tr th:first-child { text-align: left; }
</style>"""
"""Style of the tables of all views."""

MAX_ROWS = 300
"""Largest number of rows of the table; nobody reads more."""

MAX_SIDE = 20
"""Largest number of rows and columns of a matrix in the table."""


class Chart(ipw.VBox):
    """Live figure with a sentence and a table.

    Args:
      figure: figure that is shown first.
      title: title of the table.

    Attributes:
      title: title of the table.
      plot: widget that shows the figure.
    """

    def __init__(self, figure: go.Figure, title: str):
        self.title = title
        self.plot = Plot(figure)
        self.plot.label = title
        self._words = ipw.HTML()
        self._table = ipw.HTML(layout={"max_height": "260px", "overflow": "auto"})
        self._toggle = ipw.ToggleButton(
            description="Data", icon="table", tooltip=f"Show the numbers of the plot “{title}” as a table",
            layout={"flex": "0 0 auto", "width": "90px"},
        )
        self._toggle.observe(lambda _: self._fill_table(), "value")
        super().__init__([self.plot, ipw.HBox([self._toggle, self._words]), self._table])

    @property
    def figure(self) -> go.Figure:
        """Figure that is shown."""
        return self.plot.figure

    @property
    def words(self) -> str:
        """Sentence below the figure, HTML."""
        return self._words.value

    def show(self, words: str, figure: go.Figure | None = None) -> None:
        """Show the figure.

        Args:
          words: sentence that says what the figure shows.
          figure: new figure; by default the present one is shown again, with all changes.
        """
        if figure is not None:
            self.plot.figure = figure
        self.plot.refresh()
        self.plot.label = f"{self.title}: {words}"
        self._words.value = f'<span role="status">{html.escape(words)}</span>'
        self._fill_table()

    def _fill_table(self) -> None:
        self._table.value = table_html(self.title, self.figure) if self._toggle.value else ""


def table_html(title: str, figure: go.Figure) -> str:
    """Return the numbers of a figure's lines, points and heatmaps as an HTML table."""
    lines = []
    traces: tuple = figure.data  # pyright: ignore[reportAssignmentType]
    for trace in traces:
        name = html.escape(str(trace.name or ""))
        if trace.type == "heatmap":
            lines.append(_row("th", [name, *trace.x[:MAX_SIDE]]))
            for label, row in zip(trace.y[:MAX_SIDE], trace.z, strict=False):
                lines.append(_row("td", [label, *map(_number, row[:MAX_SIDE])]))
        else:
            pairs = list(zip(() if trace.x is None else trace.x, () if trace.y is None else trace.y, strict=False))
            last = pairs[-max(1, MAX_ROWS // len(traces)) :]
            lines += [_row("td", [name, _number(x), _number(y)]) for x, y in last]
    return (
        f'{STYLE}<div class="qptlab-table"><table>'
        f"<caption>{html.escape(title)}: the last values of each line</caption>"
        f"{''.join(lines)}</table></div>"
    )


def _row(tag: str, cells: list) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _number(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float | int) else value
