"""GFN1-xTB and GFN2-xTB through tblite: operators, energies and forces of low cost.

tblite is imported inside functions: it takes half a second, and a system library that some machines lack.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import ase
import threadpoolctl

from qptlab.errors import InputError
from qptlab.units import BOHR_ANGSTROM

ACCURACY = 0.01
"""Accuracy setting of tblite: energies converge to 1e-8 hartree, so that differences of operators are smooth."""

MAX_CYCLES = 60
"""Largest number of SCF cycles of a geometry that is relaxed; molecules need up to 30, and 250 would take minutes."""


def one_thread() -> contextlib.AbstractContextManager:
    """Return a context in which tblite uses one thread.

    With several threads, sums are taken in a different order each time, and results differ in the last digits.
    """
    return _thread_controller().limit(limits=1, user_api="openmp")


@functools.cache
def _thread_controller() -> threadpoolctl.ThreadpoolController:
    import tblite.interface  # noqa: F401  the controller only sees libraries that are loaded

    return threadpoolctl.ThreadpoolController()


def gfn1_calculator(atoms: ase.Atoms) -> Any:
    """Return tblite's GFN1-xTB calculator of a molecule, which keeps its integrals.

    Args:
      atoms: molecule with its charge in `info`.
    """
    from tblite.interface import Calculator

    positions = atoms.get_positions() / BOHR_ANGSTROM
    calculator = Calculator("GFN1-xTB", atoms.numbers, positions, charge=atoms.info["charge"])
    for key, value in (("verbosity", 0), ("save-integrals", 1), ("accuracy", ACCURACY)):
        calculator.set(key, value)
    return calculator


def gfn1(atoms: ase.Atoms) -> Any:
    """Run GFN1-xTB and return tblite's result, with orbitals and matrices.

    Args:
      atoms: molecule with its charge in `info`.

    Raises:
      InputError: if the calculation does not converge.
    """
    from tblite.exceptions import TBLiteRuntimeError

    try:
        with one_thread():
            return gfn1_calculator(atoms).singlepoint()
    except TBLiteRuntimeError as error:
        formula = atoms.get_chemical_formula()
        raise InputError(f"GFN1-xTB fails for {formula}: {error}; use a different geometry.") from None


def gfn2_atoms(atoms: ase.Atoms, **settings: Any) -> ase.Atoms:
    """Return a copy of a molecule with tblite's GFN2-xTB calculator.

    Args:
      atoms: molecule with its charge, and its number of unpaired electrons as `spin`, in `info`.
      **settings: further settings of tblite's calculator.
    """
    from tblite.ase import TBLite

    copy = atoms.copy()
    copy.calc = TBLite(
        method="GFN2-xTB", verbosity=0, charge=atoms.info["charge"], multiplicity=atoms.info["spin"] + 1, **settings
    )
    return copy


def relaxed(
    atoms: ase.Atoms, fmax: float, steps: int, seconds: float = math.inf, report: Callable[[], None] = lambda: None
) -> ase.Atoms:
    """Return a molecule at a minimum of GFN2-xTB, with its calculator.

    Args:
      atoms: molecule as for `gfn2_atoms`.
      fmax: largest force on an atom at the end, eV/Å.
      steps: largest number of steps; the last geometry is returned if they do not suffice.
      seconds: longest time, s.
      report: callback, called before each step; an exception ends the work.

    Raises:
      InputError: if a calculation does not converge.
      TimeoutError: if the relaxation takes longer.
    """
    from ase.calculators.calculator import CalculationFailed
    from ase.calculators.calculator import InputError as NotDescribed
    from ase.optimize import BFGS

    found, end = gfn2_atoms(atoms, max_iterations=MAX_CYCLES), time.monotonic() + seconds
    report()
    try:
        with one_thread():
            for _ in BFGS(found, logfile=None).irun(fmax=fmax, steps=steps):
                report()
                if time.monotonic() > end:
                    raise TimeoutError
    except (CalculationFailed, NotDescribed) as error:
        formula = atoms.get_chemical_formula()
        raise InputError(f"GFN2-xTB fails for {formula}: {error}; use a different geometry.") from None
    return found
