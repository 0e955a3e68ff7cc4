"""A data set of whatever a path holds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydet.data.coco import CocoDataset
from tinydet.data.coco_file import find_coco
from tinydet.data.index import IndexDataset, find_index
from tinydet.data.kitti import KittiDataset, find_kitti
from tinydet.data.voc import VocDataset, find_voc
from tinydet.data.yolo import YoloDataset, find_yolo
from tinydet.errors import InputError, NotFoundError, OnError, raise_error, try_call
from tinydet.files import PathLike, list_folders

READERS: dict[Any, Any] = {
    find_index: IndexDataset,
    find_kitti: KittiDataset,
    find_yolo: YoloDataset,
    find_voc: VocDataset,
    find_coco: CocoDataset,
}
SIGNS = (
    "no image_2 and label_2 (KITTI), data.yaml or classes.txt (YOLO), XML files (Pascal VOC), JSON (COCO), or "
    "tinydet-index.json (index)"
)


def open_dataset(
    root: PathLike,
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    on_error: OnError = raise_error,
) -> KittiDataset | CocoDataset | YoloDataset | VocDataset | IndexDataset:
    """Open one split of a KITTI, YOLO or Pascal VOC folder, of COCO annotations, or of an index, told by what is there.

    Args:
        root: a folder, a JSON file of COCO's, or a YAML file of YOLO's.
        split: "train", "val" or "all".
        classes: their names, in any case; when None KITTI's three, all that a COCO or YOLO file or an index names, or
            all that Pascal VOC objects have.
        seed: draws the split where the data do not say.
        on_error: called for each line, box or image that is wrong; if it returns, that is left out.

    Raises:
        InputError: it is none of these, or something in it is wrong: names the file, the line and the value.
    """
    root = Path(root)
    if not os.path.exists(root):  # Path's own raises where it is too long
        raise InputError(f"{root}: no such file or folder")
    errors: list[InputError] = []
    for find, reader in READERS.items():
        if (found := try_call(errors.append, find, root)) is not None:
            return reader(found, split, classes=classes, seed=seed, on_error=on_error)
    for error in errors:  # what is there in part says more than what is not there at all
        if not isinstance(error, NotFoundError):
            raise error
    found_in = [one for one in list_folders(root) for find in READERS if try_call(errors.append, find, one) is not None]
    hint = f"; give the path of {found_in[0]}" if found_in else f": {SIGNS}"
    raise InputError(f"{root}: holds no data set itself{hint}")
