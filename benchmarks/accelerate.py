"""Cycles and time of PySCF's SCF with charge screening (`ql.accelerate`), compared with PySCF's own DIIS.

    python benchmarks/accelerate.py [--count 5]

The molecules are those with which QH9 measures the acceleration of DFT (Yu et al. 2023, arXiv:2306.09549), at the
geometries of QM9, in def2-SVP and grid level 3, with PBE and B3LYP. All SCFs start from minao, with PySCF's default
criteria and exact integrals, one after another on all cores. The screened SCF runs twice: the first time may include
a compilation. Rows are written after each molecule. Writes `results/accelerate.json` and `.md`.
"""

import pathlib
import statistics
import time
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


def measure(mol: ql.Molecule, xc: str) -> dict:
    """Return cycles and times of both programs."""
    plain = dft.RKS(libcint.pyscf_molecule(mol, ql.Method(xc, "def2-svp")))
    plain.xc, plain.verbose = xc, 0
    row = {"molecule": mol.name, "xc": xc, "nao": plain.mol.nao}
    for key, prepare in (("pyscf", lambda mf: mf), ("cold", ql.accelerate), ("screened", ql.accelerate)):
        mf = prepare(plain.copy())
        began = time.perf_counter()
        mf.kernel()
        row |= {f"{key}_s": time.perf_counter() - began, f"{key}_cycles": int(mf.cycles)}
        if not mf.converged or abs(mf.e_tot - row.setdefault("energy", float(mf.e_tot))) > SAME_HARTREE:
            row["failed"] = key
    return row


def table(rows: list[dict]) -> str:
    """Return a row for each molecule and functional, and the medians."""
    titles = ["molecule, functional", "AOs", "PySCF, cycles", "screened, cycles", "ratio", "PySCF, s", "screened, s",
              "with compilation, s", "ratio"]
    lines = [
        [f"{row['molecule']}, {row['xc'].upper()}", row["nao"], row["pyscf_cycles"], row["screened_cycles"],
         f"{row['screened_cycles'] / row['pyscf_cycles']:.2f}", f"{row['pyscf_s']:.1f}", f"{row['screened_s']:.1f}",
         f"{row['cold_s']:.1f}", f"{row['screened_s'] / row['pyscf_s']:.2f}"] for row in rows
    ]
    for xc in sorted({row["xc"] for row in rows}):
        members = [row for row in rows if row["xc"] == xc]
        cycles, seconds = (
            statistics.median(row[f"screened_{key}"] / row[f"pyscf_{key}"] for row in members)
            for key in ("cycles", "s")
        )
        lines.append([f"median, {xc.upper()}", "", "", "", f"{cycles:.2f}", "", "", "", f"{seconds:.2f}"])
    return tables.table(titles, lines)


def main(count: Annotated[int, typer.Option(help="Number of molecules, the first ones.")] = len(INDICES)) -> None:
    """Measure, and write the table."""
    rows = []
    for mol in ql.datasets.qm9().take(INDICES[:count]):
        for xc in ("pbe", "b3lyp"):
            rows.append(measure(mol, xc))
            command = f"python benchmarks/accelerate.py --count {count}"
            record = {"command": command, "machine": bench.machine(), "rows": rows}
            failed = [f"{row['molecule']}, {row['xc']}" for row in rows if "failed" in row]
            bench.keep(pathlib.Path(__file__).parent / "results", "accelerate", record, "\n".join([
                "# Charge screening in PySCF's SCF", "", f"    {command}", "",
                bench.describe(record["machine"]), "",
                f"def2-SVP, grid level 3, exact integrals; {len(rows)} of {2 * len(INDICES)} rows. Both end at the "
                f"same energy, except: {'; '.join(failed) or 'none'}.", "", table(rows), "",
            ]))
            typer.echo(rows[-1])


if __name__ == "__main__":
    typer.run(main)
