"""A small world for the tests of scripts/lock.py: a conda channel of made-up records, and two environments.

The Python layer is real, and small: a package with a wheel for everything, one with wheels per Python and
platform, one that has no wheel for linux-aarch64 at the version that is to be followed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import zstandard

REPO = Path(__file__).resolve().parent.parent.parent
PLATFORMS = ("linux-64", "linux-aarch64", "osx-arm64")
UV = "0.12.1"  # one that the package index has: host.txt locks it

CPU = """\
name: cpu
channels: [conda-forge]
dependencies:
  - python 3.13.*
  - pip
  - uv >=0.9
  - pip:
      - markupsafe
      - psutil
      - six
"""
GPU = CPU.replace("cpu", "gpu").replace("      - psutil\n", "")
FILES = {
    "cpu.yml": CPU,
    "gpu.yml": GPU,
    "platforms.yml": """\
cpu:
  accelerator: cpu
  platforms: {linux-64: {cpu: [avx]}, linux-aarch64: {}, osx-arm64: {}}
gpu:
  accelerator: gpu
  platforms: {linux-64: {cpu: [avx], driver: "525.60.13", compute_capability: "6.0"}}
""",
    "colab-pins.txt": "# of a day\npython==3.13.15\nmarkupsafe==3.0.2\npsutil==5.9.5\nsix==1.16.0\n",
    "colab-exceptions.yml": """\
psutil: {platforms: [linux-aarch64], reason: no wheel for it}
six: {reason: a test}
""",
    "jupyter/prefix/etc/settings.json": "{}\n",
    "jupyter/site-packages/extension/__init__.py": "",
}


def record(name: str, version: str, subdir: str, depends: list[str], **more: Any) -> tuple[str, dict[str, Any]]:
    """Return (file name, repodata record) of a made-up conda package."""
    build = more.pop("build", "0")
    file = f"{name}-{version}-{build}.conda"
    return file, {
        "name": name,
        "version": version,
        "build": build,
        "build_number": 0,
        "subdir": subdir,
        "depends": depends,
        "constrains": [],
        "sha256": hashlib.sha256(f"{subdir}/{file}".encode()).hexdigest(),
        "md5": hashlib.md5(f"{subdir}/{file}".encode()).hexdigest(),  # noqa: S324 - conda's second checksum
        "size": 1000,
        "license": "MIT",
        "timestamp": 1780000000000,
        **more,
    }


def records(subdir: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what the made-up channel has in one subdir."""
    if subdir == "noarch":
        return [
            record("pip", "26.0", subdir, ["python >=3.13.0a0"], noarch="python"),
            record("tzdata", "2026a", subdir, []),
        ]
    system = "__osx >=11.0" if subdir.startswith("osx") else "__glibc >=2.17,<3.0.a0"
    newer = "__osx >=26.0" if subdir.startswith("osx") else "__glibc >=2.39"
    return [
        record("python", "3.13.1", subdir, [system, "openssl >=3.5,<4.0a0", "tzdata"]),
        # newer, but for a newer machine than is declared, whatever the machine that solves is
        record("python", "3.13.2", subdir, [newer, "openssl >=3.5,<4.0a0", "tzdata"]),
        record("python", "3.14.0", subdir, [system, "openssl >=3.5,<4.0a0", "tzdata"]),
        record("openssl", "3.5.0", subdir, [system]),
        record("openssl", "3.6.0", subdir, [system]),
        record("uv", UV, subdir, [system]),
        record("needless", "1.0", subdir, []),
    ]


@dataclass(frozen=True)
class Lab:
    """A folder with environments/, channel/ and lockfiles/."""

    root: Path

    @property
    def environments(self) -> Path:
        return self.root / "environments"

    @property
    def channel(self) -> Path:
        return self.root / "channel" / "conda-forge"

    @property
    def lockfiles(self) -> Path:
        return self.root / "lockfiles"

    def fill(self) -> Lab:
        """Write the environments and the channel."""
        for path, text in FILES.items():
            (self.environments / path).parent.mkdir(parents=True, exist_ok=True)
            (self.environments / path).write_text(text)
        (self.environments / "virtual-packages.yml").write_bytes(
            (REPO / "environments/virtual-packages.yml").read_bytes()
        )
        (self.environments / "installers.json").write_bytes((REPO / "environments/installers.json").read_bytes())
        for subdir in (*PLATFORMS, "noarch"):
            self.write_subdir(subdir, dict(records(subdir)))
        return self

    def write_subdir(self, subdir: str, packages: dict[str, dict[str, Any]]) -> None:
        """Write the channel's records of one subdir."""
        (self.channel / subdir).mkdir(parents=True, exist_ok=True)
        content = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": packages, "repodata_version": 1}
        (self.channel / subdir / "repodata.json").write_text(json.dumps(content))

    def read_subdir(self, subdir: str) -> dict[str, dict[str, Any]]:
        """Return the channel's records of one subdir."""
        content: dict[str, dict[str, dict[str, Any]]] = json.loads(
            (self.channel / subdir / "repodata.json").read_text()
        )
        return content["packages.conda"]

    def tree(self) -> dict[str, bytes]:
        """Return every lockfile's bytes."""
        return {str(p.relative_to(self.lockfiles)): p.read_bytes() for p in self.lockfiles.rglob("*") if p.is_file()}

    def lock(self, *arguments: str, channel: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run scripts/lock.py on this lab as a user would."""
        argv = [sys.executable, str(REPO / "scripts/lock.py"), *arguments]
        argv += ["--environments", str(self.environments), "--lockfiles", str(self.lockfiles)]
        if "--index-only" not in arguments:
            argv += ["--channel", channel or str(self.channel.parent)]
        env = {**os.environ, "RATTLER_CACHE_DIR": str(self.root / "rattler"), **environment}
        return subprocess.run(argv, env=env, cwd=self.root, capture_output=True, text=True, timeout=300, check=False)


def conda_package(path: Path, files: dict[str, bytes | Path]) -> Path:
    """Write a conda package of either form, and return its path; a Path among the files is a link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:bz2" if path.name.endswith(".bz2") else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, Path):
                entry.type, entry.linkname, content = tarfile.SYMTYPE, str(content), b""
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bz2":
        path.write_bytes(stream.getvalue())
        return path
    with zipfile.ZipFile(path, "w") as package:  # conda/conda-package-streaming: what a .conda holds
        package.writestr("metadata.json", '{"conda_pkg_format_version": 2}')
        for part, content in (("pkg", stream.getvalue()), ("info", b"\0" * 10240)):
            package.writestr(f"{part}-{path.stem}.tar.zst", zstandard.compress(content))
    return path


class QuietHandler(SimpleHTTPRequestHandler):
    """A file server that says nothing; it knows no ranges, as http.server never did."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler] = QuietHandler) -> Iterator[str]:
    """Serve a folder on loopback; yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
