"""What a killed run has left in the folder for temporary files goes with the next run: a password may be in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colab_local.install import sources
from tests.conftest import REPO

KILLED = "import sys, time; sys.path.insert(0, sys.argv[1]); from colab_local.install import sources;"
KILLED += "print(sources.temporary_file('secret'), flush=True); time.sleep(600)"


def test_settings_of_a_killed_run_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a run that lives stay, also where its process number means nothing here, as in a container."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fifo = tmp_path / "colab-local-uv-pipe.toml"
    os.mkfifo(fifo)
    (tmp_path / "colab-local-uv-link.toml").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_text("mine")
    argv = [sys.executable, "-c", KILLED, str(REPO)]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        theirs = Path(run.stdout.readline().strip())
        made = sources.temporary_file("new")
        assert made.read_text() == "new" and made.stat().st_mode & 0o777 == 0o600
        assert theirs.read_text() == "secret"
        run.kill()
    second = sources.temporary_file("newer")
    assert not theirs.exists() and (tmp_path / "mine").exists()
    assert made.read_text() == "new" and second.read_text() == "newer"
    sources.clean_up()
    assert not made.exists() and not second.exists()
