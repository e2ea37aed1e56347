"""Small hostile inputs through every reader: `python tests/faults/hostile.py cases`, or `fuzz 100000 [seed]`.

The process prints one JSON object per line: what was said of an input, the seconds that it took, and by how many MiB
the peak of the memory has grown. It has little more memory than the package itself needs.
"""

import contextlib
import dataclasses
import gzip
import io
import json
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import warnings

import h5py
import numpy as np

import qptlab as ql
from qptlab import files
from qptlab.models import files as models
from qptlab.sampling import parameters_from_text
from qptlab.system import smiles

ADDRESS_SPACE_MIB = 3072
"""Memory that the process may reserve in addition to what it has at the start."""

CASE_SECONDS, FUZZ_SECONDS = 60, 10
"""Time after which an input is given up."""

FUZZ_MIB = 200
"""Largest memory for an input that is made by chance."""

WATER = "3\n{}\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
LABELS = 'Properties=species:S:1:pos:R:3:forces:R:3 energy={} dipole="0 0 1" pbc="F F F"'
RUN = {
    "kind": "qpt",
    "molecules": [{"symbols": ["H", "H"], "positions_bohr": [[0, 0, 0], [0, 0, 1]], "charge": 0, "name": "hydrogen"}],
    "method": dataclasses.asdict(ql.Method("lda", "sto-3g")),
    "model": dataclasses.asdict(ql.QPTConfig(preset="micro")),
    "train": dataclasses.asdict(ql.TrainConfig(minutes=1.0)),
}
GNN = {
    "kind": "orbital-gnn", "model": {}, "kinds": ["H 1s"], "elements": ["H"], "label": "PBE",
}


# Doors -------------------------------------------------------------------------------------------


def open_run(folder: pathlib.Path) -> None:
    run = ql.Run.open(folder)
    run.metrics()
    run.events()
    run._writer()


def sample_file(path: pathlib.Path) -> None:
    segments = ql.Sampling("file", path=str(path)).segments(ql.Molecule.from_name("water"), training=True)
    next(segments.draw(np.random.default_rng(0)), None)


def pipe(content: bytes) -> None:
    ql.Molecule.parse(files.piped(io.BytesIO(content), "XYZ or SMILES", "the standard input") + "\n")


GEOMETRIES = {
    "xyz": ql.read_xyz, "labels": ql.read_labels, "molecules": lambda path: ql.read_molecules([str(path)]),
    "parse": lambda path: ql.Molecule.parse(str(path)), "sampler": sample_file,
}
HDF5 = {"model": ql.load, "predictions": ql.read_predictions}
READERS = {**GEOMETRIES, **HDF5}


# Cases -------------------------------------------------------------------------------------------


def written(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
    path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return path


def hdf5(path: pathlib.Path, attributes: dict, **arrays) -> pathlib.Path:
    with sealed(path) as file:
        file.attrs.update(attributes)
        for name, (shape, dtype) in arrays.items():
            file.create_dataset(f"params/{name}", shape, dtype, chunks=True, compression="gzip")
    return path


@contextlib.contextmanager
def sealed(path: pathlib.Path):
    """Open a new HDF5 file, with the checksum of a model file."""
    with h5py.File(path, "w", userblock_size=models.HEADER_BYTES) as file:
        yield file
    models.seal(path)


def described(model: dict) -> dict:
    return {"description": json.dumps(GNN | {"model": model})}


def chunk_of_a_gibibyte(path: pathlib.Path) -> pathlib.Path:
    with sealed(path) as file:
        file.attrs["method"], file.attrs["format"], file.attrs["description"] = "PBE", models.FORMAT, json.dumps(GNN)
        dataset = file.create_dataset(
            "frame", (1,), "i8", maxshape=(None,), chunks=(2**27,), compression="gzip"
        )
        dataset[0] = 0
    return path


def groups_in_themselves(path: pathlib.Path) -> pathlib.Path:
    with sealed(path) as file:
        file.attrs["method"], file.attrs["format"], file.attrs["description"] = "PBE", models.FORMAT, json.dumps(GNN)
        for index in range(30):
            group = file.create_group(f"group{index}")
            group["self"] = group
            for other in range(index):
                group[f"other{other}"] = file[f"group{other}"]
    return path


def run_folder(path: pathlib.Path, **texts: str) -> pathlib.Path:
    path.mkdir(parents=True, exist_ok=True)
    written(path / "config.json", json.dumps(RUN))
    for name, text in texts.items():
        written(path / {"config": "config.json", "metrics": "metrics.csv", "events": "events.jsonl"}[name], text)
    return path


def linked(path: pathlib.Path, name: str) -> pathlib.Path:
    folder = run_folder(path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    return folder


def cases(folder: pathlib.Path) -> dict:
    """Return a function for each hostile input; each is named by what it does and the door."""
    frame, found = WATER.format(LABELS.format(-2000)), {}
    attributes = {"format": models.FORMAT, "description": json.dumps(GNN), "method": "PBE"}
    hydrogen = RUN["molecules"][0]
    texts = {
        "columns": "1\nProperties=species:S:1:pos:R:9999999\nHe 0 0 0\n",
        "columns twice": "1\nProperties=species:S:1:pos:R:3 Properties=species:S:1:pos:R:9999999\nHe 0 0 0\n",
        "quoted columns": '1\nenergy=-1 "Properties"=species:S:1:pos:R:9999999\nHe 0 0 0\n',
        "many columns of 9999": "1\nProperties=species:S:1:pos:R:3" + ":x:R:9999" * 5000 + "\nHe 0 0 0\n",
        "atoms": "999999999\n\nHe 0 0 0\n",
        "atoms that are there": f"{10**6}\n\n" + "He 0 0 0\n" * 10**6,
        "long comment": f"1\n{'a=' * 10**6}\nHe 0 0 0\n",
        "long line": f"1\n\nHe 0 0 {'0' * 10**7}\n",
        "blank lines": "\n" * 10**7,
        "charges and blanks": f"1\n{'charge' + ' ' * 49000}{'charge' + ' ' * 49000}\nHe 0 0 0\n",
        "backslashes": f"1\nenergy=-1 {chr(92) * 90000}\nHe 0 0 0\n",
        "brackets": f"1\nenergy=-1 a={'[' * 90000}\nHe 0 0 0\n",
        "JSON": f'1\nenergy=-1 a="_JSON {"[" * 90000}"\nHe 0 0 0\n',
    }
    for name, text in texts.items():
        path = written(folder / f"{name}.xyz", text)
        found |= {f"{name}, {door}": (read, path) for door, read in GEOMETRIES.items()}
    for name, text in {
        "zeros": bytes(800 * 2**20), "blank lines": b"\n" * (800 * 2**20), "frames": frame.encode() * 10**6,
    }.items():
        path = written(folder / f"{name}.xyz.gz", gzip.compress(text, 1))
        found |= {f"packed {name}, {door}": (read, path) for door, read in GEOMETRIES.items()}
    written(folder / "cut.xyz.gz", gzip.compress(frame.encode() * 100)[:-20])
    found |= {f"packed and cut, {door}": (read, folder / "cut.xyz.gz") for door, read in GEOMETRIES.items()}
    sparse = folder / "sparse.xyz"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    os.mkfifo(folder / "pipe.xyz")
    for name, path in {"a terabyte": sparse, "/dev/zero": pathlib.Path("/dev/zero"), "a pipe": folder / "pipe.xyz",
                       "a folder": folder, "a long path": folder / ("x" * 5000), "NUL": "a\0b.xyz"}.items():
        found |= {f"{name}, {door}": (read, path) for door, read in READERS.items()}
    for name, path in {
        "compressed arrays": hdf5(folder / "fill.h5", attributes, x=((600, 2**20), "f8")),
        "many arrays": hdf5(folder / "many.h5", attributes, **{f"x{i}": ((2**20,), "f8") for i in range(300)}),
        "a chunk": chunk_of_a_gibibyte(folder / "chunk.h5"), "groups": groups_in_themselves(folder / "groups.h5"),
        "texts": hdf5(folder / "text.h5", attributes, x=((2**20,), "S1000")),
        "no attributes": hdf5(folder / "no.h5", {}),
        "layers": hdf5(folder / "layers.h5", attributes | described({"layers": 10**9})),
        "width": hdf5(folder / "width.h5", attributes | described({"width": 4 * 10**9})),
        "nested": hdf5(folder / "nested.h5", {**attributes, "description": "[" * 50000}),
    }.items():
        found |= {f"{name}, {door}": (read, path) for door, read in HDF5.items()}
    found |= {
        f"link of {name}": (open_run, linked(folder / f"linked-{name}", name))
        for name in ("config.json", "metrics.csv", "events.jsonl", "writer.json")
    }
    found |= {
        "nested configuration": (open_run, run_folder(folder / "run-1", config="[" * 10**6)),
        "events": (open_run, run_folder(folder / "run-2", events="[]\n{}\n5\n" + "[" * 10**5 + '\n{"step": []}\n')),
        "metrics of words": (open_run, run_folder(folder / "run-3", metrics="step,loss\n1,x\n" * 1000)),
        "metrics without steps": (open_run, run_folder(folder / "run-4", metrics="loss\n1\n" * 1000)),
        "molecules of a run": (lambda path: ql.Run.open(path).molecules, run_folder(
            folder / "run-5", config=json.dumps(RUN | {"molecules": [hydrogen | {"symbols": ["H"] * 10**6}]})
        )),
        "pipe of zeros": (pipe, bytes(10**8)), "pipe of text": (pipe, b"C" * 10**8),
    }
    texts = {
        "carbons": "C" * 300, "stars": "*" * 50, "a star": "C*C", "a ring": "C1" + "C#C" * 30 + "C1",
        "uranium": "[U]" * 100, "a cage": "C12C34C56C17C28C35C46C78", "long": "C" * 10**6, "NUL": "CCO\0C",
        "many isotopes": "[999H]" * 50, "brackets": "(" * 400, "rings": "C%99" * 100, "charges": "[C+99]" * 50,
    }
    for name, text in texts.items():
        found[f"SMILES of {name}"] = (ql.Molecule.parse, text)
        if name != "a ring":  # its geometry is given up after seconds
            found[f"list of {name}"] = (GEOMETRIES["molecules"], written(folder / f"{name}.smi", text))
    return found


def run_cases() -> None:
    """Read every hostile input."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (read, value) in cases(pathlib.Path(folder)).items():
            report(name, read, value, CASE_SECONDS)


# Fuzzing -----------------------------------------------------------------------------------------

TOKENS = [
    "", " ", "\n", "\r", "\0", "\t", "\ufeff", "\u2028", "é", "\udcff", "0", "-1", "1e999", "nan", "inf", "-inf",
    "9" * 30, "9" * 5000, "1.5D+400", "None", "true", "[]", "{}", "[" * 200, '"', "'", "\\", "=", ":", ",", ".", "*",
    "#", "%", "<script>", "</script>", "../../etc/passwd", "/dev/zero", "Properties=",
    "Properties=species:S:1:pos:R:3",
    "species:S:1:pos:R:-3", ":I:9999", "energy=", "energy=nan", "forces=", "charge=99", "spin=7", 'Lattice="1 0 0"',
    "name=" + "x" * 400, "dipole=inf", 'gap_ev="a b"', "_JSON {", "VEC1 1 0 0", "gdb 1", "Atoms. Timestep: 0", "Uuo",
    "H", "C", "O=C", "[Na+]", "c1ccccc1", "(", ")", "1", "2", "3", "2000", "2001", "999999999",
]
SOURCES = [
    WATER.format("water"), WATER.format(LABELS.format(-2000)), WATER.format("charge=1 multiplicity=2"),
    WATER.format("0 1"), WATER.format("E = -76.4 charge 0"), "CCO\n", "CO methanol\nO water\n",
    "step,seconds,energy_ha,loss,data_wait_s,compile_s\n1,0.5,-1,0.1,0,0\n2,1,-1,0.1,0,0\n",
    '{"kind": "note", "text": "a", "step": 1, "seconds": 0.5}\n', json.dumps(RUN), json.dumps(GNN), "sto-3g",
    "qm9:count=2", "H 0 0 0 1 2 3\n", "temperature=300",
]


def mutated(rng: random.Random) -> str:
    """Return a text with some places exchanged, removed, repeated or filled with tokens."""
    text = rng.choice(SOURCES)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice((0, 0, 1, 1, 2, 5, 20)))
        kind = rng.random()
        piece = rng.choice(TOKENS) if kind < 0.6 else text[start:stop] * rng.choice((2, 3, 50)) if kind < 0.8 else ""
        text = text[:start] + piece + text[stop:]
    return text


def fuzz_door(rng: random.Random, folder: pathlib.Path) -> tuple:
    """Return a reader and a hostile value for it."""
    text = mutated(rng)
    content = text.encode("utf-8", "surrogateescape")
    door = rng.choice(("xyz text", "run", "hdf5", "pipe", "name", "option", *GEOMETRIES, *GEOMETRIES))
    if door == "xyz text":
        return ql.read_xyz, text + "\n"
    if door == "run":
        which = rng.choice(("config", "metrics", "events"))
        texts = {"config": json.dumps(RUN), "metrics": "", "events": "", which: text}
        return open_run, run_folder(folder / "run", **texts)
    if door == "hdf5":
        path = folder / "file.h5"
        words = content.decode("utf-8", "replace").replace("\0", "")
        attributes = {"format": models.FORMAT, "description": words, "method": "PBE"}
        hdf5(path, attributes, x=((rng.choice((0, 1, 2**24)),), rng.choice(("f8", "i4", "S5", "c16"))))
        if rng.random() < 0.2:
            path.write_bytes(path.read_bytes()[: rng.randrange(8000)])
        return HDF5[rng.choice(list(HDF5))], path
    if door == "pipe":
        return pipe, content
    if door == "name":
        return (lambda value: ql.Molecule(("He",), np.zeros((1, 3)), name=value).to_xyz()), text
    if door == "option":
        return rng.choice((
            lambda value: ql.Method(basis=value), lambda value: parameters_from_text("md", [value]), ql.load,
            lambda value: ql.Sampling("md", **parameters_from_text("md", [f"temperature={value}"])),
            lambda value: ql.Method(value), lambda value: ql.Sampling(value),
        )), text
    if rng.random() < 0.2:
        content = gzip.compress(content)[: rng.choice((None, None, 20))]
    elif rng.random() < 0.1:
        content = bytes(rng.randrange(256) for _ in range(rng.randrange(300)))
    suffix = rng.choice((".smi", ".xyz")) if door == "molecules" else rng.choice((".xyz", ".xyz.gz", ".txt"))
    return GEOMETRIES[door], written(folder / f"file{suffix}", content)


def run_fuzz(count: int, seed: int) -> None:
    """Read `count` hostile inputs; print those that are neither read nor refused in a sentence, and a summary."""
    smiles.MAX_RELAXED_ATOMS = 12  # the geometries of larger molecules take seconds
    rng, began, refused, wrong = random.Random(seed), time.monotonic(), 0, 0
    before = memory("VmRSS")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        os.chdir(folder)
        for index in range(count):
            read, value = fuzz_door(rng, pathlib.Path(folder))
            record = outcome(read, value, FUZZ_SECONDS)
            refused += record["kind"] == "InputError"
            if record["kind"] not in ("", "InputError") or not record["is_sentence"] or record["mib"] > FUZZ_MIB:
                wrong += 1
                shown = value.read_bytes()[:2000] if isinstance(value, pathlib.Path) and value.is_file() else value
                sys.stdout.write(json.dumps(record | {"index": index, "value": repr(shown)[:2000]}) + "\n")
        os.chdir("/")
    sys.stdout.write(json.dumps({"count": count, "refused": refused, "wrong": wrong, "mib": memory("VmRSS") - before,
                      "seconds": time.monotonic() - began}) + "\n")


# Measuring ---------------------------------------------------------------------------------------


class TooLong(BaseException):
    """An input took longer than it may."""


def _give_up(*_: object) -> None:
    raise TooLong


def memory(name: str) -> float:
    """Return the memory of this process, MiB: VmRSS at present, VmHWM at its peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def outcome(read, value, seconds: float) -> dict:
    """Return what is said of an input, and the time and memory that it took."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began, kind, text = memory("VmRSS"), time.monotonic(), "", ""
    try:
        read(value)
    except BaseException as error:
        kind, text = type(error).__name__, str(error)
        if isinstance(error, ql.InputError):
            kind = "InputError"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "kind": kind, "text": text[:2000], "seconds": time.monotonic() - began,
        "is_sentence": kind != "InputError" or (len(text) < 300 and text.isprintable()),
        "mib": memory("VmHWM") - before,
    }


def report(name: str, read, value, seconds: float) -> None:
    """Print what is said of an input."""
    sys.stdout.write(json.dumps({"name": name, **outcome(read, value, seconds)}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what the command line says."""
    warnings.simplefilter("ignore")
    with contextlib.suppress(Exception):
        ql.Molecule.parse("CO")  # imports what SMILES need
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + ADDRESS_SPACE_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if sys.argv[1] == "cases":
        run_cases()
    else:
        run_fuzz(int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)


if __name__ == "__main__":
    main()
