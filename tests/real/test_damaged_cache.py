"""uv's own cache was damaged some time ago: what is installed from it is noticed at once, and fetched again."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_INTEGRITY
from tests.support.homes import LIGHT, Home, write_lockfiles

AGAIN = "not from uv's cache"


@pytest.fixture(scope="module")
def lockfiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lockfiles(tmp_path_factory.mktemp("locks") / "lockfiles")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, lockfiles: Path) -> Path:
    """A cache of our own, which an installation has filled."""
    folder = tmp_path_factory.mktemp("filled")
    home = Home(folder / "home", folder / "user")
    done = home.run("--engine", "host", "--lockfiles", lockfiles, UV_CACHE_DIR=str(folder / "cache"))
    assert AGAIN not in done.stderr
    return folder / "cache"


def cached(cache: Path, name: str) -> Path:
    """Return a file of a wheel that uv keeps unpacked."""
    (path,) = cache.glob(f"archive-v*/*/{name}")
    return path


def alter(cache: Path) -> list[str]:
    """Damage what uv installs without a word; return the packages."""
    with cached(cache, "jedi/__init__.py").open("a") as stream:
        stream.write("# altered\n")
    cached(cache, "tornado/web.py").unlink()  # nothing works without it: the try-out fails, and this is why
    record = cached(cache, "six-*.dist-info/RECORD")
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:2]))
    return ["jedi", "six", "tornado"]


def garble(cache: Path) -> list[str]:
    """Damage what uv itself stops at."""
    cached(cache, "parso-*.dist-info/METADATA").write_bytes(b"\0\0")
    return ["parso"]


def nothing(cache: Path) -> list[str]:
    return []


def test_damage_in_the_cache_is_not_installed(tmp_path: Path, lockfiles: Path, cache: Path) -> None:
    fingerprints = set()
    for number, damage in enumerate([alter, garble, nothing]):
        names = damage(cache)
        home = Home(tmp_path / str(number), tmp_path / "user")
        done = home.run("--engine", "host", "--lockfiles", lockfiles, UV_CACHE_DIR=str(cache))
        told = [line for line in done.stderr.splitlines() if AGAIN in line]
        assert len(told) == bool(names) and all(name in told[0] for name in names), done.stderr
        verified = json.loads(home.run("--verify", "--json").stdout)
        assert verified["ok"]
        fingerprints.add(verified["fingerprint"])
    assert len(fingerprints) == 1  # the last one was made from the same cache, which has forgotten the damage


def test_what_comes_out_damaged_again_is_refused(tmp_path: Path, cache: Path) -> None:
    """A wheel that is the locked one, and is not what its own RECORD says: no other copy will be better."""
    wheel = tmp_path / "wheels" / "broken-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"good = True\n").digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("broken.py", "good = False\n")
        archive.writestr("broken-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
        archive.writestr(
            "broken-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        rows = f"broken.py,sha256={digest},12\n"
        rows += "".join(f"broken-1.0.dist-info/{name},,\n" for name in ("METADATA", "WHEEL", "RECORD"))
        archive.writestr("broken-1.0.dist-info/RECORD", rows)
    entry = f"broken==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    lockfiles = write_lockfiles(tmp_path / "lockfiles", LIGHT + "\n" + entry)
    home = Home(tmp_path / "home", tmp_path / "user")
    options = ("--engine", "host", "--lockfiles", lockfiles)
    done = home.run(*options, check=False, UV_CACHE_DIR=str(cache), UV_FIND_LINKS=str(wheel.parent))
    assert done.returncode == EXIT_INTEGRITY, done.stdout + done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert "1 of the installed packages came out damaged (broken: " in error and "site-packages/broken.py)" in error
    assert hint.startswith("hint: run the same command again")
    assert not home.path.exists() or not list(home.path.glob("envs/*"))
