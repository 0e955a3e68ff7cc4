"""What a run can be told is checked at once, fits its data, and cannot change half-way."""

import dataclasses
from typing import Any

import pytest

from tinydet.errors import InputError
from tinydet.training.settings import TrainSettings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd; got 'adam'; did you mean adamw?"),
        ({"schedule": "linear"}, "schedule must be one of cosine, plateau, constant; got 'linear'"),
        ({"freeze": "head"}, "freeze must be one of auto, none, early, backbone, norms; got 'head'"),
        ({"recipe": "papers"}, "recipe must be one of default, paper; got 'papers'; did you mean paper?"),
        ({"image_size": (0, 896)}, r"image_size must be at least 1, got \(0, 896\)"),
        ({"image_size": "large"}, r"image_size must be \(height, width\) or 'auto', got 'large'"),
        ({"scale_range": (1.0,)}, r"scale_range must be of type tuple\[float, float\] \| None, got \(1.0,\)"),
        ({"anchor_scale": 0.0}, "anchor_scale must be above 0, got 0.0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"minutes": 0.0}, "minutes must be above 0, got 0.0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, got -0.0001"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be at least 0, got -1.0"),
        ({"ema_decay": -0.5}, "ema_decay must be at least 0, got -0.5"),
        ({"copy_paste": -0.5}, "copy_paste must be at least 0, got -0.5"),
        ({"copy_paste": 1.5}, "copy_paste must be at most 1, got 1.5"),
        ({"ema_decay": 1.5}, "ema_decay must be at most 1, got 1.5"),
        ({"scale_range": (1.8, 0.8)}, r"scale_range must be a lower and a higher number, got \(1.8, 0.8\)"),
        ({"seed": 2**64}, "seed must be at most 4294967296, got 18446744073709551616"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"lr": float("inf")}, "lr must be at most 1e\\+30, got inf"),
        ({"lr": "0.1"}, r"lr must be of type float \| None, got '0.1'"),
        ({"epochs": True}, "epochs must be of type int, got True"),
        ({"epochs": 2.5}, "epochs must be of type int, got 2.5"),
        ({"classes": "Car"}, r"classes must be of type tuple\[str, ...\] \| None, got 'Car'"),
        ({"class_map": [["a", "b", "c"]]}, r"class_map must be of type tuple\[tuple\[str, str\], ...\], got"),
        ({"crop": [64]}, r"crop must be of type tuple\[int, int\] \| None, got \[64\]"),
        ({"scale_range": (0.5, float("nan"))}, r"scale_range must be above 0, got \(0.5, nan\)"),
        ({"recipe": ["paper"]}, r"recipe must be of type str, got \['paper'\]"),
        ({"augment": 5}, r"augment must be of type collections.abc.Mapping\[str, typing.Any\] \| None, got 5"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}".replace("?", r"\?")):
        TrainSettings("kitti", **changes)


def test_settings_come_back_from_a_dict() -> None:
    settings = TrainSettings("kitti", classes=("Car", "Van"), image_size=(64, 128), lr=0.1, weight_decay=0.0)
    plain = dataclasses.asdict(settings)
    assert TrainSettings(**plain) == settings
    lists: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
    assert TrainSettings(**lists) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lr = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "lr", "decay"),
    [
        ({}, 5.6e-3, 1e-2),
        ({"batch_size": 2, "grad_accumulation": 8}, 11.2e-3, 1e-2),
        ({"recipe": "paper", "batch_size": 64}, 0.08, 4e-5),
        ({"batch_size": 1}, 2.8e-3, 1e-2),
        ({"batch_size": 64}, 22.4e-3, 1e-2),
        ({"optimizer": "sgd", "batch_size": 64}, 0.08, 4e-5),
        ({"optimizer": "sgd", "batch_size": 4}, 0.005, 4e-5),
        ({"lr": 0.5, "weight_decay": 0.0, "batch_size": 4}, 0.5, 0.0),
    ],
)
def test_the_learning_rate_goes_with_the_batch_unless_given(changes: dict[str, Any], lr: float, decay: float) -> None:
    settings = TrainSettings("kitti", **changes)
    assert settings.peak_lr == pytest.approx(lr)
    assert settings.decay == decay


def test_a_recipe_decides_the_settings_that_are_left_out() -> None:
    default, paper = TrainSettings("kitti"), TrainSettings("kitti", recipe="paper")
    assert (default.optimizer, default.loss) == ("adamw", "quality")
    assert (paper.optimizer, paper.loss, paper.scale_range, paper.copy_paste) == ("sgd", "focal", (0.1, 2.0), 0.0)
    told = TrainSettings("kitti", recipe="paper", optimizer="adamw", scale_range=(0.5, 1.0), copy_paste=0.5)
    assert (told.optimizer, told.scale_range, told.copy_paste) == ("adamw", (0.5, 1.0), 0.5)


def test_every_setting_is_explained() -> None:
    for field in dataclasses.fields(TrainSettings)[1:]:
        assert field.metadata["help"].endswith("."), field.name
        assert field.metadata["help"][0].isupper() or field.name == "model", field.name
