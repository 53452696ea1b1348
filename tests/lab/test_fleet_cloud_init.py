"""The generator of cloud-init user-data: what it writes is valid by cloud-init's own schema, and what it refuses.

That the script in it installs is tested in test_fleet.py, on a host.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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


@pytest.mark.parametrize(
    "options",
    [
        (*GIT, "--set", "AWS_SECRET_ACCESS_KEY=x"),
        (*GIT, "--set", "HF_TOKEN=x"),
        (*GIT, "--set", "UV_INDEX_URL=https://me:pw@index.example.org/simple"),
        (*GIT, "--set", "NOTE=ghp_0123456789abcdefghij0123456789abcdef"),
        (*GIT, "--set", "NOTE=wJalrXUtnFEMI7MDENGbPxRfiCYEXAMPLE1"),
        (*GIT, "--", "--mirror", "https://a.example/=https://me:pw@b.example/"),
        (*GIT, "--", "--mirror=https://a.example/=https://b.example/?private_token=x"),
        ("--git", "https://git.example.org/x.git?private_token=x", *GIT[2:]),
        ("--git", "https://git.example.org/glpat-0123456789/x.git", *GIT[2:]),
        ("--bundle-url", "https://m.example.org/b.tar?X-Amz-Signature=x&X-Amz-Date=y", *BUNDLE[2:]),
        ("--bundle-url", "https://m.example.org/b.tar?sv=2024&sig=x", *BUNDLE[2:]),
        (*GIT, "--package", "https://me:pw@example.org/x.deb"),
    ],
)
def test_no_secret_passes_in_any_form(options: tuple[str, ...]) -> None:
    done = generate(*options)
    assert done.returncode == 2, done.stdout
    assert not done.stdout
    assert done.stderr.startswith("error: ")
    assert "pw@" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--env", "nosuch"), "unknown environment 'nosuch'"),
        (("--", "--nosuch-option"), "--nosuch-option"),
        (("--", "--engine", "moon"), "moon"),
        (("--", "--port", "x"), "port"),
        (("--", "--uninstall"), "not for a machine's first boot"),
        (("--", "--eng", "pixi"), "--eng"),
    ],
)
def test_options_are_read_by_bootstraps_own_parser(options: tuple[str, ...], message: str) -> None:
    done = generate(*GIT, *options)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr.splitlines()[0]
    assert not done.stdout


@pytest.mark.parametrize("engine", ["miniforge", "anaconda", "conda", "pixi", "host"])
def test_options_that_fit_the_other_machine_alone_pass(engine: str) -> None:
    """What this machine lacks (a conda, a GPU) is no fault of the command line."""
    assert f"--engine {engine}" in installer(*GIT, "--env", "gpu", "--", "--engine", engine)


@needs_cloud_init
def test_proxies_reach_the_package_managers(tmp_path: Path) -> None:
    options = (*BUNDLE, "--set", "https_proxy=http://proxy.example.org:3128", "--set", "no_proxy=.example.org")
    document = user_data(*options)
    assert document["apt"] == {"https_proxy": "http://proxy.example.org:3128"}
    assert "curl" not in document["packages"]
    (command,) = document["bootcmd"]
    config = tmp_path / "dnf.conf"
    config.write_text("[main]\ngpgcheck=1\n")
    for _ in range(2):
        subprocess.run([*command[:2], command[2].replace("/etc/dnf/dnf.conf", str(config))], check=True)
    assert config.read_text() == "[main]\ngpgcheck=1\nproxy=http://proxy.example.org:3128\n"
    file = tmp_path / "user-data.yml"
    assert generate("--output", str(file), *options).returncode == 0
    assert schema(file).returncode == 0


def test_each_cloud_has_its_limit() -> None:
    large = (*GIT, "--set", "X=" + "x" * 20_000)
    for cloud, fits in {"any": False, "aws": False, "hetzner": True, "openstack": True, "gcp": True}.items():
        assert (generate(*large, "--cloud", cloud).returncode == 0) == fits, cloud


def test_a_machine_whose_python3_is_old_takes_a_newer_one(tmp_path: Path) -> None:
    """RHEL 8: python3 is 3.6, python3.11 lies beside it."""
    tools, home = tmp_path / "bin", tmp_path / "home"
    tools.mkdir()
    (home / "colab-local" / ".git").mkdir(parents=True)
    (home / "colab-local" / "bootstrap.py").write_text("import sys; print('ran with', sys.executable)\n")
    for name, text in {"python3": "exit 1", "git": "exit 0", "python3.11": f'exec {sys.executable} "$@"'}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    env = {"HOME": str(home), "PATH": f"{tools}:/usr/sbin:/sbin:/bin"}
    for tool in ("sh", "mkdir", "ln"):
        (tools / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    done = subprocess.run(
        ["sh", "-c", installer(*GIT)], env={**env, "PATH": str(tools)}, capture_output=True, text=True
    )
    assert "ran with" in done.stdout, done.stderr


class _Endless(http.server.BaseHTTPRequestHandler):
    """Answers without an end: as fast as it can, or one byte every tenth of a second (`/slow`)."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        slow = self.path.startswith("/slow")
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x" if slow else b"x" * 65_536)
                time.sleep(0.1 if slow else 0)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def endless() -> Iterator[str]:
    """The address of a server whose answers do not end."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small disk")
def test_a_bundle_without_an_end_does_not_fill_the_disk(tmp_path: Path, endless: str) -> None:
    script = installer("--bundle-url", endless, "--bundle-sha256", "0" * 64)
    mounted = (
        f'mount -t tmpfs -o size=1100m tmpfs {tmp_path} && cd {tmp_path} && export HOME={tmp_path} && sh -c "$0"'
    )
    mounted += "; code=$?; ls; exit $code"
    argv = ["unshare", "--mount", "sh", "-c", mounted, script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "error: the disk is nearly full (need 1 GB free beside the bundle)\n"
    assert done.stdout == ""  # it took nothing that it left


def test_a_bundle_that_drips_is_given_up(tmp_path: Path, endless: str) -> None:
    """The same lines with a second's patience, and one try, instead of a minute's and eight."""
    script = installer("--bundle-url", endless + "slow", "--bundle-sha256", "0" * 64)
    assert script.count("> 60 + got") == script.count("range(8)") == 1
    quick = script.replace("> 60 + got", "> 1 + got").replace("range(8)", "range(1)")
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", quick], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "can't fetch the bundle: less than 10 kB a second; trying again" in done.stderr
