"""What a person sees: a real JupyterLab in headless Chromium that can reach nothing but this machine."""

import shutil
import time

import lab
import pytest
from cases import wait_until
from playwright.sync_api import expect, sync_playwright

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
        notebook = lab.Lab(browser, address, NOTEBOOK)
        try:
            yield notebook
        finally:
            notebook.close()
            browser.close()


def test_first_light_in_jupyterlab_without_the_internet(opened):
    """Run all; press Start; points arrive while another cell answers; pause, stop; look at everything."""
    page = opened.page
    opened.run(0)
    section = page.locator("h3", has_text="2. Training")
    section.wait_for(timeout=60_000)
    opened.show("1. Molecule and method")
    opened.screenshot("1-molecule")

    opened.press("Start")
    opened.show("2. Training")
    expect(page.locator("text=/step \\d+ ·/")).to_be_visible(timeout=90_000)
    before = opened.points()
    answered = opened.add_and_run("trainer = app.session.trainer; print(trainer.status, trainer.step > 0)")
    assert answered.split() == ["running", "True"]
    opened.show("2. Training")
    wait_until(lambda: opened.points() > before + 10)
    opened.screenshot("2-training")

    opened.press("Pause")
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=60_000)
    halted = opened.add_and_run("print(trainer.status, trainer.step)").split()
    assert halted[0] == "paused"

    # Orbitals appear by themselves, two of them, both signs of each.
    wait_until(lambda: [min(lab.shares(canvas)) > 0.002 for canvas in opened.canvas_pixels()] == [True, True])
    opened.show("3. Orbitals")
    opened.screenshot("3-orbitals")
    assert opened.add_and_run("print(app.orbitals.viewer.status)").strip() == "ready"

    # The camera stays where a user has turned it when another orbital is shown.
    opened.show("3. Orbitals")
    straight = opened.canvas_pixels()[0]
    page.locator(".qptlab-viewer-canvas").first.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    wait_until(lambda: (opened.canvas_pixels()[0] != straight).mean() > 0.01)
    turned = opened.canvas_pixels()[0]
    page.get_by_role("button", name="Update").click()
    time.sleep(2)
    again = opened.canvas_pixels()[0]
    assert (again != turned).mean() < 0.01, "the same view after an update"
    assert (again != straight).mean() > 0.01

    opened.press("Compare with PySCF")
    table = page.locator(".qptlab-table")
    table.wait_for(timeout=30_000)
    rows = [line.split("\t") for line in table.inner_text().splitlines()[1:]]
    assert [row[0] for row in rows[1:]] == ["QPT", "no network, same iterations", "PySCF, same Fock builds"]
    qpt, plain, stopped = (float(row[1]) for row in rows[1:])
    assert 0 < qpt < min(plain, stopped)
    opened.show("4. Comparison")
    time.sleep(1)
    opened.screenshot("4-comparison")

    opened.press("Stop")
    expect(page.locator("[role=status]", has_text="stopped")).to_be_visible(timeout=60_000)
    assert int(opened.add_and_run("print(trainer.step)")) >= int(halted[1])

    opened.dark()
    opened.show("3. Orbitals")
    time.sleep(1)
    opened.screenshot("5-dark")
    assert min(lab.shares(opened.canvas_pixels()[0])) > 0.002
    opened.show("2. Training")
    opened.screenshot("6-dark-training")

    assert page.locator(".modebar-btn[data-title*='hare']").count() == 0, "nothing uploads a chart"
    assert opened.outside == []
    assert opened.errors == []


def test_bad_input_is_explained_beside_the_control(opened):
    page = opened.page
    opened.run(0)
    page.locator("h3", has_text="1. Molecule").wait_for(timeout=60_000)
    field = page.get_by_label("SMILES or path")
    field.fill("C1CC")
    field.press("Tab")
    page.get_by_role("button", name="Use", exact=True).first.click()
    alert = page.locator("[role=alert]", has_text="C1CC")
    expect(alert).to_be_visible(timeout=30_000)
    opened.show("1. Molecule")
    opened.screenshot("7-bad-input")
    field.fill("CCO")
    field.press("Tab")
    page.get_by_role("button", name="Use", exact=True).first.click()
    expect(page.locator("text=/C2H6O, 26 electrons/")).to_be_visible(timeout=30_000)
    expect(alert).to_have_count(0)
    opened.show("1. Molecule")
    opened.screenshot("8-ethanol")
    assert opened.errors == []


def test_run_all_cells_ends_in_the_claims_of_the_notebook(opened):
    """As a newcomer does it: Run All Cells, and wait."""
    opened.run_all()
    wait_until(lambda: opened.prompts()[-1].strip("[]: ").isdigit(), seconds=170)
    assert opened.page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").count() == 0
    opened.screenshot("9-all-cells")
    assert opened.outside == []
    assert opened.errors == []
