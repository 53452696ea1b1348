"""Fat binaries, written byte by byte as nvcc lays them out."""

from __future__ import annotations

import struct

from colab_local.locking import gpu_code

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
    return gpu_code.MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


def lz4(text: bytes) -> bytes:
    """Return an LZ4 block of literals alone."""
    rest = len(text) - 15
    return bytes([0xF0]) + b"\xff" * (rest // 255) + bytes([rest % 255]) + text


def sass(*archs: int) -> list[bytes]:
    """Return machine code for these architectures."""
    return [entry(2, arch, b"\x7fELF" + bytes(100)) for arch in archs]


def ptx(target: str, version: str, packed: bool) -> bytes:
    """Return PTX, compressed or not."""
    text = PTX_TEXT.format(version, target).encode()
    major, minor = (int(part) for part in version.split("."))
    arch = int(target.rstrip("af"))
    payload, flags = (lz4(text), gpu_code.LZ4) if packed else (text, 0)
    return entry(1, arch, payload, (major, minor), flags)
