"""Which files of a checkout are the program: what a bundle holds, and what Ansible and connect.py send to a host.

Not "what lies in the folder": that would take an editor's backups, an inventory with its passwords and everything
else that somebody keeps beside the program. A file belongs to the program if it is
  * a program in PROGRAMS, or a module that one of them imports or names ("tryout.py"), directly or not;
  * one that lockfiles/index.json names with its hash;
  * one of DATA.
So a stray file never gets in, with or without git, and the same version always gives the same list.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any, Iterator, Sequence

BOOTSTRAP = "bootstrap.py"
PROGRAMS = (
    BOOTSTRAP,
    "scripts/bundle.py",
    "scripts/compare.py",
    "scripts/connect.py",
    "scripts/doctor.py",
)
# What the programs read besides modules and lock files; a copy may lack some of it.
DATA = (
    "colab_local/desktop/templates/vino-loopback",
    "colab_local/desktop/templates/vnc-desktop@.service",
    "colab_local/desktop/templates/vnc-mirror",
    "colab_local/desktop/templates/vnc-session",
    "colab_local/desktop/templates/xstartup",
    "scripts/slurm/colab-local.sbatch",
)
OURS = ("bootstrap", "colab_local", "scripts")  # a file secrets.py beside bootstrap.py is not the module `secrets`
SPELLED = re.compile(r"(\w+\.py)['\"]")  # a file that is run by its path is imported by nobody
MAIN = "__main__.py"  # of a package: run by `python -m`, which no import shows


def statements(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Yield each statement, also those within others; expressions, which are most of a module, hold no import."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers"):
            yield from statements(getattr(node, part, ()))


def imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the dotted names that a module may import, wherever in it. package: the module's own, dotted."""
    for node in statements(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def files_of(checkout: Path, dotted: str) -> Iterator[str]:
    """Yield the files under `checkout` that importing a dotted name would run, relative to it."""
    parts = dotted.split(".")
    if parts[0] not in OURS:
        return
    for count in range(1, len(parts) + 1):
        inner = "/".join(parts[:count])
        for name in (f"{inner}/__init__.py", f"{inner}.py", f"{inner}/{MAIN}"):
            if (checkout / name).is_file():
                yield name


def modules(checkout: Path, programs: Sequence[str]) -> list[str]:
    """Return the programs and all modules that they import, relative to `checkout`, sorted.

    Raises:
        OSError: a program is not there.
        SyntaxError: a module can't be read.
    """
    named: dict[str, list[str]] = {}
    for path in [*(checkout / "scripts").glob("*.py"), *(checkout / "colab_local").rglob("*.py")]:
        named.setdefault(path.name, []).append(path.relative_to(checkout).as_posix())
    waiting, found = list(programs), set(programs)
    while waiting:
        name = waiting.pop()
        if not name.endswith(".py"):
            continue
        text = (checkout / name).read_text(encoding="utf-8")
        package = ".".join(Path(name).parts[:-1])
        files = [file for dotted in imported(ast.parse(text, name), package) for file in files_of(checkout, dotted)]
        files += [file for word in SPELLED.findall(text) for file in named.get(word, [])]
        waiting += sorted(set(files) - found)
        found.update(files)
    return sorted(found)


def lock_names(index: dict[str, Any]) -> list[str]:
    """Return the files under lockfiles that an index names, itself included."""
    parts = [index["uv"]]
    for entry in index["environments"].values():
        parts += [entry["pypi"], *entry["platforms"].values()]
    return sorted({"index.json", *(str(part["file"]) for part in parts), *index["pixi"]})


def program_names(checkout: Path, index: dict[str, Any]) -> list[str]:
    """Return the files of a checkout that are the program, relative to it, without the lock; sorted.

    index: lockfiles/index.json.

    Raises:
        OSError: one of them is not there, or is no ordinary file.
    """
    names = [*modules(checkout, PROGRAMS), *(f"environments/jupyter/{name}" for name in index["jupyter"])]
    names += [name for name in DATA if (checkout / name).exists()]
    for name in names:
        path = checkout / name
        if path.is_symlink() or not path.is_file():
            raise FileNotFoundError(2, "not a checkout of colab-local: it lacks a file", str(path))
    return sorted(set(names))


def read_index(checkout: Path) -> dict[str, Any]:
    """Return lockfiles/index.json of a checkout; raise OSError or ValueError."""
    found = json.loads((checkout / "lockfiles" / "index.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("lockfiles/index.json is damaged")
    return found


def pack(checkout: Path) -> bytes:
    """Return a tar of the program and its whole lock; the same files give the same bytes.

    bootstrap.py is the last member, so that a host on which it lies has unpacked all the others.

    Raises:
        OSError, ValueError, KeyError, SyntaxError: the checkout is not whole.
    """
    index = read_index(checkout)
    names = program_names(checkout, index) + [f"lockfiles/{name}" for name in lock_names(index)]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(names, key=lambda name: (name == BOOTSTRAP, name)):
            content = (checkout / name).read_bytes()
            entry = tarfile.TarInfo(name)  # no owner, no time
            entry.size = len(content)
            entry.mode = 0o755 if name in PROGRAMS else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
