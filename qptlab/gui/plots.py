"""Results as plotly figures: no state, no widgets.

Colours are Okabe and Ito's, told apart by colour-blind eyes, and never the only difference between
two lines. Backgrounds are transparent and lettering mid-grey, readable on light and dark pages.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qptlab.evaluation.comparison import Evaluation
from qptlab.evaluation.reference import energy_errors_mev
from qptlab.units import CHEMICAL_ACCURACY_MEV, HARTREE_EV, HARTREE_MEV
from qptlab.gui.profiling import Profile

BLUE, ORANGE, GREEN, VERMILLION, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
PURPLE = "#CC79A7"
OTHERS = (PURPLE, GREEN, VERMILLION, ORANGE, SKY)
INK = "#808080"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MAX_POINTS = 2000
"""Per trace: more would be sent to the browser without being seen."""
CORE_HARTREE = -2.0
"""Levels below are core levels; drawn to scale, they would leave valence levels in one spot."""

TRACES = ("training energy", "validation error, mean", "validation error, largest")

X_AXES = {"training time": ("seconds", "training time, s"), "step": ("step", "step, updates"),
          "new geometries": ("geometries", "geometries drawn, number")}
"""What a training is drawn against: column of the metrics table, and title."""

QUANTITIES = {
    "gradient norm": "gradient norm, hartree", "learning rate": "learning rate, per update",
    "waiting for data": "waiting for data, %", "steps per second": "updates, per second",
    "new geometries per second": "geometries drawn, per second",
    "memory": "memory in use, MiB",
}
"""What the third plot of a training can show."""

MARKS = {"checkpoint": "diamond", "skipped": "x", "compiling": "square", "note": "star", "error": "cross"}
"""Symbols of the events on a curve."""


def thin(values: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """At most `limit` of the values, evenly spread, the last among them.

    >>> thin(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).round().astype(int)]


def training_figure(compared: Sequence[str] = ()) -> go.Figure:
    """An empty figure for `training_traces`: energy, validation error, and one more quantity.

    Args:
      compared: names of other runs that are drawn beside.
    """
    figure = make_subplots(
        cols=3, horizontal_spacing=0.1, column_widths=[0.34, 0.38, 0.28],
        subplot_titles=("Loss: mean energy", "Error on unseen geometries", "How it goes"),
    )
    figure.add_scatter(
        name=TRACES[0], mode="lines", line={"color": BLUE, "width": 1.5}, row=1, col=1, showlegend=False
    )
    figure.add_scatter(
        name=TRACES[1], mode="lines+markers", line={"color": BLUE, "width": 2}, marker={"size": 5},
        row=1, col=2,
    )
    figure.add_scatter(
        name=TRACES[2], mode="lines", line={"color": SKY, "dash": "dot", "width": 1.5}, row=1, col=2
    )
    # The two baselines are equal where DIIS has nothing to extrapolate yet: the wider lies below.
    for name, colour, dash, width in (
        ("no network", VERMILLION, "dash", 4), ("PySCF, same Fock builds", ORANGE, "dashdot", 1.5),
        ("chemical accuracy", GREEN, "longdash", 1.5), ("1 meV", INK, "longdashdot", 1.5),
    ):
        figure.add_scatter(
            name=name, mode="lines", line={"color": colour, "dash": dash, "width": width}, row=1, col=2
        )
    figure.add_scatter(
        name="events", mode="markers", marker={"color": INK, "size": 8, "line": {"width": 1}},
        hovertemplate="%{text}<extra></extra>", row=1, col=1, showlegend=False,
    )
    figure.add_scatter(
        name="this training", mode="lines", line={"color": BLUE, "width": 1.5}, row=1, col=3, showlegend=False
    )
    for index, name in enumerate(compared):
        line = {"color": OTHERS[index % len(OTHERS)], "dash": DASHES[1:][index % 4], "width": 2}
        figure.add_scatter(name=name, mode="lines+markers", line=line, marker={"size": 4}, row=1, col=2)
        figure.add_scatter(name=name, mode="lines", line=line, row=1, col=3, showlegend=False)
    figure.update_xaxes(title=X_AXES["training time"][1])
    figure.update_yaxes(title="E, eV", row=1, col=1)
    figure.update_yaxes(title=QUANTITIES["gradient norm"], row=1, col=3)
    figure.update_yaxes(
        title="energy error, meV", type="log", dtick=1, exponentformat="power", row=1, col=2
    )
    figure.update_layout(height=360, legend=_legend_below(-0.3))
    return _dress(figure)


def training_traces(
    rows: Sequence[dict],
    zero: float,
    *,
    x_axis: str = "training time",
    quantity: str = "gradient norm",
    smoothing: int = 1,
    events: Sequence[tuple[str, str, int]] = (),
    compared: Sequence[Sequence[dict]] = (),
) -> list[tuple]:
    """X and y, of events also texts and symbols, of every trace of `training_figure`, in its order.

    Args:
      rows: of the metrics table.
      zero: the energy that the left plot is drawn against, hartree.
      x_axis: one of `X_AXES`.
      quantity: one of `QUANTITIES`.
      smoothing: steps over which energy and quantity are averaged.
      events: kind, text and step of what is to be marked; kinds that `MARKS` lacks are left out.
      compared: rows of the other runs.
    """
    column = X_AXES[x_axis][0]
    x = np.array([row[column] for row in rows])
    energy = _smooth(np.array([(row["energy_ha"] - zero) * HARTREE_EV for row in rows]), smoothing)
    judged, when = _judged(rows, column)
    traces: list[tuple] = [(thin(x), thin(energy))]
    for name in ("validation_mae_mev", "validation_max_mev"):
        traces.append((thin(when), thin(np.array([row[name] for row in judged]))))
    span = np.array([0.0, x[-1]]) if len(x) else np.array([])
    levels = [
        judged[-1]["no_network_mae_mev"] if judged else None,
        judged[-1]["pyscf_stopped_mae_mev"] if judged else None,
        CHEMICAL_ACCURACY_MEV,
        1.0,
    ]
    for level in levels:
        known = level is not None and len(span)
        traces.append((span, np.full(2, level)) if known else (np.array([]), np.array([])))
    traces.append(_marks(rows, x, energy, events))
    traces.append((thin(x), thin(_smooth(_quantity(rows, quantity), smoothing))))
    for other in compared:
        other_x = np.array([row[column] for row in other])
        found, found_at = _judged(other, column)
        traces.append((thin(found_at), thin(np.array([row["validation_mae_mev"] for row in found]))))
        traces.append((thin(other_x), thin(_smooth(_quantity(other, quantity), smoothing))))
    return traces


def _judged(rows, column) -> tuple[list[dict], np.ndarray]:
    judged = [row for row in rows if "validation_mae_mev" in row]
    return judged, np.array([row[column] for row in judged])


def _marks(rows, x, y, events) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    places = {int(row["step"]): index for index, row in enumerate(rows)}
    seen = [(places[max(step, 1)], kind, text) for kind, text, step in events
            if kind in MARKS and max(step, 1) in places][-MAX_POINTS:]
    at = [place for place, _, _ in seen]
    texts = [f"{kind}, step {int(rows[place]['step'])}: {text}" for place, kind, text in seen]
    return x[at] if at else x[:0], y[at] if at else y[:0], texts, [MARKS[kind] for _, kind, _ in seen]


def _quantity(rows, name) -> np.ndarray:
    if name in ("gradient norm", "learning rate", "memory"):
        column = {"gradient norm": "grad_norm", "learning rate": "learning_rate", "memory": "memory_mib"}[name]
        return np.array([row.get(column, np.nan) for row in rows])
    seconds = np.diff([0.0, *(row["seconds"] for row in rows)])
    if name == "waiting for data":
        return 100 * np.array([row["data_wait_s"] for row in rows]) / np.maximum(seconds, 1e-9)
    done = np.ones(len(rows)) if name == "steps per second" else np.diff([0.0, *(row["geometries"] for row in rows)])
    return done / np.maximum(seconds, 1e-9)


def _smooth(values: np.ndarray, span: int) -> np.ndarray:
    """Means over the last `span` values, of the first ones over as many as there are."""
    if span <= 1 or len(values) == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - span)
    return (sums[ends] - sums[starts]) / (ends - starts)


def parity_figure() -> go.Figure:
    """An empty figure for `parity_traces`: energies, orbital energies, and how errors go with residuals."""
    figure = make_subplots(
        cols=3, horizontal_spacing=0.1,
        subplot_titles=("Total energy", "Valence orbitals and LUMO", "Error and residual"),
    )
    for col in (1, 2):
        figure.add_scatter(
            mode="lines", line={"color": INK, "width": 1, "dash": "dot"}, name="equal", row=1, col=col,
            showlegend=col == 1,
        )
        figure.add_scatter(
            mode="markers", marker={"color": ORANGE, "symbol": "x-thin-open", "size": 9},
            name="no network", row=1, col=col, showlegend=col == 1,
        )
        figure.add_scatter(
            mode="markers", marker={"color": BLUE, "size": 6}, name="QPT", row=1, col=col, showlegend=col == 1
        )
    for name, colour, mark in (("no network", ORANGE, "x-thin-open"), ("QPT", BLUE, "circle")):
        figure.add_scatter(
            mode="markers", marker={"color": colour, "symbol": mark, "size": 7}, name=name, row=1, col=3,
            showlegend=False,
        )
    for col in (1, 2):
        figure.update_xaxes(title="PySCF, eV", row=1, col=col)
        figure.update_yaxes(title="predicted, eV", row=1, col=col)
    figure.update_xaxes(title="residual, hartree", type="log", dtick=1, exponentformat="power", row=1, col=3)
    figure.update_yaxes(title="energy error, meV", type="log", dtick=1, exponentformat="power", row=1, col=3)
    figure.update_layout(height=340, legend=_legend_below(-0.32))
    return _dress(figure)


def lowest_energies(found: Evaluation) -> list[float]:
    """PySCF's energy of the most stable geometry of each geometry's molecule, hartree."""
    lowest: dict[int, float] = {}
    pairs = list(zip(map(id, found.references.systems), found.references.converged, strict=True))
    for system, answer in pairs:
        lowest[system] = min(answer.energy, lowest.get(system, answer.energy))
    return [lowest[system] for system, _ in pairs]


def parity_traces(found: Evaluation) -> list[tuple[np.ndarray, np.ndarray]]:
    """X and y of every trace of `parity_figure`, in its order; energies above `lowest_energies`."""
    zeros = lowest_energies(found)
    frontier = [
        np.arange(answer.nocc + 1)[answer.mo_energy[: answer.nocc + 1] > CORE_HARTREE]
        for answer in found.references.converged
    ]
    traces = []
    for pick in (
        lambda answer, zero, _: np.array([float(answer.energy) - zero]),
        lambda answer, _, levels: np.asarray(answer.mo_energy)[levels],
    ):
        truth, plain, model = (
            np.concatenate([pick(*given) for given in zip(answers, zeros, frontier, strict=True)]) * HARTREE_EV
            for answers in (found.references.converged, found.references.no_network, found.predictions)
        )
        ends = np.array([truth.min(), truth.max()])
        traces += [(ends, ends), (thin(truth), thin(plain)), (thin(truth), thin(model))]
    answers = found.references.same_fit or found.references.converged
    for predictions in (found.references.no_network, found.predictions):
        misses = np.abs(energy_errors_mev(predictions, answers))
        traces.append((thin(np.array([float(p.residual) for p in predictions])), thin(misses)))
    return traces


def errors_figure(found: Evaluation) -> go.Figure:
    """How energy errors are spread, the model's and the baselines', on a logarithmic axis."""
    figure = go.Figure()
    answers = found.references
    for name, predictions, colour, mark in (
        ("QPT", found.predictions, BLUE, "circle"), ("no network", answers.no_network, ORANGE, "x"),
        ("PySCF, same Fock builds", answers.stopped, GREEN, "diamond-open"),
    ):
        misses = np.abs(energy_errors_mev(predictions, answers.converged))
        figure.add_scatter(
            x=np.arange(len(misses)).tolist(), y=misses.tolist(), name=name, mode="markers",
            marker={"color": colour, "symbol": mark, "size": 8},
        )
    figure.update_xaxes(title="geometry, number")
    figure.update_yaxes(title="|energy error|, meV", type="log", dtick=1, exponentformat="power")
    figure.update_layout(
        title="Error of each geometry: click one", height=340, hovermode="closest", showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def histogram_figure(found: Evaluation) -> go.Figure:
    """Histogram of the signed energy errors of the model."""
    figure = go.Figure()
    figure.add_histogram(x=found.energy_errors_mev.tolist(), name="QPT", marker={"color": BLUE}, nbinsx=20)
    figure.update_xaxes(title="energy error, meV")
    figure.update_yaxes(title="geometries, number")
    figure.update_layout(title="How energy errors are spread", height=340, showlegend=True)
    return _dress(figure)


def matrix_errors_figure(errors: np.ndarray, atoms: Sequence[str]) -> go.Figure:
    """Error of the Fock matrix by pair of atoms, µHa, as a heatmap."""
    figure = go.Figure()
    figure.add_heatmap(
        z=np.asarray(errors).tolist(), x=list(atoms), y=list(atoms), colorscale="Cividis", name="Fock error",
        colorbar={"title": {"text": "µHa"}}, hovertemplate="%{y}, %{x}: %{z:.3g} µHa<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", title="atom")
    figure.update_xaxes(title="atom")
    figure.update_layout(title="Mean |error| of the Fock matrix by pair of atoms", height=340)
    return _dress(figure)


def times_figure(found: Evaluation) -> go.Figure:
    """Seconds per geometry of the model and of PySCF."""
    figure = go.Figure()
    names = ("QPT, all cores", f"PySCF to convergence, threads: {found.pyscf_threads}")
    figure.add_bar(
        x=[found.seconds_per_geometry, found.pyscf_seconds_per_geometry], y=list(names), orientation="h",
        marker={"color": [BLUE, GREEN]}, name="time",
    )
    figure.update_xaxes(title="time per geometry, s")
    figure.update_layout(title="Time per geometry", height=240)
    return _dress(figure).update_layout(margin={"l": 240})


def attention_figure(
    weights: np.ndarray, bias: np.ndarray, name: str, labels: Sequence[str], *, labelled: bool = True
) -> go.Figure:
    """A head's attention over pairs of atomic orbitals beside a matrix that biased it."""
    figure = heatmaps({"attention": weights, name: bias}, labels, columns=2, labelled=labelled)
    figure.data[0].update(colorscale="Cividis", zmid=None, zmin=0.0, zmax=float(np.max(weights)) or 1.0)
    return figure


def mixing_figure(mixing: np.ndarray, names: Sequence[str]) -> go.Figure:
    """How strongly each matrix biases a head."""
    figure = go.Figure()
    figure.add_bar(x=list(names), y=np.asarray(mixing).tolist(), marker={"color": BLUE}, name="weight")
    figure.update_xaxes(title="matrix of the guess, name", tickangle=-40)
    figure.update_yaxes(title="weight in the logits, scale 1")
    figure.update_layout(title="What biases this head", height=300)
    return _dress(figure).update_layout(margin={"b": 110})


def timeline_figure(found: Profile) -> go.Figure:
    """Operations by thread or stream against time, one colour for each compiled function."""
    figure = go.Figure()
    lanes = sorted({span.lane for span in found.timeline})
    functions = sorted({span.function for span in found.timeline})
    for index, function in enumerate(functions):
        own = [span for span in found.timeline if span.function == function]
        figure.add_bar(
            base=[span.start * 1e3 for span in own], x=[span.length * 1e3 for span in own],
            y=[f"{lanes.index(span.lane) + 1}" for span in own], orientation="h", name=function,
            marker={"color": (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE)[index % 6], "line": {"width": 0},
                    "pattern": {"shape": ("", "/", ".", "x", "-", "|")[index % 6]}},
            text=[span.name for span in own], textposition="none",
            hovertemplate="%{text}: %{x:.3f} ms<extra>" + function + "</extra>",
        )
    figure.update_xaxes(title="time, ms")
    figure.update_yaxes(title="stream, number" if found.is_accelerator else "thread, number")
    figure.update_layout(
        title="When operations ran", height=340, barmode="overlay", showlegend=True,
        legend=_legend_below(-0.36),
    )
    return _dress(figure)


def roofline_figure(found: Profile) -> go.Figure:
    """Compiled functions under the roofline of the device: arithmetic against operations per byte."""
    figure = go.Figure()
    ridge = found.ridge
    known = [each for each in found.executables if each.seconds > 0 and each.flops > 0 and each.nbytes > 0]
    known.sort(key=lambda each: each.flops * each.calls / each.seconds)
    x = np.array([ridge / 1e3, ridge, ridge * 30])
    for name, peak, dash in (("float64", found.peak_flops, "solid"), ("float32", found.peak_flops32, "dash")):
        figure.add_scatter(
            x=x.tolist(), y=np.minimum(x * found.peak_bytes, peak).tolist(), mode="lines", name=f"roof, {name}",
            line={"color": INK, "dash": dash},
        )
    for index, each in enumerate(known):
        figure.add_scatter(
            x=[each.flops / each.nbytes], y=[each.flops * each.calls / each.seconds], mode="markers+text",
            text=[("≥ " if each.has_loops else "") + each.name], showlegend=False,
            textposition=("bottom center", "top center")[index % 2],  # from the lowest on: away from each other
            marker={"size": 11, "color": OTHERS[index % 5], "symbol": ("circle", "diamond", "square")[index % 3]},
        )
    figure.update_xaxes(title="intensity, operations per byte", type="log", dtick=1)
    figure.update_yaxes(title="operations per second", type="log", dtick=1, exponentformat="power")
    figure.update_layout(
        title="Roofline, measured here", height=340, showlegend=True,
        legend=_legend_below(-0.36),
    )
    return _dress(figure)


EMPTY_LEVELS = 6
"""Above the LUMO that are drawn."""


def levels_figure() -> go.Figure:
    """An empty diagram of orbital energies for `fill_levels`: predicted beside PySCF's."""
    figure = go.Figure()
    for who in ("QPT", "PySCF"):
        for kind, colour, width in (("occupied", BLUE, 2.5), ("empty", ORANGE, 1.5)):
            figure.add_scatter(
                mode="markers", name=kind, legendgroup=kind, showlegend=who == "QPT",
                marker={"symbol": "line-ew", "size": 46, "line": {"width": width, "color": colour}},
                hovertemplate="orbital %{text}: %{y:.3f} eV<extra>" + who + "</extra>",
            )
    figure.add_scatter(
        mode="lines+markers", name="chosen", line={"color": VERMILLION, "width": 1, "dash": "dot"},
        marker={"symbol": "diamond-open", "size": 11}, hoverinfo="skip",
    )
    figure.update_xaxes(tickvals=[0, 1], ticktext=["QPT", "PySCF"], range=[-0.6, 1.6], title="")
    figure.update_yaxes(title="orbital energy, eV")
    figure.update_layout(
        # At the left and with few buttons, which would cover it: the diagram is narrow.
        title={"text": "Levels: click one", "x": 0.02, "xanchor": "left"}, height=380, hovermode="closest",
        legend=_legend_below(-0.12),
    )
    _dress(figure)
    figure.layout.modebar.remove += ("zoomIn2d", "zoomOut2d", "autoScale2d", "pan2d")
    return figure


def fill_levels(
    figure: go.Figure, predicted: np.ndarray, truth: np.ndarray, nocc: int, chosen: int | None
) -> None:
    """Put levels into a figure of `levels_figure`; points carry the number of their orbital as `customdata`.

    Args:
      figure: the diagram.
      predicted: orbital energies, hartree.
      truth: PySCF's, hartree.
      nocc: number of occupied orbitals.
      chosen: the orbital that is marked, from 0.
    """
    seen = np.flatnonzero(np.asarray(truth) > CORE_HARTREE)
    seen = seen[seen < nocc + 1 + EMPTY_LEVELS]
    for x, levels in enumerate((predicted, truth)):
        for kind, own in enumerate((seen[seen < nocc], seen[seen >= nocc])):
            figure.data[2 * x + kind].update(
                x=[x] * len(own), y=(np.asarray(levels)[own] * HARTREE_EV).tolist(), customdata=own.tolist(),
                text=[str(i + 1) for i in own],
            )
    both = [] if chosen is None else [float(levels[chosen]) * HARTREE_EV for levels in (predicted, truth)]
    figure.data[4].update(x=[0, 1][: len(both)], y=both)


def gap_ev(mo_energy: np.ndarray, nocc: int) -> float:
    """From the highest occupied to the lowest empty orbital, eV; NaN where none is empty."""
    return float(mo_energy[nocc] - mo_energy[nocc - 1]) * HARTREE_EV if nocc < len(mo_energy) else float("nan")


def convergence_figure(names: Sequence[str]) -> go.Figure:
    """An empty figure for `convergence_traces`: one curve for each way to the ground state."""
    figure = go.Figure()
    for index, name in enumerate(names):
        colour, dash = (BLUE, VERMILLION, GREEN, ORANGE, SKY)[index % 5], DASHES[index % 5]
        figure.add_scatter(name=name, mode="lines+markers", line={"color": colour, "dash": dash}, marker={"size": 5})
    figure.update_xaxes(title="iteration", type="log", dtick=1)  # some ways need ten steps, others hundreds
    figure.update_yaxes(title="E − E(ground state), meV", type="log", dtick=2, exponentformat="power")
    figure.update_layout(
        title="Ways to the ground state", height=380, showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def convergence_traces(energies: Sequence[np.ndarray], lowest: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """X and y of every trace of `convergence_figure`, in its order.

    Args:
      energies: of each curve, hartree, from iteration 0 on, which is not drawn; nor is what is NaN.
      lowest: energy of the ground state, hartree.
    """
    traces = []
    for curve in energies:
        above = (np.asarray(curve) - lowest) * HARTREE_MEV
        seen = 1 + np.flatnonzero(above[1:] > 0)  # rounding may take the last ones below: no logarithm
        traces.append((thin(seen), thin(above[seen])))
    return traces


def iterations_figure(
    numbers: Sequence[int], with_network: Sequence[float], without: Sequence[float]
) -> go.Figure:
    """Energy error against the number of DFT iterations, meV, with and without a network before them."""
    figure = go.Figure()
    for name, values, colour, mark in (
        ("network, then iterations", with_network, BLUE, "circle"), ("iterations alone", without, ORANGE, "x"),
    ):
        figure.add_scatter(
            x=list(numbers), y=list(values), name=name, mode="lines+markers", line={"color": colour},
            marker={"symbol": mark, "size": 8},
        )
    figure.update_xaxes(title="DFT iterations n", dtick=1)
    figure.update_yaxes(title="energy MAE, meV", type="log", dtick=1, exponentformat="power")
    figure.update_layout(
        title="What iterations add to a prediction", height=380, showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def study_figure(rows: Sequence[dict]) -> go.Figure:
    """Energy error against training time, for every setting and seed of a study (`studies.measure`)."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = go.Figure()
    for row in rows:
        index = settings.index(row["setting"])
        seconds, errors = zip(*row["curve"], strict=True)
        figure.add_scatter(
            x=list(seconds), y=list(errors), name=row["setting"], legendgroup=row["setting"], mode="lines+markers",
            line={"color": (BLUE, VERMILLION, GREEN, ORANGE, SKY)[index % 5], "dash": DASHES[index % 5]},
            showlegend=row["seed"] == 0,
        )
    figure.update_xaxes(title="seconds, compilation, geometries and labels included", type="log", dtick=1)
    figure.update_yaxes(title="energy MAE, meV", type="log", dtick=1, exponentformat="power")
    figure.update_layout(
        title="Error on unseen geometries", height=400, showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def heatmaps(
    matrices: Mapping[str, np.ndarray], labels: Sequence[str], columns: int = 2, *, labelled: bool = True
) -> go.Figure:
    """Matrices over atomic orbitals beside each other, each on a scale of its own that is white at zero.

    Args:
      matrices: their titles, and [nao, nao] each.
      labels: of the orbitals, such as `Template.ao_labels`.
      columns: of the figure.
      labelled: write the labels along the axes; they show on hovering, too.
    """
    rows = -(-len(matrices) // columns) or 1
    # Room for the labels and the colour bar.
    figure = make_subplots(
        rows, columns, subplot_titles=list(matrices), horizontal_spacing=(0.44 if labelled else 0.26) / columns,
        vertical_spacing=0.28 / rows,
    )
    for index, (name, matrix) in enumerate(matrices.items()):
        row, col = divmod(index, columns)
        values = np.asarray(matrix)
        place = figure.get_subplot(row + 1, col + 1)
        (_, right), (bottom, top) = place.xaxis.domain, place.yaxis.domain  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        limit = float(np.abs(values).max()) or 1.0
        figure.add_heatmap(
            z=values.tolist(), x=list(labels), y=list(labels), name=name, row=row + 1, col=col + 1,
            colorscale="RdBu", zmid=0, zmin=-limit, zmax=limit,
            colorbar={"x": right + 0.005, "y": (bottom + top) / 2, "len": top - bottom, "thickness": 10},
            hovertemplate="%{y}, %{x}: %{z:.4f}<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 9}, showticklabels=labelled)
    figure.update_xaxes(tickangle=-90, tickfont={"size": 9}, showticklabels=labelled)
    figure.update_layout(height=(340 if columns < 4 else 290) * rows + 60)
    figure.update_annotations(font_size=16 if columns < 4 else 12)
    return _dress(figure)


def _legend_below(y: float) -> dict:
    """A legend in a row under the plots; `y` is where, in heights of the plot."""
    return {"orientation": "h", "y": y, "x": 0.5, "xanchor": "center"}


def _dress(figure: go.Figure) -> go.Figure:
    """What every figure has in common."""
    figure.update_layout(
        template="none",
        autosize=True,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        margin={"l": 70, "r": 20, "t": 40, "b": 90},
        # "Share chart" uploads to a server of plotly's.
        modebar={"remove": ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d"]},
        uirevision="keep the zoom",
    )
    axis = {"showgrid": True, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False,
            "linecolor": INK, "showline": True, "ticks": "outside"}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def fill(figure: go.Figure, traces: Sequence[tuple]) -> None:
    """Put new x and y into every trace of a figure.

    Some traces bring a third thing, the texts of their points, and a fourth, their symbols.
    """
    for index, (x, y, *rest) in enumerate(traces):
        new = {"x": x, "y": y}
        if rest:
            texts, symbols = rest
            new |= {"text": texts, "marker_symbol": symbols}
        figure.update_traces(**new, selector=index)
