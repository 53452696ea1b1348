#!/usr/bin/env python3
"""Make one file from which bootstrap.py installs without any network, also for another machine's platform.

    python scripts/bundle.py                                          cpu, this machine's platform, Miniforge
    python scripts/bundle.py --env gpu --platform linux-64            the same from anywhere, for a GPU machine
    python scripts/bundle.py --engine host --python 3.12              no conda: for a machine with Python 3.12
    python scripts/bundle.py --output /media/stick/colab-local.tar

and there:

    tar -xf colab-local-gpu-linux-64.tar && python3 colab-local/bootstrap.py --env gpu --offline colab-local

The file is an ordinary tar: bootstrap.py and its scripts, the lock, the installer, every conda package and wheel. All
of it is checked against the lock while it is written, and again before an installation reads it. What else lies in
this folder never gets in. Same program, same lock and same options, same bytes (but for a signature). Interrupted,
the next run goes on where this one stopped (in OUTPUT.parts, beside the output).

--sign KEY signs the manifest, which names every file by its hash, with ssh-keygen. Who installs can demand it:
    python3 bootstrap.py --offline FILE --bundle-signers ALLOWED_SIGNERS        (see ssh-keygen(1))
    tar -xOf FILE colab-local/bundle.json | ssh-keygen -Y verify ...            by hand

Wheels come from where uv's or pip's own configuration says (index, credentials, certificates); conda packages and
installers from their locked URLs, or from what --mirror FROM=TO makes of them.

Needs Python 3.11 or newer, requests, tqdm and uv, which an installed environment has:
    ~/.local/share/colab-local/current/cpu/bin/python scripts/bundle.py
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, NamedTuple, Sequence
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.downloads import FIRST_PAUSE_S, TIMEOUT_S, TRIES, Rules, parse_rules, rewrite
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_NETWORK, EXIT_OK, EXIT_USAGE, Failure
from colab_local.base.files import check_disk, sha256_of
from colab_local.base.terminal import Screen
from colab_local.base.text import mask, megabytes
from colab_local.install import offline, requirements
from colab_local.install.engines import demand_conda_layer
from colab_local.install.home import default_home
from colab_local.install.lockfiles import (
    DEFAULT_ENVIRONMENT,
    REPOSITORY,
    conda_platform,
    pythons_of,
    read_index,
    read_lock_file,
)
from colab_local.install.program import program_names
from colab_local.install.sources import pip_texts, run_uv

MISSING = ""  # a library that is not here: --help and usage errors do without
try:
    import requests
    import tomllib
    from tqdm import tqdm
except ImportError as problem:
    MISSING = str(problem.name)

TRIPLES = {"linux-64": "x86_64", "linux-aarch64": "aarch64", "osx-arm64": "aarch64-apple-darwin"}
JOBS = 6


class Source(NamedTuple):
    """A file to fetch. name: its place in the bundle; url: http, https or file; sha256: what the lock says it is."""

    name: str
    url: str
    sha256: str
    size: int


class Choice(NamedTuple):
    """What the bundle is for. python: a minor version; lock: lockfiles/index.json."""

    env: str
    platform: str
    engine: str
    python: str
    lockfiles: Path
    lock: dict[str, Any]

    def read(self, name: str) -> str:
        """Return a lock file's text; raise Failure unless it is what index.json says."""
        names = offline.lockfile_names(self.lock, self.env, self.platform, self.engine)
        return read_lock_file(self.lockfiles, name, names[name])


# ---------------------------------------------------------------------------------------------------------
# What belongs in it


def choose(args: argparse.Namespace) -> Choice:
    """Return what the options ask for.

    Raises:
        Failure: the lock has no such environment, platform or Python.
    """
    lockfiles = Path(args.lockfiles).absolute()
    index = read_index(lockfiles)
    series = pythons_of(index, args.env)
    known = {
        "environment": (args.env, index["environments"]),
        "platform": (args.platform, index["environments"].get(args.env, {}).get("platforms", {})),
        "Python": (args.python or series[-1], series),
    }
    for what, (wanted, there) in known.items():
        if wanted not in there:
            raise Failure(
                f"the lock has no {what} {wanted} for this (there are: {', '.join(sorted(there))})",
                "python3 scripts/bundle.py --help",
                EXIT_USAGE,
            )
    demand_conda_layer(args.engine, index, args.env, "python3 scripts/bundle.py !--python --engine miniforge")
    python = args.python or ".".join(index["environments"][args.env]["python"].split(".")[:2])
    if args.engine == "host" and not args.python:
        own = f"{sys.version_info[0]}.{sys.version_info[1]}"
        python = own if own in series else series[-1]
    return Choice(args.env, args.platform, args.engine, python, lockfiles, index)


def project_files(choice: Choice) -> dict[str, bytes]:
    """Return {name: content} of the bundle's files that are not fetched: the program and the lock.

    The program is a fixed list of files, whatever else lies in this checkout.
    """
    try:
        names = program_names(REPOSITORY, choice.lock)
        files = {name: (REPOSITORY / name).read_bytes() for name in names}
    except (OSError, SyntaxError) as problem:
        raise Failure(f"the program is not complete here ({problem})", "git status", EXIT_INTEGRITY) from problem
    for name, sha256 in choice.lock["jupyter"].items():
        read_lock_file(REPOSITORY / "environments" / "jupyter", name, sha256)
    files["lockfiles/index.json"] = (choice.lockfiles / "index.json").read_bytes()
    for name in offline.lockfile_names(choice.lock, choice.env, choice.platform, choice.engine):
        files[f"lockfiles/{name}"] = choice.read(name).encode()
    return files


def find_uv() -> str:
    """Return the uv beside this Python, on PATH, or of an installed environment."""
    beside = Path(sys.executable).parent / "uv"
    installed = sorted(Path(default_home()).glob("tools/uv-*/bin/uv"))
    for program in [str(beside), shutil.which("uv") or "", *map(str, reversed(installed))]:
        if program and os.access(program, os.X_OK):
            return program
    raise Failure("no uv is here", "python3 bootstrap.py --cpu")


def uv_platform(platform: str, requires: dict[str, str]) -> str:
    """Return uv's name of a platform: x86_64-manylinux_2_28, aarch64-apple-darwin."""
    glibc = requires.get("glibc", "2.17").replace(".", "_")
    return TRIPLES[platform] + (f"-manylinux_{glibc}" if platform.startswith("linux") else "")


def find_wheels(choice: Choice, folder: Path, screen: Screen) -> list[Source]:
    """Ask the index that the user's own configuration names where the locked wheels are.

    uv reads the configuration, asks for all packages at once and writes what it finds as a pylock.toml (PEP 751);
    the lock's hashes then say which of those files are meant. folder: for the files it reads and writes.

    Raises:
        Failure: the index can't be reached, or has no locked wheel of a package.
    """
    wanted = offline.locked_wheels(
        choice.lock, choice.read, choice.env, choice.platform, choice.engine, choice.python
    )
    requires = choice.lock["environments"][choice.env]["platforms"][choice.platform].get("requires", {})
    asked, answer = folder / "wheels.in", folder / "pylock.toml"
    hashes = {entry: " ".join(f"--hash=sha256:{sha256}" for sha256 in sorted(entry.sha256)) for entry in wanted}
    asked.write_text("".join(f"{entry.name}=={entry.version} {hashes[entry]}\n" for entry in wanted))
    argv = [find_uv(), "pip", "compile", "--quiet", "--no-deps", "--no-header", "--format", "pylock.toml"]
    argv += ["--python-platform", uv_platform(choice.platform, requires), "--python-version", choice.python]
    target = {"MACOSX_DEPLOYMENT_TARGET": requires["macos"]} if "macos" in requires else {}  # of the wheels chosen
    try:
        run_uv([*argv, "-o", answer, asked], screen, more=target, timeout=600)
    except Failure as problem:
        raise Failure(
            f"can't ask the package index: {problem.what}",
            "check the network, and uv's or pip's configuration, and run the same command again",
            EXIT_NETWORK,
        ) from problem
    found = {
        requirements.normalise(package["name"]): package.get("wheels", [])
        for package in tomllib.loads(answer.read_text())["packages"]
    }
    sources = []
    for entry in wanted:
        fitting = [wheel for wheel in found.get(entry.name, []) if wheel["hashes"].get("sha256") in entry.sha256]
        if not fitting:
            raise Failure(
                f"the package index has no locked wheel of {entry.name} {entry.version} for {choice.platform}, "
                f"Python {choice.python}",
                "python3 scripts/lock.py --check",
                EXIT_NETWORK,
            )
        sources += [wheel_source(wheel, folder) for wheel in fitting]
    return sources


def wheel_source(wheel: dict[str, Any], folder: Path) -> Source:
    """Return where a wheel of a pylock.toml is. folder: of the pylock.toml, from which its paths count."""
    url = wheel.get("url") or (folder / wheel["path"]).resolve().as_uri()
    name = unquote(urlsplit(url).path.rsplit("/", 1)[1])
    return Source(f"wheels/{name}", url, wheel["hashes"]["sha256"], int(wheel.get("size") or 0))


def find_sources(choice: Choice, folder: Path, rules: Rules, screen: Screen) -> list[Source]:
    """Return all files that have to be fetched, the heaviest first; rules: mirror rules."""
    locked = offline.locked_files(choice.lock, choice.read, choice.env, choice.platform, choice.engine)
    sources = [Source(offline.bundle_path(url), rewrite(url, rules), sha256, 0) for url, sha256 in locked]
    sources += find_wheels(choice, folder, screen)
    return sorted(dict.fromkeys(sources), key=lambda source: -source.size)


def credentials(environ: dict[str, str], texts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return {host: (user, password)} of the index URLs in uv's and pip's settings; netrc is read by requests itself.

    environ: os.environ; texts: configuration files.
    """
    names = (
        "UV_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_EXTRA_INDEX_URL",
        "UV_INDEX",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
    )
    text = "\n".join([*texts, *(environ.get(name, "") for name in names)])
    found = {}
    for url in re.findall(r"https?://[^\s\"']+", text):
        parts = urlsplit(url)
        if parts.username:
            found[parts.netloc.rpartition("@")[2]] = (unquote(parts.username), unquote(parts.password or ""))
    return found


# ---------------------------------------------------------------------------------------------------------
# Fetching


def cause(problem: Exception) -> str:
    """Return what lies at the bottom of requests' and urllib3's exceptions around it: Failed to resolve 'HOST'."""
    inner = getattr(problem.args[0] if problem.args else None, "reason", problem)
    return re.sub(r"^[\w.]*(Connection|Pool)\w*\(.*?\): ", "", str(inner)) or type(problem).__name__


class Fetcher:
    """Fetches files several at a time into a folder, where they are named by their sha256.

    folder: keeps what an interrupted run has fetched; stop: set when one failed, so that the others end too.
    """

    def __init__(self, folder: Path, logins: dict[str, tuple[str, str]]) -> None:
        self.folder, self.logins, self.stop = folder, logins, Event()
        self.session = requests.Session()
        self.session.headers["User-Agent"] = "colab-local"
        self.bar: Any = None

    def path(self, source: Source) -> Path:
        """Return where a file is kept."""
        return self.folder / source.sha256

    def fetch_all(self, sources: Sequence[Source], jobs: int) -> None:
        """Fetch what is not there yet; the first failure ends the rest."""
        missing = [source for source in sources if not self.path(source).is_file()]
        kept = sum(part.stat().st_size for part in self.folder.glob("*.part"))
        total = sum(source.size for source in missing)
        title = f"Downloading {len(missing)} files"
        with tqdm(total=total or None, initial=kept, desc=title, unit="B", unit_scale=True, disable=None) as self.bar:
            pool = ThreadPoolExecutor(jobs)
            running = [pool.submit(self.fetch, source) for source in missing]
            try:
                for job in as_completed(running):
                    job.result()
            finally:
                self.stop.set()
                for job in running:
                    job.cancel()
                pool.shutdown()

    def fetch(self, source: Source) -> None:
        """Fetch one file: resumed, retried, its hash compared with the lock's."""
        part = self.folder / f"{source.sha256}.part"
        for fresh in (False, True):  # what an earlier run left may be of another file: once more, from the start
            if fresh:
                self.bar.update(-part.stat().st_size)
                part.unlink()
            resumed = self.bring(source, part)
            found = sha256_of(part)
            if found == source.sha256:
                part.replace(self.path(source))
                return
            if not resumed:
                break
        part.unlink()
        raise Failure(
            f"{mask(source.url)} is not the file that the lock names "
            f"(found sha256 {found}, need {source.sha256}); it was not kept",
            "try again from another network, or with --mirror",
            EXIT_INTEGRITY,
        )

    def bring(self, source: Source, part: Path) -> bool:
        """Bring a file's bytes into `part`, from where an earlier try stopped; return whether it went on."""
        if source.url.startswith("file:"):
            shutil.copyfile(url2pathname(urlsplit(source.url).path), part)
            self.bar.update(part.stat().st_size)
            return False
        resumed, reason = False, ""
        for attempt in range(TRIES):
            if attempt:
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
                tqdm.write(f"{mask(source.url)}: {reason}. Trying again in {pause:.0f} s.", file=sys.stderr)
                if self.stop.wait(pause):
                    break
            have = part.stat().st_size if part.exists() else 0
            try:
                with self.session.get(
                    source.url,
                    headers={"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
                    if have
                    else {"Accept-Encoding": "identity"},
                    auth=self.logins.get(urlsplit(source.url).netloc),
                    stream=True,
                    timeout=TIMEOUT_S,
                ) as response:
                    if response.status_code == requests.codes.requested_range_not_satisfiable and have:
                        return True  # all of it is there, or too much: the hash decides
                    response.raise_for_status()
                    goes_on = response.status_code == requests.codes.partial_content
                    resumed = resumed or (goes_on and have > 0)
                    self.save(response, part, have if goes_on else 0, have)
                    return resumed
            except requests.HTTPError as problem:
                status = problem.response.status_code
                reason = f"HTTP {status} {problem.response.reason}"
                if status < 500 and status not in (408, 425, 429):
                    break
            except (requests.RequestException, OSError) as problem:
                reason = mask(cause(problem))
        raise Failure(
            f"can't download {mask(source.url)}: {reason or 'stopped'}",
            "check the network or proxy and run the same command again: it goes on from here",
            EXIT_NETWORK,
        )

    def save(self, response: Any, part: Path, start: int, counted: int) -> None:
        """Write an answer's body to `part` from offset `start`; counted: bytes of it that the bar knows of."""
        self.bar.update(start - counted)
        expected = response.headers.get("Content-Length")
        with part.open("ab" if start else "wb") as stream:
            for chunk in response.iter_content(1 << 18):
                if self.stop.is_set():
                    raise OSError("stopped")
                stream.write(chunk)
                self.bar.update(len(chunk))
        if expected is not None and part.stat().st_size - start < int(expected):
            raise OSError(f"the connection ended after {part.stat().st_size - start} of {expected} bytes")


# ---------------------------------------------------------------------------------------------------------
# Writing


def make_manifest(choice: Choice, files: dict[str, bytes], sources: Sequence[Source]) -> dict[str, Any]:
    """Return bundle.json: what the bundle is for, and the sha256 of every other file in it."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    digests.update({source.name: source.sha256 for source in sources})
    return {
        "_": "Made by scripts/bundle.py.",
        "schema": offline.SCHEMA,
        "environment": choice.env,
        "platform": choice.platform,
        "engine": choice.engine,
        "python": choice.python,
        "sha256": dict(sorted(digests.items())),
    }


def entry(name: str, size: int) -> tarfile.TarInfo:
    """Return a tar header that depends on nothing but the file: no time, no owner."""
    info = tarfile.TarInfo(offline.ROOT + name)
    info.size, info.mode = size, 0o755 if name == "bootstrap.py" else 0o644
    return info


class Checked(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, stream: BinaryIO, bar: Any) -> None:
        self.stream, self.bar, self.digest = stream, bar, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read and count."""
        chunk = self.stream.read(size)
        self.digest.update(chunk)
        self.bar.update(len(chunk))
        return chunk


def sign(text: bytes, key: str) -> bytes:
    """Return ssh-keygen's signature of a manifest. key: a private key, or a public one whose other half an agent has.

    Raises:
        Failure: ssh-keygen can't sign; it has said why on the terminal.
    """
    argv = ["ssh-keygen", "-Y", "sign", "-f", str(Path(key).expanduser()), "-n", offline.NAMESPACE]
    try:
        done = subprocess.run(
            argv, input=text, stdout=subprocess.PIPE, check=False
        )  # it asks for a passphrase itself
    except FileNotFoundError:
        raise Failure("no program ssh-keygen is here", "sudo apt install openssh-client") from None
    if done.returncode:
        raise Failure(f"ssh-keygen can't sign with {key}", f"ssh-keygen -Y sign -f {key} -n {offline.NAMESPACE} FILE")
    return done.stdout


def manifest_text(manifest: dict[str, Any]) -> bytes:
    """Return the manifest as it is in the tar."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def write(
    output: Path, manifest: dict[str, Any], files: dict[str, bytes], fetched: dict[str, Path], signature: bytes = b""
) -> str:
    """Write the tar beside its place, check every file against the manifest on the way, move it there.

    files: {name: content}; fetched: {name: file}; signature: of the manifest, b"" for none. Returns the sha256 of
    the tar.
    """
    temporary = output.with_name(output.name + ".part")
    total = sum(path.stat().st_size for path in fetched.values())
    first = [(offline.MANIFEST, manifest_text(manifest))]
    first += [(offline.SIGNATURE, signature)] if signature else []
    with tqdm(total=total, desc=f"Writing {output.name}", unit="B", unit_scale=True, disable=None) as bar:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
            for name, content in [*first, *sorted(files.items())]:
                archive.addfile(entry(name, len(content)), io.BytesIO(content))
            for name, path in sorted(fetched.items()):
                with path.open("rb") as stream:
                    checked = Checked(stream, bar)
                    archive.addfile(entry(name, path.stat().st_size), checked)
                if checked.digest.hexdigest() != manifest["sha256"][name]:
                    path.unlink()
                    raise Failure(
                        f"{name} changed on the disk while it was written",
                        "run the same command again: it is fetched anew",
                        EXIT_INTEGRITY,
                    )
        digest = sha256_of(temporary)
    temporary.replace(output)
    return digest


def is_there(output: Path, manifest: dict[str, Any], signature: bytes, screen: Screen) -> bool:
    """Return whether the output is this very bundle already, undamaged, with this signature (b"" for none)."""
    if not output.is_file():
        return False
    try:
        with offline.members(output) as files:
            found = files[offline.SIGNATURE].open().read(1 << 16) if offline.SIGNATURE in files else b""
            return found == signature and offline.check(output, files, screen) == manifest
    except (Failure, OSError):
        return False


def make(args: argparse.Namespace, screen: Screen) -> dict[str, Any]:
    """Make the bundle that the options ask for; return what --json prints."""
    choice = choose(args)
    rules = parse_rules(os.environ.get("COLAB_LOCAL_MIRROR", "").split() + args.mirror)
    output = Path(args.output or f"colab-local-{choice.env}-{choice.platform}.tar").absolute()
    if output.is_dir() or not output.parent.is_dir():
        raise Failure(
            f"can't write {output}: it is a folder, or lies in none",
            "python3 scripts/bundle.py --help",
            EXIT_USAGE,
        )
    folder = output.with_name(output.name + ".parts")
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    try:
        files = project_files(choice)
        sources = find_sources(choice, folder, rules, screen)
        manifest = make_manifest(choice, files, sources)
        signature = sign(manifest_text(manifest), args.sign) if args.sign else b""
        changed = not is_there(output, manifest, signature, screen)
        if changed:
            check_disk(output.parent, 2 * sum(source.size for source in sources))
            fetcher = Fetcher(folder, credentials(dict(os.environ), [text for _, text in pip_texts()]))
            fetcher.fetch_all(sources, args.jobs)
            fetched = {source.name: fetcher.path(source) for source in sources}
            digest = write(output, manifest, files, fetched, signature)
        else:
            digest = sha256_of(output)
    except BaseException:
        if not any(re.match(r"[0-9a-f]{64}", path.name) for path in folder.iterdir()):
            shutil.rmtree(folder)  # nothing in it that a next run could go on from
        raise
    shutil.rmtree(folder)
    return {
        "ok": True,
        "output": str(output),
        "bytes": output.stat().st_size,
        "sha256": digest,
        "environment": choice.env,
        "platform": choice.platform,
        "engine": choice.engine,
        "python": choice.python,
        "files": len(manifest["sha256"]),
        "changed": changed,
        "seconds": round(time.monotonic() - started, 1),
    }


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(prog="bundle.py", description=__doc__)
    here = conda_platform(os.uname().sysname, os.uname().machine)
    parser.add_argument("--env", default=DEFAULT_ENVIRONMENT, help="environment (default: %(default)s)")
    parser.add_argument("--platform", default=here, help="of the machine that it is for (default: %(default)s)")
    engines = ["miniforge", "anaconda", "pixi", "conda", "host"]
    parser.add_argument(
        "--engine",
        choices=engines,
        default="miniforge",
        help="who makes the environment there; conda: one that is there already; host: its Python, no conda layer",
    )
    parser.add_argument("--python", metavar="3.X", help="minor version of that machine's Python, for --engine host")
    parser.add_argument("--output", metavar="FILE", help="default: colab-local-ENV-PLATFORM.tar here")
    parser.add_argument("--mirror", action="append", default=[], metavar="FROM=TO", help="as bootstrap.py's")
    parser.add_argument("--jobs", type=int, default=JOBS, help="downloads at a time (default: %(default)s)")
    parser.add_argument("--lockfiles", default=str(REPOSITORY / "lockfiles"), metavar="DIR", help="as bootstrap.py's")
    parser.add_argument("--sign", metavar="KEY", default="", help="sign it with this ssh key")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    return parser


def bundle(args: argparse.Namespace, screen: Screen) -> int:
    """Make the bundle and say how to use it; return the exit code."""
    if MISSING:
        raise Failure(
            f"scripts/bundle.py needs {MISSING}, which this Python does not have ({sys.executable})",
            f"{default_home()}/current/cpu/bin/python scripts/bundle.py",
        )
    result = make(args, screen)
    if args.json:
        screen.show_document(result)
        return EXIT_OK
    made = "Wrote" if result["changed"] else "Nothing to do: there is"
    print(f"{made} {result['output']} ({megabytes(result['bytes'])}, {result['files']} files)")
    print(f"sha256 {result['sha256']}")
    print("On the other machine, in the folder that it was copied to:")
    name = Path(result["output"]).name
    option = "" if args.env == DEFAULT_ENVIRONMENT else f" --env {args.env}"
    print(f"tar -xf {name} && python3 colab-local/bootstrap.py{option} --engine {args.engine} --offline colab-local")
    if args.engine == "host":
        print(f"It needs Python {result['python']} there.")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, make the bundle, and return the exit code."""
    return run_program(make_parser(), bundle, argv, interrupted="run the same command again: it goes on from here")


if __name__ == "__main__":
    sys.exit(main())
