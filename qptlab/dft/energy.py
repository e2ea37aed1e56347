"""Energy, Fock matrix, orbitals and density matrix: the equations of one Kohn–Sham iteration.

All functions are pure functions of `Integrals`, which hold the functional. The density matrix of a closed shell is
2·C_occ·C_occᵀ. For an open shell, a leading axis holds the density matrix C_occ·C_occᵀ of each spin; Fock matrices
and orbitals have the same axis (Pople & Nesbet 1954). Textbook: Helgaker, Jørgensen & Olsen 2000, ch. 10.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft import padding, semilocal
from qptlab.dft.integrals import Integrals
from qptlab.dft.repulsion import Repulsion

MIN_GAP_HARTREE = 1e-6
"""Smallest gap between occupied and virtual levels with a derivative. Below it, rounding decides which orbital is
filled, and the derivative would be large, finite and meaningless."""

DROPPED_HARTREE = 0.5 * padding.ENERGY_HARTREE
"""Energy of orbitals that a nearly dependent basis lacks: above all others, below those of padding."""


class EnergyTerms(NamedTuple):
    """Terms of the total energy, hartree.

    Attributes:
      e_core: energy in the core Hamiltonian: kinetic energy and attraction by the nuclei.
      e_coul: Coulomb energy of the electrons.
      e_xc: exchange–correlation energy, including exact exchange.
      e_nuc: repulsion of the nuclei.
      e_disp: dispersion correction, which does not depend on the density; zero without one.
    """

    e_core: Float[Array, ""]
    e_coul: Float[Array, ""]
    e_xc: Float[Array, ""]
    e_nuc: Float[Array, ""]
    e_disp: Float[Array, ""]

    @property
    def e_tot(self) -> Float[Array, ""]:
        """Return the total energy, the sum of the terms, hartree."""
        return self.e_core + self.e_coul + self.e_xc + self.e_nuc + self.e_disp


class KohnSham(NamedTuple):
    """Energy and matrices of a density matrix.

    Attributes:
      terms: terms of the energy.
      coul: Coulomb matrix, hartree.
      vxc: exchange–correlation matrix, including exact exchange, hartree.
      fock: Fock matrix hcore + coul + vxc, hartree. It is the derivative of the energy with respect to the density
        matrix.
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
      dm: symmetric density matrix, electrons per AO pair; for an open shell, one for each spin.
      ints: integrals of the geometry; they hold the functional.
      filled: orbitals C with dm = C·Cᵀ, if they are known. They make density-fitted exchange cheaper; derivatives
        are those with respect to `dm`.

    Raises:
      ValueError: if the density matrix does not have the shape that the integrals need.
    """
    _check_shapes(dm, ints)
    spins = dm[None] if dm.ndim == 2 else dm
    total = jnp.sum(spins, axis=0)
    coul = ints.repulsion.coulomb(total)
    e_xc, vxc = semilocal.exchange_correlation(spins, ints)
    coefficients = [None] * len(spins) if filled is None else filled.reshape(len(spins), *filled.shape[-2:])
    for share, repulsion in _exact_exchange(ints):
        # The exchange of a closed shell is the exchange of two spins with half of the density each.
        weight = share * (0.5 if dm.ndim == 2 else 1.0)
        exch = jnp.stack([repulsion.exchange(d, c) for d, c in zip(spins, coefficients, strict=True)])
        vxc = vxc - weight * exch
        e_xc = e_xc - 0.5 * weight * jnp.sum(spins * exch)
    vxc = vxc.reshape(dm.shape)
    terms = EnergyTerms(
        e_core=jnp.sum(total * ints.hcore),
        e_coul=0.5 * jnp.sum(total * coul),
        e_xc=e_xc,
        e_nuc=ints.e_nuc,
        e_disp=ints.e_disp,
    )
    return KohnSham(terms, coul, vxc, ints.hcore + coul + vxc)


def _exact_exchange(ints: Integrals) -> list[tuple[float, Repulsion]]:
    """Return coefficients of exact exchange that are not zero, each with its two-electron integrals."""
    record = ints.functional
    terms = [(record.exact_exchange, ints.repulsion), (record.added_at_long_range, ints.long_range)]
    return [(share, repulsion) for share, repulsion in terms if share and repulsion is not None]


def energy(
    dm: Float[Array, "*spin nao nao"], ints: Integrals, *, filled: Float[Array, "*spin nao nocc"] | None = None
) -> Float[Array, ""]:
    """Return the total Kohn–Sham energy of a density matrix, hartree.

    The derivative with respect to the density matrix is the Fock matrix. The forward pass has computed it already,
    so the derivative costs nothing.

    Args:
      dm: symmetric density matrix, electrons per AO pair; for an open shell, one for each spin.
      ints: integrals of the geometry; they hold the functional.
      filled: orbitals C with dm = C·Cᵀ, if they are known; as for `kohn_sham`.

    Raises:
      ValueError: if the density matrix does not have the shape that the integrals need.

    >>> import qptlab as ql
    >>> ints = ql.build_integrals(ql.Molecule.from_name("water"), ql.Method("pbe", "sto-3g", grid_level=0))
    >>> round(float(energy(ints.dm_guess, ints)), 3)
    -75.297
    """
    return _energy(dm, ints, filled)


@jax.custom_vjp
def _energy(
    dm: Float[Array, "*spin nao nao"], ints: Integrals, filled: Float[Array, "*spin nao nocc"] | None
) -> Float[Array, ""]:
    return kohn_sham(dm, ints, filled=filled).terms.e_tot


def _energy_forward(
    dm: Float[Array, "*spin nao nao"], ints: Integrals, filled: Float[Array, "*spin nao nocc"] | None
) -> tuple[Float[Array, ""], tuple]:
    state = kohn_sham(dm, ints, filled=filled)
    return state.terms.e_tot, (dm, ints, state.fock)


def _energy_backward(
    residuals: tuple[Float[Array, "*spin nao nao"], Integrals, Float[Array, "*spin nao nao"]], bar: Float[Array, ""]
) -> tuple[Float[Array, "*spin nao nao"], Integrals, None]:
    dm, ints, fock = residuals
    # XLA removes this where no derivative with respect to the geometry is needed.
    _, pull_back = jax.vjp(lambda ints: kohn_sham(dm, ints).terms.e_tot, ints)
    return bar * fock, pull_back(bar)[0], None


_energy.defvjp(_energy_forward, _energy_backward)


def fock(
    dm: Float[Array, "*spin nao nao"], ints: Integrals, *, filled: Float[Array, "*spin nao nocc"] | None = None
) -> Float[Array, "*spin nao nao"]:
    """Return the Kohn–Sham (Fock) matrix of a density matrix, hartree.

    Args:
      dm: symmetric density matrix, electrons per AO pair; for an open shell, one for each spin.
      ints: integrals of the geometry; they hold the functional.
      filled: orbitals C with dm = C·Cᵀ, if they are known; as for `kohn_sham`.

    Raises:
      ValueError: if the density matrix does not have the shape that the integrals need.
    """
    return kohn_sham(dm, ints, filled=filled).fock


def orbitals(
    fock: Float[Array, "*spin nao nao"], ints: Integrals
) -> tuple[Float[Array, "*spin nmo"], Float[Array, "*spin nao nmo"]]:
    """Return the orbital energies (hartree, ascending) and the orbital coefficients (columns) of a Fock matrix.

    Of the coefficients of an orbital with at least nine tenths of the largest absolute value, the first is positive.

    Do not differentiate this function: the derivative of a single orbital is singular at degeneracies. Differentiate
    `density_from_fock` instead.

    Args:
      fock: symmetric Fock matrix, hartree; for an open shell, one for each spin.
      ints: integrals of the geometry; only the orthogonaliser is read.
    """
    x = ints.orthogonaliser
    mo_energy, vectors = jnp.linalg.eigh(in_orthonormal_basis(fock, x))
    mo_coeff = x @ vectors
    size = jnp.abs(mo_coeff)
    first = jnp.argmax(size >= 0.9 * jnp.max(size, axis=-2, keepdims=True), axis=-2, keepdims=True)
    return mo_energy, jnp.where(jnp.take_along_axis(mo_coeff, first, axis=-2) < 0, -mo_coeff, mo_coeff)


def in_orthonormal_basis(
    fock: Float[Array, "*spin nao nao"], orthogonaliser: Float[Array, "nao nao"]
) -> Float[Array, "*spin nao nao"]:
    """Return XᵀFX. Orbitals that X drops have the energy `DROPPED_HARTREE`, so that they stay empty.

    Args:
      fock: Fock matrix, hartree; for an open shell, one for each spin.
      orthogonaliser: matrix X of `Integrals`.
    """
    shift = jnp.where(is_kept(orthogonaliser), 0.0, DROPPED_HARTREE)
    return orthogonaliser.T @ fock @ orthogonaliser + jnp.diag(shift)


def is_kept(orthogonaliser: Float[Array, "nao nao"]) -> Bool[Array, " nao"]:
    """Return false for the columns of X that are dropped because the basis is nearly dependent."""
    return jnp.any(orthogonaliser != 0, axis=0)


def filled_orbitals(fock: Float[Array, "*spin nao nao"], ints: Integrals) -> Float[Array, "*spin nao nocc"]:
    """Return the filled orbitals C of a Fock matrix, scaled so that the density matrix is C·Cᵀ.

    For an open shell, both spins have as many columns as the spin with more electrons needs. Columns of orbitals that
    are not filled are zero.

    Args:
      fock: symmetric Fock matrix, hartree; for an open shell, one for each spin.
      ints: integrals of the geometry; the orthogonaliser and the numbers of orbitals are read.
    """
    _, mo_coeff = orbitals(fock, ints)
    columns = max(ints.layout.nocc)
    is_filled = jnp.arange(columns) < ints.nocc[..., None]  # [*spin, nocc]
    electrons = 2.0 if ints.nocc.ndim == 0 else 1.0
    return jnp.sqrt(electrons) * mo_coeff[..., :columns] * is_filled[..., None, :]


def density_from_fock(
    fock: Float[Array, "*spin nao nao"], ints: Integrals
) -> Float[Array, "*spin nao nao"]:
    """Return the density matrix of the lowest orbitals of a Fock matrix, doubly filled in a closed shell.

    The reverse rule is first-order response theory (Helgaker, Jørgensen & Olsen 2000, ch. 10). It divides only by
    gaps between occupied and virtual levels. Degenerate occupied levels and degenerate virtual levels are therefore
    harmless. If the HOMO–LUMO gap is below `MIN_GAP_HARTREE`, the derivative is NaN.

    Args:
      fock: symmetric Fock matrix, hartree; for an open shell, one for each spin. Differentiable.
      ints: integrals of the geometry; the overlap (differentiable), the orthogonaliser and nocc are read.

    Returns:
      Density matrix, electrons per AO pair. Its trace with the overlap is the number of electrons.

    Raises:
      ValueError: if the Fock matrix does not have the shape that the integrals need.
    """
    _check_shapes(fock, ints)
    if fock.ndim == 2:
        return 2 * _projector(fock, ints.overlap, ints.orthogonaliser, ints.nocc)
    return jax.vmap(_projector, (0, None, None, 0))(fock, ints.overlap, ints.orthogonaliser, ints.nocc)


@jax.custom_vjp
def _projector(
    fock: Float[Array, "nao nao"],
    overlap: Float[Array, "nao nao"],
    orthogonaliser: Float[Array, "nao nao"],
    nocc: Int[Array, ""],
) -> Float[Array, "nao nao"]:
    """Return C_occ·C_occᵀ of the lowest orbitals of a Fock matrix."""
    return _projector_forward(fock, overlap, orthogonaliser, nocc)[0]


def _projector_forward(
    fock: Float[Array, "nao nao"],
    overlap: Float[Array, "nao nao"],
    orthogonaliser: Float[Array, "nao nao"],
    nocc: Int[Array, ""],
) -> tuple[Float[Array, "nao nao"], tuple]:
    del overlap  # the orthogonaliser contains it; it is an argument so that it has a derivative
    mo_energy, vectors = jnp.linalg.eigh(in_orthonormal_basis(fock, orthogonaliser))
    mo_coeff = orthogonaliser @ vectors
    occupied = jnp.arange(len(fock)) < nocc
    filled = mo_coeff * occupied
    return filled @ filled.T, (mo_energy, mo_coeff, occupied)


def _projector_backward(
    residuals: tuple[Float[Array, " nao"], Float[Array, "nao nao"], Bool[Array, " nao"]],
    dm_bar: Float[Array, "nao nao"],
) -> tuple[Float[Array, "nao nao"], Float[Array, "nao nao"], None, None]:
    mo_energy, mo_coeff, occupied = residuals
    response = 0.5 * mo_coeff.T @ (dm_bar + dm_bar.T) @ mo_coeff
    crossing = ~occupied[:, None] & occupied[None, :]  # [virtual, occupied]
    gap = jnp.where(crossing, mo_energy[None, :] - mo_energy[:, None], 1.0)
    is_closed = jnp.any(crossing & (gap > -MIN_GAP_HARTREE))
    rotation = jnp.where(crossing, response / jnp.where(is_closed, jnp.nan, gap), 0.0)
    fock_bar = mo_coeff @ (rotation + rotation.T) @ mo_coeff.T
    # The overlap rotates occupied and virtual orbitals by −ε_i·dS, and renormalises the occupied orbitals.
    weighted = rotation * mo_energy[None, :]
    inside = jnp.where(occupied[:, None] & occupied[None, :], response, 0.0)
    overlap_bar = -mo_coeff @ (weighted + weighted.T + inside) @ mo_coeff.T
    return fock_bar, overlap_bar, None, None


_projector.defvjp(_projector_forward, _projector_backward)


def commutator(
    fock: Float[Array, "*spin nao nao"], dm: Float[Array, "*spin nao nao"], ints: Integrals
) -> Float[Array, "*spin nao nao"]:
    """Return the commutator Xᵀ(FDS − SDF)X, hartree: the orbital gradient, zero at self-consistency (Pulay 1982).

    Args:
      fock: symmetric Fock matrix, hartree; for an open shell, one for each spin.
      dm: density matrix, electrons per AO pair; for an open shell, one for each spin.
      ints: integrals of the geometry; the overlap S and the orthogonaliser X are read.
    """
    x = ints.orthogonaliser
    fds = fock @ dm @ ints.overlap
    return x.T @ (fds - jnp.swapaxes(fds, -1, -2)) @ x


def _check_shapes(matrix: Array, ints: Integrals) -> None:
    expected = (*ints.nocc.shape, *ints.overlap.shape)
    if matrix.shape != expected:
        raise ValueError(
            f"Expected a matrix of shape {expected} for these integrals, got {matrix.shape}; use a matrix of the "
            "same molecule, basis and spin."
        )
