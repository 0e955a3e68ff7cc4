"""Shards together are the single process's file, byte for byte, however often each was stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import tinydet.detector
from tests.checkpoints import weights_of
from tests.full_disk import largest_file
from tests.kitti_folders import write_kitti
from tinydet.cli import main
from tinydet.cli.base import choose_device
from tinydet.data.images import read_image
from tinydet.detector import Detector
from tinydet.errors import InputError
from tinydet.files import lock_folder
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.predict import append_line, read_list, save_predictions
from tinydet.shard import Shard, digest_weights, save_shard, take_shard
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.formats import Weights

FRAMES = 7
PAGE = Path(__file__).parents[1] / "docs/many-machines.md"
MADE = {"weights": "a digest"}
# Dies while it writes the line whose number is given, as if its machine had gone down.
DYING = """
import os, signal, sys
from tinydet import shard
from tinydet.cli import main

append_line, left = shard.append_line, int(sys.argv.pop(1))

def dying(path, line):
    global left
    left -= 1
    if not left:
        with open(path, "a") as file:
            file.write(line[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    append_line(path, line)

shard.append_line = dying
main()
"""


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random weights."""
    torch.manual_seed(0)
    config = model_config("lite0", classes=("Car", "Pedestrian"), image_size=(64, 128))
    return weights_of(config, *params_and_buffers(EfficientDet(config)))


@pytest.fixture(scope="module")
def detector(weights: Weights) -> Detector:
    return Detector(weights)


@pytest.fixture(scope="module")
def home(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with best.pt, images, and list.txt of their paths."""
    home = tmp_path_factory.mktemp("home")
    variables = weights.params, weights.buffers
    save_checkpoint(home / "best.pt", Checkpoint(weights.config, *variables, *variables, {}))
    images = sorted((write_kitti(home / "kitti", FRAMES) / "training/image_2").iterdir())
    (home / "list.txt").write_text("".join(f"{image}\n" for image in images))
    return home


@pytest.fixture
def paths(home: Path) -> list[str]:
    return read_list(home / "list.txt") or []


def single(detector: Detector, paths: Sequence[str], out: Path, **settings: Any) -> bytes:
    """What one process writes to predictions.jsonl."""
    save_predictions(detector.predict(paths, **settings), out, classes=detector.classes)
    return (out / "predictions.jsonl").read_bytes()


def merged(out: Path) -> bytes:
    """What the shell's cat makes of the files of all shards."""
    return b"".join(path.read_bytes() for path in sorted(out.glob("predictions-*-of-*.jsonl")))


def predict(home: Path, *options: str | Path) -> Result:
    command = ["predict", home / "list.txt", "--weights", home / "best.pt", "--score", "0.01", "--device", "cpu"]
    return CliRunner().invoke(main, [str(one) for one in [*command, *options]], catch_exceptions=False)


def refusal(result: Result) -> str:
    """The one line that a command refuses with."""
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_shards_together_are_the_whole_list_in_batches(batch_size: int) -> None:
    for count in (0, 1, 11, 12):
        paths = [f"a/./{i}.png" for i in range(count)]
        for parts in (1, 2, 5, 20):
            shards = [take_shard(paths, i + 1, parts, batch_size=batch_size) for i in range(parts)]
            assert [path for one in shards for path in one.images] == [f"a/{i}.png" for i in range(count)]
            assert all(len(one.images) % batch_size == 0 for one in shards[:-1])
            assert max(len(one.images) for one in shards) <= batch_size * -(-count // (batch_size * parts))
            assert {(one.total, one.digest) for one in shards} == {(count, shards[0].digest)}
            names = [one.name for one in shards]
            assert sorted(names) == names
            assert len({*names}) == parts


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_lines_of_shards_are_those_of_one_process(
    detector: Detector, paths: list[str], tmp_path: Path, batch_size: int
) -> None:
    settings: Any = {"batch_size": batch_size, "score_threshold": 0.01}
    expected = single(detector, paths, tmp_path / "one", **settings)
    counts = dict.fromkeys(detector.classes, 0)
    for number in (3, 1, 2):
        shard = take_shard(paths, number, 3, batch_size=batch_size)
        for name, count in save_shard(shard, detector, tmp_path / "out", made=MADE, **settings).items():
            counts[name] += count
    assert merged(tmp_path / "out") == expected
    found = [one["class"] for line in expected.splitlines() for one in json.loads(line)["detections"]]
    assert counts == {name: found.count(name) for name in detector.classes}
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] * 3 + [".jsonl"] * 3


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_a_shard_that_was_killed_goes_on(
    home: Path, detector: Detector, paths: list[str], tmp_path: Path, batch_size: str
) -> None:
    expected = single(detector, paths, tmp_path / "one", score_threshold=0.01, batch_size=int(batch_size))
    options: list[str | Path] = ["--score", "0.01", "--device", "cpu", "--out", tmp_path / "out", "--shard", "1/1"]
    command = [home / "list.txt", "--weights", home / "best.pt", *options, "--batch-size", batch_size]
    killed = subprocess.run([sys.executable, "-c", DYING, "5", "predict", *command], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(merged(tmp_path / "out").splitlines()) == 5
    assert not merged(tmp_path / "out").endswith(b"\n")
    for _ in range(2):
        result = predict(home, "--out", tmp_path / "out", "--shard", "1/1", "--batch-size", batch_size)
        assert result.exit_code == 0, result.output
        assert merged(tmp_path / "out") == expected
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []


def test_only_the_images_of_the_shard_without_a_line_are_read(
    detector: Detector, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def spy(path: Path) -> np.ndarray:
        read.append(str(path))
        return read_image(path)

    monkeypatch.setattr(tinydet.detector, "read_image", spy)
    shard = take_shard(paths, 2, 2)
    file = tmp_path / f"{shard.name}.jsonl"
    save_shard(shard, detector, tmp_path, made=MADE)
    assert read == paths[3:]
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    read.clear()
    save_shard(shard, detector, tmp_path, made=MADE)
    assert (read, file.read_bytes()) == (paths[5:], whole)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_that_could_not_be_read_are_tried_again_and_get_their_place(
    detector: Detector, paths: list[str], tmp_path: Path, batch_size: int
) -> None:
    content = Path(paths[1]).read_bytes()
    images = [str(tmp_path / f"{i}.png") for i in range(FRAMES)]
    for image in images:
        Path(image).write_bytes(content)
    settings: Any = {"batch_size": batch_size, "score_threshold": 0.01}
    expected = single(detector, images, tmp_path / "one", **settings)
    shard, errors = take_shard(images, 1, 1, batch_size=batch_size), list[InputError]()
    for bad, gone in ((("1", "2", "5"), ("1", "2", "5")), ((), ("1", "5")), ((), ("5",)), ((), ())):
        for name in bad:
            Path(tmp_path, f"{name}.png").unlink()
        for name in {"1", "2", "5"} - {*gone}:
            Path(tmp_path, f"{name}.png").write_bytes(content)
        errors.clear()
        save_shard(shard, detector, tmp_path / "out", made=MADE, on_error=errors.append, **settings)
        assert [str(error).split(".png")[0] for error in errors] == [str(tmp_path / name) for name in gone]
        assert len(merged(tmp_path / "out").splitlines()) == FRAMES - len(gone)
    if batch_size == 1:  # else a network may have rounded by the images that were there
        assert merged(tmp_path / "out") == expected
    lines = [json.loads(line)["image"] for line in merged(tmp_path / "out").splitlines()]
    assert lines == images


def test_shards_of_another_kind_are_refused(detector: Detector, paths: list[str], tmp_path: Path) -> None:
    def message(shard: Shard, **settings: Any) -> str:
        with pytest.raises(InputError) as caught:
            save_shard(shard, detector, tmp_path, **{"made": MADE, "score_threshold": 0.5, **settings})
        return str(caught.value).removeprefix(f"{tmp_path}/")

    shard = take_shard(paths, 1, 2)
    save_shard(shard, detector, tmp_path, made=MADE, score_threshold=0.5)
    before = merged(tmp_path)
    first, second = f"{shard.name}.json", take_shard(paths, 2, 2)
    end = "; give the same, or choose another folder"
    for other in (shard, second):
        said = message(other, score_threshold=0.25)
        assert said == f"{first}: made with score_threshold 0.5, and now it is 0.25{end}"
        said = message(other, made={"weights": "others"})
        assert said == f"{first}: made with weights 'a digest', and now it is 'others'{end}"
    assert message(take_shard(paths, 1, 3)) == f"{first}: made with shards 2, and now it is 3{end}"
    assert message(take_shard(paths[1:], 2, 2)) == f"{first}: made with images 7, and now it is 6{end}"
    assert f"{first}: made with list" in message(take_shard(paths[::-1], 2, 2))
    assert f"{first}: made with batch_size 1" in message(shard, batch_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [first, f"{first}l"]

    def replaced(content: bytes) -> str:
        (tmp_path / f"{first}l").write_bytes(content)
        return message(shard).removeprefix(f"{tmp_path.name}/{first}l:")

    lines = before.splitlines(keepends=True)
    for wrong in (b"".join([lines[0], lines[2], lines[1]]), lines[0] + lines[1] + lines[1]):
        assert re.fullmatch("3: image '.+ is not the next of this shard; remove the file", replaced(wrong))
    assert replaced(lines[0] + b"mine\n") == "2: not a line of a prediction; remove the file"
    (tmp_path / first).unlink()
    said = f"{first}l: without {first}, which says what it is of; remove it, or choose another folder"
    assert message(shard) == said


def test_one_process_at_a_time_holds_a_shard(detector: Detector, paths: list[str], tmp_path: Path) -> None:
    one, other = (take_shard(paths, number, 2) for number in (1, 2))
    with lock_folder(tmp_path, name=one.name):
        save_shard(other, detector, tmp_path, made=MADE)
        with pytest.raises(InputError, match=f"{one.name}: in use by process {os.getpid()}"):
            save_shard(one, detector, tmp_path, made=MADE)


def test_a_full_disk_leaves_whole_lines(detector: Detector, paths: list[str], tmp_path: Path) -> None:
    shard, settings = take_shard(paths, 1, 1), dict[str, Any](score_threshold=0.01)
    with largest_file(25_000), pytest.raises(InputError, match=r"predictions-1-of-1\.jsonl: File too large"):
        save_shard(shard, detector, tmp_path, made=MADE, **settings)
    lines = merged(tmp_path).splitlines(keepends=True)
    assert 0 < len(lines) < FRAMES
    assert lines[-1].endswith(b"\n")
    save_shard(shard, detector, tmp_path, made=MADE, **settings)
    assert merged(tmp_path) == single(detector, paths, tmp_path / "one", **settings)


def test_a_line_is_appended_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\n")
    with largest_file(8), pytest.raises(InputError, match="File too large"):
        append_line(path, "two and three")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"


def test_the_digest_of_weights_is_of_their_numbers(weights: Weights) -> None:
    params = {name: tensor.clone() for name, tensor in reversed([*weights.params.items()])}
    assert digest_weights([weights]) == digest_weights([weights._replace(params=params, source="a copy")])
    next(iter(params.values())).view(-1)[0] += 1e-3
    others = weights._replace(params=params)
    config = weights._replace(config=replace(weights.config, image_size=(64, 64)))
    digests = [*map(digest_weights, ([weights], [others], [config], [weights, others], [others, weights]))]
    assert len({*digests}) == 5


class RayData:
    """What the page uses of Ray Data, one batch after the other, for where Ray is not installed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    @staticmethod
    def read_text(path: str) -> "RayData":
        return RayData([{"text": line} for line in Path(path).read_text().splitlines()])

    @staticmethod
    def ActorPoolStrategy(*, size: int) -> int:
        return size

    def map_batches(self, kind: Any, *, batch_size: int, compute: int) -> "RayData":
        call, columns = kind(), [*zip(*(row.values() for row in self.rows), strict=True)]
        batch = {name: np.array(column, dtype=object) for name, column in zip(self.rows[0], columns, strict=True)}
        (made,) = [call(batch)]
        return RayData([dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)])

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


# Of Ray itself, where that is installed.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_the_example_in_ray_writes_the_lines_of_one_process(
    home: Path, detector: Detector, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(import ray\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    changes = {
        "/data/best.pt": str(home / "best.pt"),
        "/data/list.txt": str(home / "list.txt"),
        "cuda": "cpu",
        "num_gpus=1, ": "",
        "size=8)": "size=1)",
    }
    for there, here in changes.items():
        assert there in code
        code = code.replace(there, here)
    monkeypatch.chdir(tmp_path)  # which Ray's processes begin in
    if find_spec("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=RayData))
    else:
        import_module("ray").init(num_cpus=2, include_dashboard=False)
    exec(code, {"__name__": "page"})
    expected = single(detector, paths, tmp_path / "one", batch_size=8)
    assert sorted((tmp_path / "predictions.jsonl").read_bytes().splitlines()) == sorted(expected.splitlines())


# The command line


def test_torchrun_gives_each_process_its_shard(
    home: Path, detector: Detector, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = single(detector, paths, tmp_path / "one", score_threshold=0.01)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        result = predict(home, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[1] == f"boxes in {tmp_path}/out/predictions-{int(rank) + 1}-of-2.jsonl"
    assert merged(tmp_path / "out") == expected
    assert predict(home, "--out", tmp_path / "other", "--shard", "3/4").exit_code == 0
    assert (tmp_path / "other/predictions-3-of-4.jsonl").is_file()
    line = refusal(predict(home, "-", "--out", tmp_path / "new"))
    assert line == "rank 1: standard input is one for all processes of torchrun; give a .txt file that lists the images"
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert predict(home, "--out", tmp_path / "alone").exit_code == 0
    assert (tmp_path / "alone/coco.json").is_file()


def test_an_output_that_is_not_finite_is_said_by_its_process(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other process of torchrun knows of it."""

    def predict_nothing(*_: Any, **__: Any) -> Iterator[Any]:
        raise FloatingPointError("image a.png: the network's output is not finite")

    monkeypatch.setattr(Detector, "predict", predict_nothing)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = predict(home, "--out", tmp_path / "out")
    said = "stopped: rank 1: image a.png: the network's output is not finite\n"
    assert (result.exit_code, result.stderr) == (1, said)


def test_unread_images_are_named_and_end_with_status_1_but_under_torchrun(
    paths: list[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchrun ends all processes when one of them ends with another status than 0."""
    (tmp_path / "list.txt").write_text(f"{paths[0]}\n{tmp_path}/gone.png\n\n{paths[1]}\n")
    (tmp_path / "best.pt").symlink_to(home / "best.pt")
    said = f"error: {tmp_path}/gone.png: not a readable image (No such file or directory)\n1 images could not be read\n"
    for _ in range(2):
        result = predict(tmp_path, "--shard", "1/1", "--out", tmp_path / "out")
        assert (result.exit_code, result.stderr) == (1, said)
    assert len(merged(tmp_path / "out").splitlines()) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = predict(tmp_path, "--out", tmp_path / "new")
    assert (result.exit_code, result.stderr) == (0, said)


def test_what_a_shard_cannot_do_is_refused(home: Path, tmp_path: Path) -> None:
    assert refusal(predict(home, "--shard", "1/2", "--coco", "gt.json")).startswith("--coco does not go with --shard")
    result = CliRunner().invoke(main, ["predict", "clip.mp4", "--shard", "1/2"])
    assert refusal(result) == "a video or a camera is predicted by itself, and without --coco and --shard"
    for wrong in ("0/2", "3/2", "1", "1/2/3", "a/b"):
        result = predict(home, "--shard", wrong, "--out", tmp_path / "out")
        assert f"Invalid value for '--shard': '{wrong}' is not I/N, part I of N" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_text_file_lists_images(home: Path, paths: list[str], tmp_path: Path) -> None:
    assert predict(home, "--out", tmp_path / "out").exit_code == 0
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == paths
    for image in ("gone.txt", "out"):
        assert read_list(tmp_path / image) is None
    (tmp_path / "latin.txt").write_bytes(b"a.png\n\xe9.png\n")
    for shard in ([], ["--shard", "1/2"]):
        result = predict(home, str(tmp_path / "latin.txt"), "--out", tmp_path / "none", *shard)
        assert refusal(result).endswith("latin.txt:2: not UTF-8 text; save it as UTF-8")
    assert refusal(predict(home, "gone.txt", "--shard", "1/2", "--out", tmp_path / "none")) == (
        "gone.txt: no such file or folder"
    )
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.txt: lists no image"):
        read_list(tmp_path / "empty.txt")


def test_each_process_of_torchrun_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_device("auto") == "cuda"
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert choose_device("auto") == choose_device("cuda") == f"cuda:{rank}"
        assert choose_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="LOCAL_RANK 2, of GPUs 0 to 1; start fewer processes"):
        choose_device("auto")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") in ("cpu", "mps")
