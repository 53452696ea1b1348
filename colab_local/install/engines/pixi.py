"""pixi as the engine: a workspace of its own for every environment, from lockfiles/pixi.lock as it stands."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from colab_local.base.downloads import Download
from colab_local.base.errors import Failure
from colab_local.base.files import write_atomically
from colab_local.base.programs import run
from colab_local.install.engines.conda import package_downloads, package_file
from colab_local.install.engines.engine import Job
from colab_local.install.engines.private import demand_intact, private_environment, private_place
from colab_local.install.engines.tool import ToolEngine
from colab_local.install.lockfiles import Lock, parse_explicit, read_lock_file

SETTINGS = """\
detached-environments = false
tls-no-verify = false
"""
# Its released programs trust a list of their own, "webpki", unless SSL_CERT_FILE is set, which counts more (same
# page, tls-root-certs; the variable: `pixi install --help`); private_environment() sets it.
TRUST = {"PIXI_TLS_ROOT_CERTS": "system"}


class Pixi(ToolEngine):
    """pixi, which is shown files that were checked before: it fetches nothing."""

    name = "pixi"
    folders = ("bin", "cache")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.where = job.home / "bin" / "pixi"
        self.mark = job.home / "bin" / ".pixi.json"
        self.begun = job.home / "run" / "pixi.begun"

    def describe(self) -> str:
        """Return who makes the environment, for the plan."""
        return "pixi"

    def needs(self, lock: Lock) -> list[Download]:
        """Return pixi, where it is needed, and the conda packages: pixi is shown files that we have checked."""
        return super().needs(lock) + package_downloads(self.job, lock)

    def unpack(self, installer: Path) -> None:
        """Take the one program out of pixi's release archive."""
        with tarfile.open(str(installer)) as members:
            stream = members.extractfile("pixi")
            assert stream is not None, "it is the archive that was pinned"
            self.where.parent.mkdir(parents=True, exist_ok=True)
            self.where.write_bytes(stream.read())
        self.where.chmod(0o755)

    def create(self, lock: Lock, root: Path) -> None:
        """Make the prefix as pixi's environment of a workspace of its own, from files that are checked here."""
        texts = {
            name: read_lock_file(self.job.lockfiles, name, digest)
            for name, digest in sorted(self.job.index["pixi"].items())
        }
        for url, digest in parse_explicit(lock.conda):
            file = package_file(self.job.home, url)
            demand_intact(file, digest)
            texts["pixi.lock"] = texts["pixi.lock"].replace(f"- conda: {url}\n", f"- conda: {file.as_uri()}\n")
        # Of a package in a file, rattler does not read the platform from the path as it does from a URL.
        subdir = r"(?m)^- conda: file:.*/([^/]+)/[^/]+$"
        texts["pixi.lock"] = re.sub(subdir, r"\g<0>\n  subdir: \1", texts["pixi.lock"])
        root.mkdir(parents=True)
        for name, text in texts.items():
            write_atomically(root / name, text)
        # /etc/pixi/config.toml may put environments elsewhere, or trust everybody; the workspace's own settings are
        # the stronger ones (https://pixi.prefix.dev/latest/reference/pixi_configuration/)
        write_atomically(root / ".pixi" / "config.toml", SETTINGS)
        argv = [self.where, "install", "--frozen", "--manifest-path", root / "pixi.toml", "-e", lock.env]
        with private_place(self.job.home) as place:
            own = {"PIXI_HOME": str(place / "pixi"), "PIXI_CACHE_DIR": str(place / "pkgs"), **TRUST}
            try:
                run(argv, self.job.screen, private_environment(place, **own))
            except Failure as problem:
                raise self.failed(problem) from None
