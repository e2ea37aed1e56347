"""The whole course, in full length, as a class runs it: time and memory of each notebook.

    PATH=.venv/bin:$PATH binder/postBuild
    python benchmarks/course.py

Each notebook is executed from top to bottom in a kernel of its own, one after the other, as on mybinder.org: after
`binder/postBuild`, which compiles, by `binder/start`, and told that there are 2 GiB. Memory is the kernel's largest,
as Linux counts it. Writes `results/course.json` and `.md`.
"""

import pathlib
import re
import subprocess
import time

import nbformat
import typer
from nbclient import NotebookClient

from qptlab.benchmarking import bench

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
COMMAND = "PATH=.venv/bin:$PATH binder/postBuild; python benchmarks/course.py"
MEMORY = 2 * 2**30


def main() -> None:
    """Measure, and write the table."""
    said = subprocess.run([ROOT / "binder/start", "env", "-0"], capture_output=True, text=True, check=True).stdout
    environment = dict(line.split("=", 1) for line in said.split("\0") if line) | {"MEM_LIMIT": str(MEMORY)}
    rows = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        rows.append(_execute(path, environment))
        typer.echo(f"{rows[-1]['notebook']}: {rows[-1]['seconds']:.0f} s, {rows[-1]['peak_mib']:.0f} MiB")
    record = {"command": COMMAND, "machine": bench.machine(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    lines = ["| notebook | time, min | memory, GiB |", "|---|--:|--:|"]
    lines += [f"| {row['notebook']} | {row['seconds'] / 60:.1f} | {row['peak_mib'] / 1024:.2f} |" for row in rows]
    total, most = sum(row["seconds"] for row in rows), max(row["peak_mib"] for row in rows)
    lines.append(f"| all; the largest | {total / 60:.1f} | {most / 1024:.2f} |")
    bench.keep(results, "course", record, "\n".join([
        "# The course, in full", "", f"    {COMMAND}", "", bench.place(record["machine"]), "", *lines, "",
    ]))


def _execute(path: pathlib.Path, environment: dict[str, str]) -> dict:
    place = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(nbformat.read(path, as_version=4), timeout=1200, resources=place)
    began = time.perf_counter()
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        status = pathlib.Path(f"/proc/{client.km.provisioner.pid}/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return {"notebook": path.stem, "seconds": time.perf_counter() - began, "peak_mib": int(peak) / 1024}


if __name__ == "__main__":
    typer.run(main)
