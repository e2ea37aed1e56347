"""Low-cost quantum chemistry as input of a network: operators over atomic orbitals, and invariants of them.

The nodes of OrbNet (Qiao et al. 2020, arXiv:2007.08026) are symmetry-adapted orbitals: for each shell of an atom, the
eigenvectors of its block of the density matrix. Their signs are arbitrary. Where two eigenvalues are equal, the
eigenvectors are arbitrary as well; in dynamics of uracil, some eigenvalues of a p shell differ by less than 0.001.
A sum over all orbitals of a shell depends on neither. Therefore a node is a shell here. The features of two shells A
and B are the sums Σ O_ij·Q_ij over the orbitals i of A and j of B, for each pair of operators O and Q. These sums are
the same in any orthonormal basis of either shell. They are polynomials of matrix elements, and so they are as smooth
as the matrix elements.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qptlab import xtb
from qptlab.dft import integrals
from qptlab.dft.energy import density_from_fock, kohn_sham, orbitals
from qptlab.dft.integrals import Integrals, Template
from qptlab.dft.properties import charges, dipole_debye
from qptlab.errors import InputError, shown
from qptlab.models.inputs import distances, shell_of
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE

SOURCES = {"gfn1": ("fock", "dm", "overlap", "hcore"), "guess": ("fock", "dm", "overlap", "hcore", "coul")}
"""Sources of operators, with the names of their operators in order. "gfn1" is a converged GFN1-xTB calculation;
"guess" is Hartree–Fock with `GUESS_METHOD`, one diagonalisation after the `minao` guess. The exchange matrix is left
out because it follows from the others: it is 2·(hcore + coul − fock)."""

GUESS_METHOD = Method("hf", "sto-3g", eri="exact")
"""Method of the source "guess". It needs no grid, and has few enough orbitals for exact integrals."""

TRIPLES = ((0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1))
"""Products of three operators whose traces over a shell are features: 0 is the Fock matrix, 1 the density matrix.
Together with the traces of one and two blocks, they determine the eigenvalues of both blocks of a p shell."""


class Shells(NamedTuple):
    """Shells of a molecule's atomic orbitals.

    Attributes:
      kinds: kind of each shell, such as "O 2p".
      atoms: index of each shell's atom.
      members: index of each atomic orbital's shell.
    """

    kinds: tuple[str, ...]
    atoms: Int[np.ndarray, " nshell"]
    members: Int[np.ndarray, " nao"]


class Operators(NamedTuple):
    """Results of a low-cost calculation of one geometry, in atomic units.

    Attributes:
      matrices: operators over atomic orbitals, in the order of `SOURCES`.
      energy: total energy, hartree.
      dipole: dipole moment about the origin, e·bohr.
      charges: charges of the atoms, elementary charges.
      gap: difference between the lowest virtual and the highest occupied orbital energy, hartree.
    """

    matrices: Float[Array | np.ndarray, "nop nao nao"]
    energy: Float[Array | np.ndarray, ""]
    dipole: Float[np.ndarray, " 3"]
    charges: Float[np.ndarray, " natm"]
    gap: Float[Array | np.ndarray, ""]


class Invariants(NamedTuple):
    """Features of shells and of pairs of shells that no rotation or translation of the molecule changes.

    Attributes:
      shell: features of each shell: traces of products of one, two and three of its blocks of the operators.
      pair: features of each pair of shells: Σ O_ij·Q_ij for each pair of operators.
      distance: distance between the atoms of two shells, bohr.
    """

    shell: Float[Array, "nshell nfeature"]
    pair: Float[Array, "nshell nshell nproduct"]
    distance: Float[Array, "nshell nshell"]


def check_source(source: str) -> None:
    """Raise an `InputError` for a name that is not one of `SOURCES`."""
    if source not in SOURCES:
        raise InputError(f"Expected one of {', '.join(SOURCES)} as source of operators, got {shown(source)}.")


def shells(mol: Molecule, source: str) -> Shells:
    """Return the shells of a molecule in the basis of a source.

    Args:
      mol: molecule; its geometry does not matter.
      source: one of `SOURCES`.

    Raises:
      InputError: if the source is not one of `SOURCES`, or cannot treat the molecule.
    """
    check_source(source)
    return _cached_shells(mol.symbols, mol.charge, mol.spin, source)


@functools.lru_cache(maxsize=1024)
def _cached_shells(symbols: tuple[str, ...], charge: int, spin: int, source: str) -> Shells:
    # Shells do not depend on the geometry. Far from each other, no two atoms are too close for the programs.
    positions = 10.0 * np.arange(3 * len(symbols)).reshape(-1, 3)
    return _SHELLS[source](Molecule(symbols, positions, charge, spin=spin))


def operators(mol: Molecule, source: str) -> Operators:
    """Run one low-cost calculation.

    Args:
      mol: closed-shell molecule.
      source: one of `SOURCES`.

    Raises:
      InputError: if the source is not one of `SOURCES`, if the molecule has unpaired electrons, or if the calculation
        fails.
    """
    check_source(source)
    if mol.spin:
        raise InputError(
            f"Expected a closed-shell molecule, got {mol.formula} with {mol.spin} unpaired electrons; use a molecule "
            "or a charge without unpaired electrons."
        )
    return _OPERATORS[source](mol)


def guess_operators(ints: Integrals) -> tuple[Float[Array, "nop nao nao"], Float[Array, ""]]:
    """Return the matrices of the source "guess" and its energy, hartree; differentiable.

    Args:
      ints: integrals of `guess_template`.

    Raises:
      InputError: if the integrals lack exact exchange.
    """
    ints = ints.with_functional(GUESS_METHOD.xc)
    first = kohn_sham(ints.dm_guess, ints)
    dm = density_from_fock(first.fock, ints)
    state = kohn_sham(dm, ints)
    return jnp.stack([state.fock, dm, ints.overlap, ints.hcore, state.coul]), state.terms.e_tot


def guess_template(mol: Molecule) -> Template:
    """Return the template of the integrals for the source "guess"."""
    return integrals.template(mol, GUESS_METHOD)


def invariants(
    matrices: Float[Array, "nop nao nao"],
    positions: Float[Array, "natm 3"],
    members: Int[Array | np.ndarray, " nao"],
    atoms: Int[Array | np.ndarray, " nshell"],
) -> Invariants:
    """Return the invariant features of operators; differentiable.

    Args:
      matrices: symmetric operators; the first two are the Fock and the density matrix.
      positions: nuclear positions, bohr.
      members: index of each atomic orbital's shell; -1 for an orbital that only pads the arrays.
      atoms: index of each shell's atom.
    """
    nop, nshell = len(matrices), len(atoms)
    belongs = jax.nn.one_hot(members, nshell, dtype=matrices.dtype)  # [nao, nshell]
    products = list(itertools.combinations_with_replacement(range(nop), 2))
    pair = jnp.stack([belongs.T @ (matrices[o] * matrices[q]) @ belongs for o, q in products], axis=-1)
    same = jnp.asarray(members)[:, None] == jnp.asarray(members)
    blocks = jnp.where(same, matrices, 0.0)
    single = [jnp.diagonal(block) @ belongs for block in blocks]
    double = [jnp.diagonal(pair[..., k]) for k in range(len(products))]
    triple = [jnp.diagonal(blocks[a] @ blocks[b] @ blocks[c]) @ belongs for a, b, c in TRIPLES]
    return Invariants(jnp.stack([*single, *double, *triple], axis=-1), pair, distances(positions, atoms))


def _gfn1_shells(mol: Molecule) -> Shells:
    calculator = xtb.gfn1_calculator(mol.to_ase())
    atoms = np.asarray(calculator.get("shell-map"))
    momenta = np.asarray(calculator.get("angular-momenta"))
    rank = [int(np.sum(atoms[:i] == atoms[i])) for i in range(len(atoms))]  # hydrogen has two s shells
    kinds = tuple(
        f"{mol.symbols[atom]} {number + 1}{'spdf'[momentum]}"
        for atom, number, momentum in zip(atoms, rank, momenta, strict=True)
    )
    return Shells(kinds, atoms, np.asarray(calculator.get("orbital-map")))


def _gfn1_operators(mol: Molecule) -> Operators:
    result = xtb.gfn1(mol.to_ase())
    overlap, coeff = result.get("overlap-matrix"), result.get("orbital-coefficients")
    levels = result.get("orbital-energies")
    projected = overlap @ coeff  # tblite lacks the Fock matrix; it follows from the orbital energies
    fock = projected * levels @ projected.T
    matrices = np.stack([fock, result.get("density-matrix"), overlap, result.get("hamiltonian-matrix")])
    nocc = round(float(result.get("orbital-occupations").sum()) / 2)
    return Operators(
        matrices, np.asarray(result.get("energy")), result.get("dipole"), result.get("charges"),
        _gap(mol, nocc, levels),
    )


def _guess_shells(mol: Molecule) -> Shells:
    template = guess_template(mol)
    indices: dict[tuple[int, str], int] = {}  # of each atom and kind
    members = []
    for label in template.ao_labels:
        members.append(indices.setdefault(shell_of(label), len(indices)))
    return Shells(tuple(kind for _, kind in indices), np.array([atom for atom, _ in indices]), np.array(members))


def _guess_operators(mol: Molecule) -> Operators:
    template = guess_template(mol)
    matrices, energy, levels = _compiled_guess(template.build(mol.positions))
    matrices, levels = np.asarray(matrices), np.asarray(levels)
    dm = matrices[1]
    return Operators(
        matrices, np.asarray(energy), dipole_debye(mol, GUESS_METHOD, dm) / AU_DEBYE, charges(mol, GUESS_METHOD, dm),
        _gap(mol, template.nocc, levels),
    )


def _gap(mol: Molecule, nocc: int, levels: Float[np.ndarray, " nmo"]) -> Float[np.ndarray, ""]:
    if nocc >= len(levels):
        raise InputError(
            f"Expected a molecule with an empty orbital, got {mol.formula}, which fills all {len(levels)} orbitals "
            "of the low-cost method and has no gap; use a different molecule."
        )
    return np.asarray(levels[nocc] - levels[nocc - 1])


@jax.jit
def _compiled_guess(
    ints: Integrals,
) -> tuple[Float[Array, "nop nao nao"], Float[Array, ""], Float[Array, " nmo"]]:
    matrices, energy = guess_operators(ints)
    return matrices, energy, orbitals(matrices[0], ints)[0]


_SHELLS: dict[str, Callable[[Molecule], Shells]] = {"gfn1": _gfn1_shells, "guess": _guess_shells}
_OPERATORS: dict[str, Callable[[Molecule], Operators]] = {"gfn1": _gfn1_operators, "guess": _guess_operators}
