"""What goes wrong, said in two lines: one exception for every program, and the exit codes."""

from __future__ import annotations

from typing import Any

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MACHINE = 3
EXIT_INTEGRITY = 4
EXIT_NETWORK = 5
EXIT_BUSY = 6
EXIT_DIFFERS = 7
EXIT_INTERRUPTED = 130

AGAIN = "type the same line again"  # the hint where nothing else helps


class Failure(Exception):
    """What went wrong and what to type next; main() shows it as two lines.

    what: one sentence with what was found and what is needed; hint: one command, or a sentence; code: the exit code.
    """

    def __init__(self, what: str, hint: str, code: int = EXIT_FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code
        self.details: dict[str, Any] = {}  # what --json says besides
