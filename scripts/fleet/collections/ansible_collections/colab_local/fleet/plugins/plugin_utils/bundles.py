"""Read what a bundle says of itself, on the controller, before a byte of it goes to a host.

The manifest is the first file of a bundle's tar, so a few kilobytes are enough, from a file and from a web server.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import stat
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.colab_local.fleet.plugins.plugin_utils import words

MANIFEST = "colab-local/bundle.json"
SIGNATURE = MANIFEST + ".sig"
NAMESPACE = "colab-local-bundle"  # of the signatures: one made for another purpose does not count
LARGEST = 4 << 20  # bytes of a manifest
LONGEST = 64 << 10  # bytes of a signature
TIMEOUT_S = 20


class Unusable(ValueError):
    """A bundle that can't be taken; the text says why."""


def head(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Return a bundle's manifest and its signature (b"" without one); raise Unusable."""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            manifest = member(archive, MANIFEST, LARGEST)
            if not manifest:
                raise Unusable(f"it is not a bundle: its first file is not {MANIFEST}")
            return manifest, member(archive, SIGNATURE, LONGEST)
    except (tarfile.TarError, EOFError, OSError) as problem:
        raise Unusable(f"it is not a bundle ({words.plain(problem, 200)})") from None


def member(archive: tarfile.TarFile, name: str, largest: int) -> bytes:
    """Return the content of a tar's next file if that has this name, else b""; raise Unusable."""
    try:
        info = archive.next()
    except tarfile.ReadError:  # the stream was cut after what we wanted of it
        return b""
    if info is None or info.name != name:
        return b""
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size > largest:
        raise Unusable(f"{name} in it is not an ordinary file of at most {largest} bytes")
    content = archive.extractfile(info)
    return content.read(largest) if content else b""


def described(manifest: bytes) -> dict[str, Any]:
    """Return the fields of a manifest that are judged; raise Unusable."""
    try:
        found = words.document(manifest.decode("utf-8"))
        files = found.get("sha256")
        if not isinstance(files, dict):
            raise words.Unreadable("its answer has a wrong sha256")
        return {
            "environment": words.field(found, "environment", re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")),
            "platform": words.field(found, "platform", re.compile(words.PLATFORM)),
            "engine": words.field(found, "engine", words.WORD),
            "python": words.field(found, "python", re.compile(r"3\.\d{1,2}")),
            "lock": words.field(files, "lockfiles/index.json", words.SHA256),
            "manifest": hashlib.sha256(manifest).hexdigest(),
        }
    except (words.Unreadable, UnicodeError) as problem:
        raise Unusable(f"its {MANIFEST} is damaged ({words.plain(problem, 200)})") from None


def from_file(path: str) -> tuple[dict[str, Any], bytes, bytes]:
    """Return what a bundle on this machine is for, its manifest and its signature; raise Unusable."""
    file = Path(path).expanduser()
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unusable("it is not an ordinary file")
        with file.open("rb") as stream:
            manifest, signature = head(stream)
    except OSError as problem:
        raise Unusable(str(problem.strerror)) from None
    described_as = described(manifest)
    # Named by the manifest, which names every file by its hash: no need to hash gigabytes once more.
    return {**described_as, "bytes": found.st_size, "name": described_as["manifest"][:16]}, manifest, signature


def from_url(url: str, sha256: str) -> tuple[dict[str, Any], bytes, bytes]:
    """Return the same of a bundle on a web server; {"name": ...} alone if it can't be reached from here."""
    request = urllib.request.Request(url, headers={"User-Agent": "colab-local"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # only its beginning is read
            total = str(response.headers.get("Content-Length"))
            manifest, signature = head(response)
    except (urllib.error.HTTPError, http.client.HTTPException) as problem:
        raise Unusable(f"its server says: {words.plain(words.masked(str(problem)), 200)}") from None
    except OSError:  # in the hosts' own network, perhaps: they will see
        return {"name": sha256[:16]}, b"", b""
    size = int(total) if total.isdigit() else 0
    return {**described(manifest), "bytes": size, "name": sha256[:16]}, manifest, signature


def foreign(bundle: dict[str, Any], environment: str, engine: str, lock: str) -> str:
    """Return what a bundle is for, if that is not what is wanted; "" if it is.

    bundle: what from_file() or from_url() returned; lock: the sha256 of the checkout's lockfiles/index.json.
    """
    if "environment" not in bundle:
        return ""
    wanted = bundle["engine"] if engine == "auto" else engine
    need = (environment, f"engine {wanted}", f"lockfiles {lock[:12]}")
    found = (bundle["environment"], f"engine {bundle['engine']}", f"lockfiles {bundle['lock'][:12]}")
    if found[:2] == need[:2] and bundle["lock"] == lock:
        return ""
    return f"found {', '.join(found)}, need {', '.join(need)}"


def signer(manifest: bytes, signature: bytes, signers: str) -> str:
    """Return who signed a manifest; raise Unusable unless it is one of an allowed signers file (ssh-keygen(1))."""
    if not signature:
        raise Unusable("it is not signed")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "signature"
        file.write_bytes(signature)
        ask = ["ssh-keygen", "-Y", "find-principals", "-s", str(file), "-f", str(Path(signers).expanduser())]
        found = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)
        names = found.stdout.split("\n", 1)[0].split(",") if found.returncode == 0 else []
        for name in names:
            check = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", name]
            check += ["-s", str(file), "-f", str(Path(signers).expanduser())]
            if subprocess.run(check, input=manifest, capture_output=True, timeout=60, check=False).returncode == 0:
                return name
    raise Unusable(f"its signature is of nobody in {signers}, or of another manifest")
