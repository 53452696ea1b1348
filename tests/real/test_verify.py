"""--verify finds what was damaged, in real environments of every engine; the fingerprint depends on content alone."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.errors import EXIT_DIFFERS, EXIT_FAILED, EXIT_OK, EXIT_USAGE
from colab_local.install import records, requirements
from colab_local.install import seal as seals
from colab_local.install.home import current_receipt
from colab_local.manage import verify
from tests.conftest import REPO, SCREEN, Installed, supported_python
from tests.support.homes import LIGHT, Home, hinted, run_script, write_lockfiles
from tests.support.mirror import Mirror, World, find_interpreter

needs_interpreter = pytest.mark.skipif(
    find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a conda package of"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A light environment of the host engine; tests that damage it mend it."""
    folder = tmp_path_factory.mktemp("verify-host")
    home = Home(folder / "home", folder / "user")
    home.run("--engine", "host", "--lockfiles", write_lockfiles(folder / "lockfiles"))
    return home


@pytest.fixture(scope="module")
def conda(tmp_path_factory: pytest.TempPathFactory, world: World) -> tuple[Home, Home]:
    """The same light lock by two engines, in two prefixes, one with a blank and a letter beyond ASCII."""
    folder = tmp_path_factory.mktemp("verify-conda")
    homes = Home(folder / "miniforge", folder / "user"), Home(folder / "mit Umläuten", folder / "user")
    lockfiles = world.write_lockfiles(folder / "lockfiles", LIGHT)
    with Mirror(world) as mirror:
        for home, engine in zip(homes, ("miniforge", "pixi"), strict=True):
            home.run("--engine", engine, "--lockfiles", lockfiles, *mirror.options)
    return homes


def receipt(home: Home) -> dict[str, Any]:
    """Return the receipt of the environment in use."""
    found = current_receipt(home.path, "cpu")
    assert found
    return found


def fingerprint(text: str) -> str:
    """Return the fingerprint in an output; it must be a line of its own."""
    (line,) = re.findall(r"(?m)^colab-local cpu \S+ sha256:[0-9a-f]{64}$", text)
    return str(line)


@functools.cache
def good(home: Home) -> verify.Findings:
    """Return what the check of an undamaged environment finds: nothing."""
    found = verify.check(receipt(home), SCREEN)
    assert not found.differences
    return found


def kinds(findings: verify.Findings) -> set[tuple[str, str, str]]:
    """Return (kind, package, path) of what differs."""
    return {(found.kind, found.package, found.path) for found in findings.differences}


@contextlib.contextmanager
def mended(*paths: Path) -> Iterator[None]:
    """Let a test change files, then put the old ones back.

    What the test changes is a copy: the bytes of the old file may be uv's cache's too, through a hard link.
    """
    with tempfile.TemporaryDirectory(prefix="colab-local-test-") as name:
        kept = [Path(name) / str(number) for number in range(len(paths))]
        for path, keep in zip(paths, kept, strict=True):
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, keep, symlinks=True)
            elif os.path.lexists(path):
                shutil.move(path, keep)
                shutil.copy2(keep, path, follow_symlinks=False)
        try:
            yield
        finally:
            for path, keep in zip(paths, kept, strict=True):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif os.path.lexists(path):
                    path.unlink()
                if os.path.lexists(keep):
                    shutil.move(keep, path)


def test_the_installed_environment_is_as_locked(installed: Installed) -> None:
    """The real environment, TensorFlow included, by the command that a user types; twice the same."""
    home = Home(installed.home, installed.home.parent / "user")
    plain = home.run("--verify")
    assert "all as locked" in plain.stdout
    found = home.run("--verify", "--json", XDG_CONFIG_HOME="/nowhere")
    document = json.loads(found.stdout)
    assert document["ok"] and not document["differences"]
    assert document["fingerprint"] == fingerprint(plain.stdout) == fingerprint(found.stderr)
    names = {(entry["layer"], entry["name"]) for entry in document["packages"]}
    assert {
        ("python", "numpy"),
        ("python", "keras"),
        ("jupyter", "environments/jupyter"),
        ("machine", "python"),
    } <= names
    on_disk = sum(
        1 for path in installed.prefix.resolve().rglob("*")
        if path.is_file() and not path.is_symlink() and path.suffix != ".pyc"
    )  # fmt: skip
    assert on_disk - 20 < document["files"] <= on_disk, "all but the venv's own few are hashed"


def test_no_environment_is_an_error_with_a_hint(tmp_path: Path) -> None:
    done = Home(tmp_path / "home", tmp_path).run("--verify", check=False)
    assert done.returncode == EXIT_FAILED
    assert done.stderr.startswith(f"error: no cpu environment is installed in {tmp_path / 'home'}\n")
    assert hinted(done) == [str(REPO / "bootstrap.py"), "--prefix", str(tmp_path / "home"), "--env", "cpu"]


def test_the_fingerprint_is_independent_of_the_prefix(host: Home, tmp_path: Path) -> None:
    """Another prefix, with a blank in it: every launcher has another first line. Bytecode does not count."""
    other = Home(tmp_path / "an ther", tmp_path / "user")
    lockfiles = write_lockfiles(tmp_path / "lockfiles")
    other.run("--engine", "host", "--lockfiles", lockfiles)
    scripts = [(home.prefix / "bin" / "jupyter-notebook").read_bytes() for home in (host, other)]
    assert scripts[0] != scripts[1] and b"exec" in scripts[1]
    mine, theirs = good(host), good(other)
    assert mine.fingerprint == theirs.fingerprint
    for cache in list(other.prefix.rglob("__pycache__"))[:50]:
        shutil.rmtree(cache)
    assert verify.check(receipt(other), SCREEN).fingerprint == mine.fingerprint
    shutil.rmtree(other.prefix)
    done = other.run("--verify", check=False)
    assert done.returncode == EXIT_DIFFERS and "is gone" in done.stderr


def flip(path: Path) -> None:
    """Change one bit of a file in place: size and time stay."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def forge(site: Path, name: str, content: bytes) -> None:
    """Change a file of a Python package and its RECORD with it."""
    (site / name).write_bytes(content)
    record = next(path for path in site.glob("tornado-*.dist-info/RECORD"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    text = re.sub(rf"(?m)^{re.escape(name)},.*$", f"{name},sha256={digest},{len(content)}", record.read_text())
    record.write_text(text)


def info(prefix: Path, name: str) -> Path:
    """Return the dist-info folder of a Python package."""
    return next(prefix.glob(f"lib/python3.*/site-packages/{name}-*.dist-info"))


@pytest.mark.parametrize(
    ("target", "damage", "expected"),
    [
        ("{site}/tornado/web.py", flip, ("changed", "tornado", "{site}/tornado/web.py")),
        ("{site}/tornado/web.py", Path.unlink, ("missing", "tornado", "{site}/tornado/web.py")),
        ("{site}/sneaky.py", Path.touch, ("extra", "", "{site}/sneaky.py")),
        ("{site}/sneaky.pth", Path.touch, ("extra", "", "{site}/sneaky.pth")),
        ("{site}/__pycache__/no.cpython-311.pyc", Path.touch, ("extra", "", "{site}/__pycache__/no.cpython-311.pyc")),
        ("bin/evil", lambda p: p.symlink_to("/bin/sh"), ("extra", "", "bin/evil")),
        ("bin/pipe", os.mkfifo, ("extra", "", "bin/pipe")),
        ("bin/jupyter", lambda p: p.chmod(0o644), ("mode", "jupyter-core", "bin/jupyter")),
        ("bin/uv", lambda p: p.chmod(0o644), ("mode", "uv", "bin/uv")),
        ("bin/python3", lambda p: (p.unlink(), p.symlink_to("/bin/true")), ("changed", "venv", "bin/python3")),
        ("lib64", lambda p: (p.unlink(), p.symlink_to("/usr/lib")), ("changed", "venv", "lib64")),
        ("bin/activate", flip, ("changed", "venv", "bin/activate")),
        ("bin/activate", Path.unlink, ("missing", "venv", "bin/activate")),
        (
            "pyvenv.cfg",
            lambda p: p.write_text(p.read_text().replace("packages = false", "packages = true")),
            ("changed", "venv", "pyvenv.cfg"),
        ),
        (
            "etc/jupyter/jupyter_notebook_config.d/zz_colab_local.json",
            flip,
            ("changed", "environments/jupyter", "etc/jupyter/jupyter_notebook_config.d/zz_colab_local.json"),
        ),
    ],
)  # fmt: skip
def test_damage_in_the_python_layer_is_found(
    host: Home, target: str, damage: Callable[[Path], object], expected: tuple[str, str, str]
) -> None:
    site = next(host.prefix.glob("lib/python3.*/site-packages")).relative_to(host.prefix).as_posix()
    path = host.prefix / target.format(site=site)
    with mended(path):
        damage(path)
        found = verify.check(receipt(host), SCREEN)
    kind, package, where = expected
    expected = (kind, package, where.format(site=site))
    assert [
        one for one in kinds(found) if one[0] == kind and one[1].split(" ")[0] == package and one[2] == expected[2]
    ]
    assert found.fingerprint != good(host).fingerprint


def test_packages_that_are_missing_extra_or_of_another_version(host: Home) -> None:
    site = next(host.prefix.glob("lib/python3.*/site-packages"))
    tornado = info(host.prefix, "tornado")
    other = tornado.with_name("tornado-1.2.3.dist-info")
    with mended(tornado, other):
        tornado.rename(other)
        assert ("version", "tornado", "") in kinds(verify.check(receipt(host), SCREEN))
    with mended(tornado):
        shutil.rmtree(tornado)
        found = kinds(verify.check(receipt(host), SCREEN))
        assert ("missing", "tornado", "") in found
        assert ("extra", "", f"{site.relative_to(host.prefix)}/tornado/web.py") in found
    with mended(other):  # two of one name: which one importlib.metadata finds is chance
        shutil.copytree(tornado, other)
        found = kinds(verify.check(receipt(host), SCREEN))
        assert ("extra", "tornado", "") in found and ("version", "tornado", "") not in found
    extra, program = site / "intruder-1.0.dist-info", host.prefix / "bin" / "intruder"
    with mended(extra, program):
        extra.mkdir()
        (extra / "METADATA").write_text("Name: intruder\nVersion: 1.0\n")
        names = ("intruder-1.0.dist-info/METADATA", "intruder-1.0.dist-info/RECORD", "../../../bin/intruder")
        program.write_text("#!/bin/sh\n")
        digest = base64.urlsafe_b64encode(hashlib.sha256(b"#!/bin/sh\n").digest()).rstrip(b"=").decode()
        rows = [f"{name},sha256={digest}" for name in names[2:]] + [f"{name},," for name in names[:2]]
        (extra / "RECORD").write_text("\n".join([*rows, "../../../../../etc/passwd,,"]))
        found = kinds(verify.check(receipt(host), SCREEN))
        assert found == {
            ("extra", "intruder", ""),
            ("mode", "intruder 1.0", "bin/intruder"),
            ("outside", "intruder 1.0", "../../../../../etc/passwd"),
            ("unhashed", "intruder 1.0", f"{extra.relative_to(host.prefix)}/METADATA"),
        }


def seal(prefix: Path) -> dict[str, str]:
    """Return what the receipt of an environment as it is now would say."""
    return seals.sealed(prefix, seals.walk(prefix), {})


def test_a_forged_record_is_found(host: Home) -> None:
    """Who changes a file and its RECORD contradicts the receipt, and with a forged receipt still other machines."""
    undamaged = good(host).fingerprint
    site = next(host.prefix.glob("lib/python3.*/site-packages"))
    record = info(host.prefix, "tornado") / "RECORD"
    path = record.relative_to(host.prefix).as_posix()
    with mended(site / "tornado" / "web.py", record):
        forge(site, "tornado/web.py", b"import antigravity\n")
        (found,) = verify.check(receipt(host), SCREEN).differences
        assert (found.kind, found.package.split()[0], found.path) == ("changed", "tornado", path)
        forged = {**receipt(host), "seal": seal(host.prefix)}
        passing = verify.check(forged, SCREEN)
        assert not passing.differences
        assert passing.fingerprint != undamaged
        record.write_text(re.sub(r"(?m)^tornado/web.py,.*$", "tornado/web.py,,", record.read_text()))
        (found,) = verify.check({**forged, "seal": seal(host.prefix)}, SCREEN).differences
        assert (found.kind, found.path) == ("unhashed", f"{site.relative_to(host.prefix)}/tornado/web.py")


def test_a_moved_environment_is_found(host: Home) -> None:
    """Launchers that start another environment's Python are the usual fault of a copied environment."""
    program = host.prefix / "bin" / "jupyter-notebook"
    with mended(program, info(host.prefix, "notebook") / "RECORD"):
        record = info(host.prefix, "notebook") / "RECORD"
        content = program.read_bytes().replace(bytes(host.prefix), b"/opt/elsewhere")
        program.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        old = re.compile(r"(?m)^(\.\./\.\./\.\./bin/jupyter-notebook),.*$")
        record.write_text(old.sub(rf"\1,sha256={digest},{len(content)}", record.read_text()))
        found = verify.check({**receipt(host), "seal": seal(host.prefix)}, SCREEN)
    (one,) = found.differences
    assert (one.kind, one.path, one.found) == ("moved", "bin/jupyter-notebook", "/opt/elsewhere/bin/python")


OFF = {"NotebookApp": {"nbserver_extensions": {"colab_local_jupyter": False}}}


@pytest.mark.parametrize(
    ("name", "text", "disabled"),
    [
        ("jupyter_notebook_config.json", json.dumps(OFF), True),
        ("jupyter_notebook_config.py", "c.NotebookApp.nbserver_extensions = {'colab_local_jupyter': False}", True),
        ("jupyter_notebook_config.d/mine.json", json.dumps(OFF), False),  # the environment's own is stronger
    ],
)
def test_an_extension_that_the_user_has_disabled(host: Home, name: str, text: str, disabled: bool) -> None:
    """Jupyter itself says whether the user's settings are stronger."""
    settings = host.user / ".jupyter" / name
    settings.parent.mkdir(parents=True)
    settings.write_text(text)
    try:
        done = host.run("--verify", check=False)
    finally:
        shutil.rmtree(host.user / ".jupyter")
    assert done.returncode == (EXIT_DIFFERS if disabled else EXIT_OK), done.stdout
    assert (f"disabled  server extension colab_local_jupyter: {settings}" in done.stdout) is disabled
    assert "http_over_ws" not in done.stdout


def test_the_copies_of_the_lock_are_checked(host: Home) -> None:
    copy = host.path / "receipts" / host.prefix.name / "lock" / "pypi.txt"
    with mended(copy):
        copy.write_text(copy.read_text().replace("tornado==", "tornado==9"))
        # and nothing is compared with what it says: --repair copies it again, and compares then
        assert kinds(verify.check(receipt(host), SCREEN)) == {("changed", "lock", str(copy))}


def test_what_a_user_reads_and_how_to_mend_it(host: Home, tmp_path: Path) -> None:
    """Many differences are cut short, --json has them all; the hint repairs (test_repair.py does)."""
    site = next(host.prefix.glob("lib/python3.*/site-packages"))
    files = sorted((site / "tornado").glob("*.py"))[:25]
    with mended(*files):
        os.link(files[0], tmp_path / "cache")
        for path in files:
            flip(path)
        done = host.run("--verify", "--json", check=False)
    assert done.returncode == EXIT_DIFFERS
    assert re.search(r"(?m)^Checking \d+ files \(\d+ MB\)$", done.stderr), "off a terminal, progress is one line"
    assert "... and 5 more: --json lists them all" in done.stderr
    assert len(json.loads(done.stdout)["differences"]) == 25
    assert "error: 25 differences from the lock, of " in done.stderr
    (hint,) = re.findall(r"(?m)^hint: (.*)$", done.stderr)
    assert hint.endswith(f"bootstrap.py --repair --env cpu --prefix {host.path}") and "rm -r" not in hint


def test_it_is_about_as_quick_as_sha256sum(installed: Installed) -> None:
    """Whole processes, the same files, the same cores; also: python3 scripts/benchmark.py verify."""
    assert verify.measure(installed.home, "cpu", SCREEN)["ratio"] <= 1.5


@needs_interpreter
def test_two_engines_give_one_fingerprint(conda: tuple[Home, Home]) -> None:
    found = [good(home) for home in conda]
    assert found[0].fingerprint == found[1].fingerprint
    entry = json.loads(next((conda[0].prefix / "conda-meta").glob("prefixed-*.json")).read_text())["paths_data"][
        "paths"
    ]
    assert {path["file_mode"] for path in entry} == {"text", "binary"}, "both ways of patching were checked"


def edit_record(prefix: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a conda-meta record."""
    path = next((prefix / "conda-meta").glob(f"{name}-[0-9]*.json"))
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


def unpatched(path: Path) -> bytes:
    """Return a file as it lies in its conda package, which is how a failed installation may leave it."""
    prefix = next(parent for parent in path.parents if (parent / "conda-meta").is_dir())
    record = json.loads(next((prefix / "conda-meta").glob("prefixed-*.json")).read_text())
    entry = next(e for e in record["paths_data"]["paths"] if prefix / e["_path"] == path)
    placeholder = entry["prefix_placeholder"].encode()
    content = records.unpatched(path.read_bytes(), bytes(prefix), placeholder, entry["file_mode"])
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    return content


@needs_interpreter
@pytest.mark.parametrize(
    ("target", "damage", "expected"),
    [
        ("bin/where-am-i", flip, ("changed", "prefixed")),
        ("bin/where-am-i", lambda p: p.write_text("#!/bin/sh\necho /opt/elsewhere\n"), ("changed", "prefixed")),
        ("bin/where-am-i", lambda p: p.write_bytes(unpatched(p)), ("changed", "prefixed")),
        ("lib/libprefix.bin", flip, ("changed", "prefixed")),
        ("lib/libprefix.bin", lambda p: p.write_bytes(unpatched(p)), ("changed", "prefixed")),
        ("lib/libprefix.bin", Path.unlink, ("missing", "prefixed")),
        ("ssl/cacert.pem", flip, ("changed", "ca-certificates")),
        ("bin/python3", lambda p: (p.unlink(), p.symlink_to("uv")), ("changed", "python")),
        ("bin/python3", Path.unlink, ("missing", "python")),
        ("bin/pip", flip, ("changed", "pip")),
        ("lib/python3.*/site-packages/pip/__init__.py", flip, ("changed", "pip")),
        ("lib/left-over.so", Path.touch, ("extra", "")),
        ("conda-meta/state", Path.touch, ("extra", "")),
        ("bin/uv", lambda p: p.chmod(0o644), ("mode", "uv")),
    ],
)
def test_damage_in_the_conda_layer_is_found(
    conda: tuple[Home, Home], target: str, damage: Callable[[Path], object], expected: tuple[str, str]
) -> None:
    home = conda[1]
    prefix = home.prefix
    path = next(iter(sorted(prefix.glob(target))), prefix / target)
    with mended(path):
        damage(path)
        found = verify.check(receipt(home), SCREEN)
    (one,) = found.differences
    assert (one.kind, one.package.split(" ")[0], one.path) == (*expected, path.relative_to(prefix).as_posix())
    assert found.fingerprint != good(home).fingerprint


@needs_interpreter
def test_conda_packages_that_are_not_those_of_the_lock(conda: tuple[Home, Home]) -> None:
    home = conda[0]
    path = next((home.prefix / "conda-meta").glob("prefixed-*.json"))
    for change, expected in (
        ({"version": "2.0"}, "version"),
        ({"build": "h1234567_9"}, "version"),
        ({"sha256": "0" * 64}, "version"),
        ({"name": "other"}, "extra"),
    ):
        with mended(path):
            edit_record(home.prefix, "prefixed", lambda record, change=change: record.update(change))  # type: ignore[misc]
            found = kinds(verify.check(receipt(home), SCREEN))
            assert (expected, change.get("name", "prefixed"), "") in found, change
    with mended(path):
        path.unlink()
        found = kinds(verify.check(receipt(home), SCREEN))
        assert {("missing", "prefixed", ""), ("extra", "", "lib/libprefix.bin")} <= found
    with mended(path):
        path.write_text("{")
        done = home.run("--verify", check=False)
        said = done.stdout + done.stderr
        assert done.returncode == EXIT_DIFFERS and path.name in said and "--repair" in said and "hint:" in done.stderr


CONDAS_LAUNCHER = r"""#!{prefix}/bin/python
# -*- coding: utf-8 -*-
import re
import sys

from a.b import main

if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\.pyw?|\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""


def test_conda_records_as_other_tools_write_them(tmp_path: Path) -> None:
    """conda's own: entry points and .pyc files without a hash, a first line that got too long."""
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "conda-meta").mkdir()
    long = f"#!/usr/bin/env python\nprint('{prefix}')\n"
    (prefix / "bin" / "long").write_text(long)
    tool = CONDAS_LAUNCHER.format(prefix=prefix)
    (prefix / "bin" / "tool").write_text(tool)
    for name in ("long", "tool"):
        (prefix / "bin" / name).chmod(0o755)
    paths = [
        {"_path": "bin/tool", "path_type": "unix_python_entry_point"},
        {"_path": "lib/a/__pycache__/b.cpython-313.pyc", "path_type": "pyc_file"},
        {
            "_path": "bin/long", "path_type": "hardlink", "sha256": "1" * 64, "file_mode": "text",
            "sha256_in_prefix": hashlib.sha256(long.encode()).hexdigest(), "prefix_placeholder": "/placeholder",
        },
    ]  # fmt: skip
    record = {"name": "a", "version": "1", "build": "0", "paths_data": {"paths": paths}}
    (prefix / "conda-meta" / "a-1-0.json").write_text(json.dumps(record))
    check = verify.Check(prefix, {"layer": "conda", "lock": {"jupyter": {}, "files": {}}}, SCREEN)
    package = check.packages[0]
    identities = {entry.path: check.identity(package, entry) for entry in package.entries}
    assert not check.differences
    assert identities == {"bin/tool": "calls a.b:main", "bin/long": "1" * 64}
    for evil in ("#!/bin/sh\nrm -rf /\n", tool + "import antigravity\n", "\x7fELF"):
        (prefix / "bin" / "tool").write_text(evil)
        check = verify.Check(prefix, {"layer": "conda", "lock": {"jupyter": {}, "files": {}}}, SCREEN)
        assert check.identity(package, package.entries[0]).startswith("changed"), evil


def test_undoing_condas_patch_of_a_binary() -> None:
    """A string that holds the prefix twice, one that ends at the file's end, and one that is not the prefix."""
    placeholder, prefix = b"/long_placehold_placehold", b"/opt/x"
    packaged = b"\x7fELF" + placeholder + b"/lib:" + placeholder + b"/share\0next\0" + placeholder + b"\0"
    difference = len(placeholder) - len(prefix)
    patched = b"\x7fELF" + prefix + b"/lib:" + prefix + b"/share\0" + b"\0" * 2 * difference
    patched += b"next\0" + prefix + b"\0" + b"\0" * difference
    assert len(patched) == len(packaged)
    assert records.unpatched(patched, prefix, placeholder, "binary") == packaged
    assert records.unpatched(b"a /opt/x b", prefix, placeholder, "text") == b"a " + placeholder + b" b"


def test_compare_explains_package_by_package(host: Home, conda: tuple[Home, Home], tmp_path: Path) -> None:
    """The program, with real documents: the same, one damaged file, another engine's layer, lines alone."""
    here, there, damaged = (tmp_path / f"{name}.json" for name in ("here", "there", "damaged"))
    here.write_text(conda[0].run("--verify", "--json").stdout)
    there.write_text(conda[1].run("--verify", "--json").stdout)
    same = run_script("compare.py", here, there)
    assert same.returncode == EXIT_OK and same.stdout.startswith("the same: colab-local cpu ")
    path = next(conda[1].prefix.glob("lib/python3.*/site-packages/pip/__init__.py"))
    with mended(path):
        flip(path)
        damaged.write_text(conda[1].run("--verify", "--json", check=False).stdout)
    done = run_script("compare.py", here, damaged)
    assert done.returncode == EXIT_DIFFERS
    lines = done.stdout.splitlines()
    assert lines[0].startswith("conda package pip ") and "the files differ" in lines[0]
    assert lines[1] == f"  changed in the second: {path.relative_to(conda[1].prefix)}"
    assert len(lines) == 3
    program = conda[1].prefix / "bin" / "uv"  # no package's bytes differ, yet it is not the same
    program.chmod(0o644)
    damaged.write_text(conda[1].run("--verify", "--json", check=False).stdout)
    program.chmod(0o755)
    done = run_script("compare.py", here, damaged)
    assert done.returncode == EXIT_DIFFERS
    assert done.stdout.splitlines()[0].startswith("only in the second: mode uv ")
    pip = next(conda[1].prefix.glob("lib/python3.*/site-packages/pip-*.dist-info"))
    second = pip.with_name("tornado-1.0.dist-info")  # two of one name
    second.mkdir()
    (second / "RECORD").write_text("")
    damaged.write_text(conda[1].run("--verify", "--json", check=False).stdout)
    shutil.rmtree(second)
    said = run_script("compare.py", here, damaged).stdout
    assert "only in the second: extra tornado 1.0\n" in said, said
    other = tmp_path / "other.json"
    other.write_text(host.run("--verify", "--json").stdout)
    document = json.loads(run_script("compare.py", "--json", here, other).stdout)
    assert not document["same"]
    assert any("conda package uv: only in the first" in line for line in document["differences"])
    assert not any("Python package tornado" in line for line in document["differences"]), "the same wheel"
    lines = [json.loads(file.read_text())["fingerprint"] for file in (here, damaged)]
    assert run_script("compare.py", *lines).returncode == EXIT_DIFFERS
    assert run_script("compare.py", lines[0], here).returncode == EXIT_OK
    elsewhere = lines[0].replace(" cpu ", " gpu ").replace("linux-64", "osx-arm64")
    elsewhere = elsewhere[:-1] + ("0" if elsewhere[-1] != "0" else "1")
    said = run_script("compare.py", lines[0], elsewhere).stdout
    assert "environment: cpu / gpu" in said
    (tmp_path / "empty").write_text("")
    wrong = run_script("compare.py", tmp_path / "empty", lines[0])
    assert wrong.returncode == EXIT_USAGE and "hint:" in wrong.stderr


def test_the_real_lock_is_read_as_uv_reads_it(tmp_path: Path) -> None:
    """For every platform and Python, the packages that uv would install are those that we take."""
    file = REPO / "lockfiles" / "cpu" / "pypi.txt"
    entries = requirements.parse(file.read_text())
    triples = {
        "linux-64": "x86_64-manylinux_2_28",
        "linux-aarch64": "aarch64-manylinux_2_28",
        "osx-arm64": "aarch64-apple-darwin",
    }
    for number, (platform, triple) in enumerate(triples.items()):
        python = f"3.{11 + number}"
        argv = [
            f"{Path(sys.executable).parent}/uv",
            "pip",
            "compile",
            "-q",
            "--no-deps",
            "--no-header",
            "--no-annotate",
            str(file),
        ]
        argv += ["--python-platform", triple, "--python-version", python, "--python", supported_python()]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        theirs = {requirements.normalise(name) for name in re.findall(r"(?m)^([\w.-]+)==", done.stdout)}
        assert {entry.name for entry in requirements.applicable(entries, platform, python)} == theirs
