"""What stands beside a drawn street and is in no label: houses, trees, and things that look a little like people."""

import numpy as np
from numpy.typing import ArrayLike

from tinydet.data.street.people import CLOTHES, bicycle
from tinydet.data.street.solids import (
    MATERIALS,
    PAINTS,
    Balls,
    Blob,
    Faces,
    Floats,
    Rng,
    Sprite,
    balls,
    faces,
    join,
    pick,
    shrink,
    sprite,
)

# fmt: off
LEAVES = np.array([(.20, .34, .12), (.28, .38, .14), (.16, .30, .16), (.42, .40, .14), (.24, .36, .20)])
BARK = (.26, .21, .17)
WALLS = np.array([
    (.80, .76, .68), (.72, .62, .50), (.62, .42, .34), (.84, .83, .80), (.66, .68, .70), (.78, .68, .48),
    (.54, .46, .42),
])
ROOFS = np.array([(.45, .22, .16), (.32, .24, .22), (.30, .31, .34), (.52, .30, .20)])
CROWNS = [  # height of the trunk, middle and half axes of the crown, the size of a leaf
    (2.6, (0, 5.0, 0), (2.3, 2.5, 2.3), .17), (2.0, (0, 4.8, 0), (1.1, 3.4, 1.1), .14),
    (1.9, (0, 3.0, 0), (1.2, 1.4, 1.2), .12), (3.4, (0, 7.2, 0), (3.4, 3.6, 3.4), .24),
]
Corner = tuple[float, float, float]
# Boxes by two corners, and hulls of balls (x, y, z, radius); p is paint.
PROPS: dict[str, tuple[list[tuple[str, Corner, Corner]], list[tuple[str, list[ArrayLike]]]]] = {
    "lamp": ([], [("m", [(0, 0, 0, .09), (0, 5.6, 0, .05)]), ("m", [(0, 5.6, 0, .05), (1.2, 5.95, 0, .04)]),
                  ("l", [(1.1, 5.9, 0, .07), (1.6, 5.95, 0, .07)])]),
    "bollard": ([], [("k", [(0, 0, 0, .07), (0, .95, 0, .07)]), ("w", [(0, .76, 0, .078), (0, .86, 0, .078)])]),
    "signal": ([("k", (-.13, 2.3, -.15), (.13, 3.25, .15))],
               [("m", [(0, 0, 0, .045), (0, 2.3, 0, .045)]), ("r", [(-.12, 3.05, 0, .09)]),
                ("t", [(-.12, 2.79, 0, .09)]), ("t", [(-.12, 2.53, 0, .09)])]),
    "bin": ([("p", (-.26, .06, -.26), (.26, 1.0, .26)), ("k", (-.32, 1.0, -.3), (.3, 1.08, .3))], []),
    "locker": ([("k", (-.1, 0, -.1), (.1, .4, .1)), ("p", (-.2, .4, -.28), (.2, 1.5, .28))], []),
    "pillar": ([("p", (-.3, 0, -.3), (.3, 1.9, .3)), ("l", (-.31, .8, -.31), (.31, 1.6, .31))], []),
}
# fmt: on


def prop(rng: Rng, name: str) -> Sprite:
    """A piece of street furniture: `name` is a row of PROPS."""
    boxes, blobs = PROPS[name]
    paints = MATERIALS | {"p": tuple(pick(rng, np.concatenate([PAINTS, CLOTHES])).tolist())}
    parts: list[Faces | Balls] = [_box(low, high, paints[material]) for material, low, high in boxes]
    if blobs:
        parts.append(balls([(paints[material], spheres) for material, spheres in blobs]))
    size = rng.uniform(0.85, 1.15)
    return sprite(*(part._replace(points=part.points * size) for part in parts))


def _box(low: Corner, high: Corner, color: ArrayLike) -> Faces:
    """An upright box between two corners."""
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1)  # [2 2 2 3]
    sides = [np.take(corners, end, axis).reshape(4, 3)[[0, 1, 3, 2]] for axis in range(3) for end in range(2)]
    return faces(np.array(sides, dtype=np.float64), color, inside=corners.mean((0, 1, 2)))


def sign(rng: Rng) -> Sprite:
    """A traffic sign on its post: a triangle, a square or a disc, with a paler middle."""
    height, radius, sides = rng.uniform(2.0, 2.6), rng.uniform(0.3, 0.4), rng.choice([3, 4, 20])
    rim, middle = [((0.78, 0.07, 0.09), (0.93, 0.93, 0.9)), ((0.1, 0.25, 0.6), (0.2, 0.4, 0.8))][rng.integers(2)]
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / 2
    ring = np.stack([np.full(sides, -0.04), height + np.sin(turn) * radius, np.cos(turn) * radius], -1)[None]
    inside = (0, height, 0)
    plates = [faces(ring, rim, inside=inside), faces(shrink(ring, 0.3), middle, inside=inside)]
    back = faces(ring * (-1, 1, 1), MATERIALS["m"], inside=inside)
    return sprite(balls([(MATERIALS["m"], [(0, 0, 0, 0.035), (0, height, 0, 0.035)])]), back, *plates)


def tree(rng: Rng) -> Sprite:
    """A trunk and a few boughs under a crown of leaves."""
    trunk, middle, axes, leaf = CROWNS[rng.integers(len(CROWNS))]
    ends = middle + rng.uniform(-0.6, 0.6, (4, 3)) * axes
    wood: list[Blob] = [(BARK, [(0, 0, 0, 0.17), (0, trunk, 0, 0.11)])]
    wood += [(BARK, [(0, trunk, 0, 0.09), (*end, 0.03)]) for end in ends]
    return sprite(balls(wood), _foliage(rng, count=650, middle=np.array(middle), axes=np.array(axes), leaf=leaf))


def bush(rng: Rng) -> Sprite:
    """A round shrub, about as high as a child or a low car."""
    axes = rng.uniform(0.7, 1.5) * np.array([0.6, 0.5, 0.6])
    return sprite(_foliage(rng, count=300, middle=np.zeros(3), axes=axes, leaf=0.07))


def _foliage(rng: Rng, *, count: int, middle: Floats, axes: Floats, leaf: float) -> Faces:
    """Leaves in clumps: small polygons strewn through a ball stretched to `axes`, lit as its surface would be."""
    green = pick(rng, LEAVES, spread=0.03)
    out = rng.normal(size=(count, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    clumps = out[:24] * rng.uniform(0.45, 0.75, (24, 1))
    where = clumps[rng.integers(24, size=count)] + out * rng.uniform(0.15, 0.42, (count, 1))
    turn = np.linspace(0, 2 * np.pi, 7)[:-1, None]
    across, along = rng.normal(size=(2, count, 1, 3)) * leaf
    points = middle + where[:, None] * axes + np.cos(turn) * across + np.sin(turn) * along
    tone = 0.75 + 0.45 * where[:, 1] + 0.45 * np.linalg.norm(where, axis=1) + rng.normal(0, 0.13, count)
    return Faces(points, out, np.clip(green * tone[:, None], 0.02, 0.9))


def clutter(rng: Rng) -> Sprite:
    """Something that stands by a street."""
    what = rng.choice(["tree", "tree", "tree", "bush", "bush", "sign", "bicycle", *PROPS])
    if what in PROPS:
        return prop(rng, str(what))
    if what == "bicycle":  # one that nobody rides: KITTI labels none
        return sprite(balls(bicycle(rng)))
    return {"tree": tree, "bush": bush, "sign": sign}[str(what)](rng)


def house(rng: Rng, *, length: float, side: int) -> Sprite:
    """A house that turns its front to the street and a gable to the camera.

    Args:
        rng: of everything about it.
        length: along the street, metres.
        side: -1 for the left of the street, 1 for the right.
    """
    floors, bays, depth = int(rng.integers(2, 5)), max(2, round(length / rng.uniform(2.6, 3.6))), rng.uniform(8, 12)
    height, wall, shop = floors * rng.uniform(2.8, 3.3), pick(rng, WALLS), rng.random() < 0.35
    front, end = -side * depth / 2, length / 2
    street = _wall((front, -end), (front, end), height, bays=bays, floors=floors)
    grid = np.concatenate([street, _wall((-front, -end), (front, -end), height, bays=3, floors=floors)])
    below, holes = np.isclose(grid[:, 0, 1], 0), rng.random(len(grid)) < 0.88
    frames = shrink(grid[holes & ~below], 0.48)
    doors = shrink(grid[holes & below], 0.2 if shop else 0.5)
    panes = np.array(MATERIALS["g"]) * rng.uniform(0.7, 1.6, (len(frames), 1))
    awning = np.array([[(front, 3.1, -end), (front, 3.1, end), (front, 2.5, end), (front, 2.5, -end)]])
    inside = (0, height / 2, 0)
    return sprite(
        faces(grid, wall * np.where(below, 0.88, 1)[:, None], inside=inside),
        faces(frames, np.clip(wall * 1.2 + 0.1, 0, 0.95), inside=inside),
        faces(shrink(frames, 0.2), panes, inside=inside),
        faces(doors, MATERIALS["g"] if shop else pick(rng, WALLS) * 0.6, inside=inside),
        *([faces(awning, pick(rng, PAINTS), inside=inside)] if shop else []),
        _roof(rng, wall, depth=depth, end=end, height=height),
    )


def _wall(start: tuple[float, float], end: tuple[float, float], height: float, *, bays: int, floors: int) -> Floats:
    """An upright wall between two points (x, z), cut into bays and floors: float[bays*floors 4 3]."""
    along, up = np.linspace(start, end, bays + 1), np.linspace(0, height, floors + 1)
    grid = np.stack(np.broadcast_arrays(along[:, None, 0], up[None], along[:, None, 1]), -1)
    return np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], 2).reshape(-1, 4, 3)


def _roof(rng: Rng, wall: Floats, *, depth: float, end: float, height: float) -> Faces:
    """Two slopes that meet at a ridge along the street, and the gable below them."""
    top, eaves, out = height + rng.uniform(1.8, 4), height - 0.15, depth / 2 + 0.45
    slopes = np.array([[(x, eaves, -end), (x, eaves, end), (0, top, end), (0, top, -end)] for x in (-out, out)])
    gable = np.array([[(-depth / 2, height, -end), (depth / 2, height, -end), (0, top, -end), (0, top, -end)]])
    inside = (0, height, 0)
    return join([faces(gable, wall, inside=inside), faces(slopes, pick(rng, ROOFS), inside=inside)])
