"""A remote desktop over SSH: the screen that is there (`mirror`), or one of its own (`virtual`).

    python3 bootstrap.py --desktop virtual        also alone: python3 scripts/desktop virtual
    python3 bootstrap.py --desktop mirror
    python3 bootstrap.py --desktop virtual --uninstall

Safe by default: listens on loopback only, wants a password of everybody, opens no X port; looks at the running
server afterwards, and stops and disables it when a check fails. README.md in this folder tells what was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import bootstrap

from . import look, mirror, owned, packages, person, plan, rdp, secret, service, virtual
from .person import Person
from .plan import Receipt, Step


def command(args: Any) -> int:
    """Carry out --desktop on its own and return the exit code. args and Raises: as for `set_up`."""
    if args.uninstall:
        who = person.find(args.desktop_user)
        return _remove(_home(Path(args.home), who), who, args.desktop, args.dry_run)
    result = set_up(args)
    if args.json:
        print(json.dumps(result, indent=1))
    return bootstrap.EXIT_OK


def set_up(args: Any) -> Dict[str, Any]:
    """Plan, show, apply, look; the steps that are shown are the ones that are carried out. Return what was done.

    args: bootstrap.py's options (home, desktop, vnc, session, display, geometry, vnc_password_file,
    reset_vnc_password, desktop_user, install_packages, dry_run).

    Raises:
        bootstrap.Failure: something is missing, a step failed, or the result did not pass its checks.
    """
    if sys.platform != "linux":
        raise bootstrap.Failure(
            f"--desktop shares a Linux machine's screen (found {sys.platform}, need linux)",
            "macOS: System Settings > General > Sharing > Screen Sharing",
            bootstrap.EXIT_MACHINE,
        )
    who = person.find(args.desktop_user)
    home = _home(Path(args.home), who)
    receipt = Receipt(home, who, args.desktop)
    prepare = _virtual if args.desktop == "virtual" else _mirror
    kind = prepare(args, receipt, secret.read(args.vnc_password_file))
    todo = plan.pending(kind.steps)
    if todo:
        bootstrap.say(f"This {'would be' if args.dry_run else 'will be'} done for {who.name}:")
        plan.show(todo, details=args.dry_run)
    else:
        bootstrap.say(f"Nothing to do: the {args.desktop} desktop of {who.name} is set up.")
    done: List[Step] = []
    seen: List[str] = []
    if not args.dry_run:
        for step in todo:
            if not (args.install_packages and isinstance(step, packages.Install)):
                step.demand()
        # Nothing to do takes no lock, so that it changes nothing at all.
        try:
            with _locked(home, who) if todo else contextlib.nullcontext():
                done, seen = carry_out(args.desktop, kind, receipt)
        except BaseException:
            if not Receipt(home, who, args.desktop).exists:  # all was taken back
                _tidy_home(home, who)
            raise
        for line in [*kind.after(done), *(f"  ok: {line}" for line in seen)]:
            bootstrap.say(line)
    port = int(kind.facts["port"])
    local = 50000 + port
    line = ssh_line(who.name, port, local)
    if not args.dry_run:
        for text in next_steps(line, local, is_rdp=kind.facts.get("how") == "rdp"):
            bootstrap.say(text)
    return {
        "ok": True,
        "desktop": args.desktop,
        "user": who.name,
        "changed": bool(done),
        "plan": [step.title for step in todo],
        **kind.facts,
        "local_port": local,
        "ssh": line,
        "checks": seen,
    }


def carry_out(name: str, kind: Kind, receipt: Receipt) -> Tuple[List[Step], List[str]]:
    """Apply the steps and look; stop and disable what is not as it was meant. Return what was done and seen."""
    try:
        done = plan.carry_out(kind.steps)
        if done:
            receipt.note(**kind.facts)
            bootstrap.report("looking at what runs now ...")
        return done, kind.check(done)
    except look.Problem as problem:
        lines = kind.tail()
        kind.disable()
        left = look.still_open(int(kind.facts["port"]))
        for line in lines:
            bootstrap.report(f"  log: {line}")
        raise bootstrap.Failure(
            f"the {name} desktop did not pass its check, so it was stopped and disabled: {problem}{left}",
            f"python3 bootstrap.py --desktop {name}   (to try again; add --uninstall to remove it)",
        ) from None
    except BaseException:
        # Ctrl-C or a failed step: what was started is unchecked and must not stay up; what ran before is the user's.
        if not kind.ran:
            kind.disable()
        raise


def uninstall(home: Any, dry_run: bool = False) -> int:
    """Remove every desktop that the receipt under `home` lists, as far as this user may; return the exit code.

    What the user has changed since stays. Raises bootstrap.Failure if a step fails; the rest is kept listed.
    """
    code, path = bootstrap.EXIT_OK, plan.receipt_path(Path(home))
    for entry in plan.entries(path):
        who = person.find(entry["user"])
        if path.stat().st_uid not in (0, who.uid):  # root would remove what another user says is this one's
            raise bootstrap.Failure(
                f"{path} lists a desktop of {who.name}, but belongs to another user",
                f"ls -l {shlex.quote(str(path))}",
            )
        code = max(code, _remove(Path(home), who, entry["kind"], dry_run))
    return code


def _home(home: Path, who: Person) -> Path:
    """Return where the receipt lies: in the desktop user's own default home under sudo, not in root's."""
    if who.is_me or os.environ.get("COLAB_LOCAL_HOME") or home != Path(bootstrap.default_home()).absolute():
        return home
    return who.home / ".local" / "share" / "colab-local"


@contextlib.contextmanager
def _locked(home: Path, who: Person) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with who.hat_below_home(home):
            stack.enter_context(bootstrap.locked(home))
        yield


@dataclass
class Kind:
    """What the two kinds (and RDP, the Wayland form of mirror) have in common.

    facts: for the receipt and --json; ran: it was up before this run; check: looks, given what was done; tail: the
    end of its log; after: returns notes for the user, given what was done.
    """

    steps: Sequence[Step]
    check: Callable[[Sequence[Step]], List[str]]
    disable: Callable[[], None]
    facts: Dict[str, Any]
    ran: bool
    tail: Callable[[], List[str]] = list
    after: Callable[[Sequence[Step]], List[str]] = lambda done: []


def _virtual(args: Any, receipt: Receipt, given: Optional[str]) -> Kind:
    who = receipt.person
    wished = virtual.wish(args, who, receipt)
    with_systemd = service.systemd(who)

    def after(done: Sequence[Step]) -> List[str]:
        if not virtual.needs_restart(done):
            return []
        again = f"systemctl --user restart {service.unit(wished.display)}"
        stop = f"kill {getattr(owned.leader(who, wished.display), 'pid', '')} and run this again"
        how = again if with_systemd else stop
        return [f"note: the running desktop keeps its old settings until: {how}   (closes its programs)"]

    return Kind(
        virtual.plan(wished, receipt, given, args.reset_vnc_password),
        lambda done: virtual.check(wished, who, virtual.started_by(done)),
        lambda: service.stop(who, wished.display, with_systemd),
        {
            "display": wished.display,
            "port": wished.port,
            "server": virtual.SERVERS[wished.vnc],
            "session": wished.session,
        },
        owned.leader(who, wished.display) is not None,
        lambda: service.log_tail(who, wished.display),
        after,
    )


def _mirror(args: Any, receipt: Receipt, given: Optional[str]) -> Kind:
    who = receipt.person
    seen = mirror.screen(who, args.display)
    if seen.kind == "wayland":
        has_systemd = Path("/run/systemd/system").is_dir()
        has_nft = packages.here("nft")
        refusal = rdp.refuse(seen, os.getuid() == 0, has_systemd, has_nft, rdp.version(), rdp.has_xorg())
        if refusal:
            raise refusal
        is_first = not receipt.exists
        return Kind(
            rdp.plan(receipt, given, args.reset_vnc_password),
            lambda done: rdp.check(seconds=look.STAYS_ALIVE if done else 0),
            lambda: rdp.take_back(receipt) if is_first else rdp.disable(receipt),
            {"port": rdp.PORT, "how": "rdp"},
            rdp.is_up(receipt),
        )
    wished = mirror.wish(seen, who, receipt)
    return Kind(
        mirror.plan(wished, receipt, given, args.reset_vnc_password),
        lambda done: mirror.check(wished, who, bool(done)),
        lambda: mirror.disable(receipt),
        {"port": wished.port, "how": wished.how, "screen": seen.display},
        mirror.server(who, seen.display, wished.how) is not None,
    )


def ssh_line(user: str, port: int, local: int) -> str:
    """Return the command for the laptop, whose own end is on localhost, whatever its ssh's GatewayPorts says.

    port: on this machine; local: on the laptop, high enough not to meet a screen that is shared there.
    """
    address, ssh_port = bootstrap.address_for_others(), bootstrap.ssh_port_for_others()
    return bootstrap.ssh_line(port, user, address, ssh_port, f"localhost:{local}")


def next_steps(line: str, local: int, is_rdp: bool) -> List[str]:
    """Return what to type on the laptop."""
    head = [
        "",
        "Next steps",
        "  1. On the laptop, in a terminal that stays open:",
        f"     {line}",
        "  2. Then open it:",
    ]
    if is_rdp:
        return [
            *head,
            f"     Windows   mstsc /v:localhost:{local}",
            f"     macOS     Microsoft's Windows App, PC name localhost:{local} (Finder cannot open RDP)",
            f"     Linux     xfreerdp /v:localhost:{local}",
        ]
    return [
        *head,
        f"     macOS     open vnc://localhost:{local}",
        f"     Linux     vncviewer localhost::{local}",
        f"     Windows   vncviewer.exe localhost::{local}   (TigerVNC Viewer or RealVNC Viewer)",
    ]


def _remove(home: Path, who: Person, kind: str, dry_run: bool) -> int:
    """Undo one desktop by its receipt."""
    receipt = Receipt(home, who, kind)
    if not receipt.exists:
        bootstrap.say(f"Nothing to do: no {kind} desktop of {who.name} is listed in {receipt.path}")
        return bootstrap.EXIT_OK
    if kind == "virtual":
        steps = virtual.undo(receipt)
    elif receipt.entry.get("how") == "rdp" or receipt.entry.get("firewall"):
        steps = rdp.undo(receipt)
    else:
        bus = None
        with contextlib.suppress(bootstrap.Failure):
            number = receipt.entry.get("screen", ":0").lstrip(":")
            bus = mirror.screen(who, int(number)).bus
        steps = mirror.undo(receipt, bus or who.environment().get("DBUS_SESSION_BUS_ADDRESS"))
    todo = plan.pending(steps)
    bootstrap.say(f"This {'would be' if dry_run else 'will be'} done for {who.name}:")
    plan.show(todo, details=True)
    if dry_run:
        return bootstrap.EXIT_OK
    with _locked(home, who):
        plan.carry_out(steps)
    _tidy_home(home, who)
    return bootstrap.EXIT_OK


def _tidy_home(home: Path, who: Person) -> None:
    """Remove our own folder if the desktop was all there was in it."""
    with who.hat_below_home(home), contextlib.suppress(OSError):
        (home / "receipts").rmdir()
        if [p.name for p in home.iterdir()] == [".lock"]:
            (home / ".lock").unlink()
            home.rmdir()
