"""Files and answers that we read: their size, depth and shape, and a name for what is wrong with them."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from colab_local.base.errors import EXIT_INTEGRITY, Failure

LARGEST = 64 << 20  # bytes: an environment's --verify --json has about 2 MB
DEEPEST = 40  # objects and lists within each other: an index has 8


def mismatch(value: Any, shape: Any, where: str = "it") -> str:
    """Return where a JSON value is not as `shape` says, "" if it is nowhere.

    shape: {key: shape} of an object, where "*" means every key and one that ends in "?" may be missing; [shape] of
    a list; a regular expression of the whole of a text; else a type, or several; None for anything. A bool is no int.
    where: the value's own name.
    """
    if shape is None:
        return ""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return where
        for key in shape:
            name = key.rstrip("?")
            parts = [name] if name in value or name == key else []
            for part in list(value) if key == "*" else parts:
                found = mismatch(value.get(part), shape[key], f"{where}/{part}")
                if found:
                    return found
        return ""
    if isinstance(shape, list):
        fits = isinstance(value, list) and not any(mismatch(item, shape[0]) for item in value)
    elif isinstance(shape, str):
        fits = isinstance(value, str) and bool(re.match(f"({shape})\\Z", value))
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
    return "" if fits else where


def parse(content: str | bytes, name: str, shape: Any = None) -> Any:
    """Return the JSON value in a text.

    name: what it is called in a complaint; shape: as for mismatch().

    Raises:
        ValueError: it is too large, too deep, no JSON, or of another shape. The message says which, with `name`.
    """
    if len(content) > LARGEST:
        raise ValueError(f"{name} is too large (found {len(content)} bytes, need {LARGEST} or fewer)")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_no_number)
        _demand_plain(value)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as problem:  # UnicodeDecodeError and JSONDecodeError are of its kind
        raise ValueError(f"{name} is damaged ({problem})") from None
    wrong = mismatch(value, shape, name)
    if wrong:
        raise ValueError(f"{wrong} is missing or malformed")
    return value


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _demand_plain(value: Any) -> None:
    """Raise ValueError for what JSON allows and nobody writes: half a surrogate pair, depths beyond DEEPEST."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                item.encode("utf-8")
        level, depth = below, depth + 1


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file; what waits for a writer (a pipe) or has no end (a device) is none.

    Raises:
        OSError: it can't be read.
        ValueError: it is no regular file, or has more than `largest` bytes.
    """
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is no regular file")
        content = stream.read(largest + 1) if status.st_size <= largest else b""
        if status.st_size > largest or len(content) > largest:
            raise ValueError(f"{path.name} is too large (need {largest} bytes or fewer)")
    return content


def read(path: Path, shape: Any = None, name: str = "") -> Any:
    """Return the JSON value in a file.

    Raises:
        OSError: it can't be read.
        ValueError: it is no regular file, too large, too deep, no JSON, or of another shape; the message names it.
    """
    return parse(read_bytes(path), name or path.name, shape)


def demand(path: Path, shape: Any, hint: str, code: int = EXIT_INTEGRITY) -> Any:
    """Return the JSON value in a file that has to be there.

    Raises:
        Failure: it can't be read or is damaged; hint: what to type then; code: the exit code.
    """
    try:
        return read(path, shape)
    except OSError as problem:
        raise Failure(f"can't read {path} ({problem.strerror})", hint, code) from problem
    except ValueError as problem:
        raise Failure(f"{path} is damaged ({problem})", hint, code) from problem
