"""What the graph asks of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt


class Engine(Protocol):
    """Computes numbers from pixels; lives in an actor, on the actor's device.

    Attributes:
        outputs: name and width of each output.
        metadata: everything that decides the numbers; goes into the name of their table.
    """

    outputs: Mapping[str, int]
    metadata: Mapping[str, Any]

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs float32[N, width] by name, of pixels uint8[N, S, S, C] with C of 1 or 3."""


class EngineFactory(Protocol):
    """Builds an engine where it is needed: small, picklable, known to the driver.

    Attributes:
        name: as people call the engine in lines of progress.
        image_size: S, the side of its input in pixels.
        resize: how an image is made square, `stretch` or `letterbox`.
        outputs, metadata: those of the engine.
    """

    @property
    def name(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    @property
    def resize(self) -> Literal["stretch", "letterbox"]: ...

    @property
    def outputs(self) -> Mapping[str, int]: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    def build(self) -> Engine:
        """The engine, ready to be called; takes seconds."""
