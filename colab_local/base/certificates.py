"""Which certificates are trusted: decided once, for our own downloads and for every program that we run.

The system's own store, and every file that the user has named for any of the programs (a company's own authority). A
program alone would go by one of them: Python by SSL_CERT_FILE, pip by PIP_CERT or its own list, requests by
REQUESTS_CA_BUNDLE, uv by a list that it was built with. What is downloaded is checked by its hash besides.
"""

from __future__ import annotations

import atexit
import configparser
import contextlib
import os
import ssl
import tempfile
from functools import lru_cache
from pathlib import Path

# Where systems keep all authorities in one file: Debian, Fedora, SUSE, Alpine and macOS.
SYSTEM_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def pip_files() -> list[Path]:
    """Return where pip's configuration may be, the weakest first (pip's documentation, Configuration)."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    user, config = Path(os.path.expanduser("~")), os.environ.get("XDG_CONFIG_HOME")  # noqa: PTH111 - may be no home
    folders = [Path(folder) for folder in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if folder]
    system = [*(folder / "pip" / "pip.conf" for folder in reversed(folders)), Path("/etc/pip.conf")]
    own = [user / ".pip" / "pip.conf", Path(config or user / ".config") / "pip" / "pip.conf"]
    own += [user / "Library" / "Application Support" / "pip" / "pip.conf"]
    return [path for path in [*system, *own, *([Path(named)] if named else [])] if path.is_file()]


def named_files() -> dict[str, Path]:
    """Return the files with certificates that the user has named, by who names them; a file that is gone is none."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for path in pip_files():
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
            parser.read_string(path.read_text(encoding="utf-8"))
            for section in ("global", "install"):
                if parser.has_option(section, "cert"):
                    found[str(path)] = parser.get(section, "cert")
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
    descriptor, name = tempfile.mkstemp(prefix="colab-local-", suffix=".pem")
    with os.fdopen(descriptor, "wb") as stream:
        for path in files:
            with contextlib.suppress(OSError):
                stream.write(path.read_bytes().rstrip() + b"\n")
    atexit.register(clean_up)
    return Path(name)


def clean_up() -> None:
    """Remove the file that bundle() made."""
    made = bundle()
    if made and made not in trusted_files():
        with contextlib.suppress(OSError):
            made.unlink()
    bundle.cache_clear()


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
