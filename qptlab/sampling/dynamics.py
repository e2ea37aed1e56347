"""The sampler `md`: molecular dynamics with GFN2-xTB."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import ase.data
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from qptlab.models.systems import System
from qptlab.sampling.bonds import conformer_graph, embedded
from qptlab.sampling.positions import keeps_bonds
from qptlab.sampling.register import SEGMENT, Sampler, Segments, register_sampler
from qptlab.system.molecule import Molecule
from qptlab.units import BOHR_ANGSTROM
from qptlab.xtb import gfn2_atoms, one_thread

if TYPE_CHECKING:
    from ase.md.langevin import Langevin

CHAINS = 4
"""Number of trajectories that a training draws from in turn."""

STEP_FS = 0.5

FRICTION_PER_FS = 0.02
"""Strong coupling: the temperature settles within some 100 fs, and frames decorrelate fast."""

BURN_IN_STEPS = 400

STEPS_PER_FRAME = 10
"""Steps from one frame to the next: 5 fs, half a period of an X–H stretch, the fastest motion."""

HELD_OUT_SEGMENT = 8
"""Frames of a trajectory for validation and tests of a molecule with conformers (40 fs). Each trajectory starts from
a conformer of its own."""


@register_sampler("md")
@dataclasses.dataclass(frozen=True)
class MolecularDynamics(Sampler):
    """Langevin dynamics with GFN2-xTB.

    Each trajectory of a molecule with rotatable bonds or saturated rings starts from a conformer of its own.

    Attributes:
      temperature: temperature, kelvin.
    """

    temperature: float = 500.0
    chains: ClassVar[int] = CHAINS

    def __post_init__(self):
        """Check the parameter."""
        self.check_number("temperature", 5000.0, "K", 500.0)

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Yield the frames of a trajectory, and of a new one whenever a bond breaks, bohr."""
        for start in _starts(mol, rng):
            dynamics = _langevin(start, self.temperature, rng)
            positions = _positions_after(dynamics, BURN_IN_STEPS)
            while keeps_bonds(mol, positions):
                yield positions
                positions = _positions_after(dynamics, STEPS_PER_FRAME)

    def segments(self, mol: Molecule, *, training: bool) -> Segments:
        """Return the segments of a stream; for validation and tests, short ones that start from many conformers."""
        is_long = training or conformer_graph(mol) is None
        return Segments(SEGMENT if is_long else HELD_OUT_SEGMENT, functools.partial(self.draw, mol))

    def check(self, systems: Sequence[System]) -> None:
        """Check nothing: the first frame takes seconds."""

    def summary(self) -> str:
        """Return the sampler with its temperature for people."""
        return f"GFN2-xTB dynamics at {self.temperature:g} K"


def _starts(mol: Molecule, rng: np.random.Generator) -> Iterator[Molecule]:
    """Yield geometries from which trajectories start: conformers, or the reference geometry of a rigid molecule."""
    graph = conformer_graph(mol)
    if graph is not None:
        yield from (mol.with_positions(_superposed(mol, positions)) for positions in embedded(graph, rng))
    yield from itertools.repeat(mol)


def _superposed(mol: Molecule, positions: Float[np.ndarray, "natm 3"]) -> Float[np.ndarray, "natm 3"]:
    """Return positions with the centre of mass and, as nearly as possible, the orientation of the molecule."""
    masses = ase.data.atomic_masses[mol.atomic_numbers]
    centre, moved = (masses @ points / masses.sum() for points in (mol.positions, positions))
    rotation = Rotation.align_vectors(mol.positions - centre, positions - moved, weights=masses)[0]
    return rotation.apply(positions - moved) + centre


def _positions_after(dynamics: "Langevin", steps: int) -> Float[np.ndarray, "natm 3"]:
    """Run the dynamics and return the positions, bohr."""
    # With several threads, sums are taken in a different order each time: a seed would not repeat its trajectory.
    with one_thread():
        dynamics.run(steps=steps)
    return dynamics.atoms.get_positions() / BOHR_ANGSTROM


def _langevin(mol: Molecule, temperature: float, rng: np.random.Generator) -> "Langevin":
    """Return dynamics of the molecule, with velocities from the Maxwell–Boltzmann distribution."""
    from ase import units
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin

    atoms = gfn2_atoms(mol.to_ase())
    # Langevin's own fixcm removes the drift in a way that ASE deprecates; a constraint is exact.
    atoms.set_constraint(FixCom())
    # ASE's MaxwellBoltzmannDistribution rounds differently, and the trajectories of earlier runs would change. ASE
    # 3.29 deprecates it, and earlier versions lack its successor.
    momenta = rng.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(momenta)
    return Langevin(
        atoms, STEP_FS * units.fs, temperature_K=temperature,
        friction=FRICTION_PER_FS / units.fs, fixcm=False, rng=rng,
    )
