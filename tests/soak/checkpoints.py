"""Damaged and hostile files of weights, each small, and whether reading one does no harm."""

import dataclasses
import io
import json
import math
import os
import random
import struct
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save as safetensors_of
from torch import Tensor

from tinydet.cli.text import info_lines
from tinydet.errors import InputError
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.weights.checkpoint import FORMAT, load_checkpoint
from tinydet.weights.load import describe

CONFIG = model_config(
    "lite0", num_channels=8, fpn_repeats=1, head_repeats=1, classes=("Car", "Cyclist"), image_size=(64, 128)
)
MOST_SECONDS, MOST_MEGABYTES = 10.0, 300.0  # of the processor, of memory
KINDS = ("params", "buffers", "ema_params", "ema_buffers")
HOLE = "HOLE"  # a text that a file's pickle holds where other opcodes go
RAN = "ran"  # the file that code of a checkpoint would make
Content = dict[str, Any]
Variant = tuple[str, bytes | Callable[[Path], object], str]  # kind, content or what makes the file, suffix


@cache
def good() -> Content:
    """The content of a whole checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params, buffers = params_and_buffers(EfficientDet(CONFIG))
    epoch = {"epoch": 1, "metric": "COCO AP", "ap": 12.5, "ap_by_class": {"Car": 20.0, "Cyclist": 5.0}}
    training = {"history": [epoch], "settings": {"data": "my data"}, "weights": "a.pth (timm)", "moments": {"count": 1}}
    tensors = {"params": params, "buffers": buffers, "ema_params": params, "ema_buffers": buffers}
    return {"format": FORMAT, "config": dataclasses.asdict(CONFIG), **tensors, "training": training}


def held(path: Path) -> str | None:
    """Read a file; say what is wrong: an error that is no InputError of one line, other weights, time, memory, code."""
    before, problems = _reset_peak(), [*_trouble(load_checkpoint, path), *_trouble(_describe, path)]
    if (path.parent / RAN).exists():
        problems.append("it ran code")
    if (megabytes := _peak() - before) > MOST_MEGABYTES:
        problems.append(f"{megabytes:.0f} MB")
    return "; ".join(problems) or None


def _describe(path: Path) -> None:
    info_lines(describe(path))


def _trouble(read: Callable[[Path], Any], path: Path) -> Iterator[str]:
    """Yield what is wrong with one way to read a file."""
    began = time.process_time()
    try:
        found = read(path)
    except InputError as error:
        if len(str(error).splitlines()) != 1 or len(str(error)) > 1000:
            yield f"an error that is not one short line: {str(error)[:200]!r}"
    except Exception as error:
        yield f"{type(error).__name__}: {str(error)[:200]}"
    else:
        if found and zipfile.is_zipfile(path):
            changed = [name for name, x in found.params.items() if not torch.equal(x, good()["params"][name])]
            yield from [f"other weights: {changed[:3]}"] if changed else []
    if (seconds := time.process_time() - began) > MOST_SECONDS:
        yield f"{seconds:.0f} seconds"


def _reset_peak() -> float:
    """Reset the process's peak of memory, where Linux does so, and return it."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """The peak of memory in MB; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


def hostile_checkpoints(rng: random.Random, folder: Path, *, most: int | None = None) -> Iterator[tuple[str, Path]]:
    """Write some 450 files, or the first of each family, one at a time: its kind and path, until the next is due."""
    families = (flips, cuts, archives, pickles, shapes, configs, weights, trainings, legacies, safe_files, no_files)
    for family in families:
        for number, (kind, content, suffix) in enumerate(islice(family(rng), most)):
            path = folder / f"{family.__name__}-{number}{suffix}"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
            yield f"{family.__name__}: {kind}", path
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


# Files and their parts


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@cache
def whole() -> bytes:
    return saved(good())


@cache
def members(hole: bool = False) -> dict[str, bytes]:
    """The members of a whole file, perhaps with a hole in what it holds of training."""
    content = changed("training", history=HOLE) if hole else good()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(parts: Iterable[tuple[str, bytes]], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, part in parts:
            archive.writestr(name, part)
    return file.getvalue()


def pickled(change: Callable[[bytes], bytes], *, hole: bool = False) -> bytes:
    """A file whose pickle is changed, with the right CRC32."""
    parts = members(hole)
    return archive_of((name, change(part) if name.endswith("data.pkl") else part) for name, part in parts.items())


def filled(opcodes: bytes) -> bytes:
    """A file whose history is what these opcodes of a pickle make."""
    text = b"X" + struct.pack("<I", len(HOLE)) + HOLE.encode()
    assert text in members(hole=True)["archive/data.pkl"]
    return pickled(lambda data: data.replace(text, opcodes), hole=True)


def changed(field: str, **changes: Any) -> Content:
    return good() | {field: good()[field] | changes}


def text_of(text: str) -> bytes:
    """The opcode of a text."""
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def put(place: int) -> bytes:
    return b"r" + struct.pack("<I", 10**6 + place)


def get(place: int) -> bytes:
    return b"j" + struct.pack("<I", 10**6 + place)


def flipped(rng: random.Random, data: bytes, low: int, high: int, *, most: int = 1) -> bytes:
    """Flip bits at places from low to high."""
    new = bytearray(data)
    for _ in range(rng.randint(1, most)):
        new[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    return bytes(new)


# Families of files


def flips(rng: random.Random) -> Iterator[Variant]:
    data = whole()
    directory = zipfile.ZipFile(io.BytesIO(data)).start_dir
    for _ in range(25):
        yield "a bit anywhere", flipped(rng, data, 0, len(data)), ".pt"
        yield "bits of the directory", flipped(rng, data, directory, len(data), most=3), ".pt"
    for _ in range(5):
        yield "bits of the pickle", flipped(rng, data, 0, 10_000, most=5), ".pt"
        yield "bits of a pickle of right CRC32", pickled(lambda part: flipped(rng, part, 0, len(part), most=3)), ".pt"


def cuts(rng: random.Random) -> Iterator[Variant]:
    data = whole()
    for _ in range(8):
        yield "truncated", data[: rng.randrange(len(data))], ".pt"
    for size in (0, 1, 3, 4, 14, 22, 100, len(data) - 1):
        yield "truncated", data[:size], ".pt"
    yield "bytes behind it", data + rng.randbytes(50), ".pt"
    yield "bytes before it", rng.randbytes(50) + data, ".pt"
    start = rng.randrange(10_000, len(data) - 10_000)
    yield "a hole", data[:start] + bytes(4096) + data[start + 4096 :], ".pt"
    yield "noise", rng.randbytes(10_000), ".pt"


def archives(rng: random.Random) -> Iterator[Variant]:
    parts, data = members(), whole()
    name, pickle_name = "archive/data/0", "archive/data.pkl"
    bomb = bytes(100_000_000)
    yield "all compressed", archive_of(parts.items(), compression=zipfile.ZIP_DEFLATED), ".pt"
    for member in (name, pickle_name, "archive/byteorder", "archive/bomb"):
        yield "a bomb", archive_of({**parts, member: bomb}.items(), compression=zipfile.ZIP_DEFLATED), ".pt"
    yield "no pickle", archive_of((k, v) for k, v in parts.items() if k != pickle_name), ".pt"
    yield "no storage", archive_of((k, v) for k, v in parts.items() if k != name), ".pt"
    yield "a shorter storage", archive_of((k, v[:-4] if k == name else v) for k, v in parts.items()), ".pt"
    yield "a longer storage", archive_of((k, v + bytes(4) if k == name else v) for k, v in parts.items()), ".pt"
    yield "an unknown byte order", archive_of({**parts, "archive/byteorder": b"middle"}.items()), ".pt"
    yield "a document", archive_of([("word/document.xml", b"<w:document/>")]), ".pt"
    yield "empty", archive_of([]), ".pt"
    directory = zipfile.ZipFile(io.BytesIO(data)).start_dir
    one = data.index(b"PK\1\2", directory)
    length = 46 + sum(struct.unpack("<HHH", data[one + 28 : one + 34]))
    end = data.rindex(b"PK\5\6")
    for copies in (1, 1000):  # the same member often, as overlapping ones
        central = data[directory:].split(b"PK\6\6")[0].split(b"PK\5\6")[0] + copies * data[one : one + length]
        total = len(zipfile.ZipFile(io.BytesIO(data)).infolist()) + copies
        tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, total, total, len(central), directory, 0)
        yield "overlapping members", data[:directory] + central + tail, ".pt"
    for place, value in ((20, 5), (24, 5), (20, 2**31), (24, 2**31), (42, 2**31), (16, 12345)):
        new = bytearray(data)
        new[one + place : one + place + 4] = struct.pack("<I", value)
        yield "a directory that lies", bytes(new), ".pt"
    for place in range(8, end + 22 - end, 4):
        new = bytearray(data)
        new[end + place - 4 : end + place] = rng.randbytes(4)
        yield "an end that lies", bytes(new), ".pt"


def pickles(rng: random.Random) -> Iterator[Variant]:
    mark = f"open({RAN!r}, 'w')"
    for module, name, argument in (
        ("posix", "system", f"touch {RAN}"),
        ("os", "system", f"touch {RAN}"),
        ("builtins", "eval", mark),
        ("builtins", "exec", mark),
        ("builtins", "print", mark),
        ("builtins", "open", RAN),
        ("__builtin__", "eval", mark),
        ("torch", "load", RAN),
        ("tinydet.weights.checkpoint", "load_checkpoint", RAN),
        ("numpy.core.multiarray", "_reconstruct", "a"),
        ("collections", "OrderedDict", "ab"),
        ("torch", "Tensor", "a"),
    ):
        yield f"calls {name}", filled(f"c{module}\n{name}\n".encode() + text_of(argument) + b"\x85R"), ".pt"
    number = b"\x8a\x06" + (10**11).to_bytes(6, "little")
    for whose in (b"cbuiltins\nbytearray\n", b"ctorch\nFloatStorage\n", b"ctorch\nFloatTensor\n"):
        yield "allocates", filled(whose + number + b"\x85R"), ".pt"
    doubling = text_of("a" * 100) + 40 * (text_of("hex") + b"\x86" + put(0) + b"0c_codecs\nencode\n" + get(0) + b"R")
    yield "doubles a text", filled(doubling), ".pt"
    yield "sets attributes", filled(b"ctorch._utils\n_rebuild_parameter\n}" + text_of("a") + b"K\1sb"), ".pt"
    yield "an object", filled(b"ctorch.nn\nParameter\n)\x81"), ".pt"
    yield "a list in itself", filled(b"]" + put(0) + get(0) + b"a"), ".pt"
    yield "a list in itself twice", filled(b"]" + put(0) + b"(" + get(0) + get(0) + b"e"), ".pt"
    yield "a dict in itself", filled(b"}" + put(0) + text_of("a") + get(0) + b"s"), ".pt"
    yield "a dict as its key", filled(b"}" + put(0) + get(0) + get(0) + b"s"), ".pt"
    for depth in (17, 1000, 10_000, 200_000):
        yield "deep lists", filled(b"]" * depth + b"a" * (depth - 1)), ".pt"
        yield "deep dicts", filled((b"}" + text_of("a")) * depth + b"N" + b"s" * depth), ".pt"
        yield "deep tuples as a key", filled(b"})" + b"\x85" * depth + b"Ns"), ".pt"
    for width, depth in ((10, 12), (1000, 5), (2, 40)):
        levels = (b"](" + (get(i - 1) if i else b"N") * width + b"e" + put(i) for i in range(depth))
        yield "the same lists often", filled(b"](" + b"".join(levels) + b"e"), ".pt"
    yield "a million values", filled(b"](" + b"K\0" * 1_000_000 + b"e"), ".pt"
    yield "three million lists", filled(b"](" + b"]" * 3_000_000 + b"e"), ".pt"
    yield "a million dicts", filled(b"](" + b"}" * 1_000_000 + b"e"), ".pt"
    yield "a far place", filled(b"]r\xff\xff\xff\xff"), ".pt"
    yield "a place that is empty", filled(b"j\xff\xff\xff\xff"), ".pt"
    yield "a long text", filled(b"X\xff\xff\xff\xffabc"), ".pt"
    yield "numbers of one hash", filled(_colliding(5000)), ".pt"
    yield "no stop", pickled(lambda part: part[:-1]), ".pt"
    yield "two stops", pickled(lambda part: part + part), ".pt"
    yield "protocol 4", pickled(lambda part: b"\x80\x04\x95" + bytes(8) + part[2:]), ".pt"


def _colliding(count: int) -> bytes:
    items = (b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little", signed=True) + b"N" for i in range(count))
    return b"}(" + b"".join(items) + b"u"


def shapes(rng: random.Random) -> Iterator[Variant]:
    name = "bifpn.top.norm.weight"
    base = torch.cat([good()["params"][name]] * 2)
    for tensor in (
        torch.tensor(0.5).expand(8),
        torch.tensor(0.5).expand(10**12),
        torch.zeros(2).as_strided((8,), (0,)),
        base.as_strided((8,), (1,), 8),
        base.as_strided((8, 8), (1, 1)),
        base.as_strided((10**6, 0), (1, 1)),
        torch.zeros((1,) * 20),
        torch.zeros(0),
    ):
        yield f"{tuple(tensor.shape)[:3]} in {tensor.stride()[:3]}", saved(changed("params", **{name: tensor})), ".pt"
    length = b"J" + struct.pack("<i", 2**31 - 1)
    for old in (b"K\x08t", b"K\x08\x85", b"K\x00K\x08"):  # of a storage, a shape, and what lies before a shape
        for new in (
            old.replace(b"K\x08", length),
            old.replace(b"K\x08", b"K\x07"),
            old.replace(b"K\x08", b"J\xff\xff\xff\xff"),
        ):
            yield "numbers that lie", pickled(_replacing(old, new, rng.randint(1, 3))), ".pt"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n((" + text_of("storage") + b"ctorch\nFloatStorage\n" + text_of("0")
    view += text_of("cpu") + b"K\x20tQ%sK\x20\x85K\x01\x85\x89)tR"
    for offset in (b"K\1", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"N", text_of("a"), b"]"):
        yield "an offset", filled(view % offset), ".pt"


def _replacing(old: bytes, new: bytes, count: int) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new, count)


def configs(rng: random.Random) -> Iterator[Variant]:
    odd: tuple[Any, ...] = (
        10**9,
        -1,
        0,
        math.nan,
        math.inf,
        "x",
        "",
        None,
        True,
        [],
        {},
        10**400,
        (1, 2),
        torch.ones(2),
        [[]],
        1.5,
    )
    for field in dataclasses.fields(ModelConfig):
        for value in rng.sample(odd, 3):
            yield f"{field.name} {str(value)[:10]}", saved(changed("config", **{field.name: value})), ".pt"
    known: list[tuple[str, Any]] = [
        ("image_size", (10**9, 10**9)),
        ("image_size", (math.nan, 64)),
        ("image_size", "64"),
        ("fpn_repeats", 10**6),
        ("head_repeats", 10**6),
        ("num_channels", 10**6),
        ("octaves", 10**6),
        ("levels", list(range(3, 10**5))),
        ("classes", ["a"] * 10**6),
        ("classes", [f"c{i}" for i in range(10**6)]),
        ("classes", [f"c{i}" for i in range(10**5)]),
        ("classes", ["a\x1b[31m", "b"]),
        ("classes", ["a" * 10**6, "b"]),
        ("classes", ["\ud800", "b"]),
        ("classes", [1, 2]),
        ("std", (0.0, 1.0, 1.0)),
        ("mean", (0.5, 0.5)),
        ("wings", 2),
    ]
    for name, value in known:
        yield name, saved(changed("config", **{name: value})), ".pt"
    yield (
        "no backbone",
        saved(good() | {"config": {k: v for k, v in good()["config"].items() if k != "backbone"}}),
        ".pt",
    )
    for key in ("config", *KINDS, "training", "format"):
        yield f"no {key}", saved({k: v for k, v in good().items() if k != key}), ".pt"
        yield f"{key} a list", saved(good() | {key: [1]}), ".pt"


def weights(rng: random.Random) -> Iterator[Variant]:
    def odd(x: Tensor) -> Iterator[tuple[str, Any]]:
        yield "NaN", torch.full_like(x, math.nan)
        yield "one infinite", torch.where(torch.arange(x.numel()).view(x.shape) == 0, math.inf, x)
        yield "half, infinite", torch.full_like(x, math.inf, dtype=torch.float16)
        yield "double beyond float", torch.full_like(x, 1e300, dtype=torch.float64)
        for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8):
            yield str(dtype), x.to(dtype)
        yield "sparse", x.to_sparse()
        yield "quantised", torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
        yield "meta", x.to("meta")
        yield "a list", x.flatten().tolist()
        yield "nothing", None
        yield "another shape", x[..., :-1]
        yield "more axes", x[None]

    for kind in KINDS:
        name = rng.choice([name for name, x in good()[kind].items() if x.ndim > 0])
        for what, value in odd(good()[kind][name]):
            if kind == KINDS[0] or rng.random() < 0.3:
                yield what, saved(changed(kind, **{name: value})), ".pt"
        yield "missing", saved(good() | {kind: {k: v for k, v in good()[kind].items() if k != name}}), ".pt"
        yield "more", saved(changed(kind, more=torch.zeros(2))), ".pt"
        yield "a long name", saved(changed(kind, **{"a" * 10**6: torch.zeros(2)})), ".pt"
        yield "no names", saved(good() | {kind: dict(enumerate(good()[kind].values()))}), ".pt"


def trainings(rng: random.Random) -> Iterator[Variant]:
    row = good()["training"]["history"][0]
    histories: list[Any] = [
        "abc",
        ["abc"],
        [1],
        None,
        {},
        [None],
        [[]],
        5,
        [row | {"ap": "x"}],
        [row | {"ap": None}],
        [row] * 10_000,
    ]
    histories += [[row | {"ap_by_class": value}] for value in (None, [1], {"Car": "x"}, {"Car": None}, {1: 2.0}, "x")]
    histories += [[row | {"ap": value}] for value in (math.nan, math.inf, 10**18, 10**400, True, torch.ones(2))]
    histories += [[row | {"epoch": value}] for value in (None, "x", -1, math.nan)]
    histories += [[row | {"metric": value}] for value in (None, 5, "\x1b[2J", "a" * 10**6)] + [[{"ap": 5.0}]]
    for value in histories:
        yield f"history {str(value)[-30:]}", saved(changed("training", history=value)), ".pt"
    for value in ("abc", [1], None, 5, {"data": 5}, {"data": None}, {"data": ["a"]}, {1: 2}):
        yield f"settings {value}", saved(changed("training", settings=value)), ".pt"
    for value in (5, None, ["a"], "\x1b[2J"):
        yield f"weights {value!r}", saved(changed("training", weights=value)), ".pt"
    for tensor in (torch.tensor(math.nan), torch.zeros(2).to_sparse(), torch.zeros(2).expand(10**9, 2)):
        yield "moments", saved(changed("training", moments={"mean": {"a": tensor}})), ".pt"
    yield "digits", filled(b"L" + b"9" * 400 + b"L\n"), ".pt"
    yield "digits", filled(b"\x8a\xff" + b"\x7f" * 255), ".pt"


def legacies(rng: random.Random) -> Iterator[Variant]:
    data = saved(good(), _use_new_zipfile_serialization=False)
    start = data.index(b"ctorch")
    yield "whole", data, ".pt"
    for _ in range(8):
        yield "truncated", data[: rng.randrange(len(data))], ".pt"
        yield "bits of the pickle", flipped(rng, data, 0, 50_000, most=3), ".pt"
    for old, new in (
        (b"K\x08Nt", b"J\xff\xff\xff\x7fNt"),
        (b"K\x08Nt", b"J\xff\xff\xff\xffNt"),
        (b"K\x08Nt", b"K\x07Nt"),
    ):
        yield "numbers that lie", data[:start] + data[start:].replace(old, new), ".pt"
    last = len(data) - 8 - 4 * len(good()["buffers"]["bifpn.top.norm.running_var"])
    for number in (2**62, -1, 10**9):
        yield "a length that lies", data[:last] + struct.pack("<q", number) + data[last + 8 :], ".pt"


def safe_files(rng: random.Random) -> Iterator[Variant]:
    tensors = {**good()["params"], **good()["buffers"]}
    facts = {"config": good()["config"], "training": good()["training"]}

    def file(
        changes: Mapping[str, str] = MappingProxyType({}), more: Mapping[str, Tensor] = MappingProxyType({})
    ) -> bytes:
        header = {"format": FORMAT} | {name: json.dumps(value) for name, value in facts.items()}
        return safetensors_of({**tensors, **more}, {**header, **changes})

    data = file()
    length = struct.unpack("<Q", data[:8])[0]
    yield "whole", data, ".safetensors"
    for text in (
        "{",
        "null",
        "[]",
        '"x"',
        "[" * 10**5,
        "[" * 500 + "]" * 500,
        '{"a":' * 50 + "1" + "}" * 50,
        "9" * 400,
    ):
        yield f"config {text[:5]}", file({"config": text}), ".safetensors"
        yield f"training {text[:5]}", file({"training": text}), ".safetensors"
    yield (
        "digits",
        file({"training": '{"history": [{"epoch": 1, "metric": "a", "ap": ' + "9" * 5000 + "}]}"}),
        ".safetensors",
    )
    yield "many lists", file({"training": "[" + "[]," * 4_000_000 + "[]]"}), ".safetensors"
    yield "NaN", file({"config": json.dumps(facts["config"] | {"anchor_scale": math.nan})}), ".safetensors"
    name = "bifpn.top.norm.weight"
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn, torch.float16):
        yield str(dtype), file(more={name: tensors[name].to(dtype)}), ".safetensors"
    yield "infinite", file(more={name: tensors[name] / 0}), ".safetensors"
    for number in (0, 1, 2**63, 2**40, length - 1, length + 1, len(data)):
        yield "a header that lies", struct.pack("<Q", number) + data[8:], ".safetensors"
    for header in (
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b"{}",
        b"",
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
    ):
        yield "a header", struct.pack("<Q", len(header)) + header + bytes(4), ".safetensors"
    for _ in range(6):
        yield "bits of the header", flipped(rng, data, 0, length, most=3), ".safetensors"
        yield "truncated", data[: rng.randrange(len(data))], ".safetensors"


def no_files(rng: random.Random) -> Iterator[Variant]:
    for suffix in (".pt", ".safetensors"):
        yield "empty", b"", suffix
        yield "text", b"hello\n", suffix
        yield "a folder", Path.mkdir, suffix
        if os.name == "posix":
            yield "a FIFO", os.mkfifo, suffix
            yield "a link to zeros without end", lambda path: path.symlink_to("/dev/zero"), suffix
            yield "a link to nothing", lambda path: path.symlink_to("nowhere"), suffix
            yield "a link to itself", lambda path: path.symlink_to(path), suffix
