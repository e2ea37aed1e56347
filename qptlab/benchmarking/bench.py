"""Times, memory and energies of the DFT engine and of PySCF, measured in one run.

Each case has two new processes, ours and PySCF's, on the same geometries with the same functional, basis, grid,
thresholds and threads. Neither process has caches or memory that the other one filled. They take turns, geometry by
geometry, so that a machine whose speed drifts slows both equally. "Cold" is the first geometry of a process, with
nothing compiled; "warm" is the median of the later ones. A ratio is the median over turns of PySCF's time divided by
ours.
"""

import datetime
import functools
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from qptlab import tables
from qptlab.dft.energy import kohn_sham
from qptlab.dft.integrals import template
from qptlab.dft.scf import SCFResult, scf_batch, solve
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.runtime.versions import processor, versions
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import HARTREE_MEV

MOLECULES = ("water", "ethanol", "benzene", "uracil", "alanine-dipeptide")
ALKANES = (2, 4, 6, 8, 12, 16)
BATCH = 16
DISPLACEMENT_BOHR = 0.02
GRID_LEVEL = 1
"""Level of both programs' grids."""

Row = dict[str, Any]


class Case(NamedTuple):
    """Row of a table: a molecule, a method and the number of geometries.

    Attributes:
      molecule: built-in name or SMILES.
      xc: functional.
      basis: basis set.
      eri: "exact" or "fitted".
      repeats: number of warm geometries, one by one.
      batch: if true, a batch of `BATCH` geometries is measured, too.
    """

    molecule: str
    xc: str
    basis: str
    eri: str
    repeats: int
    batch: bool = False

    @property
    def method(self) -> Method:
        """Level of theory."""
        return Method(self.xc, self.basis, GRID_LEVEL, eri=self.eri)

    def geometries(self) -> list[Molecule]:
        """Return geometries with small displacements, so that no result can be used again; the same in each call."""
        mol = Molecule.parse(self.molecule)
        rng = np.random.default_rng(0)
        return [
            mol.with_positions(mol.positions + DISPLACEMENT_BOHR * rng.normal(size=mol.positions.shape))
            for _ in range(max(BATCH if self.batch else 0, self.repeats + 1))
        ]


def _seconds(function: Callable, *arguments: Any) -> tuple[float, Any]:
    """Return the time of a call, s, and its result."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began, result


def _peak_mib() -> float:
    """Return the largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# The work of a new process. Each generator yields the numbers of one turn; the first turn is cold.


def _our_scf(case: Case) -> Iterator[Row]:
    geometries, method = case.geometries(), case.method
    idle = _peak_mib()

    def converge(mol: Molecule) -> tuple[Row, SCFResult]:
        prepared = template(mol, method)
        host_s, host = _seconds(prepared.host_integrals, mol.positions, None)
        device_s, ints = _seconds(prepared.complete, host)
        solve_s, result = _seconds(solve, ints)
        return {"host_s": host_s, "device_s": device_s, "solve_s": solve_s}, result

    cold, (_, result) = _seconds(converge, geometries[0])
    yield {"cold_s": cold, "cycles": int(result.cycles), "energy_ha": float(result.energy)}
    for mol in geometries[1 : case.repeats + 1]:
        warm, (phases, _) = _seconds(converge, mol)
        yield {"warm_s": warm, **phases, "memory_mib": _peak_mib() - idle}
    if case.batch:
        scf_batch(geometries[:1], method)
        yield {"batch_s": _seconds(scf_batch, geometries[:BATCH], method)[0]}


def _pyscf_scf(case: Case) -> Iterator[Row]:
    geometries = case.geometries()
    idle = _peak_mib()

    def converge(mol: Molecule) -> Any:
        mf = _calculation(mol, case)
        mf.kernel()
        return mf

    cold, mf = _seconds(converge, geometries[0])
    yield {"cold_s": cold, "cycles": int(mf.cycles), "energy_ha": float(mf.e_tot)}
    for mol in geometries[1 : case.repeats + 1]:
        yield {"warm_s": _seconds(converge, mol)[0], "memory_mib": _peak_mib() - idle}
    if case.batch:
        yield {"batch_s": _seconds(lambda: [converge(mol) for mol in geometries[:BATCH]])[0]}


def _our_fock(case: Case) -> Iterator[Row]:
    mol = case.geometries()[0]
    ints = template(mol, case.method).build(mol.positions)
    build = jax.jit(lambda dm, ints: kohn_sham(dm, ints))
    energy = jax.jit(jax.value_and_grad(lambda dm, ints: kohn_sham(dm, ints).terms.e_tot))
    first, *later = _densities(ints.dm_guess, case.repeats)
    cold, state = _seconds(build, first, ints)
    _seconds(energy, first, ints)
    yield {"cold_s": cold, "energy_ha": float(state.terms.e_tot)}
    for dm in later:
        yield {"warm_s": _seconds(build, dm, ints)[0], "gradient_s": _seconds(energy, dm, ints)[0]}


def _pyscf_fock(case: Case) -> Iterator[Row]:
    mf = _calculation(case.geometries()[0], case)
    hcore = mf.get_hcore()
    first, *later = _densities(mf.get_init_guess(), case.repeats)

    def build(dm: np.ndarray) -> np.ndarray:
        return mf.get_fock(h1e=hcore, vhf=mf.get_veff(dm=dm), dm=dm)

    cold, _ = _seconds(build, first)  # with the grid and the two-electron integrals, which are computed once
    yield {"cold_s": cold, "energy_ha": float(mf.energy_tot(dm=first))}
    for dm in later:
        yield {"warm_s": _seconds(build, dm)[0]}


def _densities(dm: Any, repeats: int) -> list[np.ndarray]:
    """Return density matrices that differ a little, so that no result can be used again."""
    return [np.asarray(dm) * (1 + 0.001 * i) for i in range(repeats + 1)]


def _our_tensors(case: Case) -> Iterator[Row]:
    """Measure the integrals that the host computes for a geometry, and then the work of the device."""
    geometries = case.geometries()
    prepared = template(geometries[0], case.method)
    for turn, mol in enumerate(geometries):
        seconds, host = _seconds(prepared.host_integrals, mol.positions, None)
        device_s = _seconds(prepared.complete, host)[0]
        yield {"warm_s": seconds, "device_s": device_s} if turn else {"cold_s": seconds}


def _libcint_tensors(case: Case) -> Iterator[Row]:
    """Measure libcint alone, which computes the same integrals one by one."""
    aux = None
    for turn, geometry in enumerate(case.geometries()):
        mol = reference.calculation(geometry, case.method, fitted=False).mol
        if case.eri == "fitted":
            aux = _calculation(geometry, case).with_df.build().auxmol
        seconds, _ = _seconds(_libcint, mol, aux)
        yield {"warm_s" if turn else "cold_s": seconds}


def _libcint(mol: Any, aux: Any) -> list[np.ndarray]:
    """Return the integrals of PySCF's molecule and of an auxiliary basis; None for exact integrals."""
    integrals = [mol.intor(name, hermi=1) for name in ("int1e_ovlp", "int1e_kin", "int1e_nuc")]
    if aux is None:
        return [*integrals, mol.intor("int2e", aosym="s8")]
    shells = (0, mol.nbas, 0, mol.nbas, mol.nbas, mol.nbas + aux.nbas)
    return [*integrals, aux.intor("int2c2e", hermi=1), (mol + aux).intor("int3c2e", aosym="s2ij", shls_slice=shells)]


def _calculation(mol: Molecule, case: Case) -> Any:
    """Return PySCF's calculation with the case's form of integrals."""
    return reference.calculation(mol, case.method, fitted=case.eri == "fitted")


# The shortest script of a PySCF user, which is compared with `qptlab energy`.
_PYSCF_PROCESS = """
import sys
from pyscf import dft, gto
atoms, basis, xc, eri, level = sys.argv[1:]
mf = dft.RKS(gto.M(atom=atoms, basis=basis, verbose=0), xc=xc)
mf.nlc = False
mf = mf.density_fit() if eri == "fitted" else mf
mf.grids.level = int(level)
mf.kernel()
"""


def _start(case: Case) -> tuple[list[Row], list[Row]]:
    """Measure whole processes up to the energy, imports included: with nothing compiled, all compiled, PySCF."""
    command = [sys.executable, "-m", "qptlab", "energy", case.molecule, "--xc", case.xc, "--basis", case.basis,
               "--eri", case.eri, "--grid-level", str(GRID_LEVEL), "--json"]
    lines = Molecule.parse(case.molecule).to_xyz().splitlines()[2:]
    peer = [sys.executable, "-c", _PYSCF_PROCESS, "\n".join(lines), case.basis,
            case.method.functional.require_pyscf_name(), case.eri, str(GRID_LEVEL)]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}

        def process(words: list[str]) -> float:
            run = functools.partial(subprocess.run, env=environment, check=True, stdout=subprocess.DEVNULL)
            return _seconds(run, words)[0]

        first = process(command)
        turns = [(process(command), process(peer)) for _ in range(case.repeats)]
    return [{"cold_s": first}, *({"warm_s": s} for s, _ in turns)], [{}, *({"warm_s": s} for _, s in turns)]


Engine = Callable[[Case], Iterator[Row]]
"""Work of a new process: a generator that yields the numbers of one turn, the first of them cold."""


class Benchmark(NamedTuple):
    """Benchmark: cases, and the functions that measure them.

    Attributes:
      title: title of the table.
      cases: rows of the table.
      peer: program that is measured for comparison.
      cold_and_warm: meaning of the two words in this benchmark.
      engines: work of our process and of the peer's; None if whole processes are measured.
    """

    title: str
    cases: list[Case]
    peer: str
    cold_and_warm: str
    engines: tuple[Engine, Engine] | None


def _grid(molecules: Sequence[str], repeats: int, batch: bool = False) -> Iterator[Case]:
    """Yield each molecule with two bases and functionals; no batch if exact integrals are too large for one."""
    for molecule in molecules:
        for basis in ("sto-3g", "def2-svp"):
            for xc in ("pbe", "b3lyp"):
                for eri in ("exact", "fitted") if basis == "def2-svp" else ("exact",):
                    case = Case(molecule, xc, basis, eri, repeats)
                    yield case._replace(batch=batch and (eri == "fitted" or _is_small(case)))


def _is_small(case: Case) -> bool:
    """Return True if `auto` stands for exact integrals."""
    return template(Molecule.parse(case.molecule), Method(case.xc, case.basis)).eri == "exact"


def benchmark(name: str, molecules: tuple[str, ...] = ()) -> Benchmark:
    """Return a benchmark.

    Args:
      name: one of `NAMES`.
      molecules: built-in names or SMILES; by default those of the benchmark.

    Raises:
      InputError: if the benchmark or a molecule is unknown.
    """
    if name not in NAMES:
        raise InputError(f"Expected a benchmark ({', '.join(NAMES)}), got {name!r}; use one of these.")
    selected = molecules or MOLECULES
    if name == "scf":
        cases = list(_grid(selected, 3, batch=True))
        return Benchmark("A converged SCF", cases, "PySCF", _TURNS, (_our_scf, _pyscf_scf))
    if name == "fock":
        cases = list(_grid(selected, 5))
        title = "Energy and Fock matrix of a given density"
        return Benchmark(title, cases, "PySCF", _TURNS, (_our_fock, _pyscf_fock))
    if name == "tensors":
        cases = list(_grid(selected, 5))
        title = "Integrals that the host computes"
        return Benchmark(title, cases, "libcint", _TURNS, (_our_tensors, _libcint_tensors))
    if name == "growth":
        alkanes = molecules or ["C" * n for n in ALKANES]
        cases = [Case(smiles, "pbe", "def2-svp", "fitted", 2) for smiles in alkanes]
        title = "Time of a converged SCF against the size of an alkane"
        return Benchmark(title, cases, "PySCF", _TURNS, (_our_scf, _pyscf_scf))
    cases = [case for case in _grid(selected, 3) if case.basis == "def2-svp"]
    return Benchmark("From the start of a process to its first energy", cases, "PySCF", _STARTS, None)


_TURNS = "Cold: the first geometry of a process, with nothing compiled; warm: the median of the later ones."
_STARTS = "Cold: a process that has to compile; warm: the next three, which load the compiled functions."
NAMES = ("scf", "fock", "tensors", "growth", "start")


def measure(selected: Benchmark) -> Iterator[Row]:
    """Measure case by case, and yield a row after each, so that a run that is stopped keeps its rows."""
    for case in selected.cases:
        mol = Molecule.parse(case.molecule)
        prepared = template(mol, case.method)
        row = {
            "molecule": case.molecule, "formula": mol.formula, "xc": case.xc, "basis": case.basis, "eri": case.eri,
            "nao": prepared.nao, "naux": prepared.naux, "ngrids": prepared.ngrids,
        }
        rows, peer_rows = _start(case) if selected.engines is None else _in_turns(selected.engines, case)
        row |= {"ours": _medians(rows), "peer": _medians(peer_rows)}
        for key, name in (("warm_s", "ratio"), ("batch_s", "batch_ratio")):
            ratios = [b[key] / a[key] for a, b in zip(rows, peer_rows, strict=True) if key in a and key in b]
            if ratios:
                row[name] = statistics.median(ratios)
        if "energy_ha" in row["ours"]:
            row["difference_mev"] = (row["ours"]["energy_ha"] - row["peer"]["energy_ha"]) * HARTREE_MEV
        yield row


def _in_turns(engines: Sequence[Engine], case: Case) -> tuple[list[Row], list[Row]]:
    """Return the turns of both engines. Each has a process of its own, which waits while the other one works."""
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in engines]
    processes = [
        spawn.Process(target=_serve, args=(engine, case, remote), daemon=True)
        for engine, (_, remote) in zip(engines, pipes, strict=True)
    ]
    for process, (_, remote) in zip(processes, pipes, strict=True):
        process.start()
        remote.close()  # so that a process that dies ends the wait for it
    turns = ([], [])
    try:
        while True:
            for (connection, _), rows in zip(pipes, turns, strict=True):
                connection.send(None)
                rows.append(connection.recv())
            if turns[0][-1] is None:
                return turns[0][:-1], turns[1][:-1]
    except EOFError:
        raise RuntimeError(f"the process that measured {case.molecule} ended; its message is above.") from None
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _serve(engine: Engine, case: Case, connection: Any) -> None:
    """Send the next turn of an engine after each message."""
    jax.config.update("jax_enable_compilation_cache", False)  # cold is cold
    turns = engine(case)
    while True:
        connection.recv()
        connection.send(next(turns, None))


def _medians(turns: Sequence[Row]) -> Row:
    """Return the median of each number over turns; of memory, the largest."""
    keys = dict.fromkeys(key for turn in turns for key in turn)
    return {
        key: (max if key == "memory_mib" else statistics.median)([turn[key] for turn in turns if key in turn])
        for key in keys
    }


def growth_exponent(rows: list[Row], engine: str, smallest: int = 4) -> float | None:
    """Return the exponent with which the warm time grows with the number of atomic orbitals.

    Args:
      rows: rows of the benchmark "growth".
      engine: "ours" or "peer".
      smallest: number of carbon atoms of the smallest alkane of the fit.

    Returns:
      Slope of log(warm time) against log(orbitals); None if there are fewer than two rows to fit.
    """
    points = [(row["nao"], row[engine]["warm_s"]) for row in rows if row["molecule"].count("C") >= smallest]
    if len(points) < 2:
        return None
    nao, seconds = np.log(np.array(points)).T
    return float(np.polyfit(nao, seconds, 1)[0])


def machine() -> Row:
    """Return date, processor, devices and versions, which are kept with each measurement."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "libraries": versions(("qptlab", "jax", "jaxlib", "pyscf")),
    }


COLUMNS = (
    ("cold", "ours", "cold_s"), ("warm", "ours", "warm_s"), ("= host", "ours", "host_s"),
    ("+ device", "ours", "device_s"), ("+ cycles", "ours", "solve_s"), ("with gradient", "ours", "gradient_s"),
    ("{peer} cold", "peer", "cold_s"), ("{peer} warm", "peer", "warm_s"), ("{peer} ÷ ours", None, "ratio"),
    ("batch", "ours", "batch_s"), ("{peer} batch", "peer", "batch_s"), ("{peer} ÷ ours, batch", None, "batch_ratio"),
    ("MiB", "ours", "memory_mib"), ("{peer} MiB", "peer", "memory_mib"), ("ΔE, meV", None, "difference_mev"),
)


def table(rows: list[Row], peer: str) -> str:
    """Return rows as a Markdown table; times are in seconds, and a batch's time is that of all its geometries."""
    columns = [column for column in COLUMNS if any(_value(row, column) is not None for row in rows)]
    titles = ["molecule", "method", "integrals", "AOs", *(name.format(peer=peer) for name, _, _ in columns)]
    cells = [
        [row["molecule"], f"{row['xc'].upper()}/{row['basis']}", row["eri"], row["nao"],
         *(_format(_value(row, column), column[2]) for column in columns)]
        for row in rows
    ]
    return tables.table(titles, cells, text_columns=3)


def _value(row: Row, column: tuple[str, str | None, str]) -> float | None:
    _, engine, key = column
    return (row if engine is None else row[engine]).get(key)


def _format(value: float | None, key: str) -> str:
    if value is None:
        return ""
    if key == "difference_mev":
        return f"{value:.1e}"
    return f"{value:.0f}" if key == "memory_mib" else f"{value:.3g}"


def describe(record: Row) -> str:
    """Return the record of `machine` as a sentence."""
    libraries = ", ".join(f"{library} {version}" for library, version in record["libraries"].items())
    devices = ", ".join(record["devices"])
    return f"{record['date']}, {record['processor']}, {record['cores']} cores, {devices}; {libraries}."


def keep(folder: pathlib.Path, name: str, record: Mapping, page: str) -> None:
    """Write a measurement as NAME.json, for programs, and as NAME.md, for people."""
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)


def write(name: str, selected: Benchmark, rows: list[Row], folder: pathlib.Path, command: str) -> None:
    """Write NAME.json, NAME.md and NAME.png.

    Args:
      name: name of the benchmark.
      selected: the benchmark.
      rows: rows that were measured.
      folder: an existing folder.
      command: command that repeats the measurement.
    """
    record = {"benchmark": name, "title": selected.title, "command": command, "machine": machine(), "rows": rows}
    has_memory = any("memory_mib" in row["ours"] for row in rows)
    text = [
        f"# {selected.title}", "", f"    {command}", "",
        f"{describe(record['machine'])} Times in seconds. {selected.cold_and_warm} "
        "A ratio is the median over turns, in each of which both programs work one after the other."
        + (" MiB: increase of a process's largest memory." if has_memory else ""),
        "", table(rows, selected.peer), "",
    ]
    if name == "growth":
        exponent, peer_exponent = (growth_exponent(rows, engine) for engine in ("ours", "peer"))
        if exponent is not None and peer_exponent is not None:
            text += [f"From C4 on, warm time grows with the number of AOs to the power {exponent:.2f}; "
                     f"PySCF's to the power {peer_exponent:.2f}.", ""]
    keep(folder, name, record, "\n".join([*text, f"![{selected.title}]({name}.png)", ""]))
    (_growth_figure if name == "growth" else _ratio_figure)(selected, rows).savefig(folder / f"{name}.png", dpi=120)


def _figure(height: float) -> tuple[Any, Any]:
    """Return a figure and its axes."""
    from matplotlib.figure import Figure  # loads only where something is drawn

    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.add_subplot()


def _ratio_figure(selected: Benchmark, rows: list[Row]) -> Any:
    """Return a figure of the ratios, a line for each case."""
    figure, axes = _figure(1.2 + 0.26 * len(rows))
    heights = np.arange(len(rows))[::-1]
    axes.plot([row["ratio"] for row in rows], heights, "o", color="#0072B2", label="one geometry, warm")
    batches = [(row["batch_ratio"], y) for row, y in zip(rows, heights, strict=True) if "batch_ratio" in row]
    if batches:
        axes.plot(*zip(*batches, strict=True), "D", color="#D55E00", label=f"batch of {BATCH} geometries")
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(heights, [f"{r['molecule']} {r['xc'].upper()}/{r['basis']} {r['eri']}" for r in rows], fontsize=8)
    axes.set_xlabel(f"time of {selected.peer} ÷ ours (right of 1: qptlab is faster)")
    axes.set_title(selected.title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best")
    return figure


def _growth_figure(selected: Benchmark, rows: list[Row]) -> Any:
    """Return a figure of the warm time against the number of atomic orbitals."""
    figure, axes = _figure(4.5)
    nao = [row["nao"] for row in rows]
    for engine, name, style in (("ours", "qptlab", "o-"), ("peer", "PySCF", "s--")):
        exponent = growth_exponent(rows, engine)
        label = name if exponent is None else f"{name}, exponent {exponent:.2f} from C4 on"
        colour = "#0072B2" if engine == "ours" else "#E69F00"
        axes.loglog(nao, [row[engine]["warm_s"] for row in rows], style, color=colour, label=label)
    for row in rows:
        axes.annotate(row["formula"], (row["nao"], row["ours"]["warm_s"]), (0, -14), textcoords="offset points",
                      ha="center", fontsize=8)
    axes.set_xlabel("atomic orbitals")
    axes.set_ylabel("time of a warm SCF, s")
    axes.set_title(f"{selected.title}, PBE/def2-SVP, fitted")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure
