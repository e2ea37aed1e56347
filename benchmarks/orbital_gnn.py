"""Learning curves of OrbitalGNN on small molecules: energies alone, or several properties at once.

    python benchmarks/orbital_gnn.py [--sizes 30,60,120,220] [--seeds 3] [--steps 1500]

The molecules have up to five heavy atoms (C, N, O, F). Each has one geometry from GFN2-xTB dynamics at 500 K and a
label from PySCF, PBE/def2-SVP with fitted integrals. Labels are kept in `runs/`, where a second call finds them. No
training contains a test molecule. The baseline is GFN1-xTB with a linear fit for each element on the same training
set. The time of a prediction of uracil is compared with that of PySCF's SCF on the same cores. Writes
`results/orbital-gnn.json`, `.md` and `.png`.
"""

import dataclasses
import functools
import itertools
import pathlib
import statistics
import time
from typing import Annotated

import numpy as np
import typer
from rdkit import Chem, rdBase

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.evaluation import labels, reference
from qptlab.evaluation.errors import ERROR_COLUMNS
from qptlab.evaluation.labelled import Prepared, label_errors, prepare
from qptlab.runtime import cluster
from qptlab.training.supervised import Supervised, vocabulary
from qptlab.units import significant

METHOD = ql.Method("pbe", "def2-svp", eri="fitted")
FRAMES, LABELS = (pathlib.Path(f"runs/orbital-gnn-{name}.xyz") for name in ("frames", "labels"))
MAX_HEAVY, MAX_ATOMS, TEST = 5, 16, 50
CARBON = ("[H]", "C", "CC", "C=C", "C#C", "C=O", "C#N", "C(N)=O", "C1CC1")
OTHER = ("O", "N", "F", "OC", "NC")
ON_CARBON = ("C({})({})", "C(=O)({})({})", "C(=C)({})({})", "C1({})CC1({})", "C({})=C({})")
ON_OTHERS = ("O({})({})", "N({})({})", "N(C)({})({})")
NAMES = ("energy_mae_mev", "forces_mae_mev_angstrom", "dipole_mae_debye", "charge_mae", "gap_mae_ev")
TITLES = [ERROR_COLUMNS[name] for name in NAMES]
WEIGHTS = {
    "energy alone": ql.TaskWeights.only("energy"),
    "several properties, no forces": ql.TaskWeights(forces=0.0),
    "several properties and forces": ql.TaskWeights(),
}
TURNS = 7


def smiles() -> list[str]:
    """Return the SMILES of all molecules in random order."""
    combinations = [(carbon, pair) for carbon in ON_CARBON for pair in _pairs(CARBON + OTHER)]
    combinations += [(other, pair) for other in ON_OTHERS for pair in _pairs(CARBON)]
    unique = set()
    with rdBase.BlockLogs():
        for centre, pair in combinations:
            graph = Chem.MolFromSmiles(centre.format(*pair))
            if graph is None:
                continue
            graph = Chem.RemoveHs(graph)
            if 2 <= graph.GetNumHeavyAtoms() <= MAX_HEAVY and Chem.AddHs(graph).GetNumAtoms() <= MAX_ATOMS:
                unique.add(Chem.MolToSmiles(graph))
    return np.random.default_rng(0).permutation(sorted(unique)).tolist()


def _pairs(fragments):
    return itertools.combinations_with_replacement(fragments, 2)


def geometries() -> list[ql.Molecule]:
    """Return one frame of dynamics of each molecule. They are kept in a file, because dynamics take some minutes."""
    if not FRAMES.exists():
        FRAMES.parent.mkdir(exist_ok=True)
        mols = [ql.Molecule.from_smiles(text) for text in smiles()]
        frames = [next(ql.sample(mol, ql.Sampling("md"), [index, 20_240_601])) for index, mol in enumerate(mols)]
        moved = (mol.with_positions(frame) for mol, frame in zip(mols, frames, strict=True))
        FRAMES.write_text("".join(mol.to_xyz() for mol in moved))
    return ql.read_xyz(FRAMES)


def labelled(executor=None) -> ql.LabelledSet:
    """Return the molecules with labels, in the order of `smiles`; the first ones are for testing."""
    maker = functools.partial(labels.from_pyscf, method=METHOD)
    return labels.label(
        geometries(), maker, LABELS, lambda done: typer.echo(f"\rlabel {done}", nl=False, err=True), executor,
        theory=METHOD.label,
    )


def train(
    data: ql.LabelledSet, prepared: Prepared, model: ql.OrbitalGNN, steps: int, seed: int, weights: ql.TaskWeights
) -> tuple[ql.GNNPredictor, float]:
    """Train on labels that are prepared; return the trained model and the time, s."""
    if not weights.forces:
        prepared = prepared._replace(slopes=None)
    objective = Supervised(data, model.config, model=model, prepared=prepared)
    # At least one geometry is held out for the training's own validation.
    config = ql.TrainConfig.supervised(steps=steps, seed=seed, tasks=weights, validation=1)
    began = time.perf_counter()
    *_, (state, _) = ql.train(objective, config)
    return objective.predictor(state.average), time.perf_counter() - began


def learn(
    data: ql.LabelledSet, prepared: Prepared, model: ql.OrbitalGNN, size: int, seed: int, steps: int,
    weights: ql.TaskWeights,
) -> tuple[ql.GNNPredictor, dict]:
    """Train on some of the molecules that are not for testing; return the model, and its errors on those that are."""
    training = np.arange(TEST, len(data.molecules))
    part = np.random.default_rng([seed, size]).permutation(training)[: size + 1]
    predictor, seconds = train(data.take(part), prepared.take(part), model, steps, seed, weights)
    return predictor, {"seconds": seconds, **label_errors(predictor, prepared.take(range(TEST))).to_dict()}


def measure(
    data: ql.LabelledSet, prepared: Prepared, model: ql.OrbitalGNN, sizes: list[int], seeds: int, steps: int
) -> list[dict]:
    """Return the errors on the test molecules for each size, seed and choice of properties."""
    rows, test = [], prepared.take(range(TEST))
    for size, seed, (learned, weights) in itertools.product(sizes, range(seeds), WEIGHTS.items()):
        predictor, row = learn(data, prepared, model, size, seed, steps, weights)
        plain = label_errors(predictor.without_network(), test)
        rows.append({"size": size, "seed": seed, "way": learned, **row, "baseline": plain.to_dict()})
        typer.echo(f"{size} molecules, seed {seed}, {learned}: {rows[-1]['energy_mae_mev']:.1f} meV "
                   f"(GFN1-xTB {plain.energy_mae_mev:.1f}), {row['seconds']:.0f} s", err=True)
        if size == sizes[-1] and learned == list(WEIGHTS)[-1]:
            predictor.save("runs/orbital-gnn.h5")
    return rows


def cost() -> dict:
    """Return the times of a prediction of uracil and of PySCF's SCF, s."""
    model, mol = ql.load("runs/orbital-gnn.h5"), ql.Molecule.from_name("uracil")
    rng, estimates, references = np.random.default_rng(1), [], []
    for _ in range(TURNS + 1):
        moved = mol.with_positions(mol.positions + 0.02 * rng.normal(size=mol.positions.shape))
        began = time.perf_counter()
        model(moved)
        estimates.append(time.perf_counter() - began)
        references.append(reference.converged(moved, dataclasses.replace(METHOD, eri="exact")).seconds)
    ratios = [b / a for a, b in zip(estimates[1:], references[1:], strict=True)]
    return {"estimate_s": statistics.median(estimates[1:]), "pyscf_s": statistics.median(references[1:]),
            "ratio": statistics.median(ratios)}


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of training molecules.")] = "30,60,120,220",
    seeds: int = 3, steps: int = 1500,
    dask: Annotated[str, typer.Option(help="Scheduler that computes the labels, or local.")] = "local",
) -> None:
    """Label, measure, and write the table and the plot."""
    with cluster.executor(dask) as executor:
        data = labelled(executor)
    model = vocabulary(data.molecules, ql.GNNConfig())
    prepared = prepare(model, data.molecules, data.labels, forces=True)
    rows = measure(data, prepared, model, [int(size) for size in sizes.split(",")], seeds, steps)
    command = f"python benchmarks/orbital_gnn.py --sizes {sizes} --seeds {seeds} --steps {steps}"
    record = {"command": command, "machine": bench.machine(), "molecules": len(data.molecules), "rows": rows,
              "cost": cost()}
    results = pathlib.Path(__file__).parent / "results"
    bench.keep(results, "orbital-gnn", record, page(record))
    figure(record).savefig(results / "orbital-gnn.png", dpi=120)
    typer.echo(page(record))


def page(record: dict) -> str:
    """Return the table and its description."""
    rows, cost = record["rows"], record["cost"]
    lines = []
    for size in sorted({row["size"] for row in rows}):
        members = [row for row in rows if row["size"] == size]
        lines.append(_cells(size, "nothing: GFN1-xTB and a linear fit", [row["baseline"] for row in members]))
        lines += [_cells(size, name, [row for row in members if row["way"] == name]) for name in WEIGHTS]
    return "\n".join([
        "# OrbitalGNN: one property or several",
        "", f"    {record['command']}", "", bench.describe(record["machine"]), "",
        f"{METHOD.label}; {record['molecules']} molecules, of which {TEST} are for testing; mean absolute errors, "
        f"means over {1 + max(row['seed'] for row in rows)} seeds (of energies, the least and the largest).",
        "", tables.table(["molecules", "learned", *TITLES, "time, s"], lines, text_columns=2), "",
        f"A prediction of uracil takes {significant(cost['estimate_s'])} s, PySCF's SCF "
        f"{significant(cost['pyscf_s'])} s: {cost['ratio']:.0f} times as long (target: 100).",
        "", "![learning curve](orbital-gnn.png)", "",
    ])


def _cells(size: int, learned: str, rows: list[dict]) -> list[str]:
    """Return the cells of a row: means over seeds."""
    cells = [significant(float(np.mean([row[name] for row in rows]))) for name in NAMES]
    energies = [row["energy_mae_mev"] for row in rows]
    cells[0] += f" ({significant(min(energies))}–{significant(max(energies))})"
    seconds = f"{np.mean([row['seconds'] for row in rows]):.0f}" if "seconds" in rows[0] else ""
    return [str(size), learned, *cells, seconds]


def figure(record: dict):
    """Return a figure of the energy error against the number of training molecules."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    drawn = Figure(figsize=(8, 5), layout="constrained")
    axes, rows = drawn.subplots(), record["rows"]
    sizes = sorted({row["size"] for row in rows})
    curves = {
        name: [[row["energy_mae_mev"] for row in rows if (row["size"], row["way"]) == (size, name)] for size in sizes]
        for name in WEIGHTS
    }
    plain = [[row["baseline"]["energy_mae_mev"] for row in rows if row["size"] == size] for size in sizes]
    curves["GFN1-xTB and a linear fit"] = plain
    styles = zip(("#0072B2", "#E69F00", "#009E73", "#000000"), ("o-", "s--", "^-.", "x:"), strict=True)
    for (name, values), (colour, style) in zip(curves.items(), styles, strict=True):
        axes.plot(sizes, [np.mean(errors) for errors in values], style, color=colour, label=name)
        axes.fill_between(sizes, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("training molecules")
    axes.set_ylabel("energy error on unseen molecules, meV")
    axes.set_title(f"OrbitalGNN on GFN1-xTB, {METHOD.label}: mean and range over seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn


if __name__ == "__main__":
    typer.run(main)
