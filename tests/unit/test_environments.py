"""What is installed, as text and numbers."""

from __future__ import annotations

from tests.support.homes import run_script


def test_compare_without_arguments_teaches() -> None:
    for name in ("compare.py", "bundle.py"):
        done = run_script(name, "--help")
        assert done.returncode == 0 and f"scripts/{name} " in done.stdout
