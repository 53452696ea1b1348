"""Symptoms, causes and cures: what the doctor says, and docs/troubleshooting.md."""

from __future__ import annotations

import re
from typing import NamedTuple

from colab_local.laptop.colab_page import ORIGIN


class Cure(NamedTuple):
    """A row of the table of symptoms and cures: what the user sees, what causes it, what to do."""

    symptom: str
    cause: str
    cure: str


_CONNECTING = "Colab can't connect"
# Every fault that the doctor can name, by its code; the README shows this table (`doctor.py --table`).
CURES: dict[str, Cure] = {
    "nothing-listens": Cure(
        "The address refuses the connection",
        "No Jupyter runs there, or the tunnel is closed",
        "Start Jupyter with the command that `python3 bootstrap.py` prints; for a remote machine run "
        "`python3 scripts/connect.py USER@HOST`",
    ),
    "wrong-port": Cure(
        "The address refuses the connection",
        "Jupyter runs on another port than the one in the address",
        "Paste the address that Jupyter printed",
    ),
    "other-interface": Cure(
        "The address refuses the connection, though Jupyter runs",
        "Jupyter listens on another address of the machine, not on localhost",
        "Start it with `--ip=127.0.0.1`, as `python3 bootstrap.py` prints it",
    ),
    "two-programs": Cure(
        "Colab can't connect, or shows another program's answer",
        "Two programs listen on the port, one at each of localhost's two addresses (127.0.0.1 and ::1)",
        "Start Jupyter on another port: `python3 bootstrap.py --port 8889` prints the command",
    ),
    "tunnel-dead-end": Cure(
        "The connection opens and is closed at once",
        "ssh forwards the port, but nothing listens at its far end",
        "Start Jupyter there and give its port last in `-L`, or let `python3 scripts/connect.py USER@HOST` do both",
    ),
    "no-answer": Cure(
        "The connection opens, and nothing comes",
        "Jupyter hangs, or the line of the tunnel is down",
        "Restart Jupyter, or run `python3 scripts/connect.py USER@HOST` again",
    ),
    "not-jupyter": Cure(
        "Something answers, but Colab can't talk to it",
        "Another program has the port, or Jupyter was set to https",
        "Start Jupyter on another port: `python3 bootstrap.py --port 8889` prints the command",
    ),
    "desktop-port": Cure(
        "Something answers, but Colab can't talk to it; or a viewer says `Too many security failures`",
        "It is the port of a remote desktop (VNC). Five connections without a log-in, whoever made them, shut "
        "everybody out for a while, and through ssh everybody is 127.0.0.1",
        "Paste Jupyter's address here and give this port to a VNC program; if that is shut out, leave the port alone "
        "for 15 seconds, then log in once",
    ),
    "not-localhost": Cure(
        "Colab refuses the address",
        "Colab accepts only http://localhost",
        "Forward the port with `python3 scripts/connect.py USER@HOST` and paste the address that it prints",
    ),
    "token-missing": Cure(
        _CONNECTING + "; Jupyter logs 403",
        "The address was pasted without `?token=...`",
        "Paste the whole address, as Jupyter or `connect.py` printed it; `jupyter notebook list` shows it too",
    ),
    "token-wrong": Cure(
        _CONNECTING + "; Jupyter logs 403",
        "The token is another server's, often the one before the last restart",
        "Paste the address that the running server printed; `jupyter notebook list` shows it",
    ),
    "token-empty": Cure(
        "Cells don't run (Jupyter logs `'_xsrf' argument missing`), and anyone on the machine can run code",
        "Jupyter was started without a token",
        "Leave `--NotebookApp.token=` out: Jupyter makes a token and prints it",
    ),
    "allow-origin-missing": Cure(
        _CONNECTING + "; Jupyter logs `Blocking Cross Origin`",
        "Jupyter was started without `allow_origin`",
        f"Start it with `--NotebookApp.allow_origin={ORIGIN}`",
    ),
    "allow-origin-slash": Cure(
        _CONNECTING + "; Jupyter logs `Blocking Cross Origin`",
        "`allow_origin` ends with a slash; a browser's origin never does",
        f"Start it with `--NotebookApp.allow_origin={ORIGIN}`",
    ),
    "allow-origin-star": Cure(
        _CONNECTING,
        "`allow_origin` is `*`; browsers refuse that together with credentials",
        f"Start it with `--NotebookApp.allow_origin={ORIGIN}`",
    ),
    "allow-origin-other": Cure(
        _CONNECTING + "; Jupyter logs `Blocking Cross Origin`",
        "`allow_origin` names another site than Colab",
        f"Start it with `--NotebookApp.allow_origin={ORIGIN}`",
    ),
    "allow-credentials-missing": Cure(
        _CONNECTING + "; the browser's console says `Access-Control-Allow-Credentials`",
        "Jupyter was started without `allow_credentials`",
        "Start it with `--NotebookApp.allow_credentials=True`",
    ),
    "notebook-7": Cure(
        _CONNECTING + "; Jupyter logs 404 for `/http_over_websocket`",
        "Jupyter is Notebook 7 or JupyterLab; Colab's extension loads in Notebook 6 only",
        "Start the environment's own Jupyter with the command that `python3 bootstrap.py` prints",
    ),
    "extension-missing": Cure(
        _CONNECTING + "; Jupyter logs 404 for `/http_over_websocket`",
        "The server extension jupyter_http_over_ws is not installed or not enabled",
        "Start the environment's own Jupyter with the command that `python3 bootstrap.py` prints",
    ),
    "extension-not-loadable": Cure(
        "Jupyter doesn't start, or logs `Error loading server extension jupyter_http_over_ws`",
        "The extension can't be imported: `distutils` is missing on Python >= 3.12 without setuptools, or it is "
        "notebook 7",
        "Run `python3 bootstrap.py`: it installs what is missing",
    ),
    "tornado-cookie": Cure(
        _CONNECTING + "; Jupyter logs `HTTPInputError: Invalid header value`",
        "jupyter_http_over_ws 0.0.8 sends a cookie that tornado >= 6.5 refuses",
        "Start the environment's own Jupyter with the command that `python3 bootstrap.py` prints; it repairs this",
    ),
    "port-mismatch": Cure(
        _CONNECTING + "; Jupyter logs `ConnectionRefusedError: [Errno 111]`",
        "Through ssh with two different ports the server dials the local port on its own machine",
        "Start the environment's own Jupyter there, which repairs this, or use the same port on both sides: "
        "`ssh -L 8888:localhost:8888`",
    ),
    "kernel-fails": Cure(
        "Colab connects, and cells don't run",
        "The server can't start the environment's kernel, or the kernel doesn't answer",
        "`python3 bootstrap.py --verify` checks the environment",
    ),
    "tensorflow-fails": Cure(
        "Colab connects, and `import tensorflow` fails in every cell",
        "Something of the user's own is imported instead, or the environment was altered",
        "`python3 scripts/doctor.py --home` names files and variables; `python3 bootstrap.py --verify` checks the "
        "environment",
    ),
    "server-error": Cure(
        _CONNECTING,
        "The server answers in a way that none of the other rows explains",
        "Look at the end of what Jupyter printed",
    ),
    "gpu-not-used": Cure(
        "Colab connects, and training is as slow as without a GPU",
        "TensorFlow sees no GPU, or a card fails",
        "`python3 bootstrap.py --gpu --dry-run` asks the driver and says what is wrong",
    ),
    "other-environment": Cure(
        "Colab connects, and versions are not those of the lock",
        "The server runs from another environment than the current one, often from before an update",
        "Stop it (Ctrl-C) and start it with the command that `python3 bootstrap.py` prints",
    ),
    "browser": Cure(
        "Colab doesn't connect, Jupyter logs nothing at all, and the doctor finds no fault",
        "The browser doesn't let the page reach this machine (Local Network Access)",
        "Chrome: icon left of the address, *Apps on device*: Allow, reload. Firefox: icon left of the address, "
        "remove *Blocked*, reload, then Allow",
    ),
}
BROWSER_ADVICE = """\
Colab: Connect (the arrow beside it), "Connect to a local runtime", paste the address with its token.
The browser asks once whether colab.research.google.com may "access other apps and services on this device": Allow.
If it doesn't ask and Colab can't connect, it was blocked earlier; then the server sees nothing at all:
  Chrome   click the icon left of the address, set "Apps on device" to Allow, reload the page
  Firefox  click the icon left of the address, remove "Blocked" at "Access this device", reload, then Allow"""


class Fault(Exception):
    """What is wrong: a code of CURES, what was found, and one command or sentence on what to do next."""

    def __init__(self, code: str, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        # a command first, then what it does: all of the line can be pasted
        self.hint = hint or re.sub(r"^`([^`]+)` ", r"\1   # ", CURES[code].cure).replace("`", "")


def markdown_table() -> str:
    """Return the table of symptoms and cures as Markdown."""
    rows = [f"| `{code}` | {c.symptom} | {c.cause} | {c.cure} |" for code, c in CURES.items()]
    return "\n".join(["| doctor | What you see | Why | Cure |", "|---|---|---|---|", *rows])
