"""An installation on another machine, as the laptop sees it: the program is sent, and its words are shown here."""

from __future__ import annotations

import base64
import gzip
import hashlib
from pathlib import Path
from typing import Any, Callable, Sequence

from colab_local.base.errors import EXIT_INTEGRITY, Failure
from colab_local.base.terminal import Screen
from colab_local.install import program
from colab_local.install.lockfiles import REPOSITORY
from colab_local.install.servers import Json
from colab_local.laptop.ssh import Connection, refusal

HIDDEN = ("Next steps", "error: ", "hint: ", "log: ")  # what bootstrap.py says there is said here in our words


def pack_program(repository: Path = REPOSITORY) -> tuple[str, str]:
    """Return (archive, digest): a tar.gz in base64 and its SHA-256. It is a fixed list, whatever else lies here.

    Raises:
        Failure: the checkout is not whole.
    """
    try:
        packed = gzip.compress(program.pack(repository), mtime=0)
    except (OSError, ValueError, KeyError, SyntaxError) as problem:
        raise Failure(f"the program is not complete here ({problem})", "git status", EXIT_INTEGRITY) from problem
    return base64.b64encode(packed).decode("ascii"), hashlib.sha256(packed).hexdigest()


class FarInstallation:
    """What was seen of an installation on another machine, so that a new line goes on where the old one ended.

    options: for bootstrap.py there; host: the machine's name as the user typed it; emit: takes each event (--json).
    """

    def __init__(self, options: Sequence[str], host: str, screen: Screen, emit: Callable[[Json], None]) -> None:
        self.options, self.host, self.screen, self.emit = list(options), host, screen, emit
        self.begun = self.done = False
        self._id, self._offset, self._shown = "", 0, True

    def run(self, connection: Connection, home: str | None) -> None:
        """Send the program if it is not there, install, show what is said; Failure if it fails there."""
        if self.done:
            return
        if not self.begun:
            archive, digest = pack_program()
            if not self._ask(connection, "program", home=home, digest=digest)["there"]:
                self.screen.report(f"sending the program to {self.host} ({len(archive) * 3 // 4 // 1000} kB)")
                self._ask(connection, "program", home=home, digest=digest, archive=archive)
        self.begun = True
        ended = self._ask(connection, "install", home=home, options=self.options, id=self._id, offset=self._offset)
        self.done = True
        self.emit({"event": "installed", "host": self.host, "code": ended["code"]})
        if ended["code"]:
            hint = str(ended.get("hint") or "").replace(" --json ", " ", 1)  # that was for us
            hint = f"on {self.host}: {hint}" if hint else ""
            raise Failure(f"on {self.host}: {ended['error']}", hint, int(ended["code"]))

    def _ask(self, connection: Connection, op: str, **request: Any) -> Json:
        answer = connection.ask(op, on_said=self._show, **request)
        if not answer["ok"]:
            raise refusal(answer, connection.ssh, None, "")
        return answer

    def _show(self, message: Json) -> None:
        """Show a line that bootstrap.py said there."""
        self._id, self._offset = str(message["id"]), int(message["offset"])
        line = str(message["said"])
        if line.startswith(HIDDEN):
            self._shown = False  # from here on it is the end: the last screen, or the error
        if self._shown:
            self.screen.report(f"  {line}" if line else "")
            self.emit({"event": "installing", "host": self.host, "line": line})
