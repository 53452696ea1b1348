"""What a host says becomes no file, no command and no variable on the controller, whatever it is."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO

sys.path.insert(0, str(REPO / "scripts" / "fleet" / "collections"))

from ansible_collections.colab_local.fleet.plugins.plugin_utils import bundles, judge, words

DIGEST = "0123456789abcdef" * 4
LINE = f"colab-local cpu linux-64 sha256:{DIGEST}"
EVIL = "{{ lookup('pipe', 'touch /tmp/evil') }}"
GOOD: dict[str, Any] = {
    "ok": True,
    "environment": "cpu",
    "platform": "linux-64",
    "layer": "host-3.11",
    "lock": {"pypi.txt": DIGEST, "host.txt": DIGEST},
    "fingerprint": LINE,
    "packages": [{"layer": "python", "name": "x", "version": "1.0", "build": "", "files": 2, "sha256": DIGEST}],
    "differences": [{"kind": "altered", "package": "x 1.0", "path": "x.py", "found": "", "need": ""}],
}
INDEX: dict[str, Any] = {
    "uv": {"file": "host.txt", "sha256": DIGEST},
    "environments": {
        "cpu": {
            "pypi": {"file": "cpu/pypi.txt", "sha256": DIGEST},
            "platforms": {
                "linux-64": {
                    "file": "cpu/linux-64.txt",
                    "sha256": DIGEST,
                    "bytes": {"pypi_download": 500_000_000, "pypi_installed": 1_800_000_000},
                }
            },
        }
    },
}


def changed(**fields: Any) -> str:
    """Return the good answer with other fields, as text."""
    return json.dumps({**GOOD, **fields})


def test_only_known_fields_are_kept() -> None:
    evil = {"vars": {"ansible_ssh_extra_args": "-o ProxyCommand=touch /tmp/evil"}}
    found = words.verified(changed(colab_local=evil, all=evil, _meta={"hostvars": {}}, prefix="/etc"), "cpu")
    assert set(found) == {"fingerprint", "environment", "platform", "layer", "lock", "packages", "differences"}
    assert found["fingerprint"] == LINE
    assert "ProxyCommand" not in json.dumps(found)


@pytest.mark.parametrize(
    "fields",
    [
        {"fingerprint": "../group_vars/all.yml"},
        {"fingerprint": LINE + "\n"},
        {"fingerprint": LINE + "/../../x"},
        {"fingerprint": LINE.replace("cpu", "../x")},
        {"fingerprint": LINE.replace("cpu", "gpu")},
        {"fingerprint": LINE.upper()},
        {"fingerprint": None},
        {"fingerprint": [LINE]},
        {"environment": "gpu"},
        {"platform": "../linux-64"},
        {"platform": ["linux-64"]},
        {"layer": EVIL},
        {"lock": {"../x": DIGEST}},
        {"lock": {"pypi.txt": EVIL}},
        {"lock": []},
        {"packages": [{**GOOD["packages"][0], "name": EVIL}]},
        {"packages": [{**GOOD["packages"][0], "files": "2"}]},
        {"packages": [{**GOOD["packages"][0], "files": True}]},
        {"packages": [1]},
        {"packages": GOOD["packages"] * 6_000},
        {"differences": {}},
    ],
)
def test_an_answer_that_is_odd_in_one_field_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(words.Unreadable):
        words.verified(changed(**fields), "cpu")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1", "nonsense", "[" * 100_000, "x" * (17 << 20), '{"fingerprint": NaN}'],
    ids=["empty", "list", "number", "words", "deep", "long", "other"],
)
def test_what_is_no_object_is_no_answer(text: str) -> None:
    with pytest.raises(words.Unreadable):
        words.verified(text, "cpu")


def test_texts_are_plain() -> None:
    """Neither a template nor what steers a terminal reaches a message."""
    found = words.verified(changed(differences=[dict.fromkeys(("kind", "package", "path", "found"), EVIL)]), "cpu")
    assert "{" not in json.dumps(found["differences"]).replace('{"', "").replace('"}', "")
    said = words.problem(
        {"rc": 1, "stderr": f"noise\nerror: \x1b[2J{EVIL} at https://me:pw@x.example/a?sig=s3cret\n"}
    )
    assert said.startswith("error: ")
    assert not set("{}\x1b\n") & set(said)
    assert "pw" not in said
    assert "s3cret" not in said
    assert len(words.plain("x" * 100_000)) == 2_000
    assert words.problem({"rc": 0, "stderr": "error: x"}) == ""
    assert words.problem({"rc": 3, "stderr": ""}) != ""


def test_a_record_is_named_by_a_whole_fingerprint() -> None:
    assert judge.record_name(LINE) == f"cpu-linux-64-{DIGEST[:12]}.json"
    for line in ("../x", LINE + "\n", LINE + " ", "colab-local ../x linux-64 sha256:" + DIGEST):
        with pytest.raises(words.Unreadable):
            judge.record_name(line)


def other(line: str, **fields: Any) -> dict[str, Any]:
    """Return a verified answer with another fingerprint."""
    return {**copy.deepcopy(GOOD), "fingerprint": line, **fields}


def test_hosts_are_judged_by_the_lock_and_not_by_the_majority() -> None:
    two, three = (LINE[:-1] + digit for digit in "ef"[:2])
    two, three = LINE[:-1] + "0", LINE[:-1] + "1"
    same = {"a": other(LINE), "b": other(LINE)}
    assert all(judge.verdict(host, same, "", INDEX, "/r") == "" for host in same)
    # Another lock: named, whoever is in the majority.
    stale = {
        "a": other(two, lock={"pypi.txt": "f" * 64}),
        "b": other(two, lock={"pypi.txt": "f" * 64}),
        "c": other(LINE),
    }
    assert "another lock than this checkout's" in judge.verdict("a", stale, "", INDEX, "/r")
    assert "another lock than this checkout's" in judge.verdict("b", stale, "", INDEX, "/r")
    assert judge.verdict("c", stale, "", INDEX, "/r") == ""
    # The same lock and three fingerprints: nobody is the right one.
    three_kinds = {"a": other(LINE), "b": other(LINE), "c": other(two), "d": other(three)}
    for host in three_kinds:
        said = judge.verdict(host, three_kinds, "", INDEX, "/r")
        assert "set colab_local_expected" in said
        assert "need" not in said
    # The fingerprint that was tested decides.
    assert judge.verdict("c", three_kinds, two, INDEX, "/r") == ""
    assert f"a differs: {LINE} (need {two})" in judge.verdict("a", three_kinds, two, INDEX, "/r")


def test_a_disk_and_a_python_that_do_not_fit_are_said_with_numbers() -> None:
    host = {"python": "3.12.1", "home_free": 1_000_000_000, "work_free": 10**12, "one_disk": False, "bundle": -1}
    todo = {"platform": "linux-64", "engine": "host", "plan": ["packages"]}
    wanted = {"environment": "cpu", "engine": "host"}
    said = judge.unfit(host, todo, INDEX, wanted, {})
    assert "found 1.0 GB free, need 2.3 GB" in said
    host["home_free"] = 10**12
    assert judge.unfit(host, todo, INDEX, wanted, {}) == ""
    bundle = {"platform": "linux-64", "engine": "host", "python": "3.11", "bytes": 600_000_000}
    assert "found 3.11, need 3.12" in judge.unfit(host, todo, INDEX, wanted, bundle)
    assert "another platform" in judge.unfit(host, todo, INDEX, wanted, {**bundle, "platform": "osx-arm64"})
    assert judge.forecast([{"bytes": 1_900_000_000, "from": "here"}] * 6, 100) == [
        "6 hosts fetch 11.4 GB through this machine's line: 1.9 min at 100 MB/s"
    ]


# ---------------------------------------------------------------------------------------------------------
# Bundles, on the controller


def tar_of(*members: tuple[str, bytes, bytes]) -> io.BytesIO:
    """Return a tar of (name, content, type)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            archive.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return stream


MANIFEST: dict[str, Any] = {
    "schema": 1, "environment": "cpu", "platform": "linux-64", "engine": "host", "python": "3.11",
    "sha256": {"lockfiles/index.json": DIGEST},
}  # fmt: skip


def test_a_manifest_is_read_from_the_first_file_alone() -> None:
    text = json.dumps(MANIFEST).encode()
    begin = tar_of((bundles.MANIFEST, text, tarfile.REGTYPE), ("colab-local/x", b"x" * 10**6, tarfile.REGTYPE))
    manifest, signature = bundles.head(begin)
    assert (manifest, signature) == (text, b"")
    found = bundles.described(manifest)
    assert bundles.foreign(found, "cpu", "host", DIGEST) == ""
    assert bundles.foreign(found, "cpu", "auto", DIGEST) == ""
    assert "need gpu" in bundles.foreign(found, "gpu", "host", DIGEST)
    assert "lockfiles 0123456789ab, need" in bundles.foreign(found, "cpu", "host", "f" * 64)


@pytest.mark.parametrize(
    "fields",
    [
        {"platform": []},
        {"platform": "../x"},
        {"engine": EVIL},
        {"environment": 7},
        {"python": "3"},
        {"sha256": []},
        {"sha256": {"lockfiles/index.json": "x"}},
    ],
)
def test_an_odd_manifest_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(bundles.Unusable):
        bundles.described(json.dumps({**MANIFEST, **fields}).encode())


def test_what_is_no_bundle_is_refused_at_once(tmp_path: Path) -> None:
    pipe, sparse = tmp_path / "pipe", tmp_path / "sparse"
    subprocess.run(["mkfifo", pipe], check=True)
    with sparse.open("wb") as file:
        info = tarfile.TarInfo(bundles.MANIFEST)
        info.size = 6 << 30
        file.write(info.tobuf())
        file.truncate(7 << 30)
    link = tar_of((bundles.MANIFEST, b"", tarfile.SYMTYPE)).getvalue()
    (tmp_path / "link").write_bytes(link)
    (tmp_path / "text").write_text("no tar")
    for name in ("pipe", "sparse", "link", "text", "nowhere", "."):
        with pytest.raises(bundles.Unusable):
            bundles.from_file(str(tmp_path / name))


def test_a_signature_is_checked_by_ssh_keygen(tmp_path: Path) -> None:
    key, signers = tmp_path / "key", tmp_path / "signers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers.write_text(f"admin@example.org {key.with_suffix('.pub').read_text()}")
    manifest = json.dumps(MANIFEST).encode()

    def signed(purpose: str) -> bytes:
        argv = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", purpose]
        return subprocess.run(argv, input=manifest, capture_output=True, check=True).stdout

    good = signed(bundles.NAMESPACE)
    assert bundles.signer(manifest, good, str(signers)) == "admin@example.org"
    for text, signature in ((manifest + b" ", good), (manifest, b""), (manifest, signed("file")), (manifest, b"x")):
        with pytest.raises(bundles.Unusable):
            bundles.signer(text, signature, str(signers))
    signers.write_text("")
    with pytest.raises(bundles.Unusable):
        bundles.signer(manifest, good, str(signers))
