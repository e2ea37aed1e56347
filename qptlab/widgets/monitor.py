"""The training monitor: start, pause, stop, and the curves as they come."""

import html

import ipywidgets as ipw

from qptlab import plots
from qptlab.session import Session
from qptlab.units import significant
from qptlab.widgets.live import keep_fresh
from qptlab.widgets.message import MessageLine


class TrainingMonitor(ipw.VBox):
    """Steers and shows the training of a session.

    Args:
      session: shared with other views; by default one of its own.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()
        self._start = ipw.Button(description="Start", icon="play", button_style="primary")
        self._pause = ipw.Button(description="Pause", icon="pause")
        self._stop = ipw.Button(description="Stop", icon="stop")
        self._progress = ipw.FloatProgress(min=0, max=1, layout={"width": "220px"})
        self._status = ipw.HTML()
        self._numbers = ipw.HTML()
        self._message = MessageLine(self.session, "training")
        self.figure = plots.widget(plots.training_figure())
        self._shown: tuple | None = None
        super().__init__([
            ipw.HBox([self._start, self._pause, self._stop, self._progress, self._status]),
            self._message, self._numbers, self.figure,
        ])
        self._start.on_click(lambda _: self._do(self.session.start))
        self._pause.on_click(lambda _: self._do(self.session.pause))
        self._stop.on_click(lambda _: self._do(self.session.stop))
        self.refresh()
        keep_fresh(self)

    def _do(self, action) -> None:
        action()
        self.refresh()

    def refresh(self) -> None:
        """Show the trainer's present state; cheap when nothing has changed."""
        trainer = self.session.trainer
        status = self.session.training_status
        seen = (id(trainer), status, len(trainer.events()) if trainer else 0)
        if seen == self._shown:
            return
        self._shown = seen
        self.session.report()
        self._show_controls(status)
        self._status.value = self._words(status)
        if trainer is not None:
            self._show_rows(trainer)

    def _show_controls(self, status: str) -> None:
        active = status in ("compiling", "running")
        for button, enabled, why in (
            (self._start, not active, "Go on" if status == "paused" else "Start a training"),
            (self._pause, active, "Pause after the present step" if active else "Nothing is running"),
            (self._stop, active or status == "paused", "Stop and keep what was learned"),
        ):
            button.disabled = not enabled
            button.tooltip = why
        self._start.description = "Resume" if status == "paused" else "Start"

    def _words(self, status: str) -> str:
        trainer = self.session.trainer
        text = status
        if trainer is not None and status == "compiling":
            notes = [event.text for event in trainer.events() if event.kind == "compiling"]
            text = notes[-1] if notes else status
            text += " (takes some seconds, once)"
        return f'<span role="status">{html.escape(text)}</span>'

    def _show_rows(self, trainer) -> None:
        rows = trainer.rows
        self._progress.value = (
            trainer.train_config.progress(rows[-1]["step"], rows[-1]["seconds"]) if rows else 0.0
        )
        self._numbers.value = _numbers(rows) if rows else ""
        zero, name = self.session.energy_zero()
        with self.figure.batch_update():
            plots.fill(self.figure, plots.training_traces(rows, zero))
            self.figure.update_yaxes(title_text=f"E − {name}, eV", col=1)


def _numbers(rows: list[dict]) -> str:
    last = rows[-1]
    recent = rows[-20:]
    elapsed = max(recent[-1]["seconds"] - recent[0]["seconds"], 1e-9)
    judged = next((row for row in reversed(rows) if "validation_mae_mev" in row), None)
    facts = [
        ("step", f"{last['step']:.0f}"),
        ("steps per second", f"{(len(recent) - 1) / elapsed:.2f}"),
        ("training time", f"{last['seconds']:.0f} s"),
        ("compiling", f"{sum(row['compile_s'] for row in rows):.1f} s"),
        ("waited for data", f"{sum(row['data_wait_s'] for row in rows):.1f} s"),
        ("skipped updates", f"{sum(row['skipped'] for row in rows):.0f}"),
    ]
    if judged is not None:
        facts += [
            (name, f"<b>{significant(judged[column])} meV</b>")
            for name, column in (
                ("validation error", "validation_mae_mev"), ("no network", "no_network_mae_mev"),
                ("PySCF, same Fock builds", "pyscf_stopped_mae_mev"),
            )
        ]
    return " · ".join(f"{name} {value}" for name, value in facts)
