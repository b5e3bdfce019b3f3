"""Cargo of a container: its kind, how it is stowed, and its attenuation map."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from visao_ray.synthetic.detector import Attenuation

Tile = npt.NDArray[np.float32]

# Kinds of cargo for ranges of HS chapters: the last chapter of the range, then the kinds.
_KINDS = (
    (5, ("boxes", "crates", "bales")),
    (14, ("boxes", "sacks", "pallets", "bulk")),
    (24, ("boxes", "drums", "sacks", "pallets", "liquid")),
    (27, ("bulk", "sacks", "slabs", "drums", "liquid")),
    (38, ("drums", "sacks", "pallets", "boxes", "liquid")),
    (40, ("rolls", "tyres", "pallets", "sacks", "pipes")),
    (43, ("bales", "boxes", "pallets")),
    (49, ("slabs", "rolls", "bales", "pallets", "crates")),
    (63, ("bales", "rolls", "boxes", "coils")),
    (67, ("boxes", "mixed")),
    (70, ("slabs", "crates", "pallets")),
    (71, ("boxes", "crates")),
    (81, ("coils", "slabs", "pipes", "crates", "bulk")),
    (83, ("boxes", "pallets", "crates")),
    (85, ("machinery", "boxes", "crates", "mixed", "pallets")),
    (89, ("vehicles", "tyres", "machinery", "crates")),
    (97, ("boxes", "mixed", "machinery", "crates")),
)
_ALL_KINDS = tuple(sorted({kind for _, kinds in _KINDS for kind in kinds}))

# Attenuation across a full container (2.3 m) by kind: lowest and highest mu (1/m, megavolt beam)
# times thickness.
_FULL = {
    "boxes": (0.25, 1.9),
    "crates": (0.4, 2.2),
    "bales": (0.5, 2.0),
    "sacks": (0.9, 3.2),
    "pallets": (0.5, 2.6),
    "bulk": (0.5, 3.0),
    "drums": (1.0, 3.2),
    "liquid": (1.2, 3.0),
    "slabs": (2.0, 4.5),
    "rolls": (0.6, 3.0),
    "tyres": (0.4, 1.4),
    "pipes": (0.8, 3.2),
    "coils": (1.8, 4.5),
    "machinery": (0.4, 1.6),
    "mixed": (0.4, 1.8),
    "vehicles": (0.5, 1.2),
}
# Size of one object as shares of the container's height (width range, height range).
_SIZE = {
    "boxes": ((0.08, 0.24), (0.07, 0.2)),
    "crates": ((0.25, 0.6), (0.22, 0.45)),
    "bales": ((0.2, 0.45), (0.15, 0.3)),
    "sacks": ((0.14, 0.3), (0.05, 0.1)),
    "pallets": ((0.38, 0.5), (0.3, 0.48)),
    "drums": ((0.2, 0.28), (0.3, 0.4)),
    "slabs": ((0.3, 0.9), (0.08, 0.3)),
    "rolls": ((0.16, 0.5), (0.3, 0.9)),
    "tyres": ((0.2, 0.4), (0.08, 0.14)),
    "pipes": ((0.04, 0.12), (0.04, 0.12)),
    "coils": ((0.28, 0.5), (0.28, 0.5)),
    "mixed": ((0.15, 0.4), (0.1, 0.3)),
}


@dataclass(frozen=True)
class Cargo:
    """How one kind of goods is packed; the same for all scans of a class, except for `varied`."""

    kind: str
    """Kind of object: boxes, drums, rolls, vehicles, ..."""
    full: float
    """Attenuation across a full container width: mu (1/m) times 2.3 m."""
    width: float
    """Width of one object, share of the container's height."""
    height: float
    """Height of one object, share of the container's height."""
    fill: float
    """Stow height, share of the container's height."""
    length: float
    """Stowed share of the container's length."""
    gap: float
    """Air between objects, share of their width."""
    ragged: float
    """Unevenness of the top of the stow, share of the container's height."""
    spread: float
    """Relative deviation of attenuation between objects."""
    grain: float
    """Relative deviation of attenuation inside an object."""
    layers: int
    """Number of objects behind each other along the ray."""
    inside: int
    """Seed of the contents of an object (the same in all scans of a class)."""


def class_cargo(seed: int, heading: str) -> Cargo:
    """Return the goods of an HS heading, plausible for its chapter, from (seed, heading) alone."""
    rng = np.random.default_rng([seed, 11, int(heading)])
    kinds = next(kinds for last, kinds in _KINDS if int(heading[:2]) <= last)
    return _cargo(rng, kinds[rng.integers(len(kinds))])


def any_cargo(rng: np.random.Generator) -> Cargo:
    """Draw goods of any kind."""
    return _cargo(rng, _ALL_KINDS[rng.integers(len(_ALL_KINDS))])


def _cargo(rng: np.random.Generator, kind: str) -> Cargo:
    (w0, w1), (h0, h1) = _SIZE.get(kind, ((0.2, 0.4), (0.2, 0.4)))
    low, high = _FULL[kind]
    return Cargo(
        kind=kind,
        full=low * (high / low) ** rng.random(),
        width=rng.uniform(w0, w1),
        height=rng.uniform(h0, h1),
        fill=rng.uniform(0.12, 0.45) if kind in ("slabs", "coils") else rng.uniform(0.45, 0.95),
        length=rng.uniform(0.75, 1.0),
        gap=rng.uniform(0.02, 0.14),
        ragged=rng.choice([0.0, 0.03, 0.12]),
        spread=rng.uniform(0.02, 0.2),
        grain=rng.uniform(0.02, 0.25),
        layers=int(rng.integers(1, 4)),
        inside=int(rng.integers(2**31)),
    )


def varied(cargo: Cargo, rng: np.random.Generator) -> Cargo:
    """Vary sizes, density and stow of goods slightly, as between shipments."""
    return replace(
        cargo,
        full=cargo.full * float(np.exp(rng.normal(0, 0.15))),
        width=cargo.width * rng.uniform(0.88, 1.12),
        height=cargo.height * rng.uniform(0.88, 1.12),
        fill=float(np.clip(cargo.fill + rng.normal(0, 0.08), 0.1, 0.97)),
        length=float(np.clip(cargo.length + rng.normal(0, 0.1), 0.35, 1.0)),
    )


def foam(rng: np.random.Generator) -> Cargo:
    """Draw uniform goods of such low density that the container seems empty."""
    return Cargo("bulk", rng.uniform(0.05, 0.16), 0.2, 0.2, rng.uniform(0.5, 0.97),
                 rng.uniform(0.8, 1.0), 0.0, 0.01, 0.0, 0.02, 1, 0)  # fmt: skip


def few_boxes(rng: np.random.Generator) -> Cargo:
    """Draw a few small boxes in an otherwise empty container."""
    size = rng.uniform(0.05, 0.1)
    return Cargo("boxes", rng.uniform(0.2, 1.2), size, size * rng.uniform(0.8, 1.4),
                 rng.uniform(0.05, 0.16), rng.uniform(0.03, 0.2), rng.uniform(0.05, 0.2),
                 0.03, 0.1, 0.1, 1, int(rng.integers(2**31)))  # fmt: skip


def stow(space: Attenuation, cargo: Cargo, rng: np.random.Generator) -> None:
    """Add the attenuation of the cargo to `space`, float32[h, w], the inside of the container."""
    height, full_width = space.shape
    width = max(4, int(full_width * cargo.length))
    # Goods are stowed against the front wall or, sometimes, anywhere along the floor.
    start = 0 if rng.random() < 0.6 else int(rng.integers(full_width - width + 1))
    if rng.random() < 0.3:
        start = full_width - width
    goods = np.zeros((height, width), np.float32)
    match cargo.kind:
        case "bulk":
            _bulk(goods, cargo, rng)
        case "liquid":
            _liquid(goods, cargo, rng)
        case "vehicles":
            _vehicles(goods, cargo, rng)
        case "machinery":
            _machinery(goods, cargo, rng)
        case "mixed":
            _mixed(goods, cargo, rng)
        case _:
            for _ in range(cargo.layers):
                _stack(goods, cargo, rng)
    space[:, start : start + width] += _settled(goods, cargo, rng)


def _settled(goods: Attenuation, cargo: Cargo, rng: np.random.Generator) -> Attenuation:
    """Make the stow irregular: goods lean and sag, and their density varies."""
    height, width = goods.shape
    # Detector columns are read one after another while the load sways.
    sway = np.cumsum(rng.normal(0, 0.18, width // 4 + 2)).repeat(4)[:width]
    lean = rng.normal(0, 0.04) if rng.random() < 0.5 else 0.0
    up = np.arange(height)[::-1, None] * lean
    columns = np.clip(np.rint(np.arange(width) + up), 0, width - 1).astype(np.intp)
    shift = np.rint(sway - sway.mean()).clip(-3, 3).astype(np.intp)
    rows = np.arange(height)[:, None] + shift
    np.clip(rows, 0, height - 1, out=rows)
    flat: npt.NDArray[np.intp] = rows * width + columns
    goods = goods.ravel()[flat]
    grain = 0.03 + cargo.grain / 3
    lumps = rng.standard_normal((height // 3 + 1, width // 2 + 1), dtype=np.float32)
    lumps *= np.float32(grain)
    lumps += 1 + rng.standard_normal(lumps.shape[1], dtype=np.float32) * np.float32(grain / 2)
    np.maximum(lumps, np.float32(0.2), out=lumps)
    goods *= lumps.repeat(3, 0)[:height].repeat(2, 1)[:, :width]
    return goods


def _stack(space: Attenuation, cargo: Cargo, rng: np.random.Generator) -> None:
    """Stack objects side by side and on top of each other."""
    height, width = space.shape
    w, h = max(3, round(cargo.width * height)), max(3, round(cargo.height * height))
    tile = _TILES[cargo.kind](h, w, cargo) * np.float32(cargo.full / cargo.layers)
    columns = width // w + 2
    tall = cargo.fill * height / h + rng.normal(0, cargo.ragged * height / h, columns)
    tall = np.maximum(np.round(tall), 1)
    rows = int(min(tall.max(), max(1, height // h)))
    values = rng.normal(1, cargo.spread, (rows, columns)).clip(0.3, 2).astype(np.float32)
    values *= np.arange(rows)[:, None] < tall
    top = height - rows * h
    across = np.arange(width) + int(rng.integers(w) if cargo.layers > 1 else 0)
    column, x = np.divmod(across, w)
    up = np.arange(rows * h)[::-1]
    row, y = np.divmod(up, h)
    picture = np.repeat(values[:, column], h, axis=0)[::-1]
    if cargo.kind in ("pipes", "coils") and rows > 1:  # each row lies in the gaps of the row below
        shifted = np.stack([x, (x + w // 2) % w])
        picture = picture * tile[(h - 1 - y)[:, None], shifted[row % 2]]
    else:
        picture = picture * np.tile(tile[:, x], (rows, 1))
    if top < 0:
        picture = picture[-top:]
    space[max(top, 0) :] += picture


def _axes(h: int, w: int) -> tuple[Tile, Tile]:
    """Return coordinates -1..1 over an object, float32[h, 1] and float32[1, w]."""
    v = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    u = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    return v, u


def _contents(h: int, w: int, cargo: Cargo, pieces: int) -> Tile:
    """Draw rectangles inside an object; they distinguish the boxes of different headings."""
    rng = np.random.default_rng(cargo.inside)
    tile = np.ones((h, w), np.float32)
    for _ in range(pieces):
        y, x = rng.random(2) * 0.8
        dy, dx = rng.uniform(0.1, 0.5, 2)
        weight = rng.normal(0, 2.5 * cargo.grain)
        tile[int(y * h) : int((y + dy) * h) + 1, int(x * w) : int((x + dx) * w) + 1] += weight
    return np.maximum(tile, np.float32(0.15))


def _box(h: int, w: int, cargo: Cargo) -> Tile:
    _, u = _axes(h, w)
    tile = _contents(h, w, cargo, 5)
    tile *= np.where(np.abs(u) > 1 - 2 * cargo.gap, np.float32(0.35), np.float32(1))
    tile[-1] *= 1.25
    tile[0] *= 0.7
    return tile


def _crate(h: int, w: int, cargo: Cargo) -> Tile:
    v, u = _axes(h, w)
    tile = _contents(h, w, cargo, 9) * np.float32(0.8)
    edge = np.maximum(np.abs(u), np.abs(v))
    tile[edge > 0.9] *= 1.5
    tile[np.broadcast_to(np.abs(np.abs(u) - np.abs(v)) < 0.05, tile.shape)] *= 1.15
    tile[:, 0] *= 0.3
    return tile


def _bale(h: int, w: int, cargo: Cargo) -> Tile:
    v, u = _axes(h, w)
    rng = np.random.default_rng(cargo.inside)
    tile: Tile = (1 - 0.35 * u**6) * (1 - 0.4 * v**8)
    tile *= rng.normal(1, cargo.grain / 2, (h, w)).astype(np.float32)
    straps = rng.integers(2, 5)
    tile[:, np.linspace(0, w - 1, straps + 2).astype(int)[1:-1]] *= 1.2
    return tile


def _sack(h: int, w: int, cargo: Cargo) -> Tile:
    v, u = _axes(h, w)
    tile: Tile = np.sqrt(np.maximum(1 - u**4, 0) * np.maximum(1 - 0.8 * v**4, 0))
    return tile


def _pallet(h: int, w: int, cargo: Cargo) -> Tile:
    tile = _contents(h, w, cargo, 4)
    rng = np.random.default_rng(cargo.inside)
    n = int(rng.integers(2, 6))
    tile[:: max(2, h // n)] *= 0.65
    tile[:, :: max(2, w // n)] *= 0.75
    tile[:, : max(1, int(w * cargo.gap))] = 0.0
    base = max(2, h // 8)
    tile[-base:] = 0.15  # the pallet itself: two decks and three blocks
    tile[-base] = tile[-1] = 0.4
    for block in (0.08, 0.47, 0.86):
        tile[-base:, int(block * w) : int(block * w) + max(1, w // 12)] = 0.5
    return tile


def _drum(h: int, w: int, cargo: Cargo) -> Tile:
    v, u = _axes(h, w)
    inner = u / np.float32(1 - cargo.gap)
    tile: Tile = np.sqrt(np.maximum(1 - inner**2, 0)) * np.ones_like(v)
    for rim in (0.0, 0.33, 0.66, 0.99):
        tile[int(rim * (h - 1))] += 0.2 * (np.abs(inner[0]) < 1)
    tile[: max(1, h // 12)] *= 0.25  # ullage
    return tile


def _roll(h: int, w: int, cargo: Cargo) -> Tile:
    v, u = _axes(h, w)
    inner = u / np.float32(1 - cargo.gap)
    core = np.float32(0.15 + cargo.grain)
    chord = np.sqrt(np.maximum(1 - inner**2, 0)) - np.sqrt(np.maximum(core**2 - inner**2, 0))
    tile: Tile = chord * np.ones_like(v)
    tile[0] *= 0.2
    return tile


def _ring(h: int, w: int, cargo: Cargo) -> Tile:
    """Draw a coil or pipe seen along its axis."""
    v, u = _axes(h, w)
    radius = np.sqrt(u**2 + v**2)
    core = 0.25 + 1.5 * cargo.grain if cargo.kind == "coils" else 0.35 + 1.8 * cargo.grain
    tile: Tile = np.clip((1 - radius) * (w / 3), 0, 1) * np.clip((radius - core) * (w / 3), 0.06, 1)
    return tile


def _tyre(h: int, w: int, cargo: Cargo) -> Tile:
    v, u = _axes(h, w)
    hole = np.sqrt(np.maximum(np.float32(0.3) - u**2, 0))
    tile: Tile = (np.sqrt(np.maximum(1 - u**2, 0)) - hole) * (1 - 0.6 * v**2)
    return tile


def _slab(h: int, w: int, cargo: Cargo) -> Tile:
    rng = np.random.default_rng(cargo.inside)
    tile = np.ones((h, w), np.float32)
    tile[:: int(rng.integers(2, 6))] *= 0.7
    tile[:, : max(1, int(w * cargo.gap * 2))] = 0.02
    return tile


_TILES: dict[str, Callable[[int, int, Cargo], Tile]] = {
    "boxes": _box,
    "crates": _crate,
    "bales": _bale,
    "sacks": _sack,
    "pallets": _pallet,
    "drums": _drum,
    "rolls": _roll,
    "pipes": _ring,
    "coils": _ring,
    "tyres": _tyre,
    "slabs": _slab,
}


def _bulk(space: Attenuation, cargo: Cargo, rng: np.random.Generator) -> None:
    """Add loose or soft goods with an uneven top, less dense towards the top."""
    height, width = space.shape
    steps = max(3, int(width / (cargo.width * height)) + 1)
    knots = 1 - cargo.fill + rng.normal(0, 0.02 + cargo.ragged, steps)
    knots += np.linspace(0, rng.uniform(0, 0.25) * (cargo.ragged > 0.02), steps) ** 2
    top = np.interp(np.linspace(0, steps - 1, width), np.arange(steps), knots) * height
    y = np.arange(height, dtype=np.float32)[:, None]
    depth = np.clip((y - top.astype(np.float32)) / np.float32(0.02 * height + 2), 0, 1)
    streaks = rng.normal(1, cargo.grain / 2, width) * (
        1 + cargo.grain * np.sin(np.arange(width) * 2 * np.pi / (3 + 40 * cargo.width))
    )
    coarse = rng.normal(1, cargo.grain / 3, (height // 6 + 1, width // 6 + 1)).astype(np.float32)
    lumps = coarse[np.arange(height)[:, None] // 6, np.arange(width) // 6]
    space += depth * lumps * (streaks * cargo.full).astype(np.float32)


def _liquid(space: Attenuation, cargo: Cargo, rng: np.random.Generator) -> None:
    """Add a flexitank: one domed bag of liquid along the floor."""
    height, width = space.shape
    u = np.linspace(-1, 1, width, dtype=np.float32)
    top = height * (1 - 0.75 * cargo.fill * np.maximum(1 - u**8, 0) ** 0.5)
    y = np.arange(height, dtype=np.float32)[:, None]
    across = np.clip((y - top) / np.float32(0.25 * height), 0, 1)
    space += np.sqrt(across) * np.float32(cargo.full)


def _vehicles(space: Attenuation, cargo: Cargo, rng: np.random.Generator) -> None:
    """Add cars in a row: body, glass, engine, wheels."""
    height, width = space.shape
    signature = np.random.default_rng(cargo.inside)
    long, tall = 1.5 + signature.random(), signature.uniform(0.4, 0.62)
    bonnet, boot = signature.uniform(0.2, 0.32), signature.uniform(0.05, 0.2)
    length = max(24, int(height * long * (0.8 + cargo.width / 2)))
    body = max(12, int(height * tall))
    u = np.linspace(0, 1, length, dtype=np.float32)
    roof = np.interp(
        u,
        [0, 0.02, bonnet, bonnet + 0.14, 1 - boot - 0.14, 1 - boot, 0.98, 1],
        [0.35, 0.52, 0.6, 1, 1, 0.65, 0.6, 0.3],
    ).astype(np.float32)
    v = np.linspace(1, 0, body, dtype=np.float32)[:, None]
    car = ((v < roof) & (v > 0.14)).astype(np.float32) * 0.45
    car[(v > 0.56) & (v < roof - 0.05)] = 0.12  # glass
    car[(v < roof) & (v > roof - 0.05)] = 0.8
    engine = slice(int(0.05 * length), int(bonnet * 0.8 * length))
    low, high = int(body * 0.5), int(body * 0.8)
    car[low:high, engine] += rng.uniform(0.8, 2.2, (high - low, 1)).astype(np.float32)
    car[low : low + body // 8, :] += 0.3
    for axle in (0.17, 0.8):
        radius = ((u - axle) * length) ** 2 + ((v - 0.15) * body) ** 2
        wheel = radius < (0.16 * body) ** 2
        car[wheel] = 1.6
        car[radius < (0.07 * body) ** 2] = 0.9
    car *= np.float32(cargo.full)
    if signature.random() < 0.5:
        car = car[:, ::-1]
    step = int(length * 1.04)
    decks = 2 if cargo.fill > 0.85 and 2 * body < height else 1
    for deck in range(decks):
        bottom = height - deck * int(height * 0.5)
        for left in range(int(rng.integers(max(1, step // 4))), width - length // 3, step):
            part = car[:, : width - left]
            space[bottom - body : bottom, left : left + length] += part


def _machinery(space: Attenuation, cargo: Cargo, rng: np.random.Generator) -> None:
    """Add frames, housings and shafts; the class sets the parts, and the scan their position."""
    height, width = space.shape
    signature = np.random.default_rng(cargo.inside)
    parts = int(signature.integers(12, 30))
    shapes = signature.random((parts, 5)).astype(np.float64)
    unit = max(16, int(height * signature.uniform(0.8, 2.0)))
    tall = max(8, int(height * cargo.fill))
    machine = np.zeros((tall, unit), np.float32)
    for y, x, dy, dx, weight in shapes:
        y0, x0 = int(y * 0.9 * tall), int(x * 0.9 * unit)
        h, w = 1 + int(dy**2 * 0.6 * tall), 1 + int(dx**2 * 0.5 * unit)
        if weight < 0.3:  # a shaft or gear end-on
            r = max(2, min(h, w) // 2)
            v, u = np.ogrid[-r : r + 1, -r : r + 1]
            disc = (v * v + u * u <= r * r).astype(np.float32)
            part = machine[y0 : y0 + 2 * r + 1, x0 : x0 + 2 * r + 1]
            part += disc[: part.shape[0], : part.shape[1]] * np.float32(1.2)
        elif weight < 0.6:  # a hollow housing
            machine[y0 : y0 + h, x0 : x0 + w] += 0.25
            machine[y0 : y0 + h : max(1, h - 1), x0 : x0 + w] += 0.6
            machine[y0 : y0 + h, x0 : x0 + w : max(1, w - 1)] += 0.6
        else:
            machine[y0 : y0 + h, x0 : x0 + w] += np.float32(weight)
    machine *= np.float32(cargo.full)
    step = int(unit * (1.02 + 2 * cargo.gap))
    for left in range(0, max(1, width - unit // 2), step):
        part = machine[:, : width - left] * np.float32(rng.normal(1, cargo.spread))
        if rng.random() < 0.3:
            part = part[:, ::-1]
        space[height - tall :, left : left + part.shape[1]] += np.maximum(part, 0)


def _mixed(space: Attenuation, cargo: Cargo, rng: np.random.Generator) -> None:
    """Add household goods: a different stack in every bay."""
    height, width = space.shape
    signature = np.random.default_rng(cargo.inside)
    bays = [_cargo(signature, _STACKABLE[signature.integers(len(_STACKABLE))]) for _ in range(4)]
    left = 0
    while left < width - 3:
        bay = bays[rng.integers(len(bays))]
        bay = replace(
            bay,
            full=min(bay.full, 2.2) * rng.uniform(0.4, 1.1),
            width=bay.width * 0.6,
            height=bay.height * 0.5,
            fill=float(np.clip(cargo.fill + rng.normal(0, 0.1), 0.2, 0.95)),
            layers=1,
        )
        span = max(8, math.ceil(height * rng.uniform(0.15, 0.5)))
        _stack(space[:, left : left + span], bay, rng)
        left += span + int(rng.integers(3))


_STACKABLE = ("boxes", "crates", "drums", "tyres", "rolls", "pallets", "slabs")
