"""What was converted reads back the same, and what cannot be is said before anything is written."""

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.test_coco import annotation, content, write_coco
from tests.data.test_voc import CAT, DOG, voc_object, voc_xml, write, write_voc
from tests.data.test_yolo import LABELS, YAML, write_yolo
from tests.kitti_folders import label_line, write_frame, write_kitti
from tinydet.cli import main
from tinydet.convert import WRITERS, convert_data
from tinydet.data.dataset import DetectionDataset
from tinydet.data.open import open_dataset
from tinydet.data.voc_xml import read_voc
from tinydet.errors import InputError
from tinydet.labels import IGNORE

SIZES = ((41, 80), (375, 1242), (1, 3), (700, 333))  # (height, width)
KIND = {"coco": "COCO", "yolo": "YOLO", "kitti": "KITTI", "voc": "Pascal VOC"}
CLASSES = ("traffic light", "Käfer & Co", "no")


def contents(dataset: DetectionDataset, *, regions: bool = True) -> dict[str, Any]:
    """What an image holds, by its name: size, objects by class name, and distinct ignore regions."""
    found = {}
    for frame in dataset.frames():
        rows = [(label, *box) for label, box in zip(frame.labels.tolist(), frame.boxes.tolist(), strict=True)]
        objects = Counter((dataset.classes[label].replace(" ", "_"), *box) for label, *box in rows if label >= 0)
        found[frame.name] = frame.size, objects, {row for row in rows if row[0] < 0 and regions}
    return found


@st.composite
def boxes(draw: st.DrawFn, size: tuple[int, int]) -> tuple[float, ...]:
    """A box of float32 within an image; a corner nearer to 0 than a thousandth of a pixel is 0."""
    sides = []
    for length in size[::-1]:
        side = st.just(0.0) | st.integers(0, length).map(float) | st.floats(2**-10, length, width=32)
        sides.append(sorted(draw(st.lists(side, min_size=2, max_size=2, unique=True))))
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2


@st.composite
def objects(draw: st.DrawFn) -> list[list[tuple[int, tuple[float, ...]]]]:
    """Objects of four images: class, or -1 of an ignore region, and box; every class occurs in the first."""
    every = [[(label, draw(boxes(SIZES[0]))) for label in range(len(CLASSES))], [], [], []]
    for i, size in enumerate(SIZES):
        every[i] += [(0, draw(boxes(size)))] if i == 2 else []  # without any, a val split of KITTI's is refused
        every[i] += draw(st.lists(st.tuples(st.integers(-1, len(CLASSES) - 1), boxes(size)), max_size=4))
    return every


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("images") / f"{i} of 4.png" for i in range(4)]
    for path, (height, width) in zip(paths, SIZES, strict=True):
        Image.new("L", (width, height)).save(path)
    return paths


def write_objects(folder: Path, images: list[Path], every: list[list[tuple[int, tuple[float, ...]]]]) -> Path:
    """COCO annotations, two images in each split; an ignore region is a crowd of one class."""
    folder.mkdir()
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    for split, rows in (("train", (0, 1)), ("val", (2, 3))):
        listed = [{"id": i, "file_name": str(images[i])} for i in rows]
        annotations = [
            {"image_id": i, "category_id": max(label, 0), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(label < 0)}
            for i in rows
            for label, (x1, y1, x2, y2) in every[i]
        ]
        text = json.dumps({"images": listed, "categories": categories, "annotations": annotations})
        (folder / f"{split}.json").write_text(text)
    return folder


@pytest.mark.parametrize("to", WRITERS)
@settings(max_examples=15, deadline=None)
@given(every=objects())
def test_converted_and_back_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, images: list[Path], to: str, every: list
) -> None:
    root = tmp_path_factory.mktemp("data")
    source = write_objects(root / "source", images, every)
    there = convert_data(source, root / "there", to=to)
    convert_data(root / "there", root / "back", to="coco", classes=there.classes if to == "kitti" else None)
    classes = there.classes if to == "kitti" else None
    for split, rows in (("train", (0, 1)), ("val", (2, 3))):
        expected = contents(open_dataset(source, split), regions=to != "yolo")
        drawn = Counter(box for i in rows for label, box in every[i] if label >= 0)
        assert Counter(key[1:] for _, found, _ in expected.values() for key in found.elements()) == drawn
        assert contents(open_dataset(root / "there", split, classes=classes)) == expected
        assert contents(open_dataset(root / "back", split)) == expected


@pytest.mark.parametrize("to", WRITERS)
def test_real_splits_stay(tmp_path: Path, to: str) -> None:
    """Those that lists name, and those that are drawn."""
    listed = write_kitti(tmp_path / "listed", 4, lists={"train": ["000003", "000001"], "val": ["000000"]})
    for kitti in (listed, write_kitti(tmp_path / "drawn", 12)):
        out, classes = tmp_path / f"{kitti.name} as {to}", ("Car", "Pedestrian")
        convert_data(kitti, out, to=to, classes=classes)
        for split in ("train", "val"):
            before, after = open_dataset(kitti, split, classes=classes), open_dataset(out, split, classes=classes)
            assert contents(after) == contents(before)
            assert after.kind == KIND[to]
            assert not [note for note in after.notes if "without objects" in note]
            for path in after.paths:
                name = Path(path).name
                assert Path(path).read_bytes() == (kitti / "training/image_2" / name).read_bytes()


def test_coco_keeps_what_other_formats_do_not_hold(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco/all.json", content())
    convert_data(tmp_path / "coco", tmp_path / "out", to="coco")
    for split in ("train", "val"):
        before, after = open_dataset(tmp_path / "coco", split), open_dataset(tmp_path / "out", split)
        for old, new in zip(before.coco_annotations(), after.coco_annotations(), strict=True):
            assert new.tolist() == old.tolist()  # areas, crowds of one class, and corners outside of the image


def test_classes_of_both_splits_are_written(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("val", "dog")):
        image = {"id": 1, "file_name": f"{split}.png", "width": 80, "height": 60}
        data = {"images": [image], "categories": [{"id": 7, "name": name}]}
        write_coco(tmp_path / f"coco/{split}.json", {**data, "annotations": [annotation(1, 1, 7, [1, 2, 3, 4])]})
    for to in ("coco", "yolo", "voc"):
        assert convert_data(tmp_path / "coco", tmp_path / f"as {to}", to=to).classes == ("cat", "dog")
        train, val = (open_dataset(tmp_path / f"as {to}", split) for split in ("train", "val"))
        assert train.classes == val.classes == ("cat", "dog")
        assert (train.labels.tolist(), val.labels.tolist()) == ([0], [1])


def test_a_crowd_of_every_class_is_one_ignore_region_again(tmp_path: Path) -> None:
    for i in range(2):
        lines = [label_line(kind, (1, 2, 30, 40)) for kind in ("Car", "Cyclist", "DontCare", "Pedestrian")]
        write_frame(tmp_path / "kitti/training", str(i), lines)
    convert_data(tmp_path / "kitti", tmp_path / "coco", to="coco")
    assert open_dataset(tmp_path / "coco", "train").labels.tolist().count(IGNORE) == 1
    convert_data(tmp_path / "coco", tmp_path / "voc", to="voc")
    assert sorted(open_dataset(tmp_path / "voc", "train").labels.tolist()) == [IGNORE, 0, 1, 2]


SAME_NAMES = {"train/a/x": "0 .5 .5 .5 .5\n", "train/b/x": "1 .5 .5 .5 .5\n", "val/x": "0 .5 .5 .5 .5\n"}


@pytest.mark.parametrize(
    ("to", "train", "val"),
    [
        ("coco", ["train/a/x.png", "train/b/x.png"], ["val/x.png"]),
        ("yolo", ["images/train/a_x.png", "images/train/b_x.png"], ["images/val/x.png"]),
        ("voc", ["JPEGImages/train_a_x.png", "JPEGImages/train_b_x.png"], ["JPEGImages/val_x.png"]),
        ("kitti", ["training/image_2/train_a_x.png", "training/image_2/train_b_x.png"], ["training/image_2/val_x.png"]),
    ],
)
def test_images_of_one_name_are_told_apart(tmp_path: Path, to: str, train: list[str], val: list[str]) -> None:
    yolo = write_yolo(tmp_path / "yolo", YAML, {**SAME_NAMES})
    convert_data(yolo, tmp_path / "out", to=to)
    for split, names in (("train", train), ("val", val)):
        dataset = open_dataset(tmp_path / "out", split, classes=("cat", "dog"))
        assert dataset.paths.tolist() == [str(tmp_path / "out" / name) for name in names]
        assert dataset.labels.tolist() == [0, 1][: len(names)]


def refused(data: Path, out: Path, **settings: Any) -> str:
    """Convert, and return why not; nothing is written."""
    before = [*out.parent.rglob("*")]
    with pytest.raises(InputError) as raised:
        convert_data(data, out, **settings)
    assert [*out.parent.rglob("*")] == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_names_that_collide_are_named(tmp_path: Path) -> None:
    yolo = write_yolo(tmp_path / "yolo", YAML, {**SAME_NAMES, "train/a_x": ""})
    assert "a_x.png" in refused(yolo, tmp_path / "out", to="kitti")
    root = write_yolo(tmp_path / "more", YAML, {"train/x": "0 .5 .5 .5 .5\n", "val/y": ""})
    Image.new("RGB", (80, 40)).save(root / "images/train/X.jpg")
    message = refused(root, tmp_path / "out", to="yolo")
    assert (
        message == f"{root / 'images/train/X.jpg'} and {root / 'images/train/x.png'}: both would be x.png; rename one"
    )
    convert_data(root, tmp_path / "out", to="coco")


@pytest.mark.parametrize("to", WRITERS)
def test_blanks_in_file_names(tmp_path: Path, to: str) -> None:
    yolo = write_yolo(tmp_path / "yolo", YAML, {"train/x 1 ": "0 .5 .5 .5 .5\n", "val/y 1": "0 .5 .5 .5 .5\n"})
    convert_data(yolo, tmp_path / "out", to=to)
    for split, name in (("train", "x 1"), ("val", "y 1")):
        (found,) = open_dataset(tmp_path / "out", split, classes=("cat",)).names
        assert found.strip() == name


def test_other_suffixes_become_png(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a": CAT, "b": DOG}, lists={"train": "a", "val": "b"})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    (root / "JPEGImages/a.png").unlink()
    Image.fromarray(pixels).save(root / "JPEGImages/a.bmp")
    for to, name in (("kitti", "a.png"), ("yolo", "a.bmp")):
        convert_data(root, tmp_path / to, to=to)
        dataset = open_dataset(tmp_path / to, "train", classes=("cat",))
        with Image.open(dataset.paths[0]) as image:
            assert (Path(dataset.paths[0]).name, image.format) == (name, name[2:].upper())
        np.testing.assert_array_equal(dataset[0].image, pixels)


def test_an_image_on_its_side_stays_so(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a": CAT, "b": DOG}, lists={"train": "a", "val": "b"})
    (root / "JPEGImages/a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 80)).save(root / "JPEGImages/a.jpg", exif=exif)
    convert_data(root, tmp_path / "out", to="voc")
    assert (tmp_path / "out/JPEGImages/a.jpg").read_bytes() == (root / "JPEGImages/a.jpg").read_bytes()
    assert read_voc(tmp_path / "out/Annotations/a.xml").size == (40, 80)


def test_class_names_that_kitti_cannot_hold(tmp_path: Path) -> None:
    text = voc_xml(voc_object("stop sign"), voc_object("stop_line"))
    root = write_voc(tmp_path / "voc", {"a": text, "b": text}, lists={"train": "a", "val": "b"})
    converted = convert_data(root, tmp_path / "out", to="kitti")
    assert converted.classes == ("stop_sign", "stop_line")
    assert converted.notes == ["class 'stop sign' is written as 'stop_sign'"]
    write(root / "Annotations/b.xml", voc_xml(voc_object("Stop_Sign"), voc_object("dontcare")))
    said = "class 'Stop_Sign' would be 'Stop_Sign', and so would another; rename it, or choose others"
    assert refused(root, tmp_path / "new", to="kitti") == said


KINDS = ("Car", "Pedestrian", "Cyclist", "Van", "Tram", "DontCare")


@pytest.mark.parametrize("to", WRITERS)
def test_a_class_that_no_file_can_hold(tmp_path: Path, to: str) -> None:
    data = content(categories=[{"id": 3, "name": "a\x85b"}, {"id": 90, "name": "dog"}, {"id": 17, "name": "bird"}])
    write_coco(tmp_path / "coco/a.json", data)
    assert "a.json: a class must be 1 to 200 characters, none of them a control character" in refused(
        tmp_path / "coco", tmp_path / "out", to=to
    )


def test_an_image_that_must_be_converted_is_read_before_the_work(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo", YAML, {"train/x": "0 .5 .5 .5 .5\n", "val/y": "1 .5 .5 .5 .5\n"})
    image = root / "images/train/x.png"
    Image.open(image).save(image.with_suffix(".bmp"))
    image.unlink()
    convert_data(root, tmp_path / "whole", to="kitti")
    whole = image.with_suffix(".bmp").read_bytes()
    image.with_suffix(".bmp").write_bytes(whole[: len(whole) // 2])
    assert "x.bmp: not a readable image" in refused(root, tmp_path / "out", to="kitti")


def test_names_that_do_not_read_back(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo", YAML, {"train/a\nb": "0 .5 .5 .5 .5\n", "val/y": "1 .5 .5 .5 .5\n"})
    assert "lists cannot hold its name; rename it" in refused(root, tmp_path / "out", to="voc")
    same = write_yolo(tmp_path / "same", YAML.replace("images/val", "images/train"), LABELS)
    assert "a.png is in train and in val, which kitti cannot hold" in refused(same, tmp_path / "out", to="kitti")


def test_names_with_two_suffixes(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo", YAML, {"train/0.png": "0 .5 .5 .5 .5\n", "val/1.jpg": "0 .5 .5 .5 .5\n"})
    convert_data(root, tmp_path / "kitti", to="kitti", classes=("cat",))
    assert open_dataset(tmp_path / "kitti", "train", classes=("cat",)).names.tolist() == ["0.png"]


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    lines = [label_line("Car", (1, 2, 30, 40)), label_line("DontCare", (3, 4, 50, 60))]
    for i in range(2):
        write_frame(tmp_path / "kitti/training", str(i), [*lines, label_line("Tram", (5, 6, 70, 80))][: 2 + i])
    notes = {
        to: convert_data(tmp_path / "kitti", tmp_path / f"as {to}", to=to, classes=("Car",)).notes for to in WRITERS
    }
    assert notes.pop("yolo") == ["YOLO has no ignore regions: 2 are left out, and what they hold counts as background"]
    assert set(map(tuple, notes.values())) == {()}
    for i in range(2):
        write_frame(tmp_path / "three/training", str(i), [label_line(kind, (1, 2, 30, 40)) for kind in KINDS])
    said = ["not written as objects: 2 Van, 2 Tram; name their classes too"]
    assert convert_data(tmp_path / "three", tmp_path / "out", to="coco").notes == said
    root = write_yolo(tmp_path / "yolo", YAML, {"train/x": "0 .5 .5 .5 .5\n", "val/y": "1 .5 .5 .5 .5\n"})
    for to, classes in (("voc", ("cat", "dog")), ("kitti", ("cat",)), ("coco", ("cat", "dog"))):
        converted = convert_data(root, tmp_path / f"yolo as {to}", to=to)
        assert converted.classes == classes
        said = ["no train image holds dog", "no val image holds cat"]
        said += (
            ["no train object is of class dog: left out, because the format has no list of classes"]
            if to == "kitti"
            else []
        )
        assert converted.notes == said


def test_what_goes_wrong_goes_wrong_before_the_work(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo", YAML, {"train/x": "0 .5 .5 .5 .5\n", "val/y": "5 .5 .5 .5 .5\n"})
    out = tmp_path / "out"
    assert "class '5' is not one of 0 .. 1" in refused(root, out, to="coco")
    assert refused(root, out, to="cocoa") == "to must be one of coco, yolo, kitti, voc, index; got 'cocoa'"
    assert (
        refused(root, tmp_path / "yolo", to="coco")
        == f"{tmp_path / 'yolo'}: exists, and is not an empty folder; name another"
    )
    assert "data.yaml: exists, and" in refused(root, root / "data.yaml", to="coco")
    write(root / "labels/val/y.txt", "1 .5 .5 .5 .5\n")
    assert "is not complete" in refused(root, root / "data.yaml/out", to="coco")
    out.mkdir()
    assert convert_data(root, out, to="coco").classes == ("cat", "dog")
    Image.new("RGB", (40, 80)).save(out / "val/y.png")
    assert "80x40 pixels, but" in refused(out, tmp_path / "new", to="yolo")


def test_the_command(tmp_path: Path) -> None:
    kitti = write_kitti(tmp_path / "kitti", 5, lists={"train": ["000000", "000001", "000003"], "val": ["000002"]})
    out = tmp_path / "my data"
    arguments = ["convert", kitti, "--to", "kitti", "--out", out, "--classes", "Car,Pedestrian"]
    result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "train: 3 images, 3 Car, 2 Pedestrian",
        "val: 1 images, 1 Car",
        f"check it with: tinydet check '{out}' --classes Car,Pedestrian",
    ]
    check = shlex.split(result.stdout.splitlines()[-1].removeprefix("check it with: tinydet "))
    assert CliRunner().invoke(main, check, catch_exceptions=False).exit_code == 0
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert (result.exit_code, result.stderr) == (2, f"error: {out}: exists, and is not an empty folder; name another\n")
