"""The one door to libcint: integrals over Gaussians on the host, and how they move with the atoms.

Everything here is NumPy and PySCF. `HostIntegrals` is what only libcint can make; grids, AO values and whatever
follows are made on the device, from positions. `pull_back` is the reverse derivative of `host_integrals`:
Gaussians move with their atom, so that ∂⟨i|j⟩/∂A is −⟨∇i|j⟩ for i on A, and the sum over all atoms vanishes
(Helgaker, Jørgensen & Olsen 2000, ch. 9).
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pyscf import df, dft, gto, lib
from pyscf.dft import gen_grid, radi
from pyscf.scf import atom_hf, hf

from qptlab.dft import grid, repulsion
from qptlab.errors import InputError
from qptlab.runtime import memory
from qptlab.system import basis_sets
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

AUTO_EXACT_BYTES = 128 * 2**20
"""`auto` holds exact integrals up to this size (some 90 atomic orbitals) and fits beyond."""

MIN_OVERLAP_EIGENVALUE = 1e-8
"""Below it the basis counts as linearly dependent: energies lose half of their digits."""


class HostIntegrals(NamedTuple):
    """What libcint makes of one geometry.

    Attributes:
      positions: nuclei, bohr.
      overlap: of atomic orbitals.
      hcore: kinetic energy and nuclear attraction, hartree.
      eri: exact, (ij|kl) with eightfold symmetry, one array; fitted, (P|ij) and (P|Q), two arrays.
      minao_overlap: between the basis and the atomic orbitals of the `minao` guess.
    """

    positions: Float[np.ndarray, "natm 3"]
    overlap: Float[np.ndarray, "nao nao"]
    hcore: Float[np.ndarray, "nao nao"]
    eri: tuple[np.ndarray, ...]
    minao_overlap: Float[np.ndarray, "nao nminao"]


class Moles(NamedTuple):
    """PySCF's records of one molecule: its basis, the guess's atomic orbitals, the auxiliary basis if any."""

    basis: gto.Mole
    minao: gto.Mole
    aux: gto.Mole | None

    def at(self, positions: Float[np.ndarray, "natm 3"]) -> "Moles":
        """The same at other positions, bohr."""
        aux = None if self.aux is None else _moved(self.aux, positions)
        return Moles(_moved(self.basis, positions), _moved(self.minao, positions), aux)


def moles(mol: Molecule, method: Method) -> Moles:
    """Prepare a molecule for integrals.

    Raises:
      InputError: if PySCF lacks the basis for an element, a shell is beyond f, the basis needs an
        effective core potential, or the integrals would not fit the memory.
    """
    basis = pyscf_molecule(mol, method)
    exact = exact_bytes(basis.nao, exchange=_has_exchange(method))
    if method.eri == "exact" or (method.eri == "auto" and method.auxbasis is None and exact <= AUTO_EXACT_BYTES):
        _check_memory(exact, f"exact two-electron integrals of {basis.nao} atomic orbitals", "eri='fitted'")
        return Moles(basis, _minao(basis)[0], None)
    aux = df.addons.make_auxmol(basis, auxiliary_basis(basis, method))
    nbytes = fitted_bytes(basis.nao, aux.nao)
    what = f"fitted integrals of {basis.nao} atomic and {aux.nao} auxiliary orbitals"
    _check_memory(nbytes, what, "a smaller basis")
    return Moles(basis, _minao(basis)[0], aux)


def host_integrals(given: Moles, threads: int | None) -> HostIntegrals:
    """All integrals of one geometry.

    Args:
      given: the molecule at that geometry.
      threads: OpenMP threads; None for as many as PySCF is set to use.

    Raises:
      InputError: if the basis is linearly dependent at this geometry.
    """
    mol, aux = given.basis, given.aux
    with lib.with_omp_threads(threads):
        overlap = mol.intor_symmetric("int1e_ovlp")
        _check_overlap(overlap, mol)
        if aux is None:
            npair = mol.nao * (mol.nao + 1) // 2
            eri = (mol.intor("int2e", aosym="s8", out=_aligned(npair * (npair + 1) // 2)),)
        else:
            int3c = df.incore.aux_e2(mol, aux, "int3c2e", aosym="s2ij")
            factors = _aligned(*int3c.T.shape)
            factors[...] = int3c.T
            eri = (factors, aux.intor_symmetric("int2c2e"))
        return HostIntegrals(
            mol.atom_coords(), overlap, hcore=mol.intor_symmetric("int1e_kin") + mol.intor_symmetric("int1e_nuc"),
            eri=eri, minao_overlap=gto.intor_cross("int1e_ovlp", mol, given.minao),
        )


def _aligned(*shape: int) -> np.ndarray:
    """An array that XLA takes as it is on a CPU; what does not begin at a multiple of 64 bytes it copies first."""
    raw = np.empty(8 * math.prod(shape) + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 8 * math.prod(shape)].view(np.float64).reshape(shape)


def pull_back(given: Moles, bar: HostIntegrals) -> Float[np.ndarray, "natm 3"]:
    """Reverse derivative of `host_integrals` with respect to positions.

    Args:
      given: the molecule at the geometry.
      bar: derivatives of some number with respect to each integral.

    Returns:
      Derivative of that number, per bohr.
    """
    mol = given.basis
    ao_atom = _function_atom(mol)
    kinetic = mol.intor("int1e_ipkin") + mol.intor("int1e_ipnuc")
    slopes = _bra(mol.intor("int1e_ipovlp"), bar.overlap + bar.overlap.T)
    slopes += _bra(kinetic, bar.hcore + bar.hcore.T)
    slopes += _bra(gto.intor_cross("int1e_ipovlp", mol, given.minao), bar.minao_overlap)
    total = _by_atom(slopes, ao_atom, mol.natm)
    minao_slopes = _bra(gto.intor_cross("int1e_ipovlp", given.minao, mol), bar.minao_overlap.T)
    total += _by_atom(minao_slopes, _function_atom(given.minao), mol.natm)
    total += _nuclei_slopes(mol, bar.hcore + bar.hcore.T)
    if given.aux is None:
        total += _by_atom(_exact_slopes(mol, bar.eri[0]), ao_atom, mol.natm)
    else:
        total += _fitted_slopes(mol, given.aux, *bar.eri)
    return np.asarray(bar.positions) + total


def _bra(derivative, weight):
    """−⟨∇i|…|j⟩·w_ij summed over j: [3, i]."""
    return -np.einsum("xij,ij->xi", derivative, weight)


def _by_atom(slopes, function_atom, natm):
    total = np.zeros((natm, 3))
    np.add.at(total, function_atom, slopes.T)
    return total


def _function_atom(mol: gto.Mole) -> Int[np.ndarray, " nao"]:
    return np.array([label[0] for label in mol.ao_labels(fmt=False)])


def _nuclei_slopes(mol, weight):
    """Attraction to a nucleus that moves: as if all Gaussians moved the other way."""
    total = np.zeros((mol.natm, 3))
    for atom in range(mol.natm):
        with mol.with_rinv_at_nucleus(atom):
            total[atom] = -mol.atom_charge(atom) * np.einsum("xij,ij->x", mol.intor("int1e_iprinv"), weight)
    return total


def _exact_slopes(mol, packed):
    """Four equal contributions, one of each index of (ij|kl); one shell i at a time, to bound memory."""
    nao = mol.nao
    rows, cols = np.tril_indices(nao)
    weight = lib.unpack_tril(np.asarray(packed))  # over pairs, what stands off the diagonal twice
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
        here = weight[pair[functions]] * once[functions, :, None]
        slopes[:, functions] = -4 * np.einsum("xijp,ijp->xi", derivative, here)
    return slopes


def _fitted_slopes(mol, aux, int3c_bar, int2c_bar):
    """The auxiliary function's derivative follows from the other two, because moving all three changes nothing."""
    ao_atom, aux_atom = _function_atom(mol), _function_atom(aux)
    weight = lib.unpack_tril(np.asarray(int3c_bar))  # [naux, nao, nao]
    weight[:, np.arange(mol.nao), np.arange(mol.nao)] *= 2
    total = np.zeros((mol.natm, 3))
    starts = mol.ao_loc_nr()
    together = mol + aux
    for shell in range(mol.nbas):
        functions = slice(starts[shell], starts[shell + 1])
        part = (shell, shell + 1, 0, mol.nbas, mol.nbas, mol.nbas + aux.nbas)
        derivative = together.intor("int3c2e_ip1", shls_slice=part)  # [3, ni, nao, naux]
        slopes = -np.einsum("xijp,pij->xip", derivative, weight[:, functions])
        total += _by_atom(slopes.sum(axis=2), ao_atom[functions], mol.natm)
        total -= _by_atom(slopes.sum(axis=1), aux_atom, mol.natm)
    metric = _bra(aux.intor("int2c2e_ip1"), np.asarray(int2c_bar) + np.asarray(int2c_bar).T)
    return total + _by_atom(metric, aux_atom, mol.natm)


# What a molecule is made of ------------------------------------------------------------------------


def pyscf_molecule(mol: Molecule, method: Method) -> gto.Mole:
    """The molecule as PySCF sees it: spherical AOs, bohr, no symmetry.

    Raises:
      InputError: if PySCF lacks the basis for an element, or it needs a core potential.
    """
    basis_sets.check_files((method.basis, method.auxbasis))
    basis = {symbol: _basis_shells(method.basis, symbol) for symbol in sorted(set(mol.symbols))}
    built = gto.M(
        atom=list(zip(mol.symbols, mol.positions.tolist(), strict=True)),
        basis=basis, charge=mol.charge, spin=mol.spin, unit="Bohr", verbose=0,
    )
    if max(shell[0] for shells in basis.values() for shell in shells) > grid.MAX_L:
        raise InputError(
            f"basis {method.basis!r} has shells beyond f for {mol.formula}; def2-svp would do."
        )
    return built


def _basis_shells(name: str, symbol: str) -> list:
    """The shells of a basis for an element, from PySCF's library."""
    shells = _from_library(gto.basis.load, name, symbol)
    if not shells:
        raise InputError(
            f"basis {name!r} is not in PySCF's library for element {symbol}; "
            "sto-3g, 6-31g*, def2-svp or cc-pvdz would do."
        )
    if _from_library(gto.basis.load_ecp, basis_sets.without_contraction(name), symbol):
        raise InputError(
            f"basis {name!r} needs an effective core potential for element {symbol}, which qptlab has not; "
            "def2-svp has all electrons up to Kr."
        )
    return shells


def _from_library(library, name, symbol):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF advises another package for unknown names
            return library(name, symbol)
    except (KeyError, RuntimeError, ValueError, OSError, AttributeError, TypeError, AssertionError):
        return None


def _has_exchange(method: Method) -> bool:
    return method.functional.exact_exchange > 0


def auxiliary_basis(mol: gto.Mole, method: Method) -> str | dict:
    """The auxiliary basis that was named, or that PySCF takes by default for the basis and functional.

    Raises:
      InputError: if PySCF lacks the named one for an element.
    """
    if method.auxbasis is None:
        named = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
        named.basis = method.basis  # PySCF chooses by the name
        return df.addons.make_auxbasis(named, xc="hf" if _has_exchange(method) else "pbe")
    for symbol in sorted({atom[0] for atom in mol._atom}):
        if not _from_library(gto.basis.load, method.auxbasis, symbol):
            raise InputError(
                f"auxiliary basis {method.auxbasis!r} is not in PySCF's library for element {symbol}; "
                "def2-universal-jkfit would do."
            )
    return method.auxbasis


POTENTIAL_AUXBASIS = "def2-universal-jkfit"
"""Of fitted densities whose potential is asked for; smaller ones miss the charge by a hundredth of an electron."""

POTENTIAL_POINTS = 4096
"""Points at which the potential is worked out at a time."""


def electrostatic_potential(
    mol: Molecule, method: Method, dm: Float[np.ndarray, "nao nao"], points: Float[np.ndarray, "npoint 3"]
) -> Float[np.ndarray, " npoint"]:
    """Potential of nuclei and electrons at points that are no nucleus, hartree per elementary charge.

    That of the electrons is of their density as fitted by the auxiliary basis (Whitten 1973, doi:10.1063/1.1679012),
    whose error is second order in what the fit leaves over.

    Args:
      mol: the geometry.
      method: the level of theory.
      dm: total density matrix.
      points: bohr.

    Raises:
      InputError: as `moles`.
    """
    basis = pyscf_molecule(mol, method)
    aux = df.addons.make_auxmol(basis, method.auxbasis or POTENTIAL_AUXBASIS)
    twice = 2 * dm - np.diag(np.diag(dm))  # of a pair that stands once
    int3c = df.incore.aux_e2(basis, aux, "int3c2e", aosym="s2ij")
    fit = np.linalg.solve(aux.intor_symmetric("int2c2e"), twice[np.tril_indices(basis.nao)] @ int3c)
    found = np.empty(len(points))
    for start in range(0, len(points), POTENTIAL_POINTS):
        part = points[start : start + POTENTIAL_POINTS]
        distance = np.linalg.norm(part[:, None] - basis.atom_coords(), axis=-1)
        charges = gto.fakemol_for_charges(part)
        electrons = fit @ gto.intor_cross("int2c2e", aux, charges)
        found[start : start + POTENTIAL_POINTS] = (1 / distance) @ basis.atom_charges() - electrons
    return found


def dipole_integrals(mol: gto.Mole) -> Float[np.ndarray, "3 nao nao"]:
    """Position integrals ⟨i|r|j⟩ about the origin, bohr."""
    return mol.intor_symmetric("int1e_r", comp=3)


def _moved(mol: gto.Mole, positions: np.ndarray) -> gto.Mole:
    """A copy at other positions; coordinates live in `_env`, so nothing is parsed again."""
    moved = mol.copy(deep=False)  # pyright: ignore[reportCallIssue]
    moved._env = mol._env.copy()
    moved._env[mol._atm[:, gto.PTR_COORD, None] + np.arange(3)] = positions
    return moved


def minao_occupation(mol: gto.Mole) -> Float[np.ndarray, " nminao"]:
    """Electrons of each atomic orbital of the `minao` guess."""
    return _minao(mol)[1]


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


def atomic_density(mol: gto.Mole) -> Float[np.ndarray, "nao nao"]:
    """Superposition of the densities of free, spherical atoms, each from its own Hartree–Fock calculation."""
    with lib.with_omp_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PySCF calls what it deprecates itself
        return np.asarray(hf.init_guess_by_atom(mol))


def atomic_potential(mol: gto.Mole) -> Float[np.ndarray, "nao nao"]:
    """Fock matrix of a superposition of screened atomic potentials (Lehtola 2019, doi:10.1021/acs.jctc.8b01089)."""
    mf = dft.UKS(mol)  # takes any number of electrons, and gives the same matrix for both spins
    mf.grids.level = 1
    with lib.with_omp_threads(1):
        return mol.intor_symmetric("int1e_kin") + np.asarray(mf.get_vsap()[0])


def atomic_orbitals(mol: gto.Mole) -> grid.Basis:
    """The basis as the device sees it, grouped for few and large array operations."""
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


def nuclear_charges(given: Moles) -> Float[np.ndarray, " natm"]:
    """Atomic numbers."""
    return given.basis.atom_charges().astype(np.float64)


def grid_template(mol: gto.Mole, level: int | None) -> grid.GridTemplate:
    """PySCF's atomic point clouds: Treutler–Ahlrichs radii, Lebedev angles, NWChem's pruning; None for no points."""
    if level is None:
        nothing = np.zeros((0, 3))
        return grid.GridTemplate(nothing, nothing[:, 0], nothing[:, 0].astype(int), np.zeros((mol.natm, mol.natm)))
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


# What would not fit, and what would give wrong numbers ---------------------------------------------


def exact_bytes(nao: int, *, exchange: bool) -> int:
    """Bytes of the exact two-electron integrals of one geometry: as libcint packs them, and as they are used.

    >>> exact_bytes(7, exchange=False)
    9520
    """
    npair = nao * (nao + 1) // 2
    rows, ntile = repulsion.tiling(npair)
    return 8 * (npair * (npair + 1) // 2 + ntile * rows**2 * (2 if exchange else 1))


def fitted_bytes(nao: int, naux: int) -> int:
    """Bytes of the fitted two-electron integrals of one geometry, before and after the metric is divided out."""
    return 8 * naux * (nao * (nao + 1) + naux)


def _check_memory(nbytes: int, what: str, alternative: str) -> None:
    if nbytes > memory.memory_bytes():
        raise InputError(
            f"{what} take {nbytes / 2**30:.1f} GiB, more than half of the memory here "
            f"({memory.memory_bytes() / 2**30:.1f} GiB); {alternative} would do."
        )


def _check_overlap(overlap: np.ndarray, mol: gto.Mole) -> None:
    smallest = float(np.linalg.eigvalsh(overlap)[0])
    if smallest < MIN_OVERLAP_EIGENVALUE:
        raise InputError(
            f"the basis is linearly dependent at this geometry of {mol.natm} atoms (smallest eigenvalue of the "
            f"overlap {smallest:.1e}); a smaller basis or atoms farther apart would do."
        )
