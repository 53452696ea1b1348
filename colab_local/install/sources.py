"""Where Python packages come from: pip's and uv's own settings, read once and handed to both.

Settings that say where packages come from are passed on: indexes, find-links, no-index, hosts, certificates, proxies,
credentials, waiting times, caches. Those that say what is installed, or where to, decide nothing: the lock does. Nor
does anything in or above the current folder. `no-index` is a policy: where pip has it, uv asks no index either.
"""

from __future__ import annotations

import configparser
import contextlib
import math
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from colab_local.base import certificates
from colab_local.base.errors import EXIT_USAGE, Failure
from colab_local.base.programs import child_environment, run
from colab_local.base.temporary import temporary_file
from colab_local.base.terminal import Screen
from colab_local.install.home import config_folder

# Every setting of `pip install` and `pip download` (pip 9 to 26) is in one of three tables. First, what uv knows by
# another name. Several values are separated by white space in pip's.
TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "retries": "UV_HTTP_RETRIES",
    "client-cert": "SSL_CLIENT_CERT",
}
# What our own calls of pip get: those, what to_uv() and certificates map, and what is for pip alone.
SOURCES = (*TO_UV, "find-links", "no-index", "proxy", "keyring-provider", "cache-dir", "no-cache-dir")
MAPPED = (*TO_UV, "find-links", "no-index", "proxy", "keyring-provider", "cert")
# Second, what says how something is fetched and has no counterpart in uv: named in a note, with what to type.
FOR_PIP_ALONE = {
    "cache-dir": "uv has a folder of its own: export UV_CACHE_DIR=FOLDER",
    "no-cache-dir": "uv has a switch of its own: export UV_NO_CACHE=1",
    "resume-retries": "uv begins a broken download again",
    "use-deprecated": "uv has nothing like it",
    "use-feature": "uv has nothing like it",
}
# Third, what decides nothing here: what is installed, where to, how it would be built, what pip says.
NOTHING = """
abi all-releases break-system-packages build-constraint build-option check-build-dependencies compile
config-settings constraint debug dest destination-dir destination-directory disable-pip-version-check dry-run
editable exists-action force-reinstall global-option group ignore-installed ignore-requires-python
implementation install-option isolated local-log log log-file no-binary no-build-isolation no-clean no-color
no-compile no-dependencies no-deps no-input no-python-version-warning no-use-pep517 no-user no-warn-conflicts
no-warn-script-location only-binary only-deps only-final platform pre prefer-binary prefix
process-dependency-links progress-bar python python-version quiet report require-hashes require-venv
require-virtualenv requirement requirements-from-script root root-user-action source source-dir
source-directory src target upgrade upgrade-strategy uploaded-prior-to use-pep517 use-wheel user verbose
columns format
"""
DECIDE_NOTHING = frozenset(NOTHING.split())
ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}
NUMBERS = ("timeout", "retries")
ON, OFF = ("1", "true", "yes", "on", "y", "t"), ("0", "false", "no", "off", "n", "f", "")

# uv's variables and settings on where packages come from, how they are reached and where they are kept.
UV_VARIABLES = re.compile(
    r"UV_(INDEX|DEFAULT_INDEX|EXTRA_INDEX_URL|FIND_LINKS|INSECURE_HOST|KEYRING_PROVIDER|HTTP_|REQUEST_TIMEOUT"
    r"|CACHE_DIR|NO_CACHE|OFFLINE|CONCURRENT_|NATIVE_TLS|SYSTEM_CERTS|CREDENTIALS_DIR|CONFIG_FILE|NO_CONFIG|LOG)"
)
UV_SETTINGS = re.compile(
    r"(index|index-url|extra-index-url|find-links|no-index|index-strategy|keyring-provider|allow-insecure-host"
    r"|native-tls|system-certs|cache-dir|no-cache|offline|http-proxy|https-proxy|no-proxy|concurrent-\w+)$"
)
UV_INDEX_SETTING = re.compile(r"(?m)^\s*(\[\[\s*(pip\.)?index\s*\]\]|(default-)?index(-url)?\s*=|index\s*=)")


class Setting(NamedTuple):
    """One of pip's settings. value: words with one blank between them; where: the file or variable that has it."""

    value: str
    where: str


def parse_pip(texts: Iterable[tuple[str, str]], environ: Mapping[str, str]) -> dict[str, Setting]:
    """Return pip's effective configuration of `pip install`, by the options' long names.

    texts: (name, content) of its files, the weakest first; environ: os.environ. [install] is stronger than [global]
    in any file, and a variable than both, as in pip (pip/_internal/configuration.py). `no-index` is a policy: it
    counts, too, where one of pip's other commands that fetch has it, and with a value that pip does not know.

    Raises:
        Failure: a file is damaged: pip itself ends then, and what policy it holds is not known.
    """
    sections: dict[str, dict[str, Setting]] = {name: {} for name in certificates.PIP_SECTIONS}
    for name, text in texts:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(text)
        except configparser.Error as problem:
            found = re.search(r"line:?\s+(\d+)", str(problem))
            line = int(getattr(problem, "lineno", 0) or (found.group(1) if found else 0) or 1)
            where = f"nano +{line} {shlex.quote(name)}"
            raise Failure(f"pip's settings can't be read ({name}, line {line})", where, EXIT_USAGE) from None
        for section, options in sections.items():
            if parser.has_section(section):
                options.update({_option(key): Setting(value, name) for key, value in parser.items(section)})
    settings = {**sections["global"], **sections["install"]}
    for other in ("download", "wheel"):
        if asks_no_index({name: one.value for name, one in sections[other].items()}):
            settings["no-index"] = sections[other]["no-index"]
    for variable, value in environ.items():
        if variable.startswith("PIP_") and variable != "PIP_CONFIG_FILE" and value:
            settings[_option(variable[4:])] = Setting(value, variable)
    tidy = {name: Setting(" ".join(one.value.split()), one.where) for name, one in settings.items()}
    return {name: setting for name, setting in tidy.items() if setting.value}


def _option(key: str) -> str:
    name = key.lower().replace("_", "-")
    return ALIASES.get(name, name)


def pip_texts() -> list[tuple[str, str]]:
    """Return pip's configuration files as (name, content), the weakest first."""
    return [(str(path), path.read_text(encoding="utf-8", errors="replace")) for path in certificates.pip_files()]


def pip_settings() -> dict[str, str]:
    """Return pip's effective configuration for this user."""
    return {name: setting.value for name, setting in parse_pip(pip_texts(), os.environ).items()}


def notes() -> list[str]:
    """Return what this user has set for pip and uv can't be told, a line each with the file or variable."""
    found = []
    for name, setting in sorted(parse_pip(pip_texts(), os.environ).items()):
        if name in MAPPED and (name not in NUMBERS or whole(setting.value)):
            continue
        why = FOR_PIP_ALONE.get(name, "uv takes whole numbers" if name in NUMBERS else "unknown here, uv is not told")
        if name not in DECIDE_NOTHING and not (name == "no-cache-dir" and setting.value.lower() in OFF):
            found.append(f"{setting.where}: pip's {name} is for pip alone; {why}")
    return found


def whole(number: str) -> str:
    """Return a number of pip's, in seconds or tries, as uv takes it; "" for what is no number."""
    return str(math.ceil(float(number))) if re.match(r"\d+(\.\d*)?$", number) else ""


def links(settings: Mapping[str, str]) -> list[str]:
    """Return pip's find-links, each a URL or an absolute path: ours is another current folder."""
    found = settings.get("find-links", "").split()
    return [one if "://" in one else os.path.abspath(os.path.expanduser(one)) for one in found]  # noqa: PTH100, PTH111


def asks_no_index(settings: Mapping[str, str]) -> bool:
    """Return whether pip is told to ask no index."""
    return settings.get("no-index", "0").lower() not in OFF


def to_uv(settings: Mapping[str, str], keeps_own_index: bool, has_keyring: bool = False) -> dict[str, str]:
    """Return uv's variables that stand for pip's settings.

    keeps_own_index: uv has been told of an index by itself, which counts more; has_keyring: the program is there.
    """
    of_index = ("index-url", "extra-index-url")
    names = {name: variable for name, variable in TO_UV.items() if not (keeps_own_index and name in of_index)}
    settings = {name: whole(value) if name in NUMBERS else value for name, value in settings.items()}
    env = {variable: settings[name] for name, variable in names.items() if settings.get(name)}
    if "UV_INDEX" in env:  # pip looks at all of them; which file is taken is the lock's decision
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if links(settings):
        env["UV_FIND_LINKS"] = ",".join(links(settings))
    provider = settings.get("keyring-provider", "auto")
    asks = provider == "auto" and has_keyring and "@" in settings.get("index-url", "")
    if provider in ("subprocess", "import") or asks:
        env["UV_KEYRING_PROVIDER"] = "subprocess"
    if "proxy" in settings:
        proxy = settings["proxy"] if "://" in settings["proxy"] else "http://" + settings["proxy"]
        env.update(HTTP_PROXY=proxy, HTTPS_PROXY=proxy, ALL_PROXY=proxy)
    return env


# In TOML; the text of a string is the first group.
TEXT_OR_COMMENT = re.compile(r'("""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\')|#[^\n]*')


def statements(text: str) -> list[tuple[str, str]]:
    """Return the statements of a TOML text as (key, lines): "[name]" for a table's header, "" for the rest.

    Enough of TOML to leave settings out: a value goes on while a bracket or a text of several lines is open.
    """
    found: list[tuple[str, str]] = []
    lines = iter(text.splitlines())
    for line in lines:
        header = re.match(r"\s*(\[\[?[^\]]*\]?\])", line)
        key = re.match(r"\s*\"?([\w.-]+)\"?\s*=", line)
        block = [line]
        while key and _is_open("\n".join(block)):
            rest = next(lines, None)
            if rest is None:
                break
            block.append(rest)
        name = key.group(1) if key else re.sub(r"\s", "", header.group(1)) if header else ""
        found.append((name, "\n".join(block)))
    return found


def _is_open(block: str) -> bool:
    for quotes in ('"""', "'''"):
        if block.count(quotes) % 2:
            return True
    bare = TEXT_OR_COMMENT.sub("", block)
    return bare.count("[") + bare.count("{") > bare.count("]") + bare.count("}")


def sources_of_uv(*texts: str) -> str:
    """Return one uv.toml with nothing but the settings on where packages come from.

    texts: files of settings, the strongest first. As in uv, a list is both files' and anything else the strongest's
    that has it (https://docs.astral.sh/uv/concepts/configuration-files/).
    """
    settings: dict[str, dict[str, str]] = {"": {}, "pip": {}}
    indexes: dict[str, list[list[str]]] = {"index": [], "pip.index": []}  # each its statements, the header first
    for text in texts:
        table = ""
        for name, block in statements(text):
            if name.startswith("["):
                table = name.strip("[]")
                indexes.get(table, []).append([block])
            elif name and table in indexes:
                indexes[table][-1].append(block)
            elif name and table in settings:
                there, key = (table, name) if table or not name.startswith("pip.") else ("pip", name[4:])
                if UV_SETTINGS.match(key.split(".")[0]):
                    block = re.sub(r"^(\s*)pip\s*\.\s*", r"\1", block) if there != table else block
                    before = settings[there].get(key)
                    settings[there][key] = block if before is None else _of_both(before, block)
    tables = {name: _without_twins(indexes[name]) for name in indexes}
    for where, name in (("", "index"), ("pip", "pip.index")):
        if "index" in settings[where] and tables[name]:  # one has a list, the other tables: TOML takes no mixture
            inline = ", ".join("{" + ", ".join(map(_without_comments, table[1:])) + "}" for table in tables.pop(name))
            settings[where]["index"] = _of_both(settings[where]["index"], f"index = [{inline}]")
    written = {name: ["\n".join(table) for table in tables.get(name, [])] for name in indexes}
    in_pip = ["[pip]", *settings["pip"].values()] if settings["pip"] else []
    return "\n".join([*settings[""].values(), *written["index"], *in_pip, *written["pip.index"]]) + "\n"


def _of_both(stronger: str, weaker: str) -> str:
    """Return a setting that two files have."""
    lists = [
        re.fullmatch(r"\s*(.+?)\s*=\s*\[([\s\S]*)\]\s*", _without_comments(block)) for block in (stronger, weaker)
    ]
    if not (lists[0] and lists[1]):
        return stronger
    inside = [found.group(2).strip().rstrip(",") for found in lists if found]
    return f"{lists[0].group(1)} = [{', '.join(text for text in inside if text)}]"


def _without_comments(block: str) -> str:
    return TEXT_OR_COMMENT.sub(lambda found: found.group(1) or "", block).strip()


def _without_twins(tables: Sequence[list[str]]) -> list[list[str]]:
    """Return tables of indexes, but those that uv would not take beside a stronger one: same name, or default."""
    kept: list[list[str]] = []
    seen: set[tuple[str, str]] = set()
    for table in tables:
        marks = set(re.findall(r"(?m)^\s*(?:name\s*=\s*[\"'](.+?)[\"']|(default)\s*=\s*true)", "\n".join(table)))
        if not marks & seen:
            kept.append(table)
            seen |= marks
    return kept


def uv_texts() -> list[tuple[str, str]]:
    """Return uv's files of settings that count for this user as (name, content), the strongest first.

    They are the user's and the first of the machine's; never one in or above the current folder.
    """
    if os.environ.get("UV_NO_CONFIG", "").lower() in ON:
        return []
    named = os.environ.get("UV_CONFIG_FILE")
    shared = [folder / "uv" / "uv.toml" for folder in [*certificates.machine_settings(), Path("/etc")]]
    user = Path(named) if named else config_folder() / "uv" / "uv.toml"
    files = [user, *([] if named else [path for path in shared if path.is_file()][:1])]
    return [(str(path), path.read_text(encoding="utf-8", errors="replace")) for path in files if path.is_file()]


def uv_environment(extra: bool = True) -> dict[str, str]:
    """Return uv's environment: its own settings and pip's on where packages come from, and no others.

    extra: with pip's extra indexes.
    """
    settings = pip_settings()
    texts = uv_texts()
    for name, text in texts:
        demand_toml(name, text)
    uvs_own = sources_of_uv(*(text for _, text in texts))
    own = {name: value for name, value in os.environ.items() if UV_VARIABLES.match(name)}
    has_index = any(own.get(name) for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL"))
    if not extra:
        settings = {name: value for name, value in settings.items() if name != "extra-index-url"}
    mapped = to_uv(settings, has_index or bool(UV_INDEX_SETTING.search(uvs_own)), bool(shutil.which("keyring")))
    # Copied, not linked: a file that is changed in one environment is not changed in uv's cache and in the next one.
    # Where the file system can share blocks between copies (APFS, Btrfs, XFS), a copy costs no room.
    env = child_environment(UV_NO_PROGRESS="1", UV_PYTHON_DOWNLOADS="never", UV_LINK_MODE="copy")
    kept = {name: value for name, value in env.items() if not name.startswith(("PIP_", "UV_"))}
    kept.update({name: value for name, value in env.items() if UV_VARIABLES.match(name)})
    kept.update({name: value for name, value in mapped.items() if not _is_set(kept, name)})
    kept.update(UV_NO_PROGRESS="1", UV_PYTHON_DOWNLOADS="never", UV_LINK_MODE="copy")
    kept.update(certificates.environment())
    kept.pop("UV_NO_CONFIG", None)
    if asks_no_index(settings):
        uvs_own = "no-index = true\n" + re.sub(r"(?m)^\s*no-index\s*=.*$", "", uvs_own)
    kept["UV_CONFIG_FILE"] = str(temporary_file(uvs_own.encode(), ".toml"))
    return kept


def run_uv(argv: Sequence[Any], screen: Screen, more: Mapping[str, str] | None = None, **how: Any) -> str:
    """Run uv with the settings on where packages come from, and return what it printed.

    pip's extra indexes are asked only where the first one does not have everything. uv takes a version from the
    first index that has it, and an extra one often has a build of its own: with another hash, that is an error where
    pip looks on (https://docs.astral.sh/uv/concepts/indexes/#searching-across-multiple-indexes). The lock's hashes
    decide in any case.

    more: further variables; how: further arguments of run(), its environment excepted.
    """
    first, every = uv_environment(extra=False), uv_environment()
    if "UV_INDEX" in every and "UV_INDEX" not in first:
        try:
            return run(argv, screen, {**first, **(more or {})}, **how)
        except Failure as problem:
            screen.log(f"without pip's extra indexes: {problem.what}")
    return run(argv, screen, {**every, **(more or {})}, **how)


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return bool(environ.get(name) or (name.endswith("_PROXY") and environ.get(name.lower())))


def demand_toml(name: str, text: str) -> None:
    """Raise Failure for a file of uv's settings that is no TOML, where this Python can tell."""
    with contextlib.suppress(ImportError):
        import tomllib  # since Python 3.11; before, uv itself tells

        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as problem:
            found = re.search(r"line (\d+)", str(problem))
            line = found.group(1) if found else "1"
            where = f"nano +{line} {shlex.quote(name)}"
            raise Failure(
                f"uv's settings can't be read ({name}, line {line}: {problem})", where, EXIT_USAGE
            ) from None


def pip_environment() -> dict[str, str]:
    """Return the environment of our own calls of pip: its settings on where packages come from, and no others.

    As variables, not as arguments: a password in an index's URL is nobody else's to see.
    """
    settings = pip_settings()
    env = {name: value for name, value in child_environment().items() if not name.startswith("PIP_")}
    for name in SOURCES:
        if name in settings:
            env["PIP_" + name.upper().replace("-", "_")] = settings[name]
    if links(settings):
        env["PIP_FIND_LINKS"] = " ".join(links(settings))
    env.update(PIP_CONFIG_FILE=os.devnull, PIP_ROOT_USER_ACTION="ignore", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env.update(certificates.environment())
    return env
