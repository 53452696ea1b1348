"""What a killed run has left in the folder for temporary files goes with the next run: a password may be in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colab_local.base import certificates, temporary
from tests.conftest import REPO

# What a run makes there, as a text that prints where: uv's settings, the certificates, a folder for a program.
MAKES = {
    "settings": "made = temporary.temporary_file(b'secret', '.toml')",
    "certificates": "made = certificates.bundle()",
    "folder": "holds = temporary.temporary_folder(); made = holds.__enter__(); (made / 'inner').mkdir()",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, with what others might put there under our names."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "authority").write_text("company's")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "authority"))
    os.mkfifo(tmp_path / f"{temporary.PREFIX}pipe.toml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / f"{temporary.PREFIX}link.toml").symlink_to(tmp_path / "mine" / "file")
    (tmp_path / f"{temporary.PREFIX}link").symlink_to(tmp_path / "mine")
    return tmp_path


@pytest.mark.parametrize("kind", MAKES)
def test_what_a_killed_run_made_is_removed(kind: str, place: Path) -> None:
    """That of a run that lives stays, also where its process number means nothing here, as in a container."""
    text = "import sys, time; sys.path.insert(0, sys.argv[1]); from colab_local.base import certificates, temporary;"
    text += f"{MAKES[kind]}; print(made, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", text, str(REPO)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        theirs = Path(run.stdout.readline().strip())
        assert theirs.parent == place and theirs.stat().st_mode & 0o077 == 0
        made = temporary.temporary_file(b"new", ".toml")
        assert made.read_text() == "new" and made.stat().st_mode & 0o777 == 0o600
        assert theirs.exists()
        run.kill()
    second = temporary.temporary_file(b"newer", ".pem")
    assert not theirs.exists() and (place / "mine" / "file").read_text() == "mine"
    assert made.read_text() == "new" and second.read_text() == "newer"
    temporary.clean_up()
    assert not made.exists() and not second.exists()


def test_at_its_end_a_run_leaves_nothing(place: Path) -> None:
    before = sorted(place.iterdir())
    certificates.bundle.cache_clear()
    made = certificates.bundle()
    assert made is not None and made.read_text().endswith("company's\n")
    with temporary.temporary_folder() as folder:
        (folder / "file").write_text("text")
    temporary.clean_up()
    certificates.bundle.cache_clear()
    assert sorted(place.iterdir()) == before
