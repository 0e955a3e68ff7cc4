"""Examples to batches, by as many workers as there are to spare."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tinydet.data.example import Example, letterbox
from tinydet.data.paste import paste
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND


class Batch(NamedTuple):
    """Examples of one size, stacked.

    Attributes:
        images: uint8[B 3 H W], RGB.
        boxes: float32[B M 4], xyxy, input pixels; padding rows are zero.
        labels: int64[B M], class index, IGNORE, or BACKGROUND in padding rows.
        scales: float32[B], input pixels per original pixel.
        sizes: int64[B 2], (height, width) of the original pictures.
        names: the frames.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    scales: Tensor
    sizes: Tensor
    names: list[str]

    def to(self, device: torch.device | str) -> "Batch":
        """Its tensors on a device, copied while it works on what came before."""
        tensors = {
            name: value.to(device, non_blocking=True) for name, value in self._asdict().items() if name != "names"
        }
        return self._replace(**tensors)


def collate(examples: Sequence[Example]) -> Batch:
    """Stack examples of one size, padding their boxes to the longest list, and to one row where there are none.

    Args:
        examples: B examples whose images are uint8[H W 3].
    """
    rows = max(1, *(len(example.labels) for example in examples))
    boxes = np.zeros((len(examples), rows, 4), dtype=np.float32)
    labels = np.full((len(examples), rows), BACKGROUND, dtype=np.int64)
    for i, example in enumerate(examples):
        boxes[i, : len(example.boxes)] = example.boxes
        labels[i, : len(example.labels)] = example.labels
    images = np.stack([example.image for example in examples])
    return Batch(
        images=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        scales=torch.tensor([example.scale for example in examples], dtype=torch.float32),
        sizes=torch.tensor([example.size for example in examples], dtype=torch.int64),
        names=[example.name for example in examples],
    )


def train_batches(
    dataset: Dataset[Example],
    size: tuple[int, int],
    *,
    batch_size: int,
    epochs: range,
    seed: int,
    workers: int,
    fill: tuple[int, int, int],
    fit: tuple[int, int] | None = None,
    scale_range: tuple[float, float] | None = (0.7, 1.5),
    pasted: float = 0.0,
    pin_memory: bool = False,
) -> DataLoader:
    """Load shuffled, augmented batches of several epochs in a row.

    Epoch e is shuffled by (seed, e) and its sample i augmented by (seed, e, i), so that neither the number of workers
    nor where a run was resumed changes a batch. One iterator serves all epochs: workers start once.

    Args:
        dataset: a sized data set of unscaled examples.
        size: (height, width) of the pictures of a batch.
        batch_size: what does not fill a batch at an epoch's end is left out of it.
        epochs: which epochs; `range(3, 10)` goes on where three are done.
        seed: decides the order and every augmentation.
        workers: processes; 0 loads in this one.
        fill: RGB colour of the padding, 0..255.
        fit, scale_range: of `tinydet.data.augment.augment`; pictures are letterboxed and nothing else when the range
            is None.
        pasted: the chance of a picture to get objects of another, drawn at random, by `tinydet.data.paste.paste`.
        pin_memory: whether to load into memory that a GPU can copy from meanwhile.

    Returns:
        A loader of `Batch`, len(dataset) // batch_size of them for each epoch.

    Raises:
        InputError: there are fewer examples than one batch needs.
    """
    examples = len(dataset)  # type: ignore[arg-type]
    if examples < batch_size:
        raise InputError(f"batch_size must be at most the number of training examples, {examples}, got {batch_size}")

    make: Callable[[tuple[int, int]], Example]
    if scale_range is None:
        make = partial(_unchanged, dataset=dataset, size=size, fill=fill)
    else:
        from tinydet.data.augment import augment  # here, because albumentations takes seconds to import

        change = partial(augment, size=size, fit=fit, fill=fill, scale_range=scale_range)
        make = partial(_augmented, dataset=dataset, augment=change, pasted=pasted, seed=seed)
    order = _Shuffled(examples, batch_size=batch_size, epochs=epochs, seed=seed)
    return _load(make, order, workers=workers, pin_memory=pin_memory)


def val_batches(
    dataset: Dataset[Example],
    size: tuple[int, int],
    *,
    batch_size: int,
    workers: int,
    fill: tuple[int, int, int],
    pin_memory: bool = False,
) -> DataLoader:
    """Load letterboxed batches of every example, in order; the last batch may be smaller.

    Args:
        dataset: a sized data set of unscaled examples.
        size: (height, width) of the network's input.
        batch_size: the most examples of one batch.
        workers: processes, kept from one pass to the next; 0 loads in this one.
        fill: RGB colour of the padding, 0..255.
        pin_memory: whether to load into memory that a GPU can copy from meanwhile.

    Returns:
        A loader of `Batch` that can be gone through any number of times.
    """
    examples = len(dataset)  # type: ignore[arg-type]
    order = [range(first, min(first + batch_size, examples)) for first in range(0, examples, batch_size)]
    return _load(
        partial(_letterboxed, dataset=dataset, size=size, fill=fill), order, workers=workers, pin_memory=pin_memory
    )


def _augmented(
    key: tuple[int, int], *, dataset: Dataset[Example], augment: Callable[..., Example], pasted: float, seed: int
) -> Example:
    """Make the training example of one (epoch, index)."""
    epoch, index = key
    example, rng = dataset[index], np.random.default_rng((seed, epoch, index, 1))
    if rng.random() < pasted:
        example = paste(example, dataset[int(rng.integers(len(dataset)))], rng=rng)  # type: ignore[arg-type]
    return augment(example, seed=(seed, epoch, index))


def _unchanged(
    key: tuple[int, int], *, dataset: Dataset[Example], size: tuple[int, int], fill: tuple[int, int, int]
) -> Example:
    """Make the training example of one (epoch, index), the same in every epoch."""
    return _letterboxed(key[1], dataset=dataset, size=size, fill=fill)


def _letterboxed(
    index: int, *, dataset: Dataset[Example], size: tuple[int, int], fill: tuple[int, int, int]
) -> Example:
    """Make the validation example of one index."""
    return letterbox(dataset[index], size, fill=fill)


@dataclass(frozen=True)
class _Shuffled:
    """The batches of several epochs, each a list of (epoch, index)."""

    examples: int
    batch_size: int
    epochs: range
    seed: int

    def __len__(self) -> int:
        return len(self.epochs) * (self.examples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self.epochs:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.examples).tolist()
            for last in range(self.batch_size, self.examples + 1, self.batch_size):
                yield [(epoch, index) for index in order[last - self.batch_size : last]]


class _Keyed(Dataset[Example]):
    """A data set whose keys say all that an example depends on: workers have no state that could differ."""

    def __init__(self, make: Callable[[Any], Example]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Example:
        return self.make(key)


class _Loader(DataLoader):
    """A loader that passes a worker's `InputError` on as the one line it was, without the traceback torch adds."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from error


def _load(make: Callable[[Any], Example], order: Any, *, workers: int, pin_memory: bool) -> DataLoader:
    """Build the loader that both kinds of batches share."""
    return _Loader(
        _Keyed(make),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # or it draws from the global one
    )


def _start_worker(_: int) -> None:
    """Keep a worker to one thread; torch has seen to its own."""
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
