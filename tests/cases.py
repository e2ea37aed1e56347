"""Molecules, integrals and PySCF's results, calculated once and shared by all tests."""

import functools
import sys
import time

import jax
import numpy as np
import pytest
from pyscf import dft, gto
from scipy.spatial.transform import Rotation

import qptlab as ql
from qptlab.dft.integrals import Template, build_integrals, template
from qptlab.models.systems import System

slow = functools.partial(pytest.param, marks=pytest.mark.slow)

QUICK_METHOD = ql.Method("lda", "sto-3g", grid_level=0)
QUICK_MODEL = ql.QPTConfig("micro", iterations=0)
SMALL = ql.EquivariantConfig("small", iterations=0)
QUICK_COMMAND = (
    sys.executable, "-m", "qptlab", "train", "water", "--xc", "lda", "--basis", "sto-3g", "--grid-level", "0",
    "--preset", "small", "--sampler", "perturb", "--batch", "4", "-n", "0", "--out",
)
"""Command of a training that is quick to compile; the path of the run's folder follows."""


OTHERS = {
    "HF": "2\n\nH 0 0 0\nF 0 0 0.92\n",
    "N2": "2\n\nN 0 0 0\nN 0 0 1.10\n",
    "formaldehyde": "4\n\nC 0 0 0\nO 0 0 1.21\nH 0.94 0 -0.59\nH -0.94 0 -0.59\n",
    "SO2": "3\n\nS 0 0 0\nO 1.23 0 0.72\nO -1.23 0 0.72\n",
    "hydroxide": "2\ncharge=-1\nO 0 0 0\nH 0 0 0.97\n",
    "water dimer": (
        "6\n\nO 0 0 0.12\nH 0.76 0 -0.47\nH -0.76 0 -0.47\nO 0.1 2.8 0.5\nH 0.1 1.85 0.3\nH 0.9 3.2 0.2\n"
    ),
    "OH": "2\nspin=1\nO 0 0 0\nH 0 0 0.97\n",
    "O2": "2\nspin=2\nO 0 0 0\nO 0 0 1.21\n",
    "HI": "2\n\nH 0 0 0\nI 0 0 1.61\n",
    "Xe": "1\n\nXe 0 0 0\n",
    "AgH": "2\n\nH 0 0 0\nAg 0 0 1.62\n",
    "AuH": "2\n\nH 0 0 0\nAu 0 0 1.52\n",
    "CH2I": "4\nspin=1\nC 0 0 0\nH 0.2 0.93 -0.55\nH 0.2 -0.93 -0.55\nI 0 0.1 2.05\n",
    "CH3": "4\nspin=1\nC 0 0 0.1\nH 1.08 0 0\nH -0.54 0.935 0\nH -0.54 -0.935 0\n",
}
"""Molecules that the tests use in addition to the built-in ones, ångström."""


@functools.cache
def molecule(name: str, displaced: float = 0.0) -> ql.Molecule:
    """Return a molecule in a random orientation, so that no integral vanishes by symmetry."""
    mol = ql.Molecule.from_xyz(OTHERS[name]) if name in OTHERS else ql.Molecule.from_name(name)
    rng = np.random.default_rng(len(name))
    positions = Rotation.random(rng=rng).apply(mol.positions)
    return mol.with_positions(positions + displaced * rng.normal(size=positions.shape))


@functools.cache
def ints(name: str, method: ql.Method, displaced: float = 0.0) -> ql.Integrals:
    return build_integrals(molecule(name, displaced), method)


@functools.cache
def prepared(name: str, method: ql.Method) -> Template:
    return template(molecule(name), method)


def rks(mol: ql.Molecule, method: ql.Method) -> dft.rks.RKS:
    """Return PySCF's calculation; it uses nothing of qptlab but the symbols, the positions and the method."""
    heavy = {symbol: method.basis for symbol in mol.symbols if gto.charge(symbol) > 36}
    built = gto.M(
        atom=list(zip(mol.symbols, mol.positions.tolist(), strict=True)), unit="Bohr",
        basis=method.basis, ecp=heavy, charge=mol.charge, spin=mol.spin, verbose=0,
    )
    mf = dft.UKS(built) if mol.spin else dft.RKS(built)
    mf.xc = method.functional.require_pyscf_name()
    mf.nlc = False
    if method.eri == "fitted":
        mf = mf.density_fit(auxbasis=method.auxbasis)
    mf.grids.level = method.grid_level
    mf.conv_tol, mf.conv_tol_grad = 1e-11, 1e-7
    mf.init_guess = "minao"
    return mf


@functools.cache
def converged(name: str, method: ql.Method, displaced: float = 0.0) -> dft.rks.RKS:
    mf = rks(molecule(name, displaced), method)
    mf.kernel()
    assert mf.converged
    return mf


@functools.cache
def solved(name: str, method: ql.Method) -> ql.SCFResult:
    return ql.scf(molecule(name), method, tolerance=1e-7)


def random_density(mol: ql.Molecule, method: ql.Method) -> np.ndarray:
    """Return a density far from any solution: that of the guess with randomly mixed orbitals."""
    mf = rks(mol, method)
    _, mo_coeff = mf.eig(mf.get_fock(dm=mf.get_init_guess()), mf.get_ovlp())
    rng = np.random.default_rng(3)
    turn, _ = np.linalg.qr(np.eye(len(mo_coeff)) + 0.1 * rng.normal(size=mo_coeff.shape))
    filled = (mo_coeff @ turn)[:, : mol.nelectron // 2]
    return 2 * filled @ filled.T


def random_symmetric(size: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    matrix = np.random.default_rng(seed).normal(size=(size, size)) * scale
    return 0.5 * (matrix + matrix.T)


def relabelled(template: Template, order: list[int]) -> np.ndarray:
    """Return the indices of a molecule's AOs after a permutation of its atoms."""
    return np.concatenate([np.flatnonzero(template.ao_atom == atom) for atom in order])


HEADS = ("head_scale", "head_out", "head_diagonal")
"""Parameters and modules that are zero before training."""


@functools.cache
def model(name: str, method: ql.Method, iterations: int) -> tuple[ql.CorrectionModel, System]:
    """Return a model and its molecule; they are cached, so that their functions are compiled once."""
    config = ql.QPTConfig("micro", iterations=iterations)
    (system,), kinds = ql.make_systems([ql.Molecule.from_name(name)], method, config)
    return ql.CorrectionModel(config, kinds), system


@functools.cache
def parameters(name: str, method: ql.Method, iterations: int, scale: float = 0.02):
    """Return parameters that change the prediction: the head, which starts at zero, gets random entries."""
    return awake(model(name, method, iterations)[0].init(jax.random.key(0)), scale)


def awake(params, scale: float = 0.02):
    """Return the parameters with random entries in the heads, which start at zero; of any network of the package."""
    keys = iter(jax.random.split(jax.random.key(1), 100))

    def wake(path, leaf):
        if not any(str(part.key).endswith(HEADS) for part in path):
            return leaf
        return scale * jax.random.normal(next(keys), leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(wake, params)


def predictor(name: str, method: ql.Method, iterations: int) -> ql.CorrectionPredictor:
    qpt, system = model(name, method, iterations)
    return ql.CorrectionPredictor(qpt, parameters(name, method, iterations), [system])


def quick(steps: int, **changes) -> ql.TrainConfig:
    """Return settings of a training that takes seconds."""
    return ql.TrainConfig(
        minutes=None, steps=steps, batch=4, reuse=4, warmup_steps=5, validation=2,
        sampling=ql.Sampling("perturb"), **changes,
    )


def slope_by_differences(along, h: float) -> float:
    """Return the derivative of a function at 0 by fourth-order central differences; rounding errors grow as 1/h."""
    return float((8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h))


def wait_until(condition, seconds: float = 90) -> None:
    """Wait until a condition holds that a different thread, process or browser fulfils; fail if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def settle(session) -> None:
    """Wait for the geometry of the molecule that a session has been told to take."""
    part = session.part("molecule")
    if part.task is not None:
        part.task.wait()
    session.deliver()
