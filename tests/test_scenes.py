"""bin/scenes: files in KITTI's layout, the same bytes from the same arguments, labels that agree with the pixels."""

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydet.data.kitti import KittiDataset

SCRIPT = Path(__file__).resolve().parents[1] / "bin/scenes"
SPEC = spec_from_loader("scenes", SourceFileLoader("scenes", str(SCRIPT)))
assert SPEC is not None
assert SPEC.loader is not None
scenes = module_from_spec(SPEC)
sys.dont_write_bytecode, written = True, sys.dont_write_bytecode  # no bin/__pycache__
SPEC.loader.exec_module(scenes)
sys.dont_write_bytecode = written

LIGHT = np.array([0, -1.0, 0]), 0.6, 0.5, np.ones(3), 0.004


def draw(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, directory, *arguments], capture_output=True, text=True, check=False)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def pixels_of(things: list) -> np.ndarray:
    """The number of the thing that each canvas pixel shows, from 1, painted in this order."""
    canvas = Image.new("RGBX", (scenes.WIDTH * scenes.FINE, scenes.HEIGHT * scenes.FINE))
    for number, thing in enumerate(things, start=1):
        scenes.paint(canvas, thing, number, LIGHT)
    return np.asarray(canvas)[..., 3]


def car(x: float, z: float, turn: float = 0.0):
    return scenes.place("Car", scenes.vehicle(np.random.default_rng(0))[1], x, z, turn)


def test_files_bytes_and_refusals(tmp_path: Path) -> None:
    assert draw(tmp_path / "a", "--train", "1", "--val", "1").returncode == 0
    found = files(tmp_path / "a")
    train, val = (KittiDataset(tmp_path / "a", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1, 1)
    assert train[0].image.shape == (375, 1242, 3)
    assert len(train[0].boxes) >= 1

    assert draw(tmp_path / "b", "--train", "2", "--val", "0").returncode == 0  # frame i is of (seed, i) only
    again = files(tmp_path / "b")
    frames = [name for name in found if name.startswith("training")]
    assert {name: again[name] for name in frames} == {name: found[name] for name in frames}
    assert found["training/image_2/000000.jpg"] != found["training/image_2/000001.jpg"]

    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti/notes.txt").write_text("precious")
    for name, kept in (("kitti", {"notes.txt": b"precious"}), ("a", found)):
        refused = draw(tmp_path / name, "--train", "1", "--val", "1", "--seed", "1")
        assert refused.returncode != 0
        assert refused.stderr.count("\n") == 1
        assert f"{name}: holds something else" in refused.stderr
        assert files(tmp_path / name) == kept


@pytest.mark.parametrize("index", range(3))
def test_label_lines_agree_with_themselves(index: int) -> None:
    image, text = scenes.draw_scene(0, index)
    assert np.asarray(image).std() > 20
    assert sum(not line.startswith("DontCare") for line in text.splitlines()) >= 3
    for line in text.splitlines():
        kind, *numbers = line.split()
        truncated, occluded, alpha, *box = (float(number) for number in numbers[:7])
        height, width, length, x, y, z, turn = (float(number) for number in numbers[7:])
        assert 0 <= box[0] < box[2] <= 1241
        assert 0 <= box[1] < box[3] <= 374
        if kind == "DontCare":
            assert " ".join(numbers[:3] + numbers[7:]) == "-1 -1 -10 -1 -1 -1 -1000 -1000 -1000 -10"
            continue
        assert kind in scenes.LABELLED
        assert 0 <= truncated < 1
        assert (truncated > 0) <= (box[0] == 0 or box[2] == 1241 or box[3] == 374 or box[1] == 0)
        assert occluded in (0, 1, 2, 3)
        assert np.cos(alpha - turn + np.arctan2(x, z)) > 0.999
        along, up, across = np.meshgrid([-length / 2, length / 2], [0, -height], [-width / 2, width / 2])
        depth = z - along * np.sin(turn) + across * np.cos(turn)  # the 3D box, as the benchmark draws it
        u = 721 * (x + along * np.cos(turn) + across * np.sin(turn)) / depth + 609
        v = 721 * (y + up) / depth + 173
        solid = np.clip([u.min(), v.min(), u.max(), v.max()], 0, [1241, 374, 1241, 374])
        assert (solid[:2] <= np.array(box[:2]) + 2).all()
        assert (solid[2:] >= np.array(box[2:]) - 2).all()


@pytest.mark.parametrize("make", [scenes.vehicle, scenes.person])
def test_boxes_are_tight_around_what_is_drawn(make) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        thing = scenes.place(*make(rng), rng.uniform(-2, 2), rng.uniform(9, 20), rng.uniform(0, 6))
        canvas = Image.new("RGBX", (scenes.WIDTH * scenes.FINE, scenes.HEIGHT * scenes.FINE))
        box = scenes.paint(canvas, thing, 1, LIGHT)
        rows, columns = (np.flatnonzero((np.asarray(canvas)[..., 3] == 1).any(axis)) for axis in (1, 0))
        drawn = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / scenes.FINE - 0.5
        np.testing.assert_allclose(box, drawn, atol=1.0)


def test_the_near_thing_hides_the_far_one_and_the_label_says_how_much() -> None:
    far, near = car(0, 20), car(0.8, 14)
    alone, both = pixels_of([far]) == 1, pixels_of([far, near])
    hidden = 1 - (both == 1).sum() / alone.sum()
    assert 0.5 < hidden < 0.95
    box = np.array([500.0, 160, 700, 230])
    levels = [scenes.label(far, box, share).split()[2] for share in (0.0, 0.09, 0.11, 0.51, 0.86)]
    assert levels == ["0", "0", "1", "2", "3"]
    assert scenes.label(far, box - (600, 0, 600, 0), 0.0).split()[1] == "0.50"
    assert scenes.label(far, box, 1.0) == ""
    assert scenes.label(far, box + 2000, 0.0) == ""
    assert scenes.label(far, box - (0, 0, 0, 56), 0.0).startswith("DontCare -1 -1 -10 500.00 160.00 700.00 174.00")
