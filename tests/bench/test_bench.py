"""bin/bench: a toy row through the runner, each of tinydet's cases once at a small size, and one real row."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.runner import ROOT, Entry, Failed, Result, Row, Worker, measure


def toy(*, seconds: float = 0.0, fault: str = "") -> Callable[[], object]:
    """A case that takes a while, or goes wrong."""
    print("a library that prints")

    def call() -> None:
        time.sleep(seconds)
        if fault == "raise":
            raise ValueError("one\n  and two")
        if fault == "import":
            __import__("no_such_package")
        if fault == "die":
            os._exit(3)

    return call


def entry(implementation: str, variant: str = "", **options: Any) -> Entry:
    return Entry(implementation, "tests.bench.test_bench:toy", options, variant, worker="tinydet")


def test_implementations_take_turns_and_the_fastest_variant_counts(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry("tinydet", seconds=0.05), entry("effdet", "slow", seconds=0.1), entry("effdet", "fast")]
    faulty = [entry("torchvision", fault="raise"), entry("torch", fault="import"), Entry("peer", "a:b", {})]
    row = Row("toys", "", [*entries, *faulty], rounds=9, warmup=1, peak=True)
    ours, effdet, *others, memory, _, _ = measure(row, None, threads=1, timeout=0)
    assert (ours.row, ours.implementation, ours.unit, ours.rounds) == ("toys", "tinydet", "ms", 3)  # of 9: out of time
    assert ours.low is not None
    assert ours.median is not None
    assert ours.high is not None
    assert 50 <= ours.low <= ours.median <= ours.high
    assert (effdet.rounds, effdet.note) == (3, "fast")
    assert [(one.median, one.note) for one in others] == [
        (None, "ValueError: one and two"),
        (None, "ModuleNotFoundError: No module named 'no_such_package'"),
        (None, "not measured: no --peers PYTHON was given"),
    ]
    assert (memory.row, memory.implementation, memory.unit) == ("toys, peak memory", "tinydet", "GB")
    assert capsys.readouterr().err.startswith("toys: preparing tinydet, effdet slow, effdet fast, torchvision, torch,")


@pytest.mark.parametrize(
    ("options", "message"), [({"fault": "die"}, "died with status 3"), ({"seconds": 60.0}, r"no answer in 0\.5 s")]
)
def test_a_worker_that_dies_or_hangs_is_given_up(options: dict[str, Any], message: str) -> None:
    worker = Worker(sys.executable, threads=1)
    worker.ask(do="prepare", key="0", case="tests.bench.test_bench:toy", options=options)
    with pytest.raises(Failed, match=message):
        worker.ask(do="time", key="0", timeout=0.5 if "seconds" in options else 20.0)
    assert worker.process.poll() is not None
    worker.stop()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "scenes"
    subprocess.run([sys.executable, ROOT / "bin/scenes", folder, "--train", "4", "--val", "1"], check=True)
    return folder


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("predict", {"model": "lite0"}),
        ("train", {"model": "lite0", "batch": 1, "objects": 2}),
        ("post_process", {"method": "hard"}),
        ("post_process", {"method": "soft"}),
        ("loss", {"batch": 1, "objects": 2}),
        ("assign", {"batch": 1, "objects": 2}),
        ("kitti_evaluation", {"frames": 3}),
        ("coco_evaluation", {"frames": 3}),
        ("training_input", {"size": (64, 96), "images": 4}),
        ("predict_folder", {"model": "lite0", "images": 1}),
        ("bare_network", {"images": 1}),
    ],
)
def test_each_case_of_ours_runs(case: str, options: dict[str, Any], scenes: Path) -> None:
    from tests.bench import ours
    from tests.bench.rows import rows

    if case in ("training_input", "predict_folder"):
        options = options | {"folder": str(scenes)}
    if case == "predict_folder":
        options = options | {"out": str(scenes.parent / "out")}
    assert getattr(ours, case)(**options)() is not None or case == "train"
    planned = {entry.case for row in rows(scenes) for entry in row.entries if entry.implementation == "tinydet"}
    assert case == "bare_network" or f"tests.bench.ours:{case}" in planned


def test_inputs_are_those_of_the_model() -> None:
    from tests.bench import inputs
    from tinydet.model.config import model_config
    from tinydet.model.postprocess import model_anchors

    assert len(model_anchors(model_config("d0"))) == inputs.ANCHORS
    _, deltas = inputs.network_outputs(1)
    maps = [grid.permute(0, 2, 3, 1).reshape(1, -1, 4) for grid in inputs.by_level(deltas)]
    assert all(part.equal(of) for part, of in zip(maps, deltas.split([part.shape[1] for part in maps], 1), strict=True))


def test_rows_are_chosen_by_name_or_by_how_it_begins(tmp_path: Path) -> None:
    from tests.bench.rows import choose, rows

    plan = rows(tmp_path)
    names = [row.name for row in choose(plan, ["post", "predict"], quick=False)]
    assert names == ["predict", *(f"post-processing, {how}" for how in ("hard", "soft", "voting"))]
    slow = {row.name for row in plan} - {row.name for row in choose(plan, [], quick=True)}
    assert slow == {"compiled predict", "exported", "8 bits"}
    with pytest.raises(ValueError, match="no row begins with 'nothing'; rows: predict, "):
        choose(plan, ["nothing"], quick=True)


def test_the_table() -> None:
    from tests.bench.__main__ import table

    results = [
        Result("predict", "tinydet", "ms", 100.4, 99.0, 101.25, 9),
        Result("predict", "effdet", "ms", 200.8, 190.0, 210.0, 9, "channels_last"),
        Result("predict", "torchvision", "ms", note="ValueError: no"),
    ]
    assert table(results, [Row("predict", "an image", [])]).splitlines() == [
        "predict: an image",
        "    tinydet           100 (99..101) ms",
        "    effdet            201 (190..210) ms             x 0.50   channels_last",
        "    torchvision       -                                      ValueError: no",
    ]


def test_one_real_row_without_peers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "assignment of 20", "--quick", "--threads", "1"]
    done = subprocess.run([*command, "--json", tmp_path / "figures.json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "assignment of 20: batch 4" in done.stdout
    ours, *others = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert (ours["implementation"], ours["unit"], ours["median"] > 0) == ("tinydet", "ms", True)
    assert {one["note"] for one in others} == {"not measured: no --peers PYTHON was given"}
