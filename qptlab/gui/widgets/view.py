"""What all views have in common: a still version of themselves for pages that run no widgets."""

import base64

import ipywidgets as ipw

from qptlab.gui import pictures
from qptlab.gui.widgets.chart import Chart, table_html
from qptlab.gui.widgets.viewer import OrbitalViewer

NOTICE = "This is a live view of qptlab, at the moment it was shown; run the notebook in JupyterLab to use it."


class View(ipw.VBox):
    """A column of widgets that also says in HTML what it showed."""

    def _repr_mimebundle_(self, *given, **options):
        bundle = super()._repr_mimebundle_(*given, **options)
        if bundle is not None:
            bundle["text/html"] = f"<p><i>{NOTICE}</i></p>{''.join(_still(self))}"
        return bundle


def _still(widget) -> list[str]:
    if getattr(widget.layout, "display", None) == "none":
        return []
    if isinstance(widget, Chart):
        if not any(len(trace.x) for trace in widget.figure.data if trace.x is not None):
            return []
        picture = base64.b64encode(pictures.png(widget.figure)).decode()
        table = f"<details><summary>Data</summary>{table_html(widget.title, widget.figure)}</details>"
        return [f'<img alt="{widget.title}" src="data:image/png;base64,{picture}">', widget.words, table]
    if isinstance(widget, OrbitalViewer):
        return [f"<p>3D view: {'; '.join(widget.captions)}</p>"] if widget.symbols else []
    if isinstance(widget, ipw.HTML):
        return [widget.value]
    return [part for child in getattr(widget, "children", ()) for part in _still(child)]
