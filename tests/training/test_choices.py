"""The data and the device decide what the settings of a run leave open."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.functional import params_and_buffers
from tinydet.training.choices import (
    check_batch_norms,
    choose_crop_size,
    choose_levels,
    choose_precision,
    frozen_modules,
    resolve_config,
)
from tinydet.training.settings import TrainSettings

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


@pytest.mark.parametrize(
    ("size", "changes", "large", "levels"),
    [
        ((320, 1088), {}, 1, 3),
        ((320, 1088), {}, 2, 5),  # of ten objects, which have anchors of P6 alone
        ((320, 640), {}, 1, 5),
        ((320, 641), {}, 1, 3),
        ((512, 512), {"crop": (256, 257)}, 0, 5),
        ((512, 512), {"crop": (512, 256)}, 0, 3),
        ((320, 1088), {"recipe": "paper"}, 0, 5),
        ((320, 1088), {"overfit": 4}, 0, 5),
    ],
)
def test_a_new_pyramid_has_the_levels_that_crops_can_teach(
    size: tuple[int, int], changes: dict[str, Any], large: int, levels: int
) -> None:
    boxes = [np.array([[10, 10, 10 + side, 10 + side]], np.float32) for side in [64] * (10 - large) + [300] * large]
    frames = [Frame("a", Path("a.png"), size, box, np.array([0])) for box in boxes]
    dataset, settings = DetectionDataset(frames, classes=("Car",)), TrainSettings("kitti", **changes)
    config = model_config("lite0", image_size=size, classes=("Car",))
    fewer = dataclasses.replace(config, levels=(3, 4, 5, 6, 7)[:levels])
    assert choose_levels(settings, dataset, config, detector=False) == fewer
    assert choose_levels(settings, dataset, config, detector=True) == config


# Freezing, batch norms, precision


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
    early = frozen_modules(model, "early", loaded=backbone)
    assert early == frozen_modules(model, "auto", loaded=backbone)
    assert early < frozen_modules(model, "backbone", loaded=backbone)
    assert {"backbone.stem", "backbone.stages.2.1.project_norm"} <= early
    assert not any(name.startswith("backbone.stages.3") for name in early)
    assert frozen_modules(model, "auto", loaded=[]) == frozenset()
    for freeze in ("early", "backbone", "norms"):
        with pytest.raises(InputError, match=f"freeze {freeze}: the run starts from random weights"):
            frozen_modules(model, freeze, loaded=[])


def test_batch_norms_need_two_values() -> None:
    config = model_config("lite0")
    norms = frozen_modules(meta_model(config), "norms", loaded=[*params_and_buffers(meta_model(config)).buffers])
    nothing = frozenset[str]()
    for crop, images, evaluated in (((128, 129), 1, nothing), ((128, 128), 2, nothing), ((128, 128), 1, norms)):
        check_batch_norms(config, crop, evaluated=evaluated, images=images)
    backbone = frozenset(name for name in norms if name.startswith("backbone."))
    for crop, evaluated in (((128, 128), nothing), ((32, 64), backbone)):
        said = (
            f"one value a channel: of one image of {crop[0]}x{crop[1]}, the last feature map is 1x1; try a larger --s"
        )
        with pytest.raises(InputError, match=said):
            check_batch_norms(config, crop, evaluated=evaluated, images=1)
    check_batch_norms(config, (512, 512), evaluated=norms, images=0)
    with pytest.raises(InputError, match="--sync-bn off: a step has fewer images than there are processes; leave it a"):
        check_batch_norms(config, (512, 512), evaluated=backbone, images=0)


def test_precision_is_the_one_that_the_device_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    assert [choose_precision(amp, cpu) for amp in ("auto", "off", "bf16", "fp16")] == ["off", "off", "bf16", "fp16"]
    assert choose_precision("auto", torch.device("mps")) == "off"
    for supported, name in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, known=supported: known)
        assert choose_precision("auto", cuda) == name
