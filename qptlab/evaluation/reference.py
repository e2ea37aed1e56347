"""PySCF's answers, and how far a prediction is from them.

Energies in meV per molecule, Fock matrices and orbital energies in µHa, in the conventions of
SchNOrb, PhiSNet and QHNet (mean absolute error over AO pairs; over occupied orbitals; mean
|cosine| between occupied coefficient vectors).
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from pyscf import dft, lib
from pyscf.scf import hf

from qptlab.dft import libcint, padding
from qptlab.dft.libcint import HostIntegrals
from qptlab.errors import InputError
from qptlab.evaluation.errors import ErrorSummary
from qptlab.models.contract import Prediction
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.systems import Sample, System
from qptlab.runtime.memory import memory_bytes
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import HARTREE_MEV

KEPT = 512
"""Answers that are kept: the same geometries are asked for again and again."""

MAX_CYCLES = 100
"""After which PySCF counts as not converged (its own default is 50)."""


class Reference(NamedTuple):
    """A PySCF calculation of one geometry, converged or stopped early.

    Attributes:
      energy: total energy, hartree.
      fock: Fock matrix of the last density, hartree.
      dm: the last density matrix, electrons per AO pair.
      mo_energy: orbital energies of `fock`, hartree.
      mo_coeff: orbital coefficients of `fock`, in columns.
      converged: whether PySCF says so.
      cycles: diagonalisations done before the last density.
      seconds: wall time of the SCF, integrals included.
      threads: that PySCF was allowed.
      nocc: number of occupied orbitals; of one spin for an open shell.
    """

    energy: float
    fock: Float[np.ndarray, "nao nao"]
    dm: Float[np.ndarray, "nao nao"]
    mo_energy: Float[np.ndarray, " nmo"]
    mo_coeff: Float[np.ndarray, "nao nmo"]
    converged: bool
    cycles: int
    seconds: float
    threads: int
    nocc: int


class TestSet(NamedTuple):
    """Geometries with PySCF's answers and both baselines; made by `make_test_set`.

    Attributes:
      systems: the molecule of each geometry.
      positions: in its frame, bohr.
      converged: PySCF's answers.
      stopped: PySCF's DIIS stopped after as many Fock builds as the model does.
      no_network: plain DFT iteration, as many iterations as the model does.
      same_fit: PySCF's answers with fitted integrals where the model's are; empty where they are exact.
      left_out: how many geometries were given for which PySCF did not converge.
    """

    systems: list[System]
    positions: list[Float[np.ndarray, "_natm 3"]]
    converged: list[Reference]
    stopped: list[Reference]
    no_network: list[Prediction]
    same_fit: list[Reference]
    left_out: int


class Labelled(System):
    """A molecule whose samples bring PySCF's converged Fock matrix: for the rival that learns from labels."""

    @classmethod
    def of(cls, system: System) -> "Labelled":
        """The same molecule with labels."""
        return cls(system.frame, system.template, system.kinds, system.guess)

    def sample(self, host: HostIntegrals) -> Sample:
        """As of any molecule, with an SCF of PySCF's for the label.

        Raises:
          InputError: if it does not converge.
        """
        template = self.template
        positions = np.asarray(host.positions)[: len(template.symbols)]
        # Made anew, not looked up: what labels cost is the point.
        mol = self.molecule.with_positions(positions)
        answer = _run(mol, template.method, MAX_CYCLES, threads=1)  # there is one worker per core
        if not answer.converged:
            raise InputError(
                f"PySCF does not converge for a geometry of {mol.formula} that was to be a label; "
                "geometries nearer to the minimum would do."
            )
        label = padding.pad_levels(answer.fock, template.shape, 0.0)
        return super().sample(host)._replace(label=jnp.asarray(label))

    @property
    def shapes(self) -> Sample:
        """Shapes and types of a sample."""
        plain = super().shapes
        return plain._replace(label=plain.ints.hcore)


def converged(mol: Molecule, method: Method, *, fitted: bool = False, threads: int | None = None) -> Reference:
    """PySCF's converged answer with the same functional, basis and grid.

    Args:
      mol: the molecule; with unpaired electrons the calculation is unrestricted.
      method: the level of theory.
      fitted: whether two-electron integrals are density-fitted, as ours are where they are, or exact.
      threads: for PySCF; None for as many as it is set to use.
    """
    return _kept(mol.symbols, mol.positions.tobytes(), mol.charge, mol.spin, method, MAX_CYCLES, fitted, threads)


def stopped(mol: Molecule, method: Method, cycles: int, *, threads: int | None = None) -> Reference:
    """PySCF's DIIS stopped after so many diagonalisations.

    A QPT with n iterations diagonalises n + 1 times and builds n + 2 Fock matrices, the last for
    the energy; so does PySCF stopped after n + 1 cycles.
    """
    return _kept(mol.symbols, mol.positions.tobytes(), mol.charge, mol.spin, method, cycles, False, threads)


@functools.lru_cache(maxsize=KEPT)
def _kept(symbols, positions, charge, spin, method, max_cycles, fitted, threads):
    mol = Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge, spin=spin)
    return _run(mol, method, max_cycles=max_cycles, fitted=fitted, threads=threads)


def make_test_set(
    predictor: CorrectionPredictor,
    places: Sequence[tuple[System, Float[np.ndarray, "_natm 3"]]],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    threads: Callable[[], int | None] = lambda: None,
) -> TestSet:
    """Run PySCF and both baselines on geometries that lie in their molecules' frames (bohr).

    There is nothing to compare with where PySCF does not converge: such geometries are counted.

    Args:
      predictor: a model; only its settings are read.
      places: molecules and geometries.
      progress: told how many geometries are done, of how many; what it raises ends the work.
      threads: asked before each geometry how many PySCF may have; None for as many as it is set to use.

    Raises:
      InputError: if there are none, or PySCF converges for none of them.
    """
    method, plain = predictor.method, predictor.without_network()
    found = TestSet([], [], [], [], [], [], 0)
    for done, (system, positions) in enumerate(places, start=1):
        mol = system.molecule.with_positions(positions)
        allowed = threads()
        answer = converged(mol, method, threads=allowed)
        fitted = [converged(mol, method, fitted=True, threads=allowed)] if system.template.eri == "fitted" else []
        if answer.converged and all(other.converged for other in fitted):
            found.systems.append(system)
            found.positions.append(positions)
            found.converged.append(answer)
            found.same_fit.extend(fitted)
            cycles = predictor.model.config.iterations + 1
            found.stopped.append(stopped(mol, method, cycles, threads=allowed))
            found.no_network.append(plain.in_frame(system, positions))
        progress(done, len(places))
    if not found.positions:
        formulas = ", ".join(sorted({system.molecule.formula for system, _ in places}))
        raise InputError(
            f"PySCF converged for none of the {len(places)} geometries of {formulas}; geometries nearer to the "
            "minimum would do."
        )
    return found._replace(left_out=len(places) - len(found.positions))


def calculation(mol: Molecule, method: Method, *, fitted: bool) -> hf.SCF:
    """PySCF's own calculation with our settings, not yet run."""
    built = libcint.pyscf_molecule(mol, method)
    # PySCF counts what the process holds already, a training's replay buffer too, and would think itself short.
    built.max_memory = lib.current_memory()[0] + min(lib.param.MAX_MEMORY, memory_bytes() / 1e6)
    mf = dft.RKS(built) if mol.spin == 0 else dft.UKS(built)
    mf.xc = _pyscf_name(method)
    mf.grids.level = method.grid_level
    mf.init_guess = "minao"
    mf.conv_tol = 1e-10
    if not fitted:
        return mf
    return cast(hf.SCF, mf.density_fit(auxbasis=libcint.auxiliary_basis(built, method)))


def _pyscf_name(method: Method) -> str:
    name = method.functional.require_pyscf_name()
    try:
        dft.libxc.parse_xc(name)
    except KeyError:
        raise InputError(
            f"Expected PySCF's name of functional {method.functional.name!r}, got {name!r}; use a name that PySCF's "
            "libxc module knows as the record's pyscf_name."
        ) from None
    return name


def _run(mol, method, max_cycles, *, fitted=False, threads=None):
    began = time.perf_counter()
    with lib.with_omp_threads(threads):
        mf = calculation(mol, method, fitted=fitted)
        mf.max_cycle = max_cycles
        mf.kernel()
        seconds = time.perf_counter() - began
        dm = np.asarray(mf.make_rdm1())
        potential = mf.get_veff(mf.mol, dm)
        fock = np.asarray(mf.get_fock(vhf=potential, dm=dm))
        energy = float(mf.energy_tot(dm=dm, vhf=potential))
        mo_energy, mo_coeff = mf.eig(fock, mf.get_ovlp())
        used = lib.num_threads()
    return Reference(
        energy, fock, dm, mo_energy, mo_coeff, bool(mf.converged), int(mf.cycles), seconds, used, max(mol.occupied)
    )


def with_labels(systems: Sequence[System]) -> list[System]:
    """Return the molecules with an SCF of PySCF for each sample, whose Fock matrix is the label."""
    return [Labelled.of(system) for system in systems]


def energy_errors_mev(
    predictions: Sequence[Prediction | Reference], references: Sequence[Reference]
) -> Float[np.ndarray, " n"]:
    """Signed errors of total energies, meV."""
    return np.array([float(p.energy) - r.energy for p, r in zip(predictions, references, strict=True)]) * HARTREE_MEV


def errors(
    predictions: Sequence[Prediction | Reference], references: Sequence[Reference]
) -> ErrorSummary:
    """Errors of predictions against converged references of the same geometries and AO order.

    Raises:
      ValueError: if there are none, or not one reference per prediction.
    """
    if not references or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references were given; "
            "one reference for each prediction, and at least one, would do."
        )
    pairs = list(zip(predictions, references, strict=True))
    energy = energy_errors_mev(predictions, references)
    occupied = [np.abs(p.mo_energy[: r.nocc] - r.mo_energy[: r.nocc]).mean() for p, r in pairs]
    return ErrorSummary(
        energy_mae_mev=float(np.abs(energy).mean()),
        energy_max_mev=float(np.abs(energy).max()),
        fock_mae_uha=float(np.mean([np.abs(p.fock - r.fock).mean() for p, r in pairs]) * 1e6),
        mo_energy_mae_uha=float(np.mean(occupied) * 1e6),
        mo_cosine=float(np.mean([_cosine(p, r) for p, r in pairs])),
    )


def _cosine(prediction, reference):
    """Mean |cosine| of the angle between corresponding occupied coefficient vectors."""
    ours, theirs = prediction.mo_coeff[:, : reference.nocc], reference.mo_coeff[:, : reference.nocc]
    dot = np.abs(np.sum(ours * theirs, axis=0))
    return np.mean(dot / np.linalg.norm(ours, axis=0) / np.linalg.norm(theirs, axis=0))
