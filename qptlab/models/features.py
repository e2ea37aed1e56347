"""Features of a geometry, the input of a network: Kohn–Sham matrices of the guess density, and positions.

They are computed once for each geometry, in float64; the biases are stored in float32. Training stores them with the
geometry and uses them again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qptlab.dft.energy import inverse_root, kohn_sham
from qptlab.dft.grid import Numbers
from qptlab.dft.integrals import Integrals, Template
from qptlab.errors import InputError

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
      kinds: index of each AO's kind in the vocabulary, from `kind_indices`.
      mask: true for the molecule's AOs, false for AOs that only pad the arrays.
    """

    fock_guess: Float[Array, "nao nao"]
    biases: Float[Array, "nbias nao nao"]
    positions: Float[Array, "nao 3"]
    kinds: Int[Array, " nao"]
    mask: Bool[Array, " nao"]


def features(
    ints: Integrals, ao_atom: Int[Numbers, " nao"], kinds: Int[Numbers, " nao"], mask: Bool[Numbers, " nao"]
) -> Features:
    """Build the Kohn–Sham matrices of the guess density and return the network's input.

    Args:
      ints: integrals of a geometry in the molecule's frame.
      ao_atom: index of each AO's atom.
      kinds: index of each AO's kind in the vocabulary.
      mask: true for the molecule's AOs, false for padding.
    """
    guess = kohn_sham(ints.dm_guess, ints)
    positions = ints.positions[jnp.asarray(ao_atom)]
    on_two_atoms = ao_atom[:, None] != ao_atom  # the square root has no derivative at zero
    squared = jnp.sum((positions[:, None] - positions) ** 2, axis=-1)
    distance = jnp.where(on_two_atoms, jnp.sqrt(jnp.where(on_two_atoms, squared, 1.0)), 0.0)
    lowdin = inverse_root(ints.overlap)
    matrices = jnp.stack([
        ints.hcore, lowdin @ ints.hcore @ lowdin, guess.fock, guess.coul, guess.vxc, ints.dm_guess, ints.overlap,
        positions @ positions.T, distance,
    ])
    matrices = jnp.where(mask[:, None] & mask, matrices, 0.0)
    largest = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
    biases = (matrices / jnp.maximum(largest, 1e-12)).astype(jnp.float32)
    return Features(guess.fock, biases, positions, jnp.asarray(kinds), jnp.asarray(mask))


def vocabulary(templates: Sequence[Template]) -> tuple[str, ...]:
    """Return the sorted kinds (element, shell, component; such as "O 2px") of the AOs of molecules.

    The 1s orbitals of two hydrogen atoms have the same kind. The 2px and 2py orbitals of an oxygen atom have
    different kinds.
    """
    return tuple(sorted({kind for template in templates for kind in _kinds(template)}))


def kind_indices(template: Template, kinds: tuple[str, ...]) -> Int[np.ndarray, " nao"]:
    """Return the index of each AO's kind in a vocabulary; AOs that pad the arrays have index 0.

    Args:
      template: template of the molecule, padded or not.
      kinds: vocabulary, from `vocabulary`.

    Raises:
      InputError: if the vocabulary lacks a kind.
    """
    ao_kinds = _kinds(template)
    missing = sorted(set(ao_kinds) - set(kinds))
    if missing:
        elements = ", ".join(sorted({kind.split()[0] for kind in kinds}))
        raise InputError(
            f"Expected atomic orbitals of the training set, got {', '.join(missing)}; use a molecule of the elements "
            f"{elements} in the same basis."
        )
    return np.pad([kinds.index(kind) for kind in ao_kinds], (0, template.shape.nao - template.nao))


def _kinds(template: Template) -> list[str]:
    return [label.split(maxsplit=1)[1] for label in template.ao_labels]
