"""What `tinydet bench` measures, finds beside the weights, and advises."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kitti_folders import write_kitti
from tinydet import bench
from tinydet.bench import Row, Way, advise, best_batch, find_ways, measure, read_images
from tinydet.detector import load
from tinydet.errors import InputError, raise_error
from tinydet.model.config import ModelConfig, model_config
from tinydet.training.state import init, save
from tinydet.weights.load import load_detector
from tinydet.weights.onnx_file import OnnxFile

IMAGE = np.zeros((64, 96, 3), np.uint8)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAUSE", 0)


def tiny(**changes: Any) -> ModelConfig:
    small: dict[str, Any] = {"num_channels": 16, "fpn_repeats": 1, "head_repeats": 1}
    return model_config("lite0", **{"classes": ("Car",), "image_size": (64, 96), **small, **changes})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, config = tmp_path_factory.mktemp("weights") / "best.pt", tiny()
    save(path, init(config, weights="none")[1], config)
    return path


class Fake:
    """A detector that takes some seconds a call and some an image, up to `holds` images, and `lasts` for some calls."""

    workers = 2

    def __init__(
        self, call: float = 0, image: float = 0, *, holds: int = 1000, lasts: int = 1000, compiled: bool = False
    ) -> None:
        self.call, self.image, self.holds, self.lasts, self.compiled = call, image, holds, lasts, compiled
        self.engines, self.batches, self.threads = [self], set[int](), set[int]()

    def __call__(self, image: np.ndarray, **limits: Any) -> None:
        self.detect([image])

    def predict(self, images: Iterable[np.ndarray], *, batch_size: int, **limits: Any) -> Iterator[np.ndarray]:
        stream = iter(images)
        while group := [*islice(stream, batch_size)]:
            self.detect(group)
            yield from group

    def prepare(self, images: Sequence[np.ndarray], *, names: Sequence[str]) -> Sequence[np.ndarray]:
        assert len(images) == len(names)
        return images

    def detect(self, prepared: Sequence[np.ndarray], **limits: Any) -> None:
        self.batches.add(len(prepared))
        self.threads.add(torch.get_num_threads())
        if len(prepared) > self.holds:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        self.lasts -= 1
        if self.lasts < 0:
            raise ValueError("no such\nthing")
        time.sleep(self.call + self.image * len(prepared))


@pytest.mark.parametrize(
    ("detector", "batch"), [(Fake(image=0.1), 1), (Fake(call=0.1), 64), (Fake(call=0.1, holds=7), 4)]
)
def test_the_batch_grows_while_that_pays_and_memory_holds(detector: Any, batch: int) -> None:
    assert best_batch(detector, [IMAGE], seconds=0) == batch


def test_an_engine_without_memory_for_one_image_fails() -> None:
    detector: Any = Fake(holds=0)
    with pytest.raises(RuntimeError, match="memory"):
        best_batch(detector, [IMAGE], seconds=0)


def test_a_row_holds_what_an_engine_took(path: Path) -> None:
    (row,) = measure({"eager": lambda: load(path)}, [IMAGE], threads=[1], seconds=0.01, tell=lambda _: None)
    figures: Any = row[3:]
    assert min(figures) > 0
    assert row.prepare + row.network + row.postprocess == pytest.approx(row.latency, rel=0.5)  # type: ignore[operator]


def test_engines_take_turns_with_their_threads_and_one_may_fail() -> None:
    before, one, compiled = torch.get_num_threads(), Fake(call=0.005), Fake(compiled=True)
    broken = partial(raise_error, InputError("no such\nthing"))
    dying = [Fake(image=0.002, lasts=5), Fake(lasts=1)]  # after the batch was chosen, and before
    makers: Any = {"one": lambda: one, "broken": broken, "dying": dying.pop, "compiled": lambda: compiled}
    rows = measure(makers, [IMAGE], threads=[3, 1], seconds=0, tell=lambda _: None)
    assert torch.get_num_threads() == before
    assert one.threads == {3, 1}
    notes = {"broken": "no such", "dying": "no such"}
    assert [row[:3] for row in rows] == [(name, n, notes.get(name, "")) for name in makers for n in (3, 1)]
    assert all(set(row[3:]) == {None} for row in rows if row.note)
    assert rows[0].latency > 5  # type: ignore[operator]
    assert rows[0].images_per_second > 250  # type: ignore[operator]
    assert compiled.batches == {1, rows[0].batch, rows[1].batch}  # for each of which it was compiled


def test_the_ways_to_run_weights(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = partial(find_ways, folder=tmp_path, images=[IMAGE], device="cpu", tell=lambda _: None)
    monkeypatch.setattr(bench, "export_model", lambda _, out, format: out.touch())
    monkeypatch.setattr(bench, "quantize_onnx", lambda source, out, images: shutil.copy(source, out))
    monkeypatch.setattr(bench, "load_any", lambda source, device: load_detector(path))
    weights = load_detector(path)
    ways = find(weights, path, compile=True)
    assert [*ways] == ["eager", "ONNX Runtime", "ONNX Runtime int8", "compiled"]
    assert ways["compiled"].options == f"--weights {path} --compile"
    assert ways["ONNX Runtime"][1:] == (f"--weights {path.parent}/best.onnx", f"tinydet export {path} && ")
    made = f"tinydet export {path} --int8 DATA && "
    assert ways["ONNX Runtime int8"][1:] == (f"--weights {path.parent}/best.int8.onnx", made)
    assert all(way.make().config == tiny() for name, way in ways.items() if name != "compiled")
    assert sorted(os.listdir(tmp_path)) == ["best.int8.onnx", "best.onnx"]

    path.with_suffix(".onnx").touch()
    ways = find(weights, path, compile=False)
    assert [*ways] == ["eager", "ONNX Runtime", "ONNX Runtime int8"]
    assert ways["ONNX Runtime"][1:] == (f"--weights {path.parent}/best.onnx", "")
    other = find(weights._replace(config=tiny(classes=("Dog",))), path, compile=False)
    with pytest.raises(InputError, match=r"best\.onnx: of another detector; export it again"):
        other["ONNX Runtime"].make()
    swish = weights._replace(config=tiny(activation="swish"))
    assert [*find(swish, path, compile=False)] == ["eager", "ONNX Runtime"]
    file: Any = OnnxFile(tiny(), None, {}, (0,), "", "")
    assert [*find(file, path, compile=True)] == ["ONNX Runtime"]


def test_without_export_its_row_says_why(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "export_model", lambda *_, **__: raise_error(RuntimeError("needs onnx")))
    shutil.copy(path, alone := tmp_path / "alone.pt")
    how: Any = {"folder": tmp_path / "new", "images": [IMAGE], "device": "cpu", "tell": lambda _: None}
    ways = find_ways(load_detector(alone), alone, compile=False, **how)
    assert [*ways] == ["eager", "ONNX Runtime"]
    with pytest.raises(RuntimeError, match="needs onnx"):
        ways["ONNX Runtime"].make()


def row(engine: str, threads: int, latency: float, rate: float, batch: int = 1) -> Row:
    return Row(engine, threads, latency=latency, batch=batch, images_per_second=rate)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row("a", 2, 10.4, 96.0), row("a", 1, 20, 50), row("b", 2, 10, 100.0)],
            ["fastest here: a, 2 threads, 10.4 ms an image, 96.0 images/s: tinydet predict IMAGES -a"],
        ),
        (
            [row("a", 2, 20, 90, 4), row("b", 2, 12, 100, 8), Row("a", 4, "failed")],
            [
                "fastest here: b, 2 threads, 12.0 ms an image, 100.0 images/s in batches of 8: "
                "make && tinydet predict IMAGES -b --batch-size 8"
            ],
        ),
        (
            [row("a", 2, 20, 90, 4), row("b", 1, 10, 80)],
            [
                "lowest latency here: b, 1 thread, 10.0 ms an image: "
                "make && OMP_NUM_THREADS=1 tinydet predict IMAGES -b",
                "most images a second here: a, 2 threads, 90.0 images/s in batches of 4: "
                "tinydet predict IMAGES -a --batch-size 4",
            ],
        ),
    ],
)
def test_the_simplest_of_the_fastest_is_advised(rows: list[Row], said: list[str]) -> None:
    ways: dict[str, Any] = {"a": Way(lambda: Fake(), "-a"), "b": Way(lambda: Fake(), "-b", "make && ")}  # type: ignore[arg-type, return-value]
    assert advise(rows, ways, threads=2) == said


def test_images_are_of_a_folder_or_of_data(tmp_path: Path) -> None:
    write_kitti(tmp_path / "kitti", 3, lists={"train": ["000000"], "val": ["000001", "000002"]})
    assert [image.shape for image in read_images(tmp_path / "kitti")] == [(60, 200, 3)] * 2
    for number in range(40):
        Image.new("RGB", (8, 9), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    assert [image[0, 0, 0] for image in read_images(tmp_path)] == [int(39 * n / 15) for n in range(16)]
