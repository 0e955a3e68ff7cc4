"""Files are written whole or not at all, and what cannot be read is named."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from tests.full_disk import largest_file
from tinydet.errors import InputError, raise_error, try_call
from tinydet.files import (
    atomic_write,
    match_paths,
    parse_float,
    parse_lines,
    paused_gc,
    read_json,
    read_text,
    read_yaml,
    short_path,
    write_file,
)


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


def test_text_is_read_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "folder/a.txt"
    path.parent.mkdir()
    path.write_bytes("\ufeffä b\r\n\nc\n\n \n".encode())
    assert parse_lines(path, lambda line, *, where: (line, where)) == {
        n: (line, f"folder/a.txt:{n}") for n, line in enumerate(["ä b", "", "c"], start=1) if line
    }
    path.write_bytes("ä b\nc".encode("utf-16"))
    assert read_text(path) == "ä b\nc"
    for content in (b"a\n\xe4", "a\nb".encode("utf-16-be"), b"a\n\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^folder/a\.txt:\d: not UTF-8 text; save it as UTF-8$"):
            read_text(path)
    errors: list[InputError] = []
    assert parse_lines(path, lambda line, *, where: line, on_error=errors.append) == {}
    assert len(errors) == 1
    with pytest.raises(InputError, match=r"gone\.txt: No such file"):
        read_text(tmp_path / "gone.txt")
    assert short_path("/x/y/z.txt") == "y/z.txt"


def test_json_that_breaks_off_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5]}')
    assert read_json(path) == {"a": [1, 2.5]}
    path.write_text('{"a":\n [1, ')
    with pytest.raises(InputError, match=r"a\.json:2: not JSON \(.*, character 6\)"):
        read_json(path)


@pytest.mark.parametrize(("word", "said"), [("1,5", "is not a number ('1,5')"), ("-inf", "is not finite ('-inf')")])
def test_numbers(word: str, said: str) -> None:
    assert parse_float("-1.5e2", where="a.txt:1") == -150
    with pytest.raises(InputError) as raised:
        parse_float(word, where="a.txt:1: x1")
    assert str(raised.value) == f"a.txt:1: x1 {said}"


def test_errors_are_raised_or_collected() -> None:
    def fail(text: str, *, on_error: str = "") -> int:
        raise InputError(text + on_error)

    with pytest.raises(InputError, match=r"^wrong$"):
        try_call(raise_error, fail, "wrong")
    errors: list[InputError] = []
    assert try_call(errors.append, fail, "wrong", on_error="!") is None
    assert [str(error) for error in errors] == ["wrong!"]
    assert try_call(errors.append, int, "12") == 12
    with pytest.raises(ValueError, match="invalid literal"):
        try_call(errors.append, int, "x")


def test_the_garbage_collector_is_as_it_was() -> None:
    with paused_gc():
        assert not gc.isenabled()
    assert gc.isenabled()


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


def test_yaml_is_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("names: [yes, 007]\nnc: 2\n")
    assert read_yaml(path, as_text=True) == {"names": ["yes", "007"], "nc": "2"}
    assert read_yaml(path) == {"names": [True, 7], "nc": 2}
    laughs = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    for text, said in (
        (laughs, r":2: \*a0 stands for another value"),
        ("[" * 5000 + "]" * 5000, ": not YAML that can be read"),
        ("a: [", ":1: not YAML"),
        ("a: 1\nb: 2\na: 3", ":3: a is there twice"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            read_yaml(path)
