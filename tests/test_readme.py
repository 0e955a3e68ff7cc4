"""The README's code runs, its commands exist, and its loop prints the numbers of `tinydet train`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.kitti_folders import write_kitti
from tinydet.cli import main
from tinydet.data.kitti import KittiDataset
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DETECT, TRAIN, FUNCTIONAL = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_detector_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = EfficientDet(model_config("lite0", classes=("Car", "Tram"), image_size=(64, 96)))
    torch.nn.init.normal_(model.class_net.predict.pointwise.weight, std=0.04)
    variables = params_and_buffers(model)
    save_checkpoint(tmp_path / "best.pt", Checkpoint(model.config, *variables, *variables, {}))
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "img.png")
    monkeypatch.chdir(tmp_path)
    exec(DETECT.replace("0.4", "0.02"), {})
    assert re.match(r"(Car|Tram) 0\.\d\d at \[", capsys.readouterr().out)
    assert (tmp_path / "found.png").is_file()


def test_the_functional_example() -> None:
    names: dict[str, Any] = {}
    exec(FUNCTIONAL, names)
    assert names["value"] > 0
    assert names["gradients"].keys() == names["params"].keys()
    assert any(gradient.any() for gradient in names["gradients"].values())


class Plain(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray, np.ndarray]]):
    """A person's own data set: images, boxes and labels, and the class names."""

    def __init__(self, dataset: KittiDataset) -> None:
        self.dataset, self.classes = dataset, dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        example = self.dataset[index]
        return example.image, example.boxes, example.labels


# Python 3.12 and 3.13 warn whenever a process with threads forks; a worker takes no lock that another thread may hold.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_loop_prints_the_numbers_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a person's own data set, but for KITTI's metric, which needs KITTI's labels."""
    names = [f"{i:06d}" for i in range(9)]
    write_kitti(tmp_path / "kitti", 9, lists={"train": names[:-1], "val": names[-1:]})
    for name in names[1::4]:
        path = tmp_path / f"kitti/training/label_2/{name}.txt"
        path.write_text(path.read_text().replace("Pedestrian", "Cyclist"))
    monkeypatch.chdir(tmp_path)
    assert len([line for line in TRAIN.splitlines() if line]) <= 12
    loop = (
        TRAIN.replace("epochs=20", "epochs=2").replace("(320, 1088)", "(64, 192)").replace("warmup=0.05", "warmup=0.1")
    )
    exec(loop, {})
    loss, ap = map(float, capsys.readouterr().out.split())
    command = ["train", "kitti", "--model", "lite0", "--epochs", "2", "--size", "64x192", "--anchor-scale", "2.5"]
    result = CliRunner().invoke(main, [*command, "--device", "cpu", "--out", "run"], catch_exceptions=False)
    assert result.exit_code == 0
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert (loss, ap) == (row["val"]["total"], row["ap"])
    assert torch.load("best.pt", weights_only=True)["training"]["step"] == row["step"]

    own: dict[str, Any] = {"Plain": Plain}
    exec(re.sub(r"(td\.KittiDataset\(.*?\))", r"Plain(\1)", loop), own)
    loss, ap = map(float, capsys.readouterr().out.split())
    assert loss == row["val"]["total"]
    assert ap == row["COCO"]["AP"]


def test_the_two_scripts_stand_first() -> None:
    first = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0]
    assert [line.split()[0] for line in first.splitlines()] == ["bin/quickstart", "bin/test"]


def test_the_readme_is_short() -> None:
    assert len(README.encode()) < 14_000


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_options_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL))
    lines = [*re.findall(r"`(tinydet [^`\n]+)`", text), *re.findall(r"^tinydet [^#\n]+", blocks, re.MULTILINE)]
    for line in lines:
        name, *words = line.split()[1:]
        assert name in {*main.commands, "COMMAND"}, line
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}, line
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (page.parent / link).is_file(), f"{page.name}: {link}"


# Executed by a test of their own, or in need of a published file.
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_the_pages_compile(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        compile(code, page.name, "exec")
