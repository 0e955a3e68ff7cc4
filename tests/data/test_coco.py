"""COCO annotations: any ids and folders in, what is wrong named by file and annotation."""

import json
import pickle
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from tinydet.data.coco import CocoDataset
from tinydet.data.coco_file import find_coco, read_coco
from tinydet.data.open import open_dataset
from tinydet.errors import InputError
from tinydet.labels import IGNORE

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "bird"}]


def annotation(number: int, image: Any, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


def content(**changes: Any) -> dict[str, Any]:
    """Three images of 80x60: a cat and a dog; a crowd of cats; nothing."""
    return {
        "images": [{"id": i, "file_name": f"p{i}.png", "width": 80, "height": 60} for i in (500, 2, 31)],
        "categories": CATEGORIES,
        "annotations": [
            annotation(1, 2, 3, [10, 10, 20, 30], area=500.0),
            annotation(2, 2, 90, [70, 50, 20, 30]),
            annotation(3, 31, 3, [0, 0, 40, 40], iscrowd=1),
        ],
        **changes,
    }


def write_coco(path: Path, data: dict[str, Any], *, images: Path | None = None) -> Path:
    """A file of annotations, and its images beside it or in a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    place = images or path.parent
    place.mkdir(parents=True, exist_ok=True)
    for one in data["images"]:
        Image.new("RGB", (80, 60)).save(place / one["file_name"])
    return path


def labels_of(dataset: CocoDataset) -> list[list[int]]:
    return [frame.labels.tolist() for frame in dataset.frames()]


def test_ids_of_any_numbers_and_categories_by_name(tmp_path: Path) -> None:
    dataset = CocoDataset(write_coco(tmp_path / "a.json", content()), "all")
    assert dataset.classes == ("cat", "bird", "dog")
    assert dataset.category_ids == (3, 17, 90)
    assert dataset.image_ids.tolist() == [2, 31, 500]
    assert dataset.names.tolist() == ["p2", "p31", "p500"]
    assert dataset.sizes.tolist() == [[60, 80]] * 3
    assert labels_of(dataset) == [[0, 2], [IGNORE], []]
    assert dataset.frame(0).boxes.tolist() == [[10, 10, 30, 40], [70, 50, 80, 60]]  # cut to the image
    assert dataset.frame(2).boxes.shape == (0, 4)
    annotations = dataset.coco_annotations()
    assert annotations.images.tolist() == [0, 0, 1]
    assert annotations.labels.tolist() == [0, 2, 0]
    assert annotations.areas.tolist() == [500, 600, 1600]
    assert annotations.boxes[:2].tolist() == [[10, 10, 20, 30], [70, 50, 20, 30]]  # as written
    assert annotations.crowd.tolist() == [False, False, True]
    assert [dataset.origin(m) for m in range(3)] == [f"{tmp_path.name}/a.json: annotation {i}" for i in (1, 2, 3)]
    assert dataset.notes[0] == "no image holds bird"
    assert dataset.notes[1].startswith("1 of 2 boxes leave their image by more than 5%")
    assert dataset[0].image.shape == (60, 80, 3)


def test_classes_are_chosen_by_name(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "a.json", content())
    dataset = CocoDataset(path, "all", classes=("DOG",))
    assert labels_of(dataset) == [[0], [], []]
    assert (dataset.classes, dataset.category_ids) == (("DOG",), (90,))
    assert dataset.coco_annotations().images.tolist() == [0]
    with pytest.raises(InputError, match="no class 'Dogs'; there are cat, bird, dog"):
        CocoDataset(path, "all", classes=("Dogs",))
    with pytest.raises(InputError, match="no train label holds class 'bird'"):
        CocoDataset(path, "train", classes=("bird",))


def test_a_box_without_width_is_left_out_and_said(tmp_path: Path) -> None:
    data = content()
    data["annotations"].append(annotation(9, 2, 3, [10, 10, 0, 30]))
    dataset = CocoDataset(write_coco(tmp_path / "a.json", data), "all")
    assert len(dataset.frame(0).labels) == 2
    assert dataset.coco_annotations().boxes[2].tolist() == [10, 10, 0, 30]
    assert any(note.endswith("boxes without width or height are left out: annotations 9") for note in dataset.notes)


def test_frames_are_taken_with_their_annotations(tmp_path: Path) -> None:
    dataset = CocoDataset(write_coco(tmp_path / "a.json", content()), "all").take([1, 0, 0])
    assert dataset.image_ids.tolist() == [31, 2, 2]
    annotations = dataset.coco_annotations()
    assert annotations.images.tolist() == [0, 1, 1, 2, 2]
    assert annotations.areas.tolist() == [1600, 500, 600, 500, 600]
    assert [dataset.origin(m).split()[-1] for m in range(5)] == ["3", "1", "2", "1", "2"]


@pytest.mark.parametrize(
    ("train", "val", "images"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "{split}2017"),
        ("annotations/train.json", "annotations/valid.json", "images"),
        ("train.json", "val.json", "images/{split}"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", None),
        ("my-training.json", "my_validation.json", "{split}"),
    ],
)
def test_splits_by_the_usual_names(tmp_path: Path, train: str, val: str, images: str | None) -> None:
    for split, name in (("train", train), ("val", val)):
        data = content(images=[{"id": 2, "file_name": f"{split}.png"}])
        data["annotations"] = data["annotations"][:2]
        place = tmp_path / images.format(split=split) if images else None
        write_coco(tmp_path / name, data, images=place)
    (tmp_path / Path(train).parent / "captions_train2017.json").write_text("{}")
    assert find_coco(tmp_path) == {"train": tmp_path / train, "val": tmp_path / val}
    for split in ("train", "val"):
        dataset = CocoDataset(tmp_path, split)
        assert dataset.frame(0).path.name == f"{split}.png"
        assert dataset.split_note.startswith(f"1 {split} images, those of ")
    with pytest.raises(InputError, match="found no annotations of split 'all', only"):
        CocoDataset(tmp_path, "all")


def test_one_file_is_split_in_blocks(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i:03d}.png"} for i in range(30)]
    annotations = [annotation(i, i, 3, [1, 1, 9, 9]) for i in range(30)]
    path = write_coco(tmp_path / "set.json", content(images=images, annotations=annotations))
    train, val = (CocoDataset(tmp_path, split, seed=4) for split in ("train", "val"))
    assert CocoDataset(path, "val", seed=4).image_ids.tolist() == val.image_ids.tolist()
    assert sorted([*train.image_ids, *val.image_ids]) == list(range(30))
    assert len(val) == 6
    assert val.split_note.startswith(
        f"6 val images of 30: {path} is the only file of annotations, so 2 of 10 blocks of consecutive"
    )


def test_two_files_of_one_split(tmp_path: Path) -> None:
    for name in ("train_a.json", "train_b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"both .*/train_a\.json and .*/train_b\.json may be the train annotations"):
        find_coco(tmp_path)


def test_a_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no COCO annotations"):
        find_coco(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": 5}, "not COCO annotations; there must be lists"),
        ({"images": [{"id": [2], "file_name": "a"}]}, "image number 0 has no id"),
        ({"images": [{"id": 2}]}, "image number 0 has no id, or no file_name"),
        ({"images": [{"id": 2, "file_name": "a"}] * 2}, "two entries for one image have the id 2"),
        ({"categories": [*CATEGORIES, {"id": 4, "name": "Cat"}]}, "two categories are called 'cat'"),
        ({"annotations": [7]}, r"annotation number 0 is not an object \(7\)"),
        ({"annotations": [annotation(8, 9, 3, [1, 1, 2, 2])]}, "annotation 8: image_id 9 is not among the image ids"),
        (
            {"annotations": [annotation(8, [9], 3, [1, 1, 2, 2])]},
            r"8: image_id \[9\] is not among the image",
        ),
        ({"annotations": [annotation(8, 2, 5, [1, 1, 2, 2])]}, "annotation 8: category_id 5 is not among the category"),
        ({"annotations": [annotation(8, 2, 3, [1, 1, 2])]}, "annotation 8: bbox must be"),
        ({"annotations": [annotation(8, 2, 3, [1, 1, -2, 2])]}, r"annotation 8: bbox \[1, 1, -2, 2\] has a negative"),
        (
            {"annotations": [annotation(8, 2, 3, [1, 1, 2, 2], area=-1)]},
            "8: area -1 is not a number of square",
        ),
        (
            {"annotations": [annotation(8, 2, 3, [99, 1, 2, 2])]},
            r"8: box 99 1 101 3 \(.*\) lies outside of its 80x60",
        ),
        ({"annotations": []}, "the images hold no objects"),
        (
            {"images": [{"id": 2, "file_name": "p2.png", "width": 80.5, "height": 60}], "annotations": []},
            "image 2: width 80.5 and height 60 must be whole numbers from 1",
        ),
        (
            {"images": [{"id": 2, "file_name": "p2.png", "width": 10**9, "height": 60}], "annotations": []},
            "image 2: width 1000000000 and height 60 must be whole numbers from 1 to 1000000",
        ),
        (
            {"images": [{"id": 10**400, "file_name": "a"}]},
            r"image number 0 has no id.*'id': 1000",
        ),
        ({"images": [{"id": 2, "file_name": "a" * 1001}]}, "image 2: file_name is longer than 1000 characters"),
        (
            {"annotations": [annotation(8, 2, 3, [1, 1, 10**400, 2])]},
            r"annotation 8: bbox \[1, 1, 100.*… has a",
        ),
        ({"annotations": [annotation(8, 2, 3, [1, 1, True, 2])]}, "annotation 8: bbox must be"),
        ({"annotations": [annotation(8, {"a": 2}, 3, [1, 1, 2, 2])]}, "annotation 8: image_id {'a': 2} is not among"),
        ({"images": []}, "annotation 1: image_id 2 is not among"),
        ({"images": [], "annotations": []}, "there are no images"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    data = content(**change)
    path = write_coco(tmp_path / "set/a.json", content())
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"a\.json: .*{said}|^{said}"):
        CocoDataset(path, "all")


def test_json_that_breaks_off(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [\n{"id": 1,')
    with pytest.raises(InputError, match=r"a\.json:2: not JSON \(.*, character 10\)"):
        read_coco(tmp_path / "a.json")


def test_stated_sizes_are_checked_when_an_image_is_read(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "a.json", content())
    Image.new("RGB", (60, 80)).save(tmp_path / "p31.png")
    dataset = CocoDataset(path, "all").take([2, 1])
    assert dataset[0].size == (60, 80)
    with pytest.raises(InputError, match=r"a\.json: image 31 is 80x60 pixels, but .*p31\.png is 60x80 upright"):
        dataset[1]


def test_sizes_that_are_not_stated_are_read(tmp_path: Path) -> None:
    images = [{"id": 2, "file_name": "p2.png"}, {"id": 31, "file_name": "p31.png", "width": 7, "height": None}]
    dataset = CocoDataset(write_coco(tmp_path / "a.json", content(images=images)), "all")
    assert dataset.sizes.tolist() == [[60, 80]] * 2


def test_opening_reads_no_image_and_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small version of the measurement on COCO's training set: 118,000 images, 860,000 boxes."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(2000)]
    boxes = [[*rng.uniform(0, 400, 2).round(2), *rng.uniform(1, 80, 2).round(2)] for _ in range(9000)]
    annotations = [annotation(i, int(rng.integers(2000)), 3, list(map(float, box))) for i, box in enumerate(boxes)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(images=images, annotations=annotations)))
    for one in images:
        (tmp_path / str(one["file_name"])).touch()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"an image is opened: {args}")

    monkeypatch.setattr(Image, "open", refuse)
    dataset = open_dataset(path, "all")
    assert isinstance(dataset, CocoDataset)
    assert dataset._annotations is not None
    assert (len(dataset), len(dataset.boxes)) == (2000, 9000)
    columns = [value for value in vars(dataset).values() if isinstance(value, np.ndarray)]
    columns += [column for value in (dataset._columns, dataset._annotations) for column in value]
    assert all(isinstance(column, np.ndarray) and column.dtype != object for column in columns)
    assert sum(column.nbytes for column in columns) < 9000 * 100 + 2000 * (50 + 4 * (12 + len(str(path)) + 12))
    assert len(pickle.dumps(dataset)) < 1.1 * sum(column.nbytes for column in columns)  # and there is nothing else
    taken = dataset.take(range(1999, -1, -1))
    assert np.shares_memory(taken.frame(0).boxes, dataset.boxes)
    np.testing.assert_array_equal(taken.frame(0).boxes, dataset.frame(1999).boxes)
    assert len(pickle.dumps(taken)) < 1.1 * len(pickle.dumps(dataset))


def test_images_that_are_not_there(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "a.json", content())
    (tmp_path / "p31.png").unlink()
    with pytest.raises(InputError, match=r"p31\.png: not a readable image \(No such file"):
        CocoDataset(path, "all")
    (tmp_path / "p500.png").unlink()
    (tmp_path / "p2.png").unlink()
    with pytest.raises(InputError, match=r"a\.json: found none of its 3 images, such as 'p2\.png'; looked in "):
        CocoDataset(path, "all")


def test_errors_may_be_collected(tmp_path: Path) -> None:
    data = content()
    data["annotations"] += [annotation(8, 9, 3, [1, 1, 2, 2]), annotation(9, 2, 3, [99, 1, 2, 2])]
    path = write_coco(tmp_path / "a.json", data)
    (tmp_path / "p500.png").unlink()
    errors: list[InputError] = []
    dataset = CocoDataset(path, "all", on_error=errors.append)
    unreadable = "not a readable image (No such file or directory)"
    assert [str(error).split(": ")[1] for error in errors] == ["annotation 8", unreadable, "annotation 9"]
    assert dataset.image_ids.tolist() == [2, 31]
    assert labels_of(dataset) == [[0, 2], [IGNORE]]
    assert dataset.coco_annotations().images.tolist() == [0, 0, 0, 1]


LAYOUTS = {  # paths of the annotations and of the images, by split
    "COCO 2017": ("annotations/instances_{split}2017.json", "{split}2017"),
    "any stem before": ("custom_{split}.json", "{split}2017"),
    "any stem after": ("annotations/{split}_of_mine.json", "images/{split}"),
    "CVAT": ("annotations/instances_{Split}.json", "images/{Split}"),
    "Roboflow": ("{split}/_annotations.coco.json", "{split}"),
    "FiftyOne": ("{split}/labels.json", "{split}/data"),
    "images of both": ("annotations/{split}.json", "images"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotations_and_images_of_tools_are_found(tmp_path: Path, layout: str) -> None:
    file, folder = LAYOUTS[layout]
    for split, number in (("train", 1), ("val", 2)):
        data = content()
        for image in data["images"]:  # the same names in both splits, but for images of both in one folder
            image["file_name"] = f"{number if folder == 'images' else 0}-{image['id']}.JPG"
        names = {"split": split, "Split": split.title()}
        write_coco(tmp_path / file.format(**names), data, images=tmp_path / folder.format(**names))
        (tmp_path / file.format(**names)).with_name("._x.json").write_bytes(b"\x00\x05\x16\x07")
    for split in ("train", "val"):
        paths = CocoDataset(tmp_path, split).paths.tolist()
        where = tmp_path / folder.format(split=split, Split=split.title())
        assert {Path(path).parent for path in paths} == {where}


@pytest.mark.parametrize(
    ("file", "folder", "prefix"),
    [
        ("annotations/instances_default.json", "images/default", ""),  # CVAT
        ("labels.json", "data", ""),  # FiftyOne
        ("result.json", "images", "images\\"),  # Label Studio on Windows
        ("result.json", "images", "C:\\Users\\me\\media\\upload\\1\\"),
        ("result.json", "images", "/home/me/media/upload/1/"),
        ("a.json", ".", "../raw/"),
    ],
)
def test_one_file_for_both_splits(tmp_path: Path, file: str, folder: str, prefix: str) -> None:
    path = write_coco(tmp_path / file, content(), images=tmp_path / folder)
    data = content()
    for image in data["images"]:
        image["file_name"] = prefix + image["file_name"]
    path.write_text(json.dumps(data))
    expected = [str(tmp_path / folder / f"p{i}.png") for i in (2, 31, 500)]
    assert CocoDataset(tmp_path, "all").paths.tolist() == expected


def test_images_are_found_by_any_of_them(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "a.json", content(), images=tmp_path / "images")
    (tmp_path / "images/p2.png").unlink()
    errors: list[InputError] = []
    assert CocoDataset(path, "all", on_error=errors.append).image_ids.tolist() == [31, 500]
    assert [str(error) for error in errors] == [
        f"{tmp_path}/images/p2.png: not a readable image (No such file or directory)"
    ]


def test_other_data_beside_the_folder_are_left_alone(tmp_path: Path) -> None:
    write_coco(tmp_path / "other/a.json", content())
    path = write_coco(tmp_path / "mine/a.json", content())
    for image in path.parent.glob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match="found none of its 3 images"):
        CocoDataset(path, "all")


def test_a_file_of_no_split_beside_one_of_a_split(tmp_path: Path) -> None:
    for name in ("annotations/instances_default.json", "annotations/instances_Validation.json"):
        write_coco(tmp_path / name, content())
    with pytest.raises(InputError, match=r"instances_default\.json: give the path of the annotations"):
        find_coco(tmp_path)
    (tmp_path / "annotations/instances_default.json").rename(tmp_path / "annotations/instances_test.json")
    assert find_coco(tmp_path) == {"all": tmp_path / "annotations/instances_Validation.json"}


def test_images_of_another_split_are_not_taken(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", content(), images=tmp_path / "train")
    (tmp_path / "val.json").write_text(json.dumps(content()))
    with pytest.raises(InputError, match=r"val\.json: found none of its 3 images"):
        CocoDataset(tmp_path, "val")


def test_one_file_of_two_images(tmp_path: Path) -> None:
    data = content()
    data["images"][0]["file_name"] = "./p2.png"
    with pytest.raises(InputError, match=r"a\.json: images 2 and 500 are one file, .*/p2\.png"):
        CocoDataset(write_coco(tmp_path / "a.json", data), "all")


@pytest.mark.parametrize("names", [["car"], ["cell", "car"]])
def test_the_group_of_roboflow_is_no_class(tmp_path: Path, names: list[str]) -> None:
    data = content(categories=[{"id": 0, "name": names[0], "supercategory": "none"}])
    data["categories"] += [{"id": i, "name": f"{names[-1]}{i - 3 or ''}", "supercategory": names[0]} for i in (3, 90)]
    dataset = CocoDataset(write_coco(tmp_path / "a.json", data), "all")
    assert dataset.classes == (names[-1], f"{names[-1]}87")
    assert f"a.json: category 0 {names[0]!r} is left out: it groups all others" in dataset.notes[0]
    data["annotations"][0]["category_id"] = 0
    (tmp_path / "a.json").write_text(json.dumps(data))
    if len(names) == 2:
        assert CocoDataset(tmp_path / "a.json", "all").classes[0] == "cell"


def test_numbers_may_be_text_where_they_can_mean_one_thing(tmp_path: Path) -> None:
    data = json.loads(json.dumps(content()))
    for image in data["images"]:
        image |= {"id": str(image["id"]), "width": "80", "height": "60"}
    data["annotations"][0] |= {"iscrowd": "0", "area": None, "category_id": "3"}
    dataset = CocoDataset(write_coco(tmp_path / "a.json", data), "all")
    assert dataset.image_ids.tolist() == [2, 31, 500]
    assert dataset.coco_annotations().areas[0] == 600
    assert not dataset.coco_annotations().crowd[0]
    data["annotations"][0]["iscrowd"] = "no"
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="annotation 1: iscrowd 'no' must be 0 or 1"):
        CocoDataset(tmp_path / "a.json", "all")


def test_dont_care_is_an_ignore_region_and_no_class(tmp_path: Path) -> None:
    data = content(categories=[*CATEGORIES[:2], {"id": 17, "name": "DontCare"}])
    data["annotations"].append(annotation(4, 31, 17, [5, 5, 10, 10]))
    dataset = CocoDataset(write_coco(tmp_path / "a.json", data), "all")
    assert dataset.classes == ("cat", "dog")
    assert labels_of(dataset) == [[0, 1], [IGNORE, IGNORE], []]
    annotations = dataset.coco_annotations()
    assert annotations.labels.tolist() == [0, 1, 0, 0, 1]
    assert annotations.crowd.tolist() == [False, False, True, True, True]


def test_a_val_file_may_name_fewer_categories(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", content())
    data = content(categories=CATEGORIES[1:2], annotations=[annotation(1, 2, 3, [10, 10, 20, 30])])
    write_coco(tmp_path / "val.json", data)
    val = CocoDataset(tmp_path, "val", classes=CocoDataset(tmp_path).classes)
    assert (val.classes, val.category_ids) == (("cat", "bird", "dog"), (3, None, None))
    assert val.notes[0].endswith("val.json: does not name bird, dog")


def test_ignore_regions_of_every_class_are_one(tmp_path: Path) -> None:
    data = content()
    data["annotations"] += [annotation(n, 31, n, [0, 0, 40, 40], iscrowd=1) for n in (90, 17)]
    dataset = CocoDataset(write_coco(tmp_path / "a.json", data), "all")
    assert labels_of(dataset) == [[0, 2], [IGNORE], []]
    assert dataset.coco_annotations().labels.tolist() == [0, 2, 0, 2, 1]


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_the_same_in_either_spelling(tmp_path: Path, written: Any, stored: Any) -> None:
    data = content()
    for image in data["images"]:
        image["file_name"] = normalize(stored, f"é{image['id']}.png")
    path = write_coco(tmp_path / "a.json", data)
    for image in data["images"]:
        image["file_name"] = normalize(written, image["file_name"])
    path.write_text(json.dumps(data))
    assert [Path(one).name for one in CocoDataset(path, "all").paths] == [
        normalize(stored, f"é{i}.png") for i in (2, 31, 500)
    ]
