"""What the network's heads look at, beside the matrix that biased them."""

import ipywidgets as ipw
import numpy as np

from qptlab.errors import InputError
from qptlab.models.features import BIASES
from qptlab.gui import pictures, plots
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.message import MessageLine
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer

LEAST_LINK = 0.03
"""Share of the largest below which a line between atoms is left out."""


class AttentionView(View):
    """Shows a head of the model as trained so far, at a validation geometry.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        narrow = {"description_width": "auto"}
        self._look = ipw.Button(description="Look", icon="eye", button_style="primary", layout={"width": "100px"})
        self._geometry = ipw.BoundedIntText(min=0, max=0, description="Geometry", style=narrow,
                                            layout={"width": "140px"})
        self._layer = ipw.IntSlider(min=0, max=1, description="Layer", style=narrow, layout={"width": "240px"})
        self._head = ipw.IntSlider(min=0, max=1, description="Head", style=narrow, layout={"width": "240px"})
        self._bias = ipw.Dropdown(options=["the main one", *BIASES], description="Beside", style=narrow,
                                  layout={"width": "220px"})
        self.matrices = Chart(plots.heatmaps({}, []), "attention and bias")
        self.mixing = Chart(plots.mixing_figure(np.zeros(len(BIASES)), BIASES), "weights of the biases")
        self.viewer = OrbitalViewer(height=300, labels=True)
        self._found = ipw.VBox([
            ipw.HBox([self._layer, self._head, self._bias]),
            self.matrices,
            ipw.HBox([
                ipw.VBox([self.mixing], layout={"width": "55%"}), ipw.VBox([self.viewer], layout={"width": "45%"}),
            ]),
        ], layout={"display": "none"})
        super().__init__([
            ipw.HBox([self._look, self._geometry, MessageLine(self.session, "attention")]), self._found,
        ])
        self._look.on_click(lambda _: self.update(anew=True))
        self._geometry.observe(lambda _: self.update(), "value")
        for control in (self._layer, self._head, self._bias):
            control.observe(lambda _: self.update(), "value")
        self.refresh()
        keep_fresh(self)

    def refresh(self) -> None:
        """Say whether there is anything to look at."""
        ready = self.session.can_draw
        if self._look.disabled == ready or not self._look.tooltip:
            self._look.disabled = not ready
            why_not = "There is no model yet; start a training first"
            self._look.tooltip = "With the present parameters" if ready else why_not
        validation = self.session.trainer.validation if self.session.trainer else None
        if validation is not None:
            self._geometry.max = len(validation.positions) - 1

    def update(self, *, anew: bool = False) -> None:
        """Show the chosen head.

        Args:
          anew: with the present parameters.
        """
        try:
            found = self.session.attended(self._geometry.value, anew=anew)
        except InputError as error:
            self.session.refuse(str(error), "attention")
            return
        self._layer.max, self._head.max = found.weights.shape[0] - 1, found.weights.shape[1] - 1
        layer, head = self._layer.value, self._head.value
        self._found.layout.display = "flex"
        name = found.main_bias(layer, head) if self._bias.value == "the main one" else self._bias.value
        bias = found.biases[BIASES.index(name)]
        self.matrices.show(found.words(layer, head), plots.attention_figure(
            found.weights[layer, head], bias, name.replace("_", " "), found.ao_labels,
            labelled=len(found.ao_labels) <= pictures.LABELLED,
        ))
        self.mixing.show(
            f"Layer {layer}, head {head}: a positive weight draws attention to pairs with large entries.",
            plots.mixing_figure(found.mixing[layer, :, head], BIASES),
        )
        between = found.between_atoms(layer, head)
        both = between + between.T - 2 * np.diag(np.diag(between))
        most = float(both.max()) or 1.0
        links = [(i, j, float(both[i, j]) / most) for i, j in zip(*np.triu_indices(len(both), 1), strict=True)
                 if both[i, j] > LEAST_LINK * most]
        mol = found.molecule
        self.viewer.show(
            mol.symbols, mol.positions_angstrom, links=[(int(i), int(j), width) for i, j, width in links],
            captions=[f"layer {layer}, head {head}: attention between atoms, the wider the more"],
        )
