"""Read what torch.save wrote: with torch.load, after a look at the archive and at the pickle in it.

torch.load(weights_only=True) runs no code of a file either. But a few bytes can have it allocate without bound
(bytearray(10**12) is among what it calls) or compare keys for hours, and it does not see flipped bits. Reference:
docs.pytorch.org/docs/stable/notes/serialization.html, pickletools.
"""

import io
import pickle
import pickletools
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from torch import Tensor

from tinydet.errors import InputError

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin
LEGACY_PICKLES = 4  # of such a file, after that: protocol, system, content, keys of its storages
MORE = "it holds more than tensors and plain values, or is damaged"
MOST_VALUES = 2**21  # of a small file, and opcodes of its pickle; of a larger one a quarter of its bytes
MAX_DEPTH = 16  # of nested values: the transforms of a run's settings reach ten
CHUNK = 2**24  # bytes that are read at once

# The opcodes that torch.save writes, by how many values they take from the stack besides those above a mark.
OPCODES = (
    "PROTO MARK GLOBAL NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING "
    "EMPTY_TUPLE EMPTY_LIST EMPTY_DICT BINGET LONG_BINGET TUPLE",
    "STOP BINPUT LONG_BINPUT TUPLE1 BINPERSID APPENDS SETITEMS",
    "TUPLE2 APPEND REDUCE BUILD",
    "TUPLE3 SETITEM",
)
TAKES = {name: count for count, names in enumerate(OPCODES) for name in names.split()}
MARKED = ("TUPLE", "APPENDS", "SETITEMS")
KINDS = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ORDERED_DICT = "collections OrderedDict"
CALLED = {f"torch {kind}Storage" for kind in KINDS} | {ORDERED_DICT, "torch Size", "torch device"}
CALLED |= {f"torch._utils _rebuild_{name}" for name in ("tensor_v2", "parameter", "parameter_with_state")}
CALLED |= {str(value).replace(".", " ") for value in vars(torch).values() if isinstance(value, torch.dtype)}
FLAT = CALLED | {"value"}  # what a tuple holds whose hash is taken


def load_torch_file(file: io.BufferedReader, *, size: int, device: torch.device | str = "cpu") -> Any:
    """Read a file of torch.save: a zip archive, or what torch wrote before 1.6.

    Args:
        file: open at its beginning.
        size: its length in bytes, which the tensors together do not exceed.
        device: where the tensors go.

    Returns:
        Plain values and dense tensors in dicts, lists and tuples.

    Raises:
        InputError: the file is damaged, or holds something else. A flipped bit is noticed by the CRC32 of its member of
            the archive, which files of torch before 1.6, or written without CRC32, lack.
        Exception: of many types, where damaged bytes mean nothing.
    """
    legacy = file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
    if not legacy and not is_zipfile(file):
        raise InputError("truncated, or of another kind")
    for pickled in [file] * LEGACY_PICKLES if legacy else [io.BytesIO(check_archive(file, size=size))]:
        check_pickle(pickled, most=max(MOST_VALUES, size // 4))
    file.seek(0)
    try:
        content = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:  # its text advises weights_only=False, which would run whatever code is in there
        raise InputError(MORE) from None
    check_values(content, size=size)
    return content


def check_archive(file: IO[bytes], *, size: int) -> bytes:
    """Check that the members of an archive are whole, and no more than the file; return the pickle among them.

    Raises:
        InputError: one is compressed or lies upon another, or there is no pickle.
        BadZipFile: the archive is damaged, or a member does not have its CRC32.
    """
    with ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != ZIP_STORED for member in members.values()):
            raise InputError("a compressed archive, as torch.save writes none")
        total = sum(member.file_size for member in members.values())
        if total > size or len(members) < len(archive.infolist()) or archive.comment:
            raise InputError("damaged: the members of its archive overlap")
        for member in members.values():
            member.CRC = member.CRC or None  # type: ignore[assignment]  # 0 where torch was told to write none
            with archive.open(member) as content:
                while content.read(CHUNK):
                    pass
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"an archive, but none that torch.save wrote: it has {len(pickles)} files data.pkl")
        return archive.read(pickles[0])


def check_pickle(file: IO[bytes], *, most: int = MOST_VALUES) -> None:
    """Check a pickle before it is read: what it builds, and what it calls.

    Raises:
        InputError: it has other opcodes than `TAKES`, or more than `most`; calls something else than `CALLED`;
            or has keys that are neither texts nor numbers, a few of which can take hours to compare.
        Exception: of many types, where its bytes mean nothing.
    """
    stack, marks, memo = list[str](), list[int](), dict[Any, str]()  # of values: their kinds, or what is called
    objects = 0
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if name not in TAKES or (name == "GLOBAL" and arg not in CALLED):
            raise InputError(f"{MORE}: {str(arg).replace(' ', '.') if name == 'GLOBAL' else name}")
        objects += name in ("EMPTY_LIST", "EMPTY_DICT", "REDUCE")
        if count == most or objects > most // 8:
            raise InputError(f"it holds more than {most} values, or {most // 8} dicts, lists and tensors")
        if isinstance(arg, int) and abs(arg) >= 2**64:  # any number of these may have the same hash
            raise InputError("it holds a number of more than 64 bits")
        first = (marks.pop() if name in MARKED else len(stack)) - TAKES[name]
        items = stack[first:]
        del stack[first:]
        match name, items:
            case "MARK", _:
                marks.append(len(stack))
            case "PROTO" | "STOP", _:
                pass
            case "BINPUT" | "LONG_BINPUT", [kind]:
                memo[arg] = kind
                stack.append(kind)
            case "BINGET" | "LONG_BINGET", _:
                stack.append(memo[arg])
            case "GLOBAL", _:
                stack.append(str(arg))
            case "EMPTY_TUPLE", _:
                stack.append("empty")
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3", _:
                stack.append("flat" if FLAT.issuperset(items) else "nested")
            case "EMPTY_LIST" | "EMPTY_DICT" | "APPEND" | "APPENDS" | "BUILD", _:
                stack.append("nested")
            case "SETITEM" | "SETITEMS", [_, *pairs] if {*pairs[::2]} <= {"value"}:
                stack.append("nested")
            case "REDUCE", [called, args] if called in CALLED and (called != ORDERED_DICT or args == "empty"):
                stack.append("nested")
            case "BINPERSID", ["flat"]:
                stack.append("nested")
            case _, []:
                stack.append("value")
            case _:
                raise InputError(f"{MORE}: {name}")


def check_values(content: Any, *, size: int = 0) -> None:
    """Check that nested values are plain ones and dense tensors, which together are no larger than a file.

    Raises:
        InputError: they are something else; more than `MOST_VALUES` and a quarter of the bytes, each counted as often
            as it is met; or nested more than `MAX_DEPTH` deep, as those that hold themselves are.
    """
    seen, left = set[Any](), max(MOST_VALUES, size // 4)

    def check(value: Any, depth: int) -> None:
        nonlocal left, size
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise InputError(f"it holds too many values, or nested more than {MAX_DEPTH} deep")
        if isinstance(value, (dict, list, tuple)):
            for one in value.values() if isinstance(value, dict) else value:
                check(one, depth + 1)
        elif isinstance(value, Tensor):
            place = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if place not in seen:
                seen.add(place)
                size -= value.nbytes
            repeats = any(n > 1 and step == 0 for n, step in zip(value.shape, value.stride(), strict=True))
            if repeats or size < 0 or value.nbytes > value.untyped_storage().nbytes():
                raise InputError(f"a tensor of shape {tuple(value.shape)} has more numbers than its file")
        elif not isinstance(value, (str, int, float, torch.dtype, torch.device, type(None))):
            raise InputError(f"{MORE}: {type(value).__name__}")

    check(content, 0)
