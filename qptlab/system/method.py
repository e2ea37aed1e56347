"""Kohn–Sham method: functional, basis, integration grid, two-electron integrals and dispersion correction."""

import dataclasses

from qptlab.errors import InputError, shown
from qptlab.system import basis_sets, dispersion
from qptlab.system.dispersion import CORRECTIONS, Correction
from qptlab.system.functional import Functional, functional, is_builtin, register_functional

GRID_LEVELS = (0, 1, 2, 3, 4, 5)
"""Grid levels of PySCF that a method accepts."""

ERI_FORMS = ("auto", "exact", "fitted")
"""Forms of the two-electron integrals. With `auto` they are exact for small molecules and density-fitted else."""


@dataclasses.dataclass(frozen=True)
class Method:
    """Kohn–Sham method: functional, basis, grid, form of the two-electron integrals and dispersion correction.

    Attributes:
      xc: functional: a name in `functional.FUNCTIONALS`, or a `Functional` record of your own, which is registered
        under its name. The field holds the name of a built-in functional and the record of any other. A name with a
        dispersion correction, such as "pbe-d3bj", sets `dispersion` as well.
      basis: name of a basis set in PySCF's library, see `basis_sets.is_known`; neither a file's path nor basis-set
        text. `integrals.template` checks that it has every element, because only there the molecule is known.
      grid_level: PySCF's grid level, 0 (coarse) to 5. The default is PySCF's.
      eri: form of the two-electron integrals, one of `ERI_FORMS`. `integrals.Template.eri` is the form that `auto`
        stands for.
      auxbasis: auxiliary basis of density-fitted integrals: a name as `basis`, or `etb-` and a number for an
        even-tempered one with this ratio of exponents. The default is PySCF's for the functional and basis, but
        even-tempered for elements beyond Kr whose basis has all electrons. In def2-SVP, `etb-1.8` has twice as many
        functions, and a third of the error.
      dispersion: dispersion correction, one of `CORRECTIONS`; None for none. `system.dispersion` has its terms.

    Raises:
      InputError: if a value is not allowed.

    >>> Method(xc="pbe", basis="sto-3g")
    Method(xc='pbe', basis='sto-3g', grid_level=3, eri='auto', auxbasis=None, dispersion=None)
    """

    xc: str | Functional = "pbe"
    basis: str = "def2-svp"
    grid_level: int = 3
    eri: str = "auto"
    auxbasis: str | None = None
    dispersion: str | None = None

    def __post_init__(self):
        """Check every field that can be checked without a molecule."""
        record = register_functional(self.xc) if isinstance(self.xc, Functional) else self._named_functional(self.xc)
        # A name may come to mean a different record of the user's; only a built-in name identifies its record.
        object.__setattr__(self, "xc", record.name if is_builtin(record) else record)
        fields = (("grid_level", GRID_LEVELS), ("eri", ERI_FORMS), ("dispersion", (None, *CORRECTIONS)))
        for field, allowed in fields:
            value = getattr(self, field)
            if value not in allowed:
                names = ", ".join(str(name) for name in allowed)
                raise InputError(f"Expected a known {field}, got {field} {shown(value)}; use one of {names}.")
        # This comes before any parser of PySCF's, which would evaluate expressions in text that is not a name.
        basis_sets.check(self.basis, "basis")
        if self.auxbasis is not None and basis_sets.even_tempered_ratio(self.auxbasis) is None:
            basis_sets.check(self.auxbasis, "auxiliary basis")
        if self.auxbasis is not None and self.eri == "exact":
            raise InputError(
                f"Expected no auxiliary basis with exact integrals, got {self.auxbasis!r}; use eri='fitted' with an "
                "auxiliary basis."
            )
        if self.dispersion is not None:
            dispersion.correction(record, self.dispersion)

    def _named_functional(self, xc: str) -> Functional:
        """Return the functional of a name; if the name has a dispersion correction as well, it becomes the field."""
        name, kind = dispersion.split(xc)
        if kind is None:
            return functional(name)
        if self.dispersion not in (None, kind):
            raise InputError(
                f"Expected one dispersion correction, got functional {shown(xc)} with dispersion "
                f"{shown(self.dispersion)}; use xc={shown(name)} with one of {', '.join(CORRECTIONS)}."
            )
        object.__setattr__(self, "dispersion", kind)
        return functional(name)

    @property
    def functional(self) -> Functional:
        """Return the record of the functional."""
        return functional(self.xc)

    @property
    def correction(self) -> Correction | None:
        """Return the dispersion correction with the parameters of the functional; None without one."""
        return None if self.dispersion is None else dispersion.correction(self.functional, self.dispersion)

    @property
    def label(self) -> str:
        """Return the usual short form, functional/basis, with the dispersion correction after the functional.

        >>> Method("pbe", "sto-3g").label, Method("pbe", "sto-3g", dispersion="d3bj").label
        ('PBE/sto-3g', 'PBE-D3(BJ)/sto-3g')
        """
        suffix = "" if self.dispersion is None else f"-{CORRECTIONS[self.dispersion]}"
        return f"{self.functional.name.upper()}{suffix}/{self.basis}"

    def to_dict(self) -> dict:
        """Return the fields as JSON can store them, with the functional's name; `Method` takes them back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"xc": self.functional.name}
