"""The command line: JSON for scripts, sentences for people, no traceback for anyone."""

import json
import subprocess
import sys

import cases
import h5py
import numpy as np
import pytest

import qptlab as ql
from qptlab.cli import main

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
        "energy_ha", "converged", "cycles", "mo_energy_ha", "dipole_debye", "charges", "gap_ha", "eri", "seconds",
        "pyscf_energy_ha", "error_mev",
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


def test_json_has_null_where_there_is_no_gap(call, tmp_path):
    (tmp_path / "he.xyz").write_text("1\n\nHe 0 0 0\n")
    status, out, _ = call("energy", tmp_path / "he.xyz", *QUICK, "--json")
    assert (status, json.loads(out)["gap_ha"]) == (0, None)


@pytest.mark.slow
def test_benchmarks_stand_beside_their_peer_and_are_kept(call, tmp_path):
    status, out, _ = call("bench", "fock", "--molecules", "hydrogen", "--out", tmp_path, "--json")
    rows = json.loads(out)["benchmarks"]["fock"]
    assert status == 0
    assert len(rows) == 6
    for row in rows:
        assert abs(row["difference_mev"]) < 1e-6
        assert {"cold_s", "warm_s", "gradient_s"} <= set(row["ours"])
    assert json.loads((tmp_path / "fock.json").read_text())["rows"] == rows
    assert "qptlab bench fock --molecules hydrogen" in (tmp_path / "fock.md").read_text()
    assert (tmp_path / "fock.png").stat().st_size > 1000


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


@pytest.mark.slow
def test_training_from_the_shell_writes_a_run_and_one_json_object(call, tmp_path):
    out = tmp_path / "w"
    arguments = ["train", "water", *QUICK, "--sampler", "perturb", "--batch", "4", "-n", "0", "--out", out, "--json"]
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
@pytest.mark.filterwarnings("ignore:CH4 was not among")
def test_one_model_of_several_molecules_from_files_predicts_each_and_warns_of_others(call, tmp_path):
    (tmp_path / "list.smi").write_text("# two\nN ammonia\nCO\n")
    mols = [ql.Molecule.from_name(name) for name in ("water", "ammonia", "methane")]
    (tmp_path / "three.xyz").write_text("".join(mol.to_xyz() for mol in mols))
    out = tmp_path / "many"
    status, printed, err = call(
        "train", tmp_path / "list.smi", "water", *QUICK, "--sampler", "perturb", "--batch", "4", "-n", "0",
        "--steps", "4", "--out", out, "--json",
    )
    assert status == 0, err
    assert json.loads(printed)["molecules"] == ["H3N", "CH4O", "H2O"]
    status, printed, err = call(
        "predict", out, "--geometries", tmp_path / "three.xyz", "--out", tmp_path / "p.h5", "--json"
    )
    assert status == 0, err
    assert len(json.loads(printed)["residual_ha"]) == 3
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["H2O/fock"].shape == (1, 7, 7)
        assert file["H3N/fock"].shape == (1, 8, 8)
        assert list(file["CH4/frame"]) == [2]
    with pytest.warns(UserWarning, match="CH4 was not among the 3 molecules"):
        ql.load(out)(mols[2])
    status, _, err = call("predict", out, "--geometries", _xyz(tmp_path, "FF"), "--out", tmp_path / "q.h5")
    assert status == 2
    assert "atomic orbitals F 1s" in err


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
    (["energy", "water", "--eri", "exact", "--auxbasis", "def2-svp-jkfit"], "'fitted' would do"),
    (["energy", "water", "--damping", "1"], "damping 1.0"),
    (["train", "[CH3]", "--out", "{tmp}/w"], "closed-shell"),
    (["bench", "speed"], "'speed'"),
    (["bench", "fock", "--out", "{tmp}/none"], "none does not exist"),
    (["energy", "water", "--basis", "nonsense"], "nonsense"),
    (["energy", "water", "--grid-level", "9"], "grid_level 9"),
    (["energy", "water", "--grid-level", "fine"], "fine"),
    (["energy"], "MOLECULE"),
    (["energy", "water", "--colour"], "--colour"),
    (["dance"], "dance"),
    (["train", "water", "--minutes", "0", "--out", "{tmp}/w"], "0.0 minutes"),
    (["train", "water", "--sampler", "dream", "--out", "{tmp}/w"], "dream"),
    (["train", "water", "--sampler", "file", "--frames", "{tmp}/cut.xyz", "--out", "{tmp}/w"], "cut.xyz"),
    (["train", "water", "--preset", "huge", "--out", "{tmp}/w"], "huge"),
    (["train", "water", "--out", "{tmp}"], "holds other files"),
    (["train", "Xx", "--out", "{tmp}/w"], "'Xx'"),
    (["train", "water", "--sampler", "torsions", "--out", "{tmp}/w"], "no rotatable bond"),
    (["train", "water", "--loss", "love", "--out", "{tmp}/w"], "loss 'love'"),
    (["train", "water", "--guess", "huckel", "--out", "{tmp}/w"], "model guess 'huckel'"),
    (["train", "{tmp}/none.smi", "--out", "{tmp}/w"], "none.smi cannot be read"),
    (["train", "water", "--sampler", "model", "--guess", "atomic-density", "--out", "{tmp}/w"], "no derivative"),
    (["bench", "labels", "--seeds", "0"], "0 seeds"),
    (["bench", "scf", "--minutes", "2"], "--minutes 2.0 was given for scf"),
    (["bench", "molecules", "--molecules", "water"], "1 molecules were given"),
    (["evaluate", "{tmp}", "--geometries", "{tmp}/cut.xyz"], "cut.xyz"),
    (["evaluate", "{tmp}", "--geometries", "{tmp}/good.xyz"], "holds no run"),
    (["sample", "water", "--n", "0", "--out", "{tmp}/s.xyz"], "n 0"),
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


def test_import_is_light():
    """import qptlab loads neither plotly, ipywidgets nor tblite."""
    code = "import sys, qptlab; print([m for m in ('plotly', 'ipywidgets', 'tblite', 'py3Dmol') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
