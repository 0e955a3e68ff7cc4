"""Files of torch.save come back as torch.load reads them, or are refused; no damage and no hostile file does harm."""

import io
import os
import random
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.checkpoints import assert_same
from tests.soak.checkpoints import archive_of, flipped, good, held, hostile_checkpoints, saved, whole
from tinydet.errors import InputError
from tinydet.weights.checkpoint import load_checkpoint, read_file
from tinydet.weights.torch_file import MAX_DEPTH, MOST_VALUES, check_pickle, check_values, load_torch_file


def read(data: bytes, **options: Any) -> Any:
    return load_torch_file(io.BufferedReader(io.BytesIO(data)), size=len(data), **options)


def values() -> dict[str, Any]:
    """Tensors of every type and form that torch.save writes, and plain values."""
    types = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    base = torch.arange(48.0)
    tensors = {
        str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in (*types, torch.int8, torch.uint8, torch.bool)
    }
    tensors |= {
        "part": base[3:9],
        "columns": base[24:].view(4, 6).T,
        "steps": base[9:24:5],
        "single": torch.tensor(2.5),
    }
    tensors |= {
        "empty": torch.zeros(0, 3),
        "last": torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    plain = {"a": [1, -2.5, None, "ä\n", True, (), {}], "b": {3: (2**40, -(2**63))}, "inf": float("inf"), "": False}
    return {**tensors, **plain}


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_content_comes_back_as_torch_reads_it(options: dict[str, Any]) -> None:
    data = saved(values(), **options)
    found, expected = read(data), torch.load(io.BytesIO(data), weights_only=True)
    assert_same(found, expected)
    assert [x.stride() for x in found.values() if isinstance(x, torch.Tensor)] == [
        x.stride() for x in expected.values() if isinstance(x, torch.Tensor)
    ]


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_modules_and_other_values_of_training_scripts(options: dict[str, Any]) -> None:
    model, bias = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Parameter(torch.arange(4.0))
    content = OrderedDict(model=model.state_dict(), parameter=bias, size=torch.Size((4, 3, 3, 3)))
    found = read(saved(content | {"dtype": torch.float16, "device": torch.device("cuda", 1)}, **options))
    assert_same(found["model"], model.state_dict())
    assert_same(found["parameter"], bias)
    assert (found["size"], found["dtype"]) == ((4, 3, 3, 3), torch.float16)
    assert found["device"] == torch.device("cuda", 1)


def test_tensors_that_share_memory_share_it() -> None:
    x = torch.arange(6.0)
    found = read(saved({"a": x[:4], "b": x[:4], "c": x[4:]}))
    found["a"][2] = 9
    assert found["b"][2] == 9
    assert found["a"].untyped_storage().data_ptr() == found["c"].untyped_storage().data_ptr()


def test_a_file_of_the_other_byte_order() -> None:
    other = "big" if sys.byteorder == "little" else "little"
    with zipfile.ZipFile(io.BytesIO(saved({"b": torch.tensor([1.0, -2.5])}))) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    numbers = b"".join(parts["archive/data/0"][i : i + 4][::-1] for i in (0, 4))
    found = read(archive_of((parts | {"archive/data/0": numbers, "archive/byteorder": other.encode()}).items()))
    assert found["b"].tolist() == [1.0, -2.5]


def test_a_file_without_crc32_is_read() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(values())
    finally:
        torch.serialization.set_crc32_options(True)
    assert {one.CRC for one in zipfile.ZipFile(io.BytesIO(data)).infolist()} == {0}
    assert_same(read(data), read(saved(values())))


def test_a_flipped_bit_of_any_tensor_is_noticed(tmp_path: Path) -> None:
    path, data, rng = tmp_path / "last.pt", whole(), random.Random(0)
    path.write_bytes(data)
    assert load_checkpoint(path).config.name == "lite0"
    for _ in range(5):
        path.write_bytes(flipped(rng, data, len(data) // 4, 3 * len(data) // 4))
        with pytest.raises(
            InputError, match=r"last\.pt: not a readable checkpoint \(Bad CRC-32 for file '.*/data/\d+'\)$"
        ):
            load_checkpoint(path)


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def test_nesting_and_number_of_values_are_bounded() -> None:
    check_values(nested(MAX_DEPTH))
    for content in (nested(MAX_DEPTH + 1), [[0] * 1000] * (MOST_VALUES // 1000)):
        with pytest.raises(InputError, match=f"it holds too many values, or nested more than {MAX_DEPTH} deep"):
            check_values(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:1].expand(6),
        lambda x: x.as_strided((4, 4), (1, 1)),
        lambda x: x.as_strided((2, 2), (0, 1)),
    ],
)
def test_a_tensor_is_no_larger_than_its_storage(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(InputError, match="has more numbers than its file"):
        read(saved(make(torch.arange(7.0))))


def test_tensors_together_are_no_more_than_their_file() -> None:
    x = torch.arange(10_000.0)
    assert len(read(saved([x, x, x[:0]]))) == 3
    with pytest.raises(InputError, match="more numbers than its file"):
        read(saved([x, x[1:]]))


@pytest.mark.parametrize("count", [MOST_VALUES, MOST_VALUES // 8])
def test_a_pickle_of_too_many_values_is_not_built(count: int) -> None:
    opcodes = b"](" + (b"N" if count == MOST_VALUES else b"]") * count + b"e"
    with pytest.raises(InputError, match=f"it holds more than {MOST_VALUES} values, or"):
        check_pickle(io.BytesIO(b"\x80\x02" + opcodes + b"."))


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    names = ["folder.pt"]
    if os.name == "posix":
        os.mkfifo(tmp_path / "fifo.pt")
        (tmp_path / "zeros.pt").symlink_to("/dev/zero")
        names += ["fifo.pt", "zeros.pt"]
    for name in names:
        with pytest.raises(InputError, match=rf"{name}: not a regular file$"):
            read_file(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of quantised tensors
def test_hostile_files_do_no_harm(tmp_path: Path) -> None:
    """The first of each family; all of them are some 450."""
    found = {(kind, path.name): held(path) for kind, path in hostile_checkpoints(random.Random(0), tmp_path, most=2)}
    assert len(found) > 20
    assert {key: problem for key, problem in found.items() if problem} == {}
    assert not list(tmp_path.iterdir())


def test_what_does_harm_is_told(tmp_path: Path) -> None:
    """A changed number, an error of another type, and code that ran."""
    path = tmp_path / "last.pt"
    path.write_bytes(saved(good() | {"params": {name: x + 1 for name, x in good()["params"].items()}}))
    assert str(held(path)).startswith("other weights: ")
    (tmp_path / "ran").touch()
    assert str(held(path)).endswith("it ran code")
