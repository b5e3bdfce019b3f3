"""An inference engine in one file: grey levels and gradients on a grid, in plain NumPy.

    python jobs/extract.py --plugin examples/add_engine.py --engine thumbnail --image-size 64 \
      --dataset vazios --data s3://bucket/vazios --store s3://bucket/store

It needs no weights and some 50 microseconds an image, so it is a baseline for what a network adds.
Sweeps, training and prediction take its vectors as they take those of a network.

An engine is the function of pixels, a factory that builds it in each actor, a kind that makes the
factory of a job's settings, and the line that registers the kind. What each must have: see
`visao_ray/inference/engines/base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location
from visao_ray.features.settings import ExtractSettings
from visao_ray.inference.engines.registry import register

_GRID = 8  # cells a side
_SIZE = 64  # side of the images in pixels, unless --image-size says otherwise

Vectors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Thumbnail:
    """Grey level and gradient of each cell of a grid: their means as `avg`, their maxima as `max`.

    It is its own factory: there is nothing to load.

    Attributes:
        image_size: S, a multiple of the cells a side.
        resize: how an image is made square.
    """

    image_size: int
    resize: Literal["stretch", "letterbox"]

    @property
    def name(self) -> str:
        """As lines of progress and the table of its vectors have it."""
        return "thumbnail"

    @property
    def outputs(self) -> Mapping[str, int]:
        """128 numbers each."""
        return {"avg": 2 * _GRID**2, "max": 2 * _GRID**2}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """All that decides the numbers."""
        return {
            "engine": self.name,
            "grid": _GRID,
            "image_size": self.image_size,
            "resize": self.resize,
        }

    def build(self) -> Thumbnail:
        """Ready as it is."""
        return self

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """`avg` and `max`, float32[N, 128] in 0..1, of pixels uint8[N, S, S, C]."""
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
    """The kind `thumbnail`."""

    name = "thumbnail"
    options = ("image_size", "resize")

    def resolve(self, settings: ExtractSettings, work: Location) -> tuple[Thumbnail, None]:
        """The engine for images of that size.

        Raises:
            InputError: the grid does not divide the images.
        """
        size = settings.image_size or _SIZE
        if size % _GRID:
            raise InputError(f"--image-size {size}: --engine thumbnail takes multiples of {_GRID}")
        return Thumbnail(size, settings.resize), None


register(ThumbnailKind())
