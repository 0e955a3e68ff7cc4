"""Pretrained weights: found on disk, or downloaded once, whole or not at all, over a network that may do anything.

A server of our own plays the network; no other is reached.
"""

import functools
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
from tinydet.weights import pretrained
from tinydet.weights.pretrained import (
    FILES,
    PACKAGES,
    cache_folder,
    download_file,
    find_pretrained,
    imagenet_package,
    pretrained_url,
)

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(len(BODY))
NAME = f"backbone-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"
PREFIX = NAME[9:17]


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
        self.released = threading.Event()

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.home}/v1/{NAME}"

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without a farewell, so that `resetting` can do its worst

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that went away


def polite(answer: Answer, body: bytes = BODY, *, until: int | None = None) -> None:
    answer.reply(200, body[:until], promise=len(body))


def vague(answer: Answer) -> None:
    answer.reply(200, BODY, Content_Length="")


def other(answer: Answer) -> None:
    polite(answer, OTHER)


def resetting(answer: Answer) -> None:
    polite(answer, until=100_000)
    answer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def stalling(answer: Answer) -> None:
    polite(answer, until=200_000)
    answer.server.released.wait()


def late(answer: Answer) -> None:
    answer.server.released.wait()
    polite(answer)


def until(end: int) -> Manner:
    return functools.partial(polite, until=end)


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
def path(tmp_path: Path) -> Path:
    """Where the file is to be, in a folder that is not there yet."""
    return tmp_path / "not" / "there" / NAME


def refusal(url: str, path: Path) -> str:
    """Download, and return the one line that says why not."""
    with pytest.raises(InputError) as caught:
        download_file(url, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(path: Path) -> set[str]:
    """The files beside a path, except for the lock."""
    return {other.name for other in path.parent.iterdir()} - {f"{path.name}.lock"}


def assert_whole(path: Path) -> None:
    """The file is there, and nothing is left of its download but the lock."""
    assert path.read_bytes() == BODY
    assert files(path) == {NAME}


# What comes whole


@pytest.mark.parametrize("manner", [polite, vague])
def test_a_file_is_downloaded_once(site: Site, path: Path, manner: Manner, capsys: pytest.CaptureFixture[str]) -> None:
    site.manners = [manner]
    assert download_file(site.url, path) == path
    assert_whole(path)
    assert download_file(site.url, path) == path
    assert len(site.heard) == 1
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_on_stderr(site: Site, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download_file(site.url, path, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100" in err


def test_redirects_are_followed(site: Site, path: Path) -> None:
    site.manners = [moved(f"{site.home}/elsewhere")]
    download_file(site.url, path)
    assert_whole(path)
    assert len(site.heard) == 2


# What comes in part, or is another file


@pytest.mark.parametrize("manner", [until(0), until(65_536), until(len(BODY) - 1), other])
def test_what_is_not_the_published_file_never_lands(site: Site, path: Path, manner: Manner) -> None:
    site.manners = [manner]
    line = refusal(site.url, path)
    got = line.split('"')[3]
    assert line == unreachable(site.url, path, f'invalid hash value (expected "{PREFIX}", got "{got}")')
    assert files(path) == set()
    download_file(site.url, path)
    assert_whole(path)


@pytest.mark.parametrize(
    ("manner", "reason"), [(resetting, "[Errno 104] Connection reset by peer"), (stalling, "timed out")]
)
def test_a_reset_or_a_stall_is_reported(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch, manner: Manner, reason: str
) -> None:
    monkeypatch.setattr(pretrained, "TIMEOUT", 0.3)
    site.manners = [manner]
    assert refusal(site.url, path) == unreachable(site.url, path, reason)
    assert files(path) == set()
    site.released.set()
    download_file(site.url, path)
    assert_whole(path)


# What does not come at all


def unreachable(url: str, path: Path, reason: str) -> str:
    advice = f"try again, put the file at {path} yourself, or set TINYDET_CACHE to another folder"
    return f"cannot fetch {url} ({reason}); {advice}"


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_is_reported(site: Site, path: Path, status: int) -> None:
    site.manners = [failing(status)]
    assert refusal(site.url, path) == unreachable(site.url, path, f"HTTP Error {status}: as it is")
    assert len(site.heard) == 1
    assert files(path) == set()


def test_a_closed_port_is_reported(path: Path, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"
    assert refusal(url, path) == unreachable(url, path, "<urlopen error [Errno 111] Connection refused>")


def test_a_silent_server_is_reported(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "TIMEOUT", 0.3)
    site.manners = [late]
    assert refusal(site.url, path) == unreachable(site.url, path, "timed out")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("to", ["file:///etc/hosts", "http://127.0.0.1:port/", "data:,x"])
def test_redirects_lead_to_no_file(site: Site, path: Path, to: str) -> None:
    site.manners = [moved(to)]
    assert refusal(site.url, path).startswith(f"cannot fetch {site.url} (")
    assert files(path) == set()


def test_redirects_in_a_ring_are_reported_on_one_line(site: Site, path: Path) -> None:
    site.manners = [moved(site.url)] * 20
    assert "infinite loop" in refusal(site.url, path)


def test_a_folder_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    reason = f"[Errno 20] Not a directory: '{folder}'"
    assert refusal(site.url, folder / NAME) == unreachable(site.url, folder / NAME, reason)
    assert site.heard == []


def test_a_full_disk_is_named(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.hub.download_url_to_file", full)
    assert refusal(site.url, path) == unreachable(site.url, path, "[Errno 28] No space left on device")


# What is there already


@pytest.fixture
def by_hand(path: Path) -> Path:
    """The same path in a folder that is there."""
    path.parent.mkdir(parents=True)
    return path


def test_a_file_put_there_by_hand_is_used(site: Site, by_hand: Path) -> None:
    by_hand.write_bytes(BODY)
    assert download_file(site.url, by_hand) == by_hand
    assert site.heard == []
    assert_whole(by_hand)


@pytest.mark.parametrize("content", [b"", BODY[:-1], BODY + b"\n", OTHER])
def test_another_file_put_there_by_hand_is_refused_and_left(site: Site, by_hand: Path, content: bytes) -> None:
    by_hand.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()[:8]
    said = f"damaged, or another file (its sha256 begins {found}, that of {NAME} {PREFIX})"
    assert refusal(site.url, by_hand) == f"{by_hand}: {said}; remove it to have it downloaded again"
    assert by_hand.read_bytes() == content
    assert site.heard == []


def test_a_folder_in_place_of_the_file_is_named(site: Site, by_hand: Path) -> None:
    by_hand.mkdir()
    assert refusal(site.url, by_hand) == f"{by_hand}: Is a directory"


# Several processes

SCRIPT = """
import sys
from pathlib import Path
from tinydet.weights.pretrained import download_file
print(download_file(sys.argv[1], Path(sys.argv[2])))
"""


def start(url: str, path: Path) -> subprocess.Popen[str]:
    """Another process that downloads a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, url, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_downloads(site: Site, path: Path) -> None:
    site.manners = [late]
    with start(site.url, path) as process:
        wait_until(lambda: len(site.heard) == 1)
        release = threading.Timer(0.3, site.released.set)  # without a lock this process would ask sooner
        release.start()
        assert download_file(site.url, path) == path
        release.join()
        assert process.communicate() == (f"{path}\n", None)
    assert process.returncode == 0
    assert len(site.heard) == 1
    assert_whole(path)


def test_a_killed_process_leaves_no_lock_and_its_bytes_are_removed(site: Site, path: Path) -> None:
    site.manners = [stalling]
    with start(site.url, path) as process:
        wait_until(lambda: any(part.stat().st_size for part in path.parent.glob("*.partial")))
        process.kill()
    (part,) = files(path)
    assert part.endswith(".partial")
    download_file(site.url, path)
    assert_whole(path)


# Names and places


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_detector_and_a_backbone_of_its_kind(model: str) -> None:
    config = model_config(model)
    detector, backbone = pretrained_url("coco", model), pretrained_url("imagenet", model)
    for url in (detector, backbone):
        assert re.fullmatch(r"https://github\.com/rwightman/[\w./-]+-[0-9a-f]{8}\.pth", url)
    google = "" if config.padding == "symmetric" else "tf_"
    assert re.search(rf"/efficientdet-pytorch/.*/{google}efficientdet_{model.split('-')[0]}[_-]", detector)
    assert re.search(rf"/pytorch-image-models/.*/{google}efficientnet_{config.backbone}[_-]", backbone)


def test_no_file_is_of_two_models_but_for_backbones_that_are_the_same() -> None:
    assert tuple(FILES) == MODELS
    detectors, backbones = zip(*FILES.values(), strict=True)
    assert len(set(detectors)) == len(MODELS)
    assert len(set(backbones)) == len({(model_config(m).backbone, model_config(m).padding) for m in MODELS})


@pytest.mark.parametrize("find", [pretrained_url, find_pretrained])
@pytest.mark.parametrize("kind", ["coco", "imagenet"])
def test_an_unknown_model_is_refused(find: Callable[[str, str], object], kind: str) -> None:
    with pytest.raises(InputError, match=r"'lite9'.*did you mean lite"):
        find(kind, "lite9")


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
        monkeypatch.setitem(pretrained.RELEASES, kind, f"{site.home}/{kind}")
    for model in ("d0", "lite0"):
        monkeypatch.setitem(FILES, model, (NAME, NAME))
    return tmp_path / "cache"


@pytest.mark.parametrize(("kind", "model"), [("coco", "d0"), ("coco", "lite0"), ("imagenet", "d0")])
def test_weights_are_downloaded_to_the_cache_and_found_there(site: Site, cache: Path, kind: str, model: str) -> None:
    assert not cache.exists()
    for _ in range(2):
        assert find_pretrained(kind, model) == cache / NAME
    assert len(site.heard) == 1


def test_a_package_comes_before_the_cache(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = imagenet_package("lite0")
    assert package is not None
    assert find_pretrained("imagenet", "lite0") == package
    assert site.heard == []
    monkeypatch.setattr(pretrained, "PACKAGES", ())
    assert find_pretrained("imagenet", "lite0") == cache / NAME


def test_a_damaged_file_in_the_cache_is_reported(site: Site, cache: Path) -> None:
    cache.mkdir()
    (cache / NAME).write_bytes(BODY[:1000])
    with pytest.raises(InputError, match=f"{NAME}: damaged, or another file"):
        find_pretrained("coco", "d0")
    assert site.heard == []


# Installed packages


@pytest.mark.parametrize("backbone", PACKAGES)
def test_every_package_of_the_extra_is_installed_here(backbone: str) -> None:
    path = imagenet_package(backbone)
    assert path is not None, "the pretrained extra belongs to the test environment"
    assert re.fullmatch(rf"efficientnet-{backbone}-[0-9a-f]{{8}}\.pth", path.name)


def test_other_backbones_have_no_package() -> None:
    assert imagenet_package("b0") is None
