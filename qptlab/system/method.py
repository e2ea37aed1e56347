"""Kohn–Sham method: functional, basis, integration grid and form of the two-electron integrals."""

import dataclasses

from qptlab.errors import InputError, shown
from qptlab.system import basis_sets
from qptlab.system.functional import Functional, functional, is_builtin, register_functional

GRID_LEVELS = (0, 1, 2, 3, 4, 5)
"""Grid levels of PySCF that a method accepts."""

ERI_FORMS = ("auto", "exact", "fitted")
"""Forms of the two-electron integrals. With `auto` they are exact for small molecules and density-fitted else."""


@dataclasses.dataclass(frozen=True)
class Method:
    """Kohn–Sham method: functional, basis, grid and form of the two-electron integrals.

    Attributes:
      xc: functional: a name in `functional.FUNCTIONALS`, or a `Functional` record of your own, which is registered
        under its name. The field holds the name of a built-in functional and the record of any other.
      basis: name of a basis set in PySCF's library, see `basis_sets.is_known`; neither a file's path nor basis-set
        text. `integrals.template` checks that it has every element, because only there the molecule is known.
      grid_level: PySCF's grid level, 0 (coarse) to 5. PySCF's default is 3.
      eri: form of the two-electron integrals, one of `ERI_FORMS`. `integrals.Template.eri` is the form that `auto`
        stands for.
      auxbasis: auxiliary basis of density-fitted integrals: a name as `basis`, or `etb-` and a number for an
        even-tempered one with this ratio of exponents. The default is PySCF's for the functional and basis, but
        even-tempered for elements beyond Kr whose basis has all electrons. In def2-SVP, `etb-1.8` has twice as many
        functions, and a third of the error.

    Raises:
      InputError: if a value is not allowed.

    >>> Method(xc="pbe", basis="sto-3g")
    Method(xc='pbe', basis='sto-3g', grid_level=1, eri='auto', auxbasis=None)
    """

    xc: str | Functional = "pbe"
    basis: str = "def2-svp"
    grid_level: int = 1
    eri: str = "auto"
    auxbasis: str | None = None

    def __post_init__(self):
        """Check every field that can be checked without a molecule."""
        record = register_functional(self.xc) if isinstance(self.xc, Functional) else functional(self.xc)
        # A name may come to mean a different record of the user's; only a built-in name identifies its record.
        object.__setattr__(self, "xc", record.name if is_builtin(record) else record)
        for field, allowed in (("grid_level", GRID_LEVELS), ("eri", ERI_FORMS)):
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

    @property
    def functional(self) -> Functional:
        """Return the record of the functional."""
        return functional(self.xc)

    @property
    def label(self) -> str:
        """Return the usual short form, functional/basis.

        >>> Method("pbe", "sto-3g").label
        'PBE/sto-3g'
        """
        return f"{self.functional.name.upper()}/{self.basis}"

    def to_dict(self) -> dict:
        """Return the fields as JSON can store them, with the functional's name; `Method` takes them back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"xc": self.functional.name}
