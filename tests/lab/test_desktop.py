"""Decisions of the remote desktop that need no server: passwords, files, refusals, texts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from colab_local import desktop
from colab_local.base import network
from colab_local.base.errors import EXIT_BUSY, EXIT_INTEGRITY, EXIT_MACHINE, Failure
from colab_local.desktop import files, keyring, look, mirror, owned, packages, plan, proc, rdp, rfb, virtual
from colab_local.desktop.options import Options
from colab_local.desktop.person import Person
from tests.conftest import SCREEN


def me(home: Path) -> Person:
    """The user who runs the tests, at home in a temporary folder."""
    entry = pwd.getpwuid(os.getuid())
    return Person(entry.pw_name, entry.pw_uid, entry.pw_gid, (entry.pw_gid,), home.resolve(), "/bin/sh", False)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    home = tmp_path / "a home"
    home.mkdir()
    return me(home)


@pytest.fixture
def receipt(person: Person) -> plan.Receipt:
    return plan.Receipt(person.home / ".local/share/colab-local", person, "virtual", SCREEN)


def test_a_users_own_file_is_kept_and_put_back(person: Person, receipt: plan.Receipt) -> None:
    path = person.home / ".vnc" / "xstartup"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nexec my-own-desktop\n")
    path.chmod(0o640)
    step = plan.File(receipt, path, b"#!/bin/sh\nours\n", 0o700)
    shown = step.difference()
    assert shown is not None
    assert "-exec my-own-desktop" in shown and "+ours" in shown and "mode 0640 -> 0700" in shown
    step.apply()
    assert path.read_text() == "#!/bin/sh\nours\n"
    assert path.stat().st_mode & 0o777 == 0o700
    [backup] = path.parent.glob("xstartup.orig-*")
    assert backup.read_text() == "#!/bin/sh\nexec my-own-desktop\n"
    assert step.difference() is None

    plan.PutBack(receipt, path).apply()
    assert path.read_text() == "#!/bin/sh\nexec my-own-desktop\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["xstartup"]


def test_what_the_user_changed_after_us_stays_and_so_does_the_copy(person: Person, receipt: plan.Receipt) -> None:
    path = person.home / ".vnc" / "xstartup"
    path.parent.mkdir()
    path.write_text("mine, first\n")
    plan.File(receipt, path, b"ours\n", 0o700).apply()
    path.write_text("mine, second\n")
    undo = plan.PutBack(receipt, path)
    assert "changed it since" in (undo.difference() or "")
    undo.apply()
    assert path.read_text() == "mine, second\n"
    [backup] = path.parent.glob("xstartup.orig-*")
    assert backup.read_text() == "mine, first\n"


def test_a_later_version_of_ours_replaces_ours_without_a_copy_but_an_edit_is_copied(
    person: Person, receipt: plan.Receipt
) -> None:
    path = person.home / ".vnc" / "xstartup"
    plan.File(receipt, path, b"version 1\n", 0o700).apply()
    plan.File(receipt, path, b"version 2\n", 0o700).apply()
    assert [p.name for p in path.parent.iterdir()] == ["xstartup"]
    path.write_text("version 2, edited\n")
    plan.File(receipt, path, b"version 3\n", 0o700).apply()
    [backup] = path.parent.glob("xstartup.orig-*")
    assert backup.read_text() == "version 2, edited\n"


def test_an_interrupted_write_leaves_the_users_file_and_uninstall_keeps_it(
    person: Person, receipt: plan.Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = person.home / ".vnc" / "xstartup"
    path.parent.mkdir()
    path.write_text("mine\n")

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(files, "write", power_cut)
        with pytest.raises(KeyboardInterrupt):
            plan.File(receipt, path, b"ours\n", 0o700).apply()
    again = plan.Receipt(receipt.path.parent.parent, person, "virtual", SCREEN)
    plan.PutBack(again, path).apply()
    assert path.read_text() == "mine\n"
    assert [p.name for p in path.parent.iterdir()] == ["xstartup"]


@pytest.mark.parametrize("link", [".vnc", ".vnc/xstartup"])
def test_symbolic_links_are_refused_and_nothing_is_written_behind_them(
    person: Person, receipt: plan.Receipt, tmp_path: Path, link: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious\n")
    place = person.home / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(elsewhere if link == ".vnc" else elsewhere / "file")
    step = plan.File(receipt, person.home / ".vnc/xstartup", b"ours\n", 0o700)
    with pytest.raises(Failure, match="symbolic link"):
        step.difference()
    with pytest.raises(Failure, match="symbolic link"):
        step.apply()
    assert [p.name for p in elsewhere.iterdir()] == ["file"]
    assert (elsewhere / "file").read_text() == "precious\n"


def test_private_folders_get_their_mode_back_at_the_end(person: Person, receipt: plan.Receipt) -> None:
    vnc = person.home / ".vnc"
    vnc.mkdir(mode=0o755)
    vnc.chmod(0o755)
    plan.Private(receipt, vnc).apply()
    assert vnc.stat().st_mode & 0o777 == 0o700
    plan.Tidy(receipt).apply()
    assert vnc.stat().st_mode & 0o777 == 0o755
    assert not receipt.path.exists()


def test_a_damaged_receipt_is_named(person: Person, receipt: plan.Receipt) -> None:
    receipt.path.parent.mkdir(parents=True)
    receipt.path.write_text("{half")
    with pytest.raises(Failure, match="damaged") as refusal:
        plan.Receipt(receipt.path.parent.parent, person, "virtual", SCREEN)
    assert refusal.value.code == EXIT_INTEGRITY


# --- what listens ---------------------------------------------------------------------------------------


def test_listeners_are_read_right_on_loopback_and_beyond() -> None:
    with socket.socket() as inside, socket.socket(socket.AF_INET6) as six, socket.socket() as silent:
        inside.bind(("127.0.0.1", 0))
        inside.listen()
        six.bind(("::1", 0))
        six.listen()
        silent.bind(("127.0.0.1", 0))  # bound, but listens to nobody
        ports = [s.getsockname()[1] for s in (inside, six, silent)]
        found = network.listeners(ports)
    assert sorted((f.address, f.port, f.on_loopback) for f in found) == sorted(
        [("127.0.0.1", ports[0], True), ("::1", ports[1], True)]
    )


def test_wildcard_and_mapped_addresses_count_as_what_they_are(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {}:170D {} 0A 00000000:00000000 00:00000000 00000000     0        0 {} 1\n"
    (tmp_path / "tcp").write_text(head + row.format("00000000", "00000000:0000", 7))
    mapped = "0000000000000000FFFF00000100007F"
    rest = "0" * 32 + ":0000"
    (tmp_path / "tcp6").write_text(head + row.format("0" * 32, rest, 8) + row.format(mapped, rest, 9))
    found = {f.inode: (f.address, f.on_loopback) for f in network.listeners([5901], tmp_path)}
    assert found == {7: ("0.0.0.0", False), 8: ("::", False), 9: ("::ffff:127.0.0.1", True)}  # noqa: S104


@contextlib.contextmanager
def served(*talks: Sequence[bytes], at: Path | None = None) -> Iterator[rfb.Where]:
    """Play a VNC server, one connection after the other: send an answer after each message of the client.

    at: its Unix socket, None for a free TCP port.
    """

    def play() -> None:
        for answers in talks:
            with door.accept()[0] as stream, contextlib.suppress(ConnectionError):
                for answer in answers:
                    stream.sendall(answer)
                    stream.recv(64)

    with socket.socket(socket.AF_UNIX if at else socket.AF_INET) as door:
        door.bind(str(at) if at else ("127.0.0.1", 0))
        door.listen()
        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        yield at or int(door.getsockname()[1])
        thread.join(5)
        assert not thread.is_alive(), "the probe made fewer connections than were expected"


VERSION, CHALLENGE = b"RFB 003.008\n", bytes(16)
YES, NO = b"\0\0\0\0", b"\0\0\0\1"
PASSWORD_WANTED = (VERSION, b"\x01\x02", CHALLENGE, NO)
OUT = b"\0\0\0\x1aToo many security failures"


@pytest.mark.parametrize("no", [(NO,), ()], ids=["a no", "a hang-up"])
def test_a_server_that_refuses_the_wrong_password_passes(no: Sequence[bytes]) -> None:
    with served((VERSION, b"\x01\x02", CHALLENGE, *no), (VERSION, b"\0\0\0\2")) as port:
        assert "a wrong password was refused" in look.password_wanted(port)


def test_a_unix_socket_is_looked_at_like_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a home" / "rfb-7.sock"
    path.parent.mkdir()
    assert not look.is_up(path)
    with served((VERSION, b"\x01\x02", CHALLENGE, NO), (VERSION, b"\0\0\0\2"), at=path) as where:
        assert look.is_up(path) and not look.is_up(path.parent)
        look.listening(where, None, lambda: None)
        look.private(where)
        assert "a wrong password was refused" in look.password_wanted(where)
        monkeypatch.chdir(path.parent)
        assert not look.is_up(Path(path.name)), "another spelling is another socket"
    assert path.exists() and not look.is_up(path), "a dead server's file"
    with socket.create_server(("127.0.0.1", 0)) as door, pytest.raises(look.Problem, match="listens on TCP as well"):
        look.no_port(door.getsockname()[1], os.getuid())


@pytest.mark.parametrize(
    ("talks", "words"),
    [
        ([(VERSION, b"\x01\x02", CHALLENGE, YES)], "accepted a wrong password"),
        ([(VERSION, b"\x02\x01\x02", CHALLENGE, NO)], "lets everybody in without a password"),
        ([(VERSION, b"\x01\x01")], "lets everybody in without a password"),
        ([(VERSION, b"\x01\x13")], "offers no VNC password log-in"),
        ([PASSWORD_WANTED, (VERSION, b"\0\0\0\1")], r"RFB 3.3 client .* gets security type \[1\], not 2"),
        ([PASSWORD_WANTED, (VERSION, b"\0\0\0\0\0\0\0\2no")], "RFB 3.3 client .* cannot log in: no"),
        ([(b"SSH-2.0-OpenSSH_9.2p1\r\n",)], "no VNC server"),
    ],
)
def test_a_server_that_strangers_could_use_or_a_mac_could_not_is_a_problem(
    talks: Sequence[Sequence[bytes]], words: str
) -> None:
    with served(*talks) as port, pytest.raises(look.Problem, match=words):
        look.password_wanted(port)


def test_a_server_that_has_shut_everybody_out_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "LOCKED_OUT", 0)
    with served((VERSION, b"\0" + OUT), PASSWORD_WANTED, (VERSION, bytes(4) + OUT), (VERSION, b"\0\0\0\2")) as port:
        assert look.password_wanted(port)


# --- display numbers ------------------------------------------------------------------------------------


def test_a_display_is_taken_by_a_port_a_socket_or_a_living_lock(
    person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = tmp_path / "t" / ".X11-unix"
    sockets.mkdir(parents=True)
    monkeypatch.setattr(virtual, "X_SOCKETS", sockets)
    monkeypatch.setattr(network, "listeners", lambda ports: [])
    assert virtual.taken_by(40, person) is None

    lock = sockets.parent / ".X40-lock"
    lock.write_text(f"{os.getpid():>10}\n")
    assert f"process {os.getpid()} holds" in (virtual.taken_by(40, person) or "")
    lock.write_text("   4194304\n")  # above the highest process id of Linux: dead
    assert virtual.taken_by(40, person) is None
    assert lock.exists()  # looked at, never removed

    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(sockets)  # a socket's path may have 107 bytes only
        server.bind("X40")
        server.listen()
        assert "an X server uses" in (virtual.taken_by(40, person) or "")
    assert virtual.taken_by(40, person) is None  # its server is gone, the file is not
    assert (sockets / "X40").exists()


def test_a_taken_display_is_an_error_with_a_free_one_in_the_hint(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual, "taken_by", lambda n, who: "port 5901 is in use" if n == 1 else None)
    monkeypatch.setattr(owned, "displays", lambda who: [])
    with pytest.raises(Failure, match=r"display :1 is taken \(port 5901 is in use\)") as refusal:
        virtual.choose_display(1, None, person)
    assert "--display 2" in refusal.value.hint
    assert refusal.value.code == EXIT_BUSY
    assert virtual.choose_display(None, None, person) == 2


@pytest.mark.parametrize("number", [0, 64, -1, 5900])
def test_display_numbers_outside_1_to_63_are_refused(person: Person, number: int) -> None:
    with pytest.raises(Failure, match="need 1 to 63"):
        virtual.choose_display(number, None, person)


@pytest.mark.parametrize("geometry", ["big", "1600", "1600x", "0x0", "1600x900; reboot"])
def test_a_screen_size_that_is_none_is_refused(person: Person, receipt: plan.Receipt, geometry: str) -> None:
    args = Options("virtual", person.home, vnc="tiger", session="xfce", geometry=geometry)
    with pytest.raises(Failure, match="need WIDTHxHEIGHT"):
        virtual.wish(args, person, receipt)


def test_a_socket_needs_tigervnc_and_a_path_that_kernel_and_ssh_take(
    tmp_path: Path, person: Person, receipt: plan.Receipt
) -> None:
    def wish(listen: str, vnc: str = "", who: Person = person) -> virtual.Wish:
        return virtual.wish(Options("virtual", receipt.path, vnc, "openbox", 40, listen=listen), who, receipt)

    made = wish("socket", "tiger")
    assert made.where == person.home / ".vnc/rfb-40.sock" and "VNC_LISTEN=socket\n" in made.settings
    assert wish("", "tiger").where == 5940
    with pytest.raises(Failure, match="TightVNC cannot listen") as refusal:
        wish("socket", "tight")
    assert refusal.value.hint.endswith("--vnc tiger")
    (person.home / ".vnc").mkdir()
    (person.home / ".vnc/vnc-session.conf").write_text(made.settings)
    assert wish("").where == made.where, "it is kept"
    assert wish("port").where == 5940
    with pytest.raises(Failure, match="TightVNC cannot listen") as refusal:
        wish("", "tight")
    assert refusal.value.hint.endswith("--vnc tight --vnc-listen port")

    stem = f"{tmp_path}/"
    fits = stem + "x" * (107 - len(stem) - len("/.vnc/rfb-40.sock"))
    assert len(os.fsencode(wish("socket", "tiger", me(Path(fits))).socket or "")) == 107
    for home, words in ((fits + "x", "found 108 bytes"), (stem + "a:b", "need letters"), (stem + "100%", "need let")):
        with pytest.raises(Failure, match=words) as refusal:
            wish("socket", "tiger", me(Path(home)))
        assert refusal.value.hint.endswith("--vnc-listen port")


def test_an_empty_password_file_counts_as_none(person: Person, receipt: plan.Receipt) -> None:
    path = person.home / ".vnc" / "passwd"
    path.parent.mkdir()
    for content, good in ((virtual.EMPTY, False), (b"", False), (b"12345678", True), (b"1234567", False)):
        path.write_bytes(content)
        path.chmod(0o600)
        shown = virtual.Password(receipt, None, False).difference()
        assert (shown is None) == good
        assert good or "a random password of 8 characters" in (shown or "")
    path.write_bytes(b"12345678")
    path.chmod(0o644)
    assert virtual.Password(receipt, None, False).difference() == "mode 0644 -> 0600"


# --- packages -------------------------------------------------------------------------------------------


def stand_in(folder: Path, name: str, text: str) -> None:
    """Put a program of that name on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_install_packages_runs_that_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for apt-get (and sudo), which writes down what it was told and 'installs' the program."""
    bin_, log = tmp_path / "bin", tmp_path / "log"
    stand_in(
        bin_,
        "apt-get",
        f'echo "$DEBIAN_FRONTEND $*" >>"{log}"; touch "{bin_}/Xtigervnc"; chmod +x "{bin_}/Xtigervnc"',
    )
    stand_in(bin_, "apt-cache", "echo tigervnc-standalone-server:; echo '  Candidate: 1'")
    stand_in(bin_, "sudo", '[ "$1" = -n ] && shift; exec "$@"')
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "NEEDS", {"Xtigervnc": ("tigervnc-standalone-server",)})
    monkeypatch.setattr(packages, "here", lambda need: (bin_ / need).exists())
    step = packages.Install(["Xtigervnc"], SCREEN)
    assert step.difference() is not None
    step.apply()
    assert log.read_text() == "noninteractive install -y --no-install-recommends tigervnc-standalone-server\n"
    assert step.difference() is None


# --- Vino and Wayland -----------------------------------------------------------------------------------

KEYS = [
    "alternative-port",
    "authentication-methods",
    "disable-background",
    "disable-xdamage",
    "icon-visibility",
    "lock-screen-on-disconnect",
    "mailto",
    "network-interface",
    "notify-on-connect",
    "prompt-enabled",
    "require-encryption",
    "use-alternative-port",
    "use-upnp",
    "view-only",
    "vnc-password",
]


def test_encryption_is_never_off_without_loopback_and_password() -> None:
    for keys in (KEYS, [*KEYS, "enabled"]):
        values = mirror.wanted(keys, "c2VjcmV0Nzg=", 5900)
        assert values["require-encryption"] == "false"
        assert values["network-interface"] == "'lo'"
        assert values["authentication-methods"] == "['vnc']"
        assert values["vnc-password"] == "'c2VjcmV0Nzg='"
        assert values["use-upnp"] == "false"
        assert ("enabled" in values) == ("enabled" in keys)
    assert mirror.wanted(KEYS, "x", 5950)["alternative-port"] == "uint16 5950"


def test_a_vino_that_cannot_be_bound_to_loopback_is_refused() -> None:
    with pytest.raises(Failure, match="cannot be bound to loopback"):
        mirror.wanted([k for k in KEYS if k != "network-interface"], "x", 5900)


@pytest.mark.parametrize(
    ("password", "methods", "good"),
    [
        ("'c2VjcmV0Nzg='", "['vnc']", True),
        ("'keyring'", "['vnc']", False),
        ("''", "['vnc']", False),
        ("'eA=='", "['vnc']", False),  # one character
        ("'c2VjcmV0Nzg='", "['none']", False),
        ("'not base64!'", "['vnc']", False),
    ],
)
def test_vinos_password_is_kept_only_if_it_protects(password: str, methods: str, good: bool) -> None:
    settings = {"vnc-password": password, "authentication-methods": methods}
    assert (mirror.password_in(settings) is not None) == good


def test_autostart_entries_survive_spaces_and_signs() -> None:
    entry = mirror.autostart("x", ["/usr/bin/python3", '/home/a "b" $c/100%/vnc-mirror', "5900"]).decode()
    assert r'Exec=/usr/bin/python3 "/home/a \\"b\\" \\$c/100%%/vnc-mirror" 5900' in entry


GNOME = mirror.PhysicalScreen("wayland", "", "ubuntu:GNOME")


@pytest.mark.parametrize(
    ("seen", "root", "systemd", "nft", "version", "words"),
    [
        (mirror.PhysicalScreen("wayland", "", "KDE"), True, True, True, 48, "only GNOME's Wayland screens"),
        (GNOME, True, True, True, None, "found none"),
        (GNOME, True, True, True, 41, "has no RDP"),
        (GNOME, True, True, True, 43, None),
        (GNOME, True, True, False, 48, "cannot be bound to loopback"),
        (GNOME, True, False, True, 48, "cannot be bound to loopback"),
        (GNOME, False, True, True, 48, "needs root"),
        (GNOME, True, True, True, 48, None),
    ],
)
def test_wayland_is_refused_unless_a_firewall_can_stand_in_front(
    seen: mirror.PhysicalScreen, root: bool, systemd: bool, nft: bool, version: int | None, words: str | None
) -> None:
    refusal = rdp.refuse(seen, root, systemd, nft, version)
    if words is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert words in refusal.what
        assert "--desktop virtual" in refusal.hint
        assert refusal.code == EXIT_MACHINE


def test_vnc_that_was_not_built_in_is_refused_and_other_ways_are_named() -> None:
    refusal = rdp.refuse(GNOME, True, True, True, 43, has_xorg=True, lacks_vnc=True)
    assert refusal and "built without VNC" in refusal.what
    for way in ("--desktop mirror !--vnc   # over RDP", "--desktop virtual", '"on Xorg"'):
        assert way in refusal.hint


@pytest.mark.parametrize("protocol", [keyring.RDP, keyring.VNC])
def test_the_firewall_comes_before_the_service(receipt: plan.Receipt, protocol: keyring.Protocol) -> None:
    steps = [type(step).__name__ for step in rdp.plan(receipt, protocol, None, False)]
    assert steps.index("Firewall") < steps.index("Share")
    assert f"dport {protocol.ports[0]}-{protocol.ports[-1]} drop" in rdp.firewall_text(protocol)


# As the real one, 48.1: a new buffered reader for each prompt, so the first one swallows a whole pipe, and the second
# crashes (seen in Debian 13; NixOS/nixpkgs issue 266774). $1 log of what it was told.
GRDCTL = """
import os, signal, sys
words, log = sys.argv[2:], sys.argv[1]
if words == ["--help"]:
    print("  rdp  - RDP subcommands:\\n set-credentials [<username> [<password>]]\\ndisable-port-negotiation")
    raise SystemExit
said = ""
if "set-credentials" in words:
    for _ in range(4 - len(words)):
        said = sys.stdin.read()
        if not said:
            os.kill(os.getpid(), signal.SIGSEGV)
print("grdctl", *words, "stdin=" + said.replace("\\n", ","), sep="|", file=open(log, "a"))
"""


@pytest.fixture
def gnome(receipt: plan.Receipt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for grdctl 47+ and systemctl, which no release here has; returns the log of what they were told."""
    bin_, log = tmp_path / "bin", tmp_path / "log"
    (tmp_path / "grdctl.py").write_text(GRDCTL)
    stand_in(bin_, "grdctl", f'exec /usr/bin/python3 "{tmp_path}/grdctl.py" "{log}" "$@"')
    stand_in(bin_, "systemctl", f'printf "%s|" "${{0##*/}}" "$@" >>"{log}"; echo "stdin=$(cat)" >>"{log}"')
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    return log


def test_rdp_gets_its_password_on_standard_input_only(
    gnome: Path, receipt: plan.Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdp, "firewall_is_up", lambda protocol: True)
    rdp.Share(receipt, keyring.RDP, "s3cret88", False).apply()
    lines = gnome.read_text().splitlines()
    name = receipt.person.name
    assert [line.partition("stdin=")[0] for line in lines] == [
        f"grdctl|rdp|set-tls-key|{receipt.person.home}/.local/share/colab-local-rdp/rdp.key|",
        f"grdctl|rdp|set-tls-cert|{receipt.person.home}/.local/share/colab-local-rdp/rdp.crt|",
        "grdctl|rdp|disable-view-only|",
        f"grdctl|rdp|set-credentials|{name}|",
        "grdctl|rdp|disable-port-negotiation|",
        "grdctl|rdp|enable|",
        "systemctl|--user|enable|--now|gnome-remote-desktop.service|",
    ]
    assert [line.partition("stdin=")[2] for line in lines] == ["", "", "", "s3cret88,", "", "", ""]
    key = receipt.person.home / ".local/share/colab-local-rdp/rdp.key"
    assert "PRIVATE KEY" in key.read_text() and key.stat().st_mode & 0o777 == 0o600
    assert "s3cret88" not in receipt.path.read_text()


def test_before_47_the_password_goes_to_the_keyring_on_standard_input(
    tmp_path: Path, receipt: plan.Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is the one that the real grdctl 43.3 of Debian 12 read (tried there)."""
    stand_in(tmp_path / "bin", "secret-tool", f'printf "%s|" "$@" >"{tmp_path}/log"; cat >>"{tmp_path}/log"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert not keyring.asks("    set-credentials <username> <password>    - Set username and password")
    keyring.store(receipt.person, keyring.RDP, False, "it's\\8")
    told, _, fed = (tmp_path / "log").read_text().rpartition("|")
    assert told.endswith("xdg:schema|org.gnome.RemoteDesktop.RdpCredentials")
    assert fed == f"{{'username': <'{receipt.person.name}'>, 'password': <'it\\'s\\\\8'>}}"


def test_without_a_keyring_that_is_what_is_said(
    tmp_path: Path, receipt: plan.Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What grdctl 48.1 says where the log-in was automatic."""
    said = "Object does not exist at path \u201c/org/freedesktop/secrets/collection/login\u201d"
    stand_in(tmp_path / "bin", "grdctl", f'echo "{said}" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(Failure, match="has no log-in keyring") as refusal:
        keyring.store(receipt.person, keyring.RDP, True, "s3cret88")
    assert "log in at the screen with your password" in refusal.value.hint


def test_rdp_may_take_a_moment_to_listen_but_never_without_the_rule(
    receipt: plan.Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, me = [True], receipt.person
    monkeypatch.setattr(rdp, "firewall_is_up", lambda protocol: rule[0])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        here = dataclasses.replace(keyring.RDP, ports=range(server.getsockname()[1], 65536))
        threading.Timer(0.5, server.listen).start()
        with pytest.raises(look.Problem, match="gnome-remote-desktop-daemon does not listen"):
            rdp.check(me, here, 1, 0)  # this program does
        monkeypatch.setattr(rdp, "DAEMON", next(p.name for p in proc.processes(me.uid) if p.pid == os.getpid()))
        assert "the firewall lets nothing but loopback reach it" in rdp.check(me, here, 10, 0.3)[0]
        rule[0] = False
        with pytest.raises(look.Problem, match="the firewall rule is not there"):
            rdp.check(me, here, 10, 0.3)


def test_rdp_that_does_not_come_up_is_switched_off_again(
    gnome: Path, receipt: plan.Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdp, "firewall_is_up", lambda protocol: True)
    steps = [step for step in rdp.plan(receipt, keyring.RDP, "s3cret88", False) if isinstance(step, rdp.Share)]
    facts = {"port": 3389, "how": "rdp"}
    kind = desktop.Kind(
        steps,
        lambda done: rdp.check(receipt.person, keyring.RDP, 0.5),
        lambda: rdp.disable(receipt),
        facts,
        ran=False,
    )
    with pytest.raises(
        Failure, match="stopped and disabled: gnome-remote-desktop-daemon does not listen on port 3389"
    ):
        desktop.carry_out("mirror", kind, receipt)
    assert [line.partition("stdin=")[0] for line in gnome.read_text().splitlines()][-3:] == [
        "systemctl|--user|enable|--now|gnome-remote-desktop.service|",
        "systemctl|--user|disable|--now|gnome-remote-desktop.service|",
        "grdctl|rdp|disable|",
    ]


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError("no /proc"), Failure("no", "")])
def test_what_is_unchecked_is_stopped_and_what_ran_before_is_not(
    receipt: plan.Receipt, end: BaseException, ran: bool
) -> None:
    def ended(_: object) -> list[str]:
        raise end

    stopped: list[bool] = []
    kind = desktop.Kind([], ended, lambda: stopped.append(True), {"port": 5901}, ran)
    with pytest.raises(type(end)):
        desktop.carry_out("virtual", kind, receipt)
    assert bool(stopped) != ran


def test_a_failed_step_does_not_switch_off_what_was_not_switched_on_here(gnome: Path, receipt: plan.Receipt) -> None:
    rdp.disable(receipt)
    assert not gnome.exists()


def test_rdp_is_not_touched_when_its_firewall_rule_is_gone(
    gnome: Path, receipt: plan.Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdp, "firewall_is_up", lambda protocol: False)
    with pytest.raises(Failure, match="RDP stays off"):
        rdp.Share(receipt, keyring.RDP, "s3cret88", False).apply()
    assert not gnome.exists()


# --- VNC on Wayland ---------------------------------------------------------------------------------------

# The real grdctl 42.9, built with VNC in Debian 12, as it was seen: it takes the password as an argument alone, exits
# with 1 and these words otherwise, and writes GNOME's settings. $1 folder of the log and of the settings.
GRDCTL_42 = """
import json, sys
from pathlib import Path
folder, words = Path(sys.argv[1]), sys.argv[2:]
if words == ["--help"]:
    print("  rdp                                        - RDP subcommands:")
    print("    set-credentials <username> <password>    - Set username and password")
    print("  vnc                                        - VNC subcommands:")
    print("    set-password <password>                  - Set the VNC password")
    raise SystemExit
if words == ["vnc", "set-password"]:
    sys.exit("Wrong number of arguments for subcommand 'set-password'")
print("grdctl", *words, file=(folder / "log").open("a"))
keys = {
    "enable": ("enable", "true"),
    "disable": ("enable", "false"),
    "set-auth-method": ("auth-method", repr(words[-1])),
    "disable-view-only": ("view-only", "false"),
}
if words[1] == "clear-password":
    (folder / "entry").unlink()
    raise SystemExit
if words[1] not in keys:
    sys.exit(f"Unknown subcommand '{words[1]}'")
has = json.loads((folder / "settings").read_text())
has[keys[words[1]][0]] = keys[words[1]][1]
(folder / "settings").write_text(json.dumps(has))
"""
GSETTINGS = """
import json, sys
from pathlib import Path
file, words = Path(sys.argv[1]) / "settings", sys.argv[2:]
has = json.loads(file.read_text())
if not words[1].endswith(".vnc"):
    raise SystemExit
if words[0] == "list-recursively":
    print(*(f"{words[1]} {key} {value}" for key, value in has.items()), sep="\\n")
else:
    file.write_text(json.dumps({**has, words[2]: words[3]}))
"""


@pytest.fixture
def gnome42(receipt: plan.Receipt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GNOME that speaks VNC, at least in its settings and keyring; returns the folder of both and of the log."""
    bin_ = tmp_path / "bin"
    for name, text in (("grdctl", GRDCTL_42), ("gsettings", GSETTINGS)):
        (tmp_path / f"{name}.py").write_text(text)
        stand_in(bin_, name, f'exec /usr/bin/python3 "{tmp_path}/{name}.py" "{tmp_path}" "$@"')
    stand_in(bin_, "secret-tool", f'printf "%s|" "$@" >"{tmp_path}/entry"; cat >>"{tmp_path}/entry"')
    # SearchItems answers with two lists of paths: what is unlocked, what is locked.
    found = f'[ ! -e "{tmp_path}/entry" ] || echo \'aoao 1 "/org/freedesktop/secrets/collection/login/1" 0\''
    stand_in(
        bin_, "busctl", f'case "$*" in *VncPassword) {found} ;; *SearchItems*) echo "aoao 0 0" ;; *) exit 1; esac'
    )
    stand_in(bin_, "systemctl", f'echo systemctl "$@" >>"{tmp_path}/log"; [ "$2" != is-active ]')
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    monkeypatch.setattr(rdp, "firewall_is_up", lambda protocol: True)
    return tmp_path


@pytest.mark.parametrize(
    ("more", "made"),
    [
        ({}, {}),
        # What some distributions added (gnome-remote-desktop's branch wip/tls); 42.9 itself has none.
        ({"encryption": "['tls-anon']"}, {"encryption": "['none']"}),
        ({"port": "uint16 5905"}, {"port": "5900"}),  # 48.1 can have another
        ({"port": "uint16 5900"}, {"port": "uint16 5900"}),
    ],
)
def test_vnc_is_set_up_and_taken_back(
    gnome42: Path, receipt: plan.Receipt, more: dict[str, str], made: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"auth-method": "'prompt'", "enable": "false", "view-only": "true", **more}
    (gnome42 / "settings").write_text(json.dumps(before))
    rdp.Share(receipt, keyring.VNC, "s3cret88", False).apply()
    assert (gnome42 / "log").read_text().splitlines() == [
        "grdctl vnc set-auth-method password",
        "grdctl vnc disable-view-only",
        "grdctl vnc enable",
        "systemctl --user enable --now gnome-remote-desktop.service",
    ]
    assert json.loads((gnome42 / "settings").read_text()) == {
        **{"auth-method": "'password'", "enable": "true", "view-only": "false"},
        **made,
    }
    assert (gnome42 / "entry").read_text().endswith("|xdg:schema|org.gnome.RemoteDesktop.VncPassword|s3cret88")
    assert "s3cret88" not in receipt.path.read_text()
    assert rdp.protocol_of(receipt) is keyring.VNC and rdp.choose(receipt, "") is keyring.VNC

    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(rdp.Unshare, "_firewall_off", lambda self: None)
    plan.carry_out(rdp.undo(receipt))
    assert json.loads((gnome42 / "settings").read_text()) == before
    assert not (gnome42 / "entry").exists() and not receipt.path.exists()


def test_what_is_shared_over_rdp_is_not_shared_over_vnc_too(receipt: plan.Receipt) -> None:
    assert rdp.choose(receipt, "gnome") is keyring.VNC and rdp.choose(receipt, "") is keyring.RDP
    receipt.note(rdp=True)
    assert rdp.choose(receipt, "") is keyring.RDP
    with pytest.raises(Failure, match="over RDP already") as refusal:
        rdp.choose(receipt, "gnome")
    assert "--uninstall" in refusal.value.hint


def test_the_service_is_not_started_where_it_would_open_something_else(gnome42: Path, receipt: plan.Receipt) -> None:
    (gnome42 / "settings").write_text('{"enable": "true"}')
    with pytest.raises(Failure, match="VNC switched on in GNOME, and it would be open") as refusal:
        rdp.Share(receipt, keyring.RDP, "s3cret88", False).demand()
    assert "grdctl vnc disable" in refusal.value.hint


def test_a_port_that_another_program_has_is_named(gnome42: Path, receipt: plan.Receipt) -> None:
    (gnome42 / "settings").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = dataclasses.replace(keyring.VNC, ports=range(port, 65536))
        with pytest.raises(Failure, match=f"port {port} is taken"):
            rdp.Share(receipt, taken, "s3cret88", False).demand()


def test_what_was_installed_without_vnc_is_named(gnome42: Path, receipt: plan.Receipt) -> None:
    (gnome42 / "settings").write_text("{}")
    (gnome42 / "grdctl.py").write_text('print("  rdp  - RDP subcommands:")')  # as Debian 12's 43.3
    with pytest.raises(Failure, match="was built without VNC"):
        rdp.Share(receipt, keyring.VNC, "s3cret88", False).apply()
    assert not receipt.exists


def test_a_server_that_serves_one_at_a_time_is_asked_again() -> None:
    """gnome-remote-desktop 42.9 closes a connection that comes before it has seen the end of the last (seen)."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            server.accept()[0].close()
            stream = server.accept()[0]
            stream.sendall(b"RFB 003.008\n")
            stream.recv(12)
            stream.sendall(b"\x01\x02")
            stream.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        offered = look._patiently(lambda: rfb.offer(server.getsockname()[1]))
    assert offered.types == [rfb.VNC_AUTH]
