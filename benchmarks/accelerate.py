"""Fock matrices and time of PySCF's SCF with the electrons' response (`ql.accelerate`), from minao and from a model.

    python benchmarks/accelerate.py [--count 5] [--model qm9-small] [--note "..."]
    python benchmarks/accelerate.py --harder [--note "..."]

The first command has the molecules with which QH9 measures the acceleration of DFT (Yu et al. 2023,
arXiv:2306.09549), at the geometries of QM9, in def2-SVP. The SCFs start from minao and from the density of a model of
B3LYP (`ql.with_guess`), without and with its DFT iterations. The second has harder cases, at geometries of SMILES:
anions, small gaps, radicals (UKS) and def2-TZVP, without a model. All SCFs have PySCF's default criteria, exact
integrals and grid level 3, and run one after another. Rows are written after each SCF, to `results/accelerate.json`
and `.md`, or to `results/accelerate-harder.json` and `.md`.
"""

import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from pyscf import dft

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.dft import libcint

INDICES = (
    120_427, 112_849, 119_623, 94_743, 6_359, 116_674, 117_736, 121_033, 119_791, 75_754, 90_690, 119_806,
    102_816, 93_101, 10_488, 92_359, 120_776, 78_893, 116_137, 116_515, 94_641, 62_289, 76_227, 98_154,
    116_330,
)
"""Positions in QM9 of QH9's molecules."""

HARDER = {
    "def2-svp": (
        "[OH-]", "[F-]", "[C-]#N", "[O-]N=O", "CC(=O)[O-]", "[NH2-]", "C[O-]", "C[S-]", "[CH3-]", "[O-]c1ccccc1",
        "[O-][O+]=O", "O=C1C=CC(=O)C=C1", "O=[N+]([O-])c1ccccc1", "c1ccc2cccc2cc1", "CN=O", "N#CC(C#N)=C(C#N)C#N",
        "[CH3]", "[OH]", "[O]N=O", "[O][O]", "CO[O]", "[CH2]C=C", "[O]c1ccccc1", "[NH2]", "[CH2]",
    ),
    "def2-tzvp": ("CC(C)=O", "c1ccncc1", "CS(C)=O", "CBr", "CC(=O)[O-]"),
}
"""SMILES by basis."""

SAME_HARTREE = 1e-7

def molecules(count: int, *, harder: bool) -> Iterator[tuple[ql.Molecule, str]]:
    """Yield molecules and basis sets."""
    if not harder:
        yield from ((mol, "def2-svp") for mol in ql.datasets.qm9().take(INDICES[:count]))
        return
    for basis, texts in HARDER.items():
        yield from ((ql.Molecule.parse(text), basis) for text in texts[:count])


def measure(
    mol: ql.Molecule, xc: str, basis: str, schemes: dict[str, tuple[int, Callable]], turn: int
) -> dict:
    """Return cycles, Fock matrices, times and energies of all SCFs; the first one changes from turn to turn."""
    mole = libcint.pyscf_molecule(mol, ql.Method(xc, basis))
    results = {}
    names = list(schemes)
    for key in names[turn % len(names) :] + names[: turn % len(names)]:
        hidden, prepare = schemes[key]
        began = time.perf_counter()
        plain = (dft.UKS if mol.spin else dft.RKS)(mole, xc=xc)
        plain.verbose = 0
        mf = prepare(plain)
        mf.kernel()
        results[key] = {
            "seconds": time.perf_counter() - began, "cycles": int(mf.cycles), "energy": float(mf.e_tot),
            "builds": int(mf.cycles) + 1 + bool(mf.converged) + hidden, "converged": bool(mf.converged),
        }
    return {"molecule": mol.name or mol.formula, "xc": xc, "basis": basis, "nao": mole.nao,
            "schemes": {key: results[key] for key in schemes}}


def ratio(row: dict, key: str, unit: str) -> float:
    """Return the ratio of cycles, Fock matrices or seconds to those of PySCF's own SCF."""
    return row["schemes"][key][unit] / row["schemes"]["PySCF"][unit]


def remark(row: dict, key: str) -> str:
    """Return how an SCF ends, if not at the energy of PySCF's own."""
    usual, found = row["schemes"]["PySCF"], row["schemes"][key]
    difference = found["energy"] - usual["energy"]
    if not found["converged"]:
        return f"{key} does not converge"
    if usual["converged"] and abs(difference) > SAME_HARTREE:
        return f"{key} ends at another state, {difference:+.1e} hartree"
    return ""


def remarks(row: dict) -> str:
    """Return the remarks on all SCFs of a row."""
    return "; ".join(text for key in row["schemes"] if (text := remark(row, key)))


def table(rows: list[dict]) -> str:
    """Return a row for each molecule and functional, and the medians."""
    schemes = list(rows[0]["schemes"])
    titles = ["molecule", "method", "AOs", *(f"{key}, cycles" for key in schemes),
              *(f"{key}, s" for key in schemes), *(f"{key} / PySCF, time" for key in schemes[1:]), "remarks"]
    lines = [
        [f"`{row['molecule']}`", f"{row['xc'].upper()}/{row['basis']}", row["nao"],
         *(row["schemes"][key]["cycles"] for key in schemes),
         *(f"{row['schemes'][key]['seconds']:.1f}" for key in schemes),
         *(f"{ratio(row, key, 'seconds'):.2f}" for key in schemes[1:]), remarks(row)] for row in rows
    ]
    return tables.table(titles, lines, text_columns=2)


def summary(rows: list[dict]) -> str:
    """Return median and largest ratios of each functional, of the SCFs that end at one energy."""
    titles = ["functional", "scheme", "SCFs", "not converged, other state", "cycles", "Fock matrices", "largest",
              "time", "longest"]
    lines = []
    for xc in sorted({row["xc"] for row in rows}):
        both = [row for row in rows if row["xc"] == xc and row["schemes"]["PySCF"]["converged"]]
        for key in list(rows[0]["schemes"])[1:]:
            same = [row for row in both if not remark(row, key)]
            cycles, builds, seconds = (
                [ratio(row, key, unit) for row in same] for unit in ("cycles", "builds", "seconds")
            )
            numbers = (
                statistics.median(cycles), statistics.median(builds), max(builds), statistics.median(seconds),
                max(seconds),
            )
            left_out = len(both) - len(same)
            lines.append([xc.upper(), key, len(same), left_out, *(f"{number:.2f}" for number in numbers)])
    return tables.table(titles, lines, text_columns=2)


def main(
    count: Annotated[int, typer.Option(help="Number of molecules (of each basis), the first ones.")] = len(INDICES),
    model: Annotated[str, typer.Option(help="Model whose density is a guess.")] = "qm9-small",
    harder: Annotated[bool, typer.Option("--harder", help="Measure the harder cases, without a model.")] = False,
    note: Annotated[str, typer.Option(help="What else ran on the machine.")] = "",
) -> None:
    """Measure, and write the tables."""
    warnings.filterwarnings("ignore", message=".* is not among the .* molecules")
    schemes: dict[str, tuple[int, Callable]] = {"PySCF": (0, lambda mf: mf), "response": (0, ql.accelerate)}
    if not harder:
        predictor = ql.load(model)
        for n in sorted({0, predictor.config.iterations}):
            variant = predictor.with_iterations(n)
            schemes[f"model, n = {n}, and response"] = (
                n + 1, lambda mf, variant=variant: ql.with_guess(ql.accelerate(mf), variant)
            )
    name = "accelerate-harder" if harder else "accelerate"
    options = f"--harder --count {count}" if harder else f"--count {count} --model {model}"
    command = f"python benchmarks/accelerate.py {options}"
    title = f"# PySCF's SCF with the electrons' response{': harder cases' if harder else ', and from a model'}"
    rows: list[dict] = []
    first, basis = next(iter(molecules(count, harder=harder)))
    measure(first, "b3lyp", basis, schemes, 0)  # compiles, and loads what is loaded at the first use
    for mol, basis in molecules(count, harder=harder):
        for xc in ("pbe", "b3lyp"):
            rows.append(measure(mol, xc, basis, schemes, len(rows)))
            record = {"command": command, "machine": bench.machine(), "note": note, "rows": rows}
            bench.keep(pathlib.Path(__file__).parent / "results", name, record, "\n".join([
                title, "", f"    {command}", "", bench.describe(record["machine"]), "", *([note, ""] if note else []),
                f"PySCF's default criteria, grid level 3, exact integrals; {len(rows)} rows. *PySCF* starts from "
                "minao with its DIIS, *response* from minao with `ql.accelerate`; they take turns in being first. "
                "Ratios are to *PySCF*, of the SCFs that end at its energy. Fock matrices are those of the cycles, "
                "of the first density and of the check after convergence"
                + ("." if harder else ", and those of the model, which has its functional, B3LYP5, and fitted "
                   "integrals; the time of the prediction counts, its compilation does not, unless the molecule has "
                   "a new size."), "", "## Medians", "", summary(rows), "", "## All", "", table(rows), "",
            ]))
            found = rows[-1]["schemes"].items()
            typer.echo(f"{rows[-1]['molecule']}, {xc}: " + ", ".join(
                f"{key} {scf['cycles']} cycles, {scf['seconds']:.1f} s" for key, scf in found
            ) + f" {remarks(rows[-1])}")


if __name__ == "__main__":
    typer.run(main)
