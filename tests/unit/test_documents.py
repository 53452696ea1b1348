"""The one reader: what is too large, too deep, no file, no JSON or of another shape is named, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from colab_local.base import documents
from colab_local.install import home as homes
from tests.support.receipts import RECEIPT, write_receipt


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("{", "is damaged"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": "\\ud800"}', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        ("[]", "it is missing or malformed"),
        ('{"port": true}', "it/port is missing or malformed"),
        ('{"port": "8888"}', "it/port is missing or malformed"),
        ("{}", "it/port is missing or malformed"),
    ],
)
def test_what_is_wrong_is_named(content: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        documents.parse(content, "it", {"port": int})


def test_only_regular_files_of_a_size_are_read(tmp_path: Path) -> None:
    pipe, sparse = tmp_path / "pipe", tmp_path / "sparse"
    os.mkfifo(pipe)
    with sparse.open("wb") as stream:
        stream.truncate(6 << 30)
    for path, said in ((pipe, "no regular file"), (sparse, "too large"), (Path("/dev/zero"), "no regular file")):
        with pytest.raises(ValueError, match=said):
            documents.read(path)
    with pytest.raises(OSError):
        documents.read(tmp_path / "missing")


def parts(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every part of a JSON value."""
    below = (
        [found for key, item in value.items() for found in parts(item, (*path, key))]
        if isinstance(value, dict)
        else []
    )
    return [path, *below]


def test_a_mutated_receipt_is_a_receipt_or_none_and_never_a_traceback(tmp_path: Path) -> None:
    """Every part of it replaced by every kind of value: what is read keeps to its home, whatever it says."""
    values: list[Any] = [None, True, -1, 1.5, "", "../../..", "/etc", "x\n", [], [1], {}, {"..": "/"}, "a" * 9999]
    good = RECEIPT | {"home": str(tmp_path), "root": "/", "prefix": "/", "parents": 1}
    for path in parts(good)[1:]:
        for value in values:
            changed = json.loads(json.dumps(good))
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            write_receipt(tmp_path, changed)
            found = homes.read_receipts(tmp_path)
            for receipt in found:
                assert Path(receipt["root"]) == tmp_path / "envs" / "cpu-0123456789ab"
                assert tmp_path in Path(receipt["prefix"]).parents
            homes.current_receipt(tmp_path, "cpu")


def test_receipts_of_both_forms_are_read_and_a_copied_home_has_none(tmp_path: Path) -> None:
    old = RECEIPT | {"schema": 1, "root": f"{tmp_path}/envs/cpu-0123456789ab"}
    for receipt in (RECEIPT | {"home": str(tmp_path)}, old):
        write_receipt(tmp_path, receipt)
        found = homes.read_receipt(tmp_path, "cpu-0123456789ab")
        assert found and found["prefix"] == str(tmp_path / "envs" / "cpu-0123456789ab")
    write_receipt(tmp_path, RECEIPT | {"home": "/another/home"})
    assert homes.read_receipts(tmp_path) == []
