"""The SCF explorer: ways to the ground state, cycle by cycle, and the matrices on the way."""

import ipywidgets as ipw
import numpy as np

from qptlab.dft import exploration
from qptlab.dft.scf import GUESSES
from qptlab.gui import pictures, plots
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View


class SCFExplorer(View):
    """Runs the SCF of the session's molecule and shows what every cycle did.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._guess = ipw.Dropdown(options=GUESSES, description="Guess", layout={"width": "230px"})
        self._cycles = ipw.BoundedIntText(
            value=exploration.CYCLES, min=1, max=200, description="At most", tooltip="cycles of each way",
            layout={"width": "150px"},
        )
        self._run = TaskBar(
            self.session, "exploration", "Run SCF", "play",
            lambda: self.session.explore(self._guess.value, self._cycles.value),
        )
        self._way = ipw.Dropdown(options=exploration.WAYS, value=exploration.WAYS[2], description="Matrices of",
                                 layout={"width": "280px"})
        self._cycle = ipw.IntSlider(min=0, max=1, description="Cycle", layout={"width": "380px"},
                                    continuous_update=False)
        self._energy = ipw.Label()
        self.curves = Chart(plots.convergence_figure(exploration.WAYS), "energy against cycle")
        self.matrices = Chart(plots.heatmaps({}, []), "matrices over atomic orbitals")
        self._found = ipw.VBox(
            [self.curves, ipw.HBox([self._way, self._cycle, self._energy]), self.matrices],
            layout={"display": "none"},
        )
        super().__init__([ipw.HBox([self._guess, self._cycles]), self._run, self._found])
        self._way.observe(lambda _: self._choose_way(), "value")
        self._cycle.observe(lambda _: self._show_matrices(), "value")
        self.session.observe(lambda _: self.update(), "exploration")
        self.update()
        keep_fresh(self)

    def refresh(self) -> None:
        """Show how far the search is."""
        self._run.refresh()

    def update(self) -> None:
        """Show the session's last search."""
        found = self.session.exploration
        if found is None:
            return
        self._found.layout.display = "flex"
        energies = [np.asarray(path.history.energy) for path in found.paths.values()]
        plots.fill(self.curves.figure, plots.convergence_traces(energies, found.lowest))
        self.curves.figure.update_layout(
            title_text=f"{found.molecule.formula}, {found.method.label}, from the guess {found.guess}"
        )
        self.curves.show(found.words())
        self._choose_way()

    def _choose_way(self) -> None:
        found = self.session.exploration
        if found is not None:
            self._cycle.max = int(found.paths[self._way.value].cycles)
            self._show_matrices()

    def _show_matrices(self) -> None:
        found = self.session.exploration
        if found is None:
            return
        way, cycle = self._way.value, self._cycle.value
        energy = float(found.paths[way].history.energy[min(cycle, int(found.paths[way].cycles))])
        self._energy.value = f"E = {energy:.8f} hartree" + (", the guess" if cycle == 0 else "")
        shown = found.matrices(way, cycle)
        labels = found.template.ao_labels
        self.matrices.show(
            f"{way}, cycle {cycle}: blue is positive, red negative; each matrix has its own scale.",
            plots.heatmaps(shown, labels, columns=4, labelled=len(labels) <= pictures.LABELLED),
        )
