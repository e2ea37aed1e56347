"""Errors of predictions over a set of geometries, in the units and conventions of the field."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qptlab.tables import table
from qptlab.units import significant

ERROR_COLUMNS = {
    "energy_mae_mev": "energy MAE, meV",
    "energy_max_mev": "energy max, meV",
    "fock_mae_uha": "Fock MAE, µHa",
    "mo_energy_mae_uha": "occ. orbital energies MAE, µHa",
    "mo_cosine": "orbital similarity",
    "forces_mae_mev_angstrom": "forces MAE, meV/Å",
    "dipole_mae_debye": "dipole MAE, debye",
    "charge_mae": "charges MAE, e",
    "gap_mae_ev": "gap MAE, eV",
}
"""Column titles of tables of errors."""

NO_NETWORK, PYSCF_STOPPED = "no network, same iterations", "PySCF, same Fock builds"
LOW_COST = "low-cost method and linear fit"
"""Titles of the baselines in tables."""

RESAMPLES = 1000
"""Number of samples of the bootstrap."""

DIGITS = {"mo_cosine": 6}
"""Significant digits where four are too few: for cosines the distance from 1 counts."""


class ErrorSummary(NamedTuple):
    """Errors over a set of geometries. An error that cannot be measured is None.

    Attributes:
      energy_mae_mev: mean absolute error of the total energy, meV per molecule.
      energy_max_mev: largest absolute error of the total energy, meV per molecule.
      fock_mae_uha: mean absolute error of the elements of the Fock matrix, µHa.
      mo_energy_mae_uha: mean absolute error of occupied orbital energies, µHa.
      mo_cosine: mean absolute cosine between occupied orbitals.
      forces_mae_mev_angstrom: mean absolute error of a component of the forces, meV/Å.
      dipole_mae_debye: mean length of the difference of dipole moments, debye.
      charge_mae: mean absolute error of atomic charges, elementary charges.
      gap_mae_ev: mean absolute error of the HOMO–LUMO gap, eV.
      standard_errors: standard errors of means over the geometries, by the name of the mean and in its unit.
    """

    energy_mae_mev: float | None = None
    energy_max_mev: float | None = None
    fock_mae_uha: float | None = None
    mo_energy_mae_uha: float | None = None
    mo_cosine: float | None = None
    forces_mae_mev_angstrom: float | None = None
    dipole_mae_debye: float | None = None
    charge_mae: float | None = None
    gap_mae_ev: float | None = None
    standard_errors: dict[str, float] | None = None

    def to_dict(self) -> dict:
        """Return the errors that were measured, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def cells(self, names: Iterable[str]) -> list[str]:
        """Return errors as text, without powers of ten, with their standard errors.

        Args:
          names: fields, such as those of `columns`.
        """
        return [self._cell(name) for name in names]

    def _cell(self, name: str) -> str:
        value, bar = self._asdict()[name], (self.standard_errors or {}).get(name)
        if value is None:
            return "–"
        return significant(value, DIGITS.get(name, 4)) + (f" ± {significant(bar, 2)}" if bar else "")


def standard_errors(values: Mapping[str, Float[np.ndarray, " n"]]) -> dict[str, float] | None:
    """Return standard errors of means by the bootstrap (Efron 1979); None for fewer than two geometries.

    Args:
      values: errors of the geometries, by the name of their mean.
    """
    number = min(map(len, values.values()), default=0)
    if number < 2:
        return None
    drawn = np.random.default_rng(0).integers(number, size=(RESAMPLES, number))
    return {name: float(np.std(np.mean(found[drawn], axis=1))) for name, found in values.items()}


def columns(summaries: Iterable[ErrorSummary]) -> dict[str, str]:
    """Return names and titles of the errors that at least one of the summaries has."""
    measured = {name for summary in summaries for name in summary.to_dict()}
    return {name: title for name, title in ERROR_COLUMNS.items() if name in measured}


def error_table(rows: Sequence[tuple[str, ErrorSummary]], form: str = "markdown") -> str:
    """Return errors as a table with a column for each error that at least one of the summaries has.

    Args:
      rows: title and errors of each row.
      form: one of `tables.FORMS`.
    """
    names = columns(summary for _, summary in rows)
    return table(["", *names.values()], [[title, *summary.cells(names)] for title, summary in rows], form)
