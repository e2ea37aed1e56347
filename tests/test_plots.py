"""Figures: their traces, titles and units."""

import base64
import io
import json

import cases
import numpy as np
import plotly.graph_objects as go
import plotly.offline
import pytest
from PIL import Image

import qptlab as ql
from qptlab.gui import pictures, plots
from qptlab.units import HARTREE_MEV

ROWS = [
    {"step": i + 1, "seconds": float(i), "energy_ha": -75.0 - 0.01 * i, "grad_norm": 1.0 / (i + 1), "geometries": i,
     "learning_rate": 1e-3, "data_wait_s": 0.1, "memory_mib": 500.0}
    for i in range(5000)
]
ROWS[10] |= {
    "validation_mae_mev": 12.0, "validation_max_mev": 20.0,
    "no_network_mae_mev": 2000.0, "pyscf_stopped_mae_mev": 900.0,
}


@pytest.mark.parametrize("make", [plots.training_figure, plots.parity_figure])
def test_figures_have_titles_and_units_and_no_button_that_uploads(make):
    figure = make()
    axes = [axis for name, axis in figure.layout.to_plotly_json().items() if name.startswith(("xaxis", "yaxis"))]
    assert all(", " in axis["title"]["text"] for axis in axes), "a quantity and its unit"
    assert {"sendChartToCloud", "sendDataToCloud"} <= set(figure.layout.modebar.remove)
    assert len(figure.layout.annotations) >= 2


def test_lines_differ_by_more_than_colour():
    lines = [(trace.line.dash, trace.mode, trace.line.width) for trace in plots.training_figure().data[1:]]
    assert len(set(lines)) == len(lines)


def test_long_trainings_are_thinned_and_keep_their_ends():
    traces = plots.training_traces(ROWS, -75.0)
    x, y = traces[0]
    assert len(x) == plots.MAX_POINTS
    assert (x[0], x[-1]) == (0.0, 4999.0)
    assert y[0] == 0.0


def test_the_error_is_drawn_with_two_baselines_and_two_marks():
    traces = plots.training_traces(ROWS, -75.0)
    figure = plots.training_figure()
    plots.fill(figure, traces)
    drawn = {trace.name: tuple(trace.y) for trace in figure.data}
    assert drawn["validation error, mean"] == (12.0,)
    assert drawn["no network"] == (2000.0, 2000.0)
    assert drawn["PySCF, same Fock builds"] == (900.0, 900.0)
    assert drawn["chemical accuracy"] == pytest.approx((43.364, 43.364))
    assert drawn["1 meV"] == (1.0, 1.0)


def test_before_the_first_validation_no_baseline_is_drawn():
    traces = plots.training_traces(ROWS[:5], -75.0)
    assert [len(trace[0]) for trace in traces] == [5, 0, 0, 0, 0, 2, 2, 0, 5]
    assert all(len(trace[0]) == 0 for trace in plots.training_traces([], 0.0))


def test_smoothing_averages_and_events_are_marked_where_they_happened():
    traces = plots.training_traces(
        ROWS[:100], -75.0, smoothing=3, x_axis="step",
        events=[("checkpoint", "saved", 50), ("status", "running", 51), ("note", "here", 0)],
    )
    energy = np.array([(row["energy_ha"] + 75.0) * HARTREE_MEV / 1e3 for row in ROWS[:100]])
    np.testing.assert_allclose(traces[0][1][2:], np.convolve(energy, np.ones(3) / 3, "valid"))
    x, y, texts, symbols = traces[7]
    assert x.tolist() == [50, 1]
    assert y[0] == pytest.approx(energy[47:50].mean())
    assert texts[0] == "checkpoint, step 50: saved"
    assert symbols == ["diamond", "star"]
    for quantity in plots.QUANTITIES:
        assert len(plots.training_traces(ROWS[:100], 0.0, quantity=quantity)[8][0]) == 100


def test_parity_plot_shows_every_geometry_and_orbital(trained):
    evaluation = ql.evaluate(trained.predictor, trained.validation)
    traces = plots.parity_traces(evaluation)
    assert [len(x) for x, _ in traces] == [2, 2, 2, 2, 10, 10, 2, 2, 2], "two geometries, five orbitals"
    diagonal, plain, model = traces[:3]
    np.testing.assert_array_equal(diagonal[0], diagonal[1])
    assert np.abs(model[1] - model[0]).max() < np.abs(plain[1] - plain[0]).max()
    estimates, errors = traces[7]
    np.testing.assert_allclose(estimates, errors, rtol=0.5, err_msg="the model's own estimate of its error")


def test_a_parity_plot_of_several_molecules_has_orbitals_and_zero_of_each():
    mols = [ql.Molecule.from_name(name) for name in ("ethanol", "water")]
    systems, kinds = ql.make_systems(mols, cases.QUICK_METHOD, cases.QUICK_MODEL)
    model = ql.CorrectionModel(cases.QUICK_MODEL, kinds)
    evaluation = ql.evaluate(ql.CorrectionPredictor(model, None, systems), mols)
    zeros = plots.lowest_energies(evaluation)
    assert zeros == [answer.energy for answer in evaluation.test_set.converged]
    traces = plots.parity_traces(evaluation)
    assert [len(x) for x, _ in traces[:3]] == [2, 2, 2]
    # Ethanol's 10 valence levels and LUMO, water's 4 and LUMO: core levels are left out.
    assert len(traces[4][0]) == 10 + 1 + 4 + 1


def test_live_figures_send_the_data_of_plain_ones():
    live = ql.plot(plots.training_figure())
    live.fill(plots.training_traces(ROWS[:20], -75.0))
    sent = json.loads(live.figure_json)["data"]
    seconds = np.frombuffer(base64.b64decode(sent[0]["x"]["bdata"]), sent[0]["x"]["dtype"])
    np.testing.assert_array_equal(seconds, np.arange(20))
    assert sent[1]["name"] == "validation error, mean"
    clicks = []
    live.on_click(lambda *where: clicks.append(where))
    live._receive(None, {"click": [3, 7]}, [])
    assert clicks == [(3, 7)]


def test_plots_share_one_copy_of_plotly():
    first, second = ql.plot(go.Figure()), ql.plot(go.Figure())
    assert len(first._esm) < 10_000
    assert first.library is second.library
    assert first.library.source.decode() == plotly.offline.get_plotlyjs()


def test_convergence_is_drawn_above_the_ground_state_from_the_first_iteration_on():
    curves = [np.array([-2.0, -0.5, -0.9, -1.0, np.nan]), np.array([0.0])]
    (x, y), (nothing, _) = plots.convergence_traces(curves, -1.0)
    assert x.tolist() == [1, 2]
    np.testing.assert_allclose(y, [0.5 * HARTREE_MEV, 0.1 * HARTREE_MEV])
    assert len(nothing) == 0
    figure = plots.convergence_figure(["plain", "DIIS"])
    plots.fill(figure, [(x, y), (nothing, nothing)])
    assert list(figure.data[0].x) == [1, 2]
    assert [trace.line.dash for trace in figure.data] == ["solid", "dash"]  # they differ without colour as well


def test_heatmaps_show_each_matrix_with_white_at_zero():
    matrices = {"S": np.eye(2), "h": np.array([[-3.0, 1.0], [1.0, 2.0]]), "zero": np.zeros((2, 2))}
    figure = plots.heatmaps(matrices, ["0 H 1s", "1 H 1s"])
    for trace, matrix in zip(figure.data, matrices.values(), strict=True):
        np.testing.assert_array_equal(trace.z, matrix)
        assert trace.zmid == 0
        assert trace.zmax == -trace.zmin == (np.abs(matrix).max() or 1.0)
    assert [note.text for note in figure.layout.annotations] == list(matrices)


def test_curves_of_a_study_have_one_legend_entry_for_each_setting():
    rows = [
        {"setting": name, "seed": seed, "curve": [[1.0, 10.0], [2.0, 1.0 + seed]]}
        for name in ("loss", "labels") for seed in (0, 1)
    ]
    figure = plots.study_figure(rows)
    assert [trace.name for trace in figure.data if trace.showlegend] == ["loss", "labels"]
    assert list(figure.data[3].y) == [10.0, 2.0]
    figure = plots.iterations_figure([0, 1], [1.0, 0.1], [100.0, 10.0])
    assert all(axis.title.text for axis in (figure.layout.xaxis, figure.layout.yaxis))


@pytest.mark.parametrize(
    "figure",
    [
        plots.training_figure(), plots.heatmaps({"S": np.eye(3)}, ["a", "b", "c"]), plots.levels_figure(),
        plots.mixing_figure(np.arange(3), ["a", "b", "c"]), plots.matrix_errors_figure(np.eye(2), ["C0", "O1"]),
        # Figures of a user: plotly lets a trace leave out its mode.
        go.Figure([go.Scatter(x=[0, 1], y=[0, 1], name="own")]),
        go.Figure([go.Bar(x=["a", "b"], y=[1, 2], marker_color="#0072B2", name="own")]),
    ],
    ids=lambda figure: f"{figure.data[0].type} {figure.data[0].name}",
)
def test_every_kind_of_figure_has_a_picture(figure):
    picture = np.asarray(Image.open(io.BytesIO(pictures.png(figure))).convert("L"))
    assert picture.shape[1] == 1100
    assert (picture < 128).mean() > 0.001, "something is drawn"


def test_a_live_figure_has_a_picture_for_pages_without_widgets():
    bundle = ql.plot(plots.heatmaps({"S": np.eye(3)}, ["a", "b", "c"]))._repr_mimebundle_()[0]
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
