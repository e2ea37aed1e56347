"""The DFT engine beside PySCF: times, memory and energies, measured in one run.

Each case runs in two fresh processes, ours and then PySCF's, on the same geometries with the same functional, basis,
grid, thresholds and threads; so neither finds warm caches or memory that the other left, and peak memory is its own.
Cold is the first geometry of a process with compilation, warm the median of those that follow. A ratio is PySCF's
time over ours, from the same run.
"""

import concurrent.futures
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from qptlab import reference
from qptlab.energy import kohn_sham
from qptlab.errors import InputError
from qptlab.integrals import template
from qptlab.method import Method
from qptlab.molecule import Molecule
from qptlab.scf import scf_batch, solve
from qptlab.units import HARTREE_MEV

MOLECULES = ("water", "ethanol", "benzene", "uracil", "alanine-dipeptide")
ALKANES = (2, 4, 6, 8, 12, 16)
DISPLACEMENT_BOHR = 0.02

Row = dict[str, Any]


class Case(NamedTuple):
    """One line of a table.

    Attributes:
      molecule: built-in name or SMILES.
      xc: functional.
      basis: basis set.
      eri: "exact" or "fitted".
      batch: geometries of the batch; 0 for none.
      repeats: warm geometries one by one.
    """

    molecule: str
    xc: str
    basis: str
    eri: str
    batch: int = 0
    repeats: int = 3

    @property
    def label(self) -> str:
        """For plots and progress."""
        return f"{self.molecule} {self.xc.upper()}/{self.basis} {self.eri}"

    @property
    def method(self) -> Method:
        """The level of theory."""
        return Method(self.xc, self.basis, eri=self.eri)

    def geometries(self) -> list[Molecule]:
        """The same for whoever asks: small displacements, so that no result can be reused."""
        mol = Molecule.parse(self.molecule)
        rng = np.random.default_rng(0)
        number = max(self.batch, self.repeats + 1)
        return [
            mol.with_positions(mol.positions + DISPLACEMENT_BOHR * rng.normal(size=mol.positions.shape))
            for _ in range(number)
        ]


def _seconds(function, *arguments):
    """Time of a call, and its result."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began, result


def _median(function, inputs):
    return statistics.median(_seconds(function, each)[0] for each in inputs)


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# What a fresh process does. Each gives the figures of one engine.


def _our_scf(case: Case) -> Row:
    given = case.geometries()
    idle = _peak_mib()
    method = case.method

    def one(mol):
        prepared = template(mol, method)
        host_s, host = _seconds(prepared.host_integrals, mol.positions, None)
        device_s, ints = _seconds(prepared.complete, host)
        solve_s, result = _seconds(solve, ints, method.xc)
        return (host_s, device_s, solve_s), result

    cold, (_, result) = _seconds(one, given[0])
    phases = [one(mol)[0] for mol in given[1 : case.repeats + 1]]
    host_s, device_s, solve_s = (statistics.median(times) for times in zip(*phases, strict=True))
    row = {
        "cold_s": cold, "warm_s": statistics.median(map(sum, phases)),
        "host_s": host_s, "device_s": device_s, "solve_s": solve_s,
        "cycles": int(result.cycles), "energy_ha": float(result.energy), "converged": bool(result.converged),
    }
    if case.batch:
        row["batch_s"] = _seconds(scf_batch, given[: case.batch], method)[0]
    return row | {"memory_mib": _peak_mib() - idle}


def _pyscf_scf(case: Case) -> Row:
    given = case.geometries()
    idle = _peak_mib()

    def one(mol):
        mf = _calculation(mol, case)
        mf.kernel()
        return mf

    cold, mf = _seconds(one, given[0])
    row = {
        "cold_s": cold, "warm_s": _median(one, given[1 : case.repeats + 1]),
        "cycles": int(mf.cycles), "energy_ha": float(mf.e_tot), "converged": bool(mf.converged),
    }
    if case.batch:
        row["batch_s"] = _seconds(lambda: [one(mol) for mol in given[: case.batch]])[0]
    return row | {"memory_mib": _peak_mib() - idle}


def _our_fock(case: Case) -> Row:
    mol = case.geometries()[0]
    ints = template(mol, case.method).build(mol.positions)
    dms = _densities(ints.dm_guess, case.repeats)
    build = jax.jit(lambda ints, dm: kohn_sham(dm, ints, case.xc))
    energy = jax.jit(jax.value_and_grad(lambda dm, ints: kohn_sham(dm, ints, case.xc).terms.e_tot))
    cold, found = _seconds(build, ints, dms[0])
    _seconds(energy, dms[0], ints)
    return {
        "cold_s": cold, "warm_s": _median(lambda dm: build(ints, dm), dms[1:]),
        "with_gradient_s": _median(lambda dm: energy(dm, ints), dms[1:]), "energy_ha": float(found.terms.e_tot),
    }


def _pyscf_fock(case: Case) -> Row:
    mf = _calculation(case.geometries()[0], case)
    hcore, dms = mf.get_hcore(), _densities(mf.get_init_guess(), case.repeats)

    def build(dm):
        return mf.get_fock(h1e=hcore, vhf=mf.get_veff(dm=dm), dm=dm)

    cold, _ = _seconds(build, dms[0])  # makes the grid and the two-electron integrals
    return {"cold_s": cold, "warm_s": _median(build, dms[1:]), "energy_ha": float(mf.energy_tot(dm=dms[0]))}


def _densities(dm, repeats):
    return [np.asarray(dm) * (1 + 0.001 * i) for i in range(repeats + 1)]


def _our_tensors(case: Case) -> Row:
    """What the host makes of a geometry, and then the device of that."""
    given = case.geometries()
    prepared = template(given[0], case.method)

    def make(mol):
        return prepared.host_integrals(mol.positions, None)

    cold, host = _seconds(make, given[0])
    _seconds(prepared.complete, host)
    return {
        "cold_s": cold, "warm_s": _median(make, given[1:]),
        "device_s": _median(prepared.complete, [host] * case.repeats),
    }


def _pyscf_tensors(case: Case) -> Row:
    """The same integrals asked of libcint one by one, and nothing else."""
    given = [reference.calculation(mol, case.method, fitted=False).mol for mol in case.geometries()]
    auxes = [_calculation(mol, case).with_df.build().auxmol if case.eri == "fitted" else None
             for mol in case.geometries()]

    def make(pair):
        mol, aux = pair
        found = [mol.intor(name, hermi=1) for name in ("int1e_ovlp", "int1e_kin", "int1e_nuc")]
        if aux is None:
            return [*found, mol.intor("int2e", aosym="s8")]
        shells = (0, mol.nbas, 0, mol.nbas, mol.nbas, mol.nbas + aux.nbas)
        return [*found, aux.intor("int2c2e", hermi=1), (mol + aux).intor("int3c2e", aosym="s2ij", shls_slice=shells)]

    pairs = list(zip(given, auxes, strict=True))
    cold, _ = _seconds(make, pairs[0])
    return {"cold_s": cold, "warm_s": _median(make, pairs[1:])}


def _calculation(mol, case):
    return reference.calculation(mol, case.method, fitted=case.eri == "fitted")


# The peer of a start from the shell: as little as a PySCF user would write.
_PYSCF_PROCESS = """
import sys
from pyscf import dft, gto
atoms, basis, xc, eri = sys.argv[1:]
mf = dft.RKS(gto.M(atom=atoms, basis=basis, verbose=0), xc=xc)
mf = mf.density_fit() if eri == "fitted" else mf
mf.grids.level = 1
mf.kernel()
"""


def _start(case: Case) -> Row:
    """Whole processes, imports included, from nothing to an energy: nothing compiled, all compiled, PySCF."""
    ours = [sys.executable, "-m", "qptlab", "energy", case.molecule, "--xc", case.xc, "--basis", case.basis,
            "--eri", case.eri, "--json"]
    lines = Molecule.parse(case.molecule).to_xyz().splitlines()[2:]
    theirs = [sys.executable, "-c", _PYSCF_PROCESS, "\n".join(lines), case.basis,
              reference.PYSCF_FUNCTIONALS[case.xc], case.eri]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
        first, second, peer = (
            _seconds(lambda command=command: subprocess.run(
                command, env=environment, check=True, stdout=subprocess.DEVNULL))[0]
            for command in (ours, ours, theirs)
        )
    return {"ours": {"cold_s": first, "warm_s": second}, "pyscf": {"cold_s": peer, "warm_s": peer}}


class Benchmark(NamedTuple):
    """What is measured, on what.

    Attributes:
      title: of the table.
      cases: its lines.
      engines: functions for fresh processes, ours and PySCF's; or one that starts processes itself.
    """

    title: str
    cases: list[Case]
    engines: tuple[Callable[[Case], Row], ...]


def _forms(basis):
    return ("exact", "fitted") if basis == "def2-svp" else ("exact",)


def _grid(molecules, batch, repeats):
    """Every molecule in either basis and functional; a batch in the form of integrals that `auto` would choose."""
    for molecule in molecules:
        for basis in ("sto-3g", "def2-svp"):
            for xc in ("pbe", "b3lyp"):
                auto = template(Molecule.parse(molecule), Method(xc, basis)).eri
                for eri in _forms(basis):
                    yield Case(molecule, xc, basis, eri, batch if eri == auto else 0, repeats)


def benchmark(name: str, molecules: tuple[str, ...] = ()) -> Benchmark:
    """One of `NAMES`.

    Args:
      name: of the benchmark.
      molecules: built-in names or SMILES, in place of its own.

    Raises:
      InputError: if there is no such benchmark or molecule.
    """
    if name not in NAMES:
        raise InputError(f"benchmark {name!r} is not known; one of {', '.join(NAMES)} would do.")
    chosen = molecules or MOLECULES
    if name == "scf":
        return Benchmark("A converged SCF", list(_grid(chosen, 16, 3)), (_our_scf, _pyscf_scf))
    if name == "fock":
        return Benchmark("One Fock matrix and energy of a given density", list(_grid(chosen, 0, 5)),
                         (_our_fock, _pyscf_fock))
    if name == "tensors":
        return Benchmark("Integrals that the host makes, beside libcint alone", list(_grid(chosen, 0, 5)),
                         (_our_tensors, _pyscf_tensors))
    if name == "growth":
        alkanes = molecules or tuple("C" * n for n in ALKANES)
        return Benchmark("Growth of a converged SCF with the size of an alkane",
                         [Case(smiles, "pbe", "def2-svp", "fitted", 0, 2) for smiles in alkanes],
                         (_our_scf, _pyscf_scf))
    return Benchmark("A process from its start to its first energy",
                     [case for case in _grid(chosen, 0, 1) if case.basis == "def2-svp"], (_start,))


NAMES = ("scf", "fock", "tensors", "growth", "start")


def measure(chosen: Benchmark) -> Iterator[Row]:
    """Measure case by case; rows come as they are done, so that a run that is stopped keeps what it has."""
    for case in chosen.cases:
        mol = Molecule.parse(case.molecule)
        prepared = template(mol, case.method)
        row = {
            "molecule": case.molecule, "formula": mol.formula, "xc": case.xc, "basis": case.basis, "eri": case.eri,
            "nao": prepared.nao, "naux": prepared.naux, "ngrids": len(prepared.grid_template.volumes),
            "batch": case.batch,
        }
        if len(chosen.engines) == 1:
            row |= chosen.engines[0](case)
        else:
            row["ours"], row["pyscf"] = (_in_a_fresh_process(engine, case) for engine in chosen.engines)
        yield row | _comparison(row["ours"], row["pyscf"])


def _in_a_fresh_process(engine, case):
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(engine, case).result()


def _comparison(ours, theirs):
    found = {"ratio": theirs["warm_s"] / ours["warm_s"]}
    if "batch_s" in ours:
        found["batch_ratio"] = theirs["batch_s"] / ours["batch_s"]
    if "energy_ha" in ours:
        found["difference_mev"] = (ours["energy_ha"] - theirs["energy_ha"]) * HARTREE_MEV
    return found


def growth_exponent(rows: list[Row], engine: str, smallest: int = 4) -> float | None:
    """Slope of log(warm time) against log(AOs), from the alkane with so many carbons on; None for fewer than two."""
    points = [(row["nao"], row[engine]["warm_s"]) for row in rows if row["molecule"].count("C") >= smallest]
    if len(points) < 2:
        return None
    nao, seconds = np.log(np.array(points)).T
    return float(np.polyfit(nao, seconds, 1)[0])


def machine() -> Row:
    """What it was measured on."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "libraries": {name: importlib.metadata.version(name) for name in ("qptlab", "jax", "jaxlib", "pyscf")},
    }


def _processor():
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


COLUMNS = (
    ("ours, cold", "ours", "cold_s"), ("ours, warm", "ours", "warm_s"), ("host", "ours", "host_s"),
    ("grid, AOs", "ours", "device_s"), ("SCF", "ours", "solve_s"), ("and its gradient", "ours", "with_gradient_s"),
    ("PySCF, cold", "pyscf", "cold_s"), ("PySCF, warm", "pyscf", "warm_s"), ("PySCF ÷ ours", None, "ratio"),
    ("ours, batch", "ours", "batch_s"), ("PySCF, batch", "pyscf", "batch_s"),
    ("PySCF ÷ ours, batch", None, "batch_ratio"), ("ours, MiB", "ours", "memory_mib"),
    ("PySCF, MiB", "pyscf", "memory_mib"), ("energy difference, meV", None, "difference_mev"),
)


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table; times in seconds."""
    columns = [column for column in COLUMNS if any(_value(row, column) is not None for row in rows)]
    head = ["molecule", "method", "integrals", "AOs", *(name for name, _, _ in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * 3 + "|--:" * (len(head) - 3) + "|"]
    for row in rows:
        cells = [row["molecule"], f"{row['xc'].upper()}/{row['basis']}", row["eri"], str(row["nao"])]
        cells += [_written(_value(row, column), column[2]) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _value(row, column):
    _, engine, key = column
    return (row if engine is None else row[engine]).get(key)


def _written(value, key):
    if value is None:
        return ""
    if key == "difference_mev":
        return f"{value:.1e}"
    return f"{value:.0f}" if key == "memory_mib" else f"{value:.3g}"


def write(name: str, chosen: Benchmark, rows: list[Row], folder: pathlib.Path, command: str) -> None:
    """Write NAME.json, NAME.md and NAME.png; `command` is what repeats the measurement."""
    record = {"benchmark": name, "title": chosen.title, "command": command, "machine": machine(), "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    where = record["machine"]
    text = [
        f"# {chosen.title}", "", f"    {command}", "",
        f"{where['date']}, {where['processor']}, {where['cores']} cores, {', '.join(where['devices'])}; "
        + ", ".join(f"{library} {version}" for library, version in where["libraries"].items())
        + ". Times in seconds. Cold is the first geometry of a process, warm the median of those after it.",
        "", table(rows), "",
    ]
    if name == "growth":
        ours, theirs = (growth_exponent(rows, engine) for engine in ("ours", "pyscf"))
        if ours is not None and theirs is not None:
            text += [f"From C4 on, warm time grows with the number of AOs to the power {ours:.2f}; "
                     f"PySCF's to the power {theirs:.2f}.", ""]
    (folder / f"{name}.md").write_text("\n".join([*text, f"![{chosen.title}]({name}.png)", ""]))
    (_growth_figure if name == "growth" else _ratio_figure)(chosen, rows).savefig(folder / f"{name}.png", dpi=120)


def _figure(height):
    from matplotlib.figure import Figure  # loads only where something is drawn

    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.add_subplot()


def _ratio_figure(chosen, rows):
    figure, axes = _figure(1.2 + 0.26 * len(rows))
    places = np.arange(len(rows))[::-1]
    axes.plot([row["ratio"] for row in rows], places, "o", color="#0072B2", label="one geometry, warm")
    batches = [(row["batch_ratio"], place) for row, place in zip(rows, places, strict=True) if "batch_ratio" in row]
    if batches:
        axes.plot(*zip(*batches, strict=True), "D", color="#D55E00", label="batch of 16 geometries")
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(places, [f"{r['molecule']} {r['xc'].upper()}/{r['basis']} {r['eri']}" for r in rows], fontsize=8)
    axes.set_xlabel("PySCF's time ÷ ours (right of 1: qptlab is faster)")
    axes.set_title(chosen.title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best")
    return figure


def _growth_figure(chosen, rows):
    figure, axes = _figure(4.5)
    nao = [row["nao"] for row in rows]
    for engine, name, style in (("ours", "qptlab", "o-"), ("pyscf", "PySCF", "s--")):
        exponent = growth_exponent(rows, engine)
        label = name if exponent is None else f"{name}, exponent {exponent:.2f} from C4 on"
        colour = "#0072B2" if engine == "ours" else "#E69F00"
        axes.loglog(nao, [row[engine]["warm_s"] for row in rows], style, color=colour, label=label)
    for row in rows:
        axes.annotate(row["formula"], (row["nao"], row["ours"]["warm_s"]), (0, -14), textcoords="offset points",
                      ha="center", fontsize=8)
    axes.set_xlabel("atomic orbitals")
    axes.set_ylabel("time of a warm SCF, s")
    axes.set_title(f"{chosen.title}, PBE/def2-SVP, fitted")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure
