"""The sampler `conformers`: conformers by distance geometry."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError
from qptlab.sampling.bonds import bonded_graph, embedded
from qptlab.sampling.positions import DisplacedSampler, displaced
from qptlab.sampling.register import register_sampler
from qptlab.system.molecule import Molecule


@register_sampler("conformers")
@dataclasses.dataclass(frozen=True)
class Conformers(DisplacedSampler):
    """Conformers by RDKit's distance geometry, followed by Gaussian displacements.

    Attributes:
      sigma_bohr: standard deviation of the displacements, per coordinate, bohr.
    """

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Yield displaced conformers, bohr.

        Raises:
          InputError: if RDKit finds no conformer.
        """
        return displaced(_conformers(mol, rng), self.sigma_bohr, rng)


def _conformers(mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
    yield from embedded(bonded_graph(mol), rng)
    raise InputError(
        f"Expected a molecule that RDKit's distance geometry can embed, got {mol.formula}; use the sampler md, modes "
        "or perturb."
    )
