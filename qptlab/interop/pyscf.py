"""A model's density where PySCF's SCF begins: the answer is PySCF's as ever, the way to it shorter."""

import dataclasses
from typing import cast

import ase.data
import numpy as np
from jaxtyping import Float
from pyscf import gto, lib
from pyscf.scf import hf, rohf, uhf

from qptlab.dft import libcint
from qptlab.errors import InputError
from qptlab.models.contract import Model, require
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

SAME_BASIS = 1e-6
"""Two bases are one if no overlap differs by more."""


def guess(mol: Molecule | gto.mole.MoleBase, model: Model) -> Float[np.ndarray, "nao nao"]:
    """The predicted density matrix of a molecule, ours or PySCF's: `mf.kernel(dm0=ql.guess(mol, model))`.

    Whatever its error, the SCF that begins with it ends where it would have ended; the functional may be another
    than the model's.

    Args:
      mol: the molecule, in any pose and order of atoms.
      model: what predicts, from `ql.load`.

    Returns:
      Electrons per AO pair, over the AOs of `mol`.

    Raises:
      InputError: for an OrbitalGNN, a molecule of PySCF's in another basis than the model's, or as calling the model.
    """
    model = require(model, "dm")
    given = _taken_over(mol, cast(Method, model.method)) if isinstance(mol, gto.mole.MoleBase) else mol
    # A model knows closed shells; to begin with, their density will do for unpaired electrons.
    return np.asarray(model(dataclasses.replace(given, spin=given.nelectron % 2)).dm)


def with_guess(mf: hf.SCF, model: Model) -> hf.SCF:
    """The same mean-field object, which from now on begins every SCF with the model's density.

    Also after `reset` to another geometry, where PySCF would go on from the orbitals of the last. A density matrix
    that is handed to `kernel` still comes first; so PySCF's scanners, which hand over that of the last geometry, and
    the optimisers on them take the model's for the first geometry only.

    Given a mean field that has a model already, the new one takes its place.

    Raises:
      InputError: for an OrbitalGNN, or a mean field that is neither restricted nor unrestricted.

    >>> import qptlab as ql
    >>> from pyscf import dft, gto
    >>> mf = dft.RKS(gto.M(atom="O 0 0 0; H 0 .76 .59; H 0 -.76 .59", basis="sto-3g"), xc="pbe")
    >>> mf = ql.with_guess(mf, ql.load("runs/water"))  # doctest: +SKIP
    """
    model = require(model, "dm")
    if not isinstance(mf, hf.RHF | uhf.UHF):
        raise InputError(
            f"a model gives one density for both spins, and {type(mf).__name__} was given; RKS, UKS, RHF or UHF "
            "would do."
        )
    if isinstance(mf, _FromModel):
        mf = mf.copy()
        mf.guess_model = model
        return mf
    return lib.set_class(_FromModel(mf, model), (_FromModel, type(mf)))


class _FromModel(hf.SCF):
    """Mixed into the class of a mean field, as PySCF extends its own."""

    __name_mixin__ = "FromModel"
    _keys = {"guess_model"}  # noqa: RUF012  PySCF's list of attributes that are no misspelling

    def __init__(self, mf, model):
        self.__dict__.update(mf.__dict__)
        self.guess_model = model

    def scf(self, dm0=None, **others):
        """PySCF's, but that no density handed over means the model's, and not that of an earlier SCF."""
        return super().scf(self.get_init_guess() if dm0 is None else dm0, **others)

    def get_init_guess(self, mol=None, key=None, **_):
        """The model's density, whatever the key."""
        del key
        dm = guess(self.mol if mol is None else mol, self.guess_model)
        return np.stack([dm / 2, dm / 2]) if isinstance(self, uhf.UHF | rohf.ROHF) else dm


def _taken_over(mole: gto.mole.MoleBase, method: Method) -> Molecule:
    """PySCF's molecule as ours."""
    if hasattr(mole, "lattice_vectors"):
        raise InputError("a periodic cell was given; a molecule would do.")
    symbols = tuple(mole.atom_pure_symbol(i) for i in range(mole.natm))
    strange = sorted({symbol for symbol in symbols if symbol not in ase.data.atomic_numbers})
    if strange:
        raise InputError(f"atoms {', '.join(strange)} were given; a molecule without ghost atoms would do.")
    mol = Molecule(symbols, mole.atom_coords(), int(mole.charge), spin=int(mole.spin or 0))
    own = libcint.pyscf_molecule(mol, method)
    theirs, ours = (each.intor_symmetric("int1e_ovlp") for each in (mole, own))
    if theirs.shape != ours.shape or np.abs(theirs - ours).max() > SAME_BASIS:
        raise InputError(
            f"{mol.formula} was given in another basis ({mole.basis!r}, {len(theirs)} orbitals) than that of the "
            f"model; {method.basis} with spherical functions, {len(ours)} orbitals, would do."
        )
    return mol
