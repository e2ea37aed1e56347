"""qptlab: neural networks trained by backpropagating through density functional theory.

    Molecule ─ Method ─▶ Integrals ─▶ fock / energy ─▶ QPT ─▶ Trainer ─▶ Run (on disk)
        (host, libcint)        (JAX, jit+vmap)            │            │
                                                       events ─▶ workbench widgets
                               PySCF reference ─▶ evaluate ─▶ tables and plots

Dimensions, as they stand in every signature:

    natm     atoms                        ngrids   points of the integration grid
    nao      atomic orbitals              nderiv   1 (values) or 4 (values and gradient)
    nmo      molecular orbitals (= nao)   npair    pairs of atomic orbitals, nao·(nao + 1)/2
    nocc     doubly occupied orbitals     nbias    matrices that bias attention

Atomic units and float64 inside; ångström, eV, meV and debye at the edges and then in the name.
"""

import os

import jax
import platformdirs

jax.config.update("jax_enable_x64", True)  # before any array is made: DFT needs float64
if jax.config.jax_default_matmul_precision is None:  # pyright: ignore[reportAttributeAccessIssue]
    # A GPU would round the factors of float32 products to 10 bits, which breaks the symmetries of the networks.
    jax.config.update("jax_default_matmul_precision", "highest")
if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
    # What was compiled once is found again by the next process; JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("qptlab"))
    jax.config.update("jax_compilation_cache_max_size", 2**30)
if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # Wherever the cache is: with JAX's own second a small molecule's SCF would be compiled each time.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

from qptlab.system import basis_sets  # noqa: E402, F401 - before every module that imports PySCF

# isort: split
from qptlab.dft.energy import density_from_fock, energy, fock, kohn_sham, orbitals  # noqa: E402
from qptlab.dft.integrals import Integrals, build_integrals, template  # noqa: E402
from qptlab.dft.properties import charges, dipole_debye, forces  # noqa: E402
from qptlab.dft.scf import SCFResult, scf, scf_batch  # noqa: E402
from qptlab.errors import InputError  # noqa: E402
from qptlab.evaluation.comparison import Evaluation, evaluate  # noqa: E402
from qptlab.evaluation.errors import ErrorSummary  # noqa: E402
from qptlab.evaluation.labels import LabelledSet  # noqa: E402
from qptlab.evaluation.labels import read as read_labels  # noqa: E402
from qptlab.evaluation.predictions import PredictedSet, read_predictions, write_predictions  # noqa: E402
from qptlab.evaluation.reference import Stability, stability  # noqa: E402
from qptlab.interop.ase import ModelCalculator, relax  # noqa: E402
from qptlab.interop.pyscf import accelerate, guess, with_guess  # noqa: E402
from qptlab.models.contract import Model, Prediction, require  # noqa: E402
from qptlab.models.correction import CorrectionModel  # noqa: E402
from qptlab.models.equivariant import EquivariantConfig  # noqa: E402
from qptlab.models.features import Features  # noqa: E402
from qptlab.models.frame import ReferenceFrame  # noqa: E402
from qptlab.models.limits import error_limits  # noqa: E402
from qptlab.models.loading import model_card, pretrained_models  # noqa: E402
from qptlab.models.networks import Attention, CorrectionConfig, register_network  # noqa: E402
from qptlab.models.orbital_gnn import GNNConfig, GNNPredictor, OrbitalGNN  # noqa: E402
from qptlab.models.predictor import CorrectionPredictor  # noqa: E402
from qptlab.models.qpt import QPTConfig  # noqa: E402
from qptlab.models.systems import make_systems  # noqa: E402
from qptlab.sampling import Sampler, Sampling, register_sampler, sample  # noqa: E402
from qptlab.system import datasets  # noqa: E402, F401 - ql.datasets.qm9
from qptlab.system.datasets import read_molecules  # noqa: E402
from qptlab.system.functional import FUNCTIONALS, Functional, register_functional  # noqa: E402
from qptlab.system.method import Method  # noqa: E402
from qptlab.system.molecule import BUILTIN, Molecule, read_xyz  # noqa: E402
from qptlab.training.config import TaskWeights, TrainConfig  # noqa: E402
from qptlab.training.loop import train  # noqa: E402
from qptlab.training.objectives import make_objective  # noqa: E402
from qptlab.training.reproduce import Reproduction, reproduce  # noqa: E402
from qptlab.training.run import Run, load  # noqa: E402
from qptlab.training.trainer import Trainer  # noqa: E402


def plot(figure):
    """Return a widget that shows a plotly figure in a notebook cell, and a picture on pages without widgets.

    Args:
      figure: a figure, for example one of `qptlab.gui.plots`. After a change of it, call `refresh` of the widget.
    """
    from qptlab.gui.widgets import Plot  # plotly and the widgets are loaded when they are needed

    return Plot(figure)


def workbench(trainer: Trainer | None = None, **choices):
    """Return the workbench, which a notebook cell shows: choose a molecule, train a network, look at its results.

    If the cell is run again while a training is running, the workbench shows that training.

    Args:
      trainer: a trainer that a script has created, of any kind of model; by default the workbench starts without.
      **choices: initial values of attributes of `qptlab.gui.session.Session`, such as `molecule="ethanol"`.
    """
    from qptlab.gui.widgets import workbench  # plotly and the widgets are loaded when they are needed

    return workbench(trainer, **choices)


__all__ = [
    "BUILTIN", "FUNCTIONALS", "Attention", "CorrectionConfig", "CorrectionModel", "CorrectionPredictor",
    "EquivariantConfig", "ErrorSummary", "Evaluation", "Features", "Functional", "GNNConfig", "GNNPredictor",
    "InputError", "Integrals", "LabelledSet", "Method", "Model", "ModelCalculator", "Molecule", "OrbitalGNN",
    "PredictedSet", "Prediction", "QPTConfig", "ReferenceFrame", "Reproduction", "Run", "SCFResult", "Sampler",
    "Sampling", "Stability", "TaskWeights", "TrainConfig", "Trainer", "accelerate", "build_integrals", "charges",
    "density_from_fock", "dipole_debye", "energy", "error_limits", "evaluate", "fock", "forces", "guess",
    "kohn_sham", "load", "make_objective", "make_systems", "model_card", "orbitals", "plot", "pretrained_models",
    "read_labels", "read_molecules", "read_predictions", "read_xyz", "register_functional", "register_network",
    "register_sampler", "relax", "reproduce", "require", "sample", "scf", "scf_batch", "stability", "template",
    "train", "with_guess", "workbench", "write_predictions",
]
