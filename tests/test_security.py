"""Files, messages and options from strangers are read and never executed.

Each trap is an expression that creates the folder `ran` in the current folder. PySCF's parsers would evaluate it in
place of a number.
"""

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import cases
import h5py
import numpy as np
import pytest
from pyscf import gto
from pyscf.gto.basis import parse_nwchem

import qptlab as ql
from qptlab.cli import main
from qptlab.evaluation import labels
from qptlab.gui.session import Session
from qptlab.gui.widgets import MoleculePicker, Workbench
from qptlab.models import files, orbital_gnn
from qptlab.system import basis_sets
from qptlab.training import config, supervised
from qptlab.training.checksums import sealed

EXPRESSION = '(len(__import__("os").makedirs("ran",exist_ok=1)or"1"))'
NWCHEM = "".join(f"{symbol}    S\n      {EXPRESSION} 1.0\nEND\n" for symbol in ("H", "O"))
CP2K = f"H GTH-X\n  1\n  1 0 0 1 1\n  {EXPRESSION} 1.0\n"
WATER_XYZ = "3\n{}\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"


class Trap:
    """Creates the folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def trapped(tmp_path, monkeypatch):
    """Every test works in a folder of its own, where nothing may have run at its end."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("trap.nw").write_text(NWCHEM)
    yield
    assert not pathlib.Path("ran").exists(), "the expression was evaluated"


def sentence(error) -> str:
    text = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert "\n" not in text
    assert len(text) < 300
    return text


# PySCF itself -------------------------------------------------------------------------------------


def test_the_traps_are_live_where_nothing_guards_them(monkeypatch):
    monkeypatch.setattr(parse_nwchem, "DISABLE_EVAL", False)
    for basis in (NWCHEM, "trap.nw"):
        with contextlib.suppress(Exception):
            gto.basis.load(basis, "H")
        pathlib.Path("ran").rmdir()
    pickle.loads(pickle.dumps(Trap()))
    pathlib.Path("ran").rmdir()


@pytest.mark.parametrize("basis", [NWCHEM, CP2K, "trap.nw"])
def test_pyscfs_parsers_evaluate_nothing_after_the_package_is_imported(basis):
    with pytest.raises((ValueError, RuntimeError)):
        gto.M(atom="H 0 0 0; H 0 0 0.74", basis=basis)
    with pytest.raises(ValueError, match="Failed to parse"):
        gto.M(atom=f"H 0 0 0; H 0 0 {EXPRESSION}", basis="sto-3g")


SWITCHES = """
import sys
import pyscf.gto.basis.parse_molpro, pyscf.pbc.gto
from pyscf import __config__
modules = [module for name, module in sys.modules.items() if name.startswith("pyscf.")]
switches = [module.DISABLE_EVAL for module in modules if hasattr(module, "DISABLE_EVAL")]
print(len(switches), all(switches))
"""


@pytest.mark.parametrize("before", ["", "import pyscf.gto.basis.parse_molpro", "from pyscf import dft, gto"])
def test_the_switch_is_set_whatever_is_imported_first(before):
    command = [sys.executable, "-c", f"{before}\nimport qptlab\n{SWITCHES}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) >= 5
    assert said[1] == "True"


def test_pyscfs_settings_are_not_read_from_the_current_folder():
    pathlib.Path(".pyscf_conf.py").write_text('import os\nos.mkdir("ran")\n')
    pathlib.Path("home").mkdir()
    pathlib.Path("home/.pyscf_conf.py").write_text("MAX_MEMORY = 1234\n")
    command = [sys.executable, "-c", "import os, qptlab\nfrom pyscf import __config__\n"
                                     "print(__config__.MAX_MEMORY, os.environ.get('PYSCF_CONFIG_FILE'))"]
    environment = {key: value for key, value in os.environ.items() if key != "PYSCF_CONFIG_FILE"}
    for home, memory in (("home", "1234"), ("nowhere", "4000")):
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | {"HOME": home})
        assert told.stdout.split() == [memory, "None"], "the user's own settings hold, and nothing is left behind"
        assert "were not read, because such a file may run any code" in told.stderr
    # The user's own choice is followed.
    environment["PYSCF_CONFIG_FILE"] = "home/.pyscf_conf.py"
    chosen = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert chosen.stdout.split() == ["1234", "home/.pyscf_conf.py"]
    assert "not read" not in chosen.stderr


# Names of bases -----------------------------------------------------------------------------------

NOT_NAMES = [
    NWCHEM, CP2K, "trap.nw", "./trap.nw", "trap.nw@1s", f"unc{NWCHEM}", f"sto-3g\n{NWCHEM}", "sto-3g@" + EXPRESSION,
    f"6-31g({EXPRESSION})", "6-31g(../x)", "gth-dzvp", "autoaux", "", "x" * 10**6, "-" * 10**6 + "sto-3g",
]


@pytest.mark.parametrize("given", NOT_NAMES, ids=range(len(NOT_NAMES)))
def test_a_basis_is_a_name_and_nothing_else(given):
    with pytest.raises(ql.InputError, match=r"Expected .* as basis, got .*; use sto-3g, 6-31g\*") as error:
        ql.Method(basis=given)
    sentence(error)
    with pytest.raises(ql.InputError, match=r"Expected .* as auxiliary basis, got .*; use def2-univ") as error:
        ql.Method(auxbasis=given, eri="fitted")
    sentence(error)


@pytest.mark.parametrize("given", [None, ["sto-3g"], {"H": NWCHEM}, 3, b"sto-3g"])
def test_what_is_not_text_is_no_basis(given):
    """A run folder's JSON may hold anything; the tests' type checks keep it from `Method` itself."""
    with pytest.raises(ql.InputError, match=r"Expected .* as basis, got ") as error:
        basis_sets.check(given)
    sentence(error)


@pytest.mark.parametrize("name", [
    "sto-3g", "STO3G", "6-31G*", "6-31g(d,p)", "6-311++G(2df,2pd)", "def2-SVP", "def2_tzvp", "cc pVDZ", "aug-cc-pvtz",
    "pc-1", "cc-pvtz@4s3p2d", "def2-svp-jkfit", "def2-universal-jkfit", "weigend", "minao",
])
def test_names_are_taken_in_every_spelling_of_pyscfs(name):
    assert ql.Method(basis=name).basis == name
    assert gto.basis.load(name, "O")


@pytest.mark.parametrize("name", ["sto-3g", "def2-svp-jkfit", "weigend", "ano"])
def test_a_file_with_the_name_of_a_basis_is_not_read_instead(name):
    shutil.copy("trap.nw", name)
    method = ql.Method("r2scan", "sto-3g", grid_level=5, eri="fitted")  # of no other test, whose template is cached
    with pytest.raises(ql.InputError, match=f"Expected no file .*, got '{name}'") as error:
        ql.template(ql.Molecule.from_name("water"), method)
    sentence(error)


# Run folders --------------------------------------------------------------------------------------


def replace(record: dict, place: str, value) -> None:
    """Set an entry of nested dictionaries and lists, named by a path with dots."""
    *parents, last = place.split(".")
    for name in parents:
        record = record[int(name) if isinstance(record, list) else name]
    record[int(last) if isinstance(record, list) else last] = value


def planted(trained, place: str, value) -> pathlib.Path:
    """A copy of a trained run in which one entry of `config.json` has a different value."""
    shutil.copytree(trained.out, "stranger")
    path = pathlib.Path("stranger/config.json")
    record = json.loads(path.read_text())
    replace(record, place, value)
    path.write_text(sealed(record))  # as a stranger would who knows how
    return path.parent


@pytest.mark.parametrize("value", [NWCHEM, "trap.nw", EXPRESSION, [NWCHEM], "x" * 10**6])
@pytest.mark.parametrize("place", [
    "method.basis", "method.auxbasis", "method.xc", "method.eri", "method.grid_level", "method.dispersion",
    "model.guess", "model.preset", "model.scheme", "model.precision", "model.iterations", "train.loss",
    "train.minutes", "train.seed", "train.sampling.sampler", "train.sampling.temperature", "train.sampling.path",
    "molecules.0.symbols.0", "molecules.0.positions_bohr", "molecules.0.charge", "method", "model", "train",
    "molecules", "kind",
])
def test_a_run_folder_with_a_trap_is_refused_in_a_sentence(trained, place, value):
    with pytest.raises(ql.InputError) as error:
        ql.load(planted(trained, place, value))
    sentence(error)


@pytest.mark.parametrize("place", ["molecules.0.name", "created"])
def test_words_of_a_run_folder_are_only_words(trained, place):
    run = planted(trained, place, NWCHEM)
    assert np.isfinite(float(ql.load(run)(ql.Molecule.from_name("water")).energy))


def test_pickles_in_a_run_folder_are_not_loaded(trained):
    run = pathlib.Path(shutil.copytree(trained.out, "stranger"))
    for path in [path for path in (run / "checkpoints").rglob("*") if path.is_file()]:
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ql.InputError, match="is changed"):
        ql.load(run)
    (run / "config.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ql.InputError, match="no readable config"):
        ql.load(run)


def called(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


COMMANDS = {
    "evaluate": ["evaluate", "stranger", "--geometries", "water.xyz"],
    "predict": ["predict", "stranger", "--geometries", "water.xyz", "--out", "out.h5"],
    "relax": ["relax", "stranger", "water", "--out", "out.xyz"],
    "label": ["label", "--geometries", "water.xyz", "--teacher", "stranger", "--out", "out.xyz"],
    "train": ["train", "water", "--xc", "lda", "--basis", "sto-3g", "--steps", "1", "--out", "stranger", "--resume"],
}


@pytest.mark.parametrize("place", ["method.basis", "method.auxbasis"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_a_run_folder_with_a_trap(trained, capsys, command, place):
    planted(trained, place, NWCHEM)
    pathlib.Path("water.xyz").write_text(WATER_XYZ.format(""))
    status, out, err = called(capsys, *COMMANDS[command])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "basis, got 'H S" in err, "blanks are folded"


@pytest.mark.parametrize("option", ["--basis", "--auxbasis", "--xc", "--eri", "--guess", "--solver"])
@pytest.mark.parametrize("value", [NWCHEM, "trap.nw"])
def test_options_with_a_trap_are_refused(capsys, option, value):
    status, out, err = called(capsys, "energy", "water", option, value)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_the_workbench_does_not_open_a_run_folder_with_a_trap(trained):
    session = Session("water", basis="sto-3g")
    session.training.open_run(str(planted(trained, "method.basis", NWCHEM)))
    if session.training.task is not None:
        session.training.task.wait()
    session.deliver()
    assert session.message.is_error
    assert session.message.text.startswith("Expected the name of one of PySCF's basis sets as basis, got 'H    S")
    assert session.training.task is None
    assert (session.trainer, session.basis) == (None, "sto-3g")


# Model files, label files, geometries -------------------------------------------------------------


@pytest.fixture(scope="module")
def label_model():
    """An OrbitalGNN after one update; its parameters do not matter."""
    mol = ql.Molecule.from_name("water")
    valence = np.zeros((3, 2 * orbital_gnn.VALENCE))
    label = labels.Label(-76.0, np.zeros((3, 3)), np.zeros(3), np.zeros(3), 0.3, valence)
    network = ql.GNNConfig("gfn1", width=8, layers=1, heads=2, radial=2)
    tasks = config.TaskWeights.only("energy")
    objective = supervised.Supervised(labels.LabelledSet([mol] * 3, [label] * 3, "PBE/def2-svp"), network)
    training = config.TrainConfig(minutes=None, steps=1, batch=1, validation=1, tasks=tasks)
    state, _ = list(ql.train(objective, training))[-1]
    return objective.predictor(state.average)


def planted_file(model, place: str, value) -> str:
    """A model file in whose description one entry has a different value."""
    model.save("model.h5")
    with h5py.File("model.h5", "r+") as file:
        record = json.loads(file.attrs["description"])
        replace(record, place, value)
        file.attrs["description"] = json.dumps(record)
    files.seal("model.h5")
    return "model.h5"


@pytest.mark.parametrize("value", [NWCHEM, "trap.nw", [NWCHEM], {"H": NWCHEM}, "x" * 50000])
@pytest.mark.parametrize("place", ["kind", "model", "model.source", "model.width", "kinds", "elements", "label"])
def test_a_file_of_an_orbital_gnn_with_a_trap_is_refused_in_a_sentence(label_model, place, value):
    path = planted_file(label_model, place, value)
    if place == "label" and isinstance(value, str):
        model = ql.load(path)  # words are only words
        assert model.label == value
        assert np.isfinite(model(ql.Molecule.from_name("water")).energy)
        return
    with pytest.raises(ql.InputError) as error:
        ql.load(path)
    sentence(error)


@pytest.mark.parametrize("value", [NWCHEM, "trap.nw", [NWCHEM], "x" * 50000])
@pytest.mark.parametrize("place", [
    "kind", "method", "method.basis", "method.auxbasis", "method.xc", "model.guess", "model.preset", "model.scheme",
    "molecules", "molecules.0.symbols.0",
])
def test_a_file_of_a_qpt_with_a_trap_is_refused_in_a_sentence(trained, place, value):
    with pytest.raises(ql.InputError) as error:
        ql.load(planted_file(trained.predictor, place, value))
    sentence(error)


def test_pickles_are_neither_models_nor_geometries_nor_labels():
    for name in ("model.h5", "water.xyz"):
        pathlib.Path(name).write_bytes(pickle.dumps(Trap()))
    for read in (lambda: ql.load("model.h5"), lambda: ql.read_xyz("water.xyz"), lambda: labels.read("water.xyz")):
        with pytest.raises(ql.InputError) as error:
            read()
        sentence(error)


COMMENTS = [
    f"energy=-1.0 theory='{EXPRESSION}'", f'energy=-1.0 name="{NWCHEM}"'.replace("\n", " "), f"energy={EXPRESSION}",
    f'energy=-1.0 more="_JSON {EXPRESSION}"', f"charge={EXPRESSION} energy=-1.0",
    f"Properties={EXPRESSION} energy=-1.0", f'energy=-1.0 dipole="{EXPRESSION} 0 0"',
    '_JSON={"__ase_objtype__":"atoms"} energy=-1.0', f"Lattice={EXPRESSION}",
]


@pytest.mark.parametrize("comment", COMMENTS, ids=range(len(COMMENTS)))
def test_comments_of_geometries_and_labels_are_read_as_data(comment):
    pathlib.Path("water.xyz").write_text(WATER_XYZ.format(comment))
    for read in (ql.read_xyz, labels.read, ql.Molecule.parse):
        try:
            read("water.xyz")
        except ql.InputError as error:
            sentence(error)


@pytest.mark.parametrize("text", [
    EXPRESSION, f"2\n\nH 0 0 0\nH 0 0 {EXPRESSION}\n", f"[{EXPRESSION}]", f"1\n\n{EXPRESSION} 0 0 0\n",
])
def test_molecules_that_are_expressions_are_refused(text):
    with pytest.raises(ql.InputError) as error:
        ql.Molecule.parse(text)
    sentence(error)


# The workbench ------------------------------------------------------------------------------------


def send(widget, **state) -> None:
    """A message as a page sends it."""
    widget._handle_msg({"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}, "buffers": []})


@pytest.mark.parametrize("text", [NWCHEM, "trap.nw", CP2K, "x" * 10**6])
def test_a_message_to_the_basis_box_is_refused_in_a_sentence(text):
    picker = MoleculePicker(Session("water", basis="sto-3g"))
    fields = {field.description: field for field in picker._fields.values()}
    send(fields["Basis"], value=text)
    assert picker.session.message.is_error
    assert sentence(picker.session.message.text).startswith("Expected the name of one of PySCF's basis sets as basis")
    assert picker.session.basis == fields["Basis"].value == "sto-3g"
    assert "Expected the name" in picker._message.value
    send(fields["Basis"], value="def2-svp")
    assert picker.session.basis == "def2-svp"
    assert picker._message.value == ""


def test_messages_to_the_molecule_boxes_are_data():
    picker = MoleculePicker(Session("water", basis="sto-3g"))
    for box, button in ((picker._text, picker._use_text), (picker._xyz, picker._use_xyz)):
        for text in (NWCHEM, "trap.nw", EXPRESSION, f"2\n\nH 0 0 0\nH 0 0 {EXPRESSION}\n"):
            send(box, value=text)
            button.click()
            cases.settle(picker.session)
            assert picker.session.message.is_error
            assert picker.session.molecule.formula == "H2O"


@pytest.mark.parametrize("make", [Session, Workbench])
def test_a_workbench_is_not_begun_with_a_trap(make):
    with pytest.raises(ql.InputError) as error:
        make(basis=NWCHEM)
    sentence(error)


def test_every_basis_of_the_package_is_a_name():
    names = [cases.QUICK_METHOD.basis, *basis_sets.EXAMPLES["basis"].replace(" or ", ", ").split(", ")]
    assert all(map(basis_sets.is_known, names))


@pytest.mark.filterwarnings("ignore:.* events.jsonl is damaged")
@pytest.mark.parametrize("name", ["metrics.csv.new", "events.jsonl.new", "events.jsonl", "validation.xyz"])
def test_nothing_is_written_through_a_link_of_a_run_folder(trained, tmp_path, name):
    """A stranger's folder may hold links to files of the user."""
    folder, outside = tmp_path / "linked", tmp_path / "outside.txt"
    shutil.copytree(trained.out, folder)
    outside.write_text((folder / name).read_text() if (folder / name).exists() else "mine")
    before = outside.read_text()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    trainer = ql.Trainer.open(folder)
    trainer.note("a remark")
    trainer.run_folder.write_geometries("validation.xyz", trainer.molecules)
    assert outside.read_text() == before


def test_a_link_in_place_of_the_checkpoints_is_refused(trained, tmp_path):
    folder = tmp_path / "linked"
    shutil.copytree(trained.out, folder)
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ql.InputError, match="Expected checkpoints in the run folder, got a link"):
        ql.load(folder)


def test_a_model_file_does_not_read_other_files(trained, tmp_path):
    path, secret = tmp_path / "model.h5", tmp_path / "secret.bin"
    secret.write_bytes(bytes(8 * 16))
    trained.predictor.save(path)
    with h5py.File(path, "a") as file:
        file.create_dataset("external/w", (16,), "f8", external=[(str(secret), 0, 128)])
    files.seal(path)
    with pytest.raises(ql.InputError, match="lies in a different file"):
        ql.load(path)
