"""The user's own world: variables and dot files that are known to break a Jupyter, a kernel, pip or ssh.

Read only, and by name: nothing is run. What the way in which we start Jupyter makes harmless is left out, or told as
a note; what stays is told with file and line, before anything fails.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import json
import os
import re
import shlex
import socket
from pathlib import Path
from typing import Callable, Iterator, Mapping, NamedTuple, Sequence

from colab_local.base import certificates
from colab_local.base.terminal import Screen

LONGEST = 1_000_000  # bytes of a dot file that are read


class Finding(NamedTuple):
    """One thing that breaks something. where: file, or file:line, or a variable's name; hint: what to type."""

    where: str
    what: str
    hint: str
    breaks: bool = True  # False: harmless as we start things, worth knowing elsewhere

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def read(path: Path) -> str:
    """Return the text of a file, "" where there is none that can be read."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as stream:
                return stream.read(LONGEST)
    return ""


def line_of(text: str, at: int) -> int:
    """Return the number of the line that holds a position of a text."""
    return text.count("\n", 0, at) + 1


def edit(path: Path, line: int = 0) -> str:
    """Return the command that opens a file at a line."""
    return f"nano {f'+{line} ' if line else ''}{shlex.quote(str(path))}"


# -- variables

# What programs of other software set, and what it did to somebody. Jupyter as we start it is free of all of them;
# any other Python, pip or ssh is not.
VARIABLES = {
    "PYTHONHOME": "every Python takes its library from there, and most then end at once",
    "PYTHONPATH": "modules from there hide those of any environment",
    "PYTHONOPTIMIZE": "assert statements are left out",
    "PYTHONWARNINGS": "may turn warnings into errors",
    "LD_LIBRARY_PATH": "libraries from there hide those of any environment",
    "LD_PRELOAD": "this library is loaded into every program",
    "KERAS_BACKEND": "Keras uses this backend",
    "TF_USE_LEGACY_KERAS": "tf.keras is Keras 2, which is a package of its own",
    "MPLBACKEND": "Matplotlib draws with this backend",
    "JUPYTER_TOKEN": "the token of every Jupyter, known to every program",
    "JUPYTER_CONFIG_DIR": "Jupyter's settings come from there",
    "JUPYTER_NO_CONFIG": "Jupyter reads no settings, an environment's neither",
    "PIP_TARGET": "pip installs there",
    "PIP_PREFIX": "pip installs there",
    "PIP_USER": "pip installs into ~/.local",
    "PIP_REQUIRE_VIRTUALENV": "pip refuses outside of a virtual environment",
}


def variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the variables that are known to break things elsewhere."""
    for name, effect in VARIABLES.items():
        if environ.get(name):
            shown = environ[name] if not name.endswith("TOKEN") else "..."
            yield Finding(name, f"{effect} (found {shown[:80]}); not in our Jupyter", f"unset {name}", False)
    for name in certificates.VARIABLES:
        value = environ.get(name)
        if value and not Path(value).is_file():
            yield Finding(name, f"there is no file {value}: no download can be checked", f"unset {name}")
    flags = environ.get("XLA_FLAGS", "")
    for word in flags.split():
        if not word.startswith("--"):
            yield Finding("XLA_FLAGS", f"{word} is no flag: TensorFlow ends at once", "unset XLA_FLAGS")


START_FILES = (
    ".bashrc",
    ".bash_profile",
    ".bash_login",
    ".bash_aliases",
    ".profile",
    ".zshenv",
    ".zprofile",
    ".zshrc",
    ".zlogin",
    ".config/fish/config.fish",
    ".cshrc",
    ".tcshrc",
    ".login",
    ".ssh/rc",
)
# Where variables are set for a log-in, a desktop or a user's services, besides the start-up files of shells.
VARIABLE_FILES = (
    ".pam_environment",
    ".ssh/environment",
    ".xprofile",
    ".xsessionrc",
    ".config/environment.d/*.conf",
    ".config/plasma-workspace/env/*.sh",
    ".config/fish/conf.d/*.fish",
)
# The same for every user, below /etc.
MACHINE_FILES = (
    "environment",
    "environment.d/*.conf",
    "security/pam_env.conf",
    "profile",
    "profile.d/*.sh",
    "bash.bashrc",
    "bashrc",
    "zsh/zshenv",
    "zshenv",
    "csh.cshrc",
)


def assignments(line: str) -> list[tuple[str, str]]:
    """Return the (name, value) that a line sets, in the languages of shells, systemd and PAM; [] where that is open.

    >>> assignments("[ -d /x ] && export A=1 B='2 3'; setenv C 4; D=5 ls  # E=6")
    [('A', '1'), ('B', '2 3'), ('C', '4')]
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = [*lexer, ";"]
    except ValueError:  # an open quotation mark
        return []
    found: list[tuple[str, str]] = []
    command: list[str] = []
    for word in words:
        if set(word) <= set(";&|()"):
            first = next((number for number, one in enumerate(command) if one not in ("then", "else", "do", "{")), 0)
            found += _assigned(command[first:])
            command = []
        else:
            command.append(word)
    return found


def _assigned(words: list[str]) -> list[tuple[str, str]]:
    """Return what one command sets."""
    pairs = [word.partition("=") for word in words]
    plain = [word for word in words[1:] if not word.startswith("-")]
    if words[:1] in (["setenv"], ["set"]) and len(plain) >= 2:  # csh's; fish's
        return [(plain[0], plain[1])]
    if words[1:] and re.match("(DEFAULT|OVERRIDE)=", words[1]):  # PAM's
        return [(words[0], pairs[1][2])]
    if words[:1] in (["export"], ["declare"], ["typeset"]) or all(sign for _, sign, _ in pairs):
        return [(name, value) for name, sign, value in pairs if sign]
    return []


def variables_in_files(home: Path, machine: Path = Path("/etc")) -> Iterator[Finding]:
    """Yield the lines that set such a variable: what starts programs the next time is not this process.

    home: the user's; machine: the folder of what counts for every user.
    """
    known = re.compile("|".join((*VARIABLES, *certificates.VARIABLES, "XLA_FLAGS")))
    places = [(home, name) for name in (*START_FILES, *VARIABLE_FILES)] + [(machine, name) for name in MACHINE_FILES]
    for path in (path for folder, name in places for path in sorted(folder.glob(name))):
        for number, line in enumerate(read(path).splitlines(), 1):
            for name, value in assignments(line) if known.search(line) else []:
                value = re.sub(r"^~|\$\{?HOME\b\}?|@\{HOME\}", str(home), value)
                if name not in VARIABLES and re.search(r"[$`]", value):
                    continue  # known only when it runs
                for one in variables({name: value}):
                    breaks = one.breaks or name == "PYTHONHOME"  # bootstrap.py itself would not start
                    yield Finding(f"{path}:{number}", f"`{name}`: {one.what}", edit(path, number), breaks)


# -- Jupyter, Keras, IPython, Matplotlib


def broken_json(paths: Sequence[Path], what: str, breaks: bool) -> Iterator[Finding]:
    """Yield the files that are no JSON; what: what comes of it."""
    for path in sorted(paths):
        try:
            json.loads(read(path) or "{}")
        except ValueError as problem:
            line = getattr(problem, "lineno", 1)
            yield Finding(f"{path}:{line}", f"not valid JSON ({problem}); {what}", edit(path, line), breaks)


def jupyter(home: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with Jupyter's own folders."""
    data = Path(environ.get("JUPYTER_DATA_DIR") or environ.get("XDG_DATA_HOME") or home / ".local/share")
    data = data if environ.get("JUPYTER_DATA_DIR") else data / "jupyter"
    runtime = Path(environ.get("JUPYTER_RUNTIME_DIR") or data / "runtime")
    for folder in (data, runtime, home / ".ipython", home / ".keras", home / ".cache"):
        if folder.exists() and not os.access(str(folder), os.W_OK | os.X_OK):
            change = f"sudo chown -R {os.getuid()}:{os.getgid()} {shlex.quote(str(folder))}"
            serious = folder in (data, runtime)
            yield Finding(str(folder), f"not writable, it belongs to user {folder.stat().st_uid}", change, serious)
    config = Path(environ.get("JUPYTER_CONFIG_DIR") or home / ".jupyter")
    for folder in (config, Path("/usr/local/etc/jupyter"), Path("/etc/jupyter")):
        yield from broken_json([*folder.glob("*.json"), *folder.glob("*.d/*.json")], "not read by our Jupyter", False)
    settings = config / "jupyter_notebook_config.py"
    text = read(settings)
    pattern = r"(?m)^[^#\n]*\.(certfile|keyfile|ip|port|password|token|base_url|kernel_spec_manager_class)\s*="
    for found in re.finditer(pattern, text):
        line = line_of(text, found.start(1))
        what = f"sets {found.group(1)}; not read by our Jupyter"
        yield Finding(f"{settings}:{line}", what, edit(settings, line), False)


def keras(home: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the settings of keras.json that keep Keras 3 from being imported, or change what it computes."""
    path = Path(environ.get("KERAS_HOME") or home / ".keras") / "keras.json"
    text = read(path)
    with contextlib.suppress(ValueError):
        found = json.loads(text or "{}")
        usual = {"backend": "tensorflow", "floatx": "float32", "image_data_format": "channels_last"}
        for name, value in usual.items():
            if isinstance(found, dict) and found.get(name, value) != value:
                line = line_of(text, text.index(f'"{name}"'))
                what = f'says "{name}": "{found[name]}", Keras here is tested with "{value}"; not read by our Jupyter'
                yield Finding(f"{path}:{line}", what, edit(path, line), False)


def ipython(home: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the start-up files and settings of IPython that can't be read: every kernel begins with their error."""
    folder = Path(environ.get("IPYTHONDIR") or home / ".ipython") / "profile_default"
    for path in sorted([*folder.glob("startup/*.py"), *folder.glob("ipython*_config.py")]):
        try:
            ast.parse(read(path))
        except (SyntaxError, ValueError) as problem:
            line = getattr(problem, "lineno", 1) or 1
            yield Finding(
                f"{path}:{line}", "not valid Python 3: every kernel starts with its error", edit(path, line)
            )
    yield from broken_json([*folder.glob("ipython*_config.json")], "every kernel starts with its error", True)


def matplotlib(home: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the settings of Matplotlib that need programs which are seldom there."""
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib"
    for path in (config / "matplotlibrc", home / ".matplotlib" / "matplotlibrc", Path("matplotlibrc").absolute()):
        text = read(path)
        for found in re.finditer(r"(?mi)^\s*text\.usetex\s*:\s*true", text):
            line = line_of(text, found.end())
            yield Finding(f"{path}:{line}", "every plot needs LaTeX", edit(path, line))


SHADOWED = ("tensorflow", "keras", "numpy", "pandas", "matplotlib", "random", "json", "types", "typing", "google")


def notebook_folder(folder: Path) -> Iterator[Finding]:
    """Yield the files in the notebooks' folder that a cell imports instead of a package: it looks there first."""
    for name in SHADOWED:
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file():
                moved = path if path.suffix == ".py" and path.stem == name else path.parent
                hint = f"mv {shlex.quote(str(moved))} {shlex.quote(str(moved.with_name('my_' + moved.name)))}"
                yield Finding(str(path), f"`import {name}` in a cell takes this file", hint)


# -- pip and uv


def packages(home: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the settings of pip and uv that can't be read, or make an installation in a cell go elsewhere."""
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    named = [Path(environ["PIP_CONFIG_FILE"])] if environ.get("PIP_CONFIG_FILE") else []
    for path in (Path("/etc/pip.conf"), home / ".pip/pip.conf", config / "pip/pip.conf", *named):
        text = read(path)
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(text)
        except configparser.Error as problem:
            said = re.search(r"line:?\s+(\d+)", str(problem))
            line = int(getattr(problem, "lineno", 0) or (said.group(1) if said else 1))
            yield Finding(f"{path}:{line}", "pip can't read this file, and ends", edit(path, line))
            continue
        for found in re.finditer(r"(?m)^\s*(target|prefix|root|no-deps|dry-run)\s*=", text):
            line = line_of(text, found.start(1))
            what = f"`{found.group(1)}`: `!pip install` in a cell does not install into the environment"
            yield Finding(f"{path}:{line}", what, edit(path, line))
        for found in re.finditer(r"(?m)^\s*cert\s*=\s*(\S+)", text):
            if not Path(found.group(1)).expanduser().is_file():
                line = line_of(text, found.start(1))
                what = f"there is no file {found.group(1)}: no download can be checked"
                yield Finding(f"{path}:{line}", what, edit(path, line))
    for path in (folder / "uv/uv.toml" for folder in (Path("/etc"), *certificates.machine_settings(), config)):
        text = read(path)
        for found in re.finditer(r"(?m)^\s*required-version\s*=\s*(.+)$", text):
            line = line_of(text, found.start(1))
            what = f"`required-version` ({found.group(1).strip()}) ends any other uv"
            yield Finding(f"{path}:{line}", what, edit(path, line), False)


# -- shells

# What a start-up file must not do where a program, not a person, logs in: `ssh HOST COMMAND` reads .bashrc too.
SHELL_FAULTS = (
    (r"exec\s+(-a\s+\S+\s+|-l\s+)?\S*\b(fish|zsh|bash|tmux|screen|byobu|nu|xonsh)\b", "replaces the shell"),
    (r"(tmux|screen|byobu)(\s+(new|attach|a)\b|\s*$|\s+-)", "starts a terminal program"),
    (r"read\s+(-\w+\s+)*\w+", "reads what another program sends"),
    (r"ulimit\s+(-S\s*|-H\s*)?-n\s+\d{1,3}\b", "allows few open files: a kernel needs more"),
)


def shells(home: Path) -> Iterator[Finding]:
    """Yield the lines of start-up files that take an ssh connection from the program that made it.

    A line that is indented is likely within an `if` for terminals, and passed over; so is what follows the usual
    `case $- in *i*) ;; *) return;; esac`.
    """
    for name in START_FILES:
        path = home / name
        text = read(path)
        returns = re.search(r"(?m)^[^#\n]*(\$-|\$PS1|-t [01]|is-interactive|\$prompt)", text)
        for pattern, what in SHELL_FAULTS:
            for found in re.finditer(r"(?m)^(?!#)((?:export|setenv)?\s?)" + pattern, text):
                if returns and found.start() > returns.start():
                    continue
                line = line_of(text, found.end())
                yield Finding(f"{path}:{line}", f"`{found.group().strip()}` {what}", edit(path, line))


def localhost() -> Iterator[Finding]:
    """Yield a finding where the name localhost leads elsewhere than to this machine."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo("localhost", None)}
    except OSError:
        found = set()
    strange = sorted(address for address in found if not address.startswith("127.") and address != "::1")
    if strange or not found:
        what = f"localhost is {', '.join(strange) or 'unknown'}: Colab reaches nothing"
        add = "echo '127.0.0.1 localhost' | sudo tee -a /etc/hosts"
        change = "sudo nano /etc/hosts   # the line with localhost has to begin with 127.0.0.1"
        yield Finding("/etc/hosts", what, change if strange else add)


def look(home: Path, environ: Mapping[str, str], notebooks: Path | None = None) -> list[Finding]:
    """Return what is known to break something in a user's home and variables, what breaks first.

    home: the user's; environ: os.environ; notebooks: the folder where kernels start, default the home folder.
    """
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: variables(environ),
        lambda: variables_in_files(home),
        lambda: jupyter(home, environ),
        lambda: keras(home, environ),
        lambda: ipython(home, environ),
        lambda: matplotlib(home, environ),
        lambda: notebook_folder(notebooks or home),
        lambda: packages(home, environ),
        lambda: shells(home),
        localhost,
    )
    found: list[Finding] = []
    for one in looks:
        with contextlib.suppress(OSError, ValueError):
            found += one()
    return sorted(dict.fromkeys(found), key=lambda finding: not finding.breaks)


def warn(home: Path, environ: Mapping[str, str], notebooks: Path, screen: Screen) -> None:
    """Show what look() finds that breaks something, each with its hint."""
    for finding in look(home, environ, notebooks):
        if finding.breaks:
            screen.report(f"warning: {finding}")
            screen.report(f"hint: {finding.hint}")
