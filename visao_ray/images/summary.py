"""A small grey copy of an image and its sharpness, by which images are compared without files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image


def summarize(pixels: npt.NDArray[np.uint8], side: int) -> tuple[npt.NDArray[np.uint8], float]:
    """Summarize a decoded image.

    Args:
        pixels: uint8[S, S, C], C = 1 or 3.
        side: side of the small copy, in pixels.

    Returns:
        The copy, uint8[side, side]; and the sharpness: the mean absolute Laplacian of the grey
        image, in grey levels.
    """
    grey = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if pixels.shape[2] == 3:
        grey = grey.convert("L")
    # Not the box filter: Pillow's is not symmetric, so a mirror image would differ.
    small = np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR))
    return small, sharpness(np.asarray(grey))


def sharpness(grey: npt.NDArray[np.uint8]) -> float:
    """Return the mean absolute Laplacian of a grey image uint8[H, W], in grey levels."""
    if min(grey.shape) < 3:
        return 0.0
    level = grey.astype(np.int16)
    inner = 4 * level[1:-1, 1:-1]
    inner = inner - level[:-2, 1:-1] - level[2:, 1:-1] - level[1:-1, :-2] - level[1:-1, 2:]
    return float(np.abs(inner).mean())
