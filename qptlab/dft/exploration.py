"""One molecule's SCF searched in several ways, every cycle remembered: to be looked at, not for speed."""

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

WAYS = ("plain iteration", "mixed by one half", "DIIS", "gradient descent (L-BFGS)")
"""Ways to the ground state, in the order of `Exploration.paths`."""

CYCLES = 40
"""After which a way ends; plain iteration may never converge."""


class Exploration(NamedTuple):
    """What `explore` found.

    Attributes:
      molecule: the molecule.
      method: the level of theory.
      guess: where all ways start.
      template: the basis.
      ints: the integrals.
      paths: the search of each way, in the order of `WAYS`, with the density matrix of every cycle.
    """

    molecule: Molecule
    method: Method
    guess: str
    template: Template
    ints: Integrals
    paths: dict[str, SCFResult]

    @property
    def lowest(self) -> float:
        """Energy of the lowest solution found, hartree; of the lowest energy at an end if none converged."""
        ends = [path for path in self.paths.values() if path.converged] or list(self.paths.values())
        return min(float(path.energy) for path in ends)

    def words(self) -> str:
        """How each way ended, in a sentence."""
        ends = []
        for way, path in self.paths.items():
            how = "converged after" if path.converged else "not converged after"
            ends.append(f"{way}: {how} {int(path.cycles)} cycles")
        return f"Lowest energy {self.lowest:.9f} hartree. {'; '.join(ends)}."

    def matrices(self, way: str, cycle: int) -> dict[str, Float[np.ndarray, "nao nao"]]:
        """Overlap, core Hamiltonian, total density matrix and Fock matrix (of an open shell, of the first spin).

        Args:
          way: one of `WAYS`.
          cycle: 0 is the guess; beyond its last cycle a search stays where it ended.

        Raises:
          InputError: for another way, or a negative cycle.
        """
        if way not in self.paths or cycle < 0:
            raise InputError(f"cycle {cycle} of {way!r} is not known; 0 of {WAYS[2]!r} would do.")
        path = self.paths[way]
        kept = path.history.dm
        if kept is None:
            raise InputError("the density matrices of this search were not kept; `explore` keeps them.")
        dm = kept[min(cycle, int(path.cycles))]
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
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Exploration:
    """Search the ground state in all of `WAYS` from one guess.

    Args:
      mol: the molecule.
      method: the level of theory.
      guess: one of `scf.GUESSES`.
      cycles: after which a way ends.
      progress: told how many parts are done, of how many, and what comes next; what it raises ends the work.

    Raises:
      InputError: as `scf.scf`.
    """
    if guess not in GUESSES:
        raise InputError(f"guess {guess!r} is not known; one of {', '.join(GUESSES)} would do.")
    total = 1 + len(WAYS)
    progress(0, total, "integrals")
    template = integrals.template(mol, method)
    ints = template.build(mol.positions)
    dm = guess_density(guess, template, ints, 0)
    paths = {}
    for way in WAYS:
        progress(1 + len(paths), total, way)
        if way == WAYS[-1]:
            paths[way] = minimise(ints, dm, max_cycles=cycles, trace=True)
        else:
            space, damping = (DIIS_SPACE if way == WAYS[2] else 1), (0.5 if way == WAYS[1] else 0.0)
            paths[way] = solve(ints, dm, 0.0, damping, max_cycles=cycles, space=space, trace=True)
    return Exploration(mol, method, guess, template, ints, paths)
