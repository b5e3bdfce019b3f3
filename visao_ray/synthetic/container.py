"""Synthetic X-ray scans of a container on its chassis."""

import numpy as np
import numpy.typing as npt

from visao_ray.synthetic.cargo import (
    Cargo,
    any_cargo,
    class_cargo,
    few_boxes,
    foam,
    stow,
    varied,
)
from visao_ray.synthetic.detector import Attenuation, Scan
from visao_ray.synthetic.recipe import lot_of


def container_scan(true_label: str, index: int, seed: int, difficulty: str) -> Scan:
    """Return a scan of an empty (`vazio`) or loaded (`nvazio`) container, or goods of a heading."""
    ncm = true_label.isdigit()
    rng = np.random.default_rng([seed, 21, index, int(true_label) if ncm else len(true_label)])
    cargo: Cargo | None = None
    if ncm:
        lot = np.random.default_rng([seed, 22, lot_of(seed, index)[0], int(true_label)])
        cargo = varied(class_cargo(seed, true_label), lot)
    elif true_label == "nvazio":
        if difficulty == "nearly_empty" or (not difficulty and rng.random() < 0.06):
            cargo = few_boxes(rng)
        elif difficulty == "foam":
            cargo = foam(rng)
        else:
            cargo = varied(any_cargo(rng), rng)
    attenuation = _draw(rng, cargo, difficulty)
    dark = difficulty == "dark"
    return Scan(
        attenuation=attenuation,
        photons=rng.uniform(400, 1_500) if dark else rng.uniform(2_500, 20_000),
        psf=rng.uniform(1.2, 2.4) if difficulty == "blur" else rng.uniform(0.3, 0.6),
        stripes=rng.uniform(0.001, 0.006),
        exposure=rng.uniform(0.35, 0.6) if dark else rng.uniform(1.0, 1.03),
        gamma=rng.uniform(0.85, 1.1),
    )


def _draw(rng: np.random.Generator, cargo: Cargo | None, difficulty: str) -> Attenuation:
    """Draw container, cargo, chassis and surroundings; return the attenuation, [H, W]."""
    forty = rng.random() < 0.6
    width = int(rng.integers(430, 580) if forty else rng.integers(240, 330))
    height = int(width / (rng.uniform(2.05, 2.9) if forty else rng.uniform(1.0, 1.35)))
    rise = int(rng.normal(0, 0.02) * width) if rng.random() < 0.8 else 0
    slack = abs(rise) + 3
    field = np.zeros((height + 2 * slack, width), np.float32)

    left, right = rng.integers(2, max(3, width // 25), 2)
    x0, x1 = int(left), width - int(right)
    if rng.random() < 0.12:  # the scan stops before the end of the container
        x1 = width + 20
    neighbour = difficulty == "two_containers" or (not difficulty and rng.random() < 0.06)
    if neighbour:
        share = rng.uniform(0.15, 0.4) if difficulty else rng.uniform(0.03, 0.08)
        x0 = int(width * share)
    if difficulty == "truck":
        x0 = int(width * rng.uniform(0.14, 0.24))
    top = slack + int(height * rng.uniform(0.01, 0.05))
    floor = slack + int(height * rng.uniform(0.76, 0.86))
    band = top + int((floor - top) * rng.uniform(0.36, 0.47))
    lined = rng.random() < 0.15
    style = (lined, rng.uniform(0.15, 0.22), rng.uniform(0.05, 0.13), rng.uniform(2.8, 5.5))

    _shell(field, x0, x1, top, band, floor, style, rng)
    if neighbour:
        gap = int(rng.integers(2, 8))
        _shell(field, x0 - gap - (x1 - x0), x0 - gap, top, band, floor, style, rng)
        if cargo is not None and rng.random() < 0.5:
            side = field[top + 4 : floor, : max(0, x0 - gap - 5)]
            if side.shape[1] > 8:
                stow(side, cargo, rng)
    _chassis(field, 0 if neighbour else x0, x1, floor, slack + height, rng)
    if difficulty == "truck":
        _truck(field, x0 - 4, floor, slack + height, rng)
    inside = field[top + 4 : floor + 1, x0 + 5 : min(x1, width) - 5]
    if cargo is not None:
        stow(inside, cargo, rng)
    dirt = rng.uniform(0.05, 0.3) if difficulty == "dirty_floor" else 0.0
    if not difficulty and cargo is None and rng.random() < 0.25:
        dirt = rng.uniform(0.02, 0.12)
    if dirt:
        _residue(inside, dirt, rng)
    return _sheared(field, rise, slack, height, rng)


def _add(field: Attenuation, y0: int, y1: int, x0: int, x1: int, value: float) -> None:
    """Add a rectangle, clipped to the picture."""
    field[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] += np.float32(value)


def _shell(
    field: Attenuation,
    x0: int,
    x1: int,
    top: int,
    band: int,
    floor: int,
    style: tuple[bool, float, float, float],
    rng: np.random.Generator,
) -> None:
    """Add walls, frame, posts and castings of a container from column x0 to column x1."""
    lined, upper, lower, period = style
    width = field.shape[1]
    a, b = max(x0, 0), min(x1, width)
    if b - a < 4:
        return
    bottom = floor + (field.shape[0] - floor) // 2
    x = np.arange(a, b, dtype=np.float32)
    # Corrugated sheet: the ray crosses more steel on the sides of every fold.
    fold = np.abs(np.sin(x * np.float32(np.pi / period))) ** 3 + rng.normal(0, 0.15, b - a)
    zones = np.repeat(rng.normal(0, 0.006, 8), (b - a) // 8 + 1)[: b - a]
    wall = np.maximum(fold * 0.03 + zones, -0.02).astype(np.float32)
    field[top:band, a:b] += np.float32(upper) + wall
    field[band:floor, a:b] += np.float32(lower) + wall * np.float32(0.45)
    ends = int((x1 - x0) * rng.uniform(0.015, 0.035)) + 4
    for e0, e1 in ((x0, x0 + ends), (x1 - ends, x1)):  # end walls, seen edge on
        _add(field, top, band, e0, e1, 0.1)
        _add(field, band, floor, e0, e1, 0.05)
    if lined:  # a smooth wall on posts and rails
        step = (x1 - x0) / rng.integers(7, 13)
        for k in range(1, 13):
            post = int(x0 + k * step + rng.normal(0, 1))
            if x0 < post < x1 - 3:
                _add(field, top, floor, post, post + 1 + k % 2, rng.uniform(0.2, 0.45))
                _add(field, top, floor, post + int(step / 3), post + int(step / 3) + 1, 0.06)
        rail = band + int((floor - band) * rng.uniform(0.55, 0.8))
        _add(field, rail, rail + 1, x0, x1, 0.12)
        _add(field, rail, floor, x0, x1, 0.04)
    # Rails are slightly out of level, so a line fades from one detector row into the next.
    fade = np.interp(x, np.linspace(a, b, 9), rng.random(9)).astype(np.float32)
    field[top, a:b] += 0.3 + 0.9 * fade
    field[top - 1, a:b] += 0.9 - 0.8 * fade
    field[band, a:b] += 0.15 + 0.65 * fade
    field[band + 1, a:b] += 0.6 - 0.55 * fade
    ticks = np.arange(a, b, max(3, int(period * 4)))
    field[band + 2, ticks] += 0.12
    for side, post in ((0, x0), (1, x1 - 4)):
        thick = int(rng.integers(1, 5))
        inner = post if side == 0 else post + 4 - thick
        _add(field, top, bottom, inner, inner + thick, rng.uniform(0.9, 2.0))
        _add(field, top, bottom, post - 1, post + 6, 0.22)
        trim = post + thick + 1 if side == 0 else inner - 2
        _add(field, top, floor, trim, trim + 1, 0.5)
        for y in (top - 2, band - 2):  # castings, with their hole
            _add(field, y, y + 6, post - 1, post + 6, 1.6)
            _add(field, y + 2, y + 4, post + 1, post + 3, -1.4)
    if rng.random() < 0.4:  # door gear: locking bars and their brackets
        door = x1 - 7 if rng.random() < 0.5 else x0 + 1
        _add(field, top, bottom, door, door + 5, 0.7)
        for y in rng.integers(top, floor, 7):
            _add(field, int(y), int(y) + int(rng.integers(3, 9)), door, door + 4, 1.2)
    np.maximum(field, 0, out=field)


def _chassis(
    field: Attenuation, x0: int, x1: int, floor: int, end: int, rng: np.random.Generator
) -> None:
    """Add the wooden floor on steel cross members, and the frame of the trailer under it."""
    a, b = max(x0 - 2, 0), min(x1 + 2, field.shape[1])
    bottom = field.shape[0]
    depth = end - floor
    under = floor + int(depth * rng.uniform(0.55, 0.9))
    _add(field, floor - 1, floor + 1, a, b, 0.25)
    _add(field, floor, under, a, b, rng.uniform(0.35, 0.6))
    _add(field, under, bottom, a, b, rng.choice([0.0, 0.1, 0.3]))
    _add(field, floor, floor + max(3, depth // 6), a, b, rng.uniform(0.0, 0.2))
    step = max(5.0, (x1 - x0) / rng.uniform(34, 52))
    for k, x in enumerate(np.arange(x0, b, step)):  # cross members, which vary
        column, low = int(x + rng.normal(0, 0.8)), under + int(rng.integers(-3, depth // 3 + 4))
        thick = 1 + int(rng.random() < 0.25)
        _add(field, floor + 2, low, column, column + thick, rng.uniform(0.4, 1.3))
        if k % 3 == 0:
            _add(field, floor - 2, floor, column, column + 2, 0.3)
    for share in (0.2, rng.uniform(0.4, 0.55), rng.uniform(0.6, 0.75), rng.uniform(0.8, 0.95)):
        y = floor + int(depth * share)  # longitudinal rails, in pieces
        for piece in np.array_split(np.arange(a, b, 4), int(rng.integers(1, 4))):
            if len(piece) and rng.random() < 0.75:
                drop, weight = int(rng.integers(-1, 2)), rng.uniform(0.3, 1.4)
                thick = 1 + int(rng.random() < 0.5)
                _add(field, y + drop, y + drop + thick, int(piece[0]), int(piece[-1]), weight)
    for _ in range(int(rng.integers(1, 5))):  # gooseneck, hoses, brakes: dense small parts
        start, span = int(rng.integers(a, b)), int((x1 - x0) * rng.uniform(0.05, 0.25))
        _add(field, floor + depth // 4, under, start, min(start + span, b), 0.2)
        for x in range(start, min(start + span, b), int(rng.integers(3, 6))):
            y = floor + int(depth * rng.uniform(0.2, 0.6))
            tall = int(depth * rng.uniform(0.1, 0.5)) + 1
            _add(field, y, y + tall, x, x + int(rng.integers(1, 3)), rng.uniform(0.2, 0.8))
    span = max(6, (x1 - x0) // 30)
    for centre in (0.08, 0.25, 0.5, 0.75):  # fork pockets, landing gear, twist locks
        x = int(x0 + (x1 - x0) * (centre + rng.normal(0, 0.03)))
        if rng.random() < 0.6:
            half = int(rng.integers(span // 2, span))
            _add(field, floor + 3, under, x - half, x + half, rng.uniform(0.3, 0.8))
        if rng.random() < 0.4:
            for leg in (x - 5, x + 1):
                _add(field, floor + depth // 3, bottom, leg, leg + 4, rng.uniform(0.8, 2.0))
    for x in (x0, x1 - 6):
        _add(field, floor, bottom, x, x + 5, rng.uniform(0.8, 2.0))
    for _ in range(int(rng.integers(3, 9))):  # rear of the tractor, lamps
        x, y = int(rng.integers(a, b)), int(rng.integers(under - 2, end + 1))
        _add(field, y, y + int(rng.integers(1, 4)), x, x + int(rng.integers(3, 20)), 0.8)
    if rng.random() < 0.25:  # an axle under it
        x = int(rng.uniform(a, b))
        for wheel in (x, x + int(depth * 1.3)):
            _disc(field, end, wheel, depth * 0.55, rng.uniform(0.8, 1.6))


def _disc(field: Attenuation, y: int, x: int, radius: float, value: float) -> None:
    r = int(radius) + 1
    y0, y1 = max(y - r, 0), min(y + r, field.shape[0])
    x0, x1 = max(x - r, 0), min(x + r, field.shape[1])
    if y0 < y1 and x0 < x1:
        v, u = np.ogrid[y0 - y : y1 - y, x0 - x : x1 - x]
        field[y0:y1, x0:x1] += (v * v + u * u < radius * radius) * np.float32(value)


def _truck(field: Attenuation, back: int, floor: int, end: int, rng: np.random.Generator) -> None:
    """Add the cab of the tractor in front of the container."""
    height = end - floor
    tall = int((floor) * rng.uniform(0.35, 0.6))
    front = max(0, int(back * rng.uniform(0.02, 0.2)))
    roof = floor - tall
    if back - front < 12:
        return
    _add(field, roof, floor, front, back, rng.uniform(0.12, 0.25))
    _add(field, roof, roof + 2, front + 3, back, 1.0)
    for x in (front, (front + back) // 2, back - 3):
        _add(field, roof + 1, floor, x, x + 2, rng.uniform(0.5, 1.2))
    engine = floor - tall // 3
    _add(field, engine, floor + height // 3, front + 2, front + (back - front) * 2 // 3, 1.3)
    for _ in range(14):
        y, x = int(rng.integers(engine - 6, floor)), int(rng.integers(front, back - 4))
        _add(field, y, y + int(rng.integers(2, 9)), x, x + int(rng.integers(2, 11)), 0.7)
    _disc(field, floor + height // 2, (front + back) // 2, height * 0.55, 1.6)
    _add(field, floor, floor + 4, front, back + 6, 1.5)


def _residue(inside: Attenuation, amount: float, rng: np.random.Generator) -> None:
    """Add dirt, dunnage and stains along the floor of an empty container."""
    height, width = inside.shape
    walk = np.cumsum(rng.normal(0, 1, width))
    walk = np.abs(walk - walk.mean()) / (np.abs(walk).max() + 1)
    deep = np.minimum(walk * amount * 0.35 * height, 0.12 * height)
    y = np.arange(height, 0, -1)[:, None]
    inside += ((y < deep) * rng.uniform(0.08, 0.5)).astype(np.float32)
    for _ in range(int(rng.integers(1, 6))):  # planks and lashings left behind
        x, long = int(rng.integers(width)), int(rng.integers(4, max(5, width // 8)))
        up = height - int(rng.integers(1, max(2, int(height * 0.04))))
        inside[up : up + int(rng.integers(1, 3)), x : x + long] += np.float32(rng.uniform(0.1, 0.5))


def _sheared(
    field: Attenuation, rise: int, slack: int, height: int, rng: np.random.Generator
) -> Attenuation:
    """Shift every column slightly up or down, because the passing truck is not level."""
    width = field.shape[1]
    sway = np.interp(np.arange(width), np.linspace(0, width, 7), rng.normal(0, 0.5, 7))
    shift = np.linspace(-rise / 2, rise / 2, width) + sway
    rows = np.arange(height, dtype=np.intp)[:, None] + np.rint(slack + shift).astype(np.intp)
    np.clip(rows, 0, field.shape[0] - 1, out=rows)
    flat: npt.NDArray[np.intp] = rows * width + np.arange(width)
    return field.ravel()[flat]
