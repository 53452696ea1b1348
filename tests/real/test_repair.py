"""--repair: what --verify found is put right from the lock, in every layer, and nothing else is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_DIFFERS
from tests.support.homes import LIGHT, Home, damage, write_lockfiles
from tests.support.mirror import Mirror, build_world, find_interpreter


def check_repaired(home: Home, *options: str | Path) -> None:
    """Damage a home's environment, repair it, and look at what became of it."""
    before = json.loads(home.run("--verify", "--json").stdout)["fingerprint"]
    untouched = damage(home.prefix)
    stamp = untouched.stat()
    refused = home.run("--verify", check=False)
    assert refused.returncode == EXIT_DIFFERS and "--repair --env cpu" in refused.stderr
    dry = home.run("--repair", "--dry-run", *options, check=False)
    assert dry.returncode == EXIT_DIFFERS and "Would do: " in dry.stdout
    assert not (home.path / "kept").exists()
    done = home.run("--repair", *options)
    assert "Repaired: all as locked." in done.stdout
    assert json.loads(home.run("--verify", "--json").stdout)["fingerprint"] == before
    after = untouched.stat()
    assert (after.st_ino, after.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    (mine,) = home.path.glob("kept/*/lib/python3*/site-packages/mine.py")
    assert mine.read_text() == "mine\n"
    assert "Nothing to do: all as locked." in home.run("--repair", *options).stdout


def test_the_host_engines_layers_are_put_right(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "user")
    lockfiles = write_lockfiles(tmp_path / "lockfiles")
    home.run("--engine", "host", "--lockfiles", lockfiles)
    (home.prefix / "bin" / "python").unlink()
    with (home.prefix / "pyvenv.cfg").open("a") as stream:
        stream.write("include-system-site-packages = true\n")
    (copy,) = home.path.glob("receipts/*/lock/pypi.txt")
    copy.write_text("six==1.0\n")
    home.run("--repair", "--lockfiles", lockfiles)
    assert os.access(home.prefix / "bin" / "python", os.X_OK)
    check_repaired(home, "--lockfiles", lockfiles)


@pytest.mark.skipif(find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a package of")
def test_the_conda_layer_is_put_right(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    world = build_world(tmp_path_factory.getbasetemp() / "world")
    home = Home(tmp_path / "home", tmp_path / "user")
    lockfiles = world.write_lockfiles(tmp_path / "lockfiles", LIGHT)
    with Mirror(world) as mirror:
        home.run("--engine", "miniforge", "--lockfiles", lockfiles, *mirror.options)
        (home.prefix / "lib" / "libprefix.bin").write_bytes(b"\x7fELF altered")
        (record,) = home.prefix.glob("conda-meta/uv-*.json")
        record.write_text(record.read_text() + "\n")
        (home.prefix / "bin" / "where-am-i").unlink()
        home.run("--repair", "--lockfiles", lockfiles, *mirror.options)
        check_repaired(home, "--lockfiles", lockfiles, *mirror.options)


def test_leftovers_of_an_import_are_no_difference(tmp_path: Path) -> None:
    """A Python that was killed while it wrote bytecode, or that writes it now."""
    home = Home(tmp_path / "home", tmp_path / "user")
    home.run("--engine", "host", "--lockfiles", write_lockfiles(tmp_path / "lockfiles"))
    site = next(home.prefix.glob("lib/python3*/site-packages"))
    cached = next((site / "notebook" / "__pycache__").glob("__init__.*.pyc"))
    cached.with_name(cached.name + ".140625000000001").write_bytes(b"half")
    assert "all as locked" in home.run("--verify").stdout
