"""Synthetic chest films: a rib-cage phantom, healthy or with pneumonia."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from visao_ray.synthetic.detector import Attenuation, Scan
from visao_ray.synthetic.recipe import lot_of

Curve = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Body:
    """Anatomy of one patient. Lengths are shares of the width or height of the film."""

    chest: float  # half width of the rib cage at its base
    apex: float  # height of the tops of the lungs
    base: float  # height of the domes of the diaphragm
    heart: float  # half width of the heart to the left
    ribs: float  # distance between ribs
    slope: float  # fall of the ribs towards the side
    bone: float  # density of the bones
    fat: float  # thickness of soft tissue
    vessels: int  # seed of the pulmonary vessels
    stomach: float  # gas under the left dome


def _body(seed: int, patient: int) -> _Body:
    rng = np.random.default_rng([seed, 31, patient])
    return _Body(
        chest=rng.uniform(0.34, 0.41),
        apex=rng.uniform(0.1, 0.18),
        base=rng.uniform(0.66, 0.8),
        heart=rng.uniform(0.15, 0.23),
        ribs=rng.uniform(0.075, 0.095),
        slope=rng.uniform(0.18, 0.36),
        bone=rng.uniform(0.32, 0.5),
        fat=rng.uniform(0.8, 1.25),
        vessels=int(rng.integers(2**31)),
        stomach=rng.uniform(0, 0.5),
    )


def chest_scan(true_label: str, index: int, seed: int, difficulty: str) -> Scan:
    """Return film number `index`, `NORMAL` or `PNEUMONIA`, of patient `lot_of(seed, index)`."""
    body = _body(seed, lot_of(seed, index)[0])
    rng = np.random.default_rng([seed, 32, index])
    width = int(rng.integers(390, 480))
    height = int(width / rng.uniform(1.15, 1.6))
    # The anatomy has no detail finer than a few pixels, so half the resolution is enough.
    field, air = _thorax(body, rng, height // 2, width // 2, difficulty == "rotated")
    if true_label == "PNEUMONIA":
        field += _opacities(rng, air, difficulty == "subtle")
    attenuation = _enlarged(field, height, width)
    _collimate(attenuation, rng)
    if difficulty == "devices":
        attenuation += _devices(rng, height, width)
    dark = difficulty == "dark"
    brightest = float(np.quantile(attenuation[::8, ::8], 0.995))
    darkest = rng.uniform(0.0, 0.5)
    if rng.random() < 0.8:
        _marker(attenuation, rng, brightest)
    return Scan(
        attenuation=attenuation,
        tone="film",
        photons=rng.uniform(4_000, 8_000) if dark else rng.uniform(15_000, 60_000),
        psf=rng.uniform(1.5, 2.5) if difficulty == "blur" else rng.uniform(0.4, 0.7),
        stripes=0.002,
        gamma=rng.uniform(1.5, 2.1) if dark else rng.uniform(0.65, 1.05),
        window=(darkest, brightest * rng.uniform(0.93, 1.1)),
    )


@dataclass(frozen=True)
class _Pose:
    """Properties of one film of a patient: stance, breath, beam."""

    centre: float  # of the body, share of the width
    up: float  # of the body, share of the height
    zoom: float
    tilt: float  # sideways lean
    turn: float  # rotation about the spine
    breath: float  # a shallow breath leaves the domes high
    soft: float  # sharpness of the outlines of the lungs
    air: float  # reduction of the attenuation by the air in the lungs
    arms: float  # distance of the arms from the trunk; 0: out of view
    reach: float  # slant of the arms
    ribs: tuple[float, float]  # where the first rib lies, behind and in front
    clavicles: tuple[float, float]  # height and slant


def _pose(rng: np.random.Generator, body: _Body, rotated: bool) -> _Pose:
    return _Pose(
        centre=0.5 + rng.normal(0, 0.015),
        up=rng.normal(0, 0.02),
        zoom=rng.uniform(0.94, 1.1),
        tilt=rng.normal(0, 0.12 if rotated else 0.025),
        turn=rng.normal(0, 0.03 if rotated else 0.008),
        breath=rng.normal(0, 0.025),
        soft=rng.uniform(45, 80),
        air=rng.uniform(0.72, 0.95) * body.fat,
        arms=rng.uniform(0.1, 0.16) * (rng.random() < 0.6),
        reach=rng.uniform(-0.1, 0.15),
        ribs=(rng.random(), rng.random()),
        clavicles=(body.apex + rng.uniform(0.02, 0.06), rng.uniform(0.1, 0.35)),
    )


def _thorax(
    body: _Body, rng: np.random.Generator, height: int, width: int, rotated: bool
) -> tuple[Attenuation, Attenuation]:
    """Return the attenuation of a healthy chest and its reduction by air in the lungs, [H, W]."""
    pose = _pose(rng, body, rotated)
    y = np.linspace(0, 1, height, dtype=np.float32)
    v = ((y - np.float32(0.5)) / pose.zoom + 0.5 + pose.up).astype(np.float32)
    centre = pose.centre + pose.tilt * (y - 0.5) * height / width
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    u = (x - centre.astype(np.float32)[:, None]) / np.float32(pose.zoom)
    field, air = _layers(body, pose, u, v)
    field += _vessels(body, rng, height, width) * air
    np.maximum(field, 0, out=field)
    return field, air


def _layers(body: _Body, pose: _Pose, u: Attenuation, v: Curve) -> tuple[Attenuation, Attenuation]:
    """Return the attenuation of soft tissue, air and bones, and its reduction by air, [H, W].

    Args:
        body: the patient.
        pose: the film.
        u: distance of every pixel from the spine, [H, W]; negative on the right of the body.
        v: height of every row in the body, [H]; 0 at the top.
    """
    side = np.abs(u)
    base = body.base - pose.breath
    # Outline of the lungs, one curve per side; the left of the image is the right of the body.
    down = np.clip((v - body.apex) / (base + 0.12 - body.apex), 0, 1)
    lateral = body.chest * (np.clip(1 - (1 - down) ** 3.0, 0, 1) ** 0.5 * 0.86 + 0.14 * down)
    lateral = lateral.astype(np.float32)
    mid = np.exp(-(((v - 0.36) / 0.07) ** 2))
    low = np.clip((v - 0.4) / (base - 0.4 + 0.02), 0, 1)
    right = 0.055 + pose.turn + 0.012 * mid + 0.045 * np.sin(np.pi * low**0.9)
    left = 0.055 - pose.turn + 0.025 * mid + (body.heart - 0.06) * low**1.1
    left -= 0.125 * np.clip(low - 0.8, 0, 1) * (body.heart > 0.17)
    neck = np.clip(1 - down * 7, 0, 1) ** 2 * 0.07
    leftward = u < 0
    medial = np.where(leftward, (right + neck)[:, None], (left + neck)[:, None]).astype(np.float32)
    fall = np.maximum(side - np.float32(0.35 * body.chest), 0)
    dome = fall * fall * np.float32(1.9) + np.float32(base)
    dome -= leftward * np.float32(0.015)
    soft = np.float32(pose.soft)
    wall = lateral[:, None] - side
    air = _ramp((side - medial) * soft)
    air *= _ramp(wall * np.float32(110))
    air *= _ramp((dome - v[:, None]) * soft)
    air *= _ramp(wall * np.float32(8)) * np.float32(0.4) + np.float32(0.6)
    air *= np.float32(pose.air)

    # Soft tissue: trunk, shoulders and arms; then subtract the air in the lungs.
    trunk = body.chest + 0.035 * body.fat + 0.1 * np.clip(0.28 - v, 0, 1) * 4
    trunk = np.where(v < 0.12, trunk - (0.12 - v) * 2, trunk).astype(np.float32)[:, None]
    field = np.sqrt(_ramp((trunk - side) * np.float32(4.5))) * np.float32(1.6 * body.fat)
    belly = _ramp((v[:, None] - dome + np.float32(0.03)) * np.float32(6))
    field += belly * (side < trunk) * np.float32(0.3)
    if pose.arms:
        arm = (body.chest + pose.arms + pose.reach * (v - 0.3)).astype(np.float32)[:, None]
        flesh = np.float32(0.06) - np.abs(side - arm)
        np.maximum(field, np.sqrt(np.maximum(flesh, 0)) * np.float32(4.5), out=field)
        field += _ramp((flesh - np.float32(0.044)) * 90) * np.float32(0.25)
    field -= air
    heart = ((u - np.float32(0.05)) / np.float32(body.heart + 0.06)) ** 2
    heart += ((v - base + 0.17) / 0.24)[:, None] ** 2
    field += _ramp(np.float32(1.1) - heart) * np.float32(0.3)
    throat = _ramp(1 - side * np.float32(55)) * _ramp(2 - v * np.float32(5.5))[:, None]
    field -= throat * np.float32(0.22)
    if body.stomach > 0.2:
        bubble = ((u - np.float32(0.17)) / np.float32(0.09)) ** 2
        bubble += ((v - base - 0.09) / 0.05)[:, None] ** 2
        field -= _ramp(1 - bubble) * np.float32(body.stomach)

    field += _spine(side, v, body)
    field += _ribs(side, v, lateral, body, pose)
    top, stop = np.searchsorted(v, [pose.clavicles[0] - 0.2, pose.clavicles[0] + 0.07])
    field[top:stop] += _clavicles(side[top:stop], v[top:stop], body, pose)
    return field, air


def _ramp(x: Attenuation) -> Attenuation:
    """Clip `x` to 0..1 in place."""
    return np.clip(x, 0, 1, out=x)


def _spine(side: Attenuation, v: Curve, body: _Body) -> Attenuation:
    """Return the attenuation of the vertebrae with their discs and pedicles."""
    phase = v * np.float32(1 / (0.72 * body.ribs))
    phase = phase - np.floor(phase)
    disc = np.clip(np.abs(phase - 0.5) * 2 - 0.7, 0, 1) * 1.6
    level = ((1 - disc) * (0.35 + 0.5 * v)).astype(np.float32)
    reach = (0.03 + 0.014 * v).astype(np.float32)[:, None]
    column = _ramp((reach - side) * np.float32(60))
    pedicle = np.clip(1 - np.abs(phase - 0.4) * 5, 0, 1).astype(np.float32)
    knob = _ramp(1 - np.abs(side - reach * np.float32(0.75)) * np.float32(120))
    column += knob * pedicle[:, None]
    column *= level[:, None] * np.float32(body.bone)
    return column


def _ribs(side: Attenuation, v: Curve, lateral: Curve, body: _Body, pose: _Pose) -> Attenuation:
    """Draw all ribs as periodic tubes along curves: behind and, fainter, in front."""
    w = v[:, None]
    wall = lateral[:, None] + np.float32(0.014)
    cage = _ramp((wall - side) * np.float32(70))
    r = side * np.float32(1 / body.chest)
    spacing = np.float32(1 / body.ribs)
    bow = r - np.float32(0.35)
    behind = (w - bow * bow * r * np.float32(2.4 * body.slope)) * spacing + np.float32(pose.ribs[0])
    ribs = _tubes(behind)
    ribs *= r * np.float32(0.35) + np.float32(0.8)
    front = w + r * np.float32(0.3 * body.slope + 0.05)
    front *= spacing * np.float32(0.92)
    front += np.float32(pose.ribs[1])
    shade = _tubes(front)
    ribs += shade * _ramp((r - np.float32(0.3)) * 2) * np.float32(0.5)
    ribs *= cage
    ribs *= _ramp((side - np.float32(0.03)) * np.float32(40))
    # At the side wall, the ray runs along the ribs.
    edge = _ramp(1 - np.abs(side - wall + np.float32(0.01)) * np.float32(75))
    ribs += edge * (shade * np.float32(0.7) + np.float32(0.3)) * (wall > np.float32(0.06))
    ends = np.clip((w - (body.apex - 0.06)) * 30, 0, 1)
    ends *= np.clip((body.base - pose.breath + 0.22 - w) * 5, 0, 1)
    ribs *= ends * np.float32(body.bone)
    return ribs


def _tubes(phase: Attenuation) -> Attenuation:
    """Draw hollow tubes from a phase of period 1: bright cortex, paler marrow."""
    across = phase - np.floor(phase)
    across -= np.float32(0.5)
    across *= across
    tube: Attenuation = np.sqrt(np.maximum(1 - across * np.float32(1 / 0.27**2), 0))
    tube *= np.float32(1.4)
    tube -= np.float32(0.8) * np.sqrt(np.maximum(1 - across * np.float32(1 / 0.2**2), 0))
    return tube


def _clavicles(side: Attenuation, v: Curve, body: _Body, pose: _Pose) -> Attenuation:
    """Draw the collar bones and the heads of the upper arms."""
    height, slant = pose.clavicles
    w = v[:, None]
    line = np.float32(height) - np.float32(slant) * side
    line += np.float32(0.02) * np.sin(side * np.float32(16))
    distance = np.abs(w - line) * np.float32(1 / 0.017)
    bone = _ramp(np.float32(1.25) - distance) - _ramp(np.float32(0.75) - distance) * np.float32(0.5)
    bone *= _ramp((side - np.float32(0.035)) * 60)
    bone *= _ramp((np.float32(body.chest + 0.05) - side) * 30)
    joint = ((side - np.float32(body.chest + 0.07)) / np.float32(0.05)) ** 2
    joint += ((w - np.float32(height - 0.03)) / np.float32(0.07)) ** 2
    bone += np.clip(np.float32(1.2) - joint, 0, np.float32(0.5))
    bone *= np.float32(body.bone * 1.2)
    return bone


def _vessels(body: _Body, rng: np.random.Generator, height: int, width: int) -> Attenuation:
    """Draw vessels that branch from the hila, and the fine texture of the lungs."""
    h, w = height, width
    canvas = Image.new("L", (w, h))
    pen = ImageDraw.Draw(canvas)
    tree = np.random.default_rng(body.vessels)
    for sign in (-1, 1):
        for _ in range(13):
            x, y = 0.5 + sign * 0.075, 0.42 + tree.normal(0, 0.035)
            angle, bright = tree.uniform(-1.1, 1.35), int(tree.integers(70, 150))
            for step in range(6):
                nx = x + sign * np.cos(angle) * 0.042
                ny = y + np.sin(angle) * 0.05
                thick = 4 - step if step < 2 else 2 - step // 4
                shade = int(bright * (1 - step / 7))
                pen.line((x * w, y * h, nx * w, ny * h), fill=shade, width=thick)
                x, y, angle = nx, ny, angle + tree.normal(0, 0.22)
        pen.ellipse(
            ((0.5 + sign * 0.085 - 0.035) * w, 0.36 * h, (0.5 + sign * 0.085 + 0.035) * w, 0.5 * h),
            fill=int(tree.integers(50, 110)),
        )
    strength = rng.uniform(0.6, 1.1)
    half = canvas.resize((w // 2, h // 2), Image.Resampling.BOX)
    small = np.asarray(half, np.float32) * np.float32(strength / 255)
    small += rng.normal(0, 0.045, small.shape)  # fine texture of the lungs
    return _enlarged(small, height, width)


def _enlarged(small: npt.NDArray[np.floating], height: int, width: int) -> Attenuation:
    image = Image.fromarray(small.astype(np.float32))
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def _opacities(rng: np.random.Generator, air: Attenuation, subtle: bool) -> Attenuation:
    """Draw consolidation (a dense lobe), bronchopneumonia (patches) or interstitial haze."""
    height, width = air.shape
    h, w = height // 2, width // 2
    depth = air[: h * 2 : 2, : w * 2 : 2]
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, w, dtype=np.float32)[None, :]
    severity = rng.uniform(0.1, 0.25) if subtle else min(0.2 + rng.gamma(2.0, 0.4), 2.5)
    places = np.argwhere(depth > 0.5 * depth.max())
    pattern = str(rng.choice(["lobar", "patches", "interstitial"], p=[0.35, 0.35, 0.3]))
    size, blobs = {
        "lobar": (0.13, int(rng.integers(1, 3))),
        "patches": (0.06, int(rng.integers(4, 11))),
        "interstitial": (0.2, 3),
    }[pattern]
    haze = np.full((h, w), rng.uniform(0, 0.3) * (not subtle), np.float32)
    for _ in range(blobs if len(places) else 0):
        cy, cx = places[rng.integers(len(places))] / (h, w)
        if pattern == "interstitial":  # spreads from the hila
            cy, cx = 0.5 + rng.normal(0, 0.08), 0.5 + rng.choice([-1, 1]) * 0.15
        ry, rx = size * rng.uniform(0.7, 1.7, 2)
        distance = ((y - np.float32(cy)) / np.float32(ry)) ** 2
        distance = distance + ((x - np.float32(cx)) / np.float32(rx)) ** 2
        steep = distance * distance if pattern == "lobar" else distance
        haze += np.exp(-steep) * np.float32(rng.uniform(0.5, 1.1))
    coarse = _enlarged(rng.normal(0, 1, (h // 5 + 1, w // 5 + 1)), h, w)
    fine = _enlarged(rng.normal(0, 1, (h // 2, w // 2)), h, w)
    uneven = (0.2, 0.25) if pattern == "interstitial" else (0.3, 0.1)
    haze *= np.maximum(1 + np.float32(uneven[0]) * coarse + np.float32(uneven[1]) * fine, 0)
    # A consolidated lung cannot hold more water than it had air.
    filled = (1 - np.exp(-haze * np.float32(severity))).astype(np.float32)
    return _enlarged(filled, height, width) * air


def _devices(rng: np.random.Generator, height: int, width: int) -> Attenuation:
    """Draw leads and tubes over the chest."""
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        xs = np.interp(np.linspace(0, 3, 30), range(4), rng.uniform(0.1, 0.9, 4)) * width
        ys = np.linspace(rng.uniform(0, 0.2), rng.uniform(0.5, 1.0), 30) * height
        points = list(zip(xs.tolist(), ys.tolist(), strict=True))
        pen.line(points, fill=200, width=2, joint="curve")
        x, y = points[-1]
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=150, outline=230)
    return np.asarray(canvas, np.float32) * np.float32(0.8 / 255)


def _collimate(field: Attenuation, rng: np.random.Generator) -> None:
    """Add shutters; the film stays black outside the beam."""
    height, width = field.shape
    for axis, size in ((0, height), (1, width)):
        for end in (0, 1):
            if rng.random() < 0.3:
                thick = int(rng.uniform(0.005, 0.035) * size)
                edge = slice(0, thick) if end == 0 else slice(size - thick, size)
                field[(edge, slice(None)) if axis == 0 else (slice(None), edge)] = 0


def _marker(field: Attenuation, rng: np.random.Generator, value: float) -> None:
    """Add the lead letter R beside the right shoulder of the patient."""
    height, width = field.shape
    tall = int(height * rng.uniform(0.04, 0.08))
    letter = np.zeros((7, 5), bool)
    for row, bits in enumerate((0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001)):
        letter[row] = [bits >> (4 - c) & 1 for c in range(5)]
    scale = max(2, tall // 7)
    glyph = letter.repeat(scale, 0).repeat(scale, 1)
    y = int(rng.uniform(0.05, 0.35) * height)
    x = int(rng.uniform(0.01, 0.06) * width)
    field[y : y + glyph.shape[0], x : x + glyph.shape[1]][glyph] = value
