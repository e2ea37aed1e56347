"""SCF explorer: several algorithms that search the ground state, iteration by iteration, with their matrices."""

import ipywidgets as ipw
import numpy as np

from qptlab.dft import exploration
from qptlab.dft.scf import GUESSES
from qptlab.gui import pictures, plots
from qptlab.gui.parts import MAX_CYCLES
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View


class SCFExplorer(View):
    """Runs the SCF of the session's molecule and shows every iteration.

    Args:
      session: session that is shown; by default a new one.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._guess = ipw.Dropdown(options=GUESSES, description="Initial guess", layout={"width": "230px"})
        self._cycles = ipw.BoundedIntText(
            value=exploration.CYCLES, min=1, max=MAX_CYCLES, description="Iterations",
            tooltip="Largest number of iterations of each algorithm", layout={"width": "160px"},
        )
        self._run = TaskBar(
            self.session.scf, "Run SCF", "play",
            lambda: self.session.scf.explore(self._guess.value, self._cycles.value),
        )
        self._algorithm = ipw.Dropdown(
            options=exploration.ALGORITHMS, value=exploration.ALGORITHMS[2], description="Algorithm",
            layout={"width": "280px"},
        )
        self._cycle = ipw.IntSlider(min=0, max=1, description="Iteration", layout={"width": "380px"},
                                    continuous_update=False)
        self._energy = ipw.HTML()
        self.curves = Chart(plots.convergence_figure(exploration.ALGORITHMS), "energy against iteration")
        self.matrices = Chart(plots.heatmaps({}, []), "matrices over atomic orbitals")
        self._results = ipw.VBox(
            [self.curves, ipw.HBox([self._algorithm, self._cycle]), self._energy, self.matrices],
            layout={"display": "none"},
        )
        super().__init__([ipw.HBox([self._guess, self._cycles]), self._run, self._results])
        self._algorithm.observe(lambda _: self._choose_algorithm(), "value")
        self._cycle.observe(lambda _: self._show_matrices(), "value")
        self.session.scf.observe(lambda _: self.update(), "exploration")
        self.update()
        keep_fresh(self)

    def refresh(self) -> None:
        """Show the progress of the calculation."""
        self._run.refresh()

    def update(self) -> None:
        """Show the session's last exploration."""
        result = self.session.scf.exploration
        if result is None:
            return
        self._results.layout.display = "flex"
        energies = [np.asarray(path.history.energy) for path in result.paths.values()]
        plots.fill(self.curves.figure, plots.convergence_traces(energies, result.lowest))
        self.curves.figure.update_layout(
            title_text=f"{result.molecule.formula}, {result.method.label}, initial guess {result.guess}"
        )
        self.curves.show(result.summary())
        self._choose_algorithm()

    def _choose_algorithm(self) -> None:
        result = self.session.scf.exploration
        if result is not None:
            self._cycle.max = int(result.paths[self._algorithm.value].cycles)
            self._show_matrices()

    def _show_matrices(self) -> None:
        result = self.session.scf.exploration
        if result is None:
            return
        algorithm, cycle = self._algorithm.value, self._cycle.value
        path = result.paths[algorithm]
        energy = float(path.history.energy[min(cycle, int(path.cycles))])
        name = "initial guess" if cycle == 0 else f"iteration {cycle}"
        self._energy.value = f"Energy of the {name}: {energy:.8f} hartree."
        labels = result.template.ao_labels
        self.matrices.show(
            f"{algorithm}, iteration {cycle}: blue is positive, red is negative; each matrix has its own scale.",
            plots.heatmaps(
                result.matrices(algorithm, cycle), labels, columns=4, labelled=len(labels) <= pictures.LABELLED
            ),
        )
