"""The level of theory: functional, basis, integration grid, two-electron integrals."""

import dataclasses

from qptlab.errors import InputError

FUNCTIONALS = ("hf", "lda", "pw92", "pbe", "blyp", "b3lyp", "b3lyp5", "pbe0", "r2scan")
"""Names of the functionals: Hartree–Fock; Slater exchange with VWN5 or with PW92 correlation; PBE; BLYP; B3LYP
as in Gaussian and PySCF (with VWN's RPA fit) or as in ORCA (with VWN5); PBE0; r2SCAN."""

GRID_LEVELS = (0, 1, 2, 3, 4, 5)
"""PySCF's grid levels that are offered."""

ERI_FORMS = ("auto", "exact", "fitted")
"""How two-electron integrals may be held; `auto` is exact for small molecules and fitted for the rest."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A Kohn–Sham method.

    Attributes:
      xc: functional, one of `FUNCTIONALS`.
      basis: the name of a basis set that PySCF has for every element of the molecule; whether it
        has is known only with the molecule, so `integrals.template` checks it.
      grid_level: PySCF's grid level, 0 (coarse) to 5; its default is 3.
      eri: how two-electron integrals are held, one of `ERI_FORMS`; `integrals.Template.eri` says what
        `auto` has chosen.
      auxbasis: auxiliary basis of fitted integrals; by default the one PySCF takes for the functional
        and basis.

    Raises:
      InputError: if a value is not one of those offered.

    >>> Method(xc="pbe", basis="sto-3g")
    Method(xc='pbe', basis='sto-3g', grid_level=1, eri='auto', auxbasis=None)
    """

    xc: str = "pbe"
    basis: str = "def2-svp"
    grid_level: int = 1
    eri: str = "auto"
    auxbasis: str | None = None

    def __post_init__(self):
        """Check every field that can be checked without a molecule."""
        for field, allowed in (("xc", FUNCTIONALS), ("grid_level", GRID_LEVELS), ("eri", ERI_FORMS)):
            value = getattr(self, field)
            if value not in allowed:
                names = ", ".join(str(name) for name in allowed)
                raise InputError(f"{field} {value!r} is not known; one of {names} would do.")
        if not isinstance(self.basis, str) or not self.basis.strip():
            raise InputError(f"basis {self.basis!r} is not a name; sto-3g or def2-svp would do.")
        if self.auxbasis is not None and (not isinstance(self.auxbasis, str) or not self.auxbasis.strip()):
            raise InputError(f"auxiliary basis {self.auxbasis!r} is not a name; def2-universal-jkfit would do.")
        if self.auxbasis is not None and self.eri == "exact":
            raise InputError(
                f"auxiliary basis {self.auxbasis!r} was given with exact integrals; eri='fitted' would do."
            )

    @property
    def label(self) -> str:
        """The usual short form, functional/basis.

        >>> Method("pbe", "sto-3g").label
        'PBE/sto-3g'
        """
        return f"{self.xc.upper()}/{self.basis}"
