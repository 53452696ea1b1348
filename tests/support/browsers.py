"""Real browsers for the tests: Debian's Chromium and Firefox ESR, headless, on a page that stands for Colab's.

The page is served over https on loopback as https://colab.research.google.com, and each browser is told to take that
server for a *public* one: a page from loopback may reach loopback freely, so without this nothing would be proven
about Local Network Access, the permission that a public page needs before it may speak to the user's own machine.

Chromium is driven by the DevTools protocol, Firefox by Marionette; both are a line of JSON to a loopback port, so no
driver program is needed that could lag behind its browser.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import itertools
import json
import os
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import trustme
from websockets.sync.client import ClientConnection, connect

HOST = "colab.research.google.com"
STATIC = "ssl.gstatic.com"  # where Colab's page has its scripts for tables and widgets
ORIGIN = f"https://{HOST}"
PAGES = Path(__file__).resolve().parent / "pages"

START_TIMEOUT = 120.0  # seconds; a browser's first start on a loaded machine
ANSWER_TIMEOUT = 120.0  # seconds; the slowest answer is a page's, which waits for a kernel

T = TypeVar("T")


class BrowserError(Exception):
    """The browser, or the page in it, refused what the test asked for."""


class Browser(Protocol):
    """What the tests ask of a browser: one tab and what its user has answered to the permission prompt."""

    name: str

    def open(self, url: str) -> None:
        """Load `url` in the tab and wait for it."""

    def evaluate(self, script: str) -> Any:
        """Return the JSON value of a JavaScript expression in the page."""

    def permit(self, answer: str) -> None:
        """Set the page's permission to reach this machine: "granted", "denied" or "prompt"."""

    def close(self) -> None:
        """End the browser."""


def poll(look: Callable[[], T | None], what: str, timeout: float = START_TIMEOUT) -> T:
    """Return the first answer of `look` that is not None, or raise BrowserError(what) after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        answer = look()
        if answer is not None:
            return answer
        if time.monotonic() > end:
            raise BrowserError(f"{what}: nothing in {timeout:.0f} s")
        time.sleep(0.05)


def mark_old_page(browser: Browser) -> None:
    """Leave a mark that a page loaded from now on does not have."""
    browser.evaluate("window.isOld = true")


def wait_for_new_page(browser: Browser) -> None:
    """Wait until the tab shows, completely, another page than the marked one."""

    def look() -> bool | None:
        with contextlib.suppress(BrowserError):  # in between there is no page to ask
            return browser.evaluate("!window.isOld && document.readyState === 'complete'") or None
        return None

    poll(look, "the page did not load")


# --- the page -----------------------------------------------------------------------------------------------


class _Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        """Let pages of every origin import the scripts, as Google's static host does."""
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a failing test shows the page's own words."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a handshake that a browser broke off, as it does at its first look at our certificate."""


@contextlib.contextmanager
def colab_page() -> Iterator[int]:
    """Serve tests/pages over https with a throw-away certificate for Colab's host; yield the loopback port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(HOST).configure_cert(context)
    handler = functools.partial(_Handler, directory=str(PAGES))
    server = _Server(("127.0.0.1", 0), handler)
    # The handshake belongs to the connection's own thread: a browser's idle connection must not hold the others up.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- what a server behind it would see ----------------------------------------------------------------------


class Tap(socketserver.ThreadingTCPServer):
    """A relay on loopback to a local port, which keeps every byte that it was sent.

    Jupyter's log is no witness for silence: it leaves out requests it expects to fail.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self._behind = ("127.0.0.1", port)
        self.port = int(self.server_address[1])
        self.received = b""

    def finish_request(self, request: Any, client_address: Any) -> None:
        with socket.create_connection(self._behind) as behind:
            answers = threading.Thread(target=self._relay, args=(behind, request), daemon=True)
            answers.start()
            self._relay(request, behind, keep=True)
            answers.join()

    def _relay(self, source: socket.socket, target: socket.socket, keep: bool = False) -> None:
        with contextlib.suppress(OSError):  # either side may break off
            while data := source.recv(65536):
                if keep:
                    self.received += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def tap(port: int) -> Iterator[Tap]:
    """Run a Tap in front of the loopback port `port`."""
    with Tap(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# --- starting and ending ------------------------------------------------------------------------------------


class _Process:
    """A browser's processes: their own session, home and log, all in `folder`."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self.log = folder / "log.txt"
        kept = ("PATH", "LANG", "TMPDIR")
        clean = {name: os.environ[name] for name in kept if name in os.environ}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**clean, "HOME": str(folder), "LC_ALL": "C.UTF-8"},
            )

    def port_from(self, file: Path) -> int:
        """Return the port that the browser wrote to the first line of `file` once it listened."""

        def look() -> int | None:
            if self.process.poll() is not None:
                raise BrowserError(f"the browser ended at once:\n{self.log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
                return int(file.read_text().split()[0])
            return None

        return poll(look, f"no {file.name}")

    def program(self) -> Path:
        """Return the file that runs, which is not the wrapper on PATH."""
        return Path(f"/proc/{self.process.pid}/exe").resolve()

    def end(self) -> None:
        """Wait for the browser to end, and end it when it does not: the whole session that it leads, nothing else."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


# --- Chromium -----------------------------------------------------------------------------------------------


class Chromium:
    """Chromium with a fresh profile in `folder`; the page's server listens on loopback port `page_port`."""

    name = "chromium"

    def __init__(self, folder: Path, page_port: int) -> None:
        argv = [
            "chromium",
            f"--user-data-dir={folder / 'profile'}",
            "--remote-debugging-port=0",
            # Every name but these leads nowhere, so the browser reaches nothing beyond loopback.
            f"--host-resolver-rules=MAP {HOST}:443 127.0.0.1:{page_port}, MAP {STATIC}:443 127.0.0.1:{page_port}, "
            "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
            f"--ip-address-space-overrides=127.0.0.1:{page_port}=public",
            "--ignore-certificate-errors",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-default-browser-check",
            "--no-first-run",
            "--password-store=basic",
            "--headless=new",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium's sandbox refuses to start as root
            "about:blank",
        ]
        self._process = _Process(argv, folder)
        self._ids = itertools.count(1)
        self._session = ""
        self._opened = contextlib.ExitStack()
        try:
            port = self._process.port_from(folder / "profile" / "DevToolsActivePort")
            self._socket = self._opened.enter_context(self._connect(port))
            self._session = self._attach()
        except BaseException:
            self.close()
            raise

    def _connect(self, port: int) -> ClientConnection:
        """Return the connection to the browser, whose exact address its DevTools port tells."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/version", timeout=ANSWER_TIMEOUT) as answer:
            url = json.load(answer)["webSocketDebuggerUrl"]
        return connect(url, max_size=None, proxy=None)

    def _attach(self) -> str:
        """Return the session that speaks to the tab the browser started with."""

        def tab() -> str | None:
            targets = self._call("Target.getTargets")["targetInfos"]
            return next((t["targetId"] for t in targets if t["type"] == "page"), None)

        session: str = self._call("Target.attachToTarget", targetId=poll(tab, "no tab"), flatten=True)["sessionId"]
        return session

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        wanted = next(self._ids)
        message = {"id": wanted, "method": method, "params": params}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER_TIMEOUT))
            if answer.get("id") != wanted:
                continue  # an event, or a late answer
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error'].get('message')}")
            result: dict[str, Any] = answer["result"]
            return result

    def open(self, url: str) -> None:
        mark_old_page(self)
        error = self._call("Page.navigate", url=url).get("errorText")
        if error:
            raise BrowserError(f"{url}: {error}")
        wait_for_new_page(self)

    def evaluate(self, script: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"].get("exception", {}).get("description")))
        return answer["result"].get("value")

    def choose_files(self, element: str, *paths: Path) -> None:
        """Pick files, as in the dialog of the file input that the JavaScript expression `element` gives."""
        found = self._call("Runtime.evaluate", expression=element)["result"]
        self._call("DOM.setFileInputFiles", files=[str(path) for path in paths], objectId=found["objectId"])

    def download_to(self, folder: Path) -> None:
        """Let downloads go to `folder` without a question."""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def press(self, key: str, number: int) -> None:
        """Press a key where the focus is; number: its virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=number)

    def screenshot(self, path: Path, width: int = 1200, height: int = 2400) -> None:
        """Save what the tab shows in a window of this size, in pixels, as a PNG file."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def in_frame(self, url: str, script: str) -> Any:
        """Return the value of `script` in the frame whose address begins with `url`, or None without one."""
        frames = [self._call("Page.getFrameTree")["frameTree"]]
        for tree in frames:
            frames += tree.get("childFrames", [])
        for tree in frames:
            if tree["frame"]["url"].startswith(url):
                world = self._call("Page.createIsolatedWorld", frameId=tree["frame"]["id"])["executionContextId"]
                answer = self._call("Runtime.evaluate", expression=script, contextId=world, returnByValue=True)
                return answer["result"].get("value")
        return self._in_frame_of_another_site(url, script)

    def _in_frame_of_another_site(self, url: str, script: str) -> Any:
        """Do what in_frame does for a frame that Chromium has in a process of its own."""
        for target in self._call("Target.getTargets")["targetInfos"]:
            if target["type"] == "iframe" and target["url"].startswith(url):
                tab, self._session = self._session, ""
                try:
                    attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
                    self._session = attached["sessionId"]
                    answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
                    return answer["result"].get("value")
                finally:
                    self._session = tab
        return None

    def words(self) -> bytes:
        """Return the file that holds every text this browser shows in English (UTF-8 among other bytes)."""
        return (self._process.program().parent / "locales" / "en-US.pak").read_bytes()

    def permit(self, answer: str) -> None:
        self._call("Browser.setPermission", permission={"name": "loopback-network"}, setting=answer, origin=ORIGIN)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._call("Browser.close")
        with contextlib.suppress(Exception):
            self._opened.close()
        self._process.end()


# --- Firefox ------------------------------------------------------------------------------------------------


class Firefox:
    """Firefox ESR with a fresh profile in `folder`; the page's server listens on loopback port `page_port`."""

    name = "firefox"

    def __init__(self, folder: Path, page_port: int) -> None:
        profile = folder / "profile"
        profile.mkdir()
        prefs: dict[str, str | int | bool] = {
            "marionette.port": 0,  # any free one, written to MarionetteActivePort
            # Colab's name leads to loopback, its port to the page, and every other name nowhere.
            "network.dns.localDomains": HOST,
            "network.dns.disabled": True,
            "network.socket.forcePort": f"443={page_port}",
            "network.lna.address_space.public.override": f"127.0.0.1:{page_port}",
            # The throw-away certificate: Google's preloaded keys and HSTS would refuse it for good.
            "network.stricttransportsecurity.preloadlist": False,
            "security.cert_pinning.enforcement_level": 0,
            "security.notification_enable_delay": 0,  # ms in which a prompt ignores clicks that came too soon
            "app.update.disabledForTesting": True,
            "browser.shell.checkDefaultBrowser": False,
            "datareporting.policy.dataSubmissionEnabled": False,
            "network.captive-portal-service.enabled": False,
            "network.connectivity-service.enabled": False,
            "services.settings.server": "data:,",
        }
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in prefs.items()]
        (profile / "user.js").write_text("".join(lines))
        argv = ["firefox-esr", "--headless", "--no-remote", "--profile", str(profile)]
        # Permissions and the prompt belong to the browser's window, not to the page: hence the system access.
        self._process = _Process([*argv, "--marionette", "--remote-allow-system-access"], folder)
        self._ids = itertools.count(1)
        try:
            port = self._process.port_from(profile / "MarionetteActivePort")
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT)
            self._stream = self._socket.makefile("rb")
            self._receive()  # who speaks, and which version of the protocol
            self._call("WebDriver:NewSession", acceptInsecureCerts=True)
            self._call("WebDriver:SetTimeouts", script=int(ANSWER_TIMEOUT * 1000))
        except BaseException:
            self._process.end()
            raise

    def _receive(self) -> Any:
        """Read one message: its length in bytes, a colon, JSON."""
        length = b""
        while not length.endswith(b":"):
            byte = self._stream.read(1)
            if not byte:
                raise BrowserError("Firefox closed its Marionette connection")
            length += byte
        return json.loads(self._stream.read(int(length[:-1])))

    def _call(self, command: str, **params: Any) -> Any:
        wanted = next(self._ids)
        message = json.dumps([0, wanted, command, params]).encode()
        self._socket.sendall(b"%d:%s" % (len(message), message))
        while True:
            _, answered, error, result = self._receive()
            if answered != wanted:
                continue
            if error:
                raise BrowserError(f"{command}: {error['error']}: {error['message']}")
            return result.get("value") if isinstance(result, dict) and set(result) == {"value"} else result

    def open(self, url: str) -> None:
        self._call("WebDriver:Navigate", url=url)

    def evaluate(self, script: str) -> Any:
        return self._call("WebDriver:ExecuteScript", script=f"return ({script});", args=[])

    def chrome(self, script: str, *args: Any) -> Any:
        """Return the value of a function body that runs with the browser's own rights, its window as `window`."""
        self._call("Marionette:SetContext", value="chrome")
        try:
            return self._call("WebDriver:ExecuteScript", script=script, args=list(args))
        finally:
            self._call("Marionette:SetContext", value="content")

    def preference(self, name: str, value: bool) -> None:
        """Set a true-or-false preference of about:config."""
        self.chrome("Services.prefs.setBoolPref(...arguments);", name, value)

    def permit(self, answer: str) -> None:
        self.chrome(
            """
            const [origin, answer] = arguments;
            const principal = Services.scriptSecurityManager.createContentPrincipalFromOrigin(origin);
            const name = "loopback-network";
            Services.perms.removeFromPrincipal(principal, name);
            if (answer !== "prompt") {
              const { ALLOW_ACTION, DENY_ACTION } = Services.perms;
              Services.perms.addFromPrincipal(principal, name, answer === "granted" ? ALLOW_ACTION : DENY_ACTION);
            }
            """,
            ORIGIN,
            answer,
        )

    def prompt(self) -> dict[str, str] | None:
        """Return the words of the permission prompt on the screen: text, allow, block, remember; None without one."""
        words: dict[str, str] | None = self.chrome(
            """
            const shown = window.PopupNotifications.panel.querySelector("popupnotification");
            if (window.PopupNotifications.panel.state !== "open" || !shown) return null;
            return {
              text: shown.querySelector(".popup-notification-description").textContent,
              allow: shown.button.label,
              block: shown.secondaryButton.label,
              remember: shown.checkbox.label,
            };
            """
        )
        return words

    def click(self, button: str) -> None:
        """Click "allow" or "block" in the permission prompt."""
        self.chrome(
            """
            const shown = window.PopupNotifications.panel.querySelector("popupnotification");
            (arguments[0] === "allow" ? shown.button : shown.secondaryButton).click();
            """,
            button,
        )

    def icons(self) -> list[str]:
        """Open the panel behind the icons beside the address; return what it says of the page's permissions."""
        texts: list[str] = self.chrome(
            """
            window.gPermissionPanel.openPopup(new window.MouseEvent("click"));
            const items = window.document.querySelectorAll(".permission-popup-permission-item");
            const labels = (item) => Array.from(item.querySelectorAll("label"), (label) => label.textContent);
            return Array.from(items, (item) => labels(item).filter(Boolean).join(": "));
            """
        )
        return texts

    def reload(self) -> None:
        """Reload the page as its user does, with the button: that is when Firefox forgets a refusal."""
        mark_old_page(self)
        self.chrome("window.BrowserCommands.reload();")
        wait_for_new_page(self)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._call("Marionette:Quit", flags=["eForceQuit"])
        with contextlib.suppress(OSError):
            self._socket.close()
        self._process.end()


BROWSERS: dict[str, Callable[[Path, int], Browser]] = {"chromium": Chromium, "firefox": Firefox}
PROGRAMS = {"chromium": "chromium", "firefox": "firefox-esr"}


def need_browser(name: str) -> None:
    """Skip the test on a machine of somebody's own without this browser: ci/test.sh as root installs it."""
    if shutil.which(PROGRAMS[name]) is None:
        pytest.skip(f"{PROGRAMS[name]} is not installed: bash ci/test.sh as root does that")
