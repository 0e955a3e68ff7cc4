"""Checkpoints load as they were saved; any other content is refused in one line, and runs no code."""

import copy
import dataclasses
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tests.checkpoints import assert_same, hollow
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.training.state import restore
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_safetensors, strip
from tinydet.weights.load import describe, load_detector

CONFIG = model_config(
    "lite0", num_channels=8, fpn_repeats=1, head_repeats=1, classes=("Car", "Cyclist"), image_size=(64, 128)
)
KINDS = ("params", "buffers", "ema_params", "ema_buffers")


def training_of_a_run() -> dict[str, Any]:
    """What torch.optim and its schedule have to say after a step, and plain values."""
    layer = nn.Linear(3, 2)
    optimizer = AdamW(layer.parameters(), lr=0.1)
    plateau = ReduceLROnPlateau(optimizer)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    plateau.step(2.0)
    return {
        "optimizer": optimizer.state_dict(),
        "plateau": plateau.state_dict(),
        "step": 7,
        "best": (12.5, -0.25),
        "history": [{"epoch": 1, "metric": "COCO AP", "ap": 12.5, "ap_by_class": {"Car": 20.0, "Cyclist": 5.0}}],
        "settings": {"classes": ("Car", "Cyclist"), "lr": None, "data": "my data"},
        "weights": "a.pth (timm)",
    }


def checkpoint_of_a_run() -> Checkpoint:
    """A checkpoint whose averaged weights are others than the last ones."""
    params, buffers = params_and_buffers(EfficientDet(CONFIG))
    ema_params, ema_buffers = ({name: x + 1 for name, x in tensors.items()} for tensors in (params, buffers))
    return Checkpoint(CONFIG, params, buffers, ema_params, ema_buffers, training_of_a_run())


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """What a small file holds, to be changed in a copy."""
    checkpoint = hollow(CONFIG)
    return {"format": "tinydet-1", **checkpoint._asdict(), "config": dataclasses.asdict(CONFIG)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pt"


def test_a_checkpoint_comes_back_as_it_was(path: Path) -> None:
    saved = checkpoint_of_a_run()
    before = copy.deepcopy(saved)
    save_checkpoint(path, saved)
    assert_same(saved, before)
    assert_same(load_checkpoint(str(path)), saved)
    assert [other.name for other in path.parent.iterdir()] == ["last.pt"]


def test_a_file_is_plain_torch_and_says_what_it_is(path: Path) -> None:
    save_checkpoint(path, hollow(CONFIG))
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"format", *Checkpoint._fields}
    assert content["config"]["classes"] == ("Car", "Cyclist")
    assert content["config"]["image_size"] == (64, 128)


def test_tensors_go_to_the_device(path: Path) -> None:
    save_checkpoint(path, hollow(CONFIG))
    loaded = load_checkpoint(path, device="meta")
    assert all(x.is_meta for kind in KINDS for x in getattr(loaded, kind).values())
    assert not any(x.is_meta for kind in KINDS for x in getattr(load_checkpoint(path), kind).values())


# Without optimizer state


def test_a_stripped_checkpoint_predicts_the_same_at_half_the_size(path: Path) -> None:
    saved, out = checkpoint_of_a_run(), path.with_name("stripped.pt")
    save_checkpoint(path, saved)
    assert strip(path, out) == (path.stat().st_size, out.stat().st_size)
    assert out.stat().st_size < 0.6 * path.stat().st_size  # .3 of a real run's, with the moments of all parameters
    ours, whole = load_detector(out), load_detector(path)
    assert_same((ours.config, ours.params, ours.buffers), (CONFIG, saved.ema_params, saved.ema_buffers))
    assert_same((whole.params, whole.buffers), (saved.ema_params, saved.ema_buffers))
    assert not {"optimizer", "plateau"} & load_checkpoint(out).training.keys()
    file = {"file": "", "bytes": 0, "source": ""}
    assert describe(path) | file == describe(out) | file


def test_a_file_of_safetensors_is_the_same_checkpoint(path: Path) -> None:
    saved, small, safe = checkpoint_of_a_run(), path.with_name("small.pt"), path.with_name("small.safetensors")
    save_checkpoint(path, saved)
    strip(path, small)
    assert strip(path, safe) == (path.stat().st_size, safe.stat().st_size)
    ours, theirs = load_checkpoint(safe), load_checkpoint(small)
    assert (ours.config, sorted(ours.training)) == (CONFIG, sorted(theirs.training))
    for mine, other in zip(ours[1:5], theirs[1:5], strict=True):
        assert_same(dict(sorted(mine.items())), dict(sorted(other.items())))
    file = {"file": "", "bytes": 0, "source": ""}
    assert describe(safe) | file == describe(small) | file
    assert "Car" in safetensors_header(safe)["config"]
    with pytest.raises(InputError, match="it holds no moments"):
        restore(ours)


def safetensors_header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": "{"}, r"not a readable checkpoint \(its header is not JSON: Expecting .*\)$"),
        ({"config": "null"}, "the checkpoint lacks config$"),
        ({"config": '{"wings": 2}'}, "its config does not fit this version of tinydet"),
        ({"training": "[]"}, "the checkpoint lacks training$"),
        ({"format": "tinydet-9"}, r"not a tinydet checkpoint .expected format 'tinydet-1', found 'tinydet-9'"),
    ],
)
def test_a_header_of_safetensors_that_is_none(path: Path, changes: dict[str, str], said: str) -> None:
    safe = path.with_name("last.safetensors")
    save_safetensors(safe, hollow(CONFIG))
    save_file(load_file(safe), safe, safetensors_header(safe) | changes)
    for read in (load_checkpoint, load_detector):
        with pytest.raises(InputError, match=rf"last\.safetensors: {said}") as caught:
            read(safe)
        assert "\n" not in str(caught.value)


def test_only_a_checkpoint_of_tinydet_is_stripped(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"last\.pt: not a tinydet checkpoint"):
        strip(path, path.with_name("stripped.pt"))
    assert not path.with_name("stripped.pt").exists()


def test_what_is_no_json_is_not_written_as_safetensors(path: Path) -> None:
    save_checkpoint(path, hollow(CONFIG, training={"history": [torch.zeros(2)]}))
    with pytest.raises(InputError, match="what training holds cannot be JSON"):
        strip(path, path.with_name("last.safetensors"))
    assert [other.name for other in path.parent.iterdir()] == ["last.pt"]


# Half a file


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [True, False])
def test_a_crash_while_writing_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, there: bool
) -> None:
    if there:
        path.write_bytes(b"the old one")

    def half(content: Any, file: Any) -> None:
        file.write(b"PK half of a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(type(error)):
        save_checkpoint(path, hollow(CONFIG))
    assert {other.name: other.read_bytes() for other in path.parent.iterdir()} == (
        {"last.pt": b"the old one"} if there else {}
    )


def test_the_new_file_replaces_the_old_one_only_when_it_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(path, hollow(CONFIG))
    before, seen = path.read_bytes(), []
    fsync = os.fsync

    def watching(descriptor: int) -> None:
        fsync(descriptor)
        seen.append((path.read_bytes() == before, sorted(other.name for other in path.parent.iterdir())))

    monkeypatch.setattr(os, "fsync", watching)
    save_checkpoint(path, hollow(CONFIG, training={"step": 1}))
    ((untouched, names),) = seen
    assert untouched
    assert len(names) == 2
    assert load_checkpoint(path).training == {"step": 1}


# Other files


def refusal(path: Path) -> str:
    """What is said of a file, after its path."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert len(said.splitlines()) == 1
    assert "weights_only" not in said
    return said.removeprefix(f"{path}: ")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_no_file(path: Path) -> None:
    assert refusal(path) == "No such file or directory"
    path.mkdir()
    assert refusal(path) == "not a regular file"


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\nthere\n", b"(a)Rq.", bytes(range(256)), pickle.dumps({1: 2})])
def test_a_file_that_is_no_archive(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path) == "not a readable checkpoint (truncated, or of another kind)"


def test_a_truncated_file(path: Path) -> None:
    save_checkpoint(path, hollow(CONFIG))
    whole = path.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        assert refusal(path) == "not a readable checkpoint (truncated, or of another kind)"


def test_code_is_refused_not_run(path: Path, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    path.write_bytes(pickle.dumps(trap))
    refusal(path)
    for content in (trap, hollow(CONFIG)._asdict() | {"format": "tinydet-1", "training": trap}):
        torch.save(content, path)
        assert "more than tensors and plain values" in refusal(path)
    assert not trap.folder.exists()
    torch.load(path, weights_only=False)
    assert trap.folder.exists()  # so it would have been


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"model": {"weight": torch.zeros(2)}}, "NoneType"),
        ({"weight": torch.zeros(2, 2)}, "NoneType"),
        ({"format": "tinydet-2"}, "'tinydet-2'"),
        ({"format": torch.zeros(2, 2)}, "Tensor"),
        (torch.zeros(2, 2), "Tensor"),
        ([1, 2], "list"),
        ("two\nlines", r"'two\nlines'"),
    ],
)
def test_a_file_of_another_kind(path: Path, content: Any, found: str) -> None:
    torch.save(content, path)
    assert refusal(path) == f"not a tinydet checkpoint (expected format 'tinydet-1', found {found})"


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of an archive that may be TorchScript's
def test_another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w:document/>")
    assert "not a readable checkpoint" in refusal(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of a pickle protocol that a changed byte claims
def test_whatever_bytes_are_damaged(path: Path, tmp_path: Path) -> None:
    torch.save({"a": [1, 2.5, None, "x"], "b": {"c": torch.zeros(2), "d": torch.ones(3, 2)}, "e": (True, 1)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(parts[pickled])
        for _ in range(rng.choice([1, 1, 2, 5])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(1, len(damaged)) :]
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, bytes(damaged) if name == pickled else part)
        refusal(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_bytes_are_damaged_of_files_before_torch_wrote_archives(path: Path) -> None:
    content = {"a": [1, 2.5, None, "x"], "b": {"c": torch.zeros(2), "d": torch.ones(3, 2)}, "e": (True, 1)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert "expected format" in refusal(path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        refusal(path)


# Files of this kind that do not hold together


def changed(content: dict[str, Any], field: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """A copy of a file's content, one of whose dicts is changed."""
    part = dict(content[field])
    change(part)
    return content | {field: part}


def test_an_unchanged_content_is_good(path: Path, good: dict[str, Any]) -> None:
    torch.save(good, path)
    assert load_checkpoint(path).config == CONFIG


@pytest.mark.parametrize("field", Checkpoint._fields)
@pytest.mark.parametrize("value", [None, torch.zeros(2)])
def test_a_field_that_is_no_dict(path: Path, good: dict[str, Any], field: str, value: Any) -> None:
    torch.save(good | {field: value}, path)
    assert refusal(path) == f"the checkpoint lacks {field}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.update(wings=2), "unexpected keyword argument 'wings'"),
        (lambda config: config.pop("backbone"), "'backbone'"),
        (lambda config: config.update({3: 4}), "string"),
        (lambda config: config.update(backbone="b99"), "backbone must be one of"),
        (lambda config: config.update(image_size=(0, 64)), "image_size must be at least 1, got (0, 64)"),
        (lambda config: config.update(image_size=None), "image_size must be of type tuple[int, int], got None"),
        (lambda config: config.update(num_channels="8"), "num_channels must be of type int, got '8'"),
        (lambda config: config.update(num_channels=8.5), "its config"),
        (lambda config: config.update(num_channels=10**9), "num_channels must be at most 4096, got 1000000000"),
        (lambda config: config.update(image_size=torch.ones(3, 3)), "its config"),
    ],
)
def test_a_config_of_no_model(path: Path, good: dict[str, Any], change: Callable[..., Any], said: str) -> None:
    torch.save(changed(good, "config", change), path)
    line = refusal(path)
    assert line.startswith("its config does not fit this version of tinydet (")
    assert said in line


NAME = "bifpn.top.norm.{}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, name: tensors.pop(name), "no tensor for {} of {}"),
        (lambda tensors, name: tensors.update(more=torch.zeros(2)), "unknown tensor 'more' for {1}"),
        (lambda tensors, name: tensors.update({5: torch.zeros(2), 6: 7}), "unknown tensor 5 (and 1 more) for {1}"),
        (lambda tensors, name: tensors.update({name: torch.zeros(9)}), "{} has shape (9,), not shape (8,) as in {}"),
        (lambda tensors, name: tensors.update({name: torch.zeros(())}), "{} has shape (), not shape (8,) as in {}"),
        (lambda tensors, name: tensors.update({name: [0.0] * 8}), "{} has type list, not shape (8,) as in {}"),
        (lambda tensors, name: tensors.update({name: torch.ones(8).long()}), "{} is of torch.int64, not of floats"),
        (lambda tensors, name: tensors.update({name: torch.full((8,), torch.nan)}), "{} is not finite"),
        (
            lambda tensors, name: tensors.update({name: torch.full((8,), 1e300, dtype=torch.float64)}),
            "{} is not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    path: Path, good: dict[str, Any], kind: str, change: Callable[..., Any], said: str
) -> None:
    name = NAME.format("weight" if "params" in kind else "running_var")
    torch.save(changed(good, kind, lambda tensors: change(tensors, name)), path)
    assert refusal(path) == said.format(repr(name), f"lite0's {kind}")


def test_half_and_double_precision_become_float32(path: Path, good: dict[str, Any]) -> None:
    half = {name: x.half() for name, x in good["params"].items()}
    torch.save(good | {"params": half, "ema_params": {name: x.double() for name, x in half.items()}}, path)
    assert_same(load_checkpoint(path).params, load_checkpoint(path).ema_params)
    assert_same(load_checkpoint(path).params, good["params"])


def test_moments_that_are_not_finite(path: Path, good: dict[str, Any]) -> None:
    torch.save(good | {"training": {"moments": {"mean": {"a": torch.tensor([1.0, torch.inf])}}}}, path)
    assert refusal(path) == "'training.moments.mean.a' is not finite"


def test_classes_decide_shapes(path: Path, good: dict[str, Any]) -> None:
    torch.save(changed(good, "config", lambda config: config.update(classes=("Car", "Cyclist", "Tram"))), path)
    assert "class_net.predict.pointwise" in refusal(path)
