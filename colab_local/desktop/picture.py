"""Look at what the desktop shows: a screen that is all of one colour is no desktop, whatever runs behind it."""

from __future__ import annotations

import time
from typing import NamedTuple

from colab_local.base.errors import Failure

from . import look
from .person import Person, system_python

APPEARS_WITHIN = 20.0  # seconds from the start of the desktop's programs to a picture
MOST = 0.995  # the share of the screen that may be of one colour
# Run as the user, with the X server's cookie: counts the pixels of the screen by colour. Prints the number of pixels,
# of colours, of pixels in the most frequent colour, and that colour.
PROGRAM = """
import collections, ctypes
class Image(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int) for n in ("width", "height", "xoffset", "format")] + [("data", ctypes.c_void_p)] + [
        (n, ctypes.c_int) for n in ("order", "unit", "bit_order", "pad", "depth", "line", "bits")]
x = ctypes.CDLL("libX11.so.6")
x.XOpenDisplay.restype = ctypes.c_void_p
x.XDefaultRootWindow.argtypes = [ctypes.c_void_p]
x.XDefaultRootWindow.restype = ctypes.c_ulong
size = [ctypes.c_void_p, ctypes.c_int]
x.XDisplayWidth.argtypes = x.XDisplayHeight.argtypes = size
x.XGetImage.restype = ctypes.POINTER(Image)
x.XGetImage.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
                        ctypes.c_ulong, ctypes.c_int]
display = x.XOpenDisplay(None)
width, height = x.XDisplayWidth(display, 0), x.XDisplayHeight(display, 0)
shown = x.XGetImage(display, x.XDefaultRootWindow(display), 0, 0, width, height, 0xFFFFFF, 2)[0]
assert shown.bits == 32
pixels = memoryview(ctypes.string_at(shown.data, shown.line * shown.height)).cast("I")
counts = collections.Counter(pixels)
colour, most = counts.most_common(1)[0]
print(len(pixels), len(counts), most, "%06x" % (colour & 0xFFFFFF))
"""


class Seen(NamedTuple):
    """A picture in numbers. pixels; colours: how many different ones; share: of the most frequent one, `colour`."""

    pixels: int
    colours: int
    share: float
    colour: str


def take(person: Person, display: int) -> Seen | None:
    """Return what a display shows; None where it cannot be asked (no libX11 for this Python)."""
    env = person.environment(DISPLAY=f":{display}", XAUTHORITY=str(person.home / ".vnc" / f"Xauthority-{display}"))
    try:
        words = person.run([system_python(), "-I", "-c", PROGRAM], env=env, timeout=30).decode().split()
        pixels, colours, most = int(words[0]), int(words[1]), int(words[2])
        return Seen(pixels, colours, most / max(pixels, 1), words[3])
    except (Failure, ValueError, IndexError):
        return None


def complaint(seen: Seen, bare: bool) -> str | None:
    """Return why a picture shows no desktop, or None. bare: one without panel and wallpaper."""
    if seen.colours == 1:
        return f"the screen is all of one colour (#{seen.colour})"
    if not bare and seen.share > MOST:
        return f"the screen is empty ({seen.share:.1%} of it #{seen.colour})"
    return None


def check(person: Person, display: int, bare: bool, timeout: float = APPEARS_WITHIN) -> list[str]:
    """Wait until a display shows a desktop; return what was seen, nothing if it cannot be asked.

    timeout: seconds.

    Raises:
        look.Problem: it shows none.
    """
    deadline = time.monotonic() + timeout
    while True:
        seen = take(person, display)
        if seen is None:
            return []
        fault = complaint(seen, bare)
        if fault is None:
            return [f"the screen shows a desktop ({seen.colours} colours)"]
        if time.monotonic() > deadline:
            raise look.Problem(fault)
        time.sleep(0.5)
