"""Batches depend on the seed, the epoch and the index: not on who loads them, or where a run went on."""

import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from tests.kitti_folders import HEIGHT, WIDTH, write_kitti
from tinydet.data.augment import augment
from tinydet.data.images import Example, letterbox, letterbox_scale
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import (
    Batch,
    _start_worker,
    collate,
    dead_worker,
    resolve_augmentation,
    resolve_crop,
    train_batches,
    val_batches,
)
from tinydet.distributed import World
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND, IGNORE

PAD_VALUE = (124, 116, 104)
SIZE = (48, 128)
CROP = (48, 64)
FRAMES, BATCHES = 7, 4  # of an epoch; two images at most are a batch
# Python 3.12 and 3.13 warn whenever a process with threads forks; a worker takes no lock that another thread may hold.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> KittiDataset:
    root = tmp_path_factory.mktemp("kitti")
    write_kitti(root, FRAMES, lists={"train": [f"{i:06d}" for i in range(FRAMES)]})
    return KittiDataset(root, classes=["Car", "Pedestrian"])


def rows_of(batch: Batch, dataset: KittiDataset) -> list[int]:
    return [dataset.names.tolist().index(name) for name in batch.names]


def assert_same(a: Batch, b: Batch) -> None:
    assert a.names == b.names
    for one, other in zip(a[:-1], b[:-1], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_a_batch_holds_its_examples_and_padding(rows: list[int]) -> None:
    rng = np.random.default_rng(len(rows))
    examples = [
        Example(
            rng.integers(0, 256, (5, 8, 3), dtype=np.uint8),
            rng.random((count, 4)).astype(np.float32),
            rng.integers(IGNORE + 2, 3, count),
            f"frame {i}",
            (10, 16 + i),
            0.5 + i,
        )
        for i, count in enumerate(rows)
    ]
    batch = collate(examples)
    assert batch.images.shape == (len(rows), 3, 5, 8)
    assert batch.images.is_contiguous()
    assert (batch.images.dtype, batch.boxes.dtype, batch.labels.dtype) == (torch.uint8, torch.float32, torch.int64)
    assert batch.boxes.shape == (len(rows), max(1, *rows), 4)
    assert batch.sizes.tolist() == [[10, 16 + i] for i in range(len(rows))]
    assert batch.scales.tolist() == [0.5 + i for i in range(len(rows))]
    assert batch.names == [f"frame {i}" for i in range(len(rows))]
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(batch.images[i].permute(1, 2, 0).numpy(), example.image)
        np.testing.assert_array_equal(batch.boxes[i, : rows[i]].numpy(), example.boxes)
        np.testing.assert_array_equal(batch.labels[i, : rows[i]].numpy(), example.labels)
        assert (batch.boxes[i, rows[i] :] == 0).all()
        assert (batch.labels[i, rows[i] :] == BACKGROUND).all()


class Config(NamedTuple):
    image_size: tuple[int, int] = SIZE
    pad_value: tuple[int, int, int] = PAD_VALUE


CONFIG = Config()


def load(dataset: Dataset[Any], epochs: range, *, workers: int = 0, seed: int = 1, **how: Any) -> list[Batch]:
    how = {"copy_paste": 0, **how}
    loader = train_batches(dataset, CONFIG, batch_size=2, epochs=epochs, seed=seed, workers=workers, **how)
    batches = list(loader)
    assert len(batches) == len(loader) == len(epochs) * BATCHES
    return batches


@forks
def test_workers_change_nothing(dataset: KittiDataset) -> None:
    for alone, shared_out in zip(load(dataset, range(2)), load(dataset, range(2), workers=2), strict=True):
        assert_same(alone, shared_out)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(dataset: KittiDataset) -> None:
    for through, resumed in zip(load(dataset, range(3))[BATCHES:], load(dataset, range(1, 3)), strict=True):
        assert_same(through, resumed)


def test_a_training_batch_is_the_augmented_examples(dataset: KittiDataset) -> None:
    for batch in load(dataset, range(4, 5), seed=9):
        how: dict = {"input_size": SIZE, "pad_value": PAD_VALUE}
        examples = [augment(dataset[i], CROP, seed=(9, 4, i), **how) for i in rows_of(batch, dataset)]
        assert_same(batch, collate(examples))


@forks
def test_pasted_objects_depend_on_the_sample_alone(dataset: KittiDataset) -> None:
    alone, shared_out = (load(dataset, range(2), workers=n, copy_paste=0.5) for n in (0, 2))
    resumed = load(dataset, range(1, 2), copy_paste=0.5)
    plain = load(dataset, range(2))
    for batch, again in zip([*alone, *alone[BATCHES:]], [*shared_out, *resumed], strict=True):
        assert_same(batch, again)
    changed = sum(
        not torch.equal(image, before)
        for batch, other in zip(alone, plain, strict=True)
        for image, before in zip(batch.images, other.images, strict=True)
    )
    assert 0 < changed < 2 * FRAMES


def test_an_epoch_shuffles_repeats_nothing_and_leaves_nothing_out(dataset: KittiDataset) -> None:
    names = [[name for batch in load(dataset, range(epoch, epoch + 1)) for name in batch.names] for epoch in range(6)]
    assert all(sorted(epoch) == dataset.names.tolist() for epoch in names)
    assert len({tuple(epoch) for epoch in names}) > 4
    other = load(dataset, range(1), seed=2)
    assert any(batch.names != again.names for batch, again in zip(load(dataset, range(1)), other, strict=True))


class Rows(Dataset[Any]):
    """So many images of one colour."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_batches_of_an_epoch_differ_by_one_image_at_most(count: int, size: int, processes: int, skip: int) -> None:
    """And each is divided as evenly among the processes, whatever their number is and where an epoch is resumed."""
    size, config = min(size, count), Config((8, 8))
    how: dict[str, Any] = {"batch_size": size, "epochs": range(3, 5), "seed": 6, "scale_range": None}
    names = [batch.names for batch in train_batches(Rows(count), config, **how)]
    steps = -(-count // size)
    assert len(names) == 2 * steps
    for epoch in (names[:steps], names[steps:]):
        assert sorted(int(name) for batch in epoch for name in batch) == [*range(count)]
        lengths = {*map(len, epoch)}
        assert max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1
    worlds, skip = [World(rank, processes) for rank in range(processes)], min(skip, steps)
    loaders = [train_batches(Rows(count), config, **how, skip=skip, world=world) for world in worlds]
    assert [len(loader) for loader in loaders] == [2 * steps - skip] * processes
    for whole, *shares in zip(names[skip:], *loaders, strict=True):
        assert [name for share in shares for name in share.names] == whole
        assert max(len(share.names) for share in shares) - min(len(share.names) for share in shares) <= 1
        assert all(share.images.shape == (len(share.names), 3, 8, 8) for share in shares)


def test_one_batch_may_take_every_example(dataset: KittiDataset) -> None:
    loader = train_batches(dataset, CONFIG, batch_size=FRAMES, epochs=2)
    assert [sorted(batch.names) for batch in loader] == [dataset.names.tolist()] * 2


def test_too_few_examples_for_a_batch_are_named(dataset: KittiDataset) -> None:
    with pytest.raises(InputError, match="batch_size must be at most the number of training examples, 7, got 8"):
        train_batches(dataset, CONFIG, batch_size=8)


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_is_letterboxed_in_order_and_complete(dataset: KittiDataset, workers: int) -> None:
    loader = val_batches(dataset, CONFIG, batch_size=3, workers=workers)
    assert len(loader) == 3
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.names) for batch in batches] == [3, 3, 1]
        for i, batch in enumerate(batches):
            indices = range(3 * i, min(3 * i + 3, FRAMES))
            assert_same(batch, collate([letterbox(dataset[j], SIZE, pad_value=PAD_VALUE) for j in indices]))
            assert batch.scales.tolist() == pytest.approx([letterbox_scale((HEIGHT, WIDTH), SIZE)] * len(indices))


def test_loading_leaves_the_global_generators_alone(dataset: KittiDataset) -> None:
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    load(dataset, range(1))
    list(val_batches(dataset, CONFIG, batch_size=3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == pickle.dumps(np.random.get_state())  # noqa: NPY002


class Broken(Dataset[Example]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Example:
        raise InputError("image_2/000007.png: not a readable image (truncated)")


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_an_input_error_stays_one_line(workers: int) -> None:
    with pytest.raises(InputError, match=r"^image_2/000007\.png: not a readable image \(truncated\)$"):
        list(val_batches(Broken(), CONFIG, batch_size=2, workers=workers))


@forks
def test_the_real_frames(shared: Path) -> None:
    dataset = KittiDataset(shared / "kitti", "val")
    batch = next(iter(train_batches(dataset, Config((320, 1088)), batch_size=8, workers=1)))
    assert batch.images.shape == (8, 3, 256, 448)
    assert (batch.labels >= IGNORE).all()
    assert (batch.labels < 3).all()
    assert (batch.labels >= 0).any()


def test_training_images_are_left_as_they_are_if_asked(dataset: KittiDataset) -> None:
    batches, shuffled = load(dataset, range(2), augment=False), load(dataset, range(2))
    assert [batch.names for batch in batches] == [batch.names for batch in shuffled]
    for batch in batches:
        rows = rows_of(batch, dataset)
        assert_same(batch, collate([letterbox(dataset[row], SIZE, pad_value=PAD_VALUE) for row in rows]))


@pytest.mark.parametrize("crop", [None, (40, 100)])
def test_training_images_are_crops_at_the_scale_of_the_input(
    dataset: KittiDataset, crop: tuple[int, int] | None
) -> None:
    scale = letterbox_scale((HEIGHT, WIDTH), SIZE)
    for batch in load(dataset, range(1), scale_range=(1.0, 1.0), crop=crop):
        assert batch.images.shape[2:] == (crop or CROP)
        assert batch.scales.tolist() == pytest.approx([scale] * len(batch.names))


@pytest.mark.parametrize(
    ("image_size", "crop", "augmentation"),
    [
        ((320, 1088), (256, 448), ((0.8, 1.8), 0.7)),
        ((48, 128), (48, 64), ((0.8, 1.8), 0.7)),
        ((512, 512), (512, 512), ((0.6, 1.2), 0.0)),
        ((64, 128), (64, 128), ((0.6, 1.2), 0.0)),
    ],
)
def test_wide_inputs_are_cropped(
    image_size: tuple[int, int], crop: tuple[int, int], augmentation: tuple[tuple[float, float], float]
) -> None:
    assert resolve_crop(image_size) == crop
    assert resolve_augmentation(image_size, crop) == augmentation


class Own(Dataset[Any]):
    """A person's own data set: the same images, boxes and labels, as tensors, without names."""

    def __init__(self, dataset: KittiDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        example = self.dataset[index]
        image = torch.from_numpy(example.image).permute(2, 0, 1)
        return image, torch.from_numpy(example.boxes), torch.from_numpy(example.labels)


@forks
def test_any_data_set_gives_the_same_batches(dataset: KittiDataset) -> None:
    own = Own(dataset)
    ours, theirs = (load(one, range(2), workers=1, copy_paste=0.7) for one in (dataset, own))
    ours += list(val_batches(dataset, CONFIG))
    theirs += list(val_batches(own, CONFIG))
    for batch, other in zip(ours, theirs, strict=True):
        assert [int(name) for name in batch.names] == [int(name) for name in other.names]
        assert_same(batch, other._replace(names=batch.names))


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave_no_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


class Deadly(Dataset[Any]):
    """Images of which one does harm to the process that loads it."""

    names = ("a", "b", "c", "d")

    def __init__(self, harm: Callable[[], None]) -> None:
        self.harm = harm

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        if self.names[index] == "c":
            self.harm()
        return np.zeros((32, 32, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int)


@forks
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of torch, which meets the dead again
@pytest.mark.parametrize("harm", [kill_itself, leave_no_room])
def test_a_worker_that_dies_names_its_image(harm: Callable[[], None]) -> None:
    val, other = (val_batches(Deadly(harm), Config(), batch_size=1, workers=2) for _ in range(2))
    error: Any = None
    try:
        list(val)
    except RuntimeError as caught:  # whose traceback would keep the dead known to torch, which raises whenever one ends
        error = dead_worker(caught, other, val)
    assert re.match(
        r"image c: the process that loaded it died \(DataLoader worker .*\); try fewer workers$", str(error)
    )
    assert dead_worker(RuntimeError("another"), val) is None
    early = dead_worker(RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated."), val)
    assert str(early).startswith("a process died before it loaded an image (DataLoader worker (pid 1) is killed")


def test_workers_leave_signals_to_the_process_that_trains() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hooks = sys.excepthook, Queue._on_queue_feeder_error  # type: ignore[attr-defined]
    try:
        _start_worker(0, augments=False)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)  # of a scheduler, to all processes; the next one is the loader's
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        sys.excepthook, Queue._on_queue_feeder_error = hooks  # type: ignore[attr-defined]
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_batches_that_are_done_are_skipped(dataset: KittiDataset) -> None:
    how: Any = {"batch_size": 2, "epochs": range(1, 3)}
    whole, rest = (list(train_batches(dataset, Config(), **how, skip=skip)) for skip in (0, 2))
    assert (len(whole), len(rest)) == (2 * BATCHES, 2 * BATCHES - 2)
    for one, other in zip(whole[2:], rest, strict=True):
        assert_same(one, other)


def test_workers_end_with_python(tmp_path: Path) -> None:
    """Though they leave a first SIGTERM to the process that trains, and the end of Python sends them only one."""
    write_kitti(tmp_path, 8, lists={"val": [f"{i:06d}" for i in range(8)]})
    code = f"""if True:
        from tinydet.data.kitti import KittiDataset
        from tinydet.data.loader import val_batches
        from tinydet.model.config import model_config
        loader = val_batches(KittiDataset({str(tmp_path)!r}, "val", classes=["Car"]), model_config("lite0"), workers=1)
        batches = iter(loader)
        next(batches)
        raise SystemExit(3)"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 3
