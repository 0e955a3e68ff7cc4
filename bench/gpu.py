"""The rows of a machine with CUDA: rates, and what share of the card's best they are."""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import Result
from bench.rows import Entry, Row

BATCHES = {"d0": {"predict": 32, "train": 16}, "d4": {"predict": 8, "train": 4}}
PASSES = {"predict": 1, "train": 3}
"""Forward; forward and, twice as much, backward."""
PRECISIONS = ("fp32", "bf16")
SIDE = 8192


def gpu_rows() -> list[Row]:
    """None without CUDA."""
    if not torch.cuda.is_available():
        return []
    return [*map(matmul, PRECISIONS), *(row(*each) for each in variants())]


def variants() -> list[tuple[str, str, str, bool]]:
    """Model, case, precision and whether compiled, of each row."""
    return [(m, w, p, c) for m, works in BATCHES.items() for w in works for p in PRECISIONS for c in (False, True)]


def matmul(precision: str) -> Row:
    """What the card can do at its best."""
    about = f"two matrices of {SIDE}x{SIDE}; fp32 is TF32 here and in the rows that follow"
    options = {"device": "cuda", "precision": precision, "size": SIDE}
    entry = Entry("tinydet", "bench.devices:matmul", options)
    return Row(f"GPU matmul, {precision}", about, (entry,), unit="TFLOP/s", pieces=2 * SIDE**3 / 1e12)


def row(model: str, work: str, precision: str, compiled: bool) -> Row:
    """One network at one kind of work."""
    batch = BATCHES[model][work]
    options = {"model": model, "batch": batch, "device": "cuda", "precision": precision, "compiled": compiled}
    if work == "train":
        options["objects"] = 20
    how = f"{precision}, {'compiled' if compiled else 'eager'}"
    return Row(
        f"GPU {work} {model}, {how}",
        f"batches of {batch}; {'steps as above' if work == 'train' else 'pictures on the card to detections'}",
        (Entry("tinydet", f"bench.ours:{work}", options), Entry("effdet", f"bench.of_effdet:{work}", options)),
        unit="pictures/s",
        pieces=batch,
        warmup=5,
        quick_rounds=0 if compiled else 9,
    )


def shares(results: Sequence[Result]) -> list[Result]:
    """What part of the card's matmul rate each rate of pictures is, counting the network's multiplications only."""
    rates = {(one.row, one.contestant): one.median for one in results if one.median is not None}
    found = []
    for model, work, precision, compiled in variants():
        name, best = row(model, work, precision, compiled).name, rates.get((f"GPU matmul, {precision}", "tinydet"))
        for one in results:
            if one.row == name and one.median is not None and best:
                percent = 100 * one.median * PASSES[work] * teraflop(model) / best
                share = Result(f"{name}, share", one.contestant, "%", percent, percent, percent, rounds=1)
                found.append(share)
    return found


def teraflop(model: str) -> float:
    """Of one picture forward: two for each multiplication and addition."""
    from tinydet.model.config import model_config
    from tinydet.model.efficientdet import EfficientDet

    config = model_config(model)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        EfficientDet(config).eval()(torch.empty(1, 3, *config.image_size))
    return counter.get_total_flops() / 1e12
