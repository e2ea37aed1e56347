"""Molecule picker: a molecule by name, SMILES or XYZ; settings of method, network and training."""

import html
from typing import Any

import ipywidgets as ipw

from qptlab import files
from qptlab.errors import InputError
from qptlab.gui.session import Session, network_choices
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.message import MessageLine
from qptlab.gui.widgets.taskbar import Progress
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer
from qptlab.models.networks import MAX_ITERATIONS
from qptlab.sampling import samplers_without_required
from qptlab.system import coordinates
from qptlab.system.coordinates import Coordinate
from qptlab.system.dispersion import CORRECTIONS
from qptlab.system.functional import FUNCTIONALS
from qptlab.system.method import GRID_LEVELS
from qptlab.system.molecule import BUILTIN, Molecule

BASES = ("sto-3g", "6-31g*", "def2-svp", "cc-pvdz", "def2-tzvp")
"""Basis sets that are suggested; the field takes any name that PySCF knows."""

MAX_UPLOAD_BYTES = 5_000_000

_FIELD = {"description_width": "110px"}


class MoleculePicker(View):
    """Chooses the molecule of a session, its geometry, its method, its network and its training.

    Args:
      session: session that is shown; by default a new one.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self.viewer = OrbitalViewer(height=230)
        self._summary = ipw.HTML()
        self._message = MessageLine(self.session, "molecule")
        self._progress = Progress(self.session.part("molecule"))
        self._names = ipw.Combobox(
            options=BUILTIN, description="Name", placeholder="search the built-in molecules", ensure_option=True,
            continuous_update=False, style=_FIELD, layout={"width": "98%"},
        )
        self._text = ipw.Text(description="SMILES or path", placeholder="CCO, or water.xyz", style=_FIELD,
                              layout={"width": "80%"})
        small = {"width": "72px"}
        self._use_text = ipw.Button(description="Use", tooltip="Use this SMILES or file", layout=small)
        self._xyz = ipw.Textarea(
            description="Atoms (XYZ, Å)", rows=9, style=_FIELD, layout={"width": "98%"},
            tooltip="The present geometry; edit it, or paste a different one",
        )
        self._use_xyz = ipw.Button(description="Use", tooltip="Use these atoms", layout=small)
        self._back = ipw.Button(description="Undo", tooltip="Nothing to undo", layout=small, disabled=True)
        self._upload = ipw.FileUpload(accept=".xyz", description="Upload .xyz", tooltip="At most 5 MB")
        self._labels = ipw.Checkbox(value=True, description="Atom numbers", indent=False, layout={"width": "130px"})
        self._coordinate = ipw.Dropdown(description="Move", style={"description_width": "auto"},
                                        layout={"width": "98%"})
        self._value = ipw.FloatSlider(layout={"width": "98%"}, readout_format=".2f", continuous_update=True)
        self._network = ipw.Dropdown(description="Network")
        self._history: list[Molecule] = []
        self._moving: Coordinate | None = None
        self._last_moved: Coordinate | None = None
        super().__init__([
            ipw.HBox([self._sources(), ipw.VBox([
                self.viewer, self._labels, self._coordinate, self._value,
            ], layout={"width": "46%"})]),
            self._summary, self._progress, self._message, self._settings(),
        ])
        self._network.observe(self._choose_network, "value")
        self._show_network()
        self._bind()
        self.update()
        keep_fresh(self)

    def _sources(self) -> ipw.VBox:
        return ipw.VBox([
            ipw.HTML("<b>Molecule</b>"), self._names, ipw.HBox([self._text, self._use_text]),
            self._xyz, ipw.HBox([self._upload, self._use_xyz, self._back]),
        ], layout={"width": "54%"})

    def _settings(self) -> ipw.VBox:
        session = self.session
        fields = [
            ("xc", ipw.Dropdown(options=tuple(FUNCTIONALS), description="Functional")),
            ("dispersion", ipw.Dropdown(
                options=[("none", None), *((title, name) for name, title in CORRECTIONS.items())],
                description="Dispersion", tooltip="Dispersion correction",
            )),
            ("basis", ipw.Combobox(options=BASES, description="Basis", continuous_update=False)),
            ("grid_level", ipw.Dropdown(options=GRID_LEVELS, description="Grid level")),
            ("iterations", ipw.BoundedIntText(min=0, max=MAX_ITERATIONS, description="DFT iterations",
                                              tooltip="Number of DFT iterations after the network")),
            ("sampler", ipw.Dropdown(options=samplers_without_required(), description="Sampler",
                                     tooltip="Source of the training geometries")),
            ("temperature", ipw.BoundedFloatText(min=1, max=5000, description="Temperature, K")),
            ("minutes", ipw.FloatText(description="Minutes", tooltip="Training time")),
            ("seed", ipw.BoundedIntText(min=0, max=2**31 - 1, description="Seed")),
            ("labels", ipw.Text(description="Labels", continuous_update=False, placeholder="path of a file",
                                tooltip="Labelled geometries, which `qptlab label` writes")),
        ]
        for name, widget in fields:
            widget.value = getattr(session, name)
            _link(session, name, widget)
        self._fields = dict(fields)
        for widget in (*self._fields.values(), self._network):
            widget.style = _FIELD
            widget.layout = {"width": "260px"}
        self._network.layout.width = "530px"  # its names are long
        rows = ("xc", "dispersion", "basis", "grid_level"), ("sampler", "temperature", "minutes", "seed", "labels")
        upper, lower = (
            ipw.GridBox([self._fields[name] for name in names], layout={"grid_template_columns": "repeat(3, 270px)"})
            for names in rows
        )
        middle = ipw.HBox([ipw.Box([self._network], layout={"width": "540px"}), self._fields["iterations"]])
        return ipw.VBox([ipw.HTML("<b>Method, network and training</b>"), upper, middle, lower])

    def _bind(self) -> None:
        self._names.observe(self._pick_name, "value")
        self._use_text.on_click(lambda _: self.session.choose(self._text.value))
        self._use_xyz.on_click(lambda _: self.session.choose(self._xyz.value + "\n"))
        self._back.on_click(lambda _: self._undo())
        self._upload.observe(self._take_upload, "value")
        self._labels.observe(lambda change: setattr(self.viewer, "labels", change["new"]), "value")
        self._coordinate.observe(lambda _: self._show_value(), "value")
        self._value.observe(self._move, "value")
        self.session.observe(self._remember, "molecule")
        self.session.observe(lambda _: self.update(), ["molecule", "xc", "dispersion", "basis", "grid_level"])
        self.session.observe(lambda _: self._show_network(), ["network", "iterations"])

    def _pick_name(self, change: Any) -> None:
        if change["new"] in BUILTIN and change["new"] != self.session.molecule.name:
            self.session.choose(change["new"])

    def _take_upload(self, change: Any) -> None:
        for file in change["new"]:
            content = bytes(file["content"])
            if len(content) > MAX_UPLOAD_BYTES:
                size = len(content) / 1e6
                self.session.refuse(
                    f"Expected a file of at most 5 MB, got {file['name']} with {size:.1f} MB.", "molecule"
                )
                return
            with self.session.part("molecule").reporting():
                text = files.decoded(content, "an XYZ file", files.title(file["name"]))
                self.session.choose(text + "\n")  # parsed as text only, whatever the name says

    # Network ---------------------------------------------------------------------------------

    def _choose_network(self, change: Any) -> None:
        config = network_choices().get(change["new"])
        if config is not None:
            self.session.set("network", config)

    def _show_network(self) -> None:
        """List the registered networks, and select the session's; one with settings of a user's own is added."""
        title = self.session.network_title
        titles = list(dict.fromkeys([*network_choices(), title]))
        self._network.unobserve(self._choose_network, "value")
        if list(self._network.options) != titles:
            self._network.options = titles
        self._network.value = self._network.tooltip = title
        self._network.observe(self._choose_network, "value")
        needs_labels = self.session.learns_from_labels
        self._fields["labels"].layout.display = "flex" if needs_labels else "none"
        for name in ("xc", "dispersion", "basis", "grid_level", "iterations", "sampler", "temperature"):
            self._fields[name].disabled = needs_labels  # the labels determine the method and the geometries

    # Moving atoms ----------------------------------------------------------------------------

    def _remember(self, change: Any) -> None:
        """Keep the previous molecule for Undo; while a slider moves, keep only the molecule at its start."""
        if self._moving is None or self._moving != self._last_moved:
            self._history.append(change["old"])
        self._last_moved = self._moving
        self._back.disabled, self._back.tooltip = False, "Return to the previous molecule"

    def _undo(self) -> None:
        if not self._history:
            return
        before = self._history.pop()
        self.session.unobserve(self._remember, "molecule")
        self.session.molecule = before
        self.session.observe(self._remember, "molecule")
        self._last_moved = None
        self._back.disabled = not self._history

    def _move(self, change: Any) -> None:
        self._moving = self._coordinate.value
        if self._moving is not None:
            self.session.move(self._moving, change["new"])
        self._moving = None

    def _show_value(self) -> None:
        """Set the slider to the value of the selected coordinate, without moving atoms."""
        coordinate = self._coordinate.value
        self._value.disabled = coordinate is None
        if coordinate is None:
            return
        low, high, step = (*coordinates.BOND_ANGSTROM, 0.01) if coordinate.unit == "Å" else (-180.0, 180.0, 1.0)
        value = coordinates.value(self.session.molecule, coordinate)
        self._value.unobserve(self._move, "value")
        with self._value.hold_trait_notifications():
            self._value.min, self._value.max, self._value.step = min(low, value), max(high, value), step
            self._value.value = value
        self._value.description = coordinate.unit
        self._value.observe(self._move, "value")

    # Showing ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Deliver results of work in the background, and list networks that were registered meanwhile."""
        self.session.deliver()
        self._progress.refresh()
        is_busy = self.session.part("molecule").task is not None
        for source in (self._names, self._use_text, self._use_xyz, self._upload):
            source.disabled = is_busy
        if not set(network_choices()) <= set(self._network.options):
            self._show_network()

    def update(self) -> None:
        """Show the session's molecule."""
        mol = self.session.molecule
        self._names.value = mol.name if mol.name in BUILTIN else ""
        self._xyz.value = _atoms_text(mol)
        self.viewer.labels = self._labels.value
        self.viewer.show(mol.symbols, mol.positions_angstrom, captions=[mol.name or mol.formula])
        if self._moving is None:  # a bond that is stretched may cease to be one while its slider moves
            choices = [(coordinate.label, coordinate) for coordinate in coordinates.coordinates(mol)]
            if [label for label, _ in choices] != [label for label, _ in self._coordinate.options]:
                self._coordinate.options = choices
                self._coordinate.index = 0 if choices else None
            self._show_value()
        try:
            text = f"{self.session.summary()}. {self.session.estimate()}"
        except InputError as error:
            self.session.refuse(str(error), "molecule")
            text = mol.formula
        self._summary.value = f"{html.escape(mol.name or mol.formula)}: {html.escape(text)}"


def _atoms_text(mol: Molecule) -> str:
    """Return XYZ text in narrow lines, which the user can edit."""
    atoms = zip(mol.symbols, mol.positions_angstrom, strict=True)
    lines = [f"{symbol:2}{x:10.5f}{y:10.5f}{z:10.5f}" for symbol, (x, y, z) in atoms]
    return "\n".join([str(len(lines)), f"charge={mol.charge} spin={mol.spin}", *lines])


def _link(session: Session, name: str, widget: ipw.ValueWidget) -> None:
    """Bind a widget and an attribute of the session; if the session refuses a value, restore the previous one."""

    def to_session(change: Any) -> None:
        if change["new"] == getattr(session, name):
            return  # the previous value is back after a refusal; the message stays
        if not session.set(name, change["new"]):
            widget.value = getattr(session, name)

    widget.observe(to_session, "value")
    session.observe(lambda change: setattr(widget, "value", change["new"]), name)
