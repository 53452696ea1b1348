#!/usr/bin/env python3
"""Reach the Jupyter of another machine from Colab's page on this one, in one command.

    python3 scripts/connect.py me@gpubox                    Jupyter there, its URL here
    python3 scripts/connect.py --open gpubox                gpubox from ~/.ssh/config; opens Colab too
    python3 scripts/connect.py -J me@gate -p 2222 me@gpubox through a jump host, any of ssh's options
    python3 scripts/connect.py --desktop me@gpubox          its desktop too (VNC at localhost:55901)
    python3 scripts/connect.py --slurm --sbatch="--gres=gpu:1" me@login    on a compute node behind me@login
    python3 scripts/connect.py --stop me@gpubox             stop Jupyter there

Runs on the laptop: Linux, macOS or WSL, Python >= 3.8 (standard library), the system's ssh. The other machine
needs what bootstrap.py put there. One ssh connection, one login: it looks for a running Jupyter, starts one if
there is none (it outlives the connection), forwards a free port of this machine to it, waits until Jupyter
answers through it and prints the URL for Colab. A lost line is opened again; kernels keep their variables.
Ctrl-C closes the line and says what still runs.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import webbrowser
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bootstrap
from bootstrap import Failure
from scripts import connect_agent

COLAB = "https://colab.research.google.com/"
DESKTOP_PORTS = (5900, 5901)  # VNC displays :0 (the screen) and :1 (virtual), where bootstrap.py made no others
RDP_PORT = 3389
ANSWER_SECONDS = 60.0
LONGEST_PAUSE_S = 30.0
SBATCH = Path(__file__).resolve().parent / "slurm" / "colab-local.sbatch"
Json = Dict[str, Any]

# Finds a Python >= 3.8 on the host and hands it the agent, which comes as the first line of stdin. Within '...'
# it means the same to sh, bash, zsh, fish and csh.
FAR_COMMAND = (
    """exec sh -c 'for p in python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 """
    """"${COLAB_LOCAL_HOME:-$HOME/.local/share/colab-local}"/current/*/bin/python; do """
    """if "$p" -c "import sys; sys.exit(sys.version_info < (3, 8))" 2>/dev/null </dev/null; then """
    """exec "$p" -c "import json, sys; exec(json.loads(sys.stdin.readline()))"; fi; done; """
    """echo no Python 3.8 or newer >&2; exit 127'"""
)


class Dropped(Exception):
    """The line was there and is lost: worth another try. The text says how it ended."""


class Ssh(NamedTuple):
    """How to reach one host: destination and ssh's own options, as the user gave them."""

    destination: str
    options: Tuple[str, ...] = ()
    program: str = "ssh"


# ---------------------------------------------------------------------------------------------------------
# Pure functions


def master_argv(ssh: Ssh, socket_path: str) -> List[str]:
    """Return the command of the one connection: it runs the agent, and forwards are added to it later.

    ssh takes the first value it hears of an option, so the user's come first. From the user's configuration
    only what would disturb is overruled: forwards to the same ports, a command or a terminal of its own.
    """
    ours = {
        "ServerAliveInterval": "10",  # a dead line is noticed within 30 s
        "ServerAliveCountMax": "3",
        "ConnectTimeout": "20",
        "ExitOnForwardFailure": "yes",
    }
    fixed = {
        "ControlMaster": "yes",
        "ControlPath": socket_path,
        "ControlPersist": "no",
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
        "ForwardX11": "no",
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


def control_argv(ssh: Ssh, socket_path: str, *order: str) -> List[str]:
    """Return the command that uses the open connection: ["-O", "forward", "-L", ...], ["-W", ...].

    Without the user's configuration: it did its work when the connection was made, and ssh would add the forwards
    that it names to ours.
    """
    return [ssh.program, "-F", os.devnull, "-o", "ControlPath=" + socket_path, *order, "--", ssh.destination]


def colab_url(local: int, server: Json) -> str:
    """Return what the user pastes into Colab."""
    token = urllib.parse.quote(server["token"], safe="")  # a user's own may hold anything
    path = urllib.parse.quote(server["base_url"], safe="/%")  # the host's word: nothing that a shell or @ could turn
    return "http://localhost:{}{}?token={}".format(local, path, token)


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each new try: 1, 2, 4 ... 30, 30, ..."""
    pause = 1.0
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE_S)


def typed(ssh: Ssh, command: str = "") -> str:
    """Return the plain ssh command that the user could type."""
    return " ".join(shlex.quote(word) for word in [ssh.program, *ssh.options, ssh.destination]) + command


def connect_line(ssh: Ssh, option: str) -> str:
    """Return the command that runs this program for the same host, by the same of ssh's options."""
    words = " ".join(shlex.quote(word) for word in [*ssh.options, ssh.destination])
    return "python3 scripts/connect.py {}{}".format(option, words)


def explain(said: Sequence[str], ssh: Ssh) -> Failure:
    """Return what ssh's last words mean for the user and what to type next.

    said: the lines it wrote to stderr. The texts are OpenSSH's (ssh.c, sshconnect.c, packet.c).
    """
    text = "\n".join(said)
    host = ssh.destination.rpartition("@")[2]
    last = next((line.strip() for line in reversed(said) if line.strip()), "ssh ended without a word")
    network, failed = bootstrap.EXIT_NETWORK, bootstrap.EXIT_FAILED
    table: List[Tuple[str, str, str, int]] = [
        (
            r"REMOTE HOST IDENTIFICATION HAS CHANGED",
            "{host} shows another host key than before: it was set up anew, or someone stands in between",
            "ask whoever runs it; if it was set up anew: ssh-keygen -R {host}",
            failed,
        ),
        (
            r"Host key verification failed|No .* host key is known",
            "the host key of {host} is not known here",
            "compare and accept it once: {typed} true",
            failed,
        ),
        (
            r"Permission denied|Too many authentication failures|No more authentication methods",
            "{host} does not let you in ({last})",
            "find out which key or password it wants: {typed} -v true",
            failed,
        ),
        (
            r"Could not resolve hostname|Name or service not known|nodename nor servname",
            "no machine is known by the name {host}",
            "look at the spelling, at ~/.ssh/config, or whether a VPN is needed: {typed} true",
            network,
        ),
        (
            r"Connection refused",
            "{host} is there, but no ssh server listens ({last})",
            "is the port right (-p)? On the host: sudo systemctl enable --now ssh",
            network,
        ),
        (
            r"timed out|No route to host|Network is unreachable|Host is down",
            "{host} can't be reached ({last})",
            "is it on, and is this machine on its network (VPN)? A jump host is given with -J",
            network,
        ),
        (
            r"Bad configuration option|Bad owner or permissions|no argument after keyword|Can't open user config"
            r"|command-line: line \d+|unknown option|usage: ssh",
            "ssh does not take these options ({last})",
            "try them alone: {typed} true",
            bootstrap.EXIT_USAGE,
        ),
        (
            r"no Python 3\.8 or newer",
            "{host} has no Python 3.8 or newer on its PATH",
            "install it there, for example: {typed} -t sudo apt install python3",
            failed,
        ),
    ]
    for pattern, what, hint, code in table:
        if re.search(pattern, text):
            return Failure(what.format(host=host, last=last), hint.format(host=host, typed=typed(ssh)), code)
    return Failure("the ssh connection to {} ended ({})".format(host, last), typed(ssh, " -v true"), network)


def install_command(ssh: Ssh, env: Optional[str]) -> str:
    """Return the line that brings this repository to the host and installs there."""
    option = " --env " + shlex.quote(env) if env and env != bootstrap.DEFAULT_ENVIRONMENT else ""
    return "tar -C {} -cf - bootstrap.py environments lockfiles scripts | {}".format(
        shlex.quote(str(bootstrap.REPOSITORY)),
        typed(
            ssh,
            " 'mkdir -p colab-local && tar -C colab-local -xf - && python3 colab-local/bootstrap.py{}'".format(
                option
            ),
        ),
    )


def refusal(message: Json, ssh: Ssh, env: Optional[str], stop: str) -> Failure:
    """Return the failure that the agent's answer stands for. stop: the command that stops Jupyter there."""
    hints = {
        "absent": install_command(ssh, env),
        "absent-gpu": install_command(ssh, env or "gpu"),
        "env": install_command(ssh, env),
        "start": typed(ssh, " 'tail -n 40 ~/.local/share/colab-local/logs/jupyter-*.log'"),
        "silent": stop + "   ends it, kernels included",
        "slurm": typed(ssh, " sinfo"),
        "job": typed(ssh, " squeue --me"),
    }
    return Failure(message["error"], hints.get(message.get("kind", ""), ""))


# ---------------------------------------------------------------------------------------------------------
# Effects


def listens(port: int, addresses: Sequence[str] = ("127.0.0.1", "::1")) -> bool:
    """Whether a browser here would reach some program at localhost:port."""
    for address in addresses:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), timeout=1).close()
            return True
    return False


def is_free(port: int) -> bool:
    """Whether nothing here uses localhost:port, in IPv4 or IPv6: browsers try both."""
    if listens(port):
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ssh does
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def pick_port(preferred: int) -> int:
    """Return the preferred port of this machine if it is free, else the next free one."""
    for port in range(preferred, min(preferred + 100, 65536)):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Connection:
    """One ssh connection to one host: the agent's requests and answers, and forwards, all within one login.

    ssh: how to reach it; folder: a private folder for ssh's control socket. Use as a context manager.
    """

    def __init__(self, ssh: Ssh, folder: str) -> None:
        self.ssh = ssh
        self.socket_path = str(Path(tempfile.mkdtemp(dir=folder)) / "s")  # short: sockets' names are limited
        self.said: Deque[str] = Deque(maxlen=50)
        self.job: Optional[str] = None  # the Slurm job that the agent's notes spoke of
        self._messages: queue.Queue[Optional[Json]] = queue.Queue()
        self._process: Optional[subprocess.Popen[str]] = None

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
        except FileNotFoundError:
            raise Failure("no program ssh on this machine", "sudo apt install openssh-client") from None
        finally:
            signal.signal(signal.SIGINT, previous)
        reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        listener.start()
        reader.start()
        try:
            agent = Path(connect_agent.__file__).read_text(encoding="utf-8")
            try:
                self._send(agent)
                self._next_message(None)  # passwords and host keys are between ssh and the user's terminal
            except Dropped:
                listener.join(5)
                raise explain(self.said, self.ssh) from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(connect_agent.MARK):  # what login scripts print is not ours
                with contextlib.suppress(ValueError):
                    self._messages.put(json.loads(line[len(connect_agent.MARK) :]))
        self._messages.put(None)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.said.append(line.rstrip())
            if bootstrap.verbose:
                bootstrap.report("ssh: " + line.rstrip())

    def _send(self, message: Any) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as problem:
            raise Dropped(str(problem)) from None

    def _next_message(self, timeout: Optional[float]) -> Json:
        """Return the agent's next message; queue.Empty after `timeout` seconds, Dropped if the line has ended."""
        message = self._messages.get(timeout=timeout)
        if message is None:
            self._messages.put(None)
            raise Dropped(next((line for line in reversed(self.said) if line), "the line ended"))
        return message

    def ask(self, op: str, timeout: Optional[float] = None, **request: Any) -> Json:
        """Have the agent do something and return its answer, whose "ok" may be false. Shows its notes meanwhile.

        timeout: seconds; queue.Empty when they are over. Raises Dropped if the line ends first.
        """
        self._send(dict(request, op=op))
        while True:
            message = self._next_message(timeout)
            if "note" in message:
                bootstrap.report(message["note"])
                self.job = message.get("job", self.job)
            elif "ok" in message:
                return message

    def event(self, timeout: float) -> Optional[str]:
        """Return the event the agent reports within so many seconds, None if none; Dropped if the line ends."""
        with contextlib.suppress(queue.Empty):
            event: Optional[str] = self._next_message(timeout).get("event")
            return event
        return None

    def _forward(self, address: str, local: int, remote: int) -> str:
        """Have ssh forward a port at one of this machine's addresses; return why it can't, "" if it does."""
        spec = "{}:{}:127.0.0.1:{}".format(address, local, remote)
        done = subprocess.run(
            control_argv(self.ssh, self.socket_path, "-O", "forward", "-L", spec),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
        said = done.stderr.strip().splitlines() or ["ssh said nothing"]
        return said[-1] if done.returncode else ""

    def _forward_localhost(self, local: int, remote: int) -> str:
        """Have ssh forward localhost:local; return why it can't, "" if it does.

        Each address by itself: of the name "localhost" ssh is content with one. The other could be a stranger's, and
        get the browser's requests with the token. Where there is no IPv6, nobody has ::1.
        """
        problem = self._forward("127.0.0.1", local, remote)
        if problem:
            return problem
        problem = self._forward("[::1]", local, remote)
        return problem if listens(local, ["::1"]) else ""

    def forward(self, remote: int, preferred: int, exact: bool = False) -> int:
        """Forward a port of this machine to the host's loopback and return it.

        remote: the host's port; preferred: this machine's, taken if free; exact: no other will do.
        """
        problem = ""
        for _ in range(5):  # another program may take the port between the look and the deed
            local = preferred if exact else pick_port(preferred)
            problem = self._forward_localhost(local, remote)
            if not problem:
                return local
            if self._process is None or self._process.poll() is not None:
                raise Dropped(problem)
        raise Failure(
            "ssh could not open port {} on this machine ({})".format(preferred, problem),
            connect_line(self.ssh, "--port {} ".format(pick_port(preferred + 1))),
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


def await_answer(local: int, server: Json, connection: Connection) -> None:
    """Poll Jupyter through the tunnel until it answers to its token; Failure after ANSWER_SECONDS."""
    deadline = time.monotonic() + ANSWER_SECONDS
    problem = "no answer"
    while time.monotonic() < deadline:
        try:
            connect_agent.api(local, server["token"], "GET", server["base_url"] + "api/status")
            return
        except (OSError, ValueError, http.client.HTTPException) as failed:
            problem = str(failed)
        if any("administratively prohibited" in line for line in connection.said):
            raise Failure(
                "{} forbids tunnels (its sshd says: administratively prohibited)".format(server["host"]),
                "as root on {}: set 'AllowTcpForwarding yes' in /etc/ssh/sshd_config".format(server["host"]),
            )
        event = connection.event(0.2)
        if event == "gone":
            raise Failure("Jupyter on {} ended while connecting".format(server["host"]))
    raise Failure(
        "Jupyter on {} does not answer through the tunnel ({})".format(server["host"], problem),
        connect_line(connection.ssh, "--stop ") + "   and try again",
    )


def open_browser(url: str) -> bool:
    """Open a page in the user's browser; on WSL that is Windows' browser."""
    if "microsoft" in os.uname().release.lower() and shutil.which("powershell.exe"):
        argv = ["powershell.exe", "-NoProfile", "-Command", "Start-Process '{}'".format(url)]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0
    return webbrowser.open(url)


def viewer(platform: str, remote: int, local: int) -> str:
    """Return what opens a desktop. platform: this machine's sys.platform; remote, local: the port there and here."""
    if remote == RDP_PORT:
        return "an RDP program, at localhost:{}".format(local)
    return (
        "open vnc://localhost:{}".format(local) if platform == "darwin" else "vncviewer localhost::{}".format(local)
    )


class Session:
    """What the user asked for, kept up until they end it.

    args: the parsed options; folder: private folder for ssh's sockets; emit: takes each event as a dict (--json).
    """

    def __init__(self, args: argparse.Namespace, folder: str, emit: Callable[[Json], None]) -> None:
        self.args, self.folder, self.emit = args, folder, emit
        self.ssh = Ssh(args.destination, tuple(ssh_options(args)), args.ssh)
        self.server: Json = {}
        self.asked = False  # for a Jupyter: one may be starting
        self.job: Optional[str] = None
        self.local = 0
        self.desktop: Dict[int, int] = {}
        self.line: Optional[Connection] = None
        self.shown = ""  # the URL that the user has been given

    def typed(self, option: str = "") -> str:
        """Return the command that runs this program for the same host."""
        return connect_line(self.ssh, option + ("--slurm " if self.args.slurm else ""))

    # -- one connection's life

    def request(self, connection: Connection, op: str, timeout: Optional[float] = None, **more: Any) -> Json:
        """Ask the agent; a refusal becomes a Failure with its hint."""
        answer = connection.ask(op, timeout, home=self.args.home, env=self.args.env, **more)
        if not answer["ok"]:
            raise refusal(answer, connection.ssh, self.args.env, self.typed("--stop "))
        return answer

    def node(self, login: Connection, name: str) -> Ssh:
        """Return how to reach a compute node: through the line to its login node, no second login there."""
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):  # the login node's word, and ProxyCommand's shell reads it
            raise Failure("the Slurm job runs on something that is no host's name ({!r})".format(name))
        proxy = control_argv(self.ssh, login.socket_path, "-W", "[%h]:%p")
        command = " ".join(shlex.quote(word) for word in proxy)
        user = self.ssh.destination.rpartition("@")[0] or self.args.login or ""
        kept = ssh_options(self.args, for_node=True)
        return Ssh((user + "@" if user else "") + name, ("-o", "ProxyCommand=" + command, *kept), self.ssh.program)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Connection]:
        """Open the line (on Slurm: both lines) to where Jupyter is to run."""
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(Connection(self.ssh, self.folder))
            pid = None
            if self.args.slurm:
                job = self.submit(connection)
                pid = job["pid"]
                bootstrap.report("Slurm job {} runs on {}".format(job["job"], job["node"]))
                connection = stack.enter_context(Connection(self.node(connection, job["node"]), self.folder))
            before, self.asked = self.server, True
            self.server = self.request(connection, "serve", port=self.args.remote_port, pid=pid)
            self.tell_about_kernel(before)
            yield connection

    def submit(self, login: Connection) -> Json:
        """Return the Slurm job that serves Jupyter, submitted if need be, and remember its number from the start."""
        script = SBATCH.read_text(encoding="utf-8")
        options = shlex.split(self.args.sbatch)
        try:
            job = self.request(login, "submit", script=script, options=options, job=self.job)
        finally:
            self.job = login.job or self.job
        self.job = job["job"]
        return job

    def tell_about_kernel(self, before: Json) -> None:
        """After a reconnect: say whether it is the same Jupyter."""
        if before and before["pid"] != self.server["pid"]:
            bootstrap.report("note: Jupyter was started anew on {}: variables are gone".format(self.server["host"]))

    def keep_up(self, connection: Connection, again: bool) -> None:
        """Forward, show the URL, and stay until the line drops (Dropped) or Jupyter ends (Failure)."""
        server = self.server
        wanted = self.local or self.args.port or server["port"]
        local = connection.forward(server["port"], wanted, exact=again)
        await_answer(local, server, connection)
        same = again and self.shown == colab_url(local, server)
        self.local, self.line = local, connection
        if self.args.desktop:
            self.forward_desktop(connection)
        if same:
            bootstrap.report("connected again")
            self.emit({"event": "reconnected", "port": local})
        else:
            self.show(wanted)
        while True:
            if connection.event(1.0) == "gone":
                self.line = None
                job = " (Slurm job {})".format(self.job) if self.job else ""
                raise Failure(
                    "Jupyter on {} has ended{}".format(server["host"], job), self.typed() + "   starts it again"
                )

    def forward_desktop(self, connection: Connection) -> None:
        """Forward the ports of the desktops to 50000 higher ones and say which of them show something."""
        found = self.request(connection, "desktops", ports=DESKTOP_PORTS)["ports"]
        for port, is_up in found.items():
            remote = int(port)  # a JSON object's keys are texts
            again = remote in self.desktop
            local = connection.forward(remote, self.desktop.get(remote, 50000 + remote), exact=again)
            self.desktop[remote] = local
            if again:
                continue
            if is_up:
                bootstrap.say(
                    "the desktop of {}: {}".format(self.server["host"], viewer(sys.platform, remote, local))
                )
            else:
                bootstrap.report("note: nothing listens at port {} yet (forwarded to {})".format(remote, local))

    def show(self, wanted: int) -> None:
        """Print the URL and what to do with it."""
        server = self.server
        self.shown = colab_url(self.local, server)
        if self.local != wanted:
            bootstrap.report("note: port {} is taken on this machine, using {}".format(wanted, self.local))
        if not server["current"]:
            bootstrap.report(
                "note: this Jupyter runs from {}, which is no longer the current environment; --stop it and "
                "connect again to change".format(server["name"])
            )
        state = "started" if server["started"] else "was running, {} kernel(s)".format(server["kernels"])
        where = "{} (environment {})".format(server["host"], server["env"])
        bootstrap.say("Jupyter on {}: {}".format(where, state))
        bootstrap.say("Paste this into Colab: Connect > Connect to a local runtime > Backend URL:")
        bootstrap.say()
        bootstrap.say("    " + self.shown)
        bootstrap.say()
        bootstrap.say("If the browser asks whether Colab may access other apps and services on this device: Allow.")
        bootstrap.say(
            "If Colab can't connect, this says why: python3 scripts/doctor.py " + self.shown.partition("?")[0]
        )
        bootstrap.say("Ctrl-C closes the tunnel; Jupyter goes on.")
        self.emit(
            {
                "event": "connected",
                "url": self.shown,
                "port": self.local,
                "desktop": {str(remote): local for remote, local in self.desktop.items()},
                **{name: server[name] for name in ("host", "env", "pid", "started", "notebook_dir")},
                "remote_port": server["port"],
                "job": self.job,
            }
        )
        if self.args.open and not open_browser(COLAB):
            bootstrap.report("note: no browser found here, open " + COLAB)

    # -- the whole

    def run(self) -> None:
        """Connect, and connect again when the line drops, until Ctrl-C or a failure that trying can't mend."""
        waits = pauses()
        while True:
            again = bool(self.local)
            try:
                with self.connected() as connection:
                    self.keep_up(connection, again)
            except Dropped as dropped:
                if self.line:
                    waits = pauses()
                    self.emit({"event": "dropped", "reason": str(dropped)})
                    bootstrap.report("the line to {} dropped ({})".format(self.ssh.destination, dropped))
                elif not again:
                    raise Failure(
                        "the line to {} dropped while connecting ({})".format(self.ssh.destination, dropped),
                        typed(self.ssh, " true"),
                        bootstrap.EXIT_NETWORK,
                    ) from None
            except Failure as failure:
                if not again or failure.code != bootstrap.EXIT_NETWORK:
                    raise
                bootstrap.report(failure.what)
            self.line = None
            pause = next(waits)
            bootstrap.report("trying again in {:.0f} s (Ctrl-C ends)".format(pause))
            time.sleep(pause)

    def farewell(self) -> None:
        """Say what still runs after Ctrl-C."""
        if not (self.server or self.job or self.asked):
            bootstrap.report("ended; nothing was started")
            return
        if not self.server:
            left = "Slurm job {} is still there".format(self.job) if self.job else "Jupyter may be starting there"
            bootstrap.report("ended; " + left)
        else:
            where = "Jupyter on {} (process {})".format(self.server["host"], self.server["pid"])
            if self.job:
                where += " in Slurm job {}".format(self.job)
            bootstrap.report("closed the tunnel; {} still runs".format(where))
        bootstrap.report("stop it: " + self.typed("--stop "))

    def once(self, op: str) -> int:
        """Ask one thing (--stop, --status), show the answer and return the exit code."""
        with Connection(self.ssh, self.folder) as connection:
            if self.args.slurm:
                op = {"stop": "cancel", "status": "job"}[op]
            answer = self.request(connection, op)
        self.emit({"event": op, **{name: value for name, value in answer.items() if name != "token"}})
        if op == "job":
            job = answer["job"]
            text = "Slurm job {job}: {state} {node}".format(**job) if job else "no Slurm job of colab-local"
            running = bool(job)
        elif op == "status":
            running = answer["running"]
            text = "no Jupyter of colab-local runs on {host}".format(**answer)
            if running:
                text = (
                    "Jupyter on {host} (environment {env}, process {pid}, port {port}): {kernels} kernel(s)".format(
                        **answer
                    )
                )
        else:
            running = True
            text = "{} on {}".format("stopped" if answer["stopped"] else "nothing to stop", answer["host"])
        bootstrap.say(text)
        return bootstrap.EXIT_OK if running else bootstrap.EXIT_FAILED


def ssh_options(args: argparse.Namespace, for_node: bool = False) -> List[str]:
    """Return ssh's own options as the user gave them.

    for_node: those that make sense for a compute node too (not the login node's port, user, jump host).
    """
    given = [("-F", args.config), *(("-i", identity) for identity in args.identity or [])]
    if not for_node:
        given += [("-p", args.ssh_port), ("-J", args.jump), ("-l", args.login)]
    given += [("-o", option) for option in args.option or []]
    return [word for flag, value in given if value is not None for word in (flag, str(value))]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of connect.py's options."""
    parser = argparse.ArgumentParser(
        prog="connect.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="exit codes: 0 ended by Ctrl-C, or done; 1 failed; 2 usage; 5 the host can't be reached",
    )
    add = parser.add_argument
    add("destination", metavar="[USER@]HOST", help="as for ssh; an alias from ~/.ssh/config too")
    add("--open", action="store_true", help="open Colab in the browser")
    add("--desktop", action="store_true", help="forward its desktops too: VNC port 5901 there is 55901 here")
    add(
        "--port",
        type=bootstrap.port_number,
        help="port on this machine (default: the same as there, or the next free one)",
    )
    add(
        "--remote-port",
        type=bootstrap.port_number,
        help="port there, if Jupyter has to be started (default: bootstrap.py's)",
    )
    add("--env", help="environment there: cpu, gpu ... (default: the one installed last)")
    add("--home", help="folder there that bootstrap.py installed into (default: its default)")
    add("--status", action="store_true", help="say whether Jupyter runs there, change nothing")
    add("--stop", action="store_true", help="stop Jupyter there (with --slurm: cancel the job)")
    add("--slurm", action="store_true", help="run Jupyter as a job on a compute node behind the login node HOST")
    add("--sbatch", default="", metavar="OPTIONS", help='for the job: --sbatch="--gres=gpu:1 --time=4:00:00"')
    add(
        "--json",
        action="store_true",
        help="one JSON object a line on stdout for each event; people read stderr",
    )
    add("-v", "--verbose", action="store_true", help="show what ssh says")
    ssh = parser.add_argument_group("ssh's own options, passed on")
    ssh.add_argument("-p", dest="ssh_port", type=bootstrap.port_number, metavar="PORT", help="ssh's port on the host")
    ssh.add_argument("-l", dest="login", metavar="USER", help="as USER@ before the host")
    ssh.add_argument("-J", dest="jump", metavar="[USER@]JUMP[:PORT]", help="jump host(s)")
    ssh.add_argument("-i", dest="identity", action="append", metavar="KEY", help="a private key's file")
    ssh.add_argument("-F", dest="config", metavar="CONFIG", help="instead of ~/.ssh/config")
    ssh.add_argument("-o", dest="option", action="append", metavar="NAME=VALUE", help="any of ssh_config(5)")
    ssh.add_argument("--ssh", default="ssh", metavar="PROGRAM", help="another ssh program")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run connect.py with the given arguments and return its exit code."""
    args = make_parser().parse_args(argv)
    bootstrap.json_mode, bootstrap.verbose = args.json, args.verbose

    def emit(event: Json) -> None:
        if args.json:
            print(json.dumps(event), flush=True)

    try:
        if os.name == "nt":
            raise Failure("this runs on Linux, macOS and WSL", "in PowerShell: wsl --install", bootstrap.EXIT_MACHINE)
        if args.destination.startswith("-"):
            raise Failure("a host can't be named {}".format(args.destination), code=bootstrap.EXIT_USAGE)
        # SIGINT too: started from a script's background, Python would have been born deaf to it.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        short = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108  (mkdtemp; a socket's name is limited)
        with tempfile.TemporaryDirectory(prefix="colab-", dir=short) as folder:
            session = Session(args, folder, emit)
            if args.stop or args.status:
                return session.once("stop" if args.stop else "status")
            try:
                session.run()
            except KeyboardInterrupt:
                session.farewell()
                emit({"event": "closed"})
            return bootstrap.EXIT_OK
    except (Failure, KeyboardInterrupt) as caught:
        interrupted = Failure("interrupted", code=bootstrap.EXIT_INTERRUPTED)
        problem = caught if isinstance(caught, Failure) else interrupted
        emit({"event": "failed", "error": problem.what, "hint": problem.hint, "code": problem.code})
        bootstrap.json_mode = False  # that was this program's one line of JSON
        return bootstrap.fail(problem)


if __name__ == "__main__":
    sys.exit(main())
