"""Widgets that need a large JavaScript library share one widget that holds it, so that it is sent only once."""

import pathlib
from collections.abc import Callable
from typing import Any

import anywidget
import ipywidgets as ipw
import plotly.offline
import traitlets

_HERE = pathlib.Path(__file__).parent

SCRIPT_3DMOL = _HERE / "static" / "3Dmol-min.js"

MISSING_3DMOL = (
    "3D views cannot be shown: 3Dmol.js was not downloaded when qptlab was installed. Install qptlab again with "
    "access to the npm registry (pip install -e .), restart the kernel, and run the cell again."
)


def _plotly() -> bytes:
    return plotly.offline.get_plotlyjs().encode()


def _threedmol() -> bytes:
    return SCRIPT_3DMOL.read_bytes() if SCRIPT_3DMOL.exists() else b""


SOURCES: dict[str, Callable[[], bytes]] = {"plotly": _plotly, "3dmol": _threedmol}
"""Functions that return the JavaScript of each library; the result is empty if the library is missing."""


class Library(anywidget.AnyWidget):
    """JavaScript library for all views of a page; it shows nothing itself.

    Attributes:
      name: name of the library, one of `SOURCES`.
      source: the script.
      missing: message if the script is missing.
    """

    _esm = "export default {};"

    name = traitlets.Unicode().tag(sync=True)
    source = traitlets.Bytes().tag(sync=True)
    missing = traitlets.Unicode(MISSING_3DMOL).tag(sync=True)


_shared: dict[str, Library] = {}


def shared(name: str) -> Library:
    """Return the library of this kernel; it is created when it is first needed."""
    if name not in _shared or _shared[name].comm is None:  # closed together with all widgets
        _shared[name] = Library(name=name, source=SOURCES[name]())
    return _shared[name]


def module(name: str) -> str:
    """Return the JavaScript of a widget, with the function that finds its library."""
    return (_HERE / "library.js").read_text() + (_HERE / name).read_text()


class LibraryWidget(anywidget.AnyWidget):
    """Widget that needs a library; its JavaScript comes from `module`.

    Args:
      needs: name of the library.
      **traits: traits of the widget.
    """

    library = traitlets.Instance(ipw.Widget).tag(sync=True, **ipw.widget_serialization)

    def __init__(self, needs: str, **traits: Any):
        super().__init__(library=shared(needs), **traits)
