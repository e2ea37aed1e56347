"""Choices of the training that were tried: short trainings in one run, each with the same time and seeds.

    python benchmarks/choices.py [--minutes 0.5] [--seeds 2]

Water in PBE/def2-SVP, one DFT iteration after the network in a prediction. The best choice is the package's default;
the other optimisers are in this file only. Writes `results/choices.json`, `.md` and `.png`. (For the results of
2026-11-25, and for `choices-batch` and `choices-ethanol`, batches of 16 were the default.)
"""

import pathlib
from collections.abc import Callable
from typing import Annotated

import jax
import optax
import typer
from optax import contrib

from qptlab.benchmarking import studies
from qptlab.benchmarking.studies import Setting, Study
from qptlab.system.method import Method
from qptlab.training import loop as training
from qptlab.training.loop import MAX_SKIPPED, TrainConfig


def _muon(config: TrainConfig) -> optax.GradientTransformation:
    """Return Muon for the layers' matrices and Adam for all other parameters; steps are as large as AdamW's."""

    def matrices(params):
        # Layers are stacked: [layer, in, out].
        return jax.tree.map(lambda p: contrib.MuonDimensionNumbers(1, 2) if p.ndim == 3 else None, params)

    return _safe(config, contrib.muon(
        -1.0, weight_decay=config.weight_decay, consistent_rms=0.2, adam_b2=0.99, adam_learning_rate=-1.0,
        muon_weight_dimension_numbers=matrices,
    ))


def _lion(config: TrainConfig) -> optax.GradientTransformation:
    return _safe(config, optax.chain(optax.scale_by_lion(), optax.scale(0.3)))  # its steps are larger than Adam's


def _slow_moments(config: TrainConfig) -> optax.GradientTransformation:
    return _safe(config, optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(config.weight_decay)))


def _safe(config: TrainConfig, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimiser with clipped gradients that leaves out updates that are not finite."""
    return optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(config.clip_norm), inner), 2 * MAX_SKIPPED)


class Choice:
    """Setting of a training, with an optimiser if it differs from the package's."""

    def __init__(self, label: str, optimiser: Callable | None = None, **train):
        self.setting = Setting(label, train=TrainConfig(**train))
        self.optimiser = optimiser


CHOICES = (
    Choice("default: AdamW, rate 0.001, batch 4"),
    Choice("rate 0.0003", learning_rate=3e-4),
    Choice("rate 0.003", learning_rate=3e-3),
    Choice("prediction with the last parameters", averaging=0.0),
    Choice("batch 8", batch=8),
    Choice("batch 16", batch=16),
    Choice("each geometry used 4 times", reuse=4),
    Choice("each geometry used 64 times", reuse=64),
    Choice("AdamW, slower second moments (0.999)", _slow_moments),
    Choice("Muon", _muon),
    Choice("Lion", _lion),
    Choice("trained through the DFT iteration, as in the paper", iterations=None),
)


def main(
    minutes: Annotated[float, typer.Option(help="Time of each training.")] = 0.5,
    seeds: int = 2,
    molecule: str = "water",
    basis: str = "def2-svp",
    only: Annotated[str, typer.Option(help="Beginnings of the names of choices, with commas.")] = "",
) -> None:
    """Measure, and write the table."""
    choices = [choice for choice in CHOICES if choice.setting.label.startswith(tuple(only.split(",")))]
    name = "choices-some" if only else "choices"
    folder = pathlib.Path(__file__).parent / "results"
    method, default = Method("pbe", basis), training.optimiser
    study = Study("Choices of the training", [choice.setting for choice in choices], (molecule,))
    command = (f"python benchmarks/choices.py --minutes {minutes:g} --seeds {seeds} --molecule {molecule} "
               f"--basis {basis}" + (f" --only {only!r}" if only else ""))
    rows = []
    for choice in choices:
        training.optimiser = choice.optimiser or default
        for row in studies.measure(study._replace(settings=[choice.setting]), method, minutes, seeds):
            rows.append(row)
            studies.write(name, study, rows, method, folder, command)
            typer.echo(f"{row['setting']}, seed {row['seed']}: {row['energy_mae_mev']:.3g} meV")


if __name__ == "__main__":
    typer.run(main)
