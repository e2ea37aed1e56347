"""The orbital viewer: a predicted orbital in 3D, PySCF's beside it."""

import ipywidgets as ipw

from qptlab.errors import InputError
from qptlab.properties import cube_text
from qptlab.session import OrbitalPair, Session
from qptlab.units import BOHR_ANGSTROM
from qptlab.widgets import preview
from qptlab.widgets.live import keep_fresh
from qptlab.widgets.message import MessageLine
from qptlab.widgets.viewer import OrbitalViewer


class Orbitals(ipw.VBox):
    """Shows an orbital of the model as trained so far, at a validation geometry.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._choice = ipw.Dropdown(description="Orbital", disabled=True, layout={"width": "290px"})
        self._geometry = ipw.BoundedIntText(
            min=0, max=0, description="Geometry", layout={"width": "160px"}, tooltip="of the validation set"
        )
        self._again = ipw.Button(
            description="Update", icon="refresh", disabled=True, layout={"width": "100px"},
            tooltip="Predict with the present parameters",
        )
        self._isovalue = ipw.FloatSlider(
            value=0.05, min=0.01, max=0.2, step=0.005, description="Isovalue", readout_format=".3f",
            continuous_update=False, layout={"width": "300px"},
        )
        self._save = ipw.Button(
            description="Save", icon="download", disabled=True, layout={"width": "90px"},
            tooltip="As a cube file and as a page, in the run's folder",
        )
        self._message = MessageLine(self.session, "orbitals")
        self.viewer = OrbitalViewer(
            placeholder="Orbitals appear here once a training has begun and PySCF has done the validation set."
        )
        self._pair: OrbitalPair | None = None
        self._known: tuple | None = None
        controls = ipw.HBox([self._choice, self._geometry, self._again, self._isovalue, self._save])
        super().__init__([controls, self._message, self.viewer])
        self._isovalue.observe(self._set_isovalue, "value")
        self._choice.observe(self._choose, "value")
        self._geometry.observe(self._choose, "value")
        self._again.on_click(lambda _: self.update())
        self._save.on_click(lambda _: self.save())
        keep_fresh(self)

    def _choose(self, _) -> None:
        self.update()

    def _set_isovalue(self, change) -> None:
        self.viewer.isovalue = change["new"]

    def refresh(self) -> None:
        """Offer the orbitals as soon as there are any, the HOMO first; predict anew at every halt."""
        trainer = self.session.trainer
        halted = self.session.training_status in ("paused", "finished", "stopped")
        known = (id(trainer), bool(trainer and trainer.validation and trainer.step), halted)
        if known == self._known:
            return
        is_news = self._known is None or known[:2] != self._known[:2]
        self._known = known
        if not is_news:
            self.update()
            return
        choices = self.session.orbital_choices()
        for control in (self._choice, self._again, self._save):
            control.disabled = not choices
        if trainer is None or trainer.validation is None or not choices:
            return
        self._geometry.max = len(trainer.validation.positions) - 1
        homo = trainer.molecules[0].nelectron // 2 - 1
        # New options select the first of them; nobody wants to wait for that one.
        self._choice.unobserve(self._choose, "value")
        self._choice.options = choices
        self._choice.value = homo
        self._choice.observe(self._choose, "value")
        self.update()

    def update(self) -> None:
        """Predict the chosen orbital with the present parameters and show it."""
        if self._choice.value is None:
            return
        try:
            pair = self.session.orbital_pair(self._choice.value, self._geometry.value)
        except InputError as error:
            self.session.refuse(str(error), "orbitals")
            return
        self._pair = pair
        self.viewer.show(
            pair.molecule.symbols,
            pair.molecule.positions_angstrom,
            pair.values,
            pair.captions,
            pair.box.origin * BOHR_ANGSTROM,
            pair.box.spacing * BOHR_ANGSTROM,
        )

    def save(self) -> None:
        """Write the predicted orbital shown as a cube file and as a page, into the run's folder."""
        pair, trainer = self._pair, self.session.trainer
        if pair is None or trainer is None:
            self.session.refuse("there is no orbital to save yet; choose one first.", "orbitals")
            return
        stem = trainer.out / pair.name
        cube = cube_text(pair.molecule, pair.values[0], pair.box, pair.captions[0])
        stem.with_suffix(".cube").write_text(cube)
        page = preview.export_html(
            pair.molecule.symbols, pair.molecule.positions_angstrom, cube, self._isovalue.value, pair.captions[0]
        )
        stem.with_suffix(".html").write_text(page)
        self.session.tell(f"saved {stem}.cube and {stem}.html.", "orbitals")
