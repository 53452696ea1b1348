"""Keep Jupyter running for good: `bootstrap.py --service`.

On Linux a systemd user unit, on macOS a launchd agent: no root, nothing outside the user's own folders. It runs
the command that bootstrap.py prints, through current/<env>, so that it follows updates and rollbacks. Jupyter is
started again when it crashes, not when it is told to quit.

Surviving a logout is up to systemd's "linger": without it the user's services end with the last session, and
start with the first one. It is switched on if that is permitted (for oneself it mostly is), otherwise the one
command that an administrator has to give is printed. A launchd agent runs while its user is logged in.

The token stays the same across restarts. It lies in <home>/run/jupyter-token, for the user's eyes only, and
Jupyter reads it from there (JUPYTER_TOKEN_FILE, notebook/notebookapp.py): it is in no argument list, no
environment and no log. What was made is listed in <home>/receipts/service.json, and `--uninstall` removes that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import plistlib
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from colab_local.base import documents
from colab_local.base.errors import EXIT_BUSY, EXIT_INTEGRITY, EXIT_MACHINE, EXIT_OK, Failure
from colab_local.base.files import foreign, sha256_of, write_atomically
from colab_local.base.network import free_port, port_is_free
from colab_local.base.programs import child_environment, run
from colab_local.base.terminal import Screen
from colab_local.install import linger
from colab_local.install.home import config_folder, current_receipt, hold_lock, user_name
from colab_local.install.jupyter import TOKEN_FILE, jupyter_argv
from colab_local.install.options import Options
from colab_local.install.servers import (
    LABEL,
    UNIT,
    api,
    demand_alone,
    find_server,
    launchd_domain,
    running_servers,
    service_command,
    token_file,
)
from colab_local.install.tryout import CHOICES

SCHEMA = 1
# No path in it is obeyed: that of the service's file is derived, token_file and made are only ever compared.
SHAPE = {
    "kind": r"\w+",
    "env": str,
    "sha256": "[0-9a-f]{64}",
    "made": [str],
    "token_file": r"/[^\0]*",
    "lingering": bool,
    "port?": int,
}
MARK = "Made by colab-local: bootstrap.py with its service option. Its uninstall option removes it."  # no -- in XML
START_SECONDS = 120.0
MANAGER_SECONDS = 20.0  # for the user's systemd, once lingering is on
LAUNCHD_SECONDS = 45.0  # launchd gives a service 20 s (ExitTimeOut) to end; then it kills it

UNIT_TEXT = """\
# {mark}
[Unit]
Description=Jupyter for Google Colab (colab-local, environment {env})
# A port that another program has taken stays taken: give up after five starts within two minutes.
StartLimitIntervalSec=120
StartLimitBurst=5

[Service]
ExecStart={command}
WorkingDirectory={home}
{variables}
UMask=0077
Restart=on-failure
RestartSec=2
# Jupyter ends its kernels itself; what is left after the timeout is killed.
KillMode=mixed
TimeoutStopSec=30
# What notebooks never need, whoever has got the token: more rights than the user's own (sudo, ping), other kinds of
# machine code, real-time priority, core files full of data. No more than a user's systemd can refuse without making a
# file system of its own: notebooks do work on the whole machine, its GPUs included. Memory is the user's to limit,
# and the group bit of shared folders (RestrictSUIDSGID) is theirs to set.
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native
LimitCORE=0
LimitNOFILE=65536
TasksMax=16384
OOMPolicy=continue

[Install]
WantedBy=default.target
"""


# ---------------------------------------------------------------------------------------------------------
# Pure functions


def quote_for_systemd(word: str) -> str:
    """Return one word of ExecStart= or Environment= as systemd.syntax(7) wants it, %, $ and line breaks too."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "%": "%%", "$": "$$"})
    return f'"{word.translate(escapes)}"'


def chosen_devices(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the user chose for TensorFlow and CUDA in the shell that sets the service up: it keeps that."""
    return {name: value for name, value in sorted(environ.items()) if CHOICES.match(name)}


def unit_text(
    argv: Sequence[str], env: str, home: Path, token_file: Path, choices: Mapping[str, str] | None = None
) -> str:
    """Return the systemd user unit that runs `argv`.

    env: the environment's name; home: working folder; token_file: where Jupyter reads its token; choices: variables
    that it gets besides.
    """
    # No variable is expanded in Environment= and WorkingDirectory=, so $ stays as it is there.
    variables = {TOKEN_FILE: str(token_file), **(choices or {})}
    words = [quote_for_systemd(f"{name}={value}").replace("$$", "$") for name, value in variables.items()]
    return UNIT_TEXT.format(
        mark=MARK,
        env=env,
        command=" ".join(quote_for_systemd(word) for word in argv),
        home=str(home).replace("%", "%%"),
        variables="\n".join(f"Environment={word}" for word in words),
    )


def plist_text(argv: Sequence[str], home: Path, token_file: Path) -> str:
    """Return the launchd agent (launchd.plist(5)) that runs `argv`; its log is under home/logs."""
    log = str(home / "logs" / "service.log")
    agent = {
        "Label": LABEL,
        "ProgramArguments": list(argv),
        "EnvironmentVariables": {TOKEN_FILE: str(token_file)},
        "WorkingDirectory": str(home),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive",  # else macOS slows it down as background work
        "StandardOutPath": log,
        "StandardErrorPath": log,
        "Umask": 0o077,
    }
    text = plistlib.dumps(agent).decode()
    return text.replace("<plist ", f"<!-- {MARK} -->\n<plist ", 1)


def start_by_hand(argv: Sequence[str], home: Path, token_file: Path) -> str:
    """Return the line that starts Jupyter for good where there is no service manager."""
    log = shlex.quote(str(home / "logs" / "jupyter.log"))
    command = " ".join(shlex.quote(word) for word in argv)
    start = f"{TOKEN_FILE}={shlex.quote(str(token_file))} nohup {command}"
    return f"{start} >{log} 2>&1 </dev/null &"


# ---------------------------------------------------------------------------------------------------------
# The two service managers: same interface


class Manager:
    """A user's service manager. `kind` names it, `path` is the file that describes the service to it."""

    kind = ""
    path = Path()
    lingering = False  # we switched it on

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def linger(self) -> None:
        """Let the user's services run without a log-in, if that is permitted."""

    def run(self, argv: Sequence[str]) -> str:
        """Run a command of the service manager and return what it printed; Failure if it fails."""
        return _run(argv, self.screen)

    def succeeds(self, argv: Sequence[str]) -> bool:
        """Return whether a command of the service manager succeeds."""
        return _succeeds(argv, self.screen)

    def text(self, argv: Sequence[str], env: str, home: Path, token_file: Path) -> str:
        """Return the content of `path`."""
        raise NotImplementedError

    def command(self, action: str) -> list[str]:
        """Return the command that does "start" or "stop"."""
        raise NotImplementedError

    def is_active(self) -> bool:
        """Whether the service runs."""
        raise NotImplementedError

    def enable(self) -> None:
        """Take note of `path`, and start the service now and at every login or boot."""
        raise NotImplementedError

    def disable(self) -> None:
        """Stop the service, and don't start it again. `path` is still there."""
        raise NotImplementedError

    def forget(self) -> None:
        """Take note that `path` is gone."""

    def log_command(self, home: Path) -> str:
        """Return what shows the service's log."""
        raise NotImplementedError


class Systemd(Manager):
    """systemd --user."""

    kind = "systemd"

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.path = config_folder() / "systemd" / "user" / UNIT

    def linger(self) -> None:
        if not linger.is_on(user_name()):
            self.lingering = linger.switch(user_name(), True, self.succeeds)

    def text(self, argv: Sequence[str], env: str, home: Path, token_file: Path) -> str:
        return unit_text(argv, env, home, token_file, chosen_devices(os.environ))

    def command(self, action: str) -> list[str]:
        return service_command(self.kind, action)

    def is_active(self) -> bool:
        return self.succeeds(self.command("is-active"))

    def enable(self) -> None:
        self.run(["systemctl", "--user", "daemon-reload"])
        self.run(self.command("enable"))
        self.succeeds(self.command("reset-failed"))  # earlier failures count towards the limit on starts
        self.run(self.command("restart"))

    def disable(self) -> None:
        self.run(["systemctl", "--user", "disable", "--now", UNIT])

    def forget(self) -> None:
        self.run(["systemctl", "--user", "daemon-reload"])
        self.succeeds(self.command("reset-failed"))

    def log_command(self, home: Path) -> str:
        return "journalctl --user -u colab-local"


class Launchd(Manager):
    """launchd's domain of the user who is logged in at the screen."""

    kind = "launchd"

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.path = Path.home() / "Library" / "LaunchAgents" / (LABEL + ".plist")
        self.domain = launchd_domain()
        self.target = f"{self.domain}/{LABEL}"

    def text(self, argv: Sequence[str], env: str, home: Path, token_file: Path) -> str:
        return plist_text(argv, home, token_file)

    def command(self, action: str) -> list[str]:
        return service_command(self.kind, action)

    def _shown(self) -> str | None:
        """Return what launchd says of the service, None if it is not loaded."""
        try:
            return self.run(["launchctl", "print", self.target])
        except Failure:
            return None

    def is_active(self) -> bool:
        # Loaded is not running: one that was stopped, or that ends at once, stays loaded.
        shown = self._shown()
        state = re.search(r"^\s*state = (.+?)\s*$", shown or "", re.M)
        return shown is not None and (state is None or state.group(1) == "running")

    def enable(self) -> None:
        self.disable()  # an older version of the file
        self.succeeds(["launchctl", "enable", self.target])  # "disabled" is remembered, and bootstrap fails of it
        deadline = time.monotonic() + LAUNCHD_SECONDS
        while True:
            try:
                self.run(["launchctl", "bootstrap", self.domain, str(self.path)])
                return
            except Failure as fault:
                if re.search(r"\b125\b|Domain does not support", fault.what):
                    raise Failure(
                        "macOS runs a user's services only while that user is logged in at the Mac's screen "
                        f"({fault.what})",
                        "log in there (Screen Sharing counts), then the same command again",
                        EXIT_MACHINE,
                    ) from None
                # 5, "Input/output error": the one before has not gone yet (headroom issue 1289, tuist issue 10143).
                if self._shown() is not None or time.monotonic() > deadline:
                    raise Failure(
                        f"launchd does not take the service ({fault.what})",
                        f"plutil -lint {shlex.quote(str(self.path))}   # then the same command again",
                    ) from None
            time.sleep(0.5)

    def disable(self) -> None:
        """Stop the service and wait until it has gone: bootout returns before that."""
        self.succeeds(["launchctl", "bootout", self.target])  # fails if it isn't loaded: nothing to stop then
        deadline = time.monotonic() + LAUNCHD_SECONDS
        while self._shown() is not None:
            if time.monotonic() > deadline:
                raise Failure(
                    f"launchd does not let go of the service (waited {LAUNCHD_SECONDS:g} s)",
                    f"launchctl bootout {self.target}",
                )
            time.sleep(0.2)

    def log_command(self, home: Path) -> str:
        return "tail -f " + shlex.quote(str(home / "logs" / "service.log"))


def _environment() -> dict[str, str]:
    """Return a child's environment in which systemctl --user finds its manager, in a bare ssh or su session too."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return child_environment(XDG_RUNTIME_DIR=runtime)


def _run(argv: Sequence[str], screen: Screen) -> str:
    return run(argv, screen, env=_environment(), timeout=90)


def _succeeds(argv: Sequence[str], screen: Screen) -> bool:
    try:
        _run(argv, screen)
    except Failure:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------
# Installing and removing


def choose_manager(screen: Screen) -> Manager:
    """Return the kind of service manager that this machine has, and change nothing; Failure if there is none."""
    if platform.system() == "Darwin":
        return Launchd(screen)
    if not (shutil.which("systemctl") and Path("/run/systemd/system").is_dir()):
        raise Failure(
            "--service needs systemd, and it does not run this machine",
            "python3 bootstrap.py !--service --launch",
            EXIT_MACHINE,
        )
    return Systemd(screen)


def check(options: Options, screen: Screen) -> None:
    """Raise Failure where there is no service manager: before anything is installed for it."""
    try:
        choose_manager(screen)
    except Failure as problem:
        home = options.home.resolve()
        if current_receipt(home, options.env) is None:
            raise
        running = find_server(home, options.env)
        if running:
            what = "{}; Jupyter runs already (process {pid}, port {port})".format(problem.what, **running)
            raise Failure(what, problem.hint + "   # shows its address", problem.code) from None
        (home / "logs").mkdir(exist_ok=True)
        port = options.port if port_is_free(options.port) else free_port(options.port + 1)
        by_hand = start_by_hand(command_line(options._replace(port=port)), home, token_file(home))
        raise Failure(f"{problem.what}: Jupyter can be started by hand", by_hand, problem.code) from None


def find_manager(screen: Screen) -> Manager:
    """Return this machine's service manager, ready for this user; Failure if there is none."""
    manager = choose_manager(screen)
    if isinstance(manager, Launchd):
        return manager
    show = ["systemctl", "--user", "show-environment"]
    if not _succeeds(show, screen):  # no login session started this user's manager: lingering does
        manager.linger()
        deadline = time.monotonic() + MANAGER_SECONDS
        while not _succeeds(show, screen):
            if time.monotonic() > deadline:
                user = user_name()
                raise Failure(
                    f"systemd runs no services for user {user} here",
                    f"{linger.by_hand(user)}   # then the same command again",
                )
            time.sleep(0.2)
    return manager


def receipt_path(home: Path) -> Path:
    """Return where it is written down what was made."""
    return home / "receipts" / "service.json"


def read_receipt(home: Path) -> dict[str, Any] | None:
    """Return what an earlier run wrote down, None if there was none."""
    path = receipt_path(home)
    with contextlib.suppress(OSError, ValueError):
        if not foreign([path]):  # a link, or another user's
            return dict(documents.read(path, SHAPE))
    return None


def missing_parents(path: Path) -> list[str]:
    """Return the folders above `path` that are not there yet, innermost first."""
    return [str(parent) for parent in path.parents if not parent.exists()]


def check_ours(manager: Manager, home: Path) -> None:
    """Raise Failure if the service's file belongs to somebody else or to another home folder."""
    with contextlib.suppress(FileNotFoundError):
        text = manager.path.read_text(encoding="utf-8")
        if read_receipt(home) is None and (MARK not in text or str(home) not in text):
            raise Failure(
                f"there is a service of that name already, not made from {home} ({manager.path})",
                f"less {shlex.quote(str(manager.path))}   # if nobody needs it, move it away",
            )


def check_port(manager: Manager, home: Path, port: int) -> None:
    """Raise Failure if something else has the port: the service could never start."""
    if manager.is_active() or port_is_free(port):
        return
    for server in running_servers(home):
        if server["port"] == port:
            raise Failure(
                "Jupyter runs already, started by hand (process {pid}, port {port})".format(**server),
                "kill {pid}   # ends its kernels; then the same command again".format(**server),
            )
    raise Failure(
        f"port {port} is taken by another program",
        f"python3 bootstrap.py --service --port {free_port(port)}",
        EXIT_MACHINE,
    )


def check_running(manager: Manager, home: Path, before: dict[str, Any], env: str) -> None:
    """Raise Failure if a restart would end somebody's work: of another environment, or with kernels that run.

    before: the receipt of the service that is there; env: the environment that is wanted now.
    """
    if not manager.is_active():
        return
    stop = " ".join(manager.command("stop")) + "   # ends its kernels; then the same command again"
    if before["env"] != env:
        raise Failure(
            f"Jupyter runs as a service with environment {before['env']} (need {env}): it is not restarted unasked",
            stop,
            EXIT_BUSY,
        )
    kernels = running_kernels(home, before["env"])
    if kernels:
        raise Failure(
            f"the service has new settings, and {kernels} kernels run in it: it is not restarted unasked",
            stop,
            EXIT_BUSY,
        )


def running_kernels(home: Path, env: str) -> int:
    """Return how many kernels the service's Jupyter has; 0 where it does not answer."""
    server = find_server(home, env)
    if server is None:
        return 0
    try:
        return len(api(server["port"], server["token"], "GET", "/api/kernels"))
    except (OSError, ValueError, TypeError):
        return 0


def await_answer(manager: Manager, home: Path, env: str, port: int) -> dict[str, Any]:
    """Wait until the service's Jupyter answers and return it (port, token, pid); Failure with its log's command."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        server = find_server(home, env)
        if server and server["port"] == port:
            return server
        time.sleep(0.2)
    raise Failure(
        f"the service does not answer on port {port} after {START_SECONDS:.0f} s", manager.log_command(home)
    )


def command_line(options: Options) -> list[str]:
    """Return what the service runs."""
    prefix = str(options.home.resolve() / "current" / options.env)
    return jupyter_argv(prefix, options.port, str(options.notebook_dir), os.geteuid() == 0, options.lab)


def command(options: Options, dry_run: bool, screen: Screen) -> int:
    """Make, or bring up to date, the service for an installation's options and return the exit code.

    Raises Failure where there is no service manager.
    """
    home = options.home.resolve()
    if dry_run:
        manager = choose_manager(screen)
        screen.say(f"Would keep Jupyter running as a {manager.kind} service: {manager.path}")
        return EXIT_OK
    argv, token = command_line(options), token_file(home)
    (home / "logs").mkdir(exist_ok=True)
    manager = find_manager(screen)
    with hold_lock(home, screen):
        made = install(manager, home, options.env, argv, token, options.port)
    server = await_answer(manager, home, options.env, options.port)
    demand_alone(options.port)
    screen.say(
        "{}: Jupyter runs as a {} service ({}).".format(
            "Done" if made else "Nothing to do", manager.kind, manager.path
        )
    )
    screen.say("  Paste into Colab:  http://localhost:{}/?token={}".format(server["port"], server["token"]))
    screen.say("  Log:               " + manager.log_command(home))
    screen.say("  Stop:              " + " ".join(manager.command("stop")))
    screen.say("  Start:             " + " ".join(manager.command("start")))
    screen.say("  Remove:            " + screen.put_right("python3 bootstrap.py !--service --uninstall"))
    if isinstance(manager, Systemd) and not linger.is_on(user_name()):
        screen.report("note: without lingering, systemd ends this service when you log out and starts it at login")
        screen.report("hint: " + linger.by_hand(user_name()))
    return EXIT_OK


def install(manager: Manager, home: Path, env: str, argv: Sequence[str], token_file: Path, port: int) -> bool:
    """Write the service's file and start it; return whether anything had to be done."""
    check_ours(manager, home)
    text = manager.text(argv, env, home, token_file)
    before = read_receipt(home)
    same = False
    with contextlib.suppress(FileNotFoundError):
        same = before is not None and manager.path.read_text(encoding="utf-8") == text and manager.is_active()
    if before and not same:
        check_running(manager, home, before, env)
    manager.linger()
    if same:
        if manager.lingering:
            linger.hand_over(receipt_path(home))
        return False
    check_port(manager, home, port)
    folders = missing_parents(manager.path)
    receipt = {
        "schema": SCHEMA,
        "kind": manager.kind,
        "env": env,
        "port": port,
        "file": str(manager.path),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "made": [*folders, *(before or {}).get("made", [])],
        "token_file": str(token_file),
        "lingering": manager.lingering or bool((before or {}).get("lingering")),
    }
    # First the receipt: a run that is killed in between is still undone in full.
    write_atomically(receipt_path(home), json.dumps(receipt, indent=1) + "\n")
    manager.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(manager.path, text)
    manager.enable()
    return True


def uninstall(home: Path, dry_run: bool, screen: Screen) -> int:
    """Stop the service, remove what the receipt under `home` lists and return the exit code.

    A service file that the user has changed since is kept beside its place. Without a receipt nothing is done.
    """
    home = home.resolve()
    receipt = read_receipt(home)
    if receipt is None:
        listed = receipt_path(home)
        if os.path.lexists(str(listed)):
            where = shlex.quote(str(listed))
            raise Failure(f"{listed} is damaged, or not ours", f"mv {where} {where}.damaged", EXIT_INTEGRITY)
        return EXIT_OK
    # Derived, not read: what is written in a receipt must not lead to anybody else's file.
    path = (Launchd(screen) if receipt["kind"] == Launchd.kind else Systemd(screen)).path
    token_file = home / "run" / "jupyter-token"
    maker = Path(receipt["token_file"]).parent.parent  # only ever compared
    if maker.resolve() != home and receipt_path(maker).exists():  # this home is a copy of it
        screen.say("left the {} service: it is that of {}".format(receipt["kind"], maker))
        if not dry_run:
            receipt_path(home).unlink()
        return EXIT_OK
    if dry_run:
        screen.say("would stop the {} service and remove {} and {}".format(receipt["kind"], path, token_file))
        return EXIT_OK
    manager: Manager | None = None
    try:
        manager = find_manager(screen)
    except Failure as problem:  # systemd is gone, or the user's manager: the files can go all the same
        screen.report("note: " + problem.what)
    if manager and path.exists():
        manager.disable()
    remove_file(path, receipt["sha256"], screen)
    if manager:
        manager.forget()
    for parent in path.parents:
        if str(parent) in receipt["made"]:
            with contextlib.suppress(OSError):  # somebody else's files are in it by now
                parent.rmdir()
    if manager and (receipt["lingering"] or manager.lingering):
        if linger.hand_to_desktop(home / "receipts" / "desktop.json", user_name()):
            screen.say(f"lingering of {user_name()} stays on for the virtual desktop")
        else:
            linger.switch(user_name(), False, manager.succeeds)
    with contextlib.suppress(FileNotFoundError):
        token_file.unlink()
    receipt_path(home).unlink()
    screen.say("removed the {} service ({})".format(receipt["kind"], path))
    return EXIT_OK


def remove_file(path: Path, sha256: str, screen: Screen) -> None:
    """Remove a file; keep it under another name if its content isn't ours any more."""
    if not path.exists():
        return
    if sha256_of(path) == sha256:
        path.unlink()
        return
    kept = path.with_name(path.name + ".yours")
    path.replace(kept)
    screen.report(f"note: you had changed {path}: kept as {kept}")
