"""Bench: how fast a detector is on this machine, by engine and number of threads, and which to use."""

import glob
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinydet.data.images import IMAGE_SUFFIXES, read_image
from tinydet.data.loader import Batch
from tinydet.data.open import open_dataset
from tinydet.draw import count_text
from tinydet.engines import Engine, OnnxEngine, TorchEngine
from tinydet.errors import InputError, raise_error, try_call
from tinydet.export import export_model
from tinydet.files import list_files
from tinydet.model.efficientdet import Outputs
from tinydet.training.memory import out_of_memory
from tinydet.weights.load import Loaded, load_detector
from tinydet.weights.onnx_file import ONNX, OnnxFile, load_onnx

TURNS, FEWEST_TURNS = 6, 3  # of each row, and where they take twice as long as they should
PAUSE = 0.1  # seconds after a turn: for so long ONNX Runtime's threads spin, and the next would have a core less
GAIN = 1.05  # for which a larger batch, or what is less simple, is worth it
LARGEST_BATCH, IMAGES = 64, 16  # images in a batch, and images of a data set
LIMITS: Any = {"score_threshold": 0.3, "max_detections": 100}  # the defaults of prediction
Key = tuple[str, int]  # engine, threads
Times = tuple[float, float, float]  # seconds of a batch: in all, to prepare it, in the network


class Way(NamedTuple):
    """A way to run a detector."""

    make: Callable[[], Engine]
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


class TimedEngine(TorchEngine):
    """An engine that knows how many seconds its network took."""

    seconds = 0.0

    def network(self, batch: Batch) -> Outputs:
        """Compute the network's outputs, and wait for them."""
        wait = torch.get_device_module(self.device).synchronize
        wait()
        start = time.perf_counter()
        outputs = super().network(batch)
        wait()
        self.seconds = time.perf_counter() - start
        return outputs


def find_ways(
    loaded: Loaded, path: Path, *, folder: Path, device: str, compile: bool, tell: Callable[[str], None]
) -> dict[str, Way]:
    """Find the ways to run a detector that was loaded from a file: weights also as the exported files beside them.

    What is simpler comes first. If there is no exported file of their name, one is made in the folder.
    """
    option = f"--weights {shlex.quote(str(path))}"
    if isinstance(loaded, OnnxFile):
        tell("an exported file is measured alone; give the weights that it was exported from to compare")
        return {"ONNX Runtime": Way(lambda: OnnxEngine(load_onnx(path, device=device)), option)}
    weights = loaded

    def make(*, compile: bool = False) -> Engine:
        engine = TimedEngine(load_detector(path, device=device), compile=compile)
        if compile:  # when first called
            tell("compiling, which takes a minute for each number of threads, and again for a larger batch")
        return engine

    def make_onnx(file: Path) -> Engine:
        if (loaded := load_onnx(file, device=device)).config != weights.config:
            raise InputError(f"{file}: of another detector; export it again")
        return OnnxEngine(loaded)

    ways, file, errors = {"eager": Way(make, option)}, path.with_suffix(ONNX), list[InputError]()
    wanted = f"--weights {shlex.quote(str(file))}"
    if file.exists():
        ways["ONNX Runtime"] = Way(partial(make_onnx, file), wanted)
    else:
        tell("exporting to ONNX, which takes half a minute")
        try_call(errors.append, export_model, weights, folder / file.name, format="onnx")
        failed: Any = partial(raise_error, *errors)
        export = f"tinydet export {shlex.quote(str(path))} && "
        ways["ONNX Runtime"] = Way(failed if errors else partial(make_onnx, folder / file.name), wanted, export)
    for other in sorted(path.parent.glob(f"{glob.escape(path.stem)}[-._]*{ONNX}")):
        name = f"ONNX Runtime {other.stem.removeprefix(path.stem)[1:]}"
        ways[name] = Way(partial(make_onnx, other), f"--weights {shlex.quote(str(other))}")
    if compile:
        ways["compiled"] = Way(partial(make, compile=True), f"{option} --compile")
    return ways


def read_images(data: Path) -> list[np.ndarray]:
    """Read some images of a folder of images, or else of the validation split of a data set, spread over all."""
    files = list_files(data, IMAGE_SUFFIXES) if data.is_dir() else []
    paths = files or open_dataset(data, "val", on_error=lambda _: None).paths  # whose labels do not matter
    rows = np.linspace(0, len(paths) - 1, min(IMAGES, len(paths)), dtype=int)
    return [read_image(paths[row]) for row in rows]


def measure(
    makers: Mapping[str, Callable[[], Engine]],
    images: Sequence[np.ndarray],
    *,
    threads: Sequence[int],
    seconds: float = 3.0,
    tell: Callable[[str], None],
) -> list[Row]:
    """Measure each engine with each number of threads, in turns, so that a slow minute slows all alike.

    Args:
        makers: load an engine, by its name; those that are compiled come last.
        images: uint8[H W 3], RGB, of any sizes.
        threads: numbers of them.
        seconds: of each row with one image, and with its best batch.
        tell: called with what is done next.
    """
    engines, loads, failures = dict[Key, Engine](), dict[Key, float](), dict[Key, str]()
    batches, keys = dict[Key, int](), [(name, count) for name in makers for count in threads]
    before = torch.get_num_threads()

    def attempt(key: Key, function: Callable[..., Any], *args: Any) -> Any:
        torch.set_num_threads(key[1])
        try:
            return function(*args)
        except Exception as error:  # whatever goes wrong in an engine is the result of its row
            failures[key] = str(error).strip().split("\n")[0] or type(error).__name__
            engines.pop(key, None)
            return None

    def load(key: Key) -> None:
        start = time.perf_counter()
        engine = makers[key[0]]()
        time_call(engine, images[:1])
        engines[key], loads[key] = engine, time.perf_counter() - start

    def choose_batch(key: Key) -> int:
        if not getattr(engine := engines[key], "compiled", False):
            return best_batch(engine, images, seconds=seconds / TURNS)
        batch = next((batches[other] for other in batches if other[1] == key[1] and other in engines), 1)
        time_call(engine, [*islice(cycle(images), batch)])  # compiles it
        return batch

    try:
        for key in (keys[0], *keys):  # the first load is that of torch too
            attempt(key, load, key)
        tell(f"measuring, {2.5 * seconds * len(engines):.0f} s or more")
        for key in [*engines]:
            batches[key] = attempt(key, choose_batch, key)
        times: dict[tuple[Key, int], list[Times]] = {(key, n): [] for key in engines for n in {1, batches[key]}}
        end = time.perf_counter() + 2 * seconds * len(times)
        for turn in range(TURNS):
            for (key, batch), so_far in times.items() if turn < FEWEST_TURNS or time.perf_counter() < end else ():
                if key in engines:
                    call = partial(time_calls, batch=batch, seconds=seconds / TURNS)
                    so_far += attempt(key, call, engines[key], images) or []
    finally:
        torch.set_num_threads(before)
    return [
        summary(Row(*key, load=loads[key], batch=batches[key]), engines[key], times[key, 1], times[key, batches[key]])
        if key in engines
        else Row(*key, note=failures[key])
        for key in keys
    ]


def summary(row: Row, engine: Engine, single: Sequence[Times], batches: Sequence[Times]) -> Row:
    """Add to a row the figures of calls with one image, and with its batch."""
    total, prepare, network = 1e3 * np.array(single).T
    parts = (total, prepare, network, total - prepare - network)
    latency, before, within, after = (float(np.median(part)) for part in parts)
    return row._replace(
        latency=latency,
        latency_90=float(np.quantile(total, 0.9)),
        prepare=before,
        network=within,
        postprocess=None if isinstance(engine, OnnxEngine) else after,
        images_per_second=(row.batch or 1) / statistics.median(total for total, _, _ in batches),
    )


def time_call(engine: Engine, images: Sequence[np.ndarray]) -> Times:
    """Time the detection of objects in a batch of images."""
    start = time.perf_counter()
    prepared: Any = engine.prepare(images, names=["image"] * len(images))
    middle = time.perf_counter()
    engine.detect(prepared, **LIMITS)
    end = time.perf_counter()
    return end - start, middle - start, engine.seconds if isinstance(engine, TimedEngine) else end - middle


def time_calls(engine: Engine, images: Sequence[np.ndarray], *, batch: int, seconds: float) -> list[Times]:
    """Call an engine once to warm up, then time calls for some seconds, at least one, on one batch after another."""
    stream, times = cycle(images), list[Times]()
    end = time.perf_counter() + seconds
    time_call(engine, [*islice(stream, batch)])
    while not times or time.perf_counter() < end:
        times.append(time_call(engine, [*islice(stream, batch)]))
    time.sleep(PAUSE)
    return times


def best_batch(engine: Engine, images: Sequence[np.ndarray], *, seconds: float) -> int:
    """Double the batch while that makes more images a second, and memory holds."""
    rate, batch = 0.0, 1
    while batch <= LARGEST_BATCH:
        try:
            times = time_calls(engine, images, batch=batch, seconds=seconds)
        except RuntimeError as error:
            if batch == 1 or not out_of_memory(error):
                raise
            break
        before, rate = rate, batch / statistics.median(total for total, _, _ in times)
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
