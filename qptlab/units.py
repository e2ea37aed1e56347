"""Unit conversions, used at the edges only: inside qptlab everything is in atomic units.

The values are those of PySCF (CODATA 2010), so that a geometry in ångström means the same
positions, to the last bit, in both programs.
"""

BOHR_ANGSTROM = 0.52917721092
"""One bohr in ångström."""

HARTREE_EV = 27.21138602
"""One hartree in electronvolt."""

HARTREE_MEV = 1e3 * HARTREE_EV
"""One hartree in millielectronvolt."""

AU_DEBYE = 2.5417464157449032
"""One atomic unit of dipole moment (e·bohr) in debye."""

CHEMICAL_ACCURACY_MEV = 43.364
"""One kcal/mol in millielectronvolt, the field's usual mark of chemical accuracy."""
