"""Live 3D viewer: molecules with isosurfaces of two signs, side by side, with linked cameras.

An anywidget on 3Dmol.js, which is bundled with the package; nothing is fetched from the internet. It holds plain data
and calculates no chemistry.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets
from jaxtyping import Float

from qptlab.gui.scenes import Scene
from qptlab.gui.widgets.library import LibraryWidget, module
from qptlab.units import BOHR_ANGSTROM

_HERE = pathlib.Path(__file__).parent


class OrbitalViewer(LibraryWidget):
    """Molecule in one or two panels, with volumes, or with lines between atoms; `show` fills it.

    Attributes:
      isovalue: value on the two surfaces, with both signs, in the unit of the volumes.
      opacity: opacity of the surfaces, 0 to 1.
      labels: if true, atoms are labelled with symbol and number.
      height: height of the canvases, pixels.
      name: file name of saved pictures.
      placeholder: text before there is anything to show.
      status: state in the browser: `ready`, `no-script` or `error: …`; empty before the first drawing.
      render_ms: time that the browser took for the last update, ms.
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

    def __init__(self, **traits: Any):
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
        """Show a molecule. The camera stays where it is; the old content is replaced in one message.

        Args:
          symbols: element symbols.
          positions_angstrom: nuclear positions, Å.
          volumes: values on a box of points, one array per panel, all of one shape; empty for the molecule alone.
          captions: captions, one per panel.
          origin_angstrom: first point of the box, Å.
          spacing_angstrom: distance of neighbouring points along each axis, Å.
          potentials: values that colour the surfaces, one array per volume; from red (negative) to blue (positive).
          links: lines between atoms: two numbers of atoms, and the width, 0 to 1.
          isovalue: value on the surfaces; by default the present one.

        Raises:
          ValueError: if the shapes do not fit together.
        """
        positions = np.asarray(positions_angstrom, dtype=float)
        arrays, colours = (
            [np.ascontiguousarray(values, dtype=np.float32) for values in panels] for panels in (volumes, potentials)
        )
        _check(symbols, positions, arrays, colours, captions)
        with self.hold_sync():
            self.symbols = list(symbols)
            self.positions_angstrom = positions.tolist()
            self.captions = list(captions)
            self.volumes = [array.tobytes() for array in arrays]
            self.potentials = [array.tobytes() for array in colours]
            self.potential_limit = max([float(np.abs(array).max()) for array in colours], default=0.0) or 0.1
            self.links = [[float(i), float(j), float(width)] for i, j, width in links]
            if arrays:
                self.shape = list(arrays[0].shape)
                origin = np.zeros(3) if origin_angstrom is None else origin_angstrom
                spacing = np.ones(3) if spacing_angstrom is None else spacing_angstrom
                self.origin_angstrom, self.spacing_angstrom = list(map(float, origin)), list(map(float, spacing))
            if isovalue is not None:
                self.isovalue = isovalue
            self.revision += 1

    def show_scene(self, scene: Scene) -> None:
        """Show a scene, under its name; see `scenes.draw`."""
        self.name = scene.name
        self.show(
            scene.molecule.symbols, scene.molecule.positions_angstrom, scene.values, scene.captions,
            scene.box.origin * BOHR_ANGSTROM, scene.box.spacing * BOHR_ANGSTROM, potentials=scene.potentials,
            isovalue=scene.isovalue,
        )


def _check(
    symbols: Sequence[str], positions: np.ndarray, volumes: Sequence[np.ndarray], potentials: Sequence[np.ndarray],
    captions: Sequence[str],
) -> None:
    if positions.shape != (len(symbols), 3):
        raise ValueError(
            f"Expected positions of shape ({len(symbols)}, 3) for {len(symbols)} symbols, got {positions.shape}."
        )
    shapes = {array.shape for array in (*volumes, *potentials)}
    if volumes and (len(volumes) > 2 or len(shapes) != 1 or len(next(iter(shapes))) != 3):
        raise ValueError(
            f"Expected one or two volumes of one three-dimensional shape, got {len(volumes)} volumes of shapes "
            f"{sorted(shapes)}."
        )
    if potentials and len(potentials) != len(volumes):
        raise ValueError(f"Expected one potential per volume, got {len(potentials)} for {len(volumes)} volumes.")
    if len(captions) != max(len(volumes), 1):
        raise ValueError(f"Expected one caption per volume, got {len(captions)} for {len(volumes)} volumes.")
