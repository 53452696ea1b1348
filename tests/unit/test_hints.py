"""colab_local/base/hints.py: what a hint says can be pasted where it is read."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from colab_local.base.hints import Typed, beside, interpreter_of, true_here

MODES = ("list", "uninstall", "verify")


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """A parser shaped like bootstrap.py's."""
    made = argparse.ArgumentParser(prog="bootstrap.py")
    made.add_argument("--cpu", dest="env", action="store_const", const="cpu")
    made.add_argument("--gpu", dest="env", action="store_const", const="gpu")
    made.add_argument("--env", dest="env")
    made.add_argument("--prefix", dest="home")
    made.add_argument("--port", type=int)
    made.add_argument("--engine")
    made.add_argument("--python")
    made.add_argument("--mirror", action="append")
    for mode in (*MODES, "launch", "json"):
        made.add_argument("--" + mode, action="store_true")
    return made


CASES = [
    ("", "--port 8889", "--port 8889"),
    ("--gpu --prefix /data/cl", "--port 8889", "--gpu --prefix /data/cl --port 8889"),
    ("--gpu --launch", "--cpu", "--launch --cpu"),
    ("--env gpu --port=8888", "--port 8889", "--env gpu --port 8889"),
    ("--env=gpu", "--cpu", "--cpu"),
    ("--prefix '/my data/x'", "--engine host", "--prefix '/my data/x' --engine host"),
    ("--mirror nothing --gpu", "--mirror C://=D://", "--gpu --mirror C://=D://"),
    ("--verify --json --prefix /x --gpu", "--env gpu", "--prefix /x --env gpu"),
    ("--prefix /x --launch --port 80", "--uninstall", "--prefix /x --uninstall"),
    ("--verify --prefix /x", "", "--prefix /x"),
    ("--gpu", "", "--gpu"),
    ("--gup --prefix /x", "--cpu", "--cpu"),
    ("--gpu", "--gpu --launch", "--gpu --launch"),
    ("--gpu --python x --engine=host", "!--python --engine pixi", "--gpu --engine pixi"),
    ("--prefix '' --gpu", "!--prefix", "--gpu"),
    ("--gpu", "--prefix '/a b/c'", "--gpu --prefix '/a b/c'"),
]


@pytest.mark.parametrize(("words", "asked", "shown"), CASES)
def test_the_users_options_stay_unless_the_hint_contradicts_them(
    parser: argparse.ArgumentParser, words: str, asked: str, shown: str
) -> None:
    typed = Typed("python3", "bootstrap.py", tuple(shlex.split(words)))
    hint = " ".join(["python3 bootstrap.py", asked]).strip()
    assert true_here(hint, typed, parser, MODES) == " ".join(["python3 bootstrap.py", shown]).strip()
    parser.parse_args(shlex.split(shown))


@pytest.mark.parametrize("words", ["--env", "--cpu --gpu --prefix /x", "--prefix /x"])
def test_help_stands_alone(parser: argparse.ArgumentParser, words: str) -> None:
    """A wrong option before it would be an error again."""
    typed = Typed("python3", "bootstrap.py", tuple(words.split()))
    assert true_here("python3 bootstrap.py --help", typed, parser, MODES) == "python3 bootstrap.py --help"


def test_the_program_is_where_it_was_typed(parser: argparse.ArgumentParser) -> None:
    typed = Typed("python3.12", "/opt/my tools/bootstrap.py", ("--gpu",))
    hint = "sudo apt-get install python3.12 && python3 bootstrap.py --python python3.12   # or another"
    assert true_here(hint, typed, parser, MODES) == (
        "sudo apt-get install python3.12 && "
        "python3.12 '/opt/my tools/bootstrap.py' --gpu --python python3.12   # or another"
    )
    assert (
        true_here("python3 scripts/doctor.py", typed, parser, MODES) == "python3.12 '/opt/my tools/scripts/doctor.py'"
    )


def test_prose_behind_a_command_stays_as_it_is(parser: argparse.ArgumentParser) -> None:
    typed = Typed("python3", "cl/scripts/doctor.py", ())
    hint = "Start it as python3 bootstrap.py prints; or, elsewhere, run python3 scripts/connect.py USER@HOST"
    shown = hint.replace("python3 ", "python3 cl/")
    assert true_here(hint, typed, parser, None) == shown


def test_a_hint_without_a_command_of_ours_stays_as_it_is(parser: argparse.ArgumentParser) -> None:
    typed = Typed("python3", "bootstrap.py", ("--gpu",))
    for hint in ("wsl --install", "", "export HOME=/a/folder/of/yours", "ssh -t me@box sudo apt install python3"):
        assert true_here(hint, typed, parser, MODES) == hint


def test_programs_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shell would find them, from several folders and through a link."""
    repository = tmp_path / "cl"
    (repository / "scripts").mkdir(parents=True)
    for name in ("bootstrap.py", "scripts/doctor.py", "scripts/connect.py"):
        (repository / name).touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bootstrap.py").symlink_to(repository / "bootstrap.py")
    (tmp_path / "bin" / "doctor.py").symlink_to(repository / "scripts" / "doctor.py")
    places = [(repository, "bootstrap.py"), (repository, "./bootstrap.py"), (repository, "scripts/doctor.py")]
    places += [(repository / "scripts", "doctor.py"), (repository / "scripts", "../bootstrap.py")]
    places += [(tmp_path, "cl/bootstrap.py"), (tmp_path, "cl/scripts/doctor.py"), (tmp_path, "bin/bootstrap.py")]
    places += [(tmp_path, "bin/doctor.py"), (tmp_path, str(repository / "bootstrap.py"))]
    for folder, program in places:
        monkeypatch.chdir(folder)
        for wanted in ("bootstrap.py", "scripts/doctor.py", "scripts/connect.py"):
            assert Path(beside(program, wanted)).resolve() == repository / wanted, (folder, program, wanted)


def test_never_a_bare_python() -> None:
    assert interpreter_of(["python", "bootstrap.py"]) == "python3"
    assert interpreter_of(["/opt/a b/bin/python", "bootstrap.py"]) == "'/opt/a b/bin/python'"


def test_git_is_named_only_where_it_can_help(
    parser: argparse.ArgumentParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my cl").mkdir()
    typed = Typed("python3", str(tmp_path / "my cl" / "bootstrap.py"), ())
    copied = "copy all of colab-local here again, over this copy"
    assert true_here("git checkout -- lockfiles environments", typed, parser, MODES) == copied
    (tmp_path / "my cl" / ".git").mkdir()
    where = f"git -C '{tmp_path}/my cl' "
    assert true_here("git checkout -- lockfiles", typed, parser, MODES) == where + "checkout -- lockfiles"
    monkeypatch.chdir(tmp_path / "my cl")
    assert true_here("git pull", typed._replace(program="bootstrap.py"), parser, MODES) == "git pull"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert true_here("git pull", typed, parser, MODES) == copied
