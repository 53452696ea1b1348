"""A web server of files: for the lab's network, with a password if wanted, or for a test on loopback.

python tests/support/web.py FOLDER ADDRESS PORT [USER:PASSWORD]
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

WHEEL = "tiny-1.0-py3-none-any.whl"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files to those who know the password, if there is one."""

    login = ""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="packages"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback while the block runs; give the URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def make_wheel(folder: Path) -> Path:
    """Write a wheel with one module and return its path."""
    folder.mkdir(parents=True)
    path = folder / WHEEL
    files = {
        "tiny.py": b"found = True\n",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(content)}\n"
            archive.writestr(name, content)
        archive.writestr("tiny-1.0.dist-info/RECORD", record + "tiny-1.0.dist-info/RECORD,,\n")
    return path


def main(folder: str, address: str, port: str, login: str = "") -> None:
    """Serve until the end."""
    Handler.login = login
    with http.server.ThreadingHTTPServer((address, int(port)), partial(Handler, directory=folder)) as server:
        print("serving", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
