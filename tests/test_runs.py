"""All of runs/ is listed, and two runs are compared by their scores and their settings."""

import json
import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydet.errors import InputError
from tinydet.runs import MAX_EPOCHS, Comparison, Run, compare, comparison, list_runs, read_run, runs_table

SETTINGS = {"data": "kitti", "model": None, "image_size": None, "weights": "auto", "epochs": 9, "lr": None, "clip": 9.5}
MODEL = {"name": "lite0", "classes": ["Car", "Tram"], "image_size": [256, 896], "mean": [127 / 255]}


def row(epoch: int, car: float, tram: float, *, loss: float = 1.0) -> dict[str, Any]:
    by_class = {"Car": car, "Tram": tram}
    found = {"epoch": epoch, "metric": "Moderate R40", "ap": (car + tram) / 2, "ap_by_class": by_class}
    return found | {"train": {"total": loss / 2}, "val": {"total": loss}, "train_seconds": 50.0, "val_seconds": 10.0}


ROWS = [row(1, 0.5, 0.25), row(2, 20, 10, loss=0.75), row(3, 40, 20, loss=0.5), row(4, 30, 30, loss=0.6)]


def write_run(
    path: Path, rows: Sequence[dict[str, Any]] = ROWS, *, weights: str = "a.pth", model: Any = None, **settings: Any
) -> Path:
    """The folder of a run as `tinydet train` leaves it."""
    path.mkdir(parents=True)
    config = {"settings": SETTINGS | settings, "model": MODEL | (model or {}), "weights": weights}
    (path / "config.json").write_text(json.dumps(config, indent=2))
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_a_run_is_read(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", lr=0.1)
    run = read_run(str(path))
    assert run == Run(path, SETTINGS | {"lr": 0.1}, MODEL, "a.pth", ROWS)
    assert run.minutes == 4


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, ": not the folder of a run; config.json is missing"),
        ("metrics.jsonl", None, ": no epoch is done; metrics.jsonl is missing"),
        ("metrics.jsonl", b"", "/metrics.jsonl: empty, no epoch is done"),
        ("config.json", b'{\n"settings": oh\n}', "/config.json:2: not JSON (Expecting value, character 13)"),
        ("config.json", b'{"\xff": 1}', "/config.json:1: not UTF-8 text"),
        ("config.json", b'{"settings": {"data": "x"}}', "/config.json: model must be an object, got None"),
        ("config.json", b"[]", "/config.json must be an object, got []"),
        ("config.json", b'{"settings": "ab"}', "/config.json: settings must be an object, got 'ab'"),
    ],
)
def test_broken_folder_is_named(tmp_path: Path, file: str, content: bytes | None, said: str) -> None:
    path = write_run(tmp_path / "a")
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_run(path)
    # The folder is named by two of its parts, a file in it by its folder and its own name.
    where = "a" if said.startswith("/") else "/".join(path.parts[-2:])
    assert str(error.value).startswith(f"{where}{said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"epoch": 3, "st', ": not JSON (Unterminated string starting at, character 14)"),
        ("", ": not JSON (Expecting value, character 1)"),
        ("7", " must be an object, got 7"),
        (json.dumps({k: v for k, v in ROWS[0].items() if k != "val"}), ": val must be an object, got None"),
        (json.dumps(ROWS[0] | {"ap_by_class": [1]}), ": ap_by_class must be an object, got [1]"),
        (json.dumps(ROWS[0] | {"ap": "9"}), ": ap must be a finite number, got '9'"),
        (json.dumps(ROWS[0] | {"ap": float("nan")}), ": ap must be a finite number, got nan"),
    ],
)
def test_a_line_that_does_not_parse_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write_run(tmp_path / "a")
    lines = [*map(json.dumps, ROWS[:2]), line, json.dumps(ROWS[2])]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        read_run(path)
    assert str(error.value).startswith(f"a/metrics.jsonl:3{said}")
    assert "\n" not in str(error.value)


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x: not the folder of a run; there is no such folder$"):
        read_run(tmp_path / "x")
    with pytest.raises(InputError, match="is missing"):
        compare(write_run(tmp_path / "runs" / "a"), tmp_path)
    with pytest.raises(InputError, match=r"x: no such folder$"):
        list_runs(tmp_path / "x")
    (tmp_path / "none").mkdir()
    assert list_runs(tmp_path / "none") == []
    assert len(runs_table([]).splitlines()) == 1


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Five runs: the older of two whole ones, a broken one, an empty one, one that just began."""
    folder = tmp_path / "runs"
    broken = write_run(folder / "broken") / "metrics.jsonl"
    broken.write_text(broken.read_text() + "{")
    write_run(folder / "begun")
    (folder / "begun" / "metrics.jsonl").unlink()
    (folder / "empty").mkdir()
    write_run(folder / "good-1", model={"name": "d0"}, epochs=4)
    write_run(folder / "good-2", ROWS[:1], minutes=30.0, data="/data/kitti")
    (folder / "notes.txt").write_text("no folder, no run")
    for hour, name in enumerate(("good-1", "broken", "begun", "empty", "good-2"), start=1):
        metrics = folder / name / "metrics.jsonl"
        os.utime(metrics if metrics.exists() else folder / name, (3600 * hour, 3600 * hour))
    return folder


def test_runs_are_listed_newest_first_and_none_is_left_out(runs: Path) -> None:
    entries = list_runs(runs)
    assert [entry.name for entry in entries] == ["good-2", "empty", "begun", "broken", "good-1"]
    assert [entry.changed for entry in entries] == [18000, 14400, 10800, 7200, 3600]
    assert [entry.run for entry in entries if isinstance(entry.run, str)] == [
        "not the folder of a run; config.json is missing",
        "no epoch is done; metrics.jsonl is missing",
        "broken/metrics.jsonl:5: not JSON (Expecting property name enclosed in double quotes, character 2)",
    ]
    assert entries[0].run == read_run(runs / "good-2")


def test_the_table_holds_every_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(time, "tzset"):
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
    head, *lines = runs_table(list_runs(runs)).splitlines()
    assert " ".join(head.split()) == "run changed model epochs best mean Car Tram metric minutes data"
    assert [line.split("  ")[0] for line in lines] == ["good-2", "empty", "begun", "broken", "good-1"]
    assert " ".join(lines[4].split()) == "good-1 1970-01-01 01:00 d0 4/4 3 30.0 40.0 20.0 Moderate R40 4 kitti"
    assert lines[3].startswith("broken  1970-01-01 02:00  broken/metrics.jsonl:5: not JSON (")
    for word, cell in (("mean", "30.0"), ("Tram", "20.0")):
        assert head.index(word) + len(word) == lines[4].index(cell) + 4


def with_classes(entry: Any, **ap: float | None) -> Any:
    rows = [one | {"ap_by_class": ap} for one in entry.run.rows]
    return entry._replace(run=entry.run._replace(rows=rows))


def test_classes_of_other_runs_and_undefined_ap_are_a_dash(runs: Path) -> None:
    ours = list_runs(runs)[0]
    lines = runs_table([ours, with_classes(ours, Van=9.0, Tram=None)]).splitlines()
    assert lines[0].split()[6:9] == ["Car", "Tram", "Van"]
    assert [line.split()[8:11] for line in lines[1:]] == [["0.5", "0.2", "-"], ["-", "-", "9.0"]]


def test_many_classes_have_no_columns(runs: Path) -> None:
    text = runs_table([with_classes(list_runs(runs)[0], **{f"class{i}": 1.0 for i in range(90)})])
    assert "class" not in text
    assert max(map(len, text.splitlines())) < 100


def test_settings_that_differ_are_named_with_both_values(tmp_path: Path) -> None:
    only_a: dict[str, Any] = {"lr": 0.1, "out": "x", "command": "tinydet train", "amp": "bf16", "minutes": None}
    a = write_run(tmp_path / "a", weights="imagenet.pth", **only_a)
    b = write_run(tmp_path / "b", data="street", model={"name": "d0", "image_size": [512, 512]}, clip=1.0)
    compared = compare(a, str(b))
    assert (compared.a, compared.b) == (read_run(a), read_run(b))
    assert compared.differences == {
        "data": ("kitti", "street"),
        "model": ("lite0", "d0"),
        "image_size": ([256, 896], [512, 512]),  # as resolved from the settings' None
        "weights": ("imagenet.pth", "a.pth"),
        "lr": (0.1, None),
        "clip": (9.5, 1.0),
        "amp": ("bf16", None),  # of one of them alone
    }


def test_a_comparison_as_text(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", lr=0.1, class_map=[["Tram", "bus"]])
    b = write_run(tmp_path / "b", ROWS[:2], image_size=[256, 896], data="/very/long" * 20, class_map=[])
    text = comparison(compare(a, b))
    lines = text.splitlines()
    assert lines[:4] == [f"A  {a}", f"B  {b}", "", "mean Moderate R40, %"]
    assert max(len(line) for line in lines[2:]) <= 80
    by_epoch = [["epoch", "A", "B"], ["1", "0.4", "0.4"], ["2", "15.0", "15.0"], ["4", "30.0", "-"]]
    assert [line.split() for line in lines[4:8]] == by_epoch
    results = {line[:12].strip(): line[12:].split() for line in lines[8:] if line[:1].isalpha()}
    assert results["best epoch"] == ["3", "of", "4", "2", "of", "2"]
    assert results["Car"] == ["40.0", "20.0"]
    assert results["mean"] == ["30.0", "15.0"]
    assert results["val loss"] == ["0.500", "0.750"]
    assert results["minutes"] == ["4", "2"]
    start = next(i for i, line in enumerate(lines) if line.startswith("setting"))
    table = [line.split() for line in lines[start:]]
    assert table[0] == ["setting", "A", "B"]
    assert table[1][:2] == ["data", "kitti"]
    assert table[1][2].startswith("/very/long/very")
    assert table[1][2].endswith("…")
    assert table[2:] == [["lr", "0.1", "-"], ["class_map", "Tram=bus", "-"]]


def test_runs_of_other_classes_and_no_common_epoch(tmp_path: Path) -> None:
    other = ROWS[3] | {"ap_by_class": {"Van": 2.0}}
    text = comparison(compare(write_run(tmp_path / "a", ROWS[:1]), write_run(tmp_path / "b", [other])))
    cells = [line.split() for line in text.splitlines()]
    assert ["Car", "0.5", "-"] in cells
    assert ["Van", "-", "2.0"] in cells
    assert [line.split() for line in text.splitlines()[5:7]] == [["1", "0.4", "-"], ["4", "-", "30.0"]]
    assert text.endswith("\n\nno setting differs")


def test_some_evenly_spaced_epochs_of_long_runs_are_compared(tmp_path: Path) -> None:
    a, b = (
        write_run(tmp_path / n, [row(e, e, e) for e in range(1, count + 1)]) for n, count in (("a", 300), ("b", 90))
    )
    *both, last = (line.split() for line in comparison(compare(a, b)).splitlines()[5 : 5 + MAX_EPOCHS + 1])
    epochs = [int(cells[0]) for cells in both]
    assert (epochs[0], epochs[-1]) == (1, 90)
    assert {high - low for low, high in pairwise(epochs)} <= {12, 13}
    assert both[0] == ["1", "1.0", "1.0"]
    assert last == ["300", "300.0", "-"]


@given(st.text("ab", min_size=1, max_size=60), st.text("ab", min_size=1, max_size=60))
def test_values_are_cut_where_they_still_differ(one: str, other: str) -> None:
    run = Run(Path("a"), {}, MODEL, "", ROWS)
    _, a, b = comparison(Comparison(run, run, {"weights": (one, other)})).splitlines()[-1].split()
    assert (a == b) == (one == other)
    if max(len(one), len(other)) <= 34:
        assert (a, b) == (one, other)
    assert max(len(a), len(b)) <= 34
