"""Trying a new environment out: it imports, computes and serves before anything switches to it."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Sequence

from colab_local.base.programs import child_environment, path_with, run
from colab_local.base.terminal import Screen
from colab_local.install import seal

PROGRAM = Path(__file__).resolve().parent / "smoke_test.py"  # what the environment's own Python runs


def try_out(
    prefix: Path, names: Sequence[str], expects_gpu: bool, screen: Screen
) -> tuple[list[str], dict[str, str]]:
    """Import, compute and load the extension once: it proves the environment and leaves it warm.

    Both children also write the .pyc files that make the first cell and Jupyter's first start quick. Meanwhile
    the receipt's seal is taken of what was installed. names: of the locked packages; expects_gpu: one must be seen.
    Return what the user should know, and the seal.
    """
    python = prefix / "bin" / "python"
    env = child_environment(TF_CPP_MIN_LOG_LEVEL="3", PATH=path_with(prefix / "bin"))
    expect = ["--expect-gpu"] if expects_gpu else []
    tree = seal.walk(prefix)  # before .pyc files come and go
    seal.close_to_others(prefix, tree.open)  # packages and caches may hold files with such modes
    running: set[subprocess.Popen[str]] = set()

    def ask(timeout_s: float, *words: str) -> str:
        watched = words[0] == "compute"  # it takes longer, and says how far it is
        return run([python, "-I", PROGRAM, *words], screen, env, timeout=timeout_s, running=running, watched=watched)

    with ThreadPoolExecutor(2) as pool:
        sealing = pool.submit(seal.sealed, prefix, tree, {})
        serving = pool.submit(ask, 300, "serve")
        try:
            found: dict[str, Any] = json.loads(ask(900, "compute", *expect, *names).splitlines()[-1])
            serving.result()
        except BaseException:  # Ctrl-C, or one of them has failed: the other is not waited for
            for child in list(running):
                child.terminate()
            raise
    screen.log(json.dumps(found))
    return list(found["notices"]), sealing.result()
