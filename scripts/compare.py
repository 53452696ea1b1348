#!/usr/bin/env python3
"""Say whether two machines have the same environment, and if not, which packages differ.

    python3 scripts/compare.py here.json there.json
    python3 scripts/compare.py "colab-local gpu linux-64 sha256:..." "colab-local gpu linux-64 sha256:..."
    ssh gpu-box python3 colab-local/bootstrap.py --verify --json | python3 scripts/compare.py here.json -

The files are what `python3 bootstrap.py --verify --json` prints: with two of them the difference is explained
package by package. From fingerprint lines alone it can be said only whether they agree, and whether environment
or platform are others. What a fingerprint covers: the top of colab_local/manage/verify.py.

Exit codes: 0 the same, 2 wrong usage, 7 different. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base import documents
from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_DIFFERS, EXIT_OK, EXIT_USAGE, Failure
from colab_local.base.terminal import Screen
from colab_local.base.text import printable
from colab_local.manage.verify import is_loose

LINE = re.compile(r"colab-local ([a-z0-9][a-z0-9_-]*) ([a-z0-9]+-[a-z0-9_]+) sha256:([0-9a-f]{64})(?![0-9a-f])")
TEXTS = {"kind": str, "package": str, "path": str, "found": str}
PACKAGE = {"layer": str, "name": str, "version": str, "build": str, "files": int, "sha256": str}
# What is read of --verify --json: it may come from a machine that is not to be trusted.
DOCUMENT = {
    "fingerprint": LINE.pattern,
    "layer": str,
    "lock": {"*": str},
    "packages": [PACKAGE],
    "differences": [TEXTS],
}
LAYERS = {
    "conda": "conda package",
    "python": "Python package",
    "jupyter": "extension and settings",
    "machine": "this machine's own",
}


class Side(NamedTuple):
    """What is known of one machine. title: where it was read; document: what --verify --json printed, or {}."""

    title: str
    line: str
    document: dict[str, Any]


def read(argument: str) -> Side:
    """Return one side: a fingerprint line, a file with one or with --verify --json's document, - for stdin.

    Raises:
        Failure: it is none of these.
    """
    if LINE.search(argument):
        return Side("given", LINE.search(argument).group(), {})  # type: ignore[union-attr]
    hint = "python3 bootstrap.py --verify --json > here.json"
    try:
        content = (
            sys.stdin.buffer.read(documents.LARGEST + 1) if argument == "-" else documents.read_bytes(Path(argument))
        )
        text = content.decode("utf-8")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or (
            "not a text" if isinstance(problem, UnicodeError) else problem
        )
        raise Failure(f"can't read {argument} ({reason})", hint, EXIT_USAGE) from problem
    with contextlib.suppress(ValueError):
        document = documents.parse(text, argument, DOCUMENT)
        return Side(argument, document["fingerprint"], document)
    found = LINE.search(text)
    if not found:
        raise Failure(f"{argument} holds no fingerprint", hint, EXIT_USAGE)
    return Side(argument, found.group(), {})


def compare(one: Side, two: Side) -> list[str]:
    """Return what differs, a line each; empty when the fingerprints are the same."""
    if one.line == two.line:
        return []
    first, second = (LINE.fullmatch(side.line) for side in (one, two))
    assert first and second
    names = ("environment", "platform")
    lines = [f"{name}: {a} / {b}" for name, a, b in zip(names, first.groups(), second.groups()) if a != b]
    if not (one.document and two.document):
        return lines or ["the content is not the same; what differs is in --verify --json of both"]
    lines += explain(one.document, two.document)
    return lines or ["the fingerprints differ, but the documents don't say in what: they were not written together"]


def explain(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Return what differs between two documents of --verify --json, package by package."""
    lines = []
    if one["layer"] != two["layer"]:
        lines.append(f"layer below the Python packages: {one['layer']} / {two['layer']}")
    files = sorted({*one["lock"], *two["lock"]})
    others = [name for name in files if one["lock"].get(name) != two["lock"].get(name)]
    if others:
        lines.append(f"made from different lock files: {', '.join(others)}")
    first, second = packages(one), packages(two)
    for key in sorted({*first, *second}):
        lines += explain_package(key, first.get(key), second.get(key), (one, two))
    loose = [loose_differences(one, two), loose_differences(two, one)]
    lines += [f"only in the first: {what}" for what in sorted(loose[0] - loose[1])]
    lines += [f"only in the second: {what}" for what in sorted(loose[1] - loose[0])]
    return lines


def loose_differences(document: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Return, as texts, what a check found that counts in the fingerprint without being a package's content.

    A package that is only here has its line already; one of a name that the other side has too is a second one.
    """
    names = {entry["name"] for entry in other["packages"]}
    return {
        " ".join(entry[name] for name in ("kind", "package", "path", "found") if entry[name])
        for entry in document["differences"]
        if is_loose(entry["kind"], entry["package"]) and (entry["path"] or entry["package"] in names)
    }


def packages(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return {(layer, name): package} of a document."""
    return {(entry["layer"], entry["name"]): entry for entry in document["packages"]}


def explain_package(
    key: tuple[str, str], one: Any, two: Any, documents: tuple[dict[str, Any], dict[str, Any]]
) -> list[str]:
    """Return the lines about one package. key: its layer and name; one, two: it on either side, or None."""
    title = f"{LAYERS.get(key[0], key[0])} {key[1]}"
    if one is None or two is None:
        word, entry = ("second", two) if one is None else ("first", one)
        return [f"{title}: only in the {word} ({spelled(entry)})"]
    if spelled(one) != spelled(two):
        return [f"{title}: {spelled(one)} / {spelled(two)}"]
    if one["sha256"] == two["sha256"]:
        return []
    lines = [f"{title} {spelled(one)}: the files differ ({one['files']} / {two['files']} files)"]
    for word, document in zip(("first", "second"), documents):
        names = {f"{one['name']} {one['version']}".strip(), one["name"]}
        touched = [entry for entry in document["differences"] if entry["package"] in names]
        lines += [f"  {entry['kind']} in the {word}: {entry['path']}" for entry in touched]
    return lines


def spelled(entry: dict[str, Any]) -> str:
    """Return a package's version and build as one text."""
    return " ".join(part for part in (entry["version"], entry["build"]) if part)


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(prog="compare.py", description=__doc__)
    parser.add_argument("first", help="a fingerprint line, a file, or -")
    parser.add_argument("second", help="the same of the other machine")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    return parser


def show(args: argparse.Namespace, screen: Screen) -> int:
    """Compare, print what differs, and return the exit code."""
    one, two = read(args.first), read(args.second)
    lines = compare(one, two)
    if args.json:
        screen.show_document({"same": not lines, "first": one.line, "second": two.line, "differences": lines})
    elif lines:
        print("\n".join(map(printable, lines)))
        print(f"different: {len(lines)} line{'s' if len(lines) > 1 else ''} above")
    else:
        print(f"the same: {one.line}")
    return EXIT_DIFFERS if lines else EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run compare.py with the given arguments and return its exit code."""
    return run_program(make_parser(), show, argv)


if __name__ == "__main__":
    sys.exit(main())
