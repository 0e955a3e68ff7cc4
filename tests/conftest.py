"""Where the reference vectors are, when they are there."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(os.environ.get("TINYDET_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and real frames beside the project; a test that asks for it skips without it."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no reference vectors at {SHARED}; set TINYDET_SHARED to their folder")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test depends on the network, or finds in this machine's cache what it would not find on another."""
    lookup = socket.getaddrinfo

    def local(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_NONAME, "the tests are offline")
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local)
        patch.setenv("TINYDET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
