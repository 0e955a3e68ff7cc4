"""Solids, made of flat faces and of hulls of balls: what everything in a drawn street is built from.

A thing's own frame, in metres: x forward, y up from the ground, z across. Colours are RGB in 0..1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Rng = np.random.Generator


class Faces(NamedTuple):
    """Flat polygons: points float[F P 3], outward normals float[F 3], colours float[F 3]."""

    points: Floats
    normals: Floats
    colors: Floats


class Balls(NamedTuple):
    """Convex hulls of K balls each: centres float[N K 3], radii float[N K], colours float[N 3]."""

    points: Floats
    radii: Floats
    colors: Floats


class Sprite(NamedTuple):
    """A thing: its parts in painting order, and its measures (height, width, length)."""

    parts: tuple[Faces | Balls, ...]
    dims: tuple[float, float, float]


Blob = tuple[ArrayLike, Sequence[ArrayLike]]  # colour, and balls (x, y, z, radius)

# fmt: off
MATERIALS = {
    "k": (.13, .13, .14), "t": (.07, .07, .08), "g": (.15, .19, .23), "m": (.66, .67, .69), "d": (.03, .03, .03),
    "r": (.74, .05, .05), "w": (.95, .96, .98), "o": (.92, .52, .10), "l": (.88, .88, .82), "s": (.26, .31, .36),
}
PAINTS = np.array([
    (.88, .88, .88), (.70, .71, .73), (.45, .46, .48), (.22, .23, .25), (.10, .10, .12), (.66, .10, .10),
    (.12, .24, .54), (.10, .34, .26), (.80, .64, .14), (.36, .50, .68), (.42, .26, .18), (.80, .76, .66),
    (.78, .32, .08),
])
# fmt: on


def pick(rng: Rng, colors: Floats, *, spread: float = 0.04) -> Floats:
    """One of the colours float[N 3], a little changed."""
    return np.clip(colors[rng.integers(len(colors))] + rng.normal(0, spread, 3), 0.02, 0.97)


def faces(points: Floats, colors: ArrayLike, *, inside: ArrayLike) -> Faces:
    """Polygons float[F P 3] as faces of a solid around the point `inside` float[3]: their normals look away from it."""
    size = points.shape[1]
    normals = np.cross(points[:, size // 2] - points[:, 0], points[:, -1] - points[:, size // 4])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    outward = np.einsum("fc,fc->f", normals, points.mean(1) - np.asarray(inside)) >= 0
    return Faces(points, np.where(outward[:, None], normals, -normals), np.broadcast_to(colors, (len(points), 3)))


def join(parts: Sequence[Faces]) -> Faces:
    """Several sets of faces as one."""
    return Faces(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def shrink(points: Floats, by: float) -> Floats:
    """Polygons float[F P 3] drawn in towards their middles: a pane in its frame."""
    middle = points.mean(1, keepdims=True)
    return middle + (points - middle) * (1 - by)


def balls(blobs: Sequence[Blob]) -> Balls:
    """Blobs as one part; each is filled up to the longest with its own last ball."""
    most = max(len(spheres) for _, spheres in blobs)
    table = np.array([[*spheres, *[spheres[-1]] * (most - len(spheres))] for _, spheres in blobs], dtype=np.float64)
    return Balls(table[..., :3], table[..., 3], np.array([color for color, _ in blobs], dtype=np.float64))


def sprite(*parts: Faces | Balls) -> Sprite:
    """Parts as a thing: stood on the ground, centred in length and width, and measured."""
    low = np.min([(p.points - _thick(p)).reshape(-1, 3).min(0) for p in parts], axis=0)
    high = np.max([(p.points + _thick(p)).reshape(-1, 3).max(0) for p in parts], axis=0)
    base = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    length, height, width = (high - low).tolist()
    return Sprite(tuple(p._replace(points=p.points - base) for p in parts), (height, width, length))


def _thick(part: Faces | Balls) -> Floats | float:
    return part.radii[..., None] if isinstance(part, Balls) else 0.0
