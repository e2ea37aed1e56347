"""GFN1-xTB and GFN2-xTB through tblite: operators, energies and forces of low cost.

tblite is imported inside functions: it takes half a second, and a system library that some machines lack.
"""

import contextlib
import functools
from typing import Any

import ase
import threadpoolctl

from qptlab.errors import InputError
from qptlab.system.molecule import Molecule

ACCURACY = 0.01
"""Accuracy setting of tblite: energies converge to 1e-8 hartree, so that differences of operators are smooth."""


def one_thread() -> contextlib.AbstractContextManager:
    """Return a context in which tblite uses one thread.

    With several threads, sums are taken in a different order each time, and results differ in the last digits.
    """
    return _thread_controller().limit(limits=1, user_api="openmp")


@functools.cache
def _thread_controller() -> threadpoolctl.ThreadpoolController:
    import tblite.interface  # noqa: F401  the controller only sees libraries that are loaded

    return threadpoolctl.ThreadpoolController()


def gfn1_calculator(mol: Molecule) -> Any:
    """Return tblite's GFN1-xTB calculator of a molecule, which keeps its integrals."""
    from tblite.interface import Calculator

    calculator = Calculator("GFN1-xTB", mol.atomic_numbers, mol.positions, charge=mol.charge)
    for key, value in (("verbosity", 0), ("save-integrals", 1), ("accuracy", ACCURACY)):
        calculator.set(key, value)
    return calculator


def gfn1(mol: Molecule) -> Any:
    """Run GFN1-xTB and return tblite's result, with orbitals and matrices.

    Raises:
      InputError: if the calculation does not converge.
    """
    from tblite.exceptions import TBLiteRuntimeError

    try:
        with one_thread():
            return gfn1_calculator(mol).singlepoint()
    except TBLiteRuntimeError as error:
        raise InputError(f"GFN1-xTB fails for {mol.formula}: {error}; use a different geometry.") from None


def gfn2_atoms(mol: Molecule) -> ase.Atoms:
    """Return the molecule as `ase.Atoms` with tblite's GFN2-xTB calculator."""
    from tblite.ase import TBLite

    atoms = mol.to_ase()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0, charge=mol.charge)
    return atoms
