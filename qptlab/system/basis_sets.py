"""PySCF's library of basis sets, by name, and the settings with which PySCF is imported.

PySCF takes text that is not a name for a file's path or for a basis set, and its parsers pass numbers that they
cannot read to `eval`. Run folders, model files and web pages come from strangers. Only names of the library go
further. The package imports this module before every module that imports PySCF.
"""

import contextlib
import os
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator

from qptlab.errors import InputError, shown

LOCAL_SETTINGS = ".pyscf_conf.py"
"""PySCF executes a file of this name, from the current folder or else from the home folder."""


@contextlib.contextmanager
def _without_local_settings() -> Iterator[None]:
    """Keep PySCF from executing a settings file of the current folder, which may be a stranger's run folder."""
    named, home = os.environ.get("PYSCF_CONFIG_FILE"), os.environ.get("HOME")
    local = pathlib.Path(LOCAL_SETTINGS)
    own = pathlib.Path(home) / LOCAL_SETTINGS if home else None
    if (
        "pyscf" in sys.modules or not local.is_file() or (named and os.path.isfile(named))
        or (own is not None and own.is_file() and own.samefile(local))
    ):
        yield
        return
    warnings.warn(
        f"Settings in {local.absolute()} were not read, because such a file may run any code; set PYSCF_CONFIG_FILE "
        "to its path to use it.", stacklevel=3,
    )
    with tempfile.NamedTemporaryFile(suffix=".py") as empty:  # PySCF takes the first file that exists
        os.environ["PYSCF_CONFIG_FILE"] = str(own) if own is not None and own.is_file() else empty.name
        try:
            yield
        finally:
            os.environ.pop("PYSCF_CONFIG_FILE")
            if named is not None:
                os.environ["PYSCF_CONFIG_FILE"] = named


with _without_local_settings():
    from pyscf import __config__
    from pyscf.df import addons
    from pyscf.gto import basis as library
    from pyscf.gto import mole


SWITCH = "DISABLE_EVAL"
"""PySCF's setting that keeps its parsers from evaluating text."""


def disable_eval() -> None:
    """Set PySCF's `SWITCH`: in its settings, for modules to come, and in those that have copied it already."""
    setattr(__config__, SWITCH, True)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "pyscf" and hasattr(module, SWITCH):
            setattr(module, SWITCH, True)


disable_eval()

EXAMPLES = {"basis": "sto-3g, 6-31g*, def2-svp or cc-pvdz", "auxiliary basis": "def2-universal-jkfit or etb-1.8"}
"""Names to suggest, of each kind of basis."""

MAX_CHARACTERS = 60
"""Longest name that is looked up."""

_TRUNCATION = re.compile(r"(?=.)(\d{1,2}s)?(\d{1,2}p)?(\d{1,2}d)?(\d{1,2}f)?")
"""Contraction after an `@`, such as 4s3p2d."""

_POPLE = re.compile(r"(?P<plain>\d{3,4}\+{0,2}g)\(([1-9]?[a-z]){1,3}(,([1-9]?[a-z]){1,3})?\)")
"""Pople's names with polarization functions in brackets, such as 631g(d,p); the letters become names of files."""


_EVEN_TEMPERED = re.compile(r"etb-([1-3](?:\.\d{1,3})?)")
"""Even-tempered auxiliary basis, with the ratio of its exponents."""

MIN_RATIO = 1.3
"""Smallest ratio of exponents; with smaller ones the auxiliary functions are linearly dependent."""


def even_tempered_ratio(name: object) -> float | None:
    """Return the ratio of the exponents of an even-tempered auxiliary basis; None for the name of another basis.

    >>> even_tempered_ratio("etb-1.8"), even_tempered_ratio("def2-universal-jkfit")
    (1.8, None)
    """
    match = _EVEN_TEMPERED.fullmatch(name) if isinstance(name, str) else None
    return float(match[1]) if match and float(match[1]) >= MIN_RATIO else None


def is_known(name: object) -> bool:
    """Return whether PySCF's library has a basis of this name, which may end with a contraction (cc-pvtz@4s3p2d).

    Bases for pseudopotentials (GTH) do not count: qptlab has none.

    >>> is_known("def2-SVP"), is_known("6-31G(d,p)"), is_known("cc-pVTZ@4s3p2d"), is_known("./basis.nw")
    (True, True, True, False)
    """
    if not isinstance(name, str) or len(name) > MAX_CHARACTERS or not (name.isascii() and name.isprintable()):
        return False
    plain, at, contraction = name.partition("@")
    if at and not _TRUNCATION.fullmatch(contraction.lower()):
        return False
    key = library._format_basis_name(plain)
    pople = _POPLE.fullmatch(key)
    if pople:
        key = pople["plain"]
        return key in library.ALIAS and library._is_pople_basis(key)
    return key in library.ALIAS or key in library.USER_BASIS_ALIAS


def check(name: object, kind: str = "basis") -> None:
    """Refuse everything but the name of a basis in PySCF's library.

    Args:
      name: the name to check.
      kind: kind of basis for the message, one of `EXAMPLES`.

    Raises:
      InputError: if the library has no such name.
    """
    if not is_known(name):
        raise InputError(
            f"Expected the name of one of PySCF's basis sets as {kind}, got {shown(name)}; use {EXAMPLES[kind]}."
        )


def without_contraction(name: str) -> str:
    """Return the name of the whole basis set.

    >>> without_contraction("cc-pvtz@4s3p2d")
    'cc-pvtz'
    """
    return name.partition("@")[0]


def check_files(names: Iterable[str | None]) -> None:
    """Refuse to look up names while the current folder has a file of such a name.

    PySCF would read the file instead of its library. The names of PySCF's default auxiliary bases are checked, too.

    Args:
      names: names of basis sets; None is passed over.

    Raises:
      InputError: if there is such a file.
    """
    wanted = {without_contraction(name) for name in names if name is not None}
    defaults = {"ano", "weigend"}.union(*addons.DEFAULT_AUXBASIS.values())
    for name in wanted:
        record = mole.BSE_META.get(library._format_basis_name(name))
        defaults.update(value for value in (record[2].values() if record else ()) if isinstance(value, str))
    for name in sorted(wanted | defaults):
        if os.path.isfile(name):
            raise InputError(
                f"Expected no file with the name of a basis set in the current folder, got {shown(name)}, which "
                "PySCF would read instead of its library; use a different folder, or rename the file."
            )
