"""The VNC password: where it comes from, what is good enough, and the one place where it is shown.

It never appears in an argument list, an environment, a log or a file others can read.
"""

from __future__ import annotations

import secrets
import shlex
import string
import sys
from pathlib import Path

from colab_local.base.errors import EXIT_USAGE, Failure

# VNC uses the first 8 characters and ignores the rest, so a longer one is weaker than it looks.
SHORTEST, LONGEST = 6, 8
# Without 0/O and 1/l/I: it is typed by hand on another machine.
ALPHABET = "".join(c for c in string.ascii_letters + string.digits if c not in "0O1lI")


def generate() -> str:
    """Return a random password of 8 characters (46 bits)."""
    return "".join(secrets.choice(ALPHABET) for _ in range(LONGEST))


def check(password: str) -> str:
    """Return the password if VNC can do something safe with it.

    Raises:
        Failure: not 6 to 8 printable ASCII characters. The text tells the length only.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise Failure(
            f"the VNC password has the wrong length (found {len(password)} characters, need {SHORTEST} to {LONGEST}: "
            "VNC ignores everything after the eighth)",
            "leave --vnc-password-file out to get a random one",
            EXIT_USAGE,
        )
    if not all(" " <= c <= "~" for c in password):
        raise Failure(
            "the VNC password holds characters that VNC programs disagree on (need letters, digits and ASCII signs)",
            "leave --vnc-password-file out to get a random one",
            EXIT_USAGE,
        )
    return password


def read(source: str | None) -> str | None:
    """Return the password on the first line of a file, "-" for standard input; None if no source is given."""
    if not source:
        return None
    try:
        if source == "-":
            line = sys.stdin.readline()
        else:
            with Path(source).open(encoding="utf-8", errors="surrogateescape") as stream:
                line = stream.readline()
    except OSError as fault:
        raise Failure(
            f"the password file cannot be read ({fault.strerror}: {source})",
            f"ls -l {shlex.quote(source)}",
            EXIT_USAGE,
        ) from None
    return check(line.rstrip("\r\n"))


def show_once(password: str, what: str) -> None:
    """Show a generated password on the terminal itself, past every pipe, log and --json file."""
    _tell_terminal(f"\nPassword for {what} (shown this once): {password}\n\n")


def demand_terminal() -> None:
    """Raise Failure if there is no terminal that a password could be shown on."""
    _tell_terminal("")


def _tell_terminal(text: str) -> None:
    try:
        with Path("/dev/tty").open("w", encoding="ascii") as terminal:
            terminal.write(text)
    except OSError:
        raise Failure(
            "there is no terminal to show a new password on (need one, or your own password)",
            "printf '%s\\n' PASSWORD | python3 bootstrap.py --vnc-password-file -   # or, over ssh: ssh -t",
            EXIT_USAGE,
        ) from None
