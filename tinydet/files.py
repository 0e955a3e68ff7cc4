"""Find files and folders, match names of images, and write files that are whole or not there."""

import errno
import io
import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from tinydet.errors import InputError, OnError, quoted, raise_error, shorten

PathLike = str | os.PathLike[str]
MAX_FOLDERS = 100_000  # in a folder of images
PARTIAL = ".partial"
RUN_FILES = (
    *("last.pt", "best.pt", "epoch-*.pt", "failed-step.pt", "metrics.jsonl", "config.json", "command.txt"),
    *("*-sheet.jpg", "losses.png", "ap.png", "precision-recall.png", "tensorboard"),
)
LOCK = ".tinydet.lock"  # in a folder that is written to: the id of the process that does
MAX_NAME = 247  # bytes of a name that can have that at its end


class _Output(io.FileIO):
    """A new file that holds back an error of writing: torch.export.save would end the process over it."""

    error: OSError | None = None

    def write(self, content: Any, /) -> int:
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size


@contextmanager
def output_errors(path: PathLike, *, note: str = "") -> Iterator[None]:
    """Raise an OSError as an InputError that names its file, or else `path`; a note ends it."""
    try:
        yield
    except OSError as error:
        name = os.fspath(error.filename or path).removesuffix(PARTIAL)
        raise InputError(f"{name}: {error.strerror or error}{note}") from None


@contextmanager
def atomic_write(path: PathLike, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` once it is whole; an error or a crash leaves the old one.

    Until then it is PATH.partial; what a killed process leaves of that, the next write of the path removes. Of two
    processes that write one path at once, one fails. With `sync` the file is on the disk before it replaces the old.

    Raises:
        InputError: the file cannot be written; it says why, and whether there is an old file.
    """
    folder, name = os.path.split(path)
    partial = os.path.join(folder, os.fsdecode(os.fsencode(name)[:MAX_NAME]) + PARTIAL)
    note = "; the old file is as it was" if os.path.isfile(path) else "; not written"
    with output_errors(path, note=note), _turns(folder):
        Path(partial).unlink(missing_ok=True)
        file = _Output(partial, "x")
    opened = os.fstat(file.fileno())
    try:
        yield file
        with output_errors(path, note=note):
            if file.error:
                raise file.error
            if sync:
                os.fsync(file.fileno())
            with _turns(folder):
                if not _is_file(partial, opened):
                    raise FileExistsError(errno.EEXIST, "another process writes it too", partial)
                file.close()
                os.replace(partial, path)
    except BaseException:
        own = _is_file(partial, opened)
        file.close()
        if own:
            Path(partial).unlink(missing_ok=True)
        raise


@contextmanager
def _turns(folder: str) -> Iterator[None]:
    """Let one process at a time change the names in a folder, where the system can lock it."""
    place = os.open(folder or ".", os.O_RDONLY) if fcntl else None
    try:
        if fcntl and place is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        if place is not None:
            os.close(place)


def _is_file(path: str, opened: os.stat_result) -> bool:
    """Say whether a path leads to a file that is open, and not to one that has taken its place."""
    try:
        return os.path.samestat(opened, os.stat(path))
    except FileNotFoundError:
        return False


def write_file(path: PathLike, content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes as a whole file, by `atomic_write`.

    Only where that replaces a file does it wait for the disk, which would take 0.4 ms for each of thousands.
    """
    with atomic_write(path, sync=os.path.exists(path)) as file:
        file.write(content.encode(errors="replace") if isinstance(content, str) else content)


def run_files(folder: Path, *, suffix: str = "") -> list[Path]:
    """List the files of a run in a folder; those with a suffix at their name's end, where one is given."""
    return [path for pattern in RUN_FILES for path in sorted(folder.glob(pattern + suffix))]


@contextmanager
def lock_folder(folder: Path, *, name: str = "") -> Iterator[None]:
    """Make a folder where it is missing, and hold it, or the part of that name; raise InputError where another does."""
    file = folder / (f".{name}.lock" if name else LOCK)
    lock, process = FileLock(file), ""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with suppress(OSError):  # the other process has just ended
                process = file.read_text()
            text = f"{folder / name}: in use by process {process}; stop that first, or choose another folder"
            raise InputError(text) from None
    try:
        with output_errors(folder):
            file.write_text(str(os.getpid()))
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def check_writable(folder: Path) -> None:
    """Raise InputError where a folder neither can be written to nor made."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise InputError(f"{folder}: cannot be written ({place} is {'read-only' if place.is_dir() else 'a file'})")


def short_path(path: PathLike) -> str:
    """Shorten a path to its file and folder, the way that messages name it."""
    return "/".join(Path(path).parts[-2:])


def composed(name: str) -> str:
    """Spell a name with é as one character, which archives of macOS hold as two."""
    return unicodedata.normalize("NFC", name)


def list_files(folder: PathLike, suffixes: Collection[str], *, recursive: bool = False) -> list[Path]:
    """List the files of a folder by suffix, in any case, in order; links are followed, hidden files passed over.

    With `recursive` links to the folder itself or to one above are passed over, which would lead through all the disk.

    Raises:
        InputError: it is a whole disk, or there are more than 100,000 folders in it.
    """
    files, seen, top = list[Path](), set[str](), ""
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        top = top or real
        if recursive and top == os.path.dirname(top):
            raise InputError(f"{folder}: all of a disk; give the folder of the files themselves")
        if real in seen or (f"{top}/".startswith(f"{real.rstrip('/')}/") and real != top):
            names = folders[:] = []
        seen.add(real)
        if len(seen) > MAX_FOLDERS:
            raise InputError(f"{folder}: more than {MAX_FOLDERS:,} folders; give the folder of the files themselves")
        folders[:] = [name for name in folders if recursive and not name.startswith((".", "__MACOSX"))]
        files += [Path(place, name) for name in names if name[0] != "." and name[name.rfind(".") :].lower() in suffixes]
    return sorted(files, key=lambda path: path.parts)  # as paths sort, in a third of the time


def list_folders(folder: Path, names: Collection[str] | None = None) -> list[Path]:
    """List the folders in a folder, all or those of these names in any case, in order."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:  # a folder next door that is not for everybody
        return []
    return [folder / name for name in found if names is None or name.lower() in names]


def files_by_stem(
    folder: Path, suffixes: Collection[str], *, recursive: bool = False, on_error: OnError = raise_error
) -> dict[str, Path]:
    """Map names to the files of a folder that have one of the suffixes; two of one name are an error.

    Names are `composed`, and those of files further down begin with their folders: cam1/0001.
    """
    paths: dict[str, Path] = {}
    for path in list_files(folder, suffixes, recursive=recursive):
        name = composed(path.relative_to(folder).with_suffix("").as_posix())
        if (first := paths.setdefault(name, path)) != path:
            both = f"{shorten(first.name)} and {shorten(path.name)}"
            on_error(InputError(f"{folder}: {quoted(name)} is there twice, {both}"))
    return paths


def match_paths(paths: Sequence[PathLike], names: Sequence[str]) -> list[int]:
    """Find the name of each path: the one that ends as it does, but for folders that all names have.

    Of several the longest; backslashes are slashes.

    >>> match_paths(["data/cam2/0001.jpg"], ["cam1/0001.jpg", "cam2/0001.jpg"])
    [1]

    Returns:
        The row of each path's name in `names`.

    Raises:
        InputError: a path has no such name, or several that agree equally well, or that of another path.
    """
    rows: dict[tuple[str, ...], list[int]] = {}
    endings = [_endings(name) for name in names]
    folders = zip(*(ends[0][:-1] for ends in endings), strict=False)
    shared = len([*takewhile(lambda parts: len(set(parts)) == 1, folders)])  # by all names, maybe of another machine
    for row, ends in enumerate(endings):
        for end in ends:
            rows.setdefault(end, []).append(row)
    matched: dict[int, PathLike] = {}
    for path in paths:
        end = next((end for end in _endings(path) if end in rows), ())
        if not end:
            raise InputError(f"{path}: the annotations have no image {quoted(Path(path).name)}")
        row, *others = rows[end]
        if others:
            raise InputError(f"{path}: may be {names[row]} or {names[others[0]]} of the annotations")
        if len(end) < len(endings[row][0]) - shared:
            raise InputError(f"{path}: the annotations have only {names[row]}, of another folder")
        if row in matched:
            raise InputError(f"{path}: the annotations have one image, {names[row]}, for it and for {matched[row]}")
        matched[row] = path
    return [*matched]


def _endings(path: PathLike) -> list[tuple[str, ...]]:
    """List the last parts of a path, first all of them, last the file name alone."""
    parts = tuple(os.fspath(path).replace("\\", "/").split("/"))
    return [parts[i:] for i in range(len(parts))]
