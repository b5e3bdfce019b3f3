"""An inference engine in one file: grey levels and gradients on a grid, in plain NumPy.

    python jobs/extract.py --plugin examples/add_engine.py --engine thumbnail --image-size 64 \
      --dataset vazios --data s3://bucket/vazios --store s3://bucket/store

It needs no weights and takes about 50 microseconds an image: a baseline to compare a network with.
Sweeps, training and prediction use its vectors like those of a network.

Four parts make an engine: the function of pixels, a factory that builds it in each actor, a kind
that makes the factory from a job's settings, and the line that registers the kind. Their interfaces
are in `visao_ray/inference/engines/base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location
from visao_ray.inference.engines.registry import register
from visao_ray.inference.settings import ExtractOptions

_GRID = 8  # cells per side
_SIZE = 64  # default of --image-size, in pixels

Vectors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Thumbnail:
    """Grey level and gradient in each cell of a grid: their means are `avg`, their maxima `max`.

    The class is its own factory: there is nothing to load.

    Attributes:
        image_size: S, side of the images in pixels, a multiple of the cells per side.
        resize: how an image is made square.
    """

    image_size: int
    resize: Literal["stretch", "letterbox"]

    @property
    def name(self) -> str:
        """Name in progress lines and in the name of the vectors' table."""
        return "thumbnail"

    @property
    def outputs(self) -> Mapping[str, int]:
        """Width of each output: 128."""
        return {"avg": 2 * _GRID**2, "max": 2 * _GRID**2}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Everything that decides the numbers."""
        return {
            "engine": self.name,
            "grid": _GRID,
            "image_size": self.image_size,
            "resize": self.resize,
        }

    def build(self) -> Thumbnail:
        """Return the engine, which is ready to use."""
        return self

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """Compute `avg` and `max`, float32[N, 128] in 0..1, of pixels uint8[N, S, S, C]."""
        grey = pixels.mean(axis=-1, dtype=np.float32) / 255
        down, across = np.gradient(grey, axis=(1, 2))
        maps = np.stack([grey, np.hypot(down, across)], axis=1)
        side = self.image_size // _GRID
        cells = maps.reshape(len(pixels), 2, _GRID, side, _GRID, side)
        return {
            "avg": cells.mean(axis=(3, 5)).reshape(len(pixels), -1),
            "max": cells.max(axis=(3, 5)).reshape(len(pixels), -1),
        }


class ThumbnailKind:
    """The engine `thumbnail` on the command line."""

    name = "thumbnail"
    options = ("image_size", "resize")

    def resolve(self, options: ExtractOptions, seed: int, work: Location) -> tuple[Thumbnail, None]:
        """Return the engine for images of the given size.

        Args:
            options: settings of the extraction.
            seed: seed of the job; this engine draws nothing.
            work: folder for files that the factory needs; this one needs none.

        Returns:
            The factory, and no warning.

        Raises:
            InputError: the image size is no multiple of the grid.
        """
        size = options.image_size or _SIZE
        if size % _GRID:
            raise InputError(f"--image-size {size}: --engine thumbnail takes multiples of {_GRID}")
        return Thumbnail(size, options.resize), None


register(ThumbnailKind())
