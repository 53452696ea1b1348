"""The desktop user: whose files are written and whose programs run, also when sudo started us.

Under sudo every file of the user is made with the user's own effective uid, so that nothing of theirs comes to
belong to root and the kernel itself refuses what the user may not do.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, ContextManager, Iterator, Sequence

from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure

try:
    import pwd
except ImportError:  # Windows, which is refused by name before it is needed
    pwd = None  # type: ignore[assignment]

DEFAULT_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/games:/usr/local/sbin:/usr/local/bin"


def system_path() -> str:
    """Return PATH without the folders of conda and virtual environments.

    Their dbus-run-session, xrdb or gsettings do not fit the system's desktop, and are gone when the environment is
    (OSC/ondemand issue 700).
    """
    inside = [os.environ.get(name) for name in ("CONDA_PREFIX", "VIRTUAL_ENV")]
    kept = [
        folder
        for folder in os.environ.get("PATH", DEFAULT_PATH).split(":")
        if folder and not any(prefix and Path(prefix) == Path(folder).parent for prefix in inside)
        if not any((Path(folder).parent / mark).exists() for mark in ("conda-meta", "pyvenv.cfg"))
    ]
    return ":".join([*kept, *(folder for folder in DEFAULT_PATH.split(":") if folder not in kept)])


@dataclass(frozen=True)
class Person:
    """An account of this machine.

    name: log-in name; uid, gid: numbers; groups: supplementary groups; home: its folder, links resolved;
    shell: log-in shell; usual_home: whether `home` is the one in the password database, where systemd looks.
    """

    name: str
    uid: int
    gid: int
    groups: Sequence[int]
    home: Path
    shell: str
    usual_home: bool = True

    @property
    def runtime(self) -> Path:
        """The folder of this user's sockets; it exists while systemd-logind knows the user."""
        return Path(f"/run/user/{self.uid}")

    @property
    def is_me(self) -> bool:
        """Whether this process already runs as this user."""
        return self.uid == os.getuid()

    def environment(self, **extra: str) -> dict[str, str]:
        """Return the environment of a fresh log-in of this user plus `extra`.

        Built from nothing: an inherited SESSION_MANAGER, DBUS_SESSION_BUS_ADDRESS or LD_LIBRARY_PATH breaks
        desktops, and TightVNC's wrapper fails without USER.
        """
        env = {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "PATH": system_path() if self.is_me else DEFAULT_PATH,
            "LANG": os.environ.get("LANG", "C.UTF-8"),
        }
        if self.runtime.is_dir():
            env["XDG_RUNTIME_DIR"] = str(self.runtime)
            if (self.runtime / "bus").exists():
                env["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={self.runtime}/bus"
        env.update(extra)
        return env

    def _become(self) -> Callable[[], None] | None:
        """Return what a child does between fork and exec to become this user for good; None if it already is."""
        if self.is_me:
            return None

        def become() -> None:
            os.seteuid(0)
            os.setgroups(list(self.groups))
            os.setgid(self.gid)
            os.setuid(self.uid)
            os.umask(0o077)

        return become

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Take this user's effective ids: files made inside belong to the user. Nothing to do as that user."""
        if os.geteuid() == self.uid:
            yield
            return
        groups, gid = os.getgroups(), os.getegid()
        os.setgroups(list(self.groups))
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(gid)
            os.setgroups(groups)

    def acting_below_home(self, path: Path) -> ContextManager[None]:
        """Act as this user where `path` lies below their home folder, stay who we are elsewhere."""
        return self.acting() if self.home in path.parents else contextlib.nullcontext()

    def run(
        self,
        argv: Sequence[str],
        feed: bytes = b"",
        env: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> bytes:
        """Run a short program as this user and return its standard output.

        argv: the command, free of secrets (everybody can read it in ps); feed: bytes for its standard input;
        timeout: seconds.

        Raises:
            Failure: it could not start, failed, or took too long.
        """
        try:
            done = subprocess.run(
                list(argv),
                input=feed,
                capture_output=True,
                env=env or self.environment(),
                cwd="/",
                timeout=timeout,
                preexec_fn=self._become(),
            )
        except FileNotFoundError:
            raise Failure(f"{argv[0]} is not installed", f"install the package that brings {argv[0]}") from None
        except subprocess.TimeoutExpired:
            raise Failure(f"{' '.join(argv)} gave no answer (waited {timeout:g} s)", shlex.join(argv)) from None
        if done.returncode:
            words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise Failure(
                f"{' '.join(argv)} failed with code {done.returncode}" + (f": {words[-1]}" if words else ""),
                shlex.join(argv),
            )
        return done.stdout

    def succeeds(self, argv: Sequence[str], timeout: float = 60) -> bool:
        """Say whether a command of this user exits with 0 in time."""
        try:
            self.run(argv, timeout=timeout)
        except Failure:
            return False
        return True

    def spawn(self, argv: Sequence[str], log: IO[bytes], env: dict[str, str] | None = None) -> int:
        """Start a program of this user that outlives us, in a session of its own; return its process id."""
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env or self.environment(),
            cwd="/",
            start_new_session=True,
            preexec_fn=self._become(),
        )
        child.returncode = 0  # not ours to wait for: silences ResourceWarning, init adopts it when we end
        return child.pid


def system_python() -> str:
    """Return a Python that is still there when the user logs in next time: the system's, else this one."""
    return "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


def find(name: str | None = None) -> Person:
    """Return the desktop user: `name`, else the one who called sudo, else the one who runs this.

    Raises:
        Failure: no such user, or another user without being root.
    """
    sudo = os.environ.get("SUDO_USER") if os.getuid() == 0 else None
    try:
        entry = pwd.getpwnam(name or sudo) if (name or sudo) else pwd.getpwuid(os.getuid())  # type: ignore[arg-type]
    except KeyError:
        raise Failure(f"no user {name or sudo or os.getuid()} on this machine", "getent passwd", EXIT_USAGE) from None
    if entry.pw_uid != os.getuid() and os.getuid() != 0:
        raise Failure(
            f"the desktop of another user needs root (found {pwd.getpwuid(os.getuid()).pw_name}, need "
            f"{entry.pw_name} or root)",
            "sudo python3 bootstrap.py",
            EXIT_USAGE,
        )
    home = Path(entry.pw_dir)
    given = Path(os.environ.get("HOME", ""))
    # sudo keeps HOME on some machines, so HOME counts only where it belongs to the very user it is used for.
    if entry.pw_uid == os.getuid() and given.is_absolute() and given.is_dir() and given.stat().st_uid == entry.pw_uid:
        home = given
    if not home.is_dir():
        raise Failure(
            f"the home folder of {entry.pw_name} is missing (found no {home})",
            f"sudo install -d -o {entry.pw_name} -m 700 {shlex.quote(str(home))}",
            EXIT_MACHINE,
        )
    usual = home.resolve() == Path(entry.pw_dir).resolve()
    return Person(
        entry.pw_name,
        entry.pw_uid,
        entry.pw_gid,
        tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)),
        home.resolve(),
        entry.pw_shell or "/bin/sh",
        usual,
    )
