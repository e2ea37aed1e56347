"""Headline results of training on two cores: error against time, two seeds each, with both baselines.

    python benchmarks/targets.py [water|ethanol|ethanol-def2]

Writes `results/target-NAME.json`, `.md` and `.png`. Two DFT iterations follow the network in a prediction, none in
training.
"""

import pathlib
import sys
from typing import NamedTuple

from qptlab.benchmarking import studies
from qptlab.benchmarking.studies import Setting, Study
from qptlab.models.qpt import QPTConfig
from qptlab.system.method import Method


class Target(NamedTuple):
    """Training with a target: molecule, method, minutes and the target in words."""

    molecule: str
    method: Method
    minutes: float
    goal: str


TARGETS = {
    "water": Target("water", Method("pbe", "def2-svp"), 2, "1 meV in 2 minutes, 0.1 meV in 10"),
    "ethanol": Target("ethanol", Method("pbe", "sto-3g"), 4, "1 meV in 4 minutes"),
    "ethanol-def2": Target("ethanol", Method("b3lyp", "def2-svp"), 8, "2 meV in 60 minutes"),
}


def main() -> None:
    """Measure the targets that the command line names, by default all."""
    folder = pathlib.Path(__file__).parent / "results"
    for name in sys.argv[1:] or TARGETS:
        molecule, method, minutes, goal = TARGETS[name]
        settings = [Setting("n = 2", QPTConfig("micro", iterations=2))]
        study, rows = Study(f"Training on {molecule}; target: {goal}", settings, (molecule,)), []
        for row in studies.measure(study, method, minutes, 2):
            rows.append(row)
            studies.write(f"target-{name}", study, rows, method, folder, f"python benchmarks/targets.py {name}")
        sys.stdout.write(studies.table(rows) + "\n")


if __name__ == "__main__":
    main()
