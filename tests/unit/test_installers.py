"""ci/installers.py: newer installers are found with their published hashes; what doesn't fit together is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from colab_local.locking import installers

REPO = Path(__file__).resolve().parent.parent.parent
KNOWN = json.loads((REPO / "environments/installers.json").read_text())


def load() -> Any:
    """Return ci/installers.py as a module; ci/ is no package."""
    spec = importlib.util.spec_from_file_location("installers", REPO / "ci/installers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = load()


def sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Pages(dict[str, str]):
    """What a server on loopback answers, by path; see served()."""


@contextmanager
def served(pages: Pages) -> Iterator[str]:
    """Serve pages on loopback; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = pages.get(self.path)
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").replace("@HERE@", f"http://{self.headers['Host']}").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def release(pages: Pages, repository: str, tag: str, names: list[str], digest: Callable[[str], str] = sha256) -> None:
    """Add a GitHub release with these files, each with a .sha256 file beside it where it is Miniforge's."""
    assets = []
    for name in names:
        assets.append(
            {
                "name": name,
                "browser_download_url": f"https://github.com/{repository}/releases/download/{tag}/{name}",
                "digest": f"sha256:{digest(name)}",
                "size": len(name),
            }
        )
        if "Miniforge" in name:
            path = f"/{tag}/{name}.sha256"
            pages[path] = f"{sha256(name)}  ./{name}\n"
            assets.append(
                {"name": f"{name}.sha256", "browser_download_url": f"@HERE@{path}", "digest": None, "size": 1}
            )
    pages[f"/repos/{repository}/releases/latest"] = json.dumps({"tag_name": tag, "assets": assets})


@pytest.fixture
def pages() -> Pages:
    """Releases of which Miniforge's and Anaconda's are newer than what is pinned, pixi's is the same."""
    made = Pages()
    words = ("Linux-x86_64", "Linux-aarch64", "MacOSX-arm64", "MacOSX-x86_64")
    miniforge = [f"Miniforge3-{middle}{word}.sh" for word in words for middle in ("", "99.1.0-0-")]
    release(made, "conda-forge/miniforge", "99.1.0-0", [*miniforge, "Miniforge3-99.1.0-0-Windows-x86_64.exe"])
    pixi = {Path(entry["url"]).name: entry["sha256"] for entry in KNOWN["pixi"]["files"].values()}
    release(made, "prefix-dev/pixi", f"v{KNOWN['pixi']['version']}", list(pixi), pixi.__getitem__)
    rows = [
        f'<tr><td><a href="Anaconda3-{version}-{word}.sh">x</a></td><td class="s">1.1G</td><td>2027-01-02</td>'
        f"<td>{sha256(version + word)}</td></tr>"
        for version in ("2026.07-1", "2099.01-1", "2099.06-1")
        for word in (words[:3] if version != "2099.06-1" else words[:1])  # not yet there for every platform
    ]
    made["/archive/"] = "<table>\n" + "\n".join(rows) + "</table>"
    return made


def run(url: str, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the program on a copy of installers.json; return its status and the file as it is then."""
    file = folder / "installers.json"
    file.write_text(json.dumps(KNOWN, indent=1) + "\n")
    status = program.main(["--file", str(file), "--api", url, "--archive", f"{url}/archive/", *options])
    return status, json.loads(file.read_text())


def test_newer_releases_are_taken_over_with_their_published_hashes(
    pages: Pages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(pages) as url:
        assert run(url, tmp_path) == (0, KNOWN)  # without --write nothing is written
        status, found = run(url, tmp_path, "--write")
    assert status == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said == [
        f"miniforge: {KNOWN['miniforge']['version']} -> 99.1.0-0",
        f"anaconda: {KNOWN['anaconda']['version']} -> 2099.01-1",
    ]
    assert found["pixi"] == KNOWN["pixi"] and found["_"] == KNOWN["_"]
    entry = found["miniforge"]["files"]["linux-aarch64"]
    assert entry["sha256"] == sha256("Miniforge3-99.1.0-0-Linux-aarch64.sh") and entry["size"] > 0
    assert entry["url"].endswith("/99.1.0-0/Miniforge3-99.1.0-0-Linux-aarch64.sh")
    assert found["anaconda"]["files"]["osx-arm64"]["sha256"] == sha256("2099.01-1MacOSX-arm64")
    assert set(found["anaconda"]["files"]) == set(KNOWN["miniforge"]["files"])


@pytest.mark.parametrize(
    ("path", "edit", "said"),
    [
        ("/repos/conda-forge/miniforge/releases/latest", lambda text: text.replace("Linux-aarch64", "x"), "aarch64"),
        ("/repos/conda-forge/miniforge/releases/latest", lambda text: text[:100], "no release"),
        ("/repos/conda-forge/miniforge/releases/latest", lambda text: "[]", "no release"),
        ("/99.1.0-0/Miniforge3-99.1.0-0-Linux-x86_64.sh.sha256", lambda text: "0" * 64, ".sha256 file says"),
        ("/99.1.0-0/Miniforge3-99.1.0-0-Linux-x86_64.sh.sha256", lambda text: "<html>", ".sha256 file says"),
        ("/archive/", lambda text: "<html>moved</html>", "no release with a file and a hash"),
        # the same version with another hash: somebody changed a file that was published
        (
            "/repos/prefix-dev/pixi/releases/latest",
            lambda text: text.replace(KNOWN["pixi"]["files"]["linux-64"]["sha256"], "1" * 64),
            "the published SHA-256 is now",
        ),
    ],
    ids=["file gone", "cut", "no object", "two hashes", "no hash", "another page", "same version, another hash"],
)
def test_what_does_not_fit_together_is_an_error(
    pages: Pages, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, edit: Callable[[str], str], said: str
) -> None:
    pages[path] = edit(pages[path])
    with served(pages) as url:
        assert run(url, tmp_path, "--write") == (5, KNOWN)
    assert said in capsys.readouterr().err
    del pages[path]
    with served(pages) as url:
        assert run(url, tmp_path, "--write") == (5, KNOWN)


def test_the_pinned_files_follow_from_project_version_and_platform() -> None:
    assert list(installers.wrong_names(KNOWN)) == []


EDITS = [
    ("https://", "http://"),
    ("/releases/download/", "/releases/latest/"),
    ("github.com/", "github.com/somebody/"),
    ("repo.anaconda.com", "mirror.example.org"),
    ('"version": "', '"version": "1'),
    ('"sha256": "', '"sha256": "g'),
    ('"size": null', '"size": 12'),
    ('"linux-aarch64": {', '"linux-riscv64": {'),
    ("aarch64.", "x86_64."),
]
TEXTS = {name: json.dumps(KNOWN[name], indent=1) for name in installers.SOURCES}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [(name, before, after) for name in TEXTS for before, after in EDITS if before in TEXTS[name]],
)
def test_a_wrong_name_is_seen_without_a_network(name: str, before: str, after: str) -> None:
    """Another project, scheme, version or platform."""
    entry = json.loads(TEXTS[name].replace(before, after, 1))
    assert list(installers.wrong_names({**KNOWN, name: entry})), (name, before)


def test_swapped_platforms_are_seen() -> None:
    for name in installers.SOURCES:
        content = json.loads(json.dumps(KNOWN))
        files = content[name]["files"]
        files["linux-64"], files["osx-arm64"] = files["osx-arm64"], files["linux-64"]
        assert len(list(installers.wrong_names(content))) == 2


def test_hashes_and_sizes_are_compared_with_the_published_ones(pages: Pages) -> None:
    """That needs a network: nothing in the repository contradicts a wrong hash."""
    known = {
        "pixi": KNOWN["pixi"],
        "anaconda": {**KNOWN["anaconda"], "files": json.loads(json.dumps(KNOWN["anaconda"]["files"]))},
    }
    version = known["anaconda"]["version"]
    for platform, word in installers.MINIFORGE.items():
        known["anaconda"]["files"][platform]["sha256"] = sha256(version + word)
    release(pages, "prefix-dev/pixi", f"v{known['pixi']['version']}", [], sha256)
    names = {Path(entry["url"]).name: entry["sha256"] for entry in KNOWN["pixi"]["files"].values()}
    release(pages, "prefix-dev/pixi", f"v{known['pixi']['version']}", list(names), names.__getitem__)
    pages[f"/repos/prefix-dev/pixi/releases/tags/v{known['pixi']['version']}"] = pages[
        "/repos/prefix-dev/pixi/releases/latest"
    ]
    with served(pages) as url:
        pages["/archive/"] = pages["/archive/"].replace("@HERE@", url)

        def found() -> list[str]:
            lines = installers.wrong_files(known, url, f"{url}/archive/")
            return [line for line in lines if ": url: " not in line]  # the pages here are on loopback

        assert found() == []
        known["anaconda"]["files"]["linux-64"]["sha256"] = "0" * 64
        known["pixi"]["files"]["osx-arm64"]["sha256"] = "1" * 64
        assert len(found()) == 2
        del pages["/archive/"]
        assert any("can't be read" in line for line in found())
