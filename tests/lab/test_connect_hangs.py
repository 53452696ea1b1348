"""connect.py where something waits for ever, or the account is not let in: each wait ends, with a sentence."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.connecting import run, run_hurried
from tests.support.hosts import Lab, Machine, needs_root, wait_for

pytestmark = needs_root


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Path]:
    """A socket that takes every connection and never says a word: an agent whose window waits somewhere."""
    path = Path("/tmp") / f"deaf{os.getpid()}"
    kept = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield path
        for one in kept:
            one.close()
    path.unlink()


# Lines of the laptop's ssh configuration that wait for ever: (the lines, what has to be said, of the hint).
CONFIGURATIONS = {
    "match": ('Match exec "sleep 600"', "its own configuration (a `Match exec`", " -v true"),
    "silent": (
        "ProxyCommand sleep 600",
        "ProxyCommand on the way to gpubox does not answer",
        " -v true",
    ),
    "banner": (
        'ProxyCommand sh -c "echo SSH-2.0-x; exec sleep 600"',
        "ProxyCommand on the way to gpubox does not answer",
        " -v true",
    ),
    "keys": ("KnownHostsCommand /bin/sleep 600", "which keys gpubox may have (a KnownHostsCommand in", " -v true"),
    "host key": (
        'KnownHostsCommand /bin/sh -c "case %I in ORDER) exit;; esac; exec sleep 600"',
        "nobody has said yes to the host key of gpubox (or a KnownHostsCommand",
        " true   # compare",
    ),
    "identity": ("IdentityFile {folder}/fifo", "does not get past the key files", " -v true"),
    "include": ("Include {folder}/fifo", "its own configuration (a `Match exec` or an Include", " -v true"),
    "known hosts": ("UserKnownHostsFile {folder}/fifo", "or a file of known hosts on a disk", " -v true"),
    "certificate": ("CertificateFile {folder}/fifo", "does not get past the key files", " -v true"),
    "agent": (
        "IdentityAgent {deaf}\nIdentitiesOnly no",
        "the ssh agent does not answer (SSH_AUTH_SOCK",
        "ssh-add -l",
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_what_the_laptops_configuration_waits_for_is_named(lab: Lab, tmp_path: Path, deaf: Path, case: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    lines, words, hinted = CONFIGURATIONS[case]
    config = tmp_path / "config"
    text = lines.format(folder=tmp_path, deaf=deaf) + "\n"
    config.write_text(f"Host gpubox\n{text}Host *\n{(lab.laptop.home / '.ssh/config').read_text()}")
    done = run_hurried(lab, "--status", "-F", str(config), "-o", "ConnectTimeout=5", "gpubox")
    error, hint = done.stderr.splitlines()
    assert done.returncode == 5, done.stderr
    assert words in error
    assert hinted in hint


def test_a_jump_host_may_take_its_time(lab: Lab, tmp_path: Path) -> None:
    """Somebody types a password there: our limit for a host that is off is not for that."""
    proxy = 'sh -c "sleep 9; exec socat - TCP:gpubox:22"'
    done = run_hurried(lab, "--status", "-o", f"ProxyCommand={proxy}", "gpubox")
    assert done.stdout == "no Jupyter of colab-local runs on gpubox\n", done.stderr


@pytest.fixture
def gpubox(lab: Lab) -> Iterator[Machine]:
    """The host; its start-up file is gone again afterwards."""
    yield lab.machines["gpubox"]
    (lab.machines["gpubox"].home / ".bashrc").unlink(missing_ok=True)


# Pythons of the host that hang: what python3 is.
PYTHONS = {
    "a disk that is gone": "exec sleep 600",
    "only at work": 'case "$*" in *version_info*) exit 0;; esac\nexec sleep 600',
}


@pytest.mark.parametrize("case", [*PYTHONS, "sitecustomize"])
def test_a_far_python_that_hangs_is_no_fault_of_start_up_files(gpubox: Machine, lab: Lab, case: str) -> None:
    folder = gpubox.home / case.replace(" ", "-")
    if case in PYTHONS:
        folder.mkdir()
        (folder / "python3").write_text(f"#!/bin/sh\n{PYTHONS[case]}\n")
        (folder / "python3").chmod(0o755)
    else:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python3*/site-packages")
        (site / "sitecustomize.py").write_text("import time\ntime.sleep(600)\n")
        folder = folder / "bin"
    (gpubox.home / ".bashrc").write_text(f"echo Welcome\nPATH={folder}:$PATH\n")
    done = run_hurried(lab, "--status", "gpubox")
    error, hint = done.stderr.splitlines()
    assert error == (
        "error: gpubox let you in, and its Python (python3) does not start our program (nothing came within 8 s); "
        "it said: Welcome"
    )
    assert hint.startswith("hint: ssh gpubox python3 -I -v -c 0   # ")


# Accounts that are not let in: (in sshd_config, in /etc/shadow behind the password, in /etc/nologin, what is said).
LIVING, CLOSED = "19000:0:99999:7:::", "closed the line instead of letting you in; it said: "
ACCOUNTS = {
    "reset": ("UsePAM yes", "0:0:99999:7:::", "", "wants a new password first; it said: Password change required"),
    "aged": ("UsePAM yes", "100:0:30:7:::", "", "wants a new password first; it said: Password change required"),
    "inactive": ("UsePAM yes", "100:0:30:7:1::", "", CLOSED + "Your account has expired"),
    "expired": ("UsePAM yes", "19000:0:99999:7::100:", "", CLOSED + "Your account has expired"),
    "unknown": ("UsePAM no", "19000:0:99999:7::100:", "", "does not let you in (ada@unknown: Permission denied"),
    "closing": ("UsePAM yes", LIVING, "Back at five.", CLOSED + "Back at five."),
    "closed": (
        "UsePAM no",
        LIVING,
        "Back at five.",
        "lets nobody in just now (it has a file /etc/nologin); it said: ",
    ),
    "denied": ("DenyUsers ada", LIVING, "", "does not let you in (ada@denied: Permission denied"),
    "crowded": ("PerSourceMaxStartups 1", LIVING, "", "closed it at once (kex_exchange_identification: "),
}


def add_ada(host: Machine, aging: str) -> None:
    """Make an ordinary user on a host, with the laptop's key. aging: of /etc/shadow, behind the password."""
    home = host.folder / "ada"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/authorized_keys").write_text(host.lab.user_key.with_suffix(".pub").read_text())
    for path in (home, *home.rglob("*")):
        os.chown(path, 61234, 61234)
    for path in list(home.parents)[:-1]:
        with contextlib.suppress(OSError):
            path.chmod(path.stat().st_mode | 0o011)
    with (host.folder / "etc/passwd").open("a") as passwd:
        passwd.write(f"ada:x:61234:61234::{home}:/bin/bash\n")
    with (host.folder / "etc/shadow").open("a") as shadow:
        shadow.write(f"ada:*:{aging}\n")


@pytest.mark.parametrize("name", ACCOUNTS)
def test_accounts_that_are_not_let_in(lab: Lab, name: str) -> None:
    settings, aging, notice, words = ACCOUNTS[name]
    host = lab.host(name, sshd_options=settings)
    add_ada(host, aging)
    if notice:
        (host.folder / "etc/nologin").write_text(notice + "\n")
    with contextlib.ExitStack() as held:
        if name == "crowded":
            with lab.laptop.network():
                others = [held.enter_context(socket.create_connection((host.address, 22))) for _ in range(2)]
            wait_for(lambda: others[0].recv(99) != b"", 10, "the first one's banner")
        done = run(lab, "--status", f"ada@{name}", timeout=60)
    assert words in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    host.stop()
