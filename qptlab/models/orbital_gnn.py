"""OrbitalGNN: a graph network on operators of a low-cost method that corrects several of its properties at once.

It follows OrbNet (Qiao et al. 2020, arXiv:2007.08026) and its multi-task learning (Qiao et al. 2020,
arXiv:2011.02680). Nodes and edges carry matrix elements of low-cost operators, expanded in radial bases with
cut-offs. Messages are passed by multi-head attention. The outputs of the atoms are added to the results of the
low-cost method. There are three differences: a node is a shell of an atom (see `operators`), LayerNorm replaces
BatchNorm, and all functions are smooth, so that forces are derivatives of the energy.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ase.data
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qptlab.dft.integrals import Integrals, Template
from qptlab.dft.padding import fill
from qptlab.errors import InputError, shown
from qptlab.models import files, operators
from qptlab.models.contract import Params, Prediction, register_kind
from qptlab.models.operators import SOURCES, Invariants, Operators, Shells
from qptlab.system.molecule import Molecule

VALENCE = 9
"""Number of eigenvalues that are learned of an atom's density, for the occupied and for the valence-virtual part.
The minimal basis of an element up to argon has at most nine functions."""

NORM_RANGE = (1e-3, 30.0)
"""Smallest and largest norm of an operator's block that the radial basis covers, on a logarithmic scale. The unit is
hartree, or none for the density and overlap matrices."""

CUT_OFF_HARTREE = (1e-3, 1e-2)
"""Two shells exchange no messages if the norm of their Fock block is below the first value. The messages are not
damped if it is above the second value."""

MAX_KIND = 20
"""Largest number of characters in the kind of a shell, such as "O 2p"."""

SMOOTHING = 1e-4
"""Below this size, the signed square root of a pair's feature is smoothed: it has no derivative at zero."""

STEP_BOHR = 1e-3
"""Step of the central differences, bohr. It changes a derivative by about 1e-6 of its value."""


MAX_SHAPE = {"width": 4096, "layers": 100, "heads": 256, "radial": 100}
"""Largest numbers of `GNNConfig`."""


@dataclasses.dataclass(frozen=True)
class GNNConfig:
    """Shape of the network, and source of its input.

    Attributes:
      source: source of the operators, one of `operators.SOURCES`.
      width: number of features of a node.
      layers: number of message-passing layers.
      heads: number of attention heads in a layer; it divides `width`.
      radial: number of functions in each radial basis.
    """

    source: str = "gfn1"
    width: int = 64
    layers: int = 3
    heads: int = 4
    radial: int = 6

    def __post_init__(self):
        """Check the fields."""
        operators.check_source(self.source)
        for name, most in MAX_SHAPE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                usual = getattr(GNNConfig, name)
                raise InputError(f"Expected 1 to {most} for {name}, got {shown(value)}; use {usual}, for example.")
        if self.width % self.heads:
            raise InputError(f"Expected a width that is a multiple of the {self.heads} heads, got {self.width}.")


class Graph(NamedTuple):
    """Input of the network for one geometry; arrays may be padded.

    Attributes:
      features: invariant features of shells and of pairs of shells.
      kinds: index of each shell's kind in the model's vocabulary.
      atoms: index of each shell's atom.
      mask: true for the molecule's shells, false for padding.
      elements: index of each atom's element in the vocabulary.
      atom_mask: true for the molecule's atoms, false for padding.
      positions: nuclear positions, bohr.
      energy: energy of the low-cost method, hartree.
      dipole: dipole moment of the low-cost method about the origin, e·bohr.
      charges: charges of the atoms by the low-cost method, elementary charges.
      gap: gap of the low-cost method, hartree.
    """

    features: Invariants
    kinds: Int[Array | np.ndarray, " nshell"]
    atoms: Int[Array | np.ndarray, " nshell"]
    mask: Bool[Array | np.ndarray, " nshell"]
    elements: Int[Array | np.ndarray, " natm"]
    atom_mask: Bool[Array | np.ndarray, " natm"]
    positions: Float[Array | np.ndarray, "natm 3"]
    energy: Float[Array | np.ndarray, ""]
    dipole: Float[Array | np.ndarray, " 3"]
    charges: Float[Array | np.ndarray, " natm"]
    gap: Float[Array | np.ndarray, ""]


class Scales(NamedTuple):
    """Means and scales that are fitted before training. They turn outputs of the order of one into properties.

    Attributes:
      shell_mean: mean features of each kind of shell.
      shell_scale: standard deviation of the features.
      element_energy: energy of each element, hartree, from a linear fit to the errors of the low-cost energy.
      energy: scale of the errors that remain after this fit, divided by the root of the number of atoms, hartree.
      element_charge: mean error of the low-cost charge of each element, elementary charges.
      charge: scale of the charges' deviations from this mean, elementary charges.
      dipole: scale of the errors of the low-cost dipole moment, e·bohr.
      gap_mean: mean error of the low-cost gap, hartree.
      gap: scale of the gaps' deviations from this mean, hartree.
      element_valence: mean eigenvalues of the density of each element's atoms.
      valence: scale of the eigenvalues' deviations from this mean.
      force: scale of the errors of the low-cost forces, hartree per bohr.
    """

    shell_mean: Float[Array | np.ndarray, "nkind nfeature"]
    shell_scale: Float[Array | np.ndarray, " nfeature"]
    element_energy: Float[Array | np.ndarray, " nelement"]
    energy: Float[Array | np.ndarray, ""]
    element_charge: Float[Array | np.ndarray, " nelement"]
    charge: Float[Array | np.ndarray, ""]
    dipole: Float[Array | np.ndarray, ""]
    gap_mean: Float[Array | np.ndarray, ""]
    gap: Float[Array | np.ndarray, ""]
    element_valence: Float[Array | np.ndarray, "nelement nvalence"]
    valence: Float[Array | np.ndarray, ""]
    force: Float[Array | np.ndarray, ""]

    @classmethod
    def identity(cls, nkind: int, nelement: int, nfeature: int) -> "Scales":
        """Return scales that change nothing: means of zero and spreads of one."""
        unit, zero = np.array(1.0), np.array(0.0)
        return cls(
            np.zeros((nkind, nfeature)), np.ones(nfeature), np.zeros(nelement), unit, np.zeros(nelement), unit, unit,
            zero, unit, np.zeros((nelement, 2 * VALENCE)), unit, unit,
        )


PROVIDES = frozenset({"energy", "forces", "dipole", "charges", "gap", "valence"})
"""Properties that an OrbitalGNN predicts."""


class OrbitalGNN:
    """Network on low-cost operators: pure functions of parameters and graphs, and graphs of molecules.

    Args:
      config: shape of the network, and source of its input.
      kinds: vocabulary of the kinds of shells, such as "O 2p".
      elements: vocabulary of elements.
    """

    def __init__(self, config: GNNConfig, kinds: tuple[str, ...], elements: tuple[str, ...]):
        self.config, self.kinds, self.elements = config, kinds, elements
        self._network = hk.without_apply_rng(hk.transform(self._decode))
        self.compiled_predict = jax.jit(self.predict)
        self.compiled_predict_with_gradient = jax.jit(self.predict_with_gradient)

    def graph(self, mol: Molecule, size: "Size | None" = None) -> Graph:
        """Run the low-cost method and return the input of the network.

        Args:
          mol: molecule.
          size: sizes of the padded arrays, from `size`; None for the smallest that fit.

        Raises:
          InputError: if the model does not know an element, or if the low-cost method fails.
        """
        layout = self._layout(mol, size)
        return self._graph(mol, layout, operators.operators(mol, self.config.source))

    def size(self, mol: Molecule) -> "Size":
        """Return the smallest sizes of padded arrays that fit a molecule.

        Raises:
          InputError: if the model does not know an element.
        """
        shells = self._shells(mol)
        return Size(*(-(-count // step) * step for count, step in zip(
            (len(shells.members), len(shells.atoms), len(mol.symbols)), MULTIPLES, strict=True
        )))

    def _layout(self, mol: Molecule, size: "Size | None") -> "_Layout":
        size, shells = size or self.size(mol), self._shells(mol)
        return _Layout(
            fill(shells.members, size.nao, -1), fill(shells.atoms, size.nshell), fill(mol.positions, size.natm)
        )

    def _graph(self, mol: Molecule, layout: "_Layout", low_cost: Operators) -> Graph:
        kinds = self._shells(mol).kinds
        natm, nshell = len(layout.positions), len(layout.atoms)
        return Graph(
            _invariants(layout.padded(low_cost.matrices), layout.positions, layout.members, layout.atoms),
            fill([self.kinds.index(kind) for kind in kinds], nshell), layout.atoms, np.arange(nshell) < len(kinds),
            fill([self.elements.index(symbol) for symbol in mol.symbols], natm), np.arange(natm) < len(mol.symbols),
            layout.positions, low_cost.energy, low_cost.dipole, fill(low_cost.charges, natm), low_cost.gap,
        )

    def _shells(self, mol: Molecule) -> Shells:
        missing = sorted(set(mol.symbols) - set(self.elements))
        if missing:
            raise InputError(
                f"Expected elements that the model was trained on ({', '.join(self.elements)}), got "
                f"{', '.join(missing)}; use a molecule without them."
            )
        return operators.shells(mol, self.config.source)

    def init(self, key: PRNGKeyArray) -> Params:
        """Return initial parameters, float32. With them, the model is the low-cost method plus the linear fits."""
        graph = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype.kind == "f" else x, self._blank_graph())
        scales = Scales.identity(len(self.kinds), len(self.elements), graph.features.shell.shape[-1])
        return jax.jit(self._network.init)(key, graph, jax.tree.map(jnp.float32, scales))

    def fits(self, scales: Scales) -> bool:
        """Return true if the shapes of statistics are those of this network."""
        nfeature = self._blank_graph().features.shell.shape[-1]
        expected = Scales.identity(len(self.kinds), len(self.elements), nfeature)
        return all(np.shape(value) == np.shape(blank) for value, blank in zip(scales, expected, strict=True))

    def _blank_graph(self) -> Graph:
        """Return a graph of one shell of one atom; it gives the parameters their shapes."""
        nop, zero = len(SOURCES[self.config.source]), np.zeros(1, int)
        features = operators.invariants(jnp.zeros((nop, 1, 1)), jnp.zeros((1, 3)), zero, zero)
        return Graph(features, zero, zero, zero == 0, zero, zero == 0, np.zeros((1, 3)), np.array(0.0), np.zeros(3),
                     np.zeros(1), np.array(0.0))

    def predict(self, params: Params, scales: Scales, graph: Graph) -> Prediction:
        """Return the predicted properties, in the precision of the graph's features."""
        return self._network.apply(params, graph, scales)

    def predict_with_gradient(
        self, params: Params, scales: Scales, graph: Graph
    ) -> tuple[Prediction, Invariants]:
        """Return the predicted properties, and the derivative of the energy with respect to the features.

        The derivative of the low-cost energy is not included: it is not a function of the features.
        """

        def energy(features):
            prediction = self.predict(params, scales, graph._replace(features=features))
            return prediction.energy, prediction

        (_, prediction), gradient = jax.value_and_grad(energy, has_aux=True)(graph.features)
        return prediction, gradient

    def _decode(self, graph: Graph, scales: Scales) -> Prediction:
        dtype = graph.features.shell.dtype
        x = _embed(graph, scales, len(self.kinds), self.config)
        edges, envelope = _edges(graph, self.config, len(SOURCES[self.config.source]))
        for number in range(self.config.layers):
            with hk.experimental.name_scope(f"layer_{number}"):
                x = x + _messages(x, edges, envelope, self.config)
                x = x + _mlp(_norm(x), 2 * self.config.width, self.config.width, "update")
        natm = len(graph.elements)
        shell_to_atom = jax.nn.one_hot(graph.atoms, natm, dtype=dtype) * graph.mask[:, None]  # [nshell, natm]
        shell_out = _mlp(_norm(x), 2 * self.config.width, self.config.width, "shell_out")
        atoms = shell_to_atom.T @ shell_out  # [natm, width]
        is_atom = graph.atom_mask.astype(dtype)
        count = jnp.sum(is_atom)

        def decode(name, size):
            return _mlp(atoms, self.config.width, size, name, zero=True) * is_atom[:, None]

        change, charge, moment = decode("energy", 1)[:, 0], decode("charge", 1)[:, 0], decode("dipole", 1)[:, 0]
        charge = charge * scales.charge + jnp.take(scales.element_charge, graph.elements) * is_atom
        # The moments are charges that sum to zero, so that the dipole does not depend on the origin.
        moment = (moment - jnp.sum(moment) / count) * is_atom
        pooled = jnp.sum(atoms * is_atom[:, None], axis=0, keepdims=True) / count
        gap = _mlp(pooled, self.config.width, 1, "gap", zero=True)[0, 0]
        valence = decode("valence", 2 * VALENCE) * scales.valence
        fitted = jnp.sum(jnp.take(scales.element_energy, graph.elements) * is_atom)
        return Prediction(
            graph.energy + fitted + scales.energy * jnp.sum(change),
            graph.dipole + scales.dipole * (moment @ graph.positions),
            graph.charges + (charge - jnp.sum(charge) / count) * is_atom,
            graph.gap + scales.gap_mean + scales.gap * gap,
            valence + jnp.take(scales.element_valence, graph.elements, axis=0) * is_atom[:, None],
        )


class Size(NamedTuple):
    """Sizes of padded arrays: numbers of atomic orbitals, shells and atoms."""

    nao: int
    nshell: int
    natm: int


MULTIPLES = Size(nao=16, nshell=8, natm=8)
"""Array sizes are multiples of these, so that few shapes are compiled."""


class _Layout(NamedTuple):
    """Layout of a molecule in padded arrays.

    Attributes:
      members: index of each atomic orbital's shell; -1 for padding.
      atoms: index of each shell's atom.
      positions: nuclear positions, bohr.
    """

    members: Int[np.ndarray, " nao"]
    atoms: Int[np.ndarray, " nshell"]
    positions: Float[np.ndarray, "natm 3"]

    def padded(
        self, matrices: Float[Array | np.ndarray, "*batch nao nao"]
    ) -> Float[np.ndarray, "*batch npadded npadded"]:
        padding = len(self.members) - matrices.shape[-1]
        return np.pad(matrices, [(0, 0)] * (matrices.ndim - 2) + [(0, padding)] * 2)


class GNNPredictor:
    """Trained OrbitalGNN (see `contract.Model`), for molecules of the elements that it was trained on.

    Energies are invariant under rotation, translation and permutation of the atoms. Dipole moments rotate with the
    molecule.

    Args:
      model: network.
      params: parameters of the network.
      scales: means and scales that were fitted before training.
      label: level of theory of its labels, such as "PBE/def2-svp".
    """

    kind = "orbital-gnn"
    provides = PROVIDES
    method = None
    """None, because labels may come from any program; `label` states the level of theory."""
    charge = 0

    def __init__(self, model: OrbitalGNN, params: Params, scales: Scales, label: str):
        self.model, self.label = model, label
        # In float32 the eighth digit of an energy would change when a molecule is rotated.
        self.params, self.scales = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, scales))

    @classmethod
    def rebuild(cls, description: dict, arrays: dict) -> "GNNPredictor":
        """Return the model of a `description` and `arrays`.

        Raises:
          InputError: if the description holds settings that cannot be used.
        """
        check_description(description)
        model = OrbitalGNN(
            GNNConfig(**description["model"]), tuple(description["kinds"]), tuple(description["elements"])
        )
        params = {name.removeprefix("params/"): value for name, value in arrays.items() if name != "scales"}
        scales = Scales(**arrays["scales"])
        if not model.fits(scales) or not files.same_shapes(params, model.init):
            raise InputError("Expected arrays of the network in the model file, got different shapes; restore it.")
        return cls(model, params, scales, description["label"])

    def __reduce__(self) -> tuple:
        """Return how a copy is made in another process: compiled functions stay here."""
        return GNNPredictor.rebuild, (self.description(), jax.tree.map(np.asarray, self.arrays()))

    def description(self) -> dict:
        """Return the settings that rebuild the model together with `arrays`; JSON types only."""
        return {
            "kind": self.kind, "model": dataclasses.asdict(self.config), "kinds": list(self.model.kinds),
            "elements": list(self.model.elements), "label": self.label,
        }

    def arrays(self) -> dict:
        """Return the parameters of the network and the statistics that were fitted before training."""
        params = {f"params/{name}": dict(group) for name, group in self.params.items()}
        return params | {"scales": self.scales._asdict()}

    def save(self, path: str | pathlib.Path) -> None:
        """Write the model to one HDF5 file, which `ql.load` reads."""
        files.write(path, self.description(), self.arrays())

    @property
    def config(self) -> GNNConfig:
        """Settings of the network."""
        return self.model.config

    def __call__(self, mol: Molecule) -> Prediction:
        """Predict the properties of a geometry.

        Raises:
          InputError: if the model was not trained on an element, or if the low-cost method fails.
        """
        padded = self.model.compiled_predict(self.params, self.scales, self.model.graph(mol))
        natm = len(mol.symbols)
        prediction = padded._replace(charges=padded.charges[:natm], valence=padded.valence[:natm])
        return jax.tree.map(np.array, prediction)

    def map(self, mols: Sequence[Molecule]) -> Iterator[Prediction]:
        """Predict several geometries, in order and in parallel.

        Raises:
          InputError: if the model was not trained on an element, before any geometry is predicted; or if the low-cost
            method fails.
        """
        for mol in mols:
            self.model.size(mol)  # raises an error for an unknown element before anything is computed
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield from pool.map(self, mols)

    def without_network(self) -> "GNNPredictor":
        """Return the same model with its network switched off: the low-cost method plus the linear fits."""
        zeros = jax.tree.map(np.zeros_like, self.params)
        return GNNPredictor(self.model, zeros, self.scales, self.label)

    def forces(self, mol: Molecule) -> Float[np.ndarray, "natm 3"]:
        """Return minus the derivative of the predicted energy with respect to positions, hartree per bohr.

        Raises:
          InputError: if the model was not trained on an element, or if the low-cost method fails.
        """
        return self.energy_and_forces(mol)[1]

    def energy_and_forces(self, mol: Molecule) -> tuple[float, Float[np.ndarray, "natm 3"]]:
        """Return the predicted energy, hartree, and the forces, hartree per bohr.

        With the source "guess", the network, the matrices and the integrals are all differentiated. With "gfn1", only
        the network is differentiated, because tblite gives no derivatives of its matrices. Derivatives of the
        matrices are then central differences, which need six low-cost calculations for each atom.

        Raises:
          InputError: if the model was not trained on an element, or if the low-cost method fails.
        """
        if self.model.config.source == "guess":
            return self._through_integrals(mol)
        prediction, gradient = self.model.compiled_predict_with_gradient(
            self.params, self.scales, self.model.graph(mol)
        )
        derivatives = graph_derivatives(self.model, mol)
        terms = jax.tree.map(lambda g, d: np.tensordot(g, d, np.ndim(g)), gradient, derivatives.features)
        return float(prediction.energy), -(derivatives.energy + sum(terms))[: len(mol.symbols)]

    def _through_integrals(self, mol: Molecule) -> tuple[float, Float[np.ndarray, "natm 3"]]:
        template, layout = operators.guess_template(mol), self.model._layout(mol, None)
        # The compiled function computes features and energy from positions. It reads only indices and masks of this
        # graph, so that the low-cost results in it may be zero.
        matrices = np.zeros((len(SOURCES["guess"]), template.nao, template.nao))
        zero, natm = np.array(0.0), len(mol.symbols)
        blank = self.model._graph(mol, layout, Operators(matrices, zero, np.zeros(3), np.zeros(natm), zero))
        function = _guess_gradient(self.model, template)
        energy, gradient = function(mol.positions, self.params, self.scales, blank, layout)
        return float(energy), -gradient


def check_description(description: dict) -> None:
    """Raise a `ValueError` for text in a description that no trained network has; tables and messages show it."""
    elements, kinds, label = (description[name] for name in ("elements", "kinds", "label"))
    if not isinstance(elements, list) or not set(elements) <= set(ase.data.atomic_numbers):
        raise ValueError(f"elements {shown(elements)}")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and len(kind) <= MAX_KIND for kind in kinds):
        raise ValueError(f"shells {shown(kinds)}")
    if not isinstance(label, str):
        raise ValueError(f"label {shown(label)}")


class GraphDerivatives(NamedTuple):
    """Derivatives of a graph with respect to nuclear positions, per bohr; the last two axes are atom and direction.

    Attributes:
      features: derivatives of the features, [..., natm, 3].
      energy: derivative of the low-cost energy, hartree per bohr.
    """

    features: Invariants
    energy: Float[np.ndarray, "natm 3"]


def graph_derivatives(model: OrbitalGNN, mol: Molecule, size: Size | None = None) -> GraphDerivatives:
    """Return derivatives of the features and of the low-cost energy, by central differences; padded as the graph.

    Args:
      model: network that reads the features.
      mol: molecule.
      size: sizes of the padded arrays, from `OrbitalGNN.size`; None for the smallest that fit.

    Raises:
      InputError: if the model does not know an element, or if the low-cost method fails.
    """
    layout, source = model._layout(mol, size), model.config.source
    ncoord = layout.positions.size
    moves = STEP_BOHR * np.eye(ncoord)[: mol.positions.size].reshape(-1, *layout.positions.shape)
    displaced = layout.positions + np.concatenate([moves, -moves])
    results = [operators.operators(mol.with_positions(p[: len(mol.symbols)]), source) for p in displaced]
    matrices = layout.padded(np.stack([result.matrices for result in results]))
    features = _many_invariants(fill(matrices, 2 * ncoord), fill(displaced, 2 * ncoord), layout.members, layout.atoms)

    def derivative(values):
        forward, backward = np.split(np.asarray(values)[: len(displaced)], 2)
        quotient = fill((forward - backward) / (2 * STEP_BOHR), ncoord)
        return np.moveaxis(quotient, 0, -1).reshape(*quotient.shape[1:], *layout.positions.shape)

    energies = np.array([result.energy for result in results])
    return GraphDerivatives(jax.tree.map(derivative, features), derivative(energies))


_invariants = jax.jit(operators.invariants)
_many_invariants = jax.jit(jax.vmap(operators.invariants, (0, 0, None, None)))


@functools.lru_cache(maxsize=32)
def _guess_gradient(model: OrbitalGNN, template: Template) -> Callable[..., tuple[Array, np.ndarray]]:
    """Return a function from positions, parameters, scales, graph and layout to the energy and its gradient."""

    def energy(ints: Integrals, params: Params, scales: Scales, graph: Graph, layout: _Layout) -> Any:
        matrices, low_cost_energy = operators.guess_operators(ints)
        padding = len(layout.members) - template.nao
        matrices = jnp.pad(matrices, ((0, 0), (0, padding), (0, padding)))
        positions = jnp.pad(ints.positions, ((0, len(layout.positions) - len(ints.positions)), (0, 0)))
        features = operators.invariants(matrices, positions, layout.members, layout.atoms)
        return model.predict(params, scales, graph._replace(features=features, energy=low_cost_energy)).energy

    return template.value_and_gradient(energy)


def _embed(graph: Graph, scales: Scales, nkind: int, config: GNNConfig) -> Float[Array, "nshell width"]:
    features = (graph.features.shell - jnp.take(scales.shell_mean, graph.kinds, axis=0)) / scales.shell_scale
    kinds = hk.Embed(nkind, config.width, name="kind")(graph.kinds)
    return kinds + hk.Linear(config.width, name="shell")(features)


def _edges(
    graph: Graph, config: GNNConfig, nop: int
) -> tuple[Float[Array, "nshell nshell nedge"], Float[Array, "nshell nshell"]]:
    """Return the features of pairs of shells, and the envelope (0 to 1) that damps the messages between them."""
    pair = graph.features.pair
    signed = pair / (pair**2 + SMOOTHING**2) ** 0.25
    squares = pair[..., np.cumsum([0, *range(nop, 1, -1)])]  # each operator multiplied with itself
    low, high = (2 * np.log(x) for x in NORM_RANGE)
    fraction = (jnp.log(squares + NORM_RANGE[0] ** 2) - low) / (high - low)  # 0 to 1
    waves = jnp.sin(np.pi * jnp.arange(1, config.radial + 1) * fraction[..., None]).reshape(*pair.shape[:2], -1)
    coulomb = 1 / jnp.sqrt(graph.features.distance**2 + 1)
    first, last = (2 * np.log(x) for x in CUT_OFF_HARTREE)
    share = jnp.clip((jnp.log(squares[..., 0] + 1e-12) - first) / (last - first), 0.0, 1.0)
    envelope = share**3 * (10 - 15 * share + 6 * share**2)  # two continuous derivatives
    mask = graph.mask[:, None] & graph.mask
    edges = jnp.concatenate([signed, waves, coulomb[..., None]], axis=-1)
    return jnp.where(mask[..., None], edges, 0.0), jnp.where(mask, envelope, 0.0)


def _messages(
    x: Float[Array, "nshell width"], edges: Float[Array, "nshell nshell nedge"],
    envelope: Float[Array, "nshell nshell"], config: GNNConfig,
) -> Float[Array, "nshell width"]:
    heads, width = config.heads, config.width
    qkv = jnp.split(hk.Linear(3 * width, with_bias=False, name="qkv")(_norm(x)), 3, axis=-1)
    query, key, value = (part.reshape(len(x), heads, -1) for part in qkv)
    hidden = jax.nn.silu(hk.Linear(width, name="edge")(edges))
    edge_out = hk.Linear(heads + width, name="edge_out")(hidden)
    bias, gate = edge_out[..., :heads], edge_out[..., heads:].reshape(*hidden.shape[:2], heads, -1)
    logits = jnp.einsum("ihd,jhd->ijh", query, key) / np.sqrt(width // heads) + bias
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
    unnormalised = jnp.exp(logits - largest) * envelope[..., None]
    # The added term makes messages vanish for a shell without neighbours. The weights do not depend on `largest`, so
    # that its derivative is not needed.
    weights = unnormalised / (jnp.sum(unnormalised, axis=1, keepdims=True) + 1e-3 * jnp.exp(-largest))
    messages = jnp.einsum("ijh,ijhd,jhd->ihd", weights, gate, value)
    return hk.Linear(width, name="heard")(messages.reshape(len(x), width))


def _mlp(
    x: Float[Array, "n width"], hidden: int, size: int, name: str, *, zero: bool = False
) -> Float[Array, "n size"]:
    """Apply two layers; with `zero`, the last one starts at zero."""
    with hk.experimental.name_scope(name):
        last = {"w_init": jnp.zeros} if zero else {}
        return hk.Linear(size, name="out", **last)(jax.nn.silu(hk.Linear(hidden, name="in")(x)))


def _norm(x: Float[Array, "nshell width"]) -> Float[Array, "nshell width"]:
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name="norm")(x)


register_kind(GNNPredictor.kind, GNNConfig, title="OrbitalGNN")
