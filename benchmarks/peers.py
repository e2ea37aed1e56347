"""Time of an SCF of ethanol, PBE/STO-3G, in qptlab, in PySCF and in other differentiable DFT codes.

The codes run one after the other, each in its environment and in a new process, with the threads that it chooses:

    python3.11 -m venv mess  && mess/bin/pip install mess-jax pyscf tabulate
    python3.11 -m venv dftax && dftax/bin/pip install dftax
    .venv/bin/python benchmarks/peers.py --mess mess/bin/python --dftax dftax/bin/python > peers.json

Two-electron integrals are exact. The grid has level 3 in qptlab and PySCF; MESS and dftax have their default grids.
MESS minimises by BFGS to 1e-6; the others converge by DIIS, dftax to its default thresholds. "Cold" is the first SCF
of a process, "warm" the median of three more at different geometries.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np

ETHANOL = (
    ("C", (-0.8883, 0.1670, -0.0273)), ("C", (0.4658, -0.5116, -0.0368)), ("O", (1.4311, 0.3229, 0.5867)),
    ("H", (-0.8487, 1.1175, -0.5695)), ("H", (-1.6471, -0.4704, -0.4896)), ("H", (-1.1964, 0.3978, 0.9977)),
    ("H", (0.7920, -0.7224, -1.0597)), ("H", (0.4246, -1.4559, 0.5138)), ("H", (1.4671, 1.1550, 0.0848)),
)
"""Element symbols, and positions in ångström."""


def ours():
    """Return the function of an energy in qptlab."""
    import jax

    import qptlab as ql

    jax.config.update("jax_enable_compilation_cache", False)
    method = ql.Method("pbe", "sto-3g", grid_level=3, eri="exact")
    return lambda atoms: float(ql.scf(ql.Molecule.from_xyz(_xyz(atoms)), method).energy)


def pyscf():
    """Return the function of an energy in PySCF."""
    from pyscf import dft, gto

    def energy(atoms):
        mf = dft.RKS(gto.M(atom=list(atoms), basis="sto-3g", verbose=0), xc="pbe")
        mf.conv_tol = 1e-10
        return mf.kernel()

    return energy


def mess():
    """Return the function of an energy in MESS."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from mess.basis import basisset
    from mess.hamiltonian import Hamiltonian, minimise
    from mess.structure import Structure
    from mess.units import to_bohr
    from periodictable import elements

    def energy(atoms):
        numbers = np.array([elements.symbol(symbol).number for symbol, _ in atoms])
        structure = Structure(numbers, to_bohr(np.array([position for _, position in atoms])))
        return float(minimise(Hamiltonian(basisset(structure, "sto-3g"), xc_method="pbe"))[0])

    return energy


def dftax():
    """Return the function of an energy in dftax."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from dftax import KS, Molecule, exact, scf
    from dftax.energy.xc import PBE

    def energy(atoms):
        text = "; ".join(f"{symbol} {x:.8f} {y:.8f} {z:.8f}" for symbol, (x, y, z) in atoms)
        return float(scf(KS(Molecule.from_xyz(text, "sto-3g"), PBE(), coulomb=exact())).e_tot)

    return energy


def _xyz(atoms):
    lines = (f"{symbol} {x:.8f} {y:.8f} {z:.8f}" for symbol, (x, y, z) in atoms)
    return f"{len(atoms)}\n\n" + "\n".join(lines) + "\n"


def measure(make) -> dict:
    """Return cold and warm time of one code, s, and its first energy."""
    rng = np.random.default_rng(0)
    energy = make()
    seconds, energies = [], []
    for turn in range(4):
        shift = 0.01 * turn * rng.normal(size=(len(ETHANOL), 3))
        pairs = zip(ETHANOL, shift, strict=True)
        atoms = [(symbol, tuple(np.add(position, change))) for (symbol, position), change in pairs]
        began = time.perf_counter()
        energies.append(energy(atoms))
        seconds.append(time.perf_counter() - began)
    return {"cold_s": seconds[0], "warm_s": statistics.median(seconds[1:]), "energy_ha": energies[0]}


def main() -> None:
    """Run one code in this process, or each of them in a new process."""
    codes = {"ours": ours, "pyscf": pyscf, "mess": mess, "dftax": dftax}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=codes, help="measure this code in this process")
    parser.add_argument("--mess", metavar="PYTHON", help="Python of an environment with mess-jax")
    parser.add_argument("--dftax", metavar="PYTHON", help="Python of an environment with dftax")
    arguments = parser.parse_args()
    if arguments.only:
        sys.stdout.write(json.dumps(measure(codes[arguments.only])))
        return
    pythons = {"ours": sys.executable, "pyscf": sys.executable, "mess": arguments.mess, "dftax": arguments.dftax}
    rows = {}
    for name, python in pythons.items():
        if python is not None:
            done = subprocess.run([python, __file__, "--only", name], check=True, stdout=subprocess.PIPE, text=True)
            rows[name] = json.loads(done.stdout)
    for row in rows.values():
        row["times_pyscf_cold"] = row["cold_s"] / rows["pyscf"]["cold_s"]
        row["times_pyscf_warm"] = row["warm_s"] / rows["pyscf"]["warm_s"]
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
