"""Where training geometries come from: seeded, infinite streams of positions.

Random displacements, molecular dynamics with GFN2-xTB, or the user's own frames. The same seed
gives the same stream; a validation stream has a seed of its own and never meets the training one.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import threadpoolctl
from jaxtyping import Float

from qptlab.errors import InputError
from qptlab.molecule import Molecule, read_xyz
from qptlab.units import BOHR_ANGSTROM

SAMPLERS = ("md", "perturb", "file")

MD_STEP_FS = 0.5
MD_FRICTION_PER_FS = 0.02
"""Strong coupling: the temperature settles within some 100 fs, and frames decorrelate fast."""
MD_BURN_IN_STEPS = 400
MD_STEPS_PER_FRAME = 10
"""5 fs: half a period of an X–H stretch, the fastest motion."""

VALIDATION_SHARE = 5
"""With the `file` sampler every fifth frame is held out for validation and never trained on."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How geometries are drawn.

    Attributes:
      sampler: `md` (Langevin dynamics with GFN2-xTB), `perturb` (Gaussian displacements of the
        reference geometry) or `file` (frames of an XYZ file, shuffled).
      temperature: of `md`, kelvin.
      sigma_bohr: standard deviation of `perturb`, per coordinate.
      path: the XYZ file of `file`.
    """

    sampler: str = "md"
    temperature: float = 500.0
    sigma_bohr: float = 0.05
    path: str = ""

    def __post_init__(self):
        """Check what a user can get wrong."""
        if self.sampler not in SAMPLERS:
            raise InputError(
                f"sampler {self.sampler!r} is not known; one of {', '.join(SAMPLERS)} would do."
            )
        if not 0 < self.temperature <= 5000:
            raise InputError(f"temperature {self.temperature} K cannot be used; 500 would do.")
        if not 0 < self.sigma_bohr <= 0.5:
            raise InputError(f"a displacement of {self.sigma_bohr} bohr cannot be used; 0.05 would do.")
        if self.sampler == "file" and not self.path:
            raise InputError("sampler 'file' needs the path of an XYZ file with frames of the molecule.")


def sample(
    mol: Molecule, sampling: Sampling, seed: int | Sequence[int], *, validation: bool = False
) -> Iterator[Float[np.ndarray, "natm 3"]]:
    """An endless stream of geometries, bohr, in the molecule's order of atoms.

    Args:
      mol: the molecule, at its reference geometry.
      sampling: how to draw.
      seed: any whole number, or several.
      validation: draw from the held-out stream of this seed instead of the training one.

    Raises:
      InputError: if the `file` cannot be used; with the first geometry.
    """
    purpose = 1 if validation else 0
    rng = np.random.default_rng([purpose, *np.atleast_1d(seed)])
    if sampling.sampler == "perturb":
        return _perturb(mol, sampling.sigma_bohr, rng)
    if sampling.sampler == "md":
        return _md(mol, sampling.temperature, rng)
    return _file(mol, sampling.path, rng, validation)


def _perturb(mol, sigma, rng):
    while True:
        yield mol.positions + sigma * rng.normal(size=mol.positions.shape)


def _md(mol, temperature, rng):
    dynamics = _langevin(mol, temperature, rng)
    threads = threadpoolctl.ThreadpoolController()  # after tblite is loaded, so that it knows of it

    def run(steps):
        # Sums over several threads come out in another order each time, and a seed would mean nothing.
        with threads.limit(limits=1, user_api="openmp"):
            dynamics.run(steps)
        return dynamics.atoms.get_positions() / BOHR_ANGSTROM

    while True:
        positions = run(MD_BURN_IN_STEPS)
        while _is_whole(mol, positions):
            yield positions
            positions = run(MD_STEPS_PER_FRAME)
        dynamics = _langevin(mol, temperature, rng)  # the molecule came apart: another trajectory


def _langevin(mol, temperature, rng):
    from ase import units
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin
    from tblite.ase import TBLite

    atoms = mol.to_ase()
    # Langevin's own fixcm removes the drift in a way that ASE deprecates; a constraint is exact.
    atoms.set_constraint(FixCom())
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0, charge=mol.charge)
    kinetic = rng.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(kinetic)
    return Langevin(
        atoms, MD_STEP_FS * units.fs, temperature_K=temperature,
        friction=MD_FRICTION_PER_FS / units.fs, fixcm=False, rng=rng,
    )


def _is_whole(mol, positions):
    """No pair of bonded atoms (within 1.6 times their reference distance) has come apart."""
    reference = np.linalg.norm(mol.positions[:, None] - mol.positions, axis=-1)
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1)
    near = (reference > 0) & (reference < 3.2)  # 1.7 Å: all bonds of first- and second-row atoms
    return np.isfinite(positions).all() and (distance[near] < 1.6 * reference[near]).all()


def _file(mol, path, rng, validation):
    frames = read_xyz(path)
    for index, frame in enumerate(frames):
        if frame.symbols != mol.symbols:
            raise InputError(
                f"frame {index} of {path} is {frame.formula} in the order {' '.join(frame.symbols)}; "
                f"{' '.join(mol.symbols)} would do."
            )
    if len(frames) < VALIDATION_SHARE:
        raise InputError(
            f"{path} holds {len(frames)} frames; at least {VALIDATION_SHARE} would do, because every "
            "fifth is held out for validation."
        )
    held_out = [index % VALIDATION_SHARE == VALIDATION_SHARE - 1 for index in range(len(frames))]
    mine = [frame.positions for frame, out in zip(frames, held_out, strict=True) if out == validation]
    while True:
        for index in rng.permutation(len(mine)):
            yield mine[index]
