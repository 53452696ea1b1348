"""What the doctor makes of answers, and its table of cures."""

from __future__ import annotations

import re

from colab_local.laptop import colab_page, cures
from tests.support.jupyter_servers import (
    ORIGIN,
    REPO,
)


def test_every_fault_has_a_test_and_a_cure() -> None:
    named = set(
        re.findall(
            r'Fault\(\s*"([a-z0-9-]+)"',
            "".join(p.read_text() for p in sorted((REPO / "colab_local/laptop").glob("*.py"))),
        )
    )
    assert named | {"browser"} == set(cures.CURES)
    tested = (REPO / "tests/real/test_doctor.py").read_text()
    assert [code for code in cures.CURES if f'"{code}"' not in tested] == []
    assert ORIGIN == colab_page.ORIGIN


def test_the_troubleshooting_page_shows_the_doctors_table() -> None:
    page = (REPO / "docs" / "troubleshooting.md").read_text()
    section = page.split("## Connecting", 1)[1].split("\n## ", 1)[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert shown == cures.markdown_table().splitlines(), "paste the output of: python3 scripts/doctor.py --table"
