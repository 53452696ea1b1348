"""connect.py without a host: commands, refusals, URLs, pauses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from colab_local.base.errors import Failure
from colab_local.laptop import agent as connect_agent
from colab_local.laptop import session, stages
from colab_local.laptop import ssh as ssh_module
from scripts import connect as connect_py
from tests.conftest import SCREEN


@pytest.mark.parametrize(
    ("platform", "remote", "said"),
    [
        ("linux", 5901, "vncviewer localhost::55901"),
        ("darwin", 5901, "open vnc://localhost:55901"),
        ("darwin", 3389, "an RDP program, at localhost:53389"),
    ],
)
def test_a_desktop_is_opened_by_what_the_laptop_has(platform: str, remote: int, said: str) -> None:
    assert session.viewer(platform, remote, 50000 + remote) == said


@pytest.mark.parametrize(
    ("place", "port"),
    [
        ("5901", 5901),
        ("/home/a da/.vnc/rfb-3.sock", 5903),
        ("/home/a:8888:b/rfb-3.sock", 0),
        ("/home/%h/rfb-3.sock", 0),
        ("/home/${HOME}/rfb-3.sock", 0),
        ("home/rfb-3.sock", 0),
        ("/home/rfb-3.sock\n", 0),
        ("/home/rfb-300.sock", 0),
        ("0", 0),
        ("\u0665\u0669\u0660\u0661", 0),
        ("evil:1", 0),
    ],
)
def test_what_the_host_names_as_a_desktop_is_a_port_or_a_socket(place: str, port: int) -> None:
    assert session.port_of(place) == port


def test_users_options_come_before_ours() -> None:
    args = connect_py.make_parser().parse_args(
        ["-F", "c", "-i", "k1", "-i", "k2", "-p", "22", "-J", "j", "-l", "u", "-o", "ConnectTimeout=1", "h"]
    )
    options = connect_py.ssh_options(args)
    assert shlex.join(options) == "-F c -i k1 -i k2 -p 22 -J j -l u -o ConnectTimeout=1"
    ssh = ssh_module.Ssh("h", tuple(options))
    line = shlex.join(ssh_module.master_argv(ssh, "/s"))
    assert line.index("ConnectTimeout=1") < line.index("ConnectTimeout=20")
    assert "ExitOnForwardFailure=yes" in line
    assert re.search(r"ServerAliveInterval=\d+", line)
    assert shlex.join(connect_py.ssh_options(args, for_node=True)) == "-F c -i k1 -i k2 -o ConnectTimeout=1"


def test_a_jump_host_has_time_for_a_password_and_the_users_own_limit_counts() -> None:
    """Texts of ssh -G, OpenSSH 9.2."""
    assert ssh_module.connect_timeout("connecttimeout none\nproxyjump none\n") == {"ConnectTimeout": "20"}
    assert ssh_module.connect_timeout("connecttimeout none\nproxyjump gate\n") == {"ConnectTimeout": "120"}
    assert ssh_module.connect_timeout("connecttimeout none\nproxycommand ssh -w x\n") == {"ConnectTimeout": "120"}
    assert ssh_module.connect_timeout("connecttimeout 60\nproxyjump gate\n") == {}
    assert ssh_module.connect_timeout("") == {"ConnectTimeout": "20"}, "it did not say"


def test_what_ssh_waits_for_before_the_log_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh"
    program.write_text(
        "#!/bin/sh\n[ $1 != -V ] || { echo OpenSSH_9.2p1; exit; }\n"
        "echo \"debug1: Executing command: 'check {vpn}'\" >&2\nexec sleep 30\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(ssh_module, "configuration", lambda ssh: "")
    monkeypatch.setattr(stages, "CONFIGURATION", stages.CONFIGURATION._replace(seconds=1.0))
    line = ssh_module.Connection(ssh_module.Ssh("me@host", program=str(program)), str(tmp_path), SCREEN)
    with (
        pytest.raises(Failure, match=r"past its own configuration .* Executing command: 'check vpn'"),
        line,
    ):
        pass


def test_what_the_host_answers_is_no_shell_code_here(tmp_path: Path) -> None:
    """A login node names the compute node, for ProxyCommand; a host its Jupyter's path, for a command to paste."""
    args = connect_py.make_parser().parse_args(["--slurm", "me@login"])
    kept = session.Session(connect_py.read_wish(args), str(tmp_path), lambda event: None, SCREEN)
    login = ssh_module.Connection(kept.ssh, str(tmp_path), SCREEN)
    assert kept.node(login, "node-7.example.org").destination == "me@node-7.example.org"
    for name in ("x';touch pwned;'", "$(touch pwned)", "-oProxyCommand=touch", "a b", ""):
        with pytest.raises(Failure, match="no host's name"):
            kept.node(login, name)
    url = session.colab_url(8888, {"base_url": "@evil.example/;touch pwned\n'", "token": "t"})
    assert url == "http://localhost:8888%40evil.example/%3Btouch%20pwned%0A%27?token=t"
    assert session.colab_url(8888, {"base_url": "/a%20b/", "token": "t"}) == "http://localhost:8888/a%20b/?token=t"


def test_an_answer_that_is_none_ends_the_connection_and_hangs_nobody(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho '{connect_agent.MARK}{{broken'\necho 'host: gone wrong' >&2\n")
    ssh.chmod(0o755)
    with pytest.raises(Failure, match="gone wrong"):
        ssh_module.Connection(ssh_module.Ssh("host", (), str(ssh)), str(tmp_path), SCREEN).__enter__()


def test_pauses_double_up_to_half_a_minute() -> None:
    waits = session.pauses()
    assert [next(waits) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
