"""People on foot and on bicycles: limbs, each the hull of a ball at either end."""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from tinydet.data.street.solids import MATERIALS, PAINTS, Blob, Floats, Rng, Sprite, balls, pick, sprite

# fmt: off
CLOTHES = np.array([
    (.13, .14, .18), (.18, .24, .42), (.58, .12, .14), (.82, .80, .76), (.16, .36, .24), (.42, .34, .26),
    (.74, .56, .16), (.35, .36, .40), (.62, .34, .50), (.24, .48, .64), (.86, .44, .14),
])
SKINS = np.array([(.93, .76, .65), (.84, .64, .50), (.66, .46, .33), (.45, .30, .21), (.30, .20, .15)])
HAIRS = np.array([(.08, .07, .06), (.22, .14, .08), (.42, .28, .14), (.72, .58, .34), (.62, .62, .62)])

# A bicycle: the points of its frame (x, y), the tubes between them, and its other pieces as balls (x, y, z, radius).
FRAME = {
    "crank": (-.08, .29), "seat": (-.24, .90), "rear": (-.52, .34), "front": (.52, .34), "head": (.33, .86),
    "neck": (.37, .70), "bar": (.30, 1.04),
}
TUBES = ["crank seat", "crank neck", "seat head", "rear crank", "rear seat", "front neck", "neck bar"]
WHEEL = .325
PIECES: list[tuple[str, list[ArrayLike]]] = [
    ("k", [(.30, 1.04, -.26, .018), (.35, 1.04, 0, .018)]), ("k", [(.30, 1.04, .26, .018), (.35, 1.04, 0, .018)]),
    ("k", [(-.34, .93, 0, .05), (-.14, .93, 0, .025)]), ("k", [(-.52, .70, 0, .02), (-.78, .60, 0, .02)]),
    ("r", [(-.84, .58, 0, .03)]), ("w", [(.42, .88, 0, .035)]),
]
# fmt: on


def walker(rng: Rng) -> Sprite:
    """Someone on foot, in some phase of a step; lengths are parts of the height."""
    tall = rng.uniform(1.05, 1.4) if rng.random() < 0.12 else np.clip(rng.normal(1.72, 0.09), 1.5, 1.95)
    skin, hair, top, legs, shoe = _colors(rng)
    swing, wide, style = rng.uniform(0.12, 0.5) * rng.choice([-1, 1]), rng.uniform(0.9, 1.2), rng.random()
    sleeve, shin = skin if style < 0.3 else top, skin if style < 0.2 else legs
    blobs: list[Blob] = []
    for side, phase in ((-1, swing), (1, -swing)):
        arm = -0.9 * phase
        hip, shoulder = np.array([0, 0.49, 0.052 * side]), np.array([0, 0.79, 0.112 * wide * side])
        knee = _swung(hip, 0.235, phase)
        ankle = _swung(knee, 0.215, phase - 0.1 - max(0.0, -phase))
        elbow = np.add(_swung(shoulder, 0.165, arm), (0, 0, 0.012 * side))
        hand = _swung(elbow, 0.15, arm + 0.4)
        heel, toe = np.add(ankle, (-0.012, -0.01, 0)), np.add(ankle, (0.085, -0.018, 0))
        blobs += [_limb(legs, hip, 0.058 * wide, knee, 0.042), _limb(shin, knee, 0.04, ankle, 0.026)]
        blobs += [_limb(shoe, heel, 0.026, toe, 0.018), _limb(top, shoulder, 0.036, elbow, 0.029)]
        blobs += [_limb(sleeve, elbow, 0.028, hand, 0.02), (skin, [(*hand, 0.024)])]
    blobs.append((top, _across((0, 0.79, 0.075 * wide, 0.04), (0, 0.54, 0.05 * wide, 0.058))))
    if style > 0.7:  # a coat or a skirt
        hem = _across((0, 0.55, 0.05, 0.06), (0, rng.uniform(0.27, 0.4), 0.075, 0.05))
        blobs.append((top if style > 0.85 else legs, hem))
    if rng.random() < 0.3:
        blobs.append((pick(rng, CLOTHES), _across((-0.1, 0.76, 0.05, 0.045), (-0.1, 0.6, 0.05, 0.045))))
    blobs.append((skin, [(0, 0.83, 0, 0.032), (0.01, 0.87, 0, 0.03)]))
    blobs += _head(np.array([0.015, 0.925, 0]), 0.056, skin, pick(rng, CLOTHES) if rng.random() < 0.2 else hair)
    part = balls(blobs)
    return sprite(part._replace(points=part.points * tall, radii=part.radii * tall))


def bicycle(rng: Rng) -> list[Blob]:
    """A bicycle without its rider."""
    paint = pick(rng, PAINTS)
    tube = {name: (x, y, 0, 0.021) for name, (x, y) in FRAME.items()}
    blobs: list[Blob] = [(paint, [tube[end] for end in ends.split()]) for ends in TUBES]
    blobs += [(MATERIALS[material], spheres) for material, spheres in PIECES]
    turn = np.linspace(0, 2 * np.pi, 17)
    circle = np.stack([np.cos(turn) * WHEEL, np.sin(turn) * WHEEL, 0 * turn, 0 * turn], -1)
    for x, y in (FRAME["rear"], FRAME["front"]):
        tyre, wire = np.add(circle, (x, y, 0, 0.024)), np.add(circle, (x, y, 0, 0.003))
        blobs += [(MATERIALS["t"], ends) for ends in pairwise(tyre)]
        blobs += [(MATERIALS["m"], [wire[i], wire[i + 8]]) for i in range(0, 8, 2)]
    return blobs


def rider(rng: Rng) -> Sprite:
    """Someone on a bicycle, pedalling."""
    skin, hair, top, legs, shoe = _colors(rng)
    lean, crank, style, size = rng.uniform(0.15, 0.55), rng.uniform(0, 2 * np.pi), rng.random(), rng.uniform(0.92, 1.05)
    sleeve, shin = skin if style < 0.5 else top, skin if style < 0.35 else legs
    hip = np.array([-0.22, 0.98, 0])
    spine = size * 0.5 * np.array([np.sin(lean), np.cos(lean), 0])
    chest = hip + spine
    blobs = bicycle(rng)
    for side in (-1, 1):
        turn = crank + (np.pi if side > 0 else 0)
        foot = np.array([-0.08 + 0.16 * np.cos(turn), 0.36 + 0.16 * np.sin(turn), 0.1 * side])
        seat, shoulder = np.add(hip, (0, 0, 0.09 * side)), np.add(chest, (0, 0, 0.17 * size * side))
        hand = np.array([0.3, 1.07, 0.24 * side])
        knee = _joint(seat, foot, 0.43 * size, forward=True)
        elbow = np.add(_joint(shoulder, hand, 0.29 * size, forward=False), (0, 0, 0.05 * side))
        ankle, heel, toe = (np.add(foot, by) for by in ((-0.05, 0.08, 0), (-0.06, 0.02, 0), (0.1, 0, 0)))
        blobs += [_limb(legs, seat, 0.095, knee, 0.07), _limb(shin, knee, 0.065, ankle, 0.045)]
        blobs += [_limb(shoe, heel, 0.045, toe, 0.032), _limb(top, shoulder, 0.062, elbow, 0.05)]
        blobs += [_limb(sleeve, elbow, 0.046, hand, 0.034), (skin, [(*hand, 0.04)])]
    blobs.append((top, _across((*chest[:2], 0.12, 0.075), (*hip[:2], 0.07, 0.105))))
    if rng.random() < 0.3:
        low, high = (hip[:2] + share * spine[:2] + (-0.13, 0.04) for share in (0.4, 0.95))
        blobs.append((pick(rng, CLOTHES), _across((*low, 0.08, 0.07), (*high, 0.08, 0.07))))
    neck = np.add(chest, (0.06, 0.1, 0))
    blobs.append(_limb(skin, chest, 0.05, neck, 0.05))
    blobs += _head(np.add(neck, (0.06, 0.12, 0)), 0.098, skin, pick(rng, PAINTS) if rng.random() < 0.6 else hair)
    return sprite(balls(blobs))


def _colors(rng: Rng) -> list[Floats]:
    """The colours of skin, hair, top, legs and shoes."""
    person = [pick(rng, SKINS, spread=0.012), pick(rng, HAIRS, spread=0.02)]
    return person + [pick(rng, colors) for colors in (CLOTHES, CLOTHES, CLOTHES * 0.5)]


def _limb(color: ArrayLike, start: Floats, thick: float, end: Floats, thin: float) -> Blob:
    return color, [(*start, thick), (*end, thin)]


def _across(*spheres: tuple[float, float, float, float]) -> list[ArrayLike]:
    """Balls (x, y, z, radius) and their mirror images on the other side."""
    return [(x, y, side * z, radius) for x, y, z, radius in spheres for side in (-1, 1)]


def _head(at: Floats, size: float, skin: ArrayLike, hair: ArrayLike) -> list[Blob]:
    """A head at float[3] under hair, a hat or a helmet, that looks along x."""
    x, y, z = at
    above = [(x - 0.2 * size, y + 0.35 * size, z, 0.98 * size), (x - 0.45 * size, y + 0.1 * size, z, 0.8 * size)]
    return [(skin, [(x, y, z, size), (x + 0.25 * size, y - 0.45 * size, z, 0.68 * size)]), (hair, above)]


def _swung(joint: Floats, length: float, angle: float) -> Floats:
    """The end of a bone that hangs from a joint and is swung forward by an angle in radians."""
    return joint + length * np.array([np.sin(angle), -np.cos(angle), 0])


def _joint(start: Floats, end: Floats, bone: float, *, forward: bool) -> Floats:
    """Where two bones of one length meet that run from start to end: a knee, which bends forward, or an elbow."""
    span = end - start
    off = np.sqrt(max(bone**2 - float(span @ span) / 4, 0.0))
    across = np.array([-span[1], span[0], 0]) / np.hypot(span[0], span[1])
    return (start + end) / 2 + across * off * (1 if (across[0] > 0) == forward else -1)
