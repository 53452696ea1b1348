#!/usr/bin/env python3
"""Write the user-data that makes a fresh cloud machine a Colab local runtime at its first boot (cloud-init).

    python3 scripts/fleet/cloud_init.py --git URL --commit SHA > user-data.yml
    python3 scripts/fleet/cloud_init.py --bundle-url URL --bundle-sha256 HEX --env gpu --service > user-data.yml
    cloud-init schema --config-file user-data.yml

Give the file to whatever starts the machine (aws ec2 run-instances --user-data, gcloud compute instances create
--metadata-from-file=user-data=..., openstack server create --user-data, multipass launch --cloud-init). At the first
boot an ordinary user is made, and as that user bootstrap.py runs: from a bundle, whose hash is checked, or from a
commit of a git repository. It can be run again by hand: /usr/local/lib/colab-local/install. What it says is in
/var/log/cloud-init-output.log, and `cloud-init status` says whether it went well.

No secret belongs into user-data: everyone on the machine, and whoever may look at it in the cloud's console, can
read it. Needs PyYAML.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_OK, EXIT_USAGE
from colab_local.base.errors import Failure as AnyFailure
from colab_local.base.terminal import Screen
from colab_local.base.text import SECRET_NAME
from colab_local.install.lockfiles import REPOSITORY

MISSING = ""  # a library that is not here: --help does without
try:
    import yaml
except ImportError as problem:
    MISSING = str(problem.name)

# How many bytes of user data each cloud takes, as its documentation says. "any": the least of them.
LIMITS = {
    "any": 16 * 1024,
    "aws": 16 * 1024,  # EC2 user guide, "Run commands at launch": 16 KB before it is base64-encoded
    "azure": 65_535,  # "Custom data": 65535 bytes
    "digitalocean": 64 * 1024,  # "How to provide user data": 64 KiB
    "gcp": 256 * 1024,  # "About VM metadata": 256 KB a value
    "hetzner": 32 * 1024,  # API, "Create a server": 32 KiB
    "openstack": 65_535 * 3 // 4,  # Nova API: 65535 bytes after base64
    "oracle": 32_000,  # "LaunchInstanceDetails": 32000 bytes for all metadata
}
BUNDLE = "colab-local.tar"
INSTALLER = "/usr/local/lib/colab-local/install"
# Said by our own options, or nothing that installs at the first boot.
SUPPLIED = ("--offline", "--env", "--cpu", "--gpu", "--service", "--json", "--launch")
NOT_HERE = (
    "--verify",
    "--repair",
    "--list",
    "--rollback",
    "--prune",
    "--uninstall",
    "--dry-run",
    "--version",
    "--help",
    "-h",
)
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


class Failure(AnyFailure):
    """What is wrong with the request, and what to type instead."""

    def __init__(self, what: str, hint: str = "python3 scripts/fleet/cloud_init.py --help") -> None:
        super().__init__(what, hint, EXIT_USAGE)


@dataclass(frozen=True)
class Request:
    """What the machine is to become.

    source: lines of shell that bring the program to ~/colab-local; packages: system packages; user: who owns
    the installation, made if it is not there; keys: that user's public ssh keys; variables: environment of the
    installation (proxies ...); options: arguments of bootstrap.py; service: keep Jupyter running; cloud: one of
    LIMITS.
    """

    source: Sequence[str]
    packages: Sequence[str]
    user: str
    options: Sequence[str]
    keys: Sequence[str] = ()
    variables: dict[str, str] = field(default_factory=dict)
    service: bool = False
    cloud: str = "any"


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


def user_data(request: Request) -> str:
    """Return the user-data file; raise Failure if it is larger than clouds take."""
    user: dict[str, object] = {"name": request.user, "shell": "/bin/bash", "lock_passwd": True}
    if request.keys:
        user["ssh_authorized_keys"] = list(request.keys)
    commands: list[list[str]] = []
    if request.service:
        commands.append(["loginctl", "enable-linger", request.user])
    commands.append(["runuser", "--login", request.user, "--command", INSTALLER])
    document: dict[str, object] = {
        **package_proxies(request.variables),
        "package_update": True,
        "packages": list(request.packages),
        "users": ["default", user],
        "write_files": [{"path": INSTALLER, "permissions": "0755", "content": script(request)}],
        "runcmd": commands,
        "final_message": "colab-local: the first boot took $UPTIME s; cloud-init status says whether it went well",
    }
    text = "#cloud-config\n# Made by scripts/fleet/cloud_init.py\n" + dumped(document)
    size, limit = len(text.encode()), LIMITS[request.cloud]
    if size > limit:
        where = "some clouds take" if request.cloud == "any" else f"{request.cloud} takes"
        raise Failure(
            f"the user-data is too large: {where} {limit} bytes at most (found {size}, need {limit} or fewer)"
        )
    return text


def package_proxies(variables: dict[str, str]) -> dict[str, object]:
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


def dumped(document: dict[str, object]) -> str:
    """Return a document as YAML, texts of several lines as blocks."""

    class Readable(yaml.SafeDumper):
        pass

    def block(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Readable.add_representer(str, block)
    made: str = yaml.dump(document, Dumper=Readable, sort_keys=False, width=1000)
    return made


# ---------------------------------------------------------------------------------------------------------
# The command line


def make_parser() -> Parser:
    """Return the parser; its --help is the manual."""
    parser = Parser(
        prog="cloud_init.py",
        description=__doc__,
        epilog="""examples:
  python3 scripts/fleet/cloud_init.py --git https://example.org/colab-local.git --commit $(git rev-parse HEAD)
  python3 scripts/fleet/cloud_init.py --bundle-url https://mirror.example.org/colab-local-gpu-linux-64.tar \\
      --bundle-sha256 $(sha256sum colab-local-gpu-linux-64.tar | cut -c1-64) --env gpu --service > user-data.yml
  python3 scripts/fleet/cloud_init.py --git ... --commit ... -- --engine pixi --port 9999 > user-data.yml

What comes after -- goes to bootstrap.py. Check the result: cloud-init schema --config-file user-data.yml""",
    )
    source = parser.add_argument_group("where the program comes from (one of the two)")
    source.add_argument("--git", metavar="URL", help="clone this repository; packages come from the network")
    source.add_argument("--commit", metavar="SHA", help="the commit to check out, 40 hex digits")
    source.add_argument("--bundle-url", metavar="URL", help="fetch this bundle (scripts/bundle.py makes them)")
    source.add_argument("--bundle-sha256", metavar="HEX", help="its SHA-256: another file is refused")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--env", default="cpu", help="which environment: cpu or gpu (default: cpu)")
    machine.add_argument("--user", default="colab", help="whose it is; made if not there (default: colab)")
    machine.add_argument(
        "--ssh-key", action="append", default=[], type=Path, metavar="FILE", help="a public key that may log in"
    )
    machine.add_argument(
        "--package", action="append", default=[], metavar="NAME", help="a system package, such as a driver"
    )
    machine.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an environment variable, such as https_proxy",
    )
    machine.add_argument(
        "--cloud", choices=sorted(LIMITS), default="any", help="whose limit of size counts (default: %(default)s)"
    )
    machine.add_argument("--service", action="store_true", help="keep Jupyter running, from boot on")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="options for bootstrap.py")
    return parser


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


def refuse_secret(text: str, where: str) -> str:
    """Return the text; raise Failure if it looks as if it held a secret. where: what it was given as."""
    found = holds_secret(text)
    if found:
        where = f"a URL ({where})" if found == "a password" and where.startswith("--") else where
        raise Failure(
            f"{found} in {where} can be read by every user of the machine",
            "leave it out; the machine can fetch it from the cloud's own vault",
        )
    return text


def check_url(url: str, schemes: Sequence[str], where: str) -> str:
    """Return the URL; raise Failure if it is none, or holds a secret. where: what it was given as."""
    parts = urlsplit(refuse_secret(url, where))
    if parts.scheme not in schemes or not parts.netloc or re.search(r"[\s\"\\]", url):
        raise Failure(f"not a URL of {', '.join(schemes)} (found {url!r})")
    return url


def check_options(options: Sequence[str]) -> None:
    """Have bootstrap.py of this checkout read the options as the machine's will; raise Failure with what it says.

    A dry run: it complains of the command line with the exit code for that. What else it says is about this machine,
    not about the one that is to be made.
    """
    with tempfile.TemporaryDirectory() as home:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COLAB_LOCAL")}
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "bootstrap.py"), *options, "--dry-run"],
            env={**kept, "HOME": home},
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    if done.returncode == EXIT_USAGE:
        said = [
            line.partition(": ")[2] for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))
        ]
        raise Failure(f"bootstrap.py does not take this: {said[0] if said else ' '.join(options)}", *said[1:2])


def check_hex(text: str | None, length: int, option: str) -> str:
    """Return the text; raise Failure if it isn't `length` hex digits."""
    if not re.fullmatch(rf"[0-9a-f]{{{length}}}", text or ""):
        raise Failure(f"{option} takes {length} hex digits (found {text!r})")
    return str(text)


def public_key(path: Path) -> str:
    """Return the one line of a public key file; raise Failure for anything else, a private key above all."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as problem:
        raise Failure(f"can't read {path} ({problem})") from problem
    if not re.fullmatch(r"(ssh|ecdsa|sk)-\S+ [A-Za-z0-9+/=]+( [^\n]*)?|(ecdsa|sk)\S+ \S+( [^\n]*)?", text):
        raise Failure(f"{path} is not a public ssh key", "ls ~/.ssh/*.pub")
    return text


def make_request(args: argparse.Namespace) -> Request:
    """Return what the options ask for; raise Failure where they don't make sense."""
    if bool(args.git) == bool(args.bundle_url):
        raise Failure("the program comes either from --git or from --bundle-url (found both or neither)")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", args.user) or args.user == "root":
        raise Failure(f"--user takes the name of an ordinary user (found {args.user!r})")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", args.env):
        raise Failure(f"--env takes the name of an environment (found {args.env!r})")
    for option in args.options:
        refuse_secret(option, "an option for bootstrap.py")
        refuse_secret(option.partition("=")[2], "an option for bootstrap.py")
        if option.partition("=")[0] in SUPPLIED:
            raise Failure(f"{option} is said by an option of its own, before the --")
        if option.partition("=")[0] in NOT_HERE:
            raise Failure(f"{option} is not for a machine's first boot")
    variables = dict(text.partition("=")[::2] for text in args.set)
    for name in variables:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or f"{name}=" not in " ".join(args.set):
            raise Failure(f"--set takes NAME=VALUE (found {name!r})")
        if SECRET_NAME.search(name):
            raise Failure(
                f"{name} is the name of a secret, which every user of the machine could read",
                "leave it out; the machine can fetch it from the cloud's own vault",
            )
        refuse_secret(variables[name], name)
    for name in args.package:
        refuse_secret(name, "--package")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_:~=-]*", name):
            raise Failure(f"--package takes the name of a package (found {name!r})")
    packages = ["ca-certificates", "python3"]
    options = ["--env", args.env, *args.options]
    check_options([*options, *(["--service"] if args.service else [])])
    if args.git:
        source = from_git(
            check_url(args.git, ("https", "http", "ssh", "git"), "--git"), check_hex(args.commit, 40, "--commit")
        )
        packages.append("git")
    else:
        url = check_url(args.bundle_url, ("https", "http"), "--bundle-url")
        source = from_bundle(url, check_hex(args.bundle_sha256, 64, "--bundle-sha256"))
        options = ["--offline", BUNDLE, *options]
    if args.service:
        options.append("--service")
    keys = [public_key(path) for path in args.ssh_key]
    return Request(source, packages + args.package, args.user, options, keys, variables, args.service, args.cloud)


def generate(args: argparse.Namespace, screen: Screen) -> int:
    """Write the user data; return the exit code."""
    if MISSING:
        raise Failure(
            f"cloud_init.py needs {MISSING}, which this Python does not have",
            f"{shlex.quote(sys.executable)} -m pip install pyyaml",
        )
    text = user_data(make_request(args))
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_program(make_parser(), generate, argv)


if __name__ == "__main__":
    sys.exit(main())
