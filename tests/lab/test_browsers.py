"""Colab's two transports in real browsers: a public https page reaches a Jupyter server on the user's own machine.

Straight, and through an ssh tunnel to a host with a network of its own, with the same port on both sides and with
different ones. Where the user has denied the page access to this device, not one byte leaves the browser; where they
have allowed it, a cell's output is read in the page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import REPO, Installed, clean_environment, free_port
from tests.support.browsers import (
    BROWSERS,
    ORIGIN,
    Browser,
    Chromium,
    Firefox,
    colab_page,
    need_browser,
    poll,
    tap,
)
from tests.support.hosts import Lab, needs_root

TRANSPORTS = ["http_over_ws", "direct"]
ROUTES = ["straight", pytest.param("same_port", marks=needs_root), pytest.param("other_port", marks=needs_root)]
FIRST_REQUEST = {"http_over_ws": b"GET /http_over_websocket?", "direct": b"GET /api/colab/build-info?"}
# What a page is told of a request that Local Network Access stops: no more than of a broken line.
REFUSED = {
    ("chromium", "direct"): "Failed to fetch",
    ("firefox", "direct"): "NetworkError when attempting to fetch resource.",
    ("chromium", "http_over_ws"): "WebSocket closed with code 1006",
    ("firefox", "http_over_ws"): "WebSocket closed with code 1006",
}
WHERE = "import os\nprint(6 * 7, os.readlink('/proc/self/ns/net'))"  # a result, and the network it was computed in


@dataclasses.dataclass(frozen=True)
class Server:
    """A running Jupyter; url is what its user pastes into Colab, port the near end of it on this machine."""

    url: str

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port
        return port

    def at(self, port: int) -> Server:
        """Return the same server as it is reached through another local port."""
        return Server(self.url.replace(f":{self.port}/", f":{port}/"))


# --- servers ------------------------------------------------------------------------------------------------


def jupyter_command(installed: Installed, port: int, folder: Path, without: str = "") -> list[str]:
    """Return the printed Jupyter command for another port and folder.

    without: an option of the printed command to leave out, as a user would who forgot it.
    """
    argv = [a for a in installed.argv if not a.startswith(("--port=", "--notebook-dir="))]
    kept = [a for a in argv if not (without and without in a)]
    assert not without or len(kept) < len(argv), f"the printed command has no {without}"
    return [*kept, f"--port={port}", f"--notebook-dir={folder}"]


def run_jupyter(argv: list[str], env: dict[str, str], folder: Path, port: int) -> Iterator[Server]:
    """Run Jupyter while the generator lives; yield it once it has printed its URL."""
    log = folder / "jupyter.log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=folder)

    def look() -> Server | None:
        text = log.read_text(errors="replace")
        found = re.search(rf"http://localhost:{port}/\?token=\w+", text)
        assert found or process.poll() is None, text[-3000:]
        return Server(found.group()) if found else None

    try:
        yield poll(look, "Jupyter printed no URL")
    finally:
        process.terminate()
        process.wait(30)


def here(installed: Installed, folder: Path, without: str = "") -> Iterator[Server]:
    """Run Jupyter on this machine, the user's own."""
    port = free_port()
    yield from run_jupyter(jupyter_command(installed, port, folder, without), clean_environment(folder), folder, port)


@pytest.fixture(scope="module")
def straight(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Jupyter on the user's own machine."""
    yield from here(installed, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def no_credentials(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Jupyter on the user's own machine, without the option that the direct transport needs."""
    yield from here(installed, tmp_path_factory.mktemp("no_credentials"), without="allow_credentials")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        made.host("gpubox")
        yield made


@pytest.fixture(scope="module")
def same_port(installed: Installed, lab: Lab) -> Iterator[Server]:
    """Jupyter on a host with its own network, behind `ssh -L PORT:localhost:PORT`."""
    box = lab.machines["gpubox"]
    port = free_port()
    argv = box.enter(jupyter_command(installed, port, box.home))
    for server in run_jupyter(argv, clean_environment(box.home), box.home, port):
        with tunnel(lab, port, port):
            yield server


@pytest.fixture(scope="module")
def other_port(lab: Lab, same_port: Server) -> Iterator[Server]:
    """The same Jupyter behind `ssh -L OTHER:localhost:PORT`, the case in which the 2018 instructions failed."""
    near = free_port()
    with tunnel(lab, near, same_port.port):
        yield same_port.at(near)


@contextlib.contextmanager
def tunnel(lab: Lab, near: int, far: int) -> Iterator[None]:
    """Run `ssh -L near:localhost:far` to the lab's host."""
    ssh = lab.ssh(lab.machines["gpubox"])
    argv = [*ssh, "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"localhost:{near}:localhost:{far}"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def look() -> bool | None:
        assert process.poll() is None, "ssh ended at once"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", near), timeout=5):
            return True
        return None

    try:
        poll(look, "ssh opened no tunnel")
        yield
    finally:
        process.terminate()
        process.wait(30)


# --- browsers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_port() -> Iterator[int]:
    with colab_page() as port:
        yield port


def running(name: str, page_port: int, folder: Path) -> Iterator[Browser]:
    need_browser(name)
    browser = BROWSERS[name](folder, page_port)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def chromium(page_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from running("chromium", page_port, tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="module")
def firefox(page_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from running("firefox", page_port, tmp_path_factory.mktemp("firefox"))


@pytest.fixture(scope="module", params=sorted(BROWSERS))
def browser(request: pytest.FixtureRequest) -> Browser:
    started: Browser = request.getfixturevalue(request.param)
    return started


@pytest.fixture
def guarded(browser: Browser) -> Iterator[Browser]:
    """A browser that asks for WebSockets too: Chromium does, Firefox 153 has it behind a preference that is off."""
    if not isinstance(browser, Firefox):
        yield browser
        return
    browser.preference("network.lna.websocket.enabled", True)
    yield browser
    browser.preference("network.lna.websocket.enabled", False)


# --- what a user does in the page ---------------------------------------------------------------------------


def start(browser: Browser, server: Server, transport: str) -> None:
    """Fill the form of the page that is shown and press the button."""
    fields = json.dumps({"url": server.url, "transport": transport, "cell": WHERE})
    browser.evaluate(f"Object.entries({fields}).forEach(([id, text]) => document.getElementById(id).value = text)")
    browser.evaluate("document.getElementById('connect').click()")


def outcome(browser: Browser) -> tuple[str, str]:
    """Wait for the page to succeed or fail; return its state and the text that the user then sees there."""

    def look() -> str | None:
        state = browser.evaluate("document.getElementById('state').dataset.state")
        return state if state in ("done", "failed") else None

    state = poll(look, "the page neither connected nor failed", timeout=300)
    shown = "output" if state == "done" else "state"
    return state, browser.evaluate(f"document.getElementById('{shown}').textContent")


def run_cell(browser: Browser, server: Server, transport: str) -> tuple[str, str]:
    """Load the page anew, connect, run a cell; return the page's state and what it shows."""
    browser.open(f"{ORIGIN}/")
    start(browser, server, transport)
    return outcome(browser)


def assert_ran(seen: tuple[str, str], elsewhere: bool = False) -> None:
    """Check that the page shows what Python computed, in another network than this one where the server is remote."""
    state, text = seen
    assert state == "done", text
    result, network = text.split()
    assert result == "42"
    assert (network != os.readlink("/proc/self/ns/net")) == elsewhere  # noqa: PTH115  (a name, not a file)


def assert_refused(browser: Browser, seen: tuple[str, str], transport: str) -> None:
    """Check that the page failed at its first request, and in the words of a request that was stopped."""
    words = REFUSED[browser.name, transport]
    assert seen == ("failed", f"Unable to connect to the runtime. reach the server: {words}")


# --- the cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("route", ROUTES)
def test_a_cell_runs_once_allowed(
    guarded: Browser, route: str, transport: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(route)
    guarded.permit("granted")
    assert_ran(run_cell(guarded, server, transport), elsewhere=route != "straight")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("route", [ROUTES[0], ROUTES[2]])
def test_nothing_leaves_the_browser_when_denied(
    guarded: Browser, route: str, transport: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(route)
    with tap(server.port) as line:
        guarded.permit("denied")
        assert_refused(guarded, run_cell(guarded, server.at(line.port), transport), transport)
        assert line.received == b""
        # The same line does carry, and show, what the browser sends once it is allowed to.
        guarded.permit("granted")
        assert_ran(run_cell(guarded, server.at(line.port), transport), elsewhere=route != "straight")
        assert FIRST_REQUEST[transport] in line.received


def test_firefox_asks_for_the_direct_transport_alone(firefox: Browser, straight: Server) -> None:
    """As Firefox ESR comes, a WebSocket needs no permission: the older transport works even where it is denied."""
    firefox.permit("denied")
    assert_ran(run_cell(firefox, straight, "http_over_ws"))
    assert_refused(firefox, run_cell(firefox, straight, "direct"), "direct")


def test_the_browser_holds_the_server_to_cors(browser: Browser, no_credentials: Server) -> None:
    """Allowed by its user, the page still gets nothing over the direct transport without allow_credentials."""
    browser.permit("granted")
    assert_refused(browser, run_cell(browser, no_credentials, "direct"), "direct")
    assert_ran(run_cell(browser, no_credentials, "http_over_ws"))


# --- the browser's question, and what we tell its user ------------------------------------------------------

# What each browser calls things, as the doctor and docs/browsers.md have to call them.
WORDS = {
    "chromium": ("access other apps and services on this device", "Allow", "Apps on device"),
    "firefox": ("access other apps and services on this device", "Allow", "Access this device", "Blocked"),
}


def test_chromium_words(chromium: Chromium) -> None:
    """Headless Chromium shows no prompt; its words are looked up where it has them."""
    texts = chromium.words()
    question, *others = WORDS["chromium"]
    for text in (question[0].upper() + question[1:], *others):
        assert text.encode() in texts, text


def test_firefox_prompt(firefox: Firefox, straight: Server) -> None:
    """A user who clicks Block, sees why it fails, reloads the page and then clicks Allow."""
    question, allow, setting, blocked = WORDS["firefox"]
    firefox.permit("prompt")
    firefox.open(f"{ORIGIN}/")
    start(firefox, straight, "direct")
    assert poll(firefox.prompt, "Firefox did not ask") == {
        "text": f"colab.research.google.com wants to {question}.",
        "allow": allow,
        "block": "Block",
        "remember": "Remember my choice for this site",
    }
    firefox.click("block")
    assert_refused(firefox, outcome(firefox), "direct")
    assert firefox.icons() == [f"{setting}: {blocked} Temporarily"]

    firefox.reload()
    start(firefox, straight, "direct")
    poll(firefox.prompt, "Firefox did not ask again")
    firefox.click("allow")
    assert_ran(outcome(firefox))


def test_the_doctor_knows_that_the_browser_is_left(browser: Browser, straight: Server, tmp_path: Path) -> None:
    """While the page fails for want of permission, the doctor finds this side sound and says what to click."""
    browser.permit("denied")
    assert_refused(browser, run_cell(browser, straight, "direct"), "direct")
    doctor = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "doctor.py"), "-"],  # the address on stdin, for its token's sake
        input=straight.url,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(tmp_path),
    )
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    for text in WORDS[browser.name]:
        assert text in doctor.stdout


def test_the_page_about_browsers_tells_what_to_click() -> None:
    text = (REPO / "docs" / "browsers.md").read_text()
    for words in WORDS.values():
        for word in words:
            assert word.lower() in text.lower(), word
