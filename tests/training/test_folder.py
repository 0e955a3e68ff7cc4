"""The folder of a run is one process's, loses nothing, and is never ahead of its last checkpoint."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import hollow
from tinydet.errors import InputError
from tinydet.files import LOCK, check_writable
from tinydet.model.config import model_config
from tinydet.training import folder
from tinydet.training.folder import (
    claim_folder,
    link_file,
    load_last,
    new_folder,
    publish,
    read_settings,
    resumed_settings,
)
from tinydet.training.settings import TrainSettings
from tinydet.weights.checkpoint import save_checkpoint

STARTED = TrainSettings("kitti", model="lite0", lr=0.25, classes=("Car",), workers=0)
HOLD = """
import sys, time
from pathlib import Path
from tinydet.training.folder import claim_folder
with claim_folder(Path(sys.argv[1]), resume=True):
    Path(sys.argv[1], "last.pt").touch()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def other_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder, and the process that holds it."""
    out = tmp_path_factory.mktemp("held") / "run"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield out, process
        process.kill()


def test_a_folder_is_one_process_s_until_it_ends(other_process: tuple[Path, subprocess.Popen[str]]) -> None:
    out, process = other_process
    (out / "best.pt.partial").touch()
    (out / "film.partial").touch()
    for resume in (True, False):
        with pytest.raises(InputError, match=rf"run: in use by process {process.pid}; stop that first, or choose"):
            claim_folder(out, resume=resume).__enter__()
    assert (out / "best.pt.partial").exists()
    process.kill()
    process.wait()
    with claim_folder(out, resume=True):
        assert (out / LOCK).read_text() == str(os.getpid())
        assert not (out / "best.pt.partial").exists()
        assert (out / "film.partial").exists()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()  # as a worker that outlives the process that trains
    with claim_folder(out, resume=True):
        child.kill()
        child.join()


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "epoch-3.pt", "metrics.jsonl", "config.json"])
def test_a_folder_that_holds_a_file_of_a_run_is_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=rf"holds a run already \({name}\); resume it, or choose another folder$"):
        claim_folder(tmp_path).__enter__()
    assert [path.name for path in tmp_path.glob("[!.]*")] == [name]


def test_a_folder_without_a_run_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for out in (tmp_path, tmp_path / "new"):
        with claim_folder(out):
            assert (out / LOCK).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with claim_folder(tmp_path / "new"):
        (tmp_path / "new/last.pt").touch()
    assert (tmp_path / "new/last.pt").exists()


def test_a_folder_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"runs: cannot be written \(.*file is a file\)$"):
        check_writable(tmp_path / "file/runs")
    check_writable(tmp_path / "a/b")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"b: cannot be written \(.* is read-only\)$"):
        check_writable(tmp_path / "a/b")


def test_a_new_run_takes_the_first_free_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d0-1", "d0-3", "d1-2"):
        Path("runs", name).mkdir(parents=True)
    assert [new_folder("d0") for _ in range(3)] == [Path(f"runs/d0-{i}") for i in (2, 4, 5)]
    assert Path("runs/d0-5").is_dir()
    Path("runs/d1-1").write_text("a file")
    assert new_folder("d1") == Path("runs/d1-3")


# What is published of a checkpoint


def row(epoch: int, ap: float) -> dict[str, Any]:
    return {"epoch": epoch, "step": 10 * epoch, "ap": ap, "val": {"total": 1.0}}


def test_the_best_epoch_is_a_link_to_the_last(tmp_path: Path) -> None:
    history, texts = list[dict[str, Any]](), []
    for epoch, ap in enumerate((1.0, 3.0, 2.0, 3.0), start=1):
        history = [*history, row(epoch, ap)]
        (tmp_path / "new").write_text(f"epoch {epoch}")
        os.replace(tmp_path / "new", tmp_path / "last.pt")
        for _ in range(2):  # as after a crash
            publish(tmp_path, {"history": history, "settings": {"keep": 3}}, step=10 * epoch)
        texts.append((tmp_path / "best.pt").read_text())
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == epoch
        publish(tmp_path, {"history": history, "settings": {"keep": 1}}, step=10 * epoch + 3)  # in mid-epoch
    assert texts == ["epoch 1", "epoch 2", "epoch 2", "epoch 2"]
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["best.pt", "epoch-3.pt", "last.pt", "metrics.jsonl"]
    assert (tmp_path / "epoch-3.pt").read_text() == "epoch 3"


def test_a_copy_where_the_file_system_knows_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(folder.os, "link", refuse)
    (tmp_path / "last.pt").write_text("new")
    (tmp_path / "best.pt").write_text("old")
    link_file(tmp_path / "last.pt", tmp_path / "best.pt")
    assert (tmp_path / "best.pt").read_text() == "new"
    assert not (tmp_path / "best.pt").samefile(tmp_path / "last.pt")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["best.pt", "last.pt"]


# Going on


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run that started with STARTED."""
    save_settings(tmp_path, dataclasses.asdict(STARTED))
    return tmp_path


def resume(out: Path, given: TrainSettings, *, fixed: Sequence[str]) -> TrainSettings:
    """Read the settings of the run in a folder, and those with which it goes on."""
    return resumed_settings(read_settings(out), given, fixed=fixed, out=out)


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    config = model_config("lite0", classes=("Car",))
    save_checkpoint(folder / "last.pt", hollow(config, training={"settings": settings}))


def test_a_resumed_run_has_the_settings_that_it_started_with(out: Path) -> None:
    given = TrainSettings("kitti", lr=0.25, epochs=3, workers=0)
    faster = dataclasses.replace(given, workers=2, compile=True)
    assert resume(out, faster, fixed=["workers", "compile"]) == dataclasses.replace(STARTED, workers=2, compile=True)
    assert resume(out, given, fixed=["data", "lr"]) == STARTED
    assert resume(out, given, fixed=[]) == STARTED
    moved = dataclasses.replace(given, data="elsewhere", val="there")
    assert resume(out, moved, fixed=["data", "val"]) == dataclasses.replace(STARTED, data="elsewhere", val="there")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 0.5}, "lr 0.25 and cannot go on with 0.5"),
        ({"lr": None}, "lr 0.25 and cannot go on with None"),
        ({"classes": ("Car", "Van")}, r"classes \('Car',\) and cannot go on with \('Car', 'Van'\)"),
        ({"image_size": (64, 64)}, r"image_size None and cannot go on with \(64, 64\)"),
    ],
)
def test_a_resumed_run_cannot_change(out: Path, changes: dict[str, Any], said: str) -> None:
    given = dataclasses.replace(STARTED, **changes)
    with pytest.raises(InputError, match=f": started with {said}; start a new run$") as caught:
        resume(out, given, fixed=["data", "lr", "classes", "image_size"])
    assert str(caught.value).startswith(f"{out}: ")


def test_a_resumed_run_keeps_its_transforms(tmp_path: Path) -> None:
    flip, blur = ({"transform": {"__class_fullname__": name, "p": 1.0}} for name in ("HorizontalFlip", "Blur"))
    started = dataclasses.replace(STARTED, augment=flip)
    save_settings(tmp_path, dataclasses.asdict(started))
    assert resume(tmp_path, STARTED, fixed=["data"]) == started
    assert resume(tmp_path, started, fixed=["augment"]) == started
    with pytest.raises(InputError, match=r"started with other transforms, those in its config\.json; start a new run$"):
        resume(tmp_path, dataclasses.replace(started, augment=blur), fixed=["augment"])


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"last\.pt: No such file"):
        resume(tmp_path, STARTED, fixed=[])


@pytest.mark.parametrize("settings", [None, {"data": "kitti", "wings": 2}, {}])
def test_settings_of_another_version(tmp_path: Path, settings: dict[str, Any] | None) -> None:
    if settings is None:  # weights alone
        save_checkpoint(tmp_path / "last.pt", hollow(model_config("lite0")))
    else:
        save_settings(tmp_path, settings)
    with pytest.raises(InputError, match=r"last\.pt: holds no run that this version can resume \("):
        resume(tmp_path, STARTED, fixed=[])


def save_run(folder: Path, name: str, *, step: int) -> None:
    save_checkpoint(folder / name, hollow(model_config("lite0"), training={"step": step}))


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_run_goes_on_from_the_newest_checkpoint_that_can_be_read(tmp_path: Path, damage: str) -> None:
    for name, step in (
        ("last.pt", 40),
        ("best.pt", 10),
        ("epoch-2.pt", 20),
        ("epoch-3.pt", 30),
        ("failed-step.pt", 39),
    ):
        save_run(tmp_path, name, step=step)
    if damage == "cut":
        os.truncate(tmp_path / "last.pt", 1000)
    else:
        (tmp_path / "last.pt").unlink()
    os.truncate(tmp_path / "epoch-3.pt", 1000)
    with pytest.warns(UserWarning, match=r"last\.pt: .*; goes on from epoch-2\.pt, after step 20$"):
        assert load_last(tmp_path).training["step"] == 20
    assert load_last(tmp_path).training["step"] == 20  # in silence
    kept = ["epoch-3.pt.damaged"] + (["last.pt.damaged"] if damage == "cut" else [])
    assert sorted(path.name for path in tmp_path.glob("*.damaged")) == kept
    for name in ("last.pt", "best.pt", "epoch-2.pt"):
        os.truncate(tmp_path / name, 1000)
    save_checkpoint(tmp_path / "epoch-4.pt", hollow(model_config("lite0")))  # stripped
    with pytest.raises(InputError, match=r"last\.pt: "):
        load_last(tmp_path)
    assert (tmp_path / "last.pt").exists()


def test_a_checkpoint_is_not_damaged_where_the_device_is_missing(tmp_path: Path) -> None:
    for name in ("last.pt", "best.pt"):
        save_run(tmp_path, name, step=40)
    with pytest.raises(InputError, match=r"last\.pt: "):
        load_last(tmp_path, device="cuda:99")
    assert not list(tmp_path.glob("*.damaged"))
