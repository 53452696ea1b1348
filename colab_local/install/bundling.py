"""Make a bundle: everything one environment needs in one tar, the same bytes each time. offline.py opens it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import netrc
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Mapping, NamedTuple, Sequence
from urllib.parse import quote, unquote, urlsplit

from colab_local.base.downloads import PARALLEL_DOWNLOADS, Download, Rules, download_all, rewrite
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_NETWORK, EXIT_USAGE, Failure
from colab_local.base.files import check_disk, sha256_of
from colab_local.base.hints import typed_now
from colab_local.base.programs import without_ssh
from colab_local.base.progress import Progress
from colab_local.base.terminal import Screen
from colab_local.install import offline, requirements
from colab_local.install.engines import demand_conda_layer
from colab_local.install.home import default_home
from colab_local.install.lockfiles import REPOSITORY, pythons_of, read_index, read_lock_file
from colab_local.install.program import program_names
from colab_local.install.sources import pip_texts, run_uv, uv_texts

HELP = "python3 scripts/bundle.py --help"
INDEX_VARIABLES = (
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_INDEX",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)
Logins = Mapping[str, "tuple[str, str]"]  # (user, password) by host


class Source(NamedTuple):
    """A file to fetch. name: its place in the bundle; url: http, https or file; size: in bytes, 0 if not known."""

    name: str
    url: str
    sha256: str
    size: int


class Choice(NamedTuple):
    """What the bundle is for. python: a minor version; lockfiles: their folder; lock: its index.json."""

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


class Made(NamedTuple):
    """A bundle that is there. sha256: of the tar; changed: it was written now."""

    manifest: dict[str, Any]
    sha256: str
    changed: bool


def choose(lockfiles: Path, env: str, platform: str, engine: str, python: str = "") -> Choice:
    """Return what a bundle is for; python: "" for the lock's own, or with the host engine for this machine's.

    Raises:
        Failure: the lock has no such environment, platform or Python.
    """
    index = read_index(lockfiles)
    series = pythons_of(index, env)
    known = {
        "environment": (env, index["environments"]),
        "platform": (platform, index["environments"].get(env, {}).get("platforms", {})),
        "engine": (
            engine,
            ["conda", "host", *(name for name, one in index["installers"].items() if platform in one["files"])],
        ),
        "Python": (python or series[-1], series),
    }
    for what, (wanted, there) in known.items():
        if wanted not in there:
            names = ", ".join(sorted(there))
            raise Failure(f"the lock has no {what} {wanted} for this (there are: {names})", HELP, EXIT_USAGE)
    demand_conda_layer(engine, index, env, "python3 scripts/bundle.py !--python --engine miniforge")
    if not python and engine == "host":
        own = f"{sys.version_info[0]}.{sys.version_info[1]}"
        python = own if own in series else series[-1]
    python = python or ".".join(index["environments"][env]["python"].split(".")[:2])
    return Choice(env, platform, engine, python, lockfiles, index)


def make(
    choice: Choice, output: Path, screen: Screen, rules: Rules = (), parallel: int = PARALLEL_DOWNLOADS, key: str = ""
) -> Made:
    """Make a bundle, unless it is there already.

    output: the tar; rules: mirror rules; parallel: downloads at a time; key: the ssh key that signs it, "" for none.
    What an interrupted run has fetched lies in OUTPUT.parts; the next run goes on from there.
    """
    if output.is_dir() or not output.parent.is_dir():
        raise Failure(f"can't write {output}: it is a folder, or lies in none", HELP, EXIT_USAGE)
    folder = output.with_name(output.name + ".parts")
    folder.mkdir(exist_ok=True)
    try:
        files = project_files(choice)
        sources = find_sources(choice, folder, rules, screen)
        manifest = make_manifest(choice, files, sources)
        signature = sign(manifest_text(manifest), key) if key else b""
        changed = not is_made(output, manifest, signature, screen)
        if changed:
            check_disk(output.parent, 2 * sum(source.size for source in sources))
            fetched = fetch(sources, folder, screen, parallel)
            write(output, manifest, {**files, **({offline.SIGNATURE: signature} if key else {})}, fetched, screen)
    except BaseException:
        if not any(re.match(r"[0-9a-f]{64}", path.name) for path in folder.iterdir()):
            shutil.rmtree(folder)  # nothing in it that a next run could go on from
        raise
    shutil.rmtree(folder)
    return Made(manifest, sha256_of(output), changed)


# ---------------------------------------------------------------------------------------------------------
# What belongs in it


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


def find_sources(choice: Choice, folder: Path, rules: Rules, screen: Screen) -> list[Source]:
    """Return all files that have to be fetched, the heaviest first; folder: for uv's files; rules: mirror rules."""
    locked = offline.locked_files(choice.lock, choice.read, choice.env, choice.platform, choice.engine)
    sources = [Source(offline.bundle_path(url), rewrite(url, rules), sha256, 0) for url, sha256 in locked]
    sources += find_wheels(choice, folder, screen)
    return sorted(dict.fromkeys(sources), key=lambda source: -source.size)


def find_wheels(choice: Choice, folder: Path, screen: Screen) -> list[Source]:
    """Ask the index that the user's own configuration names where the locked wheels are.

    uv reads the configuration, asks for all packages at once and writes what it finds as a pylock.toml (PEP 751);
    the lock's hashes then say which of those files are meant. folder: for the files it reads and writes.

    Raises:
        Failure: the index can't be reached, or has no locked wheel of a package.
    """
    parse_toml = toml_parser()
    wanted = offline.locked_wheels(
        choice.lock, choice.read, choice.env, choice.platform, choice.engine, choice.python
    )
    requires = choice.lock["environments"][choice.env]["platforms"][choice.platform].get("requires", {})
    asked, answer = folder / "wheels.in", folder / "pylock.toml"
    hashes = {entry: " ".join(f"--hash=sha256:{sha256}" for sha256 in sorted(entry.sha256)) for entry in wanted}
    asked.write_text("".join(f"{entry.name}=={entry.version} {hashes[entry]}\n" for entry in wanted))
    uv = find_uv("python3 bootstrap.py --cpu")
    argv = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--format", "pylock.toml"]
    platform = requirements.uv_platform(choice.platform, requires)
    argv += ["--python-platform", platform, "--python-version", choice.python]
    target = {"MACOSX_DEPLOYMENT_TARGET": requires["macos"]} if "macos" in requires else {}  # of the wheels chosen
    try:
        run_uv([*argv, "-o", answer, asked], screen, more=target, timeout=600)
    except Failure as problem:
        raise Failure(
            f"can't ask the package index: {problem.what}",
            "check the network, and uv's or pip's configuration, and run the same command again",
            EXIT_NETWORK,
        ) from problem
    packages = parse_toml(answer.read_text(encoding="utf-8"))["packages"]
    found = {requirements.normalise(package["name"]): package.get("wheels", []) for package in packages}
    sources = []
    for entry in wanted:
        fitting = [wheel for wheel in found.get(entry.name, []) if wheel["hashes"].get("sha256") in entry.sha256]
        if not fitting:
            raise Failure(
                f"the package index has no locked wheel of {entry.name} {entry.version} for {choice.platform}, "
                f"Python {choice.python}",
                "run it where uv and pip use the public package index, or have yours bring that file",
                EXIT_NETWORK,
            )
        sources += [wheel_source(wheel, folder) for wheel in fitting]
    return sources


def toml_parser() -> Callable[[str], dict[str, Any]]:
    """Return Python's reader of TOML; raise Failure for a Python that has none."""
    try:
        import tomllib  # since Python 3.11
    except ImportError:
        raise Failure(
            f"a bundle is made with Python 3.11 or newer (found {sys.version.split()[0]})",
            newer_python(),
        ) from None
    return tomllib.loads


def newer_python() -> str:
    """Return the line that was typed with a Python that has tomllib: of an installation, or on PATH."""
    own = [str(python) for python in sorted(default_home().glob("current/*/bin/python"))]
    found = [*own, *filter(None, (shutil.which(f"python3.{minor}") for minor in (13, 12, 11)))]
    if not found:
        return "python3 bootstrap.py --cpu   # its environment has one: current/cpu/bin/python"
    return shlex.join([found[0], typed_now().program, *sys.argv[1:]])


def find_uv(cure: str = "") -> str:
    """Return the uv beside this Python, on PATH, or of an installed environment.

    cure: what to type where there is none; without it, what puts one beside this Python.
    """
    beside = Path(sys.executable).parent / "uv"
    installed = sorted(Path(default_home()).glob("tools/uv-*/bin/uv"))
    for program in [str(beside), shutil.which("uv") or "", *map(str, reversed(installed))]:
        if program and os.access(program, os.X_OK):
            return program
    raise Failure(
        "this needs uv (found none beside this Python, on PATH, or of an installation)",
        cure or f"{shlex.quote(sys.executable)} -m pip install uv",
    )


def wheel_source(wheel: dict[str, Any], folder: Path) -> Source:
    """Return where a wheel of a pylock.toml is. folder: of the pylock.toml, from which its paths count."""
    url = wheel.get("url") or (folder / wheel["path"]).resolve().as_uri()
    name = unquote(urlsplit(url).path.rsplit("/", 1)[1])
    return Source(f"wheels/{name}", url, wheel["hashes"]["sha256"], int(wheel.get("size") or 0))


# ---------------------------------------------------------------------------------------------------------
# Fetching


def fetch(sources: Sequence[Source], folder: Path, screen: Screen, parallel: int) -> dict[str, Path]:
    """Download what is not in the folder yet, where files are named by their hash; return {name: file}."""
    texts = [text for _, text in [*pip_texts(), *uv_texts()]]
    logins = {**netrc_logins(), **index_logins(os.environ, texts)}
    wanted = {
        source.sha256: Download(with_login(source.url, logins), folder / source.sha256, source.sha256, source.size)
        for source in sources
    }
    download_all(list(wanted.values()), screen, parallel=parallel)
    return {source.name: folder / source.sha256 for source in sources}


def index_logins(environ: Mapping[str, str], texts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the logins in the index URLs of uv's and pip's settings. environ: os.environ; texts: their files."""
    text = "\n".join([*texts, *(environ.get(name, "") for name in INDEX_VARIABLES)])
    found = {}
    for url in re.findall(r"https?://[^\s\"']+", text):
        parts = urlsplit(url)
        if parts.username:
            found[parts.netloc.rpartition("@")[2]] = (unquote(parts.username), unquote(parts.password or ""))
    return found


def netrc_logins() -> dict[str, tuple[str, str]]:
    """Return the logins of ~/.netrc, or of the file that NETRC names, which pip and uv read, too."""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
        return {host: (login, password or "") for host, (login, _, password) in hosts.items()}
    return {}


def with_login(url: str, logins: Logins) -> str:
    """Return a URL with the login that is known for its host, by its name alone or with its port."""
    parts = urlsplit(url)
    login = logins.get(parts.netloc) or logins.get(parts.hostname or "")
    if not login or "@" in parts.netloc:
        return url
    user, password = (quote(word, safe="") for word in login)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc}").geturl()


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


def manifest_text(manifest: dict[str, Any]) -> bytes:
    """Return the manifest as it is in the tar."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def sign(text: bytes, key: str) -> bytes:
    """Return ssh-keygen's signature of a manifest. key: a private key, or a public one whose other half an agent has.

    Raises:
        Failure: ssh-keygen can't sign; it has said why on the terminal, where it also asks for a passphrase.
    """
    argv = ["ssh-keygen", "-Y", "sign", "-f", str(Path(key).expanduser()), "-n", offline.NAMESPACE]
    try:
        done = subprocess.run(argv, input=text, stdout=subprocess.PIPE, check=False)
    except FileNotFoundError:
        raise without_ssh("ssh-keygen") from None
    if done.returncode:
        raise Failure(f"ssh-keygen can't sign with {key}", f"echo x | {shlex.join(argv)}")
    return done.stdout


def is_made(output: Path, manifest: dict[str, Any], signature: bytes, screen: Screen) -> bool:
    """Return whether the output is this very bundle already, undamaged, with this signature (b"" for none)."""
    if not output.is_file():
        return False
    try:
        with offline.members(output) as files:
            found = files[offline.SIGNATURE].open().read(1 << 16) if offline.SIGNATURE in files else b""
            return found == signature and offline.check(output, files, screen) == manifest
    except (Failure, OSError):
        return False


def write(
    output: Path, manifest: dict[str, Any], files: dict[str, bytes], fetched: dict[str, Path], screen: Screen
) -> None:
    """Write the tar beside its place, check every fetched file against the manifest on the way, move it there.

    files: {name: content}; fetched: {name: file}. The manifest is the first member, its signature the second.
    """
    temporary = output.with_name(output.name + ".part")
    first = [(name, files[name]) for name in (offline.SIGNATURE,) if name in files]
    rest = sorted((name, content) for name, content in files.items() if name != offline.SIGNATURE)
    progress = Progress(screen, f"Writing {output.name}", sum(path.stat().st_size for path in fetched.values()))
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
            for name, content in [(offline.MANIFEST, manifest_text(manifest)), *first, *rest]:
                archive.addfile(header(name, len(content)), io.BytesIO(content))
            for name, path in sorted(fetched.items()):
                with path.open("rb") as stream:
                    hashed = Hashed(stream, progress.advance)
                    archive.addfile(header(name, path.stat().st_size), hashed)
                if hashed.digest.hexdigest() != manifest["sha256"][name]:
                    path.unlink()
                    again = "run the same command again: it is downloaded again"
                    raise Failure(f"{name} changed on the disk while it was written", again, EXIT_INTEGRITY)
    finally:
        progress.close()
    temporary.replace(output)


def header(name: str, size: int) -> tarfile.TarInfo:
    """Return a tar header that depends on nothing but the file: no time, no owner."""
    info = tarfile.TarInfo(offline.ROOT + name)
    info.size, info.mode = size, 0o755 if name == "bootstrap.py" else 0o644
    return info


class Hashed(io.RawIOBase):
    """A file that is hashed while it is read. advance: is told how many bytes were read."""

    def __init__(self, stream: BinaryIO, advance: Callable[[int], None]) -> None:
        self.stream, self.advance, self.digest = stream, advance, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read, hash and count."""
        chunk = self.stream.read(size)
        self.digest.update(chunk)
        self.advance(len(chunk))
        return chunk
