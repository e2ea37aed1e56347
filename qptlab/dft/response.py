"""Response of the electrons to a Fock matrix that is not self-consistent, from approximate integrals.

The lowest orbitals of a Fock matrix F[D] have a density other than D, and F lacks the potential of the electrons that
move. The density D + M is self-consistent, to first order of the Fock matrix in M, if

    M = density of (F[D] + 𝒦·M) − D.

𝒦 is the derivative of the Fock matrix with respect to the density. Second-order SCF methods use the exact 𝒦 (Bacskay
1981, doi:10.1016/0301-0104(81)85156-7), whose product with a density costs as much as a Fock matrix. Here 𝒦 is
approximate and cheap: its Coulomb and exchange parts have integrals that are fitted to the s, p and d functions of an
auxiliary basis (Weigend 2006, doi:10.1039/b515623h), and its exchange–correlation part is that of LDA on a coarse
grid. Newton's method solves the equations; no Fock matrix is built. The error of 𝒦 matters only while electrons still
move, so a converged SCF is the same as without it.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float
from pyscf import df, dft, gto, lib
from pyscf.dft.rks import KohnShamDFT
from pyscf.scf import diis, hf, uhf
from pyscf.soscf.newton_ah import _CIAH_SOSCF

from qptlab.errors import InputError

AUXILIARY_BASIS, MAX_ANGULAR_MOMENTUM, MAX_ATOMIC_NUMBER = "def2-universal-jfit", 2, 86
"""Auxiliary basis: its name, its largest angular momentum that is used, and the heaviest element that it has."""

KERNEL_GRID = 20, 50
"""Radial shells and angular points of each atom in the grid of the exchange–correlation kernel."""

MIN_OVERLAP = 1e-8
"""Smallest eigenvalue of the overlap matrix whose inverse is used."""

LINEAR_DEPENDENCE = 1e-9
"""Smallest eigenvalue of the repulsion of the auxiliary functions that is used, relative to the largest."""

MIN_DENSITY = 1e-7
"""Smallest density, electrons per bohr³, at which the exchange–correlation kernel is not neglected."""

MAX_STEPS = 5
"""Largest number of diagonalisations for one Fock matrix."""

MAX_EXCHANGE_STEPS = 8
"""Largest number of iterations of the exchange in one step of Newton's method; two with 20 % exact exchange."""

SMALL_HARTREE = 5e-4
"""Coulomb energy of the density that is missing in M, below which one more step of Newton's method is enough."""

SUFFICIENT_DECREASE = 0.7
"""Largest ratio of that energy to the last one; after a larger one the step is halved."""

MIN_OCCUPATION = 1e-4
"""Smallest occupation of a natural orbital, electrons, whose exchange is not neglected."""

GRID_BLOCK = 4096
"""Number of grid points that are treated together."""

MIN_GAP_HARTREE = 0.01
"""Smallest difference of orbital energies in the response."""

EXCHANGE_TOLERANCE = 1e-2
"""Largest relative change, squared, in the last iteration of the exchange."""

ROUNDING = 1e-5
"""Relative rounding error of the response of independent electrons, in single precision."""

MIN_STIFFNESS = 0.2
"""Smallest eigenvalue, relative to independent electrons, of the second derivative of the energy."""


class _Levels(NamedTuple):
    """Orbitals of one spin.

    Attributes:
      filled, empty: coefficients of the orbitals.
      gap: energies of empty orbitals minus those of filled ones, hartree.
      half: fitted integrals of an atomic orbital, of each auxiliary function and each filled orbital.
      pairs: fitted integrals of pairs of a filled and an empty orbital.
    """

    filled: Float[np.ndarray, "nao nocc"]
    empty: Float[np.ndarray, "nao nvir"]
    gap: Float[np.ndarray, "nocc nvir"]
    half: Float[np.ndarray, "nao m"]
    pairs: Float[np.ndarray, "naux nocc nvir"]


class _Moved(NamedTuple):
    """Change of the density, and what its potential is computed from.

    Attributes:
      dm: change of the density matrix of each spin, electrons per AO pair.
      fitted: its coefficients in the orthonormal auxiliary basis.
      exchange: its exact exchange, hartree.
    """

    dm: Float[np.ndarray, "nspin nao nao"]
    fitted: Float[np.ndarray, "nspin naux"]
    exchange: Float[np.ndarray, "nspin nao nao"]

    def plus(self, other: "_Moved", factor: float = 1.0) -> "_Moved":
        """Return the sum of this change and a multiple of another."""
        return _Moved(*(mine + factor * theirs for mine, theirs in zip(self, other, strict=True)))


class _Share(NamedTuple):
    """Shares of exact exchange of a functional; those of Hartree–Fock by default.

    Attributes:
      short: coefficient at short range, or everywhere.
      long: coefficient at long range.
      omega: ω of range separation, per bohr; zero without.
    """

    short: float = 1.0
    long: float = 1.0
    omega: float = 0.0

    @classmethod
    def of(cls, mf: KohnShamDFT, spin: int) -> "_Share":
        """Return the shares of the functional of a mean field with a number of unpaired electrons."""
        omega, long, short = mf._numint.rsh_and_hybrid_coeff(mf.xc, spin)
        return cls(short, long if omega else short, omega)

    @property
    def lda(self) -> str:
        """PySCF's name of LDA without the exchange that is exact."""
        separated = f" + {self.long - self.short}*lda_x_erf" if self.omega else ""
        return f"{1 - self.long}*lda{separated},vwn"

    def repulsion(
        self, aux: gto.mole.MoleBase, basis: Float[np.ndarray, "nfunction naux"]
    ) -> float | Float[np.ndarray, "naux naux"] | None:
        """Return the repulsion of orthonormal auxiliary functions in exact exchange, hartree.

        It is a matrix with range separation, a multiple of the unit matrix without, and None for no exact exchange.
        """
        if not self.omega:
            return self.short or None
        with aux.with_range_coulomb(self.omega):
            long_range = basis.T @ aux.intor("int2c2e") @ basis
        return (self.short * np.eye(len(long_range)) + (self.long - self.short) * long_range).astype(np.float32)


class Response:
    """Approximate derivative 𝒦 of the Fock matrix of a mean field with respect to the density.

    Args:
      mf: restricted or unrestricted mean field.
      dm: density at which the exchange–correlation part of 𝒦 is taken; for an open shell, one for each spin.
    """

    def __init__(self, mf: hf.SCF, dm: Float[np.ndarray, "*spin nao nao"]):
        mole = mf.mol
        dms = _by_spin(dm)
        self._nspin = len(dms)
        self._electrons = 2.0 / self._nspin
        aux = auxiliary(mole)
        values, vectors = np.linalg.eigh(aux.intor("int2c2e"))
        is_large = values > LINEAR_DEPENDENCE * values[-1]
        basis = vectors[:, is_large] / np.sqrt(values[is_large])  # orthonormal for the Coulomb repulsion
        self._fit = basis.T @ df.incore.aux_e2(mole, aux, aosym="s2ij").T  # [naux, npair]
        # [nao, naux, nao]: so products with orbitals, and of two such products, are matrix products. Single precision
        # is far below the other approximations.
        self._square = np.asarray(lib.unpack_tril(self._fit)).transpose(1, 0, 2).astype(np.float32, order="C")
        share = _Share()
        naux = len(self._fit)
        kernel = np.tile(np.eye(naux), (self._nspin, self._nspin, 1, 1))
        if isinstance(mf, KohnShamDFT) and mf._numint._xc_type(mf.xc) != "HF":
            share = _Share.of(mf, mole.spin)
            kernel += _lda_kernel(mole, dms, aux, basis, share)
        self._exact_exchange = share.repulsion(aux, basis)
        self._kernel = kernel.transpose(0, 2, 1, 3).reshape(self._nspin * naux, -1)

    @staticmethod
    def nbytes(mole: gto.mole.MoleBase, nspin: int) -> int:
        """Return the memory that the response of a molecule needs at most, bytes."""
        naux, nao, nocc = auxiliary(mole).nao, mole.nao, max(mole.nelec)
        return 8 * naux * (2 * nao**2 + 3 * nspin * nao * nocc + 4 * nspin**2 * naux)

    @functools.cached_property
    def _positive_kernel(self) -> Float[np.ndarray, "n n"]:
        """The kernel without the part of its negative eigenvalues."""
        energies, vectors = np.linalg.eigh(self._kernel)
        return (vectors * np.maximum(energies, 0.0)) @ vectors.T

    def fock(
        self, mf: hf.SCF, fock: Float[np.ndarray, "*spin nao nao"], dm: Float[np.ndarray, "*spin nao nao"],
        overlap: Float[np.ndarray, "nao nao"], orthonormal: Float[np.ndarray, "nao nmo"] | None = None,
    ) -> Float[np.ndarray, "*spin nao nao"]:
        """Return the Fock matrix with the potential of the electrons that move when it is diagonalised.

        If Newton's method finds no better density, the Fock matrix is returned as it is.

        Args:
          mf: the mean field, which diagonalises.
          fock: symmetric Fock matrix of `dm`, hartree; for an open shell, one for each spin.
          dm: density matrix, electrons per AO pair; it need not be idempotent.
          overlap: overlap matrix.
          orthonormal: orthonormal basis in which the mean field diagonalises, if it is smaller than the AO basis.
        """
        focks, dms = _by_spin(fock), _by_spin(dm)
        zero = np.zeros_like(focks)
        moved = accepted = update = _Moved(zero, np.zeros((self._nspin, len(self._fit))), zero)
        best, length, kernel = np.inf, 1.0, self._kernel
        for _ in range(MAX_STEPS):
            levels = self._levels(mf, focks + self._potential(moved, kernel), overlap, orthonormal)
            new = np.array([self._electrons * spin.filled @ spin.filled.T for spin in levels])
            missing = new - dms - moved.dm
            fitted = self._fitted(missing)
            size = 0.5 * np.sum(fitted**2)
            if size < SUFFICIENT_DECREASE * best:
                best, length, accepted = size, 1.0, moved
                kernel, update = self._step(levels, _Moved(missing, fitted, zero), overlap, size)
            else:
                length *= 0.5
            moved = accepted.plus(update, length)
            if size < SMALL_HARTREE:
                break
        else:
            moved = accepted
        return (focks + self._potential(moved, kernel)).reshape(np.shape(fock))

    def _potential(self, moved: _Moved, kernel: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "nspin nao nao"]:
        """Return 𝒦·M, hartree."""
        coefficients = (kernel @ moved.fitted.ravel()).reshape(moved.fitted.shape)
        return np.asarray(lib.unpack_tril(coefficients @ self._fit)) + moved.exchange

    def _fitted(self, dms: Float[np.ndarray, "nspin nao nao"]) -> Float[np.ndarray, "nspin naux"]:
        """Return the coefficients of symmetric density matrices in the auxiliary basis."""
        twice = 2.0 - np.eye(dms.shape[-1])
        return lib.pack_tril(dms * twice) @ self._fit.T

    def _levels(
        self, mf: hf.SCF, focks: Float[np.ndarray, "nspin nao nao"], overlap: Float[np.ndarray, "nao nao"],
        orthonormal: Float[np.ndarray, "nao nmo"] | None,
    ) -> list[_Levels]:
        """Return the orbitals of Fock matrices, from the mean field's own diagonalisation."""
        energies, orbitals = mf.eig(focks if self._nspin == 2 else focks[0], overlap, x=orthonormal)
        levels = []
        for energy, coefficients, nocc in zip(
            np.reshape(energies, (self._nspin, -1)), _by_spin(orbitals), getattr(mf, "nelec", mf.mol.nelec),
            strict=False,  # a restricted mean field has one Fock matrix for both spins
        ):
            order = np.argsort(energy, kind="stable")  # with point-group symmetry they are sorted in each irrep only
            energy, coefficients = energy[order], coefficients[:, order]
            gap = np.maximum(energy[nocc:] - energy[:nocc, None], MIN_GAP_HARTREE)
            filled, empty = coefficients[:, :nocc], coefficients[:, nocc:]
            half = self._half(filled)
            pairs = half.T @ empty.astype(np.float32)
            levels.append(_Levels(filled, empty, gap, half, pairs.reshape(len(self._fit), *gap.shape)))
        return levels

    def _step(
        self, levels: list[_Levels], missing: _Moved, overlap: Float[np.ndarray, "nao nao"], size: float
    ) -> tuple[Float[np.ndarray, "n n"], _Moved]:
        """Return the kernel that is used, and the step of Newton's method.

        The step is the missing density R, and the response δ to the potential of R + δ. The response is that of
        pairs of filled and empty orbitals: X = −(potential)/gap for each pair.

        Args:
          levels: orbitals at the present M.
          missing: R, without its exchange.
          overlap: overlap matrix.
          size: Coulomb energy of R, hartree.
        """
        response = self._independent_response(levels)
        kernel = self._kernel if self._is_stable(response) else self._positive_kernel
        screening = scipy.linalg.lu_factor(np.eye(len(kernel)) - response @ kernel)

        def screened(pairs):
            """Return the solution for potentials of which `pairs` is the response, without exact exchange."""
            moved = [
                2 * self._electrons * np.tensordot(spin.pairs, x, axes=2)
                for spin, x in zip(levels, pairs, strict=True)
            ]
            potential = kernel @ scipy.linalg.lu_solve(screening, np.concatenate(moved))
            return [
                x - np.tensordot(at_spin, spin.pairs, axes=1) / spin.gap
                for spin, x, at_spin in zip(levels, pairs, potential.reshape(self._nspin, -1), strict=True)
            ]

        def answer(potential):
            return [
                -(spin.filled.T @ v @ spin.empty) / spin.gap for spin, v in zip(levels, potential, strict=True)
            ]

        def density(pairs):
            half = np.array([spin.filled @ x @ spin.empty.T for spin, x in zip(levels, pairs, strict=True)])
            return self._electrons * (half + half.transpose(0, 2, 1))

        if self._exact_exchange is None:
            pairs = screened(answer(self._potential(missing, kernel)))
            delta = density(pairs)
            return kernel, missing.plus(_Moved(delta, self._fitted(delta), missing.exchange))

        weighted = [self._weighted(spin.half) for spin in levels]

        def exchange(pairs):
            """Return the exchange of `density(pairs)`."""
            half = np.array([
                of_filled @ self._half(spin.empty @ x.T).T
                for of_filled, spin, x in zip(weighted, levels, pairs, strict=True)
            ])
            return -(half + half.transpose(0, 2, 1))

        if size > SMALL_HARTREE:
            of_missing = self._exchange(missing.dm, overlap)
        else:  # nearly all of it is in the pairs
            of_missing = exchange([
                spin.filled.T @ overlap @ dm @ overlap @ spin.empty / self._electrons
                for spin, dm in zip(levels, missing.dm, strict=True)
            ])
        start = answer(self._potential(missing._replace(exchange=of_missing), kernel))
        pairs, change = screened(start), np.inf
        of_pairs = exchange(pairs)
        for _ in range(MAX_EXCHANGE_STEPS):
            following = screened([x + y for x, y in zip(start, answer(of_pairs), strict=True)])
            norm = sum(np.sum((new - old) ** 2) for new, old in zip(following, pairs, strict=True))
            if norm > change:
                break
            pairs, change, of_pairs = following, norm, exchange(following)
            if norm < EXCHANGE_TOLERANCE * sum(np.sum(x**2) for x in pairs):
                break
        delta = density(pairs)
        return kernel, missing.plus(_Moved(delta, self._fitted(delta), of_missing + of_pairs))

    def _independent_response(self, levels: list[_Levels]) -> Float[np.ndarray, "n n"]:
        """Return the derivative of the fitted density with respect to its potential, for independent electrons."""
        blocks = []
        for spin in levels:
            weighted = (spin.pairs / np.sqrt(spin.gap).astype(np.float32)).reshape(len(self._fit), -1)
            blocks.append(-2 * self._electrons * (weighted @ weighted.T).astype(float))
        return np.asarray(scipy.linalg.block_diag(*blocks))

    def _is_stable(self, response: Float[np.ndarray, "n n"]) -> bool:
        """Return True if the energy has a minimum for the density, with the kernel and independent electrons."""
        identity = np.eye(len(response))
        try:
            root = np.linalg.cholesky(ROUNDING * np.abs(response).max() * identity - response)
            np.linalg.cholesky((1 - MIN_STIFFNESS) * identity + root.T @ self._kernel @ root)
        except np.linalg.LinAlgError:
            return False
        return True

    def _half(self, orbitals: Float[np.ndarray, "nao n"]) -> Float[np.ndarray, "nao m"]:
        """Return fitted integrals of an atomic orbital, and of each auxiliary function and each of some orbitals."""
        nao = len(self._square)
        return (self._square.reshape(-1, nao) @ orbitals.astype(np.float32)).reshape(nao, -1)

    def _exchange(
        self, dms: Float[np.ndarray, "nspin nao nao"], overlap: Float[np.ndarray, "nao nao"]
    ) -> Float[np.ndarray, "nspin nao nao"]:
        """Return the exact exchange of symmetric density matrices, from their natural orbitals."""
        values, vectors = np.linalg.eigh(overlap)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        inverse_root = (vectors / np.sqrt(np.maximum(values, MIN_OVERLAP))) @ vectors.T
        exchanges = []
        for dm in dms:
            occupations, orbitals = np.linalg.eigh(root @ dm @ root)
            orbitals = inverse_root @ orbitals
            is_large = np.abs(occupations) > MIN_OCCUPATION
            half = self._half(orbitals[:, is_large])
            weights = np.tile(occupations[is_large], len(self._fit)).astype(np.float32)
            exchanges.append(-self._weighted(half * weights) @ half.T / self._electrons)
        return np.array(exchanges)

    def _weighted(self, half: Float[np.ndarray, "nao m"]) -> Float[np.ndarray, "nao m"]:
        """Apply the repulsion of the auxiliary functions in exact exchange to the result of `_half`."""
        if isinstance(self._exact_exchange, np.ndarray):
            return (self._exact_exchange @ half.reshape(len(half), len(self._fit), -1)).reshape(half.shape)
        return half if self._exact_exchange is None else np.float32(self._exact_exchange) * half


def accelerated(mf: hf.SCF) -> hf.SCF:
    """Return a copy of a mean field whose SCF has the response of the electrons.

    Raises:
      InputError: if `check` refuses the mean field.
    """
    check(mf)
    copy = independent(mf)
    copy.DIIS = ResponseDIIS
    if "diis_start_cycle" not in vars(mf):
        copy.diis_start_cycle = 0  # most electrons move from the guess
    return copy


def independent(mf: hf.SCF) -> hf.SCF:
    """Return a copy of a mean field that shares nothing that `reset` or a new geometry changes in place."""
    copy = mf.copy()
    for name in ("grids", "nlcgrids", "with_df"):
        if getattr(mf, name, None):
            setattr(copy, name, getattr(mf, name).copy())
    copy._opt = {None: None}
    return copy


def check_kind(mf: hf.SCF) -> None:
    """Raise an `InputError` for a mean field that is neither restricted nor unrestricted."""
    if not isinstance(mf, hf.RHF | uhf.UHF):
        raise InputError(
            f"Expected a restricted or unrestricted mean field, got {type(mf).__name__}; use RKS, UKS, RHF or UHF."
        )


def check(mf: hf.SCF) -> None:
    """Raise an `InputError` for a mean field whose SCF the response does not fit.

    It has to be restricted or unrestricted with DIIS, and to fill its lowest orbitals: with other occupations, the
    potential of the response would not vanish at self-consistency.
    """
    check_kind(mf)
    if isinstance(mf, _CIAH_SOSCF) or mf.diis is not True or not issubclass(mf.DIIS, diis.CDIIS):
        found = f"{type(mf).__name__} with diis = {mf.diis} and {mf.DIIS.__name__}"
        raise InputError(f"Expected a mean field with PySCF's default DIIS, got {found}; use mf.diis = True.")
    own = "get_occ" in vars(mf) or type(mf).get_occ.__module__ not in _AUFBAU_MODULES
    if own or getattr(mf, "irrep_nelec", None):
        raise InputError(
            f"Expected a mean field that fills its lowest orbitals, got {type(mf).__name__} with occupations of its "
            "own, such as smearing; use it without ql.accelerate."
        )
    symbols = {mf.mol.atom_pure_symbol(i) for i in range(mf.mol.natm)}
    if missing := sorted(symbol for symbol in symbols if gto.charge(symbol) > MAX_ATOMIC_NUMBER):
        raise InputError(
            f"Expected elements up to Rn, got {', '.join(missing)}; use the mean field without ql.accelerate."
        )


_AUFBAU_MODULES = tuple(f"pyscf.scf.{name}" for name in ("hf", "uhf", "hf_symm", "uhf_symm"))


class ResponseDIIS(diis.CDIIS):
    """PySCF's DIIS, whose Fock matrix has the potential of the electrons that move when it is diagonalised."""

    def __init__(self, mf=None, filename=None, Corth=None):
        super().__init__(mf, filename, Corth)
        self._response: Response | None = None
        self._is_first = True

    def update(self, s, d, f, mf, *_, f_prev=None, **__):
        """Return the next Fock matrix to diagonalise. Densities are combined with the weights of Fock matrices."""
        if self._is_first:
            check(mf)  # it may have changed since `accelerated`
            self._prepare(mf, d)
        if self._response is None:
            return super().update(s, d, f, f_prev=f_prev)
        error = diis.get_err_vec(s, d, f, self.Corth)
        if self.damp and f_prev is not None:
            f = f * (1 - self.damp) + f_prev * self.damp
        fock, dm = lib.diis.DIIS.update(self, np.stack([f, d]), xerr=error)
        if self.rollback and len(self._bookkeep) == self.space:
            self._bookkeep = self._bookkeep[-self.rollback :]
        return self._response.fock(mf, fock, dm, s, self.Corth)

    def _prepare(self, mf: hf.SCF, dm: Float[np.ndarray, "*spin nao nao"]) -> None:
        self._is_first = False
        self.incore = True  # PySCF mixes up matrices in memory and on disk if they are twice as large as the errors
        needed = Response.nbytes(mf.mol, len(_by_spin(dm))) / 1e6
        if needed > mf.max_memory / 2:
            lib.logger.warn(
                mf, "Expected max_memory of %.0f MB for the response of the electrons, got %.0f MB; the SCF goes on "
                "with DIIS alone. Set a larger mf.max_memory.", 2 * needed, mf.max_memory,
            )
            return
        self._response = Response(mf, dm)


def _by_spin(matrix: Float[np.ndarray, "*spin n m"]) -> Float[np.ndarray, "nspin n m"]:
    """Return one matrix for both spins, or one for each, as an array of three dimensions."""
    array = np.asarray(matrix)
    return array.reshape(-1, *array.shape[-2:])


def auxiliary(mole: gto.mole.MoleBase) -> gto.Mole:
    """Return the nuclei of a molecule with the auxiliary basis of the response; ghost atoms have none."""
    nuclei = [
        (mole.atom_pure_symbol(i), mole.atom_coord(i)) for i in range(mole.natm)
        if gto.charge(mole.atom_symbol(i)) > 0
    ]
    basis = {
        symbol: [shell for shell in gto.basis.load(AUXILIARY_BASIS, symbol) if shell[0] <= MAX_ANGULAR_MOMENTUM]
        for symbol in {symbol for symbol, _ in nuclei}
    }
    return gto.M(atom=nuclei, basis=basis, unit="Bohr", spin=None, cart=mole.cart, verbose=0)


def _lda_kernel(
    mole: gto.mole.MoleBase, dms: Float[np.ndarray, "nspin nao nao"], aux: gto.mole.MoleBase,
    basis: Float[np.ndarray, "nfunction naux"], share: _Share,
) -> Float[np.ndarray, "nspin nspin naux naux"]:
    """Return the exchange–correlation kernel of LDA in the orthonormal auxiliary basis.

    Args:
      mole: molecule with the atomic orbitals.
      dms: density matrices of one or two spins.
      aux: molecule with the auxiliary basis.
      basis: coefficients of the orthonormal auxiliary basis.
      share: shares of exact exchange.
    """
    grids: Any = dft.gen_grid.Grids(mole)  # its attributes have no types
    grids.atom_grid, grids.prune, grids.verbose = KERNEL_GRID, None, 0
    grids.build()
    numint = dft.numint.NumInt()
    nspin = len(dms)
    kernel = np.zeros((nspin, nspin, aux.nao, aux.nao))
    for first in range(0, len(grids.weights), GRID_BLOCK):
        points = slice(first, first + GRID_BLOCK)
        orbitals, functions = (numint.eval_ao(mol, grids.coords[points]) for mol in (mole, aux))
        rho = np.array([numint.eval_rho(mole, orbitals, dm) for dm in dms])
        second = numint.eval_xc(
            share.lda, rho if nspin == 2 else rho[0], spin=nspin - 1, deriv=2, omega=share.omega or None
        )[2][0]
        weights = np.where(rho.sum(axis=0) > MIN_DENSITY, second.reshape(len(functions), -1).T, 0.0)
        weights = weights * grids.weights[points]
        for i in range(nspin):
            for j in range(nspin):
                kernel[i, j] += functions.T @ (weights[i + j][:, None] * functions)  # spins: αα, αβ, ββ
    return basis.T @ kernel @ basis
