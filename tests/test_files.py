"""Files are written whole or not at all, and what cannot be read is named."""

import gc
from pathlib import Path

import pytest

from tinydet.errors import InputError, raise_error, try_call
from tinydet.files import atomic_write, parse_float, parse_lines, paused_gc, read_json, read_text, short_path


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
