"""Bare machines of several Debian releases: made from the distribution's packages, booted with their own systemd.

What the product does not install is not there: the machine that runs the tests has more packages than users have, and
that once hid desktops without a browser, a file manager or a letter of Japanese.

A root is made once and kept in CACHE; a machine is a copy-on-write view of it that vanishes with its process.
Packages come from wherever this machine's own apt gets them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import REPO
from tests.support.booted import boot, leader_of

CACHE = Path(os.environ.get("COLAB_LOCAL_ROOTS", f"/var/tmp/colab-local-roots-{os.getuid()}"))
USER, UID = "ada", 61234
# What every server installation has that "minbase" lacks.
SERVER = ("systemd-sysv", "libpam-systemd", "dbus", "python3", "sudo", "iproute2", "procps", "ca-certificates")
RELEASES = ("bookworm", "trixie", "sid")

# $1 root, $2... command: run it in the root, with the network of this machine.
INSIDE = r"""
set -e
root=$1; shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
if [ -n "$REPO" ]; then mkdir -p "$root/repo"; mount --bind "$REPO" "$root/repo"; fi
exec chroot "$root" "$@"
"""

# $1 root, $2 work folder: boot a copy-on-write view of it. systemd-nspawn exits with 133 when the machine reboots.
BOOT = r"""
set -e
lower=$1 work=$2
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$work"
mkdir "$work/up" "$work/work" "$work/merged"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$work/up,workdir=$work/work" "$work/merged"
mkdir -p "$work/merged/repo"
for base in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ ! -e $base/cgroup.procs ] || { mkdir "$base/$NAME"; echo $$ >"$base/$NAME/cgroup.procs"; }
done
while
    systemd-nspawn --quiet --directory="$work/merged" --private-network --register=no --keep-unit --boot \
        --bind-ro="$REPO:/repo" --machine="$NAME" --hostname=gpubox --console=pipe --link-journal=no \
        --resolv-conf=off --timezone=off || [ $? = 133 ]
do :; done
"""


def apt_source() -> tuple[str, str]:
    """Return (address, keyring) of the Debian archive that this machine's apt uses."""
    form = "$(REPO_URI)\t$(ORIGIN)\t$(LABEL)\t$(SIGNED_BY)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        address, origin, label, *_ = line.split("\t")
        if origin == label == "Debian":
            return address, "/usr/share/keyrings/debian-archive-keyring.gpg"
    raise AssertionError(f"apt of this machine knows no Debian archive: {done.stdout}")


def patience() -> list[str]:
    """Return what this machine's apt says of lists that are out of date: its archive may be one of a certain day."""
    shown = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [
        line
        for line in shown.splitlines()
        if line.startswith(("Acquire::Check-Valid-Until ", "Acquire::Check-Date "))
    ]


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Only one process makes a root at a time; two test runs beside each other share it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bare(release: str) -> Path:
    """Return the root of a freshly installed server of this release, made if need be."""
    root = CACHE / f"{release}-bare"
    with _alone(release):
        if not root.exists():
            address, keyring = apt_source()
            half = root.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--keyring={keyring}"]
            argv += ["--skip=cleanup/apt/lists", "--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
            argv += [f"--aptopt={line}" for line in patience()]
            _call([*argv, f"--include={','.join(SERVER)}", release, str(half), address])
            (half / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
            (half / "usr/sbin/policy-rc.d").chmod(0o755)
            (half / "etc/apt/apt.conf.d/tests").write_text(
                'Acquire::Languages "none";\nDPkg::Options:: "--force-unsafe-io";\n'
            )
            with (half / "etc/apt/apt.conf.d/tests").open("a") as settings:
                settings.write("".join(line + "\n" for line in patience()))
            # The user of the tests; passwd's own programs are as they are in the root.
            with (half / "etc/passwd").open("a") as passwd, (half / "etc/group").open("a") as group:
                passwd.write(f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/bash\n")
                group.write(f"{USER}:x:{UID}:\n")
            with (half / "etc/shadow").open("a") as shadow:
                shadow.write(f"{USER}:*:19000:0:99999:7:::\n")
            (half / f"home/{USER}").mkdir(mode=0o700)
            os.chown(half / f"home/{USER}", UID, UID)
            (half / "etc/machine-id").write_text("")
            half.rename(root)
    return root


def _call(argv: Sequence[str]) -> str:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        | {"REPO": str(REPO)},
    )
    assert done.returncode == 0, f"{list(argv)} exited {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def inside(root: Path, argv: Sequence[str]) -> list[str]:
    """Return the command that runs argv in a root that is not booted."""
    return ["unshare", "--mount", "sh", "-c", INSIDE, "sh", str(root), *argv]


def installed(release: str, session: str) -> Path:
    """Return a root in which the product has installed what its virtual desktop needs, and nothing else."""
    # As on a machine that systemd runs, so that the list is the one for such a machine.
    ask = "mkdir -p /run/systemd/system && python3 -B /repo/bootstrap.py --desktop virtual --dry-run --session "
    said = _call(inside(bare(release), ["sh", "-c", ask + session]))
    return with_packages(release, session, said.partition("install system packages: ")[2].splitlines()[0].split())


def with_packages(release: str, name: str, packages: Sequence[str]) -> Path:
    """Return a root that has these packages too, without what they recommend. Another list makes another root."""
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    base, root = bare(release), CACHE / f"{release}-{name}-{digest}"
    with _alone(root.name):
        if not root.exists():
            half = root.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            _call(["cp", "-a", "--reflink=auto", str(base), str(half)])
            shutil.copy("/etc/resolv.conf", half / "etc/resolv.conf")
            _call(inside(half, ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]))
            _call(inside(half, ["apt-get", "clean"]))
            half.rename(root)
    return root


class Bare:
    """A booted machine with its own users, processes and network."""

    def __init__(self, root: Path, work: Path) -> None:
        work.mkdir()
        self.work = work
        self.log = work.with_name(work.name + ".log")
        # systemd 258 and newer starts in the unified hierarchy of cgroups only.
        needs = {"REPO": str(REPO), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        self.name, self.process = boot(self.log, [BOOT, "sh", str(root), str(work)], **needs)

    @property
    def leader(self) -> int:
        """The machine's first process, 0 while there is none."""
        return leader_of(self.process)

    def enter(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs argv as root on the machine.

        In a cgroup of the machine: newer logind answers nobody from outside ("Protocol driver not attached").
        """
        leader = self.leader
        group = next(line for line in Path(f"/proc/{leader}/cgroup").read_text().splitlines() if line[:2] == "0:")
        inside = f"{_unified()}{group.partition('::')[2].removesuffix('/init.scope')}/tests"
        space = ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        move = 'mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && exec "$@"'
        return ["sh", "-c", move, inside, *space, *clean, *argv]

    def run(
        self, argv: Sequence[str], user: bool = False, check: bool = True, timeout: float = 300, feed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run argv on the machine, as root or in a login session of the ordinary user (PAM and all)."""
        if user:
            as_user = [f"--uid={USER}", "--property=PAMName=login", f"--working-directory=/home/{USER}"]
            argv = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *as_user, *argv]
        done = subprocess.run(self.enter(argv), input=feed, capture_output=True, text=True, timeout=timeout)
        if check:
            assert done.returncode == 0, f"{list(argv)} exited {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def is_up(self) -> bool:
        """Whether systemd has started everything."""
        if not self.leader:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            return False
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in ("running", "degraded")

    def close(self) -> None:
        """End it and everything in it."""
        self.process.kill()
        self.process.wait()
        for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
            for folder, _, _ in os.walk(f"{base}/{self.name}", topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def _unified() -> str:
    """Return where this machine's second hierarchy of cgroups is mounted."""
    hybrid = "/sys/fs/cgroup/unified"
    return hybrid if Path(hybrid, "cgroup.procs").exists() else "/sys/fs/cgroup"
