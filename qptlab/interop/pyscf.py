"""PySCF's SCF with fewer cycles and the same result: predicted densities as guesses, and the electrons' response."""

import dataclasses
from typing import cast

import ase.data
import numpy as np
from jaxtyping import Float
from pyscf import gto, lib
from pyscf.scf import hf, rohf, uhf

from qptlab.dft import libcint, response
from qptlab.errors import InputError
from qptlab.models.contract import Model, require
from qptlab.models.predictor import CorrectionPredictor
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

SAME_BASIS = 1e-6
"""Largest difference of overlap integrals between two bases that count as the same."""


def guess(mol: Molecule | gto.mole.MoleBase, model: Model) -> Float[np.ndarray, "nao nao"]:
    """Return the predicted density matrix of a molecule, as in `mf.kernel(dm0=ql.guess(mol, model))`.

    The SCF converges to the same state as from a different guess, whatever the error of the prediction. The
    functional of the SCF may differ from that of the model.

    Args:
      mol: molecule of qptlab or of PySCF, in any pose and order of atoms.
      model: a model that predicts densities, from `ql.load`.

    Returns:
      Density matrix, electrons per pair of atomic orbitals of `mol`.

    Raises:
      InputError: if the model predicts no density or cannot treat the molecule, or if a molecule of PySCF is in a
        basis that is not the model's.
    """
    model = require(model, "dm")
    molecule = _from_pyscf(mol, cast(Method, model.method)) if isinstance(mol, gto.mole.MoleBase) else mol
    # A model knows closed shells only; as a guess, their density is good enough for unpaired electrons.
    closed = dataclasses.replace(molecule, spin=molecule.nelectron % 2)
    return model.density(closed) if isinstance(model, CorrectionPredictor) else np.asarray(model(closed).dm)


def with_guess(mf: hf.SCF, model: Model) -> hf.SCF:
    """Return a mean-field object that starts every SCF from the model's density.

    It does so also after `reset` to a different geometry, where PySCF would start from the orbitals of the last one.
    A density matrix that is passed to `kernel` has precedence. PySCF's scanners pass the density of the last
    geometry, so they and the optimisers that use them take the model's density for the first geometry only. If the
    mean field has a model already, the new model replaces it.

    Args:
      mf: restricted or unrestricted mean-field object of PySCF.
      model: a model that predicts densities, from `ql.load`.

    Raises:
      InputError: if the model predicts no density, or the mean field is neither restricted nor unrestricted.

    >>> import qptlab as ql
    >>> from pyscf import dft, gto
    >>> mf = dft.RKS(gto.M(atom="O 0 0 0; H 0 .76 .59; H 0 -.76 .59", basis="sto-3g"), xc="pbe")
    >>> mf = ql.with_guess(mf, ql.load("runs/water"))  # doctest: +SKIP
    """
    model = require(model, "dm")
    response.check_kind(mf)
    if isinstance(mf, _FromModel):
        return response.independent(mf).set(guess_model=model)
    return lib.set_class(_FromModel(mf, model), (_FromModel, type(mf)))


class _FromModel(hf.SCF):
    """Mixin for the class of a mean field, in the way that PySCF extends its own classes."""

    __name_mixin__ = "FromModel"
    _keys = {"guess_model"}  # noqa: RUF012  PySCF's list of attributes that are not misspelt

    def __init__(self, mf, model):
        self.__dict__.update(response.independent(mf).__dict__)
        self.guess_model = model

    def scf(self, dm0=None, **options):
        """Run the SCF; without a density, start from the model's and not from that of an earlier SCF."""
        return super().scf(self.get_init_guess() if dm0 is None else dm0, **options)

    def get_init_guess(self, mol=None, key=None, **_):
        """Return the model's density, whatever the key."""
        del key
        dm = guess(self.mol if mol is None else mol, self.guess_model)
        return np.stack([dm / 2, dm / 2]) if isinstance(self, uhf.UHF | rohf.ROHF) else dm


def accelerate(mf: hf.SCF) -> hf.SCF:
    """Return a mean-field object whose SCF needs fewer Fock matrices, with the response of the electrons.

    In each cycle, the Fock matrix that DIIS combines gets the potential of the electrons that move when it is
    diagonalised (see `dft.response`). The criteria of convergence are PySCF's, and so is the result; if there are
    several self-consistent states, it may be a different one of them. Level shifts, damping and other options stay in
    force. Where the response needs more than half of `mf.max_memory`, PySCF's log says so, and DIIS goes on alone.

    Args:
      mf: restricted or unrestricted mean-field object of PySCF.

    Raises:
      InputError: if the mean field is neither restricted nor unrestricted, has another solver than PySCF's default
        DIIS, does not fill its lowest orbitals, or has an element beyond Rn. The SCF raises it if this has changed.

    >>> import qptlab as ql
    >>> from pyscf import dft, gto
    >>> mf = dft.RKS(gto.M(atom="O 0 0 0; H 0 .76 .59; H 0 -.76 .59", basis="sto-3g"), xc="pbe")
    >>> bool(ql.accelerate(mf).run(verbose=0).converged)
    True
    """
    return response.accelerated(mf)


def _from_pyscf(mole: gto.mole.MoleBase, method: Method) -> Molecule:
    """Return a molecule of PySCF as a `Molecule`, if it is in the basis of a method."""
    if hasattr(mole, "lattice_vectors"):
        raise InputError("Expected a molecule, got a periodic cell; use pyscf.gto.Mole.")
    symbols = tuple(mole.atom_pure_symbol(i) for i in range(mole.natm))
    unknown = sorted({symbol for symbol in symbols if symbol not in ase.data.atomic_numbers})
    if unknown:
        raise InputError(f"Expected a molecule without ghost atoms, got atoms {', '.join(unknown)}; remove them.")
    mol = Molecule(symbols, mole.atom_coords(), int(mole.charge), spin=int(mole.spin or 0))
    built = libcint.pyscf_molecule(mol, method)
    if (mole.atom_charges() != built.atom_charges()).any():
        raise InputError(
            f"Expected {mol.formula} with the core potentials of the model's basis, got nuclei of charges "
            f"{mole.atom_charges().tolist()} instead of {built.atom_charges().tolist()}; use gto.M(..., "
            f"basis={method.basis!r}, ecp={method.basis!r})."
        )
    expected, overlap = built.intor_symmetric("int1e_ovlp"), mole.intor_symmetric("int1e_ovlp")
    if overlap.shape != expected.shape or np.abs(overlap - expected).max() > SAME_BASIS:
        raise InputError(
            f"Expected {mol.formula} in the basis of the model, {method.basis} with {len(expected)} spherical "
            f"functions, got {str(mole.basis)[:60]!r} with {len(overlap)} functions; use gto.M(..., "
            f"basis={method.basis!r})."
        )
    return mol
