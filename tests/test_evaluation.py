"""Evaluation: the losses and detections of a dataset, AP by name, and a detector on a data set."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tests.checkpoints import weights_of
from tests.kitti_folders import label_line, write_kitti
from tinydet.convert import convert_data
from tinydet.data.coco import CocoDataset
from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import Batch, val_batches
from tinydet.detector import Detector
from tinydet.errors import InputError
from tinydet.evaluation import (
    Scores,
    Validation,
    evaluate,
    evaluate_detector,
    pr_curves,
    scores_by_name,
    validate,
)
from tinydet.labels import IGNORE
from tinydet.metrics.coco import STATS
from tinydet.metrics.kitti import KittiResult, KittiTruth, kitti_ap
from tinydet.model.config import COCO_CLASSES, model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Variables, params_and_buffers
from tinydet.model.postprocess import Detections, detect, model_anchors, normalize
from tinydet.ops.assign import assign_batch
from tinydet.ops.losses import Losses, detection_loss
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.formats import Weights
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
    """A network whose every output differs from image to image, and whose boxes are near enough to anchors to hit."""
    torch.manual_seed(0)
    model = EfficientDet(CONFIG).eval()
    for head, std in ((model.class_net, 0.3), (model.box_net, 0.05)):
        torch.nn.init.normal_(head.predict.pointwise.weight, std=std)
    return model


def batches_of(dataset: Any, batch_size: int) -> list[Batch]:
    return list(val_batches(dataset, CONFIG, batch_size=batch_size))


def validated(network: EfficientDet, data: Any, batch_size: int = 3) -> Validation:
    return validate(params_and_buffers(network), data, config=CONFIG, batch_size=batch_size)


@torch.no_grad()
def by_hand(network: EfficientDet, batch: Batch) -> tuple[Losses, list[Detections]]:
    """Losses and detections of one batch by the module itself."""
    anchors = model_anchors(CONFIG)
    outputs = network(normalize(batch.images, mean=CONFIG.mean, std=CONFIG.std))
    targets = assign_batch(batch.boxes, batch.labels, anchors, image_size=CONFIG.image_size)
    losses = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas, quality=True)
    return losses, detect(outputs, anchors, sizes=batch.sizes, scales=batch.scales)


# Validation


def test_a_whole_set_in_one_batch_has_the_loss_of_the_batch(dataset: KittiDataset, network: EfficientDet) -> None:
    (batch,) = batches_of(dataset, 99)
    expected, _ = by_hand(network, batch)
    losses = validated(network, dataset, 99).losses
    assert all(x.dtype == torch.float64 for x in losses)
    assert [x.item() for x in losses] == pytest.approx([x.item() for x in expected], rel=1e-5)


def test_batches_weigh_what_they_hold(dataset: KittiDataset, network: EfficientDet) -> None:
    batches = batches_of(dataset, 3)
    assert [len(batch.names) for batch in batches] == [3, 1]
    (three, _), (one, _) = (by_hand(network, batch) for batch in batches)
    losses = validated(network, dataset).losses
    expected = [(3 * a.item() + b.item()) / 4 for a, b in zip(three, one, strict=True)]
    assert [x.item() for x in losses] == pytest.approx(expected, rel=1e-5)


def test_detections_are_of_their_image_in_its_own_pixels(dataset: KittiDataset, network: EfficientDet) -> None:
    found = validated(network, dataset).detections
    assert len(found) == len(dataset)
    for i, detections in enumerate(found):
        (batch,) = batches_of(dataset.take([i]), 1)
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


class Tuples(Dataset):
    """Somebody's own data set: (image, boxes, labels), the image a tensor."""

    def __init__(self, dataset: KittiDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        example = self.dataset[index]
        image = torch.from_numpy(example.image).permute(2, 0, 1)
        return image, torch.from_numpy(example.boxes), torch.from_numpy(example.labels)


def test_any_data_set_and_any_loader_will_do(dataset: KittiDataset, network: EfficientDet) -> None:
    expected = validated(network, dataset)
    own = Tuples(dataset)
    for data in (own, val_batches(dataset, CONFIG, batch_size=3)):
        assert_same(validated(network, data), expected)
    scores = evaluate(own, expected, classes=CLASSES)
    written = [Frame(frame.name, frame.path, frame.size, frame.boxes, frame.labels) for frame in dataset.frames()]
    assert scores == evaluate(DetectionDataset(written, classes=CLASSES), expected.detections)
    assert list(scores) == ["COCO"]
    assert scores.ap > 0


def assert_same(one: Validation, other: Validation) -> None:
    assert one.losses == other.losses
    for a, b in zip(one.detections, other.detections, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_output_that_is_not_finite_names_the_image(dataset: KittiDataset, network: EfficientDet) -> None:
    params, buffers = params_and_buffers(network)
    params["class_net.predict.pointwise.bias"][0] = torch.nan
    with pytest.raises(FloatingPointError, match=rf"^image {dataset.names[0]}: the network's output is not finite"):
        validate((params, buffers), dataset, config=CONFIG)


def test_validation_changes_nothing(dataset: KittiDataset, network: EfficientDet) -> None:
    variables = params_and_buffers(network)
    before = {name: x.clone() for part in variables for name, x in part.items()}
    drawn = torch.get_rng_state()
    once = validate(variables, dataset, config=CONFIG, batch_size=3)
    assert all(torch.equal(x, before[name]) for part in variables for name, x in part.items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert_same(validate(variables, dataset, config=CONFIG, batch_size=3), once)


# Scores


LEVELS = ("easy", "moderate", "hard")


def numbers(moderate: dict[str, float], n_gt: dict[str, int]) -> dict[str, Any]:
    """Official numbers of KITTI data."""
    table = {name: dict(zip(LEVELS, (1.0, ap, 3.0), strict=True)) for name, ap in moderate.items()}
    counts = {name: dict(zip(LEVELS, (n, n, 9), strict=True)) for name, n in n_gt.items()}
    coco = {"stats": [0.25, -1.0, *[0.5] * 10], "per_class_AP": dict.fromkeys(moderate, 0.125)}
    return {"R40": table, "R11": table, "n_gt": counts, **coco}


def test_of_kitti_the_primary_metric_is_the_mean_of_moderate_r40() -> None:
    scores = scores_by_name(numbers({"Car": 20.0, "Van": 50.0}, {"Car": 7, "Van": 7}))
    assert (scores.metric, scores.ap, scores.by_class) == ("Moderate R40", 35.0, {"Car": 20.0, "Van": 50.0})
    assert scores["KITTI"]["R40"]["Car"] == {"easy": 1.0, "moderate": 20.0, "hard": 3.0}
    assert scores["COCO"]["per_class"] == {"Car": 12.5, "Van": 12.5}


def test_of_kitti_classes_without_objects_are_undefined() -> None:
    scores = scores_by_name(numbers({"Car": 20.0, "Tram": 0.0}, {"Car": 7, "Tram": 0}))
    assert (scores.ap, scores.by_class) == (20.0, {"Car": 20.0})
    assert scores["KITTI"]["R11"]["Tram"] == {"easy": None, "moderate": None, "hard": 3.0}
    assert scores_by_name(numbers({"Tram": 0.0}, {"Tram": 0})).ap == 0.0


def test_of_other_data_the_primary_metric_is_coco_ap() -> None:
    scores = scores_by_name({"stats": [0.25, *[-1.0] * 11], "per_class_AP": {"a": 0.5, "b": -1.0, "c": 0.0}})
    assert (scores.metric, scores.ap, scores.by_class) == ("COCO AP", 25.0, {"a": 50.0, "c": 0.0})
    assert scores["COCO"] == {**dict.fromkeys(STATS), "AP": 25.0, "per_class": {"a": 50.0, "b": None, "c": 0.0}}
    assert json.loads(json.dumps(scores)) == scores
    nothing = scores_by_name({"stats": [-1.0] * 12, "per_class_AP": {"a": -1.0}})
    assert (nothing.ap, nothing.by_class) == (0.0, {})


def detections_of(*rows: tuple[tuple[float, ...], float, int]) -> Detections:
    """From (box, score, label) each."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
    )


BOXES = np.array([[10, 10, 60, 50], [70, 20, 90, 60], [0, 0, 20, 20]], np.float32)


def two_images() -> DetectionDataset:
    """Two images: a cat, a dog and a region to be left alone; nothing."""
    some = Frame("a", Path("a.png"), (100, 100), BOXES, np.array([0, 1, IGNORE]))
    none = Frame("b", Path("b.png"), (100, 100), BOXES[:0], np.array([], np.int64))
    return DetectionDataset([some, none], classes=("cat", "dog"))


def test_detections_in_it_neither_count_nor_cost() -> None:
    found = [
        detections_of((tuple(BOXES[0]), 0.5, 0), (tuple(BOXES[1]), 0.5, 1), ((2, 2, 18, 18), 0.9, 0)),
        detections_of(),
    ]
    scores = evaluate(two_images(), found)
    assert scores["COCO"]["per_class"] == {"cat": pytest.approx(100), "dog": pytest.approx(100)}
    assert set(scores) == {"COCO"}
    found[1] = detections_of(((2, 2, 18, 18), 0.9, 0))  # there is no such region in the other image
    assert evaluate(two_images(), found)["COCO"]["per_class"]["cat"] == pytest.approx(50)


def test_no_detections_at_all() -> None:
    assert evaluate(two_images(), [detections_of(), detections_of()]).ap == 0


@pytest.mark.parametrize("count", [1, 3])
def test_there_must_be_detections_of_each_image(count: int) -> None:
    with pytest.raises(InputError, match=f"detections: {count} lists for 2 images; there must be one for each"):
        evaluate(two_images(), [detections_of()] * count)


def test_a_part_of_a_data_set_must_have_as_many_too() -> None:
    part = Subset(two_images(), [0])
    assert evaluate(part, [detections_of((tuple(BOXES[0]), 0.5, 0))]).ap == pytest.approx(50)
    for wrong in ([], [detections_of()] * 2):
        with pytest.raises(InputError, match=f"detections: {len(wrong)} lists for 1 images"):
            evaluate(part, wrong)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_of_detections_must_be_classes(tmp_path: Path, label: int) -> None:
    found = [detections_of((tuple(BOXES[0]), 0.5, 0)), detections_of((tuple(BOXES[0]), 0.5, label))]
    said = f"detections in image b: label {label} is none of 0 to 1$"
    for function in (evaluate, pr_curves):
        with pytest.raises(InputError, match=said):
            function(two_images(), found)
    kitti = KittiDataset(write_kitti(tmp_path, 4), "all", classes=("Car", "Van"))
    with pytest.raises(InputError, match=f"^detections in image 000000: label {label} is none of 0 to 1$"):
        pr_curves(kitti, [found[1]] * 4)


def test_labels_of_a_data_set_must_be_the_models_classes(network: EfficientDet) -> None:
    """Two classes that count from 1: the second would be validated as background."""
    image, boxes = np.zeros((60, 80, 3), np.uint8), np.array([[10, 10, 50, 50]], np.float32)
    with pytest.raises(InputError, match=r"label 2: there are 2 classes, whose labels are 0 to 1$"):
        validated(network, [(image, boxes, [1]), (image, boxes, [2])])


def test_a_note_on_more_objects_than_detections_count() -> None:
    boxes = np.tile(BOXES[:1], (101, 1))
    crowded = Frame("a", Path("a.png"), (100, 100), boxes, np.zeros(101, np.int64))
    full = Frame("b", Path("b.png"), (100, 100), boxes, np.array([*[0] * 100, IGNORE]))
    found = [detections_of(), detections_of()]
    scores = evaluate(DetectionDataset([crowded, full], classes=("cat", "dog")), found)
    limits = "COCO's AP counts 100 detections an image and class, and validation keeps 100 an image"
    assert scores["notes"] == [f"1 image holds more than 100 objects; {limits}"]
    scores = evaluate(DetectionDataset([crowded, crowded], classes=("cat",)), found)
    assert scores["notes"] == [f"2 images hold more than 100 objects; {limits}"]
    assert "notes" not in evaluate(DetectionDataset([full, full], classes=("cat",)), found)


def test_the_area_under_a_curve_is_its_ap(tmp_path: Path) -> None:
    kitti = KittiDataset(write_kitti(tmp_path, 6), "val", classes=("Car", "Pedestrian"))
    for dataset, metric in ((kitti, "moderate"), (two_images(), "IoU 0.5")):
        found = [
            Detections(torch.from_numpy(boxes), torch.full((len(boxes),), 0.5), torch.from_numpy(labels.clip(0)))
            for *_, boxes, labels in dataset.frames()
        ]
        for name, lines in pr_curves(dataset, found).items():
            assert len(lines) == 3
            curve = lines[metric]
            steps = curve.precision[1:] if len(curve.precision) == 41 else curve.precision
            assert curve.ap == pytest.approx(100 * steps.mean())
            assert curve.n_gt >= 1, name


def test_a_coco_file_of_kitti_data_scores_the_same(tmp_path: Path) -> None:
    """What was written as COCO annotations, ignore regions and all, has the COCO AP of the KITTI folder."""
    root = write_kitti(tmp_path / "kitti", 7, lists={"train": [f"{i:06d}" for i in range(6)], "val": ["000006"]})
    kitti = KittiDataset(root, classes=("Car", "Pedestrian"))
    convert_data(root, tmp_path / "coco", to="coco", classes=kitti.classes)
    coco = CocoDataset(tmp_path / "coco")
    rng = np.random.default_rng(0)
    found = []
    for *_, boxes, labels in kitti.frames():
        moved = (boxes + rng.normal(0, 2, boxes.shape)).astype(np.float32)
        found.append(
            Detections(*map(torch.from_numpy, (moved, rng.random(len(boxes)).astype(np.float32), labels.clip(0))))
        )
    ours, theirs = evaluate(kitti, found), evaluate(coco, found)
    assert 0 < ours["COCO"]["AP"] < 100
    per_class = ours["COCO"].pop("per_class")
    assert per_class == pytest.approx(theirs["COCO"].pop("per_class"), abs=1e-7)
    assert ours["COCO"] == pytest.approx(theirs["COCO"], abs=1e-7)
    objects = map(kitti.objects, range(len(kitti)))
    truths = [KittiTruth(one.types, one.truncated, one.occluded, one.boxes) for one in objects]
    results = [
        KittiResult([kitti.classes[i] for i in labels.tolist()], boxes.double().numpy(), scores.double().numpy())
        for boxes, scores, labels in found
    ]
    expected: dict[str, Any] = kitti_ap(truths, results, classes=kitti.classes)
    assert ours["KITTI"]["n_gt"] == expected["n_gt"]
    assert expected["n_gt"]["Car"] == {"easy": 0, "moderate": 6, "hard": 6}
    for kind in ("R40", "R11"):
        expected[kind]["Car"]["easy"] = None
        assert ours["KITTI"][kind] == expected[kind]


# Detectors


@pytest.fixture(scope="module")
def weights(network: EfficientDet) -> Weights:
    return weights_of(CONFIG, *params_and_buffers(network))


def run(data: Path, weights: Weights, **settings: Any) -> Scores:
    return evaluate(*evaluate_detector(data, [weights], split="val", batch_size=4, **settings))


@forks
def test_a_checkpoint_scores_what_its_weights_score(
    folder: Path, dataset: KittiDataset, weights: Weights, tmp_path: Path
) -> None:
    variables = Variables(weights.params, weights.buffers)
    save_checkpoint(tmp_path / "best.pt", Checkpoint(CONFIG, *variables, *variables, {}))
    scores = run(folder, load_detector(tmp_path / "best.pt"))
    assert scores == evaluate(dataset, validate(variables, dataset, config=CONFIG, batch_size=4))
    assert scores.ap > 0  # so that the numbers mean something


@forks
@pytest.mark.parametrize(
    ("count", "views"), [(1, {"tta": True}), (1, {"tiles": (40, 90), "overlap": 0.1}), (2, {})], ids=str
)
def test_views_and_several_weights_are_those_of_the_detector(
    folder: Path, weights: Weights, count: int, views: dict[str, Any]
) -> None:
    dataset, found = evaluate_detector(folder, [weights] * count, split="val", batch_size=4, **views)
    paths = [frame.path for frame in dataset.frames()]
    expected = Detector([weights] * count).predict(paths, batch_size=4, score_threshold=0.01, **views)
    plain = Detector(weights).predict(paths, batch_size=4, score_threshold=0.01)
    for one, other, third in zip(found, expected, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other.detections, strict=True))
        assert count == 2 or not torch.equal(one.scores, third.scores)


@forks
def test_one_image_is_enough_for_a_larger_batch(folder: Path, tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "training").symlink_to(folder / "training")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/val.txt").write_text("000003\n")
    dataset = KittiDataset(tmp_path, "val", classes=CLASSES)
    variables = weights.params, weights.buffers
    assert run(tmp_path, weights) == evaluate(dataset, validate(variables, dataset, config=CONFIG))


@forks
def test_a_coco_detector_scores_what_kitti_calls_otherwise(folder: Path, weights: Weights) -> None:
    """Rows of the class head go with their names, whatever their order and number."""
    config = replace(CONFIG, classes=COCO_CLASSES)
    params, buffers = params_and_buffers(EfficientDet(config))
    head = "class_net.predict.pointwise."
    for name in (f"{head}weight", f"{head}bias"):
        for row, known in enumerate(("bicycle", "car")):
            ours = weights.params[name].unflatten(0, (9, 2))[:, row]
            params[name].unflatten(0, (9, 90))[:, COCO_CLASSES.index(known)] = ours
    params |= {name: tensor for name, tensor in weights.params.items() if not name.startswith(head)}
    coco = weights_of(config, params, weights.buffers)
    assert weights.buffers.keys() == buffers.keys()
    expected = run(folder, weights)
    assert run(folder, coco, classes=CLASSES) == expected
    assert run(folder, coco, classes=CLASSES, class_map={"Cyclist": "car", "Van": "bicycle"}) != expected
    with pytest.raises(InputError, match="Cow_boy"):
        run(folder, coco, classes=["Cow_boy"])
    assert list(run(folder, coco)["KITTI"]["R40"]) == ["Car", "Pedestrian", "Cyclist"]


def test_classes_of_the_weights_must_occur(tmp_path: Path, weights: Weights) -> None:
    write_kitti(tmp_path, 4)
    strangers = weights._replace(config=replace(CONFIG, classes=("Tram", "Bus")))
    with pytest.raises(InputError, match="no val label holds class 'Tram'; they hold Car"):
        run(tmp_path, strangers)


def test_mapped_classes_are_those_of_the_data(tmp_path: Path) -> None:
    write_kitti(tmp_path, 4)
    config = replace(CONFIG, classes=("Tram", "Bus", "Lorry", "Ship"))
    strangers = weights_of(config, *params_and_buffers(EfficientDet(config)))
    named = {"Car": "Tram", "Pedestrian": "Bus", "Cyclist": "Ship"}
    dataset, _ = evaluate_detector(tmp_path, [strangers], split="val", batch_size=4, class_map=named)
    assert dataset.classes == (*named,)
    with pytest.raises(InputError, match="knows no Cyclist"):
        run(tmp_path, strangers, class_map={"Car": "Tram", "Pedestrian": "Bus"})
