"""Training: the DFT energy as the loss, and a loop that is an iterator.

`train` yields after every step, so the shell, a notebook, a test and the background trainer are the
same three lines over it, and pausing is not asking for the next step.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from qptlab.dft.energy import energy as total_energy
from qptlab.dft.energy import kohn_sham
from qptlab.errors import InputError
from qptlab.models.qpt import QPT, Params, check_iterations
from qptlab.models.systems import Sample, System
from qptlab.runtime.devices import Devices
from qptlab.runtime.memory import memory_bytes
from qptlab.sampling.geometries import Sampling
from qptlab.system.molecule import Molecule
from qptlab.training.stream import Drawn, Stream

LOSSES = ("energy", "self-consistency", "labels")

MAX_SKIPPED = 10
"""Non-finite updates in a row after which training gives up."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
      minutes: training time, compilation and waiting for data included, validation and pauses not.
      steps: number of updates; with both, whichever is reached first. One of the two is needed.
      sampling: where geometries come from.
      seed: of parameters, geometries and draws from the replay buffer.
      loss: `energy` of the predicted density (arXiv:2402.04030), or `self-consistency`: the squared difference
        between the Fock matrix that was diagonalised and that of the density it led to (arXiv:2403.09560); or, for
        comparison, `labels`: L1 + L2 distance from PySCF's converged Fock matrix, an SCF for each geometry.
      iterations: DFT iterations after the network while it is trained; None for as many as the model predicts with
        (the paper's way). Without any a step is cheapest, and the network has to find the solution by itself; what
        iterations do to a prediction comes on top.
      batch: geometries per update; on a CPU small ones learn most in a given time, an accelerator wants more.
      microbatch: geometries whose gradient is worked out at a time, to save memory; None for all.
      reuse: how often a geometry is used, on average (16 in the paper).
      learning_rate: the highest, after the warm-up; a cosine takes it to a hundredth of that.
      warmup_steps: updates over which it rises.
      clip_norm: largest norm of a gradient.
      weight_decay: AdamW's.
      averaging: decay, update by update, of the mean of parameters that predicts; 0 for the last parameters.
      validation: geometries of an independent trajectory on which errors are measured.
    """

    minutes: float | None = 5.0
    steps: int | None = None
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    loss: str = "energy"
    iterations: int | None = 0
    batch: int = 4
    microbatch: int | None = None
    reuse: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    clip_norm: float = 1.0
    weight_decay: float = 1e-4
    averaging: float = 0.98
    validation: int = 16

    def __post_init__(self):
        """Check what a user can get wrong."""
        self._check_budget()
        if self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r} is not known; one of {', '.join(LOSSES)} would do.")
        if self.iterations is not None:
            check_iterations(self.iterations)
        for field in ("steps", "batch", "microbatch", "reuse", "validation"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{field} {value!r} cannot be used; a whole number from 1 would do.")
        if self.microbatch is not None and self.batch % self.microbatch:
            raise InputError(f"a batch of {self.batch} has no parts of {self.microbatch}; a divisor of it would do.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed {self.seed!r} cannot be used; a whole number from 0 would do.")
        for field, below in (("learning_rate", 1e-3), ("averaging", 0.98)):
            if not 0 <= getattr(self, field) < 1:
                name = field.replace("_", " ")
                raise InputError(f"{name} {getattr(self, field)} cannot be used; {below} would do.")

    def _check_budget(self):
        if self.minutes is None and self.steps is None:
            raise InputError("neither minutes nor steps were given; --minutes 1 would do.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"{self.minutes} minutes of training cannot be done; 1 would do.")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent, 0 to 1.

        >>> TrainConfig(minutes=None, steps=10).progress(5, 0.0)
        0.5
        """
        by_step = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_step, by_time))


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      params: Haiku's.
      average: their mean over the last updates, which is what predicts.
      opt_state: optax's.
      step: updates done, skipped ones included.
      seconds: training time so far.
    """

    params: Params
    average: Params
    opt_state: optax.OptState
    step: int
    seconds: float


class Metrics(NamedTuple):
    """One row of the metrics table.

    Attributes:
      step: the update, from 1.
      seconds: training time at its end.
      energy_ha: mean predicted energy of the batch before the update, hartree.
      loss: mean of the loss over the batch; the same where the energy is the loss.
      grad_norm: before clipping.
      learning_rate: of this update.
      skipped: whether the update was not finite and was left out.
      data_wait_s: seconds this step waited for geometries and integrals.
      compile_s: seconds this step spent compiling.
      geometries: new geometries drawn since training began.
    """

    step: int
    seconds: float
    energy_ha: float
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    data_wait_s: float
    compile_s: float
    geometries: int


class Watch:
    """What a training tells whoever watches; to be overridden, since here nothing listens.

    All but `compiled` are called between steps on the thread that trains, which waits meanwhile.
    """

    def compiling(self, what: str) -> None:
        """Something is being compiled, which takes seconds."""

    def compiled(self, name: str, executable: jax.stages.Compiled, seconds: float) -> None:
        """A function of the training step is compiled; from any thread."""

    def refilled(self, done: int, total: int) -> None:
        """So many of the earlier geometries are made again, of so many; what it raises ends the training."""

    def drew(self, batch: Sequence[Drawn]) -> None:
        """These geometries are trained on in the next step, new ones first."""

    def is_over(self) -> bool:
        """Whether training is to end after this step; asked after each, and where one process says so all end."""
        return False


class NotFiniteError(FloatingPointError):
    """Training gave up, because updates were not finite.

    Attributes:
      geometries: those of the last batch that had no finite loss or derivative, in their frames.
    """

    def __init__(self, message: str, geometries: list[Molecule]):
        super().__init__(message)
        self.geometries = geometries


def check_memory(model: QPT) -> None:
    """Refuse a network that cannot be trained here.

    Raises:
      InputError: if parameters, their mean, two moments and a gradient do not fit the device's memory.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit") or memory_bytes()
    if 5 * size > limit:
        raise InputError(
            f"to train the network {model.config.preset!r} takes {5 * size / 2**30:.1f} GiB, and {limit / 2**30:.1f} "
            f"may be taken on {jax.local_devices()[0].device_kind}; a smaller one, such as 'micro', would do."
        )


def check_devices(config: TrainConfig) -> Devices:
    """The devices that are to share a training.

    Raises:
      InputError: if they cannot share its batches evenly.
    """
    devices = Devices()
    devices.check("batch", config.batch)
    devices.check("part of a batch", config.microbatch or config.batch)
    return devices


def optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate, on clipped gradients; updates that are not finite do nothing."""
    return optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.scale_by_adam(b2=0.99),
            optax.add_decayed_weights(config.weight_decay),
        ),
        max_consecutive_errors=2 * MAX_SKIPPED,
    )


def initial_state(model: QPT, config: TrainConfig) -> TrainState:
    """Fresh parameters from the seed: plain DFT iteration."""
    params = model.init(jax.random.key(config.seed))
    return TrainState(params, params, optimiser(config).init(params), 0, 0.0)


def loss(
    delta: Float[Array, "nao nao"], sample: Sample, model: QPT, kind: str
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of a correction to the guess's Fock matrix, and the energy that was found on the way.

    Args:
      delta: the correction, hartree.
      sample: the geometry.
      model: makes a density of it.
      kind: `energy`, hartree; `self-consistency`, hartree² per orbital in an orthonormal basis; `labels`, mean of
        the absolute and of the squared differences, hartree and hartree², without an energy (NaN).
    """
    if kind == "labels":
        if sample.label is None:
            raise ValueError("a sample without a label was given to learn from labels; one of `Labelled` would do.")
        both = sample.features.mask[:, None] & sample.features.mask
        miss = jnp.where(both, sample.features.fock_guess + delta - sample.label, 0.0)
        return jnp.sum(jnp.abs(miss) + miss**2) / jnp.sum(both), jnp.array(jnp.nan)
    fock, dm = model.refine(delta, sample)
    if kind == "energy":
        energy = total_energy(dm, sample.ints, model.xc)
        return energy, energy
    found, x = kohn_sham(dm, sample.ints, model.xc), sample.ints.orthogonaliser
    return jnp.sum((x.T @ (found.fock - fock) @ x) ** 2) / jnp.sum(sample.features.mask), found.terms.e_tot


def train(
    model: QPT,
    systems: Sequence[System],
    config: TrainConfig,
    state: TrainState | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[TrainState, Metrics]]:
    """Train, yielding after every update.

    A training that goes on from a state does what it would have done without an interruption, step for step, where
    its budget is in steps, the model does not draw the geometries, and the memory allowed is the same or at least
    16 GiB (`stream.REPLAY_SHARE`). With a budget in minutes the learning rate
    follows the clock. To make the earlier geometries again takes a while, which does not count.

    All devices share in it, also those of other processes that `jax.distributed` has joined and that run the same
    (see `devices`): together they do what one device would have done, to rounding.

    Args:
      model: the model.
      systems: the molecules to train on.
      config: how to train.
      state: where to go on from; by default a fresh start.
      watch: told what happens between steps.

    Raises:
      NotFiniteError: after `MAX_SKIPPED` updates in a row that are not finite.
      InputError: what the source of geometries raised, or for a batch that the devices cannot share.
    """
    devices, watch = check_devices(config), watch or Watch()
    state = state or initial_state(model, config)
    if config.iterations is not None:
        model = model.with_iterations(config.iterations)
    stream = Stream(
        systems, config.sampling, model, batch=config.batch, reuse=config.reuse, seed=config.seed, step=state.step,
        share=devices.share,
    )
    stream.params, state = state.params, _placed(devices.everywhere, state)
    with stream, concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "qptlab-gradients") as cores:
        step_once = _Stepper(model, config, stream, cores, watch, devices)
        stream.refill(watch.refilled)
        while True:
            began = time.perf_counter()
            seconds, is_over = devices.agreed(state.seconds, watch.is_over())
            state = state._replace(seconds=seconds)
            if is_over or config.progress(state.step, seconds) >= 1:
                return
            state, metrics = step_once(state, began)
            yield _placed(devices.here, state), metrics


def _placed(place, state):
    params, average, opt_state = place((state.params, state.average, state.opt_state))
    return TrainState(params, average, opt_state, state.step, state.seconds)


class _Stepper:
    """One update with its bookkeeping; holds the compiled functions and the stream."""

    def __init__(self, model, config, stream, cores, watch, devices):
        self._model, self._config, self._stream, self._cores = model, config, stream, cores
        self._watch, self._devices = watch, devices
        self._optimiser = optimiser(config)
        self._is_batched = jax.default_backend() != "cpu" or devices.count > 1
        self._compiled = {}
        self._failures = 0

    def __call__(self, state, began):
        config, step = self._config, state.step + 1
        compiling = time.perf_counter()
        functions, is_new = self._functions(state.params, self._stream.shapes)  # samples are made meanwhile
        compile_s = time.perf_counter() - compiling if is_new else 0.0
        waited, self._stream.params = self._stream.waited, self._devices.here(state.params)
        drawn = next(self._stream)
        self._watch.drew(drawn)
        waited = self._stream.waited - waited
        judged, gradient = self._gradient(functions, state.params, [each.sample for each in drawn])
        loss, energy = float(jnp.mean(judged.loss)), float(jnp.mean(judged.energy))
        rate = _learning_rate(config, step, config.progress(state.step, state.seconds))
        params, average, opt_state, norm = self._update(
            (state.params, state.average, state.opt_state), gradient, loss, rate, _decay(config, step)
        )
        self._failures = int(opt_state.notfinite_count)  # waits for the device, so that the clock tells the truth
        if self._failures >= MAX_SKIPPED:
            raise self._given_up(step, drawn, judged)
        seconds = state.seconds + time.perf_counter() - began
        metrics = Metrics(
            step, seconds, energy, loss, float(norm), rate, self._failures > 0, waited, compile_s, self._stream.drawn
        )
        return TrainState(params, average, opt_state, step, seconds), metrics

    def _functions(self, params, sample):
        """What has to be compiled for samples of one shape, and whether it was just now."""
        key = jax.tree.structure(sample), tuple(leaf.shape for leaf in jax.tree.leaves(sample))
        if key in self._compiled:
            return self._compiled[key], False
        self._watch.compiling("training step")
        split, whole = (self._devices.split, self._devices.whole) if self._devices.count > 1 else (None, None)
        size = self._config.microbatch or self._config.batch
        part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=split), sample)
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params)
        deltas = jax.eval_shape(self._correct, params, part.features)
        deltas = jax.ShapeDtypeStruct(deltas.shape, deltas.dtype, sharding=split)
        one = jax.ShapeDtypeStruct(deltas.shape[1:], deltas.dtype)
        judged = _Judged(loss=whole, energy=whole, finite=whole, slope=split)
        lowered = _Functions(
            jax.jit(self._correct, out_shardings=split).lower(params, part.features),
            jax.jit(self._judge, out_shardings=judged if whole else None).lower(
                *((deltas, part) if self._is_batched else (one, sample))
            ),
            jax.jit(self._pull, out_shardings=whole).lower(params, part.features, deltas),
        )
        # Tracing is Python's, one after another; compiling is not, and goes side by side.
        self._compiled[key] = _Functions(*self._cores.map(self._compile, _Functions._fields, lowered))
        return self._compiled[key], True

    def _compile(self, name, lowered):
        began = time.perf_counter()
        executable = lowered.compile()
        self._watch.compiled(name, executable, time.perf_counter() - began)
        return executable

    def _gradient(self, functions, params, samples) -> "tuple[_Judged, Params]":
        """Mean over a batch; part by part, so that no more than a part's memory is needed."""
        count = len(samples) // (self._config.batch // (self._config.microbatch or self._config.batch))
        judged, gradients = [], []
        for start in range(0, len(samples), count):
            part = samples[start : start + count]
            seen = self._devices.together([sample.features for sample in part])
            deltas = functions.correct(params, seen)
            if self._is_batched:
                judged.append(functions.judge(deltas, self._devices.together(part)))
            else:
                # A geometry a core: lanes of one program would share one core's caches.
                each = self._cores.map(lambda *given: jax.block_until_ready(functions.judge(*given)), deltas, part)
                judged.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
            gradients.append(functions.pull(params, seen, judged[-1].slope))
        return (
            jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(each._replace(slope=()) for each in judged)),
            functools.reduce(lambda one, two: jax.tree.map(jnp.add, one, two), gradients),
        )

    def _correct(self, params, seen):
        return jax.vmap(self._model.correction, (None, 0))(params, seen)

    def _judge(self, deltas, samples):
        def one(delta, sample):
            value = jax.value_and_grad(loss, has_aux=True)(delta, sample, self._model, self._config.loss)
            is_finite = jnp.isfinite(value[0][0]) & jnp.all(jnp.isfinite(value[1]))
            return _Judged(loss=value[0][0], energy=value[0][1], finite=is_finite, slope=value[1])

        return jax.vmap(one)(deltas, samples) if self._is_batched else one(deltas, samples)

    def _pull(self, params, seen, slopes):
        _, pull_back = jax.vjp(lambda params: self._correct(params, seen), params)
        return pull_back(slopes / self._config.batch)[0]

    @functools.cached_property
    def _update(self):
        def update(current, gradient, loss, rate, decay):
            params, average, opt_state = current
            gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), gradient)
            updates, opt_state = self._optimiser.update(gradient, opt_state, params)
            params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
            average = optax.incremental_update(params, average, 1 - decay.astype(jnp.float32))
            return params, average, opt_state, optax.tree.norm(gradient)

        executable = None

        def compiled(current, gradient, *numbers):
            nonlocal executable
            given = current, gradient, *map(jnp.asarray, numbers)
            if executable is None:
                executable = self._compile("update", jax.jit(update).lower(*given))
            return executable(*given)

        return compiled

    def _given_up(self, step, drawn, judged):
        own, processes = self._devices.share
        parts = self._config.batch // (self._config.microbatch or self._config.batch)
        finite = np.asarray(judged.finite).reshape(parts, processes, -1)[:, own].ravel()
        positions = [np.asarray(each.sample.ints.positions) for each in drawn]
        return NotFiniteError(
            f"{MAX_SKIPPED} updates in a row were not finite, the last at step {step}: the gap between occupied and "
            f"virtual orbitals may have closed, or the learning rate ({self._config.learning_rate}) is too high.",
            [
                each.system.molecule.with_positions(place[: len(each.system.molecule.symbols)])
                # Where every loss is finite the network's own derivative was not: any may be at fault.
                for each, place, is_good in zip(drawn, positions, finite, strict=True)
                if not is_good or np.all(judged.finite)
            ],
        )


class _Judged(NamedTuple):
    """Loss and energy of geometries, whether all is finite, and the loss's derivative by the correction."""

    loss: Any
    energy: Any
    finite: Any
    slope: Any


class _Functions(NamedTuple):
    """What is compiled for samples of one shape; before, what is to be."""

    correct: Any
    judge: Any
    pull: Any


def _decay(config, step):
    return min(config.averaging, step / (step + 10))  # the first updates are soon forgotten


def _learning_rate(config, step, progress):
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warmup * (0.01 + 0.99 * cosine)
