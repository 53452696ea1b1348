"""What a bundle and Ansible take of a checkout: the program and the lock, and never a stray file."""

from __future__ import annotations

import base64
import functools
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from colab_local.base.errors import Failure
from colab_local.install import program
from colab_local.laptop.sending import pack_program
from scripts.fleet import pack
from tests.conftest import REPO

# Where people and their editors leave things, with a password in each.
STRAY = (
    ".env",
    "secrets.py",
    "inventory/hosts.yml",
    "scripts/bundle.py~",
    "scripts/secrets.py",
    "scripts/.bundle.py.swp",
    "scripts/fleet/my-fleet/hosts.yml",
    "scripts/fleet/inventory/group_vars/all.yml",
    "scripts/slurm/my.sbatch",
    "colab_local/install/offline.py.orig",
    "colab_local/base/stray.py",
    "colab_local/desktop/templates/vnc-session~",
    "environments/mine.yml",
    "environments/jupyter/prefix/etc/jupyter/token.json",
    "lockfiles/mine/pypi.txt",
    "lockfiles/index.json.bak",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what git tracks, without git, and strays everywhere."""
    copy = tmp_path / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (REPO / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, copy / name)
    for name in STRAY:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("password = 'hunter2'\n")
    return copy


def test_no_stray_file_gets_in(checkout: Path) -> None:
    index = program.read_index(checkout)
    names = program.program_names(checkout, index)
    assert not set(STRAY) & set(names)
    assert names == program.program_names(REPO, index), "the same version, the same list"


@pytest.mark.parametrize("sent_by", ["Ansible", "connect.py"])
def test_what_is_sent_holds_no_stray_file(checkout: Path, tmp_path: Path, sent_by: str) -> None:
    @functools.cache
    def sent(repository: Path) -> bytes:
        if sent_by == "connect.py":
            return base64.b64decode(pack_program(repository)[0])
        return Path(pack.write(repository, tmp_path / repository.name)["path"]).read_bytes()

    with tarfile.open(fileobj=io.BytesIO(sent(checkout))) as archive:
        members = archive.getmembers()
        contents = [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    names = [member.name for member in members]
    assert not set(STRAY) & set(names)
    assert not any(b"hunter2" in content for content in contents)
    assert names[-1] == "bootstrap.py"
    assert sent(checkout) == sent(REPO), "the same version, the same bytes"


def test_a_checkout_that_is_not_whole_is_said(checkout: Path) -> None:
    (checkout / "colab_local" / "base" / "errors.py").write_text("def broken(:\n")
    with pytest.raises(Failure, match="the program is not complete here"):
        pack_program(checkout)


def test_the_list_is_whole(checkout: Path, tmp_path: Path) -> None:
    """What is not taken of the library, nothing of the taken names; and the program runs from the pack alone."""
    names = set(program.program_names(checkout, program.read_index(checkout)))
    texts = "\n".join((checkout / name).read_text() for name in names if name.endswith(".py"))
    for path in sorted((REPO / "colab_local").rglob("*")):
        name = path.relative_to(REPO).as_posix()
        left_out = name.startswith("colab_local/locking/") or path.suffix in (".md", ".pyc") or path.is_dir()
        if left_out or name in names:
            continue
        if path.suffix == ".py":
            assert not re.search(rf"import [\w, ()\n]*\b{path.stem}\b|\.{path.stem} import|/{path.name}", texts), name
        else:
            assert path.name not in texts, f"{name} is read: name it in colab_local/install/program.py"
    folder = tmp_path / "packed"
    with tarfile.open(fileobj=io.BytesIO(program.pack(checkout))) as archive:
        archive.extractall(folder, filter="data")
    argv = [sys.executable, "-I", str(folder / "bootstrap.py"), "--engine", "host", "--dry-run", "--json"]
    done = subprocess.run([*argv, "--prefix", str(tmp_path / "home")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"plan"' in done.stdout


def test_a_link_in_place_of_a_file_is_refused(checkout: Path) -> None:
    """Its target would be packed: /etc/shadow, say."""
    target = checkout / "colab_local" / "base" / "errors.py"
    (checkout / "elsewhere").write_text(target.read_text())
    target.unlink()
    target.symlink_to(checkout / "elsewhere")
    with pytest.raises(OSError, match="errors"):
        program.program_names(checkout, program.read_index(checkout))
