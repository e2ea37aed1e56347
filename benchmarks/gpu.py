"""What there is to measure on a machine with a GPU, in one command.

    python benchmarks/gpu.py --minutes 9 --out benchmarks/results/gpu
    python benchmarks/gpu.py --minutes 9 --only uracil --out benchmarks/results/gpu
    python benchmarks/gpu.py --minutes 15 --only molecules --molecules qm9.xyz --out benchmarks/results/gpu
    python benchmarks/gpu.py --rehearse --out FOLDER        # small sizes, for a CPU

Each stage has a process and a time limit of its own, and writes its rows to `OUT/STAGE.json` as it goes. A stage that
fails or takes too long loses its last row only, and the next one runs. The stages, by their worth:

    right       energies, Fock matrices, forces and a gradient of the loss on the device, compared with the CPU
    uracil      error against time of a training on uracil in B3LYP/def2-SVP
    throughput  SCFs per second in batches, and PySCF on all cores
    profile     what bounds a training step: operations, roofline, and the raw trace
    parts       times of what a training step consists of, for one geometry and for a batch
    sizes       time and memory of a step for several networks and batches
    molecules   one model of many molecules: geometries per second and the share of waiting

No stage needs RDKit, plotly or the widgets. On a machine that has them, `python benchmarks/gpu.py --write-molecules
qm9.xyz --out FOLDER` writes geometries of QM9 for the last stage, and `python benchmarks/gpu.py --draw --out FOLDER`
draws timeline and roofline of the profile in FOLDER.
"""

import concurrent.futures
import dataclasses
import gzip
import json
import math
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

import qptlab as ql
from qptlab.benchmarking import bench
from qptlab.dft import screening
from qptlab.dft.fitted_response import responded
from qptlab.dft.integrals import template as template_of
from qptlab.dft.scf import scf_batch
from qptlab.dft.semilocal import exchange_correlation
from qptlab.evaluation import reference
from qptlab.gui import profiling
from qptlab.models.systems import make_systems

MAX_TRACE_BYTES = 16 * 2**20
"""Largest trace, compressed, that is kept."""

QM9 = "qm9:max_heavy=6,split=random-train"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the measurements are.

    Attributes:
      molecules: molecules, from small to large.
      basis: basis set.
      auxbasis: auxiliary basis of the training; None for the default.
      grid_level: level of the grid.
      functionals: functionals whose energies are compared.
      batches: numbers of geometries in an SCF of many.
      training_batches: numbers of geometries in a training step.
      networks: settings of networks.
      seconds: time of the stage.
      out: folder of the results.
      geometries: file with the molecules of the last stage; None for built-in ones.
    """

    molecules: tuple[str, ...]
    basis: str
    auxbasis: str | None
    grid_level: int
    functionals: tuple[str, ...]
    batches: tuple[int, ...]
    training_batches: tuple[int, ...]
    networks: tuple[ql.CorrectionConfig, ...]
    seconds: float
    out: pathlib.Path
    geometries: pathlib.Path | None

    @property
    def network(self) -> ql.CorrectionConfig:
        """Settings of the network of medium size among the equivariant ones."""
        return self.networks[min(1, len(self.networks) - 1)]

    def method(self, xc: str, eri: str) -> ql.Method:
        """Return a level of theory."""
        return ql.Method(xc, self.basis, self.grid_level, eri=eri)


def scale(rehearse: bool, seconds: float, out: pathlib.Path, geometries: pathlib.Path | None) -> Scale:
    """Return the sizes of a measurement or of a rehearsal."""
    if rehearse:
        seconds = min(seconds, 30.0)
        small = ql.EquivariantConfig("small", iterations=0)
        few = (1, 2)
        return Scale(("hydrogen", "water"), "sto-3g", None, 0, ("pbe",), few, few, (small,), seconds, out, geometries)
    networks = (
        *(ql.EquivariantConfig(preset, iterations=0) for preset in ("small", "base", "large")),
        *(ql.QPTConfig(preset, precision, iterations=0) for preset in ("micro", "small", "base", "medium")
          for precision in ("float32", "bfloat16")),
    )
    names, functionals = ("water", "ethanol", "uracil"), ("pbe", "b3lyp", "r2scan")
    scfs, steps = (1, 16, 256), (1, 8, 32)
    return Scale(names, "def2-svp", "etb-1.8", 3, functionals, scfs, steps, networks, seconds, out, geometries)


def displaced(mol: ql.Molecule, count: int, seed: int = 0) -> list[ql.Molecule]:
    """Return geometries with small random displacements."""
    rng = np.random.default_rng(seed)
    noise = bench.DISPLACEMENT_BOHR * rng.normal(size=(count, *mol.positions.shape))
    return [mol.with_positions(mol.positions + shift) for shift in noise]


def course(trainer: ql.Trainer, minutes: float) -> Iterator[Row]:
    """Train, and yield the last row of the metrics from time to time; raise the error that ended the training."""
    trainer.start()
    while trainer.is_alive:
        time.sleep(min(10, minutes * 6))
        if trainer.rows:
            yield trainer.rows[-1]
    if trainer.error is not None:
        raise RuntimeError(str(trainer.error))


# Stages ---------------------------------------------------------------------------------------


def right(sizes: Scale) -> Iterator[Row]:
    """Compare the device with the CPU; processes compile side by side."""
    cases: list[tuple[Callable[..., Row], Any]] = [(_gradient, ())]
    cases += [
        (_compared, (name, xc, eri))
        for name in sizes.molecules for xc in sizes.functionals for eri in ("fitted", "exact")
    ]
    cases.insert(2, (_batched, ()))
    workers = min(os.cpu_count() or 1, len(cases), 12)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        futures = [pool.submit(function, sizes, *arguments) for function, arguments in cases]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()


def _places() -> dict[str, jax.Device]:
    return {"cpu": jax.devices("cpu")[0], "device": jax.devices()[0]}


def _compared(sizes: Scale, name: str, xc: str, eri: str) -> Row:
    """Return the differences of energies, Fock matrices and forces."""
    mol, method, answers = displaced(ql.Molecule.from_name(name), 1)[0], sizes.method(xc, eri), []
    for place in _places().values():
        with jax.default_device(place):
            result = ql.scf(mol, method)
            answers.append((result.energy, result.fock, ql.forces(mol, method, result.fock)))
    energy, fock, force = (float(np.abs(np.subtract(*pair)).max()) for pair in zip(*answers, strict=True))
    return {"molecule": name, "method": f"{method.label}, {eri}", "energy_ha": energy, "fock_ha": fock,
            "forces_ha_per_bohr": force}


def _batched(sizes: Scale) -> Row:
    """Return the difference of energies of a batch on the device and one by one on the CPU."""
    mol = ql.Molecule.from_name(sizes.molecules[1])
    method, geometries = sizes.method("pbe", "fitted"), displaced(mol, max(sizes.batches[:2]))
    together = np.asarray(scf_batch(geometries, method).energy)
    with jax.default_device(_places()["cpu"]):
        singly = [float(ql.scf(geometry, method).energy) for geometry in geometries]
    return {"molecule": f"{len(geometries)} geometries of {mol.name}", "method": method.label,
            "energy_ha": float(np.abs(together - singly).max())}


def _gradient(sizes: Scale) -> Row:
    """Return the relative difference of the gradients of the loss."""
    mol, method = ql.Molecule.from_name(sizes.molecules[1]), sizes.method("pbe", "fitted")
    config = dataclasses.replace(sizes.network, iterations=1)
    rng = np.random.default_rng(1)
    start = ql.make_objective(mol, method, config).init(0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.01 * rng.normal(size=leaf.shape), leaf.dtype), start)
    gradients = []
    for place in _places().values():
        with jax.default_device(place):
            (system,), kinds = make_systems([mol], method, config)
            model = ql.CorrectionModel(config, kinds)
            sample = jax.device_put(system.sample(system.host_integrals(mol.positions)), place)
            gradient = jax.jit(jax.grad(model.energy))(jax.device_put(params, place), sample)
            gradients.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]))
    return {"molecule": mol.name, "method": f"gradient of the loss, {method.label}",
            "relative": float(np.linalg.norm(gradients[0] - gradients[1]) / np.linalg.norm(gradients[0]))}


def level(sizes: Scale) -> ql.Method:
    """Return the level of theory of the training."""
    return dataclasses.replace(sizes.method("b3lyp5", "fitted"), auxbasis=sizes.auxbasis)


def training(sizes: Scale, minutes: float, out: str) -> ql.Trainer:
    """Return the training on the largest molecule, with the best settings known."""
    batch = 4 if jax.default_backend() == "cpu" else 32
    train = ql.TrainConfig(minutes=minutes, batch=batch, validation=2)
    config = dataclasses.replace(sizes.network, iterations=2)
    return ql.Trainer(ql.Molecule.from_name(sizes.molecules[-1]), level(sizes), config, train, out=sizes.out / out)


def uracil(sizes: Scale) -> Iterator[Row]:
    """Train, and yield the course and then the errors."""
    minutes = max(sizes.seconds - 60, 10) / 60
    trainer = training(sizes, minutes, "uracil-run")
    for last in course(trainer, minutes):
        yield {"course": last}
    yield {"batch": trainer.train_config.batch, "updates": trainer.step}
    evaluation = ql.evaluate(trainer.predictor, ql.read_xyz(trainer.out / "validation.xyz"))
    yield evaluation.to_dict()


def throughput(sizes: Scale) -> Iterator[Row]:
    """Yield SCFs per second, integrals included."""
    for name in (sizes.molecules[0], sizes.molecules[-1]):
        mol, method = ql.Molecule.from_name(name), sizes.method("pbe", "fitted")
        template = template_of(mol, method)
        for threads in (1, None):
            geometries = iter(displaced(mol, 5, 8))
            spent = [_seconds(template.host_integrals, next(geometries).positions, threads) for _ in range(5)]
            yield {"molecule": name, "engine": f"libcint, {threads or 'all'} threads", "batch": 1,
                   "per_second": 1 / float(np.median(spent))}
        for batch in sizes.batches:
            cold, *warm = (_seconds(scf_batch, displaced(mol, batch, seed), method) for seed in range(3))
            yield {"molecule": name, "engine": "qptlab, fitted integrals", "batch": batch, "cold_s": cold,
                   "per_second": batch / min(warm)}
        for form in ("fitted", "exact"):
            spent = [reference.converged(geometry, method, fitted=form == "fitted").seconds
                     for geometry in displaced(mol, 2, 9)]
            yield {"molecule": name, "engine": f"PySCF, all cores, {form} integrals", "batch": 1,
                   "per_second": 1 / min(spent)}


def profile(sizes: Scale) -> Iterator[Row]:
    """Profile the training of the stage `uracil`, and keep its trace."""
    trainer = training(sizes, sizes.seconds / 60, "profile-run")
    trainer.start()
    try:
        found = profiling.profile(trainer, 4)
    finally:
        trainer.stop()
    yield {"summary": found.summary(), **_plain(found)}
    trace = max(found.path.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    packed = gzip.compress(trace.read_bytes())
    if len(packed) <= MAX_TRACE_BYTES:
        (sizes.out / "trace.xplane.pb.gz").write_bytes(packed)
    yield {"trace_bytes": len(packed)}


def parts(sizes: Scale) -> Iterator[Row]:
    """Yield the times of what a training step consists of, for one geometry and for a batch."""
    mol, config = ql.Molecule.from_name(sizes.molecules[-1]), dataclasses.replace(sizes.network, iterations=2)
    (system,), _ = make_systems([mol], level(sizes), config)
    host, template = system.host_integrals(mol.positions), system.template
    yield {"part": "host integrals", "mib": sum(leaf.nbytes for leaf in jax.tree.leaves(host)) / 2**20}
    for threads in sorted({1, os.cpu_count() or 1}):
        geometries = [geometry.positions for geometry in displaced(mol, 2 * threads)]
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            list(pool.map(system.host_integrals, geometries))
            spent = time.perf_counter() - began
        yield {"part": "host integrals", "threads": threads, "warm_s": spent / len(geometries)}
    yield {"part": "transfer to the device", **_cold_and_warm(jax.device_put, host)}
    yield {"part": "sample", **_cold_and_warm(system.sample, host)}

    for count in (1, max(sizes.training_batches)):
        ints = _copies(template.complete(host), count)
        dms, focks = ints.dm_guess, _copies(ints.hcore[0], count)
        model = jax.jit(jax.vmap(screening.screening))(ints)
        calls: dict[str, tuple] = {
            "eigh, float64": (jnp.linalg.eigh, focks),
            "Coulomb": (jax.vmap(lambda dm, ints: ints.repulsion.coulomb(dm)), dms, ints),
            "exchange": (jax.vmap(lambda dm, ints: ints.repulsion.exchange(dm)), dms, ints),
            "Fock build": (jax.vmap(ql.fock), dms, ints),
            "density of a Fock matrix": (jax.vmap(ql.density_from_fock), focks, ints),
            "charge screening": (jax.vmap(screening.screened), focks, dms, ints, model),
            "response": (jax.vmap(responded), focks, dms, ints),
        }
        for name, (function, *arguments) in calls.items():
            yield {"part": name, "geometries": count, **_cold_and_warm(jax.jit(function), *arguments)}
        del ints, model, calls
        for chunks in (1, 8, 64):
            for keeps in (True, False):
                points = 128 * math.ceil(template.ngrids / chunks / 128)
                layout = dataclasses.replace(template.layout, chunk=points, keeps_aos=keeps)
                ints = _copies(dataclasses.replace(template, layout=layout).complete(host), count)
                function = jax.jit(jax.vmap(lambda dm, ints: exchange_correlation(dm[None], ints)))
                yield {"part": "exchange–correlation", "geometries": count, "chunk": points,
                       "AO values": "stored" if keeps else "recomputed", **_cold_and_warm(function, dms, ints)}


def _copies(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)


def _cold_and_warm(function: Callable, *arguments: Any) -> Row:
    """Return the time of the first call, and the median of the next ones, s."""
    cold, *warm = (_seconds(function, *arguments) for _ in range(6))
    return {"cold_s": cold, "warm_s": float(np.median(warm))}


def sizes_of_networks(sizes: Scale) -> Iterator[Row]:
    """Yield time and memory of a step."""
    mol, method = ql.Molecule.from_name(sizes.molecules[-1]), sizes.method("pbe", "fitted")
    for config in sizes.networks:
        for batch in sizes.training_batches:
            train = ql.TrainConfig(minutes=None, steps=10, batch=batch)
            steps = [metrics for _, metrics in ql.train(ql.make_objective(mol, method, config), train)]
            stats = jax.local_devices()[0].memory_stats() or {}
            yield {"network": str(config), "batch": batch, "compile_s": sum(step.compile_s for step in steps),
                   "step_s": float(np.median(np.diff([step.seconds for step in steps[-6:]]))),
                   "waited_s": sum(step.data_wait_s for step in steps[-6:]),
                   "peak_mib_so_far": stats.get("peak_bytes_in_use", 0) / 2**20}


def molecules(sizes: Scale) -> Iterator[Row]:
    """Train one model of many molecules."""
    mols = ql.read_xyz(sizes.geometries) if sizes.geometries else [*map(ql.Molecule.from_name, sizes.molecules)]
    minutes = 0.6 * sizes.seconds / 60
    train = ql.TrainConfig(minutes=minutes, sampling=ql.Sampling("modes"), validation=1)
    config = dataclasses.replace(sizes.network, iterations=2)
    trainer = ql.Trainer(mols, sizes.method("b3lyp5", "fitted"), config, train, out=sizes.out / "molecules-run")
    for last in course(trainer, minutes):
        yield {"molecules": len(mols), **last, "geometries_per_second": last["geometries"] / last["seconds"],
               "waiting_share": sum(row["data_wait_s"] for row in trainer.rows) / last["seconds"]}


STAGES: dict[str, tuple[Callable[[Scale], Iterator[Row]], float]] = {
    "right": (right, 3), "uracil": (uracil, 6), "throughput": (throughput, 3), "profile": (profile, 2),
    "parts": (parts, 2), "sizes": (sizes_of_networks, 2), "molecules": (molecules, 2),
}
"""Functions of the stages, and their shares of the time."""


def _seconds(function: Callable, *arguments: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def _plain(value: Any) -> Any:
    """Return named tuples as dictionaries, and paths as texts."""
    if hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, pathlib.Path) else value


def draw(out: pathlib.Path) -> None:
    """Draw timeline and roofline of the profile in a folder."""
    from qptlab.gui import pictures, plots  # they need plotly

    row = json.loads((out / "profile.json").read_text())["rows"][0]
    kinds = {"operations": profiling.Operation, "executables": profiling.Executable, "timeline": profiling.Span}
    nested = {name: [kind(**item) for item in row[name]] for name, kind in kinds.items()}
    fields = {name: row[name] for name in profiling.Profile._fields}
    found = profiling.Profile(**{**fields, **nested, "path": pathlib.Path(row["path"])})
    for name, figure in (("timeline", plots.timeline_figure(found)), ("roofline", plots.roofline_figure(found))):
        (out / f"profile-{name}.png").write_bytes(pictures.png(figure))


# One command ------------------------------------------------------------------------------------


def run_stage(name: str, sizes: Scale, command: str) -> None:
    """Run a stage in this process; its rows are written one by one."""
    record: Row = {"command": command, "machine": bench.machine(), "stage": name, "ended": "time limit", "rows": []}
    record["machine"]["precision"] = str(jnp.zeros(1).dtype)
    path = sizes.out / f"{name}.json"
    began = time.perf_counter()
    try:
        for row in STAGES[name][0](sizes):
            record["rows"].append({"at_s": round(time.perf_counter() - began, 1), **row})
            path.write_text(json.dumps(record, indent=1) + "\n")
        record["ended"] = "complete"
    except Exception as error:
        record["ended"] = f"{type(error).__name__}: {error}"
        raise typer.Exit(1) from error
    finally:
        path.write_text(json.dumps(record, indent=1) + "\n")


def main(
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the results.")],
    minutes: Annotated[float, typer.Option(help="Time of all stages, min.")] = 9.0,
    only: Annotated[list[str] | None, typer.Option(help="Stage to run; may be repeated.")] = None,
    molecules_file: Annotated[
        pathlib.Path | None, typer.Option("--molecules", help="XYZ file with the molecules of the last stage.")
    ] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Small sizes, for a CPU.")] = False,
    write_molecules: Annotated[
        pathlib.Path | None, typer.Option(help="Write molecules of QM9 to this XYZ file, and end.")
    ] = None,
    draw_profile: Annotated[bool, typer.Option("--draw", help="Draw the profile in OUT, and end.")] = False,
    stage: Annotated[str | None, typer.Option(hidden=True)] = None,
    seconds: Annotated[float, typer.Option(hidden=True)] = 0.0,
) -> None:
    """Run the stages, one after another."""
    names = only or list(STAGES)
    if unknown := sorted({*names} - {*STAGES}):
        raise typer.BadParameter(f"Expected stages among {', '.join(STAGES)}, got {', '.join(unknown)}.")
    if write_molecules is not None:
        write_molecules.write_text("".join(mol.to_xyz() for mol in ql.read_molecules([QM9])))
        return
    if draw_profile:
        draw(out)
        return
    arguments = ["--out", str(out), "--minutes", f"{minutes:g}", *(["--rehearse"] if rehearse else []),
                 *(["--molecules", str(molecules_file)] if molecules_file else [])]
    if stage is not None:
        command = " ".join(["python benchmarks/gpu.py", *arguments])
        run_stage(stage, scale(rehearse, seconds, out, molecules_file), command)
        return
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    for index, name in enumerate(names):
        rest = sum(STAGES[other][1] for other in names[index:])
        limit = (end - time.monotonic()) * STAGES[name][1] / rest
        began = time.monotonic()
        # Several processes share the device in the first stage; each takes the memory that it needs.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if name == "right" else {}
        command = [sys.executable, __file__, "--stage", name, "--seconds", f"{limit:.0f}", *arguments]
        ended = _run(command, limit, environment, out / f"{name}.log")
        typer.echo(f"{name}: {ended} after {time.monotonic() - began:.0f} s of {limit:.0f} s")


def _run(command: list[str], limit: float, environment: dict[str, str], log: pathlib.Path) -> str:
    """Run a process for a limited time, with its messages in a file, and return how it ended."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            return "stopped at its time limit"
        finally:
            if process.returncode is None:  # the processes that it has started hold the device, too
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text().strip().splitlines() or ["no message"]
    return "complete" if process.returncode == 0 else f"failed: {lines[-1]}"


if __name__ == "__main__":
    typer.run(main)
