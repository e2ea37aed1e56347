"""Samplers: seeded, endless streams of geometries to train and validate on.

One file per sampler; importing this package registers all of them. `register` holds the base class and the list of
samplers, `positions` and `bonds` hold what several samplers use.
May import: `models`, `dft`, `xtb`, `system` and below.
"""

# The order of these imports is the order of the samplers in lists.
# isort: off
from qptlab.sampling.dynamics import MolecularDynamics
from qptlab.sampling.modes import NormalModes
from qptlab.sampling.torsions import Torsions
from qptlab.sampling.conformers import Conformers
from qptlab.sampling.perturb import Perturbation
from qptlab.sampling.file import Frames
from qptlab.sampling.walk import ModelWalk, Walk
from qptlab.sampling.register import (
    Sampler,
    Sampling,
    check_sampling,
    parameters,
    parameters_from_text,
    register_sampler,
    sample,
    samplers,
    samplers_without_required,
    sampling_from_json,
)

__all__ = [
    "Conformers", "Frames", "ModelWalk", "MolecularDynamics", "NormalModes", "Perturbation", "Sampler", "Sampling",
    "Torsions", "Walk", "check_sampling", "parameters", "parameters_from_text", "register_sampler", "sample",
    "samplers", "samplers_without_required", "sampling_from_json",
]
