"""Headline results of training on two cores: both networks, with all baselines and the grid's own error.

    python benchmarks/targets.py [water|ethanol|ethanol-def2|uracil|peptide|molecules] [--seeds N] [--both]

Writes `results/target-NAME.json`, `.md` and `.png`. Time counts from the start of the training, compilation included.
Two DFT iterations follow the network in a prediction, none in training. Training uses grid level 0; predictions and
references use level 3.
"""

import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, NamedTuple

import typer

from qptlab.benchmarking import studies
from qptlab.benchmarking.studies import Setting, Study, TestGroup, small_molecules
from qptlab.models.equivariant import EquivariantConfig
from qptlab.models.qpt import QPTConfig
from qptlab.sampling import Sampling
from qptlab.system.method import Method
from qptlab.training.config import TrainConfig

LARGER = ("benzene", "uracil", "CCCCCO", "NCC(=O)NCC(=O)O", "alanine dipeptide")


class Target(NamedTuple):
    """Training with a target.

    Attributes:
      molecules: molecules to train on.
      method: level of theory.
      minutes: time of the training.
      goal: target in words.
      geometries: number of test geometries.
      groups: further geometries to test on, by their title.
      sampling: sampler of the training.
    """

    molecules: tuple[str, ...]
    method: Method
    minutes: float
    goal: str
    geometries: int = studies.TEST_GEOMETRIES
    groups: Mapping[str, TestGroup] = MappingProxyType({})
    sampling: Sampling = Sampling()


TARGETS = {
    "water": Target(("water",), Method("pbe", "def2-svp", 3), 1, "0.01 meV after 60 s"),
    "ethanol": Target(("ethanol",), Method("pbe", "sto-3g", 3), 1, "0.01 meV after 60 s"),
    "ethanol-def2": Target(("ethanol",), Method("b3lyp", "def2-svp", 3), 4, "0.05 meV after 4 minutes"),
    "uracil": Target(
        ("uracil",), Method("b3lyp5", "def2-svp", 3), 10, "0.524 meV, 39.46 µHa and 409 µHa within 15 minutes"
    ),
    "peptide": Target(
        ("alanine dipeptide",), Method("pbe", "sto-3g", 3), 10, "1 meV for turned torsions after 10 minutes", 12,
        {"Turned torsions": TestGroup(sampling=Sampling("torsions"), each=50)}, Sampling("torsions"),
    ),
    "molecules": Target(
        small_molecules()[:-4], Method("pbe", "sto-3g", 3), 4,
        "unseen 0.05 meV, larger ones 0.1 meV after 4 minutes", 12,
        {"Unseen molecules": TestGroup(small_molecules()[-4:], each=13), "Larger molecules": TestGroup(LARGER)},
    ),
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(TARGETS)}; by default all.")] = None,
    seeds: int = 1,
    both: Annotated[bool, typer.Option(help="Train the paper's network in its frame, too.")] = True,
) -> None:
    """Measure targets."""
    folder = pathlib.Path(__file__).parent / "results"
    for name in names or TARGETS:
        target = TARGETS[name]
        train = TrainConfig(sampling=target.sampling)
        settings = [Setting("equivariant, n = 2", EquivariantConfig(iterations=2), train)]
        if both:
            settings.append(Setting("QPT in its frame, n = 2", QPTConfig("micro", iterations=2), train))
        study = Study(
            f"Training on {name}; target: {target.goal}", settings, target.molecules, target.groups, target.geometries
        )
        command = f"python benchmarks/targets.py {name} --seeds {seeds} {'--both' if both else '--no-both'}"
        rows = []
        for row in studies.measure(study, target.method, target.minutes, seeds):
            rows.append(row)
            studies.write(f"target-{name}", study, rows, target.method, folder, command)
        typer.echo(studies.table(rows))


if __name__ == "__main__":
    typer.run(main)
