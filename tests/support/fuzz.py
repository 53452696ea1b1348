"""Damaged files and answers for every reader: a reader returns, or raises what it documents; nothing else, and soon.

python -m tests.support.faults fuzz 1000000
"""

from __future__ import annotations

import atexit
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colab_local.base import documents, downloads, programs, text
from colab_local.base.errors import Failure
from colab_local.base.network import parse_listeners
from colab_local.desktop import plan
from colab_local.install import home, lockfiles, offline, records, requirements, seal, sources
from colab_local.install.servers import DESCRIPTION_SHAPE
from colab_local.laptop import colab_page, installing
from colab_local.manage import service
from tests.support.faults import Tally

FOLDER = Path(tempfile.mkdtemp(prefix="colab-local-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
NAME = "cpu-0123456789ab"
RECEIPT = {
    "name": NAME,
    "env": "cpu",
    "platform": "linux-64",
    "engine": "host",
    "layer": "host-3.13",
    "python": "3.13.1",
    "lock": {"digest": "0" * 64, "files": {"pypi.txt": "0" * 64}, "jupyter": {"a": "0" * 64}},
    "port": 8888,
    "notebook_dir": "/home/u",
    "home": str(FOLDER),
    "seal": {"bin/python": "-> /usr/bin/python3"},
}
SERVER = {"pid": 1, "port": 8888, "token": "t", "base_url": "/", "hostname": "localhost", "notebook_dir": "/"}
TABLE = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 0100007F:22B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1\n"
)
EXPLICIT = f"@EXPLICIT\nhttps://c.example/conda-forge/linux-64/zlib-1.3-h1.conda#sha256:{'a' * 64}\n"
PYPI = (
    f"six==1.17.0 ; python_version >= '3.11' \\\n    --hash=sha256:{'b' * 64}\nuv==0.12.1 --hash=sha256:{'c' * 64}\n"
)
SAID = "error: Failed to install: x\n  cause: b\n  × a\n  ├─▶ No space left on device (os error 28)\n"  # noqa: RUF001
LAUNCHER = "#!/p/bin/python\nfrom a.b import c\nsys.exit(c())\n"
LATER = "Fri, 31 Dec 1999 23:59:59 GMT"
DESKTOP = {
    "user": "u",
    "kind": "virtual",
    "folders": [f"{FOLDER}/.vnc"],
    "modes": {f"{FOLDER}/.vnc": 0o755},
    "display": 1,
}
DESKTOP["files"] = {f"{FOLDER}/.vnc/xstartup": {"sha256": "0" * 64, "mode": 0o700}}
SERVICE = {
    "kind": "systemd",
    "env": "cpu",
    "sha256": "0" * 64,
    "made": [],
    "token_file": "/h/run/t",
    "lingering": False,
}
MANIFEST = {"schema": 1, "environment": "cpu", "platform": "linux-64", "engine": "host", "python": "3.13"}
MESSAGE = {"parent_header": {"msg_id": "a"}, "msg_type": "stream", "content": {"text": "b"}}
UV_TOML = '[[index]]\nname = "a"\nurl = "https://h/simple"\n[pip]\nno-index = true\nextra = [\n"a", # b\n]\n'
CONDA = json.dumps({"_path": "lib/a", "path_type": "softlink", "sha256": "0" * 64, "prefix_placeholder": "/p"})


def write(name: str, content: bytes) -> Path:
    """Write what a reader is to read."""
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_receipt(content: bytes) -> object:
    write(f"receipts/{NAME}/receipt.json", content)
    found = home.read_receipt(FOLDER, NAME)
    if found is not None:  # whatever it says, it is about this home alone
        assert found["root"] == str(FOLDER / "envs" / NAME)
        assert Path(found["prefix"]).is_relative_to(found["root"])
    return home.read_receipts(FOLDER)


def read_record(content: bytes) -> object:
    info = "lib/python3.13/site-packages/six-1.17.0.dist-info"
    write(f"{info}/RECORD", content)
    packages_found, _ = records.read_python(FOLDER, "lib/python3.13/site-packages", set())
    for package in packages_found:
        assert not any(entry.path.startswith(("/", "../")) for entry in package.entries)
    return packages_found


def read_desktops(content: bytes) -> object:
    """Whatever it says: what passes is a desktop's own, below the home folder."""
    for entry in plan.entries(write("receipts/desktop.json", content)):
        if not plan.not_ours(entry, FOLDER):
            for path in [*entry["files"], *entry["folders"], *entry["modes"]]:
                assert Path(path).is_relative_to(FOLDER) and ".." not in path
    return None


def read_service(content: bytes) -> object:
    write("receipts/service.json", content)
    return service.read_receipt(FOLDER)


def read_state(content: bytes) -> object:
    state = installing.read_state(write("run/install.json", content).parent.parent)
    for path in installing.output_files(FOLDER, state["id"]) if state else ():
        assert path.parent.parent == FOLDER
    return state


def read_manifest(content: bytes) -> object:
    member = offline.Member(len(content), lambda: io.BytesIO(content))
    return offline.read_manifest({offline.MANIFEST: member}, FOLDER)


def read_seal(content: bytes) -> object:
    write("sealed/lib/python3.13/site-packages/six-1.17.0.dist-info/INSTALLER", b"uv")
    write("sealed/lib/python3.13/site-packages/six-1.17.0.dist-info/RECORD", content)
    return seal.by_uv(FOLDER / "sealed")


def plain(content: bytes) -> str:
    return content.decode("utf-8", "replace")


# (the reader, what it may raise, what a good file or answer is)
READERS: dict[str, tuple[Callable[[bytes], object], tuple[type[Exception], ...], str]] = {
    "receipt": (read_receipt, (), json.dumps(RECEIPT)),
    "index": (
        lambda content: lockfiles.read_index(write("index/index.json", content).parent),
        (Failure,),
        json.dumps({"schema": 1, "python": ["3.11"], "uv": {"version": "1", "file": "a", "sha256": "0" * 64}}),
    ),
    "server": (
        lambda content: documents.read(write("nbserver-1.json", content), DESCRIPTION_SHAPE),
        (ValueError,),
        json.dumps(SERVER),
    ),
    "any document": (lambda content: documents.parse(content, "it"), (ValueError,), json.dumps([RECEIPT, SERVER])),
    "sockets": (lambda content: parse_listeners(plain(content)), (), TABLE),
    "explicit lock": (lambda content: lockfiles.parse_explicit(plain(content)), (Failure,), EXPLICIT),
    "locked names": (lambda content: lockfiles.locked_names(plain(content)), (), PYPI),
    "locked entry": (lambda content: lockfiles.locked_entry(plain(content), "uv"), (Failure,), PYPI),
    "requirements": (lambda content: requirements.parse(plain(content)), (Failure, ValueError), PYPI),
    "RECORD": (read_record, (), "six.py,sha256=AAAA,12\nsix-1.17.0.dist-info/RECORD,,\n"),
    "conda record": (
        lambda content: records.conda_entry(documents.parse(content, "it", {"_path": str})),
        (ValueError, TypeError, AttributeError),  # read_conda() names the record then
        CONDA,
    ),
    "launcher": (lambda content: records.launcher_target(content), (), LAUNCHER),
    "patched file": (lambda content: records.unpatched(content, b"/p", b"/placeholder", "binary"), (), "E/p/x\0\0"),
    "program's words": (
        lambda content: programs.failure_of("uv", plain(content), plain(content), 1, "/", False),
        (),
        SAID,
    ),
    "Retry-After": (lambda content: downloads.retry_after({"Retry-After": plain(content)}), (), LATER),
    "length": (lambda content: downloads._content_length({"Content-Length": plain(content)}), (ValueError,), "12"),
    "mirror rules": (
        lambda content: downloads.parse_rules([plain(content)]),
        (Failure,),
        "https://conda.anaconda.org/=https://mirror.example/",
    ),
    "login": (lambda content: downloads.split_login(plain(content)), (), "https://user:p%40ss@host/x"),
    "desktops": (read_desktops, (Failure,), json.dumps({"desktops": [DESKTOP]})),
    "service": (read_service, (), json.dumps(SERVICE)),
    "an installation's state": (read_state, (), json.dumps({"id": "2026-1", "pid": 1, "options": ["--cpu"]})),
    "an installation's result": (
        lambda content: installing.ending(write("run/result", content), write("run/code", content[:3])),
        (),
        json.dumps({"error": "e", "hint": "h"}),
    ),
    "bundle": (read_manifest, (Failure,), json.dumps({**MANIFEST, "sha256": {"lockfiles/index.json": "0" * 64}})),
    "RECORD of what was installed": (read_seal, (), "six.py,sha256=AAAA,12\nsix-1.17.0.dist-info/RECORD,,\n"),
    "Jupyter's answer": (
        lambda content: colab_page.Answer(200, {}, content).json(),
        (),
        colab_page.SCRIPT_GUARD + json.dumps(SERVER),
    ),
    "a kernel's message": (
        lambda content: colab_page.understood(content, colab_page._MESSAGE),
        (colab_page.Closed,),
        json.dumps(MESSAGE),
    ),
    "an address": (lambda content: colab_page.parse_url(plain(content)), (ValueError,), "http://localhost:1/?token=a"),
    "pip's settings": (
        lambda content: sources.parse_pip([("pip.conf", plain(content))], {}),
        (Failure,),
        "[global]\nindex-url = https://u:p@h/simple\n[install]\nno-index = yes\n",
    ),
    "uv's settings": (lambda content: sources.sources_of_uv(plain(content)), (), UV_TOML),
    "masked text": (lambda content: text.printable(text.mask(plain(content))), (), "https://u:p@h/?token=abc"),
}  # fmt: skip


def odd_values() -> list[Any]:
    """Return values that no good document has in that place."""
    return [None, True, -1, 1e308, 10**30, "", "../../etc", "/", "\u0000", "\ud800", [], {}, [[[]]], "x" * 5000]


def damaged(good: str, dice: random.Random) -> bytes:
    """Return a good file or answer after an accident, or after somebody's work."""
    content = good.encode()
    if dice.random() < 0.4 and good[:2] in ('{"', "[{"):
        value = json.loads(good)
        place = value[0] if isinstance(value, list) else value
        while isinstance(place, dict) and place:
            key = dice.choice(list(place))
            if isinstance(place[key], dict) and dice.random() < 0.6:
                place = place[key]
                continue
            if dice.random() < 0.3:
                del place[key]
            else:
                place[key] = dice.choice(odd_values())
            break
        return json.dumps(value).encode()
    for _ in range(dice.randint(1, 4)):
        at, end = sorted((dice.randint(0, len(content)), dice.randint(0, len(content))))
        kind = dice.randrange(6)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + content[end:]
        elif kind == 2:
            content = content[:at] + dice.randbytes(dice.randint(1, 9)) + content[at:]
        elif kind == 3:
            content = content[:at] + content[at:end] * dice.randint(2, 20) + content[end:]
        elif kind == 4:
            content = (
                content[:at]
                + dice.choice([b"[" * 3000, b'{"a":' * 999, b"\0", b"9" * 5000, b"\xff\xfe", b"\n" * 99])
                + content[end:]
            )
        else:
            content = content.replace(
                dice.choice([b":", b",", b"=", b"/", b"\n"]), dice.choice([b"", b" ", b"::", b"\r"])
            )
    return content


def attempt(name: str, content: bytes) -> str:
    """Give one input to a reader and return what went wrong, "" for nothing."""
    reader, allowed, _ = READERS[name]
    try:
        reader(content)
    except allowed:
        return ""
    except Exception as problem:
        return f"{name}: {type(problem).__name__}: {problem} of {content[:200]!r}"
    return ""


def run(count: int, seed: int = 0) -> Tally:
    """Give `count` damaged inputs to the readers in turn; a seed gives the same ones again."""
    dice = random.Random(seed)
    tally = Tally()
    names = list(READERS)
    (FOLDER / "envs" / NAME).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = names[number % len(names)]
        wrong = attempt(name, damaged(READERS[name][2], dice))
        tally.tried += 1
        if wrong and len(tally.lost) < 100:
            tally.lost += (wrong,)
    assert os.listdir(FOLDER)  # noqa: PTH208 - the readers did read
    return tally
