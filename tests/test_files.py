"""Files are written whole or not at all, and what cannot be read is named."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.full_disk import largest_file
from tinydet.errors import InputError
from tinydet.files import atomic_write, list_files, match_paths, write_file


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), atomic_write(str(path)) as file:
        file.write("no bytes")  # type: ignore[call-overload]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    with largest_file(5000):
        with pytest.raises(InputError, match=r"/old: File too large; the old file is as it was$"):
            write_file(old, "x" * 9999)
        # A writer in C++ is not told before the end.
        with pytest.raises(InputError, match=r"/new: File too large; not written$"), atomic_write(new) as file:
            assert (file.write(bytes(9999)), file.seek(0)) == (9999, 0)
    assert old.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [old]
    with pytest.raises(InputError, match=r"/old/a: Not a directory; not written$"):
        write_file(old / "a", "x")
    with pytest.raises(InputError, match=r": Is a directory; not written$"):
        write_file(tmp_path, "x")
    with pytest.raises(OSError, match="unplugged"), atomic_write(new):  # of another file: not ours to name
        raise OSError("unplugged")
    assert [*tmp_path.iterdir()] == [old]


def test_a_killed_process_leaves_one_partial_file_that_the_next_removes(tmp_path: Path) -> None:
    for name in ("a.html", "b" * 255):
        code = f"""if True:
            import os
            from tinydet.files import atomic_write
            with atomic_write({str(tmp_path / name)!r}) as file:
                file.write(b"half")
                os._exit(9)"""
        for _ in range(2):
            assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9
        (left,) = tmp_path.iterdir()
        assert left.name == f"{name[:247]}.partial"
        write_file(tmp_path / name, "whole")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
        (tmp_path / name).unlink()


def test_of_two_writers_of_one_file_the_first_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    first, second = atomic_write(path), atomic_write(path)
    first.__enter__().write(b"first")
    second.__enter__().write(b"second")
    with pytest.raises(InputError, match=r"/a: another process writes it too; the old file is as it was$"):
        first.__exit__(None, None, None)
    assert path.read_bytes() == b"old"
    second.__exit__(None, None, None)
    assert path.read_bytes() == b"second"
    assert [*tmp_path.iterdir()] == [path]


def test_two_processes_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    code = f"""if True:
        import sys
        from tinydet.errors import InputError
        from tinydet.files import atomic_write
        for _ in range(300):
            try:
                with atomic_write({str(path)!r}, sync=False) as file:
                    for _ in range(20):
                        file.write(sys.argv[1].encode() * 5000)
            except InputError as error:
                print(error)"""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen([*command, letter], stdout=subprocess.PIPE, text=True) for letter in "ab"]
    seen = set()
    while any(process.poll() is None for process in running):
        if path.exists():
            seen.add(path.read_bytes())
    assert {*seen, path.read_bytes()} <= {b"a" * 100_000, b"b" * 100_000}
    said = {line.split("; ")[0].split(": ")[1] for process in running for line in process.communicate()[0].splitlines()}
    assert said <= {"another process writes it too", "File exists", "No such file or directory"}
    assert [process.returncode for process in running] == [0, 0]
    assert [*tmp_path.iterdir()] == [path]


NAMES = ["cam1/0001.jpg", "cam2\\0001.jpg", "a/cam2/0002.jpg", "b/cam2/0002.jpg", "0003.jpg"]


@pytest.mark.parametrize(
    ("paths", "rows"),
    [
        (["/data/cam2/0001.jpg", "/data/cam1/0001.jpg"], [1, 0]),
        (["cam1\\0001.jpg"], [0]),
        (["x/b/cam2/0002.jpg", Path("anywhere/0003.jpg")], [3, 4]),
        ([], []),
    ],
)
def test_paths_have_the_name_that_agrees_longest(paths: list[str | Path], rows: list[int]) -> None:
    assert match_paths(paths, NAMES) == rows


def test_folders_that_all_names_have_say_nothing() -> None:
    assert match_paths(["other/8.jpg", "7.jpg"], ["C:\\set\\7.jpg", "C:\\set\\8.jpg"]) == [1, 0]
    with pytest.raises(InputError, match=r"^cam2/7.jpg: the annotations have only x/cam1/7.jpg, of another folder$"):
        match_paths(["cam2/7.jpg"], ["x/cam1/7.jpg", "x/cam2/8.jpg"])


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["0001.jpg"], r"^0001.jpg: may be cam1/0001.jpg or cam2\\0001.jpg of the annotations$"),
        (["c/cam2/0002.jpg"], "c/cam2/0002.jpg: may be a/cam2/0002.jpg or b/cam2/0002.jpg"),
        (["cam1/1.jpg"], "^cam1/1.jpg: the annotations have no image '1.jpg'$"),
        (["a/0003.jpg", "b/0003.jpg"], "b/0003.jpg: the annotations have one image, 0003.jpg, for it and for a/0003"),
    ],
)
def test_paths_without_a_name_of_their_own_are_errors(paths: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        match_paths(paths, NAMES)


def test_links_up_and_whole_disks_are_not_walked(tmp_path: Path) -> None:
    folder = tmp_path / "set/images"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for place in (folder, folder / "inner", tmp_path / "far", tmp_path / "set", tmp_path):
        (place / "a.png").touch()
    links = {"far": tmp_path / "far", "up": tmp_path, "self": folder, "again": folder / "inner", "disk": Path("/")}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    found = [path.relative_to(folder).as_posix() for path in list_files(folder, [".png"], recursive=True)]
    assert found in [["a.png", "again/a.png", "far/a.png"], ["a.png", "far/a.png", "inner/a.png"]]
    for place in (Path("/"), folder / "disk"):
        with pytest.raises(InputError, match="all of a disk; give the folder of the files themselves"):
            list_files(place, [".png"], recursive=True)
    list_files("/", [".png"])


def test_the_number_of_folders_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinydet.files.MAX_FOLDERS", 3)
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="more than 3 folders; give the folder of the files themselves"):
        list_files(tmp_path, [".png"], recursive=True)
