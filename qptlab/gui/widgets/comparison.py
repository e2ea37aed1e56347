"""The comparison with PySCF: a table, plots, and each geometry in 3D."""

import ipywidgets as ipw
import numpy as np

from qptlab.evaluation.comparison import Evaluation
from qptlab.gui import plots
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import STYLE, Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer

PLOTS = ("parity", "error of each geometry", "histogram of errors", "Fock error by atoms", "time")


class Comparison(View):
    """Errors of the present model against PySCF, beside both baselines.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        narrow = {"description_width": "auto"}
        self._geometries = ipw.Text(
            description="Geometries", placeholder="the validation set; or the path of an XYZ file", style=narrow,
            layout={"width": "430px"},
        )
        self._run = TaskBar(
            self.session, "comparison", "Compare with PySCF", "table",
            lambda: self.session.compare_with(self._geometries.value), self._why_not,
        )
        self._save = ipw.Button(description="Save CSV and LaTeX", icon="download", disabled=True,
                                layout={"width": "190px"}, tooltip="Compare first")
        self._table = ipw.HTML()
        self._plot = ipw.Dropdown(options=PLOTS, description="Plot", style=narrow, layout={"width": "260px"})
        self._geometry = ipw.BoundedIntText(min=0, max=0, description="Geometry", style=narrow,
                                            layout={"width": "140px"})
        self._worst = ipw.Button(description="Worst", tooltip="The geometry with the largest energy error",
                                 layout={"width": "90px"})
        self._one = ipw.Label()
        self.chart = Chart(plots.parity_figure(), "comparison with PySCF")
        self.viewer = OrbitalViewer(height=260, labels=True)
        self._found = ipw.VBox([
            ipw.HBox([self._plot, self._geometry, self._worst, self._one]),
            self.chart, self.viewer,
        ], layout={"display": "none"})
        super().__init__([
            ipw.HBox([self._geometries, self._save]), self._run, self._table, self._found,
        ])
        self.chart.plot.on_click(self._click)
        self._save.on_click(lambda _: self.session.save_comparison())
        self._worst.on_click(lambda _: self._show_worst())
        self._plot.observe(lambda _: self._draw(), "value")
        self._geometry.observe(lambda _: self._choose_geometry(), "value")
        self.session.observe(lambda _: self.update(), "evaluation")
        self.update()
        keep_fresh(self)

    @property
    def figure(self):
        """The plot."""
        return self.chart.figure

    def _why_not(self) -> str:
        if self._geometries.value.strip():
            ready = self.session.trainer is not None and self.session.trainer.step > 0
        else:
            ready = self.session.can_draw
        return "" if ready else "There is no trained model yet, or PySCF is still at work on the validation set"

    def refresh(self) -> None:
        """Show how far the comparison is."""
        self._run.refresh()

    def update(self) -> None:
        """Show the session's last comparison."""
        found = self.session.evaluation
        self._save.disabled = found is None
        self._save.tooltip = "Into the run's folder" if found is not None else "Compare first"
        self._found.layout.display = "none" if found is None else "flex"
        if found is None:
            self._table.value = "No comparison yet."
            return
        self._table.value = f'{STYLE}<div class="qptlab-table">{found._repr_html_()}</div>'
        self._geometry.max = found.n - 1
        self._draw()
        self._show_worst()

    def _show_worst(self) -> None:
        found = self.session.evaluation
        if found is not None:
            self._geometry.value = int(np.abs(found.energy_errors_mev).argmax())
            self._choose_geometry()

    def _choose_geometry(self) -> None:
        found, index = self.session.evaluation, self._geometry.value
        if found is None:
            return
        system, positions = found.references.systems[index], found.references.positions[index]
        mol = system.molecule.with_positions(positions)
        error = float(found.energy_errors_mev[index])
        residual = float(found.predictions[index].residual)
        self._one.value = f"energy error {error:+.3g} meV, residual {residual:.2g} hartree"
        self.viewer.show(mol.symbols, mol.positions_angstrom, captions=[f"geometry {index}: {error:+.3g} meV"])
        if self._plot.value == "Fock error by atoms":
            self._draw()

    def _draw(self) -> None:
        found = self.session.evaluation
        if found is None:
            return
        chosen = self._plot.value, found, self._geometry.value
        self.chart.show(_words(*chosen), _figure(*chosen))

    def _click(self, _: int, point: int) -> None:
        if self._plot.value == "error of each geometry":
            self._geometry.value = point


def _figure(plot: str, found: Evaluation, index: int):
    if plot == "error of each geometry":
        return plots.errors_figure(found)
    if plot == "histogram of errors":
        return plots.histogram_figure(found)
    if plot == "Fock error by atoms":
        symbols = found.references.systems[index].molecule.symbols
        return plots.matrix_errors_figure(
            found.fock_errors_by_atoms(index), [f"{symbol}{i}" for i, symbol in enumerate(symbols)]
        )
    if plot == "time":
        return plots.times_figure(found)
    figure = plots.parity_figure()
    plots.fill(figure, plots.parity_traces(found))
    zeros = set(plots.lowest_energies(found))
    zero = f"{zeros.pop():.4f} hartree" if len(zeros) == 1 else "the molecule's lowest"
    return figure.update_xaxes(title_text=f"PySCF, eV above {zero}", col=1)


def _words(plot: str, found: Evaluation, index: int) -> str:
    errors, plain = found.errors, found.baselines["no_network"]
    if plot == "time":
        return (
            f"A prediction takes {found.seconds_per_geometry:.3g} s on all cores, PySCF to convergence "
            f"{found.pyscf_seconds_per_geometry:.3g} s with {found.pyscf_threads} threads."
        )
    if plot == "Fock error by atoms":
        return f"Geometry {index}: mean error of the Fock matrix by pair of atoms."
    trust = found.residual_correlation
    rank = f" Residual and error have a rank correlation of {trust:.2f}." if trust is not None else ""
    return (
        f"{found.n} geometries: mean energy error {errors.energy_mae_mev:.3g} meV, largest "
        f"{errors.energy_max_mev:.3g}; without a network {plain.energy_mae_mev:.3g} meV.{rank}"
    )
