"""Does learning several properties at once make OrbitalGNN's energies better? A learning curve on small molecules.

    python benchmarks/orbital_gnn.py [--sizes 30,60,120,220] [--seeds 3] [--steps 1500]

Molecules of up to five heavy atoms (C, N, O, F), each at one frame of GFN2-xTB dynamics at 500 K, labelled by PySCF
with PBE/def2-SVP and fitted integrals; labels are kept in `runs/`, so that a second call goes on with them. Test
molecules are seen by no training. The baseline is GFN1-xTB with a linear fit per element on the same training set.
Then the time of an estimate of uracil beside PySCF's SCF, on the same cores. Writes `results/orbital-gnn.json`, `.md`
and `.png`.
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
from qptlab.benchmarking import bench
from qptlab.evaluation import labels, reference
from qptlab.evaluation.errors import ERROR_COLUMNS
from qptlab.evaluation.labelled import Prepared, label_errors, prepare
from qptlab.runtime import cluster
from qptlab.training.supervised import Supervised, vocabulary
from qptlab.units import significant

METHOD = ql.Method("pbe", "def2-svp", eri="fitted")
FRAMES, LABELS = (pathlib.Path(f"runs/orbital-gnn-{what}.xyz") for what in ("frames", "labels"))
MAX_HEAVY, MAX_ATOMS, TEST = 5, 16, 50
CARBON = ("[H]", "C", "CC", "C=C", "C#C", "C=O", "C#N", "C(N)=O", "C1CC1")
OTHER = ("O", "N", "F", "OC", "NC")
ON_CARBON = ("C({})({})", "C(=O)({})({})", "C(=C)({})({})", "C1({})CC1({})", "C({})=C({})")
ON_OTHERS = ("O({})({})", "N({})({})", "N(C)({})({})")
WAYS = {
    "energy alone": ql.TaskWeights.only("energy"),
    "several properties, no forces": ql.TaskWeights(forces=0.0),
    "several properties and forces": ql.TaskWeights(),
}
TURNS = 7
COLUMNS = {
    name: ERROR_COLUMNS[name]
    for name in ("energy_mae_mev", "forces_mae_mev_angstrom", "dipole_mae_debye", "charge_mae", "gap_mae_ev")
}


def smiles() -> list[str]:
    """All molecules, in an order that says nothing."""
    pairs = [(carbon, two) for carbon in ON_CARBON for two in _pairs(CARBON + OTHER)]
    pairs += [(other, two) for other in ON_OTHERS for two in _pairs(CARBON)]
    found = set()
    with rdBase.BlockLogs():
        for centre, two in pairs:
            graph = Chem.MolFromSmiles(centre.format(*two))
            if graph is None:
                continue
            graph = Chem.RemoveHs(graph)
            if 2 <= graph.GetNumHeavyAtoms() <= MAX_HEAVY and Chem.AddHs(graph).GetNumAtoms() <= MAX_ATOMS:
                found.add(Chem.MolToSmiles(graph))
    return np.random.default_rng(0).permutation(sorted(found)).tolist()


def _pairs(fragments):
    return itertools.combinations_with_replacement(fragments, 2)


def geometries() -> list[ql.Molecule]:
    """One frame of dynamics of each molecule; kept in a file, because dynamics take some minutes."""
    if not FRAMES.exists():
        FRAMES.parent.mkdir(exist_ok=True)
        mols = [ql.Molecule.from_smiles(text) for text in smiles()]
        frames = [next(ql.sample(mol, ql.Sampling("md"), [index, 20_240_601])) for index, mol in enumerate(mols)]
        moved = (mol.with_positions(frame) for mol, frame in zip(mols, frames, strict=True))
        FRAMES.write_text("".join(mol.to_xyz() for mol in moved))
    return ql.read_xyz(FRAMES)


def labelled(executor=None) -> ql.LabelledSet:
    """Return the molecules, in the order of `smiles`, with labels; the first `TEST` of them are for tests."""
    maker = functools.partial(labels.from_pyscf, method=METHOD)
    return labels.label(
        geometries(), maker, LABELS, lambda done: typer.echo(f"\rlabel {done}", nl=False, err=True), executor
    )


def prepared(data: ql.LabelledSet) -> tuple[ql.OrbitalGNN, Prepared]:
    """Return a network for all molecules, and the molecules as it reads them."""
    model = vocabulary(data.molecules, ql.GNNConfig())
    return model, prepare(model, data.molecules, data.labels, forces=True)


def learn(
    data: ql.LabelledSet, model: ql.OrbitalGNN, arrays: Prepared, size: int, seed: int, steps: int,
    tasks: ql.TaskWeights,
) -> tuple[ql.GNNPredictor, dict]:
    """Train on some molecules that are not for tests; return the model, its errors on the tests, and the time, s.

    One of the molecules is held out, as every training on labels holds out some.
    """
    indices = np.random.default_rng([seed, size]).permutation(np.arange(TEST, len(data.molecules)))[:size]
    config = ql.TrainConfig.supervised(steps=steps, seed=seed, tasks=tasks, validation=1)
    began = time.perf_counter()
    part = arrays.take(indices)
    objective = Supervised(
        data.take(indices), ql.GNNConfig(), model=model, prepared=part if tasks.forces else part._replace(slopes=None)
    )
    *_, (state, _) = ql.train(objective, config)
    trained = objective.predictor(state.average)
    seconds = time.perf_counter() - began
    return trained, {"seconds": seconds, **label_errors(trained, arrays.take(np.arange(TEST))).to_dict()}


def measure(data: ql.LabelledSet, sizes: list[int], seeds: int, steps: int) -> list[dict]:
    """Return the errors on the test molecules for each choice of properties, size and seed."""
    model, arrays = prepared(data)
    rows, test = [], arrays.take(np.arange(TEST))
    for size, seed, (way, tasks) in itertools.product(sizes, range(seeds), WAYS.items()):
        trained, row = learn(data, model, arrays, size, seed, steps, tasks)
        plain = label_errors(trained.without_network(), test)
        rows.append({"size": size, "seed": seed, "way": way, **row, "baseline": plain.to_dict()})
        typer.echo(f"{size} molecules, seed {seed}, {way}: {rows[-1]['energy_mae_mev']:.1f} meV "
                   f"(GFN1-xTB {plain.energy_mae_mev:.1f}), {row['seconds']:.0f} s", err=True)
        if size == sizes[-1] and way == list(WAYS)[-1]:
            trained.save("runs/orbital-gnn.h5")
    return rows


def cost() -> dict:
    """Seconds of an estimate of uracil, and of PySCF's SCF."""
    model, mol = ql.load("runs/orbital-gnn.h5"), ql.Molecule.from_name("uracil")
    rng, ours, theirs = np.random.default_rng(1), [], []
    for _ in range(TURNS + 1):
        moved = mol.with_positions(mol.positions + 0.02 * rng.normal(size=mol.positions.shape))
        began = time.perf_counter()
        model(moved)
        ours.append(time.perf_counter() - began)
        theirs.append(reference.converged(moved, dataclasses.replace(METHOD, eri="exact")).seconds)
    ratios = [b / a for a, b in zip(ours[1:], theirs[1:], strict=True)]
    return {"estimate_s": statistics.median(ours[1:]), "pyscf_s": statistics.median(theirs[1:]),
            "ratio": statistics.median(ratios)}


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of training molecules.")] = "30,60,120,220",
    seeds: int = 3, steps: int = 1500,
    dask: Annotated[str, typer.Option(help="Where labels are made: a scheduler's address, or local.")] = "local",
) -> None:
    """Label, measure, and write the table and the plot."""
    with cluster.executor(dask) as executor:
        data = labelled(executor)
    rows = measure(data, [int(size) for size in sizes.split(",")], seeds, steps)
    command = f"python benchmarks/orbital_gnn.py --sizes {sizes} --seeds {seeds} --steps {steps}"
    count = len(data.molecules)
    record = {"command": command, "machine": bench.machine(), "molecules": count, "rows": rows, "cost": cost()}
    results = pathlib.Path(__file__).parent / "results"
    bench.keep(results, "orbital-gnn", record, page(record))
    figure(record).savefig(results / "orbital-gnn.png", dpi=120)
    typer.echo(page(record))


def page(record: dict) -> str:
    """The table, in words."""
    rows, cost = record["rows"], record["cost"]
    names = COLUMNS
    lines = [f"| molecules | learned | {' | '.join(names.values())} | time, s |", "|--:|---|" + "--:|" * 6]
    for size in sorted({row["size"] for row in rows}):
        here = [row for row in rows if row["size"] == size]
        lines.append(_line(size, "nothing: GFN1-xTB and a linear fit", [row["baseline"] for row in here], names))
        lines += [_line(size, way, [row for row in here if row["way"] == way], names) for way in WAYS]
    return "\n".join([
        "# OrbitalGNN: one property or several",
        "", f"    {record['command']}", "", bench.place(record["machine"]), "",
        f"{METHOD.label}; {record['molecules']} molecules, of which {TEST} unseen ones are tested on; mean absolute "
        f"errors, means over {1 + max(row['seed'] for row in rows)} seeds (of energies, the least and the largest).",
        "", *lines, "",
        f"An estimate of uracil takes {significant(cost['estimate_s'])} s, PySCF's SCF "
        f"{significant(cost['pyscf_s'])} s: {cost['ratio']:.0f} times as long (to reach: 100).",
        "", "![learning curve](orbital-gnn.png)", "",
    ])


def _line(size, way, rows, names):
    cells = [significant(float(np.mean([row[name] for row in rows]))) for name in names]
    energies = [row["energy_mae_mev"] for row in rows]
    cells[0] += f" ({significant(min(energies))}–{significant(max(energies))})"
    seconds = f"{np.mean([row['seconds'] for row in rows]):.0f}" if "seconds" in rows[0] else ""
    return f"| {size} | {way} | {' | '.join(cells)} | {seconds} |"


def figure(record: dict):
    """Energy error against the number of training molecules."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    drawn = Figure(figsize=(8, 5), layout="constrained")
    axes, rows = drawn.subplots(), record["rows"]
    sizes = sorted({row["size"] for row in rows})
    curves = {
        way: [[r["energy_mae_mev"] for r in rows if (r["size"], r["way"]) == (s, way)] for s in sizes] for way in WAYS
    }
    plain = [[r["baseline"]["energy_mae_mev"] for r in rows if r["size"] == s] for s in sizes]
    curves["GFN1-xTB and a linear fit"] = plain
    styles = zip(("#0072B2", "#E69F00", "#009E73", "#000000"), ("o-", "s--", "^-.", "x:"), strict=True)
    for (way, values), (colour, style) in zip(curves.items(), styles, strict=True):
        axes.plot(sizes, [np.mean(each) for each in values], style, color=colour, label=way)
        axes.fill_between(sizes, [min(e) for e in values], [max(e) for e in values], color=colour, alpha=0.15)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("training molecules")
    axes.set_ylabel("energy error on unseen molecules, meV")
    axes.set_title(f"OrbitalGNN on GFN1-xTB, {METHOD.label}: mean and range over seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn


if __name__ == "__main__":
    typer.run(main)
