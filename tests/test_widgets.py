"""Widgets in plain Python: what they hold and say. What a person sees is in test_browser.py."""

import numpy as np
import pytest

from qptlab.session import Session
from qptlab.widgets import Comparison, MoleculePicker, Orbitals, OrbitalViewer, TrainingMonitor, Workbench, preview

BOX = (np.zeros(3), np.ones(3))


def test_the_workbench_shares_one_session():
    app = Workbench(molecule="ammonia", basis="sto-3g")
    assert app.session.molecule.formula == "H3N"
    assert all(view.session is app.session for view in (app.picker, app.monitor, app.orbitals, app.comparison))


@pytest.mark.parametrize("view", [MoleculePicker, TrainingMonitor, Orbitals, Comparison])
def test_every_view_works_alone(view):
    assert view().session.molecule.formula == "H2O"


def test_a_choice_made_in_the_picker_shows_in_the_session_and_back():
    picker = MoleculePicker()
    fields = {child.description: child for child in picker.children[-1].children[-1].children}
    fields["Functional"].value = "lda"
    fields["Basis"].value = "def2-svp"
    assert picker.session.method.label == "LDA/def2-svp"
    picker.session.grid_level = 0
    assert fields["Grid level"].value == 0


def test_a_bad_choice_is_explained_and_put_back():
    picker = MoleculePicker()
    picker.session.choose("C1CC")
    assert "alert" in picker._message.value
    assert "&#x27;C1CC&#x27;" in picker._message.value, "escaped: it is the user's text"
    picker.session.choose("<img src=x onerror=alert(1)>")
    assert "<img" not in picker._message.value
    picker.session.choose("ethanol")
    assert picker._message.value == ""


def test_an_upload_is_read_as_text_only():
    picker = MoleculePicker()
    picker._take_upload({"new": [{"name": "he.xyz", "content": memoryview(b"2\n\nHe 0 0 0\nHe 0 0 3\n")}]})
    assert picker.session.molecule.formula == "He2"
    picker._take_upload({"new": [{"name": "evil.xyz", "content": memoryview(b"\x80\x04\x95pickle")}]})
    assert picker.session.message.is_error
    picker._take_upload({"new": [{"name": "large.xyz", "content": memoryview(bytes(5_000_001))}]})
    assert "large.xyz is larger than 5 MB" in picker.session.message.text
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
    session.compare()
    assert "finished" in monitor._status.value
    assert "step 60" in monitor._numbers.value
    assert len(monitor.figure.data[0].x) == 60
    assert monitor._progress.value == 1.0
    assert "QPT, step 60" in orbitals.viewer.captions[0]
    assert "PySCF" in orbitals.viewer.captions[1]
    assert [len(volume) for volume in orbitals.viewer.volumes] == [4 * 60**3] * 2
    assert "<td>" in comparison._table.value
    assert comparison._plot.layout.display == "block"


def test_a_saved_orbital_is_a_cube_and_a_page_that_needs_no_network(trained, tmp_path, monkeypatch):
    session = Session("water")
    orbitals = Orbitals(session)
    orbitals.save()
    assert "no orbital to save" in session.message.text
    session.trainer = trained
    monkeypatch.setattr(trained.run_folder, "path", tmp_path)
    orbitals.refresh()
    orbitals.save()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["orbital-5-geometry-0-step-60.cube", "orbital-5-geometry-0-step-60.html"]
    page = (tmp_path / names[1]).read_text()
    assert "<script src=" not in page
    assert "$3Dmol" in page


def test_the_viewer_refuses_what_does_not_fit_together():
    viewer, cube = OrbitalViewer(), np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match=r"2 symbols and positions of shape \(1, 3\)"):
        viewer.show(["H", "H"], np.zeros((1, 3)), [cube], ["one"], *BOX)
    with pytest.raises(ValueError, match="2 volumes of shapes"):
        viewer.show(["H"], np.zeros((1, 3)), [cube, np.zeros((4, 4, 5))], ["one", "two"], *BOX)
    with pytest.raises(ValueError, match="1 captions were given for 2 volumes"):
        viewer.show(["H"], np.zeros((1, 3)), [cube, cube], ["one"], *BOX)
    assert viewer.revision == 0
    viewer.show(["H"], np.zeros((1, 3)), [cube], ["one"], *BOX)
    assert viewer.revision == 1


def test_a_missing_script_is_said_not_shown_as_a_blank_box(monkeypatch, tmp_path):
    monkeypatch.setattr(preview, "SCRIPT", tmp_path / "none.js")
    assert "3Dmol.js was not bundled" in preview.preview_html(["H"], np.zeros((1, 3)))
    assert "3Dmol.js was not bundled" in preview.script_html()
