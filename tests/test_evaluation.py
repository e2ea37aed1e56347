"""Errors against PySCF, and both baselines."""

import dataclasses
import itertools
import json
import math

import cases
import numpy as np
import pytest
import tolerances as tol
from pyscf import lib

import qptlab as ql
from qptlab.evaluation import reference
from qptlab.evaluation.errors import standard_errors
from qptlab.evaluation.reference import Reference, errors
from qptlab.runtime import memory
from qptlab.units import HARTREE_MEV, significant

WATER = ql.Molecule.from_name("water")
ERRORS = {"energy_mae_mev", "energy_max_mev", "fock_mae_uha", "mo_energy_mae_uha", "mo_cosine", "standard_errors"}


@pytest.fixture(scope="module")
def geometries():
    stream = ql.sample(WATER, ql.Sampling("perturb"), 9)
    return [WATER.with_positions(place) for place in itertools.islice(stream, 3)]


@pytest.fixture(scope="module")
def found(trained, geometries):
    return ql.evaluate(trained.predictor, geometries)


def test_the_table_has_the_keys_that_others_read(found):
    record = json.loads(found.to_json())
    speeds = {"seconds_per_geometry", "pyscf_seconds_per_geometry", "pyscf_threads"}
    assert (record["kind"], record["method"]) == ("qpt", "LDA/sto-3g")
    names = {"n", "kind", "method", "n_left_out", "same_fit", "baselines", "estimated_energy_mae_mev",
             "estimate_correlation", "grid", "finer_grid_level"}
    assert set(record) == names | speeds | ERRORS
    assert record["same_fit"] is None
    assert set(record["baselines"]) == {"no_network", "pyscf_same_fock_builds"}
    assert all(set(baseline) == ERRORS for baseline in record["baselines"].values())
    assert record["n"] == 3
    for name in ("QPT", "no network", "PySCF, same Fock builds", "3 geometries, LDA/sto-3g"):
        assert name in str(found)
        assert name in found._repr_html_()


def test_the_grids_own_error_stands_beside_the_models(found, trained, geometries):
    """Worked out once more from PySCF's own objects, on the first two geometries."""
    expected = []
    for mol in geometries[:2]:
        placed = mol.with_positions(trained.predictor.locate(mol)[1].positions)
        energies = []
        for level in (cases.QUICK_METHOD.grid_level, 3):
            mf = cases.rks(placed, cases.QUICK_METHOD)
            mf.grids.level = level
            energies.append(mf.run().e_tot)
        expected.append((energies[0] - energies[1]) * HARTREE_MEV)
    assert found.finer_grid_level == 3
    assert found.grid.energy_mae_mev == pytest.approx(np.abs(expected).mean(), abs=1e-4)
    assert "PySCF on this grid, against level 3" in str(found)
    method = dataclasses.replace(cases.QUICK_METHOD, xc="hf")
    plain = ql.make_objective(WATER, method, cases.QUICK_MODEL).predictor(None)
    assert ql.evaluate(plain, geometries[:1]).grid is None  # Hartree–Fock has no grid


def test_means_have_standard_errors_by_the_bootstrap(found):
    values = np.abs(found.energy_errors_mev)
    bar = found.errors.standard_errors["energy_mae_mev"]
    assert bar == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.15)
    assert f"± {significant(bar, 2)}" in str(found)
    many = np.random.default_rng(3).exponential(size=200)
    assert standard_errors({"x": many})["x"] == pytest.approx(many.std() / np.sqrt(200), rel=0.1)
    assert standard_errors({"x": many[:1]}) is None


def test_errors_are_differences_to_a_converged_calculation(found, trained, geometries):
    """Worked out once more, by hand, from PySCF's own objects."""
    expected = []
    for mol in geometries:
        pose = trained.predictor.locate(mol)[1]
        mf = cases.rks(mol.with_positions(pose.positions), cases.QUICK_METHOD)
        mf.kernel()
        expected.append((float(trained.predictor(mol).energy) - mf.e_tot) * HARTREE_MEV)
    np.testing.assert_allclose(found.energy_errors_mev, expected, atol=1e-4)
    assert found.errors.energy_mae_mev == pytest.approx(np.abs(expected).mean(), abs=1e-4)
    assert found.errors.energy_max_mev == pytest.approx(np.abs(expected).max(), abs=1e-4)
    assert (found.energy_errors_mev > 0).all(), "the variational principle"


def test_where_integrals_are_fitted_the_error_against_the_same_fit_stands_beside(geometries):
    """Plain iteration, nearly converged: what is left against exact integrals is the fit's error."""
    method = ql.Method("lda", "sto-3g", grid_level=0, eri="fitted")
    qpt, system = cases.model("water", method, 5)
    found = ql.evaluate(ql.CorrectionPredictor(qpt, None, [system]), geometries[:1])
    assert found.same_fit is not None
    assert found.same_fit.energy_mae_mev < 0.1 * found.errors.energy_mae_mev
    exact, fitted = found.test_set.converged[0].energy, found.test_set.same_fit[0].energy
    assert found.errors.energy_mae_mev == pytest.approx(abs(exact - fitted) * HARTREE_MEV, rel=0.1)
    assert "QPT, same density fitting" in str(found)
    assert found.to_dict()["same_fit"]["energy_mae_mev"] == found.same_fit.energy_mae_mev


def test_the_model_is_better_than_both_baselines(found):
    for baseline in (found.baselines["no_network"], found.baselines["pyscf_same_fock_builds"]):
        assert found.errors.energy_mae_mev < 0.1 * baseline.energy_mae_mev
        assert found.errors.fock_mae_uha < baseline.fock_mae_uha
        assert found.errors.mo_cosine >= baseline.mo_cosine


def test_geometries_may_come_from_a_file_and_in_any_pose(found, trained, geometries, tmp_path):
    path = tmp_path / "frames.xyz"
    quarter = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]])
    turned = [mol.with_positions(mol.positions @ quarter + 3) for mol in geometries]
    path.write_text("".join(mol.to_xyz() for mol in turned))
    again = ql.evaluate(trained.predictor, path)
    # XYZ files have eight decimals.
    assert again.errors.energy_mae_mev == pytest.approx(found.errors.energy_mae_mev, rel=1e-3)


def test_the_baseline_costs_as_much_as_the_model():
    """n + 1 diagonalisations for the model, and for PySCF stopped early."""
    stopped = reference.stopped(WATER, cases.QUICK_METHOD, 3)
    assert stopped.cycles == 3
    assert not stopped.converged
    mf = cases.rks(WATER, cases.QUICK_METHOD)
    mf.max_cycle = 3
    mf.kernel()
    assert stopped.energy == pytest.approx(mf.energy_tot(mf.make_rdm1()), abs=tol.ENERGY_OF_DENSITY)
    assert reference.converged(WATER, cases.QUICK_METHOD).converged


def test_pyscf_has_its_usual_memory_whatever_this_process_holds():
    usual = min(lib.param.MAX_MEMORY, memory.memory_bytes() / 1e6)
    held = np.ones(2**27)  # 1 GiB
    mf = reference.calculation(ql.Molecule.from_name("water"), ql.Method("pbe", "sto-3g"), fitted=False)
    left = mf.max_memory - lib.current_memory()[0]
    del held
    assert 0.95 * usual < left < 1.05 * usual


def test_geometries_for_which_pyscf_does_not_converge_are_left_out_and_counted(trained, monkeypatch):
    """One such geometry ends neither a training nor a comparison; with too few cycles PySCF does fail."""
    torn = WATER.with_positions(WATER.positions * 2.2)
    enough = reference.converged(WATER, cases.QUICK_METHOD).cycles
    assert reference.converged(torn, cases.QUICK_METHOD).cycles > enough
    monkeypatch.setattr(reference, "MAX_CYCLES", enough)
    found = ql.evaluate(trained.predictor, [WATER, torn])
    assert (found.n, found.to_dict()["n_left_out"]) == (1, 1)
    assert "1 left out" in str(found)
    with pytest.raises(ql.InputError, match="got 1 of H2O for which it does not"):
        ql.evaluate(trained.predictor, [torn])


def test_summary_of_known_errors():
    def answer(energy, shift, turn):
        coefficients = np.array([[math.cos(turn), 0], [math.sin(turn), 1]])
        fock, levels = np.full((2, 2), shift), np.array([shift, 9])
        return Reference(energy, fock, np.eye(2), levels, coefficients, True, 1, 0.0, threads=1, nocc=1)

    predictions = [answer(-1.0, 2e-6, 0.0), answer(-3.0, 0.0, 0.0)]
    summary = errors(predictions, [answer(-1.001, 0.0, 0.0), answer(-3.0, 0.0, math.pi)])
    assert summary.energy_mae_mev == pytest.approx(0.5e-3 * HARTREE_MEV)
    assert summary.energy_max_mev == pytest.approx(1e-3 * HARTREE_MEV)
    assert summary.fock_mae_uha == pytest.approx(1.0)
    assert summary.mo_energy_mae_uha == pytest.approx(1.0)
    assert summary.mo_cosine == pytest.approx(1.0), "the sign of an orbital means nothing"


def test_wrong_or_no_geometries_are_refused(trained, tmp_path):
    with pytest.raises(ql.InputError, match="Expected at least one geometry to evaluate, got none"):
        ql.evaluate(trained.predictor, [])
    with pytest.raises(ql.InputError, match="CH4"):
        ql.evaluate(trained.predictor, [WATER, ql.Molecule.from_name("methane")])
    with pytest.raises(ql.InputError, match=r"none.xyz, which cannot be read"):
        ql.evaluate(trained.predictor, tmp_path / "none.xyz")
