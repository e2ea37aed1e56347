"""Training: the DFT energy as the loss, and a loop that is an iterator.

`train` yields after every step, so the shell, a notebook, a test and the background trainer are the
same three lines over it, and pausing is not asking for the next step.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from qptlab import geometries
from qptlab.errors import InputError
from qptlab.frame import ReferenceFrame
from qptlab.geometries import Sampling
from qptlab.models.qpt import QPT, Params, Sample
from qptlab.stream import Stream

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
      batch: geometries per update.
      reuse: how often a geometry is used, on average (16 in the paper).
      learning_rate: the highest, after the warm-up; a cosine takes it to a hundredth of that.
      warmup_steps: updates over which it rises.
      clip_norm: largest norm of a gradient.
      weight_decay: AdamW's.
      validation: geometries of an independent trajectory on which errors are measured.
    """

    minutes: float | None = 5.0
    steps: int | None = None
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    batch: int = 16
    reuse: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    clip_norm: float = 1.0
    weight_decay: float = 1e-4
    validation: int = 16

    def __post_init__(self):
        """Check what a user can get wrong."""
        if self.minutes is None and self.steps is None:
            raise InputError("neither minutes nor steps were given; --minutes 1 would do.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"{self.minutes} minutes of training cannot be done; 1 would do.")
        for field in ("steps", "batch", "reuse", "validation"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{field} {value!r} cannot be used; a whole number from 1 would do.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed {self.seed!r} cannot be used; a whole number from 0 would do.")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning rate {self.learning_rate} cannot be used; 0.001 would do.")

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
      opt_state: optax's.
      step: updates done, skipped ones included.
      seconds: training time so far.
    """

    params: Params
    opt_state: optax.OptState
    step: int
    seconds: float


class Metrics(NamedTuple):
    """One row of the metrics table.

    Attributes:
      step: the update, from 1.
      seconds: training time at its end.
      energy_ha: mean energy of the batch before the update, hartree: the loss.
      grad_norm: before clipping.
      learning_rate: of this update.
      skipped: whether the update was not finite and was left out.
      data_wait_s: seconds this step waited for geometries and integrals.
      compile_s: seconds this step spent compiling.
      geometries: new geometries drawn since training was started or resumed.
    """

    step: int
    seconds: float
    energy_ha: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    data_wait_s: float
    compile_s: float
    geometries: int


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
    return TrainState(params, optimiser(config).init(params), 0, 0.0)


def loss(params: Params, samples: tuple[Sample, ...], model: QPT) -> Float[Array, ""]:
    """Mean predicted energy of a batch, hartree; no label enters."""
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)
    return jnp.mean(jax.vmap(lambda sample: model.energy(params, sample))(batch))


def train(
    model: QPT,
    frame: ReferenceFrame,
    config: TrainConfig,
    state: TrainState | None = None,
    on_compile: Callable[[str], None] = lambda what: None,
) -> Iterator[tuple[TrainState, Metrics]]:
    """Train, yielding after every update.

    A resumed run draws geometries from a stream of its own, so that none is seen twice by accident.

    Args:
      model: the model.
      frame: the molecule's frame.
      config: how to train.
      state: where to go on from; by default a fresh start.
      on_compile: told what is being compiled, because it takes seconds.

    Raises:
      FloatingPointError: after `MAX_SKIPPED` updates in a row that are not finite.
      InputError: what the source of geometries raised.
    """
    state = state or initial_state(model, config)
    seeds = [config.seed, state.step]
    source = geometries.sample(frame.molecule, config.sampling, seeds)
    began = time.perf_counter()
    with Stream(
        model, frame, source, batch=config.batch, reuse=config.reuse, seed=seeds
    ) as stream:
        step_once = _Stepper(model, config, stream, on_compile)
        step_once.compile(frame.home, state)
        while config.progress(state.step, state.seconds) < 1:
            state, metrics = step_once(state, began)
            yield state, metrics
            began = time.perf_counter()


class _Stepper:
    """One update with its bookkeeping; holds the compiled function and the stream."""

    def __init__(self, model, config, stream, on_compile):
        self._model, self._config, self._stream = model, config, stream
        self._on_compile = on_compile
        self._optimiser = optimiser(config)
        self._compile_s = 0.0
        self._failures = 0

    def compile(self, home, state):
        """Compile both functions of the loop before its clock shows a first step."""
        began = time.perf_counter()
        self._on_compile("integrals and features")
        sample = self._model.prepare(self._model.template.host_integrals(home))
        self._on_compile("training step")
        samples = (sample,) * self._config.batch
        lowered = jax.jit(self._update).lower(state.params, state.opt_state, samples, 0.0)
        self._compiled = lowered.compile()
        self._compile_s = time.perf_counter() - began

    def _update(self, params, opt_state, samples, learning_rate):
        energy, gradient = jax.value_and_grad(loss)(params, samples, self._model)
        updates, opt_state = self._optimiser.update(gradient, opt_state, params)
        params = jax.tree.map(lambda p, u: p - learning_rate.astype(p.dtype) * u, params, updates)
        return params, opt_state, energy, optax.tree.norm(gradient)

    def __call__(self, state, began):
        config, step = self._config, state.step + 1
        waited = self._stream.waited
        samples = next(self._stream)
        rate = _learning_rate(config, step, config.progress(state.step, state.seconds))
        params, opt_state, energy, norm = self._compiled(
            state.params, state.opt_state, samples, jnp.asarray(rate)
        )
        energy = float(energy)  # waits for the device, so that the clock tells the truth
        self._failures = int(opt_state.notfinite_count)
        if self._failures >= MAX_SKIPPED:
            raise FloatingPointError(
                f"{MAX_SKIPPED} updates in a row were not finite, the last at step {step}: the gap "
                "between occupied and virtual orbitals may have closed, or the learning rate "
                f"({config.learning_rate}) is too high."
            )
        seconds = state.seconds + time.perf_counter() - began
        metrics = Metrics(
            step, seconds, energy, float(norm), rate, self._failures > 0,
            self._stream.waited - waited, self._compile_s, self._stream.drawn,
        )
        self._compile_s = 0.0
        return TrainState(params, opt_state, step, seconds), metrics


def _learning_rate(config, step, progress):
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warmup * (0.01 + 0.99 * cosine)
