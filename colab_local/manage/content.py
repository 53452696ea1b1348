"""`--content`: /content, where Colab's notebooks write, as a link to the folder with the notebooks.

Made only when it is asked for, and only where nothing is: a folder /content that is there already is somebody's.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.terminal import Screen

PLACE = Path("/content")


def command_for(target: Path, place: Path = PLACE) -> str:
    """Return the command that makes the link by hand, as root."""
    return f"sudo ln -s {shlex.quote(str(target))} {shlex.quote(str(place))}"


def make_link(target: Path, dry_run: bool, screen: Screen, place: Path = PLACE) -> None:
    """Make `place` a link to the folder `target`, and say so; nothing is done where it is one already.

    Raises Failure where something else is there, or where this user may not make it: then the hint is the command
    that root types.
    """
    target = target.resolve()
    if place.is_symlink() and Path(os.path.realpath(str(place))) == target:
        screen.say(f"Nothing to do: {place} is a link to {target}")
        return
    if place.is_symlink() or place.exists():
        kind = f"a link to {os.readlink(str(place))}" if place.is_symlink() else "a folder or file of its own"
        raise Failure(f"{place} is there already, {kind}: it is left as it is", f"ls -ld {place}", EXIT_MACHINE)
    if not target.is_dir():
        raise Failure(f"there is no folder {target} for {place} to lead to", f"mkdir -p {shlex.quote(str(target))}")
    if dry_run:
        screen.say(f"Would make {place} a link to {target}")
        return
    try:
        place.symlink_to(target, target_is_directory=True)
    except OSError as problem:
        what = f"can't make {place} ({problem.strerror}): only root may, on this machine"
        raise Failure(what, command_for(target, place), EXIT_MACHINE) from None
    screen.say(f"Made {place}, a link to {target}. To remove the link, not the folder:")
    screen.say(f"rm {place}")
