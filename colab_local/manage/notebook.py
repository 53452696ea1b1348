"""`--check notebook.ipynb`: what a notebook needs, and which environments have it. Nothing of it is run."""

from __future__ import annotations

import ast
import json
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
LARGEST = 256 << 20  # bytes: notebooks hold their pictures, and some a film

# The package that brings a module, where the two have different names.
PACKAGES = {
    "absl": "absl-py",
    "argon2": "argon2-cffi",
    "attr": "attrs",
    "Bio": "biopython",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python",
    "community": "python-louvain",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "ffmpeg": "ffmpeg-python",
    "fitz": "pymupdf",
    "git": "gitpython",
    "google.api_core": "google-api-core",
    "google.auth": "google-auth",
    "google.cloud.aiplatform": "google-cloud-aiplatform",
    "google.cloud.bigquery": "google-cloud-bigquery",
    "google.cloud.storage": "google-cloud-storage",
    "google.generativeai": "google-generativeai",
    "google.genai": "google-genai",
    "google.protobuf": "protobuf",
    "googleapiclient": "google-api-python-client",
    "grpc": "grpcio",
    "imblearn": "imbalanced-learn",
    "jwt": "pyjwt",
    "markdown_it": "markdown-it-py",
    "mpl_toolkits": "matplotlib",
    "MySQLdb": "mysqlclient",
    "nacl": "pynacl",
    "OpenGL": "pyopengl",
    "PIL": "pillow",
    "pkg_resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "pylab": "matplotlib",
    "pywt": "pywavelets",
    "ruamel": "ruamel-yaml",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "socks": "pysocks",
    "umap": "umap-learn",
    "vertexai": "google-cloud-aiplatform",
    "weaviate": "weaviate-client",
    "websocket": "websocket-client",
    "wx": "wxpython",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
# Other packages that bring the same module.
ALSO = {
    "faiss-cpu": ("faiss-gpu", "faiss-gpu-cu12"),
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python"),
    "tensorflow": ("tensorflow-cpu",),
    "xgboost": ("xgboost-cpu",),
}
OURS = "google.colab"  # every environment has it, from environments/jupyter/

# Modules that left Python's own library, and with which version (https://docs.python.org/3/whatsnew/3.13.html).
# distutils is not among them: setuptools brings it back.
_PYTHON_2 = "__builtin__ commands ConfigParser cookielib cPickle cStringIO HTMLParser httplib Queue StringIO thread"
GONE = dict.fromkeys((*_PYTHON_2.split(), "Tkinter", "urllib2", "urlparse", "xmlrpclib"), "3.0")
GONE.update(dict.fromkeys(("asynchat", "asyncore", "imp", "smtpd"), "3.12"))
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
    (r"git\s+clone\s", "git clone: the modules that it brings are not known here"),
    (r"COLAB_(?!LOCAL)\w+|'google\.colab' in (str|sys)", "a test for Google's machine, which says no here"),
)
_UNKNOWN_SOURCE = "it installs from an address or a file: what that brings is not known here"
_NOT_BESIDE = "it installs what {} lists, which is not beside the notebook"
_PYTHON_2_WRITTEN = "it was written for Python 2"

_SHELL_CELL = re.compile(r"\s*%%(?:bash|sh|shell|script\s+\S*sh)\b.*\n?")
_PYTHON_CELLS = ("capture", "debug", "memit", "prun", "time", "timeit", "wandb")  # cell magics whose rest is Python
# A line for IPython alone: `!ls`, `files = !ls`, `%time`, `name?`, and what needs no % (`pip install x`).
_BARE = r"(?:pip3?|conda|mamba)\s+(?:install|uninstall|list|show|freeze|update)\b"
_SHELL_LINE = re.compile(rf"\s*(?:[\w., ]+=\s*)?(?:!|%%?[A-Za-z_])|\s*{_BARE}")
_QUESTION = re.compile(r"\s*(?:\?|%{0,2}[\w.*]+\?\??\s*$)")
_INSTALL = re.compile(r"\s*[!%]*\s*(?:sudo\s+)?(?:\S*python\S*\s+-m\s+)?(?:uv\s+)?pip3?\s+install\s+(.*)$")
_NAMED = re.compile(r"^([A-Za-z0-9][\w.-]*)(\[[\w,.-]*\])?\s*((?:[=<>!~]=?=?\s*[\w.*+!-]+,?\s*)*)$")
_WITH_PLACE = ("-e", "--editable")  # pip's options, each with what is installed
_WITH_LIST = re.compile(r"(?:-r|--requirement)(?:=|$)|-r")  # -r FILE, -rFILE, --requirement=FILE
_WITH_VALUE = ("-c", "--constraint", "-f", "--find-links", "-i", "--index-url", "--extra-index-url", "-t", "--target")

# The language of a kernel whose notebooks do not name it (Colab's own do not).
_KERNELS = {"ir": "R", "julia": "Julia", "swift": "Swift"}


class Needs(NamedTuple):
    """What a notebook asks for.

    imports: module -> the cell, counted from 1, that imports it first; tried: those of them that may fail, inside of
    a `try`; installs: package -> the version it names, or ""; habits: sentences of HABITS and the like; own: modules
    that the notebook writes itself, fetches or has beside it; unread: cells that are no Python.
    """

    imports: dict[str, int]
    tried: set[str]
    installs: dict[str, str]
    habits: list[str]
    own: set[str]
    unread: list[int]


def canonical(name: str) -> str:
    """Return a package's name as locks write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_notebook(path: Path) -> dict[str, Any]:
    """Return the document in a notebook's file; raise Failure where it is none.

    What outputs hold is nobody's fault: NaN, half a character, a byte order mark.
    """
    try:
        content = json.loads(documents.read_bytes(path, LARGEST).decode("utf-8-sig"))
        wrong = documents.mismatch(content, SHAPE, path.name)
        if wrong:
            raise ValueError(f"{wrong} is missing or malformed")
    except OSError as problem:
        raise Failure(
            f"can't read {path} ({problem.strerror})", "ls -l " + shlex.quote(str(existing_parent(path))), EXIT_USAGE
        ) from None
    except (ValueError, RecursionError) as problem:
        kinds = {RecursionError: "it is nested too deeply", UnicodeDecodeError: "it is no text"}
        reason = kinds.get(type(problem)) or str(problem).replace("Expecting value", "it is empty or no JSON")
        raise Failure(
            f"{path} is not a notebook of format 3 or 4: {reason}",
            f"head -c 200 {shlex.quote(str(path))}",
            EXIT_USAGE,
        ) from None
    if content["nbformat"] < 3 or ("cells" if content["nbformat"] > 3 else "worksheets") not in content:
        what = f"{path} is not a notebook of format 3 or 4: its format is {content['nbformat']}, or it has no cells"
        raise Failure(what, f"head -c 200 {shlex.quote(str(path))}", EXIT_USAGE)
    return dict(content)


def cells_of(content: dict[str, Any]) -> list[str]:
    """Return the text of every code cell of a notebook."""
    sheets = [content] if content["nbformat"] > 3 else content["worksheets"]
    cells = [cell for sheet in sheets for cell in sheet["cells"] if isinstance(cell, dict)]
    return [
        "".join(map(str, source)) if isinstance(source, list) else str(source)
        for source in (cell.get("source", cell.get("input", "")) for cell in cells if cell.get("cell_type") == "code")
    ]


def language_of(content: dict[str, Any]) -> str:
    """Return what a notebook is written in: "Python", "Python 2", or another language's own name."""
    metadata = content.get("metadata")
    found = [metadata.get(key) for key in ("kernelspec", "language_info")] if isinstance(metadata, dict) else []
    spec, info = (dict(one) if isinstance(one, dict) else {} for one in (found or [None, None]))
    kernel = str(spec.get("name", ""))
    named = spec.get("language") or info.get("name") or _KERNELS.get(kernel.partition("-")[0]) or "python"
    if not str(named).lower().startswith(("python", "ipython")):
        return re.sub(r"[^\w.+# -]", "", str(named))[:30]
    return "Python 2" if kernel == "python2" or str(info.get("version", "")).startswith("2.") else "Python"


def logical_lines(cell: str) -> Iterator[str]:
    """Yield a cell's lines; one for the shell goes on after a backslash."""
    lines = iter(cell.splitlines())
    for line in lines:
        if _SHELL_LINE.match(line):
            while line.rstrip().endswith("\\"):
                line = line.rstrip()[:-1] + " " + next(lines, "").lstrip()
        yield line


def python_of(cell: str) -> str:
    """Return a cell without what IPython alone understands: magics, shell lines, questions, an indented whole."""
    head = re.match(r"\s*%%(\w+)", cell)
    if head:
        if head.group(1) not in _PYTHON_CELLS:
            return ""
        cell = cell[cell.find("\n") + 1 :] if "\n" in cell else ""
    margin = re.match(r"(?:[ \t]*\n)*([ \t]*)", cell)
    lines = []
    for line in logical_lines(cell):
        if margin and line.startswith(margin.group(1)):
            line = line[len(margin.group(1)) :]
        if _SHELL_LINE.match(line) or _QUESTION.match(line):
            line = line[: len(line) - len(line.lstrip())] + "pass"
        lines.append(line)
    return "\n".join(lines)


def _may_fail(node: ast.Try) -> bool:
    """Return whether a `try` goes on where an import in it fails."""
    caught: set[str] = set()
    for handler in node.handlers:
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        caught.update("Exception" if kind is None else getattr(kind, "id", "") for kind in kinds)
    return not caught.isdisjoint(("ImportError", "ModuleNotFoundError", "Exception", "BaseException"))


def imported(code: str) -> Iterator[tuple[str, bool]]:
    """Yield (module, whether it may fail) of Python code, as far in as it names them; raises SyntaxError, ValueError.

    In `try: import a` with `except ImportError: import b` both may.
    """
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(code), False)]
    while waiting:
        node, tried = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, tried) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, tried
            if node.module.startswith("google"):
                # `from google.cloud import storage`: the package is named by the last part.
                yield from ((f"{node.module}.{alias.name}", tried) for alias in node.names)
        below = tried or (isinstance(node, ast.Try) and _may_fail(node))
        waiting += [(child, below) for child in ast.iter_child_nodes(node)]


def _is_python(cell: str) -> bool:
    try:
        ast.parse(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def shell_commands(cell: str) -> Iterator[str]:
    """Yield the commands that a cell gives to the shell or to pip's magic."""
    shell_cell = _SHELL_CELL.match(cell)
    text = cell[shell_cell.end() :].replace("\\\n", " ") if shell_cell else cell
    if not shell_cell and _is_python(cell):
        return
    for line in logical_lines(text):
        if shell_cell or _SHELL_LINE.match(line):
            yield from re.split(r"&&|\|\|?|;", re.sub(r"(^|\s)#.*", "", line))


def installed_by(cell: str, beside: Path) -> Iterator[tuple[str, str]]:
    """Yield (package, version or "") of every pip install in a cell of a notebook in the folder `beside`.

    What has no name there is ("", the list of requirements that is missing), or ("", "").
    """
    for command_line in shell_commands(cell):
        found = _INSTALL.match(command_line)
        if found:
            yield from _installed_with(found.group(1), beside)


def _installed_with(arguments: str, beside: Path, within: tuple[Path, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the same of the arguments of one `pip install`; extras, as in name[extra], bring nothing of their own.

    within: the lists of requirements that hold them, each in the one before.
    """
    arguments = re.sub(r"\s*([=<>!~]==?)\s*", r"\1", re.sub(r"\[[^\]]*\]", "", arguments))
    words = iter(re.sub(r",\s+", ",", arguments).replace('"', " ").replace("'", " ").split())
    for word in words:
        listed = _WITH_LIST.match(word)
        if word in _WITH_VALUE:
            next(words, "")
        elif word in _WITH_PLACE:
            yield from _named_by(next(words, "."))
        elif listed:
            yield from _listed_in(word[listed.end() :] or next(words, ""), beside, within)
        elif not word.startswith("-"):
            yield from _named_by(word)


def _listed_in(name: str, beside: Path, within: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    """Yield the same of a list of requirements, which is read where it lies in the notebook's folder or below."""
    if not re.match(r"[\w.-][\w./-]*$", name) or ".." in name.split("/"):
        yield "", ""
        return
    path = beside / name
    if path in within:
        return
    try:
        text = documents.read_bytes(path).decode("utf-8-sig", "replace")
    except (OSError, ValueError):
        yield "", name
        return
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*|;.*", "", line)
        yield from _installed_with(re.sub(r"\s*([=<>!~]+)\s*", r"\1", line), path.parent, (*within, path))


def _named_by(word: str) -> Iterator[tuple[str, str]]:
    """Yield what a word after `pip install` installs: a name, an address that ends in one, or something unknown."""
    named = _NAMED.match(word)
    if named and not word.endswith((".txt", ".whl", ".gz", ".zip")):
        yield canonical(named.group(1)), named.group(3).strip()
    elif re.match(r"[./{$]|git\+|\w+://|.*\.(txt|whl|gz|zip)$", word):
        named = re.search(r"#egg=([\w.-]+)", word) or re.match(r"git\+[^#@]*/([\w-]+)", word)
        if named:
            yield canonical(named.group(1)), ""
        yield "", ""


def own_modules(cells: Sequence[str]) -> set[str]:
    """Return the modules that the cells write or fetch as a file, or make from a protocol's description."""
    text = "\n".join(cells)
    own = {Path(name).stem for name in re.findall(r"(?m)^%%(?:writefile|file)\s+(?:-a\s+)?(\S+\.py)", text)}
    for line in (command_line for cell in cells for command_line in shell_commands(cell)):
        if re.match(r"\s*!?\s*(?:wget|curl|cp|mv)\s", line):
            own.update(re.findall(r"([A-Za-z_]\w*)\.py\b", line))
    return own


def needs_of(cells: list[str], beside: Path) -> Needs:
    """Return what the code cells of a notebook in the folder `beside` ask for."""
    found = Needs({}, set(), {}, [], own_modules(cells), [])
    text = "\n".join(cells)
    added = re.findall(r"sys\.path\.(?:append|insert)\((?:-?\d+,\s*)?r?['\"]([^'\"\0]+)['\"]", text)
    folders = [beside, *(beside / folder for folder in added)]
    demanded: set[str] = set()
    unknown: set[str] = set()
    for number, cell in enumerate(cells, 1):
        for package, version in installed_by(cell, beside):
            if package:
                found.installs[package] = version
            else:
                unknown.add(version)
        try:
            modules = list(imported(python_of(cell)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets in brackets
            found.unread.append(number)
            words = re.findall(r"(?m)^\s*(?:import|from)\s+([A-Za-z_][\w.]*)", cell)
            modules = [(module, False) for module in words]
        for module, tried in modules:
            top = module.partition(".")[0]
            if any((folder / f"{top}.py").exists() or (folder / top / "__init__.py").exists() for folder in folders):
                found.own.add(top)
            found.imports.setdefault(module, number)
            if not tried:
                demanded.add(module)
    found.tried.update(module for module in found.imports if module not in demanded)
    found.habits.extend(said for pattern, said in HABITS if re.search(pattern, text))
    found.habits.extend(_NOT_BESIDE.format(name) if name else _UNKNOWN_SOURCE for name in sorted(unknown))
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
    newer = {"__future__", "graphlib", "tomllib", "zoneinfo"}  # than the Python that reads this
    listed = getattr(sys, "stdlib_module_names", None)
    if listed is not None:
        return set(listed) | newer
    folder = Path(ast.__file__).parent
    return {path.stem for path in folder.iterdir()} | set(sys.builtin_module_names) | newer


def wanted_packages(needs: Needs) -> dict[str, int]:
    """Return the packages that the imports need -> the cell that needs them first."""
    library = standard_modules() | {"distutils"}
    wanted: dict[str, int] = {}
    for module, cell in needs.imports.items():
        top = module.partition(".")[0]
        if top in needs.own or top in library or top in GONE or module.startswith(OURS) or top.endswith("_pb2"):
            continue  # (protoc makes modules that end in _pb2)
        package = package_of(module)
        if package:
            wanted.setdefault(package, cell)
    return wanted


def names_of(package: str) -> tuple[str, ...]:
    """Return every package that brings the same module."""
    return (package, *ALSO.get(package, ()))


def version_in(package: str, locked: dict[str, str]) -> str:
    """Return the version of a package in {name: version}, under any name that brings the same module; "" for none."""
    return next((locked[name] for name in names_of(package) if name in locked), "")


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
    content = read_notebook(path)
    language = language_of(content)
    needs = needs_of(cells_of(content) if language.startswith("Python") else [], path.parent)
    if language == "Python 2":
        needs.habits.append(_PYTHON_2_WRITTEN)
    wanted = wanted_packages(needs)
    firm = {module: cell for module, cell in needs.imports.items() if module not in needs.tried}
    optional = sorted(set(wanted) - set(wanted_packages(needs._replace(imports=firm))))
    kernel = [] if language.startswith("Python") else [f"a kernel for {language}"]
    index = read_index(lockfiles)
    environments = {}
    for name, entry in sorted(index["environments"].items(), key=worth):
        parts = [entry["pypi"], *(entry["platforms"].values() if entry.get("needs_conda") else ())]
        texts = [read_lock_file(lockfiles, part["file"], part["sha256"]) for part in parts]
        locked = {**locked_names(texts[0]), **{n: v for text in texts[1:] for n, v in conda_names(text).items()}}
        has = {package: version_in(package, locked) for package in wanted}
        series = entry["python"].rpartition(".")[0]
        gone = sorted(m for m in firm if m in GONE and _minor(GONE[m]) <= _minor(series))
        absent = {package for package, version in has.items() if not version}
        missing = sorted(p for p in absent.difference(optional) if not any(n in needs.installs for n in names_of(p)))
        hosted = hosted_versions(name)
        differs = {p: hosted[p] for p, have in has.items() if have and hosted.get(p, have) != have}
        environments[name] = {
            "python": entry["python"],
            "has": {package: version for package, version in has.items() if version},
            "missing": kernel + missing,
            "gone": gone,
            "differs": differs,
            "clashes": list(clashes(needs.installs, locked)),
        }
    return {
        "notebook": str(path),
        "needs": wanted,
        "optional": optional,
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
        may_fail = "  (goes on without it)" if package in found["optional"] else ""
        own = "  (installs it itself)" if package in found["installs"] else may_fail
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
