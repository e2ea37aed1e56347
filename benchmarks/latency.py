"""How fast the workbench answers, in a real JupyterLab in headless Chromium on the same machine.

    python benchmarks/latency.py [--molecule uracil] [--basis def2-svp]

A click on an orbital until its surface is drawn (training paused); a cell's answer while training; steps per second
with the monitor in the page and without any view, taking turns. Writes `results/latency.json` and `.md`.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Annotated

import nbformat
import typer
from playwright.sync_api import sync_playwright

from qptlab import bench

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import lab

TRAINER = """
import qptlab as ql
def begin(molecule, basis, folder, validation):
    method, train = ql.Method("pbe", basis), ql.TrainConfig(minutes=30, validation=validation)
    return ql.Trainer(ql.Molecule.from_name(molecule), method, ql.QPTConfig("micro", 0), train, out=folder)
"""
TURNS = 3
"""Of measuring a training with and without the monitor."""

SECONDS = 20


def main(
    molecule: Annotated[str, typer.Option(help="For the clicks.")] = "uracil", basis: str = "def2-svp"
) -> None:
    """Measure, and write the table."""
    folder = pathlib.Path(tempfile.mkdtemp())
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"{TRAINER}\napp = ql.workbench()\napp")])
    nbformat.write(book, folder / "latency.ipynb")
    with lab.server(folder) as address, sync_playwright() as playwright:
        browser = lab.launch(playwright)
        opened = lab.Lab(browser, address, "latency.ipynb", folder)
        opened.run(0)
        opened.page.locator(".lm-TabBar-tab", has_text="3. Training").wait_for(timeout=120_000)
        rows = [*_speed(opened), *_clicks(opened, molecule, basis)]
        opened.close()
        browser.close()
    record = {"command": f"python benchmarks/latency.py --molecule {molecule} --basis {basis}",
              "machine": bench.machine(), "rows": rows}
    results = pathlib.Path(__file__).parent / "results"
    (results / "latency.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["| | median | largest | to reach |", "|---|--:|--:|--:|"]
    lines += [f"| {row['what']} | {row['median']:.3g} | {row['largest']:.3g} | {row['goal']} |" for row in rows]
    (results / "latency.md").write_text("\n".join([
        "# How fast the workbench answers", "", f"    {record['command']}", "", bench.place(bench.machine()), "",
        "Browser, kernel and training share these cores; the processor draws WebGL (SwiftShader).", "", *lines, "",
    ]))
    typer.echo("\n".join(lines))


def _speed(opened):
    """Steps per second of water in STO-3G, seen and unseen; and a cell's answers meanwhile."""
    opened.add_and_run("t = begin('water', 'sto-3g', 'seen', 4); app.session.trainer = t.start(); print()")
    opened.show("3. Training")
    while int(opened.add_and_run("print(t.step)")) < 30:
        time.sleep(0.5)
    answers, slower = [], []
    for _ in range(5):
        began = time.perf_counter()
        opened.add_and_run("print(t.status)")
        answers.append(time.perf_counter() - began)
    for _ in range(TURNS):
        rates = {}
        for seen in (True, False):
            # Without a trainer in the session no view has anything to show.
            opened.add_and_run(f"app.session.trainer = {'t' if seen else None}; print()")
            opened.show("3. Training")
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


def _clicks(opened, molecule, basis):
    opened.add_and_run(f"t = begin('{molecule}', '{basis}', 'clicks', 2); app.session.trainer = t.start(); print()")
    while opened.add_and_run("print(t.step > 1 and t.validation is not None)").strip() != "True":
        time.sleep(2)
    opened.add_and_run("t.pause(); print()")
    while opened.add_and_run("print(t.status)").strip() != "paused":
        time.sleep(0.5)
    opened.show("4. Orbitals")
    opened.page.locator("figcaption", has_text="QPT").first.wait_for(timeout=120_000)
    choice = opened.page.get_by_label("Orbital", exact=True)
    labels = choice.locator("option").all_inner_texts()
    homo = next(i for i, label in enumerate(labels) if "HOMO" in label)
    seconds = []
    for index in (homo - 1, homo - 2, homo + 1, homo + 2, homo - 3, homo):
        began = time.perf_counter()
        choice.select_option(index=index)
        opened.page.locator("figcaption", has_text=f"orbital {index + 1},").first.wait_for()
        opened.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seconds.append(time.perf_counter() - began)
    opened.add_and_run("t.stop(60); print()")
    return [{
        "what": f"a click on an orbital of {molecule}/{basis} until its surface is drawn, s (after the first)",
        "all": seconds, "median": statistics.median(seconds[1:]), "largest": max(seconds[1:]), "goal": 1,
    }]


if __name__ == "__main__":
    typer.run(main)
