"""Two processes of torchrun train as one does, bit for bit; they end, or go on, whatever happens to one of them."""

import json
import re
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.checkpoints import assert_same
from tests.kitti_folders import write_kitti
from tests.torchrun import PAIR, THREADS, Kill, torchrun
from tinydet.cli import main
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.training.loop import train
from tinydet.training.settings import TrainSettings
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

TRAINED, IMAGES = 8, 11
OPTIONS = "--classes Car,Pedestrian --freeze norms --epochs 3 --batch-size 2 --keep 1 --device cpu --workers 0"
Ended = CompletedProcess[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and start.pt."""
    home = tmp_path_factory.mktemp("home")
    names = [f"{i:06d}" for i in range(IMAGES)]
    write_kitti(home / "kitti", IMAGES, lists={"train": names[:TRAINED], "val": names[TRAINED:]})
    torch.manual_seed(0)
    config = model_config("lite0", classes=("Car", "Pedestrian"), image_size=(64, 128))
    variables = params_and_buffers(EfficientDet(config))
    save_checkpoint(home / "start.pt", Checkpoint(config, *variables, *variables, {}))
    return home


def arguments(home: Path, out: str, *more: str) -> list[str]:
    """The arguments of a run of three epochs."""
    return [
        "train",
        f"{home / 'kitti'}",
        "--weights",
        f"{home / 'start.pt'}",
        *OPTIONS.split(),
        "--out",
        f"{home / out}",
        *more,
    ]


@contextmanager
def as_in_a_pair() -> Iterator[None]:
    """Compute with as many threads as one of two processes does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(threads)


def go_on(run: Path) -> Any:
    """Resume a run with one process; return its state at the end."""
    settings = TrainSettings(**load_checkpoint(run / "last.pt").training["settings"])
    with as_in_a_pair():
        deque(train(settings, run, resume=True))
    return state(run)


def state(run: Path) -> Any:
    """All of a run's last checkpoint but the seconds, and how many processes it started with."""
    *weights, training = load_checkpoint(run / "last.pt")
    for row in training["history"]:
        for name in ("train_seconds", "wait_seconds", "val_seconds"):
            del row[name]
    del training["elapsed"], training["settings"]
    return weights, training


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but for the seconds."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.endswith("seconds")} for line in lines]


def files(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    """The run of one process."""
    with as_in_a_pair():
        result = CliRunner().invoke(main, arguments(home, "alone", "--grad-accumulation", "2"), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return home / "alone"


@pytest.fixture(scope="module")
def terminated(home: Path, alone: Path) -> Ended:
    """Two processes that go on with the run of one after its first epoch; in mid-epoch torchrun gets a SIGTERM."""
    (home / "terminated").mkdir()
    shutil.copy(alone / "epoch-1.pt", home / "terminated/last.pt")
    kill = Kill(signal.SIGTERM, rank=1, step=4, torchrun=True)
    return torchrun("train", json.dumps([kill]), *arguments(home, "terminated", "--resume"), module="tests.torchrun")


def test_two_processes_stop_by_sigterm_and_one_goes_on(home: Path, alone: Path, terminated: Ended) -> None:
    assert terminated.returncode != 0
    assert terminated.stderr.count("stopped; go on with: torchrun --nproc-per-node=2 -m tinydet train") == 1
    assert load_checkpoint(home / "terminated/last.pt").training["step"] in (4, 5)
    assert_same(go_on(home / "terminated"), state(alone))
    assert rows(home / "terminated") == rows(alone)


@pytest.fixture(scope="module")
def killed(home: Path) -> Ended:
    """Two processes of which the second dies in the first life of the run, and the first in the next."""
    kills = [Kill(signal.SIGKILL, rank=1, step=4), Kill(signal.SIGKILL, rank=0, step=6, restart=1)]
    run = arguments(home, "killed", "--resume", "auto")
    return torchrun("train", json.dumps(kills), *run, launcher=[*PAIR, "--max-restarts=2"], module="tests.torchrun")


def test_a_run_whose_processes_are_killed_goes_on(home: Path, alone: Path, killed: Ended) -> None:
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.count("batch     2 x 2 processes = 4, 2 steps an epoch") == 3  # once a life, not a process
    assert_same(state(home / "killed"), state(alone))
    assert len(rows(alone)) == 3
    assert rows(home / "killed") == rows(alone)
    assert files(home / "killed") == files(alone)
    done = re.findall(r"3 epochs(?:, of which (\d) are done)?$", killed.stdout, re.MULTILINE)
    assert done == ["", "1", "2"]
    (lost,) = re.findall("^stopped: another process has ended.*", killed.stderr, re.MULTILINE)
    assert lost.endswith("--resume")


def test_an_image_that_one_process_cannot_read_ends_the_run(home: Path) -> None:
    image = home / "cut/training/image_2/000010.jpg"  # which the second process validates
    shutil.copytree(home / "kitti", home / "cut")
    image.write_bytes(image.read_bytes()[:-50])
    began = time.monotonic()
    ended = torchrun("train", home / "cut", *arguments(home, "failed")[2:])
    assert time.monotonic() - began < 60
    assert ended.returncode != 0
    (error,) = re.findall("^error: .*", ended.stderr, re.MULTILINE)
    assert error.startswith(f"error: rank 1: {image}: not a readable image (image file is truncated")
    assert error.endswith(
        f"; then go on with: torchrun --nproc-per-node=2 -m tinydet train {home / 'cut'} "
        f"--device cpu --out {home / 'failed'} --resume"
    )


@pytest.fixture(scope="module")
def reports(home: Path) -> list[Any]:
    """What each of two processes reports that start runs of which each has its own arguments, and a gradient."""
    every = arguments(home, "refused")
    others = [
        [*every, "--batch-size", "3"],
        ["train", str(write_kitti(home / "other", TRAINED)), *every[2:]],
        ["train", str(home / "nowhere"), *every[2:]],
        [*every, "--out", str(home / "elsewhere")],
    ]
    runs = json.dumps([[every, other] for other in others])
    ended = torchrun("report", runs, home / "start.pt", home, module="tests.torchrun")
    assert ended.returncode == 0, ended.stderr
    return [json.loads((home / f"{rank}.json").read_text()) for rank in range(2)]


def test_processes_that_differ_are_refused_at_the_start(home: Path, reports: list[Any]) -> None:
    first, second = (report["said"] for report in reports)
    names = [f"rank {rank} on {socket.gethostname()}" for rank in range(2)]
    lines = [
        f"{names[1]} has batch_size 3, but {names[0]} has 2",
        f"{names[1]} has data 7 images with 11 objects to train on and 1 images with 1 objects to validate on, "
        f"but {names[0]} has 8 images with 12 objects to train on and 3 images with 4 objects to validate on",
        f"{names[1]}: {home / 'nowhere'}: no such file or folder",
        f"{names[1]} has out {home / 'elsewhere'}, but {names[0]} has {home / 'refused'}",
    ]
    assert first == [[2, f"error: {line}\n"] for line in lines]
    assert second == [[2, ""]] * len(lines)
    assert not (home / "refused").exists()


def test_the_gradient_is_that_of_distributed_data_parallel(reports: list[Any]) -> None:
    assert max(report["difference"] for report in reports) < 1e-5
