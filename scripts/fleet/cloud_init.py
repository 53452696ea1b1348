#!/usr/bin/env python3
"""Write the user-data that makes a fresh cloud machine a Colab local runtime at its first boot (cloud-init).

    python scripts/fleet/cloud_init.py --git URL --commit SHA > user-data.yml
    python scripts/fleet/cloud_init.py --bundle-url URL --bundle-sha256 HEX --env gpu --service > user-data.yml
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
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

# AWS takes 16 KB, the least of the big clouds (EC2 user guide, "Instance user data").
LARGEST = 16 * 1024
BUNDLE = "colab-local.tar"
INSTALLER = "/usr/local/lib/colab-local/install"
SUPPLIED = ("--offline", "--env", "--cpu", "--gpu", "--service", "--json", "--launch")  # said by our own options


class Failure(Exception):
    """What is wrong with the request, and what to type instead."""

    def __init__(self, what: str, hint: str = "python scripts/fleet/cloud_init.py --help") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


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
    variables: dict[str, str] = field(default_factory=dict)
    service: bool = False


def from_git(url: str, commit: str) -> list[str]:
    """Return the shell lines that bring a commit (40 hex digits) of a repository."""
    return [
        f"[ -d colab-local/.git ] || git clone --quiet {shlex.quote(url)} colab-local",
        f"git -C colab-local cat-file -e {commit} 2>/dev/null || git -C colab-local fetch --quiet origin",
        f"git -C colab-local checkout --quiet --detach {commit}",
    ]


def from_bundle(url: str, sha256: str) -> list[str]:
    """Return the shell lines that bring a bundle (its SHA-256 in hex), check it and take the program out of it."""
    return [
        f"is_whole() {{ [ -f {BUNDLE} ] && echo '{sha256}  {BUNDLE}' | sha256sum --check --status; }}",
        "# The URL goes to curl on standard input: a signed one is not for the list of processes.",
        f"fetch() {{ printf 'url = \"%s\"\\n' {shlex.quote(url)} | curl --config - --fail --location --silent \\",
        f'    --show-error --retry 8 --retry-connrefused --output {BUNDLE} "$@"; }}',
        "is_whole || fetch --continue-at - || fetch",
        "is_whole || {",
        f"    echo 'error: the URL of the bundle brings another file (need sha256 {sha256})' >&2",
        f"    rm -f {BUNDLE}",
        "    exit 4",
        "}",
        "# The packages stay in the tar: bootstrap.py reads them there.",
        f"tar -xf {BUNDLE} --exclude=colab-local/files --exclude=colab-local/wheels",
    ]


def script(request: Request) -> str:
    """Return the shell script that installs as the user: the program into ~/colab-local, the rest where it says."""
    lines = [
        "#!/bin/sh",
        "# Made by scripts/fleet/cloud_init.py. Run it again as often as you like: it does what is left to do.",
        "set -eu",
        'cd "$HOME"',
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
    document = {
        "package_update": True,
        "packages": list(request.packages),
        "users": ["default", user],
        "write_files": [{"path": INSTALLER, "permissions": "0755", "content": script(request)}],
        "runcmd": commands,
        "final_message": "colab-local: the first boot took $UPTIME s; cloud-init status says whether it went well",
    }
    text = "#cloud-config\n# Made by scripts/fleet/cloud_init.py\n" + yaml.dump(
        document, Dumper=Readable, sort_keys=False, width=1000
    )
    if len(text.encode()) > LARGEST:
        raise Failure(f"the user-data is too large (found {len(text.encode())} bytes, need at most {LARGEST})")
    return text


class Readable(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: Readable, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Readable.add_representer(str, _text)


# ---------------------------------------------------------------------------------------------------------
# The command line


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; its --help is the manual."""
    parser = argparse.ArgumentParser(
        prog="cloud_init.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python scripts/fleet/cloud_init.py --git https://example.org/colab-local.git --commit $(git rev-parse HEAD)
  python scripts/fleet/cloud_init.py --bundle-url https://mirror.example.org/colab-local-gpu-linux-64.tar \\
      --bundle-sha256 $(sha256sum colab-local-gpu-linux-64.tar | cut -c1-64) --env gpu --service > user-data.yml
  python scripts/fleet/cloud_init.py --git ... --commit ... -- --engine pixi --port 9999 > user-data.yml

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
    machine.add_argument("--service", action="store_true", help="keep Jupyter running, from boot on")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="options for bootstrap.py")
    return parser


def holds_secret(text: str) -> bool:
    """Return whether a URL, or a proxy without http://, names a password, or a user, who for https is a token."""
    scheme, _, rest = text.partition("://") if "://" in text else ("", "", text)
    user, at, _ = rest.partition("/")[0].rpartition("@")
    return bool(at) and (":" in user or scheme in ("http", "https"))


def check_url(url: str, schemes: Sequence[str]) -> str:
    """Return the URL; raise Failure if it is none, or holds a password."""
    parts = urlsplit(url)
    if holds_secret(url):
        raise Failure("a password in a URL can be read by every user of the machine (found one in user-data)")
    if parts.scheme not in schemes or not parts.netloc or re.search(r"[\s\"\\]", url):
        raise Failure(f"not a URL of {', '.join(schemes)} (found {url!r})")
    return url


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
        if option.partition("=")[0] in SUPPLIED:
            raise Failure(f"{option} is said by an option of its own, before the --")
    variables = dict(text.partition("=")[::2] for text in args.set)
    for name in variables:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or f"{name}=" not in " ".join(args.set):
            raise Failure(f"--set takes NAME=VALUE (found {name!r})")
        if holds_secret(variables[name]):
            raise Failure(f"a password in {name} can be read by every user of the machine")
    packages = ["ca-certificates", "python3"]
    options = ["--env", args.env, *args.options]
    if args.git:
        source = from_git(
            check_url(args.git, ("https", "http", "ssh", "git")), check_hex(args.commit, 40, "--commit")
        )
        packages.append("git")
    else:
        url = check_url(args.bundle_url, ("https", "http"))
        source = from_bundle(url, check_hex(args.bundle_sha256, 64, "--bundle-sha256"))
        packages += ["curl", "tar"]
        options = ["--offline", BUNDLE, *options]
    if args.service:
        options.append("--service")
    keys = [public_key(path) for path in args.ssh_key]
    return Request(source, packages + args.package, args.user, options, keys, variables, args.service)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = make_parser().parse_args(argv)
    try:
        text = user_data(make_request(args))
        if args.output:
            args.output.write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    except Failure as problem:
        print(f"error: {problem.what}\nhint: {problem.hint}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"error: can't write {args.output} ({problem.strerror})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
