"""Jupyter's own pages in a real browser: what notebooks of Colab use is seen on Notebook 6's page and in JupyterLab.

A notebook of Colab's idioms (tests/support/idioms.ipynb) is opened, run from top to bottom, and looked at.
COLAB_LOCAL_TEST_PICTURES names a folder in which the screenshots are kept.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, Installed
from tests.support.browsers import BrowserError, Chromium, need_browser, poll
from tests.support.jupyter_servers import Running, serve, serve_lab

IDIOMS = REPO / "tests" / "support" / "idioms.ipynb"
CELLS = sum(cell["cell_type"] == "code" for cell in json.loads(IDIOMS.read_text())["cells"])

# For each page: whether its kernel is ready, how many cells have a number, and how to run all of them.
NOTEBOOK = {
    "path": "notebooks",
    # The page's widget manager comes after its kernel: a slider that is made before it is lost.
    "ready": "window.Jupyter?.notebook?.kernel?.is_connected() && Jupyter.notebook._fully_loaded"
    " && 'jupyter.widget' in Jupyter.notebook.kernel.comm_manager.targets",
    "run": "Jupyter.notebook.execute_all_cells()",
    "done": "Jupyter.notebook.get_cells().filter((cell) => Number.isInteger(cell.input_prompt_number)).length",
    "output": ".output_subarea",
}
LAB = {
    "path": "lab/tree",
    # Nothing has the focus in a browser without a screen: the notebook is found, and made the current one.
    "ready": "globalThis.jupyterapp && (globalThis.book = [...jupyterapp.shell.widgets('main')].find("
    "(one) => one.sessionContext?.session?.kernel?.status === 'idle'))",
    "run": "void (jupyterapp.shell.activateById(book.id),"
    " setTimeout(() => jupyterapp.commands.execute('notebook:run-all-cells'), 1000))",
    "done": "[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]"
    ".filter((prompt) => /\\[\\d+\\]/.test(prompt.textContent)).length",
    "output": ".jp-OutputArea-output",
}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    need_browser("chromium")
    folder = tmp_path / "chromium"
    folder.mkdir()
    opened = Chromium(folder, 1)
    opened.screenshot(tmp_path / "empty.png", height=12000)  # JupyterLab draws only the cells that are in sight
    yield opened
    opened.close()


def run_all(browser: Chromium, running: Running, page: dict[str, str]) -> None:
    """Open the notebook on `page` and run it to its end."""
    shutil.copy(IDIOMS, running.home / "idioms.ipynb")
    browser.open(f"http://localhost:{running.port}/{page['path']}/idioms.ipynb?token={running.token}")
    poll(lambda: browser.evaluate(f"!!({page['ready']})") or None, "the notebook is not ready")
    time.sleep(3)  # the page makes its widget manager again when its kernel has answered; a person is no quicker
    browser.evaluate(page["run"])
    poll(
        lambda: browser.evaluate(page["done"]) >= CELLS or None,
        "the cells did not end",
        timeout=float(os.environ.get("T", "300")),
    )


def keep_picture(browser: Chromium, name: str) -> None:
    """Keep a screenshot where a person wants to look at it."""
    folder = os.environ.get("COLAB_LOCAL_TEST_PICTURES")
    if folder:
        browser.screenshot(Path(folder) / f"{name}.png", height=4200)


def texts(browser: Chromium, selector: str) -> str:
    """Return all text in the elements that `selector` names."""
    shown = f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText).join('\\n')"
    return str(browser.evaluate(shown))


def count(browser: Chromium, selector: str) -> int:
    return int(browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))


@pytest.mark.parametrize("kind", ["notebook", "lab"])
def test_idioms_are_seen(installed: Installed, browser: Chromium, kind: str, tmp_path: Path) -> None:
    page = NOTEBOOK if kind == "notebook" else LAB
    start: Any = serve if kind == "notebook" else serve_lab
    flags = [] if kind == "notebook" else ["--LabApp.expose_app_in_browser=True"]
    with start(installed.prefix, tmp_path / "home", *flags) as running:
        run_all(browser, running, page)
        output = page["output"]

        def shown(selector: str) -> int | None:
            return count(browser, f"{output} {selector}") or None

        slider = ".widget-slider .ui-slider, .widget-slider .noUi-target"
        try:
            poll(lambda: shown(slider), "no slider", timeout=60)
        except BrowserError:  # made before the page's widget manager was there: a person runs the cells again
            browser.evaluate(page["run"])
            poll(lambda: shown(slider), "no slider", timeout=120)
        poll(lambda: "twice 42" in texts(browser, output) or None, "the slider's function did not run", timeout=60)
        keep_picture(browser, kind)
        said = texts(browser, output)
        assert "javascript error" not in said.lower()
        for text in ("in Colab: True", "TensorFlow 2.", "Epoch 3/3", "Total params", "twice 42", "50/50"):
            assert text in said, text
        assert count(browser, f"{output} table") >= 2, "pandas' tables"
        assert count(browser, f"{output} img") >= 2, "a plot and a picture"
        assert count(browser, f"{output} .progress-bar, {output} .widget-hprogress progress") >= 1, "tqdm's bar"
        # TensorBoard's own page in its frame, not only the frame.
        frames = f"[...document.querySelectorAll({json.dumps(output + ' iframe')})].map((one) => one.src)"
        (address,) = browser.evaluate(frames)
        loaded = "!!document.querySelector('tb-webapp')"
        poll(lambda: browser.in_frame(address, loaded) or None, "TensorBoard did not load", timeout=60)
        # The slider is alive: Python answers when it is moved.
        browser.evaluate("document.querySelector('.ui-slider-handle').focus()")
        browser.press("ArrowRight", 39)
        poll(lambda: "twice 44" in texts(browser, output) or None, "the slider moved nothing", timeout=60)
