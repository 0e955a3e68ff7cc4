"""What a command writes is whole, replaces only its own kind, and an error of writing is one line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.full_disk import largest_file
from tests.soak.outputs import full_disk_cases, write_inputs
from tinydet.cli import main
from tinydet.cli.output import MARKS
from tinydet.draw import count_text

CASES = dict(full_disk_cases())
LARGEST = {
    "predict": 25_000,
    "predict-video": 25_000,
    "check": 9999,
    "compare": 9999,
    "strip": 9999,
    "convert-yolo": 9999,
}
"""Bytes of the largest file of some of the cases, in the midst of their work."""
PREDICT = ["--weights", "best.pt", "--score", "0.01", "--device", "cpu", "--out"]
IMAGES = "kitti/training/image_2"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def home(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with links to the inputs."""
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [*tmp_path.rglob("*.partial*")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def refusal(*arguments: str) -> str:
    """The one line that a command refuses with, before it has printed anything."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize("name", LARGEST)
def test_a_full_disk_is_one_line(home: Path, name: str) -> None:
    with largest_file(LARGEST[name]):
        result = run(*CASES[name])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: out/")
    assert "File too large" in line
    for lines in home.glob("out/*/predictions.jsonl"):
        done = count_text(
            len([*map(json.loads, lines.read_text().splitlines())]), "frame" if "video" in name else "image"
        )
        assert line.endswith(f"; {lines.relative_to(home)} has the detections of {done}")
    assert run(*CASES[name]).exit_code == 0 or name.startswith("convert")


def test_an_output_that_is_below_a_file_is_one_line(home: Path) -> None:
    (home / "file").write_text("mine")
    assert refusal("predict", IMAGES, *PREDICT, "file/out") == "file/out: Not a directory"
    assert refusal("predict", IMAGES, *PREDICT, "file").startswith("file: neither empty nor")
    convert = refusal("convert", "kitti", "--to", "yolo", "--classes", "Car", "--out", "file/out")
    assert convert == "file/out/images/train: Not a directory; file/out is not complete"
    assert (home / "file").read_text() == "mine"


@pytest.mark.parametrize("arguments", ["--help", "runs runs", "info best.pt"])
def test_standard_output_on_a_full_disk_is_one_line(home: Path, arguments: str) -> None:
    program = [sys.executable, "-c", "from tinydet.cli import main; main()", *arguments.split()]
    with open("/dev/full", "w") as full:
        result = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.endswith("No space left on device\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "option", "suffix"),
    [
        ("evaluate kitti", "--report", ".html"),
        ("check kitti", "--html", ".html"),
        ("compare runs/a runs/b", "--plot", ".png"),
        ("compare runs/a runs/b", "--plot", ".pdf"),
        ("export best.pt", "--out", ".onnx"),
        ("export best.pt --format torch", "--out", ".pt2"),
    ],
)
def test_only_a_file_of_its_kind_is_replaced(home: Path, command: str, option: str, suffix: str) -> None:
    for name in ("weights.pt", "labels.csv", f"mine{suffix}"):
        (home / name).write_text("mine")
        line = refusal(*command.split(), option, name)
        if suffix in name:
            assert line == f"{name}: exists, and was not written by tinydet; name another file by {option}"
        else:
            assert line.startswith(f"{name}: {option} writes a file named *.")
        assert (home / name).read_text() == "mine"


def test_a_file_of_its_kind_is_replaced(home: Path) -> None:
    Image.new("RGB", (3, 2)).save("photo.png")
    assert "was not written by tinydet" in refusal("compare", "runs/a", "runs/b", "--plot", "photo.png")
    for suffix in (".png", ".svg", ".pdf"):
        for _ in range(2):
            assert run("compare", "runs/a", "runs/b", "--plot", f"curves{suffix}").exit_code == 0
        assert MARKS[suffix] in Path(f"curves{suffix}").read_bytes()[:1024]
    for _ in range(2):
        assert run(*CASES["check"]).exit_code == 0


def test_the_input_of_a_command_is_not_its_output(home: Path, inputs: Path) -> None:
    before = (inputs / "best.pt").read_bytes()
    (home / "best.onnx").write_bytes(before)
    for command in ("strip best.pt --out best.pt", "strip best.pt --out ./runs/../best.pt", "export best.onnx"):
        assert "exists" in refusal(*command.split())
    assert "--plot writes" in refusal("compare", "runs/a", "runs/b", "--plot", "runs/a/metrics.jsonl")
    assert (home / "best.onnx").read_bytes() == before
    assert (inputs / "best.pt").read_bytes() == before


def test_a_folder_of_a_run_or_of_inputs_gets_no_results(home: Path) -> None:
    assert refusal("predict", IMAGES, *PREDICT, "runs/a/").startswith("runs/a: holds a run (metrics.jsonl); choose")
    assert "neither empty nor" in refusal("predict", IMAGES, *PREDICT, IMAGES)
    assert run("predict", IMAGES, *PREDICT, "out").exit_code == 0
    Image.new("RGB", (60, 40)).save("out/mine.png")
    (home / "Link").symlink_to(home / "out")
    for image in ("out/mine.png", "./out/", "out/images", "Link/mine.png"):
        assert "is in the output folder" in refusal("predict", image, *PREDICT, "out/"), image
    assert "is in the output folder" in refusal("predict", "out/mine.png", *PREDICT, "Link")


def test_files_of_others_in_a_folder_of_results_are_left_alone(home: Path) -> None:
    assert run("predict", f"{IMAGES}/000000.png", *PREDICT, "out").exit_code == 0
    (home / "out/yolo/000001.txt").write_text("mine")
    line = refusal("predict", IMAGES, *PREDICT, "out")
    assert line == "out/yolo/000001.txt: the new results would replace it; choose another folder than out"
    assert (home / "out/yolo/000001.txt").read_text() == "mine"
    (home / "out/clip.mp4").write_text("mine")
    assert "out/clip.mp4: the new results would replace it" in refusal("predict", "clip.mp4", *PREDICT, "out")
    assert (home / "out/images").rename(home / "album")
    (home / "out/images").symlink_to(home / "album")
    assert "out/images: a link" in refusal("predict", f"{IMAGES}/000000.png", *PREDICT, "out")
    assert (home / "album/000000.jpg").is_file()


@pytest.mark.parametrize(
    "name", [b"...png", b"..png", b".png", b"CON.jpg", b"a" * 251 + b".png", b"n\nl.png", b"\xff.png"]
)
def test_images_of_any_name_are_predicted_anew(home: Path, name: bytes) -> None:
    image = os.fsdecode(name)
    Image.new("RGB", (60, 40)).save(image, format="PNG")
    for _ in range(2):
        assert run("predict", f"./{image}", *PREDICT, "out").exit_code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("coco.json", "images", "kitti", "predictions.jsonl", "yolo")
    ]
    assert [len([*Path("out", folder).iterdir()]) for folder in ("images", "kitti", "yolo")] == [1, 1, 1]


def test_names_that_are_equal_but_for_case_have_results_each(home: Path) -> None:
    for name in ("a.png", "A.png"):
        Image.new("RGB", (60, 40)).save(name)
    assert run("predict", "a.png", "A.png", *PREDICT, "out").exit_code == 0
    assert sorted(path.name for path in Path("out/kitti").iterdir()) == ["A.txt", "a.txt"]


def test_results_of_a_process_that_was_killed_are_replaced(home: Path) -> None:
    assert run("predict", IMAGES, *PREDICT, "out").exit_code == 0
    lines = Path("out/predictions.jsonl")
    lines.write_text(lines.read_text()[:-20])
    (home / "out/kitti/000004.txt").unlink()
    (home / "out/yolo/000004.txt").unlink()
    (home / "out/images/000004.jpg").unlink()
    assert run("predict", f"{IMAGES}/000000.png", *PREDICT, "out").exit_code == 0
    assert len(lines.read_text().splitlines()) == len([*Path("out/kitti").iterdir()]) == 1
    lines.write_text('{"mine": 1}')
    assert "not written by a prediction" in refusal("predict", IMAGES, *PREDICT, "out")
