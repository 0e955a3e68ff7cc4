"""Transforms of the user's: in place of flips and colours, the same for a seed, whoever loads them, and saved whole."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinydet.data.augment import augment, import_albumentations
from tinydet.data.images import Example
from tinydet.data.loader import train_batches
from tinydet.data.transforms import own_transforms, read_transforms, transforms_to_dict
from tinydet.errors import InputError
from tinydet.labels import IGNORE
from tinydet.model.config import model_config

A = import_albumentations()
SIZE = (64, 96)
CONFIG = model_config("lite0", classes=("Car", "Van"), image_size=SIZE)
# Python 3.12 and 3.13 warn whenever a process with threads forks; a worker takes no lock that another thread may hold.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def example(seed: int = 0) -> Example:
    """An image of noise with an object on the left and an ignore region at the bottom on the right."""
    image = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    boxes = np.array([[0, 10, 20, 40], [70, 50, 96, 64]], np.float32)
    return Example(image, boxes, np.array([1, IGNORE]), f"frame {seed}", SIZE)


def augmented(*parts: Any, seed: int = 0, size: tuple[int, int] = SIZE) -> Example:
    """The example at scale 1, whole, after these transforms."""
    transforms = own_transforms(A.Compose([*parts]))
    return augment(example(), size, pad_value=(0, 0, 0), seed=seed, scale_range=(1, 1), transforms=transforms)


def test_they_take_the_place_of_flip_and_colours() -> None:
    plain = augmented(A.RandomGamma(p=0))  # of pixels alone
    assert np.array_equal(plain.image, example().image)
    assert (plain.boxes.tolist(), plain.labels.tolist()) == (example().boxes.tolist(), [1, IGNORE])
    flipped = augmented(A.VerticalFlip(p=1))
    assert np.array_equal(flipped.image, plain.image[::-1])
    assert flipped.boxes.tolist() == [[0, 24, 20, 54], [70, 0, 96, 14]]
    assert flipped.labels.tolist() == [1, IGNORE]  # an ignore region goes with its pixels


def test_boxes_that_leave_the_image_are_clipped_or_left_out() -> None:
    moved = augmented(A.Affine(translate_px={"x": -10, "y": 20}, p=1))
    assert moved.boxes.tolist() == [[0, 30, 10, 60]]
    assert moved.labels.tolist() == [1]
    gone = augmented(A.Affine(translate_px={"x": 90, "y": -60}, p=1))
    assert (gone.boxes.shape, gone.labels.shape) == ((0, 4), (0,))


def test_an_image_of_another_size_is_scaled_to_fit_or_padded() -> None:
    upright = augmented(A.RandomRotate90(p=1), size=(96, 96), seed=1)
    turned = augmented(A.Transpose(p=1))
    assert upright.image.shape == (96, 96, 3)
    assert turned.image.shape == (*SIZE, 3)  # 96x64 is scaled by 2/3
    assert turned.boxes[0].tolist() == pytest.approx([10 * 2 / 3, 0, 40 * 2 / 3, 20 * 2 / 3])
    small = augmented(A.Resize(32, 48, p=1))
    assert small.boxes[0].tolist() == [0, 5, 10, 20]
    assert not small.image[32:].any()
    assert not small.image[:, 48:].any()


RANDOM = (A.HorizontalFlip(p=0.5), A.OneOf([A.RandomBrightnessContrast(p=1), A.GaussNoise(p=1)], p=0.7))


def test_the_seed_alone_decides() -> None:
    one, same, other = (augmented(*RANDOM, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.image, same.image)
    assert not np.array_equal(one.image, other.image)
    # A flip says nothing of the brightness: all four combinations come up.
    parts = (A.HorizontalFlip(p=0.5), A.InvertImg(p=0.5))
    corners = {
        (int(augmented(*parts, seed=seed).boxes[0, 0]), int(augmented(*parts, seed=seed).image[63, 0, 0]))
        for seed in range(24)
    }
    assert len(corners) == 4


@forks
def test_workers_change_nothing() -> None:
    dataset: Any = [example(seed) for seed in range(6)]
    transforms = A.Compose([*RANDOM])

    def batches(epochs: range, **settings: Any) -> list[Any]:
        return list(train_batches(dataset, CONFIG, batch_size=2, epochs=epochs, augment=transforms, **settings))

    here, resumed, forked = batches(range(2)), batches(range(1, 2)), batches(range(2), workers=2)
    for a, b in [*zip(here, forked, strict=True), *zip(here[3:], resumed, strict=True)]:
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.boxes, b.boxes)
    plain = list(train_batches(dataset, CONFIG, batch_size=2, epochs=2))
    assert not torch.equal(plain[0].images, here[0].images)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_file_is_read_as_it_was_saved(tmp_path: Path, suffix: str) -> None:
    path, transforms = tmp_path / f"own{suffix}", A.Compose([*RANDOM, A.Affine(rotate=(-5, 5), p=1)])
    A.save(transforms, path, data_format=suffix[1:])
    plain = read_transforms(path)
    assert pickle.loads(pickle.dumps(own_transforms(plain))).transforms  # as a worker that is not forked gets it
    assert plain == transforms_to_dict(transforms) == json.loads(json.dumps(plain))
    for one, other in ((own_transforms(plain), own_transforms(transforms)),):
        results = [augment(example(), SIZE, pad_value=(0, 0, 0), seed=5, transforms=each) for each in (one, other)]
        assert np.array_equal(results[0].image, results[1].image)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", r"own.json: transforms as albumentations.save writes them must be an object, got \[\]$"),
        ("{", r"own.json:1: not JSON"),
        ('{"transform": {"__class_fullname__": "Blurr", "p": 1}}', r"own.json: not transforms .*KeyError: 'Blurr'\)$"),
        ('{"transform": {"__class_fullname__": "Blur", "wings": 2, "p": 1}}', "own.json: not transforms .*wings"),
        ('{"transform": {"__class_fullname__": "Blur", "blur_limit": "x", "p": 1}}', "own.json: not transforms"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_transforms(tmp_path / "own.json")
    assert "\n" not in str(caught.value)


def test_what_fails_fails_before_the_first_image() -> None:
    dataset: Any = [example(seed) for seed in range(4)]
    for part, said in (
        (A.Normalize(p=1), r"^augment: the augmentation must give uint8\[H W 3\], not float32\[64, 96, 3\]; leave out"),
        (A.pytorch.ToTensorV2(p=1), r"^augment: the augmentation must give uint8\[H W 3\], not torch.uint8\[3, 64, 96"),
        (A.RandomCrop(100, 100, p=0.5), r"^augment: the augmentation failed \(.*Crop"),
    ):
        with pytest.raises(InputError, match=said):
            train_batches(dataset, CONFIG, batch_size=2, augment=A.Compose([part]))
    with pytest.raises(InputError, match=r"^augment: not transforms of albumentations"):
        train_batches(dataset, CONFIG, batch_size=2, augment="flip")
    with pytest.raises(InputError, match=r"^augment: transforms that cannot be saved with a run"):
        transforms_to_dict(A.Compose([A.Lambda(image=example, p=1)]))
