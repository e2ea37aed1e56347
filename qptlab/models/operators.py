"""Low-cost quantum chemistry as input of a network: operators over orbitals, and numbers free of axes from them.

After OrbNet (Qiao et al. 2020, arXiv:2007.08026), whose symmetry-adapted orbitals are, per atom and shell,
eigenvectors of the density matrix's block. Their signs are arbitrary, and where two eigenvalues meet so are they: in
dynamics of uracil some inside a p shell come within 0.001 of each other. What is summed over all orbitals of a shell
depends on neither. So a shell is a node here, and what is said of two shells A and B are the sums Σ O_ij·Q_ij over
the orbitals i of A and j of B, for each two operators O and Q: the same in any orthonormal basis of either shell,
polynomials of matrix elements, and so as smooth as these.
"""

import functools
import itertools
import re
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
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE

SOURCES = {"gfn1": ("fock", "dm", "overlap", "hcore"), "guess": ("fock", "dm", "overlap", "hcore", "coul")}
"""Where operators come from, and which: GFN1-xTB, converged; or Hartree–Fock in `GUESS_METHOD`, one diagonalisation
after the `minao` guess. (Its exchange matrix would say nothing new: it is 2·(hcore + coul − fock).)"""

GUESS_METHOD = Method("hf", "sto-3g", eri="exact")
"""No grid, and few enough orbitals for exact integrals."""

TRIPLES = ((0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1))
"""Products of three of a shell's Fock and density blocks whose traces tell the eigenvalues of both apart."""


class Shells(NamedTuple):
    """The shells of a molecule's atomic orbitals.

    Attributes:
      kinds: of each shell, such as "O 2p".
      atoms: the atom of each shell.
      members: the shell of each atomic orbital.
    """

    kinds: tuple[str, ...]
    atoms: Int[np.ndarray, " nshell"]
    members: Int[np.ndarray, " nao"]


class Operators(NamedTuple):
    """What a low-cost calculation says of a geometry; in atomic units.

    Attributes:
      matrices: over atomic orbitals, those that `SOURCES` names.
      energy: total energy.
      dipole: moment about the origin.
      charges: of the atoms.
      gap: between the highest occupied and the lowest virtual level.
    """

    matrices: Float[Array | np.ndarray, "nop nao nao"]
    energy: Float[Array | np.ndarray, ""]
    dipole: Float[np.ndarray, " 3"]
    charges: Float[np.ndarray, " natm"]
    gap: Float[Array | np.ndarray, ""]


class Invariants(NamedTuple):
    """Numbers that no turn, shift or renumbering of axes changes.

    Attributes:
      shell: of each shell: traces of one, two and three of its blocks.
      pair: of each two shells: a sum of products for each two operators.
      distance: between the atoms of two shells, bohr.
    """

    shell: Float[Array, "nshell nfeature"]
    pair: Float[Array, "nshell nshell nproduct"]
    distance: Float[Array, "nshell nshell"]


def check_source(given: str) -> None:
    """Raise an `InputError` for what is none of `SOURCES`."""
    if given not in SOURCES:
        raise InputError(f"{shown(given)} is no source of operators; one of {', '.join(SOURCES)} would do.")


def shells(mol: Molecule, source: str) -> Shells:
    """The shells of a molecule in the basis of a source.

    Raises:
      InputError: for an unknown source, or as `operators`.
    """
    check_source(source)
    return _cached_shells(mol.symbols, mol.charge, mol.spin, source)


@functools.lru_cache(maxsize=1024)
def _cached_shells(symbols, charge, spin, source):
    # Any geometry does, and far apart no atoms collide.
    apart = 10.0 * np.arange(3 * len(symbols)).reshape(-1, 3)
    return _SHELLS[source](Molecule(symbols, apart, charge, spin=spin))


def operators(mol: Molecule, source: str) -> Operators:
    """One low-cost calculation.

    Args:
      mol: a closed shell.
      source: one of `SOURCES`.

    Raises:
      InputError: for an unknown source, an open shell, or where the calculation fails.
    """
    check_source(source)
    if mol.spin:
        raise InputError(
            f"{mol.formula} has {mol.spin} unpaired electrons; a molecule without unpaired electrons would do."
        )
    return _OPERATORS[source](mol)


def guess_operators(ints: Integrals) -> tuple[Float[Array, "nop nao nao"], Float[Array, ""]]:
    """The matrices of the source "guess", and its energy; differentiable.

    Raises:
      InputError: if the integrals lack exact exchange.
    """
    ints = ints.with_functional(GUESS_METHOD.xc)
    first = kohn_sham(ints.dm_guess, ints)
    dm = density_from_fock(first.fock, ints)
    found = kohn_sham(dm, ints)
    return jnp.stack([found.fock, dm, ints.overlap, ints.hcore, found.coul]), found.terms.e_tot


def guess_template(mol: Molecule) -> Template:
    """The template of `GUESS_METHOD`, which makes the integrals of the source "guess"."""
    return integrals.template(mol, GUESS_METHOD)


def invariants(
    matrices: Float[Array, "nop nao nao"],
    positions: Float[Array, "natm 3"],
    members: Int[Array | np.ndarray, " nao"],
    atoms: Int[Array | np.ndarray, " nshell"],
) -> Invariants:
    """Numbers free of axes from operators; differentiable.

    Args:
      matrices: symmetric; the first two are the Fock and the density matrix.
      positions: of the nuclei, bohr.
      members: the shell of each atomic orbital.
      atoms: the atom of each shell.
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
    there = positions[jnp.asarray(atoms)]
    apart = jnp.asarray(atoms)[:, None] != jnp.asarray(atoms)  # the root has no derivative at zero
    squared = jnp.where(apart, jnp.sum((there[:, None] - there) ** 2, axis=-1), 1.0)
    return Invariants(
        jnp.stack([*single, *double, *triple], axis=-1), pair, jnp.where(apart, jnp.sqrt(squared), 0.0)
    )


def _gfn1_shells(mol: Molecule) -> Shells:
    calculator = xtb.gfn1_calculator(mol)
    atoms = np.asarray(calculator.get("shell-map"))
    momenta = np.asarray(calculator.get("angular-momenta"))
    rank = [int(np.sum(atoms[:i] == atoms[i])) for i in range(len(atoms))]  # hydrogen has two s shells
    kinds = tuple(
        f"{mol.symbols[atom]} {number + 1}{'spdf'[momentum]}"
        for atom, number, momentum in zip(atoms, rank, momenta, strict=True)
    )
    return Shells(kinds, atoms, np.asarray(calculator.get("orbital-map")))


def _gfn1_operators(mol: Molecule) -> Operators:
    found = xtb.gfn1(mol)
    overlap, coeff = found.get("overlap-matrix"), found.get("orbital-coefficients")
    levels = found.get("orbital-energies")
    projected = overlap @ coeff  # tblite gives its core Hamiltonian; the Fock matrix follows from the levels
    fock = projected * levels @ projected.T
    matrices = np.stack([fock, found.get("density-matrix"), overlap, found.get("hamiltonian-matrix")])
    nocc = round(float(found.get("orbital-occupations").sum()) / 2)
    return Operators(
        matrices, np.asarray(found.get("energy")), found.get("dipole"), found.get("charges"),
        _gap(mol, nocc, levels),
    )


def _guess_shells(mol: Molecule) -> Shells:
    template = guess_template(mol)
    found: dict[tuple[int, str], int] = {}
    members = []
    for label in template.ao_labels:
        atom, symbol, orbital = label.split()
        shell = re.match(r"\d+[spdf]", orbital)
        members.append(found.setdefault((int(atom), f"{symbol} {shell[0] if shell else orbital}"), len(found)))
    return Shells(tuple(kind for _, kind in found), np.array([atom for atom, _ in found]), np.array(members))


def _guess_operators(mol: Molecule) -> Operators:
    template = guess_template(mol)
    matrices, energy, levels = _compiled_guess(template.build(mol.positions))
    matrices, levels = np.asarray(matrices), np.asarray(levels)
    dm = matrices[1]
    return Operators(
        matrices, np.asarray(energy), dipole_debye(mol, GUESS_METHOD, dm) / AU_DEBYE, charges(mol, GUESS_METHOD, dm),
        _gap(mol, template.nocc, levels),
    )


def _gap(mol, nocc, levels):
    if nocc >= len(levels):
        raise InputError(
            f"{mol.formula} fills all {len(levels)} orbitals of the low-cost method, and has no gap; a molecule with "
            "an empty one would do."
        )
    return np.asarray(levels[nocc] - levels[nocc - 1])


@jax.jit
def _compiled_guess(ints):
    matrices, energy = guess_operators(ints)
    return matrices, energy, orbitals(matrices[0], ints)[0]


_SHELLS: dict[str, Callable[[Molecule], Shells]] = {"gfn1": _gfn1_shells, "guess": _guess_shells}
_OPERATORS: dict[str, Callable[[Molecule], Operators]] = {"gfn1": _gfn1_operators, "guess": _guess_operators}
