"""bin/bench: the protocol with toy contestants, what the table says, and one real row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import inputs, report
from bench.contestants import Failed, Missing, ask, environment, staff, start, stop
from bench.gpu import gpu_rows, row, shares, teraflop
from bench.measure import Result, measure
from bench.rows import Entry, Row, chosen, rows, shortened
from tinydet.model.config import model_config
from tinydet.model.detect import model_anchors

ROOT = Path(__file__).resolve().parents[1]
TOY = "tests.bench_toy:toy"
RESULTS = [
    Result("predict", "tinydet", "ms", 100.4, 99.0, 101.25, 9),
    Result("predict", "effdet", "ms", 200.8, 190.0, 210.0, 9, note="channels_last"),
    Result("predict", "torchvision", "ms", status="failed", note="ValueError: no"),
    Result("folder", "tinydet", "pictures/s", 6.0, 5.9, 6.1, 9),
    Result("folder", "the network alone", "pictures/s", 8.0, 7.9, 8.1, 9),
    Result("folder", "effdet", "pictures/s", status="not installed", note="no --peers PYTHON was given"),
]


@pytest.fixture
def hire():
    with staff(None, threads=1) as hire:
        yield hire


def prepare(worker, **options):
    return ask(worker, {"prepare": "toy", "case": TOY, "options": options}, timeout=60)


def row_of(*entries: Entry, **settings) -> Row:
    return Row("toys", "toys", entries, **{"rounds": 3, "warmup": 1, **settings})


def entry(contestant: str, way: str = "", **options) -> Entry:
    return Entry(contestant, TOY, options, way=way, worker="tinydet")


# The protocol


def test_a_worker_prepares_times_and_forgets(hire):
    worker = hire("tinydet")
    assert 0 <= prepare(worker) < 60
    assert 0 <= ask(worker, {"time": "toy"}, timeout=10) < 1
    assert prepare(worker, seconds=0.25) >= 0
    assert ask(worker, {"time": "toy"}, timeout=10) == 0.25
    assert ask(worker, {"peak": None}, timeout=10) >= 0
    assert ask(worker, {"forget": None}, timeout=10) is None
    with pytest.raises(Failed, match="KeyError"):
        ask(worker, {"time": "toy"}, timeout=10)
    assert hire("tinydet") is worker


@pytest.mark.parametrize(
    ("says", "error", "message"),
    [
        ("raise", Failed, "ValueError: one and two"),
        ("import", Missing, "No module named 'no_such_package'"),
        ("die", Failed, "died with status 3: what it died of"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(hire, says, error, message):
    worker = hire("tinydet")
    prepare(worker, says=says)
    with pytest.raises(error) as caught:
        ask(worker, {"time": "toy"}, timeout=10)
    assert str(caught.value) == message


def test_a_worker_that_hangs_is_given_up_and_replaced(hire):
    worker = hire("tinydet")
    prepare(worker, says="hang")
    with pytest.raises(Failed, match=r"no answer in 0\.2 s"):
        ask(worker, {"time": "toy"}, timeout=0.2)
    assert worker.process.poll() is not None
    assert hire("tinydet") is not worker


def test_a_python_that_is_none_is_missing():
    with pytest.raises(Missing, match="/no/python: No such file"):
        start("/no/python", environment=environment(1))


def test_workers_end_with_the_context_and_with_their_parent():
    with staff(None, threads=1) as hire:
        worker = hire("tinydet")
        assert worker.process.poll() is None
    assert worker.process.poll() is not None
    orphan = start(sys.executable, environment=environment(1))
    assert orphan.process.stdin is not None
    orphan.process.stdin.close()  # as when the parent is killed
    assert orphan.process.wait(timeout=30) == 0
    stop(orphan)


# Measuring


def test_contestants_take_turns_and_the_fastest_way_counts(hire):
    toys = row_of(
        entry("tinydet", seconds=0.3), entry("effdet", "slow", seconds=0.2), entry("effdet", "fast", seconds=0.1)
    )
    said: list[str] = []
    found = measure(toys, hire, patience=60, say=said.append)
    assert [one._replace(median=round(one.median or 0), low=None, high=None) for one in found] == [
        Result("toys", "tinydet", "ms", 300, None, None, 3),
        Result("toys", "effdet", "ms", 100, None, None, 3, note="fast"),
    ]
    assert "".join(said).startswith("toys: preparing tinydet, effdet slow, effdet fast, in turns.... ")
    (rate,) = measure(row_of(entry("tinydet", seconds=0.5), unit="pictures/s", pieces=8), hire, patience=0, say=print)
    assert (rate.median, rate.low, rate.high, rate.rounds) == (16, 16, 16, 3)


def test_a_contestant_that_fails_leaves_the_others_alone(hire):
    toys = row_of(entry("tinydet", seconds=0.3), entry("effdet", says="raise"), entry("torchvision", says="import"))
    ours, effdet, torchvision = measure(toys._replace(peak=True), hire, patience=60, say=print)[:3]
    assert ours.rounds == 3
    assert (effdet.median, effdet.status, effdet.note) == (None, "failed", "ValueError: one and two")
    assert (torchvision.status, torchvision.note) == ("not installed", "No module named 'no_such_package'")


def test_a_row_that_takes_too_long_has_three_rounds(hire):
    (found,) = measure(row_of(entry("tinydet"), rounds=9), hire, patience=0, say=print)
    assert found.rounds == 3


def test_peak_memory_is_a_row(hire):
    found = measure(row_of(entry("tinydet"), peak=True), hire, patience=60, say=print)
    assert [(one.row, one.unit) for one in found] == [("toys", "ms"), ("toys, peak memory", "GB")]


# The rows


def test_rows_are_chosen_by_name_or_by_how_it_begins(tmp_path):
    plan = rows(tmp_path)
    assert [one.name for one in chosen(plan, ["post", "predict"])] == [
        *("predict", "post-processing, hard", "post-processing, soft")
    ]
    assert chosen(plan, []) == plan
    with pytest.raises(ValueError, match="no row begins with 'nothing'; rows: predict, "):
        chosen(plan, ["nothing"])


def test_quick_rows_have_at_least_nine_rounds_unless_they_are_long(tmp_path):
    long = {one.name for one in shortened(rows(tmp_path)) if one.rounds < 9}
    assert long == {"training step", "folder of pictures", "import"}
    assert all(one.rounds >= 9 for one in rows(tmp_path))
    compiled = chosen(rows(tmp_path), ["compiled"])
    assert (len(compiled), len(shortened(compiled)), len(shortened(compiled, named=True))) == (1, 0, 1)


def test_every_case_of_ours_is_there(tmp_path):
    for one in [*rows(tmp_path), row("d0", "train", "bf16", True), row("d4", "predict", "fp32", False)]:
        module, name = one.entries[0].case.split(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_inputs_are_those_of_the_model():
    logits, deltas = inputs.network_outputs(1)
    anchors = model_anchors(model_config("d0"))
    assert (logits.shape, deltas.shape) == ((1, len(anchors), 90), (1, len(anchors), 4))
    maps = inputs.by_level(deltas)
    assert [tuple(one.shape[1:]) for one in maps] == [(36, side, side) for side in inputs.SIDES]
    assert torch.equal(torch.cat([one.permute(0, 2, 3, 1).reshape(1, -1, 4) for one in maps], 1), deltas)


def test_the_network_counts_as_many_operations_as_the_paper_says():
    # EfficientDet table 1 counts a multiplication and its addition once.
    assert teraflop("d0") == pytest.approx(2 * 2.5e-3, rel=0.02)
    assert teraflop("d4") == pytest.approx(2 * 55e-3, rel=0.02)


def test_the_share_of_a_card_is_of_the_same_precision():
    rates = [Result(f"GPU matmul, {p}", "tinydet", "TFLOP/s", r, r, r, 9) for p, r in (("fp32", 100), ("bf16", 200))]
    train = Result("GPU train d0, bf16, eager", "effdet", "pictures/s", 1000, 900, 1100, 9)
    (share,) = shares([*rates, train])
    assert share[:3] == ("GPU train d0, bf16, eager, share", "effdet", "%")
    assert share.median == pytest.approx(100 * 1000 * 3 * teraflop("d0") / 200)
    assert bool(gpu_rows()) == torch.cuda.is_available()


# The report


def test_the_table():
    assert report.table(RESULTS).splitlines() == [
        "                     tinydet        effdet                 torchvision  ONNX Runtime",
        "predict  ms          100 (99..101)  201 (190..210) x 0.50  failed       -",
        "folder   pictures/s  6 (5.9..6.1)   not installed          -            -",
    ]


def test_the_remarks():
    full = [Row("predict", "a picture", (Entry("effdet", "a:b", way="odd", thorough=True),)), Row("folder", "many", ())]
    text = report.remarks(RESULTS, shortened(full)[:1], full)
    assert text.splitlines() == [
        "predict: a picture; 9 rounds",
        "    without --quick 15 rounds, and effdet odd",
        "    effdet: channels_last",
        "    torchvision: ValueError: no",
        "folder: many; 9 rounds",
        "    left out by --quick",
        "    the network alone: 8 (7.9..8.1) x 0.75 pictures/s",
        "effdet is not installed: no --peers PYTHON was given",
    ]


# The command


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_one_real_row_without_peers(tmp_path):
    file = tmp_path / "figures.json"
    done = bench("assignment of 20", "--quick", "--threads", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("assignment of 20: preparing tinydet, effdet, torchvision, in turns")
    assert "effdet is not installed: no --peers PYTHON was given" in done.stdout
    content = json.loads(file.read_text())
    ours, *others = content["results"]
    assert 0 < ours["low"] <= ours["median"] <= ours["high"]
    assert (ours["row"], ours["contestant"], ours["unit"], ours["rounds"]) == ("assignment of 20", "tinydet", "ms", 9)
    assert [one["status"] for one in others] == ["not installed"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--peers", "/no/python"], "/no/python: no such Python"), (["nothing"], "no row begins with 'nothing'")],
)
def test_what_makes_no_sense_is_refused_at_once(arguments, message):
    done = bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
