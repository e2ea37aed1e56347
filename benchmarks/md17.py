"""MD17 table: our networks on water, ethanol, malondialdehyde and uracil, and the published ones trained on labels.

    python benchmarks/md17.py --minutes 10 --molecules water,ethanol            # two cores
    python benchmarks/md17.py --minutes 60 --batch 32 --qpt-preset base --qpt-precision bfloat16   # a GPU

Writes `results/md17-XC-MOLECULES.json` and `.md`. Errors are measured on geometries of an independent GFN2-xTB
trajectory at 500 K, on grid level 3.
"""

import pathlib
from typing import Annotated

import typer

from qptlab import tables
from qptlab.benchmarking import bench, studies
from qptlab.benchmarking.studies import Setting, Study
from qptlab.models.equivariant import EquivariantConfig
from qptlab.models.qpt import QPTConfig
from qptlab.system.method import Method
from qptlab.training.config import TrainConfig

MOLECULES = ("water", "ethanol", "malondialdehyde", "uracil")

PUBLISHED = {
    "SchNOrb": {"fock": (165.4, 187.4, 191.1, 227.8)},
    "PhiSNet": {"fock": (17.59, 12.15, 12.32, 10.73)},
    "QHNet": {"fock": (10.36, 12.78, 11.97, 9.96), "levels": (36.2, 51.8, 51.5, 66.8)},
    "SPHNet": {"fock": (23.18, 21.02, 20.67, 19.36)},
    "HELM": {"fock": (9.33, 5.79, 4.86, 3.61)},
    "QHFlow": {"fock": (4.93, 5.33, 3.80, 3.68)},
    "QPT (paper), 31 h on uracil": {"fock": (None, None, None, 39.46), "levels": (None, None, None, 409.21),
                                    "energy": (None, None, None, 0.524)},
}
"""Errors of the Fock matrix and of occupied orbital energies in µHa, of the energy in meV. The paper's QPT has B3LYP
with VWN5 and no labels; all others were trained on labels, PBE/def2-SVP."""

LEVELS_MEV = (10.0, 1.0, 0.1, 0.01)


def main(
    molecules: Annotated[str, typer.Option(help="Built-in names or SMILES, with commas.")] = ",".join(MOLECULES),
    minutes: Annotated[float, typer.Option(help="Time of each training.")] = 10.0,
    xc: Annotated[str, typer.Option(help="b3lyp5, as in the QPT paper, or pbe, as in the other papers.")] = "b3lyp5",
    basis: str = "def2-svp",
    iterations: Annotated[int, typer.Option(help="DFT iterations after the network.")] = 2,
    batch: int = 4,
    qpt_preset: Annotated[str, typer.Option(help="Preset of the paper's network in its frame.")] = "micro",
    qpt_precision: str = "float32",
    both: Annotated[bool, typer.Option(help="Train the paper's network in its frame, too.")] = True,
    seeds: int = 1,
) -> None:
    """Train, measure, and write the table."""
    method, train = Method(xc, basis, 3), TrainConfig(batch=batch)
    settings = [Setting("Equivariant Transformer", EquivariantConfig(iterations=iterations), train)]
    qpt = f"--qpt-preset {qpt_preset} --qpt-precision {qpt_precision}"
    if both:
        settings.append(Setting("QPT", QPTConfig(qpt_preset, qpt_precision, iterations=iterations), train))
    folder = pathlib.Path(__file__).parent / "results"
    command = (f"python benchmarks/md17.py --molecules {molecules} --minutes {minutes:g} --xc {xc} --basis {basis} "
               f"--iterations {iterations} --batch {batch} {qpt if both else '--no-both'} --seeds {seeds}")
    rows = []
    for molecule in molecules.split(","):
        for row in studies.measure(Study("", settings, (molecule,)), method, minutes, seeds):
            rows.append({"molecule": molecule, **row})
            record = {"command": command, "machine": bench.machine(), "rows": rows}
            bench.keep(folder, f"md17-{xc}-{molecules.replace(',', '-')}", record, _page(command, method, rows))
            typer.echo(_table(rows))


def _page(command: str, method: Method, rows: list[dict]) -> str:
    """Return the table and its description."""
    return "\n".join([
        "# MD17", "", f"    {command}", "", bench.describe(bench.machine()), "",
        f"Ours: {method.label}, grid level {method.grid_level} (PySCF's pruned grid), no labels; against converged "
        f"PySCF with exact integrals, on {studies.TEST_GEOMETRIES} geometries of an independent GFN2-xTB trajectory "
        "at 500 K. Published: PBE/def2-SVP, trained on labels, on MD17's geometries; the paper's QPT: B3LYP with "
        "VWN5, no labels. Only rows of the same functional can be compared. Grid pruning and PySCF's change of "
        "`b3lyp` in version 2.3 change a Fock matrix by some 2 µHa.", "", _table(rows), "",
    ])


def _table(rows: list[dict]) -> str:
    """Return our rows, those of the baselines, and the published ones."""
    titles = ["", "molecule", "energy, meV", "largest", "Fock, µHa", "occupied levels, µHa", "orbital similarity",
              *(f"s to {level:g} meV" for level in LEVELS_MEV)]
    lines = []
    for row in rows:
        reached = [next((f"{s:.0f}" for s, error in row["curve"] if error <= level), "–") for level in LEVELS_MEV]
        title = f"{row['setting']}, seed {row['seed']}, {row['seconds'] / 60:.0f} min"
        lines.append(_cells(title, row["molecule"], row, reached))
        for name, key in (("no network", "no_network"), ("PySCF, same Fock builds", "pyscf_same_fock_builds")):
            lines.append(_cells(name, row["molecule"], row["baselines"][key], [""] * len(LEVELS_MEV)))
    for title, figures in PUBLISHED.items():
        for index, molecule in enumerate(MOLECULES):
            energy, fock, levels = (figures.get(key, (None,) * 4)[index] for key in ("energy", "fock", "levels"))
            if any(row["molecule"] == molecule for row in rows) and fock is not None:
                lines.append([title, molecule, energy or "", "", fock, levels or "", "", *[""] * len(LEVELS_MEV)])
    return tables.table(titles, lines, text_columns=2)


def _cells(title: str, molecule: str, errors: dict[str, float], times: list[str]) -> list[str]:
    """Return the cells of a row with errors."""
    names = ("energy_mae_mev", "energy_max_mev", "fock_mae_uha", "mo_energy_mae_uha")
    return [title, molecule, *(f"{errors[name]:.3g}" for name in names), f"{errors['mo_cosine']:.6f}", *times]


if __name__ == "__main__":
    typer.run(main)
