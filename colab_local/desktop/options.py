"""What was asked of a remote desktop: the part of the command line that goes down to its steps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

KINDS = ("mirror", "virtual")
SERVERS = ("tiger", "tight", "gnome")
LISTENS = ("port", "socket")
SESSIONS = ("auto", "xfce", "lxde", "gnome-flashback", "openbox")


class Options(NamedTuple):
    """How a desktop is wanted.

    kind: one of KINDS; home: where the receipt lies; vnc: one of SERVERS, "" for the best; session: one of SESSIONS;
    display: its number, None for the first free one; geometry: WIDTHxHEIGHT, "" for the default; password_file: "-"
    reads standard input, "" makes one; user: whose desktop, "" for the caller's; listen: one of LISTENS, "" for what
    it was so far.
    """

    kind: str
    home: Path
    vnc: str = ""
    session: str = "auto"
    display: int | None = None
    geometry: str = ""
    password_file: str = ""
    reset_password: bool = False
    user: str = ""
    install_packages: bool = False
    dry_run: bool = False
    listen: str = ""
