"""Open a bundle that scripts/bundle.py made: everything one environment needs, in one file, no network.

    tar -xf colab-local-cpu-linux-64.tar && python3 colab-local/bootstrap.py --offline colab-local
    python3 bootstrap.py --offline colab-local-cpu-linux-64.tar

Either the tar or the folder unpacked from it is taken. Before anything is written, every file of the bundle is
hashed and compared with its manifest, and what is to be installed with the lock in it: nothing may be damaged,
missing or added. A bundle that is unpacked is used where it lies; the files of a tar are unpacked under
HOME/cache/offline and removed when that is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any, Callable, Iterator, NamedTuple

from colab_local.base import documents
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_USAGE, Failure
from colab_local.base.files import CHUNK, check_disk
from colab_local.base.programs import without_ssh
from colab_local.base.progress import Progress
from colab_local.base.terminal import Screen
from colab_local.install import requirements
from colab_local.install.home import check_home
from colab_local.install.lockfiles import INDEX_SHAPE, parse_explicit

SCHEMA = 1
ROOT = "colab-local/"  # the one folder in the tar
MANIFEST = "bundle.json"
SIGNATURE = "bundle.json.sig"  # of the manifest, by ssh-keygen -Y sign; a bundle may have none
NAMESPACE = "colab-local-bundle"  # of signatures: one that was made for another purpose does not count
MANIFEST_SHAPE = {
    "schema": int,
    "environment": "[a-z0-9][a-z0-9_-]*",
    "platform": "[a-z0-9]+-[a-z0-9_]+",
    "engine": "[a-z]+",
    "python": r"3\.\d+",
    "sha256": {"*": "[0-9a-f]{64}"},
}
HINT = "python3 scripts/bundle.py --help   # makes the bundle again; or copy it again"
INSTALLED = ("lockfiles/", "files/", "wheels/")  # what an installation reads besides the checkout


class Offline(NamedTuple):
    """An opened bundle.

    rules: mirror rules from the hosts of conda packages and installers to file URLs; wheels: folder for
    `uv pip install --no-index --find-links`; lockfiles: the lock that the bundle is made for; engine and python
    (minor version): what it was made for.
    """

    rules: list[tuple[str, str]]
    wheels: Path
    lockfiles: Path
    engine: str
    python: str

    def has(self, engine: str) -> bool:
        """Return whether what this engine needs is in it."""
        return engine == self.engine or (engine == "conda" and self.engine != "host")

    def choose(self, wanted: str) -> str:
        """Return the engine for what --engine says; raise Failure when the bundle lacks what that one needs."""
        if wanted != "auto" and not self.has(wanted):
            raise Failure(
                f"the bundle is for another engine (found {self.engine}, need {wanted})",
                f"python3 bootstrap.py --engine {self.engine}",
                EXIT_USAGE,
            )
        return self.engine if wanted == "auto" else wanted


class Member(NamedTuple):
    """A file of a bundle. size: in bytes; open: opens its content for reading."""

    size: int
    open: Callable[[], IO[bytes]]


def damaged(what: str) -> Failure:
    """Return the failure of a bundle that can't be trusted."""
    return Failure(f"the bundle {what}", HINT, EXIT_INTEGRITY)


# ---------------------------------------------------------------------------------------------------------
# What a bundle has to hold


def bundle_path(url: str) -> str:
    """Return where a bundle keeps the file of a URL: files/HOST/PATH."""
    return "files/" + url.partition("://")[2]


def lockfile_names(index: dict[str, Any], env: str, platform: str, engine: str) -> dict[str, str]:
    """Return {name under lockfiles: sha256} of what one environment needs, index.json itself excepted."""
    entry = index["environments"][env]
    parts = [entry["pypi"], entry["platforms"][platform]] + ([index["uv"]] if engine == "host" else [])
    names = {part["file"]: part["sha256"] for part in parts}
    return {**names, **index["pixi"]} if engine == "pixi" else names


def locked_files(
    index: dict[str, Any], read: Callable[[str], str], env: str, platform: str, engine: str
) -> list[tuple[str, str]]:
    """Return (URL, sha256) of the installer and the conda packages.

    read: returns the text of a lock file by its name under lockfiles.
    """
    if engine == "host":
        return []
    files = parse_explicit(read(index["environments"][env]["platforms"][platform]["file"]))
    if engine != "conda":
        installer = index["installers"][engine]["files"][platform]
        files.insert(0, (installer["url"], installer["sha256"]))
    return files


def locked_wheels(
    index: dict[str, Any], read: Callable[[str], str], env: str, platform: str, engine: str, python: str
) -> list[requirements.Requirement]:
    """Return the Python packages that an installation takes; arguments as in locked_files(), python: 3.13."""
    entries = requirements.parse(read(index["environments"][env]["pypi"]["file"]))
    if engine == "host":
        entries += requirements.parse(read(index["uv"]["file"]))
    return requirements.applicable(entries, platform, python)


def against_lock(manifest: dict[str, Any], index: dict[str, Any], read: Callable[[str], str]) -> str | None:
    """Return what a bundle's manifest and its own lock disagree about, or None."""
    env, platform, engine = manifest["environment"], manifest["platform"], manifest["engine"]
    have: dict[str, str] = dict(manifest["sha256"])
    need = {f"lockfiles/{name}": sha256 for name, sha256 in lockfile_names(index, env, platform, engine).items()}
    need.update({f"environments/jupyter/{name}": sha256 for name, sha256 in index["jupyter"].items()})
    need.update({bundle_path(url): sha256 for url, sha256 in locked_files(index, read, env, platform, engine)})
    for name, sha256 in sorted(need.items()):
        if name not in have:
            return f"is incomplete: it lacks {name}"
        if have[name] != sha256:
            return f"is not what its lock says: {name}"
    wheels = {sha256: name for name, sha256 in have.items() if name.startswith("wheels/")}
    locked = set(need.values())
    for entry in locked_wheels(index, read, env, platform, engine, manifest["python"]):
        fitting = entry.sha256 & set(wheels)
        if not fitting:
            return f"is incomplete: it lacks a wheel of {entry.name} {entry.version}"
        locked |= fitting
    files = [name for name in have if name.startswith(("files/", "wheels/"))]
    extra = sorted(name for name in files if have[name] not in locked)
    return f"holds what its lock does not name: {extra[0]}" if extra else None


# ---------------------------------------------------------------------------------------------------------
# Reading it


@contextlib.contextmanager
def members(path: Path) -> Iterator[dict[str, Member]]:
    """Open a bundle and give {name: Member}; names are those under its one folder.

    Raises:
        Failure: it can't be read, or holds what no bundle holds.
    """
    if path.is_dir():
        names = [
            file
            for file in sorted(path.rglob("*"))
            if "__pycache__" not in file.parts and (file.is_symlink() or not file.is_dir())
        ]
        for file in names:
            if not stat.S_ISREG(file.lstat().st_mode):  # a link leads out of it, a pipe waits for ever
                raise damaged(f"holds what no bundle holds: {file.relative_to(path)}")
        yield {
            file.relative_to(path).as_posix(): Member(file.stat().st_size, lambda file=file: file.open("rb"))  # type: ignore[misc]
            for file in names
        }
        return
    if not path.is_file():
        raise damaged(f"{path} is no ordinary file")
    try:
        with tarfile.open(str(path), "r:") as archive:
            found: dict[str, Member] = {}
            for info in archive:
                name = info.name[len(ROOT) :] if info.name.startswith(ROOT) else ""
                if info.isdir():
                    continue
                odd = not name or ".." in name.split("/") or name.startswith("/") or name in found
                if odd or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise damaged(f"holds what no bundle holds: {info.name}")
                found[name] = Member(info.size, lambda info=info: content(archive, info))  # type: ignore[misc]
            yield found
    except (tarfile.TarError, EOFError) as problem:
        raise damaged(f"{path} is damaged or was not copied in full ({problem})") from problem


def content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    """Open a regular file of a tar."""
    stream = archive.extractfile(info)
    assert stream is not None, "members() lets regular files pass only"
    return stream


def copy(member: Member, target: IO[bytes] | None, advance: Callable[[int], None]) -> str:
    """Read a member to its end, write it to `target` if there is one, and return its sha256."""
    digest = hashlib.sha256()
    with member.open() as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
            advance(len(chunk))
            if target:
                target.write(chunk)
    return digest.hexdigest()


def read_manifest(files: dict[str, Member], path: Path) -> dict[str, Any]:
    """Return a bundle's manifest; raise Failure if there is none that this version can read."""
    if MANIFEST not in files:
        raise damaged(f"{path} is none, or damaged: it has no {MANIFEST}")
    try:
        with files[MANIFEST].open() as stream:
            manifest = documents.parse(stream.read(documents.LARGEST + 1), MANIFEST, {"schema": int})
        if manifest["schema"] != SCHEMA:
            raise damaged(f"has schema {manifest['schema']} (need {SCHEMA})")
        wrong = documents.mismatch(manifest, MANIFEST_SHAPE, MANIFEST)
        odd = (
            [name for name in manifest["sha256"] if name.startswith("/") or ".." in name.split("/")]
            if not wrong
            else []
        )
        if wrong or odd:
            raise ValueError(f"{wrong} is missing or malformed" if wrong else odd[0])
    except ValueError as problem:
        raise damaged(f"{path} has a damaged {MANIFEST} ({problem})") from problem
    return dict(manifest)


def check(path: Path, files: dict[str, Member], screen: Screen) -> dict[str, Any]:
    """Compare every file of a bundle with its manifest and the manifest with the lock; return the manifest.

    Raises:
        Failure: anything is damaged, missing or added.
    """
    manifest = read_manifest(files, path)
    need: dict[str, str] = manifest["sha256"]
    missing = sorted(set(need) - set(files))
    if missing:
        raise damaged(f"{path} is incomplete: it lacks {missing[0]} ({len(missing)} of {len(need)} files)")
    extra = sorted(set(files) - set(need) - {MANIFEST, SIGNATURE})
    if extra:
        raise damaged(f"{path} holds what its manifest does not name: {extra[0]}")
    progress = Progress(screen, "Checking the bundle", sum(files[name].size for name in need))
    try:
        for name, sha256 in need.items():
            found = copy(files[name], None, progress.advance)
            if found != sha256:
                raise damaged(f"{path} is damaged: {name} (found sha256 {found[:12]}..., need {sha256[:12]}...)")
    finally:
        progress.close()

    def read(name: str) -> str:
        member = f"lockfiles/{name}"
        if member not in files:
            raise damaged(f"is incomplete: it lacks {member}")
        with files[member].open() as stream:
            return stream.read(documents.LARGEST).decode("utf-8")

    try:
        wrong = against_lock(manifest, documents.parse(read("index.json"), "index.json", INDEX_SHAPE), read)
    except (ValueError, KeyError, TypeError) as problem:
        raise damaged(f"{path} has a damaged lock ({problem})") from problem
    if wrong:
        raise damaged(wrong)
    return manifest


def demand_lock(manifest: dict[str, Any], lock: str, env: str) -> None:
    """Raise Failure unless a bundle is of a certain lock. lock: the sha256 of its lockfiles/index.json."""
    found = manifest["sha256"].get("lockfiles/index.json", "")
    if found != lock:
        raise Failure(
            f"the bundle is of another lock than this checkout's (found lockfiles/index.json {found[:12]}, need "
            f"{lock[:12]})",
            f"python3 scripts/bundle.py --env {env}   # or, to take its lock: --bundle-lock {found}",
            EXIT_INTEGRITY,
        )


def demand_signature(files: dict[str, Member], signers: Path) -> str:
    """Return who signed a bundle's manifest; raise Failure unless it is somebody in an allowed signers file.

    signers: as ssh-keygen(1) describes it under ALLOWED SIGNERS. The manifest names every file by its hash, so a
    signature of it is one of the whole bundle.
    """
    if not signers.is_file():
        raise Failure(f"there is no allowed signers file {signers}", "man ssh-keygen   # describes it", EXIT_USAGE)
    if SIGNATURE not in files:
        raise damaged("is not signed")
    with files[MANIFEST].open() as stream:
        manifest = stream.read(documents.LARGEST)
    with tempfile.TemporaryDirectory() as folder:
        signature = Path(folder) / SIGNATURE
        with files[SIGNATURE].open() as stream:
            signature.write_bytes(stream.read(1 << 16))
        common = ["-f", str(signers), "-s", str(signature)]
        for name in ssh_keygen("find-principals", *common).split("\n", 1)[0].split(","):
            if name and ssh_keygen("verify", "-n", NAMESPACE, "-I", name, *common, stdin=manifest):
                return name
    raise damaged(f"has a signature of nobody in {signers}, or of another manifest")


def ssh_keygen(what: str, *options: str, stdin: bytes = b"") -> str:
    """Run `ssh-keygen -Y` and return what it printed, "" if it refuses; raise Failure where there is none."""
    try:
        done = subprocess.run(["ssh-keygen", "-Y", what, *options], input=stdin, capture_output=True, timeout=60)
    except FileNotFoundError:
        raise without_ssh("ssh-keygen") from None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def check_fits(path: Path, env: str, platform: str, mode: str = "") -> None:
    """Raise Failure unless a bundle is there, says what is in it, and is for this environment and platform.

    Only its list is read: quick enough to be asked where nothing is to be installed, too. mode: " --repair" then.
    """
    path = path.absolute()
    if not path.exists():
        raise Failure(f"there is no bundle {path}", HINT, EXIT_USAGE)
    with members(path) as files:
        manifest = read_manifest(files, path)
    found, need = (manifest["environment"], manifest["platform"]), (env, platform)
    if found != need:
        makes = f"python3 scripts/bundle.py --env {env} --platform {platform}   # where there is a network"
        takes = f"python3 bootstrap.py{mode} --env {found[0]} --offline {shlex.quote(str(path))}"
        raise Failure(
            f"the bundle is for another environment or platform (found {' '.join(found)}, need {' '.join(need)})",
            takes if found[1] == platform else makes,
            EXIT_USAGE,
        )


@contextlib.contextmanager
def open_bundle(
    path: Path, home: Path, env: str, platform: str, screen: Screen, lock: str = "", signers: str = ""
) -> Iterator[Offline]:
    """Check a bundle and give it, ready for an installation; what is unpacked for that is gone afterwards.

    path: the tar, or the folder unpacked from it; home: where environments land; env, platform: what is wanted;
    lock: the sha256 of the lockfiles/index.json that it must have, "" for any; signers: an allowed signers file of
    ssh-keygen, one of whom must have signed it, "" for anybody.

    Raises:
        Failure: it can't be read, is for something else, damaged, incomplete, or does not fit on the
            disk. Nothing was written then.
    """
    check_fits(path, env, platform)
    path = path.absolute()
    with contextlib.ExitStack() as stack:
        with members(path) as files:
            manifest = read_manifest(files, path)
            if signers:
                signer = demand_signature(files, Path(signers).expanduser())
                screen.report(f"The bundle is signed by {signer}.")
            manifest = check(path, files, screen)
            if lock:
                demand_lock(manifest, lock, env)
            folder = path
            if not path.is_dir():
                folder = stack.enter_context(unpacked(files, manifest["sha256"], home, screen))
        hosts = sorted({name.split("/")[1] for name in manifest["sha256"] if name.startswith("files/")})
        rules = [(f"https://{host}/", f"{(folder / 'files' / host).as_uri()}/") for host in hosts]
        yield Offline(rules, folder / "wheels", folder / "lockfiles", manifest["engine"], manifest["python"])


@contextlib.contextmanager
def unpacked(files: dict[str, Member], need: dict[str, str], home: Path, screen: Screen) -> Iterator[Path]:
    """Unpack what an installation reads under HOME/cache/offline and give the folder.

    It is removed at the end, and the folders above it that were made for it and are empty again; what a killed run
    has left is removed here.
    """
    wanted = {name: sha256 for name, sha256 in need.items() if name.startswith(INSTALLED)}
    check_home(home)
    check_disk(home, sum(files[name].size for name in wanted))
    parents = [folder for folder in (home / "cache" / "offline", home / "cache", home) if not folder.exists()]
    folder = home / "cache" / "offline" / str(os.getpid())
    remove_stale(folder.parent)
    try:
        progress = Progress(screen, "Unpacking the bundle", sum(files[name].size for name in wanted))
        try:
            for name, sha256 in wanted.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as stream:
                    if copy(files[name], stream, progress.advance) != sha256:
                        raise damaged(f"changed while it was read: {name}")
        finally:
            progress.close()
        (folder / "wheels").mkdir(exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()


def remove_stale(parent: Path) -> None:
    """Remove what runs that are no more have unpacked."""
    for folder in sorted(parent.glob("[0-9]*")):
        try:
            os.kill(int(folder.name), 0)
        except ProcessLookupError:
            shutil.rmtree(str(folder), ignore_errors=True)
        except (PermissionError, ValueError, OverflowError):  # another user's run, or no folder of ours
            pass
