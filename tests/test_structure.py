"""The package's structure: import contracts that hold, and that refuse what they are for; a light import."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with its contracts, to plant modules in."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "qptlab", folder / "qptlab", ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder):
    """Exit status and output of lint-imports, which finds the package in its working directory."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_contracts_hold(package):
    status, report = lint(package)
    assert status == 0, report
    assert " 0 broken" in report


PLANTED = {
    "PySCF outside its doors": ("dft/planted.py", "import pyscf\n", "qptlab.dft.planted -> pyscf"),
    "widgets in the engine": ("dft/planted.py", "import ipywidgets\n", "qptlab.dft.planted -> ipywidgets"),
    "Haiku in the training": ("training/planted.py", "import haiku\n", "qptlab.training.planted -> haiku"),
    "typer outside the command line": ("system/planted.py", "import typer\n", "qptlab.system.planted -> typer"),
    "an import inside a function": ("runtime/planted.py", "def f():\n    import plotly\n", "planted -> plotly"),
    "a new package without a layer": ("planted/__init__.py", "", "planted"),
    "a new module of the engine without a layer": ("dft/planted.py", "", "planted"),
    "an upward import": (
        "system/planted.py", "from qptlab.dft import scf\n", "qptlab.system.planted -> qptlab.dft.scf"
    ),
    "a package beside it": (
        "benchmarking/planted.py", "import qptlab.interop.ase\n", "qptlab.benchmarking.planted -> qptlab.interop.ase"
    ),
    "the public face from inside": ("models/planted.py", "import qptlab\n", "qptlab.models.planted -> qptlab"),
}


@pytest.mark.parametrize(("path", "code", "named"), PLANTED.values(), ids=PLANTED)
def test_a_planted_import_is_refused_by_name(package, path, code, named):
    target = package / "qptlab" / path
    target.parent.mkdir(exist_ok=True)
    target.write_text(f'"""Planted."""\n{code}')
    try:
        status, report = lint(package)
    finally:
        target.unlink()
        if target.name == "__init__.py":
            target.parent.rmdir()
    assert status == 1
    assert named in report, report


def test_import_is_light():
    """import qptlab loads neither plotly, ipywidgets, pandas nor tblite."""
    code = """
import sys, qptlab
print([m for m in ('plotly', 'ipywidgets', 'tblite', 'py3Dmol', 'matplotlib', 'pandas', 'typer') if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
