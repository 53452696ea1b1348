"""`--check notebook.ipynb`: what a notebook needs, and which environments have it. Nothing of it is run."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from colab_local.base import documents
from colab_local.base.errors import EXIT_DIFFERS, EXIT_OK, EXIT_USAGE, Failure
from colab_local.base.files import existing_parent
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import (
    REPOSITORY,
    check_known,
    conda_names,
    locked_names,
    read_index,
    read_lock_file,
)

# What a notebook is, as far as this looks: format 4, which Colab writes, or 3, with its cells on worksheets.
SHAPE = {"cells?": list, "worksheets?": [{"cells": list}], "nbformat": int}

# The package that brings a module, where the two have different names.
PACKAGES = {
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "git": "gitpython",
    "google.cloud.bigquery": "google-cloud-bigquery",
    "google.cloud.storage": "google-cloud-storage",
    "google.generativeai": "google-generativeai",
    "google.genai": "google-genai",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "gym": "gym",
    "imblearn": "imbalanced-learn",
    "jwt": "pyjwt",
    "mpl_toolkits": "matplotlib",
    "OpenGL": "pyopengl",
    "PIL": "pillow",
    "pkg_resources": "setuptools",
    "pylab": "matplotlib",
    "pytesseract": "pytesseract",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_hub": "tensorflow-hub",
    "tensorflow_probability": "tensorflow-probability",
    "umap": "umap-learn",
    "wx": "wxpython",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
# Other packages that bring the same module.
ALSO = {
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python"),
    "tensorflow": ("tensorflow-cpu",),
    "xgboost": ("xgboost-cpu",),
}
OURS = "google.colab"  # every environment has it, from environments/jupyter/

# Modules that left Python's own library, and with which version (https://docs.python.org/3/whatsnew/3.13.html).
# distutils is not among them: setuptools brings it back.
GONE = dict.fromkeys(("asynchat", "asyncore", "imp", "smtpd"), "3.12")
GONE.update(
    dict.fromkeys(
        [
            "aifc",
            "audioop",
            "cgi",
            "cgitb",
            "chunk",
            "crypt",
            "imghdr",
            "mailcap",
            "msilib",
            "nis",
            "nntplib",
            "ossaudiodev",
            "pipes",
            "sndhdr",
            "spwd",
            "sunau",
            "telnetlib",
            "uu",
            "xdrlib",
        ],
        "3.13",
    )
)

# What a cell does that means something else here than on Google's machine: a pattern, and what to say.
HABITS = (
    (r"(?m)^\s*[!%]+\s*(sudo\s+)?apt(-get)?\s", "apt: on your own machine it needs root, and changes the machine"),
    (r"drive\.mount\(", "drive.mount: a link to a folder that you name; Google Drive is not reached"),
    (r"auth\.authenticate_user\(", "auth: uses this machine's own login (gcloud auth application-default login)"),
    (r"files\.upload\(", "files.upload: works on Colab's page; elsewhere it asks for a path on this machine"),
    (r"userdata\.get\(", "userdata: from Colab's page, else from ~/.config/colab-local/secrets"),
    (r"runtime\.unassign\(", "runtime.unassign: does nothing here"),
    (r"from google\.colab import (.*\b)?(ai|sheets)\b", "google.colab.ai and sheets: hosted runtimes only"),
    (r"/content\b", "/content: see --content"),
    (r"TPUClusterResolver|TPUStrategy|torch_xla|COLAB_TPU_ADDR", "a TPU: not on your own machine"),
    (r"COLAB_(?!LOCAL)\w+|'google\.colab' in (str|sys)", "a test for Google's machine, which says no here"),
)
_INSTALL = re.compile(r"(?m)^\s*[!%]\s*(?:\S*python\S*\s+-m\s+)?(?:uv\s+)?pip3?\s+install\s+(.*)$")
_NAMED = re.compile(r"^([A-Za-z0-9][\w.-]*)(\[[\w,.-]*\])?\s*((?:[=<>!~]=?=?\s*[\w.*+!-]+,?\s*)*)$")


class Needs(NamedTuple):
    """What a notebook asks for.

    imports: module -> the cell, counted from 1, that imports it first; installs: package -> the version it names, or
    ""; habits: sentences of HABITS; own: modules that the notebook writes itself or has beside it; unread: cells that
    are no Python.
    """

    imports: dict[str, int]
    installs: dict[str, str]
    habits: list[str]
    own: set[str]
    unread: list[int]


def canonical(name: str) -> str:
    """Return a package's name as locks write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_cells(path: Path) -> list[str]:
    """Return the text of every code cell; raise Failure where the file is no notebook."""
    try:
        content = documents.read(path, SHAPE)
    except OSError as problem:
        raise Failure(
            f"can't read {path} ({problem.strerror})", "ls -l " + shlex.quote(str(existing_parent(path))), EXIT_USAGE
        ) from None
    except ValueError as problem:
        raise Failure(
            f"{path} is not a notebook of format 3 or 4: {problem}",
            f"head -c 200 {shlex.quote(str(path))}",
            EXIT_USAGE,
        ) from None
    sheets = [content] if content["nbformat"] > 3 else content.get("worksheets", [])
    if not all("cells" in sheet for sheet in sheets) or content["nbformat"] < 3:
        what = f"{path} is not a notebook of format 3 or 4: its format is {content['nbformat']}, or it has no cells"
        raise Failure(what, f"head -c 200 {shlex.quote(str(path))}", EXIT_USAGE)
    cells = [cell for sheet in sheets for cell in sheet["cells"] if isinstance(cell, dict)]
    return [
        "".join(map(str, source)) if isinstance(source, list) else str(source)
        for source in (cell.get("source", cell.get("input", "")) for cell in cells if cell.get("cell_type") == "code")
    ]


def python_of(cell: str) -> str:
    """Return a cell without what IPython alone understands: magics, shell lines, questions."""
    head = re.match(r"\s*%%(\w+)", cell)
    if head:
        if head.group(1) not in ("time", "timeit", "capture", "prun"):
            return ""
        cell = cell[cell.find("\n") + 1 :] if "\n" in cell else ""
    lines = []
    for line in cell.splitlines():
        bare = line.lstrip()
        indent = line[: len(line) - len(bare)]
        shell = re.match(r"[\w., ]+=\s*[!%]", bare)
        if bare[:1] in ("!", "%", "?") or bare.rstrip().endswith("?") or shell:
            line = f"{indent}pass"
        lines.append(line)
    return "\n".join(lines)


def imported(code: str) -> Iterator[str]:
    """Yield the modules that Python code imports, as far in as it names them; raises SyntaxError, ValueError."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            # `from google.cloud import storage`: the package is named by the last part.
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("google"))


def installed_by(cell: str) -> Iterator[tuple[str, str]]:
    """Yield (package, version or "") of every pip install in a cell."""
    for line in _INSTALL.findall(cell):
        for word in re.sub(r"\s#.*", "", line).replace('"', " ").replace("'", " ").split():
            found = None if word.startswith("-") else _NAMED.match(word)
            if found:
                yield canonical(found.group(1)), found.group(3).strip()


def needs_of(cells: list[str], beside: Path) -> Needs:
    """Return what the code cells of a notebook in the folder `beside` ask for."""
    found = Needs({}, {}, [], set(), [])
    text = "\n".join(cells)
    found.own.update(Path(name).stem for name in re.findall(r"(?m)^%%writefile\s+(?:-a\s+)?(\S+\.py)", text))
    for number, cell in enumerate(cells, 1):
        found.installs.update(installed_by(cell))
        try:
            modules = list(imported(python_of(cell)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets in brackets
            found.unread.append(number)
            modules = re.findall(r"(?m)^\s*(?:import|from)\s+([A-Za-z_][\w.]*)", cell)
        for module in modules:
            top = module.partition(".")[0]
            if (beside / f"{top}.py").exists() or (beside / top / "__init__.py").exists():
                found.own.add(top)
            found.imports.setdefault(module, number)
    found.habits.extend(said for pattern, said in HABITS if re.search(pattern, text))
    return found


def package_of(module: str) -> str:
    """Return the package that brings a module; "" where it is only a namespace that several share."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        known = PACKAGES.get(".".join(parts[:length]))
        if known:
            return known
    return "" if parts[0] == "google" else canonical(parts[0])


def standard_modules() -> set[str]:
    """Return the modules of Python's own library; before 3.10 Python does not list them, and its folder does."""
    listed = getattr(sys, "stdlib_module_names", None)
    if listed is not None:
        return set(listed) | {"__future__"}
    folder = Path(ast.__file__).parent
    return {path.stem for path in folder.iterdir()} | set(sys.builtin_module_names)


def wanted_packages(needs: Needs) -> dict[str, int]:
    """Return the packages that the imports need -> the cell that needs them first."""
    library = standard_modules() | {"distutils"}
    wanted: dict[str, int] = {}
    for module, cell in needs.imports.items():
        top = module.partition(".")[0]
        if top in needs.own or top in library or top in GONE or module.startswith(OURS):
            continue
        package = package_of(module)
        if package:
            wanted.setdefault(package, cell)
    return wanted


def version_in(package: str, locked: dict[str, str]) -> str:
    """Return the version of a package in {name: version}, under any name that brings the same module; "" for none."""
    return next((locked[name] for name in (package, *ALSO.get(package, ())) if name in locked), "")


def clashes(installs: dict[str, str], locked: dict[str, str]) -> Iterator[str]:
    """Yield a sentence for each package that the notebook installs in another version than the lock's."""
    for package, wish in sorted(installs.items()):
        have = version_in(package, locked)
        exact = re.match(r"===?\s*([\w.+!-]+)$", wish)
        if have and exact and exact.group(1) != have:
            yield f"it installs {package} {exact.group(1)} over {have}: --verify will say so"


def hosted_versions(env: str) -> dict[str, str]:
    """Return {package: version} of hosted Colab in the month that an environment follows, {} if unknown."""
    month = re.search(r"-(\d{4})-(\d\d)$", env)
    name = f"runtimes/{month.group(1)}.{month.group(2)}.txt" if month else "colab-all-pins.txt"
    try:
        return locked_names((REPOSITORY / "environments" / name).read_text(encoding="utf-8"))
    except OSError:  # a copy of the program without it
        return {}


def worth(named: tuple[str, dict[str, Any]]) -> tuple[bool, bool, int]:
    """Return a sort key for index.json's environments: this month's first, without CUDA first, small ones first."""
    name, entry = named
    sizes = [platform.get("bytes", {}).get("pypi_download", 0) for platform in entry["platforms"].values()]
    return bool(re.search(r"-\d{4}-\d\d$", name)), entry["accelerator"] == "gpu", max(sizes, default=0)


def examine(path: Path, lockfiles: Path) -> dict[str, Any]:
    """Return what the notebook at `path` needs, and what each locked environment has of it."""
    needs = needs_of(read_cells(path), path.parent)
    wanted = wanted_packages(needs)
    index = read_index(lockfiles)
    environments = {}
    for name, entry in sorted(index["environments"].items(), key=worth):
        parts = [entry["pypi"], *(entry["platforms"].values() if entry.get("needs_conda") else ())]
        texts = [read_lock_file(lockfiles, part["file"], part["sha256"]) for part in parts]
        locked = {**locked_names(texts[0]), **{n: v for text in texts[1:] for n, v in conda_names(text).items()}}
        has = {package: version_in(package, locked) for package in wanted}
        series = entry["python"].rpartition(".")[0]
        gone = sorted(m for m in needs.imports if m in GONE and _minor(GONE[m]) <= _minor(series))
        missing = sorted(p for p, version in has.items() if not version and p not in needs.installs)
        hosted = hosted_versions(name)
        differs = {p: hosted[p] for p, have in has.items() if have and hosted.get(p, have) != have}
        environments[name] = {
            "python": entry["python"],
            "has": {package: version for package, version in has.items() if version},
            "missing": missing,
            "gone": gone,
            "differs": differs,
            "clashes": list(clashes(needs.installs, locked)),
        }
    return {
        "notebook": str(path),
        "needs": wanted,
        "installs": needs.installs,
        "habits": needs.habits,
        "unread": needs.unread,
        "environments": environments,
    }


def _minor(series: str) -> int:
    return int(series.split(".")[1])


def lines_of(found: dict[str, Any], env: str, put_right: Callable[[str], str]) -> Iterator[str]:
    """Yield what a person reads of examine()'s answer.

    env: the environment that was asked for; put_right: makes of a command of ours what the user can type.
    """
    environments = found["environments"]
    names = [env, *(name for name in environments if name != env)][:3]
    width = max([len(package) for package in found["needs"]] + [8])
    yield "  " + "needs".ljust(width) + "".join(f"  {name:>12}" for name in names) + "  first in cell"
    for package, cell in sorted(found["needs"].items()):
        versions = [environments[name]["has"].get(package, "-") for name in names]
        own = "  (installs it itself)" if package in found["installs"] else ""
        yield "  " + package.ljust(width) + "".join(f"  {version:>12}" for version in versions) + f"  {cell}{own}"
    chosen = environments[env]
    yield from (f"  {module}: left Python with {GONE[module]}" for module in chosen["gone"])
    for package, hosted in sorted(chosen["differs"].items()):
        yield f"  {package}: {chosen['has'][package]} here, {hosted} in hosted Colab"
    yield from (f"  {sentence}" for sentence in chosen["clashes"])
    yield from (f"  {habit}" for habit in found["habits"])
    if found["unread"]:
        yield f"  cells that are no plain Python, only skimmed: {', '.join(map(str, found['unread']))}"
    missing = chosen["missing"] + chosen["gone"]
    if not missing:
        yield f"The {env} environment has all that it imports."
        return
    yield f"The {env} environment lacks: {', '.join(missing)}"
    complete = [name for name in environments if not environments[name]["missing"] and not environments[name]["gone"]]
    if complete:
        yield f"The {complete[0]} environment has all:"
        yield put_right(f"python3 bootstrap.py --env {complete[0]}")


def command(paths: Sequence[Path], env: str, lockfiles: Path, screen: Screen) -> int:
    """Say what each notebook needs; return EXIT_DIFFERS where the environment `env` lacks something.

    Raises Failure for one that can't be read, after the others have been looked at.
    """
    check_known(env, read_index(lockfiles)["environments"])
    answers: list[dict[str, Any]] = []
    unread: list[Failure] = []
    for path in paths:
        try:
            answers.append(examine(path, lockfiles))
        except Failure as problem:
            unread.append(problem)
            continue
        screen.say(f"{path}:")
        for line in lines_of(answers[-1], env, screen.put_right):
            screen.say(line)
    for other in unread[1:]:
        screen.report(f"error: {other.what}")
    if unread:
        raise unread[0]
    screen.show_document(answers[0] if len(paths) == 1 else {"notebooks": answers})
    chosen = [answer["environments"][env] for answer in answers]
    return EXIT_DIFFERS if any(one["missing"] or one["gone"] for one in chosen) else EXIT_OK
