"""What the README says can be run, runs."""

import re
from pathlib import Path
from typing import Any

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_library_example() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["value"] > 0
    assert names["gradients"].keys() == names["params"].keys()
    assert any(gradient.any() for gradient in names["gradients"].values())


def test_commands_exist() -> None:
    from tinydet.cli import main

    commands = set(re.findall(r"^tinydet (\w+)", README, re.MULTILINE))
    assert commands == set(main.commands)


def test_the_two_scripts_stand_first() -> None:
    assert [line.split()[0] for line in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0].splitlines()] == [
        "bin/quickstart",
        "bin/test",
    ]


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / picture).is_file(), picture
