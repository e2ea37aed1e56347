"""Cycles and time of PySCF's SCF with charge screening (`ql.accelerate`), from minao and from a model's density.

    python benchmarks/accelerate.py [--count 5] [--model qm9-small]

The molecules are those with which QH9 measures the acceleration of DFT (Yu et al. 2023, arXiv:2306.09549), at the
geometries of QM9, in def2-SVP and grid level 3, with PBE and B3LYP. All SCFs have PySCF's default criteria and exact
integrals, and run one after another on all cores. The plain one is PySCF's DIIS from minao. The screened ones start
from minao and from the density of a model of B3LYP (`ql.with_guess`), whose prediction counts as time. They run
twice: the first time may include a compilation. Rows are written after each molecule, to `results/accelerate.json`
and `.md`.
"""

import pathlib
import statistics
import time
import warnings
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

SAME_HARTREE = 1e-7


def measure(mol: ql.Molecule, xc: str, model: ql.Model) -> dict:
    """Return cycles and times of all SCFs."""

    def from_model(mf):
        return ql.with_guess(ql.accelerate(mf), model)

    plain = dft.RKS(libcint.pyscf_molecule(mol, ql.Method(xc, "def2-svp")))
    plain.xc, plain.verbose = xc, 0
    row = {"molecule": mol.name, "xc": xc, "nao": plain.mol.nao}
    for key, prepare in (
        ("pyscf", lambda mf: mf), ("cold", ql.accelerate), ("screened", ql.accelerate),
        ("cold_model", from_model), ("model", from_model),
    ):
        mf = prepare(plain.copy())
        began = time.perf_counter()
        mf.kernel()
        row |= {f"{key}_s": time.perf_counter() - began, f"{key}_cycles": int(mf.cycles)}
        if not mf.converged or abs(mf.e_tot - row.setdefault("energy", float(mf.e_tot))) > SAME_HARTREE:
            row["failed"] = key
    return row


def ratio(row: dict, key: str, unit: str) -> float:
    """Return the ratio of cycles or of seconds to those of PySCF's DIIS."""
    return row[f"{key}_{unit}"] / row[f"pyscf_{unit}"]


def table(rows: list[dict]) -> str:
    """Return a row for each molecule and functional, and the medians."""
    titles = ["molecule, functional", "AOs", "PySCF, cycles", "screened", "from the model", "PySCF, s", "screened",
              "from the model", "screened, first time", "from the model, first time", "screened / PySCF, time",
              "from the model / PySCF, time"]
    lines = [
        [f"{row['molecule']}, {row['xc'].upper()}", row["nao"], *(row[f"{key}_cycles"] for key in SCFS),
         *(f"{row[f'{key}_s']:.1f}" for key in (*SCFS, "cold", "cold_model")),
         *(f"{ratio(row, key, 's'):.2f}" for key in SCFS[1:])] for row in rows
    ]
    for xc in sorted({row["xc"] for row in rows}):
        members = [row for row in rows if row["xc"] == xc]
        cycles, seconds = (
            [f"{statistics.median(ratio(row, key, unit) for row in members):.2f}" for key in SCFS[1:]]
            for unit in ("cycles", "s")
        )
        lines.append([f"median ratio, {xc.upper()}", "", "1", *cycles, "1", *seconds, "", "", *seconds])
    return tables.table(titles, lines)


SCFS = ("pyscf", "screened", "model")
"""Keys of the SCFs in a row."""


def main(
    count: Annotated[int, typer.Option(help="Number of molecules, the first ones.")] = len(INDICES),
    model: Annotated[str, typer.Option(help="Model whose density is a guess.")] = "qm9-small",
) -> None:
    """Measure, and write the table."""
    rows, predictor = [], ql.load(model)
    warnings.filterwarnings("ignore", message=".* is not among the .* molecules")
    for mol in ql.datasets.qm9().take(INDICES[:count]):
        for xc in ("pbe", "b3lyp"):
            rows.append(measure(mol, xc, predictor))
            command = f"python benchmarks/accelerate.py --count {count} --model {model}"
            record = {"command": command, "machine": bench.machine(), "rows": rows}
            failed = [f"{row['molecule']}, {row['xc']}" for row in rows if "failed" in row]
            builds = predictor.config.iterations + 2
            bench.keep(pathlib.Path(__file__).parent / "results", "accelerate", record, "\n".join([
                "# Charge screening and a predicted guess in PySCF's SCF", "", f"    {command}", "",
                bench.describe(record["machine"]), "",
                f"def2-SVP, grid level 3, exact integrals; {len(rows)} of {2 * len(INDICES)} rows. All end at the "
                f"same energy, except: {'; '.join(failed) or 'none'}. A prediction of the model builds {builds} Fock "
                f"matrices in {predictor.label} with fitted integrals; they are part of the time, and not of the "
                "cycles.", "", table(rows), "",
            ]))
            typer.echo(rows[-1])


if __name__ == "__main__":
    typer.run(main)
