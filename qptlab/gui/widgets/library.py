"""Widgets that need a large JavaScript library: all of them share one that holds it, so that it is sent once."""

import pathlib
from collections.abc import Callable

import anywidget
import ipywidgets as ipw
import plotly.offline
import traitlets

_HERE = pathlib.Path(__file__).parent

SCRIPT_3DMOL = _HERE / "static" / "3Dmol-min.js"

MISSING_3DMOL = (
    "3D views are missing: 3Dmol.js was not bundled when qptlab was installed. Install qptlab again with "
    "the npm registry in reach (pip install -e .), restart the kernel, and run the cell again."
)


def _plotly() -> bytes:
    return plotly.offline.get_plotlyjs().encode()


def _threedmol() -> bytes:
    return SCRIPT_3DMOL.read_bytes() if SCRIPT_3DMOL.exists() else b""


SOURCES: dict[str, Callable[[], bytes]] = {"plotly": _plotly, "3dmol": _threedmol}
"""JavaScript by name; empty where it is missing."""


class Library(anywidget.AnyWidget):
    """A JavaScript library, for all views of a page that need it; seen by nobody.

    Attributes:
      name: one of `SOURCES`.
      source: the script.
      missing: what to say where there is none.
    """

    _esm = "export default {};"

    name = traitlets.Unicode().tag(sync=True)
    source = traitlets.Bytes().tag(sync=True)
    missing = traitlets.Unicode(MISSING_3DMOL).tag(sync=True)


_shared: dict[str, Library] = {}


def shared(name: str) -> Library:
    """The library of this kernel; made when it is first needed."""
    if name not in _shared or _shared[name].comm is None:  # closed, with all widgets
        _shared[name] = Library(name=name, source=SOURCES[name]())
    return _shared[name]


def module(name: str) -> str:
    """A widget's JavaScript, with the function that finds its library."""
    return (_HERE / "library.js").read_text() + (_HERE / name).read_text()


class LibraryWidget(anywidget.AnyWidget):
    """A widget that needs a library, and whose JavaScript is made by `module`.

    Args:
      needs: name of the library.
      **traits: as of any widget.
    """

    library = traitlets.Instance(ipw.Widget).tag(sync=True, **ipw.widget_serialization)

    def __init__(self, needs: str, **traits):
        super().__init__(library=shared(needs), **traits)
