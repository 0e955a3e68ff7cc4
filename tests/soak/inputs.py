"""Broken files for every reader: mutations of small data sets, results and runs, and what a reader may make of them."""

import json
import math
import random
import re
import signal
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from tests.kitti_folders import label_line
from tests.run_rows import metrics_history
from tinydet.data.dataset import DetectionDataset
from tinydet.data.open import open_dataset
from tinydet.data.transforms import read_transforms
from tinydet.errors import InputError
from tinydet.labels import IGNORE
from tinydet.result_files import evaluate_files
from tinydet.runs import compare, comparison, list_runs, read_run, runs_table

WIDTH, HEIGHT = 80, 60
SECONDS = 5  # for one input
LONGEST, MOST_LINES = 400, 6  # characters of a line of an error, and lines
TOKEN = re.compile(r'"[^"\n]*"|[^\s"\[\]{}(),:<>=]+')
ODD = re.split(
    r"\s+",
    r"""0 -0 1 -1 2 00 007 0x10 1_0 1e5 -1e5 0.5 .5 5. 1e308 -1e308 1e400 1e-400 NaN nan Infinity -inf +1 1,5 1.5.2 ²
    2147483648 9007199254740993 9223372036854775808 -9223372036854775809 1000000000 65536 true false null None ~ yes ½
    [] {} [[]] [1,2,3] [0,0,1e9,1e9] [null] {"a":1} "" "0" "1" "NaN" "null" "\u0000" "\ud800" "\ud83d\ude00" "a\nb" ١٢
    "\u001b[31m" .. . / ../.. //// C:\ ~root /dev/zero /proc/self * *a &a !!python/name:os.system !!binary <<: ? | > #
    - -- -1.0 1.0 &lt; &#0; &#xD800; &x; <x> </x> <!DOCTYPE <![CDATA[ <?xml Car DontCare dog cat %s {0} $HOME \ é""",
)
ODD += ["e\u0301", "\u202e", "\ufeff"]
ODD += ["", " ", "\t", "\0", "\x1b[31m", "\r", "\x0b", "\x85", "\u2028", "7" * 400, "7" * 5000, "0." + "3" * 5000]
ODD += ["a" * 3000, "ü" * 300, "a/" * 1500, "[" * 2000, "[" * 300 + "]" * 300, "{" * 300, '{"a":' * 300 + "}" * 300]
VALUES = json.loads(
    r"""[null, true, false, 0, 1, -1, 2, 1.5, -0.0, 1e308, NaN, Infinity, -Infinity, 1000000000, 9007199254740993,
    9223372036854775808, -9223372036854775809, "", "0", "1", "1.5", "nan", "x",
    "a\nb", "\u001b[31m", "\u0000", "\ud800",
    "/", "..", [], {}, [[]], [1], [1, 2, 3, 4], [null, null, null, null], [1e308, 1e308, 1e308, 1e308], {"a": 1},
    {"0": "a"}, "dog", ["dog"], {"id": 1}]"""
)
VALUES += ["a" * 3000, 10**400]


class Kind(NamedTuple):
    """One kind of files that tinydet reads: a folder of valid ones, those to break, and how to read them."""

    folder: Path
    files: dict[Path, bytes]
    read: Callable[[random.Random], object]


def mutated_inputs(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Break one file after another, endlessly: yields what it is of, and a function that reads it, until the next.

    The function returns what the public reader makes of it, after `check` has passed it; `fault` calls it.
    """
    kinds = {make.__name__.removeprefix("write_"): make(folder / make.__name__) for make in WRITERS}
    while True:
        name, kind = rng.choice([*kinds.items()])
        path = rng.choice([*kind.files])
        path.write_bytes(mutate(kind.files[path], path.suffix, rng))
        yield f"{name}: {path.name if path.stem in ('data', 'coco') else path.suffix}", partial(kind.read, rng)
        path.write_bytes(kind.files[path])


class TooLong(BaseException):
    """What ends a reader that takes too long; no reader passes over it."""


def _stop(*_: object) -> None:
    raise TooLong(f"more than {SECONDS} seconds")


def fault(read: Callable[[], object]) -> str:
    """Read an input, in the main thread, and say what is wrong with what came of it; nothing if it held."""
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(read())
    except InputError as error:
        return _wrong_error(str(error))
    except (Exception, TooLong) as error:
        trace, places = error.__traceback__, []
        while trace:
            code = trace.tb_frame.f_code
            places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
            trace = trace.tb_next
        return f"{type(error).__name__} at {' '.join(places[-3:])}: {str(error)[:100]!a}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def _wrong_error(text: str) -> str:
    """Say what is wrong with the text of an error."""
    lengths = [len(re.sub(r"\S*/\S*", "/", line)) for line in text.split("\n")]  # but for paths
    if len(lengths) > MOST_LINES or max(lengths) > LONGEST:
        return f"an error of {len(lengths)} lines, the longest of {max(lengths)} characters: {text[:200]!a}"
    if bad := [one for one in text if one != "\n" and unicodedata.category(one) in ("Cc", "Cs")]:
        return f"an error with {bad[0]!a}: {text[:200]!a}"
    if not re.search(r"^/|write_\w+|\.(txt|xml|json|jsonl|yaml|data|names)\b|label_2|labels/|^[ab]/", text):
        return f"an error that names no file: {text[:200]!a}"
    return ""


def check(found: object) -> None:
    """Check what a reader returned."""
    if isinstance(found, DetectionDataset):
        boxes, (heights, widths) = found.boxes, found.sizes[found.image_index].T
        assert np.isfinite(boxes).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 0] < boxes[:, 2]).all()
        assert (boxes[:, 1] < boxes[:, 3]).all()
        assert (boxes[:, 2] <= widths).all()
        assert (boxes[:, 3] <= heights).all()
        assert ((found.labels == IGNORE) | ((found.labels >= 0) & (found.labels < len(found.classes)))).all()
        assert all(map(math.isfinite, found.coco_annotations().areas.tolist()))
        texts = [found.split_note, *found.notes, *found.classes]
    elif isinstance(found, tuple):  # numbers and notes of an evaluation
        numbers, notes = found
        assert not re.search("NaN|Infinity", json.dumps(numbers))
        texts = notes
    else:
        texts = [str(found)]
    for text in texts:
        text.encode()
        assert "\x1b" not in text or isinstance(found, DetectionDataset)
        assert len(text) < 3000


def mutate(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """Break the content of a file at one to three places: its structure, its words, or its bytes."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        way = rng.random()
        try:
            if way < 0.4 and suffix in STRUCTURES:
                content = STRUCTURES[suffix](content, rng)
            elif way < 0.7:
                content = _mutate_word(content.decode(), rng).encode("utf-8", "surrogatepass")
            else:
                content = _mutate_bytes(content, rng)
        except Exception:  # of all kinds, where it is broken already
            content = _mutate_bytes(content, rng)
    return content


def _mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, delete, insert, double or cut off bytes, or swap or double lines."""
    start, n = rng.randrange(len(content) + 1), rng.choice([1, 1, 2, 8, 64])
    before, part, after = content[:start], content[start : start + n], content[start + n :]
    lines = content.splitlines(keepends=True) or [b""]
    some, other = rng.choices(range(len(lines)), k=2)
    way = rng.randrange(9)
    if way == 0:
        return before + bytes(one ^ 1 << rng.randrange(8) for one in part) + after
    if way == 1:
        return before + after
    if way == 2:
        return before + rng.randbytes(n) + part + after
    if way == 3:
        return before + part * rng.choice([2, 3, 100]) + after
    if way == 4:
        return before
    if way == 5:
        lines[some], lines[other] = lines[other], lines[some]
    elif way == 6:
        lines.insert(other, lines[some])
    elif way == 7:
        return content.decode(errors="replace").encode(
            rng.choice(["utf-16", "utf-16-be", "utf-8-sig", "utf-32", "utf-7"])
        )
    else:
        del lines[some]
    return b"".join(lines)


def _mutate_word(text: str, rng: random.Random) -> str:
    """Put an odd value in the place of a word, or before it."""
    words = [*(TOKEN.finditer(text) if TOKEN.search(text) else re.finditer("^", text))]
    word = rng.choice(words)
    odd = rng.choice([*ODD, rng.choice(words)[0]])
    if word[0].startswith('"') and rng.random() < 0.4:
        odd = f'"{odd}"'
    return text[: word.start()] + odd + text[word.start() if rng.random() < 0.1 else word.end() :]


def _mutate_tree(root: Any, rng: random.Random) -> Any:
    """Change one node of lists and dicts: another value, wrapped, gone, doubled, renamed, or far down."""
    holders: list[Any] = [{"root": root}]
    for one in holders:
        values = one.values() if isinstance(one, dict) else one
        holders += [value for value in values if isinstance(value, dict | list)]
    holder: Any = rng.choice([one for one in holders if one])
    key = rng.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
    value, way = holder[key], rng.randrange(9)
    if way < 4:
        holder[key] = rng.choice(VALUES)
    elif way == 4:
        holder[key] = rng.choice([[value], {"a": value}, str(value), [value] * 3])
    elif way == 5 and holder is not holders[0]:
        del holder[key]
    elif way == 6:
        for _ in range(rng.choice([5, 90, 300, 900])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        holder[key] = value
    elif way == 7 and isinstance(holder, dict) and holder is not holders[0]:
        holder[rng.choice(["a" * 3000, "\x1b", "\ud800", "", "0", "id", str(key).upper()])] = holder.pop(key)
    elif isinstance(holder, list):
        holder.append(value)
    return holders[0]["root"]


def _mutate_json(content: bytes, rng: random.Random) -> bytes:
    text = json.dumps(_mutate_tree(json.loads(content), rng))
    return re.sub(r"\b1e400\b", "1e400", text).encode()


def _mutate_jsonl(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    n = rng.randrange(len(lines))
    lines[n] = _mutate_json(lines[n], rng)
    return b"\n".join(lines)


def _mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(_mutate_tree(yaml.safe_load(content), rng)).encode()


def _mutate_xml(content: bytes, rng: random.Random) -> bytes:
    root = ElementTree.fromstring(content)
    one = rng.choice([*root.iter()])
    way = rng.randrange(5)
    if way == 0:
        one.text = str(rng.choice(VALUES)).replace("\ud800", "?")
    elif way == 1:
        one.tag = rng.choice(["object", "bndbox", "name", "annotation", "x"])
    elif way == 2 and len(one):
        one.remove(rng.choice([*one]))
    elif way == 3 and len(one):
        one.append(rng.choice([*one]))
    else:
        for _ in range(rng.choice([1, 50, 400])):
            one = ElementTree.SubElement(one, rng.choice(["object", "a"]))
    return ElementTree.tostring(root)


STRUCTURES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _mutate_json,
    ".jsonl": _mutate_jsonl,
    ".yaml": _mutate_yaml,
    ".xml": _mutate_xml,
}


def _write(folder: Path, texts: dict[str, str], images: str = "") -> dict[Path, bytes]:
    """Write text files, and images of the names in `images`."""
    for name in images.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT)).save(folder / name)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {folder / name: text.encode() for name, text in texts.items()}


def _of_dataset(path: Path, files: dict[Path, bytes]) -> Kind:
    """Make a kind of a data set, whose splits are read in turn."""

    def read(rng: random.Random) -> DetectionDataset:
        errors: list[InputError] = []
        options: dict[str, Any] = {"on_error": errors.append} if rng.random() < 0.5 else {}
        found = open_dataset(path, rng.choice(["train", "val", "all"]), **options)
        assert not [text for text in map(_wrong_error, map(str, errors)) if text]
        return found

    return Kind(path, files, read)


LABELS = "".join(f"{label_line(kind, (3, 4, 50, 40))}\n" for kind in ("Car", "Pedestrian", "Cyclist", "DontCare"))
BOXES, OUTLINES, POSES = (
    "0 .5 .5 .5 .5\n1 0.25 0.25 0.1 0.2\n",
    "0 .1 .1 .5 .1 .5 .5\n1 .2 .2 .8 .2 .8 .9 .1 .8\n",
    "0 .5 .5 .5 .5 .4 .4 2 .6 .6 1\n1 .3 .3 .2 .2 .3 .3 0 .35 .35 2\n",
)
YAML = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: cat\n  1: dog\n"


def write_kitti(folder: Path) -> Kind:
    texts = {f"training/label_2/00000{i}.txt": LABELS for i in range(3)}
    texts |= {"ImageSets/train.txt": "000000\n000001\n", "ImageSets/val.txt": "000002\n"}
    return _of_dataset(folder, _write(folder, texts, " ".join(f"training/image_2/00000{i}.png" for i in range(3))))


def _write_yolo(folder: Path, names: dict[str, str], labels: str) -> Kind:
    texts = {f"labels/{split}/{name}.txt": labels for split in ("train", "val") for name in "ab"}
    return _of_dataset(
        folder, _write(folder, texts | names, "images/train/a.png images/train/b.png images/val/a.png images/val/b.png")
    )


def write_yolo(folder: Path) -> Kind:
    return _write_yolo(folder, {"data.yaml": YAML}, BOXES)


def write_yolo_outlines(folder: Path) -> Kind:
    return _write_yolo(folder, {"data.yaml": YAML}, OUTLINES)


def write_yolo_poses(folder: Path) -> Kind:
    return _write_yolo(folder, {"data.yaml": f"{YAML}kpt_shape: [2, 3]\n"}, POSES)


def write_yolo_lists(folder: Path) -> Kind:
    names = {f"{split}.txt": f"./images/{split}/a.png\nimages/{split}/b.png\n" for split in ("train", "val")}
    return _write_yolo(folder, {"data.yaml": "train: train.txt\nval: [val.txt]\nnames: [cat, dog]\n", **names}, BOXES)


def write_yolo_classes(folder: Path) -> Kind:
    return _write_yolo(folder, {"classes.txt": "cat\ndog\n"}, BOXES)


def write_darknet(folder: Path) -> Kind:
    names = {"obj.data": "classes = 2\ntrain = images/train\nvalid = images/val\nnames = obj.names\nbackup = b\n"}
    return _write_yolo(folder, names | {"obj.names": "cat\ndog\n"}, BOXES)


def write_voc(folder: Path) -> Kind:
    box = "<bndbox><xmin>4</xmin><ymin>5</ymin><xmax>50</xmax><ymax>40</ymax></bndbox>"
    parts = [
        f"<object><name>{name}</name><difficult>{i}</difficult>{box}</object>" for i, name in enumerate(["cat", "dog"])
    ]
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    xml = (
        "<annotation>\n<filename>{}.png</filename>\n"
        + size
        + "\n"
        + "\n".join([*parts, parts[0]])
        + "\n</annotation>\n"
    )
    texts = {f"Annotations/{name}.xml": xml.format(name) for name in "abc"}
    texts |= {"ImageSets/Main/train.txt": "a\nb\n", "ImageSets/Main/val.txt": "c\n"}
    return _of_dataset(folder, _write(folder, texts, "JPEGImages/a.png JPEGImages/b.png JPEGImages/c.png"))


def _coco() -> str:
    """Write annotations of three images."""
    images = [
        {"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for i, name in enumerate("abc", 7)
    ]
    boxes: list[dict[str, Any]] = [
        {
            "id": i,
            "image_id": 7 + i % 3,
            "category_id": 1 + i % 2,
            "bbox": [4, 5, 30.5, 20],
            "area": 610,
            "iscrowd": i // 5,
        }
        for i in range(1, 6)
    ]
    return json.dumps(
        {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    )


def write_coco(folder: Path) -> Kind:
    return _of_dataset(folder, _write(folder, {"coco.json": _coco()}, "images/a.png images/b.png images/c.png"))


def write_coco_results(folder: Path) -> Kind:
    results = [
        {"image_id": 7 + i % 3, "category_id": 1, "bbox": [4, 5, 30, 20], "score": 0.9 - i / 9} for i in range(4)
    ]
    files = _write(folder, {"results.json": json.dumps(results)})
    truth = _write(folder, {"coco.json": _coco()})
    return Kind(folder, files | truth, lambda rng: evaluate_files(folder / "coco.json", folder / "results.json"))


def write_kitti_results(folder: Path) -> Kind:
    _write(folder, {f"label_2/{name}.txt": LABELS for name in "ab"})
    scored = "".join(f"{line} 0.{i}\n" for i, line in enumerate(LABELS.splitlines()[:3], 4))
    files = _write(folder, {f"results/{name}.txt": scored for name in "ab"})
    return Kind(folder, files, lambda rng: evaluate_files(folder / "label_2", folder / "results"))


def write_run(folder: Path) -> Kind:
    settings = {
        "data": "kitti",
        "epochs": 30,
        "lr": 0.1,
        "aspects": [[1, 2]],
        "augment": {"transform": {"transforms": []}},
    }
    config = {"settings": settings, "model": {"name": "lite0", "classes": ["a", "b"]}, "weights": "coco", "extra": [1]}
    rows = "".join(f"{json.dumps(row)}\n" for row in metrics_history(3, 2))
    texts = {f"runs/{name}/config.json": json.dumps(config) for name in "ab"}
    files = _write(folder, texts | {f"runs/{name}/metrics.jsonl": rows for name in "ab"})

    def read(rng: random.Random) -> str:
        table = runs_table(list_runs(folder / "runs"))
        check(table)
        read_run(folder / "runs/a")
        return comparison(compare(folder / "runs/a", folder / "runs/b"))

    return Kind(folder, files, read)


def write_transforms(folder: Path) -> Kind:
    flip = {"__class_fullname__": "HorizontalFlip", "p": 0.5}
    blur = {"__class_fullname__": "Blur", "p": 0.5, "blur_limit": [3, 7]}
    content = {
        "__version__": "2.0.8",
        "transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": [flip, blur], "seed": None},
    }
    files = _write(folder, {"t.json": json.dumps(content), "t.yaml": yaml.dump(content)})
    return Kind(folder, files, lambda rng: str(len(read_transforms(rng.choice([*files])))))


WRITERS = (
    write_kitti,
    write_yolo,
    write_yolo_outlines,
    write_yolo_poses,
    write_yolo_lists,
    write_yolo_classes,
    write_darknet,
    write_voc,
    write_coco,
    write_coco_results,
    write_kitti_results,
    write_run,
    write_transforms,
)
