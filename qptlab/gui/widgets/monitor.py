"""Training monitor: starts, pauses and stops a training, and shows its curves, together with those of other runs."""

import html
import time
from collections.abc import Callable

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go

from qptlab.errors import InputError
from qptlab.gui import plots
from qptlab.gui.session import Session
from qptlab.gui.widgets.chart import Chart
from qptlab.gui.widgets.live import keep_fresh
from qptlab.gui.widgets.message import MessageLine
from qptlab.gui.widgets.taskbar import TaskBar
from qptlab.gui.widgets.view import View
from qptlab.gui.widgets.viewer import OrbitalViewer
from qptlab.training.run import Run, find_runs
from qptlab.training.trainer import Trainer
from qptlab.units import significant

MAX_COMPARED = len(plots.OTHERS)
"""Largest number of other runs on the plot; more cannot be told apart by colour and dashes."""

NUMBERS_SECONDS = 1.0
"""Time between two updates of the line of numbers while a training runs, s."""

MIN_GROWTH, MAX_DRAW_SECONDS = 1 / 20, 5.0
"""Curves are drawn again when they have grown by this share, or after this time, s. On a laptop kernel and browser
share the cores with the training, and one drawing by plotly occupies a core for some tenths of a second."""

BASELINES = {"no network": "no_network_mae_mev", "PySCF, same Fock builds": "pyscf_stopped_mae_mev"}
"""Baselines of the validation error: name, and column of the metrics table."""

GEOMETRY_SECONDS = 15.0
"""Training time between two geometries that are shown, s."""


class TrainingMonitor(View):
    """Controls and shows the training of a session.

    Args:
      session: session that is shown; by default a new one.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._start = ipw.Button(description="Start", icon="play", button_style="primary")
        self._pause = ipw.Button(description="Pause", icon="pause")
        self._stop = ipw.Button(description="Stop", icon="stop")
        self._progress = ipw.FloatProgress(min=0, max=1, layout={"width": "220px"})
        self._status = ipw.HTML()
        self._numbers = ipw.HTML()
        self.chart = Chart(plots.training_figure(), "training")
        self._state: tuple | None = None
        self._others: dict[str, list[dict]] = {}
        self._make_controls()
        self.viewer = OrbitalViewer(height=190, placeholder="The newest training geometry appears here.")
        self._is_stale = False
        self._geometry_shown = self._drawn = self._updated = -np.inf
        super().__init__([
            ipw.HBox([self._start, self._pause, self._stop, self._progress, self._status]),
            MessageLine(self.session, "training"), self._numbers,
            ipw.HBox([self._x, self._scale, self._quantity, self._smoothing], layout={"flex_flow": "row wrap"}),
            self.chart,
            ipw.HBox([
                ipw.VBox([
                    ipw.HBox([self._runs, self._find]), self._open, ipw.HBox([self._note, self._add_note]),
                    self._events,
                ], layout={"width": "62%"}),
                ipw.VBox([self.viewer], layout={"width": "38%"}),
            ]),
        ])
        self._bind()
        self._list_runs()
        self.refresh()
        keep_fresh(self)

    @property
    def figure(self) -> go.Figure:
        """Plot of the training."""
        return self.chart.figure

    def _make_controls(self) -> None:
        narrow = {"description_width": "auto"}
        self._x = ipw.Dropdown(options=list(plots.X_AXES), description="x axis", style=narrow,
                               layout={"width": "200px"})
        self._scale = ipw.Dropdown(options=["log", "linear"], description="Error axis", style=narrow,
                                   layout={"width": "160px"})
        self._quantity = ipw.Dropdown(options=list(plots.QUANTITIES), description="Third plot", style=narrow,
                                      layout={"width": "270px"})
        self._smoothing = ipw.IntSlider(value=1, min=1, max=50, description="Smoothing, steps", style=narrow,
                                        layout={"width": "330px"}, continuous_update=False)
        self._runs = ipw.SelectMultiple(
            options=[], rows=3, description="Compare with", style=narrow, layout={"width": "480px"},
            tooltip=f"Other runs on disk, up to {MAX_COMPARED}; use Ctrl or Shift to select several",
        )
        self._find = ipw.Button(icon="refresh", tooltip="Search for runs on disk again", layout={"width": "40px"})
        self._open = TaskBar(
            self.session.training, "Open", "folder-open",
            lambda: self.session.training.open_run(self._runs.value[0]), self._why_not_open, with_message=False,
        )
        self._note = ipw.Text(placeholder="a remark that is stored with the run", description="Note", style=narrow,
                              layout={"width": "400px"})
        self._add_note = ipw.Button(description="Add", tooltip="Add the note at the present step",
                                    layout={"width": "80px"})
        self._events = ipw.HTML(layout={"max_height": "90px", "overflow": "auto"})

    def _why_not_open(self) -> str:
        if self.session.training.is_active:
            return "A training is running; stop it before you open a run"
        return "" if self._runs.value else "Select one of the runs to open it"

    def _bind(self) -> None:
        training = self.session.training
        self._start.on_click(lambda _: self._do(training.start))
        self._pause.on_click(lambda _: self._do(training.pause))
        self._stop.on_click(lambda _: self._do(training.stop))
        self._find.on_click(lambda _: self._list_runs())
        self._add_note.on_click(lambda _: self._do(self._keep_note))
        self._runs.observe(lambda _: self._choose_runs(), "value")
        for control in (self._x, self._scale, self._quantity, self._smoothing):
            control.observe(lambda _: self._draw(), "value")
        training.observe(lambda _: self._read_runs(), "compared")

    def _do(self, action: Callable[[], None]) -> None:
        action()
        self.refresh()

    def _keep_note(self) -> None:
        trainer = self.session.trainer
        with self.session.training.reporting():
            if trainer is None:
                raise InputError("There is no training yet that a note could be added to; start one first.")
            trainer.note(self._note.value)
            self._note.value = ""

    def refresh(self) -> None:
        """Show the state of the trainer; this is cheap if nothing has changed."""
        self._open.refresh()
        trainer = self.session.trainer
        status = self.session.training.status
        state = (id(trainer), status, len(trainer.events()) if trainer else 0)
        is_new = self._state is None or state[:2] != self._state[:2]
        now, is_live = time.monotonic(), status == "running" and not is_new
        if is_live and now - self._updated < NUMBERS_SECONDS:
            return
        is_due = not is_live or now - self._drawn >= self._draw_interval(trainer)
        if state == self._state and not (self._is_stale and is_due):
            return
        self._state, self._updated = state, now
        self._show_controls(status)
        self._status.value = self._status_html(status)
        if trainer is None:
            return
        if is_new:
            self._list_runs()
        self._show_numbers(trainer)
        self._is_stale = not is_due
        if is_due:
            self._draw()
            self._drawn = now
        self._show_geometry(trainer)

    def _draw_interval(self, trainer: Trainer | None) -> float:
        """Return the time between two drawings of a running training, s."""
        rows = trainer.rows if trainer else []
        return min(MIN_GROWTH * rows[-1]["seconds"] if rows else 0.0, MAX_DRAW_SECONDS)

    def _show_controls(self, status: str) -> None:
        active = status in ("compiling", "running")
        for button, enabled, why, why_not in (
            (self._start, not active, "Resume the training" if status == "paused" else "Start a training",
             "A training is running; stop it before you start a different one"),
            (self._pause, active, "Pause after the present step", "No training is running"),
            (self._stop, active or status == "paused", "Stop, and keep the trained model", "No training is running"),
        ):
            button.disabled = not enabled
            button.tooltip = why if enabled else why_not
        self._start.description = "Resume" if status == "paused" else "Start"

    def _status_html(self, status: str) -> str:
        trainer = self.session.trainer
        text = status
        if trainer is not None and status == "compiling":
            notes = [event.text for event in trainer.events() if event.kind == "compiling"]
            text = notes[-1] if notes else status
            text += " (takes some seconds, once)"
        return f'<span role="status">{html.escape(text)}</span>'

    def _show_numbers(self, trainer: Trainer) -> None:
        rows = trainer.rows
        if rows:
            self._progress.value = trainer.train_config.progress(int(rows[-1]["step"]), rows[-1]["seconds"])
            self._numbers.value = " · ".join(f"{name} <b>{value}</b>" for name, value in _facts(rows))

    # Drawing --------------------------------------------------------------------------------

    def _draw(self) -> None:
        trainer = self.session.trainer
        rows = trainer.rows if trainer is not None else []
        events = trainer.events() if trainer is not None else []
        zero, name = self.session.training.energy_zero()
        x_title = plots.X_AXES[self._x.value][1]
        plots.fill(self.figure, plots.training_traces(
            rows, zero, x_axis=self._x.value, quantity=self._quantity.value, smoothing=self._smoothing.value,
            events=[(event.kind, event.text, event.step) for event in events],
            compared=list(self._others.values()),
        ))
        self.figure.update_xaxes(title_text=x_title)
        is_energy = plots.has_energies(rows)
        self.figure.update_yaxes(title_text=f"E − {name}, eV" if is_energy else "loss, scale 1", col=1)
        self.figure.layout.annotations[0].text = plots.LOSS_TITLES[is_energy]
        self.figure.layout.annotations[2].text = self._quantity.value.capitalize()
        self.figure.update_yaxes(type=self._scale.value, dtick=1 if self._scale.value == "log" else None, col=2)
        self.figure.update_yaxes(title_text=plots.QUANTITIES[self._quantity.value], col=3)
        validated = [row for row in rows if "validation_mae_mev" in row]
        for name, column in BASELINES.items():
            is_missing = bool(validated) and column not in validated[-1]  # this kind of model lacks the baseline
            self.figure.update_traces(showlegend=not is_missing, selector={"name": name})
        self.chart.show(_summary(rows) if rows else "No training yet.")
        marked = [event for event in events if event.kind in plots.MARKS]
        self._events.value = "<br>".join(
            f"step {event.step}: {html.escape(event.kind)} — {html.escape(event.text)}"
            for event in reversed(marked[-30:])
        )

    def _show_geometry(self, trainer: Trainer) -> None:
        mol, rows = trainer.geometry, trainer.rows
        seconds = rows[-1]["seconds"] if rows else 0.0
        if mol is None or 0 <= seconds - self._geometry_shown < GEOMETRY_SECONDS:
            return
        self._geometry_shown = seconds
        caption = f"{mol.name or mol.formula}, newest training geometry"
        self.viewer.show(mol.symbols, mol.positions_angstrom, captions=[caption])

    # Other runs -----------------------------------------------------------------------------

    def _list_runs(self) -> None:
        present = self.session.trainer.out.absolute() if self.session.trainer else None
        compared = self.session.training.compared
        paths = [str(path) for path in find_runs() if path.absolute() != present]
        paths += [path for path in compared if path not in paths]
        if list(self._runs.options) != paths:
            self._runs.options = paths
            self._runs.value = tuple(path for path in compared if path in paths)

    def _choose_runs(self) -> None:
        paths = list(self._runs.value)
        if len(paths) > MAX_COMPARED:
            self.session.training.refuse(
                f"Expected at most {MAX_COMPARED} runs to compare with, got {len(paths)}; only the first "
                f"{MAX_COMPARED} are shown."
            )
        self.session.training.compared = paths[:MAX_COMPARED]

    def _read_runs(self) -> None:
        self._others = {}
        for path in self.session.training.compared:
            try:
                self._others[path] = Run.open(path).metrics()
            except InputError as error:
                self.session.training.refuse(str(error))
        self.chart.plot.figure = plots.training_figure(list(self._others))
        self._draw()


def _facts(rows: list[dict]) -> list[tuple[str, str]]:
    """Return names and values of the numbers above the plot."""
    last, recent = rows[-1], rows[-20:]
    elapsed = max(recent[-1]["seconds"] - recent[0]["seconds"], 1e-9)
    validated = next((row for row in reversed(rows) if "validation_mae_mev" in row), None)
    facts = [
        ("step", f"{last['step']:.0f}"),
        ("steps per second", f"{(last['step'] - recent[0]['step']) / elapsed:.2f}"),
        ("training time", f"{last['seconds']:.0f} s"),
        ("compiling", f"{sum(row['compile_s'] for row in rows):.1f} s"),
        ("waiting for data", f"{100 * sum(row['data_wait_s'] for row in rows) / last['seconds']:.0f} %"),
        ("skipped updates", f"{sum(row['skipped'] for row in rows):.0f}"),
    ]
    if validated is not None:
        facts += [
            (name, f"{significant(validated[column])} meV")
            for name, column in (("validation error", "validation_mae_mev"), *BASELINES.items())
            if column in validated
        ]
    return facts


def _summary(rows: list[dict]) -> str:
    """Return a sentence that says what the plot shows."""
    facts = dict(_facts(rows))
    if "validation error" not in facts:
        return f"Step {facts['step']} after {facts['training time']}; no validation yet."
    baselines = "".join(f"; {name}: {facts[name]}" for name in BASELINES if name in facts)
    return f"After {facts['training time']} the error on unseen geometries is {facts['validation error']}{baselines}."
