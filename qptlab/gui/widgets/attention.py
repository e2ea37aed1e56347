"""Attention of the network's heads, shown together with a matrix of the guess."""

from typing import Any

import ipywidgets as ipw
import numpy as np

from qptlab.errors import InputError
from qptlab.gui import pictures, plots
from qptlab.gui.attention import AttentionHeads
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.message import MessageLine
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer

MAIN = {True: "strongest bias", False: "highest correlation"}
"""Choice of the matrix that belongs to a head most: for a network whose matrices bias heads, and for others."""

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
        self._matrix = ipw.Dropdown(options=[MAIN[False]], description="Compare with", style=narrow,
                                    layout={"width": "280px"})
        self.matrices = Chart(plots.heatmaps({}, []), "attention and matrix")
        self.influence = Chart(plots.correlation_figure(np.zeros(0), []), "attention and matrices of the guess")
        self.viewer = OrbitalViewer(height=300, labels=True)
        self._results = ipw.VBox([
            ipw.HBox([self._layer, self._head, self._matrix]),
            self.matrices,
            ipw.HBox([
                ipw.VBox([self.influence], layout={"width": "55%"}), ipw.VBox([self.viewer], layout={"width": "45%"}),
            ]),
        ], layout={"display": "none"})
        super().__init__([
            ipw.HBox([self._show, self._geometry, MessageLine(self.session, "attention")]), self._results,
        ])
        self._show.on_click(lambda _: self.update(renew=True))
        self._geometry.observe(lambda _: self.update(), "value")
        for control in (self._layer, self._head, self._matrix):
            control.observe(self._redraw, "value")
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
        self._list_matrices(heads)
        self._layer.max, self._head.max = heads.weights.shape[0] - 1, heads.weights.shape[1] - 1
        layer, head = self._layer.value, self._head.value
        self._results.layout.display = "flex"
        self._show_matrices(heads, layer, head)
        self._show_links(heads, layer, head)

    def _redraw(self, _: Any) -> None:
        self.update()

    def _list_matrices(self, heads: AttentionHeads) -> None:
        """List the matrices of the network; keep the choice if the network has the matrix."""
        options = (MAIN[heads.mixing is not None], *heads.names)
        if self._matrix.options == options:
            return
        chosen = self._matrix.value
        self._matrix.unobserve(self._redraw, "value")
        self._matrix.options = options
        self._matrix.value = chosen if chosen in options else options[0]
        self._matrix.observe(self._redraw, "value")

    def _show_matrices(self, heads: AttentionHeads, layer: int, head: int) -> None:
        is_biased = heads.mixing is not None
        name = heads.main_matrix(layer, head) if self._matrix.value in MAIN.values() else self._matrix.value
        matrix = heads.matrices[heads.names.index(name)] if name else None
        title = name.replace("_", " ") if heads.is_signed else f"{name.replace('_', ' ')}, log₁₀ of norms"
        self.matrices.show(heads.summary(layer, head), plots.attention_figure(
            heads.weights[layer, head], matrix, title, heads.labels, is_signed=heads.is_signed,
            labelled=len(heads.labels) <= pictures.LABELLED,
        ))
        if is_biased:
            words = "a positive weight increases the attention of pairs with large entries."
            figure = plots.mixing_figure(heads.mixing[layer, :, head], heads.names)
        else:
            entries = "entries" if heads.is_signed else "norms"
            words = f"with a positive correlation, pairs with large {entries} get more attention."
            figure = plots.correlation_figure(heads.influence(layer, head), heads.names)
        self.influence.show(f"Layer {layer}, head {head}: {words}", figure)

    def _show_links(self, heads: AttentionHeads, layer: int, head: int) -> None:
        """Draw a line between each two atoms, as wide as the attention between them."""
        between = heads.between_atoms(layer, head)
        pairs = between + between.T - 2 * np.diag(np.diag(between))
        largest = float(pairs.max()) or 1.0
        links = [
            (int(i), int(j), float(pairs[i, j]) / largest)
            for i, j in zip(*np.triu_indices(len(pairs), 1), strict=True)
            if pairs[i, j] > LEAST_LINK * largest
        ]
        if heads.mixing is None:  # a sum of attention reaches nearly all atoms: keep the strongest, as many as atoms
            links = sorted(links, key=lambda link: -link[2])[: len(pairs)]
        mol = heads.molecule
        self.viewer.show(
            mol.symbols, mol.positions_angstrom, links=links,
            captions=[f"layer {layer}, head {head}: a wider line is more attention between two atoms"],
        )
