"""A live 3D viewer: molecules with two-signed isosurfaces, side by side, cameras linked.

An anywidget on 3Dmol.js, which is bundled with the package: no content delivery network is asked.
It holds plain data and no chemistry.
"""

import pathlib
from collections.abc import Sequence

import anywidget
import numpy as np
import traitlets
from jaxtyping import Float

from qptlab.widgets.preview import engine

_HERE = pathlib.Path(__file__).parent


def _module() -> str:
    """The widget's JavaScript with 3Dmol.js before it, which takes hold once per page."""
    return f"{engine()}\n{(_HERE / 'viewer.js').read_text()}"


class OrbitalViewer(anywidget.AnyWidget):
    """One or two volumes around a molecule; fill it with `show`.

    Attributes:
      isovalue: of the surfaces, plus and minus, in the volumes' unit.
      opacity: of the surfaces, 0 to 1.
      height: of the canvases, pixels.
      placeholder: what stands there before there is anything to show.
      status: written by the browser: `ready`, `no-script` or `error: …`; empty before.
      render_ms: milliseconds that the browser took for the last update.
    """

    _esm = _module()
    _css = (_HERE / "viewer.css").read_text()

    symbols = traitlets.List(traitlets.Unicode()).tag(sync=True)
    positions_angstrom = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    volumes = traitlets.List(traitlets.Bytes()).tag(sync=True)
    shape = traitlets.List(traitlets.Int(), [1, 1, 1]).tag(sync=True)
    origin_angstrom = traitlets.List(traitlets.Float(), [0.0, 0.0, 0.0]).tag(sync=True)
    spacing_angstrom = traitlets.List(traitlets.Float(), [1.0, 1.0, 1.0]).tag(sync=True)
    revision = traitlets.Int(0).tag(sync=True)
    isovalue = traitlets.Float(0.05).tag(sync=True)
    opacity = traitlets.Float(0.8).tag(sync=True)
    height = traitlets.Int(320).tag(sync=True)
    placeholder = traitlets.Unicode("Nothing to show yet.").tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    render_ms = traitlets.Float(0.0).tag(sync=True)

    def show(
        self,
        symbols: Sequence[str],
        positions_angstrom: Float[np.ndarray, "natm 3"],
        volumes: Sequence[Float[np.ndarray, "nx ny nz"]],
        captions: Sequence[str],
        origin_angstrom: Float[np.ndarray, " 3"],
        spacing_angstrom: Float[np.ndarray, " 3"],
    ) -> None:
        """Show a molecule with one or two volumes; the camera stays where it is.

        Args:
          symbols: of the atoms.
          positions_angstrom: of the atoms, ångström.
          volumes: values on a box, one array per panel, of one shape.
          captions: one per panel.
          origin_angstrom: first point of the box, ångström.
          spacing_angstrom: step along each axis, ångström.

        Raises:
          ValueError: if the shapes do not fit together.
        """
        positions = np.asarray(positions_angstrom, dtype=float)
        arrays = [np.ascontiguousarray(volume, dtype=np.float32) for volume in volumes]
        if positions.shape != (len(symbols), 3):
            raise ValueError(
                f"{len(symbols)} symbols and positions of shape {positions.shape} were given; "
                f"({len(symbols)}, 3) would do."
            )
        shapes = {array.shape for array in arrays}
        if len(arrays) not in (1, 2) or len(shapes) != 1 or len(next(iter(shapes))) != 3:
            raise ValueError(
                f"{len(arrays)} volumes of shapes {sorted(shapes)} were given; one or two of one "
                "three-dimensional shape would do."
            )
        if len(captions) != len(arrays):
            raise ValueError(f"{len(captions)} captions were given for {len(arrays)} volumes; one each would do.")
        with self.hold_sync():
            self.symbols = list(symbols)
            self.positions_angstrom = positions.tolist()
            self.captions = list(captions)
            self.volumes = [array.tobytes() for array in arrays]
            self.shape = list(arrays[0].shape)
            self.origin_angstrom = [float(x) for x in origin_angstrom]
            self.spacing_angstrom = [float(x) for x in spacing_angstrom]
            self.revision += 1
