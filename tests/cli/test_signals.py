"""Ctrl-C and a scheduler's SIGTERM end `tinydet train` after its step, and the run goes on from there."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.kitti_folders import write_kitti
from tinydet.cli import main
from tinydet.weights.checkpoint import load_checkpoint

LISTS = {"train": [f"{i:06d}" for i in range(4)], "val": ["000004"]}
# Sends signals to its own process group, the workers too, before the fourth step.
SIGNALLING = """
import os, signal, sys
from tinydet.cli import main
from tinydet.training import step, start

train_step, signals = start.train_step, [*map(int, sys.argv.pop(1).split(","))]

def signalling(state, *arguments, **settings):
    while state.step == 3 and signals:
        os.killpg(0, signals.pop(0))
    return train_step(state, *arguments, **settings)

start.train_step = signalling
main()
"""


def train(data: Path, out: Path, *, signals: str) -> subprocess.CompletedProcess[str]:
    """Train for three epochs of two steps."""
    options = "--model lite0 --size 64x128 --classes Car,Pedestrian --weights none --epochs 3 --batch-size 2"
    arguments = ["train", str(data), *options.split(), "--device", "cpu", "--workers", "2", "--out", str(out)]
    command = [sys.executable, "-c", SIGNALLING, signals, *arguments]
    return subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=120)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_run_after_its_step(tmp_path: Path, number: int) -> None:
    data, out = write_kitti(tmp_path / "my kitti", 5, lists=LISTS), tmp_path / "run"
    done = train(data, out, signals=str(int(number)))
    assert done.returncode == 128 + number, done.stderr
    *_, ends, stopped = done.stderr.splitlines()
    assert ends == "ends after this step; again to end at once"
    assert stopped == f"stopped; go on with: tinydet train '{data}' --device cpu --out {out} --resume"
    assert "Traceback" not in done.stderr
    training = load_checkpoint(out / "last.pt").training
    assert (training["step"], len(training["history"])) == (4, 1)
    result = CliRunner().invoke(main, ["train", str(data), "--out", str(out), "--resume"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(out / "last.pt").training["step"] == 6


def test_the_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    data, out = write_kitti(tmp_path / "kitti", 5, lists=LISTS), tmp_path / "run"
    done = train(data, out, signals=f"{signal.SIGINT},{signal.SIGTERM}")
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert load_checkpoint(out / "last.pt").training["step"] == 2


def test_other_commands_end_by_ctrl_c_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tinydet.runs.list_runs", interrupt)
    result = CliRunner().invoke(main, ["runs"])
    assert (result.exit_code, result.stderr) == (130, "\nstopped\n")
