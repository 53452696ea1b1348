"""For which GPUs and drivers the locked packages hold code: read from their own libraries.

Where a conda package can't be had, because the channel is a folder of records alone, recipe_code() takes what its
builders say.

A CUDA library carries its kernels in "fat binaries". Each holds machine code (SASS) for some architectures and, for
newer ones, text (PTX) that the driver translates when it is first used. What is in them decides which cards can run
an environment, and which driver they need. Nobody has to know it by heart, and no build setting has to be believed.

How a card of capability X.Y runs a fat binary (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX
Compatibility"): SASS for X.Z with Z <= Y; else PTX for an older or the same architecture, in a version that the
driver knows. PTX for `sm_90a` (a letter at the end) runs on 9.0 alone.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rattler.package_streaming import extract

from colab_local.base.errors import Failure
from colab_local.base.terminal import Screen
from colab_local.base.text import megabytes
from colab_local.install.bundling import Source, fetch
from colab_local.locking.specs import NOTICE
from colab_local.locking.wheels import Wheel

MAGIC = struct.pack("<I", 0xBA55ED50)
PTX, ELF, SMALLEST_HEADER, LARGEST_HEADER = 1, 2, 64, 4096
KINDS = (PTX, ELF, 16)  # 16: what newer tools write for machine code
LZ4, PTX_HEAD_BYTES = 0x2000, 600
LIBRARY = re.compile(r"\.so(\.\d+)*$")
SMALLEST_LIBRARY = 1 << 20  # bytes: what is smaller holds no kernels
# The wheels, and the conda packages, that are worth reading.
CARRIERS = re.compile(
    r"tensorflow|nvidia-.*|libtensorflow_(cc|framework)|lib(cublas|cudnn|cufft|curand|cusolver|cusparse|nvjitlink)|nccl"
)
NOT_READ = "which cards this TensorFlow serves is what conda-forge's recipe says, its libraries were not read"

# CUDA -> (Linux driver of its first release, the newest PTX that this driver reads). NVIDIA: CUDA release notes,
# table "CUDA Toolkit and Corresponding Driver Versions"; PTX ISA, "Release History". Older ones than 12.0 run no
# CUDA 12 library.
CUDA = {
    "12.0": ("525.60.13", "8.0"),
    "12.1": ("530.30.02", "8.1"),
    "12.2": ("535.54.03", "8.2"),
    "12.3": ("545.23.06", "8.3"),
    "12.4": ("550.54.14", "8.4"),
    "12.5": ("555.42.02", "8.5"),
    "12.6": ("560.28.03", "8.5"),
    "12.7": ("565.57.01", "8.6"),
    "12.8": ("570.26", "8.7"),
    "12.9": ("575.51.03", "8.8"),
    "13.0": ("580.65.06", "9.0"),
}

# Capability -> the first CUDA whose driver knows such a card at all (same release notes).
CARDS = {
    "3.5": "12.0",
    "3.7": "12.0",
    "5.0": "12.0",
    "5.2": "12.0",
    "5.3": "12.0",
    "6.0": "12.0",
    "6.1": "12.0",
    "6.2": "12.0",
    "7.0": "12.0",
    "7.2": "12.0",
    "7.5": "12.0",
    "8.0": "12.0",
    "8.6": "12.0",
    "8.7": "12.0",
    "8.9": "12.0",
    "9.0": "12.0",
    "10.0": "12.8",
    "10.3": "12.9",
    "11.0": "13.0",
    "12.0": "12.8",
    "12.1": "12.9",
}

# These hold thousands of variants of a few kernels and choose one at run time: a card needs some, not most.
VARIANTS = re.compile(r"libcublasLt|libcudnn_engines")
MOST = 0.9  # of a library's general fat binaries; measured: 96 to 100 % on cards that work, 0 to 18 % on others
GENERAL_MAJORS = 3  # a fat binary for so many generations of cards is meant for all; fewer: for these alone


Libraries = dict[str, dict[str, int]]  # {library: {what its fat binaries hold: how many of these}}
Code = tuple[str, Libraries]  # a wheel's file name, and what is in it


@dataclass(frozen=True)
class Need:
    """What a card of one capability needs: the least CUDA of its driver, that driver, and the PTX it must read."""

    cuda: str
    driver: str
    ptx: str = ""  # "8.5 sm_90a", or "" where machine code is enough

    def entry(self) -> dict[str, str]:
        """Return it as index.json has it."""
        found = {"cuda": self.cuda, "driver": self.driver}
        return {**found, "ptx": self.ptx} if self.ptx else found


def lz4_head(data: bytes, limit: int) -> bytes:
    """Return the first `limit` bytes, or a few more, of an LZ4 block (the format's own description: lz4.org)."""
    out, i = bytearray(), 0

    def length(short: int, i: int) -> tuple[int, int]:
        while short >= 15 and data[i] == 255:
            short, i = short + 255, i + 1
        return (short + data[i], i + 1) if short >= 15 else (short, i)

    while i < len(data) and len(out) < limit:
        token = data[i]
        count, i = length(token >> 4, i + 1)
        out += data[i : i + count]
        i += count
        if i + 2 > len(data):
            break
        back = data[i] | data[i + 1] << 8
        count, i = length(token & 15, i + 2)
        for _ in range(count + 4):
            out.append(out[-back])
    return bytes(out)


def _ptx_name(raw: bytes, flags: int, arch: int, version: str) -> str:
    """Return `90a@8.5`: the real target, which the entry's own header leaves out, and the PTX version.

    `120?` where the text can't be read here (compressed with zstd): it is then taken as for that card alone.
    """
    text = raw[:PTX_HEAD_BYTES]
    if flags & LZ4:
        try:
            text = lz4_head(raw, PTX_HEAD_BYTES)
        except IndexError:
            text = b""
    found = re.search(rb"\.target\s+sm_(\w+)", text)
    return f"{found.group(1).decode() if found else f'{arch}?'}@{version}"


def fat_binaries(data: Any) -> Iterator[tuple[str, ...]]:
    """Yield for each fat binary what it holds: `60` is machine code for 6.0, `90a@8.5` PTX 8.5 for sm_90a.

    data: a library's bytes, a mmap say.
    """
    position = data.find(MAGIC)
    while position >= 0:
        if position + 16 <= len(data):
            version, header, size = struct.unpack_from("<HHQ", data, position + 4)
            if version == 1 and header == 16 and size < 1 << 32:
                yield tuple(_entries(data, position + 16, min(position + 16 + size, len(data) - SMALLEST_HEADER)))
        position = data.find(MAGIC, position + 4)


def _entries(data: Any, position: int, end: int) -> Iterator[str]:
    found = set()
    while position < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, position)
        if kind not in KINDS or not SMALLEST_HEADER <= header <= LARGEST_HEADER:
            break
        (compressed,) = struct.unpack_from("<I", data, position + 16)
        minor, major, arch = struct.unpack_from("<HHI", data, position + 24)
        (flags,) = struct.unpack_from("<Q", data, position + 40)
        if kind == PTX:
            start = position + header
            raw = bytes(data[start : start + min(compressed or size, 1 << 20)])
            found.add(_ptx_name(raw, flags, arch, f"{major}.{minor}"))
        else:
            found.add(str(arch))
        position += header + size
    yield from sorted(found, key=lambda name: (int(re.match(r"\d*", name).group() or 0), name))  # type: ignore[union-attr]


def library_code(path: Path) -> dict[str, int]:
    """Return how many fat binaries of each kind a library holds: {"60 70 80 89 90a@8.5": 1149}; {} if none."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        kinds = Counter(" ".join(names) for names in fat_binaries(data) if names)
    return dict(sorted(kinds.items()))


def libraries_of(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of every large library of a wheel or a conda package; folder: where they are unpacked."""
    if path.suffix != ".whl":
        extract(path, folder)
        for file in folder.rglob("*"):
            if LIBRARY.search(file.name) and not file.is_symlink() and file.stat().st_size >= SMALLEST_LIBRARY:
                yield file.name, file
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if LIBRARY.search(entry.filename) and entry.file_size >= SMALLEST_LIBRARY:
                file = Path(archive.extract(entry, folder))
                yield file.name, file
                file.unlink()


def package_code(path: Path) -> Libraries:
    """Return {library: its kinds of fat binaries} of a wheel or a conda package; it is unpacked beside it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        found = {name: library_code(file) for name, file in libraries_of(path, Path(folder))}
    return {name: kinds for name, kinds in sorted(found.items()) if kinds}


# ---------------------------------------------------------------------------------------------------------
# What follows from it


def number(version: str) -> tuple[int, ...]:
    """Return a version like 12.5 as a tuple that can be compared."""
    return tuple(int(part) for part in version.split("."))


def _architecture(name: str) -> tuple[int, int]:
    """Return 120 as (12, 0)."""
    digits = int(re.match(r"\d+", name).group())  # type: ignore[union-attr]
    return digits // 10, digits % 10


def runs(kind: str, capability: str, cuda: str) -> str:
    """Return how a card runs a fat binary: "sass", the PTX's name, or "" if not at all.

    kind: `60 70 80 89 90a@8.5`; cuda: of the driver, 12.0 and newer.
    """
    card, best = number(capability), ""
    for name in kind.split():
        target, at, version = name.partition("@")
        arch = _architecture(target)
        if not at:
            if arch[0] == card[0] and arch[1] <= card[1]:
                return "sass"
            continue
        same_only = not target[-1].isdigit()
        fits = arch == card if same_only else arch <= card
        if (
            fits
            and number(version) <= number(CUDA[cuda][1])
            and number(version) > number(best.partition("@")[2] or "0")
        ):
            best = name
    return best


def _majors(kinds: Iterable[str]) -> int:
    """Return for how many generations of cards there is any code in these fat binaries."""
    return len({_architecture(name)[0] for kind in kinds for name in kind.split()})


def _general(library: str, kinds: Mapping[str, int]) -> dict[str, int]:
    """Return the fat binaries of a library that are meant for all cards; {} where it holds variants instead."""
    if VARIANTS.match(library):
        return {}
    return {kind: count for kind, count in kinds.items() if _majors([kind]) >= GENERAL_MAJORS}


def serves(library: str, kinds: Mapping[str, int], capability: str, cuda: str) -> bool:
    """Return whether a library's kernels run on a card with a driver of this CUDA."""
    if _majors(kinds) < GENERAL_MAJORS:  # libcufftw: one empty fat binary for 5.2; it says nothing
        return True
    general = _general(library, kinds)
    running = sum(count for kind, count in (general or kinds).items() if runs(kind, capability, cuda))
    return running >= MOST * sum(general.values()) if general else running > 0


def needs(libraries: Mapping[str, Mapping[str, int]]) -> dict[str, Need]:
    """Return {capability: what its cards need} for the cards that every library serves.

    libraries: {name: {kind: count}} of everything that is used together.
    """
    found = {}
    for capability, first in CARDS.items():
        for cuda, (driver, _) in CUDA.items():
            if number(cuda) >= number(first) and all(
                serves(library, kinds, capability, cuda) for library, kinds in libraries.items()
            ):
                found[capability] = Need(cuda, driver, _ptx_needed(libraries, capability, cuda))
                break
    return found if libraries else {}


def _ptx_needed(libraries: Mapping[str, Mapping[str, int]], capability: str, cuda: str) -> str:
    """Return the newest PTX without which a library has too little code for a card: "8.5 sm_90a", or ""."""
    used: set[tuple[tuple[int, ...], str, str]] = set()
    for library, kinds in libraries.items():
        general = _general(library, kinds)
        how = {kind: runs(kind, capability, cuda) for kind in general}
        if sum(general[kind] for kind in how if how[kind] == "sass") < MOST * sum(general.values()):
            for name in set(how.values()) - {"sass", ""}:
                target, _, version = name.partition("@")
                used.add((number(version), version, target))
    newest = max(used, default=None)
    return f"{newest[1]} sm_{newest[2]}" if newest else ""


def missing(libraries: Mapping[str, Mapping[str, int]], capability: str) -> list[str]:
    """Return the libraries that keep a card out with every driver, for people: which package to look at."""
    newest = list(CUDA)[-1]
    return [name for name, kinds in libraries.items() if not serves(name, kinds, capability, newest)]


# ---------------------------------------------------------------------------------------------------------
# lockfiles/ENV/gpu-code.json: what was read, so that a wheel that stays is not read again


def entries(text: str) -> dict[str, dict[str, str]]:
    """Return {capability: what it needs} as index.json has it; text: of gpu-code.json."""
    return {capability: need.entry() for capability, need in needs(joined(parse_code(text).values())).items()}


def noted(found: Mapping[str, dict[str, str]], notes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return entries() with what is to be said of each card; notes: gpu-recipes.yml's, by how capabilities begin."""
    said = {
        capability: "; ".join(text for start, text in notes.items() if start == "all" or capability.startswith(start))
        for capability in found
    }
    return {name: {**entry, "note": said[name]} if said[name] else entry for name, entry in found.items()}


def recipe_code(recipes: Mapping[str, Any], locked: Mapping[str, str], read: Iterable[str]) -> dict[str, Code]:
    """Return {sha256: (name-version-build, {source: kinds})} of conda packages, as their builders say it.

    recipes: an environment's part of gpu-recipes.yml; locked: {name-version-build: sha256} of its conda packages;
    read: the files of those that were read themselves, whatever was said of them.
    Raise Failure for a package that is not locked: of the one that is nobody has said anything.
    """
    known = {file.rsplit("-", 2)[0] for file in read}
    said: Mapping[str, Any] = recipes.get("packages", {})
    packages = {name: recipe for name, recipe in said.items() if name.rsplit("-", 2)[0] not in known}
    gone = sorted(set(packages) - set(locked))
    if gone:
        raise Failure(
            f"gpu-recipes.yml has {', '.join(gone)}, which is not locked",
            "say in environments/gpu-recipes.yml which cards the new one serves",
        )
    return {locked[name]: (name, {recipe["source"]: {recipe["code"]: 1}}) for name, recipe in packages.items()}


def has_gpu_code(name: str) -> bool:
    """Return whether a package of either kind is worth reading; name: normalized."""
    return bool(CARRIERS.fullmatch(name))


def is_told(code: Mapping[str, Code]) -> bool:
    """Return whether somebody's word stands for a package in gpu-code.json: it is not called by a file's name."""
    return not all(file.endswith((".whl", ".conda", ".tar.bz2")) for file, _ in code.values())


def read_code(wheels: Iterable[Wheel], known: Mapping[str, Code], screen: Screen) -> dict[str, Code]:
    """Return {sha256: (file name, {library: kinds})} of wheels and conda packages; the unknown are downloaded.

    known: of the lock before. A GPU environment's packages have 3 to 5 GB; a relock that keeps them reads none.
    """
    chosen = {wheel.sha256: wheel for wheel in wheels}
    lacking = [wheel for wheel in chosen.values() if known.get(wheel.sha256, ("",))[0] != wheel.file]
    lacking.sort(key=lambda wheel: wheel.size, reverse=True)
    if lacking:
        total = sum(wheel.size for wheel in lacking)
        screen.report(f"Reading the GPU code of {len(lacking)} packages ({megabytes(total)} to download)")
    read = {wheel.sha256: (wheel.file, _download_code(wheel, screen)) for wheel in lacking}
    return {sha256: read[sha256] if sha256 in read else known[sha256] for sha256 in chosen}


def _download_code(wheel: Wheel, screen: Screen) -> Libraries:
    with tempfile.TemporaryDirectory(prefix="colab-local-gpu-code-") as folder:
        source = Source(wheel.file, wheel.url, wheel.sha256, wheel.size)
        path = fetch([source], Path(folder), screen, parallel=1)[wheel.file]
        code = package_code(path.rename(path.with_name(wheel.file)))  # its ending says what it is
    screen.report(f"  {wheel.file}: {len(code)} libraries with GPU code")
    return code


def code_text(wheels: Mapping[str, Code]) -> str:
    """Return gpu-code.json; wheels: {sha256: (file name, {library: kinds})}."""
    ordered = sorted(wheels.items(), key=lambda item: item[1][0])
    document = {
        "_": NOTICE + " Fat binaries in the wheels' libraries: `60` is machine code for 6.0, `90a@8.5` PTX 8.5.",
        "wheels": {sha256: {"file": file, "libraries": libraries} for sha256, (file, libraries) in ordered},
    }
    return json.dumps(document, indent=1) + "\n"


def parse_code(text: str) -> dict[str, Code]:
    """Return {sha256: (file name, {library: kinds})} of gpu-code.json's text; {} for none."""
    wheels = json.loads(text)["wheels"] if text else {}
    return {sha256: (entry["file"], entry["libraries"]) for sha256, entry in wheels.items()}


def joined(wheels: Iterable[Code]) -> Libraries:
    """Return every library of several wheels under a name of its own: two Pythons' TensorFlow are two."""
    return {f"{library} ({file})": kinds for file, libraries in wheels for library, kinds in libraries.items()}
