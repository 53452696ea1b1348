"""scripts/connect.py on a laptop of its own: real ssh, real hosts, real Jupyter, lines that are really cut."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colab_local.base import network
from colab_local.base.errors import EXIT_NETWORK, EXIT_USAGE
from colab_local.install.home import environment_root
from colab_local.install.jupyter import LAUNCHER
from colab_local.laptop import agent as connect_agent
from colab_local.laptop import ssh as ssh_module
from colab_local.laptop.far import program_text
from colab_local.laptop.transport_benchmark import median_cell
from tests.conftest import Installed
from tests.support import pythons
from tests.support.colab_client import TRANSPORTS, Colab, Server, connect, open_transport
from tests.support.connecting import DEFAULT_HOME, QUICK, SCRIPT, TYPED, install, run, running
from tests.support.connecting import lab as lab
from tests.support.hosts import Lab, Machine, needs_root, wait_for
from tests.support.pythons import old_pythons
from tests.support.receipts import NAME, write_receipt


def command_lines(machine: Machine) -> str:
    """Return all command lines and environments of processes on a machine."""
    pids = [str(pid) for pid in machine.inhabitants()]
    shown = [Path("/proc", pid, name) for pid in pids for name in ("cmdline", "environ")]
    texts = []
    for path in shown:
        with contextlib.suppress(OSError):
            texts.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(texts)


@needs_root
def test_first_connection_and_everything_one_does_with_it(lab: Lab) -> None:
    """Start, both transports, a port in use, a second laptop window, Ctrl-C, --status, --stop."""
    gpubox = lab.machines["gpubox"]
    nothing = run(lab, "--status", "gpubox")
    assert (nothing.returncode, nothing.stdout) == (1, "no Jupyter of colab-local runs on gpubox\n")

    with running(lab, "gpubox") as first:
        one = first.event("connected")
        assert one["started"] is True
        assert one["port"] == one["remote_port"] == 8888, "the same port by preference"
        assert (one["host"], one["env"]) == ("gpubox", "cpu")
        token = one["url"].partition("token=")[2]
        assert one["url"] == f"http://localhost:8888/?token={token}"
        first.says(f"    {one['url']}\n")
        with lab.laptop.network():
            for transport in TRANSPORTS:
                with connect(one["url"], transport) as colab:
                    assert colab.run("import socket; print(socket.gethostname())").stdout == "gpubox\n"
            assert median_cell(one["url"]) < 0.035, "sshd holds small packets back, as with ssh -N"

        # The token is in no command line, no environment and no log.
        seen = command_lines(lab.laptop) + command_lines(gpubox)
        assert "jupyter-notebook" in seen
        sockets = re.search(r"ControlPath=(/\S+)/[^/]+/s\b", seen)
        assert sockets
        assert token not in seen
        logs = list((gpubox.home / DEFAULT_HOME / "logs").iterdir())
        assert logs
        for log in logs:
            assert token not in log.read_text()
            assert log.stat().st_mode & 0o777 == 0o600
        assert (gpubox.home / DEFAULT_HOME / "run/jupyter-token").stat().st_mode & 0o777 == 0o600

        # Again, from another window: the same Jupyter, the next free port, which works on both transports.
        with running(lab, "gpubox") as second:
            two = second.event("connected")
            assert two["started"] is False
            assert two["pid"] == one["pid"]
            assert two["port"] == 8889
            second.says("port 8888 is taken on this machine, using 8889")
            with lab.laptop.network():
                for transport in TRANSPORTS:
                    with connect(two["url"], transport) as colab:
                        assert colab.run("6 * 7").result == "42"
            assert second.end(signal.SIGTERM) == 0
            assert not lab.laptop.listens(8889)
        assert lab.laptop.listens(8888), "the first window is not concerned"

        assert first.end() == 0
    assert first.event("closed")
    first.says(f"closed the tunnel; Jupyter on gpubox (process {one['pid']}) still runs")
    first.says(f"stop it: {TYPED} --stop gpubox")
    assert not lab.laptop.listens(8888)
    assert not Path(sockets[1]).exists(), "its folder is gone"
    assert "ssh" not in command_lines(lab.laptop), "no ssh is left"
    wait_for(lambda: "sys.stdin.readline" not in command_lines(gpubox), 30, "the agent's end")
    assert gpubox.listens(8888), "Jupyter outlives the connection"

    status = run(lab, "--status", "gpubox")
    assert (status.returncode, "process {pid}, port 8888".format(**one) in status.stdout) == (0, True)
    assert run(lab, "--stop", "gpubox").stdout == "stopped Jupyter on gpubox; 0 kernels ended\n"
    assert not gpubox.listens(8888)
    assert "jupyter" not in command_lines(gpubox), "kernels are gone too"
    assert run(lab, "--stop", "gpubox").stdout == "nothing to stop on gpubox\n"


@needs_root
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_cut_line_comes_back_with_the_kernels_variables(lab: Lab, transport: str) -> None:
    gpubox = lab.machines["gpubox"]
    with running(lab, *QUICK, "gpubox") as link:
        connected = link.event("connected")
        server = Server(connected["url"])
        with lab.laptop.network():
            colab = Colab(open_transport(server, transport))
            colab.run("answer = 42")
        gpubox.cut()
        try:
            link.event("dropped")
            assert not lab.laptop.listens(connected["port"])
        finally:
            gpubox.restore()
        assert link.event("reconnected")["port"] == connected["port"]
        kernel = colab.session["kernel"]["id"]
        with lab.laptop.network():  # Colab's page opens its WebSocket again
            colab.transport = open_transport(server, transport)
            colab.channels = colab.transport.channels(f"/api/kernels/{kernel}/channels", colab.client)
            assert colab.run("answer").result == "42"
            colab.close()
        assert link.end() == 0


@needs_root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_a_stranger_took_while_the_line_was_down(lab: Lab, address: str) -> None:
    """Of localhost's two addresses one is enough for a stranger to get what the browser sends, token and all."""
    gpubox = lab.machines["gpubox"]
    with running(lab, *QUICK, "--port", "50002", "gpubox") as link:
        assert link.event("connected")["port"] == 50002
        gpubox.cut()
        try:
            link.event("dropped")
            with lab.laptop.network():
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                stranger = socket.create_server((address, 50002), family=family)
        finally:
            gpubox.restore()
        with stranger:
            failed = link.event("failed")
            stranger.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    assert stranger.accept()[0].recv(1000) == b"", "something was said to it"
        assert "could not open port 50002 on this machine" in failed["error"]
        options = shlex.join(QUICK)
        assert failed["hint"] == f"{TYPED} --port 50003 {options} gpubox"
        assert link.process.wait(30) == 1


@needs_root
def test_a_jupyter_that_hangs_is_waited_for_and_never_doubled(lab: Lab) -> None:
    """As on a machine that swaps: its kernels hold the user's variables, a second Jupyter would hide them."""
    gpubox = lab.machines["gpubox"]
    with running(lab, "gpubox") as link:
        pid = link.event("connected")["pid"]
        assert link.end() == 0
    gpubox.run(["kill", "-STOP", str(pid)])
    silent = f"Jupyter on gpubox (process {pid}, port 8888) runs and does not answer"
    status = run(lab, "--status", "gpubox")
    assert (status.returncode, status.stdout) == (1, "")
    assert f"error: {silent}\nhint: {TYPED} --stop gpubox" in status.stderr
    with running(lab, "gpubox") as link:
        link.says(f"{silent}: waiting")
        gpubox.run(["kill", "-CONT", str(pid)])
        connected = link.event("connected")
        assert (connected["pid"], connected["started"]) == (pid, False)
        assert link.end() == 0
    gpubox.run(["kill", "-STOP", str(pid)])
    assert run(lab, "--stop", "gpubox").stdout == "stopped on gpubox\n", "it could not say how many kernels it had"
    assert not gpubox.listens(8888)


@needs_root
def test_a_rebooted_host_gets_a_new_jupyter_and_the_user_is_told(lab: Lab) -> None:
    gpubox = lab.machines["gpubox"]
    with running(lab, *QUICK, "gpubox") as link:
        before = link.event("connected")
        gpubox.stop()
        link.event("dropped")
        gpubox.start()
        link.says("connected again", 240)
        link.says("Jupyter was started again on gpubox: variables are gone")
        link.event("reconnected")
        with lab.laptop.network(), connect(before["url"], "direct") as colab:
            assert colab.run("6 * 7").result == "42"

        # Ended by somebody: said, not started again behind their back.
        assert run(lab, "--stop", "gpubox").returncode == 0
        assert link.process.wait(60) == 1
    link.says("error: Jupyter on gpubox has ended")


@needs_root
def test_a_jump_host_and_a_port_that_is_taken_on_the_host(lab: Lab) -> None:
    vault = lab.machines["vault"]
    unreachable = run(lab, *QUICK, "vault")
    assert unreachable.returncode == EXIT_NETWORK
    assert "error: vault can't be reached" in unreachable.stderr
    other = subprocess.Popen(vault.enter([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "8888"]))
    try:
        wait_for(lambda: vault.listens(8888), 30, "another program at the port")
        with running(lab, "-J", "gate", "--port", "50000", "root@vault") as link:
            connected = link.event("connected")
            assert (connected["remote_port"], connected["port"]) == (8889, 50000)
            link.says("port 8888 is taken on vault: Jupyter uses 8889 there")
            with lab.laptop.network():
                for transport in TRANSPORTS:
                    with connect(connected["url"], transport) as colab:
                        assert colab.run("import socket; print(socket.gethostname())").stdout == "vault\n"
            assert link.end() == 0
        link.says("--stop -J gate root@vault")
        assert run(lab, "--stop", "-J", "gate", "vault").stdout.startswith("stopped Jupyter on vault; ")
    finally:
        other.kill()
        other.wait()


@needs_root
def test_desktop_forwards_vnc_to_a_real_server(lab: Lab, installed: Installed) -> None:
    gpubox = lab.machines["gpubox"]
    server = shutil.which("Xtigervnc")
    assert server, "install tigervnc-standalone-server"
    options = ["-displayfd", "1", "-rfbport", "5901", "-localhost", "-SecurityTypes", "None", "-geometry", "320x200"]
    vnc = subprocess.Popen(gpubox.enter([server, *options]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: gpubox.listens(5901), 60, "the VNC server")
        with running(lab, "--desktop", "gpubox") as link:
            connected = link.event("connected")
            assert connected["desktop"] == {"5900": 55900, "5901": 55901}
            link.says("the desktop of gpubox: vncviewer localhost::55901")
            link.says("nothing listens at port 5900 yet")
            with lab.laptop.network(), socket.create_connection(("127.0.0.1", 55901), timeout=30) as rfb:
                rfb.settimeout(30)
                assert rfb.recv(12, socket.MSG_WAITALL) == b"RFB 003.008\n"  # RFC 6143, 7.1.1
            assert link.end() == 0
        assert not lab.laptop.listens(55901)
        # A desktop on another display, as bootstrap.py notes it: that one, and no other.
        home = gpubox.home / "with-desktop"
        shutil.copytree(installed.home / "receipts", home / "receipts")  # a receipt that is a link is none
        for name in ("envs", "current"):
            (home / name).symlink_to(installed.home / name)
        (home / "receipts/desktop.json").write_text('{"schema": 1, "desktops": [{"kind": "virtual", "port": 5903}]}')
        with running(lab, "--desktop", "--home", str(home), "gpubox") as link:
            assert link.event("connected")["desktop"] == {"5903": 55903}
            link.says("nothing listens at port 5903 yet")
            assert link.end() == 0
        # One without a port: at a Unix socket in a folder of the user's own.
        place = gpubox.home / ".vnc" / "rfb-4.sock"
        place.parent.mkdir(mode=0o700)
        away = ["-rfbport", "-1", "-rfbunixpath", str(place), "-rfbunixmode", "0600"]
        silent = subprocess.Popen(
            gpubox.enter([server, "-displayfd", "1", *away, "-SecurityTypes", "None"]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(place.exists, 60, "the VNC server without a port")
        (home / "receipts/desktop.json").write_text('{"schema": 1, "desktops": [{"port": 5904, "listen": "socket"}]}')
        with running(lab, "--desktop", "--home", str(home), "gpubox") as link:
            assert link.event("connected")["desktop"] == {str(place): 55904}
            link.says("the desktop of gpubox: vncviewer localhost::55904")
            with lab.laptop.network(), socket.create_connection(("127.0.0.1", 55904), timeout=30) as rfb:
                rfb.settimeout(30)
                assert rfb.recv(12, socket.MSG_WAITALL) == b"RFB 003.008\n"
            assert link.end() == 0
        assert silent.poll() is None
    finally:
        gpubox.run(["pkill", "-TERM", "-x", "Xtigervnc"])  # so that it removes its lock; its own process table
        vnc.wait(30)


@needs_root
def test_an_sshd_that_forwards_no_sockets_is_named(lab: Lab, installed: Installed) -> None:
    """It says "open failed: connect failed: open failed", as it does of a socket where nothing listens."""
    shy = lab.host("shy", sshd_options="AllowStreamLocalForwarding no")
    home, place = install(installed, shy), shy.home / ".vnc" / "rfb-1.sock"
    (home / "receipts").unlink()
    shutil.copytree(installed.home / "receipts", home / "receipts")
    (home / "receipts/desktop.json").write_text('{"schema": 1, "desktops": [{"port": 5901, "listen": "socket"}]}')
    place.parent.mkdir(mode=0o700)
    listen = f"import socket, time; s = socket.socket(1); s.bind({str(place)!r}); s.listen(); time.sleep(300)"
    server = subprocess.Popen(shy.enter([sys.executable, "-c", listen]))
    try:
        wait_for(place.exists, 30, "the socket")
        with running(lab, "--desktop", "shy") as link:
            assert link.event("connected")["desktop"] == {str(place): 55901}
            with lab.laptop.network(), socket.create_connection(("127.0.0.1", 55901), timeout=30) as rfb:
                rfb.settimeout(30)
                assert rfb.recv(12) == b""
            link.says("note: the sshd of shy did not open the desktop's socket")
            link.says("AllowStreamLocalForwarding no")
            assert link.end() == 0
    finally:
        server.kill()
        server.wait()


@needs_root
def test_a_password_is_asked_for_once(lab: Lab, installed: Installed) -> None:
    install(installed, lab.host("asks", password="open sesame"))
    argv = lab.laptop.enter([sys.executable, SCRIPT, "-o", "PreferredAuthentications=password", "asks"])
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(argv[0], argv)  # noqa: S606
    shown, typed = b"", False
    deadline = time.monotonic() + 240
    try:
        while b"Ctrl-C closes the tunnel" not in shown:
            assert time.monotonic() < deadline, shown.decode(errors="replace")
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096)
            if b"password:" in shown and not typed:
                time.sleep(0.3)  # ssh flushes what was typed before it switched the echo off
                os.write(terminal, b"open sesame\n")
                typed = True
        assert shown.count(b"assword:") == 1
        assert b"open sesame" not in shown
        os.write(terminal, b"\x03")  # Ctrl-C, as typed: the terminal signals connect.py and ssh alike
        with contextlib.suppress(OSError):
            while b"stop it:" not in shown and select.select([terminal], [], [], 60)[0]:
                shown += os.read(terminal, 4096)
        assert b"still runs" in shown
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)


@needs_root
def test_open_opens_colab_without_the_token(lab: Lab, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/opened"\n')
    browser.chmod(0o755)
    with running(lab, "--open", "gpubox", env=[f"BROWSER={browser}"]) as link:
        link.event("connected")
        wait_for((tmp_path / "opened").exists, 30, "the browser")
        assert (tmp_path / "opened").read_text() == "https://colab.research.google.com/\n"
        assert link.end() == 0


@needs_root
def test_two_at_once_start_one_jupyter(lab: Lab) -> None:
    run(lab, "--stop", "gpubox")
    with running(lab, "gpubox") as one, running(lab, "gpubox") as two:
        first, second = one.event("connected"), two.event("connected")
        assert first["pid"] == second["pid"]
        assert sorted([first["started"], second["started"]]) == [False, True]
        assert first["port"] != second["port"]


@needs_root
def test_the_users_own_ssh_configuration_is_respected(lab: Lab, tmp_path: Path) -> None:
    """An alias with what would disturb: the same forward, a command, a shared connection, a chatty login."""
    config = tmp_path / "config"
    own = (lab.laptop.home / ".ssh/config").read_text()
    alias = "Host work\nHostName gpubox\nLocalForward 8888 localhost:1\nRemoteCommand date\nRequestTTY yes\n"
    config.write_text(
        alias + f"ControlMaster auto\nControlPath {tmp_path}/c\nForwardX11 yes\nGatewayPorts yes\n" + own
    )
    noisy = lab.machines["gpubox"].home / ".bashrc"
    noisy.write_text("echo welcome\n")
    try:
        with running(lab, "-F", str(config), "work") as link:
            url = link.event("connected")["url"]
            with lab.laptop.network():
                with connect(url, "direct") as colab:
                    assert colab.run("6 * 7").result == "42"
                with pytest.raises(OSError):  # loopback only, GatewayPorts or not
                    socket.create_connection((lab.laptop.address, 8888), timeout=5).close()
            assert link.end() == 0
    finally:
        noisy.unlink()


# What ssh says is provoked for real; (arguments, exit code, what it must say, hint)
REFUSALS = {
    "no such name": (["nowhere.invalid"], 5, "no machine is known by the name nowhere.invalid", "ssh"),
    "no sshd": (
        ["-p", "2222", "gpubox"],
        5,
        "gpubox is there, but no ssh server listens",
        "start an ssh server there",
    ),
    "key not accepted": (
        ["-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes", "gpubox"],
        1,
        "gpubox does not let you in",
        "-v true",
    ),
    "host key unknown": (
        ["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "gpubox"],
        1,
        "the host key of gpubox is not known here",
        " true   # compare the key, and accept it once",
    ),
    "bad option": (["-o", "Nonsense=1", "gpubox"], 2, "ssh does not take these options", "Nonsense=1 gpubox true"),
    "no such environment": (
        ["--env", "moon", "gpubox"],
        1,
        "no environment moon on gpubox (found cpu",
        f"{TYPED} gpubox",
    ),
    "another environment": (
        ["--env", "gpu", "gpubox"],
        1,
        "no environment gpu on gpubox",
        f"{TYPED} --install --env gpu",
    ),
}


@needs_root
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence_and_a_command(lab: Lab, case: str) -> None:
    args, code, what, hint = REFUSALS[case]
    done = run(lab, *args)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert what in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]
    assert len(lines) == 2


@needs_root
def test_a_changed_host_key_is_never_accepted(lab: Lab, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    key = (tmp_path / "other.pub").read_text().split()
    (tmp_path / "known").write_text(f"other {key[0]} {key[1]}\ngpubox {key[0]} {key[1]}\n")
    done = run(lab, "-o", f"UserKnownHostsFile={tmp_path}/known", "gpubox")
    assert done.returncode == 1
    assert "gpubox shows another host key than before" in done.stderr
    hint = done.stderr.splitlines()[1].partition(": ")[2]
    subprocess.run(["bash", "-c", hint], check=True)
    assert (tmp_path / "known").read_text() == f"other {key[0]} {key[1]}\n", "this key alone is forgotten"


@needs_root
def test_where_nothing_is_installed_the_hint_brings_it_there(lab: Lab) -> None:
    done = run(lab, "empty")
    assert done.returncode == 1
    assert "error: no colab-local environment on empty (looked in /" in done.stderr
    hint = done.stderr.partition("hint: ")[2].strip()
    assert re.fullmatch(r"\S+ \S*scripts/connect\.py --install( --env gpu)? empty", hint)  # gpu where one is
    # The command itself, but with --help at its end: this network has no way out.
    assert "Reach the Jupyter of another machine" in lab.laptop.run(["bash", "-c", hint + " --help"]).stdout

    home = lab.machines["empty"].home
    (home / "nvidia-smi").write_text("#!/bin/sh\n")
    (home / "nvidia-smi").chmod(0o755)
    (home / ".bashrc").write_text("PATH=$PATH:$HOME\n")
    assert run(lab, "empty").stderr.strip().endswith("connect.py --install --env gpu empty"), "it has a GPU"


@needs_root
def test_forbidden_tunnels_and_broken_jupyters_are_named(lab: Lab, installed: Installed) -> None:
    strict = lab.host("strict", sshd_options="AllowTcpForwarding no")
    home = install(installed, strict)
    done = run(lab, "strict")
    assert done.returncode == 1
    assert "error: strict forbids tunnels" in done.stderr
    assert "AllowTcpForwarding yes" in done.stderr
    assert run(lab, "--stop", "strict").returncode == 0

    for name in ("receipts", "current", "envs"):
        (home / name).unlink()
    jupyter = environment_root(home, NAME) / LAUNCHER
    jupyter.parent.mkdir(parents=True)
    jupyter.write_text("#!/bin/sh\necho the very reason\nexit 3\n")
    jupyter.chmod(0o755)
    write_receipt(home)
    (home / "current").mkdir()
    (home / "current" / "cpu").symlink_to(environment_root(home, NAME))
    done = run(lab, "strict")
    assert done.returncode == 1
    assert "error: Jupyter ended at once on strict\n  the very reason\n" in done.stderr


SHELLS = ("sh", "bash", "dash", "zsh", "fish", "tcsh")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_far_command_means_the_same_to_every_login_shell(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    assert program, f"install {shell}"
    agent = program_text("colab_local.laptop.agent")
    with subprocess.Popen(
        [program, "-c", ssh_module.FAR_COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    ) as far:
        assert far.stdin is not None
        assert far.stdout is not None
        far.stdin.write(json.dumps(agent) + "\n")
        far.stdin.flush()
        said = (line.partition(connect_agent.MARK)[2] for line in far.stdout)
        trying, ready, hello = (json.loads(text) for text in itertools.islice(filter(None, said), 3))
        assert (trying["trying"], ready["ready"], hello["hello"]) == ("python3", True, socket.gethostname())
        far.stdin.close()
        assert far.wait(30) == 0, "the agent ends with the line"


def test_without_python_the_host_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "env").symlink_to(shutil.which("env") or "/usr/bin/env")  # a PATH without it is taken for broken
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # what an older Python's exit code is
    old.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", ssh_module.FAR_COMMAND],
        input="",
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert done.returncode == 127
    said = done.stderr.splitlines()
    failure = ssh_module.explain(said, ssh_module.Ssh("me@host"), logged_in=True, status=done.returncode)
    assert failure.what == "host has no Python 3.8 or newer on its PATH"


def test_both_ends_run_on_old_pythons(tmp_path: Path) -> None:
    """A laptop and a host have whatever Python they have; 3.8 is the oldest that is promised."""
    for old in old_pythons() or [pythons.demand("3.8")]:
        assert subprocess.run([old, SCRIPT, "--help"], capture_output=True, check=True).stderr == b""
        request = json.dumps({"op": "status", "home": str(tmp_path)}) + "\n"
        agent = [old, "-I", "-c", "import json, sys; exec(json.loads(sys.stdin.readline()))"]  # as FAR_COMMAND has it
        with subprocess.Popen(agent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as far:
            assert far.stdin is not None
            assert far.stdout is not None
            far.stdin.write(json.dumps(program_text("colab_local.laptop.agent")) + "\n" + request)
            far.stdin.flush()
            said = (line.partition(connect_agent.MARK)[2] for line in far.stdout)
            answers = [json.loads(text) for text in itertools.islice(filter(None, said), 2)]
            far.stdin.close()
        assert answers[0]["hello"]
        assert answers[1]["kind"].startswith("absent")


def test_bad_usage_is_refused_before_anything_happens() -> None:
    for args, words in (
        (["--port", "0", "host"], "1 to 65535"),
        (["--port", "eighty", "host"], "1 to 65535"),
        ([], "not given: [USER@]HOST"),
    ):
        done = subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True)
        assert done.returncode == EXIT_USAGE
        assert words in done.stderr
    done = subprocess.run([sys.executable, SCRIPT, "--ssh", "/no/such", "host"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: /no/such can't be run (No such file or directory)")


def test_a_port_in_use_in_ipv6_alone_is_not_free() -> None:
    """Browsers try ::1 first; ssh would be content with 127.0.0.1."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not network.port_is_free(port)
        assert network.free_port(port) != port
