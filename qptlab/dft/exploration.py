"""SCF of one molecule with several algorithms and every cycle stored, for inspection rather than for speed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qptlab.dft import integrals
from qptlab.dft.energy import fock
from qptlab.dft.integrals import Integrals, Template
from qptlab.dft.scf import DIIS_SPACE, GUESSES, SCFResult, guess_density, minimise, solve
from qptlab.errors import InputError
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

ALGORITHMS = ("plain iteration", "mixed by one half", "DIIS", "gradient descent (L-BFGS)")
"""Algorithms that are compared, in the order of `Exploration.paths`."""

CYCLES = 40
"""Cycles after which each SCF ends; plain iteration may never converge."""


class Exploration(NamedTuple):
    """SCF calculations of one molecule with all algorithms from the same guess.

    Attributes:
      molecule: molecule.
      guess: initial guess, one of `scf.GUESSES`.
      template: molecule and method, ready for integrals.
      ints: integrals.
      paths: result of each algorithm in `ALGORITHMS`, with the density matrix of every cycle.
    """

    molecule: Molecule
    guess: str
    template: Template
    ints: Integrals
    paths: dict[str, SCFResult]

    @property
    def method(self) -> Method:
        """Level of theory."""
        return self.template.method

    @property
    def lowest(self) -> float:
        """Return the lowest converged energy, hartree; if no algorithm converged, the lowest final energy."""
        ends = [path for path in self.paths.values() if path.converged] or list(self.paths.values())
        return min(float(path.energy) for path in ends)

    def summary(self) -> str:
        """Return a sentence that says how each SCF ended."""
        ends = []
        for algorithm, path in self.paths.items():
            outcome = "converged after" if path.converged else "not converged after"
            ends.append(f"{algorithm}: {outcome} {int(path.cycles)} cycles")
        return f"Lowest energy {self.lowest:.9f} hartree. {'; '.join(ends)}."

    def matrices(self, algorithm: str, cycle: int) -> dict[str, Float[np.ndarray, "nao nao"]]:
        """Return overlap, core Hamiltonian, total density matrix and Fock matrix (first spin of an open shell).

        Args:
          algorithm: one of `ALGORITHMS`.
          cycle: number of the cycle; 0 is the guess. After its last cycle, an SCF stays where it ended.

        Raises:
          InputError: if the algorithm is not known, or the cycle is negative.
        """
        if algorithm not in self.paths or cycle < 0:
            raise InputError(
                f"Expected an algorithm and a cycle from 0, got cycle {cycle} of {algorithm!r}; use one of "
                f"{', '.join(ALGORITHMS)}."
            )
        path = self.paths[algorithm]
        if path.history.dm is None:
            raise InputError("Expected an SCF with stored density matrices, got one without; use `explore`.")
        dm = path.history.dm[min(cycle, int(path.cycles))]
        matrix = np.asarray(_fock(dm, self.ints))
        return {
            "Overlap S": np.asarray(self.ints.overlap),
            "Core Hamiltonian h, hartree": np.asarray(self.ints.hcore),
            "Density matrix D, electrons": np.asarray(dm).reshape(-1, *matrix.shape[-2:]).sum(axis=0),
            "Fock matrix F(D), hartree": matrix.reshape(-1, *matrix.shape[-2:])[0],
        }


_fock = jax.jit(fock)


def explore(
    mol: Molecule,
    method: Method,
    guess: str = "minao",
    cycles: int = CYCLES,
    progress: Callable[[int, int, str], None] = lambda done, total, activity: None,
) -> Exploration:
    """Run an SCF with each of `ALGORITHMS` from one guess.

    Args:
      mol: molecule.
      method: level of theory.
      guess: initial guess, one of `scf.GUESSES`.
      cycles: number of cycles after which each SCF ends.
      progress: callback ``progress(done, total, activity)``, called before each part of the work. An exception that
        it raises ends the work.

    Raises:
      InputError: if the guess is not known, or `integrals.template` raises it.
    """
    if guess not in GUESSES:
        raise InputError(f"Expected a known guess, got {guess!r}; use one of {', '.join(GUESSES)}.")
    total = 1 + len(ALGORITHMS)
    progress(0, total, "integrals")
    template = integrals.template(mol, method)
    ints = template.build(mol.positions)
    dm = guess_density(guess, template, ints, 0)
    paths = {}
    for algorithm in ALGORITHMS:
        progress(1 + len(paths), total, algorithm)
        if algorithm == ALGORITHMS[-1]:
            paths[algorithm] = minimise(ints, dm, max_cycles=cycles, trace=True)
        else:
            space = DIIS_SPACE if algorithm == ALGORITHMS[2] else 1
            damping = 0.5 if algorithm == ALGORITHMS[1] else 0.0
            paths[algorithm] = solve(ints, dm, 0.0, damping, max_cycles=cycles, space=space, trace=True)
    return Exploration(mol, guess, template, ints, paths)
