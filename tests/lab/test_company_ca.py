"""A company's network on a freshly installed Debian 12: the system's store alone knows who signs the index.

Debian's pip 23 trusts a list of its own, uv and Python's downloads others: one decision has to serve all of them.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme

from tests.conftest import REPO
from tests.support.bareroots import with_packages
from tests.support.hosts import needs_root
from tests.support.web import make_wheel

pytestmark = [needs_root, pytest.mark.timeout(900)]

# $1 root, $2 work folder, $3... command: run it in a view of the root that is gone afterwards, with this machine's
# network. $2/company.crt is made known as an administrator does it.
VIEW = r"""
set -e
root=$1 work=$2; shift 2
mount --make-rprivate /
mkdir "$work/view"
mount -t tmpfs tmpfs "$work/view"
cd "$work/view"; mkdir up work root
mount -t overlay overlay -o "lowerdir=$root,upperdir=up,workdir=work" root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/tmp
mkdir -p root/repo root/given
mount --bind "$REPO" root/repo
mount --bind "$work" root/given
cp "$work/pip.conf" root/etc/pip.conf
cp "$work/company.crt" root/usr/local/share/ca-certificates/
cp /etc/hosts root/etc/hosts
chroot root update-ca-certificates >/dev/null 2>&1
exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root "$@"
"""


def lock_of(wheel: Path, folder: Path) -> Path:
    """Write lockfiles whose only package is this wheel: what is tried here is how it comes."""
    shutil.copytree(REPO / "lockfiles", folder)
    text = f"tiny==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    (folder / "cpu" / "pypi.txt").write_text(text)
    index = json.loads((folder / "index.json").read_text())
    index["environments"]["cpu"]["pypi"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("known", [True, False])
def test_debians_old_pip_and_uv_trust_what_the_system_trusts(tmp_path: Path, known: bool) -> None:
    root = with_packages("bookworm", "pip", ["python3-pip", "python3-venv"])
    wheel = make_wheel(tmp_path / "simple" / "tiny")
    lock_of(wheel, tmp_path / "lockfiles")
    fetched = tmp_path / "fetched"  # uv and pip, which every environment gets
    wanted = json.loads((REPO / "lockfiles" / "index.json").read_text())["uv"]["file"]
    argv = [sys.executable, "-I", "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", str(fetched)]
    subprocess.run([*argv, "-r", str(REPO / "lockfiles" / wanted)], check=True, timeout=300)
    for file in (wheel, *fetched.iterdir()):
        folder = tmp_path / "simple" / file.name.partition("-")[0]
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
        (folder / "index.html").write_text(f'<a href="{file.name}">{file.name}</a>')
    authority = trustme.CA()
    (authority if known else trustme.CA()).cert_pem.write_to_path(str(tmp_path / "company.crt"))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_address[1]}/simple/"
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {url}\nretries = 0\n")
        line = ["python3", "-B", "/repo/bootstrap.py", "--engine", "host", "--lockfiles", "/given/lockfiles"]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", VIEW, "sh", str(root), str(tmp_path), *line, "--cpu"],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "REPO": str(REPO)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        server.shutdown()
    said = done.stdout + done.stderr
    files = [path for path in asked if path.endswith(".whl")]
    if known:  # pip has fetched uv, and uv the package; what there is to try out is none
        assert {Path(path).name.partition("-")[0] for path in files} == {"uv", "pip", "tiny"}, said
        assert "No module named 'jupyter_core'" in said, said
        assert "certificate" not in said, said
    else:
        assert not files, said
        assert done.returncode == 5, said
        assert "because a certificate is not trusted" in said, said
