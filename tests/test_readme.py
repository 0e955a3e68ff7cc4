"""What the README says can be run, runs."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tinydet.cli.terminal import weights_summary
from tinydet.weights.load import fit_weights, load_weights

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_library_example() -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES[0], names)
    assert names["value"] > 0
    assert names["gradients"].keys() == names["params"].keys()
    assert any(gradient.any() for gradient in names["gradients"].values())


def test_weights_example(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES[1], names)
    assert len(EXAMPLES) == 2
    assert {*names["report"].taken} == {*names["weights"].params, *names["weights"].buffers}
    assert "tensors of efficientnet-lite0-" in capsys.readouterr().out


def test_what_a_run_says_of_a_published_detector(shared: Path, tmp_path: Path) -> None:
    """The line that the README shows, of a file with the names and shapes of the published one."""
    shapes = json.loads((shared / "checkpoints/effdet_tf_efficientdet_d0.json").read_text())
    path = tmp_path / "tf_efficientdet_d0_34-f153e0cf.pth"
    torch.save({key: torch.tensor(0.5).expand(shape) for key, shape in shapes.items()}, path)
    weights = load_weights(path)
    config = dataclasses.replace(weights.config, classes=("Car", "Pedestrian", "Cyclist"))
    summary = weights_summary(fit_weights(weights, config).report)
    assert f"start {summary}" in " ".join(README.split())


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
