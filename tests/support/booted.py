"""A machine booted by systemd-nspawn, for tests of services."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from colab_local.install import servers
from tests.conftest import REPO, Installed
from tests.support.hosts import in_network_of, wait_for

USER = "ada"
UID = 61234
PORT = 8888
# Makes a throw-away copy-on-write view of this machine and boots it. $1 work folder, $2... folders that have to be
# there (overlaid too, since they may be mounts). Mounts vanish with the process. systemd-nspawn exits with 133
# when the container reboots.
BOOT = r"""
set -e
work=$1; shift
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$work"
root=$work/root
lay() {  # what where
    mkdir -p "$2"
    up=$(mktemp -d "$work/up.XXXX"); mkdir "$up/up" "$up/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$up/up,workdir=$up/work" "$2"
}
lay / "$root"
for folder do lay "$folder" "$root$folder"; done
sh "$work.prepare" "$root"
for base in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ ! -e $base/cgroup.procs ] || { mkdir "$base/$NAME"; echo $$ >"$base/$NAME/cgroup.procs"; }
done
while
    systemd-nspawn --quiet --directory="$root" --private-network --register=no --keep-unit --boot \
        --machine="$NAME" --hostname=gpubox --console=pipe --link-journal=no --resolv-conf=off --timezone=off ||
        [ $? = 133 ]
do :; done
"""
# Only logind and D-Bus start, none of this machine's own services. $1 the container's root.
PREPARE = """
set -e
rm -rf "$1"/etc/systemd/system/* "$1"/var/lib/systemd/linger
ln -sf /dev/null "$1/etc/tmpfiles.d/tmp.conf"  # else it takes a minute to whiten out what is in /tmp
: >"$1/etc/fstab"; : >"$1/etc/machine-id"
sed -i '/^{user}:/d' "$1/etc/passwd" "$1/etc/group" "$1/etc/shadow"; rm -rf "$1/home/{user}"  # this machine's own
echo '{user}:x:{uid}:{uid}::/home/{user}:/bin/bash' >>"$1/etc/passwd"
echo '{user}:x:{uid}:' >>"$1/etc/group"
echo '{user}:*:19000:0:99999:7:::' >>"$1/etc/shadow"
install -d -o {uid} -g {uid} "$1/home/{user}"
for path in {opened}; do
    while [ "$path" != / ]; do chmod o+rx "$1$path"; path=$(dirname "$path"); done
done
rm -rf "$1{home}/run"  # a token that root's tests have made there
for name in . .lock current receipts run logs; do
    path="$1{home}/$name"
    [ ! -e "$path" ] || chown {uid}:{uid} "$path"
done
"""


class Booted:
    """A booted container: this machine's files, its own systemd, users, network."""

    def __init__(self, work: Path, prepare: str, folders: Sequence[str]) -> None:
        work.mkdir()
        work.with_name(work.name + ".prepare").write_text(prepare)
        self.log = work.with_name(work.name + ".log")
        self.name, self.process = boot(self.log, [BOOT, "sh", str(work), *folders])

    @property
    def leader(self) -> int:
        """The container's first process, 0 while there is none."""
        return leader_of(self.process)

    def run(
        self, argv: Sequence[str], user: bool = False, check: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run argv in the container, as root or in a login session of the ordinary user (PAM and all)."""
        if user:
            as_user = [f"--uid={USER}", "--property=PAMName=login", f"--working-directory=/home/{USER}"]
            argv = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *as_user, *argv]
        space = f"--target={self.leader}"
        done = subprocess.run(
            ["nsenter", space, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath + ":/usr/sbin:/sbin", "LANG": "C.UTF-8"},
        )
        if check:
            assert done.returncode == 0, f"{list(argv)} exited {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def is_up(self) -> bool:
        """Whether systemd has started everything."""
        if not self.leader:
            assert self.process.poll() is None, self.log.read_text()
            return False
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in ("running", "degraded")

    def answers(self, token: str = "") -> bool:
        """Whether Jupyter answers on its port."""
        try:
            with in_network_of(self.leader):
                servers.api(PORT, token, "GET", "/api/status")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def close(self) -> None:
        """Switch it off: with its first process all die."""
        self.process.kill()
        self.process.wait()
        for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
            group = Path(base) / self.name
            wait_for(functools.partial(remove_cgroup, group), 30, f"the end of the processes in {group}")


def boot(log: Path, script: Sequence[str], **environ: str) -> tuple[str, subprocess.Popen[bytes]]:
    """Start a container by a shell script; return its name, and the process with which all of it dies."""
    name = f"colab{os.getpid()}x{time.monotonic_ns() % 100000}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount"),
                *("--pid", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-c", *script),
            ],
            env={**os.environ, "NAME": name, "SYSTEMD_NSPAWN_TMPFS_TMP": "0", **environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return name, process


def leader_of(process: subprocess.Popen[bytes]) -> int:
    """Return the first process of a container, 0 while there is none."""
    descendants = [process.pid]
    for _ in ("sh", "systemd-nspawn", "systemd"):
        descendants = [child for pid in descendants for child in children(pid)]
    return next(iter(descendants), 0)


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and that still run."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def remove_cgroup(group: Path) -> bool:
    """Remove a control group with those below it; return whether it is gone (it isn't while processes are in it)."""
    for path, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    return not group.exists()


@pytest.fixture(scope="module")
def machine(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    if not shutil.which("systemd-nspawn"):
        pytest.fail("no systemd-nspawn: install systemd-container")
    home = installed.home.resolve()
    python = (installed.prefix / "bin" / "python").resolve()
    prepare = PREPARE.format(user=USER, uid=UID, home=home, opened=f"'{REPO}' '{home}' '{python.parent}'")
    booted = Booted(tmp_path_factory.mktemp("machine") / "m", prepare, [str(REPO), str(home)])
    try:
        wait_for(booted.is_up, 240, f"systemd, see {booted.log}")
        yield booted
    finally:
        booted.close()
