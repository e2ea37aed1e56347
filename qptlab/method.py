"""The level of theory: functional, basis, integration grid, two-electron integrals."""

import dataclasses

from qptlab.errors import InputError

FUNCTIONALS = ("lda", "pbe")
"""Names of the functionals: Slater exchange with VWN5 correlation, and PBE."""

GRID_LEVELS = (0, 1, 2, 3)
"""PySCF's grid levels that are offered."""

ERI_FORMS = ("auto", "exact")
"""How two-electron integrals may be held; `auto` chooses, and there is one form to choose so far."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A Kohn–Sham method.

    Attributes:
      xc: functional, one of `FUNCTIONALS`.
      basis: the name of a basis set that PySCF has for every element of the molecule; whether it
        has is known only with the molecule, so `integrals.template` checks it.
      grid_level: PySCF's grid level, 0 (coarse) to 3 (PySCF's default).
      eri: how two-electron integrals are held, one of `ERI_FORMS`.

    Raises:
      InputError: if a value is not one of those offered.

    >>> Method(xc="pbe", basis="sto-3g")
    Method(xc='pbe', basis='sto-3g', grid_level=1, eri='auto')
    """

    xc: str = "pbe"
    basis: str = "def2-svp"
    grid_level: int = 1
    eri: str = "auto"

    def __post_init__(self):
        """Check every field that can be checked without a molecule."""
        for field, allowed in (("xc", FUNCTIONALS), ("grid_level", GRID_LEVELS), ("eri", ERI_FORMS)):
            value = getattr(self, field)
            if value not in allowed:
                names = ", ".join(str(name) for name in allowed)
                raise InputError(f"{field} {value!r} is not known; one of {names} would do.")
        if not isinstance(self.basis, str) or not self.basis.strip():
            raise InputError(f"basis {self.basis!r} is not a name; sto-3g or def2-svp would do.")

    @property
    def label(self) -> str:
        """The usual short form, functional/basis.

        >>> Method("pbe", "sto-3g").label
        'PBE/sto-3g'
        """
        return f"{self.xc.upper()}/{self.basis}"
