"""A served workbench refuses what is beyond its bounds, whatever messages a page sends."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import cases
import pytest

import qptlab as ql
from qptlab.cli import main
from qptlab.gui import bounds
from qptlab.gui.parts import MAX_CYCLES, MAX_PROFILED
from qptlab.gui.session import QUICK_MINUTES, Session
from qptlab.gui.widgets import KernelInspector, MoleculePicker, PredictionView, SCFExplorer, TrainingMonitor
from qptlab.training.trainer import MAX_NOTE

WATER = ql.Molecule.from_name("water")


def send(widget, **state) -> None:
    """A message as a page sends it."""
    widget._handle_msg({"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}, "buffers": []})


def press(button) -> None:
    """A click as a page sends it, also of a button that is disabled."""
    button._handle_msg({"content": {"data": {"method": "custom", "content": {"event": "click"}}}, "buffers": []})


def refused(session, *words) -> str:
    text = session.message.text
    assert session.message.is_error
    assert "\n" not in text
    assert len(text) < 300
    assert text.startswith("Expected")
    assert all(word in text for word in words), text
    return text


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Bounds of a server, whose workbench works in a folder beside files that it may not read."""
    (tmp_path / "secret.xyz").write_text(WATER.to_xyz())
    (tmp_path / "served").mkdir()
    monkeypatch.chdir(tmp_path / "served")
    for name, value in (("atoms", "6"), ("orbitals", "30"), ("minutes", "0.5")):
        monkeypatch.setenv(bounds.VARIABLES[name], value)
    return tmp_path


def test_without_bounds_nothing_is_refused():
    session = Session("benzene", minutes=600.0, basis="def2-svp")
    assert session.bounds == bounds.Bounds()
    assert session.minutes == 600.0


def test_messages_beyond_the_bounds_change_nothing(served):
    picker = MoleculePicker(Session(basis="sto-3g"))
    session = picker.session
    assert session.minutes == min(QUICK_MINUTES, 0.5)
    fields = {field.description: field for field in picker._fields.values()}
    for value in (0.6, 1e9, float("inf"), float("nan")):
        send(fields["Minutes"], value=value)
        refused(session, "at most 0.5 minutes", "use 0.5")
        assert session.minutes == fields["Minutes"].value == 0.5
    send(fields["Basis"], value="def2-tzvp")
    refused(session, "at most 30 atomic orbitals", "H2O in def2-tzvp with 43")
    assert session.basis == fields["Basis"].value == "sto-3g"
    for box, button, text in (
        (picker._text, picker._use_text, "CCO"), (picker._text, picker._use_text, "C" * 400),
        (picker._xyz, picker._use_xyz, ql.Molecule.from_name("benzene").to_xyz()),
    ):
        send(box, value=text)
        began = time.perf_counter()
        press(button)
        cases.settle(session)
        assert time.perf_counter() - began < 2  # no geometry is searched
        refused(session, "at most 6 atoms")
        assert session.molecule.formula == "H2O"
    send(picker._names, value="ethanol")
    cases.settle(session)
    assert session.molecule.formula == "H2O"
    content = ql.Molecule.from_name("benzene").to_xyz().encode()
    send(picker._upload, value=[
        {"name": "a.xyz", "type": "", "size": len(content), "last_modified": 0, "content": memoryview(content)}
    ])
    assert session.molecule.formula == "H2O"
    send(fields["DFT iterations"], max=10**9, value=10**6)  # a page may send a new maximum as well
    refused(session, "iterations")
    send(fields["Grid level"], index=99)
    assert session.grid_level == ql.Method.grid_level
    send(fields["Basis"], value="6-31g")
    assert session.basis == "6-31g"


@pytest.mark.parametrize("path", ["../secret.xyz", "{tmp}/secret.xyz", "link.xyz", "{tmp}/none.xyz", "/etc/hostname"])
def test_files_outside_the_folder_are_not_read(served, trained, path):
    """Nor does the answer tell whether there is such a file."""
    path = path.format(tmp=served)
    os.symlink(served / "secret.xyz", "link.xyz")
    pathlib.Path("mine.xyz").write_text(WATER.to_xyz())
    session = Session(basis="sto-3g")
    session.trainer = trained
    doors = [session.choose, session.comparison.start, session.training.open_run]
    for door in doors:
        door(path)
        refused(session, "below that of the workbench")
    session.prediction.predict(path)
    with pytest.raises(ql.InputError, match="below that of the workbench"):
        session.prediction.wait(60)
    session.trainer, session.network, session.labels = None, ql.GNNConfig(), path
    session.training.start()
    refused(session, "below that of the workbench")
    assert session.trainer is None
    session.choose("mine.xyz")
    assert not session.message.is_error


def test_runs_and_models_beyond_the_bounds_are_not_opened(served, trained, monkeypatch):
    shutil.copytree(trained.out, "runs/water")
    monkeypatch.setenv("QPTLAB_MAX_ORBITALS", "6")
    session = Session(ql.Molecule.from_xyz("2\n\nH 0 0 0\nH 0 0 0.75\n"), basis="sto-3g")
    session.training.open_run("runs/water")
    with pytest.raises(ql.InputError, match="at most 6"):
        session.training.wait(60)
    refused(session, "at most 6 atomic orbitals", "H2O in sto-3g with 7")
    assert session.trainer is None
    view = PredictionView(session)
    send(view._model, index=0)  # of def2-SVP, while the session's basis is small
    press(view._predict._begin)
    with pytest.raises(ql.InputError, match="at most 6 atomic orbitals"):
        session.prediction.wait(60)


def test_numbers_of_steps_and_lengths_of_notes_have_limits(trained, tmp_path):
    session = Session("water", basis="sto-3g")
    explorer, inspector = SCFExplorer(session), KernelInspector(session)
    send(explorer._cycles, max=10**9, value=10**6)
    press(explorer._run._begin)
    refused(session, f"1 to {MAX_CYCLES} iterations")
    send(inspector._steps, max=10**9, value=10**6)
    press(inspector._run._begin)
    refused(session, f"1 to {MAX_PROFILED} steps")
    shutil.copytree(trained.out, tmp_path / "run")
    session.trainer = ql.Trainer.open(tmp_path / "run")
    monitor = TrainingMonitor(session)
    send(monitor._note, value="x" * 10**5)
    press(monitor._add_note)
    refused(session, f"at most {MAX_NOTE} characters")


def test_a_training_writes_below_the_folder_and_ends_in_time(served):
    session = Session(ql.Molecule.from_xyz("2\n\nH 0 0 0\nH 0 0 0.75\n"), xc="lda", basis="sto-3g", minutes=1e-3)
    monitor = TrainingMonitor(session)
    press(monitor._start)
    cases.wait_until(lambda: not session.training.is_active, 300)
    assert session.trainer.status == "finished"
    assert session.trainer.out.resolve().is_relative_to(served / "served/runs")
    assert session.trainer.train_config.minutes == 1e-3


@pytest.mark.parametrize(("name", "text"), [("atoms", "many"), ("minutes", "-1"), ("orbitals", "nan")])
def test_bounds_that_are_no_numbers_are_refused(monkeypatch, capsys, name, text):
    monkeypatch.setenv(bounds.VARIABLES[name], text)
    with pytest.raises(ql.InputError, match=f"Expected a positive number in {bounds.VARIABLES[name]}"):
        Session()
    with pytest.raises(SystemExit) as ended:
        main(["lab", "--no-open", "."])
    assert ended.value.code == 2
    assert bounds.VARIABLES[name] in capsys.readouterr().err


def test_the_command_hands_the_bounds_to_the_kernels(tmp_path):
    """JupyterLab takes the place of the process, so a package of that name shows what it gets."""
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab/__init__.py").touch()
    (tmp_path / "jupyterlab/__main__.py").write_text(
        "import os\nprint(*(os.environ.get(f'QPTLAB_MAX_{name}') for name in ('ATOMS', 'ORBITALS', 'MINUTES')))\n"
    )
    command = [sys.executable, "-m", "qptlab", "lab", ".", "--max-atoms", "12", "--max-minutes", "2.5"]
    paths = os.pathsep.join([str(tmp_path), str(pathlib.Path(ql.__file__).parents[1])])
    said = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True,
        timeout=120,
    )
    assert said.stdout == "12 None 2.5\n"
