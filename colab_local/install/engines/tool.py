"""Installing an engine of our own, conda or pixi, from a pinned file: whole, or not at all."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from colab_local.base import documents
from colab_local.base.downloads import Download
from colab_local.base.errors import EXIT_USAGE, Failure
from colab_local.base.files import remove_tree, write_atomically
from colab_local.install.engines.engine import Engine
from colab_local.install.lockfiles import Lock

MARK_SHAPE = {"engine": r"\w+", "sha256": r"[0-9a-f]{64}"}


class ToolEngine(Engine):
    """An engine whose program we install into the home.

    where: the program or its folder; mark: the file that says that it is whole there; begun: the file that says
    that its installation began.
    """

    where: Path
    mark: Path
    begun: Path

    def installer(self) -> Download:
        """Return the pinned installer for this platform."""
        entry = self.job.index["installers"][self.name]["files"].get(self.job.platform)
        if entry is None:
            what = f"--engine {self.name} has no pinned installer for {self.job.platform}"
            raise self.failed(Failure(what, "", EXIT_USAGE))
        target = self.job.home / "cache" / "sha256" / entry["sha256"] / entry["url"].rsplit("/", 1)[1]
        return Download(entry["url"], target, entry["sha256"], entry.get("size") or 0)

    def check(self) -> None:
        """Raise Failure where there is no installer, or something else has its place."""
        self.installer()
        if self.where.exists() and not self.mark.exists() and not self.begun.exists():
            raise Failure(
                f"{self.where} is there and was not made by this program: it is left alone",
                f"python3 bootstrap.py --prefix {shlex.quote(str(self.job.home / 'colab-local'))}",
                EXIT_USAGE,
            )

    def needs(self, lock: Lock) -> list[Download]:
        """Return the installer, where its program is not there yet."""
        return [self.installer()] if self.tool() else []

    def tool(self) -> Path | None:
        """Return where the program goes, None when the pinned one is there, whole."""
        try:
            there = documents.read(self.mark, MARK_SHAPE)["sha256"] == self.installer().sha256
        except (OSError, ValueError):
            there = False
        return None if there else self.where

    def install_tool(self, lock: Lock) -> None:
        """Install the program from the checked installer; nothing of it stays if that fails."""
        wanted = self.installer()
        mark = json.dumps({"engine": self.name, "url": wanted.url, "sha256": wanted.sha256}) + "\n"
        write_atomically(self.begun, mark)  # what is there half-made after a power cut is ours to remove
        remove_tree(self.mark)
        remove_tree(self.where)
        try:
            self.unpack(wanted.target)
        except BaseException:
            remove_tree(self.where)
            remove_tree(self.begun)
            raise
        write_atomically(self.mark, mark)
        remove_tree(self.begun)

    def unpack(self, installer: Path) -> None:
        """Put the program where it belongs."""
        raise NotImplementedError
