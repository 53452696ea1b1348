"""Trying a new environment out: it imports, computes and serves before anything switches to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from colab_local.base.errors import EXIT_INTEGRITY, EXIT_MACHINE, Failure
from colab_local.base.programs import child_environment, path_with, run
from colab_local.base.terminal import Screen
from colab_local.install import seal

PATIENCE_S = 3.0  # for a program that has been asked to end
PROGRAM = Path(__file__).resolve().parent / "smoke_test.py"  # what the environment's own Python runs
VISIBLE = "CUDA_VISIBLE_DEVICES"
CHOICES = re.compile(
    r"CUDA_|NVIDIA_|NCCL_|TF_|XLA_"
)  # how a user chooses what TensorFlow does: Jupyter gets them, too
COMPUTE_S, SERVE_S, GPU_S = 900, 300, 900  # a card whose code the driver has to translate first takes minutes


class GpuFailure(Failure):
    """The environment is whole, and works on the CPU; its GPU part does not."""


class Damage(Failure):
    """What was installed is not what the wheels hold: uv's cache had been damaged before. packages: their names."""

    def __init__(self, damaged: Mapping[str, str]) -> None:
        self.packages = sorted(damaged)
        files = ", ".join(damaged[name] for name in self.packages[:3])
        super().__init__(
            f"{len(damaged)} of the installed packages came out damaged ({', '.join(self.packages[:6])}: {files})",
            "run the same command again; if files come out damaged again, check this machine's memory and disk",
            EXIT_INTEGRITY,
        )


class TriedOut(NamedTuple):
    """What came of it: what the user should know, the receipt's seal, and the line on the GPU ("" without one)."""

    notices: list[str]
    seal: dict[str, str]
    gpu: str


def try_out(
    prefix: Path,
    accelerator: str,
    names: Sequence[str],
    cards: Sequence[Mapping[str, Any]] | None,
    screen: Screen,
) -> TriedOut:
    """Import, compute and load the extension once: it proves the environment and leaves it warm.

    Both children also write the .pyc files that make the first cell and Jupyter's first start quick. Once Jupyter
    has served, and while the rest still computes, all that was installed is read: for the receipt's seal, and to
    compare it with what the wheels say. accelerator: what the environment is for; names: of the locked
    packages; cards: the GPUs that were found and have to
    work, None where no GPU is asked for.

    Raises:
        Damage: a file is not as its wheel has it. GpuFailure: all is well but for the GPU.
    """
    python = prefix / "bin" / "python"
    env = child_environment(TF_CPP_MIN_LOG_LEVEL="3", PATH=path_with(prefix / "bin"), CUDA_VISIBLE_DEVICES="-1")
    tree = seal.walk(prefix)  # before .pyc files come and go
    seal.close_to_others(prefix, tree.open)  # packages and caches may hold files with such modes
    running: set[subprocess.Popen[str]] = set()

    def ask(timeout_s: float, *words: str) -> str:
        watched = words[0] == "compute"  # it takes longer, and says how far it is
        return run([python, "-I", PROGRAM, *words], screen, env, timeout=timeout_s, running=running, watched=watched)

    with ThreadPoolExecutor(1) as pool:  # one after the other: with the one that computes two at a time are enough
        serving = pool.submit(ask, SERVE_S, "serve")
        sealing = pool.submit(seal.take, prefix, tree)
        try:
            found: dict[str, Any] = json.loads(ask(COMPUTE_S, "compute", accelerator, *names).splitlines()[-1])
            serving.result()
        except BaseException as problem:  # Ctrl-C, or one of them has failed: the other is not waited for
            serving.cancel()
            if not isinstance(problem, Failure):
                sealing.cancel()
            patience = time.monotonic() + PATIENCE_S
            while not serving.done():  # it may be about to start its program only now; Jupyter may not heed a signal
                for child in list(running):
                    (child.terminate if time.monotonic() < patience else child.kill)()
                wait([serving], 0.1)
            if isinstance(problem, Failure):
                demand_whole(sealing.result())  # which may be why
            raise
        taken = sealing.result()
    demand_whole(taken)
    screen.log(json.dumps(found))
    proof = prove_gpu(prefix, cards, screen) if cards is not None else ""
    notices = [proof] if proof.startswith("tried out without") else []
    return TriedOut(notices, taken.sealed, "" if notices else proof)


def demand_whole(taken: seal.Seal) -> None:
    """Raise Damage if a file was found that is not as its wheel has it."""
    if taken.damaged:
        raise Damage(taken.damaged)


def gpu_environment(prefix: Path, environ: Mapping[str, str], cards: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the environment in which the GPU is tried out: the user's choices as Jupyter will have them.

    cards: as --json has them. Where some can't be used, the others alone are visible, by their UUIDs.
    """
    choices = {name: value for name, value in environ.items() if CHOICES.match(name)}
    env = {**child_environment(PATH=path_with(prefix / "bin")), "TF_CPP_MIN_LOG_LEVEL": "1", **choices}
    usable = [str(card["uuid"]) for card in cards if card.get("usable") and card.get("uuid")]
    if usable and len(usable) < len(cards):
        env[VISIBLE] = ",".join(usable)
    return env


def prove_gpu(prefix: Path, cards: Sequence[Mapping[str, Any]], screen: Screen) -> str:
    """Let every visible card compute; return the line that says how it went.

    Raises:
        GpuFailure: no card is seen, or one fails.
    """
    argv = [prefix / "bin" / "python", "-I", "-m", "colab_local_jupyter.gpu"]
    env = gpu_environment(prefix, os.environ, cards)
    try:
        report: dict[str, Any] = json.loads(run(argv, screen, env, timeout=GPU_S).splitlines()[-1])
    except GpuFailure:
        raise
    except Failure as failure:  # it crashed within TensorFlow or the driver, or did not end
        raise GpuFailure(
            f"TensorFlow fails on the GPU: {failure.what}{kernel_log(screen)}", "", EXIT_MACHINE
        ) from None
    screen.log(json.dumps(report))
    if report["ok"]:
        return str(report["sentence"])
    if report.get("hidden"):
        return f"tried out without a GPU: {VISIBLE}={os.environ.get(VISIBLE, '')} hides every GPU"
    raise GpuFailure(f"{report['sentence']}{kernel_log(screen)}", "", EXIT_MACHINE)


def kernel_log(screen: Screen) -> str:
    """Return the newest line of the kernel's log about the NVIDIA driver, in brackets; "" if it can't be read."""
    try:
        lines = [line for line in run(["dmesg"], screen, timeout=10, watched=False).splitlines() if "NVRM" in line]
    except Failure:
        return ""
    return f" (the kernel's log: {lines[-1].strip()[:200]})" if lines else ""
