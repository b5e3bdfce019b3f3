"""Pictures of three cloths, for tests of a user's own dataset."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("canvas", "denim", "silk")
PICTURES = 36  # per class, three per bolt


def write_cloths(folder: Path) -> Path:
    """Write class folders with files `boltNNN-N.png`; return the folder."""
    rng = np.random.default_rng(5)
    for place, kind in enumerate(CLASSES):
        (folder / kind).mkdir(parents=True)
        for number in range(PICTURES):
            name = f"bolt{place}{number // 3:02d}-{number % 3}.png"
            Image.fromarray(_weave(kind, rng)).save(folder / kind / name)
    return folder


def _weave(kind: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw noise with horizontal, vertical or no stripes, uint8[40, 48]."""
    grey = rng.normal(120, 25, (40, 48))
    grey[:: 4 if kind == "canvas" else 99] += 90
    grey[:, :: 4 if kind == "denim" else 99] += 90
    return np.clip(grey, 0, 255).astype(np.uint8)
