"""Errors of a trained model compared with references, together with those of its baselines.

A model that predicts densities is compared with converged PySCF: energies, matrices and orbitals in the molecule's
frame, where both programs use the same integration grid. A model that learned from labels is compared with labels.
"""

import csv
import dataclasses
import html
import io
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from qptlab.dft.properties import dipole_debye
from qptlab.errors import InputError
from qptlab.evaluation import labelled, labels, reference
from qptlab.evaluation.errors import LOW_COST, NO_NETWORK, PYSCF_STOPPED, ErrorSummary, error_table
from qptlab.evaluation.labels import LabelledSet
from qptlab.evaluation.reference import TestSet
from qptlab.models.contract import Model, Prediction, require, title_of
from qptlab.models.orbital_gnn import GNNPredictor
from qptlab.models.predictor import CorrectionPredictor
from qptlab.system.method import GRID_LEVELS
from qptlab.system.molecule import Molecule, read_xyz
from qptlab.units import HARTREE_EV, HARTREE_MEV, significant

GEOMETRY_COLUMNS = (
    "geometry", "molecule", "energy_ha", "pyscf_energy_ha", "energy_error_mev", "no_network_error_mev",
    "pyscf_same_fock_builds_error_mev", "fock_mae_uha", "mo_energy_mae_uha", "mo_cosine", "residual_ha",
    "estimated_error_mev",
    "dipole_debye", "pyscf_dipole_debye", "gap_ev", "pyscf_gap_ev", "pyscf_seconds",
)
"""Columns of `Evaluation.by_geometry` for a model that predicts densities."""

GRID_FRAMES, FINE_LEVEL = 2, 3
"""Number of geometries on which the error of the grid is measured, and lowest level of the finer grid."""

LABELLED_COLUMNS = ("geometry", "molecule", "energy_ha", "label_energy_ha", "energy_error_mev")
"""Columns of `Evaluation.by_geometry` for a model that is compared with labels."""

TITLES = {
    "no_network": NO_NETWORK, "pyscf_same_fock_builds": PYSCF_STOPPED, "low_cost": LOW_COST,
}
"""Titles of the baselines of an `Evaluation`."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Table of errors; printing shows it.

    Attributes:
      kind: kind of the model.
      method: level of theory.
      errors: errors of the model.
      baselines: errors of the baselines: "no_network", DFT iterations without the network, from the same
        guess and in the same number; "pyscf_same_fock_builds", PySCF's DIIS stopped after the same number of Fock
        builds; or "low_cost", the low-cost method with a linear fit.
      predictions: predictions of the model; those of densities are in the molecule's frame.
      seconds_per_geometry: time of a prediction, s; it includes integrals or the low-cost method, and no
        compilation.
      test_set: geometries with PySCF's references; None for a model that is compared with labels.
      labelled_set: geometries with labels; None for a model that is compared with PySCF.
      same_fit: errors of the model compared with PySCF with the same density fitting; None for exact integrals.
      grid: errors of converged PySCF on the model's grid compared with PySCF on the grid of level `finer_grid_level`,
        over the first `GRID_FRAMES` geometries. An error of the model below it is no error compared with DFT. None
        if there is no grid, or no finer one.
      finer_grid_level: level of the finer grid; None if there is none.
      estimate_correlation: rank correlation, over the geometries, of the estimated errors of the predictions with
        their energy errors; it tells how well the estimate finds bad predictions. None for fewer than three
        geometries.
      pyscf_seconds_per_geometry: time of a converged PySCF calculation, s.
      pyscf_threads: number of threads that PySCF used; the model uses all cores.
    """

    kind: str
    method: str
    errors: ErrorSummary
    baselines: dict[str, ErrorSummary]
    predictions: list[Prediction]
    seconds_per_geometry: float
    test_set: TestSet | None = None
    labelled_set: LabelledSet | None = None
    same_fit: ErrorSummary | None = None
    grid: ErrorSummary | None = None
    finer_grid_level: int | None = None
    estimate_correlation: float | None = None
    pyscf_seconds_per_geometry: float | None = None
    pyscf_threads: int | None = None

    @property
    def n(self) -> int:
        """Number of geometries."""
        return len(self.predictions)

    @property
    def _caption(self) -> str:
        if self.test_set is None:
            return f"{self.n} geometries, compared with labels: {self.method}"
        left_out = self.test_set.left_out
        note = f" ({left_out} left out, for which PySCF did not converge)" if left_out else ""
        return f"{self.n} geometries{note}, {self.method}, compared with converged PySCF"

    @property
    def references(self) -> TestSet:
        """Geometries with PySCF's references.

        Raises:
          InputError: if the model is compared with labels.
        """
        if self.test_set is None:
            raise InputError(
                f"Expected a model that predicts densities, got one of kind {self.kind!r}, which is compared with "
                "labels; use one of kind 'equivariant'."
            )
        return self.test_set

    @property
    def reference_energies(self) -> Float[np.ndarray, " n"]:
        """Reference energy of each geometry, hartree."""
        if self.test_set is not None:
            return np.array([answer.energy for answer in self.test_set.converged])
        return np.array([label.energy for label in self.labelled_set.labels] if self.labelled_set else [])

    @property
    def energy_errors_mev(self) -> Float[np.ndarray, " n"]:
        """Signed error of each geometry's energy, meV."""
        return (np.array([float(p.energy) for p in self.predictions]) - self.reference_energies) * HARTREE_MEV

    @property
    def estimated_energy_mae_mev(self) -> float | None:
        """Mean of the errors that the model estimates itself, meV; None for a model that does not.

        The estimate is of the distance from self-consistency in the model's own integrals. It does not have the error
        of density fitting.
        """
        estimates = [p.energy_error for p in self.predictions if p.energy_error is not None]
        return float(np.mean(np.abs(estimates))) * HARTREE_MEV if estimates else None

    @property
    def molecules(self) -> list[Molecule]:
        """The geometries."""
        if self.test_set is None:
            return list(self.labelled_set.molecules) if self.labelled_set else []
        pairs = zip(self.test_set.systems, self.test_set.positions, strict=True)
        return [system.molecule.with_positions(positions) for system, positions in pairs]

    def to_dict(self) -> dict:
        """Return the numbers, with the keys of `qptlab evaluate --json`."""
        record = {
            "n": self.n,
            "kind": self.kind,
            "method": self.method,
            **self.errors.to_dict(),
            "seconds_per_geometry": self.seconds_per_geometry,
            "baselines": {name: summary.to_dict() for name, summary in self.baselines.items()},
        }
        if self.test_set is not None:
            record |= {
                "n_left_out": self.test_set.left_out,
                "same_fit": self.same_fit and self.same_fit.to_dict(),
                "grid": self.grid and self.grid.to_dict(),
                "finer_grid_level": self.finer_grid_level,
                "estimated_energy_mae_mev": self.estimated_energy_mae_mev,
                "estimate_correlation": self.estimate_correlation,
                "pyscf_seconds_per_geometry": self.pyscf_seconds_per_geometry,
                "pyscf_threads": self.pyscf_threads,
            }
        return record

    def to_json(self) -> str:
        """Return `to_dict` as one JSON object."""
        return json.dumps(self.to_dict())

    def to_csv(self) -> str:
        """Return a table with a line per geometry: energies, errors and, for densities, the baselines' errors."""
        text = io.StringIO(newline="")
        names = LABELLED_COLUMNS if self.test_set is None else GEOMETRY_COLUMNS
        csv.writer(text).writerows([names, *self.by_geometry()])
        return text.getvalue()

    def by_geometry(self) -> list[tuple]:
        """Return a row per geometry, in the order of `GEOMETRY_COLUMNS` or `LABELLED_COLUMNS`."""
        if self.test_set is None:
            numbers = zip(
                self.molecules, self.predictions, self.reference_energies, self.energy_errors_mev, strict=True
            )
            return [
                (index, mol.name or mol.formula, float(prediction.energy), float(energy), float(error))
                for index, (mol, prediction, energy, error) in enumerate(numbers)
            ]
        return [self._density_row(index) for index in range(self.n)]

    def _density_row(self, index: int) -> tuple:
        model, truth = self.predictions[index], self.references.converged[index]
        plain, stopped = self.references.no_network[index], self.references.stopped[index]
        summary = reference.errors([model], [truth])
        system, mol = self.references.systems[index], self.molecules[index]
        dipoles = (dipole_debye(mol, system.method, answer.dm) for answer in (model, truth))
        gaps = (
            answer.mo_energy[truth.nocc] - answer.mo_energy[truth.nocc - 1]
            if len(answer.mo_energy) > truth.nocc else np.nan
            for answer in (model, truth)
        )
        return (
            index, mol.name or mol.formula, float(model.energy), truth.energy,
            *(float(reference.energy_errors_mev([answer], [truth])[0]) for answer in (model, plain, stopped)),
            summary.fock_mae_uha, summary.mo_energy_mae_uha, summary.mo_cosine, float(model.residual),
            float(model.energy_error) * HARTREE_MEV,
            *(float(np.linalg.norm(dipole)) for dipole in dipoles),
            *(float(gap) * HARTREE_EV for gap in gaps), truth.seconds,
        )

    def to_latex(self) -> str:
        """Return the table as LaTeX (booktabs)."""
        text = error_table(self.rows(), "latex").replace("µHa", r"\textmu Ha").replace("±", r"$\pm$")
        return f"% {' '.join(self._caption.split())}\n{text}\n"  # a line break would end the comment

    def fock_errors_by_atoms(self, index: int) -> np.ndarray:
        """Return the mean absolute error of one geometry's Fock matrix for each pair of atoms, µHa: [natm, natm]."""
        model, truth = self.predictions[index], self.references.converged[index]
        of_atom = np.eye(len(self.references.positions[index]))[self.references.systems[index].template.ao_atom]
        numbers = of_atom.sum(axis=0)
        return of_atom.T @ np.abs(model.fock - truth.fock) @ of_atom / np.outer(numbers, numbers) * 1e6

    def rows(self) -> list[tuple[str, ErrorSummary]]:
        """Return the lines of the table, the model first."""
        return [
            (title_of(self.kind), self.errors),
            *([(f"{title_of(self.kind)}, same density fitting", self.same_fit)] if self.same_fit else []),
            *((TITLES.get(name, name), summary) for name, summary in self.baselines.items()),
            *([(f"PySCF on this grid, against level {self.finer_grid_level}", self.grid)] if self.grid else []),
        ]

    def __str__(self) -> str:
        """Return the table as text."""
        lines = [self._caption, error_table(self.rows(), "text")]
        if (estimated := self.estimated_energy_mae_mev) is not None:
            lines.append(f"energy MAE that the model estimates itself: {significant(estimated)} meV")
        if self.estimate_correlation is not None:
            lines.append(f"rank correlation of this estimate with the energy error: {self.estimate_correlation:.2f}")
        times = f"seconds per geometry: {title_of(self.kind)} {self.seconds_per_geometry:.3g}"
        if self.pyscf_seconds_per_geometry is not None:
            times += (
                f", PySCF to convergence {self.pyscf_seconds_per_geometry:.3g} (threads: {self.pyscf_threads})"
            )
        return "\n".join([*lines, times])

    def _repr_html_(self) -> str:
        caption = f"<table><caption>{html.escape(self._caption)}</caption>"
        return error_table(self.rows(), "html").replace("<table>", caption, 1)


def evaluate(
    model: Model,
    geometries: Sequence[Molecule] | str | pathlib.Path | TestSet | LabelledSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Return the errors of a model on geometries, together with those of its baselines.

    Args:
      model: a model, from `ql.load` or a trainer's `predictor`.
      geometries: molecules, an XYZ file, or geometries with PySCF's references, if the model predicts densities; a
        labelled set or the file of one, if the model learned from labels.
      progress: callback `progress(done, total)`, called after each geometry.

    Raises:
      InputError: if there are no geometries, one is of a different molecule, PySCF converges for none, or labels are
        needed and missing.
    """
    require(model)
    if isinstance(model, GNNPredictor):
        return _compare_with_labels(model, geometries, progress)
    if not isinstance(model, CorrectionPredictor):
        raise InputError(f"Expected a model of qptlab, got {type(model).__name__}; use ql.load(path) to load one.")
    return _compare_with_pyscf(model, geometries, progress)


def _compare_with_labels(model: GNNPredictor, data: Any, progress: Callable[[int, int], None]) -> Evaluation:
    if isinstance(data, str | pathlib.Path):
        data = labels.read(data)
    if not isinstance(data, LabelledSet) or not data.molecules:
        raise InputError(
            f"Expected labelled geometries for a model of kind {model.kind!r}, got {type(data).__name__}; use "
            "ql.read_labels(path), or the path of a file from qptlab label."
        )
    has_forces = any(np.isfinite(label.forces).any() for label in data.labels)
    prepared = labelled.prepare(model.model, data.molecules, data.labels, forces=has_forces, progress=progress)
    model(data.molecules[0])  # compiles outside the clock
    began = time.perf_counter()
    predictions = [model(mol) for mol in data.molecules]
    seconds = (time.perf_counter() - began) / len(predictions)
    return Evaluation(
        kind=model.kind,
        method=data.theory or model.label,
        errors=labelled.label_errors(model, prepared),
        baselines={"low_cost": labelled.label_errors(model.without_network(), prepared)},
        predictions=predictions,
        seconds_per_geometry=seconds,
        labelled_set=data,
    )


def _compare_with_pyscf(
    predictor: CorrectionPredictor, geometries: Any, progress: Callable[[int, int], None]
) -> Evaluation:
    if isinstance(geometries, LabelledSet):
        geometries = geometries.molecules
    if not isinstance(geometries, TestSet):
        mols = read_xyz(geometries) if isinstance(geometries, str | pathlib.Path) else list(geometries)
        if not mols:
            raise InputError("Expected at least one geometry to evaluate, got none; use qptlab sample to draw some.")
        # All are brought into their frames first: a different molecule is found before any work is done.
        placed = [predictor.locate(mol) for mol in mols]
        geometries = reference.make_test_set(
            predictor, [(system, pose.positions) for system, pose in placed], progress
        )
    pairs = list(zip(geometries.systems, geometries.positions, strict=True))
    for system, positions in {system.sizes: (system, positions) for system, positions in pairs}.values():
        predictor.in_frame(system, positions)  # compiles outside the clock
    began = time.perf_counter()
    predictions = [predictor.in_frame(system, positions) for system, positions in pairs]
    seconds = (time.perf_counter() - began) / len(predictions)
    truth = geometries.same_fit or geometries.converged
    finer, grid = _grid_errors(geometries)
    misses = np.abs(reference.energy_errors_mev(predictions, truth))
    return Evaluation(
        kind=predictor.kind,
        method=predictor.label,
        errors=reference.errors(predictions, geometries.converged),
        baselines={
            "no_network": reference.errors(geometries.no_network, geometries.converged),
            "pyscf_same_fock_builds": reference.errors(geometries.stopped, geometries.converged),
        },
        predictions=predictions,
        seconds_per_geometry=seconds,
        test_set=geometries,
        same_fit=reference.errors(predictions, geometries.same_fit) if geometries.same_fit else None,
        grid=grid,
        finer_grid_level=finer,
        estimate_correlation=_rank_correlation([float(p.energy_error) for p in predictions], misses),
        pyscf_seconds_per_geometry=float(np.mean([answer.seconds for answer in geometries.converged])),
        pyscf_threads=geometries.converged[0].threads,
    )


def _grid_errors(test_set: TestSet) -> tuple[int | None, ErrorSummary | None]:
    """Return the level of a finer grid, and the errors of PySCF on the grid of the references compared with it."""
    method = test_set.systems[0].method
    finer = min(max(method.grid_level + 2, FINE_LEVEL), GRID_LEVELS[-1])
    if not method.functional.nvar or finer == method.grid_level:
        return None, None
    coarse, fine = [], []
    for index, system in enumerate(test_set.systems[:GRID_FRAMES]):
        positions, found = test_set.positions[index], test_set.converged[index]
        mol, theory = system.molecule.with_positions(positions), dataclasses.replace(system.method, grid_level=finer)
        answer = reference.converged(mol, theory)
        if answer.converged:
            coarse.append(found)
            fine.append(answer)
    return (finer, reference.errors(coarse, fine)) if fine else (None, None)


def _rank_correlation(first: Sequence[float], second: Sequence[float] | np.ndarray) -> float | None:
    if len(first) < 3 or min(np.ptp(first), np.ptp(second)) == 0:
        return None
    from scipy.stats import rankdata  # the import takes half a second, and other commands do not need it

    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
