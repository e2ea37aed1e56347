"""The built package: a wheel from the repository and from the source archive, installed in a folder of its own."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import h5py
import nbformat
import pytest

import qptlab as ql

ROOT = pathlib.Path(__file__).parents[1]
STATIC = "qptlab/gui/widgets/static"
QUICK = ["--xc", "lda", "--basis", "sto-3g", "--grid-level", "0"]

pytestmark = pytest.mark.slow


def build(source, target, kind):
    """Build without an environment of its own, which would have to be downloaded."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target], cwd=source, check=True)
    (path,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("dist"), "wheel")


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    """Runs a program of a fresh environment, which has the wheel and this environment's other packages."""
    folder = tmp_path_factory.mktemp("outside")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    # The .pth files in these folders are not read, so that this environment's editable qptlab stays out.
    others = [path for path in sys.path if pathlib.Path(path).name in ("site-packages", "dist-packages")]
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "others.pth").write_text("\n".join(others))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command, status=0, **options):
        command = [folder / "venv/bin" / command[0], *command[1:]]
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, **options,
        )
        assert done.returncode == status, done.stderr
        return done

    run.folder, run.packages, run.environment = folder, packages, environment
    return run


def test_a_wheel_holds_types_data_and_the_course_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    needed = {
        "qptlab/py.typed", "qptlab/system/molecules.xyz", "qptlab/benchmarking/small-molecules.smi",
        f"{STATIC}/3Dmol-min.js", f"{STATIC}/3Dmol-LICENSE", "qptlab/course/benchmarks/results/labels.json",
        *(f"qptlab/pretrained/qm9-small.{ending}" for ending in ("h5", "md", "sha256")),
        *(f"qptlab/course/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")),
    }
    assert needed <= set(names)
    assert {name.split("/")[0] for name in names} == {"qptlab", f"qptlab-{wheel.name.split('-')[1]}.dist-info"}
    assert len(names) == len(set(names))


def test_a_source_archive_builds_the_same_wheel(wheel, tmp_path):
    archive = build(ROOT, tmp_path / "sdist", "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    assert not (source / STATIC).exists()
    shutil.copytree(ROOT / STATIC, source / STATIC)  # it would be fetched from npm
    again = build(source, tmp_path / "wheel", "wheel")
    first, second = (
        {member.filename: member.CRC for member in zipfile.ZipFile(path).infolist()} for path in (wheel, again)
    )
    assert first == second


def test_an_installed_wheel_calculates_and_trains_outside_the_repository(outside):
    file = outside("python", "-c", "import qptlab; print(qptlab.__file__)").stdout.strip()
    assert list(json.loads(outside("qptlab", "models", "--json").stdout)) == ["qm9-small"]
    assert pathlib.Path(file).parent == outside.packages / "qptlab"
    assert json.loads(outside("qptlab", "info", "--json").stdout)["libraries"]["jax"]
    energy = json.loads(outside("qptlab", "energy", "water", *QUICK, "--json").stdout)
    expected = ql.scf(ql.Molecule.from_name("water"), ql.Method("lda", "sto-3g", grid_level=0)).energy
    assert energy["energy_ha"] == pytest.approx(float(expected), abs=1e-8)
    options = [*QUICK, "--sampler", "perturb", "--steps", "3", "--batch", "2", "-n", "0", "--out", "run", "--json"]
    assert json.loads(outside("qptlab", "train", "water", *options).stdout)["steps"] == 3
    outside("qptlab", "sample", "water", "--sampler", "perturb", "--n", "2", "--out", "frames.xyz")
    outside("qptlab", "predict", "run", "--geometries", "frames.xyz", "--out", "predictions.h5")
    with h5py.File(outside.folder / "predictions.h5") as file:
        assert file["energy"].shape == (2,)


def test_the_course_is_copied_once_and_never_over_a_users_file(outside):
    assert "use qptlab lab --copy qptlab-course" in outside("qptlab", "lab", status=2).stderr
    copy = outside.folder / "my course"
    copy.mkdir()
    (copy / "01-first-light.ipynb").write_text("mine")
    message = outside("qptlab", "lab", "--copy", "my course", "--no-open").stdout
    assert "kept 1 file of yours" in message
    assert (copy / "01-first-light.ipynb").read_text() == "mine"
    (copy / "01-first-light.ipynb").unlink()
    assert outside("qptlab", "lab", "--copy", "my course", "--no-open").stdout.startswith("Copied 1 of")
    assert outside("qptlab", "lab", "--copy", "my course", "--no-open").stdout.startswith("Copied 0 of")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert (copy / path.name).read_text() == path.read_text()


def test_a_copied_course_holds_what_its_notebooks_import_and_read(outside):
    copy = outside.folder / "course"
    outside("qptlab", "lab", "--copy", copy, "--no-open")
    imports, read = set(), set()
    for path in sorted(copy.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                imports |= set(re.findall(r"^(?:import|from) .*$", cell.source, re.MULTILINE))
                if "results" in cell.source:
                    read |= set(re.findall(r"[\w-]+\.(?:json|md|png)", cell.source))
    assert "import qptlab as ql" in imports
    outside("python", "-c", "\n".join(sorted(imports)), timeout=300)
    assert {"iterations.json", "labels.json", "peptide.md", "peptide.png", "growth.json"} <= read
    for name in read:
        assert (copy / "benchmarks/results" / name).read_bytes() == (ROOT / "benchmarks/results" / name).read_bytes()


def test_the_copy_opens_in_jupyterlab(outside):
    command = [outside.folder / "venv/bin/qptlab", "lab", "--copy", "opened"]
    environment = outside.environment | {"BROWSER": "true", "JUPYTER_RUNTIME_DIR": str(outside.folder / "runtime")}
    with subprocess.Popen(
        command, cwd=outside.folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as lab:
        try:
            address = r"http://localhost:\d+/lab/tree/01-first-light.ipynb\?token="
            assert any(re.search(address, line) for line in lab.stderr)
        finally:
            lab.kill()  # how it ends when it is asked to is a test of the command line's
    assert (outside.folder / "opened" / "00-index.ipynb").exists()
