"""Exchange–correlation functionals: one record each, and the register of all records.

Every list of functionals (command line, workbench, tests, documentation) is read from `FUNCTIONALS`. The energy
densities of the built-in functionals are in `qptlab.dft.functionals`, which fills the register when it is imported.
"""

import dataclasses
import math
import re
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from qptlab.errors import InputError, shown

FAMILIES = {"hf": 0, "lda": 1, "gga": 4, "mgga": 5}
"""Families of functionals, and how many rows of the density each reads: none; ρ; ρ and ∇ρ; ρ, ∇ρ and τ."""


class ClosedShellDensity(NamedTuple):
    """Density of a closed shell on grid points: the argument of an exchange functional.

    Attributes:
      rho: electron density ρ, electrons per cubic bohr; positive.
      s2: square of the reduced gradient, s² = |∇ρ|²/(4·(3π²)^(2/3)·ρ^(8/3)); zero for the family "lda".
      tau: kinetic-energy density τ = ½Σ|∇ψ|², hartree per cubic bohr; one for the families "lda" and "gga".
    """

    rho: Float[Array, " points"]
    s2: Float[Array, " points"]
    tau: Float[Array, " points"]


class SpinDensity(NamedTuple):
    """Density of any spin polarisation on grid points: the argument of a correlation functional.

    Attributes:
      rs: Wigner–Seitz radius, bohr.
      up: 1 + ζ, positive; the number 1.0 for a closed shell, so that its powers cost nothing.
      down: 1 − ζ, positive; the number 1.0 for a closed shell.
      s2: square of the reduced gradient of the total density, as in `ClosedShellDensity`.
      tau: total kinetic-energy density, hartree per cubic bohr.
      rho: total electron density, electrons per cubic bohr.
      sigma: ∇ρα·∇ρα, ∇ρα·∇ρβ and ∇ρβ·∇ρβ, each divided by ρ^(8/3) of the total density.
      spins: for each spin, the closed shell of twice its density; ρ is one where a spin has no electrons.
    """

    rs: Float[Array, " points"]
    up: Float[Array, " points"] | float
    down: Float[Array, " points"] | float
    s2: Float[Array, " points"]
    tau: Float[Array, " points"]
    rho: Float[Array, " points"]
    sigma: tuple[Float[Array, " points"], Float[Array, " points"], Float[Array, " points"]]
    spins: tuple[ClosedShellDensity, ClosedShellDensity]


@dataclasses.dataclass(frozen=True)
class Functional:
    """Exchange–correlation functional: one record holds everything that qptlab needs to know about it.

    To use a functional of your own, pass a record to `Method(xc=...)`. Potentials and Fock matrices follow by
    automatic differentiation.

    Attributes:
      name: lower-case name, which run folders, tables and the command line use.
      exchange: function of a `ClosedShellDensity` that returns the semilocal exchange energy per volume, hartree
        per cubic bohr. Open shells follow from it by spin scaling. None for no semilocal exchange.
      correlation: function of a `SpinDensity` that returns the correlation energy per electron, hartree. None for no
        correlation.
      family: quantities of the density that the functional reads, one of `FAMILIES`: "hf" none, "lda" ρ, "gga" ρ
        and ∇ρ, "mgga" ρ, ∇ρ and τ.
      exact_exchange: coefficient of exact (Hartree–Fock) exchange, 0 to 1; with range separation, at short range.
      pyscf_name: PySCF's name of the functional, such as "revpbe"; None if PySCF lacks it. References by
        PySCF need it. Nonlocal correlation (VV10) that PySCF adds to it is switched off.
      dispersion_name: name of the functional in simple-dftd3 and dftd4, such as "cam-b3lyp", whose parameters its
        dispersion corrections have; None if that is `pyscf_name`, or if they have none.
      omega: ω of range separation, per bohr: the short-range part of 1/r is erfc(ωr)/r, the long-range part is
        erf(ωr)/r. Zero for no range separation.
      long_range_exchange: coefficient of exact exchange at long range, 0 to 1; None for no range separation. The
        function `exchange` holds what is not exact at either range, see `functionals.short_range`.

    Raises:
      InputError: if a value is not allowed.

    >>> from qptlab.dft.functionals import slater_exchange
    >>> Functional("xalpha", exchange=lambda density: 1.05 * slater_exchange(density), family="lda").nvar
    1
    """

    name: str
    exchange: Callable[[ClosedShellDensity], Float[Array, " points"]] | None = None
    correlation: Callable[[SpinDensity], Float[Array, " points"]] | None = None
    family: str = "gga"
    exact_exchange: float = 0.0
    pyscf_name: str | None = None
    dispersion_name: str | None = None
    omega: float = 0.0
    long_range_exchange: float | None = None

    def __post_init__(self):
        """Check every field."""
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_+-]*", self.name):
            raise InputError(
                f"Expected a functional's name of lower-case letters, digits, '-', '_' or '+', got {self.name!r}; "
                "use a name such as 'my-pbe'."
            )
        if self.family not in FAMILIES:
            raise InputError(
                f"Expected the family of functional {self.name!r} to be one of {', '.join(FAMILIES)}, got "
                f"{self.family!r}; use the one that names what the functional reads of the density."
            )
        if not _is_number(self.exact_exchange, 1.0):
            raise InputError(
                f"Expected the exact exchange of functional {self.name!r} to be 0 to 1, got {self.exact_exchange!r}; "
                "use 0.0 for a functional without exact exchange."
            )
        self._check_range_separation()
        if self.family == "hf" and (self.exchange or self.correlation):
            raise InputError(
                f"Functional {self.name!r} of family 'hf' has an energy density, but reads nothing of the density; "
                "use the family 'lda', 'gga' or 'mgga'."
            )

    def _check_range_separation(self) -> None:
        if not _is_number(self.omega, MAX_OMEGA):
            raise InputError(
                f"Expected ω of functional {self.name!r} to be 0 to {MAX_OMEGA} per bohr, got {self.omega!r}; use "
                "0.0 for a functional without range separation."
            )
        if self.long_range_exchange is not None and not _is_number(self.long_range_exchange, 1.0):
            raise InputError(
                f"Expected the long-range exact exchange of functional {self.name!r} to be 0 to 1, got "
                f"{self.long_range_exchange!r}; use None for a functional without range separation."
            )
        if (self.omega > 0) != (self.long_range_exchange is not None):
            raise InputError(
                f"Expected both ω and the long-range exact exchange of functional {self.name!r}, or neither, got "
                f"omega={self.omega!r} and long_range_exchange={self.long_range_exchange!r}; use 0.0 and None for no "
                "range separation."
            )

    @property
    def is_hybrid(self) -> bool:
        """True if the functional has exact exchange, at any range."""
        return self.exact_exchange > 0 or self.omega > 0

    @property
    def added_at_long_range(self) -> float:
        """Coefficient of exact exchange at long range minus that at short range; 0 without range separation."""
        return 0.0 if self.long_range_exchange is None else self.long_range_exchange - self.exact_exchange

    @property
    def nvar(self) -> int:
        """Number of rows of the density that the functional reads: 0 none, 1 ρ, 4 with ∇ρ, 5 with τ."""
        return FAMILIES[self.family]

    @property
    def nderiv(self) -> int:
        """Number of rows of AO values that the functional reads: 0 none, 1 values, 4 with gradients."""
        return min(self.nvar, 4)

    def require_pyscf_name(self) -> str:
        """Return PySCF's name of the functional.

        Raises:
          InputError: if the record has none.
        """
        if self.pyscf_name is None:
            raise InputError(
                f"PySCF cannot calculate a reference with functional {self.name!r}, which has no pyscf_name; use a "
                "functional whose record has PySCF's name."
            )
        return self.pyscf_name


MAX_OMEGA = 10.0
"""Largest ω of range separation, per bohr; functionals have 0.1 to 1."""


def _is_number(value: object, largest: float) -> bool:
    """Return true for a number of 0 to `largest`."""
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= largest


_REGISTER: dict[str, Functional] = {}
_BUILTIN: set[str] = set()

FUNCTIONALS: Mapping[str, Functional] = types.MappingProxyType(_REGISTER)
"""Read-only register of all functionals: name to record, the built-in ones first."""


def register_functional(functional: Functional) -> Functional:
    """Add a functional of your own to the register, so that its name can be used.

    `Method(xc=functional)` does this by itself. A call is only needed to open a run folder that was trained with the
    functional in another session. A record of yours with the same name is replaced.

    Args:
      functional: the record.

    Returns:
      The record.

    Raises:
      InputError: if a different, built-in functional has the name.
    """
    if functional.name in _BUILTIN and _REGISTER[functional.name] != functional:
        raise InputError(
            f"Functional name {functional.name!r} is the name of a built-in functional; use a different name."
        )
    _REGISTER[functional.name] = functional
    return functional


def register_builtin(functionals: tuple[Functional, ...]) -> None:
    """Add qptlab's own functionals, whose names nobody else can take."""
    for functional in functionals:
        _REGISTER[functional.name] = functional
        _BUILTIN.add(functional.name)


def is_builtin(functional: Functional) -> bool:
    """Return True if a functional is one of qptlab's own, so that its name identifies it."""
    return functional.name in _BUILTIN


ALIASES = types.MappingProxyType({
    "hartree-fock": "hf", "svwn": "lda", "svwn5": "lda", "slater,vwn": "lda", "slater,vwn5": "lda", "lda,vwn5": "lda",
    "spw92": "pw92", "slater,pw": "pw92", "slater,pw92": "pw92", "lda,pw92": "pw92", "b3lyp/g": "b3lyp",
    "pbe1pbe": "pbe0", "pbeh": "pbe0", "r2scan,r2scan": "r2scan", "cam_b3lyp": "cam-b3lyp", "lcblyp": "lc-blyp",
})
"""Other names of the built-in functionals; PySCF's name of a functional is one, too."""

WITHOUT_VV10 = types.MappingProxyType({"wb97x-v": "wb97x-v-nonlc", "wb97m-v": "wb97m-v-nonlc"})
"""Functionals whose nonlocal correlation, VV10, qptlab lacks, and the records of all the rest of them."""


def functional(xc: str | Functional) -> Functional:
    """Return the record of a functional.

    Args:
      xc: name in the register or one of `ALIASES`, in any case; or the record itself.

    Raises:
      InputError: if no functional has the name.

    >>> functional("PBE,PBE").name, functional("svwn").name
    ('pbe', 'lda')
    """
    if isinstance(xc, Functional):
        return xc
    name = _registered_name(xc) if isinstance(xc, str) else None
    if name is None and isinstance(xc, str) and (plain := _plain(xc).replace("_", "-")) in WITHOUT_VV10:
        raise InputError(
            f"Expected a functional without VV10, got {shown(xc)}; use {WITHOUT_VV10[plain]!r}, which is the rest of "
            "it, with dispersion='d4'."
        )
    if name is None:
        raise InputError(
            f"Functional {shown(xc)} is not known; use one of {', '.join(_REGISTER)}, or register a functional of "
            "your own with qptlab.register_functional."
        )
    return _REGISTER[name]


def is_known(xc: str) -> bool:
    """Return True if a functional has the name, see `functional`."""
    return _registered_name(xc) is not None


def _registered_name(xc: str) -> str | None:
    """Return the name in the register; None if there is none."""
    name = _plain(xc)
    if name in _REGISTER:
        return name
    if name.replace("_", "-") in WITHOUT_VV10:  # PySCF adds VV10 under these names
        return None
    known_to_pyscf = (record.name for record in _REGISTER.values() if record.pyscf_name == name)
    return ALIASES.get(name) or next(known_to_pyscf, None)


def _plain(xc: str) -> str:
    return "".join(xc.split()).lower()
