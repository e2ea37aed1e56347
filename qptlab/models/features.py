"""Features of a geometry, the input of a network: Kohn–Sham matrices of the guess density, and positions.

They are computed once for each geometry, in float64; the biases are stored in float32. Training stores them with the
geometry and uses them again. They depend on the orientation; so geometries are in the molecule's frame.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft.integrals import Integrals, Template
from qptlab.models.inputs import Guess, Inputs, Orbitals, distances

BIASES = ("hcore", "hcore_orthogonal", "fock", "coul", "vxc", "dm", "overlap", "gram", "distance")
"""Names of the matrices that bias attention, in order.

- `hcore`: core Hamiltonian; `hcore_orthogonal`: the same in Löwdin's orthogonal basis.
- `fock`, `coul`, `dm`: Fock, Coulomb and density matrix of the guess.
- `vxc`: exchange–correlation matrix of the guess, exact exchange included.
- `overlap`: overlap matrix.
- `gram`, `distance`: scalar products and distances of the positions of the orbitals' atoms.

They are the paper's (arXiv:2402.04030) with three changes: J is a matrix of its own, K is part of V_xc, and the
overlap and the distances are added."""


class Features(NamedTuple):
    """Features of one geometry: the input of a network.

    Attributes:
      fock_guess: Fock matrix of the guess density, hartree; the network corrects it.
      biases: matrices over pairs of AOs, in the order of `BIASES`, each divided by its largest absolute element;
        float32.
      positions: position of each AO's atom in the molecule's frame, bohr.
      kinds: index of each AO's kind in the vocabulary.
      mask: true for the molecule's AOs, false for AOs that only pad the arrays.
    """

    fock_guess: Float[Array, "nao nao"]
    biases: Float[Array, "nbias nao nao"]
    positions: Float[Array, "nao 3"]
    kinds: Int[Array, " nao"]
    mask: Bool[Array, " nao"]


def features(ints: Integrals, guess: Guess, orbitals: Orbitals) -> Features:
    """Return the network's input from the Kohn–Sham matrices of the guess density.

    Args:
      ints: integrals of a geometry in the molecule's frame.
      guess: guess density with its matrices.
      orbitals: kinds, atoms and mask of the AOs.
    """
    ao_atom, mask, state = orbitals.ao_atom, orbitals.ao_mask, guess.state
    positions = ints.positions[jnp.asarray(ao_atom)]
    lowdin = guess.screening.inverse_root
    matrices = jnp.stack([
        ints.hcore, lowdin @ ints.hcore @ lowdin, state.fock, state.coul, state.vxc, ints.dm_guess, ints.overlap,
        positions @ positions.T, distances(ints.positions, ao_atom),
    ])
    matrices = jnp.where(mask[:, None] & mask, matrices, 0.0)
    largest = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
    biases = (matrices / jnp.maximum(largest, 1e-12)).astype(jnp.float32)
    return Features(guess.fock, biases, positions, jnp.asarray(orbitals.kinds), jnp.asarray(mask))


def blank() -> Features:
    """Return the features of a single atomic orbital, from whose shapes parameters are made."""
    return Features(
        jnp.zeros((1, 1)), jnp.zeros((len(BIASES), 1, 1), jnp.float32), jnp.zeros((1, 3)), jnp.zeros(1, int),
        jnp.ones(1, bool),
    )


def ao_kinds(template: Template) -> list[str]:
    """Return the kind of each AO: element, shell and component, such as "O 2px".

    The 1s orbitals of two hydrogen atoms have the same kind. The 2px and 2py orbitals of an oxygen atom have
    different kinds.
    """
    return [label.split(maxsplit=1)[1] for label in template.ao_labels]


def _indices(template: Template, vocabulary: tuple[str, ...]) -> Int[np.ndarray, " nao"]:
    return np.pad([vocabulary.index(kind) for kind in ao_kinds(template)], (0, template.shape.nao - template.nao))


def _labels(template: Template) -> list[tuple[str, int]]:
    return list(zip(template.ao_labels, template.ao_atom.tolist(), strict=True))


FRAMED = Inputs(features, ao_kinds, _indices, _labels, blank, framed=True)
"""The paper's inputs: matrices over atomic orbitals, and positions in the molecule's frame."""
