"""Ask the NVIDIA driver itself, libcuda.so.1, what it can do: a program of its own, started by gpu_questions.py.

    python3 -I cuda_probe.py LIBRARY '{"9.0": "8.5 sm_90a"}'

It may crash or hang within the driver (a card in a bad state does that), so it is never imported into a program that
matters. Before each step it writes one JSON line with the step's name; whoever reads them knows where it stopped.

The second argument says for which capability which PTX has to be taken: of TensorFlow's own version and target.

The functions and numbers are those of cuda.h (CUDA Driver API).
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
PTX = ".version {}\n.target {}\n.address_size 64\n.visible .entry colab_local()\n{{\n  ret;\n}}\n"
MIB = 1 << 20


def say(**words: Any) -> None:
    """Write one line of the answer."""
    print(json.dumps(words), flush=True)


class Driver:
    """libcuda.so.1: each call is announced first, so that one that never comes back is known by name."""

    def __init__(self, library: str) -> None:
        self.cuda = ctypes.CDLL(library)

    def call(self, function: str, *arguments: Any) -> int:
        """Call a function and return its CUresult; -1 if this driver has no such function."""
        say(step=function)
        try:
            called = getattr(self.cuda, function)
        except AttributeError:
            return -1
        return int(called(*arguments))

    def name_of(self, status: int) -> str:
        """Return a CUresult's name, CUDA_ERROR_NO_DEVICE say, or ""."""
        text = ctypes.c_char_p()
        self.call("cuGetErrorName", status, ctypes.byref(text))
        return (text.value or b"").decode("ascii", "replace")


def device(driver: Driver, number: int, ptx: dict[str, str]) -> dict[str, Any]:
    """Return what the driver tells of one device."""
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    uuid = (ctypes.c_ubyte * 16)()
    driver.call("cuDeviceGet", ctypes.byref(handle), number)
    driver.call("cuDeviceGetName", name, 256, handle)
    driver.call("cuDeviceGetAttribute", ctypes.byref(major), CAPABILITY_MAJOR, handle)
    driver.call("cuDeviceGetAttribute", ctypes.byref(minor), CAPABILITY_MINOR, handle)
    driver.call("cuDeviceTotalMem_v2", ctypes.byref(total), handle)
    known = driver.call("cuDeviceGetUuid", ctypes.byref(uuid), handle) == 0
    hexadecimal = bytes(uuid).hex()
    parts = [hexadecimal[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))]
    capability = f"{major.value}.{minor.value}" if major.value else ""
    found: dict[str, Any] = {
        "name": name.value.decode("utf-8", "replace"),
        "compute_capability": capability,
        "memory_mib": total.value // MIB,
        "uuid": "GPU-" + "-".join(parts) if known and any(uuid) else "",
    }
    context = ctypes.c_void_p()
    found["context"] = driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    if found["context"] == 0:
        driver.call("cuCtxSetCurrent", context)
        free = ctypes.c_size_t()
        if driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)) == 0:
            found["free_mib"] = free.value // MIB
        if capability in ptx:
            text, module = PTX.format(*ptx[capability].split()), ctypes.c_void_p()
            found["ptx"] = driver.call("cuModuleLoadData", ctypes.byref(module), text.encode("ascii"))
        driver.call("cuDevicePrimaryCtxRelease_v2", handle)
    return found


def main() -> None:
    """Write what the driver answers, line by line."""
    ptx = json.loads(sys.argv[2])
    say(step="dlopen")
    try:
        driver = Driver(sys.argv[1])
    except OSError as problem:
        say(missing=str(problem))
        return
    say(library=sys.argv[1])
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.call("cuDriverGetVersion", ctypes.byref(version)) == 0:
        say(cuda=f"{version.value // 1000}.{version.value % 1000 // 10}")
    status = driver.call("cuInit", 0)
    say(status=status, status_name=driver.name_of(status) if status else "")
    if status == 0 and driver.call("cuDeviceGetCount", ctypes.byref(count)) == 0:
        for number in range(count.value):
            say(device=device(driver, number, ptx))
    say(end=True)


if __name__ == "__main__":
    main()
