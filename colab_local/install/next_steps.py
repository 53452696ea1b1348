"""The last screen: what to expect, the one command, how to reach it from elsewhere, how to stop and where to look."""

from __future__ import annotations

import shlex
from typing import Callable, Sequence

from colab_local.install.jupyter import ssh_line

MORE = ("bootstrap.py --launch", "scripts/doctor.py", "bootstrap.py --help")


def next_steps(
    argv: Sequence[str], port: int, user: str, address: str, ssh_port: int, put_right: Callable[[str], str]
) -> list[str]:
    """Return the lines that tell the user how to go on; every command is one line that can be pasted.

    argv: what starts Jupyter; port: Jupyter's; user, address, ssh_port: how another machine reaches this one;
    put_right: makes of a command of ours what the user can type.
    """
    there = f"-p {ssh_port} " if ssh_port != 22 else ""
    return [
        "Next steps: start Jupyter and leave it running (Ctrl-C twice stops it):",
        "",
        " ".join(shlex.quote(word) for word in argv),
        "",
        "In Colab (https://colab.research.google.com): the arrow beside Connect >",
        f"Connect to a local runtime, paste the URL (http://localhost:{port}/?token=...),",
        "Connect. If the browser asks whether Colab may access other apps and services",
        "on this device: Chrome: click Allow. Firefox: tick Remember my choice for this",
        "site, click Allow.",
        "",
        "Is the browser on another machine? There, in a clone of colab-local, or by hand:",
        f"python3 scripts/connect.py {there}{shlex.quote(f'{user}@{address}')}",
        ssh_line(port, user, address, ssh_port),
        "",
        "All of it at once, why it does not connect, everything else:",
        *(put_right(f"python3 {words}") for words in MORE),
    ]
