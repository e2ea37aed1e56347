"""From density matrix to Fock matrix and back: the maths of one Kohn–Sham iteration.

Pure functions of `Integrals`; the functional is named by the static argument `xc`. Closed shell:
the density matrix is 2·C_occ·C_occᵀ. Helgaker, Jørgensen & Olsen 2000, ch. 10.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qptlab import xc as functionals
from qptlab.integrals import Integrals

MIN_GAP_HARTREE = 1e-6
"""Between occupied and virtual levels. Below it rounding alone decides which orbital is filled, and
a derivative would be large, finite and meaningless."""


class EnergyTerms(NamedTuple):
    """Parts of the total energy, hartree; they sum to `e_tot`."""

    e_core: Float[Array, ""]
    e_coul: Float[Array, ""]
    e_xc: Float[Array, ""]
    e_nuc: Float[Array, ""]

    @property
    def e_tot(self) -> Float[Array, ""]:
        """Total energy, hartree."""
        return self.e_core + self.e_coul + self.e_xc + self.e_nuc


class KohnSham(NamedTuple):
    """What a density matrix gives in one pass over the integrals.

    Attributes:
      terms: the energy, by parts.
      coul: Coulomb matrix, hartree.
      vxc: exchange–correlation matrix, hartree.
      fock: hcore + coul + vxc, the derivative of the energy, hartree.
    """

    terms: EnergyTerms
    coul: Float[Array, "nao nao"]
    vxc: Float[Array, "nao nao"]
    fock: Float[Array, "nao nao"]


def kohn_sham(dm: Float[Array, "nao nao"], ints: Integrals, xc: str) -> KohnSham:
    """Energy and Fock matrix of a density matrix, sharing the work of both.

    Args:
      dm: symmetric, electrons per AO pair.
      ints: the geometry.
      xc: functional, one of `method.FUNCTIONALS`.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_shapes(dm, ints)
    coul = coulomb(dm, ints)
    e_xc, vxc = _exchange_correlation(dm, ints, xc)
    terms = EnergyTerms(
        e_core=jnp.sum(dm * ints.hcore),
        e_coul=0.5 * jnp.sum(dm * coul),
        e_xc=e_xc,
        e_nuc=ints.e_nuc,
    )
    return KohnSham(terms, coul, vxc, ints.hcore + coul + vxc)


def energy(dm: Float[Array, "nao nao"], ints: Integrals, xc: str) -> Float[Array, ""]:
    """Total Kohn–Sham energy of a density matrix, hartree; arguments as `kohn_sham`."""
    return kohn_sham(dm, ints, xc).terms.e_tot


def fock(dm: Float[Array, "nao nao"], ints: Integrals, xc: str) -> Float[Array, "nao nao"]:
    """Kohn–Sham (Fock) matrix of a density matrix, hartree; arguments as `kohn_sham`."""
    return kohn_sham(dm, ints, xc).fock


def coulomb(dm: Float[Array, "nao nao"], ints: Integrals) -> Float[Array, "nao nao"]:
    """Coulomb matrix J_ij = Σ_kl (ij|kl) D_kl, hartree."""
    rows, cols = np.tril_indices(ints.nao)
    packed = jnp.where(rows == cols, 1.0, 2.0) * dm[rows, cols]
    pairs = ints.eri @ packed
    index = np.zeros((ints.nao, ints.nao), dtype=np.int32)
    index[rows, cols] = index[cols, rows] = np.arange(len(rows))
    return pairs[index]


def density_on_grid(
    dm: Float[Array, "nao nao"], aos: Float[Array, "nderiv ngrids nao"]
) -> tuple[Float[Array, " ngrids"], Float[Array, "3 ngrids"] | None]:
    """Electron density on grid points, and its gradient where the AOs' is given."""
    half = aos[0] @ dm
    rho = jnp.sum(half * aos[0], axis=-1)
    if aos.shape[0] == 1:
        return rho, None
    return rho, 2 * jnp.einsum("gi,xgi->xg", half, aos[1:])


def _exchange_correlation(dm, ints, xc):
    rho, gradient = density_on_grid(dm, ints.aos)
    sigma = jnp.zeros_like(rho) if gradient is None else jnp.sum(gradient**2, axis=0)
    exc, vrho, vsigma = functionals.potential(rho, sigma, xc)
    # Half of the potential matrix; adding the transpose gives the other half (Pople, Gill &
    # Johnson 1992, doi:10.1016/0009-2614(92)85009-Y).
    carrier = (0.5 * ints.weights * vrho)[:, None] * ints.aos[0]
    if gradient is not None:
        carrier += jnp.einsum("xg,xgi->gi", 2 * ints.weights * vsigma * gradient, ints.aos[1:])
    half = ints.aos[0].T @ carrier
    return jnp.sum(ints.weights * exc), half + half.T


def orbitals(
    fock: Float[Array, "nao nao"], ints: Integrals
) -> tuple[Float[Array, " nmo"], Float[Array, "nao nmo"]]:
    """Orbital energies (hartree, ascending) and coefficients (columns) of a Fock matrix.

    Not for differentiation: the derivative of single orbitals is singular at degeneracies. What
    can be differentiated is `density_from_fock`.
    """
    x = ints.orthogonaliser
    mo_energy, vectors = jnp.linalg.eigh(x.T @ fock @ x)
    return mo_energy, x @ vectors


def density_from_fock(fock: Float[Array, "nao nao"], ints: Integrals) -> Float[Array, "nao nao"]:
    """Density matrix of the doubly filled lowest orbitals of a Fock matrix.

    The reverse rule divides by occupied–virtual gaps alone, so degenerate levels inside either
    space are harmless and a closed HOMO–LUMO gap is not: below `MIN_GAP_HARTREE` the derivative
    is NaN (first-order response; Helgaker, Jørgensen & Olsen 2000, ch. 10).

    Args:
      fock: symmetric, hartree. Differentiable.
      ints: its overlap (differentiable), orthogonaliser and nocc are read.

    Returns:
      Electrons per AO pair; the trace with the overlap is 2·nocc.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_shapes(fock, ints)
    return _density(fock, ints.overlap, ints)


@jax.custom_vjp
def _density(fock, overlap, ints):
    return _density_forward(fock, overlap, ints)[0]


def _density_forward(fock, overlap, ints):
    del overlap  # held by the orthogonaliser; named so that it has a derivative
    mo_energy, mo_coeff = orbitals(fock, ints)
    occupied = jnp.arange(ints.nao) < ints.nocc
    filled = mo_coeff * occupied
    return 2 * filled @ filled.T, (mo_energy, mo_coeff, occupied)


def _density_backward(residuals, dm_bar):
    mo_energy, mo_coeff, occupied = residuals
    response = mo_coeff.T @ (dm_bar + dm_bar.T) @ mo_coeff
    crossing = ~occupied[:, None] & occupied[None, :]  # [virtual, occupied]
    gap = jnp.where(crossing, mo_energy[None, :] - mo_energy[:, None], 1.0)
    closed = jnp.any(crossing & (gap > -MIN_GAP_HARTREE))
    rotation = jnp.where(crossing, response / jnp.where(closed, jnp.nan, gap), 0.0)
    fock_bar = mo_coeff @ (rotation + rotation.T) @ mo_coeff.T
    # Overlap: occupied–virtual rotation by −ε_i·dS, and renormalisation inside the occupied space.
    weighted = rotation * mo_energy[None, :]
    inside = jnp.where(occupied[:, None] & occupied[None, :], response, 0.0)
    overlap_bar = -mo_coeff @ (weighted + weighted.T + inside) @ mo_coeff.T
    return fock_bar, overlap_bar, None


_density.defvjp(_density_forward, _density_backward)


def commutator(
    fock: Float[Array, "nao nao"], dm: Float[Array, "nao nao"], ints: Integrals
) -> Float[Array, "nao nao"]:
    """Xᵀ(FDS − SDF)X, hartree: the orbital gradient, zero at self-consistency (Pulay 1982)."""
    x = ints.orthogonaliser
    fds = fock @ dm @ ints.overlap
    return x.T @ (fds - fds.T) @ x


def _check_shapes(matrix, ints):
    if matrix.shape != ints.overlap.shape:
        raise ValueError(
            f"a matrix of shape {matrix.shape} was given with integrals over {ints.overlap.shape}; "
            "the two must be of one molecule and basis."
        )
