"""A short form of `benchmarks/random_molecules.py`: the engine and PySCF agree for what is drawn at random."""

import importlib.util
import pathlib
import sys

import pytest

PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "random_molecules.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("random_molecules", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* is read with .* unpaired electrons", "ignore::UserWarning:pyscf")
@pytest.mark.parametrize("number", range(8))
def test_a_random_molecule_has_pyscfs_energy_or_says_why_not(script, number):
    row = script.compare(script.draw(1, number))
    assert "DIFFERENT" not in row["outcome"], row
    if row["outcome"] == "refused":
        assert row["reason"].startswith("Expected")
    else:
        assert abs(row["functional_ha"]) < 1e-8  # PySCF's energy of our density


def test_a_difference_of_the_engines_is_found(script):
    """The comparison itself: PySCF has a different grid level."""
    import dataclasses

    case = script.draw(1, 0)
    water = script.ql.Molecule.from_name("water")
    case = dataclasses.replace(case, mol=water, method=script.ql.Method("pbe", "sto-3g", 0))
    calculation = script.reference.calculation

    def finer(mol, method, *, fitted):
        return calculation(mol, dataclasses.replace(method, grid_level=2), fitted=fitted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.reference, "calculation", finer)
        assert script.compare(case)["outcome"] == "DIFFERENT ENERGY OF ONE DENSITY"
