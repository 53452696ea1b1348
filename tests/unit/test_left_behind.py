"""What a killed run has left in the folder for temporary files goes with the next run: a password may be in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from colab_local.install import sources


def test_settings_of_a_killed_run_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = tmp_path / f"colab-local-uv-{ended.pid}-abc.toml"
    kept = [tmp_path / f"colab-local-uv-{pid}-abc.toml" for pid in (os.getpid(), os.getppid(), "mine")]
    for path in (stale, *kept):
        path.write_text("secret")
    made = sources.temporary_file("new")
    assert made.read_text() == "new" and made.stat().st_mode & 0o777 == 0o600
    assert not stale.exists() and all(path.exists() for path in kept)
    sources.clean_up()
    assert not made.exists()
