"""The same actions from a shell: `qptlab`, or `python -m qptlab`.

With --json a command prints one JSON object on stdout and nothing else there; progress goes to
stderr. Exit status: 0 done, 2 bad input with one line on stderr, 1 anything else.
"""

import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
import warnings
from typing import Annotated, cast

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import qptlab as ql
from qptlab import reference
from qptlab.errors import InputError
from qptlab.geometries import SAMPLERS
from qptlab.method import ERI_FORMS, FUNCTIONALS
from qptlab.models.qpt import PRECISIONS, PRESETS
from qptlab.run import LIBRARIES
from qptlab.scf import GUESSES, SOLVERS
from qptlab.training import LOSSES
from qptlab.units import HARTREE_MEV

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural networks trained by backpropagating through density functional theory.",
)

_stderr = Console(stderr=True, highlight=False)

# typer brings its own copy of click from 0.20 on; this is the class of usage errors in either case.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

MoleculeArgument = Annotated[
    str, typer.Argument(metavar="MOLECULE", help="A built-in name, a SMILES or an XYZ file (ångström).")
]
XC = Annotated[str, typer.Option("--xc", help=f"Functional, one of {', '.join(FUNCTIONALS)}.")]
Basis = Annotated[str, typer.Option("--basis", help="A basis set by PySCF's name.")]
GridLevel = Annotated[int, typer.Option("--grid-level", help="PySCF's grid level, 0 to 5.")]
Eri = Annotated[str, typer.Option("--eri", help=f"Two-electron integrals, one of {', '.join(ERI_FORMS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is random.")]
Sampler = Annotated[str, typer.Option("--sampler", help=f"One of {', '.join(SAMPLERS)}.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Of md, kelvin.")]
Frames = Annotated[str, typer.Option("--frames", help="XYZ file of the user's frames, for --sampler file.")]
Molecules = Annotated[
    list[str],
    typer.Argument(metavar="MOLECULE...", help="As elsewhere; an XYZ file of several, or a .smi file, too."),
]
Geometries = Annotated[
    pathlib.Path, typer.Option("--geometries", help="(Multi-frame) XYZ file, ångström.")
]


@app.command()
def energy(
    molecule: MoleculeArgument,
    xc: XC = "pbe",
    basis: Basis = "def2-svp",
    grid_level: GridLevel = 1,
    eri: Eri = "auto",
    auxbasis: Annotated[str | None, typer.Option("--auxbasis", help="For fitted integrals; default PySCF's.")] = None,
    spin: Annotated[int | None, typer.Option("--spin", help="Unpaired electrons; default 0 or 1.")] = None,
    guess: Annotated[str, typer.Option("--guess", help=f"One of {', '.join(GUESSES)}.")] = "minao",
    solver: Annotated[str, typer.Option("--solver", help=f"One of {', '.join(SOLVERS)}.")] = "diis",
    level_shift: Annotated[float, typer.Option("--level-shift", help="Of virtual levels, hartree.")] = 0.0,
    damping: Annotated[float, typer.Option("--damping", help="Share of the last Fock matrix kept.")] = 0.0,
    forces: Annotated[bool, typer.Option("--forces", help="Also the forces on the atoms.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare with PySCF.")] = False,
    as_json: Json = False,
) -> None:
    """A converged DFT energy, unrestricted where there are unpaired electrons."""
    mol, method = ql.Molecule.parse(molecule, spin), ql.Method(xc, basis, grid_level, eri, auxbasis)
    began = time.perf_counter()
    result = ql.scf(mol, method, guess=guess, solver=solver, level_shift=level_shift, damping=damping)
    record = {
        "energy_ha": float(result.energy),
        "converged": bool(result.converged),
        "cycles": int(result.cycles),
        "mo_energy_ha": np.asarray(result.mo_energy).tolist(),
        "dipole_debye": ql.dipole_debye(mol, method, result.dm).tolist(),
        "charges": ql.charges(mol, method, result.dm).tolist(),
        "gap_ha": None if math.isnan(result.gap) else result.gap,
        "eri": ql.template(mol, method).eri,
    }
    if forces:
        record["forces_ha_per_bohr"] = ql.forces(mol, method, result.fock).tolist()
    record["seconds"] = time.perf_counter() - began
    if check:
        record |= _pyscf_energies(mol, method, record)
    if as_json:
        _print_json(record)
    else:
        _print_energy(mol, method, record)
    if not result.converged:
        _stderr.print(
            f"qptlab: the SCF did not converge in {record['cycles']} cycles: the energy is not final; "
            "--level-shift 0.3, --damping 0.5 or another --guess would be worth a try.", soft_wrap=True
        )
        raise typer.Exit(1)


def _pyscf_energies(mol, method, record) -> dict:
    """PySCF's energy with exact integrals and, where ours are fitted, with the same fit."""
    answer = reference.converged(mol, method)
    found = {"pyscf_energy_ha": answer.energy, "error_mev": (record["energy_ha"] - answer.energy) * HARTREE_MEV}
    if record["eri"] == "fitted":
        fitted = reference.converged(mol, method, fitted=True).energy
        found["pyscf_fitted_energy_ha"] = fitted
        found["error_same_fit_mev"] = (record["energy_ha"] - fitted) * HARTREE_MEV
    return found


def _print_energy(mol, method, record) -> None:
    unpaired = f"  {mol.spin} unpaired" if mol.spin else ""
    _print(f"{mol.formula}{unpaired}  {method.label}  grid level {method.grid_level}  {record['eri']} integrals")
    _print(f"energy        {record['energy_ha']:.9f} hartree, {record['cycles']} cycles")
    if record["gap_ha"] is not None:
        _print(f"HOMO–LUMO gap {record['gap_ha']:.6f} hartree")
    _print(f"dipole        {np.linalg.norm(record['dipole_debye']):.4f} debye")
    pull = record.get("forces_ha_per_bohr")
    for index, symbol in enumerate(mol.symbols):
        force = "  force " + " ".join(f"{x:12.8f}" for x in pull[index]) + " hartree/bohr" if pull else ""
        _print(f"{index:4} {symbol:2}       Mulliken charge {record['charges'][index]:8.4f}{force}")
    for key, name in (("", "PySCF"), ("fitted_", "PySCF, fitted")):
        if f"pyscf_{key}energy_ha" in record:
            error = record["error_same_fit_mev" if key else "error_mev"]
            _print(f"{name:13} {record[f'pyscf_{key}energy_ha']:.9f} hartree, difference {error:.2e} meV")


@app.command()
def train(
    molecules: Molecules,
    out: Annotated[pathlib.Path, typer.Option("--out", help="The run's folder, new or empty.")],
    xc: XC = "pbe",
    basis: Basis = "def2-svp",
    grid_level: GridLevel = 1,
    eri: Eri = "auto",
    minutes: Annotated[float | None, typer.Option("--minutes", help="Training time; default 5.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Number of updates.")] = None,
    sampler: Sampler = "md",
    temperature: Temperature = 500.0,
    sigma: Annotated[float, typer.Option("--sigma", help="Of perturb, bohr.")] = 0.05,
    frames: Frames = "",
    preset: Annotated[str, typer.Option("--preset", help=f"Network, one of {', '.join(PRESETS)}.")] = "micro",
    precision: Annotated[
        str, typer.Option("--precision", help=f"Of the network, one of {', '.join(PRECISIONS)}.")
    ] = "float32",
    iterations: Annotated[int, typer.Option("-n", "--iterations", help="DFT iterations after the network.")] = 2,
    train_iterations: Annotated[
        int, typer.Option("--train-iterations", help="The same while training; -1 for as many as -n.")
    ] = 0,
    guess: Annotated[str, typer.Option("--guess", help=f"One of {', '.join(GUESSES)}.")] = "minao",
    loss: Annotated[str, typer.Option("--loss", help=f"One of {', '.join(LOSSES)}.")] = "energy",
    batch: Annotated[int, typer.Option("--batch", help="Geometries per update.")] = 4,
    microbatch: Annotated[
        int | None, typer.Option("--microbatch", help="Geometries at a time, to save memory; default all.")
    ] = None,
    reuse: Annotated[int, typer.Option("--reuse", help="How often a geometry is used, on average.")] = 16,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest.")] = 1e-3,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Train a QPT on one molecule or several, without labels."""
    if minutes is None and steps is None:
        minutes = 5.0
    trainer = ql.Trainer(
        ql.read_molecules(molecules),
        ql.Method(xc, basis, grid_level, eri),
        ql.QPTConfig(preset, iterations, precision, guess),
        ql.TrainConfig(
            minutes=minutes, steps=steps, seed=seed, loss=loss, batch=batch, microbatch=microbatch, reuse=reuse,
            iterations=None if train_iterations < 0 else train_iterations, learning_rate=learning_rate,
            sampling=ql.Sampling(sampler, temperature, sigma, frames),
        ),
        out=out,
        resume=resume,
    )
    try:
        _follow(trainer)
    except KeyboardInterrupt:
        trainer.stop()
        _stderr.print(f"qptlab: stopped at step {trainer.step}; --resume goes on from there.")
        raise typer.Exit(1) from None
    trainer.run()  # has ended: raises what went wrong, if anything did
    record = _summary(trainer)
    if as_json:
        _print_json(record)
    else:
        _print(f"{record['steps']} steps in {record['seconds']:.0f} s, {record['eri']} integrals, kept in {out}")
        for key in ("validation_mae_mev", "no_network_mae_mev", "pyscf_stopped_mae_mev"):
            if record[key] is not None:
                _print(f"{key:24} {record[key]:.5g}")


def _summary(trainer) -> dict:
    rows = trainer.rows
    judged = next((row for row in reversed(rows) if "validation_mae_mev" in row), {})
    return {
        "out": str(trainer.out),
        "molecules": [mol.formula for mol in trainer.molecules],
        "eri": trainer.predictor.systems[0].template.eri,
        "steps": trainer.step,
        "seconds": rows[-1]["seconds"] if rows else 0.0,
        "energy_ha": rows[-1]["energy_ha"] if rows and trainer.train_config.loss != "labels" else None,
        "validation_mae_mev": judged.get("validation_mae_mev"),
        "no_network_mae_mev": judged.get("no_network_mae_mev"),
        "pyscf_stopped_mae_mev": judged.get("pyscf_stopped_mae_mev"),
        "data_wait_s": sum(row["data_wait_s"] for row in rows),
        "compile_s": sum(row["compile_s"] for row in rows),
    }


def _follow(trainer) -> None:
    """Show the events of a trainer on stderr until it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_stderr) as bar:
        task = bar.add_task("starting", total=1.0)
        seen = len(trainer.events())  # a resumed run brings its earlier ones
        trainer.start()
        alive = True
        while alive:
            alive = trainer.is_alive
            new = trainer.events(seen)
            seen += len(new)
            for event in new:
                if event.kind == "step" and event.row is not None:
                    done = trainer.train_config.progress(event.row["step"], event.row["seconds"])
                    bar.update(task, completed=done)
                elif event.kind == "validation" and event.row is not None:
                    bar.update(task, description=f"step {event.row['step']}: {event.text}")
                    if not _stderr.is_terminal:
                        _stderr.print(f"step {event.row['step']}: {event.text}")
                elif event.kind in ("compiling", "news"):
                    bar.update(task, description=event.text)
            time.sleep(0.2)


@app.command()
def evaluate(
    run: Annotated[pathlib.Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    geometries: Geometries,
    as_json: Json = False,
) -> None:
    """Errors of a trained model against PySCF, beside both baselines."""
    frames = ql.read_xyz(geometries)
    predictor = ql.load(run)
    with Progress(console=_stderr) as bar:
        task = bar.add_task("comparing with PySCF", total=len(frames))
        found = ql.evaluate(predictor, frames, lambda done, _: bar.update(task, completed=done))
    if as_json:
        _print_json(found.to_dict())
    else:
        _print(str(found))


@app.command()
def predict(
    run: Annotated[pathlib.Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    geometries: Geometries,
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new HDF5 file.")],
    as_json: Json = False,
) -> None:
    """Predict energies, matrices and orbitals of geometries, into an HDF5 file."""
    import h5py

    frames = ql.read_xyz(geometries)
    predictor = ql.load(run)
    _refuse_existing(out)
    with Progress(console=_stderr) as bar:
        task = bar.add_task("predicting", total=len(frames))
        predictions = []
        for prediction in predictor.map(frames):  # a wrong molecule is found before anything is written
            predictions.append(prediction)
            bar.advance(task)
    with h5py.File(out, "x") as file:
        file.attrs["method"] = predictor.method.label
        file.attrs["units"] = "hartree, bohr"
        formulas: dict[str, list[int]] = {}
        for index, frame in enumerate(frames):
            formulas.setdefault(frame.formula, []).append(index)
        for formula, members in formulas.items():
            # What has one formula has arrays of one shape; several have a group each.
            group = file if len(formulas) == 1 else file.create_group(formula)
            group["frame"] = np.array(members)
            group["atomic_numbers"] = np.stack([frames[i].atomic_numbers for i in members])
            group["positions"] = np.stack([frames[i].positions for i in members])
            for name in ("energy", "fock", "dm", "mo_energy", "mo_coeff", "residual"):
                group[name] = np.stack([getattr(predictions[i], name) for i in members])
    energies, residuals = ([float(getattr(p, name)) for p in predictions] for name in ("energy", "residual"))
    if as_json:
        _print_json({"out": str(out), "n": len(frames), "energy_ha": energies, "residual_ha": residuals})
    else:
        _print(f"{len(frames)} predictions written to {out}; residuals from {min(residuals):.2e} to "
               f"{max(residuals):.2e} hartree")


@app.command()
def sample(
    molecule: MoleculeArgument,
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new XYZ file.")],
    n: Annotated[int, typer.Option("--n", help="Number of frames.")] = 100,
    sampler: Sampler = "md",
    temperature: Temperature = 500.0,
    sigma: Annotated[float, typer.Option("--sigma", help="Of perturb, bohr.")] = 0.05,
    stride: Annotated[int, typer.Option("--stride", help="Keep every n-th geometry.")] = 8,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw geometries of a molecule into an XYZ file, from a stream that no training sees."""
    if n < 1 or stride < 1 or seed < 0:
        raise InputError(f"n {n}, stride {stride}, seed {seed} cannot be used; 100, 8 and 0 would do.")
    mol = ql.Molecule.parse(molecule)
    stream = ql.sample(mol, ql.Sampling(sampler, temperature, sigma), seed, validation=True)
    _refuse_existing(out)
    frames = [mol.with_positions(next_) for next_ in itertools.islice(stream, 0, n * stride, stride)]
    out.write_text("".join(frame.to_xyz() for frame in frames))
    if as_json:
        _print_json({"out": str(out), "n": n})
    else:
        _print(f"{n} geometries written to {out}")


@app.command()
def lab(
    notebook: Annotated[pathlib.Path | None, typer.Argument(metavar="[NOTEBOOK]")] = None,
) -> None:
    """Open JupyterLab on a notebook, by default the first."""
    if notebook is None:
        places = (pathlib.Path.cwd(), pathlib.Path(ql.__file__).parents[1])
        found = [place / "notebooks" / "01-first-light.ipynb" for place in places]
        notebook = next((path for path in found if path.exists()), None)
    elif not notebook.exists():
        raise InputError(f"notebook {notebook} does not exist; a path to an .ipynb file would do.")
    command = [sys.executable, "-m", "jupyterlab", *([str(notebook)] if notebook else [])]
    if os.geteuid() == 0:
        command.append("--allow-root")  # in containers there is often no other user
    raise typer.Exit(1 if subprocess.run(command, check=False).returncode else 0)


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Default: all of the engine's, which takes over an hour.")
    ] = "",
    molecules: Annotated[str, typer.Option("--molecules", help="Names or SMILES with commas, for its own.")] = "",
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Of each training, for a study; default 1.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="For a study; default 2.")] = None,
    xc: Annotated[str | None, typer.Option("--xc", help="For a study; default pbe.")] = None,
    basis: Annotated[str | None, typer.Option("--basis", help="For a study; default sto-3g.")] = None,
    out: Annotated[pathlib.Path | None, typer.Option("--out", help="Folder for tables and plots.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the DFT engine beside PySCF: scf, fock, tensors, growth, start; or what training depends on.

    The studies of training, for which --minutes, --seeds, --xc and --basis are: iterations, guess, size, molecules,
    losses, labels.
    """
    from qptlab import bench, studies  # load what only benchmarks need

    if out is not None and not out.is_dir():
        raise InputError(f"folder {out} does not exist; an existing folder would do.")
    given = tuple(filter(None, molecules.split(",")))
    if name in studies.STUDIES:
        method = ql.Method(xc or "pbe", basis or "sto-3g")
        _study(name, given, method, 1.0 if minutes is None else minutes, 2 if seeds is None else seeds, out, as_json)
        return
    if name and name not in bench.NAMES:
        known = ", ".join((*bench.NAMES, *studies.STUDIES))
        raise InputError(f"benchmark {name!r} is not known; one of {known} would do.")
    for option, value in (("minutes", minutes), ("seeds", seeds), ("xc", xc), ("basis", basis)):
        if value is not None:
            raise InputError(
                f"--{option} {value} was given for {name or 'the engine'}, which measures a fixed set; "
                f"one of {', '.join(studies.STUDIES)} would do."
            )
    chosen = {each: bench.benchmark(each, given) for each in ([name] if name else bench.NAMES)}
    found = {each: _measure(each, chosen[each], given, out) for each in chosen}
    if as_json:
        _print_json({"machine": bench.machine(), "benchmarks": found})
    else:
        tables = (f"{chosen[each].title}\n\n{bench.table(rows, chosen[each].peer)}" for each, rows in found.items())
        _print("\n\n".join(tables))


def _study(name, molecules, method, minutes, seeds, out, as_json) -> None:
    """Train and compare; what is done is kept when it is stopped."""
    from qptlab import bench, studies

    if seeds < 1:
        raise InputError(f"{seeds} seeds cannot be used; 2 would do.")
    chosen, rows = studies.study(name, molecules), []
    command = ["qptlab", "bench", name, *(["--molecules", ",".join(molecules)] if molecules else []),
               "--minutes", f"{minutes:g}", "--seeds", str(seeds), "--xc", method.xc, "--basis", method.basis]
    with Progress(console=_stderr) as bar:
        task = bar.add_task(name, total=len(chosen.settings) * seeds)
        found = studies.measure(chosen, method, minutes, seeds, lambda what: bar.update(task, description=what))
        for row in found:
            rows.append(row)
            bar.advance(task)
            if out is not None:
                studies.write(name, chosen, rows, method, out, shlex.join([*command, "--out", str(out)]))
            if not _stderr.is_terminal:
                said = f"{row['setting']}, seed {row['seed']}: {row['energy_mae_mev']:.4g} meV"
                _stderr.print(said, soft_wrap=True)
    if as_json:
        _print_json({"machine": bench.machine(), "study": name, "rows": rows})
    else:
        _print(f"{chosen.title}\n\n{studies.table(rows)}")


def _measure(name, chosen, molecules, out) -> list[dict]:
    """Rows of one benchmark; what is done is kept when it is stopped."""
    from qptlab import bench

    rows = []
    command = ["qptlab", "bench", name, *(["--molecules", ",".join(molecules)] if molecules else [])]
    with Progress(console=_stderr) as bar:
        task = bar.add_task(name, total=len(chosen.cases))
        for row in bench.measure(chosen):
            rows.append(row)
            bar.advance(task)
            if out is not None:
                bench.write(name, chosen, rows, out, shlex.join([*command, "--out", str(out)]))
            if not _stderr.is_terminal:
                done = f"{name} {len(rows)}/{len(chosen.cases)}: {row['molecule']} {row['xc']}/{row['basis']}"
                _stderr.print(f"{done} {row['eri']}", soft_wrap=True)
    return rows


@app.command()
def info(as_json: Json = False) -> None:
    """Versions, devices and memory."""
    import jax

    record = {
        "qptlab": importlib.metadata.version("qptlab"),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    if as_json:
        _print_json(record)
        return
    for key, value in record.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        _print(f"{key:12} {', '.join(value) if isinstance(value, list) else value}")


def _refuse_existing(path: pathlib.Path) -> None:
    if path.exists():
        raise InputError(f"{path} exists and is not overwritten; a new name would do.")
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist; an existing folder would do.")


def _print(text: str) -> None:
    typer.echo(text)


def _print_json(record: dict) -> None:
    typer.echo(json.dumps(record))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with the status that the module's docstring names."""
    given = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = lambda message, *_, **__: _fail(str(message), 0)
    try:
        status = app(given or ["--help"], standalone_mode=False)
    except InputError as error:
        status = _fail(str(error), 2)
    except _UsageError as error:
        what = error.format_message().rstrip(".")
        status = _fail(f"{what}, in: qptlab {shlex.join(given)}; qptlab --help says what would do.", 2)
    except (typer.Abort, KeyboardInterrupt):
        status = _fail("stopped.", 1)
    except (RuntimeError, MemoryError, OSError) as error:
        status = _fail(str(error), 1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> int:
    _stderr.print("qptlab: " + " ".join(message.split()), markup=False, soft_wrap=True)
    return status
