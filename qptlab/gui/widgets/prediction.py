"""Prediction of the chosen molecule by a trained model: numbers with an estimated error, and orbitals in 3D."""

import html
from typing import Any

import ipywidgets as ipw

from qptlab import tables
from qptlab.errors import InputError
from qptlab.gui import scenes
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import STYLE
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer

KINDS = ("orbital", "density", "electrostatic potential")
"""Kinds of scenes that need no reference."""


class PredictionView(View):
    """Predicts the session's molecule with a trained model, and compares with PySCF.

    Args:
      session: session that is shown; by default a new one.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        part, narrow = self.session.prediction, {"description_width": "auto"}
        self._model = ipw.Dropdown(
            options=part.models(), description="Model", style=narrow, layout={"width": "330px"},
        )
        self._find = ipw.Button(icon="refresh", tooltip="Look for runs again", layout={"width": "40px"})
        self._predict = TaskBar(part, "Predict", "bolt", lambda: part.predict(self._model.value), self._why_not)
        self._check = ipw.Button(
            description="Compare with PySCF", icon="balance-scale", disabled=True, layout={"width": "190px"},
        )
        self._further = ipw.Button(
            description="Train further", icon="play", disabled=True, layout={"width": "150px"},
        )
        self._words = ipw.HTML()
        self._table = ipw.HTML()
        self._kind = ipw.Dropdown(options=KINDS, description="Draw", style=narrow, layout={"width": "230px"})
        self._choice = ipw.Dropdown(description="MO", style=narrow, layout={"width": "280px"})
        self._caption = ipw.HTML()
        self.viewer = OrbitalViewer(height=300)
        self._results = ipw.VBox([
            self._table, ipw.HBox([self._check, self._further]), ipw.HBox([self._kind, self._choice]), self.viewer,
            self._caption,
        ], layout={"display": "none"})
        super().__init__([
            ipw.HBox([self._model, self._find]), self._words, self._predict, self._results,
        ])
        self._find.on_click(lambda _: self._find_models())
        self._check.on_click(lambda _: part.compare())
        self._further.on_click(lambda _: part.train_further())
        self._kind.observe(self._choose, "value")
        self._choice.observe(self._choose, "value")
        part.observe(lambda _: self.update(), "result")
        self.session.observe(lambda _: self._describe(), "molecule")
        self._describe()
        self.update()
        keep_fresh(self)

    def _choose(self, _: Any) -> None:
        self._draw()

    def _why_not(self) -> str:
        return "" if self._model.value else "There is no trained model yet; start a training first"

    def _find_models(self) -> None:
        chosen = self._model.value
        self._model.options = self.session.prediction.models()
        if chosen in self._model.options:
            self._model.value = chosen

    def _describe(self) -> None:
        mol = self.session.molecule
        name = f"{mol.name}, " if mol.name else ""
        self._words.value = f"Molecule: {html.escape(name + mol.formula)}; choose another one in the tab Molecule."

    def refresh(self) -> None:
        """Show the progress of the prediction."""
        self._predict.refresh()
        result, is_busy = self.session.prediction.result, self.session.prediction.task is not None
        is_compared = result is not None and result.subject.reference is not None
        self._check.disabled = result is None or is_compared or is_busy
        self._check.tooltip = (
            "Already compared" if is_compared else "Calculate the same molecule with PySCF's SCF"
        )
        reason = self.session.prediction.why_not_further()
        self._further.disabled = bool(reason) or is_busy
        self._further.tooltip = reason or (
            "Train the model on this molecule, for the minutes that are chosen in the tab Molecule"
        )

    def update(self) -> None:
        """Show the session's last prediction."""
        result = self.session.prediction.result
        self._results.layout.display = "none" if result is None else "flex"
        if result is None:
            return
        subject = result.subject
        mol = subject.molecule
        titles = [f"{mol.name or mol.formula}, {subject.method.label}", *subject.answers]
        self._table.value = (
            f'{STYLE}<div class="qptlab-table" role="status">{tables.table(titles, result.rows(), "html")}</div>'
        )
        chosen = self._choice.value if subject.reference is not None else int(subject.model.nocc) - 1
        # New options select the first of them, which would be drawn as well.
        self._choice.unobserve(self._choose, "value")
        self._choice.options = [(label, i) for i, label in enumerate(subject.orbital_labels())]
        self._choice.value = chosen
        self._choice.observe(self._choose, "value")
        self._draw()
        self.refresh()

    def _draw(self) -> None:
        result, kind = self.session.prediction.result, self._kind.value
        self._choice.disabled = kind != "orbital"
        if result is None or self._choice.value is None:
            return
        try:
            scene = scenes.draw(kind, result.subject, self._choice.value)
        except InputError as error:
            self.session.prediction.refuse(str(error))
            return
        self._caption.value = html.escape(scene.summary)
        self.viewer.show_scene(scene)
