"""Published weights: found where they are, and otherwise downloaded once, whole or not at all, over a network that may
do anything. A server of our own plays the network; no other is reached."""

import gc
import hashlib
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tinydet.errors import InputError
from tinydet.model.config import MODELS, model_config
from tinydet.weights import fetch
from tinydet.weights.fetch import (
    FILES,
    PACKAGES,
    cache_folder,
    download,
    find_published,
    imagenet_package,
    published,
    published_at_hand,
)

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(len(BODY))
NAME = f"trunk-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"
BOTH_DIGESTS = f"its sha256 begins {hashlib.sha256(OTHER).hexdigest()[:8]}, that of {NAME} {NAME[6:14]}"


# The server


class Answer(BaseHTTPRequestHandler):
    """One request, answered in the manner that is next."""

    server: "Site"

    def do_GET(self) -> None:
        self.server.heard.append(self.headers)
        (self.server.manners.pop(0) if self.server.manners else polite)(self)

    def reply(self, status: int, body: bytes = b"", *, promise: int | None = None, **headers: object) -> None:
        """Send a body, having promised as many bytes as it has or another number."""
        self.send_response(status, "as it is")
        for name, value in {"Content_Length": len(body) if promise is None else promise, **headers}.items():
            if value != "":
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.server.sent.append(len(body))

    def log_message(self, format: str, *args: Any) -> None:
        pass


Manner = Callable[[Answer], None]


class Site(ThreadingHTTPServer):
    """A server whose answers are scripted, and polite after that."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.manners: list[Manner] = []
        self.heard: list[Message] = []
        self.sent: list[int] = []
        self.released = threading.Event()

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.home}/v1/{NAME}"

    @property
    def ranges(self) -> list[str | None]:
        return [headers["Range"] for headers in self.heard]

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without a farewell, so that `resetting` can do its worst

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that went away


def polite(answer: Answer, body: bytes = BODY, *, until: int | None = None) -> None:
    """Send what is asked for, as far as it is to come."""
    asked = re.fullmatch(r"bytes=(\d+)-", answer.headers["Range"] or "")
    start = int(asked[1]) if asked else 0
    if start >= len(body):
        answer.reply(416, Content_Range=f"bytes */{len(body)}")
    else:
        part = f"bytes {start}-{len(body) - 1}/{len(body)}" if asked else ""
        answer.reply(206 if asked else 200, body[start:until], promise=len(body) - start, Content_Range=part)


def deaf(answer: Answer) -> None:
    answer.reply(200, BODY)


def vague(answer: Answer) -> None:
    answer.reply(200, BODY, Content_Length="")


def other(answer: Answer) -> None:
    polite(answer, OTHER)


def resetting(answer: Answer) -> None:
    polite(answer, until=100_000)
    answer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def stalling(answer: Answer) -> None:
    polite(answer, until=100_000)
    answer.server.released.wait()


def late(answer: Answer) -> None:
    answer.server.released.wait()
    polite(answer)


def until(end: int) -> Manner:
    return lambda answer: polite(answer, until=end)


def lying(part: str) -> Manner:
    return lambda answer: answer.reply(206, OTHER[:1000], Content_Range=part)


def failing(status: int) -> Manner:
    return lambda answer: answer.reply(status, b"<html>no</html>")


def moved(to: str) -> Manner:
    return lambda answer: answer.reply(302, Location=to)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    connect = socket.create_connection

    def connect_here(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        assert address[0] == "127.0.0.1"
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", connect_here)
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        site.released.set()
        site.shutdown()
        thread.join()
    gc.collect(1)  # a socket or a file left open speaks up now


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / f"{NAME}.partial"


def refusal(url: str, folder: Path) -> str:
    """Download, and return the one line that says why not."""
    with pytest.raises(InputError) as caught:
        download(url, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_whole(folder: Path) -> None:
    """The file is there and nothing is left of its download but the lock."""
    assert (folder / NAME).read_bytes() == BODY
    assert {path.name for path in folder.iterdir()} <= {NAME, f"{NAME}.lock"}


# What comes whole


def test_a_file_comes_whole_and_once(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert download(site.url, folder) == folder / NAME
    assert_whole(folder)
    assert site.heard[0]["User-Agent"] == "tinydet"
    assert site.ranges == [None]
    assert download(site.url, folder) == folder / NAME
    assert len(site.heard) == 1


def test_a_file_of_unknown_length_comes_whole(site: Site, tmp_path: Path) -> None:
    site.manners = [vague]
    calls: list[tuple[int, int | None]] = []
    download(site.url, tmp_path, progress=lambda *call: calls.append(call))
    assert_whole(tmp_path)
    assert calls[0] == (0, None)
    assert calls[-1] == (len(BODY), None)


def test_redirects_are_followed_with_the_range(site: Site, tmp_path: Path, partial: Path) -> None:
    partial.write_bytes(BODY[:1000])
    site.manners = [moved(f"{site.home}/elsewhere")]
    download(site.url, tmp_path)
    assert_whole(tmp_path)
    assert site.ranges == ["bytes=1000-"] * 2


def test_progress_counts_up_from_what_is_there(site: Site, tmp_path: Path, partial: Path) -> None:
    partial.write_bytes(BODY[:1000])
    calls: list[tuple[int, int | None]] = []
    download(site.url, tmp_path, progress=lambda *call: calls.append(call))
    counts = [done for done, _ in calls]
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (1000, len(BODY))
    assert len(counts) > 3
    assert {total for _, total in calls} == {len(BODY)}


# What comes in part


@pytest.mark.parametrize("end", [1, 65_536, len(BODY) - 1])
def test_a_truncated_download_goes_on_where_it_stopped(site: Site, tmp_path: Path, partial: Path, end: int) -> None:
    site.manners = [until(end)]
    line = refusal(site.url, tmp_path)
    assert line.startswith(f"{site.url}: {end} of {len(BODY)} bytes came (")
    assert line.endswith("); run again to go on from there")
    assert partial.read_bytes() == BODY[:end]
    assert not (tmp_path / NAME).exists()
    download(site.url, tmp_path)
    assert_whole(tmp_path)
    assert site.ranges == [None, f"bytes={end}-"]
    assert site.sent == [end, len(BODY) - end]


def test_a_resumed_download_may_be_truncated_too(site: Site, tmp_path: Path) -> None:
    site.manners = [until(1000), until(5000)]
    refusal(site.url, tmp_path)
    assert f": 5000 of {len(BODY)} bytes came" in refusal(site.url, tmp_path)
    download(site.url, tmp_path)
    assert_whole(tmp_path)
    assert site.ranges == [None, "bytes=1000-", "bytes=5000-"]


@pytest.mark.parametrize(("manner", "reason"), [(resetting, "Connection reset by peer"), (stalling, "timed out")])
def test_a_reset_or_a_stall_is_a_truncation(
    site: Site, tmp_path: Path, partial: Path, monkeypatch: pytest.MonkeyPatch, manner: Manner, reason: str
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    site.manners = [manner]
    assert re.search(rf": \d+ of {len(BODY)} bytes came \({reason}\); run again", refusal(site.url, tmp_path))
    come = partial.stat().st_size
    site.released.set()
    download(site.url, tmp_path)
    assert_whole(tmp_path)
    assert site.ranges == [None, f"bytes={come}-" if come else None]


# What has to start over


@pytest.mark.parametrize(
    "manner", [failing(416), deaf, lying("bytes 7-1006/300000"), lying("bytes */300000"), lying("")]
)
def test_a_server_that_cannot_resume_starts_over(site: Site, tmp_path: Path, partial: Path, manner: Manner) -> None:
    partial.write_bytes(BODY[:1000])
    site.manners = [manner]
    download(site.url, tmp_path)
    assert_whole(tmp_path)
    assert site.ranges == ["bytes=1000-", None][: 1 if manner is deaf else 2]


@pytest.mark.parametrize("left", [OTHER[:1000], BODY, BODY + b"more", OTHER])
def test_a_stale_partial_is_given_up(site: Site, tmp_path: Path, partial: Path, left: bytes) -> None:
    partial.write_bytes(left)
    download(site.url, tmp_path)
    assert_whole(tmp_path)
    assert site.ranges == [f"bytes={len(left)}-", None]


@pytest.mark.parametrize(("left", "requests"), [(b"", 1), (BODY[:1000], 2)])
def test_another_file_is_refused(site: Site, tmp_path: Path, partial: Path, left: bytes, requests: int) -> None:
    partial.write_bytes(left)
    site.manners = [other] * requests
    assert refusal(site.url, tmp_path) == f"{site.url}: what came is damaged, or another file ({BOTH_DIGESTS})"
    assert len(site.heard) == requests
    assert not partial.exists()
    assert not (tmp_path / NAME).exists()


# What does not come at all


def unreachable(url: str, path: Path, reason: str) -> str:
    return f"cannot fetch {url} ({reason}); you can put the file at {path} yourself"


@pytest.mark.parametrize("status", [403, 404, 416, 503])
def test_a_refusal_is_told(site: Site, tmp_path: Path, status: int) -> None:
    site.manners = [failing(status)]
    assert refusal(site.url, tmp_path) == unreachable(site.url, tmp_path / NAME, f"HTTP {status} as it is")
    assert len(site.heard) == 1


def test_a_refusal_leaves_what_had_come(site: Site, tmp_path: Path, partial: Path) -> None:
    partial.write_bytes(BODY[:1000])
    site.manners = [failing(503)]
    refusal(site.url, tmp_path)
    assert partial.read_bytes() == BODY[:1000]


def test_nobody_listens(tmp_path: Path, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"
    assert refusal(url, tmp_path) == unreachable(url, tmp_path / NAME, "Connection refused")


def test_nobody_answers(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    site.manners = [late]
    assert refusal(site.url, tmp_path) == unreachable(site.url, tmp_path / NAME, "timed out")


@pytest.mark.parametrize(
    "manner", [moved("file:///etc/hosts"), moved("ftp://127.0.0.1/x"), moved("http://127.0.0.1:port/")]
)
def test_redirects_lead_nowhere_but_to_http(site: Site, tmp_path: Path, manner: Manner) -> None:
    site.manners = [manner]
    assert refusal(site.url, tmp_path).startswith(f"cannot fetch {site.url} (")
    assert not (tmp_path / NAME).exists()


def test_redirects_in_a_ring_are_told_on_one_line(site: Site, tmp_path: Path) -> None:
    site.manners = [moved(site.url)] * 20
    assert "infinite loop" in refusal(site.url, tmp_path)


@pytest.mark.parametrize("url", [f"file:///tmp/{NAME}", f"ftp://127.0.0.1/{NAME}", f"data:,/{NAME}"])
def test_other_schemes_are_refused(tmp_path: Path, url: str) -> None:
    assert "unknown url type" in refusal(url, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal(site.url, tmp_path / "file" / "cache")
    assert line.startswith(f"{tmp_path / 'file' / 'cache'}: ")
    assert "Not a directory" in line
    assert site.heard == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named(site: Site, tmp_path: Path, partial: Path) -> None:
    partial.symlink_to("/dev/full")
    said = f"cannot keep {NAME} there (No space left on device); TINYDET_CACHE names another folder"
    assert refusal(site.url, tmp_path) == f"{tmp_path}: {said}"


# What is there already


def test_a_file_put_there_by_hand_is_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(BODY)
    assert download(site.url, tmp_path) == tmp_path / NAME
    assert site.heard == []
    assert_whole(tmp_path)


@pytest.mark.parametrize("content", [b"", BODY[:-1], BODY + b"\n", OTHER])
def test_another_file_put_there_by_hand_is_refused_and_left(site: Site, tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    line = refusal(site.url, tmp_path)
    assert line.startswith(f"{tmp_path / NAME}: damaged, or another file (")
    assert hashlib.sha256(content).hexdigest()[:8] in line
    assert f"that of {NAME} {NAME[6:14]}); remove it" in line
    assert (tmp_path / NAME).read_bytes() == content
    assert site.heard == []


def test_a_folder_in_place_of_the_file_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert refusal(site.url, tmp_path) == f"{tmp_path / NAME}: Is a directory"


# Several processes

SCRIPT = """
import sys
from pathlib import Path
from tinydet.weights.fetch import download
print(download(sys.argv[1], Path(sys.argv[2])))
"""


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    """Another process that downloads a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, url, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_downloads(site: Site, tmp_path: Path) -> None:
    site.manners = [late]
    with start(site.url, tmp_path) as process:
        wait_until(lambda: len(site.heard) == 1)
        release = threading.Timer(0.3, site.released.set)  # without a lock this process would ask sooner
        release.start()
        assert download(site.url, tmp_path) == tmp_path / NAME
        release.join()
        assert process.communicate() == (f"{tmp_path / NAME}\n", None)
    assert process.returncode == 0
    assert len(site.heard) == 1
    assert_whole(tmp_path)


def test_a_killed_process_leaves_its_bytes_and_no_lock(site: Site, tmp_path: Path, partial: Path) -> None:
    site.manners = [stalling]
    with start(site.url, tmp_path) as process:
        wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
        process.kill()
    come = partial.stat().st_size
    download(site.url, tmp_path)
    assert_whole(tmp_path)
    assert site.ranges == [None, f"bytes={come}-"]


# Names and places


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_detector_and_a_trunk_of_its_own_kind(model: str) -> None:
    config = model_config(model)
    detector, trunk = published("coco", model), published("imagenet", model)
    for url in (detector, trunk):
        assert re.fullmatch(r"https://github\.com/rwightman/[\w./-]+-[0-9a-f]{8}\.pth", url)
    google = "" if config.padding == "symmetric" else "tf_"
    assert re.search(rf"/efficientdet-pytorch/.*/{google}efficientdet_{model.split('-')[0]}[_-]", detector)
    assert re.search(rf"/pytorch-image-models/.*/{google}efficientnet_{config.backbone}[_-]", trunk)


def test_no_file_is_of_two_models_but_for_trunks_that_are_the_same() -> None:
    assert tuple(FILES) == MODELS
    detectors, trunks = zip(*FILES.values(), strict=True)
    assert len(set(detectors)) == len(MODELS)
    assert len(set(trunks)) == len({(model_config(m).backbone, model_config(m).padding) for m in MODELS})


@pytest.mark.parametrize("find", [published, published_at_hand, find_published])
@pytest.mark.parametrize("kind", ["coco", "imagenet"])
def test_a_model_of_nobody_elses(find: Callable[[str, str], object], kind: str) -> None:
    with pytest.raises(InputError, match=f"no {kind} weights are published for 'mine', only for d0, d1, "):
        find(kind, "mine")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"TINYDET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"TINYDET_CACHE": "~/a"}, "/home/me/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/tinydet"),
        ({"TINYDET_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/tinydet"),
        ({}, "/home/me/.cache/tinydet"),
    ],
)
def test_the_environment_says_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str
) -> None:
    for name in ("TINYDET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


@pytest.fixture
def cache(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a site that publishes the weights of d0 and lite0."""
    monkeypatch.setenv("TINYDET_CACHE", str(tmp_path / "cache"))
    for kind in ("coco", "imagenet"):
        monkeypatch.setitem(fetch.RELEASES, kind, f"{site.home}/{kind}")
    for model in ("d0", "lite0"):
        monkeypatch.setitem(FILES, model, (NAME, NAME))
    return tmp_path / "cache"


@pytest.mark.parametrize(("kind", "model"), [("coco", "d0"), ("coco", "lite0"), ("imagenet", "d0")])
def test_weights_are_downloaded_to_the_cache_and_found_there(site: Site, cache: Path, kind: str, model: str) -> None:
    calls: list[int] = []
    assert published_at_hand(kind, model) is None
    assert not cache.exists()
    assert find_published(kind, model, progress=lambda done, total: calls.append(done)) == cache / NAME
    assert calls[-1] == len(BODY)
    assert published_at_hand(kind, model) == find_published(kind, model) == cache / NAME
    assert len(site.heard) == 1


def test_a_package_comes_before_the_cache(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = imagenet_package("lite0")
    assert package is not None
    assert published_at_hand("imagenet", "lite0") == find_published("imagenet", "lite0") == package
    assert site.heard == []
    monkeypatch.delitem(PACKAGES, "lite0")
    assert published_at_hand("imagenet", "lite0") is None
    assert find_published("imagenet", "lite0") == cache / NAME


def test_a_damaged_file_in_the_cache_is_told(site: Site, cache: Path) -> None:
    cache.mkdir()
    (cache / NAME).write_bytes(BODY[:1000])
    for find in (published_at_hand, find_published):
        with pytest.raises(InputError, match=f"{NAME}: damaged, or another file"):
            find("coco", "d0")
    assert site.heard == []


# Installed packages


@pytest.mark.parametrize("backbone", PACKAGES)
def test_every_package_of_the_extra_is_installed_here(backbone: str) -> None:
    path = imagenet_package(backbone)
    assert path is not None, "the pretrained extra belongs to the test environment"
    assert re.fullmatch(rf"efficientnet-{backbone}-[0-9a-f]{{8}}\.pth", path.name)


def test_other_backbones_have_no_package() -> None:
    assert imagenet_package("b0") is None
