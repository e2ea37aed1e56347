"""A molecule and a method in, the integrals of one geometry out: `Integrals`, all that an energy needs to know.

The host makes what must come from libcint; grid, AO values, the layout of two-electron integrals and the guess
density are made on the device. Everything can be differentiated with respect to positions.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Float, Int

from qptlab import grid, libcint, repulsion, xc
from qptlab.errors import InputError
from qptlab.libcint import HostIntegrals
from qptlab.method import Method
from qptlab.molecule import Molecule
from qptlab.repulsion import Repulsion

AO_SHARE = 4
"""AO values of one geometry are kept up to a quarter of what integrals may take of the memory; beyond, they are made
anew, chunk by chunk, when needed."""

CHUNK_ELEMENTS = 2**17
"""AO values per chunk of grid points, so that a chunk's arrays stay in a processor's cache."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What is fixed before anything is compiled; geometries of one molecule and method share it.

    Attributes:
      shells: the atomic orbitals.
      nocc: filled orbitals, of each spin for an open shell; no more are ever filled.
      chunk: grid points that are dealt with at a time.
    """

    shells: tuple[grid.ShellGroup, ...]
    nocc: tuple[int, ...]
    chunk: int


class Integrals(NamedTuple):
    """All that an energy needs to know of one geometry; a pytree, batched by a leading axis.

    Attributes:
      layout: what all geometries of the molecule share.
      positions: nuclei, bohr.
      overlap: of atomic orbitals.
      hcore: kinetic energy and nuclear attraction, hartree.
      repulsion: two-electron integrals, exact or fitted.
      e_nuc: nuclear repulsion, hartree.
      orthogonaliser: X with Xᵀ·overlap·X = 1.
      dm_guess: PySCF's `minao` guess, electrons per AO pair.
      coords: grid points, bohr; as many as fill the last chunk.
      weights: of the grid points, cubic bohr; zero for those that fill up.
      aos: AO values on the grid, and gradients where the functional reads them, chunk by chunk; None
        where they are too large to keep.
      nocc: number of filled orbitals; for an open shell of each spin.
    """

    layout: Layout
    positions: Float[Array, "natm 3"]
    overlap: Float[Array, "nao nao"]
    hcore: Float[Array, "nao nao"]
    repulsion: Repulsion
    e_nuc: Float[Array, ""]
    orthogonaliser: Float[Array, "nao nao"]
    dm_guess: Float[Array, "nao nao"]
    coords: Float[Array, "ngrids 3"]
    weights: Float[Array, " ngrids"]
    aos: Float[Array, "nchunk nderiv nao chunk"] | None
    nocc: Int[Array, "*spin"]

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return self.overlap.shape[-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """What all geometries of one molecule share: the basis, the grid's point clouds, the electrons.

    Made by `template`. Its methods may be called from several threads at once.

    Attributes:
      symbols: element symbols.
      charge: elementary charges.
      occupied: filled orbitals, of each spin for an open shell.
      method: the method.
      shells: the basis as the device sees it.
      grid_template: the grid before it is laid on a geometry; of no points for Hartree–Fock.
      ao_atom: the atom of each AO.
      ao_labels: PySCF's labels, such as "0 O 2px".
    """

    symbols: tuple[str, ...]
    charge: int
    occupied: tuple[int, ...]
    method: Method
    shells: tuple[grid.ShellGroup, ...]
    grid_template: grid.GridTemplate
    ao_atom: Int[np.ndarray, " nao"]
    ao_labels: tuple[str, ...]
    _moles: libcint.Moles
    _minao_occupation: Float[np.ndarray, " nminao"]

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return len(self.ao_atom)

    @property
    def nocc(self) -> int:
        """Number of doubly occupied orbitals of a closed shell."""
        return self.occupied[-1]

    @property
    def eri(self) -> str:
        """How two-electron integrals are held: "exact" or "fitted"; what `auto` has chosen."""
        return "exact" if self._moles.aux is None else "fitted"

    @property
    def naux(self) -> int:
        """Auxiliary orbitals of fitted integrals; 0 for exact ones."""
        return 0 if self._moles.aux is None else self._moles.aux.nao

    @functools.cached_property
    def layout(self) -> Layout:
        """The static part of `Integrals`."""
        npoints = len(self.grid_template.volumes)
        chunk = max(128, CHUNK_ELEMENTS // self.nao // 128 * 128)
        return Layout(self.shells, self.occupied, min(chunk, max(1, npoints)))

    @property
    def nbytes(self) -> int:
        """Memory that `Integrals` of one geometry take at most, while they are made."""
        exact = libcint.exact_bytes(self.nao, exchange=self._has_exchange)
        fitted = libcint.fitted_bytes(self.nao, self.naux)
        return (exact if self.naux == 0 else fitted) + min(self._ao_limit, self._ao_bytes)

    @property
    def most_at_once(self) -> int:
        """How many geometries' integrals fit the host's memory together; one at least."""
        return max(1, libcint.memory_bytes() // self.nbytes)

    @property
    def _nderiv(self) -> int:
        return {0: 0, 1: 1}.get(xc.functional(self.method.xc).nvar, 4)

    @property
    def _ao_limit(self) -> int:
        return libcint.memory_bytes() // AO_SHARE

    @property
    def _ao_bytes(self) -> int:
        return 8 * self._nderiv * self.nao * len(self.grid_template.volumes)

    @property
    def _has_exchange(self) -> bool:
        return xc.functional(self.method.xc).exact_exchange > 0

    def host_integrals(self, positions: Float[np.ndarray, "natm 3"], threads: int | None = 1) -> HostIntegrals:
        """The libcint part for one geometry (bohr).

        Args:
          positions: of the nuclei.
          threads: OpenMP threads; None for as many as PySCF is set to use.

        Raises:
          InputError: for positions of another shape, or where the basis is linearly dependent.
        """
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape != (len(self.symbols), 3):
            raise InputError(
                f"positions of shape {positions.shape} were given for {len(self.symbols)} atoms; "
                f"({len(self.symbols)}, 3) would do."
            )
        return libcint.host_integrals(self._moles.at(positions), threads)

    @functools.cached_property
    def complete(self):
        """A compiled function HostIntegrals → Integrals; a leading batch axis needs `jax.vmap`."""
        return jax.jit(self._complete)

    def _complete(self, host: HostIntegrals) -> Integrals:
        positions, overlap, hcore, eri, minao_overlap = jax.tree.map(jnp.asarray, host)
        chol = jnp.linalg.cholesky(overlap)
        projection = jax.scipy.linalg.cho_solve((chol, True), minao_overlap)
        coords, weights, aos = self._points(positions)
        return Integrals(
            layout=self.layout,
            positions=positions,
            overlap=overlap,
            hcore=hcore,
            repulsion=(
                repulsion.fitted(eri[0], eri[1]) if self.naux
                else repulsion.exact(eri[0], self.nao, exchange=self._has_exchange)
            ),
            e_nuc=self._nuclear_repulsion(positions),
            orthogonaliser=jax.scipy.linalg.solve_triangular(chol, jnp.eye(self.nao), lower=True).T,
            dm_guess=(projection * self._minao_occupation) @ projection.T,
            coords=coords,
            weights=weights,
            aos=aos,
            nocc=jnp.squeeze(jnp.asarray(self.occupied)),
        )

    def _points(self, positions):
        coords, weights = grid.becke_grid(positions, self.grid_template)
        chunk, missing = self.layout.chunk, -len(weights) % self.layout.chunk
        coords = jnp.concatenate([coords, coords[:1].repeat(missing, axis=0)])
        weights = jnp.concatenate([weights, jnp.zeros(missing)])
        if self._nderiv == 0 or self._ao_bytes > self._ao_limit:
            return coords, weights, None

        @jax.checkpoint  # backwards a chunk is made again, not remembered
        def values(points):
            return grid.eval_aos(positions, points, self.shells, derivatives=self._nderiv > 1)

        return coords, weights, jax.lax.map(values, coords.reshape(-1, chunk, 3))

    def _nuclear_repulsion(self, positions):
        charges = jnp.asarray(libcint.nuclear_charges(self._moles), positions.dtype)
        rows, cols = np.triu_indices(len(charges), k=1)
        distance = jnp.sqrt(jnp.sum((positions[rows] - positions[cols]) ** 2, axis=-1))
        return jnp.sum(charges[rows] * charges[cols] / distance)

    def build(self, positions: Float[np.ndarray, "natm 3"]) -> Integrals:
        """`Integrals` of one geometry (bohr), on the device."""
        return self.complete(self.host_integrals(positions, threads=None))

    def integrals(self, positions: Float[Array, "natm 3"]) -> Integrals:
        """`Integrals` inside a traced function, differentiable once with respect to positions (bohr), in reverse.

        libcint runs on the host when the compiled function does (`jax.pure_callback`).
        """
        return self._complete(self._host(positions))

    @functools.cached_property
    def _host(self):
        shapes = jax.tree.map(
            lambda zeros: jax.ShapeDtypeStruct(zeros.shape, zeros.dtype), libcint.host_shapes(self._moles)
        )
        result = jax.ShapeDtypeStruct((len(self.symbols), 3), np.float64)

        def make(positions):
            return libcint.host_integrals(self._moles.at(np.asarray(positions)), None)

        def slope(positions, bar):
            return libcint.pull_back(self._moles.at(np.asarray(positions)), bar)

        @jax.custom_vjp
        def host(positions):
            return jax.pure_callback(make, shapes, positions, vmap_method="sequential")

        host.defvjp(
            lambda positions: (host(positions), positions),
            lambda positions, bar: (jax.pure_callback(slope, result, positions, bar, vmap_method="sequential"),),
        )
        return host

    def overlap(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Overlap of the atomic orbitals at a geometry (bohr)."""
        return self._moles.at(positions).basis.intor_symmetric("int1e_ovlp")

    def dipole_integrals(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "3 nao nao"]:
        """Position integrals ⟨i|r|j⟩ about the origin, bohr."""
        return libcint.dipole_integrals(self._moles.at(positions).basis)

    def atomic_density(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Superposition of the densities of free atoms, electrons per AO pair."""
        return libcint.atomic_density(self._moles.at(positions).basis)

    def atomic_potential(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Fock matrix of a superposition of atomic potentials, hartree."""
        return libcint.atomic_potential(self._moles.at(positions).basis)


def build_integrals(mol: Molecule, method: Method) -> Integrals:
    """`Integrals` of a molecule at its own geometry.

    For many geometries of one molecule make a `template` once and call its `build`.

    Raises:
      InputError: as `template`, or where the basis is linearly dependent.
    """
    return template(mol, method).build(mol.positions)


def template(mol: Molecule, method: Method) -> Template:
    """Prepare a molecule for integrals at any geometry.

    Raises:
      InputError: if PySCF lacks the basis for an element, a shell is beyond f, the basis needs an
        effective core potential, there are fewer orbitals than electrons need, or the integrals would
        not fit the memory.
    """
    _leave_cores_to_xla()
    return _cached_template(mol.symbols, mol.charge, mol.spin, method)


@functools.cache
def _leave_cores_to_xla():
    """Make SciPy's LAPACK, which XLA diagonalises with on a CPU, use one thread.

    Its idle threads spin for a while and take the cores from XLA's own: with them an SCF of uracil in def2-SVP took
    1.4 times as long on two cores.
    """
    for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        if library.filepath and pathlib.Path(library.filepath).parent.name == "scipy.libs":
            library.set_num_threads(1)


@functools.lru_cache(maxsize=32)
def _cached_template(symbols, charge, spin, method):
    # Any geometry does: whatever depends on it is asked for later. Far apart, no atoms collide.
    apart = 10.0 * np.arange(3 * len(symbols)).reshape(-1, 3)
    mol = Molecule(symbols, apart, charge, spin=spin)
    moles = libcint.moles(mol, method)
    level = method.grid_level if xc.functional(method.xc).nvar else None
    labels = moles.basis.ao_labels(fmt=False)
    if max(mol.occupied) > len(labels):
        raise InputError(
            f"basis {method.basis!r} has {len(labels)} orbitals for {mol.formula}, whose electrons fill "
            f"{max(mol.occupied)}; def2-svp would do."
        )
    return Template(
        symbols=symbols,
        charge=charge,
        occupied=mol.occupied,
        method=method,
        shells=libcint.shell_groups(moles.basis),
        grid_template=libcint.grid_template(moles.basis, level),
        ao_atom=np.array([label[0] for label in labels]),
        ao_labels=tuple(label.strip() for label in moles.basis.ao_labels()),
        _moles=moles,
        _minao_occupation=libcint.minao_occupation(moles.basis),
    )
