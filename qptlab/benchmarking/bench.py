"""The DFT engine beside PySCF: times, memory and energies, measured in one run.

Each case has two fresh processes, ours and PySCF's, on the same geometries with the same functional, basis, grid,
thresholds and threads; neither finds warm caches or memory that the other left. They take turns, geometry by
geometry, so that a machine whose speed drifts slows both alike. Cold is the first geometry of a process, with nothing
compiled; warm the median of those after it. A ratio is PySCF's time over ours in the same turn, and its median.
"""

import datetime
import functools
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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from qptlab.dft.energy import kohn_sham
from qptlab.dft.integrals import template
from qptlab.dft.scf import scf_batch, solve
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import HARTREE_MEV

MOLECULES = ("water", "ethanol", "benzene", "uracil", "alanine-dipeptide")
ALKANES = (2, 4, 6, 8, 12, 16)
BATCH = 16
DISPLACEMENT_BOHR = 0.02

Row = dict[str, Any]


class Case(NamedTuple):
    """One line of a table.

    Attributes:
      molecule: built-in name or SMILES.
      xc: functional.
      basis: basis set.
      eri: "exact" or "fitted".
      repeats: warm geometries, one by one.
      batch: whether a batch of `BATCH` geometries is measured too.
    """

    molecule: str
    xc: str
    basis: str
    eri: str
    repeats: int
    batch: bool = False

    @property
    def method(self) -> Method:
        """The level of theory."""
        return Method(self.xc, self.basis, eri=self.eri)

    def geometries(self) -> list[Molecule]:
        """The same for whoever asks: small displacements, so that no result can be used again."""
        mol = Molecule.parse(self.molecule)
        rng = np.random.default_rng(0)
        return [
            mol.with_positions(mol.positions + DISPLACEMENT_BOHR * rng.normal(size=mol.positions.shape))
            for _ in range(max(BATCH if self.batch else 0, self.repeats + 1))
        ]


def _seconds(function, *arguments):
    """Time of a call, and its result."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began, result


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# What a fresh process does, turn by turn: each yields figures that belong to one turn, the first of them cold.


def _our_scf(case: Case) -> Iterator[Row]:
    given, method = case.geometries(), case.method
    idle = _peak_mib()

    def one(mol):
        prepared = template(mol, method)
        host_s, host = _seconds(prepared.host_integrals, mol.positions, None)
        device_s, ints = _seconds(prepared.complete, host)
        solve_s, result = _seconds(solve, ints)
        return {"host_s": host_s, "device_s": device_s, "solve_s": solve_s}, result

    cold, (_, result) = _seconds(one, given[0])
    yield {"cold_s": cold, "cycles": int(result.cycles), "energy_ha": float(result.energy)}
    for mol in given[1 : case.repeats + 1]:
        warm, (phases, _) = _seconds(one, mol)
        yield {"warm_s": warm, **phases, "memory_mib": _peak_mib() - idle}
    if case.batch:
        scf_batch(given[:1], method)
        yield {"batch_s": _seconds(scf_batch, given[:BATCH], method)[0]}


def _pyscf_scf(case: Case) -> Iterator[Row]:
    given = case.geometries()
    idle = _peak_mib()

    def one(mol):
        mf = _calculation(mol, case)
        mf.kernel()
        return mf

    cold, mf = _seconds(one, given[0])
    yield {"cold_s": cold, "cycles": int(mf.cycles), "energy_ha": float(mf.e_tot)}
    for mol in given[1 : case.repeats + 1]:
        yield {"warm_s": _seconds(one, mol)[0], "memory_mib": _peak_mib() - idle}
    if case.batch:
        yield {"batch_s": _seconds(lambda: [one(mol) for mol in given[:BATCH]])[0]}


def _our_fock(case: Case) -> Iterator[Row]:
    mol = case.geometries()[0]
    ints = template(mol, case.method).build(mol.positions)
    build = jax.jit(lambda dm, ints: kohn_sham(dm, ints))
    energy = jax.jit(jax.value_and_grad(lambda dm, ints: kohn_sham(dm, ints).terms.e_tot))
    first, *others = _densities(ints.dm_guess, case.repeats)
    cold, found = _seconds(build, first, ints)
    _seconds(energy, first, ints)
    yield {"cold_s": cold, "energy_ha": float(found.terms.e_tot)}
    for dm in others:
        yield {"warm_s": _seconds(build, dm, ints)[0], "gradient_s": _seconds(energy, dm, ints)[0]}


def _pyscf_fock(case: Case) -> Iterator[Row]:
    mf = _calculation(case.geometries()[0], case)
    hcore = mf.get_hcore()
    first, *others = _densities(mf.get_init_guess(), case.repeats)

    def build(dm):
        return mf.get_fock(h1e=hcore, vhf=mf.get_veff(dm=dm), dm=dm)

    cold, _ = _seconds(build, first)  # the grid and the two-electron integrals too, once
    yield {"cold_s": cold, "energy_ha": float(mf.energy_tot(dm=first))}
    for dm in others:
        yield {"warm_s": _seconds(build, dm)[0]}


def _densities(dm, repeats):
    return [np.asarray(dm) * (1 + 0.001 * i) for i in range(repeats + 1)]


def _our_tensors(case: Case) -> Iterator[Row]:
    """What the host makes of a geometry, and then the device of that."""
    given = case.geometries()
    prepared = template(given[0], case.method)
    for turn, mol in enumerate(given):
        seconds, host = _seconds(prepared.host_integrals, mol.positions, None)
        device_s = _seconds(prepared.complete, host)[0]
        yield {"warm_s": seconds, "device_s": device_s} if turn else {"cold_s": seconds}


def _libcint_tensors(case: Case) -> Iterator[Row]:
    """The same integrals asked of libcint one by one, and nothing else."""
    aux = None
    for turn, given in enumerate(case.geometries()):
        mol = reference.calculation(given, case.method, fitted=False).mol
        if case.eri == "fitted":
            aux = _calculation(given, case).with_df.build().auxmol
        seconds, _ = _seconds(_libcint, mol, aux)
        yield {"warm_s" if turn else "cold_s": seconds}


def _libcint(mol, aux):
    found = [mol.intor(name, hermi=1) for name in ("int1e_ovlp", "int1e_kin", "int1e_nuc")]
    if aux is None:
        return [*found, mol.intor("int2e", aosym="s8")]
    shells = (0, mol.nbas, 0, mol.nbas, mol.nbas, mol.nbas + aux.nbas)
    return [*found, aux.intor("int2c2e", hermi=1), (mol + aux).intor("int3c2e", aosym="s2ij", shls_slice=shells)]


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


def _start(case: Case) -> tuple[list[Row], list[Row]]:
    """Whole processes, imports included, from nothing to an energy: nothing compiled, all compiled, PySCF."""
    ours = [sys.executable, "-m", "qptlab", "energy", case.molecule, "--xc", case.xc, "--basis", case.basis,
            "--eri", case.eri, "--json"]
    lines = Molecule.parse(case.molecule).to_xyz().splitlines()[2:]
    theirs = [sys.executable, "-c", _PYSCF_PROCESS, "\n".join(lines), case.basis,
              case.method.functional.require_pyscf_name(), case.eri]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}

        def process(command):
            run = functools.partial(subprocess.run, env=environment, check=True, stdout=subprocess.DEVNULL)
            return _seconds(run, command)[0]

        first = process(ours)
        turns = [(process(ours), process(theirs)) for _ in range(case.repeats)]
    return [{"cold_s": first}, *({"warm_s": s} for s, _ in turns)], [{}, *({"warm_s": s} for _, s in turns)]


class Benchmark(NamedTuple):
    """What is measured, on what.

    Attributes:
      title: of the table.
      cases: its lines.
      peer: who is beside us.
      cold_and_warm: what the two words mean here.
      engines: what a process of ours does and what one of the peer does; None for whole processes.
    """

    title: str
    cases: list[Case]
    peer: str
    cold_and_warm: str
    engines: tuple[Callable[[Case], Iterator[Row]], Callable[[Case], Iterator[Row]]] | None


def _grid(molecules, repeats, batch=False):
    """Every molecule in either basis and functional; a batch unless exact integrals are larger than `auto` takes."""
    for molecule in molecules:
        for basis in ("sto-3g", "def2-svp"):
            for xc in ("pbe", "b3lyp"):
                for eri in ("exact", "fitted") if basis == "def2-svp" else ("exact",):
                    case = Case(molecule, xc, basis, eri, repeats)
                    yield case._replace(batch=batch and (eri == "fitted" or _is_small(case)))


def _is_small(case):
    return template(Molecule.parse(case.molecule), Method(case.xc, case.basis)).eri == "exact"


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
        cases = list(_grid(chosen, 3, batch=True))
        return Benchmark("A converged SCF", cases, "PySCF", _TURNS, (_our_scf, _pyscf_scf))
    if name == "fock":
        cases = list(_grid(chosen, 5))
        title = "Energy and Fock matrix of a given density"
        return Benchmark(title, cases, "PySCF", _TURNS, (_our_fock, _pyscf_fock))
    if name == "tensors":
        cases = list(_grid(chosen, 5))
        return Benchmark("Integrals that the host makes", cases, "libcint", _TURNS, (_our_tensors, _libcint_tensors))
    if name == "growth":
        alkanes = molecules or ["C" * n for n in ALKANES]
        cases = [Case(smiles, "pbe", "def2-svp", "fitted", 2) for smiles in alkanes]
        title = "Growth of a converged SCF with an alkane's size"
        return Benchmark(title, cases, "PySCF", _TURNS, (_our_scf, _pyscf_scf))
    cases = [case for case in _grid(chosen, 3) if case.basis == "def2-svp"]
    return Benchmark("From the start of a process to its first energy", cases, "PySCF", _STARTS, None)


_TURNS = "Cold: the first geometry of a process, with nothing compiled; warm: the median of those after it."
_STARTS = "Cold: a process that must compile; warm: the next three, which find what the first has compiled."
NAMES = ("scf", "fock", "tensors", "growth", "start")


def measure(chosen: Benchmark) -> Iterator[Row]:
    """Measure case by case; rows come as they are done, so that a run that is stopped keeps what it has."""
    for case in chosen.cases:
        mol = Molecule.parse(case.molecule)
        prepared = template(mol, case.method)
        row = {
            "molecule": case.molecule, "formula": mol.formula, "xc": case.xc, "basis": case.basis, "eri": case.eri,
            "nao": prepared.nao, "naux": prepared.naux, "ngrids": prepared.ngrids,
        }
        ours, theirs = _start(case) if chosen.engines is None else _in_turns(chosen.engines, case)
        row |= {"ours": _medians(ours), "peer": _medians(theirs)}
        for key, name in (("warm_s", "ratio"), ("batch_s", "batch_ratio")):
            ratios = [b[key] / a[key] for a, b in zip(ours, theirs, strict=True) if key in a and key in b]
            if ratios:
                row[name] = statistics.median(ratios)
        if "energy_ha" in row["ours"]:
            row["difference_mev"] = (row["ours"]["energy_ha"] - row["peer"]["energy_ha"]) * HARTREE_MEV
        yield row


def _in_turns(engines, case):
    """Turns of both engines, each in a process of its own that waits while the other works."""
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in engines]
    processes = [
        spawn.Process(target=_serve, args=(engine, case, theirs), daemon=True)
        for engine, (_, theirs) in zip(engines, pipes, strict=True)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that a process that dies ends the wait for it
    turns = ([], [])
    try:
        while True:
            for (mine, _), found in zip(pipes, turns, strict=True):
                mine.send(None)
                found.append(mine.recv())
            if turns[0][-1] is None:
                return turns[0][:-1], turns[1][:-1]
    except EOFError:
        raise RuntimeError(f"a process that measured {case.molecule} ended; its message stands above.") from None
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _serve(engine, case, connection):
    jax.config.update("jax_enable_compilation_cache", False)  # cold is cold
    turns = engine(case)
    while True:
        connection.recv()
        connection.send(next(turns, None))


def _medians(turns):
    keys = dict.fromkeys(key for turn in turns for key in turn)
    return {
        key: (max if key == "memory_mib" else statistics.median)([turn[key] for turn in turns if key in turn])
        for key in keys
    }


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
    ("cold", "ours", "cold_s"), ("warm", "ours", "warm_s"), ("= host", "ours", "host_s"),
    ("+ device", "ours", "device_s"), ("+ cycles", "ours", "solve_s"), ("with gradient", "ours", "gradient_s"),
    ("{peer} cold", "peer", "cold_s"), ("{peer} warm", "peer", "warm_s"), ("{peer} ÷ ours", None, "ratio"),
    ("batch", "ours", "batch_s"), ("{peer} batch", "peer", "batch_s"), ("{peer} ÷ ours, batch", None, "batch_ratio"),
    ("MiB", "ours", "memory_mib"), ("{peer} MiB", "peer", "memory_mib"), ("ΔE, meV", None, "difference_mev"),
)


def table(rows: list[Row], peer: str) -> str:
    """Rows as a Markdown table; times in seconds, of a batch as a whole."""
    columns = [column for column in COLUMNS if any(_value(row, column) is not None for row in rows)]
    head = ["molecule", "method", "integrals", "AOs", *(name.format(peer=peer) for name, _, _ in columns)]
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


def place(where: Row) -> str:
    """What `machine` says, in a sentence."""
    libraries = ", ".join(f"{library} {version}" for library, version in where["libraries"].items())
    devices = ", ".join(where["devices"])
    return f"{where['date']}, {where['processor']}, {where['cores']} cores, {devices}; {libraries}."


def keep(folder: pathlib.Path, name: str, record: Mapping, page: str) -> None:
    """Write what was measured as NAME.json, for programs, and as NAME.md, for people."""
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)


def write(name: str, chosen: Benchmark, rows: list[Row], folder: pathlib.Path, command: str) -> None:
    """Write NAME.json, NAME.md and NAME.png; `command` is what repeats the measurement."""
    record = {"benchmark": name, "title": chosen.title, "command": command, "machine": machine(), "rows": rows}
    where = record["machine"]
    text = [
        f"# {chosen.title}", "", f"    {command}", "",
        f"{place(where)} Times in seconds. {chosen.cold_and_warm} "
        "A ratio is the median over turns that both took one after the other."
        + (" MiB: how far a process's peak memory rose." if any("memory_mib" in row["ours"] for row in rows) else ""),
        "", table(rows, chosen.peer), "",
    ]
    if name == "growth":
        ours, theirs = (growth_exponent(rows, engine) for engine in ("ours", "peer"))
        if ours is not None and theirs is not None:
            text += [f"From C4 on, warm time grows with the number of AOs to the power {ours:.2f}; "
                     f"PySCF's to the power {theirs:.2f}.", ""]
    keep(folder, name, record, "\n".join([*text, f"![{chosen.title}]({name}.png)", ""]))
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
        axes.plot(*zip(*batches, strict=True), "D", color="#D55E00", label=f"batch of {BATCH} geometries")
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(places, [f"{r['molecule']} {r['xc'].upper()}/{r['basis']} {r['eri']}" for r in rows], fontsize=8)
    axes.set_xlabel(f"time of {chosen.peer} ÷ ours (right of 1: qptlab is faster)")
    axes.set_title(chosen.title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best")
    return figure


def _growth_figure(chosen, rows):
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
    axes.set_title(f"{chosen.title}, PBE/def2-SVP, fitted")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure
