"""A session of the workbench without a screen: what is studied, and the part of each tab.

Widgets are views of a session. Training runs in the thread of its trainer; the traits here change only on the thread
that calls a method, so that views can observe them.
"""

import dataclasses
import weakref
from typing import Any, NamedTuple

import traitlets

from qptlab.dft import estimates
from qptlab.dft.integrals import template
from qptlab.errors import MAX_CHARACTERS, InputError, clipped, shown
from qptlab.gui.bounds import Bounds
from qptlab.gui.parts import (
    AttentionPart,
    ComparisonPart,
    KernelsPart,
    OrbitalsPart,
    Part,
    PredictionPart,
    SCFPart,
    TrainingPart,
)
from qptlab.gui.tabs import find_tab
from qptlab.models import contract
from qptlab.models.equivariant import EquivariantConfig
from qptlab.models.networks import MAX_ITERATIONS, CorrectionConfig
from qptlab.sampling import MolecularDynamics, Sampler, Sampling, parameters, samplers_without_required
from qptlab.system import coordinates
from qptlab.system.coordinates import Coordinate
from qptlab.system.dispersion import CORRECTIONS
from qptlab.system.functional import FUNCTIONALS
from qptlab.system.method import GRID_LEVELS, Method
from qptlab.system.molecule import Molecule
from qptlab.training.config import TrainConfig
from qptlab.training.trainer import Trainer
from qptlab.units import significant

QUICK_BASIS, QUICK_ITERATIONS, QUICK_MINUTES = "sto-3g", 0, 1.0
"""Defaults of a session that differ from those of `Method`, `CorrectionConfig` and `TrainConfig`. With them a first
training of water shows its results within a minute on two cores. Without DFT iterations the energy is still far from
convergence, so that the effect of the network can be seen."""


class Message(NamedTuple):
    """One sentence for the user.

    Attributes:
      text: the sentence; empty if there is nothing to say.
      topic: name of the tab that shows it, see `tabs.TABS`.
      is_error: true if something could not be done.
    """

    text: str
    topic: str
    is_error: bool


def network_choices() -> dict[str, Any]:
    """Return the settings of networks that a user can choose, by title: the default network's first.

    Networks that learn from labels are last.
    """

    def rank(config: Any) -> int:
        return 0 if isinstance(config, EquivariantConfig) else 1 if isinstance(config, CorrectionConfig) else 2

    return dict(sorted(contract.choices().items(), key=lambda choice: rank(choice[1])))


class Session(traitlets.HasTraits):
    """Molecule, method, network and training that are studied in the workbench, and the parts of its tabs.

    The bounds of a server (see `bounds`) are those of the environment when the session begins; an attribute beyond
    them is refused.

    Args:
      molecule: the molecule, or a text as `choose` reads it.
      **choices: initial values of other attributes.

    Attributes:
      molecule: molecule that is studied; set it with `choose`.
      xc: functional, one of `functional.FUNCTIONALS`.
      dispersion: dispersion correction, one of `dispersion.CORRECTIONS`; None for none.
      basis: name of the basis set.
      grid_level: level of the integration grid, one of `method.GRID_LEVELS`.
      network: settings of a registered network; its number of DFT iterations is `iterations`.
      iterations: number of DFT iterations after the network.
      labels: path of a file of labels, for a network that learns from labels; empty for others.
      minutes: training time, min.
      sampler: sampler of geometries, one of `sampling.samplers_without_required()`.
      temperature: temperature of the sampler, K.
      seed: seed of parameters and geometries.
      out: folder of the run; empty for a new one under `runs/`.
      trainer: the present training; None before the first.
      message: last sentence for the user, a `Message`.
      bounds: what the session may be asked for.
      prediction: part of the tab "prediction".
      scf: part of the tab "scf".
      training: part of the tab "training".
      orbitals: part of the tab "orbitals".
      comparison: part of the tab "comparison".
      attention: part of the tab "attention".
      kernels: part of the tab "kernels".
    """

    molecule = traitlets.Instance(Molecule)
    # The register itself: functionals that a user registers later can be chosen as well.
    xc: traitlets.Enum[str] = traitlets.Enum(FUNCTIONALS, Method.xc)  # pyright: ignore
    dispersion: traitlets.Enum[str | None] = traitlets.Enum(  # pyright: ignore[reportAssignmentType]
        (None, *CORRECTIONS), Method.dispersion, allow_none=True
    )
    basis = traitlets.Unicode(QUICK_BASIS)
    grid_level = traitlets.Enum(GRID_LEVELS, Method.grid_level)
    network = traitlets.Any(EquivariantConfig())
    iterations = traitlets.Int(QUICK_ITERATIONS, min=0, max=MAX_ITERATIONS)
    labels = traitlets.Unicode("")
    minutes = traitlets.Float(QUICK_MINUTES)
    sampler = traitlets.Unicode(MolecularDynamics.sampler)
    temperature = traitlets.Float(MolecularDynamics.temperature)
    seed = traitlets.Int(TrainConfig.seed, min=0)
    out = traitlets.Unicode("")
    message = traitlets.Instance(Message, args=("", "molecule", False))
    # Pyright does not solve traitlets' own overload for None.
    trainer: traitlets.Instance[Trainer | None] = traitlets.Instance(  # pyright: ignore[reportAssignmentType]
        Trainer, allow_none=True
    )

    def __init__(self, molecule: str | Molecule = "water", **choices: Any):
        self.bounds = Bounds.of_environment()
        if self.bounds.minutes is not None:
            choices = {"minutes": min(QUICK_MINUTES, self.bounds.minutes), **choices}
        super().__init__(molecule=Molecule.parse(molecule) if isinstance(molecule, str) else molecule, **choices)
        self._parts: dict[str, Part] = {}
        self.prediction: PredictionPart = self.part("prediction")
        self.scf: SCFPart = self.part("scf")
        self.training: TrainingPart = self.part("training")
        self.orbitals: OrbitalsPart = self.part("orbitals")
        self.comparison: ComparisonPart = self.part("comparison")
        self.attention: AttentionPart = self.part("attention")
        self.kernels: KernelsPart = self.part("kernels")
        _sessions.add(self)

    def part(self, name: str) -> Any:
        """Return the session's part of a tab; it is created when it is first asked for.

        Raises:
          InputError: if no tab has this name.
        """
        if name not in self._parts:
            self._parts[name] = find_tab(name).part(self, name)
        return self._parts[name]

    # Choosing -------------------------------------------------------------------------------

    def choose(self, text: str) -> None:
        """Take a built-in name, a SMILES, the path of an XYZ file or XYZ text as the molecule.

        What takes longer than a moment continues in the background; ``part("molecule").wait()`` waits for it.
        """
        self.part("molecule").choose(text)

    def move(self, coordinate: Coordinate, value: float) -> None:
        """Set a bond length (Å) or a torsion (degrees) of the molecule."""
        with self.part("molecule").reporting():
            self.molecule = coordinates.moved(self.molecule, coordinate, value)

    def set(self, name: str, value: Any) -> bool:
        """Set an attribute; if the value cannot be used, show a message, keep the old value and return False."""
        trait = self.traits()[name]
        try:
            setattr(self, name, value)
        except InputError as error:
            self.refuse(str(error), "molecule")
            return False
        except traitlets.TraitError:
            limits = [getattr(trait, limit, None) for limit in ("min", "max")]
            bounds = "".join(
                f" {word} {limit}" for word, limit in zip(("from", "to"), limits, strict=True) if limit is not None
            )
            label = name.replace("_", " ")
            self.refuse(f"Expected {trait.info()}{bounds} as {label}, got {shown(value)}.", "molecule")
            return False
        self.tell("", "molecule")
        return True

    @traitlets.validate("network")
    def _check_network(self, proposal: Any) -> Any:
        contract.kind_of(proposal["value"])  # raises an InputError for a network that is not registered
        return proposal["value"]

    @property
    def learns_from_labels(self) -> bool:
        """True if the network learns from labels, and not from the molecule's geometries."""
        return not isinstance(self.network, CorrectionConfig)

    @property
    def model_config(self) -> Any:
        """Settings of the network, with the session's number of DFT iterations if it does any."""
        return self._with_iterations(self.network)

    @property
    def network_title(self) -> str:
        """Name of the network in lists and tables: that of its preset, or of its kind."""
        for title, config in contract.choices().items():
            if self._with_iterations(config) == self.model_config:
                return title
        return f"{contract.title_of(contract.kind_of(self.network))}, custom"

    def _with_iterations(self, config: Any) -> Any:
        if not isinstance(config, CorrectionConfig):
            return config
        return dataclasses.replace(config, iterations=self.iterations)

    @traitlets.validate("molecule", "basis")
    def _check_size(self, proposal: Any) -> Any:
        """Refuse a basis that is not a name, or what is too large, before the session keeps it.

        It may come from a web page.
        """
        chosen = {"molecule": self.molecule, "basis": self.basis} | {proposal["trait"].name: proposal["value"]}
        self.bounds.check_size([chosen["molecule"]], Method(basis=chosen["basis"]))
        return proposal["value"]

    @traitlets.validate("minutes")
    def _check_minutes(self, proposal: Any) -> float:
        self.bounds.check_minutes(proposal["value"])
        return proposal["value"]

    @traitlets.validate("xc", "dispersion")
    def _check_dispersion(self, proposal: Any) -> str | None:
        """Refuse a dispersion correction that lacks the functional, before the session keeps it."""
        chosen = {"xc": self.xc, "dispersion": self.dispersion} | {proposal["trait"].name: proposal["value"]}
        Method(**chosen)
        return proposal["value"]

    @property
    def method(self) -> Method:
        """Level of theory that is chosen."""
        return Method(self.xc, self.basis, self.grid_level, dispersion=self.dispersion)

    def summary(self) -> str:
        """Return formula, electrons, atomic orbitals, form of the two-electron integrals, and memory of a geometry.

        Raises:
          InputError: if the method cannot treat the molecule.
        """
        prepared = template(self.molecule, self.method)
        size = prepared.nbytes
        memory = f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"
        charge = f"charge {self.molecule.charge:+d}, " if self.molecule.charge else ""
        cores = f" ({prepared.core_electrons} of them in core potentials)" if prepared.core_electrons else ""
        return (
            f"{self.molecule.formula}, {charge}{self.molecule.nelectron} electrons{cores}, "
            f"{prepared.nao} atomic orbitals, {prepared.eri} integrals, {memory} per geometry"
        )

    def estimate(self) -> str:
        """Return a sentence about the time of an SCF; the speed of this machine is measured once.

        Raises:
          InputError: if the method cannot treat the molecule.
        """
        seconds = estimates.scf_seconds(template(self.molecule, self.method))
        rounded = significant(max(seconds, 0.01), 1)
        return f"An SCF takes about {rounded} s on this machine, and the first one some seconds more to compile."

    @traitlets.validate("sampler")
    def _check_sampler(self, proposal: dict) -> str:
        """Return the name of a sampler; users may register samplers at any time."""
        if proposal["value"] not in samplers_without_required():
            raise traitlets.TraitError(
                f"Expected a sampler, got {shown(proposal['value'])}; use one of "
                f"{', '.join(samplers_without_required())}."
            )
        return proposal["value"]

    @property
    def sampling(self) -> Sampler:
        """Sampler of geometries, with the chosen temperature if it has one."""
        has_temperature = "temperature" in parameters(self.sampler)
        return Sampling(self.sampler, **({"temperature": self.temperature} if has_temperature else {}))

    # Messages and work in the background ----------------------------------------------------

    def tell(self, sentence: str, topic: str) -> None:
        """Show a sentence about something that was done, in the tab of this name."""
        self.message = Message(sentence, topic, False)

    def refuse(self, sentence: str, topic: str) -> None:
        """Show a sentence about something that could not be done, in the tab of this name."""
        self.message = Message(clipped(sentence, MAX_CHARACTERS), topic, True)

    def deliver(self) -> None:
        """Hand over results of work in the background, for all parts; views call it regularly."""
        for part in list(self._parts.values()):
            part.deliver()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def active_session(trainer: Trainer | None = None) -> Session | None:
    """Return the session of this process that shows a trainer; a notebook cell that is run again shows it again.

    Args:
      trainer: the trainer; by default any that is running or paused.
    """
    for session in _sessions:
        if session.trainer is trainer if trainer is not None else session.training.is_active:
            return session
    return None
