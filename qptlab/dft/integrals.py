"""A molecule and a method in, the integrals of one geometry out: `Integrals`, all that an energy needs to know.

The host makes what must come from libcint; grid, AO values, the layout of two-electron integrals and the guess
density are made on the device. Everything can be differentiated with respect to positions.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft import grid, libcint, padding, repulsion
from qptlab.dft.grid import Numbers
from qptlab.dft.libcint import HostIntegrals
from qptlab.dft.repulsion import Repulsion
from qptlab.errors import InputError
from qptlab.runtime import memory
from qptlab.system.functional import Functional, functional
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

AO_SHARE = 4
"""AO values of one geometry are kept up to a quarter of what integrals may take of the memory; beyond, they are made
anew, chunk by chunk, when needed."""

CHUNK_ELEMENTS = 2**17
"""AO values per chunk of grid points, so that a chunk's arrays stay in a processor's cache."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """What is fixed before anything is compiled; molecules whose layouts and shapes are equal share what is compiled.

    Attributes:
      functional: functional that the integrals are made for.
      nocc: most orbitals that are ever filled, of each spin for an open shell.
      chunk: grid points that are dealt with at a time.
      nderiv: rows of AO values that the functional reads: 0, 1 or 4.
      keeps_aos: whether AO values are kept with a geometry, or made anew when needed.
      fitted: whether two-electron integrals are.
      exchange: whether exact exchange is asked for.
    """

    functional: Functional
    nocc: tuple[int, ...]
    chunk: int
    nderiv: int
    keeps_aos: bool
    fitted: bool
    exchange: bool


class Constants(NamedTuple):
    """What all geometries of one molecule share, as arrays; a pytree.

    Attributes:
      charges: of the nuclei.
      grid: the grid before it is laid on a geometry.
      basis: the atomic orbitals.
      minao_occupation: electrons of each atomic orbital of the `minao` guess.
      nocc: filled orbitals; of each spin for an open shell.
      ao_atom: the atom of each AO.
      ao_mask: which AOs are real, and not there to fill up.
    """

    charges: Float[Numbers, " natm"]
    grid: grid.GridTemplate
    basis: grid.Basis
    minao_occupation: Float[Numbers, " nminao"]
    nocc: Int[Numbers, "*spin"]
    ao_atom: Int[Numbers, " nao"]
    ao_mask: Bool[Numbers, " nao"]


class Integrals(NamedTuple):
    """All that an energy needs to know of one geometry; a pytree, batched by a leading axis.

    Attributes:
      layout: what is fixed before anything is compiled.
      basis: the atomic orbitals.
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
    basis: grid.Basis
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

    @property
    def functional(self) -> Functional:
        """Functional of the energy and the Fock matrix."""
        return self.layout.functional

    def with_functional(self, xc: str | Functional) -> "Integrals":
        """Return the same integrals with a different functional, for instance to compare functionals at one density.

        Args:
          xc: functional, by name or as a record.

        Raises:
          InputError: if the integrals lack what the functional needs.
        """
        record, layout = functional(xc), self.layout
        missing = []
        if record.nvar and not self.coords.shape[-2]:
            missing.append("grid points")
        elif self.aos is not None and record.nderiv > layout.nderiv:
            missing.append("gradients of the atomic orbitals")
        if record.exact_exchange and not layout.exchange:
            missing.append("integrals for exact exchange")
        if missing:
            raise InputError(
                f"Integrals made for functional {layout.functional.name!r} lack {' and '.join(missing)} for "
                f"{record.name!r}; use build_integrals with a method of that functional."
            )
        return self._replace(layout=dataclasses.replace(layout, functional=record))


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """What all geometries of one molecule share: the basis, the grid's point clouds, the electrons.

    Made by `template`. Its methods may be called from several threads at once.

    Attributes:
      symbols: element symbols.
      charge: elementary charges.
      occupied: filled orbitals, of each spin for an open shell.
      method: the method.
      ao_labels: PySCF's labels, such as "0 O 2px".
      layout: the static part of `Integrals`.
      constants: the rest, on the device.
      shape: sizes of all arrays; larger than the molecule's own where it is `padded`.
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
        """Number of grid points, before the last chunk is filled up."""
        return self.shape.ngrids

    @property
    def nocc(self) -> int:
        """Number of doubly occupied orbitals of a closed shell."""
        return self.occupied[-1]

    @property
    def basis(self) -> grid.Basis:
        """The atomic orbitals as the device sees them."""
        return self.constants.basis

    @property
    def ao_atom(self) -> Int[np.ndarray, " nao"]:
        """The atom of each AO."""
        return np.asarray(self.constants.ao_atom)[: self.nao]

    @property
    def eri(self) -> str:
        """How two-electron integrals are held: "exact" or "fitted"; what `auto` has chosen."""
        return "fitted" if self.layout.fitted else "exact"

    @property
    def naux(self) -> int:
        """Auxiliary orbitals of fitted integrals; 0 for exact ones."""
        return 0 if self._moles.aux is None else self._moles.aux.nao

    @property
    def nbytes(self) -> int:
        """Memory that `Integrals` of one geometry take at most, while they are made."""
        exact = libcint.exact_bytes(self.nao, exchange=self.layout.exchange)
        fitted = libcint.fitted_bytes(self.nao, self.naux)
        aos = _ao_bytes(self.layout.nderiv, self.nao, self.ngrids) if self.layout.keeps_aos else 0
        return (fitted if self.layout.fitted else exact) + aos

    @property
    def most_at_once(self) -> int:
        """How many geometries' integrals fit the host's memory together; one at least."""
        return max(1, memory.memory_bytes() // self.nbytes)

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
        return padding.pad_host(libcint.host_integrals(self._moles.at(positions), threads), self.shape)

    def padded(self, shape: padding.Shape, nocc: int) -> "Template":
        """The same molecule in arrays of a larger shape; its real atoms and orbitals come first.

        Args:
          shape: at least as large as the molecule's in every respect.
          nocc: most doubly occupied orbitals of any molecule that is to share what is compiled.
        """
        own = jax.tree.map(np.asarray, self.constants)
        more = shape.nao - self.nao
        constants = Constants(
            charges=np.pad(own.charges, (0, shape.natm - len(own.charges))),
            grid=padding.pad_grid(own.grid, shape),
            basis=padding.pad_basis(own.basis, shape),
            minao_occupation=np.pad(own.minao_occupation, (0, shape.nminao - len(own.minao_occupation))),
            nocc=own.nocc,
            ao_atom=np.pad(own.ao_atom, (0, more)),
            ao_mask=np.pad(own.ao_mask, (0, more)),
        )
        layout = _layout((nocc,), shape.nao, shape.ngrids, self.method, fitted=self.layout.fitted)
        return dataclasses.replace(
            self, layout=layout, constants=jax.tree.map(jnp.asarray, constants), shape=shape
        )

    def complete(self, host: HostIntegrals) -> Integrals:
        """What the device makes of `host_integrals`; compiled once for all molecules of one shape."""
        return complete(self.constants, host, self.layout)

    def build(self, positions: Float[np.ndarray, "natm 3"]) -> Integrals:
        """`Integrals` of one geometry (bohr), on the device."""
        return self.complete(self.host_integrals(positions, threads=None))

    def value_and_gradient(
        self, function: Callable[..., Float[Array, ""]]
    ) -> Callable[..., tuple[Array, np.ndarray]]:
        """A number that depends on the integrals, with its derivative with respect to positions.

        libcint runs before and after what is compiled. (Called back from inside it, two threads could wait for each
        other's: github.com/jax-ml/jax/issues/24255.)

        Args:
          function: of `Integrals` and further arguments; differentiable, and compiled here.

        Returns:
          A function of positions (bohr) and the further arguments: the number, and its slope per bohr, [natm, 3].

        Raises:
          ValueError: for a padded molecule.
        """
        if self.shape.nao != self.nao:
            raise ValueError("a padded molecule was given to differentiate; the same without padding would do.")

        @jax.jit
        def value_and_bar(host, *given):
            def number(host):
                return function(complete(self.constants, host, self.layout), *given)

            return jax.value_and_grad(number)(host)

        def at(positions, *given):
            value, bar = value_and_bar(self.host_integrals(positions, threads=None), *given)
            return value, libcint.pull_back(self._moles.at(positions), jax.tree.map(np.asarray, bar))

        return at

    def overlap(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Overlap of the atomic orbitals at a geometry (bohr)."""
        return self._moles.at(positions).basis.intor_symmetric("int1e_ovlp")

    def dipole_integrals(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "3 nao nao"]:
        """Position integrals ⟨i|r|j⟩ about the origin, bohr."""
        return libcint.dipole_integrals(self._moles.at(positions).basis)

    def atomic_density(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Superposition of the densities of free atoms, electrons per AO pair."""
        own = libcint.atomic_density(self._moles.at(positions[: len(self.symbols)]).basis)
        return np.pad(own, (0, self.shape.nao - self.nao))

    def atomic_potential(self, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "nao nao"]:
        """Fock matrix of a superposition of atomic potentials, hartree."""
        own = libcint.atomic_potential(self._moles.at(positions[: len(self.symbols)]).basis)
        return padding.pad_levels(own, self.shape, padding.ENERGY_HARTREE)


@functools.partial(jax.jit, static_argnames=("layout",))
def complete(constants: Constants, host: HostIntegrals, layout: Layout) -> Integrals:
    """`Integrals` from what libcint has made; compiled, and differentiable with respect to `host`."""
    positions, overlap, hcore, eri, minao_overlap = jax.tree.map(jnp.asarray, host)
    nao = len(overlap)
    chol = jnp.linalg.cholesky(overlap)
    projection = jax.scipy.linalg.cho_solve((chol, True), minao_overlap)
    coords, weights, aos = _points(positions, constants, layout)
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
        orthogonaliser=jax.scipy.linalg.solve_triangular(chol, jnp.eye(nao), lower=True).T,
        dm_guess=(projection * constants.minao_occupation) @ projection.T,
        coords=coords,
        weights=weights,
        aos=aos,
        nocc=jnp.asarray(constants.nocc),
    )


def _points(positions, constants, layout):
    coords, weights = grid.becke_grid(positions, constants.grid)
    chunk, missing = layout.chunk, -len(weights) % layout.chunk
    coords = jnp.concatenate([coords, coords[:1].repeat(missing, axis=0)])
    weights = jnp.concatenate([weights, jnp.zeros(missing)])
    if not layout.keeps_aos:
        return coords, weights, None

    @jax.checkpoint  # backwards a chunk is made again, not remembered
    def values(points):
        return grid.eval_aos(positions, points, constants.basis, derivatives=layout.nderiv > 1)

    return coords, weights, jax.lax.map(values, coords.reshape(-1, chunk, 3))


def _nuclear_repulsion(positions, charges):
    charges = jnp.asarray(charges)
    rows, cols = np.triu_indices(len(charges), k=1)
    distance = jnp.sqrt(jnp.sum((positions[rows] - positions[cols]) ** 2, axis=-1))
    return jnp.sum(charges[rows] * charges[cols] / distance)


def _ao_bytes(nderiv, nao, ngrids):
    return 8 * nderiv * nao * ngrids


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


@functools.lru_cache(maxsize=256)
def _cached_template(symbols, charge, spin, method):
    # Any geometry does: whatever depends on it is asked for later. Far apart, no atoms collide.
    apart = 10.0 * np.arange(3 * len(symbols)).reshape(-1, 3)
    mol = Molecule(symbols, apart, charge, spin=spin)
    moles = libcint.moles(mol, method)
    level = method.grid_level if method.functional.nvar else None
    labels = moles.basis.ao_labels(fmt=False)
    if max(mol.occupied) > len(labels):
        raise InputError(
            f"basis {method.basis!r} has {len(labels)} orbitals for {mol.formula}, whose electrons fill "
            f"{max(mol.occupied)}; def2-svp would do."
        )
    constants = Constants(
        charges=libcint.nuclear_charges(moles),
        grid=libcint.grid_template(moles.basis, level),
        basis=libcint.atomic_orbitals(moles.basis),
        minao_occupation=libcint.minao_occupation(moles.basis),
        nocc=np.squeeze(np.array(mol.occupied)),
        ao_atom=np.array([label[0] for label in labels]),
        ao_mask=np.ones(len(labels), bool),
    )
    return Template(
        symbols=symbols,
        charge=charge,
        occupied=mol.occupied,
        method=method,
        ao_labels=tuple(label.strip() for label in moles.basis.ao_labels()),
        layout=_layout(mol.occupied, len(labels), len(constants.grid.volumes), method, fitted=moles.aux is not None),
        constants=jax.tree.map(jnp.asarray, constants),
        shape=padding.shape_of(
            constants.basis, constants.grid, len(constants.minao_occupation), moles.aux.nao if moles.aux else 0
        ),
        _moles=moles,
    )


def _layout(occupied, nao, ngrids, method, *, fitted):
    nderiv = method.functional.nderiv
    chunk = max(128, CHUNK_ELEMENTS // nao // 128 * 128)
    return Layout(
        functional=method.functional,
        nocc=tuple(occupied),
        chunk=min(chunk, max(1, ngrids)),
        nderiv=nderiv,
        keeps_aos=nderiv > 0 and _ao_bytes(nderiv, nao, ngrids) <= memory.memory_bytes() // AO_SHARE,
        fitted=fitted,
        exchange=method.functional.exact_exchange > 0,
    )
