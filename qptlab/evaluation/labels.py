"""Labels: results of DFT calculations for geometries, several properties each; and files of them, in extended XYZ.

Labels come from PySCF, from a trained model (a teacher that needed no DFT labels itself), or from files of users. The
eigenvalues of each atom's block of the density are the auxiliary targets of OrbNet's multi-task learning (Qiao et al.
2020, arXiv:2011.02680): they describe densities by numbers that do not depend on the axes.
"""

import concurrent.futures
import functools
import io
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from jaxtyping import Float
from pyscf import gto

from qptlab import files
from qptlab.dft import libcint
from qptlab.dft.properties import charges, dipole_debye
from qptlab.dft.response import accelerated
from qptlab.errors import MAX_SHOWN, InputError, clipped
from qptlab.evaluation import reference
from qptlab.models import limits
from qptlab.models.contract import Model, require
from qptlab.models.orbital_gnn import VALENCE
from qptlab.random_streams import Purpose, generator
from qptlab.runtime import cluster
from qptlab.system import xyz
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM, HARTREE_EV

UNITS = {"energy": HARTREE_EV, "gap": HARTREE_EV, "forces": HARTREE_EV / BOHR_ANGSTROM, "dipole": BOHR_ANGSTROM}
"""Units of properties in files, relative to atomic units; others have none."""


class Label(NamedTuple):
    """Reference properties of one geometry, in atomic units. A property that is not known is NaN.

    Attributes:
      energy: total energy, hartree.
      forces: forces on the nuclei, hartree per bohr.
      dipole: dipole moment about the origin, e·bohr.
      charges: Löwdin charges of the atoms, elementary charges.
      gap: difference between the lowest virtual and the highest occupied orbital energy, hartree; NaN if there is no
        virtual orbital.
      valence: eigenvalues of each atom's block of the density, occupied and valence-virtual, in descending order.
    """

    energy: float
    forces: Float[np.ndarray, "natm 3"]
    dipole: Float[np.ndarray, " 3"]
    charges: Float[np.ndarray, " natm"]
    gap: float
    valence: Float[np.ndarray, "natm nvalence"]


class LabelledSet(NamedTuple):
    """Geometries with labels.

    Attributes:
      molecules: geometries.
      labels: label of each geometry.
      theory: level of theory of the labels, in words; empty if it is not known.
    """

    molecules: list[Molecule]
    labels: list[Label]
    theory: str = ""

    def take(self, indices: Iterable[int]) -> "LabelledSet":
        """Return the geometries and labels with some indices."""
        selected = list(indices)
        return LabelledSet([self.molecules[i] for i in selected], [self.labels[i] for i in selected], self.theory)

    def split(self, held_out: int, seed: int = 0) -> "tuple[LabelledSet, LabelledSet]":
        """Return a training set and a test set, drawn at random.

        A geometry with an element that no geometry of the training set has stays in the training set, since a model
        knows only the elements that it was trained on.

        Args:
          held_out: number of geometries to hold out; fewer are held out for the reason above.
          seed: seed of the draw.

        Raises:
          InputError: if one of the two sets would be empty.
        """
        order = generator(Purpose.SPLIT, seed).permutation(len(self.molecules)).tolist()
        known_elements = {symbol for index in order[held_out:] for symbol in self.molecules[index].symbols}
        test = [index for index in order[:held_out] if known_elements.issuperset(self.molecules[index].symbols)]
        held = set(test)
        training = [index for index in order if index not in held]
        if not test or not training:
            raise InputError(
                f"Expected enough labelled geometries to train on some and to hold out {held_out}, got "
                f"{len(self.molecules)}; use five or more, and hold out a fifth."
            )
        return self.take(training), self.take(test)


def from_pyscf(mol: Molecule, method: Method) -> Label:
    """Return the label of a converged PySCF calculation, with forces that include the response of the grid.

    Raises:
      InputError: if the molecule has unpaired electrons or an element beyond argon, the basis has core potentials,
        or the SCF does not converge.
    """
    _check(mol)
    mf = accelerated(reference.calculation(mol, method, fitted=libcint.moles(mol, method).aux is not None))
    if mf.mol.has_ecp():  # PySCF takes the radii of its grid's response by the charge that is left
        raise InputError(
            f"Expected an all-electron basis for labels of PySCF, got core potentials of {method.basis!r} for "
            f"{', '.join(sorted(mf.mol._ecp))}; use def2-svp."
        )
    mf.kernel()
    if not mf.converged:
        raise InputError(
            f"Expected a geometry for which PySCF converges, got one of {mol.formula}; use one nearer to the minimum."
        )
    gradient = mf.nuc_grad_method()
    # The grid moves with the atoms. Without its response, forces are not the derivative of the energy, and their sum
    # is not zero.
    gradient.grid_response = True
    slope = np.asarray(gradient.kernel())
    levels, coeff = np.asarray(mf.mo_energy), np.asarray(mf.mo_coeff)
    return _label(mol, method, float(mf.e_tot), -slope, mf.make_rdm1(), levels, coeff)


def from_model(mol: Molecule, model: Model) -> Label:
    """Return the properties that a model predicts as a label; no DFT calculation is converged.

    Raises:
      InputError: if the model predicts no density or cannot treat the molecule, an element is beyond argon, or the
        estimated error of the prediction is above the limit (`ql.error_limits`).
    """
    model = require(model, "dm", "mo_coeff")
    _check(mol)
    prediction = model(mol)
    limits.check(prediction, mol.name or mol.formula)
    arrays = (np.asarray(array) for array in (prediction.dm, prediction.mo_energy, prediction.mo_coeff))
    method = cast(Method, model.method)  # a model of densities has one
    return _label(mol, method, float(prediction.energy), model.forces(mol), *arrays)


def label(
    mols: Iterable[Molecule], maker: Callable[[Molecule], Label], path: str | pathlib.Path,
    progress: Callable[[int], None] = lambda done: None, executor: concurrent.futures.Executor | None = None,
    *, theory: str = "", refused: Callable[[str], None] = lambda why: None,
) -> LabelledSet:
    """Label geometries, and append each label to a file at once; labels that the file holds are not computed again.

    Geometries that cannot be labelled are left out. Labels of different geometries in the file are kept.

    Args:
      mols: geometries.
      maker: function that labels a geometry, such as `functools.partial(from_pyscf, method=method)`.
      path: extended XYZ file, new or from an earlier call.
      progress: callback `progress(done)`, called after each geometry.
      executor: executor for several geometries at a time, such as that of `cluster.executor`; None for one by one.
      theory: level of theory in words, written with each label; a file with a different one is refused.
      refused: callback `refused(message)`, called for each geometry that cannot be labelled.

    Returns:
      The geometries that have labels, in the order of `mols`, with their labels.

    Raises:
      InputError: if the file holds something else or labels of a different theory, or no geometry can be labelled.
    """
    path = pathlib.Path(path)
    finished = {}
    if path.exists():
        earlier = read(path, theory)
        finished = {_key(mol): label for mol, label in zip(earlier.molecules, earlier.labels, strict=True)}
    keyed = [(_key(mol), mol) for mol in mols]
    missing = [mol for key, mol in keyed if key not in finished]
    tried = functools.partial(_tried, maker)
    done = len(keyed) - len(missing)
    progress(done)
    one_by_one = ((mol, tried(mol)) for mol in missing)
    reason = ""
    for mol, result in cluster.as_done(executor, tried, missing) if executor else one_by_one:
        done += 1
        if isinstance(result, Label):
            write(path, LabelledSet([mol], [result], theory), append=True)
            finished[_key(mol)] = result
        else:
            refused(reason := result)
        progress(done)
    labelled = [(mol, finished[key]) for key, mol in keyed if key in finished]
    if reason and not labelled:
        raise InputError(f"None of the {len(keyed)} geometries can be labelled: {reason}")
    return LabelledSet([mol for mol, _ in labelled], [label for _, label in labelled], theory)


def _tried(maker: Callable[[Molecule], Label], mol: Molecule) -> Label | str:
    """Return the label of a geometry, or the reason why there is none."""
    try:
        return maker(mol)
    except InputError as error:
        return str(error)


def to_xyz(data: LabelledSet) -> str:
    """Return extended XYZ text as ASE writes it: eV, ångström, e·Å; with `gap_ev`, `valence` and `theory`.

    A property that is not known is left out.

    Raises:
      InputError: if an energy is not known, or a property is known in part.
    """
    frames = []
    for index, (mol, known) in enumerate(zip(data.molecules, data.labels, strict=True)):
        atoms, values = mol.to_ase(), {}
        for name, value in known._asdict().items():
            array = np.asarray(np.asarray(value, float) * UNITS.get(name, 1.0))
            if name == "energy" or not np.isnan(array).all():
                _check_finite(array, name, f"label {index}")
                values[name] = array
        # ASE cannot read an empty text, nor one of several lines.
        words = {"name": mol.name, "theory": " ".join(data.theory.split())}
        atoms.info |= {key: text for key, text in words.items() if text}
        if "gap" in values:
            atoms.info["gap_ev"] = values.pop("gap")
        if "valence" in values:
            atoms.set_array("valence", values.pop("valence"))
        atoms.calc = SinglePointCalculator(atoms, **values)
        frames.append(atoms)
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    return text.getvalue()


def write(path: str | pathlib.Path, data: LabelledSet, *, append: bool = False) -> None:
    """Write `to_xyz` to a file, or append it.

    Raises:
      OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    with path.open("ab+" if append else "wb") as file:
        if file.tell():
            file.seek(-1, io.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")  # or the first line would continue that of the last atom
        file.write(to_xyz(data).encode())


def from_xyz(text: str, title: str) -> LabelledSet:
    """Return the labelled set of extended XYZ text; `title` names the text in messages.

    Raises:
      InputError: if `read` would refuse a file with this text.
    """
    return _labelled_set(title, xyz.frames(xyz.text_lines(text), title))


def read(path: str | pathlib.Path, theory: str = "") -> LabelledSet:
    """Read a labelled set from extended XYZ, of `write` or of a different program, with ASE's units (eV, ångström).

    The file may be packed with gzip. A property that a frame does not state is NaN in its label, and is not learned
    from.

    Args:
      path: the file.
      theory: level of theory that all labels must have; empty for any.

    Raises:
      InputError: if the file cannot be read, is empty, a frame has no energy or is periodic, a property has an
        unexpected shape or is not finite, or a label has a different level of theory.
    """
    title = files.title(path)
    return _labelled_set(title, xyz.frames(files.lines(path, "a file of labels"), title), theory)


def _labelled_set(title: str, frames: Iterable[ase.Atoms], theory: str = "") -> LabelledSet:
    mols, labels, theories = [], [], set()
    for index, atoms in enumerate(frames):
        theories.add(stated := str(atoms.info.get("theory", "")))
        if theory and stated != theory:
            raise InputError(
                f"Expected labels of {clipped(theory, MAX_SHOWN)} in {title}, got labels of "
                f"{clipped(stated, MAX_SHOWN) or 'an unnamed theory'}; use a different file."
            )
        values = (atoms.calc.results if atoms.calc else {}) | {
            key: value for key, value in (atoms.info | atoms.arrays).items() if key in ("gap_ev", "valence")
        }
        frame = f"frame {index} of {title}"
        if "energy" not in values:
            raise InputError(f"Expected an energy in {frame}, got none; use energy=… in its comment line, in eV.")
        if atoms.pbc.any():
            raise InputError(f"Expected a molecule in {frame}, got a periodic system; use pbc=\"F F F\".")
        natm = len(atoms)
        take = functools.partial(_number, values, frame)
        mols.append(Molecule.from_ase(atoms))
        labels.append(Label(
            float(take("energy", ())) / UNITS["energy"], take("forces", (natm, 3)) / UNITS["forces"],
            take("dipole", (3,)) / UNITS["dipole"], take("charges", (natm,)),
            float(take("gap_ev", ())) / UNITS["gap"], take("valence", (natm, 2 * VALENCE)),
        ))
    if not mols:
        raise InputError(f"Expected frames with energies in {title}, got none; use a file from qptlab label.")
    return LabelledSet(mols, labels, theories.pop() if len(theories) == 1 else "")


def _number(values: dict, frame: str, name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Return a property of a frame; NaN if the frame does not state it."""
    try:
        array = np.asarray(values.get(name, np.full(shape, np.nan)), float)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != shape:
        size = " × ".join(str(n) for n in shape) or "one"
        what = "something else" if array is None else f"an array of shape {array.shape}"
        raise InputError(
            f"Expected {size} number{'s' if shape else ''} as {name} of {frame}, got {what}; correct the file."
        )
    if name in values:
        _check_finite(array, name, frame)
    return array


def _check_finite(array: Float[np.ndarray, "..."], name: str, owner: str) -> None:
    if not np.isfinite(array).all():
        wrong = array[~np.isfinite(array)][0]
        raise InputError(f"Expected finite numbers as {name} of {owner}, got {wrong}; correct or remove it.")


def _key(mol: Molecule) -> tuple:
    # Rounded as in the file, so that a geometry has the same key after it is written and read.
    return mol.symbols, mol.charge, tuple(f"{x:.8f}" for x in mol.positions_angstrom.ravel())


def _check(mol: Molecule) -> None:
    if mol.spin or max(mol.atomic_numbers) > 18:
        raise InputError(
            f"Expected a closed shell of H to Ar for a label, got {mol.formula} with {mol.spin} unpaired electrons; "
            "use a different molecule."
        )


def _label(
    mol: Molecule, method: Method, energy: float, force: Float[np.ndarray, "natm 3"],
    dm: Float[np.ndarray, "nao nao"], levels: Float[np.ndarray, " nmo"], coeff: Float[np.ndarray, "nao nmo"],
) -> Label:
    nocc = libcint.occupied(mol, method)[0]
    return Label(
        energy, force, dipole_debye(mol, method, dm) / AU_DEBYE, charges(mol, method, dm, "lowdin"),
        float(levels[nocc] - levels[nocc - 1]) if nocc < len(levels) else np.nan, _valence(mol, method, coeff, nocc),
    )


def _valence(
    mol: Molecule, method: Method, coeff: Float[np.ndarray, "nao nmo"], nocc: int
) -> Float[np.ndarray, "natm nvalence"]:
    """Return eigenvalues of the occupied and valence-virtual densities in each atom's minimal basis.

    Valence-virtual orbitals are the combinations of virtual orbitals that overlap most with the minimal basis; their
    number is the size of that basis minus the number of occupied orbitals.
    """
    moles = libcint.moles(mol, method).at(mol.positions)
    cross = gto.intor_cross("int1e_ovlp", moles.minao, moles.basis) @ coeff  # [nminao, nmo]
    overlap = moles.minao.intor_symmetric("int1e_ovlp")
    values, vectors = np.linalg.eigh(overlap)
    root = vectors / np.sqrt(values) @ vectors.T
    virtual, nval = cross[:, nocc:], len(overlap) - nocc
    turn = np.linalg.svd(root @ virtual, full_matrices=False)[2][: max(nval, 0)]
    owner = np.array([label[0] for label in moles.minao.ao_labels(fmt=False)])
    eigenvalues = np.zeros((len(mol.symbols), 2 * VALENCE))
    for atom in range(len(mol.symbols)):
        members = owner == atom
        values, vectors = np.linalg.eigh(overlap[np.ix_(members, members)])
        inner = vectors / np.sqrt(values) @ vectors.T
        for start, part in ((0, cross[:, :nocc]), (VALENCE, virtual @ turn.T)):
            block = inner @ part[members]
            eigenvalues[atom, start : start + sum(members)] = 2 * np.linalg.eigvalsh(block @ block.T)[::-1]
    return eigenvalues
