"""Every reader of a file or an answer, on good and on damaged ones. tests/support/faults.py tries a million."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_good_one_is_read(name: str) -> None:
    (fuzz.FOLDER / "envs" / fuzz.NAME).mkdir(parents=True, exist_ok=True)
    assert fuzz.attempt(name, fuzz.READERS[name][2].encode()) == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes: list[Path] = []

    def make_pipe(name: str, content: bytes) -> Path:
        path = fuzz.FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        pipes.append(path)
        return path

    monkeypatch.setattr(fuzz, "write", make_pipe)
    assert fuzz.attempt(name, fuzz.READERS[name][2].encode()) == ""
    for path in pipes:
        path.unlink(missing_ok=True)


def test_damaged_ones_are_refused_in_words() -> None:
    assert fuzz.run(1500, seed=1).lost == ()


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(fuzz.READERS)), st.binary(max_size=400))
def test_any_bytes_at_all(name: str, content: bytes) -> None:
    assert fuzz.attempt(name, content) == ""


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(fuzz.RECEIPT)), inner, max_size=4)
        ),
    )
)
def test_any_document_at_all(value: object) -> None:
    import json

    for name in ("receipt", "index", "server", "any document", "conda record"):
        assert fuzz.attempt(name, json.dumps(value).encode()) == ""
