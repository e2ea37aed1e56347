"""Training an OrbitalGNN on several properties at once (Qiao et al. 2020, arXiv:2011.02680)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from qptlab.dft.padding import fill
from qptlab.errors import InputError
from qptlab.evaluation.labels import Label
from qptlab.models.operators import shells
from qptlab.models.orbital_gnn import (
    GNNConfig,
    GNNPredictor,
    Graph,
    OrbitalGNN,
    Scales,
    Size,
    Slope,
    slope,
)
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM, HARTREE_EV, HARTREE_MEV

TASKS = ("energy", "forces", "dipole", "charges", "gap", "valence")
"""What can be learned, each with a weight of its own."""

CHUNK = 50
"""Updates between two reports of progress."""

SMALLEST_SCALE = 1e-6
"""What does not vary in the training set is not divided by nothing."""


@dataclasses.dataclass(frozen=True)
class MultitaskConfig:
    """What to learn, and how. A weight of zero leaves a property out.

    Each weight multiplies a mean squared error, in units of what the low-cost method and a linear fit leave of that
    property in the training set.

    Attributes:
      energy: weight of total energies.
      forces: of forces; they take the derivatives of all operators, and a second derivative of the network.
      dipole: of dipole moments.
      charges: of atomic charges.
      gap: of HOMO–LUMO gaps.
      valence: of the eigenvalues of the atoms' parts of the density.
      steps: updates.
      batch: geometries per update.
      learning_rate: the highest, after a warm-up of a twentieth; a cosine takes it to a hundredth of that.
      averaging: decay, update by update, of the mean of parameters that is kept.
      seed: of parameters and batches.
      network: shape and input.
    """

    energy: float = 1.0
    forces: float = 1.0
    dipole: float = 0.1
    charges: float = 0.1
    gap: float = 0.1
    valence: float = 0.1
    steps: int = 1500
    batch: int = 8
    learning_rate: float = 2e-3
    averaging: float = 0.99
    seed: int = 0
    network: GNNConfig = dataclasses.field(default_factory=GNNConfig)

    def __post_init__(self):
        """Check what a user can get wrong."""
        for name in TASKS:
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"a weight of {getattr(self, name)} for {name} cannot be used; 0 or more would do.")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} cannot be used; a whole number from 0 would do.")
        if not any(getattr(self, name) for name in TASKS):
            raise InputError(f"no property is to be learned; a weight for one of {', '.join(TASKS)} would do.")
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} cannot be used; a whole number from 1 would do.")


class Prepared(NamedTuple):
    """Geometries ready to learn from, stacked along a first axis and padded to one shape.

    Attributes:
      graphs: what the network reads.
      slopes: derivatives of it; None where no forces are learned.
      labels: what it is to say, padded with what is not a number; atomic units.
    """

    graphs: Graph
    slopes: Slope | None
    labels: Label

    def take(self, chosen: Sequence[int]) -> "Prepared":
        """Some of the geometries, by number."""
        index = np.asarray(chosen, int)
        return jax.tree.map(lambda x: x[index], self)


def vocabulary(mols: Sequence[Molecule], config: GNNConfig) -> OrbitalGNN:
    """A network for the elements and shells of some molecules.

    Raises:
      InputError: if there are none, or as `operators.shells`.
    """
    if not mols:
        raise InputError("no geometries were given; at least one with a label would do.")
    kinds = sorted({kind for mol in mols for kind in shells(mol, config.source).kinds})
    return OrbitalGNN(config, tuple(kinds), tuple(sorted({symbol for mol in mols for symbol in mol.symbols})))


def prepare(
    model: OrbitalGNN, mols: Sequence[Molecule], labels: Sequence[Label], *, forces: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Run the low-cost method on all geometries, and with `forces` differentiate it.

    Args:
      model: what reads them.
      mols: geometries.
      labels: of each.
      forces: whether forces are to be learned or asked for.
      progress: told how many are done, of how many.

    Raises:
      InputError: as `OrbitalGNN.graph`, or if there is not one label for each.
    """
    if len(mols) != len(labels) or not mols:
        raise InputError(f"{len(mols)} geometries and {len(labels)} labels were given; one label for each would do.")
    size = Size(*map(max, zip(*map(model.size, mols), strict=True)))
    graphs, slopes = [], []
    for done, mol in enumerate(mols, start=1):
        graphs.append(jax.tree.map(np.asarray, model.graph(mol, size)))
        if forces:  # as many numbers as a network reads, for each coordinate: float32 will do
            slopes.append(jax.tree.map(lambda x: x.astype(np.float32), slope(model, mol, size)))
        progress(done, len(mols))
    return Prepared(
        _stack(graphs), _stack(slopes) if forces else None, _stack([_filled(label, size.natm) for label in labels])
    )


def fit(model: OrbitalGNN, data: Prepared) -> Scales:
    """What is fitted before training: linear fits and spreads over the training set."""
    graphs, labels = data.graphs, data.labels
    real = np.asarray(graphs.atom_mask)
    counts = np.stack([np.sum((graphs.elements == e) & real, axis=1) for e in range(len(model.elements))], axis=1)
    miss = labels.energy - graphs.energy
    known = np.isfinite(miss)
    element_energy = np.linalg.lstsq(counts[known], miss[known], rcond=None)[0]
    left = (miss - counts @ element_energy) / np.sqrt(counts.sum(axis=1))
    charge, charge_spread = _by_element(labels.charges - graphs.charges, graphs, len(model.elements))
    valence, valence_spread = _by_element(labels.valence, graphs, len(model.elements))
    shell_mean, shell_scale = _by_kind(graphs, len(model.kinds))
    gap = labels.gap - graphs.gap
    known = np.isfinite(gap)
    gap_mean = np.array(_mean(gap, known) if known.any() else 0.0)
    low_forces = 0.0 if data.slopes is None else -np.asarray(data.slopes.energy)
    return Scales(
        shell_mean, shell_scale, element_energy, _spread(left), charge, charge_spread,
        _spread(labels.dipole - graphs.dipole), gap_mean, _spread(gap - gap_mean), valence, valence_spread,
        _spread(labels.forces - low_forces),
    )


def train_gnn(
    model: OrbitalGNN, data: Prepared, config: MultitaskConfig, theory: str,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> GNNPredictor:
    """Train an OrbitalGNN.

    Args:
      model: from `vocabulary`.
      data: from `prepare`, with forces where these have a weight.
      config: what to learn, and how.
      theory: what the labels are, in words, such as "PBE/def2-svp".
      progress: told the step and the mean loss, now and then; what it raises ends the training.

    Raises:
      InputError: if forces are to be learned and `data` has no derivatives, or the loss is no number any more.
    """
    if config.forces and data.slopes is None:
        raise InputError("forces have a weight, and the geometries were prepared without; forces=True would do.")
    scales = fit(model, data)
    single, slim = _single(data, scales)
    single = jax.tree.map(jnp.asarray, single)
    key = jax.random.key(config.seed)
    first = jax.tree.map(lambda x: x[0], single.graphs)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model.init(key, first, slim))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(config.steps // 20, 1), max(config.steps, 2), config.learning_rate / 100
    )
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(schedule, weight_decay=1e-4))
    state, average = optimiser.init(params), params
    rng = np.random.default_rng([5, config.seed])
    order = _epochs(rng, len(data.graphs.kinds), config.batch)
    run = _compiled_steps(model, config, optimiser)
    for done in range(0, config.steps, CHUNK):
        batches = jnp.asarray(np.stack([next(order) for _ in range(min(CHUNK, config.steps - done))]))
        params, average, state, losses = run(params, average, state, single, slim, batches)
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise InputError(
                f"after {done + len(batches)} updates the loss is {loss}; a lower learning rate than "
                f"{config.learning_rate:g}, or labels without outliers, would do."
            )
        progress(done + len(batches), loss)
    return GNNPredictor(model, jax.tree.map(np.asarray, average), scales, theory)


class Judged(NamedTuple):
    """Mean absolute errors; not a number where there are no labels.

    Attributes:
      energy_mae_mev: total energy, per molecule.
      forces_mae_mev_angstrom: per component.
      dipole_mae_debye: length of the difference.
      charge_mae: elementary charges.
      gap_mae_ev: of the gap.
    """

    energy_mae_mev: float
    forces_mae_mev_angstrom: float
    dipole_mae_debye: float
    charge_mae: float
    gap_mae_ev: float


ERROR_COLUMNS = {
    "energy_mae_mev": "energy, meV", "forces_mae_mev_angstrom": "forces, meV/Å", "dipole_mae_debye": "dipole, debye",
    "charge_mae": "charges, e", "gap_mae_ev": "gap, eV",
}
"""Names and units of errors, for tables."""


def judge(predictor: GNNPredictor, data: Prepared) -> Judged:
    """Errors on geometries with labels; forces where these were prepared.

    What has no label does not count. A model that says what is not a number for a label has no error either.
    """
    labels = data.labels
    found, forces = _estimates(predictor.model, predictor.params, predictor.scales, data.graphs, data.slopes)
    lengths = np.linalg.norm(np.asarray(found.dipole) - labels.dipole, axis=-1)

    def error(values, truth):
        return _mean(np.abs(np.asarray(values) - truth), np.isfinite(truth))

    pulls = np.nan if forces is None else error(forces, labels.forces)
    return Judged(
        error(found.energy, labels.energy) * HARTREE_MEV, pulls * HARTREE_MEV / BOHR_ANGSTROM,
        _mean(lengths, np.isfinite(labels.dipole).all(axis=-1)) * AU_DEBYE,
        error(found.charges, labels.charges), error(found.gap, labels.gap) * HARTREE_EV,
    )


@functools.partial(jax.jit, static_argnums=0)
def _estimates(model, params, scales, graphs, slopes):
    # One after the other: the slopes of all at once, in double precision, would take much memory.
    return jax.lax.map(lambda each: _estimate_one(model, params, scales, *each), (graphs, slopes))


def _estimate_one(model, params, scales, graph, slopes):
    if slopes is None:
        return model.estimate(params, scales, graph), None
    found, bar = model.energy_and_bar(params, scales, graph)
    return found, _forces(bar, slopes)


def _forces(bar, slopes):
    through = jax.tree.map(lambda b, s: jnp.tensordot(b, s, b.ndim), bar, slopes.features)
    return -(slopes.energy + sum(through))


def _loss(params, model, config, scales, graph, slopes, label):
    found, forces = _estimate_one(model, params, scales, graph, slopes if config.forces else None)
    natm = jnp.sum(graph.atom_mask)
    atoms = graph.atom_mask[:, None]
    terms = {
        "energy": _squared(found.energy, label.energy, scales.energy) / natm,
        "dipole": _squared(found.dipole, label.dipole, scales.dipole),
        "charges": _squared(found.charges, label.charges, scales.charge, graph.atom_mask),
        "gap": _squared(found.gap, label.gap, scales.gap),
        "valence": _squared(found.valence, label.valence, scales.valence, atoms),
    }
    if forces is not None:
        terms["forces"] = _squared(forces, label.forces, scales.force, atoms)
    return sum(getattr(config, name) * value for name, value in terms.items())


def _squared(found, label, scale, mask: Bool[Array, "..."] | bool = True):
    """Mean square of what the labels know, in units of a scale."""
    known = jnp.isfinite(label) & mask
    return jnp.sum(jnp.where(known, (found - label) / scale, 0.0) ** 2) / jnp.maximum(jnp.sum(known), 1)


def _compiled_steps(model, config, optimiser):
    def batch_loss(params, data, scales):
        each = jax.vmap(functools.partial(_loss, params, model, config, scales))
        return jnp.mean(each(data.graphs, data.slopes, data.labels))

    @jax.jit
    def run(params, average, state, data, scales, batches):
        def step(carry, batch):
            params, average, state = carry
            here = jax.tree.map(lambda x: x[batch], data)
            loss, slopes = jax.value_and_grad(batch_loss)(params, here, scales)
            change, state = optimiser.update(slopes, state, params)
            params = optax.apply_updates(params, change)
            average = optax.incremental_update(params, average, 1 - config.averaging)
            return (params, average, state), loss

        (params, average, state), losses = jax.lax.scan(step, (params, average, state), batches)
        return params, average, state, losses

    return run


def _single(data, scales):
    """All in float32: what is learned, without the low-cost energy and linear fit, which would take its digits."""
    graphs = data.graphs
    fitted = np.sum(np.where(graphs.atom_mask, scales.element_energy[graphs.elements], 0.0), axis=1)
    labels = data.labels._replace(energy=data.labels.energy - graphs.energy - fitted)
    graphs = graphs._replace(energy=np.zeros_like(graphs.energy))
    scales = scales._replace(element_energy=np.zeros_like(scales.element_energy))

    def narrow(x):
        return x.astype(np.float32) if x.dtype == np.float64 else x

    return jax.tree.map(narrow, data._replace(graphs=graphs, labels=labels)), jax.tree.map(narrow, scales)


def _epochs(rng, size, batch):
    """Batches without end; every geometry comes once before any comes again."""
    waiting: Int[np.ndarray, " n"] = np.zeros(0, int)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(size)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def _by_element(values, graphs, count):
    """Means over the atoms of each element, and the spread about them."""
    values = np.where(graphs.atom_mask.reshape(*graphs.atom_mask.shape, *[1] * (values.ndim - 2)), values, np.nan)
    means = np.zeros((count, *values.shape[2:]))
    for element in range(count):
        own = values[(graphs.elements == element) & graphs.atom_mask]
        if np.isfinite(own).any():
            means[element] = np.nanmean(own, axis=0)
    return means, _spread(values - means[graphs.elements])


def _by_kind(graphs, count):
    features = graphs.features.shell
    means = np.zeros((count, features.shape[-1]))
    for kind in range(count):
        own = features[(graphs.kinds == kind) & graphs.mask]
        if len(own):
            means[kind] = own.mean(axis=0)
    left = np.where(graphs.mask[..., None], features - means[graphs.kinds], np.nan)
    return means, np.sqrt(np.nanmean(left**2, axis=(0, 1))) + SMALLEST_SCALE


def _spread(values):
    known = np.isfinite(values)
    root = np.sqrt(np.mean(np.square(values[known]))) if known.any() else 1.0
    return np.array(max(root, SMALLEST_SCALE))


def _mean(values, known):
    return float(np.mean(np.asarray(values)[known])) if known.any() else float("nan")


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _filled(label, natm):
    nan = float("nan")
    return label._replace(
        forces=fill(label.forces, natm, nan), charges=fill(label.charges, natm, nan),
        valence=fill(label.valence, natm, nan),
    )
