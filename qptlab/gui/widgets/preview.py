"""Pages of their own with a 3D view, by py3Dmol.

py3Dmol's own loader fetches 3Dmol.js from the internet, and leaves a blank box without a connection. Here the bundled
script is part of the page, and py3Dmol finds it there.
"""

import html
from collections.abc import Sequence

import numpy as np
import py3Dmol
from jaxtyping import Float

from qptlab.gui import plots
from qptlab.gui.widgets import library


def script_html() -> str:
    """Return the HTML that a page needs once, before its first view."""
    if not library.SCRIPT_3DMOL.exists():
        return f'<p role="alert">{html.escape(library.MISSING_3DMOL)}</p>'
    # "</script" inside the text would end the element.
    code = library.SCRIPT_3DMOL.read_text(encoding="utf-8").replace("</script", "<\\/script")
    return f"<script>{code}</script><script>var $3Dmolpromise = Promise.resolve();</script>"


def export_html(
    symbols: Sequence[str],
    positions_angstrom: Float[np.ndarray, "natm 3"],
    cube: str,
    isovalue: float,
    title: str,
) -> str:
    """Return a page that shows a molecule with the surfaces of an orbital; it needs no internet.

    Args:
      symbols: element symbols.
      positions_angstrom: nuclear positions, Å.
      cube: text of a Gaussian cube file.
      isovalue: value on the two surfaces, with both signs.
      title: title of the page.
    """
    view = _view(symbols, positions_angstrom, 800, 600)
    # py3Dmol writes the text into a script, which "</script" in the cube's title would end; numbers have no "<".
    cube = cube.replace("<", " ")
    for sign, colour in ((1, plots.BLUE), (-1, plots.ORANGE)):
        view.addVolumetricData(
            cube, "cube", {"isoval": sign * isovalue, "color": colour, "opacity": 0.8, "smoothness": 4}
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"{script_html()}<h1>{html.escape(title)}</h1>{view._make_html()}</html>"
    )


def _view(
    symbols: Sequence[str], positions_angstrom: Float[np.ndarray, "natm 3"], width: int, height: int
) -> py3Dmol.view:
    lines = [
        f"{symbol} {x:.6f} {y:.6f} {z:.6f}"
        for symbol, (x, y, z) in zip(symbols, np.asarray(positions_angstrom), strict=True)
    ]
    view = py3Dmol.view(width=width, height=height)
    view.addModel(f"{len(lines)}\n\n" + "\n".join(lines) + "\n", "xyz")
    view.setStyle({"stick": {"radius": 0.11}, "sphere": {"scale": 0.22}})
    view.setBackgroundColor("white", 0)
    view.zoomTo()
    return view
