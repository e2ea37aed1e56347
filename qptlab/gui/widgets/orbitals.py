"""Orbitals, densities and potentials in 3D, predicted and from PySCF, chosen from a diagram of orbital energies."""

import html
from typing import Any

import ipywidgets as ipw

from qptlab.errors import InputError
from qptlab.gui import plots, scenes
from qptlab.gui.scenes import Scene, Subject
from qptlab.gui.session import Session
from qptlab.gui.widgets import preview
from qptlab.gui.widgets.chart import Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.message import MessageLine
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer


class Orbitals(View):
    """Shows a validation geometry as the model predicts it, and as PySCF calculates it.

    Args:
      session: session that is shown; by default a new one.

    Attributes:
      scene: scene that is drawn; None before the first drawing.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self.viewer = OrbitalViewer(
            placeholder="Orbitals appear here after a training has started and PySCF has calculated the references.",
            height=330,
        )
        self._make_controls()
        self.levels = Chart(plots.levels_figure(), "orbital energies")
        self._words = ipw.HTML()
        self.scene: Scene | None = None
        self._state: tuple | None = None
        self._panels = ipw.HBox([
            ipw.VBox([self.levels], layout={"width": "30%"}),
            ipw.VBox([self.viewer, self._words], layout={"width": "70%"}),
        ])
        super().__init__([
            ipw.HBox([self._kind, self._choice, self._geometry, self._renew]),
            ipw.HBox([self._isovalue, self._opacity, self._labels, self._save]),
            MessageLine(self.session, "orbitals"),
            self._panels,
        ])
        self._bind()
        keep_fresh(self)

    def _make_controls(self) -> None:
        narrow = {"description_width": "auto"}
        self._kind = ipw.Dropdown(options=scenes.KINDS, description="Show", style=narrow, disabled=True,
                                  layout={"width": "230px"})
        self._choice = ipw.Dropdown(description="Orbital", disabled=True, style=narrow, layout={"width": "280px"})
        self._geometry = ipw.BoundedIntText(
            min=0, max=0, description="Geometry", style=narrow, layout={"width": "140px"},
            tooltip="Number of the validation geometry", disabled=True,
        )
        self._renew = ipw.Button(
            description="Update", icon="refresh", disabled=True, layout={"width": "100px"},
            tooltip="Predict with the present parameters",
        )
        self._isovalue = ipw.FloatLogSlider(
            value=scenes.ISOVALUES["orbital"], base=10, min=-6, max=0, step=0.05, description="Isovalue",
            readout_format=".2e", style=narrow,
            continuous_update=False, layout={"width": "330px"},
        )
        self._opacity = ipw.FloatSlider(
            value=self.viewer.opacity, min=0.1, max=1, step=0.05, description="Opacity", style=narrow,
            layout={"width": "240px"},
        )
        self._labels = ipw.Checkbox(description="Atom numbers", indent=False, layout={"width": "130px"})
        self._save = ipw.Button(
            description="Save", icon="download", disabled=True, layout={"width": "90px"},
            tooltip="Save a cube file and a page into the run's folder",
        )

    def _bind(self) -> None:
        self._isovalue.observe(lambda _: self._set_isovalue(), "value")
        self._opacity.observe(lambda change: setattr(self.viewer, "opacity", change["new"]), "value")
        self._labels.observe(lambda change: setattr(self.viewer, "labels", change["new"]), "value")
        for control in (self._kind, self._choice, self._geometry):
            control.observe(self._choose, "value")
        self._renew.on_click(lambda _: self.update(renew=True))
        self._save.on_click(lambda _: self.save())
        self.levels.plot.on_click(self._click)

    def _choose(self, _: Any) -> None:
        self.update()

    def _click(self, trace: int, point: int) -> None:
        orbitals = self.levels.figure.data[trace].customdata
        if orbitals is not None:
            self._kind.value = "orbital"
            self._choice.value = int(orbitals[point])

    def _set_isovalue(self) -> None:
        if self.scene is not None and self.scene.kind == "electrostatic potential":
            self.update(isovalue=self._isovalue.value)  # the potential is known near the old surface only
        else:
            self.viewer.isovalue = self._isovalue.value

    def refresh(self) -> None:
        """Show the HOMO as soon as there are orbitals, and predict again whenever the training halts."""
        trainer = self.session.trainer
        is_ready = self.session.training.has_references
        is_halted = self.session.training.status in ("paused", "finished", "stopped")
        state = (id(trainer), is_ready, is_halted)
        if state == self._state:
            return
        is_new = self._state is None or state[:2] != self._state[:2]
        self._state = state
        if is_ready and is_new:
            self._geometry.max = self.session.training.geometries - 1
        subject = self._subject(renew=is_new) if is_ready else None
        for control in (self._kind, self._choice, self._geometry, self._renew, self._save):
            control.disabled = subject is None
        # A message stands in place of the panels if the model does not predict orbitals.
        self._panels.layout.display = "none" if is_ready and subject is None else "flex"
        if subject is None:
            return
        if is_new:
            # New options select the first of them; nobody wants to wait for that one.
            self._choice.unobserve(self._choose, "value")
            self._choice.options = [(label, i) for i, label in enumerate(subject.orbital_labels())]
            self._choice.value = int(subject.model.nocc) - 1
            self._choice.observe(self._choose, "value")
        self.update(renew=not is_new)

    def _subject(self, *, renew: bool) -> Subject | None:
        """Return what can be drawn; None, with a message, if the model does not predict orbitals."""
        try:
            return self.session.orbitals.subject(self._geometry.value, renew=renew)
        except InputError as error:
            self.session.orbitals.refuse(str(error))
            return None

    def update(self, *, renew: bool = False, isovalue: float | None = None) -> None:
        """Draw what is chosen.

        Args:
          renew: if true, predict with the present parameters.
          isovalue: value on the surfaces; by default that of the last scene of the same kind, or one that shows
            something.
        """
        if self._choice.value is None:
            return
        kind, last = self._kind.value, self.scene
        if isovalue is None and last is not None and last.kind == kind and kind != "density difference":
            isovalue = self._isovalue.value
        try:
            scene = self.session.orbitals.scene(
                kind, self._choice.value, self._geometry.value, isovalue=isovalue, renew=renew
            )
        except InputError as error:
            self.session.orbitals.refuse(str(error))
            return
        self.scene = scene
        self._choice.disabled = kind != "orbital"
        self._words.value = f'<div role="status">{html.escape(scene.summary)}</div>'
        self._draw_levels()
        with self._isovalue.hold_trait_notifications():
            self._isovalue.value = scene.isovalue
        self.viewer.show_scene(scene)

    def _draw_levels(self) -> None:
        subject = self.session.orbitals.subject(self._geometry.value)
        selected = self._choice.value if self._kind.value == "orbital" else None
        predicted, reference, nocc = subject.model.mo_energy, subject.reference.mo_energy, subject.reference.nocc
        plots.fill_levels(self.levels.figure, predicted, reference, nocc, selected)
        gaps = [plots.gap_ev(levels, nocc) for levels in (predicted, reference)]
        self.levels.show(f"Gap: {gaps[0]:.2f} eV predicted, {gaps[1]:.2f} eV from PySCF.")

    def save(self) -> None:
        """Write the first panel as a cube file and as a page into the run's folder."""
        scene, trainer = self.scene, self.session.trainer
        if scene is None or trainer is None:
            self.session.orbitals.refuse("There is nothing to save yet; choose an orbital first.")
            return
        cube = self.session.orbitals.save(scene)
        page = trainer.run_folder.write(f"{cube.stem}.html", preview.export_html(
            scene.molecule.symbols, scene.molecule.positions_angstrom, cube.read_text(), self._isovalue.value,
            scene.captions[0],
        ))
        self.session.orbitals.tell(f"Saved {cube} and {page}.")
