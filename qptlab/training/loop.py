"""One training loop for all kinds of models.

`train` is an iterator that yields after every update. The command line, a notebook, a test and the background trainer
iterate over it in the same way. To pause, the caller waits before it asks for the next update. What is trained is an
`Objective`.
"""

import abc
import concurrent.futures
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qptlab.errors import InputError
from qptlab.evaluation.errors import ErrorSummary
from qptlab.models.contract import Model, Params
from qptlab.runtime.devices import Devices
from qptlab.runtime.memory import device_bytes
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig

MAX_SKIPPED = 10
"""Number of non-finite updates in a row after which training ends."""


class TrainState(NamedTuple):
    """State of a training, as a checkpoint holds it.

    Attributes:
      params: parameters of the network.
      average: exponential moving average of the parameters, which is used for prediction.
      opt_state: state of optax.
      step: number of updates, skipped ones included.
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
      step: number of the update, from 1.
      seconds: training time at the end of the update.
      energy_ha: mean predicted energy of the batch before the update, hartree; NaN where the loss needs none.
      loss: mean of the loss over the batch.
      grad_norm: norm of the gradient before clipping.
      learning_rate: learning rate of the update.
      skipped: true if the update was not finite and was left out.
      data_wait_s: time this step waited for geometries and integrals, s.
      compile_s: time this step spent compiling the gradient, s.
      geometries: number of new geometries drawn since training began.
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
    """Callbacks of a training; override those that you need.

    All but `compiled` are called between updates on the thread that trains, which waits meanwhile.
    """

    def compiling(self, name: str) -> None:
        """Called before the functions of the gradient are compiled; compiling takes seconds."""

    def compiled(self, name: str, executable: jax.stages.Compiled, seconds: float) -> None:
        """Called after a function of the training step is compiled; from any thread."""

    def preparing(self, name: str, done: int, total: int) -> None:
        """Called while data are prepared before the first update; an exception ends the training."""

    def drew(self, geometry: Callable[[], Molecule]) -> None:
        """Called with a function that returns one geometry of the next batch, a new one if there is one."""

    def is_over(self) -> bool:
        """Return true to end the training; asked before each update. If one process returns true, all end."""
        return False


class Gradient(NamedTuple):
    """Gradient of the loss over one batch.

    Attributes:
      loss: mean of the loss.
      energy: mean predicted energy, hartree; NaN where the loss needs none.
      tree: gradient with respect to the parameters.
      not_finite: function that returns the geometries without a finite loss or derivative; all, if none is at fault.
      data_wait_s: time waited for data, s.
      compile_s: time spent compiling, s.
      geometries: number of new geometries drawn since training began.
    """

    loss: float
    energy: float
    tree: Params
    not_finite: Callable[[], list[Molecule]]
    data_wait_s: float = 0.0
    compile_s: float = 0.0
    geometries: int = 0


class Feed(abc.ABC):
    """Batches of a training and their gradients; a context manager that owns its threads."""

    def __enter__(self):
        """Start to prepare data."""
        return self

    @abc.abstractmethod
    def __exit__(self, *_):
        """Stop all threads."""

    @abc.abstractmethod
    def gradient(self, params: Params) -> Gradient:
        """Draw the next batch and return its gradient."""


class Setting(NamedTuple):
    """Settings and machine of a training.

    Attributes:
      config: settings.
      devices: devices that share the training.
      watch: callbacks.
      pool: one thread per core, for compilation and for geometries that are evaluated side by side.
    """

    config: TrainConfig
    devices: Devices
    watch: Watch
    pool: concurrent.futures.Executor

    def compile(self, name: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Compile a function, and report it to the watch."""
        began = time.perf_counter()
        executable = lowered.compile()
        self.watch.compiled(name, executable, time.perf_counter() - began)
        return executable


class Objective(abc.ABC):
    """Network, data and loss of a training. There is one subclass for each family of models.

    Attributes:
      kind: kind of the model.
      model_config: settings of the network.
      molecules: molecules that are trained on, at their reference geometries.
      method: level of theory; None if only its name is known.
      budget: fields of `TrainConfig` that may differ when a training is resumed.
      baselines: names of the baselines of a validation, with their titles in tables.
      origin: trained model that the training starts from, in words; empty if there is none.
    """

    budget: tuple[str, ...] = ("minutes", "steps", "validation")
    baselines: Mapping[str, str]
    kind: str
    model_config: Any
    molecules: tuple[Molecule, ...]
    method: Method | None
    origin: str = ""

    @abc.abstractmethod
    def check(self, config: TrainConfig) -> None:
        """Raise an `InputError` for settings that this objective cannot be trained with."""

    @abc.abstractmethod
    def init(self, seed: int) -> Params:
        """Return initial parameters."""

    def fit(self, params: Params, config: TrainConfig) -> Params:
        """Return initial parameters with statistics of the data, for a network that has any."""
        del config
        return params

    @abc.abstractmethod
    def feed(self, setting: Setting, params: Params, step: int) -> Feed:
        """Return the batches from a given step on; data that are missing are prepared first."""

    @abc.abstractmethod
    def predictor(self, params: Params | None) -> Model:
        """Return the trained model; with None, the model with its network switched off."""

    @abc.abstractmethod
    def make_validation(
        self, config: TrainConfig, progress: Callable[[int, int], None], threads: Callable[[], int | None],
        drawn: Callable[[list[Molecule]], None],
    ) -> Any:
        """Return the validation geometries with their references; the same for the same seed.

        Args:
          config: settings.
          progress: callback `progress(done, total)`; an exception ends the work.
          threads: function that returns the number of threads that PySCF may use; None for all.
          drawn: callback that receives the geometries, before their references are computed.
        """

    @abc.abstractmethod
    def validate(self, validation: Any, params: Params) -> list[tuple[str, ErrorSummary]]:
        """Return names and errors on the validation geometries: of the model, then of its baselines.

        The names of the baselines are those of `baselines`.
        """

    @abc.abstractmethod
    def validation_molecules(self, validation: Any) -> list[Molecule]:
        """Return the validation geometries."""

    @abc.abstractmethod
    def record(self) -> dict:
        """Return what `config.json` of a run folder holds of this objective; JSON types only."""

    def files(self) -> dict[str, str]:
        """Return the texts of further files of a run folder, by name."""
        return {}

    @abc.abstractmethod
    def difference(self, earlier: "Objective") -> tuple[str, Any, Any] | None:
        """Return what differs from the objective of an earlier run: its name, the earlier value and this one."""

    @abc.abstractmethod
    def card(self, config: TrainConfig) -> tuple[str, list[str], str]:
        """Return title, lines and limits of a model card."""


class NotFiniteError(FloatingPointError):
    """Training ended because updates were not finite.

    Attributes:
      geometries: geometries of the last batch that may have caused it: those without a finite loss or derivative, or
        the whole batch if all have one.
    """

    def __init__(self, message: str, geometries: list[Molecule]):
        super().__init__(message)
        self.geometries = geometries


def check_memory(objective: Objective) -> None:
    """Refuse a network that cannot be trained on this machine.

    Raises:
      InputError: if parameters, their mean, two moments and a gradient do not fit the device's memory.
    """
    shapes = jax.eval_shape(lambda: objective.init(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    limit = device_bytes()
    if 5 * size > limit:
        raise InputError(
            f"Expected a network that can be trained in {limit / 2**30:.1f} GiB on "
            f"{jax.local_devices()[0].device_kind}, got {objective.model_config}, which takes "
            f"{5 * size / 2**30:.1f} GiB; use a smaller network, such as EquivariantConfig('small')."
        )


def check_devices(config: TrainConfig) -> Devices:
    """Return the devices that share a training.

    Raises:
      InputError: if they cannot share its batches evenly.
    """
    devices = Devices()
    devices.check("batch", config.batch)
    devices.check("microbatch", config.microbatch or config.batch)
    return devices


def optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Return AdamW without its learning rate, on clipped gradients; it leaves out updates that are not finite."""
    return optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.scale_by_adam(b2=0.99),
            _decayed_weights(config.weight_decay),
        ),
        max_consecutive_errors=2 * MAX_SKIPPED,
    )


def _decayed_weights(decay: float) -> optax.GradientTransformation:
    """Return weight decay for all parameters but statistics of the data, which are constants."""

    def add(updates, params):
        return {
            module: arrays if module == "statistics" else jax.tree.map(
                lambda update, value: update + decay * value, arrays, params[module]
            )
            for module, arrays in updates.items()
        }

    return optax.stateless(add)


def initial_state(objective: Objective, config: TrainConfig) -> TrainState:
    """Return the state before the first update, from the seed. The time of the statistics counts as training time."""
    began = time.perf_counter()
    state = blank_state(objective, config)
    params = objective.fit(state.params, config)
    return state._replace(params=params, average=params, seconds=time.perf_counter() - began)


def blank_state(objective: Objective, config: TrainConfig) -> TrainState:
    """Return a state with the arrays of a training, but without statistics; a checkpoint replaces its values."""
    params = objective.init(config.seed)
    return TrainState(params, params, optimiser(config).init(params), 0, 0.0)


def train(
    objective: Objective, config: TrainConfig, state: TrainState | None = None, watch: Watch | None = None,
    rates: Mapping[int, float] | None = None,
) -> Iterator[tuple[TrainState, Metrics]]:
    """Train, and yield after every update.

    A training that continues from a state makes the same updates as one that was not interrupted. This needs a budget
    in steps, a sampler other than `model`, and replay buffers of the same size: the same memory limit, or at least
    16 GiB both times (see `stream.REPLAY_BYTES`). With a budget in minutes the learning rate follows the clock. Time
    to prepare data before the first update is not part of the training time.

    All devices share the training, also those of other processes that `jax.distributed` has joined and that run the
    same script (see `devices`): together they do what one device would have done, to rounding.

    Args:
      objective: network, data and loss, from `make_objective`.
      config: settings.
      state: state to continue from; None to begin.
      watch: callbacks.
      rates: learning rate of each update by its number, of an earlier training that is repeated; None for the
        schedule of `config`.

    Raises:
      NotFiniteError: after `MAX_SKIPPED` updates in a row that are not finite.
      InputError: if the source of geometries fails, or the devices cannot share a batch.
    """
    devices, watch = check_devices(config), watch or Watch()
    state = state or initial_state(objective, config)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "qptlab-gradients") as pool:
        setting = Setting(config, devices, watch, pool)
        with objective.feed(setting, state.params, state.step) as feed:
            state = _placed(devices.replicate, state)
            update = _Update(setting, rates)
            while True:
                began = time.perf_counter()
                seconds, is_over = devices.synchronise(state.seconds, watch.is_over())
                state = state._replace(seconds=seconds)
                if is_over or (state.step and config.progress(state.step, seconds) >= 1):
                    return
                state, metrics = update(state, feed.gradient(state.params), began)
                yield _placed(devices.to_first_device, state), metrics


def _placed(transfer: Callable, state: TrainState) -> TrainState:
    params, average, opt_state = transfer((state.params, state.average, state.opt_state))
    return TrainState(params, average, opt_state, state.step, state.seconds)


class _Update:
    """One update of the parameters with its bookkeeping; holds the compiled function."""

    def __init__(self, setting: Setting, rates: Mapping[int, float] | None):
        self._setting, self._rates = setting, rates
        self._optimiser = optimiser(setting.config)
        self._executable: jax.stages.Compiled | None = None

    def __call__(self, state: TrainState, gradient: Gradient, began: float) -> tuple[TrainState, Metrics]:
        config, step = self._setting.config, state.step + 1
        if self._rates is None:
            rate = learning_rate(config, step, config.progress(state.step, state.seconds))
        else:
            rate = self._rates[step]
        arguments = (
            (state.params, state.average, state.opt_state), gradient.tree,
            *map(jnp.asarray, (gradient.loss, rate, _decay(config, step))),
        )
        if self._executable is None:
            self._executable = self._setting.compile("update", jax.jit(self._compute).lower(*arguments))
        params, average, opt_state, norm = self._executable(*arguments)
        failures = int(opt_state.notfinite_count)  # waits for the device, so that the time below is right
        if failures >= MAX_SKIPPED:
            raise NotFiniteError(
                f"{MAX_SKIPPED} updates in a row were not finite, the last at step {step}: the gap between occupied "
                f"and virtual orbitals may have closed, or the learning rate ({config.learning_rate}) is too large.",
                gradient.not_finite(),
            )
        seconds = state.seconds + time.perf_counter() - began
        metrics = Metrics(
            step, seconds, gradient.energy, gradient.loss, float(norm), rate, failures > 0, gradient.data_wait_s,
            gradient.compile_s, gradient.geometries,
        )
        return TrainState(params, average, opt_state, step, seconds), metrics

    def _compute(self, current, gradient, loss, rate, decay):
        params, average, opt_state = current
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), gradient)
        updates, opt_state = self._optimiser.update(gradient, opt_state, params)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
        share = 1 - decay.astype(jnp.float32)
        # Written as a change, so that the mean of constants, such as statistics, has no rounding errors.
        average = jax.tree.map(lambda p, mean: mean + share.astype(p.dtype) * (p - mean), params, average)
        return params, average, opt_state, optax.tree.norm(gradient)


def _decay(config: TrainConfig, step: int) -> float:
    return min(config.averaging, step / (step + 10))  # the first updates are soon forgotten


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Return the learning rate of an update: a linear warm-up times a cosine of the spent share of the budget."""
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warmup * (0.01 + 0.99 * cosine)
