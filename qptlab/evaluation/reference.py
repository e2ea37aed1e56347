"""References by PySCF, and errors of predictions compared with them.

Energies are in meV per molecule, Fock matrices and orbital energies in µHa, in the conventions of SchNOrb, PhiSNet
and QHNet: mean absolute error over pairs of atomic orbitals and over occupied orbitals, and mean absolute cosine
between occupied coefficient vectors.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from pyscf import dft, lib
from pyscf.scf import hf

from qptlab.dft import integrals, libcint, padding
from qptlab.dft.libcint import HostIntegrals
from qptlab.dft.response import accelerated
from qptlab.dft.scf import SCFResult
from qptlab.errors import InputError
from qptlab.evaluation.errors import ErrorSummary, standard_errors
from qptlab.models.contract import Prediction
from qptlab.models.predictor import CorrectionPredictor
from qptlab.models.systems import Sample, System
from qptlab.runtime.memory import memory_bytes
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import HARTREE_MEV

CACHE_SIZE = 512
"""Number of references that are cached: the same geometries are evaluated again and again."""

MAX_CYCLES = 100
"""Number of SCF cycles after which PySCF counts as not converged (its own default is 50)."""


class Reference(NamedTuple):
    """PySCF calculation of one geometry, converged or stopped early.

    Attributes:
      energy: total energy, hartree.
      fock: Fock matrix of the last density, hartree.
      dm: last density matrix, electrons per pair of atomic orbitals.
      mo_energy: orbital energies of `fock`, hartree.
      mo_coeff: orbital coefficients of `fock`, in columns.
      converged: true if PySCF's SCF converged.
      cycles: number of diagonalisations before the last density.
      seconds: wall time of the SCF, integrals included, s.
      threads: number of threads that PySCF used.
      nocc: number of occupied orbitals; for an open shell, of the spin with more of them.
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
    """Geometries with converged references and both baselines; `make_test_set` creates it.

    Attributes:
      systems: molecule of each geometry.
      positions: positions in the molecule's frame, bohr.
      converged: converged PySCF calculations.
      stopped: PySCF's DIIS stopped after as many Fock builds as the model does.
      no_network: plain DFT iteration, with as many iterations as the model does.
      same_fit: converged PySCF calculations with density-fitted integrals; empty if those of the model are exact.
      left_out: number of geometries that were left out because PySCF did not converge.
    """

    systems: list[System]
    positions: list[Float[np.ndarray, "_natm 3"]]
    converged: list[Reference]
    stopped: list[Reference]
    no_network: list[Prediction]
    same_fit: list[Reference]
    left_out: int

    def first(self, count: int) -> "TestSet":
        """Return the first geometries."""
        return self._replace(**{name: getattr(self, name)[:count] for name in self._fields if name != "left_out"})


class Labelled(System):
    """Molecule whose samples carry PySCF's converged Fock matrix, for the comparison with learning from labels."""

    @classmethod
    def of(cls, system: System) -> "Labelled":
        """Return a molecule with labels."""
        return cls(system.frame, system.method, system.padding, system.vocabulary, system.config)

    def sample(self, host: HostIntegrals) -> Sample:
        """Return a sample with a label, for which an SCF of PySCF is run.

        Raises:
          InputError: if the SCF does not converge.
        """
        template = self.template
        positions = np.asarray(host.positions)[: len(template.symbols)]
        # Computed each time, not cached: the comparison includes the cost of labels.
        mol = self.molecule.with_positions(positions)
        # There is one worker per core. With the response, a label costs half as much.
        answer = _run(mol, template.method, MAX_CYCLES, threads=1, response=True)
        if not answer.converged:
            raise InputError(
                f"Expected geometries for which PySCF converges, got one of {mol.formula} that needs a label; use "
                "geometries nearer to the minimum."
            )
        label = padding.pad_levels(answer.fock, template.shape, 0.0)
        return super().sample(host)._replace(label=jnp.asarray(label))

    @property
    def shapes(self) -> Sample:
        """Return shapes and types of a sample."""
        plain = super().shapes
        return plain._replace(label=plain.ints.hcore)


def converged(mol: Molecule, method: Method, *, fitted: bool = False, threads: int | None = None) -> Reference:
    """Return a converged PySCF calculation with the same functional, basis and grid.

    Args:
      mol: molecule; with unpaired electrons the calculation is unrestricted.
      method: level of theory.
      fitted: if true, two-electron integrals are density-fitted in the way that the engine fits them; else exact.
      threads: number of threads for PySCF; None for its own setting.
    """
    key = mol.symbols, mol.positions.tobytes(), mol.charge, mol.spin, method
    return _cached_run(*key, MAX_CYCLES, fitted, threads)


def stopped(
    mol: Molecule, method: Method, cycles: int, *, response: bool = False, threads: int | None = None
) -> Reference:
    """Return a PySCF calculation that is stopped after a number of cycles.

    A model with n iterations diagonalises n + 1 times and builds n + 2 Fock matrices, the last for the energy. PySCF
    builds as many if it is stopped after n + 1 cycles.

    Args:
      mol: molecule.
      method: level of theory.
      cycles: number of cycles.
      response: if true, the cycles have the response of the electrons (`dft.response`); else they are PySCF's DIIS.
      threads: number of threads for PySCF; None for its own setting.
    """
    key = mol.symbols, mol.positions.tobytes(), mol.charge, mol.spin, method
    return _cached_run(*key, cycles, False, threads, response)


@functools.lru_cache(maxsize=CACHE_SIZE)
def _cached_run(
    symbols: tuple[str, ...], positions: bytes, charge: int, spin: int, method: Method, max_cycles: int, fitted: bool,
    threads: int | None, response: bool = False,
) -> Reference:
    mol = Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge, spin=spin)
    return _run(mol, method, max_cycles=max_cycles, fitted=fitted, threads=threads, response=response)


def make_test_set(
    predictor: CorrectionPredictor,
    geometries: Sequence[tuple[System, Float[np.ndarray, "_natm 3"]]],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    threads: Callable[[], int | None] = lambda: None,
) -> TestSet:
    """Run PySCF and both baselines on geometries that lie in their molecules' frames (bohr).

    Geometries for which PySCF does not converge are left out and counted.

    Args:
      predictor: a model; only its settings are read.
      geometries: molecules, and positions in their frames, bohr.
      progress: callback `progress(done, total)`, called after each geometry; an exception ends the work.
      threads: function that returns the number of threads for PySCF's next calculation; None for its own setting.

    Raises:
      InputError: if there are no geometries, or PySCF converges for none of them.
    """
    method, plain = predictor.method, predictor.without_network()
    test_set = TestSet([], [], [], [], [], [], 0)
    for done, (system, positions) in enumerate(geometries, start=1):
        mol = system.molecule.with_positions(positions)
        allowed = threads()
        exact = converged(mol, method, threads=allowed)
        fitted = [converged(mol, method, fitted=True, threads=allowed)] if system.template.eri == "fitted" else []
        if exact.converged and all(reference.converged for reference in fitted):
            test_set.systems.append(system)
            test_set.positions.append(positions)
            test_set.converged.append(exact)
            test_set.same_fit.extend(fitted)
            cycles = predictor.model.config.iterations + 1
            test_set.stopped.append(stopped(mol, method, cycles, threads=allowed))
            test_set.no_network.append(plain.in_frame(system, positions))
        progress(done, len(geometries))
    if not test_set.positions:
        formulas = ", ".join(sorted({system.molecule.formula for system, _ in geometries}))
        raise InputError(
            f"Expected geometries for which PySCF converges, got {len(geometries)} of {formulas} for which it does "
            "not; use geometries nearer to the minimum."
        )
    return test_set._replace(left_out=len(geometries) - len(test_set.positions))


def converged_from(
    mol: Molecule, method: Method, dm: Float[np.ndarray, "*spin nao nao"], *, fitted: bool = False
) -> Reference:
    """Return a converged PySCF calculation as `converged`, that starts from a density matrix.

    With the matrices of two spins, the calculation is unrestricted, also without unpaired electrons.
    """
    return _run(mol, method, MAX_CYCLES, fitted=fitted, dm=dm)


def calculation(mol: Molecule, method: Method, *, fitted: bool, unrestricted: bool = False) -> hf.SCF:
    """Return a PySCF mean-field object with the settings of a method, not yet run."""
    built = libcint.pyscf_molecule(mol, method)
    # PySCF subtracts the memory that the process holds already, such as a training's replay buffer, from its limit.
    built.max_memory = lib.current_memory()[0] + min(lib.param.MAX_MEMORY, memory_bytes() / 1e6)
    mf: Any = dft.UKS(built) if mol.spin or unrestricted else dft.RKS(built)
    mf.chkfile = None  # a file in the folder for temporary files, which may be full
    mf.xc = _pyscf_name(method)
    mf.disp = None if method.correction is None else method.correction.pyscf_name
    mf.nlc = False  # the engine has no VV10, which PySCF adds to wb97m_v and others
    mf.grids.level = method.grid_level
    mf.init_guess = "minao"
    mf.conv_tol = 1e-10
    if not fitted:
        return mf
    return cast(hf.SCF, mf.density_fit(auxbasis=libcint.auxiliary_basis(built, method)))


class Stability(NamedTuple):
    """Result of PySCF's stability analysis of a self-consistent state.

    Attributes:
      internal: true if no state of the same kind (closed or open shell) near it is lower.
      external: true if no open-shell state with broken spin symmetry near it is lower; None for an open shell.
    """

    internal: bool
    external: bool | None

    @property
    def warning(self) -> str:
        """What is wrong, in a sentence; empty for a stable state."""
        if not self.internal:
            return (
                "the state is internally unstable: a lower self-consistent state is near; use a different guess or "
                "solver."
            )
        if self.external is False:
            return (
                "the closed-shell state is unstable against an open-shell one with broken spin symmetry, which is "
                "lower; use the guess broken-symmetry for it."
            )
        return ""


def stability(mol: Molecule, method: Method, result: SCFResult) -> Stability:
    """Return the stability of a self-consistent state of the engine, by PySCF (Seeger & Pople 1977).

    Args:
      mol: molecule.
      method: level of theory.
      result: converged state, from `ql.scf`.

    Raises:
      InputError: if it has not converged.
    """
    if not result.converged:
        raise InputError("Expected a converged SCF, got one that is not; use a different guess or solver first.")
    is_open = np.ndim(result.fock) == 3
    mf: Any = calculation(
        mol, method, fitted=integrals.template(mol, method).eri == "fitted", unrestricted=is_open
    )
    mf.verbose = 0
    energies, orbitals = np.asarray(result.mo_energy), np.asarray(result.mo_coeff)
    is_kept = np.any(orbitals != 0, axis=-2).reshape(-1, energies.shape[-1])[0]  # the rest is linearly dependent
    mf.mo_energy, mf.mo_coeff = energies[..., is_kept], orbitals[..., is_kept]
    is_filled = np.arange(is_kept.sum()) < np.asarray(result.nocc)[..., None]
    mf.mo_occ = is_filled * (1.0 if is_open else 2.0)
    mf.e_tot, mf.converged = float(result.energy), True
    if (grids := getattr(mf, "grids", None)) is not None:
        grids.build()
    _, _, internal, external = mf.stability(external=not is_open, return_status=True)
    return Stability(bool(internal), None if is_open else bool(external))


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


def _run(
    mol: Molecule, method: Method, max_cycles: int, *, fitted: bool = False, threads: int | None = None,
    response: bool = False, dm: np.ndarray | None = None,
) -> Reference:
    began = time.perf_counter()
    with lib.with_omp_threads(threads):
        mf = calculation(mol, method, fitted=fitted, unrestricted=dm is not None and dm.ndim == 3)
        mf = accelerated(mf) if response else mf
        mf.max_cycle = max_cycles
        mf.kernel(dm0=dm)
        seconds = time.perf_counter() - began
        dm = np.asarray(mf.make_rdm1())
        potential = mf.get_veff(mf.mol, dm)
        fock = np.asarray(mf.get_fock(vhf=potential, dm=dm))
        energy = float(mf.energy_tot(dm=dm, vhf=potential))
        mo_energy, mo_coeff = mf.eig(fock, mf.get_ovlp())
        used = lib.num_threads()
    return Reference(
        energy, fock, dm, mo_energy, mo_coeff, bool(mf.converged), int(mf.cycles), seconds, used, max(mf.mol.nelec)
    )


def with_labels(systems: Sequence[System]) -> list[System]:
    """Return the molecules with an SCF of PySCF for each sample, whose Fock matrix is the label."""
    return [Labelled.of(system) for system in systems]


def energy_errors_mev(
    predictions: Sequence[Prediction | Reference], references: Sequence[Reference]
) -> Float[np.ndarray, " n"]:
    """Return signed errors of total energies, meV."""
    return np.array([float(p.energy) - r.energy for p, r in zip(predictions, references, strict=True)]) * HARTREE_MEV


def errors(
    predictions: Sequence[Prediction | Reference], references: Sequence[Reference]
) -> ErrorSummary:
    """Return errors of predictions compared with converged references of the same geometries and orbital order.

    Raises:
      ValueError: if there are no predictions, or not one reference for each prediction.
    """
    if not references or len(predictions) != len(references):
        raise ValueError(
            f"Expected one reference for each prediction, and at least one, got {len(predictions)} predictions and "
            f"{len(references)} references."
        )
    pairs = list(zip(predictions, references, strict=True))
    energy = np.abs(energy_errors_mev(predictions, references))
    fock = np.array([np.abs(p.fock - r.fock).mean() for p, r in pairs]) * 1e6
    occupied = np.array([np.abs(p.mo_energy[: r.nocc] - r.mo_energy[: r.nocc]).mean() for p, r in pairs]) * 1e6
    return ErrorSummary(
        energy_mae_mev=float(energy.mean()),
        energy_max_mev=float(energy.max()),
        fock_mae_uha=float(fock.mean()),
        mo_energy_mae_uha=float(occupied.mean()),
        standard_errors=standard_errors(
            {"energy_mae_mev": energy, "fock_mae_uha": fock, "mo_energy_mae_uha": occupied}
        ),
        mo_cosine=float(np.mean([_cosine(p, r) for p, r in pairs])),
    )


def _cosine(prediction: Prediction | Reference, reference: Reference) -> float:
    """Return the mean absolute cosine between corresponding occupied coefficient vectors."""
    first, second = (orbitals.mo_coeff[:, : reference.nocc] for orbitals in (prediction, reference))
    dot = np.abs(np.sum(first * second, axis=0))
    return float(np.mean(dot / np.linalg.norm(first, axis=0) / np.linalg.norm(second, axis=0)))
