"""Register of random streams: every purpose of random numbers that follow a training's seed.

The purpose is the first number of a generator's seed. Two purposes therefore never draw the same numbers, whatever
the user's seed is. A number in this list must not change: a resumed training has to draw what it would have drawn.

Two kinds of random numbers are not in the list. Networks draw their parameters with JAX (`jax.random.key(seed)`).
A few modules use fixed random points that depend on no seed of the user (`np.random.default_rng(0)`).
"""

import enum
from collections.abc import Sequence

import numpy as np


@enum.unique
class Purpose(enum.IntEnum):
    """Purposes of random numbers.

    Attributes:
      TRAINING_GEOMETRIES: geometries to train on. Seed: seed, index of the molecule, chain, segment.
      VALIDATION_GEOMETRIES: geometries to validate on. Seed: seed, index of the molecule, segment.
      BATCHES: order of the molecules and draws from the replay buffer. Seed: seed, step.
      WALK: steps of a walk in the model's Boltzmann distribution. Seed: seed, index of the molecule, chain.
      LABELLED_BATCHES: order of labelled geometries. Seed: seed.
      SPLIT: separation of labelled geometries into training and test sets. Seed: seed.
      STATISTICS: geometries from which statistics of features are taken. Seed: seed.
      SELECTION: molecules drawn from a data set. Seed: seed.
      TEST_GEOMETRIES: geometries that a user draws, to test on. Seed: seed, segment.
    """

    TRAINING_GEOMETRIES = 0
    VALIDATION_GEOMETRIES = 1
    BATCHES = 2
    WALK = 4
    LABELLED_BATCHES = 5
    SPLIT = 7
    STATISTICS = 8
    SELECTION = 9
    TEST_GEOMETRIES = 10


def generator(purpose: Purpose, seed: int | Sequence[int], *numbers: int) -> np.random.Generator:
    """Return the generator of a purpose.

    Args:
      purpose: purpose of the random numbers.
      seed: the user's seed, one number or several.
      *numbers: numbers that separate streams of one purpose, such as the step or the segment.

    >>> generator(Purpose.BATCHES, 0, 3).integers(1000) == np.random.default_rng([2, 0, 3]).integers(1000)
    np.True_
    """
    return np.random.default_rng([purpose, *np.atleast_1d(seed), *numbers])
