"""Downloads to the cache: by two processes at once, killed, cut off, and of other bytes than their name says."""

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.soak.harness import Child, Ended, Trial, fresh, last_line, run
from tinydet.errors import InputError
from tinydet.weights.pretrained import download_file

BODY = random.Random(0).randbytes(1_000_000)
NAME = f"weights-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"
SLOW = 0.4  # seconds of a download


class Answer(BaseHTTPRequestHandler):
    """One download, in the manner that the address names."""

    def do_GET(self) -> None:
        manner, _ = self.path.strip("/").split("/")
        self.send_response(404 if manner == "missing" else 200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        body = BODY[::-1] if manner == "wrong" else BODY[: len(BODY) // 2] if manner == "cut" else BODY
        with suppress(OSError):  # the other side was killed
            for i in range(10):
                self.wfile.write(body[i * len(body) // 10 : (i + 1) * len(body) // 10])
                time.sleep(SLOW / 10)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def fetch(address: str, manner: str, cache: Path) -> None:
    """Download the file in a manner of the server; print an InputError."""
    os.environ["no_proxy"] = "*"
    try:
        download_file(f"{address}/{manner}/{NAME}", cache / NAME)
    except InputError as error:
        print(f"error: {error}")
        raise SystemExit(2) from None


@contextmanager
def server() -> Iterator[str]:
    """Serve from a process of its own, and yield the address."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    child = Child(site.serve_forever, Path.cwd())
    site.server_close()
    try:
        yield f"http://127.0.0.1:{site.server_port}"
    finally:
        child.process.kill()
        child.end()


def downloads(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Download in all manners, then once more as it should be."""
    with server() as address:
        for number in range(count):
            manner, cache = ("two at once", "killed", "wrong", "cut", "missing")[number % 5], fresh(folder / "cache")
            get = partial(fetch, address, cache=cache)
            good = partial(get, "whole")
            if manner == "killed":
                manner = f"killed after {(after := rng.uniform(0, 1.2 * SLOW)):.2f} s"
                ends, expected = [Child(good, folder).end(after)], {0, -signal.SIGKILL}
            elif manner == "two at once":
                ends, expected = [child.end() for child in [Child(good, folder) for _ in range(2)]], {0}
            else:
                ends, expected = [run(partial(get, manner), folder)], {2}
            yield manner, next(unkept(ends, expected, cache, good), None)


def unkept(ends: list[Ended], expected: set[int], cache: Path, good: Callable[[], None]) -> Iterator[str]:
    """Name what is wrong with the ends of downloads, with the cache, or with a download after them."""
    for ended in ends:
        if ended.status not in expected or (ended.status >= 0 and ended.problem):
            yield f"status {ended.status}: {last_line(ended.output)}"
    if (cache / NAME).exists() and (expected == {2} or (cache / NAME).read_bytes() != BODY):
        yield "a damaged file is in the cache"
    ended = run(good, cache)
    if ended.status or (cache / NAME).read_bytes() != BODY:
        yield f"not downloaded again, status {ended.status}: {last_line(ended.output)}"
    if others := {path.name for path in cache.iterdir()} - {NAME, f"{NAME}.lock"}:
        yield f"{', '.join(others)} is left over"
