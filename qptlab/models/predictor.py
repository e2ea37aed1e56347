"""A trained model, ready to use on any pose of its molecules, and with a warning on others."""

import concurrent.futures
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qptlab.dft import grid, integrals
from qptlab.dft.properties import dipole_debye
from qptlab.errors import InputError
from qptlab.models.frame import Pose
from qptlab.models.qpt import QPT, Params, Prediction
from qptlab.models.systems import System, make_system
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE


class Predictor:
    """Calls a model on geometries as they come: any rotation, translation and order of like atoms.

    Args:
      model: the model.
      params: its parameters, or None for the network switched off.
      systems: the molecules it was trained on.

    >>> import qptlab as ql
    >>> predictor = ql.load("runs/water")  # doctest: +SKIP
    >>> predictor(ql.Molecule.from_name("water")).energy  # doctest: +SKIP
    """

    def __init__(self, model: QPT, params: Params | None, systems: Sequence[System]):
        self.model = model
        self.params = params
        self.systems = list(systems)
        self._others: list[System] = []

    @property
    def method(self) -> Method:
        """The level of theory."""
        return self.systems[0].template.method

    @property
    def charge(self) -> int:
        """Of the molecule trained on; 0 where there are several."""
        return self.systems[0].molecule.charge if len(self.systems) == 1 else 0

    def without_network(self) -> "Predictor":
        """The same with the network switched off: plain DFT iteration."""
        return Predictor(self.model, None, self.systems)

    def __call__(self, mol: Molecule) -> Prediction:
        """Predict a geometry; matrices are over the AOs of `mol` as given, in PySCF's order.

        Warns:
          UserWarning: of a molecule that was not among those trained on.

        Raises:
          InputError: if the model was trained on one molecule and this is another, or has orbitals that no
            molecule trained on has.
        """
        system, pose = self.place(mol)
        return turn_back(self.in_frame(system, pose.positions), system, pose)

    def map(self, mols: Sequence[Molecule]) -> Iterator[Prediction]:
        """Predict many geometries in order, as many at once as there are cores; as calling one by one."""
        placed = [self.place(mol) for mol in mols]  # what cannot be predicted is found before any work is done
        for system in {id(system): system for system, _ in placed}.values():
            self.in_frame(system, system.frame.home)  # compiles once, not in each thread

        def one(place):
            return turn_back(self.in_frame(place[0], place[1].positions), *place)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield from pool.map(one, placed)

    def forces(self, mol: Molecule) -> Float[np.ndarray, "natm 3"]:
        """Minus the derivative of the predicted energy with respect to positions, hartree per bohr.

        Through the network, the DFT iterations, the integrals and the molecule's frame: it agrees with finite
        differences of predicted energies whether or not the prediction is self-consistent.

        Raises:
          InputError: as calling the predictor.
        """
        return self.energy_and_forces(mol)[1]

    def energy_and_forces(self, mol: Molecule) -> tuple[float, Float[np.ndarray, "natm 3"]]:
        """The predicted energy, hartree, and `forces`, in one go.

        Raises:
          InputError: as calling the predictor.
        """
        system, pose = self.place(mol)
        energy, slope = energy_and_slope(self.model, system)(pose.positions, self.params)
        return float(energy), -system.frame.pull_back(pose, slope)

    def energy_and_dipole(self, mol: Molecule) -> tuple[float, Float[np.ndarray, " 3"]]:
        """The predicted energy, hartree, and the dipole moment of the predicted density about the origin, e·bohr.

        Raises:
          InputError: as calling the predictor.
        """
        found = self(mol)
        return float(found.energy), dipole_debye(mol, self.method, found.dm) / AU_DEBYE

    def place(self, mol: Molecule) -> tuple[System, Pose]:
        """A molecule's system, and how the geometry lies in its frame; raises and warns as calling the predictor."""
        if len(self.systems) == 1:
            return self.systems[0], self.systems[0].frame.pose_molecule(mol)
        system = self._known(mol)
        if system is None:
            system = self._stranger(mol)
            warnings.warn(
                f"{mol.formula} was not among the {len(self.systems)} molecules that the model was trained on: look "
                "at the prediction's residual before you use it.", stacklevel=3,
            )
        return system, system.frame.pose_molecule(mol)

    def _stranger(self, mol):
        """A system for a molecule that was not trained on, made once."""
        for system in self._others:
            if len(system.molecule.orders(mol)):
                return system
        # Integrals as in training: what `auto` took then need not be what it takes for this molecule.
        method = dataclasses.replace(self.method, eri=self.systems[0].template.eri)
        self._others.append(make_system(mol, method, self.model.kinds).with_guess(self.model.config.guess))
        return self._others[-1]

    def _known(self, mol):
        """The system that was trained on: by its bonds or, where they are stretched, if one alone has its atoms."""
        isomers = [each for each in self.systems if sorted(each.molecule.symbols) == sorted(mol.symbols)]
        bonded = [each for each in isomers if len(each.molecule.orders(mol))]
        if not bonded and len(isomers) == 1 and isomers[0].molecule.symbols == mol.symbols:
            bonded = [each for each in isomers if each.molecule.charge == mol.charge]
        return bonded[0] if bonded else None

    def in_frame(self, system: System, positions: Float[np.ndarray, "natm 3"]) -> Prediction:
        """Predict a geometry (bohr) that already lies in its molecule's frame, and leave it there."""
        sample = system.sample(system.host_integrals(positions))
        found = jax.tree.map(np.asarray, self.model.compiled_predict(self.params, sample))
        nao = system.template.nao  # what fills up a padded molecule comes last and lies highest
        return found._replace(
            fock=found.fock[:nao, :nao], dm=found.dm[:nao, :nao],
            mo_energy=found.mo_energy[:nao], mo_coeff=found.mo_coeff[:nao, :nao],
        )


def as_qpt(model: object) -> Predictor:
    """The model itself, if it predicts densities.

    Raises:
      InputError: if it is of another kind.
    """
    if not isinstance(model, Predictor):
        raise InputError(
            f"a {type(model).__name__} was given where a density is needed, which only a QPT predicts; what ql.load "
            "gives of a run's folder would do."
        )
    return model


@functools.lru_cache(maxsize=8)
def energy_and_slope(
    model: QPT, system: System
) -> Callable[[Float[np.ndarray, "natm 3"], Params | None], tuple[Float[Array, ""], Float[np.ndarray, "natm 3"]]]:
    """Predicted energy (hartree) at positions in the frame (bohr), of parameters, and its slope; compiled once."""
    return system.value_and_slope(lambda sample, params: model.energy(params, sample))


def turn_back(prediction: Prediction, system: System, pose: Pose) -> Prediction:
    """Express a prediction made in the frame over the AOs of the geometry the pose came from."""
    template = integrals.template(system.molecule, system.template.method)
    turn = np.asarray(grid.ao_rotation(jnp.asarray(pose.rotation), template.basis))
    inverse = np.argsort(_given_ao(pose.order, template.ao_atom))

    def matrix(m):
        return (turn.T @ m @ turn)[np.ix_(inverse, inverse)]

    return prediction._replace(
        fock=matrix(prediction.fock),
        dm=matrix(prediction.dm),
        mo_coeff=(turn.T @ prediction.mo_coeff)[inverse],
    )


def _given_ao(order, ao_atom):
    """Where each AO of the frame stands in the given geometry."""
    counts = np.bincount(ao_atom)  # per atom of the frame
    given_counts = np.empty_like(counts)
    given_counts[order] = counts
    starts = np.concatenate([[0], np.cumsum(given_counts)[:-1]])
    return np.concatenate(
        [starts[atom] + np.arange(count) for atom, count in zip(order, counts, strict=True)]
    )
