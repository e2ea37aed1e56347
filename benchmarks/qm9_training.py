"""How the error on unseen molecules depends on what a model is trained on, at equal time: molecules, labels, seed.

    python benchmarks/qm9_training.py [--minutes 8] [--arms "10 molecules;1 molecule"]

Each arm trains the equivariant network on top of the electrons' response, as `qm9-small`, in B3LYP5/def2-SVP, for the
same time, labels and compilation included, in a process of its own:

- the loss is the energy; 1, 10 or all 126 molecules of QM9's random training part with up to five heavy atoms; or
  1,000 with up to seven, or 10,000 with up to eight;
- labels: the distance to converged Fock matrices of PySCF with the electrons' response, the fastest source here; each
  is used 16 or 128 times; 126 molecules;
- labels, then energy: half of the time for each, the second starts from the first.

The models, and the response alone, are tested without DFT iterations on twelve molecules of QH9's random test part
and on three of its test by size. No model was trained on one of these. Elements are C, H, N and O. References as in
`qm9.py`. Writes `results/qm9-training.json` and `.md` after each arm; arms that are in the file are not repeated.
"""

import dataclasses
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from typing import Annotated

import numpy as np
import typer
from qm9 import errors, kept

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation.reference import Reference
from qptlab.models.systems import make_systems
from qptlab.units import significant

METHOD = ql.Method("b3lyp5", "def2-svp", eri="fitted", grid_level=3)
TEST, LARGER = 12, 3
ELEMENTS = "HCNO"


@dataclasses.dataclass(frozen=True)
class Arm:
    """What a model is trained on.

    Attributes:
      count: number of molecules.
      max_heavy: largest number of heavy atoms.
      loss: loss of the training.
      reuse: number of times that a geometry is used.
      seed: seed of the training.
      after: arm whose model it starts from; both have half of the time.
    """

    count: int
    max_heavy: int = 5
    loss: str = "energy"
    reuse: int = 16
    seed: int = 0
    after: "Arm | None" = None

    @property
    def molecules(self) -> list[ql.Molecule]:
        """The molecules; the first one has all elements."""
        mols = ql.datasets.read_qm9(f"qm9:max_heavy={self.max_heavy},elements={ELEMENTS},split=random-train")
        order = np.random.default_rng(1).permutation(len(mols))
        drawn = [mols[int(index)] for index in order[: max(self.count, 100)]]
        drawn.sort(key=lambda mol: set(mol.symbols) != set(ELEMENTS))  # stable
        return [drawn[0], *np.random.default_rng(2).permutation(np.array(drawn[1:], object))][: self.count]


LABELS = Arm(126, loss="labels", reuse=128)
ARMS = {
    "126 molecules": Arm(126), "labels, each used 128 times": LABELS, "10 molecules": Arm(10), "1 molecule": Arm(1),
    "1,000 molecules": Arm(1_000, 7), "labels, then energy": Arm(126, after=LABELS),
    "labels, each used 16 times": Arm(126, loss="labels"), "126 molecules, second seed": Arm(126, seed=1),
    "10,000 molecules": Arm(10_000, 8),
}


def train(arm: Arm, minutes: float, folder: pathlib.Path) -> tuple[ql.CorrectionPredictor, dict]:
    """Return the trained model, and numbers of the training."""
    start, before = None, 0
    if arm.after is not None:
        minutes = minutes / 2
        start, first = train(arm.after, minutes, folder / "first")
        before = first["step"]
    config = ql.TrainConfig(
        minutes=minutes, sampling=ql.Sampling("modes"), seed=arm.seed, loss=arm.loss, reuse=arm.reuse, validation=1,
    )
    network = ql.EquivariantConfig(iterations=0, scheme="response")
    trainer = ql.Trainer(arm.molecules, METHOD, network, config, out=folder / "run", start=start)
    trainer.run()
    last = ql.Run.open(folder / "run").metrics()[-1]
    numbers = {key: value for key, value in last.items() if isinstance(value, int | float)}
    return trainer.predictor, numbers | {"step": numbers["step"] + before}


def converged(mol: ql.Molecule, method: ql.Method) -> Reference:
    """Return the converged reference of a molecule."""
    answer = kept(mol, method, None)
    assert answer.converged, f"PySCF does not converge for {mol.name}"
    return answer


def test(model: ql.CorrectionPredictor) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """Return the errors of a model on the molecules of both tests, and those without its network."""
    description = model.description()
    description["method"]["auxbasis"] = "etb-1.8"
    rebuilt = ql.CorrectionPredictor.rebuild(description, model.arrays())
    exact = dataclasses.replace(rebuilt.method, eri="auto", auxbasis=None)
    tests = {
        "small": ql.datasets.read_qm9(f"qm9:max_heavy=5,elements={ELEMENTS},split=random-test").draw(TEST, seed=2),
        "large": ql.datasets.read_qm9("qm9:split=size-test,count=20")[:LARGER],
    }
    mols = [mol for members in tests.values() for mol in members]
    assert not any(map(model.was_trained_on, mols)), "A molecule of the test was trained on."
    # Molecules of a few shared sizes, so that little is compiled.
    systems, _ = make_systems(mols, rebuilt.method, rebuilt.config, rebuilt.model.kinds)
    with_network, without = (
        {
            title: [errors(predictor(mol), converged(mol, exact), mol, exact) for mol in members]
            for title, members in tests.items()
        }
        for predictor in (
            ql.CorrectionPredictor(rebuilt.model, params, systems) for params in (rebuilt.params, None)
        )
    )
    return with_network, without


def page(record: dict) -> str:
    """Return the table and its description."""
    lines: list[list[str]] = []
    notes: dict[str, list[str]] = {}
    for name, arm in record["arms"].items():
        notes.setdefault(arm["note"], []).append(name)
    rows = {"the response alone": {"errors": record["without"]}, **record["arms"]}
    for name, arm in rows.items():
        cells = [name, f"{arm['training']['step']:.0f}" if "training" in arm else ""]
        for key in ("small", "large"):
            energies = np.abs([row["energy_mev"] for row in arm["errors"][key]])
            spread = energies.std(ddof=1) / np.sqrt(len(energies))
            cells += [f"{significant(energies.mean())} ± {significant(spread, 1)}",
                      significant(statistics.mean(row["fock_uha"] for row in arm["errors"][key]))]
        lines.append(cells)
    return "\n".join([
        "# Molecules, labels and seed", "", f"    {record['command']}", "", bench.describe(record["machine"]), "",
        *[f"{'; '.join(names)}: {note}\n" for note, names in notes.items() if note],
        f"{METHOD.label}; each training takes {record['minutes']:g} minutes, labels and compilation included; the "
        "largest molecules have five heavy atoms, with 1,000 molecules seven, with 10,000 eight. All models predict "
        "on top of the electrons' response, without DFT iterations. Means of absolute errors of energies (meV) and "
        f"Fock matrices (µHa) with standard errors, on {TEST} molecules with up to five heavy atoms and on {LARGER} "
        "with 23 atoms or more, against converged PySCF; none was trained on. Labels are converged Fock matrices of "
        "PySCF with the electrons' response.", "",
        tables.table(["training", "updates", "energy, meV", "Fock, µHa", "larger, meV", "Fock, µHa"], lines), "",
    ])


def main(
    minutes: Annotated[float, typer.Option(help="Time of each training.")] = 8.0,
    arms: Annotated[str, typer.Option(help="Names of arms, with semicolons between them; all if empty.")] = "",
    note: Annotated[str, typer.Option(help="What else ran on the machine.")] = "",
    one: Annotated[str, typer.Option(hidden=True, help="Measure this arm in this process.")] = "",
) -> None:
    """Measure, and write the table."""
    warnings.filterwarnings("ignore", message=".* is not among the .* molecules")
    warnings.filterwarnings("ignore", message=".* is not the molecule that the model was trained on.*")
    results = pathlib.Path(__file__).parent / "results"
    path = results / "qm9-training.json"
    record = json.loads(path.read_text()) if path.exists() else {"arms": {}, "minutes": minutes}
    if record["minutes"] != minutes:
        raise ql.InputError(f"Expected {record['minutes']} minutes as in {path}, got {minutes}; remove the file.")
    if not one:
        for name in arms.split(";") if arms else ARMS:
            if name not in record["arms"]:
                subprocess.run(
                    [sys.executable, __file__, "--minutes", str(minutes), "--note", note, "--one", name], check=True
                )
        return
    folder = pathlib.Path(tempfile.mkdtemp())
    model, training = train(ARMS[one], minutes, folder)
    found, without = test(model)
    if path.exists():
        record = json.loads(path.read_text())  # other arms may have been measured since
    record["arms"][one] = {"training": training, "errors": found, "note": note}
    command = f"python benchmarks/qm9_training.py --minutes {minutes:g}"
    record |= {"without": without, "command": command, "machine": bench.machine()}
    bench.keep(results, "qm9-training", record, page(record))
    typer.echo(f"{one}: done")
    shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
