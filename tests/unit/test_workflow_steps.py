"""Every step of every workflow is red when a program in it fails: each is run with stubs, one of which fails.

GitHub runs a step whose shell is `bash` as `bash --noprofile --norc -eo pipefail` (GitHub Docs, "Workflow syntax",
jobs.<job_id>.steps[*].shell); a step that names no shell runs without pipefail, and `failing | tee` is then green.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parent.parent.parent
GITHUB_BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]
PROGRAMS = ("python", "python3", "gh", "git", "apt-get", "env")
# Answers without which a step would not go on; by the start of the command.
ANSWERS = {
    "gh api": "echo 0123456789abcdef0123456789abcdef01234567 2026-11-20",
    "git status": "echo ' M lockfiles/index.json'",
    "python scripts/lock.py": "echo 'openssl: 3.6.3 -> 3.6.5'",
}


def all_steps() -> Iterator[tuple[str, str]]:
    """Yield (name, script) of every step that runs a script."""
    for path in sorted((REPO / ".github/workflows").glob("*.yml")):
        for job, content in yaml.safe_load(path.read_text())["jobs"].items():
            for number, step in enumerate(content["steps"]):
                if "run" in step:
                    yield f"{path.stem}-{job}-{number}", re.sub(r"\$\{\{.*?\}\}", "value", step["run"])


STEPS = dict(all_steps())


def run_step(folder: Path, script: str, failing: int = 0) -> tuple[int, list[str]]:
    """Run a step's script in a folder of its own with stubs for programs; return its status and what it called.

    failing: which call ends with status 1: the first is 1.
    """
    tools, work = folder / "tools", folder / "work"
    tools.mkdir(parents=True)
    work.mkdir()
    (folder / "calls").write_text("")
    lines = ["#!/bin/bash", f'call="${{0##*/}} $*"; echo "$call" >>{folder}/calls']
    lines += [f"[ $(wc -l <{folder}/calls) != {failing} ] || exit 1"]
    lines += [f"case $call in {shlex.quote(start)}*) {answer} ;; esac" for start, answer in ANSWERS.items()]
    for program in PROGRAMS:
        (tools / program).write_text("\n".join([*lines, "exit 0"]) + "\n")
        (tools / program).chmod(0o755)
    for name in ("ci", ".ci"):
        (work / name).symlink_to(REPO / name)
    (folder / "changes.txt").write_text("openssl: 3.6.3 -> 3.6.5\n")
    environ = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "RUNNER_TEMP": str(folder),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "GITHUB_RUN_NUMBER": "7",
        "FREEZE": "pip-freeze.gpu.txt",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8"),
    }
    (folder / "step.sh").write_text(script)
    done = subprocess.run([*GITHUB_BASH, str(folder / "step.sh")], cwd=work, env=environ, timeout=60, check=False)
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    "name", [name for name, script in STEPS.items() if not re.search(r"\.ci/run|ci/test", script)]
)
def test_a_step_is_red_when_any_program_in_it_fails(tmp_path: Path, name: str) -> None:
    """Also the one whose output goes into a pipe, and the one that says that nothing has changed."""
    status, calls = run_step(tmp_path / "well", STEPS[name])
    assert status == 0 and calls, name
    for number, call in enumerate(calls, 1):
        status, _ = run_step(tmp_path / str(number), STEPS[name], failing=number)
        assert status != 0, f"{name}: green although this failed: {call}"


def test_the_shell_without_pipefail_would_hide_it(tmp_path: Path) -> None:
    """What GitHub's default does with the same step: this is why every workflow names its shell."""
    name = next(name for name, script in STEPS.items() if name.startswith("relock") and "--follow" in script)
    _, calls = run_step(tmp_path / "well", STEPS[name])
    solve = next(number for number, call in enumerate(calls, 1) if "--follow" in call)
    assert run_step(tmp_path / "strict", STEPS[name], failing=solve)[0] != 0
    assert run_step(tmp_path / "weak", "set +o pipefail\n" + STEPS[name], failing=solve)[0] == 0


@pytest.mark.parametrize("answer", ["", "null null", "0123 2026-11-20", "<html>"])
def test_a_strange_answer_from_github_stops_the_relock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """`gh` ends well and says nothing, or something else than a commit and a date."""
    monkeypatch.setitem(ANSWERS, "gh api", f"echo {shlex.quote(answer)}")
    name = next(name for name, script in STEPS.items() if name.startswith("relock") and "--follow" in script)
    status, calls = run_step(tmp_path, STEPS[name])
    assert status != 0 and not any("lock.py" in call for call in calls)


def test_nothing_changed_opens_no_pull_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ANSWERS, "git status", "true")
    for name in [name for name, script in STEPS.items() if "pull_request.sh" in script]:
        status, calls = run_step(tmp_path / name, STEPS[name])
        assert status == 0 and [call.split()[:2] for call in calls] == [["git", "status"]]
