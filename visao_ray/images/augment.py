"""Augmentation by a recipe, as pure functions of pixels and a random generator.

The 2019 study used Keras's `ImageDataGenerator` with `fill_mode='nearest'`.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from visao_ray.images.recipes import Recipe


def augment(
    image: npt.NDArray[np.uint8], recipe: Recipe, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw one random view of an image.

    Shifts are whole pixels, drawn uniformly, and edge pixels are repeated. Fractions of a pixel
    would only add the slight blur of interpolation, because the range is tens of pixels wide. The
    brightness is multiplied by a factor, rounded and clipped to 0..255.

    Args:
        image: uint8[H, W, C]; not modified.
        recipe: ranges of the view.
        rng: random generator.

    Returns:
        The view, uint8[H, W, C].
    """
    height, width = image.shape[:2]
    rows = _shifted(height, recipe.height_shift, rng)
    columns = _shifted(width, recipe.width_shift, rng)
    if recipe.horizontal_flip and rng.random() < 0.5:
        columns = columns[::-1]
    view: npt.NDArray[np.uint8] = image[rows[:, None], columns]
    if recipe.brightness is not None:
        factor = rng.uniform(*recipe.brightness)
        table = np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8)
        view = table[view]
    return view


def augment_view(
    image: npt.NDArray[np.uint8], recipe: Recipe, seed: int, key: str, view: int
) -> npt.NDArray[np.uint8]:
    """Return view number `view` of an image, uint8[H, W, C]; view 0 is the unchanged image."""
    return image if view == 0 else augment(image, recipe, view_rng(seed, key, view))


def view_rng(seed: int, key: str, view: int) -> np.random.Generator:
    """Return the random generator of a view, which depends on seed, key and view alone."""
    # SHA-256, because `hash` of a string differs between processes. Keys may be undecodable names.
    name = f"{seed}\0{view}\0{key}".encode("utf-8", errors="surrogateescape")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()))


def _shifted(length: int, share: float, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return the index of the source pixel of each pixel along one axis after a random shift."""
    largest = round(share * length)
    shift = int(rng.integers(-largest, largest, endpoint=True))
    return np.arange(-shift, length - shift).clip(0, length - 1)
