"""Times of the parts of a converged SCF, and their rates compared with the peaks of the processor.

    .venv/bin/python benchmarks/scf_profile.py > benchmarks/results/scf_profile.md

Each part is compiled and timed alone, warm; the time is the shortest of three. In the whole calculation parts may
overlap. Peaks are measured with a product of two 2048² matrices, and with the sum of 256 MiB.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import qptlab as ql
from qptlab import tables
from qptlab.benchmarking import bench
from qptlab.dft import repulsion, semilocal
from qptlab.dft.energy import filled_orbitals, kohn_sham
from qptlab.dft.scf import solve

CASES = (
    ("ethanol", "pbe", "exact"), ("ethanol", "b3lyp", "exact"),
    ("uracil", "pbe", "fitted"), ("uracil", "pbe", "exact"),
    ("uracil", "b3lyp", "fitted"), ("uracil", "b3lyp", "exact"),
    ("alanine-dipeptide", "b3lyp", "fitted"), ("alanine-dipeptide", "b3lyp", "exact"),
)


def shortest(function: Callable, *arguments: Any) -> float:
    """Return the shortest of three warm times, s."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def parts(name: str, xc: str, eri: str) -> list[str]:
    """Return the cells of a row."""
    mol = ql.Molecule.from_name(name)
    prepared = ql.template(mol, ql.Method(xc, "def2-svp", 1, eri=eri))
    has_exchange = xc == "b3lyp"
    host_s = shortest(prepared.host_integrals, mol.positions, None)
    host = prepared.host_integrals(mol.positions, None)
    if eri == "exact":
        lay_out = jax.jit(functools.partial(repulsion.exact, nao=prepared.nao, exchange=has_exchange))
        layout_s = shortest(lay_out, host.eri[0])
    else:
        layout_s = shortest(jax.jit(repulsion.fitted), *host.eri)
    device_s = shortest(prepared.complete, host)
    ints = prepared.complete(host)
    result = solve(ints)
    solve_s = shortest(solve, ints)
    filled = filled_orbitals(result.fock, ints)
    arguments = result.dm, ints, filled

    def seconds(part):
        return shortest(jax.jit(part), *arguments)

    build_s = seconds(lambda dm, ints, c: kohn_sham(dm, ints, filled=c).fock)
    semilocal_s = seconds(lambda dm, ints, c: semilocal.exchange_correlation(dm[None], ints))
    coulomb_s = seconds(lambda dm, ints, c: ints.repulsion.coulomb(dm))
    exchange_s = seconds(lambda dm, ints, c: ints.repulsion.exchange(dm, c)) if has_exchange else 0.0
    orbitals_s = shortest(jax.jit(filled_orbitals), result.fock, ints)
    flops = 4 * prepared.nao**2 * len(ints.weights)  # density on the grid, and back to a matrix
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(ints.repulsion))
    reads = 2 if eri == "fitted" else 1  # factors are read once to contract, once to expand
    rate = nbytes * reads / (coulomb_s + (exchange_s if eri == "exact" else 0.0))
    times = (host_s, layout_s, device_s - layout_s, solve_s, build_s, semilocal_s, coulomb_s, exchange_s, orbitals_s)
    return [
        name, xc.upper(), eri, f"{prepared.nao}", f"{int(result.cycles)}", *(f"{s:.3g}" for s in times),
        f"{flops / semilocal_s / 1e9:.0f}", f"{rate / 1e9:.1f}",
    ]


def main() -> None:
    """Print the table."""
    machine = bench.machine()
    square, many = jnp.ones((2048, 2048)), jnp.ones(2**25)
    gflops = 2 * 2048**3 / shortest(jax.jit(jnp.matmul), square, square) / 1e9
    gbytes = many.nbytes / shortest(jax.jit(jnp.sum), many) / 1e9
    versions = ", ".join(f"{library} {version}" for library, version in machine["libraries"].items())
    columns = [
        "molecule", "functional", "integrals", "AOs", "cycles", "libcint", "layout or factors", "grid, AOs, rest",
        "all cycles", "one Fock matrix", "= XC", "+ Coulomb", "+ exchange", "orbitals", "XC GFlop/s",
        "integrals GB/s",
    ]
    lines = [
        "# Time of the parts of an SCF", "", "    .venv/bin/python benchmarks/scf_profile.py", "",
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores; {versions}. def2-SVP, grid level 1, "
        f"warm seconds. Measured peaks: {gflops:.0f} GFlop/s (float64 matrix product), {gbytes:.1f} GB/s (reading).",
        "",
        tables.table(columns, [parts(*case) for case in CASES], text_columns=3),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
