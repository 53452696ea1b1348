"""pixi as the engine: a workspace of its own for every environment, from lockfiles/pixi.lock as it stands."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from colab_local.base.downloads import rewrite_text, split_login
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_USAGE, Failure
from colab_local.base.files import write_atomically
from colab_local.base.programs import child_environment, run
from colab_local.install.engines.engine import Job
from colab_local.install.engines.tool import ToolEngine
from colab_local.install.lockfiles import Lock, read_locked


class Pixi(ToolEngine):
    """pixi fetches and checks its packages by itself, several at a time."""

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

    def check(self) -> None:
        """Raise Failure where a password would land in pixi's own files."""
        if any(split_login(target)[1] for _, target in self.job.rules):
            raise Failure(
                "pixi would keep the password of --mirror in files that others can read",
                "python3 bootstrap.py --engine miniforge",
                EXIT_USAGE,
            )
        super().check()

    def unpack(self, installer: Path) -> None:
        """Take the one program out of pixi's release archive."""
        with tarfile.open(str(installer)) as members:
            try:
                stream = members.extractfile("pixi")
            except KeyError:
                stream = None
            if stream is None:
                raise Failure(f"{installer} holds no pixi", code=EXIT_INTEGRITY)
            self.where.parent.mkdir(parents=True, exist_ok=True)
            self.where.write_bytes(stream.read())
        self.where.chmod(0o755)

    def create(self, lock: Lock, root: Path) -> None:
        """Make the prefix as pixi's environment of a workspace of its own."""
        root.mkdir(parents=True)
        for name, digest in sorted(self.job.index["pixi"].items()):
            text = rewrite_text(read_locked(self.job.lockfiles, name, digest), self.job.rules)
            # Of a package in a file, rattler does not read the platform from the path as it does from a URL.
            text = re.sub(r"(?m)^- conda: file:.*/([^/]+)/[^/]+$", r"\g<0>\n  subdir: \1", text)
            write_atomically(root / name, text)
        cache = self.job.home / "cache"
        env = child_environment(PIXI_HOME=str(cache / "pixi-home"), PIXI_CACHE_DIR=str(cache / "pixi"))
        argv = [self.where, "install", "--frozen", "--manifest-path", root / "pixi.toml", "-e", lock.env]
        run(argv, self.job.screen, env)
