"""The user's own augmentation: transforms of albumentations, in Python or as it writes them to a file."""

import json
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from tinydet.data.augment import box_params, error_line, import_albumentations, transform
from tinydet.errors import InputError, shorten
from tinydet.files import PathLike
from tinydet.reading import check_field, read_json, read_yaml

TRIALS = 10  # of transforms before the first step: most of those fail that fail at all


def own_transforms(transforms: Any, *, size: tuple[int, int] | None = None, where: str = "augment") -> Any:
    """Build a pipeline for `augment` of an albumentations Compose, or of the dict that is saved of it.

    Raises:
        InputError: it is none, or fails on a grey image of `size`, (height, width); `where` begins the message.
    """
    A = import_albumentations()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what albumentations does not know it warns of and leaves out
            warnings.filterwarnings("ignore", "Got processor for bboxes")  # where all transforms are of pixels alone
            made = A.from_dict(transforms) if isinstance(transforms, dict) else transforms
            parts = made.transforms if isinstance(made, A.Compose) else [made]
            pipeline = A.Compose(parts, bbox_params=box_params(), p=made.p)
    except Exception as error:  # of a dozen kinds, of what may be no pipeline at all
        raise InputError(f"{where}: not transforms of albumentations ({_reason(error)})") from error
    if size is not None:
        image, boxes = np.full((*size, 3), 128, np.uint8), np.array([[0, 0, size[1] / 2, size[0] / 2]], np.float32)
        for seed in range(TRIALS):
            pipeline.set_random_seed(seed)
            transform(pipeline, image, boxes, where=where)
    return pipeline


def transforms_to_dict(transforms: Any) -> dict[str, Any]:
    """Convert an albumentations Compose to the plain values that `own_transforms` builds it of again, elsewhere too.

    Raises:
        InputError: it holds what cannot be written, such as a function.
    """
    try:
        plain = json.loads(json.dumps(import_albumentations().to_dict(transforms), default=_enum_value))
    except Exception as error:
        raise InputError(f"augment: transforms that cannot be saved with a run ({_reason(error)})") from error
    own_transforms(plain)
    return plain


def read_transforms(path: PathLike) -> dict[str, Any]:
    """Read transforms that `albumentations.save` wrote as JSON or YAML; only names and numbers, no code, are read."""
    content = (read_yaml if Path(path).suffix.lower() in (".yaml", ".yml") else read_json)(path)
    check_field(content, {"transform": dict}, where=f"{path}: transforms as albumentations.save writes them")
    own_transforms(content, where=str(path))
    return content


def _reason(error: Exception) -> str:
    """Name an error of albumentations, which may tell all that a file holds, in a short line."""
    return shorten(error_line(error), most=200)


def _enum_value(value: Any) -> Any:
    """Get the value of an enum, which JSON does not know."""
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a {type(value).__name__} in it is no plain value")
