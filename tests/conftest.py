"""Where the reference vectors are, when they are there."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TINYDET_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and real frames beside the project; a test that asks for it skips without it."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no reference vectors at {SHARED}; set TINYDET_SHARED to their folder")
    return SHARED
