"""QM9: selections and splits, and molecules as the package has them."""

import numpy as np
import pytest

import qptlab as ql
from qptlab.system import datasets


@pytest.fixture(scope="module")
def qm9():
    return datasets.qm9()


def test_qm9_has_the_molecules_of_qh9(qm9):
    """The number of molecules, and that of the parts of the random split, are those of QH9-stable."""
    assert len(qm9) == 130_831
    assert [len(part) for part in qm9.split("random")] == [104_664, 13_083, 13_084]
    limits = [(part.sizes.min(), part.sizes.max()) for part in qm9.split("size")]
    assert limits == [(3, 20), (21, 22), (23, 29)]
    assert qm9.heavy.max() == 9
    assert qm9.sizes.max() == 29


def test_the_first_and_the_last_molecules_are_those_of_the_publication(qm9):
    assert [mol.formula for mol in qm9[:5]] == ["CH4", "H3N", "H2O", "C2H2", "CHN"]
    assert [mol.name for mol in qm9[:5]] == ["C", "N", "O", "C#C", "C#N"]
    assert 1.0 < np.linalg.norm(np.subtract(*qm9[0].positions_angstrom[:2])) < 1.1
    assert len(qm9[-1].symbols) == qm9[-1:].sizes[0]
    with pytest.raises(IndexError):
        qm9[len(qm9)]


@pytest.mark.parametrize("seed", range(3))
def test_molecules_fit_the_index(qm9, seed):
    """Atoms are counted from a different column of the file than the one that a molecule is read from."""
    chosen = qm9.take(np.random.default_rng(seed).choice(len(qm9), 40, replace=False))
    for mol, counts in zip(chosen, chosen.counts, strict=True):
        assert [mol.symbols.count(symbol) for symbol in "HCNOF"] == list(counts)
        distances = np.linalg.norm(mol.positions_angstrom[:, None] - mol.positions_angstrom, axis=-1)
        assert 0.9 < distances[~np.eye(len(distances), dtype=bool)].min() < 1.3


def test_a_selection_has_the_molecules_within_the_limits(qm9):
    small = qm9.select(max_heavy=4, elements="HCO")
    counts = small.counts
    assert counts[:, 1:].sum(axis=1).max() == 4
    assert not counts[:, [2, 4]].any()
    assert all(set(mol.symbols) <= set("HCO") for mol in small)
    assert qm9.select(min_atoms=23).sizes.min() == 23
    assert len(qm9.select(min_heavy=5, max_heavy=4)) == 0
    with pytest.raises(ql.InputError, match="got 'Cl'"):
        qm9.select(elements=["H", "Cl"])


@pytest.mark.parametrize("name", datasets.SPLITS)
def test_parts_of_a_split_are_disjoint_and_a_selection_keeps_its_parts(qm9, name):
    parts, small = qm9.split(name), qm9.select(max_heavy=6)
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(len(qm9)))
    for part, selected in zip(parts, small.split(name), strict=True):
        np.testing.assert_array_equal(selected.indices, part.select(max_heavy=6).indices)


def test_an_unknown_split_is_refused(qm9):
    with pytest.raises(ql.InputError, match="Expected a split"):
        qm9.split("scaffold")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ql.InputError, match=r"qptlab\[qm9\]"):
        datasets.qm9()


def test_a_text_describes_a_part_of_qm9(qm9):
    text = "qm9:max_heavy=4,elements=HCO,split=size-train,count=20"
    chosen = datasets.read_qm9(text)
    part = qm9.select(max_heavy=4, elements="HCO").split("size").train
    assert len(chosen) == 20
    assert set(chosen.indices) <= set(part.indices)
    np.testing.assert_array_equal(datasets.read_qm9(text).indices, chosen.indices)
    assert len(datasets.read_qm9("qm9")) == len(qm9)
    mols = ql.read_molecules(["water", text, "qm9:max_heavy=1"])
    assert mols[0].name == "water"
    assert {"C", "N"} <= {mol.name for mol in mols}
    assert "O" not in {mol.name for mol in mols}, "water is there already"


@pytest.mark.parametrize("text", [
    "qm9:heavy=3", "qm9:max_heavy=four", "qm9:split=random", "qm9:split=random-labels", "qm9:count", "qm9:count=-1",
    "qm9:max_heavy=3=4", "qm9:elements=Cl", "qm9:max_heavy=٣",
])
def test_other_options_of_qm9_are_refused(text):
    with pytest.raises(ql.InputError, match="qm9:max_heavy=4"):
        datasets.read_qm9(text)


@pytest.mark.parametrize("text", ["qm9:count=0", "qm9:max_heavy=1,count=1000"])
def test_more_molecules_than_there_are_are_refused(text):
    with pytest.raises(ql.InputError, match="molecules to draw"):
        datasets.read_qm9(text)


def test_isomers_are_told_apart_and_repetitions_found(qm9):
    """Different molecules of one formula, and the same molecule with its atoms in another order."""
    isomers = [mol for mol in qm9.select(max_heavy=5) if mol.formula == "C3H6O"]
    assert len(isomers) >= 5
    turned = [
        ql.Molecule(mol.symbols[::-1], mol.positions[::-1], name=mol.name) for mol in isomers
    ]
    different = datasets.different([*isomers, *turned])
    assert [mol.name for mol in different] == [mol.name for mol in isomers]


LIST = "smiles name\nCCO ethanol\n\n# a comment\nnot-a-molecule\nO\n"


def test_a_bad_line_of_a_list_is_named_or_left_out(tmp_path):
    path = tmp_path / "list.smi"
    path.write_text(LIST)
    with pytest.raises(ql.InputError, match=r"Line 1 of .*list.smi: .*'smiles'"):
        ql.read_molecules([str(path)])
    with pytest.warns(UserWarning, match=r"Line [15] of .* is left out") as caught:
        mols = ql.read_molecules([str(path)], skip_bad=True)
    assert [mol.formula for mol in mols] == ["C2H6O", "H2O"]
    assert len(caught) == 2
    path.write_text("smiles\n")
    with pytest.warns(UserWarning, match="Line 1"), pytest.raises(ql.InputError, match="none that can be used"):
        ql.read_molecules([str(path)], skip_bad=True)
