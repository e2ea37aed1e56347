"""Molecules drawn by py3Dmol without a content delivery network, and views saved as pages.

py3Dmol's own loader fetches 3Dmol.js from the network and leaves a blank box where there is none.
Here the bundled script is displayed once per page, and py3Dmol finds it there.
"""

import functools
import html
import pathlib
from collections.abc import Sequence

import numpy as np
import py3Dmol
from jaxtyping import Float

SCRIPT = pathlib.Path(__file__).parent / "static" / "3Dmol-min.js"

MISSING = (
    "3D views are missing: 3Dmol.js was not bundled when qptlab was installed. Install qptlab again with "
    "the npm registry in reach (pip install -e .), restart the kernel, and run the cell again."
)

POSITIVE, NEGATIVE = "#0072B2", "#E69F00"


@functools.cache
def engine() -> str:
    """JavaScript that puts 3Dmol.js on the page unless it is there; empty if it was not bundled.

    The script is run inside a function with a `module` of its own, so that a page's AMD loader does
    not swallow it.
    """
    if not SCRIPT.exists():
        return ""
    return (
        "if (globalThis.$3Dmol === undefined) { const module = { exports: {} };\n"
        "(function (module, exports, define) {\n"
        f"{SCRIPT.read_text(encoding='utf-8')}\n"
        "}).call(globalThis, module, module.exports, undefined);\n"
        "globalThis.$3Dmol = module.exports; }\n"
    )


def script_html() -> str:
    """What a page needs once, before its first `preview_html`."""
    if not SCRIPT.exists():
        return f'<p role="alert">{html.escape(MISSING)}</p>'
    # "</script" inside the text would end the element.
    code = engine().replace("</script", "<\\/script")
    return f"<script>{{ {code} }} var $3Dmolpromise = Promise.resolve();</script>"


def preview_html(
    symbols: Sequence[str],
    positions_angstrom: Float[np.ndarray, "natm 3"],
    *,
    width: int = 300,
    height: int = 220,
) -> str:
    """A molecule as balls and sticks, in HTML; the page needs `script_html` before it.

    Args:
      symbols: of the atoms.
      positions_angstrom: of the atoms, ångström.
      width: pixels.
      height: pixels.
    """
    if not SCRIPT.exists():
        return f'<p role="alert">{html.escape(MISSING)}</p>'
    view = _view(symbols, positions_angstrom, width, height)
    # zoomTo never looks closer than 5 Å; the factors were found by eye.
    size = float(np.linalg.norm(np.ptp(positions_angstrom, axis=0)))
    view.zoom(1.8 * max(size, 5.0) / (size + 3.0))
    return view._make_html()


def export_html(
    symbols: Sequence[str],
    positions_angstrom: Float[np.ndarray, "natm 3"],
    cube: str,
    isovalue: float,
    title: str,
) -> str:
    """A page of its own, for saving and sharing: a molecule with the two signs of an orbital.

    Args:
      symbols: of the atoms.
      positions_angstrom: of the atoms, ångström.
      cube: a Gaussian cube file's text.
      isovalue: of the surfaces, plus and minus.
      title: of the page.
    """
    view = _view(symbols, positions_angstrom, 800, 600)
    for sign, colour in ((1, POSITIVE), (-1, NEGATIVE)):
        view.addVolumetricData(
            cube, "cube", {"isoval": sign * isovalue, "color": colour, "opacity": 0.8, "smoothness": 4}
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"{script_html()}<h1>{html.escape(title)}</h1>{view._make_html()}</html>"
    )


def _view(symbols, positions_angstrom, width, height):
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
