"""Pictures of the figures of `plots`, for pages that run no widgets and for saving.

plotly draws in a browser only. matplotlib draws the lines, points, bars and heatmaps of our figures without one.
"""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

PIXELS = 100.0
"""Height of a figure of plotly per inch of the picture, pixels."""

LABELLED = 40
"""Largest number of rows of a heatmap whose names are drawn; for more there is no room."""

LINES = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 2, 3)),
}
POINTS = {"circle": "o", "diamond": "D", "square": "s", "x": "x", "star": "*", "cross": "P", "line-ew": "_",
          "x-thin-open": "x", "diamond-open": "d"}

LEGEND_INCHES = 0.4
"""Height of the strip for the legend below a picture."""


def png(figure: go.Figure) -> bytes:
    """Return a figure as a PNG file on a white background."""
    from matplotlib.figure import Figure  # loaded only when something is drawn
    from matplotlib.transforms import Bbox

    layout = figure.to_plotly_json()["layout"]
    picture = Figure(figsize=(11, float(layout.get("height") or 400) / PIXELS + 0.6), dpi=100)
    axes: dict[str, Any] = {}
    for trace in figure.data:
        key = getattr(trace, "xaxis", None) or "x"
        if key not in axes:
            axes[key] = _axes(picture, layout, key[1:])
        _draw(axes[key], trace)
    for note in layout.get("annotations") or []:  # titles of the plots of a figure
        x, y = (0.08 + 0.86 * note["x"], 0.22 + 0.66 * note["y"])
        picture.text(x, y + 0.02, note["text"], ha="center")
    title = (layout.get("title") or {}).get("text")
    if title:
        picture.suptitle(title)
    _legend(picture, axes.values())
    file = io.BytesIO()
    width, height = picture.get_size_inches()
    picture.savefig(file, format="png", bbox_inches=Bbox([[0.0, -LEGEND_INCHES], [width, height]]))
    return file.getvalue()


def _axes(picture: "matplotlib.figure.Figure", layout: dict, number: str) -> "matplotlib.axes.Axes":
    """Return axes at the same position and with the same scales as those of plotly's subplot of this number."""
    x_axis, y_axis = (layout.get(f"{name}axis{number}") or {} for name in "xy")
    (x_min, x_max), (y_min, y_max) = (axis.get("domain") or (0.0, 1.0) for axis in (x_axis, y_axis))
    corner, size = (0.08 + 0.86 * x_min, 0.22 + 0.66 * y_min), (0.86 * (x_max - x_min), 0.66 * (y_max - y_min))
    axes = picture.add_axes((*corner, *size))
    for axis, name in ((x_axis, "x"), (y_axis, "y")):
        getattr(axes, f"set_{name}label")((axis.get("title") or {}).get("text") or "")
        if axis.get("type") == "log":
            getattr(axes, f"set_{name}scale")("log")
    if y_axis.get("autorange") == "reversed":
        axes.invert_yaxis()
    axes.grid(alpha=0.25)
    return axes


def _draw(axes: "matplotlib.axes.Axes", trace: Any) -> None:
    if trace.type == "heatmap":
        colours = "RdBu" if trace.zmid == 0 else "cividis"
        image = axes.imshow(
            np.asarray(trace.z, float), cmap=colours, vmin=trace.zmin, vmax=trace.zmax, aspect="auto"
        )
        axes.figure.colorbar(image, ax=axes)
        axes.grid(visible=False)
        if len(trace.x) <= LABELLED:
            axes.set_xticks(range(len(trace.x)), list(trace.x), rotation=90, fontsize=7)
            axes.set_yticks(range(len(trace.y)), list(trace.y), fontsize=7)
    elif trace.type == "histogram":
        axes.hist(np.asarray(trace.x, float), bins=20, color=trace.marker.color, label=trace.name)
    elif trace.type == "bar" and trace.orientation == "h":
        start = None if trace.base is None else list(trace.base)
        axes.barh(list(trace.y), list(trace.x), left=start, label=trace.name)
    elif trace.type == "bar":
        axes.bar(list(trace.x), list(trace.y), label=trace.name, color=trace.marker.color)
        axes.tick_params(axis="x", rotation=40)
    elif trace.x is not None and len(trace.x):
        _draw_scatter(axes, trace)


def _draw_scatter(axes: "matplotlib.axes.Axes", trace: Any) -> None:
    line, marker = trace.line, trace.marker
    mode = trace.mode or "lines+markers"
    has_lines, has_points = "lines" in mode, "markers" in mode
    symbol = marker.symbol if isinstance(marker.symbol, str) else "circle"
    colour = (line.color if has_lines else marker.color) or marker.line.color
    axes.plot(
        list(trace.x), list(trace.y), linestyle=LINES[line.dash or "solid"] if has_lines else "", color=colour,
        linewidth=line.width or 1.5, marker=POINTS.get(symbol, "o") if has_points else "",
        markersize=20 if symbol == "line-ew" else 5, label=None if trace.showlegend is False else trace.name,
    )


def _legend(picture: "matplotlib.figure.Figure", axes: Iterable[Any]) -> None:
    """Draw one legend for all axes, in which each name stands once."""
    handles: dict[str, Any] = {}
    for subplot in axes:
        for handle, name in zip(*subplot.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        # Below the axes' part of the picture, where long labels of the ticks do not reach.
        picture.legend(
            handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4, frameon=False,
            fontsize=9,
        )
