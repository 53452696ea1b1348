"""The policy files of docs/browsers.md, as they stand there, in the real browsers of this machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, Installed, clean_environment, free_port
from tests.support.browsers import ORIGIN, Browser, BrowserError, Chromium, Firefox, colab_page, need_browser, poll
from tests.support.hosts import needs_root
from tests.support.jupyter_servers import start as start_jupyter

pytestmark = needs_root

PLACES = {"chromium": "chromium/policies/managed/colab-local.json", "firefox-esr": "firefox/policies/policies.json"}
BROWSERS: dict[str, Callable[[Path, int], Browser]] = {"chromium": Chromium, "firefox-esr": Firefox}
# A browser whose /etc is its own. Nothing of this machine's is touched: what is laid over /etc ends with the process.
WRAPPER = """#!/bin/sh
exec unshare --mount sh -c '
mount -t overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" overlay /etc && exec {program} "$@"
' {folder} "$@"
"""


def documented() -> dict[str, str]:
    """Return {browser: policy} as docs/browsers.md shows them."""
    blocks = re.findall(r"```json\n(.*?)```", (REPO / "docs" / "browsers.md").read_text(), re.DOTALL)
    return dict(zip(("chromium", "firefox-esr"), blocks, strict=True))


@pytest.fixture(scope="module")
def url(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Jupyter on this machine."""
    port, home = free_port(), tmp_path_factory.mktemp("home")
    argv = [word for word in installed.argv if not word.startswith(("--port=", "--notebook-dir="))]
    with start_jupyter([*argv, f"--port={port}", f"--notebook-dir={home}"], home, port) as running:
        yield running.url


def open_browser(name: str, policy: str, folder: Path, page_port: int, monkeypatch: pytest.MonkeyPatch) -> Browser:
    """Start a browser under a policy; an empty one stands for none."""
    program = shutil.which(name)
    assert program, f"no {name}"
    file = folder / "upper" / PLACES[name]
    file.parent.mkdir(parents=True)
    if policy:
        file.write_text(policy)
    for part in ("work", "bin"):
        (folder / part).mkdir()
    wrapper = folder / "bin" / name
    wrapper.write_text(WRAPPER.format(program=program, folder=folder))
    wrapper.chmod(0o755)
    profile = folder / "home"
    profile.mkdir()
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{clean_environment(folder)['PATH']}")
    return BROWSERS[name](profile, page_port)


def connected(browser: Browser, url: str, transport: str) -> bool:
    """Press the page's button as a user who answers no question; return whether the cell ran."""
    browser.open(f"{ORIGIN}/")
    fields = json.dumps({"url": url, "transport": transport, "cell": "print(6 * 7)"})
    browser.evaluate(f"Object.entries({fields}).forEach(([id, text]) => document.getElementById(id).value = text)")
    browser.evaluate("document.getElementById('connect').click()")

    def look() -> str | None:
        state = browser.evaluate("document.getElementById('state').dataset.state")
        return state if state in ("done", "failed") else None

    try:
        return poll(look, "waits for an answer to the question", timeout=25) == "done"
    except BrowserError:
        return False


@pytest.mark.parametrize("name", BROWSERS)
def test_the_documented_policy_answers_the_question(
    name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_browser(name.partition("-")[0])
    policy = documented()[name]
    json.loads(policy)
    with colab_page() as page_port:
        for given, expected in (("", False), (policy, True)):
            folder = tmp_path / ("with" if given else "without")
            folder.mkdir()
            browser = open_browser(name, given, folder, page_port, monkeypatch)
            try:
                assert connected(browser, url, "direct") is expected, given
                if given:
                    assert connected(browser, url, "http_over_ws")
            finally:
                browser.close()
                monkeypatch.undo()
