"""The sampler `file`: frames of an XYZ file."""

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np

from qptlab.errors import InputError, shown
from qptlab.sampling.register import Sampler, Segments, register_sampler
from qptlab.system.molecule import Molecule, read_xyz

VALIDATION_SHARE = 5
"""Every fifth frame is held out for validation and never trained on."""


@register_sampler("file")
@dataclasses.dataclass(frozen=True)
class Frames(Sampler):
    """Frames of an XYZ file, in random order; every fifth is held out for validation.

    The file may hold other molecules as well. Frames whose bonds differ from those of the molecule's reference
    geometry are left out, with a warning.

    Attributes:
      path: path of the XYZ file.
    """

    path: str

    def __post_init__(self):
        """Check that there is a path."""
        if not (isinstance(self.path, str) and self.path):
            raise InputError(
                f"Expected the path of an XYZ file for the sampler file, got {shown(self.path)}; use path=frames.xyz."
            )

    def segments(self, mol: Molecule, *, training: bool) -> Segments:
        """Return segments that hold every frame once.

        Raises:
          InputError: if the file cannot be read or holds too few frames of the molecule.
        """
        frames = self._frames(mol)
        used = [
            frame for index, frame in enumerate(frames)
            if (index % VALIDATION_SHARE < VALIDATION_SHARE - 1) == training
        ]

        def draw(rng: np.random.Generator) -> Iterator[np.ndarray]:
            return (used[index] for index in rng.permutation(len(used)))

        return Segments(len(used), draw)

    def _frames(self, mol: Molecule) -> list[np.ndarray]:
        """Return the positions [natm, 3] of all frames of the molecule, bohr, in the order of its atoms."""
        frames, differing = [], []
        for index, frame in enumerate(read_xyz(self.path)):
            if sorted(frame.symbols) != sorted(mol.symbols):
                continue
            order = mol.orders(frame)
            if len(order):
                frames.append(frame.positions[order[0]])
            elif frame.symbols == mol.symbols:
                differing.append(index)
        note = f" Frames with other bonds: {len(differing)}, first frame {differing[0]}." if differing else ""
        if len(frames) < VALIDATION_SHARE:
            raise InputError(
                f"Expected at least {VALIDATION_SHARE} frames of {mol.formula}, because every fifth is held out for "
                f"validation, got {len(frames)} in {self.path}; use a file with more frames.{note}"
            )
        if differing:
            warnings.warn(f"{len(frames)} frames of {mol.formula} in {self.path} are used.{note}", stacklevel=3)
        return frames

    def summary(self) -> str:
        """Return the path for people."""
        return self.path
