"""Molecules as a model meets them: each in its own frame, padded so that many share what is compiled."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from qptlab.dft import integrals, padding
from qptlab.dft.integrals import HostIntegrals, Integrals, Template
from qptlab.dft.scf import guess_density
from qptlab.errors import InputError
from qptlab.models.features import Features, features, kind_indices, vocabulary
from qptlab.models.frame import ReferenceFrame, standard_orientation
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

KEPT_AO_BYTES = 64 * 2**20
"""AO values on the grid up to this size are kept with a geometry while it is trained on."""


class Sample(NamedTuple):
    """One geometry made ready for a model.

    Attributes:
      ints: its integrals.
      features: what the network sees.
      label: a converged Fock matrix, hartree, where a model is to learn from labels; else None.
    """

    ints: Integrals
    features: Features
    label: Float[jax.Array, "nao nao"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """One molecule of those that a model treats.

    Attributes:
      frame: the molecule's frame; its reference geometry.
      template: the molecule and method, padded where it shares what is compiled with others.
      kinds: number of each AO's kind in the model's vocabulary.
      guess: where iterations start, one of `scf.GUESSES`.
    """

    frame: ReferenceFrame
    template: Template
    kinds: Int[np.ndarray, " nao"]
    guess: str = "minao"

    @property
    def molecule(self) -> Molecule:
        """The molecule at its reference geometry."""
        return self.frame.molecule

    def host_integrals(self, positions: Float[np.ndarray, "natm 3"]) -> HostIntegrals:
        """What libcint makes of a geometry (bohr) that lies in the molecule's frame."""
        return self.template.host_integrals(positions)

    def sample(self, host: HostIntegrals) -> Sample:
        """A geometry made ready, on the device; compiled once for all molecules of one shape."""
        return self._finished(self.template.complete(host))

    @property
    def shapes(self) -> Sample:
        """Shapes and types of a sample."""
        plain = System(self.frame, self.template, self.kinds)  # other guesses are made on the host
        return jax.eval_shape(plain.sample, self.host_integrals(self.frame.reference_positions))

    def with_guess(self, guess: str) -> "System":
        """The same molecule, iterated from another guess."""
        return dataclasses.replace(self, guess=guess)

    def with_vocabulary(self, known: tuple[str, ...]) -> "System":
        """The same molecule for a model that knows other orbitals, too.

        Raises:
          InputError: for orbitals that are not in the vocabulary.
        """
        return dataclasses.replace(self, kinds=kind_indices(self.template, known))

    def unpadded(self) -> "System":
        """The same molecule in arrays of its own shape."""
        template, nao = integrals.template(self.molecule, self.template.method), self.template.nao
        return dataclasses.replace(self, template=template, kinds=self.kinds[:nao])

    def value_and_slope(
        self, function: Callable[..., Float[jax.Array, ""]]
    ) -> Callable[..., tuple[jax.Array, np.ndarray]]:
        """As `Template.value_and_slope`, for a function of a `Sample` and further arguments.

        Raises:
          InputError: as `check_derivative`.
        """
        self.check_derivative()
        own = self.unpadded()
        return own.template.value_and_slope(lambda ints, *given: function(own._finished(ints), *given))

    def check_derivative(self) -> None:
        """Refuse what has no derivative with respect to positions.

        Raises:
          InputError: if the guess can only be made on the host.
        """
        if self.guess.startswith("atomic"):
            raise InputError(f"the guess {self.guess!r} has no derivative here; a model with minao would do.")

    def _finished(self, ints):
        template = self.template
        if self.guess != "minao":
            ints = ints._replace(dm_guess=guess_density(self.guess, template, ints))
        return _seen(ints, self.kinds, template.constants.ao_atom, template.constants.ao_mask)


@jax.jit
def _seen(ints, kinds, ao_atom, ao_mask):
    if ints.aos is not None and ints.aos.size * 8 > KEPT_AO_BYTES:
        ints = ints._replace(aos=None)  # made anew when needed: a replay buffer holds many geometries
    return Sample(ints, features(ints, ao_atom, kinds, ao_mask))


def make_systems(
    mols: Sequence[Molecule], method: Method, guess: str = "minao"
) -> tuple[list[System], tuple[str, ...]]:
    """Prepare molecules for one model; several are padded into a few shapes.

    Args:
      mols: the molecules.
      method: the level of theory.
      guess: where iterations start, one of `scf.GUESSES`.

    Returns:
      The systems, in the order given, and the vocabulary of their orbitals.

    Raises:
      InputError: if there are none, for one with unpaired electrons, or as `integrals.template`.
    """
    if not mols:
        raise InputError("no molecule was given; at least one would do.")
    templates = [_closed_shell(mol, method) for mol in mols]
    if len({template.eri for template in templates}) > 1:  # `auto` has found some too large for exact integrals
        templates = [_closed_shell(mol, dataclasses.replace(method, eri="fitted")) for mol in mols]
    known = vocabulary(templates)
    for members in padding.buckets([template.shape for template in templates]) if len(mols) > 1 else []:
        shape = padding.union([templates[i].shape for i in members])
        nocc = max(templates[i].nocc for i in members)
        for i in members:
            templates[i] = templates[i].padded(shape, nocc)
    pairs = zip(mols, templates, strict=True)
    return [_system(mol, template, known).with_guess(guess) for mol, template in pairs], known


def make_system(mol: Molecule, method: Method, known: tuple[str, ...]) -> System:
    """One molecule more for a model with a vocabulary.

    Raises:
      InputError: as `make_systems`, or for orbitals that are not in the vocabulary.
    """
    return _system(mol, _closed_shell(mol, method), known)


def _system(mol, template, known):
    return System(ReferenceFrame(standard_orientation(mol)), template, kind_indices(template, known))


def _closed_shell(mol, method):
    template = integrals.template(mol, method)
    if len(template.occupied) > 1:
        raise InputError(
            f"a QPT is closed-shell, and {template.occupied[0]} + {template.occupied[1]} electrons of "
            "either spin were given; a molecule without unpaired electrons would do."
        )
    return template
