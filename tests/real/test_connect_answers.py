"""connect.py and a host whose answers are cut, altered or made up: one sentence each time, and it ends."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from colab_local.laptop.agent import MARK
from tests.conftest import REPO

ANSWER = {
    "ok": True,
    "running": True,
    "pid": 4711,
    "port": 8888,
    "token": "t",
    "base_url": "/",
    "name": "cpu-0123456789ab",
    "env": "cpu",
    "host": "gpubox",
    "kernels": 1,
    "notebook_dir": "/home/me",
    "current": True,
}
ODD: tuple[Any, ...] = (None, [], {}, "", "x\x1b[2J", -1, 10**30, 1.5, True, [[[]]], {"a": {}}, "\ud800")


def mutations(seed: int, count: int) -> list[str]:
    """Return so many altered answers, as lines."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        answer: dict[str, Any] = dict(ANSWER)
        kind = chance.randrange(5)
        name = chance.choice(list(answer))
        if kind == 0:
            del answer[name]
        elif kind < 3:
            answer[name] = chance.choice(ODD)
        text = json.dumps(answer)
        if kind == 3:
            text = text[: chance.randrange(len(text))]
        elif kind == 4:
            text = chance.choice(
                ["[]", "null", "1", "{}", '{"ok": 1}', '{"ok": false}', '{"note": 3}', "[" * 100_000]
            )
        made.append(text)
    return made


def ask(folder: Path, number: int, text: str, option: str) -> subprocess.CompletedProcess[str]:
    """Run connect.py against an ssh that gives one answer, and then ends."""
    folder = folder / f"{number}{option}"
    folder.mkdir()
    (folder / "answer").write_text(MARK + text + "\n")
    ssh = folder / "ssh"
    hello = MARK + json.dumps({"ok": True, "hello": "gpubox"})
    ready = MARK + json.dumps({"ready": True})
    lines = f"echo '{ready}'\nread -r program\necho '{hello}'\nread -r request\ncat '{folder}/answer'\nexit 255\n"
    ssh.write_text(f"#!/bin/sh\n{lines}")
    ssh.chmod(0o755)
    argv = [sys.executable, str(REPO / "scripts" / "connect.py"), "--ssh", str(ssh), option, "gpubox"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100)


def test_whatever_a_host_answers_it_ends_in_a_sentence(tmp_path: Path) -> None:
    texts = mutations(11, 58)
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(ask, tmp_path, number, text, "--stop" if number % 2 else "--status")
            for number, text in enumerate(texts)
        ]
        done = [job.result() for job in jobs]
    lost = []
    for text, one in zip(texts, done, strict=True):
        two_lines = re.fullmatch(r"error: .+\nhint: .+\n", one.stderr)
        told = one.returncode in (0, 1) and one.stdout.count("\n") == 1 and not one.stderr
        if not (told or (two_lines and one.returncode in (1, 5))) or "\x1b" in one.stdout + one.stderr:
            lost.append((text[:200], one.returncode, one.stdout[-300:], one.stderr[-600:]))
    assert lost == []
