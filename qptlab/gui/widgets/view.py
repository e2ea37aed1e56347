"""Base class of all views: it adds a static version for pages that run no widgets."""

import base64
import html
from typing import Any

import ipywidgets as ipw

from qptlab.gui import pictures
from qptlab.gui.widgets.chart import Chart, table_html
from qptlab.gui.widgets.viewer import OrbitalViewer

NOTICE = "This is a static copy of a live view of qptlab; run the notebook in JupyterLab to use the view."


class View(ipw.VBox):
    """Column of widgets, with a static version as HTML."""

    def _repr_mimebundle_(self, *args: Any, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(*args, **options)
        if bundle is not None:
            bundle["text/html"] = f"<p><i>{NOTICE}</i></p>{''.join(_static(self))}"
        return bundle


def _static(widget: Any) -> list[str]:
    """Return the visible content of a widget and its children as pieces of HTML."""
    if getattr(widget.layout, "display", None) == "none":
        return []
    if isinstance(widget, Chart):
        if not any(len(trace.x) for trace in widget.figure.data if trace.x is not None):
            return []
        picture = base64.b64encode(pictures.png(widget.figure)).decode()
        table = f"<details><summary>Data</summary>{table_html(widget.title, widget.figure)}</details>"
        return [f'<img alt="{html.escape(widget.title)}" src="data:image/png;base64,{picture}">', widget.words, table]
    if isinstance(widget, OrbitalViewer):
        return [f"<p>3D view: {html.escape('; '.join(widget.captions))}</p>"] if widget.symbols else []
    if isinstance(widget, ipw.HTML):
        return [f"<div>{widget.value}</div>"] if widget.value else []
    return [part for child in getattr(widget, "children", ()) for part in _static(child)]
