"""What failed programs say, as recorded from them, and what is made of it: kind, exit code, one line, one hint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_FAILED, EXIT_INTEGRITY, EXIT_MACHINE, EXIT_NETWORK, Failure
from colab_local.base.programs import failure_of, run, telling_line
from colab_local.base.terminal import Screen

# uv 0.12.1 and 0.13.9, pip 23.2, conda 26.7, pixi 0.81: (their words, the exit code, what the one line has to hold).
RECORDED = [
    (
        "error: Failed to install: jedi-0.20.1-py2.py3-none-any.whl (jedi==0.20.1): failed to copy file from /c/a to "
        + "/e" * 200
        + ": No space left on device (os error 28)",
        EXIT_MACHINE,
        ["because the disk is full", "jedi==0.20.1", "No space left on device"],
    ),
    ("OSError: [Errno 122] Disk quota exceeded: '/h/x'", EXIT_MACHINE, ["the disk is full", "quota"]),
    (
        "ERROR: Exception:\nTraceback (most recent call last):\n  File \"x\", line 1\n"
        "OSError: [Errno 18] Invalid cross-device link: 'a' -> 'b'\n\nDuring handling of the above exception\n"
        "OSError: [Errno 28] No space left on device\n",
        EXIT_MACHINE,
        ["the disk is full", "No space left on device"],
    ),
    (
        "error: Failed to download `jedi==0.19`\n  cause: Failed to extract archive: jedi-0.19-py3-none-any.whl\n"
        "  cause: Bad CRC (got 3b9b2d56, expected f8b691ef) for file: jedi/__init__.py\n",
        EXIT_INTEGRITY,
        ["is not the locked one", "jedi==0.19", "Bad CRC"],
    ),
    (
        "  × Failed to download `jedi==0.19`\n  ╰─▶ Hash mismatch for `jedi==0.19`\n\n      Expected:\n",  # noqa: RUF001
        EXIT_INTEGRITY,
        ["jedi==0.19", "Hash mismatch"],
    ),
    (
        "error: No solution found when resolving dependencies\n  cause: Because jedi was not found in the package "
        "registry and you require jedi==0.19, we can conclude that your requirements are unsatisfiable.\n\nhint: An "
        "index (http://127.0.0.1:1/simple/) returned a 403 Forbidden error.\n",
        EXIT_NETWORK,
        ["the index failed", "jedi was not found"],
    ),
    (
        "error: Request failed after 3 retries in 8.0s\n  cause: Failed to fetch: http://127.0.0.1:1/simple/jedi/\n"
        "  cause: HTTP status server error (500 Internal Server Error) for url (http://127.0.0.1:1/simple/jedi/)\n",
        EXIT_NETWORK,
        ["500 Internal Server Error"],
    ),
    (
        "error: Failed to download `jedi==0.19`\n  Caused by: Failed to write to the distribution cache\n"
        "  Caused by: error decoding response body\n  Caused by: end of file before message length reached\n",
        EXIT_NETWORK,
        ["jedi==0.19", "end of file before message length reached"],
    ),
    (
        "error: Request failed after 3 retries in 7.5s\n  cause: error sending request for url (http://u:p@h/)\n"
        "  cause: dns error\n  cause: failed to lookup address information: Name or service not known\n",
        EXIT_NETWORK,
        ["Name or service not known"],
    ),
    (
        "error: Failed to fetch: https://localhost:1/simple/jedi/\n  cause: client error (Connect)\n"
        "  cause: invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))\n",
        EXIT_NETWORK,
        ["a certificate is not trusted", "invalid peer certificate"],
    ),
    (
        "error: Request failed\n  cause: client error (Connect)\n"
        "  cause: received corrupt message of type InvalidContentType\n",
        EXIT_NETWORK,
        ["a certificate is not trusted"],
    ),
    (
        "\nCondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://c/linux-64/x.conda>\nElapsed: -\n",
        EXIT_NETWORK,
        ["CondaHTTPError"],
    ),
    (
        "ChecksumMismatchError: Conda detected a mismatch between the expected content and downloaded\ncontent",
        EXIT_INTEGRITY,
        ["ChecksumMismatchError"],
    ),
    ("memory allocation of 8192 bytes failed\n", EXIT_MACHINE, ["memory ran out"]),
    ("Traceback (most recent call last):\n  File \"x\"\nMemoryError\n", EXIT_MACHINE, ["memory ran out"]),
    ("ValueError: wrong value\n", EXIT_FAILED, ["ValueError: wrong value"]),
    # words of a path say nothing
    ("error: Failed to install: a\n  cause: /home/proxy/tunnel/site-packages: wrong\n", EXIT_FAILED, ["wrong"]),
    ("error: bad value in '/etc/ssl/certs/ca-certificates.crt'\n", EXIT_FAILED, ["bad value"]),
    ("error: can't read /srv/checksum/corrupt/a (exit 3)\n", EXIT_FAILED, ["can't read"]),
    (  # conda 26.7.1, cut: its report lists the variables and settings that it knows
        "\n# >>>>>>>>>>>>>>>>>>>>>> ERROR REPORT <<<<<<<<<<<<<<<<<<<<<<\n\n    Traceback (most recent call last):\n"
        "        raise ParserError(\n    ruamel.yaml.parser.ParserError: while parsing a flow sequence\n"
        '      in "/opt/conda/.condarc", line 1, column 11\n    expected \',\' or \']\', but got \':\'\n'
        '      in "/opt/conda/.condarc", line 2, column 5\n\n`$ /opt/conda/bin/conda create -y -p /x`\n\n'
        "  environment variables:\n            SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\n\n"
        "  conda av metadata url : None\n             offline mode : False\n\n\n"
        "An unexpected error has occurred. Conda has prepared the above report.\n",
        EXIT_FAILED,
        ['failed: ruamel.yaml.parser.ParserError: while parsing a flow sequence in "/opt/conda/.condarc", line 1'],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("said", "code", "parts"), RECORDED)
def test_a_failure_is_read_to_its_cause(said: str, code: int, parts: list[str]) -> None:
    problem = failure_of("uv", "Resolved 90 packages in 5ms\n", said, 2, "/data/home", False)
    assert problem.code == code, problem.what
    assert all(part in problem.what for part in parts), problem.what
    assert "\n" not in problem.what and len(problem.what) < 700
    assert bool(problem.hint) == (code != EXIT_FAILED)
    assert "u:p@" not in problem.what


def test_the_chain_is_its_first_and_its_last_cause() -> None:
    assert telling_line("", "error: a\n  cause: b\n  cause: c\n", 2) == "error: a: c (exit status 2)"
    assert telling_line("", "  × a is\n  │ too long\n  ├─▶ b\n  ╰─▶ c\n", 1) == "a is too long: c (exit status 1)"  # noqa: RUF001


def test_a_killed_program_is_called_killed() -> None:
    with pytest.raises(Failure, match=r"sh was killed \(SIGKILL\)") as caught:
        run(["sh", "-c", "kill -9 $$"], Screen())
    assert caught.value.hint
    starved = failure_of("uv", "", "", -9, "/", True)
    assert "because memory ran out" in starved.what and starved.code == EXIT_MACHINE
    assert "ended by SIGSEGV" in failure_of("uv", "", "", -11, "/", False).what


def test_what_the_screen_holds_outlives_us(tmp_path: Path) -> None:
    """The descriptor is open in the program, and in the one that it starts."""
    screen = Screen()
    with (tmp_path / "lock").open("w") as stream:
        screen.held.append(stream.fileno())
        said = run(["sh", "-c", f"ls -l /proc/self/fd/{stream.fileno()}"], screen)
        assert str(tmp_path / "lock") in said
        screen.held.clear()
        with pytest.raises(Failure):
            run([sys.executable, "-I", "-c", f"import os; os.fstat({stream.fileno()})"], screen)


PIP_WITHOUT_NAMES = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f01facd9890>: Failed to establish \
a new connection: [Errno -3] Temporary failure in name resolution')': /simple/uv/
ERROR: Could not find a version that satisfies the requirement uv==0.12.1 (from versions: none)
ERROR: No matching distribution found for uv==0.12.1
"""


@pytest.mark.parametrize("path", ["/simple/uv/", ""])
def test_pip_is_called_pip_and_its_cause_is_the_innermost(path: str) -> None:
    """A program of a Python is named by its module; the cause is in what pip only warned of."""
    said = PIP_WITHOUT_NAMES.replace("/simple/uv/", path)
    code = f"import sys; sys.stderr.write({said!r}); sys.exit(1)"
    problem = failure_of("pip", "", said, 1, ".", False)
    assert problem.code == EXIT_NETWORK
    assert problem.what == (
        "pip failed, because the network or the index failed: Could not find a version that satisfies the "
        "requirement uv==0.12.1 (from versions: none): [Errno -3] Temporary failure in name resolution "
        "(exit status 1)"
    )
    with pytest.raises(Failure) as caught:
        run([sys.executable, "-I", "-c", code], Screen())
    assert caught.value.what.startswith("python")
    with pytest.raises(Failure) as caught:
        run([sys.executable, "-I", "-m", "pip", "nosuch"], Screen())
    assert caught.value.what.startswith("pip failed")


def test_pip_that_tries_once_alone_says_why_in_what_it_only_tells() -> None:
    """pip 23.0.1 of Debian 12, `retries = 0`; the index has a certificate that nobody knows."""
    said = (
        "Looking in indexes: https://localhost:1/simple/\nCould not fetch URL https://localhost:1/simple/uv/: There "
        "was a problem confirming the ssl certificate: HTTPSConnectionPool(host='localhost', port=1): Max retries "
        "exceeded with url: /simple/uv/ (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
        "CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate "
        "(_ssl.c:992)'))) - skipping\n"
    )
    wrong = "ERROR: Could not find a version that satisfies the requirement uv==0.12.1 (from versions: none)\n"
    problem = failure_of("pip", said, wrong, 1, ".", False)
    assert problem.code == EXIT_NETWORK
    assert problem.what == (
        "pip failed, because a certificate is not trusted: Could not find a version that satisfies the requirement "
        "uv==0.12.1 (from versions: none): unable to get local issuer certificate (_ssl.c:992) (exit status 1)"
    )
