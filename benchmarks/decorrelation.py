"""How independent test geometries of dynamics are: the autocorrelation of interatomic distances.

    python benchmarks/decorrelation.py [--frames 1600]

*Trajectory*: frames of one stream for training, GFN2-xTB dynamics at 500 K; the autocorrelation of each interatomic
distance is averaged over all pairs of atoms. *Tests*: the correlation of successive geometries of `qptlab sample`,
which keeps every eighth frame. Those of a molecule with conformers come from trajectories of their own. The standard
error of a correlation of independent geometries is one over the root of their number. Writes
`results/decorrelation.json` and `.md`.
"""

import itertools
import pathlib
from typing import Annotated

import numpy as np
import typer
from jaxtyping import Float

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.random_streams import Purpose
from qptlab.sampling.dynamics import HELD_OUT_SEGMENT, STEP_FS, STEPS_PER_FRAME
from qptlab.units import significant

MOLECULES = ("water", "ethanol", "uracil")
LAGS = (1, 4, 8, 20, 40, 80)
"""Numbers of frames."""
FRAME_FS = STEP_FS * STEPS_PER_FRAME


def distances(mol: ql.Molecule, purpose: Purpose, count: int, stride: int) -> Float[np.ndarray, "count npair"]:
    """Return the interatomic distances of every `stride`-th geometry of a stream, bohr."""
    stream = ql.sample(mol, ql.Sampling("md"), [0] * 3, purpose=purpose)
    rows, cols = np.triu_indices(len(mol.symbols), k=1)
    frames = np.array(list(itertools.islice(stream, 0, count * stride, stride)))
    return np.linalg.norm(frames[:, rows] - frames[:, cols], axis=-1)


def autocorrelation(series: Float[np.ndarray, "count npair"], lag: int) -> float:
    """Return the mean over all pairs of atoms of the autocorrelation of their distance."""
    away = series - series.mean(axis=0)
    return float(np.mean((away[lag:] * away[:-lag]).mean(axis=0) / away.var(axis=0)))


def main(frames: Annotated[int, typer.Option(help="Number of frames of each trajectory.")] = 1600) -> None:
    """Measure, and write the table."""
    rows = []
    for name in MOLECULES:
        mol = ql.Molecule.parse(name)
        trajectory = distances(mol, Purpose.TRAINING_GEOMETRIES, frames, 1)
        tests = distances(mol, Purpose.TEST_GEOMETRIES, frames // HELD_OUT_SEGMENT, HELD_OUT_SEGMENT)
        rows.append({
            "molecule": name, "trajectory": {lag: autocorrelation(trajectory, lag) for lag in LAGS},
            "tests": autocorrelation(tests, 1), "n_tests": len(tests),
        })
        typer.echo(f"{name}: done")
    record = {"command": f"python benchmarks/decorrelation.py --frames {frames}", "machine": bench.machine(),
              "rows": rows}
    lines = [
        [row["molecule"], *(significant(value, 2) for value in row["trajectory"].values()),
         f"{significant(row['tests'], 2)} ± {significant(row['n_tests'] ** -0.5, 1)}"] for row in rows
    ]
    titles = ["molecule", *(f"{lag * FRAME_FS:g} fs" for lag in LAGS), "tests, from one to the next"]
    text = [
        "# Autocorrelation of geometries", "", f"    {record['command']}", "", bench.describe(record["machine"]), "",
        "Mean autocorrelation of all interatomic distances in GFN2-xTB dynamics at 500 K: within trajectories for "
        f"training ({frames} frames, a new trajectory after 200), and from one geometry of `qptlab sample` to the "
        "next. Molecules with conformers have a trajectory for each test geometry.", "",
        tables.table(titles, lines), "",
    ]
    bench.keep(pathlib.Path(__file__).parent / "results", "decorrelation", record, "\n".join(text))


if __name__ == "__main__":
    typer.run(main)
