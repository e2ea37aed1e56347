"""What a network is shown of a geometry: the guess's Kohn–Sham matrices and the positions.

Computed once per geometry, in float64, and kept with it while it is reused in training.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qptlab.energy import kohn_sham
from qptlab.integrals import Integrals, Template

BIASES = ("hcore", "fock", "coul", "vxc", "dm", "overlap", "distance")
"""The matrices that bias attention, in order; all but the last two are of the guess density."""


class Features(NamedTuple):
    """One geometry as the network sees it.

    Attributes:
      fock_guess: Fock matrix of the guess density, hartree: what the network corrects.
      biases: matrices over AO pairs, in the order of `BIASES`, each scaled by its largest entry.
      positions: the atom of each AO, in the molecule's frame, bohr.
    """

    fock_guess: Float[Array, "nao nao"]
    biases: Float[Array, "nbias nao nao"]
    positions: Float[Array, "nao 3"]


def features(ints: Integrals, ao_atom: Int[np.ndarray, " nao"], xc: str) -> Features:
    """Evaluate the guess density once and collect what the network reads.

    Args:
      ints: a geometry in the molecule's frame.
      ao_atom: the atom of each AO.
      xc: functional.
    """
    guess = kohn_sham(ints.dm_guess, ints, xc)
    positions = ints.positions[ao_atom]
    apart = ao_atom[:, None] != ao_atom  # the root has no derivative at zero
    squared = jnp.sum((positions[:, None] - positions) ** 2, axis=-1)
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
    matrices = jnp.stack(
        [ints.hcore, guess.fock, guess.coul, guess.vxc, ints.dm_guess, ints.overlap, distance]
    )
    largest = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
    return Features(guess.fock, matrices / jnp.maximum(largest, 1e-12), positions)


def ao_kinds(template: Template) -> tuple[Int[np.ndarray, " nao"], int]:
    """A number for each AO's kind (element, shell, component), and how many kinds there are.

    Two hydrogens' 1s have one kind; an oxygen's 2px and 2py have two.
    """
    labels = [label.split(maxsplit=1)[1] for label in template.ao_labels]
    kinds = sorted(set(labels))
    return np.array([kinds.index(label) for label in labels]), len(kinds)
