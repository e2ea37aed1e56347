"""Molecules prepared for a model: each has a frame of its own, and arrays that are padded to a few shapes.

Molecules with arrays of one shape share the compiled functions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from qptlab.dft import integrals, padding
from qptlab.dft.grid import Numbers
from qptlab.dft.integrals import HostIntegrals, Integrals, Template
from qptlab.dft.scf import guess_density
from qptlab.errors import InputError
from qptlab.models.features import Features, features, kind_indices, vocabulary
from qptlab.models.frame import ReferenceFrame, standard_orientation
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

STORED_AO_BYTES = 64 * 2**20
"""Largest size of the atomic orbitals on the grid that a sample stores. Larger ones are computed when needed."""


class Sample(NamedTuple):
    """Input of a model for one geometry.

    Attributes:
      ints: integrals of the geometry.
      features: input of the network.
      label: converged Fock matrix, hartree, for a network that learns from labels; else None.
    """

    ints: Integrals
    features: Features
    label: Float[jax.Array, "nao nao"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """One of a model's molecules: frame, template of the integrals, and kinds of atomic orbitals.

    Attributes:
      frame: frame of the molecule, with the reference geometry.
      template: template of the integrals for the molecule and the method; padded if molecules share one shape.
      kinds: index of each atomic orbital's kind in the model's vocabulary.
      guess: density that the iterations start from, one of `scf.GUESSES`.
    """

    frame: ReferenceFrame
    template: Template
    kinds: Int[np.ndarray, " nao"]
    guess: str = "minao"

    @property
    def molecule(self) -> Molecule:
        """Molecule at its reference geometry."""
        return self.frame.molecule

    def host_integrals(self, positions: Float[np.ndarray, "natm 3"]) -> HostIntegrals:
        """Return libcint's integrals of a geometry.

        Args:
          positions: nuclear positions in the molecule's frame, bohr.
        """
        return self.template.host_integrals(positions)

    def sample(self, host: HostIntegrals) -> Sample:
        """Return the input of a model, computed on the device; compiled once for all molecules of one shape."""
        return self._to_sample(self.template.complete(host))

    @property
    def shapes(self) -> Sample:
        """Shapes and types of the arrays in a sample."""
        plain = System(self.frame, self.template, self.kinds)  # guesses that are built on the host cannot be traced
        return jax.eval_shape(plain.sample, self.host_integrals(self.frame.reference_positions))

    def with_guess(self, guess: str) -> "System":
        """Return the same molecule with a different guess density."""
        return dataclasses.replace(self, guess=guess)

    def with_vocabulary(self, kinds: tuple[str, ...]) -> "System":
        """Return the same molecule for a model with a larger vocabulary.

        Args:
          kinds: vocabulary of atomic orbitals, from `features.vocabulary`.

        Raises:
          InputError: if the vocabulary lacks an atomic orbital of the molecule.
        """
        return dataclasses.replace(self, kinds=kind_indices(self.template, kinds))

    def unpadded(self) -> "System":
        """Return the same molecule in arrays without padding."""
        template, nao = integrals.template(self.molecule, self.template.method), self.template.nao
        return dataclasses.replace(self, template=template, kinds=self.kinds[:nao])

    def value_and_gradient(
        self, function: Callable[..., Float[jax.Array, ""]]
    ) -> Callable[..., tuple[jax.Array, np.ndarray]]:
        """Return a function that computes a value and its derivative with respect to nuclear positions.

        Args:
          function: differentiable function of a `Sample`, and of further arguments, to a number. It is compiled here.

        Returns:
          Function of positions in the molecule's frame, bohr, and of the further arguments. It returns the value and
          its gradient, [natm, 3], per bohr.

        Raises:
          InputError: if the guess has no derivative.
        """
        self.check_differentiable()
        system = self.unpadded()
        return system.template.value_and_gradient(
            lambda ints, *arguments: function(system._to_sample(ints), *arguments)
        )

    def check_differentiable(self) -> None:
        """Raise an `InputError` for a guess without a derivative, because it is built on the host."""
        if self.guess.startswith("atomic"):
            raise InputError(
                f"Expected a guess with a derivative with respect to positions, got {self.guess!r}; use 'minao'."
            )

    def _to_sample(self, ints: Integrals) -> Sample:
        template = self.template
        if self.guess != "minao":
            ints = ints._replace(dm_guess=guess_density(self.guess, template, ints))
        return _build_sample(ints, self.kinds, template.constants.ao_atom, template.constants.ao_mask)


@jax.jit
def _build_sample(
    ints: Integrals, kinds: Int[Numbers, " nao"], ao_atom: Int[Numbers, " nao"], ao_mask: Bool[Numbers, " nao"]
) -> Sample:
    if ints.aos is not None and ints.aos.size * 8 > STORED_AO_BYTES:
        ints = ints._replace(aos=None)  # computed again when needed: a replay buffer holds many geometries
    return Sample(ints, features(ints, ao_atom, kinds, ao_mask))


def make_systems(
    mols: Sequence[Molecule], method: Method, guess: str = "minao"
) -> tuple[list[System], tuple[str, ...]]:
    """Prepare molecules for one model; several molecules are padded to a few shapes.

    Args:
      mols: closed-shell molecules at their reference geometries.
      method: level of theory.
      guess: density that the iterations start from, one of `scf.GUESSES`.

    Returns:
      The prepared molecules, in order, and the vocabulary of their atomic orbitals.

    Raises:
      InputError: if there is no molecule, if one has unpaired electrons, or if the method cannot treat one.
    """
    if not mols:
        raise InputError('Expected at least one molecule, got none; use [ql.Molecule.from_name("water")].')
    templates = [_closed_shell(mol, method) for mol in mols]
    if len({template.eri for template in templates}) > 1:  # `auto` chose fitted integrals for large molecules only
        templates = [_closed_shell(mol, dataclasses.replace(method, eri="fitted")) for mol in mols]
    kinds = vocabulary(templates)
    for members in padding.buckets([template.shape for template in templates]) if len(mols) > 1 else []:
        shape = padding.union([templates[i].shape for i in members])
        nocc = max(templates[i].nocc for i in members)
        for i in members:
            templates[i] = templates[i].padded(shape, nocc)
    pairs = zip(mols, templates, strict=True)
    return [_system(mol, template, kinds).with_guess(guess) for mol, template in pairs], kinds


def make_system(mol: Molecule, method: Method, kinds: tuple[str, ...]) -> System:
    """Prepare one more molecule for a model whose vocabulary is fixed.

    Args:
      mol: closed-shell molecule.
      method: level of theory.
      kinds: vocabulary of the model's atomic orbitals.

    Raises:
      InputError: if the molecule has unpaired electrons, if the method cannot treat it, or if the vocabulary lacks
        one of its atomic orbitals.
    """
    return _system(mol, _closed_shell(mol, method), kinds)


def _system(mol: Molecule, template: Template, kinds: tuple[str, ...]) -> System:
    return System(ReferenceFrame(standard_orientation(mol)), template, kind_indices(template, kinds))


def _closed_shell(mol: Molecule, method: Method) -> Template:
    template = integrals.template(mol, method)
    if len(template.occupied) > 1:
        raise InputError(
            f"Expected a closed-shell molecule, got {mol.formula} with {mol.spin} unpaired electrons; use a molecule "
            "or a charge without unpaired electrons."
        )
    return template
