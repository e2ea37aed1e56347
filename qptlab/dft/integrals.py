"""Integrals of a molecule at one geometry: all that energies and Fock matrices need.

The host computes the integrals that only libcint can compute. The device computes the grid, the AO values, the order
of the two-electron integrals and the guess density. All of it can be differentiated with respect to positions.
"""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft import grid, libcint, padding, repulsion
from qptlab.dft.grid import Numbers
from qptlab.dft.kernel import Kernel, KernelTemplate, derivative
from qptlab.dft.libcint import LINEAR_DEPENDENCE, HostIntegrals
from qptlab.dft.repulsion import Repulsion
from qptlab.errors import InputError
from qptlab.runtime import memory
from qptlab.system.functional import Functional, functional
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

AO_SHARE, ACCELERATOR_AO_SHARE = 4, 256
"""AO values of one geometry are stored if they take at most this fraction (one over the number) of the memory for
integrals; on an accelerator, which holds a hundred geometries of a training, of the memory for arrays. Otherwise they
are recomputed, chunk by chunk, when they are needed."""

METRIC_DEPENDENCE = 1e-7
"""Eigenvalue of the long-range metric of auxiliary functions below which a combination is dropped, as in PySCF."""

TEMPLATES = 256
"""Number of templates that are kept, with and without padding each: those that were used last."""

CHUNK_ELEMENTS, ACCELERATOR_CHUNK_ELEMENTS = 2**17, 2**20
"""Number of AO values per chunk of grid points: on a CPU the arrays of a chunk stay in the cache; on an accelerator
fewer, larger operations are faster."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """Static part of integrals. Molecules with equal layouts and shapes share compiled functions.

    Attributes:
      functional: functional that the integrals are made for.
      nocc: largest number of filled orbitals; for an open shell, one number for each spin.
      chunk: number of grid points that are processed at a time.
      nderiv: number of rows of AO values that are computed: 0, 1 (values) or 4 (values and gradients).
      keeps_aos: if true, AO values are stored with a geometry; otherwise they are recomputed when they are needed.
      fitted: if true, two-electron integrals are density-fitted; otherwise they are exact.
      exchange: if true, there are integrals for exact exchange with the whole of 1/r.
      omega: ω of the integrals for long-range exchange, per bohr; zero if there are none.
      dispersion: kind of the dispersion correction that the integrals hold; None without one.
    """

    functional: Functional
    nocc: tuple[int, ...]
    chunk: int
    nderiv: int
    keeps_aos: bool
    fitted: bool
    exchange: bool
    omega: float
    dispersion: str | None


class Constants(NamedTuple):
    """Arrays that all geometries of one molecule share; a pytree.

    Attributes:
      charges: charges of the nuclei, without the electrons of core potentials, elementary charges.
      grid: point clouds of the atoms.
      basis: atomic orbitals.
      minao_occupation: number of electrons in each atomic orbital of the `minao` guess.
      nocc: number of filled orbitals; for an open shell, one number for each spin.
      ao_atom: index of the atom of each AO.
      ao_mask: false for AOs that were added by padding.
      kernel: coarse grid and auxiliary functions of `dft.kernel`; None without a kernel.
    """

    charges: Float[Numbers, " natm"]
    grid: grid.GridTemplate
    basis: grid.Basis
    minao_occupation: Float[Numbers, " nminao"]
    nocc: Int[Numbers, "*spin"]
    ao_atom: Int[Numbers, " nao"]
    ao_mask: Bool[Numbers, " nao"]
    kernel: KernelTemplate | None


class Integrals(NamedTuple):
    """Integrals of one geometry; a pytree, which a leading axis of all arrays turns into a batch.

    Attributes:
      layout: static part, with the functional.
      basis: atomic orbitals.
      positions: nuclear positions, bohr.
      overlap: overlap matrix of the atomic orbitals.
      hcore: core Hamiltonian: kinetic energy, attraction by the nuclei, and effective core potentials, hartree.
      repulsion: two-electron integrals, exact or density-fitted.
      e_nuc: repulsion of the nuclei, hartree.
      e_disp: energy of the dispersion correction, hartree; zero without one.
      orthogonaliser: matrix X with Xᵀ·overlap·X = 1, from `orthogonaliser`.
      dm_guess: density matrix of PySCF's `minao` guess, electrons per AO pair.
      coords: grid points, bohr. Copies of the first point complete the last chunk.
      weights: weights of the grid points, cubic bohr; zero for points that complete the last chunk.
      aos: AO values on the grid, and their gradients if the functional reads them, chunk by chunk; None if they are
        too large to store.
      nocc: number of filled orbitals; for an open shell, one number for each spin.
      kernel: approximate derivative of the Fock matrix; None if the template has none.
      long_range: two-electron integrals of erf(ωr)/r for exact exchange; None without range separation.
    """

    layout: Layout
    basis: grid.Basis
    positions: Float[Array, "natm 3"]
    overlap: Float[Array, "nao nao"]
    hcore: Float[Array, "nao nao"]
    repulsion: Repulsion
    e_nuc: Float[Array, ""]
    e_disp: Float[Array, ""]
    orthogonaliser: Float[Array, "nao nao"]
    dm_guess: Float[Array, "nao nao"]
    coords: Float[Array, "ngrids 3"]
    weights: Float[Array, " ngrids"]
    aos: Float[Array, "nchunk nderiv nao chunk"] | None
    nocc: Int[Array, "*spin"]
    kernel: Kernel | None = None
    long_range: Repulsion | None = None

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return self.overlap.shape[-1]

    @property
    def functional(self) -> Functional:
        """Functional that energies and Fock matrices are computed with."""
        return self.layout.functional

    def with_functional(self, xc: str | Functional) -> "Integrals":
        """Return the same integrals with a different functional, for instance to compare functionals at one density.

        Args:
          xc: functional, by name or as a record.

        Raises:
          InputError: if the integrals lack what the functional needs, or hold the dispersion correction of a
            different functional.
        """
        record, layout = functional(xc), self.layout
        missing = []
        if layout.dispersion is not None and record != layout.functional:
            missing.append("the dispersion energy")
        if record.nvar and not self.coords.shape[-2]:
            missing.append("grid points")
        elif self.aos is not None and record.nderiv > layout.nderiv:
            missing.append("gradients of the atomic orbitals")
        if record.exact_exchange and not layout.exchange:
            missing.append("integrals for exact exchange")
        if record.omega and record.omega != layout.omega:
            missing.append(f"integrals for long-range exchange with ω = {record.omega:g} per bohr")
        if missing:
            raise InputError(
                f"Integrals made for functional {layout.functional.name!r} lack {' and '.join(missing)} for "
                f"{record.name!r}; use build_integrals with a method of that functional."
            )
        return self._replace(layout=dataclasses.replace(layout, functional=record))

    def unrestricted(self) -> "Integrals":
        """Return the same integrals for an unrestricted calculation; those of an open shell are unchanged."""
        if self.nocc.ndim:
            return self
        layout = dataclasses.replace(self.layout, nocc=2 * self.layout.nocc)
        return self._replace(layout=layout, nocc=jnp.stack([self.nocc, self.nocc]))


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """Molecule and method, ready for the integrals of any geometry; `template` returns it.

    Several threads may call its methods at the same time.

    Attributes:
      symbols: element symbols.
      charge: charge of the molecule, elementary charges.
      occupied: number of filled orbitals; for an open shell, one number for each spin.
      method: level of theory.
      ao_labels: PySCF's labels of the atomic orbitals, such as "0 O 2px".
      layout: static part of `Integrals`.
      constants: arrays that all geometries share, on the device.
      shape: sizes of all arrays; larger than the molecule needs if it is `padded`.
    """

    symbols: tuple[str, ...]
    charge: int
    occupied: tuple[int, ...]
    method: Method
    ao_labels: tuple[str, ...]
    layout: Layout
    constants: Constants
    shape: padding.Shape
    _moles: libcint.Moles

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return len(self.ao_labels)

    @property
    def ngrids(self) -> int:
        """Number of grid points, without those that complete the last chunk."""
        return self.shape.ngrids

    @property
    def nocc(self) -> int:
        """Number of doubly occupied orbitals of a closed shell."""
        return self.occupied[-1]

    @property
    def basis(self) -> grid.Basis:
        """Atomic orbitals."""
        return self.constants.basis

    @property
    def nuclear_charges(self) -> Float[np.ndarray, " natm"]:
        """Charges of the nuclei, without the electrons of core potentials, elementary charges."""
        return np.asarray(self.constants.charges)[: len(self.symbols)]

    @property
    def core_electrons(self) -> int:
        """Number of electrons that core potentials stand for."""
        mol = self._moles.basis
        return sum(int(mol.atom_nelec_core(atom)) for atom in range(mol.natm))

    @property
    def ao_atom(self) -> Int[np.ndarray, " nao"]:
        """Index of the atom of each AO."""
        return np.asarray(self.constants.ao_atom)[: self.nao]

    @property
    def eri(self) -> str:
        """Form of the two-electron integrals, "exact" or "fitted"; with `auto`, the form that was selected."""
        return "fitted" if self.layout.fitted else "exact"

    @property
    def naux(self) -> int:
        """Number of auxiliary orbitals of density-fitted integrals; 0 for exact integrals."""
        return 0 if self._moles.aux is None else self._moles.aux.nao

    @property
    def nbytes(self) -> int:
        """Peak memory while the integrals of one geometry are computed, bytes."""
        exact = libcint.exact_bytes(self.nao, self.method.functional)
        fitted = libcint.fitted_bytes(self.nao, self.naux, self.method.functional)
        aos = _ao_bytes(
            self.layout.nderiv, self.nao, self.ngrids if self.layout.keeps_aos else self.layout.chunk
        )
        # Those of the kernel are in double precision on the host, and in single precision on the device.
        kernel = 12 * self.shape.nresponse * (self.nao * (self.nao + 1) // 2)
        return (fitted if self.layout.fitted else exact) + aos + kernel

    @property
    def max_geometries(self) -> int:
        """Number of geometries, at least one, whose integrals fit into the memory of the host together."""
        return max(1, memory.memory_bytes() // self.nbytes)

    def host_integrals(self, positions: Float[np.ndarray, "natm 3"], threads: int | None = 1) -> HostIntegrals:
        """Compute the integrals of one geometry that only libcint can compute.

        Args:
          positions: nuclear positions, bohr.
          threads: number of OpenMP threads; None for PySCF's setting.

        Raises:
          InputError: if the shape of the positions is wrong, or the basis is linearly dependent.
        """
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape != (len(self.symbols), 3):
            raise InputError(
                f"Expected positions of shape ({len(self.symbols)}, 3), got {positions.shape}; use one position for "
                f"each of the {len(self.symbols)} atoms."
            )
        return padding.pad_host(libcint.host_integrals(self._moles.at(positions), threads), self.shape)

    def padded(self, shared: padding.Padding) -> "Template":
        """Return the same molecule in arrays of a larger shape; its atoms and orbitals come first."""
        shape = shared.shape
        plain = jax.tree.map(np.asarray, self.constants)
        added = shape.nao - self.nao
        constants = Constants(
            charges=padding.fill(plain.charges, shape.natm),
            grid=padding.pad_grid(plain.grid, shape.natm, shape.ngrids),
            basis=padding.pad_basis(plain.basis, shape.shells),
            minao_occupation=padding.fill(plain.minao_occupation, shape.nminao),
            nocc=plain.nocc,
            ao_atom=np.pad(plain.ao_atom, (0, added)),
            ao_mask=np.pad(plain.ao_mask, (0, added)),
            kernel=padding.pad_kernel(plain.kernel, shape),
        )
        layout = _layout((shared.nocc,), shape.nao, shape.ngrids, self.method, fitted=self.layout.fitted)
        return dataclasses.replace(self, layout=layout, constants=_on_device(constants), shape=shape)

    def complete(self, host: HostIntegrals) -> Integrals:
        """Compute `Integrals` from the result of `host_integrals`; compiled once for all molecules of one shape."""
        return complete(self.constants, host, self.layout)

    def build(self, positions: Float[np.ndarray, "natm 3"]) -> Integrals:
        """Compute `Integrals` of one geometry.

        Args:
          positions: nuclear positions, bohr.

        Raises:
          InputError: if the shape of the positions is wrong, or the basis is linearly dependent.
        """
        return self.complete(self.host_integrals(positions, threads=None))

    def value_and_gradient(
        self, function: Callable[..., Float[Array, ""]]
    ) -> Callable[..., tuple[Float[Array, ""], Float[np.ndarray, "natm 3"]]]:
        """Return a function that computes a number of the integrals and its derivative with respect to the positions.

        libcint runs before and after the compiled function. (If the compiled function called libcint, two threads
        could wait for each other: github.com/jax-ml/jax/issues/24255.)

        Args:
          function: differentiable function of `Integrals` and further arguments that returns a number. It is
            compiled.

        Returns:
          Function of positions (bohr) and the further arguments. It returns the number, and its derivative per bohr.

        Raises:
          ValueError: if the molecule is padded.
        """
        if self.shape.nao != self.nao:
            raise ValueError("Expected a molecule without padding, got a padded one; use the one from `template`.")

        @jax.jit
        def value_and_bar(host, *arguments):
            def value(host):
                return function(complete(self.constants, host, self.layout), *arguments)

            return jax.value_and_grad(value)(host)

        def value_and_gradient(positions, *arguments):
            value, bar = value_and_bar(self.host_integrals(positions, threads=None), *arguments)
            return value, libcint.pull_back(self._moles.at(positions), jax.tree.map(np.asarray, bar))

        return value_and_gradient

    def overlap(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Return the overlap matrix of the atomic orbitals at a geometry (bohr)."""
        return self._moles.at(positions).basis.intor_symmetric("int1e_ovlp")

    def dipole_integrals(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "3 nao nao"]:
        """Return the position integrals ⟨i|r|j⟩ about the origin at a geometry (bohr), bohr."""
        return libcint.dipole_integrals(self._moles.at(positions).basis)

    def atomic_density(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Return the density matrix of a superposition of free atoms at a geometry (bohr), electrons per AO pair."""
        dm = libcint.atomic_density(self._moles.at(positions[: len(self.symbols)]).basis)
        return np.pad(dm, (0, self.shape.nao - self.nao))

    def atomic_potential(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Return the Fock matrix of a superposition of atomic potentials at a geometry (bohr), hartree."""
        fock = libcint.atomic_potential(self._moles.at(positions[: len(self.symbols)]).basis)
        return padding.pad_levels(fock, self.shape, padding.ENERGY_HARTREE)


@functools.partial(jax.jit, static_argnames=("layout",))
def complete(constants: Constants, host: HostIntegrals, layout: Layout) -> Integrals:
    """Compute `Integrals` from those that libcint has computed; compiled, and differentiable by `host`.

    Args:
      constants: arrays that all geometries of the molecule share.
      host: integrals from libcint at the geometry.
      layout: static part of the integrals.
    """
    positions, overlap, hcore, eri, minao_overlap, e_disp, response, long_range = jax.tree.map(jnp.asarray, host)
    nao = len(overlap)
    x = orthogonaliser(overlap)
    projection = x @ (x.T @ minao_overlap)
    coords, weights, aos = _points(positions, constants, layout)
    kernel = None
    if constants.kernel is not None:
        kernel = derivative(*jax.lax.stop_gradient((
            response, positions, constants.basis, constants.kernel, projection * jnp.sqrt(constants.minao_occupation),
        )), layout.functional)
    return Integrals(
        layout=layout,
        basis=jax.tree.map(jnp.asarray, constants.basis),
        positions=positions,
        overlap=overlap,
        hcore=hcore,
        repulsion=(
            repulsion.fitted(eri[0], eri[1]) if layout.fitted
            else repulsion.exact(eri[0], nao, exchange=layout.exchange)
        ),
        e_nuc=_nuclear_repulsion(positions, constants.charges),
        e_disp=e_disp,
        orthogonaliser=x,
        dm_guess=(projection * constants.minao_occupation) @ projection.T,
        coords=coords,
        weights=weights,
        aos=aos,
        nocc=jnp.asarray(constants.nocc),
        kernel=kernel,
        long_range=_long_range(long_range, nao) if layout.omega else None,
    )


def _long_range(eri: tuple[Array, ...], nao: int) -> Repulsion:
    if len(eri) == 1:
        return repulsion.exact(eri[0], nao, coulomb=False, exchange=True)
    int3c, int2c = eri
    # Compact auxiliary functions differ little for erf(ωr)/r: the metric is singular to rounding.
    return repulsion.FittedRepulsion(inverse_root(int2c, METRIC_DEPENDENCE) @ int3c)


@jax.custom_vjp
def orthogonaliser(overlap: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
    """Return a matrix X with Xᵀ·overlap·X = 1.

    It is the inverse of the Cholesky factor, which changes smoothly with the geometry. Where the basis is nearly
    linearly dependent, it is the matrix of canonical orthogonalisation, and the columns of eigenvectors with an
    eigenvalue of the overlap below `LINEAR_DEPENDENCE` are zero, as PySCF drops them. The derivative is right for
    functions that do not change when orthonormal orbitals are rotated among each other.

    Args:
      overlap: overlap matrix.
    """
    return _orthogonaliser_forward(overlap)[0]


def _orthogonaliser_forward(overlap):
    values, vectors = jnp.linalg.eigh(overlap)
    is_kept = values > LINEAR_DEPENDENCE
    canonical = jnp.where(is_kept, vectors / jnp.sqrt(jnp.where(is_kept, values, 1.0)), 0.0)
    root = jnp.linalg.cholesky(overlap)
    inverse = jax.scipy.linalg.solve_triangular(root, jnp.eye(len(overlap)), lower=True).T
    x = jnp.where(jnp.all(is_kept), inverse, canonical)
    return x, x


def _orthogonaliser_backward(x, bar):
    # Of all changes that keep Xᵀ·overlap·X = 1, this is the one without a rotation: dX = −½·X·Xᵀ·dS·X.
    half = -0.5 * x @ (x.T @ bar) @ x.T
    return (0.5 * (half + half.T),)


orthogonaliser.defvjp(_orthogonaliser_forward, _orthogonaliser_backward)


@jax.custom_vjp
def inverse_root(
    matrix: Float[Array, "n n"], smallest: float | Float[Array, ""] = LINEAR_DEPENDENCE
) -> Float[Array, "n n"]:
    """Return the inverse square root of a symmetric positive matrix, as for Löwdin's orthogonalisation.

    The derivative contains divided differences of λ^(−½), which are finite at degenerate eigenvalues (Daleckii &
    Krein 1965). The derivative of the eigenvectors would divide by zero there. Eigenvectors with an eigenvalue below
    `smallest` are left out; that a derivative mixes them with others is neglected.
    """
    return _inverse_root_forward(matrix, smallest)[0]


def _inverse_root_forward(
    matrix: Float[Array, "n n"], smallest: float | Float[Array, ""]
) -> tuple[Float[Array, "n n"], tuple]:
    values, vectors = jnp.linalg.eigh(matrix)
    is_kept = values > smallest
    inverse = jnp.where(is_kept, 1 / jnp.sqrt(jnp.where(is_kept, values, 1.0)), 0.0)
    return vectors * inverse @ vectors.T, (inverse, vectors)


def _inverse_root_backward(
    residuals: tuple[Float[Array, " n"], Float[Array, "n n"]], bar: Float[Array, "n n"]
) -> tuple[Float[Array, "n n"], None]:
    inverse, vectors = residuals
    inside = vectors.T @ (0.5 * (bar + bar.T)) @ vectors
    total = jnp.where(inverse[:, None] + inverse > 0, inverse[:, None] + inverse, 1.0)
    # 1 / (√a·√b·(√a + √b)), and zero for eigenvectors that are left out
    return -vectors @ (inside * (inverse[:, None] * inverse) ** 2 / total) @ vectors.T, None


inverse_root.defvjp(_inverse_root_forward, _inverse_root_backward)


def _points(
    positions: Float[Array, "natm 3"], constants: Constants, layout: Layout
) -> tuple[Float[Array, "ngrids 3"], Float[Array, " ngrids"], Float[Array, "nchunk nderiv nao chunk"] | None]:
    """Return grid points, weights and, if they are stored, AO values."""
    chunk = layout.chunk
    coords, weights = grid.whole_chunks(*grid.becke_grid(positions, constants.grid), chunk)
    if not layout.keeps_aos:
        return coords, weights, None

    @jax.checkpoint  # the reverse pass recomputes a chunk instead of storing it
    def values(points):
        return grid.eval_aos(positions, points, constants.basis, derivatives=layout.nderiv > 1)

    return coords, weights, jax.lax.map(values, coords.reshape(-1, chunk, 3))


def _nuclear_repulsion(positions: Float[Array, "natm 3"], charges: Float[Numbers, " natm"]) -> Float[Array, ""]:
    charges = jnp.asarray(charges)
    rows, cols = np.triu_indices(len(charges), k=1)
    distance = jnp.sqrt(jnp.sum((positions[rows] - positions[cols]) ** 2, axis=-1))
    return jnp.sum(charges[rows] * charges[cols] / distance)


def _ao_bytes(nderiv: int, nao: int, ngrids: int) -> int:
    return 8 * nderiv * nao * ngrids


def build_integrals(mol: Molecule, method: Method) -> Integrals:
    """Compute the integrals of a molecule at its geometry.

    For several geometries of one molecule, call `template` once, and then its `build` for each geometry.

    Args:
      mol: molecule.
      method: level of theory.

    Raises:
      InputError: if the basis is linearly dependent at the geometry, or `template` raises it.

    >>> import qptlab as ql
    >>> ints = build_integrals(ql.Molecule.from_name("water"), ql.Method("pbe", "sto-3g", grid_level=0))
    >>> ints.nao, ints.functional.name
    (7, 'pbe')
    """
    return template(mol, method).build(mol.positions)


def template(
    mol: Molecule, method: Method, shared: padding.Padding | None = None, *, with_kernel: bool = False
) -> Template:
    """Prepare a molecule for integrals at any of its geometries. The templates used last are kept.

    Args:
      mol: molecule.
      method: level of theory.
      shared: sizes that the arrays are padded to; None for no padding.
      with_kernel: if true, the integrals have a `kernel`.

    Raises:
      InputError: if PySCF lacks the basis or the core potential for an element, a shell is beyond f, the charge or
        spin is impossible with the core potentials, there are fewer orbitals than the electrons need, or the
        integrals do not fit into memory.
    """
    _limit_lapack_threads()
    key = mol.symbols, mol.charge, cast(int, mol.spin), method, with_kernel
    return _cached_template(*key) if shared is None else _cached_padded(*key, shared)


def atom_template(symbol: str, method: Method, *, with_kernel: bool = False) -> Template:
    """Prepare a free atom, which has the shells, grid points and auxiliary orbitals of the atom in any molecule.

    Args:
      symbol: element symbol.
      method: level of theory.
      with_kernel: if true, the integrals have a `kernel`.

    Raises:
      InputError: if `template` raises it.
    """
    atom = Molecule((symbol,), np.zeros((1, 3)))
    return template(atom, dataclasses.replace(method, eri=libcint.eri_form(1, method)), with_kernel=with_kernel)


def eri_form(mol: Molecule, method: Method) -> str:
    """Return the form of a molecule's two-electron integrals, "exact" or "fitted", without a template of it.

    Args:
      mol: molecule.
      method: level of theory.

    Raises:
      InputError: if PySCF lacks the basis for an element.
    """
    if method.eri != "auto":
        return method.eri
    return libcint.eri_form(count_orbitals(mol, method), method)


def count_orbitals(mol: Molecule, method: Method) -> int:
    """Return the number of a molecule's atomic orbitals without a template of it.

    Args:
      mol: molecule.
      method: level of theory.

    Raises:
      InputError: if PySCF lacks the basis for an element.
    """
    counts = collections.Counter(mol.symbols)
    return sum(count * atom_template(symbol, method).nao for symbol, count in counts.items())


def shape(mol: Molecule, method: Method, *, with_kernel: bool = False) -> padding.Shape:
    """Return the sizes of a molecule's arrays without a template of it: the sums over its atoms.

    Args:
      mol: molecule.
      method: level of theory.
      with_kernel: if true, the integrals have a `kernel`.

    Raises:
      InputError: if PySCF lacks the basis for an element, or there are fewer orbitals than the electrons need.
    """
    exact_or_fitted = dataclasses.replace(method, eri=eri_form(mol, method))
    atoms = {
        symbol: atom_template(symbol, exact_or_fitted, with_kernel=with_kernel).shape for symbol in set(mol.symbols)
    }
    sizes = padding.joined([atoms[symbol] for symbol in mol.symbols])
    _check_orbitals(mol, sizes.nao, method)
    return sizes


@functools.cache
def _limit_lapack_threads() -> None:
    """Limit SciPy's LAPACK, with which XLA diagonalises on a CPU, to one thread.

    Idle LAPACK threads spin for a while and take the cores from XLA's threads: with them, an SCF of uracil in
    def2-SVP took 1.4 times as long on two cores.
    """
    for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        if library.filepath and pathlib.Path(library.filepath).parent.name == "scipy.libs":
            library.set_num_threads(1)


def _check_orbitals(mol: Molecule, nao: int, method: Method) -> None:
    needed = max(libcint.occupied(mol, method))
    if needed > nao:
        raise InputError(
            f"Expected a basis with at least {needed} orbitals for {mol.formula}, got {method.basis!r} "
            f"with {nao}; use def2-svp."
        )


@functools.lru_cache(maxsize=TEMPLATES)
def _cached_padded(
    symbols: tuple[str, ...], charge: int, spin: int, method: Method, with_kernel: bool, shared: padding.Padding
) -> Template:
    return _cached_template(symbols, charge, spin, method, with_kernel).padded(shared)


@functools.lru_cache(maxsize=TEMPLATES)
def _cached_template(
    symbols: tuple[str, ...], charge: int, spin: int, method: Method, with_kernel: bool
) -> Template:
    # A template does not depend on the geometry. These positions are so far apart that no atoms overlap.
    positions = 10.0 * np.arange(3 * len(symbols)).reshape(-1, 3)
    mol = Molecule(symbols, positions, charge, spin=spin)
    moles = libcint.moles(mol, method, with_kernel=with_kernel)
    level = method.grid_level if method.functional.nvar else None
    labels = moles.basis.ao_labels(fmt=False)
    _check_orbitals(mol, len(labels), method)
    occupied = libcint.occupied(mol, method)
    constants = Constants(
        charges=libcint.nuclear_charges(moles.basis),
        grid=libcint.grid_template(moles.basis, level),
        basis=libcint.atomic_orbitals(moles.basis),
        minao_occupation=libcint.minao_occupation(moles.basis),
        nocc=np.squeeze(np.array(occupied)),
        ao_atom=np.array([label[0] for label in labels]),
        ao_mask=np.ones(len(labels), bool),
        kernel=libcint.kernel_template(moles),
    )
    return Template(
        symbols=symbols,
        charge=charge,
        occupied=occupied,
        method=method,
        ao_labels=tuple(label.strip() for label in moles.basis.ao_labels()),
        layout=_layout(occupied, len(labels), len(constants.grid.volumes), method, fitted=moles.aux is not None),
        constants=_on_device(constants),
        shape=padding.shape_of(
            constants.basis, constants.grid, len(constants.minao_occupation), moles.aux.nao if moles.aux else 0,
            constants.kernel.basis if constants.kernel else None,
        ),
        _moles=moles,
    )


def _on_device(constants: Constants) -> Constants:
    with jax.ensure_compile_time_eval():  # templates are cached: no array may belong to a function being traced
        return jax.tree.map(jnp.asarray, constants)


def _layout(occupied: Sequence[int], nao: int, ngrids: int, method: Method, *, fitted: bool) -> Layout:
    nderiv = method.functional.nderiv
    is_cpu = jax.default_backend() == "cpu"
    chunks = max(1, math.ceil(ngrids * nao / (CHUNK_ELEMENTS if is_cpu else ACCELERATOR_CHUNK_ELEMENTS)))
    ao_limit = memory.memory_bytes() // AO_SHARE if is_cpu else memory.device_bytes() // ACCELERATOR_AO_SHARE
    return Layout(
        functional=method.functional,
        nocc=tuple(occupied),
        chunk=128 * math.ceil(ngrids / chunks / 128) or 1,
        nderiv=nderiv,
        keeps_aos=nderiv > 0 and _ao_bytes(nderiv, nao, ngrids) <= ao_limit,
        fitted=fitted,
        exchange=method.functional.exact_exchange > 0,
        omega=method.functional.omega,
        dispersion=method.dispersion,
    )
