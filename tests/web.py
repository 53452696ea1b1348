"""A web server for the lab's network, of files, with a password if wanted.

python tests/web.py FOLDER ADDRESS PORT [USER:PASSWORD]
"""

from __future__ import annotations

import base64
import http.server
import sys
from functools import partial


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


def main(folder: str, address: str, port: str, login: str = "") -> None:
    """Serve until the end."""
    Handler.login = login
    with http.server.ThreadingHTTPServer((address, int(port)), partial(Handler, directory=folder)) as server:
        print("serving", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
