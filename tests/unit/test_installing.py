"""What connect.py --install does on the far machine, and what it sends there."""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import io
import os
import signal
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.errors import Failure
from colab_local.install.servers import is_alive
from colab_local.laptop import installing
from colab_local.laptop.sending import pack_program
from tests.conftest import REPO

packed_once = functools.cache(pack_program)


def test_the_pack_is_the_same_for_the_same_files() -> None:
    archive, digest = packed_once()
    assert (archive, digest) == pack_program()
    assert hashlib.sha256(base64.b64decode(archive)).hexdigest() == digest
    assert len(archive) < 2_000_000
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive))) as members:
        names = set(members.getnames())
    assert {"bootstrap.py", "colab_local/base/errors.py", "lockfiles/index.json", "scripts/doctor.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "."))]


def test_a_program_is_put_there_whole_and_replaced_whole(tmp_path: Path) -> None:
    archive, digest = packed_once()
    home = tmp_path / "new" / "home"
    assert not installing.has_program(home, digest)
    installing.unpack_program(home, archive, digest)
    assert installing.has_program(home, digest)
    assert (home / "program" / "bootstrap.py").read_bytes() == (REPO / "bootstrap.py").read_bytes()
    assert os.access(home / "program" / "bootstrap.py", os.X_OK)
    (home / "program" / "stale.py").touch()
    installing.unpack_program(home, archive, digest)
    assert sorted(path.name for path in home.iterdir()) == ["program"]
    assert not (home / "program" / "stale.py").exists()


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> tuple[str, str]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for entry, content in members:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    content = gzip.compress(stream.getvalue())
    return base64.b64encode(content).decode(), hashlib.sha256(content).hexdigest()


def test_a_pack_that_leads_elsewhere_or_is_another_one_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("bootstrap.py")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for entry in (tarfile.TarInfo("../outside"), tarfile.TarInfo("/outside"), link):
        with pytest.raises(Failure):
            installing.unpack_program(tmp_path / "home", *packed((entry, b"")))
    with pytest.raises(Failure, match="damaged"):
        installing.unpack_program(tmp_path / "home", packed_once()[0], "0" * 64)
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "home" / "program").exists()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose program counts to three, then does as its options say."""
    monkeypatch.setattr(installing, "POLL_S", 0.02)
    program = tmp_path / "home" / "program" / "bootstrap.py"
    program.parent.mkdir(parents=True)
    program.write_text(
        "import json, sys, time\n"
        "for number in (1, 2, 3):\n"
        "    print(f'[{number}/3] step', file=sys.stderr, flush=True); time.sleep(0.2)\n"
        "if '--fail' in sys.argv:\n"
        "    print(json.dumps({'ok': False, 'error': 'too old (found 1, need 2)', 'hint': 'buy one', 'code': 3}))\n"
        "    sys.exit(3)\n"
        "print(json.dumps({'ok': True}))\n"
    )
    return tmp_path / "home"


def seen(home: Path, request: dict[str, Any], until: int = 99) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Install; return the lines, the last message and how it ended. until: so many lines, then the line drops."""
    messages: list[dict[str, Any]] = []

    def show(message: dict[str, Any]) -> None:
        messages.append(message)
        if len(messages) == until:
            raise ConnectionError

    state, offset = installing.begin(home, request, is_alive)
    ended: dict[str, Any] = {}
    with contextlib.suppress(ConnectionError):
        ended = installing.follow(home, state, offset, show, is_alive)
    return [str(message["said"]) for message in messages], messages[-1] if messages else {}, ended


def test_a_new_line_reads_on_where_the_old_one_ended(home: Path) -> None:
    first, last, _ = seen(home, {"options": []}, until=1)
    rest, _, ended = seen(home, {"options": [], "id": last["id"], "offset": last["offset"]})
    assert (first, rest, ended["code"]) == (["[1/3] step"], ["[2/3] step", "[3/3] step"], 0)
    after, _, ended = seen(home, {"options": [], "id": last["id"], "offset": ended["offset"]})
    assert (after, ended["code"]) == ([], 0), "it has ended meanwhile, and is not begun again"


def test_somebody_elses_installation_is_watched_from_its_start(home: Path) -> None:
    _, last, _ = seen(home, {"options": []}, until=1)
    lines, other, ended = seen(home, {"options": ["--fail"]})
    assert other["id"] == last["id"]
    assert (lines, ended["code"]) == (["[1/3] step", "[2/3] step", "[3/3] step"], 0)


def test_how_it_failed_is_told(home: Path) -> None:
    _, _, ended = seen(home, {"options": ["--fail"]})
    assert (ended["code"], ended["error"], ended["hint"]) == (3, "too old (found 1, need 2)", "buy one")
    assert (home / "logs").stat().st_mode & 0o777
    for file in (home / "logs").iterdir():
        assert not file.stat().st_mode & 0o077, "its owner's alone"


def test_one_that_was_killed_has_ended(home: Path) -> None:
    state, offset = installing.begin(home, {"options": []}, is_alive)
    threading.Timer(0.3, lambda: os.killpg(state["pid"], signal.SIGKILL)).start()
    started = time.monotonic()
    ended = installing.follow(home, state, offset, lambda message: None, is_alive)
    assert (ended["code"], ended["error"]) == (1, "the installation was ended from outside")
    assert time.monotonic() - started < 5
