"""Comparison with references: a table, plots, and each geometry in 3D."""

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go

from qptlab.evaluation.comparison import TITLES, Evaluation
from qptlab.gui import plots
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import STYLE, Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer
from qptlab.units import HARTREE_MEV

PARITY, GEOMETRIES, HISTOGRAM, FOCK, TIME = PLOTS = (
    "parity", "error of each geometry", "histogram of errors", "Fock error by atoms", "time",
)
"""Plots of a comparison with PySCF."""

LABELLED_PLOTS = (GEOMETRIES, HISTOGRAM)
"""Plots of a comparison with labels."""


class Comparison(View):
    """Shows the errors of the present model, together with those of its baselines.

    The references are converged calculations of PySCF or, for a model that learned from labels, labels.

    Args:
      session: session that is shown; by default a new one.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        narrow = {"description_width": "auto"}
        self._geometries = ipw.Text(
            description="Geometries", placeholder="validation set, or the path of a file", style=narrow,
            layout={"width": "430px"},
        )
        self._run = TaskBar(
            self.session.comparison, "Compare with references", "table",
            lambda: self.session.comparison.start(self._geometries.value), self._why_not,
        )
        self._save = ipw.Button(description="Save CSV and LaTeX", icon="download", disabled=True,
                                layout={"width": "190px"}, tooltip="Compare first")
        self._table = ipw.HTML()
        self._plot = ipw.Dropdown(options=PLOTS, description="Plot", style=narrow, layout={"width": "260px"})
        self._geometry = ipw.BoundedIntText(min=0, max=0, description="Geometry", style=narrow,
                                            layout={"width": "140px"})
        self._worst = ipw.Button(description="Worst", tooltip="Show the geometry with the largest energy error",
                                 layout={"width": "90px"})
        self._error = ipw.HTML()
        self.chart = Chart(plots.parity_figure(), "comparison with references")
        self.viewer = OrbitalViewer(height=260, labels=True)
        self._results = ipw.VBox([
            ipw.HBox([self._plot, self._geometry, self._worst]),
            self.chart, self._error, self.viewer,
        ], layout={"display": "none"})
        super().__init__([
            ipw.HBox([self._geometries, self._save]), self._run, self._table, self._results,
        ])
        self.chart.plot.on_click(self._click)
        self._save.on_click(lambda _: self.session.comparison.save())
        self._worst.on_click(lambda _: self._show_worst())
        self._plot.observe(lambda _: self._draw(), "value")
        self._geometry.observe(lambda _: self._choose_geometry(), "value")
        self.session.comparison.observe(lambda _: self.update(), "evaluation")
        self.update()
        keep_fresh(self)

    @property
    def figure(self) -> go.Figure:
        """Plot that is shown."""
        return self.chart.figure

    def _why_not(self) -> str:
        training = self.session.training
        if self._geometries.value.strip():
            is_ready = self.session.trainer is not None and self.session.trainer.step > 0
        else:
            is_ready = training.has_references
        return "" if is_ready else "There is no trained model yet, or its references are still being calculated"

    def refresh(self) -> None:
        """Show the progress of the comparison."""
        self._run.refresh()

    def update(self) -> None:
        """Show the session's last comparison."""
        evaluation = self.session.comparison.evaluation
        self._save.disabled = evaluation is None
        self._save.tooltip = "Compare first" if evaluation is None else "Save into the run's folder"
        self._results.layout.display = "none" if evaluation is None else "flex"
        if evaluation is None:
            self._table.value = "No comparison yet."
            return
        self._table.value = f'{STYLE}<div class="qptlab-table">{evaluation._repr_html_()}</div>'
        self._geometry.max = evaluation.n - 1
        names = LABELLED_PLOTS if evaluation.test_set is None else PLOTS
        if self._plot.options != names:
            self._plot.options = names
        self._draw()
        self._show_worst()

    def _show_worst(self) -> None:
        evaluation = self.session.comparison.evaluation
        if evaluation is not None:
            self._geometry.value = int(np.abs(evaluation.energy_errors_mev).argmax())
            self._choose_geometry()

    def _choose_geometry(self) -> None:
        evaluation, index = self.session.comparison.evaluation, self._geometry.value
        if evaluation is None:
            return
        mol, estimate = evaluation.molecules[index], evaluation.predictions[index].energy_error
        error = float(evaluation.energy_errors_mev[index])
        self._error.value = f"Geometry {index}: energy error {error:+.3g} meV" + (
            "." if estimate is None else f", estimated {float(estimate) * HARTREE_MEV:.2g} meV."
        )
        self.viewer.show(mol.symbols, mol.positions_angstrom, captions=[f"geometry {index}: {error:+.3g} meV"])
        if self._plot.value == FOCK:
            self._draw()

    def _draw(self) -> None:
        evaluation = self.session.comparison.evaluation
        if evaluation is not None:
            kind, index = self._plot.value, self._geometry.value
            self.chart.show(_words(kind, evaluation, index), _figure(kind, evaluation, index))

    def _click(self, _: int, point: int) -> None:
        if self._plot.value == GEOMETRIES:
            self._geometry.value = point


def _figure(kind: str, evaluation: Evaluation, index: int) -> go.Figure:
    if kind == GEOMETRIES:
        return plots.errors_figure(evaluation)
    if kind == HISTOGRAM:
        return plots.histogram_figure(evaluation)
    if kind == FOCK:
        symbols = evaluation.molecules[index].symbols
        return plots.matrix_errors_figure(
            evaluation.fock_errors_by_atoms(index), [f"{symbol}{i}" for i, symbol in enumerate(symbols)]
        )
    if kind == TIME:
        return plots.times_figure(evaluation)
    figure = plots.parity_figure()
    plots.fill(figure, plots.parity_traces(evaluation))
    zeros = set(plots.lowest_energies(evaluation))
    zero = f"{zeros.pop():.4f} hartree" if len(zeros) == 1 else "the lowest of each molecule"
    return figure.update_xaxes(title_text=f"PySCF, eV above {zero}", col=1)


def _words(kind: str, evaluation: Evaluation, index: int) -> str:
    errors = evaluation.errors
    if kind == TIME:
        return (
            f"A prediction takes {evaluation.seconds_per_geometry:.3g} s on all cores; PySCF takes "
            f"{evaluation.pyscf_seconds_per_geometry:.3g} s to converge, with {evaluation.pyscf_threads} threads."
        )
    if kind == FOCK:
        return f"Geometry {index}: mean absolute error of the Fock matrix for each pair of atoms."
    estimated = evaluation.estimated_energy_mae_mev
    estimate = "" if estimated is None else f" The model's own estimate is {estimated:.3g} meV."
    baselines = "".join(
        f"; {TITLES.get(name, name)}: {summary.energy_mae_mev:.3g} meV"
        for name, summary in evaluation.baselines.items() if summary.energy_mae_mev is not None
    )
    return (
        f"{evaluation.n} geometries: the mean energy error is {errors.energy_mae_mev:.3g} meV, the largest is "
        f"{errors.energy_max_mev:.3g} meV{baselines}.{estimate}"
    )
