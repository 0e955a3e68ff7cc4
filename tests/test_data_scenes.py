"""Drawn scenes: labels tell the truth about the pixels, files are laid out as KITTI's, nothing is left to chance."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tinydet.data.kitti import KittiDataset
from tinydet.data.kitti_labels import read_objects
from tinydet.data.scenes import SMALLEST, Seen, draw_scene, draw_scenes, label_lines, paint_things
from tinydet.data.street.layout import draw_light, lay_out
from tinydet.data.street.paint import EYE, FINE, LABELLED, Camera, Thing, far_to_near, kitti_camera, placed, seen
from tinydet.data.street.scenery import clutter
from tinydet.data.street.solids import Balls, Sprite, faces, sprite
from tinydet.data.street.vehicles import VEHICLES, vehicle
from tinydet.errors import InputError

SMALL = (96, 318)
CAMERA = kitti_camera((375, 1242))
SCENES = range(4)


def tree_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def blank(camera: Camera) -> Image.Image:
    return Image.new("RGBX", (camera.width * FINE, camera.height * FINE))


def scene(index: int):
    """The things of a scene and its light, as `draw_scene` has them."""
    rng = np.random.default_rng((0, index))
    light = draw_light(rng)
    return lay_out(rng)[1], light


def pixels_alone(thing: Thing, camera: Camera, light) -> np.ndarray:
    """The canvas pixels of a thing when nothing else is there: bool[H*FINE W*FINE]."""
    canvas = blank(camera)
    paint_things(canvas, [thing], camera, light)
    return np.asarray(canvas)[..., 3] > 0


def extent(mask: np.ndarray) -> np.ndarray:
    """The box of a canvas mask in picture pixels: from the outer edge of its first pixel to that of its last."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / FINE - 0.5


# Files


def test_files_are_laid_out_as_kitti_lays_out_its_own(tmp_path):
    draw_scenes(tmp_path / "new" / "scenes", train=3, val=2, size=SMALL)
    root = tmp_path / "new" / "scenes"
    frames = [f"{i:06d}" for i in range(5)]
    assert (root / "ImageSets/train.txt").read_text().split() == frames[:3]
    assert (root / "ImageSets/val.txt").read_text().split() == frames[3:]
    assert sorted(path.name for path in (root / "training/image_2").iterdir()) == [f"{f}.jpg" for f in frames]
    assert sorted(path.name for path in (root / "training/label_2").iterdir()) == [f"{f}.txt" for f in frames]
    with Image.open(root / "training/image_2/000000.jpg") as picture:
        assert (picture.mode, picture.size) == ("RGB", SMALL[::-1])
    for split, count in (("train", 3), ("val", 2)):
        assert len(KittiDataset(root, split=split)) == count


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        draw_scenes(tmp_path / name, train=2, val=1, seed=seed, size=SMALL)
    a, b, c = (tree_bytes(tmp_path / name) for name in "abc")
    assert a == b
    draw_scenes(tmp_path / "a", train=2, val=1, seed=5, size=SMALL)  # again, over itself
    assert tree_bytes(tmp_path / "a") == b
    drawn = [name for name in a if name.startswith("training")]
    assert len(drawn) == 6
    assert all(a[name] != c[name] for name in drawn)


def test_a_frame_depends_on_its_seed_and_its_number_only(tmp_path):
    draw_scenes(tmp_path / "few", train=1, val=1, size=SMALL)
    np.random.default_rng().random(100)
    draw_scenes(tmp_path / "more", train=2, val=1, size=SMALL)
    few, more = tree_bytes(tmp_path / "few"), tree_bytes(tmp_path / "more")
    frames = [name for name in few if name.startswith("training")]
    assert {name: more[name] for name in frames} == {name: few[name] for name in frames}
    pictures = {more[name] for name in more if name.endswith(".jpg")}
    assert len(pictures) == 3  # no two frames are alike


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "kitti/training/label_2").mkdir(parents=True)
    label = tmp_path / "kitti/training/label_2/000000.txt"
    label.write_text("precious\n")
    with pytest.raises(InputError, match=r"kitti: .*not empty"):
        draw_scenes(tmp_path / "kitti", train=1, val=0, size=SMALL)
    assert tree_bytes(tmp_path / "kitti") == {"training/label_2/000000.txt": b"precious\n"}

    draw_scenes(tmp_path / "scenes", train=1, val=1, size=SMALL)
    before = tree_bytes(tmp_path / "scenes")
    with pytest.raises(InputError, match='"seed": 0'):
        draw_scenes(tmp_path / "scenes", train=1, val=1, seed=1, size=SMALL)
    assert tree_bytes(tmp_path / "scenes") == before

    with pytest.raises(InputError, match="not a folder"):
        draw_scenes(label, train=1, val=1, size=SMALL)


@pytest.mark.parametrize("wrong", [{"train": -1}, {"train": 0, "val": 0}, {"seed": -1}, {"size": (0, 1242)}])
def test_numbers_that_mean_nothing_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(InputError, match="cannot draw"):
        draw_scenes(tmp_path / "scenes", **wrong)
    assert not (tmp_path / "scenes").exists()


def test_a_scene_is_drawn_in_well_under_a_second():
    def once(index: int) -> float:
        start = time.process_time()
        draw_scene(index)
        return time.process_time() - start

    assert min(once(index) for index in range(5)) < 0.8


# Labels against pixels


@pytest.mark.parametrize("index", SCENES)
def test_boxes_are_tight_around_what_is_drawn_even_beyond_the_picture(index):
    things, light = scene(index)
    margin = 400
    wide = Camera(375 + 2 * margin, 1242 + 2 * margin, CAMERA.focal, CAMERA.cx + margin, CAMERA.cy + margin)
    measured = paint_things(blank(CAMERA), things, CAMERA, light)
    whole = [one for one in measured if (one.box > -margin).all() and (one.box[2:] < np.add((1241, 374), margin)).all()]
    assert len(whole) >= len(measured) - 2
    for one in whole[-6:]:
        drawn = extent(pixels_alone(one.thing, wide, light)) - margin
        np.testing.assert_allclose(one.box, drawn, atol=1.0)


@pytest.mark.parametrize("index", SCENES)
def test_what_is_hidden_is_counted_in_the_object_s_own_pixels(index):
    things, light = scene(index)
    alone = {id(thing): pixels_alone(thing, CAMERA, light) for thing in things}
    top = np.full((CAMERA.height * FINE, CAMERA.width * FINE), -1)
    for thing in far_to_near(things):
        top[alone[id(thing)]] = [id(other) for other in things].index(id(thing))
    measured = paint_things(blank(CAMERA), things, CAMERA, light)
    assert [s.thing.kind in LABELLED for s in measured] == [True] * sum(t.kind in LABELLED for t in things)
    for one in measured:
        number, own = [id(other) for other in things].index(id(one.thing)), alone[id(one.thing)]
        assert one.shown == pytest.approx((top[own] == number).sum() / max(own.sum(), 1))


def project_box(line: str) -> np.ndarray:
    """The picture's box around the 3D box of a label line, by the benchmark's own convention."""
    h, w, length, x, y, z, turn = (float(word) for word in line.split()[8:15])
    corners = np.array([(a * length / 2, b, c * w / 2) for a in (-1, 1) for b in (-h, 0) for c in (-1, 1)])
    cos, sin = np.cos(turn), np.sin(turn)
    points = corners @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]).T + (x, y, z)
    pixels = points[:, :2] / points[:, 2:] * 721 + (609, 173)
    return np.concatenate([pixels.min(0), pixels.max(0)]).clip(0, [1241, 374, 1241, 374])


@pytest.mark.parametrize("index", SCENES)
def test_label_lines_agree_with_themselves(index):
    picture, lines = draw_scene(index)
    assert picture.size == (1242, 375)
    assert sum(not line.startswith("DontCare") for line in lines) >= 3
    for line in lines:
        words = line.split()
        numbers = np.array(words[1:], dtype=float)
        assert len(numbers) == 14
        x1, y1, x2, y2 = numbers[3:7]
        assert 0 <= x1 < x2 <= 1241
        assert 0 <= y1 < y2 <= 374
        if words[0] == "DontCare":
            assert words[1:4] + words[8:] == ["-1", "-1", "-10", "-1", "-1", "-1", "-1000", "-1000", "-1000", "-10"]
            assert y2 - y1 < SMALLEST
            continue
        truncated, occluded, alpha, x, y, z, turn = *numbers[:3], *numbers[10:]
        assert words[0] in LABELLED
        assert 0 <= truncated < 1
        assert (truncated > 0) <= (x1 == 0 or x2 == 1241 or y2 == 374 or y1 == 0)
        assert occluded in (0, 1, 2, 3)
        assert y == EYE
        assert abs(alpha) <= 3.15 >= abs(turn)
        assert np.cos(alpha - turn + np.arctan2(x, z)) > 0.999
        solid = project_box(line)  # holds what is drawn, and little more
        assert (solid[:2] <= np.array([x1, y1]) + 4).all()
        assert (solid[2:] >= np.array([x2, y2]) - 4).all()
        share = (x2 - x1) * (y2 - y1) / np.prod(solid[2:] - solid[:2])
        assert share > (0.45 if words[0] in ("Pedestrian", "Cyclist") else 0.75)


def test_measures_are_those_of_the_solids():
    rng = np.random.default_rng(0)
    things = [t for index in SCENES for t in scene(index)[0] if t.kind in LABELLED]
    for thing in things:
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        for part in thing.sprite.parts:
            thick = part.radii[..., None] if isinstance(part, Balls) else 0
            low = np.minimum(low, (part.points - thick).min((0, 1)))
            high = np.maximum(high, (part.points + thick).max((0, 1)))
        height, width, length = thing.sprite.dims
        np.testing.assert_allclose(low, (-length / 2, 0, -width / 2), atol=1e-9)
        np.testing.assert_allclose(high, (length / 2, height, width / 2), atol=1e-9)
    for kind, (*_, ranges) in VEHICLES.items():
        for measured, (least, most) in zip(vehicle(rng, kind).dims, ranges, strict=True):
            assert 0.97 * least < measured < 1.03 * most


def test_there_is_enough_of_everything_and_most_of_it_in_full_view():
    seen_kinds: Counter[str] = Counter()
    free: Counter[str] = Counter()
    frames = 24
    for index in range(frames):
        things, light = scene(index)
        for line in label_lines(paint_things(blank(CAMERA), things, CAMERA, light), CAMERA):
            kind, truncated, occluded, _, _, y1, _, y2 = line.split()[:8]
            seen_kinds[kind] += 1
            free[kind] += int(occluded) in (0, 1) and float(truncated) <= 0.3 and float(y2) - float(y1) > 25
    assert free["Car"] > 2.2 * frames
    assert free["Pedestrian"] > frames
    assert free["Cyclist"] > 0.8 * frames
    assert min(seen_kinds["Van"], seen_kinds["Truck"], seen_kinds["DontCare"]) > 0


# The parts


def standing(kind: str, x: float, z: float, *, turn: float = 0.0) -> Thing:
    return Thing(kind, Sprite((), (1.5, 1.7, 4.2)), x, z, turn)


@pytest.mark.parametrize(("shown", "occluded"), [(1.0, 0), (0.91, 0), (0.85, 1), (0.5, 1), (0.4, 2), (0.1, 3)])
def test_occlusion_levels(shown, occluded):
    (line,) = label_lines([Seen(standing("Car", 2, 20), np.array([100.0, 100, 200, 150]), shown)], CAMERA)
    assert line == (
        f"Car 0.00 {occluded} -0.10 100.00 100.00 200.00 150.00 1.50 1.70 4.20 2.00 1.65 20.00 0.00"
    )  # fmt: skip


def test_what_kitti_would_not_name():
    far, hidden, outside = (standing("Car", 0, z) for z in (90, 20, 10))
    boxes = np.array([[600.0, 170, 620, 180], [10, 100, 50, 150], [-300, 100, 0.5, 200]])
    listed = [Seen(t, box, s) for t, box, s in zip((far, hidden, outside), boxes, (1, 0, 1), strict=True)]
    assert label_lines(listed, CAMERA) == [
        "DontCare -1 -1 -10 600.00 170.00 620.00 180.00 -1 -1 -1 -1000 -1000 -1000 -10"
    ]


@settings(max_examples=60, deadline=None)
@given(
    corner=st.tuples(st.floats(-900, 1800), st.floats(-400, 600)),
    measures=st.tuples(st.floats(1, 900), st.floats(1, 500)),
    shown=st.floats(0, 1),
)
def test_any_box_makes_a_line_that_the_reader_takes(tmp_path_factory, corner, measures, shown):
    box = np.array([*corner, *np.add(corner, measures)])
    inside = box.clip(0, [1241, 374, 1241, 374])
    wide, high = inside[2:] - inside[:2]
    lines = label_lines([Seen(standing("Car", 1, 9), box, shown)], CAMERA)
    assert len(lines) == (shown > 0 and min(wide, high) >= 1)
    path = tmp_path_factory.mktemp("lines") / "000000.txt"
    path.write_text("\n".join(lines))
    read = read_objects(path)
    assert read.types == [("DontCare" if high < SMALLEST else "Car") for _ in lines]
    np.testing.assert_allclose(read.boxes, np.tile(inside, (len(lines), 1)), atol=0.006)
    if read.types == ["Car"]:
        assert read.truncated[0] == pytest.approx(1 - wide * high / np.prod(measures), abs=0.006)


block = st.tuples(st.integers(-14, 14), st.integers(4, 40), st.integers(1, 6), st.integers(1, 10))


@settings(max_examples=80, deadline=None)
@example([(-1, 4, 3, 1), (-2, 4, 1, 1)])  # one beside the other, the nearer on both sides of the middle
@given(st.lists(block, min_size=2, max_size=8))
def test_nothing_is_painted_before_what_it_hides(blocks):
    apart: list[tuple[int, int, int, int]] = []
    for x, z, w, d in blocks:
        if all(x + w <= a or a + c <= x or z + d <= b or b + e <= z for a, b, c, e in apart):
            apart.append((x, z, w, d))
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    solids = [sprite(faces(corners[None] * np.array((w, 1.0, d)), (0, 0, 0), inside=(0, 0, 0))) for *_, w, d in apart]
    things = [Thing("Car", s, x + w / 2, z + d / 2, 0) for s, (x, z, w, d) in zip(solids, apart, strict=True)]
    order = far_to_near(things)
    assert sorted(map(id, order)) == sorted(map(id, things))
    rank = {id(thing): place for place, thing in enumerate(order)}
    for slope in np.linspace(-3, 3, 301) + 1e-4:  # what a ray through the ground meets, by where it first meets it
        met = []
        for thing, (x, z, w, d) in zip(things, apart, strict=True):
            across = sorted((x / slope, (x + w) / slope))
            first, last = max(z, across[0]), min(z + d, across[1])
            if first < last - 1e-6:
                met.append((first, rank[id(thing)]))
        ranks = [place for _, place in sorted(met)]
        assert ranks == sorted(ranks, reverse=True)


def test_the_camera_is_kitti_s_and_scales_with_the_picture():
    assert tuple(CAMERA) == (375, 1242, 721.0, 609.0, 173.0)
    car = Thing("Car", Sprite((), (1.5, 1.7, 4.2)), 2.0, 14.42, -np.pi / 2)
    nose = placed(np.array([[2.1, 0.0, 0.0]]), car)
    np.testing.assert_allclose(nose, [[2.0, 1.65, 16.52]], atol=1e-12)  # forward is away from the camera
    ground = seen(np.array([[0.0, EYE, 16.5]]), CAMERA)
    np.testing.assert_allclose(ground, [[609, 173 + 72.1]])
    half = kitti_camera((188, 621))
    np.testing.assert_allclose(seen(nose, half)[0, 0], seen(nose, CAMERA)[0, 0] / 2)


def test_scenery_is_drawn_and_never_labelled():
    rng = np.random.default_rng(3)
    light = draw_light(rng)
    for _ in range(40):
        thing = Thing("", clutter(rng), 0.0, 15.0, -np.pi / 2)
        assert pixels_alone(thing, CAMERA, light).sum() > 50
        assert paint_things(blank(CAMERA), [thing], CAMERA, light) == []


def test_progress_counts_the_scenes(tmp_path):
    calls = []
    draw_scenes(tmp_path, train=2, val=1, size=(64, 128), progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
