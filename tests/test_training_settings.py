"""What a run can be told is checked at once, fits its data, and cannot change half-way."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import hollow
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.training.settings import TrainSettings, fit_crop, fit_model, new_run, resumed_settings
from tinydet.weights.checkpoint import save_checkpoint

WIDE, SQUARE = (375, 1242), (480, 640)  # height, width


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "d9"}, "model must be one of d0, d1"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd; got 'adam'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, plateau, constant; got 'linear'"),
        ({"freeze": "head"}, "freeze must be one of none, trunk, norms; got 'head'"),
        ({"image_size": (0, 896)}, r"image_size must be positive, got \(0, 896\)"),
        ({"anchor_scale": 0.0}, "anchor_scale must be positive, got 0.0"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"clip": 0.0}, "clip must be positive, got 0.0"),
        ({"weight_decay": -1e-4}, "weight_decay must not be negative, got -0.0001"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must not be negative, got -1.0"),
        ({"ema_decay": -0.5}, "ema_decay must not be negative, got -0.5"),
        ({"paste": -0.5}, "paste must not be negative, got -0.5"),
        ({"paste": 1.5}, "paste must be at most 1, got 1.5"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"workers": -1}, "workers must not be negative, got -1"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
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


# Runs


def test_a_new_run_takes_the_first_free_number(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert new_run(runs, "d0") == runs / "d0-1"
    assert not runs.exists()
    for name in ("d0-1", "d0-3", "d1-2"):
        (runs / name).mkdir(parents=True)
    assert new_run(runs, "d0") == runs / "d0-2"
    (runs / "d0-2").write_text("a file")
    assert new_run(runs, "d0") == runs / "d0-4"
    assert new_run(runs, "d1") == runs / "d1-1"


BEGAN = TrainSettings("kitti", model="lite0", lr=0.25, classes=("Car",), workers=0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run that began with BEGAN."""
    save_settings(tmp_path, dataclasses.asdict(BEGAN))
    return tmp_path


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    config = model_config("lite0", classes=("Car",))
    save_checkpoint(folder / "last.pt", hollow(config, training={"settings": settings}))


def test_a_resumed_run_has_the_settings_that_it_began_with(out: Path) -> None:
    given = TrainSettings("kitti", lr=0.25, epochs=3, workers=0)
    assert resumed_settings(out, given, fixed=["data", "lr"]) == BEGAN
    assert resumed_settings(out, given, fixed=[]) == BEGAN


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 0.5}, "lr 0.25 and cannot go on with 0.5"),
        ({"lr": None}, "lr 0.25 and cannot go on with None"),
        ({"data": "coco"}, "data 'kitti' and cannot go on with 'coco'"),
        ({"classes": ("Car", "Van")}, r"classes \('Car',\) and cannot go on with \('Car', 'Van'\)"),
        ({"image_size": (64, 64)}, r"image_size None and cannot go on with \(64, 64\)"),
    ],
)
def test_a_resumed_run_cannot_change(out: Path, changes: dict[str, Any], said: str) -> None:
    given = dataclasses.replace(BEGAN, **changes)
    with pytest.raises(InputError, match=f": began with {said}; start a new run$") as caught:
        resumed_settings(out, given, fixed=["data", "lr", "classes", "image_size"])
    assert str(caught.value).startswith(f"{out}: ")


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"last\.pt: No such file"):
        resumed_settings(tmp_path, BEGAN, fixed=[])


@pytest.mark.parametrize("settings", [None, {"data": "kitti", "wings": 2}, {}])
def test_settings_of_another_version(tmp_path: Path, settings: dict[str, Any] | None) -> None:
    if settings is None:  # weights alone
        save_checkpoint(tmp_path / "last.pt", hollow(model_config("lite0")))
    else:
        save_settings(tmp_path, settings)
    with pytest.raises(InputError, match=r"last\.pt: holds no run that this version can go on with \("):
        resumed_settings(tmp_path, BEGAN, fixed=[])


# The model


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
def test_the_model_fits_the_pictures_unless_told(
    sizes: list[tuple[int, int]], changes: dict[str, Any], size: tuple[int, int], scale: float
) -> None:
    settings = TrainSettings("kitti", **changes)
    base = model_config(settings.model or "d0")
    config = fit_model(settings, sizes, classes=("Tram", "Car"), base=base)
    assert (config.image_size, config.anchor_scale) == (size, scale)
    expected = dataclasses.replace(base, classes=("Tram", "Car"), image_size=size, anchor_scale=scale)
    assert config == expected


def test_what_an_earlier_run_fitted_stays_as_it_is() -> None:
    base = model_config("lite0", classes=("Cow",), image_size=(96, 128), mean=(0.5, 0.5, 0.5))
    for sizes in ([WIDE], [SQUARE]):
        assert fit_model(TrainSettings("kitti"), sizes, classes=("Car",), base=base) == dataclasses.replace(
            base, classes=("Car",)
        )
    told = fit_model(TrainSettings("kitti", image_size=(64, 64), anchor_scale=1.0), [WIDE], classes=("Car",), base=base)
    assert (told.image_size, told.anchor_scale) == ((64, 64), 1.0)


# What a step sees


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
def test_wide_pictures_are_seen_in_parts(size: tuple[int, int], changes: dict[str, Any], crop: tuple[int, int]) -> None:
    assert fit_crop(TrainSettings("kitti", **changes), model_config("lite0", image_size=size)) == crop


def test_a_recipe_decides_what_was_not_told() -> None:
    default, paper = TrainSettings("kitti"), TrainSettings("kitti", recipe="paper")
    assert default.optimizer == "adamw"
    assert (paper.optimizer, paper.scale_range, paper.paste) == ("sgd", (0.1, 2.0), 0.0)
    told = TrainSettings("kitti", recipe="paper", optimizer="adamw", scale_range=(0.5, 1.0), paste=0.5)
    assert (told.optimizer, told.scale_range, told.paste) == ("adamw", (0.5, 1.0), 0.5)


def test_how_many_memory_holds_must_be_found_out_first() -> None:
    with pytest.raises(AssertionError, match="not been found out"):
        _ = TrainSettings("kitti", batch_size=None).peak_lr
