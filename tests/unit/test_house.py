"""The house: floors without a circle, nobody imports a program, files that one can read, a map that is true."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from colab_local.install.program import statements
from tests.conftest import REPO

PRODUCT = [
    REPO / name
    for name in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "bootstrap.py", "colab_local", "scripts", "ci"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if name.endswith(".py") and (REPO / name).is_file()
]
LIBRARY = [path for path in PRODUCT if path.is_relative_to(REPO / "colab_local")]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contract of pyproject.toml over a copy of the house."""
    program = Path(sys.executable).parent / "lint-imports"
    argv = [str(program), "--no-cache"]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("", "", False),
        ("base/files.py", "from colab_local.install.home import user_home", True),
        ("install/seal.py", "from colab_local.manage import verify", True),
        ("desktop/plan.py", "from colab_local.manage import verify", True),
        ("laptop/cures.py", "import bootstrap", True),
    ],
)
def test_the_floors_hold_and_a_planted_import_upwards_is_seen(
    tmp_path: Path, file: str, line: str, broken: bool
) -> None:
    shutil.copytree(REPO / "colab_local", tmp_path / "colab_local", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "bootstrap.py"):
        shutil.copy(REPO / name, tmp_path)
    if file:
        planted = tmp_path / "colab_local" / file
        planted.write_text(planted.read_text() + f"\n\ndef planted() -> None:\n    {line}\n")
    done = lint_imports(tmp_path)
    assert (done.returncode != 0) == broken, done.stdout + done.stderr


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Return (module, indentation) of every import in a file."""
    found = []
    for node in statements(tree_of(path).body):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.module, node.col_offset))
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.col_offset) for alias in node.names]
    return found


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(REPO)))
def test_nobody_imports_a_program_and_no_import_of_ours_hides_in_a_function(path: Path) -> None:
    programs = {"bootstrap", "scripts", "ci"}
    for module, _ in imports(path):
        assert module.split(".")[0] not in programs, f"{path.name} imports {module}"
    for function in statements(tree_of(path).body):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in statements(function.body):
                hidden = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "colab_local"
                assert not hidden, f"{path.name}:{node.lineno} imports inside {function.name}()"  # type: ignore[attr-defined]


def test_no_test_module_imports_another() -> None:
    for path in sorted((REPO / "tests").rglob("*.py")):
        others = [module for module, _ in imports(path) if re.match(r"tests\.(unit|real|lab)\b", module)]
        assert others == [], f"{path.relative_to(REPO)}: what several use is in tests/support"


def test_sizes() -> None:
    """A sysadmin reads bootstrap.py in ten minutes; no file is longer than one likes to read."""
    assert len((REPO / "bootstrap.py").read_text().splitlines()) <= 700
    long = {str(path.relative_to(REPO)): len(path.read_text().splitlines()) for path in PRODUCT}
    assert {name: lines for name, lines in long.items() if lines > 800} == {}


def test_one_dialect() -> None:
    """Annotations and f-strings: no type comments; the library says `str | None` under the future import."""
    for path in PRODUCT:
        text = path.read_text()
        assert not re.search(r"# type: (?!ignore)", text), path
        if path.is_relative_to(REPO / "colab_local") and path.name != "__init__.py":
            assert "from __future__ import annotations" in text, path


def test_what_runs_on_a_bare_machine_imports_the_standard_library_alone() -> None:
    bare = [path for path in LIBRARY if "locking" not in path.parts]
    inside = REPO / "colab_local" / "install" / "smoke_test.py"  # runs in the environment, which has the rest
    for path in [*bare, REPO / "bootstrap.py"]:
        if path == inside:
            continue
        names = {module.split(".")[0] for module, _ in imports(path)}
        assert names - set(sys.stdlib_module_names) <= {"colab_local", "tqdm"}, path


# Who may open an address: downloads and the session of locking/, which trust what base/certificates.py says; the look
# at a port that says whose certificate it has; and what runs where this program is not there yet.
OPENS_ADDRESSES = {
    "colab_local/base/downloads.py": "one opener",
    "colab_local/base/certificates.py": "whom it trusts",
    "colab_local/base/answers.py": "a server on this machine",
    "colab_local/locking/wheels.py": "one session",
    "colab_local/laptop/examination.py": "looks at a stranger's certificate",
    "bundles.py": "Ansible's controller",
}
OPENERS = {"urlopen", "build_opener", "HTTPConnection", "HTTPSConnection", "create_default_context"}


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(REPO)))
def test_the_web_is_asked_in_one_way(path: Path) -> None:
    called = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    names = {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in called}
    by_requests = any(
        isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "requests"
        for func in called
    )
    allowed = path.name in OPENS_ADDRESSES or str(path.relative_to(REPO)) in OPENS_ADDRESSES
    assert allowed or not (names & OPENERS or by_requests)


def test_the_same_version_and_licence_everywhere() -> None:
    from colab_local import VERSION

    assert re.fullmatch(r"20\d\d\.(1[0-2]|[1-9])\.\d+", VERSION)
    assert (REPO / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert 'license = "Apache-2.0"' in (REPO / "pyproject.toml").read_text()
