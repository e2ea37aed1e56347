"""Tolerances of the tests, about ten times the noise on an x86-64 machine, which the comments give."""

ENERGY_OF_DENSITY = 1e-11  # hartree; 1.3e-12 for ethanol/def2-SVP
FOCK_OF_DENSITY = 1e-11  # hartree; 1.4e-12 for ethanol/def2-SVP: block sizes of PySCF depend on free memory
SCF_ENERGY = 1e-9  # hartree; 1.6e-12, quadratic in the convergence error of PySCF
FORCE = 1e-6  # hartree per bohr; 2.4e-7, linear in the convergence error of the SCF
DIPOLE = 1e-5  # debye; 2e-6, linear in the same error
CHARGE = 1e-6  # electrons; linear in the same error
MO_ENERGY = 2e-6  # hartree; 1.8e-7, linear in the same error
SELF_CONSISTENCY = 1e-5  # electrons; the SCF stops at a commutator of 1e-6 hartree
DERIVATIVE_IDENTITY = 1e-10
ROUNDING = 1e-10
FINITE_DIFFERENCE = 1e-7  # relative
DEGENERATE = 1e-6  # hartree; the built-in geometries have eight decimals
LIBXC = 1e-10  # relative
GRID = 1e-10  # bohr, and cubic bohr
AO_VALUES = 1e-11  # bohr^(-5/2)
LOSS_FINITE_DIFFERENCE = 1e-5  # relative; third derivatives of the loss are large
EQUIVARIANCE = 1e-8  # hartree and electrons: documented for users
