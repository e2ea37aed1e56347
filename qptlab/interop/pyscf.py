"""A model's density where PySCF's SCF begins: the answer is PySCF's as ever, the way to it shorter."""

import numpy as np
from jaxtyping import Float
from pyscf import gto, lib
from pyscf.scf import hf, uhf

from qptlab import libcint
from qptlab.errors import InputError
from qptlab.method import Method
from qptlab.models.predictor import Predictor
from qptlab.molecule import Molecule

SAME_BASIS = 1e-6
"""Two bases are one if no overlap differs by more."""


def guess(mol: Molecule | gto.Mole, model: Predictor) -> Float[np.ndarray, "nao nao"]:
    """The predicted density matrix of a molecule, ours or PySCF's: `mf.kernel(dm0=ql.guess(mol, model))`.

    Whatever its error, the SCF that begins with it ends where it would have ended; the functional may be another
    than the model's.

    Args:
      mol: the molecule, in any pose and order of atoms.
      model: what predicts, from `ql.load`.

    Returns:
      Electrons per AO pair, over the AOs of `mol`.

    Raises:
      InputError: for a molecule of PySCF's in another basis than the model's, or as calling the model.
    """
    given = _taken_over(mol, model.method) if isinstance(mol, gto.Mole) else mol
    return np.asarray(model(given).dm)


def with_guess(mf: hf.SCF, model: Predictor) -> hf.SCF:
    """The same mean-field object, which from now on begins every SCF with the model's density.

    For scans, dynamics and geometry optimisations, where the geometry changes between one SCF and the next. A density
    matrix that is handed to `kernel` still comes first.

    Raises:
      InputError: for a mean field that is neither restricted nor unrestricted.

    >>> from pyscf import dft, gto
    >>> mf = dft.RKS(gto.M(atom="O 0 0 0; H 0 .76 .59; H 0 -.76 .59", basis="sto-3g"), xc="pbe")
    >>> mf = ql.with_guess(mf, ql.load("runs/water"))  # doctest: +SKIP
    """
    if not isinstance(mf, hf.RHF | uhf.UHF):
        raise InputError(
            f"a model gives one density for both spins, and {type(mf).__name__} was given; RKS, UKS, RHF or UHF "
            "would do."
        )
    return lib.set_class(_FromModel(mf, model), (_FromModel, type(mf)))


class _FromModel:
    """Mixed into the class of a mean field, as PySCF extends its own."""

    __name_mixin__ = "FromModel"
    _keys = {"guess_model"}  # noqa: RUF012  PySCF's list of attributes that are no misspelling

    def __init__(self, mf, model):
        self.__dict__.update(mf.__dict__)
        self.guess_model = model

    def get_init_guess(self, mol=None, key=None, **_):
        """The model's density, whatever the key."""
        del key
        dm = guess(self.mol if mol is None else mol, self.guess_model)
        return np.stack([dm / 2, dm / 2]) if isinstance(self, uhf.UHF) else dm


def _taken_over(mole: gto.Mole, method: Method) -> Molecule:
    """PySCF's molecule as ours."""
    if hasattr(mole, "lattice_vectors"):
        raise InputError("a periodic cell was given; a molecule would do.")
    symbols = tuple(mole.atom_pure_symbol(i) for i in range(mole.natm))
    mol = Molecule(symbols, mole.atom_coords(), int(mole.charge), spin=int(mole.spin))
    own = libcint.pyscf_molecule(mol, method)
    theirs, ours = (each.intor_symmetric("int1e_ovlp") for each in (mole, own))
    if theirs.shape != ours.shape or np.abs(theirs - ours).max() > SAME_BASIS:
        raise InputError(
            f"{mol.formula} was given in another basis ({mole.basis!r}, {len(theirs)} orbitals) than that of the "
            f"model; {method.basis} with spherical functions, {len(ours)} orbitals, would do."
        )
    return mol
