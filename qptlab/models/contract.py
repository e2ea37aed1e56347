"""The contract of models: what training, evaluation, run folders, the workbench, PySCF and ASE need of any model.

A model is known by its kind, a name that `config.json` of a run folder carries. A kind is registered with the record
of settings (a frozen dataclass) that configures its network.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import haiku as hk
import numpy as np
from jaxtyping import Array, Float

from qptlab.errors import InputError
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

Params = hk.MutableParams | dict
"""Haiku's nested dictionary of arrays."""

INTERVAL_RATIOS, INTERVAL_ROUNDING_HARTREE = (0.9, 1.2), 4e-8
"""Smallest and largest ratio of an energy's error and its estimate in an interval, and what rounding adds to it."""


class Prediction(NamedTuple):
    """Predicted properties of one geometry, in atomic units. A property that the model does not predict is None.

    Attributes:
      energy: total energy, hartree.
      dipole: dipole moment about the origin, e·bohr.
      charges: Löwdin charges of the atoms, elementary charges.
      gap: difference between the lowest virtual and the highest occupied orbital energy, hartree.
      valence: eigenvalues of each atom's block of the density, occupied and valence-virtual, in descending order.
      fock: Fock matrix of `dm`, hartree, over the atomic orbitals in PySCF's order.
      dm: density matrix, electrons per pair of atomic orbitals.
      mo_energy: orbital energies of `fock`, hartree, in ascending order.
      mo_coeff: orbital coefficients of `fock`, one orbital per column.
      residual: largest element of the commutator FDS − SDF in an orthonormal basis, hartree. It is zero at
        self-consistency.
      energy_error: estimated error of `energy`, hartree: its distance from the energy at self-consistency, to second
        order, without a reference (see `fitted_response.estimated_error`).
      nocc: number of doubly occupied orbitals.
    """

    energy: Float[Array | np.ndarray, ""]
    # Typed Any, not "or None": `Model.provides` states which properties a model predicts.
    dipole: Any = None  # [3]
    charges: Any = None  # [natm]
    gap: Any = None  # []
    valence: Any = None  # [natm, nvalence]
    fock: Any = None  # [nao, nao]
    dm: Any = None  # [nao, nao]
    mo_energy: Any = None  # [nmo]
    mo_coeff: Any = None  # [nao, nmo]
    residual: Any = None  # []
    energy_error: Any = None  # []
    nocc: Any = None  # []

    @property
    def energy_interval(self) -> tuple[float, float]:
        """Interval of the energy at self-consistency in the model's own integrals and grid, hartree.

        It begins and ends at multiples of the estimated error below the predicted energy, between which all of 198
        energies in `benchmarks/estimates.py` were found. If the estimate is negative or not finite, as where the gap
        closes, there is no lower end.

        Raises:
          InputError: if the model estimates no error.
        """
        if self.energy_error is None:
            raise InputError(
                "Expected a prediction with an estimated error, got one without; use a model of kind 'equivariant', "
                "for example."
            )
        energy, estimate = float(self.energy), float(self.energy_error)
        if not estimate > -INTERVAL_ROUNDING_HARTREE or not np.isfinite(estimate):
            return -np.inf, energy
        smallest, largest = (ratio * max(estimate, 0.0) for ratio in INTERVAL_RATIOS)
        return energy - largest - INTERVAL_ROUNDING_HARTREE, energy - smallest + INTERVAL_ROUNDING_HARTREE


@runtime_checkable
class Model(Protocol):
    """A trained model, ready to predict any pose of a molecule.

    Attributes:
      kind: name under which the model's network is registered, such as "qpt".
      config: settings of the network, an instance of the kind's registered dataclass.
      label: level of theory that the model predicts, such as "PBE/sto-3g".
      method: level of theory as a `Method`; None if only the label is known.
      charge: charge that is assumed for atoms without a stated charge, such as an `ase.Atoms`.
      provides: names of the properties that the model predicts: fields of `Prediction`, and "forces".
    """

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def config(self) -> Any: ...  # noqa: D102

    @property
    def label(self) -> str: ...  # noqa: D102

    @property
    def method(self) -> Method | None: ...  # noqa: D102

    @property
    def charge(self) -> int: ...  # noqa: D102

    @property
    def provides(self) -> frozenset[str]: ...  # noqa: D102

    def __call__(self, mol: Molecule) -> Prediction:
        """Predict the properties of a geometry."""
        ...

    def map(self, mols: Sequence[Molecule]) -> Iterator[Prediction]:
        """Predict several geometries, in order."""
        ...

    def energy_and_forces(self, mol: Molecule) -> tuple[float, Float[np.ndarray, "natm 3"]]:
        """Predict the energy, hartree, and minus its derivative with respect to positions, hartree per bohr."""
        ...

    def forces(self, mol: Molecule) -> Float[np.ndarray, "natm 3"]:
        """Predict the forces on the nuclei, hartree per bohr."""
        ...

    def without_network(self) -> "Model":
        """Return the same model with its network switched off: the baseline."""
        ...

    def description(self) -> dict:
        """Return the settings that rebuild the model together with `arrays`; JSON types only."""
        ...

    def arrays(self) -> dict:
        """Return the parameters and fitted statistics of the model: nested dictionaries of arrays."""
        ...

    def save(self, path) -> None:
        """Write the model to one HDF5 file, which `load` reads."""
        ...


def require(model: object, *properties: str) -> Any:
    """Return the model if it predicts all the properties.

    Args:
      model: a model, from `ql.load`.
      *properties: names as in `Model.provides`.

    Raises:
      InputError: if the object is not a model, or does not predict one of the properties.
    """
    if not isinstance(model, Model):
        raise InputError(f"Expected a model, got {type(model).__name__}; use ql.load(path) to load one.")
    missing = [name for name in properties if name not in model.provides]
    if missing:
        raise InputError(
            f"Expected a model that predicts {', '.join(missing)}, got one of kind {model.kind!r}, which predicts "
            f"{', '.join(sorted(model.provides))}; use one of kind 'equivariant', for example."
        )
    return model


_CONFIGS: dict[str, type] = {}
_TITLES: dict[str, str] = {}
_PRESETS: dict[str, Mapping[str, Any]] = {}


def register_kind(kind: str, config: type, title: str = "", presets: Mapping[str, Any] | None = None) -> None:
    """Register a kind of model under a name.

    Args:
      kind: name of the kind in `config.json`.
      config: frozen dataclass of the network's settings; its fields hold JSON types only.
      title: name in tables and plots; by default the same as `kind`.
      presets: settings by name, from which a user can choose; by default the dataclass's default settings.

    Raises:
      InputError: if the name or the dataclass is taken.
    """
    taken = _CONFIGS.get(kind)
    if taken is not None and (taken.__module__, taken.__qualname__) != (config.__module__, config.__qualname__):
        raise InputError(f"Expected a new kind of model, got {kind!r}, which is taken by {taken.__name__}; "
                         "use a different name.")
    other = next((name for name, registered in _CONFIGS.items() if registered is config and name != kind), None)
    if other is not None:
        raise InputError(
            f"Expected a class of settings for each kind of model, got {config.__name__} for {kind!r} and {other!r}; "
            "derive a new class."
        )
    _CONFIGS[kind], _TITLES[kind], _PRESETS[kind] = config, title or kind, presets or {}


def kinds() -> tuple[str, ...]:
    """Return the names of all registered kinds of models."""
    return tuple(_CONFIGS)


def title_of(kind: str) -> str:
    """Return the name of a kind in tables and plots."""
    return _TITLES.get(kind, kind)


def choices() -> dict[str, Any]:
    """Return the settings of all registered kinds that a user can choose from, by title: "QPT, micro", for example.

    A kind without presets has its default settings; it is left out if a setting has no default.
    """
    settings = {}
    for kind, title in _TITLES.items():
        settings |= {f"{title}, {name}": config for name, config in _PRESETS[kind].items()}
        if not _PRESETS[kind]:
            with contextlib.suppress(TypeError):
                settings[title] = _CONFIGS[kind]()
    return settings


def config_class(kind: str) -> type:
    """Return the dataclass of settings that a kind is registered with.

    Raises:
      InputError: if no kind of that name is registered.
    """
    if not isinstance(kind, str) or kind not in _CONFIGS:
        raise InputError(
            f"Expected a registered kind of model ({', '.join(_CONFIGS)}), got {str(kind)[:60]!r}; import the module "
            "that registers it with ql.register_network first."
        )
    return _CONFIGS[kind]


def kind_of(config: object) -> str:
    """Return the kind that a network's settings belong to.

    Raises:
      InputError: if their class is not registered.
    """
    for kind, registered in _CONFIGS.items():
        if type(config) is registered:
            return kind
    raise InputError(
        f"Expected the settings of a registered network, got {type(config).__name__}; register its class with "
        "ql.register_network first."
    )
