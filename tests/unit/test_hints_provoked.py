"""Each hint is provoked by a test: tests/support/provoked.json names it, and the test run is held to it."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import REPO
from tests.support import provoked
from tests.support.hint_sites import sites


def test_every_site_is_in_the_table_and_nothing_else() -> None:
    """After a change of hints: COLAB_LOCAL_PROVOKED=write pytest, with the tests that provoke them."""
    names = [site.name for site in sites()]
    assert len(names) == len(set(names)) > 250
    assert sorted(names) == sorted(provoked.table())
    assert [site for site, test in provoked.table().items() if not test] == [], "no test provokes it"


def test_every_test_in_the_table_is_there() -> None:
    functions: dict[str, set[str]] = {}
    for test in filter(None, provoked.table().values()):
        file, _, name = test.partition("::")
        if file not in functions:
            tree = ast.parse((REPO / file).read_text())
            functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in functions[file], test


def test_a_claim_that_does_not_come_true_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a hint that its own program would not take, or its shell."""
    site = sites()[0].name
    with monkeypatch.context() as patched:
        patched.setattr(provoked, "table", lambda: {site: "this"})
        patched.setattr(provoked, "RECORDER", provoked.Recorder())
        assert provoked.held("another") == []
        assert provoked.held("this") == [f"{site}: not provoked, as provoked.json says"]
        provoked.RECORDER.seen.add(site)
        assert provoked.held("this") == []
        provoked.RECORDER.heard("error: x\nhint: python3 bootstrap.py --no-such-option\n")
        assert len(provoked.held("this")) == 1
    for hint, wrong in (
        ("python3 /a/scripts/connect.py -p 22 me@host   # a remark", False),
        ("python3 bootstrap.py --port eighty", True),
        ("python3 'bootstrap.py", True),
        ("is the machine on?", False),
    ):
        assert bool(provoked.untypable(hint)) == wrong, hint


def test_words_of_a_program_are_told_by_their_site() -> None:
    """As lines, folded or not, and as JSON; put right for the reader."""
    site = next(one for one in sites() if one.name == "scripts/connect.py read_wish 2")
    error, hint = site.what[0].replace("VALUE", "x"), site.hint[0].replace("VALUE", "x")
    recorder = provoked.Recorder()
    recorder.heard(f"error: {error}\n", None, b"")
    assert recorder.seen == set()
    recorder.heard(f"error: {error}\nhint: {hint}\n")
    assert recorder.seen == {site.name}
