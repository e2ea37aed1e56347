"""Exchange–correlation functionals of the closed-shell density.

Each is written once, as an energy per volume of (rho, sigma); potentials come from autodiff.
Equations: Slater exchange; VWN5 correlation, Vosko, Wilk & Nusair 1980 (doi:10.1139/p80-159),
eq. 4.4 with the parameters of the paramagnetic Ceperley–Alder fit; PBE, Perdew, Burke & Ernzerhof
1996 (doi:10.1103/PhysRevLett.77.3865), on PW92 (doi:10.1103/PhysRevB.45.13244, table I). Constants
have as many digits as libxc's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

RHO_MIN = 1e-14
"""Electrons per cubic bohr below which a point adds nothing (its energy is under 1e-18 hartree)."""


class XCPotential(NamedTuple):
    """A functional's energy per volume and its first derivatives, on grid points.

    Attributes:
      exc: hartree per cubic bohr.
      vrho: derivative with respect to rho.
      vsigma: derivative with respect to sigma = |∇rho|²; zero for an LDA.
    """

    exc: Float[Array, " ngrids"]
    vrho: Float[Array, " ngrids"]
    vsigma: Float[Array, " ngrids"]


def is_gga(xc: str) -> bool:
    """Whether the functional reads sigma, so that derivatives of the AOs are needed."""
    return xc == "pbe"


def energy_density(
    rho: Float[Array, "*points"], sigma: Float[Array, "*points"], xc: str
) -> Float[Array, "*points"]:
    """Exchange–correlation energy per volume, hartree per cubic bohr.

    Args:
      rho: electron density, electrons per cubic bohr; points under `RHO_MIN` give zero.
      sigma: |∇rho|²; an LDA does not read it.
      xc: one of `method.FUNCTIONALS`.

    Raises:
      ValueError: if there is no such functional.
    """
    if xc not in _FUNCTIONALS:
        raise ValueError(f"functional {xc!r} is not known; one of {', '.join(_FUNCTIONALS)} would do.")
    real = rho > RHO_MIN
    # The masked-out branch gets harmless values too: autodiff evaluates both.
    safe_rho = jnp.where(real, rho, 1.0)
    safe_sigma = jnp.where(real, jnp.maximum(sigma, 0.0), 0.0)
    return jnp.where(real, _FUNCTIONALS[xc](safe_rho, safe_sigma), 0.0)


def potential(
    rho: Float[Array, " ngrids"], sigma: Float[Array, " ngrids"], xc: str
) -> XCPotential:
    """The energy per volume with its derivatives, by reverse differentiation of `energy_density`."""
    exc, pullback = jax.vjp(lambda r, s: energy_density(r, s, xc), rho, sigma)
    vrho, vsigma = pullback(jnp.ones_like(exc))
    return XCPotential(exc, vrho, vsigma)


def _slater_exchange(rho):
    return -0.75 * (3 / np.pi) ** (1 / 3) * rho ** (4 / 3)


def _wigner_seitz(rho):
    return (3 / (4 * np.pi * rho)) ** (1 / 3)


def _vwn5_correlation(rho):
    a, b, c, x0 = 0.0310907, 3.72744, 12.9352, -0.10498
    q = np.sqrt(4 * c - b * b)
    x = jnp.sqrt(_wigner_seitz(rho))
    big_x = x * x + b * x + c
    arctan = jnp.arctan(q / (2 * x + b))
    at_x0 = b * x0 / (x0 * x0 + b * x0 + c)
    return rho * a * (
        jnp.log(x * x / big_x) + 2 * b / q * arctan
        - at_x0 * (jnp.log((x - x0) ** 2 / big_x) + 2 * (b + 2 * x0) / q * arctan)
    )


def _pw92_per_electron(rho):
    a, alpha1, b1, b2, b3, b4 = 0.0310907, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294
    rs = _wigner_seitz(rho)
    root = jnp.sqrt(rs)
    series = 2 * a * root * (b1 + root * (b2 + root * (b3 + root * b4)))
    return -2 * a * (1 + alpha1 * rs) * jnp.log1p(1 / series)


def _pbe_exchange(rho, sigma):
    kappa, mu = 0.804, 0.2195149727645171
    s2 = sigma / (4 * (3 * np.pi**2) ** (2 / 3) * rho ** (8 / 3))
    return _slater_exchange(rho) * (1 + kappa - kappa / (1 + mu * s2 / kappa))


def _pbe_correlation(rho, sigma):
    beta, gamma = 0.06672455060314922, (1 - np.log(2)) / np.pi**2
    eps = _pw92_per_electron(rho)
    fermi = (3 * np.pi**2 * rho) ** (1 / 3)
    t2 = np.pi * sigma / (16 * fermi * rho**2)
    big_a = beta / gamma / jnp.expm1(-eps / gamma)
    at2 = big_a * t2
    # (1 + A t²)/(1 + A t² + A² t⁴) tends to 1/(A t²): written so that a huge t² does not overflow.
    ratio = t2 * (1 + at2) / (1 + at2 * (1 + at2))
    return rho * (eps + gamma * jnp.log1p(beta / gamma * ratio))


def _lda(rho, sigma):
    del sigma
    return _slater_exchange(rho) + _vwn5_correlation(rho)


def _pbe(rho, sigma):
    return _pbe_exchange(rho, sigma) + _pbe_correlation(rho, sigma)


_FUNCTIONALS = {"lda": _lda, "pbe": _pbe}
