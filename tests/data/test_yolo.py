"""YOLO folders: what data.yaml may say, what a line may hold, and what is wrong named by file and line."""

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from tinydet.data.splits import split_of
from tinydet.data.yolo import YoloDataset, find_yolo
from tinydet.data.yolo_rows import read_yolo
from tinydet.errors import InputError


def write_yolo(root: Path, yaml: str, labels: dict[str, str | None], *, size: tuple[int, int] = (80, 40)) -> Path:
    """A folder with images at images/KEY.png and label files; None for none."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for name, text in labels.items():
        image, label = root / f"images/{name}.png", root / f"labels/{name}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(image)
        if text is not None:
            label.write_text(text)
    return root


YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
LABELS: dict[str, str | None] = {
    "train/a": "0 0.5 0.5 0.5 0.5\n1 0.25 0.5 0.5 1\n",
    "train/b": None,
    "val/c": "1 0.1 0.1 0.2 0.1 0.2 0.4\n",
}


def test_a_folder_is_read(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML, LABELS)
    train, val = (YoloDataset(root, split) for split in ("train", "val"))
    assert train.classes == ("cat", "dog")
    assert train.names.tolist() == ["a", "b"]
    assert train.boxes.tolist() == [[20, 10, 60, 30], [0, 0, 40, 40]]
    assert (train.labels.tolist(), train.offsets.tolist()) == ([0, 1], [0, 2, 2])
    assert train.origin(1) == "train/a.txt:2"
    np.testing.assert_allclose(val.boxes, [[8, 4, 16, 16]], rtol=1e-6)  # around the outline
    assert train.notes == ("1 of 2 train images have no label file: they count as without objects",)
    assert val.notes == ("no val image holds cat",)
    assert train.split_note == f"2 train images, as {root / 'data.yaml'} says"
    assert YoloDataset(root / "data.yaml", "all").names.tolist() == ["a", "b", "c"]


def test_classes_are_chosen_by_name(tmp_path: Path) -> None:
    train = YoloDataset(write_yolo(tmp_path, YAML, LABELS), classes=("Dog",))
    assert (train.labels.tolist(), train.image_index.tolist()) == ([0], [0])
    with pytest.raises(InputError, match="no class 'cow'; there are cat, dog"):
        YoloDataset(tmp_path, classes=("cow",))


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n",
        "train: [images/train]\nvalid: images/val\nnc: 2\nnames: ['cat', 'dog']\n",
        "path: elsewhere/that/is/not\ntrain: ../images/train\nval: ../images/val\nnames: [cat, dog]\n",
        "train: train.txt\nval: images/val\nnames: [cat, dog]\n",
    ],
)
def test_data_yaml_in_its_dialects(tmp_path: Path, yaml: str) -> None:
    root = write_yolo(tmp_path, yaml, LABELS)
    (root / "train.txt").write_text("images/train/a.png\n./images/train/b.png\n")
    folder = find_yolo(root)
    assert folder.names == ("cat", "dog")
    assert {split: [path.stem for path in paths] for split, paths in folder.images.items()} == {
        "train": ["a", "b"],
        "val": ["c"],
    }
    assert YoloDataset(root).labels.tolist() == [0, 1]


def test_labels_without_image_are_said(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML, LABELS)
    (root / "labels/train/lost.txt").write_text("0 .5 .5 .1 .1\n")
    (note,) = (note for note in YoloDataset(root).notes if "no image" in note)
    assert note == f"{root / 'labels/train'}: 1 label files have no image (lost.txt)"


def test_without_val_blocks_are_drawn(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "train: images\nnames: [cat]", {f"{i:02d}": "0 .5 .5 .1 .1" for i in range(20)})
    train, val = (YoloDataset(root, split, seed=1) for split in ("train", "val"))
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.names) & set(val.names)
    assert "names only train" in val.split_note


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("names: [cat", r"data\.yaml:1: not YAML \(expected ',' or '\]', but got"),
        ("train: images", r"data\.yaml: not a YOLO data file; it has no names"),
        ("names: {1: cat}\ntrain: images", "names must be numbered from 0 without gaps"),
        ("names: cat\ntrain: images", "names must be a list or an object, got 'cat'"),
        ("names: [cat]\nnc: 2\ntrain: images", "nc is 2, and there are 1 names"),
        ("names: [cat]", "has neither train nor val; add the folders of their images"),
        ("names: [cat]\ntrain: photos", "names 'photos', which is not there; looked for "),
        ("names: [cat, dog]\ntrain: list.txt", r"list\.txt:2: names 'gone\.png', which is not there"),
        ("!!python/object/apply:os.system ['true']", "not a YOLO data file"),
        ("names: [cat, Cat]\ntrain: images", "two classes are called 'cat'"),
        ("names: [cat]\nkpt_shape: 17\ntrain: images", "kpt_shape must be a list or nothing, got '17'"),
    ],
)
def test_what_is_wrong_with_data_yaml_is_named(tmp_path: Path, yaml: str, said: str) -> None:
    root = write_yolo(tmp_path, yaml, LABELS)
    (root / "list.txt").write_text("images/train/a.png\ngone.png\n")
    with pytest.raises(InputError, match=said):
        YoloDataset(root)


def test_two_yaml_files_or_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no data\.yaml"):
        find_yolo(tmp_path)
    for name in ("a.yaml", "b.yml"):
        (tmp_path / name).write_text("names: [cat]")
    with pytest.raises(InputError, match=r"a\.yaml, b\.yml: give the path of one"):
        find_yolo(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 .1", r"expected a class, and a box, an outline, .* \('0 .5 .5 .1'\)"),
        ("0 .5 .5 .1 .1 -1.5", r"expected a class, and a box, .* \(0.5 0.5 0.1 0.1 -1.5\)"),
        ("0.5 .5 .5 .1 .1", r"class '0\.5' is not one of 0 \.\. 1"),
        ("2 .5 .5 .1 .1", r"class '2' is not one of 0 \.\. 1"),
        ("cat .5 .5 .1 .1", r"class is not a number \('cat'\)"),
        ("0 .5 x .1 .1", r"value 2 is not a number \('x'\)"),
        ("0 .5 nan .1 .1", r"value 2 is not finite \('nan'\)"),
        ("0 .5 .5 0 .1", r"the box 0.5 0.45 0.5 0.55 \(x1 y1 x2 y2\) has no width or no height"),
        ("0 40 20 10 10", r"the box 35 15 45 25 .* is not in shares of its image; are these pixels\?"),
        ("0 .1 .1 .1 .2 .1 .3", "the outline 0.1 0.1 0.1 0.3 .* has no width or no height"),
    ],
)
def test_a_line_that_does_not_parse_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "labels/a.txt"
    path.parent.mkdir()
    path.write_text(f"1 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(InputError, match=rf"labels/a\.txt:2.*{said}"):
        read_yolo([path], classes=2)
    errors: list[InputError] = []
    path.write_text(f"{line}\n1 .5 .5 .1 .1\n")
    ((labels, boxes, lines),) = read_yolo([path], classes=2, on_error=errors.append)
    assert (labels.tolist(), len(boxes), lines, len(errors)) == ([1], 1, [2], 1)


BOX, OUTLINE = [0.3, 0.4, 0.5, 0.6], [0.1, 0.1, 0.4, 0.6]  # xyxy of the rows below


@pytest.mark.parametrize(
    ("rows", "keypoints", "box"),
    [
        (["0 .4 .5 .2 .2 .9"], None, BOX),  # with a score
        (["0 .4 .5 .2 .2 17"], None, BOX),  # with a track id
        (["0 .4 .5 .2 .2 .9 17"], None, BOX),  # with both
        (["0.0 .4 .5 .2 .2"], None, BOX),
        (["0 .4 .5 .2 .2 .35 .45 .4 .5 .45 .55"], (3, 2), BOX),
        (["0 .4 .5 .2 .2 .35 .45 2 .4 .5 0 .45 .55 1"], (3, 3), BOX),
        (["0 .4 .5 .2 .2 .35 .45 2 .4 .5 0"], None, BOX),  # no outline has a corner at 2
        (["0 .1 .1 .4 .1 .4 .6 .1 .6 .9"], None, OUTLINE),  # with a score
        (["0 .1 .1 .4 .1 .4 .6 .1 .6 .9 3"], None, OUTLINE),  # and a track id
        (["0 .1 .1 .4 .1 .4 .6 .1 .6"], None, OUTLINE),
        (["0 .1 .1 .4 .1 .4 .6"], None, OUTLINE),
        (["0 .1 .1 .4 .1 .4 .6 .1 .6"], (0, 0), OUTLINE),
        (["0 .1 .1 .4 .1 .4 .6", "1 .1 .1 .2 .9 .2 0", "1 .1 .2 .2 .9 .25 .7"], None, OUTLINE),  # one ends at the edge
        (["0 .4 .5 .2 .2 .9 1", "0 .4 .5 .2 .2 .9 7"], None, BOX),  # told by the second
    ],
)
def test_what_a_row_is_is_told_by_rule(
    tmp_path: Path, rows: list[str], keypoints: tuple[int, int] | None, box: list[float]
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(rows))
    (found,) = read_yolo([tmp_path / "a.txt"], classes=2, keypoints=keypoints)
    np.testing.assert_allclose(found.boxes[0], box, rtol=1e-9)
    assert found.lines == [*range(1, len(rows) + 1)]


@pytest.mark.parametrize(
    ("row", "keypoints", "said"),
    [
        (
            "0 .4 .5 .2 .2 .9 1",
            None,
            "may be an outline of 3 points, or a box and a score and a track id: name kpt_shape",
        ),
        (
            "0 .7 .8 .1 .1 .68 .78 .72 .82",
            None,
            "may be an outline of 4 points, or a box and 2 keypoints: name kpt_shape",
        ),
        (
            "0 .4 .5 .2 .2 .4 .5 1 .4 .5 0",
            None,
            "an outline of 5 points, or a box and 2 keypoints and their visibility",
        ),
        ("0 .4 .5 .2 .2 .4 .5", (3, 2), "expected a class, a box, and 3 keypoints of 2 numbers, as kpt_shape says"),
        ("0 .4 .5 .2 .2 .4 .5 -.7", None, "expected a class, and a box, an outline, a box and keypoints"),
        (
            "0 .4 .5 .2 .2 .35 .45 2",
            None,
            "a box and 1 keypoints and their visibility, or an outline of 3 points and a",
        ),
        ("0 .1 .1 .4 .1 .4 .6 .1 .6 .9 1", None, "an outline of 5 points, or an outline of 4 points and a score and a"),
    ],
)
def test_what_fits_two_readings_is_named(
    tmp_path: Path, row: str, keypoints: tuple[int, int] | None, said: str
) -> None:
    (tmp_path / "a.txt").write_text(f"0 .5 .5 .5 .5\n{row}\n")
    with pytest.raises(InputError, match=rf"/a\.txt:2: .*{said}"):
        read_yolo([tmp_path / "a.txt"], classes=1, keypoints=keypoints)


def test_rows_of_one_length_with_all_points_in_their_box_are_named(tmp_path: Path) -> None:
    pose = ".5 .5 .3 .6 " + " ".join(f"{x:g} {y:g}" for x in (0.4, 0.5, 0.6) for y in (0.3, 0.7))
    (tmp_path / "a.txt").write_text(f"0 {pose}\n" * 3)
    with pytest.raises(InputError, match=r"a\.txt:1: may be an outline of 8 points, or a box and 6 keypoints"):
        read_yolo([tmp_path / "a.txt"], classes=1)
    (tmp_path / "a.txt").write_text(f"0 {pose}\n" * 3 + f"0 {pose} .5 .2\n")
    assert read_yolo([tmp_path / "a.txt"], classes=1)[0].boxes[0].tolist() == [0.3, 0.3, 0.6, 0.7]


def test_a_single_odd_row_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        x, y, w, h = *rng.uniform(0.4, 0.6, 2), *rng.uniform(0.2, 0.8, 2)
        points = rng.uniform(-0.5, 0.5, (5, 2)) * (w, h) + (x, y)
        rows.append(" ".join(f"{value:.6f}" for value in (x, y, w, h, *points.ravel())))
    path = tmp_path / "a.txt"
    for more in ([], [".1 .1 .4 .1 .4 .6 .1 .6"]):
        path.write_text("".join(f"0 {row}\n" for row in [*rows, *more]))
        errors: list[InputError] = []
        (found,) = read_yolo([path], classes=1, on_error=errors.append)
        assert (len(errors), len(found.labels)) == (300, len(more))


def test_one_bad_number_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 .5 .5 .1 .1 .9\n" * 9 + "0 .5 .5 .1 .1 -3.5\n")
    errors: list[InputError] = []
    (found,) = read_yolo([tmp_path / "a.txt"], classes=1, on_error=errors.append)
    assert (len(found.labels), len(errors)) == (9, 1)
    assert "a.txt:10: expected a class, and a box" in str(errors[0])


def test_outlines_of_many_shapes_are_no_keypoints(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (300, 6)))
    centres, radii = rng.uniform(0.1, 0.9, (300, 1, 2)), rng.uniform(0.02, 0.1, (300, 1, 1))
    corners = centres + radii * np.stack([np.cos(angles), np.sin(angles)], -1)
    for count in (4, 5, 6):
        some = corners[:, :count].reshape(300, -1).round(6)
        (tmp_path / "a.txt").write_text("\n".join(f"0 {' '.join(map(str, row))}" for row in some.tolist()))
        (found,) = read_yolo([tmp_path / "a.txt"], classes=1)
        np.testing.assert_allclose(found.boxes[:, 2:], some.reshape(300, -1, 2).max(1), atol=1e-9)


def test_names_and_numbers_are_read_as_written(tmp_path: Path) -> None:
    yaml = "train: images/train\nval: images/val\nnc: '3'\nnames: [yes, no, 007]\nkpt_shape: [1, 3]\n"
    folder = find_yolo(write_yolo(tmp_path, yaml, LABELS))
    assert (folder.names, folder.keypoints) == (("yes", "no", "007"), (1, 3))


def test_boxes_leave_their_image_by_one_rule(tmp_path: Path) -> None:
    labels: dict[str, str | None] = {
        "train/a": "0 0.05 0.5 0.102 1.0\n0 0 .5 .5 .5\n1 .5 .5 .1 .1\n",
        "val/b": "0 .5 .5 1 1",
    }
    train = YoloDataset(write_yolo(tmp_path, YAML, labels))
    assert train.boxes[:2].tolist() == [[0, 0, pytest.approx(8.08), 40], [0, 10, 20, 30]]
    (note,) = train.notes
    assert note.startswith("1 of 3 boxes leave their image by more than 5%: corners instead of sizes?")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{split}", "images/{split}"),
        ("Images/{split}", "Labels/{split}"),
        ("{split}/images", "{split}/labels"),
        ("images/of/{split}", "images/of/{split}"),
        ("{split}", "{split}"),
    ],
)
def test_where_label_files_lie(tmp_path: Path, images: str, labels: str) -> None:
    root = tmp_path / "images" / "set"  # a folder further up that has the name too
    for split in ("train", "val"):
        for folder in (images, labels):
            (root / folder.format(split=split)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 40)).save(root / images.format(split=split) / "a.PNG")
        (root / labels.format(split=split) / "a.TXT").write_text("1 .5 .5 .5 .5\n0 .1 .1 .1 .1\n")
        (root / labels.format(split=split) / "classes.txt").write_text("cat\ndog\n")
    yaml = f"train: {images.format(split='train')}\nval: {images.format(split='val')}\nnames: [cat, dog]"
    (root / "data.yaml").write_text(yaml)
    train = YoloDataset(root)
    assert (train.labels.tolist(), train.notes) == ([1, 0], ())


def test_no_label_file_at_all(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML, {"train/a": None, "train/b": None, "val/c": None})
    with pytest.raises(
        InputError, match=r"data\.yaml: none of 2 train images has a label file, such as .*train/a\.txt"
    ):
        YoloDataset(root)


def test_two_images_of_one_label_file(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML, LABELS)
    Image.new("RGB", (80, 40)).save(root / "images/train/a.jpg")
    with pytest.raises(InputError, match=r"train/a\.png: a\.jpg has the same label file, train/a\.txt; rename one"):
        YoloDataset(root)
    errors: list[InputError] = []
    assert YoloDataset(root, on_error=errors.append).paths.tolist() == [
        str(root / f"images/train/{n}") for n in ("a.jpg", "b.png")
    ]
    assert len(errors) == 1


def test_files_of_systems_are_passed_over_and_links_followed(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set", YAML, LABELS)
    for name in ("images/train/._a.png", "labels/train/._a.txt", "._data.yaml", "images/train/Thumbs.db"):
        (root / name).write_bytes(b"\x00\x05\x16\x07")
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        (root / "images/train" / hidden).mkdir()
        Image.new("RGB", (80, 40)).save(root / f"images/train/{hidden}/a-checkpoint.png")
    store = write_yolo(tmp_path / "store", YAML, {"x/d": "0 .5 .5 .1 .1"})
    (root / "images/train/cam").symlink_to(store / "images/x")
    (root / "labels/train/cam").symlink_to(store / "labels/x")
    (root / "images/train/cam/again").symlink_to(root / "images/train")  # a circle
    train = YoloDataset(root)
    assert train.names.tolist() == ["a", "b", "d"]
    assert train.labels.tolist() == [0, 1, 0]


def test_all_that_is_wrong_in_lists_is_named(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML.replace("images/train", "list.txt"), LABELS)
    (root / "list.txt").write_text("images/train/a.png\n" + "x" * 300 + ".png\ngone.png\n./images/train/a.png\n")
    errors: list[InputError] = []
    train = YoloDataset(root, on_error=errors.append)
    assert len(train) == 2
    assert [str(error).partition(":")[2].partition(":")[0] for error in errors] == ["2", "3"]
    assert "data.yaml: 1 train images are listed more than once" in train.notes[0]
    (root / "data.yaml").write_text("train: a\nval: b\nnames: [cat, dog]\n")
    with pytest.raises(InputError, match=r"names 'a', which is not there.*\n.*names 'b', which is not there"):
        YoloDataset(root)


def test_files_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "", LABELS)
    (root / "data.yaml").rename(root / "docker-compose.yml")
    (root / "docker-compose.yml").write_text("services: {web: {image: nginx}}")
    (root / "classes.txt").write_text("cat\ndog\n")
    assert YoloDataset(root).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("kpt_shape: [[17, 3], 2]", r"kpt_shape: number 0 must be text, got \['17', '3'\]"),
        ("path: [a, b]", r"path must be text or nothing, got \['a', 'b'\]"),
        ("kpt_shape: {a: 2}", "kpt_shape must be"),
    ],
)
def test_values_of_other_types(tmp_path: Path, yaml: str, said: str) -> None:
    root = write_yolo(tmp_path, f"{YAML}{yaml}\n", LABELS)
    with pytest.raises(InputError, match=said):
        YoloDataset(root)


def test_an_empty_line_among_the_classes(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "", LABELS)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\n\ndog\n\n")
    with pytest.raises(InputError, match=r"classes\.txt:2: an empty line among the classes"):
        YoloDataset(root)


def test_splits_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    root = write_yolo(
        tmp_path, "train: /x/train/images\nval: /x/valid/images\nnames: [cat, dog]", {"a": "0 .5 .5 .1 .1"}
    )
    with pytest.raises(InputError, match=r"names '/x/train/images', which is not there"):
        YoloDataset(root)


@pytest.mark.parametrize("split_folders", [True, False])
def test_a_folder_of_label_studio_has_classes_and_no_yaml(tmp_path: Path, split_folders: bool) -> None:
    labels = LABELS if split_folders else {name.replace("/", "-"): text for name, text in LABELS.items()}
    write_yolo(tmp_path, "", labels)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "notes.json").write_text('{"categories": []}')
    with pytest.raises(InputError, match=r"there are labels, but no data\.yaml or classes\.txt"):
        find_yolo(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    train, val = (YoloDataset(tmp_path, split) for split in ("train", "val"))
    assert (train.classes, len(train), len(val)) == (("cat", "dog"), 2, 1)
    assert ("blocks" in train.split_note) != split_folders


def test_darknets_obj_data_as_cvat_writes_it(tmp_path: Path) -> None:
    (tmp_path / "obj_train_data").mkdir()
    for i in range(4):
        Image.new("RGB", (80, 40)).save(tmp_path / f"obj_train_data/{i}.png")
        (tmp_path / f"obj_train_data/{i}.txt").write_text("1 .5 .5 .5 .5\n0 .1 .1 .1 .1\n")
    (tmp_path / "train.txt").write_text("".join(f"data/obj_train_data/{i}.png\n" for i in range(4)))
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    train = YoloDataset(tmp_path)
    assert (train.classes, len(train), train.labels.tolist()) == (("cat", "dog"), 3, [1, 0] * 3)
    assert train.notes == ()


EXPORTS = {  # a file's text by its path; images are at the paths that end in .jpg
    "Roboflow": {
        "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'dog']",
        **{f"{part}/images/{i}_jpg.rf.0a.jpg": "" for part in ("train", "valid", "test") for i in range(2)},
        **{
            f"{part}/labels/{i}_jpg.rf.0a.txt": "1 .5 .5 .5 .5" for part in ("train", "valid", "test") for i in range(2)
        },
        "README.roboflow.txt": "exported",
    },
    "FiftyOne": {
        "dataset.yaml": "names: {0: cat, 1: dog}\npath: /home/me/export\ntrain: ./images/train/\nval: ./images/val/\n",
        **{f"images/{part}/{i}.jpg": "" for part in ("train", "val") for i in range(2)},
        **{f"labels/{part}/{i}.txt": "1 .5 .5 .5 .5" for part in ("train", "val") for i in range(2)},
    },
    "CVAT, Ultralytics": {
        "data.yaml": "names:\n  0: cat\n  1: dog\npath: .\ntrain: Train.txt\nval: Validation.txt\n",
        "Train.txt": "data/images/Train/0.jpg\ndata/images/Train/1.jpg\n",
        "Validation.txt": "data/images/Validation/0.jpg\ndata/images/Validation/1.jpg\n",
        **{f"images/{part}/{i}.jpg": "" for part in ("Train", "Validation") for i in range(2)},
        **{f"labels/{part}/{i}.txt": "1 .5 .5 .5 .5" for part in ("Train", "Validation") for i in range(2)},
    },
    "Ultralytics, coco8": {
        "coco8.yaml": "path: coco8\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n",
        **{f"coco8/images/{part}/{i}.jpg": "" for part in ("train", "val") for i in range(2)},
        **{f"coco8/labels/{part}/{i}.txt": "1 .5 .5 .5 .5" for part in ("train", "val") for i in range(2)},
    },
    "labelImg": {
        **{f"{part}/{i}.jpg": "" for part in ("train", "val") for i in range(2)},
        **{f"{part}/{i}.txt": "1 .5 .5 .5 .5" for part in ("train", "val") for i in range(2)},
        "classes.txt": "cat\ndog\n",
    },
    "darknet": {
        **{f"{part}/{i}.jpg": "" for part in ("train", "val") for i in range(2)},
        **{f"{part}/{i}.txt": "1 .5 .5 .5 .5" for part in ("train", "val") for i in range(2)},
        "mine.names": "cat\ndog\n",
        "mine.data": "classes=2\ntrain=/home/me/set/train\nvalid=/home/me/set/val\nnames=/home/me/set/mine.names\n",
    },
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_exports_of_tools_are_read(tmp_path: Path, tool: str) -> None:
    for name, text in EXPORTS[tool].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jpg"):
            Image.new("RGB", (80, 40)).save(tmp_path / name)
        else:
            (tmp_path / name).write_text(text)
    for split in ("train", "val"):
        dataset = YoloDataset(tmp_path, split)
        assert (dataset.classes, len(dataset), dataset.labels.tolist()) == (("cat", "dog"), 2, [1, 1])
        folders = [Path(path).relative_to(tmp_path).parts[:-1] for path in dataset.paths]
        assert {split_of("-".join(folder)) for folder in folders} == {split}
        assert dataset.notes == (f"no {split} image holds cat",)


def test_labels_are_found_in_either_spelling(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML, {normalize("NFD", "train/é"): None, "val/c": "1 .5 .5 .1 .1"})
    (root / "labels/train").mkdir(exist_ok=True)
    (root / "labels/train" / normalize("NFC", "é.txt")).write_text("0 .5 .5 .1 .1\n")
    assert YoloDataset(root).labels.tolist() == [0]


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("train: /", "names '/', in which it lies; give a folder of images"),
        ("train: ..", "names '..', in which it lies; give a folder of images"),
        ("path: /\ntrain: ['.', /]", "names '.', which is not there.*\n.*names '/', in which it lies"),
        ("train: disk", "names 'disk', in which it lies; give a folder of images"),
        ("train: /dev/zero", "names '/dev/zero', which is neither a file nor a folder"),
        ("train: list.txt", r"list\.txt:1: names 'images', which is a folder, not a file"),
        (f"train: {'a' * 3000}", rf"names '{'a' * 58}…, which is not there"),
        (f"path: {'a' * 3000}\ntrain: b", "names 'b', which is not there"),
    ],
)
def test_what_is_no_folder_of_images_is_not_walked(tmp_path: Path, yaml: str, said: str) -> None:
    root = write_yolo(tmp_path / "set", f"{yaml}\nnames: [cat, dog]", LABELS)
    (root / "disk").symlink_to("/")
    (root / "list.txt").write_text("images\n")
    with pytest.raises(InputError, match=said):
        YoloDataset(root)
