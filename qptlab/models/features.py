"""What a network is shown of a geometry: the guess's Kohn–Sham matrices and the positions.

Computed once per geometry, in float64, and kept with it while it is reused in training.
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
"""The matrices that bias attention, in order: core Hamiltonian, also in Löwdin's orthogonal basis; Fock, Coulomb,
exchange–correlation (exact exchange in it) and density matrix of the guess; overlap; products of positions and their
distances. Those of the paper, but that J stands by itself and K with V_xc; overlap and distance are added."""


class Features(NamedTuple):
    """One geometry as the network sees it.

    Attributes:
      fock_guess: Fock matrix of the guess density, hartree: what the network corrects.
      biases: matrices over AO pairs, in the order of `BIASES`, each scaled by its largest entry; float32.
      positions: the atom of each AO, in the molecule's frame, bohr.
      kinds: number of each AO's kind, from `numbered`.
      mask: which AOs are real.
    """

    fock_guess: Float[Array, "nao nao"]
    biases: Float[Array, "nbias nao nao"]
    positions: Float[Array, "nao 3"]
    kinds: Int[Array, " nao"]
    mask: Bool[Array, " nao"]


def features(
    ints: Integrals, ao_atom: Int[Numbers, " nao"], kinds: Int[Numbers, " nao"], mask: Bool[Numbers, " nao"]
) -> Features:
    """Evaluate the guess density once and collect what the network reads.

    Args:
      ints: a geometry in the molecule's frame.
      ao_atom: the atom of each AO.
      kinds: number of each AO's kind.
      mask: which AOs are real.
    """
    guess = kohn_sham(ints.dm_guess, ints)
    positions = ints.positions[jnp.asarray(ao_atom)]
    apart = ao_atom[:, None] != ao_atom  # the root has no derivative at zero
    squared = jnp.sum((positions[:, None] - positions) ** 2, axis=-1)
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
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
    """All kinds of AOs (element, shell, component) in some molecules, such as "O 2px", sorted.

    Two hydrogens' 1s have one kind; an oxygen's 2px and 2py have two.
    """
    return tuple(sorted({kind for template in templates for kind in _kinds(template)}))


def numbered(template: Template, known: tuple[str, ...]) -> Int[np.ndarray, " nao"]:
    """The number of each AO's kind in a vocabulary; zeros fill up a padded molecule.

    Raises:
      InputError: if one is not in it.
    """
    kinds = _kinds(template)
    strange = sorted(set(kinds) - set(known))
    if strange:
        elements = ", ".join(sorted({kind.split()[0] for kind in known}))
        raise InputError(
            f"atomic orbitals {', '.join(strange)} were not among those trained on; "
            f"a molecule of {elements} in the same basis would do."
        )
    return np.pad([known.index(kind) for kind in kinds], (0, template.shape.nao - template.nao))


def _kinds(template):
    return [label.split(maxsplit=1)[1] for label in template.ao_labels]
