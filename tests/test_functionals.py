"""Functionals against libxc and the electron gas, lists of them against the register, and a user's own functional."""

import dataclasses
import functools
import json
import subprocess
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol
from pyscf.dft import libxc, numint
from scipy import integrate, special
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft.functionals import (
    RHO_MIN,
    energy_density,
    pbe_correlation,
    pbe_exchange,
    potential,
    short_range,
    slater_exchange,
)
from qptlab.evaluation import reference
from qptlab.gui.session import Session
from qptlab.gui.widgets import MoleculePicker
from qptlab.system.functional import FUNCTIONALS, ClosedShellDensity, functional
from qptlab.training import checksums

SEMILOCAL = [xc for xc in FUNCTIONALS if functional(xc).nvar]
GRADIENT = [xc for xc in SEMILOCAL if functional(xc).nvar > 1]
KINDS = ["lda", "pbe", "b3lyp", "r2scan", "cam-b3lyp", "wb97m-v-nonlc"]  # of these all others have their parts
N = 3000


def one_density(rng, lowest=-6.0):
    """ρ, ∇ρ and τ over the range that molecules have: reduced gradients to 10, τ from its lower bound up."""
    rho = 10 ** rng.uniform(lowest, 2.5, N)
    length = 10 ** rng.uniform(-4, 1, N) * 2 * (3 * np.pi**2) ** (1 / 3) * rho ** (4 / 3)
    direction = Rotation.random(N, rng=rng).as_matrix()[:, 0].T
    uniform = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3)
    tau = length**2 / (8 * rho) + uniform * 10 ** rng.uniform(-3, 1, N)
    return np.concatenate([rho[None], direction * length, tau[None]])


def densities(xc, nspin):
    rng = np.random.default_rng(0)
    first = one_density(rng)
    if nspin == 1:
        return first[None, : functional(xc).nvar]
    # The second spin's density is what a factor from 0.01 to 100 makes of the first's, its gradient its own.
    second = one_density(rng)
    ratio = first[0] * 10 ** rng.uniform(-2, 2, N) / second[0]
    second *= np.stack([ratio, *[ratio ** (4 / 3)] * 3, ratio ** (5 / 3)])
    return np.stack([first, second])[:, : functional(xc).nvar]


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("xc", SEMILOCAL)
def test_energy_and_potential_are_those_of_libxc(xc, nspin):
    given = densities(xc, nspin)
    to_pyscf = given if nspin == 2 else given[0]
    family = {1: "LDA", 4: "GGA", 5: "MGGA"}[functional(xc).nvar]
    to_pyscf = to_pyscf[:, 0] if family == "LDA" and nspin == 2 else to_pyscf
    name = FUNCTIONALS[xc].pyscf_name
    per_electron, first, *_ = numint.NumInt().eval_xc_eff(name, to_pyscf, deriv=1, xctype=family)
    first = first.reshape(given.shape)
    found = potential(jnp.asarray(given), xc)
    np.testing.assert_allclose(found.exc, given[:, 0].sum(axis=0) * per_electron, rtol=tol.LIBXC)
    # Where a derivative passes through zero it is compared with the largest of its kind at such a density.
    rho = given[:, 0].sum(axis=0)
    natural = {0: rho ** (1 / 3), 4: np.ones(N)}
    for row in range(given.shape[1]):
        scale = natural.get(row, np.ones(N))
        np.testing.assert_allclose(found.v[:, row] / scale, first[:, row] / scale, rtol=tol.LIBXC, atol=tol.LIBXC)


@pytest.mark.parametrize("xc", SEMILOCAL)
def test_equal_spins_are_the_closed_shell(xc):
    whole = jnp.asarray(densities(xc, 1))
    found = energy_density(jnp.concatenate([whole, whole]) / 2, xc)
    np.testing.assert_allclose(found, energy_density(whole, xc), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("xc", ["hf", *KINDS])
def test_empty_and_extreme_points_give_finite_numbers(xc, nspin, dtype):
    values = [0.0, -1e-20, RHO_MIN / 2, 2 * RHO_MIN, 2e-9, 1e-6, 1.0, 1e5]
    slopes = [0.0, 1e-15, 1.0, 1e6]
    taus = [0.0, 1e-20, 1.0, 1e8]
    rho, slope, tau = (np.ravel(v) for v in np.meshgrid(values, slopes, taus))
    rows = np.stack([rho, slope, -slope, 0 * slope, tau])
    other = rows[:, np.random.default_rng(0).permutation(rows.shape[1])]
    for second in (rows, other, 0 * rows):
        given = jnp.asarray(np.stack([rows, second])[:nspin], dtype)
        found = potential(given, xc)
        assert found.exc.dtype == dtype
        assert np.isfinite(found.exc).all()
        assert np.isfinite(found.v).all()
    alone = energy_density(jnp.asarray(rows[None], dtype), xc)
    np.testing.assert_array_equal(alone[rho <= RHO_MIN], 0.0)


@pytest.mark.parametrize("xc", GRADIENT)
def test_a_turned_gradient_gives_the_same_energy(xc):
    given = densities(xc, 2)
    turn = Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    turned = given.copy()
    turned[:, 1:4] = np.einsum("xy,syn->sxn", turn, given[:, 1:4])
    before, after = (energy_density(jnp.asarray(d), xc) for d in (given, turned))
    np.testing.assert_allclose(after, before, rtol=1e-10)


def test_r2scan_of_a_uniform_density_is_the_electron_gas():
    rho = np.array([1e-3, 0.1, 1.0, 10.0])
    uniform = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3)
    rows = jnp.asarray(np.stack([rho, 0 * rho, 0 * rho, 0 * rho, uniform]))[None]
    np.testing.assert_allclose(energy_density(rows, "r2scan"), energy_density(rows, "pw92"), rtol=2e-5)


@pytest.mark.parametrize("xc", SEMILOCAL)
def test_exchange_scales_as_the_electron_gas_demands(xc):
    """E_x[γ³ρ(γr)] = γ·E_x[ρ]: per volume, γ⁴ at a point; seen at high density, where exchange rules."""
    rows = np.zeros((1, 5, 1))
    rows[0, 0], rows[0, 1] = 1e12, 1e15
    rows[0, 4] = 0.3 * (3 * np.pi**2) ** (2 / 3) * 1e12 ** (5 / 3)
    squeezed = rows * np.array([8, 16, 16, 16, 32.0])[:, None]
    ratio = energy_density(jnp.asarray(squeezed), xc) / energy_density(jnp.asarray(rows), xc)
    assert float(ratio[0]) == pytest.approx(16, rel=1e-3)


@pytest.mark.parametrize("xc", KINDS)
def test_potential_is_the_slope_of_the_energy_density(xc):
    given = jnp.asarray(densities(xc, 2)[:, :, :50])
    direction = given * jnp.asarray(np.random.default_rng(2).uniform(-0.5, 0.5, given.shape))

    def along(step):
        return energy_density(given + step * direction, xc)

    h = 1e-4
    slope = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    found = jnp.sum(potential(given, xc).v * direction, axis=(0, 1))
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-6 * np.abs(slope).max())


@pytest.mark.parametrize("xc", ["cam-b3lyp", "wb97m-v-nonlc"])
def test_the_kernel_is_that_of_libxc(xc):
    given = densities(xc, 2)[..., :500]
    family = {4: "GGA", 5: "MGGA"}[given.shape[1]]
    second = numint.NumInt().eval_xc_eff(FUNCTIONALS[xc].pyscf_name, given, deriv=2, xctype=family)[2]
    direction = given * np.random.default_rng(2).uniform(-0.5, 0.5, given.shape)
    expected, size = (
        np.einsum("sxtyg,tyg->sxg", of(second), of(direction)) for of in (np.asarray, np.abs)
    )
    _, found = jax.jvp(lambda rows: potential(rows, xc).v, (jnp.asarray(given),), (jnp.asarray(direction),))
    np.testing.assert_allclose(found / size, expected / size, atol=tol.LIBXC)


@pytest.mark.parametrize(("text", "name"), [
    ("PBE", "pbe"), ("pbe,pbe", "pbe"), (" PBE , PBE ", "pbe"), ("svwn", "lda"), ("LDA,VWN", "lda"),
    ("B3LYPG", "b3lyp"), ("B3LYP/G", "b3lyp"), ("B3LYP5", "b3lyp5"), ("PBE1PBE", "pbe0"), ("r2SCAN", "r2scan"),
    ("HF", "hf"), ("b88,lyp", "blyp"), ("Slater,PW", "pw92"), ("CAM-B3LYP", "cam-b3lyp"), ("camb3lyp", "cam-b3lyp"),
    ("CAM_B3LYP", "cam-b3lyp"), ("LC_BLYP", "lc-blyp"), ("wB97X", "wb97x"),
])
def test_functionals_are_found_in_any_case_and_under_other_names(text, name):
    method = ql.Method(text, "sto-3g")
    assert method.xc == name
    plain = text.replace("/", "").replace(" ", "")
    parsed = [libxc.parse_xc(xc) for xc in (plain, method.functional.pyscf_name)]
    assert parsed[0] == parsed[1]  # PySCF means the same


@pytest.mark.parametrize(("text", "message"), [
    ("wB97X-V", "without VV10, got 'wB97X-V'; use 'wb97x-v-nonlc'"),
    ("wb97m_v", "without VV10, got 'wb97m_v'; use 'wb97m-v-nonlc'"),
])
def test_a_name_does_not_stand_for_a_part_of_what_it_says(text, message):
    with pytest.raises(ql.InputError, match=message):
        ql.Method(text)


@pytest.mark.parametrize("omega", [0.11, 0.33, 3.0])
def test_short_range_exchange_of_the_electron_gas_is_its_integral(omega):
    """E = −¼·∫ γ²·erfc(ωr)/r over the distance, with the density matrix γ = 3ρ·j₁(k_F·r)/(k_F·r)."""
    rho = np.array([1e-9, 1e-4, 0.01, 0.3, 10.0, 1e4])
    k_fermi = (3 * np.pi**2 * rho) ** (1 / 3)

    def energy(k, density):
        def integrand(x):  # in x = k·r
            return 9 * special.spherical_jn(1, x) ** 2 / x * special.erfc(omega * x / k)

        value, _ = integrate.quad(integrand, 0, min(400, 8 * k / omega), limit=2000)
        return -np.pi * density**2 / k**2 * value

    expected = np.array([energy(k, density) for k, density in zip(k_fermi, rho, strict=True)])
    zero = jnp.zeros(len(rho))
    density = ClosedShellDensity(jnp.asarray(rho), zero, zero + 1)
    found = short_range(slater_exchange(density), density, omega)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_short_range_exchange_and_its_derivatives_are_smooth_between_series_and_closed_form():
    rho = jnp.linspace(0.9, 1.1, 41) * 0.33**3 / (3 * np.pi**2)  # k_F = ω in the middle

    def share(rho):
        zero = jnp.zeros_like(rho)
        density = ClosedShellDensity(rho, zero, zero)
        return short_range(slater_exchange(density), density, 0.33) / slater_exchange(density)

    def slope(function, rho):
        return jax.jvp(function, (rho,), (jnp.ones_like(rho),))[1]

    function = share
    for order in range(4):
        values = np.asarray(function(rho)) * float(rho[20]) ** order
        fit = np.polynomial.Polynomial.fit(np.arange(41), values, 10)(np.arange(41))
        np.testing.assert_allclose(values, fit, atol=1e-12 * np.abs(values).max() * 10**order)
        function = functools.partial(slope, function)


def test_unknown_functional_and_missing_rows_are_named():
    with pytest.raises(ValueError, match="'m06' is not known"):
        energy_density(jnp.ones((1, 5, 1)), "m06")
    with pytest.raises(ValueError, match="Expected 5 rows of the density for functional r2scan, got 4"):
        jax.eval_shape(lambda d: energy_density(d, "r2scan"), jnp.ones((1, 4, 1)))


def revpbe_exchange(density):
    return pbe_exchange(density, kappa=1.245)


REVPBE = ql.Functional("revpbe", revpbe_exchange, pbe_correlation, family="gga", pyscf_name="revpbe")
"""A user's own functional: Zhang & Yang 1998, doi:10.1103/PhysRevLett.80.890."""


def test_every_list_of_functionals_is_the_register(registered):
    ql.register_functional(REVPBE)
    names = list(FUNCTIONALS)
    assert names[-1] == "revpbe"
    for name in names:
        assert Session(xc=name).method == ql.Method(name, "sto-3g")
        assert ql.Method(name).functional is FUNCTIONALS[name]
    (dropdown,) = [w for w in fields(MoleculePicker(Session())) if getattr(w, "description", "") == "Functional"]
    assert list(dropdown.options) == names
    with pytest.raises(ql.InputError, match=f"use one of {', '.join(names)}, or register"):
        ql.Method("m06")


def fields(widget):
    for child in getattr(widget, "children", ()):
        yield child
        yield from fields(child)


def test_help_of_the_command_line_lists_the_register():
    helped = subprocess.run(
        [sys.executable, "-m", "qptlab", "energy", "--help"], capture_output=True, text=True, check=True,
        env={"COLUMNS": "400", "PATH": "", "TERM": "dumb"},
    )
    assert f"one of {', '.join(FUNCTIONALS)}." in helped.stdout


def test_a_users_functional_gives_pyscfs_energy_and_its_forces_are_the_slope(registered):
    method = ql.Method(REVPBE, "sto-3g", grid_level=0)
    mol = cases.molecule("water", displaced=0.1)
    solved = ql.scf(mol, method, tolerance=1e-7)
    truth = reference.converged(mol, method)
    assert float(solved.energy) == pytest.approx(truth.energy, abs=tol.SCF_ENERGY)
    assert abs(truth.energy - reference.converged(mol, dataclasses.replace(method, xc="pbe")).energy) > 0.01
    direction = np.random.default_rng(4).normal(size=mol.positions.shape)

    def along(step):
        return float(ql.scf(mol.with_positions(mol.positions + step * direction), method).energy)

    slope = cases.slope_by_differences(along, 3e-3)
    assert -np.sum(ql.forces(mol, method, solved.fock) * direction) == pytest.approx(slope, abs=tol.FORCE)


@pytest.mark.slow
def test_a_users_functional_is_trained_stored_by_its_name_and_loaded(registered, tmp_path):
    method = ql.Method(REVPBE, "sto-3g", grid_level=0)
    assert method.label == "REVPBE/sto-3g"
    out = tmp_path / "run"
    trainer = ql.Trainer(cases.molecule("water"), method, cases.QUICK_MODEL, cases.quick(10), out=out).run()
    assert trainer.rows[-1]["energy_ha"] == pytest.approx(trainer.validation.converged[0].energy, abs=0.05)
    config = json.loads((out / "config.json").read_text())
    assert config["method"]["xc"] == "revpbe"
    model = ql.load(out)
    assert model.method == method
    truth = reference.converged(cases.molecule("water"), method)
    assert float(model(cases.molecule("water")).energy) == pytest.approx(truth.energy, abs=0.05)
    # In a session that does not know the name.
    config["method"]["xc"] = "my-unknown"
    (out / "config.json").write_text(checksums.sealed(config))
    with pytest.raises(ql.InputError, match=r"'my-unknown' is not known; use one of .* qptlab.register_functional"):
        ql.load(out)


def test_a_functional_that_pyscf_lacks_has_no_reference(registered, tmp_path):
    xalpha = ql.Functional("xalpha", lambda density: 1.05 * slater_exchange(density), family="lda")
    method = ql.Method(xalpha, "sto-3g", grid_level=0)
    hydrogen = ql.Molecule.from_name("hydrogen")
    assert bool(ql.scf(hydrogen, method).converged)
    with pytest.raises(ql.InputError, match="'xalpha', which has no pyscf_name"):
        reference.converged(hydrogen, method)
    wrong = dataclasses.replace(method, xc=dataclasses.replace(xalpha, pyscf_name="x-alpha"))
    with pytest.raises(ql.InputError, match="PySCF's name of functional 'xalpha', got 'x-alpha'"):
        reference.converged(hydrogen, wrong)
    with pytest.raises(ql.InputError, match="'xalpha', which has no pyscf_name"):
        ql.Trainer(hydrogen, method, cases.QUICK_MODEL, cases.quick(1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_stands_for_one_functional(registered):
    """A cell that is run again defines a different record with the same name: methods made before keep theirs."""
    with pytest.raises(ql.InputError, match="'pbe' is the name of a built-in functional"):
        ql.Method(dataclasses.replace(REVPBE, name="pbe"))
    before = ql.Method(REVPBE)
    after = ql.Method(dataclasses.replace(REVPBE, exchange=pbe_exchange))
    assert ql.Method("revpbe") == after != before
    assert ql.Method(FUNCTIONALS["pbe"]) == ql.Method("pbe")
    assert ql.Method(**after.to_dict()) == after


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Rev PBE"}, "lower-case letters"),
        ({"family": "GGA"}, "one of hf, lda, gga, mgga, got 'GGA'"),
        ({"exact_exchange": 1.5}, "to be 0 to 1, got 1.5"),
        ({"family": "hf"}, "reads nothing of the density"),
        ({"omega": -0.3, "long_range_exchange": 1.0}, "Expected ω of functional 'revpbe' to be 0 to 10.0 per bohr"),
        ({"omega": 0.3, "long_range_exchange": 2.0}, "long-range exact exchange .* to be 0 to 1, got 2.0"),
        ({"omega": 0.3}, "Expected both ω and the long-range exact exchange"),
        ({"long_range_exchange": 1.0}, "got omega=0.0 and long_range_exchange=1.0"),
    ],
)
def test_records_that_cannot_be_used_are_refused(fields, message):
    with pytest.raises(ql.InputError, match=message):
        dataclasses.replace(REVPBE, **fields)
