"""How a run divides its steps, and what a run on a few images is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.kitti_folders import label_line, write_frame, write_kitti
from tinydet.data.dataset import DetectionDataset
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import Batch
from tinydet.distributed import ALONE, World
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.training.settings import TrainSettings
from tinydet.training.start import Run, build_step, compile_step, overfit_settings, overfit_splits, start_run


def test_as_many_images_go_through_the_network_at_once_as_were_asked_for() -> None:
    """Though steps of seven images, four of them at most, have three or four."""
    run: Any = SimpleNamespace(share=4, train_set=range(7), budget=SimpleNamespace(epoch_steps=2), world=ALONE)
    for sync_bn, parts in ((False, [4, 2, 2, 1]), (True, [3, 2, 2, 1])):  # one without an image has no statistics
        run.sync_bn = sync_bn
        assert [Run.micro_batches(run, size) for size in (1, 2, 3, 4)] == parts
    run.share, run.world = 2, World(1, 2)
    assert [Run.micro_batches(run, size) for size in (1, 2)] == [2, 1]


def test_a_network_is_compiled_for_each_size_of_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Any]()

    def step(state: Any, batch: Batch, *, model: EfficientDet, lr: float, reduce: Any) -> None:
        assert (state, lr, reduce({})) == ("state", 0.0, {})
        seen.append((len(batch.images), batch.images.shape[2:], model))

    monkeypatch.setattr(EfficientDet, "compile", lambda self, **how: seen.append(how))
    config: Any = {"config": model_config("lite0"), "crop": (64, 96), "device": torch.device("cpu")}
    budget, parts = SimpleNamespace(epoch_steps=2), lambda size: -(-4 // size)
    run: Any = SimpleNamespace(step=step, train_set=range(7), budget=budget, world=ALONE, micro_batches=parts, **config)
    run._replace = lambda **changes: changes
    compiled: Any = compile_step(run, "state", micro_size=4)  # type: ignore[arg-type]
    model = compiled["step"].keywords["model"]
    assert seen == [{"dynamic": False}, (3, (64, 96), model), (4, (64, 96), model)]
    del seen[:]
    compile_step(run, "state", micro_size=1)  # type: ignore[arg-type]
    assert [images for images, *_ in seen[1:]] == [1]


def test_the_device_may_be_any_gpu() -> None:
    """Without a number it is the one that torch chose; `torch.cuda.set_device` wants a number."""
    with pytest.raises(InputError, match="nowhere: no such"):
        start_run(TrainSettings("nowhere"), None, device="cuda")


@pytest.mark.parametrize(("recipe", "quality"), [("default", True), ("paper", False)])
def test_the_loss_of_a_step_is_the_settings(recipe: str, quality: bool) -> None:
    settings, model = TrainSettings("kitti", recipe=recipe), EfficientDet(model_config("lite0")).to("meta")
    step: Any = build_step(settings, model, frozen=(), device=torch.device("cpu"))
    assert step.keywords["quality"] is quality


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
