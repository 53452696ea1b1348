"""This machine, and whether a lock can run on it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from colab_local.base.errors import EXIT_MACHINE, Failure
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


class Gpu(NamedTuple):
    """A card as the driver names it. compute_capability: "" where the driver does not tell it."""

    name: str
    driver: str
    compute_capability: str
    memory_mib: int


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Return the GPUs in the output of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`.

    A line is `name, driver_version, memory.total, compute_cap`; drivers before about 470 have no compute_cap, and
    what a card does not tell is `[N/A]`.
    """
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) >= 3 and version_tuple(fields[1]):
            memory = int(fields[2]) if fields[2].isdigit() else 0
            capability = fields[3] if len(fields) > 3 and version_tuple(fields[3]) else ""
            gpus.append(Gpu(fields[0], fields[1], capability, memory))
    return gpus


def machine_refusal(host: Host, environment: str, platforms: dict[str, Any]) -> Failure | None:
    """Return why an environment can't run on a machine, or None.

    environment: its name; platforms: {conda platform: {"requires": {...}}} from lockfiles/index.json.
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
            "(found x86_64, need arm64); under Rosetta, start an arm64 Python",
            code=EXIT_MACHINE,
        )
    if subdir not in platforms:
        return Failure(
            "the {} environment has no lock for this machine (found {} {}, need one of: {})".format(
                environment, host.system, host.machine, ", ".join(sorted(platforms))
            ),
            "python3 bootstrap.py --cpu" if environment != "cpu" else "",
            EXIT_MACHINE,
        )
    requires = platforms[subdir].get("requires", {})
    if host.libc == "glibc" and version_tuple(host.libc_version) < version_tuple(requires.get("glibc", "0")):
        return Failure(
            "this system is too old: glibc {} (need {} or newer)".format(host.libc_version, requires["glibc"]),
            code=EXIT_MACHINE,
        )
    if host.macos and version_tuple(host.macos) < version_tuple(requires.get("macos", "0")):
        return Failure(
            "this macOS is too old: {} (need {} or newer)".format(host.macos, requires["macos"]),
            code=EXIT_MACHINE,
        )
    missing = [flag for flag in requires.get("cpu", []) if host.cpu and flag not in host.cpu]
    if missing:
        return Failure(
            "this CPU lacks {} (TensorFlow's build needs: {})".format(", ".join(missing), ", ".join(requires["cpu"])),
            code=EXIT_MACHINE,
        )
    return None


def gpu_refusal(gpus: list[Gpu], requires: dict[str, Any], update: str = "") -> Failure | None:
    """Return why the locked TensorFlow can't use any of these GPUs, or None.

    requires: {"driver": "525.60.13", "compute_capability": "6.0"} from lockfiles/index.json; update: the command
    that brings a newer driver onto this machine, "" where there is none.
    """
    driver, capability = requires.get("driver", "0"), requires.get("compute_capability", "0")
    for gpu in gpus:
        if version_tuple(gpu.driver) < version_tuple(driver):
            return Failure(
                f"the NVIDIA driver is too old (found {gpu.driver}, need {driver} or newer); newer ones: "
                "https://www.nvidia.com/drivers, under WSL for Windows",
                update or "python3 bootstrap.py --cpu",
                EXIT_MACHINE,
            )
    if all(g.compute_capability and version_tuple(g.compute_capability) < version_tuple(capability) for g in gpus):
        return Failure(
            "no GPU here is new enough (found {}, need compute capability {} or newer)".format(
                ", ".join(f"{g.name} {g.compute_capability}" for g in gpus), capability
            ),
            "python3 bootstrap.py --cpu",
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


def query_gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs that the driver shows; raise Failure with its own words when it shows none."""
    image, hint = "; --gpu --no-gpu-check builds an image without one", "python3 bootstrap.py --cpu"
    program = shutil.which("nvidia-smi")
    if program is None and Path("/usr/lib/wsl/lib/nvidia-smi").exists():  # WSL2 keeps it off root's PATH
        program = "/usr/lib/wsl/lib/nvidia-smi"
    if program is None:
        raise Failure("no NVIDIA driver found (nvidia-smi is not there)" + image, hint, EXIT_MACHINE)
    words = ""
    for fields in ("name,driver_version,memory.total,compute_cap", "name,driver_version,memory.total"):
        argv = [program, "--query-gpu=" + fields, "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise Failure(f"nvidia-smi does not answer ({problem})" + image, hint, EXIT_MACHINE) from problem
        gpus = parse_nvidia_smi(done.stdout) if done.returncode == 0 else []
        if gpus:
            return gpus
        words = words or " ".join((done.stdout + done.stderr).split())[:300]
    said = "no NVIDIA GPU can be used (nvidia-smi says: {})".format(words or "nothing")
    raise Failure(said + image, hint, EXIT_MACHINE)
