"""Which test provokes which hint, seen while the tests run: provoked.json is the list, and each run is held to it.

A site (hint_sites.py) counts as provoked where its code ran in the test itself, or where a program that the test
started said its words. Every hint that a program prints is looked at where it is printed: a shell reads it, and if it
is a command of ours, that program's own parser takes it.

    COLAB_LOCAL_PROVOKED=write pytest tests/unit    writes down what these tests provoke, too
"""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from colab_local.base.errors import Failure
from colab_local.base.hints import COMMAND
from colab_local.install import surroundings
from colab_local.laptop import agent, cures
from tests.conftest import REPO
from tests.support.hint_sites import HOLE, PROGRAMS, TAKES, Site, parser_of, sites

TABLE = Path(__file__).with_suffix(".json")
BASH = shutil.which("bash") or "bash"  # a test may have changed PATH
FEWEST = 10  # letters of a text's own that are enough to tell a site by
OURS = re.compile(r"[/ ](bootstrap\.py|scripts/(?:\w+/)*\w+\.py)(?: |$)")


@cache
def table() -> dict[str, str]:
    """Return {site: the test that provokes it, "" for none}."""
    return dict(json.loads(TABLE.read_text()))


@cache
def by_file() -> dict[str, list[Site]]:
    """Return the sites of each file."""
    found: dict[str, list[Site]] = {}
    for site in sites():
        found.setdefault(str(REPO / site.place.split()[0]), []).append(site)
    return found


def pattern_of(texts: list[str]) -> re.Pattern[str] | None:
    """Return what finds one of these texts; None where too little of them is their own."""
    own = [text for text in texts if len(text.replace(HOLE, "").strip()) >= FEWEST]
    made = ["".join(".*" if part == HOLE else re.escape(part) for part in re.split(f"({HOLE})", one)) for one in own]
    return re.compile("|".join(f"(?:{one})" for one in made), re.DOTALL) if made else None


@cache
def patterns() -> list[tuple[Site, re.Pattern[str], re.Pattern[str] | None]]:
    """Return (site, what finds its error, what finds its hint) of those that can be told by their words."""
    found = []
    for site in sites():
        what = pattern_of(site.what)
        if what:
            found.append((site, what, pattern_of([COMMAND.sub(HOLE, text) for text in site.hint])))
    return found


def pairs(said: str) -> Iterator[tuple[str, str]]:
    """Yield (error, hint) as programs of ours print them, as lines or as JSON."""
    error = ""
    for line in re.sub(r"\x1b\[[\d;]*m", "", said).splitlines():
        if line.startswith(("error: ", "warning: ")):
            error = line.partition(": ")[2]
        elif line.startswith("hint: ") and error:
            yield error, line[6:]
    for found in re.finditer(r'"(?:error|what)": ("(?:[^"\\]|\\.)*"),\s*"hint": ("(?:[^"\\]|\\.)*")', said):
        yield json.loads(found.group(1)), json.loads(found.group(2))


class Recorder:
    """What the running test has provoked so far."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.hints: set[str] = set()

    def called(self, depth: int) -> None:
        """Take note of a hint that is made by one of the callers, up to `depth` frames above."""
        frame = sys._getframe(2)
        for _ in range(depth):
            for site in by_file().get(frame.f_code.co_filename, ()):
                if site.lines[0] <= frame.f_lineno <= site.lines[1]:
                    self.seen.add(site.name)
                    if frame.f_code.co_name not in TAKES:  # else it was given this hint by its caller
                        return
            if frame.f_back is None:
                return
            frame = frame.f_back

    def heard(self, *said: Any) -> None:
        """Take note of what a program said."""
        for text in said:
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            if not isinstance(text, str) or "hint" not in text:
                continue
            for error, hint in pairs(text):
                self.hints.add(hint)
                fit = [(site, tells) for site, what, tells in patterns() if what.search(error)]
                told = [site for site, tells in fit if tells and tells.search(hint)]
                if told or len(fit) == 1:
                    self.seen.add((told or [fit[0][0]])[0].name)


RECORDER = Recorder()


def untypable(hint: str) -> str:
    """Return what is wrong with a hint as it was printed: its shell, or our own parser, does not take it; or ""."""
    first = hint.partition(" ")[0]
    if not (first in PROGRAMS.split() or Path(first).name.startswith("python")):
        return ""  # a sentence
    checked = subprocess.run([BASH, "-n"], input=hint, capture_output=True, text=True, check=False)
    if checked.stderr:
        return checked.stderr.strip()
    found = OURS.search(hint.replace("'", "").partition("   #")[0]) if "python" in first else None
    if not found or not (REPO / found.group(1)).is_file():
        return ""
    words = shlex.split(hint, comments=True)[2:]
    end = next((number for number, word in enumerate(words) if word in ("&&", "|", ";", ">")), len(words))
    if "--help" in words:
        return ""
    try:
        parser_of(found.group(1)).parse_args(words[:end])
    except Failure as problem:
        return problem.what
    return ""


def install() -> None:
    """Listen to every hint that is made here, and to every program that is run to its end."""

    def listening(original: Callable[..., Any], depth: int) -> Callable[..., Any]:
        def made(*args: Any, **words: Any) -> Any:
            RECORDER.called(depth)
            return original(*args, **words)

        return made

    for kind in (Failure, cures.Fault, agent.Refusal):
        kind.__init__ = listening(kind.__init__, 4)  # type: ignore[method-assign]
    surroundings.Finding.__new__ = listening(surroundings.Finding.__new__, 3)  # type: ignore[method-assign]
    communicate = subprocess.Popen.communicate

    def heard(self: Any, *args: Any, **words: Any) -> Any:
        said = communicate(self, *args, **words)
        RECORDER.heard(*said)
        return said

    subprocess.Popen.communicate = heard  # type: ignore[method-assign]


def held(test: str) -> list[str]:
    """Return what is wrong after a test of the list has passed.

    That is a hint that it no longer provokes, or one that was printed and can't be typed.
    """
    claimed = [site for site, by in table().items() if by == test]
    wrong = [f"{site}: not provoked, as provoked.json says" for site in claimed if site not in RECORDER.seen]
    printed = sorted(RECORDER.hints) if claimed else []
    return wrong + [f"{hint}: {why}" for hint in printed for why in [untypable(hint)] if why]


def write(test: str) -> None:
    """Add to the list what a test has provoked, and drop the sites that are gone."""
    with TABLE.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # tests/lab runs beside the others
        known = json.load(file)
        made = {site.name: known.get(site.name, "") for site in sites()}
        made.update({site: made[site] or test for site in RECORDER.seen & made.keys()})
        if made != known:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(dict(sorted(made.items())), indent=1) + "\n")
