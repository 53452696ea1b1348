"""google.colab in a kernel, and a page in a real Chromium that answers as Colab's does.

What the page gives must arrive in Python, and what Python gives must arrive in the page: a secret's value, the bytes
of a picked file, a downloaded file on the browser's disk, a table, a widget that answers, TensorBoard's own page.
And where nothing comes (no such secret, not granted, a page that is gone, a user who stops the cell), it is said.
COLAB_LOCAL_TEST_PICTURES names a folder in which the screenshots are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Installed
from tests.support.browsers import ORIGIN, Chromium, colab_page, need_browser, poll
from tests.support.jupyter_servers import Running, serve, serve_lab

SERVERS: dict[str, Any] = {"notebook": serve, "lab": serve_lab}
PLACES = [("notebook", "direct"), ("notebook", "http_over_ws"), ("lab", "direct"), ("lab", "http_over_ws")]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    need_browser("chromium")
    with colab_page() as port:
        browser = Chromium(tmp_path_factory.mktemp("chromium"), port)
        try:
            browser.permit("granted")
            yield browser
        finally:
            browser.close()


class Page:
    """A notebook in the page, and its user."""

    def __init__(self, browser: Chromium, running: Running, transport: str) -> None:
        self.browser, self.home, self.count = browser, running.home, 0
        browser.open(f"{ORIGIN}/notebook.html")
        browser.evaluate(f"openNotebook({json.dumps(running.url)}, {json.dumps(transport)})")

    def start(self, code: str) -> int:
        """Run a cell without waiting; return its number."""
        self.browser.evaluate(f"runCell({json.dumps(code)})")
        self.count += 1
        return self.count - 1

    def see(self, script: str, number: int = -1) -> Any:
        """Return the value of `script` in a cell's output, where `body` is its body."""
        cell = f"[...document.querySelectorAll('section')].at({number})"
        body = f"{cell}.lastChild.contentDocument?.body"  # none before its frame is there
        return self.browser.evaluate(f"((section, body) => body && ({script}))({cell}, {body})")

    def wait(self, script: str, what: str, timeout: float = 120) -> Any:
        """Wait until `script` gives something in the last cell's output, and return it."""
        return poll(lambda: self.see(script) or None, what, timeout)

    def end(self) -> tuple[str, str]:
        """Wait for the last cell's end; return its state (done, failed) and the text that it shows."""
        state = self.wait("section.dataset.state !== 'busy' && section.dataset.state", "the cell did not end", 300)
        return state, self.see("body.innerText")

    def run(self, code: str) -> str:
        """Run a cell that does not fail; return the text that it shows."""
        self.start(code)
        state, text = self.end()
        assert state == "done", text
        return text

    def refused(self, code: str) -> str:
        """Run a cell that fails; return the text that it shows."""
        self.start(code)
        state, text = self.end()
        assert state == "failed", text
        return text

    def keep_picture(self, name: str) -> None:
        """Keep a screenshot where a person wants to look at it."""
        folder = os.environ.get("COLAB_LOCAL_TEST_PICTURES")
        if folder:
            self.browser.screenshot(Path(folder) / f"{name}.png", height=3600)
            time.sleep(3)  # a frame of another site is drawn once it is in sight
            self.browser.screenshot(Path(folder) / f"{name}.png", height=3600)


@pytest.fixture(params=PLACES, ids="-".join, scope="module")
def page(request: Any, installed: Installed, chromium: Chromium, tmp_path_factory: Any) -> Iterator[Page]:
    """A notebook on Notebook 6 and on JupyterLab, over both transports."""
    server, transport = request.param
    with SERVERS[server](installed.prefix, tmp_path_factory.mktemp(server)) as running:
        opened = Page(chromium, running, transport)
        yield opened
        chromium.evaluate("notebook.close()")


def test_secrets(page: Page) -> None:
    secrets = {"KEY": {"payload": "wért", "access": True}, "MINE": {"payload": "hidden", "access": False}}
    page.browser.evaluate(f"Object.assign(user.secrets, {json.dumps(secrets)}), null")
    assert page.run("from google.colab import userdata\nprint(userdata.get('KEY'))") == "wért\n"
    refused = page.refused("userdata.get('MINE')")
    assert "NotebookAccessError: Notebook does not have access to secret MINE" in refused and "hidden" not in refused
    assert "SecretNotFoundError: Secret NONE does not exist." in page.refused("userdata.get('NONE')")


def test_javascript(page: Page) -> None:
    page.run(
        "from google.colab import output\n"
        "value = output.eval_js('(async () => ({title: document.title, n: 6 * 7}))()')"
    )
    assert page.run("print(value)") == "{'title': '', 'n': 42}\n"
    page.run("output.eval_js('document.body.append(\"drawn\")', ignore_result=True)")
    page.wait("body.innerText.includes('drawn')", "the script did not run")
    assert "MessageError: ReferenceError: nothing is not defined" in page.refused("output.eval_js('nothing')")


def test_uploads(page: Page, tmp_path: Path) -> None:
    content = {"data.bin": bytes(range(256)) * 1200, "empty.txt": b""}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    page.start("from google.colab import files\nprint(sorted(files.upload()))")
    page.wait("body.querySelector('input[type=file]:enabled') && true", "no file chooser")
    chooser = "[...document.querySelectorAll('section')].at(-1).lastChild.contentDocument.querySelector('input')"
    page.browser.choose_files(chooser, *(tmp_path / name for name in content))
    state, text = page.end()
    assert (state, text.strip().endswith("['data.bin', 'empty.txt']")) == ("done", True), text
    assert "Saving data.bin to data.bin" in text
    assert {name: (page.home / name).read_bytes() for name in content} == content
    page.start("print(files.upload('other'))")
    page.wait("body.querySelector('button') && (body.querySelector('button').click(), true)", "no button to cancel")
    assert page.end()[1].strip().endswith("{}")
    assert list((page.home / "other").iterdir()) == []


def test_downloads(page: Page, tmp_path: Path) -> None:
    page.browser.download_to(tmp_path)
    page.run(
        "import hashlib, random\ndata = random.Random(1).randbytes(3_000_000)\nopen('big.bin', 'wb').write(data);"
    )
    sent = page.run(
        "from google.colab import files\nfiles.download('big.bin')\nprint(hashlib.sha256(data).hexdigest())"
    )
    got = tmp_path / "big.bin"
    poll(lambda: got.exists() or None, "Chromium has downloaded nothing")
    assert hashlib.sha256(got.read_bytes()).hexdigest() in sent
    assert "FileNotFoundError: Cannot find file: none" in page.refused("files.download('none')")


def test_tables(page: Page) -> None:
    page.start(
        "import pandas\nfrom google.colab import data_table\n"
        "table = pandas.DataFrame({'n': [1.5, float('nan')], 's': ['</script>', 'é']})\n"
        "data_table.DataTable(table, include_index=False)"
    )
    page.wait("body.querySelector('table.colab-data-table') && true", "no table")
    cells = "[...body.querySelectorAll('td')].map((cell) => cell.textContent)"
    assert page.see(cells) == ["1.5", "</script>", "nan", "é"]
    page.start("%load_ext google.colab.data_table\npandas.DataFrame({'a': [7]})")
    page.wait("body.querySelector('table.colab-data-table') && true", "no table of a DataFrame")
    assert "(number)" in page.see("body.querySelector('thead').textContent")


def test_widgets_and_progress_bars(page: Page) -> None:
    page.run(
        "import ipywidgets\nslider = ipywidgets.IntSlider(21, 0, 50)\n"
        "slider.observe(lambda change: open('moved', 'w').write(str(change['new'])), 'value')\nslider"
    )
    moved = "((input) => (input.value = 30, input.dispatchEvent(new Event('change')), true))"
    assert page.see("body.querySelector('input[type=range]').value") == "21"
    page.see(f"{moved}(body.querySelector('input'))")
    assert page.run("print(slider.value, open('moved').read())") == "30 30\n"
    page.run("from google.colab import output\noutput.enable_custom_widget_manager()\nslider")
    assert page.wait("body.innerText", "the custom manager did not draw").startswith(
        "custom manager: @jupyter-widgets/controls@"
    )
    page.run("output.disable_custom_widget_manager()\nslider")
    assert page.see("body.querySelector('input').value") == "30"
    bar = page.run("from tqdm.notebook import trange\nfor _ in trange(50): pass")
    assert "50/50" in bar
    assert page.see("body.querySelector('progress').value") == 50
    text = page.run("from tqdm import tqdm\nfor _ in tqdm(range(30)): pass")
    assert text.count("30/30") == 1 and "0/30" not in text.replace("30/30", ""), "one line, drawn over"


def test_keras_and_tensorboard(page: Page) -> None:
    text = page.run(
        "import keras, numpy as np\nmodel = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse')\nx = np.random.rand(640, 4)\n"
        "model.fit(x, x.sum(axis=1), epochs=2, callbacks=[keras.callbacks.TensorBoard('logs')]);"
    )
    assert "Epoch 2/2" in text
    assert text.count("20/20") == 2, "one line for each epoch, drawn over"
    page.start("%load_ext tensorboard\n%tensorboard --logdir logs --port 0 --host 127.0.0.1")
    address = page.wait("body.querySelector('iframe')?.src", "TensorBoard drew nothing")
    assert "tensorboardColab=true" in address, "it draws as on Colab's page"
    drawn = "document.querySelector('tb-webapp')?.innerText.includes('epoch_loss')"
    poll(lambda: page.browser.in_frame(address, drawn) or None, "TensorBoard drew no curve", timeout=60)
    page.keep_picture("colab-page")
    page.run(
        "import tensorboard.manager, os, signal\n"
        "[os.kill(one.pid, signal.SIGTERM) for one in tensorboard.manager.get_all()];"
    )


def test_a_page_that_does_not_answer(page: Page) -> None:
    """Its user has closed it, or gone offline: a secret is given up after a while; the rest can be interrupted."""
    page.browser.evaluate("user.answers = false, null")
    try:
        silent = page.refused("from google.colab import userdata\nuserdata.get('KEY')")
        assert "TimeoutException: Requesting secret KEY timed out: Colab's page did not answer in 10 s." in silent
        page.start("from google.colab import output\noutput.eval_js('1')")
        page.wait("section.dataset.asked", "nothing was asked")
        page.browser.evaluate("notebook.interrupt().then(() => null)")
        assert page.end() == ("failed", "KeyboardInterrupt: \n")
    finally:
        page.browser.evaluate("user.answers = true, null")
    assert page.run("print(output.eval_js('6*7'))") == "42\n", (
        "an answer that comes too late is not taken for the next"
    )


def test_a_user_who_stops_the_cell(page: Page) -> None:
    page.start("from google.colab import files\nfiles.upload()")
    page.wait("body.querySelector('input[type=file]:enabled') && true", "no file chooser")
    page.browser.evaluate("notebook.interrupt().then(() => null)")
    state, text = page.end()
    assert state == "failed" and "KeyboardInterrupt" in text
    assert page.run("print(6 * 7)") == "42\n"
