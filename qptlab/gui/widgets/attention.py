"""Attention of the network's heads, shown together with the matrix that biases it."""

import ipywidgets as ipw
import numpy as np

from qptlab.errors import InputError
from qptlab.gui import pictures, plots
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.message import MessageLine
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer
from qptlab.models.features import BIASES

MAIN_BIAS = "strongest bias"
"""Choice of the matrix that biases the head most."""

LEAST_LINK = 0.03
"""Smallest attention between two atoms for which a line is drawn, as a share of the largest."""


class AttentionView(View):
    """Shows one head of the model as trained so far, at a validation geometry.

    Args:
      session: session that is shown; by default a new one.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        narrow = {"description_width": "auto"}
        self._show = ipw.Button(description="Show", icon="eye", button_style="primary", layout={"width": "100px"})
        self._geometry = ipw.BoundedIntText(min=0, max=0, description="Geometry", style=narrow,
                                            tooltip="Number of the validation geometry", layout={"width": "140px"})
        self._layer = ipw.IntSlider(min=0, max=1, description="Layer", style=narrow, layout={"width": "240px"})
        self._head = ipw.IntSlider(min=0, max=1, description="Head", style=narrow, layout={"width": "240px"})
        self._bias = ipw.Dropdown(options=[MAIN_BIAS, *BIASES], description="Compare with", style=narrow,
                                  layout={"width": "260px"})
        self.matrices = Chart(plots.heatmaps({}, []), "attention and bias")
        self.mixing = Chart(plots.mixing_figure(np.zeros(len(BIASES)), BIASES), "weights of the biases")
        self.viewer = OrbitalViewer(height=300, labels=True)
        self._results = ipw.VBox([
            ipw.HBox([self._layer, self._head, self._bias]),
            self.matrices,
            ipw.HBox([
                ipw.VBox([self.mixing], layout={"width": "55%"}), ipw.VBox([self.viewer], layout={"width": "45%"}),
            ]),
        ], layout={"display": "none"})
        super().__init__([
            ipw.HBox([self._show, self._geometry, MessageLine(self.session, "attention")]), self._results,
        ])
        self._show.on_click(lambda _: self.update(renew=True))
        self._geometry.observe(lambda _: self.update(), "value")
        for control in (self._layer, self._head, self._bias):
            control.observe(lambda _: self.update(), "value")
        self.refresh()
        keep_fresh(self)

    def refresh(self) -> None:
        """Enable the button once there is a trained model."""
        is_ready = self.session.training.has_references
        if self._show.disabled == is_ready or not self._show.tooltip:
            self._show.disabled = not is_ready
            why_not = "There is no trained model yet; start a training first"
            self._show.tooltip = "Show the attention with the present parameters" if is_ready else why_not
        self._geometry.max = max(self.session.training.geometries - 1, 0)

    def update(self, *, renew: bool = False) -> None:
        """Show the chosen head.

        Args:
          renew: if true, predict with the present parameters.
        """
        try:
            heads = self.session.attention.heads(self._geometry.value, renew=renew)
        except InputError as error:
            self.session.attention.refuse(str(error))
            return
        self._layer.max, self._head.max = heads.weights.shape[0] - 1, heads.weights.shape[1] - 1
        layer, head = self._layer.value, self._head.value
        self._results.layout.display = "flex"
        name = heads.main_bias(layer, head) if self._bias.value == MAIN_BIAS else self._bias.value
        self.matrices.show(heads.summary(layer, head), plots.attention_figure(
            heads.weights[layer, head], heads.biases[BIASES.index(name)], name.replace("_", " "), heads.ao_labels,
            labelled=len(heads.ao_labels) <= pictures.LABELLED,
        ))
        self.mixing.show(
            f"Layer {layer}, head {head}: a positive weight increases the attention of pairs with large entries.",
            plots.mixing_figure(heads.mixing[layer, :, head], BIASES),
        )
        between = heads.between_atoms(layer, head)
        pairs = between + between.T - 2 * np.diag(np.diag(between))
        largest = float(pairs.max()) or 1.0
        links = [
            (int(i), int(j), float(pairs[i, j]) / largest)
            for i, j in zip(*np.triu_indices(len(pairs), 1), strict=True)
            if pairs[i, j] > LEAST_LINK * largest
        ]
        mol = heads.molecule
        self.viewer.show(
            mol.symbols, mol.positions_angstrom, links=links,
            captions=[f"layer {layer}, head {head}: a wider line is more attention between two atoms"],
        )
