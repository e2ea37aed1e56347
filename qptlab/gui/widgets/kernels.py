"""Kernel inspector: a profile of training steps, by operation."""

import html
from collections.abc import Sequence

import ipywidgets as ipw

from qptlab.gui import plots
from qptlab.gui.parts import MAX_PROFILED
from qptlab.gui.profiling import PROFILED, STEPS, Profile
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import STYLE, Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View
from qptlab.units import significant

MAX_OPERATIONS = 100
"""Largest number of rows of the table of operations."""


class KernelInspector(View):
    """Profiles some steps of the session's training.

    Args:
      session: session that is shown; by default a new one.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._steps = ipw.BoundedIntText(
            value=STEPS, min=1, max=MAX_PROFILED, description="Steps", tooltip="Number of training steps to profile",
            style={"description_width": "auto"}, layout={"width": "120px"},
        )
        self._run = TaskBar(
            self.session.kernels, "Profile", "search", lambda: self.session.kernels.inspect(self._steps.value),
            self._why_not,
        )
        self._words = ipw.HTML()
        self._functions = ipw.HTML()
        self._operations = ipw.HTML(layout={"max_height": "320px", "overflow": "auto"})
        self._charts = ipw.HBox()
        self._results = ipw.VBox(
            [self._words, self._functions, self._charts, self._operations], layout={"display": "none"}
        )
        super().__init__([ipw.HBox([self._steps, self._run]), self._results])
        self.session.kernels.observe(lambda _: self.update(), "profile")
        self.update()
        keep_fresh(self)

    def _why_not(self) -> str:
        is_running = self.session.training.status in PROFILED
        return "" if is_running else "No training is running; start or resume one first"

    def refresh(self) -> None:
        """Show the progress of the profile."""
        self._run.refresh()

    def update(self) -> None:
        """Show the session's last profile."""
        profile = self.session.kernels.profile
        if profile is None:
            return
        self._results.layout.display = "flex"
        self._words.value = (
            f'<p role="status"><b>{html.escape(profile.device)}</b>. {html.escape(profile.summary())} The trace is '
            f"in {html.escape(str(profile.path))}; ui.perfetto.dev and XProf open it.</p>"
        )
        self._functions.value = _functions_html(profile)
        self._operations.value = _operations_html(profile)
        timeline = Chart(plots.timeline_figure(profile), "timeline")
        lanes = len({span.lane for span in profile.timeline})
        kind = "streams" if profile.is_accelerator else "threads"
        timeline.show(f"The {len(profile.timeline)} longest operations in {lanes} {kind}.")
        roofline = Chart(plots.roofline_figure(profile), "roofline")
        peaks = (profile.peak_flops, profile.peak_flops32, profile.peak_bytes)
        flops, flops32, nbytes = (peak / 1e9 for peak in peaks)
        roofline.show(
            f"Measured on this machine: {flops:.0f} · 10⁹ operations per second in float64, {flops32:.0f} · 10⁹ in "
            f"float32; {nbytes:.0f} · 10⁹ bytes per second."
        )
        self._charts.children = [
            ipw.VBox([timeline], layout={"width": "56%"}), ipw.VBox([roofline], layout={"width": "44%"}),
        ]


def _functions_html(profile: Profile) -> str:
    head = ["function", "compiling, s", "operations per call, 10⁹", "bytes per call, 10⁶", "calls", "total time, s"]
    rows = [
        [executable.name, significant(executable.compile_s),
         *(("≥ " if executable.has_loops else "") + significant(count)
           for count in (executable.flops / 1e9, executable.nbytes / 1e6)),
         str(executable.calls), significant(executable.seconds)]
        for executable in sorted(profile.executables, key=lambda executable: -executable.seconds)
    ]
    title = (
        "Compiled functions of a training step. Operations and bytes are counted by XLA: calls of libraries are not "
        "counted, and the body of a loop is counted once."
    )
    return _table(title, head, rows)


def _operations_html(profile: Profile) -> str:
    total = sum(operation.seconds for operation in profile.operations) or 1.0
    rows = [
        [operation.function, operation.name, operation.layer, operation.source, str(operation.calls),
         significant(1e3 * operation.seconds), f"{100 * operation.seconds / total:.1f}"]
        for operation in profile.operations[:MAX_OPERATIONS]
    ]
    kind = "kernel" if profile.is_accelerator else "operation"
    head = ["function", kind, "layer of the model", "source", "calls", "time, ms", "share, %"]
    title = (
        f"The {len(rows)} longest of {len(profile.operations)} {kind}s; the layer is known for "
        f"{profile.named:.0%} of the time."
    )
    return _table(title, head, rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{html.escape(title)}</caption>"
    return f'{STYLE}<div class="qptlab-table"><table>{caption}<tr>{cells}</tr>{body}</table></div>'
