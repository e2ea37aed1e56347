"""Trained models that correct a Fock matrix. They predict any pose of a molecule, and warn about new molecules."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qptlab.dft import grid, integrals
from qptlab.dft.properties import charges, dipole_debye
from qptlab.errors import InputError
from qptlab.models import files
from qptlab.models.contract import Params, Prediction, config_class
from qptlab.models.correction import CorrectionModel
from qptlab.models.frame import LaboratoryFrame, Pose
from qptlab.models.networks import CorrectionConfig
from qptlab.models.systems import System, make_system, make_systems
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE

PROVIDES = frozenset({
    "energy", "forces", "dipole", "charges", "gap", "fock", "dm", "mo_energy", "mo_coeff", "residual",
    "energy_error", "nocc",
})


class CorrectionPredictor:
    """A trained model that corrects a Fock matrix (see `contract.Model`).

    It predicts geometries in any rotation, translation and order of like atoms.

    Args:
      model: network and DFT iterations.
      params: parameters of the network; None switches it off.
      systems: molecules that the model was trained on.

    >>> import qptlab as ql
    >>> predictor = ql.load("runs/water")  # doctest: +SKIP
    >>> predictor(ql.Molecule.from_name("water")).energy  # doctest: +SKIP
    """

    provides = PROVIDES

    def __init__(self, model: CorrectionModel, params: Params | None, systems: Sequence[System]):
        self.model = model
        self.params = params
        self.systems = list(systems)
        self._isomers: dict[tuple[str, ...], list[System]] = {}
        self._untrained_isomers: dict[tuple[str, ...], list[System]] = {}
        for system in self.systems:
            self._isomers.setdefault(_elements(system.molecule), []).append(system)

    @classmethod
    def rebuild(cls, description: dict, arrays: dict | None) -> "CorrectionPredictor":
        """Return the model of a `description` and `arrays`; without arrays, its network is switched off.

        Raises:
          InputError: if the description names an unregistered kind, or holds settings that cannot be used.
        """
        config = config_class(description["kind"])(**description["model"])
        mols = [files.molecule_from(record) for record in description["molecules"]]
        # It may know more elements than those of its molecules.
        systems, kinds = make_systems(mols, Method(**description["method"]), config, description.get("kinds", ()))
        model = CorrectionModel(config, kinds)
        if arrays and not files.same_shapes(arrays, model.init):
            raise InputError("Expected arrays of the network in the model file, got different shapes; restore it.")
        return cls(model, arrays or None, systems)

    def __reduce__(self) -> tuple:
        """Return how a copy is made in another process: compiled functions stay here."""
        return CorrectionPredictor.rebuild, (self.description(), jax.tree.map(np.asarray, self.arrays()))

    def description(self) -> dict:
        """Return the settings that rebuild the model together with `arrays`; JSON types only."""
        return {
            "kind": self.kind,
            "molecules": [files.molecule_record(system.molecule) for system in self.systems],
            "method": self.method.to_dict(),
            "model": dataclasses.asdict(self.config),
            "kinds": list(self.model.kinds),
        }

    def arrays(self) -> dict:
        """Return the parameters of the network."""
        return dict(self.params or {})

    def save(self, path: str | pathlib.Path) -> None:
        """Write the model to one HDF5 file, which `ql.load` reads."""
        files.write(path, self.description(), self.arrays())

    @property
    def kind(self) -> str:
        """Name under which the network is registered."""
        return self.model.kind

    @property
    def config(self) -> CorrectionConfig:
        """Settings of the network and of the DFT iterations."""
        return self.model.config

    @property
    def method(self) -> Method:
        """Level of theory."""
        return self.systems[0].method

    @property
    def label(self) -> str:
        """Level of theory in its usual short form, such as "PBE/sto-3g"."""
        return self.method.label

    @property
    def charge(self) -> int:
        """Charge of the molecule that the model was trained on; 0 for several molecules."""
        return self.systems[0].molecule.charge if len(self.systems) == 1 else 0

    def with_iterations(self, iterations: int) -> "CorrectionPredictor":
        """Return the same model with a different number of DFT iterations after the network."""
        return CorrectionPredictor(self.model.with_iterations(iterations), self.params, self.systems)

    def without_network(self) -> "CorrectionPredictor":
        """Return the same model with its network switched off: plain DFT iteration."""
        return CorrectionPredictor(self.model, None, self.systems)

    def __call__(self, mol: Molecule) -> Prediction:
        """Predict a geometry. Matrices are over the atomic orbitals of `mol`, in PySCF's order.

        Warns:
          UserWarning: if the model was not trained on this molecule.

        Raises:
          InputError: if the molecule has atomic orbitals that no molecule of the training set has; or if this is a
            different molecule and the network, which needs a frame, was trained on one molecule only.
        """
        return self._predict(mol, *self.locate(mol))

    def density(self, mol: Molecule) -> Float[np.ndarray, "nao nao"]:
        """Return the predicted density matrix of a geometry, at the cost of one Fock matrix less than a prediction.

        Warns:
          UserWarning: if the model was not trained on this molecule.

        Raises:
          InputError: if the model cannot predict the molecule (see `locate`).
        """
        system, pose = self.locate(mol)
        sample = system.sample(system.host_integrals(pose.positions, threads=None))
        nao = system.template.nao
        dm = np.asarray(self.model.compiled_density(self.params, sample))[:nao, :nao]
        rotation, order = _to_input(system, pose)
        return (rotation.T @ dm @ rotation)[np.ix_(order, order)]

    def map(self, mols: Sequence[Molecule]) -> Iterator[Prediction]:
        """Predict several geometries, in order and in parallel.

        Molecules that the model was not trained on share a few sizes, for which functions are compiled.

        Raises:
          InputError: if the model cannot predict one of the molecules (see `locate`), before any is predicted.
        """
        self._prepare_together(mols)
        located = [(mol, *self.locate(mol)) for mol in mols]
        for system in {system.sizes: system for _, system, _ in located}.values():
            self.in_frame(system, system.frame.reference_positions)  # compiles once, not in each thread
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield from pool.map(lambda arguments: self._predict(*arguments, threads=1), located)

    def forces(self, mol: Molecule) -> Float[np.ndarray, "natm 3"]:
        """Return minus the derivative of the predicted energy with respect to positions, hartree per bohr.

        The network, the DFT iterations, the integrals and the molecule's frame are all differentiated. Therefore the
        forces agree with finite differences of predicted energies, even if the density is not self-consistent. In the
        scheme "response" orbitals are fixed instead (see `CorrectionModel.energy_of_fixed_orbitals`): the forces are
        those of self-consistency, up to an error of first order in the residual.

        Raises:
          InputError: if the model cannot predict the molecule (see `locate`), or if its guess has no derivative.
        """
        return self.energy_and_forces(mol)[1]

    def energy_and_forces(self, mol: Molecule) -> tuple[float, Float[np.ndarray, "natm 3"]]:
        """Return the predicted energy, hartree, and the forces, hartree per bohr.

        Raises:
          InputError: if the model cannot predict the molecule (see `locate`), or if its guess has no derivative.
        """
        system, pose = self.locate(mol)
        energy, gradient = energy_and_gradient(self.model, system)(pose.positions, self.params)
        return float(energy), -system.frame.pull_back(pose, gradient)

    def locate(self, mol: Molecule) -> tuple[System, Pose]:
        """Return the system of a molecule and the pose of its geometry in the frame.

        Warns:
          UserWarning: if the model was not trained on this molecule.

        Raises:
          InputError: if the molecule has atomic orbitals that no molecule of the training set has; or if this is a
            different molecule and the network, which needs a frame, was trained on one molecule only.
        """
        if isinstance(self.systems[0].frame, LaboratoryFrame):
            system = self._as_given(mol)
            return system, system.frame.pose_molecule(mol)
        if len(self.systems) == 1:
            return self.systems[0], self.systems[0].frame.pose_molecule(mol)
        system = self._trained_system(mol)
        if system is None:
            system = self._untrained_system(mol)
            self._warn_of(mol, stacklevel=4)
        return system, system.frame.pose_molecule(mol)

    def was_trained_on(self, mol: Molecule) -> bool:
        """Return True if the model was trained on this molecule, in any geometry and order of its atoms."""
        if not isinstance(self.systems[0].frame, LaboratoryFrame):
            return self._trained_system(mol) is not None
        # Bonds of a trained molecule may break. New bonds make an isomer or a product of a reaction.
        return any(
            (_is_frame_of(system, mol) and mol.bonds <= system.molecule.bonds) or len(system.molecule.orders(mol))
            for system in self._isomers.get(_elements(mol), [])
        )

    def _as_given(self, mol: Molecule) -> System:
        """Return the system with the molecule's atoms in their order; warn if the model was not trained on it."""
        system = self._with_these_atoms(mol)
        if system is None:
            system = self._prepared(mol)  # refuses unknown elements before there is a warning
        if not self.was_trained_on(mol):
            self._warn_of(mol, stacklevel=5)
        return system

    def _warn_of(self, mol: Molecule, stacklevel: int) -> None:
        count = len(self.systems)
        others = f"among the {count} molecules" if count > 1 else "the molecule"
        warnings.warn(
            f"{mol.formula} is not {others} that the model was trained on: check the estimated error "
            "(`energy_error`) of the prediction before you use it.", stacklevel=stacklevel,
        )

    def _predict(self, mol: Molecule, system: System, pose: Pose, threads: int | None = None) -> Prediction:
        prediction = to_input_frame(self.in_frame(system, pose.positions, threads), system, pose)
        method = system.method
        return prediction._replace(
            dipole=dipole_debye(mol, method, prediction.dm) / AU_DEBYE,
            charges=charges(mol, method, prediction.dm, "lowdin"),
        )

    def _untrained_system(self, mol: Molecule) -> System:
        """Return the system of a molecule that the model was not trained on; it is built once."""
        for system in self._untrained_isomers.get(_elements(mol), []):
            if len(system.molecule.orders(mol)):
                return system
        return self._prepared(mol)

    def _with_these_atoms(self, mol: Molecule) -> System | None:
        """Return the system without a frame that has the molecule's atoms in their order; None if there is none."""
        isomers = [group.get(_elements(mol), []) for group in (self._isomers, self._untrained_isomers)]
        return next((system for group in isomers for system in group if _is_frame_of(system, mol)), None)

    def _prepared(self, mol: Molecule) -> System:
        system = self._new_system(mol)
        self._keep(system)
        return system

    def _keep(self, system: System) -> None:
        self._untrained_isomers.setdefault(_elements(system.molecule), []).append(system)

    def _new_system(self, mol: Molecule) -> System:
        paddings = {system.padding for system in self.systems if system.padding is not None}
        return make_system(mol, self._method_of_new_systems, self.model.kinds, self.config, paddings)

    @property
    def _method_of_new_systems(self) -> Method:
        # Integrals of the same form as in training: for a new molecule `auto` might choose the other form.
        return dataclasses.replace(self.method, eri=self.systems[0].template.eri)

    def _prepare_together(self, mols: Sequence[Molecule]) -> None:
        """Pad molecules that fit into no size of the training to sizes that they share."""
        if not isinstance(self.systems[0].frame, LaboratoryFrame):
            return
        distinct = {(mol.symbols, mol.charge): mol for mol in mols}
        new = [self._new_system(mol) for mol in distinct.values() if self._with_these_atoms(mol) is None]
        alone = [system.molecule for system in new if system.padding is None]
        if len(alone) > 1:
            shared, _ = make_systems(alone, self._method_of_new_systems, self.config, self.model.kinds)
            new = [*(system for system in new if system.padding is not None), *shared]
        for system in new:
            self._keep(system)

    def _trained_system(self, mol: Molecule) -> System | None:
        """Return the system with the molecule's bonds or, if bonds are stretched, the only one with its atoms."""
        isomers = self._isomers.get(_elements(mol), [])
        bonded = [system for system in isomers if len(system.molecule.orders(mol))]
        if not bonded and len(isomers) == 1 and isomers[0].molecule.symbols == mol.symbols:
            bonded = [system for system in isomers if system.molecule.charge == mol.charge]
        return bonded[0] if bonded else None

    def in_frame(
        self, system: System, positions: Float[np.ndarray, "natm 3"], threads: int | None = None
    ) -> Prediction:
        """Predict a geometry from positions in the molecule's frame, bohr; without dipole moment and charges.

        Args:
          system: the molecule.
          positions: positions in its frame, bohr.
          threads: number of OpenMP threads for the integrals; None for PySCF's setting.
        """
        sample = system.sample(system.host_integrals(positions, threads))
        padded = jax.tree.map(np.asarray, self.model.compiled_predict(self.params, sample))
        nao, nocc = system.template.nao, int(padded.nocc)  # orbitals of padding come last, with the highest energies
        levels = padded.mo_energy[:nao]
        return padded._replace(
            fock=padded.fock[:nao, :nao], dm=padded.dm[:nao, :nao], mo_energy=levels,
            mo_coeff=padded.mo_coeff[:nao, :nao],
            gap=np.asarray(levels[nocc] - levels[nocc - 1] if nocc < nao else np.nan),
        )


def _is_frame_of(system: System, mol: Molecule) -> bool:
    """Return True if a system without a frame of its own has the atoms of a molecule in their order."""
    return isinstance(system.frame, LaboratoryFrame) and system.frame.is_frame_of(mol)


def _elements(mol: Molecule) -> tuple[str, ...]:
    """Return the elements of a molecule's atoms, which all of its isomers have."""
    return tuple(sorted(mol.symbols))


@functools.lru_cache(maxsize=8)
def energy_and_gradient(
    model: CorrectionModel, system: System
) -> Callable[[Float[np.ndarray, "natm 3"], Params | None], tuple[Float[Array, ""], Float[np.ndarray, "natm 3"]]]:
    """Return the function from positions in the frame (bohr) and parameters to the energy (hartree) and its gradient.

    The function is compiled once for each model and system.
    """
    energy = model.energy_of_fixed_orbitals if model.config.scheme == "response" else model.energy
    return system.value_and_gradient(lambda sample, params: energy(params, sample))


def to_input_frame(prediction: Prediction, system: System, pose: Pose) -> Prediction:
    """Transform matrices of a prediction from the molecule's frame to the atomic orbitals of the input geometry."""
    rotation, order = _to_input(system, pose)

    def transform(matrix):
        return (rotation.T @ matrix @ rotation)[np.ix_(order, order)]

    return prediction._replace(
        fock=transform(prediction.fock),
        dm=transform(prediction.dm),
        mo_coeff=(rotation.T @ prediction.mo_coeff)[order],
    )


def _to_input(system: System, pose: Pose) -> tuple[Float[np.ndarray, "nao nao"], Int[np.ndarray, " nao"]]:
    """Return the matrix that rotates atomic orbitals into the frame, and where each AO of the input is there."""
    template = integrals.template(system.molecule, system.method)
    rotation = np.asarray(grid.ao_rotation(jnp.asarray(pose.rotation), template.basis))
    return rotation, np.argsort(_ao_order(pose.order, template.ao_atom))


def _ao_order(atom_order: Int[np.ndarray, " natm"], ao_atom: Int[np.ndarray, " nao"]) -> Int[np.ndarray, " nao"]:
    """Return the index in the input of each atomic orbital of the frame."""
    counts = np.bincount(ao_atom)  # per atom of the frame
    input_counts = np.empty_like(counts)
    input_counts[atom_order] = counts
    starts = np.concatenate([[0], np.cumsum(input_counts)[:-1]])
    return np.concatenate(
        [starts[atom] + np.arange(count) for atom, count in zip(atom_order, counts, strict=True)]
    )
