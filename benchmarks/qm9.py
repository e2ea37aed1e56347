"""One model of many molecules, trained on geometries of QM9 without labels, on molecules that it never saw.

    qptlab train qm9:max_heavy=5,split=random-train --xc b3lyp5 --basis def2-svp --grid-level 3 --eri fitted \
        --sampler modes -n 2 --scheme response --train-iterations 0 --minutes 60 --out runs/qm9
    python benchmarks/qm9.py runs/qm9 [--larger 20] [--forces 3] [--auxbasis etb-1.8] [--ship qm9-small]
    python benchmarks/qm9.py qm9-small [--larger 20]

Tests on the molecules of QH9's random split (Yu et al. 2023, arXiv:2306.09549) that are not in its training part and
have up to 5 heavy atoms; on molecules drawn from its test by size, with 23 atoms or more; on closed-shell ions; and
on conformers of butan-1-ol. Geometries are those of QM9; those of ions and conformers are found as for SMILES.
References are converged PySCF with exact integrals, kept in the user's cache: it takes an hour to make them. Writes
`results/qm9.json` and `.md` after each molecule. With `--ship NAME`, the model with its card and checksum is written
into `qptlab/pretrained`, from where `qptlab.load(NAME)` reads it. For a model that was shipped so, the second command
continues: the rows that `results/qm9.json` has are kept, the others are measured, and the card is written anew.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import platformdirs
import pyscf
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.dft import response as dft_response
from qptlab.dft.properties import dipole_debye
from qptlab.evaluation import reference
from qptlab.evaluation.reference import Reference
from qptlab.models.loading import PRETRAINED
from qptlab.models.systems import make_systems
from qptlab.units import BOHR_ANGSTROM, HARTREE_MEV, significant

IONS = ("[NH4+]", "C[NH3+]", "C[O-]", "[O-]C=O", "[C-]#N", "CC(=O)[O-]")
REFUSED = ("[CH3]", "[O]N=O", "CS", "CCl")
"""Two radicals, and two molecules with elements that the model has not seen."""
ITERATIONS = (0, 2)
CONFORMERS, CONFORMER_SEED = 5, 20_240_206

PUBLISHED = (("QHNet", 77.7, 69.7), ("SPHNet", 45.5, 43.3), ("QHFlow", 23.0, 20.0), ("QHFlow2", 5.9, None))
"""Errors of Fock matrices of networks that learned from 104,664 labels, µHa: random split, split by size."""


def groups(larger: int) -> Iterator[tuple[str, list[ql.Molecule]]]:
    """Yield the title and the molecules of each group."""
    yield "not trained on, up to 5 heavy atoms", ql.read_molecules(
        ["qm9:max_heavy=5,split=random-test", "qm9:max_heavy=5,split=random-validation"]
    )
    yield "larger, 23 atoms or more", ql.read_molecules([f"qm9:split=size-test,count={larger}"])
    yield "ions", ql.read_molecules(IONS)
    butanol = ql.Molecule.from_smiles("CCCCO")
    frames = itertools.islice(ql.sample(butanol, ql.Sampling("conformers"), CONFORMER_SEED), CONFORMERS)
    yield "conformers", [
        dataclasses.replace(butanol.with_positions(frame), name=f"CCCCO, conformer {number}")
        for number, frame in enumerate(frames, start=1)
    ]


def kept(mol: ql.Molecule, method: ql.Method, cycles: int | None, *, response: bool = False) -> Reference:
    """Return a PySCF calculation from the cache, or compute it; converged for `cycles` of None."""
    key = json.dumps([
        mol.symbols, mol.positions.tolist(), mol.charge, method.to_dict(), cycles, pyscf.__version__,
        *([hashlib.sha256(pathlib.Path(dft_response.__file__).read_bytes()).hexdigest()] if response else []),
    ])
    folder = platformdirs.user_cache_path("qptlab") / "references"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as arrays:
            return Reference(**{name: arrays[name][()] for name in Reference._fields})
    if cycles is None:
        answer = reference.converged(mol, method)
    else:
        answer = reference.stopped(mol, method, cycles, response=response)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, **answer._asdict())
    return answer


def errors(answer: Any, truth: Reference, mol: ql.Molecule, method: ql.Method) -> dict[str, float]:
    """Return the errors of a prediction or of a stopped calculation."""
    homo, lumo = truth.nocc - 1, truth.nocc
    gap = (answer.mo_energy[lumo] - answer.mo_energy[homo]) - (truth.mo_energy[lumo] - truth.mo_energy[homo])
    dipole = dipole_debye(mol, method, answer.dm) - dipole_debye(mol, method, truth.dm)
    summary = reference.errors([answer], [truth])
    return {
        "energy_mev": float(reference.energy_errors_mev([answer], [truth])[0]), "fock_uha": summary.fock_mae_uha,
        "levels_uha": summary.mo_energy_mae_uha, "gap_mev": float(abs(gap)) * HARTREE_MEV,
        "dipole_debye": float(np.linalg.norm(dipole)),
    }


def measure(
    predictor: ql.CorrectionPredictor, larger: int, forces: int, finished: dict[tuple[str, str, int], dict]
) -> Iterator[dict]:
    """Yield a row for each molecule and number of iterations.

    Args:
      predictor: the model.
      larger: number of molecules of QH9's test by size.
      forces: number of molecules whose forces are tested.
      finished: rows that were measured earlier, by group, molecule and number of iterations.
    """
    method = predictor.method
    exact = dataclasses.replace(method, eri="auto", auxbasis=None)
    for title, mols in groups(larger):
        systems, _ = make_systems(mols, method, predictor.config, predictor.model.kinds)
        shared = ql.CorrectionPredictor(predictor.model, predictor.params, systems)
        models = {n: shared.with_iterations(n) for n in ITERATIONS}
        plain = {n: model.without_network() for n, model in models.items()}
        for index, mol in enumerate(mols):
            for n in ITERATIONS:
                row = finished.get((title, _name(mol), n))
                if row is None or "response" not in row:
                    truth = kept(mol, exact, None)
                    assert truth.converged, f"PySCF does not converge for {mol.name}"
                    row = row or _row(title, mol, models[n], plain[n], truth)
                    row["response"] = errors(kept(mol, exact, n + 1, response=True), truth, mol, method)
                    if index < forces and title.startswith("not trained") and "forces_mev_angstrom" not in row:
                        row["forces_mev_angstrom"] = _forces_error(models[n], mol, exact)
                yield row


def _row(
    title: str, mol: ql.Molecule, model: ql.CorrectionPredictor, plain: ql.CorrectionPredictor, truth: Reference
) -> dict:
    """Return the errors of the model and of both baselines."""
    began, n = time.perf_counter(), model.config.iterations
    prediction = model(mol)
    seconds = time.perf_counter() - began
    without = plain(mol)
    exact = dataclasses.replace(model.method, eri="auto", auxbasis=None)
    return {
        "group": title, "molecule": _name(mol), "formula": mol.formula, "n": n,
        "atoms": len(mol.symbols), "heavy": sum(symbol != "H" for symbol in mol.symbols),
        "seconds": seconds, "pyscf_seconds": float(truth.seconds),
        "estimate_mev": float(prediction.energy_error) * HARTREE_MEV,
        "no_network_estimate_mev": float(without.energy_error) * HARTREE_MEV,
        "model": errors(prediction, truth, mol, model.method),
        "no network": errors(without, truth, mol, model.method),
        "PySCF": errors(kept(mol, exact, n + 1), truth, mol, model.method),
    }


def _name(mol: ql.Molecule) -> str:
    return mol.name or mol.formula


def _forces_error(model: ql.CorrectionPredictor, mol: ql.Molecule, method: ql.Method) -> float:
    """Return the mean absolute error of a component of the forces, meV/Å; PySCF's follow the grid."""
    gradients = reference.calculation(mol, method, fitted=False).run().nuc_grad_method()
    gradients.grid_response = True
    difference = np.abs(model.forces(mol) + gradients.kernel()).mean()
    return float(difference) * HARTREE_MEV / BOHR_ANGSTROM


def refusals(predictor: ql.CorrectionPredictor) -> list[str]:
    """Return the message for each molecule that the model refuses."""
    messages = []
    for text in REFUSED:
        try:
            predictor(ql.Molecule.parse(text))
        except ql.InputError as error:
            messages.append(f"`{text}`: {error}")
        else:
            raise AssertionError(f"Expected a refusal of {text}, got a prediction.")
    return messages


def relative(rows: Sequence[dict], key: str) -> float | None:
    """Return the mean absolute error of energies relative to the mean of all molecules of the same formula, meV."""
    misses = []
    for formula in {row["formula"] for row in rows}:
        values = np.array([row[key]["energy_mev"] for row in rows if row["formula"] == formula])
        misses += list(values - values.mean()) if len(values) > 1 else []
    return float(np.abs(misses).mean()) if misses else None


def _mean(rows: Sequence[dict], pick: Callable[[dict], float]) -> str:
    """Return the mean of absolute values with its standard error."""
    values = np.abs([pick(row) for row in rows])
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{significant(values.mean())} ± {significant(error, 1)}"


def corrected(key: str) -> Callable[[dict], float]:
    """Return the function from a row to the error of the energy less its estimated error, meV.

    Args:
      key: "model" or "no network".
    """
    estimate = "estimate_mev" if key == "model" else "no_network_estimate_mev"
    return lambda row: row[key]["energy_mev"] - row[estimate]


def grouped(rows: Sequence[dict]) -> Iterator[tuple[str, int, list[dict]]]:
    """Yield title, number of iterations and rows of each group."""
    for title, n in dict.fromkeys((row["group"], row["n"]) for row in rows):
        yield title, n, [row for row in rows if (row["group"], row["n"]) == (title, n)]


def card(name: str, predictor: ql.CorrectionPredictor, record: dict) -> str:
    """Return the card of a model that comes with qptlab."""
    method = predictor.method
    symbols = [symbol for system in predictor.systems for symbol in sorted(set(system.molecule.symbols))]
    counts = collections.Counter(sorted(symbols))
    size = sum(leaf.size for leaf in jax.tree.leaves(predictor.params))
    lines = [
        [title, f"{n}", f"{len(members)}",
         *(_mean(members, lambda row, key=key: row[key]["energy_mev"]) for key in KEYS),
         _mean(members, lambda row: row["estimate_mev"]), _mean(members, corrected("model")),
         _mean(members, lambda row: row["model"]["fock_uha"])]
        for title, n, members in grouped(record["rows"])
    ]
    return "\n".join([
        f"# {name}", "",
        f"{record['molecules']} molecules of {', '.join(counts)} from QM9, {predictor.label}, without labels", "",
        f"- Network: {predictor.kind}, {size / 1e6:.2g} M parameters, {predictor.config.iterations} DFT iterations "
        f"after it. It knows the shells of {', '.join(counts)}.",
        f"- Level of theory: {predictor.label}, {method.eri} two-electron integrals (auxiliary basis "
        f"{method.auxbasis}; in the training PySCF's default, which is smaller), grid level {method.grid_level}; "
        "closed shells.",
        f"- Training: {record['updates']} updates in {record['minutes']:.0f} minutes on two CPU cores, on geometries "
        "that are displaced along normal modes. The loss is the energy of the predicted density; no SCF was "
        "converged. The command:", "", f"      {record['training']}", "",
        f"- Test: `{record['command']}`, in the repository. The table has means of absolute errors of energies, meV, "
        "with standard errors over the molecules, against converged PySCF with exact integrals.",
        "- Limits: the estimated error of each prediction (`energy_error`) is no bound, and does not contain the "
        "error of the density fit, the grid or the functional. Charged molecules, larger molecules and broken bonds "
        "are predicted with larger errors.",
        "- Molecules with each element: " + ", ".join(f"{symbol} {count}" for symbol, count in counts.items()) + ".",
        "- Licence: MIT, as qptlab. Geometries: QM9 (Ramakrishnan et al., Sci. Data 1, 140022, 2014).", "",
        tables.table(
            ["tested on", "n", "molecules", "model", "no network", "PySCF, as many Fock builds", "with ql.accelerate",
             "estimated", "less the estimate", "Fock matrix, µHa"], lines,
        ), "",
    ])


def ship(name: str, predictor: ql.CorrectionPredictor) -> None:
    """Write the model and its checksum into the package."""
    PRETRAINED.mkdir(exist_ok=True)
    path = PRETRAINED / f"{name}.h5"
    predictor.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")


def page(record: dict) -> str:
    """Return the tables and their description."""
    rows = [row for row in record["rows"] if "response" in row]  # the others are not finished
    lines, by_size, relatives = [], [], []
    for title, n, members in grouped(rows):
        ratios = [row["estimate_mev"] / abs(row["model"]["energy_mev"]) for row in members]
        lines.append([
            title, f"{n}", f"{len(members)}", _mean(members, lambda row: row["model"]["energy_mev"]),
            *(_mean(members, corrected(key)) for key in ("model", "no network")),
            *(_mean(members, lambda row, key=key: row[key]["energy_mev"]) for key in KEYS[1:]),
            *(_mean(members, lambda row, key=key: row["model"][key])
              for key in ("fock_uha", "levels_uha", "gap_mev", "dipole_debye")),
            *(_mean(members, lambda row, key=key: row[key]["fock_uha"]) for key in ("no network", "response")),
            f"{statistics.median(ratios):.2f}",
        ])
        for heavy in sorted({row["heavy"] for row in members}) if title != "ions" else []:
            some = [row for row in members if row["heavy"] == heavy]
            by_size.append([title, f"{n}", f"{heavy}", f"{len(some)}",
                            *(_mean(some, lambda row, key=key: row[key]["energy_mev"]) for key in KEYS)])
        if (miss := relative(members, "model")) is not None:
            others = [relative(members, key) or 0.0 for key in KEYS[1:]]
            relatives.append([title, f"{n}", *map(significant, (miss, *others))])
    forces = [row for row in rows if "forces_mev_angstrom" in row]
    forces_text = "; ".join(
        f"{row['molecule']}, n = {row['n']}: {significant(row['forces_mev_angstrom'])}" for row in forces
    )
    published = [[name, *("" if value is None else f"{value:g}" for value in values)] for name, *values in PUBLISHED]
    return "\n".join([
        "# One model of many molecules", "", f"    {record['training']}", f"    {record['command']}", "",
        bench.describe(record["machine"]), "", *([record["note"], ""] if record["note"] else []),
        f"{record['method']}; {record['molecules']} molecules in the training, {record['updates']} updates in "
        f"{record['minutes']:.0f} minutes. Predictions have the auxiliary basis {record['auxbasis']}; that of the "
        "training, PySCF's default, is half as large and has errors of 0.2 to 3 meV. No label and no SCF enter the "
        "training. Means of absolute errors against "
        "converged PySCF with exact integrals, with standard errors over the molecules. *No network* is the same "
        "guess and iterations without it. *PySCF* is its DIIS, stopped after as many Fock builds; "
        "*response* is PySCF with `ql.accelerate`, stopped likewise, without any network. *Less its estimate*: "
        "the estimated error is subtracted. The last column is a median, of the model.", "",
        tables.table(
            ["tested on", "n", "molecules", "energy, meV", "less its estimate, meV",
             "no network, less its estimate, meV", "no network, meV", "PySCF, meV", "response, meV",
             "Fock, µHa", "occupied levels, µHa", "gap, meV", "dipole, debye", "no network, Fock, µHa",
             "response, Fock, µHa", "estimate / error"], lines,
        ), "", f"Forces, mean error of a component, meV/Å: {forces_text or 'not measured'}.", "",
        "## Published errors of Fock matrices, with labels", "",
        tables.table(["network", "random split, µHa", "split by size, µHa"], published), "",
        "These are means over the whole test parts of QH9 (Yu et al. 2023, arXiv:2306.09549) after training on its "
        "labels.", "", "## By number of heavy atoms: energy, meV", "",
        tables.table(["tested on", "n", "heavy atoms", "molecules", *KEYS], by_size), "",
        "## Relative energies", "", "Errors of energies relative to the mean of the molecules of the same formula, "
        "meV: isomers, and conformers.", "", tables.table(["tested on", "n", *KEYS], relatives), "",
        "## Refused", "", *(f"- {message}" for message in record["refused"]), "",
    ])


KEYS = ("model", "no network", "PySCF", "response")
"""Keys of the errors of a row."""


def trained(run: str, auxbasis: str) -> tuple[ql.CorrectionPredictor, dict]:
    """Return the model of a run folder in another auxiliary basis, and the record of its training."""
    opened, model = ql.Run.open(run), ql.load(run)
    train = opened.train_config
    settings = train.loss, train.minutes, train.seed, train.sampling.sampler, train.iterations
    if settings != ("energy", 60.0, 0, "modes", 0):
        raise ql.InputError(f"Expected a run of the command in this script, got one with {settings}; train it so.")
    description = model.description()
    description["method"]["auxbasis"] = auxbasis
    progress = opened.metrics()[-1]
    return ql.CorrectionPredictor.rebuild(description, model.arrays()), {
        "training": TRAINING, "auxbasis": auxbasis, "updates": int(progress["step"]),
        "minutes": progress["seconds"] / 60, "note": "", "rows": [],
    }


def main(
    model: Annotated[str, typer.Argument(help="Run folder, or name of a model that was shipped from here.")],
    larger: Annotated[int, typer.Option(help="Number of molecules of QH9's test by size.")] = 20,
    forces: Annotated[int, typer.Option(help="Number of molecules whose forces are tested.")] = 3,
    auxbasis: Annotated[str, typer.Option(
        help="Auxiliary basis of a run's predictions; the training has PySCF's default, which is smaller."
    )] = "etb-1.8",
    note: Annotated[str, typer.Option(help="What else ran on the machine.")] = "",
    ship_as: Annotated[str | None, typer.Option("--ship", help="Name under which a run's model is shipped.")] = None,
) -> None:
    """Measure, and write the tables."""
    warnings.filterwarnings("ignore", message=".* is not among the .* molecules")
    results = pathlib.Path(__file__).parent / "results"
    name = model if model in ql.pretrained_models() else ship_as
    if name == model:
        predictor, record = ql.load(model), json.loads((results / "qm9.json").read_text())
    else:
        predictor, record = trained(model, auxbasis)
        if name is not None:
            ship(name, predictor)
    record |= {
        "command": f"python benchmarks/qm9.py {model} --larger {larger} --forces {forces}",
        "machine": bench.machine(), "method": predictor.label, "molecules": len(predictor.systems),
        "note": f"{record['note']} {note}".strip(), "refused": refusals(predictor),
    }
    finished = {(row["group"], row["molecule"], row["n"]): row for row in record["rows"]}
    rows, rest = [], dict(finished)
    for row in measure(predictor, larger, forces, finished):
        rows.append(row)
        rest.pop((row["group"], row["molecule"], row["n"]), None)
        record["rows"] = [*rows, *rest.values()]  # nothing is lost if this is interrupted
        bench.keep(results, "qm9", record, page(record))
        typer.echo(f"{row['group']}, {row['molecule']}, n = {row['n']}: "
                   + ", ".join(f"{key} {significant(row[key]['energy_mev'])}" for key in KEYS) + " meV")
    record["rows"] = rows
    bench.keep(results, "qm9", record, page(record))
    if name is not None:
        (PRETRAINED / f"{name}.md").write_text(card(name, predictor, record), encoding="utf-8")


TRAINING = (
    "qptlab train qm9:max_heavy=5,split=random-train --xc b3lyp5 --basis def2-svp --grid-level 3 --eri fitted "
    "--sampler modes -n 2 --scheme response --train-iterations 0 --minutes 60 --out runs/qm9"
)

if __name__ == "__main__":
    typer.run(main)
