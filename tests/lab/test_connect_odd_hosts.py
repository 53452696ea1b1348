"""connect.py and what stands between a log-in and our program: start-up files, forced commands, odd settings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colab_local.laptop import ssh as ssh_module
from tests.conftest import Installed
from tests.support.connecting import install, run
from tests.support.hosts import Lab, Machine, needs_root

pytestmark = needs_root


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, installed: Installed) -> Iterator[Lab]:
    """A laptop and one host with colab-local."""
    with Lab(tmp_path_factory.mktemp("odd")) as made:
        install(installed, made.host("gpubox"))
        yield made


@pytest.fixture
def gpubox(lab: Lab) -> Iterator[Machine]:
    """The host; its start-up file is gone again afterwards."""
    host = lab.machines["gpubox"]
    yield host
    (host.home / ".bashrc").unlink(missing_ok=True)


STATUS = (1, "no Jupyter of colab-local runs on gpubox\n")

# Lines of the laptop's ssh configuration that leave a session without a shell, without input, silent.
CONFIGURATIONS = (
    "SessionType none",
    "SessionType subsystem",
    "StdinNull yes",
    "ForkAfterAuthentication yes",
    "RequestTTY force\nRemoteCommand tmux",
    "LogLevel QUIET",
)


@pytest.mark.parametrize("lines", CONFIGURATIONS)
def test_what_the_laptops_configuration_may_say(lab: Lab, gpubox: Machine, tmp_path: Path, lines: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host gpubox\n{lines}\n" + (lab.laptop.home / ".ssh/config").read_text())
    done = run(lab, "--status", "-F", str(config), "gpubox", timeout=60)
    assert (done.returncode, done.stdout) == STATUS, done.stderr


def test_silence_is_no_reason_to_say_nothing(lab: Lab, gpubox: Machine) -> None:
    no_key = ["-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes"]
    done = run(lab, "--status", "-o", "LogLevel=QUIET", *no_key, "gpubox", timeout=60)
    assert done.stderr.startswith("error: gpubox does not let you in"), done.stderr


# Start-up files that set what breaks Python there, and do no harm.
HARMLESS = (
    "export PYTHONHOME=/opt/python2 PYTHONPATH=/opt/lib",
    "export LD_LIBRARY_PATH={home}/lib",
    "export PYTHONWARNINGS=error PYTHONOPTIMIZE=2",
    "set -eu",
    "ulimit -n 64",
    "echo 'colab-local>{{\"ok\": 3}}'; echo 'colab-local>[1]'",
)


@pytest.mark.parametrize("line", HARMLESS)
def test_what_the_hosts_start_up_files_may_do(lab: Lab, gpubox: Machine, line: str) -> None:
    (gpubox.home / "lib").mkdir(exist_ok=True)
    (gpubox.home / "lib" / "libz.so.1").write_text("not a library")
    (gpubox.home / ".bashrc").write_text(line.format(home=gpubox.home) + "\n")
    done = run(lab, "--status", "gpubox", timeout=60)
    assert (done.returncode, done.stdout) == STATUS, done.stderr


# Start-up files that take the line from us: (line, what has to be said).
TAKEN = {
    "waits": ("exec sleep 600", "nothing came within"),
    "another shell": ("exec cat", "nothing came within"),
    "reads": ("echo Project?; read -r project", "it said: Project?"),
    "tmux": ("exec tmux", "needs a terminal"),
    "ends": ("echo 'This account is currently not available.'; exit 1", "runs no programs for you"),
    "says why": ("echo 'quota exceeded'; exit 1", "it said: quota exceeded"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_start_up_files_that_take_the_line_are_named(lab: Lab, gpubox: Machine, case: str) -> None:
    line, words = TAKEN[case]
    (gpubox.home / ".bashrc").write_text(line + "\n")
    started = time.monotonic()
    done = run(lab, "--status", "gpubox", timeout=ssh_module.HELLO_SECONDS + 60)
    assert time.monotonic() - started < ssh_module.HELLO_SECONDS + 30
    error, hint = done.stderr.splitlines()
    assert done.returncode == 1
    assert words in error
    assert hint.startswith("hint: ")
    assert "~/.bashrc" in error or case == "ends"


def test_a_forced_command_is_named(lab: Lab, installed: Installed) -> None:
    lab.host("bastion", sshd_options="ForceCommand /bin/bash -l")
    done = run(lab, "--status", "bastion", timeout=120)
    assert (done.returncode, "ForceCommand" in done.stderr) == (1, True), done.stderr


def test_permit_open_by_name(lab: Lab, installed: Installed) -> None:
    """sshd compares the text of the address that is asked for."""
    named = lab.host("named", sshd_options="PermitOpen localhost:8888")
    install(installed, named)
    closed = lab.host("closed", sshd_options="PermitOpen localhost:1")
    install(installed, closed)
    for name, code, words in (("named", 0, "Paste this into Colab"), ("closed", 1, "PermitOpen")):
        shown = lab.laptop.run(
            [
                "timeout",
                "-s",
                "INT",
                "40",
                "python3",
                str(Path(ssh_module.__file__).parents[2] / "scripts/connect.py"),
                "--remote-port",
                "8888",
                name,
            ],
            check=False,
            timeout=120,
        )
        assert words in shown.stdout + shown.stderr, shown
        assert (shown.returncode in (0, 124)) == (code == 0), shown
        run(lab, "--stop", name)


def test_a_line_that_drops_after_the_first_word_is_one_sentence(lab: Lab, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(
        '#!/bin/sh\nread -r program\nprintf \'colab-local>{"ok": true, "hello": "gpubox"}\\n\'\nexit 255\n'
    )
    ssh.chmod(0o755)
    for option in ("--status", "--stop"):
        done = run(lab, "--ssh", str(ssh), option, "gpubox", timeout=30)
        assert done.returncode == 5, done.stderr
        assert done.stderr.startswith("error: the line to gpubox dropped before the answer")
        assert len(done.stderr.splitlines()) == 2
