"""This machine, and whether a lock can run on it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.install import gpu_reasons
from colab_local.install.lockfiles import conda_platform, version_tuple


class Host(NamedTuple):
    """What this machine is, as far as a lock depends on it.

    system: platform.system(): Linux, Darwin, Windows; machine: platform.machine(): x86_64, aarch64, arm64; libc:
    glibc, musl or "" (macOS); macos: 14.5, or "" elsewhere; cpu: flags of /proc/cpuinfo, empty where there is none.
    """

    system: str
    machine: str
    libc: str
    libc_version: str
    macos: str
    cpu: set[str]


def machine_refusal(
    host: Host, environment: str, platforms: dict[str, Any], accelerator: str = "cpu"
) -> Failure | None:
    """Return why an environment can't run on a machine, or None.

    environment: its name; platforms: {conda platform: {"requires": {...}}} from lockfiles/index.json, as accelerator.
    """
    if host.system == "Windows":
        return Failure("native Windows is not supported (need Linux: WSL2 has it)", "wsl --install", EXIT_MACHINE)
    if host.libc == "musl":
        return Failure(
            "musl libc is not supported: TensorFlow's builds need glibc (Debian, Ubuntu, Fedora and RHEL have it)",
            "docker run -it debian",
            code=EXIT_MACHINE,
        )
    subdir = conda_platform(host.system, host.machine)
    if subdir == "osx-64":
        return Failure(
            "macOS on Intel is not supported: TensorFlow ended its builds for it with 2.16 "
            "(found x86_64, need arm64)",
            "on Apple silicon start a Python for arm64, not one under Rosetta; from an Intel Mac use a Linux server",
            EXIT_MACHINE,
        )
    if subdir not in platforms:
        other = gpu_reasons.other_platform(host.system, host.machine) if accelerator == "gpu" else None
        return other or Failure(
            "the {} environment has no lock for this machine (found {} {}, need one of: {})".format(
                environment, host.system, host.machine, ", ".join(sorted(platforms))
            ),
            "python3 bootstrap.py --cpu"
            if environment != "cpu"
            else "use another machine: docs/tested.md lists them",
            EXIT_MACHINE,
        )
    requires = platforms[subdir].get("requires", {})
    if host.libc == "glibc" and version_tuple(host.libc_version) < version_tuple(requires.get("glibc", "0")):
        return Failure(
            "this system is too old: glibc {} (need {} or newer)".format(host.libc_version, requires["glibc"]),
            "update the system (Ubuntu 20.04, Debian 10, RHEL 8 or newer), or use a container of one",
            EXIT_MACHINE,
        )
    if host.macos and version_tuple(host.macos) < version_tuple(requires.get("macos", "0")):
        return Failure(
            "this macOS is too old: {} (need {} or newer)".format(host.macos, requires["macos"]),
            "softwareupdate --list",
            EXIT_MACHINE,
        )
    missing = [flag for flag in requires.get("cpu", []) if host.cpu and flag not in host.cpu]
    if missing:
        return Failure(
            "this CPU lacks {} (TensorFlow's build needs: {})".format(", ".join(missing), ", ".join(requires["cpu"])),
            "use another machine; a virtual one may hide what its CPU can: give it the host's CPU model",
            EXIT_MACHINE,
        )
    return None


def inspect_host() -> Host:
    """Return what this machine is, as far as a lock depends on it."""
    system, libc, libc_version = platform.system(), "", ""
    flags: set[str] = set()
    if system == "Linux":
        text = ""
        with contextlib.suppress(ValueError, OSError, AttributeError):
            text = os.confstr("CS_GNU_LIBC_VERSION") or ""
        libc, _, libc_version = text.partition(" ")
        if not libc:
            libc = "musl" if list(Path("/lib").glob("ld-musl-*")) else "unknown libc"
        with contextlib.suppress(OSError):
            found = re.search(r"(?m)^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(errors="replace"))
            flags = set(found.group(1).split()) if found else set()
    return Host(system, platform.machine(), libc, libc_version, platform.mac_ver()[0], flags)


LEAST_MEMORY = 400 << 20  # bytes: TensorFlow's import alone takes 350 MB, and less is killed in the middle


def folder_refusal(folder: Path) -> Failure | None:
    """Return why no program can run from a folder that is there, or None: many servers mount /tmp or /home noexec."""
    no_programs = getattr(os, "ST_NOEXEC", 0)
    with contextlib.suppress(OSError):
        if no_programs and os.statvfs(str(folder)).f_flag & no_programs:
            return Failure(
                f"no program can be run from {folder}: it is mounted noexec (the environment would not start)",
                f"python3 bootstrap.py --prefix /a/folder/on/another/disk   # findmnt -T {folder} shows this one",
                EXIT_MACHINE,
            )
    return None


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory that processes here can have, swap included; 0 where that can't be told.

    The machine's own, or less where a container or a job has less (cgroup v2 and v1).
    """
    limits = []
    with contextlib.suppress(OSError, ValueError):
        text = (root / "proc/meminfo").read_text()
        sizes = [int(size) << 10 for size in re.findall(r"(?m)^(?:MemTotal|SwapTotal):\s+(\d+) kB", text)]
        limits += [sum(sizes)] if sizes else []
    group = ""
    with contextlib.suppress(OSError):
        found = re.search(r"(?m)^0::(/.*)$", (root / "proc/self/cgroup").read_text())
        group = found.group(1).lstrip("/") if found else ""
    places = [root / "sys/fs/cgroup" / group / "memory.max", root / "sys/fs/cgroup/memory.max"]
    for path in [*places, root / "sys/fs/cgroup/memory/memory.limit_in_bytes"]:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits, default=0)


def memory_refusal(found: int) -> Failure | None:
    """Return why TensorFlow can't be tried out with so many bytes of memory, or None; found: 0 if it is not known."""
    if not found or found >= LEAST_MEMORY:
        return None
    return Failure(
        f"too little memory for TensorFlow (found {found >> 20} MB, need {LEAST_MEMORY >> 20} MB)",
        "free -m   # a container or a job has a limit of its own, which whoever starts it can raise",
        EXIT_MACHINE,
    )
