"""The same seed, machine and number of threads give the same bits, in another process and with other workers too."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tinydet as td
from tests.checkpoints import assert_same
from tests.kitti_folders import write_kitti
from tinydet.training.settings import TrainSettings
from tinydet.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def train_and_predict(data: str, out: str, workers: int) -> str:
    """Train for two epochs, augmented, and return what the result then detects in each image, as lines of JSON."""
    settings = TrainSettings(
        data, model="lite1", weights="none", classes=("Car",), image_size=(64, 64), batch_size=2, epochs=2, seed=3
    )
    list(td.train(replace(settings, workers=workers), out))
    found = td.load(Path(out) / "best.pt").predict(sorted(Path(data).rglob("*.png")), score_threshold=0, batch_size=2)
    return "\n".join(one.to_json() for one in found)


def results(out: Path) -> Iterator[Any]:
    """The checkpoints and rows of a run, without what is of the clock or names the workers."""
    for name in ("last.pt", "best.pt"):
        checkpoint = load_checkpoint(out / name)
        yield checkpoint[:5], checkpoint.training["moments"], checkpoint.training["step"]
    for line in (out / "metrics.jsonl").read_text().splitlines():
        yield {key: value for key, value in json.loads(line).items() if not key.endswith("_seconds")}


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_same_bits_in_another_process_and_with_other_workers(tmp_path: Path) -> None:
    names = [f"{i:06d}" for i in range(6)]
    data = str(write_kitti(tmp_path / "data", 6, lists={"train": names[2:], "val": names[:2]}))
    here = train_and_predict(data, str(tmp_path / "here"), 0)
    code = f"""if True:
        import torch
        from tests.soak.test_same import train_and_predict
        torch.set_num_threads({torch.get_num_threads()})
        print(train_and_predict({data!r}, {str(tmp_path / "there")!r}, 2))"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    there = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, timeout=300
    )
    assert there.stdout.strip() == here
    assert len(json.loads(here.splitlines()[0])["detections"]) > 10
    for one, other in zip(results(tmp_path / "here"), results(tmp_path / "there"), strict=True):
        assert_same(one, other)
