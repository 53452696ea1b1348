"""A program of ours as one text that runs on another machine, where nothing of colab-local needs to be installed."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from colab_local.install.lockfiles import REPOSITORY

# Gives Python the modules that came with the text: its own import machinery asks this finder first.
LOADER = """\
import importlib.abc, importlib.util, json, sys
SOURCES = json.loads({sources!r})
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name in SOURCES:
            return importlib.util.spec_from_loader(name, self, is_package=SOURCES[name][0])
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.__file__ = module.__name__.replace(".", "/") + ".py"  # of no file there
        exec(compile(SOURCES[module.__name__][1], "<" + module.__name__ + ">", "exec"), module.__dict__)
sys.meta_path.insert(0, Finder())
from {module} import main
main()
"""


def file_of(module: str) -> Path | None:
    """Return the file of a module of ours, None for a name that is none."""
    path = REPOSITORY.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def imported(source: str) -> set[str]:
    """Return the names of ours that a module's text imports, and the packages that they are in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "colab_local":
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}


def program_text(module: str) -> str:
    """Return a Python text that runs main() of a module of ours with all that it imports of ours."""
    sources: dict[str, tuple[bool, str]] = {}
    wanted = {".".join(module.split(".")[:end]) for end in range(1, module.count(".") + 2)}
    while wanted:
        name = wanted.pop()
        file = file_of(name)
        if name in sources or file is None:
            continue
        text = file.read_text(encoding="utf-8")
        sources[name] = (file.name == "__init__.py", text)
        wanted |= imported(text)
    return LOADER.format(sources=json.dumps(sources), module=module)
