"""JupyterLab in a real browser: a server of its own, and what a person does to a notebook.

with serve(folder, tmp_path) as server:
    notebook = Notebook.open(browser.new_page(), server, "00_microgpt.ipynb")
    notebook.run_all()
    notebook.press("ArrowRight", on="temperature")
"""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SCREENSHOTS = ROOT / ".cache" / "browser"  # not in git; look here when a test fails, or to see how things look
START_SECONDS = 90

# All cells in the page, not only those in view, so that a test finds them; no pop-up that asks for news
SETTINGS = {
    "notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',
    "apputils-extension/notification.jupyterlab-settings": '{"fetchNews": "false", "checkForUpdates": false}',
}


@dataclass(frozen=True)
class Server:
    """A JupyterLab that runs: where it is and what lets one in. `log` is what it says."""

    url: str
    token: str
    log: Path

    def address(self, path: str) -> str:
        """The address of a page, such as `lab/tree/x.ipynb` or `formgrader`."""
        return f"{self.url}/{path}?token={self.token}"


@contextlib.contextmanager
def serve(root: Path, home: Path, start: Path | None = None, /, **environment: str) -> Iterator[Server]:
    """A JupyterLab over the folder `root`, with settings and run-time files in `home` and nothing of the user's. It
    starts in `start`, or in `root` itself, so that an nbgrader course there is found. It ends with the block, kernels
    included."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "IPYTHONDIR": home / "ipython",
    }
    for name, text in SETTINGS.items():
        target = folders["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    server = Server(f"http://127.0.0.1:{port}", secrets.token_hex(16), home / "jupyterlab.log")
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--LabApp.expose_app_in_browser=True"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}"),
        *(f"--IdentityProvider.token={server.token}", "--ServerApp.allow_root=True"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=start or root,
            env=os.environ | {name: str(folder) for name, folder in folders.items()} | {"PATH": path} | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()  # it shuts its kernels down
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(server.address("api/status"), timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{server.log.read_text()[-3000:]}")


def screenshot(page: Any, name: str) -> Path:
    """Keep how the page looks now as SCREENSHOTS/name.png."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path)
    return path


class Notebook:
    """A notebook open in JupyterLab."""

    def __init__(self, page: Any) -> None:
        self.page = page

    @classmethod
    def open(cls, page: Any, server: Server, path: str) -> "Notebook":
        """Open the notebook `path` in a window of its own."""
        # a workspace of its own: JupyterLab would open the notebooks of earlier tests again, beside this one
        page.goto(server.address(f"lab/workspaces/{secrets.token_hex(8)}/tree/{path}"))
        return cls.wait_for(page, path)

    @classmethod
    def wait_for(cls, page: Any, path: str) -> "Notebook":
        """The notebook `path` that is being opened, as soon as it has its kernel and can show widgets."""
        page.wait_for_function(
            """path => {
                const panel = window.jupyterapp?.shell?.currentWidget;
                return panel?.context?.path === path && panel.context.isReady
                    && panel.sessionContext?.session?.kernel?.status === 'idle'
                    && panel.content.rendermime.mimeTypes.includes('application/vnd.jupyter.widget-view+json');
            }""",
            arg=path,
            timeout=START_SECONDS * 1000,
        )
        return cls(page)

    def run_all(self, seconds: float = 180) -> None:
        """Run all cells and wait until the last has run, or one has failed, and until what they show has loaded."""
        self.page.evaluate(
            """() => {
                window.allCellsRan = false;
                window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => {
                    window.allCellsRan = true;
                });
            }"""
        )
        self.page.wait_for_function("window.allCellsRan", timeout=seconds * 1000)
        self.page.wait_for_function(
            """() => ![...document.querySelectorAll('.jp-OutputArea-output')].some(
                output => output.textContent.startsWith('Loading widget')
            ) && [...document.querySelectorAll('.jp-OutputArea img')].every(image => image.complete)""",
            timeout=seconds * 1000,
        )

    def save(self) -> None:
        """Save the notebook to its file."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    @property
    def cells(self) -> Any:
        """All code cells, as a locator."""
        return self.page.locator(".jp-CodeCell")

    def cell(self, name: str) -> Any:
        """The cell nbgrader calls `name`: a part's id for its hole, check-ID for its check, plot-ID for its picture."""
        number = self.page.evaluate(
            """name => window.jupyterapp.shell.currentWidget.content.widgets.findIndex(
                cell => cell.model.getMetadata('nbgrader')?.grade_id === name)""",
            name,
        )
        assert number >= 0, f"the notebook has no cell {name}"
        return self.page.locator(".jp-NotebookPanel:visible .jp-Notebook-cell").nth(number)

    def output(self, name: str) -> Any:
        """What the cell nbgrader calls `name` shows below it."""
        return self.cell(name).locator(".jp-Cell-outputArea")

    def type_over_stub(self, code: str) -> None:
        """With the cursor in a hole: replace the stub's last line by `code`, key by key. Lines begin where the stub's
        did; the editor indents."""
        for keys in ("Control+End", "Shift+Home"):
            self.page.keyboard.press(keys)
        self.page.keyboard.type(code)

    def validate(self, seconds: float = 120) -> str:
        """Press nbgrader's Validate button and return what it says."""
        self.page.get_by_role("button", name="Validate").click()
        dialog = self.page.locator(".jp-Dialog")
        dialog.wait_for(timeout=seconds * 1000)
        said = dialog.inner_text()
        dialog.get_by_role("button", name="OK").click()
        dialog.wait_for(state="detached")
        return said

    def troubles(self) -> list[str]:
        """Tracebacks, anything on stderr, and widgets that could not be shown."""
        wrong = self.page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], "
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'], "
            ".jp-OutputArea-output:has-text('Error displaying widget')"
        )
        return wrong.all_inner_texts()

    def pictures(self) -> list[dict[str, Any]]:
        """Every picture in the outputs: its alt text, and its width in pixels (0 if it is broken)."""
        return self.page.locator(".jp-OutputArea img").evaluate_all(
            "images => images.map(image => ({alt: image.alt, width: image.naturalWidth}))"
        )

    def cell_with(self, label: str) -> Any:
        """The first cell with a control of that label."""
        return self.cells.filter(has=self.page.locator(f".widget-label:text-is('{label}')")).first

    def control(self, label: str) -> Any:
        """The element of the first control of that label that takes the keyboard."""
        control = (
            self.cell_with(label)
            .locator(".widget-inline-hbox")
            .filter(has=self.page.locator(f".widget-label:text-is('{label}')"))
        )
        return control.locator(".noUi-handle, select, input").first

    def picture_of(self, label: str) -> str:
        """The picture below the control of that label, as the address of its image."""
        return self.cell_with(label).locator(".jp-OutputArea img").first.get_attribute("src")

    def move(self, label: str, to: str = "ArrowRight", seconds: float = 60) -> None:
        """Choose `to` in a list, or press the key `to` on a slider, and wait until the picture below is another one."""
        before = self.picture_of(label)
        control = self.control(label)
        control.scroll_into_view_if_needed()
        if control.evaluate("element => element.tagName") == "SELECT":
            control.select_option(to)  # the arrow keys are JupyterLab's: they go from cell to cell
        else:
            control.press(to)
        deadline = time.monotonic() + seconds
        while self.picture_of(label) == before:
            if time.monotonic() > deadline:
                pytest.fail(f"the picture has not changed {seconds:g} s after '{to}' on '{label}'")
            self.page.wait_for_timeout(100)

    def screenshot(self, name: str, label: str = "") -> Path:
        """Keep how the notebook looks now, scrolled to the control of that label."""
        if label:
            self.control(label).scroll_into_view_if_needed()
        return screenshot(self.page, name)
