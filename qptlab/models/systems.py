"""Molecules of a model: each has a frame of its own, and arrays that are padded to a few shapes.

Molecules with arrays of one shape share the compiled functions. The arrays are made when they are needed, and dropped
when many other molecules were needed since: a model may have thousands of molecules.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qptlab.dft import integrals, libcint, padding
from qptlab.dft.energy import kohn_sham
from qptlab.dft.fitted_response import responded
from qptlab.dft.integrals import HostIntegrals, Integrals, Template
from qptlab.dft.padding import Padding
from qptlab.dft.scf import guess_density
from qptlab.dft.screening import Screening, screened, screening
from qptlab.errors import InputError
from qptlab.models.frame import Frame, LaboratoryFrame, ReferenceFrame, standard_orientation
from qptlab.models.inputs import Guess, Orbitals
from qptlab.models.networks import CorrectionConfig, network_of
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

STORED_AO_BYTES = 64 * 2**20
"""Largest size of the atomic orbitals on the grid that a sample stores. Larger ones are computed when needed."""


class Start(NamedTuple):
    """Fock matrix and charge model that DFT iterations with DIIS start from.

    Attributes:
      fock: Fock matrix of the guess density, hartree.
      screening: charge model of the geometry.
    """

    fock: Float[jax.Array, "nao nao"]
    screening: Screening


class Sample(NamedTuple):
    """Input of a model for one geometry.

    Attributes:
      ints: integrals of the geometry.
      features: input of the network.
      start: what DFT iterations with DIIS start from; None in the scheme "mixing".
      label: converged Fock matrix, hartree, for a network that learns from labels; else None.
    """

    ints: Integrals
    features: Any
    start: Start | None = None
    label: Float[jax.Array, "nao nao"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """One of a model's molecules: frame, level of theory, and kinds of the network's tokens.

    Attributes:
      frame: frame of the molecule, with the reference geometry.
      method: level of theory.
      padding: sizes that several molecules share; None for arrays without padding.
      vocabulary: names of the kinds of tokens (atomic orbitals or shells) that the model knows.
      config: settings of the network, which state how it sees a geometry.
    """

    frame: Frame
    method: Method
    padding: Padding | None
    vocabulary: tuple[str, ...]
    config: CorrectionConfig

    @property
    def template(self) -> Template:
        """Template of the integrals; padded if molecules share one shape."""
        return integrals.template(self.molecule, self.method, self.padding, with_kernel=True)

    @property
    def sizes(self) -> Padding:
        """Sizes of the arrays, without a template. Molecules with equal sizes share compiled functions."""
        if self.padding is not None:
            return self.padding
        shape = integrals.shape(self.molecule, self.method, with_kernel=True)
        return Padding(shape, libcint.occupied(self.molecule, self.method)[0])

    @functools.cached_property
    def orbitals(self) -> Orbitals:
        """Kinds of the tokens, and atoms and mask of the atomic orbitals."""
        constants = self.template.constants
        kinds = network_of(self.config).inputs.indices(self.template, self.vocabulary)
        with jax.ensure_compile_time_eval():  # the arrays are cached: none may belong to a function being traced
            return Orbitals(jnp.asarray(kinds), jnp.asarray(constants.ao_atom), jnp.asarray(constants.ao_mask))

    @property
    def molecule(self) -> Molecule:
        """Molecule at its reference geometry."""
        return self.frame.molecule

    def host_integrals(
        self, positions: Float[np.ndarray, "natm 3"], threads: int | None = 1
    ) -> HostIntegrals:
        """Return libcint's integrals of a geometry.

        Args:
          positions: nuclear positions in the molecule's frame, bohr.
          threads: number of OpenMP threads; None for PySCF's setting.
        """
        return self.template.host_integrals(positions, threads)

    def sample(self, host: HostIntegrals) -> Sample:
        """Return the input of a model, computed on the device; compiled once for all molecules of one shape."""
        return self._to_sample(self.template.complete(host))

    @property
    def shapes(self) -> Sample:
        """Shapes and types of the arrays in a sample."""
        # Guesses that are built on the host cannot be traced.
        config = dataclasses.replace(self.config, guess="minao")
        plain = System(self.frame, self.method, self.padding, self.vocabulary, config)
        return jax.eval_shape(plain.sample, self.host_integrals(self.frame.reference_positions))

    def with_vocabulary(self, vocabulary: tuple[str, ...]) -> "System":
        """Return the same molecule for a model with a larger vocabulary.

        Raises:
          InputError: if the vocabulary lacks a kind of the molecule.
        """
        system = dataclasses.replace(self, vocabulary=vocabulary)
        system.check_vocabulary()
        return system

    def check_vocabulary(self) -> None:
        """Raise an `InputError` if the vocabulary lacks a kind of the molecule."""
        kinds = _vocabulary([self.molecule], self.method, self.config)
        if missing := sorted(set(kinds) - set(self.vocabulary)):
            elements = ", ".join(sorted({kind.split()[0] for kind in self.vocabulary}))
            raise InputError(
                f"Expected atomic orbitals of the training set, got {', '.join(missing)}; use a molecule of the "
                f"elements {elements} in the same basis."
            )

    def unpadded(self) -> "System":
        """Return the same molecule in arrays without padding."""
        return dataclasses.replace(self, padding=None)

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
        guess = self.config.guess
        if guess.startswith("atomic"):
            raise InputError(
                f"Expected a guess with a derivative with respect to positions, got {guess!r}; use 'minao'."
            )

    def _to_sample(self, ints: Integrals) -> Sample:
        guess = self.config.guess
        if guess != "minao":
            ints = ints._replace(dm_guess=guess_density(guess, self.template, ints))
        network = network_of(self.config)
        rank = len(self.template.constants.minao_occupation) if guess == "minao" else self.template.shape.nao
        return _build_sample(ints, self.orbitals, network.inputs.features, self.config.scheme, rank)


@functools.partial(jax.jit, static_argnames=("features", "scheme", "rank"))
def _build_sample(
    ints: Integrals, orbitals: Orbitals, features: Callable[[Integrals, Guess, Orbitals], Any], scheme: str, rank: int
) -> Sample:
    """Return the sample of a geometry.

    Args:
      ints: integrals of the geometry, with the guess density.
      orbitals: kinds, atoms and mask.
      features: function that computes the network's input.
      scheme: scheme of the DFT iterations, one of `networks.SCHEMES`.
      rank: largest possible rank of the guess density. Exchange is built from as many orbitals.
    """
    if ints.aos is not None and ints.aos.size * 8 > STORED_AO_BYTES:
        ints = ints._replace(aos=None)  # computed again when needed: a replay buffer holds many geometries
    charges = screening(ints)
    filled = _factor(ints.dm_guess, charges, rank) if rank < ints.nao else None
    state = kohn_sham(ints.dm_guess, ints, filled=filled)
    solution = screened(state.fock, ints.dm_guess, ints, charges)
    fock = state.fock
    if scheme == "response":
        fock = responded(fock, ints.dm_guess, ints)
    elif scheme == "screened":
        fock = solution.fock
    feats = features(ints, Guess(state, fock, charges, solution), orbitals)
    return Sample(ints, feats, None if scheme == "mixing" else Start(state.fock, charges))


def _factor(
    dm: Float[jax.Array, "nao nao"], charges: Screening, rank: int
) -> Float[jax.Array, "nao rank"]:
    """Return orbitals C with C·Cᵀ = dm, without a derivative, for a density matrix of low rank."""
    populations, vectors = jnp.linalg.eigh(charges.root @ dm @ charges.root)
    orbitals = vectors[:, -rank:] * jnp.sqrt(jnp.maximum(populations[-rank:], 0.0))
    return jax.lax.stop_gradient(charges.inverse_root @ orbitals)


def make_systems(
    mols: Sequence[Molecule], method: Method, config: CorrectionConfig, vocabulary: Sequence[str] = ()
) -> tuple[list[System], tuple[str, ...]]:
    """Prepare molecules for one model; several molecules are padded to a few shapes.

    Args:
      mols: closed-shell molecules at their reference geometries.
      method: level of theory.
      config: settings of the network.
      vocabulary: kinds of tokens that the model knows; by default those of the molecules.

    Returns:
      The prepared molecules, in order, and the vocabulary of the network's tokens.

    Raises:
      InputError: if there is no molecule, if one has unpaired electrons, if the method cannot treat one, or if the
        vocabulary lacks one of its kinds of tokens.
    """
    if not mols:
        raise InputError('Expected at least one molecule, got none; use [ql.Molecule.from_name("water")].')
    for mol in mols:
        _check_closed_shell(mol)
    if len({integrals.eri_form(mol, method) for mol in mols}) > 1:  # `auto`: fitted for large molecules only
        method = dataclasses.replace(method, eri="fitted")
    shapes = [integrals.shape(mol, method, with_kernel=True) for mol in mols]
    largest = mols[max(range(len(mols)), key=lambda i: shapes[i].nao)]
    integrals.template(largest, method, with_kernel=True)  # checks the memory
    kinds = tuple(vocabulary) or _vocabulary(mols, method, config)
    paddings: list[Padding | None] = [None] * len(mols)
    for members in padding.buckets(shapes) if len(mols) > 1 else []:
        nocc = max(libcint.occupied(mols[i], method)[0] for i in members)
        shared = Padding(padding.union([shapes[i] for i in members]), nocc)
        for i in members:
            paddings[i] = shared
    pairs = zip(mols, paddings, strict=True)
    systems = [System(_frame(mol, config), method, shared, kinds, config) for mol, shared in pairs]
    if vocabulary:
        for system in systems:
            system.check_vocabulary()
    return systems, kinds


def added_share(systems: Sequence[System]) -> tuple[float, float]:
    """Return the shares of padding among the atomic orbitals and among the grid points of all molecules."""
    shapes = [integrals.shape(system.molecule, system.method) for system in systems]
    return padding.added_share(shapes, [system.sizes for system in systems])


def make_system(
    mol: Molecule, method: Method, vocabulary: tuple[str, ...], config: CorrectionConfig,
    paddings: Iterable[Padding] = (),
) -> System:
    """Prepare one more molecule for a model whose vocabulary is fixed.

    Args:
      mol: closed-shell molecule.
      method: level of theory.
      vocabulary: kinds of tokens that the model knows.
      config: settings of the network.
      paddings: sizes that functions are compiled for. The smallest ones that the molecule fits into are used.

    Raises:
      InputError: if the molecule has unpaired electrons, if the method cannot treat it, or if the vocabulary lacks
        one of its kinds of tokens.
    """
    _check_closed_shell(mol)
    template = integrals.template(mol, method, with_kernel=True)
    fitting = [shared for shared in paddings if padding.holds(shared, template.shape, template.nocc)]
    shared = min(fitting, key=lambda shared: shared.shape.nao, default=None)
    system = System(_frame(mol, config), method, shared, vocabulary, config)
    system.check_vocabulary()
    return system


def _frame(mol: Molecule, config: CorrectionConfig) -> Frame:
    is_framed = network_of(config).inputs.framed
    return ReferenceFrame(standard_orientation(mol)) if is_framed else LaboratoryFrame(mol)


def _vocabulary(mols: Sequence[Molecule], method: Method, config: CorrectionConfig) -> tuple[str, ...]:
    """Return the sorted kinds of the tokens of molecules."""
    kinds = network_of(config).inputs.kinds
    elements = {symbol for mol in mols for symbol in mol.symbols}
    return tuple(sorted({kind for symbol in elements for kind in _kinds(kinds, symbol, method)}))


@functools.lru_cache(maxsize=1024)
def _kinds(kinds: Callable[[Template], list[str]], symbol: str, method: Method) -> tuple[str, ...]:
    """Return the kinds of the tokens of an element."""
    return tuple(kinds(integrals.atom_template(symbol, method)))


def _check_closed_shell(mol: Molecule) -> None:
    if mol.spin:
        raise InputError(
            f"Expected a closed-shell molecule, got {mol.formula} with {mol.spin} unpaired electrons; use a molecule "
            "or a charge without unpaired electrons."
        )
