"""The sampler `perturb`: random displacements of the reference geometry."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from qptlab.sampling.positions import DisplacedSampler, displaced
from qptlab.sampling.register import register_sampler
from qptlab.system.molecule import Molecule


@register_sampler("perturb")
@dataclasses.dataclass(frozen=True)
class Perturbation(DisplacedSampler):
    """Gaussian displacements of the reference geometry.

    Attributes:
      sigma_bohr: standard deviation of the displacements, per coordinate, bohr.
    """

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Yield displaced geometries, bohr."""
        return displaced(itertools.repeat(mol.positions), self.sigma_bohr, rng)
