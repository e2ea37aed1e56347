"""A real JupyterLab, controlled in headless Chromium without internet."""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Playwright, Route, TimeoutError

from qptlab.gui.tabs import TABS

CHROMIUM_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]
ARTIFACTS = pathlib.Path(__file__).parents[1] / "artifacts"
TOKEN = "for-this-test-only"


def launch(playwright: Playwright) -> Browser:
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return playwright.chromium.launch(executable_path=installed, args=CHROMIUM_ARGUMENTS)


@contextlib.contextmanager
def server(root: pathlib.Path):
    """Run JupyterLab on a free port of this machine, with its own settings, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = root / ".settings" / "@jupyterlab"
    for plugin, values in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "extensionmanager-extension/plugin": {"enabled": False},
    }.items():
        file = settings / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", f"--ServerApp.root_dir={root}", f"--IdentityProvider.token={TOKEN}",
        f"--LabApp.user_settings_dir={root / '.settings'}", "--LabApp.extension_manager=readonly",
        f"--LabApp.workspaces_dir={root / '.workspaces'}",
    ]
    environment = {**os.environ, "IPYTHONDIR": str(root / ".ipython")}
    log = (root / "jupyter.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, process, root / "jupyter.log")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_for(address, process, log):
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


class Lab:
    """One notebook open in one page."""

    def __init__(self, browser: Browser, address: str, notebook: str, folder: pathlib.Path):
        self.folder = folder
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.route("**/*", self._route)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        # Close notebooks of an earlier page: a hidden notebook has the same cells and tabs.
        self._open(f"{address}/lab/tree/{notebook}?token={TOKEN}&reset")

    def _open(self, address: str, attempts: int = 3) -> None:
        """Open a page and wait until its kernel has answered; a cell that is run before is lost.

        JupyterLab 4.6 now and then misses that answer (once in thirty starts). A person reloads the page, and so does
        this.
        """
        for attempt in range(attempts):
            self.page.goto(address)
            self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
            try:
                self.page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=30_000)
                return
            except TimeoutError:
                if attempt == attempts - 1:
                    raise

    def reload(self) -> None:
        """Save the notebook and load the page again, as a person does, and wait until it is back."""
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+s")
        self.page.wait_for_timeout(2000)
        self._open(self.page.url)

    def _route(self, route: Route) -> None:
        address = route.request.url
        if re.match(r"(http|ws)://127\.0\.0\.1[:/]|data:|blob:", address):
            route.continue_()
        else:
            self.outside.append(address)
            route.abort()

    def close(self) -> None:
        self.page.unroute_all(behavior="ignoreErrors")
        self.page.close()

    def cells(self):
        return self.page.locator(".jp-Notebook .jp-Cell.jp-CodeCell")

    def run(self, index: int) -> None:
        """Run one code cell without waiting for it; if JupyterLab ignored the keys, run it again.

        Now and then the first cell of a notebook does not reach a kernel that has just started: the prompt says that
        it runs, and the status bar says that the kernel is idle. A person reloads the page, and so does this.
        """
        cell = self.cells().nth(index)
        for _ in range(3):
            editor = cell.locator(".cm-content")
            editor.scroll_into_view_if_needed()
            editor.click()
            self.page.keyboard.press("Control+Enter")
            with contextlib.suppress(TimeoutError):
                cell.locator(".jp-InputPrompt", has_text="[ ]:").wait_for(state="detached", timeout=10_000)
                if self._taken_up(cell):
                    return
                self.reload()
        raise AssertionError(f"JupyterLab did not run the cell {index}, three times")

    def _taken_up(self, cell: Locator) -> bool:
        """Return true if the kernel runs the cell, or has run it, within ten seconds."""
        for _ in range(40):
            status = self.page.locator("#jp-main-statusbar").inner_text()
            if "| Busy" in status or "[*]" not in cell.locator(".jp-InputPrompt").inner_text():
                return True
            self.page.wait_for_timeout(250)
        return False

    def run_all(self) -> None:
        """Run all cells from the menu, without waiting for them."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()

    def add(self, code: str) -> Locator:
        """Append a cell, and leave the cursor in it."""
        last = self.cells().count() - 1
        self.cells().nth(last).locator(".cm-content").click()
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("b")
        cell = self.cells().nth(last + 1)
        cell.locator(".cm-content").click()
        self.page.keyboard.insert_text(code)
        return cell

    def add_and_run(self, code: str, seconds: float = 30) -> str:
        """Append a cell, run it, and return the text that it printed."""
        return self.answer(self.add(code), seconds)

    def answer(self, cell: Locator, seconds: float = 30) -> str:
        """Run the cell that has the cursor, and return the text that it printed."""
        self.page.keyboard.press("Control+Enter")
        output = cell.locator(".jp-OutputArea-output").first
        output.wait_for(timeout=seconds * 1000)
        return output.inner_text()

    def tab(self, name: str) -> Locator:
        """Return the label of a tab of the workbench.

        Args:
          name: name of the tab, as in `qptlab.gui.tabs.TABS`.
        """
        title = re.compile(f"^{re.escape(TABS[name].title)}$")
        return self.page.locator(".jupyter-widgets .lm-TabBar-tab", has_text=title)

    def show(self, name: str) -> None:
        """Turn to a tab of the workbench, and scroll it to the top of the window."""
        tab = self.tab(name)
        tab.scroll_into_view_if_needed()
        tab.click()
        tab.evaluate("element => element.scrollIntoView({block: 'start'})")
        self.page.mouse.move(5, 500)  # so that no toolbar hovers
        self.page.wait_for_timeout(300)

    def press(self, button: str) -> None:
        # Before the word may stand the character of an icon font.
        self.page.get_by_role("button", name=re.compile(f"(^|\\W){re.escape(button)}$")).click()

    def plots(self, axis: str):
        """Return the visible plots that have an axis of this title."""
        shown = self.page.locator(".js-plotly-plot:visible")
        return shown.filter(has=self.page.locator("text", has_text=axis))

    def points(self) -> int:
        """Return the number of points of the loss curve in the browser."""
        return self.plots("training time, s").first.evaluate("plot => plot._fullData[0].x?.length ?? 0")

    def prompts(self) -> list[str]:
        """Return the prompt of every code cell: [ ], [*] or the number of its execution."""
        return self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()

    def dark(self, on: bool = True) -> None:
        self.page.get_by_role("menuitem", name="Settings", exact=True).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
        name = "JupyterLab Dark" if on else "JupyterLab Light"
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{name}$")).click()
        self.page.wait_for_selector(f"body[data-jp-theme-light='{'false' if on else 'true'}']", state="attached")

    def screenshot(self, name: str) -> pathlib.Path:
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def canvas_pixels(self) -> list[np.ndarray]:
        """Return the pixels of every orbital canvas, as the browser shows them."""
        boxes = self.page.locator(".qptlab-viewer-canvas:visible")
        images = []
        for index in range(boxes.count()):
            boxes.nth(index).scroll_into_view_if_needed()
            images.append(np.asarray(Image.open(io.BytesIO(boxes.nth(index).screenshot())).convert("RGB")))
        return images


def shares(pixels: np.ndarray) -> tuple[float, float]:
    """Return the shares of blue and of orange pixels, which are the two signs of an orbital."""
    red, _, blue = np.moveaxis(pixels.astype(int), -1, 0)
    return float((blue - red > 60).mean()), float((red - blue > 60).mean())
