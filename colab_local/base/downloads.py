"""Downloads over http and https: resumed, retried, checked by hash, and the mirror rules."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Iterable, Iterator, NamedTuple, Sequence, Tuple
from urllib.parse import unquote_to_bytes, urlsplit

from colab_local.base import certificates
from colab_local.base.answers import Line
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_NETWORK, EXIT_USAGE, Failure
from colab_local.base.files import CHUNK, disk_failure, is_full, sha256_of
from colab_local.base.progress import Progress
from colab_local.base.terminal import Screen
from colab_local.base.text import mask, printable

TIMEOUT_S = 30  # for a connection, and for every read from it
TRIES = 5  # of one download
FIRST_PAUSE_S = 1.0  # between two tries; doubles
PARALLEL_DOWNLOADS = 6
LONGEST_PAUSE_S = 120  # that a server may ask for (Retry-After) before we give up on it
SLOWEST = 1000  # bytes per second, on an average over SLOW_S: less is a server that keeps us waiting for nothing
SLOW_S = 30.0
LARGEST = 4 << 30  # bytes of a file whose size the lock does not say
Rules = Sequence[Tuple[str, str]]  # of mirrors: URLs that begin with FROM are fetched from TO


class Download(NamedTuple):
    """A file to bring. target: where it goes; sha256: in hex; size: in bytes, 0 where the lock does not say.

    most: bytes that it can have where its own size is not known, but that of all files together is.
    """

    url: str
    target: Path
    sha256: str
    size: int = 0
    most: int = 0

    @property
    def bound(self) -> int:
        """The bytes after which no more is taken."""
        return self.most or self.size or LARGEST


class _TooMuch(Exception):
    """A server sends more than the file has."""


class _Bounded(http.client.HTTPConnection):
    """A connection on which the head of an answer comes within TIMEOUT_S; what follows has the download's bounds."""

    def connect(self) -> None:
        super().connect()
        self.sock: Any = Line(self.sock, min(self.timeout or TIMEOUT_S, TIMEOUT_S))

    def getresponse(self) -> http.client.HTTPResponse:
        line = self.sock
        response = super().getresponse()
        line.lift(self.timeout)
        return response


class _BoundedSecure(_Bounded, http.client.HTTPSConnection):
    """The same over TLS."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_Bounded, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_BoundedSecure, req, context=certificates.context())


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone; urllib's own also goes to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not re.match(r"https?://[^/]", newurl):
            raise urllib.error.URLError(f"it leads to {mask(newurl)!r}, which is no web address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(request: Any, timeout: float) -> Any:
    """Open a URL like urllib.request.urlopen(), but follow redirects to http and https alone."""
    return urllib.request.build_opener(_OnlyHttp, _Http, _Https).open(request, timeout=timeout)


def rewrite(url: str, rules: Rules) -> str:
    """Return `url` with the longest matching FROM of the (FROM, TO) rules replaced by its TO."""
    for start, target in sorted(rules, key=lambda rule: -len(rule[0])):
        if url.startswith(start):
            return target + url[len(start) :]
    return url


def parse_rules(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the mirror rules of 'FROM=TO' texts; raise Failure for one that isn't."""
    rules = []
    for text in texts:
        start, equals, target = text.partition("=")
        if not (equals and "://" in start and "://" in target):
            raise Failure(
                f"--mirror takes FROM=TO, two URLs (found {mask(text)!r})",
                "python3 bootstrap.py --mirror https://conda.anaconda.org/=https://mirror.example.org/conda/",
                EXIT_USAGE,
            )
        rules.append((start, target))
    return rules


def split_login(url: str) -> tuple[str, str]:
    """Return a URL without its user and password, and the Authorization header that stands for them, or ""."""
    found = re.match(r"(\w+://)([^/?#]*)@(.*)", url, re.DOTALL)
    if not found:
        return url, ""
    user, _, password = found.group(2).partition(":")
    login = base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()
    return found.group(1) + found.group(3), "Basic " + login


def make_request(url: str, method: str = "GET") -> Any:
    """Return the HTTP request for a URL; user and password in it are for its own host, not where that redirects."""

    plain, login = split_login(url)
    request = urllib.request.Request(plain, method=method, headers={"User-Agent": "colab-local"})
    if login:
        request.add_unredirected_header("Authorization", login)
    return request


def download(wanted: Download, screen: Screen, rules: Rules = (), progress: Progress | None = None) -> None:
    """Download a file: resumed, retried, checked, then moved into place in one step.

    wanted: from http, https or file, with `.part` beside its target meanwhile; rules: mirror rules; progress: a bar
    shared with other downloads.
    Raise Failure: EXIT_NETWORK when it can't be had, EXIT_INTEGRITY when its hash is not the locked one.
    """
    target = wanted.target
    if is_there(wanted):
        return
    source = rewrite(wanted.url, rules)
    part = target.with_name(target.name + ".part")
    own = progress is None
    bar = progress or Progress(screen, "Downloading " + target.name, wanted.size)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        resumed = _fetch(source, part, bar, wanted.bound)
        found = sha256_of(part)
        if found != wanted.sha256 and resumed:  # the start of the file may have been another one's: once more, whole
            bar.advance(-part.stat().st_size)
            part.unlink()
            _fetch(source, part, bar, wanted.bound)
            found = sha256_of(part)
        if found != wanted.sha256:
            raise _damaged(source, f"found sha256 {found}, need {wanted.sha256}")
        part.replace(target)
    except _TooMuch:
        _discard(part)
        raise _damaged(source, f"found more than {wanted.bound} bytes, need no more than that") from None
    except Failure as problem:
        if problem.code == EXIT_INTEGRITY:
            _discard(part)
        raise
    except OSError as problem:
        _discard(part)
        if is_full(problem):
            raise disk_failure(part.parent) from problem
        raise
    finally:
        if own:
            bar.close()


def _discard(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink()


def _damaged(source: str, found: str) -> Failure:
    """Return the failure of a download that is another file than the locked one."""
    return Failure(
        f"{mask(source)} is not the file that the lock names ({found}); it was not kept",
        "git status lockfiles   # no change there? Then from another network, or with --mirror",
        EXIT_INTEGRITY,
    )


def _fetch(source: str, part: Path, bar: Progress, bound: int) -> bool:
    """Bring `source` into the file `part`, going on where an earlier try stopped; True if it went on.

    bound: the bytes after which no more is taken.

    Raises:
        Failure: EXIT_NETWORK. _TooMuch: it has more. OSError: of the disk, not of the network.
    """
    resumed = False
    counted = 0  # bytes of this file that the bar knows of
    for attempt in range(1, TRIES + 1):
        have = part.stat().st_size if part.exists() else 0
        pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
        try:
            with _open(source, have) as response:
                goes_on = getattr(response, "status", None) == 206
                start = have if goes_on else 0
                resumed = resumed or bool(start)
                bar.advance(start - counted)
                counted = start
                expected = _content_length(response.headers)
                if start + max(expected or 0, 0) > bound:
                    raise _TooMuch
                with _Disk(part, goes_on) as disk:
                    for chunk in _chunks(response):
                        if counted + len(chunk) > bound:
                            raise _TooMuch
                        disk.write(chunk)
                        bar.advance(len(chunk))
                        counted += len(chunk)
                if expected is not None and counted - start < expected:
                    raise OSError(f"the connection ended after {counted - start} of {expected} bytes")
                return resumed
        except urllib.error.HTTPError as problem:
            if problem.code == 416 and have:  # we have all of it, or too much: the hash decides
                bar.advance(have - counted)
                return True
            reason = _in_one_line(f"HTTP {problem.code} {problem.reason}")
            if problem.code < 500 and problem.code not in (408, 425, 429):
                raise _unreachable(source, reason) from None
            pause = max(pause, retry_after(problem.headers))
            if pause > LONGEST_PAUSE_S:
                raise _unreachable(source, f"{reason}; it asks to be left alone for {pause:.0f} s") from None
        except _DiskError as problem:
            raise problem.cause from None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            cause = getattr(problem, "reason", problem)
            reason = _in_one_line(str(cause)) or type(problem).__name__
            if isinstance(cause, FileNotFoundError):
                raise _unreachable(source, "no such file") from None
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise _untrusted(source, cause.verify_message) from None
            if isinstance(problem, ValueError):  # a redirect to what is no address, a length that is no number
                raise _unreachable(source, f"its answer makes no sense ({reason})") from None
        if attempt == TRIES:
            break
        if bar.is_news(f"{source.split('/')[2]}: {reason}"):  # with six at once and five tries it is said once
            name = mask(source).rsplit("/", 1)[-1]
            bar.screen.report(f"note: {source.split('/')[2]}: {reason} ({name}). Trying again in {pause:.0f} s.")
        time.sleep(pause)
    raise _unreachable(source, f"{reason} ({TRIES} tries)")


def _in_one_line(text: str) -> str:
    """Return what a server said, as fits into an error: it may be another protocol's answer, or urllib's advice."""
    return printable(" ".join(text.split()))[:300]


def _open(source: str, have: int) -> Any:
    """Open a download; have: bytes that we have of it already."""
    if source.startswith("file:"):
        path = Path(urllib.request.url2pathname(urlsplit(source).path))
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no regular file")
    request = make_request(source)
    request.add_header("Accept-Encoding", "identity")
    if have and not source.startswith("file:"):
        request.add_header("Range", f"bytes={have}-")
    return open_url(request, TIMEOUT_S)


def _content_length(headers: Any) -> int | None:
    """Return how many bytes an answer says that it has, None where it does not say; ValueError for no number."""
    text = headers.get("Content-Length")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise ValueError(f"Content-Length: {text[:40]!r}")
    return int(text)


def _chunks(response: Any) -> Iterator[bytes]:
    """Yield what comes, as it comes; TimeoutError when it comes too slowly to ever end."""
    since, count = time.monotonic(), 0
    for chunk in iter(lambda: response.read1(CHUNK), b""):  # what is there, not a full chunk
        yield chunk
        count += len(chunk)
        seconds = time.monotonic() - since
        if seconds > SLOW_S:
            if count < SLOWEST * seconds:
                raise TimeoutError(f"only {count} bytes in {seconds:.0f} s")
            since, count = time.monotonic(), 0


class _DiskError(Exception):
    """An OSError of the disk: trying the network again would not help."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Disk:
    """The file that a download goes to; its errors are told apart from the network's."""

    def __init__(self, part: Path, goes_on: bool) -> None:
        try:
            self.stream = part.open("ab" if goes_on else "wb", buffering=0)
        except OSError as problem:
            raise _DiskError(problem) from problem

    def __enter__(self) -> _Disk:
        return self

    def __exit__(self, *unused: object) -> None:
        self.stream.close()

    def write(self, chunk: bytes) -> None:
        """Write all of a chunk."""
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self.stream.write(rest) :]
        except OSError as problem:
            raise _DiskError(problem) from problem


def retry_after(headers: Any) -> float:
    """Return the seconds that a server asks us to wait (RFC 9110, section 10.2.3), 0 where it does not."""
    text = str((headers or {}).get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    with contextlib.suppress(TypeError, ValueError, IndexError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _untrusted(source: str, why: str) -> Failure:
    """Return the failure of a download from a server that does not prove who it is."""
    return Failure(
        f"can't download {mask(source)}: its certificate is not trusted ({why})",
        certificates.cure(why),
        EXIT_NETWORK,
    )


def _unreachable(source: str, reason: str) -> Failure:
    """Return the failure of a download that can't be had."""
    return Failure(
        f"can't download {mask(source)}: {reason}",
        "check the network or proxy and run the same command again: it goes on from here (another way: --mirror)",
        EXIT_NETWORK,
    )


def is_there(wanted: Download) -> bool:
    """Return whether the file is at its target already, whole."""
    return wanted.target.is_file() and sha256_of(wanted.target) == wanted.sha256


def download_all(
    files: Sequence[Download], screen: Screen, rules: Rules = (), parallel: int = PARALLEL_DOWNLOADS
) -> None:
    """Download several files under one bar, `parallel` at a time; the first failure stops all."""
    missing = [wanted for wanted in files if not is_there(wanted)]
    if not missing:
        return
    title = f"Downloading {len(missing)} file{'' if len(missing) == 1 else 's'}"
    bar = Progress(screen, title, sum(wanted.size for wanted in missing))
    pool = ThreadPoolExecutor(parallel)
    try:
        jobs = [pool.submit(download, wanted, screen, rules, bar) for wanted in missing]
        for job in as_completed(jobs):
            job.result()
    except BaseException:
        bar.cancelled = True
        for job in jobs:
            job.cancel()
        raise
    finally:
        pool.shutdown()
        bar.close()


def is_reachable(url: str) -> bool:
    """Return whether the server behind a URL answers at all within some seconds."""

    if url.startswith("file:"):
        return True
    try:
        open_url(make_request(url, "HEAD"), 8).close()
    except urllib.error.HTTPError as problem:
        return problem.code < 500
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
