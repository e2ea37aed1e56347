"""The whole course, in full length, as a class runs it: time and memory of each notebook.

    python benchmarks/course.py

Each notebook is executed from top to bottom in a kernel of its own, one after the other. Memory is the kernel's
largest, as Linux counts it; kernels are told, as mybinder.org does, that they have 2 GiB. Writes
`results/course.json` and `.md`.
"""

import json
import os
import pathlib
import re
import time

import nbformat
import typer
from nbclient import NotebookClient

from qptlab import bench

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
COMMAND = "python benchmarks/course.py"
MEMORY = 2 * 2**30


def main() -> None:
    """Measure, and write the table."""
    rows = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        rows.append(_execute(path))
        typer.echo(f"{rows[-1]['notebook']}: {rows[-1]['seconds']:.0f} s, {rows[-1]['peak_mib']:.0f} MiB")
    record = {"command": COMMAND, "machine": bench.machine(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    (results / "course.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["| notebook | time, min | memory, GiB |", "|---|--:|--:|"]
    lines += [f"| {row['notebook']} | {row['seconds'] / 60:.1f} | {row['peak_mib'] / 1024:.2f} |" for row in rows]
    total, most = sum(row["seconds"] for row in rows), max(row["peak_mib"] for row in rows)
    lines.append(f"| all; the largest | {total / 60:.1f} | {most / 1024:.2f} |")
    (results / "course.md").write_text("\n".join([
        "# The course, in full", "", f"    {COMMAND}", "", bench.place(record["machine"]), "", *lines, "",
    ]))


def _execute(path: pathlib.Path) -> dict:
    place = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(nbformat.read(path, as_version=4), timeout=1200, resources=place)
    began = time.perf_counter()
    with client.setup_kernel(env={**os.environ, "MEM_LIMIT": str(MEMORY)}):
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        status = pathlib.Path(f"/proc/{client.km.provisioner.pid}/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return {"notebook": path.stem, "seconds": time.perf_counter() - began, "peak_mib": int(peak) / 1024}


if __name__ == "__main__":
    typer.run(main)
