"""Every command that the environment puts on PATH starts."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Installed

# Commands that their authors ship broken, or for a package that is not here; what they say. The list must stay true.
KNOWN = {
    "import_pb_to_tensorboard": "missing 1 required positional argument",  # TensorFlow 2.20 names a wrong function
    "iptest": "No module named 'nose'",  # IPython 7's own tests, which want a package of 2015
    "iptest3": "No module named 'nose'",
    "jupyter-labhub": "No module named 'jupyterhub'",  # for a JupyterHub's own environment
}
# What asks these for help, where --help is no option of theirs, and the exit code with which they give it.
HELP = {"pyftmerge": ([], 1), "saved_model_cli": (["--help"], 1), "ttx": (["-h"], 0)}


def scripts(prefix: Path) -> list[Path]:
    """Return the environment's own Python programs."""
    own = str(prefix.resolve())
    found = []
    for path in sorted((prefix / "bin").iterdir()):
        head = path.read_bytes()[:400] if path.is_file() and not path.is_symlink() else b""
        if head.startswith(b"#!") and (own.encode() in head or b"/bin/python" in head):
            found.append(path)
    return found


def start(path: Path, home: Path) -> str:
    """Return why a command does not start; "" if it does. home: of whoever starts it."""
    options, code = HELP.get(path.name, (["--help"], 0))
    done = subprocess.run(
        [str(path), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8"},
    )
    said = done.stdout + done.stderr
    return "" if done.returncode == code and "Traceback" not in said else said[-500:]


def test_every_console_script_starts(installed: Installed, tmp_path: Path) -> None:
    paths = scripts(installed.prefix)
    names = {path.name for path in paths}
    assert {"tensorboard", "jupyter-lab", "jupyter-notebook", "pip", "httpx", "jupyter-events"} <= names
    with ThreadPoolExecutor(4) as pool:
        failed = {
            path.name: said
            for path, said in zip(paths, pool.map(lambda path: start(path, tmp_path), paths), strict=True)
            if said
        }
    unknown = {name: said for name, said in failed.items() if KNOWN.get(name, "\0") not in said}
    assert not unknown
    assert set(failed) >= set(KNOWN) & names, "a command of KNOWN works again: take it off the list"


@pytest.mark.parametrize("name", ["tensorboard", "jupyter"])
def test_commands_know_their_version(installed: Installed, name: str) -> None:
    done = subprocess.run([str(installed.prefix / "bin" / name), "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
