"""How a drawn street is seen: a pinhole camera, one light, and a canvas that remembers what each pixel shows."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tinydet.data.street.solids import Balls, Faces, Floats, Rng, Sprite

EYE = 1.65  # the camera's height above the ground in metres, as in KITTI
FINE = 2  # canvas pixels per picture pixel, each way
LABELLED = ("Car", "Van", "Truck", "Pedestrian", "Cyclist")
NEAR = 3.0  # the ground is drawn from this far on: what is nearer lies below the picture


class Camera(NamedTuple):
    """A pinhole camera that looks level along z; pixels, a pixel's centre being a whole number."""

    height: int
    width: int
    focal: float
    cx: float
    cy: float


class Light(NamedTuple):
    """The light of a scene; `sun` float[3] points to it in camera axes, colours are RGB in 0..1."""

    sun: Floats
    ambient: float
    direct: float
    haze: Floats
    zenith: Floats
    density: float


class Thing(NamedTuple):
    """A sprite on the ground at camera coordinates x, z, turned by `turn` about the vertical (KITTI's rotation_y)."""

    kind: str
    sprite: Sprite
    x: float
    z: float
    turn: float


def kitti_camera(size: tuple[int, int]) -> Camera:
    """KITTI's colour camera, its picture scaled to `size` (height, width)."""
    height, width = size
    return Camera(height, width, 721.0 * width / 1242, 609.0 * width / 1242, 173.0 * height / 375)


def placed(points: Floats, thing: Thing) -> Floats:
    """Points float[... 3] of a thing's own frame in camera coordinates: x right, y down, z forward."""
    return points @ _turning(thing.turn) + (thing.x, EYE, thing.z)


def _turning(turn: float) -> Floats:
    """The matrix float[3 3] that takes rows of a thing's own axes to the camera's."""
    cos, sin = np.cos(turn), np.sin(turn)
    return np.array([[cos, 0, -sin], [0, -1, 0], [sin, 0, cos]])


def seen(points: Floats, camera: Camera) -> Floats:
    """Points float[... 3] in camera coordinates as pixels float[... 2]."""
    return points[..., :2] / points[..., 2:] * camera.focal + (camera.cx, camera.cy)


def hulls(points: Floats, radii: Floats, *, sides: int) -> Floats:
    """Convex hulls of N sets of K discs, float[N K 2] and float[N K], as polygons float[N sides 2].

    A polygon's corner in each of `sides` directions is that of the disc which reaches farthest there.
    """
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ways = np.stack([np.cos(turn), np.sin(turn)])
    farthest = (points @ ways + radii[..., None]).argmax(1)  # [N sides]
    rows = np.arange(len(points))[:, None]
    return points[rows, farthest] + radii[rows, farthest][..., None] * ways.T


def outlines(thing: Thing, camera: Camera, light: Light) -> list[tuple[Floats, Floats]]:
    """A thing as polygons float[N P 2] in pixels and their colours float[N 3], part by part, in painting order."""
    return [
        _faces(p, thing, camera, light) if isinstance(p, Faces) else _balls(p, thing, camera, light)
        for p in thing.sprite.parts
    ]


def _hazed(colors: Floats, depth: Floats, light: Light) -> Floats:
    clear = np.exp(-light.density * depth)[:, None]
    return colors * clear + light.haze * (1 - clear)


def _faces(part: Faces, thing: Thing, camera: Camera, light: Light) -> tuple[Floats, Floats]:
    corners = placed(part.points, thing)
    normals = part.normals @ _turning(thing.turn)
    middles = corners.mean(1)
    front = np.flatnonzero(np.einsum("fc,fc->f", normals, middles) < 0)
    front = front[np.argsort(-middles[front, 2], kind="stable")]
    normals, depth = normals[front], middles[front, 2]
    lit = light.ambient * (0.8 - 0.2 * normals[:, 1]) + light.direct * np.clip(normals @ light.sun, 0, None)
    return seen(corners[front], camera), _hazed(part.colors[front] * lit[:, None], depth, light)


def _balls(part: Balls, thing: Thing, camera: Camera, light: Light) -> tuple[Floats, Floats]:
    centres = placed(part.points, thing)
    depth = centres[..., 2].mean(1)
    order = np.argsort(-depth, kind="stable")
    centres, depth = centres[order], depth[order]
    radii = part.radii[order] * camera.focal / centres[..., 2]
    pixels = seen(centres, camera)
    glint = light.sun[:2] / np.linalg.norm(light.sun[:2]) * radii[..., None] * 0.3
    shapes = np.stack([hulls(pixels, radii, sides=14), hulls(pixels + glint, radii * 0.68, sides=14)], 1)
    tones = np.array([light.ambient * 0.85 + light.direct * 0.2, light.ambient + light.direct * 0.62])
    colors = (part.colors[order][:, None] * tones[:, None]).reshape(-1, 3)
    return shapes.reshape(-1, 14, 2), _hazed(colors, depth.repeat(2), light)


def far_to_near(things: Sequence[Thing]) -> list[Thing]:
    """Things in painting order: nothing before what it may hide.

    One thing may hide another when it ends before the other begins, along z or, on the sides of the line of sight
    straight ahead that both are on, away from that line, and the other way of looking does not say the opposite. What
    is free to come next comes by distance.
    """
    low, high = np.moveaxis(np.array([_footprint(thing) for thing in things]), 1, 0)  # [N 2] each, x and z
    sides = [(low[:, 0].clip(0), high[:, 0].clip(0)), ((-high[:, 0]).clip(0), (-low[:, 0]).clip(0))]
    both = [(near < far)[:, None] & (near < far) for near, far in sides]
    apart = [~shared | (far[:, None] <= near) for (near, far), shared in zip(sides, both, strict=True)]
    before_x, before_z = (both[0] | both[1]) & apart[0] & apart[1], high[:, 1][:, None] <= low[:, 1]
    hides = (before_x | before_z) & ~before_x.T & ~before_z.T
    order: list[int] = []
    left = set(range(len(things)))
    while left:
        rest = list(left)
        free = [i for i in rest if not hides[i, rest].any()] or rest
        order.append(max(free, key=lambda i: low[i, 1]))
        left.remove(order[-1])
    return [things[i] for i in order]


def _footprint(thing: Thing) -> tuple[Floats, Floats]:
    """The corners (x, z) of what a thing takes up between the ground and the height of a crown or a lamp."""
    points = np.concatenate([placed(part.points, thing).reshape(-1, 3) for part in thing.sprite.parts])
    points = points[points[:, 1] > EYE - 2.4][:, ::2]
    return points.min(0), points.max(0)


def paint(canvas: Image.Image, shapes: list[tuple[Floats, Floats]], *, number: int) -> None:
    """Paint polygons upon the canvas; the fourth band of each pixel becomes `number`, the thing that it shows."""
    draw = ImageDraw.Draw(canvas)
    for polygons, colors in shapes:
        # A pixel's centre u lies at 2u + .5 on the canvas; Pillow cuts to whole numbers, hence + .5 once more.
        corners = (polygons * FINE + FINE / 2).reshape(len(polygons), 2 * polygons.shape[1]).tolist()
        fills = (
            np.concatenate([np.clip(colors * 255, 0, 255), np.full((len(colors), 1), number)], 1).astype(int).tolist()
        )
        for corner, fill in zip(corners, fills, strict=True):
            draw.polygon(corner, fill=tuple(fill))


def pixels_of(canvas: Image.Image, box: Floats) -> list[int]:
    """How many canvas pixels in and around a box float[4] of picture pixels show each thing, by its number."""
    left, top = np.clip(box[:2] * FINE - 4, 0, canvas.size)
    right, bottom = np.clip(box[2:] * FINE + 4, (left, top), canvas.size)
    return canvas.crop((int(left), int(top), int(right), int(bottom))).getchannel("X").histogram()


def on_ground(polygon: Floats, camera: Camera) -> Floats:
    """A polygon float[... 2] of the ground (x, z) as pixels float[... 2]."""
    return seen(
        np.stack([polygon[..., 0], np.full(polygon.shape[:-1], EYE), np.maximum(polygon[..., 1], NEAR)], -1), camera
    )


def paint_ground(canvas: Image.Image, ground: tuple[Floats, Floats], camera: Camera, light: Light) -> None:
    """Paint the ground: polygons float[N P 2] (x, z) and colours float[N 3]; its haze and shadows come at the end."""
    polygons, colors = ground
    paint(canvas, [(on_ground(polygons, camera), colors * (light.ambient - light.direct * light.sun[1]))], number=0)


def shadows(things: Sequence[Thing], camera: Camera, sun: Floats) -> NDArray[np.float32]:
    """How much of the things' shadow falls on each pixel: float32[H W] in 0..1, with soft edges."""
    mask = Image.new("L", (camera.width, camera.height))
    draw = ImageDraw.Draw(mask)
    for thing in things:
        flat = [part.points.reshape(1, -1, 3) for part in thing.sprite.parts if isinstance(part, Faces)]
        solids = [(p.points, p.radii) for p in thing.sprite.parts if isinstance(p, Balls)]
        if flat:  # one hull for all faces
            solids.append((np.concatenate(flat, 1), np.zeros((1, sum(points.shape[1] for points in flat)))))
        for own, radii in solids:
            points = placed(own, thing)
            ground = (points - sun * ((EYE - points[..., 1]) / -sun[1])[..., None])[..., ::2]
            for polygon in on_ground(hulls(ground, radii, sides=16), camera).reshape(-1, 32).tolist():
                draw.polygon(polygon, fill=255)
    return np.asarray(mask.filter(ImageFilter.BoxBlur(1.5))).astype(np.float32) / np.float32(255)


def sky(rng: Rng, camera: Camera, light: Light) -> Image.Image:
    """The canvas with nothing on it yet: a sky with clouds, and hills along the horizon."""
    down = np.linspace(0, 1, int(camera.cy) + 1, dtype=np.float32)[:, None]
    shape = (len(down), camera.width)
    cloud = sum(
        weight * _smooth(rng.normal(size=(cells, cells)), shape) for cells, weight in ((6, 1.0), (14, 0.6), (40, 0.3))
    )
    cover = np.clip(cloud * 0.45 + rng.uniform(-0.6, 0.5), 0, 0.85) * (1 - 0.6 * down)
    hill = down > 1 - 0.03 - 0.12 * _smooth(rng.random((1, 40)), (1, camera.width))
    bands = []
    for zenith, haze in zip(light.zenith, light.haze, strict=True):
        white = (haze * 0.35 + 0.65) * min(1.0, light.ambient + 0.5)
        clear = np.float32(zenith) + np.float32(haze - zenith) * down**0.7
        band = np.where(hill, np.float32(haze * 0.8 + 0.03), clear + cover * (np.float32(white) - clear))
        bands.append(Image.fromarray((band.clip(0, 1) * 255).astype(np.uint8)))
    above = Image.merge("RGBX", [*bands, Image.new("L", bands[0].size)])
    canvas = Image.new(
        "RGBX", (camera.width * FINE, camera.height * FINE), (*(light.haze * 255).astype(int).tolist(), 0)
    )
    canvas.paste(above.resize((canvas.width, above.height * FINE), Image.Resampling.NEAREST), (0, 0))
    return canvas


def _smooth(coarse: Floats, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A coarse array as a smooth one of another shape (height, width)."""
    return np.asarray(Image.fromarray(coarse.astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC))


@lru_cache(maxsize=4)
def _ground_grid(camera: Camera) -> tuple[int, NDArray[np.float32], NDArray[np.intp]]:
    """The first row below the horizon; from there on the ground's z float32[R 1], and which 7 cm cell of 256 x 256."""
    first = int(np.floor(camera.cy)) + 1
    z = camera.focal * EYE / (np.arange(first, camera.height) - camera.cy)[:, None]
    x = (np.arange(camera.width) - camera.cx) * z / camera.focal
    return first, z.astype(np.float32), (z * 14).astype(int) % 256 * 256 + np.floor(x * 14).astype(int) % 256


def finish(canvas: Image.Image, things: Sequence[Thing], *, camera: Camera, light: Light, rng: Rng) -> Image.Image:
    """The canvas as a picture: grain, shadow and haze on the ground, then what a camera adds."""
    first, z, cells = _ground_grid(camera)
    bare = canvas.getchannel("X").point([255] + [0] * 255).reduce(FINE)
    cover = np.asarray(bare)[first:].astype(np.float32) / 255
    texture = rng.standard_normal((256, 256), dtype=np.float32)
    stains = 0.04 * _smooth(np.pad(rng.normal(size=(12, 12)), (0, 12), mode="symmetric"), (256, 256))  # its ends meet
    grain = 1 + (0.045 * np.clip(9 / z, 0, 1)) * texture.ravel()[cells] + stains.ravel()[cells]
    share = np.float32(0.85 * light.direct / (light.direct + light.ambient))
    movers = [thing for thing in things if thing.kind in LABELLED]
    lit = 1 - share * shadows(things, camera, light.sun)[first:]
    lit *= 1 - np.float32(0.55) * shadows(movers, camera, np.array([0.0, -1.0, 0.0]))[first:]
    clear = np.exp(-np.float32(light.density) * z)
    gain, fog = 1 + cover * (grain * lit * clear - 1), cover * (1 - clear)
    noise = rng.standard_normal((camera.height, camera.width), dtype=np.float32) * np.float32(rng.uniform(1.0, 3.5))
    exposure = rng.normal(1.05, 0.06) * rng.normal(1, 0.015, 3)
    bands = []
    for band, haze, bright in zip(canvas.reduce(FINE).split()[:3], light.haze, exposure, strict=True):
        plane = np.asarray(band).astype(np.float32)
        plane[first:] = plane[first:] * gain + fog * np.float32(haze * 255)
        bands.append(Image.fromarray((plane * np.float32(bright) + noise).clip(0, 255).astype(np.uint8)))
    return Image.merge("RGB", bands)
