"""The scripts of google.colab in a real browser: a file goes to Python in pieces, and comes back as a download."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.support.browsers import Chromium, need_browser, poll

PACKAGE = REPO / "environments" / "jupyter" / "site-packages" / "google" / "colab"
CONTENT = bytes(range(256)) * 1000  # more than two pieces

# What files.upload() puts into the cell's output, and a user who picks two files.
FORM = '<input type="file" id="chooser" multiple disabled><output id="listing"></output>'
PICK = """
(() => {
  const bytes = Uint8Array.from(atob(CONTENT), (c) => c.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], "big.bin"));
  files.items.add(new File([], "empty.txt"));
  const input = document.getElementById("chooser");
  if (input.disabled) return false;
  input.files = files.files;
  input.dispatchEvent(new Event("change"));
  return true;
})()
"""
# Colab's side of a download: a comm whose messages hold a piece each, and a link that is clicked.
KERNEL = """
globalThis.google = { colab: { kernel: { accessAllowed: true, comms: { open: async (id) => {
  globalThis.opened = id;
  globalThis.sent = 0;
  return { send: () => sent++, messages: (async function* () {
    for (const text of ["one,", "two"]) yield { buffers: [new TextEncoder().encode(text).buffer] };
  })() };
} } } } };
globalThis.given = null;
HTMLAnchorElement.prototype.click = function () {
  given = { name: this.download, text: fetch(this.href).then((answer) => answer.text()) };
};
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    need_browser("chromium")
    (tmp_path / "chromium").mkdir()
    opened = Chromium(tmp_path / "chromium", 1)
    yield opened
    opened.close()


def test_files_come_in_pieces(browser: Chromium) -> None:
    browser.evaluate(f"document.body.innerHTML = {json.dumps(FORM)}")
    browser.evaluate((PACKAGE / "_files.js").read_text() + "; null")
    browser.evaluate("void (globalThis.first = google.colab._files._uploadFiles('chooser', 'listing'))")
    assert browser.evaluate("document.querySelector('button').textContent") == "Cancel upload"
    poll(
        lambda: browser.evaluate(PICK.replace("CONTENT", json.dumps(base64.b64encode(CONTENT).decode()))) or None, ""
    )
    answer = browser.evaluate("first")
    assert answer == {"action": "starting"}
    received: dict[str, bytes] = {}
    while answer["action"] != "complete":
        if answer["action"] == "append":
            piece = base64.b64decode(answer["data"], validate=True)
            assert len(piece) <= 96 * 1024
            received[answer["file"]] = received.get(answer["file"], b"") + piece
        answer = browser.evaluate("google.colab._files._uploadFilesContinue('listing')")
    assert received == {"big.bin": CONTENT, "empty.txt": b""}
    assert browser.evaluate("document.querySelector('button')") is None


def test_a_cancelled_upload_ends_at_once(browser: Chromium) -> None:
    browser.evaluate(f"document.body.innerHTML = {json.dumps(FORM)}")
    browser.evaluate((PACKAGE / "_files.js").read_text() + "; null")
    browser.evaluate("void (globalThis.first = google.colab._files._uploadFiles('chooser', 'listing'))")
    browser.evaluate("document.querySelector('button').click()")
    assert browser.evaluate("first") == {"action": "starting"}
    assert browser.evaluate("google.colab._files._uploadFilesContinue('listing')") == {"action": "complete"}


def test_a_download_is_put_together(browser: Chromium) -> None:
    browser.evaluate(KERNEL + "; null")
    script = (PACKAGE / "_download.js").read_text().strip()
    browser.evaluate(f'{script}("download_1", "a.csv", 7, document.body)')
    assert browser.evaluate("opened") == "download_1"
    assert browser.evaluate("sent") == 3, "one to begin, one for each piece"
    assert browser.evaluate("given.name") == "a.csv"
    assert browser.evaluate("given.text") == "one,two"
