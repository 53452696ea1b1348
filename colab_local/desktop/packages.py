"""Which Debian/Ubuntu packages a desktop still needs; asks apt at run time, since releases differ."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterable, Sequence

from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.terminal import Screen

from .person import system_path
from .plan import Step

# What it is recognised by (a program of the system, a file where it begins with "/", see `here` for the others) ->
# packages in order of preference. tigervnc-tools is called tigervnc-common in older releases. Much is only
# Recommended by what needs it, and recommended packages are not installed, so it is named here.
NEEDS: dict[str, tuple[str, ...]] = {
    "Xtigervnc": ("tigervnc-standalone-server",),
    "Xtightvnc": ("tightvncserver",),
    "vncpasswd": ("tigervnc-tools", "tigervnc-common"),
    "tightvncpasswd": ("tightvncpasswd", "tightvncserver"),
    "autocutsel": ("autocutsel",),
    "xauth": ("xauth",),
    "xset": ("x11-xserver-utils",),
    "dbus-run-session": ("dbus", "dbus-daemon"),
    "dbus-update-activation-environment": ("dbus-bin", "dbus"),
    # The bus of the user: snap programs and podman reach systemd through it.
    "/usr/lib/systemd/user/dbus.socket": ("dbus-user-session",),
    # Without it Xtightvnc dies of "could not open default font 'fixed'"; it is only a Recommends.
    "/usr/share/fonts/X11/misc/fonts.dir": ("xfonts-base",),
    # What makes a desktop one that can be used: letters (of Japanese, Chinese and Korean, too), icons, a wallpaper, a
    # browser. Seen on bare releases: without them the panel's icons are broken and the screen is black.
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf": ("fonts-dejavu-core",),
    "font:ja": ("fonts-noto-cjk", "fonts-vlgothic", "fonts-ipafont-gothic", "fonts-droid-fallback"),
    "/usr/lib/*/gdk-pixbuf-2.0/*/loaders/libpixbufloader*svg.so": ("librsvg2-common",),
    "/usr/share/icons/Adwaita/index.theme": ("adwaita-icon-theme",),
    # Icons in colour: Adwaita's grey ones cannot be seen on a dark panel. Xfce asks for these by name; elsewhere
    # xsettingsd says so to the programs.
    "/usr/share/icons/Tango/index.theme": ("tango-icon-theme",),
    "xsettingsd": ("xsettingsd",),
    "/etc/alternatives/desktop-background": ("desktop-base",),
    "browser": ("firefox-esr", "firefox", "chromium", "epiphany-browser"),
    "xdg-open": ("xdg-utils",),
    # What Debian's Xfce calls when a browser is asked for: without it the globe of the dock gives an I/O error.
    "sensible-browser": ("sensible-utils",),
    "xfce4-session": ("xfce4-session",),
    "xfwm4": ("xfwm4",),
    "xfce4-panel": ("xfce4-panel",),
    "xfdesktop": ("xfdesktop4",),
    "xfsettingsd": ("xfce4-settings",),
    "xfce4-terminal": ("xfce4-terminal",),
    "xfce4-appfinder": ("xfce4-appfinder",),
    "thunar": ("thunar",),
    "exo-open": ("exo-utils",),
    "openbox": ("openbox",),
    "x-terminal-emulator": ("xterm",),
    "lxpanel": ("lxpanel",),
    "lxterminal": ("lxterminal",),
    "pcmanfm": ("pcmanfm",),
    "/etc/xdg/lxpanel/LXDE/panels/panel": ("lxde-common",),
    "gnome-panel": ("gnome-panel",),
    "metacity": ("metacity",),
    "gnome-terminal": ("gnome-terminal",),
    "/etc/xdg/pcmanfm/LXDE/pcmanfm.conf": ("lxde-common",),
    "/usr/lib/vino/vino-server": ("vino",),
    "x0tigervncserver": ("tigervnc-scraping-server",),
    "x11vnc": ("x11vnc",),
    "dconf": ("dconf-cli",),
    "gsettings": ("libglib2.0-bin",),
    "openssl": ("openssl",),
    "grdctl": ("gnome-remote-desktop",),
    "secret-tool": ("libsecret-tools",),
}
WHOLE = (
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "font:ja",
    "/usr/lib/*/gdk-pixbuf-2.0/*/loaders/libpixbufloader*svg.so",
    "/usr/share/icons/Adwaita/index.theme",
    "/usr/share/icons/Tango/index.theme",
    "/etc/alternatives/desktop-background",
    "browser",
    "xdg-open",
    "sensible-browser",
)
SESSIONS: dict[str, tuple[str, ...]] = {
    "xfce": (
        *("xfce4-session", "xfwm4", "xfce4-panel", "xfdesktop", "xfsettingsd", "xfce4-terminal"),
        *("thunar", "xfce4-appfinder", "exo-open", *WHOLE),
    ),
    "lxde": (
        *("lxpanel", "openbox", "lxterminal", "pcmanfm", "/etc/xdg/lxpanel/LXDE/panels/panel", "xsettingsd", *WHOLE),
    ),
    # Its own file manager, nautilus, aborts on TightVNC; pcmanfm paints the wallpaper, too.
    "gnome-flashback": (
        *("gnome-panel", "metacity", "gnome-terminal", "pcmanfm", "/etc/xdg/pcmanfm/LXDE/pcmanfm.conf", "xsettingsd"),
        *WHOLE,
    ),
    # The smallest: windows and a terminal.
    "openbox": ("openbox", "x-terminal-emulator"),
}
BROWSERS = (
    *("firefox-esr", "firefox", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    *("epiphany-browser", "epiphany", "brave-browser", "microsoft-edge", "falkon", "midori"),
)


def program(name: str) -> str | None:
    """Return where a program of the system is; one that a conda environment has on PATH does not count."""
    return shutil.which(name, path=system_path())


def starts(path: Path, snaps: Path = Path("/snap/bin")) -> bool:
    """Say whether a browser can be more than a notice: Ubuntu's packages hold a script that asks for the snap."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return False
    return (
        not (head.startswith(b"#!") and b"/snap/bin/" in head) or (snaps / path.name.replace("-browser", "")).exists()
    )


def browser() -> str | None:
    """Return the name of a browser that starts here, or None."""
    found = ((name, program(name) or f"/snap/bin/{name}") for name in BROWSERS)
    return next((name for name, path in found if Path(path).exists() and starts(Path(path))), None)


def _has_font(language: str) -> bool:
    listed = _apt("fc-list", f":lang={language}", "family")
    return bool(listed.strip())


def here(need: str) -> bool:
    """Say whether a need is met on this machine."""
    if need.startswith("/"):
        # The fonts' folder may be listed elsewhere, but vino moved between releases.
        if need.endswith("vino-server") and Path("/usr/libexec/vino-server").exists():
            return True
        return any(Path("/").glob(need.lstrip("/")))
    if need in ("vncpasswd", "tightvncpasswd"):
        return any(program(p) for p in ("tigervncpasswd", "tightvncpasswd", "vncpasswd"))
    if need == "browser":
        return browser() is not None
    if need.startswith("font:"):
        return _has_font(need.partition(":")[2])
    return program(need) is not None


def _apt(*words: str) -> str:
    try:
        # fc-list would make a cache in the user's home, and a dry run makes nothing.
        env = {
            **os.environ,
            "LC_ALL": "C",
            "PATH": system_path(),
            "HOME": "/nonexistent",
            "XDG_CACHE_HOME": "/nonexistent",
        }
        return subprocess.run(
            list(words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=env, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def candidates(names: Iterable[str]) -> set[str]:
    """Return which of these packages apt could install now."""
    found, name = set(), ""
    for line in _apt("apt-cache", "policy", *names).splitlines():
        if not line.startswith(" "):
            name = line.rstrip(":")
        elif line.strip().startswith("Candidate:") and "(none)" not in line and "snap" not in line:
            found.add(name)  # Ubuntu's 1:1snap1-0ubuntu2 is a script that asks for the snap
    return found


def candidate(package: str) -> bool:
    """Say whether apt could install a package now."""
    return package in candidates([package])


def available(need: str) -> bool:
    """Say whether a need is met or could be met by apt."""
    return here(need) or any(candidate(p) for p in NEEDS[need])


def package_for(need: str) -> str:
    """Return the package to install for a need: the first that apt has, else the usual name."""
    names = NEEDS[need]
    return next((p for p in names if candidate(p)), names[0]) if len(names) > 1 else names[0]


def missing(needs: Sequence[str]) -> list[str]:
    """Return the packages to install for what is not here, each once, in order."""
    return list(dict.fromkeys(package_for(n) for n in needs if not here(n)))


class Install(Step):
    """Install the missing packages with apt-get, without what they merely recommend."""

    def __init__(self, needs: Sequence[str], screen: Screen) -> None:
        self.needs, self.screen = needs, screen
        self.names = missing(needs)
        self.title = f"install system packages: {' '.join(self.names)}"

    def difference(self) -> str | None:
        return None if all(here(n) for n in self.needs) else self.command(os.getuid() == 0)

    def command(self, as_root: bool) -> str:
        """Return the one command to paste."""
        return ("" if as_root else "sudo ") + "apt-get install -y --no-install-recommends " + " ".join(self.names)

    def demand(self) -> None:
        """Refuse to go on while something is missing.

        Raises:
            Failure: names the packages and the one command.
        """
        if self.difference() is None:
            return
        if not program("apt-get"):
            lacking = ", ".join(n for n in self.needs if not here(n))
            raise Failure(
                f"programs are missing (found no {lacking})",
                f"install what your distribution calls these Debian packages: {' '.join(self.names)}",
                EXIT_MACHINE,
            )
        raise Failure(
            f"system packages are missing (need {' '.join(self.names)})",
            self.command(os.getuid() == 0) + "   # or add --install-packages",
            EXIT_MACHINE,
        )

    def apply(self) -> None:
        if not program("apt-get"):
            self.demand()
        prefix: list[str] = []
        if os.getuid() != 0:
            # sudo may ask on the terminal; without one it must fail instead of waiting for ever.
            prefix = ["sudo"] if sys.stderr.isatty() else ["sudo", "-n"]
        prefix += ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        lists_are_old = not all(candidate(n) for n in self.names)
        commands = [[*prefix, "update"]] if lists_are_old else []
        commands.append([*prefix, "install", "-y", "--no-install-recommends", *self.names])
        for argv in commands:
            self.screen.report("running: " + " ".join(argv))
            try:
                code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode
            except FileNotFoundError:
                raise Failure("sudo is not installed", self.command(True) + "   # as root") from None
            if code:
                what = " ".join(word for word in argv if word != "-n")  # this one may ask for a password
                raise Failure(f"apt-get failed with code {code}: see above", what)
        if self.difference() is not None:
            lacking = ", ".join(n for n in self.needs if not here(n))
            raise Failure("apt-get succeeded, but something is still missing", f"install what brings {lacking}")
