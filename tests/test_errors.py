"""Errors are collected or raised, and show whatever a file holds in a line."""

import pickle

import pytest

from tinydet.errors import InputError, list_names, nearest, quoted, raise_error, shorten, try_call


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


def test_values_of_any_kind_are_quoted_in_a_few_characters() -> None:
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert quoted("a\x1b\n\ud800") == r"'a\x1b\n\ud800'"
    assert quoted("a" * 3000) == f"'{'a' * 58}…"
    assert quoted([1.5, None, {"a": 2}]) == "[1.5, None, {'a': 2}]"
    for value in (deep, [10**300] * 1000, {"a" * 5000: 1}, "\0" * 500):
        assert len(quoted(value)) == 60 or value is deep
    assert quoted(deep) == "[[[[...]]]]"
    assert shorten("\x00" * 60) == "\\x00" * 14 + "\\x0…"
    assert len(list_names(["cat"] * 100_000)) == 200


def test_a_message_can_be_printed_anywhere() -> None:
    error = InputError("a\x1b[31m\udcff: wrong\nb\u202e")
    assert str(error) == "a\\x1b[31m\\udcff: wrong\nb\\u202e"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_nearest_of_many_is_found_soon() -> None:
    assert nearest("Cra", ["car", "dog"]) == "; did you mean car?"
    assert nearest("x" * 10**6, ["y" * 10**6] * 10**6) == ""
