"""A model as a calculator of ASE: dynamics, geometry optimisation, vibrations."""

from collections.abc import Callable
from typing import NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import BFGS

from qptlab.errors import InputError
from qptlab.models.contract import Model, require
from qptlab.system.molecule import Molecule
from qptlab.units import BOHR_ANGSTROM, HARTREE_EV


class ModelCalculator(Calculator):
    """Energies, forces and dipole moments of a model, in ASE's units (eV, Å, e·Å).

    Forces are the derivative of the predicted energy, through the network and all: energy is conserved in dynamics,
    however well or badly the model was trained.

    Args:
      model: a QPT or an OrbitalGNN, from `ql.load`.
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

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: list[str] | tuple[str, ...] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill in `results`, as ASE asks for.

        Raises:
          InputError: for a periodic system, or as calling the model.
        """
        super().calculate(atoms, list(properties), system_changes)
        mol = self._molecule()
        if "forces" in properties:
            energy, forces = self.model.energy_and_forces(mol)
            self.results["forces"] = forces * HARTREE_EV / BOHR_ANGSTROM
        if "dipole" in properties or "forces" not in properties:
            prediction = self.model(mol)
            energy = float(prediction.energy)
            self.results["dipole"] = prediction.dipole * BOHR_ANGSTROM
        self.results["energy"] = self.results["free_energy"] = energy * HARTREE_EV

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation: what ASE looks at, and charge and spin in `info`."""
        changes = super().check_state(atoms, tol)
        before = {} if self.atoms is None else self.atoms.info
        return changes + [key for key in ("charge", "spin") if before.get(key) != atoms.info.get(key)]

    def _molecule(self) -> Molecule:
        if self.atoms is None:
            raise InputError("no atoms were given; an ase.Atoms would do.")
        if np.any(self.atoms.pbc):
            raise InputError("a periodic system was given to a model of molecules; pbc=False would do.")
        atoms = self.atoms.copy()
        atoms.info.setdefault("charge", self.model.charge)
        return Molecule.from_ase(atoms)


class Relaxed(NamedTuple):
    """The end of a geometry optimisation.

    Attributes:
      molecule: at its last geometry.
      energy: hartree.
      fmax: largest force on an atom, eV/Å.
      steps: of the optimiser.
      converged: whether the force is as small as was asked for.
    """

    molecule: Molecule
    energy: float
    fmax: float
    steps: int
    converged: bool


def relax(
    mol: Molecule, model: Model | Calculator, *, fmax: float = 0.01, steps: int = 200,
    progress: Callable[[int, float], None] = lambda step, force: None,
) -> Relaxed:
    """Move a molecule's atoms to a minimum of the energy, with ASE's BFGS.

    Args:
      mol: where to begin.
      model: a QPT, an OrbitalGNN, or any calculator of ASE's.
      fmax: largest force on an atom to end with, eV/Å.
      steps: at most.
      progress: told the step and the largest force; what it raises ends the search.

    Raises:
      InputError: for a force or number of steps that is not positive, or as calling the model.
    """
    if not 0 < fmax < np.inf or steps < 1:
        raise InputError(f"a force of {fmax:g} eV/Å and {steps} steps cannot be used; 0.01 and 200 would do.")
    atoms = mol.to_ase()
    atoms.calc = model if isinstance(model, Calculator) else ModelCalculator(model)
    search, force = BFGS(atoms, logfile=None), np.inf
    for _ in search.irun(fmax=fmax, steps=steps):
        force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        progress(search.nsteps, force)
    energy = atoms.get_potential_energy() / HARTREE_EV
    moved = mol.with_positions(atoms.get_positions() / BOHR_ANGSTROM)
    return Relaxed(moved, energy, force, search.nsteps, force <= fmax)
