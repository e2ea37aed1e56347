"""Base class of all views: a static version for pages that run no widgets, and a notice for a kernel that is gone."""

import base64
import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as ipw

from qptlab.gui import pictures
from qptlab.gui.widgets.chart import Chart, table_html
from qptlab.gui.widgets.viewer import OrbitalViewer

NOTICE = "This is a static copy of a live view of qptlab; run the notebook in JupyterLab to use the view."


DISCONNECTED = (
    "Not connected to a kernel: this is the last state, and nothing is running. Run the cell again to go on; "
    "trainings are in their run folders."
)

# ipywidgets marks each of some hundred parts with a broken chain. The whole view is marked instead, by one sentence.
_STYLE = f"""<style>
.qptlab-view .jupyter-widgets-disconnected::before,
.qptlab-view .qptlab-view.jupyter-widgets-disconnected::before {{ display: none !important; }}
.qptlab-view.jupyter-widgets-disconnected::before {{
  content: "{DISCONNECTED}"; display: block !important; position: static; flex: 0 0 auto; height: auto;
  font: 13px/1.4 sans-serif; padding: 8px 12px; margin: 0 0 8px; border-left: 4px solid #D55E00;
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color2, #eee);
}}
.qptlab-view button.jupyter-widgets-disconnected,
.qptlab-view .jupyter-widgets-disconnected :is(button, input, select, textarea) {{
  opacity: 0.5; pointer-events: none;
}}
</style>"""


class View(ipw.VBox):
    """Column of widgets, with a static version as HTML.

    Args:
      children: the widgets.
    """

    def __init__(self, children: Sequence[ipw.Widget] = ()):
        super().__init__([*children, ipw.HTML(_STYLE, layout={"display": "none"})])
        self.add_class("qptlab-view")

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
