"""The one door to libcint: a molecule and a method in, the integrals of one geometry out.

The host makes what must come from libcint (overlap, core Hamiltonian, two-electron integrals, the
projection of the minimal-basis guess); grid, AO values and the guess density are made on the device.
"""

import dataclasses
import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pyscf import ao2mo, gto, lib
from pyscf.dft import gen_grid, radi
from pyscf.scf import atom_hf

from qptlab import grid, xc
from qptlab.errors import InputError
from qptlab.method import Method
from qptlab.molecule import Molecule

MAX_ERI_BYTES = 4 * 2**30
"""Exact two-electron integrals above this size are refused."""


class Integrals(NamedTuple):
    """All that an energy needs to know of one geometry; a pytree, batched by a leading axis.

    Attributes:
      positions: nuclei, bohr.
      overlap: of atomic orbitals.
      hcore: kinetic energy and nuclear attraction, hartree.
      eri: (ij|kl) over pairs i ≥ j and k ≥ l, packed as the lower triangle, hartree.
      e_nuc: nuclear repulsion, hartree.
      orthogonaliser: X with Xᵀ·overlap·X = 1.
      dm_guess: PySCF's `minao` guess, electrons per AO pair.
      aos: AO values on the grid, and for a GGA their gradients.
      weights: of the grid points, cubic bohr.
      nocc: number of doubly occupied orbitals.
    """

    positions: Float[Array, "natm 3"]
    overlap: Float[Array, "nao nao"]
    hcore: Float[Array, "nao nao"]
    eri: Float[Array, "npair npair"]
    e_nuc: Float[Array, ""]
    orthogonaliser: Float[Array, "nao nao"]
    dm_guess: Float[Array, "nao nao"]
    aos: Float[Array, "nderiv ngrids nao"]
    weights: Float[Array, " ngrids"]
    nocc: Int[Array, ""]

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return self.overlap.shape[-1]


class HostIntegrals(NamedTuple):
    """What libcint makes of one geometry; `Template.complete` makes `Integrals` of it on the device."""

    positions: Float[np.ndarray, "natm 3"]
    overlap: Float[np.ndarray, "nao nao"]
    hcore: Float[np.ndarray, "nao nao"]
    eri: Float[np.ndarray, "npair npair"]
    e_nuc: Float[np.ndarray, ""]
    minao_overlap: Float[np.ndarray, "nao nminao"]


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """What all geometries of one molecule share: the basis, the grid's point clouds, the electrons.

    Made by `template`. Its methods may be called from several threads at once.

    Attributes:
      molecule: the molecule, at the geometry the template was made with.
      method: the method.
      shells: the basis as the device sees it.
      grid_template: the grid before it is laid on a geometry.
      ao_atom: the atom of each AO.
      ao_labels: PySCF's labels, such as "0 O 2px".
    """

    molecule: Molecule
    method: Method
    shells: tuple[grid.ShellGroup, ...]
    grid_template: grid.GridTemplate
    ao_atom: Int[np.ndarray, " nao"]
    ao_labels: tuple[str, ...]
    _pyscf: gto.Mole
    _minao: gto.Mole
    _minao_occupation: Float[np.ndarray, " nminao"]

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return len(self.ao_atom)

    @property
    def nocc(self) -> int:
        """Number of doubly occupied orbitals."""
        return self.molecule.nelectron // 2

    def host_integrals(self, positions: Float[np.ndarray, "natm 3"]) -> HostIntegrals:
        """The libcint part for one geometry (bohr), on the calling thread."""
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape != (len(self.molecule.symbols), 3):
            raise InputError(
                f"positions of shape {positions.shape} were given for {self.molecule.formula}; "
                f"({len(self.molecule.symbols)}, 3) would do."
            )
        mol, minao = _moved(self._pyscf, positions), _moved(self._minao, positions)
        with lib.with_omp_threads(1):
            return HostIntegrals(
                positions,
                mol.intor_symmetric("int1e_ovlp"),
                mol.intor_symmetric("int1e_kin") + mol.intor_symmetric("int1e_nuc"),
                ao2mo.restore(4, mol.intor("int2e", aosym="s8"), self.nao),
                np.asarray(mol.energy_nuc()),
                gto.intor_cross("int1e_ovlp", mol, minao),
            )

    @functools.cached_property
    def complete(self):
        """A compiled function HostIntegrals → Integrals; a leading batch axis needs `jax.vmap`."""
        return jax.jit(self._complete)

    def _complete(self, host: HostIntegrals) -> Integrals:
        positions, overlap, hcore, eri, e_nuc, minao_overlap = map(jnp.asarray, host)
        coords, weights = grid.becke_grid(positions, self.grid_template)
        aos = grid.eval_aos(positions, coords, self.shells, derivatives=xc.is_gga(self.method.xc))
        chol = jnp.linalg.cholesky(overlap)
        projection = jax.scipy.linalg.cho_solve((chol, True), minao_overlap)
        return Integrals(
            positions=positions,
            overlap=overlap,
            hcore=hcore,
            eri=eri,
            e_nuc=e_nuc,
            orthogonaliser=jax.scipy.linalg.solve_triangular(chol, jnp.eye(self.nao), lower=True).T,
            dm_guess=(projection * self._minao_occupation) @ projection.T,
            aos=aos,
            weights=weights,
            nocc=jnp.asarray(self.nocc),
        )

    def build(self, positions: Float[np.ndarray, "natm 3"]) -> Integrals:
        """`Integrals` of one geometry (bohr), on the device."""
        return self.complete(self.host_integrals(positions))


def build_integrals(mol: Molecule, method: Method) -> Integrals:
    """`Integrals` of a molecule at its own geometry.

    For many geometries of one molecule make a `template` once and call its `build`.

    Raises:
      InputError: as `template`.
    """
    return template(mol, method).build(mol.positions)


def template(mol: Molecule, method: Method) -> Template:
    """Prepare a molecule for integrals at any geometry.

    Raises:
      InputError: if PySCF lacks the basis for an element, a shell is beyond f, the basis needs an
        effective core potential, or the exact two-electron integrals would not fit.
    """
    return _cached_template(mol.symbols, mol.charge, method, mol.positions.tobytes())


@functools.lru_cache(maxsize=32)
def _cached_template(symbols, charge, method, positions_bytes):
    mol = Molecule(symbols, np.frombuffer(positions_bytes).reshape(-1, 3), charge)
    pyscf_mol = pyscf_molecule(mol, method)
    minao, occupation = _minao(pyscf_mol)
    _check_size(pyscf_mol, method)
    return Template(
        molecule=mol,
        method=method,
        shells=_shells(pyscf_mol),
        grid_template=_grid_template(pyscf_mol, method.grid_level),
        ao_atom=np.array([label[0] for label in pyscf_mol.ao_labels(fmt=False)]),
        ao_labels=tuple(label.strip() for label in pyscf_mol.ao_labels()),
        _pyscf=pyscf_mol,
        _minao=minao,
        _minao_occupation=occupation,
    )


def pyscf_molecule(mol: Molecule, method: Method) -> gto.Mole:
    """The molecule as PySCF sees it: spherical AOs, bohr, no symmetry.

    Raises:
      InputError: if PySCF lacks the basis for an element, or it needs a core potential.
    """
    basis = {symbol: _basis_shells(method.basis, symbol) for symbol in sorted(set(mol.symbols))}
    built = gto.M(
        atom=list(zip(mol.symbols, mol.positions.tolist(), strict=True)),
        basis=basis, charge=mol.charge, unit="Bohr", verbose=0,
    )
    if max(shell[0] for shells in basis.values() for shell in shells) > grid.MAX_L:
        raise InputError(
            f"basis {method.basis!r} has shells beyond f for {mol.formula}; def2-svp would do."
        )
    return built


def _basis_shells(name: str, symbol: str) -> list:
    """The shells of a basis for an element, from PySCF's library."""

    def load(library):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PySCF advises another package for unknown names
                return library(name, symbol)
        except (KeyError, RuntimeError, ValueError, OSError, AttributeError, TypeError):
            return None

    shells = load(gto.basis.load)
    if not shells:
        raise InputError(
            f"basis {name!r} is not in PySCF's library for element {symbol}; "
            "sto-3g, 6-31g*, def2-svp or cc-pvdz would do."
        )
    if load(gto.basis.load_ecp):
        raise InputError(
            f"basis {name!r} needs an effective core potential for element {symbol}, which qptlab has not; "
            "def2-svp has all electrons up to Kr."
        )
    return shells


def dipole_integrals(mol: Molecule, method: Method) -> Float[np.ndarray, "3 nao nao"]:
    """Position integrals ⟨i|r|j⟩ about the origin, bohr."""
    return pyscf_molecule(mol, method).intor_symmetric("int1e_r", comp=3)


def _moved(mol: gto.Mole, positions: np.ndarray) -> gto.Mole:
    """A copy at other positions; coordinates live in `_env`, so nothing is parsed again."""
    moved = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
    moved._env = mol._env.copy()
    moved._env[mol._atm[:, gto.PTR_COORD, None] + np.arange(3)] = positions
    return moved


def _minao(mol: gto.Mole) -> tuple[gto.Mole, np.ndarray]:
    """The atomic orbitals and occupations that PySCF's `minao` guess projects from.

    PySCF makes both inside `init_guess_by_minao` and gives away only the result at one geometry;
    kept apart, a new geometry costs one overlap integral. A test holds the two equal.
    """
    elements = {symbol: _minao_shells(symbol) for symbol in {atom[0] for atom in mol._atom}}
    minao = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
    minao._atm, minao._bas, minao._env = minao.make_env(
        mol._atom, {symbol: shells for symbol, (shells, _) in elements.items()}, []
    )
    return minao, np.concatenate([elements[atom[0]][1] for atom in mol._atom])


def _minao_shells(symbol: str) -> tuple[list, np.ndarray]:
    """The occupied atomic natural orbitals of an element, spherically averaged."""
    shells, occupation = [], []
    for l, *rows in gto.basis.load("ano", symbol)[: grid.MAX_L + 1]:
        doubly, fraction = atom_hf.frac_occ(symbol, l)
        filled = [2.0] * doubly + [fraction] * (fraction > 0)
        if filled:
            shells.append([l] + [row[: 1 + len(filled)] for row in rows])
            occupation.append(np.repeat(filled, 2 * l + 1))
    return shells, np.concatenate(occupation)


def _shells(mol: gto.Mole) -> tuple[grid.ShellGroup, ...]:
    """Shells grouped by angular momentum and length, for few and large array operations."""
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
    return tuple(
        grid.ShellGroup(l, *(np.array(column) for column in zip(*entries, strict=True)))
        for (l, _), entries in sorted(groups.items())
    )


def _grid_template(mol: gto.Mole, level: int) -> grid.GridTemplate:
    tables = gen_grid.gen_atomic_grids(
        mol, radi_method=radi.treutler, level=level, prune=gen_grid.nwchem_prune
    )
    clouds = [tables[mol.atom_symbol(i)] for i in range(mol.natm)]
    adjust = radi.treutler_atomic_radii_adjust(mol, radi.BRAGG_RADII)
    return grid.GridTemplate(
        offsets=np.concatenate([points for points, _ in clouds]),
        volumes=np.concatenate([volumes for _, volumes in clouds]),
        owner=np.repeat(np.arange(mol.natm), [len(volumes) for _, volumes in clouds]),
        # g + a(1 − g²) at g = 0 is a itself.
        size_adjustment=np.array(
            [[float(adjust(i, j, 0.0)) for j in range(mol.natm)] for i in range(mol.natm)]
        ),
    )


def eri_bytes(nao: int) -> int:
    """Bytes of the exact two-electron integrals of one geometry.

    >>> eri_bytes(7)
    6272
    """
    npair = nao * (nao + 1) // 2
    return 8 * npair * npair


def _check_size(mol: gto.Mole, method: Method) -> None:
    nbytes = eri_bytes(mol.nao)
    if nbytes > MAX_ERI_BYTES:
        raise InputError(
            f"exact two-electron integrals of {mol.nao} atomic orbitals ({method.basis}) take "
            f"{nbytes / 2**30:.1f} GiB, more than {MAX_ERI_BYTES / 2**30:.0f}; a smaller basis would do."
        )
