"""Commands that need no model: energies, geometries, and the versions that are installed."""

import itertools
import math
import os
import pathlib
import platform
import time
from typing import Annotated, Any

import numpy as np
import typer

import qptlab as ql
from qptlab.cli.console import (
    METHOD,
    Frames,
    Json,
    MoleculeArgument,
    Sampler,
    SamplerOptions,
    Sigma,
    Temperature,
    fail,
    print_json,
    refuse_existing,
    sampling,
)
from qptlab.cli.settings import Options, takes
from qptlab.dft.scf import MAX_CYCLES
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.runtime import memory
from qptlab.runtime.versions import versions
from qptlab.training.run import LIBRARIES
from qptlab.units import HARTREE_MEV

SMALL_GAP_HARTREE = 0.1
"""HOMO–LUMO gap below which the stability of the state is analysed."""

SCF = Options(ql.scf, ("guess", "solver", "level_shift", "damping"), panel="SCF")


@takes(METHOD, SCF)
def energy(
    molecule: MoleculeArgument,
    spin: Annotated[int | None, typer.Option("--spin", help="Number of unpaired electrons. Default: 0 or 1.")] = None,
    forces: Annotated[bool, typer.Option("--forces", help="Also compute the forces on the atoms.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare with PySCF.")] = False,
    stability: Annotated[bool | None, typer.Option(
        "--stability/--no-stability",
        help="Analyse the stability of the state with PySCF. Default: if the gap is small, atoms are apart, or a "
             "--guess is given.",
    )] = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Compute a converged DFT energy. Molecules with unpaired electrons are unrestricted."""
    mol, method = ql.Molecule.parse(molecule, spin), ql.Method(**METHOD.values(settings))
    began = time.perf_counter()
    result = ql.scf(mol, method, **SCF.values(settings))
    record = {
        "energy_ha": float(result.energy),
        "converged": bool(result.converged),
        "cycles": int(result.cycles),
        "mo_energy_ha": np.asarray(result.mo_energy).tolist(),
        "dipole_debye": ql.dipole_debye(mol, method, result.dm).tolist(),
        "charges": ql.charges(mol, method, result.dm).tolist(),
        "gap_ha": None if math.isnan(result.gap) else result.gap,
        "eri": ql.template(mol, method).eri,
        "core_electrons": ql.template(mol, method).core_electrons,
        "geometry": mol.source or None,
    }
    if forces:
        record["forces_ha_per_bohr"] = ql.forces(mol, method, result.fock).tolist()
    record["seconds"] = time.perf_counter() - began
    if stability is None:
        is_doubtful = settings["guess"] is not None or result.gap < SMALL_GAP_HARTREE
        stability = is_doubtful or not mol.is_connected
    found = ql.stability(mol, method, result) if stability and result.converged else None
    record["stability"] = found and found._asdict()
    if check:
        record |= _pyscf_energies(mol, method, record, np.asarray(result.dm))
    if as_json:
        print_json(record)
    else:
        _print_energy(mol, method, record)
    if found is not None and found.warning:
        fail(found.warning, 0)
    if not result.converged:
        given = {name for name in SCF.fields if settings[name] is not None}
        raise typer.Exit(fail(_failure(record["cycles"], given), 1))


ADVICE = {
    "level_shift": "--level-shift 0.3", "damping": "--damping 0.5", "solver": "--solver screened",
    "guess": "--guess atomic-density",
}
"""Options against an SCF that does not converge."""


def _failure(cycles: int, given: set[str]) -> str:
    """Return how an SCF failed, and what to use, without the options that were given."""
    if cycles < MAX_CYCLES:
        how = (
            f"ended after {cycles} cycles with electrons in orbitals that are not the lowest, so that the energy is "
            "not that of the ground state"
        )
        useful, first = {"solver", "guess"}, ["no --level-shift"] if "level_shift" in given else []
    else:
        how = f"did not converge in {cycles} cycles, so that the energy is not final"
        useful, first = {*ADVICE}, []
    others = first + [advice for name, advice in ADVICE.items() if name in useful - given]
    return f"the SCF {how}; use {' or '.join(others or ['a different geometry'])}."


def _pyscf_energies(
    mol: ql.Molecule, method: ql.Method, record: dict[str, Any], dm: np.ndarray
) -> dict[str, float]:
    """Return PySCF's energy with exact integrals and, if ours are fitted, with the same fit."""
    def converged(*, fitted: bool) -> float:
        if dm.ndim == 3 and not mol.spin:  # broken symmetry, of which PySCF has no guess
            return reference.converged_from(mol, method, dm, fitted=fitted).energy
        return reference.converged(mol, method, fitted=fitted).energy

    exact = converged(fitted=False)
    energies = {"pyscf_energy_ha": exact, "error_mev": (record["energy_ha"] - exact) * HARTREE_MEV}
    if record["eri"] == "fitted":
        fitted = converged(fitted=True)
        energies["pyscf_fitted_energy_ha"] = fitted
        energies["error_same_fit_mev"] = (record["energy_ha"] - fitted) * HARTREE_MEV
    return energies


def _print_energy(mol: ql.Molecule, method: ql.Method, record: dict[str, Any]) -> None:
    """Print the results of `energy` for people."""
    unpaired = f"  {mol.spin} unpaired" if mol.spin else ""
    typer.echo(f"{mol.formula}{unpaired}  {method.label}  grid level {method.grid_level}  {record['eri']} integrals")
    if mol.source:
        typer.echo(f"geometry      {mol.source}")
    if record["core_electrons"]:
        typer.echo(f"cores         core potentials stand for {record['core_electrons']} electrons")
    typer.echo(f"energy        {record['energy_ha']:.9f} hartree, {record['cycles']} cycles")
    if record["gap_ha"] is not None:
        typer.echo(f"HOMO–LUMO gap {record['gap_ha']:.6f} hartree")
    if record["stability"] is not None:
        is_stable = all(value is not False for value in record["stability"].values())
        typer.echo(f"stability     {'stable' if is_stable else 'unstable'}")
    typer.echo(f"dipole        {np.linalg.norm(record['dipole_debye']):.4f} debye")
    forces = record.get("forces_ha_per_bohr")
    for index, symbol in enumerate(mol.symbols):
        force = "  force " + " ".join(f"{x:12.8f}" for x in forces[index]) + " hartree/bohr" if forces else ""
        typer.echo(f"{index:4} {symbol:2}       Mulliken charge {record['charges'][index]:8.4f}{force}")
    for key, name in (("", "PySCF"), ("fitted_", "PySCF, fitted")):
        if f"pyscf_{key}energy_ha" in record:
            error = record["error_same_fit_mev" if key else "error_mev"]
            typer.echo(f"{name:13} {record[f'pyscf_{key}energy_ha']:.9f} hartree, difference {error:.2e} meV")


def sample(
    molecule: MoleculeArgument,
    out: Annotated[pathlib.Path, typer.Option("--out", help="A new XYZ file.")],
    n: Annotated[int, typer.Option("--n", help="Number of frames.")] = 100,
    sampler: Sampler = None,
    temperature: Temperature = None,
    sigma: Sigma = None,
    frames: Frames = None,
    sampler_option: SamplerOptions = None,
    stride: Annotated[int, typer.Option("--stride", help="Keep every n-th geometry.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random numbers.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw geometries of a molecule into an XYZ file, from a stream that no training uses."""
    for name, value, least in (("n", n, 1), ("stride", stride, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"Expected a whole number from {least} as --{name}, got {value}; use {least}.")
    mol = ql.Molecule.parse(molecule)
    stream = ql.sample(mol, sampling(sampler, temperature, sigma, frames, sampler_option), seed)
    refuse_existing(out)
    drawn = itertools.islice(stream, 0, n * stride, stride)
    out.write_text("".join(mol.with_positions(positions).to_xyz() for positions in drawn))
    if as_json:
        print_json({"out": str(out), "n": n})
    else:
        typer.echo(f"{n} geometries written to {out}")


def info(as_json: Json = False) -> None:
    """Print versions, devices, the precision of arithmetic, and memory."""
    import jax
    import jax.numpy as jnp

    rounding = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    record = {
        **versions(["qptlab"]),
        "python": platform.python_version(),
        "libraries": versions(LIBRARIES),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "precision": [
            f"{jnp.zeros(0).dtype} in DFT",
            f"float32 in networks, JAX's precision {rounding!r} of matrix products",
        ],
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
