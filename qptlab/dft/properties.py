"""What a density says: forces, dipole moment, atomic charges, orbitals and densities on a box of points."""

import functools
import tempfile
from typing import NamedTuple

import ase.io.cube
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qptlab.dft import grid, integrals, libcint
from qptlab.dft.energy import density_from_fock, energy
from qptlab.dft.integrals import Template
from qptlab.errors import InputError
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM

BOX_MARGIN_BOHR = 5.0
"""Room around the nuclei: the isosurface of any valence orbital at 0.02 lies inside."""


SLICE_POINTS = 1024
"""Points of a box that are evaluated at a time."""


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


def forces(
    mol: Molecule, method: Method, fock: Float[Array | np.ndarray, "*spin nao nao"]
) -> Float[np.ndarray, "natm 3"]:
    """Forces on the nuclei, hartree per bohr: minus the derivative of the energy, that of the grid included.

    The density follows the atoms through `density_from_fock` with the Fock matrix held fixed. At self-consistency
    the energy does not change to first order when orbitals rotate, so that is the whole derivative (Pulay 1969,
    doi:10.1080/00268976900100941); elsewhere it is not.

    Args:
      mol: the molecule.
      method: the level of theory.
      fock: converged, hartree; with a leading axis of spins for an open shell.

    Raises:
      InputError: as `integrals.template`.
      ValueError: if the matrix does not fit the molecule and basis.
    """
    template = integrals.template(mol, method)
    return -_energy_and_slope(template)(mol.positions, jnp.asarray(fock))[1]


@functools.lru_cache(maxsize=8)
def _energy_and_slope(template: Template):
    return template.value_and_gradient(
        lambda ints, fock: energy(density_from_fock(fock, ints), ints)
    )


def dipole_debye(
    mol: Molecule, method: Method, dm: Float[Array | np.ndarray, "*spin nao nao"]
) -> Float[np.ndarray, "3"]:
    """Dipole moment of a density matrix, debye, origin at zero.

    Raises:
      ValueError: if the matrix does not fit the molecule and basis.
    """
    template = integrals.template(mol, method)
    total = _total(dm, template)
    electronic = np.einsum("xij,ij->x", template.dipole_integrals(mol.positions), total)
    return (mol.atomic_numbers @ mol.positions - electronic) * AU_DEBYE


def charges(
    mol: Molecule, method: Method, dm: Float[Array | np.ndarray, "*spin nao nao"], kind: str = "mulliken"
) -> Float[np.ndarray, " natm"]:
    """Atomic charges of a density matrix, elementary charges; they sum to the molecule's.

    Args:
      mol: the molecule.
      method: the level of theory.
      dm: density matrix; of an open shell one of each spin.
      kind: "mulliken" (1955, doi:10.1063/1.1740588) or "lowdin" (1950, doi:10.1063/1.1747632).

    Raises:
      InputError: for another kind.
      ValueError: if the matrix does not fit the molecule and basis.
    """
    template = integrals.template(mol, method)
    total, overlap = _total(dm, template), template.overlap(mol.positions)
    if kind == "mulliken":
        populations = np.einsum("ij,ji->i", total, overlap)
    elif kind == "lowdin":
        values, vectors = np.linalg.eigh(overlap)
        root = vectors * np.sqrt(values) @ vectors.T
        populations = np.diag(root @ total @ root)
    else:
        raise InputError(f"charges of kind {kind!r} are not known; mulliken or lowdin would do.")
    return mol.atomic_numbers - np.bincount(template.ao_atom, populations, minlength=len(mol.symbols))


def _total(dm, template):
    dm = np.asarray(dm)
    total = dm.sum(axis=0) if dm.ndim == 3 else dm
    if total.shape != (template.nao, template.nao):
        raise ValueError(
            f"a density matrix of shape {dm.shape} was given; ({template.nao}, {template.nao}) would do."
        )
    return total


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
    mol: Molecule, template: Template, mo_coeff: Float[Array | np.ndarray, "nao *norb"], where: Box
) -> Float[np.ndarray, "*norb nx ny nz"]:
    """Values of one orbital on a box, or of several, bohr^(−3/2), float32.

    Args:
      mol: the geometry; its atoms are in the template's order.
      template: the basis.
      mo_coeff: coefficients, one column of `mo_coeff`, or several: together they cost little more than one.
      where: the points.
    """
    return _on_box(mol, template, mo_coeff, where, density=False)


def density_on_box(
    mol: Molecule, template: Template, dm: Float[Array | np.ndarray, "nao nao"], where: Box
) -> Float[np.ndarray, "nx ny nz"]:
    """Electron density on a box, electrons per cubic bohr, float32.

    Args:
      mol: the geometry; its atoms are in the template's order.
      template: the basis.
      dm: density matrix: the total, of one spin, or the difference of two.
      where: the points.
    """
    return _on_box(mol, template, dm, where, density=True)


def potential_on_box(
    mol: Molecule, method: Method, dm: Float[Array | np.ndarray, "nao nao"], where: Box,
    wanted: Bool[np.ndarray, "nx ny nz"],
) -> Float[np.ndarray, "nx ny nz"]:
    """Electrostatic potential of nuclei and electrons on a box, hartree per elementary charge, float32.

    Args:
      mol: the geometry.
      method: the level of theory.
      dm: total density matrix.
      where: the points.
      wanted: the points where it is worked out, none of them a nucleus; it is zero elsewhere. All would take long.

    Raises:
      ValueError: if the matrix does not fit the molecule and basis.
    """
    total: np.ndarray = np.asarray(_total(dm, integrals.template(mol, method)))
    found = np.zeros(where.shape, dtype=np.float32)
    found[wanted] = libcint.electrostatic_potential(mol, method, total, points(where)[wanted.ravel()])
    return found


def points(where: Box) -> Float[np.ndarray, "npoint 3"]:
    """All points of a box, z fastest, bohr."""
    axes = [where.origin[i] + where.spacing[i] * np.arange(where.shape[i]) for i in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _on_box(mol, template, coefficients, where, *, density):
    given = (np.asarray(each, dtype=np.float32) for each in (mol.positions, points(where), coefficients))
    values = _box_evaluator(template, density=density)(*given)
    return np.asarray(values).reshape(*values.shape[:-1], *where.shape)


@functools.lru_cache(maxsize=8)
def _box_evaluator(template: Template, *, density: bool):
    """Compiled once per basis, and in single precision, so that the next orbital is there at once."""
    groups = (group._replace(**{name: np.float32(getattr(group, name)) for name in ("exponents", "coefficients")})
              for group in template.basis.groups)
    basis = template.basis._replace(groups=tuple(groups))

    product = functools.partial(jnp.matmul, precision="highest")  # where GPUs would do with fewer digits

    def of_slice(positions, coords, coefficients):
        aos = grid.eval_aos(positions, coords, basis, derivatives=False)[0]
        if density:
            return jnp.sum(aos * product(coefficients, aos), axis=0)
        return product(coefficients.T, aos)

    @jax.jit
    def values(positions, points, coefficients):
        # A slice at a time bounds the memory to (points of a slice) × nao.
        missing = -len(points) % SLICE_POINTS
        slices = jnp.pad(points, ((0, missing), (0, 0))).reshape(-1, SLICE_POINTS, 3)
        found = jax.lax.map(lambda coords: of_slice(positions, coords, coefficients), slices)
        return jnp.moveaxis(found, 0, -2).reshape(*found.shape[1:-1], -1)[..., : len(points)]

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
