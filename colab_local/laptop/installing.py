"""Installing on the host that the agent runs on: bootstrap.py outlives the line, and its words can be read again.

The program goes to <home>/program, its output to <home>/logs, what runs is written down in <home>/run/install.json.
A line that drops ends nothing: whoever connects next reads on where the last one stopped.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Sequence

from colab_local.base import documents
from colab_local.base.errors import AGAIN, EXIT_INTEGRITY, Failure
from colab_local.base.files import private_file, remove_tree, write_atomically
from colab_local.base.programs import child_environment

Json = Dict[str, Any]
POLL_S = 0.3  # between two looks at the output
DIGEST_FILE = ".digest"  # in the program's folder: which program it is
STATE_SHAPE = {"id": r"[\w-]+", "pid": int, "options": [str]}

# Runs a program ($2 and on) and leaves its exit code in the file $1, whole or not at all.
KEEP_EXIT_CODE = 'status=$1; shift; "$@"; code=$?; echo $code >"$status.part"; mv "$status.part" "$status"'


def program_folder(home: Path) -> Path:
    """Return where the program is on this host."""
    return home / "program"


def has_program(home: Path, digest: str) -> bool:
    """Return whether this very program is here."""
    with contextlib.suppress(OSError):
        return (program_folder(home) / DIGEST_FILE).read_text(encoding="ascii") == digest
    return False


def unpack_program(home: Path, archive: str, digest: str) -> None:
    """Put the program in its place, whole or not at all.

    archive: a tar.gz in base64; digest: its SHA-256. Raise Failure when it is another one.
    """
    content = base64.b64decode(archive)
    if hashlib.sha256(content).hexdigest() != digest:
        raise Failure("the program arrived damaged", AGAIN, EXIT_INTEGRITY)
    home.mkdir(parents=True, exist_ok=True)
    folder = program_folder(home)
    fresh, old = folder.with_name("program.part"), folder.with_name("program.old")
    remove_tree(fresh)
    try:
        unpack(content, fresh)
        (fresh / DIGEST_FILE).write_text(digest, encoding="ascii")
    except BaseException:  # a disk that is full is not to stay so
        remove_tree(fresh)
        raise
    remove_tree(old)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    remove_tree(old)


def unpack(content: bytes, fresh: Path) -> None:
    """Write a tar.gz's plain files below a new folder; Failure for anything else in it."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as members:
        for member in members:
            path = PurePosixPath(member.name)
            if not member.isreg() or path.is_absolute() or ".." in path.parts:
                raise Failure(f"the program holds something that is no plain file ({member.name})", "git status")
            target = fresh / path
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = members.extractfile(member)
            assert stream is not None
            target.write_bytes(stream.read())
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


def read_state(home: Path) -> Json | None:
    """Return what is written down of the newest installation, None if there is nothing."""
    with contextlib.suppress(OSError, ValueError):
        return dict(documents.read(home / "run" / "install.json", STATE_SHAPE))
    return None


def output_files(home: Path, identifier: str) -> tuple[Path, Path, Path]:
    """Return where an installation leaves what it says, its result as JSON, and its exit code."""
    return (
        home / "logs" / f"install-{identifier}.log",
        home / "run" / f"install-{identifier}.json",
        home / "run" / f"install-{identifier}.code",
    )


def is_running(home: Path, state: Json, is_alive: Callable[[int], bool]) -> bool:
    """Return whether an installation is at work: its process lives, and it has left no exit code."""
    return not output_files(home, state["id"])[2].exists() and is_alive(state["pid"])


def start(home: Path, options: Sequence[str]) -> Json:
    """Start bootstrap.py so that it outlives this line; return what is written down of it."""
    for name in ("run", "logs"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for stale in (*(home / "run").glob("install-*"), *sorted((home / "logs").glob("install-*.log"))[:-4]):
        remove_tree(stale)
    identifier = "{}-{}".format(time.strftime("%Y%m%dT%H%M%S"), os.getpid())
    said, result, code = output_files(home, identifier)
    program = program_folder(home) / "bootstrap.py"
    argv = [sys.executable, str(program), "--json", "--prefix", str(home), *options]
    with os.fdopen(private_file(said), "wb") as log, os.fdopen(private_file(result), "wb") as document:
        child = subprocess.Popen(
            ["sh", "-c", KEEP_EXIT_CODE, "sh", str(code), *argv],
            env=child_environment(),
            cwd=str(home),
            stdin=subprocess.DEVNULL,
            stdout=document,
            stderr=log,
            start_new_session=True,  # no terminal, no signal of this line reaches it
        )
    state = {"id": identifier, "pid": child.pid, "options": list(options)}
    write_atomically(home / "run" / "install.json", json.dumps(state) + "\n")
    return state


def follow(
    home: Path, state: Json, offset: int, show: Callable[[Json], None], is_alive: Callable[[int], bool]
) -> Json:
    """Show what an installation says, from `offset` bytes on, until it has ended; return how it ended.

    show: gets each line, and where it ends. The answer has the exit code, `code`, and
    bootstrap.py's `error` and `hint` where it failed.
    """
    said, result, code = output_files(home, state["id"])
    while True:
        running = is_running(home, state, is_alive)  # before the last look: what it said at its end is not lost
        with said.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n") and running:
                    break
                offset += len(line)
                said_now = line.decode("utf-8", "replace").rstrip("\n")
                show({"said": said_now, "id": state["id"], "offset": offset})
        if not running:
            return {"id": state["id"], "offset": offset, **ending(result, code)}
        time.sleep(POLL_S)


def ending(result: Path, code: Path) -> Json:
    """Return how an installation ended, from the files that it left."""
    try:
        number = int(documents.read_bytes(code, 99))
    except (OSError, ValueError):
        return {"code": 1, "error": "the installation was ended from outside", "hint": ""}
    found: Json = {"code": number, "error": "", "hint": ""}
    with contextlib.suppress(OSError, ValueError):
        document = documents.read(result, dict)
        found.update({name: str(document.get(name) or "") for name in ("error", "hint")})
    if number and not found["error"]:
        found["error"] = f"bootstrap.py ended with exit code {number}"
    return found


def begin(home: Path, request: Json, is_alive: Callable[[int], bool]) -> tuple[Json, int]:
    """Start an installation, unless one is at work or the laptop saw one end; return it, and how much was seen of it.

    request: `options` for bootstrap.py; `id` and `offset` of what the laptop has seen already. An installation that
    is at work is watched, whoever began it: two would wait for each other.
    """
    state, known = read_state(home), str(request.get("id") or "")
    if state and state["id"] == known:
        return state, int(request.get("offset") or 0)
    if state and is_running(home, state, is_alive):
        return state, 0
    options = [str(option) for option in request.get("options") or []]
    if not all(re.fullmatch(r"[^\x00\n]*", option) for option in options):
        raise Failure("an option holds a line break", "type the line again without it")
    return start(home, options), 0
