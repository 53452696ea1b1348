"""Other programs: their environment, running them, what they said."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Sequence

from colab_local.base import certificates
from colab_local.base.errors import AGAIN, EXIT_FAILED, EXIT_INTEGRITY, EXIT_MACHINE, EXIT_NETWORK, Failure
from colab_local.base.files import lacks_inodes
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


# What programs say of a fault that is not theirs, in their own words, and what kind it is. The first that fits
# counts: a full disk breaks hashes and connections too, and a bad certificate is a failed connection.
# tests/unit/test_failures.py has what uv 0.12 and 0.13, pip, conda and pixi really say.
KINDS = (
    ("disk", r"no space left on device|os error 28\b|errno 28\b|disk quota exceeded|os error 122\b|errno 122\b"
             r"|nospaceleft|not enough (free )?(disk )?space|disk full"),
    ("memory", r"cannot allocate memory|out of memory|memory allocation of \d+ bytes failed|os error 12\b|errno 12\b"
               r"|\bMemoryError\b|std::bad_alloc|failed to map segment"),
    ("certificate", r"certificate|unknownissuer|certificate_verify_failed|tls handshake|handshake failure"
                    r"|\bSSLError\b|invalid peer|received corrupt message of type"),
    ("integrity", r"hash mismatch|checksum|sha256 mismatch|do not match the hashes|not match the expected hash"
                  r"|bad crc|invalid (zip|gzip|zstd)|corrupt|truncated|not a (valid )?zip|unexpected end of zip"
                  r"|invalid local file header|end of central directory|deflate"),
    ("network", r"error sending request|connection (refused|reset|closed|aborted|timed out)|timed? ?out\b|dns error"
                r"|failed to (fetch|download|lookup)|name resolution|name or service not known|network is unreachable"
                r"|http (status|error)|status code|\b[45]\d\d (client|server) error|could not connect|CondaHTTPError"
                r"|not found in the package registry|end of file before message length|error decoding response body"
                r"|request failed|incomplete (body|message)|broken pipe|connectionerror|unexpected eof(?! in archive)"
                r"|there is no version of|no matching distribution|tunnel|proxy"),
)  # fmt: skip
PATIENCE_S = 10.0  # for a program that has been asked to end
CODES = {
    "disk": EXIT_MACHINE,
    "memory": EXIT_MACHINE,
    "integrity": EXIT_INTEGRITY,
    "certificate": EXIT_NETWORK,
    "network": EXIT_NETWORK,
}
BECAUSE = {
    "disk": "the disk is full",
    "memory": "memory ran out",
    "integrity": "a file is not the locked one",
    "certificate": "a certificate is not trusted",
    "network": "the network or the index failed",
}
HINTS = {
    "disk": "df -h {place}",
    "memory": "free -m",
    "integrity": "run the same command again; if files still arrive altered, from another network or mirror",
    "network": "check the network, proxy and package index, and run the same command again: it goes on from here",
}


def without_report(said: str) -> str:
    """Return what a program said, without the list of variables and settings in conda's error report."""
    return re.sub(r"(?ms)^`\$ .*^  environment variables:$.*?(?=^\w|\Z)", "", said)


def classify(said: str) -> str:
    """Return which kind of fault a program's words tell of: a key of CODES, or "" for one of its own."""
    text = re.sub(r"(?<![\w:/])/[^\s'\"`:,()]+", "", said)  # a folder called proxy is no network's fault
    return next((kind for kind, words in KINDS if re.search(words, text, re.IGNORECASE)), "")


def causes(out: str, err: str) -> list[str]:
    """Return what a failed program said, its first error and then the cause of each, outermost first.

    uv and pixi write a chain, one cause a line: `cause:`, `Caused by:`, or a tree drawn with lines; what is too long
    goes on in the next line. Other programs have a line that begins with Error, or a last word.
    """
    # a reader of YAML names the file in the line after
    said = re.sub(r'(?m)^(\s*\S+Error: .*)\n\s+in (".*", line \d+), .*$', r"\1 in \2", out + "\n" + err)
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    chain: list[str] = []
    for line in lines:
        found = re.match(
            r"\s*(?:[\u00d7x\u2717]|[\u251c\u2570\u2514\u2502]\u2500\u25b6|Caused by:|cause:|(?:\d+: ))\s+(.*)", line
        )
        more = re.match(r"\s*\u2502\s+(\S.*)|\s{6,}(\S.*)", line)
        if found:
            chain.append(found.group(1).strip())
        elif more and chain:
            chain[-1] += " " + (more.group(1) or more.group(2)).strip()
    # pip says why it tried again, and not why it gave up
    broken = re.findall(r"(?m)^WARNING: Retrying .* connection broken by '\w+\((.*?)\)': ", out + "\n" + err + " ")
    # nor why it left an index out, where it is to try once alone (its index/collector.py)
    left_out = r"(?m)^Could not fetch URL .*\(Caused by (?:\w+\()+(.*?)'?\)+ - skipping$"
    broken = broken or re.findall(left_out, out + "\n" + err)
    telling = re.compile(r"(error|fatal|\S*(Error|Exception))\b|.*: command not found$", re.IGNORECASE)
    errors = [line.strip() for line in lines if telling.match(line.strip())]
    bare = [line for line in errors if not re.fullmatch(r"error:?( exception:?)?", line, re.IGNORECASE)]
    if chain:
        return [*bare[:1], *chain] if bare and bare[0] not in chain else chain
    if bare and broken:
        return [bare[0], re.split(r": |, ['\"]|['\"],?$", broken[-1].strip("'\""))[-1] or broken[-1]]
    return bare[:1] or [line.strip() for line in lines[-1:]] or ["nothing said"]


def telling_line(out: str, err: str, status: int, kind: str = "") -> str:
    """Return in one line why a program failed: its first error, and of a chain of causes the last.

    kind: what classify() says; a line that tells of it counts as the last cause.
    """
    chain = causes(out, err)
    if kind and classify(chain[-1]) != kind:
        chain += [line.strip() for line in (out + "\n" + err).splitlines() if classify(line) == kind][-1:]
    chain = [re.sub(r"^ERROR: ", "", part) for part in chain]
    said = ": ".join(shortened(part) for part in dict.fromkeys([chain[0], chain[-1]]))
    return f"{said} ({how_it_ended(status)})"


def shortened(text: str, most: int = 240) -> str:
    """Return a line of at most about `most` letters: what it begins with, and what it ends with."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def how_it_ended(status: int) -> str:
    """Return what an exit status means; Python writes the number of the signal that ended a program as a negative."""
    number = -status if status < 0 else status - 128 if status in (137, 143) else 0
    if not number:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(number).name}"
    return f"ended by signal {number}"


def memory_kills() -> int:
    """Return how many processes the kernel has ended here for lack of memory: in this control group, else at all."""
    for path, name in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        with contextlib.suppress(OSError, ValueError):
            found = re.search(rf"(?m)^{name} (\d+)$", Path(path).read_text())
            if found:
                return int(found.group(1))
    return 0


def failure_of(program: str, out: str, err: str, status: int, place: str, starved: bool) -> Failure:
    """Return what is said of a program that failed.

    place: the folder that it wrote to; starved: the kernel ended processes for lack of memory meanwhile.
    """
    out, err = without_report(out), without_report(err)
    kind = classify("\n".join(causes(out, err))) or classify(out + err)
    because = f", because {BECAUSE[kind]}" if kind else ""
    what = f"{program} failed{because}: {telling_line(out, err, status, kind)}"
    if how_it_ended(status) == "ended by SIGKILL":
        kind = "memory" if starved else "killed"
        why = "because memory ran out" if starved else "by somebody, or by the system because memory ran out"
        what = f"{program} was killed (SIGKILL), {why}"
    hint = HINTS.get(kind, "").format(place=shlex.quote(place))
    if kind == "disk" and lacks_inodes(Path(place)):
        hint = hint.replace("-h", "-i", 1)
    if kind == "certificate":
        hint = certificates.cure(out + err)
    if kind == "killed":
        hint = "free -m   # then the same command again"
    return Failure(mask(what), hint, CODES.get(kind, EXIT_FAILED))


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

    Raise Failure with what its output says of why it failed, and of what kind that is; the log has all of it.
    What `screen` holds (the home's lock) stays held until the program ends, even if we are killed before it.
    A Python that gets -c or -m needs -I too: else it takes modules from the current folder first, whoever filled it.
    """
    argv = [str(arg) for arg in argv]
    shown = mask(" ".join(shlex.quote(arg) for arg in argv))
    screen.log("$ " + shown)
    if screen.verbose:
        screen.report("$ " + shown)
    killed_before = memory_kills()
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                argv,
                env=child_environment() if env is None else env,
                stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=None if cwd is None else str(cwd),
                pass_fds=tuple(screen.held),
                text=True,
                errors="replace",
            )
        except OSError as problem:
            raise Failure(
                f"can't run {argv[0]} ({problem.strerror})", f"ls -l {shlex.quote(str(argv[0]))}"
            ) from problem
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
            what = f"{Path(argv[0]).name} did not end within {timeout or 0:.0f} s"
            raise Failure(what, f"{AGAIN}, once this machine has less to do") from None
        except BaseException:  # Ctrl-C: the child goes first, so that nothing writes while we clean up
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            try:
                child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:  # it does not heed the signal
                child.kill()
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
        starved = memory_kills() > killed_before
        module = argv[argv.index("-m") + 1] if "-m" in argv[:4] else ""  # python3 -I -m pip: it is pip that failed
        raise failure_of(module or Path(argv[0]).name, out, err, child.returncode, screen.place or ".", starved)
    return out


def succeeds(argv: Sequence[Any], screen: Screen) -> bool:
    """Return whether a program can be run and ends with status 0."""
    try:
        run(argv, screen, timeout=60)
    except Failure:
        return False
    return True


def without_ssh(program: str) -> Failure:
    """Return what is said where a program of OpenSSH's client is not there: distributions name its package twice."""
    known = [("apt-get", "openssh-client"), ("dnf", "openssh-clients"), ("zypper", "openssh-clients")]
    here = [f"sudo {manager} install {package}" for manager, package in known if shutil.which(manager)]
    return Failure(
        f"no program {program} on this machine", here[0] if here else "install OpenSSH's client", EXIT_MACHINE
    )


def path_with(folder: Path) -> str:
    """Return PATH with `folder` first."""
    return os.pathsep.join([str(folder)] + [p for p in [os.environ.get("PATH", "")] if p])
