"""The command that starts Jupyter, the line that reaches it, and its settings in an environment."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from pathlib import Path

from colab_local.base.errors import Failure
from colab_local.base.files import write_atomically
from colab_local.base.programs import run
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import OVERLAY, Lock, read_lock_file

DEFAULT_PORT = 8888
LAUNCHER = "colab/jupyter-notebook"  # in an environment; from environments/jupyter/prefix
LAB_LAUNCHER = "colab/jupyter-lab"
TOKEN_FILE = "COLAB_LOCAL_TOKEN_FILE"  # noqa: S105 - the variable that names the file with the token
COLAB_ORIGIN = "https://colab.research.google.com"


def jupyter_argv(
    prefix: str,
    port: int = DEFAULT_PORT,
    notebook_dir: str | None = None,
    as_root: bool = False,
    lab: bool = False,
) -> list[str]:
    """Return the command that serves Colab's two transports on loopback.

    No token in it: Jupyter makes one and prints the URL that Colab wants. What it enables beyond the flags
    (server extensions, quiet start) is in the environment's own etc/jupyter. The program is a few lines of shell
    that drop what would mislead Python, and then notebook's own: whoever starts Jupyter starts this.

    prefix: the environment; port: TCP port on loopback; notebook_dir: what Colab's file pane shows, default
    the home folder; as_root: Jupyter refuses to run as root without being told to; lab: JupyterLab 4 instead of
    Notebook 6, which hosted Colab runs.
    """
    kind = "ServerApp" if lab else "NotebookApp"
    argv = [
        f"{prefix}/{LAB_LAUNCHER if lab else LAUNCHER}",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--{kind}.port_retries=0",  # a busy port is an error, not a silent move to another one
        f"--{kind}.allow_origin={COLAB_ORIGIN}",
        f"--{kind}.allow_credentials=True",  # what Colab's direct transport needs besides the origin
        f"{'--ServerApp.root_dir' if lab else '--notebook-dir'}={notebook_dir or Path.home()}",
    ]
    return [*argv, "--allow-root"] if as_root else argv


def ssh_line(where: int | Path, user: str, address: str, ssh_port: int = 22, local: str = "") -> str:
    """Return the line that brings a port of this machine, Jupyter's say, to the laptop it is typed on.

    Without -N: sshd sends small packets at once only for a connection that has a session, a shell say. With -N it
    holds each back until the one before is acknowledged: every cell, key and click takes 40 ms longer.

    where: a port or a Unix socket of this machine; ssh_port: of its sshd; local: where it is on the laptop,
    [ADDRESS:]PORT, default the same port.
    """
    extra = f" -p {ssh_port}" if ssh_port != 22 else ""
    target = shlex.quote(f"{user}@{address}")
    there = f"localhost:{where}" if isinstance(where, int) else str(where)
    forward = shlex.quote(f"{local or where}:{there}")
    return f"ssh -o ExitOnForwardFailure=yes -L {forward}{extra} {target}"


def dist_record(files: dict[str, bytes]) -> str:
    """Return a wheel's RECORD text (PEP 376, PEP 427) for {path: content}; the RECORD itself has no hash."""
    lines = []
    for path, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append("{},{},{}".format(path, "sha256=" + digest, len(content)))
    return "\n".join(lines) + "\n"


def add_jupyter(prefix: Path, lock: Lock, screen: Screen) -> dict[str, str]:
    """Copy environments/jupyter into an environment; no file of a package is overwritten.

    Return {path relative to the prefix: sha256} of what was added, for the receipt.
    """
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run([prefix / "bin" / "python", "-I", "-c", code], screen).strip())
    added: dict[str, str] = {}
    recorded: dict[str, bytes] = {}
    for name, digest in sorted(lock.jupyter.items()):
        part, _, rest = name.partition("/")
        content = read_lock_file(OVERLAY, name, digest).encode("utf-8")
        target = (packages if part == "site-packages" else prefix) / rest
        if target.exists() and target.read_bytes() != content:
            raise Failure(
                f"{target} belongs to a package and would be overwritten", "git status environments lockfiles"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if content.startswith(b"#!"):
            target.chmod(0o755)
        added[os.path.relpath(str(target), str(prefix))] = digest
        recorded[os.path.relpath(str(target), str(packages))] = content
    for info in {name.split("/")[1] for name in lock.jupyter if ".dist-info/" in name}:
        owned = {path: content for path, content in recorded.items() if owns(info, path)}
        write_atomically(packages / info / "RECORD", dist_record(owned) + f"{info}/RECORD,,\n")
    return added


def owns(info: str, path: str) -> bool:
    """Return whether a file of environments/jupyter/ belongs to the distribution whose folder is `info`.

    path: relative to the environment's packages. google.colab is a distribution of its own, so that pip takes it for
    installed; all else belongs to the server extension.

    >>> [owns("google_colab-1.dist-info", path) for path in ("google/colab/files.py", "../../etc/a.json")]
    [True, False]
    """
    of_google = path.startswith(("google/", "google_colab-"))
    return of_google == info.startswith("google_colab-")
