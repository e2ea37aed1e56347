"""What a density says: dipole moment, and orbitals on a box of points."""

import functools
import tempfile
from typing import NamedTuple

import ase.io.cube
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qptlab import grid, integrals
from qptlab.integrals import Template
from qptlab.method import Method
from qptlab.molecule import Molecule
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM

BOX_MARGIN_BOHR = 5.0
"""Room around the nuclei: the isosurface of any valence orbital at 0.02 lies inside."""


class Box(NamedTuple):
    """A rectangular box of points.

    Attributes:
      origin: first point, bohr.
      spacing: step along each axis, bohr.
      shape: number of points along x, y and z.
    """

    origin: Float[np.ndarray, " 3"]
    spacing: Float[np.ndarray, " 3"]
    shape: tuple[int, int, int]


def dipole_debye(mol: Molecule, method: Method, dm: Float[Array | np.ndarray, "nao nao"]) -> np.ndarray:
    """Dipole moment of a density matrix, debye, origin at zero.

    Raises:
      ValueError: if the matrix does not fit the molecule and basis.
    """
    moments = integrals.dipole_integrals(mol, method)
    if dm.shape != moments.shape[1:]:
        raise ValueError(f"a density matrix of shape {dm.shape} was given; {moments.shape[1:]} would do.")
    nuclear = mol.atomic_numbers @ mol.positions
    return (nuclear - np.einsum("xij,ij->x", moments, np.asarray(dm))) * AU_DEBYE


def box(mol: Molecule, points: int = 60) -> Box:
    """A box around a molecule with `points` points along each axis.

    Raises:
      ValueError: for fewer than two points.
    """
    if points < 2:
        raise ValueError(f"a box of {points} points along each axis was asked for; 60 would do.")
    low = mol.positions.min(axis=0) - BOX_MARGIN_BOHR
    high = mol.positions.max(axis=0) + BOX_MARGIN_BOHR
    return Box(low, (high - low) / (points - 1), (points, points, points))


def orbital_on_box(
    mol: Molecule, template: Template, mo_coeff: Float[Array | np.ndarray, " nao"], where: Box
) -> Float[np.ndarray, "nx ny nz"]:
    """Values of one orbital on a box, bohr^(−3/2), float32.

    Args:
      mol: the geometry; its atoms are in the template's order.
      template: the basis.
      mo_coeff: coefficients, one column of `mo_coeff`.
      where: the points.
    """
    axes = [where.origin[i] + where.spacing[i] * np.arange(where.shape[i]) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    values = _orbital_evaluator(template)(mol.positions, points, jnp.asarray(mo_coeff))
    return np.asarray(values, dtype=np.float32).reshape(where.shape)


@functools.lru_cache(maxsize=8)
def _orbital_evaluator(template: Template):
    """Compiled once per basis, so that the next orbital costs milliseconds."""

    def one(positions, point, coefficients):
        aos = grid.eval_aos(positions, point[None], template.shells, derivatives=False)
        return aos[0, 0] @ coefficients

    @jax.jit
    def values(positions, points, coefficients):
        # A slice at a time bounds the memory to (points of a slice) × nao.
        return jax.lax.map(lambda point: one(positions, point, coefficients), points, batch_size=8192)

    return values


def cube_text(mol: Molecule, values: Float[np.ndarray, "nx ny nz"], where: Box, title: str) -> str:
    """A Gaussian cube file of values on a box."""
    atoms = mol.to_ase()
    atoms.cell = np.diag(where.spacing * where.shape * BOHR_ANGSTROM)
    with tempfile.TemporaryFile("w+") as file:  # ASE writes the values to a real file only
        ase.io.cube.write_cube(
            file, atoms, values, origin=where.origin * BOHR_ANGSTROM, comment=title.replace("\n", " ")
        )
        file.seek(0)
        return file.read()
