"""Response times of the workbench in JupyterLab with headless Chromium on the same machine.

    python benchmarks/latency.py [--molecule uracil] [--basis def2-svp]

Measured are: the time from a click on an orbital until its surface is drawn (training paused); the time of a cell's
answer during training; steps per second with the monitor in the page and without any view, in turns; the time from
"Start" to the first point of the curve, in a kernel with one core, as on mybinder.org, and in one with all cores.
Writes `results/latency.json` and `.md`.
"""

import contextlib
import functools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Annotated

import nbformat
import typer
from playwright.sync_api import sync_playwright

from qptlab import tables
from qptlab.benchmarking import bench

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import lab

TRAINER = """
import qptlab as ql
def begin(molecule, basis, folder, validation):
    method, train = ql.Method("pbe", basis), ql.TrainConfig(minutes=30, validation=validation)
    return ql.Trainer(ql.Molecule.from_name(molecule), method, ql.QPTConfig("micro", iterations=0), train, out=folder)
"""
WORKBENCH = f"{TRAINER}\napp = ql.workbench()\napp"
FIRST = """
import os
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:{cores}]))
import qptlab as ql
app = ql.workbench(molecule="water", basis="sto-3g", iterations=1, minutes=2.0)
app
"""
"""Training of the first notebook; earlier kernels have left compiled functions in the cache."""

DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

TURNS = 5
"""Number of measurements of a training with and without the monitor."""

SECONDS = 20
"""Time of such a measurement."""


def main(
    molecule: Annotated[str, typer.Option(help="Molecule of the clicks.")] = "uracil", basis: str = "def2-svp"
) -> None:
    """Measure, and write the table."""
    rows = []
    for part in (_speed, functools.partial(_clicks, molecule=molecule, basis=basis), _first_points):
        folder = pathlib.Path(tempfile.mkdtemp())
        # Kernels end with their server, so that no part slows the next one.
        with lab.server(folder) as address, sync_playwright() as playwright:
            browser = lab.launch(playwright)
            measured = part(functools.partial(_notebook, browser, address, folder))
            browser.close()
        typer.echo("\n".join(f"{row['what']}: {row['median']:.3g}" for row in measured), err=True)
        rows += measured
    record = {"command": f"python benchmarks/latency.py --molecule {molecule} --basis {basis}",
              "machine": bench.machine(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    lines = [[row["what"], f"{row['median']:.3g}", f"{row['largest']:.3g}", row["goal"]] for row in rows]
    table = tables.table(["", "median", "largest", "target"], lines)
    bench.keep(results, "latency", record, "\n".join([
        "# Response times of the workbench", "", f"    {record['command']}", "", bench.describe(bench.machine()), "",
        "Browser, kernel and training share these cores; the processor draws WebGL (SwiftShader). A difference of "
        "two rates of training varies by some 5 % from turn to turn; the JSON file has all turns.", "", table, "",
    ]))
    typer.echo(table)


@contextlib.contextmanager
def _notebook(browser, address, folder, code):
    """Open a notebook of one cell, run it until the workbench is there, and stop its training afterwards."""
    name = f"{time.monotonic_ns()}.ipynb"
    # Without the name of a kernel, JupyterLab asks for one.
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / name)
    opened = lab.Lab(browser, address, name, folder)
    opened.run(0)
    opened.tab("training").wait_for(timeout=120_000)
    yield opened
    opened.add_and_run("app.session.training.stop(); print('ended')")
    opened.close()


def _first_points(open_notebook: Callable) -> list[dict]:
    """Measure the time from "Start" to the first point of the curve."""
    rows = []
    for cores, goal in ((1, 20), (None, "")):
        seconds = []
        for _ in range(TURNS + 1):  # the first may compile
            with open_notebook(FIRST.format(cores=cores)) as opened:
                opened.show("training")
                opened.press("Start")
                began = time.perf_counter()
                while not opened.points():
                    time.sleep(0.1)
                seconds.append(time.perf_counter() - began)
        rows.append({
            "what": f"Start until the first point, kernel on {'all cores' if cores is None else 'one core'}, s",
            "all": seconds, "median": statistics.median(seconds[1:]), "largest": max(seconds[1:]), "goal": goal,
        })
    return rows


def _speed(open_notebook: Callable) -> list[dict]:
    """Measure steps per second of water in STO-3G with and without the monitor, and the time of a cell's answer."""
    with open_notebook(WORKBENCH) as opened:
        opened.add_and_run("t = begin('water', 'sto-3g', 'seen', 4); app.session.trainer = t.start(); print()")
        opened.show("training")
        while int(opened.add_and_run("print(t.step)")) < 30:
            time.sleep(0.5)
        answers, slower = [], []
        for _ in range(5):
            cell = opened.add("print(t.status)")
            began = time.perf_counter()
            opened.answer(cell)
            answers.append(time.perf_counter() - began)
        for turn in range(TURNS):
            rates = {}
            for seen in (True, False)[:: 1 if turn % 2 else -1]:  # in alternating order, in case the machine drifts
                # Without a trainer in the session, views show nothing.
                opened.add_and_run(f"app.session.trainer = {'t' if seen else None}; print()")
                opened.show("training")
                wait = f"import asyncio; n = t.step; await asyncio.sleep({SECONDS})"
                rates[seen] = float(opened.add_and_run(f"{wait}; print((t.step - n) / {SECONDS})", 60))
            slower.append(100 * (1 - rates[True] / rates[False]))
        opened.add_and_run("app.session.trainer = t; t.stop(30); print()")
    return [
        {"what": "a cell's answer while training, s", "all": answers, "median": statistics.median(answers),
         "largest": max(answers), "goal": 0.3},
        {"what": "training slowed by the monitor, %", "all": slower, "median": statistics.median(slower),
         "largest": max(slower), "goal": 3},
    ]


def _clicks(open_notebook: Callable, molecule: str, basis: str) -> list[dict]:
    """Measure the time from the choice of an orbital until its surface is drawn."""
    with open_notebook(WORKBENCH) as opened:
        begin = f"t = begin('{molecule}', '{basis}', 'clicks', 2)"
        opened.add_and_run(f"{begin}; app.session.trainer = t.start(); print()")
        while opened.add_and_run("print(t.step > 1 and t.validation is not None)").strip() != "True":
            time.sleep(2)
        opened.add_and_run("t.pause(); print()")
        while opened.add_and_run("print(t.status)").strip() != "paused":
            time.sleep(0.5)
        opened.show("orbitals")
        opened.page.locator("figcaption", has_text="QPT").first.wait_for(timeout=120_000)
        choice = opened.page.get_by_label("Orbital", exact=True)
        labels = choice.locator("option").all_inner_texts()
        homo = next(i for i, label in enumerate(labels) if "HOMO" in label)
        seconds = []
        for index in (homo - 1, homo - 2, homo + 1, homo + 2, homo - 3, homo):
            began = time.perf_counter()
            choice.select_option(index=index)
            opened.page.locator("figcaption", has_text=f"orbital {index + 1},").first.wait_for()
            opened.page.evaluate(DRAWN)
            seconds.append(time.perf_counter() - began)
        opened.add_and_run("t.stop(60); print()")
    return [{
        "what": f"a click on an orbital of {molecule}/{basis} until its surface is drawn, s (after the first)",
        "all": seconds, "median": statistics.median(seconds[1:]), "largest": max(seconds[1:]), "goal": 1,
    }]


if __name__ == "__main__":
    typer.run(main)
