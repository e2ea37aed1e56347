"""Exchange–correlation functionals, each written once as an energy density; potentials follow by autodiff.

Exchange is written for a closed shell and extended by spin scaling, E[ρα, ρβ] = ½E[2ρα] + ½E[2ρβ] (Oliver & Perdew
1979, doi:10.1103/PhysRevA.20.397). Correlation is written for any spin polarisation. Sources:

    Slater; VWN5 and its RPA fit   Vosko, Wilk & Nusair 1980 (doi:10.1139/p80-159), eqs. 3.2 and 4.4, table 5
    PW92                           Perdew & Wang 1992 (doi:10.1103/PhysRevB.45.13244), eq. 10, table I
    PBE                            Perdew, Burke & Ernzerhof 1996 (doi:10.1103/PhysRevLett.77.3865), eqs. 3–14
    B88                            Becke 1988 (doi:10.1103/PhysRevA.38.3098), eq. 8
    LYP                            Miehlich et al. 1989 (doi:10.1016/0009-2614(89)87234-3), eq. 2
    B3LYP                          Stephens et al. 1994 (doi:10.1021/j100096a001)
    PBE0                           Adamo & Barone 1999 (doi:10.1063/1.478522)
    r2SCAN                         Furness et al. 2020 (doi:10.1021/acs.jpclett.0c02405), supplement
    short-range LDA exchange       Gill, Adamson & Pople 1996 (doi:10.1080/00268979609484488), eqs. 14–17
    short-range GGA exchange       Iikura et al. 2001 (doi:10.1063/1.1383587), eqs. 10–12
    CAM-B3LYP                      Yanai, Tew & Handy 2004 (doi:10.1016/j.cplett.2004.06.011)
    LC-BLYP                        Tawada et al. 2004 (doi:10.1063/1.1688752)
    correlation of each spin pair  Stoll, Pavlidou & Preuß 1978 (doi:10.1007/PL00020511)
    B97's series; ωB97X            Becke 1997 (doi:10.1063/1.475007); Chai & Head-Gordon 2008 (doi:10.1063/1.2834918)
    ωB97X-V                        Mardirossian & Head-Gordon 2014 (doi:10.1039/C3CP54374A), table 2
    ωB97M-V                        Mardirossian & Head-Gordon 2016 (doi:10.1063/1.4952647), table 5

Constants have as many digits as libxc's. To add a functional, add one record to `BUILTIN` at the end of this file.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qptlab.system.functional import (
    ClosedShellDensity,
    Functional,
    SpinDensity,
    functional,
    register_builtin,
)

Points = Float[Array, " points"]
"""One number for each grid point."""

RHO_MIN = 1e-14
"""Density, electrons per cubic bohr, below which a point adds nothing (its energy is below 1e-18 hartree)."""

RHO_MIN_FLOAT32 = 1e-9
"""`RHO_MIN` for float32, where ρ^(8/3) must not underflow."""

REDUCED_MAX = 1e6
"""Largest component of a reduced gradient ∇ρ/ρ^(4/3). Larger ones are cut so that their powers stay finite; the tails
of molecules reach 1e5."""


class XCPotential(NamedTuple):
    """Exchange–correlation energy per volume on grid points, and its derivatives.

    Attributes:
      exc: energy per volume, hartree per cubic bohr.
      v: derivative of `exc` with respect to each row of the density.
    """

    exc: Float[Array, " points"]
    v: Float[Array, "nspin nvar points"]


def energy_density(density: Float[Array, "nspin nvar points"], xc: str | Functional) -> Float[Array, " points"]:
    """Return the semilocal exchange–correlation energy per volume, hartree per cubic bohr.

    Args:
      density: density of each spin on grid points. Its first axis has length one for a closed shell (the total
        density) or two (the density of each spin). Its second axis holds ρ (electrons per cubic bohr), then ∂x, ∂y
        and ∂z of ρ, then τ = ½Σ|∇ψ|², as far as the functional reads them. Points with ρ below `RHO_MIN` give zero.
      xc: functional, by name or as a record.

    Raises:
      InputError: if no functional has the name.
      ValueError: if the functional reads more rows than `density` has.
    """
    record = functional(xc)
    if record.nvar == 0:
        return jnp.zeros_like(density[0, 0])
    if density.shape[1] < record.nvar:
        raise ValueError(
            f"Expected {record.nvar} rows of the density for functional {record.name}, got {density.shape[1]}."
        )
    floor = RHO_MIN if density.dtype == jnp.float64 else RHO_MIN_FLOAT32
    rho = density[0, 0] if len(density) == 1 else density[0, 0] + density[1, 0]
    is_dense = rho > floor
    total = jnp.zeros_like(rho)
    if record.exchange:
        if len(density) == 1:
            total += record.exchange(_closed_shell(density[0], floor))
        else:
            total += 0.5 * sum(_spin_exchange(record.exchange, 2 * spin, floor) for spin in density)
    if record.correlation:
        total += jnp.where(is_dense, rho, 0.0) * record.correlation(_spin_density(density, floor))
    return jnp.where(is_dense, total, 0.0)


def potential(density: Float[Array, "nspin nvar points"], xc: str | Functional) -> XCPotential:
    """Return the energy per volume and its derivatives, by reverse differentiation of `energy_density`."""
    exc, pullback = jax.vjp(lambda rows: energy_density(rows, xc), density)
    return XCPotential(exc, *pullback(jnp.ones_like(exc)))


_S2 = 1 / (4 * (3 * math.pi**2) ** (2 / 3))
"""Factor between s² and |∇ρ|²/ρ^(8/3)."""


def _reduced_gradient(
    gradient: Float[Array, "xyz points"], rho: Points, is_dense: Bool[Array, " points"]
) -> Float[Array, "xyz points"]:
    """Return ∇ρ/ρ^(4/3), and zero where there is no density."""
    return jnp.clip(jnp.where(is_dense, gradient, 0.0) / rho ** (4 / 3), -REDUCED_MAX, REDUCED_MAX)


def _positive(rows: Float[Array, "nvar points"], floor: float) -> tuple[Bool[Array, " points"], Points, Points]:
    """Return a mask of the points with density, ρ and τ.

    Elsewhere ρ and τ get harmless values, because autodiff evaluates both branches of a condition.
    """
    is_dense = rows[0] > floor
    rho = jnp.where(is_dense, rows[0], 1.0)
    tau = jnp.where(is_dense, jnp.maximum(rows[4], 0.0), 1.0) if len(rows) > 4 else jnp.ones_like(rho)
    return is_dense, rho, tau


def _closed_shell(rows: Float[Array, "nvar points"], floor: float) -> ClosedShellDensity:
    is_dense, rho, tau = _positive(rows, floor)
    return ClosedShellDensity(rho, _S2 * jnp.sum(_reduced_gradient(rows[1:4], rho, is_dense) ** 2, axis=0), tau)


def _spin_exchange(
    exchange: Callable[[ClosedShellDensity], Points], rows: Float[Array, "nvar points"], floor: float
) -> Points:
    return jnp.where(rows[0] > floor, exchange(_closed_shell(rows, floor)), 0.0)


def _spin_density(density: Float[Array, "nspin nvar points"], floor: float) -> SpinDensity:
    if len(density) == 1:
        rho, s2, tau = _closed_shell(density[0], floor)
        each = ClosedShellDensity(rho, s2, tau)
        return SpinDensity(_wigner_seitz(rho), 1.0, 1.0, s2, tau, rho, (s2 / (4 * _S2),) * 3, (each, each))
    is_dense, rho, tau = _positive(density[0] + density[1], floor)
    tiny = float(jnp.finfo(rho.dtype).eps)
    up, down = (jnp.where(is_dense, jnp.maximum(2 * spin[0] / rho, tiny), 1.0) for spin in density)
    alpha, beta = (_reduced_gradient(spin[1:4], rho, is_dense) for spin in density)
    sigma = jnp.sum(alpha * alpha, axis=0), jnp.sum(alpha * beta, axis=0), jnp.sum(beta * beta, axis=0)
    s2 = _S2 * jnp.sum((alpha + beta) ** 2, axis=0)
    spins = _closed_shell(2 * density[0], floor), _closed_shell(2 * density[1], floor)
    return SpinDensity(_wigner_seitz(rho), up, down, s2, tau, rho, sigma, spins)


def _wigner_seitz(rho: Points) -> Points:
    return (3 / (4 * math.pi * rho)) ** (1 / 3)


def _spin_mean(d: SpinDensity, power: float) -> Points | float:
    """Return ½[(1 + ζ)^p + (1 − ζ)^p], which is 1 for a closed shell."""
    return 0.5 * (d.up**power + d.down**power)


def _f_zeta(d: SpinDensity) -> Points | float:
    """Return f(ζ) of Vosko, Wilk & Nusair: 0 for a closed shell, 1 for full polarisation."""
    return (_spin_mean(d, 4 / 3) - 1) / (2 ** (1 / 3) - 1)


_F_CURVATURE = 4 / (9 * (2 ** (1 / 3) - 1))
"""Second derivative f''(0)."""


# Local density -------------------------------------------------------------------------------------


def slater_exchange(d: ClosedShellDensity) -> Points:
    """Return the exchange energy per volume of the uniform electron gas (Dirac, Slater), hartree per cubic bohr."""
    return -0.75 * (3 / math.pi) ** (1 / 3) * d.rho ** (4 / 3)


def _vwn_fit(x: Points, a: float, b: float, c: float, x0: float) -> Points:
    """Return VWN's eq. 4.4 at x = √rs, with arctan instead of its complement."""
    q = math.sqrt(4 * c - b * b)
    big_x = x * x + b * x + c
    arctan = jnp.arctan(q / (2 * x + b))
    at_x0 = b * x0 / (x0 * x0 + b * x0 + c)
    return a * (
        jnp.log(x * x / big_x) + 2 * b / q * arctan
        - at_x0 * (jnp.log((x - x0) ** 2 / big_x) + 2 * (b + 2 * x0) / q * arctan)
    )


def _is_closed(d: SpinDensity) -> bool:
    return isinstance(d.up, float)


def vwn5_correlation(d: SpinDensity) -> Points:
    """Return the correlation energy per electron of VWN5, hartree."""
    x = jnp.sqrt(d.rs)
    para = _vwn_fit(x, 0.0310907, 3.72744, 12.9352, -0.10498)
    if _is_closed(d):
        return para
    ferro = _vwn_fit(x, 0.01554535, 7.06042, 18.0578, -0.32500)
    stiffness = _vwn_fit(x, -1 / (6 * math.pi**2), 1.13107, 13.0045, -0.0047584)
    zeta4, f = (0.5 * (d.up - d.down)) ** 4, _f_zeta(d)
    return para + stiffness * f * (1 - zeta4) / _F_CURVATURE + (ferro - para) * f * zeta4


def vwn_rpa_correlation(d: SpinDensity) -> Points:
    """Return the correlation energy per electron of VWN's fit to the RPA, hartree."""
    x = jnp.sqrt(d.rs)
    para = _vwn_fit(x, 0.0310907, 13.0720, 42.7198, -0.409286)
    if _is_closed(d):
        return para
    return para + (_vwn_fit(x, 0.01554535, 20.1231, 101.578, -0.743294) - para) * _f_zeta(d)


def _pw92_fit(
    root: Points, a: float, alpha1: float, b1: float, b2: float, b3: float, b4: float
) -> Points:
    """Return eq. 10 of Perdew & Wang at root = √rs."""
    series = 2 * a * root * (b1 + root * (b2 + root * (b3 + root * b4)))
    return -2 * a * (1 + alpha1 * root * root) * jnp.log1p(1 / series)


class _ElectronGas(NamedTuple):
    """Amplitudes of PW92 for no, full and infinitesimal polarisation, and the curvature f''(0)."""

    para: float
    ferro: float
    stiffness: float
    curvature: float


_PW92 = _ElectronGas(0.031091, 0.015545, 0.016887, 1.709921)
_PW92_MOD = _ElectronGas(0.0310907, 0.01554535, 0.0168869, _F_CURVATURE)


def _pw92_with(d: SpinDensity, gas: _ElectronGas) -> Points:
    """Return eq. 8 of Perdew & Wang."""
    root = jnp.sqrt(d.rs)
    para = _pw92_fit(root, gas.para, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294)
    if _is_closed(d):
        return para
    ferro = _pw92_ferromagnetic(d.rs, gas)
    stiffness = _pw92_fit(root, gas.stiffness, 0.11125, 10.357, 3.6231, 0.88026, 0.49671)
    zeta4, f = (0.5 * (d.up - d.down)) ** 4, _f_zeta(d)
    return para - stiffness * f * (1 - zeta4) / gas.curvature + (ferro - para) * f * zeta4


def _pw92_ferromagnetic(rs: Points, gas: _ElectronGas) -> Points:
    """Return the correlation energy per electron of PW92 if all spins are parallel, hartree."""
    return _pw92_fit(jnp.sqrt(rs), gas.ferro, 0.20548, 14.1189, 6.1977, 3.3662, 0.62517)


def pw92_correlation(d: SpinDensity) -> Points:
    """Return the correlation energy per electron of PW92 with the published constants, hartree."""
    return _pw92_with(d, _PW92)


def pw92_mod_correlation(d: SpinDensity) -> Points:
    """Return the correlation energy per electron of PW92 with the digits that PBE and r2SCAN use, hartree."""
    return _pw92_with(d, _PW92_MOD)


# Gradient corrections ------------------------------------------------------------------------------

_BETA, _GAMMA = 0.06672455060314922, (1 - math.log(2)) / math.pi**2


def pbe_exchange(d: ClosedShellDensity, kappa: float = 0.804, mu: float = 0.2195149727645171) -> Points:
    """Return the exchange energy per volume of PBE, hartree per cubic bohr; its variants have a different κ or µ."""
    return slater_exchange(d) * (1 + kappa - kappa / (1 + mu * d.s2 / kappa))


def _t2(d: SpinDensity, phi: Points | float) -> Points:
    """Return t² of PBE, from s²."""
    return (3 * math.pi**2 / 16) ** (2 / 3) * d.s2 / (phi * phi * d.rs)


def pbe_correlation(d: SpinDensity) -> Points:
    """Return the correlation energy per electron of PBE, hartree."""
    phi = _spin_mean(d, 2 / 3)
    eps, scale = pw92_mod_correlation(d), _GAMMA * phi**3
    at2 = _BETA / _GAMMA / jnp.expm1(-eps / scale) * _t2(d, phi)
    # (1 + A t²)/(1 + A t² + A² t⁴) tends to 1/(A t²): written so that a huge t² does not overflow.
    ratio = _t2(d, phi) * (1 + at2) / (1 + at2 * (1 + at2))
    return eps + scale * jnp.log1p(_BETA / _GAMMA * ratio)


def _spin_gradient(d: ClosedShellDensity) -> Points:
    """Return x² = |∇ρσ|²/ρσ^(8/3) of one spin."""
    return d.s2 * (2 ** (2 / 3) / _S2)


def b88_exchange(d: ClosedShellDensity) -> Points:
    """Return the exchange energy per volume of Becke 1988, hartree per cubic bohr."""
    beta = 0.0042
    # The floor keeps the root's derivative finite where x² vanishes anyway.
    x2 = _spin_gradient(d)
    x = jnp.sqrt(jnp.maximum(x2, 1e-30))
    return slater_exchange(d) - 2 * beta * (d.rho / 2) ** (4 / 3) * x2 / (1 + 6 * beta * x * jnp.arcsinh(x))


def lyp_correlation(d: SpinDensity) -> Points:
    """Return the correlation energy per electron of LYP, hartree.

    Gradients are reduced, so that no power of a small density appears.
    """
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


def _switch(alpha: Points, coefficients: tuple[float, ...], c1: float, c2: float, d: float) -> Points:
    """Return f(ᾱ): 1 for one orbital (ᾱ = 0), 0 for a slowly varying density (ᾱ = 1).

    Each of the three branches gets harmless arguments where a different branch holds.
    """
    low, high = jnp.minimum(alpha, 0.0), jnp.maximum(alpha, 2.5)
    middle = jnp.polyval(jnp.array(coefficients[::-1], alpha.dtype), jnp.clip(alpha, 0.0, 2.5))
    outer = -d * jnp.exp(c2 / (1 - high))
    return jnp.where(alpha < 0, jnp.exp(-c1 * low / (1 - low)), jnp.where(alpha > 2.5, outer, middle))


def _alpha_bar(tau: Points, rho: Points, s2: Points, polarised: Points | float) -> Points:
    """Return ᾱ = (τ − τ_W)/(τ_uniform + η·τ_W)."""
    uniform = 0.3 * (3 * math.pi**2) ** (2 / 3) * rho ** (5 / 3)
    weizsaecker = 5 / 3 * s2 * uniform  # |∇ρ|²/(8ρ)
    return (tau - weizsaecker) / (uniform * polarised + _ETA * weizsaecker)


def _damped_p(s2: Points) -> Points:
    # Beyond p = 10 the exponential is 0 to rounding. The cut keeps its argument finite.
    return s2 * jnp.exp(-(jnp.minimum(s2, 10.0) ** 2) / _DP2**4)


def r2scan_exchange(d: ClosedShellDensity) -> Points:
    """Return the exchange energy per volume of r2SCAN, hartree per cubic bohr."""
    h0, k1, a1 = 1.174, 0.065, 4.9479
    slope = -sum(i * c for i, c in enumerate(_SWITCH_X)) * (1 - h0)
    x = (20 / 27 + _ETA * 5 / 3) * slope * _damped_p(d.s2) + 10 / 81 * d.s2
    h1 = 1 + k1 - k1 / (1 + x / k1)
    switch = _switch(_alpha_bar(d.tau, d.rho, d.s2, 1.0), _SWITCH_X, 0.667, 0.8, 1.24)
    gx = -jnp.expm1(-a1 / jnp.maximum(d.s2, 1e-20) ** 0.25)
    return slater_exchange(d) * (h1 + switch * (h0 - h1)) * gx


def r2scan_correlation(d: SpinDensity) -> Points:
    """Return the correlation energy per electron of r2SCAN, hartree."""
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
    lsda, lsda_slope = jax.jvp(lambda rs: pw92_mod_correlation(d._replace(rs=rs)), (d.rs,), (jnp.ones_like(d.rs),))
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


# Range separation ----------------------------------------------------------------------------------

_SHORT_RANGE_SERIES = tuple(
    -4 / 3 * (-1) ** n
    * (2 / (math.factorial(n) * (2 * n + 1)) - 1 / math.factorial(n + 1) - 1 / (2 * math.factorial(n + 2)))
    for n in range(19)
)
"""Coefficients of (k/ω)^(2n), from n = 1, of the share of exchange at short range; the first one vanishes."""


def short_range(exchange: Points, d: ClosedShellDensity, omega: float) -> Points:
    """Return the part of a semilocal exchange energy that comes from erfc(ωr)/r, hartree per cubic bohr.

    It is that of an electron gas with the wave vector k = k_F/√(enhancement over LDA).

    Args:
      exchange: exchange energy per volume with the whole of 1/r, hartree per cubic bohr.
      d: density; ρ is read.
      omega: ω, per bohr.
    """
    wave_vector = (3 * math.pi**2 * d.rho) ** (1 / 3) / jnp.sqrt(exchange / slater_exchange(d))
    y = wave_vector / omega
    # The closed form loses all digits for small y. Both branches get harmless arguments where the other one holds.
    is_small = y < 1
    small, large = jnp.where(is_small, y, 0.5), jnp.where(is_small, 2.0, y)
    series = jnp.polyval(jnp.array((*_SHORT_RANGE_SERIES[:0:-1], 0.0), y.dtype), small * small)
    inverse = 1 / large
    bracket = (
        math.sqrt(math.pi) * jax.scipy.special.erf(large) - 1.5 * inverse + 0.5 * inverse**3
        + (inverse - 0.5 * inverse**3) * jnp.exp(-(large**2))
    )
    return exchange * jnp.where(is_small, series, 1 - 4 / 3 * inverse * bracket)


def _cam_b3lyp_exchange(d: ClosedShellDensity) -> Points:
    b88 = b88_exchange(d)
    return 0.35 * b88 + 0.46 * short_range(b88, d, 0.33)


def _lc_blyp_exchange(d: ClosedShellDensity) -> Points:
    return short_range(b88_exchange(d), d, 0.33)


# Power series --------------------------------------------------------------------------------------


def _finite_gradient(x2: Points, gamma: float) -> Points:
    """Return u = γ·x²/(1 + γ·x²) of Becke 1997: 0 for a uniform density, below 1."""
    return 1 - 1 / (1 + gamma * x2)


def _tau_share(d: ClosedShellDensity) -> Points:
    """Return z = τ/(τ + τ of the electron gas), positive."""
    uniform = 0.3 * (3 * math.pi**2) ** (2 / 3) * d.rho ** (5 / 3)
    return jnp.maximum(d.tau / (d.tau + uniform), 1e-10)


Series = Callable[[Points, Points], Points]
"""Function of u, and of w = (t − 1)/(t + 1), where t is τ of the electron gas over τ."""


def _series_exchange(d: ClosedShellDensity, series: Series, omega: float) -> Points:
    u, w = _finite_gradient(_spin_gradient(d), 0.004), 1 - 2 * _tau_share(d)
    return short_range(slater_exchange(d), d, omega) * series(u, w)


def _series_correlation(d: SpinDensity, gas: _ElectronGas, same: Series, opposite: Series) -> Points:
    """Return the correlation energy per electron of parallel and antiparallel spins, each with a series, hartree."""
    (x2_up, z_up), (x2_down, z_down) = ((_spin_gradient(spin), _tau_share(spin)) for spin in d.spins)
    antiparallel, total = _pw92_with(d, gas), jnp.zeros_like(d.rs)
    for spin, share, x2, z in zip(d.spins, (d.up / 2, d.down / 2), (x2_up, x2_down), (z_up, z_down), strict=True):
        parallel = share * _pw92_ferromagnetic(_wigner_seitz(spin.rho / 2), gas)
        antiparallel -= parallel
        total += parallel * same(_finite_gradient(x2, 0.2), 1 - 2 * z)
    # The mean of t of both spins: 1 + t is 1/z.
    w = 1 - 4 * z_up * z_down / (z_up + z_down)
    return total + antiparallel * opposite(_finite_gradient(0.5 * (x2_up + x2_down), 0.006), w)


def _in_u(*coefficients: float) -> Series:
    """Return a polynomial of u alone, from its constant term up."""
    return lambda u, w: jnp.polyval(jnp.array(coefficients[::-1], u.dtype), u)


def _wb97x_exchange(d: ClosedShellDensity) -> Points:
    return _series_exchange(d, _in_u(0.842294, 0.726479, 1.0476, -5.70635, 13.2794), 0.3)


def _wb97x_correlation(d: SpinDensity) -> Points:
    same = _in_u(1.0, -4.33879, 18.2308, -31.743, 17.2901)
    return _series_correlation(d, _PW92, same, _in_u(1.0, 2.37031, -11.3995, 6.58405, -3.78132))


def _wb97xv_exchange(d: ClosedShellDensity) -> Points:
    return _series_exchange(d, _in_u(0.833, 0.603, 1.194), 0.3)


def _wb97xv_correlation(d: SpinDensity) -> Points:
    return _series_correlation(d, _PW92, _in_u(0.556, -0.257), _in_u(1.219, -1.85))


def _wb97mv_exchange(d: ClosedShellDensity) -> Points:
    return _series_exchange(d, lambda u, w: 0.85 + 1.007 * u + 0.259 * w, 0.3)


def _wb97mv_correlation(d: SpinDensity) -> Points:
    def same(u, w):
        return 0.443 - 4.535 * w - 3.39 * w**2 - 1.437 * u**4 + 4.278 * w**4 * u**3

    def opposite(u, w):
        return 1 + 1.358 * w + 2.924 * w**2 - 8.812 * w**2 * u - 1.39 * w**6 + 9.142 * w**6 * u

    return _series_correlation(d, _PW92_MOD, same, opposite)


# Register of built-in functionals ------------------------------------------------------------------


def _pbe0_exchange(d: ClosedShellDensity) -> Points:
    return 0.75 * pbe_exchange(d)


def _b3lyp_exchange(d: ClosedShellDensity) -> Points:
    return 0.08 * slater_exchange(d) + 0.72 * b88_exchange(d)


def _b3lyp_correlation(d: SpinDensity) -> Points:
    return 0.19 * vwn_rpa_correlation(d) + 0.81 * lyp_correlation(d)


def _b3lyp5_correlation(d: SpinDensity) -> Points:
    return 0.19 * vwn5_correlation(d) + 0.81 * lyp_correlation(d)


BUILTIN = (
    Functional("hf", family="hf", exact_exchange=1.0, pyscf_name="hf"),
    Functional("lda", slater_exchange, vwn5_correlation, "lda", pyscf_name="lda,vwn"),  # PySCF's vwn is VWN5
    Functional("pw92", slater_exchange, pw92_correlation, "lda", pyscf_name="lda,pw"),
    Functional("pbe", pbe_exchange, pbe_correlation, "gga", pyscf_name="pbe,pbe", dispersion_name="pbe"),
    Functional("blyp", b88_exchange, lyp_correlation, "gga", pyscf_name="b88,lyp", dispersion_name="blyp"),
    # As in Gaussian and PySCF, with VWN's fit to the RPA: b3lypg means this whatever PySCF's settings.
    Functional("b3lyp", _b3lyp_exchange, _b3lyp_correlation, "gga", 0.2, "b3lypg", "b3lyp"),
    # As in ORCA, with VWN5; dispersion corrections have one set of parameters for both.
    Functional("b3lyp5", _b3lyp_exchange, _b3lyp5_correlation, "gga", 0.2, "b3lyp5", "b3lyp"),
    Functional("pbe0", _pbe0_exchange, pbe_correlation, "gga", 0.25, "pbe0"),
    Functional("r2scan", r2scan_exchange, r2scan_correlation, "mgga", pyscf_name="r2scan"),
    Functional(
        "cam-b3lyp", _cam_b3lyp_exchange, _b3lyp5_correlation, "gga", 0.19, "camb3lyp", "cam-b3lyp", omega=0.33,
        long_range_exchange=0.65,
    ),
    Functional(
        "lc-blyp", _lc_blyp_exchange, lyp_correlation, "gga", 0.0, "lc_blyp", "lc-blyp", omega=0.33,
        long_range_exchange=1.0,
    ),
    Functional(
        "wb97x", _wb97x_exchange, _wb97x_correlation, "gga", 0.157706, "wb97x", "wb97x-2008", omega=0.3,
        long_range_exchange=1.0,
    ),
    # Without their nonlocal correlation, VV10. No published method stands alone without a dispersion correction:
    # ωB97X-D4 and ωB97M-D4, and with D3(BJ), have these parts (Najibi & Goerigk 2018, doi:10.1021/acs.jctc.8b00842;
    # 2020, doi:10.1002/jcc.26411).
    Functional(
        "wb97x-v-nonlc", _wb97xv_exchange, _wb97xv_correlation, "gga", 0.167, "wb97x_v", "wb97x", omega=0.3,
        long_range_exchange=1.0,
    ),
    Functional(
        "wb97m-v-nonlc", _wb97mv_exchange, _wb97mv_correlation, "mgga", 0.15, "wb97m_v", "wb97m", omega=0.3,
        long_range_exchange=1.0,
    ),
)
"""Records of the built-in functionals."""

register_builtin(BUILTIN)
