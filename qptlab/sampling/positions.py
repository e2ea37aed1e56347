"""Operations on positions that several samplers share: random displacements, and a check of the bonds."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from qptlab.sampling.register import Sampler
from qptlab.system.molecule import Molecule

MAX_TRIES = 1000
"""Number of rejected geometries in a row after which a sampler gives up."""

LONGEST_BOND_BOHR = 3.2
"""Atoms that are nearer than this (1.7 Å) in the reference geometry count as bonded: all bonds of first- and
second-row atoms."""

BROKEN = 1.6
"""A bond that is longer than this times its reference length is broken."""


@dataclasses.dataclass(frozen=True)
class DisplacedSampler(Sampler):
    """Base class of samplers that displace geometries at random.

    Attributes:
      sigma_bohr: standard deviation of the displacements, per coordinate, bohr.
    """

    sigma_bohr: float = 0.05

    def __post_init__(self):
        """Check the parameter."""
        self.check_number("sigma_bohr", 0.5, "bohr", 0.05)


def displaced(
    geometries: Iterable[np.ndarray], sigma_bohr: float, rng: np.random.Generator
) -> Iterator[Float[np.ndarray, "natm 3"]]:
    """Yield the geometries with Gaussian displacements of standard deviation `sigma_bohr` in every coordinate."""
    for positions in geometries:
        yield positions + sigma_bohr * rng.normal(size=positions.shape)


def keeps_bonds(mol: Molecule, positions: Float[np.ndarray, "natm 3"]) -> bool:
    """Return true if no bond of the molecule's reference geometry is broken and all positions (bohr) are finite."""
    reference = np.linalg.norm(mol.positions[:, None] - mol.positions, axis=-1)
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1)
    bonded = (reference > 0) & (reference < LONGEST_BOND_BOHR)
    return bool(np.isfinite(positions).all() and (distance[bonded] < BROKEN * reference[bonded]).all())
