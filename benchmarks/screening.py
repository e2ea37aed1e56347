"""Fock builds to convergence with charge screening, with DIIS and with PySCF; errors after few iterations; its scale.

    python benchmarks/screening.py [--count 10]

Molecules are built in or made from SMILES; anions, radicals and small gaps are among them. All programs start from
the `minao` guess and have equivalent thresholds. Fock builds include that of the guess. Errors of the first
iterations are those of densities, without a network: plain, with DIIS, with screening, and with both. `--count`
takes the first molecules only. Rows are written after each molecule, and a run that was stopped continues after the
last one. Writes `results/screening.json` and `.md`.
"""

import json
import math
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.dft.energy import commutator, density_from_fock, kohn_sham
from qptlab.dft.integrals import Integrals
from qptlab.dft.scf import COMMUTATOR_TOLERANCE, ENERGY_TOLERANCE, solve, start_density
from qptlab.dft.screening import SCALE, combination, screened, screening
from qptlab.evaluation import reference
from qptlab.units import HARTREE_MEV, significant

CASES = [
    # The first ten are small; each alternates pure and hybrid functionals.
    ("water", "pbe", "def2-svp"), ("water", "b3lyp", "def2-svp"), ("[OH-]", "pbe", "def2-svp"),
    ("[F-]", "b3lyp", "def2-svp"), ("[O-][O+]=O", "pbe", "sto-3g"), ("[O-][O+]=O", "b3lyp", "sto-3g"),
    ("[CH3]", "pbe", "sto-3g"), ("C=O", "b3lyp", "def2-svp"), ("ethanol", "pbe", "sto-3g"),
    ("CC(=O)[O-]", "b3lyp", "sto-3g"),
    # The other ones take longer.
    *((molecule, xc, basis) for molecule, basis in (
        ("ammonia", "def2-svp"), ("methane", "def2-svp"), ("[OH-]", "def2-tzvp"), ("water", "def2-tzvp"),
        ("[F-]", "def2-tzvp"), ("[Li]F", "def2-svp"), ("N#N", "def2-svp"), ("[C-]#[O+]", "def2-svp"),
        ("C#N", "def2-svp"), ("[C-]#N", "def2-svp"), ("[NH4+]", "def2-svp"), ("[OH]", "def2-svp"),
        ("[CH3]", "def2-svp"), ("C=C", "def2-svp"), ("C=O", "def2-tzvp"), ("CO", "def2-svp"),
        ("[O-][O+]=O", "def2-svp"), ("CC(=O)[O-]", "def2-svp"), ("C[N+](=O)[O-]", "def2-svp"),
        ("C(=O)N", "def2-svp"), ("ethanol", "def2-svp"), ("O=S=O", "def2-svp"), ("benzene", "sto-3g"),
        ("O=C1C=CC(=O)C=C1", "sto-3g"), ("[NH3+]CC(=O)[O-]", "sto-3g"), ("[NH3+]CC(=O)[O-]", "def2-svp"),
        ("uracil", "sto-3g"), ("uracil", "def2-svp"),
    ) for xc in ("pbe", "b3lyp")),
]
"""Molecule, functional and basis of each row."""

SCALES = (0.8, 0.9, 1.0)
ITERATIONS = 3
SCHEMES = {"plain": (False, False), "DIIS": (False, True), "screened": (True, False), "screened, DIIS": (True, True)}
"""Whether a scheme screens, and whether it combines Fock matrices."""

RESULTS = pathlib.Path(__file__).parent / "results"


@jax.jit
def next_density(fock: jax.Array, dm: jax.Array, ints: Integrals, scale: jax.Array) -> jax.Array:
    """Return the density of the screened Fock matrix, with a scale of the repulsion of shells."""
    model = screening(ints)
    return screened(fock, dm, ints, model._replace(gamma=model.gamma * scale / SCALE)).dm


@jax.jit
def build(dm: jax.Array, ints: Integrals) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return energy, Fock matrix and commutator of a density matrix."""
    state = kohn_sham(dm, ints)
    return state.terms.e_tot, state.fock, commutator(state.fock, dm, ints)


diagonalise = jax.jit(density_from_fock)


def course(
    ints: Integrals, converged: float, is_screened: bool, with_diis: bool, scale: float = SCALE
) -> list[float]:
    """Return the errors of the energy after 0, 1, … DFT iterations, meV."""
    dm, dms, focks, errors, energies = start_density(ints.dm_guess, ints), [], [], [], []
    for _ in range(ITERATIONS + 1):
        _, fock, error = build(dm, ints)
        for values, value in ((dms, dm), (focks, fock), (errors, error)):
            values.append(value)
        if with_diis and len(focks) > 1:
            weights = combination(jnp.stack(errors))
            fock, dm = (jnp.tensordot(weights, jnp.stack(matrices), axes=1) for matrices in (focks, dms))
        dm = next_density(fock, dm, ints, scale) if is_screened else diagonalise(fock, ints)
        energies.append(float(build(dm, ints)[0]))
    return [(energy - converged) * HARTREE_MEV for energy in energies]


def pyscf(mol: ql.Molecule, method: ql.Method, fitted: bool) -> dict[str, Any]:
    """Return Fock builds, seconds and energy of PySCF."""
    mf = reference.calculation(mol, method, fitted=fitted)
    # Its criterion is the norm of the gradient, which is above the largest element of the commutator.
    mf.conv_tol, mf.conv_tol_grad = ENERGY_TOLERANCE, COMMUTATOR_TOLERANCE * math.sqrt(mf.mol.nao)
    began = time.perf_counter()
    mf.kernel()
    return {"builds": int(mf.cycles) + 1, "diagonalisations": int(mf.cycles) + 1, "converged": bool(mf.converged),
            "seconds": time.perf_counter() - began, "energy_ha": float(mf.e_tot)}


def ours(ints: Integrals, is_screened: bool) -> dict[str, Any]:
    """Return Fock builds, diagonalisations, warm seconds and energy of an SCF."""
    jax.block_until_ready(solve(ints, is_screened=is_screened))
    began = time.perf_counter()
    result = jax.block_until_ready(solve(ints, is_screened=is_screened))
    return {"builds": int(result.cycles) + 1, "diagonalisations": int(result.diagonalisations),
            "converged": bool(result.converged), "seconds": time.perf_counter() - began,
            "energy_ha": float(result.energy), "gap_ha": result.gap}


def measure(name: str, xc: str, basis: str) -> dict[str, Any]:
    """Return the row of a molecule and a method."""
    mol, method = ql.Molecule.parse(name), ql.Method(xc, basis, grid_level=1)
    prepared = ql.template(mol, method)
    ints = prepared.build(mol.positions)
    solvers = {"diis": ours(ints, False), "screened": ours(ints, True)}
    lowest = min(row["energy_ha"] for row in solvers.values())
    return {
        "molecule": name, "formula": mol.formula, "charge": mol.charge, "spin": mol.spin, "xc": xc, "basis": basis,
        "nao": prepared.nao, "exchange": method.functional.exact_exchange,
        "solvers": solvers | {"pyscf": pyscf(mol, method, prepared.eri == "fitted")},
        "errors_mev": {scheme: course(ints, lowest, *options) for scheme, options in SCHEMES.items()},
        "scales": {f"{scale}": course(ints, lowest, True, False, scale) for scale in SCALES},
    }


def main(count: Annotated[int, typer.Option(help="Number of rows.")] = len(CASES), note: str = "") -> None:
    """Measure, and write the tables after each row."""
    command = "python benchmarks/screening.py" + (f" --count {count}" if count < len(CASES) else "")
    path = RESULTS / "screening.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {(row["molecule"], row["xc"], row["basis"]) for row in rows}
    for case in CASES[:count]:
        if case in known:
            continue
        rows.append(measure(*case))
        typer.echo(f"{case}: {rows[-1]['solvers']}", err=True)
        record = {"command": command, "note": note, "machine": bench.machine(), "rows": rows}
        bench.keep(RESULTS, "screening", record, page(record))


def page(record: dict) -> str:
    """Return the tables and their description."""
    rows = record["rows"]
    titles = ["molecule", "method", "AOs", "gap, hartree", "screened", "DIIS", "PySCF",
              "diagonalisations, screened", "screened, s", "DIIS, s", "PySCF, s"]
    solvers = ("screened", "diis", "pyscf")
    lines = [
        [row["molecule"], f"{row['xc'].upper()}/{row['basis']}", row["nao"],
         f"{row['solvers']['diis']['gap_ha']:.3f}",
         *(_builds(row["solvers"][name]) for name in solvers), row["solvers"]["screened"]["diagonalisations"],
         *(f"{row['solvers'][name]['seconds']:.2f}" for name in solvers)]
        for row in rows
    ]
    schemes = [
        [scheme, *(significant(_median(rows, "errors_mev", scheme, n)) for n in range(ITERATIONS + 1))]
        for scheme in SCHEMES
    ]
    return "\n".join([
        "# Charge screening without a network", "", f"    {record['command']}", "",
        bench.describe(record["machine"]) + (f" {record['note']}" if record["note"] else ""), "",
        f"{len(rows)} of {len(CASES)} rows. Fock builds to convergence from minao, that of the guess included; –: "
        "not converged. Thresholds: energy 1e-10 hartree, commutator 1e-6 hartree (PySCF: norm of the gradient, 1e-6 "
        "hartree times the root of the number of orbitals). Times are warm; PySCF's include its integrals, ours do "
        "not.", "",
        tables.table(titles, lines, text_columns=2), "",
        "Medians of the absolute error of the energy after n DFT iterations, meV. Every scheme has built n + 1 Fock "
        "matrices.", "",
        tables.table(["scheme", *(f"n = {n}" for n in range(ITERATIONS + 1))], schemes), "",
        f"Scale of the repulsion of shells (the package has {SCALE}): geometric mean of the absolute error after n "
        "screened iterations without DIIS, meV.", "", tables.table(
            ["functionals", "scale", *(f"n = {n}" for n in range(ITERATIONS + 1))], list(_scales(rows)),
            text_columns=1), "",
    ])


def _builds(solver: dict) -> str:
    return f"{solver['builds']}" if solver["converged"] else "–"


def _median(rows: list[dict], key: str, name: str, n: int) -> float:
    return statistics.median(abs(row[key][name][n]) for row in rows)


def _scales(rows: list[dict]) -> Iterator[list]:
    """Yield the mean errors of pure and of hybrid functionals with each scale."""
    for kind, is_hybrid in (("pure", False), ("hybrid", True)):
        members = [row for row in rows if (row["exchange"] > 0) == is_hybrid]
        for scale in SCALES if members else ():
            yield [kind, scale, *(
                significant(math.exp(statistics.fmean(
                    math.log(max(abs(row["scales"][f"{scale}"][n]), 1e-9)) for row in members
                ))) for n in range(ITERATIONS + 1)
            )]


if __name__ == "__main__":
    typer.run(main)
