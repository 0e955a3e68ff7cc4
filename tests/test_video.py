"""A video becomes a drawn video and a line a frame, in the order and at the times of its frames."""

import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import tinydet.video
from tests.checkpoints import weights_of
from tests.full_disk import largest_file
from tinydet.detector import Detector
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.predict import save_predictions
from tinydet.video import Video, is_video, open_video, save_video

FRAMES, SIZE, FPS = 5, (48, 80), 10
SHADES = [40 * i for i in range(FRAMES)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    config = model_config("lite0", classes=("Car", "Tram"), image_size=(64, 96))
    return Detector(weights_of(config, *params_and_buffers(EfficientDet(config))))


def write_clip(path: Path, shades: list[int] = SHADES) -> str:
    """Write a clip of red frames that grow brighter."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, SIZE[::-1])
    for shade in shades:
        writer.write(np.full((*SIZE, 3), (0, 0, shade), np.uint8))
    writer.release()
    return str(path)


def test_sources_are_told_by_name() -> None:
    assert all(map(is_video, ("a/clip.MP4", "b.mov", "camera:0")))
    assert not any(map(is_video, ("a.png", "clips/*.jpg", "-", "mp4", "folder")))


def test_frames_are_rgb_and_have_a_time(tmp_path: Path) -> None:
    video = open_video(write_clip(tmp_path / "clip.mp4"))
    assert video[1:4] == (SIZE, FPS, FRAMES)
    times, frames = zip(*video.frames, strict=True)
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for frame, shade in zip(frames, SHADES, strict=True):
        assert frame.shape == (*SIZE, 3)
        np.testing.assert_allclose(frame.mean((0, 1)), (shade, 0, 0), atol=6)


def test_frames_are_turned_upright(tmp_path: Path) -> None:
    content = Path(write_clip(tmp_path / "clip.mp4")).read_bytes()
    matrix = content.index(b"tkhd") + 44  # of the track's header, three rows of three
    turned = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    assert open_video(str(tmp_path / "turned.mp4")).size == SIZE[::-1]


def test_what_is_no_video_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 99)
    with pytest.raises(InputError, match=r"broken\.mp4: not a readable video, or without frames"):
        open_video(str(broken))
    with pytest.raises(InputError, match=r"gone\.mp4: not a file"):
        open_video("gone.mp4")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")
    shutil.copy(broken, name)
    with pytest.raises(InputError, match="OpenCV opens no file whose name is not UTF-8; rename it"):
        open_video(name)
    with pytest.raises(InputError, match="camera:front: a camera is named by its number, such as camera:0"):
        open_video("camera:front")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="videos need OpenCV: pip install opencv-python-headless"):
        open_video(str(broken))


def read_lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_clip_is_drawn_and_has_a_line_a_frame(detector: Detector, tmp_path: Path, batch_size: int) -> None:
    source, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "out"
    how = {"score_threshold": 0.0, "max_detections": 7, "batch_size": batch_size}
    counts = save_video(open_video(source), detector, out, classes=["Tram"], **how)
    assert counts == {"Tram": 7 * FRAMES}
    lines = read_lines(out)
    assert [list(line) for line in lines] == [["image", "width", "height", "frame", "time", "detections"]] * FRAMES
    assert [line["frame"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["time"] for line in lines] == [0, 0.1, 0.2, 0.3, 0.4]
    assert {(line["image"], line["width"], line["height"]) for line in lines} == {(source, SIZE[1], SIZE[0])}
    drawn = [frame for _, frame in open_video(str(out / "clip.mp4")).frames]
    assert len(drawn) == FRAMES
    for (_, frame), other in zip(open_video(source).frames, drawn, strict=True):
        assert (np.abs(other.astype(float) - frame).max(2) > 30).mean() > 0.02  # boxes
    assert {path.name for path in out.iterdir()} == {"clip.mp4", "predictions.jsonl"}


def test_a_new_prediction_replaces_a_video_and_nothing_else(detector: Detector, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_video(open_video(write_clip(tmp_path / "clip.mp4")), detector, out, classes=detector.classes)
    (out / "mine.mp4").touch()
    save_predictions([], out, classes=detector.classes)
    assert {path.name for path in out.iterdir() if path.is_file()} == {"mine.mp4", "predictions.jsonl", "coco.json"}


def test_a_camera_ends_with_whole_files_and_keeps_its_time(detector: Detector, tmp_path: Path) -> None:
    def frames() -> Iterator[tuple[float, np.ndarray]]:
        for seconds in (0.0, 0.1, 0.7):
            yield seconds, np.zeros((*SIZE, 3), np.uint8)
        raise KeyboardInterrupt

    save_video(Video("camera:0", SIZE, FPS, 0, frames()), detector, tmp_path, classes=detector.classes)
    lines = read_lines(tmp_path)
    assert [(line["image"], line["time"]) for line in lines] == [("camera:0", 0), ("camera:0", 0.1), ("camera:0", 0.7)][
        : len(lines)
    ]
    assert lines
    drawn = [*open_video(str(tmp_path / "camera-0.mp4")).frames]
    assert len(drawn) == round(lines[-1]["time"] * FPS) + 1
    with pytest.raises(KeyboardInterrupt):
        save_video(Video("clip.mp4", SIZE, FPS, 0, frames()), detector, tmp_path, classes=detector.classes)
    assert open_video(str(tmp_path / "clip.mp4")).size == SIZE


def test_a_video_that_ends_early_is_a_warning(detector: Detector, tmp_path: Path) -> None:
    video = open_video(write_clip(tmp_path / "clip.mp4"))._replace(stated=9)
    with pytest.warns(UserWarning, match=r"clip\.mp4 states 9 frames, of which 5 could be read"):
        save_video(video, detector, tmp_path / "out", classes=detector.classes)


def test_a_video_that_a_full_disk_cuts_is_an_error_and_not_left(detector: Detector, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, *SIZE, 3), np.uint8)
    video = Video("clip.mp4", SIZE, FPS, 0, iter((i / FPS, frame) for i, frame in enumerate(noise)))
    said = r"/clip\.mp4: cannot be written whole; is the disk full\?; .* has the detections of 5 frames$"
    with largest_file(2000), pytest.raises(InputError, match=said):
        save_video(video, detector, tmp_path, classes=detector.classes, score_threshold=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_frames_that_are_done_with_leave_memory(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    written: list[int] = []

    def frames() -> Iterator[tuple[float, np.ndarray]]:
        for i in range(20):
            read.append(i - len(written))
            yield i / FPS, np.zeros((*SIZE, 3), np.uint8)

    def spy(prediction: object, **fields: int) -> str:
        written.append(fields["frame"])
        return ""

    monkeypatch.setattr(tinydet.video.Prediction, "to_json", spy)
    save_video(Video("a.mp4", SIZE, FPS, 20, frames()), detector, tmp_path, classes=detector.classes)
    assert written == [*islice(range(99), 20)]
    assert max(read) <= 6
