"""Settings of a training."""

import dataclasses
import math

from qptlab.errors import InputError, shown
from qptlab.models.networks import check_iterations
from qptlab.sampling import Sampler, Sampling, sampling_from_json
from qptlab.system.method import GRID_LEVELS

LOSSES = ("energy", "self-consistency", "labels")
"""Losses of networks that correct a Fock matrix."""


@dataclasses.dataclass(frozen=True)
class TaskWeights:
    """Weights of the properties that are learned from labels; a weight of zero leaves a property out.

    Each weight multiplies a mean squared error, in units of the error that the low-cost method and a linear fit leave
    for that property in the training set (multi-task learning, Qiao et al. 2020, arXiv:2011.02680).

    Attributes:
      energy: weight of total energies.
      forces: weight of forces; they take derivatives of all operators and a second derivative of the network.
      dipole: weight of dipole moments.
      charges: weight of atomic charges.
      gap: weight of HOMO–LUMO gaps.
      valence: weight of the eigenvalues of the atoms' blocks of the density.
    """

    energy: float = 1.0
    forces: float = 1.0
    dipole: float = 0.1
    charges: float = 0.1
    gap: float = 0.1
    valence: float = 0.1

    def __post_init__(self):
        """Check the weights."""
        for name, weight in dataclasses.asdict(self).items():
            if not 0 <= weight < math.inf:
                raise InputError(f"Expected a weight of 0 or more for {name}, got {weight}; use 1, for example.")
        if not any(dataclasses.asdict(self).values()):
            raise InputError(f"Expected a positive weight for one of {', '.join(TASKS)}, got none; use energy=1.")

    @classmethod
    def only(cls, *names: str) -> "TaskWeights":
        """Return the default weights of some properties, and zero for all others.

        Raises:
          InputError: if a property is unknown.
        """
        unknown = sorted(set(names) - set(TASKS))
        if unknown:
            raise InputError(f"Expected properties among {', '.join(TASKS)}, got {', '.join(unknown)[:200]}.")
        return cls(**{name: 0.0 for name in TASKS if name not in names})


TASKS = tuple(field.name for field in dataclasses.fields(TaskWeights))
"""Names of the properties that can be learned from labels."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
      minutes: training time; statistics, compilation and waiting for data count, validation and pauses do not. One
        update is made in any case.
      steps: number of updates. If both are given, training ends with whichever is reached first. One of the two is
        needed.
      sampling: sampler of a training without labels, such as `Sampling("md", temperature=300.0)`.
      seed: seed of parameters, geometries, and draws from the replay buffer or from the labelled set.
      loss: `energy` of the predicted density (arXiv:2402.04030); or `self-consistency`, the squared difference
        between the Fock matrix that was diagonalised and that of the resulting density (arXiv:2403.09560); or, for
        comparison, `labels`, the L1 + L2 distance from PySCF's converged Fock matrix, one SCF for each geometry.
      iterations: number of DFT iterations after the network during training; None for as many as in prediction (the
        paper's choice). Without iterations a step costs least, and the network has to find the solution by itself;
        the iterations of a prediction then improve on it.
      grid_level: level of the integration grid during training, as in `Method`; None for the method's. The energy of
        a coarse grid teaches a network nearly the same, and costs a fraction; predictions use the method's grid.
      batch: geometries per update. On a CPU, small batches learn most in a given time; accelerators need larger ones.
      microbatch: number of geometries whose gradient is computed at a time, to save memory; None for the whole batch.
      reuse: number of times that a geometry is used, on average (16 in the paper).
      learning_rate: largest learning rate, after the warm-up; a cosine decreases it to a hundredth.
      warmup_steps: number of updates over which the learning rate increases.
      clip_norm: largest norm of a gradient; longer gradients are scaled down to it.
      weight_decay: weight decay of AdamW.
      averaging: decay, update by update, of the mean of parameters that is used for prediction; 0 for the last ones.
      validation: number of geometries on which errors are measured: of a stream of their own or, for labels, of
        the labelled set, which then are not trained on. A number below 1 is a share of the labelled set.
      tasks: weights of the properties that are learned from labels.
    """

    minutes: float | None = 5.0
    steps: int | None = None
    sampling: Sampler = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    loss: str = "energy"
    iterations: int | None = 0
    grid_level: int | None = 0
    batch: int = 4
    microbatch: int | None = None
    reuse: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    clip_norm: float = 1.0
    weight_decay: float = 1e-4
    averaging: float = 0.98
    validation: int | float = 16
    tasks: TaskWeights = dataclasses.field(default_factory=TaskWeights)

    def __post_init__(self):
        """Check the fields."""
        self._check_budget()
        if self.loss not in LOSSES:
            raise InputError(f"Expected one of {', '.join(LOSSES)} as loss, got {shown(self.loss)}.")
        if self.iterations is not None:
            check_iterations(self.iterations)
        if self.grid_level is not None and self.grid_level not in GRID_LEVELS:
            raise InputError(
                f"Expected one of {', '.join(map(str, GRID_LEVELS))} as grid level of the training, or None for the "
                f"method's, got {shown(self.grid_level)}."
            )
        self._check_validation()
        for name in ("steps", "batch", "microbatch", "reuse"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"Expected a whole number from 1 as {name}, got {shown(value)}; use 1, for example.")
        if self.microbatch is not None and self.batch % self.microbatch:
            raise InputError(
                f"Expected a divisor of the batch of {self.batch} as microbatch, got {self.microbatch}; use 1, for "
                "example."
            )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"Expected a whole number from 0 as seed, got {shown(self.seed)}; use 0, for example.")
        for name, usual in (("learning_rate", 1e-3), ("averaging", 0.98)):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(
                    f"Expected a number from 0 to below 1 as {name.replace('_', ' ')}, got {value}; use {usual}, for "
                    "example."
                )

    def _check_validation(self) -> None:
        count = self.validation
        if not (count >= 1 if isinstance(count, int) else isinstance(count, float) and 0 < count < 1):
            raise InputError(
                f"Expected a whole number from 1 or a share below 1 as validation, got {count!r}; use 16, or 0.2 for "
                "labels."
            )

    def _check_budget(self) -> None:
        if self.minutes is None and self.steps is None:
            raise InputError("Expected minutes or steps of training, got neither; use minutes=1, for example.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"Expected a positive number of minutes, got {self.minutes}; use 1, for example.")

    @classmethod
    def supervised(cls, **changes) -> "TrainConfig":
        """Return settings for learning from labels, which differ from those for learning without.

        Batches are cheap, since the low-cost method has run before training; so they are larger, and so are steps.

        Args:
          **changes: fields that differ from these settings.
        """
        defaults = {
            "minutes": None, "steps": 1500, "batch": 8, "learning_rate": 2e-3, "clip_norm": 10.0, "averaging": 0.99,
            "validation": 0.2,
        }
        return cls(**(defaults | changes))

    @classmethod
    def from_record(cls, record: dict) -> "TrainConfig":
        """Return the settings of a run folder's `config.json`.

        Raises:
          InputError: if a value cannot be used.
          TypeError: if there are unknown fields.
        """
        sampling, tasks = sampling_from_json(record["sampling"]), TaskWeights(**record["tasks"])
        return cls(**{**record, "sampling": sampling, "tasks": tasks})

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the budget that is spent, 0 to 1.

        >>> TrainConfig(minutes=None, steps=10).progress(5, 0.0)
        0.5
        """
        by_step = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_step, by_time))
