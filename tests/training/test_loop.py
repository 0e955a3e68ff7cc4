"""A run follows its settings, however often it is stopped, and every file that it writes is whole."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import tinydet.training.loop
import tinydet.training.start
from tests.checkpoints import assert_same
from tests.kitti_folders import label_line, write_kitti
from tinydet.cli.text import run_header
from tinydet.data.augment import import_albumentations
from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.data.kitti import KittiDataset
from tinydet.data.transforms import transforms_to_dict
from tinydet.errors import InputError
from tinydet.evaluation import Scores, Validation
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, Outputs, meta_model
from tinydet.training.autosize import anchor_recall
from tinydet.training.diagnose import data_notes
from tinydet.training.events import Event, Message, Started, Stepped, Stopped, Validated
from tinydet.training.loop import train
from tinydet.training.schedule import cosine
from tinydet.training.settings import TrainSettings
from tinydet.training.state import State
from tinydet.weights.checkpoint import load_checkpoint

# Python 3.12 and 3.13 warn whenever a process with threads forks; a worker takes no lock that another thread may hold.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
TRAIN, STEPS, EPOCHS = 12, 6, 3


class Run(NamedTuple):
    """A run and what it said."""

    out: Path
    events: list[Event]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [event.row for event in self.events if isinstance(event, Validated)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    names = [f"{i:06d}" for i in range(TRAIN + 1)]
    data = write_kitti(tmp_path_factory.mktemp("kitti"), TRAIN + 1, lists={"train": names[:-1], "val": names[-1:]})
    return TrainSettings(
        data=str(data),
        model="lite1",  # the smallest with stochastic depth, whose draws a resumed run must repeat
        weights="none",
        classes=("Car", "Pedestrian"),
        image_size=(64, 128),
        epochs=EPOCHS,
        batch_size=TRAIN // STEPS,
        lr=1e-2,
        seed=1,
        workers=0,
    )


@pytest.fixture(scope="module")
def through(settings: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "through"
    yield Run(out, list(train(settings, out, command="tinydet train 'my data'")))
    shutil.rmtree(out)


@pytest.fixture(scope="module")
def stopped(settings: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same run, stopped by Ctrl-C in the middle of its second epoch; before.json says what was there before it."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    events = train(settings, out)
    for event in events:
        if isinstance(event, Validated):
            before = digests(out)
        if isinstance(event, Stepped) and event.step == STEPS + 2:
            break
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    (out / "before.json").write_text(json.dumps(before))
    yield out
    shutil.rmtree(out)


def digests(folder: Path) -> dict[str, str]:
    """What the files of a folder hold, byte for byte."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("[!.]*"))}


def linked(folder: Path, tmp_path: Path) -> Path:
    """A copy of a run to go on with; its files are never written to, only replaced."""
    return Path(shutil.copytree(folder, tmp_path / "copy", copy_function=os.link))


def strict_rows(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, read as JSON proper, without NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


# What happens


def test_a_run_says_what_happens_as_it_happens(settings: TrainSettings, through: Run) -> None:
    kinds = [type(event) for event in through.events if not isinstance(event, Message)]
    assert kinds == [Started, *([Stepped] * STEPS + [Validated]) * EPOCHS]
    assert [event.step for event in through.events if isinstance(event, Stepped)] == [*range(1, STEPS * EPOCHS + 1)]
    started = through.events[0]
    assert isinstance(started, Started)
    run = started.run
    assert (started.out, run.settings, run.budget.epoch_steps, started.history) == (through.out, settings, STEPS, [])
    assert (run.weights, run.device.type, run.precision) == ("random weights", "cpu", "off")
    assert run.report is not None
    assert (run.report.loaded, len(run.report.missing)) == ((), len(list(meta_model(run.config).state_dict())))
    assert run.config == model_config("lite1", classes=("Car", "Pedestrian"), image_size=(64, 128), anchor_scale=2.0)
    splits = (run.train_set.split_note, run.val_set.split_note)
    assert [split.split(",")[0] for split in splits] == [f"{TRAIN} train images", "1 val images"]
    train_set = KittiDataset(settings.data, "train", classes=settings.classes)
    assert started.recall == anchor_recall(train_set, run.config).by_class


def test_the_loss_falls(through: Run) -> None:
    totals = [row["train"]["total"] for row in through.rows]
    assert totals[-1] < 0.9 * totals[0]


def test_a_row_holds_the_results_of_its_epoch(settings: TrainSettings, through: Run) -> None:
    rows = strict_rows(through.out)
    assert rows == through.rows
    stepped = [event.losses for event in through.events if isinstance(event, Stepped)]
    for i, row in enumerate(rows):
        assert list(row) == [
            *("epoch", "step", "lr", "train", "val", "metric", "ap", "ap_by_class", "COCO", "KITTI", "positives"),
            *("train_seconds", "wait_seconds", "val_seconds"),
        ]
        assert (row["epoch"], row["step"]) == (i + 1, STEPS * (i + 1))
        # A tenth of the run is less than the epoch of warm-up that was asked for.
        factor = cosine((row["step"] - 1) / (STEPS * EPOCHS), warmup=0.1)
        assert row["lr"] == pytest.approx(settings.peak_lr * factor)
        mean = torch.tensor([tuple(losses) for losses in stepped[STEPS * i : STEPS * (i + 1)]]).double().mean(0)
        assert list(row["train"]) == list(row["val"]) == ["total", "classification", "box"]
        assert list(row["train"].values()) == pytest.approx(mean.tolist())
        for kind in ("R40", "R11"):
            assert list(row["KITTI"][kind]) == ["Car", "Pedestrian"]
            assert all(list(levels) == ["easy", "moderate", "hard"] for levels in row["KITTI"][kind].values())
        assert row["metric"] == "Moderate R40"
        moderate = {name: levels["moderate"] for name, levels in row["KITTI"]["R40"].items()}
        assert moderate["Pedestrian"] is None  # the one validation image has none
        assert row["ap_by_class"] == {"Car": moderate["Car"]}
        assert row["ap"] <= max(row["ap_by_class"].values())
        assert len(row["COCO"]) == 13
        assert list(row["COCO"]["per_class"]) == ["Car", "Pedestrian"]
        assert list(row["positives"]) == ["Car", "Pedestrian"]
        assert min(row["positives"].values()) > 0
        assert row["train_seconds"] >= row["wait_seconds"] >= 0
        assert row["val_seconds"] >= 0


def test_last_is_the_last_epoch_and_best_the_best(settings: TrainSettings, through: Run) -> None:
    assert list(digests(through.out)) == ["best.pt", "command.txt", "config.json", "last.pt", "metrics.jsonl"]
    assert (through.out / "command.txt").read_text() == "tinydet train 'my data'\n"
    last, best = (load_checkpoint(through.out / name) for name in ("last.pt", "best.pt"))
    training = last.training
    assert training["history"] == through.rows
    assert training["step"] == STEPS * EPOCHS
    assert TrainSettings(**training["settings"]) == settings
    assert training["moments"]["count"] == STEPS * EPOCHS
    assert training["moments"]["mean"].keys() == last.params.keys()
    assert any(not torch.equal(x, last.ema_params[name]) for name, x in last.params.items())
    assert any(not torch.equal(x, last.ema_buffers[name]) for name, x in last.buffers.items())
    keys = [(row["ap"], -row["val"]["total"]) for row in through.rows]
    assert len(best.training["history"]) - 1 == keys.index(max(keys))
    flags = [event.best for event in through.events if isinstance(event, Validated)]
    assert flags == [key == max(keys[: i + 1]) for i, key in enumerate(keys)]


# Stopped, and going on


def test_ctrl_c_leaves_the_last_whole_epoch(stopped: Path) -> None:
    before = json.loads((stopped / "before.json").read_text())
    assert digests(stopped).items() >= before.items()
    assert sorted(path.name for path in stopped.glob("[!.]*")) == sorted([*before, "before.json"])
    training = load_checkpoint(stopped / "last.pt").training
    assert (training["step"], len(training["history"]), len(strict_rows(stopped))) == (STEPS, 1, 1)


def test_a_run_that_was_stopped_twice_ends_as_if_it_had_not_been(
    settings: TrainSettings, through: Run, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = linked(stopped, tmp_path)

    save = tinydet.training.loop.save

    def full_disk(path: Path, state: State, config: ModelConfig, **training: Any) -> None:
        if len(training["history"]) == EPOCHS:
            raise OSError(28, "No space left on device")
        save(path, state, config, **training)

    with monkeypatch.context() as patch:
        patch.setattr(tinydet.training.loop, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):  # just before the end
            list(train(replace(settings, workers=1), out, resume=True))
    assert len(load_checkpoint(out / "last.pt").training["history"]) == EPOCHS - 1
    events = list(train(settings, out, resume=True))
    said = [event for event in events if not isinstance(event, Message)]
    assert [type(event) for event in said] == [Started, *[Stepped] * STEPS, Validated]
    assert isinstance(said[0], Started)
    assert len(said[0].history) == EPOCHS - 1

    assert_same_run(out, through.out)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_stopped_in_mid_epoch_comes_to_the_same(
    settings: TrainSettings, through: Run, tmp_path: Path, workers: int
) -> None:
    """Stopped in the second epoch, and in the validations of the second and the last."""
    run = replace(settings, workers=workers)
    for number, batches in enumerate((STEPS + 2, STEPS - 1, STEPS + 1)):  # of training and validation
        left = iter([False] * batches)
        events = train(run, tmp_path / "run", resume=number > 0, stop=lambda left=left: next(left, True))  # type: ignore[misc]
        *said, last = events
        steps = [event.step for event in said if isinstance(event, Stepped)]
        assert isinstance(last, Stopped)
        assert load_checkpoint(tmp_path / "run/last.pt").training["step"] == steps[-1]
    list(train(run, tmp_path / "run", resume=True))
    assert_same_run(tmp_path / "run", through.out)


def assert_same_run(out: Path, expected: Path) -> None:
    """Assert that two runs came to the same checkpoints and rows, but for seconds."""
    assert timeless(strict_rows(out)) == timeless(strict_rows(expected))
    for name in ("last.pt", "best.pt"):
        pair = load_checkpoint(out / name), load_checkpoint(expected / name)
        for checkpoint in pair:
            checkpoint.training["history"] = timeless(checkpoint.training["history"])
            checkpoint.training["settings"].pop("workers")
            checkpoint.training.pop("elapsed")
        assert_same(*pair)


def test_a_finished_run_has_nothing_left_to_do(settings: TrainSettings, through: Run) -> None:
    before = digests(through.out)
    started, *others = train(settings, through.out, resume=True)
    assert isinstance(started, Started)
    assert all(isinstance(other, Message) for other in others)
    assert len(started.history) == EPOCHS
    assert f"{EPOCHS} epochs, of which {EPOCHS} are done" in run_header(started)
    assert digests(through.out) == before


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Tram", ": started with the classes Car, Pedestrian, and the data now have Car, Tram; start a new run$"),
        (
            "Car",
            ": started with 12 images with 18 objects to train on and 1 images with 1 objects to validate on, and the "
            "data now are 12 images with 19 objects to train on and 1 images with 1 objects to validate on; start a",
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    settings: TrainSettings, through: Run, tmp_path: Path, kind: str, said: str
) -> None:
    data, before = Path(shutil.copytree(settings.data, tmp_path / "data")), digests(through.out)
    with open(data / "training/label_2/000000.txt", "a") as file:
        print(label_line(kind, (120, 10, 150, 40)), file=file)
    classes = ("Car", "Tram") if kind == "Tram" else settings.classes
    with pytest.raises(InputError, match=said):
        next(train(replace(settings, data=str(data), classes=classes), through.out, resume=True))
    assert digests(through.out) == before


def test_crowded_validation_images_are_noted_at_the_start() -> None:
    few, many = (
        DetectionDataset(
            [
                Frame(
                    "a",
                    Path("a.png"),
                    (100, 100),
                    np.tile(np.array([[9, 9, 60, 60]], np.float32), (n, 1)),
                    np.zeros(n, int),
                )
            ],
            classes=("cat",),
        )
        for n in (1, 101)
    )
    notes = data_notes(few, many, image_size=(320, 320), overfit=True)
    assert any(note.startswith("1 image holds more than 100 objects; COCO's AP counts 100") for note in notes)


def test_some_of_many_images_are_looked_at_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = Frame("a", Path("a.png"), (100, 100), np.array([[9, 9, 60, 60]] * 2, np.float32), np.zeros(2, int))
    many = DetectionDataset([frame._replace(name=str(i)) for i in range(9)], classes=("cat",))
    monkeypatch.setattr("tinydet.training.diagnose.MAX_IMAGES", 3)
    duplicates, looked = data_notes(many, many, image_size=(320, 320), overfit=False)
    assert duplicates.endswith("the same cat again as in a.png, and 2 more; tinydet check names them")
    assert looked == (
        "3 of the 9 training images were looked at for small objects and duplicate boxes, and none for leakage into "
        "val; tinydet check looks at all"
    )


def test_own_transforms_and_a_logger(settings: TrainSettings, tmp_path: Path) -> None:
    A, rows = import_albumentations(), list[dict[str, Any]]()
    own = A.Compose([A.VerticalFlip(p=0.5), A.RandomGamma(p=1)])
    few = replace(settings, epochs=2)
    events = list(train(few, tmp_path, augment=own, on_epoch=rows.append))
    assert rows == [event.row for event in events if isinstance(event, Validated)] == strict_rows(tmp_path)
    assert len(rows) == 2
    saved = TrainSettings(**load_checkpoint(tmp_path / "last.pt").training["settings"])
    assert saved == replace(few, augment=transforms_to_dict(own))
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["augment"] == saved.augment
    started = events[0]
    assert isinstance(started, Started)
    assert "scale jitter 0.6 to 1.2, VerticalFlip, RandomGamma\n" in run_header(started)


def test_a_run_is_not_overwritten(settings: TrainSettings, through: Run) -> None:
    before = digests(through.out)
    with pytest.raises(InputError, match=r"through: holds a run already \(last\.pt\); resume it, or choose"):
        next(train(settings, through.out))
    assert digests(through.out) == before


def test_a_file_is_no_folder_for_a_run(settings: TrainSettings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(InputError, match=rf"^{out}: (File exists|Not a directory)"):
            next(train(settings, out))


def test_there_is_nothing_to_resume(settings: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"last\.pt: No such file"):
        next(train(settings, tmp_path / "none", resume=True))
    assert not (tmp_path / "none").exists()


def test_bad_input_leaves_no_folder(settings: TrainSettings, tmp_path: Path) -> None:
    for changes, said in (
        ({"batch_size": TRAIN + 1}, "batch_size must be at most"),
        ({"classes": ("Car", "Tram")}, "Tram"),
        ({"data": str(tmp_path)}, "image_2"),
    ):
        with pytest.raises(InputError, match=said):
            next(train(replace(settings, **changes), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# A loss that is not finite


def test_a_diverged_step_leaves_the_last_checkpoint(settings: TrainSettings, stopped: Path, tmp_path: Path) -> None:
    out = linked(stopped, tmp_path)
    before = {name: digest for name, digest in digests(out).items() if name != "config.json"}  # whose lr is another
    events = train(replace(settings, lr=1e30), out, resume=True)
    with pytest.raises(
        FloatingPointError,
        match=r"^step \d+: the loss is not finite \(total \S+, .*\) on \d{6}, \d{6}; tinydet train",
    ):
        list(events)
    assert digests(out).items() >= before.items()
    assert {*digests(out)} - {*before} == {"config.json", "failed-step.pt"}


def test_a_diverged_validation_leaves_no_checkpoint(settings: TrainSettings, tmp_path: Path) -> None:
    one_step = replace(settings, model="lite0", lr=1e30, epochs=1, batch_size=TRAIN)
    events = train(one_step, tmp_path)
    assert isinstance(next(events), Started)
    while not isinstance(next(events), Stepped):
        pass
    with pytest.raises(FloatingPointError, match=r"^image 0000\d\d: the network's output is not finite"):
        next(events)
    assert [*digests(tmp_path)] == ["config.json", "last.pt", "metrics.jsonl"]
    assert load_checkpoint(tmp_path / "last.pt").training["step"] == 0


# SGD, the plateau, and the best epoch


def scored(ap: float) -> Scores:
    """Return scores whose primary metric is a number."""
    return Scores({"COCO": {"AP": ap, "AP50": ap, "per_class": {"Car": ap}}})


LOSSES = [5.0, 4.0, 4.5, 4.0, 4.0, 3.99999, 6.0, 3.0]  # of the epochs, as if
MEANS = [1.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.5]
BEST = [True, False, True, True, False, True, False, False]  # more, or as much at less loss


def test_a_loss_that_stalls_lowers_the_learning_rate(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 2 is the last that clearly improves: after four that do not, the sixth, a tenth is left for the others."""
    validate, epoch = tinydet.training.loop.validate, [0]

    def as_if(*args: Any, **kwargs: Any) -> Validation:
        found = validate(*args, **kwargs)
        epoch[0] += 1
        total = torch.tensor(LOSSES[epoch[0] - 1], dtype=torch.float64)
        return found._replace(losses=found.losses._replace(total=total))

    monkeypatch.setattr(tinydet.training.loop, "validate", as_if)
    monkeypatch.setattr(tinydet.training.loop, "evaluate", lambda *_: scored(MEANS[epoch[0] - 1]))
    plateau = replace(
        settings,
        model="lite0",
        optimizer="sgd",
        schedule="plateau",
        lr=0.01,
        epochs=len(LOSSES),
        batch_size=TRAIN,
        image_size=(32, 64),
    )
    rows, best = [], []
    events = train(plateau, tmp_path)
    for event in events:
        if isinstance(event, Validated):
            rows.append(event.row)
            best.append(event.best)
            if len(rows) == 4:  # two epochs into the four
                break
    del events
    for event in train(plateau, tmp_path, resume=True):
        if isinstance(event, Validated):
            rows.append(event.row)
            best.append(event.best)
    assert [row["lr"] for row in rows] == pytest.approx([0.001, *[0.01] * 5, *[0.001] * 2])
    assert best == BEST
    assert len(load_checkpoint(tmp_path / "best.pt").training["history"]) == 6
    last = load_checkpoint(tmp_path / "last.pt")
    assert last.training["moments"]["velocity"].keys() == last.params.keys()
    assert strict_rows(tmp_path) == rows


# By the clock


def test_a_run_of_so_many_minutes(settings: TrainSettings, tmp_path: Path) -> None:
    """Each look at the clock takes a second: about three a step."""
    seconds = itertools.count()
    events = list(train(replace(settings, model="lite0", minutes=2.0), tmp_path, clock=lambda: float(next(seconds))))
    assert 100 <= next(seconds) <= 122
    rows = [event.row for event in events if isinstance(event, Validated)]
    assert len(rows) >= 2
    assert rows[-1]["step"] == max(event.step for event in events if isinstance(event, Stepped)) > STEPS
    assert rows[-1]["lr"] < 0.2 * settings.peak_lr
    assert all(row["step"] % STEPS == 0 for row in rows[:-1])
    assert [row["epoch"] for row in rows] == [-(-row["step"] // STEPS) for row in rows]
    said = list(train(replace(settings, model="lite0", minutes=2.0), tmp_path, resume=True))
    assert not any(isinstance(event, Stepped) for event in said)  # its time is over


# Ends before its time


def test_a_run_that_gets_no_better_ends(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([1.0, 3.0, 2.0, 2.5, 1.0, 5.0, 5.0])
    monkeypatch.setattr(tinydet.training.loop, "evaluate", lambda *_: scored(next(means)))
    short = replace(settings, model="lite0", image_size=(32, 64), batch_size=TRAIN, epochs=7, early_stop=3)
    assert sum(isinstance(event, Validated) for event in train(short, tmp_path)) == 5  # the second was the best
    assert not any(isinstance(event, Stepped) for event in train(short, tmp_path, resume=True))


def test_epochs_are_kept(settings: TrainSettings, tmp_path: Path) -> None:
    short = replace(settings, model="lite0", image_size=(32, 64), batch_size=TRAIN, epochs=4, keep=2)
    list(train(short, tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["best.pt", "epoch-2.pt", "epoch-4.pt", "last.pt"]
    assert load_checkpoint(tmp_path / "epoch-2.pt").training["step"] == 2


# Compiled


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("broken", [False, True])
def test_a_run_that_is_compiled(
    settings: TrainSettings, through: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """Before its first step, or not at all, in which case it comes to the same bits."""

    def backend(graph: Any, inputs: Any) -> Any:
        if broken:
            raise RuntimeError("no such\ninstruction")
        return graph.forward

    compile = torch.nn.Module.compile
    monkeypatch.setattr(EfficientDet, "compile", lambda self, **how: compile(self, backend=backend, **how))
    torch._dynamo.reset()  # what other tests compiled
    events = train(replace(settings, compile=True), tmp_path)
    with torch._dynamo.config.patch(error_on_recompile=True):
        until = list(itertools.takewhile(lambda event: not isinstance(event, Validated), events))
    said = [event.text for event in until if isinstance(event, Message) and "compiled" in event.text]
    assert said[0] == "the network is compiled first, which takes minutes; --minutes begin after it"
    assert [text.endswith("RuntimeError: no such instruction); trains without") for text in said[1:]] == [True] * broken
    losses, expected = (
        [torch.stack(event.losses) for event in each if isinstance(event, Stepped)] for each in (until, through.events)
    )
    assert len(losses) == STEPS
    torch.testing.assert_close(losses[0], expected[0], rtol=1e-3, atol=0)
    assert torch.equal(torch.stack(losses), torch.stack(expected[:STEPS])) == broken


# Memory


def test_memory_that_runs_out_halves_the_batch(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network takes one image at a time and no more."""
    forward = EfficientDet.forward
    seen: list[int] = []

    def small(self: EfficientDet, images: torch.Tensor, draws: torch.Tensor | None = None) -> Outputs:
        if self.training:
            seen.append(len(images))
            if len(images) > 1:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return forward(self, images, draws)

    monkeypatch.setattr(EfficientDet, "forward", small)
    one = replace(settings, model="lite0", image_size=(192, 256), batch_size=4, epochs=1, lr=1e-6)
    events = train(one, tmp_path)
    notes = [event.text for event in events if isinstance(event, Message)]
    assert seen[:7] == [4, 2, 1, 1, 1, 1, 1]
    said = [text for text in notes if text.startswith("out of memory")]
    assert len(said) == 2
    assert "--batch-size 1 --grad-accumulation 4" in said[1]
    training = load_checkpoint(tmp_path / "last.pt").training
    assert (training["step"], training["micro_size"]) == (TRAIN // 4, 1)

    monkeypatch.setattr(EfficientDet, "forward", lambda self, images, _: small(self, images.repeat(2, 1, 1, 1)))
    with pytest.raises(RuntimeError, match="can't allocate"):  # one image is too much
        list(train(one, tmp_path / "other"))


def test_other_errors_are_not_taken_for_it(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: EfficientDet, images: torch.Tensor, draws: torch.Tensor) -> Outputs:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(EfficientDet, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        list(train(replace(settings, model="lite0"), tmp_path))


def test_the_batch_that_memory_holds(settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinydet.training.start, "memory_limit", lambda device: 10**12)
    begun = replace(settings, model="lite0", image_size=(128, 256), batch_size=None, epochs=1, lr=1e-4)
    events = list(train(begun, tmp_path))
    assert isinstance(events[0], Started)
    found = events[0].run.settings
    assert found.batch_size == 1  # of twelve images, so that an epoch has eight steps
    assert found.peak_lr == 1e-4
    assert load_checkpoint(tmp_path / "last.pt").training["settings"]["batch_size"] == 1


# A few images


def test_a_few_images_are_overfitted(tmp_path: Path) -> None:
    data = write_kitti(tmp_path / "kitti", 4, lists={"train": ["000000", "000001"], "val": ["000002", "000003"]})
    for name in ("000000.png", "000001.jpg"):  # something to see: a bright box on a dark ground
        pixels = np.full((60, 200, 3), 40, dtype=np.uint8)
        pixels[15:55, 60:110] = (250, 200, 30)
        Image.fromarray(pixels).save(data / "training/image_2" / name)
        text = label_line("Car", (60, 15, 110, 55))
        (data / "training/label_2" / f"{name[:6]}.txt").write_text(f"{text}\n")
    settings = TrainSettings(
        str(data), classes=("Car",), model="lite0", image_size=(128, 256), overfit=1, workers=0, epochs=1
    )
    events = list(train(settings, tmp_path / "run"))
    rows = [event.row for event in events if isinstance(event, Validated)]
    messages = [event.text for event in events if isinstance(event, Message)]
    assert rows[-1]["COCO"]["AP50"] > 99.9
    assert all(row["COCO"]["AP50"] <= 99.9 for row in rows[:-1])
    assert "KITTI" not in rows[-1]
    assert any("overfit" in text and "1 image" in text for text in messages)


def test_workers_that_a_signal_has_ended_too_end_no_run_in_error(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = list[bool]()

    def ended(*_: Any, **__: Any) -> Any:
        stopped.append(True)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    monkeypatch.setattr(tinydet.training.loop, "validate", ended)
    events = list(train(settings, tmp_path / "run", stop=lambda: bool(stopped)))
    assert [type(event) for event in events[-2:]] == [Stepped, Stopped]
    assert load_checkpoint(tmp_path / "run/last.pt").training["step"] == STEPS
    with pytest.raises(InputError, match="a process died before it loaded an image"):
        list(train(settings, tmp_path / "another", stop=lambda: False))
