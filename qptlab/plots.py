"""Results as plotly figures: no state, no widgets.

Colours are Okabe and Ito's, told apart by colour-blind eyes, and never the only difference between
two lines. Backgrounds are transparent and lettering mid-grey, readable on light and dark pages.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qptlab.evaluation import Evaluation
from qptlab.reference import energy_errors_mev
from qptlab.units import CHEMICAL_ACCURACY_MEV, HARTREE_EV, HARTREE_MEV

BLUE, ORANGE, GREEN, VERMILLION, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
INK = "#808080"
MAX_POINTS = 2000
"""Per trace: more would be sent to the browser without being seen."""
CORE_HARTREE = -2.0
"""Levels below are core levels; drawn to scale, they would leave valence levels in one spot."""

TRACES = ("training energy", "validation error, mean", "validation error, largest")


def thin(values: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """At most `limit` of the values, evenly spread, the last among them.

    >>> thin(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).round().astype(int)]


def training_figure() -> go.Figure:
    """An empty figure for `training_traces`: energy on the left, validation error on the right."""
    figure = make_subplots(
        cols=2, horizontal_spacing=0.11,
        subplot_titles=("Loss: mean DFT energy of the batch", "Error on unseen geometries"),
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
    figure.update_xaxes(title="training time, s")
    figure.update_yaxes(title="E, eV", row=1, col=1)
    figure.update_yaxes(
        title="energy error, meV", type="log", dtick=1, exponentformat="power", row=1, col=2
    )
    figure.update_layout(height=380, legend={"orientation": "h", "y": -0.3, "x": 0.5, "xanchor": "center"})
    return _dress(figure)


def training_traces(rows: Sequence[dict], zero: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """X and y of every trace of `training_figure`, in its order.

    Args:
      rows: of the metrics table.
      zero: the energy that the left plot is drawn against, hartree.
    """
    seconds = np.array([row["seconds"] for row in rows])
    energy = np.array([row["energy_ha"] for row in rows])
    judged = [row for row in rows if "validation_mae_mev" in row]
    when = np.array([row["seconds"] for row in judged])
    traces = [(thin(seconds), thin((energy - zero) * HARTREE_EV))]
    for column in ("validation_mae_mev", "validation_max_mev"):
        traces.append((thin(when), thin(np.array([row[column] for row in judged]))))
    span = np.array([0.0, seconds[-1]]) if len(seconds) else np.array([])
    levels = [
        judged[-1]["no_network_mae_mev"] if judged else None,
        judged[-1]["pyscf_stopped_mae_mev"] if judged else None,
        CHEMICAL_ACCURACY_MEV,
        1.0,
    ]
    for level in levels:
        known = level is not None and len(span)
        traces.append((span, np.full(2, level)) if known else (np.array([]), np.array([])))
    return traces


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
    figure.update_layout(height=340, legend={"orientation": "h", "y": -0.32, "x": 0.5, "xanchor": "center"})
    return _dress(figure)


def lowest_energies(found: Evaluation) -> list[float]:
    """PySCF's energy of the most stable geometry of each geometry's molecule, hartree."""
    lowest: dict[int, float] = {}
    pairs = list(zip(map(id, found.test_set.systems), found.test_set.converged, strict=True))
    for system, answer in pairs:
        lowest[system] = min(answer.energy, lowest.get(system, answer.energy))
    return [lowest[system] for system, _ in pairs]


def parity_traces(found: Evaluation) -> list[tuple[np.ndarray, np.ndarray]]:
    """X and y of every trace of `parity_figure`, in its order; energies above `lowest_energies`."""
    zeros = lowest_energies(found)
    frontier = [
        np.arange(answer.nocc + 1)[answer.mo_energy[: answer.nocc + 1] > CORE_HARTREE]
        for answer in found.test_set.converged
    ]
    traces = []
    for pick in (
        lambda answer, zero, _: np.array([float(answer.energy) - zero]),
        lambda answer, _, levels: np.asarray(answer.mo_energy)[levels],
    ):
        truth, plain, model = (
            np.concatenate([pick(*given) for given in zip(answers, zeros, frontier, strict=True)]) * HARTREE_EV
            for answers in (found.test_set.converged, found.test_set.no_network, found.predictions)
        )
        ends = np.array([truth.min(), truth.max()])
        traces += [(ends, ends), (thin(truth), thin(plain)), (thin(truth), thin(model))]
    answers = found.test_set.same_fit or found.test_set.converged
    for predictions in (found.test_set.no_network, found.predictions):
        misses = np.abs(energy_errors_mev(predictions, answers))
        traces.append((thin(np.array([float(p.residual) for p in predictions])), thin(misses)))
    return traces


DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


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
        legend={"orientation": "h", "y": -0.25, "x": 0.5, "xanchor": "center"},
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
        legend={"orientation": "h", "y": -0.25, "x": 0.5, "xanchor": "center"},
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
        legend={"orientation": "h", "y": -0.25, "x": 0.5, "xanchor": "center"},
    )
    return _dress(figure)


def heatmaps(matrices: Mapping[str, np.ndarray], labels: Sequence[str], columns: int = 2) -> go.Figure:
    """Matrices over atomic orbitals beside each other, each on a scale of its own that is white at zero.

    Args:
      matrices: their titles, and [nao, nao] each.
      labels: of the orbitals, such as `Template.ao_labels`.
      columns: of the figure.
    """
    rows = -(-len(matrices) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(matrices), horizontal_spacing=0.44 / columns, vertical_spacing=0.28 / rows
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
    figure.update_yaxes(autorange="reversed", tickfont={"size": 9})
    figure.update_xaxes(tickangle=-90, tickfont={"size": 9})
    figure.update_layout(height=340 * rows + 60)
    return _dress(figure)


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


def fill(figure: go.Figure | go.FigureWidget, traces: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Put new x and y into every trace of a figure, in one message where it is live."""
    with figure.batch_update():
        for index, (x, y) in enumerate(traces):
            # Lists: plotly 7.1's live figures fail on the browser's echo of a numpy array.
            figure.update_traces(x=x.tolist(), y=y.tolist(), selector=index)


def widget(figure: go.Figure) -> go.FigureWidget:
    """A live figure that follows the width of its cell."""
    live = go.FigureWidget(figure)
    live._config = {**live._config, "responsive": True, "displaylogo": False}
    return live
