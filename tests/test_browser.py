"""The workbench as a person sees it: a real JupyterLab in headless Chromium without internet."""

import csv
import pathlib
import re
import shutil
import time

import lab
import numpy as np
import pytest
from cases import wait_until
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from qptlab.gui.tabs import TABS
from qptlab.gui.widgets.live import REPEAT_SECONDS
from qptlab.gui.widgets.view import DISCONNECTED

NOTEBOOK = "01-first-light.ipynb"

pytestmark = [
    pytest.mark.browser,
    # Of Jupyter's server and Playwright's transport as the interpreter ends; neither is of this project.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def opened(tmp_path):
    """The first notebook, open in a page."""
    shutil.copy(lab.ARTIFACTS.parent / "notebooks" / NOTEBOOK, tmp_path)
    with lab.server(tmp_path) as address, sync_playwright() as playwright:
        browser = lab.launch(playwright)
        notebook = lab.Lab(browser, address, NOTEBOOK, tmp_path)
        try:
            yield notebook
        finally:
            notebook.close()
            browser.close()


def test_first_light_in_jupyterlab_without_the_internet(opened):
    """Press Start; points arrive while a cell answers; pause, stop; look at all tabs."""
    page = opened.page
    opened.run(0)
    opened.tab("training").wait_for(timeout=60_000)
    opened.show("molecule")
    wait_until(lambda: np.ptp(opened.canvas_pixels()[0]) > 100)
    opened.screenshot("molecule")

    opened.add_and_run("app.session.minutes = 10.0; print()")
    opened.show("training")
    opened.press("Start")
    expect(page.locator("text=/step \\d+ ·/").first).to_be_visible(timeout=90_000)
    before = opened.points()
    answered = opened.add_and_run("trainer = app.session.trainer; print(trainer.status, trainer.step > 0)")
    assert answered.split() == ["running", "True"]
    opened.show("training")
    wait_until(lambda: opened.points() > before + 10)
    page.get_by_label("Note").fill("first light")
    opened.press("Add")
    expect(page.locator("text=/note — first light/")).to_be_visible()
    opened.screenshot("training")

    # The page is loaded again during the training: the training continues, and the plot is complete.
    count = opened.points()
    opened.reload()
    opened.show("training")
    wait_until(lambda: opened.points() > count)

    opened.show("kernels")
    opened.press("Profile")
    expect(page.locator("text=/steps took/")).to_be_visible(timeout=90_000)
    opened.screenshot("kernels")
    expect(page.locator("td", has_text=re.compile(r"\w+\.py:\d+")).first).to_be_visible()
    assert opened.plots("time, ms").first.evaluate("plot => plot.data.length") >= 3

    opened.show("training")
    opened.press("Pause")
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=60_000)
    halted = opened.add_and_run("print(trainer.status, trainer.step)").split()
    assert halted[0] == "paused"

    # Orbitals are there, two of them, both signs of each.
    opened.show("orbitals")
    wait_until(lambda: [min(lab.shares(canvas)) > 0.002 for canvas in opened.canvas_pixels()] == [True, True])
    opened.screenshot("orbitals")
    assert opened.add_and_run("print(app.views['orbitals'].viewer.status)").strip() == "ready"

    # The camera stays where a user has turned it when another orbital is shown.
    opened.show("orbitals")
    panels = opened.canvas_pixels()
    straight = panels[0]
    page.locator(".qptlab-viewer-canvas:visible").first.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    # The second panel follows.
    wait_until(lambda: all(
        (now != before).mean() > 0.01 for now, before in zip(opened.canvas_pixels(), panels, strict=True)
    ))
    turned = opened.canvas_pixels()[0]
    page.get_by_role("button", name="Update").click()
    time.sleep(2)
    again = opened.canvas_pixels()[0]
    assert (again != turned).mean() < 0.01, "the same view after an update"
    assert (again != straight).mean() > 0.01

    # A click on a level shows its orbital.
    levels = opened.plots("orbital energy, eV").first.locator(".scatterlayer .trace")
    level = levels.nth(1).locator("path.point").first
    level.click(force=True)
    shown = page.locator("figcaption", has_text="Equivariant Transformer").first
    expect(shown).to_contain_text(re.compile("orbital [67],"), timeout=15_000)
    page.get_by_label("Show", exact=True).select_option("density difference")
    expect(page.locator("figcaption", has_text="electrons misplaced").first).to_be_visible(timeout=15_000)
    wait_until(lambda: max(lab.shares(opened.canvas_pixels()[0])) > 0.002)
    opened.screenshot("difference")
    page.get_by_label("Show", exact=True).select_option("electrostatic potential")
    expect(page.locator("figcaption", has_text="potential").first).to_be_visible(timeout=15_000)
    time.sleep(1)
    opened.screenshot("potential")
    with page.expect_download() as download:
        page.locator(".qptlab-viewer-save:visible").first.click()
    assert re.fullmatch(r"potential-geometry-0-step-\d+\.png", download.value.suggested_filename)
    assert np.ptp(np.asarray(Image.open(download.value.path()).convert("RGB"))) > 100
    page.get_by_label("Show", exact=True).select_option("orbital")

    opened.show("comparison")
    opened.press("Compare with references")
    table = page.locator(".qptlab-table:visible").first
    table.wait_for(timeout=60_000)
    rows = [line.split("\t") for line in table.inner_text().splitlines()[1:]]
    assert [row[0] for row in rows[1:]] == [
        "Equivariant Transformer", "no network, same iterations", "PySCF, same Fock builds",
        "PySCF on this grid, against level 5",
    ]
    model, plain, stopped, _ = (float(row[1].split(" ± ")[0]) for row in rows[1:])
    assert 0 < model < min(plain, stopped)
    time.sleep(1)
    opened.screenshot("comparison")
    opened.press("Save CSV and LaTeX")
    saved = page.locator("[role=status]", has_text="Saved").locator("visible=true")
    expect(saved).to_be_visible()
    path = pathlib.Path(saved.inner_text().split()[1])
    rows = list(csv.DictReader((opened.folder / path).read_text().splitlines()))
    assert np.mean([abs(float(row["energy_error_mev"])) for row in rows]) == pytest.approx(model, rel=1e-3)

    opened.show("attention")
    opened.press("Show")
    expect(page.locator("text=/Layer 0, head 0: .* stays on the same atom/")).to_be_visible(timeout=60_000)
    wait_until(lambda: np.ptp(opened.canvas_pixels()[0]) > 100)
    opened.screenshot("attention")

    opened.show("training")
    opened.press("Resume")
    more = f"while trainer.step < {int(halted[1]) + 3}: await asyncio.sleep(0.1)"
    assert opened.add_and_run(f"import asyncio\n{more}\nprint(trainer.status)").strip() == "running"
    opened.show("training")
    opened.press("Stop")
    expect(page.locator("[role=status]", has_text="stopped").first).to_be_visible(timeout=60_000)
    assert int(opened.add_and_run("print(trainer.step)")) >= int(halted[1])

    opened.show("scf")
    opened.press("Run SCF")
    expect(page.locator("text=/DIIS: converged after/").first).to_be_visible(timeout=90_000)
    assert opened.plots("iteration").first.evaluate("plot => plot._fullData[2].y.length") >= 3
    time.sleep(1)
    opened.screenshot("scf")

    opened.show("prediction")
    opened.press("Predict")
    expect(page.locator("th", has_text="qm9-small")).to_be_visible(timeout=120_000)
    wait_until(lambda: any(min(lab.shares(pixels)) > 0.002 for pixels in opened.canvas_pixels()))
    opened.screenshot("prediction")

    opened.dark()
    for name in TABS:
        opened.show(name)
        time.sleep(1)
        opened.screenshot(f"dark-{name}")
    opened.show("orbitals")
    assert min(lab.shares(opened.canvas_pixels()[0])) > 0.002

    assert page.locator(".modebar-btn[data-title*='hare']").count() == 0, "nothing uploads a chart"
    assert opened.outside == []
    assert opened.errors == []


def test_bad_input_is_explained_beside_the_control(opened):
    page = opened.page
    opened.run(0)
    opened.tab("molecule").wait_for(timeout=60_000)
    field = page.get_by_label("SMILES or path")
    field.fill("C1CC")
    field.press("Tab")
    page.get_by_role("button", name="Use", exact=True).first.click()
    alert = page.locator("[role=alert]", has_text="C1CC")
    expect(alert).to_be_visible(timeout=30_000)
    opened.show("molecule")
    opened.screenshot("bad-input")
    field.fill("CCO")
    field.press("Tab")
    page.get_by_role("button", name="Use", exact=True).first.click()
    expect(page.locator("text=/C2H6O, 26 electrons/")).to_be_visible(timeout=30_000)
    expect(alert).to_have_count(0)
    opened.show("molecule")
    opened.screenshot("ethanol")

    # A bond follows its slider; undo takes it back.
    atoms = page.get_by_label("Atoms (XYZ, Å)")
    before = atoms.input_value()
    slider = page.locator(".noUi-handle:visible").last
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    wait_until(lambda: atoms.input_value() != before)
    page.get_by_role("button", name="Undo").click()
    wait_until(lambda: atoms.input_value() == before)

    for name, content, says in (("he.xyz", "2\n\nHe 0 0 0\nHe 0 0 3\n", "He2, 4 electrons"),
                                ("bad.xyz", "not a\nmolecule", "is not complete XYZ")):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name=re.compile(r"Upload \.xyz")).click()
        chooser.value.set_files({"name": name, "mimeType": "text/plain", "buffer": content.encode()})
        expect(page.locator(f"text={says}").first).to_be_visible(timeout=30_000)
    assert opened.errors == []


def test_run_all_cells_ends_in_the_claims_of_the_notebook(opened):
    """Run All Cells and wait, as a newcomer does."""
    opened.run_all()
    wait_until(lambda: opened.prompts()[-1].strip("[]: ").isdigit(), seconds=170)
    assert opened.page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").count() == 0
    opened.screenshot("all-cells")
    assert opened.outside == []
    assert opened.errors == []


CHANGING = """
import asyncio, ipywidgets as ipw
from qptlab.gui.widgets.live import keep_fresh
class Row(ipw.HBox):
    def refresh(self): pass
row = Row([ipw.Button(description=f"b{k}", disabled=True) for k in range(400)], layout={"flex_flow": "row wrap"})
keep_fresh(row)
async def enable():
    for button in row.children:
        button.disabled = False
        await asyncio.sleep(0.03)
display(row)
"""


def test_a_page_that_is_loaded_again_shows_what_changed_meanwhile(opened):
    """Buttons that are enabled one by one while a page builds its models; ipywidgets alone loses some of them."""
    opened.answer(opened.add(CHANGING))
    opened.add_and_run("task = asyncio.get_running_loop().create_task(enable()); print('begun')")
    opened.reload()
    disabled = opened.page.locator("button:disabled", has_text=re.compile(r"^b\d+$"))
    expect(opened.page.get_by_role("button", name="b399", exact=True)).to_be_enabled(timeout=60_000)
    expect(disabled).to_have_count(0, timeout=4 * REPEAT_SECONDS * 1000)


MARK = "element => { const mark = getComputedStyle(element, '::before'); return [mark.display, mark.content]; }"


def test_a_restarted_kernel_is_said_once_and_no_part_claims_to_be_alive(opened):
    """Each of the hundred parts of the workbench had a broken chain, and the training was "running" for ever."""
    page = opened.page
    opened.add_and_run("import qptlab as ql\nql.workbench()", 60)
    expect(opened.tab("training")).to_be_visible(timeout=60_000)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Restart Kernel…$")).click()
    page.locator(".jp-Dialog-button.jp-mod-warn").click()
    disconnected = page.locator(".jupyter-widgets-disconnected")
    expect(disconnected.first).to_be_visible(timeout=60_000)
    assert disconnected.count() > 20
    marks = [element.evaluate(MARK) for element in disconnected.all()]
    shown = [content for display, content in marks if display != "none" and content != "none"]
    assert shown == [f'"{DISCONNECTED}"']
    opened.tab("training").click()  # what was shown can still be read
    page.screenshot(path=lab.ARTIFACTS / "restarted.png")
    start = page.locator(".qptlab-view button", has_text="Start").first
    expect(start).to_be_visible()
    expect(start).to_have_css("pointer-events", "none")
