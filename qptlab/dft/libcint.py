"""Integrals over Gaussians from libcint, and their derivatives with respect to the nuclear positions.

This is the only module of the engine that calls PySCF; it runs on the host. `HostIntegrals` are those that only
libcint can compute, and the dispersion energy; grids, AO values and all that follows are computed on the device.
`pull_back` is the reverse derivative of `host_integrals`: Gaussians move with their atom, so ∂⟨i|j⟩/∂A is −⟨∇i|j⟩ for
i on A, and the sum over all atoms vanishes (Helgaker, Jørgensen & Olsen 2000, ch. 9).

A basis of PySCF's library that lacks the core orbitals of an element is used with the effective core potential of the
same name, which stands for the nucleus and the electrons of the core (Kahn, Baybutt & Truhlar 1976,
doi:10.1063/1.432900). The nucleus then has the charge that is left.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int
from pyscf import df, dft, gto, lib
from pyscf.dft import gen_grid, radi
from pyscf.scf import atom_hf, hf

from qptlab.dft import grid, kernel, repulsion, response
from qptlab.dft.response import KERNEL_GRID
from qptlab.errors import InputError
from qptlab.runtime import memory
from qptlab.system import basis_sets
from qptlab.system.dispersion import Correction
from qptlab.system.functional import Functional
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

AUTO_EXACT_BYTES = 128 * 2**20
"""Largest size of exact integrals with `eri="auto"` (about 90 atomic orbitals); larger ones are density-fitted."""

LINEAR_DEPENDENCE = 1e-6
"""Eigenvalue of the overlap below which an orbital of a nearly dependent basis is dropped, as in PySCF 2.14."""

ROUNDING = 1e-12
"""Largest rounding error of an eigenvalue of the overlap."""


class HostIntegrals(NamedTuple):
    """Integrals of one geometry that only libcint can compute, and the dispersion energy.

    Attributes:
      positions: nuclear positions, bohr.
      overlap: overlap matrix of the atomic orbitals.
      hcore: core Hamiltonian: kinetic energy, attraction by the nuclei, and effective core potentials, hartree.
      eri: two-electron integrals, hartree. Exact: one array, (ij|kl) with eightfold symmetry. Density-fitted: two
        arrays, (P|ij) and (P|Q).
      minao_overlap: overlap between the basis and the atomic orbitals of the `minao` guess.
      e_disp: energy of the dispersion correction, hartree; zero without one.
      response: two-electron integrals for `dft.kernel`: (P|ij), (P|Q) and, with range separation, (P|Q) of erf(ωr)/r,
        hartree; empty without a kernel.
      long_range: two-electron integrals of erf(ωr)/r, in the form of `eri`; empty without range separation.
    """

    positions: Float[np.ndarray, "natm 3"]
    overlap: Float[np.ndarray, "nao nao"]
    hcore: Float[np.ndarray, "nao nao"]
    eri: tuple[np.ndarray, ...]
    minao_overlap: Float[np.ndarray, "nao nminao"]
    e_disp: Float[np.ndarray, ""]
    response: tuple[np.ndarray, ...] = ()
    long_range: tuple[np.ndarray, ...] = ()


class Moles(NamedTuple):
    """PySCF's `Mole` objects of one molecule, and its dispersion correction.

    Attributes:
      basis: molecule in its basis.
      minao: molecule in the atomic orbitals of the `minao` guess.
      aux: molecule in the auxiliary basis; None for exact integrals.
      response: molecule in the auxiliary basis of the response; None without a kernel.
      omega: ω of range separation, per bohr; zero without.
      correction: dispersion correction; None without one.
    """

    basis: gto.Mole
    minao: gto.Mole
    aux: gto.Mole | None
    response: gto.Mole | None
    omega: float
    correction: Correction | None

    def at(self, positions: Float[np.ndarray, "natm 3"]) -> "Moles":
        """Return the same molecule at different positions, bohr."""
        aux, other = (None if mol is None else _moved(mol, positions) for mol in (self.aux, self.response))
        moved = _moved(self.basis, positions), _moved(self.minao, positions)
        return Moles(*moved, aux, other, self.omega, self.correction)

    @property
    def long_range(self) -> tuple[gto.Mole, gto.Mole | None]:
        """The molecule in its basis and in the auxiliary one, whose two-electron integrals are those of erf(ωr)/r."""
        return _attenuated(self.basis, self.omega), None if self.aux is None else _attenuated(self.aux, self.omega)


def moles(mol: Molecule, method: Method, *, with_kernel: bool = False) -> Moles:
    """Prepare a molecule for integrals, and select exact or density-fitted two-electron integrals.

    Args:
      mol: molecule.
      method: level of theory.
      with_kernel: if true, prepare the integrals for `dft.kernel` as well.

    Raises:
      InputError: if `pyscf_molecule` raises it, or the integrals do not fit into memory.
    """
    basis, correction = pyscf_molecule(mol, method), method.correction
    minao, auxiliary = _minao(basis)[0], response.auxiliary(basis) if with_kernel else None
    xc = method.functional
    if eri_form(basis.nao, method) == "exact":
        exact = exact_bytes(basis.nao, xc)
        _check_memory(exact, f"exact two-electron integrals of {basis.nao} atomic orbitals", "eri='fitted'")
        return Moles(basis, minao, None, auxiliary, xc.omega, correction)
    aux = df.addons.make_auxmol(basis, auxiliary_basis(basis, method))
    name = f"fitted integrals of {basis.nao} atomic and {aux.nao} auxiliary orbitals"
    _check_memory(fitted_bytes(basis.nao, aux.nao, xc), name, "a smaller basis")
    return Moles(basis, minao, aux, auxiliary, xc.omega, correction)


def eri_form(nao: int, method: Method) -> str:
    """Return the form of the two-electron integrals, "exact" or "fitted"; a method with `auto` leaves it open.

    Args:
      nao: number of atomic orbitals.
      method: level of theory.
    """
    if method.eri != "auto":
        return method.eri
    is_small = exact_bytes(nao, method.functional) <= AUTO_EXACT_BYTES
    return "exact" if is_small and method.auxbasis is None else "fitted"


def host_integrals(moles: Moles, threads: int | None) -> HostIntegrals:
    """Compute all integrals of one geometry.

    Args:
      moles: molecule at the geometry.
      threads: number of OpenMP threads; None for PySCF's setting.

    Raises:
      InputError: if the basis is linearly dependent at this geometry.
    """
    mol = moles.basis
    with lib.with_omp_threads(threads):
        overlap = mol.intor_symmetric("int1e_ovlp")
        _check_overlap(overlap, mol)
        return HostIntegrals(
            mol.atom_coords(), overlap, hcore=hf.get_hcore(mol),
            eri=_two_electron_integrals(mol, moles.aux),
            minao_overlap=gto.intor_cross("int1e_ovlp", mol, moles.minao),
            e_disp=np.zeros(()) if moles.correction is None else moles.correction.energy(mol),
            response=_response_integrals(moles),
            long_range=_two_electron_integrals(*moles.long_range) if moles.omega else (),
        )


def _two_electron_integrals(mol: gto.Mole, aux: gto.Mole | None) -> tuple[np.ndarray, ...]:
    if aux is not None:
        return _fitted_integrals(mol, aux)
    npair = mol.nao * (mol.nao + 1) // 2
    return (mol.intor("int2e", aosym="s8", out=_aligned(npair * (npair + 1) // 2)),)


def _fitted_integrals(mol: gto.Mole, aux: gto.Mole) -> tuple[np.ndarray, ...]:
    """Return (P|ij) over pairs i ≥ j, and (P|Q), hartree."""
    int3c = df.incore.aux_e2(mol, aux, "int3c2e", aosym="s2ij")
    factors = _aligned(*int3c.T.shape)
    factors[...] = int3c.T
    return factors, aux.intor_symmetric("int2c2e")


def _response_integrals(moles: Moles) -> tuple[np.ndarray, ...]:
    if moles.response is None:
        return ()
    integrals = _fitted_integrals(moles.basis, moles.response)
    if not moles.omega:
        return integrals
    return *integrals, _attenuated(moles.response, moles.omega).intor_symmetric("int2c2e")


def _aligned(*shape: int) -> np.ndarray:
    """Return an empty array that starts at a multiple of 64 bytes, which XLA uses on a CPU without a copy."""
    raw = np.empty(8 * math.prod(shape) + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 8 * math.prod(shape)].view(np.float64).reshape(shape)


def pull_back(moles: Moles, bar: HostIntegrals) -> Float[np.ndarray, "natm 3"]:
    """Apply the reverse derivative of `host_integrals` with respect to the positions.

    Args:
      moles: molecule at the geometry.
      bar: derivatives of a number with respect to each integral.

    Returns:
      Derivative of the number with respect to the positions, per bohr.
    """
    mol = moles.basis
    ao_atom = _function_atom(mol)
    one_electron = mol.intor("int1e_ipkin") + mol.intor("int1e_ipnuc")
    if mol.has_ecp():
        one_electron += mol.intor("ECPscalar_ipnuc")
    slopes = _bra(mol.intor("int1e_ipovlp"), bar.overlap + bar.overlap.T)
    slopes += _bra(one_electron, bar.hcore + bar.hcore.T)
    slopes += _bra(gto.intor_cross("int1e_ipovlp", mol, moles.minao), bar.minao_overlap)
    total = _by_atom(slopes, ao_atom, mol.natm)
    minao_slopes = _bra(gto.intor_cross("int1e_ipovlp", moles.minao, mol), bar.minao_overlap.T)
    total += _by_atom(minao_slopes, _function_atom(moles.minao), mol.natm)
    total += _nuclei_slopes(mol, bar.hcore + bar.hcore.T)
    total += _two_electron_slopes(mol, moles.aux, bar.eri)
    if moles.omega:
        total += _two_electron_slopes(*moles.long_range, bar.long_range)
    if moles.correction is not None:
        total += bar.e_disp * moles.correction.gradient(mol)
    return np.asarray(bar.positions) + total


def _bra(
    derivative: Float[np.ndarray, "3 nbra nket"], weight: Float[Array | np.ndarray, "nbra nket"]
) -> Float[np.ndarray, "3 nbra"]:
    """Return −⟨∇i|…|j⟩·w_ij, summed over j."""
    return -np.einsum("xij,ij->xi", derivative, weight)


def _by_atom(
    slopes: Float[np.ndarray, "3 nfunction"], function_atom: Int[np.ndarray, " nfunction"], natm: int
) -> Float[np.ndarray, "natm 3"]:
    """Sum the contributions of all functions of each atom."""
    total = np.zeros((natm, 3))
    np.add.at(total, function_atom, slopes.T)
    return total


def _function_atom(mol: gto.Mole) -> Int[np.ndarray, " nao"]:
    """Return the index of the atom of each function."""
    return np.array([label[0] for label in mol.ao_labels(fmt=False)])


def _nuclei_slopes(mol: gto.Mole, weight: Float[Array | np.ndarray, "nao nao"]) -> Float[np.ndarray, "natm 3"]:
    """Return the derivative of the attraction by a nucleus, and of its core potential, if these two move.

    It is as if all Gaussians moved backwards.
    """
    total, with_potential = np.zeros((mol.natm, 3)), set(mol._ecpbas[:, gto.ATOM_OF])
    for atom in range(mol.natm):
        with mol.with_rinv_at_nucleus(atom):  # of core potentials as well: then only that of this atom counts
            derivative = -mol.atom_charge(atom) * mol.intor("int1e_iprinv")
            if atom in with_potential:
                derivative += mol.intor("ECPscalar_iprinv")
        total[atom] = np.einsum("xij,ij->x", derivative, weight)
    return total


def _two_electron_slopes(
    mol: gto.Mole, aux: gto.Mole | None, bar: tuple[np.ndarray, ...]
) -> Float[np.ndarray, "natm 3"]:
    """Return the derivative of two-electron integrals."""
    if aux is not None:
        return _fitted_slopes(mol, aux, *bar)
    return _by_atom(_exact_slopes(mol, bar[0]), _function_atom(mol), mol.natm)


def _exact_slopes(mol: gto.Mole, packed: Float[Array | np.ndarray, " npack"]) -> Float[np.ndarray, "3 nao"]:
    """Return the derivative of exact two-electron integrals.

    The four indices of (ij|kl) give equal contributions. One shell i is processed at a time, to bound memory.
    """
    nao = mol.nao
    rows, cols = np.tril_indices(nao)
    weight = lib.unpack_tril(np.asarray(packed))  # over pairs of pairs; elements off the diagonal appear twice
    weight *= 0.5
    weight[np.diag_indices(len(rows))] *= 2
    pair = np.zeros((nao, nao), dtype=int)
    pair[rows, cols] = pair[cols, rows] = np.arange(len(rows))
    once = np.where(np.eye(nao, dtype=bool), 1.0, 0.5)
    slopes = np.zeros((3, nao))
    starts = mol.ao_loc_nr()
    for shell in range(mol.nbas):
        functions = slice(starts[shell], starts[shell + 1])
        part = (shell, shell + 1) + (0, mol.nbas) * 3
        derivative = mol.intor("int2e_ip1", aosym="s2kl", shls_slice=part)  # [3, ni, nao, npair]
        factors = weight[pair[functions]] * once[functions, :, None]
        slopes[:, functions] = -4 * np.einsum("xijp,ijp->xi", derivative, factors)
    return slopes


def _fitted_slopes(
    mol: gto.Mole,
    aux: gto.Mole,
    int3c_bar: Float[Array | np.ndarray, "naux npair"],
    int2c_bar: Float[Array | np.ndarray, "naux naux"],
) -> Float[np.ndarray, "natm 3"]:
    """Return the derivative of density-fitted integrals.

    Moving all three functions of (P|ij) changes nothing, so the derivative for P follows from those for i and j.
    """
    ao_atom, aux_atom = _function_atom(mol), _function_atom(aux)
    weight = lib.unpack_tril(np.asarray(int3c_bar))  # [naux, nao, nao]
    weight[:, np.arange(mol.nao), np.arange(mol.nao)] *= 2
    total = np.zeros((mol.natm, 3))
    starts = mol.ao_loc_nr()
    combined = mol + aux
    for shell in range(mol.nbas):
        functions = slice(starts[shell], starts[shell + 1])
        part = (shell, shell + 1, 0, mol.nbas, mol.nbas, mol.nbas + aux.nbas)
        derivative = combined.intor("int3c2e_ip1", shls_slice=part)  # [3, ni, nao, naux]
        slopes = -np.einsum("xijp,pij->xip", derivative, weight[:, functions])
        total += _by_atom(slopes.sum(axis=2), ao_atom[functions], mol.natm)
        total -= _by_atom(slopes.sum(axis=1), aux_atom, mol.natm)
    metric = _bra(aux.intor("int2c2e_ip1"), np.asarray(int2c_bar) + np.asarray(int2c_bar).T)
    return total + _by_atom(metric, aux_atom, mol.natm)


# PySCF's records of a molecule ---------------------------------------------------------------------


def pyscf_molecule(mol: Molecule, method: Method) -> gto.Mole:
    """Return PySCF's `Mole` of a molecule, with spherical AOs, core potentials, and without symmetry.

    Args:
      mol: molecule.
      method: level of theory; only the basis is read.

    Raises:
      InputError: if PySCF lacks the basis for an element, a shell is beyond f, a basis without core orbitals has no
        core potential, or the electrons outside of the cores cannot have the charge and spin.
    """
    basis_sets.check_files((method.basis, method.auxbasis))
    basis = {symbol: _basis_shells(method.basis, symbol) for symbol in sorted(set(mol.symbols))}
    occupied(mol, method)
    potentials = {symbol: potential for symbol in basis if (potential := _core_potential(method.basis, symbol))}
    built = gto.M(
        atom=list(zip(mol.symbols, mol.positions.tolist(), strict=True)),
        basis=basis, ecp=potentials, charge=mol.charge, spin=mol.spin, unit="Bohr", verbose=0,
    )
    if max(shell[0] for shells in basis.values() for shell in shells) > grid.MAX_L:
        raise InputError(
            f"Expected a basis with shells up to f for {mol.formula}, got {method.basis!r} with shells beyond f; use "
            "def2-svp."
        )
    return built


def occupied(mol: Molecule, method: Method) -> tuple[int, ...]:
    """Return the number of filled orbitals: one number for a closed shell, else one for each spin, the larger first.

    Args:
      mol: molecule.
      method: level of theory. Its core potentials stand for some of the electrons.

    Raises:
      InputError: if the electrons outside of the cores cannot have the charge and spin.
    """
    in_cores = sum(
        potential[0] for symbol in mol.symbols if (potential := _core_potential(method.basis, symbol))
    )
    electrons, spin = mol.nelectron - in_cores, cast(int, mol.spin)  # the spin is known once the record is made
    if electrons < max(1, spin):
        raise InputError(
            f"Expected a charge and spin that the electrons outside of the cores allow, got charge {mol.charge} and "
            f"{spin} unpaired electrons for {mol.formula}, of whose electrons the core potentials of "
            f"{method.basis!r} leave {max(0, electrons)}; use a smaller charge or spin, or an all-electron basis."
        )
    return ((electrons + spin) // 2, (electrons - spin) // 2)[: 2 if spin else 1]


@functools.cache
def _core_potential(name: str, symbol: str) -> list | None:
    """Return the number of electrons and the terms of the core potential of the same name as a basis, if any."""
    return _from_library(gto.basis.load_ecp, basis_sets.without_contraction(name), symbol) or None


def _basis_shells(name: str, symbol: str) -> list:
    """Return the shells of a basis for an element from PySCF's library."""
    shells = _from_library(gto.basis.load, name, symbol)
    if not shells:
        raise InputError(
            f"Expected a basis in PySCF's library for element {symbol}, got {name!r}, which lacks it; use sto-3g, "
            "6-31g*, def2-svp or cc-pvdz."
        )
    if not _core_potential(name, symbol) and not _holds_core(name, symbol):
        raise InputError(
            f"Expected an all-electron basis, or one with a core potential of the same name in PySCF's library, got "
            f"{name!r}, which lacks the core orbitals of element {symbol}: it is made for a different potential or "
            "for density fitting; use def2-svp."
        )
    return shells


@functools.cache
def _holds_core(name: str, symbol: str) -> bool:
    """Return True if the lowest level of one electron at the nucleus is that of a 1s orbital, −Z²/2 hartree."""
    shells = gto.basis.load(name, symbol)
    with np.errstate(all="ignore"):  # one record of PySCF's library has a function that is zero
        atom = gto.M(atom=[(symbol, (0.0, 0.0, 0.0))], basis={symbol: shells}, spin=None, verbose=0)
    hcore = atom.intor_symmetric("int1e_kin") + atom.intor_symmetric("int1e_nuc")
    overlap = atom.intor_symmetric("int1e_ovlp")
    if not np.isfinite(overlap).all():
        return False
    lowest = scipy.linalg.eigh(hcore, overlap, eigvals_only=True)[0]
    return bool(lowest < -MIN_CORE * gto.charge(symbol) ** 2 / 2)


def _from_library(library: Callable[[str, str], Any], name: str, symbol: str) -> Any:
    """Return an entry of PySCF's library; None if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF recommends a different package for unknown names
            return library(name, symbol)
    except (KeyError, RuntimeError, ValueError, OSError, AttributeError, TypeError, AssertionError):
        return None


def auxiliary_basis(mol: gto.Mole, method: Method) -> str | dict:
    """Return the auxiliary basis of a method; by default PySCF's for the basis and the functional.

    Args:
      mol: PySCF's record of the molecule.
      method: level of theory.

    Raises:
      InputError: if PySCF lacks the auxiliary basis for an element, or for its core orbitals.
    """
    if method.auxbasis is None:
        named = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
        named.basis = method.basis  # PySCF chooses by the name
        fit = df.addons.make_auxbasis(named, xc="hf" if method.functional.is_hybrid else "pbe")
        return _with_cores(mol, fit)
    if (ratio := basis_sets.even_tempered_ratio(method.auxbasis)) is not None:
        return df.addons.aug_etb(mol, beta=ratio)
    for symbol in sorted({atom[0] for atom in mol._atom}):
        if not _from_library(gto.basis.load, method.auxbasis, symbol):
            raise InputError(
                f"Expected an auxiliary basis in PySCF's library for element {symbol}, got {method.auxbasis!r}, "
                "which lacks it; use def2-universal-jkfit."
            )
    if cores := _heavy_cores(mol):
        raise InputError(
            f"Expected an even-tempered auxiliary basis for the core orbitals of {', '.join(sorted(cores))}, got "
            f"{method.auxbasis!r}, which is made for core potentials; use etb-1.8, or def2-svp as basis."
        )
    return method.auxbasis


MAX_CORE = 36
"""Heaviest element (Kr) for which the library's auxiliary bases have functions for the core orbitals."""


def _heavy_cores(mol: gto.Mole) -> set[str]:
    """Return the elements whose core orbitals the library's auxiliary bases cannot describe."""
    return {atom[0] for atom in mol._atom if gto.charge(atom[0]) > MAX_CORE and atom[0] not in mol._ecp}


def _with_cores(mol: gto.Mole, auxbasis: dict) -> dict:
    """Return an auxiliary basis with even-tempered functions for elements that need functions for their core.

    With PySCF's default, the energy of Rb⁺ in HF/STO-3G is wrong by 80 hartree.
    """
    cores = _heavy_cores(mol)
    if not cores:
        return auxbasis
    return auxbasis | {symbol: shells for symbol, shells in df.addons.aug_etb(mol).items() if symbol in cores}


MIN_CORE = 0.9
"""Smallest share of the exact energy of one electron at the nucleus in an all-electron basis."""

POTENTIAL_AUXBASIS = "def2-universal-jkfit"
"""Auxiliary basis of densities whose electrostatic potential is computed. With smaller ones, the charge is wrong by a
hundredth of an electron."""

POTENTIAL_POINTS = 4096
"""Number of points at which the electrostatic potential is computed at a time."""


def electrostatic_potential(
    mol: Molecule, method: Method, dm: Float[np.ndarray, "nao nao"], points: Float[np.ndarray, "npoint 3"]
) -> Float[np.ndarray, " npoint"]:
    """Return the electrostatic potential of nuclei and electrons at points, hartree per elementary charge.

    The density of the electrons is fitted by an auxiliary basis (Whitten 1973, doi:10.1063/1.1679012). The error of
    the potential is second order in the error of the fit.

    Args:
      mol: geometry.
      method: level of theory.
      dm: total density matrix, electrons per AO pair.
      points: points, bohr; none of them may be a nucleus.

    Raises:
      InputError: if `pyscf_molecule` raises it.
    """
    basis = pyscf_molecule(mol, method)
    default = _with_cores(basis, dict.fromkeys(mol.symbols, POTENTIAL_AUXBASIS))
    aux = df.addons.make_auxmol(basis, auxiliary_basis(basis, method) if method.auxbasis else default)
    doubled = 2 * dm - np.diag(np.diag(dm))  # the sum below visits each pair once
    int3c = df.incore.aux_e2(basis, aux, "int3c2e", aosym="s2ij")
    fit = np.linalg.solve(aux.intor_symmetric("int2c2e"), doubled[np.tril_indices(basis.nao)] @ int3c)
    potential = np.empty(len(points))
    for start in range(0, len(points), POTENTIAL_POINTS):
        part = points[start : start + POTENTIAL_POINTS]
        distance = np.linalg.norm(part[:, None] - basis.atom_coords(), axis=-1)
        charges = gto.fakemol_for_charges(part)
        electrons = fit @ gto.intor_cross("int2c2e", aux, charges)
        potential[start : start + POTENTIAL_POINTS] = (1 / distance) @ basis.atom_charges() - electrons
    return potential


def dipole_integrals(mol: gto.Mole) -> Float[np.ndarray, "3 nao nao"]:
    """Return the position integrals ⟨i|r|j⟩ about the origin, bohr."""
    return mol.intor_symmetric("int1e_r", comp=3)


def _moved(mol: gto.Mole, positions: Float[np.ndarray, "natm 3"]) -> gto.Mole:
    """Return a copy at different positions. `_env` holds the coordinates, so nothing is parsed again."""
    moved = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
    moved._env = mol._env.copy()
    moved._env[mol._atm[:, gto.PTR_COORD, None] + np.arange(3)] = positions
    return moved


def _attenuated(mol: gto.Mole, omega: float) -> gto.Mole:
    """Return a copy whose two-electron integrals are those of erf(ωr)/r."""
    attenuated = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
    attenuated._env = mol._env.copy()
    attenuated.set_range_coulomb(omega)
    return attenuated


def minao_occupation(mol: gto.Mole) -> Float[np.ndarray, " nminao"]:
    """Return the number of electrons in each atomic orbital of the `minao` guess."""
    return _minao(mol)[1]


def _minao(mol: gto.Mole) -> tuple[gto.Mole, np.ndarray]:
    """Return the atomic orbitals and occupations that PySCF's `minao` guess projects on the basis.

    PySCF computes them inside `init_guess_by_minao`, and returns only the result at one geometry. Stored separately,
    a new geometry costs one overlap integral. A test checks that both guesses are equal.
    """
    elements = {symbol: _minao_shells(mol, symbol) for symbol in {atom[0] for atom in mol._atom}}
    minao = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
    minao._atm, minao._bas, minao._env = minao.make_env(
        mol._atom, {symbol: shells for symbol, (shells, _) in elements.items()}, []
    )
    return minao, np.concatenate([elements[atom[0]][1] for atom in mol._atom])


def _minao_shells(mol: gto.Mole, symbol: str) -> tuple[list, np.ndarray]:
    """Return the occupied atomic orbitals of an element, and their spherically averaged occupations.

    They are atomic natural orbitals without those of the core that a potential stands for; or, as in PySCF, the first
    functions of the basis, if it is made for the potential and they are atomic orbitals as well.
    """
    core = mol._ecp[symbol][0] if symbol in mol._ecp else 0
    in_core = gto.ecp.core_configuration(core, atom_symbol=symbol)
    natural, first, occupation = [], [], []
    for l, *rows in gto.basis.load("ano", symbol)[: grid.MAX_L + 1]:
        doubly, fraction = atom_hf.frac_occ(symbol, l)
        filled = [2.0] * (doubly - in_core[l]) + [fraction] * (fraction > 0)
        if filled:
            start = 1 + in_core[l]
            natural.append([l] + [row[:1] + row[start : start + len(filled)] for row in rows])
            occupation.append(np.repeat(filled, 2 * l + 1))
        if filled and core:
            first += _functions(mol._basis[symbol], l)[: len(filled)]
    electrons = np.concatenate(occupation)
    if not core:
        return natural, electrons
    if round(sum(electrons)) != gto.charge(symbol) - core or sum(2 * l + 1 for l, *_ in first) != len(electrons):
        raise InputError(
            f"Expected a core and a basis that hold all occupied shells of the free atom, got a core of {core} "
            f"electrons and different shells for element {symbol}; use a different basis, such as def2-svp."
        )
    return first if _is_same_space(symbol, first, natural) else natural, electrons


def _functions(shells: list, l: int) -> list:
    """Return the contracted functions of one angular momentum, each as a shell of its own."""
    return [
        [l] + [[row[0], row[k]] for row in rows]
        for angular, *rows in shells if angular == l for k in range(1, len(rows[0]))
    ]


MIN_DETERMINANT = 0.1
"""Smallest determinant of the overlaps of two sets of atomic orbitals that PySCF's `minao` guess takes for equal."""


def _is_same_space(symbol: str, first: list, second: list) -> bool:
    """Return True if two sets of as many functions of an atom span nearly the same space."""
    one, other = (gto.M(atom=[(symbol, (0.0, 0.0, 0.0))], basis={symbol: shells}, spin=None, verbose=0)
                  for shells in (first, second))
    return bool(abs(np.linalg.det(gto.intor_cross("int1e_ovlp", one, other))) > MIN_DETERMINANT)


def atomic_density(mol: gto.Mole) -> Float[np.ndarray, "nao nao"]:
    """Return the density matrix of a superposition of spherical atoms, each from a Hartree–Fock calculation."""
    with lib.with_omp_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PySCF calls a function that it deprecates
        return np.asarray(hf.init_guess_by_atom(mol))


def atomic_potential(mol: gto.Mole) -> Float[np.ndarray, "nao nao"]:
    """Return the Fock matrix of a superposition of screened atomic potentials, hartree.

    See Lehtola 2019, doi:10.1021/acs.jctc.8b01089.

    Raises:
      InputError: if the basis has core potentials; the tables of atomic potentials are for all electrons.
    """
    if mol.has_ecp():
        raise InputError(
            f"Expected an all-electron basis for the guess 'atomic-potential', got core potentials for "
            f"{', '.join(sorted(mol._ecp))}; use 'minao' or 'atomic-density'."
        )
    mf = dft.UKS(mol)  # accepts any number of electrons, and gives the same matrix for both spins
    mf.grids.level = 1
    with lib.with_omp_threads(1):
        return mol.intor_symmetric("int1e_kin") + np.asarray(mf.get_vsap()[0])


def atomic_orbitals(mol: gto.Mole) -> grid.Basis:
    """Return the basis, with shells in groups so that the device does few and large array operations."""
    groups: dict[tuple[int, int], list] = {}
    starts = mol.ao_loc_nr()
    for ib in range(mol.nbas):
        l = mol.bas_angular(ib)
        exponents = mol.bas_exp(ib)
        coefficients = mol.bas_ctr_coeff(ib) * gto.gto_norm(l, exponents)[:, None]
        for ic in range(mol.bas_nctr(ib)):
            used = coefficients[:, ic] != 0
            ao = starts[ib] + ic * (2 * l + 1) + np.arange(2 * l + 1)
            entry = (mol.bas_atom(ib), exponents[used], coefficients[used, ic], ao)
            groups.setdefault((l, int(used.sum())), []).append(entry)
    return grid.basis_of(tuple(
        grid.ShellGroup(*(np.array(column) for column in zip(*entries, strict=True)))
        for _, entries in sorted(groups.items())
    ))


def nuclear_charges(mol: gto.Mole) -> Float[np.ndarray, " natm"]:
    """Return the charges of the nuclei, without the electrons of their core potentials, elementary charges."""
    return mol.atom_charges().astype(np.float64)


def kernel_template(moles: Moles) -> kernel.KernelTemplate | None:
    """Return coarse point clouds and the auxiliary basis of the response; None without a kernel."""
    if moles.response is None:
        return None
    return kernel.KernelTemplate(grid_template(moles.basis, KERNEL_GRID), atomic_orbitals(moles.response))


def grid_template(mol: gto.Mole, level: int | tuple[int, int] | None) -> grid.GridTemplate:
    """Return PySCF's atomic point clouds: Treutler–Ahlrichs radii, Lebedev angles, NWChem's pruning.

    Args:
      mol: PySCF's record of the molecule.
      level: PySCF's grid level; numbers of radial shells and of angular points of each atom, for a grid without
        pruning; None for a grid without points.
    """
    if level is None:
        empty = np.zeros((0, 3))
        return grid.GridTemplate(empty, empty[:, 0], empty[:, 0].astype(int), np.zeros((mol.natm, mol.natm)))
    choice = {"level": level, "prune": gen_grid.nwchem_prune} if isinstance(level, int) else {
        "atom_grid": level, "prune": None,
    }
    tables = gen_grid.gen_atomic_grids(mol, radi_method=radi.treutler, **choice)
    clouds = [tables[mol.atom_symbol(i)] for i in range(mol.natm)]
    adjust = radi.treutler_atomic_radii_adjust(mol, radi.BRAGG_RADII)
    return grid.GridTemplate(
        offsets=np.concatenate([points for points, _ in clouds]),
        volumes=np.concatenate([volumes for _, volumes in clouds]),
        owner=np.repeat(np.arange(mol.natm), [len(volumes) for _, volumes in clouds]),
        # The function g + a·(1 − g²) at g = 0 is a.
        size_adjustment=np.array(
            [[float(adjust(i, j, 0.0)) for j in range(mol.natm)] for i in range(mol.natm)]
        ),
    )


# Memory and linear dependence -----------------------------------------------------------------------


def exact_bytes(nao: int, xc: Functional) -> int:
    """Return the memory of the exact two-electron integrals of one geometry, packed by libcint and arranged, bytes.

    Args:
      nao: number of atomic orbitals.
      xc: functional. With exact exchange, the integrals are arranged for it as well; with range separation, there
        are those of erf(ωr)/r, too.

    >>> import qptlab as ql
    >>> exact_bytes(7, ql.FUNCTIONALS["pbe"])
    9520
    """
    npair = nao * (nao + 1) // 2
    rows, ntile = repulsion.tiling(npair)
    is_separated, has_exchange = xc.omega > 0, xc.exact_exchange > 0
    packed, arranged = 1 + is_separated, 1 + has_exchange + is_separated
    return 8 * (packed * (npair * (npair + 1) // 2) + arranged * ntile * rows**2)


def fitted_bytes(nao: int, naux: int, xc: Functional) -> int:
    """Return the memory of density-fitted integrals of one geometry, before and after the fit, bytes.

    Args:
      nao: number of atomic orbitals.
      naux: number of auxiliary orbitals.
      xc: functional. With range separation, there are the integrals of erf(ωr)/r, too.
    """
    return 8 * naux * (nao * (nao + 1) + naux) * (2 if xc.omega else 1)


def _check_memory(nbytes: int, name: str, alternative: str) -> None:
    if nbytes > memory.memory_bytes():
        raise InputError(
            f"Expected integrals of at most {memory.memory_bytes() / 2**30:.1f} GiB, half of the memory, got {name}, "
            f"which take {nbytes / 2**30:.1f} GiB; use {alternative}."
        )


def _check_overlap(overlap: np.ndarray, mol: gto.Mole) -> None:
    values = np.linalg.eigvalsh(overlap)
    kept = int(np.sum(values > LINEAR_DEPENDENCE))
    if kept < max(mol.nelec) or values[0] < -ROUNDING:
        raise InputError(
            f"The basis is linearly dependent at this geometry of {mol.natm} atoms: {kept} of {len(values)} orbitals "
            "are independent; use a smaller basis or atoms farther apart."
        )
