"""Errors of an OrbitalGNN on labelled geometries, for which the low-cost method has run before."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qptlab.dft.padding import fill
from qptlab.errors import InputError
from qptlab.evaluation.errors import ErrorSummary, standard_errors
from qptlab.evaluation.labels import Label
from qptlab.models.contract import Params, Prediction
from qptlab.models.operators import Invariants
from qptlab.models.orbital_gnn import (
    GNNPredictor,
    Graph,
    GraphDerivatives,
    OrbitalGNN,
    Scales,
    Size,
    graph_derivatives,
)
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM, HARTREE_EV, HARTREE_MEV


class Prepared(NamedTuple):
    """Labelled geometries as the network reads them, stacked along a first axis and padded to one shape.

    Attributes:
      graphs: input of the network.
      slopes: derivatives of the input with respect to positions; None if no forces are needed.
      labels: labels in atomic units, padded with NaN.
    """

    graphs: Graph
    slopes: GraphDerivatives | None
    labels: Label

    def take(self, indices: Sequence[int] | np.ndarray) -> "Prepared":
        """Return the geometries with some indices."""
        index = np.asarray(indices, int)
        return jax.tree.map(lambda x: x[index], self)


def prepare(
    model: OrbitalGNN, mols: Sequence[Molecule], labels: Sequence[Label], *, forces: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Run the low-cost method on all geometries and, with `forces`, differentiate it.

    Args:
      model: network that reads the geometries.
      mols: geometries.
      labels: label of each geometry.
      forces: if true, forces can be learned or evaluated.
      progress: callback `progress(done, total)`, called after each geometry; an exception ends the work.

    Raises:
      InputError: if there is not one label for each geometry, or `OrbitalGNN.graph` refuses a molecule.
    """
    if len(mols) != len(labels) or not mols:
        raise InputError(
            f"Expected one label for each geometry, got {len(mols)} geometries and {len(labels)} labels; use "
            "ql.read_labels(path), for example."
        )
    size = Size(*map(max, zip(*map(model.size, mols), strict=True)))
    graphs, slopes = [], []
    for done, mol in enumerate(mols, start=1):
        graphs.append(jax.tree.map(np.asarray, model.graph(mol, size)))
        if forces:  # there are as many numbers as a network reads for each coordinate: float32 saves memory
            slopes.append(jax.tree.map(lambda x: x.astype(np.float32), graph_derivatives(model, mol, size)))
        progress(done, len(mols))
    padded = [_pad(label, size.natm) for label in labels]
    return Prepared(_stack(graphs), _stack(slopes) if forces else None, _stack(padded))


def label_errors(predictor: GNNPredictor, data: Prepared) -> ErrorSummary:
    """Return errors on labelled geometries; of forces if these were prepared.

    A property without a label does not count. If a prediction is NaN where there is a label, the error is NaN.
    """
    labels = data.labels
    predictions, forces = _predict_all(predictor.model, predictor.params, predictor.scales, data.graphs, data.slopes)
    has_energy = np.asarray(np.isfinite(labels.energy))
    misses = np.abs(np.asarray(predictions.energy) - labels.energy)
    lengths = np.linalg.norm(np.asarray(predictions.dipole) - labels.dipole, axis=-1)

    def mean(values: np.ndarray, is_labelled: np.ndarray, unit: float = 1.0) -> float | None:
        return float(np.mean(np.asarray(values)[is_labelled])) * unit if is_labelled.any() else None

    def error(values: Array, truth: Any, unit: float = 1.0) -> float | None:
        return mean(np.abs(np.asarray(values) - truth), np.isfinite(truth), unit)

    return ErrorSummary(
        energy_mae_mev=mean(misses, has_energy, HARTREE_MEV),
        energy_max_mev=float(np.max(misses[has_energy])) * HARTREE_MEV if has_energy.any() else None,
        forces_mae_mev_angstrom=None if forces is None else error(forces, labels.forces, HARTREE_MEV / BOHR_ANGSTROM),
        dipole_mae_debye=mean(lengths, np.asarray(np.isfinite(labels.dipole).all(axis=-1)), AU_DEBYE),
        charge_mae=error(predictions.charges, labels.charges),
        gap_mae_ev=error(predictions.gap, labels.gap, HARTREE_EV),
        standard_errors=standard_errors({"energy_mae_mev": misses[has_energy] * HARTREE_MEV}),
    )


def predict_prepared(
    model: OrbitalGNN, params: Params, scales: Scales, graph: Graph, slopes: GraphDerivatives | None
) -> tuple[Prediction, Float[Array, "natm 3"] | None]:
    """Predict one prepared geometry, and its forces if the derivatives of its input are there; differentiable."""
    if slopes is None:
        return model.predict(params, scales, graph), None
    prediction, gradient = model.predict_with_gradient(params, scales, graph)
    return prediction, _forces(gradient, slopes)


@functools.partial(jax.jit, static_argnums=0)
def _predict_all(model, params, scales, graphs, slopes):
    # One geometry after the other: the derivatives of all at once, in double precision, would take much memory.
    return jax.lax.map(lambda inputs: predict_prepared(model, params, scales, *inputs), (graphs, slopes))


def _forces(gradient: Invariants, slopes: GraphDerivatives) -> Float[Array, "natm 3"]:
    terms = jax.tree.map(lambda g, s: jnp.tensordot(g, s, g.ndim), gradient, slopes.features)
    return -(jnp.asarray(slopes.energy) + sum(terms))


def _stack(trees: Sequence) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _pad(label: Label, natm: int) -> Label:
    nan = float("nan")
    return label._replace(
        forces=fill(label.forces, natm, nan), charges=fill(label.charges, natm, nan),
        valence=fill(label.valence, natm, nan),
    )


