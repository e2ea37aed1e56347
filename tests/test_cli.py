"""The command line: JSON for scripts, sentences for people, no traceback for anyone."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import subprocess
import sys

import cases
import h5py
import nbformat
import numpy as np
import pytest
import typer

import qptlab as ql
from qptlab.cli import app, engine, lab, main
from qptlab.evaluation import labels, reference
from qptlab.units import HARTREE_MEV

WATER_XYZ = "3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
QUICK = ["--xc", "lda", "--basis", "sto-3g", "--grid-level", "0"]


@pytest.fixture
def call(capsys):
    """Runs a command in this process; gives its exit status, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


@pytest.fixture
def frames(tmp_path):
    path = tmp_path / "F.xyz"
    mol = ql.Molecule.from_name("water")
    path.write_text("".join(mol.with_positions(mol.positions * scale).to_xyz() for scale in (1.0, 1.02)))
    return path


def test_energy_prints_the_keys_that_scripts_read(call):
    status, out, err = call("energy", "water", *QUICK, "--check", "--json")
    record = json.loads(out)
    assert (status, err) == (0, "")
    assert set(record) == {
        "energy_ha", "converged", "cycles", "mo_energy_ha", "dipole_debye", "charges", "gap_ha", "eri", "geometry",
        "core_electrons", "seconds", "stability", "pyscf_energy_ha", "error_mev",
    }
    mf = cases.rks(ql.Molecule.from_name("water"), cases.QUICK_METHOD)
    assert record["energy_ha"] == pytest.approx(mf.kernel(), abs=1e-7)
    assert abs(record["error_mev"]) < 1e-3
    assert record["converged"] is True
    assert len(record["mo_energy_ha"]) == 7
    np.testing.assert_allclose(record["dipole_debye"], mf.dip_moment(verbose=0), atol=1e-4)


def test_energy_reads_files_and_speaks_to_people(call, tmp_path):
    path = tmp_path / "w.xyz"
    path.write_text(WATER_XYZ)
    status, out, err = call("energy", path, *QUICK)
    assert (status, err) == (0, "")
    assert "H2O  LDA/sto-3g" in out
    assert "hartree" in out
    assert "HOMO–LUMO gap" in out


def test_energy_of_a_radical_with_fitted_integrals_and_forces(call):
    options = ["--eri", "fitted", "--guess", "core", "--level-shift", "0.2", "--forces", "--check", "--json"]
    status, out, _ = call("energy", "[CH3]", *QUICK, *options)
    record = json.loads(out)
    assert (status, record["eri"]) == (0, "fitted")
    assert abs(record["error_same_fit_mev"]) < 1e-3 < abs(record["error_mev"])
    assert np.shape(record["mo_energy_ha"]) == (2, 8)
    np.testing.assert_allclose(np.sum(record["forces_ha_per_bohr"], axis=0), 0.0, atol=1e-8)
    assert sum(record["charges"]) == pytest.approx(0.0, abs=1e-8)


def test_a_search_that_does_not_converge_says_so_and_exits_with_1(call):
    status, out, err = call("energy", "water", *QUICK, "--damping", "0.99", "--json")
    assert (status, json.loads(out)["converged"]) == (1, False)
    assert "did not converge in 100 cycles" in err
    assert "use --level-shift 0.3 or --solver screened or --guess atomic-density." in err  # not what was given


@pytest.mark.parametrize(("molecule", "options", "found", "said"), [
    ("H 0 0 0\nH 0 0 2.65", ("--xc", "hf"), {"internal": True, "external": False}, "broken spin symmetry"),
    ("H 0 0 0\nH 0 0 0.74", ("--xc", "hf", "--stability"), {"internal": True, "external": True}, ""),
    ("O 0 0 0\nH 0 0 0.97", ("--xc", "hf", "--guess", "core"), {"internal": False, "external": None}, "lower"),
    ("O 0 0 0\nH 0 0 0.97", ("--xc", "hf"), None, ""),
    ("H 0 0 0", ("--xc", "pbe", "--stability"), {"internal": True, "external": None}, ""),
    ("He 0 0 0\nHe 0 0 3", ("--xc", "pbe"), {"internal": True, "external": True}, ""),
])
def test_an_unstable_state_is_said_where_it_is_likely(call, tmp_path, molecule, options, found, said):
    path = tmp_path / "M.xyz"
    path.write_text(f"{len(molecule.splitlines())}\n\n{molecule}\n")
    status, out, err = call("energy", path, "--basis", "def2-svp", "--grid-level", "0", *options, "--json")
    assert (status, json.loads(out)["stability"]) == (0, found)
    assert said in err
    assert bool(said) == bool(err)


@pytest.mark.parametrize(("cycles", "given", "said"), [
    (100, {"level_shift", "damping", "solver", "guess"}, "100 cycles, .*; use a different geometry."),
    (100, {"guess"}, "use --level-shift 0.3 or --damping 0.5 or --solver screened."),
    (7, {"level_shift"}, "that are not the lowest, .*; use no --level-shift or --solver screened or --guess"),
    (7, {"solver"}, "ended after 7 cycles with electrons in orbitals that are not the lowest, .*; use --guess"),
])
def test_advice_for_an_scf_that_fails_leaves_out_what_was_given(cycles, given, said):
    assert re.search(said, engine._failure(cycles, given))


def test_json_has_null_where_there_is_no_gap(call, tmp_path):
    (tmp_path / "he.xyz").write_text("1\n\nHe 0 0 0\n")
    status, out, _ = call("energy", tmp_path / "he.xyz", *QUICK, "--json")
    assert (status, json.loads(out)["gap_ha"]) == (0, None)


@pytest.mark.slow
def test_benchmarks_stand_beside_their_peer_and_are_kept(call, tmp_path):
    status, out, _ = call("bench", "growth", "--molecules", "hydrogen,water", "--out", tmp_path, "--json")
    rows = json.loads(out)["benchmarks"]["growth"]
    assert status == 0
    assert [row["formula"] for row in rows] == ["H2", "H2O"]
    for row in rows:
        assert abs(row["difference_mev"]) < 1e-3
        assert {"cold_s", "warm_s"} <= set(row["ours"])
    assert json.loads((tmp_path / "growth.json").read_text())["rows"] == rows
    assert "qptlab bench growth --molecules hydrogen,water" in (tmp_path / "growth.md").read_text()
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_evaluate_prints_the_keys_that_scripts_read(call, trained, frames):
    status, out, _ = call("evaluate", trained.out, "--geometries", frames, "--json")
    record = json.loads(out)
    assert status == 0
    assert record["n"] == 2
    assert set(record["baselines"]) == {"no_network", "pyscf_same_fock_builds"}
    assert record["energy_mae_mev"] < record["baselines"]["no_network"]["energy_mae_mev"]
    status, out, _ = call("evaluate", trained.out, "--geometries", frames)
    assert "no network, same iterations" in out


def test_predictions_go_into_a_file_that_holds_no_pickle(call, trained, frames, tmp_path):
    target = tmp_path / "p.h5"
    status, out, _ = call("predict", trained.out, "--geometries", frames, "--out", target, "--json")
    assert (status, json.loads(out)["n"]) == (0, 2)
    with h5py.File(target) as file:
        assert file["fock"].shape == (2, 7, 7)
        assert file["energy"][0] == pytest.approx(float(trained.predictor(ql.read_xyz(frames)[0]).energy))
        assert file.attrs["units"] == "hartree, bohr"
    status, _, err = call("predict", trained.out, "--geometries", frames, "--out", target)
    assert status == 2
    assert "is not overwritten" in err


def test_sampled_frames_are_readable_and_repeat_for_a_seed(call, tmp_path):
    one, two = tmp_path / "a.xyz", tmp_path / "b.xyz"
    for path in (one, two):
        assert call("sample", "water", "--n", "3", "--seed", "4", "--out", path, "--json")[0] == 0
    assert one.read_text() == two.read_text()
    assert len(ql.read_xyz(one)) == 3
    assert call("sample", "water", "--out", one)[0] == 2


@pytest.mark.parametrize(
    ("options", "kind", "scheme"),
    [
        (["--preset", "small"], "equivariant", "screened"), (["--model", "qpt"], "qpt", "mixing"),
        cases.slow(["--preset", "small", "--scheme", "mixing"], "equivariant", "mixing"),
        cases.slow(["--model", "qpt", "--scheme", "screened"], "qpt", "screened"),
    ],
)
def test_a_model_of_either_kind_is_trained_from_the_shell(call, tmp_path, options, kind, scheme):
    status, printed, err = call(
        "train", "water", *QUICK, *options, "-n", "0", "--sampler", "perturb", "--batch", "2", "--validation", "1",
        "--steps", "2", "--out", tmp_path / "w", "--json",
    )
    assert status == 0, err
    record = json.loads(printed)
    assert (record["kind"], record["steps"]) == (kind, 2)
    model = ql.load(tmp_path / "w")
    assert (model.kind, model.config.scheme) == (kind, scheme)
    assert np.isfinite(float(model(ql.Molecule.from_name("water")).energy))


@pytest.mark.slow
def test_training_from_the_shell_writes_a_run_and_one_json_object(call, tmp_path):
    out = tmp_path / "w"
    arguments = ["train", "water", *QUICK, "--preset", "small", "--sampler", "perturb", "--batch", "4", "-n", "0"]
    arguments += ["--out", out, "--json"]
    status, printed, err = call(*arguments, "--steps", "4")
    record = json.loads(printed)
    assert status == 0
    assert {"out", "steps", "seconds", "energy_ha", "validation_mae_mev", "data_wait_s", "compile_s"} <= set(record)
    assert record["steps"] == 4
    assert "Traceback" not in err
    status, _, err = call(*arguments, "--steps", "6")
    assert status == 2
    assert "holds another run" in err
    assert json.loads(call(*arguments, "--steps", "6", "--resume")[1])["steps"] == 6


@pytest.mark.slow
def test_a_model_that_comes_with_qptlab_is_listed_and_predicts_by_its_name(call):
    status, printed, _ = call("models", "--json")
    assert (status, list(json.loads(printed))) == (0, ["qm9-small"])
    status, printed, _ = call("models", "qm9-small")
    assert (status, printed.splitlines()[0]) == (0, "# qm9-small")
    assert "qm9-small" in call("models")[1]
    status, printed, err = call("predict", "qm9-small", "O", "--json")
    assert status == 0, err
    exact = reference.converged(ql.Molecule.parse("O"), ql.load("qm9-small").method).energy
    assert json.loads(printed)["energy_ha"][0] == pytest.approx(exact, abs=1e-4)
    status, _, err = call("predict", "qm9-large", "O")
    assert status == 2
    assert "one of the models qm9-small, got 'qm9-large'" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:H3NO is not among", "ignore:The prediction of .* has an estimated error")
def test_one_model_of_several_molecules_from_files_predicts_each_and_warns_of_others(call, tmp_path):
    (tmp_path / "list.smi").write_text("# one\nN ammonia\n")
    mols = [ql.Molecule.parse(text) for text in ("water", "ammonia", "NO")]
    (tmp_path / "three.xyz").write_text("".join(mol.to_xyz() for mol in mols))
    out = tmp_path / "many"
    status, printed, err = call(
        "train", tmp_path / "list.smi", "water", *QUICK, "--preset", "small", "--sampler", "perturb", "--batch", "4",
        "-n", "0", "--steps", "4", "--out", out, "--json",
    )
    assert status == 0, err
    assert json.loads(printed)["molecules"] == ["H3N", "H2O"]
    status, printed, err = call(
        "predict", out, "--geometries", tmp_path / "three.xyz", "--out", tmp_path / "p.h5", "--json"
    )
    assert status == 0, err
    assert len(json.loads(printed)["residual_ha"]) == 3
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["H2O/fock"].shape == (1, 7, 7)
        assert file["H3N/fock"].shape == (1, 8, 8)
        assert list(file["H3NO/frame"]) == [2]
    status, printed, err = call("predict", out, "O", "N", "--json")
    assert status == 0, err
    record = json.loads(printed)
    assert (record["out"], record["molecules"], record["method"]) == (None, ["O", "N"], "LDA/sto-3g")
    exact = [float(ql.scf(ql.Molecule.parse(text), ql.load(out).method).energy) for text in "ON"]
    for energy, floor, estimate in zip(record["energy_ha"], exact, record["energy_error_mev"], strict=True):
        assert estimate == pytest.approx((energy - floor) * HARTREE_MEV, rel=0.5)
    status, printed, _ = call("predict", out, "O")
    assert status == 0
    assert "estimated error, meV" in printed
    assert f"{record['energy_ha'][0]:.6f}" in printed
    status, printed, err = call(
        "train", "water", "--start", out, "--xc", "pbe", "--sampler", "perturb", "--batch", "4", "-n", "1",
        "--steps", "2", "--out", tmp_path / "tuned", "--json",
    )
    assert status == 0, err
    tuned, first = ql.load(tmp_path / "tuned"), ql.load(out)
    assert (tuned.method.xc, tuned.method.grid_level, tuned.config.iterations) == ("pbe", 0, 1)
    assert tuned.model.kinds == first.model.kinds
    status, _, err = call("train", "water", "--start", out, "--preset", "base", "--out", tmp_path / "other")
    assert status == 2
    assert "Expected the network of the model to start from" in err
    status, _, err = call("predict", out, "O", "--geometries", tmp_path / "three.xyz")
    assert status == 2
    assert "Expected MOLECULES or --geometries, got both" in err
    with pytest.warns(UserWarning, match="H3NO is not among the 2 molecules"):
        ql.load(out)(mols[2])
    status, _, err = call("predict", out, "--geometries", _xyz(tmp_path, "FF"), "--out", tmp_path / "q.h5")
    assert status == 2
    assert "got F 1s" in err


def _xyz(folder, smiles):
    path = folder / "other.xyz"
    path.write_text(ql.Molecule.from_smiles(smiles).to_xyz())
    return path


def test_info_names_versions_and_devices(call):
    status, out, _ = call("info", "--json")
    record = json.loads(out)
    assert status == 0
    assert record["libraries"]["jax"]
    assert record["devices"]
    assert call("info")[0] == 0


BAD = [
    (["energy", "C1CC"], "'C1CC'"),
    (["energy", "[CH3]", "--spin", "2"], "9 electrons"),
    (["energy", "nowhere.xyz"], "nowhere.xyz"),
    (["energy", "water", "--xc", "b3lyp6"], "b3lyp6"),
    (["energy", "water", "--guess", "huckel"], "huckel"),
    (["energy", "water", "--solver", "newton"], "newton"),
    (["energy", "water", "--eri", "exact", "--auxbasis", "def2-svp-jkfit"], "use eri='fitted'"),
    (["energy", "water", "--damping", "1"], "damping of 0 to below 1, got 1.0"),
    (["train", "[CH3]", "--out", "{tmp}/w"], "closed-shell"),
    (["bench", "speed"], "'speed'"),
    (["bench", "fock", "--out", "{tmp}/none"], "none, which does not exist"),
    (["energy", "water", "--basis", "nonsense"], "nonsense"),
    (["energy", "water", "--grid-level", "9"], "grid_level 9"),
    (["energy", "water", "--grid-level", "fine"], "fine"),
    (["energy"], "MOLECULE"),
    (["energy", "water", "--colour"], "--colour"),
    (["dance"], "dance"),
    (["train", "water", "--minutes", "0", "--out", "{tmp}/w"], "got 0.0"),
    (["train", "water", "--sampler", "dream", "--out", "{tmp}/w"], "dream"),
    (["train", "water", "--sampler", "file", "--frames", "{tmp}/cut.xyz", "--out", "{tmp}/w"], "cut.xyz"),
    (["train", "water", "--preset", "huge", "--out", "{tmp}/w"], "huge"),
    (["train", "water", "--out", "{tmp}"], "holds other files"),
    (["train", "Xx", "--out", "{tmp}/w"], "'Xx'"),
    (["train", "water", "--sampler", "torsions", "--out", "{tmp}/w"], "a rotatable bond"),
    (["train", "water", "--loss", "love", "--out", "{tmp}/w"], "got 'love'"),
    (["train", "water", "--guess", "huckel", "--out", "{tmp}/w"], "as guess, got 'huckel'"),
    (["train", "water", "--scheme", "newton", "--out", "{tmp}/w"], "screened, mixing as scheme, got 'newton'"),
    (["train", "water", "--preset", "micro", "--out", "{tmp}/w"], "'micro', which is a preset of kind qpt"),
    (["train", "water", "--preset", "huge", "--out", "{tmp}/w"], "one of small, base, large as preset, got 'huge'"),
    (["train", "water", "--model", "qpt", "--preset", "huge", "--out", "{tmp}/w"], "one of micro, tiny, small"),
    (["train", "water", "--precision", "float64", "--out", "{tmp}/w"], "no --precision for a model of kind eq"),
    (["train", "{tmp}/none.smi", "--out", "{tmp}/w"], "none.smi, which cannot be read"),
    (["train", "water", "--sampler", "model", "--guess", "atomic-density", "--out", "{tmp}/w"], "with a derivative"),
    (["bench", "labels", "--seeds", "0"], "0 seeds"),
    (["bench", "scf", "--minutes", "2"], "Expected no --minutes for scf"),
    (["bench", "fock", "--dispersion", "d4"], "Expected no --dispersion for fock"),
    (["bench", "methods", "--dispersion", "d4"], "which compares its own, got d4"),
    (["bench", "scaling", "--molecules", "water"], "trainings on 1, 10, 96, got 1"),
    (["evaluate", "{tmp}", "--geometries", "{tmp}/cut.xyz"], "cut.xyz"),
    (["evaluate", "{tmp}", "--geometries", "{tmp}/good.xyz"], "has no readable config.json"),
    (["sample", "water", "--n", "0", "--out", "{tmp}/s.xyz"], "as --n, got 0"),
    (["sample", "water", "--out", "{tmp}/no/such/s.xyz"], "does not exist"),
    (["energy", "{tmp}/overlap.xyz"], "0.100 Å apart"),
    (["energy", "{tmp}/nan.xyz"], "not a finite number"),
    (["energy", "{tmp}/cut.xyz"], "not complete XYZ"),
    (["lab", "{tmp}/none.ipynb"], "none.ipynb"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_gets_one_sentence_and_writes_nothing(call, tmp_path, arguments, said):
    (tmp_path / "good.xyz").write_text(WATER_XYZ)
    (tmp_path / "cut.xyz").write_text(WATER_XYZ[:20])
    (tmp_path / "overlap.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.1\n")
    (tmp_path / "nan.xyz").write_text("2\n\nH 0 0 0\nH 0 0 nan\n")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call(*[argument.format(tmp=tmp_path) for argument in arguments])
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("qptlab: ")
    assert said in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fresh_process_behaves_alike():
    """python -m qptlab: exit status and streams as a script sees them."""
    command = [sys.executable, "-m", "qptlab", "energy", "C1CC"]
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1


def test_lab_names_the_address_of_the_notebook_and_ends_as_jupyterlab_does(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "a day.ipynb")
    command = [sys.executable, "-m", "qptlab", "lab", str(tmp_path / "a day.ipynb")]
    environment = {**os.environ, "BROWSER": "true", "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as lab:
        try:
            said = itertools.takewhile(lambda line: "127.0.0.1" not in line, lab.stderr)
            assert any(re.search(r"http://localhost:\d+/lab/tree/a%20day.ipynb\?token=", line) for line in said)
            lab.terminate()
            assert "Shutting down" in lab.stderr.read()
        finally:
            lab.kill()  # without effect on one that has ended
    assert lab.returncode == 0


def test_lab_asks_a_person_where_the_course_goes_and_keeps_what_is_there(call, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True  # noqa: E731

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "_first_notebook", lambda: None)  # as outside the repository
    monkeypatch.setattr(sys, "stdin", Terminal("mine\n"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/01-first-light.ipynb").write_text("my notes")
    status, out, _ = call("lab", "--no-open")
    assert status == 0
    assert "files into mine; kept 1 file of yours." in out
    assert (tmp_path / "mine/01-first-light.ipynb").read_text() == "my notes"
    assert (tmp_path / "mine/benchmarks/results/labels.json").exists()
    status, _, err = call("lab", "--copy", tmp_path / "mine/01-first-light.ipynb")
    assert status == 2
    assert "Expected a folder for the course" in err


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Geometries of water and ammonia, and their labels in a file made from a shell."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    mols = [ql.Molecule.from_name(name) for name in ("water", "ammonia") for _ in range(4)]
    mols = [mol.with_positions(mol.positions + 0.05 * rng.normal(size=mol.positions.shape)) for mol in mols]
    (folder / "frames.xyz").write_text("".join(mol.to_xyz() for mol in mols))
    with pytest.raises(SystemExit) as ended:
        main(["label", "--geometries", str(folder / "frames.xyz"), *QUICK, "--out", str(folder / "labels.xyz")])
    assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def orbital_gnn(labelled):
    """The folder of an OrbitalGNN trained from a shell, and the record that was printed."""
    capture = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(capture):
        main(["train", "--labels", str(labelled / "labels.xyz"), "--out", str(labelled / "model"), "--steps", "50",
              "--tasks", "energy,dipole", "--validation", "0.25", "--theory", "LDA/STO-3G", "--json"])
    assert ended.value.code == 0
    return labelled / "model", json.loads(capture.getvalue())


def test_labels_are_made_once(call, labelled):
    before = (labelled / "labels.xyz").read_text()
    options = ["--geometries", labelled / "frames.xyz", *QUICK, "--out", labelled / "labels.xyz", "--json"]
    status, out, _ = call("label", *options)
    assert (status, json.loads(out)) == (0, {"out": str(labelled / "labels.xyz"), "n": 8, "left_out": 0})
    assert (labelled / "labels.xyz").read_text() == before


def test_labels_of_another_basis_are_not_mixed_in(call, labelled):
    options = ["--geometries", labelled / "frames.xyz", *QUICK, "--basis", "6-31g", "--out", labelled / "labels.xyz"]
    status, _, err = call("label", *options)
    assert status == 2
    assert "got labels of LDA/sto-3g" in err


@pytest.mark.parametrize("seed", range(3))
def test_an_element_of_one_frame_is_learned_whatever_the_seed(call, labelled, tmp_path, seed):
    """Judged by such a frame, a model would be asked for what it never saw."""
    water = ql.read_labels(labelled / "labels.xyz").take(range(4))
    fluoride = ql.Molecule(("H", "F"), np.array([[0, 0, 0], [0, 0, 1.75]]))
    label = labels.from_pyscf(fluoride, ql.Method("lda", "sto-3g", grid_level=0))
    labels.write(
        tmp_path / "more.xyz", ql.LabelledSet([*water.molecules, fluoride], [*water.labels, label], water.theory)
    )
    status, out, _ = call("train", "--labels", tmp_path / "more.xyz", "--out", tmp_path / "m", "--steps", "1",
                          "--tasks", "energy", "--validation", "0.4", "--seed", seed, "--json")
    assert (status, "F" in ql.load(tmp_path / "m").model.elements) == (0, True)
    assert json.loads(out)["validation_mae_mev"] < 27211


def test_a_teacher_says_labels_in_place_of_pyscf(call, trained, frames, tmp_path):
    status, out, _ = call("label", "--geometries", frames, "--teacher", trained.out, "--out", tmp_path / "t.xyz")
    assert (status, out) == (0, f"2 labels in {tmp_path / 't.xyz'}\n")
    mol = ql.read_xyz(frames)[0]
    energy = labels.read(tmp_path / "t.xyz")[1][0].energy
    assert energy == pytest.approx(float(trained.predictor(mol).energy), abs=1e-7)


def test_an_orbital_gnn_is_trained_judged_and_used_from_a_shell(call, labelled, orbital_gnn, tmp_path):
    path, record = orbital_gnn
    errors = record["validation"]
    keys = {"energy_mae_mev", "energy_max_mev", "dipole_mae_debye", "charge_mae", "gap_mae_ev", "standard_errors"}
    assert set(errors) == {"n", "baselines", *keys}  # forces were not to be learned
    assert (record["kind"], record["steps"], errors["n"]) == ("orbital-gnn", 50, 2)
    assert set(errors["baselines"]["no_network"]) == keys
    assert record["validation_mae_mev"] == errors["energy_mae_mev"]

    status, out, _ = call("evaluate", path, "--geometries", labelled / "labels.xyz", "--json")
    judged = json.loads(out)
    assert (status, judged["n"]) == (0, 8)
    assert judged["forces_mae_mev_angstrom"] > 0
    status, out, _ = call("evaluate", path, "--geometries", labelled / "labels.xyz")
    assert "low-cost method and linear fit" in out
    assert "energy MAE, meV" in out

    status, _, _ = call("predict", path, "--geometries", labelled / "frames.xyz", "--out", tmp_path / "p.h5")
    assert status == 0
    model, mols = ql.load(path), ql.read_xyz(labelled / "frames.xyz")
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["method"] == "LDA/STO-3G"
        assert file["H2O/energy"][0] == pytest.approx(float(model(mols[0]).energy), abs=1e-9)
        assert file["H3N/charges"].shape == (4, 4)


def test_a_molecule_is_relaxed_from_a_shell(call, orbital_gnn, tmp_path):
    status, out, _ = call("relax", orbital_gnn[0], "ammonia", "--out", tmp_path / "r.xyz", "--json")
    record = json.loads(out)
    assert (status, record["converged"]) == (0, True)
    assert record["fmax_ev_angstrom"] <= 0.01
    found = ql.load(orbital_gnn[0])(ql.Molecule.from_xyz(tmp_path / "r.xyz")).energy
    assert record["energy_ha"] == pytest.approx(float(found), abs=1e-8)
    status, _, err = call("relax", orbital_gnn[0], "ammonia", "--out", tmp_path / "s.xyz", "--steps", "1")
    assert status == 1
    assert "Expected forces below 0.01 eV/Å after 1 steps" in err
    assert (tmp_path / "s.xyz").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labels", "labels.xyz", "--tasks", "energy,colour"], "got colour"),
        (["--labels", "frames.xyz"], "Expected an energy in frame 0 of {}/frames.xyz"),
        (["--labels", "labels.xyz", "--validation", "0"], "got 0"),
        (["--labels", "labels.xyz", "--validation", "nan"], "got nan"),
        (["--labels", "labels.xyz", "--validation", "8"], "to hold out 8, got 8"),
        (["--labels", "labels.xyz", "--seed", "-1"], "-1"),
        (["--labels", "labels.xyz", "--model", "qpt"], "use ql.GNNConfig()"),
        (["--labels", "labels.xyz", "--reuse", "3"], "Expected no --reuse for a training on --labels"),
        (["--labels", "labels.xyz", "--preset", "tiny"], "Expected no --preset for a model of kind orbital-gnn"),
        (["water", "--labels", "labels.xyz"], "got both"),
        ([], "got neither"),
        (["water", "--model", "orbital-gnn"], "use ql.EquivariantConfig()"),
        (["water", "--model", "mine"], "'mine'"),
        (["water", "--tasks", "energy"], "Expected no --tasks for a training without --labels"),
        (["water", "--validation", "0.5"], "0.5"),
    ],
)
def test_a_training_that_does_not_fit_its_data_is_refused(call, labelled, tmp_path, arguments, said):
    words = [str(labelled / word) if word.endswith(".xyz") else word for word in arguments]
    status, _, err = call("train", *words, "--out", tmp_path / "m")
    assert status == 2
    assert said.format(labelled) in err
    assert not (tmp_path / "m").exists()


def test_a_file_that_is_no_model_is_refused(call, labelled):
    status, _, err = call("evaluate", labelled / "labels.xyz", "--geometries", labelled / "labels.xyz")
    assert status == 2
    assert "Expected a model file" in err


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["water"], (ql.Method(), ql.EquivariantConfig(), ql.TrainConfig())),
        (["water", "--model", "qpt"], (ql.Method(), ql.QPTConfig(), ql.TrainConfig())),
        (
            ["water", "--preset", "small", "--scheme", "mixing"],
            (ql.Method(), ql.EquivariantConfig("small", scheme="mixing"), ql.TrainConfig()),
        ),
        (
            ["water", "--model", "qpt", "--preset", "tiny", "--scheme", "screened", "--train-grid-level", "-1"],
            (ql.Method(), ql.QPTConfig("tiny", scheme="screened"), ql.TrainConfig(grid_level=None)),
        ),
        (["--labels", "labels.xyz"], (None, ql.GNNConfig(), ql.TrainConfig.supervised())),
        (
            ["water", "--xc", "pbe0", "-n", "1", "--steps", "7", "--train-iterations", "-1", "--sampler",
             "perturb", "--sigma", "0.1", "--weight-decay", "0.5"],
            (
                ql.Method("pbe0"), ql.EquivariantConfig(iterations=1),
                ql.TrainConfig(
                    minutes=None, steps=7, iterations=None, weight_decay=0.5,
                    sampling=ql.Sampling("perturb", sigma_bohr=0.1),
                ),
            ),
        ),
        (
            ["--labels", "labels.xyz", "--source", "guess", "--minutes", "2", "--tasks", "energy"],
            (
                None, ql.GNNConfig("guess"),
                ql.TrainConfig.supervised(minutes=2.0, steps=None, tasks=ql.TaskWeights.only("energy")),
            ),
        ),
    ],
)
def test_an_option_that_is_not_used_has_pythons_default(call, labelled, tmp_path, monkeypatch, arguments, settings):
    recorded = []

    def record(data, *values, resume, start):
        assert not resume
        assert start is None
        recorded.extend(values[:3])
        raise ql.InputError("Expected settings, got them.")

    monkeypatch.setattr(ql, "Trainer", record)
    words = [str(labelled / word) if word.endswith(".xyz") else word for word in arguments]
    assert call("train", *words, "--out", tmp_path / "m")[0] == 2
    assert tuple(recorded) == settings


def test_every_setting_of_a_training_is_an_option_with_a_description():
    options = {option.name: option.help or "" for option in typer.main.get_command(app).commands["train"].params}
    settings = {
        "xc", "basis", "grid_level", "eri", "auxbasis", "dispersion", "tasks", "sampler", "train_iterations",
        "train_grid_level",
    }
    for config in (ql.EquivariantConfig, ql.QPTConfig, ql.GNNConfig, ql.TrainConfig):
        settings |= {field.name for field in dataclasses.fields(config)} - {"sampling"}
    assert settings <= set(options)
    assert not [name for name in settings if not options[name].endswith(".")]
    assert "one of minao, " in options["guess"]
    assert options["batch"].endswith("Default: 4. With --labels: 8.")
    assert options["scheme"].endswith("screened, mixing. Default: screened. With --model qpt: mixing.")
    preset = "Network shape, one of small, base, large. Default: base. With --model qpt: network shape, one of "
    assert options["preset"].startswith(preset)
    assert options["preset"].endswith("Default: micro.")
    assert options["iterations"].endswith("Default: 2.")
