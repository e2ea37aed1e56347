"""The sampler `torsions`: rotatable bonds turned at random."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError
from qptlab.sampling.bonds import bonded_graph, clash_distances, dihedral, rotatable_bonds
from qptlab.sampling.positions import MAX_TRIES, DisplacedSampler, displaced
from qptlab.sampling.register import register_sampler
from qptlab.system.molecule import Molecule
from qptlab.units import BOHR_ANGSTROM


@register_sampler("torsions")
@dataclasses.dataclass(frozen=True)
class Torsions(DisplacedSampler):
    """Random dihedral angles of all rotatable bonds, followed by Gaussian displacements.

    Attributes:
      sigma_bohr: standard deviation of the displacements, per coordinate, bohr.
    """

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Yield geometries with random dihedral angles, bohr.

        Raises:
          InputError: if the molecule has no rotatable bond, or no geometry without clashing atoms is found.
        """
        return displaced(_turned(mol, rng), self.sigma_bohr, rng)


def _turned(mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
    """Yield geometries with uniform dihedral angles and without clashing atoms, bohr."""
    from rdkit.Chem.rdMolTransforms import SetDihedralRad

    graph = bonded_graph(mol)
    dihedrals = [dihedral(graph, bond) for bond in rotatable_bonds(graph)]
    if not dihedrals:
        raise InputError(
            f"Expected a molecule with a rotatable bond for the sampler torsions, got {mol.formula}; use md, modes "
            "or perturb."
        )
    smallest, tries = clash_distances(graph), 0
    while tries < MAX_TRIES:
        for atoms in dihedrals:
            SetDihedralRad(graph.GetConformer(), *atoms, float(rng.uniform(-np.pi, np.pi)))
        positions = graph.GetConformer().GetPositions() / BOHR_ANGSTROM
        tries += 1
        if not (np.linalg.norm(positions[:, None] - positions, axis=-1) < smallest).any():
            tries = 0
            yield positions
    raise InputError(
        f"Expected dihedral angles of {mol.formula} without clashing atoms, got none in {MAX_TRIES} random "
        "geometries; use the sampler md or conformers."
    )
