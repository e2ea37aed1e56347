"""A live 3D viewer: molecules with two-signed isosurfaces, side by side, cameras linked.

An anywidget on 3Dmol.js, which is bundled with the package: no content delivery network is asked.
It holds plain data and no chemistry.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import traitlets
from jaxtyping import Float

from qptlab.gui.widgets.library import LibraryWidget, module

_HERE = pathlib.Path(__file__).parent


class OrbitalViewer(LibraryWidget):
    """A molecule in one or two panels, with volumes or links between atoms; fill it with `show`.

    Attributes:
      isovalue: of the surfaces, plus and minus, in the volumes' unit.
      opacity: of the surfaces, 0 to 1.
      labels: whether atoms are labelled by symbol and number.
      height: of the canvases, pixels.
      name: of the pictures that are saved.
      placeholder: what stands there before there is anything to show.
      status: written by the browser: `ready`, `no-script` or `error: …`; empty before.
      render_ms: milliseconds that the browser took for the last update.
    """

    _esm = module("viewer.js")
    _css = (_HERE / "viewer.css").read_text()

    symbols = traitlets.List(traitlets.Unicode()).tag(sync=True)
    positions_angstrom = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    volumes = traitlets.List(traitlets.Bytes()).tag(sync=True)
    potentials = traitlets.List(traitlets.Bytes()).tag(sync=True)
    potential_limit = traitlets.Float(0.1).tag(sync=True)
    links = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    shape = traitlets.List(traitlets.Int(), [1, 1, 1]).tag(sync=True)
    origin_angstrom = traitlets.List(traitlets.Float(), [0.0, 0.0, 0.0]).tag(sync=True)
    spacing_angstrom = traitlets.List(traitlets.Float(), [1.0, 1.0, 1.0]).tag(sync=True)
    revision = traitlets.Int(0).tag(sync=True)
    isovalue = traitlets.Float(0.05).tag(sync=True)
    opacity = traitlets.Float(0.8).tag(sync=True)
    labels = traitlets.Bool(False).tag(sync=True)
    height = traitlets.Int(320).tag(sync=True)
    name = traitlets.Unicode("molecule").tag(sync=True)
    placeholder = traitlets.Unicode("Nothing to show yet.").tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    render_ms = traitlets.Float(0.0).tag(sync=True)

    def __init__(self, **traits):
        super().__init__("3dmol", **traits)

    def show(
        self,
        symbols: Sequence[str],
        positions_angstrom: Float[np.ndarray, "natm 3"],
        volumes: Sequence[Float[np.ndarray, "nx ny nz"]] = (),
        captions: Sequence[str] = ("",),
        origin_angstrom: Float[np.ndarray, " 3"] | None = None,
        spacing_angstrom: Float[np.ndarray, " 3"] | None = None,
        *,
        potentials: Sequence[Float[np.ndarray, "nx ny nz"]] = (),
        links: Sequence[tuple[int, int, float]] = (),
        isovalue: float | None = None,
    ) -> None:
        """Show a molecule; the camera stays where it is, and what is shown is replaced in one message.

        Args:
          symbols: of the atoms.
          positions_angstrom: of the atoms, ångström.
          volumes: values on a box, one array per panel, of one shape; none for the molecule alone.
          captions: one per panel.
          origin_angstrom: first point of the box, ångström.
          spacing_angstrom: step along each axis, ångström.
          potentials: values that colour the surfaces, one array per volume; from red (negative) to blue.
          links: lines between two atoms, with their width, 0 to 1.
          isovalue: of the surfaces; by default as before.

        Raises:
          ValueError: if the shapes do not fit together.
        """
        positions = np.asarray(positions_angstrom, dtype=float)
        arrays, colours = ([np.ascontiguousarray(each, dtype=np.float32) for each in given]
                           for given in (volumes, potentials))
        _check(symbols, positions, arrays, colours, captions)
        with self.hold_sync():
            self.symbols = list(symbols)
            self.positions_angstrom = positions.tolist()
            self.captions = list(captions)
            self.volumes, self.potentials = ([each.tobytes() for each in given] for given in (arrays, colours))
            self.potential_limit = max([float(np.abs(each).max()) for each in colours], default=0.0) or 0.1
            self.links = [[float(i), float(j), float(width)] for i, j, width in links]
            if arrays:
                self.shape = list(arrays[0].shape)
                origin, spacing = (
                    np.full(3, default) if given is None else given
                    for given, default in ((origin_angstrom, 0.0), (spacing_angstrom, 1.0))
                )
                self.origin_angstrom, self.spacing_angstrom = ([float(x) for x in each] for each in (origin, spacing))
            if isovalue is not None:
                self.isovalue = isovalue
            self.revision += 1


def _check(symbols, positions, volumes, potentials, captions) -> None:
    if positions.shape != (len(symbols), 3):
        raise ValueError(
            f"{len(symbols)} symbols and positions of shape {positions.shape} were given; "
            f"({len(symbols)}, 3) would do."
        )
    shapes = {array.shape for array in (*volumes, *potentials)}
    if volumes and (len(volumes) > 2 or len(shapes) != 1 or len(next(iter(shapes))) != 3):
        raise ValueError(
            f"{len(volumes)} volumes of shapes {sorted(shapes)} were given; one or two of one "
            "three-dimensional shape would do."
        )
    if potentials and len(potentials) != len(volumes):
        raise ValueError(f"{len(potentials)} potentials were given for {len(volumes)} volumes; one each would do.")
    if len(captions) != max(len(volumes), 1):
        raise ValueError(f"{len(captions)} captions were given for {len(volumes)} volumes; one each would do.")
