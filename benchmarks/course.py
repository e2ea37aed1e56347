"""Time and memory of each notebook of the course in full length.

    PATH=.venv/bin:$PATH binder/postBuild
    python benchmarks/course.py

The notebooks are executed one after the other, each from top to bottom in a new kernel, as on mybinder.org: after
`binder/postBuild`, which compiles, and through `binder/start`, with a limit of 2 GiB. Memory is the kernel's largest
resident memory. Writes `results/course.json` and `.md`.
"""

import pathlib
import re
import subprocess
import time

import nbformat
import typer
from nbclient import NotebookClient

from qptlab import tables
from qptlab.benchmarking import bench

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
COMMAND = "PATH=.venv/bin:$PATH binder/postBuild; python benchmarks/course.py"
MEMORY = 2 * 2**30


def main() -> None:
    """Measure, and write the table."""
    output = subprocess.run([ROOT / "binder/start", "env", "-0"], capture_output=True, text=True, check=True).stdout
    environment = dict(line.split("=", 1) for line in output.split("\0") if line) | {"MEM_LIMIT": str(MEMORY)}
    rows = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        rows.append(_execute(path, environment))
        typer.echo(f"{rows[-1]['notebook']}: {rows[-1]['seconds']:.0f} s, {rows[-1]['peak_mib']:.0f} MiB")
    record = {"command": COMMAND, "machine": bench.machine(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    total, largest = sum(row["seconds"] for row in rows), max(row["peak_mib"] for row in rows)
    lines = [(row["notebook"], row["seconds"], row["peak_mib"]) for row in rows]
    cells = [
        [name, f"{seconds / 60:.1f}", f"{mib / 1024:.2f}"]
        for name, seconds, mib in [*lines, ("sum of times; largest memory", total, largest)]
    ]
    bench.keep(results, "course", record, "\n".join([
        "# The course, in full", "", f"    {COMMAND}", "", bench.describe(record["machine"]), "",
        tables.table(["notebook", "time, min", "memory, GiB"], cells), "",
    ]))


def _execute(path: pathlib.Path, environment: dict[str, str]) -> dict:
    """Execute a notebook; return its time, s, and the kernel's largest memory, MiB."""
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(nbformat.read(path, as_version=4), timeout=1200, resources=resources)
    began = time.perf_counter()
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        status = pathlib.Path(f"/proc/{client.km.provisioner.pid}/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return {"notebook": path.stem, "seconds": time.perf_counter() - began, "peak_mib": int(peak) / 1024}


if __name__ == "__main__":
    typer.run(main)
