"""The sampler `modes`: harmonic vibrations about the minimum of GFN2-xTB."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError
from qptlab.models.systems import System
from qptlab.sampling.positions import MAX_TRIES, keeps_bonds
from qptlab.sampling.register import SEGMENT, Sampler, Segments, register_sampler
from qptlab.system.molecule import Molecule
from qptlab.units import BOHR_ANGSTROM
from qptlab.xtb import one_thread, relaxed

SOFTEST_MODE_CM = 100.0
"""Lowest wavenumber, cm⁻¹. Softer vibrations get this one, because a harmonic potential describes them badly."""


@register_sampler("modes")
@dataclasses.dataclass(frozen=True)
class NormalModes(Sampler):
    """Harmonic vibrations about GFN2-xTB's minimum, at a temperature (classical).

    Attributes:
      temperature: temperature, kelvin.
    """

    temperature: float = 500.0

    def __post_init__(self):
        """Check the parameter."""
        self.check_number("temperature", 5000.0, "K", 500.0)

    def segments(self, mol: Molecule, *, training: bool) -> Segments:
        """Return the segments of a stream; the normal modes are calculated once.

        ASE's `phonon_harmonics` is for crystals: it removes three translations but no rotations, and it has no lower
        limit for soft modes.
        """
        from ase import units

        minimum, masses, hessian = _minimum(mol.symbols, mol.positions.tobytes(), mol.charge)
        scale = 1 / np.sqrt(np.repeat(masses, 3))
        internal = _vibrations(minimum, masses)
        stiffness, modes = np.linalg.eigh(internal.T @ (scale[:, None] * hessian * scale) @ internal)
        softest = (SOFTEST_MODE_CM * units.invcm / (units._hbar * units.J * units.s)) ** 2
        amplitude = np.sqrt(units.kB * self.temperature / np.maximum(stiffness, softest))
        directions = scale[:, None] * (internal @ modes) * amplitude / BOHR_ANGSTROM

        def draw(rng: np.random.Generator) -> Iterator[np.ndarray]:
            tries = 0
            while tries < MAX_TRIES:
                shift = (directions @ rng.normal(size=len(stiffness))).reshape(minimum.shape)
                positions = minimum / BOHR_ANGSTROM + shift
                tries += 1
                if keeps_bonds(mol, positions):
                    tries = 0
                    yield positions
            raise InputError(
                f"Expected vibrations of {mol.formula} that break no bond, got none in {MAX_TRIES} about GFN2-xTB's "
                "minimum; use the sampler md or perturb."
            )

        return Segments(SEGMENT, draw)

    def check(self, systems: Sequence[System]) -> None:
        """Check nothing: the first geometry takes seconds."""


@functools.lru_cache(maxsize=32)
def _minimum(
    symbols: tuple[str, ...], positions: bytes, charge: int
) -> tuple[Float[np.ndarray, "natm 3"], Float[np.ndarray, " natm"], Float[np.ndarray, "3*natm 3*natm"]]:
    """Return GFN2-xTB's minimum (ångström), the masses (u) and the Hessian (eV/Å²) by differences of forces."""
    mol = Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge)
    atoms = relaxed(mol.to_ase(), fmax=0.005, steps=500)
    with one_thread():
        minimum, step = atoms.get_positions(), 0.01

        def forces(coordinate: int, shift: float) -> np.ndarray:
            atoms.set_positions(minimum + shift * np.eye(minimum.size)[coordinate].reshape(minimum.shape))
            return atoms.get_forces().ravel()

        rows = [(forces(index, -step) - forces(index, step)) / (2 * step) for index in range(minimum.size)]
    return minimum, atoms.get_masses(), 0.5 * (np.stack(rows) + np.stack(rows).T)


def _vibrations(
    minimum: Float[np.ndarray, "natm 3"], masses: Float[np.ndarray, " natm"]
) -> Float[np.ndarray, "3*natm nvib"]:
    """Return an orthonormal basis (columns) of mass-weighted displacements without translation and rotation."""
    centred = minimum - masses @ minimum / masses.sum()
    root = np.sqrt(masses)[:, None]
    axes = np.eye(3)
    rigid = [(root * axis).ravel() for axis in axes] + [(root * np.cross(centred, axis)).ravel() for axis in axes]
    vectors, sizes, _ = np.linalg.svd(np.array([np.broadcast_to(row, minimum.size) for row in rigid]).T)
    return vectors[:, int(np.sum(sizes > 1e-2 * sizes[0])) :]  # a linear molecule has one rotation less
