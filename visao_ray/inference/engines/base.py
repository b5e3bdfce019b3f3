"""What the graph asks of an engine, and the extract job of a kind of engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from visao_ray.core.storage import Location
from visao_ray.inference.settings import ExtractOptions


class Engine(Protocol):
    """Computes numbers from pixels; lives in an actor, on the actor's device.

    Attributes:
        outputs: name and width of each output.
        metadata: everything that decides the numbers; goes into the name of their table.
    """

    @property
    def outputs(self) -> Mapping[str, int]: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

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


class EngineKind(Protocol):
    """What `--engine` names: makes an engine as the settings of an extraction ask for it.

    The outputs of its engines are `avg` and `max`, of one width: models take these two. Where its
    numbers differ from those of the kind `keras`, their metadata holds its name as `engine`.

    Attributes:
        name: as `--engine` has it.
        options: the settings of `BackboneOptions` that it takes; others are refused.
    """

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> Collection[str]: ...

    def resolve(
        self, options: ExtractOptions, seed: int, work: Location
    ) -> tuple[EngineFactory, str | None]:
        """Find what the engine is made of, and keep in `work` what actors build it from.

        Runs in a task. Actors may be restarted after their node was lost: what is large goes to
        `work`, not into the factory.

        Args:
            options: of the extraction.
            seed: of the run; weights that are drawn come from it.
            work: folder of the run.

        Returns:
            The factory, and a warning to show, if any.

        Raises:
            InputError: it cannot be had.
        """
