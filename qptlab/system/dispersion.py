"""Dispersion corrections D3(BJ) and D4, by simple-dftd3 and dftd4 of the package pyscf-dispersion.

The energy is a function of the nuclear positions, and for D4 of the charge of the molecule. It does not depend on the
density, so the Fock matrix is the same with and without it. Sources:

    D3                      Grimme, Antony, Ehrlich & Krieg 2010 (doi:10.1063/1.3382344)
    its damping (BJ)        Grimme, Ehrlich & Goerigk 2011 (doi:10.1002/jcc.21759)
    D4                      Caldeweyher et al. 2019 (doi:10.1063/1.5090222)

As in PySCF 2.14 with ``mf.disp = "d3bj"`` or ``"d4"``, D3(BJ) is a sum over pairs of atoms, and D4 also has the
three-body term of Axilrod, Teller and Muto. All elements that a molecule may have (H to Rn) have parameters.
"""

import functools
import re
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError, shown
from qptlab.system.functional import FUNCTIONALS, WITHOUT_VV10, Functional, is_known

CORRECTIONS = {"d3bj": "D3(BJ)", "d4": "D4"}
"""Dispersion corrections, and their names in the label of a method."""

_JOINT_NAME = re.compile(r"(.+)-(d[34].*)")
"""Functional and dispersion correction in one name, such as b3lyp-d3bj."""


class Correction(NamedTuple):
    """Dispersion correction of a functional; `correction` returns it.

    Attributes:
      kind: one of `CORRECTIONS`.
      parameters: name under which the kind's library has the parameters of the functional.
    """

    kind: str
    parameters: str

    @property
    def pyscf_name(self) -> str:
        """Value of `mf.disp` with which PySCF has the same correction, whatever its name of the functional."""
        return f"{self.kind}:{self.parameters}"

    def energy(self, mole: Any) -> Float[np.ndarray, ""]:
        """Return the dispersion energy, hartree.

        Args:
          mole: PySCF's record of the molecule at a geometry.
        """
        return self._model(mole).get_dispersion()["energy"]

    def gradient(self, mole: Any) -> Float[np.ndarray, "natm 3"]:
        """Return the derivative of the dispersion energy with respect to the nuclear positions, hartree per bohr.

        Args:
          mole: PySCF's record of the molecule at a geometry.
        """
        return self._model(mole).get_dispersion(grad=True)["gradient"]

    def _model(self, mole: Any) -> Any:
        try:
            from pyscf.dispersion import dftd3, dftd4
        except ImportError:
            raise InputError(
                f"Expected the package pyscf-dispersion for dispersion {self.kind!r}, got none; install it (it has "
                "wheels for Linux), or use no dispersion correction."
            ) from None
        if self.kind == "d4":
            return dftd4.DFTD4Dispersion(mole, xc=self.parameters)
        return dftd3.DFTD3Dispersion(mole, xc=self.parameters, version=self.kind)


def correction(functional: Functional, kind: str) -> Correction:
    """Return the dispersion correction of a functional.

    Its parameters are those of `Functional.dispersion_name` or, without one, those of PySCF's name.

    Args:
      functional: record of the functional.
      kind: one of `CORRECTIONS`.

    Raises:
      InputError: if the correction has no parameters for the functional, or pyscf-dispersion is not installed.

    >>> correction(FUNCTIONALS["b3lyp5"], "d4").pyscf_name
    'd4:b3lyp'
    """
    found = _with_parameters(functional, kind)
    if found is None:
        others = [name for name, record in FUNCTIONALS.items() if _with_parameters(record, kind)]
        raise InputError(
            f"Expected a functional that has parameters of {CORRECTIONS[kind]}, got {functional.name!r}; use one of "
            f"{', '.join(others)}, or no dispersion correction."
        )
    return found


def _with_parameters(functional: Functional, kind: str) -> Correction | None:
    name = functional.dispersion_name or functional.pyscf_name
    found = None if name is None else Correction(kind, name)
    return found if found and _has_parameters(found) else None


@functools.cache
def _has_parameters(correction: Correction) -> bool:
    """Return True if the library has the parameters; it says so only when it is asked for them."""
    from pyscf import gto

    helium = gto.M(atom="He 0 0 0", basis="sto-3g", verbose=0)
    try:
        correction.energy(helium)
    except RuntimeError:
        return False
    return True


def split(xc: str) -> tuple[str, str | None]:
    """Return the names of functional and dispersion correction of a joint name; any other name stays as it is.

    Args:
      xc: name of a functional, such as "pbe", or a joint name in any case as PySCF has it, such as "pbe-d3bj".

    Raises:
      InputError: if the name is that of a functional with a different D3 or D4.

    >>> split("B3LYP-D3(BJ)"), split("pbe")
    (('b3lyp', 'd3bj'), ('pbe', None))
    >>> split("wb97m-d4")
    ('wb97m-v-nonlc', 'd4')
    """
    match = _JOINT_NAME.fullmatch("".join(xc.split()).lower()) if isinstance(xc, str) else None
    name = WITHOUT_VV10.get(f"{match[1]}-v", match[1]) if match else ""  # the correction takes the place of VV10
    if match is None or is_known(xc) or not is_known(name):
        return xc, None
    kind = match[2].replace("(bj)", "bj")
    if kind not in CORRECTIONS:
        raise InputError(
            f"Expected a dispersion correction among {', '.join(CORRECTIONS)}, got {shown(match[2])} of functional "
            f"{shown(xc)}; use xc={shown(name)} with dispersion='d3bj', for example."
        )
    return name, kind
