"""Training of an OrbitalGNN on labels, several properties at once (Qiao et al. 2020, arXiv:2011.02680)."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from qptlab import files
from qptlab.errors import InputError
from qptlab.evaluation import labelled, labels
from qptlab.evaluation.errors import LOW_COST, ErrorSummary
from qptlab.evaluation.labelled import Prepared
from qptlab.evaluation.labels import Label, LabelledSet
from qptlab.models.contract import Params, title_of
from qptlab.models.operators import shells
from qptlab.models.orbital_gnn import (
    GNNConfig,
    GNNPredictor,
    Graph,
    GraphDerivatives,
    OrbitalGNN,
    Scales,
    check_description,
)
from qptlab.random_streams import Purpose, generator
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig
from qptlab.training.loop import Feed, Gradient, Objective, Setting

SMALLEST_SCALE = 1e-6
"""Smallest spread that values are divided by: a property may be constant in the training set."""

LABELS_FILE, STATISTICS_FILE = "labels.xyz", "statistics.json"


def vocabulary(mols: Sequence[Molecule], config: GNNConfig) -> OrbitalGNN:
    """Return a network for the elements and shells of some molecules.

    Raises:
      InputError: if there are no molecules, or as `operators.shells`.
    """
    if not mols:
        raise InputError("Expected at least one labelled geometry, got none; use qptlab label to create labels.")
    kinds = sorted({kind for mol in mols for kind in shells(mol, config.source).kinds})
    return OrbitalGNN(config, tuple(kinds), tuple(sorted({symbol for mol in mols for symbol in mol.symbols})))


class Supervised(Objective):
    """An OrbitalGNN on a labelled set.

    Args:
      data: labelled geometries; some are held out for validation.
      config: settings of the network.
      scales: statistics of an earlier training; None to fit them before the first update.
      prepared: the labelled geometries as the network reads them, if they were prepared before.
      model: network with a larger vocabulary than that of the labelled set; by default, `vocabulary` of the set.
      text: text of an earlier training's folder that `data` was read from; None to write it.

    Raises:
      InputError: if the low-cost method cannot treat a molecule.
    """

    method = None
    budget = ("minutes", "steps")  # a different validation set would be a different training set
    baselines = MappingProxyType({"no_network": LOW_COST})

    def __init__(
        self, data: LabelledSet, config: GNNConfig, *, scales: Scales | None = None, prepared: Prepared | None = None,
        model: OrbitalGNN | None = None, text: str | None = None,
    ):
        # As they are written: a training that continues from its folder has the same numbers, to the last digit.
        self._text = labels.to_xyz(data) if text is None else text
        self.data = labels.from_xyz(self._text, LABELS_FILE) if text is None else data
        self.model_config, self.scales = config, scales
        self.kind = GNNPredictor.kind
        self.model = model or vocabulary(self.data.molecules, config)
        self.molecules = tuple({mol.formula: mol for mol in reversed(self.data.molecules)}.values())[::-1]
        self._prepared = prepared

    def check(self, config: TrainConfig) -> None:
        """Raise an `InputError` for settings that this objective cannot be trained with."""
        if config.microbatch is not None:
            raise InputError(
                f"Expected no microbatch for a network that learns from labels, got {config.microbatch}; use a "
                "smaller batch."
            )
        if jax.process_count() > 1:
            raise InputError(
                f"Expected one process for a training on labels, got {jax.process_count()}; run the script on one "
                "machine."
            )
        self._split(config)

    def init(self, seed: int) -> Params:
        """Return initial parameters."""
        return self.model.init(jax.random.key(seed))

    def feed(self, setting: Setting, params: Params, step: int) -> "LabelledFeed":
        """Prepare the training set, fit the statistics, and return the batches from a given step on."""
        training, _ = self._split(setting.config)
        data = self._prepare(training, setting.config, functools.partial(setting.watch.preparing, "low-cost method"))
        self.scales = self.scales or fit(self.model, data)
        return LabelledFeed(self, data, training.molecules, setting, step)

    def predictor(self, params: Params | None) -> GNNPredictor:
        """Return the trained model; with None, the low-cost method with linear fits.

        Raises:
          InputError: before the statistics are fitted.
        """
        if self.scales is None:
            raise InputError("Expected a training that has begun, got one before its first update; train it first.")
        blank = jax.tree.map(np.zeros_like, self.init(0)) if params is None else params
        return GNNPredictor(self.model, blank, self.scales, self.label)

    @property
    def label(self) -> str:
        """Level of theory of the labels, in words."""
        return self.data.theory or "labels of unknown theory"

    def make_validation(
        self, config: TrainConfig, progress: Callable[[int, int], None], threads: Callable[[], int | None],
        drawn: Callable[[list[Molecule]], None],
    ) -> tuple[LabelledSet, Prepared]:
        """Run the low-cost method on the geometries that are held out."""
        held_out = self._split(config)[1]
        drawn(held_out.molecules)
        return held_out, self._prepare(held_out, config, progress)

    def validate(self, validation: tuple[LabelledSet, Prepared], params: Params) -> list[tuple[str, ErrorSummary]]:
        """Return the errors of the model, and of the low-cost method with linear fits."""
        predictor = self.predictor(params)
        return [
            (title_of(self.kind), labelled.label_errors(predictor, validation[1])),
            ("no_network", labelled.label_errors(predictor.without_network(), validation[1])),
        ]

    def validation_molecules(self, validation: tuple[LabelledSet, Prepared]) -> list[Molecule]:
        """Return the validation geometries."""
        return validation[0].molecules

    def record(self) -> dict:
        """Return what `config.json` of a run folder holds: kind, network, and a hash of the labels."""
        return {
            "kind": self.kind, "model": dataclasses.asdict(self.model_config), "label": self.label,
            "kinds": list(self.model.kinds), "elements": list(self.model.elements),
            "labels": {"file": LABELS_FILE, "count": len(self.data.molecules), "sha256": self._digest},
        }

    def files(self) -> dict[str, str]:
        """Return the labels and, once they are fitted, the statistics."""
        texts = {LABELS_FILE: self._text}
        if self.scales is not None:
            statistics = {name: np.asarray(value).tolist() for name, value in self.scales._asdict().items()}
            texts[STATISTICS_FILE] = json.dumps(statistics)
        return texts

    @classmethod
    def from_record(cls, record: dict, config: GNNConfig, read: Callable[[str], str | None]) -> "Supervised":
        """Return the objective of a run folder.

        Args:
          record: content of `config.json`.
          config: settings of the network.
          read: function that returns the text of a file of the folder; None if there is no such file.

        Raises:
          InputError: if the labels are missing or damaged.
        """
        text, statistics = read(LABELS_FILE), read(STATISTICS_FILE)
        if text is None:
            raise InputError(f"Expected {LABELS_FILE} in the run folder, got none; copy the whole folder.")
        scales = None
        if statistics is not None:
            scales = Scales(**{name: np.asarray(value, float) for name, value in files.parsed(statistics).items()})
        check_description(record)
        model = OrbitalGNN(config, tuple(record["kinds"]), tuple(record["elements"]))
        objective = cls(labels.from_xyz(text, LABELS_FILE), config, scales=scales, model=model, text=text)
        if scales is not None and not objective.model.fits(scales):
            raise InputError(
                f"Expected statistics of {len(model.kinds)} kinds of shells and {len(model.elements)} elements in "
                f"{STATISTICS_FILE}, got arrays of different shapes; restore the file."
            )
        if objective._digest != record["labels"]["sha256"]:
            raise InputError(
                f"Expected the labels that the run was trained on in {LABELS_FILE}, got different ones; restore the "
                "file."
            )
        return objective

    def difference(self, earlier: Objective) -> tuple[str, Any, Any] | None:
        """Return what differs from an earlier run: its name, the earlier value and this one."""
        if not isinstance(earlier, Supervised) or earlier.model_config != self.model_config:
            return "model", earlier.model_config, self.model_config
        if earlier._digest != self._digest:
            before, now = (
                f"{len(objective.data.molecules)} geometries (SHA-256 {objective._digest[:8]}…)"
                for objective in (earlier, self)
            )
            return "labels", before, now
        return None

    def card(self, config: TrainConfig) -> tuple[str, list[str], str]:
        """Return title, lines and limits of a model card."""
        weights = dataclasses.asdict(config.tasks)
        learned = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)
        lines = [
            f"- Labels: {self.label}, {len(self.data.molecules)} geometries.",
            f"- Network: {title_of(self.kind)} on operators of {self.model_config.source}, width "
            f"{self.model_config.width}, {self.model_config.layers} layers.",
            f"- Weights of the properties: {learned}.",
        ]
        limits = (
            f"Limits: molecules of {', '.join(self.model.elements)} without unpaired electrons, similar to those "
            "trained on. The model gives no estimate of its error."
        )
        return f"{title_of(self.kind)} for molecules of {', '.join(self.model.elements)}", lines, limits

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self._text.encode()).hexdigest()

    def _split(self, config: TrainConfig) -> tuple[LabelledSet, LabelledSet]:
        """Return the training set and the validation set."""
        count = config.validation
        if isinstance(count, float):
            count = max(1, round(count * len(self.data.molecules)))
        return self.data.split(count, config.seed)

    def _prepare(self, data: LabelledSet, config: TrainConfig, progress: Callable[[int, int], None]) -> Prepared:
        if self._prepared is not None:
            index = {id(mol): number for number, mol in enumerate(self.data.molecules)}
            return self._prepared.take([index[id(mol)] for mol in data.molecules])
        return labelled.prepare(
            self.model, data.molecules, data.labels, forces=bool(config.tasks.forces), progress=progress
        )


class LabelledFeed(Feed):
    """Batches of a labelled set, and the gradient of the multi-task loss.

    Args:
      objective: network and statistics.
      data: training set as the network reads it.
      molecules: geometries of the training set.
      setting: surroundings of the training.
      step: number of updates that were done before.
    """

    def __init__(
        self, objective: Supervised, data: Prepared, molecules: Sequence[Molecule], setting: Setting, step: int
    ):
        if objective.scales is None:
            raise ValueError("Expected an objective with fitted statistics, got one without; call its feed method.")
        self._objective, self._molecules, self._setting = objective, molecules, setting
        arrays = jax.tree.map(jnp.asarray, _single_precision(data, objective.scales))
        self._data, self._scales = setting.devices.replicate(arrays)
        rng = generator(Purpose.LABELLED_BATCHES, setting.config.seed)
        self._order = _batches(rng, len(molecules), setting.config.batch)
        for _ in range(step):
            next(self._order)
        self._executable: jax.stages.Compiled | None = None
        self._drawn = min(step * setting.config.batch, len(molecules))

    def __exit__(self, *_):
        """There are no threads to stop."""

    def gradient(self, params: Params) -> Gradient:
        """Draw the next batch and return its gradient."""
        indices = next(self._order)
        self._setting.watch.drew(lambda: self._molecules[indices[0]])
        arguments = (params, self._data, self._scales, self._setting.devices.replicate(jnp.asarray(indices)))
        compile_s = 0.0
        if self._executable is None:
            self._setting.watch.compiling("training step")
            began = time.perf_counter()
            self._executable = self._setting.compile("step", jax.jit(self._compute).lower(*arguments))
            compile_s = time.perf_counter() - began
        (loss, losses), tree = self._executable(*arguments)
        self._drawn = min(self._drawn + len(indices), len(self._molecules))
        return Gradient(
            float(loss), float("nan"), tree, functools.partial(self._not_finite, indices, losses),
            compile_s=compile_s, geometries=self._drawn,
        )

    def _compute(self, params, data, scales, indices):
        part = jax.tree.map(lambda x: x[indices], data)
        weights, model = self._setting.config.tasks, self._objective.model

        def mean(params):
            losses = jax.vmap(functools.partial(multitask_loss, params, model, weights, scales))(
                part.graphs, part.slopes, part.labels
            )
            return jnp.mean(losses), losses

        return jax.value_and_grad(mean, has_aux=True)(params)

    def _not_finite(self, indices: Int[np.ndarray, " batch"], losses: Float[Array, " batch"]) -> list[Molecule]:
        is_finite = np.isfinite(np.asarray(losses))
        # If every loss is finite, the derivative is not: any geometry may be the cause.
        return [
            self._molecules[index] for index, is_good in zip(indices, is_finite, strict=True)
            if not is_good or is_finite.all()
        ]


def multitask_loss(
    params: Params, model: OrbitalGNN, weights: Any, scales: Scales, graph: Graph, slopes: GraphDerivatives | None,
    label: Label,
) -> Float[Array, ""]:
    """Return the weighted sum of mean squared errors of the properties of one geometry, in units of their scales.

    Args:
      params: parameters of the network.
      model: network.
      weights: weights of the properties, `config.TaskWeights`.
      scales: statistics of the training set.
      graph: input of the network.
      slopes: derivatives of the input with respect to positions.
      label: label; NaN for a property that is not targets.
    """
    prediction, forces = labelled.predict_prepared(model, params, scales, graph, slopes if weights.forces else None)
    natm = jnp.sum(graph.atom_mask)
    atoms = graph.atom_mask[:, None]
    terms = {
        "energy": _mean_square(prediction.energy, label.energy, scales.energy) / natm,
        "dipole": _mean_square(prediction.dipole, label.dipole, scales.dipole),
        "charges": _mean_square(prediction.charges, label.charges, scales.charge, graph.atom_mask),
        "gap": _mean_square(prediction.gap, label.gap, scales.gap),
        "valence": _mean_square(prediction.valence, label.valence, scales.valence, atoms),
    }
    if forces is not None:
        terms["forces"] = _mean_square(forces, label.forces, scales.force, atoms)
    return jnp.asarray(sum(getattr(weights, name) * value for name, value in terms.items()))


def fit(model: OrbitalGNN, data: Prepared) -> Scales:
    """Return the statistics of a training set: linear fits of what the low-cost method misses, and spreads."""
    graphs, targets = data.graphs, data.labels
    is_real = np.asarray(graphs.atom_mask)
    elements = range(len(model.elements))
    counts = np.stack([np.sum((graphs.elements == e) & is_real, axis=1) for e in elements], axis=1)
    difference = targets.energy - graphs.energy
    has_energy = np.isfinite(difference)
    element_energy = np.linalg.lstsq(counts[has_energy], difference[has_energy], rcond=None)[0]
    remainder = (difference - counts @ element_energy) / np.sqrt(counts.sum(axis=1))
    charge, charge_spread = _by_element(targets.charges - graphs.charges, graphs, len(model.elements))
    valence, valence_spread = _by_element(targets.valence, graphs, len(model.elements))
    shell_mean, shell_scale = _by_kind(graphs, len(model.kinds))
    gap = targets.gap - graphs.gap
    has_gap = np.isfinite(gap)
    gap_mean = np.array(float(np.mean(gap[has_gap])) if has_gap.any() else 0.0)
    low_cost_forces = 0.0 if data.slopes is None else -np.asarray(data.slopes.energy)
    return Scales(
        shell_mean, shell_scale, element_energy, _spread(remainder), charge, charge_spread,
        _spread(targets.dipole - graphs.dipole), gap_mean, _spread(gap - gap_mean), valence, valence_spread,
        _spread(targets.forces - low_cost_forces),
    )


def _mean_square(
    prediction: Any, label: Any, scale: Any, mask: ArrayLike = True
) -> Float[Array, ""]:
    """Return the mean square of the error where there is a label, in units of a scale."""
    is_labelled = jnp.isfinite(label) & mask
    error = jnp.where(is_labelled, (prediction - label) / scale, 0.0)
    return jnp.sum(error**2) / jnp.maximum(jnp.sum(is_labelled), 1)


def _single_precision(data: Prepared, scales: Scales) -> tuple[Prepared, Scales]:
    """Return all arrays in float32, without low-cost energies and linear fits, which would take all digits."""
    graphs = data.graphs
    fitted = np.sum(np.where(graphs.atom_mask, scales.element_energy[graphs.elements], 0.0), axis=1)
    targets = data.labels._replace(energy=data.labels.energy - graphs.energy - fitted)
    graphs = graphs._replace(energy=np.zeros_like(graphs.energy))
    scales = scales._replace(element_energy=np.zeros_like(scales.element_energy))

    def narrow(x):
        return np.asarray(x, np.float32) if x.dtype == np.float64 else x

    return jax.tree.map(narrow, data._replace(graphs=graphs, labels=targets)), jax.tree.map(narrow, scales)


def _batches(rng: np.random.Generator, size: int, batch: int) -> Iterator[Int[np.ndarray, " batch"]]:
    """Yield batches without end; every geometry comes once before any comes again."""
    waiting: Int[np.ndarray, " n"] = np.zeros(0, int)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(size)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def _by_element(
    values: Float[np.ndarray, "n natm *property"], graphs: Graph, count: int
) -> tuple[Float[np.ndarray, "nelement *property"], Float[np.ndarray, ""]]:
    """Return the means over the atoms of each element, and the spread about them."""
    values = np.where(graphs.atom_mask.reshape(*graphs.atom_mask.shape, *[1] * (values.ndim - 2)), values, np.nan)
    means = np.zeros((count, *values.shape[2:]))
    for element in range(count):
        members = values[(graphs.elements == element) & graphs.atom_mask]
        if np.isfinite(members).any():
            means[element] = np.nanmean(members, axis=0)
    return means, _spread(values - means[graphs.elements])


def _by_kind(
    graphs: Graph, count: int
) -> tuple[Float[np.ndarray, "nkind nfeature"], Float[np.ndarray, " nfeature"]]:
    """Return the mean features of each kind of shell, and the spread about them."""
    features = graphs.features.shell
    means = np.zeros((count, features.shape[-1]))
    for kind in range(count):
        members = features[(graphs.kinds == kind) & graphs.mask]
        if len(members):
            means[kind] = members.mean(axis=0)
    deviations = np.where(graphs.mask[..., None], features - means[graphs.kinds], np.nan)
    return means, np.sqrt(np.nanmean(deviations**2, axis=(0, 1))) + SMALLEST_SCALE


def _spread(values: Float[Array | np.ndarray, "..."]) -> Float[np.ndarray, ""]:
    is_known = np.isfinite(values)
    root = np.sqrt(np.mean(np.square(values[is_known]))) if is_known.any() else 1.0
    return np.array(max(root, SMALLEST_SCALE))
