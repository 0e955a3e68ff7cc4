"""Where things are in a drawn street: in metres, x to the right of the camera, z ahead of it; traffic keeps right."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinydet.data.street.paint import NEAR, Light, Thing
from tinydet.data.street.people import rider, walker
from tinydet.data.street.scenery import clutter, house, tree
from tinydet.data.street.solids import Floats, Rng, Sprite
from tinydet.data.street.vehicles import vehicle

FAR = 3000.0
AWAY, TOWARDS = -np.pi / 2, np.pi / 2  # rotation_y of what moves along z, and of what comes along it
# fmt: off
# ambient and direct light, zenith and haze colours, haze per metre from and to
WEATHERS = [
    (.56, .62, (.30, .50, .82), (.80, .86, .93), .002, .006),
    (.60, .50, (.42, .58, .80), (.84, .87, .90), .006, .012),
    (.90, .10, (.62, .66, .72), (.80, .82, .84), .004, .014),
    (.52, .56, (.34, .46, .70), (.93, .82, .70), .004, .010),
]
# kinds of vehicle, how many in a hundred, and KITTI's name for them
TRAFFIC = [
    ("sedan", 24, "Car"), ("hatch", 26, "Car"), ("wagon", 18, "Car"), ("suv", 16, "Car"), ("van", 10, "Van"),
    ("truck", 6, "Truck"),
]
# fmt: on
Spot = tuple[float, float, float]  # x, z, rotation_y


class Street(NamedTuple):
    """A street: lane width, kerbs, kinds of parking, outer edges of the pavements, and the z of a crossing, or inf."""

    lane: float
    kerbs: tuple[float, float]
    parking: tuple[str, str]
    edges: tuple[float, float]
    crossing: float


def draw_light(rng: Rng) -> Light:
    """The weather and the hour."""
    ambient, direct, zenith, haze, low, high = WEATHERS[rng.choice(len(WEATHERS), p=(0.4, 0.2, 0.25, 0.15))]
    height, way = np.radians(rng.uniform(32, 62)), np.radians(rng.uniform(-105, 105))
    sun = np.array([np.cos(height) * np.sin(way), -np.sin(height), -np.cos(height) * np.cos(way)])
    return Light(sun, ambient, direct, np.array(haze), np.array(zenith), rng.uniform(low, high))


PARKING = {"": 0.0, "along": 2.2, "across": 5.0}


def draw_street(rng: Rng) -> Street:
    """A straight street with the camera in its right lane."""
    lane = rng.uniform(3.1, 3.8)
    left, right = (str(rng.choice(list(PARKING), p=(0.3, 0.45, 0.25))) for _ in range(2))
    kerbs = (-1.5 * lane - PARKING[left], 0.5 * lane + PARKING[right] + 0.3)
    edges = (kerbs[0] - rng.uniform(2, 3.5), kerbs[1] + rng.uniform(2, 3.5))
    return Street(lane, kerbs, (left, right), edges, rng.uniform(14, 34) if rng.random() < 0.5 else np.inf)


def lay_out(rng: Rng) -> tuple[tuple[Floats, Floats], list[Thing]]:
    """A street: polygons of its ground and their colours, and everything that stands or moves there."""
    street = draw_street(rng)
    things: list[Thing] = []
    for _ in range(rng.integers(3, 7)):
        kind, name = _vehicle_kind(rng)
        _add(things, rng, name, vehicle(rng, kind), lambda: _vehicle_spot(rng, street, _ahead(rng, 6, 42)))
    for _ in range(rng.integers(1, 4)):
        _add(things, rng, "Pedestrian", walker(rng), lambda: _walker_spot(rng, street, _ahead(rng, 5.5, 32)))
    for _ in range(rng.integers(1, 3)):
        _add(things, rng, "Cyclist", rider(rng), lambda: _rider_spot(rng, street, _ahead(rng, 5.5, 32)))
    for _ in range(rng.integers(0, 4)):
        kind, name = _vehicle_kind(rng)
        _add(things, rng, name, vehicle(rng, kind), lambda: _vehicle_spot(rng, street, rng.uniform(55, 120)))
    for _ in range(rng.integers(0, 3)):
        _add(things, rng, "Pedestrian", walker(rng), lambda: _walker_spot(rng, street, rng.uniform(45, 110)))
    for _ in range(rng.integers(10, 18)):
        _add(things, rng, "", clutter(rng), lambda: _clutter_spot(rng, street, _ahead(rng, 9, 70)))
    return _ground(rng, street), _houses(rng, street) + things


def _vehicle_kind(rng: Rng) -> tuple[str, str]:
    kind, _, name = TRAFFIC[rng.choice(len(TRAFFIC), p=np.array([row[1] for row in TRAFFIC]) / 100)]
    return kind, name


def _ahead(rng: Rng, near: float, far: float) -> float:
    """A distance, oftener near than far."""
    return near + (far - near) * rng.random() ** 1.5


def _add(things: list[Thing], rng: Rng, kind: str, what: Sprite, spot: Callable[[], Spot]) -> None:
    """Put a thing where it runs into none of the others; after twenty tries the street is full enough."""
    for _ in range(20):
        thing = Thing(kind, what, *spot())
        if _fits(thing, things, rng):
            things.append(thing)
            return


def _reach(thing: Thing) -> tuple[float, float]:
    """Half of what a thing takes of the ground along x and z; scenery takes little, whatever its crown."""
    _, width, length = thing.sprite.dims
    cos, sin = abs(np.cos(thing.turn)), abs(np.sin(thing.turn))
    return ((cos * length + sin * width) / 2, (sin * length + cos * width) / 2) if thing.kind else (0.35, 0.35)


def _fits(thing: Thing, others: list[Thing], rng: Rng) -> bool:
    """Whether a thing is in view and clear of all others; that one hides much of another is mostly avoided."""
    wide, deep = _reach(thing)
    if thing.z - deep < NEAR or abs(thing.x) - wide * 0.6 > 0.84 * thing.z:
        return False
    for other in others:
        w, d = _reach(other)
        if abs(thing.x - other.x) < wide + w + 0.3 and abs(thing.z - other.z) < deep + d + 0.4:
            return False
        (near, a), (far, b) = sorted([(thing, wide), (other, w)], key=lambda pair: pair[0].z)
        left = max((near.x - a) / near.z, (far.x - b) / far.z)
        right = min((near.x + a) / near.z, (far.x + b) / far.z)
        if (right - left) * far.z > 2 * b * 0.45 and far.kind and far.z < 50 and rng.random() < 0.85:
            return False
    return True


def _vehicle_spot(rng: Rng, street: Street, z: float) -> Spot:
    """A place for a vehicle: driving, coming along, parked on either side, or crossing."""
    sway, weave = rng.normal(0, 0.15), rng.normal(0, 0.04)
    choices = [
        "ahead",
        "coming",
        "coming",
        *["parked"] * 3,
        *(["crossing"] * 3 if np.isfinite(street.crossing) else []),
    ]
    choice = rng.choice(choices)
    if choice == "crossing":
        way = rng.choice([-1, 1])
        x = rng.uniform(*street.edges) * street.crossing / (street.crossing - 8)  # what lies farther out, houses hide
        return x, street.crossing + 1.8 * way, (0.0 if way < 0 else np.pi) + weave
    if choice == "parked":
        side = int(rng.integers(2))
        out, strip = (-1, 1)[side], street.parking[side]
        if strip == "across":
            return street.kerbs[side] - out * 2.6, z, rng.choice([0.0, np.pi]) + rng.normal(0, 0.12)
        if strip == "along":
            return street.kerbs[side] - out * 1.1, z, (TOWARDS if side == 0 else AWAY) + weave
    if choice == "ahead":
        return sway, z + 4, AWAY + weave
    return sway - street.lane, z, TOWARDS + weave


def _walker_spot(rng: Rng, street: Street, z: float) -> Spot:
    """A place for someone on foot: along a pavement, or across the street."""
    if rng.random() < 0.25:
        return rng.uniform(*street.kerbs), z + 3, rng.choice([0.0, np.pi]) + rng.normal(0, 0.2)
    side = int(rng.integers(2))
    x = street.kerbs[side] + rng.random() * (street.edges[side] - street.kerbs[side])
    return x, z, rng.choice([AWAY, TOWARDS]) + rng.normal(0, 0.3)


def _rider_spot(rng: Rng, street: Street, z: float) -> Spot:
    """A place for a rider: in the lanes, on a pavement, or across the street."""
    choice = rng.random()
    if choice < 0.3:
        return rng.uniform(*street.edges), z + 3, rng.choice([0.0, np.pi]) + rng.normal(0, 0.15)
    if choice < 0.5:
        side = int(rng.integers(2))
        return (street.kerbs[side] + street.edges[side]) / 2, z, rng.choice([AWAY, TOWARDS]) + rng.normal(0, 0.1)
    if choice < 0.75:
        return street.lane / 2 - rng.uniform(0.3, 0.9), z + 1, AWAY + rng.normal(0, 0.1)
    return -1.5 * street.lane + rng.uniform(0.4, 1.2), z, TOWARDS + rng.normal(0, 0.1)


def _clutter_spot(rng: Rng, street: Street, z: float) -> Spot:
    """A place for a piece of scenery: by the kerb, or by the houses."""
    side = int(rng.integers(2))
    out = (-1, 1)[side]
    x = street.kerbs[side] + out * 0.5 if rng.random() < 0.6 else street.edges[side] + out * rng.uniform(-0.2, 0.4)
    return (
        x,
        z + (20 if abs(z - street.crossing) < 10 else 0),
        rng.choice([AWAY, AWAY, TOWARDS, 0.0]) + rng.normal(0, 0.1),
    )


def _houses(rng: Rng, street: Street) -> list[Thing]:
    """Houses along both sides, with gardens between some of them, open where streets cross."""
    things = []
    for side, out in enumerate((-1, 1)):
        z, garden = NEAR + rng.uniform(0, 4), rng.uniform(0.6, 5)
        while z < 90:
            length = rng.uniform(8, 18)
            if z < street.crossing + 8 and z + length > street.crossing - 8:
                z = street.crossing + 8 + rng.uniform(0, 2)
            front = abs(street.edges[side]) + garden + rng.uniform(0, 0.6)
            if rng.random() < 0.78:
                what = house(rng, length=length, side=out)
                things.append(Thing("", what, out * (front + what.dims[2] / 2), z + length / 2, 0.0))
            else:
                places = [(out * (front + 3 + rng.uniform(0, 5)), z + length * f) for f in (0.25, 0.7)]
                things += [Thing("", tree(rng), x, far, 0.0) for x, far in places if far > 9]
            z += length + rng.choice([0.0, rng.uniform(1, 6)])
    return things


def _ground(rng: Rng, street: Street) -> tuple[Floats, Floats]:
    """The ground from below upward: verges, pavements, kerbs, carriageways, and the marks on them."""
    asphalt = rng.uniform(0.26, 0.40) * rng.normal(1, 0.02, 3)
    paving = rng.uniform(0.42, 0.56) * (np.array([1.0, 0.97, 0.92]) + rng.normal(0, 0.03, 3))
    verge = np.array([(0.26, 0.36, 0.16), (0.34, 0.38, 0.2), (0.45, 0.42, 0.38)][rng.integers(3)])
    white, kerb, groove, worn = np.full(3, 0.78), paving * 1.22, paving * 0.86, asphalt * 0.96
    (k0, k1), (e0, e1), lane = street.kerbs, street.edges, street.lane
    strips = [(-FAR, FAR, verge), (e0, e1, paving), (k0 - 0.18, k1 + 0.18, kerb), (k0, k1, asphalt)]
    strips += [(x - 0.35, x + 0.35, worn) for middle in (0, -lane) for x in (middle - 0.8, middle + 0.8)]
    rows: list[tuple[float, float, float, float, Floats]] = [(x0, x1, NEAR, FAR, color) for x0, x1, color in strips]
    rows += [
        (a, b, z, z + 0.03, groove) for a, b in ((e0, k0 - 0.18), (k1 + 0.18, e1)) for z in np.arange(NEAR, 40, 1.2)
    ]
    for parking, x in zip(street.parking, (k0, k1 - 5), strict=True):
        rows += [(x, x + 5, z, z + 0.1, white) for z in np.arange(NEAR, 80, 2.7) if parking == "across"]
    if np.isfinite(z := street.crossing):
        rows += [(-FAR, FAR, z - a, z + a, color) for a, color in ((7.0, paving), (4.2, kerb), (4.0, asphalt))]
        rows += [(k0, k1, z - 8, z + 8, asphalt)]
        rows += [(x, x + 0.5, z - 7.6, z - 4.8, white) for x in np.arange(k0 + 0.4, k1 - 0.5, 1.0)]
    dashes = [d for d in np.arange(NEAR + rng.uniform(0, 6), 120, 6.5) if abs(d - street.crossing) > 11]
    rows += [(-lane / 2 - 0.07, -lane / 2 + 0.07, d, d + 3, white) for d in dashes]
    corners = np.array([[(x0, z0), (x1, z0), (x1, z1), (x0, z1)] for x0, x1, z0, z1, _ in rows])
    return corners, np.array([color for *_, color in rows])
