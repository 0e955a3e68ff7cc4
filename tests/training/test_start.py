"""A run starts from its settings and the data, and cannot change half-way."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kitti_folders import label_line, write_frame, write_kitti
from tinydet.data.dataset import DetectionDataset
from tinydet.data.kitti import KittiDataset
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.functional import params_and_buffers
from tinydet.training.settings import TrainSettings
from tinydet.training.start import (
    check_batch_norms,
    choose_crop_size,
    choose_precision,
    frozen_modules,
    overfit_settings,
    overfit_splits,
    resolve_config,
)

WIDE, SQUARE = (375, 1242), (480, 640)  # height, width


# The model


def sized(sizes: list[tuple[int, int]]) -> Any:
    """Return what `resolve_config` reads of a data set."""

    class Sized:
        def __init__(self) -> None:
            self.sizes, self.classes = np.array(sizes), ("Tram", "Car")

    return Sized()


@pytest.mark.parametrize(
    ("sizes", "changes", "size", "scale"),
    [
        ([WIDE], {}, (320, 1088), 2.5),
        ([WIDE, SQUARE, WIDE], {"model": "lite0"}, (320, 1088), 2.5),
        ([WIDE, SQUARE, SQUARE], {}, (512, 512), 4.0),
        ([(100, 200)], {"model": "lite0"}, (320, 320), 3.0),  # twice as wide is not more than twice
        ([(100, 201)], {"model": "d7"}, (320, 1088), 2.5),
        ([SQUARE], {"model": "d7"}, (1536, 1536), 5.0),
        ([WIDE], {"image_size": (128, 448)}, (128, 448), 2.0),
        ([WIDE], {"anchor_scale": 2.0}, (320, 1088), 2.0),
        ([SQUARE], {"image_size": (64, 512), "anchor_scale": 1.0}, (64, 512), 1.0),
    ],
)
def test_the_config_fits_the_images_unless_told(
    sizes: list[tuple[int, int]], changes: dict[str, Any], size: tuple[int, int], scale: float
) -> None:
    settings = TrainSettings("kitti", **changes)
    base = model_config(settings.model or "d0")
    config = resolve_config(settings, sized(sizes), base=base)
    assert (config.image_size, config.anchor_scale) == (size, scale)
    assert config == dataclasses.replace(base, classes=("Tram", "Car"), image_size=size, anchor_scale=scale)


def test_the_input_of_an_earlier_run_stays_as_it_is() -> None:
    base = model_config("lite0", classes=("Cow",), image_size=(96, 128), mean=(0.5, 0.5, 0.5))
    for sizes in ([WIDE], [SQUARE]):
        expected = dataclasses.replace(base, classes=("Tram", "Car"))
        assert resolve_config(TrainSettings("kitti"), sized(sizes), base=base) == expected
    told = resolve_config(TrainSettings("kitti", image_size=(64, 64), anchor_scale=1.0), sized([WIDE]), base=base)
    assert (told.image_size, told.anchor_scale) == ((64, 64), 1.0)


@pytest.mark.parametrize(
    ("size", "changes", "crop"),
    [
        ((256, 896), {}, (256, 448)),
        ((320, 1088), {}, (256, 448)),
        ((192, 640), {}, (192, 320)),
        ((256, 512), {}, (256, 512)),  # twice as wide is not more than twice
        ((512, 512), {}, (512, 512)),
        ((256, 896), {"recipe": "paper"}, (256, 896)),
        ((256, 896), {"crop": (128, 160)}, (128, 160)),
        ((512, 512), {"recipe": "paper", "crop": (128, 160)}, (128, 160)),
        ((256, 896), {"overfit": 4}, (256, 896)),
        ((256, 896), {"overfit": 4, "crop": (128, 160)}, (256, 896)),
    ],
)
def test_a_step_sees_crops_of_wide_images(
    size: tuple[int, int], changes: dict[str, Any], crop: tuple[int, int]
) -> None:
    assert choose_crop_size(TrainSettings("kitti", **changes), model_config("lite0", image_size=size)) == crop


# Freezing, precision, a few images


def test_only_loaded_weights_can_be_frozen() -> None:
    model = meta_model(model_config("lite0"))
    variables = params_and_buffers(EfficientDet("lite0"))
    everything = [*variables.params, *variables.buffers]
    backbone = [name for name in everything if name.startswith("backbone.")]
    assert frozen_modules(model, "none", loaded=[]) == frozenset()
    some, all_ = (frozen_modules(model, "norms", loaded=loaded) for loaded in (backbone, everything))
    assert some == {name for name in all_ if name.startswith("backbone.")}
    assert {"bifpn.top.norm", "class_net.norms.0.4", "backbone.stem_norm"} <= all_
    assert frozen_modules(model, "backbone", loaded=backbone) > some
    for freeze in ("backbone", "norms"):
        with pytest.raises(InputError, match=f"freeze {freeze}: the run starts from random weights"):
            frozen_modules(model, freeze, loaded=[])


def test_batch_norms_need_two_values() -> None:
    config = model_config("lite0")
    norms = frozen_modules(meta_model(config), "norms", loaded=[*params_and_buffers(meta_model(config)).buffers])
    nothing = frozenset[str]()
    for crop, images, frozen in (((128, 129), 1, nothing), ((128, 128), 2, nothing), ((128, 128), 1, norms)):
        check_batch_norms(config, crop, frozen=frozen, images=images)
    backbone = frozenset(name for name in norms if name.startswith("backbone."))
    for crop, frozen in (((128, 128), nothing), ((32, 64), backbone)):
        said = (
            f"one value a channel: of one image of {crop[0]}x{crop[1]}, the last feature map is 1x1; try a larger --s"
        )
        with pytest.raises(InputError, match=said):
            check_batch_norms(config, crop, frozen=frozen, images=1)


def test_precision_is_the_one_that_the_device_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    assert [choose_precision(amp, cpu) for amp in ("auto", "off", "bf16", "fp16")] == ["off", "off", "bf16", "fp16"]
    assert choose_precision("auto", torch.device("mps")) == "off"
    for supported, name in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, known=supported: known)
        assert choose_precision("auto", cuda) == name


def test_a_few_images_are_the_first_that_hold_an_object(tmp_path: Path) -> None:
    write_kitti(tmp_path, 4)
    write_frame(tmp_path / "training", "000000", [label_line("DontCare", (0, 0, 9, 9))])
    dataset: DetectionDataset = KittiDataset(tmp_path, "all", classes=("Car", "Pedestrian"))
    training, validation = overfit_splits(dataset, 2)
    assert list(validation.names) == ["000001", "000002"]
    assert list(training.names) == ["000001", "000002"] * 20
    assert training.split_note == "2 images, 000001, 000002, over and over"
    with pytest.raises(InputError, match="overfit: asked for 4 images with objects, but the training data hold 3"):
        overfit_splits(dataset, 4)


def test_nothing_keeps_an_overfit_run_from_fitting() -> None:
    settings = overfit_settings(TrainSettings("kitti", overfit=3, batch_size=8, grad_accumulation=2, lr=0.1), 3)
    assert (settings.batch_size, settings.grad_accumulation, settings.decay, settings.ema_decay) == (3, 1, 0.0, 0.0)
    assert settings.lr == 0.1
    assert overfit_settings(settings, 3) == settings  # a resumed run gets them again
    assert overfit_settings(TrainSettings("kitti", overfit=8, batch_size=None), 8).batch_size == 8
