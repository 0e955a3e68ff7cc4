"""What a run of training says as it goes."""

from pathlib import Path
from typing import Any, NamedTuple

from tinydet.model.detect import Detections
from tinydet.ops.losses import Losses
from tinydet.training.start import Run


class Started(NamedTuple):
    """What a run came to, before its first step."""

    out: Path
    run: Run
    coverage: dict[str, float]
    """By class: the share of training objects that some anchor overlaps by at least .5."""
    history: list[dict[str, Any]]
    """The rows of the epochs already done."""


class Stepped(NamedTuple):
    """One step of training."""

    step: int
    losses: Losses


class Validated(NamedTuple):
    """One epoch, trained and validated."""

    row: dict[str, Any]
    """Its line of metrics.jsonl."""
    best: bool
    """Whether `best.pt` is now this epoch's."""
    detections: list[Detections]
    """Of the validation frames in their order, in original pixels, on the CPU."""


class Noted(NamedTuple):
    """Something that the user should know, in one line."""

    text: str


Event = Started | Stepped | Validated | Noted
