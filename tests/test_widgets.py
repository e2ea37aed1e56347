"""Widgets in plain Python: their values and messages. test_browser.py tests what a person sees."""

import dataclasses
import functools
import shutil

import cases
import ipywidgets
import jax
import numpy as np
import pytest
import traitlets
from scipy.spatial.distance import pdist

import qptlab as ql
from qptlab.evaluation import labels
from qptlab.gui import plots
from qptlab.gui.attention import attention_heads
from qptlab.gui.parts import Part
from qptlab.gui.scenes import KINDS
from qptlab.gui.session import Session
from qptlab.gui.tabs import TABS, Tab, register_tab
from qptlab.gui.widgets import (
    AttentionView,
    Comparison,
    KernelInspector,
    MoleculePicker,
    Orbitals,
    OrbitalViewer,
    PredictionView,
    SCFExplorer,
    TrainingMonitor,
    Workbench,
    library,
    preview,
)
from qptlab.gui.widgets.message import MessageLine
from qptlab.gui.widgets.view import View
from qptlab.models.equivariant import MATRICES
from qptlab.models.features import BIASES
from qptlab.training.run import Run

BOX = (np.zeros(3), np.ones(3))


def test_the_workbench_shares_one_session():
    app = Workbench(molecule="ammonia", basis="sto-3g")
    assert app.session.molecule.formula == "H3N"
    assert list(app.views) == list(TABS)
    assert all(view.session is app.session for view in app.views.values())


class DistancesPart(Part):
    """State of the tab below: the largest distance between two atoms."""

    largest_angstrom = traitlets.Float()

    def measure(self, unit: str = "Å") -> None:
        """Measure the distance."""
        with self.reporting():
            if unit != "Å":
                raise ql.InputError(f"Expected 'Å' as unit, got {unit!r}.")
            self.largest_angstrom = pdist(self.session.molecule.positions_angstrom).max()


class DistancesView(View):
    """View of the tab below."""

    def __init__(self, session: Session):
        self.session = session
        self.label = ipywidgets.Label()
        self.message = MessageLine(session, "distances")
        super().__init__([self.label, self.message])
        session.part("distances").observe(self._show, "largest_angstrom")

    def _show(self, change):
        self.label.value = f"{change['new']:.2f} Å"


def test_a_users_own_tab_is_one_record():
    register_tab(Tab("distances", "Distances", DistancesView, DistancesPart))
    try:
        app = ql.workbench(molecule="benzene")
        assert app.children[0].titles[-1] == "Distances"
        part = app.session.part("distances")
        part.measure()
        assert app.views["distances"].label.value == "4.93 Å"
        part.measure(unit="mile")
        assert app.session.message.topic == "distances"
        assert "got &#x27;mile&#x27;" in app.views["distances"].message.value
        part.begin(lambda report: 7.0, lambda result: setattr(part, "largest_angstrom", result))
        part.wait(60)
        assert app.views["distances"].label.value == "7.00 Å"
        assert app.select("distances").children[0].selected_index == len(TABS) - 1
    finally:
        del TABS["distances"]
    with pytest.raises(ql.InputError, match=r"the name of a tab \(molecule, .*\), got 'distances'"):
        app.select("distances")


def test_titles_of_tabs_carry_no_numbers():
    assert [tab.title for tab in TABS.values() if any(letter.isdigit() for letter in tab.title)] == []


def test_the_workbench_shows_a_trainer_of_a_script(trained):
    app = ql.workbench(trained)
    assert app.session.trainer is trained
    assert app.session.method == trained.method
    assert app.session.molecule.formula == "H2O"
    app.views["training"].refresh()  # which the event loop of a kernel does
    assert "finished" in app.views["training"]._status.value
    assert ql.workbench(trained).session is app.session, "the cell was run again"


@pytest.mark.parametrize("view", [
    MoleculePicker, PredictionView, SCFExplorer, TrainingMonitor, Orbitals, Comparison, AttentionView,
    KernelInspector,
])
def test_every_view_works_alone(view):
    shown = view()
    assert shown.session.molecule.formula == "H2O"
    assert repr(shown), "which a cell calls; no attribute may hide one of ipywidgets'"


@pytest.mark.slow
def test_a_prediction_is_shown_with_its_orbitals_and_then_beside_pyscf():
    view = PredictionView(Session("O"))
    part = view.session.prediction
    view._predict._begin.click()
    part.wait(600)
    assert view.session.message.text == "", "the model was trained on water"
    assert view._results.layout.display == "flex"
    assert len(view.viewer.volumes) == 1
    assert "orbital 5" in view._caption.value, "the HOMO of water"
    assert not view._check.disabled
    view._choice.value = 5
    view._check.click()
    part.wait(600)
    assert len(view.viewer.volumes) == 2
    assert view._choice.value == 5, "the choice is kept"
    assert "(true)" in view._table.value
    for kind in ("density", "electrostatic potential"):
        view._kind.value = kind
        assert len(view.viewer.captions) == 2
    view.refresh()
    assert not view._further.disabled
    view.session.choose("CO")
    cases.settle(view.session)
    view.refresh()
    assert "CH4O" in view._words.value
    assert view._further.disabled
    assert "not the predicted one" in view._further.tooltip


def test_picker_and_session_show_each_others_choices():
    picker = MoleculePicker()
    fields = {field.description: field for field in picker._fields.values()}
    fields["Functional"].value = "lda"
    fields["Basis"].value = "def2-svp"
    assert picker.session.method.label == "LDA/def2-svp"
    picker.session.grid_level = 0
    assert fields["Grid level"].value == 0


def test_a_bad_choice_is_explained_and_the_previous_one_is_restored():
    picker = MoleculePicker()
    picker.session.choose("C1CC")
    cases.settle(picker.session)
    assert "alert" in picker._message.value
    assert "&#x27;C1CC&#x27;" in picker._message.value, "escaped: it is the user's text"
    picker.session.choose("<img src=x onerror=alert(1)>")
    cases.settle(picker.session)
    assert "<img" not in picker._message.value
    picker.session.choose("ethanol")
    cases.settle(picker.session)
    assert picker._message.value == ""


def test_an_upload_is_read_as_text_only():
    picker = MoleculePicker()
    picker._take_upload({"new": [{"name": "he.xyz", "content": memoryview(b"2\n\nHe 0 0 0\nHe 0 0 3\n")}]})
    assert picker.session.molecule.formula == "He2"
    picker._take_upload({"new": [{"name": "evil.xyz", "content": memoryview(b"\x80\x04\x95pickle")}]})
    assert picker.session.message.is_error
    picker._take_upload({"new": [{"name": "large.xyz", "content": memoryview(bytes(5_000_001))}]})
    assert "at most 5 MB, got large.xyz" in picker.session.message.text
    assert picker.session.molecule.formula == "He2"


def test_buttons_say_why_they_are_disabled():
    monitor = TrainingMonitor()
    assert not monitor._start.disabled
    for button in (monitor._pause, monitor._stop):
        assert button.disabled
        assert button.tooltip


def test_views_show_a_finished_training(trained):
    session = Session("water", xc="lda", grid_level=0, iterations=0)
    monitor, orbitals, comparison = TrainingMonitor(session), Orbitals(session), Comparison(session)
    session.trainer = trained
    for view in (monitor, orbitals):
        view.refresh()
    session.comparison.run()
    assert "finished" in monitor._status.value
    assert "step <b>60</b>" in monitor._numbers.value
    assert len(monitor.figure.data[0].x) == 60
    assert monitor._progress.value == 1.0
    assert "QPT, step 60" in orbitals.viewer.captions[0]
    assert "PySCF" in orbitals.viewer.captions[1]
    assert [len(volume) for volume in orbitals.viewer.volumes] == [4 * 60**3] * 2
    assert "<td>" in comparison._table.value
    assert comparison._results.layout.display == "flex"
    for plot in comparison._plot.options:
        comparison._plot.value = plot
        assert comparison.figure.layout.title.text or comparison.figure.layout.annotations
    worst = int(np.abs(session.comparison.evaluation.energy_errors_mev).argmax())
    assert comparison._geometry.value == worst
    assert comparison.viewer.captions[0].startswith(f"geometry {worst}:")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_scene_is_drawn_and_orbitals_are_chosen_from_the_levels(trained, kind):
    session = Session("water")
    orbitals = Orbitals(session)
    session.trainer = trained
    orbitals.refresh()
    orbitals._kind.value = kind
    assert len(orbitals.viewer.volumes) == 2
    assert bool(orbitals.viewer.potentials) == (kind == "electrostatic potential")
    assert orbitals.viewer.isovalue == pytest.approx(orbitals._isovalue.value)
    assert "H2O" in orbitals._words.value
    lumo = orbitals.levels.figure.data[1]
    orbitals._click(1, 0)
    assert orbitals._kind.value == "orbital"
    assert orbitals.viewer.captions[0].startswith("QPT, step 60: orbital 6")
    assert list(orbitals.levels.figure.data[4].y) == [lumo.y[0], orbitals.levels.figure.data[3].y[0]]


def test_a_network_is_chosen_in_the_picker_and_a_newly_registered_one_appears():
    picker = MoleculePicker()
    names = picker._network.options
    assert names[:3] == tuple(f"Equivariant Transformer, {preset}" for preset in ("small", "base", "large"))
    assert picker._network.value == "Equivariant Transformer, base"
    assert {"QPT, micro", "OrbitalGNN"} <= set(names)
    picker._network.value = "QPT, tiny"
    assert picker.session.network == ql.QPTConfig("tiny")
    assert picker._fields["labels"].layout.display == "none"
    picker.session.iterations = 3
    assert picker._network.value == "QPT, tiny"
    picker._network.value = "OrbitalGNN"
    assert picker.session.network == ql.GNNConfig()
    assert picker._fields["labels"].layout.display == "flex"

    @dataclasses.dataclass(frozen=True)
    class NewConfig(ql.CorrectionConfig):
        """Settings of a network that is registered while the picker is shown."""

    ql.register_network("registered-later", NewConfig, lambda features, config, vocabulary: features.fock_guess)
    picker.refresh()
    assert "registered-later" in picker._network.options
    assert picker._network.value == "OrbitalGNN"


def test_views_say_what_a_model_that_learned_from_labels_does_not_predict(tmp_path):
    rng, water = np.random.default_rng(0), ql.Molecule.from_name("water")
    mols = [water.with_positions(water.positions + 0.05 * rng.normal(size=(3, 3))) for _ in range(6)]
    maker = functools.partial(labels.from_pyscf, method=cases.QUICK_METHOD)
    labels.label(mols, maker, tmp_path / "labels.xyz", theory="LDA/sto-3g")
    train = ql.TrainConfig.supervised(steps=5, batch=2, validation=1, tasks=ql.TaskWeights(forces=0.0))
    model = ql.GNNConfig(width=8, layers=1, heads=2, radial=2)
    data = ql.read_labels(tmp_path / "labels.xyz")
    trainer = ql.Trainer(data, model=model, train=train, out=tmp_path / "run").run()
    app = ql.workbench(trainer)
    monitor, orbitals, comparison = (app.views[name] for name in ("training", "orbitals", "comparison"))
    for view in (monitor, orbitals):
        view.refresh()
    assert len(monitor.figure.data[0].x) == 5
    assert np.isfinite(np.array(monitor.figure.data[0].y, float)).all(), "the loss, as there are no energies"
    assert monitor.figure.layout.annotations[0].text == "Loss"
    assert "no network" in monitor.chart.words
    assert orbitals._kind.disabled
    assert orbitals._panels.layout.display == "none"
    assert "Expected a model that predicts dm" in app.session.message.text
    app.session.comparison.run()
    for plot in comparison._plot.options:
        comparison._plot.value = plot
        assert len(comparison.figure.data[0].x) == 1
    assert "energy error" in comparison._error.value
    assert comparison.viewer.symbols == ["O", "H", "H"]


def test_attention_is_shown_together_with_the_matrix_that_biases_it(trained):
    session = Session("water")
    view = AttentionView(session)
    assert view._show.disabled
    session.trainer = trained
    view.refresh()
    assert not view._show.disabled
    view.update()
    assert view.matrices.figure.data[0].name == "attention"
    view._head.value = 3
    assert "head 3" in view.viewer.captions[0]
    assert view.viewer.links
    assert max(width for _, _, width in view.viewer.links) == 1.0


def test_attention_of_both_kinds_of_networks_is_compared_with_their_own_matrices(monkeypatch):
    session = Session("water")
    view, heads = AttentionView(session), {}
    for config in (ql.EquivariantConfig("small", iterations=0), ql.QPTConfig("micro", iterations=0)):
        (system,), kinds = ql.make_systems([session.molecule], cases.QUICK_METHOD, config)
        model = ql.CorrectionModel(config, kinds)
        predictor = ql.CorrectionPredictor(model, model.init(jax.random.key(0)), [system])
        heads[config] = attention_heads(predictor, system, system.frame.reference_positions)
    shells, orbitals = heads.values()
    monkeypatch.setattr(session.attention, "heads", lambda geometry, renew: shells)
    view.update()
    assert view._matrix.options == ("highest correlation", *MATRICES)
    assert list(view.matrices.figure.data[0].x) == ["0 O 1s", "0 O 2s", "0 O 2p", "1 H 1s", "2 H 1s"]
    assert view.matrices.figure.data[1].name.endswith(", log₁₀ of norms")
    assert "correlate most with the logarithms of the norms" in view.matrices.words
    assert list(view.influence.figure.data[0].x) == list(MATRICES)
    view._matrix.value = "fock_dm"
    assert view.matrices.figure.data[1].name == "fock dm, log₁₀ of norms"
    monkeypatch.setattr(session.attention, "heads", lambda geometry, renew: orbitals)
    view.update()
    assert view._matrix.options == ("strongest bias", *BIASES)
    assert view._matrix.value == "strongest bias"
    assert list(view.influence.figure.data[0].x) == list(BIASES)
    assert "a positive weight" in view.influence.words


def test_a_second_run_is_drawn_together_with_the_first_and_notes_are_kept(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.out, tmp_path / "runs" / "other")
    session = Session("water")
    monitor = TrainingMonitor(session)
    other = "runs/other"
    assert monitor._runs.options == (other,)
    monitor._runs.value = (other,)
    assert [trace.name for trace in monitor.figure.data][-2:] == [other, other]
    assert len(monitor.figure.data[-1].x) == 60
    session.trainer = trained
    monitor.refresh()
    monitor._note.value = "<b>looks good</b>"
    monitor._do(monitor._keep_note)
    assert "&lt;b&gt;looks good&lt;/b&gt;" in monitor._events.value
    assert Run.open(trained.out).events()[-1]["text"] == "<b>looks good</b>"
    monitor._do(monitor._keep_note)
    assert "got an empty one" in session.message.text
    for quantity in plots.QUANTITIES:
        monitor._quantity.value = quantity
        assert np.isfinite(np.array(monitor.figure.data[8].y, float)).all()


def test_the_explorer_shows_the_matrices_of_an_iteration():
    session = Session("water", xc="lda", basis="sto-3g", grid_level=0)
    explorer = SCFExplorer(session)
    session.scf.explore(cycles=10)
    session.scf.wait()
    assert len(explorer.curves.figure.data) == 4
    explorer._cycle.value = 2
    shown = explorer.matrices.figure.data[2]
    np.testing.assert_allclose(shown.z, session.scf.exploration.matrices("DIIS", 2)["Density matrix D, electrons"])
    explorer.curves._toggle.value = True
    assert "<td>" in explorer.curves._table.value


def test_sliders_move_atoms_and_undo_takes_back_a_whole_movement():
    picker = MoleculePicker(Session("ethanol"))
    before = picker.session.molecule
    picker._coordinate.value = next(each for label, each in picker._coordinate.options if label.startswith("torsion"))
    for value in (10.0, 20.0, 90.0):
        picker._value.value = value
    assert not np.allclose(picker.session.molecule.positions, before.positions)
    picker._undo()
    np.testing.assert_array_equal(picker.session.molecule.positions, before.positions)
    assert picker._back.disabled
    bond = next(each for label, each in picker._coordinate.options if label.startswith("bond"))
    picker._coordinate.value = bond
    picker._value.value = 3.9  # no bond any more, and still under the slider
    assert picker._coordinate.value == bond
    picker.session.choose("water")
    cases.settle(picker.session)
    assert all("torsion" not in label for label, _ in picker._coordinate.options)


def test_a_saved_orbital_is_a_cube_and_a_page_that_needs_no_internet(trained, tmp_path, monkeypatch):
    session = Session("water")
    orbitals = Orbitals(session)
    orbitals.save()
    assert "nothing to save" in session.message.text
    session.trainer = trained
    monkeypatch.setattr(trained.run_folder, "path", tmp_path)
    orbitals.refresh()
    orbitals.save()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["orbital-5-geometry-0-step-60.cube", "orbital-5-geometry-0-step-60.html"]
    page = (tmp_path / names[1]).read_text()
    assert "<script src=" not in page
    assert "$3Dmol" in page


def test_the_viewer_refuses_arrays_that_do_not_fit_together():
    viewer, cube = OrbitalViewer(), np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 symbols, got \(1, 3\)"):
        viewer.show(["H", "H"], np.zeros((1, 3)), [cube], ["one"], *BOX)
    with pytest.raises(ValueError, match="got 2 volumes of shapes"):
        viewer.show(["H"], np.zeros((1, 3)), [cube, np.zeros((4, 4, 5))], ["one", "two"], *BOX)
    with pytest.raises(ValueError, match="one caption per volume, got 1 for 2 volumes"):
        viewer.show(["H"], np.zeros((1, 3)), [cube, cube], ["one"], *BOX)
    with pytest.raises(ValueError, match="one potential per volume, got 1 for 2 volumes"):
        viewer.show(["H"], np.zeros((1, 3)), [cube, cube], ["one", "two"], *BOX, potentials=[cube])
    assert viewer.revision == 0
    viewer.show(["H"], np.zeros((1, 3)), [cube], ["one"], *BOX)
    assert viewer.revision == 1


def test_a_missing_script_gives_a_message_and_not_a_blank_box(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "SCRIPT_3DMOL", tmp_path / "none.js")
    assert library.SOURCES["3dmol"]() == b""
    assert "3Dmol.js was not downloaded" in preview.script_html()
