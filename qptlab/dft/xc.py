"""Exchange–correlation functionals, each written once as an energy per volume; potentials come from autodiff.

Exchange is written for a closed shell and spin-scaled, E[ρα, ρβ] = ½E[2ρα] + ½E[2ρβ] (Oliver & Perdew
1979, doi:10.1103/PhysRevA.20.397); correlation is written for any polarisation. Sources:

    Slater; VWN5 and its RPA fit   Vosko, Wilk & Nusair 1980 (doi:10.1139/p80-159), eqs. 3.2 and 4.4, table 5
    PW92                           Perdew & Wang 1992 (doi:10.1103/PhysRevB.45.13244), eq. 10, table I
    PBE                            Perdew, Burke & Ernzerhof 1996 (doi:10.1103/PhysRevLett.77.3865), eqs. 3–14
    B88                            Becke 1988 (doi:10.1103/PhysRevA.38.3098), eq. 8
    LYP                            Miehlich et al. 1989 (doi:10.1016/0009-2614(89)87234-3), eq. 2
    B3LYP                          Stephens et al. 1994 (doi:10.1021/j100096a001)
    PBE0                           Adamo & Barone 1999 (doi:10.1063/1.478522)
    r2SCAN                         Furness et al. 2020 (doi:10.1021/acs.jpclett.0c02405), supplement

Constants have as many digits as libxc's.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RHO_MIN = 1e-14
"""Electrons per cubic bohr below which a point adds nothing (its energy is under 1e-18 hartree)."""

RHO_MIN_FLOAT32 = 1e-9
"""The same in float32, where ρ^(8/3) must not underflow."""

REDUCED_MAX = 1e6
"""Reduced gradients ∇ρ/ρ^(4/3) are cut here, so that their powers stay finite; tails of molecules reach 1e5."""


class XCPotential(NamedTuple):
    """A functional's energy per volume and its derivatives, on grid points.

    Attributes:
      exc: hartree per cubic bohr.
      v: derivative with respect to each row of the density.
    """

    exc: Float[Array, " points"]
    v: Float[Array, "nspin nvar points"]


@dataclasses.dataclass(frozen=True)
class Functional:
    """What a functional is made of.

    Attributes:
      nvar: rows of the density that it reads: 0 none (Hartree–Fock), 1 ρ, 4 with ∇ρ, 5 with τ.
      exact_exchange: share of exact exchange.
      exchange: energy per volume of a closed shell.
      correlation: energy per electron.
    """

    nvar: int
    exact_exchange: float
    exchange: Callable[["_Closed"], Array] | None
    correlation: Callable[["_Spins"], Array] | None


def functional(xc: str) -> Functional:
    """A functional by its name.

    Raises:
      ValueError: if there is none of that name.
    """
    if xc not in _FUNCTIONALS:
        raise ValueError(f"functional {xc!r} is not known; one of {', '.join(_FUNCTIONALS)} would do.")
    return _FUNCTIONALS[xc]


def energy_density(density: Float[Array, "nspin nvar points"], xc: str) -> Float[Array, " points"]:
    """Exchange–correlation energy per volume without exact exchange, hartree per cubic bohr.

    Args:
      density: one row of spins for a closed shell (the total density) or two (each spin's own); for
        each, ρ (electrons per cubic bohr), then ∂x, ∂y, ∂z of ρ, then τ = ½Σ|∇ψ|², as far as the
        functional reads them. Points with ρ under `RHO_MIN` give zero.
      xc: one of `method.FUNCTIONALS`.

    Raises:
      ValueError: if there is no such functional, or it reads more rows than are given.
    """
    chosen = functional(xc)
    if chosen.nvar == 0:
        return jnp.zeros_like(density[0, 0])
    if density.shape[1] < chosen.nvar:
        raise ValueError(f"{xc} reads {chosen.nvar} rows of the density; {density.shape[1]} were given.")
    floor = RHO_MIN if density.dtype == jnp.float64 else RHO_MIN_FLOAT32
    rho = density[0, 0] if len(density) == 1 else density[0, 0] + density[1, 0]
    real = rho > floor
    total = jnp.zeros_like(rho)
    if chosen.exchange:
        if len(density) == 1:
            total += chosen.exchange(_closed(density[0], floor))
        else:
            total += 0.5 * sum(_spin_exchange(chosen.exchange, 2 * spin, floor) for spin in density)
    if chosen.correlation:
        total += jnp.where(real, rho, 0.0) * chosen.correlation(_spins(density, floor))
    return jnp.where(real, total, 0.0)


def potential(density: Float[Array, "nspin nvar points"], xc: str) -> XCPotential:
    """The energy per volume with its derivatives, by reverse differentiation of `energy_density`."""
    exc, pullback = jax.vjp(lambda given: energy_density(given, xc), density)
    return XCPotential(exc, *pullback(jnp.ones_like(exc)))


class _Closed(NamedTuple):
    """A closed shell's density: ρ, the reduced gradient squared, τ."""

    rho: Array
    s2: Array
    tau: Array


class _Spins(NamedTuple):
    """A density for correlation.

    Attributes:
      rs: Wigner–Seitz radius.
      up, down: 1 ± ζ, each above zero; the number 1.0 for a closed shell, so that powers of it cost nothing.
      s2: reduced gradient squared of the total density.
      tau: total.
      rho: total.
      sigma: reduced σαα, σαβ, σββ, each divided by ρ^(8/3) of the total density.
    """

    rs: Array
    up: Array | float
    down: Array | float
    s2: Array
    tau: Array
    rho: Array
    sigma: tuple[Array, Array, Array]


_S2 = 1 / (4 * (3 * math.pi**2) ** (2 / 3))
"""s² is this times |∇ρ|²/ρ^(8/3)."""


def _reduced(gradient, rho, real):
    """∇ρ/ρ^(4/3), and no gradient where there is no density."""
    return jnp.clip(jnp.where(real, gradient, 0.0) / rho ** (4 / 3), -REDUCED_MAX, REDUCED_MAX)


def _positive(rows, floor):
    """Where there is density, and ρ and τ with harmless values elsewhere: autodiff evaluates both branches."""
    real = rows[0] > floor
    rho = jnp.where(real, rows[0], 1.0)
    return real, rho, jnp.where(real, jnp.maximum(rows[4], 0.0), 1.0) if len(rows) > 4 else jnp.ones_like(rho)


def _closed(rows, floor):
    real, rho, tau = _positive(rows, floor)
    return _Closed(rho, _S2 * jnp.sum(_reduced(rows[1:4], rho, real) ** 2, axis=0), tau)


def _spin_exchange(exchange, rows, floor):
    return jnp.where(rows[0] > floor, exchange(_closed(rows, floor)), 0.0)


def _spins(density, floor):
    if len(density) == 1:
        closed = _closed(density[0], floor)
        return _Spins(_wigner_seitz(closed.rho), 1.0, 1.0, *closed[1:], closed.rho, (closed.s2 / (4 * _S2),) * 3)
    real, rho, tau = _positive(density[0] + density[1], floor)
    tiny = float(jnp.finfo(rho.dtype).eps)
    up, down = (jnp.where(real, jnp.maximum(2 * spin[0] / rho, tiny), 1.0) for spin in density)
    alpha, beta = (_reduced(spin[1:4], rho, real) for spin in density)
    sigma = jnp.sum(alpha * alpha, axis=0), jnp.sum(alpha * beta, axis=0), jnp.sum(beta * beta, axis=0)
    return _Spins(_wigner_seitz(rho), up, down, _S2 * jnp.sum((alpha + beta) ** 2, axis=0), tau, rho, sigma)


def _wigner_seitz(rho):
    return (3 / (4 * math.pi * rho)) ** (1 / 3)


def _spin_mean(d, power):
    """½[(1 + ζ)^p + (1 − ζ)^p], which is 1 for a closed shell."""
    return 0.5 * (d.up**power + d.down**power)


def _f_zeta(d):
    """Vosko, Wilk & Nusair's f(ζ): 0 for a closed shell, 1 for one spin alone."""
    return (_spin_mean(d, 4 / 3) - 1) / (2 ** (1 / 3) - 1)


_F_CURVATURE = 4 / (9 * (2 ** (1 / 3) - 1))
"""f''(0)."""


# Local density -------------------------------------------------------------------------------------


def _slater_exchange(d):
    return -0.75 * (3 / math.pi) ** (1 / 3) * d.rho ** (4 / 3)


def _vwn_fit(x, a, b, c, x0):
    """Eq. 4.4, with arctan in place of its complement."""
    q = math.sqrt(4 * c - b * b)
    big_x = x * x + b * x + c
    arctan = jnp.arctan(q / (2 * x + b))
    at_x0 = b * x0 / (x0 * x0 + b * x0 + c)
    return a * (
        jnp.log(x * x / big_x) + 2 * b / q * arctan
        - at_x0 * (jnp.log((x - x0) ** 2 / big_x) + 2 * (b + 2 * x0) / q * arctan)
    )


def _is_closed(d):
    return isinstance(d.up, float)


def _vwn5(d):
    x = jnp.sqrt(d.rs)
    para = _vwn_fit(x, 0.0310907, 3.72744, 12.9352, -0.10498)
    if _is_closed(d):
        return para
    ferro = _vwn_fit(x, 0.01554535, 7.06042, 18.0578, -0.32500)
    stiffness = _vwn_fit(x, -1 / (6 * math.pi**2), 1.13107, 13.0045, -0.0047584)
    zeta4, f = (0.5 * (d.up - d.down)) ** 4, _f_zeta(d)
    return para + stiffness * f * (1 - zeta4) / _F_CURVATURE + (ferro - para) * f * zeta4


def _vwn_rpa(d):
    x = jnp.sqrt(d.rs)
    para = _vwn_fit(x, 0.0310907, 13.0720, 42.7198, -0.409286)
    if _is_closed(d):
        return para
    return para + (_vwn_fit(x, 0.01554535, 20.1231, 101.578, -0.743294) - para) * _f_zeta(d)


def _pw92_fit(root, a, alpha1, b1, b2, b3, b4):
    series = 2 * a * root * (b1 + root * (b2 + root * (b3 + root * b4)))
    return -2 * a * (1 + alpha1 * root * root) * jnp.log1p(1 / series)


def _pw92_with(d, amplitudes, curvature):
    """Eq. 8."""
    root = jnp.sqrt(d.rs)
    para = _pw92_fit(root, amplitudes[0], 0.21370, 7.5957, 3.5876, 1.6382, 0.49294)
    if _is_closed(d):
        return para
    ferro = _pw92_fit(root, amplitudes[1], 0.20548, 14.1189, 6.1977, 3.3662, 0.62517)
    stiffness = _pw92_fit(root, amplitudes[2], 0.11125, 10.357, 3.6231, 0.88026, 0.49671)
    zeta4, f = (0.5 * (d.up - d.down)) ** 4, _f_zeta(d)
    return para - stiffness * f * (1 - zeta4) / curvature + (ferro - para) * f * zeta4


def _pw92(d):
    """As published."""
    return _pw92_with(d, (0.031091, 0.015545, 0.016887), 1.709921)


def _pw92_precise(d):
    """With the digits that PBE and its heirs use."""
    return _pw92_with(d, (0.0310907, 0.01554535, 0.0168869), _F_CURVATURE)


# Gradient corrections ------------------------------------------------------------------------------

_BETA, _GAMMA = 0.06672455060314922, (1 - math.log(2)) / math.pi**2


def _pbe_exchange(d):
    kappa, mu = 0.804, 0.2195149727645171
    return _slater_exchange(d) * (1 + kappa - kappa / (1 + mu * d.s2 / kappa))


def _t2(d, phi):
    """PBE's t², from s²."""
    return (3 * math.pi**2 / 16) ** (2 / 3) * d.s2 / (phi * phi * d.rs)


def _pbe_correlation(d):
    phi = _spin_mean(d, 2 / 3)
    eps, scale = _pw92_precise(d), _GAMMA * phi**3
    at2 = _BETA / _GAMMA / jnp.expm1(-eps / scale) * _t2(d, phi)
    # (1 + A t²)/(1 + A t² + A² t⁴) tends to 1/(A t²): written so that a huge t² does not overflow.
    ratio = _t2(d, phi) * (1 + at2) / (1 + at2 * (1 + at2))
    return eps + scale * jnp.log1p(_BETA / _GAMMA * ratio)


def _b88_exchange(d):
    beta = 0.0042
    # Of one spin: x² = |∇ρσ|²/ρσ^(8/3); the floor keeps the root's derivative finite where x² vanishes anyway.
    x2 = d.s2 * (2 ** (2 / 3) / _S2)
    x = jnp.sqrt(jnp.maximum(x2, 1e-30))
    return _slater_exchange(d) - 2 * beta * (d.rho / 2) ** (4 / 3) * x2 / (1 + 6 * beta * x * jnp.arcsinh(x))


def _lyp(d):
    """Per electron; gradients are reduced, so that no power of a small density appears."""
    a, b, c, dd = 0.04918, 0.132, 0.2533, 0.349
    fermi = 0.3 * (3 * math.pi**2) ** (2 / 3)
    x = d.rs * (4 * math.pi / 3) ** (1 / 3)  # ρ^(−1/3)
    damp = 1 / (1 + dd * x)
    delta = (c + dd * damp) * x
    s_aa, s_ab, s_bb = d.sigma
    s = s_aa + 2 * s_ab + s_bb
    n_a, n_b = d.up / 2, d.down / 2  # shares of the density
    bracket = n_a * n_b * (
        2 ** (11 / 3) * fermi * (n_a ** (8 / 3) + n_b ** (8 / 3))
        + (47 - 7 * delta) / 18 * s - (45 - delta) / 18 * (s_aa + s_bb)
        - (delta - 11) / 9 * (n_a * s_aa + n_b * s_bb)
    ) - 2 / 3 * s + (2 / 3 - n_a**2) * s_bb + (2 / 3 - n_b**2) * s_aa
    return -a * damp * (4 * n_a * n_b + b * jnp.exp(-c * x) * bracket)


# r2SCAN --------------------------------------------------------------------------------------------

_ETA, _DP2 = 0.001, 0.361
_SWITCH_X = (
    1.0, -0.667, -0.4445555, -0.663086601049, 1.451297044490, -0.887998041597, 0.234528941479, -0.023185843322,
)
_SWITCH_C = (1.0, -0.64, -0.4352, -1.535685604549, 3.061560252175, -1.915710236206, 0.516884468372, -0.051848879792)


def _switch(alpha, coefficients, c1, c2, d):
    """f(ᾱ): one orbital at 0, slowly varying at 1; three branches, each fed harmless values by the others."""
    low, high = jnp.minimum(alpha, 0.0), jnp.maximum(alpha, 2.5)
    middle = jnp.polyval(jnp.array(coefficients[::-1], alpha.dtype), jnp.clip(alpha, 0.0, 2.5))
    outer = -d * jnp.exp(c2 / (1 - high))
    return jnp.where(alpha < 0, jnp.exp(-c1 * low / (1 - low)), jnp.where(alpha > 2.5, outer, middle))


def _alpha_bar(tau, rho, s2, polarised):
    """ᾱ of a density, (τ − τ_W)/(τ_uniform + η τ_W)."""
    uniform = 0.3 * (3 * math.pi**2) ** (2 / 3) * rho ** (5 / 3)
    weizsaecker = 5 / 3 * s2 * uniform  # |∇ρ|²/(8ρ)
    return (tau - weizsaecker) / (uniform * polarised + _ETA * weizsaecker)


def _damped_p(s2):
    # Beyond p = 10 the exponential is 0 to rounding; the cut keeps its argument finite.
    return s2 * jnp.exp(-(jnp.minimum(s2, 10.0) ** 2) / _DP2**4)


def _r2scan_exchange(d):
    h0, k1, a1 = 1.174, 0.065, 4.9479
    slope = -sum(i * c for i, c in enumerate(_SWITCH_X)) * (1 - h0)
    x = (20 / 27 + _ETA * 5 / 3) * slope * _damped_p(d.s2) + 10 / 81 * d.s2
    h1 = 1 + k1 - k1 / (1 + x / k1)
    switch = _switch(_alpha_bar(d.tau, d.rho, d.s2, 1.0), _SWITCH_X, 0.667, 0.8, 1.24)
    gx = -jnp.expm1(-a1 / jnp.maximum(d.s2, 1e-20) ** 0.25)
    return _slater_exchange(d) * (h1 + switch * (h0 - h1)) * gx


def _r2scan_correlation(d):
    b1, b2, b3, chi = 0.0285764, 0.0889, 0.125541, 0.12802585262625815
    root = jnp.sqrt(d.rs)
    zeta = 0.5 * (d.up - d.down)
    one_orbital = (1 - 2.363 * (_spin_mean(d, 4 / 3) - 1)) * (1 - zeta**12)
    bottom = 1 + b2 * root + b3 * d.rs
    lda0 = -b1 / bottom
    w0 = jnp.expm1(-lda0 / b1)
    g_inf = (1 + 4 * chi * d.s2) ** -0.25
    eps0 = (lda0 + b1 * jnp.log1p(w0 * (1 - g_inf))) * one_orbital

    phi, ds = _spin_mean(d, 2 / 3), _spin_mean(d, 5 / 3)
    scale = _GAMMA * phi**3
    lsda, lsda_slope = jax.jvp(lambda rs: _pw92_precise(d._replace(rs=rs)), (d.rs,), (jnp.ones_like(d.rs),))
    lda0_slope = b1 * (b2 / (2 * root) + b3) / bottom**2
    w1 = jnp.expm1(-lsda / scale)
    beta = _BETA * (1 + 0.1 * d.rs) / (1 + 0.1778 * d.rs)
    y = beta / (_GAMMA * w1) * _t2(d, phi)
    curve = sum(i * c for i, c in enumerate(_SWITCH_C)) / (27 * scale * ds * w1)
    delta_y = curve * _damped_p(d.s2) * (
        20 * d.rs * (lda0_slope * one_orbital - lsda_slope) - 45 * _ETA * (lda0 * one_orbital - lsda)
    )
    g = (1 + 4 * (y - delta_y)) ** -0.25
    eps1 = lsda + scale * jnp.log1p(w1 * (1 - g))
    switch = _switch(_alpha_bar(d.tau, d.rho, d.s2, ds), _SWITCH_C, 0.64, 1.5, 0.7)
    return eps1 + switch * (eps0 - eps1)


# What is offered -----------------------------------------------------------------------------------


def _scaled(factor, part):
    return lambda d: factor * part(d)


def _b3lyp(local):
    return Functional(
        4, 0.2,
        lambda d: 0.08 * _slater_exchange(d) + 0.72 * _b88_exchange(d),
        lambda d: 0.19 * local(d) + 0.81 * _lyp(d),
    )


_FUNCTIONALS = {
    "hf": Functional(0, 1.0, None, None),
    "lda": Functional(1, 0.0, _slater_exchange, _vwn5),
    "pw92": Functional(1, 0.0, _slater_exchange, _pw92),
    "pbe": Functional(4, 0.0, _pbe_exchange, _pbe_correlation),
    "blyp": Functional(4, 0.0, _b88_exchange, _lyp),
    "b3lyp": _b3lyp(_vwn_rpa),
    "b3lyp5": _b3lyp(_vwn5),
    "pbe0": Functional(4, 0.25, _scaled(0.75, _pbe_exchange), _pbe_correlation),
    "r2scan": Functional(5, 0.0, _r2scan_exchange, _r2scan_correlation),
}
