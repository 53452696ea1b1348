"""What the doctor looks at, step by step: the address, the server behind it, both transports, a kernel."""

from __future__ import annotations

import contextlib
import getpass
import http.client
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

from colab_local.base import documents
from colab_local.base.errors import EXIT_USAGE, Failure
from colab_local.base.network import free_port, holds_port, listeners, rivals
from colab_local.base.programs import child_environment
from colab_local.install.home import default_home, is_current, read_receipts
from colab_local.install.jupyter import DEFAULT_PORT, jupyter_argv
from colab_local.install.lockfiles import REPOSITORY
from colab_local.install.servers import Description, described_servers
from colab_local.laptop.colab_page import (
    ORIGIN,
    Answer,
    Closed,
    Failed,
    KernelEnded,
    Notebook,
    OverWebSocket,
    Refused,
    Runtime,
    http_request,
    open_transport,
    parse_url,
)
from colab_local.laptop.cures import Fault

CELL, CELL_PRINTS = "print(6 * 7)", "42"
# The second part of the cell: what a first cell of everybody's does, where the environment has it.
TENSORFLOW = """
import importlib.util
if importlib.util.find_spec("tensorflow"):
    import tensorflow
    print("tensorflow", tensorflow.__version__, tensorflow.__file__)
"""


# Asked in a kernel of the running server: what bootstrap.py tries a new environment out with. One whose extension is
# older, or that is for no GPU, prints nothing at all.
GPU_MARK, GPU_TIMEOUT_S = "GPU: ", 600.0
GPU_SHAPE = {"ok?": bool, "sentence?": str, "holders?": [str]}
HAS_GPU = """
try:
    from colab_local_jupyter import gpu
    print("yes" if gpu.has_cuda() else "")
except ImportError:
    pass
"""
GPU = f'import json; print("{GPU_MARK}" + json.dumps(gpu.report()))'


class PageStep(NamedTuple):
    """One step of Colab's page: which transport it belongs to ("" for both), what it does, how it went."""

    transport: str
    title: str
    status: str  # "ok", "failed", "skipped"; "begun" is shown alone: the step is about to take its time
    detail: str = ""
    fault: Fault | None = None


def origin_fault(plain: Answer) -> Fault | None:
    """Return what is wrong with the server's allow_origin and allow_credentials, or None.

    plain: the answer to a request without a token. With a token notebook repeats whatever origin it was sent.
    """
    allowed = plain.headers.get("access-control-allow-origin")
    if allowed is None:
        flags = f"--NotebookApp.allow_origin={ORIGIN} --NotebookApp.allow_credentials=True"
        return Fault(
            "allow-origin-missing", f"Jupyter doesn't allow requests from {ORIGIN}", f"start it with {flags}"
        )
    if allowed == "*":
        return Fault("allow-origin-star", "allow_origin is *, which browsers refuse together with credentials")
    if allowed.rstrip("/") == ORIGIN and allowed != ORIGIN:
        return Fault("allow-origin-slash", f"allow_origin ends with a slash (found {allowed}, need {ORIGIN})")
    if allowed != ORIGIN:
        return Fault("allow-origin-other", f"allow_origin names another site (found {allowed}, need {ORIGIN})")
    if plain.headers.get("access-control-allow-credentials") != "true":
        return Fault("allow-credentials-missing", "Jupyter doesn't allow requests with credentials")
    return None


def is_reachable(server: Description) -> bool:
    """Whether anything listens where `server` should; a leftover runtime file may name a server of the past."""
    host = "localhost" if server.host in _LOCALHOST else server.host
    with contextlib.suppress(OSError), socket.create_connection((host, server.port), timeout=3):
        return True
    return False


def interpreter_of(pid: int) -> str:
    """Return the Python that the process `pid` was started with, or an empty string."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False
        )
        return done.stdout.split(" ")[0].strip()
    return ""


_CAN_LOAD = """
import sys
try:
    import notebook.notebookapp
    import jupyter_http_over_ws.handlers
except Exception as error:
    sys.exit("%s: %s" % (type(error).__name__, error))
"""


def why_not_loadable(python: str) -> str:
    """Return the error with which the Python at `python` fails to load Colab's extension, or an empty string."""
    try:
        done = subprocess.run(
            [python, "-W", "ignore", "-c", _CAN_LOAD],
            env=child_environment(),
            cwd="/",  # -c looks for modules in the current folder first, whoever filled it
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def speaks_tls(runtime: Runtime) -> bool:
    """Whether a TLS handshake succeeds at `runtime`, whatever the certificate says."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), runtime.connect() as connection:
        end = threading.Timer(runtime.timeout, connection.shutdown, [socket.SHUT_RDWR])
        end.start()  # a handshake has no bound of its own: its timeout is for each read
        try:
            context.wrap_socket(connection).close()
            return True
        finally:
            end.cancel()
    return False


def current_environments() -> list[dict[str, Any]]:
    """Return the receipts of the environments in use on this machine, newest first."""
    home = default_home()
    return [receipt for receipt in read_receipts(home) if is_current(home, receipt)]


def broken_environment() -> Fault | None:
    """Return why Jupyter can't start in one of the environments in use on this machine, or None."""
    for receipt in current_environments():
        reason = why_not_loadable(str(Path(receipt["prefix"]) / "bin" / "python"))
        if reason:
            return Fault("extension-not-loadable", f"Jupyter can't start in {receipt['prefix']}: {reason}")
    return None


def start_command(port: int = 0) -> str:
    """Return the command that starts Jupyter on this machine, or the one that prepares it.

    port: where it is wanted, 0 for that of the installation.
    """
    home = default_home()
    for receipt in current_environments():
        link = str(home / "current" / receipt["env"])
        argv = jupyter_argv(
            link, port or receipt["port"], receipt["notebook_dir"], os.geteuid() == 0, bool(receipt.get("lab"))
        )
        return " ".join(shlex.quote(word) for word in argv)
    return "python3 bootstrap.py"


# Addresses on which a server is reached through localhost, as Jupyter's runtime file gives them.
_LOCALHOST = ("", "*", "localhost", "127.0.0.1", "0.0.0.0", "::1", "::")  # noqa: S104
# What the printed command would not have let happen.
_CURED_BY_RESTART = (
    "token-empty",
    "allow-origin-missing",
    "allow-origin-slash",
    "allow-origin-star",
    "allow-origin-other",
    "allow-credentials-missing",
    "notebook-7",
    "extension-missing",
    "extension-not-loadable",
    "tornado-cookie",
    "port-mismatch",
)


class Examination:
    """The steps of Colab's page against `runtime`, and what they found.

    show: called with each PageStep as soon as it is done.
    """

    def __init__(self, runtime: Runtime, show: Callable[[PageStep], None]) -> None:
        self.runtime = runtime
        self.show = show
        self.steps: list[PageStep] = []
        self.warnings: list[Fault] = []
        self.gpu: dict[str, Any] = {}  # what a kernel says of it, {} where its environment is for none
        self.plain: Answer | None = None
        self.server = next((s for s in described_servers() if s.port == runtime.port), None)
        if self.server and runtime.dial is None and self.server.host in _LOCALHOST:
            self.python = interpreter_of(self.server.pid)
        else:
            self.python = ""

    @property
    def faults(self) -> list[Fault]:
        """The faults found, the first failed step's first; each code once, with what was found first."""
        found: dict[str, Fault] = {}
        for step in self.steps:
            if step.fault:
                found.setdefault(step.fault.code, step.fault)
        return list(found.values())

    def run(self) -> None:
        """Do every step; a transport's steps are skipped when an earlier one has failed."""
        common = [
            ("reach the address", self.reach),
            ("find Jupyter there", self.find_jupyter),
            ("log in with the token", self.log_in),
        ]
        if not self._sequence("", common):
            return
        self._sequence(
            "direct",
            [
                ("get answers that the browser lets through", self.cross_origin),
                ("have POST requests allowed beforehand", self.preflight),
                ("run a cell", lambda: self.run_cell("direct")),
            ],
        )
        self._sequence(
            "http_over_ws",
            [
                ("open the WebSocket", self.open_websocket),
                ("pass a request through it", self.request_over_websocket),
                ("run a cell", lambda: self.run_cell("http_over_ws")),
            ],
        )
        self.compare_environment()
        use = self.ask_for_gpu() if not self.faults else ""
        if use:
            self._done(PageStep("", "use the GPU", "ok", use))

    def _sequence(self, transport: str, steps: Sequence[tuple[str, Callable[[], str]]]) -> bool:
        for number, (title, action) in enumerate(steps):
            try:
                self._done(PageStep(transport, title, "ok", self._attempt(action)))
            except Fault as fault:
                if self.python and fault.code in _CURED_BY_RESTART and current_environments():
                    fault.hint = f"{start_command()}   # after Ctrl-C where it runs now"
                self._done(PageStep(transport, title, "failed", fault.what, fault))
                for skipped, _ in steps[number + 1 :]:
                    self._done(PageStep(transport, skipped, "skipped"))
                return False
        return True

    def _attempt(self, action: Callable[[], str]) -> str:
        """Do a step; an answer that doesn't come or isn't HTTP is a fault in any of them."""
        try:
            return action()
        except socket.timeout as error:
            raise Fault("no-answer", f"no answer within {self.runtime.timeout:g} s") from error
        except (OSError, http.client.HTTPException, Closed, Refused, ValueError) as error:
            raise Fault("server-error", f"the server breaks off: {error or type(error).__name__}") from error

    def _done(self, step: PageStep) -> None:
        self.steps.append(step)
        self.show(step)

    # Steps: each returns a detail to show, or raises Fault.

    def reach(self) -> str:
        """Connect to the address."""
        host = self.runtime.host
        if host != "localhost":
            hint = f"paste http://localhost:{self.runtime.port}/?token=..." if host in _LOCALHOST else ""
            raise Fault("not-localhost", f"Colab accepts only http://localhost (found http://{host})", hint)
        two = rivals(self.runtime.port) if self.runtime.dial is None else None
        if two:  # nothing is sent to either: the token would reach a stranger
            what = f"two programs listen on port {self.runtime.port} of localhost, {two[0]} and {two[1]}"
            port = free_port(self.runtime.port + 1)
            raise Fault(
                "two-programs",
                what,
                f"python3 bootstrap.py --port {port}   # prints the command that starts Jupyter there",
            )
        try:
            self.runtime.connect().close()
        except OSError as error:
            raise self.unreachable(error) from error
        return self.runtime.netloc

    def unreachable(self, error: OSError) -> Fault:
        """Return why nothing answers at the address: another port, another interface, nothing at all."""
        port = self.runtime.port
        # A runtime file that says localhost is a leftover, of before a reboot: its process number is another's now.
        if self.server and self.server.host not in _LOCALHOST:
            return Fault(
                "other-interface",
                f"Jupyter listens on {self.server.host}:{port}, not on localhost",
                "stop it and start it with --ip=127.0.0.1",
            )
        for listener in listeners([port]):
            what = f"a program listens on {listener}, not on localhost"
            return Fault("other-interface", what, "start Jupyter with --ip=127.0.0.1")
        servers = [server for server in described_servers() if server.port != port]
        if servers:
            ports = ", ".join(str(server.port) for server in servers)
            return Fault(
                "wrong-port",
                f"nothing listens on port {port}, but Jupyter runs on port {ports}",
                f"{self._list_command(servers[0])}   # shows the address to paste, that of port {servers[0].port}",
            )
        what = f"nothing listens on {self.runtime.netloc} ({error.strerror or error})"
        hint = start_command(port) if current_environments() else ""
        return broken_environment() or Fault("nothing-listens", what, hint)

    @staticmethod
    def _list_command(server: Description) -> str:
        python = interpreter_of(server.pid)
        return (
            f"{shlex.quote(str(Path(python).parent / 'jupyter'))} notebook list"
            if python
            else "jupyter notebook list"
        )

    def find_jupyter(self) -> str:
        """Ask for Jupyter's version, as anyone may; then as the page would, for the answer's headers."""
        try:
            answer = http_request(self.runtime, "GET", "/api", origin=None)
            self.plain = http_request(self.runtime, "GET", "/api")  # 404 where the origin isn't allowed
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            if speaks_tls(self.runtime):
                what = f"what answers at {self.runtime.netloc} speaks https; Colab needs http"
                hint = "if it is Jupyter, start it without --certfile; on localhost nothing leaves the machine"
                raise Fault("not-jupyter", what, hint) from error
            what = f"the connection to {self.runtime.netloc} is closed at once, without an answer"
            raise Fault("tunnel-dead-end", what) from error
        except http.client.HTTPException as error:
            if str(error).startswith("RFB "):  # RFC 6143, 7.1.1: a VNC server speaks first
                raise Fault("desktop-port", f"a remote desktop (VNC) answers at {self.runtime.netloc}") from error
            raise Fault("not-jupyter", f"what answers at {self.runtime.netloc} doesn't speak HTTP") from error
        except OSError as error:
            what = f"{self.runtime.netloc} takes the connection and doesn't answer ({error})"
            raise Fault("no-answer", what) from error
        said = answer.json()
        version = said.get("version") if isinstance(said, dict) else None
        if not isinstance(version, str):
            name = answer.headers.get("server", "no name given")
            raise Fault("not-jupyter", f"a web server that isn't Jupyter answers at {self.runtime.netloc} ({name})")
        # Jupyter Description gives its own version, 1.x or 2.x; the notebook server of Notebook 6 is itself 6.x.
        if int(version.partition(".")[0]) < 5:
            raise Fault(
                "notebook-7", f"this is Jupyter Description {version} (Notebook 7 or JupyterLab), not Notebook 6"
            )
        return f"Notebook {version}"

    def log_in(self) -> str:
        """Use the token as a script would, without an origin, and see that there is one at all."""
        if self._kernelspecs("not the token " + os.urandom(8).hex()) == 200:
            raise Fault("token-empty", "Jupyter runs without a token: anyone on this machine can run code in it")
        status = self._kernelspecs(self.runtime.token)
        if status == 200:
            return ""
        if status != 403:
            raise Fault("server-error", f"the server answers {status} to the token")
        if not self.runtime.token:
            raise Fault("token-missing", "the address has no token", self._token_hint())
        raise Fault("token-wrong", "the server refuses the token in the address", self._token_hint())

    def _kernelspecs(self, token: str) -> int:
        headers = {"Authorization": "token " + token} if token else {}
        return http_request(self.runtime, "GET", "/api/kernelspecs", headers, origin=None).status

    def _token_hint(self) -> str:
        return f"{self._list_command(self.server)} shows the whole address" if self.python and self.server else ""

    def cross_origin(self) -> str:
        """Ask Colab's first question over the direct transport, with the browser's eyes on the answer."""
        answer = open_transport(self.runtime, "direct").request("GET", "/api/colab/build-info")
        headers = answer.headers
        allowed = headers.get("access-control-allow-origin"), headers.get("access-control-allow-credentials")
        if allowed == (ORIGIN, "true"):
            return ""
        raise self._origin_fault() or Fault("server-error", "the answer lacks the cross-origin headers")

    def preflight(self) -> str:
        """Ask what the browser asks before it lets the page start a kernel."""
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        answer = http_request(self.runtime, "OPTIONS", "/api/sessions", asked)
        headers = answer.headers.get("access-control-allow-headers", "").lower()
        if not 200 <= answer.status < 300 or "content-type" not in headers:
            fault = Fault(
                "server-error", f"the server refuses the browser's question before a POST ({answer.status})"
            )
            raise self._origin_fault() or fault
        return ""

    def _origin_fault(self) -> Fault | None:
        return origin_fault(self.plain) if self.plain else None

    def open_websocket(self) -> str:
        """Open the socket of jupyter_http_over_ws."""
        try:
            open_transport(self.runtime, "http_over_ws").close()
        except Refused as refused:
            if refused.status == 404:
                raise self.no_extension() from refused
            if refused.status == 403:
                unknown = Fault("server-error", "the server refuses the WebSocket (403)")
                raise self._origin_fault() or unknown from refused
            raise Fault("server-error", f"the server refuses the WebSocket ({refused})") from refused
        except (Closed, OSError) as error:
            raise Fault("server-error", f"the WebSocket can't be opened: {error}") from error
        return ""

    def no_extension(self) -> Fault:
        """Return why the server doesn't have jupyter_http_over_ws, as far as this machine can see."""
        what = "the server doesn't have the extension jupyter_http_over_ws"
        if not self.python:
            return Fault("extension-missing", what)
        reason = why_not_loadable(self.python)
        if not reason:
            return Fault("extension-missing", what + ": it is installed, and not enabled")
        if "No module named 'jupyter_http_over_ws'" in reason:
            return Fault("extension-missing", what + ": it is not installed")
        return Fault("extension-not-loadable", f"{what}: it can't be loaded ({reason})")

    def request_over_websocket(self) -> str:
        """Pass one request through the socket; the server makes it to itself."""
        transport = open_transport(self.runtime, "http_over_ws")
        try:
            answer = transport.request("GET", "/api/kernelspecs")
        except (Closed, OSError) as error:
            raise self.dropped(error) from error
        finally:
            transport.close()
        if answer.status == 200:
            return ""
        # The extension's own words for "I could not make the request" carry no headers.
        if answer.status == 500 and not {"server", "content-type"} & set(answer.headers):
            raise Fault(
                "port-mismatch",
                f"the server can't reach itself: it dials port {self.runtime.port}, which is this side's port",
            )
        raise Fault("server-error", f"the server answers {answer.status} over the WebSocket, and 200 without it")

    def dropped(self, error: Exception) -> Fault:
        """Return why the server hung up on a request over the WebSocket."""
        name = self.plain.headers.get("server", "") if self.plain else ""
        match = re.match(r"TornadoServer/(\d+)\.(\d+)", name)
        if match and (int(match.group(1)), int(match.group(2))) >= (6, 5):
            tornado = name.replace("Description/", " ")
            what = f"the server drops the WebSocket at the first request: {tornado} refuses the extension's cookie"
            return Fault("tornado-cookie", what)
        return Fault("server-error", f"the server drops the WebSocket at the first request ({error})")

    def run_cell(self, transport_name: str) -> str:
        """Start a kernel, run a cell, end the kernel."""
        transport = None
        try:
            transport = open_transport(self.runtime, transport_name)
            with Notebook(transport) as notebook:
                printed = notebook.run(CELL, 2 * self.runtime.timeout).strip()
                if printed != CELL_PRINTS:
                    raise Fault("kernel-fails", f"the cell {CELL} printed {printed!r}")
                imported = notebook.run(TENSORFLOW, 6 * self.runtime.timeout).strip()
        except Failed as failed:
            raise Fault("kernel-fails", f"the server can't {failed}{self.cause_in_log()}") from failed
        except KernelEnded as error:
            if not error.answered:
                raise Fault("kernel-fails", f"the kernel ends as soon as it starts{self.cause_in_log()}") from error
            what = "the kernel's process ended: it was killed (did memory run out?), or it crashed"
            raise Fault("kernel-fails", what, "free -m   # there; Jupyter's last lines may say more") from error
        except socket.timeout as error:
            what = f"the kernel doesn't answer within {2 * self.runtime.timeout:g} s"
            raise Fault("kernel-fails", what) from error
        except (Closed, Refused, OSError) as error:
            raise Fault("kernel-fails", f"the kernel's WebSocket fails: {error}") from error
        finally:
            if isinstance(transport, OverWebSocket):
                transport.close()
        last_line = imported.splitlines()[-1] if imported else ""
        found = re.match(r"tensorflow (\S+) (/.+)", last_line)
        if last_line and not found:
            raise Fault("tensorflow-fails", f"`import tensorflow` fails in a cell: {last_line[:300]}")
        self.check_tensorflow(found.group(2) if found else "")
        return f"{CELL} printed {printed}" + (f"; TensorFlow {found.group(1)} from {found.group(2)}" if found else "")

    def cause_in_log(self) -> str:
        """Return the last error in the server's log, where that is a file that we can find, "" otherwise."""
        if not (self.server and self.python):
            return ""
        with contextlib.suppress(OSError):
            log = Path(os.readlink(f"/proc/{self.server.pid}/fd/2"))
            if log.is_file():
                with log.open(encoding="utf-8", errors="replace") as stream:
                    stream.seek(max(0, log.stat().st_size - 20_000))
                    lines = stream.read().splitlines()
                errors = [line.strip() for line in lines if re.match(r"\s*(\w+\.)*\w*(Error|Exception)\b", line)]
                return f" (its log says: {errors[-1][:200]})" if errors else ""
        return ""

    def check_tensorflow(self, file: str) -> None:
        """Raise Fault if a cell imports TensorFlow from outside the environment that the server runs in."""
        if not self.python or not file:
            return
        prefix = Path(self.python).parent.parent.resolve()
        if prefix not in Path(file).resolve().parents:
            raise Fault("tensorflow-fails", f"a cell imports TensorFlow from {file}, not from {prefix}")

    def ask_for_gpu(self) -> str:
        """Let a kernel of the running server compute on its GPU; "" where its environment is for none.

        Whatever is wrong there is a warning: Colab connects all the same.
        """
        try:
            with Notebook(open_transport(self.runtime, "direct")) as notebook:
                if "yes" not in notebook.run(HAS_GPU, 2 * self.runtime.timeout).split():
                    return ""
                self.show(PageStep("", "use the GPU in a kernel, which takes a moment", "begun"))
                printed = notebook.run(GPU, GPU_TIMEOUT_S)
        except KernelEnded:
            self.warnings.append(Fault("gpu-not-used", "the kernel's process ended when it used the GPU"))
            return ""
        except (Failed, Closed, Refused, OSError, ValueError) as error:
            self.warnings.append(Fault("gpu-not-used", f"the kernel does not say whether the GPU is used ({error})"))
            return ""
        marked = [line for line in printed.splitlines() if line.startswith(GPU_MARK)]
        if not marked:  # TensorFlow or the driver took the kernel down
            last = (printed.strip().splitlines() or ["nothing"])[-1]
            self.warnings.append(Fault("gpu-not-used", f"the kernel broke off when it used the GPU: {last[:200]}"))
            return ""
        try:
            self.gpu = dict(documents.parse(marked[-1][len(GPU_MARK) :], "the kernel's answer", GPU_SHAPE))
        except ValueError as error:
            self.warnings.append(Fault("gpu-not-used", str(error)))
            return ""
        if self.gpu.get("sentence") and not self.gpu.get("ok"):
            self.warnings.append(Fault("gpu-not-used", str(self.gpu["sentence"])))
            return ""
        held = "; memory is held by " + ", ".join(map(str, self.gpu["holders"])) if self.gpu.get("holders") else ""
        return f"{self.gpu.get('sentence', '')}{held}"

    def compare_environment(self) -> None:
        """Warn when the server runs from another environment than the one in use on this machine."""
        try:
            said = open_transport(self.runtime, "direct").request("GET", "/api/colab/build-info").json()
        except (OSError, http.client.HTTPException):
            return  # the server has gone meanwhile; nothing to compare
        if documents.mismatch(said, {"colab_local_jupyter?": str, "prefix?": r"[^\0]*"}):
            said = {}
        ours = re.search(r'__version__ = "(.+)"', _extension_source())
        version, prefix = said.get("colab_local_jupyter"), said.get("prefix")
        if version and ours and version != ours.group(1):
            what = f"the server's extension is {version}, this copy of colab-local has {ours.group(1)}"
            self.warnings.append(Fault("other-environment", what))
        here = [str(Path(receipt["prefix"]).resolve()) for receipt in current_environments()]
        if self.python and here and prefix and str(Path(prefix).resolve()) not in here:
            what = f"the server runs from {prefix}, not from {here[0]}"
            hint = f"{start_command()}   # after Ctrl-C where it runs now"
            self.warnings.append(Fault("other-environment", what, hint))


def _extension_source() -> str:
    path = REPOSITORY / "environments/jupyter/site-packages/colab_local_jupyter/__init__.py"
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""


def usage(what: str) -> Failure:
    """Return the failure of a command line that doesn't say what to examine."""
    return Failure(what, "python3 scripts/doctor.py --help", EXIT_USAGE)


def choose_runtime(given: str | None, token_file: str | None, timeout: float) -> Runtime:
    """Return what to examine: the given address, or the one server that runs here, with its token.

    given: the address, "-" for standard input; token_file: a file with the token, "-" for standard input; timeout: of
    each answer, in seconds.

    Raises Failure for a wrong command line, or Fault when no server runs.
    """
    url = sys.stdin.readline().strip() if given == "-" else given
    if not url:
        return only_server(timeout)
    try:
        runtime = parse_url(url, timeout)
    except ValueError as error:
        raise usage(f"{error}; example: http://localhost:8888/?token=...") from error
    if runtime.token:
        return runtime
    return runtime._replace(token=find_token(runtime, token_file))


def only_server(timeout: float) -> Runtime:
    """Return the only server that runs on this machine for this user."""
    servers = described_servers()
    if not servers:
        hint = start_command()
        if not current_environments():  # a laptop, perhaps, with a tunnel to the Jupyter of another machine
            hint += f"   # or, behind a tunnel: python3 scripts/doctor.py http://localhost:{DEFAULT_PORT}"
        raise broken_environment() or Fault("nothing-listens", "no Jupyter of yours runs on this machine", hint)
    held = [server for server in servers if holds_port(server.pid, server.port)]
    servers = [server for server in held or servers if is_reachable(server)] or servers[:1]
    if len(servers) > 1:
        each = ", ".join(f"http://localhost:{server.port}" for server in servers)
        raise usage(f"several Jupyter servers run here ({each}); name one of them")
    server = servers[0]
    return Runtime("localhost", server.port, server.token, server.base_url, timeout)


def answers_at(runtime: Runtime) -> bool:
    """Return whether anything listens at the address: else there is no token to ask for."""
    try:
        runtime.connect().close()
    except OSError:
        return False
    return True


def find_token(runtime: Runtime, file: str | None) -> str:
    """Return the token for `runtime`: from `file` ("-" is standard input), the server's runtime file, or the user.

    Empty if nobody knows one.
    """
    if file == "-":
        return sys.stdin.readline().strip()
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise usage(f"can't read the token file {file}: {error}") from error
    for server in described_servers():
        if server.port == runtime.port and server.token and holds_port(server.pid, server.port):
            return server.token
    if sys.stdin.isatty() and sys.stderr.isatty() and answers_at(runtime):
        typed = getpass.getpass("Token of the server, or its whole address (not shown; empty for none): ").strip()
        return typed.rpartition("token=")[2]
    return ""
