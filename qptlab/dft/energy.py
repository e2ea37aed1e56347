"""From density matrix to Fock matrix and back: the maths of one Kohn–Sham iteration.

Pure functions of `Integrals`, which hold the functional. The density matrix of a closed
shell is 2·C_occ·C_occᵀ. An open shell has one of each spin, C_occ·C_occᵀ, along a leading axis, and so have its
Fock matrices and orbitals (Pople & Nesbet 1954). Helgaker, Jørgensen & Olsen 2000, ch. 10.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qptlab.dft import semilocal
from qptlab.dft.integrals import Integrals

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
      vxc: exchange–correlation matrix, exact exchange included, hartree.
      fock: hcore + coul + vxc, the derivative of the energy, hartree.
    """

    terms: EnergyTerms
    coul: Float[Array, "nao nao"]
    vxc: Float[Array, "*spin nao nao"]
    fock: Float[Array, "*spin nao nao"]


def kohn_sham(
    dm: Float[Array, "*spin nao nao"],
    ints: Integrals,
    *,
    filled: Float[Array, "*spin nao nocc"] | None = None,
) -> KohnSham:
    """Return the energy and the Fock matrix of a density matrix, with the functional of the integrals.

    Args:
      dm: symmetric, electrons per AO pair; for an open shell one of each spin.
      ints: integrals of the geometry; they hold the functional.
      filled: orbitals C with dm = C·Cᵀ, where they are known: fitted exchange is cheaper with them.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_shapes(dm, ints)
    spins = dm[None] if dm.ndim == 2 else dm
    total = jnp.sum(spins, axis=0)
    coul = ints.repulsion.coulomb(total)
    e_xc, vxc = semilocal.exchange_correlation(spins, ints)
    share = ints.functional.exact_exchange
    if share:
        # A closed shell's exchange is that of two halves of its density.
        weight = share * (0.5 if dm.ndim == 2 else 1.0)
        known = [None] * len(spins) if filled is None else filled.reshape(len(spins), *filled.shape[-2:])
        exch = jnp.stack([ints.repulsion.exchange(d, c) for d, c in zip(spins, known, strict=True)])
        vxc = vxc - weight * exch
        e_xc = e_xc - 0.5 * weight * jnp.sum(spins * exch)
    vxc = vxc.reshape(dm.shape)
    terms = EnergyTerms(
        e_core=jnp.sum(total * ints.hcore),
        e_coul=0.5 * jnp.sum(total * coul),
        e_xc=e_xc,
        e_nuc=ints.e_nuc,
    )
    return KohnSham(terms, coul, vxc, ints.hcore + coul + vxc)


def energy(dm: Float[Array, "*spin nao nao"], ints: Integrals) -> Float[Array, ""]:
    """Total Kohn–Sham energy of a density matrix, hartree; arguments as `kohn_sham`.

    Its derivative with respect to the density matrix is the Fock matrix, which was made on the way: it costs nothing.
    """
    return _energy(dm, ints)


@jax.custom_vjp
def _energy(dm, ints):
    return kohn_sham(dm, ints).terms.e_tot


def _energy_forward(dm, ints):
    found = kohn_sham(dm, ints)
    return found.terms.e_tot, (dm, ints, found.fock)


def _energy_backward(residuals, bar):
    dm, ints, fock = residuals
    # Compiled away where nobody asks for derivatives with respect to the geometry.
    _, pull_back = jax.vjp(lambda ints: kohn_sham(dm, ints).terms.e_tot, ints)
    return bar * fock, pull_back(bar)[0]


_energy.defvjp(_energy_forward, _energy_backward)


def fock(dm: Float[Array, "*spin nao nao"], ints: Integrals) -> Float[Array, "*spin nao nao"]:
    """Kohn–Sham (Fock) matrix of a density matrix, hartree; arguments as `kohn_sham`."""
    return kohn_sham(dm, ints).fock


def orbitals(
    fock: Float[Array, "*spin nao nao"], ints: Integrals
) -> tuple[Float[Array, "*spin nmo"], Float[Array, "*spin nao nmo"]]:
    """Orbital energies (hartree, ascending) and coefficients (columns) of a Fock matrix.

    Not for differentiation: the derivative of single orbitals is singular at degeneracies. What
    can be differentiated is `density_from_fock`.
    """
    x = ints.orthogonaliser
    mo_energy, vectors = jnp.linalg.eigh(x.T @ fock @ x)
    return mo_energy, x @ vectors


def filled_orbitals(fock: Float[Array, "*spin nao nao"], ints: Integrals) -> Float[Array, "*spin nao nocc"]:
    """The filled orbitals C of a Fock matrix, scaled so that its density matrix is C·Cᵀ.

    Of an open shell both spins have as many columns as the larger needs; those not filled are zero.
    """
    _, mo_coeff = orbitals(fock, ints)
    most = max(ints.layout.nocc)
    occupied = jnp.arange(most) < ints.nocc[..., None]  # [*spin, nocc]
    electrons = 2.0 if ints.nocc.ndim == 0 else 1.0
    return jnp.sqrt(electrons) * mo_coeff[..., :most] * occupied[..., None, :]


def density_from_fock(
    fock: Float[Array, "*spin nao nao"], ints: Integrals
) -> Float[Array, "*spin nao nao"]:
    """Density matrix of the lowest orbitals of a Fock matrix, doubly filled in a closed shell.

    The reverse rule divides by occupied–virtual gaps alone, so degenerate levels inside either
    space are harmless and a closed HOMO–LUMO gap is not: below `MIN_GAP_HARTREE` the derivative
    is NaN (first-order response; Helgaker, Jørgensen & Olsen 2000, ch. 10).

    Args:
      fock: symmetric, hartree; for an open shell one of each spin. Differentiable.
      ints: its overlap (differentiable), orthogonaliser and nocc are read.

    Returns:
      Electrons per AO pair; the trace with the overlap is the number of electrons.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_shapes(fock, ints)
    if fock.ndim == 2:
        return 2 * _projector(fock, ints.overlap, ints.orthogonaliser, ints.nocc)
    return jax.vmap(_projector, (0, None, None, 0))(fock, ints.overlap, ints.orthogonaliser, ints.nocc)


@jax.custom_vjp
def _projector(fock, overlap, orthogonaliser, nocc):
    return _projector_forward(fock, overlap, orthogonaliser, nocc)[0]


def _projector_forward(fock, overlap, orthogonaliser, nocc):
    del overlap  # held by the orthogonaliser; named so that it has a derivative
    mo_energy, vectors = jnp.linalg.eigh(orthogonaliser.T @ fock @ orthogonaliser)
    mo_coeff = orthogonaliser @ vectors
    occupied = jnp.arange(len(fock)) < nocc
    filled = mo_coeff * occupied
    return filled @ filled.T, (mo_energy, mo_coeff, occupied)


def _projector_backward(residuals, dm_bar):
    mo_energy, mo_coeff, occupied = residuals
    response = 0.5 * mo_coeff.T @ (dm_bar + dm_bar.T) @ mo_coeff
    crossing = ~occupied[:, None] & occupied[None, :]  # [virtual, occupied]
    gap = jnp.where(crossing, mo_energy[None, :] - mo_energy[:, None], 1.0)
    closed = jnp.any(crossing & (gap > -MIN_GAP_HARTREE))
    rotation = jnp.where(crossing, response / jnp.where(closed, jnp.nan, gap), 0.0)
    fock_bar = mo_coeff @ (rotation + rotation.T) @ mo_coeff.T
    # Overlap: occupied–virtual rotation by −ε_i·dS, and renormalisation inside the occupied space.
    weighted = rotation * mo_energy[None, :]
    inside = jnp.where(occupied[:, None] & occupied[None, :], response, 0.0)
    overlap_bar = -mo_coeff @ (weighted + weighted.T + inside) @ mo_coeff.T
    return fock_bar, overlap_bar, None, None


_projector.defvjp(_projector_forward, _projector_backward)


@jax.custom_vjp
def inverse_root(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse square root of a symmetric positive matrix, as Löwdin's orthogonalisation needs of the overlap.

    Its derivative has divided differences of λ^(−½) in the place of those that the derivative of eigenvectors divides
    by, and is finite at degenerate eigenvalues, too (Daleckii & Krein 1965).
    """
    return _inverse_root_forward(matrix)[0]


def _inverse_root_forward(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    roots = jnp.sqrt(values)
    return vectors / roots @ vectors.T, (roots, vectors)


def _inverse_root_backward(residuals, bar):
    roots, vectors = residuals
    inside = vectors.T @ (0.5 * (bar + bar.T)) @ vectors
    return (-vectors @ (inside / (roots[:, None] * roots * (roots[:, None] + roots))) @ vectors.T,)


inverse_root.defvjp(_inverse_root_forward, _inverse_root_backward)


def commutator(
    fock: Float[Array, "*spin nao nao"], dm: Float[Array, "*spin nao nao"], ints: Integrals
) -> Float[Array, "*spin nao nao"]:
    """Xᵀ(FDS − SDF)X, hartree: the orbital gradient, zero at self-consistency (Pulay 1982)."""
    x = ints.orthogonaliser
    fds = fock @ dm @ ints.overlap
    return x.T @ (fds - jnp.swapaxes(fds, -1, -2)) @ x


def _check_shapes(matrix, ints):
    expected = (*ints.nocc.shape, *ints.overlap.shape)
    if matrix.shape != expected:
        raise ValueError(
            f"a matrix of shape {matrix.shape} was given with integrals for {expected}; "
            "the two must be of one molecule, basis and spin."
        )
