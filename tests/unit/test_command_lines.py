"""Every program alike: two lines for every error, usage errors too, the documented code, help without libraries."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from colab_local import VERSION
from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_FAILED, EXIT_USAGE, Failure
from colab_local.base.terminal import Screen
from tests.conftest import REPO, clean_environment
from tests.support.provoked import RECORDER

PROGRAMS = (
    "bootstrap.py",
    "scripts/bundle.py",
    "scripts/connect.py",
    "scripts/doctor.py",
    "scripts/compare.py",
    "scripts/benchmark.py",
    "scripts/lock.py",
    "scripts/fleet/cloud_init.py",
)
# Wrong for every program, whatever its options; then a program's own.
WRONG = [["--nosuch"], ["--helpp"], ["-Z"], ["--json=yes"], ["--nosuch=1", "x"], ["--versionn"]]
OWN = {
    "bootstrap.py": [
        ["--gup"],
        ["gpu"],
        ["install", "--gpu"],
        ["--verify", "cpu"],
        ["--engine", "minforge"],
        ["--env"],
        ["--cpu", "--gpu"],
        ["--prefix", "/x", "--port"],
        ["--display", "one"],
    ],
    "scripts/bundle.py": [["--engine", "pixy"], ["--jobs", "many"], ["cpu"], ["--env"], ["--env", "nosuch"]],
    "scripts/connect.py": [[], ["--port", "0", "h"], ["--port", "eighty", "h"], ["a", "b"], ["--stpo", "h"]],
    "scripts/doctor.py": [["--timeout"], ["--timeout", "soon"], ["--tabel"], ["--token-fil", "x"], ["--jso"]],
    "scripts/compare.py": [[], ["a"], ["a", "b", "c"], ["--jsno", "a", "b"], ["/nosuch", "/nosuch"]],
    "scripts/benchmark.py": [[], ["trian"], ["install", "--rounds", "x"], ["train", "--step", "1"], ["verify", "x"]],
    "scripts/fleet/cloud_init.py": [[], ["--git"], ["--cloud", "mars"], ["--git", "x", "--bundle-url", "y"]],
    "scripts/lock.py": [["--chek"], ["--channel"], ["--index-onl"], ["--python"], ["--folow", "x"]],
}


def call(
    program: str, *arguments: str, python: tuple[str, ...] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of ours by its name, as a user in a clone does."""
    argv = ["python3", *python, program, *arguments]
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # python3 is the one that runs it
    env = clean_environment(Path("/nonexistent")) | {"PATH": here} | environ
    return subprocess.run(
        argv, cwd=REPO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


# Runs a program once for each line, each in a process of its own that finds all modules loaded already.
EACH = """
import json, os, runpy, sys
program, lines, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
runpy.run_path(program, run_name="loaded")
for number, line in enumerate(lines):
    child = os.fork()
    if not child:
        for descriptor in (1, 2):
            os.dup2(os.open(f"{out}/{number}.{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = [program, *line]
        sys.orig_argv = ["python3", program, *line]
        runpy.run_path(program, run_name="__main__")
    with open(f"{out}/{number}.code", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def call_each(program: str, lines: Sequence[Sequence[str]], folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run a program of ours with each of these lines. folder: for what they say."""
    folder.mkdir()
    env = clean_environment(Path("/nonexistent"))
    argv = [sys.executable, "-c", EACH, program, json.dumps(lines), str(folder)]
    subprocess.run(argv, cwd=REPO, env=env, stdin=subprocess.DEVNULL, timeout=120, check=True)
    ended = []
    for number, line in enumerate(lines):
        code, out, err = ((folder / f"{number}.{what}").read_text() for what in ("code", "1", "2"))
        ended.append(subprocess.CompletedProcess(list(line), int(code), out, err))
        RECORDER.heard(err)
    return ended


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_command_lines_give_two_lines_and_the_documented_code(program: str, tmp_path: Path) -> None:
    wrong = [*WRONG, *OWN[program]]
    ended = call_each(program, wrong, tmp_path / "wrong")
    for arguments, done in zip(wrong, ended, strict=True):
        lines = done.stderr.splitlines()
        assert done.returncode == EXIT_USAGE, (arguments, done.stderr)
        assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), (
            arguments,
            lines,
        )
        assert not re.search(r"argument |arguments|invalid", lines[0]), (arguments, lines)  # argparse's own words
    helps = sorted({lines[1] for done in ended if (lines := done.stderr.splitlines())[-1].endswith("--help")})
    helped = call_each(program, [shlex.split(hint)[3:] for hint in helps], tmp_path / "help")
    for hint, done in zip(helps, helped, strict=True):
        assert (done.returncode, done.stderr) == (0, ""), hint


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--gup", "--gpu"),
        ("gpu", "--gpu"),
        ("install --gpu", "--gpu"),
        ("--verify cpu", "--verify --cpu"),
        ("--engine minforge", "--engine miniforge"),
        ("--dryrun --gpu", "--dry-run --gpu"),
        ("--prefix=/x --lauch", "--prefix=/x --launch"),
    ],
)
def test_what_was_meant_is_offered_as_the_whole_line(arguments: str, hint: str) -> None:
    done = call("bootstrap.py", *arguments.split())
    assert done.stderr.splitlines()[1] == f"hint: python3 bootstrap.py {hint}"


def test_an_interpreter_with_its_path_stands_once_in_a_hint() -> None:
    """As pyenv's shims start Python: the parser's hint is a whole line already."""
    argv = [sys.executable, "bootstrap.py", "--gup"]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[1] == f"hint: {sys.executable} bootstrap.py --gpu"


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("--gup", EXIT_USAGE), ("--json --list --home x", EXIT_USAGE)])
def test_closed_and_full_streams_change_nothing_but_what_is_seen(words: str, code: int, streams: str) -> None:
    line = f"python3 bootstrap.py {words} {streams}"
    done = subprocess.run(["sh", "-c", line], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == code
    seen = "2>" not in streams
    assert len(done.stderr.splitlines()) == (2 if seen else 0), done.stderr


def test_a_closed_stream_is_no_file_of_ours(tmp_path: Path) -> None:
    """Whatever is opened next would get its number, and with it what we print."""
    line = f"exec {shlex.quote(sys.executable)} bootstrap.py --list --prefix {shlex.quote(str(tmp_path))} >&- 2>&-"
    done = subprocess.run(["sh", "-c", line], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nothing_that_removes_is_ever_offered(tmp_path: Path) -> None:
    words = ("install", "--install", "--instal", "--uninstal", "--unistall", "--prun", "prune", "--rollbak")
    ended = call_each("bootstrap.py", [[word] for word in words], tmp_path / "said")
    for word, done in zip(words, ended, strict=True):
        hint = done.stderr.splitlines()[1]
        assert not any(option in hint for option in ("--uninstall", "--prune", "--rollback")), (word, hint)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_version_work_where_no_library_is(program: str) -> None:
    """-S: no site-packages at all, as on a bare machine."""
    shown = call(program, "--help", python=("-S", "-I"))
    assert shown.returncode == 0 and "usage:" in shown.stdout and shown.stderr == ""
    # What is longer is one command, alone on its line; argparse has choices and defaults of one word.
    long = [line.strip() for line in shown.stdout.splitlines() if len(line) > 80]
    assert [
        line for line in long if not re.match(r"(python3? |ssh |tar |https:|--|\[--)", line) or "   " in line
    ] == []
    told = call(program, "--version", python=("-S", "-I"))
    assert told.stdout == f"colab-local {VERSION}\n" and told.returncode == 0


def test_it_runs_isolated_from_anywhere_and_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "b.py"
    link.symlink_to(REPO / "bootstrap.py")
    for python, environ, program in (
        (["-I"], {}, REPO / "bootstrap.py"),
        ([], {"PYTHONSAFEPATH": "1"}, REPO / "bootstrap.py"),
        ([], {}, link),
        (["-I"], {}, link),
    ):
        argv = [sys.executable, *python, str(program), "--list", "--prefix", str(tmp_path / "home")]
        env = clean_environment(tmp_path) | environ
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "No environment is installed" in done.stdout, done.stderr


def test_a_missing_part_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.py").write_bytes((REPO / "bootstrap.py").read_bytes())
    argv = [sys.executable, "bootstrap.py", "--prefix", str(tmp_path / "home")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    first, second = done.stderr.splitlines()
    assert done.returncode == 4 and "not complete" in first and second.startswith("hint: ")
    assert not (tmp_path / "home").exists()


def test_an_unforeseen_exception_is_two_lines_and_its_log_has_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def work(args: object, screen: Screen) -> int:
        return int(os.environ["TMPDIR"])

    assert run_program(Parser(prog="x"), work, []) == EXIT_FAILED
    error, hint, log = capsys.readouterr().err.splitlines()
    assert error.startswith("error: unforeseen: ValueError: invalid literal")
    path = Path(log.partition("log: ")[2])
    assert path.name in hint and "Traceback" in path.read_text() and path.stat().st_mode & 0o777 == 0o600


def test_a_failures_code_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def work(args: object, screen: Screen) -> int:
        raise Failure("found 1 (need 2)", "type this", 5)

    assert run_program(Parser(prog="x"), work, []) == 5
    assert capsys.readouterr().err == "error: found 1 (need 2)\nhint: type this\n"
