"""The molecule picker: a molecule by name, SMILES or XYZ, and how it is treated."""

import html

import ipywidgets as ipw

from qptlab.errors import InputError
from qptlab.geometries import SAMPLERS
from qptlab.method import FUNCTIONALS, GRID_LEVELS
from qptlab.models.qpt import PRESETS
from qptlab.molecule import BUILTIN
from qptlab.session import Session
from qptlab.widgets import preview
from qptlab.widgets.message import MessageLine

BASES = ("sto-3g", "6-31g*", "def2-svp", "cc-pvdz", "def2-tzvp")
MAX_UPLOAD_BYTES = 5_000_000

_FIELD = {"description_width": "110px"}


class MoleculePicker(ipw.VBox):
    """Chooses the molecule of a session, its method and its model.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._preview = ipw.Output(layout={"height": "210px", "width": "330px", "overflow": "hidden"})
        self._summary = ipw.HTML()
        self._message = MessageLine(self.session, "molecule")
        self._names = ipw.Dropdown(options=["—", *BUILTIN], description="Built-in", style=_FIELD)
        self._text = ipw.Text(description="SMILES or path", placeholder="CCO, or water.xyz", style=_FIELD)
        self._use_text = ipw.Button(description="Use", tooltip="Use this SMILES or file", layout={"width": "72px"})
        self._xyz = ipw.Textarea(description="XYZ", placeholder="paste XYZ, ångström", rows=3, style=_FIELD)
        self._use_xyz = ipw.Button(description="Use", tooltip="Use the pasted XYZ", layout={"width": "72px"})
        self._upload = ipw.FileUpload(accept=".xyz", description="Upload .xyz", tooltip="At most 5 MB")
        super().__init__([
            ipw.HBox([self._sources(), self._preview]), self._summary, self._message, self._settings(),
        ])
        self._bind()
        self.update()

    def _sources(self) -> ipw.VBox:
        return ipw.VBox([
            ipw.HTML("<b>Molecule</b>"), self._names, ipw.HBox([self._text, self._use_text]),
            ipw.HBox([self._xyz, self._use_xyz]), self._upload,
        ])

    def _settings(self) -> ipw.VBox:
        session = self.session
        fields = [
            ("xc", ipw.Dropdown(options=FUNCTIONALS, description="Functional")),
            ("basis", ipw.Combobox(options=BASES, description="Basis", continuous_update=False)),
            ("grid_level", ipw.Dropdown(options=GRID_LEVELS, description="Grid level")),
            ("preset", ipw.Dropdown(options=list(PRESETS), description="Network")),
            ("iterations", ipw.BoundedIntText(min=0, max=16, description="DFT iterations",
                                              tooltip="after the network")),
            ("sampler", ipw.Dropdown(options=[s for s in SAMPLERS if s != "file"], description="Geometries")),
            ("temperature", ipw.BoundedFloatText(min=1, max=5000, description="Temperature, K")),
            ("minutes", ipw.FloatText(description="Minutes")),
            ("seed", ipw.BoundedIntText(min=0, max=2**31 - 1, description="Seed")),
        ]
        for name, widget in fields:
            widget.style = _FIELD
            widget.layout = {"width": "260px"}
            widget.value = getattr(session, name)
            _link(session, name, widget)
        grid = ipw.GridBox(
            [widget for _, widget in fields], layout={"grid_template_columns": "repeat(3, 270px)"}
        )
        return ipw.VBox([ipw.HTML("<b>Method, model and training</b>"), grid])

    def _bind(self) -> None:
        self._names.observe(self._pick_name, "value")
        self._use_text.on_click(lambda _: self.session.choose(self._text.value))
        self._use_xyz.on_click(lambda _: self.session.choose(self._xyz.value + "\n"))
        self._upload.observe(self._take_upload, "value")
        self.session.observe(lambda _: self.update(), ["molecule", "xc", "basis", "grid_level"])

    def _pick_name(self, change) -> None:
        if change["new"] in BUILTIN:
            self.session.choose(change["new"])

    def _take_upload(self, change) -> None:
        for file in change["new"]:
            content = bytes(file["content"])
            if len(content) > MAX_UPLOAD_BYTES:
                self.session.refuse(f"{file['name']} is larger than 5 MB; a part of it would do.", "molecule")
                return
            # Parsed as text only, whatever the name says.
            self.session.choose(content.decode("utf-8", errors="replace") + "\n")

    def update(self) -> None:
        """Show the session's molecule."""
        mol = self.session.molecule
        self._names.value = mol.name if mol.name in BUILTIN else "—"
        picture = preview.preview_html(mol.symbols, mol.positions_angstrom, width=320, height=200)
        label = f'<div role="img" aria-label="{html.escape(mol.formula)} in 3D">{picture}</div>'
        self._preview.outputs = (
            {"output_type": "display_data", "metadata": {},
             "data": {"text/html": preview.script_html() + label, "text/plain": mol.formula}},
        )
        try:
            text = self.session.summary()
        except InputError as error:
            self.session.refuse(str(error), "molecule")
            text = mol.formula
        self._summary.value = f"{html.escape(mol.name or mol.formula)}: {html.escape(text)}"


def _link(session: Session, name: str, widget: ipw.ValueWidget) -> None:
    """A two-way binding; a value that the session refuses is put back, with a sentence."""

    def to_session(change):
        if not session.set(name, change["new"]):
            widget.value = getattr(session, name)

    widget.observe(to_session, "value")
    session.observe(lambda change: setattr(widget, "value", change["new"]), name)
