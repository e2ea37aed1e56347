"""What a network needs of a geometry: the matrices of the guess, and features that are computed from them."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft.energy import KohnSham
from qptlab.dft.grid import Numbers
from qptlab.dft.integrals import Integrals, Template
from qptlab.dft.screening import Screened, Screening


def shell_of(label: str) -> tuple[int, str]:
    """Return atom and kind of the shell of an atomic orbital.

    Args:
      label: PySCF's label of the orbital.

    >>> shell_of("0 O 2px")
    (0, 'O 2p')
    """
    atom, symbol, orbital = label.split()
    shell = re.match(r"\d+[spdf]", orbital)
    return int(atom), f"{symbol} {shell[0] if shell else orbital}"


def distances(positions: Float[Numbers, "natm 3"], atoms: Int[Numbers, " n"]) -> Float[Array, "n n"]:
    """Return the distances between the atoms of tokens, bohr; zero, without a derivative, on one atom.

    Args:
      positions: nuclear positions, bohr.
      atoms: index of each token's atom.
    """
    index = jnp.asarray(atoms)
    centres, on_two_atoms = jnp.asarray(positions)[index], index[:, None] != index
    # The square root has no derivative at zero.
    squared = jnp.where(on_two_atoms, jnp.sum((centres[:, None] - centres) ** 2, axis=-1), 1.0)
    return jnp.where(on_two_atoms, jnp.sqrt(squared), 0.0)


class Guess(NamedTuple):
    """Guess density of a geometry with its matrices, from which a network's features are computed.

    Attributes:
      state: Kohn–Sham matrices of the guess density.
      fock: Fock matrix that the network corrects, hartree: of the guess density with, unless the scheme is "mixing",
        the potential of the electrons that move in the first diagonalisation.
      screening: charge model of the geometry.
      screened: solution of the charge model for the guess density.
    """

    state: KohnSham
    fock: Float[Array, "nao nao"]
    screening: Screening
    screened: Screened


class Orbitals(NamedTuple):
    """What the arrays of a molecule stand for.

    Attributes:
      kinds: index of the kind of each token of the network (atomic orbital or shell) in the model's vocabulary.
      ao_atom: index of each AO's atom.
      ao_mask: true for the molecule's AOs, false for AOs that only pad the arrays.
    """

    kinds: Int[Array, " ntoken"]
    ao_atom: Int[Array, " nao"]
    ao_mask: Bool[Array, " nao"]


class Inputs(NamedTuple):
    """How a network sees a geometry.

    Attributes:
      features: function `features(ints, guess, orbitals)` that returns a pytree of arrays with at least the fields
        `fock_guess`, the Fock matrix that is corrected, and `mask`, which is true for the molecule's AOs.
      kinds: function that returns the kind of each token of a template without padding, such as "O 2p". An atom of
        an element has the same kinds in all molecules.
      indices: function `indices(template, vocabulary)` that returns the index of each token's kind, padding included.
      labels: function that returns name and atom of each token of a template without padding.
      blank: features of the smallest geometry, from whose shapes parameters are made.
      framed: true if positions have to be in the molecule's frame, because the network is not equivariant.
    """

    features: Callable[[Integrals, Guess, Orbitals], Any]
    kinds: Callable[[Template], list[str]]
    indices: Callable[[Template, tuple[str, ...]], Int[Numbers, " ntoken"]]
    labels: Callable[[Template], list[tuple[str, int]]]
    blank: Callable[[], Any]
    framed: bool
