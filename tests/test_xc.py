"""Functionals against libxc."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol
from pyscf.dft import libxc

from qptlab.xc import RHO_MIN, energy_density, is_gga, potential

CODES = {"lda": "lda,vwn", "pbe": "pbe,pbe"}


def densities():
    """Densities and gradients over the range that molecules have, reduced gradients up to 30."""
    rng = np.random.default_rng(0)
    rho = 10 ** rng.uniform(-9, 2.5, 4000)
    reduced = 10 ** rng.uniform(-4, 1.5, 4000)
    gradient = reduced * 2 * (3 * np.pi**2) ** (1 / 3) * rho ** (4 / 3)
    return rho, gradient


@pytest.mark.parametrize("xc", ["lda", "pbe"])
def test_energy_and_potential_are_those_of_libxc(xc):
    rho, gradient = densities()
    zeros = np.zeros_like(rho)
    given = np.array([rho, gradient, zeros, zeros]) if is_gga(xc) else rho
    per_electron, first, *_ = libxc.eval_xc(CODES[xc], given, deriv=1)
    found = potential(jnp.asarray(rho), jnp.asarray(gradient**2), xc)
    np.testing.assert_allclose(found.exc, rho * per_electron, rtol=tol.LIBXC)
    np.testing.assert_allclose(found.vrho, first[0], rtol=tol.LIBXC)
    if is_gga(xc):
        np.testing.assert_allclose(found.vsigma, first[1], rtol=tol.LIBXC, atol=tol.LIBXC * np.abs(first[1]).max())


@pytest.mark.parametrize("xc", ["lda", "pbe"])
def test_empty_and_extreme_points_give_finite_numbers(xc):
    rho = jnp.asarray([0.0, -1e-20, RHO_MIN / 2, 2 * RHO_MIN, 1e-12, 1e5])
    sigma = jnp.asarray([0.0, 0.0, 1.0, 1e3, 1e-30, 1e12])
    found = potential(rho, sigma, xc)
    assert all(np.isfinite(values).all() for values in found)
    np.testing.assert_array_equal(found.exc[:3], 0.0)


def test_slowly_varying_density_has_no_gradient_correction():
    rho = jnp.asarray([0.1, 1.0, 10.0])
    small, none = energy_density(rho, jnp.full(3, 1e-12), "pbe"), energy_density(rho, jnp.zeros(3), "pbe")
    np.testing.assert_allclose(small, none, rtol=1e-10)


def test_exchange_scales_as_the_electron_gas_demands():
    """E_x[γ³ρ(γr)] = γ·E_x[ρ]: per volume, γ⁴ at a point; seen at high density, where exchange rules."""
    rho = jnp.asarray([1e9])
    ratio = energy_density(8 * rho, jnp.zeros(1), "lda") / energy_density(rho, jnp.zeros(1), "lda")
    assert float(ratio[0]) == pytest.approx(16, rel=1e-3)


def test_potential_is_the_slope_of_the_energy_density():
    rho, sigma, h = jnp.asarray([0.3]), jnp.asarray([0.2]), 1e-4
    up, down = energy_density(rho + h, sigma, "pbe"), energy_density(rho - h, sigma, "pbe")
    assert float(potential(rho, sigma, "pbe").vrho[0]) == pytest.approx(float((up - down)[0]) / (2 * h), rel=1e-6)
    assert jax.jit(energy_density, static_argnums=2)(rho, sigma, "pbe").shape == rho.shape


def test_unknown_functional_is_named():
    with pytest.raises(ValueError, match="'b3lyp' is not known"):
        energy_density(jnp.ones(1), jnp.ones(1), "b3lyp")
