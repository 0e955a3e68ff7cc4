"""Pascal VOC: the layouts of its tools, its corners, and what is wrong named by file and object."""

import re
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from tinydet.data.open import open_dataset
from tinydet.data.voc import VocDataset, find_voc
from tinydet.data.voc_xml import read_voc
from tinydet.errors import InputError, NotFoundError
from tinydet.labels import IGNORE

Corners = tuple[object, object, object, object]
WIDTH, HEIGHT = 80, 40


def voc_object(name: str, corners: Corners = (11, 6, 30, 20), *, more: str = "") -> str:
    sides = "".join(
        f"<{tag}>{side}</{tag}>" for tag, side in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{escape(name)}</name>{more}<bndbox>{sides}</bndbox></object>\n"


def voc_xml(*objects: str, filename: str = "", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    head = f"<filename>{filename}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>\n{head}\n{''.join(objects)}</annotation>\n"


def write(path: Path, text: str | bytes = "") -> Path:
    """Write a file, an image where it has the suffix of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_voc(root: Path, texts: dict[str, str | None], *, lists: dict[str, str] | None = None) -> Path:
    """VOC's own folder with images NAME.png, their XML files, None for none, and lists."""
    for name, text in texts.items():
        write(root / f"JPEGImages/{name}.png")
        if text is not None:
            write(root / f"Annotations/{name}.xml", text)
    for split, listed in (lists or {}).items():
        write(root / f"ImageSets/Main/{split}.txt", listed)
    return root


CAT, DOG = voc_xml(voc_object("cat")), voc_xml(voc_object("dog"))
TWO: dict[str, str | None] = {"a": CAT, "b": DOG}
LISTS = {"train": "a\n", "val": "b\n"}


def test_a_folder_is_read(tmp_path: Path) -> None:
    hard = voc_object("dog", (1, 1, 80, 40), more="<difficult>1</difficult>")
    text = voc_xml(voc_object(" cat ", (1, 1, 1, 1), more="<difficult>0</difficult>"), hard, voc_object("cow"))
    root = write_voc(tmp_path, {"a": text, "b": DOG, "c": CAT}, lists=LISTS)
    train, val = (open_dataset(root, split) for split in ("train", "val"))
    assert train.kind == "Pascal VOC"
    assert train.classes == val.classes == ("cat", "cow", "dog")  # of both splits, but not of c, which neither lists
    assert train.boxes.tolist() == [[0, 0, 1, 1], [0, 0, 80, 40], [10, 5, 30, 20]]
    assert train.labels.tolist() == [0, IGNORE, 1]
    assert (val.labels.tolist(), val.names.tolist()) == ([2], ["b"])
    assert train.origin(2) == "Annotations/a.xml: object 3"
    assert train.split_note == f"1 train images, as listed in {root / 'ImageSets/Main'}"
    assert train.notes == ("no train image holds dog",)
    assert train[0].image.shape == (HEIGHT, WIDTH, 3)
    assert len(VocDataset(root, "all")) == 3
    assert VocDataset(root, classes=("Cat",)).labels.tolist() == [0, IGNORE]
    with pytest.raises(InputError, match="no class 'cov'; there are cat, cow, dog"):
        VocDataset(root, classes=("cov",))


LAYOUTS = {
    "voc": ("Annotations/", "JPEGImages/"),
    "one year": ("VOC2012/Annotations/", "VOC2012/JPEGImages/"),
    "devkit": ("VOCdevkit/VOC2007/Annotations/", "VOCdevkit/VOC2007/JPEGImages/"),
    "kaggle": ("annotations/", "images/"),
    "pets": ("annotations/xmls/", "images/"),
    "side by side": ("", ""),
    "images beside annotations": ("Annotations/", ""),
}


@pytest.mark.parametrize(("annotations", "images"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_found(tmp_path: Path, annotations: str, images: str) -> None:
    for i in range(10):
        write(tmp_path / f"{images}{i}.JPG")
        write(tmp_path / f"{annotations}{i}.xml", CAT)
    write(tmp_path / f"{annotations}._0.xml", b"\0")
    write(tmp_path / f"{images}._0.JPG".replace("JPG", "bmp"), b"\0")
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2)
    assert sorted([*train.names, *val.names]) == [str(i) for i in range(10)]
    assert "nor folders of both splits, so 2 of 10 blocks" in train.split_note


@pytest.mark.parametrize("inner", ["", "annotations/"])
def test_folders_of_splits(tmp_path: Path, inner: str) -> None:
    images = inner.replace("annotations", "images")
    for split, text in (("train", CAT), ("valid", DOG), ("test", "<annotation>: no XML")):
        write(tmp_path / split / f"{images}a.png")
        write(tmp_path / split / f"{inner}a.xml", text)
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    assert (train.labels.tolist(), val.labels.tolist()) == ([0], [1])
    assert train.classes == ("cat", "dog")
    assert val.split_note == f"1 val images, as the folders of {tmp_path} say"
    assert val.notes == ("no val image holds cat", f"{tmp_path / 'test'}: left out; it is neither train nor val")
    write(tmp_path / "val" / f"{inner}a.xml", CAT)
    with pytest.raises(InputError, match="both val and valid hold val images"):
        find_voc(tmp_path)


def test_a_lone_train_folder_is_split(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / f"train/{i}.png")
        write(tmp_path / f"train/{i}.xml", CAT)
    assert [len(open_dataset(tmp_path, split)) for split in ("train", "val", "all")] == [8, 2, 10]


def test_two_years_and_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no Pascal VOC annotations"):
        find_voc(tmp_path)
    for year in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / year, TWO)
    with pytest.raises(InputError, match=r"holds 2 years of Pascal VOC; give one of .*VOC2007, .*VOC2012"):
        find_voc(tmp_path)


@pytest.mark.parametrize(
    ("image", "filename"),
    [
        ("a.jpg", "a.png"),
        ("a.jpg", "other.jpg"),
        ("a.jpg", ""),
        ("other.JPEG", "other.png"),
        ("other.png", r"C:\photos\other.png"),
        ("other.png", "../photos/other.png"),
        ("other.v2.png", "other.v2"),
    ],
)
def test_the_image_of_an_xml_file(tmp_path: Path, image: str, filename: str) -> None:
    write(tmp_path / image)
    write(tmp_path / "a.xml", voc_xml(voc_object("cat"), filename=filename))
    assert VocDataset(tmp_path, "all").paths.tolist() == [str(tmp_path / image)]


def test_the_name_of_an_xml_file_goes_before_what_it_says(tmp_path: Path) -> None:
    for image in ("a.jpg", "other.jpg"):
        write(tmp_path / image)
    write(tmp_path / "a.xml", voc_xml(voc_object("cat"), filename="other.jpg"))
    dataset = VocDataset(tmp_path, "all")
    assert (dataset.names.tolist(), dataset.offsets.tolist()) == (["a", "other"], [0, 1, 1])


def test_an_image_has_one_xml_file(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": CAT})
    write(tmp_path / "Annotations/b.xml", voc_xml(voc_object("dog"), filename="a.png"))
    with pytest.raises(InputError, match=r"^Annotations/b\.xml: there is no image 'b' or 'a\.png' in .*JPEGImages$"):
        VocDataset(tmp_path, "all")
    errors: list[InputError] = []
    assert len(VocDataset(tmp_path, "all", on_error=errors.append)) == len(errors) == 1
    write(tmp_path / "JPEGImages/a.jpg")
    with pytest.raises(InputError, match=r"JPEGImages: 'a' is there twice, a\.jpg and a\.png"):
        VocDataset(tmp_path, "all")


def test_images_without_xml_hold_no_objects(tmp_path: Path) -> None:
    dataset = VocDataset(write_voc(tmp_path, {"a": CAT, "b": None, "c": voc_xml()}), "all")
    assert dataset.offsets.tolist() == [0, 1, 1, 1]
    assert dataset.notes == ("1 of 3 images have no XML file: they count as without objects",)


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"train": "a\nc\n", "val": "b"}, r"Main/train\.txt:2: 'c' has neither an XML file nor an image"),
        ({"train": "a  2\n", "val": "b"}, r"Main/train\.txt:1: 'a  2' has neither"),
        ({"train": "a\n", "val": "b\na -1"}, r"Main/val\.txt:2: image 'a' was listed before, in Main/train\.txt:1"),
        ({"val": "b"}, r"Main/train\.txt: No such file"),
    ],
)
def test_a_bad_list_is_named(tmp_path: Path, lists: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        VocDataset(write_voc(tmp_path, TWO, lists=lists))


def test_lists_of_one_class(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {**TWO, "a 1": CAT}, lists={"train": "a  1\na 1\n", "val": "b -1\n"})
    assert VocDataset(root).names.tolist() == ["a", "a 1"]
    assert VocDataset(root, "val").names.tolist() == ["b"]


def test_spellings_are_one_class(tmp_path: Path) -> None:
    text = voc_xml(voc_object("Cat"), voc_object("cat"), voc_object("cat"))
    dataset = VocDataset(write_voc(tmp_path, {"a": text}), "all")
    assert (dataset.classes, dataset.labels.tolist(), dataset.notes) == (("cat",), [0, 0, 0], ())


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (voc_object("car", ("", 1, 2, 2)), "(car) has no xmin"),
        (voc_object("", (1, 1, 2, 2)), "(without name) has no name"),
        ("<object><name>car</name><robndbox/></object>", "(car) has no xmin"),
        (voc_object("car", (1, "a", 2, 2)), "(car): ymin is not a number ('a')"),
        (voc_object("car", (1, 1, "inf", 2)), "(car): xmax is not finite ('inf')"),
        (voc_object("car", (3, 1, 2, 2)), "(car): xmax < xmin (2, 3)"),
        (voc_object("car", (1, 9, 2, 7.5)), "(car): ymax < ymin (7.5, 9)"),
    ],
)
def test_a_bad_object_is_named(tmp_path: Path, one: str, said: str) -> None:
    path = write(tmp_path / "set/a.xml", voc_xml(voc_object("cat"), one, voc_object("cow")))
    errors: list[InputError] = []
    objects = read_voc(path, on_error=errors.append)
    assert [str(error) for error in errors] == [f"set/a.xml: object 2 {said}"]
    assert (objects.names, objects.numbers) == (["cat", "cow"], [1, 3])


def test_parts_of_an_object_and_decimals_are_read(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    text = voc_xml(f"<object>{part}{voc_object('man', ('45.70', 2, 46, 3)).removeprefix('<object>')}")
    objects = read_voc(write(tmp_path / "a.xml", text))
    assert objects.names == ["man"]
    np.testing.assert_allclose(objects.boxes, [[44.7, 1, 46, 3]])


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB.encode(), r"not readable XML \(it has a DOCTYPE: delete that\)$"),
        (b"<annotation><object>", r"not readable XML \(no element found: line 1, column 20\)$"),
        (
            voc_xml(voc_object("Käfer")).encode("latin-1"),
            r"not readable XML \(.* line 3, column \d+\); save it as UTF-8$",
        ),
        (
            "<?xml version='1.0' encoding='gbk'?><annotation>中</annotation>".encode("gbk"),
            r"multi-byte.*; save it as UTF-8",
        ),
        (b"<annotations/>", r"not Pascal VOC; its outer element is <annotations>, not <annotation>"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"^set/a\.xml: .*{said}"):
        read_voc(write(tmp_path / "set/a.xml", content))
    with pytest.raises(InputError, match=r"gone\.xml: No such file"):
        read_voc(tmp_path / "gone.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "cp1252"])
def test_declared_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    text = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>{voc_xml(voc_object('Käfer & Co'))}"
    assert read_voc(write(tmp_path / "a.xml", text.encode(encoding))).names == ["Käfer & Co"]


def test_the_image_tells_its_size(tmp_path: Path) -> None:
    sizes = {"a": (WIDTH, HEIGHT), "b": (HEIGHT, WIDTH), "c": (0, 0), "d": (160, 80)}
    root = write_voc(tmp_path, {name: voc_xml(voc_object("cat"), size=size) for name, size in sizes.items()})
    write(root / "Annotations/a.xml", f"<annotation>{voc_object('cat')}</annotation>")
    with pytest.raises(InputError, match=r"b\.xml is of an image of 40x80, but .*b\.png is 80x40 upright"):
        VocDataset(root, "all")
    dataset = VocDataset(root, "all", on_error=lambda _: None)
    assert dataset.names.tolist() == ["a", "c", "d"]
    assert dataset.sizes.tolist() == [[HEIGHT, WIDTH]] * 3
    assert dataset.notes == (
        "1 XML files state another size than their image has; the image's is used: "
        "Annotations/d.xml 160x80, image 80x40",
    )


def test_difficult_is_0_or_1(tmp_path: Path) -> None:
    text = voc_object("cat").replace("</object>", "<difficult>true</difficult></object>")
    with pytest.raises(InputError, match=r"a\.xml: object 1 \(cat\): difficult is 'true'; it must be 0 or 1"):
        read_voc(write(tmp_path / "a.xml", voc_xml(re.sub("<difficult>[01]</difficult>", "", text))))


def test_lists_may_name_the_image_of_a_renamed_file(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"JPEGImages/img{i}.png")
        write(tmp_path / f"Annotations/a{i}.xml", voc_xml(voc_object("cat"), filename=f"img{i}.jpg"))
    for split, names in (("train", "img0\nimg2\n"), ("val", "img1\n")):
        write(tmp_path / f"ImageSets/Main/{split}.txt", names)
    train = VocDataset(tmp_path)
    assert ([Path(path).stem for path in train.paths], len(train.labels)) == (["img0", "img2"], 2)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("Annotations/cam1", "JPEGImages/cam1"),
        ("labels", "data"),
        ("Annotations", "Images"),
        ("annotations/xmls", "images"),
    ],
)
def test_folders_of_tools(tmp_path: Path, annotations: str, images: str) -> None:
    for i in range(4):
        write(tmp_path / annotations / f"{i}.xml", CAT)
        write(tmp_path / images / f"{i}.png")
    dataset = VocDataset(tmp_path, "all")
    assert (dataset.names.tolist(), dataset.labels.tolist(), dataset.notes) == ([*"0123"], [0] * 4, ())


def test_folders_of_splits_within_those_of_annotations(tmp_path: Path) -> None:
    for split, text in (("train", CAT), ("val", DOG), ("test", DOG)):
        write(tmp_path / f"annotations/{split}/a.xml", text)
        write(tmp_path / f"images/{split}/a.png")
    train, val = (VocDataset(tmp_path, split) for split in ("train", "val"))
    assert (train.classes, train.labels.tolist(), val.labels.tolist()) == (("cat", "dog"), [0], [1])
    assert train.split_note == f"1 train images, as the folders of {tmp_path / 'images'} say"


def test_what_trainval_does_not_list_is_test(tmp_path: Path) -> None:
    root = write_voc(
        tmp_path, {str(i): CAT for i in range(10)}, lists={"trainval": "0\n1\n2\n3\n4\n", "test": "5\n6\n"}
    )
    train, val = (VocDataset(root, split) for split in ("train", "val"))
    assert {*train.names, *val.names} == {*"01234"}
    assert "has trainval.txt, and no train.txt, so 1 of 5 blocks" in train.split_note


def test_xml_of_other_programs_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "sitemap.xml", "<urlset></urlset>")
    with pytest.raises(NotFoundError, match="found no Pascal VOC annotations"):
        find_voc(tmp_path)


def test_real_files_of_two_tools(shared: Path) -> None:
    raccoons, cells = (VocDataset(shared / "data" / name, "all") for name in ("raccoon", "bccd"))
    assert (len(raccoons), raccoons.counts, raccoons.notes) == (200, {"raccoon": 217}, ())
    assert (len(cells), cells.counts) == (364, {"Platelets": 361, "RBC": 4155, "WBC": 372})
    sides = cells.boxes[:, 2:] - cells.boxes[:, :2]
    assert (sides == 1).all(axis=1).sum() == 2  # xmin is xmax: one pixel
