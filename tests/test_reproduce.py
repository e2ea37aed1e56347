"""Repetition of trainings from their folders."""

import csv
import dataclasses
import json
import shutil

import cases
import jax
import pytest

import qptlab as ql
from qptlab.cli import main
from qptlab.evaluation import labels
from qptlab.training.checksums import sealed
from qptlab.training.reproduce import TOLERANCE
from qptlab.training.run import Run

HYDROGEN = ql.Molecule.from_xyz("2\n\nH 0 0 0\nH 0 0 0.75\n")
WATER = ql.Molecule.from_name("water")
FEW = ql.TrainConfig(
    minutes=None, steps=4, batch=2, reuse=2, warmup_steps=2, validation=1, sampling=ql.Sampling("md")
)


def curve(path):
    """Return the numbers of a folder's table that do not depend on the clock."""
    names = ("step", "energy_ha", "loss", "grad_norm", "learning_rate", "geometries")
    return [{name: row[name] for name in names} for row in Run.open(path).metrics()]


def changed(path, out, *keys, value):
    """Return a copy of a folder whose config.json has a different value."""
    shutil.copytree(path, out)
    record = json.loads((out / "config.json").read_text())
    place = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (out / "config.json").write_text(sealed(record))
    return out


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Return the folder of a training on H2 that was stopped after 4 steps and continued to 6."""
    out = tmp_path_factory.mktemp("runs") / "resumed"
    ql.Trainer(HYDROGEN, cases.QUICK_METHOD, cases.QUICK_MODEL, FEW, out).run()
    ql.Trainer.open(out, dataclasses.replace(FEW, steps=6)).run()
    return out


def test_a_training_that_was_continued_is_repeated_bit_for_bit(resumed, tmp_path):
    """The learning rate of its first steps is that of the first budget."""
    before = {path: path.stat().st_mtime for path in resumed.rglob("*")}
    found = ql.reproduce(resumed, out=tmp_path / "again")
    assert str(found) == "The curve of 6 steps is the same, bit for bit."
    assert (found.is_exact, found.difference, found.largest, found.elsewhere) == (True, None, 0.0, {})
    assert curve(resumed) == curve(tmp_path / "again")
    assert ql.load(tmp_path / "again")(HYDROGEN).energy == ql.load(resumed)(HYDROGEN).energy
    assert {path: path.stat().st_mtime for path in resumed.rglob("*")} == before
    assert ql.reproduce(tmp_path / "again", 2).is_exact


def test_a_budget_in_minutes_is_repeated_in_steps_with_the_learning_rates_of_its_clock(tmp_path):
    config = dataclasses.replace(FEW, minutes=1.0, steps=3)
    ql.Trainer(HYDROGEN, cases.QUICK_METHOD, cases.QUICK_MODEL, config, tmp_path / "run").run()
    rates = [row["learning_rate"] for row in Run.open(tmp_path / "run").metrics()]
    assert rates[-1] != dataclasses.replace(config, minutes=None).learning_rate
    assert ql.reproduce(tmp_path / "run").is_exact


@pytest.mark.parametrize(("keys", "value", "column"), [
    (("train", "learning_rate"), 1.001e-3, "learning_rate"),
    (("train", "seed"), 1, "energy_ha"),
    (("train", "reuse"), 3, "geometries"),
    (("train", "averaging"), 0.5, None),
    (("method", "xc"), "pbe", "energy_ha"),
])
def test_a_changed_setting_is_a_different_curve(resumed, tmp_path, keys, value, column):
    """The mean of the parameters is for predictions only: the curve does not depend on it."""
    found = ql.reproduce(changed(resumed, tmp_path / "changed", *keys, value=value), 4)
    assert (found.difference is None) == found.is_exact == (column is None)
    if column is None:
        return
    assert found.difference.column == column
    assert str(found).startswith(f"The curve differs: {column} of step {found.difference.step} is ")
    assert "bit for bit was expected." in str(found)


def test_other_versions_may_differ_by_rounding_and_no_more(resumed, tmp_path):
    elsewhere = changed(resumed, tmp_path / "elsewhere", "versions", "numpy", value="1.0.0")
    table = elsewhere / "metrics.csv"
    rows = list(csv.reader(table.read_text().splitlines()))
    column = rows[0].index("loss")
    for shift, agrees in ((0.0, True), (1e-8, True), (1e-3, False)):
        again = [row[:] for row in rows]
        again[2][column] = repr(float(rows[2][column]) + shift)
        table.write_text("\n".join(map(",".join, again)) + "\n")
        found = ql.reproduce(elsewhere, 2)
        assert (found.difference is None) == agrees
        assert found.is_exact == (shift == 0)
        assert found.largest == pytest.approx(shift / abs(float(rows[2][column])), rel=1e-3)
        assert "numpy" in str(found)
        assert "'1.0.0'" in str(found)
        assert found.to_dict()["tolerance"] == TOLERANCE


@pytest.mark.filterwarnings("ignore:.* is not the molecule")
def test_a_training_that_starts_from_a_model_is_repeated_from_its_parameters(tmp_path):
    systems, kinds = ql.make_systems([WATER], cases.QUICK_METHOD, cases.SMALL)
    model = ql.CorrectionModel(cases.SMALL, kinds)
    known = ql.CorrectionPredictor(model, cases.awake(model.init(jax.random.key(0))), systems)
    trainer = ql.Trainer(HYDROGEN, None, None, dataclasses.replace(FEW, steps=1), tmp_path / "run", start=known).run()
    for step in (2, 3):  # more checkpoints, of which two are kept
        trainer.run_folder.save(trainer.run_folder.restore()._replace(step=step))
    assert sorted(int(path.name) for path in (tmp_path / "run/checkpoints").glob("[0-9]*")) == [0, 2, 3]
    assert ql.reproduce(tmp_path / "run").is_exact
    shutil.rmtree(tmp_path / "run/checkpoints/0")
    with pytest.raises(ql.InputError, match=r"the parameters that the run in .* started from"):
        ql.reproduce(tmp_path / "run")


def test_a_training_on_labels_is_repeated(tmp_path):
    mols = [WATER.with_positions(WATER.positions * scale) for scale in (0.98, 1.0, 1.02, 1.04)]
    known = [labels.from_pyscf(mol, cases.QUICK_METHOD) for mol in mols]
    data = ql.LabelledSet(mols, known, "LDA/sto-3g")
    config = ql.TrainConfig.supervised(steps=3, batch=2, validation=1)
    network = ql.GNNConfig(width=8, layers=1, heads=2, radial=2)
    ql.Trainer(data, model=network, train=config, out=tmp_path / "run").run()
    assert ql.reproduce(tmp_path / "run").is_exact


def test_the_command_says_it_in_a_sentence_or_json_and_its_status(resumed, tmp_path, capsys):
    def called(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["reproduce", *map(str, arguments)])
        return ended.value.code, capsys.readouterr()

    status, said = called(resumed, "--steps", 2)
    assert (status, said.out) == (0, "The curve of 2 steps is the same, bit for bit.\n")
    other = changed(resumed, tmp_path / "other", "train", "seed", value=1)
    status, said = called(other, "--steps", 1, "--json")
    found = json.loads(said.out)
    assert status == 1
    assert (found["agrees"], found["exact"], found["steps"]) == (False, False, 1)
    assert found["difference"]["step"] == 1
    for arguments in ((resumed, "--steps", 7), (resumed, "--steps", 0), (tmp_path,), (resumed, "--out", resumed)):
        status, said = called(*arguments)
        assert (status, said.out) == (2, "")
        assert "Expected" in said.err
