"""The kernel inspector: what a training step spends its time on."""

import html

import ipywidgets as ipw

from qptlab.units import significant
from qptlab.gui import plots
from qptlab.gui.profiling import PROFILED, Profile
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import STYLE, Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View

MAX_OPERATIONS = 40
"""Of the table."""


class KernelInspector(View):
    """Profiles a few steps of the session's training.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._steps = ipw.BoundedIntText(
            value=5, min=1, max=50, description="Steps", style={"description_width": "auto"},
            layout={"width": "120px"},
        )
        self._run = TaskBar(
            self.session, "kernels", "Profile", "search", lambda: self.session.inspect(self._steps.value),
            self._why_not,
        )
        self._words = ipw.HTML()
        self._functions = ipw.HTML()
        self._operations = ipw.HTML(layout={"max_height": "320px", "overflow": "auto"})
        self._places = ipw.HBox()
        self._found = ipw.VBox(
            [self._words, self._functions, self._places, self._operations], layout={"display": "none"}
        )
        super().__init__([ipw.HBox([self._steps, self._run]), self._found])
        self.session.observe(lambda _: self.update(), "profile")
        self.update()
        keep_fresh(self)

    def _why_not(self) -> str:
        running = self.session.training_status in PROFILED
        return "" if running else "No training is running; start one, or go on with one"

    def refresh(self) -> None:
        """Show how far the profile is."""
        self._run.refresh()

    def update(self) -> None:
        """Show the session's last profile."""
        found = self.session.profile
        if found is None:
            return
        self._found.layout.display = "flex"
        self._words.value = (
            f'<p role="status"><b>{html.escape(found.device)}</b>. {html.escape(found.words())} The trace is in '
            f"{html.escape(str(found.path))}: open it with ui.perfetto.dev or XProf.</p>"
        )
        self._functions.value = _functions_html(found)
        self._operations.value = _operations_html(found)
        timeline = Chart(plots.timeline_figure(found), "timeline")
        lanes = len({span.lane for span in found.timeline})
        what = "streams" if found.is_accelerator else "threads"
        timeline.show(f"The {len(found.timeline)} longest operations in {lanes} {what}.")
        roofline = Chart(plots.roofline_figure(found), "roofline")
        roofline.show(
            f"Measured here: {found.peak_flops / 1e9:.0f} · 10⁹ operations per second in float64, "
            f"{found.peak_flops32 / 1e9:.0f} · 10⁹ in float32; {found.peak_bytes / 1e9:.0f} · 10⁹ bytes per second."
        )
        self._places.children = [
            ipw.VBox([timeline], layout={"width": "56%"}), ipw.VBox([roofline], layout={"width": "44%"}),
        ]


def _functions_html(found: Profile) -> str:
    head = ["function", "compiling, s", "operations a call, 10⁹", "bytes a call, 10⁶", "calls", "time in all, s"]
    rows = [
        [each.name, significant(each.compile_s),
         *(("≥ " if each.has_loops else "") + significant(count) for count in (each.flops / 1e9, each.nbytes / 1e6)),
         str(each.calls), significant(each.seconds)]
        for each in sorted(found.executables, key=lambda each: -each.seconds)
    ]
    title = "Compiled functions of a step (counts are XLA's: without what it calls from libraries, of loops one turn)"
    return _table(title, head, rows)


def _operations_html(found: Profile) -> str:
    total = sum(each.seconds for each in found.operations) or 1.0
    rows = [
        [each.function, each.name, each.layer, each.source, str(each.calls), significant(1e3 * each.seconds),
         f"{100 * each.seconds / total:.1f}"]
        for each in found.operations[:MAX_OPERATIONS]
    ]
    what = "Kernels" if found.is_accelerator else "Operations"
    head = ["function", what.lower()[:-1], "where in the model", "source", "calls", "time, ms", "share, %"]
    title = f"{what}, the {len(rows)} longest of {len(found.operations)}; {found.named:.0%} of the time is named"
    return _table(title, head, rows)


def _table(title, head, rows):
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{html.escape(title)}</caption>"
    return f'{STYLE}<div class="qptlab-table"><table>{caption}<tr>{cells}</tr>{body}</table></div>'
