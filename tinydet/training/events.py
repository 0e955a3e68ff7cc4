"""What happens in a run, for who follows it."""

from pathlib import Path
from typing import Any, NamedTuple

from tinydet.model.postprocess import Detections
from tinydet.ops.losses import Losses
from tinydet.training.start import Run


class Started(NamedTuple):
    """The beginning of a run, before its first step."""

    out: Path
    run: Run
    recall: dict[str, float]  # by class: share of training objects that an anchor overlaps with an IoU of .5 or more
    history: list[dict[str, Any]]  # of the epochs already done
    step: int  # steps already done


class Stepped(NamedTuple):
    """One step of training."""

    step: int
    losses: Losses


class Validated(NamedTuple):
    """One epoch, trained and validated."""

    row: dict[str, Any]  # of metrics.jsonl
    best: bool  # whether `best.pt` is now this epoch's
    detections: list[Detections]  # of each validation image, in original pixels, on the CPU


class Message(NamedTuple):
    """Something that the user should know, in one line."""

    text: str


class Stopped(NamedTuple):
    """The end of a run that was asked to stop."""


Event = Started | Stepped | Validated | Message | Stopped
