"""Properties of a density matrix: forces, dipole moment, atomic charges, and orbitals and densities on a box."""

import functools
import tempfile
from collections.abc import Callable
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
"""Margin of a box around the nuclei. The isosurface of any valence orbital at 0.02 lies inside."""

SLICE_POINTS = 1024
"""Number of points of a box that are evaluated at a time."""


class Box(NamedTuple):
    """Rectangular box of points.

    Attributes:
      origin: position of the first point, bohr.
      spacing: step along each axis, bohr.
      shape: number of points along x, y and z.
    """

    origin: Float[np.ndarray, " 3"]
    spacing: Float[np.ndarray, " 3"]
    shape: tuple[int, int, int]


def forces(
    mol: Molecule, method: Method, fock: Float[Array | np.ndarray, "*spin nao nao"]
) -> Float[np.ndarray, "natm 3"]:
    """Return the forces on the nuclei, hartree per bohr: minus the derivative of the energy.

    The derivative includes that of the integration grid. The density follows the atoms through `density_from_fock`,
    while the Fock matrix is held fixed. At self-consistency the energy does not change to first order when orbitals
    rotate, so this is the complete derivative (Pulay 1969, doi:10.1080/00268976900100941). For a Fock matrix that has
    not converged, it is not.

    Args:
      mol: molecule.
      method: level of theory.
      fock: converged Fock matrix, hartree; for an open shell, one for each spin.

    Raises:
      InputError: if `integrals.template` raises it.
      ValueError: if the matrix does not have the shape that molecule and basis need.
    """
    template = integrals.template(mol, method)
    return -_energy_and_gradient(template)(mol.positions, jnp.asarray(fock))[1]


@functools.lru_cache(maxsize=8)
def _energy_and_gradient(template: Template) -> Callable[..., tuple[Array, np.ndarray]]:
    def value(ints, fock):
        ints = ints.unrestricted() if fock.ndim == 3 else ints  # also a closed shell with broken symmetry
        return energy(density_from_fock(fock, ints), ints)

    return template.value_and_gradient(value)


def dipole_debye(
    mol: Molecule, method: Method, dm: Float[Array | np.ndarray, "*spin nao nao"]
) -> Float[np.ndarray, "3"]:
    """Return the dipole moment of a density matrix about the origin, debye.

    Args:
      mol: molecule.
      method: level of theory.
      dm: density matrix, electrons per AO pair; for an open shell, one for each spin.

    Raises:
      InputError: if `integrals.template` raises it.
      ValueError: if the matrix does not have the shape that molecule and basis need.
    """
    template = integrals.template(mol, method)
    total = _total(dm, template)
    electronic = np.einsum("xij,ij->x", template.dipole_integrals(mol.positions), total)
    return (template.nuclear_charges @ mol.positions - electronic) * AU_DEBYE


def charges(
    mol: Molecule, method: Method, dm: Float[Array | np.ndarray, "*spin nao nao"], kind: str = "mulliken"
) -> Float[np.ndarray, " natm"]:
    """Return the atomic charges of a density matrix, elementary charges; their sum is the charge of the molecule.

    Args:
      mol: molecule.
      method: level of theory.
      dm: density matrix, electrons per AO pair; for an open shell, one for each spin.
      kind: "mulliken" (1955, doi:10.1063/1.1740588) or "lowdin" (1950, doi:10.1063/1.1747632).

    Raises:
      InputError: if the kind is not known, or `integrals.template` raises it.
      ValueError: if the matrix does not have the shape that molecule and basis need.
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
        raise InputError(f"Expected a known kind of charges, got {kind!r}; use mulliken or lowdin.")
    return template.nuclear_charges - np.bincount(template.ao_atom, populations, minlength=len(mol.symbols))


def _total(dm: Array | np.ndarray, template: Template) -> Float[np.ndarray, "nao nao"]:
    """Return the total density matrix of a closed or an open shell."""
    dm = np.asarray(dm)
    total = dm.sum(axis=0) if dm.ndim == 3 else dm
    if total.shape != (template.nao, template.nao):
        raise ValueError(
            f"Expected a density matrix of shape ({template.nao}, {template.nao}), got {dm.shape}; use a matrix of "
            "this molecule and basis."
        )
    return total


def box(mol: Molecule, points: int = 60) -> Box:
    """Return a box around a molecule.

    Args:
      mol: molecule.
      points: number of points along each axis.

    Raises:
      ValueError: if there are fewer than two points along an axis.
    """
    if points < 2:
        raise ValueError(f"Expected at least 2 points along each axis of a box, got {points}; use 60.")
    low = mol.positions.min(axis=0) - BOX_MARGIN_BOHR
    high = mol.positions.max(axis=0) + BOX_MARGIN_BOHR
    return Box(low, (high - low) / (points - 1), (points, points, points))


def orbital_on_box(
    mol: Molecule, template: Template, mo_coeff: Float[Array | np.ndarray, "nao *norb"], box: Box
) -> Float[np.ndarray, "*norb nx ny nz"]:
    """Return the values of one or several orbitals on a box, bohr^(−3/2), float32.

    Args:
      mol: geometry, with its atoms in the order of the template.
      template: molecule and method.
      mo_coeff: coefficients of one orbital, or of several in columns. Several cost little more than one.
      box: points.
    """
    return _on_box(mol, template, mo_coeff, box, density=False)


def density_on_box(
    mol: Molecule, template: Template, dm: Float[Array | np.ndarray, "nao nao"], box: Box
) -> Float[np.ndarray, "nx ny nz"]:
    """Return the electron density on a box, electrons per cubic bohr, float32.

    Args:
      mol: geometry, with its atoms in the order of the template.
      template: molecule and method.
      dm: density matrix, electrons per AO pair: the total one, that of one spin, or the difference of two matrices.
      box: points.
    """
    return _on_box(mol, template, dm, box, density=True)


def potential_on_box(
    mol: Molecule, method: Method, dm: Float[Array | np.ndarray, "nao nao"], box: Box,
    mask: Bool[np.ndarray, "nx ny nz"],
) -> Float[np.ndarray, "nx ny nz"]:
    """Return the electrostatic potential of nuclei and electrons on a box, hartree per elementary charge, float32.

    Args:
      mol: geometry.
      method: level of theory.
      dm: total density matrix, electrons per AO pair.
      box: points.
      mask: points where the potential is computed; it is zero at all other points, because all would take long. None
        of the points may be a nucleus.

    Raises:
      InputError: if `integrals.template` raises it.
      ValueError: if the matrix does not have the shape that molecule and basis need.
    """
    total: np.ndarray = np.asarray(_total(dm, integrals.template(mol, method)))
    potential = np.zeros(box.shape, dtype=np.float32)
    potential[mask] = libcint.electrostatic_potential(mol, method, total, points(box)[mask.ravel()])
    return potential


def points(box: Box) -> Float[np.ndarray, "npoint 3"]:
    """Return all points of a box, bohr; z changes fastest."""
    axes = [box.origin[i] + box.spacing[i] * np.arange(box.shape[i]) for i in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _on_box(
    mol: Molecule, template: Template, coefficients: Array | np.ndarray, box: Box, *, density: bool
) -> np.ndarray:
    """Return orbitals (coefficients in columns) or a density (coefficients are a density matrix) on a box."""
    arguments = (np.asarray(array, dtype=np.float32) for array in (mol.positions, points(box), coefficients))
    values = _box_evaluator(template, density=density)(*arguments)
    return np.asarray(values).reshape(*values.shape[:-1], *box.shape)


@functools.lru_cache(maxsize=8)
def _box_evaluator(template: Template, *, density: bool) -> Callable[..., Array]:
    """Return a function that is compiled once per basis, in single precision, so that the next orbital is fast."""
    groups = (group._replace(**{name: np.float32(getattr(group, name)) for name in ("exponents", "coefficients")})
              for group in template.basis.groups)
    basis = template.basis._replace(groups=tuple(groups))

    def of_slice(positions, coords, coefficients):
        aos = grid.eval_aos(positions, coords, basis, derivatives=False)[0]
        if density:
            return jnp.sum(aos * (coefficients @ aos), axis=0)
        return coefficients.T @ aos

    @jax.jit
    def values(positions, points, coefficients):
        # A slice at a time bounds the memory to (points of a slice) × nao.
        missing = -len(points) % SLICE_POINTS
        slices = jnp.pad(points, ((0, missing), (0, 0))).reshape(-1, SLICE_POINTS, 3)
        parts = jax.lax.map(lambda coords: of_slice(positions, coords, coefficients), slices)
        return jnp.moveaxis(parts, 0, -2).reshape(*parts.shape[1:-1], -1)[..., : len(points)]

    return values


def cube_text(mol: Molecule, values: Float[np.ndarray, "nx ny nz"], box: Box, title: str) -> str:
    """Return the text of a Gaussian cube file.

    Args:
      mol: molecule.
      values: values on the points of the box.
      box: points.
      title: first line of the file.
    """
    atoms = mol.to_ase()
    atoms.cell = np.diag(box.spacing * box.shape * BOHR_ANGSTROM)
    with tempfile.TemporaryFile("w+") as file:  # ASE writes the values to a real file only
        ase.io.cube.write_cube(
            file, atoms, values, origin=box.origin * BOHR_ANGSTROM, comment=title.replace("\n", " ")
        )
        file.seek(0)
        return file.read()
