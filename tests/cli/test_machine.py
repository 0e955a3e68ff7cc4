"""Tests of `tinydet.cli.machine`."""

import os
import subprocess
import sys
import time
from math import nan

import pytest

from tinydet.cli.machine import busy_note, busy_seconds


def test_a_note_where_cores_are_in_use() -> None:
    note = busy_note(1.0, 2, 2)
    assert note is not None
    assert "keep 1.0 of 2 cores busy" in note
    assert "OMP_NUM_THREADS=1 is" in note
    assert "OMP_NUM_THREADS=5 is" in str(busy_note(2.6, 8, 8))
    assert "OMP_NUM_THREADS=1 is" in str(busy_note(9.0, 2, 2))


@pytest.mark.parametrize(
    ("others", "threads", "cores"), [(0.3, 2, 2), (1.0, 1, 2), (50.0, 8, 64), (-0.1, 4, 4), (nan, 2, 2)]
)
def test_no_note_where_the_threads_have_their_cores(others: float, threads: int, cores: int) -> None:
    assert busy_note(others, threads, cores) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_busy_seconds_are_those_of_all_programs() -> None:
    before, own = busy_seconds(), time.process_time()
    while time.process_time() < own + 0.3:
        pass
    assert busy_seconds() - before > 0.25


def test_busy_seconds_are_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda _: (_ for _ in ()).throw(FileNotFoundError))
    assert str(busy_seconds()) == "nan"


@pytest.mark.parametrize(("verb", "noted"), [("train", True), ("info", False)])
def test_long_commands_say_that_the_machine_is_in_use(verb: str, noted: bool) -> None:
    code = (
        "import sys\n"
        "from itertools import count\n"
        "from tinydet.cli import machine, main\n"
        "machine.busy_seconds = count(0, 1000).__next__\n"
        "main([sys.argv[1], 'none.pt'])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, env=environment)
    assert ("note: other programs keep" in done.stderr) is noted
    assert done.stderr.splitlines()[-1].startswith("error: none.pt")
