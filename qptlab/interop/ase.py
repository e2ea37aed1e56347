"""A model as a calculator of ASE: dynamics, geometry optimisation, vibrations."""

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from qptlab.errors import InputError
from qptlab.models.predictor import Predictor
from qptlab.molecule import Molecule
from qptlab.properties import dipole_debye
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM, HARTREE_EV


class ModelCalculator(Calculator):
    """Energies, forces and dipole moments of a model, in ASE's units (eV, Å, e·Å).

    Forces are the derivative of the predicted energy, through the network and all: energy is conserved in dynamics,
    however well or badly the model was trained.

    Args:
      model: what predicts, from `ql.load`.
      **others: of ASE's `Calculator`.

    >>> import qptlab as ql
    >>> from ase.optimize import BFGS
    >>> atoms = ql.Molecule.from_name("water").to_ase()
    >>> atoms.calc = ql.ModelCalculator(ql.load("runs/water"))  # doctest: +SKIP
    >>> BFGS(atoms).run(fmax=0.01)  # doctest: +SKIP
    """

    implemented_properties = ["energy", "free_energy", "forces", "dipole"]  # noqa: RUF012  as ASE declares them

    def __init__(self, model: Predictor, **others):
        super().__init__(**others)
        self.model = model

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
            found = self.model(mol)
            energy = float(found.energy)
            self.results["dipole"] = dipole_debye(mol, self.model.method, found.dm) / AU_DEBYE * BOHR_ANGSTROM
        self.results["energy"] = self.results["free_energy"] = energy * HARTREE_EV

    def _molecule(self) -> Molecule:
        atoms = self.atoms
        if atoms is None:
            raise InputError("no atoms were given; an ase.Atoms would do.")
        if np.any(atoms.pbc):
            raise InputError("a periodic system was given to a model of molecules; pbc=False would do.")
        mol = Molecule.from_ase(atoms)
        known = self.model.systems[0].molecule
        if "charge" not in atoms.info and len(self.model.systems) == 1:
            return Molecule(mol.symbols, mol.positions, known.charge)
        return mol
