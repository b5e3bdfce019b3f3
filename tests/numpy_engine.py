"""Engines in NumPy, a plugin for tests whose subject is not the network.

`cells` computes means and maxima of the cells of a grid; it needs no TensorFlow, which takes five
seconds of a core in every process that imports it. `paced` computes the same and takes at least
40 ms an image without using a core, so that an extraction lasts long enough for faults in its
middle, on machines of any speed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from visao_ray.core.storage import Location
from visao_ray.inference.engines.registry import register
from visao_ray.inference.settings import ExtractOptions

_GRID = 4  # cells per side
_SIZE = 32  # default of --image-size, in pixels
_PACE_S = 0.04  # of one image

#: Flags of a job that extracts with each engine; its `PYTHONPATH` must have the folder of tests.
CELLS = (f"--plugin={__name__}", "--engine=cells")
PACED = (f"--plugin={__name__}", "--engine=paced")


@dataclass(frozen=True)
class Cells:
    """Means and maxima of each colour in each cell of a grid; its own factory.

    Attributes:
        name: of the engine.
        image_size: S, side of the images in pixels, a multiple of the cells per side.
        resize: how an image is made square.
        pace: least seconds of an image.
    """

    name: str
    image_size: int
    resize: Literal["stretch", "letterbox"]
    pace: float

    @property
    def outputs(self) -> Mapping[str, int]:
        """Width of each output: 48."""
        return dict.fromkeys(("avg", "max"), 3 * _GRID**2)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Everything that decides the numbers."""
        return {"engine": self.name, "image_size": self.image_size, "resize": self.resize}

    def build(self) -> Cells:
        """Return the engine."""
        return self

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Compute `avg` and `max`, float32[N, 48] in 0..1, of pixels uint8[N, S, S, C]."""
        began = time.monotonic()
        side = self.image_size // _GRID
        colours = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).astype(np.float32) / 255
        cells = colours.reshape(len(pixels), _GRID, side, _GRID, side, 3)
        found = {
            "avg": cells.mean(axis=(2, 4)).reshape(len(pixels), -1),
            "max": cells.max(axis=(2, 4)).reshape(len(pixels), -1),
        }
        time.sleep(max(0.0, began + self.pace * len(pixels) - time.monotonic()))
        return found


@dataclass(frozen=True)
class CellsKind:
    """An engine of this file on the command line.

    Attributes:
        name: value of `--engine`.
        pace: least seconds of an image.
    """

    name: str
    pace: float = 0.0
    options = ("image_size", "resize")

    def resolve(self, options: ExtractOptions, seed: int, work: Location) -> tuple[Cells, None]:
        """Return the engine for images of the given size, and no warning."""
        return Cells(self.name, options.image_size or _SIZE, options.resize, self.pace), None


register(CellsKind("cells"))
register(CellsKind("paced", _PACE_S))
