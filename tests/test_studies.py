"""Studies of training: settings and baselines in one table."""

import itertools
import json
import re

import cases
import pytest

import qptlab as ql
from qptlab.benchmarking import studies
from qptlab.benchmarking.studies import Setting, Study

MODEL = ql.QPTConfig("micro", iterations=0)
CHOICES = Study("Two ways", [Setting("energy", MODEL), Setting("labels", MODEL, ql.TrainConfig(loss="labels"))])


@pytest.mark.slow
def test_a_study_is_a_table_and_a_plot_with_the_baselines(tmp_path):
    rows = list(studies.measure(CHOICES, cases.QUICK_METHOD, 0.2, 1))
    assert [row["setting"] for row in rows] == ["energy", "labels"]
    for row in rows:
        times, errors = zip(*row["curve"], strict=True)
        assert list(times) == sorted(times)
        assert errors[-1] == row["energy_mae_mev"]
        assert row["energy_mae_mev"] < row["baselines"]["no_network"]["energy_mae_mev"]
        assert row["seconds"] >= 12
    assert rows[0]["baselines"] == rows[1]["baselines"], "the same geometries"
    studies.write("two", CHOICES, rows, cases.QUICK_METHOD, tmp_path, "qptlab bench two")
    assert json.loads((tmp_path / "two.json").read_text())["rows"] == rows
    text = (tmp_path / "two.md").read_text()
    assert re.search(r"^\| energy +\| +1 \|", text, re.MULTILINE)
    assert "qptlab bench two" in text
    assert (tmp_path / "two.png").stat().st_size > 10_000


def test_every_study_can_be_asked_for_and_others_are_refused():
    for name in studies.STUDIES:
        assert len(studies.study(name).settings) > 1
    assert studies.study("size", ["ethanol"]).molecules == ("ethanol",)
    many = studies.study("molecules")
    assert len(ql.read_molecules(many.molecules)) == 96, "all different"
    assert not set(itertools.chain(*many.unseen.values())) & set(many.molecules)
    with pytest.raises(ql.InputError, match=r"Expected a study \(iterations, guess.*got 'love'"):
        studies.study("love")
