"""Unit conversions for input and output: inside qptlab everything is in atomic units.

The values are those of PySCF (CODATA 2010), so that a geometry in ångström has the same positions, to the last bit,
in both programs.
"""

import numpy as np

BOHR_ANGSTROM = 0.52917721092
"""One bohr in ångström."""

HARTREE_EV = 27.21138602
"""One hartree in electronvolt."""

HARTREE_MEV = 1e3 * HARTREE_EV
"""One hartree in millielectronvolt."""

AU_DEBYE = 2.5417464157449032
"""One atomic unit of dipole moment (e·bohr) in debye."""

CHEMICAL_ACCURACY_MEV = 43.364
"""One kcal/mol in millielectronvolt, the usual limit of chemical accuracy."""


def significant(value: float, digits: int = 3) -> str:
    """Return a number as text with some significant digits, without a power of ten.

    >>> significant(2344.12), significant(0.00017839)
    ('2340', '0.000178')
    """
    return np.format_float_positional(value, digits, fractional=False, trim="-")
