#!/usr/bin/env python3
"""Turn this machine into a Google Colab local runtime, exact to the hash.

    python3 bootstrap.py             a CPU TensorFlow environment
    python3 bootstrap.py --gpu       the same for an NVIDIA GPU
    python3 bootstrap.py --dry-run   say what would be done, do nothing
    python3 bootstrap.py --help      every option

What it does, in this order: looks whether the machine fits (nothing is written before that); downloads and
checks what lockfiles/index.json names; makes one environment from the lock; adds the settings and the server
extension under environments/jupyter/; tries the environment out; only then switches to it; prints the command
that starts Jupyter and the line that reaches it from another machine.

What it promises
  * Everything lands in one folder (--prefix, COLAB_LOCAL_HOME, else ~/.local/share/colab-local). Shell files,
    existing condas and Pythons are never changed. No root needed, no service started unless asked for.
  * Every byte is checked against a SHA-256 in lockfiles/. A mismatch stops the run.
  * Run it again: it does nothing when nothing is to be done. Interrupt it anywhere: the next run finishes.

Needs: Python >= 3.8, standard library only (tqdm draws the progress bar if it happens to be there);
Linux x86_64 or aarch64 with glibc, or macOS on Apple silicon; for --gpu, Linux x86_64 and an NVIDIA driver.

Environment variables
  COLAB_LOCAL_HOME         as --prefix
  COLAB_LOCAL_MIRROR       as --mirror; several rules separated by white space
  CONDA_EXE, MAMBA_EXE     the conda or mamba that --engine conda uses, before those on PATH
  http_proxy, https_proxy, no_proxy, SSL_CERT_FILE    as usual
  pip's and uv's own configuration says where Python packages come from

Exit codes
  0 done, or nothing to do     1 a step failed              2 wrong usage
  3 this machine does not fit  4 damaged or altered file    5 download failed
  6 busy: still in use         7 --verify found a difference  130 interrupted

This file tells the story; the verbs are in colab_local/ beside it (CONTRIBUTING.md has the map).
"""

import sys

# Python 3.5 and older stop at the next line and show it. Up to 3.7 the check below speaks. (No
# `from __future__ import annotations` here, which 3.6 does not know: hence typing's names in this one file.)
TOO_OLD: str = "bootstrap.py needs Python 3.8 or newer. Type: python3.11 bootstrap.py   (or 3.8, 3.9, ... 3.13)"

if sys.version_info < (3, 8):
    sys.stderr.write("error: bootstrap.py needs Python 3.8 or newer (found {}.{})\n".format(*sys.version_info[:2]))
    sys.stderr.write("hint: python3.11 bootstrap.py   # or any other from 3.8 on\n")
    sys.exit(3)

import argparse
import contextlib
import os
import shlex
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python3 -I and PYTHONSAFEPATH=1 leave it out

try:
    from colab_local import desktop
    from colab_local.base.command_line import (
        Parser,
        port_number,
        run_program,
    )
    from colab_local.base.downloads import parse_rules
    from colab_local.base.errors import (
        EXIT_FAILED,
        EXIT_INTERRUPTED,
        EXIT_MACHINE,
        EXIT_OK,
        EXIT_USAGE,
        Failure,
    )
    from colab_local.base.files import check_disk, existing_parent, sha256_of
    from colab_local.base.network import (
        address_for_others,
        free_port,
        lowest_port,
        port_is_free,
        ssh_port_for_others,
    )
    from colab_local.base.terminal import Screen
    from colab_local.base.text import megabytes
    from colab_local.desktop.options import KINDS, LISTENS, SERVERS, SESSIONS
    from colab_local.desktop.options import Options as DesktopOptions
    from colab_local.install import gpu_questions, offline, sources
    from colab_local.install import home as homes
    from colab_local.install.engines import Job, choose_engine
    from colab_local.install.gpu_answers import read_needs
    from colab_local.install.installation import Installation
    from colab_local.install.jupyter import DEFAULT_PORT, TOKEN_FILE
    from colab_local.install.lockfiles import (
        DEFAULT_ENVIRONMENT,
        REPOSITORY,
        check_known,
        conda_platform,
        make_lock,
        read_index,
        runtime_of,
    )
    from colab_local.install.machine import (
        folder_refusal,
        inspect_host,
        machine_refusal,
        memory_limit,
        memory_refusal,
    )
    from colab_local.install.next_steps import next_steps
    from colab_local.install.options import ENGINES, Options
    from colab_local.install.servers import demand_alone, running_servers, token_file
    from colab_local.install.surroundings import warn
    from colab_local.manage import content, environments, notebook, repair, service, verify
    from colab_local.manage.card import show_card
except ImportError as problem:
    sys.stderr.write(f"error: this copy of colab-local is not complete: {problem}\n")
    sys.stderr.write("hint: copy the whole folder again, colab_local/ and all: git clone makes one\n")
    sys.exit(4)

# ---------------------------------------------------------------------------------------------------------
# The options

EXAMPLES = """\
examples:
  python3 bootstrap.py                    CPU environment, then what to paste
  python3 bootstrap.py --gpu --launch     GPU environment, start Jupyter
  python3 bootstrap.py --dry-run --gpu    what would be done, and where
  python3 bootstrap.py --verify           is every file what the lock says?
  python3 bootstrap.py --list             environments, with size and state
  python3 bootstrap.py --desktop virtual  a remote desktop, through ssh only
  python3 bootstrap.py --uninstall        remove all that was made

Ctrl-C stops Jupyter and every step; the same command goes on from there.
Jupyter runs and Colab does not connect: python3 scripts/doctor.py

environment variables:
  COLAB_LOCAL_HOME, COLAB_LOCAL_MIRROR    as --prefix, --mirror
  http_proxy, https_proxy, no_proxy, SSL_CERT_FILE, NO_COLOR    as usual
  pip's and uv's own settings say where Python packages come from

exit codes:
  0 done  1 a step failed  2 wrong usage  3 this machine does not fit
  4 damaged or altered file  5 download failed  6 still in use
  7 --verify found a difference  130 interrupted"""


def make_parser() -> Parser:
    """Return the parser; its --help is the manual."""
    parser = Parser(
        prog="bootstrap.py",
        description="Turn this machine into a Google Colab local runtime, exact to the hash.",
        epilog=EXAMPLES,
        modes=("help", "verify", "repair", "check", "list", "rollback", "prune", "uninstall"),
        never_meant=("--uninstall", "--prune", "--rollback", "--reset-vnc-password"),
    )
    what = parser.add_argument_group("which environment")
    choice = what.add_mutually_exclusive_group()
    choice.add_argument("--cpu", dest="env", action="store_const", const="cpu", help="CPU TensorFlow (the default)")
    choice.add_argument("--gpu", dest="env", action="store_const", const="gpu", help="TensorFlow for an NVIDIA GPU")
    choice.add_argument(
        "--env", dest="env", metavar="NAME", help="another: notebooks, colab, gpu-forge (docs/notebooks.md)"
    )
    what.add_argument(
        "--runtime", metavar="YYYY.MM", default="", help="hosted Colab's runtime of that month (default: the newest)"
    )
    lockfiles = str(REPOSITORY / "lockfiles")
    what.add_argument(
        "--lockfiles", metavar="DIR", default=lockfiles, help="use other lockfiles than this checkout's"
    )
    what.add_argument("--no-gpu-check", action="store_true", help="--gpu without a GPU: for building images")

    how = parser.add_argument_group("how it is made")
    how.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="who makes the environment: auto takes a conda that is there, else Miniforge, else (conda hosts "
        "unreachable) host: this machine's Python and no conda at all",
    )
    how.add_argument("--python", metavar="EXE", default="", help="use this interpreter; means --engine host")
    how.add_argument(
        "--prefix",
        dest="home",
        metavar="DIR",
        help="where everything lands (default: COLAB_LOCAL_HOME, else ~/.local/share/colab-local)",
    )
    how.add_argument(
        "--mirror", action="append", default=[], metavar="FROM=TO", help="fetch URLs that begin with FROM from TO"
    )
    how.add_argument(
        "--offline", metavar="FILE", default="", help="install from a bundle made by scripts/bundle.py, no network"
    )
    how.add_argument(
        "--bundle-lock", metavar="SHA256", default="", help="take a bundle of this lock, which is not the checkout's"
    )
    how.add_argument(
        "--bundle-signers", metavar="FILE", default="", help="refuse a bundle that none of these has signed"
    )

    jupyter = parser.add_argument_group("Jupyter")
    jupyter.add_argument("--port", type=port_number, help=f"its port, from now on (at first {DEFAULT_PORT})")
    jupyter.add_argument(
        "--notebook-dir", metavar="DIR", help="what Colab's file pane shows, from now on (at first your home folder)"
    )
    jupyter.add_argument(
        "--content", action="store_true", help="make /content, where notebooks write, a link to --notebook-dir"
    )
    lab = jupyter.add_mutually_exclusive_group()
    lab.add_argument("--lab", action="store_true", default=None, help="JupyterLab 4 for Colab, from now on")
    lab.add_argument("--no-lab", dest="lab", action="store_false", help="Notebook 6 again, as hosted Colab has it")
    jupyter.add_argument("--launch", action="store_true", help="start it at the end, in this terminal")
    jupyter.add_argument(
        "--service", action="store_true", help="keep it running: a systemd user unit or launchd agent"
    )

    manage = parser.add_argument_group("what is installed").add_mutually_exclusive_group()
    manage.add_argument("--verify", action="store_true", help="check an environment file by file against its lock")
    manage.add_argument("--repair", action="store_true", help="put right what --verify finds, and nothing else")
    manage.add_argument(
        "--check", metavar="NOTEBOOK", nargs="+", help="what notebooks need, and who has it; runs nothing"
    )
    manage.add_argument("--list", action="store_true", help="show environments with size, lock and state")
    manage.add_argument("--rollback", action="store_true", help="switch back to the previous environment")
    manage.add_argument("--prune", action="store_true", help="remove environments that are not in use")
    manage.add_argument("--uninstall", action="store_true", help="remove all that was made; shows it first")

    remote = parser.add_argument_group("remote desktop (see docs/desktop.md)")
    remote.add_argument(
        "--desktop",
        choices=KINDS,
        help="mirror: the screen that is there; virtual: one of its own; no environment is installed unless --cpu or "
        "--gpu is given, too",
    )
    remote.add_argument(
        "--vnc",
        choices=SERVERS,
        default="",
        help="server of a virtual desktop: TigerVNC or TightVNC; gnome: VNC of a mirrored Wayland screen (not RDP)",
    )
    remote.add_argument(
        "--vnc-listen", choices=LISTENS, default="", help="at a port of loopback (default), or a Unix socket: no port"
    )
    remote.add_argument("--session", choices=SESSIONS, default="auto", help="what runs in it")
    remote.add_argument("--display", type=int, metavar="N", help="display number (default: the first free one)")
    remote.add_argument("--geometry", metavar="WxH", default="", help="its size (default: 1600x900)")
    remote.add_argument(
        "--vnc-password-file", metavar="FILE", default="", help="yours, 6-8 characters; - reads standard input"
    )
    remote.add_argument("--reset-vnc-password", action="store_true", help="make a new one")
    remote.add_argument(
        "--desktop-user", metavar="USER", default="", help="whose desktop (default: you; under sudo, its caller)"
    )
    remote.add_argument("--install-packages", action="store_true", help="let apt install what is missing")

    run = parser.add_argument_group("this run")
    run.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
    run.add_argument("--json", action="store_true", help="plan and result as one JSON document on stdout")
    run.add_argument("--yes", action="store_true", help="don't ask before --uninstall and --prune")
    run.add_argument("-v", "--verbose", action="store_true", help="show the programs that are run")
    return parser


def absolute(text: str) -> Path:
    """Return a path from the command line as it is meant: ~ is the home folder, the rest below the current one."""
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - links stay as they are


def read_options(args: argparse.Namespace) -> Options:
    """Return what the command line asks of an installation."""
    if args.home == "":
        raise Failure("--prefix needs a folder (found '')", "python3 bootstrap.py !--prefix", EXIT_USAGE)
    homes.user_home()  # there is one, or it ends here: what follows relies on it
    lockfiles, env = absolute(args.lockfiles), DEFAULT_ENVIRONMENT if args.env is None else args.env
    if args.runtime:
        env = runtime_of(read_index(lockfiles), env, args.runtime)
    home = absolute(args.home or str(homes.default_home()))
    known = homes.remembered(home, env)
    return Options(
        env=env,
        home=home,
        lockfiles=lockfiles,
        engine=args.engine,
        python=args.python,
        mirrors=(*os.environ.get("COLAB_LOCAL_MIRROR", "").split(), *args.mirror),
        offline=args.offline,
        port=args.port or known.get("port", DEFAULT_PORT),
        notebook_dir=absolute(args.notebook_dir or known.get("notebook_dir", "~")),
        gpu_check=not args.no_gpu_check,
        starts=args.launch or args.service,
        lab=known.get("lab", False) if args.lab is None else args.lab,
        bundle_lock=args.bundle_lock,
        bundle_signers=args.bundle_signers,
    )


def read_desktop_options(args: argparse.Namespace, home: Path) -> DesktopOptions:
    """Return what the command line asks of a remote desktop."""
    return DesktopOptions(
        kind=args.desktop,
        home=home,
        vnc=args.vnc,
        session=args.session,
        display=args.display,
        geometry=args.geometry,
        password_file=args.vnc_password_file,
        reset_password=args.reset_vnc_password,
        user=args.desktop_user,
        install_packages=args.install_packages,
        dry_run=args.dry_run,
        listen=args.vnc_listen,
    )


# ---------------------------------------------------------------------------------------------------------
# Look: at the machine, at the lock, at what is there. Nothing is written


def look(options: Options, screen: Screen, held: contextlib.ExitStack) -> Installation:
    """Return what is to be installed; raise Failure, with numbers, when it can't be. held: keeps a bundle open."""
    index = read_index(options.lockfiles)
    known = index["environments"]
    check_known(options.env, known)
    host = inspect_host()
    refusal = machine_refusal(host, options.env, known[options.env]["platforms"], known[options.env]["accelerator"])
    if refusal:
        raise refusal
    homes.check_home(options.home)
    if options.port < lowest_port():
        raise Failure(
            f"only root may use port {options.port} (need {lowest_port()} or more)",
            f"python3 bootstrap.py --port {free_port(DEFAULT_PORT)}",
            EXIT_USAGE,
        )
    platform = conda_platform(host.system, host.machine)
    if options.offline:
        offline.check_fits(Path(options.offline), options.env, platform)
    rules = parse_rules(options.mirrors)
    installation = look_at_installed(options, index, platform, screen)
    if installation is None:
        wheels = None
        if options.offline:
            wanted = options.bundle_lock or sha256_of(options.lockfiles / "index.json")
            where = Path(options.offline), options.home, options.env, platform
            bundle = held.enter_context(offline.open_bundle(*where, screen, wanted, options.bundle_signers))
            rules, wheels = [*bundle.rules, *rules], bundle.wheels
            options = options._replace(lockfiles=bundle.lockfiles, engine=bundle.choose(options.engine))
            index = dict(read_index(bundle.lockfiles), python=[bundle.python])
        job = Job(options.home, options.env, platform, index, options.lockfiles, rules, wheels, screen)
        maker, notices = choose_engine(options.engine, options.python, job)
        lock = make_lock(index, options.lockfiles, options.env, platform, maker.layer)
        installation = Installation(options, lock, maker.name, screen, maker, wheels)
        installation.notices += notices + ([] if wheels else sources.notes())
    check_lab(installation)
    if installation.lock.accelerator == "gpu" and options.gpu_check:
        look_at_gpus(installation, known)
    check_room(installation)
    check_port(installation)
    return installation


def look_at_installed(
    options: Options, index: Dict[str, Any], platform: str, screen: Screen
) -> Optional[Installation]:
    """Return the installation in use if it fits the lock and the options: it stays what it is."""
    installed = homes.current_receipt(options.home, options.env)
    if not installed or options.engine not in ("auto", installed["engine"]) or options.python:
        return None
    lock = make_lock(index, options.lockfiles, options.env, platform, installed["layer"])
    installation = Installation(options, lock, installed["engine"], screen)
    return installation if installation.is_made() else None


def check_lab(installation: Installation) -> None:
    """Raise Failure for --lab where JupyterLab is too old: jupyter_server 1 answers Colab's transport with 404."""
    packages = installation.lock.packages()
    found = packages.get("jupyter-server", "")
    if installation.options.lab and found.startswith("1."):
        lab = packages.get("jupyterlab", "")
        raise Failure(
            f"Colab can't reach the {installation.lock.env} environment's JupyterLab {lab}"
            f" (found jupyter_server {found}, need 2 or newer)",
            "python3 bootstrap.py !--lab --no-lab",
            EXIT_USAGE,
        )


def check_room(installation: Installation) -> None:
    """Raise Failure unless the engine can work here and its packages have room."""
    folder = installation.options.notebook_dir
    if not folder.is_dir():
        raise Failure(
            f"--notebook-dir: there is no folder {folder} (Jupyter would not start)",
            f"mkdir -p {shlex.quote(str(folder))}",
            EXIT_USAGE,
        )
    if homes.is_removed_with(installation.home, folder):
        raise Failure(
            f"--notebook-dir: {folder} is in a folder that --uninstall removes",
            "python3 bootstrap.py !--notebook-dir",
            EXIT_USAGE,
        )
    if installation.is_made() or installation.is_aside() or installation.maker is None:
        return
    refusal = folder_refusal(existing_parent(installation.home)) or memory_refusal(memory_limit())
    if refusal:
        raise refusal
    installation.maker.check()
    check_disk(installation.home, sum(installation.room()))


def look_at_gpus(installation: Installation, known: Dict[str, Any]) -> None:
    """Ask the driver for this machine's GPUs; raise Failure where the locked packages can't use them.

    known: the environments of lockfiles/index.json.
    """
    lock, needs = installation.lock, {}
    for name, entry in known.items():
        platform = entry["platforms"].get(lock.platform)
        if entry["accelerator"] == "gpu" and platform:
            needs[name] = read_needs(platform.get("requires", {}))
    found = gpu_questions.look(needs.pop(lock.env), needs, installation.screen)
    installation.gpus = list(found.gpus)
    installation.notices += found.notices


def check_port(installation: Installation) -> None:
    """Choose another port for the next steps where a stranger has it; raise Failure where Jupyter has to start."""
    options = installation.options
    if port_is_free(options.port):
        return
    if any(server["port"] == options.port for server in running_servers(options.home)):
        return  # our own Jupyter: --launch shows its address
    taken, port = f"port {options.port} is taken by another program", free_port(options.port + 1)
    if options.starts:
        raise Failure(taken, f"python3 bootstrap.py --port {port}", EXIT_MACHINE)
    installation.port = port
    installation.notices.append(f"{taken}: the next steps use {port}")


# ---------------------------------------------------------------------------------------------------------
# Plan, and steps


def show_plan(installation: Installation, dry_run: bool) -> None:
    """Say what will be done, or that nothing is to be done."""
    steps, home, env = installation.steps(), installation.home, installation.lock.env
    for notice in installation.notices:
        installation.screen.say("note: " + notice)
    if not steps:
        installation.screen.say(f"Nothing to do: the {env} environment is in {home}")
        return
    verb = "Would do" if dry_run else "Will do"
    installation.screen.say(f"{verb} this for the {env} environment ({installation.lock.platform}), all of it in")
    installation.screen.say(f"{home}:")
    width = max(len(step.title) for step in steps)
    for step in steps:
        installation.screen.say(f"  {step.title.ljust(width)}  {os.path.relpath(str(step.where), str(home))}")
    if any(step.name == "packages" for step in steps):
        download, disk = map(megabytes, installation.room())
        installation.screen.say(f"It downloads at most {download} and takes about {disk} of disk.")


def execute(installation: Installation, screen: Screen) -> bool:
    """Carry out what is planned, under the home's lock; return whether anything had to be done."""
    known = len(installation.notices)
    with homes.hold_lock(installation.home, screen, inherited=True):
        screen.open_log(installation.home / "logs")
        steps = installation.steps()  # another run may have done it while this one waited
        try:
            installation.apply(steps)
        except (Failure, KeyboardInterrupt) as problem:
            if getattr(problem, "code", EXIT_INTERRUPTED) != EXIT_FAILED:  # a failed step's log is kept
                homes.remove_empty(installation.home)
            raise
    for notice in installation.notices[known:]:
        screen.say("note: " + notice)
    screen.say(f"Done in {sum(installation.seconds.values()):.0f} s.")
    return bool(steps)


def install(options: Options, dry_run: bool, screen: Screen) -> Dict[str, Any]:
    """Make the environment, or show how; return what --json prints."""
    with contextlib.ExitStack() as held:
        installation = look(options, screen, held)
        steps = installation.steps()
        result = installation.result(steps)
        show_plan(installation, dry_run)
        if dry_run:
            return result
        if steps:
            result.update(changed=execute(installation, screen), seconds=installation.seconds)
            if installation.gpu_line:
                screen.say(installation.gpu_line)
                result["gpu"] = installation.gpu_line
    if not options.starts:
        screen.say()
        reached = homes.user_name(), address_for_others(), ssh_port_for_others()
        for line in next_steps(installation.jupyter_argv(), installation.port, *reached, screen.put_right):
            screen.say(line)
    return result


# ---------------------------------------------------------------------------------------------------------
# What was asked for


def dispatch(args: argparse.Namespace, screen: Screen) -> int:
    """Do what the options ask for and return the exit code."""
    options = read_options(args)
    home, env = options.home, options.env
    beside: Dict[str, Any] = {}
    if args.content:
        content.make_link(options.notebook_dir, args.dry_run, screen)
    if args.desktop:
        wished = read_desktop_options(args, home)
        if args.uninstall:
            return desktop.remove(wished, screen)
        beside = desktop.set_up(wished, screen)
        if not (args.env or args.launch or args.service or args.offline):
            screen.show_document(beside)
            return EXIT_OK
    if args.check:
        return notebook.command([absolute(path) for path in args.check], env, options.lockfiles, screen)
    if args.verify:
        return verify.command(home, env, screen)
    if args.repair:
        return repair.command(options, args.dry_run, screen)
    if args.list or args.rollback or args.prune or args.uninstall:
        screen.show_document(manage(args, home, env, screen))
        return EXIT_OK
    if args.service:
        service.check(options, screen)
    result = install(options, args.dry_run, screen)
    if beside:
        result["desktop"] = beside
    screen.show_document(dict(result, ok=True))
    if args.service:
        return service.command(options, args.dry_run, screen)
    if args.launch and args.dry_run:
        screen.say(f"Then it would start Jupyter on port {options.port}, in this terminal.")
    elif args.launch:
        launch(options, result, screen)
    return EXIT_OK


def manage(args: argparse.Namespace, home: Path, env: str, screen: Screen) -> Dict[str, Any]:
    """Carry out --list, --rollback, --prune or --uninstall; return what --json prints."""
    if args.list:
        return environments.list_environments(home, screen)
    if args.rollback:
        return environments.rollback(home, env, args.dry_run, screen)
    if args.prune:
        return environments.prune(home, args.dry_run, args.yes, screen)
    others = {"service.json": service.uninstall, "desktop.json": desktop.uninstall}
    return environments.uninstall(home, args.dry_run, args.yes, others, screen)


def launch(options: Options, result: Dict[str, Any], screen: Screen) -> None:
    """Show the card and become Jupyter; where it runs already, the card is all that is needed."""
    argv, gpus = result["jupyter_argv"], result.get("gpus", [])
    ours = [server for server in running_servers(options.home) if server["port"] == options.port]
    if ours:
        demand_alone(options.port)
    token = token_file(options.home)
    screen.say()
    show_card(options.home, options.env, options.port, ours[0]["token"] if ours else token.read_text(), gpus, screen)
    if ours:
        screen.say("Jupyter runs already; nothing was started.")
        return
    screen.say()
    warn(homes.user_home(), os.environ, options.notebook_dir, screen)
    sys.stdout.flush()
    os.environ[TOKEN_FILE] = str(token)
    os.umask(screen.umask)
    os.execv(argv[0], list(argv))  # noqa: S606 - no shell is wanted; it cleans its environment itself


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run bootstrap.py with the given arguments and return its exit code."""
    again = "run the same command again: it goes on from here"
    return run_program(make_parser(), dispatch, argv, interrupted=again)


if __name__ == "__main__":
    sys.exit(main())
