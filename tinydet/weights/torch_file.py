"""Read what torch.save wrote: tensors and plain values, in time and memory that the size of the file bounds.

torch.load(weights_only=True) runs no code of a file either, but a few bytes make it allocate without bound
(bytearray(10**11) is among what it calls), flipped bits pass unnoticed, and older releases believe what a file says of
the length of its storages. Here the opcodes of a pickle that call and that set attributes are replaced before it is
read. Reference: docs.pytorch.org/docs/stable/notes/serialization.html, torch.serialization, pickletools.
"""

import io
import pickle
import pickletools
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from torch import Tensor

from tinydet.errors import InputError

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin
MORE = "it holds more than tensors and plain values, or is damaged"
MOST_MEMBERS = 2**16  # of an archive: as many storages
MOST_VALUES = (
    2**21
)  # of a file, and opcodes of its pickle: enough for D7x and 2000 epochs with the scores of 90 classes
MOST_OBJECTS = 2**18  # dicts, lists and tensors among them
MAX_DEPTH = 16  # of nested values: the transforms of a run's settings reach ten
MAX_DIMS = 8

# What torch.save writes of dicts, lists, tuples, numbers, texts and tensors.
OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BININT", "BININT1"),
    *("BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPUT", "LONG_BINPUT", "BINGET"),
    "LONG_BINGET",
}
# And of what is called, with which arguments; of attributes, such as the versions of a state dict's modules; of dicts,
# whose keys could be tuples so deep that their hash overflows the stack.
REPLACED = {
    "REDUCE": pickle.TUPLE2 + pickle.BINPERSID,
    "BUILD": pickle.POP,
    "EMPTY_DICT": b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.TUPLE2 + pickle.BINPERSID,
}
OBJECTS = {*REPLACED, "EMPTY_LIST", "GLOBAL", "BINPERSID"}
_TYPES = {"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16}
_TYPES |= {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8}
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in {**_TYPES, "Bool": torch.bool}.items()}
REBUILDS = {f"torch._utils._rebuild_{name}" for name in ("tensor_v2", "parameter", "parameter_with_state")}
NAMES = {*STORAGES, *REBUILDS, "collections.OrderedDict", "torch.Size", "torch.device"}
NAMES |= {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}  # read as their names


class _Storage(NamedTuple):
    """A run of numbers in the file, of the length that the pickle states; before torch 1.6 perhaps a part of it."""

    key: str
    dtype: torch.dtype
    whole: int
    start: int
    length: int


class _View(NamedTuple):
    """A tensor whose storage is not read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Name(str):
    """A global that a pickle names."""

    __slots__ = ()


class _Dict(dict[Any, Any]):
    """A dict whose keys are texts or numbers."""

    __slots__ = ()

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, (str, int, float)):
            raise pickle.UnpicklingError(f"a key of type {type(key).__name__}")
        super().__setitem__(key, value)


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists and tuples of plain values and `_View`; what is not constant in time is left for later."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.dtypes: dict[str, torch.dtype] = {}  # of storages

    def find_class(self, module: str, name: str) -> _Name:
        if f"{module}.{name}" not in NAMES:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _Name(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Return what a pickle calls, a pair of a name and arguments, or refers to, a storage."""
        match pid:
            case ("collections.OrderedDict", ()):
                return _Dict()
            case ("torch._utils._rebuild_tensor_v2", (_Storage(), int(), tuple(), tuple(), *_)) if len(pid[1]) < 9:
                return _View(*pid[1][:4])
            case (
                "torch.Size" | "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                tuple(args),
            ):
                return args[0]
            case ("torch.device", tuple(args)):
                return args
            case ("storage", _Name(), str(), _, int(), *_) if len(pid) < 7:
                _, kind, key, _, whole, *views = pid
                self.dtypes[key] = STORAGES[kind]
                start, length = views[0][1:3] if any(views) else (0, whole)
                if type(start) is type(length) is int:
                    return _Storage(key, STORAGES[kind], whole, start, length)
        raise pickle.UnpicklingError("what it calls is not what torch.save writes")


def load_torch_file(file: io.BufferedReader, *, size: int, device: torch.device | str = "cpu") -> Any:
    """Read a file of torch.save: a zip archive, or what torch wrote before 1.6.

    Args:
        file: open at its beginning.
        size: its length in bytes, which the tensors together do not exceed.
        device: where the tensors go.

    Returns:
        Plain values and dense tensors in dicts, lists and tuples; tensors that share memory in the file share it here.

    Raises:
        InputError: the file is damaged, or holds something else. A changed byte of a tensor is noticed by the CRC32 of
            its member of the archive, which files of torch before 1.6, or written without CRC32, lack.
        Exception: of many types, where damaged bytes mean nothing.
    """
    legacy = file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
    file.seek(0)
    if legacy:
        content, storages, order = _read_legacy(io.BytesIO(file.read()))
        return _resolve(content, storages, swapped=order != sys.byteorder, device=device)
    if not is_zipfile(file):
        raise InputError("truncated, or of another kind")
    members = _read_archive(file, size=size)
    root = next((name.removesuffix("data.pkl") for name in members if name.endswith("data.pkl")), None)
    if root is None:
        raise InputError("an archive, but none that torch.save wrote: there is no data.pkl")
    content, _ = _unpickle(io.BytesIO(_buffer(members[f"{root}data.pkl"])))
    order = bytes(_buffer(members[f"{root}byteorder"])).decode() if f"{root}byteorder" in members else "little"
    data = f"{root}data/"
    storages = {name.removeprefix(data): member for name, member in members.items() if name.startswith(data)}
    return _resolve(content, storages, swapped=order != sys.byteorder, device=device)


def _read_archive(file: io.BufferedReader, *, size: int) -> dict[str, Tensor]:
    """Read the members of an archive, as bytes, by name; check that they are whole, and no more than the file."""
    with ZipFile(file) as archive:
        infos = archive.infolist()
    if any(info.compress_type != ZIP_STORED or info.file_size != info.compress_size for info in infos):
        raise InputError("a compressed archive, as torch.save writes none")
    if len({info.filename for info in infos}) < len(infos) or sum(info.file_size for info in infos) > size:
        raise InputError("damaged: the members of its archive overlap")
    if len(infos) > MOST_MEMBERS:
        raise InputError(f"an archive of more than {MOST_MEMBERS} members")
    members = {}
    for info in infos:
        file.seek(info.header_offset)
        header = file.read(30)
        file.seek(sum(struct.unpack("<HH", header[26:])), io.SEEK_CUR)
        member = torch.empty(info.file_size, dtype=torch.uint8)
        whole = header.startswith(b"PK\3\4") and file.readinto(_buffer(member)) == info.file_size
        if not whole or (info.CRC and zlib.crc32(_buffer(member)) != info.CRC):
            raise InputError(f"damaged: the bytes of its member {info.filename} do not have their CRC32")
        members[info.filename] = member
    return members


def _read_legacy(file: io.BytesIO) -> tuple[Any, dict[str, Tensor], str]:
    """Read a file of torch before 1.6: its content, its storages by key, as bytes, and its byte order."""
    file.seek(len(LEGACY_MAGIC))
    (_, _), (system, _), (content, dtypes), (keys, _) = (_unpickle(file) for _ in range(4))
    storages = {}
    for key in keys:
        nbytes = struct.unpack("<q", file.read(8))[0] * dtypes[key].itemsize
        if not 0 <= nbytes <= len(file.getbuffer()) - file.tell():
            raise InputError("truncated, or damaged")
        storages[key] = torch.empty(nbytes, dtype=torch.uint8)
        file.readinto(_buffer(storages[key]))
    return content, storages, "little" if system["little_endian"] else "big"


def _buffer(member: Tensor) -> memoryview:
    """Return the memory of bytes."""
    return memoryview(member.numpy())  # type: ignore[arg-type]


def _unpickle(file: io.BytesIO) -> tuple[Any, dict[str, torch.dtype]]:
    """Read one pickle: its content, and the types of its storages by key."""
    data, start, safe, objects = file.getbuffer(), file.tell(), io.BytesIO(), 0
    for count, (opcode, arg, place) in enumerate(pickletools.genops(file)):
        number = arg if isinstance(arg, int) else 0
        objects += opcode.name in OBJECTS
        if opcode.name in REPLACED:
            safe.write(data[start:place])
            safe.write(REPLACED[opcode.name])
            start = (place or 0) + 1
        elif opcode.name not in OPCODES:
            raise InputError(f"{MORE}: {opcode.name}")
        if count == MOST_VALUES or objects > MOST_OBJECTS or (opcode.name == "LONG_BINPUT" and number > MOST_VALUES):
            raise InputError(f"it holds more than {MOST_VALUES} values, or {MOST_OBJECTS} dicts, lists and tensors")
        if abs(number) >= 2**64:  # any number of these may have the same hash
            raise InputError("it holds a number of more than 64 bits")
    safe.write(data[start : file.tell()])
    safe.seek(0)
    unpickler = _Unpickler(safe)
    try:
        return unpickler.load(), unpickler.dtypes
    except pickle.UnpicklingError as error:
        raise InputError(f"{MORE}: {error}") from None


def _resolve(content: Any, storages: Mapping[str, Tensor], *, swapped: bool, device: torch.device | str) -> Any:
    """Return the content as a tree, with tensors in place of `_View`."""
    free = sum(member.numel() for member in storages.values())  # bytes
    loaded: dict[tuple[str, torch.dtype], Tensor] = {}
    tensors: dict[_View, Tensor] = {}

    def flat(storage: _Storage) -> Tensor:
        key, dtype, whole, start, length = storage
        if key not in storages:
            raise InputError(f"damaged: its storage {key} is missing")
        if (key, dtype) not in loaded:
            member = storages[key].view(-1, dtype.itemsize).flip(1).flatten() if swapped else storages[key]
            loaded[key, dtype] = member.view(dtype).to(device)
        numbers = loaded[key, dtype]
        if len(numbers) != whole or not 0 <= start <= start + length <= whole:
            raise InputError(f"its storage {key} holds {len(numbers)} numbers, not {max(whole, start + length)}")
        return numbers[start : start + length]

    def dense(view: Any) -> Tensor:
        nonlocal free
        if not isinstance(view, _View):
            raise InputError(f"{MORE}: {type(view).__name__}")
        _, offset, size, stride = view
        if len(size) > MAX_DIMS or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
            raise InputError("a tensor's shape is not what torch.save writes")
        if view not in tensors:
            numbers, count = flat(view.storage), prod(size)
            steps = [(n - 1) * step for n, step in zip(size, stride, strict=True) if n > 1]
            free -= count * numbers.itemsize
            if not all(steps) or free < 0 or (count and offset + sum(steps) >= len(numbers)):
                raise InputError(f"a tensor of shape {size} and strides {stride} has more numbers than its storage")
            tensors[view] = numbers.as_strided(size, stride, numbers.storage_offset() + offset)
        return tensors[view]

    return plain_tree(content, leaf=dense)


def _refuse(value: object) -> None:
    raise InputError(f"{MORE}: {type(value).__name__}")


def plain_tree(content: Any, *, leaf: Callable[[Any], Any] = _refuse) -> Any:
    """Copy nested dicts, lists and tuples of plain values; values of other types become what `leaf` returns.

    Raises:
        InputError: they are nested more than `MAX_DEPTH` deep, or hold themselves; or they hold more than
            `MOST_VALUES`, of which each counts as often as it is met.
    """
    left = MOST_VALUES

    def tree(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise InputError(f"it holds more than {MOST_VALUES} values, or nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {key: tree(one, depth + 1) for key, one in value.items()}
        if type(value) in (list, tuple):
            return type(value)([tree(one, depth + 1) for one in value])
        if value is None or isinstance(value, (float, str)) or (isinstance(value, int) and abs(value) < 2**64):
            return str(value) if isinstance(value, _Name) else value
        return leaf(value)

    return tree(content, 0)
