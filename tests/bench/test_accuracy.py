"""bin/bench accuracy: its statistics by known values, folds, the file of results, and one real short run."""

import json
import math
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.bench import accuracy
from tests.bench.accuracy import Budget, Part, main, options, plan, whole_epochs
from tests.bench.accuracy_runs import Job, code, collect, detections_of, measure, open_splits, write_fold
from tests.bench.accuracy_stats import mean_and_error, pooled_difference, summarize, t_quantile, table
from tests.bench.runner import Failed
from tests.kitti_folders import write_kitti
from tinydet.convert import convert_data
from tinydet.errors import InputError
from tinydet.evaluation import evaluate


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (10, 2.22814), (30, 2.04227), (1e5, 1.95999)]
)
def test_t_quantiles_are_those_of_the_tables(freedom: float, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, rel=5e-6)


def test_mean_and_standard_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx(math.sqrt(5 / 3) / 2))
    assert mean_and_error([7.0]) == (7.0, None)


def test_the_difference_of_one_set_has_the_paired_t_interval() -> None:
    one = pooled_difference([[1.0, 2.0, 3.0, 4.0, 5.0]])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert one == (3.0, pytest.approx(3 - half), pytest.approx(3 + half))
    assert one.verdict == "gain"
    assert pooled_difference([[-1.0, -2.0, -3.0, -4.0, -5.0]]).verdict == "loss"
    assert pooled_difference([[-1.0, 2.0]]).verdict == "no difference seen"
    assert pooled_difference([[0.0, 0.0]]).verdict == "no difference seen"
    assert pooled_difference([[5.0], [1.0, 2.0]]).verdict == "too few runs"


def test_sets_count_alike_and_keep_variances_of_their_own() -> None:
    quiet, noisy = [1.0, 1.2, 1.1, 0.9], [0.0, 6.0]
    one = pooled_difference([quiet, noisy])
    variances = [1 / 60 / 4, 18 / 2]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 1)
    half = t_quantile(freedom) * math.sqrt(sum(variances)) / 2
    assert one.mean == pytest.approx((1.05 + 3) / 2)
    assert one.high == pytest.approx(one.mean + half)
    assert 1 < freedom < 1.01  # nearly all of the variance is of two runs


def row(name: str, seed: int, variant: str, score: float) -> dict[str, Any]:
    key = {"set": name, "fold": "val", "seed": seed, "variant": variant}
    return {**key, "metric": "COCO AP", "score": score, "ap50": 2 * score}


def test_runs_are_paired_by_set_fold_and_seed() -> None:
    scores = {
        ("a", "default"): [10, 20, 30],
        ("a", "lr=1"): [12, 21, 33],
        ("b", "default"): [5, 5],
        ("b", "lr=1"): [9, 6],
    }
    rows = [row(name, seed, how, value) for (name, how), some in scores.items() for seed, value in enumerate(some)]
    rows = [one for one in rows if (one["set"], one["seed"], one["variant"]) != ("a", 1, "default")]  # which failed
    summary = summarize(rows)
    by_line = {(line.get("set"), line["variant"]): line for line in summary}
    assert by_line["a", "lr=1"]["difference"] == 2.5  # of seeds 0 and 2
    assert by_line["a", "lr=1"]["mean"] == 22
    assert summary[-1]["difference"] == (2.5 + 2.5) / 2
    assert (summary[-1]["sets"], summary[-1]["runs"], summary[-1]["verdict"]) == (2, 4, "no difference seen")
    lines = table(summary).splitlines()
    assert " ".join(lines[1].split()) == "lr=1 3 22.00 ± 6.08 AP50 44.00 ± 12.17 +2.50 (95%: -3.85 to +8.85)"
    assert lines[-1].startswith("pooled, 2 sets")
    assert lines[-1].endswith(": no difference seen")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same seven train and two val images in two formats."""
    folder, names = tmp_path_factory.mktemp("sets"), [f"{i:06d}" for i in range(9)]
    kitti = write_kitti(folder / "kitti", 9, lists={"train": names[:7], "val": names[7:]})
    for kind in ("coco", "voc"):
        convert_data(kitti, folder / kind, to=kind, classes=["Car", "Pedestrian"])
    return {kind: folder / kind for kind in ("coco", "voc")}


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_folds_share_no_image_and_cover_train(kind: str, sets: dict[str, Path], tmp_path: Path) -> None:
    every = open_splits(sets[kind])[0]
    held: list[str] = []
    for fold in range(3):
        train, val = open_splits(write_fold(sets[kind], tmp_path / str(fold), fold=fold, folds=3))
        assert not set(train.paths) & set(val.paths)
        assert {*train.paths, *val.paths} == {str(Path(path).absolute()) for path in every.paths}
        assert (train.classes, len(train.labels) + len(val.labels)) == (every.classes, len(every.labels))
        held += val.paths.tolist()
    assert held == sorted(held)
    assert len(held) == len(every)


def test_a_fold_of_kitti_is_scored_as_kitti_is(tmp_path: Path) -> None:
    lists = {"train": [f"{i:06d}" for i in range(6)], "val": ["000006", "000007"]}
    data = write_kitti(tmp_path / "kitti", 8, lists=lists)
    for i in range(8):
        with open(data / f"training/label_2/{i:06d}.txt", "a") as file:
            file.write("Cyclist 0 0 0 20 10 40 50 1 1 1 1 1 1 1\nPedestrian 0 0 0 60 10 80 50 1 1 1 1 1 1 1\n")
    train, val = open_splits(write_fold(data, tmp_path / "fold", fold=1, folds=3))
    assert (train.names.tolist(), val.names.tolist()) == (
        ["000000", "000001", "000004", "000005"],
        ["000002", "000003"],
    )
    assert evaluate(val, detections_of([], [], val)).metric == "Moderate R40"


def job(seed: int = 0, **others: Any) -> Job:
    key = {"set": "a", "fold": "val", "seed": seed, "variant": "default", "budget": "5 steps", "data": "0"}
    key |= {"threads": 1, "commit": "c", "machine": "one", "versions": {"python": "3"}}
    return Job(key | others, Path("data"), [])


def test_what_the_file_holds_is_not_run_again(tmp_path: Path) -> None:
    results, ran = tmp_path / "results.jsonl", list[Job]()

    def fake(one: Job) -> dict[str, Any]:
        ran.append(one)
        if one.key["seed"] == 2:
            raise Failed("error: no memory")
        return {"metric": "COCO AP", "score": 10.0 + one.key["seed"], "ap50": 50.0, "steps": 5, "seconds": 1.0}

    rows, failures = collect([job(0), job(1), job(2)], results, fake)
    assert [one["score"] for one in rows] == [10, 11]
    assert failures == ["3 of 3: a val 2 default: error: no memory"]
    again, failures = collect([job(1), job(2), job(0), job(1, commit="other"), job(1, threads=2)], results, fake)
    assert [one.key["seed"] for one in ran] == [0, 1, 2, 2, 1, 1]
    assert again == [rows[1], rows[0], rows[1] | {"commit": "other"}, rows[1] | {"threads": 2}]
    assert len(results.read_text().splitlines()) == 4
    results.write_text(results.read_text() + "{}\n")
    with pytest.raises(Exception, match="jsonl:5: no row of a run"):
        collect([job(0)], results, fake)


def test_variants_are_options_of_train() -> None:
    assert options("no_ema") == ["--no-ema"]
    assert options("scale_range=0.5,1.5,lr=2e-3") == ["--scale-range=0.5,1.5", "--lr=2e-3"]
    for text, message in (("learning_rate=1", "No such option"), ("epochs=x", "not a valid integer")):
        with pytest.raises(click.BadParameter, match=message):
            options(text)


def test_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    part = Part("a", "2/3", Path("fold"), 90, "0123", (320, 320))
    variants = {"default": [], "batch_size=8": ["--batch-size=8"]}
    found = [*plan(part, 0, {"threads": 1}, Budget("steps", 100), variants, {"effdet": {"effdet": "0.4.1"}})]
    lengths = [[one for one in job.arguments if "epochs" in one or "steps" in one] for job in found]
    assert lengths == [["--epochs=4"], ["--epochs=8"], ["--steps=92"]]
    assert capsys.readouterr().err.splitlines()[0] == "a, default: 4 epochs of 23 steps, 92 in all"
    assert [job.key["variant"] for job in found] == ["default", "batch_size=8", "effdet"]
    assert found[2].key["versions"] == {"effdet": "0.4.1"}
    by_clock = [*plan(part, 1, {}, Budget("minutes", 2.5), variants, {"effdet": {}})]
    assert [job.arguments[2] for job in by_clock] == ["--minutes=2.5"] * 3
    assert whole_epochs(1, 90, []) == (1, 23)


def test_a_real_run(sets: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["--model=lite0", "--epochs=1", "--size=64x64", "--weights=none", "--workers=0"]
    one = job()._replace(data=write_fold(sets["voc"], tmp_path / "fold", fold=0, folds=3), arguments=arguments)
    one = one._replace(key={**one.key, "commit": code()})
    measured = measure(one, scratch=tmp_path, peer=None)
    assert (measured["metric"], measured["steps"]) == ("COCO AP", 1)
    assert 0 <= measured["score"] <= measured["ap50"] < 100
    with pytest.raises(Failed, match="lr"):
        measure(one._replace(arguments=["--lr=-1"]), scratch=tmp_path, peer=None)
    with pytest.raises(InputError, match="the code was changed"):
        measure(one._replace(key={**one.key, "commit": "older"}), scratch=tmp_path, peer=None)
    assert [path.name for path in tmp_path.iterdir()] == ["fold"]


def test_the_command(sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(one: Job, **_: Any) -> dict[str, Any]:
        score = 10.0 * (1 + one.key["seed"]) + 5 * (one.key["variant"] == "lr=1e-3")
        return {"metric": "COCO AP", "score": score, "ap50": 50.0, "steps": 4, "seconds": 1.0}

    monkeypatch.setattr(accuracy, "measure", fake)
    results, out = tmp_path / "runs/all.jsonl", tmp_path / "all.json"
    command = ["--seeds", "2", "--steps", "4", "--folds", "3", "--try", "lr=1e-3", "--results", str(results)]
    given = [part for kind in ("coco", "voc") for part in ("--sets", str(sets[kind]))]
    done = CliRunner().invoke(main, [*command, *given, "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].endswith("+5.00 (95%: +5.00 to +5.00): gain")
    content = json.loads(out.read_text())
    assert content["runs"] == [*map(json.loads, results.read_text().splitlines())]
    assert [(one["set"], one["fold"], one["seed"], one["variant"]) for one in content["runs"]][:3] == [
        ("coco", "1/3", 0, "default"),
        ("coco", "1/3", 0, "lr=1e-3"),
        ("voc", "1/3", 0, "default"),
    ]
    assert {*os.listdir(results.parent)} <= {"all.jsonl", "all.jsonl.lock"}
    for bad, message in ((["--minutes", "1"], "give one of them"), (given[:2], "two have one name")):
        assert message in CliRunner().invoke(main, [*command, *given, *bad]).output
