"""Jupyter on another machine, kept within reach: found or started, forwarded, connected again when the line drops."""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.parse
import webbrowser
from typing import Any, Callable, Iterator, NamedTuple

from colab_local.base.errors import AGAIN, EXIT_FAILED, EXIT_NETWORK, EXIT_OK, Failure
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import REPOSITORY
from colab_local.install.servers import Json, api
from colab_local.laptop.sending import FarInstallation
from colab_local.laptop.ssh import (
    ANSWER_SECONDS,
    Connection,
    Dropped,
    Ssh,
    connect_line,
    control_argv,
    refusal,
    typed,
)

COLAB = "https://colab.research.google.com/"
DESKTOP_PORTS = (5900, 5901)  # VNC displays :0 (the screen) and :1 (virtual), where bootstrap.py made no others
RDP_PORT = 3389
LONGEST_PAUSE_S = 30.0
WARNING_SECONDS = 600  # before Slurm ends the job
SBATCH = REPOSITORY / "scripts" / "slurm" / "colab-local.sbatch"


def colab_url(local: int, server: Json) -> str:
    """Return what the user pastes into Colab."""
    token = urllib.parse.quote(server["token"], safe="")  # a user's own may hold anything
    path = urllib.parse.quote(server["base_url"], safe="/%")  # the host's word: nothing that a shell or @ could turn
    return f"http://localhost:{local}{path}?token={token}"


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each new try: 1, 2, 4 ... 30, 30, ..."""
    pause = 1.0
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE_S)


class Forbidden(Failure):
    """The host's sshd refuses the tunnel."""


def await_answer(local: int, server: Json, connection: Connection) -> None:
    """Poll Jupyter through the tunnel until it answers to its token; Failure after ANSWER_SECONDS."""
    deadline = time.monotonic() + ANSWER_SECONDS
    problem = "no answer"
    while time.monotonic() < deadline:
        try:
            api(local, server["token"], "GET", server["base_url"] + "api/status")
            return
        except (OSError, ValueError, http.client.HTTPException) as failed:
            problem = str(failed)
        if connection.is_forbidden():
            raise Forbidden(
                "{} forbids tunnels (its sshd says: administratively prohibited)".format(server["host"]),
                f"as root on {server['host']}: set 'AllowTcpForwarding yes', and 'PermitOpen any' where there is a "
                "PermitOpen, in /etc/ssh/sshd_config",
            )
        event = connection.event(0.2)
        if event == "gone":
            raise Failure("Jupyter on {} ended while connecting".format(server["host"]), AGAIN)
    raise Failure(
        "Jupyter on {} does not answer through the tunnel ({})".format(server["host"], problem),
        connect_line(connection.ssh, "--stop ") + "   # and try again",
    )


def open_browser(url: str) -> bool:
    """Open a page in the user's browser; on WSL that is Windows' browser."""
    if "microsoft" in os.uname().release.lower() and shutil.which("powershell.exe"):
        argv = ["powershell.exe", "-NoProfile", "-Command", f"Start-Process '{url}'"]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0
    return webbrowser.open(url)


def viewer(platform: str, remote: int, local: int) -> str:
    """Return what opens a desktop. platform: this machine's sys.platform; remote, local: the port there and here."""
    if remote == RDP_PORT:
        return f"an RDP program, at localhost:{local}"
    return f"open vnc://localhost:{local}" if platform == "darwin" else f"vncviewer localhost::{local}"


def port_of(place: str) -> int:
    """Return the port of a desktop, or the one that its Unix socket stands for; 0 for what names neither.

    The host names them, and ssh reads signs in a path: only what can't mean anything else to it is one.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,4})|/[\w./@+ -]*/rfb-([0-9]{1,2})\.sock", place)
    return int(found.group(1) or 5900 + int(found.group(2))) if found else 0


class Wish(NamedTuple):
    """What the user asked for.

    destination: as for ssh; options: ssh's own; node_options: those that make sense for a compute node, too; program:
    ssh itself; login: -l's user, "" for none; home, env: there, None for the default; port: on this machine, and
    remote_port: there, None for the default; sbatch: options of the Slurm job; install: bootstrap.py's options where
    an environment is to be installed there first, else None.
    """

    destination: str
    options: tuple[str, ...]
    node_options: tuple[str, ...]
    program: str
    login: str
    home: str | None
    env: str | None
    port: int | None
    remote_port: int | None
    desktop: bool
    open_colab: bool
    slurm: bool
    sbatch: str
    install: tuple[str, ...] | None = None


class Session:
    """What the user asked for, kept up until they end it.

    wished: what the user asked for; folder: private folder for ssh's sockets; emit: takes
    each event as a dict (--json).
    """

    def __init__(self, wished: Wish, folder: str, emit: Callable[[Json], None], screen: Screen) -> None:
        self.wished, self.folder, self.emit, self.screen = wished, folder, emit, screen
        own = [("--home", wished.home), ("--ssh", wished.program if wished.program != "ssh" else None)]
        given = tuple(word for flag, value in own if value for word in (flag, value))
        self.ssh = Ssh(wished.destination, wished.options, wished.program, given)
        self.server: Json = {}
        self.asked = False  # for a Jupyter: one may be starting
        self.job: str | None = None
        self.job_ends: float | None = None  # when its time is over, of time.monotonic()
        self.login: Connection | None = None  # the line to the login node, on Slurm
        self.local = 0
        self.desktop: dict[str, int] = {}  # the port here of each port or socket there
        self.told_of_socket = False
        self.line: Connection | None = None
        self.shown = ""  # the URL that the user has been given
        host = wished.destination.rpartition("@")[2]
        self.installation = None if wished.install is None else FarInstallation(wished.install, host, screen, emit)

    def typed(self, option: str = "") -> str:
        """Return the command that runs this program for the same host."""
        return connect_line(self.ssh, option + ("--slurm " if self.wished.slurm else ""))

    # -- one connection's life

    def request(self, connection: Connection, op: str, timeout: float | None = None, **more: Any) -> Json:
        """Ask the agent; a refusal becomes a Failure with its hint."""
        answer = connection.ask(op, timeout, home=self.wished.home, env=self.wished.env, **more)
        if not answer["ok"]:
            raise refusal(answer, connection.ssh, self.wished.env, self.typed("--stop "))
        return answer

    def node(self, login: Connection, name: str) -> Ssh:
        """Return how to reach a compute node: through the line to its login node, no second login there."""
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):  # the login node's word, and ProxyCommand's shell reads it
            raise Failure(
                f"the Slurm job runs on something that is no host's name ({name!r})", typed(self.ssh, " squeue --me")
            )
        proxy = control_argv(self.ssh, login.socket_path, "-W", "[%h]:%p")
        command = " ".join(shlex.quote(word) for word in proxy)
        user = self.ssh.destination.rpartition("@")[0] or self.wished.login
        return Ssh(
            (user + "@" if user else "") + name,
            ("-o", "ProxyCommand=" + command, *self.wished.node_options),
            self.ssh.program,
        )

    @contextlib.contextmanager
    def connected(self) -> Iterator[Connection]:
        """Open the line (on Slurm: both lines) to where Jupyter is to run."""
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(Connection(self.ssh, self.folder, self.screen))
            pid = None
            if self.installation:
                self.installation.run(connection, self.wished.home)
            if self.wished.slurm:
                job = self.submit(connection)
                pid, self.login = job["pid"], connection
                until = self.note_end(job)
                self.screen.report("Slurm job {} runs on {}{}".format(job["job"], job["node"], until))
                connection = stack.enter_context(
                    Connection(self.node(connection, job["node"]), self.folder, self.screen)
                )
            before, self.asked = self.server, True
            self.server = self.request(connection, "serve", port=self.wished.remote_port, pid=pid)
            self.tell_about_kernel(before)
            yield connection

    def submit(self, login: Connection) -> Json:
        """Return the Slurm job that serves Jupyter, submitted if need be, and remember its number from the start."""
        script = SBATCH.read_text(encoding="utf-8")
        options = shlex.split(self.wished.sbatch)
        try:
            job = self.request(login, "submit", script=script, options=options, job=self.job)
        finally:
            self.job = login.job or self.job
        self.job = job["job"]
        return job

    def note_end(self, job: Json) -> str:
        """Remember when Slurm will end a job, and return how that is said."""
        seconds = job.get("ends_in")
        self.job_ends = None
        if not isinstance(seconds, int) or not 0 < seconds < 400 * 86_400:  # no limit is a year to Slurm
            return ""
        self.job_ends = time.monotonic() + seconds
        return time.strftime(", until %Y-%m-%d %H:%M here", time.localtime(time.time() + seconds))

    def warn_of_end(self) -> None:
        """Say once that Slurm will end the job in a few minutes."""
        if self.job_ends is None or time.monotonic() < self.job_ends - WARNING_SECONDS:
            return
        minutes = max(round((self.job_ends - time.monotonic()) / 60), 1)
        self.job_ends = None
        self.screen.report(
            f"note: Slurm ends job {self.job} in {minutes} minute{'s' if minutes > 1 else ''}: save what you need"
        )
        self.emit({"event": "ending", "job": self.job, "minutes": minutes})

    def tell_how_job_ended(self) -> None:
        """Say in Slurm's words how the job ended, if the line to the login node still stands."""
        if self.login is None or not self.job:
            return
        with contextlib.suppress(Dropped, Failure, queue.Empty):
            how = str(self.request(self.login, "ended", timeout=30.0, job=self.job)["how"])
            self.screen.report(f"Slurm job {self.job} has ended: {how}")

    def tell_about_kernel(self, before: Json) -> None:
        """After a reconnect: say whether it is the same Jupyter."""
        if before and before["pid"] != self.server["pid"]:
            self.screen.report(
                "note: Jupyter was started again on {}: variables are gone".format(self.server["host"])
            )

    def keep_up(self, connection: Connection, again: bool) -> None:
        """Forward, show the URL, and stay until the line drops (Dropped) or Jupyter ends (Failure)."""
        server = self.server
        wanted = self.local or self.wished.port or server["port"]
        local = self.tunnel(connection, wanted, again)
        same = again and self.shown == colab_url(local, server)
        self.local, self.line = local, connection
        if self.wished.desktop:
            self.forward_desktop(connection)
        if same:
            self.screen.report("connected again")
            self.emit({"event": "reconnected", "port": local})
        else:
            self.show(wanted)
        while True:
            self.warn_of_end()
            self.tell_about_socket(connection)
            if connection.event(1.0) == "gone":
                self.line = None
                self.tell_how_job_ended()
                job = f" (Slurm job {self.job})" if self.job else ""
                raise Failure(
                    "Jupyter on {} has ended{}".format(server["host"], job), self.typed() + "   # starts it again"
                )

    def tunnel(self, connection: Connection, wanted: int, again: bool) -> int:
        """Forward Jupyter's port to one of this machine's, wait until it answers there, and return that port."""
        server = self.server
        while True:
            local = connection.forward(server["port"], wanted, exact=again)
            try:
                await_answer(local, server, connection)
                return local
            except Forbidden:  # as localhost, its sshd may take the other address: a stranger there gets no token
                if not server.get("alone") or not connection.try_other_name():
                    raise

    def forward_desktop(self, connection: Connection) -> None:
        """Forward the desktops to ports 50000 higher than theirs and say which of them show something."""
        found = self.request(connection, "desktops", ports=DESKTOP_PORTS)["places"]
        for place, is_up in found.items():
            port = port_of(place)
            if not port:
                continue
            again = place in self.desktop
            remote = int(place) if place.isdigit() else place
            local = connection.forward(remote, self.desktop.get(place, 50000 + port), exact=again)
            self.desktop[place] = local
            if again:
                continue
            where = f"port {port}" if place.isdigit() else place
            if is_up:
                self.screen.say(
                    "the desktop of {}: {}".format(self.server["host"], viewer(sys.platform, port, local))
                )
            else:
                self.screen.report(f"note: nothing listens at {where} yet (forwarded to {local})")

    def tell_about_socket(self, connection: Connection) -> None:
        """Say once that a desktop's Unix socket could not be opened: the viewer shows an empty window at most."""
        if self.told_of_socket or not connection.has_shut_socket():
            return
        self.told_of_socket = True
        self.screen.report(
            "note: the sshd of {} did not open the desktop's socket: the desktop has ended, or sshd_config says "
            "AllowStreamLocalForwarding no. There: python3 bootstrap.py --desktop virtual   # starts it; with "
            "--vnc-listen port it needs no socket".format(self.server["host"])
        )

    def show(self, wanted: int) -> None:
        """Print the URL and what to do with it."""
        server = self.server
        self.shown = colab_url(self.local, server)
        if self.local != wanted:
            self.screen.report(f"note: port {wanted} is taken on this machine, using {self.local}")
        if not server["current"]:
            self.screen.report(
                "note: this Jupyter runs from {}, which is no longer the current environment; --stop it and "
                "connect again to change".format(server["name"])
            )
        state = "started" if server["started"] else "was running, {} kernel(s)".format(server["kernels"])
        where = "{} (environment {})".format(server["host"], server["env"])
        self.screen.say(f"Jupyter on {where}: {state}")
        self.screen.say("Paste this into Colab: Connect > Connect to a local runtime > Backend URL:")
        self.screen.say()
        self.screen.say("    " + self.shown)
        self.screen.say()
        self.screen.say("If the browser asks whether Colab may access other apps and services on this device: Allow.")
        self.screen.say(
            "If Colab can't connect, this says why: python3 scripts/doctor.py " + self.shown.partition("?")[0]
        )
        self.screen.say("Ctrl-C closes the tunnel; Jupyter goes on.")
        self.emit(
            {
                "event": "connected",
                "url": self.shown,
                "port": self.local,
                "desktop": self.desktop,
                **{name: server[name] for name in ("host", "env", "pid", "started", "notebook_dir")},
                "remote_port": server["port"],
                "job": self.job,
            }
        )
        if self.wished.open_colab and not open_browser(COLAB):
            self.screen.report("note: no browser found here, open " + COLAB)

    # -- the whole

    def run(self) -> None:
        """Connect, and connect again when the line drops, until Ctrl-C or a failure that no new try repairs."""
        waits = pauses()
        while True:
            again = bool(self.local)
            installs = self.installs()
            try:
                with self.connected() as connection:
                    self.keep_up(connection, again)
            except Dropped as dropped:
                if self.line:
                    waits = pauses()
                    self.emit({"event": "dropped", "reason": str(dropped)})
                    self.screen.report(f"the line to {self.ssh.destination} dropped ({dropped})")
                elif self.installs():
                    waits = waits if installs else pauses()
                    self.emit({"event": "dropped", "reason": str(dropped)})
                    self.screen.report(
                        f"the line to {self.ssh.destination} dropped ({dropped}); the installation goes on there"
                    )
                elif not again:
                    raise Failure(
                        f"the line to {self.ssh.destination} dropped while connecting ({dropped})",
                        typed(self.ssh, " true"),
                        EXIT_NETWORK,
                    ) from None
            except Failure as failure:
                if not (again or (installs and self.installs())) or failure.code != EXIT_NETWORK:
                    raise
                self.screen.report(failure.what)
            self.line = None
            pause = next(waits)
            self.screen.report(f"trying again in {pause:.0f} s (Ctrl-C ends)")
            time.sleep(pause)

    def installs(self) -> bool:
        """Return whether an installation is at work on the host, as far as is known here."""
        return self.installation is not None and self.installation.begun and not self.installation.done

    def farewell(self) -> None:
        """Say what still runs after Ctrl-C."""
        if self.installs():
            self.screen.report(f"closed the line; the installation on {self.ssh.destination} goes on")
            self.screen.report("look at it again with the same command")
            return
        if not (self.server or self.job or self.asked):
            self.screen.report("ended; nothing was started")
            return
        if not self.server:
            left = f"Slurm job {self.job} is still there" if self.job else "Jupyter may be starting there"
            self.screen.report("ended; " + left)
        else:
            where = "Jupyter on {} (process {})".format(self.server["host"], self.server["pid"])
            if self.job:
                where += f" in Slurm job {self.job}"
            self.screen.report(f"closed the tunnel; {where} still runs")
        self.screen.report("stop it: " + self.screen.put_right(self.typed("--stop ")))

    def once(self, op: str) -> int:
        """Ask one thing (--stop, --status), show the answer and return the exit code."""
        try:
            with Connection(self.ssh, self.folder, self.screen) as connection:
                if self.wished.slurm:
                    op = {"stop": "cancel", "status": "job"}[op]
                answer = self.request(connection, op)
        except Dropped as dropped:
            what = f"the line to {self.ssh.destination} dropped before the answer ({dropped})"
            raise Failure(what, self.typed("--status "), EXIT_NETWORK) from None
        self.emit({"event": op, **{name: value for name, value in answer.items() if name != "token"}})
        if op == "job":
            job = answer["job"] if isinstance(answer["job"], dict) else None
            text = "Slurm job {job}: {state} {node}".format(**job) if job else "no Slurm job of colab-local"
            until = self.note_end(job) if job else ""
            if until:
                self.screen.report("it has time" + until.lstrip(","))
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
            kernels = answer.get("kernels")
            if answer["stopped"] and kernels is not None:
                text = f"stopped Jupyter on {answer['host']}; {kernels} kernel{'' if kernels == 1 else 's'} ended"
        self.screen.say(text)
        return EXIT_OK if running else EXIT_FAILED
