"""Cost of a training step: operations, bytes and time, compared with other programs.

    python3.11 -m venv dftax && dftax/bin/pip install dftax
    .venv/bin/python benchmarks/step.py --dftax dftax/bin/python

Counts are for one geometry and one Fock build (energy and matrix of a density), B3LYP/def2-SVP, grid level 1,
float64. "Index lists" is the form of the QPT paper's code: all distinct exact integrals, 20 bytes each with their
indices, are read in 16 gather–scatter passes for a build. Times are warm, on all cores: a Fock build of qptlab, of
PySCF and of dftax, and for each geometry the gradient of the loss through n DFT iterations, network included.
Writes `results/step.json` and `.md`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

MOLECULES = ("ethanol", "uracil")
DFTAX_MOLECULE = "ethanol"  # it compiles for minutes
DFTAX_SECONDS = 900
PASSES = 16
LIST_BYTES = 20


def _warm(function, turns: int = 5) -> float:
    """Return the median time after the first call, s."""
    seconds = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def ours(molecule: str, eri: str) -> dict:
    """Return counts and time of our Fock build, and the time of the gradient of the loss."""
    import jax
    import jax.numpy as jnp

    import qptlab as ql
    from qptlab.dft.energy import filled_orbitals, kohn_sham
    from qptlab.training.label_free import loss

    method = ql.Method("b3lyp", "def2-svp", 1, eri=eri)
    config = ql.QPTConfig("micro", iterations=0)
    (system,), kinds = ql.make_systems([ql.Molecule.from_name(molecule)], method, config)
    template = system.template
    sample = system.sample(system.host_integrals(system.frame.reference_positions))
    filled = filled_orbitals(sample.features.fock_guess, sample.ints)
    build = jax.jit(lambda filled, ints: kohn_sham(filled @ filled.T, ints, filled=filled))
    model = ql.CorrectionModel(config, kinds)
    params = model.init(jax.random.key(0))
    record = {
        "form": eri, "nao": template.nao, "naux": template.naux, "ngrids": template.ngrids,
        "held_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(sample.ints.repulsion)), **_counts(template),
        "fock_s": _warm(lambda: jax.block_until_ready(build(filled, sample.ints))),
    }
    for n in (0, 1, 3):
        variant = model.with_iterations(n)

        def step(params, sample, variant=variant):
            return loss(variant.correction(params, sample.features), sample, variant, "energy")[0]

        gradient = jax.jit(jax.grad(step))
        record[f"gradient_n{n}_s"] = _warm(lambda gradient=gradient: jax.block_until_ready(gradient(params, sample)))
    record["parameters"] = int(sum(jnp.size(leaf) for leaf in jax.tree.leaves(params)))
    return record


def _counts(template) -> dict:
    """Return the operations of one Fock build, and the bytes of integrals that it reads."""
    from qptlab.dft.estimates import fock_operations

    npair = template.nao * (template.nao + 1) // 2
    read = 3 * 8 * template.naux * npair if template.eri == "fitted" else 2 * 8 * npair * (npair + 1) // 2
    return {"flops": fock_operations(template), "read_bytes": read}


def index_lists(nao: int, ngrids: int) -> dict:
    """Return the counts for exact integrals as index lists."""
    npair = nao * (nao + 1) // 2
    distinct = npair * (npair + 1) // 2
    return {
        "form": "index lists (counted)", "held_bytes": LIST_BYTES * distinct,
        "flops": 2 * PASSES * distinct + 4 * nao**2 * ngrids, "read_bytes": PASSES * LIST_BYTES * distinct,
    }


def pyscf(molecule: str, eri: str) -> dict:
    """Return the time of PySCF's Fock build with integrals in memory."""
    import qptlab as ql
    from qptlab.evaluation import reference

    method = ql.Method("b3lyp", "def2-svp", 1, eri=eri)
    mf = reference.calculation(ql.Molecule.from_name(molecule), method, fitted=eri == "fitted")
    dm, hcore = mf.get_init_guess(), mf.get_hcore()
    return {"form": f"PySCF, {eri}", "fock_s": _warm(lambda: mf.get_fock(h1e=hcore, vhf=mf.get_veff(dm=dm), dm=dm))}


def dftax(path: pathlib.Path, form: str) -> dict:
    """Return the time of dftax's energy and Fock matrix on our grid; runs in the environment of dftax."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import dftax as package
    import jax.numpy as jnp
    from dftax.energy.xc import B3LYP

    record = json.loads(path.read_text())
    grid = jnp.asarray(record["coords"]), jnp.asarray(record["weights"])
    coulomb = package.exact() if form == "exact" else package.df()
    engine = package.KS(package.Molecule.from_xyz(record["atoms"], "def2-svp"), B3LYP(), grid=grid, coulomb=coulomb)
    values, vectors = jnp.linalg.eigh(engine.S)
    half = vectors / jnp.sqrt(values)
    filled = (half @ jnp.linalg.eigh(half.T @ engine.hcore @ half)[1])[:, : record["nocc"]]
    build = jax.jit(lambda engine, dm: engine.energy_and_fock(dm))
    dm = 2 * (filled @ filled.T)[None]
    return {"form": f"dftax, {form}", "fock_s": _warm(lambda: jax.block_until_ready(build(engine, dm)))}


def _for_dftax(molecule: str, folder: str) -> pathlib.Path:
    """Write atoms and our grid to a file, which the environment of dftax reads."""
    import qptlab as ql

    mol = ql.Molecule.from_name(molecule)
    ints = ql.build_integrals(mol, ql.Method("b3lyp", "def2-svp", 1, eri="fitted"))
    atoms = zip(mol.symbols, mol.positions_angstrom, strict=True)
    record = {
        "atoms": "; ".join(f"{symbol} {x:.8f} {y:.8f} {z:.8f}" for symbol, (x, y, z) in atoms),
        "nocc": int(ints.nocc), "coords": np.asarray(ints.coords).tolist(),
        "weights": np.asarray(ints.weights).tolist(),
    }
    path = pathlib.Path(folder) / f"{molecule}.json"
    path.write_text(json.dumps(record))
    return path


def _run_dftax(python: str, molecule: str) -> dict:
    """Return the row of dftax, measured in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, __file__, "--only", str(_for_dftax(molecule, folder)), "fitted"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DFTAX_SECONDS)
        except subprocess.TimeoutExpired:
            return {"form": "dftax, fitted", "failed": f"not done after {DFTAX_SECONDS} s"}
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        return {"form": "dftax, fitted", "failed": lines[-1] if lines else f"exit status {done.returncode}"}
    return json.loads(done.stdout)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dftax", metavar="PYTHON", help="Python of an environment with dftax")
    parser.add_argument("--only", nargs=2, metavar=("FILE", "FORM"), help="measure dftax in this process")
    arguments = parser.parse_args()
    if arguments.only:
        sys.stdout.write(json.dumps(dftax(pathlib.Path(arguments.only[0]), arguments.only[1])))
        return
    from qptlab.benchmarking import bench

    rows = []
    for molecule in MOLECULES:
        for form in ("fitted", "exact"):
            rows += [{"molecule": molecule, **ours(molecule, form)}, {"molecule": molecule, **pyscf(molecule, form)}]
        rows.append({"molecule": molecule, **index_lists(rows[-2]["nao"], rows[-2]["ngrids"])})
        if arguments.dftax and molecule == DFTAX_MOLECULE:
            rows.append({"molecule": molecule, **_run_dftax(arguments.dftax, molecule)})
    command = "python benchmarks/step.py" + (" --dftax dftax/bin/python" if arguments.dftax else "")
    folder = pathlib.Path(__file__).parent / "results"
    record = {"command": command, "machine": bench.machine(), "rows": rows}
    page = ["# Cost of a training step", "", f"    {command}", "", bench.describe(bench.machine()), "",
            *_description(), "", _table(rows), ""]
    bench.keep(folder, "step", record, "\n".join(page))


def _description() -> list[str]:
    """Return the lines of the docstring without its commands."""
    return [line for line in __doc__.split("\n\n", 2)[2].splitlines() if not line.startswith("    ")]


def _table(rows: list[dict]) -> str:
    """Return a table with a row for each program and form of the integrals."""
    from qptlab import tables

    keys = {
        "held_bytes": ("integrals held, MB", 1e-6), "read_bytes": ("read per build, MB", 1e-6),
        "flops": ("operations per build, 10⁹", 1e-9), "fock_s": ("Fock build, s", 1.0),
        "gradient_n0_s": ("gradient, n = 0, s", 1.0), "gradient_n1_s": ("n = 1", 1.0),
        "gradient_n3_s": ("n = 3", 1.0),
    }
    lines = []
    for row in rows:
        cells = [f"{row[key] * scale:.3g}" if key in row else "" for key, (_, scale) in keys.items()]
        form = row["form"] if row["form"].startswith(("PySCF", "dftax", "index")) else f"qptlab, {row['form']}"
        failed = f": failed ({row['failed'][:60]})" if "failed" in row else ""
        lines.append([row["molecule"], form + failed, *cells])
    titles = ["molecule", "form", *(name for name, _ in keys.values())]
    return tables.table(titles, lines, text_columns=2)


if __name__ == "__main__":
    main()
