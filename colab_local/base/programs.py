"""Other programs: their environment, running them, what they said."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Sequence

from colab_local.base.errors import EXIT_FAILED, EXIT_INTEGRITY, Failure
from colab_local.base.progress import Size, written_by
from colab_local.base.terminal import Screen
from colab_local.base.text import mask


def child_environment(**extra: str) -> dict[str, str]:
    """Return os.environ for a child process, without what makes children act for another Python or conda.

    Where packages come from (pip's and uv's index, cache and certificate settings, proxies) stays.
    """
    misleading = re.compile(
        r"PYTHON|CONDA|MAMBA|PIXI|_CE_|VIRTUAL_ENV|JUPYTER|IPYTHON|LD_|DYLD_|TF_|XLA_|OMP_|MKL_|CUDA_VISIBLE"
        r"|UV_(PYTHON|PROJECT|SYSTEM|TARGET|NO_DEPS|REQUIRE|PRERELEASE|RESOLUTION|EXCLUDE_NEWER|CONSTRAINT|OVERRIDE"
        r"|COMPILE|NO_BINARY|NO_BUILD|BREAK)"
        r"|PIP_(TARGET|PREFIX|ROOT|USER|REQUIRE|CONSTRAINT|NO_DEPS|NO_BINARY|ONLY_BINARY|PYTHON|DRY_RUN|EDITABLE)"
    )
    kept = {name: value for name, value in os.environ.items() if not misleading.match(name)}
    kept.update(extra)
    return kept


def telling_line(out: str, err: str, status: int) -> str:
    """Return the one line of a failed program's output that says why: its first error, else its last word."""
    lines = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
    telling = re.compile(r"(error|fatal|\S*(Error|Exception))\b|.*: command not found$", re.IGNORECASE)
    errors = [line for line in lines if telling.match(line)]
    said = (errors or lines[-1:] or ["nothing said"])[0]
    return f"{said[:300]} (exit status {status})"


def run(
    argv: Sequence[Any],
    screen: Screen,
    env: dict[str, str] | None = None,
    input: str | None = None,
    timeout: float | None = None,
    cwd: Any | None = None,
    running: set[subprocess.Popen[str]] | None = None,
    size: Size | None = None,
    watched: bool = True,
) -> str:
    """Run a program to its end and return its standard output.

    env: its environment, default child_environment(); input: text for its stdin, default none at all;
    timeout: seconds; running: gets the process as long as it lives, so that another thread can end it; size: how much
    it will write, for the step that is shown; watched: the step shows its newest line.

    Raise Failure with the line of its output that tells most when it fails; the log has all of it.
    A Python that gets -c or -m needs -I too: else it takes modules from the current folder first, whoever filled it.
    """
    argv = [str(arg) for arg in argv]
    shown = mask(" ".join(shlex.quote(arg) for arg in argv))
    screen.log("$ " + shown)
    if screen.verbose:
        screen.report("$ " + shown)
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                argv,
                env=child_environment() if env is None else env,
                stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=None if cwd is None else str(cwd),
                text=True,
                errors="replace",
            )
        except OSError as problem:
            raise Failure(f"can't run {argv[0]} ({problem.strerror})") from problem
        before = screen.output, screen.meter
        if watched:
            screen.output = errors
        if size:
            screen.meter = written_by(child.pid, Path(tempfile.gettempdir() if cwd is None else cwd), size)
        if running is not None:
            running.add(child)
        try:
            out, _ = child.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise Failure(f"{Path(argv[0]).name} did not end within {timeout or 0:.0f} s") from None
        except BaseException:  # Ctrl-C: the child goes first, so that nothing writes while we clean up
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            child.wait()
            raise
        finally:
            if watched:
                screen.output, screen.meter = before
            if running is not None:
                running.discard(child)
        errors.seek(0)
        err = errors.read().decode("utf-8", "replace")
    screen.log(out + err)
    if child.returncode:
        said = mask(f"{Path(argv[0]).name} failed: {telling_line(out, err, child.returncode)}")
        damaged = re.search(
            r"hash mismatch|checksum|sha256 mismatch|do not match the hashes", out + err, re.IGNORECASE
        )
        raise Failure(said, code=EXIT_INTEGRITY if damaged else EXIT_FAILED)
    return out


def succeeds(argv: Sequence[Any], screen: Screen) -> bool:
    """Return whether a program can be run and ends with status 0."""
    try:
        run(argv, screen, timeout=60)
    except Failure:
        return False
    return True


def path_with(folder: Path) -> str:
    """Return PATH with `folder` first."""
    return os.pathsep.join([str(folder)] + [p for p in [os.environ.get("PATH", "")] if p])
