"""Augmentation: ranges of the recipes, repeated edges, and reproducible views."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from visao_ray.images.augment import augment, augment_view, view_rng
from visao_ray.images.recipes import RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[2]

# Each pixel holds its position: channel 0 the row, channel 1 the column.
HEIGHT, WIDTH = 120, 200
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.uint8)
PLACES = np.stack([ROWS, COLUMNS, np.full_like(ROWS, 100)], axis=2)


def test_recipes_are_the_ones_of_the_study():
    table = {
        name: (r.width_shift, r.height_shift, r.brightness, r.horizontal_flip)
        for name, r in RECIPES.items()
    }
    assert table == {
        "none": (0, 0, None, False),
        "G1": (0.1, 0.1, (0.8, 1.2), True),
        "G2": (0, 0, (0.9, 1.1), True),
        "G3": (0.1, 0.05, (0.95, 1.05), True),
        "G4": (0.1, 0.1, (0.9, 1.1), True),
        "G5": (0, 0, None, True),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_views_cover_the_range_of_their_recipe(name):
    recipe = RECIPES[name]
    geometry = Recipe("geometry", recipe.width_shift, recipe.height_shift, None, True)
    largest = round(recipe.height_shift * HEIGHT), round(recipe.width_shift * WIDTH)
    original = PLACES.copy()
    seen, flips = set(), 0
    for draw in range(400):
        view = augment(PLACES, geometry, view_rng(1, "a", draw))
        assert view.shape == PLACES.shape
        assert view.dtype == np.uint8
        flipped = bool(view[0, 0, 1] > view[0, -1, 1])
        flips += flipped
        upright = view[:, ::-1] if flipped else view
        middle = upright[HEIGHT // 2, WIDTH // 2].astype(int)
        down, right = HEIGHT // 2 - middle[0], WIDTH // 2 - middle[1]
        seen.add((down, right))
        rows = np.clip(np.arange(HEIGHT) - down, 0, HEIGHT - 1)  # edge pixels repeated
        columns = np.clip(np.arange(WIDTH) - right, 0, WIDTH - 1)
        assert (upright[..., 0] == rows[:, None]).all()
        assert (upright[..., 1] == columns).all()
    shifts = np.array(sorted(seen))
    assert tuple(shifts.max(axis=0)) == largest
    assert tuple(-shifts.min(axis=0)) == largest
    assert 150 < flips < 250
    assert (original == PLACES).all()

    factors = [augment(PLACES, recipe, view_rng(2, "a", v))[0, 0, 2] / 100 for v in range(400)]
    low, high = recipe.brightness or (1.0, 1.0)
    assert low - 0.006 <= min(factors) < low + 0.03
    assert high - 0.03 < max(factors) <= high + 0.006


def test_brightness_multiplies_and_clips():
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 256, 1), 3, axis=2)
    brighter = augment(ramp, Recipe("x", brightness=(1.2, 1.2)), np.random.default_rng(0))
    expected = np.minimum(np.rint(np.arange(256) * 1.2), 255)
    assert (brighter[0, :, 0] == expected).all()


def test_no_recipe_and_view_zero_change_nothing():
    assert (augment(PLACES, RECIPES["none"], np.random.default_rng(0)) == PLACES).all()
    assert (augment_view(PLACES, RECIPES["G1"], 7, "train/a.jpg", 0) == PLACES).all()
    first = augment_view(PLACES, RECIPES["G1"], 7, "train/a.jpg", 1)
    assert (first != PLACES).any()
    assert (first == augment(PLACES, RECIPES["G1"], view_rng(7, "train/a.jpg", 1))).all()


def test_generators_are_the_same_in_another_process_and_differ_between_views():
    keys = ("train/NORMAL/ção.jpeg", "undecodable \udcff.jpg")
    code = (
        "from visao_ray.images.augment import view_rng\n"
        f"print([int(view_rng(3, k, v).integers(2**62)) for k in {keys!r} for v in (1, 2)])"
    )
    command = [sys.executable, "-c", code]
    outputs = {
        subprocess.run(
            command, cwd=ROOT, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    here = [int(view_rng(3, key, view).integers(2**62)) for key in keys for view in (1, 2)]
    assert outputs == {str(here)}
    others = [int(view_rng(4, keys[0], 1).integers(2**62)), int(view_rng(3, "", 1).integers(2**62))]
    assert len({*here, *others}) == 6
