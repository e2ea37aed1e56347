"""OrbitalGNN: a network on low-cost operators that corrects the low-cost method, for several properties at once.

After OrbNet (Qiao et al. 2020, arXiv:2007.08026) and its multi-task learning (Qiao et al. 2020, arXiv:2011.02680):
nodes and edges carry matrix elements of low-cost operators in radial bases with cut-offs, messages pass by multi-head
attention, and what is decoded atom by atom is added to the low-cost method's answer. Here a node is a shell of an
atom (see `operators`), LayerNorm stands where the papers have BatchNorm, and all is smooth, so that forces are
derivatives.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import ase.data
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qptlab.dft.padding import fill
from qptlab.errors import InputError, shown
from qptlab.models import files, operators
from qptlab.models.contract import Params, Prediction, register_kind
from qptlab.models.operators import SOURCES, Invariants, Operators
from qptlab.system.molecule import Molecule

VALENCE = 9
"""Eigenvalues of an atom's density that are learned, each of the occupied and of the valence-virtual part: the
minimal basis of the elements up to argon has at most nine functions."""

NORM_RANGE = (1e-3, 30.0)
"""Norms of blocks of operators that the radial basis spreads over, on a logarithmic scale; hartree or none."""

CUT_OFF_HARTREE = (1e-3, 1e-2)
"""Two shells whose Fock block has a norm below the first do not see each other, and fully above the second."""

MAX_KIND = 20
"""Characters of a shell's kind, such as "O 2p"."""

SMALLEST = 1e-4
"""Where a root of a product of blocks is smoothed."""

STEP_BOHR = 1e-3
"""Of central differences: of a slope some 1e-6 is lost by it."""


@dataclasses.dataclass(frozen=True)
class GNNConfig:
    """The network's shape and its input.

    Attributes:
      source: of operators, one of `operators.SOURCES`.
      width: numbers per node.
      layers: rounds of messages.
      heads: of attention in each.
      radial: functions of each radial basis.
    """

    source: str = "gfn1"
    width: int = 64
    layers: int = 3
    heads: int = 4
    radial: int = 6

    def __post_init__(self):
        """Check what a user can get wrong."""
        operators.check_source(self.source)
        for name in ("width", "layers", "heads", "radial"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} of a network was asked for; 1 or more would do.")
        if self.width % self.heads:
            raise InputError(f"a width of {self.width} does not divide into {self.heads} heads; a multiple would do.")


class Graph(NamedTuple):
    """One geometry as the network sees it; all may be padded, with masks that are True for what is real.

    Attributes:
      features: of shells and of pairs of shells.
      kinds: number of each shell's kind in the model's vocabulary.
      atoms: the atom of each shell.
      mask: which shells are real.
      elements: number of each atom's element in the vocabulary.
      atom_mask: which atoms are real.
      positions: bohr.
      energy: of the low-cost method, hartree; as the three below.
      dipole: about the origin, e·bohr.
      charges: of the atoms.
      gap: hartree.
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
    """What is fitted before training, and turns the network's numbers near one into answers.

    Attributes:
      shell_mean: mean features of each kind of shell.
      shell_scale: how far they spread about it.
      element_energy: energy of each element, hartree: a linear fit of what the low-cost method misses.
      energy: what that fit leaves, per root of the number of atoms, hartree.
      element_charge: mean change of the low-cost charge of each element.
      charge: how far charges spread about it.
      dipole: what the low-cost dipole misses, e·bohr.
      gap_mean: mean change of the low-cost gap, hartree.
      gap: how far gaps spread about it, hartree.
      element_valence: mean eigenvalues of the density of each element's atoms.
      valence: how far they spread about it.
      force: what the low-cost forces miss, hartree per bohr.
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
        one, zero = np.array(1.0), np.array(0.0)
        return cls(
            np.zeros((nkind, nfeature)), np.ones(nfeature), np.zeros(nelement), one, np.zeros(nelement), one, one,
            zero, one, np.zeros((nelement, 2 * VALENCE)), one, one,
        )


PROVIDES = frozenset({"energy", "forces", "dipole", "charges", "gap", "valence"})
"""Properties that an OrbitalGNN predicts."""


class OrbitalGNN:
    """Pure functions of parameters and graphs, and what makes graphs of molecules.

    Args:
      config: the network and its input.
      kinds: the vocabulary of shells, such as "O 2p".
      elements: the vocabulary of elements.
    """

    def __init__(self, config: GNNConfig, kinds: tuple[str, ...], elements: tuple[str, ...]):
        self.config, self.kinds, self.elements = config, kinds, elements
        self._network = hk.without_apply_rng(hk.transform(self._decode))
        self.compiled_estimate = jax.jit(self.estimate)
        self.compiled_energy_and_bar = jax.jit(self.energy_and_bar)

    def graph(self, mol: Molecule, size: "Size | None" = None) -> Graph:
        """Run the low-cost method and collect what the network reads.

        Args:
          mol: the molecule.
          size: of the padded arrays; None for the molecule's own.

        Raises:
          InputError: for an element that was not trained on, or as `operators.operators`.
        """
        layout = self._layout(mol, size)
        return self._graph(mol, layout, operators.operators(mol, self.config.source))

    def size(self, mol: Molecule) -> "Size":
        """How large the arrays of a molecule are at least.

        Raises:
          InputError: as `graph`.
        """
        shells = self._shells(mol)
        return Size(*(-(-count // step) * step for count, step in zip(
            (len(shells.members), len(shells.atoms), len(mol.symbols)), MULTIPLES, strict=True
        )))

    def _layout(self, mol, size):
        size, shells = size or self.size(mol), self._shells(mol)
        return _Layout(
            fill(shells.members, size.nao, -1), fill(shells.atoms, size.nshell), fill(mol.positions, size.natm)
        )

    def _graph(self, mol, layout, found: Operators):
        kinds = self._shells(mol).kinds
        natm, nshell = len(layout.positions), len(layout.atoms)
        return Graph(
            _invariants(layout.padded(found.matrices), layout.positions, layout.members, layout.atoms),
            fill([self.kinds.index(kind) for kind in kinds], nshell), layout.atoms, np.arange(nshell) < len(kinds),
            fill([self.elements.index(symbol) for symbol in mol.symbols], natm), np.arange(natm) < len(mol.symbols),
            layout.positions, found.energy, found.dipole, fill(found.charges, natm), found.gap,
        )

    def _shells(self, mol):
        strange = sorted(set(mol.symbols) - set(self.elements))
        if strange:
            raise InputError(
                f"elements {', '.join(strange)} were not among those trained on; a molecule of "
                f"{', '.join(self.elements)} would do."
            )
        return operators.shells(mol, self.config.source)

    def init(self, key: PRNGKeyArray) -> Params:
        """Return initial parameters (float32); with them the model is the low-cost method and the linear fits."""
        graph = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype.kind == "f" else x, self._blank_graph())
        scales = Scales.identity(len(self.kinds), len(self.elements), graph.features.shell.shape[-1])
        return jax.jit(self._network.init)(key, graph, jax.tree.map(jnp.float32, scales))

    def _blank_graph(self) -> Graph:
        """Return a graph of one shell of one atom, from which shapes of parameters follow."""
        nop, zero = len(SOURCES[self.config.source]), np.zeros(1, int)
        features = operators.invariants(jnp.zeros((nop, 1, 1)), jnp.zeros((1, 3)), zero, zero)
        return Graph(features, zero, zero, zero == 0, zero, zero == 0, np.zeros((1, 3)), np.array(0.0), np.zeros(3),
                     np.zeros(1), np.array(0.0))

    def estimate(self, params: Params, scales: Scales, graph: Graph) -> Prediction:
        """All that is decoded; in the precision of the graph's features."""
        return self._network.apply(params, graph, scales)

    def energy_and_bar(self, params: Params, scales: Scales, graph: Graph) -> tuple[Prediction, Invariants]:
        """The estimate, and the derivative of its energy with respect to the features.

        The low-cost energy, on which it depends too, is left out of the derivative.
        """

        def energy(features):
            found = self.estimate(params, scales, graph._replace(features=features))
            return found.energy, found

        (_, found), bar = jax.value_and_grad(energy, has_aux=True)(graph.features)
        return found, bar

    def _decode(self, graph, scales):
        dtype = graph.features.shell.dtype
        x = _embedded(graph, scales, len(self.kinds), self.config)
        edges, envelope = _edges(graph, self.config, len(SOURCES[self.config.source]))
        for number in range(self.config.layers):
            with hk.experimental.name_scope(f"layer_{number}"):
                x = x + _messages(x, edges, envelope, self.config)
                x = x + _mlp(_norm(x), 2 * self.config.width, self.config.width, "update")
        natm = len(graph.elements)
        own = jax.nn.one_hot(graph.atoms, natm, dtype=dtype) * graph.mask[:, None]
        atoms = own.T @ _mlp(_norm(x), 2 * self.config.width, self.config.width, "shell_out")  # [natm, width]
        real = graph.atom_mask.astype(dtype)
        count = jnp.sum(real)

        def decoded(name, size):
            return _mlp(atoms, self.config.width, size, name, zero=True) * real[:, None]

        change, charge, moment = decoded("energy", 1)[:, 0], decoded("charge", 1)[:, 0], decoded("dipole", 1)[:, 0]
        charge = charge * scales.charge + jnp.take(scales.element_charge, graph.elements) * real
        moment = (moment - jnp.sum(moment) / count) * real  # no charge in all: no matter where the origin is
        pooled = jnp.sum(atoms * real[:, None], axis=0, keepdims=True) / count
        gap = _mlp(pooled, self.config.width, 1, "gap", zero=True)[0, 0]
        valence = decoded("valence", 2 * VALENCE) * scales.valence
        fitted = jnp.sum(jnp.take(scales.element_energy, graph.elements) * real)
        return Prediction(
            graph.energy + fitted + scales.energy * jnp.sum(change),
            graph.dipole + scales.dipole * (moment @ graph.positions),
            graph.charges + (charge - jnp.sum(charge) / count) * real,
            graph.gap + scales.gap_mean + scales.gap * gap,
            valence + jnp.take(scales.element_valence, graph.elements, axis=0) * real[:, None],
        )


class Size(NamedTuple):
    """Of padded arrays."""

    nao: int
    nshell: int
    natm: int


MULTIPLES = Size(nao=16, nshell=8, natm=8)
"""Graphs are padded to multiples of these, so that few shapes are compiled."""


class _Layout(NamedTuple):
    """Where the orbitals of a molecule lie in padded arrays; those that fill up are of no shell, -1."""

    members: Int[np.ndarray, " nao"]
    atoms: Int[np.ndarray, " nshell"]
    positions: Float[np.ndarray, "natm 3"]

    def padded(self, matrices):
        more = len(self.members) - matrices.shape[-1]
        return np.pad(matrices, [(0, 0)] * (matrices.ndim - 2) + [(0, more)] * 2)


class GNNPredictor:
    """A trained OrbitalGNN, ready to use on molecules of the elements it knows.

    Energies do not change when a molecule is turned, shifted or its atoms are renumbered; dipoles turn along.

    Args:
      model: the network.
      params: its parameters.
      scales: what was fitted before training.
      label: level of theory of its labels, such as "PBE/def2-svp".
    """

    kind = "orbital-gnn"
    provides = PROVIDES
    method = None
    """The label states the level of theory: labels may come from any program."""
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
        _check_words(description)
        model = OrbitalGNN(
            GNNConfig(**description["model"]), tuple(description["kinds"]), tuple(description["elements"])
        )
        params = {name.removeprefix("params/"): value for name, value in arrays.items() if name != "scales"}
        return cls(model, params, Scales(**arrays["scales"]), description["label"])

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
          InputError: for an element that was not trained on, or where the low-cost method fails.
        """
        padded = self.model.compiled_estimate(self.params, self.scales, self.model.graph(mol))
        natm = len(mol.symbols)
        prediction = padded._replace(charges=padded.charges[:natm], valence=padded.valence[:natm])
        return jax.tree.map(np.array, prediction)

    def map(self, mols: Sequence[Molecule]) -> Iterator[Prediction]:
        """Predict several geometries in order; as many at a time as there are cores.

        Raises:
          InputError: as calling the predictor.
        """
        for mol in mols:
            self.model.size(mol)  # an unknown element is found before anything is computed
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield from pool.map(self, mols)

    def without_network(self) -> "GNNPredictor":
        """The same with the network switched off: the low-cost method and the linear fits, the baseline."""
        none = jax.tree.map(np.zeros_like, self.params)
        return GNNPredictor(self.model, none, self.scales, self.label)

    def forces(self, mol: Molecule) -> Float[np.ndarray, "natm 3"]:
        """Minus the derivative of the estimated energy with respect to positions, hartree per bohr."""
        return self.energy_and_forces(mol)[1]

    def energy_and_forces(self, mol: Molecule) -> tuple[float, Float[np.ndarray, "natm 3"]]:
        """The estimated energy, hartree, and `forces`.

        With the source "guess" everything is differentiated, integrals and matrices included. tblite gives no
        derivatives of its matrices: with "gfn1" the network's part is differentiated, and the matrices by central
        differences, six low-cost calculations for each atom.

        Raises:
          InputError: as calling the predictor.
        """
        if self.model.config.source == "guess":
            return self._through_integrals(mol)
        found, bar = self.model.compiled_energy_and_bar(self.params, self.scales, self.model.graph(mol))
        slopes = slope(self.model, mol)
        through = jax.tree.map(lambda b, s: np.tensordot(b, s, np.ndim(b)), bar, slopes.features)
        return float(found.energy), -(slopes.energy + sum(through))[: len(mol.symbols)]

    def _through_integrals(self, mol):
        template, layout = operators.guess_template(mol), self.model._layout(mol, None)
        # Of the graph only what does not move is read: energy and features are made of what is differentiated.
        none = np.zeros((len(SOURCES["guess"]), template.nao, template.nao))
        zero, natm = np.array(0.0), len(mol.symbols)
        blank = self.model._graph(mol, layout, Operators(none, zero, np.zeros(3), np.zeros(natm), zero))
        at = _guess_slope(self.model, template)
        energy, found = at(mol.positions, self.params, self.scales, blank, layout)
        return float(energy), -found


def _check_words(description: dict) -> None:
    """Raise a `ValueError` for words of a description that no trained network has; tables and messages show them."""
    elements, kinds, label = (description[name] for name in ("elements", "kinds", "label"))
    if not isinstance(elements, list) or not set(elements) <= set(ase.data.atomic_numbers):
        raise ValueError(f"elements {shown(elements)}")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and len(kind) <= MAX_KIND for kind in kinds):
        raise ValueError(f"shells {shown(kinds)}")
    if not isinstance(label, str):
        raise ValueError(f"label {shown(label)}")


class Slope(NamedTuple):
    """Derivatives of a graph with respect to positions; the last two axes are atom and direction, per bohr."""

    features: Invariants
    energy: Float[np.ndarray, "natm 3"]


def slope(model: OrbitalGNN, mol: Molecule, size: Size | None = None) -> Slope:
    """Derivatives of the features and of the low-cost energy, padded as graphs are, by central differences.

    Args:
      model: what reads them.
      mol: the molecule.
      size: as of `OrbitalGNN.graph`.

    Raises:
      InputError: as `OrbitalGNN.graph`.
    """
    layout, source = model._layout(mol, size), model.config.source
    ncoord = layout.positions.size
    moves = STEP_BOHR * np.eye(ncoord)[: mol.positions.size].reshape(-1, *layout.positions.shape)
    places = layout.positions + np.concatenate([moves, -moves])
    found = [operators.operators(mol.with_positions(place[: len(mol.symbols)]), source) for place in places]
    matrices = layout.padded(np.stack([each.matrices for each in found]))
    features = _many_invariants(fill(matrices, 2 * ncoord), fill(places, 2 * ncoord), layout.members, layout.atoms)

    def derivative(values):
        ahead, back = np.split(np.asarray(values)[: len(places)], 2)
        each = fill((ahead - back) / (2 * STEP_BOHR), ncoord)
        return np.moveaxis(each, 0, -1).reshape(*each.shape[1:], *layout.positions.shape)

    return Slope(jax.tree.map(derivative, features), derivative(np.array([each.energy for each in found])))


_invariants = jax.jit(operators.invariants)
_many_invariants = jax.jit(jax.vmap(operators.invariants, (0, 0, None, None)))


@functools.lru_cache(maxsize=32)
def _guess_slope(model, template):
    def energy(ints, params, scales, graph, layout):
        matrices, low = operators.guess_operators(ints)
        more = len(layout.members) - template.nao
        matrices = jnp.pad(matrices, ((0, 0), (0, more), (0, more)))
        positions = jnp.pad(ints.positions, ((0, len(layout.positions) - len(ints.positions)), (0, 0)))
        features = operators.invariants(matrices, positions, layout.members, layout.atoms)
        return model.estimate(params, scales, graph._replace(features=features, energy=low)).energy

    return template.value_and_gradient(energy)


def _embedded(graph, scales, nkind, config):
    features = (graph.features.shell - jnp.take(scales.shell_mean, graph.kinds, axis=0)) / scales.shell_scale
    kinds = hk.Embed(nkind, config.width, name="kind")(graph.kinds)
    return kinds + hk.Linear(config.width, name="shell")(features)


def _edges(graph, config, nop):
    """Features of pairs of shells, and how much two see of each other."""
    pair = graph.features.pair
    signed = pair / (pair**2 + SMALLEST**2) ** 0.25
    squares = pair[..., np.cumsum([0, *range(nop, 1, -1)])]  # each operator with itself
    low, high = (2 * np.log(x) for x in NORM_RANGE)
    place = (jnp.log(squares + NORM_RANGE[0] ** 2) - low) / (high - low)  # 0 to 1
    waves = jnp.sin(np.pi * jnp.arange(1, config.radial + 1) * place[..., None]).reshape(*pair.shape[:2], -1)
    coulomb = 1 / jnp.sqrt(graph.features.distance**2 + 1)
    first, last = (2 * np.log(x) for x in CUT_OFF_HARTREE)
    share = jnp.clip((jnp.log(squares[..., 0] + 1e-12) - first) / (last - first), 0.0, 1.0)
    envelope = share**3 * (10 - 15 * share + 6 * share**2)  # two continuous derivatives
    both = graph.mask[:, None] & graph.mask
    edges = jnp.concatenate([signed, waves, coulomb[..., None]], axis=-1)
    return jnp.where(both[..., None], edges, 0.0), jnp.where(both, envelope, 0.0)


def _messages(x, edges, envelope, config):
    heads, width = config.heads, config.width
    query, key, value = jnp.split(hk.Linear(3 * width, with_bias=False, name="qkv")(_norm(x)), 3, axis=-1)
    query, key, value = (each.reshape(len(x), heads, -1) for each in (query, key, value))
    hidden = jax.nn.silu(hk.Linear(width, name="edge")(edges))
    seen = hk.Linear(heads + width, name="edge_out")(hidden)
    bias, gate = seen[..., :heads], seen[..., heads:].reshape(*hidden.shape[:2], heads, -1)
    logits = jnp.einsum("ihd,jhd->ijh", query, key) / np.sqrt(width // heads) + bias
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
    raw = jnp.exp(logits - largest) * envelope[..., None]
    # A shell that sees nobody hears nothing; the result does not depend on `largest`, so nor need its derivative.
    weights = raw / (jnp.sum(raw, axis=1, keepdims=True) + 1e-3 * jnp.exp(-largest))
    heard = jnp.einsum("ijh,ijhd,jhd->ihd", weights, gate, value)
    return hk.Linear(width, name="heard")(heard.reshape(len(x), width))


def _mlp(x, hidden, size, name, *, zero=False):
    with hk.experimental.name_scope(name):
        last = {"w_init": jnp.zeros} if zero else {}
        return hk.Linear(size, name="out", **last)(jax.nn.silu(hk.Linear(hidden, name="in")(x)))


def _norm(x):
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name="norm")(x)


register_kind(GNNPredictor.kind, GNNConfig, title="OrbitalGNN")
