"""A web server of files: for the lab's network, with a password if wanted, or for a test on loopback.

python tests/support/web.py FOLDER ADDRESS PORT [USER:PASSWORD]
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path


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


def main(folder: str, address: str, port: str, login: str = "") -> None:
    """Serve until the end."""
    Handler.login = login
    with http.server.ThreadingHTTPServer((address, int(port)), partial(Handler, directory=folder)) as server:
        print("serving", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
