"""Bench: how fast a detector is on this machine, by engine and number of threads, and which to use."""

import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinydet.data.images import IMAGE_SUFFIXES, read_image
from tinydet.data.open import open_dataset
from tinydet.detector import Detector
from tinydet.draw import count_text
from tinydet.engines import TorchEngine
from tinydet.errors import InputError, raise_error
from tinydet.export import export_model
from tinydet.files import list_files
from tinydet.quantize import INT8, quantize_onnx
from tinydet.weights.load import Loaded, load_any
from tinydet.weights.onnx_file import ONNX, OnnxFile

TURNS, FEWEST_TURNS = 6, 3  # of each row, and where they take twice as long as they should
PAUSE = 0.1  # seconds after a turn: for so long ONNX Runtime's threads spin, and the next would have a core less
GAIN = 1.05  # for which a larger batch, or what is less simple, is worth it
LARGEST_BATCH, IMAGES = 64, 16  # images in a batch, and images of a data set
LIMITS: Any = {"score_threshold": 0.3, "max_detections": 100}  # the defaults of prediction
Key = tuple[str, int]  # engine, threads


class Way(NamedTuple):
    """A way to run a detector."""

    make: Callable[[], Detector]
    options: str  # of `tinydet predict`
    before: str = ""  # the command that makes its file, and "&&"


class Row(NamedTuple):
    """How fast an engine is with a number of threads; of one that failed only the reason is told."""

    engine: str
    threads: int
    note: str = ""  # why there are no figures
    load: float | None = None  # seconds until the objects of a first image are there
    latency: float | None = None  # ms from one image to its objects, median
    latency_90: float | None = None  # its 90th percentile
    prepare: float | None = None  # ms of the latency, medians; an exported file prepares images itself
    network: float | None = None  # of an exported file all that is in it
    postprocess: float | None = None  # None of an exported file
    batch: int | None = None  # images in the batch of most images a second
    images_per_second: float | None = None


def find_ways(
    loaded: Loaded,
    path: Path,
    *,
    folder: Path,
    images: Sequence[np.ndarray],
    device: str,
    compile: bool,
    tell: Callable[[str], None],
) -> dict[str, Way]:
    """Find the ways to run a detector that was loaded from a file: of weights also the files that export makes of them.

    What is simpler comes first. Exported files that are not there are made in the folder, 8 bits by the images.
    """
    option = f"--weights {shlex.quote(str(path))}"

    def make(source: Path, *, compile: bool = False) -> Detector:
        if compile:  # when first called
            tell("compiling, which takes a minute for each number of threads, and again for a larger batch")
        detector = Detector(load_any(source, device=device), compile=compile)
        if detector.config != loaded.config:
            raise InputError(f"{source}: of another detector; export it again")
        return detector

    if isinstance(loaded, OnnxFile):
        tell("an exported file is measured alone; give the weights that it was exported from to compare")
        return {"ONNX Runtime": Way(partial(make, path), option)}

    def find(suffix: str) -> Path:
        return file if (file := path.with_suffix(suffix)).exists() else folder / file.name

    exports: dict[str, Any] = {ONNX: ("ONNX Runtime", "", partial(export_model, loaded, format="onnx"))}
    if loaded.config.activation == "relu6":
        quantize = lambda out: quantize_onnx(find(ONNX), out, images)  # noqa: E731
        exports[INT8] = ("ONNX Runtime int8", " --int8 DATA", quantize)
    ways, errors = {"eager": Way(partial(make, path), option)}, list[Exception]()
    for suffix, (name, flag, write) in exports.items():
        wanted = f"--weights {shlex.quote(str(path.with_suffix(suffix)))}"
        if (file := find(suffix)).exists():
            ways[name] = Way(partial(make, file), wanted)
        elif not errors:
            tell(f"exporting {file.name}" + (", which takes half a minute" if suffix == ONNX else ""))
            try:
                write(file)
            except Exception as error:  # which becomes that of the row
                errors.append(error)
            failed: Any = partial(raise_error, *errors)
            export = f"tinydet export {shlex.quote(str(path))}{flag} && "
            ways[name] = Way(failed if errors else partial(make, file), wanted, export)
    if compile:
        ways["compiled"] = Way(partial(make, path, compile=True), f"{option} --compile")
    return ways


def read_images(data: Path) -> list[np.ndarray]:
    """Read some images of a folder of images, or else of the validation split of a data set, spread over all."""
    files = list_files(data, IMAGE_SUFFIXES) if data.is_dir() else []
    paths = files or open_dataset(data, "val", on_error=lambda _: None).paths  # whose labels do not matter
    rows = np.linspace(0, len(paths) - 1, min(IMAGES, len(paths)), dtype=int)
    return [read_image(paths[row]) for row in rows]


def measure(
    makers: Mapping[str, Callable[[], Detector]],
    images: Sequence[np.ndarray],
    *,
    threads: Sequence[int],
    seconds: float = 3.0,
    tell: Callable[[str], None],
) -> list[Row]:
    """Measure each engine with each number of threads, in turns, so that a slow minute slows all alike.

    Args:
        makers: load a detector, by the name of its engine; those that are compiled come last.
        images: uint8[H W 3], RGB, of any sizes.
        threads: numbers of them.
        seconds: of each row with one image, and with its best batch.
        tell: called with what is done next.
    """
    detectors, loads, failures = dict[Key, Detector](), dict[Key, float](), dict[Key, str]()
    keys, batches = [(name, count) for name in makers for count in threads], dict[Key, int]()
    times: dict[Key, list[list[float]]] = {key: [] for key in keys}  # of `time_image`
    rates: dict[Key, list[float]] = {key: [] for key in keys}
    before, part, stream = torch.get_num_threads(), seconds / TURNS, cycle(images)

    def attempt(key: Key, function: Callable[[Key], None]) -> None:
        torch.set_num_threads(key[1])
        try:
            function(key)
        except Exception as error:  # whatever goes wrong in an engine is the result of its row
            failures[key] = str(error).strip().split("\n")[0] or type(error).__name__
            detectors.pop(key, None)

    def load(key: Key) -> None:
        start = time.perf_counter()
        detector = makers[key[0]]()
        detector(images[0], **LIMITS)
        detectors[key], loads[key] = detector, time.perf_counter() - start

    def choose_batch(key: Key) -> None:
        if getattr(detectors[key].engines[0], "compiled", False):  # for one batch, a minute each
            batches[key] = next((batches[other] for other in batches if other[1] == key[1]), 1)
            image_rate(detectors[key], images, batch=batches[key], seconds=0)
        else:
            batches[key] = best_batch(detectors[key], images, seconds=part)

    def take_turn(key: Key) -> None:
        time_image(detectors[key], next(stream))  # which warms up
        end = time.perf_counter() + part
        while len(times[key]) < 2 or time.perf_counter() < end:
            times[key].append(time_image(detectors[key], next(stream)))
        rates[key].append(image_rate(detectors[key], images, batch=batches[key], seconds=part))
        time.sleep(PAUSE)

    def row(key: Key) -> Row:
        total, *parts = 1e3 * np.array(times[key]).T
        figures: Any = [*np.quantile(total, (0.5, 0.9)).tolist(), *np.median(parts, 1).tolist(), None]
        return Row._make([*key, "", loads[key], *figures[:5], batches[key], statistics.median(rates[key])])

    try:
        for key in (keys[0], *keys):  # the first load is that of torch too
            attempt(key, load)
        tell(f"measuring, {2.5 * seconds * len(detectors):.0f} s or more")
        for key in [*detectors]:
            attempt(key, choose_batch)
        end = time.perf_counter() + 4 * seconds * len(detectors)
        for turn in range(TURNS):
            for key in [*detectors] if turn < FEWEST_TURNS or time.perf_counter() < end else ():
                attempt(key, take_turn)
    finally:
        torch.set_num_threads(before)
    return [row(key) if key in detectors else Row(*key, note=failures[key]) for key in keys]


def time_image(detector: Detector, image: np.ndarray) -> list[float]:
    """Time the detection of objects in an image -> seconds in all, to prepare it, in the network, and after it.

    Of an exported file the last two are one.
    """
    (engine,) = detector.engines
    start = time.perf_counter()
    prepared: Any = engine.prepare([image], names=["image"])
    middle = time.perf_counter()
    engine.detect(prepared, **LIMITS)
    end = time.perf_counter()
    if not isinstance(engine, TorchEngine):
        return [end - start, middle - start, end - middle]
    batch, wait = prepared.to(engine.device), torch.get_device_module(engine.device).synchronize
    wait()
    again = time.perf_counter()
    engine.network(batch)
    wait()
    network = time.perf_counter() - again
    return [end - start, middle - start, network, max(0.0, end - middle - network)]  # less than none on a busy machine


def image_rate(detector: Detector, images: Sequence[np.ndarray], *, batch: int, seconds: float) -> float:
    """Measure the images a second of `Detector.predict`, a batch for each of its threads at least."""
    fewest, start = batch * detector.workers, time.perf_counter()

    def goes_on(numbered: tuple[int, np.ndarray]) -> bool:
        return numbered[0] < fewest or numbered[0] % batch > 0 or time.perf_counter() < start + seconds

    given = (image for _, image in takewhile(goes_on, enumerate(cycle(images))))
    found = sum(1 for _ in detector.predict(given, batch_size=batch, **LIMITS))
    return found / (time.perf_counter() - start)


def best_batch(detector: Detector, images: Sequence[np.ndarray], *, seconds: float) -> int:
    """Double the batch while that makes more images a second, and memory holds."""
    rate, batch = 0.0, 1
    while batch <= LARGEST_BATCH:
        try:
            before, rate = rate, image_rate(detector, images, batch=batch, seconds=seconds)
        except Exception:  # of memory, which ONNX Runtime has its own kinds of
            if batch == 1:
                raise
            break
        if rate < GAIN * before:
            break
        batch *= 2
    return batch // 2


def advise(rows: Sequence[Row], ways: Mapping[str, Way], *, threads: int) -> list[str]:
    """Say which row has the lowest latency, which makes most images a second, and how to predict so, by a line each.

    Of rows within 5% it is the first. `threads` is the number that a command has by default.
    """
    measured: list[Any] = [row for row in rows if not row.note]
    least, most = min(row.latency for row in measured), max(row.images_per_second for row in measured)
    quick = next(row for row in measured if row.latency <= GAIN * least)
    busy = next(row for row in measured if GAIN * row.images_per_second >= most)

    def line(what: str, row: Row, figures: str, batch: int) -> str:
        way, few = ways[row.engine], f"OMP_NUM_THREADS={row.threads} " if row.threads != threads else ""
        command = f"{way.before}{few}tinydet predict IMAGES {way.options}"
        command += f" --batch-size {batch}" if batch > 1 else ""
        return ", ".join([f"{what}: {row.engine}", count_text(row.threads, "thread"), f"{figures}: {command}"])

    latency = f"{quick.latency:.1f} ms an image"
    rate = f"{busy.images_per_second:.1f} images/s" + (f" in batches of {busy.batch}" if busy.batch > 1 else "")
    if quick is busy:
        return [line("fastest here", busy, f"{latency}, {rate}", busy.batch)]
    return [line("lowest latency here", quick, latency, 1), line("most images a second here", busy, rate, busy.batch)]
