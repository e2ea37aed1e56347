"""Training of networks that correct a Fock matrix: without labels, on a stream of geometries."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qptlab.dft.energy import energy as total_energy
from qptlab.dft.energy import kohn_sham
from qptlab.dft.padding import Padding
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.evaluation.errors import NO_NETWORK, PYSCF_STOPPED, ErrorSummary
from qptlab.evaluation.reference import TestSet
from qptlab.models import files
from qptlab.models.contract import Params, title_of
from qptlab.models.correction import CorrectionModel
from qptlab.models.networks import CorrectionConfig
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.systems import Sample, System, added_share, make_systems
from qptlab.random_streams import Purpose, generator
from qptlab.sampling import check_sampling, sample
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig
from qptlab.training.loop import Feed, Gradient, Objective, Setting
from qptlab.training.stream import Drawn, Stream

FIT_PER_MOLECULE, FIT_GEOMETRIES = 6, 96
"""Number of geometries from which statistics of features are taken: for each molecule, and in all at most."""

FIT_DISPLACEMENT_BOHR = 0.12
"""Standard deviation of the displacements of their nuclei, bohr."""

VALIDATION_STRIDE = 8
"""Frames of the validation trajectory from one geometry to the next (40 fs): nearly independent."""


def loss(
    delta: Float[Array, "nao nao"], sample: Sample, model: CorrectionModel, kind: str
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss of a correction of the guess's Fock matrix, and the energy of the predicted density.

    Args:
      delta: correction, hartree.
      sample: geometry.
      model: DFT iterations that follow the correction.
      kind: `energy`, in hartree; `self-consistency`, in hartree² per orbital in an orthonormal basis; `labels`, the
        mean of the absolute and of the squared differences, in hartree and hartree², without an energy (NaN).
    """
    if kind == "labels":
        if sample.label is None:
            raise ValueError("Expected a sample with a label, got one without; use `reference.Labelled` systems.")
        mask = sample.features.mask[:, None] & sample.features.mask
        difference = jnp.where(mask, sample.features.fock_guess + delta - sample.label, 0.0)
        return jnp.sum(jnp.abs(difference) + difference**2) / jnp.sum(mask), jnp.array(jnp.nan)
    fock, dm, filled = model.refine(delta, sample)
    if kind == "energy":
        energy = total_energy(dm, sample.ints, filled=filled)
        return energy, energy
    state, x = kohn_sham(dm, sample.ints, filled=filled), sample.ints.orthogonaliser
    return jnp.sum((x.T @ (state.fock - fock) @ x) ** 2) / jnp.sum(sample.features.mask), state.terms.e_tot


class LabelFree(Objective):
    """A network that corrects a Fock matrix, on geometries of one molecule or several.

    Args:
      model: network and DFT iterations.
      systems: molecules.
    """

    baselines = MappingProxyType({"no_network": NO_NETWORK, "pyscf_stopped": PYSCF_STOPPED})

    def __init__(self, model: CorrectionModel, systems: Sequence[System]):
        self.model, self.systems = model, list(systems)
        self.kind, self.model_config = model.kind, model.config
        self.molecules = tuple(system.molecule for system in systems)
        self.origin = ""
        self._start: Params | None = None

    @classmethod
    def of(
        cls, mols: Sequence[Molecule], method: Method, config: CorrectionConfig, kinds: Sequence[str] = ()
    ) -> "LabelFree":
        """Return the objective of a network on molecules.

        Args:
          mols: molecules.
          method: level of theory.
          config: settings of the network.
          kinds: vocabulary of the network's tokens; by default that of the molecules.

        Raises:
          InputError: if the method cannot treat a molecule, or the vocabulary lacks one of its kinds of tokens.
        """
        systems, vocabulary = make_systems(mols, method, config, kinds)
        # The method as asked for: that of the templates may have fixed how integrals are stored.
        objective = cls(CorrectionModel(config, vocabulary), systems)
        objective.method = method
        return objective

    @classmethod
    def starting_from(
        cls, model: CorrectionPredictor, mols: Sequence[Molecule], method: Method, config: CorrectionConfig
    ) -> "LabelFree":
        """Return the objective of a network that starts from the parameters of a trained model.

        The statistics of features are those of the trained model, too.

        Args:
          model: trained model.
          mols: molecules of the elements that the model knows.
          method: level of theory; it may differ from that of the model.
          config: settings of the network; iterations, guess and scheme may differ from those of the model.

        Raises:
          InputError: if the settings differ in the network, the model has none, or it does not know an element.
        """
        free = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(CorrectionConfig)}
        if type(config) is not type(model.config) or dataclasses.replace(config, **free) != model.config:
            raise InputError(
                f"Expected the network of the model to start from, {model.config}, got {config}; use its settings."
            )
        if model.params is None:
            raise InputError(
                "Expected a model with parameters to start from, got one whose network is switched off; use ql.load."
            )
        objective = cls.of(mols, method, config, model.model.kinds)
        first, count = model.systems[0].molecule, len(model.systems)
        trained = f"{count} molecules" if count > 1 else first.name or first.formula
        objective._start, objective.origin = model.params, f"{title_of(model.kind)} of {trained}, {model.label}"
        return objective

    @functools.cached_property
    def method(self) -> Method:
        """Level of theory."""
        return self.systems[0].method

    def check(self, config: TrainConfig) -> None:
        """Raise an `InputError` for settings that this objective cannot be trained with."""
        self.method.functional.require_pyscf_name()  # validation compares with PySCF
        if not isinstance(config.validation, int):
            raise InputError(
                f"Expected a number of geometries as validation for a training without labels, got "
                f"{config.validation}; use 16, for example."
            )
        check_sampling(config.sampling, self.systems)
        iterations = self.model_config.iterations if config.iterations is None else config.iterations
        if self.model_config.scheme == "response" and iterations and config.loss != "labels":
            raise InputError(
                f"Expected 0 DFT iterations in a training with the scheme 'response', got {iterations}: they have no "
                "derivative; use iterations=0 in the TrainConfig, or the scheme 'screened'."
            )

    def init(self, seed: int) -> Params:
        """Return initial parameters."""
        return self.model.init(jax.random.key(seed))

    def training_systems(self, config: TrainConfig) -> list[System]:
        """Return the molecules with the integration grid of a training."""
        level = config.grid_level
        # Fock matrices that are labels belong to the method's grid.
        if level is None or level == self.method.grid_level or config.loss == "labels":
            return self.systems
        method = dataclasses.replace(self.method, grid_level=level, eri=self.systems[0].template.eri)
        return make_systems(self.molecules, method, self.model_config, self.model.kinds)[0]

    def fit(self, params: Params, config: TrainConfig) -> Params:
        """Return initial parameters with statistics of displaced geometries of the molecules.

        These are the parameters of the trained model if there is one to start from.
        """
        if self._start is not None:
            return jax.tree.map(jnp.asarray, self._start)
        if self.model.network.fit is None:
            return params
        count = max(1, min(FIT_PER_MOLECULE, FIT_GEOMETRIES // len(self.systems)))
        rng = generator(Purpose.STATISTICS, config.seed)
        geometries = []
        for system in self.training_systems(config)[:: max(1, len(self.systems) // FIT_GEOMETRIES)]:
            home = system.frame.reference_positions
            shifts = FIT_DISPLACEMENT_BOHR * rng.normal(size=(count, *home.shape))
            geometries += [(system, home + shift) for shift in shifts]
        of_shape: dict[Padding, list[int]] = {}
        for index, (system, _) in enumerate(geometries):
            of_shape.setdefault(system.sizes, []).append(index)

        def features(indices: list[int]) -> list[tuple[int, Any]]:
            chosen = ((index, *geometries[index]) for index in indices)
            return [
                (index, jax.tree.map(np.asarray, system.sample(system.host_integrals(positions)).features))
                for index, system, positions in chosen
            ]

        # One thread for each shape: the functions of several shapes are compiled side by side, and each only once.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = itertools.chain.from_iterable(pool.map(features, of_shape.values()))
            return self.model.fit(params, [feature for _, feature in sorted(found, key=lambda pair: pair[0])])

    def feed(self, setting: Setting, params: Params, step: int) -> "StreamFeed":
        """Return the batches from a given step on."""
        return StreamFeed(self, setting, params, step)

    def predictor(self, params: Params | None) -> CorrectionPredictor:
        """Return the trained model; with None, DFT iteration from the guess."""
        return CorrectionPredictor(self.model, params, self.systems)

    def make_validation(
        self, config: TrainConfig, progress: Callable[[int, int], None], threads: Callable[[], int | None],
        drawn: Callable[[list[Molecule]], None],
    ) -> TestSet:
        """Draw validation geometries, which no training uses, and compute PySCF's references."""
        count = int(config.validation)
        systems = self.systems[:: max(1, len(self.systems) // count)][:count]  # a selection, if there are many
        placed = []
        for index, system in enumerate(systems):
            stream = sample(
                system.molecule, config.sampling, [config.seed, index], purpose=Purpose.VALIDATION_GEOMETRIES
            )
            share = len(range(index, count, len(systems)))
            frames = itertools.islice(stream, 0, share * VALIDATION_STRIDE, VALIDATION_STRIDE)
            placed += [(system, system.frame.pose(frame).positions) for frame in frames]
        drawn([system.molecule.with_positions(positions) for system, positions in placed])
        return reference.make_test_set(self.predictor(None), placed, progress, threads=threads)

    def validate(self, validation: TestSet, params: Params) -> list[tuple[str, ErrorSummary]]:
        """Return the errors of the model, of DFT iterations without the network, and of PySCF stopped early."""
        predictor = self.predictor(params)
        pairs = zip(validation.systems, validation.positions, strict=True)
        # One thread, because threads of the stream use the other cores.
        predictions = [predictor.in_frame(system, positions, threads=1) for system, positions in pairs]
        return [
            (title_of(self.kind), reference.errors(predictions, validation.converged)),
            ("no_network", reference.errors(validation.no_network, validation.converged)),
            ("pyscf_stopped", reference.errors(validation.stopped, validation.converged)),
        ]

    def validation_molecules(self, validation: TestSet) -> list[Molecule]:
        """Return the validation geometries."""
        pairs = zip(validation.systems, validation.positions, strict=True)
        return [system.molecule.with_positions(positions) for system, positions in pairs]

    def record(self) -> dict:
        """Return what `config.json` of a run folder holds: kind, molecules, method and network."""
        return {
            "kind": self.kind,
            # With a frame, in standard orientation: nothing depends on the rounding of the next machine.
            "molecules": [files.molecule_record(mol) for mol in self.molecules],
            "method": self.method.to_dict(),
            "model": dataclasses.asdict(self.model_config),
            "kinds": list(self.model.kinds),
            "origin": self.origin,
        }

    @classmethod
    def from_record(cls, record: dict, config: CorrectionConfig) -> "LabelFree":
        """Return the objective of a run folder's `config.json`.

        Raises:
          InputError: if the method cannot treat a molecule.
          KeyError, TypeError: if something is missing or unknown.
        """
        mols = [files.molecule_from(molecule) for molecule in record["molecules"]]
        objective = cls.of(mols, Method(**record["method"]), config, record["kinds"])
        objective.origin = str(record["origin"])
        return objective

    def difference(self, earlier: Objective) -> tuple[str, Any, Any] | None:
        """Return what differs from an earlier run: its name, the earlier value and this one."""
        if not isinstance(earlier, LabelFree) or earlier.model_config != self.model_config:
            return "model", earlier.model_config, self.model_config
        if earlier.method != self.method:
            return "method", earlier.method, self.method
        pairs = zip(earlier.molecules, self.molecules, strict=False)
        is_same = len(earlier.molecules) == len(self.molecules) and all(len(old.orders(new)) for old, new in pairs)
        if is_same:
            return None
        before, now = (
            ", ".join(mol.name or mol.formula for mol in objective.molecules) for objective in (earlier, self)
        )
        return "molecules", before, now

    def card(self, config: TrainConfig) -> tuple[str, list[str], str]:
        """Return title, lines and limits of a model card."""
        formulas = sorted({f"{mol.name or mol.formula} ({mol.formula})" for mol in self.molecules})
        elements = sorted({symbol for mol in self.molecules for symbol in mol.symbols})
        more = f" and {len(formulas) - 5} more" if len(formulas) > 5 else ""
        network = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self.model_config).items())
        lines = [
            f"- Method: {self.method.label}, grid level {self.method.grid_level}.",
            f"- Network: {title_of(self.kind)}: {network}.",
            f"- Geometries: {config.sampling.summary()}.",
            *([f"- Start: {self.origin}."] if self.origin else []),
        ]
        if len(self.systems) > 1:
            orbitals, points = added_share(self.systems)
            shapes = len({system.sizes for system in self.systems})
            lines.append(
                f"- Molecules: {len(self.systems)}, padded to {shapes} shapes; {orbitals:.0%} of the orbitals and "
                f"{points:.0%} of the grid points are padding."
            )
        is_of_one = len(self.molecules) == 1 and self.model.network.inputs.framed
        scope = "no other molecule" if is_of_one else (
            f"molecules of {', '.join(elements)} similar to those trained on; a warning is given for other molecules"
        )
        limits = (
            f"Limits: closed shells; geometries similar to those trained on; {scope}. Check the estimated error "
            "of a prediction (`energy_error`, hartree) before you use it."
        )
        return f"{title_of(self.kind)} for {', '.join(formulas[:5])}{more}", lines, limits


class StreamFeed(Feed):
    """Batches of samples from a `Stream`, and the gradient of the loss through DFT and network.

    Args:
      objective: network and molecules.
      setting: surroundings of the training.
      params: parameters before the first update.
      step: number of updates that were done before.
    """

    def __init__(self, objective: LabelFree, setting: Setting, params: Params, step: int):
        config = setting.config
        self._setting, self._config, self._devices = setting, config, setting.devices
        self._model = objective.model
        if config.iterations is not None:
            self._model = self._model.with_iterations(config.iterations)
        systems = objective.training_systems(config)
        self._stream = Stream(
            reference.with_labels(systems) if config.loss == "labels" else systems,
            config.sampling, self._model, batch=config.batch, reuse=config.reuse, seed=config.seed, step=step,
            process=self._devices.process,
        )
        self._stream.params = params
        self._is_batched = jax.default_backend() != "cpu" or self._devices.count > 1
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        # Not the pool of the setting, which evaluates geometries meanwhile. Tracing holds Python's lock; compiling
        # does not, and runs side by side.
        self._tracer = concurrent.futures.ThreadPoolExecutor(1, "qptlab-tracer")
        self._compilers = concurrent.futures.ThreadPoolExecutor(len(_Functions._fields), "qptlab-compiler")
        self._compiling: dict[int, concurrent.futures.Future[_Functions]] = {}

    def __enter__(self):
        """Start to prepare samples, and prepare again those that an interrupted training held."""
        self._stream.__enter__()
        try:
            watch = self._setting.watch
            self._stream.refill(lambda done, total: watch.preparing("earlier geometries", done, total))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Stop all threads."""
        for pool in (self._tracer, self._compilers):
            pool.shutdown(wait=True, cancel_futures=True)
        self._stream.__exit__()

    def gradient(self, params: Params) -> Gradient:
        """Draw the next batch and return its gradient."""
        functions, compile_s = self._functions(self._stream.turn)  # samples are prepared meanwhile
        waited, self._stream.params = self._stream.waited, self._devices.to_first_device(params)
        batch = next(self._stream)
        self._setting.watch.drew(functools.partial(_geometry, batch[0]))
        judged, tree = self._evaluate(functions, params, [drawn.sample for drawn in batch])
        return Gradient(
            float(jnp.mean(judged.loss)), float(jnp.mean(judged.energy)), tree,
            functools.partial(self._not_finite, batch, judged.finite), self._stream.waited - waited, compile_s,
            self._stream.drawn,
        )

    def _functions(self, turn: int) -> "tuple[_Functions, float]":
        """Return the functions for samples of one shape, and the time waited for them, s.

        Those of the next larger shape are compiled meanwhile.
        """
        for index in (turn, turn + 1):
            if index not in self._compiling and index < len(self._stream.shapes):
                self._compiling[index] = self._tracer.submit(self._compile, self._stream.shapes[index])
        began, traced = time.perf_counter(), self._compiling[turn]
        is_ready = traced.done() and all(future.done() for future in traced.result())
        if not is_ready:
            self._setting.watch.compiling("training step")
        functions = _Functions(*(future.result() for future in traced.result()))
        return functions, 0.0 if is_ready else time.perf_counter() - began

    def _compile(self, sample: Sample) -> "_Functions":
        """Return futures of the compiled functions for samples of one shape."""
        devices = self._devices
        split, replicated = (
            (devices.batch_sharding, devices.replicated_sharding) if devices.count > 1 else (None, None)
        )
        size = self._config.microbatch or self._config.batch
        part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=split), sample)
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), self._params)
        deltas = jax.eval_shape(self._correct, params, part.features)
        deltas = jax.ShapeDtypeStruct(deltas.shape, deltas.dtype, sharding=split)
        delta = jax.ShapeDtypeStruct(deltas.shape[1:], deltas.dtype)
        judged = _Judged(loss=replicated, energy=replicated, finite=replicated, slope=split)
        lowered = _Functions(
            jax.jit(self._correct, out_shardings=split).lower(params, part.features),
            jax.jit(self._judge, out_shardings=judged if replicated else None).lower(
                *((deltas, part) if self._is_batched else (delta, sample))
            ),
            jax.jit(self._pull, out_shardings=replicated).lower(params, part.features, deltas),
        )
        pairs = zip(_Functions._fields, lowered, strict=True)
        return _Functions(*(self._compilers.submit(self._setting.compile, *pair) for pair in pairs))

    def _evaluate(
        self, functions: "_Functions", params: Params, samples: Sequence[Sample]
    ) -> "tuple[_Judged, Params]":
        """Return losses and the mean gradient of a batch; part by part, so that memory for one part is enough."""
        count = len(samples) // (self._config.batch // (self._config.microbatch or self._config.batch))
        judged, gradients = [], []
        for start in range(0, len(samples), count):
            part = samples[start : start + count]
            features = self._devices.stack_batch([sample.features for sample in part])
            deltas = functions.correct(params, features)
            if self._is_batched:
                judged.append(functions.judge(deltas, self._devices.stack_batch(part)))
            else:
                # One geometry per core: lanes of one program would share the caches of one core.
                results = self._setting.pool.map(
                    lambda delta, sample: jax.block_until_ready(functions.judge(delta, sample)), deltas, part
                )
                judged.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *results))
            gradients.append(functions.pull(params, features, judged[-1].slope))
        return (
            jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(part._replace(slope=()) for part in judged)),
            functools.reduce(lambda total, part: jax.tree.map(jnp.add, total, part), gradients),
        )

    def _correct(self, params, features):
        return jax.vmap(self._model.correction, (None, 0))(params, features)

    def _judge(self, deltas, samples):
        def judge_one(delta, sample):
            value = jax.value_and_grad(loss, has_aux=True)(delta, sample, self._model, self._config.loss)
            is_finite = jnp.isfinite(value[0][0]) & jnp.all(jnp.isfinite(value[1]))
            return _Judged(loss=value[0][0], energy=value[0][1], finite=is_finite, slope=value[1])

        return jax.vmap(judge_one)(deltas, samples) if self._is_batched else judge_one(deltas, samples)

    def _pull(self, params, features, slopes):
        _, pull_back = jax.vjp(lambda params: self._correct(params, features), params)
        return pull_back(slopes / self._config.batch)[0]

    def _not_finite(self, batch: Sequence[Drawn], is_finite: Array) -> list[Molecule]:
        process, processes = self._devices.process
        parts = self._config.batch // (self._config.microbatch or self._config.batch)
        finite = np.asarray(is_finite).reshape(parts, processes, -1)[:, process].ravel()
        # If every loss is finite, the network's own derivative is not: any geometry may be the cause.
        return [
            _geometry(drawn) for drawn, is_good in zip(batch, finite, strict=True)
            if not is_good or np.all(is_finite)
        ]


def _geometry(drawn: Drawn) -> Molecule:
    """Return the geometry of a sample, in its molecule's frame."""
    mol = drawn.system.molecule
    return mol.with_positions(np.asarray(drawn.sample.ints.positions)[: len(mol.symbols)])


class _Judged(NamedTuple):
    """Loss and energy of geometries, a flag for finite values, and the loss's derivative by the correction."""

    loss: Any
    energy: Any
    finite: Any
    slope: Any


class _Functions(NamedTuple):
    """Functions compiled for samples of one shape."""

    correct: Any
    judge: Any
    pull: Any


__all__ = ["LabelFree", "StreamFeed", "loss"]
