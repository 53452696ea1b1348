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
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_OK, EXIT_USAGE
from colab_local.base.errors import Failure as AnyFailure
from colab_local.base.terminal import Screen
from colab_local.base.text import SECRET_NAME
from colab_local.install.lockfiles import REPOSITORY
from colab_local.laptop.first_boot import BUNDLE, Request, cloud_config, from_bundle, from_git, holds_secret

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


class Failure(AnyFailure):
    """What is wrong with the request, and what to type instead."""

    def __init__(self, what: str, hint: str = "python3 scripts/fleet/cloud_init.py --help") -> None:
        super().__init__(what, hint, EXIT_USAGE)


def user_data(request: Request, cloud: str) -> str:
    """Return the user-data file; raise Failure if it is larger than the cloud takes (one of LIMITS)."""
    text = "#cloud-config\n# Made by scripts/fleet/cloud_init.py\n" + dumped(cloud_config(request))
    size, limit = len(text.encode()), LIMITS[cloud]
    if size > limit:
        where = "some clouds take" if cloud == "any" else f"{cloud} takes"
        raise Failure(
            f"the user-data is too large: {where} {limit} bytes at most (found {size}, need {limit} or fewer)"
        )
    return text


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
    return Request(source, packages + args.package, args.user, options, keys, variables, args.service)


def generate(args: argparse.Namespace, screen: Screen) -> int:
    """Write the user data; return the exit code."""
    if MISSING:
        marker = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")  # PEP 668: its pip refuses
        systems_own = sys.prefix == sys.base_prefix and marker.exists() and shutil.which("apt-get")
        pip = f"{shlex.quote(sys.executable)} -m pip install pyyaml"
        raise Failure(
            f"cloud_init.py needs {MISSING}, which this Python does not have",
            "sudo apt-get install python3-yaml" if systems_own else pip,
        )
    text = user_data(make_request(args), args.cloud)
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
