"""Where training geometries come from: seeded, endless streams of positions, which can be entered at any place.

A stream is cut into segments, each with random numbers of its own, so that a resumed training draws what it would
have drawn. A validation stream has a purpose, and so random numbers, of its own and never meets the training one.
"""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import ase.data
import ase.units
import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError, shown
from qptlab.models.contract import Params
from qptlab.models.correction import CorrectionModel
from qptlab.models.predictor import energy_and_slope
from qptlab.models.systems import System
from qptlab.system.molecule import Molecule, read_xyz
from qptlab.units import BOHR_ANGSTROM
from qptlab.xtb import gfn2_atoms, one_thread

SAMPLERS = ("md", "modes", "torsions", "conformers", "perturb", "file", "model")

SEGMENT = 200
"""Geometries of a segment: of `md` a trajectory of 1 ps from the reference geometry, after the burn-in."""

MD_CHAINS = 4
"""Trajectories at a time: they run on several cores, and frames that follow one another differ more."""
MD_STEP_FS = 0.5
MD_FRICTION_PER_FS = 0.02
"""Strong coupling: the temperature settles within some 100 fs, and frames decorrelate fast."""
MD_BURN_IN_STEPS = 400
MD_STEPS_PER_FRAME = 10
"""5 fs: half a period of an X–H stretch, the fastest motion."""

SOFTEST_MODE_CM = 100.0
"""Softer vibrations are taken to be as stiff as this: along them a harmonic potential says little."""

CLASH = 0.6
"""Atoms three bonds apart or more that come nearer than this times their van der Waals distance: another geometry."""

MAX_TRIES = 1000

WALK_STEPS = 5
"""Steps of a `Walk` from one geometry to the next."""

BOLTZMANN_HARTREE = ase.units.kB / ase.units.Hartree
"""Per kelvin."""

ELECTRON_MASSES = ase.units._amu / ase.units._me
"""Of an atomic mass unit."""

VALIDATION_SHARE = 5
"""With the `file` sampler every fifth frame is held out for validation and never trained on."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How geometries are drawn.

    Attributes:
      sampler: `md` (Langevin dynamics with GFN2-xTB), `modes` (harmonic vibrations of GFN2-xTB about its minimum),
        `torsions` (rotatable bonds turned at random, then displaced), `conformers` (distance geometry, then
        displaced), `perturb` (Gaussian displacements of the reference geometry), `file` (frames of an XYZ
        file, shuffled) or `model` (the model's own Boltzmann distribution, by a `Walk` that starts from dynamics;
        where there is no model, as for validation, `md`).
      temperature: of `md`, `modes` and `model`, kelvin.
      sigma_bohr: standard deviation of displacements, per coordinate.
      path: the XYZ file of `file`; it may hold frames of other molecules, too. Frames whose bonds are not those of
        the molecule's reference geometry are left out, with a warning.
    """

    sampler: str = "md"
    temperature: float = 500.0
    sigma_bohr: float = 0.05
    path: str = ""

    def __post_init__(self):
        """Check what a user can get wrong."""
        if not isinstance(self.path, str):
            raise InputError(f"Expected text as the path of an XYZ file, got {shown(self.path)}; use a path or ''.")
        if self.sampler not in SAMPLERS:
            raise InputError(
                f"sampler {shown(self.sampler)} is not known; one of {', '.join(SAMPLERS)} would do."
            )
        if not 0 < self.temperature <= 5000:
            raise InputError(f"temperature {self.temperature} K cannot be used; 500 would do.")
        if not 0 < self.sigma_bohr <= 0.5:
            raise InputError(f"a displacement of {self.sigma_bohr} bohr cannot be used; 0.05 would do.")
        if self.sampler == "file" and not self.path:
            raise InputError("sampler 'file' needs the path of an XYZ file with frames of the molecule.")

    @property
    def chains(self) -> int:
        """How many independent streams are best drawn from side by side."""
        return MD_CHAINS if self.sampler in ("md", "model") else 1


def sample(
    mol: Molecule,
    sampling: Sampling,
    seed: int | Sequence[int],
    *,
    validation: bool = False,
    start: int = 0,
) -> Iterator[Float[np.ndarray, "natm 3"]]:
    """An endless stream of geometries, bohr, in the molecule's order of atoms.

    Args:
      mol: the molecule, at its reference geometry.
      sampling: how to draw.
      seed: any whole number, or several.
      validation: draw from the held-out stream of this seed instead of the training one.
      start: number of the first geometry to give; a stream entered later goes on as it would have done.

    Raises:
      InputError: if the `file` cannot be used, or the molecule not be sampled in this way; with the first geometry.
    """
    length, segment = _PREPARE[sampling.sampler](mol, sampling, validation)
    for number in itertools.count(start // length):
        rng = np.random.default_rng([int(validation), *np.atleast_1d(seed), number])
        yield from itertools.islice(segment(rng), start % length if number == start // length else 0, length)


class Walk:
    """A walk through the Boltzmann distribution of a model's energy: Metropolis-adjusted Langevin steps.

    The model draws the geometries that it learns from (Hassan et al. 2025, arXiv:2506.01225); with parameters that
    improve the walk does, too. Proposals x' = x − ½ε²·g/m + ε·ξ·√(kT/m) with the slope g (Roberts & Tweedie 1996,
    doi:10.2307/3318418), and ε follows the share of steps that are taken.

    Args:
      model: predicts energies.
      system: the molecule.
      sampling: its temperature is read.
      seed: of the start, a frame of dynamics, and of the steps.
    """

    def __init__(self, model: CorrectionModel, system: System, sampling: Sampling, seed: Sequence[int]):
        self._evaluate = energy_and_slope(model, system)
        self._system = system
        self._rng = np.random.default_rng([4, *seed])
        self._start = sample(system.molecule, dataclasses.replace(sampling, sampler="md"), seed)
        self._thermal = BOLTZMANN_HARTREE * sampling.temperature
        masses = ase.data.atomic_masses[system.molecule.atomic_numbers] * ELECTRON_MASSES
        self._masses = masses[:, None]
        self._epsilon = 10.0
        self._place: np.ndarray | None = None

    def move(self, params: Params | None) -> Float[np.ndarray, "natm 3"]:
        """Some steps with the present parameters; the geometry reached, in the molecule's frame, bohr."""
        if self._place is None:
            self._place = next(self._start)
        place, (energy, slope) = self._place, self._at(params, self._place)
        for _ in range(WALK_STEPS):
            noise = self._rng.normal(size=place.shape)
            new = self._ahead(place, slope) + self._epsilon * np.sqrt(self._thermal / self._masses) * noise
            new_energy, new_slope = self._at(params, new)
            back = (place - self._ahead(new, new_slope)) / (self._epsilon * np.sqrt(self._thermal / self._masses))
            log_ratio = (energy - new_energy) / self._thermal + 0.5 * (np.sum(noise**2) - np.sum(back**2))
            is_taken = np.log(self._rng.uniform()) < log_ratio  # never, where it is not a number
            if is_taken:
                place, energy, slope = new, new_energy, new_slope
            # At 57 % this is the most effective (Roberts & Rosenthal 1998, doi:10.1111/1467-9868.00123).
            self._epsilon *= math.exp(0.1 * (is_taken - 0.57))
        place = self._system.frame.pose(place).positions
        self._place = place if _is_whole(self._system.molecule, place) else None
        return place

    def _at(self, params, place):
        frame = self._system.frame
        pose = frame.pose(place)
        energy, slope = self._evaluate(pose.positions, params)
        return float(energy), frame.pull_back(pose, slope)

    def _ahead(self, place, slope):
        return place - 0.5 * self._epsilon**2 * slope / self._masses


# Each of these makes what a stream needs once, and says how long its segments are and how to draw one.
_Prepared = tuple[int, Callable[[np.random.Generator], Iterator[np.ndarray]]]


def _perturb(mol: Molecule, sampling: Sampling, validation: bool) -> _Prepared:
    return SEGMENT, lambda rng: _displaced(itertools.repeat(mol.positions), sampling, rng)


def _displaced(places, sampling, rng):
    for place in places:
        yield place + sampling.sigma_bohr * rng.normal(size=place.shape)


def _md(mol: Molecule, sampling: Sampling, validation: bool) -> _Prepared:
    return SEGMENT, lambda rng: _trajectory(mol, sampling.temperature, rng)


def _trajectory(mol, temperature, rng):
    dynamics = _langevin(mol, temperature, rng)
    while True:
        positions = _one_thread(dynamics.run, MD_BURN_IN_STEPS, dynamics.atoms)
        while _is_whole(mol, positions):
            yield positions
            positions = _one_thread(dynamics.run, MD_STEPS_PER_FRAME, dynamics.atoms)
        dynamics = _langevin(mol, temperature, rng)  # the molecule came apart: another trajectory


def _one_thread(run, steps, atoms):
    """Positions after running; sums over several threads come out in another order each time."""
    with one_thread():
        run(steps=steps)
    return atoms.get_positions() / BOHR_ANGSTROM


def _langevin(mol, temperature, rng):
    from ase import units
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin

    atoms = gfn2_atoms(mol)
    # Langevin's own fixcm removes the drift in a way that ASE deprecates; a constraint is exact.
    atoms.set_constraint(FixCom())
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


def _modes(mol: Molecule, sampling: Sampling, validation: bool) -> _Prepared:
    from ase import units

    home, masses, hessian = _minimum(mol.symbols, mol.positions.tobytes(), mol.charge)
    scale = 1 / np.sqrt(np.repeat(masses, 3))
    moving = _vibrations(home, masses)
    stiffness, modes = np.linalg.eigh(moving.T @ (scale[:, None] * hessian * scale) @ moving)
    softest = (SOFTEST_MODE_CM * units.invcm / (units._hbar * units.J * units.s)) ** 2
    amplitude = np.sqrt(units.kB * sampling.temperature / np.maximum(stiffness, softest))
    directions = scale[:, None] * (moving @ modes) * amplitude / BOHR_ANGSTROM

    def draw(rng):
        tries = 0
        while tries < MAX_TRIES:
            positions = home / BOHR_ANGSTROM + (directions @ rng.normal(size=len(stiffness))).reshape(home.shape)
            tries += 1
            if _is_whole(mol, positions):
                tries = 0
                yield positions
        raise InputError(
            f"of {MAX_TRIES} vibrations about GFN2-xTB's minimum of {mol.formula} none keeps its bonds; "
            "md or perturb would do."
        )

    return SEGMENT, draw


@functools.lru_cache(maxsize=32)
def _minimum(symbols, positions, charge):
    """GFN2-xTB's minimum (ångström), the masses, and the Hessian there (eV/Å²), by differences of forces."""
    from ase.optimize import BFGS

    atoms = gfn2_atoms(Molecule(symbols, np.frombuffer(positions).reshape(-1, 3), charge))
    with one_thread():
        BFGS(atoms, logfile=None).run(fmax=0.005, steps=500)
        home, step = atoms.get_positions(), 0.01

        def pull(axis, size):
            atoms.set_positions(home + size * np.eye(home.size)[axis].reshape(home.shape))
            return atoms.get_forces().ravel()

        rows = [(pull(axis, -step) - pull(axis, step)) / (2 * step) for axis in range(home.size)]
    return home, atoms.get_masses(), 0.5 * (np.stack(rows) + np.stack(rows).T)


def _vibrations(home, masses):
    """Mass-weighted directions that neither move nor turn the molecule as a whole, in columns."""
    centred = home - masses @ home / masses.sum()
    root = np.sqrt(masses)[:, None]
    axes = np.eye(3)
    rigid = [(root * axis).ravel() for axis in axes] + [(root * np.cross(centred, axis)).ravel() for axis in axes]
    vectors, sizes, _ = np.linalg.svd(np.array([np.broadcast_to(row, home.size) for row in rigid]).T)
    return vectors[:, int(np.sum(sizes > 1e-2 * sizes[0])) :]  # a linear molecule has one rotation less


def _torsions(mol: Molecule, sampling: Sampling, validation: bool) -> _Prepared:
    from rdkit import Chem
    from rdkit.Chem.rdMolTransforms import SetDihedralRad

    home = _graph(mol)
    bonds = _rotatable(home)
    if not bonds:
        raise InputError(f"{mol.formula} has no rotatable bond for torsions; md, modes or perturb would do.")
    near = _clash_distances(home)

    def turned(rng):
        graph, tries = Chem.Mol(home), 0
        while True:
            for first, second in bonds:
                ends = (_neighbour(graph, first, second), first, second, _neighbour(graph, second, first))
                SetDihedralRad(graph.GetConformer(), *ends, float(rng.uniform(-np.pi, np.pi)))
            positions, tries = graph.GetConformer().GetPositions() / BOHR_ANGSTROM, tries + 1
            if not (np.linalg.norm(positions[:, None] - positions, axis=-1) < near).any():
                tries = 0
                yield positions
            if tries == MAX_TRIES:
                raise InputError(
                    f"of {MAX_TRIES} ways to turn the bonds of {mol.formula} none keeps its atoms apart; "
                    "md or conformers would do."
                )

    return SEGMENT, lambda rng: _displaced(turned(rng), sampling, rng)


def _conformers(mol: Molecule, sampling: Sampling, validation: bool) -> _Prepared:
    from rdkit.Chem.rdDistGeom import EmbedMultipleConfs

    graph = _graph(mol)

    def embedded(rng):
        while True:
            found = EmbedMultipleConfs(graph, 10, randomSeed=int(rng.integers(2**31 - 1)))
            if not found:
                raise InputError(f"no conformer of {mol.formula} was found; md, modes or perturb would do.")
            places = [graph.GetConformer(number).GetPositions() / BOHR_ANGSTROM for number in found]
            yield from places

    return SEGMENT, lambda rng: _displaced(embedded(rng), sampling, rng)


def _graph(mol):
    """RDKit's molecule with bonds, found from the distances."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdDetermineBonds import DetermineBonds

    lines = (f"{s} {x:.8f} {y:.8f} {z:.8f}" for s, (x, y, z) in zip(mol.symbols, mol.positions_angstrom, strict=True))
    with rdBase.BlockLogs():
        graph = Chem.MolFromXYZBlock("\n".join([str(len(mol.symbols)), "", *lines]))
        try:
            DetermineBonds(graph, charge=mol.charge)
        except ValueError:
            raise InputError(f"no bonds of {mol.formula} were found; md, modes or perturb would do.") from None
    return graph


def _rotatable(graph):
    """Single bonds outside rings between atoms that have other neighbours, not in a line; amides are left flat."""
    from rdkit import Chem

    found = graph.GetSubstructMatches(Chem.MolFromSmarts("[CX3](=O)-[NX3]"))
    amides = {frozenset((carbon, nitrogen)) for carbon, _, nitrogen in found}
    bonds = graph.GetSubstructMatches(Chem.MolFromSmarts("[!D1;!$(*#*)]-&!@[!D1;!$(*#*)]"))
    return [pair for pair in bonds if frozenset(pair) not in amides]


def _neighbour(graph, atom, other):
    return next(n.GetIdx() for n in graph.GetAtomWithIdx(atom).GetNeighbors() if n.GetIdx() != other)


def _clash_distances(graph):
    """How near two atoms may come, bohr; zero for those that bonds or angles hold."""
    from rdkit import Chem

    radii = np.array([Chem.GetPeriodicTable().GetRvdw(atom.GetAtomicNum()) for atom in graph.GetAtoms()])
    apart = Chem.GetDistanceMatrix(graph) >= 3
    return np.where(apart, CLASH * (radii[:, None] + radii), 0.0) / BOHR_ANGSTROM


def _file(mol: Molecule, sampling: Sampling, validation: bool) -> _Prepared:
    frames, strange = [], []
    for index, frame in enumerate(read_xyz(sampling.path)):
        if sorted(frame.symbols) != sorted(mol.symbols):
            continue
        order = mol.orders(frame)
        if len(order):
            frames.append(frame.positions[order[0]])
        elif frame.symbols == mol.symbols:
            strange.append(index)
    rest = f" {len(strange)} others, frame {strange[0]} the first, have other bonds." if strange else ""
    if len(frames) < VALIDATION_SHARE:
        raise InputError(
            f"{sampling.path} holds {len(frames)} frames of {mol.formula}; at least {VALIDATION_SHARE} would do, "
            f"because every fifth is held out for validation.{rest}"
        )
    if strange:
        warnings.warn(f"{len(frames)} frames of {mol.formula} in {sampling.path} are used.{rest}", stacklevel=3)
    held_out = [index % VALIDATION_SHARE == VALIDATION_SHARE - 1 for index in range(len(frames))]
    mine = [place for place, out in zip(frames, held_out, strict=True) if out == validation]
    return len(mine), lambda rng: (mine[index] for index in rng.permutation(len(mine)))


_PREPARE = {
    "md": _md, "model": _md, "modes": _modes, "torsions": _torsions, "conformers": _conformers, "perturb": _perturb,
    "file": _file,
}
