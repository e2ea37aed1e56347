"""The sampler `model`: the Boltzmann distribution of the model's own energy."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import ase.data
import ase.units
import numpy as np
from jaxtyping import Float

from qptlab.models.contract import Params
from qptlab.models.correction import CorrectionModel
from qptlab.models.predictor import energy_and_gradient
from qptlab.models.systems import System
from qptlab.random_streams import Purpose, generator
from qptlab.sampling import dynamics
from qptlab.sampling.dynamics import MolecularDynamics
from qptlab.sampling.positions import keeps_bonds
from qptlab.sampling.register import Sampler, register_sampler, sample
from qptlab.system.molecule import Molecule

STEPS = 5
"""Steps of a `Walk` from one geometry to the next."""

ACCEPTANCE = 0.57
"""Share of accepted steps at which a walk is most effective (Roberts & Rosenthal 1998, doi:10.1111/1467-9868.00123).
"""

BOLTZMANN_HARTREE = ase.units.kB / ase.units.Hartree
"""Boltzmann's constant, hartree per kelvin."""

ELECTRON_MASSES = ase.units._amu / ase.units._me
"""Atomic mass unit in electron masses."""


@register_sampler("model")
@dataclasses.dataclass(frozen=True)
class ModelWalk(Sampler):
    """The Boltzmann distribution of the model's own energy, by a walk that starts from `md`.

    Without a model, as in validation, geometries are those of `md`.

    Attributes:
      temperature: temperature, kelvin.
    """

    temperature: float = 500.0
    chains: ClassVar[int] = dynamics.CHAINS

    def __post_init__(self):
        """Check the parameter."""
        self.check_number("temperature", 5000.0, "K", 500.0)

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Yield frames of dynamics with GFN2-xTB, bohr."""
        return MolecularDynamics(self.temperature).draw(mol, rng)

    def source(
        self, system: System, model: CorrectionModel | None, seed: Sequence[int], start: int
    ) -> Callable[[Params | None], Float[np.ndarray, "natm 3"]]:
        """Return `Walk.move` of a new walk: a resumed training does not continue the walks of the earlier one."""
        if model is None:
            return super().source(system, model, seed, start)
        return Walk(model, system, self.temperature, seed).move

    def check(self, systems: Sequence[System]) -> None:
        """Check that the energy of each molecule has a derivative.

        Raises:
          InputError: if the model's guess has none.
        """
        for system in systems:
            system.check_differentiable()


class Walk:
    """A walk in the Boltzmann distribution of a model's energy: Metropolis-adjusted Langevin steps.

    The model draws the geometries that it learns from (Hassan et al. 2025, arXiv:2506.01225). The walk improves
    together with the parameters. Proposals are x' = x − ½ε²·g/m + ε·ξ·√(kT/m) with the slope g (Roberts & Tweedie
    1996, doi:10.2307/3318418). The step length ε is adjusted to the share of accepted steps.

    Args:
      model: model that predicts energies.
      system: the molecule.
      temperature: temperature, kelvin.
      seed: seed of the first geometry, a frame of dynamics, and of the steps.
    """

    def __init__(self, model: CorrectionModel, system: System, temperature: float, seed: Sequence[int]):
        self._energy_and_gradient = energy_and_gradient(model, system)
        self._system = system
        self._rng = generator(Purpose.WALK, seed)
        dynamics = MolecularDynamics(temperature)
        self._dynamics = sample(system.molecule, dynamics, seed, purpose=Purpose.TRAINING_GEOMETRIES)
        self._thermal = BOLTZMANN_HARTREE * temperature
        masses = ase.data.atomic_masses[system.molecule.atomic_numbers] * ELECTRON_MASSES
        self._masses = masses[:, None]
        self._epsilon = 10.0
        self._positions: np.ndarray | None = None

    def move(self, params: Params | None) -> Float[np.ndarray, "natm 3"]:
        """Make some steps with the present parameters and return the positions in the molecule's frame, bohr."""
        if self._positions is None:
            self._positions = next(self._dynamics)
        positions = self._positions
        energy, slope = self._evaluate(params, positions)
        for _ in range(STEPS):
            noise = self._rng.normal(size=positions.shape)
            new = self._drift(positions, slope) + self._epsilon * np.sqrt(self._thermal / self._masses) * noise
            new_energy, new_slope = self._evaluate(params, new)
            # The noise that a step back to the old positions would need.
            back = (positions - self._drift(new, new_slope)) / (
                self._epsilon * np.sqrt(self._thermal / self._masses)
            )
            log_ratio = (energy - new_energy) / self._thermal + 0.5 * (np.sum(noise**2) - np.sum(back**2))
            is_accepted = np.log(self._rng.uniform()) < log_ratio  # never, if it is not a number
            if is_accepted:
                positions, energy, slope = new, new_energy, new_slope
            self._epsilon *= math.exp(0.1 * (is_accepted - ACCEPTANCE))
        positions = self._system.frame.pose(positions).positions
        # After a broken bond the walk starts again from dynamics.
        self._positions = positions if keeps_bonds(self._system.molecule, positions) else None
        return positions

    def _evaluate(
        self, params: Params | None, positions: Float[np.ndarray, "natm 3"]
    ) -> tuple[float, Float[np.ndarray, "natm 3"]]:
        """Return the energy (hartree) and its derivative (hartree/bohr) at positions (bohr)."""
        frame = self._system.frame
        pose = frame.pose(positions)
        energy, slope = self._energy_and_gradient(pose.positions, params)
        return float(energy), frame.pull_back(pose, slope)

    def _drift(
        self, positions: Float[np.ndarray, "natm 3"], slope: Float[np.ndarray, "natm 3"]
    ) -> Float[np.ndarray, "natm 3"]:
        """Return the positions after the deterministic part of a step, bohr."""
        return positions - 0.5 * self._epsilon**2 * slope / self._masses
