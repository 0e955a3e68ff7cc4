"""What the README says can be run, runs."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.kitti_folders import write_kitti
from tinydet.cli import main
from tinydet.cli.terminal import weights_summary
from tinydet.data.scenes import draw_scene
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import state
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.load import fit_weights, load_weights

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_library_example() -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES[0], names)
    assert names["value"] > 0
    assert names["gradients"].keys() == names["params"].keys()
    assert any(gradient.any() for gradient in names["gradients"].values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with best.pt, a detector that finds something everywhere, and img.png."""
    folder = tmp_path_factory.mktemp("example")
    torch.manual_seed(0)
    model = EfficientDet(model_config("lite0", classes=("Car", "Tram"), image_size=(64, 96)))
    torch.nn.init.normal_(model.class_net.predict.pointwise.weight, std=0.04)
    tensors = state(model)
    save_checkpoint(folder / "best.pt", Checkpoint(model.config, *tensors, *tensors, {}))
    draw_scene(0)[0].save(folder / "img.png")
    return folder


def test_detector_example(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(EXAMPLES[1].replace("0.4", "0.02"), {})
    assert re.match(r"(Car|Tram) 0\.\d\d at \[", capsys.readouterr().out)
    assert (folder / "found.png").is_file()


def test_export_example(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    monkeypatch.chdir(folder)
    command = ["export", "best.pt", "--format", "onnx", "--score", "0.02"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "largest difference from eager PyTorch" in result.stdout
    capsys.readouterr()
    exec(EXAMPLES[2], {})
    assert len(capsys.readouterr().out.splitlines()) > 5
    assert len([line for line in EXAMPLES[2].splitlines() if line]) <= 12
    assert "tinydet" not in EXAMPLES[2]


def test_weights_example(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES[3], names)
    assert len(EXAMPLES) == 5
    assert {*names["report"].taken} == {*names["weights"].params, *names["weights"].buffers}
    assert "tensors of efficientnet-lite0-" in capsys.readouterr().out


# Python 3.12 and 3.13 warn whenever a process with threads forks; a worker takes no lock that another thread may hold.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_loop_gives_the_numbers_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{i:06d}" for i in range(9)]
    write_kitti(tmp_path / "kitti", 9, lists={"train": names[:-1], "val": names[-1:]})
    for name in names[1::4]:
        path = tmp_path / f"kitti/training/label_2/{name}.txt"
        path.write_text(path.read_text().replace("Pedestrian", "Cyclist"))
    monkeypatch.chdir(tmp_path)
    loop = EXAMPLES[4]
    assert len([line for line in loop.split("\n\n", 1)[1].splitlines() if line]) <= 15
    exec(loop, {})
    printed = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()]
    command = ["train", "kitti", "--model", "lite0", "--epochs", "2", "--device", "cpu", "--out", "run"]
    assert " ".join(command[:6]) in README
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert printed == [[row["val"]["total"], row["ap"]] for row in rows]


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
