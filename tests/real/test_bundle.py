"""Bundles: made from a loopback mirror and the real index, for this and other platforms, installed offline."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.errors import EXIT_FAILED, EXIT_INTEGRITY, EXIT_INTERRUPTED, EXIT_NETWORK, EXIT_USAGE, Failure
from colab_local.base.terminal import Screen
from colab_local.install import offline
from colab_local.install.home import current_receipt
from colab_local.install.lockfiles import conda_platform
from colab_local.manage import verify
from tests.conftest import REPO, SCREEN, Installed, supported_python
from tests.support.homes import LIGHT, Home, damage, hinted, run_script, write_lockfiles
from tests.support.mirror import (
    Cut,
    Mirror,
    Slow,
    Status,
    Tamper,
    World,
    find_interpreter,
    own_environment,
)

pytestmark = pytest.mark.skipif(
    find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a conda package of"
)


def opened_bundle(*arguments: Any) -> offline.Offline:
    """Open a bundle and close it again; what was unpacked for it is gone then."""
    with offline.open_bundle(*arguments) as opened:
        return opened


# ---------------------------------------------------------------------------------------------------------
# A package index that wants a password, with small wheels


def wheel(name: str, tag: str) -> bytes:
    """Return a wheel of version 1.0."""
    stream = io.BytesIO()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{name}.py", f"TAG = {tag!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return stream.getvalue()


WHEELS = {
    f"{name}-1.0-{tag}.whl": wheel(name, tag)
    for name, tags in {
        "pure": ["py3-none-any"],
        "native": [
            *(f"cp3{m}-cp3{m}-manylinux_2_17_{cpu}" for m in (11, 12, 13) for cpu in ("x86_64", "aarch64")),
            "cp312-cp312-macosx_11_0_arm64",
        ],
        "linuxonly": [
            *(f"cp3{m}-cp3{m}-manylinux_2_17_{cpu}" for m in (11, 12, 13) for cpu in ("x86_64", "aarch64"))
        ],
    }.items()
    for tag in tags
}


@dataclass
class Index:
    """A simple index (PEP 503) on loopback. url: with its credentials; seen: paths asked for, with the status."""

    url: str
    seen: list[tuple[str, int]]


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    seen: list[tuple[str, int]] = []
    login = "Basic " + base64.b64encode(b"someone:s3cret").decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, kind = b"", "text/html"
            if match := re.match(r"/simple/([\w-]+)/$", self.path):
                names = [name for name in WHEELS if name.startswith(match.group(1) + "-")]
                hashes = {name: hashlib.sha256(WHEELS[name]).hexdigest() for name in names}
                body = "".join(f'<a href="/files/{n}#sha256={hashes[n]}">{n}</a>\n' for n in names).encode()
            elif self.path.startswith("/files/"):
                body, kind = WHEELS.get(self.path.split("/")[-1], b""), "application/octet-stream"
            status = 401 if self.headers.get("Authorization") != login else 200 if body else 404
            seen.append((self.path, status))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) if status == 200 else 0))
            if status == 401:
                self.send_header("WWW-Authenticate", "Basic realm=x")
            self.end_headers()
            if status == 200:
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Index(f"http://someone:s3cret@127.0.0.1:{server.server_address[1]}/simple", seen)
    server.shutdown()
    server.server_close()


def small_lock(world: World, folder: Path) -> Path:
    """Write a lock of the mirror's conda packages and the index's small wheels, for three platforms."""
    text = ""
    for name, marker in (("pure", ""), ("native", ""), ("linuxonly", " ; sys_platform == 'linux'")):
        hashes = [hashlib.sha256(WHEELS[file]).hexdigest() for file in WHEELS if file.startswith(name + "-")]
        text += f"{name}==1.0{marker} " + " ".join(f"--hash=sha256:{sha256}" for sha256 in hashes) + "\n"
    world.write_lockfiles(folder, text)
    path = folder / "index.json"
    index = json.loads(path.read_text())
    platforms = index["environments"]["cpu"]["platforms"]
    here = platforms[world.platform]
    for platform in ("linux-64", "linux-aarch64", "osx-arm64"):
        platforms[platform] = dict(here, requires={"glibc": "2.28"} if "linux" in platform else {"macos": "12.0"})
    # host.txt's uv is none of the small index's packages
    uv = "pure==1.0 --hash=sha256:" + hashlib.sha256(WHEELS["pure-1.0-py3-none-any.whl"]).hexdigest() + "\n"
    (folder / index["uv"]["file"]).write_text(uv)
    index["uv"]["sha256"] = hashlib.sha256(uv.encode()).hexdigest()
    path.write_text(json.dumps(index))
    return folder


@dataclass
class Maker:
    """Runs scripts/bundle.py with a small lock, the mirror and the index."""

    folder: Path
    mirror: Mirror
    index: Index
    lockfiles: Path

    def argv(self, output: Path, *options: str) -> list[str]:
        """Return the command."""
        words = ["--output", output, "--lockfiles", self.lockfiles, *self.mirror.options, *options]
        return [sys.executable, str(REPO / "scripts" / "bundle.py"), *map(str, words)]

    def environ(self) -> dict[str, str]:
        """Return its environment: the index is told in pip's configuration file, as a company may have it."""
        config = self.folder / "user" / ".config" / "pip" / "pip.conf"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(f"[global]\nindex-url = {self.index.url}\n")
        kept = own_environment(self.folder / "user")
        for name in [name for name in kept if name.startswith(("PIP_", "UV_"))]:
            del kept[name]
        return kept | {"UV_CACHE_DIR": str(self.folder / "uv-cache")}

    def make(self, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.argv(output, *options), env=self.environ(), capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture
def maker(tmp_path: Path, world: World, mirror: Mirror, index: Index) -> Maker:
    return Maker(tmp_path, mirror, index, small_lock(world, tmp_path / "lockfiles"))


def manifest(path: Path) -> dict[str, Any]:
    """Return a bundle's manifest as any tar reader finds it."""
    argv = ["tar", "-xOf", str(path), "colab-local/bundle.json"]
    return dict(json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout))


def test_one_file_with_everything(maker: Maker, world: World, tmp_path: Path) -> None:
    """From an index with a password: all that the lock names, the same bytes twice; a third run does nothing."""
    output = tmp_path / "bundle.tar"
    done = maker.make(output, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["changed"] and result["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert "s3cret" not in done.stdout + done.stderr
    names = set(manifest(output)["sha256"])
    assert {
        "bootstrap.py",
        "colab_local/install/offline.py",
        "lockfiles/index.json",
        "lockfiles/cpu/pypi.txt",
    } <= names
    tag = "cp" + manifest(output)["python"].replace(".", "")  # the mirror's Python is what this machine has
    native = f"wheels/native-1.0-{tag}-{tag}-manylinux_2_17_{os.uname().machine}.whl"
    assert {"wheels/pure-1.0-py3-none-any.whl", native} <= names
    assert sum(name.startswith("wheels/") for name in names) == 3, "one of each package: not every platform's"
    urls = [world.url(world.installer("miniforge")), *(world.url(path) for path in world.packages)]
    assert {offline.bundle_path(url) for url in urls} == {name for name in names if name.startswith("files/")}
    assert not list(tmp_path.glob("*.part*")), "nothing is left beside it"
    listed = subprocess.run(["tar", "-tf", output], capture_output=True, text=True, check=True).stdout.split()
    assert {name.removeprefix("colab-local/") for name in listed} == {*names, "bundle.json"}

    other = tmp_path / "other.tar"
    assert maker.make(other).returncode == 0
    assert other.read_bytes() == output.read_bytes()
    maker.mirror.reset()
    again = maker.make(output)
    assert "Nothing to do" in again.stdout and not maker.mirror.gets()
    output.write_bytes(output.read_bytes()[:-20000])
    assert "Wrote" in maker.make(output).stdout and output.read_bytes() == other.read_bytes()


def test_an_installed_environment_has_what_it_needs(maker: Maker, installed: Installed, tmp_path: Path) -> None:
    """As README says: bundle.py runs with the Python of an environment that bootstrap.py made."""
    argv = [str(installed.prefix / "bin" / "python"), *maker.argv(tmp_path / "bundle.tar")[1:]]
    environ = maker.environ() | {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "Wrote" in done.stdout, done.stderr


def test_for_another_platform(maker: Maker, tmp_path: Path) -> None:
    output = tmp_path / "mac.tar"
    done = maker.make(output, "--platform", "osx-arm64", "--engine", "host", "--python", "3.12")
    assert done.returncode == 0, done.stderr
    wheels = {name for name in manifest(output)["sha256"] if name.startswith("wheels/")}
    assert wheels == {"wheels/pure-1.0-py3-none-any.whl", "wheels/native-1.0-cp312-cp312-macosx_11_0_arm64.whl"}
    arm = tmp_path / "arm.tar"
    done = maker.make(arm, "--platform", "linux-aarch64", "--engine", "conda")
    assert done.returncode == 0, done.stderr
    wheels = {name.split("-")[-1] for name in manifest(arm)["sha256"] if name.startswith("wheels/")}
    assert wheels == {"any.whl", "manylinux_2_17_aarch64.whl"}
    here = conda_platform(os.uname().sysname, os.uname().machine)
    home = Home(tmp_path / "home", tmp_path / "user")
    refused = home.run("--offline", output, check=False)
    assert refused.returncode == EXIT_USAGE
    assert f"found cpu osx-arm64, need cpu {here}" in refused.stderr and not home.path.exists()


def test_the_real_lock_for_a_mac_from_the_real_index(tmp_path: Path) -> None:
    """The light part of the real lock, from wherever this machine's uv or pip gets packages."""
    lockfiles = write_lockfiles(tmp_path / "lockfiles")
    output = tmp_path / "mac.tar"
    done = run_script(
        "bundle.py", "--platform", "osx-arm64", "--engine", "host", "--python", "3.12",
        "--lockfiles", lockfiles, "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wheels = [name for name in manifest(output)["sha256"] if name.startswith("wheels/")]
    assert any("cp312-macosx" in name or "cp312-cp312-macosx" in name for name in wheels)
    assert not any("linux" in name or "cp313-cp313" in name for name in wheels)
    assert any("appnope" in name for name in wheels), "what only a Mac needs"
    with offline.members(output) as files:
        assert offline.check(output, files, SCREEN)["platform"] == "osx-arm64"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_goes_on(maker: Maker, world: World, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or a kill in a download: the next run asks for the rest alone. The same bytes, and nothing is left."""
    whole, output = tmp_path / "whole.tar", tmp_path / "bundle.tar"
    assert maker.make(whole).returncode == 0
    maker.mirror.reset()
    big = max(world.packages, key=lambda path: path.stat().st_size)
    maker.mirror.fault(big.name, Slow(rate=2_000_000))
    running = subprocess.Popen(maker.argv(output), env=maker.environ(), stderr=subprocess.PIPE, text=True)
    part = tmp_path / "bundle.tar.parts" / f"{hashlib.sha256(big.read_bytes()).hexdigest()}.part"
    deadline = time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size > 500_000):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert running.returncode == EXIT_INTERRUPTED, said
        assert "error: interrupted" in said and "Traceback" not in said
    assert not output.exists()
    (tmp_path / "bundle.tar.part").write_bytes(b"half a tar, of a run that was killed while it wrote")
    kept = part.stat().st_size
    maker.mirror.reset()
    done = maker.make(output)
    assert done.returncode == 0, done.stderr
    (request,) = maker.mirror.gets(big.name)
    assert request.first == kept > 500_000
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("bundle.tar.*"))


def test_cut_connections_and_busy_servers_are_tried_again(maker: Maker, world: World, tmp_path: Path) -> None:
    maker.mirror.fault("Miniforge3", Cut(after=1_000_000))
    maker.mirror.fault("/python-", Status(503))
    done = maker.make(tmp_path / "bundle.tar")
    assert done.returncode == 0, done.stderr
    assert "Trying again" in done.stderr
    first, second = maker.mirror.gets("Miniforge3")
    assert second.first >= 500_000 > first.first == 0


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (Tamper(), EXIT_INTEGRITY, "is not the file that the lock names"),
        (Status(404), EXIT_NETWORK, "HTTP 404"),
    ],
)
def test_wrong_bytes_and_missing_files_make_no_bundle(
    maker: Maker, tmp_path: Path, fault: Tamper | Status, code: int, said: str
) -> None:
    output = tmp_path / "bundle.tar"
    maker.mirror.fault("/uv-", fault)
    done = maker.make(output)
    assert done.returncode == code
    assert said in done.stderr and "hint:" in done.stderr and not output.exists()
    assert "Wrote" in maker.make(output).stdout


def test_an_old_python_is_told_which_one_makes_bundles(maker: Maker, tmp_path: Path) -> None:
    """As when it is pasted with the machine's own python3: two lines, no traceback."""
    old = next((path for path in (shutil.which(f"python3.{minor}") for minor in (8, 9, 10)) if path), None)
    if old is None:
        pytest.skip("no Python 3.8 to 3.10 is here")
    argv = [old, *maker.argv(tmp_path / "bundle.tar")[1:]]
    done = subprocess.run(argv, env=maker.environ(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_FAILED
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: a bundle is made with Python 3.11 or newer (found 3.")
    python, *words = shlex.split(hint.partition(": ")[2])
    assert words == argv[1:] and not list(tmp_path.glob("bundle.tar*"))
    subprocess.run([python, "-c", "import tomllib"], check=True)


def test_a_login_in_netrc_is_taken(maker: Maker, tmp_path: Path) -> None:
    """A company's index with a login, which the user keeps where pip and uv look for it."""
    maker.index = Index(maker.index.url.replace("someone:s3cret@", ""), maker.index.seen)
    netrc = tmp_path / "user" / ".netrc"
    netrc.parent.mkdir(exist_ok=True)
    netrc.write_text("machine 127.0.0.1 login someone password s3cret\n")
    netrc.chmod(0o600)
    done = maker.make(tmp_path / "bundle.tar")
    assert done.returncode == 0, done.stderr


def test_wrong_options(maker: Maker, tmp_path: Path) -> None:
    for options, said in (
        (["--env", "tpu"], "no environment tpu"),
        (["--platform", "win-64"], "no platform win-64"),
        (["--python", "3.9"], "no Python 3.9"),
    ):
        done = maker.make(tmp_path / "bundle.tar", *options)
        assert done.returncode == EXIT_USAGE and said in done.stderr, done.stderr
    (maker.lockfiles / "cpu" / "pypi.txt").write_text("changed")
    done = maker.make(tmp_path / "bundle.tar")
    assert done.returncode == EXIT_INTEGRITY and f"hint: copy {maker.lockfiles} again" in done.stderr
    assert not list(tmp_path.glob("bundle.tar*"))


# ---------------------------------------------------------------------------------------------------------
# Damaged bundles


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, world: World, index: Index) -> Path:
    """A small whole bundle for this machine."""
    folder = tmp_path_factory.mktemp("small")
    with Mirror(world) as mirror:
        maker = Maker(folder, mirror, index, small_lock(world, folder / "lockfiles"))
        done = maker.make(folder / "small.tar")
    assert done.returncode == 0, done.stderr
    return folder / "small.tar"


Members = list[tuple[tarfile.TarInfo, bytes]]


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """Write a bundle anew with its members changed: change takes and returns [(header, content)]."""
    with tarfile.open(source) as archive:
        members: Members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    with tarfile.open(target, "w") as archive:
        for info, content in change(members):
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return target


def edit(members: Members, part: str, content: bytes | None, manifest: bool) -> Members:
    """Change or drop the first member whose name contains `part`; manifest: make it agree."""
    found = next(number for number, (info, _) in enumerate(members) if part in info.name)
    info, _ = members.pop(found)
    listing = json.loads(members[0][1])
    name = info.name.removeprefix(offline.ROOT)
    del listing["sha256"][name]
    if content is not None:
        members.append((info, content))
        listing["sha256"][name] = hashlib.sha256(content).hexdigest()
    if manifest:
        members[0] = (members[0][0], json.dumps(listing).encode())
    return members


def extra(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    """Return a change that adds a member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return lambda members: [*members, (info, b"" if link else b"x")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: edit(m, "wheels/native", b"other", False), "is damaged: wheels/native"),
        (lambda m: edit(m, "wheels/native", None, False), "is incomplete: it lacks wheels/native"),
        (lambda m: edit(m, "wheels/native", b"other", True), "lacks a wheel of native 1.0"),
        (lambda m: edit(m, "Miniforge3", b"rm -rf ~", True), "is not what its lock says: files/github.com"),
        (lambda m: edit(m, "/uv-", None, True), "is incomplete: it lacks files/conda.anaconda.org"),
        (lambda m: edit(m, "lockfiles/cpu/pypi.txt", b"", True), "is not what its lock says: lockfiles/cpu/pypi.txt"),
        (lambda m: edit(m, "http_over_ws.py", b"", True), "is not what its lock says: environments/jupyter"),
        (lambda m: edit(m, "lockfiles/index.json", b"{", True), "damaged lock"),
        (lambda m: m[1:], "has no bundle.json"),
        (lambda m: [(m[0][0], b"[]"), *m[1:]], "damaged bundle.json"),
        (extra("colab-local/wheels/evil-1.0-py3-none-any.whl"), "its manifest does not name: wheels/evil"),
        (extra("colab-local/../../evil"), "holds what no bundle holds"),
        (extra("/etc/evil"), "holds what no bundle holds"),
        (extra("colab-local/wheels", tarfile.SYMTYPE, "/etc"), "holds what no bundle holds"),
        (extra("colab-local/bundle.json"), "holds what no bundle holds"),
    ],
)
def test_a_damaged_bundle_is_refused_before_anything_is_written(
    small: Path, tmp_path: Path, change: Any, said: str
) -> None:
    bad = rewritten(small, tmp_path / "bad.tar", change)
    home = tmp_path / "home"
    platform = conda_platform(os.uname().sysname, os.uname().machine)
    with pytest.raises(Failure) as caught:
        opened_bundle(bad, home, "cpu", platform, SCREEN)
    assert said in caught.value.what and caught.value.hint
    assert caught.value.code == EXIT_INTEGRITY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


@pytest.mark.parametrize(
    "fields",
    [
        {"platform": []},
        {"platform": {"x": 1}},
        {"environment": None},
        {"engine": 7},
        {"python": [3, 11]},
        {"schema": "1"},
        {"sha256": []},
        {"sha256": {"wheels/x": 1}},
        {"sha256": {"../x": "0" * 64}},
        {"sha256": {"wheels/x": "0" * 64 + "\n"}},
    ],
)
def test_an_odd_manifest_is_named(small: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    def change(members: Members) -> Members:
        return [(members[0][0], json.dumps({**json.loads(members[0][1]), **fields}).encode()), *members[1:]]

    bad = rewritten(small, tmp_path / "bad.tar", change)
    platform = conda_platform(os.uname().sysname, os.uname().machine)
    with pytest.raises(Failure, match="damaged bundle") as caught:
        opened_bundle(bad, tmp_path / "home", "cpu", platform, Screen())
    assert caught.value.code == EXIT_INTEGRITY


def test_what_never_ends_is_refused_at_once(small: Path, tmp_path: Path) -> None:
    """A pipe in place of the tar, a pipe in its folder, a manifest of 6 GB without a byte on the disk."""
    platform = conda_platform(os.uname().sysname, os.uname().machine)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "-xf", small, "-C", folder], check=True)
    unpacked = folder / "colab-local"
    os.mkfifo(tmp_path / "pipe")
    sparse = tmp_path / "sparse.tar"
    with sparse.open("wb") as file:
        info = tarfile.TarInfo(offline.ROOT + offline.MANIFEST)
        info.size = 6 << 30
        file.write(info.tobuf())
        file.truncate((6 << 30) + 20480)
    manifest = unpacked / "bundle.json"

    def refused(path: Path, said: str) -> None:
        with pytest.raises(Failure, match=said):
            opened_bundle(path, tmp_path / "home", "cpu", platform, Screen())

    refused(tmp_path / "pipe", "no ordinary file")
    refused(sparse, "damaged")
    os.mkfifo(unpacked / "wheels/pipe")
    refused(unpacked, "holds what no bundle holds: wheels/pipe")
    (unpacked / "wheels/pipe").unlink()
    os.truncate(manifest, 6 << 30)
    refused(unpacked, "damaged")


def test_a_signature_can_be_demanded(maker: Maker, tmp_path: Path) -> None:
    """Signed by --sign and checked by --bundle-signers, both with ssh-keygen; by hand, too."""
    key, signers, output = tmp_path / "key", tmp_path / "signers", tmp_path / "bundle.tar"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers.write_text(f"admin@example.org {key.with_suffix('.pub').read_text()}")
    platform = conda_platform(os.uname().sysname, os.uname().machine)

    def opened(path: Path) -> None:
        opened_bundle(path, tmp_path / "home", "cpu", platform, Screen(), "", str(signers))

    assert maker.make(output).returncode == 0
    with pytest.raises(Failure, match="is not signed"):
        opened(output)
    done = maker.make(output, "--sign", str(key))
    assert done.returncode == 0 and "Wrote" in done.stdout, done.stderr
    opened(output)
    assert "Nothing to do" in maker.make(output, "--sign", str(key)).stdout
    by_hand = (
        "tar -xOf bundle.tar colab-local/bundle.json.sig >sig && tar -xOf bundle.tar colab-local/bundle.json | "
        "ssh-keygen -Y verify -f signers -I admin@example.org -n colab-local-bundle -s sig"
    )
    checked = subprocess.run(["sh", "-c", by_hand], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr

    def change(members: Members) -> Members:
        return [(members[0][0], members[0][1] + b" "), *members[1:]]

    with pytest.raises(Failure, match="signature of nobody"):
        opened(rewritten(output, tmp_path / "bad.tar", change))
    signers.write_text("")
    with pytest.raises(Failure, match="signature of nobody"):
        opened(output)


def test_a_bundle_that_was_not_copied_in_full(small: Path, tmp_path: Path) -> None:
    """Cut anywhere, or with one bit turned, the program refuses it in two lines and leaves nothing."""
    content = small.read_bytes()
    home = Home(tmp_path / "home", tmp_path / "user")
    bad = tmp_path / "bad.tar"
    turned = bytearray(content)
    turned[len(content) // 2] ^= 4
    for data in (
        b"",
        content[:100],
        content[: len(content) // 2],
        content[: -10240 - 600],
        bytes(turned),
        b"x" * 4096,
    ):
        bad.write_bytes(data)
        done = home.run("--offline", bad, "--engine", "host", check=False)
        assert done.returncode == EXIT_INTEGRITY, (len(data), done.stderr)
        assert done.stderr.strip().splitlines()[-2].startswith("error: the bundle") and "hint:" in done.stderr
        assert not home.path.exists()
    done = home.run("--offline", tmp_path / "nowhere.tar", check=False)
    assert done.returncode == EXIT_USAGE and "there is no bundle" in done.stderr


def test_opening_leaves_nothing(small: Path, tmp_path: Path) -> None:
    """A dry run unpacks to look, and cleans up; what a killed run has left goes with the next one."""
    home = Home(tmp_path / "home", tmp_path / "user")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "-xf", small, "-C", folder], check=True)
    argv = ("--offline", small, "--engine", "miniforge", "--dry-run")
    done = home.run(*argv, program=folder / "colab-local")
    assert "Would do" in done.stdout and not home.path.exists()
    child = subprocess.Popen(["true"])
    child.wait()
    left = home.path / "cache" / "offline" / str(child.pid)
    left.mkdir(parents=True)
    home.run(*argv, program=folder / "colab-local")
    assert not left.exists()
    platform = conda_platform(os.uname().sysname, os.uname().machine)
    opened = opened_bundle(folder / "colab-local", home.path, "cpu", platform, SCREEN)
    assert opened.wheels == folder / "colab-local" / "wheels", "used where it lies"
    assert [opened.choose(engine) for engine in ("auto", "miniforge", "conda")] == ["miniforge", "miniforge", "conda"]
    shutil.rmtree(home.path)
    other = home.run(*argv[:2], "--engine", "host", check=False, program=folder / "colab-local")
    assert other.returncode == EXIT_USAGE and "found miniforge, need host" in other.stderr
    assert not home.path.exists()
    (opened.wheels / "pure-1.0-py3-none-any.whl").write_bytes(b"")
    with pytest.raises(Failure, match="is damaged: wheels/pure"):
        opened_bundle(folder / "colab-local", home.path, "cpu", platform, SCREEN)


# ---------------------------------------------------------------------------------------------------------
# Installing without a network


def no_network() -> tuple[str, ...]:
    """Return the command that runs another one where there is no route, not even loopback's."""
    ways = [("unshare", "--net"), ("unshare", "--map-root-user", "--net")]
    for way in ways[0 if os.getuid() == 0 else 1 :]:
        if shutil.which("unshare") and subprocess.run([*way, "true"], check=False).returncode == 0:
            return way
    pytest.skip("needs root, or user namespaces, to make a network namespace")


def test_there_really_is_no_network(mirror: Mirror) -> None:
    """The check of the checks below: a server that answers here can't be reached in there."""
    code = f"import socket; socket.create_connection(('127.0.0.1', {mirror.port}), 5)"
    outside = subprocess.run([supported_python(), "-c", code], check=False, capture_output=True)
    inside = subprocess.run([*no_network(), supported_python(), "-c", code], check=False, capture_output=True)
    assert outside.returncode == 0 and inside.returncode != 0


def test_install_without_a_network_with_this_machines_python(tmp_path: Path, small: Path) -> None:
    """From the unpacked bundle's own bootstrap.py, with empty caches; then as locked, and the same as online."""
    lockfiles = write_lockfiles(tmp_path / "lockfiles")
    bundle = tmp_path / "bundle.tar"
    version = subprocess.run(
        [supported_python(), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    options = ["--engine", "host", "--python", version, "--lockfiles", str(lockfiles), "--output", str(bundle)]
    done = run_script("bundle.py", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "usb stick"
    folder.mkdir()
    subprocess.run(["tar", "-xf", bundle, "-C", folder], check=True)
    home = Home(tmp_path / "home", tmp_path / "user")
    unpacked = folder / "colab-local"
    done = home.run(
        "--engine",
        "host",
        "--offline",
        unpacked,
        program=unpacked,
        inside=no_network(),
        UV_CACHE_DIR=str(tmp_path / "cache"),
        PIP_CACHE_DIR=str(tmp_path / "pip"),
        PIP_CONFIG_FILE=os.devnull,
    )
    assert "Next steps" in done.stdout
    online = Home(tmp_path / "online", tmp_path / "user")
    online.run("--engine", "host", "--lockfiles", lockfiles)
    found = [verify.check(current_receipt(one.path, "cpu") or {}, SCREEN) for one in (home, online)]
    assert [one.differences for one in found] == [[], []]
    assert found[0].fingerprint == found[1].fingerprint
    repair_from(home, tmp_path, unpacked, program=unpacked)
    other = home.run("--repair", "--offline", small, check=False)
    assert other.returncode == EXIT_USAGE and "the bundle is of another engine" in other.stderr


def repair_from(home: Home, tmp_path: Path, bundle: Path, program: Path = REPO) -> None:
    """Damage a home that was made from a bundle; what --verify says to type repairs it, without a network."""
    before = json.loads(home.run("--verify", "--json").stdout)["fingerprint"]
    damage(home.prefix)
    for path in home.prefix.glob("lib/libprefix.bin"):  # of the conda layer, where there is one
        path.write_bytes(b"altered")
    refused = home.run("--verify", check=False, program=program)
    words = hinted(refused)[1:]
    assert words[:3] == ["--repair", "--env", "cpu"] and "--offline" in words
    assert Path(bundle.parent, words[words.index("--offline") + 1]) == bundle
    done = home.run(
        *words,
        program=program,
        inside=no_network(),
        cwd=bundle.parent,
        UV_CACHE_DIR=str(tmp_path / "another cache"),
        PIP_CONFIG_FILE=os.devnull,
    )
    assert "Repaired: all as locked." in done.stdout
    assert json.loads(home.run("--verify", "--json").stdout)["fingerprint"] == before
    assert not list((home.path / "cache").glob("offline/*"))


@pytest.mark.parametrize("engine", ["miniforge", "pixi"])
def test_install_without_a_network_with_a_conda_layer(
    tmp_path: Path, mirror: Mirror, world: World, engine: str
) -> None:
    """Engine, lock, conda packages and wheels come from the tar; nothing of it is left unpacked."""
    lockfiles = world.write_lockfiles(tmp_path / "lockfiles", LIGHT)
    text = (lockfiles / "index.json").read_text()
    (lockfiles / "index.json").write_text(text.replace('"2.17"', '"2.28"'))  # what the real Python layer wants
    bundle = tmp_path / "bundle.tar"
    made = run_script("bundle.py", "--engine", engine, "--lockfiles", lockfiles, "--output", bundle, *mirror.options)
    assert made.returncode == 0, made.stderr
    home = Home(tmp_path / "home", tmp_path / "user")
    mirror.reset()
    refused = home.run("--offline", bundle, check=False)
    lock = hashlib.sha256((lockfiles / "index.json").read_bytes()).hexdigest()
    assert refused.returncode == EXIT_INTEGRITY and not home.path.exists()
    assert "another lock than this checkout's" in refused.stderr and f"--bundle-lock {lock}" in refused.stderr
    done = home.run(
        "--offline",
        bundle,
        "--bundle-lock",
        lock,
        inside=no_network(),
        UV_CACHE_DIR=str(tmp_path / "cache"),
        PIP_CONFIG_FILE=os.devnull,
    )
    assert "Next steps" in done.stdout and not mirror.requests
    found = verify.check(current_receipt(home.path, "cpu") or {}, SCREEN)
    assert not found.differences
    assert not (home.path / "cache" / "offline").exists() or not list((home.path / "cache" / "offline").iterdir())
    repair_from(home, tmp_path, bundle)
