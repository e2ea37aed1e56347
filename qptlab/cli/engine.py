"""Commands that need no model: energies, geometries, and the versions that are installed."""

import importlib.metadata
import itertools
import math
import os
import pathlib
import platform
import time
from typing import Annotated

import numpy as np
import typer

import qptlab as ql
from qptlab.cli.console import (
    XC,
    Basis,
    Eri,
    GridLevel,
    Json,
    MoleculeArgument,
    Sampler,
    Seed,
    Temperature,
    print_json,
    refuse_existing,
    stderr,
)
from qptlab.dft.scf import GUESSES, SOLVERS
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.runtime import memory
from qptlab.training.run import LIBRARIES
from qptlab.units import HARTREE_MEV


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
        print_json(record)
    else:
        _print_energy(mol, method, record)
    if not result.converged:
        stderr.print(
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
    typer.echo(f"{mol.formula}{unpaired}  {method.label}  grid level {method.grid_level}  {record['eri']} integrals")
    typer.echo(f"energy        {record['energy_ha']:.9f} hartree, {record['cycles']} cycles")
    if record["gap_ha"] is not None:
        typer.echo(f"HOMO–LUMO gap {record['gap_ha']:.6f} hartree")
    typer.echo(f"dipole        {np.linalg.norm(record['dipole_debye']):.4f} debye")
    pull = record.get("forces_ha_per_bohr")
    for index, symbol in enumerate(mol.symbols):
        force = "  force " + " ".join(f"{x:12.8f}" for x in pull[index]) + " hartree/bohr" if pull else ""
        typer.echo(f"{index:4} {symbol:2}       Mulliken charge {record['charges'][index]:8.4f}{force}")
    for key, name in (("", "PySCF"), ("fitted_", "PySCF, fitted")):
        if f"pyscf_{key}energy_ha" in record:
            error = record["error_same_fit_mev" if key else "error_mev"]
            typer.echo(f"{name:13} {record[f'pyscf_{key}energy_ha']:.9f} hartree, difference {error:.2e} meV")


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
    refuse_existing(out)
    frames = [mol.with_positions(next_) for next_ in itertools.islice(stream, 0, n * stride, stride)]
    out.write_text("".join(frame.to_xyz() for frame in frames))
    if as_json:
        print_json({"out": str(out), "n": n})
    else:
        typer.echo(f"{n} geometries written to {out}")


def info(as_json: Json = False) -> None:
    """Versions, devices and memory."""
    import jax

    record = {
        "qptlab": importlib.metadata.version("qptlab"),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "cores": os.cpu_count(),
        "memory_gib": round(memory.allowed_bytes() / 2**30, 1),
    }
    if as_json:
        print_json(record)
        return
    for key, value in record.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        typer.echo(f"{key:12} {', '.join(value) if isinstance(value, list) else value}")
