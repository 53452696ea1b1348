"""What connect.py and the doctor say; the other machine is this one, behind an ssh of a few lines of shell."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.network import Listener
from colab_local.install.servers import is_alive
from colab_local.laptop import agent, colab_page, cures, examination, installing, sending, session
from colab_local.laptop import ssh as ssh_module
from colab_local.laptop.agent import MARK
from scripts import connect, doctor
from tests.conftest import free_port
from tests.support.situations import Row, certified, each, hold, home_with, program, told, typed

IN = 'echo "Authenticated to gpubox ([192.0.2.1]:22)." >&2'  # sshconnect2.c
SERVER = {"pid": 7, "port": 8888, "token": "t", "base_url": "/", "name": "cpu-0123456789ab", "env": "cpu"}
SERVER.update(host="box", kernels=0, notebook_dir="/", current=True, started=True)


def ssh(at: Path, script: str, forward: str = "exit 0") -> Path:
    """Write an ssh that does this where a log-in is asked for; forward: what -O forward does."""
    head = f'case " $* " in *" -V "*|*" -G "*) exit 1;; *" -O "*) {forward};; esac'
    return program(at / "ssh", f"{head}\n{script}")


def far(*answers: Any, end: str = "cat >/dev/null") -> str:
    """Return a host on which our program runs and answers so; a text is a line of shell."""
    lines = [IN, f"echo '{MARK}{{\"ready\": true}}'", "read -r program", f'echo \'{MARK}{{"hello": "box"}}\'']
    for one in answers:
        lines += ["read -r request", one if isinstance(one, str) else f"echo '{MARK}{json.dumps(one)}'"]
    return "\n".join([*lines, end])


def connecting(at: Path, script: str, *words: str, forward: str = "exit 0") -> str:
    return typed(connect, "--ssh", ssh(at, script, forward), *words, "me@gpubox")


def real(at: Path, *words: str) -> str:
    """Connect to this machine: the agent is the real one."""
    return connecting(at, f'{IN}\nfor last; do :; done\nexec sh -c "$last"', *words)


class Jupyter(BaseHTTPRequestHandler):
    """Answers to its token, whatever it is."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def served(context: Any = None) -> Iterator[int]:
    """Run a web server on loopback; give its port."""
    with HTTPServer(("127.0.0.1", 0), Jupyter) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def ended(at: Path, patch: pytest.MonkeyPatch) -> str:
    """Jupyter is stopped on the host while the tunnel stands."""
    with served() as port:
        patch.setattr(ssh_module, "free_port", lambda wanted: wanted)
        script = far({"ok": True, **SERVER, "port": port}, end=f'sleep 0.1; echo \'{MARK}{{"event": "gone"}}\'; cat')
        return connecting(at, script)


def no_answer(at: Path, patch: pytest.MonkeyPatch, *more: str) -> str:
    patch.setattr(session, "ANSWER_SECONDS", 0.1)
    return connecting(at, far({"ok": True, **SERVER, "port": free_port()}, *more))


def unforwarded(at: Path, patch: pytest.MonkeyPatch) -> str:
    """ssh does not get the port, which was free a moment ago."""
    patch.setattr(ssh_module, "free_port", lambda wanted: wanted)
    answer = {"ok": True, **SERVER}
    return connecting(at, far(answer), forward="echo 'Port forwarding failed.' >&2; exit 255")


def installing_there(at: Path, patch: pytest.MonkeyPatch, *answers: Any) -> str:
    patch.setattr(sending, "pack_program", lambda: ("", "0" * 64))
    return connecting(at, far(*answers), "--install")


def late(at: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(ssh_module, "OP_SECONDS", {"serve": 0.1})
    return connecting(at, far())


def without_ssh(at: Path, patch: pytest.MonkeyPatch) -> str:
    program(at / "apt-get", "")
    patch.setenv("PATH", str(at))
    return typed(connect, "me@gpubox")


def refused(act: Callable[[], object], *own: str) -> str:
    """Return what is said here of what the agent refuses there."""

    def here() -> None:
        try:
            act()
        except agent.Refusal as found:
            message = {"error": found.what.rstrip(), "kind": found.kind}
            raise ssh_module.refusal(message, ssh_module.Ssh("me@box", own=own), None, "STOP") from None

    return told(here)


def silent(patch: pytest.MonkeyPatch) -> None:
    """A Jupyter that hangs."""
    living = [{"pid": os.getpid(), "port": 8888, "name": "cpu-0123456789ab"}]
    patch.setattr(agent, "living_servers", lambda home: living)
    patch.setattr(agent, "find_server", lambda *_: None)
    patch.setattr(agent, "send", print)
    patch.setattr(agent, "SILENT_SECONDS", 0.0)
    agent.await_silent(Path("/h"), None)


def at_once(at: Path) -> None:
    """A Jupyter that ends as soon as it starts."""
    (at / "log").write_text("ImportError: no numpy\n")
    with subprocess.Popen(["true"]) as child:
        child.wait()
    agent.await_server(at, "cpu", child.pid, at / "log")


def never(at: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(agent, "START_SECONDS", 0.0)
    agent.await_server(at, "cpu", None)


def cluster(at: Path, patch: pytest.MonkeyPatch, **programs: str) -> Path:
    """A login node with these programs; return the home there."""
    for name, script in programs.items():
        program(at / "bin" / name, script)
    patch.setenv("PATH", f"{at / 'bin'}:/bin" if programs else str(at))
    patch.setattr(agent, "send", print)
    patch.setattr(agent, "START_SECONDS", -1.0)
    return home_with(at / "h")


def submitted(at: Path, patch: pytest.MonkeyPatch, job: str = "", **programs: str) -> None:
    home = cluster(at, patch, scontrol="exit 1", sacct="exit 1", **programs)
    (home / "logs").mkdir()
    (home / "logs" / "slurm-7.log").write_text("no such module\n")
    agent.submit({"home": str(home), "script": "#!/bin/sh\n", "job": job or None})


def impatient(at: Path, patch: pytest.MonkeyPatch) -> None:
    """A Slurm whose controller does not answer."""
    cluster(at, patch, squeue="exec sleep 9")
    run = subprocess.run
    patch.setattr(subprocess, "run", lambda argv, **how: run(argv, **{**how, "timeout": 0.05}))
    agent.own_queue()


def stopped(at: Path, patch: pytest.MonkeyPatch) -> None:
    cluster(at, patch, systemctl="echo Failed to connect to bus; exit 1")
    agent.control_service({"kind": "systemd"}, "stop")


def rivals(patch: pytest.MonkeyPatch) -> str:
    """Two programs have a port, one at each of localhost's addresses."""
    two = Listener("127.0.0.1", 8888, 1), Listener("::1", 8888, 2)
    patch.setattr(examination, "rivals", lambda port: two)
    patch.setattr(examination, "free_port", lambda first: first)
    return typed(doctor, "http://localhost:8888/?token=x")


def encrypted(at: Path) -> str:
    with served(certified(at)[0]) as port:
        return typed(doctor, f"http://localhost:{port}/?token=x")


def killed(patch: pytest.MonkeyPatch) -> str:
    """A kernel that answered, and ends."""

    def end(*_: Any) -> None:
        raise colab_page.KernelEnded(True)

    patch.setattr(examination, "open_transport", end)
    found = examination.Examination(colab_page.parse_url("http://localhost:8888/?token=x", 1), print)
    with pytest.raises(cures.Fault) as caught:
        found.run_cell("direct")
    return f"{caught.value.what} | {caught.value.hint}"


QUEUE = "echo '7|7|RUNNING|node1|None|N/A|N/A|colab-local'"
CONNECT = "python3 scripts/connect.py {option}--ssh {at}/ssh me@gpubox"
PLAIN = "{at}/ssh me@gpubox"
# What is done in a folder, `at`; a part of the error, and the whole hint.
SAID: list[Row] = [
    (
        lambda at, _: real(at),
        "no colab-local environment on gpubox (looked in {at}/user",
        CONNECT.replace("{option}", "--install "),
    ),
    (
        lambda at, _: typed(connect, "--ssh", at / "no", "me@gpubox"),
        "{at}/no can't be run (No such file or directory), and --ssh names it",
        "python3 scripts/connect.py me@gpubox",
    ),
    (
        lambda at, _: connecting(
            at,
            "echo '@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @' >&2\n"
            "echo 'Offending ED25519 key in /home/a b/.ssh/known_hosts:5' >&2; exit 255",
        ),
        "gpubox shows another host key than before",
        "sed -i.old 5d '/home/a b/.ssh/known_hosts'"
        "   # forgets the old key, if it was installed again: ask whoever runs it",
    ),
    (without_ssh, "no program ssh on this machine", "sudo apt-get install openssh-client"),
    (
        lambda at, _: connecting(
            at, "echo 'ssh: Could not resolve hostname gpubox: Name or service not known' >&2; exit 255"
        ),
        "no machine is known by the name gpubox",
        PLAIN + " true   # is the spelling right, and ~/.ssh/config? Is a VPN needed?",
    ),
    (
        lambda at, _: connecting(at, f"{IN}\necho 'This account is currently not available.'; exit 1"),
        "gpubox lets you log in and runs no programs for you; it said: This account",
        "ask whoever runs it for a shell",
    ),
    (
        lambda at, _: connecting(at, f"{IN}\nexit 254"),
        "gpubox lets nobody in just now (it has a file /etc/nologin)",
        "try again later",
    ),
    (
        lambda at, _: connecting(at, far("exit 3")),
        "our program ended on gpubox",
        CONNECT.replace("{option}", "--status "),
    ),
    (
        lambda at, _: connecting(at, far("echo 'client_loop: send disconnect: Broken pipe' >&2; exit 255")),
        "the line to me@gpubox dropped while connecting (",
        PLAIN + " true",
    ),
    (late, "gpubox does not answer any more (asked to serve, waited 0 s)", PLAIN + " true"),
    (
        unforwarded,
        "ssh could not open port 8888 on this machine (Port forwarding failed.)",
        CONNECT.replace("{option}", "--port 8889 "),
    ),
    (
        no_answer,
        "Jupyter on gpubox does not answer through the tunnel (",
        CONNECT.replace("{option}", "--stop ") + "   # and try again",
    ),
    (
        lambda at, _: connecting(
            at, far({"ok": True, **SERVER, "port": free_port()}, end=f'echo \'{MARK}{{"event": "gone"}}\'; cat')
        ),
        "Jupyter on gpubox ended while connecting",
        "type the same line again",
    ),
    (ended, "Jupyter on gpubox has ended", CONNECT.replace("{option}", "") + "   # starts it again"),
    (
        lambda at, patch: installing_there(
            at, patch, {"ok": True, "there": True}, {"ok": True, "code": 3, "error": "too old", "hint": "buy one"}
        ),
        "on gpubox: too old",
        "on gpubox: buy one",
    ),
    (
        lambda at, patch: installing_there(at, patch, {"ok": False, "error": "the disk is gone", "kind": ""}),
        "the disk is gone",
        CONNECT.replace("{option}", "--status "),
    ),
    (
        lambda at, _: told(lambda: installing.begin(at, {"options": ["a\nb"]}, is_alive)),
        "an option holds a line break",
        "type the line again without it",
    ),
    (
        lambda _, patch: refused(lambda: silent(patch)),
        " runs and does not answer",
        "STOP   # ends it, kernels included",
    ),
    (
        lambda at, _: refused(lambda: at_once(at)),
        "ImportError: no numpy",
        "ssh me@box 'tail -n 40 ~/.local/share/colab-local/logs/jupyter-*.log'",
    ),
    (
        lambda at, patch: refused(lambda: never(at, patch), "--home", "/data/my cl", "--ssh", "/a/ssh"),
        "Jupyter did not answer within 0 s",
        """ssh me@box 'tail -n 40 '"'"'/data/my cl'"'"'/logs/jupyter-*.log'""",
    ),
    (
        lambda at, patch: refused(lambda: never(at, patch)),
        "Jupyter did not answer within 0 s (log: none)",
        "ssh me@box 'tail -n 40 ~/.local/share/colab-local/logs/jupyter-*.log'",
    ),
    (
        lambda at, patch: refused(lambda: stopped(at, patch)),
        "could not stop the service (systemctl --user stop colab-local.service): Failed to connect to bus",
        "ssh me@box 'tail -n 40 ~/.local/share/colab-local/logs/jupyter-*.log'",
    ),
    (lambda at, patch: refused(lambda: cluster(at, patch) and agent.own_queue()), "no Slurm on ", "ssh me@box sinfo"),
    (
        lambda at, patch: refused(lambda: impatient(at, patch)),
        "squeue did not answer within 60 s",
        "ssh me@box sinfo",
    ),
    (
        lambda at, patch: refused(
            lambda: submitted(at, patch, squeue="exit 0", sbatch="echo 'sbatch: error: invalid account' >&2; exit 1")
        ),
        "sbatch: invalid account",
        "ssh me@box 'sacctmgr -nP show associations user=$USER format=account,partition,qos'",
    ),
    (
        lambda at, patch: refused(lambda: submitted(at, patch, "7", squeue="exit 0")),
        "Slurm job 7 has ended: it is no longer known to Slurm",
        "ssh me@box squeue --me",
    ),
    (
        lambda at, patch: refused(lambda: submitted(at, patch, squeue=QUEUE)),
        "Slurm job 7 runs on node1, but Jupyter does not start",
        "ssh me@box squeue --me",
    ),
    (
        lambda at, patch: refused(lambda: submitted(at, patch, squeue="exit 0", sbatch="echo ok")),
        "sbatch printed no job's number ('ok')",
        "ssh me@box sinfo",
    ),
    (
        lambda at, patch: refused(lambda: submitted(at, patch, squeue="exit 0", sbatch="echo 7")),
        "Slurm job 7 ended before Jupyter ran: it is no longer known to Slurm\n  no such module",
        "ssh me@box squeue --me",
    ),
    (lambda *_: typed(doctor, "ftp://x"), "", "python3 scripts/doctor.py --help"),
    (
        lambda _, patch: rivals(patch),
        "two programs listen on port 8888 of localhost, 127.0.0.1:8888 and [::1]:8888",
        "python3 bootstrap.py --port 8889   # prints the command that starts Jupyter there",
    ),
    (
        lambda *_: typed(doctor, f"http://localhost:{free_port()}/?token=x"),
        "nothing listens on localhost:",
        cures.CURES["nothing-listens"].cure.replace("`", ""),
    ),
    (
        lambda at, _: encrypted(at),
        " speaks https; Colab needs http",
        "if it is Jupyter, start it without --certfile; on localhost nothing leaves the machine",
    ),
    (
        lambda _, patch: killed(patch),
        "the kernel's process ended: it was killed",
        "free -m   # there; Jupyter's last lines may say more",
    ),
]


@each(SAID)
def test_what_is_said(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(row, tmp_path, monkeypatch)
