"""The case of an import, in a process of its own: standard library only."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec


def fresh(*, module: str) -> Callable[[], object]:
    """A new Python that imports a module and ends."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    command = [sys.executable, "-c", f"import {module}"]
    return lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
