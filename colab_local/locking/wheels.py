"""Wheels: which fits which machine, and what is in it, read without downloading it."""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.parser import HeaderParser

import requests
from packaging import tags
from packaging.markers import Marker
from packaging.utils import parse_wheel_filename
from tqdm import tqdm

from colab_local.base import certificates
from colab_local.base.errors import AGAIN, EXIT_NETWORK, Failure
from colab_local.base.text import mask
from colab_local.install.requirements import MACHINES
from colab_local.locking.specs import PYTHONS, Target, platform_marker

TIMEOUT_S = 60
READERS = 8  # wheels looked into at once


def target_environments(target: Target) -> list[dict[str, str]]:
    """Return a target's marker values, for its first and its last patch release."""
    platform, python = target
    return [
        {
            "python_version": python,
            "python_full_version": f"{python}.{patch}",
            "implementation_version": f"{python}.{patch}",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "platform_release": "",
            "platform_version": "",
            "extra": "",
            **MACHINES[platform],
        }
        for patch in (0, 99)
    ]


def applies(marker: str, target: Target) -> bool:
    """Return whether a requirement with this marker is installed on some patch release of the target."""
    return not marker or any(Marker(marker).evaluate(values) for values in target_environments(target))


def shortest_marker(marker: str, platforms: Sequence[str], pythons: Sequence[str] = PYTHONS) -> str:
    """Return an equivalent of uv's marker that a reader takes in at a glance: often nothing at all.

    uv repeats the platforms of the whole lock in every marker. Where the marker is a choice of platforms, or
    of Pythons, or of both, it is written anew; else it is left as uv wrote it.
    """
    if not marker:
        return ""
    targets = list(itertools.product(platforms, pythons))
    values = {target: [Marker(marker).evaluate(v) for v in target_environments(target)] for target in targets}
    if any(len(set(found)) > 1 for found in values.values()):  # hangs on a patch release
        return marker
    where = [p for p in platforms if any(values[p, python][0] for python in pythons)]
    when = [python for python in pythons if any(values[p, python][0] for p in platforms)]
    if any(values[p, python][0] != (p in where and python in when) for p, python in targets):
        return marker
    parts = [] if len(where) == len(platforms) else [platform_marker(where)]
    if len(when) < len(pythons):
        parts.insert(0, python_marker(when))
    return " and ".join(f"({p})" if " or " in p and len(parts) > 1 else p for p in parts)


def python_marker(pythons: Sequence[str]) -> str:
    """Return the marker for some of the Python series that we lock."""
    count = len(pythons)
    if tuple(pythons) == PYTHONS[:count]:
        return f"python_version < '{PYTHONS[count]}'"
    if tuple(pythons) == PYTHONS[-count:]:
        return f"python_version >= '{pythons[0]}'"
    return " or ".join(f"python_version == '{python}'" for python in pythons)


def wheel_tags(target: Target, virtual: Mapping[str, str]) -> dict[tags.Tag, int]:
    """Return the wheel tags that the least machine of a target takes, with their rank: 0 is the best."""
    platform, python = target
    version = (int(python.split(".")[0]), int(python.split(".")[1]))
    if platform.startswith("osx"):
        macos = (int(virtual["__osx"].split(".")[0]), int(virtual["__osx"].split(".")[1]))
        platforms = list(tags.mac_platforms(macos, "arm64"))
    else:
        machine = MACHINES[platform]["platform_machine"]
        minor = int(virtual["__glibc"].split(".")[1])
        old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}  # PEP 600's names of old
        platforms = []
        for glibc in range(minor, 4 if machine == "x86_64" else 16, -1):
            platforms.append(f"manylinux_2_{glibc}_{machine}")
            platforms += [f"{old[glibc]}_{machine}"] if glibc in old else []
        platforms.append(f"linux_{machine}")
    interpreter = "cp" + python.replace(".", "")
    cpython = tags.cpython_tags(version, [interpreter], platforms)
    compatible = tags.compatible_tags(version, interpreter, platforms)
    return {tag: rank for rank, tag in enumerate(itertools.chain(cpython, compatible))}


@dataclass(frozen=True)
class Wheel:
    """A wheel as uv's lock describes it."""

    file: str
    url: str
    sha256: str
    size: int  # bytes


def best_wheel(wheels: Iterable[Wheel], rank: Mapping[tags.Tag, int]) -> Wheel | None:
    """Return the wheel that an installer on the machine with these tags chooses, or None if none runs there."""
    found = []
    for wheel in wheels:
        _, _, build, wheel_tags_ = parse_wheel_filename(wheel.file)
        ranks = [rank[tag] for tag in wheel_tags_ if tag in rank]
        if ranks:
            found.append((min(ranks), [-int(part) for part in build[:1]], wheel.file, wheel))
    return min(found, key=lambda entry: entry[:3])[3] if found else None


def web() -> requests.Session:
    """Return a session with the web: it trusts what all of this program trusts, and tries again."""
    session = requests.Session()
    session.verify = str(certificates.bundle() or "") or True
    session.mount("https://", requests.adapters.HTTPAdapter(max_retries=3, pool_maxsize=READERS))
    return session


class RemoteFile(io.RawIOBase):
    """A file on a web server of which only the parts that are read are fetched.

    Reading is done in blocks from the end, where zip archives keep their directory. A server that doesn't know
    ranges sends the whole, which is kept then.
    """

    BLOCK = 1 << 16

    def __init__(self, session: requests.Session, url: str, size: int) -> None:
        self.session, self.url, self.size, self.position = session, url, size, 0
        self.blocks: dict[int, bytes] = {}

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def read(self, count: int = -1) -> bytes:
        end = self.size if count < 0 else min(self.position + count, self.size)
        first, last = self.position // self.BLOCK, (end - 1) // self.BLOCK
        lacking = [number for number in range(first, last + 1) if number not in self.blocks]
        if lacking:
            self.fetch(lacking[0], lacking[-1])
        whole = b"".join(self.blocks[number] for number in range(first, last + 1))
        start = self.position - first * self.BLOCK
        data = whole[start : start + end - self.position]
        self.position = end
        return data

    def fetch(self, first: int, last: int) -> None:
        """Fetch the blocks from first to last."""
        begin, end = first * self.BLOCK, min((last + 1) * self.BLOCK, self.size) - 1
        answer = self.session.get(self.url, headers={"Range": f"bytes={begin}-{end}"}, timeout=TIMEOUT_S)
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            begin = 0
        for offset in range(0, len(answer.content), self.BLOCK):
            self.blocks[(begin + offset) // self.BLOCK] = answer.content[offset : offset + self.BLOCK]


@dataclass(frozen=True)
class About:
    """What a wheel says of itself.

    licence: in one line; installed: bytes once installed, without compiled bytecode; files: {where it is installed:
    CRC-32}.
    """

    licence: str
    installed: int
    files: Mapping[str, int] = field(default_factory=dict)


DATA = re.compile(r"^[^/]+\.data/(purelib|platlib)/")  # which an installer leaves out of a file's path


def licence_of(metadata: str) -> str:
    """Return the licence that a wheel's METADATA names, in one line."""
    headers = HeaderParser().parsestr(metadata)
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in headers.get_all("Classifier", [])
        if text.startswith("License ::") and text.count("::") > 1
    ]
    lines = [line.strip() for line in str(headers.get("License") or "").splitlines() if line.strip()]
    text = lines[0] if lines and lines[0].upper() != "UNKNOWN" else ""
    # Some put a whole licence into the field: the classifier then says it in a word.
    short = text if len(text) <= 40 and not text.lower().startswith("copyright") else ""
    return str(headers.get("License-Expression") or short or ", ".join(classifiers) or text[:40] or "not stated")


def read_wheel(session: requests.Session, wheel: Wheel) -> About:
    """Return what a wheel says of itself, from its directory and METADATA alone."""
    remote = RemoteFile(session, wheel.url, wheel.size)
    last = wheel.size // RemoteFile.BLOCK
    remote.fetch(last, last)  # else zipfile takes a lost line for a file that is no zip
    with zipfile.ZipFile(remote) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        return About(
            licence_of(archive.read(name).decode("utf-8", "replace")),
            sum(entry.file_size for entry in archive.infolist()),
            {DATA.sub("", e.filename): e.CRC for e in archive.infolist() if not e.is_dir()},
        )


def clashes(wheels: Iterable[Wheel], about: Mapping[str, About]) -> Iterator[str]:
    """Yield a sentence for every two wheels of one environment that bring different files of one name.

    An installer writes both, beside each other: which one stays is chance, and two machines have different bytes.
    """
    first: dict[str, Wheel] = {}
    found: dict[tuple[str, str], str] = {}
    for wheel in wheels:
        for path, crc in about[wheel.sha256].files.items():
            other = first.setdefault(path, wheel)
            if about[other.sha256].files[path] != crc:
                found.setdefault((other.file, wheel.file), path)
    for (one, two), path in found.items():
        yield f"{one} and {two} bring different files {path}"


def read_wheels(wheels: Iterable[Wheel]) -> dict[str, About]:
    """Return what each wheel says of itself, by SHA-256; several are read at once."""
    chosen = sorted(set(wheels), key=lambda wheel: wheel.file)
    with web() as session, ThreadPoolExecutor(READERS) as pool:
        try:
            found = list(
                tqdm(
                    pool.map(lambda wheel: read_wheel(session, wheel), chosen),
                    total=len(chosen),
                    desc="Reading wheels",
                    unit="wheel",
                    disable=None,
                )
            )
        except (requests.RequestException, zipfile.BadZipFile) as problem:
            raise Failure(
                f"a wheel can't be read ({mask(str(problem))})",
                certificates.cure_of(problem, f"{AGAIN}, once the package index answers"),
                EXIT_NETWORK,
            ) from None
    return {wheel.sha256: about for wheel, about in zip(chosen, found, strict=True)}
