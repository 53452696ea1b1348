#!/usr/bin/env python3
"""Turn this machine into a Google Colab local runtime, exact to the hash.

    python3 bootstrap.py             a CPU TensorFlow environment
    python3 bootstrap.py --gpu       the same for an NVIDIA GPU
    python3 bootstrap.py --dry-run   say what would be done, do nothing
    python3 bootstrap.py --help      every option

What it does, in this order: looks whether the machine fits (nothing is written before that); downloads and
checks what lockfiles/index.json names; makes one environment from the lock; adds the settings and the server
extension under environments/jupyter/; tries the environment out; only then switches to it; prints the command
that starts Jupyter and the line that reaches it from another machine.

What it promises
  * Everything lands in one folder (--prefix, COLAB_LOCAL_HOME, else ~/.local/share/colab-local). Shell files,
    existing condas and Pythons are never changed. No root needed, no service started unless asked for.
  * Every byte is checked against a SHA-256 in lockfiles/. A mismatch stops the run.
  * Run it again: it does nothing when nothing is to be done. Interrupt it anywhere: the next run finishes.

Needs: Python >= 3.8, standard library only (tqdm draws the progress bar if it happens to be there);
Linux x86_64 or aarch64 with glibc, or macOS on Apple silicon; for --gpu, Linux x86_64 and an NVIDIA driver.

Environment variables
  COLAB_LOCAL_HOME         as --prefix
  COLAB_LOCAL_MIRROR       as --mirror; several rules separated by white space
  CONDA_EXE, MAMBA_EXE     the conda or mamba that --engine conda uses, before those on PATH
  http_proxy, https_proxy, no_proxy, SSL_CERT_FILE    as usual
  pip's and uv's own configuration says where Python packages come from

Exit codes
  0 done, or nothing to do     1 a step failed              2 wrong usage
  3 this machine does not fit  4 damaged or altered file    5 download failed
  6 busy: still in use         7 --verify found a difference  130 interrupted
"""

# This file must parse on every Python there is, so that the check below can speak instead of a SyntaxError:
# hence the type comments (PEP 484) and no f-strings. The modules under scripts/ need not.
from __future__ import print_function

import sys

if sys.version_info < (3, 8):
    sys.stderr.write(
        "error: bootstrap.py needs Python 3.8 or newer (found %d.%d)\n" % tuple(sys.version_info[:2])
        + "hint: python3%s bootstrap.py   # or any other from 3.8 on\n" % (".11" if sys.version_info >= (3,) else "")
    )
    sys.exit(3)

import argparse
import contextlib
import getpass
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import (  # noqa: F401 - in type comments
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

# Modules under scripts/ say `import bootstrap`: they mean this very module, also when it runs as a program.
sys.modules.setdefault("bootstrap", sys.modules[__name__])

REPOSITORY = Path(__file__).resolve().parent
OVERLAY = REPOSITORY / "environments" / "jupyter"  # what every environment gets besides its packages
DEFAULT_ENVIRONMENT = "cpu"
DEFAULT_PORT = 8888
FOLDERS = ("envs", "current", "previous", "receipts", "cache", "logs", "tools", "bin", "run")  # of a home
COLAB_ORIGIN = "https://colab.research.google.com"
RECEIPT_SCHEMA = 1
INDEX_SCHEMA = 1

# What is in lockfiles/index.json, for misfit().
_HASH = r"[0-9a-f]{64}"
_PATH = r"\w[\w.-]*(/\w[\w.-]*)*"  # below the folder that it belongs to, never above
_NEEDS = {"glibc?": r"\d.*", "macos?": r"\d.*", "driver?": r"\d.*", "compute_capability?": r"\d.*", "cpu?": [r"\w+"]}
_FILE = {"url": r"\w+://.+/.+", "sha256": _HASH, "size": (int, type(None))}
INDEX_SHAPE = {
    "schema": int,
    "python": [r"3\.\d+"],
    "uv": {"version": r"\d.*", "file": _PATH, "sha256": _HASH},
    "installers": {name: {"files": {"*": _FILE}} for name in ("miniforge", "anaconda", "pixi")},
    "pixi": {"*": _HASH},
    "jupyter": {"*": _HASH},
    "environments": {
        "*": {
            "accelerator": "cpu|gpu",
            "python": r"3\.\d+.*",
            "pypi": {"file": _PATH, "sha256": _HASH},
            "platforms": {"*": {"file": _PATH, "sha256": _HASH, "requires?": _NEEDS, "bytes?": {"*": int}}},
        }
    },
}

# conda reads and enforces `#sha256:` in explicit files since 24.9, mamba and micromamba since 2.0.
OLDEST_TOOLS = {"conda": (24, 9), "mamba": (2, 0), "micromamba": (2, 0)}

ENGINE_WORDS = {
    "miniforge": "Miniforge's conda",
    "anaconda": "Anaconda's conda",
    "conda": "the conda that is here",
    "pixi": "pixi",
    "host": "this machine's Python",
}

TIMEOUT_S = 30  # for a connection, and for every read from it
TRIES = 5  # of one download
FIRST_PAUSE_S = 1.0  # between two tries; doubles
PARALLEL_DOWNLOADS = 6
CHUNK = 1 << 20

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MACHINE = 3
EXIT_INTEGRITY = 4
EXIT_NETWORK = 5
EXIT_BUSY = 6
EXIT_DIFFERS = 7
EXIT_INTERRUPTED = 130

json_mode = False  # --json: stdout carries one JSON document, people read stderr
verbose = False
_interrupted = False  # Ctrl-C came: Python loses the exception where it comes within a finalizer or callback


class Failure(Exception):
    """What went wrong and what to type next; main() shows it as two lines.

    what: one sentence with what was found and what is needed; hint: one command; code: the exit code.
    """

    def __init__(self, what, hint="", code=EXIT_FAILED):
        # type: (str, str, int) -> None
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code


# ---------------------------------------------------------------------------------------------------------
# Pure functions: URLs, versions, texts, argument lists

Rules = Sequence[Tuple[str, str]]

Host = NamedTuple(
    "Host",
    [
        ("system", str),  # platform.system(): Linux, Darwin, Windows
        ("machine", str),  # platform.machine(): x86_64, aarch64, arm64
        ("libc", str),  # glibc, musl or "" (macOS)
        ("libc_version", str),
        ("macos", str),  # 14.5, or "" elsewhere
        ("cpu", Set[str]),  # flags of /proc/cpuinfo; empty where there is none
    ],
)

Gpu = NamedTuple("Gpu", [("name", str), ("driver", str), ("compute_capability", str), ("memory_mib", int)])


def version_tuple(text):
    # type: (str) -> Tuple[int, ...]
    """Return the leading numbers of a version: '525.60.13' -> (525, 60, 13), '2.36-9' -> (2, 36)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def conda_platform(system, machine):
    # type: (str, str) -> str
    """Return conda's name of a platform; both arguments as Python's platform module gives them."""
    systems = {"Linux": "linux", "Darwin": "osx", "Windows": "win"}
    machines = {"x86_64": "64", "amd64": "64", "aarch64": "aarch64", "arm64": "arm64"}
    cpu = machines.get(machine.lower(), machine)
    if system == "Linux" and cpu == "arm64":
        cpu = "aarch64"
    return "{}-{}".format(systems.get(system, system.lower()), cpu)


def rewrite(url, rules):
    # type: (str, Rules) -> str
    """Return `url` with the longest matching FROM of the (FROM, TO) rules replaced by its TO."""
    for start, target in sorted(rules, key=lambda rule: -len(rule[0])):
        if url.startswith(start):
            return target + url[len(start) :]
    return url


def rewrite_text(text, rules):
    # type: (str, Rules) -> str
    """Apply rewrite() to every URL in a lockfile's text."""
    return re.sub(r"https?://[^\s'\"#]+", lambda found: rewrite(found.group(), rules), text)


def parse_rules(texts):
    # type: (Iterable[str]) -> List[Tuple[str, str]]
    """Return the mirror rules of 'FROM=TO' texts; raise Failure for one that isn't."""
    rules = []
    for text in texts:
        start, equals, target = text.partition("=")
        if not (equals and "://" in start and "://" in target):
            raise Failure(
                "--mirror takes FROM=TO, two URLs (found {!r})".format(mask(text)),
                "python3 bootstrap.py --mirror https://conda.anaconda.org/=https://mirror.example.org/conda/",
                EXIT_USAGE,
            )
        rules.append((start, target))
    return rules


def mask(text):
    # type: (str) -> str
    """Return `text` without the credentials of URLs and without Jupyter tokens: fit for a screen or a log."""
    text = re.sub(r"(\w+://)[^/\s]+@", r"\1***@", text)  # to the last @: a password may hold one
    return re.sub(r"([?&]token=)[^&\s]+", r"\1***", text)


def printable(text):
    # type: (str) -> str
    """Return `text` without what steers a terminal: it may come from a server, another host or a file's name."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def split_login(url):
    # type: (str) -> Tuple[str, str]
    """Return a URL without its user and password, and the Authorization header that stands for them, or ""."""
    import base64
    from urllib.parse import unquote_to_bytes

    found = re.match(r"(\w+://)([^/?#]*)@(.*)", url, re.DOTALL)
    if not found:
        return url, ""
    user, _, password = found.group(2).partition(":")
    login = base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()
    return found.group(1) + found.group(3), "Basic " + login


def megabytes(count):
    # type: (float) -> str
    """Return a number of bytes as people say it: 450 MB, 1.9 GB."""
    return "{:.1f} GB".format(count / 1e9) if count >= 1e9 else "{:.0f} MB".format(count / 1e6)


def misfit(value, shape, where="it"):
    # type: (Any, Any, str) -> str
    """Return where a JSON value is not as `shape` says, "" if it is nowhere.

    shape: {key: shape} of an object, where "*" means every key and one that ends in "?" may be missing; [shape] of
    a list; a regular expression of the whole of a text; else a type, or several. where: the value's own name.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return where
        for key in shape:
            name = key.rstrip("?")
            parts = [name] if name in value or name == key else []
            for part in list(value) if key == "*" else parts:
                found = misfit(value.get(part), shape[key], "{}/{}".format(where, part))
                if found:
                    return found
        return ""
    if isinstance(shape, list):
        fits = isinstance(value, list) and not any(misfit(item, shape[0]) for item in value)
    elif isinstance(shape, str):
        fits = isinstance(value, str) and bool(re.match("({})\\Z".format(shape), value))
    else:
        fits = isinstance(value, shape)
    return "" if fits else where


def parse_explicit(text):
    # type: (str) -> List[Tuple[str, str]]
    """Return (URL, sha256) of every package in an explicit conda lockfile; raise Failure if one has no hash."""
    packages = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#") or line == "@EXPLICIT":
            continue
        url, _, digest = line.partition("#")
        if not re.match(r"sha256:[0-9a-f]{64}$", digest):
            raise Failure(
                "a package in the lockfile has no sha256 (found {})".format(mask(line)), code=EXIT_INTEGRITY
            )
        packages.append((url, digest[len("sha256:") :]))
    return packages


def locked_names(text):
    # type: (str) -> Dict[str, str]
    """Return {name: version} of a requirements file whose lines are pinned with ==."""
    return dict(re.findall(r"(?m)^([A-Za-z0-9_.-]+)==([^\s;\\]+)", text))


def locked_entry(text, name):
    # type: (str, str) -> str
    """Return the lines of one package, with its hashes, in a requirements file whose lines are pinned with ==."""
    found = re.search(r"(?m)^{}==(.*\\\n)*.*$".format(re.escape(name)), text)
    if not found:
        raise Failure("{} is not in the lock".format(name), "git checkout -- lockfiles", EXIT_INTEGRITY)
    return found.group() + "\n"


def jupyter_argv(prefix, port=DEFAULT_PORT, notebook_dir=None, as_root=False):
    # type: (str, int, Optional[str], bool) -> List[str]
    """Return the command that serves Colab's two transports on loopback.

    No token in it: Jupyter makes one and prints the URL that Colab wants. What it enables beyond the flags
    (server extensions, quiet start) is in the environment's own etc/jupyter.

    prefix: the environment; port: TCP port on loopback; notebook_dir: what Colab's file pane shows, default
    the home folder; as_root: Jupyter refuses to run as root without being told to.
    """
    argv = [
        os.path.join(str(prefix), "bin", "jupyter-notebook"),
        "--no-browser",
        "--ip=127.0.0.1",
        "--port={}".format(port),
        "--NotebookApp.port_retries=0",  # a busy port is an error, not a silent move to another one
        "--NotebookApp.allow_origin=" + COLAB_ORIGIN,
        "--NotebookApp.allow_credentials=True",  # what Colab's direct transport needs besides the origin
        "--notebook-dir=" + str(notebook_dir or Path.home()),
    ]
    return argv + ["--allow-root"] if as_root else argv


def ssh_line(port, user, address, ssh_port=22, local=""):
    # type: (int, str, str, int, str) -> str
    """Return the line that brings a port of this machine, Jupyter's say, to the laptop it is typed on.

    Without -N: sshd sends small packets at once only for a connection that has a session, a shell say. With -N it
    holds each back until the one before is acknowledged: every cell, key and click takes 40 ms longer.

    port: on this machine; ssh_port: of its sshd; local: where it is on the laptop, [ADDRESS:]PORT, default `port`.
    """
    extra = " -p {}".format(ssh_port) if ssh_port != 22 else ""
    target = shlex.quote("{}@{}".format(user, address))
    return "ssh -o ExitOnForwardFailure=yes -L {}:localhost:{}{} {}".format(local or port, port, extra, target)


def parse_nvidia_smi(text):
    # type: (str) -> List[Gpu]
    """Return the GPUs in the output of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`.

    A line is `name, driver_version, memory.total, compute_cap`; drivers before about 470 have no compute_cap, and
    what a card does not tell is `[N/A]`.
    """
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) >= 3 and version_tuple(fields[1]):
            memory = int(fields[2]) if fields[2].isdigit() else 0
            capability = fields[3] if len(fields) > 3 and version_tuple(fields[3]) else ""
            gpus.append(Gpu(fields[0], fields[1], capability, memory))
    return gpus


def machine_refusal(host, environment, platforms):
    # type: (Host, str, Dict[str, Any]) -> Optional[Failure]
    """Return why an environment can't run on a machine, or None.

    environment: its name; platforms: {conda platform: {"requires": {...}}} from lockfiles/index.json.
    """
    if host.system == "Windows":
        return Failure("native Windows is not supported (need Linux: WSL2 has it)", "wsl --install", EXIT_MACHINE)
    if host.libc == "musl":
        return Failure(
            "musl libc is not supported: TensorFlow's builds need glibc (Debian, Ubuntu, Fedora and RHEL have it)",
            "docker run -it debian",
            code=EXIT_MACHINE,
        )
    subdir = conda_platform(host.system, host.machine)
    if subdir == "osx-64":
        return Failure(
            "macOS on Intel is not supported: TensorFlow ended its builds for it with 2.16 "
            "(found x86_64, need arm64); under Rosetta, start an arm64 Python",
            code=EXIT_MACHINE,
        )
    if subdir not in platforms:
        return Failure(
            "the {} environment has no lock for this machine (found {} {}, need one of: {})".format(
                environment, host.system, host.machine, ", ".join(sorted(platforms))
            ),
            "python3 bootstrap.py --cpu" if environment != "cpu" else "",
            EXIT_MACHINE,
        )
    requires = platforms[subdir].get("requires", {})
    if host.libc == "glibc" and version_tuple(host.libc_version) < version_tuple(requires.get("glibc", "0")):
        return Failure(
            "this system is too old: glibc {} (need {} or newer)".format(host.libc_version, requires["glibc"]),
            code=EXIT_MACHINE,
        )
    if host.macos and version_tuple(host.macos) < version_tuple(requires.get("macos", "0")):
        return Failure(
            "this macOS is too old: {} (need {} or newer)".format(host.macos, requires["macos"]),
            code=EXIT_MACHINE,
        )
    missing = [flag for flag in requires.get("cpu", []) if host.cpu and flag not in host.cpu]
    if missing:
        return Failure(
            "this CPU lacks {} (TensorFlow's build needs: {})".format(", ".join(missing), ", ".join(requires["cpu"])),
            code=EXIT_MACHINE,
        )
    return None


def gpu_refusal(gpus, requires, update=""):
    # type: (List[Gpu], Dict[str, Any], str) -> Optional[Failure]
    """Return why the locked TensorFlow can't use any of these GPUs, or None.

    requires: {"driver": "525.60.13", "compute_capability": "6.0"} from lockfiles/index.json; update: the command
    that brings a newer driver onto this machine, "" where there is none.
    """
    driver, capability = requires.get("driver", "0"), requires.get("compute_capability", "0")
    for gpu in gpus:
        if version_tuple(gpu.driver) < version_tuple(driver):
            return Failure(
                "the NVIDIA driver is too old (found {}, need {} or newer); newer ones: "
                "https://www.nvidia.com/drivers, under WSL for Windows".format(gpu.driver, driver),
                update or "python3 bootstrap.py --cpu",
                EXIT_MACHINE,
            )
    if all(g.compute_capability and version_tuple(g.compute_capability) < version_tuple(capability) for g in gpus):
        return Failure(
            "no GPU here is new enough (found {}, need compute capability {} or newer)".format(
                ", ".join("{} {}".format(g.name, g.compute_capability) for g in gpus), capability
            ),
            "python3 bootstrap.py --cpu",
            EXIT_MACHINE,
        )
    return None


def pip_index_url(environ, texts):
    # type: (Dict[str, str], Iterable[str]) -> str
    """Return the index URL that pip is configured with, or "": uv reads only its own configuration.

    environ: os.environ; texts: pip's configuration files, the weakest first.
    """
    import configparser

    url = ""
    for text in texts:
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(configparser.Error):
            parser.read_string(text)
            for section in ("global", "install"):
                url = parser.get(section, "index-url", fallback=url)
    return environ.get("PIP_INDEX_URL", url).strip()


def telling_line(out, err, status):
    # type: (str, str, int) -> str
    """Return the one line of a failed program's output that says why: its first error, else its last word."""
    lines = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
    telling = re.compile(r"(error|fatal|\S*(Error|Exception))\b|.*: command not found$", re.IGNORECASE)
    errors = [line for line in lines if telling.match(line)]
    said = (errors or lines[-1:] or ["nothing said"])[0]
    return "{} (exit status {})".format(said[:300], status)


def dist_record(files):
    # type: (Dict[str, bytes]) -> str
    """Return a wheel's RECORD text (PEP 376, PEP 427) for {path: content}; the RECORD itself has no hash."""
    import base64

    lines = []
    for path, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append("{},{},{}".format(path, "sha256=" + digest, len(content)))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------
# Effects: screen, log, files, children, downloads

_children = set()  # type: Set[Any] # programs that run() waits for, in whichever thread
_log = None  # type: Optional[Any]
_log_path = ""


def say(text=""):
    # type: (str) -> None
    """Print a line for the user, and into the log."""
    print(printable(text), file=sys.stderr if json_mode else sys.stdout, flush=True)
    log(text)


def report(text):
    # type: (str) -> None
    """Print a line about progress on stderr, and into the log."""
    print(printable(text), file=sys.stderr, flush=True)
    log(text)


def log(text):
    # type: (str) -> None
    """Write to this run's log, if it has one by now; credentials are masked."""
    if _log:
        _log.write(mask(text) + "\n")
        _log.flush()


def open_log(home):
    # type: (Path) -> None
    """Start this run's log under home/logs, readable by the owner alone; the ten newest are kept."""
    global _log, _log_path
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("bootstrap-*.log"))[:-9]:
        with contextlib.suppress(OSError):
            old.unlink()
    name = "bootstrap-{}-{}.log".format(time.strftime("%Y%m%dT%H%M%S"), os.getpid())
    _log_path = str(folder / name)
    descriptor = os.open(_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _log = os.fdopen(descriptor, "w", encoding="utf-8", errors="replace")
    log("$ " + " ".join(shlex.quote(arg) for arg in sys.argv))


def sha256_of(path):
    # type: (Any) -> str
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path, text, mode=0o644):
    # type: (Any, str, int) -> None
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    path = Path(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("{}.{}.tmp".format(path.name, os.getpid()))
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(str(temporary), str(path))


def link_atomically(link, target):
    # type: (Path, Path) -> None
    """Point the symbolic link at `target`, relative to the link, in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(".{}.{}".format(link.name, os.getpid()))
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    os.symlink(os.path.relpath(str(target), str(link.parent)), str(temporary))
    os.replace(str(temporary), str(link))


def remove_tree(path):
    # type: (Path) -> None
    """Remove a folder of ours, whatever it holds; it does not matter if it isn't there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(str(path))


def remove_empty(folder):
    # type: (Path) -> None
    """Remove a folder and those in it that hold nothing at all but our lock and this run's log."""
    for name in ("cache/sha256",) + FOLDERS:
        with contextlib.suppress(OSError):
            (folder / name).rmdir()
    left = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {"-"}
    if left <= {".lock", "logs"}:
        remove_tree(folder / "logs")
        with contextlib.suppress(OSError):
            (folder / ".lock").unlink()
            folder.rmdir()


def child_environment(**extra):
    # type: (**str) -> Dict[str, str]
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


class Waiting:
    """Show on a terminal that a step is alive: its title, the seconds gone, the newest line of a program's output.

    Off a terminal the title alone is printed, once. A Progress bar that is drawn meanwhile has the line.
    """

    output = None  # type: Optional[Any]  # the file that the running program's stderr goes to
    bars = 0  # drawn at this moment

    def __init__(self, title):
        # type: (str) -> None
        import threading

        self.title, self.started, self.ended = title, time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self):
        # type: () -> Waiting
        if sys.stderr.isatty() and not json_mode:
            self.thread.start()
        else:
            report(self.title)
        return self

    def _draw(self):
        # type: () -> None
        while not self.ended.wait(0.3):
            if not Waiting.bars:
                seconds = time.monotonic() - self.started
                self._line("{}  {:.0f} s  {}".format(self.title, seconds, self._newest()))

    def _newest(self):
        # type: () -> str
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = Waiting.output.fileno()  # type: ignore[union-attr]
            size = os.fstat(descriptor).st_size
            lines = os.pread(descriptor, 2000, max(0, size - 2000)).decode("utf-8", "replace").strip().splitlines()
            return mask(lines[-1].strip()) if lines else ""
        return ""

    def _line(self, text):
        # type: (str) -> None
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r" + text[:width].ljust(width))
        sys.stderr.flush()

    def __exit__(self, kind, problem, trace):
        # type: (Any, Any, Any) -> None
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
            self._line("")
            sys.stderr.write("\r")
            report("{}  {:.0f} s".format(self.title, time.monotonic() - self.started))


def run(argv, env=None, input=None, timeout=None, cwd=None):
    # type: (Sequence[Any], Optional[Dict[str, str]], Optional[str], Optional[float], Optional[Any]) -> str
    """Run a program to its end and return its standard output.

    env: its environment, default child_environment(); input: text for its stdin, default none at all;
    timeout: seconds. Raise Failure with the line of its output that tells most when it fails; the log has all of it.
    A Python that gets -c or -m needs -I too: else it takes modules from the current folder first, whoever filled it.
    """
    argv = [str(arg) for arg in argv]
    shown = mask(" ".join(shlex.quote(arg) for arg in argv))
    log("$ " + shown)
    if verbose:
        report("$ " + shown)
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
            raise Failure("can't run {} ({})".format(argv[0], problem.strerror))
        Waiting.output = errors
        _children.add(child)
        try:
            out, _ = child.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise Failure("{} did not end within {:.0f} s".format(Path(argv[0]).name, timeout or 0))
        except BaseException:  # Ctrl-C: the child goes first, so that nothing writes while we clean up
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            child.wait()
            raise
        finally:
            Waiting.output = None
            _children.discard(child)
        errors.seek(0)
        err = errors.read().decode("utf-8", "replace")
    log(out + err)
    if child.returncode:
        said = mask("{} failed: {}".format(Path(argv[0]).name, telling_line(out, err, child.returncode)))
        damaged = re.search(
            r"hash mismatch|checksum|sha256 mismatch|do not match the hashes", out + err, re.IGNORECASE
        )
        raise Failure(said, code=EXIT_INTEGRITY if damaged else EXIT_FAILED)
    return out


@contextlib.contextmanager
def locked(home):
    # type: (Any) -> Iterator[None]
    """Hold the exclusive lock on the home folder; wait, and say so, while another run has it."""
    import fcntl  # not on Windows, which is refused by name before this

    path = Path(str(home)) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(str(path), "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            report("Another run is at work in {} (process {}): waiting for it.".format(home, stream.read().strip()))
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write("{}\n".format(os.getpid()))
        stream.flush()
        yield


class Progress:
    """A progress bar over a known number of bytes: tqdm's if tqdm is installed, else a plain one.

    Draws nothing where stderr is not a terminal. Safe to advance from several threads.
    """

    def __init__(self, title, total):
        # type: (str, int) -> None
        import threading

        self.title, self.total, self.count, self.started = title, total, 0, time.monotonic()
        self.cancelled = False  # set on Ctrl-C: downloads in other threads stop at their next chunk
        self.lock, self.drawn, self.bar = threading.Lock(), 0.0, None  # type: Any, float, Any
        if not sys.stderr.isatty() or json_mode:
            report("{}{}".format(title, " ({})".format(megabytes(total)) if total else ""))
            return
        self.drawn = -1.0
        Waiting.bars += 1
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            self.bar = tqdm(total=total or None, desc=title, unit="B", unit_scale=True, file=sys.stderr)

    def advance(self, count):
        # type: (int) -> None
        """Count `count` more bytes (negative: they have to come again)."""
        if self.cancelled:
            raise KeyboardInterrupt
        with self.lock:
            self.count += count
            if self.bar is not None:
                self.bar.update(count)
            elif self.drawn and time.monotonic() - self.drawn > 0.2:
                self.drawn = time.monotonic()
                rate = self.count / max(time.monotonic() - self.started, 0.1)
                done = " {:3.0f} %".format(100.0 * self.count / self.total) if self.total else ""
                line = "{}:{} {} at {}/s".format(self.title, done, megabytes(self.count), megabytes(rate))
                sys.stderr.write("\r" + line[:118].ljust(78))
                sys.stderr.flush()

    def close(self):
        # type: () -> None
        """Finish the line."""
        if self.drawn:
            Waiting.bars -= 1
        if self.bar is not None:
            self.bar.close()
        elif self.drawn:
            sys.stderr.write("\n")


def download(url, target, sha256=None, size=None, rules=(), progress=None):
    # type: (str, Any, Optional[str], Optional[int], Rules, Optional[Progress]) -> None
    """Download a file: resumed, retried, checked, then moved into place in one step.

    url: http, https or file; target: where it goes, with `.part` beside it meanwhile; sha256: in hex; size: in
    bytes, for the bar alone; rules: mirror rules; progress: a bar shared with other downloads.
    Raise Failure: EXIT_NETWORK when it can't be had, EXIT_INTEGRITY when its hash is not the locked one.
    """
    target = Path(str(target))
    if target.is_file() and (sha256 is None or sha256_of(target) == sha256):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = rewrite(url, rules)
    part = target.with_name(target.name + ".part")
    own = progress is None
    bar = progress or Progress("Downloading " + target.name, size or 0)
    try:
        resumed = _fetch(source, part, bar)
        found = sha256_of(part) if sha256 else None
        if found != sha256 and resumed:  # the start of the file may have been another one's: once more, whole
            bar.advance(-part.stat().st_size)
            part.unlink()
            _fetch(source, part, bar)
            found = sha256_of(part)
        if found != sha256:
            part.unlink()
            raise Failure(
                "{} is not the file that the lock names (found sha256 {}, need {}); it was not kept".format(
                    mask(source), found, sha256
                ),
                "git status lockfiles, then try again, from another network or --mirror",
                EXIT_INTEGRITY,
            )
        os.replace(str(part), str(target))
    finally:
        if own:
            bar.close()


def make_request(url, method="GET"):
    # type: (str, str) -> Any
    """Return the HTTP request for a URL; user and password in it are for its own host, not where that redirects."""
    import urllib.request

    plain, login = split_login(url)
    request = urllib.request.Request(plain, method=method, headers={"User-Agent": "colab-local"})
    if login:
        request.add_unredirected_header("Authorization", login)
    return request


def _fetch(source, part, bar):
    # type: (str, Path, Progress) -> bool
    """Bring `source` into the file `part`, going on where an earlier try stopped; True if it went on."""
    import http.client
    import urllib.error
    import urllib.request

    resumed = False
    counted = 0  # bytes of this file that the bar knows of
    for attempt in range(1, TRIES + 1):
        have = part.stat().st_size if part.exists() else 0
        request = make_request(source)
        request.add_header("Accept-Encoding", "identity")
        if have and not source.startswith("file:"):
            request.add_header("Range", "bytes={}-".format(have))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                goes_on = getattr(response, "status", None) == 206
                start = have if goes_on else 0
                resumed = resumed or bool(start)
                bar.advance(start - counted)
                counted = start
                expected = response.headers.get("Content-Length")
                with open(str(part), "ab" if goes_on else "wb") as stream:
                    for chunk in iter(lambda: response.read1(CHUNK), b""):  # what is there, not a full chunk
                        stream.write(chunk)
                        bar.advance(len(chunk))
                        counted += len(chunk)
                if expected is not None and counted - start < int(expected):
                    raise OSError("the connection ended after {} of {} bytes".format(counted - start, expected))
                return resumed
        except urllib.error.HTTPError as problem:
            if problem.code == 416 and have:  # we have all of it, or too much: the hash decides
                bar.advance(have - counted)
                return True
            reason = "HTTP {} {}".format(problem.code, problem.reason)
            if problem.code < 500 and problem.code not in (408, 425, 429):
                raise _unreachable(source, reason)
        except (OSError, http.client.HTTPException) as problem:
            reason = str(getattr(problem, "reason", problem)) or type(problem).__name__
            if isinstance(getattr(problem, "reason", None), FileNotFoundError):
                raise _unreachable(source, "no such file")
        if attempt == TRIES:
            break
        pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
        report("{}: {}. Trying again in {:.0f} seconds.".format(mask(source), reason, pause))
        time.sleep(pause)
    raise _unreachable(source, "{} ({} tries)".format(reason, TRIES))


def _unreachable(source, reason):
    # type: (str, str) -> Failure
    """Return the failure of a download that can't be had."""
    return Failure(
        "can't download {}: {}".format(mask(source), reason),
        "check the network or proxy and run the same command again (other ways: --mirror, --engine host, --offline)",
        EXIT_NETWORK,
    )


def download_all(files, rules=(), total=0):
    # type: (List[Tuple[str, Path, str]], Rules, int) -> None
    """Download several (url, target, sha256) at once under one bar of `total` bytes; the first failure stops all."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    missing = [(url, path, digest) for url, path, digest in files if not path.is_file() or sha256_of(path) != digest]
    if not missing:
        return
    bar = Progress(
        "Downloading {} file{}".format(len(missing), "" if len(missing) == 1 else "s"),
        total if missing == files else 0,
    )
    pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
    try:
        jobs = [pool.submit(download, url, path, digest, None, rules, bar) for url, path, digest in missing]
        for job in as_completed(jobs):
            job.result()
    except BaseException:
        bar.cancelled = True
        for job in jobs:
            job.cancel()
        raise
    finally:
        pool.shutdown()
        bar.close()


# ---------------------------------------------------------------------------------------------------------
# What is there: the lock, this machine, this home


def user_home():
    # type: () -> Path
    """Return the user's home folder; raise Failure where there is none (containers, users without an entry)."""
    with contextlib.suppress(RuntimeError):
        if os.environ.get("HOME") != "":
            return Path.home()
    raise Failure("you have no home folder here (HOME is not set)", "export HOME=/a/folder/of/yours", EXIT_MACHINE)


def user_name():
    # type: () -> str
    """Return the user's name, or the number of one that has no name here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def default_home():
    # type: () -> str
    """Return the folder that everything lands in when --prefix doesn't say."""
    return os.environ.get("COLAB_LOCAL_HOME") or str(user_home() / ".local" / "share" / "colab-local")


def read_index(lockfiles):
    # type: (Any) -> Dict[str, Any]
    """Return lockfiles/index.json; raise Failure when it is missing, damaged or of another schema."""
    path = Path(str(lockfiles)) / "index.json"
    hint = "git checkout -- lockfiles"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if not misfit(index, {"schema": int}) and index["schema"] != INDEX_SCHEMA:
            raise Failure(
                "{} has schema {} (need {})".format(path, index["schema"], INDEX_SCHEMA),
                "git pull",
                EXIT_INTEGRITY,
            )
        wrong = misfit(index, INDEX_SHAPE, path.name)
        if wrong:
            raise ValueError(wrong + " is missing or malformed")
    except OSError as problem:
        raise Failure("can't read {} ({})".format(path, problem.strerror), hint, EXIT_INTEGRITY)
    except ValueError as problem:
        raise Failure("{} is damaged ({})".format(path, problem), hint, EXIT_INTEGRITY)
    return dict(index)


def read_locked(folder, name, sha256):
    # type: (Path, str, str) -> str
    """Return the text of a file that index.json names; raise Failure when its hash is another one."""
    path = folder / name
    hint = "git checkout -- lockfiles environments"
    try:
        found = sha256_of(path)
    except OSError as problem:
        raise Failure("can't read {} ({})".format(path, problem.strerror), hint, EXIT_INTEGRITY)
    if found != sha256:
        raise Failure(
            "{} was changed after it was generated (found sha256 {}..., need {}...)".format(
                path, found[:12], sha256[:12]
            ),
            hint,
            EXIT_INTEGRITY,
        )
    return path.read_text(encoding="utf-8")


def inspect_host():
    # type: () -> Host
    """Return what this machine is, as far as a lock depends on it."""
    system, libc, libc_version = platform.system(), "", ""
    flags = set()  # type: Set[str]
    if system == "Linux":
        text = ""
        with contextlib.suppress(ValueError, OSError, AttributeError):
            text = os.confstr("CS_GNU_LIBC_VERSION") or ""
        libc, _, libc_version = text.partition(" ")
        if not libc:
            libc = "musl" if list(Path("/lib").glob("ld-musl-*")) else "unknown libc"
        with contextlib.suppress(OSError):
            found = re.search(r"(?m)^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(errors="replace"))
            flags = set(found.group(1).split()) if found else set()
    return Host(system, platform.machine(), libc, libc_version, platform.mac_ver()[0], flags)


def query_gpus():
    # type: () -> List[Gpu]
    """Return the NVIDIA GPUs that the driver shows; raise Failure with its own words when it shows none."""
    image, hint = "; --gpu --no-gpu-check builds an image without one", "python3 bootstrap.py --cpu"
    program = shutil.which("nvidia-smi")
    if program is None and os.path.exists("/usr/lib/wsl/lib/nvidia-smi"):  # WSL2 keeps it off root's PATH
        program = "/usr/lib/wsl/lib/nvidia-smi"
    if program is None:
        raise Failure("no NVIDIA driver found (nvidia-smi is not there)" + image, hint, EXIT_MACHINE)
    words = ""
    for fields in ("name,driver_version,memory.total,compute_cap", "name,driver_version,memory.total"):
        argv = [program, "--query-gpu=" + fields, "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise Failure("nvidia-smi does not answer ({})".format(problem) + image, hint, EXIT_MACHINE)
        gpus = parse_nvidia_smi(done.stdout) if done.returncode == 0 else []
        if gpus:
            return gpus
        words = words or " ".join((done.stdout + done.stderr).split())[:300]
    said = "no NVIDIA GPU can be used (nvidia-smi says: {})".format(words or "nothing")
    raise Failure(said + image, hint, EXIT_MACHINE)


def port_is_free(port):
    # type: (int) -> bool
    """Return whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def address_for_others():
    # type: () -> str
    """Return the address at which another machine reaches this one, as well as can be known from here."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    if len(connection) == 4:
        return connection[2]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1: a datagram socket's connect sends nothing
        return str(probe.getsockname()[0])
    return socket.gethostname()


def ssh_port_for_others():
    # type: () -> int
    """Return the port of this machine's sshd: the one that this session came through, else the usual one."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return int(connection[3]) if len(connection) == 4 and connection[3].isdigit() else 22


def existing_parent(path):
    # type: (Path) -> Path
    """Return the nearest folder above `path`, itself included, that exists."""
    while not os.path.lexists(str(path)) and path != path.parent:
        path = path.parent
    return path


def check_home(home):
    # type: (Path) -> None
    """Raise Failure unless the home folder is there and ours to write, or can be made."""
    elsewhere = "python3 bootstrap.py --prefix {}".format(shlex.quote(str(user_home() / "colab-local")))
    if not re.match(r"[^:\n\ud800-\udfff]+\Z", str(home)):
        raise Failure(
            "--prefix can't have a colon, a line break or undecodable bytes (found {})".format(ascii(str(home))),
            elsewhere,
            EXIT_USAGE,
        )
    parent = existing_parent(home)
    for path in [parent] + [home / name for name in FOLDERS if os.path.lexists(str(home / name))]:
        if not path.is_dir():
            raise Failure("{} is a file where a folder should be".format(path), elsewhere, EXIT_USAGE)
    owner, user = parent.stat().st_uid, os.getuid()
    if parent == home and user and owner not in (0, user):  # what root chooses stands: volumes of containers
        raise Failure(
            "{} belongs to another user, who could change what runs from it (found uid {}, need {})".format(
                home, owner, user
            ),
            elsewhere,
            EXIT_MACHINE,
        )
    if not os.access(str(parent), os.W_OK | os.X_OK):
        raise Failure("{} can't be written by {}".format(parent, user_name()), elsewhere, EXIT_MACHINE)


def check_disk(home, needed):
    # type: (Path, int) -> None
    """Raise Failure unless the disk that holds `home` has `needed` bytes free."""
    free = shutil.disk_usage(str(existing_parent(home))).free
    if free < needed:
        raise Failure(
            "not enough disk space for {} (found {}, need {})".format(home, megabytes(free), megabytes(needed)),
            "python3 bootstrap.py --prefix /a/bigger/disk/colab-local",
            EXIT_MACHINE,
        )


def read_receipt(home, name):
    # type: (Any, str) -> Optional[Dict[str, Any]]
    """Return the receipt of the environment `name` in a home, or None.

    One that names a folder elsewhere is none: the home was copied, and that folder is the first home's.
    """
    home = Path(str(home))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        receipt = json.loads((home / "receipts" / name / "receipt.json").read_text(encoding="utf-8"))
        if os.path.realpath(receipt["root"]) == os.path.realpath(str(home / "envs" / name)):
            return dict(receipt)
    return None


def read_receipts(home):
    # type: (Any) -> List[Dict[str, Any]]
    """Return the receipts of the environments in a home, newest first."""
    found = [read_receipt(home, path.parent.name) for path in Path(str(home)).glob("receipts/*/receipt.json")]
    receipts = [receipt for receipt in found if receipt]
    return sorted(receipts, key=lambda receipt: str(receipt.get("created")), reverse=True)


def current_receipt(home, env):
    # type: (Any, str) -> Optional[Dict[str, Any]]
    """Return the receipt of the environment that current/<env> points at, or None."""
    link = Path(str(home)) / "current" / env
    for receipt in read_receipts(home):
        if receipt.get("env") == env and link.exists() and link.resolve() == Path(receipt["prefix"]).resolve():
            return receipt
    return None


# ---------------------------------------------------------------------------------------------------------
# The plan: steps that a dry run prints and a real run executes

Step = NamedTuple("Step", [("name", str), ("title", str), ("where", str), ("apply", Callable[[], None])])

Lock = NamedTuple(
    "Lock",
    [
        ("env", str),
        ("platform", str),
        ("accelerator", str),
        ("layer", str),  # "conda", or "host-3.11"
        ("conda", str),  # text of the explicit file; "" with the host engine
        ("pypi", str),  # text of pypi.txt
        ("host", str),  # text of host.txt: uv and pip, where no conda layer brings them
        ("jupyter", Dict[str, str]),  # {path under environments/jupyter: sha256}
        ("digest", str),  # names all of the above
    ],
)


def make_lock(index, lockfiles, env, subdir, layer):
    # type: (Dict[str, Any], Path, str, str, str) -> Lock
    """Read what is locked for one environment on one platform, every file checked against index.json."""
    entry = index["environments"][env]
    conda_layer = layer == "conda"
    explicit = entry["platforms"][subdir]
    conda = read_locked(lockfiles, explicit["file"], explicit["sha256"]) if conda_layer else ""
    pypi = read_locked(lockfiles, entry["pypi"]["file"], entry["pypi"]["sha256"])
    host = "" if conda_layer else read_locked(lockfiles, index["uv"]["file"], index["uv"]["sha256"])
    for name, sha256 in index["jupyter"].items():
        read_locked(OVERLAY, name, sha256)
    named = {"env": env, "platform": subdir, "layer": layer, "conda": conda, "pypi": pypi, "host": host}
    digest = hashlib.sha256(json.dumps([named, index["jupyter"]], sort_keys=True).encode()).hexdigest()
    return Lock(env, subdir, entry["accelerator"], layer, conda, pypi, host, dict(index["jupyter"]), digest)


class Installation:
    """One environment in the making: what the steps share.

    args: the parsed options; home: where everything lands; index: lockfiles/index.json; lock: what is to be
    installed; engine: who makes the prefix; rules: mirror rules; python: the host engine's interpreter;
    conda: the conda engine's program; wheels: a bundle's folder of wheels, or None.
    """

    def __init__(self, args, index, lock, engine, rules, python=None, conda=None, wheels=None):
        # type: (argparse.Namespace, Dict[str, Any], Lock, str, Rules, Optional[str], Optional[str], Optional[Path]) -> None
        self.args, self.index, self.lock, self.engine, self.rules = args, index, lock, engine, rules
        self.python, self.conda, self.wheels = python, conda, wheels
        self.home = Path(args.home)
        self.new_folders = [path for path in [self.home] + list(self.home.parents) if not os.path.exists(str(path))]
        self.lockfiles = Path(args.lockfiles)
        self.name = "{}-{}".format(lock.env, lock.digest[:12])
        self.root = self.home / "envs" / self.name
        self.prefix = self.root / ".pixi" / "envs" / lock.env if engine == "pixi" else self.root
        self.receipts = self.home / "receipts" / self.name
        self.link = self.home / "current" / lock.env
        self.notices = []  # type: List[str]
        self.seconds = {}  # type: Dict[str, float]
        self.overlay = {}  # type: Dict[str, str]
        self.seal = {}  # type: Dict[str, str]
        self.installers = []  # type: List[Dict[str, str]]

    # -- where things are

    def package_file(self, url):
        # type: (str) -> Path
        """Return where a conda package is kept; its last folder is the platform, as in every conda channel."""
        return self.home / "cache" / "conda" / "/".join(url.split("/")[3:])

    def installer(self):
        # type: () -> Tuple[str, Path, str]
        """Return (url, target, sha256) of the pinned installer that the engine needs on this platform."""
        release = self.index["installers"][self.engine]
        entry = release["files"].get(self.lock.platform)
        if entry is None:
            raise Failure(
                "--engine {} has no pinned installer for {}".format(self.engine, self.lock.platform),
                "python3 bootstrap.py --engine miniforge",
                EXIT_USAGE,
            )
        name = entry["url"].rsplit("/", 1)[1]
        return entry["url"], self.home / "cache" / "sha256" / entry["sha256"] / name, entry["sha256"]

    def uv(self):
        # type: () -> Path
        """Return the uv that installs the Python layer: the conda layer's, or our own."""
        if self.lock.layer == "conda":
            return self.prefix / "bin" / "uv"
        return self.home / "tools" / "uv-{}".format(self.index["uv"]["version"]) / "bin" / "uv"

    def is_made(self):
        # type: () -> bool
        """Return whether the environment is whole: it has a receipt, which is written last."""
        return bool(read_receipt(self.home, self.name)) and (self.prefix / "bin" / "python").exists()

    def is_current(self):
        # type: () -> bool
        """Return whether current/<env> points at it."""
        return self.link.exists() and self.link.resolve() == self.prefix.resolve()

    # -- the steps, in their order; every one finds out by itself what is left to do

    def steps(self):
        # type: () -> List[Step]
        """Return what has to be done; empty when nothing has."""
        if self.is_made() and self.is_current():
            return []
        switch = Step("switch", "Switch to the new environment", str(self.link), self.switch)
        if self.is_made():
            return [switch]
        title = "Create the environment with {}".format(ENGINE_WORDS[self.engine])
        create = Step("create", title, str(self.prefix), getattr(self, "create_with_" + self.engine))
        steps = self.download_steps() + [
            create,
            Step("packages", "Install the locked Python packages", str(self.prefix), self.install_packages),
            Step("jupyter", "Add the server extension and settings", str(self.prefix), self.add_jupyter),
            Step("try", "Warm up and try out (TensorFlow, XLA, extension)", str(self.prefix), self.try_out),
            Step("receipt", "Write the receipt", str(self.receipts), self.write_receipt),
        ]
        return steps + [switch]

    def download_steps(self):
        # type: () -> List[Step]
        """Return the steps that bring the engine and its packages."""
        if self.engine == "host":
            return [
                Step(
                    "uv",
                    "Get uv {}".format(self.index["uv"]["version"]),
                    str(self.uv().parent.parent),
                    self.get_uv,
                )
            ]
        steps = []
        packages = [] if self.engine == "pixi" else parse_explicit(self.lock.conda)
        installer = self.engine != "conda" and not self.engine_is_there()
        if packages or installer:
            what = ["the {} installer".format(self.engine)] if installer else []
            what += ["{} conda packages".format(len(packages))] if packages else []
            title = "Download and check " + " and ".join(what)
            steps.append(Step("download", title, str(self.home / "cache"), self.download_files))
        if installer:
            where = self.home / ("bin/pixi" if self.engine == "pixi" else "conda")
            steps.append(Step("engine", "Install {}".format(self.engine), str(where), self.install_engine))
        return steps

    def engine_paths(self):
        # type: () -> Tuple[Path, Path, Path]
        """Return where the engine goes, the mark that it is whole there, and the mark that its installation began."""
        if self.engine == "pixi":
            return self.home / "bin" / "pixi", self.home / "bin" / ".pixi.json", self.home / "run" / "pixi.begun"
        return self.home / "conda", self.home / "conda" / ".colab-local.json", self.home / "run" / "conda.begun"

    def engine_is_there(self):
        # type: () -> bool
        """Return whether the pinned conda or pixi is in the home already, whole."""
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads(self.engine_paths()[1].read_text()).get("sha256") == self.installer()[2])
        return False

    def download_files(self):
        # type: () -> None
        """Bring the installer and every conda package, several at a time, each checked against the lock."""
        files, total = [], 0
        if self.engine != "conda" and not self.engine_is_there():
            files.append(self.installer())
            total += self.index["installers"][self.engine]["files"][self.lock.platform].get("size") or 0
        if self.engine != "pixi":  # pixi fetches and checks its packages by itself, several at a time
            files += [(url, self.package_file(url), digest) for url, digest in parse_explicit(self.lock.conda)]
            sizes = self.index["environments"][self.lock.env]["platforms"][self.lock.platform].get("bytes", {})
            total += sizes.get("conda_download") or 0
        download_all(files, self.rules, total)

    def install_engine(self):
        # type: () -> None
        """Install conda or pixi from the checked installer into our own folder; nothing of it stays if that fails."""
        url, path, digest = self.installer()
        where, whole, begun = self.engine_paths()
        marker = json.dumps({"engine": self.engine, "url": url, "sha256": digest}) + "\n"
        write_atomically(begun, marker)  # what is there half-made after a power cut is ours to remove
        with contextlib.suppress(FileNotFoundError):
            whole.unlink()
        remove_tree(where)
        try:
            if self.engine == "pixi":
                self.unpack_pixi(path, where)
            else:
                # -b: no questions, and no change to shell files; it registers nothing outside its prefix
                run(["bash", path, "-b", "-p", where], env=child_environment(CONDA_REGISTER_ENVS="false"))
                if not (where / "bin" / "conda").exists():
                    raise Failure("the {} installer left no conda in {}".format(self.engine, where))
        except BaseException:
            remove_tree(where)
            begun.unlink()
            raise
        write_atomically(whole, marker)
        begun.unlink()

    def unpack_pixi(self, archive, target):
        # type: (Path, Path) -> None
        """Take the one program out of pixi's release archive."""
        import tarfile

        with tarfile.open(str(archive)) as members:
            try:
                stream = members.extractfile("pixi")
            except KeyError:
                stream = None
            if stream is None:
                raise Failure("{} holds no pixi".format(archive), code=EXIT_INTEGRITY)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(stream.read())
        target.chmod(0o755)

    def create_with_miniforge(self):
        # type: () -> None
        """Make the prefix with the conda in our own folder."""
        self.create_with_conda(str(self.home / "conda" / "bin" / "conda"))

    create_with_anaconda = create_with_miniforge

    def create_with_conda(self, program=None):
        # type: (Optional[str]) -> None
        """Make the prefix from the package files that download_files() checked.

        conda is shown local files alone: which bytes they are was settled before, with any version of it.
        Its package cache is ours and it registers nothing, so that an existing conda stays as it was.
        """
        program = program or self.conda or "conda"
        lines = ["@EXPLICIT"]
        for url, digest in parse_explicit(self.lock.conda):
            lines.append("{}#sha256:{}".format(self.package_file(url).as_uri(), digest))
        explicit = self.home / "cache" / (self.name + ".txt")
        write_atomically(explicit, "\n".join(lines) + "\n")
        env = child_environment(
            CONDA_PKGS_DIRS=str(self.home / "cache" / "conda-pkgs"),
            CONDA_REGISTER_ENVS="false",
            CONDA_ENVS_DIRS=str(self.home / "envs"),
            MAMBA_ROOT_PREFIX=str(self.home / "cache" / "mamba"),
        )
        run([program, "create", "--yes", "--prefix", self.prefix, "--file", explicit], env=env)

    def create_with_pixi(self):
        # type: () -> None
        """Make the prefix as pixi's environment of a workspace of its own, from pixi.lock as it stands."""
        self.root.mkdir(parents=True)
        for name, digest in sorted(self.index["pixi"].items()):
            text = read_locked(self.lockfiles, name, digest)
            text = rewrite_text(text, self.rules)
            # Of a package in a file, rattler does not read the platform from the path as it does from a URL.
            text = re.sub(r"(?m)^- conda: file:.*/([^/]+)/[^/]+$", r"\g<0>\n  subdir: \1", text)
            write_atomically(self.root / name, text)
        env = child_environment(
            PIXI_HOME=str(self.home / "cache" / "pixi-home"), PIXI_CACHE_DIR=str(self.home / "cache" / "pixi")
        )
        manifest = self.root / "pixi.toml"
        program = self.home / "bin" / "pixi"
        run(
            [program, "install", "--frozen", "--manifest-path", manifest, "-e", self.lock.env],
            env=env,
        )

    def get_uv(self):
        # type: () -> None
        """Install the locked uv into a folder of its own with whatever installer this machine has."""
        if self.uv().exists():
            return
        folder = self.uv().parent.parent
        python = str(self.python)
        temporary = folder.with_name(folder.name + ".part")
        remove_tree(temporary)
        requirements = self.home / "cache" / "host.txt"
        write_atomically(requirements, locked_entry(self.lock.host, "uv"))
        hashed = ["--no-deps", "--require-hashes", "-r", requirements, "--target", temporary]
        offline = ["--no-index", "--find-links", self.wheels] if self.wheels else []
        try:
            if _succeeds([python, "-I", "-c", "import pip"]):
                flags = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
                env = child_environment(PIP_ROOT_USER_ACTION="ignore")
                run([python, "-I", "-m", "pip", "install"] + flags + hashed + offline, env=env)
            elif shutil.which("uv"):
                run(
                    ["uv", "pip", "install", "--quiet", "--python", python] + hashed + offline,
                    env=uv_environment(),
                )
            else:  # a venv of its own brings the pip that is bundled with Python
                run([python, "-I", "-m", "venv", str(temporary) + "-venv"])
                pip = [str(temporary) + "-venv/bin/python", "-I", "-m", "pip"]
                run(pip + ["install", "--quiet"] + hashed + offline)
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_tree(folder)
            os.replace(str(temporary), str(folder))
        finally:
            remove_tree(temporary)
            remove_tree(Path(str(temporary) + "-venv"))

    def create_with_host(self):
        # type: () -> None
        """Make a venv from this machine's Python; pip comes from the lock, not from the machine."""
        run([self.python, "-I", "-m", "venv", "--without-pip", self.prefix])

    def install_packages(self):
        # type: () -> None
        """Install the Python layer: exactly the locked files, nothing built, nothing resolved."""
        requirements = self.receipts / "lock"
        argv = [
            self.uv(),
            "pip",
            "install",
            "--python",
            self.prefix / "bin" / "python",
            "--no-deps",
            "--require-hashes",
        ]
        for name, text in self.lock_texts().items():
            write_atomically(requirements / name, text)
            if name.endswith(("pypi.txt", "host.txt")):
                argv += ["-r", requirements / name]
        if self.wheels:
            argv += ["--no-index", "--find-links", self.wheels]
        run(argv, env=uv_environment())

    def lock_texts(self):
        # type: () -> Dict[str, str]
        """Return the lock files in use by the name under which the receipt keeps them."""
        named = {
            self.lock.platform + ".txt": self.lock.conda,
            "pypi.txt": self.lock.pypi,
            "host.txt": self.lock.host,
        }
        return {name: text for name, text in named.items() if text}

    def add_jupyter(self):
        # type: () -> None
        """Copy environments/jupyter into the environment; no file of a package is overwritten."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = Path(run([self.prefix / "bin" / "python", "-I", "-c", code]).strip())
        records = {}  # type: Dict[Path, Dict[str, bytes]]
        for name, digest in sorted(self.lock.jupyter.items()):
            part, _, rest = name.partition("/")
            content = read_locked(OVERLAY, name, digest).encode("utf-8")
            target = (packages if part == "site-packages" else self.prefix) / rest
            if target.exists() and target.read_bytes() != content:
                raise Failure("{} belongs to a package and would be overwritten".format(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            self.overlay[os.path.relpath(str(target), str(self.prefix))] = digest
            records.setdefault(packages, {})[os.path.relpath(str(target), str(packages))] = content
        for info in {name.split("/")[1] for name in self.lock.jupyter if ".dist-info/" in name}:
            record = packages / info / "RECORD"
            text = dist_record(records[packages]) + "{}/RECORD,,\n".format(info)
            write_atomically(record, text)

    def try_out(self):
        # type: () -> None
        """Import, compute and load the extension once: it proves the environment and leaves it warm.

        Both children also write the .pyc files that make the first cell and Jupyter's first start quick. Meanwhile
        the receipt's seal is taken of what was installed.
        """
        from concurrent.futures import ThreadPoolExecutor

        from scripts import verify

        python = self.prefix / "bin" / "python"
        names = sorted(locked_names(self.lock.pypi))
        program = REPOSITORY / "scripts" / "tryout.py"
        env = child_environment(TF_CPP_MIN_LOG_LEVEL="3", PATH=_path_with(self.prefix / "bin"))
        expect = ["--expect-gpu"] if self.lock.accelerator == "gpu" and not self.args.no_gpu_check else []
        tree = verify.walk(self.prefix)  # before .pyc files come and go
        with ThreadPoolExecutor(2) as pool:
            sealing = pool.submit(verify.sealed, self.prefix, tree, {})
            serving = pool.submit(run, [python, program, "serve"], env, None, 300)
            try:
                found = json.loads(
                    run([python, program, "compute"] + expect + names, env, None, 900).splitlines()[-1]
                )
                serving.result()
            except BaseException:  # Ctrl-C, or one of them has failed: the other is not waited for
                for child in list(_children):
                    child.terminate()
                raise
        self.seal = sealing.result()
        self.notices += found["notices"]
        log(json.dumps(found))

    def write_receipt(self):
        # type: () -> None
        """Write down what was made: from now on the environment counts as whole."""
        names = {name: sha256_of(self.receipts / "lock" / name) for name in self.lock_texts()}
        code = "import platform; print(platform.python_version())"
        write_atomically(
            self.receipts / "receipt.json",
            json.dumps(
                {
                    "schema": RECEIPT_SCHEMA,
                    "env": self.lock.env,
                    "platform": self.lock.platform,
                    "accelerator": self.lock.accelerator,
                    "engine": self.engine,
                    "layer": self.lock.layer,
                    "name": self.name,
                    "root": str(self.root),
                    "prefix": str(self.prefix),
                    "python": run([self.prefix / "bin" / "python", "-I", "-c", code]).strip(),
                    "lock": {"digest": self.lock.digest, "files": names, "jupyter": self.overlay},
                    "jupyter_argv": self.jupyter_argv(),
                    "port": self.args.port,
                    "notebook_dir": str(self.args.notebook_dir),
                    "seal": self.seal,
                    "made": [str(path) for path in self.made_outside()],
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
                    "notices": self.notices,
                },
                indent=1,
            )
            + "\n",
        )

    def made_outside(self):
        # type: () -> List[Path]
        """Return the folders, besides the environment, that this run makes: in the home, and those it lies in."""
        folders = {"host": ["tools"], "conda": ["cache"], "pixi": ["bin", "cache"]}
        return [self.home / name for name in folders.get(self.engine, ["conda", "cache"])] + self.new_folders

    def switch(self):
        # type: () -> None
        """Make it the environment in use; the one before stays, for --rollback."""
        if self.link.exists() and not self.is_current():
            link_atomically(self.home / "previous" / self.lock.env, self.link.resolve())
        link_atomically(self.link, self.prefix)

    def jupyter_argv(self):
        # type: () -> List[str]
        """Return the command that the user is given: through current/, so that it outlives updates."""
        return jupyter_argv(str(self.link), self.args.port, self.args.notebook_dir, os.geteuid() == 0)

    def apply(self, steps):
        # type: (List[Step]) -> None
        """Execute the plan; an environment that is not whole at the end is removed."""
        if not self.is_made():
            remove_tree(self.root)  # without a receipt: left by a run that was killed
            remove_tree(self.receipts)
        try:
            for number, step in enumerate(steps, 1):
                if _interrupted:
                    raise KeyboardInterrupt
                started = time.monotonic()
                with Waiting("[{}/{}] {}".format(number, len(steps), step.title)):
                    step.apply()
                self.seconds[step.name] = time.monotonic() - started
        except BaseException:
            if not self.is_made():
                remove_tree(self.root)
                remove_tree(self.receipts)
            raise


def _succeeds(argv):
    # type: (Sequence[str]) -> bool
    """Return whether a program can be run and ends with status 0."""
    try:
        run(argv, timeout=60)
    except Failure:
        return False
    return True


def config_folder():
    # type: () -> Path
    """Return the folder of the user's settings (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def pip_settings():
    # type: () -> List[str]
    """Return the texts of pip's configuration files, the weakest first."""
    places = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", config_folder() / "pip" / "pip.conf"]
    places += [Path(os.environ["PIP_CONFIG_FILE"])] if os.environ.get("PIP_CONFIG_FILE") else []
    return [path.read_text(errors="replace") for path in places if path.is_file()]


def uv_environment():
    # type: () -> Dict[str, str]
    """Return uv's environment: the user's own, and pip's index where only pip has been told of one."""
    env = child_environment(UV_NO_PROGRESS="1", UV_PYTHON_DOWNLOADS="never")
    told = any(name in env for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_CONFIG_FILE"))
    if not told and not (config_folder() / "uv" / "uv.toml").exists() and not Path("/etc/uv/uv.toml").exists():
        url = pip_index_url(dict(os.environ), pip_settings())
        if url:
            env["UV_DEFAULT_INDEX"] = url
    return env


def _path_with(folder):
    # type: (Path) -> str
    """Return PATH with `folder` first."""
    return os.pathsep.join([str(folder)] + [p for p in [os.environ.get("PATH", "")] if p])


# ---------------------------------------------------------------------------------------------------------
# Choosing an engine


def find_conda():
    # type: () -> Optional[str]
    """Return a conda, mamba or micromamba of this machine that enforces sha256, or None."""
    for name in [
        os.environ.get("CONDA_EXE", ""),
        os.environ.get("MAMBA_EXE", ""),
        "conda",
        "mamba",
        "micromamba",
    ]:
        program = shutil.which(name) if name else None
        if program and conda_refusal(program) is None:
            return program
    return None


def conda_refusal(program):
    # type: (str) -> Optional[str]
    """Return why a conda can't be used, or None."""
    kind = next((name for name in ("micromamba", "mamba") if name in os.path.basename(program)), "conda")
    try:
        text = run([program, "--version"], timeout=60)
    except Failure as problem:
        return problem.what
    found = re.search(r"\d+\.\d+[.\d]*", text)
    if not found or version_tuple(found.group()) < OLDEST_TOOLS[kind]:
        need = ".".join(str(part) for part in OLDEST_TOOLS[kind])
        version = found.group() if found else "without a version"
        return "found {} {}, need {} or newer".format(kind, version, need)
    return None


def demand_conda():
    # type: () -> str
    """Return the conda of this machine that --engine conda uses; raise Failure when there is none that fits."""
    program = find_conda()
    if program:
        return program
    given = os.environ.get("CONDA_EXE") or shutil.which("conda") or shutil.which("mamba")
    why = "{}: {}".format(given, conda_refusal(given)) if given else "no conda, mamba or micromamba is there"
    raise Failure("--engine conda: " + why, "python3 bootstrap.py --engine miniforge", EXIT_MACHINE)


def is_reachable(url):
    # type: (str) -> bool
    """Return whether the server behind a URL answers at all within some seconds."""
    import urllib.error
    import urllib.request

    if url.startswith("file:"):
        return True
    try:
        urllib.request.urlopen(make_request(url, "HEAD"), timeout=8).close()
    except urllib.error.HTTPError as problem:
        return problem.code < 500
    except (OSError, ValueError):
        return False
    return True


def install_command(version):
    # type: (str) -> str
    """Return the command that brings Python 3.x, with pip or what venv makes one of, onto this machine."""
    commands = [
        ("apt-get", "sudo apt-get install python{0} python{0}-venv"),
        ("dnf", "sudo dnf install python{0} python{0}-pip"),
        ("zypper", "sudo zypper install python{1} python{1}-pip"),
        ("brew", "brew install python@{0}"),
    ]
    known = [text for program, text in commands if shutil.which(program)] or [commands[0][1]]
    return known[0].format(version, version.replace(".", ""))


def find_python(wanted, versions):
    # type: (Optional[str], Sequence[str]) -> Tuple[str, str]
    """Return (interpreter, "3.11") for the host engine: `wanted`, else this one, else one on PATH.

    versions: the minor versions that the Python layer is locked for. Raise Failure when there is none.
    """
    code = (
        "import sys, venv; print(sys._base_executable or sys.executable, '%d.%d' % sys.version_info[:2], sep='\\n')"
    )
    own = "{}.{}".format(*sys.version_info[:2])
    candidates = [wanted] if wanted else [sys.executable] if own in versions else []
    if not wanted:
        candidates += [found for found in map(shutil.which, ["python" + v for v in reversed(versions)]) if found]
    found = []
    for candidate in candidates:
        try:
            executable, version = run([candidate, "-I", "-c", code], timeout=60).split("\n")[:2]
        except (Failure, ValueError) as problem:
            found.append("{}: {}".format(candidate, str(problem).splitlines()[-1].strip()))
            continue
        if version in versions:
            return executable, version
        found.append("{} is {}".format(candidate, version))
    offered = [v for v in versions if shutil.which("apt-cache") and _succeeds(["apt-cache", "show", "python" + v])]
    version = (offered or versions[:2])[-1]  # 3.12 where we can't ask: most systems have it
    raise Failure(
        "no Python that the lock covers (found {}; need one of {})".format(
            "; ".join(found) or own, ", ".join(versions)
        ),
        "{} && python3 bootstrap.py --python python{}".format(install_command(version), version),
        EXIT_MACHINE,
    )


def check_host_python(python):
    # type: (str) -> None
    """Raise Failure unless this Python can get at a pip: its own, a uv, or the one bundled with venv."""
    isolated = [python, "-I", "-c"]
    if _succeeds(isolated + ["import pip"]) or shutil.which("uv") or _succeeds(isolated + ["import ensurepip"]):
        return
    version = run(isolated + ["import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    raise Failure(
        "{} has neither pip nor venv's bundled pip".format(python),
        install_command(version),
        EXIT_MACHINE,
    )


def choose_engine(args, index, subdir, rules):
    # type: (argparse.Namespace, Dict[str, Any], str, Rules) -> Tuple[str, List[str]]
    """Return the engine that `auto` means on this machine, and what the user should know about it."""
    if args.python and args.engine not in ("auto", "host"):
        raise Failure(
            "--python is for --engine host; {} brings a Python of its own".format(args.engine),
            "python3 bootstrap.py --engine {}".format(args.engine),
            EXIT_USAGE,
        )
    if args.python or args.engine != "auto":
        return "host" if args.python else args.engine, []
    with contextlib.suppress(OSError, ValueError, KeyError):  # ours from an earlier run stays what it is
        return str(json.loads((Path(args.home) / "conda" / ".colab-local.json").read_text())["engine"]), []
    if find_conda():
        return "conda", []
    # Miniforge's installer refuses a path with a blank in it; pixi does not mind.
    engine = "pixi" if re.search(r"\s", str(args.home)) else "miniforge"
    entry = index["installers"][engine]["files"].get(subdir)
    explicit = index["environments"][args.env]["platforms"][subdir]
    packages = parse_explicit(read_locked(Path(args.lockfiles), explicit["file"], explicit["sha256"]))
    urls = [rewrite(entry["url"], rules)] if entry else []
    urls += [rewrite(url, rules) for url, _ in packages[:1]]
    for url in urls:
        if not is_reachable(url):
            host = re.sub(r"^\w+://([^/]*@)?([^/]+).*", r"\2", url)
            return "host", ["{} can't be reached: no conda layer, this machine's own Python is used".format(host)]
    return engine, []


# ---------------------------------------------------------------------------------------------------------
# The command line


class Parser(argparse.ArgumentParser):
    """A command line whose errors are shown like all others: argparse's would follow a screenful of usage."""

    def error(self, message):  # type: ignore[override]
        # type: (str) -> None
        raise Failure(message, "python3 bootstrap.py --help", EXIT_USAGE)


def port_number(text):
    # type: (str) -> int
    """Return a TCP port from the command line."""
    if not (text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError("need 1 to 65535 (found {!r})".format(text))
    return int(text)


def make_parser():
    # type: () -> argparse.ArgumentParser
    """Return the parser; its --help is the manual."""
    parser = Parser(
        prog="bootstrap.py",
        description="Turn this machine into a Google Colab local runtime, exact to the hash.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python3 bootstrap.py                      CPU environment, then the commands to paste
  python3 bootstrap.py --gpu --launch       GPU environment, start Jupyter at the end
  python3 bootstrap.py --dry-run --gpu      what would be done, and where
  python3 bootstrap.py --verify             is every file still what the lock says?
  python3 bootstrap.py --list               environments here, with size and state
  python3 bootstrap.py --desktop virtual    a remote desktop on this machine, through SSH only
  python3 bootstrap.py --uninstall          remove all that was made

exit codes: 0 done, 1 a step failed, 2 usage, 3 machine does not fit, 4 damaged or altered file,
            5 download failed, 6 busy, 7 difference found, 130 interrupted""",
    )
    what = parser.add_argument_group("which environment")
    choice = what.add_mutually_exclusive_group()
    choice.add_argument("--cpu", dest="env", action="store_const", const="cpu", help="CPU TensorFlow (the default)")
    choice.add_argument("--gpu", dest="env", action="store_const", const="gpu", help="TensorFlow for an NVIDIA GPU")
    choice.add_argument("--env", dest="env", metavar="NAME", help="an environment of lockfiles/index.json by name")
    what.add_argument(
        "--lockfiles",
        metavar="DIR",
        default=str(REPOSITORY / "lockfiles"),
        help="use other lockfiles than this checkout's",
    )
    what.add_argument("--no-gpu-check", action="store_true", help="--gpu without a GPU: for building images")

    how = parser.add_argument_group("how it is made")
    engines = ["auto", "miniforge", "anaconda", "conda", "pixi", "host"]
    how.add_argument(
        "--engine",
        choices=engines,
        default="auto",
        help="who makes the environment: auto takes a conda that is there, else Miniforge, else (conda hosts "
        "unreachable) host: this machine's Python and no conda at all",
    )
    how.add_argument("--python", metavar="EXE", help="use this interpreter; means --engine host")
    how.add_argument(
        "--prefix", dest="home", metavar="DIR", help="where everything lands (default: %s)" % default_home()
    )
    how.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="FROM=TO",
        help="fetch URLs that begin with FROM from TO",
    )
    how.add_argument("--offline", metavar="FILE", help="install from a bundle made by scripts/bundle.py, no network")

    jupyter = parser.add_argument_group("Jupyter")
    jupyter.add_argument(
        "--port", type=port_number, default=DEFAULT_PORT, help="its port on loopback (default: 8888)"
    )
    jupyter.add_argument(
        "--notebook-dir", metavar="DIR", default="~", help="what Colab's file pane shows (default: your home folder)"
    )
    jupyter.add_argument("--launch", action="store_true", help="start it at the end, in this terminal")
    jupyter.add_argument(
        "--service", action="store_true", help="keep it running: a systemd user unit or launchd agent"
    )

    manage = parser.add_argument_group("what is installed").add_mutually_exclusive_group()
    manage.add_argument("--verify", action="store_true", help="check an environment file by file against its lock")
    manage.add_argument("--list", action="store_true", help="show environments with size, lock and state")
    manage.add_argument("--rollback", action="store_true", help="switch back to the previous environment")
    manage.add_argument("--prune", action="store_true", help="remove environments that are not in use")
    manage.add_argument("--uninstall", action="store_true", help="remove all that was made; shows it first")

    desktop = parser.add_argument_group("remote desktop (see scripts/desktop/README.md)")
    desktop.add_argument(
        "--desktop",
        choices=["mirror", "virtual"],
        help="mirror: the screen that is there; virtual: one of its own; no environment is installed unless --cpu or "
        "--gpu is given, too",
    )
    desktop.add_argument(
        "--vnc", choices=["tiger", "tight"], help="VNC server of the virtual desktop: TigerVNC or TightVNC"
    )
    sessions = ["auto", "xfce", "lxde", "gnome-flashback", "openbox"]
    desktop.add_argument("--session", choices=sessions, default="auto", help="what runs in it")
    desktop.add_argument("--display", type=int, metavar="N", help="display number (default: the first free one)")
    desktop.add_argument("--geometry", metavar="WxH", help="its size (default: 1600x900)")
    desktop.add_argument("--vnc-password-file", metavar="FILE", help="yours, 6-8 characters; - reads standard input")
    desktop.add_argument("--reset-vnc-password", action="store_true", help="make a new one")
    desktop.add_argument(
        "--desktop-user", metavar="USER", help="whose desktop (default: you; under sudo, its caller)"
    )
    desktop.add_argument("--install-packages", action="store_true", help="let apt install what is missing")

    run_ = parser.add_argument_group("this run")
    run_.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
    run_.add_argument("--json", action="store_true", help="plan and result as one JSON document on stdout")
    run_.add_argument("--yes", action="store_true", help="don't ask before --uninstall and --prune")
    run_.add_argument("-v", "--verbose", action="store_true", help="show the programs that are run")
    return parser


def make_installation(args, index):
    # type: (argparse.Namespace, Dict[str, Any]) -> Installation
    """Look at the machine and the lock and return what is to be installed; write nothing."""
    environments = index["environments"]
    if args.env not in environments:
        raise Failure(
            "unknown environment {!r} (there are: {})".format(args.env, ", ".join(sorted(environments))),
            "python3 bootstrap.py --env {}".format(DEFAULT_ENVIRONMENT),
            EXIT_USAGE,
        )
    host = inspect_host()
    platforms = environments[args.env]["platforms"]
    refusal = machine_refusal(host, args.env, platforms)
    if refusal:
        raise refusal
    check_home(Path(args.home))
    subdir = conda_platform(host.system, host.machine)
    rules = parse_rules(os.environ.get("COLAB_LOCAL_MIRROR", "").split() + args.mirror)
    installed = current_receipt(args.home, args.env)
    if installed and args.engine in ("auto", installed["engine"]) and not args.python:  # what fits the lock stays
        lock = make_lock(index, Path(args.lockfiles), args.env, subdir, installed["layer"])
        found = Installation(args, index, lock, installed["engine"], rules)
        if found.is_made():
            return found
    wheels = None
    if args.offline:
        from scripts import offline

        bundle = offline.open_bundle(args.offline, args.home, args.env, subdir)
        rules, wheels = list(bundle.rules) + rules, bundle.wheels
        args.lockfiles = str(bundle.lockfiles)
        args.engine = bundle.choose(args.engine)
        index = dict(read_index(bundle.lockfiles), python=[bundle.python])
    engine, notices = choose_engine(args, index, subdir, rules)
    python = conda = None
    layer = "conda"
    if engine == "host":
        try:
            python, version = find_python(args.python, index["python"])
        except Failure as problem:
            raise Failure("; ".join(notices + [problem.what]), problem.hint, problem.code)
        layer = "host-" + version
    elif engine == "conda":
        conda = demand_conda()
    elif engine in ("miniforge", "anaconda") and re.search(r"\s", args.home):
        raise Failure(
            "the {} installer can't install under a path with blanks (found {!r})".format(engine, args.home),
            "python3 bootstrap.py --engine pixi",
            EXIT_USAGE,
        )
    if engine == "pixi" and any(split_login(target)[1] for _, target in rules):
        raise Failure(
            "pixi would keep the password of --mirror in files that others can read",
            "python3 bootstrap.py --engine miniforge",
            EXIT_USAGE,
        )
    lock = make_lock(index, Path(args.lockfiles), args.env, subdir, layer)
    found = Installation(args, index, lock, engine, rules, python, conda, wheels)
    found.notices += notices
    if engine not in ("host", "conda"):
        found.installer()
    return found


def preflight(installation):
    # type: (Installation) -> None
    """Look whether the machine has what the plan needs; raise Failure with the numbers when it hasn't."""
    args, lock = installation.args, installation.lock
    entry = installation.index["environments"][lock.env]["platforms"][lock.platform]
    if not os.path.isdir(args.notebook_dir):
        raise Failure(
            "--notebook-dir: there is no folder {} (Jupyter would not start)".format(args.notebook_dir),
            "mkdir -p {}".format(shlex.quote(args.notebook_dir)),
            EXIT_USAGE,
        )
    if installation.engine in ("miniforge", "anaconda", "pixi") and not installation.is_made():
        where, whole, begun = installation.engine_paths()
        if where.exists() and not whole.exists() and not begun.exists():
            raise Failure(
                "{} is there and was not made by this program: it is left alone".format(where),
                "python3 bootstrap.py --prefix {}".format(shlex.quote(str(installation.home / "colab-local"))),
                EXIT_USAGE,
            )
    if lock.accelerator == "gpu" and not args.no_gpu_check:
        gpus = query_gpus()
        update = "sudo ubuntu-drivers install && sudo reboot" if shutil.which("ubuntu-drivers") else ""
        refusal = gpu_refusal(gpus, entry.get("requires", {}), update)
        if refusal:
            raise refusal
        for gpu in gpus:
            installation.notices.append(
                "{}, driver {}, compute capability {}".format(
                    gpu.name, gpu.driver, gpu.compute_capability or "unknown"
                )
            )
            if version_tuple(gpu.compute_capability) >= (12, 0):
                installation.notices.append(
                    "TensorFlow's build has no code for compute capability 12.x: the driver compiles it at first "
                    "use, which takes minutes and has failed for some"
                )
    if not installation.is_made():
        if installation.engine == "host":
            check_host_python(str(installation.python))
        sizes = entry.get("bytes", {})
        kinds = ["pypi_installed"] + ([] if installation.wheels else ["pypi_download"])
        kinds += ["conda_installed", "conda_download"] if lock.layer == "conda" else []
        check_disk(installation.home, sum(int(sizes.get(kind) or 0) for kind in kinds))
    if not port_is_free(args.port) and (args.launch or not (installation.is_made() or read_receipts(args.home))):
        free = next(port for port in range(args.port + 1, args.port + 1000) if port_is_free(port))
        raise Failure(
            "port {} is taken by another program (Jupyter would not start)".format(args.port),
            "python3 bootstrap.py --port {}".format(free),
            EXIT_MACHINE,
        )


def next_steps(installation):
    # type: (Installation) -> List[str]
    """Return the lines that tell the user how to go on; every command is one line that can be pasted."""
    argv = installation.jupyter_argv()
    port = installation.args.port
    return [
        "Next steps",
        "  1. Start Jupyter here and leave it running; it prints a URL with a token:",
        "",
        " ".join(shlex.quote(arg) for arg in argv),
        "",
        "  2. Only if your browser is on another machine, run this there and leave it running:",
        "",
        ssh_line(port, user_name(), address_for_others(), ssh_port_for_others()),
        "",
        "  3. In Colab (https://colab.research.google.com): the arrow beside Connect > Connect to a local runtime,",
        "     paste the URL (http://localhost:{}/?token=...), Connect.".format(port),
        "     If the browser asks whether Colab may access other apps and services on this device:",
        "     Chrome: click Allow. Firefox: tick Remember my choice for this site, click Allow.",
        "     It stays at connecting? Run where the browser is: python3 scripts/doctor.py",
    ]


def install(args):
    # type: (argparse.Namespace) -> Dict[str, Any]
    """Make the environment, or show how; return what --json prints."""
    index = read_index(args.lockfiles)
    installation = make_installation(args, index)
    preflight(installation)
    steps = installation.steps()
    subdir = installation.lock.platform
    shown = [{"name": step.name, "title": step.title, "where": step.where} for step in steps]
    result = {
        "environment": installation.lock.env,
        "platform": subdir,
        "engine": installation.engine,
        "home": str(installation.home),
        "prefix": str(installation.link),
        "lock": installation.lock.digest,
        "plan": shown,
        "changed": False,
        "notices": installation.notices,
        "jupyter_argv": installation.jupyter_argv(),
    }  # type: Dict[str, Any]
    for notice in installation.notices:
        say("note: " + notice)
    if not steps:
        say("Nothing to do: the {} environment is installed in {}".format(args.env, installation.home))
    else:
        verb = "Would do" if args.dry_run else "Will do"
        say("{} this for the {} environment ({}), all of it in {}:".format(verb, args.env, subdir, args.home))
        width = max(len(step.title) for step in steps)
        for step in steps:
            say("  {}  {}".format(step.title.ljust(width), os.path.relpath(step.where, args.home)))
    if args.dry_run:
        return result
    if steps:
        known = len(installation.notices)
        with locked(args.home):
            open_log(installation.home)
            steps = installation.steps()  # another run may have done it while this one waited
            try:
                installation.apply(steps)
            except (Failure, KeyboardInterrupt) as problem:
                if getattr(problem, "code", EXIT_INTERRUPTED) != EXIT_FAILED:  # a failed step's log is kept
                    remove_empty(installation.home)
                raise
        result.update(changed=bool(steps), seconds=installation.seconds)
        for notice in installation.notices[known:]:
            say("note: " + notice)
        say("Done in {:.0f} s.".format(sum(installation.seconds.values())))
    say()
    for line in next_steps(installation):
        say(line)
    return result


def fail(problem):
    # type: (Failure) -> int
    """Show a failure in two lines (and as JSON if asked) and return its exit code."""
    if json_mode:
        document = {"ok": False, "error": problem.what, "hint": problem.hint, "code": problem.code}
        print(json.dumps(document, indent=1))
    report("error: " + problem.what)
    if problem.hint:
        report("hint: " + problem.hint)
    if _log and problem.code == EXIT_FAILED:
        report("log: {}".format(_log_path))
    return problem.code


def _interrupt(number, frame):
    # type: (int, Any) -> None
    """Treat SIGTERM and SIGHUP like Ctrl-C, and take note of all three: clean up, then end."""
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def dispatch(args):
    # type: (argparse.Namespace) -> int
    """Do what the options ask for and return the exit code."""
    if args.desktop:
        from scripts import desktop

        if args.uninstall or not args.environment_too:
            return int(desktop.command(args))
        beside = desktop.set_up(args)
    if args.verify:
        from scripts import verify

        return int(verify.command(args))
    if args.list or args.rollback or args.prune or args.uninstall:
        from scripts import manage

        return int(manage.command(args))
    result = install(args)
    if args.desktop:
        result["desktop"] = beside
    if args.json:
        print(json.dumps(dict(result, ok=True), indent=1))
    if args.service:
        from scripts import service

        return int(service.command(args))
    if args.dry_run:
        return EXIT_OK
    if args.launch:
        say()
        sys.stdout.flush()
        argv = result["jupyter_argv"]
        if args.offline:
            from scripts import offline

            offline.clean_up()
        os.execve(argv[0], argv, child_environment())
    return EXIT_OK


def main(argv=None):
    # type: (Optional[Sequence[str]]) -> int
    """Run bootstrap.py with the given arguments and return its exit code."""
    global json_mode, verbose
    json_mode = "--json" in (sys.argv[1:] if argv is None else argv)  # also for errors in the command line itself
    with contextlib.suppress(AttributeError):  # a terminal that lacks a letter of --prefix shows its number
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        args = make_parser().parse_args(argv)
        json_mode, verbose = args.json, args.verbose
        args.environment_too = bool(args.env or args.launch or args.service or args.offline)  # beside --desktop
        args.env = DEFAULT_ENVIRONMENT if args.env is None else args.env
        if args.home == "":
            raise Failure("--prefix needs a folder (found '')", "python3 bootstrap.py", EXIT_USAGE)
        user_home()  # there is one, or it ends here: what follows relies on it
        args.home = os.path.abspath(os.path.expanduser(args.home or default_home()))
        args.notebook_dir = os.path.abspath(os.path.expanduser(args.notebook_dir))
        args.lockfiles = os.path.abspath(os.path.expanduser(args.lockfiles))
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stands
                signal.signal(number, _interrupt)
        return dispatch(args)
    except Failure as problem:
        return fail(problem)
    except KeyboardInterrupt:
        return fail(Failure("interrupted", "run the same command again: it goes on from here", EXIT_INTERRUPTED))
    except BrokenPipeError:  # whoever read our output (head, less) has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        return EXIT_FAILED
    except OSError as problem:
        return fail(Failure("{} ({})".format(problem.strerror or problem, problem.filename or "no file")))


if __name__ == "__main__":
    sys.exit(main())
