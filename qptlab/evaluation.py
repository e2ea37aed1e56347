"""How good a trained model is: errors against PySCF, beside the two baselines.

Energies, matrices and orbitals are compared in the molecule's frame, where both programs use the
same integration grid.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from qptlab import reference
from qptlab.errors import InputError
from qptlab.models.predictor import Predictor
from qptlab.models.qpt import Prediction
from qptlab.molecule import Molecule, read_xyz
from qptlab.reference import ErrorSummary, TestSet
from qptlab.units import HARTREE_MEV, significant

ERROR_COLUMNS = {
    "energy_mae_mev": "energy MAE, meV",
    "energy_max_mev": "energy max, meV",
    "fock_mae_uha": "Fock MAE, µHa",
    "mo_energy_mae_uha": "occ. orbital energies MAE, µHa",
    "mo_cosine": "orbital similarity",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A table of errors; printing shows it.

    Attributes:
      method: label of the level of theory.
      errors: of the model.
      no_network: of as many plain DFT iterations from the same guess.
      pyscf_same_fock_builds: of PySCF's DIIS stopped after as many Fock builds.
      same_fit: of the model against PySCF with the same density fitting; None where its integrals are exact.
      seconds_per_geometry: of the model, integrals included, compiled before.
      pyscf_seconds_per_geometry: of PySCF to convergence, one thread.
      predictions: of the model, in the molecule's frame.
      test_set: the geometries with PySCF's answers.
      nocc: number of doubly occupied orbitals.
    """

    method: str
    errors: ErrorSummary
    no_network: ErrorSummary
    pyscf_same_fock_builds: ErrorSummary
    same_fit: ErrorSummary | None
    seconds_per_geometry: float
    pyscf_seconds_per_geometry: float
    predictions: list[Prediction]
    test_set: TestSet
    nocc: int

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
        pairs = zip(self.predictions, self.test_set.converged, strict=True)
        return np.array([float(p.energy) - r.energy for p, r in pairs]) * HARTREE_MEV

    def to_dict(self) -> dict:
        """The numbers, with the keys of `qptlab evaluate --json`."""
        return {
            "n": self.n,
            "n_left_out": self.test_set.left_out,
            **self.errors._asdict(),
            "same_fit": self.same_fit and self.same_fit._asdict(),
            "seconds_per_geometry": self.seconds_per_geometry,
            "pyscf_seconds_per_geometry": self.pyscf_seconds_per_geometry,
            "baselines": {
                "no_network": self.no_network._asdict(),
                "pyscf_same_fock_builds": self.pyscf_same_fock_builds._asdict(),
            },
        }

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict())

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
            lines.append(f"{name:28}" + "".join(f"{cell:>{width + 2}}" for cell in _cells(summary)))
        lines.append(
            f"seconds per geometry: QPT {self.seconds_per_geometry:.3g}, "
            f"PySCF to convergence {self.pyscf_seconds_per_geometry:.3g}"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = "".join(f"<th>{title}</th>" for title in ERROR_COLUMNS.values())
        body = "".join(
            f"<tr><th>{name}</th>" + "".join(f"<td>{cell}</td>" for cell in _cells(summary)) + "</tr>"
            for name, summary in self.rows()
        )
        return f"<table><caption>{self._caption}</caption><tr><th></th>{cells}</tr>{body}</table>"


def _cells(summary: ErrorSummary) -> list[str]:
    """Four digits, for cosines six (their distance from 1 counts), and no powers of ten."""
    return [significant(value, 6 if name == "mo_cosine" else 4) for name, value in summary._asdict().items()]


def evaluate(
    predictor: Predictor,
    geometries: Sequence[Molecule] | str | pathlib.Path | TestSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Errors of a model on geometries, against converged PySCF and beside both baselines.

    Args:
      predictor: the model.
      geometries: molecules, or an XYZ file of frames, or geometries with PySCF's answers.
      progress: told how many geometries PySCF has done, of how many.

    Raises:
      InputError: for no geometries, one of another molecule, or none for which PySCF converges.
    """
    if not isinstance(geometries, TestSet):
        if isinstance(geometries, str | pathlib.Path):
            geometries = read_xyz(geometries)
        if not geometries:
            raise InputError("no geometries were given to evaluate; at least one would do.")
        # All are brought into the frame first: a wrong molecule is found before any work is done.
        poses = [predictor.frame.pose_molecule(mol).positions for mol in geometries]
        geometries = reference.make_test_set(predictor, poses, progress)
    predictor.in_frame(geometries.positions[0])  # compiles outside the clock
    began = time.perf_counter()
    predictions = [predictor.in_frame(place) for place in geometries.positions]
    seconds = (time.perf_counter() - began) / len(predictions)
    template = predictor.model.template

    def summary(answers, truth=geometries.converged):
        return reference.errors(answers, truth, template.nocc)

    return Evaluation(
        method=template.method.label,
        errors=summary(predictions),
        no_network=summary(geometries.no_network),
        pyscf_same_fock_builds=summary(geometries.stopped),
        same_fit=summary(predictions, geometries.same_fit) if geometries.same_fit else None,
        seconds_per_geometry=seconds,
        pyscf_seconds_per_geometry=float(np.mean([a.seconds for a in geometries.converged])),
        predictions=predictions,
        test_set=geometries,
        nocc=template.nocc,
    )
