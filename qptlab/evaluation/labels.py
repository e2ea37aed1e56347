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

from qptlab.dft import libcint
from qptlab.dft.properties import charges, dipole_debye
from qptlab.errors import InputError
from qptlab.evaluation import reference
from qptlab.models.contract import Model, require
from qptlab.models.orbital_gnn import VALENCE
from qptlab.runtime import cluster
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule
from qptlab.units import AU_DEBYE, BOHR_ANGSTROM, HARTREE_EV


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
        chosen = list(indices)
        return LabelledSet([self.molecules[i] for i in chosen], [self.labels[i] for i in chosen], self.theory)

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
        order = np.random.default_rng([7, seed]).permutation(len(self.molecules)).tolist()
        known_elements = {symbol for index in order[held_out:] for symbol in self.molecules[index].symbols}
        test = [index for index in order[:held_out] if known_elements.issuperset(self.molecules[index].symbols)]
        training = [index for index in order if index not in set(test)]
        if not test or not training:
            raise InputError(
                f"Expected enough labelled geometries to train on some and to hold out {held_out}, got "
                f"{len(self.molecules)}; use five or more, and hold out a fifth."
            )
        return self.take(training), self.take(test)


def from_pyscf(mol: Molecule, method: Method) -> Label:
    """A converged calculation of PySCF's, and its gradient, that of the grid's weights included.

    Raises:
      InputError: for an open shell, an element beyond argon, or where the SCF does not converge.
    """
    _check(mol)
    mf = reference.calculation(mol, method, fitted=libcint.moles(mol, method).aux is not None)
    mf.kernel()
    if not mf.converged:
        raise InputError(
            f"PySCF does not converge for a geometry of {mol.formula}; one nearer to the minimum would do."
        )
    gradient = mf.nuc_grad_method()
    # The grid moves with the atoms: without it forces are not the energy's derivative, and do not add up to nothing.
    gradient.grid_response = True
    slope = np.asarray(gradient.kernel())
    return _label(mol, method, float(mf.e_tot), -slope, mf.make_rdm1(), mf.mo_energy, mf.mo_coeff)


def from_model(mol: Molecule, model: Model) -> Label:
    """Return the properties that a model predicts as a label; no DFT calculation is converged.

    Raises:
      InputError: if the model predicts no density, for an element beyond argon, or as calling the model.
    """
    model = require(model, "dm", "mo_coeff")
    _check(mol)
    prediction = model(mol)
    arrays = (np.asarray(array) for array in (prediction.dm, prediction.mo_energy, prediction.mo_coeff))
    return _label(mol, model.method, float(prediction.energy), model.forces(mol), *arrays)


def label(
    mols: Iterable[Molecule], maker: Callable[[Molecule], Label], path: str | pathlib.Path,
    progress: Callable[[int], None] = lambda done: None, executor: concurrent.futures.Executor | None = None,
    *, theory: str = "", refused: Callable[[str], None] = lambda why: None,
) -> LabelledSet:
    """Label molecules, each appended to a file at once; those that are there are not made again.

    Geometries that cannot be labelled are left out; labels of others that the file holds stay in it.

    Args:
      mols: geometries.
      maker: makes a label of one, such as `functools.partial(from_pyscf, method=method)`.
      path: an extended XYZ file, begun or gone on with.
      progress: told how many are done.
      executor: makes several at once, such as `cluster.executor` gives; by default one after another.
      theory: what the labels are, in words, kept with each; a file of others is not gone on with. Empty for no word.
      refused: told why a geometry could not be labelled.

    Returns:
      The molecules that have labels, in their order, with their labels.

    Raises:
      InputError: if the file is something else or of another theory, or no geometry could be labelled.
    """
    path = pathlib.Path(path)
    known = {}
    if path.exists():
        frames = _frames(path, path)
        _check_theory(path, frames, theory)
        known = {_key(mol): found for mol, found in zip(*_taken(path, frames), strict=True)}
    keyed = [(_key(mol), mol) for mol in mols]
    missing = [mol for key, mol in keyed if key not in known]
    tried = functools.partial(_tried, maker)
    done = len(keyed) - len(missing)
    progress(done)
    one_by_one = ((mol, tried(mol)) for mol in missing)
    why = ""
    for mol, found in cluster.as_done(executor, tried, missing) if executor else one_by_one:
        done += 1
        if isinstance(found, Label):
            write(path, LabelledSet([mol], [found], theory), append=True)
            known[_key(mol)] = found
        else:
            refused(why := found)
        progress(done)
    labelled = [(mol, known[key]) for key, mol in keyed if key in known]
    if why and not labelled:
        raise InputError(f"none of the {len(keyed)} geometries could be labelled: {why}")
    return LabelledSet([mol for mol, _ in labelled], [found for _, found in labelled], theory)


def _tried(maker, mol) -> Label | str:
    try:
        return maker(mol)
    except InputError as error:
        return str(error)


def _check_theory(path, frames, theory):
    others = sorted({str(atoms.info.get("theory", "")) for atoms in frames} - {theory})
    if theory and others:
        said = " and ".join(f"labels of {other}" if other else "labels that do not say of what" for other in others)
        raise InputError(f"{path} holds {said}, and {theory} was asked for; another file would do.")


def to_xyz(data: LabelledSet) -> str:
    """Return extended XYZ text as ASE writes it: eV, ångström, e·Å; with `gap_ev`, `valence` and `theory`."""
    frames = []
    for mol, known in zip(data.molecules, data.labels, strict=True):
        atoms = mol.to_ase()
        # ASE cannot read an empty text, nor one of several lines.
        words = {"name": " ".join(mol.name.split()), "theory": " ".join(data.theory.split())}
        atoms.info |= {"gap_ev": known.gap * HARTREE_EV, **{key: text for key, text in words.items() if text}}
        atoms.set_array("valence", known.valence)
        atoms.calc = SinglePointCalculator(
            atoms, energy=known.energy * HARTREE_EV, forces=known.forces * HARTREE_EV / BOHR_ANGSTROM,
            dipole=known.dipole * BOHR_ANGSTROM, charges=known.charges,
        )
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
      InputError: as `read`.
    """
    return _labelled_set(title, _frames(io.StringIO(text), title))


def _labelled_set(path, frames) -> LabelledSet:
    theories = {str(atoms.info.get("theory", "")) for atoms in frames}
    return LabelledSet(*_taken(path, frames), theories.pop() if len(theories) == 1 else "")


def read(path: str | pathlib.Path) -> LabelledSet:
    """Read what `write` has written, or another program's extended XYZ with energies in eV, and the like.

    What a frame does not say is not learned from: it is not a number in its label.

    Raises:
      InputError: if the file cannot be read, is empty, a frame has no energy or is periodic, or a property has
        another shape than it should.
    """
    return _labelled_set(path, _frames(path, path))


def _taken(path, frames) -> tuple[list[Molecule], list[Label]]:
    mols, labels = [], []
    for index, atoms in enumerate(frames):
        said = (atoms.calc.results if atoms.calc else {}) | {
            key: value for key, value in (atoms.info | atoms.arrays).items() if key in ("gap_ev", "valence")
        }
        where = f"frame {index} of {path}"
        if "energy" not in said:
            raise InputError(f"{where} has no energy; energy=… in its comment, in eV, would do.")
        if atoms.pbc.any():
            raise InputError(f"{where} is periodic; a molecule, pbc=\"F F F\", would do.")
        natm = len(atoms)
        take = functools.partial(_number, said, where)
        mols.append(Molecule.from_ase(atoms))
        labels.append(Label(
            float(take("energy", ())) / HARTREE_EV, take("forces", (natm, 3)) / HARTREE_EV * BOHR_ANGSTROM,
            take("dipole", (3,)) / BOHR_ANGSTROM, take("charges", (natm,)), float(take("gap_ev", ())) / HARTREE_EV,
            take("valence", (natm, 2 * VALENCE)),
        ))
    if not mols:
        raise InputError(f"{path} holds no frames; a file of frames with energies would do.")
    return mols, labels


def _frames(source, title) -> list[ase.Atoms]:
    try:
        return cast(list[ase.Atoms], ase.io.read(source, index=":", format="extxyz"))
    except Exception as error:  # noqa: BLE001  ASE's parser raises whatever comes
        hint = "a file of frames with energies would do."
        raise InputError(f"{title} cannot be read as extended XYZ ({error}); {hint}") from None


def _number(said, where, name, shape):
    """A property of a frame; what is not said is not a number."""
    try:
        found = np.asarray(said.get(name, np.full(shape, np.nan)), float)
    except (TypeError, ValueError):
        found = None
    if found is None or found.shape != shape:
        size = " × ".join(str(n) for n in shape) or "one"
        raise InputError(f"{name} of {where} cannot be used; {size} number{'s' if shape else ''} would do.")
    return found


def _key(mol):
    # As the file has it: rounded otherwise, what was written and what is read again might differ.
    return mol.symbols, mol.charge, tuple(f"{x:.8f}" for x in mol.positions_angstrom.ravel())


def _check(mol):
    if mol.spin or max(mol.atomic_numbers) > 18:
        raise InputError(
            f"{mol.formula} with {mol.spin} unpaired electrons has no label; a closed shell of H to Ar would do."
        )


def _label(mol, method, energy, force, dm, levels, coeff):
    nocc = mol.occupied[0]
    return Label(
        energy, force, dipole_debye(mol, method, dm) / AU_DEBYE, charges(mol, method, dm, "lowdin"),
        float(levels[nocc] - levels[nocc - 1]) if nocc < len(levels) else np.nan, _valence(mol, method, coeff, nocc),
    )


def _valence(mol, method, coeff, nocc):
    """Eigenvalues of the density's occupied and valence-virtual parts on each atom's minimal basis.

    Valence-virtual orbitals are those combinations of virtual ones that overlap most with the minimal basis, as many
    as fill it up.
    """
    moles = libcint.moles(mol, method).at(mol.positions)
    cross = gto.intor_cross("int1e_ovlp", moles.minao, moles.basis) @ coeff  # [nminao, nmo]
    overlap = moles.minao.intor_symmetric("int1e_ovlp")
    values, vectors = np.linalg.eigh(overlap)
    root = vectors / np.sqrt(values) @ vectors.T
    virtual, nval = cross[:, nocc:], len(overlap) - nocc
    turn = np.linalg.svd(root @ virtual, full_matrices=False)[2][: max(nval, 0)]
    owner = np.array([label[0] for label in moles.minao.ao_labels(fmt=False)])
    found = np.zeros((len(mol.symbols), 2 * VALENCE))
    for atom in range(len(mol.symbols)):
        mine = owner == atom
        values, vectors = np.linalg.eigh(overlap[np.ix_(mine, mine)])
        inner = vectors / np.sqrt(values) @ vectors.T
        for start, part in ((0, cross[:, :nocc]), (VALENCE, virtual @ turn.T)):
            own = inner @ part[mine]
            found[atom, start : start + sum(mine)] = 2 * np.linalg.eigvalsh(own @ own.T)[::-1]
    return found
