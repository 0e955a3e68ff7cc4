"""Motor vehicles: tables in unit coordinates, stretched to each vehicle's measures."""

from collections.abc import Sequence

import numpy as np

from tinydet.data.street.solids import MATERIALS, PAINTS, Faces, Floats, Rng, Sprite, faces, join, pick, shrink, sprite

# fmt: off
# A body, tail to nose, in hundredths of the vehicle's length, height and width: x, heights of sill, belt and roof, half
# widths at belt and roof, and what the stretch up to the next station has at the side and on top (g is glass).
SEDAN = [
    (-50, 34, 52, 54, 42, 38, "pp"), (-48, 22, 65, 67, 47, 42, "pp"), (-34, 17, 66, 70, 49, 42, "pg"),
    (-19, 16, 65, 97, 50, 36, "gp"), (-3, 16, 64, 100, 50, 37, "gp"), (10, 16, 63, 97, 50, 36, "gg"),
    (27, 16, 62, 68, 50, 43, "pp"), (42, 18, 58, 63, 48, 41, "pp"), (48, 20, 53, 56, 46, 39, "pp"),
    (50, 27, 44, 46, 42, 37, "pp"),
]
HATCH = [
    (-50, 34, 50, 53, 44, 38, "pp"), (-48, 22, 62, 66, 48, 42, "pp"), (-46, 18, 64, 70, 49, 42, "gg"),
    (-35, 16, 64, 95, 50, 37, "gp"), (-9, 16, 63, 100, 50, 38, "gp"), (8, 16, 62, 97, 50, 37, "gg"),
    (29, 16, 61, 67, 50, 44, "pp"), (42, 18, 57, 62, 48, 42, "pp"), (48, 20, 52, 55, 46, 40, "pp"),
    (50, 27, 43, 45, 42, 37, "pp"),
]
WAGON = [
    (-50, 34, 52, 54, 43, 38, "pp"), (-49, 22, 64, 67, 48, 42, "pp"), (-47, 17, 65, 70, 49, 43, "gg"),
    (-40, 16, 65, 96, 50, 38, "gp"), (-20, 16, 64, 99, 50, 38, "gp"), (-4, 16, 63, 100, 50, 38, "gp"),
    (10, 16, 62, 97, 50, 37, "gg"), (26, 16, 62, 68, 50, 43, "pp"), (42, 18, 58, 63, 48, 41, "pp"),
    (48, 20, 53, 56, 46, 39, "pp"), (50, 27, 44, 46, 42, 37, "pp"),
]
VAN = [
    (-50, 20, 50, 96, 47, 44, "pp"), (-49, 13, 51, 99, 50, 45, "pp"), (-20, 13, 51, 100, 50, 45, "pp"),
    (6, 13, 51, 100, 50, 45, "gp"), (23, 13, 50, 98, 50, 44, "gg"), (39, 13, 48, 55, 50, 46, "pp"),
    (48, 15, 43, 48, 48, 43, "pp"), (50, 22, 36, 40, 44, 40, "pp"),
]
CAB = [
    (27, 14, 40, 66, 46, 42, "pp"), (29, 14, 40, 72, 47, 43, "gp"), (42, 14, 40, 72, 47, 43, "gg"),
    (49, 14, 38, 42, 47, 44, "pp"), (50, 17, 34, 36, 45, 42, "pp"),
]
CARGO = [
    (-50, 30, 60, 99, 49, 48, "pp"), (-49, 28, 60, 100, 50, 49, "pp"), (24, 28, 60, 100, 50, 49, "pp"),
    (25, 30, 60, 99, 49, 48, "pp"),
]

# Things upon a body: what they are made of, then x, y, z from and to, in thousandths; upright rectangles and their
# mirror images on the other side.
DOORS = [
    ("d", 94, 98, 240, 600, 500, 500), ("d", -65, -61, 240, 620, 500, 500), ("d", -235, -231, 380, 620, 500, 500),
    ("k", -45, -5, 545, 565, 500, 500), ("k", -215, -175, 550, 570, 500, 500), ("k", -190, 200, 170, 220, 500, 500),
]
NOSE = [
    ("w", 502, 470, 410, 510, 240, 465), ("k", 503, 503, 370, 450, -200, 200), ("k", 503, 492, 200, 270, -360, 360),
    ("l", 505, 505, 285, 345, -140, 140), ("o", 472, 450, 430, 480, 465, 485), ("w", 503, 497, 240, 280, 280, 360),
]
TAIL = [
    ("r", -503, -478, 470, 610, 270, 475), ("k", -503, -492, 200, 280, -400, 400),
    ("l", -505, -505, 400, 470, -140, 140), ("w", -505, -495, 470, 510, 290, 380),
    ("d", -503, -503, 370, 375, -420, 420),
]
VAN_PARTS = [
    ("r", -503, -497, 300, 520, 400, 475), ("g", -500, -500, 560, 860, 60, 400),
    ("l", -505, -505, 300, 360, -110, 110), ("k", -503, -503, 140, 200, -460, 460), ("d", -503, -503, 200, 920, -4, 4),
    ("d", 55, 59, 180, 920, 500, 500), ("k", 70, 100, 450, 470, 500, 500), ("d", 225, 229, 180, 500, 500, 500),
    ("k", -190, 230, 240, 280, 500, 500), ("w", 502, 470, 340, 420, 260, 460), ("k", 503, 503, 290, 360, -240, 240),
    ("l", 505, 505, 200, 245, -110, 110),
]
TRUCK_PARTS = [
    ("r", -503, -503, 200, 250, 340, 470), ("k", -503, -503, 160, 210, -480, 480),
    ("l", -505, -505, 200, 250, -100, 100), ("d", -503, -503, 310, 970, -3, 3), ("m", -503, -503, 310, 330, -480, 480),
    ("k", -220, 200, 160, 270, 460, 460), ("w", 503, 497, 180, 235, 300, 440), ("k", 503, 503, 250, 330, -360, 360),
    ("l", 505, 505, 170, 205, -110, 110), ("d", 298, 301, 160, 680, 480, 480), ("k", 310, 335, 380, 395, 480, 480),
    ("k", -500, 250, 280, 300, 503, 503),
]
# The corners of a streak across a pane, each a mixture of the pane's four corners.
STREAK = np.array([(.85, .15, 0, 0), (.55, .45, 0, 0), (0, 0, .75, .25), (0, 0, .45, .55)])
# kind: bodies, things upon them, wheel radius (m), axles, then the ranges of height, width and length (m)
VEHICLES = {
    "sedan": ([SEDAN], DOORS + NOSE + TAIL, .32, (-.29, .32), ((1.38, 1.50), (1.70, 1.84), (4.3, 4.8))),
    "hatch": ([HATCH], DOORS + NOSE + TAIL, .31, (-.31, .33), ((1.42, 1.56), (1.62, 1.76), (3.5, 4.1))),
    "wagon": ([WAGON], DOORS + NOSE + TAIL, .33, (-.29, .32), ((1.44, 1.62), (1.72, 1.86), (4.3, 4.8))),
    "suv": ([HATCH], DOORS + NOSE + TAIL, .38, (-.30, .32), ((1.62, 1.80), (1.80, 1.95), (4.1, 4.7))),
    "van": ([VAN], VAN_PARTS, .35, (-.29, .33), ((1.95, 2.35), (1.85, 2.05), (4.7, 5.4))),
    "truck": ([CAB, CARGO], TRUCK_PARTS, .48, (-.33, .36), ((3.0, 3.6), (2.35, 2.55), (6.5, 9.0))),
}
# fmt: on


def vehicle(rng: Rng, kind: str) -> Sprite:
    """A motor vehicle: `kind` is a row of VEHICLES."""
    bodies, upon, radius, axles, ranges = VEHICLES[kind]
    height, width, length = (rng.uniform(*r) for r in ranges)
    scale = np.array([length, height, width])
    layers = zip(*(_loft(rows, pick(rng, PAINTS, spread=0.02)) for rows in bodies), strict=True)
    marks = faces(_upright(upon), [MATERIALS[row[0]] for row in upon] * 2, inside=(0, 0.4, 0))
    shell, *details = (_stretch(part, scale) for part in (*map(join, layers), marks))
    back, tread, *discs = _wheels(radius, [x * length for x in axles], width)
    return sprite(back, tread, shell, *discs, *details)


def _loft(rows: Sequence[tuple], paint: Floats) -> tuple[Faces, Faces, Faces]:
    """A body through its stations, in unit coordinates: the shell, the panes in it, and the sky in the panes."""
    x, sill, belt, roof, wide, narrow = np.array([row[:6] for row in rows]).T / 100
    heights = [sill, sill + 0.3 * (belt - sill), belt, roof - 0.12 * (roof - belt), roof]
    halves = [0.93 * wide, wide, 0.96 * wide, narrow, 0.8 * narrow]
    right = np.stack([np.tile(x, (5, 1)), heights, halves], -1).swapaxes(0, 1)  # [S 5 3]
    left = right * (1, 1, -1)
    ring = np.concatenate([right, left[:, ::-1]], 1)
    quads = np.stack([ring[:-1, :-1], ring[1:, :-1], ring[1:, 1:], ring[:-1, 1:]], 2).reshape(-1, 4, 3)
    one, other = right[[0, -1]], left[[0, -1]]
    ends = np.stack([one[:, :-1], one[:, 1:], other[:, 1:], other[:, :-1]], 2).reshape(-1, 4, 3)
    made = np.array(list("".join(f"pp{side}p{top}p{side}pp" for *_, (side, top) in rows[:-1])))
    glass = shrink(quads[made == "g"], 0.1)
    sky = np.einsum("qc,fcd->fqd", STREAK, glass)
    inside = (x.mean(), 0.4, 0.0)
    shell = faces(np.concatenate([quads, ends]), paint, inside=inside)
    return shell, faces(glass, MATERIALS["g"], inside=inside), faces(sky, MATERIALS["s"], inside=inside)


def _upright(rows: Sequence[tuple]) -> Floats:
    """Upright rectangles and their mirror images, in unit coordinates: float[2N 4 3]."""
    x0, x1, y0, y1, z0, z1 = np.array([row[1:] for row in rows]).T / 1000
    one = np.stack([np.stack(corner, -1) for corner in ((x0, y0, z0), (x1, y0, z1), (x1, y1, z1), (x0, y1, z0))], 1)
    return np.concatenate([one, one * (1, 1, -1)])


def _wheels(radius: float, axles: Sequence[float], width: float) -> list[Faces]:
    """Four wheels: backs and treads, which the body hides in part, then arches, tyres, rims and hubs, which hide it."""
    turn = np.linspace(0, 2 * np.pi, 17)[:-1]
    spoke = np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], -1)
    outward = np.array([(0.0, 0.0, side) for _ in axles for side in (-1, 1)])
    hubs = np.array([(x, radius, side * width / 2) for x in axles for side in (-1, 1)])[:, None]
    outer = hubs + spoke * radius
    inner = outer * (1, 1, 0.72)
    treads = np.stack([outer, inner, np.roll(inner, -1, 1), np.roll(outer, -1, 1)], 2).reshape(-1, 4, 3)
    around = np.tile(spoke + np.roll(spoke, -1, 0), (len(hubs), 1))
    made = [Faces(inner, -outward, _all("d", 4)), Faces(treads, around, _all("t", len(treads)))]
    for share, material in ((1.14, "d"), (1.0, "t"), (0.66, "m"), (0.5, "k"), (0.44, "m"), (0.16, "k")):
        disc = (
            hubs * (1, max(share, 1), 1) + spoke * radius * share
        )  # an arch is wider than its tyre, and meets the ground
        made.append(Faces(disc, outward, _all(material, 4)))
    return made


def _all(material: str, count: int) -> Floats:
    return np.tile(MATERIALS[material], (count, 1))


def _stretch(part: Faces, scale: Floats) -> Faces:
    normals = part.normals / scale
    return part._replace(points=part.points * scale, normals=normals / np.linalg.norm(normals, axis=1, keepdims=True))
