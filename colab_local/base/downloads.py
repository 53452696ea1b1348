"""Downloads over http and https: resumed, retried, checked by hash, and the mirror rules."""

from __future__ import annotations

import base64
import http.client
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Sequence, Tuple
from urllib.parse import unquote_to_bytes

from colab_local.base import certificates
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_NETWORK, EXIT_USAGE, Failure
from colab_local.base.files import CHUNK, sha256_of
from colab_local.base.progress import Progress
from colab_local.base.terminal import Screen
from colab_local.base.text import mask

TIMEOUT_S = 30  # for a connection, and for every read from it
TRIES = 5  # of one download
FIRST_PAUSE_S = 1.0  # between two tries; doubles
PARALLEL_DOWNLOADS = 6
Rules = Sequence[Tuple[str, str]]  # of mirrors: URLs that begin with FROM are fetched from TO


class Download(NamedTuple):
    """A file to bring. target: where it goes; sha256: in hex; size: in bytes, 0 where the lock does not say."""

    url: str
    target: Path
    sha256: str
    size: int = 0


def rewrite(url: str, rules: Rules) -> str:
    """Return `url` with the longest matching FROM of the (FROM, TO) rules replaced by its TO."""
    for start, target in sorted(rules, key=lambda rule: -len(rule[0])):
        if url.startswith(start):
            return target + url[len(start) :]
    return url


def rewrite_text(text: str, rules: Rules) -> str:
    """Apply rewrite() to every URL in a lockfile's text."""
    return re.sub(r"https?://[^\s'\"#]+", lambda found: rewrite(found.group(), rules), text)


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
    target.parent.mkdir(parents=True, exist_ok=True)
    source = rewrite(wanted.url, rules)
    part = target.with_name(target.name + ".part")
    own = progress is None
    bar = progress or Progress(screen, "Downloading " + target.name, wanted.size)
    try:
        resumed = _fetch(source, part, bar)
        found = sha256_of(part)
        if found != wanted.sha256 and resumed:  # the start of the file may have been another one's: once more, whole
            bar.advance(-part.stat().st_size)
            part.unlink()
            _fetch(source, part, bar)
            found = sha256_of(part)
        if found != wanted.sha256:
            part.unlink()
            raise Failure(
                f"{mask(source)} is not the file that the lock names (found sha256 {found}, need {wanted.sha256}); "
                "it was not kept",
                "python3 bootstrap.py   # again, from another network or with --mirror",
                EXIT_INTEGRITY,
            )
        part.replace(target)
    finally:
        if own:
            bar.close()


def _fetch(source: str, part: Path, bar: Progress) -> bool:
    """Bring `source` into the file `part`, going on where an earlier try stopped; True if it went on."""

    resumed = False
    counted = 0  # bytes of this file that the bar knows of
    for attempt in range(1, TRIES + 1):
        have = part.stat().st_size if part.exists() else 0
        request = make_request(source)
        request.add_header("Accept-Encoding", "identity")
        if have and not source.startswith("file:"):
            request.add_header("Range", f"bytes={have}-")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=certificates.context()) as response:
                goes_on = getattr(response, "status", None) == 206
                start = have if goes_on else 0
                resumed = resumed or bool(start)
                bar.advance(start - counted)
                counted = start
                expected = response.headers.get("Content-Length")
                with part.open("ab" if goes_on else "wb") as stream:
                    for chunk in iter(lambda: response.read1(CHUNK), b""):  # what is there, not a full chunk
                        stream.write(chunk)
                        bar.advance(len(chunk))
                        counted += len(chunk)
                if expected is not None and counted - start < int(expected):
                    raise OSError(f"the connection ended after {counted - start} of {expected} bytes")
                return resumed
        except urllib.error.HTTPError as problem:
            if problem.code == 416 and have:  # we have all of it, or too much: the hash decides
                bar.advance(have - counted)
                return True
            reason = f"HTTP {problem.code} {problem.reason}"
            if problem.code < 500 and problem.code not in (408, 425, 429):
                raise _unreachable(source, reason) from None
        except (OSError, http.client.HTTPException) as problem:
            reason = str(getattr(problem, "reason", problem)) or type(problem).__name__
            if isinstance(getattr(problem, "reason", None), FileNotFoundError):
                raise _unreachable(source, "no such file") from None
        if attempt == TRIES:
            break
        pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
        if bar.is_news(f"{source.split('/')[2]}: {reason}"):  # with six at once and five tries it is said once
            bar.screen.report(f"{mask(source)}: {reason}. Trying again in {pause:.0f} seconds.")
        time.sleep(pause)
    raise _unreachable(source, f"{reason} ({TRIES} tries)")


def _unreachable(source: str, reason: str) -> Failure:
    """Return the failure of a download that can't be had."""
    return Failure(
        f"can't download {mask(source)}: {reason}",
        "check the network or proxy and run the same command again (other ways: --mirror, --engine host, --offline)",
        EXIT_NETWORK,
    )


def is_there(wanted: Download) -> bool:
    """Return whether the file is at its target already, whole."""
    return wanted.target.is_file() and sha256_of(wanted.target) == wanted.sha256


def download_all(files: Sequence[Download], screen: Screen, rules: Rules = ()) -> None:
    """Download several files at once under one bar; the first failure stops all."""
    missing = [wanted for wanted in files if not is_there(wanted)]
    if not missing:
        return
    title = f"Downloading {len(missing)} file{'' if len(missing) == 1 else 's'}"
    bar = Progress(screen, title, sum(wanted.size for wanted in missing))
    pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
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
        urllib.request.urlopen(make_request(url, "HEAD"), timeout=8, context=certificates.context()).close()
    except urllib.error.HTTPError as problem:
        return problem.code < 500
    except (OSError, ValueError):
        return False
    return True
