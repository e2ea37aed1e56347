"""Plotly figures of results. They hold no state and need no widgets.

Colours are those of Okabe and Ito, which colour-blind people can tell apart, and two lines never differ by colour
alone. Backgrounds are transparent and text is mid-grey, so that both can be read on light and dark pages.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Array, Float, Shaped
from plotly.subplots import make_subplots

from qptlab.evaluation.comparison import Evaluation
from qptlab.evaluation.reference import energy_errors_mev
from qptlab.gui.profiling import Profile
from qptlab.models.contract import title_of
from qptlab.units import CHEMICAL_ACCURACY_MEV, HARTREE_EV, HARTREE_MEV

BLUE, ORANGE, GREEN, VERMILLION, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
PURPLE = "#CC79A7"
OTHERS = (PURPLE, GREEN, VERMILLION, ORANGE, SKY)
INK = "#808080"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MAX_POINTS = 2000
"""Largest number of points per trace; the eye does not see more."""
CORE_HARTREE = -2.0
"""Energy below which an orbital is a core orbital, hartree. Core orbitals are not drawn: on their scale all valence
orbitals would coincide."""

TRACES = ("training energy", "validation error, mean", "validation error, largest")
"""Names of the first three traces of `training_figure`."""

LOSS_TITLES = {True: "Loss: mean energy", False: "Loss"}
"""Title of the left plot of a training, with and without energies, see `has_energies`."""

X_AXES = {"training time": ("seconds", "training time, s"), "step": ("step", "step, updates"),
          "new geometries": ("geometries", "new geometries, number")}
"""Quantities on the x axis of a training: column of the metrics table, and title."""

QUANTITIES = {
    "gradient norm": "gradient norm, unit of the loss", "learning rate": "learning rate, per update",
    "waiting for data": "waiting for data, %", "steps per second": "updates, per second",
    "new geometries per second": "new geometries, per second",
    "memory": "memory in use, MiB",
}
"""Quantities that the third plot of a training can show, and their titles."""

MARKS = {"checkpoint": "diamond", "skipped": "x", "compiling": "square", "note": "star", "error": "cross"}
"""Symbols that mark events on a curve, by kind of event."""


def thin(values: Shaped[np.ndarray, " n"], limit: int = MAX_POINTS) -> Shaped[np.ndarray, " m"]:
    """Return at most `limit` of the values, evenly spaced, including the first and the last.

    >>> thin(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).round().astype(int)]


def training_figure(compared: Sequence[str] = ()) -> go.Figure:
    """Return an empty figure for `training_traces`: energy, validation error, and one more quantity.

    Args:
      compared: names of other runs in the same figure.
    """
    figure = make_subplots(
        cols=3, horizontal_spacing=0.1, column_widths=[0.34, 0.38, 0.28],
        subplot_titles=(LOSS_TITLES[True], "Error on unseen geometries", "Gradient norm"),
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
    """Return x and y of every trace of `training_figure`, in its order; for events also texts and symbols.

    Args:
      rows: rows of the metrics table.
      zero: energy that is subtracted in the left plot, hartree; without effect if the loss needs no energy.
      x_axis: quantity on the x axis, one of `X_AXES`.
      quantity: quantity of the third plot, one of `QUANTITIES`.
      smoothing: number of steps over which energy and quantity are averaged.
      events: kind, text and step of the events to mark; kinds that are not in `MARKS` are left out.
      compared: rows of the other runs.
    """
    column = X_AXES[x_axis][0]
    x = np.array([row[column] for row in rows])
    energy = _smooth(_loss(rows, zero), smoothing)
    validated, validated_x = _validated(rows, column)
    traces: list[tuple] = [(thin(x), thin(energy))]
    for name in ("validation_mae_mev", "validation_max_mev"):
        traces.append((thin(validated_x), thin(np.array([row[name] for row in validated]))))
    span = np.array([0.0, x[-1]]) if len(x) else np.array([])
    levels = [
        validated[-1].get("no_network_mae_mev") if validated else None,
        validated[-1].get("pyscf_stopped_mae_mev") if validated else None,
        CHEMICAL_ACCURACY_MEV,
        1.0,
    ]
    for level in levels:
        is_drawn = level is not None and len(span)
        traces.append((span, np.full(2, level)) if is_drawn else (np.array([]), np.array([])))
    traces.append(_marks(rows, x, energy, events))
    traces.append((thin(x), thin(_smooth(_quantity(rows, quantity), smoothing))))
    for other in compared:
        other_x = np.array([row[column] for row in other])
        validated, validated_x = _validated(other, column)
        traces.append((thin(validated_x), thin(np.array([row["validation_mae_mev"] for row in validated]))))
        traces.append((thin(other_x), thin(_smooth(_quantity(other, quantity), smoothing))))
    return traces


def has_energies(rows: Sequence[dict]) -> bool:
    """Return true if the loss of a training needs energies; the left plot then shows them, and otherwise the loss."""
    return not rows or any(np.isfinite(row["energy_ha"]) for row in (rows[0], rows[-1]))


def _loss(rows: Sequence[dict], zero: float) -> Shaped[np.ndarray, " n"]:
    """Return the mean energy of every step, eV above `zero`; or the loss, if it needs no energy."""
    if has_energies(rows):
        return np.array([(row["energy_ha"] - zero) * HARTREE_EV for row in rows])
    return np.array([row["loss"] for row in rows])


def _validated(rows: Sequence[dict], column: str) -> tuple[list[dict], Shaped[np.ndarray, " n"]]:
    """Return the rows that have a validation error, and their values in a column."""
    validated = [row for row in rows if "validation_mae_mev" in row]
    return validated, np.array([row[column] for row in validated])


def _marks(
    rows: Sequence[dict], x: Shaped[np.ndarray, " n"], y: Shaped[np.ndarray, " n"],
    events: Sequence[tuple[str, str, int]],
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Return x, y, text and symbol of each event that is marked on the curve."""
    row_of_step = {int(row["step"]): index for index, row in enumerate(rows)}
    marked = [
        (row_of_step[max(step, 1)], kind, text)
        for kind, text, step in events
        if kind in MARKS and max(step, 1) in row_of_step
    ][-MAX_POINTS:]
    indices = [index for index, _, _ in marked]
    texts = [f"{kind}, step {int(rows[index]['step'])}: {text}" for index, kind, text in marked]
    symbols = [MARKS[kind] for _, kind, _ in marked]
    return x[indices] if marked else x[:0], y[indices] if marked else y[:0], texts, symbols


def _quantity(rows: Sequence[dict], name: str) -> Shaped[np.ndarray, " n"]:
    """Return one of `QUANTITIES` at every step."""
    columns = {"gradient norm": "grad_norm", "learning rate": "learning_rate", "memory": "memory_mib"}
    if name in columns:
        return np.array([row.get(columns[name], np.nan) for row in rows])
    seconds = np.diff([0.0, *(row["seconds"] for row in rows)])
    if name == "waiting for data":
        return 100 * np.array([row["data_wait_s"] for row in rows]) / np.maximum(seconds, 1e-9)
    if name == "steps per second":
        return np.diff([0.0, *(row["step"] for row in rows)]) / np.maximum(seconds, 1e-9)
    return np.diff([0.0, *(row["geometries"] for row in rows)]) / np.maximum(seconds, 1e-9)


def _smooth(values: Shaped[np.ndarray, " n"], span: int) -> Shaped[np.ndarray, " n"]:
    """Return the mean of the last `span` values at every step, or of all values if there are fewer."""
    if span <= 1 or len(values) == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - span)
    return (sums[ends] - sums[starts]) / (ends - starts)


def parity_figure() -> go.Figure:
    """Return an empty figure for `parity_traces`: energies, orbital energies, and errors against estimates."""
    figure = make_subplots(
        cols=3, horizontal_spacing=0.1,
        subplot_titles=("Total energy", "Valence orbitals and LUMO", "Error and its estimate"),
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
            mode="markers", marker={"color": BLUE, "size": 6}, name="model", row=1, col=col, showlegend=col == 1
        )
    for name, colour, mark in (("no network", ORANGE, "x-thin-open"), ("model", BLUE, "circle")):
        figure.add_scatter(
            mode="markers", marker={"color": colour, "symbol": mark, "size": 7}, name=name, row=1, col=3,
            showlegend=False,
        )
    figure.add_scatter(
        mode="lines", line={"color": INK, "width": 1, "dash": "dot"}, name="equal", row=1, col=3, showlegend=False
    )
    for col in (1, 2):
        figure.update_xaxes(title="PySCF, eV", row=1, col=col)
        figure.update_yaxes(title="predicted, eV", row=1, col=col)
    figure.update_xaxes(title="estimated error, meV", type="log", exponentformat="power", nticks=5, row=1, col=3)
    figure.update_yaxes(title="energy error, meV", type="log", exponentformat="power", nticks=6, row=1, col=3)
    figure.update_layout(height=340, legend=_legend_below(-0.32))
    return _dress(figure)


def lowest_energies(evaluation: Evaluation) -> list[float]:
    """Return for each geometry PySCF's lowest energy among all geometries of its molecule, hartree."""
    lowest: dict[int, float] = {}
    pairs = list(zip(map(id, evaluation.references.systems), evaluation.references.converged, strict=True))
    for system, answer in pairs:
        lowest[system] = min(answer.energy, lowest.get(system, answer.energy))
    return [lowest[system] for system, _ in pairs]


def parity_traces(evaluation: Evaluation) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return x and y of every trace of `parity_figure`, in its order; energies are relative to `lowest_energies`."""
    test_set, zeros = evaluation.references, lowest_energies(evaluation)
    valence = [
        np.arange(answer.nocc + 1)[answer.mo_energy[: answer.nocc + 1] > CORE_HARTREE]
        for answer in test_set.converged
    ]
    traces = []
    for pick in (
        lambda answer, zero, _: np.array([float(answer.energy) - zero]),
        lambda answer, _, orbitals: np.asarray(answer.mo_energy)[orbitals],
    ):
        exact, plain, model = (
            np.concatenate([pick(*row) for row in zip(answers, zeros, valence, strict=True)]) * HARTREE_EV
            for answers in (test_set.converged, test_set.no_network, evaluation.predictions)
        )
        ends = np.array([exact.min(), exact.max()])
        traces += [(ends, ends), (thin(exact), thin(plain)), (thin(exact), thin(model))]
    answers, ends = test_set.same_fit or test_set.converged, []
    for predictions in (test_set.no_network, evaluation.predictions):
        errors = np.abs(energy_errors_mev(predictions, answers))
        estimates = np.abs([float(p.energy_error) * HARTREE_MEV for p in predictions])
        traces.append((thin(estimates), thin(errors)))
        ends += [estimates.min(), estimates.max()]
    diagonal = np.array([min(ends), max(ends)])
    return [*traces, (diagonal, diagonal)]


def errors_figure(evaluation: Evaluation) -> go.Figure:
    """Return the energy error of every geometry, of the model and of PySCF's baselines, on a logarithmic axis."""
    figure = go.Figure()
    test_set = evaluation.test_set
    errors = {title_of(evaluation.kind): evaluation.energy_errors_mev}
    if test_set is not None:
        errors |= {
            name: energy_errors_mev(predictions, test_set.converged)
            for name, predictions in (
                ("no network", test_set.no_network), ("PySCF, same Fock builds", test_set.stopped),
            )
        }
    marks = ((BLUE, "circle"), (ORANGE, "x"), (GREEN, "diamond-open"))
    for (name, values), (colour, mark) in zip(errors.items(), marks, strict=False):
        figure.add_scatter(
            x=np.arange(len(values)).tolist(), y=np.abs(values).tolist(), name=name, mode="markers",
            marker={"color": colour, "symbol": mark, "size": 8},
        )
    figure.update_xaxes(title="geometry, number")
    figure.update_yaxes(title="|energy error|, meV", type="log", exponentformat="power", nticks=6)
    figure.update_layout(
        title="Error of each geometry (click one to show it)", height=340, hovermode="closest", showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def histogram_figure(evaluation: Evaluation) -> go.Figure:
    """Return a histogram of the signed energy errors of the model."""
    figure = go.Figure()
    figure.add_histogram(x=evaluation.energy_errors_mev.tolist(), name=title_of(evaluation.kind),
                         marker={"color": BLUE}, nbinsx=20)
    figure.update_xaxes(title="energy error, meV")
    figure.update_yaxes(title="geometries, number")
    figure.update_layout(title="Distribution of the energy errors", height=340, showlegend=True)
    return _dress(figure)


def matrix_errors_figure(errors: Float[np.ndarray, "natm natm"], atoms: Sequence[str]) -> go.Figure:
    """Return a heatmap of the error of the Fock matrix for each pair of atoms, µHa."""
    figure = go.Figure()
    figure.add_heatmap(
        z=np.asarray(errors).tolist(), x=list(atoms), y=list(atoms), colorscale="Cividis", name="Fock error",
        colorbar={"title": {"text": "µHa"}}, hovertemplate="%{y}, %{x}: %{z:.3g} µHa<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", title="atom")
    figure.update_xaxes(title="atom")
    figure.update_layout(title="Mean |error| of the Fock matrix for each pair of atoms", height=340)
    return _dress(figure)


def times_figure(evaluation: Evaluation) -> go.Figure:
    """Return the time per geometry of the model and of PySCF."""
    figure = go.Figure()
    names = (f"{title_of(evaluation.kind)}, all cores", f"PySCF to convergence, {evaluation.pyscf_threads} threads")
    figure.add_bar(
        x=[evaluation.seconds_per_geometry, evaluation.pyscf_seconds_per_geometry], y=list(names), orientation="h",
        marker={"color": [BLUE, GREEN]}, name="time",
    )
    figure.update_xaxes(title="time per geometry, s")
    figure.update_layout(title="Time per geometry", height=240)
    return _dress(figure).update_layout(margin={"l": 240})


def attention_figure(
    weights: Float[np.ndarray, "ntoken ntoken"], matrix: Float[np.ndarray, "ntoken ntoken"] | None, name: str,
    labels: Sequence[str], *, is_signed: bool = True, labelled: bool = True,
) -> go.Figure:
    """Return a head's attention between atomic orbitals or shells, and a matrix to compare with.

    Args:
      weights: attention of the row's token to the column's token.
      matrix: the matrix; None if there is none.
      name: title of the matrix.
      labels: names of the tokens.
      is_signed: if true, the colours of the matrix are white at zero; if false, they span its values.
      labelled: if true, write the names along the axes.
    """
    matrices = {"attention": weights} | ({} if matrix is None else {name: matrix})
    figure = heatmaps(matrices, labels, columns=2, labelled=labelled)
    figure.data[0].update(colorscale="Cividis", zmid=None, zmin=0.0, zmax=float(np.max(weights)) or 1.0)
    if matrix is not None and not is_signed:
        figure.data[1].update(
            colorscale="Cividis", zmid=None, zmin=float(np.min(matrix)), zmax=float(np.max(matrix))
        )
    return figure


def mixing_figure(mixing: Shaped[np.ndarray, " nbias"], names: Sequence[str]) -> go.Figure:
    """Return the coefficients with which the matrices bias a head."""
    figure = go.Figure()
    figure.add_bar(x=list(names), y=np.asarray(mixing).tolist(), marker={"color": BLUE}, name="weight")
    figure.update_xaxes(title="matrix of the guess", tickangle=-40)
    figure.update_yaxes(title="weight in the logits, scale 1")
    figure.update_layout(title="Biases of this head", height=300)
    return _dress(figure).update_layout(margin={"b": 110})


def correlation_figure(correlations: Shaped[np.ndarray, " nmatrix"], names: Sequence[str]) -> go.Figure:
    """Return the correlations of a head's attention with matrices of the guess."""
    figure = go.Figure()
    figure.add_bar(x=list(names), y=np.asarray(correlations).tolist(), marker={"color": BLUE}, name="correlation")
    figure.update_xaxes(title="matrix of the guess", tickangle=-40)
    figure.update_yaxes(title="correlation, scale 1", range=[-1, 1])
    figure.update_layout(title="Correlation with the attention of this head", height=300)
    return _dress(figure).update_layout(margin={"b": 110})


def timeline_figure(profile: Profile) -> go.Figure:
    """Return operations against time, one row for each thread or stream, one colour for each compiled function."""
    figure = go.Figure()
    lanes = sorted({span.lane for span in profile.timeline})
    functions = sorted({span.function for span in profile.timeline})
    for index, function in enumerate(functions):
        spans = [span for span in profile.timeline if span.function == function]
        figure.add_bar(
            base=[span.start * 1e3 for span in spans], x=[span.length * 1e3 for span in spans],
            y=[f"{lanes.index(span.lane) + 1}" for span in spans], orientation="h", name=function,
            marker={"color": (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE)[index % 6], "line": {"width": 0},
                    "pattern": {"shape": ("", "/", ".", "x", "-", "|")[index % 6]}},
            text=[span.name for span in spans], textposition="none",
            hovertemplate="%{text}: %{x:.3f} ms<extra>" + function + "</extra>",
        )
    figure.update_xaxes(title="time, ms")
    figure.update_yaxes(title="stream, number" if profile.is_accelerator else "thread, number")
    figure.update_layout(
        title="Timeline of the operations", height=340, barmode="overlay", showlegend=True,
        legend=_legend_below(-0.36),
    )
    return _dress(figure)


def roofline_figure(profile: Profile) -> go.Figure:
    """Return the roofline of the device with the compiled functions: speed against operations per byte."""
    figure = go.Figure()
    counted = [e for e in profile.executables if e.seconds > 0 and e.flops > 0 and e.nbytes > 0]
    counted.sort(key=lambda executable: executable.flops * executable.calls / executable.seconds)
    x = np.array([profile.ridge / 1e3, profile.ridge, profile.ridge * 30])
    for name, peak, dash in (("float64", profile.peak_flops, "solid"), ("float32", profile.peak_flops32, "dash")):
        figure.add_scatter(
            x=x.tolist(), y=np.minimum(x * profile.peak_bytes, peak).tolist(), mode="lines", name=f"roof, {name}",
            line={"color": INK, "dash": dash},
        )
    for index, executable in enumerate(counted):
        figure.add_scatter(
            x=[executable.flops / executable.nbytes], y=[executable.flops * executable.calls / executable.seconds],
            mode="markers+text", text=[("≥ " if executable.has_loops else "") + executable.name], showlegend=False,
            # Sorted by speed, neighbours have their names on different sides.
            textposition=("bottom center", "top center")[index % 2],
            marker={"size": 11, "color": OTHERS[index % 5], "symbol": ("circle", "diamond", "square")[index % 3]},
        )
    figure.update_xaxes(title="intensity, operations per byte", type="log", dtick=1)
    figure.update_yaxes(title="operations per second", type="log", dtick=1, exponentformat="power")
    figure.update_layout(
        title="Roofline, measured on this machine", height=340, showlegend=True,
        legend=_legend_below(-0.36),
    )
    return _dress(figure)


EMPTY_LEVELS = 6
"""Number of orbitals above the LUMO that are drawn."""


def levels_figure() -> go.Figure:
    """Return an empty diagram of orbital energies, predicted and from PySCF, for `fill_levels`."""
    figure = go.Figure()
    for source in ("model", "PySCF"):
        for kind, colour, width in (("occupied", BLUE, 2.5), ("empty", ORANGE, 1.5)):
            figure.add_scatter(
                mode="markers", name=kind, legendgroup=kind, showlegend=source == "model",
                marker={"symbol": "line-ew", "size": 46, "line": {"width": width, "color": colour}},
                hovertemplate="orbital %{text}: %{y:.3f} eV<extra>" + source + "</extra>",
            )
    figure.add_scatter(
        mode="lines+markers", name="selected", line={"color": VERMILLION, "width": 1, "dash": "dot"},
        marker={"symbol": "diamond-open", "size": 11}, hoverinfo="skip",
    )
    figure.update_xaxes(tickvals=[0, 1], ticktext=["model", "PySCF"], range=[-0.6, 1.6], title="")
    figure.update_yaxes(title="orbital energy, eV")
    figure.update_layout(
        # The title is at the left and there are few buttons, because they would cover it: the diagram is narrow.
        title={"text": "Click a level", "x": 0.02, "xanchor": "left", "font": {"size": 14}},
        height=380, hovermode="closest", legend=_legend_below(-0.12),
    )
    _dress(figure)
    figure.layout.modebar.remove += ("zoomIn2d", "zoomOut2d", "autoScale2d", "pan2d")
    return figure


def fill_levels(
    figure: go.Figure, predicted: Float[Array | np.ndarray, " nmo"], reference: Float[np.ndarray, " nmo"], nocc: int,
    selected: int | None,
) -> None:
    """Put orbital energies into a figure of `levels_figure`; `customdata` of a point is the number of its orbital.

    Args:
      figure: the diagram.
      predicted: orbital energies, hartree.
      reference: orbital energies from PySCF, hartree.
      nocc: number of occupied orbitals.
      selected: orbital that is marked, from 0; None for no mark.
    """
    drawn = np.flatnonzero(np.asarray(reference) > CORE_HARTREE)
    drawn = drawn[drawn < nocc + 1 + EMPTY_LEVELS]
    for x, levels in enumerate((predicted, reference)):
        for kind, orbitals in enumerate((drawn[drawn < nocc], drawn[drawn >= nocc])):
            figure.data[2 * x + kind].update(
                x=[x] * len(orbitals), y=(np.asarray(levels)[orbitals] * HARTREE_EV).tolist(),
                customdata=orbitals.tolist(), text=[str(i + 1) for i in orbitals],
            )
    marks = [] if selected is None else [float(levels[selected]) * HARTREE_EV for levels in (predicted, reference)]
    figure.data[4].update(x=[0, 1][: len(marks)], y=marks)


def gap_ev(mo_energy: Float[Array | np.ndarray, " nmo"], nocc: int) -> float:
    """Return the difference of LUMO and HOMO energy, eV; NaN if there is no empty orbital."""
    return float(mo_energy[nocc] - mo_energy[nocc - 1]) * HARTREE_EV if nocc < len(mo_energy) else float("nan")


def convergence_figure(names: Sequence[str]) -> go.Figure:
    """Return an empty figure for `convergence_traces`: one curve for each algorithm."""
    figure = go.Figure()
    for index, name in enumerate(names):
        colour, dash = (BLUE, VERMILLION, GREEN, ORANGE, SKY)[index % 5], DASHES[index % 5]
        figure.add_scatter(name=name, mode="lines+markers", line={"color": colour, "dash": dash}, marker={"size": 5})
    figure.update_xaxes(title="iteration", type="log", dtick=1)  # from ten to hundreds of iterations
    figure.update_yaxes(title="E − E(ground state), meV", type="log", dtick=2, exponentformat="power")
    figure.update_layout(
        title="Convergence to the ground state", height=380, showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def convergence_traces(
    energies: Sequence[Shaped[np.ndarray, " _n"]], lowest: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return x and y of every trace of `convergence_figure`, in its order.

    Args:
      energies: energies of each curve, hartree, from iteration 0 on. Iteration 0 and NaN are not drawn.
      lowest: energy of the ground state, hartree.
    """
    traces = []
    for curve in energies:
        above = (np.asarray(curve) - lowest) * HARTREE_MEV
        drawn = 1 + np.flatnonzero(above[1:] > 0)  # rounding may make the last ones negative: no logarithm
        traces.append((thin(drawn), thin(above[drawn])))
    return traces


def iterations_figure(
    numbers: Sequence[int], with_network: Sequence[float], without: Sequence[float]
) -> go.Figure:
    """Return energy errors, meV, against the number of DFT iterations, with and without a network before them."""
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
        title="Effect of DFT iterations on a prediction", height=380, showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def study_figure(rows: Sequence[dict]) -> go.Figure:
    """Return the energy error against training time, for every setting and seed of a study (`studies.measure`)."""
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
    figure.update_xaxes(title="time including compilation, geometries and labels, s", type="log", dtick=1)
    figure.update_yaxes(title="energy MAE, meV", type="log", dtick=1, exponentformat="power")
    figure.update_layout(
        title="Error on unseen geometries", height=400, showlegend=True,
        legend=_legend_below(-0.25),
    )
    return _dress(figure)


def heatmaps(
    matrices: Mapping[str, Shaped[Array | np.ndarray, "nao nao"]], labels: Sequence[str], columns: int = 2, *,
    labelled: bool = True,
) -> go.Figure:
    """Return heatmaps of matrices over atomic orbitals; each has its own scale, which is white at zero.

    Args:
      matrices: matrices by title, of shape [nao, nao].
      labels: names of the atomic orbitals, such as `Template.ao_labels`.
      columns: number of heatmaps per row.
      labelled: if true, write the names along the axes; they are always shown at the mouse pointer.
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
        subplot = figure.get_subplot(row + 1, col + 1)
        (_, right), (bottom, top) = subplot.xaxis.domain, subplot.yaxis.domain  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
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
    """Return the layout of a legend in one row below the plots.

    Args:
      y: position, in units of the plot's height.
    """
    return {"orientation": "h", "y": y, "x": 0.5, "xanchor": "center"}


def _dress(figure: go.Figure) -> go.Figure:
    """Set fonts, margins, colours and buttons that all figures share, and return the figure."""
    figure.update_layout(
        template="none",
        autosize=True,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        margin={"l": 70, "r": 20, "t": 40, "b": 90},
        # "Share chart" uploads data to a server of plotly.
        modebar={"remove": ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d"]},
        uirevision="keep the zoom",
    )
    axis = {"showgrid": True, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False,
            "linecolor": INK, "showline": True, "ticks": "outside"}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def fill(figure: go.Figure, traces: Sequence[tuple]) -> None:
    """Set x and y of every trace of a figure, and the texts and symbols of points for traces that have them.

    Args:
      figure: the figure.
      traces: a tuple (x, y) or (x, y, texts, symbols) for each trace.
    """
    for index, (x, y, *points) in enumerate(traces):
        new = {"x": x, "y": y}
        if points:
            texts, symbols = points
            new |= {"text": texts, "marker_symbol": symbols}
        figure.update_traces(**new, selector=index)
