"""What bootstrap.py decides and says, without a machine: refusals, URLs, locks, texts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from colab_local.base.downloads import (
    parse_rules,
    rewrite,
)
from colab_local.base.errors import Failure
from colab_local.base.files import check_disk
from colab_local.base.programs import child_environment, telling_line
from colab_local.base.progress import Progress
from colab_local.base.text import mask
from colab_local.install.engines import Job
from colab_local.install.engines import host as host_engine
from colab_local.install.engines.host import install_command
from colab_local.install.lockfiles import (
    parse_explicit,
)
from tests.conftest import SCREEN


def test_a_disk_that_is_too_small_is_told_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1_500_000_000))
    with pytest.raises(Failure, match=r"found 1\.5 GB, need 2\.4 GB"):
        check_disk(tmp_path / "home" / "of" / "mine", 2_400_000_000)


def test_what_others_say_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    SCREEN.report("one\x1b]52;c;aGk=\x07\r\x9b31m\ttwo\nmaße")
    assert capsys.readouterr().err == "one?]52;c;aGk=???31m\ttwo\nmaße\n"


def test_urls_are_rewritten_by_the_longest_rule() -> None:
    rules = parse_rules(
        ["https://conda.anaconda.org/=http://mirror/all/", "https://conda.anaconda.org/conda-forge/=file:///cf/"]
    )
    assert rewrite("https://conda.anaconda.org/conda-forge/noarch/a.conda", rules) == "file:///cf/noarch/a.conda"
    assert rewrite("https://conda.anaconda.org/x/a.conda", rules) == "http://mirror/all/x/a.conda"
    assert rewrite("https://github.com/x", rules) == "https://github.com/x"


def test_a_lockfile_without_a_hash_is_refused() -> None:
    with pytest.raises(Failure, match="has no sha256"):
        parse_explicit("@EXPLICIT\nhttps://conda.anaconda.org/conda-forge/noarch/a-1-0.conda\n")


def test_secrets_are_masked_wherever_text_is_shown() -> None:
    assert mask("get https://me:secret@host/x?token=abc&y=1") == "get https://***@host/x?token=***&y=1"
    assert mask("from https://me:s@cret@host/ to http://x/") == "from https://***@host/ to http://x/"


@pytest.mark.parametrize(
    ("out", "err", "line"),
    [
        (
            "",
            "Traceback\n  File\nModuleNotFoundError: No module named 'x'\n",
            "ModuleNotFoundError: No module named 'x'",
        ),
        ("", "Using Python\nerror: Failed to fetch\n  Caused by: refused\n", "error: Failed to fetch: refused"),
        ("working\ngave up\n", "", "gave up"),
    ],
)
def test_of_a_failed_programs_output_the_telling_line_is_shown(out: str, err: str, line: str) -> None:
    assert telling_line(out, err, 1) == f"{line} (exit status 1)"


def test_children_see_no_other_python_or_conda(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {"LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "CONDARC", "CONDA_PREFIX", "VIRTUAL_ENV"}
    kept = {"PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_CACHE_DIR", "https_proxy", "SSL_CERT_FILE"}
    for name in hostile | kept | {"PIP_TARGET", "PIP_USER", "UV_PYTHON", "JUPYTER_CONFIG_DIR"}:
        monkeypatch.setenv(name, "x")
    found = child_environment(EXTRA="1")
    assert kept <= set(found) and found["EXTRA"] == "1"
    assert not {*hostile, "PIP_TARGET", "PIP_USER", "UV_PYTHON", "JUPYTER_CONFIG_DIR"} & set(found)


def test_progress_shows_nothing_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(SCREEN, "Downloading x", 10)
    bar.advance(10)
    bar.close()
    assert capsys.readouterr().err == "Downloading x (0 MB)\n"


def test_a_python_without_pip_is_told_which_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    job = Job(Path("/"), "cpu", "linux-64", {}, Path("/"), (), None, SCREEN)
    with pytest.raises(Failure) as caught:
        host_engine.Host(job, "false", "3.12").check()
    assert caught.value.hint == "sudo apt-get install python3.12 python3.12-venv"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("apt-get", "sudo apt-get install python3.12 python3.12-venv"),
        ("dnf", "sudo dnf install python3.12 python3.12-pip"),
        ("zypper", "sudo zypper install python312 python312-pip"),
        ("brew", "brew install python@3.12"),
        (None, "sudo apt-get install python3.12 python3.12-venv"),
    ],
)
def test_how_a_python_is_installed_here(program: str | None, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name == program else None)
    assert install_command("3.12") == command
