"""ci/check_lockfiles.py: passes the repository's lock, and fails a lock with one thing changed, in every format.

index.json's digests are made anew after each change but one, so that it isn't they that notice it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import operator
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ci import check_lockfiles as check
from colab_local.base.errors import Failure
from colab_local.locking import checks
from colab_local.locking.build import refresh_index
from colab_local.locking.conda import read_pixi_lock
from colab_local.locking.specs import NOTICE
from tests.support.lock_lab import REPO, Lab, served

SCRIPT = REPO / "ci" / "check_lockfiles.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A locked lab; its lock passes every check, so that what the other tests see comes from their change."""
    lab = Lab(tmp_path_factory.mktemp("check")).fill()
    done = lab.lock()
    assert done.returncode == 0, done.stderr
    assert problems(lab, "--channel", str(lab.channel)) == []
    return lab


def problems(lab: Lab, *arguments: str) -> list[str]:
    """Return what the checker finds wrong with a lab's lockfiles, and see that its exit code says the same."""
    argv = ["--environments", str(lab.environments), "--lockfiles", str(lab.lockfiles), *arguments]
    if "--channel" not in arguments:
        argv += ["--channel", ""]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = check.main(argv)
    lines = out.getvalue().splitlines()
    found = [line.strip() for line in lines if line.startswith("       ")]
    assert code == (1 if found else 0)
    assert bool(found) == any(line.startswith("WRONG") for line in lines)
    return found


def refresh(lab: Lab) -> None:
    """Make index.json vouch for the lockfiles as they are now."""
    text = refresh_index(lab.environments, lab.lockfiles)["index.json"]
    (lab.lockfiles / "index.json").write_text(text)


def change(lab: Lab, path: str, edit: Callable[[str], str]) -> None:
    """Change one lockfile, and make index.json vouch for it."""
    file = lab.lockfiles / path
    before = file.read_text()
    file.write_text(edit(before))
    assert file.read_text() != before
    refresh(lab)


def another_digit(text: str, start: int) -> str:
    """Return a text with its hexadecimal digit at `start` replaced."""
    return text[:start] + ("0" if text[start] != "0" else "1") + text[start + 1 :]


def one_hash(text: str, at: str) -> str:
    """Change one digit of the first hash after `at`."""
    found = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])").search(text, text.index(at))
    assert found
    return another_digit(text, found.start() + 5)


def one_md5(text: str, at: str) -> str:
    """Change one digit of the first MD5 after `at`."""
    found = re.compile(r"md5: ([0-9a-f]{32})").search(text, text.index(at))
    assert found
    return another_digit(text, found.start(1))


CONDA_CHANGES = [
    ("cpu/linux-64.txt", lambda text: one_hash(text, "openssl")),
    ("cpu/linux-64.txt", lambda text: text.replace("openssl-3.6.0", "openssl-3.5.0")),
    ("cpu/linux-64.txt", lambda text: text.replace("linux-64/openssl", "linux-aarch64/openssl")),
    ("cpu/linux-64.txt", lambda text: text.replace("# platform: linux-64", "# platform: linux-aarch64")),
    ("cpu/linux-64.txt", lambda text: "\n".join(text.splitlines()[:-1]) + "\n"),
    ("cpu/linux-64.txt", lambda text: text.replace("conda.anaconda.org", "conda.example.org")),
    ("cpu/conda-lock.yml", lambda text: one_hash(text, "openssl-3.6.0")),
    ("cpu/conda-lock.yml", lambda text: one_md5(text, "openssl-3.6.0")),
    ("cpu/conda-lock.yml", lambda text: text.replace("version: 3.6.0", "version: 3.5.0", 1)),
    ("cpu/conda-lock.yml", lambda text: text.replace("platform: osx-arm64", "platform: linux-64", 1)),
    ("cpu/conda-lock.yml", lambda text: text.replace("  - osx-arm64\n", "")),
    ("cpu/conda-lock.yml", lambda text: text.replace("manager: conda", "manager: canoe", 1)),
    ("pixi.lock", lambda text: one_hash(text, "packages:\n- conda")),
    ("pixi.lock", lambda text: text.replace("openssl-3.6.0", "openssl-3.5.0")),
    ("pixi.lock", lambda text: text.replace("linux-64/openssl", "linux-aarch64/openssl")),
    ("pixi.lock", lambda text: text.replace("  - openssl >=3.5,<4.0a0", "  - openssl >=3.7,<4.0a0", 1)),
    ("pixi.toml", lambda text: text.replace('python = "3.13.*"', 'python = "3.12.*"', 1)),
    ("cpu/packages.txt", lambda text: text.replace("3.6.0", "3.5.0", 1)),
    ("cpu/packages.txt", lambda text: text.replace("markupsafe  3.0.2", "markupsafe  3.0.1", 1)),
]


@pytest.mark.parametrize(("path", "edit"), CONDA_CHANGES, ids=[str(n) for n in range(len(CONDA_CHANGES))])
def test_one_change_in_one_format_is_found_offline(lab: Lab, path: str, edit: Callable[[str], str]) -> None:
    """A hash, a version, a platform, a line: the other formats, or the solver on the lock's own records, differ."""
    change(lab, path, edit)
    found = problems(lab, "--offline")
    assert found and any("cpu" in line or "pixi" in line for line in found)


@pytest.mark.parametrize("path", ["cpu/osx-arm64.txt", "gpu/pypi.txt", "host.txt", "pixi.lock", "pixi.toml"])
def test_a_digest_that_index_does_not_have_is_found(lab: Lab, path: str) -> None:
    """One byte more, of no consequence to any parser."""
    with (lab.lockfiles / path).open("a") as stream:
        stream.write("\n")
    assert any(line.startswith("index.json: ") for line in problems(lab, "--offline", "gpu"))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every value in nested JSON objects that is no object."""
    if not isinstance(value, dict):
        yield path
    else:
        for key in value:
            yield from leaves(value[key], (*path, key))


def changed(value: Any) -> Any:
    """Return a value of index.json with one digit, unit or entry changed."""
    if isinstance(value, str):
        last = max(value.rfind(digit) for digit in "0123456789abcdef")
        if last < 0:
            return f"{value}1"
        return value[:last] + ("1" if value[last] != "1" else "2") + value[last + 1 :]
    return value[:-1] if isinstance(value, list) else (value or 0) + 1


def test_whatever_is_changed_in_index_json_is_found(lab: Lab) -> None:
    """Digests, versions, what the machine must have, sizes: everything follows from the other files and the specs."""
    path = lab.lockfiles / "index.json"
    index = json.loads(path.read_text())

    def problems_with(*where: str) -> list[str]:
        copy = json.loads(json.dumps(index))
        inner = functools.reduce(operator.getitem, where[:-1], copy)
        inner[where[-1]] = changed(inner[where[-1]])
        path.write_text(json.dumps(copy, indent=1) + "\n")
        layer = check.check_python_layer if where[-1] in ("pypi_download", "pypi_installed") else None
        try:
            files = checks.Lockfiles(lab.environments, lab.lockfiles)
        except Failure as failure:  # another schema
            return [failure.what]
        return list(layer(files, where[1]) if layer else checks.check_digests(files))

    unseen = [where for where in leaves(index) if not problems_with(*where)]
    assert unseen == []


@pytest.mark.parametrize("path", ["cpu/linux-64.txt", "cpu/conda-lock.yml", "gpu/pypi.txt", "host.txt", "pixi.toml"])
def test_a_missing_file_is_named(lab: Lab, path: str) -> None:
    (lab.lockfiles / path).unlink()
    assert any(line.startswith(f"{path}: missing") for line in problems(lab, "--offline"))


def test_files_missing_or_extra_and_foreign_hosts_are_found(lab: Lab) -> None:
    """A lock names no host but conda-forge's and the installers'."""
    (lab.lockfiles / "cpu/notes.txt").write_text(f"# {NOTICE}\n")
    assert problems(lab, "--offline") == ["cpu/notes.txt: not a lockfile"]
    (lab.lockfiles / "cpu/notes.txt").unlink()
    change(lab, "gpu/pypi.txt", lambda text: text + "    # https://index.example.org/simple\n")
    assert "gpu/pypi.txt: names the host index.example.org" in problems(lab, "--offline")
    (lab.lockfiles / "cpu/packages.txt").unlink()
    argv = ["--environments", str(lab.environments), "--lockfiles", str(lab.lockfiles), "--offline"]
    assert check.main(argv) == 1


def test_a_jupyter_file_that_index_does_not_vouch_for_is_found(lab: Lab) -> None:
    """environments/jupyter/ is part of what is locked."""
    (lab.environments / "jupyter/prefix/etc/settings.json").write_text("{ }\n")
    (found,) = problems(lab, "--offline")
    assert found.startswith("index.json: /jupyter/prefix/etc/settings.json")


def everywhere(lab: Lab, edit: Callable[[str], str]) -> None:
    """Make the same change in every file of the lock."""
    for file in [p for p in lab.lockfiles.rglob("*") if p.is_file() and p.name != "index.json"]:
        file.write_text(edit(file.read_text()))
    refresh(lab)


def test_the_same_wrong_hash_in_every_format_is_found_by_the_channel(lab: Lab) -> None:
    """Nothing in the lock contradicts it; the channel does, folder and server alike."""
    right = lab.read_subdir("linux-64")["openssl-3.6.0-0.conda"]["sha256"]
    everywhere(lab, lambda text: text.replace(right, another_digit(right, 7)))
    assert problems(lab, "--offline") == []
    for line in problems(lab, "--offline", "--channel", str(lab.channel)):
        assert "openssl-3.6.0-0.conda" in line
    with served(lab.channel.parent) as url:
        found = problems(lab, "--offline", "--channel", f"{url}/conda-forge")
    assert any("sha256: found" in line and right in line for line in found)


def test_an_older_version_in_every_format_is_found_by_the_channel(lab: Lab) -> None:
    """openssl 3.5.0 is in the channel and fits, but it is not what a solver gives."""
    for subdir in ("linux-64", "linux-aarch64", "osx-arm64"):
        packages = lab.read_subdir(subdir)
        old, new = packages["openssl-3.5.0-0.conda"], packages["openssl-3.6.0-0.conda"]
        everywhere(
            lab,
            lambda text, old=old, new=new: (  # type: ignore[misc]
                text.replace(new["sha256"], old["sha256"])
                .replace(new["md5"], old["md5"])
                .replace("openssl-3.6.0", "openssl-3.5.0")
                .replace("version: 3.6.0", "version: 3.5.0")
                .replace("openssl  3.6.0", "openssl  3.5.0")
            ),
        )
    assert problems(lab, "--offline") == []
    found = problems(lab, "--offline", "--channel", str(lab.channel))
    assert found and all("openssl-3.5.0" in line or "openssl-3.6.0" in line for line in found)


def test_a_package_that_the_channel_took_back_is_found(lab: Lab) -> None:
    """Also by a live channel, where newer packages are no fault."""
    packages = lab.read_subdir("osx-arm64")
    packages["openssl-3.6.0-0.conda"]["constrains"] = ["libressl <0"]  # a live channel mends its records
    packages["openssl-3.7.0-0.conda"] = {**packages["openssl-3.6.0-0.conda"], "version": "3.7.0"}
    lab.write_subdir("osx-arm64", packages)
    with served(lab.channel.parent) as url:
        assert problems(lab, "--offline", "--channel", f"{url}/conda-forge") == []
    assert any("constrains: found" in line for line in problems(lab, "--offline", "--channel", str(lab.channel)))
    del packages["openssl-3.6.0-0.conda"]
    lab.write_subdir("osx-arm64", packages)
    with served(lab.channel.parent) as url:
        found = problems(lab, "--offline", "--channel", f"{url}/conda-forge")
    assert any("osx-arm64/openssl-3.6.0-0.conda is not in " in line for line in found)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: one_hash(text, "markupsafe"),
        lambda text: text.replace("markupsafe==3.0.2", "markupsafe==3.0.1"),
        lambda text: text.replace(
            "sys_platform == 'linux' and platform_machine == 'aarch64'", "sys_platform == 'win32'"
        ),
        lambda text: text.replace("markupsafe==3.0.2", "markupsafe>=3.0.2"),
        lambda text: re.sub(r"six==.*\n.*\n", "", text),
        lambda text: re.sub(r"\\\n    --hash=sha256:[0-9a-f]{64}", "", text, count=1),
    ],
    ids=["hash", "version", "platform", "not pinned", "line gone", "hash gone"],
)
def test_one_change_in_pypi_txt_is_found(lab: Lab, edit: Callable[[str], str]) -> None:
    """What uv gives under the specs is compared to the byte; the other checks of the Python layer see less."""
    change(lab, "cpu/pypi.txt", edit)
    files = checks.Lockfiles(lab.environments, lab.lockfiles)
    assert any("pypi.txt" in line for line in check.check_python_layer(files, "cpu"))


def test_uv_refuses_what_is_not_hashed_or_not_there(lab: Lab) -> None:
    """uv's own word, for one platform and Python: it counts the packages and wants a hash for each."""
    target, options = ("osx-arm64", "3.12"), ["--python-platform", "aarch64-apple-darwin", "--python-version", "3.12"]

    def refused(edit: Callable[[str], str]) -> list[str]:
        change(lab, "cpu/pypi.txt", edit)
        return list(check.check_accepted(checks.Lockfiles(lab.environments, lab.lockfiles), "cpu", target, options))

    assert refused(lambda text: text + "# nothing\n") == []
    assert "99.9" in refused(lambda text: text.replace("markupsafe==3.0.2", "markupsafe==99.9"))[0]
    assert refused(lambda text: text.replace("markupsafe==99.9", "markupsafe==3.0.2")) == []
    unhashed = refused(lambda text: re.sub(r"(?<=six==)(\S+) \\\n.*", r"\1", text))
    assert "six" in unhashed[0] and "hash" in unhashed[0]


def test_a_host_tool_of_another_version_is_found(lab: Lab) -> None:
    """host.txt is the conda layer's uv."""
    change(lab, "host.txt", lambda text: text.replace("uv==0.12.1", "uv==0.12.0"))
    files = checks.Lockfiles(lab.environments, lab.lockfiles)
    assert list(check.check_host_tools(files)) == ["host.txt:", "    uv: 0.12.0 -> 0.12.1"]


def test_command_line_says_what_is_wrong(lab: Lab) -> None:
    """Exit codes and error lines of the program itself."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(SCRIPT), "--lockfiles", str(lab.lockfiles), *arguments]
        argv += ["--environments", str(lab.environments)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)

    assert run("--help").returncode == 0
    assert run("--offline").returncode == 0
    unknown = run("nosuch")
    assert unknown.returncode == 2 and "no environment 'nosuch' (there are: cpu, gpu)" in unknown.stderr
    for path in ("pixi.lock", "index.json"):
        kept = (lab.lockfiles / path).read_bytes()
        (lab.lockfiles / path).write_bytes(kept[: len(kept) // 2])
        broken = run("--offline")
        assert broken.returncode == 1 and "Traceback" not in broken.stderr, broken.stderr
        assert broken.stderr.startswith("error: ") and path in broken.stderr
        (lab.lockfiles / path).write_bytes(kept)


def test_the_repository_is_locked_as_a_solver_gives_it() -> None:
    """The whole check, as a maintainer runs it: every solver run, conda-lock's parser, uv for every Python."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok ", "not ")) for line in lines)
    index = json.loads((REPO / "lockfiles/index.json").read_text())
    for name, entry in index["environments"].items():
        for platform in entry["platforms"]:
            assert any(f"{name}/{platform}: solver, own records" in line for line in lines)
        for python in entry.get("pythons", index["python"]):
            assert any(f"{name}: uv accepts all" in line and f"--python-version {python}" in line for line in lines)


def own_channel(env: str, folder: Path) -> str:
    """Return a channel of the lock's own records: a clone on its own has no other."""
    every: dict[str, dict[str, Any]] = {}
    for records in read_pixi_lock(REPO / "lockfiles/pixi.lock")[env].values():
        for record in records:
            every.setdefault(record.url.split("/")[-2], {})[record.file_name] = json.loads(record.to_json())
    for subdir, packages in every.items():
        Lab(folder).write_subdir(subdir, packages)
    return str(folder / "channel")


def test_the_repository_fits_its_specs(tmp_path: Path) -> None:
    """scripts/lock.py --check on the real environments: both layers, every file to the byte."""
    argv = [sys.executable, str(REPO / "scripts/lock.py"), "--check"]
    for env, variable in {"cpu": "COLAB_LOCAL_TEST_CHANNEL", "gpu-forge": "COLAB_LOCAL_TEST_CHANNEL_FORGE"}.items():
        channel = os.environ.get(variable) or own_channel(env, tmp_path / env)
        argv += ["--channel", f"gpu-forge={channel}" if env == "gpu-forge" else channel]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "The lock matches its specs."
