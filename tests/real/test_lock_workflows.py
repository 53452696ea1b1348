""".github/workflows: valid, pinned, with the least permissions, and calling what is there with options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci import check_lockfiles
from scripts import lock
from tests.support.lock_lab import REPO

WRITERS = ("installers", "relock")  # those that open a pull request
WORKFLOWS = sorted((REPO / ".github/workflows").glob("*.yml"))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every step of every job of a workflow."""
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        yield from job["steps"]


def test_there_is_one_for_each_purpose() -> None:
    """Newer installers, live lock check, weekly re-lock, tests, two machines."""
    assert [path.name for path in WORKFLOWS] == [
        "installers.yml",
        "lock-check.yml",
        "relock.yml",
        "tests.yml",
        "two-machines.yml",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_valid_pinned_and_modest(path: Path) -> None:
    """GitHub's own schema; actions by commit; what a job may write is said in the job; no endless job."""
    schema = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run([sys.executable, *schema], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in path.read_text().splitlines():
        if "uses:" in line:
            assert re.search(r"uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {"contents": "read"}
    assert content["defaults"] == {"run": {"shell": "bash"}}  # which GitHub runs with -eo pipefail
    assert not any("shell" in step for step in steps(path))
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        assert path.stem in WRITERS or "permissions" not in job, name
    for step in steps(path):
        if "checkout" in step.get("uses", "") and path.stem not in WRITERS:
            assert step["with"]["persist-credentials"] is False
        # what somebody else can choose (titles, branch names) must not become part of a script
        assert not re.search(r"\$\{\{\s*github\.(event|head_ref)", step.get("run", ""))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_exist_and_take_their_options(path: Path) -> None:
    """Every script step is sound shell; each of our programs has the options with which it is called."""
    called = 0
    for step in steps(path):
        script = re.sub(r"\$\{\{.*?\}\}", "value", step.get("run", ""))
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for line in script.splitlines():
            found = re.search(r"(python3? (?:\S+\.py)|bash \S+(?:\.sh|/run))( [^|>;]*)?", line)
            if not found:
                continue
            program, arguments = found.group(1).split()[1], shlex.split(found.group(2) or "")
            called += 1
            if program != "scripts/compare.py":  # its own tests say what it takes
                assert (REPO / program).is_file(), program
            if program in ("scripts/lock.py", "ci/check_lockfiles.py"):
                (lock if program == "scripts/lock.py" else check_lockfiles).make_parser().parse_args(arguments)
            elif program == "bootstrap.py":
                run = subprocess.run(
                    [sys.executable, str(REPO / program), "--help"], capture_output=True, text=True, check=True
                )
                for option in [argument for argument in arguments if argument.startswith("--")]:
                    assert option in run.stdout
    assert called or path.stem == "tests"
