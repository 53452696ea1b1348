"""Which certificates are trusted: decided once, for our own downloads and for every program that we run.

The system's own store, and every file that the user has named for any of the programs (a company's own authority). A
program alone would go by one of them: Python by SSL_CERT_FILE, pip by PIP_CERT or its own list, requests by
REQUESTS_CA_BUNDLE, uv by a list that it was built with. What is downloaded is checked by its hash besides.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import ssl
import sys
from functools import lru_cache
from pathlib import Path

from colab_local.base.temporary import temporary_file

# Where systems keep all authorities in one file: Debian, Fedora, SUSE, Alpine and macOS.
SYSTEM_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
PIP_SECTIONS = ("global", "install", "download", "wheel")  # of pip's commands that fetch
# And where conda's settings may be, which name a file or say true or false (conda's documentation, Non-standard
# certificates); in a place of their own, conda's programs do not see them (install/engines/private.py).
CONDA_FILES = ("~/.condarc", "~/.conda/.condarc", "~/.mambarc", "~/.config/conda/.condarc", "/etc/conda/.condarc")
VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


# Where no further authority would help, in the words of OpenSSL (Python, pip, conda) and of rustls (uv, pixi).
CURES = (
    (
        r"not yet valid|not valid yet|expired",
        "date   # is that today? If not, set the clock; if so, whoever runs that server has to renew its certificate",
    ),
    (
        r"mismatch|not valid for|doesn't match",
        "open the address in a browser: it may lead to a log-in page of this network, or be misspelt",
    ),
    ("", "export SSL_CERT_FILE=/the/certificate/of/your/proxy.pem   # then the same command again"),
)


def cure(why: str) -> str:
    """Return what to type where a server's certificate is not trusted; why: what was said of it."""
    return next(hint for words, hint in CURES if re.search(words, why, re.IGNORECASE))


def cure_of(problem: Exception, otherwise: str) -> str:
    """Return what to type where a connection failed: cure()'s where a certificate was at fault, else `otherwise`."""
    return cure(str(problem)) if "CERTIFICATE_VERIFY_FAILED" in str(problem) else otherwise


def machine_settings() -> list[Path]:
    """Return the folders with settings for every user, the first counts most: XDG_CONFIG_DIRS."""
    return [Path(one) for one in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if one]


def pip_files() -> list[Path]:
    """Return where pip's configuration may be, the weakest first, as pip reads it (pip/_internal/configuration.py).

    That is: the system's, the user's, that of the virtual environment or Python that runs this, and PIP_CONFIG_FILE;
    where the last one exists, the user's counts for nothing.
    """
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    home, config = Path(os.path.expanduser("~")), os.environ.get("XDG_CONFIG_HOME")  # noqa: PTH111 - may be no home
    library = home / "Library" / "Application Support" / "pip"
    if sys.platform == "darwin":
        folders = [Path("/Library/Application Support/pip")]
    else:
        folders = [*(folder / "pip" for folder in machine_settings()), Path("/etc")]
    if not (named and Path(named).exists()):
        new = library if sys.platform == "darwin" and library.is_dir() else Path(config or home / ".config") / "pip"
        folders += [home / ".pip", new]
    files = [*(folder / "pip.conf" for folder in [*folders, Path(sys.prefix)]), *([Path(named)] if named else [])]
    return [path for path in files if path.is_file()]


def named_files() -> dict[str, Path]:
    """Return the files with certificates that the user has named, by who names them; a file that is gone is none."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for path in pip_files():
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
            parser.read_string(path.read_text(encoding="utf-8"))
            for section in PIP_SECTIONS:
                if parser.has_option(section, "cert"):
                    found[f"{path} [{section}]"] = parser.get(section, "cert")
    for name in filter(None, (*CONDA_FILES, os.environ.get("CONDARC"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = Path(os.path.expanduser(name)).read_text(encoding="utf-8")  # noqa: PTH111 - may be no home
            for value in re.findall(r"(?m)^ssl_verify:\s*['\"]?([^'\"#\n]*?)['\"]?\s*(?:#.*)?$", text):
                found[name] = value
    if os.environ.get("CONDA_SSL_VERIFY"):
        found["CONDA_SSL_VERIFY"] = os.environ["CONDA_SSL_VERIFY"]
    files = {name: Path(value).expanduser() for name, value in found.items()}
    return {name: path for name, path in files.items() if path.is_file()}


def system_store() -> Path | None:
    """Return this system's own file of authorities."""
    return next((Path(name) for name in SYSTEM_STORES if Path(name).is_file()), None)


def trusted_files() -> list[Path]:
    """Return the files whose certificates are trusted, each once."""
    system = system_store()
    files = [*([system] if system else []), *named_files().values()]
    return list({path.resolve(): path for path in files}.values())


@lru_cache(maxsize=1)
def bundle() -> Path | None:
    """Return one file with all certificates that are trusted; None where this system has none that we know of.

    It goes with this process: its content is the user's and the system's.
    """
    files = trusted_files()
    if len(files) < 2:
        return files[0] if files else None
    content = b""
    for path in files:
        with contextlib.suppress(OSError):
            content += path.read_bytes().rstrip() + b"\n"
    return temporary_file(content, ".pem")


def context() -> ssl.SSLContext:
    """Return how our own downloads check a server: Python's own way, and every file that is trusted."""
    made = ssl.create_default_context()
    for path in trusted_files():
        with contextlib.suppress(ssl.SSLError, OSError):
            made.load_verify_locations(cafile=str(path))
    return made


def environment() -> dict[str, str]:
    """Return the variables that make a child (pip, uv, conda, requests) trust the same certificates."""
    file = bundle()
    if file is None:
        return {"UV_SYSTEM_CERTS": "true"}
    return dict.fromkeys(VARIABLES, str(file))
