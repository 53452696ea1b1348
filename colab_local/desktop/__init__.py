"""A remote desktop over SSH: the screen that is there (`mirror`), or one of its own (`virtual`).

    python3 bootstrap.py --desktop virtual
    python3 bootstrap.py --desktop mirror
    python3 bootstrap.py --desktop virtual --uninstall

Safe by default: listens on loopback only, wants a password of everybody, opens no X port; looks at the running
server afterwards, and stops and disables it when a check fails. docs/desktop.md tells what was measured.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from colab_local.base.errors import EXIT_MACHINE, EXIT_OK, Failure
from colab_local.base.network import address_for_others, ssh_port_for_others
from colab_local.base.terminal import Screen
from colab_local.install.home import default_home, hold_lock
from colab_local.install.jupyter import ssh_line

from . import keyring, look, mirror, owned, packages, person, plan, rdp, rfb, secret, service, virtual
from .options import Options
from .person import Person
from .plan import Receipt, Step

AS_ROOT = (
    "this is a desktop of root itself: whoever gets in may do anything here, so may a page that its browser shows, "
    "and some programs refuse to start. For that of an ordinary user add: --desktop-user NAME"
)


def remove(options: Options, screen: Screen) -> int:
    """Undo one desktop and return the exit code."""
    who = person.find(options.user)
    return _remove(_home(options.home, who), who, options.kind, options.dry_run, screen)


def set_up(options: Options, screen: Screen) -> dict[str, Any]:
    """Plan, show, apply, look; the steps that are shown are the ones that are carried out. Return what was done.

    Raises:
        Failure: something is missing, a step failed, or the result did not pass its checks.
    """
    if sys.platform != "linux":
        raise Failure(
            f"--desktop shares a Linux machine's screen (found {sys.platform}, need linux)",
            "macOS: System Settings > General > Sharing > Screen Sharing",
            EXIT_MACHINE,
        )
    who = person.find(options.user)
    home = _home(options.home, who)
    receipt = Receipt(home, who, options.kind, screen)
    prepare = _virtual if options.kind == "virtual" else _mirror
    kind = prepare(options, receipt, secret.read(options.password_file))
    todo = plan.pending(kind.steps)
    if not options.dry_run:  # a plan is shown when it will be carried out, so what is missing is said first
        for step in todo:
            if not (options.install_packages and isinstance(step, packages.Install)):
                step.demand()
    if todo:
        screen.say(f"This {'would be' if options.dry_run else 'will be'} done for {who.name}:")
        plan.show(todo, screen, details=options.dry_run)
    else:
        screen.say(f"Nothing to do: the {options.kind} desktop of {who.name} is set up.")
    if todo and who.uid == 0:
        screen.report(f"note: {AS_ROOT}")
    done: list[Step] = []
    seen: list[str] = []
    if not options.dry_run:
        # Nothing to do takes no lock, so that it changes nothing at all.
        try:
            with _locked(home, who, screen) if todo else contextlib.nullcontext():
                done, seen = carry_out(options.kind, kind, receipt)
        except BaseException:
            if not Receipt(home, who, options.kind, screen).exists:  # all was taken back
                _tidy_home(home, who)
            raise
        for line in [*kind.after(done), *(f"  ok: {line}" for line in seen)]:
            screen.say(line)
    local = 50000 + int(kind.facts["port"])
    line = laptop_line(who.name, kind.where, local)
    if not options.dry_run:
        is_rdp = kind.facts.get("how") == "rdp"
        has_vnc = is_rdp and keyring.speaks(keyring.VNC, rdp.help_text(who))
        for text in next_steps(line, local, is_rdp, "mirror --vnc gnome" if has_vnc else "virtual"):
            screen.say(text)
    return {
        "ok": True,
        "desktop": options.kind,
        "user": who.name,
        "changed": bool(done),
        "plan": [step.title for step in todo],
        **kind.facts,
        "socket": str(kind.socket) if kind.socket else None,
        "local_port": local,
        "ssh": line,
        "checks": seen,
    }


def carry_out(name: str, kind: Kind, receipt: Receipt) -> tuple[list[Step], list[str]]:
    """Apply the steps and look; stop and disable what is not as it was meant. Return what was done and seen."""
    try:
        done = plan.carry_out(kind.steps)
        if done:
            receipt.note(**kind.facts)
            receipt.screen.report("looking at what runs now ...")
        return done, kind.check(done)
    except look.Problem as problem:
        lines = kind.tail()
        kind.disable()
        left = look.still_open(kind.where)
        for line in lines:
            receipt.screen.report(f"  log: {line}")
        raise Failure(
            f"the {name} desktop did not pass its check, so it was stopped and disabled: {problem}{left}",
            f"python3 bootstrap.py --desktop {name}   # to try again; add --uninstall to remove it",
        ) from None
    except BaseException:
        # Ctrl-C or a failed step: what was started is unchecked and must not stay up; what ran before is the user's.
        if not kind.ran:
            kind.disable()
        raise


def uninstall(home: Path, dry_run: bool, screen: Screen) -> int:
    """Remove every desktop that the receipt under `home` lists, as far as this user may; return the exit code.

    What the user has changed since stays. Raises Failure if a step fails; the rest is kept listed.
    """
    code, path = EXIT_OK, plan.receipt_path(home)
    for entry in plan.entries(path):
        who = person.find(entry["user"])
        code = max(code, _remove(home, who, entry["kind"], dry_run, screen))
    return code


def _home(home: Path, who: Person) -> Path:
    """Return where the receipt lies: in the desktop user's own default home under sudo, not in root's."""
    if who.is_me or os.environ.get("COLAB_LOCAL_HOME") or home != default_home().absolute():
        return home
    return who.home / ".local" / "share" / "colab-local"


@contextlib.contextmanager
def _locked(home: Path, who: Person, screen: Screen) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with who.acting_below_home(home):
            stack.enter_context(hold_lock(home, screen))
        yield


@dataclass
class Kind:
    """What the two kinds (and RDP, the Wayland form of mirror) have in common.

    facts: for the receipt and --json; ran: it was up before this run; check: looks, given what was done; tail: the
    end of its log; after: returns notes for the user, given what was done; socket: it listens at this Unix socket,
    and at no TCP port.
    """

    steps: Sequence[Step]
    check: Callable[[Sequence[Step]], list[str]]
    disable: Callable[[], None]
    facts: dict[str, Any]
    ran: bool
    tail: Callable[[], list[str]] = list
    after: Callable[[Sequence[Step]], list[str]] = lambda done: []
    socket: Path | None = None

    @property
    def where(self) -> rfb.Where:
        """Where it listens."""
        return self.socket or int(self.facts["port"])


def _virtual(options: Options, receipt: Receipt, given: str | None) -> Kind:
    who = receipt.person
    wished = virtual.wish(options, who, receipt)
    with_systemd = service.systemd(who)

    def after(done: Sequence[Step]) -> list[str]:
        notes = virtual.notes(who, wished.display, with_systemd) if virtual.started_by(done) else []
        if not virtual.needs_restart(done):
            return notes
        again = f"systemctl --user restart {service.unit(wished.display)}"
        stop = f"kill {getattr(owned.leader(who, wished.display), 'pid', '')} and run this again"
        how = again if with_systemd else stop
        return [*notes, f"note: the running desktop keeps its old settings until: {how}   (closes its programs)"]

    return Kind(
        virtual.plan(wished, receipt, given, options.reset_password),
        lambda done: virtual.check(wished, who, virtual.started_by(done)),
        lambda: service.stop(who, wished.display, with_systemd),
        {
            "display": wished.display,
            "port": wished.port,
            "listen": "socket" if wished.socket else "port",
            "server": virtual.SERVERS[wished.vnc],
            "session": wished.session,
        },
        owned.leader(who, wished.display) is not None,
        lambda: service.log_tail(who, wished.display),
        after,
        wished.socket,
    )


def _mirror(options: Options, receipt: Receipt, given: str | None) -> Kind:
    who = receipt.person
    seen = mirror.screen(who, options.display)
    if seen.kind == "wayland":
        has_systemd = Path("/run/systemd/system").is_dir()
        has_nft = packages.here("nft")
        protocol = rdp.choose(receipt, options.vnc)
        helps = rdp.help_text(who)
        lacks_vnc = protocol is keyring.VNC and bool(helps) and not keyring.speaks(protocol, helps)
        is_root = os.getuid() == 0
        refusal = rdp.refuse(seen, is_root, has_systemd, has_nft, rdp.version(), rdp.has_xorg(), lacks_vnc)
        if refusal:
            raise refusal
        is_first, ran = not receipt.exists, rdp.is_up(receipt)
        return Kind(
            rdp.plan(receipt, protocol, given, options.reset_password),
            lambda done: rdp.check(
                who, protocol, seconds=look.STAYS_ALIVE if done else 0, started=bool(done) and not ran
            ),
            lambda: rdp.take_back(receipt) if is_first else rdp.disable(receipt),
            {"port": protocol.ports[0], "how": "rdp" if protocol is keyring.RDP else rdp.OVER_VNC},
            ran,
        )
    wished = mirror.wish(seen, who, receipt)
    return Kind(
        mirror.plan(wished, receipt, given, options.reset_password),
        lambda done: mirror.check(wished, who, bool(done), receipt.screen),
        lambda: mirror.disable(receipt),
        {"port": wished.port, "how": wished.how, "screen": seen.display},
        mirror.server(who, seen.display, wished.how) is not None,
    )


def laptop_line(user: str, where: rfb.Where, local: int) -> str:
    """Return the command for the laptop, whose own end is on localhost, whatever its ssh's GatewayPorts says.

    where: on this machine; local: on the laptop, high enough not to meet a screen that is shared there.
    """
    return ssh_line(where, user, address_for_others(), ssh_port_for_others(), f"localhost:{local}")


def next_steps(line: str, local: int, is_rdp: bool, for_finder: str = "virtual") -> list[str]:
    """Return what to type on the laptop. for_finder: what --desktop would make something that Finder opens."""
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
            f"     macOS     Microsoft's Windows App, PC name localhost:{local} (Finder: --desktop {for_finder})",
            f"     Linux     xfreerdp /v:localhost:{local}",
        ]
    return [
        *head,
        f"     macOS     open vnc://localhost:{local}",
        f"     Linux     vncviewer localhost::{local}",
        f"     Windows   vncviewer.exe localhost::{local}   (TigerVNC Viewer or RealVNC Viewer)",
    ]


def _remove(home: Path, who: Person, kind: str, dry_run: bool, screen: Screen) -> int:
    """Undo one desktop by its receipt."""
    receipt = Receipt(home, who, kind, screen)
    if not receipt.exists:
        screen.say(f"Nothing to do: no {kind} desktop of {who.name} is listed in {receipt.path}")
        return EXIT_OK
    if kind == "virtual":
        steps = virtual.undo(receipt)
    elif receipt.entry.get("how") in ("rdp", rdp.OVER_VNC) or receipt.entry.get("firewall"):
        steps = rdp.undo(receipt)
    else:
        bus = None
        with contextlib.suppress(Failure):
            number = receipt.entry.get("screen", ":0").lstrip(":")
            bus = mirror.screen(who, int(number)).bus
        steps = mirror.undo(receipt, bus or who.environment().get("DBUS_SESSION_BUS_ADDRESS"))
    todo = plan.pending(steps)
    screen.say(f"This {'would be' if dry_run else 'will be'} done for {who.name}:")
    plan.show(todo, screen, details=True)
    if dry_run:
        return EXIT_OK
    with _locked(home, who, screen):
        plan.carry_out(steps)
    _tidy_home(home, who)
    return EXIT_OK


def _tidy_home(home: Path, who: Person) -> None:
    """Remove our own folder if the desktop was all there was in it."""
    with who.acting_below_home(home), contextlib.suppress(OSError):
        (home / "receipts").rmdir()
        if [p.name for p in home.iterdir()] == [".lock"]:
            (home / ".lock").unlink()
            home.rmdir()
