"""Lingering: a user's systemd, and with it their services, runs from boot on, without a log-in.

The Jupyter service and the virtual desktop need it. Who switches it on writes that into its receipt and switches it
off again in the end, or hands that duty to the other.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Callable, Sequence

from colab_local.base import documents
from colab_local.base.files import write_atomically

FOLDER = Path("/var/lib/systemd/linger")  # logind's: a file for each user


def is_on(user: str) -> bool:
    """Return whether a user's services run without a log-in."""
    return (FOLDER / user).exists()


def switch(user: str, on: bool, run: Callable[[Sequence[str]], bool]) -> bool:
    """Tell logind, and return whether it is so now.

    run: runs a command and says whether it went well. Nobody is asked for a password.
    """
    words = ["loginctl", "--no-ask-password", "enable-linger" if on else "disable-linger", user]
    return run(words) and is_on(user) == on


def by_hand(user: str, on: bool = True) -> str:
    """Return the command for an administrator."""
    return f"sudo loginctl {'enable' if on else 'disable'}-linger {user}"


def hand_to_desktop(receipt: Path, user: str) -> bool:
    """Note the same in the receipt of the desktops, for this user's virtual one; return whether there is one."""
    with contextlib.suppress(OSError, ValueError):
        made = documents.read(receipt, {"desktops": [{"user": str, "kind": str}]})
        for entry in made["desktops"]:
            if (entry["user"], entry["kind"]) == (user, "virtual"):
                entry["linger"] = True
                write_atomically(receipt, json.dumps(made, indent=1) + "\n", 0o600)
                return True
    return False


def hand_over(receipt: Path) -> bool:
    """Note in the receipt of the Jupyter service that it is to switch lingering off; return whether there is one."""
    with contextlib.suppress(OSError, ValueError):
        made = documents.read(receipt, {"lingering": bool})
        write_atomically(receipt, json.dumps({**made, "lingering": True}, indent=1) + "\n")
        return True
    return False
