"""A few trials of what bin/soak tries at length, and whether it sees what is broken."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import hollow
from tests.soak.__main__ import PROMISES, Report, attempt, lines
from tests.soak.harness import NOT_TRIED, Ended, fresh, killed, operations, run
from tests.soak.training import disturbed
from tinydet.files import atomic_write
from tinydet.model.config import model_config
from tinydet.weights.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def test_a_few_trials_hold() -> None:
    command = [sys.executable, "-m", "tests.soak", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "| a run that is killed leaves whole files and goes on to the same bits | 4 | 4 |" in done.stdout


def save(folder: Path, name: str, *epochs: int) -> None:
    """Write a checkpoint, or the rows, of a run that did these epochs."""
    rows = [{"epoch": epoch} for epoch in epochs]
    if name.endswith(".pt"):
        save_checkpoint(folder / name, hollow(model_config("lite0"), training={"history": rows}))
    else:
        (folder / name).write_text("".join(f'{{"epoch": {epoch}}}\n' for epoch in epochs))


def test_a_run_that_is_ahead_or_broken_is_seen(tmp_path: Path) -> None:
    save(tmp_path, "last.pt", 1, 2)
    save(tmp_path, "best.pt", 1)
    save(tmp_path, "metrics.jsonl", 1, 2)
    assert list(disturbed(tmp_path)) == []
    save(tmp_path, "metrics.jsonl", 1, 2, 3)
    save(tmp_path, "best.pt", 2)
    assert list(disturbed(tmp_path)) == ["best.pt is ahead of last.pt", "metrics.jsonl is ahead of last.pt"]
    os.truncate(tmp_path / "last.pt", 1000)
    (tmp_path / "config.json").write_text("{")
    found = list(disturbed(tmp_path))
    assert [one.partition(":")[0] for one in found[:2]] == ["last.pt is broken", "config.json is broken"]


def test_a_child_is_killed_at_any_operation(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "a/file") as file:
            file.write(bytes(5000))

    fresh(tmp_path / "a")
    steps = operations(write, tmp_path / "a")
    assert [step.split()[0] for step in steps if "remove" not in step] == ["open", "os.fsync", "os.rename"]
    for at, step in enumerate(steps):
        fresh(tmp_path / "a")
        assert run(killed(write, tmp_path / "a", at=at), tmp_path).status == -9
        assert (tmp_path / "a/file").exists() == (at > steps.index(next(one for one in steps if "rename" in one)))
        if step.startswith("open"):
            assert run(killed(write, tmp_path / "a", at=at, size=100), tmp_path).status == -25
            assert [path.stat().st_size for path in tmp_path.glob("a/*.partial")][-1] == 100


@pytest.mark.parametrize(
    ("status", "output", "fine"),
    [
        (0, "found\n", True),
        (2, "note: x\nerror: no\n", True),
        (2, "no\n", False),
        (2, "error: no\nerror: no\n", False),
        (1, "Traceback\nerror: no\n", False),
        (-11, "", False),
        (0, "error: no\n", False),
    ],
)
def test_an_end_is_success_or_one_line(status: int, output: str, fine: bool) -> None:
    assert (Ended(status, output).problem is None) == fine


def test_the_table_names_what_failed_and_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trials(rng: random.Random, folder: Path, count: int) -> Any:
        yield from [("one", None), ("two", "broke"), (f"{NOT_TRIED}three", None), ("four", None)]
        raise ValueError("mistaken")

    monkeypatch.setitem(PROMISES, "kill", PROMISES["kill"]._replace(text="it holds", trials=trials))
    report = attempt("kill", tmp_path / "kill", seed=3, most=9, seconds=60)
    text = list(lines({"kill": report}, again="bin/soak --seed 3"))
    assert text[2:6] == [
        "| it holds | 4, 1 not tried | 2 |",
        "",
        "kill, again by bin/soak --seed 3 --only kill:",
        "- two: broke",
    ]
    assert text[6].startswith("- the trial itself failed: Traceback")
    assert text[7:] == ["- not tried: three"]
    assert list(lines({"kill": Report(4, [], [], 1.0)}, again=""))[2:] == ["| it holds | 4 | 4 |"]
