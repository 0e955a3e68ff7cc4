"""A data set of whatever a path holds."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from tinydet.data.coco import CocoDataset, find_coco
from tinydet.data.kitti import KittiDataset, find_kitti
from tinydet.data.yolo import YoloDataset, find_yolo
from tinydet.errors import InputError, Report, stop

READERS = ((find_kitti, KittiDataset), (find_yolo, YoloDataset), (find_coco, CocoDataset))


def open_dataset(
    root: str | PathLike[str],
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    report: Report = stop,
) -> KittiDataset | CocoDataset | YoloDataset:
    """One split of a KITTI folder, a YOLO folder or COCO annotations, told by what is there.

    Args:
        root: a folder, a JSON file of COCO's, or a YAML file of YOLO's.
        split: "train", "val" or "all".
        classes: their names; KITTI's three, or all that a COCO or YOLO file names, when None.
        seed: draws the split where the data do not say.
        report: of each line, box or picture that is wrong; if it returns, that is left out.

    Raises:
        InputError: it is none of the three: says what was looked for. Or it is one, and something in it is wrong: names
            the file, the line and the value.
    """
    if not Path(root).exists():
        raise InputError(f"{root}: no such file or folder")
    looked = []
    for find, reader in READERS:
        try:
            find(root)
        except InputError as error:
            looked.append(str(error).removeprefix(f"{root}: "))
            continue
        return reader(root, split, classes=classes, seed=seed, report=report)
    raise InputError(f"{root}: neither KITTI, YOLO nor COCO: {'; '.join(looked)}")
