"""The generator of cloud-init user-data: what it writes is valid by cloud-init's own schema, and what it refuses.

That the script in it installs is tested in test_fleet.py, on a host.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPO
from tests.support.web import serving

PROGRAM = REPO / "scripts" / "fleet" / "cloud_init.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GIT = ("--git", "https://git.example.org/colab-local.git", "--commit", COMMIT)
BUNDLE = ("--bundle-url", "https://mirror.example.org/b.tar?a=1&b='x'", "--bundle-sha256", "0" * 64)

needs_cloud_init = pytest.mark.skipif(not shutil.which("cloud-init"), reason="needs Debian's package cloud-init")


def generate(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    return subprocess.run([sys.executable, PROGRAM, *options], capture_output=True, text=True, timeout=60)


def user_data(*options: str) -> dict[str, Any]:
    """Return what the program writes, read as YAML."""
    done = generate(*options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#cloud-config\n")
    return dict(yaml.safe_load(done.stdout))


def installer(*options: str) -> str:
    """Return the script in the user-data."""
    return str(user_data(*options)["write_files"][0]["content"])


def schema(file: Path) -> subprocess.CompletedProcess[str]:
    """Run cloud-init's own check."""
    return subprocess.run(["cloud-init", "schema", "--config-file", file], capture_output=True, text=True, timeout=60)


@needs_cloud_init
@pytest.mark.parametrize(
    "options",
    [
        GIT,
        BUNDLE,
        (*GIT, "--env", "gpu", "--user", "ada", "--service", "--package", "nvidia-driver-575-server"),
        (*BUNDLE, "--service", "--set", "https_proxy=http://proxy.example.org:3128", "--", "--engine", "pixi"),
    ],
)
def test_user_data_is_valid_for_cloud_init(options: tuple[str, ...], tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ ada@laptop\n")
    file = tmp_path / "user-data.yml"
    done = generate("--output", str(file), "--ssh-key", str(key), *options)
    assert done.returncode == 0, done.stderr
    checked = subprocess.run(
        ["cloud-init", "schema", "--config-file", file], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Valid" in checked.stdout
    script = tmp_path / "install"
    script.write_text(yaml.safe_load(file.read_text())["write_files"][0]["content"])
    subprocess.run(["sh", "-n", script], check=True)


@needs_cloud_init
def test_schema_check_can_fail(tmp_path: Path) -> None:
    """The check above is one: a key of a wrong type does not pass it."""
    document = user_data(*GIT)
    document["runcmd"] = "not a list"
    file = tmp_path / "user-data.yml"
    file.write_text("#cloud-config\n" + yaml.safe_dump(document))
    checked = subprocess.run(
        ["cloud-init", "schema", "--config-file", file], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode != 0


def test_user_data_says_what_was_asked_for() -> None:
    document = user_data(*GIT, "--env", "gpu", "--user", "ada", "--service", "--", "--port", "9999")
    assert document["users"][1]["name"] == "ada"
    assert "git" in document["packages"]
    assert document["runcmd"][0] == ["loginctl", "enable-linger", "ada"]
    assert document["runcmd"][-1][:3] == ["runuser", "--login", "ada"]
    last = document["write_files"][0]["content"].splitlines()[-1]
    assert last == "exec python3 colab-local/bootstrap.py --env gpu --port 9999 --service"
    assert user_data(*GIT)["runcmd"] == [
        ["runuser", "--login", "colab", "--command", "/usr/local/lib/colab-local/install"]
    ]


def test_installer_brings_exactly_the_commit(tmp_path: Path) -> None:
    """Run with a repository served over HTTP, in an empty HOME: bootstrap.py of that commit runs, and again."""
    work, bare = tmp_path / "work", tmp_path / "served" / "colab-local.git"
    work.mkdir()

    def git(*argv: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *identity, *argv], cwd=work, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    for number in (1, 2):
        (work / "bootstrap.py").write_text(f"import sys; print('version {number}', *sys.argv[1:])\n")
        git("add", "bootstrap.py")
        git("commit", "--quiet", "--message", str(number))
    commit = git("rev-parse", "HEAD~1")
    git("clone", "--quiet", "--bare", ".", str(bare))
    subprocess.run(["git", "update-server-info"], cwd=bare, check=True)
    home = tmp_path / "home"
    home.mkdir()
    with serving(bare.parent) as url:
        script = installer("--git", url + "colab-local.git", "--commit", commit)
        for _ in range(2):
            done = subprocess.run(
                ["sh", "-c", script], env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout == "version 1 --env cpu\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "either from --git or from --bundle-url"),
        ((*GIT, *BUNDLE), "either from --git or from --bundle-url"),
        (GIT[:2], "--commit takes 40 hex digits"),
        ((*GIT[:3], "main"), "--commit takes 40 hex digits"),
        (BUNDLE[:2], "--bundle-sha256 takes 64 hex digits"),
        (("--git", "https://me:secret@git.example.org/x.git", *GIT[2:]), "a password in a URL"),
        (("--bundle-url", "ftp://mirror.example.org/b.tar", *BUNDLE[2:]), "not a URL of https, http"),
        ((*GIT, "--user", "root"), "ordinary user"),
        ((*GIT, "--user", "a b; reboot"), "ordinary user"),
        ((*GIT, "--set", "https_proxy"), "--set takes NAME=VALUE"),
        ((*GIT, "--set", "https_proxy=http://me:secret@proxy.example.org"), "a password in https_proxy"),
        ((*GIT, "--set", "https_proxy=me:secret@proxy.example.org:3128"), "a password in https_proxy"),
        (("--git", "https://secret@git.example.org/x.git", *GIT[2:]), "a password in a URL"),
        ((*GIT, "--", "--service"), "before the --"),
        ((*GIT, "--ssh-key", "/nonexistent.pub"), "can't read /nonexistent.pub"),
        ((*GIT, "--set", "X=" + "x" * 20_000), "too large"),
    ],
)
def test_refusals_are_one_line_and_a_hint(options: tuple[str, ...], message: str) -> None:
    done = generate(*options)
    assert done.returncode == 2
    assert not done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert lines[1].startswith("hint: ")
    assert "secret" not in done.stderr


def test_private_key_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "id_ed25519"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n")
    done = generate(*GIT, "--ssh-key", str(key))
    assert done.returncode == 2
    assert "is not a public ssh key" in done.stderr
    assert "c2VjcmV0" not in done.stderr
