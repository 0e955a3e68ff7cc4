"""What cannot be read is named by file, line and value, whatever it is."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest

from tinydet.errors import InputError
from tinydet.files import short_path
from tinydet.reading import check_field, parse_float, parse_lines, paused_gc, read_json, read_text, read_yaml


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


def test_the_garbage_collector_is_as_it_was() -> None:
    with paused_gc():
        assert not gc.isenabled()
    assert gc.isenabled()


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


def test_only_whole_files_of_a_fair_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to: opening it would wait
    with open(tmp_path / "hole.yaml", "wb") as file:
        file.truncate(2**20 + 1)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match=f"^{path}: not a file$"):
            read_text(path)
    with pytest.raises(InputError, match=r"hole\.yaml: 1,048,577 bytes, and at most 1,048,576 of such a"):
        read_yaml(tmp_path / "hole.yaml", as_text=True)


def test_halves_of_characters_become_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'["\ud83d\ude00", "a\ud83d", "\\ud83d", "\\\\\uDE00b", "\u00e9"]')
    assert read_json(path) == ["😀", r"a\ud83d", r"\ud83d", r"\\\uDE00b", "é"]
    assert read_yaml(path)[0] == "😀"
    assert "".join(read_yaml(path)).encode()


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_depth_and_digits_are_bounded(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 100 + "]" * 100)
    read(path)
    for text in ("[" * 101 + "]" * 101, '{"a":' * 200 + "1" + "}" * 200, "[" * 100_000, f"[{'7' * 5000}]"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"a\.json(:1)?: not (JSON|YAML) that can be read \(") as caught:
            read(path)
        assert len(str(caught.value)) < 300


def test_keys_are_there_once_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("names:\n  0: cat\n  0: dog\n")
    with pytest.raises(InputError, match=r"a\.yaml:3: 0 is there twice$"):
        read_yaml(path, as_text=True)


FIELDS = {"name": str, "size": [float], "aps": {str: (float, None)}, "place": (str, [str], None)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"place": ["a", "b"], "aps": {"cat": 1, "dog": None}}, ""),
        ({"name": 5}, "a.json: name must be text, got 5"),
        ({"name": None}, "a.json: name must be text, got None"),
        ({"size": [1, True]}, "a.json: size: number 1 must be a finite number, got True"),
        ({"size": [float("nan")]}, "a.json: size: number 0 must be a finite number, got nan"),
        ({"size": [10**400]}, "a.json: size: number 0 must be a finite number, got 1000000"),
        ({"aps": {"x" * 3000: "1"}}, f"a.json: aps: {'x' * 59}… must be a finite number or nothing, got '1'"),
        ({"place": {"a": 1}}, "a.json: place must be text or a list or nothing, got {'a': 1}"),
        ({"place": [[]]}, "a.json: place: number 0 must be text, got []"),
    ],
)
def test_fields_are_of_their_kinds(changes: dict[str, Any], said: str) -> None:
    value = {"name": "x", "size": [1, 2.5], "aps": {}, "other": object, **changes}
    if not said:
        check_field(value, FIELDS, where="a.json")
    else:
        with pytest.raises(InputError) as caught:
            check_field(value, FIELDS, where="a.json")
        assert str(caught.value).startswith(said)


def test_keys_that_are_no_texts_are_named_too() -> None:
    with pytest.raises(InputError, match="file: 1 must be text, got 2"):
        check_field({1: 2}, {str: str}, where="file")
