"""Examples to batches, by as many workers as there are to spare."""

import atexit
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tinydet.data.augment import augment, copy_paste, import_albumentations
from tinydet.data.images import Example, letterbox, to_example
from tinydet.data.transforms import own_transforms
from tinydet.distributed import ALONE, World
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND


class InputConfig(Protocol):
    """What a loader needs to know of the network, such as a `ModelConfig`."""

    @property
    def image_size(self) -> tuple[int, int]: ...  # (height, width)
    @property
    def pad_value(self) -> tuple[int, int, int]: ...  # RGB, 0..255


class Batch(NamedTuple):
    """B examples of one size, stacked."""

    images: Tensor  # uint8[B 3 H W], RGB
    boxes: Tensor  # float32[B M 4], xyxy, input pixels; padding rows are zero
    labels: Tensor  # int64[B M], class index, IGNORE, or BACKGROUND in padding rows
    scales: Tensor  # float32[B], input pixels per original pixel
    sizes: Tensor  # int64[B 2], (height, width) of the original images
    names: list[str]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[2], self.images.shape[3]

    def to(self, device: torch.device | str) -> "Batch":
        """Copy its tensors to a device, while that works on what came before."""
        images, boxes, labels, scales, sizes = (tensor.to(device, non_blocking=True) for tensor in self[:5])
        return Batch(images, boxes, labels, scales, sizes, self.names)


def collate(examples: Sequence[Example], *, size: tuple[int, int] = (0, 0)) -> Batch:
    """Stack examples of one size, padding their boxes to the longest list, and to one row where there are none.

    There may be none, of (height, width).
    """
    boxes = [*(torch.as_tensor(example.boxes, dtype=torch.float32) for example in examples), torch.zeros(1, 4)]
    labels = [torch.as_tensor(example.labels, dtype=torch.int64) for example in examples]
    images = np.stack([example.image for example in examples]) if examples else np.zeros((0, *size, 3), np.uint8)
    return Batch(
        images=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        boxes=pad_sequence(boxes, batch_first=True)[:-1],
        labels=pad_sequence([*labels, torch.tensor([BACKGROUND])], batch_first=True, padding_value=BACKGROUND)[:-1],
        scales=torch.tensor([example.scale for example in examples], dtype=torch.float32),
        sizes=torch.tensor([example.size for example in examples], dtype=torch.int64).view(-1, 2),
        names=[example.name for example in examples],
    )


def resolve_crop(image_size: tuple[int, int]) -> tuple[int, int]:
    """Choose the (height, width) that a training step sees of an input: a part of a wide one, for more steps."""
    height, width = image_size
    return (min(height, 256), min(width // 2, 448)) if width > 2 * height else (height, width)


def resolve_augmentation(
    image_size: tuple[int, int],
    crop: tuple[int, int],
    *,
    scale_range: tuple[float, float] | None = None,
    copy_paste: float | None = None,
) -> tuple[tuple[float, float], float]:
    """Choose the bounds of the scale jitter and the probability of copy-paste, where they are not given.

    Where a step sees crops, as of streets, small objects grow, and get company. Where it sees all of an input, enlarged
    images would lack parts of large objects.
    """
    scales, share = ((0.6, 1.2), 0.0) if crop == image_size else ((0.8, 1.8), 0.7)
    return scale_range or scales, share if copy_paste is None else copy_paste


def count_batches(count: int, batch_size: int) -> int:
    """Count the batches of an epoch: the fewest that hold all its images, at most `batch_size` each."""
    return -(-count // batch_size)


def train_batches(
    dataset: Dataset[Any],
    config: InputConfig,
    *,
    batch_size: int = 4,
    epochs: int | range = 1,
    skip: int = 0,
    world: World = ALONE,
    crop: tuple[int, int] | None = None,
    scale_range: tuple[float, float] | None = None,
    copy_paste: float | None = None,
    augment: Any = None,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Load shuffled, augmented batches of several epochs in a row.

    Epoch e is shuffled by (seed, e) and its sample i augmented by (seed, e, i): neither the number of workers nor that
    of processes nor resuming changes a batch. One iterator serves all epochs: workers start once.

    Args:
        dataset: any sized data set of unscaled `Example`s, or of (image, boxes, labels); see `to_example`.
        batch_size: at most so many images; those of an epoch are divided evenly, and none is left out.
        epochs: how many; or which: `range(3, 10)` goes on where three are done.
        skip: how many batches of the first of these are done.
        world: processes each of which loads its share of every batch, which may be no image.
        crop: (height, width) of the images of a batch; that of `resolve_crop` when None.
        scale_range: bounds of the scale jitter; those of `resolve_augmentation` when None.
        copy_paste: the probability that an image gets objects of another, drawn at random; likewise.
        augment: an albumentations Compose in place of flip and colour jitter; the boxes are passed to it, so that it
            needs no `bbox_params`. With False images are only letterboxed to the input.
        workers: processes; 0 loads in this one.

    Raises:
        InputError: there are fewer examples than one batch needs, or `augment` fails.
    """
    if (count := len(dataset)) < batch_size:  # type: ignore[arg-type]
        raise InputError(f"batch_size must be at most the number of training examples, {count}, got {batch_size}")
    examples = _Examples(dataset, config, seed)
    if augment is not False:
        import_albumentations()  # before the workers start, or each of them would take seconds for it
        crop = crop or resolve_crop(config.image_size)
        given: Any = {"scale_range": scale_range, "copy_paste": copy_paste}
        scales, share = resolve_augmentation(config.image_size, crop, **given)
        transforms = None if augment is None else own_transforms(augment, size=crop)
        examples = replace(examples, crop=crop, scale_range=scales, copy_paste=share, transforms=transforms)
    epochs = range(epochs) if isinstance(epochs, int) else epochs
    rows = _Shuffled(count, batch_size, epochs, skip, seed, world)
    return _Loader(examples, rows, num_workers=workers, pin_memory=pin_memory)


def val_batches(
    dataset: Dataset[Any],
    config: InputConfig,
    *,
    batch_size: int = 8,
    world: World = ALONE,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Load letterboxed batches of every example, in order; arguments are those of `train_batches`.

    Of several processes each loads its share of the batches, and as many as the others: its last may be empty.
    """
    count: int = len(dataset)  # type: ignore[arg-type]
    starts = range(0, count, batch_size)
    own = [[(0, i) for i in range(start, min(start + batch_size, count))] for start in world.share(starts)]
    own += [[]] * (-(-len(starts) // world.size) - len(own))
    return _Loader(_Examples(dataset, config), own, num_workers=workers, pin_memory=pin_memory)


@dataclass(frozen=True)
class _Shuffled:
    """The (epoch, row) of the examples of every batch of a run, or of a process's share of it."""

    count: int
    batch_size: int
    epochs: range
    skip: int
    seed: int
    world: World

    def __len__(self) -> int:
        return len(self.epochs) * count_batches(self.count, self.batch_size) - self.skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = count_batches(self.count, self.batch_size)
        for epoch in self.epochs:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            for i in range(self.skip if epoch == self.epochs.start else 0, batches):
                rows = self.world.share(range(i * self.count // batches, (i + 1) * self.count // batches))
                yield [(epoch, index) for index in order[rows.start : rows.stop].tolist()]


@dataclass(frozen=True, eq=False)
class _Examples(Dataset[Example]):
    """The network's inputs by epoch and row; (seed, epoch, row) alone decide one, not who loads it."""

    dataset: Any
    config: InputConfig
    seed: int = 0
    crop: tuple[int, int] | None = None  # None: letterboxed
    scale_range: tuple[float, float] = (1.0, 1.0)
    copy_paste: float = 0.0
    transforms: Any = None
    loading: Any = ()  # of each worker its process and the row that it loads, in shared memory

    def __getitem__(self, place: tuple[int, int]) -> Example:
        epoch, index = place
        if worker := get_worker_info():
            self.loading[2 * worker.id : 2 * worker.id + 2] = os.getpid(), index
        example = to_example(self.dataset[index], str(index))
        if self.crop is None:
            return letterbox(example, self.config.image_size, pad_value=self.config.pad_value)
        rng = np.random.default_rng((self.seed, epoch, index, 1))
        if rng.random() < self.copy_paste:
            other = int(rng.integers(len(self.dataset)))
            example = copy_paste(example, to_example(self.dataset[other], str(other)), rng=rng)
        how: Any = {"input_size": self.config.image_size, "pad_value": self.config.pad_value}
        how |= {"scale_range": self.scale_range, "transforms": self.transforms}
        return augment(example, self.crop, seed=(self.seed, epoch, index), **how)


class _Loader(DataLoader[Batch]):
    """A loader of batches of the examples, whose places are given batch by batch."""

    def __init__(self, examples: _Examples, places: Iterable[list[Any]], *, num_workers: int, **settings: Any) -> None:
        super().__init__(
            replace(examples, loading=RawArray("q", 2 * num_workers)),  # type: ignore[arg-type]
            batch_sampler=places,
            collate_fn=partial(collate, size=examples.crop or examples.config.image_size),
            worker_init_fn=partial(_start_worker, augments=examples.crop is not None),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # or it draws from the global one
            **settings,
        )

    def _get_iterator(self) -> Any:
        """Start the workers, and see that they end with this process: `_start_worker` makes them hard to end."""
        iterator = super()._get_iterator()
        atexit.register(_end_workers, weakref.ref(iterator))
        return iterator

    def __iter__(self) -> Any:
        """Pass a worker's `InputError` on as the one line it was, without the traceback that torch adds."""
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from error


def _end_workers(iterator: Any) -> None:
    """End the workers of an iterator that is still there, as after an error, when Python exits."""
    if workers := getattr(iterator(), "_workers", None):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
        for worker in workers:
            worker.kill()


def _start_worker(_: int, *, augments: bool) -> None:
    """Leave signals of a terminal or a scheduler to the process that trains; keep OpenCV to one thread, as torch is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # a second one ends it
    sys.excepthook = lambda *_: None  # of threads that served a process that is gone; other errors do not come here
    # Without room in shared memory for a batch the worker would go on, and the batch be waited for without end.
    Queue._on_queue_feeder_error = staticmethod(lambda *_: os._exit(1))  # type: ignore[attr-defined]
    if augments:
        import_albumentations()
        sys.modules["cv2"].setNumThreads(0)


def dead_worker(error: RuntimeError, *loaders: Any) -> InputError | None:
    """Make of torch's error about a dead worker of these loaders one that names the image; None of another error."""
    if not (found := re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)", str(error))):
        return None
    for examples in (loader.dataset for loader in loaders):
        if int(found[1]) in (pids := examples.loading[::2]):
            index = examples.loading[2 * pids.index(int(found[1])) + 1]
            name = getattr(examples.dataset, "names", range(len(examples.dataset)))[index]
            return InputError(f"image {name}: the process that loaded it died ({error}); try fewer workers")
    return InputError(f"a process died before it loaded an image ({error}); try fewer workers")
