"""Studies of training: settings and baselines in one table."""

import itertools
import json
import re

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.benchmarking import studies
from qptlab.benchmarking.studies import Bends, Setting, Stretches, Study, TestGroup
from qptlab.system import coordinates

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


@pytest.mark.slow
def test_models_are_tested_on_further_geometries_and_refuse_a_larger_basis(tmp_path):
    groups = {
        "other molecule": TestGroup(("hydrogen",)),
        "stretches": TestGroup(sampling=Stretches()),
        "Hartree–Fock": TestGroup(xc="hf"),
        "the same": TestGroup(xc="lda", each=4),
        "6-31G": TestGroup(basis="6-31g"),
    }
    config = ql.EquivariantConfig("small", iterations=0)
    study = Study("Groups", [Setting("LDA", config, method=cases.QUICK_METHOD)], groups=groups, geometries=4)
    (row,) = studies.measure(study, ql.Method("pbe", "def2-tzvp"), 0.1, 1)
    errors = row["groups"]
    assert list(errors) == list(groups)
    assert errors["6-31G"] is None, "its shells were not trained"
    assert [errors[title]["n"] for title in groups if errors[title]] == [2, 2, 2, 4]
    assert errors["the same"]["energy_mae_mev"] == row["energy_mae_mev"]
    assert errors["Hartree–Fock"]["baselines"] != row["baselines"]
    for title in ("stretches", "Hartree–Fock"):
        assert errors[title]["energy_mae_mev"] < errors[title]["baselines"]["no_network"]["energy_mae_mev"]
    studies.write("groups", study, [row], ql.Method("pbe", "def2-tzvp"), tmp_path, "qptlab bench groups")
    text = (tmp_path / "groups.md").read_text()
    assert re.search(r"^\| 6-31G +\| LDA +\| +refused", text, re.MULTILINE)
    assert "- stretches: molecules of the training, 2 geometries each: one bond 1.2 to 1.5 times as long." in text
    assert (tmp_path / "groups.png").stat().st_size > 10_000


def test_one_bond_is_stretched_or_one_angle_bent_and_nothing_else():
    mol = ql.Molecule.from_name("ethanol")
    for frame in itertools.islice(ql.sample(mol, Stretches(), 1), 5):
        stretched = mol.with_positions(frame)
        factors = [
            coordinates.value(stretched, bond) / coordinates.value(mol, bond) for bond in studies._bonds(mol)
        ]
        assert sum(abs(factor - 1) > 1e-9 for factor in factors) == 1
        assert 1.2 < max(factors) < 1.5
    water = ql.Molecule.from_name("water")
    for frame in itertools.islice(ql.sample(water, Bends(), 1), 5):
        bent = water.with_positions(frame)
        assert np.allclose([coordinates.value(bent, bond) for bond in studies._bonds(water)],
                           [coordinates.value(water, bond) for bond in studies._bonds(water)])
        assert 15 < abs(_angle(bent) - _angle(water)) < 30
    with pytest.raises(ql.InputError, match="Expected a molecule with an angle, got H2"):
        next(ql.sample(ql.Molecule.from_name("hydrogen"), Bends(), 1))
    with pytest.raises(ql.InputError, match="Expected a molecule with a bond outside of rings, got He"):
        next(ql.sample(ql.Molecule(("He",), np.zeros((1, 3))), Stretches(), 1))
    linear = ql.Molecule(("N", "C", "H"), np.array([[0.0, 0, 0], [0, 0, 2.2], [0, 0, 4.2]]))
    assert np.isfinite(next(ql.sample(linear, Bends(), 1))).all()


def _angle(mol: ql.Molecule) -> float:
    first, second = mol.positions[1:] - mol.positions[0]
    return np.degrees(np.arccos(first @ second / np.linalg.norm(first) / np.linalg.norm(second)))


def test_every_study_can_be_asked_for_and_others_are_refused():
    for name in studies.STUDIES:
        assert len(studies.study(name).settings) > 1
    assert studies.study("guess", ["ethanol"]).molecules == ("ethanol",)
    many = studies.study("scaling")
    assert len(ql.read_molecules(many.molecules)) == 96, "all different"
    assert not set(itertools.chain(*(group.molecules for group in many.groups.values()))) & set(many.molecules)
    ten = studies.study("scaling", many.molecules[:10])
    assert {setting.count for setting in ten.settings} == {1, 10}
    assert not ten.groups, "of other molecules"
    assert studies.study("out-of-distribution", ["water"]).groups, "of the same molecules"
    with pytest.raises(ql.InputError, match=r"Expected a study \(scaling, iterations, guess.*got 'love'"):
        studies.study("love")
