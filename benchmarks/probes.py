"""Properties of atoms and bonds that linear probes find in the representations of the equivariant network.

    python benchmarks/probes.py [--minutes 4] [--seeds 2]          # trains on every second small molecule
    python benchmarks/probes.py --model runs/small                 # a run folder of an equivariant network

The network is trained without labels. It is then evaluated on small molecules that it was not trained on. A ridge
regression reads the representations after the last layer: the mean over the shells of an atom or, for a bond, the
sum of those of both atoms and the mean of the pair representations of their shells. It predicts Löwdin charges and
Mayer bond orders of converged PySCF, and the hybridisation of C, N and O by RDKit (one regression for each of sp, sp2
and sp3; the largest value counts). The same regressions read the input features of the network, those of the network
before its training, and the elements alone. All of them know the elements.

The molecules are split into five folds. A probe is tested on the molecules of one fold and fitted to the others; its
penalty is chosen by a second split of these. Error bars are standard deviations over the folds and the seeds of the
training. Writes `results/probes.json`, `.md` and `.png`.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import haiku as hk
import jax
import numpy as np
import typer
from jaxtyping import Float, Int
from pyscf import gto

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.benchmarking.studies import COLOURS, small_molecules
from qptlab.dft.properties import charges
from qptlab.evaluation import reference
from qptlab.models import equivariant
from qptlab.models.systems import System
from qptlab.sampling.bonds import bonded_graph
from qptlab.training.label_free import LabelFree
from qptlab.training.loop import initial_state, train

METHOD = ql.Method("pbe", "sto-3g")
HYBRIDISATIONS = ("SP", "SP2", "SP3")
FOLDS = 5
PENALTIES = np.logspace(-4, 4, 9)
SEED, DISPLACEMENT_BOHR = 20_240_209, 0.05
"""Seed and standard deviation of the displacements of the nuclei, in addition to the reference geometry."""

PROPERTIES = {
    "charge": "Löwdin charge: R²", "hybridisation": "hybridisation of C, N, O: accuracy",
    "bond order": "Mayer bond order: R²",
}
SOURCES = {
    "element": "elements", "input": "input features", "untrained": "network before training", "trained": "network",
}
"""Representations that are probed, and their titles."""


class Data(NamedTuple):
    """Representations and one property of atoms or bonds.

    Attributes:
      features: representations by their key in `SOURCES`, each with a one-hot vector of the elements.
      values: the property; for hybridisation the index in `HYBRIDISATIONS`.
      molecules: index of the molecule of each atom or bond.
    """

    features: dict[str, Float[np.ndarray, "n width"]]
    values: Float[np.ndarray, " n"]
    molecules: Int[np.ndarray, " n"]


def representations(model: ql.CorrectionModel) -> Callable[..., tuple[Any, Any]]:
    """Return a function from parameters and features to the representations of shells and pairs of shells."""
    network = hk.without_apply_rng(
        hk.transform(lambda feats: equivariant.representations(feats, model.config, model.kinds))
    )
    return jax.jit(network.apply)


def atom_means(system: System, shells: Float[np.ndarray, "nshell width"]) -> Float[np.ndarray, "natm width"]:
    """Return the mean over the shells of each atom."""
    onehot = _atoms_of_shells(system)
    return onehot @ shells / onehot.sum(axis=1, keepdims=True)


def pair_means(
    system: System, pairs: Float[np.ndarray, "nshell nshell width"]
) -> Float[np.ndarray, "natm natm width"]:
    """Return the mean over the pairs of shells of two atoms."""
    onehot = _atoms_of_shells(system)
    onehot = onehot / onehot.sum(axis=1, keepdims=True)
    return np.einsum("iA,ABk,jB->ijk", onehot, pairs, onehot)


def _atoms_of_shells(system: System) -> Float[np.ndarray, "natm nshell"]:
    shells = equivariant.atoms_and_kinds(system.template)
    onehot = np.zeros((len(system.molecule.symbols), len(shells)))
    for index, (atom, kind) in enumerate(shells):
        onehot[atom, index] = bool(kind)  # no kind for padding
    return onehot


def hybridisations(mol: ql.Molecule) -> list[float]:
    """Return the index of the hybridisation of each atom; NaN for elements other than C, N and O, and for others."""
    names = [str(atom.GetHybridization()) for atom in bonded_graph(mol).GetAtoms()]
    return [
        HYBRIDISATIONS.index(name) if symbol in "CNO" and name in HYBRIDISATIONS else np.nan
        for symbol, name in zip(mol.symbols, names, strict=True)
    ]


def bond_orders(mol: ql.Molecule, dm: Float[np.ndarray, "nao nao"]) -> Float[np.ndarray, "natm natm"]:
    """Return Mayer's bond orders (1983, doi:10.1016/0009-2614(83)80005-0): sums of (DS)_μν (DS)_νμ."""
    built = gto.M(atom=list(zip(mol.symbols, mol.positions.tolist(), strict=True)), unit="Bohr", basis=METHOD.basis,
                  charge=mol.charge, verbose=0)
    product = dm @ built.intor("int1e_ovlp")
    atoms = np.array([label[0] for label in built.ao_labels(fmt=None)])
    onehot = (np.arange(len(mol.symbols))[:, None] == atoms).astype(float)
    return onehot @ (product * product.T) @ onehot.T


def collect(
    model: ql.CorrectionModel, systems: Sequence[System], params: dict[str, Any], each: int
) -> dict[str, Data]:
    """Return representations and properties of the atoms and bonds of molecules.

    Args:
      model: network.
      systems: molecules that the network was not trained on.
      params: parameters by key in `SOURCES`.
      each: number of geometries of each molecule; the first is the reference geometry.
    """
    elements = sorted({symbol for system in systems for symbol in system.molecule.symbols})
    onehots = dict(zip(elements, np.eye(len(elements)), strict=True))
    apply, rng = representations(model), np.random.default_rng(SEED)
    rows: dict[str, list] = {name: [] for name in PROPERTIES}
    for number, system in enumerate(systems):
        mol = system.molecule
        hybrids = hybridisations(mol)
        bonds = sorted(mol.bonds)
        symbols = np.array([onehots[symbol] for symbol in mol.symbols])
        for index in range(each):
            shift = DISPLACEMENT_BOHR * rng.normal(size=mol.positions.shape) * (index > 0)
            moved = mol.with_positions(mol.positions + shift)
            answer = reference.converged(moved, METHOD)
            if not answer.converged:
                continue
            feats = system.sample(system.host_integrals(moved.positions)).features
            states = {key: apply(value, feats) for key, value in params.items()}
            states["input"] = feats.tokens, feats.pairs
            atoms, pairs = {"element": symbols}, {"element": np.array([symbols[i] + symbols[j] for i, j in bonds])}
            for key, (x, z) in states.items():
                of_atoms, of_pairs = atom_means(system, np.asarray(x)), pair_means(system, np.asarray(z))
                atoms[key] = np.concatenate([symbols, of_atoms], axis=1)
                pairs[key] = np.array([
                    np.concatenate([symbols[i] + symbols[j], of_atoms[i] + of_atoms[j], of_pairs[i, j]])
                    for i, j in bonds
                ])
            orders = bond_orders(moved, answer.dm)
            rows["charge"].append((atoms, charges(moved, METHOD, answer.dm, "lowdin"), number))
            is_known = np.isfinite(hybrids)
            rows["hybridisation"].append(
                ({key: value[is_known] for key, value in atoms.items()}, np.array(hybrids)[is_known], number)
            )
            rows["bond order"].append((pairs, np.array([orders[bond] for bond in bonds]), number))
    return {name: _joined(parts) for name, parts in rows.items()}


def _joined(parts: Sequence[tuple[dict[str, np.ndarray], np.ndarray, int]]) -> Data:
    parts = [part for part in parts if len(part[1])]
    features = {key: np.concatenate([part[0][key] for part in parts]) for key in parts[0][0]}
    molecules = np.concatenate([np.full(len(values), number) for _, values, number in parts])
    return Data(features, np.concatenate([part[1] for part in parts]), molecules)


def scores(data: Data, name: str, source: str) -> list[float]:
    """Return the score of a probe on each fold of molecules: accuracy for hybridisation, else R²."""
    x, is_class = data.features[source], name == "hybridisation"
    targets = np.eye(len(HYBRIDISATIONS))[data.values.astype(int)] if is_class else data.values[:, None]
    result = []
    for train_rows, test_rows in _folds(data.molecules):
        # The second split chooses the penalty without the fold that is tested.
        inner = list(_folds(data.molecules[train_rows]))
        losses = sum(
            _squared_errors(x[train_rows], targets[train_rows], first, second) for first, second in inner
        )
        penalty = PENALTIES[int(np.argmin(losses))]
        (predicted,) = _ridge(x[train_rows], targets[train_rows], x[test_rows], [penalty])
        truth = targets[test_rows]
        if is_class:
            result.append(float(np.mean(predicted.argmax(axis=1) == truth.argmax(axis=1))))
        else:
            result.append(float(1 - np.mean((predicted - truth) ** 2) / np.var(targets)))
    return result


def _folds(molecules: Int[np.ndarray, " n"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows to fit to and the rows to test on; the rows of a molecule stay together."""
    numbers = np.random.default_rng(SEED).permutation(np.unique(molecules))
    for tested in np.array_split(numbers, FOLDS):
        is_tested = np.isin(molecules, tested)
        yield np.flatnonzero(~is_tested), np.flatnonzero(is_tested)


def _squared_errors(
    x: Float[np.ndarray, "n width"], y: Float[np.ndarray, "n target"], fitted: Int[np.ndarray, " a"],
    tested: Int[np.ndarray, " b"],
) -> Float[np.ndarray, " penalty"]:
    return np.array([
        np.sum((predicted - y[tested]) ** 2) for predicted in _ridge(x[fitted], y[fitted], x[tested], PENALTIES)
    ])


def _ridge(
    x: Float[np.ndarray, "n width"], y: Float[np.ndarray, "n target"], test: Float[np.ndarray, "m width"],
    penalties: Sequence[float] | np.ndarray,
) -> Iterator[Float[np.ndarray, "m target"]]:
    """Yield the predictions of ridge regressions; features are standardised by those that are fitted to."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-6 * (1 + np.abs(mean)), spread, np.inf)  # a constant feature does not count
    left, values, right = np.linalg.svd((x - mean) / spread, full_matrices=False)
    projected, centre = left.T @ (y - y.mean(axis=0)), y.mean(axis=0)
    for penalty in penalties:
        weights = right.T @ ((values / (values**2 + penalty))[:, None] * projected)
        yield (test - mean) / spread @ weights + centre


def trained_on(
    mols: Sequence[ql.Molecule], config: ql.EquivariantConfig, minutes: float, seed: int
) -> tuple[ql.CorrectionModel, dict[str, Any]]:
    """Return a network, with its parameters before and after a training on molecules."""
    objective = LabelFree.of(mols, METHOD, config)
    settings = ql.TrainConfig(minutes=minutes, seed=seed)
    start = state = initial_state(objective, settings)
    for state, _ in train(objective, settings, start):  # noqa: B007 - the last state is the result
        pass
    return objective.model, {"untrained": start.params, "trained": state.average}


def loaded(path: pathlib.Path) -> tuple[ql.CorrectionModel, dict[str, Any], list[ql.Molecule]]:
    """Return the network of a run folder, its parameters before and after the training, and its molecules."""
    predictor = ql.load(path)
    if predictor.kind != "equivariant" or predictor.method.basis != METHOD.basis or predictor.method.xc != METHOD.xc:
        raise ql.InputError(
            f"Expected an equivariant network in {METHOD.label}, got {predictor.kind} in {predictor.label}; use one "
            "of qptlab train --xc pbe --basis sto-3g."
        )
    objective = LabelFree(predictor.model, predictor.systems)
    start = initial_state(objective, ql.TrainConfig())
    return predictor.model, {"untrained": start.params, "trained": predictor.params}, list(objective.molecules)


def probed_systems(
    model: ql.CorrectionModel, mols: Sequence[ql.Molecule], known: Sequence[ql.Molecule]
) -> list[System]:
    """Return the molecules that the network was not trained on and whose elements it knows."""
    elements = {kind.split()[0] for kind in model.kinds}
    unseen = [
        mol for mol in mols if set(mol.symbols) <= elements and not any(len(mol.orders(other)) for other in known)
    ]
    return ql.make_systems(unseen, METHOD, model.config, model.kinds)[0]


def main(
    minutes: Annotated[float, typer.Option(help="Time of each training.")] = 4.0,
    seeds: int = 2,
    model: Annotated[pathlib.Path | None, typer.Option(help="Run folder; no training then.")] = None,
    each: Annotated[int, typer.Option(help="Geometries of each molecule.")] = 3,
    preset: str = "base",
    limit: Annotated[int, typer.Option(help="Number of small molecules, half of them to train on.")] = 100,
) -> None:
    """Train, probe, and write the table and the plot."""
    source = f"--model {model}" if model else f"--minutes {minutes:g} --seeds {seeds} --preset {preset}"
    command = f"python benchmarks/probes.py {source} --each {each} --limit {limit}"
    mols = ql.read_molecules(small_molecules()[:limit])
    rows = []
    for seed in range(1 if model else seeds):
        if model:
            network, params, known = loaded(model)
        else:
            known = mols[::2]
            network, params = trained_on(known, ql.EquivariantConfig(preset), minutes, seed)
        systems = probed_systems(network, mols, known)
        for name, data in collect(network, systems, params, each).items():
            for source in SOURCES:
                folds = scores(data, name, source)
                rows.append({"seed": seed, "property": name, "source": source, "scores": folds,
                             "n": len(data.values), "molecules": len(systems)})
                typer.echo(f"seed {seed}, {PROPERTIES[name]}, {SOURCES[source]}: {np.mean(folds):.3f}", err=True)
        record = {"command": command, "machine": bench.machine(), "method": METHOD.label, "rows": rows}
        folder = pathlib.Path(__file__).parent / "results"
        bench.keep(folder, "probes", record, page(record))
        figure(rows).savefig(folder / "probes.png", dpi=120)
    typer.echo(_table(rows))


def _scores_of(rows: Sequence[dict], name: str, source: str) -> list[float]:
    return list(itertools.chain(
        *(row["scores"] for row in rows if (row["property"], row["source"]) == (name, source))
    ))


def _table(rows: Sequence[dict]) -> str:
    """Return the mean scores, with standard deviations over folds and seeds."""
    lines = []
    for source, title in SOURCES.items():
        values = [_scores_of(rows, name, source) for name in PROPERTIES]
        lines.append([title, *(f"{np.mean(folds):.3f} ± {np.std(folds):.3f}" for folds in values)])
    return tables.table(["probe reads", *PROPERTIES.values()], lines)


def page(record: dict) -> str:
    """Return the table and its description."""
    rows = record["rows"]
    seeds = {row["seed"] for row in rows}
    numbers = {row["property"]: row["n"] for row in rows}
    counts = ", ".join(f"{number} for {name}" for name, number in numbers.items())
    text = (
        f"{record['method']}. {rows[0]['molecules']} molecules that the network was not trained on; samples: "
        f"{counts}. Means and standard deviations over {FOLDS} folds of molecules and {len(seeds)} seed(s). R² is "
        "relative to the variance of all samples. Charges and bond orders are those of converged PySCF; the network "
        "sees only the matrices of the guess density. Every probe knows the elements."
    )
    return "\n".join([
        "# Linear probes of the shells' representations", "", f"    {record['command']}", "",
        bench.describe(record["machine"]), "", text, "", _table(rows), "", "![probes](probes.png)", "",
    ])


def figure(rows: Sequence[dict]) -> Any:
    """Return a figure with a panel for each property: mean, standard deviation, and the score of each fold."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(13, 4.8), layout="constrained")
    for axes, (name, title) in zip(drawn.subplots(1, len(PROPERTIES)), PROPERTIES.items(), strict=True):
        for y, (source, colour) in enumerate(zip(SOURCES, COLOURS, strict=False)):
            values = _scores_of(rows, name, source)
            axes.barh(y, np.mean(values), xerr=np.std(values), color=colour, alpha=0.7, capsize=4)
            axes.plot(values, [y] * len(values), ".", color="black", markersize=4)
        axes.set_yticks(range(len(SOURCES)), SOURCES.values() if axes is drawn.axes[0] else [""] * len(SOURCES))
        axes.invert_yaxis()
        axes.set_xlim(min(0.0, 1.05 * min(min(row["scores"]) for row in rows if row["property"] == name)), 1.02)
        axes.set_xlabel(title.split(": ")[1])
        axes.set_title(title.split(": ")[0])
        axes.grid(alpha=0.3, axis="x")
    drawn.suptitle(f"Linear probes on {rows[0]['molecules']} molecules that the network was not trained on "
                   "(bars: means and standard deviations; points: folds and seeds)")
    return drawn


if __name__ == "__main__":
    typer.run(main)
