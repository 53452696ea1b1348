"""The plan: steps that can say what they would change, shown by --dry-run and carried out by the same objects.

The receipt (<home>/receipts/desktop.json) holds what was made, so that --uninstall removes that and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import stat
import time
from pathlib import Path
from typing import Any, Sequence

from colab_local.base import documents
from colab_local.base.errors import EXIT_INTEGRITY, Failure
from colab_local.base.files import write_atomically
from colab_local.base.terminal import Screen

from . import files
from .person import Person

SECRET = "(secret, not shown)"  # noqa: S105 - what is printed instead of one
# All that a desktop ever makes in a home folder. A receipt that names anything else is not obeyed.
FILES = (
    ".vnc/passwd",
    ".vnc/vino-loopback",
    ".vnc/vnc-mirror",
    ".vnc/vnc-session",
    ".vnc/vnc-session.conf",
    ".vnc/xstartup",
    ".config/autostart/vino-server.desktop",
    ".config/autostart/vnc-mirror.desktop",
    ".config/systemd/user/vnc-desktop@.service",
    ".local/share/colab-local-rdp/rdp.crt",
    ".local/share/colab-local-rdp/rdp.key",
)
PRIVATE = (".vnc", ".config/dconf")
BACKUP = re.compile(r"\.orig-\d{8}T\d{6}(-\d+)?")
SHAPE = {
    "desktops": [
        {
            "user": str,
            "kind": "virtual|mirror",
            "files": {
                "*": {"sha256": "[0-9a-f]{64}", "mode?": int, "backup?": str, "theirs?": bool, "theirs_mode?": int}
            },
            "folders": [str],
            "modes": {"*": int},
            "created?": str,
            "display?": int,
            "port?": int,
            "listen?": "port|socket",
            "screen?": r":\d{1,5}",
            "how?": r"[\w-]+",
            "unit?": r"(vnc-desktop@\d+\.service)?",
            "rdp_files?": [str],
        }
    ]
}


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def receipt_path(home: Path) -> Path:
    """Return where the receipt of all desktops lies."""
    return home / "receipts" / "desktop.json"


def damaged(path: Path, why: str) -> Failure:
    """Return the failure of a receipt that can't be followed."""
    hint = f"mv {shlex.quote(str(path))} {shlex.quote(str(path))}.damaged"
    return Failure(f"the receipt {path} is damaged ({why})", hint, EXIT_INTEGRITY)


def entries(path: Path) -> list[dict[str, Any]]:
    """Return what a receipt lists; nothing if there is none.

    Raises:
        Failure: it is damaged, or no file but a link or a pipe.
    """
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        return list(documents.read(path, SHAPE)["desktops"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as problem:
        raise damaged(path, str(problem)) from None


def not_ours(entry: dict[str, Any], home: Path) -> str:
    """Return the first path in a receipt's entry that no desktop in this home folder makes, "" for none."""
    names, private = ({f"{home}/{name}" for name in those} for those in (FILES, PRIVATE))
    folders = {str(folder) for name in names | private for folder in Path(name).parents if home in folder.parents}
    folders |= private
    wrong = [name for name in [*entry["files"], *entry.get("rdp_files", [])] if name not in names]
    for name, made in entry["files"].items():
        backup = str(made.get("backup", name))
        tail = backup[len(name) :] if backup.startswith(name) else "/"
        wrong += [backup] if tail and not BACKUP.fullmatch(tail) else []
    wrong += [name for name in entry["folders"] if name not in folders]
    wrong += [name for name in entry["modes"] if name not in private]
    return str(wrong[0]) if wrong else ""


class Receipt:
    """What this program made for one user's desktop of one kind ("virtual" or "mirror").

    entry: the JSON object: user, kind, display, port, files, folders, modes, and what the kind adds.
    """

    def __init__(self, home: Path, person: Person, kind: str, screen: Screen) -> None:
        self.screen = screen
        self.path = receipt_path(home)
        self.person = person
        self.kind = kind
        self.entry: dict[str, Any] = next(
            (e for e in self._all() if e["user"] == person.name and e["kind"] == kind),
            {"user": person.name, "kind": kind, "files": {}, "folders": [], "modes": {}},
        )
        other = not_ours(self.entry, person.home)
        if other:
            raise damaged(self.path, f"{other} is nothing that a desktop of {person.name} makes")

    def _all(self) -> list[dict[str, Any]]:
        with self.person.acting_below_home(self.path):
            with contextlib.suppress(OSError):
                status = self.path.lstat()
                mine = status.st_uid in (0, self.person.uid) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if not mine:  # root, or this user, would remove what another user says is this one's
                    what = f"{self.path} lists desktops, but another user owns it or can write to it"
                    raise Failure(what, f"ls -l {shlex.quote(str(self.path))}", EXIT_INTEGRITY)
            return entries(self.path)

    def others(self) -> list[dict[str, Any]]:
        """Return the entries of other users and kinds."""
        return [e for e in self._all() if (e["user"], e["kind"]) != (self.person.name, self.kind)]

    def _store(self, entries: Sequence[dict[str, Any]]) -> None:
        with self.person.acting_below_home(self.path):
            if not entries:
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()
                return
            text = json.dumps({"schema": 1, "desktops": entries}, indent=1) + "\n"
            write_atomically(self.path, text, 0o600)

    def save(self) -> None:
        """Write it down. Called before each change, so that an interrupted run can be undone, too."""
        self.entry.setdefault("created", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self._store([*self.others(), self.entry])

    def forget(self) -> None:
        """Drop this entry: everything it lists is gone."""
        self._store(self.others())

    def note(self, **values: Any) -> None:
        """Add `values` to the entry and save it, if that changes anything."""
        if any(self.entry.get(k) != v for k, v in values.items()):
            self.entry.update(values)
            self.save()

    @property
    def exists(self) -> bool:
        """Whether an earlier run left this entry."""
        return "created" in self.entry


class Step:
    """One change. title: what it does, for the user."""

    title = ""

    def difference(self) -> str | None:
        """Return what would change, as text to show ("" when the title says it all); None if nothing would."""
        raise NotImplementedError

    def demand(self) -> None:
        """Raise Failure if `apply` cannot work here; called for all steps before the first is applied."""

    def apply(self) -> None:
        """Make the change. Only called when `difference` is not None."""
        raise NotImplementedError


class File(Step):
    """A file of ours in the user's home folder; what the user has there is copied beside it first."""

    def __init__(self, receipt: Receipt, path: Path, content: bytes, mode: int) -> None:
        assert path.relative_to(receipt.person.home).as_posix() in FILES, "--uninstall would not remove it"
        self.receipt, self.path, self.content, self.mode = receipt, path, content, mode
        self.title = f"write {path} (mode {mode:04o})"

    def _found(self) -> files.Found | None:
        with self.receipt.person.acting():
            return files.look(self.receipt.person, self.path)

    def _is_users(self, found: files.Found) -> bool:
        """Whether the file holds something that we did not write."""
        made = self.receipt.entry["files"].get(str(self.path))
        return found.content != self.content and (made is None or made["sha256"] != digest(found.content))

    def difference(self) -> str | None:
        found = self._found()
        if found is None and not self.receipt.screen.verbose:
            return f"new file, {len(self.content.splitlines())} lines: -v shows them"
        if found is None:
            return files.difference(None, self.content, str(self.path))
        notes = []
        if found.mode != self.mode:
            notes.append(f"mode {found.mode:04o} -> {self.mode:04o}")
        if found.content != self.content:
            if self._is_users(found):
                notes.append(f"your own {self.path.name} is kept beside it as {self.path.name}.orig-<time>")
            notes.append(files.difference(found.content, self.content, str(self.path)))
        return "\n".join(notes) if notes else None

    def apply(self) -> None:
        person = self.receipt.person
        found = self._found()
        made = dict(self.receipt.entry["files"].get(str(self.path), {}))
        for missing in files.missing_folders(person, self.path.parent):
            if str(missing) not in self.receipt.entry["folders"]:
                self.receipt.entry["folders"].append(str(missing))
        if found and self._is_users(found):
            with person.acting():
                backup = files.keep(person, self.path)
            self.receipt.screen.say(f"kept your {self.path.name} as {backup}")
            # The first copy is what was there before us; a later one is kept, too, but not put back.
            made.setdefault("backup", str(backup))
        elif found and not made:
            # The very same bytes were there before us: they stay when we go, with the mode they had.
            made.update(theirs=True, theirs_mode=found.mode)
        made.update(sha256=digest(self.content), mode=self.mode)
        self.receipt.entry["files"][str(self.path)] = made
        self.receipt.save()
        with person.acting():
            files.write(person, self.path, self.content, self.mode)


class Private(Step):
    """A folder of the user with mode 0700."""

    def __init__(self, receipt: Receipt, path: Path) -> None:
        assert path.relative_to(receipt.person.home).as_posix() in PRIVATE, "--uninstall would not put it back"
        self.receipt, self.path = receipt, path
        self.title = f"make {path} private (mode 0700)"

    def _mode(self) -> int | None:
        person = self.receipt.person
        try:
            with person.acting(), files.folder(person, self.path) as fd:
                return os.fstat(fd).st_mode & 0o7777
        except FileNotFoundError:
            return None

    def difference(self) -> str | None:
        mode = self._mode()
        if mode is None:
            return "new folder"
        return f"mode {mode:04o} -> 0700" if mode != 0o700 else None

    def apply(self) -> None:
        person, mode = self.receipt.person, self._mode()
        if mode is None:
            for missing in files.missing_folders(person, self.path):
                self.receipt.entry["folders"].append(str(missing))
        else:
            self.receipt.entry["modes"].setdefault(str(self.path), mode)
        self.receipt.save()
        with person.acting(), files.folder(person, self.path, make=True) as fd:
            os.fchmod(fd, 0o700)


class PutBack(Step):
    """Undo one `File`: the user's copy comes back, and what the user has changed since stays."""

    def __init__(self, receipt: Receipt, path: Path) -> None:
        self.receipt, self.path = receipt, path
        self.made = receipt.entry["files"][str(path)]
        self.backup = Path(self.made["backup"]) if "backup" in self.made else None
        self.title = f"put your {path} back" if self.backup else f"remove {path}"

    def _state(self) -> str:
        """Return what is there: "ours", "gone", "changed" by the user, "shared" with another desktop of theirs."""
        person = self.receipt.person
        if any(str(self.path) in e["files"] for e in self.receipt.others() if e["user"] == person.name):
            return "shared"
        with person.acting():
            found = files.look(person, self.path)
        if found is None:
            return "gone"
        return "ours" if digest(found.content) == self.made["sha256"] else "changed"

    def difference(self) -> str | None:
        state = self._state()
        if state == "shared" or (state == "gone" and not self.backup):
            return None
        if state == "changed":
            return "you have changed it since: it stays" + (f", and {self.backup} too" if self.backup else "")
        return ""

    def apply(self) -> None:
        person, state = self.receipt.person, self._state()
        with person.acting():
            kept = files.look(person, self.backup) if self.backup else None
            if state == "changed":
                found = files.look(person, self.path)
                if kept and found and kept.content == found.content and self.backup:
                    files.remove(person, self.backup)
                    return
                self.receipt.screen.say(f"left {self.path}: you have changed it since")
            elif kept and self.backup:
                files.restore(person, self.backup, self.path)
            elif self.made.get("theirs"):
                with files.folder(person, self.path.parent) as fd:
                    os.chmod(self.path.name, self.made["theirs_mode"], dir_fd=fd)
            else:
                files.remove(person, self.path)


class Tidy(Step):
    """After the files: remove what the desktop left in our folders, then the folders we made if they are empty."""

    def __init__(self, receipt: Receipt, leftovers: Sequence[Path] = ()) -> None:
        self.receipt, self.leftovers = receipt, leftovers
        self.title = "remove the folders that were made, where empty, and the desktop's receipt"

    def difference(self) -> str | None:
        return ""

    def apply(self) -> None:
        person, entry = self.receipt.person, self.receipt.entry
        with person.acting():
            for leftover in self.leftovers:
                files.remove(person, leftover)
            for made in sorted(entry["folders"], key=len, reverse=True):
                with contextlib.suppress(Failure):
                    files.remove_folder(person, Path(made))
            alone = not any(e["user"] == entry["user"] for e in self.receipt.others())
            for path, mode in entry["modes"].items() if alone else ():
                with contextlib.suppress(FileNotFoundError), files.folder(person, Path(path)) as fd:
                    os.fchmod(fd, mode)
        self._hand_over()
        self.receipt.forget()

    def _hand_over(self) -> None:
        """Hand folders that are still needed to the user's other desktop, which will then remove them."""
        entry, others = self.receipt.entry, self.receipt.others()
        for other in others:
            if other["user"] == entry["user"]:
                other["folders"] += [f for f in entry["folders"] if f not in other["folders"]]
                other["modes"] = {**entry["modes"], **other["modes"]}
        self.receipt._store([*others, entry])


def pending(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that would change something."""
    return [step for step in steps if step.difference() is not None]


def show(steps: Sequence[Step], screen: Screen, details: bool) -> None:
    """Print the plan, with each file's difference if `details`."""
    for step in steps:
        screen.say(f"  - {step.title}")
        text = step.difference() if details else None
        for line in (text or "").splitlines():
            screen.say(f"      {line}")


def carry_out(steps: Sequence[Step]) -> list[Step]:
    """Apply what is still to be done, in order; return what was done."""
    done = []
    for step in steps:
        if step.difference() is not None:
            step.apply()
            done.append(step)
    return done
