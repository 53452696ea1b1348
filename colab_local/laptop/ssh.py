"""One ssh connection to a host: its command, the agent at its far end, forwards, and what went wrong in words."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Callable, Deque, Iterable, NamedTuple, Sequence

from colab_local.base import documents
from colab_local.base.errors import EXIT_FAILED, EXIT_NETWORK, EXIT_USAGE, Failure
from colab_local.base.network import answers, free_port
from colab_local.base.programs import without_ssh
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import DEFAULT_ENVIRONMENT, REPOSITORY, read_index
from colab_local.install.servers import Json
from colab_local.laptop import agent
from colab_local.laptop.far import program_text
from colab_local.laptop.stages import SAID, Progress

# What the agent sends: agent.py. Texts end on the user's terminal, through Screen; numbers are dialled.
_SERVER = {
    "pid": int,
    "port": int,
    "token": str,
    "base_url": r"/[^\s?#]*",  # what follows localhost:PORT in the address: another word could change the port
    "name": str,
    "env": str,
    "host": str,
    "kernels": int,
    "notebook_dir": str,
    "current": bool,
    "alone?": bool,
}
_JOB = {"job": r"\w[\w.-]*", "state": str, "node": str}
MESSAGE_SHAPE = {"note?": str, "ok?": bool, "event?": str, "hello?": str, "ready?": bool, "trying?": str}
REFUSAL_SHAPE = {"error": str, "kind?": str}
ANSWER_SHAPES: dict[str, Any] = {
    "serve": {**_SERVER, "started": bool},
    "status": {"running": bool, "host": str},
    "stop": {"stopped": bool, "host": str},
    "desktops": {"places": {"*": bool}},
    "submit": {**_JOB, "pid": int},
    "job": {"job": None},
    "ended": {"how": str},
    "cancel": {"stopped": bool, "host": str},
}
ANSWER_SECONDS = 60.0
# From the log-in to our program's first word, slow start-up files of a cluster included. Typing a password may take
# as long as it takes.
HELLO_SECONDS = 45.0
# For each answer or note of the agent. It waits by itself for a cold start of Jupyter, up to 240 s (agent.py).
OP_SECONDS = {"serve": 300.0, "stop": 120.0, "submit": 300.0, "program": 600.0, "install": 3600.0}
LONGEST_LINE = 1 << 20  # characters of one answer
# What a host says that lets people in and runs no program of ours: (its words, what is said of it, the hint). The
# words are of util-linux, OpenSSH (session.c, auth-passwd.c), bash and zsh.
AFTER_LOGIN = (
    (
        r"account is (currently )?not available|nologin|no shell|sftp connections only",
        "lets you log in and runs no programs for you",
        "ask whoever runs it for a shell",
    ),
    (
        r"(?m): restricted(: |$)",
        "gives you a restricted shell, which runs no program of ours",
        "ask for a full shell there",
    ),
    (
        r"password (change required|has expired|must be changed)",
        "wants a new password first",
        "{typed}   # asks for it",
    ),
    (
        r"channel \d+: open failed|request failed on channel 0",
        "opens no session for you (MaxSessions in its sshd_config, or an option in authorized_keys)",
        "ask whoever runs it for a session",
    ),
)
# How ssh ends before the log-in: (its words: ssh.c, sshconnect.c, readconf.c, packet.c; what is said; hint; code).
BEFORE_LOGIN = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{host} shows another host key than before: it was installed again, or someone stands in between",
        "sed -i.old {offending}   # forgets the old key, if it was installed again: ask whoever runs it",
        EXIT_FAILED,
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "the host key of {host} is not known here",
        "{typed} true   # compare the key, and accept it once",
        EXIT_FAILED,
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "{host} does not let you in ({line})",
        "{typed} -v true   # shows which key or password it wants",
        EXIT_FAILED,
    ),
    (
        r"Could not resolve hostname|Name or service not known|nodename nor servname",
        "no machine is known by the name {host}",
        "{again}",
        EXIT_NETWORK,
    ),
    (
        r"Connection refused",
        "{host} is there, but no ssh server listens ({line})",
        "start an ssh server there (Debian's package is openssh-server); or is the port (-p) wrong?",
        EXIT_NETWORK,
    ),
    (
        r"UNKNOWN port 65535 timed out",
        "the jump host or ProxyCommand on the way to {host} does not answer ({line})",
        "{typed} -v true   # shows which",
        EXIT_NETWORK,
    ),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        "{host} can't be reached ({line})",
        "is it on, and is this machine on its network (VPN)? A jump host is given with -J",
        EXIT_NETWORK,
    ),
    (
        r"Unable to negotiate|no matching \w+",
        "this ssh and {host}'s have nothing in common to encrypt with ({line})",
        "{typed} -v true   # is one very old, or does a line of ~/.ssh/config choose?",
        EXIT_FAILED,
    ),
    (
        r"line \d+: |Bad owner or permissions|no argument after keyword|Can't open user config|unknown option"
        r"|usage: ssh|bad configuration option",
        "ssh does not take these options ({line})",
        "{typed} true   # tries them alone",
        EXIT_USAGE,
    ),
    (
        r"UNKNOWN port 65535",
        "the jump host or ProxyCommand on the way to {host} failed ({line})",
        "{typed} -v true   # shows which",
        EXIT_NETWORK,
    ),
    (
        r"kex_exchange_identification: |Not allowed at this time",
        "{host} took the line and closed it at once ({line}): too many log-ins at a time (MaxStartups), or this "
        "address is shut out for a while (PerSourcePenalties, fail2ban)",
        "{typed} true   # in some minutes; still so? Ask whoever runs it",
        EXIT_NETWORK,
    ),
    (
        r"Connection (closed|reset) by \S+ port \d+",
        "{host} closed the line instead of letting you in; {quoted}",
        "{typed} -v true   # if it says no more, its log does: journalctl -u ssh",
        EXIT_NETWORK,
    ),
)
LOST = re.compile(  # packet.c, clientloop.c
    r"closed by remote host|Connection reset|Broken pipe|Timeout, server|Connection to \S+ timed out|is unreachable"
)
NOLOGIN = 254  # session.c: the exit status of a session while there is a file /etc/nologin
AUTHENTICATED = re.compile(r"Authenticated to \S+ \((\[|via proxy)")  # sshconnect2.c, LogLevel VERBOSE
CONNECT_SECONDS = 20
JUMP_SECONDS = 120  # somebody may have to type a password of the jump host; its sshd gives them 120 s
# Finds a Python >= 3.8 on the host, which says that it is ready and takes the agent as the first line of stdin. Not
# before: what a start-up file starts instead (exec zsh) would run that text as commands. Within '...' it means the
# same to sh, bash, zsh, fish and csh; the path of sh needs no PATH, and no alias has its name. Python is isolated
# (-I), and libraries of other software are out of its way: both are set in start-up files, and end it before it can
# say so. So do a folder that is gone, and a PATH without the system's programs. Which Python is tried is said before:
# one that hangs is no fault of the start-up files.
FAR_COMMAND = (
    """/bin/sh -c 'cd 2>/dev/null || cd /; """
    """command -v env >/dev/null || PATH="${PATH-}:/usr/local/bin:/usr/bin:/bin"; export PATH; """
    """COLAB_LOCAL_LIBRARIES=${LD_LIBRARY_PATH-}; export COLAB_LOCAL_LIBRARIES; unset LD_LIBRARY_PATH LD_PRELOAD; """
    """for p in python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 """
    """"${COLAB_LOCAL_HOME:-$HOME/.local/share/colab-local}"/current/*/bin/python; do """
    f"""echo; echo "{agent.MARK}{{\\"trying\\": \\"$p\\"}}"; """
    """if "$p" -I -c "import sys; sys.exit(sys.version_info < (3, 8))" >/dev/null 2>&1 </dev/null; then """
    """exec "$p" -I -c "import json, sys; print(); """
    """print(sys.argv[1] + json.dumps(dict(ready=True)), flush=True); """
    f"""exec(json.loads(sys.stdin.readline() or sys.exit(sys.argv[2])))" "{agent.MARK}" "its input is closed"; """
    """fi; done; """
    """echo no Python 3.8 or newer >&2; exit 127'"""
)


class Dropped(Exception):
    """The line was there and is lost: worth another try. The text says how it ended."""


class Ssh(NamedTuple):
    """How to reach one host: destination and ssh's own options, as the user gave them.

    own: connect.py's options that say which ssh and which installation there are meant.
    """

    destination: str
    options: tuple[str, ...] = ()
    program: str = "ssh"
    own: tuple[str, ...] = ()


@functools.lru_cache(maxsize=None)
def version(program: str) -> tuple[int, int]:
    """Return the version of an OpenSSH, (0, 0) if it is none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([program, "-V"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
        found = re.search(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)", done.stderr + done.stdout)
        return (int(found.group(1)), int(found.group(2))) if found else (0, 0)
    return 0, 0


def knows_sessions(ssh: Ssh) -> bool:
    """Return whether this ssh has SessionType and its like: older ones end at an option that they don't know."""
    return version(ssh.program) >= (8, 7)


@functools.lru_cache(maxsize=None)
def configuration(ssh: Ssh) -> str:
    """Return what ssh makes of its configuration for this host (ssh -G), "" where it does not say or hangs.

    Where it hangs, so will the connection, which says in what.
    """
    if version(ssh.program) == (0, 0):
        return ""
    argv = [ssh.program, *ssh.options, "-G", "--", ssh.destination]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
        return "" if done.returncode else done.stdout.lower()
    return ""


def connect_timeout(shown: str) -> dict[str, str]:
    """Return our ConnectTimeout; none where the user has one. shown: what configuration() says."""
    if re.search(r"(?m)^connecttimeout \d", shown):
        return {}
    jumps = re.search(r"(?m)^proxy(jump|command) (?!none$)", shown)
    return {"ConnectTimeout": str(JUMP_SECONDS if jumps else CONNECT_SECONDS)}


def master_argv(ssh: Ssh, socket_path: str) -> list[str]:
    """Return the command of the one connection: it runs the agent, and forwards are added to it later.

    ssh takes the first value it hears of an option, so the user's come first. From the user's configuration
    only what would disturb is overruled: forwards to the same ports, a command or a terminal of its own, a session
    without a shell, without input or in the background, and silence on what went wrong.
    """
    ours = {
        "ServerAliveInterval": "10",  # a dead line is noticed within 30 s
        "ServerAliveCountMax": "3",
        **connect_timeout(configuration(ssh)),
        "ExitOnForwardFailure": "yes",
    }
    fixed = {
        "ControlMaster": "yes",
        "ControlPath": socket_path,
        "ControlPersist": "no",
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
        "ForwardX11": "no",
        "PermitLocalCommand": "no",
        "LogLevel": "DEBUG1",  # says when the log-in is over, why there was none, and what it waits for
        **(
            {"SessionType": "default", "StdinNull": "no", "ForkAfterAuthentication": "no"}
            if knows_sessions(ssh)
            else {}
        ),
    }
    return [
        ssh.program,
        *(word for name, value in fixed.items() for word in ("-o", name + "=" + value)),
        *ssh.options,
        *(word for name, value in ours.items() for word in ("-o", name + "=" + value)),
        "-T",
        "--",
        ssh.destination,
        FAR_COMMAND,
    ]


def control_argv(ssh: Ssh, socket_path: str, *order: str) -> list[str]:
    """Return the command that uses the open connection: ["-O", "forward", "-L", ...], ["-W", ...].

    Without the user's configuration: it did its work when the connection was made, and ssh would add the forwards
    that it names to ours.
    """
    return [ssh.program, "-F", os.devnull, "-o", "ControlPath=" + socket_path, *order, "--", ssh.destination]


def typed(ssh: Ssh, command: str = "") -> str:
    """Return the plain ssh command that the user could type."""
    return " ".join(shlex.quote(word) for word in [ssh.program, *ssh.options, ssh.destination]) + command


def connect_line(ssh: Ssh, option: str) -> str:
    """Return the command that runs this program for the same host, by the same of ssh's options."""
    words = " ".join(shlex.quote(word) for word in [*ssh.own, *ssh.options, ssh.destination])
    return f"python3 scripts/connect.py {option}{words}"


def words(lines: Iterable[str]) -> list[str]:
    """Return what was said, without what ssh adds at our LogLevel and without empty lines."""
    chatter = re.compile(r"Authenticated to |Transferred: sent|Bytes per second|Connection to \S+ closed\.?$")
    return [line.strip() for line in lines if line.strip() and not chatter.match(line.strip())]


def in_the_way(ssh: Ssh, heard: Iterable[str], status: int | None = None, python: str = "") -> Failure:
    """Return the failure of a host that lets the user in and then does not run our program.

    heard: what it printed before; status: the exit status of its session, None if that goes on and says nothing;
    python: the far Python that was being started.
    """
    host, said = ssh.destination.rpartition("@")[2], words(heard)
    quoted = f"; it said: {said[-1][:200]}" if said else ""
    text = "\n".join(said)
    files = "its start-up files (~/.bashrc, ~/.profile, ~/.ssh/rc ...) or a ForceCommand of its sshd"
    for pattern, what, hint in AFTER_LOGIN:
        if re.search(pattern, text, re.IGNORECASE):
            return Failure(f"{host} {what}{quoted}", hint.format(typed=typed(ssh)))
    if status == NOLOGIN:
        what = f"{host} lets nobody in just now (it has a file /etc/nologin){quoted}"
        return Failure(what, "try again later", EXIT_NETWORK)  # it may be about to start
    if status is None and python:
        return Failure(
            f"{host} let you in, and its Python ({python}) does not start our program (nothing came within "
            f"{HELLO_SECONDS:.0f} s){quoted}",
            typed(ssh, f" {shlex.quote(python)} -I -v -c 0")
            + "   # its last lines name what it waits for: a sitecustomize.py, a .pth file, a disk that is gone",
        )
    start = f"{host} let you in, and our program did not start there"
    if re.search(
        r"^(?!Pseudo-).*not a terminal|open terminal failed|must be run from a terminal|No tty", text, re.I | re.M
    ):
        what = f"{start} (a start-up file there starts a program that needs a terminal): {files} took the line"
    elif status is None:
        what = f"{start} (nothing came within {HELLO_SECONDS:.0f} s): {files} took the line"
    else:
        what = f"{start}: {files}, or its log-in shell, ended the session (exit status {status})"
        return Failure(
            what + quoted, typed(ssh, " 'echo ok'") + "   # has to say ok; if not, look there for exit, set -e, exec"
        )
    return Failure(
        what + quoted,
        typed(ssh, " true") + "   # has to end by itself; if not, look there for exec, tmux, screen or read",
    )


def explain_after_login(said: Sequence[str], ssh: Ssh, heard: Sequence[str], status: int | None) -> Failure:
    """Return what it means that the line ended when the user had been let in; the host's words are among ssh's.

    status: ssh's exit status, 255 for a line that was lost, else that of the far session.
    """
    host = ssh.destination.rpartition("@")[2]
    lost = next((line for line in reversed(said) if LOST.search(line)), "")
    if status == 255 and (lost or not said):
        return Failure(
            f"{host} let you in, and the line was lost at once ({lost or 'its sshd closed it'})",
            typed(ssh, " -v true") + "   # each time? Then its sshd forbids sessions, or can't start one",
            EXIT_NETWORK,
        )
    if "no Python 3.8 or newer" in said:
        return Failure(
            f"{host} has no Python 3.8 or newer on its PATH",
            typed(ssh, " -t sudo apt install python3") + "   # or as that machine installs programs",
        )
    return in_the_way(ssh, [*heard, *said], status)


def explain(
    said: Sequence[str], ssh: Ssh, heard: Sequence[str] = (), logged_in: bool = False, status: int | None = None
) -> Failure:
    """Return what ssh's last words mean for the user and what to type next.

    said: the lines it wrote to stderr. The texts are OpenSSH's (ssh.c, sshconnect.c, packet.c). heard: what the host
    printed before our program spoke; logged_in: the user was let in; status: ssh's exit status.
    """
    if logged_in:
        return explain_after_login(words(said), ssh, heard, status)
    said = words(said)
    host = ssh.destination.rpartition("@")[2]
    jumped = any("UNKNOWN port 65535" in line for line in said)  # the way there is another program's
    for pattern, what, hint, code in BEFORE_LOGIN:
        line = next((line for line in reversed(said) if re.search(pattern, line)), "")[:200]
        if line:
            hint = hint.replace("{offending}", offending(said))
            named = re.search(r"hostname (\S+?):|connect to host (\S+)|^(?:\S+@)?(\S+): Permission", line)
            name = next(filter(None, named.groups())) if named and jumped else host
            guess = "the account may be locked or expired, a file /etc/nologin there, or the log-in took too long"
            quoted = next((f"it said: {other[:200]}" for other in reversed(said) if line not in other), guess)
            given = {"host": name, "line": line, "typed": typed(ssh), "again": with_port(ssh), "quoted": quoted}
            return Failure(what.format(**given), hint.format(**given), code)
    last = said[-1][:200] if said else "ssh ended without a word"
    return Failure(f"the ssh connection to {host} ended ({last})", typed(ssh, " -v true"), EXIT_NETWORK)


def offending(said: Sequence[str]) -> str:
    """Return the line and the file of the host key that ssh refuses (sshconnect.c), as sed takes them.

    By its name it would not be found: that has the port in it, or is the address behind an alias.
    """
    found = re.search(r"(?m)^Offending .*key in (.+):(\d+)$", "\n".join(said))
    return f"{found.group(2)}d {shlex.quote(found.group(1))}" if found else "LINEd ~/.ssh/known_hosts"


def with_port(ssh: Ssh) -> str:
    """Return the command to type where no machine has this name: HOST:PORT is not a name to ssh."""
    found = re.fullmatch(r"((?:.*@)?)\[?([^][/]+?)\]?:(\d{1,5})", ssh.destination)
    if found and (":" not in found.group(2) or "[" in ssh.destination):
        return connect_line(ssh._replace(destination=found.group(1) + found.group(2)), f"-p {found.group(3)} ")
    return typed(ssh, " true") + "   # is the spelling right, and ~/.ssh/config? Is a VPN needed?"


def install_command(ssh: Ssh, env: str | None) -> str:
    """Return the command that brings the program to the host and installs there what the user asked for."""
    option = f" --env {shlex.quote(env)}" if env and env != DEFAULT_ENVIRONMENT else ""
    return connect_line(ssh, f"--install{option} ")


def is_offered(env: str | None) -> bool:
    """Return whether an environment can be installed by this name: the program that is sent there is this one."""
    with contextlib.suppress(Failure):  # lockfiles that can't be read offer nothing
        return env in read_index(REPOSITORY / "lockfiles")["environments"]
    return False


def refusal(message: Json, ssh: Ssh, env: str | None, stop: str) -> Failure:
    """Return the failure that the agent's answer stands for. stop: the command that stops Jupyter there."""
    wanted = env if is_offered(env) else None
    home = dict(zip(ssh.own[::2], ssh.own[1::2])).get("--home")
    logs = f"{shlex.quote(home) if home else '~/.local/share/colab-local'}/logs/jupyter-*.log"
    hints = {
        "absent": install_command(ssh, wanted),
        "absent-gpu": install_command(ssh, wanted or "gpu"),
        "env": install_command(ssh, wanted) if wanted else connect_line(ssh, "") + "   # the one installed last",
        "start": typed(ssh, " " + shlex.quote(f"tail -n 40 {logs}")),
        "silent": stop + "   # ends it, kernels included",
        "slurm": typed(ssh, " sinfo"),
        "account": typed(ssh, " 'sacctmgr -nP show associations user=$USER format=account,partition,qos'"),
        "job": typed(ssh, " squeue --me"),
        "disk": typed(ssh, " df -h"),
        "inodes": typed(ssh, " df -i"),
        "denied": typed(ssh, " 'id; mount'") + "   # for another folder there: --home DIR",
        "home": typed(ssh, " python3 colab-local/bootstrap.py --prefix DIR")
        + "   # DIR: on a shared disk; then here: --home DIR",
    }
    return Failure(message["error"], hints.get(message.get("kind", ""), connect_line(ssh, "--status ")))


class Connection:
    """One ssh connection to one host: the agent's requests and answers, and forwards, all within one login.

    ssh: how to reach it; folder: a private folder for ssh's control socket. Use as a context manager.
    """

    def __init__(self, ssh: Ssh, folder: str, screen: Screen) -> None:
        self.ssh, self.screen = ssh, screen
        self.socket_path = str(Path(tempfile.mkdtemp(dir=folder)) / "s")  # short: sockets' names are limited
        self.said: deque[str] = Deque(maxlen=50)
        self.heard: deque[str] = Deque(maxlen=50)  # what the host printed before our program spoke
        self.logged_in: float = 0.0  # when, by time.monotonic()
        self.progress = Progress()  # until then
        self._python = ""  # the far one that was tried last
        self.far_end = "127.0.0.1"  # the host's own address, as forwards name it
        self.forwards: list[str] = []
        self.host = ssh.destination.rpartition("@")[2]  # as the user calls it
        self._own_name = ""  # as it calls itself
        self.job: str | None = None  # the Slurm job that the agent's notes spoke of
        self._messages: queue.Queue[Json | None] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Connection:
        # ssh ignores Ctrl-C if it was born so: this program closes it in order, after a word with the agent.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process = subprocess.Popen(
                master_argv(self.ssh, self.socket_path),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as problem:
            if self.ssh.program == "ssh":
                raise without_ssh("ssh") from None
            what = f"{self.ssh.program} can't be run ({problem.strerror}), and --ssh names it"
            own = tuple(word for word in self.ssh.own if word not in ("--ssh", self.ssh.program))
            raise Failure(what, connect_line(self.ssh._replace(own=own), "")) from None
        finally:
            signal.signal(signal.SIGINT, previous)
        reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        listener.start()
        reader.start()
        try:
            try:
                self._await_word("ready")
                self._send(program_text("colab_local.laptop.agent"))
                hello = self._await_word("hello")
            except Dropped:
                listener.join(5)
                status = self._exit_status()
                raise explain(self.said, self.ssh, self.heard, bool(self.logged_in), status) from None
            self._own_name = str(hello.get("hello") or "")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _await_word(self, word: str) -> Json:
        """Wait until our program says this there: passwords and host keys are between ssh and the user's terminal.

        Raises Failure when that takes too long after the log-in, Dropped if the line ends.
        """
        since = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                message = self._next_message(0.5)
                if word in message:  # else a start-up file has words like ours
                    return message
                if "trying" in message and message["trying"] != self._python:
                    self._python, since = message["trying"], time.monotonic()
            if self.logged_in:
                if time.monotonic() - max(self.logged_in, since) > HELLO_SECONDS:
                    raise in_the_way(self.ssh, [*self.heard, *self.said], python=self._python)
                continue
            late = self.progress.overdue()
            if late and version(self.ssh.program) != (0, 0):  # of another program we know no words
                what, hint = (part.format(host=self.host, typed=typed(self.ssh)) for part in late)
                raise Failure(what, hint, EXIT_NETWORK)

    def _exit_status(self) -> int | None:
        """Return ssh's exit status after its line ended, None if it does not end."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(5)
        return None

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in iter(lambda: process.stdout.readline(LONGEST_LINE), ""):  # type: ignore[union-attr]
            if not line.startswith(agent.MARK):  # what login scripts print is not ours
                self.heard.append(line.rstrip()[:500])
                continue
            with contextlib.suppress(ValueError):
                message = documents.parse(line[len(agent.MARK) :], "the answer", MESSAGE_SHAPE)
                self._messages.put(message)
        self._messages.put(None)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(SAID):
                self.progress.hear(line.rstrip())
            else:
                self.said.append(line.rstrip())
            if AUTHENTICATED.match(line):
                self.logged_in = time.monotonic()
            if self.screen.verbose:
                self.screen.report("ssh: " + line.rstrip())

    def _send(self, message: Any) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as problem:
            raise Dropped(str(problem)) from None

    def _next_message(self, timeout: float | None) -> Json:
        """Return the agent's next message; queue.Empty after `timeout` seconds, Dropped if the line has ended."""
        message = self._messages.get(timeout=timeout)
        if message is None:
            self._messages.put(None)
            said = next(iter(reversed(words(self.said))), "the line ended")
            if self._own_name and self._exit_status() not in (255, None):  # the line was there to its end
                raise Failure(f"our program ended on {self.host} ({said})", connect_line(self.ssh, "--status "))
            raise Dropped(said)
        return message

    def named(self, text: str) -> str:
        """Return a text of the agent's with the host's name as the user typed it, not as the host calls itself."""
        if not self._own_name:
            return text
        own = rf"(?<![\w./-]){re.escape(self._own_name)}(?![\w/-]|\.\w)"
        return re.sub(own, self.host.replace("\\", ""), text)

    def ask(
        self,
        op: str,
        timeout: float | None = None,
        on_said: Callable[[Json], None] | None = None,
        **request: Any,
    ) -> Json:
        """Have the agent do something and return its answer, whose "ok" may be false. Shows its notes meanwhile.

        timeout: seconds for each note and the answer; None for what this request may take; on_said: takes what a
        program says there. Raises Failure when the time is over, or when the answer is not one to this request;
        Dropped if the line ends first.
        """
        self._send(dict(request, op=op))
        wait = timeout or OP_SECONDS.get(op, ANSWER_SECONDS)
        host = self.ssh.destination.rpartition("@")[2]
        while True:
            try:
                message = self._next_message(wait)
            except queue.Empty:
                if op == "submit":  # a job may wait in the queue for days; a dead line is noticed by ssh itself
                    continue
                what = f"{host} does not answer any more (asked to {op}, waited {wait:.0f} s)"
                raise Failure(what, typed(self.ssh, " true"), EXIT_NETWORK) from None
            if "note" in message:
                self.screen.report(self.named(str(message["note"])))
                self.job = message.get("job", self.job)
            elif "said" in message and on_said:
                on_said(message)
            elif "ok" in message:
                shape = ANSWER_SHAPES.get(op) if message["ok"] else REFUSAL_SHAPE
                if op == "status" and message.get("running") is True:
                    shape = _SERVER
                if op == "job" and message.get("job") is not None:
                    shape = {"job": _JOB}
                wrong = documents.mismatch(message, shape, "its answer")
                if wrong:
                    what = f"{host} answers in a way that is not understood ({wrong} is missing or malformed)"
                    raise Failure(what, "git pull   # there and here: both need the same version of colab-local")
                texts: Json = {name: self.named(str(message[name])) for name in ("error", "host") if name in message}
                return {**message, **texts}

    def event(self, timeout: float) -> str | None:
        """Return the event the agent reports within so many seconds, None if none; Dropped if the line ends."""
        with contextlib.suppress(queue.Empty):
            event: str | None = self._next_message(timeout).get("event")
            return event
        return None

    def _forward(self, address: str, local: int, remote: int | str) -> str:
        """Have ssh forward a port at one of this machine's addresses; return why it can't, "" if it does."""
        there = f"{self.far_end}:{remote}" if isinstance(remote, int) else remote
        spec = f"{address}:{local}:{there}"
        problem = self._control("forward", "-L", spec)
        if not problem:
            self.forwards.append(spec)
        return problem

    def _control(self, *order: str) -> str:
        """Give the open connection an order; return why it can't carry it out, "" if it does."""
        argv = control_argv(self.ssh, self.socket_path, "-O", *order)
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        except subprocess.TimeoutExpired:
            return "ssh does not answer"
        said = done.stderr.strip().splitlines() or ["ssh said nothing"]
        return said[-1] if done.returncode else ""

    def is_forbidden(self) -> bool:
        """Return whether the host's sshd refused to open a forward (channels.c)."""
        return any("administratively prohibited" in line for line in self.said)

    def has_shut_socket(self) -> bool:
        """Return whether the host's sshd did not open a Unix socket: the same words where it may not (9.2, seen)."""
        return any("open failed: connect failed: open failed" in line for line in tuple(self.said))

    def try_other_name(self) -> bool:
        """Drop the forwards and name the host's own end otherwise from now on; False if that was done before.

        sshd's PermitOpen compares the text of the address: `PermitOpen localhost:8888` does not allow 127.0.0.1.
        """
        if self.far_end == "localhost":
            return False
        for spec in self.forwards:
            self._control("cancel", "-L", spec)
        self.forwards, self.far_end = [], "localhost"
        self.said.clear()
        return True

    def _forward_localhost(self, local: int, remote: int | str) -> str:
        """Have ssh forward localhost:local; return why it can't, "" if it does.

        Each address by itself: of the name "localhost" ssh is content with one. The other could be a stranger's, and
        get the browser's requests with the token. Where there is no IPv6, nobody has ::1.
        """
        problem = self._forward("127.0.0.1", local, remote)
        if problem:
            return problem
        problem = self._forward("[::1]", local, remote)
        return problem if answers("::1", local) else ""

    def forward(self, remote: int | str, preferred: int, exact: bool = False) -> int:
        """Forward a port of this machine to the host's loopback and return it.

        remote: the host's port, or the path of a Unix socket there; preferred: this machine's, taken if free; exact:
        no other will do.
        """
        problem = ""
        for _ in range(5):  # another program may take the port between the look and the deed
            local = preferred if exact else free_port(preferred)
            problem = self._forward_localhost(local, remote)
            if not problem:
                return local
            if self._process is None or self._process.poll() is not None:
                raise Dropped(problem)
        raise Failure(
            f"ssh could not open port {preferred} on this machine ({problem})",
            connect_line(self.ssh, f"--port {free_port(preferred + 1)} "),
        )

    def close(self) -> None:
        """Close the connection with its forwards."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()  # the agent ends, and with it ssh
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:  # a dead line, or a forward with an open connection holds it
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._process = None
