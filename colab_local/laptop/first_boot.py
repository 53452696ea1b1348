"""What a cloud machine does at its first boot: lines of shell that install, and cloud-init's document with them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Mapping, Sequence
from urllib.parse import parse_qsl

from colab_local.base.text import SECRET_NAME

BUNDLE = "colab-local.tar"
INSTALLER = "/usr/local/lib/colab-local/install"
NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 8))"
NEWER = "python3.13 python3.12 python3.11 python3.10 python3.9 python3.8"
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")

# How a secret may look, where its name does not give it away.
SECRET_VALUE = re.compile(
    r"gh[opsur]_\w{16}|github_pat_|glpat-|hf_\w{16}|sk-\w{16}|xox[abp]-|AKIA[0-9A-Z]{12}|ASIA[0-9A-Z]{12}|AIza\w{16}"
    r"|pypi-\w{16}|eyJ[\w-]{10,}\.|-----BEGIN|(?i:bearer |basic )\S{8}"
)
RANDOM = re.compile(r"[A-Za-z0-9+_=-]{20,}")  # a run of letters that may be random ones

# Runs on the machine, with its Python: brings the bundle, resumed and tried again, checks it, takes the program out.
FETCHER = """\
import hashlib, os, shutil, sys, tarfile, time, urllib.error, urllib.request
url, sha256, name = {url!r}, {sha256!r}, {name!r}
def digest():
    found = hashlib.sha256()
    with open(name, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            found.update(chunk)
    return found.hexdigest()
def fetch(have):
    headers = {{"User-Agent": "colab-local"}}
    if have:
        headers["Range"] = "bytes=%d-" % have
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        goes_on = answer.status == 206
        began, got = time.monotonic(), 0
        with open(name, "ab" if goes_on else "wb") as stream:
            for chunk in iter(lambda: answer.read1(1 << 20), b""):
                stream.write(chunk)
                got += len(chunk)
                if shutil.disk_usage(".").free < 1 << 30:  # an answer without an end, or no room to install anyway
                    os.remove(name)
                    sys.exit("error: the disk is nearly full (need 1 GB free beside the bundle)")
                if time.monotonic() - began > 60 + got / 10000:
                    raise OSError("less than 10 kB a second")
        need = int(answer.headers.get("Content-Length") or 0) + (have if goes_on else 0)
        return os.path.getsize(name) >= need
is_whole = os.path.isfile(name) and digest() == sha256
for attempt in range(8):
    if is_whole:
        break
    have = os.path.getsize(name) if os.path.isfile(name) else 0
    try:
        if fetch(have):
            is_whole = digest() == sha256
            if is_whole or not have:
                break
            os.remove(name)  # the beginning was of another file: once more, all of it
    except urllib.error.HTTPError as problem:
        if problem.code == 416:
            os.remove(name)
        elif problem.code < 500 and problem.code not in (408, 425, 429):
            sys.exit("error: can't fetch the bundle (HTTP %d)" % problem.code)
    except (OSError, ValueError) as problem:
        print("can't fetch the bundle: %s; trying again" % problem, file=sys.stderr)
    time.sleep(min(2 ** attempt, 60))
if not is_whole:
    if os.path.isfile(name) and attempt < 7:
        os.remove(name)
    print("error: the URL of the bundle brings another file (need sha256 %s)" % sha256, file=sys.stderr)
    sys.exit(4)
# The packages stay in the tar: bootstrap.py reads them there, and checks them.
with tarfile.open(name) as bundle:
    for member in bundle:
        path = member.name.split("/")
        if member.isfile() and path[0] == "colab-local" and ".." not in path and path[1] not in ("files", "wheels"):
            bundle.extract(member)
"""


@dataclass(frozen=True)
class Request:
    """What the machine is to become.

    source: lines of shell that bring the program to ~/colab-local; packages: system packages; user: who owns
    the installation, made if it is not there; keys: that user's public ssh keys; variables: environment of the
    installation (proxies ...); options: arguments of bootstrap.py; service: keep Jupyter running.
    """

    source: Sequence[str]
    packages: Sequence[str]
    user: str
    options: Sequence[str]
    keys: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    service: bool = False


def from_git(url: str, commit: str) -> list[str]:
    """Return the shell lines that bring a commit (40 hex digits) of a repository."""
    return [
        f"[ -d colab-local/.git ] || git clone --quiet {shlex.quote(url)} colab-local",
        f"git -C colab-local cat-file -e {commit} 2>/dev/null || git -C colab-local fetch --quiet origin",
        f"git -C colab-local checkout --quiet --detach {commit}",
    ]


def from_bundle(url: str, sha256: str) -> list[str]:
    """Return the shell lines that bring a bundle (its SHA-256 in hex), check it and take the program out of it.

    With the machine's Python, which bootstrap.py needs anyway: a package "curl" can't be installed beside
    "curl-minimal", which Amazon Linux and RHEL have.
    """
    program = FETCHER.format(url=url, sha256=sha256, name=BUNDLE)
    return ["python3 - <<'PYTHON'", *program.splitlines(), "PYTHON"]


def script(request: Request) -> str:
    """Return the shell script that installs as the user: the program into ~/colab-local, the rest where it says."""
    lines = [
        "#!/bin/sh",
        "# Made by scripts/fleet/cloud_init.py. Run it again as often as you like: it does what is left to do.",
        "set -eu",
        'cd "$HOME"',
        f"is_new() {{ \"$1\" -c '{NEW_ENOUGH}' 2>/dev/null; }}",
        "if ! is_new python3; then  # RHEL 8 calls 3.6 so; a newer one has its version in its name",
        f"    for newer in {NEWER}; do",
        '        if is_new "$newer"; then',
        "            mkdir -p .cache/colab-local-python",
        '            ln -sf "$(command -v "$newer")" .cache/colab-local-python/python3',
        '            PATH="$HOME/.cache/colab-local-python:$PATH"',
        "            break",
        "        fi",
        "    done",
        "fi",
    ]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(request.variables.items())]
    lines += request.source
    if request.service:  # a lingering user's systemd starts within moments, without anybody logged in
        lines += [
            'export XDG_RUNTIME_DIR="/run/user/$(id -u)"',
            'for try in $(seq 30); do [ -S "$XDG_RUNTIME_DIR/systemd/private" ] && break; sleep 1; done',
        ]
    lines.append("exec " + shlex.join(["python3", "colab-local/bootstrap.py", *request.options]))
    return "\n".join(lines) + "\n"


def cloud_config(request: Request) -> dict[str, object]:
    """Return the cloud-config document that makes the machine install itself."""
    user: dict[str, object] = {"name": request.user, "shell": "/bin/bash", "lock_passwd": True}
    if request.keys:
        user["ssh_authorized_keys"] = list(request.keys)
    commands: list[list[str]] = []
    if request.service:
        commands.append(["loginctl", "enable-linger", request.user])
    commands.append(["runuser", "--login", request.user, "--command", INSTALLER])
    return {
        **package_proxies(request.variables),
        "package_update": True,
        "packages": list(request.packages),
        "users": ["default", user],
        "write_files": [{"path": INSTALLER, "permissions": "0755", "content": script(request)}],
        "runcmd": commands,
        "final_message": "colab-local: the first boot took $UPTIME s; cloud-init status says whether it went well",
    }


def package_proxies(variables: Mapping[str, str]) -> dict[str, object]:
    """Return what tells apt and dnf of the proxies among `variables`; they run before anything of ours.

    cloud-init knows how to tell apt; dnf and yum read it from their configuration alone, which bootcmd can write
    before packages are installed.
    """
    found = {name.lower().partition("_")[0]: variables[name] for name in PROXIES if variables.get(name)}
    if not found:
        return {}
    proxy = found.get("https", found.get("http", ""))
    apt = {f"{scheme}_proxy": url for scheme, url in sorted(found.items())}
    line = shlex.quote(f"proxy={proxy}")
    tell = f'[ -f "$file" ] && ! grep -q "^proxy=" "$file" && echo {line} >>"$file"'
    return {
        "apt": apt,
        "bootcmd": [["sh", "-c", f"for file in /etc/dnf/dnf.conf /etc/yum.conf; do {tell}; done; true"]],
    }


def holds_secret(text: str) -> str:
    """Return what makes a text look as if it held a secret, "" if nothing does.

    Everyone on the machine can read user data. So this refuses too much rather than too little: a login in a URL (for
    https a user alone is a token), a parameter of a signed URL, a known kind of token, a long run of random letters.
    """
    for part in re.split(r"[\s,=]+(?=\w+://)|\s", text):
        scheme, _, rest = part.partition("://") if "://" in part else ("", "", part)
        user, at, _ = rest.partition("/")[0].rpartition("@")
        if at and (":" in user or scheme in ("http", "https")):
            return "a password"
        names = [name for name, _ in parse_qsl(rest.partition("?")[2], keep_blank_values=True)]
        if any(SECRET_NAME.search(name) for name in names):
            return "a signed URL"
    if SECRET_VALUE.search(text):
        return "a token"
    for word in [] if "://" in text or text.startswith(("/", "~", "ssh-", "ecdsa-", "sk-")) else RANDOM.findall(text):
        if all(re.search(kind, word) for kind in ("[a-z]", "[A-Z]", "[0-9]")):
            return "what looks like a token"
    return ""
