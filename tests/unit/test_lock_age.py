"""colab_local/locking/age.py: what is behind its channel, and what is kept back on purpose."""

from __future__ import annotations

from datetime import date

import pytest

from colab_local.locking.age import CONDA, PYTHON, Standing, behind, report


def test_the_list_is_that_of_what_listens_decrypts_and_parses() -> None:
    assert {*CONDA, *PYTHON} == {
        *("openssl", "expat", "ca-certificates", "python", "sqlite"),
        *("tornado", "notebook", "pillow", "urllib3", "requests"),
    }


@pytest.mark.parametrize(
    ("standing", "late", "words"),
    [
        (Standing("openssl", "3.6.3", "3.6.5"), True, "behind, the newest is 3.6.5"),
        (Standing("openssl", "3.6.5", "3.6.5"), False, "the newest"),
        (Standing("openssl", "3.6.5", "3.5.9"), False, "the newest"),
        (Standing("openssl", "1.1.1w", "1.1.1x"), True, "behind"),  # no version as Python has them
        (Standing("expat", "2.8.1", ""), False, "not in the channel any more"),
        (Standing("ca-certificates", "2026.7.22", "2026.10.19"), True, "2026.10.19"),
        (Standing("pillow", "11.3.0", "13.0.0", "hosted Colab has this one"), True, "hosted Colab has this one"),
    ],
)
def test_a_standing(standing: Standing, late: bool, words: str) -> None:
    assert standing.is_behind is late and words in standing.line()


def test_what_is_kept_back_is_said_and_is_no_alarm() -> None:
    found = {
        "cpu": [Standing("openssl", "3.6.3", "3.6.5"), Standing("pillow", "11.3.0", "13.0.0", "hosted Colab has it")],
        "gpu": [Standing("openssl", "3.6.3", "3.6.5"), Standing("tornado", "6.6.1", "6.6.1")],
    }
    assert behind(found) == ["openssl"]
    lines = report(date(2026, 11, 25), date(2026, 10, 16), found)
    assert lines[0] == "The newest conda package in the lock is of 2026-10-16, 40 days ago."
    assert any("pillow 11.3.0: behind" in line for line in lines) and lines.count("gpu:") == 1
