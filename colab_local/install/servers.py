"""Jupyter servers that run from a home: found, asked, and the token that those have which we start."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, NamedTuple

from colab_local.base import documents
from colab_local.base.answers import ask
from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.files import foreign, private_file
from colab_local.base.network import holds_port, rivals
from colab_local.base.text import printable
from colab_local.install.jupyter import COLAB_ORIGIN

Json = Dict[str, Any]
UNIT = "colab-local.service"  # what --service makes for systemd, and for launchd
LABEL = "org.colab-local.jupyter"
# What Jupyter writes of itself (notebook/notebookapp.py, server_info()).
DESCRIPTION_SHAPE = {
    "pid": int,
    "port": int,
    "token": str,
    "base_url": str,
    "hostname?": str,
    "notebook_dir?": str,
    "root_dir?": str,
}


def command_line(pid: int) -> list[str]:
    """Return the argument list of a process, [] if there is no such process."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        if Path("/proc/self").is_dir():
            return []
    shown = subprocess.run(  # macOS has no /proc
        ["ps", "-ww", "-p", str(pid), "-o", "command="],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return os.fsdecode(shown.stdout).split()


def service_command(kind: str, action: str) -> list[str]:
    """Return the command that does "start" or "stop" with the service of --service. kind: systemd or launchd."""
    if kind != "launchd":
        return ["systemctl", "--user", action, UNIT]
    target = f"{launchd_domain()}/{LABEL}"
    return ["launchctl", "kickstart", target] if action == "start" else ["launchctl", "kill", "SIGTERM", target]


def launchd_domain() -> str:
    """Return launchd's name for what runs for this user."""
    return f"gui/{os.getuid()}"


def runtime_folders() -> list[Path]:
    """Return where Jupyter may describe its running servers (jupyter_core.paths.jupyter_runtime_dir)."""
    environ, user = os.environ, Path.home()
    data = [
        *([Path(environ["JUPYTER_DATA_DIR"])] if "JUPYTER_DATA_DIR" in environ else []),
        Path(environ.get("XDG_DATA_HOME") or user / ".local/share") / "jupyter",
        user / "Library/Jupyter",
    ]
    named = [Path(environ["JUPYTER_RUNTIME_DIR"])] if "JUPYTER_RUNTIME_DIR" in environ else []
    return [folder for folder in [*named, *(folder / "runtime" for folder in data)] if folder.is_dir()]


def environment_name(home: Path, argv: list[str]) -> str:
    """Return the name (env-digest) of the environment that a command runs from, "" if it isn't one of this home."""
    for word in argv[:3]:
        with contextlib.suppress(ValueError):
            return Path(word).resolve().relative_to((home / "envs").resolve()).parts[0]
    return ""


def api(port: int, token: str, method: str, path: str, timeout: float = 5.0) -> Any:
    """Call Jupyter's REST API on loopback and return the parsed answer; OSError or ValueError if that fails.

    timeout: seconds until the answer is whole.
    """
    headers = {"Host": f"127.0.0.1:{port}", "Authorization": "token " + token}
    try:
        answer = ask(socket.create_connection(("127.0.0.1", port), timeout), method, path, headers, seconds=timeout)
    except http.client.HTTPException as problem:
        raise OSError(printable(str(problem))) from problem
    if answer.status != 200:
        raise OSError(printable(f"{answer.status} {answer.reason}"))
    return documents.parse(answer.content, "Jupyter's answer") if answer.content else None


class Description(NamedTuple):
    """What a running Jupyter wrote of itself, for this user's eyes. notebook_dir: also root_dir of jupyter_server."""

    pid: int
    host: str
    port: int
    token: str
    base_url: str
    notebook_dir: str
    written: float  # when, in seconds since 1970


def described_servers() -> list[Description]:
    """Return this user's Jupyter servers on this machine whose process lives, newest first."""
    found = []
    for folder in runtime_folders():
        for file in [*folder.glob("nbserver-*.json"), *folder.glob("jpserver-*.json")]:
            with contextlib.suppress(OSError, ValueError):
                info = documents.read(file, DESCRIPTION_SHAPE)
                if not foreign([file]) and 0 < info["port"] < 1 << 16 and is_alive(info["pid"]):
                    place = str(info.get("notebook_dir") or info.get("root_dir") or "")
                    host = str(info.get("hostname") or "")
                    seen = (info["pid"], host, info["port"], info["token"], info["base_url"], place)
                    found.append(Description(*seen, file.stat().st_mtime))
    return sorted(found, key=lambda server: server.written, reverse=True)


def living_servers(home: Path) -> list[Json]:
    """Return this user's Jupyter servers that run from `home` and allow Colab's page, whether they answer or not.

    A description may be of the past: the process number is another Jupyter's by now, and the port a stranger's.
    """
    servers = []
    for server in described_servers():
        argv = command_line(server.pid)
        name = environment_name(home, argv)
        ours = name and server.token and "NotebookApp.allow_origin=" + COLAB_ORIGIN in " ".join(argv)
        if ours and holds_port(server.pid, server.port):
            servers.append({**server._asdict(), "name": name})
    return servers


def running_servers(home: Path) -> list[Json]:
    """Return the living servers that answer to their token, the newest first."""
    servers = []
    for server in living_servers(home):
        with contextlib.suppress(OSError, ValueError):
            status = api(server["port"], server["token"], "GET", server["base_url"] + "api/status")
            if documents.mismatch(status, {"started": str, "kernels": int}):
                continue
            servers.append(dict(server, since=status["started"], kernels=status["kernels"]))
    return sorted(servers, key=lambda server: str(server["since"]), reverse=True)


def find_server(home: Path, env: str | None, pid: int | None = None) -> Json | None:
    """Return a running server of environment `env` (any if None; the process `pid` if given), newest first."""
    return first_of(running_servers(home), env, pid)


def first_of(servers: list[Json], env: str | None, pid: int | None = None) -> Json | None:
    """Return the first server of environment `env` (any if None; the process `pid` if given)."""
    for server in servers:
        if pid in (None, server["pid"]) and (env is None or server["name"].rpartition("-")[0] == env):
            return server
    return None


def demand_alone(port: int) -> None:
    """Raise Failure where a stranger has the other one of localhost's addresses: it would get the token, too."""
    two = rivals(port)
    if two:
        raise Failure(
            f"two programs listen on port {port} of localhost, {two[0]} and {two[1]}: a browser may send the token "
            "to either",
            f"ss -ltnp 'sport = :{port}'   # end the other one, or Jupyter, and start it on another port",
            EXIT_MACHINE,
        )


def is_alive(pid: int) -> bool:
    """Whether a process of this user runs (a zombie doesn't); what is no process's number is none."""
    if not 0 < pid < 1 << 31:
        return False
    with contextlib.suppress(OSError):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        os.kill(pid, 0)
        return True
    return False


def token_file(home: Path) -> Path:
    """Return the file with Jupyter's token, readable by its user alone; made if it isn't there."""
    path = home / "run" / "jupyter-token"
    path.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError), os.fdopen(private_file(path), "w") as file:
        file.write(secrets.token_hex(24))  # no newline: Jupyter takes the whole content
    if foreign([path]):
        what = f"{path} is a link, or another user can write to it: no token is read from it"
        raise Failure(what, f"rm {shlex.quote(str(path))}", EXIT_MACHINE)
    path.chmod(0o600)
    return path
