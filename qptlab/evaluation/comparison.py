"""How good a trained model is: errors against PySCF, beside the two baselines.

Energies, matrices and orbitals are compared in the molecule's frame, where both programs use the
same integration grid.
"""

import csv
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from qptlab.dft.properties import dipole_debye
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.evaluation.reference import ERROR_COLUMNS, ErrorSummary, TestSet
from qptlab.models.orbital_gnn import GNNPredictor
from qptlab.models.predictor import Predictor, as_qpt
from qptlab.models.qpt import Prediction
from qptlab.system.molecule import Molecule, read_xyz
from qptlab.units import HARTREE_EV

GEOMETRY_COLUMNS = (
    "geometry", "molecule", "energy_ha", "pyscf_energy_ha", "energy_error_mev", "no_network_error_mev",
    "pyscf_same_fock_builds_error_mev", "fock_mae_uha", "mo_energy_mae_uha", "mo_cosine", "residual_ha",
    "dipole_debye", "pyscf_dipole_debye", "gap_ev", "pyscf_gap_ev", "pyscf_seconds",
)
"""Of `Evaluation.by_geometry`."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A table of errors; printing shows it.

    Attributes:
      method: label of the level of theory.
      errors: of the model.
      no_network: of as many plain DFT iterations from the same guess.
      pyscf_same_fock_builds: of PySCF's DIIS stopped after as many Fock builds.
      same_fit: of the model against PySCF with the same density fitting; None where its integrals are exact.
      residual_correlation: rank correlation, over the geometries, of the predictions' residuals with their energy
        errors: how far the residual can be trusted to say which prediction is bad; None for fewer than three.
      seconds_per_geometry: of the model, integrals included, compiled before.
      pyscf_seconds_per_geometry: of PySCF to convergence.
      pyscf_threads: that PySCF was allowed; the model uses all cores.
      predictions: of the model, in the molecule's frame.
      test_set: the geometries with PySCF's answers.
    """

    method: str
    errors: ErrorSummary
    no_network: ErrorSummary
    pyscf_same_fock_builds: ErrorSummary
    same_fit: ErrorSummary | None
    residual_correlation: float | None
    seconds_per_geometry: float
    pyscf_seconds_per_geometry: float
    pyscf_threads: int
    predictions: list[Prediction]
    test_set: TestSet

    @property
    def n(self) -> int:
        """Number of geometries."""
        return len(self.predictions)

    @property
    def _caption(self) -> str:
        left_out = self.test_set.left_out
        rest = f" ({left_out} left out, for which PySCF did not converge)" if left_out else ""
        return f"{self.n} geometries{rest}, {self.method}, against converged PySCF"

    @property
    def energy_errors_mev(self) -> np.ndarray:
        """Signed error of each geometry's energy, meV."""
        return reference.energy_errors_mev(self.predictions, self.test_set.converged)

    def to_dict(self) -> dict:
        """The numbers, with the keys of `qptlab evaluate --json`."""
        return {
            "n": self.n,
            "n_left_out": self.test_set.left_out,
            **self.errors._asdict(),
            "same_fit": self.same_fit and self.same_fit._asdict(),
            "residual_correlation": self.residual_correlation,
            "seconds_per_geometry": self.seconds_per_geometry,
            "pyscf_seconds_per_geometry": self.pyscf_seconds_per_geometry,
            "pyscf_threads": self.pyscf_threads,
            "baselines": {
                "no_network": self.no_network._asdict(),
                "pyscf_same_fock_builds": self.pyscf_same_fock_builds._asdict(),
            },
        }

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict())

    def to_csv(self) -> str:
        """A line per geometry: errors of the model and of both baselines, residual, dipoles, gaps and times."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([GEOMETRY_COLUMNS, *self.by_geometry()])
        return text.getvalue()

    def by_geometry(self) -> list[tuple]:
        """A row per geometry, in the order of `GEOMETRY_COLUMNS`."""
        found, rows = self.test_set, []
        for index, (system, positions) in enumerate(zip(found.systems, found.positions, strict=True)):
            model, truth = self.predictions[index], found.converged[index]
            plain, stopped = found.no_network[index], found.stopped[index]
            one = reference.errors([model], [truth])
            mol = system.molecule.with_positions(positions)
            dipoles = (dipole_debye(mol, system.template.method, each.dm) for each in (model, truth))
            gaps = ((each.mo_energy[truth.nocc] - each.mo_energy[truth.nocc - 1]) if len(each.mo_energy) > truth.nocc
                    else np.nan for each in (model, truth))
            rows.append((
                index, mol.name or mol.formula, float(model.energy), truth.energy,
                *(float(reference.energy_errors_mev([each], [truth])[0]) for each in (model, plain, stopped)),
                one.fock_mae_uha, one.mo_energy_mae_uha, one.mo_cosine, float(model.residual),
                *(float(np.linalg.norm(dipole)) for dipole in dipoles),
                *(float(gap) * HARTREE_EV for gap in gaps), truth.seconds,
            ))
        return rows

    def to_latex(self) -> str:
        """The table as LaTeX (booktabs)."""
        titles = " & ".join(title.replace("µHa", r"\textmu Ha") for title in ERROR_COLUMNS.values())
        body = [" & ".join([name, *summary.cells()]) + r" \\" for name, summary in self.rows()]
        return "\n".join([
            f"% {self._caption}", rf"\begin{{tabular}}{{l{'r' * len(ERROR_COLUMNS)}}}", r"\toprule",
            rf" & {titles} \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", "",
        ])

    def fock_errors_by_atoms(self, index: int) -> np.ndarray:
        """Mean |error| of the Fock matrix of one geometry over the AOs of each pair of atoms, µHa: [natm, natm]."""
        model, truth = self.predictions[index], self.test_set.converged[index]
        of_atom = np.eye(len(self.test_set.positions[index]))[self.test_set.systems[index].template.ao_atom]
        numbers = of_atom.sum(axis=0)
        return of_atom.T @ np.abs(model.fock - truth.fock) @ of_atom / np.outer(numbers, numbers) * 1e6

    def rows(self) -> list[tuple[str, ErrorSummary]]:
        """The lines of the table, the model first."""
        return [
            ("QPT", self.errors),
            *([("QPT, against the same fit", self.same_fit)] if self.same_fit else []),
            ("no network, same iterations", self.no_network),
            ("PySCF, same Fock builds", self.pyscf_same_fock_builds),
        ]

    def __str__(self) -> str:
        """The table as text."""
        width = max(len(title) for title in ERROR_COLUMNS.values())
        head = f"{'':28}" + "".join(f"{title:>{width + 2}}" for title in ERROR_COLUMNS.values())
        lines = [self._caption, head]
        for name, summary in self.rows():
            lines.append(f"{name:28}" + "".join(f"{cell:>{width + 2}}" for cell in summary.cells()))
        if self.residual_correlation is not None:
            lines.append(f"rank correlation of the residual with the energy error: {self.residual_correlation:.2f}")
        lines.append(
            f"seconds per geometry: QPT {self.seconds_per_geometry:.3g}, "
            f"PySCF to convergence {self.pyscf_seconds_per_geometry:.3g} (threads: {self.pyscf_threads})"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = "".join(f"<th>{title}</th>" for title in ERROR_COLUMNS.values())
        body = "".join(
            f"<tr><th>{name}</th>" + "".join(f"<td>{cell}</td>" for cell in summary.cells()) + "</tr>"
            for name, summary in self.rows()
        )
        return f"<table><caption>{self._caption}</caption><tr><th></th>{cells}</tr>{body}</table>"


def evaluate(
    predictor: Predictor | GNNPredictor,
    geometries: Sequence[Molecule] | str | pathlib.Path | TestSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Errors of a model on geometries, against converged PySCF and beside both baselines.

    Args:
      predictor: the model.
      geometries: molecules, or an XYZ file of frames, or geometries with PySCF's answers.
      progress: told how many geometries PySCF has done, of how many.

    Raises:
      InputError: for an OrbitalGNN (`multitask.judge` is for these), no geometries, one of another molecule, or
        none for which PySCF converges.
    """
    predictor = as_qpt(predictor)
    if not isinstance(geometries, TestSet):
        if isinstance(geometries, str | pathlib.Path):
            geometries = read_xyz(geometries)
        if not geometries:
            raise InputError("no geometries were given to evaluate; at least one would do.")
        # All are brought into their frames first: a wrong molecule is found before any work is done.
        placed = [predictor.place(mol) for mol in geometries]
        places = [(system, pose.positions) for system, pose in placed]
        geometries = reference.make_test_set(predictor, places, progress)
    places = list(zip(geometries.systems, geometries.positions, strict=True))
    for system, positions in {id(system): (system, positions) for system, positions in places}.values():
        predictor.in_frame(system, positions)  # compiles outside the clock
    began = time.perf_counter()
    predictions = [predictor.in_frame(*place) for place in places]
    seconds = (time.perf_counter() - began) / len(predictions)

    def summary(answers, truth=geometries.converged):
        return reference.errors(answers, truth)

    truth = geometries.same_fit or geometries.converged
    misses = np.abs(reference.energy_errors_mev(predictions, truth))
    residuals = [float(p.residual) for p in predictions]
    return Evaluation(
        method=predictor.method.label,
        errors=summary(predictions),
        no_network=summary(geometries.no_network),
        pyscf_same_fock_builds=summary(geometries.stopped),
        same_fit=summary(predictions, geometries.same_fit) if geometries.same_fit else None,
        residual_correlation=_rank_correlation(residuals, misses),
        seconds_per_geometry=seconds,
        pyscf_seconds_per_geometry=float(np.mean([a.seconds for a in geometries.converged])),
        pyscf_threads=geometries.converged[0].threads,
        predictions=predictions,
        test_set=geometries,
    )


def _rank_correlation(one: Sequence[float], two: Sequence[float] | np.ndarray) -> float | None:
    if len(one) < 3 or min(np.ptp(one), np.ptp(two)) == 0:
        return None
    from scipy.stats import rankdata  # half a second, which an energy from the shell need not wait for

    return float(np.corrcoef(rankdata(one), rankdata(two))[0, 1])
