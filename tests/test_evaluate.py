"""Evaluation: the loss and the boxes of a data set, official AP of weights and of result files, refusals."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import weights_of
from tests.kitti_folders import label_line, write_kitti
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import Batch, val_batches
from tinydet.detector import Detector
from tinydet.errors import InputError
from tinydet.evaluate import Validation, detect_in, score_weights, validate
from tinydet.model.config import COCO_CLASSES, model_config
from tinydet.model.detect import VOTE, Detections, detect, model_anchors
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import normalize, state
from tinydet.ops.assign import assign_batch
from tinydet.ops.losses import Losses, detection_loss
from tinydet.score import headline, kitti_results, score_detections
from tinydet.train import Validated, train
from tinydet.training.settings import TrainSettings
from tinydet.weights.load import load_detector

CLASSES = ("Cyclist", "Van")
CONFIG = model_config(
    "lite0",
    classes=CLASSES,
    image_size=(64, 128),
    num_channels=8,
    fpn_repeats=1,
    head_repeats=1,
    anchor_scale=2.0,
)
SIZES = [(60, 200), (128, 256), (40, 50), (90, 90)]  # height, width
# Python 3.12 and 3.13 warn whenever a process with threads forks; a worker takes no lock that another thread may hold.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def write_frames(root: Path, count: int) -> Path:
    """Frames of several sizes and noise of their own, each crowded, so that even a network that knows nothing hits."""
    rng = np.random.default_rng(0)
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "training/image_2" / f"{i:06d}.png")
        lines = []
        for _ in range(20):
            w, h = rng.uniform(26, 40, 2).clip(max=(width - 1, height - 1))
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            lines.append(label_line(CLASSES[int(rng.integers(2))], (x, y, x + w, y + h)))
        (root / "training/label_2" / f"{i:06d}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("kitti"), 20)


@pytest.fixture(scope="module")
def dataset(folder: Path) -> KittiDataset:
    return KittiDataset(folder, "val", classes=CLASSES)


@pytest.fixture(scope="module")
def network() -> EfficientDet:
    """A network whose every output differs from picture to picture."""
    torch.manual_seed(0)
    model = EfficientDet(CONFIG).eval()
    for head in (model.class_net, model.box_net):
        torch.nn.init.normal_(head.predict.pointwise.weight, std=0.3)
    return model


def batches_of(dataset: KittiDataset, batch_size: int) -> list[Batch]:
    return list(val_batches(dataset, CONFIG.image_size, batch_size=batch_size, workers=0, fill=CONFIG.fill))


def validated(network: EfficientDet, batches: list[Batch]) -> Validation:
    return validate(*state(network), batches, config=CONFIG)


@torch.no_grad()
def by_hand(network: EfficientDet, batch: Batch) -> tuple[Losses, list[Detections]]:
    """Loss and detections of one batch by the module itself."""
    anchors = model_anchors(CONFIG)
    outputs = network(normalize(batch.images, mean=CONFIG.mean, std=CONFIG.std))
    targets = assign_batch(batch.boxes, batch.labels, anchors)
    losses = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas)
    found = detect(outputs, anchors, sizes=batch.sizes, scales=batch.scales, method="soft", vote_threshold=VOTE)
    return losses, found


# One pass


def test_a_whole_set_in_one_batch_has_the_loss_of_the_batch(dataset: KittiDataset, network: EfficientDet) -> None:
    (batch,) = batches_of(dataset, 99)
    expected, _ = by_hand(network, batch)
    losses = validated(network, [batch]).losses
    assert all(x.dtype == torch.float64 for x in losses)
    assert [x.item() for x in losses] == pytest.approx([x.item() for x in expected], rel=1e-5)


def test_batches_weigh_what_they_hold(dataset: KittiDataset, network: EfficientDet) -> None:
    batches = batches_of(dataset, 3)
    assert [len(batch.names) for batch in batches] == [3, 1]
    (three, _), (one, _) = (by_hand(network, batch) for batch in batches)
    losses = validated(network, batches).losses
    expected = [(3 * a.item() + b.item()) / 4 for a, b in zip(three, one, strict=True)]
    assert [x.item() for x in losses] == pytest.approx(expected, rel=1e-5)


def test_detections_are_of_their_picture_in_its_own_pixels(dataset: KittiDataset, network: EfficientDet) -> None:
    found = validated(network, batches_of(dataset, 3)).detections
    assert len(found) == len(dataset)
    for i, detections in enumerate(found):
        (batch,) = batches_of(Subset(dataset, i), 1)
        _, (expected,) = by_hand(network, batch)
        assert len(detections.scores) > 5
        torch.testing.assert_close(detections.scores, expected.scores, rtol=1e-3, atol=1e-4)
        same = torch.isclose(detections.boxes, expected.boxes, rtol=1e-3, atol=1e-2).all(1)
        assert (same & (detections.labels == expected.labels)).float().mean() > 0.9  # rounding swaps a few near-ties
        height, width = dataset.sizes[i]
        extent = detections.boxes.amax(0)
        assert width / 2 < extent[2] <= width
        assert height / 2 < extent[3] <= height
        assert detections.boxes.min() >= 0


class Subset(KittiDataset):
    """One frame of another data set."""

    def __init__(self, dataset: KittiDataset, index: int) -> None:
        self.__dict__.update(dataset.__dict__)
        self.paths, self.names = [dataset.paths[index]], [dataset.names[index]]
        self.boxes, self.labels = [dataset.boxes[index]], [dataset.labels[index]]


def test_validation_changes_nothing(dataset: KittiDataset, network: EfficientDet) -> None:
    params, buffers = state(network)
    before = {name: x.clone() for name, x in {**params, **buffers}.items()}
    batches = batches_of(dataset, 3)
    images, drawn = batches[0].images.clone(), torch.get_rng_state()
    validate(params, buffers, iter(batches), config=CONFIG)
    assert all(torch.equal(x, before[name]) for name, x in {**params, **buffers}.items())
    assert torch.equal(images, batches[0].images)
    assert torch.equal(drawn, torch.get_rng_state())


def test_results_carry_names_and_float64(network: EfficientDet, dataset: KittiDataset) -> None:
    found = validated(network, batches_of(dataset, 3)).detections
    for one, (boxes, scores, labels) in zip(kitti_results(found, CLASSES), found, strict=True):
        assert one.types == [CLASSES[label] for label in labels]
        assert (one.boxes.dtype, one.scores.dtype) == (np.float64, np.float64)
        np.testing.assert_array_equal(one.boxes, boxes.numpy())
        np.testing.assert_array_equal(one.scores, scores.numpy())


# Weights


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict]]:
    """A run of one epoch on frames that no list splits, and its row of metrics.jsonl."""
    out = tmp_path_factory.mktemp("run")
    settings = TrainSettings(
        data=str(folder),
        model="lite0",
        weights="none",
        classes=CLASSES,
        image_size=(64, 128),
        anchor_scale=2.0,
        epochs=1,
        batch_size=4,
        workers=0,
        seed=5,
    )
    (*_, event) = train(settings, out)
    assert isinstance(event, Validated)
    yield out, json.loads((out / "metrics.jsonl").read_text())
    shutil.rmtree(out)


@forks
def test_weights_score_what_training_said(folder: Path, run: tuple[Path, dict]) -> None:
    out, row = run
    for name in ("best.pt", "last.pt"):
        scores = score_weights(folder, load_detector(out / name), split="val", batch_size=4)
        assert {name: row[name] for name in ("R40", "R11", "stats", "per_class_AP")} == {
            name: values for name, values in scores.items() if name != "n_gt"
        }
    assert row["ap"] == headline(scores).ap > 0  # it hits something, so the numbers do say something


@forks
def test_several_views_are_those_of_the_detector(folder: Path, run: tuple[Path, dict]) -> None:
    weights = load_detector(run[0] / "best.pt")
    dataset, found = detect_in(folder, weights, split="val", batch_size=4, tta=True)
    # One by one, as there: the last bit of a score differs with the batch, and with it what is above the threshold.
    expected = [Detector(weights)(path, tta=True, score_threshold=0.01, method="soft") for path in dataset.paths]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-5)
    assert score_weights(folder, weights, split="val", batch_size=4, tta=True) == score_detections(dataset, found)


@forks
def test_one_frame_is_enough_for_a_larger_batch(folder: Path, tmp_path: Path, network: EfficientDet) -> None:
    (tmp_path / "one").symlink_to(folder / "training")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/val.txt").write_text("000003\n")
    data = tmp_path / "training"
    (tmp_path / "one").rename(data)
    params, buffers = state(network)
    scores = score_weights(tmp_path, weights_of(CONFIG, params, buffers), split="val", batch_size=8)
    dataset = KittiDataset(tmp_path, "val", classes=CLASSES)
    found = validated(network, batches_of(dataset, 8)).detections
    assert scores == score_detections(dataset, found)


@forks
def test_a_coco_detector_scores_what_kitti_calls_otherwise(folder: Path, network: EfficientDet) -> None:
    """Rows of the class head go with their names, whatever their order and number."""
    params, buffers = state(network)
    config = replace(CONFIG, classes=COCO_CLASSES)
    coco, coco_buffers = state(EfficientDet(config))
    head = "class_net.predict.pointwise."
    for name in (f"{head}weight", f"{head}bias"):
        for row, known in enumerate(("bicycle", "car")):
            coco[name].unflatten(0, (9, 90))[:, COCO_CLASSES.index(known)] = params[name].unflatten(0, (9, 2))[:, row]
    coco |= {name: tensor for name, tensor in params.items() if not name.startswith(head)}
    expected = score_weights(folder, weights_of(CONFIG, params, buffers), split="val", batch_size=4)
    weights = weights_of(config, coco, buffers)
    assert coco_buffers.keys() == buffers.keys()
    assert score_weights(folder, weights, split="val", batch_size=4, classes=CLASSES) == expected
    swapped = {"Cyclist": "car", "Van": "bicycle"}
    other = score_weights(folder, weights, split="val", batch_size=4, classes=CLASSES, class_map=swapped)
    assert other != expected
    with pytest.raises(InputError, match="a test knows no Cow_boy; it knows person, bicycle"):
        score_weights(folder, weights, split="val", batch_size=4, classes=["Cow_boy"])
    by_default = score_weights(folder, weights, split="val", batch_size=4)
    assert list(by_default["R40"]) == ["Car", "Pedestrian", "Cyclist"]


def test_classes_of_the_weights_must_occur(tmp_path: Path, network: EfficientDet) -> None:
    write_kitti(tmp_path, 4)
    params, buffers = state(network)
    config = replace(CONFIG, classes=("Tram", "Bus"))
    with pytest.raises(InputError, match="no val label holds class 'Tram'; they hold Car"):
        score_weights(tmp_path, weights_of(config, params, buffers), split="val", batch_size=1)
