"""The comparison with PySCF: a table and parity plots on the validation geometries."""

import ipywidgets as ipw

from qptlab import plots
from qptlab.session import Session
from qptlab.widgets.message import MessageLine

_STYLE = """<style>
.qptlab-table table { border-collapse: collapse; }
.qptlab-table caption { text-align: left; padding: 2px 0 6px; }
.qptlab-table th, .qptlab-table td { padding: 2px 10px; text-align: right; border-bottom: 1px solid #8884; }
.qptlab-table tr th:first-child { text-align: left; }
</style>"""


class Comparison(ipw.VBox):
    """Errors of the present model against PySCF, beside both baselines.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._button = ipw.Button(
            description="Compare with PySCF", icon="table", layout={"width": "190px"},
            tooltip="The model as trained so far, on geometries it was never trained on",
        )
        self._message = MessageLine(self.session, "comparison")
        self._table = ipw.HTML()
        self.figure = plots.widget(plots.parity_figure())
        self._plot = ipw.Box([self.figure], layout={"display": "none"})
        super().__init__([ipw.HBox([self._button, self._message]), self._table, self._plot])
        self._button.on_click(lambda _: self.session.compare())
        self.session.observe(lambda _: self.update(), "evaluation")
        self.update()

    def update(self) -> None:
        """Show the session's last comparison."""
        found = self.session.evaluation
        if found is None:
            self._table.value = "No comparison yet."
            self._plot.layout.display = "none"
            return
        self._table.value = f'{_STYLE}<div class="qptlab-table">{found._repr_html_()}</div>'
        self._plot.layout.display = "block"
        with self.figure.batch_update():
            plots.fill(self.figure, plots.parity_traces(found))
            zeros = set(plots.lowest_energies(found))
            zero = f"{zeros.pop():.4f} hartree" if len(zeros) == 1 else "the molecule's lowest"
            title = f"PySCF, eV above {zero}"
            self.figure.update_xaxes(title_text=title, col=1)
