"""A contestant for the tests of bench/: what its workers import in place of detectors."""

import os
import sys
import time
from collections.abc import Callable


def toy(*, seconds: float = 0.0, says: str = "") -> Callable[[], object]:
    """A case that does what it is told."""
    print(f"preparing {says}")

    def call() -> object:
        print("{}")  # on stdout, where the answers go
        if says == "raise":
            raise ValueError("one\n  and two")
        if says == "import":
            __import__("no_such_package")
        if says == "die":
            print("what it died of", file=sys.stderr, flush=True)
            os._exit(3)
        if says == "hang":
            time.sleep(60)
        return seconds or None

    return call
