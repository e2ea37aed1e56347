"""Models as calculators of ASE, for dynamics, geometry optimisation and vibrations."""

from collections.abc import Callable
from typing import NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.optimize import BFGS

from qptlab.errors import InputError
from qptlab.models import limits
from qptlab.models.contract import Model, Prediction, require
from qptlab.system.molecule import Molecule, stated_charge
from qptlab.units import BOHR_ANGSTROM, HARTREE_EV

CHECKED_EVERY = 20
"""Number of calculations of forces from one estimate of the error to the next; it costs as much as a prediction."""


class ModelCalculator(Calculator):
    """ASE calculator with a model's energies, forces and dipole moments, in ASE's units (eV, Å, e·Å).

    Forces are minus the derivative of the predicted energy: exact for a network that corrects a Fock matrix, partly
    by central differences for an OrbitalGNN on GFN1-xTB. So dynamics with a small time step conserve the predicted
    energy, however large its error is. The estimated error is compared with `ql.error_limits` whenever an energy or a
    dipole moment is requested without forces, at the first forces, and once in `CHECKED_EVERY` later ones.

    Args:
      model: a model of any kind, from `ql.load`.
      **parameters: parameters of ASE's `Calculator`.

    >>> import qptlab as ql
    >>> from ase.optimize import BFGS
    >>> atoms = ql.Molecule.from_name("water").to_ase()
    >>> atoms.calc = ql.ModelCalculator(ql.load("runs/water"))  # doctest: +SKIP
    >>> BFGS(atoms).run(fmax=0.01)  # doctest: +SKIP
    """

    implemented_properties = ["energy", "free_energy", "forces", "dipole"]  # noqa: RUF012  as ASE declares them

    def __init__(self, model: Model, **parameters):
        super().__init__(**parameters)
        self.model = require(model, "energy", "forces", "dipole")
        self._unchecked = 0

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: list[str] | tuple[str, ...] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute the properties that ASE requests, and store them in `results`.

        Raises:
          InputError: if the system is periodic, the model cannot treat the molecule, or the estimated error is above
            the limit.
        """
        super().calculate(atoms, list(properties), system_changes)
        mol = self._molecule()
        if "forces" in properties:
            energy, forces = self.model.energy_and_forces(mol)
            self.results["forces"] = forces * HARTREE_EV / BOHR_ANGSTROM
        is_due = "energy_error" in self.model.provides and self._unchecked % CHECKED_EVERY == 0
        if "dipole" in properties or "forces" not in properties or is_due:
            prediction = _checked(self.model, mol)
            self._unchecked = 0
            energy = float(prediction.energy)
            self.results["dipole"] = prediction.dipole * BOHR_ANGSTROM
        self._unchecked += 1
        self.results["energy"] = self.results["free_energy"] = energy * HARTREE_EV

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """Return what has changed since the last calculation; a change of charge or spin in `info` counts."""
        changes = super().check_state(atoms, tol)
        previous = {} if self.atoms is None else self.atoms.info
        return changes + [key for key in ("charge", "spin") if previous.get(key) != atoms.info.get(key)]

    def _molecule(self) -> Molecule:
        if self.atoms is None:
            raise InputError("Expected atoms to calculate, got none; use calculate(atoms).")
        atoms = self.atoms.copy()
        if stated_charge(atoms) is None:
            atoms.info["charge"] = self.model.charge
        return Molecule.from_ase(atoms)


def _checked(model: Model, mol: Molecule) -> Prediction:
    prediction = model(mol)
    limits.check(prediction, mol.name or mol.formula)
    return prediction


class Relaxed(NamedTuple):
    """Result of a geometry optimisation.

    Attributes:
      molecule: molecule at its last geometry.
      energy: energy at that geometry, hartree.
      fmax: largest force on an atom, eV/Å.
      steps: number of steps of the optimiser.
      converged: true if the largest force is at most the requested one.
      energy_error: estimated error of `energy`, hartree; None if the model has no estimate.
    """

    molecule: Molecule
    energy: float
    fmax: float
    steps: int
    converged: bool
    energy_error: float | None


def relax(
    mol: Molecule, model: Model | BaseCalculator, *, fmax: float = 0.01, steps: int = 200,
    progress: Callable[[int, float], None] = lambda step, force: None,
) -> Relaxed:
    """Optimise a geometry with ASE's BFGS.

    Args:
      mol: molecule at its initial geometry.
      model: a model of any kind, or any calculator of ASE.
      fmax: limit of convergence: the optimisation ends when no atom has a larger force, eV/Å.
      steps: largest number of steps.
      progress: callback `progress(step, force)` with the largest force, eV/Å; an exception ends the optimisation.

    Raises:
      InputError: if the force or the number of steps is not positive, the model cannot treat the molecule, or the
        estimated error is above the limit (`ql.error_limits`).
    """
    if not 0 < fmax < np.inf or steps < 1:
        raise InputError(
            f"Expected a positive, finite force and at least one step, got {fmax:g} eV/Å and {steps} steps; use 0.01 "
            "and 200."
        )
    atoms = mol.to_ase()
    atoms.calc = model if isinstance(model, BaseCalculator) else ModelCalculator(model)
    search, force = BFGS(atoms, logfile=None), np.inf
    for _ in search.irun(fmax=fmax, steps=steps):
        force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        progress(search.nsteps, force)
    energy = atoms.get_potential_energy() / HARTREE_EV
    moved = mol.with_positions(atoms.get_positions() / BOHR_ANGSTROM)
    estimate = None
    if not isinstance(model, BaseCalculator) and "energy_error" in model.provides:
        estimate = float(_checked(model, moved).energy_error)
    return Relaxed(moved, energy, force, search.nsteps, force <= fmax, estimate)
