"""For which cards a library holds code, read from libraries that are written here byte by byte."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import zipfile
from pathlib import Path

import pytest

from colab_local.base.errors import Failure
from colab_local.locking import gpu_code
from colab_local.locking.wheels import Wheel
from tests.conftest import SCREEN

MAGIC = 0xBA55ED50
PTX_TEXT = ".version {}\n.target sm_{}\n.address_size 64\n.visible .entry add() {{ ret; }}\n"


def entry(kind: int, arch: int, payload: bytes, version: tuple[int, int] = (1, 0), flags: int = 0) -> bytes:
    """Return one entry of a fat binary: the header of 64 bytes that nvcc writes, then its content."""
    padded = payload + bytes(-len(payload) % 8)
    compressed = len(payload) if flags & gpu_code.LZ4 else 0
    head = struct.pack("<HHIQII", kind, 0x101, 64, len(padded), compressed, 0)
    head += struct.pack("<HHIQQQ", version[1], version[0], arch, 0, flags, len(payload))
    return head.ljust(64, b"\0") + padded


def fat(*entries: bytes) -> bytes:
    """Return a fat binary."""
    body = b"".join(entries)
    return struct.pack("<IHHQ", MAGIC, 1, 16, len(body)) + body


def lz4(text: bytes) -> bytes:
    """Return an LZ4 block of literals alone."""
    rest = len(text) - 15
    return bytes([0xF0]) + b"\xff" * (rest // 255) + bytes([rest % 255]) + text


def sass(*archs: int) -> list[bytes]:
    return [entry(2, arch, b"\x7fELF" + bytes(100)) for arch in archs]


def ptx(target: str, version: str, packed: bool) -> bytes:
    text = PTX_TEXT.format(version, target).encode()
    major, minor = (int(part) for part in version.split("."))
    arch = int(target.rstrip("af"))
    payload, flags = (lz4(text), gpu_code.LZ4) if packed else (text, 0)
    return entry(1, arch, payload, (major, minor), flags)


@pytest.mark.parametrize("packed", [False, True])
def test_the_real_target_is_in_the_text(tmp_path: Path, packed: bool) -> None:
    library = tmp_path / "libx.so"
    kernels = fat(*sass(60, 70, 80, 89), ptx("90a", "8.5", packed))
    library.write_bytes(bytes(1000) + kernels * 3 + b"other" + fat(*sass(100)) + struct.pack("<I", MAGIC) + bytes(80))
    assert gpu_code.library_code(library) == {"60 70 80 89 90a@8.5": 3, "100": 1}


def test_what_can_not_be_read_is_taken_for_that_card_alone() -> None:
    unreadable = entry(1, 120, b"\x28\xb5\x2f\xfd" + bytes(60), (8, 7), 0x8000)
    assert list(gpu_code.fat_binaries(fat(unreadable).ljust(400, b"\0"))) == [("120?@8.7",)]
    assert gpu_code.runs("120?@8.7", "12.0", "12.8") and not gpu_code.runs("120?@8.7", "12.1", "13.0")


def test_a_truncated_library_is_no_error() -> None:
    whole = fat(*sass(60, 70), ptx("90", "8.3", True))
    for length in range(len(whole)):
        list(gpu_code.fat_binaries(whole[:length]))


@pytest.mark.parametrize(
    ("kind", "capability", "cuda", "how"),
    [
        ("60 70 80 89 90a@8.5", "8.6", "12.0", "sass"),
        ("60 70 80 89 90a@8.5", "6.1", "12.0", "sass"),
        ("60 70 80 89 90a@8.5", "7.5", "12.0", "sass"),
        ("75", "7.0", "13.0", ""),
        ("60 70 80 89 90a@8.5", "9.0", "12.4", ""),
        ("60 70 80 89 90a@8.5", "9.0", "12.5", "90a@8.5"),
        ("60 70 80 89 90a@8.5", "12.0", "13.0", ""),  # the letter: no other card takes it
        ("60 70 80 89 90a@8.5", "10.0", "13.0", ""),
        ("60 90@8.3", "12.0", "12.8", "90@8.3"),
        ("80", "9.0", "13.0", ""),
    ],
)
def test_how_a_card_runs_a_fat_binary(kind: str, capability: str, cuda: str, how: str) -> None:
    assert gpu_code.runs(kind, capability, cuda) == how


TENSORFLOW = {"60 70 80 89 90a@8.5": 1149, "60 70 80 89 90 90@8.3": 248}
CUDNN_NEW = {"75 80 86 90 100 120 121 121@8.8": 10, "75": 2}
CUDNN_OLD = {"50 60 61 70 75 80 86 90 100 120 120@8.8": 10, "70 75": 2}


def test_the_locks_of_2026_11_and_after() -> None:
    new = gpu_code.needs({"libtensorflow_cc.so.2": TENSORFLOW, "libcudnn_cnn.so.9": CUDNN_NEW})
    assert list(new) == ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0"]
    old = gpu_code.needs({"libtensorflow_cc.so.2": TENSORFLOW, "libcudnn_cnn.so.9": CUDNN_OLD})
    assert {"6.0", "6.1", "7.0"} <= set(old) and not {"5.2", "10.0", "12.0"} & set(old)
    assert old["8.9"].entry() == {"cuda": "12.0", "driver": "525.60.13"}
    assert old["9.0"].entry() == {"cuda": "12.5", "driver": "555.42.02", "ptx": "8.5 sm_90a"}
    assert gpu_code.missing({"a": TENSORFLOW, "b": CUDNN_NEW}, "7.0") == ["b"]
    assert gpu_code.needs({}) == {}


def test_a_library_of_variants_needs_some_code_alone() -> None:
    variants = {"80": 400, "90": 1500, "50 60 70": 90}
    assert gpu_code.serves("libcublasLt.so.12", variants, "7.0", "12.0")
    assert not gpu_code.serves("libcublasLt.so.12", variants, "12.0", "13.0")
    assert gpu_code.serves("libcufftw.so.11", {"52": 1}, "12.0", "12.8")  # an empty kernel for one card says nothing


def test_a_wheel_and_the_file_in_lockfiles(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nvidia/x/lib/libx.so.1", fat(*sass(60, 70)).ljust(gpu_code.SMALLEST_LIBRARY, b"\0"))
        archive.writestr("nvidia/x/lib/small.so", fat(*sass(60, 70)))
        archive.writestr("nvidia/x/__init__.py", "")
    locked = Wheel(wheel.name, wheel.as_uri(), hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size)
    [(name, code)] = gpu_code.read_code([locked], {}, SCREEN).values()
    assert name == wheel.name
    with pytest.raises(Failure, match="is not the file that the lock names"):
        gpu_code.read_code([dataclasses.replace(locked, sha256="0" * 64)], {}, SCREEN)
    assert code == {"libx.so.1": {"60 70": 1}}
    text = gpu_code.code_text({"ab": (wheel.name, code)})
    assert gpu_code.parse_code(text) == {"ab": (wheel.name, code)} and gpu_code.parse_code("") == {}
    assert gpu_code.joined([(wheel.name, code)]) == {f"libx.so.1 ({wheel.name})": {"60 70": 1}}
