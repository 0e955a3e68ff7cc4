"""Videos and cameras: frames in, a drawn video and lines of detections out."""

import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.detector import Detector
from tinydet.errors import InputError
from tinydet.files import PathLike
from tinydet.predict import drawn_video, open_lines
from tinydet.prediction import Prediction
from tinydet.prefetch import prefetch

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
CAMERA = "camera:"


class Video(NamedTuple):
    """An open video file or camera."""

    source: str
    size: tuple[int, int]  # (height, width)
    fps: float  # frames per second; 25 where the source states none
    stated: int  # frames, by the file's header; 0 where it states none
    frames: Iterator[tuple[float, np.ndarray]]  # seconds from the start, and uint8[H W 3], RGB, upright


def is_video(source: str) -> bool:
    """Say whether a source is a video file, by its suffix, or a camera, such as "camera:0"."""
    return source.startswith(CAMERA) or Path(source).suffix.lower() in SUFFIXES


def open_video(source: str) -> Video:
    """Open a video file or a camera; raise InputError where it has no frame, or OpenCV is not installed."""
    cv2, camera, number = import_cv2(), source.startswith(CAMERA), source.removeprefix(CAMERA)
    if camera and not number.isdecimal():
        raise InputError(f"{source}: a camera is named by its number, such as camera:0")
    if not camera and not Path(source).is_file():
        raise InputError(f"{source}: not a file")
    check_name(source)
    capture = cv2.VideoCapture(int(number) if camera else source)
    frames = _read_frames(capture, camera=camera)
    if not (first := [*islice(frames, 1)]):
        raise InputError(f"{source}: {'no such camera' if camera else 'not a readable video, or without frames'}")
    stated = 0 if camera else max(0, round(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    size = first[0][1].shape[:2]
    return Video(source, size, capture.get(cv2.CAP_PROP_FPS) or 25.0, stated, chain(first, frames))


def check_name(path: PathLike) -> None:
    """Raise InputError for a name that is not UTF-8, at which OpenCV crashes."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: OpenCV opens no file whose name is not UTF-8; rename it") from None


def import_cv2() -> Any:
    """Import OpenCV, which albumentations brings, without what it prints by itself."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError:
        raise InputError("videos need OpenCV: pip install opencv-python-headless") from None
    return cv2


def _read_frames(capture: Any, *, camera: bool) -> Iterator[tuple[float, np.ndarray]]:
    """Read the frames of OpenCV's capture, and their times: a camera's by the clock."""
    cv2, start = import_cv2(), time.monotonic()
    while (read := capture.read())[0]:
        seconds = time.monotonic() - start if camera else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        yield seconds, cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)


def save_video(
    video: Video, detector: Detector, out: PathLike, *, classes: Sequence[str], **settings: Any
) -> dict[str, int]:
    """Detect objects frame by frame, with the settings of `Detector.predict`, and count those of each class.

    predictions.jsonl gets a line a frame, with its number, from 0, and its time in seconds; NAME.mp4 the drawn frames,
    those of a camera repeated to keep their time. Ctrl-C ends a camera; whatever ends a video, its files are whole. A
    video that ends before the number of frames that it states is a warning.
    """
    cv2, camera, times = import_cv2(), video.source.startswith(CAMERA), deque[float]()
    counts, frames, written = Counter(dict.fromkeys(classes, 0)), 0, 0

    def images() -> Iterator[np.ndarray]:
        for seconds, frame in video.frames:
            times.append(seconds)
            yield frame

    predictions = detector.predict(images(), classes=classes, **settings)
    path = drawn_video(out, video.source)
    check_name(path)
    partial = path.with_suffix(".partial.mp4")  # OpenCV knows the format by the suffix
    with open_lines(Path(out), of="frame", new=[path]) as write_line:
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), video.fps, video.size[::-1])
        if not writer.isOpened():
            raise InputError(f"{path}: OpenCV cannot write this video")

        def write(prediction: Prediction) -> None:
            nonlocal frames, written
            seconds = times.popleft()
            named = replace(prediction, path=Path(video.source))
            write_line(named.to_json(frame=frames, time=round(seconds, 3)))
            drawn = cv2.cvtColor(np.asarray(prediction.draw()), cv2.COLOR_RGB2BGR)
            repeats = max(1, round(seconds * video.fps) + 1 - written) if camera else 1
            for _ in range(repeats):
                writer.write(drawn)
            counts.update(prediction.names)
            frames, written = frames + 1, written + repeats

        try:
            deque(prefetch(write, predictions, depth=1), maxlen=0)  # run through it
        except KeyboardInterrupt:
            if not camera:
                raise
        finally:
            writer.release()
            # OpenCV keeps silent about a full disk.
            whole = cv2.VideoCapture(str(partial)).get(cv2.CAP_PROP_FRAME_COUNT) >= written > 0
            if whole:
                os.replace(partial, path)
            else:
                partial.unlink(missing_ok=True)
        if not whole:
            raise InputError(f"{path}: cannot be written whole; is the disk full?")
    if frames < video.stated:
        warnings.warn(f"{video.source} states {video.stated} frames, of which {frames} could be read", stacklevel=2)
    return dict(counts)
